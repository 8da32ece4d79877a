#!/usr/bin/env python3
"""Usage: make_svd.py OUT.txt

Best rank-k errors of matrices that tests/test_svd.c builds too: all entries are sums of small integers times a power of
two, so both get the same bits. A line: kind m n seed scale_exponent k total tail, where total = ||D||_F^2 and
tail = sum of squared singular values after the k-th (numpy float64).
"""
import sys

import numpy as np

M = (1 << 64) - 1


def stream(seed, count):
    """splitmix64"""
    z = (np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def ints(seed, count, bits):
    return (stream(seed, count) >> np.uint64(64 - bits)).astype(np.int64) - (1 << (bits - 1))


def matrix(kind, m, n, seed):
    if kind == "zero":
        return np.zeros((m, n))
    if kind == "flat":  # all singular values equal
        d = np.zeros((m, n))
        for i in range(min(m, n)):
            d[i, (i * 7 + 3) % n if m <= n else i] = 1 if i % 3 else -1
        return d
    if kind == "pairs":  # singular values 8 8 4 4 2 2 1 1 and zeros
        d = np.zeros((m, n))
        for i in range(8):
            d[(i * 5) % m, (i * 3) % n] = 2.0 ** (3 - i // 2)
        return d
    noise = ints(seed, m * n, 8).reshape(m, n).astype(float)
    if kind == "spike":  # a tail that f32 cannot see beside the first singular value
        noise[3, 5] = 2.0 ** 30
    if kind in ("noise", "spike"):
        return noise
    rank, weight = {"low": (16, 512), "steep": (16, 0), "exact": (6, 0)}[kind]
    u = ints(seed + 1, m * rank, 4).reshape(m, rank).astype(float)
    v = ints(seed + 2, n * rank, 4).reshape(n, rank).astype(float)
    if kind == "low":  # 16 directions of falling weight above noise
        w = np.array([weight >> (i // 2) for i in range(rank)], dtype=float)
        return (u * w) @ v.T + noise
    if kind == "exact":
        return u @ v.T
    w = 2.0 ** -np.arange(rank)  # steep: the tail is what rounding to f16 leaves
    return ((u * w) @ v.T).astype(np.float32).astype(np.float16).astype(float)


CASES = [
    ("zero", 24, 40, 1, 0, (1, 24)),
    ("flat", 300, 300, 1, 0, (1, 100, 300)), ("flat", 640, 320, 1, 0, (4, 128)), ("flat", 270, 900, 1, 0, (4, 60)),
    ("pairs", 300, 280, 1, 0, (1, 3, 4, 8, 20)), ("pairs", 16, 9, 1, 0, (3, 9)),
    ("noise", 320, 320, 11, 0, (1, 4, 16, 128, 319, 320)), ("noise", 768, 768, 12, 0, (4, 32, 128)),
    ("noise", 280, 1200, 13, -30, (4, 48)), ("noise", 8, 8, 14, 13, (1, 4, 8)),
    ("low", 320, 320, 21, 0, (1, 4, 16, 64)), ("low", 640, 640, 22, -40, (4, 16, 20, 100)),
    ("low", 1000, 300, 23, 10, (4, 16, 40)), ("low", 320, 1280, 24, 0, (4, 128)),
    ("steep", 320, 640, 31, 0, (4, 8, 12, 16, 17, 40)), ("steep", 512, 512, 32, -30, (4, 16, 32)),
    ("exact", 400, 300, 41, 0, (2, 6, 7, 32)), ("exact", 33, 47, 42, 5, (1, 6, 33)),
    ("spike", 300, 280, 61, 0, (1, 4, 40)), ("spike", 90, 100, 62, -20, (1, 3, 30)),
    ("noise", 1, 50, 51, 0, (1,)), ("noise", 50, 1, 52, 0, (1,)), ("noise", 1, 1, 53, 0, (1,)),
]


def main():
    with open(sys.argv[1], "w") as out:
        for kind, m, n, seed, e, ranks in CASES:
            d = matrix(kind, m, n, seed) * 2.0 ** e
            assert np.array_equal(d, d.astype(np.float32))
            s = np.linalg.svd(d, compute_uv=False)
            for k in ranks:
                out.write(f"{kind} {m} {n} {seed} {e} {k} {float((d * d).sum())!r} {float((s[k:] ** 2).sum())!r}\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes golden/dtype.txt: checksums of conversions between float types, as numpy and torch make them.

A line is  CASE COUNT CRC CRC ...:  zlib's crc32 of each 4096 results (little-endian), in the order of the inputs. Inputs are
not stored: tests/test_dtype.c makes the same ones, by these rules.

  all       every 16-bit pattern, 0 to 65535
  random32  f32 bits hash(i), i < 2^18, where hash is the 32-bit mixer below
  random64  for i < 2^18, sign and fraction from hash(2i) and hash(2i+1), exponent from LOW + hash(i) % SPAN
  edges     for h = 0 .. largest finite 16-bit float, and then with the sign changed: the midpoint m between h and h+1 (after
            the largest: half a unit further), its two neighbours in the wider type, and both neighbours of h itself:
            prev(m) m next(m) prev(h) next(h)

A NaN becomes the quiet NaN without payload, with the sign of the input: that is all a conversion promises about it.
"""
import pathlib, sys, zlib

import numpy as np
import torch

OUT = pathlib.Path(__file__).parent / "dtype.txt"
N = 1 << 18
UINT = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32, "f64": np.uint64}
QUIET = {"f16": 0x7e00, "bf16": 0x7fc0, "f32": 0x7fc00000, "f64": 0x7ff8000000000000}
NP = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


def mix(i):
    x = i.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7feb352d)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846ca68b)
    x ^= x >> np.uint32(16)
    return x


def random32():
    return mix(np.arange(N)).view(np.float32)


def random64(low, span):
    i = np.arange(N)
    hi, lo = mix(2 * i).astype(np.uint64), mix(2 * i + 1).astype(np.uint64)
    exponent = (1023 + low + mix(i).astype(np.int64) % span).astype(np.uint64)
    bits = (hi >> np.uint64(31)) << np.uint64(63) | exponent << np.uint64(52) | (hi & np.uint64(0xfffff)) << np.uint64(32) | lo
    return bits.view(np.float64)


def grid(kind):
    """All finite values >= 0 of a 16-bit float as float64, and the one that would follow."""
    bits = np.arange({"f16": 0x7c01, "bf16": 0x7f81}[kind], dtype=np.uint16)
    fraction, bias = {"f16": (10, 15), "bf16": (7, 127)}[kind]
    e, m = (bits >> fraction).astype(np.int64), (bits & ((1 << fraction) - 1)).astype(np.float64)
    return np.ldexp(np.where(e == 0, m, m + (1 << fraction)), np.maximum(e, 1) - bias - fraction)


def edges(kind, wide):
    g = grid(kind)
    h, m = g[:-1], (g[:-1] + g[1:]) / 2
    with np.errstate(over="ignore"):
        h, m = h.astype(wide), m.astype(wide)
    inf = wide(np.inf)
    x = np.stack([np.nextafter(m, -inf), m, np.nextafter(m, inf), np.nextafter(h, -inf), np.nextafter(h, inf)], 1).reshape(-1)
    return np.concatenate([x, -x])


def nearest(x, kind):
    """Round to nearest even by looking the value up among the exact midpoints: right for float64 too."""
    g = grid(kind)
    mids = (g[:-1] + g[1:]) / 2
    with np.errstate(invalid="ignore"):
        a = np.abs(x.astype(np.float64))
    i = np.searchsorted(mids, a, side="left")  # mids[i-1] < a <= mids[i]
    tie = (i < len(mids)) & (a == mids[np.minimum(i, len(mids) - 1)])
    i = np.where(tie & (i % 2 == 1), i + 1, i)
    return (i.astype(np.uint16) | np.signbit(x).astype(np.uint16) << np.uint16(15))


def to_bits(x, kind):
    """x: numpy floats. The conversion by the oracle, checked against a second one where there are two."""
    if kind == "bf16":
        y = nearest(x, kind)
        if x.dtype != np.float64:
            t = torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
            assert (y == t)[~np.isnan(x)].all()
        return y
    with np.errstate(over="ignore", invalid="ignore"):
        y = x.astype(NP[kind]).view(UINT[kind])
    if kind == "f16":
        assert (y == nearest(x, kind))[~np.isnan(x)].all()
    return y


def case(lines, name, x, kind):
    y = to_bits(x, kind)
    s = np.signbit(x).astype(UINT[kind]) << UINT[kind](8 * y.itemsize - 1)
    y = np.where(np.isnan(x), s | UINT[kind](QUIET[kind]), y).astype(UINT[kind])
    b = y.tobytes()
    step = 4096 * y.itemsize
    crcs = ["%08x" % zlib.crc32(b[i:i + step]) for i in range(0, len(b), step)]
    lines.append(" ".join([name, str(len(y))] + crcs))


def main():
    lines = []
    all16 = np.arange(65536, dtype=np.uint32)
    f16, bf16 = all16.astype(np.uint16).view(np.float16), (all16 << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        f16_wide = f16.astype(np.float32)
    assert np.array_equal(torch.from_numpy(f16).float().numpy(), f16_wide, equal_nan=True)
    for to in ("f32", "f64", "bf16"):
        case(lines, "all f16 " + to, f16_wide, to)
    for to in ("f32", "f64", "f16"):
        case(lines, "all bf16 " + to, bf16, to)
    for to in ("f16", "bf16"):
        case(lines, "edges f32 " + to, edges(to, np.float32), to)
        case(lines, "edges f64 " + to, edges(to, np.float64), to)
    for to in ("f16", "bf16", "f64"):
        case(lines, "random32 f32 " + to, random32(), to)
    for to, low, span in (("f16", -30, 50), ("bf16", -140, 272), ("f32", -155, 290)):
        case(lines, "random64 f64 " + to, random64(low, span), to)
    OUT.write_text("\n".join(lines) + "\n")
    print("python", sys.version.split()[0], "numpy", np.__version__, "torch", torch.__version__)


if __name__ == "__main__":
    main()

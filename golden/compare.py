#!/usr/bin/env python3
"""usage: compare.py MADE KEPT: what is different in two golden files that are not the same bytes.

Prints "same" with a reason and returns 0 where only that differs which says nothing: the order of metadata; in torch's old format the
names of storages, which are addresses, and the order that follows from them; in text the last digits of a number in f64, which
depend on the processor, and the version of the package that wrote it. Else "DIFFERS".
"""
import re
import sys

LAST_DIGITS = 1e-13  # of the largest number in a line: a thousand roundings in f64
NUMBER = re.compile(r"[-+]?\d+\.\d*(?:[eE][-+]?\d+)?")
ADDRESS = re.compile(rb"\d{9,}")


def other_tensors(made, kept):
    from safetensors.torch import load_file
    import torch

    a, b = load_file(made), load_file(kept)
    same = {k for k in a.keys() & b.keys() if a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and
            torch.equal(a[k].reshape(-1, 1).view(torch.uint8), b[k].reshape(-1, 1).view(torch.uint8))}
    return sorted((a.keys() | b.keys()) - same)


def number_difference(made, kept):
    """the largest difference of two numbers over the largest in their line; None where what is around them differs"""
    worst = 0.0
    with open(made, encoding="utf-8") as f, open(kept, encoding="utf-8") as g:
        a, b = ([line for line in x if "rs_version" not in line] for x in (f, g))
    if len(a) != len(b):
        return None
    for x, y in zip(a, b):
        if NUMBER.split(x) != NUMBER.split(y):
            return None
        x, y = ([float(n) for n in NUMBER.findall(s)] for s in (x, y))
        size = max(map(abs, x + y), default=0)
        worst = max([worst] + [abs(p - q) / size for p, q in zip(x, y) if p != q])
    return worst


def compare(made, kept):
    if made.endswith(".safetensors"):
        other = other_tensors(made, kept)
        return not other, f"in {other[0]} and {len(other) - 1} more" if other else "tensors"
    if made.endswith((".pt", ".pth", ".ckpt", ".bin")):
        a, b = (sorted(ADDRESS.sub(b"", open(p, "rb").read())) for p in (made, kept))
        return a == b, "but for addresses and order" if a == b else ""
    try:
        d = number_difference(made, kept)
    except UnicodeDecodeError:
        d = None
    return d is not None and d <= LAST_DIGITS, "" if d is None else f"but for {d:.0e} of a number"


if __name__ == "__main__":
    alike, what = compare(*sys.argv[1:])
    print("same" if alike else "DIFFERS", what)
    sys.exit(not alike)

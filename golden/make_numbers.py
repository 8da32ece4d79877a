#!/usr/bin/env python3
"""usage: make_numbers.py OUT.txt

A line: the bits of a double in hexadecimal notation, and Python's repr of it.
"""
import random
import struct
import sys

random.seed(4)
numbers = [0.0, 7.5, 7.0, 1.0, 0.1, 0.3, 1 / 3, 100.0, 12.25, 1e15, 1e16, 123456789012345680.0, 1e22, 1e-4, 1e-5, 0.00012345, 2e-7,
           5e-324, 1.7976931348623157e308, -7.5, -1e-7, 9007199254740993.0, 0.1 + 0.2, 1e23, 9999999999999998.0]
while len(numbers) < 300:
    x = struct.unpack("d", random.randbytes(8))[0]
    if x == x and abs(x) != float("inf"):
        numbers.append(x)
numbers += [round(random.uniform(0, 30), random.randint(0, 4)) for _ in range(100)]
with open(sys.argv[1], "w") as f:
    f.writelines(f"{x.hex()} {x!r}\n" for x in numbers)

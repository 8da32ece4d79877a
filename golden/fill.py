"""Numbers that follow from a name: weights and directions that both sides of a test can make, so that no file stores them.
In C: cmd/verify/golden_model.c."""
import math

import numpy as np
import torch


def mix(name, n):
    """n numbers of 64 bits: splitmix64 from the name's FNV-1a hash"""
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & (2**64 - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def fill(name, shape):
    """matrices: odd numbers -127 .. 127 over 128, times the power of two at or below sqrt(3 / fan in); biases: the same over
    1024; the weights of norms: 12/16 .. 19/16. f32, f16 and bf16 hold them exactly."""
    n = math.prod(shape)
    z = mix(name, n)
    if len(shape) == 1 and name.endswith("weight"):
        v = 1 + ((z >> np.uint64(61)).astype(np.float64) - 4) / 16
    else:
        v = ((z >> np.uint64(57)).astype(np.float64) * 2 - 127) / 128
        v *= 2.0 ** math.floor(math.log2(3 / math.prod(shape[1:])) / 2) if len(shape) > 1 else 1 / 8
    return torch.from_numpy(v.reshape(shape))

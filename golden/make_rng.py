#!/usr/bin/env python3
"""usage: make_rng.py OUT.safetensors

What torch's CPU generator draws: normals by both of its paths, uniforms, integers, permutations. One tensor a draw, named
KIND.SEED.COUNT; 'then' tensors are drawn right after the one before them, without a new seed.
"""
import sys

import torch
from safetensors.torch import save_file

out = {}
for seed in (0, 42, 2**32 + 7):
    for n in (1, 7, 15, 16, 17, 31, 64, 1000):
        torch.manual_seed(seed)
        out[f"normal.{seed}.{n}"] = torch.randn(n)
        out[f"then_normal.{seed}.{n}"] = torch.randn(5)
    torch.manual_seed(seed)
    out[f"uniform.{seed}.1300"] = torch.rand(1300)
    torch.manual_seed(seed)
    out[f"below1000.{seed}.100"] = torch.randint(0, 1000, (100,)).to(torch.int32)
    for n in (1, 2, 100):
        torch.manual_seed(seed)
        out[f"permutation.{seed}.{n}"] = torch.randperm(n).to(torch.int32)
save_file(out, sys.argv[1])

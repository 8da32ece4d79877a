#!/usr/bin/env python3
"""usage: make_rng_cuda.py OUT.safetensors      (needs a CUDA GPU)

What torch.randn(n, device="cuda") draws first and second after torch.manual_seed(seed): 'first.SEED.N', 'second.SEED.N';
of 16384 elements (a 512x512 picture's latents) every 16th is kept.
"""
import sys

import torch
from safetensors.torch import save_file

out = {}
for seed in (0, 42, 2**40 + 7):
    for n in (1, 5, 1024, 16384):
        torch.cuda.manual_seed(seed)
        first, second = torch.randn(n, device="cuda").cpu(), torch.randn(n, device="cuda").cpu()
        step = 16 if n > 1024 else 1
        out[f"first.{seed}.{n}"], out[f"second.{seed}.{n}"] = first[::step].clone(), second[::step].clone()
save_file(out, sys.argv[1])
print(torch.cuda.get_device_name(), torch.__version__, out["first.0.5"])

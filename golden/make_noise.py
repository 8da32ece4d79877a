#!/usr/bin/env python3
"""usage: make_noise.py OUT.safetensors

Noises of pictures as sd-scripts v0.3.0 draws them (one torch.randn(4, h, w) after another from each picture's own seed), and
guided predictions by its two formulas.
"""
import sys

import torch
from safetensors.torch import save_file

out = {}
for seed, h, w in ((1, 8, 8), (2147483647, 5, 7), (42, 1, 3)):
    torch.manual_seed(seed)
    out[f"noise.{seed}"] = torch.stack([torch.randn(4, h, w) for _ in range(4)]).permute(0, 2, 3, 1)
torch.manual_seed(9)
text, negative, uncond = torch.randn(3, 200)
scale, negative_scale = 7.5, 1.3
out |= {"text": text, "negative": negative, "uncond": uncond}
out["guided"] = uncond + scale * (text - uncond)
out["guided3"] = uncond + scale * (text - uncond) - negative_scale * (negative - uncond)
save_file({k: v.clone(memory_format=torch.contiguous_format) for k, v in out.items()}, sys.argv[1])

#!/usr/bin/env python3
"""usage: make_merge.py OUT.safetensors

Merging, combining and resizing LoRA modules, by torch. Sums of products in float64; "v030" by the expressions of sd-scripts
v0.3.0 (networks/merge_lora.py: merge_to_sd_model, merge_lora_models) in torch's own arithmetic of each --precision; best rank-k
approximations from a full SVD of the dense sum in float64.
"""
import sys

import torch
from safetensors.torch import save_file

g = torch.Generator().manual_seed(20)
out = {}


def randn(*shape, size=1.0, dtype=torch.float32):
    return (torch.randn(*shape, generator=g) * size).to(dtype)


def put(name, t):
    out[name] = t.contiguous()


def delta64(up, down, mid=None):
    up, down = up.double(), down.double()
    if mid is not None:  # CP: up [o, p, 1, 1], mid [p, q, kh, kw], down [q, i, 1, 1]
        return torch.einsum("op,pqhw,qi->oihw", up[:, :, 0, 0], mid.double(), down[:, :, 0, 0])
    if up.ndim == 2:
        return up @ down
    return torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)


types = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

# One weight, two modules of different rank and alpha, every type of weight.
for kind, w_shape, d_tail, u_tail in (("linear", (37, 29), (), ()), ("conv1", (24, 40, 1, 1), (1, 1), (1, 1)),
                                      ("conv3", (18, 11, 3, 3), (3, 3), (1, 1))):
    o, i = w_shape[:2]
    factors = []
    for k, (rank, alpha, ratio) in enumerate(((8, 4.0, 0.8), (5, 5.0, -0.35))):
        up = randn(o, rank, *u_tail, size=0.1, dtype=torch.float16)
        down = randn(rank, i, *d_tail, size=0.2, dtype=torch.float16)
        put(f"{kind}.up{k}", up)
        put(f"{kind}.down{k}", down)
        factors.append((up, down, ratio, alpha / rank))
    for t, dtype in types.items():
        w = randn(*w_shape, size=0.3, dtype=dtype)
        put(f"{kind}.{t}.w", w)
        exact = w.double()
        for up, down, ratio, scale in factors:
            exact = exact + ratio * scale * delta64(up, down)
        put(f"{kind}.{t}.exact", exact)
        if kind == "conv3":
            continue  # v0.3.0 has no 3x3 modules
        for p, precision in types.items():
            x = w.to(torch.float32).to(precision)  # the scripts load every weight as float32 first
            for up, down, ratio, _ in factors:
                up, down = up.to(precision), down.to(precision)
                if x.ndim == 2:
                    x = x + ratio * (up @ down)
                else:
                    x = x + ratio * (up.squeeze(3).squeeze(2) @ down.squeeze(3).squeeze(2)).unsqueeze(2).unsqueeze(3)
            put(f"{kind}.{t}.v030.{p}", x)

# A convolution in CP form.
up, mid, down = randn(12, 4, 1, 1), randn(4, 3, 3, 3), randn(3, 10, 1, 1)
for n, t in (("up", up), ("mid", mid), ("down", down)):
    put(f"cp.{n}", t)
put("cp.exact", delta64(up, down, mid))

# LoRA with LoRA: two modules; the best approximations of the exact sum at several ranks; spectra flat, falling and steep.
for name, decay in (("flat", 1.0), ("falling", 0.8), ("steep", 0.3)):
    o, i, total = 31, 45, torch.zeros(31, 45, dtype=torch.float64)
    for k, (rank, alpha, ratio) in enumerate(((9, 9.0, 1.0), (7, 3.5, -0.6))):
        up, down = randn(o, rank) * decay ** torch.arange(rank), randn(rank, i)
        put(f"sum.{name}.up{k}", up)
        put(f"sum.{name}.down{k}", down)
        total += ratio * alpha / rank * delta64(up, down)
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    put(f"sum.{name}.s", s)
    for rank in (1, 4, 9, 14):
        put(f"sum.{name}.best{rank}", (u[:, :rank] * s[:rank]) @ vh[:rank])

save_file(out, sys.argv[1])

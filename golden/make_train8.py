#!/usr/bin/env python3
"""usage: make_train8.py OUT.safetensors

Ten training steps as in make_train.py with bitsandbytes' AdamW8bit, in float32 (it has no other), codes rounded to the nearest as
make_optim.py says. Of rank 128, so that the optimizer keeps the state of the factors in 8 bits (from 4,096 numbers on).

Tensors and metadata as in make_train.py; of the factors after the last step those of a few modules. "error" is missing: there
is no exact run to compare with.
"""
import json
import sys

import bitsandbytes as bnb
import bitsandbytes.backends.cpu.ops as bnb_cpu
import torch
from safetensors.torch import save_file

import make_train as T
from make_optim import nearest

KEPT = ("down_blocks.0.attentions.0.proj_in", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "text_model.encoder.layers.0.self_attn.q_proj", "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q")

bnb_cpu._quant_blockwise_fp32_direct = nearest
T.g = torch.Generator().manual_seed(8)
options = dict(dim=128, alpha=64.0, te=True, clip_skip=0, chunks=1, v=False, huber=False, min_snr=0.0, te_lr=5e-4, unet_lr=1e-3,
               max_grad_norm=1.0)
x = {"latents": T.randn(2, 4, 6, 4), "noise": T.randn(T.STEPS, 2, 4, 6, 4),
     "timesteps": torch.randint(0, 1000, (T.STEPS, 2), generator=T.g, dtype=torch.int32),
     "ids": torch.randint(0, 58, (T.STEPS, 2, 77), generator=T.g, dtype=torch.int32), "weight": torch.ones(T.STEPS, 2)}
x["ids"][:, :, 0] = 58
x["ids"][:, :, 20:] = 59
r = T.train("adam8", options | {"optimizer": bnb.optim.AdamW8bit}, x, torch.float32)
out = {f"adam8/{k}": v.clone() for k, v in x.items()}
for k, v in r.items():
    if k == "losses" or k.startswith("last/") and k[5:].rsplit(".", 1)[0] in KEPT:
        out[f"adam8/{k}"] = v.contiguous().clone()
save_file(out, sys.argv[1], metadata={"cases": json.dumps({"adam8": options}), "tensors": json.dumps(T.tensors)})
print([round(float(v), 5) for v in r["losses"]], len(out), "tensors", sum(v.numel() for v in out.values()) * 4, "bytes")

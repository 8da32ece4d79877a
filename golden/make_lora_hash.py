#!/usr/bin/env python3
"""Prints the two hashes that test_hashes of tests/test_lora_write.c expects: sd-scripts' precalculate_safetensors_hashes (library/
train_util.py), that is, SHA-256 over a safetensors file with ss_* metadata alone, behind its header and in a window at 1 MiB."""
import hashlib

import safetensors.torch
import torch

n = 320 * 800
up = (torch.arange(n) % 1000).float() / 8
down = -(torch.arange(n) % 777).float() / 4
sd = {}
for path, u, d, alpha in (("proj_in", up, down, 320.0), ("proj_out", down, up, 1.5)):
    key = f"lora_unet_mid_block_attentions_0_{path}"
    sd[key + ".lora_up.weight"] = u.reshape(800, 320, 1, 1).half()
    sd[key + ".lora_down.weight"] = d.reshape(320, 800, 1, 1).half()
    sd[key + ".alpha"] = torch.tensor(alpha).half()
data = safetensors.torch.save(sd, {"ss_note": 'a "b" \n c'})
header = int.from_bytes(data[:8], "little") + 8
print(hashlib.sha256(data[header:]).hexdigest())
print(hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8])

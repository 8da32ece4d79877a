#!/usr/bin/env python3
"""usage: make_resize.py OUT.safetensors

A picture scaled by Pillow with each filter, up, down, each way alone; and its grey form, scaled. Names: FILTER.WIDTHxHEIGHT.
"""
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

rng = np.random.default_rng(6)
y, x = np.mgrid[0:37, 0:53]
a = np.stack([x * 5 % 256, y * 7 % 256, (x * y) % 256], -1).astype(np.uint8)
a[10:20, 15:35] = rng.integers(0, 256, (10, 20, 3))
a[25:30, 5:20] = 255
a[30:33, 5:20] = 0
im = Image.fromarray(a)
out = {"picture": a, "grey": np.array(im.convert("L"))}
for name, f in (("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC), ("lanczos", Image.LANCZOS)):
    for w, h in ((32, 32), (60, 50), (53, 20), (64, 37), (1, 1), (7, 90), (5, 3), (53, 37)):
        out[f"{name}.{w}x{h}"] = np.array(im.resize((w, h), f))
out["grey.8x4"] = np.array(im.convert("L").resize((8, 4), Image.LANCZOS))
save_file({k: torch.from_numpy(v.copy()).to(torch.float16) for k, v in out.items()}, sys.argv[1])

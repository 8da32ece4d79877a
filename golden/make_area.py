#!/usr/bin/env python3
"""usage: make_area.py OUT.safetensors

Pictures scaled by cv2.resize with INTER_AREA: by whole factors, by others, larger, mixed. Names: area.SOURCE.WIDTHxHEIGHT.
And small changes of colour, as albumentations' HueSaturationValue and RandomGamma do them on 8 bits: cv2's HSV with a table for
the hue (hue.STEPS), a table for the gamma (gamma.X); the formulas are albumentations', written out, the conversions are cv2's.
"""
import sys

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

rng = np.random.default_rng(7)


def picture(w, h):
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([x * 5 % 256, y * 7 % 256, (x * y) % 256], -1).astype(np.uint8)
    a[h // 4:h // 2, w // 4:w // 2] = rng.integers(0, 256, (h // 2 - h // 4, w // 2 - w // 4, 3))
    a[3 * h // 4:, : w // 3] = 255
    a[3 * h // 4 + 2:, : w // 4] = 0
    return a


out = {}
sizes = {
    (60, 44): [(30, 22), (20, 11), (60, 22), (12, 44), (10, 4), (59, 44), (1, 1), (7, 5)],
    (97, 61): [(64, 61), (64, 40), (97, 64), (100, 30), (50, 80), (13, 9)],
    (5, 3): [(32, 64), (5, 4), (6, 3), (2, 2)],
}
for (w, h), to in sizes.items():
    a = picture(w, h)
    out[f"{w}x{h}"] = a
    for size in to:
        out[f"area.{w}x{h}.{size[0]}x{size[1]}"] = cv2.resize(a, size, interpolation=cv2.INTER_AREA)

colours = np.concatenate([rng.integers(0, 256, (14, 64, 3)), np.repeat(rng.integers(0, 256, (2, 64, 1)), 3, 2)]).astype(np.uint8)
out["colours"] = colours
for steps in (-8.0, -2.7, 0.0, 0.4, 5.6):
    h, s, v = cv2.split(cv2.cvtColor(colours, cv2.COLOR_RGB2HSV))
    table = np.mod(np.arange(0, 256, dtype=np.int16) + steps, 180).astype(np.uint8)
    out[f"hue.{steps}"] = cv2.cvtColor(cv2.merge((cv2.LUT(h, table), s, v)), cv2.COLOR_HSV2RGB)
for gamma in (0.95, 0.9731, 1.0, 1.05):
    table = (np.arange(0, 256.0 / 255, 1.0 / 255) ** gamma) * 255
    out[f"gamma.{gamma}"] = cv2.LUT(colours, table.astype(np.uint8))
save_file({k: torch.from_numpy(v.copy()).to(torch.float16) for k, v in out.items()}, sys.argv[1])

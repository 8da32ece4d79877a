#!/usr/bin/env python3
"""usage: make_latents.py OUT.safetensors

The small model's VAE by diffusers in float64: a picture to moments and to a sample of them, latents to a picture, both also in
tiles as cmd/latents.h describes them: squares of 8 latents, evenly spread, mixed by weights that rise over a quarter of a tile.
Metadata "error": the largest difference of torch's own float32 run, by tensor.
"""
import json
import os
import sys

import numpy as np
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "small_model"))
import evaluate

SCALE, H, W, TILE = 0.18215, 9, 15, 8  # H, W: latents


def spread(length):
    count = 1 + max(0, -(-(length - TILE) // (TILE - TILE // 4)))
    return [i * (length - TILE) // (count - 1) for i in range(count)] if count > 1 else [0]


def weights(length, scale):
    starts, size = spread(length), TILE * scale
    total = np.zeros((len(starts), length * scale))
    for i, s in enumerate(starts):
        up = (np.arange(size) + 0.5) / (TILE // 4 * scale)
        w = np.ones(size)
        w = np.minimum(w, up) if i > 0 else w
        w = np.minimum(w, up[::-1]) if i + 1 < len(starts) else w
        total[i, s * scale : s * scale + size] = w
    return starts, torch.from_numpy(total / total.sum(0))


def tiled(f, x, step, scale):
    """f on tiles of x [1, c, h, w]; step: places of x a latent; scale: places of the result a latent."""
    (ys, wy), (xs, wx) = weights(x.shape[2] // step, scale), weights(x.shape[3] // step, scale)
    out = 0
    for i, y in enumerate(ys):
        for j, z in enumerate(xs):
            part = f(x[:, :, y * step : (y + TILE) * step, z * step : (z + TILE) * step])
            full = torch.zeros(1, part.shape[1], wy.shape[1], wx.shape[1], dtype=x.dtype)
            full[:, :, y * scale : (y + TILE) * scale, z * scale : (z + TILE) * scale] = part
            out = out + full * (wy[i][:, None] * wx[j][None]).to(x.dtype)
    return out


@torch.no_grad()
def run(vae, picture, noise, latents):
    last = lambda x: x.permute(0, 2, 3, 1).contiguous()
    moments = lambda x: vae.encode(x).latent_dist.parameters
    decode = lambda x: vae.decode(x).sample
    m = moments(picture)
    mean, log = m.chunk(2, 1)
    sample = (mean + (log.clamp(-30, 20) / 2).exp() * noise) * SCALE
    return {
        "moments": last(m), "sample": last(sample), "mean": last(mean * SCALE), "decoded": last(decode(latents / SCALE)),
        "tiled_moments": last(tiled(moments, picture, 8, 1)), "tiled_decoded": last(tiled(decode, latents / SCALE, 1, 8)),
    }


def main(path):
    g = torch.Generator().manual_seed(21)
    rough = torch.rand(1, 3, 5, 7, generator=g)
    picture = torch.nn.functional.interpolate(rough, (H * 8, W * 8), mode="bicubic").clamp(0, 1)
    picture = (picture * 255).round() / 255 * 2 - 1
    noise = torch.randn(1, 4, H, W, generator=g)
    latents = torch.nn.functional.interpolate(torch.randn(1, 4, 4, 6, generator=g), (H, W), mode="bilinear")
    vae = evaluate.load(os.path.join(HERE, "small_model", "small.safetensors"))[2]
    single = run(vae, picture, noise, latents)
    double = run(vae.double(), picture.double(), noise.double(), latents.double())
    error = {k: float((single[k].double() - v).abs().max()) for k, v in double.items()}
    out = {k: v.float().contiguous() for k, v in double.items()}
    out |= {k: v.permute(0, 2, 3, 1).contiguous() for k, v in (("picture", picture), ("noise", noise), ("latents", latents))}
    save_file(out, path, {"error": json.dumps(error)})
    print(error)


if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) == 2 else sys.exit(__doc__)

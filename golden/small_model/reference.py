"""What diffusers makes of small.safetensors in float64, stage by stage, for 'lora verify pictures'.

    python reference.py --out reference.safetensors

Two prompts and the empty one: token numbers (open_clip's tokenizer), contexts, the U-Net's eps for the first noise, latents after
20 steps of DDIM with guidance 7.5, the pictures, and the first picture encoded again. Channels last. Metadata "error": how far
the same computation by torch in float32, bfloat16 and float16 is off, from which limits come (latents stay in float32 at least).
"""
import argparse
import json

import open_clip
import torch
from safetensors.torch import save_file

import evaluate as E
import nets as N

PROMPTS = ["a red house to the left of a green tree in the snow", "three yellow stars at night"]
STEPS, GUIDANCE, SEED = 20, 7.5, 42


class ExactTime(torch.nn.Module):
    """The timestep embedding in f64, where diffusers' float32 has angles of 951 radians off by 3e-5."""

    def __init__(self, width, dtype):
        super().__init__()
        self.width, self.dtype = width, dtype

    def forward(self, t):
        f = 10000.0 ** (-torch.arange(self.width // 2, dtype=torch.float64) / (self.width // 2))
        a = t.double()[:, None] * f
        return torch.cat([a.cos(), a.sin()], 1).to(self.dtype)


@torch.no_grad()
def run(dtype, ids, noise):
    text, unet, vae, ddim = E.load("small.safetensors")
    ddim = type(ddim).from_config(ddim.config, set_alpha_to_one=True)  # ends at the clean picture, as our DDIM does
    text, unet, vae = text.to(dtype), unet.to(dtype), vae.to(dtype)
    unet.time_proj = ExactTime(N.WIDTHS[0], dtype)
    out, n = {}, len(PROMPTS)
    context = text(ids)[0]
    out["context"] = context
    both = torch.cat([context[:n], context[n:].expand(n, -1, -1)])
    ddim.set_timesteps(STEPS)
    x = noise.to(torch.promote_types(dtype, torch.float32))
    for t in ddim.timesteps:
        eps = unet(torch.cat([x, x]).to(dtype), t, both).sample.to(x.dtype)
        if "eps" not in out:
            out["eps"] = eps.permute(0, 2, 3, 1)
        a, b = eps.chunk(2)
        x = ddim.step(b + GUIDANCE * (a - b), t, x).prev_sample
    out["latents"] = x.permute(0, 2, 3, 1)
    picture = vae.decode((x / N.SCALING).to(dtype)).sample
    out["pictures"] = picture.permute(0, 2, 3, 1)
    return out


@torch.no_grad()
def encode(dtype, picture):
    d = E.load("small.safetensors")[2].to(dtype).encode(picture.to(dtype)).latent_dist
    return {"moments": torch.cat([d.mean, d.logvar], 1).permute(0, 2, 3, 1)}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True)
    o = a.parse_args()
    ids = open_clip.SimpleTokenizer()([*PROMPTS, ""])
    for row in ids:  # open_clip pads with 0, SD1 with the end marker
        row[row.tolist().index(49407):] = 49407
    noise = torch.randn(len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(SEED))
    exact = run(torch.float64, ids, noise)
    picture = exact["pictures"][:1].permute(0, 3, 1, 2).float()
    exact.update(encode(torch.float64, picture))
    error = {k: [] for k in exact}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for k, v in (run(dtype, ids, noise) | encode(dtype, picture)).items():
            error[k].append(float((exact[k] - v.double()).abs().max()))
    out = {k: v.float().contiguous() for k, v in exact.items()}
    out["noise"] = noise.permute(0, 2, 3, 1).contiguous()
    out["ids"] = ids.to(torch.int32)
    meta = {"error": error, "prompts": PROMPTS, "steps": STEPS, "guidance": GUIDANCE, "seed": SEED}
    save_file(out, o.out, {"reference": json.dumps(meta)})
    print(json.dumps(meta, indent=1), {k: tuple(v.shape) for k, v in out.items()})


if __name__ == "__main__":
    main()

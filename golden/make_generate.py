#!/usr/bin/env python3
"""usage: make_generate.py OUT_DIR

Whole pictures of the small model by diffusers and transformers in float32, from torch's CPU noise; the loop over the
scheduler's timesteps is that of diffusers' pipelines (text to image, img2img, inpainting with plain and with inpainting
U-Nets). One PNG a case; source.png and mask.png, which some of them begin with; and lora.safetensors, a LoRA of rank 4 on all
attention projections that the case "lora" applies by changing the weights.

Noises are numbered as sd-scripts draws them for one picture: 0 the start, 1 .. steps the sampler's, then that of img2img, then
that of the VAE's sample.
"""
import os
import sys

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "small_model"))
sys.path.insert(0, HERE)
import evaluate
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler

COMMON = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
# The last step ends at a level of noise of 0 (set_alpha_to_one, the default), as sd-scripts v0.3.0 has DDIM; pipelines
# that diffusers loads set it False.
DDIM = lambda **k: DDIMScheduler(**COMMON, clip_sample=False, steps_offset=1, **k)
EULER_A = lambda: EulerAncestralDiscreteScheduler(**COMMON)
V = lambda: DDIM(prediction_type="v_prediction")
PROMPT = "a red house to the left of a green tree in the snow"
FISH = "an orange fish under the sea"
CASES = [  # name, scheduler, prompt, negative, seed, width, height, steps, scale, and what more there is
    ("ddim", DDIM, PROMPT, "", 1, 128, 128, 10, 5.0, {}),
    ("negative", DDIM, "three yellow stars at night", "blue circle", 2, 128, 96, 8, 7.5, {}),
    ("no_guidance", DDIM, "a big striped purple heart on a white background", "", 3, 72, 136, 6, 1.0, {}),
    ("lora", DDIM, PROMPT, "", 4, 128, 128, 8, 5.0, {"lora": True}),
    ("v_prediction", V, FISH, "", 5, 64, 64, 4, 3.0, {}),
    ("img2img", DDIM, FISH, "", 6, 96, 64, 8, 5.0, {"strength": 0.6}),
    ("inpaint", EULER_A, FISH, "", 7, 96, 64, 6, 5.0, {"strength": 0.8, "mask": True}),
    ("inpaint_model", DDIM, FISH, "", 8, 96, 64, 5, 3.0, {"strength": 1.0, "mask": True, "nine": True}),
]


def make_sources(folder):
    """A picture of 96 x 64, and a mask that has greys at its edge."""
    p = Image.new("RGB", (96, 64), (90, 140, 220))
    d = ImageDraw.Draw(p)
    d.rectangle((0, 44, 95, 63), fill=(60, 160, 70))
    d.ellipse((20, 18, 52, 46), fill=(230, 120, 40))
    d.polygon(((50, 32), (70, 20), (70, 46)), fill=(250, 210, 60))
    p.save(os.path.join(folder, "source.png"), optimize=True)
    m = Image.new("L", (96, 64), 0)
    ImageDraw.Draw(m).ellipse((30, 10, 80, 54), fill=255)
    m.resize((48, 32), Image.BILINEAR).resize((96, 64), Image.BILINEAR).save(os.path.join(folder, "mask.png"), optimize=True)


def make_lora(path, unet, text):
    g = torch.Generator().manual_seed(11)
    out = {}
    for prefix, net in (("lora_unet_", unet), ("lora_te_text_model_", text)):
        for name, m in net.named_modules():
            name = name.removeprefix("text_model.")
            if isinstance(m, torch.nn.Linear) and name.split(".")[-1] in ("to_q", "to_k", "to_v", "q_proj", "v_proj"):
                key = prefix + name.replace(".", "_")
                down = torch.randn(4, m.in_features, generator=g) / m.in_features**0.5
                up = torch.randn(m.out_features, 4, generator=g) * 0.1
                out |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
                m.weight.data += 0.8 * (2.0 / 4) * up @ down
    save_file(out, path)


def nine_channels(unet):
    """The U-Net with five more input channels, whose weights are a formula (tests/test_generate.c has it, too)."""
    old = unet.conv_in
    new = torch.nn.Conv2d(9, old.out_channels, 3, padding=1)
    o, i, y, x = torch.meshgrid(*(torch.arange(float(k)) for k in (old.out_channels, 5, 3, 3)), indexing="ij")
    new.weight.data = torch.cat([old.weight.data, (0.05 * torch.sin(7 * o + 13 * i + 3 * y + x)).half().float()], 1)
    new.bias.data = old.bias.data
    unet.conv_in = new


def pixels(image):
    return torch.from_numpy(np.array(image.convert("RGB")).astype(np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1


class Start:
    """What img2img and inpainting begin with."""

    def __init__(self, folder, vae, steps, seed, more):
        source = Image.open(os.path.join(folder, "source.png"))
        w, h = source.size[0] // 8, source.size[1] // 8
        noises = torch.Generator().manual_seed(seed)
        for _ in range(1 + steps):
            torch.randn(4, h, w, generator=noises)
        self.noise, sample = (torch.randn(4, h, w, generator=noises)[None] for _ in range(2))
        d = vae.encode(pixels(source)).latent_dist
        self.init = 0.18215 * (d.mean + d.std * sample)
        self.first = max(steps - int(steps * more["strength"]), 0)
        self.mask = self.extra = None
        if more.get("mask"):
            m = Image.open(os.path.join(folder, "mask.png")).convert("L")
            soft = np.array(m.resize((w, h), Image.LANCZOS)).astype(np.float32) / 255
            hard = torch.from_numpy((np.array(m) >= 128).astype(np.float32))[None, None]
            self.mask = torch.from_numpy(soft)[None, None]
            cut = 0.18215 * vae.encode(pixels(source) * (hard < 0.5)).latent_dist.mean
            self.extra = torch.cat([torch.nn.functional.interpolate(hard, (h, w)), cut], 1)


@torch.no_grad()
def draw(folder, scheduler, prompt, negative, seed, width, height, steps, scale, more):
    text, unet, vae, _ = evaluate.load(os.path.join(HERE, "small_model", "small.safetensors"))
    if more.get("lora"):
        make_lora(os.path.join(folder, "lora.safetensors"), unet, text)
    nine = more.get("nine")
    if nine:
        nine_channels(unet)
    ids = encode([prompt, negative] if scale > 1 else [prompt])
    context = text(ids)[0]
    s = scheduler()
    s.set_timesteps(steps)
    timesteps = s.timesteps
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 4, height // 8, width // 8, generator=g) * s.init_noise_sigma
    start = Start(folder, vae, steps, seed, more) if "strength" in more else None
    if start and not nine:
        timesteps = timesteps[start.first :]
        x = s.add_noise(start.init, start.noise, timesteps[:1])
        if hasattr(s, "set_begin_index"):
            s.set_begin_index(start.first)
    for i, t in enumerate(timesteps):
        given = s.scale_model_input(torch.cat([x] * len(ids)), t)
        if nine:
            given = torch.cat([given, start.extra.expand(len(ids), -1, -1, -1)], 1)
        out = unet(given, t, context).sample
        if scale > 1:
            a, b = out.chunk(2)
            out = b + scale * (a - b)
        more_args = {"generator": g} if scheduler is EULER_A else {}
        x = s.step(out, t, x, **more_args).prev_sample
        if start and start.mask is not None and not nine:
            kept = start.init
            if i + 1 < len(timesteps):
                kept = s.add_noise(start.init, start.noise, timesteps[i + 1 : i + 2])
            x = (1 - start.mask) * kept + start.mask * x
    return (vae.decode(x / 0.18215).sample / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)


def main(folder):
    os.makedirs(folder, exist_ok=True)
    make_sources(folder)
    for name, *case in CASES:
        y = draw(folder, *case)
        Image.fromarray((y * 255).round().to(torch.uint8).numpy()).save(os.path.join(folder, name + ".png"), optimize=True)
        print(name)


def encode(texts):
    import open_clip  # its tokenizer has the same words; padding is 0 there, the end marker here
    ids = open_clip.tokenize(texts, 77)
    for row in ids:
        end = int((row == 49407).nonzero()[0])
        row[end:] = 49407
    return ids


if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) == 2 else sys.exit(__doc__)

#!/usr/bin/env python3
"""usage: make_generate.py OUT_DIR

Whole pictures of the small model by diffusers and transformers in float32, from torch's CPU noise; the loop over the
scheduler's timesteps is that of diffusers' text-to-image pipeline. One PNG a case, and lora.safetensors, a LoRA of rank 4 on
all attention projections that the case "lora" applies by changing the weights.
"""
import os
import sys

import torch
from PIL import Image
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "small_model"))
sys.path.insert(0, HERE)
import evaluate
from diffusers import DDIMScheduler

COMMON = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
# The last step ends at a level of noise of 0 (set_alpha_to_one, the default), as sd-scripts v0.3.0 has DDIM; pipelines
# that diffusers loads set it False.
DDIM = lambda: DDIMScheduler(**COMMON, clip_sample=False, steps_offset=1)
PROMPT = "a red house to the left of a green tree in the snow"
CASES = [  # name, scheduler, prompt, negative, seed, width, height, steps, scale, lora
    ("ddim", DDIM, PROMPT, "", 1, 128, 128, 10, 5.0, False),
    ("negative", DDIM, "three yellow stars at night", "blue circle", 2, 128, 96, 8, 7.5, False),
    ("no_guidance", DDIM, "a big striped purple heart on a white background", "", 3, 72, 136, 6, 1.0, False),
    ("lora", DDIM, PROMPT, "", 4, 128, 128, 8, 5.0, True),
]


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


@torch.no_grad()
def main(folder):
    os.makedirs(folder, exist_ok=True)
    for name, scheduler, prompt, negative, seed, width, height, steps, scale, lora in CASES:
        text, unet, vae, _ = evaluate.load(os.path.join(HERE, "small_model", "small.safetensors"))
        if lora:
            make_lora(os.path.join(folder, "lora.safetensors"), unet, text)
        ids = encode([prompt, negative] if scale > 1 else [prompt])
        context = text(ids)[0]
        s = scheduler()
        s.set_timesteps(steps)
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 4, height // 8, width // 8, generator=g) * s.init_noise_sigma
        for t in s.timesteps:
            out = unet(s.scale_model_input(torch.cat([x] * len(ids)), t), t, context).sample
            if scale > 1:
                a, b = out.chunk(2)
                out = b + scale * (a - b)
            x = s.step(out, t, x).prev_sample
        y = (vae.decode(x / 0.18215).sample / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
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

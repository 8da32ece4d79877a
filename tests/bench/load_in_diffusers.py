#!/usr/bin/env python3
"""usage: load_in_diffusers.py LORA_PROGRAM [FOLDER]

Do today's diffusers and PEFT load our LoRA files whole? From the small model and a tuned copy (a change of rank 3 in every matrix
and convolution) a LoRA with LoCon modules and an alpha is extracted, converted to each layout and loaded into a diffusers pipeline.
Text encoder and U-Net must then compute what the model computes into which `lora merge` merged the same LoRA: prints the largest
differences, exit status 1 when one is beyond rounding (1e-4 of values of size 1; a module that is passed over makes 0.1).
Needs torch, diffusers, transformers, peft, safetensors. Works in FOLDER (default: build/load_in_diffusers).
"""
import os
import subprocess
import sys

import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file, save_file

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BASE = TOP + "/golden/small_model/small.safetensors"


def lora(*words):
    subprocess.run([PROGRAM, *words, "--quiet"], check=True)


def tuned():
    g, out = torch.Generator().manual_seed(3), {}
    for k, v in load_file(BASE).items():
        out[k] = v.float() if v.is_floating_point() else v
        if v.is_floating_point() and v.ndim >= 2 and not k.startswith("first_stage") and "embedding" not in k:
            a = v.flatten(1).float()
            d = torch.randn(a.shape[0], 3, generator=g) @ torch.randn(3, a.shape[1], generator=g)
            out[k] = (a + d / d.norm() * 0.2 * a.norm()).reshape(v.shape)
    save_file(out, "tuned.safetensors")


@torch.no_grad()
def outputs(pipe):
    ids = torch.tensor([[49406, 320, 736, 1092] + [49407] * 73])
    context = pipe.text_encoder(ids)[0]
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return context, pipe.unet(x, torch.tensor([500.0]), context).sample


def pipeline(folder):
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def loaded(layout):
    pipe, file = pipeline("base"), "lora_" + layout + ("" if layout == "peft" else ".safetensors")
    lora("convert", "lora.safetensors", file, "--to", layout)
    if layout == "peft":
        pipe.unet = PeftModel.from_pretrained(pipe.unet, file + "/unet")
        pipe.text_encoder = PeftModel.from_pretrained(pipe.text_encoder, file + "/text_encoder")
    else:
        pipe.load_lora_weights(file)
    return outputs(pipe)


if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
PROGRAM = os.path.abspath(sys.argv[1])
folder = os.path.abspath(sys.argv[2]) if len(sys.argv) > 2 else TOP + "/build/load_in_diffusers"
os.makedirs(folder, exist_ok=True)
os.chdir(folder)
tuned()
lora("extract", "--model_org", BASE, "--model_tuned", "tuned.safetensors", "--dim", "4", "--conv_dim", "3", "--network_alpha", "2",
     "--save_to", "lora.safetensors")
lora("convert", BASE, "base", "--dtype", "float")
lora("merge", "--sd_model", BASE, "--models", "lora.safetensors", "--ratios", "1", "--save_to", "merged.safetensors",
     "--save_precision", "float")
lora("convert", "merged.safetensors", "merged")
want, plain, bad = outputs(pipeline("merged")), outputs(pipeline("base")), False
print("layout      text encoder  U-Net")
print("(effect)    %-12.3g  %.3g" % tuple((a - b).abs().max() for a, b in zip(want, plain)))
for layout in ("kohya", "diffusers", "peft"):
    off = [float((a - b).abs().max()) for a, b in zip(want, loaded(layout))]
    bad |= max(off) > 1e-4
    print("%-10s  %-12.3g  %.3g" % (layout, *off))
sys.exit(bad)

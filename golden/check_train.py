#!/usr/bin/env python3
"""usage: check_train.py LORA_PROGRAM

Trains a LoRA on the small model with the program, loads the file with diffusers' load_lora_weights() and compares the picture that
diffusers then draws with `lora generate`'s. Prints the largest and the mean difference in levels, and how far the LoRA moved the
picture. Nothing is stored: this is a check by hand, not golden data.
"""
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = os.path.join(HERE, "small_model", "small.safetensors")
PROMPT, SEED, STEPS, SCALE, SIZE = "sks rocket in a meadow", 3, 12, 5.0, 128

program = os.path.abspath(sys.argv[1])
work = tempfile.mkdtemp()
data = os.path.join(work, "data")
os.makedirs(data)
os.symlink(os.path.join(HERE, "small_model", "concept"), os.path.join(data, "4_sks rocket"))


def lora(*args):
    subprocess.run([program, *args], check=True)


def draw(pipe):
    out = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=SCALE, width=SIZE, height=SIZE,
               generator=torch.Generator("cpu").manual_seed(SEED), output_type="np")
    return np.rint(np.asarray(out.images[0]) * 255).astype(int)


def mine(*more):
    folder = os.path.join(work, f"pictures{len(more)}")
    lora("generate", "--quiet", "--ckpt", SMALL, "--prompt", PROMPT, "--seed", str(SEED), "--steps", str(STEPS), "--scale", str(SCALE),
         "--W", str(SIZE), "--H", str(SIZE), "--outdir", folder, "--sequential_file_name", *more)
    return np.asarray(Image.open(os.path.join(folder, "im_000001.png")).convert("RGB")).astype(int)


for name, options in (("plain", []), ("LoCon, fp16, alpha", ["--network_args", "conv_dim=2", "conv_alpha=1", "--network_alpha", "2", "--save_precision", "fp16"])):
    lora("train", "--quiet", "--pretrained_model_name_or_path", SMALL, "--train_data_dir", data, "--caption_extension", ".txt",
         "--resolution", "64", "--cache_latents", "--network_dim", "4", "--train_batch_size", "4", "--max_train_steps", "30",
         "--learning_rate", "2e-3", "--seed", "1", "--output_dir", work, "--output_name", "trained", *options)
    folder = os.path.join(work, "model")
    if not os.path.isdir(folder):
        lora("convert", "--quiet", SMALL, folder, "--to", "diffusers")
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    pipe.scheduler = DDIMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                   clip_sample=False, steps_offset=1)
    pipe.set_progress_bar_config(disable=True)
    base = draw(pipe)
    pipe.load_lora_weights(work, weight_name="trained.safetensors")
    theirs, ours = draw(pipe), mine("--lora", os.path.join(work, "trained.safetensors"))
    d = np.abs(theirs - ours)
    print(f"{name}: diffusers and lora generate differ by {d.max()} levels at most, {d.mean():.4f} in the mean; "
          f"the LoRA moved the picture by {np.abs(theirs - base).mean():.2f} in the mean")

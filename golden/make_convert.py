#!/usr/bin/env python3
"""Writes golden/convert/: one tiny Stable Diffusion 1.x model as an LDM file and as diffusers itself writes it, and a LoRA in
kohya's layout with the hashes that sd-scripts puts into its header.

Usage: python golden/make_convert.py golden/convert   (numpy, torch, safetensors, diffusers, transformers)

The weights are f16 noise; LDM names come from make_names.py, their translation from diffusers' single-file converters, the
files from diffusers' and transformers' save_pretrained. The hash is SHA-256 over the file behind its header, as
addnet_hash_safetensors() of sd-scripts computes it.
"""
import hashlib
import json
import shutil
import struct
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as single
from make_names import ldm_text, ldm_unet, ldm_vae, values
from safetensors.torch import save, save_file
from transformers import CLIPTextConfig, CLIPTextModel

CONFIG = dict(channels=(4, 8), layers=1, attention=(1, 0), inputs=4, context=6, linear=False, openclip=False, text_layers=2,
              vae=(4, 8), vae_layers=1)


def checkpoint():
    shapes = ldm_unet(CONFIG) | ldm_vae(CONFIG) | ldm_text(CONFIG)
    return {k: values(k, s).half() for k, s in shapes.items()}


def ldm_file(folder, ckpt):
    extra = {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(7).reshape(1, 7),
        "alphas_cumprod": torch.linspace(0.99, 0.01, 10),
        "model_ema.decay": torch.tensor(0.9999),
    }
    save_file(ckpt | extra, folder / "ldm.safetensors")
    torch.save({"state_dict": ckpt | extra, "global_step": 7, "epoch": 1}, folder / "ldm.ckpt")


def diffusers_folder(folder, ckpt):
    c = CONFIG
    unet = UNet2DConditionModel(
        sample_size=64, in_channels=4, layers_per_block=1, block_out_channels=c["channels"], norm_num_groups=2,
        cross_attention_dim=c["context"], attention_head_dim=2, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
    vae = AutoencoderKL(block_out_channels=c["vae"], layers_per_block=1, norm_num_groups=2,
                        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    text = CLIPTextModel(CLIPTextConfig(hidden_size=6, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                                        vocab_size=11, max_position_embeddings=7))
    parts = {
        "unet": (unet, single.convert_ldm_unet_checkpoint(dict(ckpt), unet.config)),
        "vae": (vae, single.convert_ldm_vae_checkpoint(dict(ckpt), vae.config)),
        "text_encoder": (text, single.convert_ldm_clip_checkpoint(dict(ckpt))),
    }
    for name, (model, weights) in parts.items():
        if name == "text_encoder" and not any(k.startswith("text_model.") for k in model.state_dict()):
            # transformers 5 left this module out of the class, not out of the files' usual names
            weights = {k.removeprefix("text_model."): v for k, v in weights.items()}
        model.half().load_state_dict(weights, strict=True)
        model.save_pretrained(folder / "diffusers" / name, safe_serialization=True)


def lora_file(folder):
    torch.manual_seed(5)
    weights = {}
    modules = {
        "lora_unet_down_blocks_0_attentions_0_proj_in": (4, 4, True),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (4, 4, False),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (8, 6, False),
        "lora_te_text_model_encoder_layers_1_mlp_fc1": (24, 6, False),
    }
    for key, (out, inn, conv) in modules.items():
        tail = (1, 1) if conv else ()
        weights[key + ".lora_down.weight"] = torch.randn(2, inn, *tail).half()
        weights[key + ".lora_up.weight"] = torch.randn(out, 2, *tail).half()
        weights[key + ".alpha"] = torch.tensor(1.0).half()
    raw = save(weights)
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    metadata = {"ss_network_dim": "2", "ss_network_alpha": "1", "ss_network_module": "networks.lora",
                "sshs_model_hash": hashlib.sha256(raw[start:]).hexdigest()}
    save_file(weights, folder / "lora.safetensors", metadata)
    save_file(weights, folder / "lora_wrong_hash.safetensors", metadata | {"sshs_model_hash": "0" * 64})
    norms = {k: (weights[k + ".lora_up.weight"].double().flatten(1) @ weights[k + ".lora_down.weight"].double().flatten(1)).norm()
             .item() * 0.5 for k in modules}
    (folder / "lora_norms.json").write_text(json.dumps(norms, indent=1) + "\n")


def main(folder):
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ckpt = checkpoint()
    ldm_file(folder, ckpt)
    diffusers_folder(folder, ckpt)
    lora_file(folder)


main(sys.argv[1])

#!/usr/bin/env python3
"""Writes golden/names/*.txt.gz: LDM tensor names of several structures, and what diffusers' converters make of them.

The LDM names are listed from the construction rules of the original U-Net, autoencoder and text encoders. diffusers' single
file converters (diffusers.loaders.single_file_utils) translate them; their result must have exactly the names and shapes of a
UNet2DConditionModel and an AutoencoderKL of that structure, or the script stops. Values follow from the name by a formula
that the test knows, so that only checksums are kept.

A line is  ldm NAME SHAPE  or  unet|text|vae NAME SHAPE CRC32-OF-F32-BYTES  (what diffusers has under that name).
"""
import gzip
import sys
import zlib

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as single
from transformers import CLIPTextConfig, CLIPTextModel


def values(name, shape):
    n = int(np.prod(shape, dtype=np.int64)) if shape else 1
    x = (zlib.crc32(name.encode()) + np.arange(n, dtype=np.uint64) * 2654435761) & 0xFFFFFFFF
    return torch.from_numpy(((x >> 8).astype(np.float32) / 2.0**24 - 0.5).reshape(shape))


def both(out, name, w, b=None):
    out[name + ".weight"] = tuple(w)
    out[name + ".bias"] = (w[0],) if b is None else b


def ldm_unet(c):
    out, p = {}, "model.diffusion_model."
    ch, t = c["channels"], c["channels"][0] * 4
    both(out, p + "time_embed.0", (t, ch[0]))
    both(out, p + "time_embed.2", (t, t))
    both(out, p + "input_blocks.0.0", (ch[0], c["inputs"], 3, 3))

    def res(name, i, o):
        both(out, name + ".in_layers.0", (i,))
        both(out, name + ".in_layers.2", (o, i, 3, 3))
        both(out, name + ".emb_layers.1", (o, t))
        both(out, name + ".out_layers.0", (o,))
        both(out, name + ".out_layers.3", (o, o, 3, 3))
        if i != o:
            both(out, name + ".skip_connection", (o, i, 1, 1))

    def att(name, d):
        both(out, name + ".norm", (d,))
        proj = (d, d) if c["linear"] else (d, d, 1, 1)
        both(out, name + ".proj_in", proj)
        both(out, name + ".proj_out", proj)
        b = name + ".transformer_blocks.0"
        for k in (1, 2):
            ctx = c["context"] if k == 2 else d
            out[f"{b}.attn{k}.to_q.weight"] = (d, d)
            out[f"{b}.attn{k}.to_k.weight"] = (d, ctx)
            out[f"{b}.attn{k}.to_v.weight"] = (d, ctx)
            both(out, f"{b}.attn{k}.to_out.0", (d, d))
        for k in (1, 2, 3):
            both(out, f"{b}.norm{k}", (d,))
        both(out, f"{b}.ff.net.0.proj", (8 * d, d))
        both(out, f"{b}.ff.net.2", (d, 4 * d))

    skips, now, i = [ch[0]], ch[0], 1
    for level, d in enumerate(ch):
        for _ in range(c["layers"]):
            res(f"{p}input_blocks.{i}.0", now, d)
            now = d
            if c["attention"][level]:
                att(f"{p}input_blocks.{i}.1", d)
            skips.append(d)
            i += 1
        if level < len(ch) - 1:
            both(out, f"{p}input_blocks.{i}.0.op", (d, d, 3, 3))
            skips.append(d)
            i += 1
    res(p + "middle_block.0", now, now)
    att(p + "middle_block.1", now)
    res(p + "middle_block.2", now, now)
    i = 0
    for level, d in reversed(list(enumerate(ch))):
        for layer in range(c["layers"] + 1):
            res(f"{p}output_blocks.{i}.0", now + skips.pop(), d)
            now, k = d, 1
            if c["attention"][level]:
                att(f"{p}output_blocks.{i}.1", d)
                k = 2
            if level > 0 and layer == c["layers"]:
                both(out, f"{p}output_blocks.{i}.{k}.conv", (d, d, 3, 3))
            i += 1
    both(out, p + "out.0", (ch[0],))
    both(out, p + "out.2", (4, ch[0], 3, 3))
    return out


def ldm_vae(c):
    out, p, ch, z = {}, "first_stage_model.", c["vae"], 4

    def res(name, i, o):
        both(out, name + ".norm1", (i,))
        both(out, name + ".conv1", (o, i, 3, 3))
        both(out, name + ".norm2", (o,))
        both(out, name + ".conv2", (o, o, 3, 3))
        if i != o:
            both(out, name + ".nin_shortcut", (o, i, 1, 1))

    def mid(name, d):
        res(name + ".mid.block_1", d, d)
        both(out, name + ".mid.attn_1.norm", (d,))
        for k in ("q", "k", "v", "proj_out"):
            both(out, f"{name}.mid.attn_1.{k}", (d, d, 1, 1))
        res(name + ".mid.block_2", d, d)

    both(out, p + "encoder.conv_in", (ch[0], 3, 3, 3))
    now = ch[0]
    for level, d in enumerate(ch):
        for j in range(c["vae_layers"]):
            res(f"{p}encoder.down.{level}.block.{j}", now, d)
            now = d
        if level < len(ch) - 1:
            both(out, f"{p}encoder.down.{level}.downsample.conv", (d, d, 3, 3))
    mid(p + "encoder", now)
    both(out, p + "encoder.norm_out", (now,))
    both(out, p + "encoder.conv_out", (2 * z, now, 3, 3))
    both(out, p + "quant_conv", (2 * z, 2 * z, 1, 1))
    both(out, p + "post_quant_conv", (z, z, 1, 1))
    both(out, p + "decoder.conv_in", (now, z, 3, 3))
    mid(p + "decoder", now)
    for level, d in reversed(list(enumerate(ch))):
        for j in range(c["vae_layers"] + 1):
            res(f"{p}decoder.up.{level}.block.{j}", now, d)
            now = d
        if level > 0:
            both(out, f"{p}decoder.up.{level}.upsample.conv", (d, d, 3, 3))
    both(out, p + "decoder.norm_out", (now,))
    both(out, p + "decoder.conv_out", (3, now, 3, 3))
    return out


def ldm_text(c):
    out, d = {}, c["context"]
    if not c["openclip"]:
        p = "cond_stage_model.transformer.text_model."
        out[p + "embeddings.token_embedding.weight"] = (11, d)
        out[p + "embeddings.position_embedding.weight"] = (7, d)
        for i in range(c["text_layers"]):
            b = f"{p}encoder.layers.{i}"
            for k in "qkv":
                both(out, f"{b}.self_attn.{k}_proj", (d, d))
            both(out, b + ".self_attn.out_proj", (d, d))
            both(out, b + ".layer_norm1", (d,))
            both(out, b + ".mlp.fc1", (4 * d, d))
            both(out, b + ".mlp.fc2", (d, 4 * d))
            both(out, b + ".layer_norm2", (d,))
        both(out, p + "final_layer_norm", (d,))
        return out
    p = "cond_stage_model.model."
    out[p + "token_embedding.weight"] = (11, d)
    out[p + "positional_embedding"] = (7, d)
    out[p + "text_projection"] = (d, d)
    out[p + "logit_scale"] = ()
    for i in range(c["text_layers"]):
        b = f"{p}transformer.resblocks.{i}"
        out[b + ".attn.in_proj_weight"] = (3 * d, d)
        out[b + ".attn.in_proj_bias"] = (3 * d,)
        both(out, b + ".attn.out_proj", (d, d))
        both(out, b + ".ln_1", (d,))
        both(out, b + ".ln_2", (d,))
        both(out, b + ".mlp.c_fc", (4 * d, d))
        both(out, b + ".mlp.c_proj", (d, 4 * d))
    both(out, p + "ln_final", (d,))
    return out


CONFIGS = {
    "sd1": dict(channels=(4, 8, 8, 8), layers=2, attention=(1, 1, 1, 0), inputs=4, context=6, linear=False, openclip=False,
                text_layers=12, vae=(4, 8, 8, 8), vae_layers=2),
    "sd2": dict(channels=(4, 8, 8, 8), layers=2, attention=(1, 1, 1, 0), inputs=9, context=8, linear=True, openclip=True,
                text_layers=24, vae=(4, 8, 8, 8), vae_layers=2),
    "three": dict(channels=(4, 4, 8), layers=1, attention=(0, 1, 1), inputs=4, context=4, linear=False, openclip=False,
                  text_layers=3, vae=(4, 8, 8), vae_layers=1),
    "five": dict(channels=(4, 4, 4, 8, 8), layers=3, attention=(1, 0, 1, 1, 0), inputs=4, context=4, linear=False, openclip=False,
                 text_layers=1, vae=(4, 4), vae_layers=3),
}


def diffusers_side(c, ckpt):
    n = len(c["channels"])
    cross = c["attention"]
    unet = UNet2DConditionModel(
        in_channels=c["inputs"], layers_per_block=c["layers"], block_out_channels=c["channels"], norm_num_groups=2,
        cross_attention_dim=c["context"], attention_head_dim=2, use_linear_projection=c["linear"],
        down_block_types=["CrossAttnDownBlock2D" if cross[i] else "DownBlock2D" for i in range(n)],
        up_block_types=["CrossAttnUpBlock2D" if cross[i] else "UpBlock2D" for i in reversed(range(n))])
    vae = AutoencoderKL(
        block_out_channels=c["vae"], layers_per_block=c["vae_layers"], norm_num_groups=2,
        down_block_types=["DownEncoderBlock2D"] * len(c["vae"]), up_block_types=["UpDecoderBlock2D"] * len(c["vae"]))
    got_unet = single.convert_ldm_unet_checkpoint(dict(ckpt), unet.config)
    got_vae = single.convert_ldm_vae_checkpoint(dict(ckpt), vae.config)
    for got, model in ((got_unet, unet), (got_vae, vae)):
        want = model.state_dict()
        assert set(got) == set(want), sorted(set(got) ^ set(want))[:8]
        assert all(got[k].shape == want[k].shape for k in want)
    if c["openclip"]:
        text = CLIPTextModel(CLIPTextConfig(hidden_size=c["context"], num_hidden_layers=1, num_attention_heads=2,
                                            intermediate_size=8, vocab_size=11))
        got_text = single.convert_open_clip_checkpoint(text, dict(ckpt))
        # CLIPTextModel, which SD2 pipelines use, has no projection; its strict=False drops these two
        for k in ("text_projection.weight", "logit_scale"):
            got_text.pop(k, None)
    else:
        got_text = single.convert_ldm_clip_checkpoint(dict(ckpt))
    return got_unet, got_text, got_vae


def main(folder):
    for name, c in CONFIGS.items():
        shapes = ldm_unet(c) | ldm_vae(c) | ldm_text(c)
        ckpt = {k: values(k, s) for k, s in shapes.items()}
        lines = [f"ldm {k} {'x'.join(map(str, s)) or '-'}" for k, s in shapes.items()]
        for part, got in zip(("unet", "text", "vae"), diffusers_side(c, ckpt)):
            for k, v in got.items():
                crc = zlib.crc32(v.contiguous().numpy().tobytes())
                lines.append(f"{part} {k} {'x'.join(map(str, v.shape)) or '-'} {crc}")
        with open(f"{folder}/{name}.txt.gz", "wb") as f:
            f.write(gzip.compress(("\n".join(lines) + "\n").encode(), 9, mtime=0))
        print(name, len(shapes), len(lines) - len(shapes))


if __name__ == "__main__":
    main(sys.argv[1])

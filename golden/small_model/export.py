"""Writes the trained networks as one Stable Diffusion 1 checkpoint: fp16, LDM names, one .safetensors file.

    python export.py --from DIR --bpe FILE --out small.safetensors

The names are written here by hand; evaluate.py reads the file with diffusers' converters, which do not know this map.
"""
import argparse
import hashlib
import json

import torch
from safetensors.torch import load_file, save_file

import nets as N

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}


def unet_name(k):
    """diffusers' U-Net parameter name to LDM's."""
    stem, leaf = k.rsplit(".", 1)
    if stem in ENDS:
        return f"{ENDS[stem]}.{leaf}"
    p = k.split(".")
    if p[0] == "mid_block":
        at, rest = ("1", p[3:]) if p[1] == "attentions" else (str(2 * int(p[2])), p[3:])
        block = "middle_block"
    else:
        level, j = int(p[1]), int(p[3])
        rest, down = p[4:], p[0] == "down_blocks"
        block = "input_blocks." if down else "output_blocks."
        if p[2] == "downsamplers":
            return f"input_blocks.{3 * level + 3}.0.op.{leaf}"
        if p[2] == "upsamplers":  # after the resnet, and after the attention where the level has one
            return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.conv.{leaf}"
        block += str(3 * level + j + (1 if down else 0))
        at = "1" if p[2] == "attentions" else "0"
    if p[-2] in RESNET and "resnets" in p:
        rest = [RESNET[p[-2]], leaf]
    return ".".join([block, at, *rest])


def vae_name(k, levels=4):
    """diffusers' VAE parameter name to LDM's."""
    p = k.split(".")
    if p[0] in ("quant_conv", "post_quant_conv") or p[1] == "conv_in" or p[1] == "conv_out":
        return k
    if p[1] == "conv_norm_out":
        return f"{p[0]}.norm_out.{p[2]}"
    leaf = [q.replace("conv_shortcut", "nin_shortcut") for q in p[-2:]]
    if p[1] == "mid_block":
        if p[2] == "resnets":
            return ".".join([p[0], "mid", f"block_{int(p[3]) + 1}", *leaf])
        part = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[p[4]]
        return f"{p[0]}.mid.attn_1.{part}.{p[-1]}"
    side, level = ("down", int(p[2])) if p[0] == "encoder" else ("up", levels - 1 - int(p[2]))
    what = {"resnets": f"block.{p[4]}", "downsamplers": "downsample", "upsamplers": "upsample"}[p[3]]
    return ".".join([p[0], side, str(level), what, *leaf])


def text_tensors(text):
    """The text encoder's parameters under transformers' names (which LDM keeps), with the whole vocabulary."""
    e = text.embeddings
    table = e.base.clone()
    table[e.used] = e.rows.detach()
    out = {"embeddings.token_embedding.weight": table, "embeddings.position_embedding.weight": e.position}
    for k, v in text.named_parameters():
        if k.startswith("layers."):
            out["encoder." + k] = v
        elif k.startswith("final_layer_norm"):
            out[k] = v
    return out


def sorted_metadata(data):
    """The package writes metadata in a random order; sorted, the same weights are the same file."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size:]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--from", dest="source", required=True, help="an --out folder of train.py")
    a.add_argument("--bpe", required=True)
    a.add_argument("--out", required=True)
    o = a.parse_args()
    import scene as S
    vae, unet, text = N.Vae(), N.UNet(), N.TextEncoder(S.Tokens(o.bpe).grammar())
    vae.load_state_dict(load_file(o.source + "/vae.safetensors"))
    ema = load_file(o.source + "/ema.safetensors")
    unet.load_state_dict({k[5:]: v for k, v in ema.items() if k.startswith("unet.")})
    text.load_state_dict({k[5:]: v for k, v in ema.items() if k.startswith("text.")})
    out = {"model.diffusion_model." + unet_name(k): v for k, v in unet.named_parameters()}
    for k, v in vae.named_parameters():
        attention = "mid_block.attentions" in k and k.endswith("weight") and v.dim() == 2
        out["first_stage_model." + vae_name(k)] = v[:, :, None, None] if attention else v
    for k, v in text_tensors(text).items():
        out["cond_stage_model.transformer.text_model." + k] = v
    out = {k: v.detach().half().contiguous() for k, v in out.items()}
    assert all(torch.isfinite(v).all() for v in out.values())
    out["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    meta = {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-v1",
            "modelspec.title": "lora.c small model", "modelspec.author": "the lora.c authors",
            "modelspec.license": "MIT", "modelspec.resolution": "128x128", "modelspec.prediction_type": "epsilon",
            "modelspec.description": "Draws flat shapes, houses, trees, fish, cats and mushrooms in ten colours. "
                                     "Trained from nothing on pictures that a program drew; see golden/small_model."}
    save_file(out, o.out, meta)
    data = sorted_metadata(open(o.out, "rb").read())
    with open(o.out, "wb") as f:
        f.write(data)
    print(o.out, len(out), "tensors", len(data), "bytes", "sha256", hashlib.sha256(data).hexdigest())


if __name__ == "__main__":
    main()

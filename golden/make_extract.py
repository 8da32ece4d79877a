#!/usr/bin/env python3
"""Usage: make_extract.py OUT_DIR

Small model pairs and what extraction must give on them: cases.json. Structure and weights come from tests/bench/make_sd.py
(random, seeded), module names from diffusers' own converter, errors from torch's SVD in float64. The v0.3.0 case repeats that
version's formula (factors cut at the 0.99 quantile) in float64, with the sign that makes the first element of each right
vector positive: LAPACK's own signs are arbitrary, and the quantile depends on them.
"""
import importlib.util
import json
import os
import sys

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
spec = importlib.util.spec_from_file_location("make_sd", os.path.join(HERE, "../tests/bench/make_sd.py"))
make_sd = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_sd)


def model(*options):
    state = make_sd.checkpoint(make_sd.parser().parse_args(["-", "--channels", "4", "--context", "8", "--text-layers", "2",
                                                            "--words", "4", *options]))
    return {k: v for k, v in state.items() if k.startswith(("model.", "cond_stage_model."))}


def unet_paths(state, v2):
    """diffusers' names of the U-Net's tensors: name -> tensor"""
    config = {"layers_per_block": 2, "use_linear_projection": v2, "class_embed_type": None, "addition_embed_type": None}
    return convert_ldm_unet_checkpoint(dict(state), config)


def targets(state, v2, conv):
    """kohya key -> matrix-shaped weight, in the order of nothing in particular"""
    out = {}
    for name, w in unet_paths(state, v2).items():
        if not name.endswith(".weight") or w.ndim < 2:
            continue
        linear = ".attentions." in name
        residual = any(s in name for s in (".resnets.", ".downsamplers.", ".upsamplers."))
        if linear or (conv and residual):
            kind = "conv" if w.ndim == 4 and w.shape[2] == 3 else "linear"
            out["lora_unet_" + name[:-7].replace(".", "_")] = (w, kind)
    prefix = "cond_stage_model.model.transformer.resblocks." if v2 else "cond_stage_model.transformer."
    last = max(int(k.split("resblocks.")[1].split(".")[0]) for k in state if "resblocks." in k) if v2 else None
    for name, w in state.items():
        if not name.startswith(prefix) or not name.endswith("weight") or w.ndim != 2 or "embedding" in name:
            continue
        path = name[len(prefix):]
        if not v2:
            out["lora_te_" + path[:-7].replace(".", "_")] = (w, "linear")
            continue
        layer, rest = path.split(".", 1)
        if int(layer) == last:  # SD2 does not use it
            continue
        key = f"lora_te_text_model_encoder_layers_{layer}_"
        if rest == "attn.in_proj_weight":
            for which, part in zip("qkv", w.chunk(3)):
                out[f"{key}self_attn_{which}_proj"] = (part, "linear")
        else:
            out[key + {"attn.out_proj.weight": "self_attn_out_proj", "mlp.c_fc.weight": "mlp_fc1",
                       "mlp.c_proj.weight": "mlp_fc2"}[rest]] = (w, "linear")
    return out


def clamped_error(d, k):
    u, s, vh = torch.linalg.svd(d, full_matrices=False)
    sign = vh[:, :1].sign()
    up, down = (u * s * sign.T)[:, :k], (vh * sign)[:k]
    h = torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.99)
    return (d - up.clamp(-h, h) @ down.clamp(-h, h)).norm().item(), h.item()


def expect(base, tuned, v2, dim, conv_dim=0, energy=None, compat=False, text=True):
    """key -> [rank, ||D||^2, least possible error^2] (compat: error^2 of the cut factors, h)"""
    a, b, out = targets(base, v2, conv_dim > 0), targets(tuned, v2, conv_dim > 0), {}
    for key, (w, kind) in a.items():
        d = (b[key][0].double() - w.double()).flatten(1)
        if key.startswith("lora_te_") and not text or not compat and not d.any():
            continue
        k = min(conv_dim if kind == "conv" else dim, *d.shape)
        s2 = torch.linalg.svdvals(d) ** 2
        if energy:
            kept = torch.cumsum(s2, 0) / s2.sum()
            k = min(k, int((kept < energy).sum()) + 1)
        row = [k, s2.sum().item(), s2[k:].sum().item()]
        if compat:
            e, h = clamped_error(d, k)
            row = [k, s2.sum().item(), e * e, h]
        out[key] = row
    return out


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    tune = ("--tuned", "--rank", "5", "--rel", "0.1", "--noise", "0.02")
    sd1, sd1t = model("--dtype", "fp16"), model("--dtype", "fp32", *tune)
    sd1u = model("--dtype", "fp16", *tune, "--te-same")
    sd2, sd2t = model("--dtype", "bf16", "--v2"), model("--dtype", "fp16", "--v2", *tune)
    # convolutions of residual blocks differ too in the SD2 pair; one linear layer of it does not differ at all
    for name in sd2t:
        if name.endswith(("in_layers.2.weight", "out_layers.3.weight", "emb_layers.1.weight", "skip_connection.weight",
                          ".op.weight", ".conv.weight")) and "diffusion_model" in name:
            g = make_sd.generator(5, name)
            sd2t[name] = sd2t[name] + (0.02 * torch.randn(sd2t[name].shape, generator=g)).to(torch.float16)
    same = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    sd2t[same] = sd2[same].to(torch.float16)
    assert torch.equal(sd2t[same].float(), sd2[same].float())
    for name, state in (("sd1_f16", sd1), ("sd1_tuned_f32", sd1t), ("sd1_tuned_te_same_f16", sd1u), ("sd2_bf16", sd2)):
        save_file(state, f"{out}/{name}.safetensors")
    torch.save({"state_dict": sd2t}, f"{out}/sd2_tuned_f16.ckpt")
    one, two = ["sd1_f16.safetensors", "sd1_tuned_f32.safetensors"], ["sd2_bf16.safetensors", "sd2_tuned_f16.ckpt"]
    cases = [
        dict(name="sd1 rank 4", pair=one, args=[], modules=expect(sd1, sd1t, False, 4)),
        dict(name="sd1 rank 3 exact", pair=one, args=["--dim", "3", "--exact"], exact=True,
             modules=expect(sd1, sd1t, False, 3)),
        dict(name="sd1 rank above all", pair=one, args=["--dim", "64"], modules=expect(sd1, sd1t, False, 64)),
        dict(name="sd1 energy", pair=one, args=["--energy", "0.8"], energy=0.8,
             modules=expect(sd1, sd1t, False, 128, energy=0.8)),
        dict(name="sd1 alpha", pair=one, args=["--dim", "2", "--network_alpha", "1.5"], alpha=1.5,
             modules=expect(sd1, sd1t, False, 2)),
        dict(name="sd1 v0.3.0", pair=one, args=["--compat", "v0.3.0"], compat=True,
             modules=expect(sd1, sd1t, False, 4, compat=True)),
        dict(name="sd1 equal text encoder", pair=[one[0], "sd1_tuned_te_same_f16.safetensors"],
             args=["--dim", "1"], modules=expect(sd1, sd1u, False, 1, text=False)),
        dict(name="sd2 convolutions", pair=two, args=["--v2", "--dim", "4", "--conv_dim", "6"],
             modules=expect(sd2, sd2t, True, 4, conv_dim=6)),
    ]
    g = torch.Generator().manual_seed(9)
    quantiles = []
    for n in (1, 2, 7, 1000):
        x = torch.randn(n, generator=g)
        x[n // 2:] = x[n // 2:].round()  # repeated values
        for q in (0.0, 0.3, 0.5, 0.99, 1.0):
            quantiles.append(dict(x=[v.item() for v in x], q=q, value=torch.quantile(x.double(), q).item()))
    with open(f"{out}/cases.json", "w") as f:
        json.dump(dict(cases=cases, quantiles=quantiles), f, indent=0)


if __name__ == "__main__":
    main()

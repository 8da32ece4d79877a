#!/usr/bin/env python3
"""Writes golden/lora/: one small LoRA in every layout, each by the package whose layout it is.

usage: make_lora_layouts.py OUT [SD_SCRIPTS]     SD_SCRIPTS: a checkout of kohya-ss/sd-scripts, for
                                                 kohya.safetensors and modules.txt

PEFT attaches LoRA to a two-level UNet2DConditionModel and a CLIPTextModel. Every factor has values that follow from its
canonical module path (see values() in make_names.py), so that a reader can be checked without another file. modules.txt lists
part, path, shapes, rank and scale as PEFT has them, all weights, and what sd-scripts' LoRANetwork targets in the same models.
"""
import json
import os
import sys

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers, convert_state_dict_to_kohya, convert_state_dict_to_peft, convert_unet_state_dict_to_peft)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from make_names import values

LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2"]
CONV = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"]


def models():
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=6, attention_head_dim=2,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"])
    text = CLIPTextModel(CLIPTextConfig(hidden_size=6, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
                                        vocab_size=11, bos_token_id=None, eos_token_id=None))
    return unet, text


def canonical(part, path):
    return path if part == "unet" or path.startswith("text_model.") else "text_model." + path


def fill(part, model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            for mark, role in ((".lora_A.default.weight", "down"), (".lora_B.default.weight", "up")):
                if name.endswith(mark):
                    path = canonical(part, name[len("base_model.model."):-len(mark)])
                    p.copy_(values(f"{path}.{role}", p.shape))


def attach(part, model, targets, **kw):
    m = get_peft_model(model, LoraConfig(target_modules=targets, **kw))
    fill(part, m)
    return m


def list_modules(part, m, config):
    lines = []
    for name, module in m.named_modules():
        if hasattr(module, "lora_A") and len(module.lora_A):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            kernel = tuple(a.shape[2:]) or (1, 1)
            path = canonical(part, name[len("base_model.model."):])
            scale = module.scaling["default"]
            lines.append(f"{config} {part} {path} {b.shape[0]} {a.shape[1]} {kernel[0]} {kernel[1]} {a.shape[0]} {scale!r}")
    return lines


def state(part, m):
    """PEFT's state with the names of diffusers' own loaders."""
    out = {}
    for k, v in get_peft_model_state_dict(m).items():
        k = k.replace("base_model.model.", "")
        out[canonical(part, k)] = v.detach().clone().contiguous()
    return out


def old_diffusers(unet, text):
    """The layout of diffusers 0.11 to 0.20: LoRA in attention processors. Checked by the converters that read it."""
    out, want = {}, {}
    for part, s in (("unet", unet), ("text_encoder", text)):
        for k, v in s.items():
            if "attn" not in k or v.ndim != 2:
                continue
            want[k] = v
            k = k.replace("lora_A", "down").replace("lora_B", "up")
            if part == "unet":
                head, tail = k.split(".to_", 1)
                kind = tail.split(".")[0]
                k = f"{head}.processor.to_{kind}_lora.{'down' if '.down.' in k else 'up'}.weight"
            else:
                for a, b in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
                    k = k.replace(f".{a}.", f".{b}_lora.")
            out[f"{part}.{k}"] = v
    u = {k[5:]: v for k, v in out.items() if k.startswith("unet.")}
    t = {k[13:]: v for k, v in out.items() if k.startswith("text_encoder.")}
    back = convert_unet_state_dict_to_peft(u) | convert_state_dict_to_peft(t)
    assert set(back) == set(want), sorted(set(back) ^ set(want))[:6]
    assert all(torch.equal(back[k], want[k]) for k in want)
    return out


def sd_scripts(folder, unet, text, out):
    """kohya.safetensors by LoRANetwork with conv_dim; modules it targets, for modules.txt."""
    sys.path.insert(0, folder)
    from networks.lora import LoRANetwork

    net = LoRANetwork([text], unet, lora_dim=2, alpha=3, conv_lora_dim=3, conv_alpha=1.5)
    net.apply_to([text], unet, True, True)
    lines, sd = [], {}
    for m in net.text_encoder_loras + net.unet_loras:
        name = m.lora_name.replace("lora_te_encoder", "lora_te_text_model_encoder")
        lines.append(f"target {name}")
        for k, v in m.state_dict().items():
            sd[f"{name}.{k}"] = v
    for k in list(sd):  # save_weights() casts every tensor, alpha too
        sd[k] = sd[k].float() if k.endswith(".alpha") else values(k, sd[k].shape)
    save_file(sd, out, {"ss_network_dim": "2", "ss_network_alpha": "3"})
    return lines


def main(out, scripts=None):
    os.makedirs(out, exist_ok=True)
    lines = []

    unet, text = models()
    pu = attach("unet", unet, LINEAR + CONV, r=2, lora_alpha=3, rank_pattern={"conv1": 3}, alpha_pattern={"conv1": 6, "to_q": 1})
    pt = attach("text", text, ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], r=2, lora_alpha=2)
    lines += list_modules("unet", pu, "plain") + list_modules("text", pt, "plain")
    su, st = state("unet", pu), state("text", pt)
    StableDiffusionPipeline.save_lora_weights(
        out, unet_lora_layers=convert_state_dict_to_diffusers(su), text_encoder_lora_layers=convert_state_dict_to_diffusers(st),
        weight_name="diffusers.safetensors", unet_lora_adapter_metadata=pu.peft_config["default"].to_dict() | {
            "target_modules": None}, text_encoder_lora_adapter_metadata={"r": 2, "lora_alpha": 2})
    both = {f"unet.{k}": v for k, v in su.items()} | {f"text_encoder.{k}": v for k, v in st.items()}
    save_file(convert_state_dict_to_kohya(both), f"{out}/kohya_by_diffusers.safetensors")
    save_file(old_diffusers(su, st), f"{out}/diffusers_old.safetensors")
    pu.save_pretrained(f"{out}/peft/unet")
    pt.save_pretrained(f"{out}/peft/text_encoder")

    unet, _ = models()
    pr = attach("unet", unet, LINEAR, r=4, lora_alpha=3, use_rslora=True, rank_pattern={r"attn2\.to_[kv]": 2},
                alpha_pattern={r"attn1\..*": 5})
    lines += list_modules("unet", pr, "rslora")
    pr.save_pretrained(f"{out}/peft_rslora")

    for folder in ("peft/unet", "peft/text_encoder", "peft_rslora"):
        os.remove(f"{out}/{folder}/README.md")
        config = json.load(open(f"{out}/{folder}/adapter_config.json"))
        config["target_modules"] = sorted(config["target_modules"])
        json.dump(config, open(f"{out}/{folder}/adapter_config.json", "w"), indent=1, sort_keys=True)

    # LDM names for the same U-Net modules: with one layer a level, input block 3 is the first with attention
    ldm = {"down_blocks.1.attentions.0": "input_blocks.3.1", "mid_block.attentions.0": "middle_block.1",
           "up_blocks.0.attentions.0": "output_blocks.0.1", "up_blocks.0.attentions.1": "output_blocks.1.1",
           "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op", "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv"}
    comfy, kohya = {}, {}
    for k, v in su.items():
        for a, b in ldm.items():
            if k.startswith(a + "."):
                new = b + k[len(a):]
                comfy["diffusion_model." + new] = v
                path, role = new.rsplit(".lora_", 1)
                role = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[role]
                kohya[f"lora_unet_{path.replace('.', '_')}.{role}"] = v
    save_file(comfy, f"{out}/comfy.safetensors")
    save_file(kohya, f"{out}/kohya_ldm.safetensors")

    if scripts:
        unet, text = models()
        for part, model in (("unet", unet), ("text", text)):
            for k, v in model.state_dict().items():
                lines.append(f"weight {part} {canonical(part, k)} {'x'.join(map(str, v.shape))}")
        lines += sd_scripts(scripts, unet, text, f"{out}/kohya.safetensors")
        open(f"{out}/modules.txt", "w").write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

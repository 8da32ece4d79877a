#!/usr/bin/env python3
"""usage: make_merge_model.py SD_SCRIPTS_V030 SD_SCRIPTS_HEAD OUT_DIR

Tiny Stable Diffusion checkpoints (LDM names, 1.x and 2.x), LoRAs of several layouts, and what merging them gives: modules are
found by walking diffusers' and transformers' own modules as sd-scripts v0.3.0's networks/lora.py does, sums are float64, names
are turned into LDM's by sd-scripts' own converters (library/model_util.py), blocks are numbered by sd-scripts HEAD's
networks/svd_merge_lora.py. The functions are taken from those files unchanged.
"""
import ast
import pathlib
import re
import sys

import diffusers
import torch
import transformers
from safetensors.torch import save_file

v030, head, out = (pathlib.Path(p) for p in sys.argv[1:4])
out.mkdir(parents=True, exist_ok=True)


def functions(path, *names):
    """The functions and constants of a script, without running its imports."""
    tree = ast.parse(path.read_text())
    keep = [n for n in tree.body if (isinstance(n, ast.FunctionDef) and n.name in names) or
            (isinstance(n, ast.Assign) and n.targets[0].id in names)]
    space = {"torch": torch, "re": re}
    exec(compile(ast.Module(keep, []), str(path), "exec"), space)
    return space


util = functions(v030 / "library/model_util.py", "convert_unet_state_dict_to_sd", "convert_text_encoder_state_dict_to_sd_v2",
                 "linear_transformer_to_conv", "conv_transformer_to_linear")
lbw = functions(head / "networks/svd_merge_lora.py", "get_lbw_block_index", "RE_UPDOWN", "LAYER17")
torch.manual_seed(7)


def unet(v2, width):
    m = diffusers.UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=2,
                                       cross_attention_dim=width, attention_head_dim=2, use_linear_projection=v2)
    return m


def text_encoder(width, layers):
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=20, hidden_size=width, intermediate_size=2 * width,
                                                                  num_hidden_layers=layers, num_attention_heads=2,
                                                                  max_position_embeddings=77))


def text_name(name):
    return name if name.startswith("text_model.") else "text_model." + name


def targets(module, classes, conv_classes=()):
    """(path, weight) as v0.3.0's create_modules finds them, and 3x3 convolutions as HEAD does."""
    found = {}
    for name, m in module.named_modules():
        kind = type(m).__name__
        if kind in classes or kind in conv_classes:
            for child, c in m.named_modules():
                kind1 = type(c).__name__
                conv1 = kind1 in ("Conv2d", "LoRACompatibleConv") and tuple(c.kernel_size) == (1, 1)
                if kind in classes and (kind1 in ("Linear", "NonDynamicallyQuantizableLinear") or conv1):
                    found[name + "." + child] = c.weight
                if kind in conv_classes and kind1 == "Conv2d" and tuple(c.kernel_size) == (3, 3):
                    found[name + "." + child] = c.weight
    return found


class Model:
    def __init__(self, v2):
        self.v2 = v2
        width = 16 if v2 else 24
        self.unet, self.text = unet(v2, width), text_encoder(width, 3 if v2 else 2)
        with torch.no_grad():
            for p in list(self.unet.parameters()) + list(self.text.parameters()):
                p.copy_((torch.randn_like(p) * 0.2).half())
        self.modules = {("unet", n): w for n, w in targets(self.unet, ("Transformer2DModel", "Attention")).items()}
        self.modules |= {("te", text_name(n)): w for n, w in targets(self.text, ("CLIPAttention", "CLIPMLP")).items()}
        convs = targets(self.unet, (), ("ResnetBlock2D", "Downsample2D", "Upsample2D"))
        self.convs = {("unet", n): w for n, w in convs.items()}

    def ldm(self, deltas=None, dtype=torch.float16):
        """The checkpoint's tensors; with deltas {(part, path): float64} only the changed ones, in float64."""
        u = {k: v.detach().double() for k, v in self.unet.state_dict().items()}
        t = {text_name(k): v.detach().double() for k, v in self.text.state_dict().items() if "position_ids" not in k}
        changed = {}
        for (part, path), d in (deltas or {}).items():
            sd = u if part == "unet" else t
            sd[path + ".weight"] = sd[path + ".weight"] + d.reshape(sd[path + ".weight"].shape)
        us = util["convert_unet_state_dict_to_sd"](self.v2, u)
        sd = {"model.diffusion_model." + k: v for k, v in us.items()}
        if self.v2:
            ts = util["convert_text_encoder_state_dict_to_sd_v2"](t)
            sd |= {"cond_stage_model.model." + k: v for k, v in ts.items()}
            for k in [k for k in ts if ".resblocks.2." in k]:
                sd["cond_stage_model.model." + k.replace(".resblocks.2.", ".resblocks.3.")] = ts[k].clone()
            sd["cond_stage_model.model.text_projection"] = torch.eye(16).double()
            sd["cond_stage_model.model.logit_scale"] = torch.tensor(1.0).double()
        else:
            sd |= {"cond_stage_model.transformer." + k: v for k, v in t.items()}
        if deltas is not None:
            base = self.ldm(dtype=torch.float64)
            changed = {k: v.contiguous() for k, v in sd.items() if not torch.equal(v, base[k].double()) and ".resblocks.3." not in k}
            return changed
        g = torch.Generator().manual_seed(3)
        for k, shape in (("first_stage_model.decoder.conv_in.weight", (8, 4, 3, 3)), ("first_stage_model.decoder.conv_in.bias", (8,)),
                         ("first_stage_model.post_quant_conv.weight", (4, 4, 1, 1))):
            sd[k] = torch.randn(shape, generator=g).double()
        sd = {k: v.to(dtype).contiguous() for k, v in sd.items()}
        sd["alphas_cumprod"] = torch.linspace(1, 0, 10)
        sd["model_ema.decay"] = torch.tensor(0.9999)
        sd["model_ema.num_updates"] = torch.tensor(5, dtype=torch.int32)
        if not self.v2:
            sd["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        return sd


def key(part, path):
    return ("lora_unet_" if part == "unet" else "lora_te_") + path.replace(".", "_")


def lora(model, rank, alpha, dtype, only=lambda k: True, convs=None):
    """{(part, path): (up, down, alpha)}; convs: paths of 3x3 convolutions to take as well."""
    result = {}
    for k, w in list(model.modules.items()) + [(c, model.convs[c]) for c in convs or ()]:
        if not only(k):
            continue
        o, i = w.shape[:2]
        tail = tuple(w.shape[2:])
        r = min(rank, o, i)
        up = torch.randn(o, r, *(1,) * len(tail)) * 0.1
        down = torch.randn(r, i, *tail) * 0.1
        result[k] = (up.to(dtype), down.to(dtype), alpha)
    return result


def kohya(l, with_alpha):
    sd = {}
    for (part, path), (up, down, alpha) in l.items():
        sd[key(part, path) + ".lora_up.weight"] = up
        sd[key(part, path) + ".lora_down.weight"] = down
        if with_alpha:
            sd[key(part, path) + ".alpha"] = torch.tensor(float(alpha)).to(up.dtype)
    return {k: v.contiguous() for k, v in sd.items()}


def diffusers_layout(l):
    sd = {}
    for (part, path), (up, down, _) in l.items():
        assert part == "unet"
        sd[f"unet.{path}.lora.up.weight"] = up
        sd[f"unet.{path}.lora.down.weight"] = down
    return sd


def product(up, down):
    return (up.double().flatten(1) @ down.double().flatten(1))


def deltas(*terms):
    """terms: (lora, ratio for (part, path), whether alpha counts)"""
    sums = {}
    for l, ratio, with_alpha in terms:
        for k, (up, down, alpha) in l.items():
            scale = ratio(k) * (alpha / down.shape[0] if with_alpha else 1)
            sums[k] = sums.get(k, 0) + scale * product(up, down)
    return sums


def save(name, sd, metadata=None):
    save_file(sd, out / name, metadata=metadata)


sd1, sd2 = Model(False), Model(True)
save("sd1.safetensors", sd1.ldm(), {"modelspec.title": "tiny one"})
save("sd2.safetensors", sd2.ldm())

conv = [("unet", "down_blocks.0.resnets.0.conv1"), ("unet", "down_blocks.1.downsamplers.0.conv"),
        ("unet", "up_blocks.1.upsamplers.0.conv")]
a = lora(sd1, 4, 2, torch.float16, convs=conv)
attention = lambda k: "attn" in k[1] and k[0] == "unet"
b = lora(sd1, 2, 2, torch.float32, attention)
b2 = lora(sd1, 2, 2, torch.float32, attention)
c = lora(sd1, 3, 3, torch.float32, lambda k: k[0] == "unet" and "mid_block" in k[1] and "attn" in k[1])
v2 = lora(sd2, 3, 1.5, torch.bfloat16)
save("a.safetensors", kohya(a, True), {"ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_output_name": "a",
                                       "ss_tag_frequency": '{"10_x": {"red": 3}}', "sshs_model_hash": "0" * 64})
save("b.safetensors", kohya(b, False), {"ss_v2": "False", "ss_output_name": "b",
                                        "ss_tag_frequency": '{"10_x": {"red": 2, "blue": 1}}'})
save("b2.safetensors", kohya(b2, False))
save("c.safetensors", diffusers_layout(c))
save("v2.safetensors", kohya(v2, True))


def f32(sd):
    return {k: v.float() for k, v in sd.items()}


one = lambda x: lambda k: x
save("sd1_abc.safetensors", f32(sd1.ldm(deltas((a, one(0.8), True), (b, one(-0.5), True), (c, one(0.3), True)))))
save("sd2_v2.safetensors", f32(sd2.ldm(deltas((v2, one(1.0), True)))))

# Block weights, 17 values; text encoder by another ratio.
values = [0.5, 0, 1, 0.25, 0.75, 0, 1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1]
blocks = [1.0] * 26
for index, v in zip([i for i, flag in enumerate(lbw["LAYER17"].values()) if flag], values):
    blocks[index] = v


def block_ratio(k):
    index = lbw["get_lbw_block_index"](key(*k))
    return (0.6 if k[0] == "te" else 0.8) * (blocks[index] if index >= 0 else 1)


save("sd1_blocks.safetensors", f32(sd1.ldm(deltas((a, block_ratio, True)))))

# v0.3.0 in fp16: its expressions for every module (networks/merge_lora.py), then LDM names.
half = {}
for k, (up, down, _) in b.items():
    w = sd1.modules[k].detach().half()
    up_weight, down_weight, ratio = up.half(), down.half(), 0.7
    half[k] = (w + ratio * (up_weight @ down_weight)).double() - w.double()
save("sd1_v030_fp16.safetensors", {k: v.half() for k, v in sd1.ldm(half).items()})

# LoRA with LoRA by v0.3.0: every key times its ratio, added.
ka, kb = kohya(b, False), kohya(b2, False)
save("b_b2_v030.safetensors", {k: (ka[k] * 0.8 + kb[k] * -0.5).contiguous() for k in ka})

# The exact sum of a and b, and the least errors at rank 3.
sums = deltas((a, one(0.8), True), (b, one(-0.5), True))
figures = {}
for k, s in sums.items():
    if attention(k) and ("mid_block" in k[1] or "up_blocks.3" in k[1]):
        sv = torch.linalg.svdvals(s)
        figures["sum." + k[1]] = s.contiguous()
        figures["least3." + k[1]] = sv[3:].norm()
        figures["norm." + k[1]] = sv.norm()
save("a_b_sum.safetensors", figures)

# Resizing a: singular values of each module (unscaled, as sd-scripts HEAD's networks/resize_lora.py looks at them).
save("a_sv.safetensors", {key(*k): torch.linalg.svdvals(product(up, down)).contiguous() for k, (up, down, _) in a.items()})

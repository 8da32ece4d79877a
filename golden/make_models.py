#!/usr/bin/env python3
"""usage: make_models.py OUT.safetensors

Small Stable Diffusion models by diffusers and transformers in float64: the output of every layer, with a LoRA on every module
it can reach, and the gradients of all its factors through U-Net and text encoder.

Weights are not stored: both sides make them from the tensor's name and index (fill.py; cmd/verify/golden_model.c), with values that
f32, f16 and bf16 hold exactly. Metadata "models" lists each model's tensors with their shapes; "error": for every stored tensor
the errors that torch itself makes in float32, bfloat16 and float16 against float64, from which limits come; "slope": by part,
the derivative of the loss along a direction in all its factors (fill() of "MODEL/direction/PART/PATH.down" and ".up"), a central
difference in float64 that knows nothing of the gradients.

Tensors: MODEL/in/NAME inputs, MODEL/out/PATH outputs of modules (channels last), MODEL/plain the result without LoRA,
MODEL/loss, MODEL/grad/PART/PATH.{down,up} gradients (convolutions: [rank, kh, kw, in]).
"""
import json
import logging
import math
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from fill import fill
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

logging.disable(logging.WARNING)

RANK, SCALE = 2, 0.5
out, models = {}, {}


def last(t):
    return t.permute(0, 2, 3, 1) if t.ndim == 4 else t


def weights(model, part, module, drop=""):
    """Fills the module; returns its canonical names and shapes."""
    names = {}
    for k, v in module.state_dict().items():
        if v.is_floating_point():
            name = canonical(part, k)
            names[name] = list(v.shape)
            v.copy_(fill(f"{model}/{part}/{name}", v.shape))
    return names


def canonical(part, k):
    return "text_model." + k if part == "te" and not k.startswith("text_model.") else k


SKIP = ("attn1", "attn2", "dropout", "nonlinearity", "self_attn", "mlp", "ff", "net.1", "net", "to_out", "to_out.1", "encoder", "decoder",
        "mid_block", "text_model", "position_embedding", "token_embedding", "layers", "time_embedding", "dropout1", "dropout2")


def recorded(name):
    leaf = name.rsplit(".", 1)[-1]
    if not name or any(name == s or name.endswith("." + s) for s in SKIP) or name.endswith("samplers.0"):
        return False
    return not (leaf.isdigit() and name.rsplit(".", 2)[-2] in ("down_blocks", "up_blocks")) and leaf not in (
        "resnets", "attentions", "down_blocks", "up_blocks", "transformer_blocks", "downsamplers", "upsamplers", "norm_dummy")


def is_target(part, path, m):
    if not isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)):
        return False
    if part == "te":
        return "encoder.layers" in path
    return part == "unet" and ("attentions" in path or "resnets" in path or "samplers" in path)


class Hooks:
    """LoRA on all targets, then a record of what every module gives."""

    def __init__(self, model, dtype):
        self.model, self.dtype, self.factors, self.seen = model, dtype, {}, {}

    def attach(self, part, module):
        for k, m in module.named_modules():
            path = canonical(part, k)
            if is_target(part, path, m):
                conv = isinstance(m, torch.nn.Conv2d)
                tail = tuple(m.kernel_size) if conv else ()
                ci, co = (m.in_channels, m.out_channels) if conv else (m.in_features, m.out_features)
                shape = (RANK, *tail, ci) if conv and tail != (1, 1) else (RANK, ci)
                down = fill(f"{self.model}/{part}/{path}.down", shape).to(self.dtype).requires_grad_()
                up = fill(f"{self.model}/{part}/{path}.up", (co, RANK)).to(self.dtype).requires_grad_()
                self.factors[f"{part}/{path}"] = (down, up)
                m.register_forward_hook(self.branch(down, up))
        for k, m in module.named_modules():
            if recorded(canonical(part, k)) and (k or part != "te"):
                m.register_forward_hook(self.record(f"{part}/{canonical(part, k)}"))

    def branch(self, down, up):
        def hook(m, args, y):
            x = args[0]
            if isinstance(m, torch.nn.Linear):
                return y + SCALE * (x @ down.T) @ up.T
            k = down.permute(0, 3, 1, 2) if down.ndim == 4 else down[:, :, None, None]
            return y + SCALE * F.conv2d(F.conv2d(x, k, None, m.stride, m.padding), up[:, :, None, None])
        return hook

    def record(self, name):
        def hook(m, args, y):
            y = y[0] if isinstance(y, tuple) else getattr(y, "sample", y)
            if torch.is_tensor(y):  # the VAE's attention norms [n, c, pixels]
                self.seen[name] = y.detach().transpose(1, 2) if name.endswith("group_norm") else last(y.detach())
        return hook


def prepare(model, dtype, make, inputs):
    parts, forward = make(dtype)
    # timesteps are numbers of steps, not activations: no type may round them
    x = {k: v.to(dtype) if v.is_floating_point() and k != "timestep" else v for k, v in inputs.items()}
    with torch.no_grad():
        plain = forward(parts, x)
    hooks = Hooks(model, dtype)
    for part, module in parts.items():
        module.requires_grad_(False)
        hooks.attach(part, module)
    return hooks, lambda: forward(parts, x), x, plain


def run(model, dtype, make, inputs):
    """One pass with LoRA; returns everything that is stored, as {name: tensor}."""
    hooks, forward, x, plain = prepare(model, dtype, make, inputs)
    y = forward()
    result = {"plain": last(plain)}
    result |= {f"out/{k}": v for k, v in hooks.seen.items()}
    if hooks.factors:
        loss = F.mse_loss(last(y), x["target"])
        loss.backward()
        result["loss"] = loss.detach()
        for k, (down, up) in hooks.factors.items():
            result[f"grad/{k}.down"], result[f"grad/{k}.up"] = down.grad, up.grad
    return result


def slopes(model, make, inputs, h=1e-5):
    """Central differences: off by h^2 times a third derivative and by 2^-53 / h, both some 1e-10 here."""
    hooks, forward, x, _ = prepare(model, torch.float64, make, inputs)
    result = {}
    for part in sorted({k.split("/")[0] for k in hooks.factors}):
        along = [(f, fill(f"{model}/direction/{k}.{leaf}", f.shape)) for k, both in hooks.factors.items() if k.startswith(part + "/")
                 for leaf, f in zip(("down", "up"), both)]
        at = []
        with torch.no_grad():
            for step in (h, -2 * h, h):
                for f, d in along:
                    f += step * d
                at.append(float(F.mse_loss(last(forward()), x["target"])))
        result[part] = (at[0] - at[1]) / (2 * h)
    return result


def model(name, make, inputs, dtype):
    exact = run(name, torch.float64, make, inputs)
    error = {k: [] for k in exact}
    for t in (torch.float32, torch.bfloat16, torch.float16):
        for k, v in run(name, t, make, inputs).items():
            error[k].append(float((exact[k] - v.double()).abs().max()))
            assert math.isfinite(error[k][-1])
    parts, _ = make(torch.float64)
    models[name] = {"dtype": dtype, "tensors": {p: weights(name, p, m) for p, m in parts.items()}, "error": error,
                    "slope": slopes(name, make, inputs)}
    for k, v in exact.items():
        out[f"{name}/{k}"] = v.float().contiguous().clone()
    for k, v in inputs.items():
        out[f"{name}/in/{k}"] = v.clone()
    print(name, len(exact), "tensors", sum(v.numel() for v in exact.values()) * 4, "bytes, loss", float(exact.get("loss", torch.zeros(()))),
          "slopes", models[name]["slope"])


g = torch.Generator().manual_seed(4)


def randn(*shape):
    return torch.randn(*shape, generator=g)


def clip(name, dtype, **config):
    m = CLIPTextModel(CLIPTextConfig(vocab_size=60, max_position_embeddings=9, bos_token_id=58, eos_token_id=59, pad_token_id=59, **config))
    m = m.to(dtype).eval()
    weights(name, "te", m)
    return m


class ExactTimesteps(torch.nn.Module):
    """diffusers computes the sinusoids in float32 whatever the model's type is: 999 radians are then off by 6e-5."""

    def __init__(self, width):
        super().__init__()
        self.w = torch.exp(-math.log(10000.0) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))

    def forward(self, t):
        a = t.double()[:, None] * self.w
        return torch.cat([a.cos(), a.sin()], -1)


def unet(name, dtype, **config):
    m = UNet2DConditionModel(sample_size=8, **config).to(dtype).eval()
    m.time_proj = ExactTimesteps(config["block_out_channels"][0])
    weights(name, "unet", m)
    return m


def diffuse(parts, x):
    context = parts["te"](x["ids"]).last_hidden_state
    return parts["unet"](x["latents"].permute(0, 3, 1, 2), x["timestep"], context).sample


# SD1: 1x1 convolutions around the transformers, 8 heads, quick GELU; three levels, an odd size that rounds up on the way down
def sd1(dtype):
    return {"te": clip("sd1", dtype, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                       hidden_act="quick_gelu"),
            "unet": unet("sd1", dtype, block_out_channels=(32, 64, 64), layers_per_block=1, cross_attention_dim=128,
                         attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                         up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))}, diffuse


# SD2: linear layers around the transformers, heads of 64 channels, GELU; 9 input channels as for inpainting
def sd2(dtype):
    return {"te": clip("sd2", dtype, hidden_size=1024, intermediate_size=96, num_hidden_layers=1, num_attention_heads=16,
                       hidden_act="gelu"),
            "unet": unet("sd2", dtype, in_channels=9, block_out_channels=(64, 128), layers_per_block=2, cross_attention_dim=1024,
                         attention_head_dim=(1, 2), use_linear_projection=True, transformer_layers_per_block=1,
                         down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))}, diffuse


def vae(name, dtype):
    m = AutoencoderKL(block_out_channels=(32, 64, 64), layers_per_block=1, latent_channels=4, norm_num_groups=32,
                      down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3).to(dtype).eval()
    weights(name, "vae", m)
    return {"vae": m}


def encode(dtype):
    return vae("encoder", dtype), lambda p, x: p["vae"].encode(x["pictures"].permute(0, 3, 1, 2)).latent_dist.parameters


def decode(dtype):
    return vae("decoder", dtype), lambda p, x: p["vae"].decode(x["latents"].permute(0, 3, 1, 2)).sample


if __name__ == "__main__":
    ids = torch.randint(0, 60, (2, 9), generator=g, dtype=torch.int32)
    model("sd1", sd1, {"ids": ids, "latents": randn(2, 5, 3, 4), "timestep": torch.tensor([981.0, 20.0]), "target": randn(2, 5, 3, 4)}, "f16")
    model("sd2", sd2, {"ids": ids[:1, :3].clone(), "latents": randn(1, 3, 4, 9), "timestep": torch.tensor([400.0]), "target": randn(1, 3, 4, 4)},
          "bf16")
    model("encoder", encode, {"pictures": randn(1, 8, 12, 3)}, "f16")
    model("decoder", decode, {"latents": randn(1, 3, 2, 4)}, "f32")

    save_file(out, sys.argv[1], metadata={"models": json.dumps(models)})

#!/usr/bin/env python3
"""usage: make_train.py OUT.safetensors

Training by torch on a small model of SD1's structure (diffusers' U-Net, transformers' text encoder, weights from names as in
make_models.py, but 77 positions): the loss of each of ten steps, all gradients of the first, all factors after the last; and the
factors that sd-scripts' modules start with. Everything in float64; what torch itself makes of it in float32, and with models and
activations in bfloat16 and float16 (factors, loss and optimizer float32), says how far one may be off (metadata "error").

Tensors: CASE/KEY with KEY one of latents [2, h, w, 4], ids [steps, 2 * chunks, 77], timesteps [steps, 2], noise [steps, 2, h, w, 4],
weight, delta [steps, 2], losses [steps], grad/PATH.down, .up (first step), last/PATH.down, .up (after all),
mask/PATH (dropout, [2, rank] or of the activation's shape). init/PATH: lora_down after torch.manual_seed(42). Channels last.
Metadata "cases": per case the options; "error": per tensor [float32, bfloat16, float16], the largest difference; "rms": per case with
last/, root mean square difference of all factors.
"""
import json
import math
import sys

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from make_models import ExactTimesteps, canonical, fill, last

STEPS = 10
out, errors, rms, cases = {}, {}, {}, {}
g = torch.Generator().manual_seed(6)


def randn(*shape):
    return torch.randn(*shape, generator=g)


def text_encoder(dtype):
    c = CLIPTextConfig(vocab_size=60, max_position_embeddings=77, bos_token_id=58, eos_token_id=59, pad_token_id=59, hidden_size=64,
                       intermediate_size=96, num_hidden_layers=3, num_attention_heads=1, hidden_act="quick_gelu")
    return fill_all("te", CLIPTextModel(c).to(dtype).eval())


def unet(dtype):
    m = UNet2DConditionModel(sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=64,
                             attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                             up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).to(dtype).eval()
    m.time_proj = ExactTimesteps(32)
    return fill_all("unet", m)


tensors = {}


def fill_all(part, module):
    names = tensors.setdefault(part, {})
    for k, v in module.state_dict().items():
        if v.is_floating_point():
            names[canonical(part, k)] = list(v.shape)
            v.copy_(fill(f"train/{part}/{canonical(part, k)}", v.shape))
    return module.requires_grad_(False)


def targets(part, module, conv_dim):
    """What LoRA reaches, in the order of creation in sd-scripts: its own networks walk modules as they were registered in the
    diffusers of its time: attentions before resnets, attn1, ff, attn2, the middle block last."""
    first = ["down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers", "upsamplers", "proj_in",
             "transformer_blocks", "proj_out", "attn1", "ff", "attn2", "to_q", "to_k", "to_v", "to_out", "self_attn", "mlp", "k_proj",
             "v_proj", "q_proj", "out_proj", "fc1", "fc2", "net", "proj", "conv1", "time_emb_proj", "conv2", "conv_shortcut", "conv"]
    found = []
    for k, m in module.named_modules():
        path = canonical(part, k)
        if not isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)):
            continue
        if part == "te" and "encoder.layers" in path or part == "unet" and ".attentions." in path:
            found.append((path, m))
        elif part == "unet" and conv_dim and (".resnets." in path or "samplers." in path):
            found.append((path, m))
    key = lambda p: [(int(w), "") if w.isdigit() else (first.index(w), "") for w in p.split(".") if w in first or w.isdigit()]
    return sorted(found, key=lambda f: key(f[0]))


def trained(dtype):
    """of factors, loss and optimizer"""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class Lora:
    def __init__(self, case, dtype, parts, o):
        self.factors, self.masks, self.groups = {}, {}, {"te": [], "unet": []}
        for part, module in parts.items():
            for path, m in targets(part, module, o.get("conv_dim")):
                conv = isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)
                rank = o["conv_dim"] if conv else o["dim"]
                alpha = o["conv_alpha"] if conv else o["alpha"]
                ci, co = (m.in_channels, m.out_channels) if isinstance(m, torch.nn.Conv2d) else (m.in_features, m.out_features)
                shape = (rank, *m.kernel_size, ci) if conv else (rank, ci)
                down = (fill(f"{case}/{path}.down", shape) * 0.5).to(trained(dtype)).requires_grad_()
                up = (fill(f"{case}/{path}.up", (co, rank)) * 0.0625).to(trained(dtype)).requires_grad_()
                used = part == "unet" or o["te"] and int(path.split("layers.")[1].split(".")[0]) + max(o["clip_skip"], 1) <= 3
                if not used:
                    continue
                self.factors[path] = (down, up)
                self.groups[part] += [down, up]
                m.register_forward_hook(self.branch(path, down, up, alpha / rank, o))

    def branch(self, path, master_down, master_up, scale, o):
        def hook(m, args, y):
            x = args[0]
            down, up = master_down.to(x.dtype), master_up.to(x.dtype)
            if isinstance(m, torch.nn.Linear):
                low = x @ down.T
            else:
                k = down.permute(0, 3, 1, 2) if down.ndim == 4 else down[:, :, None, None]
                low = F.conv2d(x, k, None, m.stride, m.padding)
            if o.get("rank_dropout"):
                low = low * self.mask(path, low, m, o)
            if isinstance(m, torch.nn.Linear):
                return y + scale * low @ up.T
            return y + scale * F.conv2d(low, up[:, :, None, None])
        return hook

    def mask(self, path, low, m, o):
        if path not in self.masks:
            p = o["rank_dropout"]
            keep = torch.rand(low.shape[0], o["dim"], generator=torch.Generator().manual_seed(len(self.masks))) > p
            self.masks[path] = (keep / (1 - p)).to(low.dtype)
        k = self.masks[path]
        if isinstance(m, torch.nn.Linear):
            return k.view(k.shape[0], *[1] * (low.ndim - 2), -1)
        return k[:, :, None, None]


def context(te, ids, o):
    """sd-scripts' get_hidden_states"""
    if o["clip_skip"]:
        h = te(ids, output_hidden_states=True).hidden_states[-o["clip_skip"]]
        h = (te.text_model if hasattr(te, "text_model") else te).final_layer_norm(h)
    else:
        h = te(ids).last_hidden_state
    h = h.reshape(2, -1, h.shape[-1])
    if o["chunks"] > 1:
        h = torch.cat([h[:, :1]] + [h[:, i:i + 75] for i in range(1, 77 * o["chunks"] - 76 + 1, 77)] + [h[:, -1:]], 1)
    return h


def train(case, o, x, dtype):
    torch.manual_seed(0)
    parts = {"te": text_encoder(dtype), "unet": unet(dtype)}
    if o.get("base"):
        Lora(case + "/base", dtype, parts, o)
    lora = Lora(case, dtype, parts, o)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(trained(dtype))
    scale = 1024 if dtype == torch.float16 else 1  # of the loss, so that small gradients are numbers of float16
    groups = [{"params": lora.groups["unet"], "lr": o["unet_lr"]}]
    if o["te"]:
        groups.insert(0, {"params": lora.groups["te"], "lr": o["te_lr"]})
    optimizer = o.get("optimizer", torch.optim.AdamW)(groups)
    params = [p for q in groups for p in q["params"]]
    r = {}
    losses = []
    for step in range(STEPS):
        latents, noise = (v.to(trained(dtype)).permute(0, 3, 1, 2) for v in (x["latents"], x["noise"][step]))
        t = x["timesteps"][step].long()
        noisy = scheduler.add_noise(latents, noise, t)
        target = scheduler.get_velocity(latents, noise, t) if o["v"] else noise
        seen = context(parts["te"], x["ids"][step], o)
        if o.get("weighted"):
            seen = seen * x["emphasis"][step].to(dtype)[..., None]
        pred = parts["unet"](noisy.to(dtype), t, seen).sample.to(trained(dtype))
        if o["huber"]:
            c = x["delta"][step].to(trained(dtype)).view(-1, 1, 1, 1)
            loss = (2 * c * (((pred - target) ** 2 + c ** 2).sqrt() - c)).mean((1, 2, 3))
        else:
            if o.get("masked"):  # the square times the mask; in this form also where few bits are sampled, as it is computed here
                root = x["mask"].to(trained(dtype)).sqrt()[:, None]
                pred, target = pred * root, target * root
            loss = ((pred - target) ** 2).mean((1, 2, 3))
        loss = (loss * x["weight"][step].to(trained(dtype))).mean()
        optimizer.zero_grad()
        (loss * scale).backward()
        for p in params:
            p.grad /= scale
        if step == 0:
            for k, (down, up) in lora.factors.items():
                r[f"grad/{k}.down"], r[f"grad/{k}.up"] = down.grad.clone(), up.grad.clone()
        torch.nn.utils.clip_grad_norm_(params, o["max_grad_norm"])
        optimizer.step()
        losses.append(loss.detach())
    r["losses"] = torch.stack(losses)
    for k, (down, up) in lora.factors.items():
        r[f"last/{k}.down"], r[f"last/{k}.up"] = down.detach(), up.detach()
    r |= {f"mask/{k}": v for k, v in lora.masks.items()}
    return r


def case(name, stored, h=4, w=6, **options):
    o = dict(dim=4, alpha=2.0, te=True, clip_skip=0, chunks=1, v=False, huber=False, min_snr=0.0, te_lr=5e-4, unet_lr=1e-3,
             max_grad_norm=1.0) | options
    x = {"latents": randn(2, h, w, 4), "noise": randn(STEPS, 2, h, w, 4),
         "timesteps": torch.randint(0, 1000, (STEPS, 2), generator=g, dtype=torch.int32),
         "ids": torch.randint(0, 58, (STEPS, 2 * o["chunks"], 77), generator=g, dtype=torch.int32), "weight": torch.ones(STEPS, 2)}
    x["ids"][:, :, 0] = 58
    x["ids"][:, :, 20:] = 59
    if o["min_snr"]:
        bar = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod.double()
        snr = (bar / (1 - bar))[x["timesteps"].long()]
        x["weight"] = (snr.clamp(max=o["min_snr"]) / (snr + 1 if o["v"] else snr)).float()
    if o.get("masked"):
        x["mask"] = torch.rand(2, h, w, generator=g).mul(1.5).clamp(max=1) * (torch.rand(2, h, w, generator=g) > 0.3)
    if o.get("weighted"):
        x["emphasis"] = 0.5 + torch.rand(STEPS, 2, 75 * o["chunks"] + 2, generator=g)
    if o["huber"]:
        x["delta"] = torch.rand(STEPS, 2, generator=g) + 0.05
    exact = train(name, o, x, torch.float64)
    others = [train(name, o, x, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    cases[name] = o
    for k, v in x.items():
        out[f"{name}/{k}"] = v.clone()
    for k in exact:
        if k.split("/")[0] in stored:
            errors[f"{name}/{k}"] = [float((exact[k] - r[k].double()).abs().max()) for r in others]
            out[f"{name}/{k}"] = exact[k].float().contiguous().clone()
    if "last" in stored:
        names = [k for k in exact if k.startswith("last/")]
        rms[name] = [float(torch.cat([(exact[k] - r[k].double()).flatten() for k in names]).pow(2).mean().sqrt()) for r in others]
    print(name, [round(float(v), 5) for v in exact["losses"]])


def init():
    """The draws of networks/lora.py: a layer's own start, which is lost, then Kaiming."""
    torch.manual_seed(42)
    parts = {"te": text_encoder(torch.float32), "unet": unet(torch.float32)}
    torch.manual_seed(42)
    for part, module in parts.items():
        for path, m in targets(part, module, 2):
            conv = isinstance(m, torch.nn.Conv2d)
            if conv:
                rank = 4 if m.kernel_size == (1, 1) else 2
                down = torch.nn.Conv2d(m.in_channels, rank, m.kernel_size, bias=False)
                torch.nn.Conv2d(rank, m.out_channels, 1, bias=False)
            else:
                down = torch.nn.Linear(m.in_features, 4, bias=False)
                torch.nn.Linear(4, m.out_features, bias=False)
            torch.nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            out[f"init/{path}"] = last(down.weight.detach()).flatten()[-8:].clone()


if __name__ == "__main__":
    case("eps", ("losses", "grad", "last"))
    case("v", ("losses", "last"), v=True, min_snr=5.0, clip_skip=2, chunks=2, max_grad_norm=0.05)
    case("unet", ("losses", "grad"), te=False, huber=True, conv_dim=2, conv_alpha=1.0, h=5, w=3)
    case("drop", ("losses", "grad", "mask"), rank_dropout=0.3)
    init()
    save_file(out, sys.argv[1], metadata={"cases": json.dumps(cases), "error": json.dumps(errors), "rms": json.dumps(rms), "tensors": json.dumps(tensors)})
    print(len(out), "tensors", sum(v.numel() for v in out.values()) * 4, "bytes")

#!/usr/bin/env python3
"""Writes a synthetic Stable Diffusion checkpoint: exact names, shapes and types, random weights.

usage: make_sd.py OUT.safetensors|OUT.ckpt [options]

Without options: SD1.5 in f32, LDM layout, 1131 weights and the 13 schedule buffers that such files carry. A tensor depends
on (seed, name) alone, so --tuned writes the same model plus a difference: of low rank, with white noise on top, as fine
tuning leaves it. --channels and friends shrink it to a few hundred kB with the same structure.
"""
import argparse
import math
import zlib

import torch


class Layout:
    """Collects (name, shape) pairs; a prefix is put in front of each."""

    def __init__(self):
        self.entries, self.prefix = [], ""

    def add(self, name, *shape):
        self.entries.append((self.prefix + name, shape))

    def norm(self, name, width):
        self.add(name + ".weight", width)
        self.add(name + ".bias", width)

    def linear(self, name, inputs, outputs, bias=True):
        self.add(name + ".weight", outputs, inputs)
        if bias:
            self.add(name + ".bias", outputs)

    def conv(self, name, inputs, outputs, kernel):
        self.add(name + ".weight", outputs, inputs, kernel, kernel)
        self.add(name + ".bias", outputs)


class Unet(Layout):
    def __init__(self, c, context, linear_projections):
        super().__init__()
        self.prefix = "model.diffusion_model."
        self.context, self.linear_projections, self.time = context, linear_projections, 4 * c
        self.linear("time_embed.0", c, 4 * c)
        self.linear("time_embed.2", 4 * c, 4 * c)
        self.conv("input_blocks.0.0", 4, c, 3)
        widths, width, block, skips = (c, 2 * c, 4 * c, 4 * c), c, 1, [c]
        for level, out in enumerate(widths):
            for _ in range(2):
                self.residual(f"input_blocks.{block}.0", width, out)
                if level < 3:
                    self.transformer(f"input_blocks.{block}.1", out)
                width, block = out, block + 1
                skips.append(width)
            if level < 3:
                self.conv(f"input_blocks.{block}.0.op", width, width, 3)
                block += 1
                skips.append(width)
        self.residual("middle_block.0", width, width)
        self.transformer("middle_block.1", width)
        self.residual("middle_block.2", width, width)
        block = 0
        for level, out in enumerate(reversed(widths)):
            for layer in range(3):
                self.residual(f"output_blocks.{block}.0", width + skips.pop(), out)
                if level:
                    self.transformer(f"output_blocks.{block}.1", out)
                if layer == 2 and level < 3:
                    self.conv(f"output_blocks.{block}.{2 if level else 1}.conv", out, out, 3)
                width, block = out, block + 1
        self.norm("out.0", c)
        self.conv("out.2", c, 4, 3)

    def residual(self, name, inputs, outputs):
        self.norm(name + ".in_layers.0", inputs)
        self.conv(name + ".in_layers.2", inputs, outputs, 3)
        self.linear(name + ".emb_layers.1", self.time, outputs)
        self.norm(name + ".out_layers.0", outputs)
        self.conv(name + ".out_layers.3", outputs, outputs, 3)
        if inputs != outputs:
            self.conv(name + ".skip_connection", inputs, outputs, 1)

    def transformer(self, name, width):
        def projection(which):
            if self.linear_projections:
                self.linear(f"{name}.{which}", width, width)
            else:
                self.conv(f"{name}.{which}", width, width, 1)

        block = name + ".transformer_blocks.0"
        self.norm(name + ".norm", width)
        projection("proj_in")
        for attention, looks_at in (("attn1", width), ("attn2", self.context)):
            self.linear(f"{block}.{attention}.to_q", width, width, False)
            self.linear(f"{block}.{attention}.to_k", looks_at, width, False)
            self.linear(f"{block}.{attention}.to_v", looks_at, width, False)
            self.linear(f"{block}.{attention}.to_out.0", width, width)
        self.linear(block + ".ff.net.0.proj", width, 8 * width)
        self.linear(block + ".ff.net.2", 4 * width, width)
        for i in (1, 2, 3):
            self.norm(f"{block}.norm{i}", width)
        projection("proj_out")


class Vae(Layout):
    def __init__(self, c):
        super().__init__()
        self.prefix = "first_stage_model."
        widths = (c, 2 * c, 4 * c, 4 * c)
        top = widths[-1]
        self.conv("encoder.conv_in", 3, c, 3)
        width = c
        for level, out in enumerate(widths):
            for layer in range(2):
                self.residual(f"encoder.down.{level}.block.{layer}", width, out)
                width = out
            if level < 3:
                self.conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
        self.middle("encoder", top)
        self.norm("encoder.norm_out", top)
        self.conv("encoder.conv_out", top, 8, 3)
        self.conv("decoder.conv_in", 4, top, 3)
        self.middle("decoder", top)
        width = top
        for level in (3, 2, 1, 0):
            for layer in range(3):
                self.residual(f"decoder.up.{level}.block.{layer}", width, widths[level])
                width = widths[level]
            if level:
                self.conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
        self.norm("decoder.norm_out", c)
        self.conv("decoder.conv_out", c, 3, 3)
        self.conv("quant_conv", 8, 8, 1)
        self.conv("post_quant_conv", 4, 4, 1)

    def residual(self, name, inputs, outputs):
        self.norm(name + ".norm1", inputs)
        self.conv(name + ".conv1", inputs, outputs, 3)
        self.norm(name + ".norm2", outputs)
        self.conv(name + ".conv2", outputs, outputs, 3)
        if inputs != outputs:
            self.conv(name + ".nin_shortcut", inputs, outputs, 1)

    def middle(self, side, width):
        self.residual(side + ".mid.block_1", width, width)
        self.norm(side + ".mid.attn_1.norm", width)
        for which in ("q", "k", "v", "proj_out"):
            self.conv(f"{side}.mid.attn_1.{which}", width, width, 1)
        self.residual(side + ".mid.block_2", width, width)


class Clip(Layout):
    """CLIP ViT-L's text model with transformers' names (SD1)"""

    def __init__(self, width, layers, words):
        super().__init__()
        self.prefix = "cond_stage_model.transformer.text_model."
        self.add("embeddings.position_ids", 1, 77)
        self.add("embeddings.token_embedding.weight", words, width)
        self.add("embeddings.position_embedding.weight", 77, width)
        for i in range(layers):
            layer = f"encoder.layers.{i}"
            for which in ("k_proj", "v_proj", "q_proj", "out_proj"):
                self.linear(f"{layer}.self_attn.{which}", width, width)
            self.norm(layer + ".layer_norm1", width)
            self.linear(layer + ".mlp.fc1", width, 4 * width)
            self.linear(layer + ".mlp.fc2", 4 * width, width)
            self.norm(layer + ".layer_norm2", width)
        self.norm("final_layer_norm", width)


class OpenClip(Layout):
    """OpenCLIP ViT-H's text tower (SD2): q, k and v in one tensor; SD2 does not use the last block"""

    def __init__(self, width, layers, words):
        super().__init__()
        self.prefix = "cond_stage_model.model."
        self.add("positional_embedding", 77, width)
        self.add("text_projection", width, width)
        self.add("logit_scale")
        self.add("token_embedding.weight", words, width)
        for i in range(layers):
            block = f"transformer.resblocks.{i}"
            self.norm(block + ".ln_1", width)
            self.add(block + ".attn.in_proj_weight", 3 * width, width)
            self.add(block + ".attn.in_proj_bias", 3 * width)
            self.linear(block + ".attn.out_proj", width, width)
            self.norm(block + ".ln_2", width)
            self.linear(block + ".mlp.c_fc", width, 4 * width)
            self.linear(block + ".mlp.c_proj", 4 * width, width)
        self.norm("ln_final", width)


def layout(v2=False, channels=320, context=None, text_layers=None, words=49408, vae_channels=128):
    """All (name, shape) of a checkpoint; the text encoder is as wide as what the U-Net looks at."""
    context = context or (1024 if v2 else 768)
    text_layers = text_layers or (24 if v2 else 12)
    text = OpenClip if v2 else Clip
    return (Unet(channels, context, v2).entries + Vae(vae_channels).entries + text(context, text_layers, words).entries)


def schedule():
    """The buffers of the noise schedule, f32"""
    beta = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    alpha = 1 - beta
    bar = torch.cumprod(alpha, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    variance = beta * (1 - before) / (1 - bar)
    buffers = {
        "betas": beta, "alphas_cumprod": bar, "alphas_cumprod_prev": before, "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(), "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(), "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": variance, "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - bar),
        "posterior_mean_coef2": (1 - before) * alpha.sqrt() / (1 - bar), "logvar": torch.zeros(1000, dtype=torch.float64),
    }
    return {name: b.float() for name, b in buffers.items()}


def generator(seed, name):
    return torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(name.encode()))


def is_norm(name):
    module = name.rsplit(".", 1)[0]
    return "norm" in module or ".ln_" in module or module.endswith((".in_layers.0", ".out_layers.0", "model.out.0"))


def base_weight(name, shape, seed):
    if name.endswith("position_ids"):
        return torch.arange(77)[None]
    if name.endswith("logit_scale"):
        return torch.tensor(math.log(100.0))
    if is_norm(name):
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    w = torch.randn(shape, generator=generator(seed, name))
    if "embedding" in name:
        return w * 0.02
    if len(shape) == 1:
        return w * 0.01
    return w / math.sqrt(math.prod(shape[1:]))


def is_target(name):
    """The matrices that a LoRA reaches"""
    if not name.endswith("weight") or is_norm(name) or "embedding" in name:
        return False
    if name.startswith("model.diffusion_model."):
        return any(s in name for s in (".transformer_blocks.", ".proj_in.", ".proj_out."))
    return name.startswith("cond_stage_model.")


def difference(name, w, seed, rank, relative, decay, noise, other=None):
    """Singular values fall as decay^i; their norm is `relative` times ||w||, that of the noise `noise` times"""
    g = generator(seed + 7919, name) if other is None else torch.Generator().manual_seed(zlib.crc32(f"{other}/{name}".encode()))
    m, n = w.shape[0], w[0].numel()
    rank = min(rank, m, n)
    u = torch.linalg.qr(torch.randn(m, rank, generator=g))[0]
    v = torch.linalg.qr(torch.randn(n, rank, generator=g))[0]
    s = decay ** torch.arange(rank, dtype=torch.float32)
    s = s * (relative * w.norm() / s.norm())
    d = (u * s) @ v.T + torch.randn(m, n, generator=g) * (noise * w.norm() / math.sqrt(m * n))
    return d.reshape(w.shape)


def checkpoint(o):
    """The state dict that the options describe"""
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    out = {}
    for name, shape in layout(o.v2, o.channels, o.context, o.text_layers, o.words, o.vae_channels):
        w = base_weight(name, shape, o.seed)
        if o.tuned and is_target(name) and not (o.te_same and name.startswith("cond_stage_model.")):
            w = w + difference(name, w, o.seed, o.rank, o.rel, o.decay, o.noise, o.other)
        out[name] = w.to(types[o.dtype]).contiguous() if w.is_floating_point() else w
    out.update(schedule())
    return out


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--v2", action="store_true", help="SD2.1 in place of SD1.5")
    p.add_argument("--dtype", default="fp32", choices=["fp32", "fp16", "bf16"])
    p.add_argument("--tuned", action="store_true", help="add a difference to every matrix that a LoRA reaches")
    p.add_argument("--other", type=int, help="with --tuned: another difference for each number (torch takes the lower 32 bits of a "
                                              "seed, in which all of --seed's are alike)")
    p.add_argument("--te-same", action="store_true", help="with --tuned: but not to the text encoder's")
    p.add_argument("--rank", type=int, default=16, help="of the difference")
    p.add_argument("--rel", type=float, default=0.05, help="||difference|| / ||w||")
    p.add_argument("--decay", type=float, default=0.85, help="ratio of neighbouring singular values")
    p.add_argument("--noise", type=float, default=0.005, help="||noise|| / ||w||")
    p.add_argument("--channels", type=int, default=320, help="of the U-Net's first level")
    p.add_argument("--context", type=int, help="width of the text encoder (768; 1024 with --v2)")
    p.add_argument("--text-layers", type=int, help="12; 24 with --v2")
    p.add_argument("--words", type=int, default=49408, help="size of the vocabulary")
    p.add_argument("--vae-channels", type=int, default=128)
    return p


def main():
    o = parser().parse_args()
    state = checkpoint(o)
    if o.out.endswith(".safetensors"):
        from safetensors.torch import save_file
        save_file(state, o.out)
    else:
        torch.save({"epoch": 0, "global_step": 0, "state_dict": state}, o.out)
    print(f"{o.out}: {len(state)} tensors, {sum(t.numel() for t in state.values()):,} values")


if __name__ == "__main__":
    main()

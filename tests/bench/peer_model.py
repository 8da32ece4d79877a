#!/usr/bin/env python3
"""usage: peer_model.py PART [--batch N] [--size PIXELS] [--bf16] [--checkpoint] [--openvino] [--runs N]

The rows of 'make bench' in other programs: one part of Stable Diffusion 1.5 with random weights, in a process of its own.
Prints the best seconds of the runs after one to warm up, and the process's peak memory.

PART is unet, te, encode, decode (diffusers and transformers on PyTorch; unet also in OpenVINO), or step: one training step as
diffusers' own scripts do it: LoRA of rank 4 by peft on the attention of U-Net and text encoder, AdamW; no data set, random
latents. PyTorch's attention is its fused one.
"""
import argparse
import resource
import time

import torch


def unet():
    from diffusers import UNet2DConditionModel
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def text_encoder():
    from transformers import CLIPTextConfig, CLIPTextModel
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                        num_attention_heads=12, projection_dim=768))


def vae():
    from diffusers import AutoencoderKL
    return AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                         block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4)


def forward(o, dtype):
    side = o.size // 8
    if o.part == "unet":
        m = unet().to(dtype).eval()
        x = torch.randn(o.batch, 4, side, side, dtype=dtype)
        c = torch.randn(o.batch, 77, 768, dtype=dtype)
        return lambda: m(x, torch.tensor(500), c)
    if o.part == "te":
        m, ids = text_encoder().to(dtype).eval(), torch.randint(0, 49406, (o.batch, 77))
        return lambda: m(ids)
    m = vae().to(dtype).eval().to(memory_format=torch.channels_last)
    if o.part == "decode":
        x = torch.randn(o.batch, 4, side, side, dtype=dtype)
        return lambda: m.decode(x)
    x = torch.randn(o.batch, 3, o.size, o.size, dtype=dtype)
    return lambda: m.encode(x)


def openvino_unet(o):
    import openvino

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet().eval()

        def forward(self, x, t, c):
            return self.unet(x, t, c, return_dict=False)[0]

    x = torch.randn(o.batch, 4, o.size // 8, o.size // 8)
    t, c = torch.tensor([500]), torch.randn(o.batch, 77, 768)
    with torch.no_grad():
        m = openvino.convert_model(Plain(), example_input=(x, t, c), input=[x.shape, t.shape, c.shape])
    compiled = openvino.Core().compile_model(m, "CPU", {"INFERENCE_PRECISION_HINT": "bf16" if o.bf16 else "f32",
                                                        "INFERENCE_NUM_THREADS": torch.get_num_threads()})
    request = compiled.create_infer_request()
    return lambda: request.infer([x.numpy(), t.numpy(), c.numpy()])


def step(o):
    from peft import LoraConfig, get_peft_model
    u, te = unet().requires_grad_(False), text_encoder().requires_grad_(False)
    if o.checkpoint:
        u.enable_gradient_checkpointing()
        u.train()
    u = get_peft_model(u, LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    te = get_peft_model(te, LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]))
    params = [p for m in (u, te) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4)
    latents = torch.randn(o.batch, 4, o.size // 8, o.size // 8)
    ids = torch.randint(0, 49406, (o.batch, 77))

    def run():
        noise = torch.randn_like(latents)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=o.bf16):
            out = u(latents + noise, torch.tensor(500), te(ids)[0]).sample
        torch.nn.functional.mse_loss(out.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return run


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("part", choices=["unet", "te", "encode", "decode", "step"])
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--size", type=int, default=512)
    p.add_argument("--runs", type=int, default=3)
    for name in ("bf16", "checkpoint", "openvino"):
        p.add_argument("--" + name, action="store_true")
    o = p.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(o.part == "step")
    run = openvino_unet(o) if o.openvino else step(o) if o.part == "step" else forward(o, torch.bfloat16 if o.bf16 else torch.float32)
    seconds = []
    for _ in range(o.runs + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    print(f"{min(seconds[1:]):8.3f} s {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:6.2f} GiB")


main()

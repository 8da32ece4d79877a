#!/usr/bin/env python3
"""Times PyTorch (diffusers and PEFT) on one GPU with an SD1.5 of random weights, beside which bench_unet and `lora train` stand.

usage: peer_gpu.py [forward] [train] [compile]

forward: the U-Net at 512x512 in bf16, batch 2 and 8, replayed as a CUDA graph. train: one step (U-Net and text encoder with a LoRA
of rank 4 on all attention and feed-forward layers, autocast to bf16, clipping, fused AdamW), batch 1, 4, 8 and 1 with gradient
checkpointing. compile: batch 1 through torch.compile. Milliseconds are medians; memory is what torch allocated at most.
"""
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from transformers import CLIPTextConfig, CLIPTextModel

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def unet():
    blocks = "CrossAttn{}Block2D"
    return UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
        down_block_types=(blocks.format("Down"),) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + (blocks.format("Up"),) * 3, cross_attention_dim=768, attention_head_dim=8)


def text_encoder():
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=768))


def median(step, warm, runs):
    for _ in range(warm):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), torch.cuda.max_memory_allocated() / 2**30


def report(what, result):
    print(f"{what:44s} {result[0]:8.2f} ms {result[1]:6.2f} GiB", flush=True)


def forward(batch):
    with torch.device("cuda"):
        model = unet().to(torch.bfloat16).eval()
        x = torch.randn(batch, 4, 64, 64, dtype=torch.bfloat16)
        context = torch.randn(batch, 77, 768, dtype=torch.bfloat16)
        t = torch.full((batch,), 500)
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                model(x, t, context)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x, t, context)
        report(f"U-Net forward, batch {batch}, CUDA graph", median(graph.replay, 3, 10))


def train(batch, checkpointing=False, compiled=False):
    torch.manual_seed(0)
    with torch.device("cuda"):
        u, t = unet(), text_encoder()
    u.requires_grad_(False).to(torch.bfloat16)
    t.requires_grad_(False).to(torch.bfloat16)
    u.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION))
    t = get_peft_model(t, LoraConfig(r=4, lora_alpha=4, target_modules=TEXT))
    factors = [p for m in (u, t) for p in m.parameters() if p.requires_grad]
    for p in factors:
        p.data = p.data.float()
    if checkpointing:
        u.enable_gradient_checkpointing()
        t.gradient_checkpointing_enable()
    u.train()
    t.train()
    optimizer = torch.optim.AdamW(factors, lr=1e-4, fused=True)
    latents = torch.randn(batch, 4, 64, 64, device="cuda")
    ids = torch.randint(0, 49407, (batch, 77), device="cuda")
    run = torch.compile(u) if compiled else u

    def step():
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (batch,), device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            said = run(0.7 * latents + 0.7 * noise, times, t(input_ids=ids).last_hidden_state).sample
        F.mse_loss(said.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    name = f"training step, batch {batch}" + ", checkpointing" * checkpointing + ", torch.compile" * compiled
    report(name, median(step, 4, 10))


def main():
    what = set(sys.argv[1:]) or {"forward", "train"}
    if what - {"forward", "train", "compile"}:
        sys.exit(__doc__)
    torch.backends.cuda.matmul.allow_tf32 = True
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    if "forward" in what:
        for batch in (2, 8):
            forward(batch)
    if "train" in what:
        torch.backends.cudnn.benchmark = True
        for batch in (1, 4, 8):
            train(batch)
        train(1, checkpointing=True)
    if "compile" in what:
        train(1, compiled=True)


main()

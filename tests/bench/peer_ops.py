"""The operations of bench_ops.c in PyTorch: best of RUNS (default 5), processor time, one thread.

usage: peer_ops.py [NAME-PART ...]    compare with: bench_ops --threads 1 --cpu yes [NAME-PART ...]
"""
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
RUNS = 5


def conv(n, h, ci, co, stride=1):
    x, w, b = torch.randn(n, ci, h, h), torch.randn(co, ci, 3, 3) * 0.02, torch.randn(co)
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    return (lambda: F.conv2d(x, w, b, stride, 1)), 2 * n * (h // stride) ** 2 * ci * co * 9


def linear(m, n, k):
    x, w, b = torch.randn(m, k), torch.randn(n, k) * 0.02, torch.randn(n)
    return (lambda: F.linear(x, w, b)), 2 * m * n * k


def attention(tq, tk, c, heads=8):
    q, k, v = (torch.randn(1, t, heads, c // heads).transpose(1, 2) for t in (tq, tk, tk))
    return (lambda: F.scaled_dot_product_attention(q, k, v)), 4 * tq * tk * c


ROWS = {
    "conv3x3 64x64 320-320": lambda: conv(1, 64, 320, 320),
    "conv3x3 32x32 640-640": lambda: conv(1, 32, 640, 640),
    "conv3x3 16x16 1280-1280": lambda: conv(1, 16, 1280, 1280),
    "conv3x3 8x8 1280-1280": lambda: conv(1, 8, 1280, 1280),
    "conv3x3 64x64 320-320 stride 2": lambda: conv(1, 64, 320, 320, 2),
    "conv3x3 256x256 512-256 (VAE)": lambda: conv(1, 256, 512, 256),
    "linear 4096 320-2560": lambda: linear(4096, 2560, 320),
    "linear 256 1280-10240": lambda: linear(256, 10240, 1280),
    "attention 4096x4096 heads of 40": lambda: attention(4096, 4096, 320),
    "attention 1024x1024 heads of 80": lambda: attention(1024, 1024, 640),
    "attention 4096x77 heads of 40": lambda: attention(4096, 77, 320),
}

print("torch", torch.__version__)
for name, row in ROWS.items():
    if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
        continue
    run, flops = row()
    best = float("inf")
    with torch.no_grad():
        for _ in range(RUNS):
            t = time.process_time()
            run()
            best = min(best, time.process_time() - t)
    print(f"{name:<42} {best * 1e3:9.3f} ms {flops / best / 1e9:8.1f} GFLOP/s")

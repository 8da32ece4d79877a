#!/usr/bin/env python3
"""usage: make_ops.py OUT.safetensors

Every operation, forward and backward, by torch in float64 on inputs that are exact in the type they are stored in.

Metadata "cases": a JSON list; each case has name, op, attr (fields of struct op_attr), n (length of the longest sum in the
forward), back (length of the longest sum in the backward of each input that has one), error (for "bf16" and "f16": by how
much out0, din0 .. change when the inputs are rounded to that type, all sums being exact), slope (for each input with a
gradient: the derivative of sum(dout0 * out0) along fill("NAME.in0") by a central difference in float64, which knows nothing of
the gradients). Tensors NAME.in0 .. are the inputs, NAME.out0 the output, NAME.dout0 the gradient given, NAME.din0 .. the gradients asked for. Channels are last; convolution
weights are [out, kh, kw, in].
"""
import json
import math
import sys

import torch
import torch.nn.functional as F
from fill import fill
from safetensors.torch import save_file

g = torch.Generator().manual_seed(4)
out, cases = {}, []
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def randn(*shape, dtype=F32, size=1.0, offset=0.0):
    return (torch.randn(*shape, generator=g) * size + offset).to(dtype)


def case(name, op, inputs, fn, n, back=None, attr=None, dtypes=None):
    """inputs: tensors or None; fn of the inputs in float64; back: {input: longest sum}"""
    back = back or {}
    y, wide = evaluate(inputs, fn, back)
    dy = randn(*y.shape) if y.ndim else torch.tensor(1.5)
    results = collect(y, wide, dy, back)
    if back:
        out[f"{name}.dout0"] = dy.clone()
    for k, v in results.items():
        out[f"{name}.{k}"] = v.float().contiguous()
    for i, t in enumerate(inputs):
        if t is not None:
            out[f"{name}.in{i}"] = t.detach().clone().contiguous()
    cases.append({"name": name, "op": op, "attr": attr or {}, "n": n, "back": {str(k): v for k, v in back.items()},
                  "error": {str(t)[6:].replace("bfloat", "bf").replace("float", "f"): perturbed(op, inputs, fn, dy, back, results, t)
                            for t in (BF16, F16)},
                  "slope": {str(i): slope(name, i, wide, fn, dy) for i in back}})


def evaluate(inputs, fn, back):
    wide = [None if t is None else t.double() if t.is_floating_point() else t for t in inputs]
    for i in back:
        wide[i].requires_grad_()
    return fn(*wide), wide


def collect(y, wide, dy, back):
    grads = torch.autograd.grad(y, [wide[i] for i in back], dy.double()) if back else ()
    return {"out0": y.detach()} | {f"din{i}": d for i, d in zip(back, grads)}


def perturbed(op, inputs, fn, dy, back, exact, t):
    """What rounding to type t does; numbers of steps and weights of samples are no activations: no backend rounds them."""
    kept = {"timestep": (0,), "mse": (2,)}.get(op, ())
    inputs = [x.to(t).to(x.dtype) if x is not None and x.is_floating_point() and i not in kept else x for i, x in enumerate(inputs)]
    y, wide = evaluate(inputs, fn, back)
    return {k: float((v - exact[k]).abs().max()) for k, v in collect(y, wide, dy.to(t) if dy.ndim else dy, back).items()}


def slope(name, i, wide, fn, dy, h=1e-5):
    """Off by h^2 times a third derivative and by 2^-53 / h times the sum: some 1e-9 of it."""
    d, x = fill(f"{name}.in{i}", wide[i].shape), [None if t is None else t.detach() for t in wide]
    with torch.no_grad():
        at = [float((fn(*x[:i], x[i] + s * d, *x[i + 1:]) * dy.double()).sum()) for s in (h, -h)]
    return (at[0] - at[1]) / (2 * h)


def nchw(t):
    return t.permute(0, 3, 1, 2)


def nhwc(t):
    return t.permute(0, 2, 3, 1)


# ---- linear
def linear(x, w, b=None, r=None, down=None, up=None, scale=1.0, fold=0.0, act=None):
    if down is not None:
        w = w + fold * up @ down
    y = scale * x @ w.T
    y = y if b is None else y + b
    y = y if r is None else y + r
    return y if act is None else act(y)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


for m, k, n, t in ((3, 7, 5, F32), (1, 1, 1, F32), (6, 40, 33, F16), (6, 33, 40, BF16), (260, 6, 9, F16), (3, 530, 9, F32),
                   (3, 520, 9, F16), (3, 6, 330, F16), (5, 8, 325, F32)):
    case(f"linear.{m}x{k}x{n}.{str(t)[6:]}", "linear", [randn(m, k), randn(n, k, dtype=t), randn(n)], linear, k, {0: n})
case("linear.nobias", "linear", [randn(2, 3, 4, 10), randn(6, 10)], linear, 10, {0: 6})
case("linear.scale", "linear", [randn(5, 10), randn(6, 10), randn(6)], lambda x, w, b: linear(x, w, b, scale=-0.7), 10, {0: 6, 1: 5},
     {"scale": -0.7})
case("linear.trained", "linear", [randn(300, 6), randn(4, 6)], linear, 6, {0: 4, 1: 300})
case("linear.trained.wide", "linear", [randn(7, 600), randn(2, 600)], linear, 600, {0: 2, 1: 7})
case("linear.residual", "linear", [randn(2, 5, 10), randn(6, 10, dtype=F16), randn(6), randn(2, 5, 6)], linear, 10, {0: 6})
case("linear.residual.nobias", "linear", [randn(5, 10), randn(6, 10), None, randn(5, 6)], linear, 10)
for act, fn in (("silu", F.silu), ("gelu", F.gelu), ("quick_gelu", quick_gelu)):
    case(f"linear.{act}", "linear", [randn(4, 10), randn(9, 10, dtype=F16), randn(9)],
         lambda x, w, b, fn=fn: linear(x, w, b, act=fn), 10, attr={"act": act})
for t, rank in ((F16, 4), (F32, 3)):
    case(f"linear.fold.{str(t)[6:]}", "linear",
         [randn(5, 530), randn(9, 530, dtype=t), randn(9), None, randn(rank, 530, size=0.3), randn(9, rank, size=0.3)],
         lambda *a: linear(*a, fold=-0.8), 530 + rank, {0: 9 + rank}, {"fold": -0.8})

# ---- conv2d
def conv(x, w, b=None, r=None, stride=1, pad=(0, 0)):
    x = F.pad(nchw(x), (pad[0], pad[1], pad[0], pad[1]))
    y = nhwc(F.conv2d(x, w.permute(0, 3, 1, 2), b, stride))
    return y if r is None else y + r


for name, (n, h, w, ci, co, k, s, pad, t) in {
    "3x3": (2, 5, 7, 6, 10, 3, 1, (1, 1), F32), "3x3.f16": (1, 6, 4, 16, 33, 3, 1, (1, 1), F16),
    "3x3.bf16": (1, 3, 3, 7, 5, 3, 1, (1, 1), BF16), "tiny": (1, 1, 1, 3, 4, 3, 1, (1, 1), F32),
    "down": (2, 6, 8, 5, 7, 3, 2, (1, 1), F16), "down.odd": (1, 7, 5, 5, 7, 3, 2, (1, 1), F32),
    "asymmetric": (1, 6, 8, 5, 7, 3, 2, (0, 1), F32), "asymmetric.odd": (1, 7, 9, 4, 3, 3, 2, (0, 1), F16),
    "1x1": (2, 3, 5, 9, 6, 1, 1, (0, 0), F16), "1x1.stride": (1, 5, 5, 4, 6, 1, 2, (0, 0), F32),
    "5x5": (1, 6, 7, 3, 4, 5, 1, (2, 2), F32), "deep": (1, 4, 5, 64, 9, 3, 1, (1, 1), F16),
    "wide": (1, 3, 2, 4, 330, 3, 1, (1, 1), F32), "large": (1, 17, 19, 4, 5, 3, 1, (1, 1), F16),
    "valid": (1, 5, 6, 4, 5, 3, 1, (0, 0), F32)}.items():
    case(f"conv2d.{name}", "conv2d", [randn(n, h, w, ci), randn(co, k, k, ci, dtype=t), randn(co)],
         lambda x, w, b, s=s, pad=pad: conv(x, w, b, None, s, pad), k * k * ci, {0: k * k * co},
         {"stride": s, "pad_before": pad[0], "pad_after": pad[1]})
case("conv2d.residual", "conv2d", [randn(1, 5, 4, 6), randn(8, 3, 3, 6, dtype=F16), randn(8), randn(1, 5, 4, 8)],
     lambda *a: conv(*a, pad=(1, 1)), 54, {0: 72}, {"stride": 1, "pad_before": 1, "pad_after": 1})
case("conv2d.trained", "conv2d", [randn(2, 13, 11, 6), randn(4, 3, 3, 6)], lambda x, w: conv(x, w, pad=(1, 1)), 54, {0: 36, 1: 286},
     {"stride": 1, "pad_before": 1, "pad_after": 1})
case("conv2d.trained.down", "conv2d", [randn(1, 6, 8, 60), randn(3, 3, 3, 60)], lambda x, w: conv(x, w, stride=2, pad=(1, 1)), 540,
     {0: 27, 1: 12}, {"stride": 2, "pad_before": 1, "pad_after": 1})

# ---- norms
for name, (shape, groups, eps, offset) in {
    "small": ((2, 3, 5, 12), 3, 1e-5, 0), "one.pixel": ((3, 1, 1, 128), 32, 1e-6, 0), "sd": ((1, 6, 5, 64), 32, 1e-5, 0.5),
    "strips": ((1, 1, 17, 1024), 32, 1e-6, 0), "offset": ((1, 4, 4, 32), 8, 1e-5, 30.0), "tokens": ((2, 9, 8), 2, 1e-5, 0)}.items():
    for act in ("none", "silu") if name != "strips" else ("silu",):
        c, px = shape[-1], math.prod(shape[1:-1])
        def norm(x, gamma, beta, act=act, groups=groups, eps=eps):
            y = F.group_norm(x.movedim(-1, 1), groups, gamma, beta, eps).movedim(1, -1)
            return F.silu(y) if act == "silu" else y
        case(f"group_norm.{name}.{act}", "group_norm", [randn(*shape, offset=offset), randn(c, offset=1, size=0.3), randn(c)], norm,
             px * c // groups, {0: px * c // groups}, {"groups": groups, "eps": eps, "act": act})
for shape, offset in (((3, 7), 0), ((2, 5, 33), 0), ((4, 768), 0.5), ((2, 16), 10.0), ((1, 1, 320), 0)):
    c = shape[-1]
    case(f"layer_norm.{c}", "layer_norm", [randn(*shape, offset=offset), randn(c, offset=1, size=0.3), randn(c)],
         lambda x, gamma, beta, c=c: F.layer_norm(x, (c,), gamma, beta, 1e-5), c, {0: c}, {"eps": 1e-5})

# ---- attention
def attention(q, k, v, heads, causal):
    def split(t):
        return t.reshape(t.shape[0], -1, heads, t.shape[-1] // heads).transpose(1, 2)
    y = F.scaled_dot_product_attention(split(q), split(k), split(v), is_causal=causal)
    return y.transpose(1, 2).reshape(q.shape)


for name, (qs, ks, heads, causal) in {
    "self": ((2, 7, 10), (2, 7, 10), 2, False), "cross": ((2, 3, 5, 12), (2, 9, 12), 3, False),
    "one": ((1, 1, 4), (1, 1, 4), 1, False), "causal": ((2, 11, 8), (2, 11, 8), 2, True),
    "causal.tiles": ((1, 300, 6), (1, 300, 6), 2, True), "tiles": ((1, 133, 8), (1, 517, 8), 1, False),
    "d40": ((1, 12, 80), (1, 21, 80), 2, False), "d64": ((1, 9, 64), (1, 33, 64), 1, False),
    "d80": ((1, 9, 80), (1, 18, 80), 1, False), "d160": ((1, 5, 160), (1, 17, 160), 1, False),
    "d512": ((1, 3, 2, 512), (1, 3, 2, 512), 1, False)}.items():
    d = qs[-1] // heads
    tq, tk = math.prod(qs[1:-1]), math.prod(ks[1:-1])
    case(f"attention.{name}", "attention", [randn(*qs), randn(*ks), randn(*ks)],
         lambda q, k, v, h=heads, c=causal: attention(q, k, v, h, c), d + tk, {0: d + tk, 1: d + tq, 2: d + tq},
         {"heads": heads, "causal": causal})
# scores far apart: the running maximum must hold
case("attention.sharp", "attention", [randn(1, 6, 16, size=6), randn(1, 300, 16, size=6), randn(1, 300, 16)],
     lambda q, k, v: attention(q, k, v, 2, False), 8 * 36, None, {"heads": 2})

# ---- activations
x = torch.cat([randn(200, size=3), torch.tensor([0.0, -0.0, 1.0, -1.0, 5.0, -5.0, 12.0, -12.0, 30.0, -30.0, 100.0, -100.0])])
for name, fn in (("silu", F.silu), ("gelu", F.gelu), ("quick_gelu", quick_gelu)):
    case(f"{name}", name, [x], fn, 1, {0: 1})
case("silu.pieces", "silu", [randn(3, 5, 1100, size=2)], F.silu, 1, {0: 1})
case("geglu", "geglu", [randn(2, 3, 5, 14)], lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]), 1, {0: 1})

# ---- the rest
ids = torch.randint(0, 50, (3, 7), generator=g, dtype=torch.int32)
case("embedding", "embedding", [ids, randn(50, 9, dtype=F16)], lambda i, t: F.embedding(i.long(), t), 1)
case("embedding.positions", "embedding", [ids, randn(50, 300, dtype=BF16), randn(8, 300, dtype=F32)],
     lambda i, t, p: F.embedding(i.long(), t) + p[:7], 1)


def timestep(t, width):
    w = torch.exp(-math.log(10000.0) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    a = t[:, None] * w
    return torch.cat([a.cos(), a.sin()], -1)


from diffusers.models.embeddings import get_timestep_embedding
t = torch.tensor([0.0, 1.0, 500.0, 999.0, 37.5])
case("timestep", "timestep", [t], lambda t: timestep(t, 320), 1, attr={"width": 320})
case("timestep.narrow", "timestep", [t], lambda t: timestep(t, 6), 1, attr={"width": 6})
# our formula is diffusers' (which computes it in float32: 999 radians times a few half units)
assert (get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0) - timestep(t.double(), 320)).abs().max() < 3e-4

case("upsample", "upsample", [randn(2, 3, 5, 7)], lambda x: nhwc(F.interpolate(nchw(x), scale_factor=2.0, mode="nearest")), 1, {0: 4})
for h, w in ((5, 7), (5, 8), (6, 7)):  # what the U-Net of diffusers does at sizes that do not halve evenly
    case(f"upsample.{h}x{w}", "upsample", [randn(2, (h + 1) // 2, (w + 1) // 2, 3)],
         lambda x, s=(h, w): nhwc(F.interpolate(nchw(x), size=s, mode="nearest")), 1, {0: 4}, {"crop_h": h % 2, "crop_w": w % 2})
case("concat", "concat", [randn(2, 3, 4, 5), randn(2, 3, 4, 9)], lambda a, b: torch.cat([a, b], -1), 1, {0: 1, 1: 1})
case("split", "split", [randn(2, 3, 9)], lambda x: x[..., 4:7], 1, {0: 1}, {"first": 4, "count": 3})
case("add", "add", [randn(3, 4, 5), randn(3, 4, 5)], lambda a, b: a + b, 1)
case("add.spread", "add", [randn(2, 11, 11, 70), randn(2, 70)], lambda a, b: a + b[:, None, None], 1, {1: 121})
case("scale", "scale", [randn(2, 9)], lambda x: x * 0.18215, 1, {0: 1}, {"scale": 0.18215})
case("mse", "mse", [randn(2, 5, 7, 4), randn(2, 5, 7, 4)], F.mse_loss, 280, {0: 1})
case("mse.weight", "mse", [randn(3, 9, 130), randn(3, 9, 130), torch.tensor([0.3, 1.0, 2.0])],
     lambda p, t, w: (w * ((p - t) ** 2).mean((1, 2))).mean(), 1170 * 3, {0: 1})
for name, (shape, k, n, r) in {"small": ((2, 3), 7, 5, 2), "tiles": ((1, 270), 5, 6, 3), "wide": ((1, 4), 270, 261, 4),
                               "rank1": ((3, 2, 2), 6, 6, 1)}.items():
    m = math.prod(shape)
    case(f"lora.{name}", "lora", [randn(*shape, n), randn(*shape, k), randn(r, k), randn(n, r)],
         lambda b, x, d, u: b + 0.4 * (x @ d.T) @ u.T, k + r, {1: n + r, 2: m + n, 3: m + k}, {"scale": 0.4})

case("mul", "mul", [randn(3, 4, 5), randn(3, 4, 5)], lambda x, m: x * m, 1, {0: 1})
case("mul.spread", "mul", [randn(2, 3, 5, 70), randn(2, 70)], lambda x, m: x * m[:, None, None], 1, {0: 1})
rows = torch.tensor([[0, 1, 2, 7, 8, 5], [6, 7, 7, 13, 0, 11]], dtype=torch.int32)
case("gather", "gather", [randn(2, 7, 130), rows], lambda x, r: x.reshape(-1, 130)[r.long()], 1, {0: 3})


def huber(p, t, d, w=None):
    d = d.view(-1, *[1] * (p.ndim - 1))
    e = (((p - t) ** 2 + d ** 2).sqrt() - d).mean(tuple(range(1, p.ndim)))
    return (e if w is None else e * w).mean()


case("huber", "huber", [randn(2, 5, 7, 4), randn(2, 5, 7, 4), torch.tensor([0.1, 3.0])], huber, 280, {0: 1})
case("huber.weight", "huber", [randn(3, 9, 70), randn(3, 9, 70), torch.tensor([0.01, 0.5, 1.0]), torch.tensor([0.3, 1.0, 2.0])],
     huber, 630 * 3, {0: 1})

for name, (shape, k, n, r) in {"rank6": ((2, 67), 33, 21, 6), "rank24": ((1, 70), 40, 35, 24)}.items():
    m = math.prod(shape)
    case(f"lora.{name}", "lora", [randn(*shape, n), randn(*shape, k), randn(r, k), randn(n, r)],
         lambda b, x, d, u: b + 0.4 * (x @ d.T) @ u.T, k + r, {1: n + r, 2: m + n, 3: m + k}, {"scale": 0.4})

save_file(out, sys.argv[1], metadata={"cases": json.dumps(cases)})
print(len(cases), "cases")

"""Trains the small model from nothing: VAE, judge, then text encoder and U-Net together. See README.md.

    python train.py --out DIR --bpe bpe_simple_vocab_16e6.txt.gz              everything, about 20 minutes on an H100
    python train.py --out DIR --bpe ... --resume DIR2 --limit 570 --decay 300  goes on from what another run left
    python train.py ... --tiny                                                a minute on a CPU: does the code run?

Stages are limited by time, not steps, so that a run fits the machine it is on; loss.csv has the steps made.
"""
import argparse
import copy
import csv
import math
import multiprocessing
import os
import time
import traceback

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import draw as D
import nets as N
import prompts as P
import scene as S

BORN = time.time()


def options():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True)
    a.add_argument("--bpe", required=True, help="bpe_simple_vocab_16e6.txt.gz of OpenAI's CLIP")
    a.add_argument("--resume", help="folder of an earlier --out")
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--scenes", type=int, default=256_000)
    a.add_argument("--vae-seconds", type=float, default=240)
    a.add_argument("--vae-from", help="a VAE to train on from")
    a.add_argument("--judge-from", help="a judge that is trained already")
    a.add_argument("--judge-seconds", type=float, default=75)
    a.add_argument("--limit", type=float, default=1250, help="seconds for the whole run")
    a.add_argument("--decay", type=float, default=400, help="seconds at the end in which the learning rate falls to 0")
    a.add_argument("--batch", type=int, default=512)
    a.add_argument("--ema", type=float, default=0.9995)
    a.add_argument("--mix", type=float, nargs=3, default=S.MIX, help="see scene.MIX")
    a.add_argument("--lr", type=float, default=1.2e-3)
    a.add_argument("--hurry", action="store_true", help="only train: no test of the judge, no sheets, no samples")
    a.add_argument("--tiny", action="store_true")
    o = a.parse_args()
    if o.tiny:
        o.scenes, o.vae_seconds, o.judge_seconds, o.limit, o.decay, o.batch = 96, 6, 2, 60, 5, 8
    o.device = "cuda" if torch.cuda.is_available() and not o.tiny else "cpu"
    os.makedirs(o.out, exist_ok=True)
    S.MIX[:] = o.mix
    return o


class Log:
    """Rows of (stage, step, seconds, value, value 2) kept for loss.csv, and a line on the screen now and then."""

    def __init__(self, path):
        self.path, self.rows, self.said = path, [], 0

    def add(self, stage, step, *values):
        self.rows.append([stage, step, round(time.time() - BORN, 1), *[f"{v:.5g}" for v in values]])
        if time.time() - self.said > 10:
            self.said = time.time()
            print(*self.rows[-1], flush=True)

    def write(self):
        with open(self.path, "w", newline="") as f:
            csv.writer(f).writerows([["stage", "step", "seconds", "value", "value2"], *self.rows])


def say(*a):
    print(f"[{time.time() - BORN:6.1f}]", *a, flush=True)


class Trainer:
    """Mixed precision, CUDA graph, AdamW and moving average for one loss function.

    make_loss(work) gets copies of the modules (bf16 on a GPU, but float where keep_float says) and returns
    loss(*inputs) -> (loss, figures...). Forward and backward are captured once as a CUDA graph and replayed, because a
    small network's thousands of kernels take longer to launch than to run. torch.compile is as fast a step, but spends
    two to three minutes compiling, which is a fifth of the whole training.
    """

    def __init__(self, modules, keep_float, make_loss, lr, decay, dev):
        self.dev, self.lr = dev, lr
        low = torch.bfloat16 if dev == "cuda" else torch.float32
        work = [copy.deepcopy(m) if m in keep_float else copy.deepcopy(m).to(low) for m in modules]
        self.loss, self.copies = make_loss(*work), work
        self.params = [p for m in modules for p in m.parameters()]
        self.work = [p for m in work for p in m.parameters()]
        for p in self.params:
            p.grad = torch.zeros_like(p)
        wide = [p for p in self.params if p.dim() > 1]
        flat = [p for p in self.params if p.dim() <= 1]
        self.opt = torch.optim.AdamW([{"params": wide, "weight_decay": 0.01}, {"params": flat, "weight_decay": 0.0}],
                                     lr=lr, betas=(0.9, 0.99), fused=dev == "cuda")
        self.decay, self.n, self.graph = decay, 0, None
        self.mean = [p.detach().clone() for p in self.params]

    def forward_backward(self, inputs):
        for p in self.work:
            p.grad = None
        out = self.loss(*inputs)
        out[0].backward()
        return [v.detach() for v in out]

    def capture(self, inputs):
        self.inputs = [v.clone() for v in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.forward_backward(self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.out = self.forward_backward(self.inputs)
            self.graph = graph
            say("captured", self.loss.__name__)
        except Exception:  # slower, not wrong
            traceback.print_exc()
            torch.cuda.synchronize()
            self.graph = False
            say("not captured:", self.loss.__name__)

    def step(self, inputs, rate):
        """One step at learning rate lr * rate. Returns what the loss function returned."""
        if self.dev == "cuda" and self.graph is None:
            self.capture(inputs)
        if self.graph:
            torch._foreach_copy_(self.inputs, list(inputs))
            self.graph.replay()
            out = self.out
        else:
            out = self.forward_backward(inputs)
        with torch.no_grad():
            torch._foreach_copy_([p.grad for p in self.params], [p.grad for p in self.work])
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            for g in self.opt.param_groups:
                g["lr"] = self.lr * rate
            self.opt.step()
            torch._foreach_copy_(self.work, self.params)
            self.n += 1
            torch._foreach_lerp_(self.mean, self.params, 1 - min(self.decay, (1 + self.n) / (10 + self.n)))
        return out

    def finish(self, modules):
        """Moves running statistics (batch norm) from the working copies back to the modules."""
        for m, w in zip(modules, self.copies):
            for b, c in zip(m.buffers(), w.buffers()):
                b.copy_(c)

    @torch.no_grad()
    def swap(self):
        """Exchanges parameters and their averages."""
        for p, m in zip(self.params, self.mean):
            p.data, m.data = m.data, p.data


def cosine(done, hold):
    """1 while done < hold, then falling to 0 at done = 1."""
    return 1.0 if done < hold else 0.5 + 0.5 * math.cos(math.pi * min(1, (done - hold) / (1 - hold)))


# ---------------------------------------------------------------- data

def one_chunk(job):
    seed, n, bpe = job
    return S.make(seed, n, 4, S.Tokens(bpe))


def scenes(o, n, seed):
    """(dict of tensors on the device, token numbers int16-safe int32 [n, 4, 77]); made by all cores."""
    chunk = max(64, min(4000, n // 16))
    jobs = [(seed * 1_000_003 + i, min(chunk, n - i), o.bpe) for i in range(0, n, chunk)]
    if o.tiny:
        parts = [one_chunk(j) for j in jobs]
    else:
        with multiprocessing.get_context("fork").Pool() as pool:
            parts = pool.map(one_chunk, jobs, chunksize=1)
    a = {k: torch.from_numpy(np.concatenate([p[0][k] for p in parts])) for k in parts[0][0]}
    return a, torch.from_numpy(np.concatenate([p[1] for p in parts]).astype(np.int32))


def drawn(a, o):
    n = len(a["bg"])
    out = torch.empty(n, 3, 128, 128, dtype=torch.uint8, device=o.device)
    for i in range(0, n, 8192):
        out[i:i + 8192] = D.draw({k: v[i:i + 8192].to(o.device) for k, v in a.items()})
    return out


def pictures(u8):
    return u8.float() / 127.5 - 1


# ---------------------------------------------------------------- VAE

def edges(x):
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def likeness(y, x):
    """L1 of colours and of edges at three scales: the edge terms keep outlines sharp. The square makes a small thing
    that is missing (an eye, a snow flake) cost more than a large ground that is a shade off."""
    loss = (y - x).abs().mean() + 3 * ((y - x) ** 2).mean()
    for scale in range(3):
        for g, h in zip(edges(y), edges(x)):
            loss = loss + 0.7 * (g - h).abs().mean()
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return loss


def mosaic(z):
    """Four quarters [n, c, h, w] to one of [n/4, c, h, w]: each shrunk to half, laid out 2 by 2."""
    s = F.avg_pool2d(z, 2)
    a, b, c, d = s.chunk(4)
    return torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2)


def train_vae(o, vae, u8, log):
    """Ordinary VAE loss, and: latents shrunk to half size must decode to the picture shrunk to half size, which makes
    latents smooth and so easy for a small U-Net. The weight of the KL term is steered so that the posterior's
    deviation is 6 % of the latents': the decoder then forgives errors of that size."""
    dev, batch = o.device, 64 if not o.tiny else 8
    kl_weight = torch.tensor(1e-3 if not o.vae_from else 3e-3, device=dev)

    def make(vae):
        dtype = vae.quant_conv.weight.dtype

        def vae_loss(x, noise):
            mean, logvar = vae.encode(x.to(dtype))
            mean, logvar = mean.float(), logvar.float().clamp(-20, 4)
            z = mean + noise * (0.5 * logvar).exp()
            y = vae.decode(torch.cat([z, mosaic(z)]).to(dtype)).float()
            n = len(x)
            kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
            loss = likeness(y[:n], x) + 0.3 * likeness(y[n:], mosaic(x)) + kl_weight * kl
            return loss, (y[:n] - x).abs().mean(), (logvar.exp().mean() / mean.var()).sqrt()

        return vae_loss

    job, start, n = Trainer([vae], [], make, 1.5e-3 if not o.vae_from else 8e-4, 0.998, dev), None, 0
    while True:
        x = pictures(u8[torch.randint(len(u8), (batch,), device=dev)])
        done = (time.time() - start) / o.vae_seconds if start else 0
        if done >= 1:
            break
        loss, l1, ratio = job.step([x, torch.randn(batch, 4, 16, 16, device=dev)],
                                   min(1, (n + 1) / 100) * cosine(done, 0.3))
        start = start or time.time()
        if n > 300 or o.vae_from:
            kl_weight.mul_(torch.where(ratio < 0.06, 1.004, 1 / 1.004)).clamp_(1e-5, 2e-2)
        if n % 25 == 0:
            log.add("vae", n, l1.item(), ratio.item())
        n += 1
    job.swap()
    say("vae steps", n, "kl weight", kl_weight.item())


def halved(o, module):
    """A copy for inference, bf16 on a GPU."""
    return copy.deepcopy(module).bfloat16() if o.device == "cuda" else module


@torch.no_grad()
def encode(o, vae, u8):
    """Latents times 0.18215: mean and deviation, half precision."""
    n, fast = len(u8), halved(o, vae)
    mean = torch.empty(n, 4, 16, 16, dtype=torch.float16, device=o.device)
    std = torch.empty_like(mean)
    for i in range(0, n, 512):
        m, v = fast.encode(pictures(u8[i:i + 512]).to(fast.quant_conv.weight.dtype))
        mean[i:i + 512] = m.float() * N.SCALING
        std[i:i + 512] = (0.5 * v.float()).exp() * N.SCALING
    return mean, std


@torch.no_grad()
def whitened(o, vae, u8):
    mean, _ = encode(o, vae, u8[:20000])
    m = mean.float() / N.SCALING
    N.whiten(vae, m.mean((0, 2, 3)), m.std((0, 2, 3)))


@torch.no_grad()
def decode(o, vae, z):
    """Scaled latents to uint8 pictures."""
    out, fast = [], halved(o, vae)
    for i in range(0, len(z), 512):
        y = fast.decode((z[i:i + 512].float() / N.SCALING).to(fast.quant_conv.weight.dtype))
        out.append(((y.float().clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8))
    return torch.cat(out)


# ---------------------------------------------------------------- the judge

def spoil(x):
    """Noise and blur, so that the judge reads shapes and not the rasteriser's exact pixels."""
    n = len(x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, (torch.rand(n, 1, 1, 1, device=x.device) * 1.6 - 0.6).clamp_min(0))
    return x + torch.randn_like(x) * torch.rand(n, 1, 1, 1, device=x.device) * 0.12


def train_judge(o, judge, vae, u8, a, log):
    dev, batch = o.device, 512 if not o.tiny else 16
    keep = min(len(u8) // 2 * 2, 240_000)
    count, place = P.targets({k: v[:keep].to(dev) for k, v in a.items()})
    ground = a["bg"][:keep].to(dev)
    half = keep // 2  # the first half is seen through the VAE, the second as drawn
    seen = torch.cat([decode(o, vae, encode(o, vae, u8[i:i + 4096])[0]) for i in range(0, half, 4096)])[:half]
    judge.train()

    def make(judge):
        dtype = judge.hidden.weight.dtype

        def judge_loss(x, c, p, g):
            pc, pp, pg = judge(x.to(dtype))
            some = (c > 0).float()
            loss = F.cross_entropy(pc.float().flatten(0, 1), c.flatten(), reduction="sum") / len(x)
            loss = loss + F.cross_entropy(pg.float(), g)
            return (loss + 10 * ((pp.float() - p).abs().mean(2) * some).sum() / some.sum().clamp_min(1),)

        return judge_loss

    job, start, n = Trainer([judge], [judge], make, 2e-3, 0.99, dev), None, 0
    while True:
        i = torch.randint(keep, (batch,), device=dev)
        x = torch.where((i < half)[:, None, None, None], seen[i.clamp_max(half - 1)], u8[i])
        done = (time.time() - start) / o.judge_seconds if start else 0
        if done >= 1:
            break
        loss, = job.step([spoil(pictures(x)), count[i], place[i], ground[i]], min(1, (n + 1) / 100) * cosine(done, 0))
        start = start or time.time()
        if n % 25 == 0:
            log.add("judge", n, loss.item())
        n += 1
    job.finish([judge])
    judge.eval()
    say("judge steps", n)


@torch.no_grad()
def answers(o, judge, u8):
    c, p = [], []
    for i in range(0, len(u8), 512):
        count, place, _ = judge(pictures(u8[i:i + 512]))
        c.append(count.float())
        p.append(place.float())
    return torch.cat(c).cpu(), torch.cat(p).cpu()


def test_judge(o, judge, vae, a):
    """How often the judge is wholly right (every pair's count) on scenes that nothing was trained on."""
    u8 = drawn(a, o)
    count, _ = P.targets(a)
    for name, pics in (("drawn", u8), ("through the VAE", decode(o, vae, encode(o, vae, u8)[0]))):
        c, _ = answers(o, judge, pics)
        seen = c.argmax(2)
        say(f"judge on {len(u8)} new scenes, {name}: pairs right {((seen > 0) == (count > 0)).all(1).float().mean():.4f}, "
            f"pairs and counts right {(seen == count).all(1).float().mean():.4f}")
    return u8


# ---------------------------------------------------------------- diffusion

def alphas(dev):
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(dev)


def train_unet(o, unet, text, mean, std, ids, log):
    """eps prediction, 10 % empty captions. A little of the noise is the same all over a channel: Stable Diffusion's
    schedule leaves 0.5 % of the variance at its last step, and without that offset the model learns to read the mean
    colour there instead of in the caption. For the same reason late steps are drawn more often and weighted more
    (snr^-0.7 up to 20): what stands left or right is decided there, yet it moves the plain eps loss by 1e-5. Early
    steps are weighted 5 / snr, so that all steps have losses of one size."""
    dev = o.device
    ac = alphas(dev)
    snr = ac / (1 - ac)
    weight = (5 / snr).clamp_max(1) * (snr ** -0.7).clamp(1, 20)
    nothing = torch.full((77,), S.Tokens.END, dtype=torch.int32, device=dev)
    nothing[0] = S.Tokens.START

    def make(unet, text):
        dtype = unet.conv_in.weight.dtype

        def unet_loss(z, noise, t, caps):
            a = ac[t][:, None, None, None]
            eps = unet((a.sqrt() * z + (1 - a).sqrt() * noise).to(dtype), t, text(caps).to(dtype))
            each = ((eps.float() - noise) ** 2).mean((1, 2, 3))
            return (each * weight[t]).mean(), each.mean()

        return unet_loss

    job, first = Trainer([unet, text], [text], make, o.lr, o.ema, dev), 0
    if o.resume and os.path.exists(os.path.join(o.resume, "weights.safetensors")):
        first = restore(o, unet, text, job)
    n, b, reserve = first, o.batch, 5 if o.tiny else 3 if o.hurry else 12
    start, total = time.time(), torch.zeros(2, device=dev)
    while True:
        left = o.limit - (time.time() - BORN) - reserve
        if left <= 0:
            break
        i = torch.randint(len(mean), (b,), device=dev)
        z = mean[i].float() + std[i].float() * torch.randn(b, 4, 16, 16, device=dev)
        noise = torch.randn_like(z) + 0.05 * torch.randn(b, 4, 1, 1, device=dev)
        t = torch.randint(1000, (b,), device=dev)
        t = torch.where(torch.rand(b, device=dev) < 0.4, 800 + t // 5, t)
        caps = ids[i, torch.randint(ids.shape[1], (b,), device=dev)]
        caps = torch.where(torch.rand(b, 1, device=dev) < 0.1, nothing, caps)
        rate = min(1, (n - first + 1) / (100 if first else 300)) * (min(1, left / o.decay) if o.decay else 1)
        total += torch.stack(job.step([z, noise, t, caps], rate))
        n += 1
        if n % 50 == 0:
            log.add("unet", n, *(total / 50).tolist())
            total.zero_()
    say("unet steps", n - first, "in", round(time.time() - start, 1), "s")
    return job, n


@torch.no_grad()
def sample(o, unet, text, tokens, texts, steps=25, guidance=5.0, seed=7):
    """DDIM with classifier-free guidance; scaled latents."""
    dev, ac, fast = o.device, alphas(o.device), halved(o, unet)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(len(texts), 4, 16, 16, generator=g).to(dev)
    caps = torch.tensor([tokens.ids(t) for t in texts] + [tokens.ids("")] * len(texts), device=dev)
    context = text(caps).to(fast.conv_in.weight.dtype)
    for k in reversed(range(steps)):
        t = k * (1000 // steps) + 1
        e = fast(torch.cat([x, x]).to(context.dtype), torch.full((2 * len(x),), t, device=dev), context).float()
        a, b = e.chunk(2)
        eps = b + guidance * (a - b)
        prev = ac[t - 1000 // steps] if k else ac[0]
        x0 = (x - (1 - ac[t]).sqrt() * eps) / ac[t].sqrt()
        x = prev.sqrt() * x0 + (1 - prev).sqrt() * eps
    return x


# ---------------------------------------------------------------- files

def named(unet, text):
    return {**{"unet." + k: v for k, v in unet.named_parameters()}, **{"text." + k: v for k, v in text.named_parameters()}}


def save(o, name, tensors, meta=None):
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, os.path.join(o.out, name), meta)


def save_unet(o, unet, text, job, n):
    """weights: to go on from; ema: the result; adam: second moments only, in bf16, as they matter to within 1 %."""
    names = named(unet, text)
    order = {id(p): k for k, p in names.items()}
    save(o, "weights.safetensors", names, {"steps": str(n)})
    save(o, "ema.safetensors", {order[id(p)]: m for p, m in zip(job.params, job.mean)}, {"steps": str(n)})
    save(o, "adam.safetensors", {order[id(p)]: s["exp_avg_sq"].bfloat16() for p, s in job.opt.state.items()})


def restore(o, unet, text, job):
    from safetensors import safe_open
    path = os.path.join(o.resume, "weights.safetensors")
    with safe_open(path, "pt") as f:
        n = int(f.metadata()["steps"])
    w, e, v = (load_file(os.path.join(o.resume, k + ".safetensors")) for k in ("weights", "ema", "adam"))
    order = {id(p): k for k, p in named(unet, text).items()}
    with torch.no_grad():
        for p, m in zip(job.params, job.mean):
            k = order[id(p)]
            p.copy_(w[k])
            m.copy_(e[k])
            job.opt.state[p] = {"step": torch.tensor(1000.0, device=p.device if o.device == "cuda" else "cpu"),
                            "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p).copy_(v[k])}
        torch._foreach_copy_(job.work, job.params)
    job.n = n
    say("resumed at step", n)
    return n


def sheet(u8, path, columns=16):
    from PIL import Image
    n, size = len(u8), u8.shape[-1] + 4
    im = Image.new("RGB", (columns * size, -(-n // columns) * size), (255, 255, 255))
    for i, p in enumerate(u8.cpu()):
        im.paste(Image.fromarray(p.permute(1, 2, 0).numpy()), ((i % columns) * size + 2, (i // columns) * size + 2))
    im.save(path)


def load_or_train(o, vae, judge, u8, a, log):
    path = lambda f: os.path.join(o.resume or "", f)
    if o.resume and os.path.exists(path("vae.safetensors")):
        vae.load_state_dict(load_file(path("vae.safetensors")))
    else:
        if o.vae_from:
            vae.load_state_dict(load_file(o.vae_from))
            whole = torch.full((4,), N.SCALING ** -2, device=o.device)
            N.whiten(vae, torch.zeros_like(whole), whole)  # back to variance 1, for which the KL term is made
        train_vae(o, vae, u8, log)
        whitened(o, vae, u8)
    save(o, "vae.safetensors", vae.state_dict())
    known = o.judge_from or path("judge.safetensors")
    if (o.resume or o.judge_from) and os.path.exists(known):
        judge.unpack(load_file(known))
    else:
        train_judge(o, judge, vae, u8, a, log)
    judge.eval()
    save(o, "judge.safetensors", judge.packed())


def main():
    o = options()
    tokens = S.Tokens(o.bpe)
    a, ids = scenes(o, o.scenes, o.seed)  # before CUDA starts: the workers are forked
    test, _ = scenes(o, 32 if o.tiny or o.hurry else 4096, o.seed + 999)
    torch.manual_seed(o.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not o.hurry
    say("scenes", len(ids), "device", o.device)
    u8 = drawn(a, o)
    say("drawn")
    log = Log(os.path.join(o.out, "loss.csv"))
    to = lambda m: m.to(o.device).to(memory_format=torch.channels_last)
    vae, judge = to(N.Vae()), to(N.Judge())
    text, unet = N.TextEncoder(tokens.grammar()).to(o.device), to(N.UNet())
    load_or_train(o, vae, judge, u8, a, log)
    test = {k: v.to(o.device) for k, v in test.items()}
    if not o.hurry:
        new = test_judge(o, judge, vae, {k: v.cpu() for k, v in test.items()})
        sheet(torch.cat([new[:32], decode(o, vae, encode(o, vae, new[:32])[0])]), os.path.join(o.out, "vae.png"))
    mean, std = encode(o, vae, u8)
    say("encoded: mean", mean.float().mean((0, 2, 3)).tolist(), "deviation", mean.float().std((0, 2, 3)).tolist(),
        "posterior", std.float().mean().item())
    del u8
    log.write()
    torch.backends.cudnn.benchmark = True
    job, n = train_unet(o, unet, text, mean, std, ids.to(o.device), log)
    save_unet(o, unet, text, job, n)
    log.write()
    if o.hurry:
        return
    job.swap()
    asked = P.two_hundred() if not o.tiny else P.two_hundred()[::25]
    made = decode(o, vae, sample(o, unet, text, tokens, [p.text for p in asked], steps=25 if not o.tiny else 4))
    table, verdict = P.score(asked, *answers(o, judge, made))
    print(P.table_text(table), flush=True)
    sheet(made[:160], os.path.join(o.out, "samples.png"))
    say("done")


if __name__ == "__main__":
    main()

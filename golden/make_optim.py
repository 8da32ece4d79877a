#!/usr/bin/env python3
"""usage: make_optim.py OUT.safetensors SCHEDULES.txt

20 steps of each optimizer on gradients that come from torch.rand, so that a test can draw them again; and whole runs of each
learning rate schedule. Oracles: torch.optim, lion-pytorch, transformers, prodigyopt, dadaptation, bitsandbytes; schedules of
diffusers and transformers.

Tensors: NAME.TENSOR.STEP are params after that many steps; NAME.d the factors of the adapting ones. For 8-bit optimizers, for
the tensor with 8-bit states also NAME.TENSOR.STEP.codes1, .scale1 (, 2): so that a test can start from the oracle's state.

bitsandbytes' CPU library rounds to codes by a table of 65,536 places, which is coarser than its map near 0. Here the code is the
nearest value of its map, as its portable implementation has it (bitsandbytes/backends/default/ops.py): the same rule is
written with torch below and put in the library's place.
"""
import sys

import torch
from safetensors.torch import save_file

STEPS = 20
SMALL = [(8, 48), (33,), (5, 4, 3, 3), (40, 13)]
WIDE = [(8, 48), (16, 281)]  # the second has 4,496 elements: 17 blocks of 256 and a part
SAVED = (1, 2, 9, 10, 19, 20)

out = {}


def draw(shapes):
    """Params, and a function from the step's number to gradients: a constant part, and a new one each step."""
    torch.manual_seed(7)
    params = [torch.rand(s) - 0.5 for s in shapes]
    constant = [torch.rand(s) - 0.5 for s in shapes]
    grads = [[c + (torch.rand(c.shape) - 0.5) * 0.5 for c in constant] for _ in range(STEPS)]
    grads[0][1].zero_()  # as lora_down has it in the first step
    return params, grads


def run(name, make, rate, shapes=SMALL, groups=True, saved=(2, 20), after=None):
    """make(list of {"params": .., "lr": ..}): an optimizer. The first half of the tensors is group 0 at `rate`, the others
    group 1 at half of it; both fall by 1/40 of the start each step."""
    params, grads = draw(shapes)
    params = [torch.nn.Parameter(p) for p in params]
    half = len(params) // 2
    rates = [rate, rate / 2 if groups else rate]
    opt = make([{"params": params[:half], "lr": rates[0]}, {"params": params[half:], "lr": rates[1]}])
    factors = []
    for step in range(STEPS):
        for g, r in zip(opt.param_groups, rates):
            if g["lr"] is not None:
                g["lr"] = r * (1 - step / 40)
        for p, g in zip(params, grads[step]):
            p.grad = g.clone()
        opt.step()
        if "d" in opt.param_groups[0]:
            factors.append(opt.param_groups[0]["d"])
        if step + 1 in saved:
            for i, p in enumerate(params):
                out[f"{name}.{i}.{step + 1}"] = p.detach().clone()
            if after:
                after(name, step + 1, opt, params)
    if factors:
        out[f"{name}.d"] = torch.tensor(factors, dtype=torch.float64)


def keep_codes(name, step, opt, params):
    state = opt.state[params[1]]
    for k in (1, 2):
        if f"state{k}" in state:
            out[f"{name}.1.{step}.codes{k}"] = state[f"state{k}"].reshape(-1).clone()
            out[f"{name}.1.{step}.scale{k}"] = state[f"absmax{k}"].clone()


def nearest(x, code, scale_out, codes_out, blocksize):
    flat, codes = x.reshape(-1), codes_out.reshape(-1)
    for b, at in enumerate(range(0, flat.numel(), blocksize)):
        part = flat[at:at + blocksize]
        scale = part.abs().max()
        scale_out[b] = scale
        if scale == 0:
            codes[at:at + blocksize] = 0
            continue
        codes[at:at + blocksize] = (part / scale - code[:, None]).abs().argmin(0).to(torch.uint8)
    codes_out.copy_(codes.reshape(codes_out.shape))


def optimizers():
    import bitsandbytes as bnb
    import bitsandbytes.backends.cpu.ops as bnb_cpu
    from dadaptation import DAdaptAdam
    from lion_pytorch import Lion
    from prodigyopt import Prodigy
    from transformers.optimization import Adafactor

    bnb_cpu._quant_blockwise_fp32_direct = nearest
    out["map.signed"] = bnb.functional.create_dynamic_map(True)
    out["map.unsigned"] = bnb.functional.create_dynamic_map(False)

    run("adamw", lambda p: torch.optim.AdamW(p), 1e-2)
    run("adamw_args", lambda p: torch.optim.AdamW(p, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2), 1e-2)
    run("lion", lambda p: Lion(p), 1e-3)
    run("lion_args", lambda p: Lion(p, betas=(0.95, 0.98), weight_decay=0.5), 1e-3)
    run("sgd", lambda p: torch.optim.SGD(p), 0.1)
    run("sgd_momentum", lambda p: torch.optim.SGD(p, momentum=0.8, dampening=0.1, weight_decay=0.1), 0.1)
    run("sgd_nesterov", lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True), 0.1)

    def relative(p, **k):
        return Adafactor([{"params": g["params"]} for g in p], **k)

    run("adafactor", relative, 0)
    run("adafactor_warmup", lambda p: relative(p, warmup_init=True, scale_parameter=False), 0)
    run("adafactor_rate", lambda p: Adafactor(p, lr=1e-2, relative_step=False, scale_parameter=False, beta1=0.9,
                                              weight_decay=0.1, clip_threshold=0.5), 1e-2)
    run("prodigy", lambda p: Prodigy(p), 1.0, groups=False)
    run("prodigy_args", lambda p: Prodigy(p, betas=(0.9, 0.99), weight_decay=0.1, use_bias_correction=True, safeguard_warmup=True,
                                          d0=1e-4, d_coef=2.0, growth_rate=1.5), 1.0, groups=False)
    run("prodigy_coupled", lambda p: Prodigy(p, beta3=0.9, decouple=False, weight_decay=0.1, d0=1e-3), 1.0, groups=False)
    run("dadapt_adam", lambda p: DAdaptAdam(p), 1.0, groups=False)
    run("dadapt_adam_args", lambda p: DAdaptAdam(p, decouple=True, weight_decay=0.1, use_bias_correction=True, d0=1e-4,
                                                 growth_rate=1.2), 1.0, groups=False)
    run("adamw8bit", lambda p: bnb.optim.AdamW8bit(p), 1e-2, WIDE, saved=SAVED, after=keep_codes)
    run("lion8bit", lambda p: bnb.optim.Lion8bit(p, weight_decay=0.1), 1e-3, WIDE, saved=SAVED, after=keep_codes)


RATE, TOTAL = 3e-4, 60
OURS = ("warmup", "decay", "cycles", "power", "timescale", "min_ratio")


def line(library, name, rules="-", given=None, **ours):
    """One schedule's factors for TOTAL steps and a few more. given: the library's own arguments."""
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    s = library.TYPE_TO_SCHEDULER_FUNCTION[library.SchedulerType(name)](opt, **(given or {}))
    values = []
    for _ in range(TOTAL + 5):
        values.append(s.get_last_lr()[0] / RATE)
        opt.step()
        s.step()
    return " ".join([name, rules, *(repr(ours.get(k, 0)) for k in OURS), *("%.17g" % v for v in values)])


def schedules(path):
    import diffusers.optimization as D
    import transformers.optimization as T
    lines = [line(D, "piecewise_constant", "1:10,0.5:25,0.1:40,0.05", {"step_rules": "1:10,0.5:25,0.1:40,0.05"})]
    for warmup in (0, 7):
        w = {"num_warmup_steps": warmup}
        t = {**w, "num_training_steps": TOTAL}
        for library in (D, T):
            lines += [
                line(library, "constant_with_warmup", given=w, warmup=warmup),
                line(library, "linear", given=t, warmup=warmup),
                line(library, "cosine", given=t, warmup=warmup),
                line(library, "cosine_with_restarts", given=t, warmup=warmup),
                line(library, "cosine_with_restarts", given={**t, "num_cycles": 3}, warmup=warmup, cycles=3),
                line(library, "polynomial", given=t, warmup=warmup),
                line(library, "polynomial", given={**t, "power": 2.5}, warmup=warmup, power=2.5)]
        # sd-scripts gives half of --lr_scheduler_num_cycles to the next two
        lines += [
            line(T, "cosine_with_min_lr", given={**t, "num_cycles": 1.5, "min_lr_rate": 0.1}, warmup=warmup, cycles=3, min_ratio=0.1),
            line(T, "warmup_stable_decay", given={**t, "num_decay_steps": 20, "min_lr_ratio": 0.1}, warmup=warmup, decay=20,
                 min_ratio=0.1),
            line(T, "inverse_sqrt", given=w, warmup=warmup),
            line(T, "inverse_sqrt", given={**w, "timescale": 100}, warmup=warmup, timescale=100)]
    lines.append(line(T, "constant"))
    with open(path, "w") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    optimizers()
    save_file(out, sys.argv[1])
    schedules(sys.argv[2])

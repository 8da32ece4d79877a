#!/usr/bin/env python3
"""usage: make_samplers.py OUT.safetensors

Whole trajectories of diffusers' schedulers over a fixed analytic model. Which samplers depends on the diffusers that is
installed: with 0.10.2 those that sd-scripts v0.3.0 offers, configured as its gen_img_diffusers.py does; with a later one
those it did not have.

The schedulers run in float64 from their own float32 table of cumulative products, so that a difference is the tester's
rounding alone: 'np' of the scheduler's module is replaced by one whose float32 is float64, and randn by given numbers, as
gen_img_diffusers.py itself does.

Tensors: mean, deviation [n] of the model; start, init, noise [*, n]; and for CASE = sampler/prediction/steps/first:
CASE/t [evaluations] timesteps, CASE/scale [evaluations] factor on the model's input, CASE/x [evaluations + 1, n] latents
(for many steps only the last one, as CASE/last [n]).
"""
import sys

if len(sys.argv) > 2:
    sys.exit(__doc__)
sys.modules["transformers"] = None  # diffusers 0.10.2 would import one that does not know it

import importlib
import types

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file

OLD = diffusers.__version__.startswith("0.10.")
N = 12
rng = np.random.default_rng(7)
mean = rng.normal(size=N).astype(np.float32)
deviation = (0.3 + 0.5 * rng.random(N)).astype(np.float32)
start = rng.normal(size=N).astype(np.float32)
init = rng.normal(size=N).astype(np.float32)
noise = rng.normal(size=(80, N)).astype(np.float32)


def model(x, t, prediction):
    """The noise in x if the pictures were normal with `mean` and `deviation`, and a little that is not linear. t may be
    fractional: the schedule is the integral of beta(u) = (b0 + k u)^2."""
    b0, k = 0.00085**0.5, (0.012**0.5 - 0.00085**0.5) / 999
    bar = np.exp(-((b0 + k * (t + 1)) ** 3 - b0**3) / (3 * k))
    a, s = bar**0.5, (1 - bar) ** 0.5
    m, d = mean.astype(float), deviation.astype(float)
    eps = s * (x - a * m) / (a * a * d * d + s * s) + 0.05 * np.sin(3 * x)
    return eps if prediction == "epsilon" else (eps - s * x) / a


class Wide:
    """A module of numbers whose float32 is float64, and whose randn is a given list"""

    def __init__(self, module):
        self.module, self.drawn = module, 0
        self.float32 = module.float64

    def randn(self, *args, **kwargs):
        self.drawn += 1
        return torch.from_numpy(noise[self.drawn - 1].astype(float))

    def __getattr__(self, name):
        return getattr(self.module, name)


COMMON = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
BASE = dict(COMMON, steps_offset=1, clip_sample=False)
SAMPLERS_OLD = {
    "ddim": ("ddim", "DDIMScheduler", BASE),
    "pndm": ("pndm", "PNDMScheduler", dict(COMMON, steps_offset=1)),
    "lms": ("lms_discrete", "LMSDiscreteScheduler", COMMON),
    "euler": ("euler_discrete", "EulerDiscreteScheduler", COMMON),
    "euler_a": ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", COMMON),
    "heun": ("heun_discrete", "HeunDiscreteScheduler", COMMON),
    "dpm_2": ("k_dpm_2_discrete", "KDPM2DiscreteScheduler", COMMON),
    "dpm_2_a": ("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler", COMMON),
    "dpmsolver": ("dpmsolver_multistep", "DPMSolverMultistepScheduler", dict(COMMON, algorithm_type="dpmsolver")),
    "dpmsolver++": ("dpmsolver_multistep", "DPMSolverMultistepScheduler", dict(COMMON, algorithm_type="dpmsolver++")),
    "dpmsingle": ("dpmsolver_singlestep", "DPMSolverSinglestepScheduler", COMMON),
}
MULTI = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
SDE = dict(COMMON, algorithm_type="sde-dpmsolver++")
SAMPLERS_NEW = {
    "plms": ("pndm", "PNDMScheduler", dict(COMMON, steps_offset=1, skip_prk_steps=True)),
    "dpmpp_2m": (*MULTI, COMMON),
    "dpmpp_2m_karras": (*MULTI, dict(COMMON, use_karras_sigmas=True)),
    "dpmpp_2m_sde": (*MULTI, SDE),
    "dpmpp_2m_sde_karras": (*MULTI, dict(SDE, use_karras_sigmas=True)),
    "dpmpp_sde": ("dpmsolver_sde", "DPMSolverSDEScheduler", COMMON),
    "dpmpp_sde_karras": ("dpmsolver_sde", "DPMSolverSDEScheduler", dict(COMMON, use_karras_sigmas=True)),
    "unipc": ("unipc_multistep", "UniPCMultistepScheduler", COMMON),
    "lcm": ("lcm", "LCMScheduler", COMMON),
}
TWICE = ("heun", "dpm_2", "dpm_2_a", "dpmpp_sde", "dpmpp_sde_karras")  # two evaluations a step, one in the last


class Brownian:
    """Increments of one path over the levels of noise, divided by the root of their length; the path's pieces are made of
    the given numbers, the first half of each step before the second."""

    def __init__(self, drawn):
        self.drawn = drawn

    def __call__(self, sigma, sigma_next):
        sigma, sigma_next = float(sigma), float(sigma_next)
        if self.drawn.drawn % 2 == 0:
            z = self.drawn.randn()
            self.first = (sigma, sigma_next, z)
            return z
        at, middle, z = self.first
        assert at == sigma and sigma > middle > sigma_next
        z2 = self.drawn.randn()
        return (z * (at - middle) ** 0.5 + z2 * (middle - sigma_next) ** 0.5) / (at - sigma_next) ** 0.5


def widen(s, module):
    """Replaces the float32 tables by float64 ones from the float32 cumulative products."""
    s.alphas_cumprod = s.alphas_cumprod.double()
    if hasattr(s, "alpha_t"):
        s.alpha_t, s.sigma_t = s.alphas_cumprod.sqrt(), (1 - s.alphas_cumprod).sqrt()
        s.lambda_t = s.alpha_t.log() - s.sigma_t.log()
    if hasattr(s, "final_alpha_cumprod"):
        s.final_alpha_cumprod = s.final_alpha_cumprod.double()
    module.np = Wide(np)
    module.torch = Wide(torch)
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = module.torch.randn
    return module.torch


def prepare(name, prediction, steps, first):
    file, cls, config = SAMPLERS[name]
    module = importlib.import_module("diffusers.schedulers.scheduling_" + file)
    module.np, module.torch = np, torch
    s = getattr(module, cls)(**config, prediction_type=prediction)
    drawn = widen(s, module)
    s.set_timesteps(steps)
    if "dpmpp_sde" in name:
        s.noise_sampler = Brownian(drawn)
    at = first * 2 if name in TWICE else first
    if name in ("pndm", "plms") and first:  # the same formulas over what is left of the steps
        s._timesteps = s._timesteps[: steps - first]
        if name == "pndm":
            half = np.tile(np.array([0, 1000 // steps // 2]), 4)
            prk = s._timesteps[-4:].repeat(2) + half
            s.prk_timesteps = prk[:-1].repeat(2)[1:-1][::-1].copy()
            s.plms_timesteps = s._timesteps[:-3][::-1].copy()
        else:
            s.prk_timesteps = np.array([])
            s.plms_timesteps = np.concatenate([s._timesteps[:-1], s._timesteps[-2:-1], s._timesteps[-1:]])[::-1].copy()
        s.timesteps = torch.from_numpy(np.concatenate([s.prk_timesteps, s.plms_timesteps]).astype(np.int64))
        at = 0
    if hasattr(s, "set_begin_index"):
        s.set_begin_index(at)
    return s, drawn, s.timesteps[at:]


def run(name, prediction, steps, first):
    s, drawn, timesteps = prepare(name, prediction, steps, first)
    ve = name.split("_")[0] in ("lms", "euler", "heun", "dpm") or "dpmpp_sde" in name
    t0 = timesteps[0]
    if first == 0:
        x = torch.from_numpy(start.astype(float)) * float(s.sigmas.max() if ve else 1.0)
    elif ve:
        x = torch.from_numpy(init.astype(float)) + float(s.sigmas[2 * first if name in TWICE else first]) * start.astype(float)
    else:
        bar = float(s.alphas_cumprod[int(t0)])
        if name.startswith(("dpmpp", "unipc")):
            bar = 1 / (float(s.sigmas[first]) ** 2 + 1)
        x = torch.from_numpy(bar**0.5 * init.astype(float) + (1 - bar) ** 0.5 * start)
    x = x[None]  # a batch of one
    xs, ts, scales = [x[0].clone()], [], []
    for e, t in enumerate(timesteps):
        inp = s.scale_model_input(x, t)
        k = int(torch.argmax(x.abs()))
        out = torch.from_numpy(model(inp.numpy(), float(t), prediction))
        # left alone, it weighs as if there were four slopes even where img2img has just begun and there is one
        extra = dict(order=min(4, e + 1)) if name == "lms" else {}
        before = drawn.drawn
        ts.append(float(t))
        scales.append(float(inp[0, k] / x[0, k]))
        x = s.step(out, t, x, **extra).prev_sample
        drawn.drawn = max(drawn.drawn, before) if "dpmpp_sde" in name else e + 1  # the e-th evaluation has the e-th noise
        xs.append(x[0].clone())
    return ts, scales, xs


def main():
    out = {"mean": mean, "deviation": deviation, "start": start, "init": init, "noise": noise}
    for name in SAMPLERS:
        for prediction in ("epsilon", "v_prediction"):
            for steps, first in ((2, 0), (5, 0), (20, 0), (37, 0), (20, 8), (8, 3)):
                if name == "pndm" and steps < 4:
                    continue
                if name == "dpmsingle" and first % 2:
                    continue  # 0.10.2 stops with an error when it begins in the middle of a pair
                ts, scales, xs = run(name, prediction, steps, first)
                case = f"{name}/{prediction}/{steps}/{first}"
                xs = torch.stack(xs).numpy()
                assert np.isfinite(xs).all(), case
                out[case + "/t"] = np.array(ts, dtype=np.float32)
                if steps == 37:
                    out[case + "/last"] = xs[-1].astype(np.float32)
                else:
                    out[case + "/x"] = xs.astype(np.float32)
                    out[case + "/scale"] = np.array(scales, dtype=np.float32)
    out = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in out.items()}
    save_file(out, sys.argv[1])


SAMPLERS = SAMPLERS_OLD if OLD else SAMPLERS_NEW
main()

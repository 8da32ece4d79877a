#!/usr/bin/env python3
"""usage: make_schedule.py OUT.safetensors

diffusers' noise schedule for Stable Diffusion, as it is and rescaled to zero terminal SNR; noised latents and velocities at a
few timesteps; min-SNR weights, written here from the paper's formula in float64.
"""
import sys

import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file

torch.manual_seed(3)
kind = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
plain = DDPMScheduler(**kind)
zero = DDPMScheduler(**kind, rescale_betas_zero_snr=True)
out = {"beta": plain.betas, "bar": plain.alphas_cumprod, "zero_beta": zero.betas, "zero_bar": zero.alphas_cumprod}
x0, noise = torch.randn(100), torch.randn(100)
t = torch.tensor([0, 1, 499, 500, 998, 999])
out |= {"x0": x0, "noise": noise, "t": t.to(torch.int32)}
out["noised"] = plain.add_noise(x0.expand(6, 100), noise.expand(6, 100), t)
out["velocity"] = plain.get_velocity(x0.expand(6, 100), noise.expand(6, 100), t)
bar = plain.alphas_cumprod.double()
snr = bar / (1 - bar)
out["snr"] = snr
least = snr.clamp(max=5)
out["min_snr_eps"], out["min_snr_v"], out["min_snr_x0"] = least / snr, least / (snr + 1), least
save_file({k: v.contiguous() for k, v in out.items()}, sys.argv[1])

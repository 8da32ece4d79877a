"""Weights in 4 and 8 bits by bitsandbytes: golden/quant.safetensors (see PROVENANCE.md).

x [2560] f16: normal numbers with an outlier, a block of zeros, one of equal and one of small numbers. nf4, absmax, back: the first
2,533 in blocks of 64, and unpacked again. int8, scale: all as rows of 64 by the vector-wise form of LLM.int8()."""
import sys

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

torch.manual_seed(20)
x = torch.randn(64 * 40)
x[64 * 3 : 64 * 4] = 0
x[64 * 5 : 64 * 6] = 0.75
x[64 * 7] = 40
x[64 * 9 : 64 * 10] *= 1e-4
x = x.half()
short = x[: 64 * 39 + 37]
nf4, state = bnb.quantize_4bit(short.float(), blocksize=64, quant_type="nf4")
back = bnb.dequantize_4bit(nf4, state)
int8, scale, _ = bnb.int8_vectorwise_quant(x.view(-1, 64))
save_file(
    {
        "x": x,
        "nf4": nf4.flatten(),
        "absmax": state.absmax,
        "back": back.float(),
        "int8": int8.flatten(),
        "scale": scale.flatten(),
    },
    sys.argv[1],
)

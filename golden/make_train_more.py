#!/usr/bin/env python3
"""usage: make_train_more.py OUT.safetensors

A case as in make_train.py with a masked loss, weighted captions and a LoRA in the base model: sd-scripts' apply_masked_loss (the squares
times the mask, then their mean) and encode_tokens_with_weights (the context times a number a token, the mean not restored).

Tensors as there, and CASE/mask [2, h, w], CASE/emphasis [steps, 2, tokens]. The base model's factors: CASE/base/PATH.down, .up by
the same rule as the others.
"""
import json
import sys

import torch
from safetensors.torch import save_file

import make_train as T

T.g = torch.Generator().manual_seed(9)
T.case("more", ("losses", "grad"), masked=True, weighted=True, base=True)
save_file(T.out, sys.argv[1], metadata={"cases": json.dumps(T.cases), "error": json.dumps(T.errors), "rms": json.dumps(T.rms),
                                        "tensors": json.dumps(T.tensors)})
print(len(T.out), "tensors", sum(v.numel() for v in T.out.values()) * 4, "bytes")

#!/usr/bin/env python3
"""usage: make_seeds.py OUT.txt

A line: seed, number of pictures, pictures for each prompt, and the seeds of all pictures in the order of making, by the
statements of sd-scripts v0.3.0's gen_img_diffusers.py (lines 2143-2147 and 2418-2420).
"""
import random
import sys

with open(sys.argv[1], "w") as f:
    for seed in (0, 1, 42, 2147483647, 4294967295, 4294967296, 12345678901234567890):
        for prompts, each in ((1, 1), (1, 5), (4, 1), (3, 2)):
            random.seed(seed)
            predefined = [random.randint(0, 0x7FFFFFFF) for _ in range(prompts * each)]
            if len(predefined) == 1:
                predefined[0] = seed
            used = []
            for _ in range(prompts):
                used += predefined[-each:]
                predefined = predefined[:-each]
            f.write(" ".join(map(str, [seed, prompts * each, each, *used])) + "\n")

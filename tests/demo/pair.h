/* A small synthetic pair of checkpoints for the demonstration: the names and structure of Stable Diffusion 1.x, a tenth of its
 * width, random weights. It draws nothing; extracting and merging do not care. */
#ifndef TESTS_DEMO_PAIR_H
#define TESTS_DEMO_PAIR_H

#include "ref/base/err.h"

/* Writes base and tuned (.safetensors, f16). tuned = base + a change of falling singular values (0.7^i, i < 24) in every
 * weight that LoRA reaches + noise of a hundredth of it. The same bytes every time. */
int pair_write(const char *base, const char *tuned, struct err *err);

#endif

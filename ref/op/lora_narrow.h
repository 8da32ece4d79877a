/* Products of which one side is as short as a LoRA's rank, for a few rows that are in the cache: each reads its long side once
 * and keeps the short one in registers, where BLAS packs both first. Row-major, dense, f32. */
#ifndef REF_OP_LORA_NARROW_H
#define REF_OP_LORA_NARROW_H

#include <stddef.h>

enum { NARROW_ROWS = 32 };

/* t [rows, r] = scale * x [rows, k] w [r, k]T */
void narrow_project(const float *x, size_t rows, size_t k, const float *w, size_t r, float scale, float *t);

/* y [rows, k] = base + t [rows, r] w [r, k]; base may be y, or NULL for 0 */
void narrow_spread(const float *base, const float *t, size_t rows, size_t r, const float *w, size_t k, float *y);

/* sum [r, k] += t [rows, r]T x [rows, k] */
void narrow_gather(const float *x, const float *t, size_t rows, size_t r, size_t k, float *sum);

#endif

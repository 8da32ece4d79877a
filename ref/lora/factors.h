/* The two factors of a LoRA module in plain memory: what merge, combine and resize compute with.
 *
 * A module adds scale * up @ down to a weight, where a convolution's weight [out, channels, kh, kw] is seen as a matrix
 * [out, in] with in = channels * kh * kw (its own memory order), and scale = ratio * alpha / rank.
 */
#ifndef REF_LORA_FACTORS_H
#define REF_LORA_FACTORS_H

#include <stddef.h>

#include "ref/base/err.h"

struct lora_factors {
    const float *up;   /* [out, rank] row-major, borrowed */
    const float *down; /* [rank, in] row-major, borrowed */
    size_t rank;
    double scale;
};

/* A convolution in CP form has a third factor between the other two: up [out, r] @ mid [r, q, k] @ down [q, in], k = kh * kw.
 * Writes mid and down as one: dst [r, in * k], dst[p, i, t] = sum over j of mid[p, j, t] * down[j, i]. f32, borrowed; dst
 * overlaps nothing. Sums in f32, one term after the other. */
void factors_fold_mid(float *dst, const float *mid, const float *down, size_t r, size_t q, size_t in, size_t k);

/* The sum of the ranks of n modules. */
size_t factors_total_rank(const struct lora_factors *f, size_t n);

/* Modules of one weight that share a factor are one module: up (a d1 + b d2) is a up d1 + b up d2. Where two of the n have the
 * same rank and the same up, or the same down, the earlier one gets the sum, with scale 1, and the later one leaves the list.
 * Returns how many are left. The sum is taken in f64 and rounded once, over the numbers that were there: the memory behind f
 * must be the caller's to write. */
size_t factors_join(struct lora_factors *f, size_t n, size_t out, size_t in);

/* Every number of both factors must be finite (up [out, rank], down [rank, in]). Returns 0, or -1 with a message that names the
 * factor ("lora_up", "lora_down") and the place; the caller puts file and module before it. */
int factors_check(const struct lora_factors *f, size_t out, size_t in, struct err *err);

#endif

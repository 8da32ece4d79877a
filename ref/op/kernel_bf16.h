/* The innermost product with factors in bf16 and sums in f32, on processors that have it: two terms of a sum in one
 * instruction, so twice as fast as f32.
 *
 * Two neighbours along the sum make a pair, the even one in the low half; a pair takes the place of a float. So X is
 * [rows, pairs], a packed panel [pairs, width], and kernel_multiply() (kernel.h) takes them with `bf16` set and k, row, step,
 * at counted in pairs. An odd last term has a zero beside it.
 */
#ifndef REF_OP_KERNEL_BF16_H
#define REF_OP_KERNEL_BF16_H

#include "ref/op/kernel.h"

/* Whether this processor can (AVX-512 with BF16). */
bool kernel_has_bf16(void);

static inline size_t kernel_pairs(size_t k)
{
    return (k + 1) / 2;
}

/* dst [rows, pairs of k] = x [rows, k], whose rows are ldx apart, rounded to nearest even */
void kernel_pair_rows(float *dst, const float *x, size_t ldx, size_t rows, size_t k);

/* As kernel_pack() and kernel_pack_transposed(): rows 2 * at .. 2 * at + rows - 1 of W; pairs: the panels' depth. rows may be
 * odd only at W's end. */
void kernel_pack_pairs(float *dst, size_t pairs, size_t at, const void *src, enum dtype dtype, size_t ld, size_t rows, size_t n);
void kernel_pack_pairs_transposed(float *dst, size_t pairs, size_t at, const void *src, enum dtype dtype, size_t ld, size_t rows,
                                  size_t n);

#endif

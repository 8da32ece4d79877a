/* Several LoRA modules of one weight as one module.
 *
 * Applying all of them adds S = sum over i of scale_i * up_i @ down_i [out, in], whose rank is at most R = the sum of the
 * ranks. combine_concat() keeps S exactly, at rank R. combine_best() gives the best approximation of S at a chosen rank (Eckart
 * and Young 1936, in the Frobenius norm), computed from the factors: S itself, out x in, is never formed. resize is the same
 * with one module.
 *
 * Method. With the columns of all up_i side by side and the rows of all down_i under each other, normalised, S = U diag(s) D.
 * From the Gram matrices of U and D (R x R) and a Cholesky factor L of the second, D = L Q with orthonormal rows in Q, so the
 * singular values of S and its right singular vectors in the basis Q are the eigenpairs of L' diag(s) U'U diag(s) L. Squaring
 * costs half of the digits: the Gram matrices are f64, or f32 where their condition shows that 1e-3 of it is not touched; the
 * core is f32 after its strongest directions have been taken off, or f64 where that does not show to be good enough
 * (combine_core32.c); and where D is so ill-conditioned that f64 would not do, both factors get a Householder QR in f64 and the
 * core an SVD.
 */
#ifndef REF_LORA_COMBINE_H
#define REF_LORA_COMBINE_H

#include <stddef.h>

#include "ref/base/err.h"
#include "ref/lora/factors.h"
#include "ref/lora/resize.h"

struct combined {
    size_t rank;
    double norm2; /* ||S||^2 */
    double lost2; /* ||S - up @ down||^2: the sum of the squares of the singular values cut off, at any rank the least */
    double first; /* the largest singular value, and the last that is kept */
    double last;
    double sum_kept; /* sum of the kept singular values / sum of all (1 for a zero S) */
};

/* Scratch of one worker, grown as needed and reused: zero it to start, combine_work_free() at the end. */
struct combine_work {
    void *data;
    size_t size;
};
void combine_work_free(struct combine_work *w);

/* The largest rank that combine_best() may return for these modules: min(max_rank, R, out, in), at least 1. */
size_t combine_max_rank(const struct lora_factors *f, size_t n, size_t out, size_t in, const struct rank_rule *rule);

/* up [out, rank] and down [rank, in], row-major, owned by the caller with room for combine_max_rank(); on success
 * up @ down is the best approximation of S at c->rank: the error is at most (1 + 1e-3) times the least possible, plus
 * R * eps(f32) * sum |scale_i| ||up_i|| ||down_i|| for arithmetic. Both factors share a singular value evenly (each gets its
 * root), so that neither overflows nor vanishes in f16; the largest element of each singular vector's coordinates is positive.
 * f [n] borrowed, n >= 1, all numbers finite. Same bytes on every call. Returns 0, or -1 (no memory, no convergence). */
int combine_best(float *up, float *down, struct combined *c, const struct lora_factors *f, size_t n, size_t out, size_t in,
                 const struct rank_rule *rule, struct combine_work *work, struct err *err);

/* up [out, R], down [R, in], R = factors_total_rank(): the factors side by side. down is copied as it is; the scales go into
 * up (scale 1 leaves it as it is, too). */
void combine_concat(float *up, float *down, const struct lora_factors *f, size_t n, size_t out, size_t in);

#endif

/* The product under linear and convolution: f32 rows times a weight that stays in its file's dtype.
 *
 *     y [m, n] = act(scale * X [m, k] W [k, n] + bias [n] + residual [m, n])
 *
 * X is a matrix, or rows that a callback lays out (a convolution's patches). W is packed a block at a time, converted to
 * f32 in scratch, so no f32 copy of a weight ever exists. The work is cut in tiles of fixed shape for kernel.h.
 */
#ifndef REF_OP_GEMM_H
#define REF_OP_GEMM_H

#include "ref/op/op.h"

/* W as it is stored: row r, column c of W [k, n] is the element
 *     transposed (a linear's [n, k]):  c * ld + r
 *     else:  (r / period) * jump + (r % period) * ld + c     (period 0: r * ld + c) */
struct gemm_weight {
    const void *data;
    enum dtype dtype;
    bool transposed;
    size_t ld, period, jump;
};

/* Writes rows [row, row + rows) x columns [col, col + cols) of X to dst [rows, cols]. */
typedef void gemm_rows_fn(const void *ctx, float *dst, size_t row, size_t rows, size_t col, size_t cols);

struct gemm {
    size_t m, n, k;
    const float *x; /* [m, ldx]; NULL: rows() gives it */
    size_t ldx;
    gemm_rows_fn *rows;
    const void *ctx;
    struct gemm_weight w;
    float *y; /* [m, ldy] */
    size_t ldy;
    float scale;           /* 0 means 1 */
    const float *bias;     /* NULL: none */
    const float *residual; /* [m, ldy], may be y itself; NULL: none */
    enum op_act act;
    bool bf16;             /* factors rounded to bf16: only where gemm_takes_bf16() */
    void *scratch; /* gemm_scratch() bytes */
};

/* Bytes of scratch that gemm_run() of this m, n, k needs, or gemm_weight_gradient(); the greater of the two. The same for
 * f32 and bf16. */
size_t gemm_scratch(size_t m, size_t n, size_t k, int threads);

/* Whether a product of these sizes is worth computing in bf16, where the processor can: fewer rows take no time, and fewer
 * columns or terms are a picture's own channels. */
bool gemm_takes_bf16(size_t m, size_t n, size_t k);

int gemm_run(const struct gemm *g, struct err *err);

/* dw [n, k] = scale * dyT [n, m] X [m, k], for the few weights that are trained; X and scratch as above (g->x or g->rows,
 * ldx, m, k, n, scale, scratch), dy [m, n]. */
int gemm_weight_gradient(const struct gemm *g, const float *dy, float *dw, struct err *err);

#endif

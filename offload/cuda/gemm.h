/* Matrix products by cuBLASLt, row-major. */
#ifndef OFFLOAD_CUDA_GEMM_H
#define OFFLOAD_CUDA_GEMM_H

#include <stdbool.h>

#include "offload/cuda/state.h"

/* y [m, n] = alpha * x [m, k] w [k, n] + beta * c [m, n] + bias [n]
 * x_turned: x is stored [k, m]; w_turned: w is stored [n, k]. ldx, ldw, ldy: row lengths as stored; c has y's. x, w and bias are
 * T; y and c are T, or f32 where y_f32. c may be y; beta 0: c is not read. Sums are f32. */
struct gemm_call {
    size_t m, n, k, ldx, ldw, ldy;
    bool x_turned, w_turned, y_f32;
    float alpha, beta;
    const void *x, *w, *bias, *c;
    void *y;
};
int gemm_run(const struct gemm_call *g, struct err *err);

void gemm_close(void); /* frees the plans that were made */

#endif

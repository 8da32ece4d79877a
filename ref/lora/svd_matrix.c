/* Buffers of a worker and the products with A. */
#include "ref/lora/svd_device.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/simd.h"

void *svd_buffer(struct svd *w, enum svd_buffer which, size_t count, size_t size, struct err *err)
{
    size_t need;

    if (!mem_mul(count, size, &need)) {
        err_memory(err, ~0ULL, "a singular value decomposition");
        return NULL;
    }
    if (w->buf[which] && w->cap[which] >= need)
        return w->buf[which];
    free(w->buf[which]);
    w->cap[which] = 0;
    w->buf[which] = mem_new(need, "a singular value decomposition", err);
    if (w->buf[which])
        w->cap[which] = need;
    return w->buf[which];
}

/* 16 running sums: fixed by the source, so every instruction set adds in the same order */
SIMD_CLONES double svd_energy(const float *x, size_t n)
{
    double sum[16] = {0}, all = 0;
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++)
            sum[j] += (double)x[i + j] * (double)x[i + j];
    for (; i < n; i++)
        all += (double)x[i] * (double)x[i];
    for (size_t j = 0; j < 16; j++)
        all += sum[j];
    return all;
}

/* c [p, q] = alpha a b + beta c with the strides that the caller means */
static void gemm(bool ta, bool tb, size_t p, size_t q, size_t inner, float alpha, const float *a, size_t lda, const float *b,
                 size_t ldb, float beta, float *c, size_t ldc)
{
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)p, (int)q, (int)inner, alpha,
                a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

void svd_times(const struct svd_matrix *a, const float *x, size_t s, float *y)
{
    size_t ld = a->flipped ? a->rows : a->cols;

    if (a->on) {
        svd_device_times(a->on, a, x, s, y);
        return;
    }
    gemm(false, !a->flipped, s, a->rows, a->cols, 1, x, a->cols, a->d, ld, 0, y, a->rows);
}

void svd_times_transposed(const struct svd_matrix *a, const float *y, size_t s, float *x)
{
    size_t ld = a->flipped ? a->rows : a->cols;

    if (a->on) {
        svd_device_times_transposed(a->on, a, y, s, x);
        return;
    }
    gemm(false, a->flipped, s, a->cols, a->rows, 1, y, a->rows, a->d, ld, 0, x, a->cols);
}

/* Rows of A go by in panels that stay in the cache between the two products: skinny products are bound by memory */
void svd_times_gram(const struct svd_matrix *a, const float *x, size_t s, float *panel, float *z)
{
    size_t ld = a->flipped ? a->rows : a->cols;

    if (a->on) {
        svd_device_times_gram(a->on, a, x, s, z);
        return;
    }
    for (size_t first = 0; first < a->rows; first += SVD_PANEL) {
        size_t p = a->rows - first < SVD_PANEL ? a->rows - first : SVD_PANEL;
        const float *d = a->d + (a->flipped ? first : first * ld);

        gemm(false, !a->flipped, s, p, a->cols, 1, x, a->cols, d, ld, 0, panel, p);
        gemm(false, a->flipped, s, a->cols, p, 1, panel, p, d, ld, first ? 1 : 0, z, a->cols);
    }
}

void svd_gram(const struct svd_matrix *a, float *g)
{
    size_t n = a->cols;

    if (a->on) {
        svd_device_gram(a->on, a, g);
        return;
    }
    cblas_ssyrk(CblasRowMajor, CblasLower, a->flipped ? CblasNoTrans : CblasTrans, (int)n, (int)a->rows, 1, a->d,
                (int)(a->flipped ? a->rows : a->cols), 0, g, (int)n);
}

void svd_mirror(float *g, size_t n)
{
    for (size_t i0 = 0; i0 < n; i0 += 32) /* in tiles: columns are far apart */
        for (size_t j0 = 0; j0 <= i0; j0 += 32)
            for (size_t i = i0; i < n && i < i0 + 32; i++)
                for (size_t j = j0; j < i && j < j0 + 32; j++)
                    g[j * n + i] = g[i * n + j];
}

void svd_subtract(const struct svd_matrix *a, const float *y, const float *v, size_t s)
{
    if (a->on)
        svd_device_forget(a->on);
    if (a->flipped)
        gemm(true, false, a->cols, a->rows, s, -1, v, a->cols, y, a->rows, 1, a->d, a->rows);
    else
        gemm(true, false, a->rows, a->cols, s, -1, y, a->rows, v, a->cols, 1, a->d, a->cols);
}

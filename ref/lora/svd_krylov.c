/* Block Lanczos with full orthogonalisation: a Krylov space, its projected matrix and its residual. */
#include "ref/lora/svd_work.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

/* Counter-based: number i of the stream `seed`, uniform in [-1, 1) (splitmix64, Steele et al. 2014) */
static float noise(uint64_t seed, uint64_t i)
{
    uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    z ^= z >> 31;
    return (float)((int64_t)(z >> 40) - (1 << 23)) / (float)(1 << 23);
}

/* x [s, n] (rows) = r' q, the q replacing x; r [s, s] column-major upper */
static int orthonormalise(float *x, size_t s, size_t n, float *r, struct err *err)
{
    float tau[64];
    int rows = (int)n, cols = (int)s; /* LAPACK sees the transposed matrix */

    if (LAPACKE_sgeqrf(LAPACK_COL_MAJOR, rows, cols, x, rows, tau) != 0)
        return err_memory(err, (unsigned long long)n * s * sizeof *x, "a QR factorisation");
    memset(r, 0, s * s * sizeof *r);
    for (size_t j = 0; j < s; j++)
        memcpy(r + j * s, x + j * n, (j + 1) * sizeof *r);
    if (LAPACKE_sorgqr(LAPACK_COL_MAJOR, rows, cols, cols, x, rows, tau) != 0)
        return err_memory(err, (unsigned long long)n * s * sizeof *x, "a QR factorisation");
    return 0;
}

int svd_krylov_start(struct svd_krylov *k, struct svd *w, size_t n, size_t block, size_t cap, uint64_t seed, struct err *err)
{
    k->n = n;
    k->block = block;
    k->dim = 0;
    k->cap = cap;
    k->q = svd_buffer(w, SVD_BUF_BASIS, (cap + block) * n, sizeof *k->q, err);
    k->t = svd_buffer(w, SVD_BUF_SMALL, cap * cap, sizeof *k->t, err);
    if (!k->q || !k->t)
        return -1;
    for (size_t i = 0; i < block * n; i++)
        k->q[i] = noise(seed, i);
    return orthonormalise(k->q, block, n, k->r, err);
}

/* c [s, dim] = x q'; x -= c q: takes the basis out of x [s, n]. Returns the largest |c|. */
static float project_out(const struct svd_krylov *k, float *x, float *c, size_t ldc)
{
    float largest = 0;
    int s = (int)k->block, n = (int)k->n, d = (int)k->dim;

    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, s, d, n, 1, x, n, k->q, n, 0, c, (int)ldc);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, s, n, d, -1, c, (int)ldc, k->q, n, 1, x, n);
    for (size_t i = 0; i < k->block; i++)
        for (size_t j = 0; j < k->dim; j++)
            largest = fmaxf(largest, fabsf(c[i * ldc + j]));
    return largest;
}

/* r = r2 r, both [s, s] column-major upper */
static void multiply_upper(float *r, const float *r2, size_t s)
{
    cblas_strmm(CblasColMajor, CblasLeft, CblasUpper, CblasNoTrans, CblasNonUnit, (int)s, (int)s, 1, r2, (int)s, r, (int)s);
}

int svd_krylov_grow(struct svd_krylov *k, svd_operator *apply, void *ctx, struct err *err)
{
    size_t s = k->block, old = k->dim;
    float *next = k->q + (old + s) * k->n, *c = k->t + old * k->cap, again[64 * 64], r2[64 * 64];
    float lost = 1;

    apply(ctx, k->q + old * k->n, s, next);
    k->dim = old + s;
    project_out(k, next, c, k->cap); /* c: the new rows of T */
    if (orthonormalise(next, s, k->n, k->r, err) != 0)
        return -1;
    /* A row that lay in the space is rounding noise now, at any angle to it: repeat until the angle is right. What these
     * rounds take out belongs to T only up to |r| eps, and is not added to it. */
    for (int round = 0; round < 4 && lost > 0.1f; round++) {
        size_t chunk = sizeof again / sizeof *again / s;

        lost = 0;
        for (size_t first = 0; first < k->dim; first += chunk) {
            struct svd_krylov part = *k;

            part.q = k->q + first * k->n;
            part.dim = k->dim - first < chunk ? k->dim - first : chunk;
            lost = fmaxf(lost, project_out(&part, next, again, part.dim));
        }
        if (orthonormalise(next, s, k->n, r2, err) != 0)
            return -1;
        multiply_upper(k->r, r2, s);
    }
    return 0;
}

int svd_krylov_ritz(const struct svd_krylov *k, double w, float *values, float *vectors, struct svd *work, struct err *err)
{
    size_t d = k->dim, s = k->block;
    float *a = vectors ? vectors : svd_buffer(work, SVD_BUF_RITZ, d * d, sizeof *a, err);

    if (!a)
        return -1;
    for (size_t i = 0; i < d; i++)
        memcpy(a + i * d, k->t + i * k->cap, (i + 1) * sizeof *a);
    if (w > 0) {
        float *last = a + (d - s) * d + (d - s);

        for (size_t i = 0; i < s; i++)
            for (size_t j = 0; j <= i; j++)
                last[i * d + j] += (float)(cblas_dsdot((int)s, k->r + i * s, 1, k->r + j * s, 1) / w);
    }
    /* row-major lower is column-major upper; eigenvectors come as columns there, rows here */
    if (LAPACKE_ssyevd(LAPACK_COL_MAJOR, vectors ? 'V' : 'N', 'U', (int)d, a, (int)d, values) != 0)
        return err_set(err, "the eigenvalues of a projected matrix did not converge");
    return 0;
}

void svd_krylov_vectors(const struct svd_krylov *k, const float *vectors, size_t count, float *v)
{
    size_t d = k->dim, n = k->n;

    /* the last `count` rows, then turned upside down: largest first */
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)count, (int)n, (int)d, 1, vectors + (d - count) * d, (int)d, k->q,
                (int)n, 0, v, (int)n);
    for (size_t i = 0; i < count / 2; i++)
        cblas_sswap((int)n, v + i * n, 1, v + (count - 1 - i) * n, 1);
}

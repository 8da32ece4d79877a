/* The Gram matrix and what is found in it (svd.h, points 1 and 2). */
#include "ref/lora/svd_work.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

struct gram {
    const float *g;
    size_t n;
};

static void apply_gram(void *ctx, const float *x, size_t s, float *z)
{
    const struct gram *c = ctx;
    int n = (int)c->n;

    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)s, n, n, 1, x, n, c->g, n, 0, z, n);
}

/* All eigenvectors of a small Gram matrix, g being overwritten */
static int all_of_gram(struct svd *w, float *g, size_t n, size_t k, double tolerance, float *v,
                       struct svd_level *l, struct err *err)
{
    float *values = svd_buffer(w, SVD_BUF_SMALL, n, sizeof *values, err);

    if (!values)
        return -1;
    if (LAPACKE_ssyevd(LAPACK_COL_MAJOR, 'V', 'U', (int)n, g, (int)n, values) != 0)
        return 0; /* not proved: f64 will do it */
    svd_level_keep(l, values, n, k);
    l->excess = 0;
    l->top = (double)values[n - 1] + svd_rounding(n, 1) * l->total;
    l->proved = svd_level_allowance(l, n, k, tolerance) >= 0;
    for (size_t i = 0; i < k; i++)
        memcpy(v + i * n, g + (n - 1 - i) * n, n * sizeof *v);
    return 0;
}

/* Grows a Krylov space of g until the proof holds; before it has `first` dimensions that is not worth asking */
static int search(struct svd *w, float *g, size_t n, size_t k, size_t first, double tolerance, uint64_t seed, float *v,
                  struct svd_level *l, struct err *err)
{
    size_t block = k > 16 ? 32 : 16, cap = (4 * k + 96 + block - 1) / block * block;
    struct gram c = {.g = g, .n = n};
    struct svd_krylov kr;
    float *values, *vectors;

    if (8 * cap > 5 * n)
        cap = 5 * n / 8 / block * block;
    if (svd_krylov_start(&kr, w, n, block, cap, seed, err) != 0)
        return -1;
    values = svd_buffer(w, SVD_BUF_PANEL, cap * cap + cap, sizeof *values, err);
    if (!values)
        return -1;
    vectors = values + cap;
    while (kr.dim < cap && !l->proved) {
        double allowed;

        if (svd_krylov_grow(&kr, apply_gram, &c, err) != 0)
            return -1;
        if (kr.dim < first || (kr.dim / block % 2 && kr.dim < cap))
            continue;
        if (svd_krylov_ritz(&kr, 0, values, vectors, w, err) != 0)
            return -1;
        svd_level_keep(l, values, kr.dim, k);
        allowed = svd_level_allowance(l, n, k, tolerance);
        if (allowed <= 0 && l->usable > 0) { /* f32 is too coarse: what is usable goes off A first */
            svd_krylov_vectors(&kr, vectors, k, v);
            return 0;
        }
        if (svd_prove(w, &kr, g, values, vectors, k, allowed, v, l, err) != 0)
            return -1;
    }
    return l->proved ? 0 : all_of_gram(w, g, n, k, tolerance, v, l, err);
}

int svd_by_gram(struct svd *w, const struct svd_matrix *a, size_t k, double tolerance, uint64_t seed, float *v,
                struct svd_level *l, struct err *err)
{
    size_t n = a->cols, first;
    float *g = svd_buffer(w, SVD_BUF_GRAM, n * n, sizeof *g, err);

    l->method = SVD_GRAM;
    l->proved = false;
    l->top = l->total;
    l->usable = 0;
    if (!g)
        return -1;
    svd_gram(a, g);
    /* The spectrum of noise is the flatter the longer A is, and needs the larger space. What needs most of the space is done
     * by all eigenvectors in less time. */
    first = a->rows > 2 * n ? 4 * k + 64 : 3 * k + n / 12;
    if (n < 256 || 4 * first > 3 * n - n / 4)
        return all_of_gram(w, g, n, k, tolerance, v, l, err);
    svd_mirror(g, n);
    return search(w, g, n, k, first, tolerance, seed, v, l, err);
}

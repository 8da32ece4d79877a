/* Krylov spaces of A and of its Gram matrix, and the proofs of their errors (svd.h, points 1 and 2). */
#include "ref/lora/svd_work.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

#define EPS32 5.96e-8

/* Rounding. An entry of A'A is a sum of products with errors of eps |a_i| |a_j| that are as good as independent, so the
 * error matrix has norm about 2 sqrt(cols) eps total / cols, and a sum of k eigenvalues moves by at most k times that
 * (Fan). Eigenvalues of the projected matrix and squared norms add a few eps of total. Factor 2 over what was measured. */
double svd_rounding(size_t cols, size_t k)
{
    return EPS32 * (4 * (double)k / sqrt((double)cols) + 4);
}

/* E^2 may exceed E*^2 by this much */
static double allowance(double total, double kept, double tolerance)
{
    double tail = total > kept ? total - kept : 0;

    return tail * (1 - 1 / ((1 + tolerance) * (1 + tolerance)));
}

static void set_kept(struct svd_level *l, const float *values, size_t d, size_t k)
{
    l->kept = 0;
    l->usable = 0;
    for (size_t i = 0; i < k; i++) {
        double v = (double)values[d - 1 - i];

        l->kept += v > 0 ? v : 0;
        if (v > 0 && v >= 1e-3 * (double)values[d - 1])
            l->usable = i + 1;
    }
    l->next = d > k && values[d - 1 - k] > 0 ? (double)values[d - 1 - k] : 0;
}

struct sketch {
    const struct svd_matrix *a;
    float *panel;
};

static void apply_matrix(void *ctx, const float *x, size_t s, float *z)
{
    struct sketch *c = ctx;

    svd_times_gram(c->a, x, s, c->panel, z);
}

/* The rest's largest eigenvalue is at most its trace, the energy that the space leaves: with w = t_k - trace the k largest
 * eigenvalues of G sum up to at most those of T + R'R / w. Sets l->excess; false when there is no such w. */
static bool prove_by_trace(const struct svd_krylov *kr, const float *values, size_t k, struct svd_level *l, struct svd *w,
                           float *scratch, struct err *err)
{
    size_t d = kr->dim;
    double inside = 0, gap, sum = 0;

    for (size_t i = 0; i < d; i++)
        inside += (double)values[i];
    gap = (double)values[d - k] - fmax(l->total - inside, 0) - 8 * EPS32 * l->total;
    if (gap <= 0 || svd_krylov_ritz(kr, gap, scratch, NULL, w, err) != 0)
        return false;
    for (size_t i = 0; i < k; i++)
        sum += (double)scratch[d - 1 - i];
    l->excess = sum > l->kept ? sum - l->kept : 0;
    l->top = (double)scratch[d - 1];
    return true;
}

int svd_sketch(struct svd *w, const struct svd_matrix *a, size_t k, double tolerance, uint64_t seed, float *v,
               struct svd_level *l, struct err *err)
{
    const size_t block = 16, cap = 96;
    struct svd_krylov kr;
    struct sketch c = {.a = a};
    float values[96], scratch[96], *vectors;

    l->method = SVD_SKETCH;
    l->proved = false;
    l->top = l->total;
    c.panel = svd_buffer(w, SVD_BUF_PANEL, block * SVD_PANEL, sizeof *c.panel, err);
    if (!c.panel || svd_krylov_start(&kr, w, a->cols, block, cap, seed, err) != 0)
        return -1;
    vectors = svd_buffer(w, SVD_BUF_PROOF, cap * cap, sizeof *vectors, err);
    if (!vectors)
        return -1;
    while (kr.dim < cap) {
        double allowed;

        if (svd_krylov_grow(&kr, apply_matrix, &c, err) != 0)
            return -1;
        if (kr.dim < 2 * block)
            continue;
        if (svd_krylov_ritz(&kr, 0, values, vectors, w, err) != 0)
            return -1;
        set_kept(l, values, kr.dim, k);
        allowed = allowance(l->total, l->kept, tolerance) - svd_rounding(a->cols, k) * l->total;
        if (!prove_by_trace(&kr, values, k, l, w, scratch, err))
            break; /* a long tail: more blocks of this width would not bring its trace below t_k soon */
        if (l->excess <= allowed) {
            l->proved = true;
            break;
        }
        if (allowed <= 0 && l->excess <= svd_rounding(a->cols, k) * l->total)
            break; /* as good as f32 shows */
    }
    svd_krylov_vectors(&kr, vectors, k, v);
    return 0;
}

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

/* mu such that raising all t_i, i <= k, to at least mu costs `budget` */
static double raise(const float *values, size_t d, size_t k, double budget)
{
    double mu = (double)values[d - k];

    for (size_t count = 1;; count++) {
        double step = count < k ? (double)values[d - k + count] - mu : HUGE_VAL;

        if (budget <= step * (double)count)
            return mu + budget / (double)count;
        budget -= step * (double)count;
        mu += step;
    }
}

/* Sum of |R y_i|^2 over the Ritz vectors with values >= mu (at least k of them) */
static double residual(const struct svd_krylov *kr, const float *values, const float *vectors, size_t k, double mu)
{
    size_t d = kr->dim, s = kr->block;
    double sum = 0;

    for (size_t i = d; i-- > 0 && (d - i <= k || (double)values[i] >= mu);) {
        float y[64];

        memcpy(y, vectors + i * d + (d - s), s * sizeof *y);
        cblas_strmv(CblasColMajor, CblasUpper, CblasNoTrans, CblasNonUnit, (int)s, kr->r, (int)s, y, 1);
        sum += cblas_dsdot((int)s, y, 1, y, 1);
    }
    return sum;
}

/* Is mu 1 + sum of (l_i - mu)+ v_i v_i' - G positive definite? l, vectors: eigenpairs of T + R'R / w. `scaled` [p, n] takes
 * the v_i. The shift covers the rounding of the sums and of the factorisation. */
static bool definite(const struct svd_krylov *kr, const float *g, double mu, const float *values, const float *vectors, float *m,
                     float *scaled)
{
    size_t n = kr->n, d = kr->dim, p = 0;
    double largest = 0;

    while (p < d && (double)values[d - 1 - p] > mu)
        p++;
    svd_krylov_vectors(kr, vectors, p, scaled);
    for (size_t i = 0; i < p; i++)
        cblas_sscal((int)n, (float)sqrt((double)values[d - 1 - i] - mu), scaled + i * n, 1);
    for (size_t i = 0; i < n; i++)
        for (size_t j = i; j < n; j++)
            m[i * n + j] = -g[i * n + j];
    for (size_t i = 0; i < n; i++)
        m[i * n + i] += (float)mu;
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)n, (int)p, 1, scaled, (int)n, 1, m, (int)n);
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, (double)m[i * n + i]);
    for (size_t i = 0; i < n; i++)
        m[i * n + i] -= (float)(16 * EPS32 * largest);
    return LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'L', (int)n, m, (int)n) == 0;
}

/* Tries to prove that the Ritz values are good enough; the Ritz vectors go to v first, since `vectors` is used up. */
static int prove_by_cholesky(struct svd *w, const struct svd_krylov *kr, const float *g, float *values, float *vectors, size_t k,
                             double allowed, float *v, struct svd_level *l, struct err *err)
{
    size_t d = kr->dim, n = kr->n;
    double mu = raise(values, d, k, allowed / 4);
    double weight = residual(kr, values, vectors, k, mu) / (0.6 * allowed);
    float *m;

    if (allowed <= 0 || weight > 0.25 * mu)
        return 0;
    m = svd_buffer(w, SVD_BUF_PROOF, n * n + (kr->cap) * n, sizeof *m, err);
    if (!m)
        return -1;
    svd_krylov_vectors(kr, vectors, k, v);
    for (int attempt = 0; attempt < 3; attempt++, weight *= 1.5) {
        double sum = 0;

        if (svd_krylov_ritz(kr, weight, values, vectors, w, err) != 0)
            return -1;
        for (size_t i = 0; i < d; i++) {
            double t = (double)values[d - 1 - i];

            sum += i < k ? fmax(t, mu) : fmax(t - mu, 0);
        }
        if (sum - l->kept > allowed)
            continue;
        if (definite(kr, g, mu, values, vectors, m, m + n * n)) {
            l->proved = true;
            l->excess = sum > l->kept ? sum - l->kept : 0;
            l->top = fmax((double)values[d - 1], mu);
        }
        break;
    }
    return 0;
}

/* All eigenvectors of a small Gram matrix, g being overwritten */
static int all_of_gram(struct svd *w, float *g, size_t n, size_t k, double tolerance, float *v, struct svd_level *l,
                       struct err *err)
{
    float *values = svd_buffer(w, SVD_BUF_SMALL, n, sizeof *values, err);

    if (!values)
        return -1;
    if (LAPACKE_ssyevd(LAPACK_COL_MAJOR, 'V', 'U', (int)n, g, (int)n, values) != 0)
        return 0; /* not proved: f64 will do it */
    set_kept(l, values, n, k);
    l->excess = 0;
    l->top = (double)values[n - 1] + svd_rounding(n, 1) * l->total;
    l->proved = svd_rounding(n, k) * l->total <= allowance(l->total, l->kept, tolerance);
    for (size_t i = 0; i < k; i++)
        memcpy(v + i * n, g + (n - 1 - i) * n, n * sizeof *v);
    return 0;
}

int svd_by_gram(struct svd *w, const struct svd_matrix *a, size_t k, double tolerance, uint64_t seed, float *v,
                struct svd_level *l, struct err *err)
{
    size_t n = a->cols, block = k > 16 ? 32 : 16, cap = (3 * k + 96 + block - 1) / block * block;
    float *g = svd_buffer(w, SVD_BUF_GRAM, n * n, sizeof *g, err), *values, *vectors;
    struct gram c = {.g = g, .n = n};
    struct svd_krylov kr;

    l->method = SVD_GRAM;
    l->proved = false;
    l->top = l->total;
    l->usable = 0;
    if (!g)
        return -1;
    svd_gram(a, g);
    if (8 * cap > 5 * n)
        return all_of_gram(w, g, n, k, tolerance, v, l, err);
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
        if (kr.dim < 2 * k + 32 || (kr.dim / block % 2 && kr.dim < cap))
            continue;
        if (svd_krylov_ritz(&kr, 0, values, vectors, w, err) != 0)
            return -1;
        set_kept(l, values, kr.dim, k);
        allowed = allowance(l->total, l->kept, tolerance) - svd_rounding(n, k) * l->total;
        if (allowed <= 0 && l->usable > 0) { /* f32 is too coarse: what is usable goes off A first */
            svd_krylov_vectors(&kr, vectors, k, v);
            return 0;
        }
        if (prove_by_cholesky(w, &kr, g, values, vectors, k, allowed, v, l, err) != 0)
            return -1;
    }
    return l->proved ? 0 : all_of_gram(w, g, n, k, tolerance, v, l, err);
}

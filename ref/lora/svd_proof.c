/* The proof by Cholesky factorisation (svd.h, point 2).
 *
 * For any positive semidefinite X such that mu 1 + X - G is positive definite, the k largest eigenvalues of G sum up to at
 * most k mu + trace X (Fan). X is built on the Ritz vectors near and above mu, large enough for their residuals. */
#include "ref/lora/svd_work.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

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

/* The Ritz vectors with values above a cut near mu, G seen in them, and how their residuals R couple them to the rest */
struct front {
    size_t p, n;
    double mu;
    float *h;          /* [p, p] lower: v G v' */
    float *coupling;   /* [p, p] lower: R R' */
    float *a, *values; /* [p, p], [p]: h + spare + factor R R' and its eigenvalues, ascending; after front_solve() */
};

/* v [p, n]; image [p, n] = v G becomes R = image - h v. Both are computed, not taken from the recurrence: that has the
 * rounding of the largest eigenvalues in it. */
static void front_open(struct front *f, const float *v, float *image)
{
    int p = (int)f->p, n = (int)f->n;

    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, p, p, n, 1, image, n, v, n, 0, f->h, p);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, p, n, p, -1, f->h, p, v, n, 1, image, n);
    cblas_ssyrk(CblasRowMajor, CblasLower, CblasNoTrans, p, n, 1, image, n, 0, f->coupling, p);
}

/* What the k largest values, raised to mu at least, and all others' excess over mu sum up to */
static double front_sum(const struct front *f, size_t k)
{
    double sum = 0;

    for (size_t i = 0; i < f->p; i++) {
        double t = (double)f->values[f->p - 1 - i];

        sum += i < k ? fmax(t, f->mu) : fmax(t - f->mu, 0);
    }
    return sum;
}

static bool front_solve(struct front *f, double factor, double spare, char job)
{
    for (size_t i = 0; i < f->p; i++) {
        for (size_t j = 0; j <= i; j++)
            f->a[i * f->p + j] = f->h[i * f->p + j] + (float)(factor * (double)f->coupling[i * f->p + j]);
        f->a[i * f->p + i] += (float)spare;
    }
    return LAPACKE_ssyevd(LAPACK_COL_MAJOR, job, 'U', (int)f->p, f->a, (int)f->p, f->values) == 0;
}

/* Factors below this (times mu) have never been enough: what couples the front to the rest is met by about the mean of the
 * spectrum, but the Cholesky factorisation also has to get past the rest's own largest eigenvalue. */
#define LEAST_FACTOR 8

/* The largest of LEAST_FACTOR, twice that, ... (over mu) that costs no more than `most` in front_sum(); 0 when none does */
static double front_spend(struct front *f, size_t k, double spare, double most)
{
    double low = 0;

    for (double factor = LEAST_FACTOR / f->mu; factor * f->mu < 1000; factor *= 2) {
        if (!front_solve(f, factor, spare, 'N') || front_sum(f, k) > most)
            break;
        low = factor;
    }
    return low;
}

/* The same question for LEAST_FACTOR alone, from the recurrence: cheap, and rough where values are large */
static bool worth_trying(const struct svd_krylov *kr, const float *values, const float *vectors, size_t k, struct front *f,
                         double most)
{
    size_t d = kr->dim, s = kr->block;
    int p = (int)f->p, is = (int)s;
    float *rows = f->coupling;

    for (size_t i = 0; i < f->p; i++)
        memcpy(rows + i * s, vectors + (d - f->p + i) * d + (d - s), s * sizeof *rows);
    cblas_strmm(CblasColMajor, CblasLeft, CblasUpper, CblasNoTrans, CblasNonUnit, is, p, 1, kr->r, is, rows, is);
    cblas_ssyrk(CblasRowMajor, CblasLower, CblasNoTrans, p, is, (float)(LEAST_FACTOR / f->mu), rows, is, 0, f->a, p);
    for (size_t i = 0; i < f->p; i++)
        f->a[i * f->p + i] += values[d - f->p + i];
    return LAPACKE_ssyevd(LAPACK_COL_MAJOR, 'N', 'U', p, f->a, p, f->values) == 0 && front_sum(f, k) <= most;
}

/* m = mu 1 - P G P with P = 1 - v'v, upper triangle; v [q, n] and image [q, n] = v G; trace: of v G v'. Returns the sum of
 * squares of what couples v to the rest, v G P. m [n, n], h [q, q] scratch; image is overwritten. */
static double without(size_t q, size_t n, double mu, const float *g, const float *v, float *image, float *h, float *m,
                      double *trace)
{
    int iq = (int)q, in = (int)n;

    for (size_t i = 0; i < n; i++) {
        for (size_t j = i; j < n; j++)
            m[i * n + j] = -g[i * n + j];
        m[i * n + i] += (float)mu;
    }
    *trace = 0;
    if (q == 0)
        return 0;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, iq, iq, in, 1, image, in, v, in, 0, h, iq);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, iq, in, iq, -0.5f, h, iq, v, in, 1, image, in);
    cblas_ssyr2k(CblasRowMajor, CblasUpper, CblasTrans, in, iq, 1, v, in, image, in, 1, m, in);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, iq, in, iq, -0.5f, h, iq, v, in, 1, image, in);
    for (size_t i = 0; i < q; i++)
        *trace += (double)h[i * q + i];
    return svd_energy(image, q * n);
}

static void product(size_t p, size_t q, size_t inner, const float *a, const float *b, float *c)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)p, (int)q, (int)inner, 1, a, (int)inner, b, (int)q, 0, c, (int)q);
}

/* v2 -= (v2 v1') v1: takes the rows of v1 [p, n] out of v2 [k, n]; c [k, p] scratch */
static void separate(const float *v1, size_t p, float *v2, size_t k, size_t n, float *c)
{
    int ip = (int)p, ik = (int)k, in = (int)n;

    if (p == 0)
        return;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, ik, ip, in, 1, v2, in, v1, in, 0, c, ip);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, ik, in, ip, -1, c, ip, v1, in, 1, v2, in);
}

/* Is m + sum of (l_i - mu)+ v_i v_i' positive definite? l_i, v_i: eigenpairs of the front. The shift covers the rounding of
 * the sums and of the factorisation. m [n, n] upper triangle, scaled [p, n], ritz [p, n] (the front's Ritz vectors) */
static bool definite(const struct front *f, const float *ritz, float *m, float *scaled)
{
    size_t n = f->n, first = 0;
    double largest = 0;

    while (first < f->p && (double)f->values[first] <= f->mu)
        first++;
    for (size_t i = first; i < f->p; i++)
        cblas_sscal((int)f->p, (float)sqrt((double)f->values[i] - f->mu), f->a + i * f->p, 1);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)(f->p - first), (int)n, (int)f->p, 1, f->a + first * f->p,
                (int)f->p, ritz, (int)n, 0, scaled, (int)n);
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)n, (int)(f->p - first), 1, scaled, (int)n, 1, m, (int)n);
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, (double)m[i * n + i]);
    for (size_t i = 0; i < n; i++)
        m[i * n + i] -= (float)(16 * SVD_EPS * largest);
    return LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'L', (int)n, m, (int)n) == 0;
}

/* How many of the k - 1 largest values stand well above mu: these are taken off G, for beside them rounding, eps t_1, would
 * hide the front. The cut goes where there is a gap to the next. */
static size_t count_high(const float *values, size_t d, size_t k, double mu)
{
    size_t q = 0;

    for (size_t i = 1; i < k && (double)values[d - i] > 3 * mu; i++)
        if ((double)values[d - i] > 1.01 * (double)values[d - i - 1])
            q = i;
    return q;
}

int svd_prove(struct svd *w, const struct svd_krylov *kr, const float *g, const float *values, const float *vectors, size_t k,
              double allowed, float *v, struct svd_level *l, struct err *err)
{
    size_t d = kr->dim, n = kr->n, q, all;
    struct front f = {.n = n};
    float *m, *ritz, *image;
    double factor, coupling, high, kept, gap;

    if (allowed <= 0)
        return 0;
    f.mu = raise(values, d, k, allowed / 3);
    q = count_high(values, d, k, f.mu);
    for (all = k; all < d && (double)values[d - 1 - all] > 0.9 * f.mu;)
        all++;
    f.p = all;
    m = svd_buffer(w, SVD_BUF_PROOF, n * n + 2 * all * n + 3 * all * (all + kr->block) + all, sizeof *m, err);
    if (!m)
        return -1;
    image = m + n * n;
    ritz = image + all * n;
    f.a = ritz + all * n;
    f.coupling = f.a + all * all;
    f.h = f.coupling + all * (all + kr->block);
    f.values = f.h + all * all;
    if (!worth_trying(kr, values, vectors, k, &f, l->kept + 0.9 * allowed))
        return 0;
    f.p = all - q;
    /* ascending, as the values are: the front first, what goes off last */
    product(all, n, d, vectors + (d - all) * d, kr->q, ritz);
    separate(ritz + f.p * n, q, ritz, f.p, n, f.a);
    product(all, n, n, ritz, g, image);
    coupling = without(q, n, f.mu, g, ritz + f.p * n, image + f.p * n, f.a, m, &high);
    front_open(&f, ritz, image);
    if (!front_solve(&f, 0, 0, 'N'))
        return 0;
    kept = 0;
    for (size_t i = 0; i < k - q; i++)
        kept += (double)f.values[f.p - 1 - i];
    l->kept = kept + high;
    factor = front_spend(&f, k - q, allowed / 16 / (double)all, kept + 0.9 * allowed);
    if (factor == 0 || !front_solve(&f, factor, allowed / 16 / (double)all, 'V'))
        return 0;
    l->excess = fmax(front_sum(&f, k - q) - kept, 0);
    l->top = fmax((double)f.values[f.p - 1], f.mu);
    if (q > 0) { /* the same step as in svd.c, settle() */
        gap = (double)values[d - q] - l->top;
        l->excess += gap > 0 ? coupling / gap : l->total;
        l->top = gap > 0 ? (double)values[d - 1] * (1 + 1e-5) + coupling / gap : l->total;
    }
    if (l->excess > allowed || !definite(&f, ritz, m, image))
        return 0;
    for (size_t i = 0; i < k; i++)
        memcpy(v + i * n, ritz + (all - 1 - i) * n, n * sizeof *v);
    l->proved = true;
    return 0;
}

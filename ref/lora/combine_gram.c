/* combine_best() by Gram matrices: see combine.h for the method.
 *
 * Two precisions. Sums in f32 are tried first, for the Gram matrices and for the core; what they lose is bounded, and where
 * that bound is too large the matrices and the core are f64.
 */
#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

#include "ref/base/dtype.h"
#include "ref/lora/combine_work.h"
#include "ref/lora/svd_work.h"

/* The reciprocal 1-norm condition of a normalised Gram matrix above which f32 sums are good enough: an entry is off by about
 * 2e-7, so A is known to a few 1e-4 relatively in every direction, and eigenvalues near the cut that this could mix up
 * differ by no more than that. */
#define RCOND_F32 1e-3f
/* The smallest pivot of L^2 in f64 below which the Householder route is taken: the f32 product with L^-1 would lose more
 * than three of its seven digits. */
#define PIVOT_F64 1e-7

/* g [r, r], both triangles, = U'U or D D' with sums in f32, and l its Cholesky factor (row-major, lower). Returns whether that
 * is good enough. */
static bool gram_f32(float *g, float *l, struct stack *k, bool down)
{
    size_t r = k->r, rows = down ? k->in : k->out, mark = k->used;
    const float *x = down ? k->d : k->u;
    float *work = combine_take(k, 3 * r, sizeof *work), norm, rcond = 0;
    int *integers = combine_take(k, r, sizeof *integers), n = (int)r;
    bool fine;

    if (x) {
        cblas_ssyrk(CblasRowMajor, CblasLower, down ? CblasNoTrans : CblasTrans, n, (int)rows, 1, x, down ? (int)rows : n, 0, g,
                    n);
    } else {
        memset(g, 0, r * r * sizeof *g);
        for (size_t i = 0; i < r; i++)
            g[i * r + i] = 1;
    }
    svd_mirror(g, r);
    memcpy(l, g, r * r * sizeof *l);
    /* row-major lower is column-major upper; the functions without _work go over all numbers once more, for NaNs */
    norm = LAPACKE_slansy_work(LAPACK_COL_MAJOR, '1', 'U', n, g, n, work);
    fine = LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'U', n, l, n) == 0 &&
           LAPACKE_spocon_work(LAPACK_COL_MAJOR, 'U', n, l, n, norm, &rcond, work, integers) == 0 && rcond > RCOND_F32;
    k->used = mark;
    return fine;
}

/* The same with sums in f64. */
static void gram_f64(double *g, struct stack *k, bool down)
{
    size_t r = k->r, mark = k->used, rows = down ? k->in : k->out;
    const float *x = down ? k->d : k->u;
    double *panel = combine_take(k, COMBINE_ROWS * r, sizeof *panel);

    for (size_t at = 0; at < rows; at += COMBINE_ROWS) {
        size_t n = rows - at < COMBINE_ROWS ? rows - at : COMBINE_ROWS;

        for (size_t j = 0; down && j < r; j++)
            dtype_convert(panel + j * n, DT_F64, x + j * rows + at, DT_F32, n);
        if (!down)
            dtype_convert(panel, DT_F64, x + at * r, DT_F32, n * r);
        cblas_dsyrk(CblasRowMajor, CblasLower, down ? CblasNoTrans : CblasTrans, (int)r, (int)n, 1, panel, (int)(down ? n : r),
                    at ? 1 : 0, g, (int)r);
    }
    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < i; j++)
            g[j * r + i] = g[i * r + j];
    k->used = mark;
}

/* l (row-major, lower) = the Cholesky factor of g. Returns the smallest pivot, 0 when g is not positive. */
static double cholesky_f64(double *l, const double *g, size_t r)
{
    double least = 1;

    memcpy(l, g, r * r * sizeof *l);
    if (LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'U', (int)r, l, (int)r))
        return 0;
    for (size_t i = 0; i < r; i++)
        least = l[i * r + i] * l[i * r + i] < least ? l[i * r + i] * l[i * r + i] : least;
    return least;
}

void combine_expand(float *up, float *down, const struct stack *k, size_t rank, const float *up_t, const float *down_t)
{
    size_t r = k->r;

    if (k->u)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)k->out, (int)rank, (int)r, 1, k->u, (int)r, up_t, (int)r, 0,
                    up, (int)rank);
    for (size_t i = 0; !k->u && i < r; i++)
        for (size_t j = 0; j < rank; j++)
            up[i * rank + j] = up_t[j * r + i];
    if (k->d)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rank, (int)k->in, (int)r, 1, down_t, (int)r, k->d,
                    (int)k->in, 0, down, (int)k->in);
    else
        memcpy(down, down_t, rank * r * sizeof *down);
}

size_t combine_ormtr_work(size_t r)
{
    return 64 * r + 65 * 64;
}

static void scale_signed_f64(double *x, size_t n, double a)
{
    size_t top = cblas_idamax((int)n, x, 1);

    cblas_dscal((int)n, x[top] < 0 ? -a : a, x, 1);
}

/* The eigenvectors of a's c->rank largest eigenvalues as rows of v [c->rank, r], sv [r] the roots of all eigenvalues,
 * descending. Fills c. a is used up; z [r, r] is scratch. Returns 0 or -1. */
static int eigen_f64(double *v, double *sv, double *a, double *z, struct combined *c, const struct rank_rule *rule,
                     struct stack *k)
{
    size_t r = k->r;
    double *d = combine_take(k, r, sizeof *d), *e = combine_take(k, r, sizeof *e), *tau = combine_take(k, r, sizeof *tau), *top;
    double *work = combine_take(k, combine_ormtr_work(r), sizeof *work);

    if (LAPACKE_dsytrd(LAPACK_COL_MAJOR, 'L', (int)r, a, (int)r, d, e, tau) ||
        LAPACKE_dstedc(LAPACK_COL_MAJOR, 'I', (int)r, d, e, z, (int)r))
        return -1;
    for (size_t i = 0; i < r; i++)
        sv[i] = d[r - 1 - i] > 0 ? sqrt(d[r - 1 - i]) : 0;
    combine_choose(c, rule, sv, k, sqrt(4 * (double)r * 0x1p-52));
    top = z + (r - c->rank) * r;
    if (LAPACKE_dormtr_work(LAPACK_COL_MAJOR, 'L', 'L', 'N', (int)r, (int)c->rank, a, (int)r, tau, top, (int)r, work,
                            (int)combine_ormtr_work(r)))
        return -1;
    for (size_t i = 0; i < c->rank; i++)
        memcpy(v + i * r, top + (c->rank - 1 - i) * r, r * sizeof *v);
    return 0;
}

/* a: the Gram matrix of U, used up; l: the factor of D's. */
static bool core_f64(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule, double *a,
                     const double *l)
{
    size_t r = k->r;
    double *up_t = combine_take(k, r * r, sizeof *up_t), *down_t = combine_take(k, r * r, sizeof *down_t);
    double *sv = combine_take(k, r, sizeof *sv);
    float *narrow;

    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < r; j++)
            a[i * r + j] *= k->s[i] * k->s[j];
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)r, (int)r, 1, l, (int)r, a, (int)r);
    cblas_dtrmm(CblasRowMajor, CblasLeft, CblasLower, CblasTrans, CblasNonUnit, (int)r, (int)r, 1, l, (int)r, a, (int)r);
    if (eigen_f64(up_t, sv, a, down_t, c, rule, k) || sv[0] == 0)
        return false;
    for (size_t i = 0; i < c->rank; i++)
        scale_signed_f64(up_t + i * r, r, sqrt(sv[i]));
    memcpy(down_t, up_t, c->rank * r * sizeof *down_t);
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)c->rank, (int)r, 1, l, (int)r, down_t,
                (int)r);
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)c->rank, (int)r, 1, l, (int)r, up_t,
                (int)r);
    for (size_t i = 0; i < c->rank; i++)
        for (size_t j = 0; j < r; j++)
            up_t[i * r + j] *= k->s[j] / sv[i];
    narrow = combine_take(k, 2 * c->rank * r, sizeof *narrow);
    dtype_convert(narrow, DT_F32, up_t, DT_F64, c->rank * r);
    dtype_convert(narrow + c->rank * r, DT_F32, down_t, DT_F64, c->rank * r);
    combine_expand(up, down, k, c->rank, narrow, narrow + c->rank * r);
    return true;
}

bool combine_by_gram(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule)
{
    size_t n = k->r * k->r, mark;
    float *gu = combine_take(k, n, sizeof *gu), *gd = combine_take(k, n, sizeof *gd), *l = combine_take(k, n, sizeof *l), *copy;
    double *a, *g, *lower;
    bool up_fine = gram_f32(gu, l, k, false), down_fine = gram_f32(gd, l, k, true);

    mark = k->used;
    copy = combine_take(k, n, sizeof *copy);
    if (up_fine && down_fine && rule->method == RANK_FIXED && rule->max_rank < k->r &&
        combine_core32(up, down, c, k, rule, memcpy(copy, gu, n * sizeof *copy), l))
        return true;
    k->used = mark;
    a = combine_take(k, n, sizeof *a);
    g = combine_take(k, n, sizeof *g);
    lower = combine_take(k, n, sizeof *lower);
    if (up_fine)
        dtype_convert(a, DT_F64, gu, DT_F32, n);
    else
        gram_f64(a, k, false);
    if (down_fine)
        dtype_convert(g, DT_F64, gd, DT_F32, n);
    else
        gram_f64(g, k, true);
    return cholesky_f64(lower, g, k->r) >= PIVOT_F64 && core_f64(up, down, c, k, rule, a, lower);
}

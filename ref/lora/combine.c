#include "ref/lora/combine.h"

#include <cblas.h>
#include <lapacke.h>
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/dtype.h"
#include "ref/base/mem.h"
#include "ref/base/simd.h"

/* The reciprocal 1-norm condition of a normalised Gram matrix above which f32 sums are good enough: an entry is off by about
 * 2e-7, so A is known to a few 1e-4 relatively in every direction, and eigenvalues near the cut that this could mix up
 * differ by no more than that. */
#define RCOND_F32 1e-3
/* The smallest pivot of L^2 in f64 below which the Householder route is taken: the f32 product with L^-1 would lose more
 * than three of its seven digits. */
#define PIVOT_F64 1e-7
#define ROWS      256 /* rows converted to f64 at a time */

/* The stacked problem S = U diag(s) D. A side that is NULL is the identity. All row-major. */
struct stack {
    size_t out, in, r;
    float *u;     /* [out, r], unit columns */
    float *d;     /* [r, in], unit rows */
    double *s;    /* [r] */
    double size;  /* norm of s as stacked: what the terms of S weigh before they cancel each other */
    double floor; /* singular values below it are noise of the f32 product that collapse() took */
    struct combine_work *work;
    size_t used; /* bytes of work in use */
};

void combine_work_free(struct combine_work *w)
{
    free(w->data);
    *w = (struct combine_work){0};
}

/* count * size bytes from the work area, which reserve() has made large enough. */
static void *take(struct stack *k, size_t count, size_t size)
{
    void *p = (char *)k->work->data + k->used;

    k->used += (count * size + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    return p;
}

/* Room for everything below: the stacked factors and the collapsed one in f32, their QR in f64, eight R x R in f64. */
static int reserve(struct combine_work *w, size_t out, size_t in, size_t r, struct err *err)
{
    size_t sides, cores, need;

    if (out > INT_MAX / 16 || in > INT_MAX / 16 || r > INT_MAX / 16)
        return err_set(err, "a module of %zu x %zu with a total rank of %zu is too large to combine; use --dim or fewer files",
                       out, in, r);
    if (!mem_mul(out + in + 2 * ROWS, r, &sides) || !mem_mul(sides, 2 * sizeof(float) + 2 * sizeof(double), &sides) ||
        !mem_mul(r, r, &cores) || !mem_mul(cores, 10 * sizeof(double), &cores) || !mem_add(sides, cores, &need) ||
        !mem_add(need, 4 * (out + in + 64 * r) * sizeof(double) + 64 * MEM_ALIGN, &need))
        return err_memory(err, (unsigned long long)-1, "the factors of a module");
    if (need <= w->size)
        return 0;
    combine_work_free(w);
    w->data = mem_new(need, "the factors of a module", err);
    if (!w->data)
        return -1;
    w->size = need;
    return 0;
}

size_t combine_max_rank(const struct lora_factors *f, size_t n, size_t out, size_t in, const struct rank_rule *rule)
{
    size_t r = factors_total_rank(f, n);

    r = r < rule->max_rank ? r : rule->max_rank;
    r = r < out ? r : out;
    r = r < in ? r : in;
    return r ? r : 1;
}

void combine_concat(float *up, float *down, const struct lora_factors *f, size_t n, size_t out, size_t in)
{
    size_t r = factors_total_rank(f, n), at = 0;

    for (size_t i = 0; i < n; i++) {
        for (size_t row = 0; row < out; row++)
            for (size_t j = 0; j < f[i].rank; j++)
                up[row * r + at + j] = (float)(f[i].scale * (double)f[i].up[row * f[i].rank + j]);
        memcpy(down + at * in, f[i].down, f[i].rank * in * sizeof *down);
        at += f[i].rank;
    }
}

/* sum[j] += x[j]^2. In f64: an f32 factor cannot overflow it. */
SIMD_CLONES static void add_squares(double *restrict sum, const float *restrict x, size_t n)
{
    for (size_t j = 0; j < n; j++)
        sum[j] += (double)x[j] * (double)x[j];
}

SIMD_CLONES static void scaled_copy(float *restrict y, const float *restrict x, double a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (float)((double)x[i] * a);
}

SIMD_CLONES static void columns_scaled(float *restrict y, const float *restrict x, const double *restrict a, size_t n)
{
    for (size_t j = 0; j < n; j++)
        y[j] = (float)((double)x[j] * a[j]);
}

static void column_norms(double *norm, const float *x, size_t rows, size_t cols)
{
    memset(norm, 0, cols * sizeof *norm);
    for (size_t i = 0; i < rows; i++)
        add_squares(norm, x + i * cols, cols);
    for (size_t j = 0; j < cols; j++)
        norm[j] = sqrt(norm[j]);
}

static double row_norm(const float *x, size_t n)
{
    double part[128] = {0}, sum = 0;

    for (size_t i = 0; i < n; i += 128)
        add_squares(part, x + i, n - i < 128 ? n - i : 128);
    for (size_t j = 0; j < 128; j++)
        sum += part[j];
    return sqrt(sum);
}

/* Stacks the modules, leaving out ranks that contribute nothing: afterwards k->r counts those that do. */
static void stack_modules(struct stack *k, const struct lora_factors *f, size_t n)
{
    size_t total = factors_total_rank(f, n), at = 0, *from = take(k, total, sizeof *from);
    double *norm = take(k, total, sizeof *norm), *factor = take(k, total, sizeof *factor);

    for (size_t i = 0; i < n; i++) {
        size_t first = at;

        column_norms(norm, f[i].up, k->out, f[i].rank);
        for (size_t j = 0; j < f[i].rank; j++) {
            double d = row_norm(f[i].down + j * k->in, k->in);

            if (norm[j] == 0 || d == 0 || f[i].scale == 0)
                continue;
            scaled_copy(k->d + at * k->in, f[i].down + j * k->in, 1 / d, k->in);
            k->s[at] = f[i].scale * norm[j] * d;
            factor[at] = 1 / norm[j];
            from[at++] = j;
        }
        for (size_t row = 0; row < k->out; row++) { /* rows of the unpacked width; packed below */
            const float *x = f[i].up + row * f[i].rank;
            float *y = k->u + row * total;

            if (at - first == f[i].rank)
                columns_scaled(y + first, x, factor + first, f[i].rank);
            else
                for (size_t j = first; j < at; j++)
                    y[j] = (float)((double)x[from[j]] * factor[j]);
        }
    }
    for (size_t row = 1; row < k->out && at < total; row++)
        memmove(k->u + row * at, k->u + row * total, at * sizeof *k->u);
    k->r = at;
    k->size = cblas_dnrm2((int)at, k->s, 1);
}

/* Where the total rank exceeds a side, S loses nothing by being that side's identity times a full matrix. */
static void collapse(struct stack *k)
{
    size_t r = k->r, least = k->out < k->in ? k->out : k->in;
    float *full;

    if (r <= least)
        return;
    for (size_t i = 0; i < k->out; i++)
        for (size_t j = 0; j < r; j++)
            k->u[i * r + j] = (float)((double)k->u[i * r + j] * k->s[j]);
    full = take(k, k->out * k->in, sizeof *full);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)k->out, (int)k->in, (int)r, 1, k->u, (int)r, k->d, (int)k->in,
                0, full, (int)k->in);
    if (k->in <= k->out)
        k->u = full, k->d = NULL;
    else
        k->d = full, k->u = NULL;
    k->r = least;
    k->floor = 0x1p-24 * k->size;
    for (size_t j = 0; j < least; j++)
        k->s[j] = 1;
}

/* g [r, r], both triangles, = U'U or D D' with sums in f32, or in f64 when `wide`. */
static void gram(double *g, struct stack *k, bool down, bool wide)
{
    size_t r = k->r, mark = k->used, rows = down ? k->in : k->out;
    const float *x = down ? k->d : k->u;

    if (!x) {
        memset(g, 0, r * r * sizeof *g);
        for (size_t i = 0; i < r; i++)
            g[i * r + i] = 1;
        return;
    }
    if (wide) {
        double *panel = take(k, ROWS * r, sizeof *panel);

        for (size_t at = 0; at < rows; at += ROWS) {
            size_t n = rows - at < ROWS ? rows - at : ROWS;

            for (size_t j = 0; down && j < r; j++)
                dtype_convert(panel + j * n, DT_F64, x + j * rows + at, DT_F32, n);
            if (!down)
                dtype_convert(panel, DT_F64, x + at * r, DT_F32, n * r);
            cblas_dsyrk(CblasRowMajor, CblasLower, down ? CblasNoTrans : CblasTrans, (int)r, (int)n, 1, panel,
                        (int)(down ? n : r), at ? 1 : 0, g, (int)r);
        }
    } else {
        float *h = take(k, r * r, sizeof *h);

        cblas_ssyrk(CblasRowMajor, CblasLower, down ? CblasNoTrans : CblasTrans, (int)r, (int)rows, 1, x,
                    (int)(down ? rows : r), 0, h, (int)r);
        dtype_convert(g, DT_F64, h, DT_F32, r * r);
    }
    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < i; j++)
            g[j * r + i] = g[i * r + j];
    k->used = mark;
}

/* g becomes its Cholesky factor L (row-major, lower). Returns the smallest pivot L_ii^2, or 0 when g is not positive. With
 * rcond, also the reciprocal condition number of g. */
static double cholesky(double *g, size_t r, double *rcond)
{
    double least = 1, norm = 0;

    for (size_t i = 0; rcond && i < r; i++) {
        double sum = 0;

        for (size_t j = 0; j < r; j++)
            sum += fabs(g[i * r + j]);
        norm = sum > norm ? sum : norm;
    }
    if (LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'U', (int)r, g, (int)r)) /* row-major lower is column-major upper */
        return 0;
    for (size_t i = 0; i < r; i++)
        least = g[i * r + i] * g[i * r + i] < least ? g[i * r + i] * g[i * r + i] : least;
    if (rcond && LAPACKE_dpocon(LAPACK_COL_MAJOR, 'U', (int)r, g, (int)r, norm, rcond))
        return 0;
    return least;
}

/* g = the Gram matrix of a side, l = its Cholesky factor, *pivot its smallest pivot: from f32 sums where these are enough,
 * otherwise from f64 sums. */
static void gram_checked(double *g, double *l, double *pivot, struct stack *k, bool down)
{
    double rcond = 0;

    gram(g, k, down, false);
    memcpy(l, g, k->r * k->r * sizeof *l);
    *pivot = cholesky(l, k->r, &rcond);
    if (*pivot > 0 && rcond > RCOND_F32)
        return;
    gram(g, k, down, true);
    memcpy(l, g, k->r * k->r * sizeof *l);
    *pivot = cholesky(l, k->r, NULL);
}

/* What the singular values (descending, [k->r]) say about the cut. Those below the noise of the arithmetic, relative to the
 * largest value or to the terms that cancelled, count as zero when the rank is chosen. */
static void choose(struct combined *c, const struct rank_rule *rule, double *sv, const struct stack *k, double noise)
{
    double sum = 0, kept = 0, least = noise * (sv[0] > k->size ? sv[0] : k->size);
    size_t n = k->r;

    least = least > k->floor ? least : k->floor;
    for (size_t i = 0; i < n; i++)
        if (!(sv[i] > least))
            sv[i] = 0;
    c->rank = rank_choose(rule, sv, n);
    c->norm2 = c->lost2 = 0;
    for (size_t i = n; i-- > 0;) {
        c->norm2 += sv[i] * sv[i];
        sum += sv[i];
        if (i >= c->rank)
            c->lost2 += sv[i] * sv[i];
        else
            kept += sv[i];
    }
    c->first = sv[0];
    c->last = sv[c->rank - 1];
    c->sum_kept = sum > 0 ? kept / sum : 1;
}

/* x [n] *= a, with the sign that makes the element of largest magnitude positive. */
static void scale_signed(double *x, size_t n, double a)
{
    size_t top = 0;

    for (size_t i = 1; i < n; i++)
        if (fabs(x[i]) > fabs(x[top]))
            top = i;
    cblas_dscal((int)n, x[top] < 0 ? -a : a, x, 1);
}

/* up = U @ up_t' and down = D-side product, from coefficient rows up_t, down_t [rank, r]. */
static void expand(float *up, float *down, struct stack *k, size_t rank, const double *up_t, const double *down_t)
{
    size_t r = k->r;
    float *c = take(k, rank * r, sizeof *c);

    dtype_convert(c, DT_F32, up_t, DT_F64, rank * r);
    if (k->u)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)k->out, (int)rank, (int)r, 1, k->u, (int)r, c, (int)r, 0, up,
                    (int)rank);
    for (size_t i = 0; !k->u && i < r; i++)
        for (size_t j = 0; j < rank; j++)
            up[i * rank + j] = c[j * r + i];
    dtype_convert(c, DT_F32, down_t, DT_F64, rank * r);
    if (k->d)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rank, (int)k->in, (int)r, 1, c, (int)r, k->d, (int)k->in, 0,
                    down, (int)k->in);
    else
        memcpy(down, c, rank * r * sizeof *down);
}

/* Eigenvalues of a [r, r] (symmetric, kept) into lambda, descending, in the order in which tridiagonal eigenvectors stand in
 * z from the last column to the first; house and tau keep the transformation. In f32: good to a few eps(f32) of the largest. */
static int tridiagonal_f32(const double *a, size_t r, float *house, float *tau, float *z, double *lambda)
{
    float *d = tau + r, *e = d + r, size = 0;

    for (size_t i = 0; i < r; i++)
        size += (float)a[i * r + i];
    if (!(size > 0x1p-100f && size < 0x1p100f))
        return -1;
    dtype_convert(house, DT_F32, a, DT_F64, r * r);
    if (LAPACKE_ssytrd(LAPACK_COL_MAJOR, 'L', (int)r, house, (int)r, d, e, tau) ||
        LAPACKE_sstedc(LAPACK_COL_MAJOR, 'I', (int)r, d, e, z, (int)r))
        return -1;
    for (size_t i = 0; i < r; i++)
        lambda[i] = (double)d[r - 1 - i];
    return 0;
}

/* Whether f32 eigenvectors are good enough for a cut after `rank`. They are exact for a matrix that is off by some
 * 4 eps(f32) lambda_1 in norm, so the `rank` largest of them capture at most 2 * rank * 4 eps lambda_1 less than is possible
 * (Fan 1949); an error of (1 + 1e-3) allows twice 1e-3 of what is cut off, of which half is used here. */
static bool f32_suffices(const double *lambda, size_t r, size_t rank)
{
    double cut = 0;

    for (size_t i = r; i-- > rank;)
        cut += lambda[i] > 0 ? lambda[i] : 0;
    return 8 * (double)rank * 0x1p-24 * lambda[0] < 1e-3 * cut;
}

/* The eigenvectors of a's c->rank largest eigenvalues as rows of v [c->rank, r]; sv [r] the roots of all eigenvalues,
 * descending. Fills c. a is used up; z [r, r] is scratch. Returns 0 or -1. */
static int eigen(double *v, double *sv, double *a, double *z, struct combined *c, const struct rank_rule *rule, struct stack *k)
{
    size_t r = k->r;
    double *lambda = take(k, r, sizeof *lambda), *tau = take(k, 3 * r, sizeof *tau), *d = tau + r, *e = d + r;
    float *house = take(k, r * r, sizeof *house), *zf = take(k, r * r, sizeof *zf), *tauf = take(k, 3 * r, sizeof *tauf);
    bool narrow = rule->method == RANK_FIXED && rule->max_rank < r && tridiagonal_f32(a, r, house, tauf, zf, lambda) == 0 &&
                  f32_suffices(lambda, r, rule->max_rank);

    if (!narrow) {
        if (LAPACKE_dsytrd(LAPACK_COL_MAJOR, 'L', (int)r, a, (int)r, d, e, tau) ||
            LAPACKE_dstedc(LAPACK_COL_MAJOR, 'I', (int)r, d, e, z, (int)r))
            return -1;
        for (size_t i = 0; i < r; i++)
            lambda[i] = d[r - 1 - i];
    }
    for (size_t i = 0; i < r; i++)
        sv[i] = lambda[i] > 0 ? sqrt(lambda[i]) : 0;
    choose(c, rule, sv, k, sqrt(4 * (double)r * 0x1p-52)); /* narrow: the cut is far above f32's noise, so all kept are */
    if (narrow) {
        float *top = zf + (r - c->rank) * r;

        if (LAPACKE_sormtr(LAPACK_COL_MAJOR, 'L', 'L', 'N', (int)r, (int)c->rank, house, (int)r, tauf, top, (int)r))
            return -1;
        for (size_t i = 0; i < c->rank; i++)
            dtype_convert(v + i * r, DT_F64, top + (c->rank - 1 - i) * r, DT_F32, r);
    } else {
        double *top = z + (r - c->rank) * r;

        if (LAPACKE_dormtr(LAPACK_COL_MAJOR, 'L', 'L', 'N', (int)r, (int)c->rank, a, (int)r, tau, top, (int)r))
            return -1;
        for (size_t i = 0; i < c->rank; i++)
            memcpy(v + i * r, top + (c->rank - 1 - i) * r, r * sizeof *v);
    }
    return 0;
}

/* The fast route. Returns 1 when it is done, 0 when the problem is too ill-conditioned for it. */
static int best_by_gram(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule)
{
    size_t r = k->r;
    double *a = take(k, r * r, sizeof *a), *l = take(k, r * r, sizeof *l), *down_t = take(k, r * r, sizeof *down_t);
    double *sv = take(k, r, sizeof *sv), *up_t = take(k, r * r, sizeof *up_t), pivot;

    gram_checked(a, l, &pivot, k, false);
    gram_checked(up_t, l, &pivot, k, true);
    if (pivot < PIVOT_F64)
        return 0;
    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < r; j++)
            a[i * r + j] *= k->s[i] * k->s[j];
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)r, (int)r, 1, l, (int)r, a, (int)r);
    cblas_dtrmm(CblasRowMajor, CblasLeft, CblasLower, CblasTrans, CblasNonUnit, (int)r, (int)r, 1, l, (int)r, a, (int)r);
    if (eigen(up_t, sv, a, down_t, c, rule, k) || sv[0] == 0)
        return 0;
    for (size_t i = 0; i < c->rank; i++)
        scale_signed(up_t + i * r, r, sqrt(sv[i]));
    memcpy(down_t, up_t, c->rank * r * sizeof *down_t);
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)c->rank, (int)r, 1, l, (int)r, down_t,
                (int)r);
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)c->rank, (int)r, 1, l, (int)r, up_t,
                (int)r);
    for (size_t i = 0; i < c->rank; i++)
        for (size_t j = 0; j < r; j++)
            up_t[i * r + j] *= k->s[j] / sv[i];
    expand(up, down, k, c->rank, up_t, down_t);
    return 1;
}

/* q [rows, r] column-major in f64 = U diag(s) or D', then its QR: the triangle stays above, Householder vectors below. */
static int factorise(double *q, double *tau, const struct stack *k, bool down, struct err *err)
{
    size_t r = k->r, rows = down ? k->in : k->out;
    const float *x = down ? k->d : k->u;

    for (size_t j = 0; j < r; j++)
        for (size_t i = 0; i < rows; i++) {
            double v = !x ? i == j : down ? (double)x[j * rows + i] : (double)x[i * r + j];

            q[j * rows + i] = down ? v : v * k->s[j];
        }
    if (LAPACKE_dgeqrf(LAPACK_COL_MAJOR, (int)rows, (int)r, q, (int)rows, tau))
        return err_set(err, "the QR factorisation of a LoRA factor failed; report this with the files");
    return 0;
}

/* q's orthonormal basis times coef [r, rank] (column-major), both sides scaled by the roots of sv. p [rows, rank]. */
static int from_basis(double *p, const double *q, const double *tau, size_t rows, size_t r, const double *coef, size_t step,
                      size_t rank, const double *sv, struct err *err)
{
    for (size_t j = 0; j < rank; j++)
        for (size_t i = 0; i < rows; i++)
            p[j * rows + i] = i < r ? coef[j * (step == 1 ? r : 1) + i * step] * sqrt(sv[j]) : 0;
    if (LAPACKE_dormqr(LAPACK_COL_MAJOR, 'L', 'N', (int)rows, (int)rank, (int)r, q, (int)rows, tau, p, (int)rows))
        return err_set(err, "the product with a LoRA factor's basis failed; report this with the files");
    return 0;
}

/* The route that always works: QR of both sides and an SVD of the core, in f64. */
static int best_by_qr(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule,
                      struct err *err)
{
    size_t r = k->r, out = k->out, in = k->in;
    double *qu = take(k, out * r, sizeof *qu), *qd = take(k, in * r, sizeof *qd), *tau = take(k, 2 * r, sizeof *tau);
    double *core = take(k, r * r, sizeof *core), *x = take(k, r * r, sizeof *x), *yt = take(k, r * r, sizeof *yt);
    double *keep = take(k, r * r, sizeof *keep), *sv = take(k, r, sizeof *sv), *super = take(k, r, sizeof *super), *p;

    if (factorise(qu, tau, k, false, err) || factorise(qd, tau + r, k, true, err))
        return -1;
    for (size_t j = 0; j < r; j++)
        for (size_t i = 0; i < r; i++)
            core[j * r + i] = i <= j ? qu[j * out + i] : 0;
    cblas_dtrmm(CblasColMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, (int)r, (int)r, 1, qd, (int)in, core, (int)r);
    memcpy(keep, core, r * r * sizeof *keep);
    if (LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', (int)r, (int)r, core, (int)r, sv, x, (int)r, yt, (int)r) &&
        LAPACKE_dgesvd(LAPACK_COL_MAJOR, 'S', 'S', (int)r, (int)r, keep, (int)r, sv, x, (int)r, yt, (int)r, super))
        return err_set(err, "the singular values of a module did not converge; report this with the files");
    choose(c, rule, sv, k, (double)r * 0x1p-52);
    p = take(k, (out > in ? out : in) * c->rank, sizeof *p);
    for (size_t j = 0; j < c->rank; j++) { /* the sign convention of the other route: right vectors decide */
        size_t top = 0;

        for (size_t i = 1; i < r; i++)
            if (fabs(yt[i * r + j]) > fabs(yt[top * r + j]))
                top = i;
        if (yt[top * r + j] < 0) {
            cblas_dscal((int)r, -1, yt + j, (int)r);
            cblas_dscal((int)r, -1, x + j * r, 1);
        }
    }
    if (from_basis(p, qu, tau, out, r, x, 1, c->rank, sv, err))
        return -1;
    for (size_t i = 0; i < out; i++)
        for (size_t j = 0; j < c->rank; j++)
            up[i * c->rank + j] = (float)p[j * out + i];
    if (from_basis(p, qd, tau + r, in, r, yt, r, c->rank, sv, err))
        return -1;
    dtype_convert(down, DT_F32, p, DT_F64, in * c->rank);
    return 0;
}

int combine_best(float *up, float *down, struct combined *c, const struct lora_factors *f, size_t n, size_t out, size_t in,
                 const struct rank_rule *rule, struct combine_work *work, struct err *err)
{
    size_t total = factors_total_rank(f, n), mark;
    struct stack k = {.out = out, .in = in, .work = work};

    if (reserve(work, out, in, total, err))
        return -1;
    k.u = take(&k, out * total, sizeof *k.u);
    k.d = take(&k, in * total, sizeof *k.d);
    k.s = take(&k, total, sizeof *k.s);
    stack_modules(&k, f, n);
    if (k.r == 0) {
        *c = (struct combined){.rank = 1, .sum_kept = 1};
        memset(up, 0, out * sizeof *up);
        memset(down, 0, in * sizeof *down);
        return 0;
    }
    collapse(&k);
    mark = k.used;
    if (best_by_gram(up, down, c, &k, rule))
        return 0;
    k.used = mark;
    return best_by_qr(up, down, c, &k, rule, err);
}

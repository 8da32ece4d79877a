/* The core of combine_gram.c in f32: A = L' G L with G = diag(s) U'U diag(s), and its largest eigenvectors.
 *
 * f32 knows A's eigenvalues to some 1e-6 of the largest one only, and LoRAs have a few directions that are far stronger than
 * those at the cut. So these are taken off first: p orthonormal vectors V from a few steps of subspace iteration (Parlett, "The
 * Symmetric Eigenvalue Problem", ch. 14). With an orthonormal basis W of what is orthogonal to V, the rest of the problem is
 * C = (L W)' G (L W), of r - p rows. L W is computed before it is multiplied with itself, so that C is off by eps times the
 * roots of both A's and C's norm, and not by eps times A's.
 *
 * V and the best vectors of C together lose little. In the basis of V and W A = [T E'; E C]. The eigenvalues of A
 * behind the p-th are no larger than those of C (Cauchy's interlacing); and since A <= [T + E'E / gap, 0; 0, C + gap] for
 * gap = t_p - c_1 > 0, the first p sum up to tr T + ||E||^2 / gap at most. */
#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/lora/combine_work.h"

enum { BLOCK = 48, ROUNDS = 3, LEAST = 96 /* smaller problems take no time in f64 */ };

#define EPS 0x1p-24

/* An error of (1 + 1e-3) allows to lose twice 1e-3 of what is cut off: half of it here, half for the Gram matrices. */
#define LOSS_F32   5e-4
#define LOSS_TAKEN 5e-4

struct core {
    size_t r, rank, p; /* p vectors are taken off */
    const float *g, *l, *s;
    float *a, *v, *t; /* A [r, r], then C [r - p, r - p]; V [BLOCK, r], one vector a row; T's diagonal [BLOCK], descending */
    float *tau;       /* [r] scratch */
    float *q,
        *q_tau;  /* [BLOCK, r], [BLOCK]: reflectors whose product has V's span in its first p columns and W in the others */
    float *work; /* [combine_ormtr_work(r)] */
    double size2, missed2; /* ||A||, at most, and ||E||^2 */
    struct stack *k;
};

/* Whether f32 eigenvectors are good enough for a cut behind `rank`. They are exact for a matrix that is off by R with ||R||_F
 * of 80 eps c_1 at most (measured with OpenBLAS's kernels for AVX-512, AVX2 and SSE: 26 to 70 for 96 to 256 rows, spectra flat,
 * falling by 0.97 to 0.7, and flat with a few strong directions), and of 16 eps sqrt(c_1 ||A||) from the product that made C;
 * they capture at most 2 sqrt(rank) ||R||_F less than is possible. cut: the sum of the eigenvalues behind the rank, or no less;
 * first: c_1, size: ||A||, each or no more. */
static bool f32_suffices(double cut, double first, double size, size_t rank)
{
    return 2 * sqrt((double)rank) * EPS * (80 * first + 16 * sqrt(first * size)) < LOSS_F32 * cut;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return x < y ? -1 : x > y;
}

/* The same for A itself, asked before the work: the smallest diagonal elements sum to no less than the smallest eigenvalues
 * (Schur 1923), and the largest is no more than the largest. *cut: that sum. */
static bool f32_may_suffice(const struct core *c, double *cut)
{
    float *diagonal = c->tau;

    for (size_t i = 0; i < c->r; i++)
        diagonal[i] = c->a[i * c->r + i];
    qsort(diagonal, c->r, sizeof *diagonal, ascending);
    *cut = 0;
    for (size_t i = 0; i + c->rank < c->r; i++)
        *cut += (double)diagonal[i];
    return f32_suffices(*cut, (double)diagonal[c->r - 1], 0, c->rank);
}

/* A from G and L. */
static void form(struct core *c)
{
    int r = (int)c->r;

    memcpy(c->a, c->g, c->r * c->r * sizeof *c->a);
    cblas_strmm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, r, r, 1, c->l, r, c->a, r);
    cblas_strmm(CblasRowMajor, CblasLeft, CblasLower, CblasTrans, CblasNonUnit, r, r, 1, c->l, r, c->a, r);
}

/* x [b, r] = the rows of A whose diagonal elements are largest. */
static void start(const struct core *c, float *x, size_t b)
{
    size_t r = c->r;
    float least = c->tau[r - b]; /* sorted diagonal */

    for (size_t i = 0, n = 0; i < r && n < b; i++)
        if (c->a[i * r + i] >= least)
            memcpy(x + n++ * r, c->a + i * r, r * sizeof *x);
}

/* V [b, r] and T's diagonal; y [b, r] = V A. */
static bool iterate(struct core *c, float *y, float *small, size_t b)
{
    int r = (int)c->r, n = (int)b;
    float *v = c->v, *turned = small + b * b;

    start(c, y, b);
    for (int i = 0; i < ROUNDS; i++) {
        memcpy(v, y, b * c->r * sizeof *v);
        if (LAPACKE_sgeqrf(LAPACK_COL_MAJOR, r, n, v, r, c->tau) || LAPACKE_sorgqr(LAPACK_COL_MAJOR, r, n, n, v, r, c->tau))
            return false;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, r, r, 1, v, r, c->a, r, 0, y, r);
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, n, r, 1, y, r, v, r, 0, small, n);
    if (LAPACKE_ssyevd(LAPACK_COL_MAJOR, 'V', 'U', n, small, n, c->tau))
        return false;
    for (size_t i = 0; i < b; i++) { /* ascending: the last row is the largest's */
        c->t[i] = c->tau[b - 1 - i];
        memcpy(turned + i * b, small + (b - 1 - i) * b, b * sizeof *turned);
    }
    small = turned + b * b;
    for (int i = 0; i < 2; i++) {
        float *x = i ? y : v;

        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, r, n, 1, turned, n, x, r, 0, small, r);
        memcpy(x, small, b * c->r * sizeof *x);
    }
    return true;
}

static double residual2(const float *y, const float *v, float t, size_t r)
{
    double sum = 0;

    for (size_t i = 0; i < r; i++) {
        double e = (double)y[i] - (double)t * (double)v[i];

        sum += e * e;
    }
    return sum;
}

/* c->p: as many as are known well enough beside the gap behind them. 0: none are. cut: about what will be cut off, or more. */
static void choose_p(struct core *c, const float *y, size_t b, double cut)
{
    double sum = 0;

    c->p = 0;
    for (size_t i = 0; i + 1 < b; i++) {
        sum += residual2(y + i * c->r, c->v + i * c->r, c->t[i], c->r);
        if (sum < LOSS_TAKEN / 8 * cut * (double)(c->t[i] - c->t[i + 1])) {
            c->p = i + 1;
            c->missed2 = sum;
        }
    }
}

/* c->a = C and the reflectors; x, y [r, r] are scratch. */
static bool project(struct core *c, float *x, float *y)
{
    size_t r = c->r;
    int n = (int)r, p = (int)c->p, rest = n - p;

    memcpy(c->q, c->v, c->p * r * sizeof *c->q);
    for (size_t i = 0; i < r; i++) {
        memcpy(x + i * r, c->l + i * r, (i + 1) * sizeof *x);
        memset(x + i * r + i + 1, 0, (r - i - 1) * sizeof *x);
    }
    /* seen by columns x is L', so that reflectors from the left are those of L from the right */
    if (LAPACKE_sgeqrf(LAPACK_COL_MAJOR, n, p, c->q, n, c->q_tau) ||
        LAPACKE_sormqr_work(LAPACK_COL_MAJOR, 'L', 'T', n, n, p, c->q, n, c->q_tau, x, n, c->work, (int)combine_ormtr_work(r)))
        return false;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, rest, n, 1, c->g, n, x + p, n, 0, y, rest);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, rest, rest, n, 1, x + p, n, y, rest, 0, c->a, rest);
    return true;
}

/* Takes the strongest directions off A, if f32 cannot hold them beside the others. */
static bool take_off(struct core *c)
{
    size_t b = c->rank <= BLOCK ? c->rank - 1 : BLOCK, mark = c->k->used;
    float *x, *y, *small;
    double cut;
    bool done;

    for (size_t i = 0; i < c->r; i++)
        c->size2 += (double)c->a[i * c->r + i];
    if (f32_may_suffice(c, &cut))
        return true;
    if (c->r < LEAST || b == 0)
        return false;
    x = combine_take(c->k, c->r * c->r, sizeof *x);
    y = combine_take(c->k, c->r * c->r, sizeof *y);
    small = combine_take(c->k, 2 * b * b + b * c->r, sizeof *small);
    done = iterate(c, y, small, b);
    if (done)
        choose_p(c, y, b, cut);
    /* Ritz values are no more than eigenvalues: where these are too large, C's largest is */
    done = done && c->p > 0 && f32_suffices(cut, (double)c->t[c->p], c->size2, c->rank) && project(c, x, y);
    c->k->used = mark;
    return done;
}

/* C's vectors, z [more, n] by rows, ascending, behind V's: v [rank, r], largest first. */
static bool unite(const struct core *c, const float *z, size_t n, float *v)
{
    size_t r = c->r, p = c->p, more = c->rank - p;

    memcpy(v, c->v, p * r * sizeof *v);
    for (size_t i = 0; i < more; i++) {
        memset(v + (p + i) * r, 0, p * sizeof *v);
        memcpy(v + (p + i) * r + p, z + (more - 1 - i) * n, n * sizeof *v);
    }
    return p == 0 || LAPACKE_sormqr_work(LAPACK_COL_MAJOR, 'L', 'N', (int)r, (int)more, (int)p, c->q, (int)r, c->q_tau,
                                         v + p * r, (int)r, c->work, (int)combine_ormtr_work(r)) == 0;
}

/* Eigenvalues of C into d [r - p], ascending, and its largest eigenvectors behind those in V: v [rank, r], largest first. */
static bool eigen(struct core *c, float *d, float *v)
{
    size_t n = c->r - c->p, more = c->rank - c->p, mark = c->k->used;
    float *e = combine_take(c->k, n, sizeof *e), *z = combine_take(c->k, n * n, sizeof *z), *top = z + (n - more) * n;
    double cut = 0, first, gap;
    bool done;

    if (LAPACKE_ssytrd(LAPACK_COL_MAJOR, 'L', (int)n, c->a, (int)n, d, e, c->tau) ||
        LAPACKE_sstedc(LAPACK_COL_MAJOR, 'I', (int)n, d, e, z, (int)n))
        return false;
    for (size_t i = 0; i < n - more; i++)
        cut += d[i] > 0 ? (double)d[i] : 0;
    first = (double)d[n - 1];
    gap = c->p ? (double)c->t[c->p - 1] - first : 1;
    done = first > 0 && gap > 0 && c->missed2 <= LOSS_TAKEN * cut * gap &&
           f32_suffices(cut, first, c->p ? c->size2 : 0, c->rank) &&
           LAPACKE_sormtr_work(LAPACK_COL_MAJOR, 'L', 'L', 'N', (int)n, (int)more, c->a, (int)n, c->tau, top, (int)n, c->work,
                               (int)combine_ormtr_work(c->r)) == 0 &&
           unite(c, top, n, v);
    c->k->used = mark;
    return done;
}

/* x [n] *= a, with the sign that makes the element of largest magnitude positive. */
static void scale_signed(float *x, size_t n, float a)
{
    size_t top = cblas_isamax((int)n, x, 1);

    cblas_sscal((int)n, x[top] < 0 ? -a : a, x, 1);
}

/* The two factors from eigenvectors in up_t [rank, r], which are used up; size: of the numbers in s. */
static void finish(float *up, float *down, struct core *c, const double *sv, double size, float *up_t)
{
    size_t r = c->r;
    int n = (int)r, rank = (int)c->rank;
    float *down_t = c->a;

    for (size_t i = 0; i < c->rank; i++)
        scale_signed(up_t + i * r, r, (float)sqrt(sv[i]));
    memcpy(down_t, up_t, c->rank * r * sizeof *down_t);
    cblas_strsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, rank, n, 1, c->l, n, down_t, n);
    cblas_strmm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, rank, n, 1, c->l, n, up_t, n);
    for (size_t i = 0; i < c->rank; i++)
        for (size_t j = 0; j < r; j++)
            up_t[i * r + j] *= c->s[j] * (float)(size / sv[i]);
    combine_expand(up, down, c->k, c->rank, up_t, down_t);
}

bool combine_core32(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule, float *g,
                    const float *l)
{
    size_t r = k->r, rank = rule->max_rank, n = r * r;
    double *sv = combine_take(k, r, sizeof *sv), largest = 0;
    float *s = combine_take(k, r, sizeof *s), *d = combine_take(k, r, sizeof *d), *v;
    struct core core = {.r = r, .rank = rank, .g = g, .l = l, .s = s, .k = k};

    core.a = combine_take(k, n, sizeof *core.a);
    core.v = combine_take(k, BLOCK * r, sizeof *core.v);
    core.t = combine_take(k, BLOCK, sizeof *core.t);
    core.tau = combine_take(k, r, sizeof *core.tau);
    core.q = combine_take(k, BLOCK * r, sizeof *core.q);
    core.q_tau = combine_take(k, BLOCK, sizeof *core.q_tau);
    core.work = combine_take(k, combine_ormtr_work(r), sizeof *core.work);
    v = combine_take(k, rank * r, sizeof *v);
    for (size_t i = 0; i < r; i++)
        largest = fabs(k->s[i]) > largest ? fabs(k->s[i]) : largest;
    for (size_t i = 0; i < r; i++)
        s[i] = (float)(k->s[i] / largest);
    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < r; j++)
            g[i * r + j] *= s[i] * s[j];
    form(&core);
    if (!take_off(&core) || !eigen(&core, d, v))
        return false;
    for (size_t i = 0; i < r; i++) {
        float lambda = i < core.p ? core.t[i] : d[r - 1 - i];

        sv[i] = largest * sqrt(lambda > 0 ? (double)lambda : 0);
    }
    combine_choose(c, rule, sv, k, sqrt(4 * (double)r) * 0x1p-26); /* the cut is far above f32's noise, so all kept are */
    if (c->rank != rank)
        return false;
    finish(up, down, &core, sv, largest, v);
    return true;
}

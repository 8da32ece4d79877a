#include "ref/lora/combine.h"

#include <cblas.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/simd.h"
#include "ref/lora/combine_work.h"

void combine_work_free(struct combine_work *w)
{
    free(w->data);
    *w = (struct combine_work){0};
}

void *combine_take(struct stack *k, size_t count, size_t size)
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
    if (!mem_mul(out + in + 2 * COMBINE_ROWS, r, &sides) || !mem_mul(sides, 2 * sizeof(float) + 2 * sizeof(double), &sides) ||
        !mem_mul(r, r, &cores) || !mem_mul(cores, 10 * sizeof(double), &cores) || !mem_add(sides, cores, &need) ||
        !mem_add(need, 4 * (out + in + 64 * r + 65 * 64) * sizeof(double) + 64 * MEM_ALIGN, &need))
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
    size_t total = factors_total_rank(f, n), at = 0, *from = combine_take(k, total, sizeof *from);
    double *norm = combine_take(k, total, sizeof *norm), *factor = combine_take(k, total, sizeof *factor);

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
    full = combine_take(k, k->out * k->in, sizeof *full);
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

void combine_choose(struct combined *c, const struct rank_rule *rule, double *sv, const struct stack *k, double noise)
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

int combine_best(float *up, float *down, struct combined *c, const struct lora_factors *f, size_t n, size_t out, size_t in,
                 const struct rank_rule *rule, struct combine_work *work, struct err *err)
{
    size_t total = factors_total_rank(f, n), mark;
    struct stack k = {.out = out, .in = in, .work = work};

    if (reserve(work, out, in, total, err))
        return -1;
    k.u = combine_take(&k, out * total, sizeof *k.u);
    k.d = combine_take(&k, in * total, sizeof *k.d);
    k.s = combine_take(&k, total, sizeof *k.s);
    stack_modules(&k, f, n);
    if (k.r == 0) {
        *c = (struct combined){.rank = 1, .sum_kept = 1};
        memset(up, 0, out * sizeof *up);
        memset(down, 0, in * sizeof *down);
        return 0;
    }
    collapse(&k);
    mark = k.used;
    if (combine_by_gram(up, down, c, &k, rule))
        return 0;
    k.used = mark;
    return combine_by_qr(up, down, c, &k, rule, err);
}

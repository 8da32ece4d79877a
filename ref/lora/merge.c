#include "ref/lora/merge.h"

#include <cblas.h>
#include <limits.h>
#include <string.h>

#include "ref/base/simd.h"

/* A panel and its two f32 copies should stay in a core's second-level cache, but a GEMM of few rows wastes its time packing
 * the other operand: 64 rows are enough for 90% of the speed. */
#define PANEL_FLOATS   ((size_t)1 << 17)
#define PANEL_MIN_ROWS ((size_t)64)

static size_t panel_rows(size_t in)
{
    size_t rows = PANEL_FLOATS / (in ? in : 1);

    return rows < PANEL_MIN_ROWS ? PANEL_MIN_ROWS : rows;
}

size_t merge_work_floats(size_t in)
{
    return 3 * panel_rows(in) * in;
}

/* One panel in work: rows [first, first + rows) of the weight. */
struct panel {
    const struct lora_factors *f;
    size_t n, first, rows, in;
    float *weight, *delta, *spare; /* [rows, in] */
};

/* out [rows, in] = keep * out + scale * up[first .. first + rows) @ down */
static void product(const struct panel *p, const struct lora_factors *f, float scale, float keep, float *out)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)p->rows, (int)p->in, (int)f->rank, scale,
                f->up + p->first * f->rank, (int)f->rank, f->down, (int)p->in, keep, out, (int)p->in);
}

SIMD_CLONES static void add(float *restrict y, const float *restrict x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

SIMD_CLONES static void add_f64(double *restrict y, const double *restrict w, const float *restrict x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = w[i] + (double)x[i];
}

SIMD_CLONES static void scale_by(float *restrict x, float a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= a;
}

SIMD_CLONES static void subtract(float *restrict y, const float *restrict x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] -= x[i];
}

/* Sum of squares, a row at a time in f32 and the rows in f64: good to about 1e-6, for reports. */
static double squares(const struct panel *p, const float *x)
{
    double sum = 0;

    for (size_t i = 0; i < p->rows; i++)
        sum += (double)cblas_sdot((int)p->in, x + i * p->in, 1, x + i * p->in, 1);
    return sum;
}

/* Rounds x to a narrower type and back; spare is the caller's. */
static void round_to(float *x, enum dtype t, size_t n, float *spare)
{
    if (t == DT_F32)
        return;
    dtype_convert(spare, t, x, DT_F32, n);
    dtype_convert(x, DT_F32, spare, t, n);
}

static int check_source(const struct panel *p, const void *src, enum dtype from, struct err *err)
{
    size_t n = p->rows * p->in, bad = dtype_find_nonfinite(src, from, n);

    if (bad == n)
        return 0;
    return err_set(err, "the weight is not a finite number at row %zu, column %zu; the checkpoint is broken: use another copy",
                   p->first + bad / p->in, bad % p->in);
}

static int check_stored(const struct panel *p, const void *dst, enum dtype to, struct err *err)
{
    size_t n = p->rows * p->in, bad = dtype_find_nonfinite(dst, to, n);

    if (bad == n)
        return 0;
    return err_set(
        err,
        "the merged weight does not fit in %s at row %zu, column %zu; use smaller ratios, or --save_precision bf16 or "
        "float",
        dtype_name(to), p->first + bad / p->in, bad % p->in);
}

/* Stores p->weight (already holding the sum) and accounts for the store's rounding. */
static int store(struct panel *p, void *dst, enum dtype to, struct merge_stats *stats, struct err *err)
{
    size_t n = p->rows * p->in;

    dtype_convert(dst, to, p->weight, DT_F32, n);
    if (stats && stats->want_rounding && to != DT_F64) {
        dtype_convert(p->spare, DT_F32, dst, to, n);
        subtract(p->spare, p->weight, n);
        stats->rounding2 += squares(p, p->spare);
    }
    return check_stored(p, dst, to, err);
}

static int merge_panel(struct panel *p, void *dst, enum dtype to, const void *src, enum dtype from, struct merge_stats *stats,
                       struct err *err)
{
    size_t n = p->rows * p->in;

    if (p->n == 0)
        memset(p->delta, 0, n * sizeof *p->delta);
    for (size_t i = 0; i < p->n; i++)
        product(p, &p->f[i], (float)p->f[i].scale, i ? 1.0f : 0.0f, p->delta);
    dtype_convert(p->weight, DT_F32, src, from, n);
    if (stats) {
        stats->weight2 += squares(p, p->weight);
        stats->delta2 += squares(p, p->delta);
    }
    if (from == DT_F64 && to == DT_F64) {
        add_f64(dst, src, p->delta, n);
        return check_stored(p, dst, to, err);
    }
    add(p->weight, p->delta, n);
    return store(p, dst, to, stats, err);
}

static int merge_panel_v030(struct panel *p, enum dtype precision, void *dst, enum dtype to, const void *src, enum dtype from,
                            struct merge_stats *stats, struct err *err)
{
    size_t n = p->rows * p->in;
    double before;

    dtype_convert(p->weight, DT_F32, src, from, n);
    before = stats ? squares(p, p->weight) : 0;
    round_to(p->weight, precision, n, p->spare);
    for (size_t i = 0; i < p->n; i++) {
        product(p, &p->f[i], 1.0f, 0.0f, p->delta);
        round_to(p->delta, precision, n, p->spare);
        scale_by(p->delta, (float)p->f[i].scale, n);
        round_to(p->delta, precision, n, p->spare);
        add(p->weight, p->delta, n);
        round_to(p->weight, precision, n, p->spare);
    }
    if (stats) {
        dtype_convert(p->delta, DT_F32, src, from, n);
        subtract(p->delta, p->weight, n);
        stats->weight2 += before;
        stats->delta2 += squares(p, p->delta);
    }
    return store(p, dst, to, stats, err);
}

/* precision DT_COUNT: the arithmetic of merge_weight() */
static int merge_panels(void *dst, enum dtype to, const void *src, enum dtype from, size_t out, size_t in,
                        const struct lora_factors *f, size_t n, enum dtype precision, float *work, struct merge_stats *stats,
                        struct err *err)
{
    size_t step = panel_rows(in);
    struct panel p = {.f = f, .n = n, .in = in};

    if (out > INT_MAX || in > INT_MAX || factors_total_rank(f, n) > INT_MAX)
        return err_set(err, "a matrix of %zu x %zu is too large to merge; no known model has one", out, in);
    p.weight = work;
    p.delta = work + step * in;
    p.spare = work + 2 * step * in;
    for (; p.first < out; p.first += step) {
        const char *s = (const char *)src + p.first * in * dtype_size(from);
        char *d = (char *)dst + p.first * in * dtype_size(to);

        p.rows = out - p.first < step ? out - p.first : step;
        if (check_source(&p, s, from, err))
            return -1;
        if (precision == DT_COUNT ? merge_panel(&p, d, to, s, from, stats, err)
                                  : merge_panel_v030(&p, precision, d, to, s, from, stats, err))
            return -1;
    }
    return 0;
}

int merge_weight(void *dst, enum dtype to, const void *src, enum dtype from, size_t out, size_t in,
                 const struct lora_factors *f, size_t n, float *work, struct merge_stats *stats, struct err *err)
{
    return merge_panels(dst, to, src, from, out, in, f, n, DT_COUNT, work, stats, err);
}

int merge_weight_v030(void *dst, enum dtype to, const void *src, enum dtype from, size_t out, size_t in,
                      const struct lora_factors *f, size_t n, enum dtype precision, float *work, struct merge_stats *stats,
                      struct err *err)
{
    return merge_panels(dst, to, src, from, out, in, f, n, precision, work, stats, err);
}

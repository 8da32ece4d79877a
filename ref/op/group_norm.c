/* Group norm, channels last, with an optional SiLU behind it:
 *     y = act(gamma * (x - mean) * rstd + beta), mean and variance over a group's channels and all pixels of a sample.
 *
 * The picture is cut in strips of rows that fit a cache. Each strip gives its own mean and sum of squared deviations from
 * that mean, group by group; they are joined in order by Chan's formula, so nothing cancels and the result does not depend
 * on who did which strip. */
#include <math.h>
#include <string.h>

#include "ref/base/simd.h"
#include "ref/base/thread.h"
#include "ref/op/elementwise.h"
#include "ref/op/vmath.h"

enum { X, GAMMA, BETA };
enum { Y, STATS };

struct norm {
    size_t n, rows, c, groups, strip, strips; /* rows: pixels of a sample; strip: of them in a piece */
    float eps;
    bool silu;
    const float *x, *gamma, *beta, *dy;
    float *y, *stats; /* y: the result, or dx; stats [n, groups, 2]: mean, rstd */
    double *partial;  /* [n, strips, groups, 2] */
    float *lines;     /* per thread: values of each channel, [6, c] */
};

static struct norm describe(const struct op_call *c)
{
    const struct tensor *x = c->in[X];
    struct norm a = {.n = x->shape.dim[0], .c = elementwise_last(x), .groups = c->attr->groups, .eps = c->attr->eps,
                     .silu = c->attr->act == ACT_SILU};

    a.rows = elementwise_count(x) / (a.n * a.c);
    a.strip = elementwise_rows(a.c);
    a.strips = (a.rows + a.strip - 1) / a.strip;
    a.x = x->data;
    a.gamma = c->in[GAMMA]->data;
    a.beta = c->in[BETA]->data;
    a.stats = c->out[STATS]->data;
    a.partial = c->scratch;
    a.lines = (float *)(a.partial + a.n * a.strips * a.groups * 2);
    return a;
}

static size_t strip_rows(const struct norm *a, size_t s)
{
    return a->rows - s * a->strip < a->strip ? a->rows - s * a->strip : a->strip;
}

SIMD_CLONES static void sum_lines(float *restrict sum, const float *restrict x, size_t rows, size_t c)
{
    memset(sum, 0, c * sizeof *sum);
    for (size_t i = 0; i < rows; i++, x += c)
        for (size_t j = 0; j < c; j++)
            sum[j] += x[j];
}

SIMD_CLONES static void sum_squares(float *restrict sum, const float *restrict mean, const float *restrict x, size_t rows,
                                    size_t c)
{
    memset(sum, 0, c * sizeof *sum);
    for (size_t i = 0; i < rows; i++, x += c)
        for (size_t j = 0; j < c; j++)
            sum[j] += (x[j] - mean[j]) * (x[j] - mean[j]);
}

static double sum_group(const float *line, size_t group, size_t size)
{
    double sum = 0;

    for (size_t j = group * size; j < (group + 1) * size; j++)
        sum += (double)line[j];
    return sum;
}

static float *thread_lines(const struct norm *a)
{
    return a->lines + (size_t)thread_index() * 6 * a->c;
}

/* Mean and squared deviations of one strip, per group. */
static int measure_strip(void *ctx, size_t index, struct err *err)
{
    struct norm *a = ctx;
    size_t s = index % a->strips, rows = strip_rows(a, s), size = a->c / a->groups;
    const float *x = a->x + (index / a->strips * a->rows + s * a->strip) * a->c;
    double *part = a->partial + index * a->groups * 2;
    float *sum = thread_lines(a), *mean = sum + a->c;

    (void)err;
    sum_lines(sum, x, rows, a->c);
    for (size_t g = 0; g < a->groups; g++) {
        part[2 * g] = sum_group(sum, g, size) / (double)(rows * size);
        for (size_t j = g * size; j < (g + 1) * size; j++)
            mean[j] = (float)part[2 * g];
    }
    sum_squares(sum, mean, x, rows, a->c);
    for (size_t g = 0; g < a->groups; g++)
        part[2 * g + 1] = sum_group(sum, g, size);
    return 0;
}

/* Chan, Golub, LeVeque 1979: joining two sets with means m1, m2 adds (m1 - m2)^2 n1 n2 / (n1 + n2) to the squares. */
static void join_strips(const struct norm *a)
{
    for (size_t i = 0; i < a->n * a->groups; i++) {
        const double *part = a->partial + (i / a->groups * a->strips * a->groups + i % a->groups) * 2;
        double count = 0, mean = 0, squares = 0;

        for (size_t s = 0; s < a->strips; s++, part += a->groups * 2) {
            double more = (double)(strip_rows(a, s) * (a->c / a->groups)), delta = part[0] - mean;

            squares += part[1] + delta * delta * count * more / (count + more);
            mean += delta * more / (count + more);
            count += more;
        }
        a->stats[2 * i] = (float)mean;
        a->stats[2 * i + 1] = (float)(1.0 / sqrt(squares / count + (double)a->eps));
    }
}

/* y = (x - mean) * scale + beta, channel by channel; taking the mean off first loses nothing when it is large */
SIMD_CLONES static void apply(float *y, const float *x, const float *restrict mean, const float *restrict scale,
                              const float *restrict beta, size_t rows, size_t c)
{
    for (size_t i = 0; i < rows; i++, x += c, y += c)
#pragma omp simd
        for (size_t j = 0; j < c; j++)
            y[j] = (x[j] - mean[j]) * scale[j] + beta[j];
}

SIMD_CLONES static void apply_silu(float *y, const float *x, const float *restrict mean, const float *restrict scale,
                                   const float *restrict beta, size_t rows, size_t c)
{
    for (size_t i = 0; i < rows; i++, x += c, y += c)
#pragma omp simd
        for (size_t j = 0; j < c; j++)
            y[j] = vmath_silu((x[j] - mean[j]) * scale[j] + beta[j]);
}

/* The norm of sample n as values of each channel. */
static void spread(const struct norm *a, size_t n, float *mean, float *scale)
{
    size_t size = a->c / a->groups;

    for (size_t j = 0; j < a->c; j++) {
        const float *stats = a->stats + (n * a->groups + j / size) * 2;

        mean[j] = stats[0];
        scale[j] = stats[1] * a->gamma[j];
    }
}

static int apply_strip(void *ctx, size_t index, struct err *err)
{
    struct norm *a = ctx;
    size_t n = index / a->strips, s = index % a->strips, at = (n * a->rows + s * a->strip) * a->c;
    float *mean = thread_lines(a), *scale = mean + a->c;

    (void)err;
    spread(a, n, mean, scale);
    (a->silu ? apply_silu : apply)(a->y + at, a->x + at, mean, scale, a->beta, strip_rows(a, s), a->c);
    return 0;
}

static int forward(const struct op_call *c, struct err *err)
{
    struct norm a = describe(c);

    a.y = c->out[Y]->data;
    if (thread_for(a.n * a.strips, measure_strip, &a, err) < 0)
        return -1;
    join_strips(&a);
    return thread_for(a.n * a.strips, apply_strip, &a, err);
}

/* Backward. With h = (x - mean) rstd and e = dy act'(gamma h + beta) gamma:
 *     dx = rstd * (e - mean(e) - h mean(e h)), means over the group. */

/* e of one element, given as in the forward */
static inline float slope_term(float dy, float x, float mean, float scale, float beta, float gamma, bool silu)
{
    return (silu ? dy * vmath_silu_slope((x - mean) * scale + beta) : dy) * gamma;
}

/* se[j] = sum of e, sx[j] = sum of e x, over the strip */
SIMD_CLONES static void sum_terms(float *restrict se, float *restrict sx, const float *restrict x, const float *restrict dy,
                                  const float *restrict mean, const float *restrict scale, const float *restrict beta,
                                  const float *restrict gamma, bool silu, size_t rows, size_t c)
{
    memset(se, 0, c * sizeof *se);
    memset(sx, 0, c * sizeof *sx);
    for (size_t i = 0; i < rows; i++, x += c, dy += c)
        for (size_t j = 0; j < c; j++) {
            float e = slope_term(dy[j], x[j], mean[j], scale[j], beta[j], gamma[j], silu);

            se[j] += e;
            sx[j] += e * (x[j] - mean[j]);
        }
}

static int sum_strip(void *ctx, size_t index, struct err *err)
{
    struct norm *a = ctx;
    size_t n = index / a->strips, s = index % a->strips, at = (n * a->rows + s * a->strip) * a->c, size = a->c / a->groups;
    float *mean = thread_lines(a), *scale = mean + a->c, *se = scale + a->c, *sx = se + a->c;
    double *part = a->partial + index * a->groups * 2;

    (void)err;
    spread(a, n, mean, scale);
    sum_terms(se, sx, a->x + at, a->dy + at, mean, scale, a->beta, a->gamma, a->silu, strip_rows(a, s), a->c);
    for (size_t g = 0; g < a->groups; g++) {
        part[2 * g] = sum_group(se, g, size);
        part[2 * g + 1] = sum_group(sx, g, size);
    }
    return 0;
}

/* dx = rstd * e - (x - mean) * slope - level, with level = rstd mean(e), slope = rstd^3 mean(e (x - mean)) */
SIMD_CLONES static void apply_terms(float *dx, const float *restrict x, const float *dy,
                                    const float *restrict mean, const float *restrict scale, const float *restrict beta,
                                    const float *restrict gamma, const float *restrict rstd, const float *restrict level,
                                    const float *restrict slope, bool silu, size_t rows, size_t c)
{
    for (size_t i = 0; i < rows; i++, x += c, dy += c, dx += c)
#pragma omp simd
        for (size_t j = 0; j < c; j++)
            dx[j] = rstd[j] * slope_term(dy[j], x[j], mean[j], scale[j], beta[j], gamma[j], silu) -
                    (x[j] - mean[j]) * slope[j] - level[j];
}

static int gradient_strip(void *ctx, size_t index, struct err *err)
{
    struct norm *a = ctx;
    size_t n = index / a->strips, s = index % a->strips, at = (n * a->rows + s * a->strip) * a->c, size = a->c / a->groups;
    float *mean = thread_lines(a), *scale = mean + a->c, *level = scale + a->c, *slope = level + a->c, *rstd = slope + a->c;

    (void)err;
    spread(a, n, mean, scale);
    for (size_t g = 0; g < a->groups; g++) {
        const double *part = a->partial + (n * a->strips * a->groups + g) * 2;
        const float *stats = a->stats + (n * a->groups + g) * 2;
        double se = 0, sx = 0, r = (double)stats[1], count = (double)(a->rows * size);

        for (size_t i = 0; i < a->strips; i++, part += a->groups * 2) {
            se += part[0];
            sx += part[1];
        }
        for (size_t j = g * size; j < (g + 1) * size; j++) {
            rstd[j] = stats[1];
            level[j] = (float)(r * se / count);
            slope[j] = (float)(r * r * r * sx / count);
        }
    }
    apply_terms(a->y + at, a->x + at, a->dy + at, mean, scale, a->beta, a->gamma, rstd, level, slope, a->silu,
                strip_rows(a, s), a->c);
    return 0;
}

static int backward(const struct op_call *c, struct err *err)
{
    struct norm a = describe(c);

    a.dy = c->dout[Y]->data;
    a.y = c->din[X]->data;
    if (thread_for(a.n * a.strips, sum_strip, &a, err) < 0)
        return -1;
    return thread_for(a.n * a.strips, gradient_strip, &a, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *x = &c->in[X]->shape;
    size_t channels = elementwise_last(c->in[X]), groups = c->attr->groups;

    if (x->ndim < 2 || groups == 0 || channels % groups != 0 || elementwise_count(c->in[X]) == 0)
        return err_set(err, "%zu channels cannot be divided in %zu groups", channels, groups);
    if (c->attr->act != ACT_NONE && c->attr->act != ACT_SILU)
        return err_set(err, "a group norm can be followed by SiLU only");
    if (elementwise_need_vector(c, GAMMA, channels, "weight", err) < 0 ||
        elementwise_need_vector(c, BETA, channels, "bias", err) < 0)
        return -1;
    *c->out[STATS] = (struct tensor){.dtype = DT_F32, .shape = {3, {x->dim[0], groups, 2}}};
    return elementwise_shape(c, err);
}

static size_t scratch(const struct op_call *c, bool back, int threads)
{
    struct norm a = describe(c);

    (void)back;
    return a.n * a.strips * a.groups * 2 * sizeof(double) + (size_t)threads * 6 * a.c * sizeof(float);
}

static double flops(const struct op_call *c, bool back)
{
    return (double)elementwise_count(c->in[X]) * ((back ? 15 : 6) + (c->attr->act == ACT_SILU ? (back ? 50 : 20) : 0));
}

const struct op op_group_norm = {
    .name = "group_norm", .min_in = 3, .max_in = 3, .nout = 2,
    .differentiable = 1 << X, .needs_in = {[X] = 1 << X | 1 << GAMMA | 1 << BETA}, .needs_out = {[X] = 1 << STATS},
    .inplace = 1 << X, .inplace_backward = true,
    .shape = shape, .forward = forward, .backward = backward, .scratch = scratch, .flops = flops,
};

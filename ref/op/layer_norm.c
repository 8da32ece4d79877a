/* Layer norm over the last dimension: y = gamma * (x - mean) * rstd + beta */
#include <math.h>

#include "ref/base/simd.h"
#include "ref/op/elementwise.h"

enum { X, GAMMA, BETA };
enum { Y, STATS };
enum { LANES = 16 }; /* partial sums side by side: one vector, and a fixed order of addition */

struct norm {
    size_t c;
    float eps;
    const float *x, *gamma, *beta, *dy;
    float *y, *stats; /* stats [rows, 2]: mean, rstd */
};

static double join(const float *lane)
{
    double sum = 0;

    for (size_t j = 0; j < LANES; j++)
        sum += (double)lane[j];
    return sum;
}

/* Sum of (x - shift) to the power 1 or 2 over c elements. */
#define SUM(name, expr)                                                       \
    static inline double name(const float *x, float shift, size_t c)          \
    {                                                                         \
        float lane[LANES] = {0};                                              \
        size_t j = 0;                                                         \
        for (; j + LANES <= c; j += LANES)                                    \
            for (size_t l = 0; l < LANES; l++) {                              \
                float d = x[j + l] - shift;                                   \
                lane[l] += expr;                                              \
            }                                                                 \
        for (size_t l = 0; j < c; j++, l++) {                                 \
            float d = x[j] - shift;                                           \
            lane[l] += expr;                                                  \
        }                                                                     \
        return join(lane);                                                    \
    }

SUM(sum_plain, d)
SUM(sum_square, d * d)

SIMD_CLONES static void layer_norm_forward(const void *ctx, size_t first, size_t rows)
{
    const struct norm *a = ctx;
    size_t c = a->c;

    for (size_t i = first; i < first + rows; i++) {
        const float *x = a->x + i * c, *gamma = a->gamma, *beta = a->beta;
        float *y = a->y + i * c, mean = (float)(sum_plain(x, 0, c) / (double)c);
        float rstd = (float)(1 / sqrt(sum_square(x, mean, c) / (double)c + (double)a->eps));

        a->stats[2 * i] = mean;
        a->stats[2 * i + 1] = rstd;
#pragma omp simd
        for (size_t j = 0; j < c; j++)
            y[j] = gamma[j] * ((x[j] - mean) * rstd) + beta[j];
    }
}

/* With h = (x - mean) rstd, e = dy gamma: dx = rstd (e - mean(e) - h mean(e h)) */
SIMD_CLONES static void layer_norm_backward(const void *ctx, size_t first, size_t rows)
{
    const struct norm *a = ctx;
    size_t c = a->c;

    for (size_t i = first; i < first + rows; i++) {
        const float *x = a->x + i * c, *dy = a->dy + i * c, *gamma = a->gamma;
        float *dx = a->y + i * c, mean = a->stats[2 * i], rstd = a->stats[2 * i + 1], level, slope;
        float se[LANES] = {0}, sh[LANES] = {0};
        size_t j = 0;

        for (; j + LANES <= c; j += LANES)
            for (size_t l = 0; l < LANES; l++) {
                float e = dy[j + l] * gamma[j + l];

                se[l] += e;
                sh[l] += e * ((x[j + l] - mean) * rstd);
            }
        for (size_t l = 0; j < c; j++, l++) {
            float e = dy[j] * gamma[j];

            se[l] += e;
            sh[l] += e * ((x[j] - mean) * rstd);
        }
        level = (float)(join(se) / (double)c);
        slope = (float)(join(sh) / (double)c);
#pragma omp simd
        for (j = 0; j < c; j++)
            dx[j] = rstd * (dy[j] * gamma[j] - level - (x[j] - mean) * rstd * slope);
    }
}

static int run(const struct op_call *c, float *y, const float *dy, elementwise_fn *fn, struct err *err)
{
    struct norm a = {elementwise_last(c->in[X]), c->attr->eps, c->in[X]->data, c->in[GAMMA]->data, c->in[BETA]->data, dy, y,
                     c->out[STATS]->data};

    return elementwise_run(elementwise_count(c->in[X]) / a.c, elementwise_rows(a.c), fn, &a, err);
}

static int forward(const struct op_call *c, struct err *err)
{
    return run(c, c->out[Y]->data, NULL, layer_norm_forward, err);
}

static int backward(const struct op_call *c, struct err *err)
{
    return run(c, c->din[X]->data, c->dout[Y]->data, layer_norm_backward, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    size_t channels = elementwise_last(c->in[X]);

    if (c->in[X]->shape.ndim < 1 || channels == 0)
        return err_set(err, "layer norm over no channels");
    if (elementwise_need_vector(c, GAMMA, channels, "weight", err) < 0 ||
        elementwise_need_vector(c, BETA, channels, "bias", err) < 0)
        return -1;
    *c->out[STATS] = (struct tensor){.dtype = DT_F32, .shape = {2, {elementwise_count(c->in[X]) / channels, 2}}};
    return elementwise_shape(c, err);
}

static double flops(const struct op_call *c, bool back)
{
    return (back ? 14.0 : 8.0) * (double)elementwise_count(c->in[X]);
}

const struct op op_layer_norm = {
    .name = "layer_norm", .min_in = 3, .max_in = 3, .nout = 2,
    .differentiable = 1 << X, .needs_in = {[X] = 1 << X | 1 << GAMMA}, .needs_out = {[X] = 1 << STATS},
    .inplace = 1 << X, .inplace_backward = true,
    .shape = shape, .forward = forward, .backward = backward, .flops = flops,
};

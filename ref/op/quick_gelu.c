/* x * sigmoid(1.702 x), the GELU of OpenAI's CLIP */
#include "ref/base/simd.h"
#include "ref/op/elementwise.h"
#include "ref/op/vmath.h"

struct quick_gelu {
    float *y;
    const float *x, *dy;
};

/* y [n] = quick_gelu(x [n]) */
SIMD_CLONES static void quick_gelu_forward(const void *ctx, size_t first, size_t n)
{
    const struct quick_gelu *a = ctx;
    const float *x = a->x + first;
    float *y = a->y + first;

#pragma omp simd
    for (size_t i = 0; i < n; i++)
        y[i] = vmath_quick_gelu(x[i]);
}

/* dx [n] = dy [n] * slope(x [n]); dx may be dy */
SIMD_CLONES static void quick_gelu_backward(const void *ctx, size_t first, size_t n)
{
    const struct quick_gelu *a = ctx;
    const float *x = a->x + first, *dy = a->dy + first;
    float *dx = a->y + first;

#pragma omp simd
    for (size_t i = 0; i < n; i++)
        dx[i] = dy[i] * vmath_quick_gelu_slope(x[i]);
}

static int forward(const struct op_call *c, struct err *err)
{
    struct quick_gelu a = {c->out[0]->data, c->in[0]->data, NULL};

    return elementwise_run(elementwise_count(c->in[0]), 16384, quick_gelu_forward, &a, err);
}

static int backward(const struct op_call *c, struct err *err)
{
    struct quick_gelu a = {c->din[0]->data, c->in[0]->data, c->dout[0]->data};

    return elementwise_run(elementwise_count(c->in[0]), 16384, quick_gelu_backward, &a, err);
}

static double flops(const struct op_call *c, bool back)
{
    return (back ? 30.0 : 20.0) * (double)elementwise_count(c->in[0]);
}

const struct op op_quick_gelu = {
    .name = "quick_gelu", .min_in = 1, .max_in = 1, .nout = 1,
    .differentiable = 1, .needs_in = {1}, .inplace = 1, .inplace_backward = true,
    .shape = elementwise_shape, .forward = forward, .backward = backward, .flops = flops,
};

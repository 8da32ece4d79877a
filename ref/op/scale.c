/* y = scale * x */
#include "ref/base/simd.h"
#include "ref/op/elementwise.h"

struct scale {
    float scale;
    const float *x;
    float *y;
};

SIMD_CLONES static void multiply(const void *ctx, size_t first, size_t n)
{
    const struct scale *s = ctx;
    const float *x = s->x + first;
    float *y = s->y + first, k = s->scale;

#pragma omp simd
    for (size_t i = 0; i < n; i++)
        y[i] = k * x[i];
}

static int forward(const struct op_call *c, struct err *err)
{
    struct scale s = {c->attr->scale, c->in[0]->data, c->out[0]->data};

    return elementwise_run(elementwise_count(c->in[0]), 16384, multiply, &s, err);
}

/* dx = scale * dy */
static int backward(const struct op_call *c, struct err *err)
{
    struct scale s = {c->attr->scale, c->dout[0]->data, c->din[0]->data};

    return elementwise_run(elementwise_count(c->in[0]), 16384, multiply, &s, err);
}

const struct op op_scale = {
    .name = "scale", .min_in = 1, .max_in = 1, .nout = 1, .differentiable = 1, .inplace = 1, .inplace_backward = true,
    .shape = elementwise_shape, .forward = forward, .backward = backward,
};

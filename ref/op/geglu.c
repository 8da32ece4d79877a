/* GEGLU: the first half of the channels times the GELU of the second half (Shazeer, "GLU variants improve transformer") */
#include "ref/base/simd.h"
#include "ref/op/elementwise.h"
#include "ref/op/vmath.h"

struct geglu {
    size_t c;
    const float *x; /* [rows, 2c] */
    const float *dy; /* [rows, c] */
    float *y;        /* forward [rows, c]; backward: dx [rows, 2c] */
};

/* y [rows, c] = a * gelu(b), where x [rows, 2c] = a beside b */
SIMD_CLONES static void geglu_forward(const void *ctx, size_t first, size_t rows)
{
    const struct geglu *g = ctx;
    size_t c = g->c;

    for (size_t i = first; i < first + rows; i++) {
        const float *a = g->x + i * 2 * c, *b = a + c;
        float *y = g->y + i * c;

        for (size_t j = 0; j < c; j++)
            y[j] = a[j] * vmath_gelu(b[j]);
    }
}

/* da = dy * gelu(b), db = dy * a * gelu'(b) */
SIMD_CLONES static void geglu_backward(const void *ctx, size_t first, size_t rows)
{
    const struct geglu *g = ctx;
    size_t c = g->c;

    for (size_t i = first; i < first + rows; i++) {
        const float *a = g->x + i * 2 * c, *b = a + c, *dy = g->dy + i * c;
        float *restrict da = g->y + i * 2 * c, *restrict db = da + c;

        for (size_t j = 0; j < c; j++) {
            da[j] = dy[j] * vmath_gelu(b[j]);
            db[j] = dy[j] * a[j] * vmath_gelu_slope(b[j]);
        }
    }
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *x = &c->in[0]->shape;

    if (x->ndim < 1 || x->dim[x->ndim - 1] % 2 != 0)
        return err_set(err, "GEGLU needs an even number of channels");
    if (elementwise_shape(c, err) < 0)
        return -1;
    c->out[0]->shape.dim[x->ndim - 1] /= 2;
    return 0;
}

static int forward(const struct op_call *c, struct err *err)
{
    size_t n = elementwise_last(c->out[0]);
    struct geglu g = {n, c->in[0]->data, NULL, c->out[0]->data};

    return elementwise_run(elementwise_count(c->out[0]) / n, elementwise_rows(n), geglu_forward, &g, err);
}

static int backward(const struct op_call *c, struct err *err)
{
    size_t n = elementwise_last(c->dout[0]);
    struct geglu g = {n, c->in[0]->data, c->dout[0]->data, c->din[0]->data};

    return elementwise_run(elementwise_count(c->dout[0]) / n, elementwise_rows(n), geglu_backward, &g, err);
}

static double flops(const struct op_call *c, bool back)
{
    return (back ? 50.0 : 21.0) * (double)elementwise_count(c->out[0]);
}

const struct op op_geglu = {
    .name = "geglu", .min_in = 1, .max_in = 1, .nout = 1,
    .differentiable = 1, .needs_in = {1},
    .shape = shape, .forward = forward, .backward = backward, .flops = flops,
};

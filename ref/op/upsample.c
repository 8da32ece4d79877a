/* Nearest-neighbour upsampling by two: y [n, 2h, 2w, c] of x [n, h, w, c] */
#include <string.h>

#include "ref/base/simd.h"
#include "ref/op/elementwise.h"

struct upsample {
    size_t w, c;
    const float *x;
    float *y;
};

/* one row of x gives two of y */
static void upsample_forward(const void *ctx, size_t first, size_t rows)
{
    const struct upsample *a = ctx;
    size_t bytes = a->c * sizeof(float), line = 2 * a->w * a->c;

    for (size_t i = first; i < first + rows; i++) {
        float *y = a->y + 2 * i * line;

        for (size_t j = 0; j < 2 * a->w; j++)
            memcpy(y + j * a->c, a->x + (i * a->w + j / 2) * a->c, bytes);
        memcpy(y + line, y, line * sizeof *y);
    }
}

/* dx is the sum of the four copies' gradients */
SIMD_CLONES static void upsample_backward(const void *ctx, size_t first, size_t rows)
{
    const struct upsample *a = ctx;
    size_t c = a->c, line = 2 * a->w * c;

    for (size_t i = first; i < first + rows; i++)
        for (size_t j = 0; j < a->w; j++) {
            const float *up = a->x + 2 * i * line + 2 * j * c, *low = up + line;
            float *dx = a->y + (i * a->w + j) * c;

            for (size_t l = 0; l < c; l++)
                dx[l] = (up[l] + up[c + l]) + (low[l] + low[c + l]);
        }
}

static int run(const struct tensor *x, const void *from, void *to, elementwise_fn *fn, struct err *err)
{
    struct upsample a = {x->shape.dim[2], x->shape.dim[3], from, to};

    return elementwise_run(x->shape.dim[0] * x->shape.dim[1], elementwise_rows(a.w * a.c), fn, &a, err);
}

static int forward(const struct op_call *c, struct err *err)
{
    return run(c->in[0], c->in[0]->data, c->out[0]->data, upsample_forward, err);
}

static int backward(const struct op_call *c, struct err *err)
{
    return run(c->in[0], c->dout[0]->data, c->din[0]->data, upsample_backward, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    if (c->in[0]->shape.ndim != 4)
        return err_set(err, "upsampling takes pictures [n, h, w, c]");
    if (elementwise_shape(c, err) < 0)
        return -1;
    c->out[0]->shape.dim[1] *= 2;
    c->out[0]->shape.dim[2] *= 2;
    return 0;
}

const struct op op_upsample = {
    .name = "upsample", .min_in = 1, .max_in = 1, .nout = 1, .differentiable = 1,
    .shape = shape, .forward = forward, .backward = backward,
};

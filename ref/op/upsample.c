/* Nearest-neighbour upsampling by two: y [n, 2h - crop_h, 2w - crop_w, c] of x [n, h, w, c]. A crop of 1 undoes the rounding
 * up of an odd size by the convolution of stride 2 that halved it. */
#include <string.h>

#include "ref/base/simd.h"
#include "ref/op/elementwise.h"

struct upsample {
    size_t h, w, c; /* of x */
    size_t oh, ow;  /* of y */
    const float *x; /* backward: dy */
    float *y;       /* backward: dx */
};

/* a piece is rows of x, each giving two rows of y, or one where the last is cropped */
static void upsample_forward(const void *ctx, size_t first, size_t rows)
{
    const struct upsample *a = ctx;
    size_t line = a->ow * a->c;

    for (size_t i = first; i < first + rows; i++) {
        size_t row = i % a->h * 2;
        float *y = a->y + (i / a->h * a->oh + row) * line;

        for (size_t j = 0; j < a->ow; j++)
            memcpy(y + j * a->c, a->x + (i * a->w + j / 2) * a->c, a->c * sizeof *y);
        if (row + 1 < a->oh)
            memcpy(y + line, y, line * sizeof *y);
    }
}

/* dx is the sum of the copies' gradients */
SIMD_CLONES static void upsample_backward(const void *ctx, size_t first, size_t rows)
{
    const struct upsample *a = ctx;
    size_t c = a->c, line = a->ow * c;

    for (size_t i = first; i < first + rows; i++)
        for (size_t j = 0; j < a->w; j++) {
            size_t row = i % a->h * 2, down = row + 1 < a->oh ? line : 0, right = 2 * j + 1 < a->ow ? c : 0;
            const float *dy = a->x + (i / a->h * a->oh + row) * line + 2 * j * c;
            float *dx = a->y + (i * a->w + j) * c;

            memcpy(dx, dy, c * sizeof *dx);
            for (size_t l = 0; right && l < c; l++)
                dx[l] += dy[right + l];
            for (size_t l = 0; down && l < c; l++)
                dx[l] += dy[down + l];
            for (size_t l = 0; down && right && l < c; l++)
                dx[l] += dy[down + right + l];
        }
}

static int run(const struct op_call *c, const struct tensor *small, const void *from, void *to, elementwise_fn *fn,
               struct err *err)
{
    const size_t *x = small->shape.dim;
    struct upsample a = {x[1], x[2], x[3], 2 * x[1] - c->attr->crop_h, 2 * x[2] - c->attr->crop_w, from, to};

    return elementwise_run(x[0] * x[1], elementwise_rows(a.w * a.c), fn, &a, err);
}

static int forward(const struct op_call *c, struct err *err)
{
    return run(c, c->in[0], c->in[0]->data, c->out[0]->data, upsample_forward, err);
}

static int backward(const struct op_call *c, struct err *err)
{
    return run(c, c->in[0], c->dout[0]->data, c->din[0]->data, upsample_backward, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    if (c->in[0]->shape.ndim != 4)
        return err_set(err, "upsampling takes pictures [n, h, w, c]");
    if (c->attr->crop_h > 1 || c->attr->crop_w > 1 || elementwise_count(c->in[0]) == 0)
        return err_set(err, "upsampling can leave out one row and one column at most");
    if (elementwise_shape(c, err) < 0)
        return -1;
    c->out[0]->shape.dim[1] = 2 * c->out[0]->shape.dim[1] - c->attr->crop_h;
    c->out[0]->shape.dim[2] = 2 * c->out[0]->shape.dim[2] - c->attr->crop_w;
    return 0;
}

const struct op op_upsample = {
    .name = "upsample", .min_in = 1, .max_in = 1, .nout = 1, .differentiable = 1,
    .shape = shape, .forward = forward, .backward = backward,
};

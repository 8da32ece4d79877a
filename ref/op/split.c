/* Some of the channels: y [.., count] = x [.., first .. first + count - 1] */
#include <string.h>

#include "ref/base/mem.h"
#include "ref/op/elementwise.h"

struct split {
    size_t c, first, count;
    const float *x;
    float *y;
};

static void split_forward(const void *ctx, size_t from, size_t rows)
{
    const struct split *s = ctx;

    for (size_t i = from; i < from + rows; i++)
        memcpy(s->y + i * s->count, s->x + i * s->c + s->first, s->count * sizeof(float));
}

/* dx is dy in its place and zero elsewhere */
static void split_backward(const void *ctx, size_t from, size_t rows)
{
    const struct split *s = ctx;

    for (size_t i = from; i < from + rows; i++) {
        float *dx = s->y + i * s->c;

        memset(dx, 0, s->c * sizeof *dx);
        memcpy(dx + s->first, s->x + i * s->count, s->count * sizeof *dx);
    }
}

static int run(const struct op_call *c, const void *x, void *y, elementwise_fn *fn, struct err *err)
{
    struct split s = {elementwise_last(c->in[0]), c->attr->first, c->attr->count, x, y};

    return elementwise_run(elementwise_count(c->in[0]) / s.c, elementwise_rows(s.c), fn, &s, err);
}

static int forward(const struct op_call *c, struct err *err)
{
    return run(c, c->in[0]->data, c->out[0]->data, split_forward, err);
}

static int backward(const struct op_call *c, struct err *err)
{
    return run(c, c->dout[0]->data, c->din[0]->data, split_backward, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    size_t channels = elementwise_last(c->in[0]), end;

    if (c->in[0]->shape.ndim < 1 || !mem_add(c->attr->first, c->attr->count, &end) || end > channels || c->attr->count == 0)
        return err_set(err, "there are no %zu channels from %zu on among %zu", c->attr->count, c->attr->first, channels);
    if (elementwise_shape(c, err) < 0)
        return -1;
    c->out[0]->shape.dim[c->in[0]->shape.ndim - 1] = c->attr->count;
    return 0;
}

const struct op op_split = {
    .name = "split", .min_in = 1, .max_in = 1, .nout = 1, .differentiable = 1,
    .shape = shape, .forward = forward, .backward = backward,
};

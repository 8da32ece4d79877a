/* Concatenation of channels: y [.., ca + cb] = a [.., ca] beside b [.., cb] */
#include <string.h>

#include "ref/op/elementwise.h"

struct concat {
    size_t ca, cb;
    char *y, *a, *b;
    bool back;
};

static void copy_rows(const void *ctx, size_t first, size_t rows)
{
    const struct concat *s = ctx;

    for (size_t i = first; i < first + rows; i++) {
        char *y = s->y + i * (s->ca + s->cb), *a = s->a ? s->a + i * s->ca : NULL, *b = s->b ? s->b + i * s->cb : NULL;

        if (a)
            memcpy(s->back ? a : y, s->back ? y : a, s->ca);
        if (b)
            memcpy(s->back ? b : y + s->ca, s->back ? y + s->ca : b, s->cb);
    }
}

static int run(const struct op_call *c, bool back, struct err *err)
{
    struct concat s = {.ca = elementwise_last(c->in[0]) * sizeof(float), .cb = elementwise_last(c->in[1]) * sizeof(float),
                       .back = back};

    s.y = back ? c->dout[0]->data : c->out[0]->data;
    if (!back) {
        s.a = c->in[0]->data;
        s.b = c->in[1]->data;
    } else {
        s.a = c->din[0] ? c->din[0]->data : NULL;
        s.b = c->din[1] ? c->din[1]->data : NULL;
    }
    return elementwise_run(elementwise_count(c->in[0]) / elementwise_last(c->in[0]),
                           elementwise_rows(elementwise_last(c->out[0])), copy_rows, &s, err);
}

static int forward(const struct op_call *c, struct err *err)
{
    return run(c, false, err);
}

static int backward(const struct op_call *c, struct err *err)
{
    return run(c, true, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *a = &c->in[0]->shape, *b = &c->in[1]->shape;
    char x[128], y[128];
    bool fits = a->ndim == b->ndim && a->ndim > 0;

    for (int i = 0; fits && i + 1 < a->ndim; i++)
        fits = a->dim[i] == b->dim[i];
    if (!fits || elementwise_last(c->in[0]) == 0)
        return err_set(err, "%s and %s cannot be put side by side", shape_print(a, x, sizeof x), shape_print(b, y, sizeof y));
    if (elementwise_need_f32(c, 1, "input", err) < 0 || elementwise_shape(c, err) < 0)
        return -1;
    c->out[0]->shape.dim[a->ndim - 1] += b->dim[a->ndim - 1];
    return 0;
}

const struct op op_concat = {
    .name = "concat", .min_in = 2, .max_in = 2, .nout = 1, .differentiable = 3,
    .shape = shape, .forward = forward, .backward = backward,
};

/* Rows picked by number: y[i] = x[rows[i]], x seen as [all but the last dimension, c]. Joins the chunks of a long prompt. */
#include <stdint.h>
#include <string.h>

#include "ref/base/thread.h"
#include "ref/op/elementwise.h"

enum { X, ROWS };
enum { CHANNELS = 64 };

static int check_rows(const struct op_call *c, size_t available, struct err *err)
{
    const int32_t *rows = c->in[ROWS]->data;
    size_t n = elementwise_count(c->in[ROWS]);

    for (size_t i = 0; i < n; i++)
        if (rows[i] < 0 || (size_t)rows[i] >= available)
            return err_set(err, "row %d is asked for, there are %zu", rows[i], available);
    return 0;
}

static int forward(const struct op_call *c, struct err *err)
{
    const int32_t *rows = c->in[ROWS]->data;
    const float *x = c->in[X]->data;
    float *y = c->out[0]->data;
    size_t width = elementwise_last(c->in[X]), n = elementwise_count(c->in[ROWS]);

    if (check_rows(c, elementwise_count(c->in[X]) / width, err) < 0)
        return -1;
    for (size_t i = 0; i < n; i++)
        memcpy(y + i * width, x + (size_t)rows[i] * width, width * sizeof *y);
    return 0;
}

struct scatter {
    const int32_t *rows;
    size_t n, width, available;
    const float *dy;
    float *dx;
};

/* A piece is 64 columns, so that a row that is used twice is summed in order. */
static int scatter_columns(void *ctx, size_t index, struct err *err)
{
    const struct scatter *s = ctx;
    size_t first = index * CHANNELS, n = s->width - first < CHANNELS ? s->width - first : CHANNELS;

    (void)err;
    for (size_t i = 0; i < s->available; i++)
        memset(s->dx + i * s->width + first, 0, n * sizeof *s->dx);
    for (size_t i = 0; i < s->n; i++)
        for (size_t j = first; j < first + n; j++)
            s->dx[(size_t)s->rows[i] * s->width + j] += s->dy[i * s->width + j];
    return 0;
}

static int backward(const struct op_call *c, struct err *err)
{
    struct scatter s = {c->in[ROWS]->data, elementwise_count(c->in[ROWS]), elementwise_last(c->in[X]), 0, c->dout[0]->data,
                        c->din[X]->data};

    s.available = elementwise_count(c->in[X]) / s.width;
    if (check_rows(c, s.available, err) < 0)
        return -1;
    return thread_for((s.width + CHANNELS - 1) / CHANNELS, scatter_columns, &s, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *x = &c->in[X]->shape, *rows = &c->in[ROWS]->shape;
    char a[128], b[128];

    if (x->ndim < 1 || x->dim[x->ndim - 1] == 0 || rows->ndim < 1 || rows->ndim >= TENSOR_MAX_DIMS ||
        c->in[ROWS]->dtype != DT_I32)
        return err_set(err, "rows %s (%s) of %s cannot be picked", shape_print(rows, a, sizeof a),
                       dtype_name(c->in[ROWS]->dtype), shape_print(x, b, sizeof b));
    if (elementwise_need_f32(c, X, "input", err) < 0)
        return -1;
    *c->out[0] = (struct tensor){.dtype = DT_F32, .shape = *rows};
    c->out[0]->shape.dim[c->out[0]->shape.ndim++] = x->dim[x->ndim - 1];
    return 0;
}

const struct op op_gather = {
    .name = "gather", .min_in = 2, .max_in = 2, .nout = 1, .differentiable = 1 << X, .needs_in = {[X] = 1 << ROWS},
    .shape = shape, .forward = forward, .backward = backward,
};

/* Addition: y = a + b, b of the same shape or one vector a sample, [n, c] to [n, .., c] */
#include <string.h>

#include "ref/base/simd.h"
#include "ref/base/thread.h"
#include "ref/op/elementwise.h"

struct add {
    size_t rows, c, piece; /* rows of a sample */
    const float *a, *b;
    float *y;
    bool spread;
};

SIMD_CLONES static void add_same(const void *ctx, size_t first, size_t n)
{
    const struct add *s = ctx;
    const float *a = s->a + first, *b = s->b + first;
    float *y = s->y + first;

#pragma omp simd
    for (size_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

SIMD_CLONES static void add_spread(const void *ctx, size_t first, size_t n)
{
    const struct add *s = ctx;
    size_t c = s->c;

    for (size_t i = first; i < first + n; i++) {
        const float *a = s->a + i * c, *b = s->b + i / s->rows * c;
        float *y = s->y + i * c;

#pragma omp simd
        for (size_t j = 0; j < c; j++)
            y[j] = a[j] + b[j];
    }
}

static struct add describe(const struct op_call *c)
{
    const struct tensor *a = c->in[0];
    struct add s = {.c = elementwise_last(a), .spread = !shape_equal(&a->shape, &c->in[1]->shape)};

    s.rows = elementwise_count(a) / ((s.spread ? a->shape.dim[0] : 1) * s.c);
    s.a = a->data;
    s.b = c->in[1]->data;
    return s;
}

static int forward(const struct op_call *c, struct err *err)
{
    struct add s = describe(c);

    s.y = c->out[0]->data;
    if (s.spread)
        return elementwise_run(elementwise_count(c->in[0]) / s.c, elementwise_rows(s.c), add_spread, &s, err);
    return elementwise_run(elementwise_count(c->in[0]), 16384, add_same, &s, err);
}

/* db [n, c] of the spread form: the sum over a sample's rows, strip after strip in order; a piece is one sample's 64
 * channels. */
enum { CHANNELS = 64 };

SIMD_CLONES static void sum_rows(float *restrict sum, const float *restrict dy, size_t rows, size_t c, size_t n)
{
    for (size_t i = 0; i < rows; i++, dy += c)
        for (size_t j = 0; j < n; j++)
            sum[j] += dy[j];
}

static int sum_piece(void *ctx, size_t index, struct err *err)
{
    const struct add *s = ctx;
    size_t across = (s->c + CHANNELS - 1) / CHANNELS, sample = index / across, c0 = index % across * CHANNELS;
    size_t n = s->c - c0 < CHANNELS ? s->c - c0 : CHANNELS;
    float part[CHANNELS];
    double sum[CHANNELS] = {0};

    (void)err;
    for (size_t row = 0; row < s->rows; row += 64) {
        memset(part, 0, sizeof part);
        sum_rows(part, s->a + (sample * s->rows + row) * s->c + c0, s->rows - row < 64 ? s->rows - row : 64, s->c, n);
        for (size_t j = 0; j < n; j++)
            sum[j] += (double)part[j];
    }
    for (size_t j = 0; j < n; j++)
        s->y[sample * s->c + c0 + j] = (float)sum[j];
    return 0;
}

/* da is dy itself, and so is db of the same shape (op.h: pass); only a spread b needs work */
static int backward(const struct op_call *c, struct err *err)
{
    struct add s = describe(c);

    s.a = c->dout[0]->data;
    s.y = c->din[1]->data;
    return thread_for(c->in[1]->shape.dim[0] * ((s.c + CHANNELS - 1) / CHANNELS), sum_piece, &s, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *a = &c->in[0]->shape, *b = &c->in[1]->shape;
    char x[128], y[128];
    bool spread = b->ndim == 2 && a->ndim > 2 && b->dim[0] == a->dim[0] && b->dim[1] == a->dim[a->ndim - 1];

    if (!spread && !shape_equal(a, b))
        return err_set(err, "%s cannot be added to %s", shape_print(b, x, sizeof x), shape_print(a, y, sizeof y));
    return elementwise_need_f32(c, 1, "input", err) < 0 ? -1 : elementwise_shape(c, err);
}

const struct op op_add = {
    .name = "add", .min_in = 2, .max_in = 2, .nout = 1, .differentiable = 3, .pass = 3, .inplace = 3,
    .shape = shape, .forward = forward, .backward = backward,
};

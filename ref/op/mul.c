/* Multiplication by something fixed: y = x * m, m of the same shape or one vector a sample, [n, c] to [n, .., c]. What dropout
 * is made of: m holds zeros and 1 / (1 - p). */
#include "ref/base/simd.h"
#include "ref/op/elementwise.h"

struct mul {
    size_t rows, c; /* rows of a sample that share one vector of m; 1: m is of x's shape */
    const float *x, *m;
    float *y;
};

SIMD_CLONES static void mul_rows(const void *ctx, size_t first, size_t n)
{
    const struct mul *s = ctx;
    size_t c = s->c;

    for (size_t i = first; i < first + n; i++) {
        const float *x = s->x + i * c, *m = s->m + i / s->rows * c;
        float *y = s->y + i * c;

#pragma omp simd
        for (size_t j = 0; j < c; j++)
            y[j] = x[j] * m[j];
    }
}

static int multiply(const struct op_call *c, const struct tensor *x, struct tensor *y, struct err *err)
{
    const struct tensor *m = c->in[1];
    struct mul s = {.c = elementwise_last(x), .rows = elementwise_count(x) / elementwise_count(m), .x = x->data, .m = m->data, .y = y->data};

    return elementwise_run(elementwise_count(x) / s.c, elementwise_rows(s.c), mul_rows, &s, err);
}

static int forward(const struct op_call *c, struct err *err)
{
    return multiply(c, c->in[0], c->out[0], err);
}

/* dx = dy * m */
static int backward(const struct op_call *c, struct err *err)
{
    return multiply(c, c->dout[0], c->din[0], err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *x = &c->in[0]->shape, *m = &c->in[1]->shape;
    char a[128], b[128];
    bool spread = m->ndim == 2 && x->ndim > 2 && m->dim[0] == x->dim[0] && m->dim[1] == x->dim[x->ndim - 1];

    if (x->ndim < 1 || elementwise_count(c->in[0]) == 0 || (!spread && !shape_equal(x, m)))
        return err_set(err, "%s cannot be multiplied by %s", shape_print(x, a, sizeof a), shape_print(m, b, sizeof b));
    return elementwise_need_f32(c, 1, "the factor", err) < 0 ? -1 : elementwise_shape(c, err);
}

const struct op op_mul = {
    .name = "mul", .min_in = 2, .max_in = 2, .nout = 1, .differentiable = 1, .needs_in = {1 << 1}, .inplace = 1,
    .inplace_backward = true, .shape = shape, .forward = forward, .backward = backward,
};

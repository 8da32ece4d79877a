/* The low-rank branch: y = base + scale * (x downT) upT. The product of rank r stays in scratch; the backward computes it
 * again (a few percent of the layer) rather than keep it. */
#include "ref/op/elementwise.h"

#include <cblas.h>
#include <string.h>

#include "ref/base/thread.h"

enum { BASE, X, DOWN, UP };
enum { TILE = 256, STRIP = 96 }; /* rows of x that one piece does; rows or columns of a factor's gradient */

struct lora {
    size_t m, k, n, r;
    float scale;
    const float *x, *down, *up, *base, *dy;
    float *y, *dx, *ddown, *dup;
    float *t, *dt; /* [m, r] */
};

static struct lora describe(const struct op_call *c)
{
    const size_t *down = c->in[DOWN]->shape.dim;
    struct lora a = {.k = down[1], .r = down[0], .n = c->in[UP]->shape.dim[0], .scale = c->attr->scale};

    a.m = elementwise_count(c->in[X]) / a.k;
    a.x = c->in[X]->data;
    a.down = c->in[DOWN]->data;
    a.up = c->in[UP]->data;
    a.t = c->scratch;
    return a;
}

/* c [m, n] = alpha * op(a) op(b) + beta * c, all row-major and dense but for their row lengths */
static void multiply(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda, const float *b,
                     size_t ldb, float beta, float *c, size_t ldc)
{
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha,
                a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

static int forward_rows(void *ctx, size_t index, struct err *err)
{
    const struct lora *a = ctx;
    size_t row = index * TILE, rows = a->m - row < TILE ? a->m - row : TILE;
    float *t = a->t + row * a->r, *y = a->y + row * a->n;

    (void)err;
    multiply(false, true, rows, a->r, a->k, 1, a->x + row * a->k, a->k, a->down, a->k, 0, t, a->r);
    if (a->base != a->y)
        memcpy(y, a->base + row * a->n, rows * a->n * sizeof *y);
    multiply(false, true, rows, a->n, a->r, a->scale, t, a->r, a->up, a->r, 1, y, a->n);
    return 0;
}

static int forward(const struct op_call *c, struct err *err)
{
    struct lora a = describe(c);

    a.base = c->in[BASE]->data;
    a.y = c->out[0]->data;
    return thread_for((a.m + TILE - 1) / TILE, forward_rows, &a, err);
}

/* t = x downT, dt = scale * dy up, dx = dt down */
static int backward_rows(void *ctx, size_t index, struct err *err)
{
    const struct lora *a = ctx;
    size_t row = index * TILE, rows = a->m - row < TILE ? a->m - row : TILE;
    float *t = a->t + row * a->r, *dt = a->dt + row * a->r;

    (void)err;
    if (a->dup)
        multiply(false, true, rows, a->r, a->k, 1, a->x + row * a->k, a->k, a->down, a->k, 0, t, a->r);
    multiply(false, false, rows, a->r, a->n, a->scale, a->dy + row * a->n, a->n, a->up, a->r, 0, dt, a->r);
    if (a->dx)
        multiply(false, false, rows, a->k, a->r, 1, dt, a->r, a->down, a->k, 0, a->dx + row * a->k, a->k);
    return 0;
}

/* dup [n, r] = scale * dyT t: STRIP rows of it, summed over all rows of x at once */
static void up_rows(const struct lora *a, size_t index)
{
    size_t row = index * STRIP, rows = a->n - row < STRIP ? a->n - row : STRIP;

    multiply(true, false, rows, a->r, a->m, a->scale, a->dy + row, a->n, a->t, a->r, 0, a->dup + row * a->r, a->r);
}

/* ddown [r, k] = dtT x: STRIP columns of it */
static void down_columns(const struct lora *a, size_t index)
{
    size_t col = index * STRIP, cols = a->k - col < STRIP ? a->k - col : STRIP;

    multiply(true, false, a->r, cols, a->m, 1, a->dt, a->r, a->x + col, a->k, 0, a->ddown + col, a->k);
}

static size_t ups(const struct lora *a)
{
    return a->dup ? (a->n + STRIP - 1) / STRIP : 0;
}

/* Both gradients' strips in one loop, so that no thread waits between them. */
static int backward_strip(void *ctx, size_t index, struct err *err)
{
    const struct lora *a = ctx;

    (void)err;
    if (index < ups(a))
        up_rows(a, index);
    else
        down_columns(a, index - ups(a));
    return 0;
}

static int backward(const struct op_call *c, struct err *err)
{
    struct lora a = describe(c);

    a.dt = a.t + a.m * a.r;
    a.dy = c->dout[0]->data;
    a.dx = c->din[X] ? c->din[X]->data : NULL;
    a.ddown = c->din[DOWN] ? c->din[DOWN]->data : NULL;
    a.dup = c->din[UP] ? c->din[UP]->data : NULL;
    if (thread_for((a.m + TILE - 1) / TILE, backward_rows, &a, err) < 0)
        return -1;
    return thread_for(ups(&a) + (a.ddown ? (a.k + STRIP - 1) / STRIP : 0), backward_strip, &a, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *base = &c->in[BASE]->shape, *x = &c->in[X]->shape;
    const struct shape *down = &c->in[DOWN]->shape, *up = &c->in[UP]->shape;
    char a[128], b[128], d[128], e[128];
    bool fits = base->ndim == x->ndim && x->ndim > 0 && down->ndim == 2 && up->ndim == 2;

    for (int i = 0; fits && i + 1 < x->ndim; i++)
        fits = base->dim[i] == x->dim[i];
    if (!fits || down->dim[1] == 0 || x->dim[x->ndim - 1] != down->dim[1] || base->dim[base->ndim - 1] != up->dim[0] ||
        down->dim[0] != up->dim[1])
        return err_set(err, "LoRA factors %s and %s do not fit a layer from %s to %s", shape_print(down, a, sizeof a),
                       shape_print(up, b, sizeof b), shape_print(x, d, sizeof d), shape_print(base, e, sizeof e));
    if (elementwise_need_f32(c, X, "input", err) < 0 || elementwise_need_f32(c, DOWN, "lora_down", err) < 0 ||
        elementwise_need_f32(c, UP, "lora_up", err) < 0)
        return -1;
    return elementwise_shape(c, err);
}

static size_t scratch(const struct op_call *c, bool back, int threads)
{
    const size_t *down = c->in[DOWN]->shape.dim;

    (void)threads;
    return elementwise_count(c->in[X]) / down[1] * down[0] * sizeof(float) * (back ? 2 : 1);
}

static double flops(const struct op_call *c, bool back)
{
    double x = (double)elementwise_count(c->in[X]), y = (double)elementwise_count(c->in[BASE]);

    return 2 * (x + y) * (double)c->in[DOWN]->shape.dim[0] * (back ? 2.5 : 1);
}

const struct op op_lora = {
    .name = "lora", .min_in = 4, .max_in = 4, .nout = 1,
    .differentiable = 1 << BASE | 1 << X | 1 << DOWN | 1 << UP,
    .needs_in = {[X] = 1 << DOWN | 1 << UP, [DOWN] = 1 << X | 1 << UP, [UP] = 1 << X | 1 << DOWN | 1 << UP},
    .pass = 1 << BASE, .inplace = 1 << BASE,
    .shape = shape, .forward = forward, .backward = backward, .scratch = scratch, .flops = flops,
};

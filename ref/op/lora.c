/* The low-rank branch: y = base + scale * (x downT) upT. The product of rank r is not kept; the backward computes it again (a
 * few percent of the layer). */
#include "ref/op/elementwise.h"
#include "ref/op/lora_narrow.h"

#include <cblas.h>
#include <string.h>

#include "ref/base/thread.h"

enum { BASE, X, DOWN, UP };
enum { TILE = 256, STRIP = 96 }; /* rows of x that one piece does; rows or columns of a factor's gradient */

/* Up to this rank the products are this file's own (lora_narrow.h), which read x and dy once; from there on BLAS pays. */
enum { NARROW = 8, PIECES = 16, LEAST = 64 }; /* pieces of the narrow backward, of at least so many rows */

struct lora {
    size_t m, k, n, r;
    float scale;
    const float *x, *down, *up, *base, *dy;
    float *y, *dx, *ddown, *dup;
    float *t, *dt;      /* [m, r] */
    float *turned;      /* [r, n] up, of the narrow products */
    float *parts;       /* [pieces, r, n + k] dupT and ddown of each piece */
    size_t pieces, rows; /* rows of a piece */
};

static struct lora describe(const struct op_call *c)
{
    const size_t *down = c->in[DOWN]->shape.dim;
    struct lora a = {.k = down[1], .r = down[0], .n = c->in[UP]->shape.dim[0], .scale = c->attr->scale};

    a.m = elementwise_count(c->in[X]) / a.k;
    a.x = c->in[X]->data;
    a.down = c->in[DOWN]->data;
    a.up = c->in[UP]->data;
    if (c->scratch) { /* not yet when it is asked how much it has to be */
        a.t = a.turned = c->scratch;
        a.dt = a.t + a.m * a.r;
        a.parts = a.turned + a.r * a.n;
    }
    a.rows = (a.m + PIECES - 1) / PIECES < LEAST ? LEAST : (a.m + PIECES - 1) / PIECES;
    a.pieces = (a.m + a.rows - 1) / a.rows;
    return a;
}

static void turn_up(const struct lora *a)
{
    for (size_t i = 0; i < a->n; i++)
        for (size_t q = 0; q < a->r; q++)
            a->turned[q * a->n + i] = a->up[i * a->r + q];
}

/* c [m, n] = alpha * op(a) op(b) + beta * c, all row-major and dense but for their row lengths */
static void multiply(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda, const float *b,
                     size_t ldb, float beta, float *c, size_t ldc)
{
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha,
                a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

/* ---- Forward ---- */

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

static int narrow_forward_rows(void *ctx, size_t index, struct err *err)
{
    const struct lora *a = ctx;
    size_t row = index * NARROW_ROWS, rows = a->m - row < NARROW_ROWS ? a->m - row : NARROW_ROWS;
    float t[NARROW_ROWS * NARROW];

    (void)err;
    narrow_project(a->x + row * a->k, rows, a->k, a->down, a->r, a->scale, t);
    narrow_spread(a->base + row * a->n, t, rows, a->r, a->turned, a->n, a->y + row * a->n);
    return 0;
}

static int forward(const struct op_call *c, struct err *err)
{
    struct lora a = describe(c);

    a.base = c->in[BASE]->data;
    a.y = c->out[0]->data;
    if (a.r > NARROW)
        return thread_for((a.m + TILE - 1) / TILE, forward_rows, &a, err);
    turn_up(&a);
    return thread_for((a.m + NARROW_ROWS - 1) / NARROW_ROWS, narrow_forward_rows, &a, err);
}

/* ---- Backward ---- */

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

/* The same of one piece, NARROW_ROWS at a time, while they are in the cache: dup [r, n] and ddown [r, k] of it go to its parts. */
static int narrow_backward_piece(void *ctx, size_t index, struct err *err)
{
    const struct lora *a = ctx;
    size_t first = index * a->rows, end = first + a->rows < a->m ? first + a->rows : a->m;
    float t[NARROW_ROWS * NARROW], dt[NARROW_ROWS * NARROW], *dup = a->parts + index * a->r * (a->n + a->k), *ddown = dup + a->r * a->n;

    (void)err;
    memset(dup, 0, a->r * (a->n + a->k) * sizeof *dup);
    for (size_t row = first; row < end; row += NARROW_ROWS) {
        const float *x = a->x + row * a->k, *dy = a->dy + row * a->n;
        size_t rows = end - row < NARROW_ROWS ? end - row : NARROW_ROWS;

        narrow_project(dy, rows, a->n, a->turned, a->r, a->scale, dt);
        if (a->dx)
            narrow_spread(NULL, dt, rows, a->r, a->down, a->k, a->dx + row * a->k);
        if (a->dup) {
            narrow_project(x, rows, a->k, a->down, a->r, a->scale, t);
            narrow_gather(dy, t, rows, a->r, a->n, dup);
        }
        if (a->ddown)
            narrow_gather(x, dt, rows, a->r, a->k, ddown);
    }
    return 0;
}

/* Sums the pieces in order: row q of dupT and of ddown. */
static int narrow_sum(void *ctx, size_t q, struct err *err)
{
    const struct lora *a = ctx;
    size_t each = a->r * (a->n + a->k);
    const float *dup = a->parts + q * a->n, *ddown = a->parts + a->r * a->n + q * a->k;

    (void)err;
    for (size_t i = 0; a->dup && i < a->n; i++) {
        float sum = 0;

        for (size_t p = 0; p < a->pieces; p++)
            sum += dup[p * each + i];
        a->dup[i * a->r + q] = sum;
    }
    for (size_t i = 0; a->ddown && i < a->k; i++) {
        float sum = 0;

        for (size_t p = 0; p < a->pieces; p++)
            sum += ddown[p * each + i];
        a->ddown[q * a->k + i] = sum;
    }
    return 0;
}

static int narrow_backward(struct lora *a, struct err *err)
{
    turn_up(a);
    if (thread_for(a->pieces, narrow_backward_piece, a, err) < 0)
        return -1;
    return a->dup || a->ddown ? thread_for(a->r, narrow_sum, a, err) : 0;
}

static int backward(const struct op_call *c, struct err *err)
{
    struct lora a = describe(c);

    a.dy = c->dout[0]->data;
    a.dx = c->din[X] ? c->din[X]->data : NULL;
    a.ddown = c->din[DOWN] ? c->din[DOWN]->data : NULL;
    a.dup = c->din[UP] ? c->din[UP]->data : NULL;
    if (a.r <= NARROW)
        return narrow_backward(&a, err);
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
    struct lora a = describe(c);

    (void)threads;
    if (a.r > NARROW)
        return a.m * a.r * sizeof(float) * (back ? 2 : 1);
    return (a.r * a.n + (back ? a.pieces * a.r * (a.n + a.k) : 0)) * sizeof(float);
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

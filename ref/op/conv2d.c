/* 2-D convolution, channels last, as an implicit matrix product: row = output pixel, sum over (kh, kw, ci); the patches are
 * laid out a tile at a time in scratch. A 1x1 convolution without stride needs no patches; a 3x3 one without stride goes by
 * Winograd's way where that pays (winograd.h). */
#include "ref/op/elementwise.h"
#include "ref/op/gemm.h"
#include "ref/op/winograd.h"

#include <string.h>

enum { X, W, BIAS, RESIDUAL };

struct geometry {
    size_t h, w, c; /* of the picture that patches are taken from: x, or dy in the backward */
    size_t oh, ow;  /* one row of the product for each of these pixels */
    size_t kh, kw, stride, pad;
    bool back;
    const float *x;
};

/* Where tap k of pixel `out` lies along one dimension, or false when that is outside. Forward: output pixel o sees input
 * o * stride + k - pad. Backward: input pixel i was seen by output (i + pad - k) / stride where that is whole. */
static bool locate(const struct geometry *g, size_t out, size_t k, size_t limit, size_t *at)
{
    size_t plus = g->back ? out + g->pad : out * g->stride + k, minus = g->back ? k : g->pad;

    if (plus < minus || (g->back && (plus - minus) % g->stride != 0))
        return false;
    *at = g->back ? (plus - minus) / g->stride : plus - minus;
    return *at < limit;
}

/* Row = pixel, column = (ky, kx, channel), zeros outside the picture (gemm.h) */
static void patches(const void *ctx, float *dst, size_t row, size_t rows, size_t col, size_t cols)
{
    const struct geometry *g = ctx;

    for (size_t i = row; i < row + rows; i++, dst += cols) {
        size_t ox = i % g->ow, oy = i / g->ow % g->oh, n = i / g->ow / g->oh, part;

        for (size_t done = 0; done < cols; done += part) {
            size_t tap = (col + done) / g->c, c0 = (col + done) % g->c, y, x;

            part = g->c - c0 < cols - done ? g->c - c0 : cols - done;
            if (locate(g, oy, tap / g->kw, g->h, &y) && locate(g, ox, tap % g->kw, g->w, &x))
                memcpy(dst + done, g->x + ((n * g->h + y) * g->w + x) * g->c + c0, part * sizeof *dst);
            else
                memset(dst + done, 0, part * sizeof *dst);
        }
    }
}

static struct geometry forward_geometry(const struct op_call *c)
{
    const size_t *x = c->in[X]->shape.dim, *w = c->in[W]->shape.dim;
    const size_t *y = c->out[0]->shape.dim;

    return (struct geometry){.h = x[1], .w = x[2], .c = x[3], .oh = y[1], .ow = y[2], .kh = w[1], .kw = w[2],
                             .stride = c->attr->stride, .pad = c->attr->pad_before, .x = c->in[X]->data};
}

static bool pointwise(const struct geometry *g)
{
    return g->kh == 1 && g->kw == 1 && g->stride == 1 && g->pad == 0;
}

/* The product of the forward: X are patches (or x itself), W is w [co, kh*kw*ci] transposed. */
static struct gemm product(const struct op_call *c, const struct geometry *g)
{
    const struct tensor *w = c->in[W];
    struct gemm m = {.m = elementwise_count(c->out[0]) / w->shape.dim[0], .n = w->shape.dim[0],
                     .k = g->kh * g->kw * g->c, .scratch = c->scratch};

    if (pointwise(g)) {
        m.x = g->x;
        m.ldx = g->c;
    } else {
        m.rows = patches;
        m.ctx = g;
    }
    m.w = (struct gemm_weight){.data = w->data, .dtype = w->dtype, .transposed = true, .ld = m.k};
    return m;
}

/* Where a map is this small, Winograd's f32 products and transformed weights cost more than plain ones in bf16 (measured at 8 x 8). */
enum { FEW_PIXELS = 64 };

/* Shapes of the forward, or of the gradient of x, for Winograd; whether that applies and pays. */
static bool by_winograd(const struct op_call *c, bool back, struct winograd *g)
{
    const size_t *x = c->in[X]->shape.dim, *w = c->in[W]->shape.dim, *y = (back ? c->dout[0] : c->out[0])->shape.dim;

    if (w[1] != 3 || w[2] != 3 || c->attr->stride != 1 || c->attr->pad_before > 2)
        return false;
    *g = (struct winograd){.n = x[0], .h = x[1], .w = x[2], .c = x[3], .oh = y[1], .ow = y[2], .oc = w[0],
                           .pad = c->attr->pad_before, .weight = c->in[W]->data, .dtype = c->in[W]->dtype, .back = back,
                           .scratch = c->scratch};
    if (back)
        *g = (struct winograd){.n = x[0], .h = y[1], .w = y[2], .c = w[0], .oh = x[1], .ow = x[2], .oc = w[3],
                               .pad = 2 - g->pad, .weight = g->weight, .dtype = g->dtype, .back = true, .scratch = c->scratch};
    if (!back && c->arithmetic == DT_BF16 && g->n * g->oh * g->ow <= FEW_PIXELS)
        return false;
    return winograd_pays(g);
}

static int forward(const struct op_call *c, struct err *err)
{
    struct geometry g = forward_geometry(c);
    struct gemm m = product(c, &g);
    struct winograd fast;

    if (by_winograd(c, false, &fast)) {
        fast.x = c->in[X]->data;
        fast.y = c->out[0]->data;
        fast.bias = c->in[BIAS] ? c->in[BIAS]->data : NULL;
        fast.residual = c->in[RESIDUAL] ? c->in[RESIDUAL]->data : NULL;
        return winograd_run(&fast, err);
    }
    m.y = c->out[0]->data;
    m.ldy = m.n;
    m.bf16 = c->arithmetic == DT_BF16 && gemm_takes_bf16(m.m, m.n, c->in[W]->shape.dim[3]);
    m.bias = c->in[BIAS] ? c->in[BIAS]->data : NULL;
    m.residual = c->in[RESIDUAL] ? c->in[RESIDUAL]->data : NULL;
    return gemm_run(&m, err);
}

/* dx: the sum over (ky, kx, co) of dy seen from the input pixel times w [co, ky, kx, ci]: row (tap, co) of that product is at
 * co * taps * ci + tap * ci of the stored weight. */
static int input_gradient(const struct op_call *c, struct err *err)
{
    const size_t *x = c->in[X]->shape.dim, *w = c->in[W]->shape.dim, *y = c->dout[0]->shape.dim;
    struct geometry g = {.h = y[1], .w = y[2], .c = w[0], .oh = x[1], .ow = x[2], .kh = w[1], .kw = w[2],
                         .stride = c->attr->stride, .pad = c->attr->pad_before, .back = true, .x = c->dout[0]->data};
    struct gemm m = {.m = elementwise_count(c->in[X]) / w[3], .n = w[3], .k = w[1] * w[2] * w[0], .scratch = c->scratch};
    struct winograd fast;

    if (by_winograd(c, true, &fast)) {
        fast.x = c->dout[0]->data;
        fast.y = c->din[X]->data;
        return winograd_run(&fast, err);
    }
    if (pointwise(&g)) {
        m.x = g.x;
        m.ldx = g.c;
    } else {
        m.rows = patches;
        m.ctx = &g;
    }
    m.w = (struct gemm_weight){.data = c->in[W]->data, .dtype = c->in[W]->dtype, .ld = w[1] * w[2] * w[3], .period = w[0],
                               .jump = w[3]};
    m.y = c->din[X]->data;
    m.ldy = m.n;
    m.bf16 = c->arithmetic == DT_BF16 && w[0] % 2 == 0 && gemm_takes_bf16(m.m, m.n, w[0]); /* a pair lies within one tap */
    return gemm_run(&m, err);
}

/* din[W] [co, kh, kw, ci] only when the weight is trained (a LoRA's lora_down); dresidual = dy */
static int backward(const struct op_call *c, struct err *err)
{
    if (c->din[W]) {
        struct geometry g = forward_geometry(c);
        struct gemm m = product(c, &g);

        if (gemm_weight_gradient(&m, c->dout[0]->data, c->din[W]->data, err) < 0)
            return -1;
    }
    return c->din[X] ? input_gradient(c, err) : 0;
}

static int check_output(const struct op_call *c, struct err *err)
{
    char a[128], b[128];

    if (c->in[RESIDUAL] && !shape_equal(&c->in[RESIDUAL]->shape, &c->out[0]->shape))
        return err_set(err, "residual %s does not fit output %s", shape_print(&c->in[RESIDUAL]->shape, a, sizeof a),
                       shape_print(&c->out[0]->shape, b, sizeof b));
    return elementwise_need_f32(c, RESIDUAL, "residual", err) < 0
               ? -1
               : elementwise_need_vector(c, BIAS, c->in[W]->shape.dim[0], "bias", err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *x = &c->in[X]->shape, *w = &c->in[W]->shape;
    size_t pad = c->attr->pad_before + c->attr->pad_after;
    char a[128], b[128];

    if (elementwise_need_f32(c, X, "input", err) < 0 || elementwise_need_float(c, W, "weight", err) < 0)
        return -1;
    if (x->ndim != 4 || w->ndim != 4 || x->dim[3] != w->dim[3] || w->dim[3] == 0)
        return err_set(err, "input %s does not fit convolution weight %s (out, height, width, in)",
                       shape_print(x, a, sizeof a), shape_print(w, b, sizeof b));
    if (c->attr->stride == 0 || w->dim[1] == 0 || w->dim[2] == 0 || x->dim[1] + pad < w->dim[1] || x->dim[2] + pad < w->dim[2])
        return err_set(err, "input %s is smaller than the convolution's window %s; use a larger picture",
                       shape_print(x, a, sizeof a), shape_print(w, b, sizeof b));
    c->out[0]->dtype = DT_F32;
    c->out[0]->shape = *x;
    c->out[0]->shape.dim[1] = (x->dim[1] + pad - w->dim[1]) / c->attr->stride + 1;
    c->out[0]->shape.dim[2] = (x->dim[2] + pad - w->dim[2]) / c->attr->stride + 1;
    c->out[0]->shape.dim[3] = w->dim[0];
    return check_output(c, err);
}

static size_t scratch(const struct op_call *c, bool back, int threads)
{
    const size_t *w = c->in[W]->shape.dim;
    size_t taps = w[1] * w[2];
    size_t x = back ? gemm_scratch(elementwise_count(c->in[X]) / w[3], w[3], taps * w[0], threads) : 0;
    size_t y = gemm_scratch(elementwise_count(c->out[0]) / w[0], w[0], taps * w[3], threads), most = x > y ? x : y, z;
    struct winograd fast;

    /* a backward may need both ways: the weight's gradient is always made from patches */
    z = by_winograd(c, back, &fast) ? winograd_scratch(&fast, threads) : 0;
    return z > most ? z : most;
}

static double flops(const struct op_call *c, bool back)
{
    const size_t *w = c->in[W]->shape.dim;
    double one = 2.0 * (double)elementwise_count(c->out[0]) * (double)w[1] * (double)w[2] * (double)w[3];

    return back ? one * ((c->din[X] != NULL) + (c->din[W] != NULL)) : one;
}

const struct op op_conv2d = {
    .name = "conv2d", .min_in = 2, .max_in = 4, .nout = 1,
    .differentiable = 1 << X | 1 << W | 1 << RESIDUAL,
    .needs_in = {[X] = 1 << W, [W] = 1 << X}, .pass = 1 << RESIDUAL, .inplace = 1 << RESIDUAL,
    .shape = shape, .forward = forward, .backward = backward, .scratch = scratch, .flops = flops,
};

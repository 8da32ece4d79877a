/* Linear layer: y = scale * x wT + bias, then an activation or plus a residual; w in the file's dtype. */
#include <cblas.h>

#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/op/elementwise.h"
#include "ref/op/gemm.h"

enum { X, W, BIAS, RESIDUAL, DOWN, UP };

/* x [m, k], w [n, k]: everything but the outputs */
static struct gemm describe(const struct op_call *c)
{
    const struct tensor *w = c->in[W];
    size_t n = w->shape.dim[0], k = w->shape.dim[1];
    struct gemm g = {.m = elementwise_count(c->in[X]) / k, .n = n, .k = k, .scale = c->attr->scale, .scratch = c->scratch};

    g.w = (struct gemm_weight){.data = w->data, .dtype = w->dtype, .transposed = true, .ld = k};
    return g;
}

/* A LoRA put into the weight: w + fold * up down, one layer at a time in scratch, so the model is never held twice. Worth it
 * when x has many rows: it costs 2 n k r operations, a branch 2 m (n + k) r. */
enum { FOLD_ROWS = 32 };

struct fold {
    const struct tensor *w;
    const float *down, *up; /* [r, k], [n, r] */
    size_t r;
    float scale;
    float *out; /* [n, k] */
};

static int fold_rows(void *ctx, size_t index, struct err *err)
{
    const struct fold *f = ctx;
    size_t n = f->w->shape.dim[0], k = f->w->shape.dim[1], row = index * FOLD_ROWS;
    size_t rows = n - row < FOLD_ROWS ? n - row : FOLD_ROWS;
    float *out = f->out + row * k;

    (void)err;
    dtype_convert(out, DT_F32, (const char *)f->w->data + row * k * dtype_size(f->w->dtype), f->w->dtype, rows * k);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)k, (int)f->r, f->scale, f->up + row * f->r, (int)f->r,
                f->down, (int)k, 1, out, (int)k);
    return 0;
}

static size_t folded_bytes(const struct op_call *c)
{
    return c->in[DOWN] ? (elementwise_count(c->in[W]) * sizeof(float) + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN : 0;
}

/* Lets g work with the folded weight, which takes the front of the scratch. */
static int fold(const struct op_call *c, struct gemm *g, struct err *err)
{
    struct fold f = {.w = c->in[W], .scale = c->attr->fold, .out = c->scratch};

    if (!c->in[DOWN])
        return 0;
    f.down = c->in[DOWN]->data;
    f.up = c->in[UP]->data;
    f.r = c->in[DOWN]->shape.dim[0];
    g->w.data = c->scratch;
    g->w.dtype = DT_F32;
    g->scratch = (char *)c->scratch + folded_bytes(c);
    return thread_for((f.w->shape.dim[0] + FOLD_ROWS - 1) / FOLD_ROWS, fold_rows, &f, err);
}

static int forward(const struct op_call *c, struct err *err)
{
    struct gemm g = describe(c);

    g.x = c->in[X]->data;
    g.ldx = g.k;
    g.y = c->out[0]->data;
    g.ldy = g.n;
    g.bias = c->in[BIAS] ? c->in[BIAS]->data : NULL;
    g.residual = c->in[RESIDUAL] ? c->in[RESIDUAL]->data : NULL;
    g.act = c->attr->act;
    g.bf16 = c->arithmetic == DT_BF16 && gemm_takes_bf16(g.m, g.n, g.k);
    return fold(c, &g, err) < 0 ? -1 : gemm_run(&g, err);
}

/* dx [m, k] = scale * dy [m, n] w [n, k];  dw [n, k] = scale * dyT x, when w is trained;  dresidual = dy */
static int backward(const struct op_call *c, struct err *err)
{
    struct gemm g = describe(c);

    if (c->attr->act != ACT_NONE)
        return err_set(err, "a linear layer fused with its activation has no gradient");
    if (c->din[W]) {
        g.x = c->in[X]->data;
        g.ldx = g.k;
        if (gemm_weight_gradient(&g, c->dout[0]->data, c->din[W]->data, err) < 0)
            return -1;
    }
    if (c->din[X]) {
        struct gemm b = g;

        if (fold(c, &b, err) < 0)
            return -1;
        b.n = g.k;
        b.k = g.n;
        b.x = c->dout[0]->data;
        b.ldx = g.n;
        b.w.transposed = false;
        b.y = c->din[X]->data;
        b.ldy = g.k;
        b.bf16 = c->arithmetic == DT_BF16 && gemm_takes_bf16(b.m, b.n, b.k);
        return gemm_run(&b, err);
    }
    return 0;
}

static int check_fold(const struct op_call *c, size_t n, size_t k, struct err *err)
{
    const struct tensor *down = c->in[DOWN], *up = c->in[UP];

    if (!down != !up)
        return err_set(err, "a LoRA needs both lora_down and lora_up");
    if (!down)
        return 0;
    if (down->shape.ndim != 2 || up->shape.ndim != 2 || down->shape.dim[1] != k || up->shape.dim[0] != n ||
        down->shape.dim[0] != up->shape.dim[1])
        return err_set(err, "LoRA factors do not fit a weight of [%zu, %zu]", n, k);
    return elementwise_need_f32(c, DOWN, "lora_down", err) < 0 ? -1 : elementwise_need_f32(c, UP, "lora_up", err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *x = &c->in[X]->shape, *w = &c->in[W]->shape;
    char a[128], b[128];

    if (elementwise_need_f32(c, X, "input", err) < 0 || elementwise_need_float(c, W, "weight", err) < 0)
        return -1;
    if (x->ndim < 1 || w->ndim != 2 || w->dim[1] == 0 || x->dim[x->ndim - 1] != w->dim[1])
        return err_set(err, "input %s does not fit weight %s", shape_print(x, a, sizeof a), shape_print(w, b, sizeof b));
    c->out[0]->dtype = DT_F32;
    c->out[0]->shape = *x;
    c->out[0]->shape.dim[x->ndim - 1] = w->dim[0];
    if (c->in[RESIDUAL] && !shape_equal(&c->in[RESIDUAL]->shape, &c->out[0]->shape))
        return err_set(err, "residual %s does not fit output %s", shape_print(&c->in[RESIDUAL]->shape, a, sizeof a),
                       shape_print(&c->out[0]->shape, b, sizeof b));
    if (elementwise_need_f32(c, RESIDUAL, "residual", err) < 0 ||
        elementwise_need_vector(c, BIAS, w->dim[0], "bias", err) < 0)
        return -1;
    if (c->in[RESIDUAL] && c->attr->act != ACT_NONE)
        return err_set(err, "a linear layer takes an activation or a residual, not both");
    return check_fold(c, w->dim[0], w->dim[1], err);
}

static size_t scratch(const struct op_call *c, bool back, int threads)
{
    const size_t *w = c->in[W]->shape.dim;
    size_t m = elementwise_count(c->in[X]) / w[1];
    size_t x = back ? gemm_scratch(m, w[1], w[0], threads) : 0, y = gemm_scratch(m, w[0], w[1], threads);

    return (x > y ? x : y) + folded_bytes(c);
}

static double flops(const struct op_call *c, bool back)
{
    double one = 2.0 * (double)elementwise_count(c->in[X]) * (double)c->in[W]->shape.dim[0];

    if (c->in[DOWN])
        one += 2.0 * (double)elementwise_count(c->in[UP]) * (double)c->in[W]->shape.dim[1];
    return back ? one * ((c->din[X] != NULL) + (c->din[W] != NULL)) : one;
}

const struct op op_linear = {
    .name = "linear", .min_in = 2, .max_in = 6, .nout = 1,
    .differentiable = 1 << X | 1 << W | 1 << RESIDUAL,
    .needs_in = {[X] = 1 << W | 1 << DOWN | 1 << UP, [W] = 1 << X}, .pass = 1 << RESIDUAL, .inplace = 1 << RESIDUAL,
    .shape = shape, .forward = forward, .backward = backward, .scratch = scratch, .flops = flops,
};

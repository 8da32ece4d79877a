/* linear and lora. A LoRA that is to be folded into the weight is a branch here: the weight has 8 bits of mantissa (bf16), so
 * that folding would lose most of a small change, and a branch of low rank costs little. */
#include "offload/cuda/gemm.h"
#include "offload/cuda/slots.h"

enum { X, W, BIAS, RESIDUAL, DOWN, UP };

/* y [m, n] = x [m, k] wT with w [n, k], or x w with w [k, n] */
static struct gemm_call product(const void *x, const void *w, bool w_turned, void *y, size_t m, size_t n, size_t k, float alpha)
{
    return (struct gemm_call){.m = m, .n = n, .k = k, .ldx = k, .ldw = w_turned ? k : n, .ldy = n, .w_turned = w_turned,
                              .alpha = alpha, .x = x, .w = w, .y = y};
}

/* y [m, n] += scale * (x [m, k] aT) bT with a [r, k], b [n, r] (turned), or (x a) b with a [k, r], b [r, n]; t [m, r] T */
static int add_low_rank(const void *x, const void *a, const void *b, bool turned, void *t, void *y, const size_t size[4],
                        float scale, struct err *err)
{
    struct gemm_call low = product(x, a, turned, t, size[0], size[3], size[2], 1);
    struct gemm_call high = product(t, b, turned, y, size[0], size[1], size[3], scale);

    high.beta = 1;
    high.c = y;
    return gemm_run(&low, err) < 0 ? -1 : gemm_run(&high, err);
}

/* What a factor's gradient is: y [m, n] f32 = alpha * xT w over many rows */
static int sum_rows(const void *x, const void *w, const struct tensor *y, size_t rows, float alpha, struct err *err)
{
    size_t m = y->shape.dim[0], n = y->shape.dim[1];
    struct gemm_call g = product(x, w, false, y->data, m, n, rows, alpha);

    g.ldx = m;
    g.x_turned = g.y_f32 = true;
    return gemm_run(&g, err);
}

static float scale_of(const struct op_call *c)
{
    return c->attr->scale != 0 ? c->attr->scale : 1;
}

/* The product of rank r, behind an unpacked weight. */
static void *low_rank(const struct op_call *c)
{
    return (char *)c->scratch + weight_room(c->in[W]);
}

static int linear_forward(const struct op_call *c, struct err *err)
{
    size_t n = c->in[W]->shape.dim[0], k = c->in[W]->shape.dim[1], m = state_count(c->in[X]) / k;
    struct gemm_call g = product(memory_typed(c->in[X]), NULL, true, c->out[0]->data, m, n, k, scale_of(c));

    if (slots_weight(c, c->in[W], &g.w, err) < 0)
        return -1;
    g.bias = c->in[BIAS] ? memory_typed(c->in[BIAS]) : NULL;
    g.beta = c->in[RESIDUAL] ? 1 : 0;
    g.c = c->in[RESIDUAL] ? memory_typed(c->in[RESIDUAL]) : NULL;
    if (gemm_run(&g, err) < 0)
        return -1;
    if (c->in[DOWN] && add_low_rank(g.x, memory_typed(c->in[DOWN]), memory_typed(c->in[UP]), true, low_rank(c), g.y,
                                    (size_t[]){m, n, k, c->in[DOWN]->shape.dim[0]}, g.alpha * c->attr->fold, err) < 0)
        return -1;
    if (c->attr->act == ACT_NONE)
        return 0;
    return state_check(kernel_act(state.stream, state.type, slots_act(c->attr->act), g.y, g.y, m * n), "activate", err);
}

/* dx [m, k] = scale * dy [m, n] w [n, k]; dw [n, k] f32 = scale * dyT x */
static int linear_backward(const struct op_call *c, struct err *err)
{
    size_t n = c->in[W]->shape.dim[0], k = c->in[W]->shape.dim[1], m = state_count(c->dout[0]) / n;
    const void *dy = memory_typed(c->dout[0]);

    if (c->attr->act != ACT_NONE)
        return err_set(err, "a linear layer fused with its activation has no gradient");
    if (c->din[W] && sum_rows(dy, memory_typed(c->in[X]), c->din[W], m, scale_of(c), err) < 0)
        return -1;
    if (c->din[X]) {
        struct gemm_call g = product(dy, NULL, false, c->din[X]->data, m, k, n, scale_of(c));

        if (slots_weight(c, c->in[W], &g.w, err) < 0 || gemm_run(&g, err) < 0)
            return -1;
        if (c->in[DOWN])
            return add_low_rank(dy, memory_typed(c->in[UP]), memory_typed(c->in[DOWN]), false, low_rank(c), g.y,
                                (size_t[]){m, k, n, c->in[DOWN]->shape.dim[0]}, g.alpha * c->attr->fold, err);
    }
    return 0;
}

static size_t linear_scratch(const struct op_call *c, bool back, int threads)
{
    size_t room = back && !c->din[X] ? 0 : weight_room(c->in[W]);

    (void)threads;
    if (!c->in[DOWN])
        return room;
    return room + slots_rows(back ? c->dout[0] : c->in[X]) * c->in[DOWN]->shape.dim[0] * dtype_size(state.storage);
}

/* ---- lora: our kernel where it is faster, which is for low ranks in 16 bits; products else ---- */

enum { BASE, LX, LDOWN, LUP };

struct low_rank {
    size_t m, n, k, r, bytes; /* bytes: of [m, r] in T */
    const void *x, *down, *up;
    void *t, *dt;
};

static struct low_rank describe(const struct op_call *c)
{
    const size_t *down = c->in[LDOWN]->shape.dim;
    struct low_rank l = {.m = state_count(c->in[LX]) / down[1], .n = c->in[LUP]->shape.dim[0], .k = down[1], .r = down[0]};

    l.bytes = state_aligned(l.m * l.r * dtype_size(state.storage));
    return l;
}

static struct low_rank locate(const struct op_call *c)
{
    struct low_rank l = describe(c);

    l.x = c->in[LX]->data ? memory_typed(c->in[LX]) : NULL;
    l.down = memory_typed(c->in[LDOWN]);
    l.up = memory_typed(c->in[LUP]);
    l.t = c->scratch;
    l.dt = (char *)c->scratch + l.bytes;
    return l;
}

/* The kernel wants the factors in f32: that is what they have unless they were large and frozen. */
static bool in_one(const struct op_call *c)
{
    return state.type != KERNEL_F32 && c->in[LDOWN]->shape.dim[0] <= KERNEL_LORA_RANK && c->in[LDOWN]->dtype == DT_F32 &&
           c->in[LUP]->dtype == DT_F32;
}

static struct kernel_lora for_kernel(const struct op_call *c)
{
    struct low_rank l = describe(c);

    return (struct kernel_lora){.type = state.type, .m = l.m, .k = l.k, .n = l.n, .r = l.r, .scale = c->attr->scale,
                                .x = c->in[LX]->data, .down = c->in[LDOWN]->data, .up = c->in[LUP]->data, .scratch = c->scratch};
}

static int forward_in_one(const struct op_call *c, struct err *err)
{
    struct kernel_lora l = for_kernel(c);

    l.base = memory_typed(c->in[BASE]);
    l.y = c->out[0]->data;
    return state_check(kernel_lora_forward(state.stream, &l), "compute a LoRA", err);
}

static int backward_in_one(const struct op_call *c, struct err *err)
{
    struct kernel_lora l = for_kernel(c);

    l.dy = memory_typed(c->dout[0]);
    l.dx = slots_data(c->din[LX]);
    l.ddown = slots_data(c->din[LDOWN]);
    l.dup = slots_data(c->din[LUP]);
    return state_check(kernel_lora_backward(state.stream, &l), "compute a LoRA's gradient", err);
}

/* y = base + scale * t upT, t = x downT */
static int lora_forward(const struct op_call *c, struct err *err)
{
    struct low_rank l = locate(c);
    struct gemm_call low = product(l.x, l.down, true, l.t, l.m, l.r, l.k, 1), high;

    if (in_one(c))
        return forward_in_one(c, err);
    high = product(l.t, l.up, true, c->out[0]->data, l.m, l.n, l.r, c->attr->scale);
    high.beta = 1;
    high.c = memory_typed(c->in[BASE]);
    return gemm_run(&low, err) < 0 ? -1 : gemm_run(&high, err);
}

/* dt = scale * dy up, dx = dt down, ddown = dtT x, dup = scale * dyT t */
static int lora_backward(const struct op_call *c, struct err *err)
{
    struct low_rank l = locate(c);
    const void *dy = memory_typed(c->dout[0]);
    struct gemm_call g = product(dy, l.up, false, l.dt, l.m, l.r, l.n, c->attr->scale);

    if (in_one(c))
        return backward_in_one(c, err);
    if ((c->din[LX] || c->din[LDOWN]) && gemm_run(&g, err) < 0)
        return -1;
    g = product(l.dt, l.down, false, slots_data(c->din[LX]), l.m, l.k, l.r, 1);
    if (c->din[LX] && gemm_run(&g, err) < 0)
        return -1;
    if (c->din[LDOWN] && sum_rows(l.dt, l.x, c->din[LDOWN], l.m, 1, err) < 0)
        return -1;
    g = product(l.x, l.down, true, l.t, l.m, l.r, l.k, 1);
    if (!c->din[LUP])
        return 0;
    return gemm_run(&g, err) < 0 ? -1 : sum_rows(dy, l.t, c->din[LUP], l.m, c->attr->scale, err);
}

static size_t lora_scratch(const struct op_call *c, bool back, int threads)
{
    struct kernel_lora l = for_kernel(c);

    (void)threads;
    if (in_one(c))
        return back ? kernel_lora_scratch(&l) : 0;
    return describe(c).bytes * (back ? 2 : 1);
}

void slots_linear(struct ops *ops)
{
    ops->forward[OP_linear] = linear_forward;
    ops->backward[OP_linear] = linear_backward;
    ops->scratch[OP_linear] = linear_scratch;
    ops->forward[OP_lora] = lora_forward;
    ops->backward[OP_lora] = lora_backward;
    ops->scratch[OP_lora] = lora_scratch;
}

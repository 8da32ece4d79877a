/* conv2d: a 1x1 window without stride is a product; the others go to cuDNN where it is there and knows how, else to our kernel.
 * Bias and residual are added in one pass over the result, which stays in the cache for all but the largest pictures. */
#include "offload/cuda/cudnn.h"
#include "offload/cuda/gemm.h"
#include "offload/cuda/slots.h"

enum { X, W, BIAS, RESIDUAL };

static struct kernel_conv describe(const struct op_call *c, const struct tensor *y)
{
    const size_t *x = c->in[X]->shape.dim, *w = c->in[W]->shape.dim;

    return (struct kernel_conv){.type = state.type, .n = x[0], .h = x[1], .w = x[2], .ci = x[3], .oh = y->shape.dim[1],
                                .ow = y->shape.dim[2], .co = w[0], .kh = w[1], .kw = w[2], .stride = c->attr->stride,
                                .pad = c->attr->pad_before};
}

static bool pointwise(const struct kernel_conv *k, const struct op_attr *a)
{
    return k->kh == 1 && k->kw == 1 && k->stride == 1 && a->pad_before == 0 && a->pad_after == 0;
}

static int multiply(const struct kernel_conv *k, const void *bias, struct err *err)
{
    struct gemm_call g = {.m = k->n * k->h * k->w, .n = k->co, .k = k->ci, .ldx = k->ci, .ldw = k->ci, .ldy = k->co,
                          .w_turned = true, .alpha = 1, .beta = k->residual ? 1 : 0, .x = k->x, .w = k->weight, .bias = bias,
                          .c = k->residual, .y = k->y};

    return gemm_run(&g, err);
}

static int forward(const struct op_call *c, struct err *err)
{
    struct kernel_conv k = describe(c, c->out[0]);
    bool in_place;
    int done;

    k.x = memory_typed(c->in[X]);
    if (slots_weight(c, c->in[W], &k.weight, err) < 0)
        return -1;
    k.bias = slots_data(c->in[BIAS]);
    k.residual = c->in[RESIDUAL] ? memory_typed(c->in[RESIDUAL]) : NULL;
    k.y = c->out[0]->data;
    if (pointwise(&k, c->attr))
        return multiply(&k, c->in[BIAS] ? memory_typed(c->in[BIAS]) : NULL, err);
    in_place = k.residual == k.y; /* then the sum must be added to what is there */
    done = state.cudnn ? cudnn_convolve(&k, c->attr->pad_after, in_place ? CUDNN_ADD : CUDNN_FORWARD, err) : 0;
    if (done < 0)
        return -1;
    if (!done)
        return state_check(kernel_conv_forward(state.stream, &k), "convolve", err);
    k.residual = in_place ? NULL : k.residual;
    if (!k.bias && !k.residual)
        return 0;
    return state_check(kernel_bias_act(state.stream, state.type, KERNEL_NONE, k.y, k.bias, k.residual, k.n * k.oh * k.ow, k.co),
                       "add a bias", err);
}

static int input_gradient(struct kernel_conv *k, const struct op_attr *a, struct err *err)
{
    int done;

    if (pointwise(k, a)) {
        struct gemm_call g = {.m = k->n * k->h * k->w, .n = k->ci, .k = k->co, .ldx = k->co, .ldw = k->ci, .ldy = k->ci,
                              .alpha = 1, .x = k->dy, .w = k->weight, .y = k->dx};

        return gemm_run(&g, err);
    }
    done = state.cudnn ? cudnn_convolve(k, a->pad_after, CUDNN_BACKWARD, err) : 0;
    if (done < 0)
        return -1;
    return done ? 0 : state_check(kernel_conv_backward_data(state.stream, k), "convolve", err);
}

static int backward(const struct op_call *c, struct err *err)
{
    struct kernel_conv k = describe(c, c->dout[0]);

    k.dy = memory_typed(c->dout[0]);
    if (c->din[W]) {
        k.x = memory_typed(c->in[X]);
        k.dweight = c->din[W]->data;
        k.scratch = c->scratch;
        if (state_check(kernel_conv_backward_weight(state.stream, &k), "compute a convolution's gradient", err) < 0)
            return -1;
    }
    if (!c->din[X])
        return 0;
    if (slots_weight(c, c->in[W], &k.weight, err) < 0)
        return -1;
    k.dx = c->din[X]->data;
    return input_gradient(&k, c->attr, err);
}

static size_t scratch(const struct op_call *c, bool back, int threads)
{
    size_t room = back && !c->din[X] ? 0 : weight_room(c->in[W]), sums;
    struct kernel_conv k;

    (void)threads;
    if (!back || !c->din[W])
        return room;
    k = describe(c, c->dout[0]); /* a weight that is trained is not packed: these never add up */
    sums = kernel_conv_scratch(&k);
    return sums > room ? sums : room;
}

void slots_conv(struct ops *ops)
{
    ops->forward[OP_conv2d] = forward;
    ops->backward[OP_conv2d] = backward;
    ops->scratch[OP_conv2d] = scratch;
}

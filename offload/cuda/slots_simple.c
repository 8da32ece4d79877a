/* Elementwise operations, copies and the loss. */
#include "offload/cuda/slots.h"

static int done(int code, struct err *err)
{
    return state_check(code, "compute", err);
}

static size_t none(const struct op_call *c, bool back, int threads)
{
    (void)c, (void)back, (void)threads;
    return 0;
}

static int act_forward(const struct op_call *c, enum kernel_act act, struct err *err)
{
    return done(kernel_act(state.stream, state.type, act, memory_typed(c->in[0]), c->out[0]->data, state_count(c->out[0])), err);
}

static int act_backward(const struct op_call *c, enum kernel_act act, struct err *err)
{
    return done(kernel_act_backward(state.stream, state.type, act, memory_typed(c->in[0]), memory_typed(c->dout[0]),
                                    c->din[0]->data, state_count(c->din[0])), err);
}

#define ACTIVATION(name, act)                                                    \
    static int name##_forward(const struct op_call *c, struct err *err)          \
    {                                                                            \
        return act_forward(c, act, err);                                         \
    }                                                                            \
    static int name##_backward(const struct op_call *c, struct err *err)         \
    {                                                                            \
        return act_backward(c, act, err);                                        \
    }

ACTIVATION(gelu, KERNEL_GELU)
ACTIVATION(quick_gelu, KERNEL_QUICK_GELU)
ACTIVATION(silu, KERNEL_SILU)

static int geglu_forward(const struct op_call *c, struct err *err)
{
    return done(kernel_geglu(state.stream, state.type, memory_typed(c->in[0]), c->out[0]->data, slots_rows(c->out[0]),
                             slots_last(c->out[0])), err);
}

static int geglu_backward(const struct op_call *c, struct err *err)
{
    return done(kernel_geglu_backward(state.stream, state.type, memory_typed(c->in[0]), memory_typed(c->dout[0]),
                                      c->din[0]->data, slots_rows(c->dout[0]), slots_last(c->dout[0])), err);
}

static int embedding_forward(const struct op_call *c, struct err *err)
{
    const size_t *ids = c->in[0]->shape.dim, *table = c->in[1]->shape.dim;

    return done(kernel_embedding(state.stream, state.type, c->in[0]->data, memory_typed(c->in[1]),
                                 c->in[2] ? memory_typed(c->in[2]) : NULL, c->out[0]->data, ids[0], ids[1], table[0], table[1]),
                err);
}

static int timestep_forward(const struct op_call *c, struct err *err)
{
    return done(kernel_timestep(state.stream, state.type, c->in[0]->data, c->out[0]->data, c->in[0]->shape.dim[0],
                                c->attr->width), err);
}

static int upsample_forward(const struct op_call *c, struct err *err)
{
    const size_t *x = c->in[0]->shape.dim;

    return done(kernel_upsample(state.stream, state.type, memory_typed(c->in[0]), c->out[0]->data, x[0], x[1], x[2], x[3],
                                (int)c->attr->crop_h, (int)c->attr->crop_w), err);
}

static int upsample_backward(const struct op_call *c, struct err *err)
{
    const size_t *x = c->din[0]->shape.dim;

    return done(kernel_upsample_backward(state.stream, state.type, memory_typed(c->dout[0]), c->din[0]->data, x[0], x[1], x[2],
                                         x[3], (int)c->attr->crop_h, (int)c->attr->crop_w), err);
}

/* Columns first .. of a wide tensor, and a narrow one that is those columns. */
static void *column(const struct tensor *wide, size_t first)
{
    return (char *)wide->data + first * dtype_size(wide->dtype);
}

static int concat_forward(const struct op_call *c, struct err *err)
{
    size_t a = slots_last(c->in[0]), b = slots_last(c->in[1]), rows = slots_rows(c->out[0]);

    if (done(kernel_copy2d(state.stream, state.type, c->out[0]->data, a + b, memory_typed(c->in[0]), a, rows, a), err) < 0)
        return -1;
    return done(kernel_copy2d(state.stream, state.type, column(c->out[0], a), a + b, memory_typed(c->in[1]), b, rows, b), err);
}

static int concat_backward(const struct op_call *c, struct err *err)
{
    size_t width[2] = {slots_last(c->in[0]), slots_last(c->in[1])}, all = width[0] + width[1], rows = slots_rows(c->dout[0]);

    for (int i = 0; i < 2; i++)
        if (c->din[i] && done(kernel_copy2d(state.stream, state.type, c->din[i]->data, width[i],
                                            column(c->dout[0], i ? width[0] : 0), all, rows, width[i]), err) < 0)
            return -1;
    return 0;
}

static int split_forward(const struct op_call *c, struct err *err)
{
    size_t count = c->attr->count;

    return done(kernel_copy2d(state.stream, state.type, c->out[0]->data, count, column(c->in[0], c->attr->first),
                              slots_last(c->in[0]), slots_rows(c->out[0]), count), err);
}

static int split_backward(const struct op_call *c, struct err *err)
{
    return done(kernel_pad2d(state.stream, state.type, c->din[0]->data, slots_last(c->din[0]), memory_typed(c->dout[0]),
                             c->attr->first, c->attr->count, slots_rows(c->dout[0])), err);
}

/* A sum of two gradients of a param, or of losses, is f32 whatever the activations are. */
static int add_forward(const struct op_call *c, struct err *err)
{
    size_t n = state_count(c->in[0]), samples = c->in[0]->shape.dim[0], width;

    if (c->in[0]->dtype == c->in[1]->dtype && shape_equal(&c->in[0]->shape, &c->in[1]->shape))
        return done(kernel_add(state.stream, slots_type(c->out[0]), c->in[0]->data, c->in[1]->data, c->out[0]->data, n), err);
    if (shape_equal(&c->in[0]->shape, &c->in[1]->shape))
        return done(kernel_add(state.stream, state.type, memory_typed(c->in[0]), memory_typed(c->in[1]), c->out[0]->data, n), err);
    width = slots_last(c->in[0]);
    return done(kernel_add_rows(state.stream, state.type, memory_typed(c->in[0]), memory_typed(c->in[1]), c->out[0]->data, samples,
                                slots_rows(c->in[0]) / samples, width), err);
}

static int add_backward(const struct op_call *c, struct err *err)
{
    size_t samples = c->dout[0]->shape.dim[0];

    return done(kernel_add_rows_backward(state.stream, state.type, memory_typed(c->dout[0]), c->din[1]->data, samples,
                                         slots_rows(c->dout[0]) / samples, slots_last(c->dout[0]), c->scratch), err);
}

static size_t add_scratch(const struct op_call *c, bool back, int threads)
{
    size_t samples;

    (void)threads;
    if (!back)
        return 0;
    samples = c->in[0]->shape.dim[0];
    return kernel_add_rows_scratch(samples, slots_rows(c->in[0]) / samples, slots_last(c->in[0]));
}

static int scale_forward(const struct op_call *c, struct err *err)
{
    return done(kernel_scale(state.stream, slots_type(c->out[0]), c->attr->scale, c->in[0]->data, c->out[0]->data,
                             state_count(c->out[0])), err);
}

static int scale_backward(const struct op_call *c, struct err *err)
{
    return done(kernel_scale(state.stream, slots_type(c->din[0]), c->attr->scale, c->dout[0]->data, c->din[0]->data,
                             state_count(c->din[0])), err);
}

static int mse_forward(const struct op_call *c, struct err *err)
{
    size_t n = c->in[0]->shape.dim[0];

    return done(kernel_mse(state.stream, slots_type(c->in[0]), c->in[0]->data, slots_type(c->in[1]), c->in[1]->data,
                           slots_data(c->in[2]), c->out[0]->data, n, state_count(c->in[0]) / n, c->scratch), err);
}

static int mse_backward(const struct op_call *c, struct err *err)
{
    size_t n = c->in[0]->shape.dim[0];

    return done(kernel_mse_backward(state.stream, slots_type(c->in[0]), c->in[0]->data, slots_type(c->in[1]), c->in[1]->data,
                                    slots_data(c->in[2]), c->dout[0]->data, c->din[0]->data, n, state_count(c->in[0]) / n), err);
}

static size_t mse_scratch(const struct op_call *c, bool back, int threads)
{
    size_t n = c->in[0]->shape.dim[0];

    (void)threads;
    return back ? 0 : kernel_mse_scratch(n, n ? state_count(c->in[0]) / n : 0);
}

/* m: one vector a sample, or of x's shape */
static int multiply(const struct op_call *c, const struct tensor *x, void *y, struct err *err)
{
    const struct tensor *m = c->in[1];

    return done(kernel_mul(state.stream, state.type, memory_typed(x), memory_typed(m), y, slots_rows(m),
                           state_count(x) / state_count(m), slots_last(m)), err);
}

static int mul_forward(const struct op_call *c, struct err *err)
{
    return multiply(c, c->in[0], c->out[0]->data, err);
}

static int mul_backward(const struct op_call *c, struct err *err)
{
    return multiply(c, c->dout[0], c->din[0]->data, err);
}

static int gather_forward(const struct op_call *c, struct err *err)
{
    return done(kernel_gather(state.stream, state.type, memory_typed(c->in[0]), c->in[1]->data, c->out[0]->data,
                              state_count(c->in[1]), slots_rows(c->in[0]), slots_last(c->in[0])), err);
}

static int gather_backward(const struct op_call *c, struct err *err)
{
    return done(kernel_gather_backward(state.stream, state.type, memory_typed(c->dout[0]), c->in[1]->data, c->din[0]->data,
                                       state_count(c->in[1]), slots_rows(c->din[0]), slots_last(c->din[0])), err);
}

static int huber_forward(const struct op_call *c, struct err *err)
{
    size_t n = c->in[0]->shape.dim[0];

    return done(kernel_huber(state.stream, slots_type(c->in[0]), c->in[0]->data, slots_type(c->in[1]), c->in[1]->data,
                             c->in[2]->data, slots_data(c->in[3]), c->out[0]->data, n, state_count(c->in[0]) / n, c->scratch), err);
}

static int huber_backward(const struct op_call *c, struct err *err)
{
    size_t n = c->in[0]->shape.dim[0];

    return done(kernel_huber_backward(state.stream, slots_type(c->in[0]), c->in[0]->data, slots_type(c->in[1]), c->in[1]->data,
                                      c->in[2]->data, slots_data(c->in[3]), c->dout[0]->data, c->din[0]->data, n,
                                      state_count(c->in[0]) / n), err);
}

void slots_simple(struct ops *ops)
{
#define TAKE(name)                                   \
    ops->forward[OP_##name] = name##_forward;        \
    ops->backward[OP_##name] = name##_backward;      \
    ops->scratch[OP_##name] = none;
    TAKE(gelu)
    TAKE(quick_gelu)
    TAKE(silu)
    TAKE(geglu)
    TAKE(upsample)
    TAKE(concat)
    TAKE(split)
    TAKE(add)
    TAKE(scale)
    TAKE(mse)
    TAKE(mul)
    TAKE(gather)
    TAKE(huber)
#undef TAKE
    ops->forward[OP_embedding] = embedding_forward;
    ops->forward[OP_timestep] = timestep_forward;
    ops->scratch[OP_embedding] = ops->scratch[OP_timestep] = none;
    ops->scratch[OP_add] = add_scratch;
    ops->scratch[OP_mse] = ops->scratch[OP_huber] = mse_scratch;
}

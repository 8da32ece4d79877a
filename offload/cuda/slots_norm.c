/* attention and the norms. */
#include "offload/cuda/slots.h"

enum { Q, K, V };
enum { X, GAMMA, BETA };

static struct kernel_attention describe_attention(const struct op_call *c)
{
    const struct tensor *q = c->in[Q], *k = c->in[K];
    size_t width = slots_last(q);
    struct kernel_attention a = {.type = state.type, .n = q->shape.dim[0], .heads = c->attr->heads, .causal = c->attr->causal,
                                 .ldq = width, .ldk = width, .ldv = width, .ldy = width};

    a.d = width / a.heads;
    a.tq = slots_rows(q) / a.n;
    a.tk = slots_rows(k) / a.n;
    return a;
}

static int attention_forward(const struct op_call *c, struct err *err)
{
    struct kernel_attention a = describe_attention(c);

    a.q = memory_typed(c->in[Q]);
    a.k = memory_typed(c->in[K]);
    a.v = memory_typed(c->in[V]);
    a.y = c->out[0]->data;
    a.lse = c->out[1]->data;
    return state_check(kernel_attention_forward(state.stream, &a), "attend", err);
}

static int attention_backward(const struct op_call *c, struct err *err)
{
    struct kernel_attention a = describe_attention(c);

    a.q = slots_data(c->in[Q]);
    a.k = slots_data(c->in[K]);
    a.v = slots_data(c->in[V]);
    a.y = slots_data(c->out[0]);
    a.lse = slots_data(c->out[1]);
    a.dy = memory_typed(c->dout[0]);
    a.dq = slots_data(c->din[Q]);
    a.dk = slots_data(c->din[K]);
    a.dv = slots_data(c->din[V]);
    a.scratch = c->scratch;
    return state_check(kernel_attention_backward(state.stream, &a), "compute attention's gradient", err);
}

static size_t attention_scratch(const struct op_call *c, bool back, int threads)
{
    struct kernel_attention a = describe_attention(c);

    (void)threads;
    return back ? kernel_attention_scratch(&a) : 0;
}

/* n samples of rows x c */
static int group_norm_forward(const struct op_call *c, struct err *err)
{
    size_t n = c->in[X]->shape.dim[0], rows = slots_rows(c->in[X]) / n, width = slots_last(c->in[X]);

    return state_check(kernel_group_norm(state.stream, state.type, slots_act(c->attr->act), memory_typed(c->in[X]),
                                         c->in[GAMMA]->data, c->in[BETA]->data, c->out[0]->data, c->out[1]->data, n, rows, width,
                                         c->attr->groups, c->attr->eps, c->scratch), "normalise", err);
}

static int group_norm_backward(const struct op_call *c, struct err *err)
{
    size_t n = c->in[X]->shape.dim[0], rows = slots_rows(c->in[X]) / n, width = slots_last(c->in[X]);

    return state_check(kernel_group_norm_backward(state.stream, state.type, slots_act(c->attr->act), memory_typed(c->in[X]),
                                                  c->in[GAMMA]->data, c->in[BETA]->data, c->out[1]->data,
                                                  memory_typed(c->dout[0]), c->din[X]->data, n, rows, width, c->attr->groups,
                                                  c->scratch), "compute a norm's gradient", err);
}

static size_t group_norm_scratch(const struct op_call *c, bool back, int threads)
{
    size_t n = c->in[X]->shape.dim[0];

    (void)threads, (void)back;
    return kernel_group_norm_scratch(n, slots_rows(c->in[X]) / n, slots_last(c->in[X]), c->attr->groups);
}

static int layer_norm_forward(const struct op_call *c, struct err *err)
{
    return state_check(kernel_layer_norm(state.stream, state.type, memory_typed(c->in[X]), c->in[GAMMA]->data, c->in[BETA]->data,
                                         c->out[0]->data, c->out[1]->data, slots_rows(c->in[X]), slots_last(c->in[X]),
                                         c->attr->eps), "normalise", err);
}

static int layer_norm_backward(const struct op_call *c, struct err *err)
{
    return state_check(kernel_layer_norm_backward(state.stream, state.type, memory_typed(c->in[X]), c->in[GAMMA]->data,
                                                  c->out[1]->data, memory_typed(c->dout[0]), c->din[X]->data,
                                                  slots_rows(c->in[X]), slots_last(c->in[X])), "compute a norm's gradient", err);
}

static size_t none(const struct op_call *c, bool back, int threads)
{
    (void)c, (void)back, (void)threads;
    return 0;
}

void slots_attention(struct ops *ops)
{
    ops->forward[OP_attention] = attention_forward;
    ops->backward[OP_attention] = attention_backward;
    ops->scratch[OP_attention] = attention_scratch;
    ops->forward[OP_group_norm] = group_norm_forward;
    ops->backward[OP_group_norm] = group_norm_backward;
    ops->scratch[OP_group_norm] = group_norm_scratch;
    ops->forward[OP_layer_norm] = layer_norm_forward;
    ops->backward[OP_layer_norm] = layer_norm_backward;
    ops->scratch[OP_layer_norm] = none;
}

/* Stochastic gradient descent with momentum, plain or Nesterov's; arithmetic of torch.optim.SGD. */
#include <math.h>

#include "ref/base/simd.h"
#include "ref/optim/optim_kind.h"

struct sgd_numbers {
    float scale, decay, momentum, fresh, rate;
    bool first, has_momentum, nesterov;
};

/* p, b (momentum) [n], updated from gradients g [n]. The first gradient becomes the momentum as it is. */
SIMD_CLONES
static void update(float *p, const float *g, float *b, size_t n, const struct sgd_numbers *a)
{
    for (size_t i = 0; i < n; i++) {
        float x = g[i] * a->scale + a->decay * p[i];

        if (a->has_momentum) {
            b[i] = a->first ? x : b[i] * a->momentum + x * a->fresh;
            x = a->nesterov ? x + b[i] * a->momentum : b[i];
        }
        p[i] -= a->rate * x;
    }
}

static void span(struct optim *o, const struct optim_call *c, const struct optim_span *s, const void *numbers)
{
    struct sgd_numbers a = *(const struct sgd_numbers *)numbers;
    const struct optim_tensor *t = &o->tensors[s->tensor];

    a.rate = (float)c->lr[t->group];
    update(t->param + s->at, c->grads[s->tensor] + s->at, a.has_momentum ? (float *)o->array[0] + o->place[s->tensor] + s->at : NULL,
           s->n, &a);
    optim_round(o, t->param + s->at, s->n);
}

static int step(struct optim *o, const struct optim_call *c, struct err *err)
{
    const struct sgd_numbers a = {
        .scale = c->scale,
        .decay = (float)o->v.weight_decay,
        .momentum = (float)o->v.momentum,
        .fresh = (float)(1 - o->v.dampening),
        .first = *o->steps == 1,
        .has_momentum = o->v.momentum != 0,
        .nesterov = o->v.nesterov,
    };

    (void)err;
    optim_spans(o, c, span, &a);
    return 0;
}

static int check(const struct optim_values *v, struct err *err)
{
    if (v->nesterov && (v->momentum == 0 || v->dampening != 0))
        return err_usage(err, "SGD with 'nesterov=True' needs a momentum and no dampening; give 'momentum=0.9'");
    return 0;
}

static const struct optim_arg args[] = {
    OPTIM_ARG(momentum, ARG_NUMBER, .def = "0", .max = HUGE_VAL),
    OPTIM_ARG(dampening, ARG_NUMBER, .def = "0", .min = -HUGE_VAL, .max = HUGE_VAL),
    OPTIM_ARG_DECAY("0"),
    OPTIM_ARG_FLAG(nesterov, "False"),
    {0},
};

static const struct optim_arg args_nesterov[] = {
    OPTIM_ARG(momentum, ARG_NUMBER, .def = "0.9", .max = HUGE_VAL),
    OPTIM_ARG(dampening, ARG_NUMBER, .def = "0", .min = -HUGE_VAL, .max = HUGE_VAL),
    OPTIM_ARG_DECAY("0"),
    OPTIM_ARG_FLAG(nesterov, "True"),
    {0},
};

static const struct optim_array arrays[] = {
    {"momentum_buffer", ARRAY_EACH, offsetof(struct optim_values, momentum)},
    {0},
};

const struct optim_kind optim_sgd = {
    .name = "SGD",
    .help = "gradient descent; wants a far larger rate than AdamW",
    .args = args,
    .arrays = arrays,
    .check = check,
    .step = step,
};

const struct optim_kind optim_sgd_nesterov = {
    .name = "SGDNesterov",
    .help = "SGD that looks ahead",
    .args = args_nesterov,
    .arrays = arrays,
    .check = check,
    .step = step,
};

/* Lion: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023; arithmetic of lion-pytorch and bitsandbytes. */
#include <math.h>

#include "ref/base/simd.h"
#include "ref/optim/optim_kind.h"

struct lion_numbers {
    float scale, keep, beta1, new1, beta2, new2, rate;
};

/* p, m (mean) [n], updated from gradients g [n]: a step of equal size for all, in the direction of a blend of both. */
SIMD_CLONES
static void update(float *p, const float *g, float *m, size_t n, const struct lion_numbers *a)
{
    for (size_t i = 0; i < n; i++) {
        float x = g[i] * a->scale, blend = m[i] * a->beta1 + x * a->new1;

        p[i] = p[i] * a->keep - (blend > 0 ? a->rate : blend < 0 ? -a->rate : 0);
        m[i] = m[i] * a->beta2 + x * a->new2;
    }
}

enum { MEAN, MEAN_CODES, MEAN_SCALES };

static void update_8bit(struct optim *o, const struct optim_span *s, float *p, const float *g, const struct lion_numbers *a)
{
    size_t at = o->place[s->tensor] + s->at;
    uint8_t *m8 = (uint8_t *)o->array[MEAN_CODES] + at;
    float *ms = (float *)o->array[MEAN_SCALES] + at / OPTIM_BLOCK, m[OPTIM_BLOCK];

    for (size_t i = 0; i < s->n; i += OPTIM_BLOCK) {
        size_t n = s->n - i < OPTIM_BLOCK ? s->n - i : OPTIM_BLOCK;

        quant8_read(&o->map[0], m8 + i, ms[i / OPTIM_BLOCK], m, n);
        update(p + i, g + i, m, n, a);
        ms[i / OPTIM_BLOCK] = quant8_write(&o->map[0], m, m8 + i, n);
    }
}

static void span(struct optim *o, const struct optim_call *c, const struct optim_span *s, const void *numbers)
{
    const struct optim_tensor *t = &o->tensors[s->tensor];
    double lr = c->lr[t->group];
    float *p = t->param + s->at;
    const float *g = c->grads[s->tensor] + s->at;
    const struct lion_numbers a = {
        .scale = c->scale,
        .keep = (float)(1 - lr * o->v.weight_decay),
        .beta1 = (float)o->v.beta[0],
        .new1 = (float)(1 - o->v.beta[0]),
        .beta2 = (float)o->v.beta[1],
        .new2 = (float)(1 - o->v.beta[1]),
        .rate = (float)lr,
    };

    (void)numbers;
    if (optim_is_8bit(o, s->tensor))
        update_8bit(o, s, p, g, &a);
    else
        update(p, g, (float *)o->array[MEAN] + o->place[s->tensor] + s->at, s->n, &a);
    optim_round(o, p, s->n);
}

static int step(struct optim *o, const struct optim_call *c, struct err *err)
{
    (void)err;
    optim_spans(o, c, span, NULL);
    return 0;
}

static const struct optim_arg args[] = {
    OPTIM_ARG_DECAY("0"),
    OPTIM_ARG_BETAS("0.9,0.99"),
    {0},
};

static const struct optim_array arrays[] = {
    [MEAN] = {"exp_avg", ARRAY_EACH},
    {0},
};

static const struct optim_array arrays_8bit[] = {
    [MEAN] = {"exp_avg", ARRAY_EACH},
    [MEAN_CODES] = {"exp_avg_8bit", ARRAY_CODES},
    [MEAN_SCALES] = {"exp_avg_scale", ARRAY_SCALES},
    {0},
};

static const char *const also_8bit[] = {"PagedLion8bit", NULL};

const struct optim_kind optim_lion = {
    .name = "Lion",
    .help = "steps of equal size; wants a third to a tenth of AdamW's rate",
    .args = args,
    .arrays = arrays,
    .step = step,
};

const struct optim_kind optim_lion8bit = {
    .name = "Lion8bit",
    .also = also_8bit,
    .help = "Lion with a quarter of the state's memory",
    .args = args,
    .arrays = arrays_8bit,
    .narrow = true,
    .step = step,
};

/* AdamW: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019; arithmetic of torch.optim.AdamW. */
#include <math.h>

#include "ref/base/simd.h"
#include "ref/optim/optim_kind.h"

/* A step's scalars for tensors of one group. */
struct adamw_numbers {
    float scale, keep, beta1, new1, beta2, new2, correction2, eps, rate;
};

/* p, m (mean), v (mean of squares) [n], updated from gradients g [n]. */
SIMD_CLONES
static void update(float *p, const float *g, float *m, float *v, size_t n, const struct adamw_numbers *a)
{
    for (size_t i = 0; i < n; i++) {
        float x = g[i] * a->scale;

        m[i] = m[i] * a->beta1 + x * a->new1;
        v[i] = v[i] * a->beta2 + x * x * a->new2;
        p[i] = p[i] * a->keep - a->rate * (m[i] / (sqrtf(v[i]) / a->correction2 + a->eps));
    }
}

enum { MEAN, SQUARE, MEAN_CODES, SQUARE_CODES, MEAN_SCALES, SQUARE_SCALES };

static void update_8bit(struct optim *o, const struct optim_span *s, float *p, const float *g, const struct adamw_numbers *a)
{
    size_t at = o->place[s->tensor] + s->at;
    uint8_t *m8 = (uint8_t *)o->array[MEAN_CODES] + at, *v8 = (uint8_t *)o->array[SQUARE_CODES] + at;
    float *ms = (float *)o->array[MEAN_SCALES] + at / OPTIM_BLOCK, *vs = (float *)o->array[SQUARE_SCALES] + at / OPTIM_BLOCK;
    float m[OPTIM_BLOCK], v[OPTIM_BLOCK];

    for (size_t i = 0; i < s->n; i += OPTIM_BLOCK) {
        size_t n = s->n - i < OPTIM_BLOCK ? s->n - i : OPTIM_BLOCK;

        quant8_read(&o->map[0], m8 + i, ms[i / OPTIM_BLOCK], m, n);
        quant8_read(&o->map[1], v8 + i, vs[i / OPTIM_BLOCK], v, n);
        update(p + i, g + i, m, v, n, a);
        ms[i / OPTIM_BLOCK] = quant8_write(&o->map[0], m, m8 + i, n);
        vs[i / OPTIM_BLOCK] = quant8_write(&o->map[1], v, v8 + i, n);
    }
}

static struct ops_adamw_rate rate_of(const struct optim *o, double lr)
{
    return (struct ops_adamw_rate){(float)(1 - lr * o->v.weight_decay), (float)(lr / (1 - pow(o->v.beta[0], (double)*o->steps)))};
}

static struct adamw_numbers numbers_of(const struct optim *o, const struct optim_call *c)
{
    return (struct adamw_numbers){
        .scale = c->scale,
        .beta1 = (float)o->v.beta[0],
        .new1 = (float)(1 - o->v.beta[0]),
        .beta2 = (float)o->v.beta[1],
        .new2 = (float)(1 - o->v.beta[1]),
        .correction2 = (float)sqrt(1 - pow(o->v.beta[1], (double)*o->steps)),
        .eps = (float)o->v.eps,
    };
}

static void span(struct optim *o, const struct optim_call *c, const struct optim_span *s, const void *numbers)
{
    struct adamw_numbers a = *(const struct adamw_numbers *)numbers;
    const struct optim_tensor *t = &o->tensors[s->tensor];
    struct ops_adamw_rate rate = rate_of(o, c->lr[t->group]);
    size_t at = o->place[s->tensor] + s->at;
    float *p = t->param + s->at;
    const float *g = c->grads[s->tensor] + s->at;

    a.keep = rate.keep;
    a.rate = rate.rate;
    if (optim_is_8bit(o, s->tensor))
        update_8bit(o, s, p, g, &a);
    else
        update(p, g, (float *)o->array[MEAN] + at, (float *)o->array[SQUARE] + at, s->n, &a);
    optim_round(o, p, s->n);
}

static int step(struct optim *o, const struct optim_call *c, struct err *err)
{
    const struct adamw_numbers a = numbers_of(o, c);

    (void)err;
    optim_spans(o, c, span, &a);
    return 0;
}

static void device_step(const struct optim *o, const struct optim_call *c, void *const *array, struct ops_adamw *wide,
                        struct ops_adamw *narrow, struct ops_adamw_rate *rate)
{
    const struct adamw_numbers a = numbers_of(o, c);

    for (size_t g = 0; g < o->options.groups; g++)
        rate[g] = rate_of(o, c->lr[g]);
    *wide = *narrow = (struct ops_adamw){.scale = a.scale, .beta1 = a.beta1, .new1 = a.new1, .beta2 = a.beta2, .new2 = a.new2,
                                         .root2 = a.correction2, .eps = a.eps};
    wide->mean = array[MEAN];
    wide->square = array[SQUARE];
    narrow->mean8 = array[MEAN_CODES];
    narrow->square8 = array[SQUARE_CODES];
    narrow->mean_scale = array[MEAN_SCALES];
    narrow->square_scale = array[SQUARE_SCALES];
}

static const struct optim_arg args[] = {
    OPTIM_ARG_DECAY("0.01"),
    OPTIM_ARG_BETAS("0.9,0.999"),
    OPTIM_ARG_EPS("1e-8"),
    {0},
};

static const struct optim_array arrays[] = {
    [MEAN] = {"exp_avg", ARRAY_EACH},
    [SQUARE] = {"exp_avg_sq", ARRAY_EACH},
    {0},
};

static const struct optim_array arrays_8bit[] = {
    [MEAN] = {"exp_avg", ARRAY_EACH},
    [SQUARE] = {"exp_avg_sq", ARRAY_EACH},
    [MEAN_CODES] = {"exp_avg_8bit", ARRAY_CODES},
    [SQUARE_CODES] = {"exp_avg_sq_8bit", ARRAY_CODES},
    [MEAN_SCALES] = {"exp_avg_scale", ARRAY_SCALES},
    [SQUARE_SCALES] = {"exp_avg_sq_scale", ARRAY_SCALES},
    {0},
};

static const char *const also[] = {"PagedAdamW", "PagedAdamW32bit", NULL};
static const char *const also_8bit[] = {"PagedAdamW8bit", NULL};

const struct optim_kind optim_adamw = {
    .name = "AdamW",
    .also = also,
    .help = "the usual choice",
    .args = args,
    .arrays = arrays,
    .step = step,
    .device_step = device_step,
};

const struct optim_kind optim_adamw8bit = {
    .name = "AdamW8bit",
    .also = also_8bit,
    .help = "AdamW with a quarter of the state's memory",
    .args = args,
    .arrays = arrays_8bit,
    .narrow = true,
    .step = step,
    .device_step = device_step,
};

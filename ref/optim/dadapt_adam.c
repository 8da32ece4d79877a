/* DAdaptAdam: Defazio and Mishchenko, Learning-Rate-Free Learning by D-Adaptation, 2023; arithmetic of dadaptation.DAdaptAdam. */
#include <math.h>

#include "ref/optim/optim_kind.h"

enum { MEAN, SQUARE, WEIGHTED };
enum { D, NUMERATOR, STEPS }; /* of o->numbers */

struct dadapt_numbers {
    float scale, decay, beta1, new1, beta2, new2, beta3, new3, keep, eps;
};

/* First pass: the running means of g [n], and the sums <g, s / root of mean square> and |s|_1. */
static void gather(struct optim *o, const struct optim_call *c, const struct optim_span *s, const void *numbers)
{
    const struct dadapt_numbers *a = numbers;
    size_t at = o->place[s->tensor] + s->at, index = (size_t)(s - o->spans);
    const float *g = c->grads[s->tensor] + s->at, *p = o->tensors[s->tensor].param + s->at;
    float *m = (float *)o->array[MEAN] + at, *v = (float *)o->array[SQUARE] + at, *w = (float *)o->array[WEIGHTED] + at;
    double along = 0, length = 0;

    o->sums[index] = o->sums[o->span_count + index] = 0;
    if (c->lr[o->tensors[s->tensor].group] == 0)
        return;
    for (size_t i = 0; i < s->n; i++) {
        float x = g[i] * a->scale + a->decay * p[i];

        along += (double)x * (double)(w[i] / (sqrtf(v[i]) + a->eps));
        m[i] = m[i] * a->beta1 + x * a->new1;
        v[i] = v[i] * a->beta2 + x * x * a->new2;
        w[i] = w[i] * a->beta3 + x * a->new3;
        length += fabs((double)w[i]);
    }
    o->sums[index] = along;
    o->sums[o->span_count + index] = length;
}

/* Second pass: the step, whose size is in the running mean already. */
static void move(struct optim *o, const struct optim_call *c, const struct optim_span *s, const void *numbers)
{
    const struct dadapt_numbers *a = numbers;
    size_t at = o->place[s->tensor] + s->at;
    const float *m = (float *)o->array[MEAN] + at, *v = (float *)o->array[SQUARE] + at;
    float *p = o->tensors[s->tensor].param + s->at;

    if (c->lr[o->tensors[s->tensor].group] == 0)
        return;
    for (size_t i = 0; i < s->n; i++)
        p[i] = p[i] * a->keep - m[i] / (sqrtf(v[i]) + a->eps);
    optim_round(o, p, s->n);
}

static int step(struct optim *o, const struct optim_call *c, struct err *err)
{
    double lr, d = o->numbers[D], k = o->numbers[STEPS] + 1, length, rate, numerator, beta1 = o->v.beta[0], beta2 = o->v.beta[1],
               beta3 = sqrt(beta2);
    struct dadapt_numbers a;

    if (optim_one_rate(o, c->lr, &lr, err))
        return -1;
    rate = d * lr * (o->v.use_bias_correction ? sqrt(1 - pow(beta2, k)) / (1 - pow(beta1, k)) : 1);
    a = (struct dadapt_numbers){
        .scale = c->scale,
        .decay = o->v.decouple ? 0 : (float)o->v.weight_decay,
        .beta1 = (float)beta1,
        .new1 = (float)(rate * (1 - beta1)),
        .beta2 = (float)beta2,
        .new2 = (float)(1 - beta2),
        .beta3 = (float)beta3,
        .new3 = (float)(rate * (1 - beta3)),
        .keep = o->v.decouple ? (float)(1 - o->v.weight_decay * rate) : 1,
        .eps = (float)o->v.eps,
    };
    optim_spans(o, c, gather, &a);
    length = optim_sum(o, 1);
    if (length == 0)
        return 0;
    numerator = beta3 * o->numbers[NUMERATOR] + (1 - beta3) * rate * optim_sum(o, 0);
    if (lr > 0)
        o->numbers[D] = fmax(d, fmin(numerator / ((1 - beta3) * length), d * o->v.growth_rate));
    o->numbers[NUMERATOR] = numerator;
    optim_spans(o, c, move, &a);
    o->numbers[STEPS] = k; /* those that moved something */
    return 0;
}

static const struct optim_arg args[] = {
    OPTIM_ARG_DECAY("0"),
    OPTIM_ARG_BETAS("0.9,0.999"),
    OPTIM_ARG(eps, ARG_NUMBER, .def = "1e-8", .max = 1, .above_min = true),
    OPTIM_ARG_FLAG(decouple, "False"),
    OPTIM_ARG_FLAG(use_bias_correction, "False"),
    OPTIM_ARG(d0, ARG_NUMBER, .def = "1e-6", .max = HUGE_VAL, .above_min = true),
    OPTIM_ARG(growth_rate, ARG_NUMBER, .def = "inf", .min = 1, .max = HUGE_VAL),
    {0},
};

static const struct optim_array arrays[] = {
    [MEAN] = {"exp_avg", ARRAY_EACH},
    [SQUARE] = {"exp_avg_sq", ARRAY_EACH},
    [WEIGHTED] = {"s", ARRAY_EACH},
    {0},
};

const struct optim_kind optim_dadapt_adam = {
    .name = "DAdaptAdam",
    .help = "finds the rate itself: give --learning_rate 1",
    .args = args,
    .arrays = arrays,
    .adapts = true,
    .step = step,
};

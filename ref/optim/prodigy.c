/* Prodigy: Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, 2023; arithmetic of prodigyopt. Adam
 * whose step size d is a lower bound of the distance from the start to the solution, learned on the way. */
#include <math.h>

#include "ref/optim/optim_kind.h"

enum { MEAN, SQUARE, WEIGHTED, START };
enum { D, D_MAX, NUMERATOR, STEPS }; /* of o->numbers */

struct prodigy_numbers {
    float scale, decay, beta1, new1, beta2, new2, beta3, new3; /* first pass */
    float keep, eps, rate;                                    /* second */
    bool plain;                                               /* beta1 = 0: the gradient itself is the direction */
};

/* First pass: the running means of g [n], and the sums that d is estimated from: <g, start - p> and |weighted sum|_1. */
static void gather(struct optim *o, const struct optim_call *c, const struct optim_span *s, const void *numbers)
{
    const struct prodigy_numbers *a = numbers;
    size_t at = o->place[s->tensor] + s->at, index = (size_t)(s - o->spans);
    const float *g = c->grads[s->tensor] + s->at, *p = o->tensors[s->tensor].param + s->at, *start = (float *)o->array[START] + at;
    float *m = (float *)o->array[MEAN] + at, *v = (float *)o->array[SQUARE] + at, *w = (float *)o->array[WEIGHTED] + at;
    double along = 0, length = 0;

    o->sums[index] = o->sums[o->span_count + index] = 0;
    if (c->lr[o->tensors[s->tensor].group] == 0)
        return;
    for (size_t i = 0; i < s->n; i++) {
        float x = g[i] * a->scale + a->decay * p[i];

        along += (double)x * (double)(start[i] - p[i]);
        m[i] = m[i] * a->beta1 + x * a->new1;
        v[i] = v[i] * a->beta2 + x * x * a->new2;
        w[i] = w[i] * a->beta3 + x * a->new3;
        length += fabs((double)w[i]);
    }
    o->sums[index] = along;
    o->sums[o->span_count + index] = length;
}

/* Second pass: the step. */
static void move(struct optim *o, const struct optim_call *c, const struct optim_span *s, const void *numbers)
{
    const struct prodigy_numbers *a = numbers;
    size_t at = o->place[s->tensor] + s->at;
    const float *g = c->grads[s->tensor] + s->at, *m = (float *)o->array[MEAN] + at, *v = (float *)o->array[SQUARE] + at;
    float *p = o->tensors[s->tensor].param + s->at;

    if (c->lr[o->tensors[s->tensor].group] == 0)
        return;
    for (size_t i = 0; i < s->n; i++) {
        float x = a->plain ? (g[i] * a->scale + a->decay * p[i]) : m[i];

        p[i] = p[i] * a->keep - a->rate * (x / (sqrtf(v[i]) + a->eps));
    }
    optim_round(o, p, s->n);
}

/* The new d from the sums of the first pass. */
static double estimate(struct optim *o, double beta3, double step, double length)
{
    double d = o->numbers[D], hat;

    o->numbers[NUMERATOR] = o->numbers[NUMERATOR] * beta3 + d / o->v.d0 * step * optim_sum(o, 0);
    hat = o->v.d_coef * o->numbers[NUMERATOR] / length;
    if (d == o->v.d0)
        d = fmax(d, hat);
    o->numbers[D_MAX] = fmax(fmax(o->numbers[D_MAX], o->v.d0), hat);
    return fmin(o->numbers[D_MAX], d * o->v.growth_rate);
}

static int step(struct optim *o, const struct optim_call *c, struct err *err)
{
    double lr, d = o->numbers[D], k = o->numbers[STEPS] + 1, length, rate, beta1 = o->v.beta[0], beta2 = o->v.beta[1],
               beta3 = isnan(o->v.beta3) ? sqrt(beta2) : o->v.beta3;
    struct prodigy_numbers a;

    if (optim_one_rate(o, c->lr, &lr, err))
        return -1;
    rate = d * lr * (o->v.use_bias_correction ? sqrt(1 - pow(beta2, k)) / (1 - pow(beta1, k)) : 1);
    a = (struct prodigy_numbers){
        .scale = c->scale,
        .decay = o->v.decouple ? 0 : (float)o->v.weight_decay,
        .beta1 = (float)beta1,
        .new1 = (float)(d * (1 - beta1)),
        .beta2 = (float)beta2,
        .new2 = (float)(d * d * (1 - beta2)),
        .beta3 = (float)beta3,
        .new3 = (float)(d / o->v.d0 * (o->v.safeguard_warmup ? d : rate)),
        .keep = o->v.decouple ? (float)(1 - o->v.weight_decay * rate) : 1,
        .rate = (float)(beta1 > 0 ? rate : rate * d),
        .plain = beta1 == 0,
    };
    optim_spans(o, c, gather, &a);
    length = optim_sum(o, 1);
    if (length == 0) /* no gradient yet, or a rate of 0: nothing to learn from, nothing to do */
        return 0;
    if (lr > 0)
        o->numbers[D] = estimate(o, beta3, rate, length);
    a.eps = (float)(o->numbers[D] * o->v.eps);
    optim_spans(o, c, move, &a);
    o->numbers[STEPS] = k; /* those that moved something */
    return 0;
}

static const struct optim_arg args[] = {
    OPTIM_ARG_DECAY("0"),
    OPTIM_ARG_BETAS("0.9,0.999"),
    OPTIM_ARG(beta3, ARG_OPTIONAL, .def = "None", .max = 1),
    OPTIM_ARG(eps, ARG_NUMBER, .def = "1e-8", .max = 1, .above_min = true),
    OPTIM_ARG_FLAG(decouple, "True"),
    OPTIM_ARG_FLAG(use_bias_correction, "False"),
    OPTIM_ARG_FLAG(safeguard_warmup, "False"),
    OPTIM_ARG(d0, ARG_NUMBER, .def = "1e-6", .max = HUGE_VAL, .above_min = true),
    OPTIM_ARG(d_coef, ARG_NUMBER, .def = "1", .max = HUGE_VAL, .above_min = true),
    OPTIM_ARG(growth_rate, ARG_NUMBER, .def = "inf", .min = 1, .max = HUGE_VAL),
    {0},
};

static const struct optim_array arrays[] = {
    [MEAN] = {"exp_avg", ARRAY_EACH},
    [SQUARE] = {"exp_avg_sq", ARRAY_EACH},
    [WEIGHTED] = {"s", ARRAY_EACH},
    [START] = {"p0", ARRAY_START},
    {0},
};

const struct optim_kind optim_prodigy = {
    .name = "Prodigy",
    .help = "finds the rate itself: give --learning_rate 1",
    .args = args,
    .arrays = arrays,
    .adapts = true,
    .step = step,
};

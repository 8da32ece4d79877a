/* DPM-Solver (Lu et al. 2022a) and DPM-Solver++ (Lu et al. 2022b): the linear part of the equation is solved exactly in
 * lambda = log(a / s), and the prediction (the noise there, the clean latents here) is a polynomial in lambda. Second order,
 * "midpoint" form. Three ways to spread and end the steps: diffusers 0.10's, as sd-scripts v0.3.0 used it, whose last step
 * ends at timestep 0; today's, whose last step ends at the clean latents; and Karras's levels. */
#include <math.h>

#include "ref/diffusion/sampler_plan.h"

struct point {
    double timestep, bar, a, s, lambda;
};

static struct point point_of(double timestep, double bar)
{
    double a = sqrt(bar), s = sqrt(1 - bar);

    return (struct point){timestep, bar, a, s, log(a) - log(s)};
}

static bool is_karras(const struct plan *p)
{
    return p->variant == DPM_2M_KARRAS || p->variant == DPM_2M_SDE_KARRAS;
}

/* Where step i begins; for i = steps, where the last one ends. */
static struct point at_step(const struct plan *p, size_t i)
{
    double t, sigma;

    if (i == p->steps)
        return p->variant >= DPM_2M ? point_of(0, 1) : point_of(0, plan_bar(p, 0));
    t = rint((double)(p->steps - i) * ((SCHEDULE_STEPS - 1) / (double)p->steps));
    if (!is_karras(p))
        return point_of(t, plan_bar(p, (size_t)t));
    sigma = plan_karras(plan_sigma(p, SCHEDULE_STEPS - 1), plan_sigma(p, 0), i, p->steps);
    return point_of(rint(plan_timestep(p, sigma)), 1 / (sigma * sigma + 1));
}

/* Adds to row r the step from `from` to `to` along the newest prediction `now`, and its change since `old` at `before`
 * where there is an old one. h = lambda(to) - lambda(from); where h is infinite, to.a = 1 and to.s = 0. */
static void step_weights(const struct plan *p, struct plan_row *r, const struct point *from, const struct point *to,
                         const struct point *before, int now, int old)
{
    double h = to->lambda - from->lambda, factor, part;

    switch (p->variant) {
    case DPM_EPS:
        r->out[TERM_X] = to->a / from->a;
        factor = -to->s * expm1(h);
        break;
    case DPM_2M_SDE:
    case DPM_2M_SDE_KARRAS: /* the noise replaces what the longer way down has taken */
        r->out[TERM_X] = to->s / from->s * exp(-h);
        r->out[TERM_NOISE] = to->s * sqrt(-expm1(-2 * h));
        factor = -to->a * expm1(-2 * h);
        break;
    default:
        r->out[TERM_X] = to->s / from->s;
        factor = -to->a * expm1(-h);
        break;
    }
    part = old == NO_SLOT ? 0 : 0.5 * factor * h / (from->lambda - before->lambda);
    r->out[TERM_SLOT + now] += factor + part;
    if (old != NO_SLOT)
        r->out[TERM_SLOT + old] -= part;
}

/* Two evaluations for a double step: the second makes it again from where the first began. d is how far the second lies. */
static void pair_weights(struct plan_row *r, const struct point *from, const struct point *middle, const struct point *to)
{
    double h = to->lambda - from->lambda, factor = -to->a * expm1(-h);
    double part = 0.5 * factor * h / (middle->lambda - from->lambda);

    r->out[TERM_KEPT] = to->s / from->s;
    r->out[TERM_SLOT] = factor - part;
    r->out[TERM_SLOT + 1] = part;
}

static int plan_pairs(struct plan *p, struct err *err)
{
    struct point from = {0};

    for (size_t i = p->first; i < p->steps; i++) {
        struct point here = at_step(p, i), to = at_step(p, i + 1);
        bool second = i % 2 && i > p->first && here.lambda > from.lambda;
        struct plan_row *r = plan_add(p, here.timestep, err);

        if (!r)
            return -1;
        plan_vp(p, r, here.bar, PREDICT_X0);
        r->store = second;
        r->keep = !second;
        if (second)
            pair_weights(r, &from, &here, &to);
        else
            step_weights(p, r, &here, &to, NULL, 0, NO_SLOT);
        from = here;
    }
    return 0;
}

/* Below 15 steps the last one is of first order (Lu et al. 2022b, 6.1), and so is any that ends at the clean latents. Many
 * steps can share a timestep: such a step does nothing, and the next one has nothing to compare with. */
int plan_dpm(struct plan *p, struct err *err)
{
    enum prediction want = p->variant == DPM_EPS ? PREDICT_EPS : PREDICT_X0;
    struct point before = {0}, end = at_step(p, p->steps);

    p->last_signal = end.a;
    p->last_noise = end.s;
    if (p->variant == DPM_SINGLE)
        return plan_pairs(p, err);
    for (size_t i = p->first; i < p->steps; i++) {
        struct point here = at_step(p, i), to = at_step(p, i + 1);
        size_t done = i - p->first;
        bool last = i + 1 == p->steps, plain = !done || (last && (p->steps < 15 || to.s == 0)) || here.lambda == before.lambda;
        struct plan_row *r = plan_add(p, here.timestep, err);

        if (!r)
            return -1;
        plan_vp(p, r, here.bar, want);
        r->store = (int)(done % 2);
        step_weights(p, r, &here, &to, &before, (int)(done % 2), plain ? NO_SLOT : (int)((done + 1) % 2));
        before = here;
    }
    return 0;
}

/* k-diffusion's DPM-Solver++ (SDE): a step to the middle (in log sigma) with fresh noise, then the whole step along the
 * clean latents seen there, on x_0 + sigma e. Both noises belong to one Brownian path over sigma: that of the whole step is
 * the first half's, kept in slot 1, and the second half's, weighted by the roots of their lengths. */
int plan_dpm_sde(struct plan *p, struct err *err)
{
    double most = plan_sigma(p, plan_even_timestep(0, p->steps)), least = plan_sigma(p, p->steps > 1 ? 0 : SCHEDULE_STEPS - 1);

    p->init_scale = most;
    for (size_t i = p->first; i < p->steps; i++) {
        bool karras = p->variant == SDE_KARRAS, last = i + 1 == p->steps;
        double t = plan_even_timestep(i, p->steps), sigma = karras ? plan_karras(most, least, i, p->steps) : plan_sigma(p, t);
        double to = last     ? 0
                    : karras ? plan_karras(most, least, i + 1, p->steps)
                             : plan_sigma(p, plan_even_timestep(i + 1, p->steps));
        double middle = sqrt(sigma * to);

        for (int half = 0; half < (last ? 1 : 2); half++) {
            double at = half ? middle : sigma, end = half ? to : middle;
            double up = sqrt(fmin(end * end, end * end * (sigma * sigma - end * end) / (sigma * sigma)));
            double down = sqrt(end * end - up * up);
            struct plan_row *r = plan_add(p, half || karras ? plan_timestep(p, at) : t, err);

            if (!r)
                return -1;
            plan_ve(p, r, at, PREDICT_X0);
            r->keep = !half;
            r->out[half ? TERM_KEPT : TERM_X] = down / sigma;
            r->out[TERM_SLOT] = 1 - down / sigma;
            if (half) {
                r->out[TERM_SLOT + 1] = up * sqrt((sigma - middle) / (sigma - to));
                r->out[TERM_NOISE] = up * sqrt((middle - to) / (sigma - to));
            } else if (!last) {
                r->store_noise = 1;
                r->out[TERM_NOISE] = up;
            }
        }
    }
    return 0;
}

/* Samplers after Karras et al. 2022 and k-diffusion, on x_0 + sigma e, where dx / dsigma is the predicted noise itself:
 * Euler, Euler with ancestral noise, linear multistep, Heun, and the midpoint methods that k-diffusion calls DPM-Solver-2.
 * Timesteps are spread evenly over 999 .. 0, so they fall between whole ones; the last level is 0. */
#include <math.h>

#include "ref/diffusion/sampler_plan.h"

static double level(const struct plan *p, size_t i)
{
    return i < p->steps ? plan_sigma(p, plan_even_timestep(i, p->steps)) : 0;
}

static struct plan_row *add(struct plan *p, double timestep, double sigma, int store, struct err *err)
{
    struct plan_row *r = plan_add(p, timestep, err);

    if (!r)
        return NULL;
    plan_ve(p, r, sigma, PREDICT_EPS);
    r->store = store;
    r->out[TERM_X] = 1;
    return r;
}

/* Splits a step to level `to`: noise of deviation up is added after going down to a lower level (ancestral sampling). */
static double ancestral(double from, double to, double *up)
{
    *up = sqrt(to * to * (from * from - to * to) / (from * from));
    return sqrt(to * to - *up * *up);
}

int plan_euler(struct plan *p, struct err *err)
{
    p->init_scale = level(p, 0);
    for (size_t i = p->first; i < p->steps; i++) {
        double sigma = level(p, i), to = level(p, i + 1), up = 0;
        struct plan_row *r = add(p, plan_even_timestep(i, p->steps), sigma, 0, err);

        if (!r)
            return -1;
        if (p->variant == K_EULER_A)
            to = ancestral(sigma, to, &up);
        r->out[TERM_SLOT] = to - sigma;
        r->out[TERM_NOISE] = up;
    }
    return 0;
}

/* The integral, from level i to i + 1, of the polynomial that is 1 at level i - which and 0 at the other order - 1 levels up
 * to i. Two Gauss points are exact for its degree, 3 at most. */
static double lms_weight(const struct plan *p, size_t i, size_t order, size_t which)
{
    double from = level(p, i), to = level(p, i + 1), sum = 0;

    for (int side = -1; side <= 1; side += 2) {
        double at = (from + to) / 2 + side * (to - from) / (2 * sqrt(3)), product = 1;

        for (size_t k = 0; k < order; k++)
            if (k != which)
                product *= (at - level(p, i - k)) / (level(p, i - which) - level(p, i - k));
        sum += product;
    }
    return sum * (to - from) / 2;
}

int plan_lms(struct plan *p, struct err *err)
{
    p->init_scale = level(p, 0);
    for (size_t i = p->first; i < p->steps; i++) {
        size_t done = i - p->first, order = done < 3 ? done + 1 : 4;
        struct plan_row *r = add(p, plan_even_timestep(i, p->steps), level(p, i), (int)(done % 4), err);

        if (!r)
            return -1;
        for (size_t k = 0; k < order; k++)
            r->out[TERM_SLOT + (done - k) % 4] = lms_weight(p, i, order, k);
    }
    return 0;
}

/* An Euler step, then the same step again along the mean of the slopes at its two ends. The last step, to level 0, has no
 * slope at its end. */
int plan_heun(struct plan *p, struct err *err)
{
    p->init_scale = level(p, 0);
    for (size_t i = p->first; i < p->steps; i++) {
        double sigma = level(p, i), to = level(p, i + 1);
        struct plan_row *r = add(p, plan_even_timestep(i, p->steps), sigma, 0, err);

        if (!r)
            return -1;
        r->keep = true;
        r->out[TERM_SLOT] = to - sigma;
        if (i + 1 == p->steps)
            break;
        r = add(p, plan_even_timestep(i + 1, p->steps), to, 1, err);
        if (!r)
            return -1;
        r->out[TERM_X] = 0;
        r->out[TERM_KEPT] = 1;
        r->out[TERM_SLOT] = r->out[TERM_SLOT + 1] = (to - sigma) / 2;
    }
    return 0;
}

/* The slope half way (in log sigma) makes the whole step. With ancestral noise the step goes to the lower level. */
int plan_dpm_2(struct plan *p, struct err *err)
{
    p->init_scale = level(p, 0);
    for (size_t i = p->first; i < p->steps; i++) {
        double sigma = level(p, i), to = level(p, i + 1), up = 0, middle;
        struct plan_row *r = add(p, plan_even_timestep(i, p->steps), sigma, 0, err);

        if (!r)
            return -1;
        if (p->variant == K_DPM_2_A)
            to = ancestral(sigma, to, &up);
        middle = sqrt(sigma * to);
        r->keep = true;
        r->out[TERM_SLOT] = middle - sigma;
        if (i + 1 == p->steps)
            break;
        r = add(p, plan_timestep(p, middle), middle, 0, err);
        if (!r)
            return -1;
        r->out[TERM_X] = 0;
        r->out[TERM_KEPT] = 1;
        r->out[TERM_SLOT] = to - sigma;
        r->out[TERM_NOISE] = up;
    }
    return 0;
}

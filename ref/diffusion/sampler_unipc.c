/* UniPC (Zhao et al. 2023) of order 2, B(h) = expm1(h) ("bh2"), on clean latents: each evaluation first corrects the step
 * that led to it, then makes the next one. The last step ends at the clean latents and is of first order. */
#include <math.h>

#include "ref/diffusion/sampler_plan.h"

struct point {
    double t, bar, a, s, lambda;
};

static struct point at_step(const struct plan *p, size_t i)
{
    double t = rint((double)(p->steps - i) * ((SCHEDULE_STEPS - 1) / (double)p->steps)), bar;

    if (i == p->steps)
        return (struct point){0, 1, 1, 0, INFINITY};
    bar = plan_bar(p, (size_t)t);
    return (struct point){t, bar, sqrt(bar), sqrt(1 - bar), 0.5 * log(bar / (1 - bar))};
}

/* The corrector (UniC) for the step from `from` to `to`, whose end is evaluated now (slot `now`, the start's is `m0`). Of
 * order 2 it also uses the prediction before, at `before` (slot m1): its weights solve sum w = b1, r w1 + w2 = b2. */
static void correct(struct plan_row *r, const struct point *from, const struct point *to, const struct point *before, int now,
                    int m0, int m1)
{
    double hh = -(to->lambda - from->lambda), phi1 = expm1(hh), phi = phi1 / hh - 1, w_old = 0, w_now = 0.5, rk = 1;

    if (m1 != NO_SLOT) {
        double b1 = phi / phi1, b2 = (phi / hh - 0.5) * 2 / phi1;

        rk = (before->lambda - from->lambda) / -hh;
        w_old = (b1 - b2) / (1 - rk);
        w_now = b1 - w_old;
    }
    r->fixing = true;
    r->fix[TERM_KEPT] = to->s / from->s;
    r->fix[TERM_SLOT + now] = -to->a * phi1 * w_now;
    r->fix[TERM_SLOT + m0] = -to->a * phi1 * (1 - w_now - w_old / rk);
    if (m1 != NO_SLOT)
        r->fix[TERM_SLOT + m1] = -to->a * phi1 * w_old / rk;
}

/* The predictor (UniP); of order 2 its one weight is 1/2. */
static void predict(struct plan_row *r, const struct point *from, const struct point *to, const struct point *before, int m0,
                    int m1)
{
    double hh = -(to->lambda - from->lambda), phi1 = expm1(hh), part = 0;

    if (m1 != NO_SLOT) {
        part = 0.5 / ((before->lambda - from->lambda) / -hh);
        r->out[TERM_SLOT + m1] = -to->a * phi1 * part;
    }
    r->out[TERM_X] = to->s / from->s;
    r->out[TERM_SLOT + m0] = -to->a * phi1 * (1 - part);
}

int plan_unipc(struct plan *p, struct err *err)
{
    struct point before2 = {0}, before = {0};
    int known = 0, order = 0; /* predictions to go back to; order of the step before */

    for (size_t i = p->first; i < p->steps; i++) {
        struct point here = at_step(p, i), to = at_step(p, i + 1);
        int now = (int)((i - p->first) % 3), m0 = (now + 2) % 3, m1 = (now + 1) % 3;
        struct plan_row *r = plan_add(p, here.t, err);

        if (!r)
            return -1;
        plan_vp(p, r, here.bar, PREDICT_X0);
        r->store = now;
        r->keep = true;
        if (known && here.lambda > before.lambda)
            correct(r, &before, &here, &before2, now, m0, order == 2 ? m1 : NO_SLOT);
        else if (known)
            known = 0; /* two steps at one timestep: the first did nothing */
        if (to.lambda == here.lambda) {
            r->out[TERM_X] = 1;
            order = 1;
        } else {
            order = known && i + 1 < p->steps ? 2 : 1;
            predict(r, &here, &to, &before, now, order == 2 ? m0 : NO_SLOT);
        }
        known++;
        before2 = before;
        before = here;
    }
    return 0;
}

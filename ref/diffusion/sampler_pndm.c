/* PNDM (Liu et al. 2022): eq. 9 moves x along a mean of predictions; the mean comes from a fourth-order Runge-Kutta scheme
 * for the first three steps (eq. 13), then from the last four predictions (eq. 12). As diffusers lays the timesteps out;
 * timesteps end at 1 as DDIM's. "plms" begins with an Euler step, corrected, in place of the Runge-Kutta steps; so does
 * "pndm" when fewer than four steps are to be made. */
#include <math.h>

#include "ref/diffusion/sampler_plan.h"

struct pndm {
    struct plan *p;
    size_t ratio, offset;
};

/* Timestep of step i, first to last */
static size_t timestep(const struct pndm *m, size_t i)
{
    return (m->p->steps - 1 - i) * m->ratio + m->offset;
}

/* A row at timestep `told` whose step leads from `from` to `to` (-1: beyond the first): out is set to eq. 9 for a mean of
 * predictions with the given weights over the slots, applied to the term `base`. */
static struct plan_row *add(const struct pndm *m, size_t told, size_t from, long to, int base, int store,
                            const double weight[TERM_SLOTS], struct err *err)
{
    double bar = plan_bar(m->p, from), next = plan_bar(m->p, to < 0 ? 0 : (size_t)to), of_m, of_x, step;
    struct plan_row *r = plan_add(m->p, (double)told, err);

    if (!r)
        return NULL;
    plan_vp(m->p, r, plan_bar(m->p, told), m->p->prediction);
    r->store = store;
    schedule_convert(bar, m->p->prediction, PREDICT_EPS, &of_m, &of_x);
    step = -(next - bar) / (bar * sqrt(1 - next) + sqrt(bar * (1 - bar) * next));
    r->out[base] = sqrt(next / bar) + step * of_x;
    for (int i = 0; i < TERM_SLOTS; i++)
        r->out[TERM_SLOT + i] = step * of_m * weight[i];
    return r;
}

/* Twelve evaluations for three steps. Slots 0, 1, 2 get the first prediction of each step, which the multistep part goes on
 * from; 3, 4, 5 the other three of one step. */
static int runge_kutta(const struct pndm *m, struct err *err)
{
    size_t half = m->ratio / 2, first = m->p->first;

    for (size_t i = 0; i < 3; i++) {
        size_t t = timestep(m, first + i), next = timestep(m, first + i + 1), middle = next + half;
        double w1[TERM_SLOTS] = {0}, w2[TERM_SLOTS] = {0}, w3[TERM_SLOTS] = {0}, all[TERM_SLOTS] = {0};
        struct plan_row *r;

        w1[i] = w2[3] = w3[4] = 1;
        all[i] = all[5] = 1 / 6.0, all[3] = all[4] = 1 / 3.0;
        r = add(m, t, t, (long)(t - half), TERM_X, (int)i, w1, err);
        if (!r)
            return -1;
        r->keep = true;
        if (!add(m, middle, t, (long)middle, TERM_KEPT, 3, w2, err) ||
            !add(m, middle, t, (long)(middle - half), TERM_KEPT, 4, w3, err) ||
            !add(m, next, t, (long)next, TERM_KEPT, 5, all, err))
            return -1;
    }
    return 0;
}

/* Steps first + from to the last; `known` predictions of the steps before lie in slots known - 1 ... */
static int multistep(const struct pndm *m, size_t from, size_t known, struct err *err)
{
    static const double of_age[4][4] = {
        {1}, {3 / 2.0, -1 / 2.0}, {23 / 12.0, -16 / 12.0, 5 / 12.0}, {55 / 24.0, -59 / 24.0, 37 / 24.0, -9 / 24.0}};

    for (size_t i = m->p->first + from; i < m->p->steps; i++) {
        size_t t = timestep(m, i), age = known < 3 ? known : 3;
        double weight[TERM_SLOTS] = {0};

        for (size_t k = 0; k <= age; k++)
            weight[(known - k) % 4] = of_age[age][k];
        if (!add(m, t, t, (long)t - (long)m->ratio, TERM_X, (int)(known % 4), weight, err))
            return -1;
        known++;
    }
    return 0;
}

/* An Euler step, whose end gives a second prediction; the mean of both makes the step again. The second one is not kept. */
static int euler_twice(const struct pndm *m, struct err *err)
{
    static const double one[TERM_SLOTS] = {1}, both[TERM_SLOTS] = {1 / 2.0, 0, 0, 0, 1 / 2.0};
    size_t t = timestep(m, m->p->first);
    bool last = m->p->first + 1 == m->p->steps;
    struct plan_row *r = add(m, t, t, (long)t - (long)m->ratio, TERM_X, 0, one, err);

    if (!r)
        return -1;
    r->keep = true;
    if (last)
        return 0;
    return add(m, t - m->ratio, t, (long)(t - m->ratio), TERM_KEPT, 4, both, err) ? 0 : -1;
}

int plan_pndm(struct plan *p, struct err *err)
{
    struct pndm m = {.p = p, .ratio = SCHEDULE_STEPS / p->steps};

    m.offset = (p->steps - 1) * m.ratio + 1 < SCHEDULE_STEPS;
    p->last_signal = sqrt(plan_bar(p, 0));
    p->last_noise = sqrt(1 - plan_bar(p, 0));
    if (p->variant == PNDM_RUNGE_KUTTA && p->steps - p->first >= 4)
        return runge_kutta(&m, err) || multistep(&m, 3, 3, err) ? -1 : 0;
    return euler_twice(&m, err) || multistep(&m, 1, 1, err) ? -1 : 0;
}

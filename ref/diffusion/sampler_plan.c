#include "ref/diffusion/sampler_plan.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "ref/base/mem.h"

struct plan_row *plan_add(struct plan *p, double timestep, struct err *err)
{
    struct plan_row *r;

    if (mem_grow(&p->row, &p->cap, p->count, sizeof *p->row, "a sampler's plan", err))
        return NULL;
    r = &p->row[p->count++];
    memset(r, 0, sizeof *r);
    r->timestep = timestep;
    r->store_noise = NO_SLOT;
    return r;
}

void plan_vp(const struct plan *p, struct plan_row *r, double bar, enum prediction want)
{
    r->scale = 1;
    r->signal = sqrt(bar);
    r->noise = sqrt(1 - bar);
    schedule_convert(bar, p->prediction, want, &r->to_m, &r->to_x);
    schedule_convert(bar, p->prediction, PREDICT_X0, &r->clean_m, &r->clean_x);
}

void plan_ve(const struct plan *p, struct plan_row *r, double sigma, enum prediction want)
{
    double bar = 1 / (sigma * sigma + 1);

    plan_vp(p, r, bar, want);
    r->scale = sqrt(bar);
    r->signal = 1;
    r->noise = sigma;
    r->to_x *= r->scale; /* the formulas are about x_t, x here is x_t / sqrt(bar) */
    r->clean_x *= r->scale;
}

double plan_bar(const struct plan *p, size_t timestep)
{
    assert(timestep < SCHEDULE_STEPS);
    return fmax((double)p->schedule->bar[timestep], 0x1p-24);
}

static double sigma_at(const struct plan *p, size_t timestep)
{
    double bar = plan_bar(p, timestep);

    return sqrt((1 - bar) / bar);
}

double plan_sigma(const struct plan *p, double timestep)
{
    size_t below = (size_t)timestep;
    double low = sigma_at(p, below);

    if (below + 1 >= SCHEDULE_STEPS)
        return low;
    return low + (sigma_at(p, below + 1) - low) * (timestep - (double)below);
}

double plan_timestep(const struct plan *p, double sigma)
{
    size_t low = 0, high = SCHEDULE_STEPS - 1;
    double a, b, w;

    while (high - low > 1) {
        size_t middle = (low + high) / 2;

        if (sigma_at(p, middle) <= sigma)
            low = middle;
        else
            high = middle;
    }
    a = log(sigma_at(p, low));
    b = log(sigma_at(p, high));
    w = fmin(fmax((log(sigma) - a) / (b - a), 0), 1);
    return (double)low + w;
}

double plan_karras(double most, double least, size_t i, size_t n)
{
    double a = pow(most, 1 / 7.0), b = pow(least, 1 / 7.0), ramp = n > 1 ? (double)i / (double)(n - 1) : 0;

    return pow(a + ramp * (b - a), 7);
}

double plan_even_timestep(size_t i, size_t n)
{
    if (i == 0)
        return SCHEDULE_STEPS - 1;
    return (double)(n - 1 - i) * ((SCHEDULE_STEPS - 1) / (double)(n - 1));
}

/* DDIM (Song et al. 2021, eq. 12 with no noise added) and LCM (Luo et al. 2023). Both go by the clean latents that the
 * prediction points to. */
#include <math.h>

#include "ref/diffusion/sampler_plan.h"

/* Timesteps end at 1, not 0, as Stable Diffusion's scheduler configurations have it (steps_offset); at 0 when all 1,000 are
 * used. The step after the last is the clean picture. */
int plan_ddim(struct plan *p, struct err *err)
{
    size_t ratio = SCHEDULE_STEPS / p->steps, offset = (p->steps - 1) * ratio + 1 < SCHEDULE_STEPS;

    for (size_t i = p->first; i < p->steps; i++) {
        size_t t = (p->steps - 1 - i) * ratio + offset;
        double next = t >= ratio ? plan_bar(p, t - ratio) : 1, eps_m, eps_x;
        struct plan_row *r = plan_add(p, (double)t, err);

        if (!r)
            return -1;
        plan_vp(p, r, plan_bar(p, t), p->prediction);
        schedule_convert(plan_bar(p, t), p->prediction, PREDICT_EPS, &eps_m, &eps_x);
        r->out[TERM_SLOT] = sqrt(next) * r->clean_m + sqrt(1 - next) * eps_m;
        r->out[TERM_X] = sqrt(next) * r->clean_x + sqrt(1 - next) * eps_x;
    }
    return 0;
}

/* Timesteps are a choice from the 50 that the distillation used, 999, 979, ... 19. The clean latents, mixed with x so that
 * the mix becomes x at timestep 0 (sigma_data 0.5, timesteps scaled by 10), are noised anew for the next timestep. */
int plan_lcm(struct plan *p, struct err *err)
{
    enum { TRAINED = 50, APART = SCHEDULE_STEPS / TRAINED };

    if (p->steps > TRAINED)
        return err_usage(err, "cannot sample in %zu steps: 'lcm' has at most %d; give 1 to 8", p->steps, (int)TRAINED);
    for (size_t i = p->first; i < p->steps; i++) {
        double apart = (double)TRAINED / (double)p->steps;
        size_t t = (TRAINED - (size_t)((double)i * apart)) * APART - 1;
        size_t next = i + 1 < p->steps ? (TRAINED - (size_t)((double)(i + 1) * apart)) * APART - 1 : 0;
        double scaled = 10.0 * (double)t, under = scaled * scaled + 0.25, of_clean = scaled / sqrt(under), of_x = 0.25 / under;
        double signal = 1;
        struct plan_row *r = plan_add(p, (double)t, err);

        if (!r)
            return -1;
        plan_vp(p, r, plan_bar(p, t), PREDICT_X0);
        if (i + 1 < p->steps) {
            signal = sqrt(plan_bar(p, next));
            r->out[TERM_NOISE] = sqrt(1 - plan_bar(p, next));
        }
        r->out[TERM_SLOT] = signal * of_clean;
        r->out[TERM_X] = signal * of_x;
    }
    return 0;
}

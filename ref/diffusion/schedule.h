/* The noise schedule of Stable Diffusion and what follows from it.
 *
 * Forward process (Ho et al. 2020, eq. 4): x_t = a x_0 + s e with a = sqrt(bar_t), s = sqrt(1 - bar_t), e standard normal,
 * bar_t the product of 1 - beta over the steps up to t. Betas are "scaled linear": squares of evenly spaced numbers between
 * sqrt(0.00085) and sqrt(0.012). What a U-Net predicts is e (SD1, SD2-base) or v = a e - s x_0 (SD2-v; Salimans and Ho 2022,
 * appendix D).
 *
 * The tables are torch's to the bit: f32 arithmetic, the cumulative product carried in f64 and stored in f32, as torch does
 * it on the CPU. What needs roots (the rest) is correctly rounded here, while torch's root depends on its vector library and
 * may be one unit off.
 */
#ifndef REF_DIFFUSION_SCHEDULE_H
#define REF_DIFFUSION_SCHEDULE_H

#include <stddef.h>

enum { SCHEDULE_STEPS = 1000 };

struct schedule {
    float beta[SCHEDULE_STEPS];
    float bar[SCHEDULE_STEPS]; /* diffusers' alphas_cumprod; falls from almost 1 to 0.0047 */
};

/* What a model's output means. */
enum prediction {
    PREDICT_EPS, /* the noise e */
    PREDICT_V,   /* the velocity a e - s x_0 */
    PREDICT_X0,  /* the clean latents: no model does, but formulas are written with them */
};

/* The schedule that all Stable Diffusion models are trained with. */
void schedule_init(struct schedule *s);

/* Shifts and scales sqrt(bar) so that the last step is noise alone, bar[999] = 0 (Lin et al. 2023, algorithm 1). For
 * v-prediction only: e says nothing about x_0 there. */
void schedule_zero_snr(struct schedule *s);

/* x [n] f32 = a x0 + s noise at timestep t < SCHEDULE_STEPS; x may be x0 or noise. */
void schedule_add_noise(const struct schedule *s, size_t t, const float *x0, const float *noise, float *x, size_t n);

/* v [n] f32 = a noise - s x0: what a v-model is trained to say; v may be x0 or noise. */
void schedule_velocity(const struct schedule *s, size_t t, const float *x0, const float *noise, float *v, size_t n);

/* The signal-to-noise ratio bar / (1 - bar) at t, f32 as torch computes it for the weights below. */
float schedule_snr(const struct schedule *s, size_t t);

/* The loss weight of timestep t (Hang et al. 2023): min(snr, gamma) / snr for e, min(snr, gamma) / (snr + 1) for v, and
 * min(snr, gamma) for x_0. 1 for e where snr = 0. */
float schedule_min_snr(const struct schedule *s, size_t t, float gamma, enum prediction what);

/* The weights with which `to` follows from what the model says and from x_t itself: to = *of_model * model + *of_x * x_t.
 * 0 < bar < 1. */
void schedule_convert(double bar, enum prediction from, enum prediction to, double *of_model, double *of_x);

#endif

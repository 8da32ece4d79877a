/* How the families of samplers lay out their evaluations; see sampler.h. */
#ifndef REF_DIFFUSION_SAMPLER_PLAN_H
#define REF_DIFFUSION_SAMPLER_PLAN_H

#include "ref/diffusion/sampler.h"

/* What sums are made of. Slots hold what was said before, in the form that the sampler wants it. */
enum {
    TERM_X,     /* the latents */
    TERM_KEPT,  /* latents set aside by an earlier row */
    TERM_NOISE, /* fresh noise of this evaluation */
    TERM_SLOT,  /* the first of the slots */
    TERM_SLOTS = 7,
    TERMS = TERM_SLOT + TERM_SLOTS,
    NO_SLOT = -1,
};

/* One evaluation. In this order: slot[store] = to_m * prediction + to_x * x; where fixing, x = sum of fix; where keeping,
 * kept = x; where store_noise >= 0, slot[store_noise] = noise; x = sum of out. */
struct plan_row {
    double timestep, scale; /* the model's input is scale * x */
    double to_m, to_x;
    double clean_m, clean_x; /* clean latents = clean_m * prediction + clean_x * x */
    double signal, noise;    /* level of x before this evaluation */
    double fix[TERMS], out[TERMS];
    int store, store_noise;
    bool fixing, keep;
};

struct plan {
    /* given to the planning function */
    const struct schedule *schedule;
    enum prediction prediction;
    size_t steps, first;
    int variant;
    /* made by it */
    struct plan_row *row;
    size_t count, cap;
    double init_scale;
    double last_signal, last_noise; /* level after the last row */
};

/* A new row, zeroed, without slots; NULL with err filled when memory lacks. Valid until the next call. */
struct plan_row *plan_add(struct plan *p, double timestep, struct err *err);

/* Rows of samplers that work on x_t itself ("variance preserving"): sets scale, level, clean and to for a level of noise
 * bar; `want` is the form in which predictions are stored. */
void plan_vp(const struct plan *p, struct plan_row *r, double bar, enum prediction want);

/* Rows of samplers that work on x_t / sqrt(bar) = x_0 + sigma e ("variance exploding", Karras et al. 2022). */
void plan_ve(const struct plan *p, struct plan_row *r, double sigma, enum prediction want);

/* bar of a whole timestep. At least 2^-24 (diffusers' stand-in for 0), so that no level is noise alone. */
double plan_bar(const struct plan *p, size_t timestep);

/* Levels of noise sigma = sqrt((1 - bar) / bar): at a timestep between whole ones (linear in between, as numpy.interp), and
 * back: the timestep of a level (linear in log sigma). */
double plan_sigma(const struct plan *p, double timestep);
double plan_timestep(const struct plan *p, double sigma);

/* The i-th of n noise levels from `most` down to `least`, evenly spaced in sigma^(1/7) (Karras et al. 2022, eq. 5). */
double plan_karras(double most, double least, size_t i, size_t n);

/* The i-th of n timesteps from 999 down to 0; 999 when n is 1. */
double plan_even_timestep(size_t i, size_t n);

enum { DPM_EPS, DPM_X0, DPM_SINGLE, DPM_2M, DPM_2M_KARRAS, DPM_2M_SDE, DPM_2M_SDE_KARRAS };
enum { K_EULER, K_EULER_A, K_DPM_2, K_DPM_2_A };
enum { SDE_PLAIN, SDE_KARRAS };
enum { PNDM_RUNGE_KUTTA, PNDM_MULTISTEP };

int plan_ddim(struct plan *p, struct err *err);
int plan_lcm(struct plan *p, struct err *err);
int plan_pndm(struct plan *p, struct err *err);
int plan_euler(struct plan *p, struct err *err);
int plan_lms(struct plan *p, struct err *err);
int plan_heun(struct plan *p, struct err *err);
int plan_dpm_2(struct plan *p, struct err *err);
int plan_dpm(struct plan *p, struct err *err);
int plan_dpm_sde(struct plan *p, struct err *err);
int plan_unipc(struct plan *p, struct err *err);

#endif

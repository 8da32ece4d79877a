/* Samplers: from noise to latents in a few evaluations of the model, which the caller makes.
 *
 * All of them are the same machine. A sampler is planned before it starts, as a table with one row an evaluation of the model;
 * a row says which timestep the model is told, by what its input is scaled, and with which weights the next latents are made
 * of the present ones, of what the model says now and has said before, and of fresh noise. So a family of samplers is a
 * function that fills rows (sampler_*.c), and running one is a handful of weighted sums:
 *
 *     sampler_begin
 *     x = sampler_init_scale * noise                       (or init * signal + noise * level, sampler_level, for img2img)
 *     while (!sampler_done) {
 *         sampler_input(s, x, input);
 *         the caller evaluates the model on input at sampler_timestep(s)
 *         sampler_step(s, x, prediction, noise);            (noise: only where sampler_wants_noise)
 *     }
 *     sampler_end
 *
 * Elements do not meet, so the pictures of a batch are independent of each other and any memory layout will do. Weights are
 * f64, computed from the schedule's f32 table; latents are f32, rounded once a step. One sampler serves one thread.
 */
#ifndef REF_DIFFUSION_SAMPLER_H
#define REF_DIFFUSION_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>

#include "ref/base/err.h"
#include "ref/diffusion/schedule.h"

struct plan;

struct sampler_kind {
    const char *name;
    const char *alias;    /* another name for it, or NULL */
    const char *title;    /* what web UIs call it, or what they might */
    const char *help;     /* one line for people */
    unsigned noises;      /* fresh noises set aside for each step, used or not: the e-th evaluation made has the e-th */
    unsigned evaluations; /* of the model in a usual step */
    unsigned char order;  /* of the method */
    bool needs_noise;     /* false: the way from the first noise is fixed */
    bool in_v030;         /* a sampler of sd-scripts v0.3.0, set up as gen_img_diffusers.py does */
    int variant;          /* for the planning function */
    int (*plan)(struct plan *p, struct err *err);
};

/* All samplers; ends with a NULL name. */
extern const struct sampler_kind sampler_kinds[];

/* By name or alias; NULL when there is none. */
const struct sampler_kind *sampler_find(const char *name);

struct sampler;

struct sampler_config {
    const struct sampler_kind *kind;
    const struct schedule *schedule; /* borrowed for the call */
    enum prediction prediction;      /* what the model predicts: PREDICT_EPS or PREDICT_V */
    size_t steps;                    /* 1 .. 1000 */
    size_t first;                    /* img2img: the step to begin with, below steps; 0 for all of them */
};

/* The step that img2img begins with: strength in (0, 1] of the steps are left, at least one (diffusers' rule: steps -
 * floor(steps * strength)). v0.3.0 began at the same step but noised the picture for the one before (DDIM), or for quite
 * another one (PNDM and the samplers that evaluate twice): those pictures are not reproduced. */
size_t sampler_first_step(size_t steps, double strength);

/* Plans all evaluations and takes memory for latents of n elements (a whole batch). Refuses impossible step counts (kind
 * ERR_USAGE). *out is freed with sampler_end(). */
int sampler_begin(struct sampler **out, const struct sampler_config *c, size_t n, struct err *err);
void sampler_end(struct sampler *s); /* NULL is fine */

size_t sampler_evaluations(const struct sampler *s); /* in all */
size_t sampler_done_evaluations(const struct sampler *s);
bool sampler_done(const struct sampler *s);

double sampler_init_scale(const struct sampler *s); /* of the normal noise that a picture starts from */

/* For x as it is now: x ~ *signal * latents + *noise * normal. Before the first step: what img2img starts with; after the
 * last one 1 and 0 (or almost). For inpainting: what is to stay is put back at this level. */
void sampler_level(const struct sampler *s, double *signal, double *noise);

/* The coming evaluation's timestep, 0 .. 999, for some samplers between two whole ones. */
double sampler_timestep(const struct sampler *s);

/* input [n] = the scale of this evaluation * x [n]; may be the same memory. */
void sampler_input(const struct sampler *s, const float *x, float *input);

/* clean [n] = the latents that x [n] and the prediction [n] for it point to (of the coming step, so before sampler_step):
 * what a preview shows. */
void sampler_clean(const struct sampler *s, const float *x, const float *prediction, float *clean);

/* True when the coming step uses its noise. */
bool sampler_wants_noise(const struct sampler *s);

/* Moves x [n] by one evaluation. prediction [n] is the model's output for sampler_input(); noise [n] standard normal, may be
 * NULL where it is not wanted. Fails, naming evaluation and timestep, when a number is no longer finite. */
int sampler_step(struct sampler *s, float *x, const float *prediction, const float *noise, struct err *err);

#endif

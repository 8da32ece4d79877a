/* The problem that samplers are tested on: pictures that are normal with known mean and deviation, and a little that is not
 * linear, so that the right prediction is a formula (golden/make_samplers.py). */
#ifndef CMD_VERIFY_SAMPLERS_H
#define CMD_VERIFY_SAMPLERS_H

#include "cmd/verify/verify.h"
#include "ref/diffusion/sampler.h"

enum { SAMPLER_PROBLEM_MOST = 64 };

struct sampler_problem {
    struct verify_file v030, today; /* trajectories by the diffusers of sd-scripts v0.3.0 and by today's */
    struct schedule schedule;
    const float *mean, *deviation, *start, *init, *noises; /* [n], noises [80, n] */
    size_t n;
};

int sampler_problem_open(struct sampler_problem *p, const struct verify *v, struct err *err);
void sampler_problem_close(struct sampler_problem *p);

/* What a perfect network says of x [n] at timestep t. */
void sampler_problem_model(const struct sampler_problem *p, const float *x, double t, enum prediction what, float *out);

/* The latents to begin with: noise, or with first > 0 the noised picture. */
void sampler_problem_first(const struct sampler_problem *p, const struct sampler *s, size_t first, float *x);

#endif

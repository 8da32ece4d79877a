/* Colours of latents without the VAE, for previews: each of a latent pixel's colours as a weighted sum of its channels and a
 * constant, the weights fitted by least squares to what the VAE itself says of a few latents. So it serves any VAE, and costs
 * nothing beside a step. */
#ifndef REF_DIFFUSION_COLOURS_H
#define REF_DIFFUSION_COLOURS_H

#include <stddef.h>

#include "ref/base/err.h"

enum { COLOURS_MOST_CHANNELS = 16 };

struct colours {
    size_t channels;
    float weight[COLOURS_MOST_CHANNELS + 1][3]; /* the last row is the constant */
};

/* Fits to latents [n, channels] and the colours they have [n, 3]; n > channels. Fails where the latents say too little (rank),
 * or have more than COLOURS_MOST_CHANNELS. */
int colours_fit(struct colours *c, const float *latents, const float *rgb, size_t n, size_t channels, struct err *err);

/* rgb [n, 3] of latents [n, channels], in the scale of the fit. */
void colours_of(const struct colours *c, const float *latents, float *rgb, size_t n);

#endif

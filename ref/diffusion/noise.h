/* The noises of one picture, from its seed alone: so a picture is the same in any batch and at any place of it.
 *
 * They are what sd-scripts v0.3.0 draws after torch.manual_seed(seed): number 0 is the latents to start from, 1 ... count the
 * noises set aside for the sampler (steps times sampler_kind.noises), count + 1 the noise of img2img. Each is one
 * torch.randn(channels, height, width).
 */
#ifndef REF_DIFFUSION_NOISE_H
#define REF_DIFFUSION_NOISE_H

#include <stddef.h>
#include <stdint.h>

#include "ref/base/err.h"
#include "ref/base/rng.h"

enum noise_device {
    NOISE_CPU, /* torch's numbers for device "cpu" */
    NOISE_CUDA /* torch's numbers for device "cuda" */
};

struct noise {
    enum noise_device device;
    uint64_t seed;
    size_t channels, height, width;
    uint64_t next;  /* number of the coming noise */
    struct rng rng; /* CPU: stands at the coming noise */
    float *plane;   /* one noise in torch's layout */
};

/* Starts at number 0. Shape is that of latents; memory for one of them is taken and freed by noise_end(). */
int noise_begin(struct noise *s, enum noise_device device, uint64_t seed, size_t channels, size_t height, size_t width,
                struct err *err);
void noise_end(struct noise *s); /* a zeroed one is fine */

/* Goes on to the noise of that number; earlier ones are drawn again from the seed. */
void noise_seek(struct noise *s, uint64_t number);

/* x [height, width, channels] f32 = the coming noise, channels last as our latents are. */
void noise_next(struct noise *s, float *x);

#endif

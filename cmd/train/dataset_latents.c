/* The VAE as what fills the cache. */
#include <stdlib.h>

#include "cmd/latents.h"
#include "cmd/train/dataset.h"
#include "ref/base/rng.h"

#define LATENT_SCALE 0.18215f /* which latents.h multiplies with, and .npz files and the trainer do not want yet */

int dataset_encode_latents(void *ctx, const float *pixels, size_t n, size_t h, size_t w, const uint64_t *seed, float *latents,
                           struct err *err)
{
    struct latents *l = ctx;
    size_t f = latents_factor(l), each = h / f * (w / f) * latents_channels(l);
    float *noise = mem_new(n * each * sizeof *noise, "noise", err);
    struct rng rng;
    int rc;

    if (!noise)
        return -1;
    for (size_t i = 0; i < n; i++) {
        rng_seed(&rng, seed[i]);
        rng_normal(&rng, noise + i * each, each);
    }
    rc = latents_encode(l, pixels, n, h, w, noise, latents, err);
    for (size_t i = 0; i < n * each && !rc; i++)
        latents[i] /= LATENT_SCALE;
    free(noise);
    return rc;
}

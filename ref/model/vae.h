/* The VAE of Stable Diffusion as two graphs: pictures to latents, latents to pictures (names of diffusers).
 * Pictures are [n, h, w, 3] in -1 .. 1. Latents here are the VAE's own: what the U-Net works with is these times 0.18215. */
#ifndef REF_MODEL_VAE_H
#define REF_MODEL_VAE_H

#include "ref/model/layers.h"

struct vae {
    int in;  /* input: pictures for the encoder, latents for the decoder */
    int out; /* kept: moments [n, h/f, w/f, 2c], mean then log of the variance, or pictures [n, f h, f w, 3] */
};

/* How much smaller latents are than pictures (8), and their channels (4). */
int vae_config(struct weights *w, size_t *factor, size_t *channels, struct err *err);

/* h and w are those of the input: pixels for the encoder (multiples of the factor), latents for the decoder. */
int vae_build_encoder(struct layers *l, size_t n, size_t h, size_t w, struct vae *out, struct err *err);
int vae_build_decoder(struct layers *l, size_t n, size_t h, size_t w, struct vae *out, struct err *err);

#endif

/* Pictures to latents and back, for commands: a VAE opened from a file, run on a device, in tiles where memory is short.
 *
 * Pixels are [n, height, width, 3] f32 in -1 .. 1, sides multiples of latents_factor(). Latents are [n, height / factor,
 * width / factor, channels] f32, scaled as the U-Net wants them (times 0.18215). Pictures go through one at a time, so a
 * picture's latents do not depend on what is beside it, and memory not on n.
 *
 * A picture that would need more than latents_limit() is cut into tiles of one size that overlap by a quarter or more; where
 * they do, their values are mixed with weights that run linearly from one to the other. What a tile says near its edge, where
 * it knows nothing of the neighbour, so counts for nothing and no seam shows. Group norm and attention see one tile and not the
 * whole picture, as in diffusers' tiled VAE: colours may shift by a few levels against the untiled picture.
 */
#ifndef CMD_LATENTS_H
#define CMD_LATENTS_H

#include "formats/picture.h"
#include "ref/op/ops.h"

struct latents;

/* Opens the VAE in `path`: a checkpoint, a diffusers folder or a VAE by itself. Headers are read only. ops (of a device) is
 * borrowed until latents_close(). Fails where the file has no whole VAE: the message offers --vae. */
int latents_open(struct latents **out, const char *path, const struct ops *ops, struct err *err);
void latents_close(struct latents *l); /* NULL is fine */

size_t latents_factor(const struct latents *l);   /* 8 */
size_t latents_channels(const struct latents *l); /* 4 */

/* Bytes that a picture may need beside the weights; SIZE_MAX (the beginning): no limit. */
void latents_limit(struct latents *l, size_t bytes);

/* From now on tiles of at most this many pixels a side, whatever the memory; 0: whole pictures where the limit allows. Rounded
 * down to a multiple of the factor, at least 8 latents. */
void latents_tile(struct latents *l, size_t pixels);

/* Bytes that one picture of this size will need, weights (in memory or mapped) included, and whether it is cut in tiles (may
 * be NULL). */
int latents_forecast(struct latents *l, bool encode, size_t height, size_t width, size_t *bytes, bool *tiled, struct err *err);

/* moments [n, h/f, w/f, 2 channels]: mean and logarithm of the variance of the VAE's own latents, not yet scaled: what is
 * kept when a picture is to be sampled more than once. */
int latents_moments(struct latents *l, const float *pixels, size_t n, size_t height, size_t width, float *moments,
                    struct err *err);

/* latents [count, channels] of moments [count, 2 channels]: (mean + standard deviation * noise) * 0.18215; noise [count,
 * channels] standard normal, NULL: the mean. The logarithm is cut to -30 .. 20, as diffusers does. */
void latents_sample(const struct latents *l, const float *moments, const float *noise, float *latents, size_t count);

/* Both in one. noise: shape of latents, or NULL. */
int latents_encode(struct latents *l, const float *pixels, size_t n, size_t height, size_t width, const float *noise,
                   float *latents, struct err *err);

/* pixels [n, f h, f w, 3] of latents [n, h, w, channels]; values may lie a little outside -1 .. 1. One that is not finite is an
 * error that names the first layer. */
int latents_decode(struct latents *l, const float *latents, size_t n, size_t h, size_t w, float *pixels, struct err *err);

/* Bytes of the weights that were asked for so far: in memory of their own, and mapped. */
void latents_bytes(const struct latents *l, size_t *owned, size_t *mapped);

/* Gives memory back: that of the graph, or that of the weights, too. It comes again when needed. */
void latents_rest(struct latents *l);
void latents_release(struct latents *l);

/* One picture (RGB) to pixels [height, width, 3], and back: clamped, rounded to the nearest level as diffusers does. */
void latents_from_picture(const struct picture *p, float *pixels);
int latents_to_picture(const float *pixels, size_t height, size_t width, struct picture *out, struct err *err);

#endif

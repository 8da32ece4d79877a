/* Prompt weights applied to the text encoder's output, as sd-scripts v0.3.0 does it (gen_img_diffusers.py, 1736-1745). */
#ifndef REF_DIFFUSION_WEIGH_H
#define REF_DIFFUSION_WEIGH_H

#include <stddef.h>

/* Multiplies each row of x [tokens, width] f32 by weight [tokens], then all of x by one number that gives it the mean it had
 * before. tokens counts all chunks of one prompt. Where the new mean is 0 there is no such number: rows stay multiplied. */
void weigh(float *x, const float *weight, size_t tokens, size_t width);

#endif

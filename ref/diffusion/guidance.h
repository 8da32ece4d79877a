/* Classifier-free guidance (Ho and Salimans 2022): the prediction for the prompt, moved further away from another one. f32 and
 * in torch's order of operations, so that the bits are those of a pipeline in torch. out [n] may be any of the inputs [n]. */
#ifndef REF_DIFFUSION_GUIDANCE_H
#define REF_DIFFUSION_GUIDANCE_H

#include <stddef.h>

/* out = other + scale (prompt - other); other is the prediction for the negative prompt, or for the empty one. */
void guidance(float *out, const float *prompt, const float *other, float scale, size_t n);

/* sd-scripts' negative_scale, with three predictions: towards the prompt and away from the negative prompt, each by its own
 * scale, both seen from the empty one: out = empty + scale (prompt - empty) - negative_scale (negative - empty). */
void guidance_negative(float *out, const float *prompt, const float *negative, const float *empty, float scale,
                       float negative_scale, size_t n);

#endif

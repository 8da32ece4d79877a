#include "ref/diffusion/guidance.h"

void guidance(float *out, const float *prompt, const float *other, float scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = other[i] + scale * (prompt[i] - other[i]);
}

void guidance_negative(float *out, const float *prompt, const float *negative, const float *empty, float scale,
                       float negative_scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = empty[i] + scale * (prompt[i] - empty[i]) - negative_scale * (negative[i] - empty[i]);
}

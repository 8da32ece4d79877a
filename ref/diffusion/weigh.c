#include "ref/diffusion/weigh.h"

#include <math.h>

static double sum(const float *x, size_t n)
{
    double s = 0;

    for (size_t i = 0; i < n; i++)
        s += (double)x[i];
    return s;
}

void weigh(float *x, const float *weight, size_t tokens, size_t width)
{
    double before = sum(x, tokens * width), ratio;

    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < width; i++)
            x[t * width + i] *= weight[t];
    ratio = before / sum(x, tokens * width);
    if (!isfinite(ratio))
        return;
    for (size_t i = 0; i < tokens * width; i++)
        x[i] *= (float)ratio;
}

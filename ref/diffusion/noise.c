#include "ref/diffusion/noise.h"

#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

int noise_begin(struct noise *s, enum noise_device device, uint64_t seed, size_t channels, size_t height, size_t width,
                struct err *err)
{
    size_t elements, bytes;

    memset(s, 0, sizeof *s);
    if (!mem_mul(height, width, &elements) || !mem_mul(elements, channels, &elements) ||
        !mem_mul(elements, sizeof(float), &bytes))
        return err_memory(err, ~0ull, "a picture's noise");
    s->plane = mem_new(bytes, "a picture's noise", err);
    if (!s->plane)
        return -1;
    s->device = device;
    s->seed = seed;
    s->channels = channels;
    s->height = height;
    s->width = width;
    rng_seed(&s->rng, seed);
    return 0;
}

void noise_end(struct noise *s)
{
    free(s->plane);
    s->plane = NULL;
}

static void draw(struct noise *s)
{
    size_t n = s->channels * s->height * s->width;

    if (s->device == NOISE_CUDA)
        rng_philox_normal(s->seed, s->next, s->plane, n);
    else
        rng_normal(&s->rng, s->plane, n);
    s->next++;
}

void noise_seek(struct noise *s, uint64_t number)
{
    if (s->device == NOISE_CUDA) {
        s->next = number;
        return;
    }
    if (number < s->next) {
        rng_seed(&s->rng, s->seed);
        s->next = 0;
    }
    while (s->next < number)
        draw(s);
}

void noise_next(struct noise *s, float *x)
{
    size_t pixels = s->height * s->width;

    draw(s);
    for (size_t i = 0; i < pixels; i++)
        for (size_t c = 0; c < s->channels; c++)
            x[i * s->channels + c] = s->plane[c * pixels + i];
}

#include "ref/diffusion/colours.h"

#include <lapacke.h>
#include <stdlib.h>

#include "ref/base/mem.h"

int colours_fit(struct colours *c, const float *latents, const float *rgb, size_t n, size_t channels, struct err *err)
{
    size_t width = channels + 1;
    float *a = NULL, *b = NULL, size[COLOURS_MOST_CHANNELS + 1];
    lapack_int rank = 0, info = -1;

    if (channels > COLOURS_MOST_CHANNELS || n < width)
        return err_set(err, "cannot show latents of %zu channels from %zu examples", channels, n);
    a = mem_new(n * width * sizeof *a, "a preview", err);
    b = mem_new(n * 3 * sizeof *b, "a preview", err);
    for (size_t i = 0; a && b && i < n; i++) {
        for (size_t k = 0; k < channels; k++)
            a[i * width + k] = latents[i * channels + k];
        a[i * width + channels] = 1;
        for (size_t k = 0; k < 3; k++)
            b[i * 3 + k] = rgb[i * 3 + k];
    }
    if (a && b)
        info = LAPACKE_sgelsd(LAPACK_ROW_MAJOR, (lapack_int)n, (lapack_int)width, 3, a, (lapack_int)width, b, 3, size, 1e-5f,
                              &rank);
    c->channels = channels;
    for (size_t k = 0; info == 0 && k < width; k++)
        for (size_t j = 0; j < 3; j++)
            c->weight[k][j] = b[k * 3 + j];
    free(a);
    free(b);
    if (err->kind == ERR_NONE && (info != 0 || (size_t)rank < width))
        return err_set(err, "cannot fit colours to latents: they say too little (rank %d of %zu)", (int)rank, width);
    return info == 0 ? 0 : -1;
}

void colours_of(const struct colours *c, const float *latents, float *rgb, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < 3; j++) {
            float sum = c->weight[c->channels][j];

            for (size_t k = 0; k < c->channels; k++)
                sum += c->weight[k][j] * latents[i * c->channels + k];
            rgb[i * 3 + j] = sum;
        }
}

/* The picture in the terminal while it forms, and when it is done. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cmd/generate/generate.h"
#include "formats/picture_resize.h"
#include "formats/picture_terminal.h"
#include "ref/diffusion/colours.h"

enum { COLUMNS = 40, SIDE = 16 }; /* of the picture on the screen; of the latents that colours are fitted to */

const char *const preview_kinds[] = {"none", "auto", "kitty", "iterm", "sixel", "blocks", NULL};

struct preview {
    enum picture_terminal terminal;
    struct generate_pipe *pipe;
    struct colours colours;
    bool known;   /* colours are fitted */
    size_t lines; /* of the picture on the screen that the next one replaces; 0: none */
    double next;  /* time from which the next one may be shown */
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int preview_open(struct preview **out, enum preview_kind kind, struct generate_pipe *pipe, struct err *err)
{
    enum picture_terminal t = kind == PREVIEW_AUTO   ? picture_terminal_guess(getenv)
                              : kind == PREVIEW_NONE ? TERMINAL_NONE
                                                     : (enum picture_terminal)(kind - PREVIEW_KITTY + TERMINAL_KITTY);

    *out = NULL;
    if (t == TERMINAL_NONE || (kind == PREVIEW_AUTO && !isatty(STDERR_FILENO)))
        return 0;
    *out = mem_zero(1, sizeof **out, "a preview", err);
    if (!*out)
        return -1;
    (*out)->terminal = t;
    (*out)->pipe = pipe;
    return 0;
}

void preview_close(struct preview *p)
{
    free(p);
}

/* Examples to fit to: squares of 2 x 2 latents of random values, and the mean colours that the VAE gives their pixels. */
static int fit(struct preview *p, struct err *err)
{
    size_t c = p->pipe->channels, f = p->pipe->factor, n = SIDE * SIDE, wide = SIDE * f;
    float *latents = mem_new(n * c * sizeof *latents, "a preview", err), *rgb = mem_zero(n * 3, sizeof *rgb, "a preview", err);
    float *pixels = mem_new(wide * wide * 3 * sizeof *pixels, "a preview", err),
          *few = mem_new(n / 4 * c * sizeof *few, "a preview", err);
    struct rng rng;
    int rc = latents && rgb && pixels && few ? 0 : -1;

    if (rc == 0) {
        rng_seed(&rng, 1);
        rng_normal(&rng, few, n / 4 * c);
        for (size_t i = 0; i < n; i++)
            memcpy(latents + i * c, few + (i / SIDE / 2 * (SIDE / 2) + i % SIDE / 2) * c, c * sizeof *few);
        rc = latents_decode(p->pipe->latents, latents, 1, SIDE, SIDE, pixels, err);
        latents_rest(p->pipe->latents);
    }
    for (size_t i = 0; rc == 0 && i < wide * wide * 3; i++)
        rgb[(i / 3 / wide / f * SIDE + i / 3 % wide / f) * 3 + i % 3] += pixels[i] / (float)(f * f);
    if (rc == 0)
        rc = colours_fit(&p->colours, latents, rgb, n, c, err);
    free(latents);
    free(rgb);
    free(pixels);
    free(few);
    return rc;
}

/* Replaces the picture on the screen. A preview that fails is left out: it must not cost the picture. */
static void show(struct preview *p, struct picture *pic)
{
    size_t w = p->terminal == TERMINAL_BLOCKS ? COLUMNS
               : pic->width < 320             ? pic->width
                                              : 320,
           h = pic->height * w / pic->width, lines;
    struct err err = {0};
    char *text, *all, up[32] = "";

    if (!h || picture_resize(pic, w, h, PICTURE_BICUBIC, &err) ||
        picture_terminal_text(p->terminal, pic, COLUMNS, &text, &lines, &err))
        return;
    if (p->lines)
        snprintf(up, sizeof up, "\033[%zuA\r", p->lines);
    all = mem_new(strlen(up) + strlen(text) + 1, "a preview", &err);
    if (all) {
        memcpy(all, up, strlen(up));
        memcpy(all + strlen(up), text, strlen(text) + 1);
        progress_line(all);
        p->lines = lines;
    }
    free(all);
    free(text);
}

void preview_latents(struct preview *p, const float *latents, size_t h, size_t w)
{
    struct err err = {0};
    struct picture pic;
    float *rgb;

    if (!p || now() < p->next)
        return;
    if (!p->known && fit(p, &err))
        p->next = 1e300; /* never again */
    p->known = true;
    rgb = now() < p->next ? NULL : mem_new(h * w * 3 * sizeof *rgb, "a preview", &err);
    if (!rgb)
        return;
    colours_of(&p->colours, latents, rgb, h * w);
    if (latents_to_picture(rgb, h, w, &pic, &err) == 0) {
        show(p, &pic);
        picture_free(&pic);
    }
    free(rgb);
    p->next = now() + 0.2;
}

void preview_picture(struct preview *p, const struct picture *pic)
{
    struct err err = {0};
    struct picture copy;

    if (!p)
        return;
    if (picture_new(&copy, pic->width, pic->height, 3, &err) == 0) {
        memcpy(copy.data, pic->data, pic->width * pic->height * 3);
        show(p, &copy);
        picture_free(&copy);
    }
    p->lines = 0; /* it stays */
    p->next = p->next < 1e300 ? 0 : p->next;
}

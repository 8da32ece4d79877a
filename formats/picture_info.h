/* How a picture was made, as texts to travel inside it: sd-scripts v0.3.0's keys (gen_img_diffusers.py, lines 2277-2288), and
 * the one text "parameters" that web UIs write and read. */
#ifndef FORMATS_PICTURE_INFO_H
#define FORMATS_PICTURE_INFO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "formats/picture.h"

/* Strings are borrowed, UTF-8; NULL where there is none. */
struct picture_info {
    const char *prompt;        /* as the person wrote it, with its brackets */
    const char *negative;      /* "" for none */
    const char *clip_prompt;   /* for CLIP guidance, or NULL */
    const char *sampler;       /* our name for it */
    const char *sampler_title; /* that of web UIs */
    const char *model;         /* name of the checkpoint's file without folder and ending, or NULL */
    const char *model_hash;    /* first 10 digits of its SHA-256, or NULL */
    uint64_t seed;
    size_t steps, width, height;
    double scale;
    bool has_negative_scale;
    double negative_scale;
    bool has_strength; /* img2img */
    double strength;
    unsigned clip_skip; /* 0 where not set */
};

struct picture_texts {
    struct picture_text *text;
    size_t count;
};

/* Writes info out as texts. Returns 0 or -1 (memory); out is to be given to picture_texts_free() after 0. */
int picture_info_texts(struct picture_texts *out, const struct picture_info *info, struct err *err);
void picture_texts_free(struct picture_texts *t);

/* x in the fewest digits that read back as x, always with a point or an exponent: Python's repr of a float. x is finite;
 * buf has room for 32 bytes. Returns buf. */
const char *picture_info_number(double x, char buf[32]);

#endif

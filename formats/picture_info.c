#include "formats/picture_info.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

const char *picture_info_number(double x, char buf[32])
{
    int digits = 1, exponent;

    do
        snprintf(buf, 32, "%.*e", digits - 1, x);
    while (strtod(buf, NULL) != x && ++digits <= 17);
    exponent = atoi(strchr(buf, 'e') + 1);
    if (exponent >= -4 && exponent < 16)
        snprintf(buf, 32, "%.*f", digits - 1 - exponent > 1 ? digits - 1 - exponent : 1, x);
    return buf;
}

/* The settings of "parameters" are one line after the prompts: "Name: value, ...". */
static char *parameters(const struct picture_info *i, struct err *err)
{
    struct arena a = {0};
    char scale[32], strength[32], *tail, *text, *copy = NULL;

    tail = arena_printf(&a, err, "%s%s%s%s", i->model_hash ? ", Model hash: " : "", i->model_hash ? i->model_hash : "",
                        i->model ? ", Model: " : "", i->model ? i->model : "");
    if (tail && i->has_strength)
        tail = arena_printf(&a, err, "%s, Denoising strength: %s", tail, picture_info_number(i->strength, strength));
    if (tail && i->clip_skip)
        tail = arena_printf(&a, err, "%s, Clip skip: %u", tail, i->clip_skip);
    if (tail) {
        text =
            arena_printf(&a, err, "%s%s%s\nSteps: %zu, Sampler: %s, CFG scale: %s, Seed: %" PRIu64 ", Size: %zux%zu%s",
                         i->prompt, i->negative && *i->negative ? "\nNegative prompt: " : "", i->negative ? i->negative : "",
                         i->steps, i->sampler_title, picture_info_number(i->scale, scale), i->seed, i->width, i->height, tail);
        if (text)
            copy = mem_str(text, err);
    }
    arena_free(&a);
    return copy;
}

static int add(struct picture_texts *t, const char *key, char *value, struct err *err)
{
    t->text[t->count].value = value;
    t->text[t->count].key = value ? mem_str(key, err) : NULL;
    if (!t->text[t->count].key) {
        free(value);
        return -1;
    }
    t->count++;
    return 0;
}

static int add_string(struct picture_texts *t, const char *key, const char *value, struct err *err)
{
    return value ? add(t, key, mem_str(value, err), err) : 0;
}

static int add_integer(struct picture_texts *t, const char *key, uint64_t value, struct err *err)
{
    char buf[32];

    snprintf(buf, sizeof buf, "%" PRIu64, value);
    return add_string(t, key, buf, err);
}

static int add_number(struct picture_texts *t, const char *key, double value, struct err *err)
{
    char buf[32];

    return add_string(t, key, picture_info_number(value, buf), err);
}

int picture_info_texts(struct picture_texts *out, const struct picture_info *i, struct err *err)
{
    enum { MOST = 9 };

    *out = (struct picture_texts){mem_zero(MOST, sizeof *out->text, "texts of a picture", err), 0};
    if (!out->text)
        return -1;
    if (add_string(out, "prompt", i->prompt, err) || add_integer(out, "seed", i->seed, err) ||
        add_string(out, "sampler", i->sampler, err) || add_integer(out, "steps", i->steps, err) ||
        add_number(out, "scale", i->scale, err) || add_string(out, "negative-prompt", i->negative, err) ||
        (i->has_negative_scale && add_number(out, "negative-scale", i->negative_scale, err)) ||
        add_string(out, "clip-prompt", i->clip_prompt, err) || add(out, "parameters", parameters(i, err), err)) {
        picture_texts_free(out);
        return -1;
    }
    return 0;
}

void picture_texts_free(struct picture_texts *t)
{
    for (size_t i = 0; i < t->count; i++) {
        free(t->text[i].key);
        free(t->text[i].value);
    }
    free(t->text);
    *t = (struct picture_texts){0};
}

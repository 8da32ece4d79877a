#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/generate/generate.h"
#include "formats/picture_resize.h"

/* ---- Stopping ---- */

static volatile sig_atomic_t stop;

/* The second signal is the last: what was there before us removes temporary files and ends the program. */
static struct sigaction before_int, before_term;

static void on_signal(int number)
{
    (void)number;
    stop = 1;
    sigaction(SIGINT, &before_int, NULL);
    sigaction(SIGTERM, &before_term, NULL);
}

void batch_catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, NULL, &before_int);
    sigaction(SIGTERM, NULL, &before_term);
    if (before_int.sa_handler != SIG_IGN)
        sigaction(SIGINT, &a, NULL);
    if (before_term.sa_handler != SIG_IGN)
        sigaction(SIGTERM, &a, NULL);
}

bool batch_stopped(void)
{
    return stop;
}

/* ---- Memory of a batch ---- */

/* Shots [n] of one size and setting on their way. From: pictures [n] to begin with, owned; NULL: none. */
struct batch {
    struct work *w;
    const struct shot *shot;
    size_t n;
    const char *stage;
    struct picture *from;
    const float *context; /* the remembered one */
    float *init, *mask, *extra, *latents;
    uint64_t *seed;
};

static void free_pictures(struct picture *p, size_t n)
{
    for (size_t i = 0; p && i < n; i++)
        picture_free(&p[i]);
    free(p);
}

static void batch_free(struct batch *b)
{
    free_pictures(b->from, b->n);
    free(b->init);
    free(b->mask);
    free(b->extra);
    free(b->latents);
    free(b->seed);
}

static size_t latent_pixels(const struct batch *b)
{
    size_t f = b->w->pipe.factor;

    return b->shot->width / f * (b->shot->height / f);
}

/* ---- What the model is given ---- */

/* What the last batch's texts were and mean: pictures of one prompt come one batch after another. */
struct remembered {
    char *key;
    float *context;
};

/* Texts [n] and the number of chunks in one string, its parts divided by what no prompt contains. */
static char *key_of(const char *const *text, size_t n, size_t chunks, struct err *err)
{
    size_t length = 32;
    char *key, *to;

    for (size_t i = 0; i < n; i++)
        length += strlen(text[i]) + 1;
    key = mem_new(length, "prompts", err);
    if (!key)
        return NULL;
    to = key + snprintf(key, 32, "%zu\n", chunks);
    for (size_t i = 0; i < n; i++)
        to += sprintf(to, "%s\n", text[i]);
    return key;
}

void batch_forget(struct work *w)
{
    if (w->remembered) {
        free(w->remembered->key);
        free(w->remembered->context);
    }
    free(w->remembered);
    w->remembered = NULL;
}

/* context = what texts [n] mean, from the last batch where they are the same. */
static int look_up(struct batch *b, const char *const *text, size_t n, struct err *err)
{
    struct remembered *r = b->w->remembered;
    char *key = key_of(text, n, b->shot->chunks, err);

    if (!key)
        return -1;
    if (!r || strcmp(r->key, key) != 0) {
        batch_forget(b->w);
        r = mem_zero(1, sizeof *r, "prompts", err);
        if (!r || generate_pipe_encode(&b->w->pipe, text, n, b->shot->chunks, &r->context, err)) {
            free(r);
            free(key);
            return -1;
        }
        r->key = key;
        b->w->remembered = r;
    } else {
        free(key);
    }
    b->context = r->context;
    return 0;
}

/* Prompts, negative prompts, empty ones. */
static int encode_texts(struct batch *b, struct err *err)
{
    const char **text = mem_zero(b->n * b->shot->rows, sizeof *text, "prompts", err);
    int rc;

    if (!text)
        return -1;
    for (size_t i = 0; i < b->n; i++) {
        const struct prompt_line *p = b->shot[i].prompt;
        const char *of[3] = {p->text, p->negative, ""};

        for (size_t row = 0; row < b->shot->rows; row++)
            text[row * b->n + i] = of[row];
    }
    rc = look_up(b, text, b->n * b->shot->rows, err);
    free(text);
    return rc;
}

/* The pictures to begin with: those of the sources, unless there are some already (of a first stage). */
static int read_sources(struct batch *b, struct err *err)
{
    if (b->from || !b->shot->source)
        return 0;
    b->from = mem_zero(b->n, sizeof *b->from, "pictures", err);
    if (!b->from)
        return -1;
    for (size_t i = 0; i < b->n; i++)
        if (source_picture(b->shot[i].source, b->shot->width, b->shot->height, &b->from[i], err))
            return -1;
    return 0;
}

/* Latents that the way begins with. An inpainting model at full strength begins with noise, as it was trained to. */
static int encode_sources(struct batch *b, struct err *err)
{
    size_t n = latent_pixels(b) * b->w->pipe.channels;

    if (!b->from || (b->w->pipe.inpainting && b->shot->strength >= 1))
        return 0;
    b->init = mem_new(b->n * n * sizeof *b->init, "latents", err);
    if (!b->init)
        return -1;
    for (size_t i = 0; i < b->n; i++)
        if (generate_pipe_picture(&b->w->pipe, &b->from[i], b->w->kind, b->shot->steps, b->seed[i], b->init + i * n, err))
            return -1;
    return 0;
}

/* What is to be repainted, smoothly: for models that know nothing of masks. The mask is scaled first to the picture's size,
 * made grey, then scaled to the latents': the steps of sd-scripts, whose roundings decide. */
static int read_masks(struct batch *b, struct err *err)
{
    size_t pixels = latent_pixels(b), f = b->w->pipe.factor;

    if (!b->shot->mask || b->w->pipe.inpainting)
        return 0;
    b->mask = mem_new(b->n * pixels * sizeof *b->mask, "masks", err);
    if (!b->mask)
        return -1;
    for (size_t i = 0; i < b->n; i++) {
        const struct shot *s = &b->shot[i];
        struct picture p;

        if (source_grey(s->mask, s->width, s->height, &p, err))
            return -1;
        if (picture_resize(&p, s->width / f, s->height / f, PICTURE_LANCZOS, err)) {
            picture_free(&p);
            return -1;
        }
        for (size_t k = 0; k < pixels; k++)
            b->mask[i * pixels + k] = (float)p.data[k] / 255;
        picture_free(&p);
    }
    return 0;
}

/* Pixels [h, w, 3] of the picture, black (0 of -1 .. 1) where the mask is white, and mask [h / f, w / f] of 0 and 1. Without a
 * picture all is repainted, without a mask, too. */
static int cut_out(struct batch *b, size_t i, float *pixels, float *mask, struct err *err)
{
    const struct shot *s = &b->shot[i];
    size_t f = b->w->pipe.factor, w = s->width / f, h = s->height / f;
    struct picture grey = {0};

    memset(pixels, 0, s->width * s->height * 3 * sizeof *pixels);
    for (size_t k = 0; k < w * h; k++)
        mask[k] = 1;
    if (!b->from || !s->mask)
        return 0;
    if (source_grey(s->mask, s->width, s->height, &grey, err))
        return -1;
    latents_from_picture(&b->from[i], pixels);
    for (size_t k = 0; k < s->width * s->height; k++)
        if (grey.data[k] >= 128)
            memset(pixels + 3 * k, 0, 3 * sizeof *pixels);
    for (size_t y = 0; y < h; y++)
        for (size_t x = 0; x < w; x++)
            mask[y * w + x] = grey.data[y * f * s->width + x * f] >= 128;
    picture_free(&grey);
    return 0;
}

/* Mask and masked picture for U-Nets that take them. */
static int encode_extra(struct batch *b, struct err *err)
{
    size_t pixels = latent_pixels(b), c = b->w->pipe.channels, h = b->shot->height, w = b->shot->width;
    float *picture, *mask, *latents;
    int rc = 0;

    if (!b->w->pipe.inpainting)
        return 0;
    b->extra = mem_new(b->n * pixels * (c + 1) * sizeof *b->extra, "masks", err);
    picture = mem_new((h * w * 3 + pixels * (c + 1)) * sizeof *picture, "a masked picture", err);
    mask = picture ? picture + h * w * 3 : NULL;
    latents = picture ? mask + pixels : NULL;
    if (!b->extra || !picture)
        rc = -1;
    for (size_t i = 0; rc == 0 && i < b->n; i++) {
        float *to = b->extra + i * pixels * (c + 1);

        rc = cut_out(b, i, picture, mask, err) ? -1 : latents_encode(b->w->pipe.latents, picture, 1, h, w, NULL, latents, err);
        for (size_t k = 0; rc == 0 && k < pixels; k++) {
            to[k * (c + 1)] = mask[k];
            memcpy(to + k * (c + 1) + 1, latents + k * c, c * sizeof *to);
        }
    }
    free(picture);
    return rc;
}

/* ---- From noise to pictures ---- */

static int on_step(void *ctx, size_t done, const float *clean)
{
    const struct batch *b = ctx;
    size_t f = b->w->pipe.factor;

    if (done > 0)
        progress_step(b->w->progress, b->n);
    if (clean)
        preview_latents(b->w->preview, clean, b->shot->height / f, b->shot->width / f);
    return stop;
}

static int sample(struct batch *b, struct err *err)
{
    const struct shot *s = b->shot;
    struct generate_job job = {.kind = b->w->kind,
                               .count = b->n,
                               .width = s->width,
                               .height = s->height,
                               .steps = s->steps,
                               .scale = s->scale,
                               .negative_scale = s->negative_scale,
                               .seed = b->seed,
                               .context = b->context,
                               .rows = s->rows,
                               .tokens = s->chunks * TOKEN_CHUNK,
                               .init = b->init,
                               .strength = s->strength,
                               .mask = b->mask,
                               .extra = b->extra,
                               .want_clean = b->w->preview != NULL,
                               .step = on_step,
                               .ctx = b};

    return generate_pipe_sample(&b->w->pipe, &job, &b->latents, err);
}

/* pictures [n], which the caller gives to free_pictures(), also after an error. */
static int decode(struct batch *b, struct picture **pictures, bool write, struct err *err)
{
    size_t n = latent_pixels(b) * b->w->pipe.channels;

    *pictures = mem_zero(b->n, sizeof **pictures, "pictures", err);
    if (!*pictures)
        return -1;
    for (size_t i = 0; i < b->n; i++) {
        const struct shot *s = &b->shot[i];

        if (generate_pipe_decode(&b->w->pipe, b->latents + i * n, s->width, s->height, &(*pictures)[i], err))
            return -1;
        if (write && write_picture(b->w, s, &(*pictures)[i], b->stage, err))
            return -1;
    }
    return 0;
}

static int make_batch(struct batch *b, struct picture **pictures, bool write, struct err *err)
{
    *pictures = NULL;
    b->seed = mem_new(b->n * sizeof *b->seed, "seeds", err);
    if (!b->seed)
        return -1;
    for (size_t i = 0; i < b->n; i++)
        b->seed[i] = b->shot[i].seed + (b->stage[0] == '1');
    if (loras_use(b->w, b->shot->prompt, err) || encode_texts(b, err) || read_sources(b, err) || encode_sources(b, err) ||
        read_masks(b, err) || encode_extra(b, err) || sample(b, err))
        return -1;
    return decode(b, pictures, write, err);
}

/* The first stage of highres fix: small pictures, scaled up to [n] *from. */
static int first_stage(struct work *w, const struct shot *shot, size_t n, struct picture **from, struct err *err)
{
    struct shot *small = mem_new(n * sizeof *small, "shots", err);
    struct batch b = {.w = w, .shot = small, .n = n, .stage = "0"};
    int rc = small ? 0 : -1;

    for (size_t i = 0; rc == 0 && i < n; i++) {
        small[i] = shot[i];
        small[i].steps = w->o->highres_fix_steps;
        ask_first_stage(w, &shot[i], &small[i].width, &small[i].height);
    }
    if (rc == 0)
        rc = make_batch(&b, from, w->o->highres_fix_save_1st, err);
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = picture_resize(&(*from)[i], shot->width, shot->height, PICTURE_LANCZOS, err);
    b.from = NULL;
    batch_free(&b);
    free(small);
    return rc;
}

static int make(struct work *w, const struct shot *shot, size_t n, struct err *err)
{
    bool highres = option_given(w->run->values, &w->o->highres_fix_scale);
    struct batch b = {.w = w, .shot = shot, .n = n, .stage = highres ? "1" : ""};
    struct picture *pictures = NULL;
    int rc;

    if (w->total > 1)
        progress_info(w->progress, "picture %zu of %zu", w->made + n, w->total);
    rc = highres ? first_stage(w, shot, n, &b.from, err) : 0;

    if (rc == 0)
        rc = make_batch(&b, &pictures, true, err);
    free_pictures(pictures, n);
    batch_free(&b);
    return rc;
}

/* ---- The batch that is being collected ---- */

static bool goes_with(const struct shot *a, const struct shot *b)
{
    return a->width == b->width && a->height == b->height && a->steps == b->steps && a->scale == b->scale &&
           (a->negative_scale == b->negative_scale || (isnan(a->negative_scale) && isnan(b->negative_scale))) &&
           a->strength == b->strength && a->rows == b->rows && a->chunks == b->chunks && !a->source == !b->source &&
           !a->mask == !b->mask && loras_same(a->prompt, b->prompt);
}

int batch_flush(struct work *w, struct err *err)
{
    size_t n = w->in_batch;

    w->in_batch = 0;
    if (stop)
        return err_set(err, GENERATE_STOPPED);
    return n ? make(w, w->batch, n, err) : 0;
}

int batch_add(struct work *w, const struct shot *s, struct err *err)
{
    if (w->in_batch && !goes_with(&w->batch[0], s) && batch_flush(w, err))
        return -1;
    w->batch[w->in_batch++] = *s;
    return w->in_batch == w->o->batch_size ? batch_flush(w, err) : 0;
}

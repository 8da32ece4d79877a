/* Latents: read from .npz files, kept beside the pictures, or made by the VAE once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/progress.h"
#include "cmd/train/dataset_inside.h"
#include "formats/hash.h"
#include "formats/npz.h"
#include "ref/base/thread.h"

enum { KEY = SHA256_TEXT - 1 };

struct cache {
    struct dataset *d;
    const struct command_run *run;
    dataset_encode *encode;
    void *ctx;
    const char *vae_hash;
    struct progress *progress;
    size_t *pending; /* pictures of one bucket that wait for the VAE: [vae_batch_size] */
    size_t n;
    bool told; /* that files cannot be written */
    bool dropped;
    dataset_keep *keep; /* takes latents that were just made; NULL: nobody */
    void *keep_ctx;
};

static size_t numbers_of(const struct dataset *d, const struct sample_picture *p)
{
    return p->fit[0] / d->setup.factor * (p->fit[1] / d->setup.factor) * d->setup.channels;
}

/* Between the file's [c, h, w] and the engine's [h, w, c]. */
static void to_last(const float *in, float *out, size_t c, size_t pixels)
{
    for (size_t i = 0; i < pixels; i++)
        for (size_t k = 0; k < c; k++)
            out[i * c + k] = in[k * pixels + i];
}

static void to_first(const float *in, float *out, size_t c, size_t pixels)
{
    for (size_t i = 0; i < pixels; i++)
        for (size_t k = 0; k < c; k++)
            out[k * pixels + i] = in[i * c + k];
}

/* Takes an array of an .npz file as latents of a picture's size. NULL with *problem, or with err when memory is short. */
static float *take_array(const struct dataset *d, const struct sample_picture *p, const struct npz_array *a,
                         const char **problem, struct err *err)
{
    size_t c = d->setup.channels, h = p->fit[1] / d->setup.factor, w = p->fit[0] / d->setup.factor, n = c * h * w;
    float *plain, *out = NULL;

    *problem = NULL;
    if (!a)
        *problem = "there is no array of latents in it";
    else if (!dtype_is_float(a->dtype))
        *problem = "its numbers are no floats";
    else if (a->shape.ndim != 3 || a->shape.dim[0] != c || a->shape.dim[1] != h || a->shape.dim[2] != w)
        *problem = "its latents have another size than the picture's bucket";
    else if (dtype_find_nonfinite(a->data, a->dtype, n) < n)
        *problem = "there are numbers in it that are not finite";
    if (*problem)
        return NULL;
    plain = mem_new(n * sizeof *plain, "latents", err);
    out = plain ? mem_new(n * sizeof *out, "latents", err) : NULL;
    if (out) {
        dtype_convert(plain, DT_F32, a->data, a->dtype, n);
        to_last(plain, out, c, h * w);
    }
    free(plain);
    return out;
}

/* ---- .npz files of the caption method */

static float *read_latents(const struct dataset *d, const struct sample_picture *p, const char *path, struct err *err)
{
    const char *problem;
    struct npz n;
    float *out;

    if (npz_read(&n, path, err))
        return NULL;
    out = take_array(d, p, npz_find(&n, "arr_0") ? npz_find(&n, "arr_0") : npz_find(&n, "latents"), &problem, err);
    npz_free(&n);
    if (problem)
        err_set(err, "cannot use '%s': %s; make it anew with 'lora prepare'", path, problem);
    return out;
}

static int read_npz(const struct dataset *d, struct sample_picture *p, struct err *err)
{
    bool flip = d->subset[p->subset].flip;

    p->latents = read_latents(d, p, p->npz, err);
    if (p->latents && flip)
        p->latents_flipped = read_latents(d, p, p->npz_flipped, err);
    return p->latents && (!flip || p->latents_flipped) ? 0 : -1;
}

/* ---- Files of our own */

/* What the latents depend on, as a hash: picture, crop, VAE. */
static int make_key(const struct sample_picture *p, const char *vae_hash, char key[SHA256_TEXT], struct err *err)
{
    char picture[SHA256_TEXT], text[64];
    struct sha256 h;

    if (hash_file(p->path, picture, err))
        return -1;
    snprintf(text, sizeof text, "latents 1 %zux%zu ", p->fit[0], p->fit[1]);
    sha256_start(&h);
    sha256_add(&h, text, strlen(text));
    sha256_add(&h, picture, KEY);
    sha256_add(&h, vae_hash, strlen(vae_hash));
    sha256_text(&h, key);
    return 0;
}

/* Beside the picture; another size or another VAE has another name, a changed picture the same one. */
static char *cache_path(const struct sample_picture *p, const char *vae_hash, struct err *err)
{
    char vae[SHA256_TEXT], path[8192];
    struct sha256 h;

    sha256_start(&h);
    sha256_add(&h, vae_hash, strlen(vae_hash));
    sha256_text(&h, vae);
    if ((size_t)snprintf(path, sizeof path, "%s.%zux%zu.%.8s.npz", p->path, p->fit[0], p->fit[1], vae) >= sizeof path) {
        err_set(err, "the path of '%s' is too long", p->path);
        return NULL;
    }
    return mem_str(path, err);
}

/* Gives p its latents if the file holds what this key stands for. A file that does not is made anew. */
static void read_cached(const struct dataset *d, struct sample_picture *p, const char *path, const char key[SHA256_TEXT])
{
    struct err ignored = {0};
    const struct npz_array *k;
    const char *problem;
    struct npz n;
    bool flip = d->subset[p->subset].flip;

    if (npz_read(&n, path, &ignored))
        return;
    k = npz_find(&n, "key");
    if (k && k->dtype == DT_U8 && k->shape.ndim == 1 && k->shape.dim[0] == KEY && !memcmp(k->data, key, KEY)) {
        p->latents = take_array(d, p, npz_find(&n, "latents"), &problem, &ignored);
        if (p->latents && flip)
            p->latents_flipped = take_array(d, p, npz_find(&n, "latents_flipped"), &problem, &ignored);
    }
    npz_free(&n);
    if (flip && !p->latents_flipped) {
        free(p->latents);
        p->latents = NULL;
    }
}

/* A folder that cannot be written to costs time the next time, not this training. */
static int write_cached(void *ctx, struct sample_picture *p, struct err *err)
{
    struct cache *c = ctx;
    const struct dataset *d = c->d;
    size_t w = p->fit[0] / d->setup.factor, h = p->fit[1] / d->setup.factor, n = numbers_of(d, p), arrays = 2;
    char key[SHA256_TEXT], *path = cache_path(p, c->vae_hash, err);
    float *first = mem_new(2 * n * sizeof *first, "latents", err);
    struct npz_array a[3] = {{"key", DT_U8, {1, {KEY}}, key},
                             {"latents", DT_F32, {3, {d->setup.channels, h, w}}, first},
                             {"latents_flipped", DT_F32, {3, {d->setup.channels, h, w}}, first + n}};
    struct err why = {0};
    int rc = -1;

    if (!path || !first || make_key(p, c->vae_hash, key, err))
        goto out;
    to_first(p->latents, first, d->setup.channels, h * w);
    if (p->latents_flipped) {
        to_first(p->latents_flipped, first + n, d->setup.channels, h * w);
        arrays = 3;
    }
    if (npz_write(path, a, arrays, &why) && !c->told) {
        command_warn(c->run, "cached latents are not kept: %s", why.msg);
        c->told = true;
    }
    rc = 0;
out:
    free(path);
    free(first);
    return rc;
}

/* ---- The VAE */

/* The noise of a picture's latents follows from what it shows, so that it is the same in every run. */
static int make_seed(const struct sample_picture *p, bool flipped, uint64_t *seed, struct err *err)
{
    char key[SHA256_TEXT], head[17];

    if (make_key(p, flipped ? "noise, mirrored" : "noise", key, err))
        return -1;
    snprintf(head, sizeof head, "%.16s", key);
    *seed = strtoull(head, NULL, 16);
    return 0;
}

/* pixels [n, h, w, 3] of the pending pictures; those that cannot be read are dropped when --skip_bad_pictures allows it. */
static int load_pending(struct cache *c, float *pixels, size_t each, struct err *err)
{
    struct dataset *d = c->d;
    size_t kept = 0;

    for (size_t i = 0; i < c->n; i++) {
        struct picture p;
        struct err why = {0};
        bool flipped;

        if (dataset_load(d, c->pending[i], 0, 0, false, &p, NULL, &flipped, &why)) {
            if (!d->o.skip_bad_pictures) {
                *err = why;
                return -1;
            }
            command_warn(c->run, "%s; left out", why.msg);
            c->dropped = true;
            continue;
        }
        dataset_to_floats(&p, pixels + kept * each);
        picture_free(&p);
        c->pending[kept++] = c->pending[i];
    }
    c->n = kept;
    return 0;
}

static void mirror_rows(float *pixels, size_t rows, size_t w)
{
    for (size_t y = 0; y < rows; y++)
        for (size_t x = 0; x < w / 2; x++)
            for (size_t k = 0; k < 3; k++) {
                float *a = pixels + (y * w + x) * 3 + k, *b = pixels + (y * w + w - 1 - x) * 3 + k, swap = *a;

                *a = *b;
                *b = swap;
            }
}

/* Encodes the pending pictures and hands the latents out. */
static int encode_pending(struct cache *c, const float *pixels, size_t w, size_t h, bool flipped, struct err *err)
{
    struct dataset *d = c->d;
    size_t each = w / d->setup.factor * (h / d->setup.factor) * d->setup.channels;
    float *latents = mem_new(c->n * each * sizeof *latents, "latents", err);
    uint64_t *seed = latents ? mem_zero(c->n, sizeof *seed, "seeds", err) : NULL;
    int rc = seed ? 0 : -1;

    for (size_t i = 0; i < c->n && !rc; i++)
        rc = make_seed(&d->picture[c->pending[i]], flipped, &seed[i], err);
    if (!rc)
        rc = c->encode(c->ctx, pixels, c->n, h, w, seed, latents, err);
    for (size_t i = 0; i < c->n && !rc; i++) {
        struct sample_picture *p = &d->picture[c->pending[i]];
        float **to = flipped ? &p->latents_flipped : &p->latents;

        if (dtype_find_nonfinite(latents + i * each, DT_F32, each) < each)
            rc = err_set(err, "the VAE makes numbers that are not finite of '%s'; try another one with --vae", p->key);
        else if (!(*to = mem_new(each * sizeof **to, "latents", err)))
            rc = -1;
        else
            memcpy(*to, latents + i * each, each * sizeof **to);
    }
    free(latents);
    free(seed);
    return rc;
}

static int flush(struct cache *c, struct err *err)
{
    struct dataset *d = c->d;
    size_t w, h, each, n = c->n;
    float *pixels;
    int rc = -1;

    if (!n)
        return 0;
    w = d->picture[c->pending[0]].fit[0];
    h = d->picture[c->pending[0]].fit[1];
    each = w * h * 3;
    pixels = mem_new(n * each * sizeof *pixels, "pictures for the VAE", err);
    if (!pixels || load_pending(c, pixels, each, err))
        goto out;
    if (c->n && encode_pending(c, pixels, w, h, false, err))
        goto out;
    if (c->n && d->subset[d->picture[c->pending[0]].subset].flip) {
        mirror_rows(pixels, c->n * h, w);
        if (encode_pending(c, pixels, w, h, true, err))
            goto out;
    }
    for (size_t i = 0; i < c->n && c->keep; i++)
        if (c->keep(c->keep_ctx, &d->picture[c->pending[i]], err))
            goto out;
    progress_step(c->progress, n);
    rc = 0;
out:
    c->n = 0;
    free(pixels);
    return rc;
}

/* One picture's latents from a file, if there is a good one: several at a time, since hashing the picture takes longest. */
static int take_file(void *ctx, size_t i, struct err *err)
{
    struct cache *c = ctx;
    struct dataset *d = c->d;
    struct sample_picture *p = &d->picture[i];
    char key[SHA256_TEXT], *path = NULL;
    int rc = 0;

    if (p->npz) {
        rc = read_npz(d, p, err);
    } else if (d->o.cache_latents_to_disk) {
        path = cache_path(p, c->vae_hash, err);
        rc = path ? make_key(p, c->vae_hash, key, err) : -1;
        if (!rc)
            read_cached(d, p, path, key);
    }
    free(path);
    if (p->latents)
        progress_step(c->progress, 1);
    return rc;
}

/* Puts a picture to the pending ones. Those of one call of the VAE are of one subset, whose options they share. */
static int encode_later(struct cache *c, size_t i, struct err *err)
{
    struct dataset *d = c->d;
    const struct sample_picture *p = &d->picture[i], *first = c->n ? &d->picture[c->pending[0]] : p;

    if ((first->subset != p->subset || first->bucket != p->bucket) && flush(c, err))
        return -1;
    c->pending[c->n++] = i;
    return c->n == d->o.vae_batch_size ? flush(c, err) : 0;
}

/* Pictures without latents are those that were dropped. */
static int settle(struct cache *c, struct err *err)
{
    struct dataset *d = c->d;
    size_t kept = 0;

    d->has_latents = true;
    if (!c->dropped)
        return 0;
    for (size_t i = 0; i < d->pictures; i++)
        if (d->picture[i].latents)
            d->picture[kept++] = d->picture[i];
    d->pictures = kept;
    free(d->slot);
    free(d->place);
    d->slot = NULL;
    d->place = NULL;
    d->slots = d->places = 0;
    d->order_epoch = SIZE_MAX;
    return kept ? dataset_make_buckets(d, err) : err_set(err, "no picture can be used; see the warnings above");
}

static int cache_all(struct cache *c, struct err *err)
{
    struct dataset *d = c->d;

    if (thread_for(d->pictures, take_file, c, err))
        return -1;
    for (size_t b = 0; b < d->buckets; b++)
        for (size_t i = 0; i < d->pictures; i++)
            if (d->picture[i].bucket == b && !d->picture[i].latents && encode_later(c, i, err))
                return -1;
    return flush(c, err);
}

int dataset_encode_all(struct dataset *d, const struct command_run *run, dataset_encode *encode, void *ctx, dataset_keep *keep,
                       void *keep_ctx, size_t batch, struct err *err)
{
    struct cache c = {.d = d, .run = run, .encode = encode, .ctx = ctx, .vae_hash = "", .keep = keep, .keep_ctx = keep_ctx};
    int rc;

    d->o.vae_batch_size = batch;
    c.pending = mem_zero(batch, sizeof *c.pending, "a list of pictures", err);
    if (!c.pending)
        return -1;
    c.progress = progress_start(run, "encoding", d->pictures, "pictures");
    rc = cache_all(&c, err);
    progress_end(c.progress);
    free(c.pending);
    return rc;
}

bool dataset_wants_cache(const struct dataset *d)
{
    bool npz = d->pictures > 0;

    for (size_t i = 0; i < d->pictures; i++)
        npz &= d->picture[i].npz != NULL;
    return d->o.cache_latents || d->o.cache_latents_to_disk || npz;
}

int dataset_cache(struct dataset *d, const struct command_run *run, dataset_encode *encode, void *ctx, const char *vae_hash,
                  struct err *err)
{
    struct cache c = {.d = d, .run = run, .encode = encode, .ctx = ctx, .vae_hash = vae_hash};
    size_t most = d->o.vae_batch_size ? d->o.vae_batch_size : 1,
           total = d->pictures + (d->validation ? d->validation->pictures : 0);
    int rc;

    d->o.vae_batch_size = most;
    c.pending = mem_zero(most, sizeof *c.pending, "a list of pictures", err);
    if (!c.pending)
        return -1;
    if (d->o.cache_latents_to_disk) {
        c.keep = write_cached;
        c.keep_ctx = &c;
    }
    c.progress = progress_start(run, "caching latents", total, "pictures");
    rc = cache_all(&c, err) || settle(&c, err) || dataset_load_masks(d, err) ? -1 : 0;
    if (!rc && d->validation) {
        d->validation->o.vae_batch_size = most;
        c.d = d->validation;
        c.dropped = false;
        rc = cache_all(&c, err) || settle(&c, err) || dataset_load_masks(d->validation, err) ? -1 : 0;
    }
    progress_end(c.progress);
    free(c.pending);
    return rc;
}

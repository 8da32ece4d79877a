/* Metadata files of the caption method: an object with one object a picture, as merge_captions_to_metadata and its neighbours
 * (lora prepare) write them: {"KEY": {"caption": "..", "tags": "..", "train_resolution": [width, height]}, ..}. KEY is a path,
 * or the name of a picture in the folder without its ending. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/train/dataset_inside.h"

static bool is_file(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static bool texts_are_texts(const json_t *one, const char **wrong)
{
    static const char *const names[] = {"caption", "tags"};

    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(one, names[i]);

        *wrong = names[i];
        if (v && !json_is_string(v) && !json_is_null(v))
            return false;
    }
    return true;
}

json_t *dataset_read_metadata(const char *path, struct err *err)
{
    json_error_t e;
    const char *key, *wrong;
    json_t *all, *one;

    if (!is_file(path)) {
        err_set(err, "cannot read '%s': there is no such file; 'lora prepare FOLDER --out %s' makes one", path, path);
        return NULL;
    }
    all = json_load_file(path, JSON_REJECT_DUPLICATES, &e);
    if (!all) {
        err_set(err, "cannot read '%s': line %d: %s; correct it, or make it anew with 'lora prepare'", path, e.line, e.text);
        return NULL;
    }
    if (!json_is_object(all)) {
        err_set(err, "cannot read '%s': it is no metadata file: there is no object with one entry a picture in it", path);
        json_decref(all);
        return NULL;
    }
    json_object_foreach(all, key, one)
    {
        if (json_is_object(one) && texts_are_texts(one, &wrong))
            continue;
        if (json_is_object(one))
            err_set(err, "cannot read '%s': '%s' of picture '%s' is no text; put it in quotes", path, wrong, key);
        else
            err_set(err, "cannot read '%s': the entry of picture '%s' is no object such as {\"caption\": \"..\"}", path, key);
        json_decref(all);
        return NULL;
    }
    return all;
}

/* caption, tags, or both. NULL without memory; "" when there is neither. */
static const char *join_texts(struct dataset *d, const json_t *one, struct err *err)
{
    const char *caption = json_string_value(json_object_get(one, "caption")),
               *tags = json_string_value(json_object_get(one, "tags"));

    if (caption && tags && *tags)
        return arena_printf(&d->arena, err, "%s, %s", caption, tags);
    return arena_str(&d->arena, caption ? caption : tags ? tags : "", err);
}

/* *path = the picture of a key, or NULL when there is none. */
static int find_picture(struct dataset *d, const struct subset *s, const char *key, const char **path, struct err *err)
{
    static const char *const endings[] = {"",      ".png",  ".jpg", ".jpeg", ".webp", ".bmp",  ".PNG",  ".JPG",
                                          ".JPEG", ".WEBP", ".BMP", ".Png",  ".Jpg",  ".Jpeg", ".Webp", ".Bmp"};

    *path = arena_str(&d->arena, key, err);
    if (!*path)
        return -1;
    if (is_file(*path))
        return 0;
    for (size_t i = 0; s->dir && i < sizeof endings / sizeof endings[0]; i++) {
        *path = arena_printf(&d->arena, err, "%s/%s%s", s->dir, key, endings[i]);
        if (!*path)
            return -1;
        if (is_file(*path))
            return 0;
    }
    *path = NULL;
    return 0;
}

/* The files of latents: beside a picture whose key is a path, else in the folder. */
static int find_latents(struct dataset *d, const struct subset *s, struct sample_picture *p, struct err *err)
{
    const char *dot = strrchr(p->key, '.'), *slash = strrchr(p->key, '/');
    size_t n = dot && (!slash || dot > slash) ? (size_t)(dot - p->key) : strlen(p->key);
    char *path = arena_printf(&d->arena, err, "%.*s.npz", (int)n, p->key), *flipped;

    if (path && !is_file(path) && s->dir) {
        path = arena_printf(&d->arena, err, "%s/%s.npz", s->dir, p->key);
        n = path ? strlen(path) - 4 : 0;
    }
    if (!path)
        return -1;
    if (!is_file(path))
        return 0;
    p->npz = path;
    flipped = arena_printf(&d->arena, err, "%.*s_flip.npz", (int)n, path);
    if (!flipped)
        return -1;
    p->npz_flipped = is_file(flipped) ? flipped : NULL;
    return 0;
}

/* *known: the entry has a train_resolution, which becomes the size. */
static bool take_resolution(const json_t *one, size_t size[2], bool *known)
{
    const json_t *r = json_object_get(one, "train_resolution");

    *known = false;
    if (!r || json_is_null(r))
        return true;
    for (size_t i = 0; i < 2; i++) {
        json_int_t v = json_integer_value(json_array_get(r, i));

        if (json_array_size(r) != 2 || v < 1 || v > PICTURE_MOST_SIDE)
            return false;
        size[i] = (size_t)v;
    }
    *known = true;
    return true;
}

static int add_entry(struct dataset *d, size_t subset, const char *key, const json_t *one, bool *all_known, struct err *err)
{
    const struct subset *s = &d->subset[subset];
    struct sample_picture p = {.subset = subset, .repeats = s->repeats};
    bool known;

    p.key = arena_str(&d->arena, key, err);
    p.caption = p.key ? join_texts(d, one, err) : NULL;
    if (!p.caption || find_picture(d, s, key, &p.path, err))
        return -1;
    if (!s->color && find_latents(d, s, &p, err))
        return -1;
    if (!*p.caption)
        return dataset_find(d, FINDING_CAPTION_NONE, p.key, NULL, err);
    if (!take_resolution(one, p.size, &known))
        return err_set(err, "cannot read '%s': 'train_resolution' of picture '%s' is no pair of numbers such as [512, 768]",
                       s->metadata, key);
    if (!p.path && !(p.npz && known))
        return dataset_find(d, FINDING_MISSING, p.key, NULL, err);
    *all_known &= known;
    return dataset_add_picture(d, &p, err);
}

static bool same_size(const size_t a[2], const size_t b[2])
{
    return a[0] == b[0] && a[1] == b[1];
}

static int by_size(const void *a, const void *b)
{
    const size_t *x = a, *y = b;

    return x[0] != y[0] ? (x[0] < y[0] ? -1 : 1) : x[1] < y[1] ? -1 : x[1] > y[1];
}

/* All pictures have a train_resolution: these are the buckets, whatever the options say. */
static int use_resolutions(struct dataset *d, struct group *g, size_t from, struct err *err)
{
    size_t(*size)[2] = arena_alloc(&d->arena, (d->pictures - from + g->sizes + 1) * sizeof *size, err), n = g->sizes, kept = 0;

    if (!size)
        return -1;
    if (n)
        memcpy(size, g->size, n * sizeof *size);
    for (size_t i = from; i < d->pictures; i++) {
        const size_t *s = d->picture[i].size;

        if (s[0] % d->setup.factor || s[1] % d->setup.factor)
            return err_set(err, "'train_resolution' of picture '%s' is %zu x %zu; sides have to be multiples of %zu",
                           d->picture[i].key, s[0], s[1], d->setup.factor);
        memcpy(size[n++], s, sizeof *size);
    }
    qsort(size, n, sizeof *size, by_size);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || !same_size(size[i], size[kept - 1]))
            memmove(size[kept++], size[i], sizeof *size);
    g->size = size;
    g->sizes = kept;
    g->buckets = true;
    g->no_upscale = false;
    return 0;
}

/* .npz files count only when every picture has one, and with --flip_aug its mirrored one too. */
static int settle_latents(struct dataset *d, const struct subset *s, size_t from, struct err *err)
{
    bool any = false, all = true;

    for (size_t i = from; i < d->pictures; i++) {
        any |= d->picture[i].npz != NULL;
        all &= d->picture[i].npz && (!s->flip || d->picture[i].npz_flipped);
    }
    if (!any || all)
        return 0;
    for (size_t i = from, kept = from, n = d->pictures; i < n; i++) {
        struct sample_picture *p = &d->picture[i];

        if ((!p->npz || (s->flip && !p->npz_flipped)) &&
            dataset_find(d, FINDING_LATENTS_SOME, p->key, p->npz ? "the mirrored one, _flip.npz" : NULL, err))
            return -1;
        p->npz = p->npz_flipped = NULL;
        if (!p->path && dataset_find(d, FINDING_MISSING, p->key, NULL, err))
            return -1;
        if (p->path)
            d->picture[kept++] = *p;
        d->pictures = i + 1 < n ? n : kept;
    }
    return 0;
}

int dataset_scan_metadata(struct dataset *d, size_t subset, struct err *err)
{
    const struct subset *s = &d->subset[subset];
    size_t from = d->pictures;
    json_t *all = dataset_read_metadata(s->metadata, err), *one;
    const char *key;
    bool all_known = true;
    int rc = all ? 0 : -1;

    json_object_foreach(all, key, one) if (!rc) rc = add_entry(d, subset, key, one, &all_known, err);
    json_decref(all);
    if (rc)
        return -1;
    if (d->pictures > from && all_known && use_resolutions(d, &d->group[s->group], from, err))
        return -1;
    return settle_latents(d, s, from, err);
}

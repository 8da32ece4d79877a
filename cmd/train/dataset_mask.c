/* Masks of the loss: where a picture is to be learned. From its own transparency (alpha_mask), or from a picture of the same name in
 * another folder (conditioning_data_dir), whose red channel counts, as in sd-scripts. A mask travels as the alpha channel of its
 * picture, so that whatever scales, cuts and mirrors the one does the same to the other. */
#include <stdlib.h>
#include <string.h>

#include "cmd/train/dataset_inside.h"
#include "formats/picture_resize.h"
#include "ref/base/thread.h"

static bool has_mask(const struct dataset *d, const struct sample_picture *p)
{
    return p->mask_path || d->subset[p->subset].alpha_mask;
}

bool dataset_has_masks(const struct dataset *d)
{
    for (size_t i = 0; i < d->pictures; i++)
        if (has_mask(d, &d->picture[i]))
            return true;
    return d->validation && dataset_has_masks(d->validation);
}

/* ---- Finding them ---- */

static size_t stem(const char *path, const char **name)
{
    const char *slash = strrchr(path, '/'), *dot;

    *name = slash ? slash + 1 : path;
    dot = strrchr(*name, '.');
    return dot && dot != *name ? (size_t)(dot - *name) : strlen(*name);
}

/* The name in a sorted list that is a picture's but for the ending; NULL: none. Those that begin alike stand together. */
static const char *find_name(const char *const *name, size_t n, const char *path)
{
    const char *mine, *other;
    size_t length = stem(path, &mine), low = 0, high = n;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (strncmp(name[middle], mine, length) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < n && strncmp(name[low], mine, length) == 0; low++)
        if (stem(name[low], &other) == length)
            return name[low];
    return NULL;
}

/* Fills p->mask_path; *why stays NULL when the mask can be used. */
static int find_mask(struct dataset *d, struct sample_picture *p, const char *const *name, size_t n, const char **why, struct err *err)
{
    const char *dir = d->subset[p->subset].mask_dir, *found = find_name(name, n, p->path ? p->path : p->key);
    struct err reason = {0};
    size_t size[2];
    int orientation;

    *why = NULL;
    if (!found) {
        *why = arena_printf(&d->arena, err, "there is no picture of that name in '%s'", dir);
        return *why ? 0 : -1;
    }
    p->mask_path = arena_printf(&d->arena, err, "%s/%s", dir, found);
    if (!p->mask_path)
        return -1;
    if (picture_read_size(p->mask_path, size, &orientation, &reason))
        *why = arena_str(&d->arena, reason.msg, err);
    else if (size[0] * p->size[1] != size[1] * p->size[0])
        *why = arena_printf(&d->arena, err, "'%s' is %zu x %zu, the picture %zu x %zu; give it the picture's shape", p->mask_path, size[0],
                            size[1], p->size[0], p->size[1]);
    else
        return 0;
    return *why ? 0 : -1;
}

int dataset_find_masks(struct dataset *d, struct err *err)
{
    const char *const *name = NULL, *why;
    size_t n = 0, kept = 0, listed = SIZE_MAX;

    for (size_t i = 0; i < d->pictures; i++) {
        struct sample_picture *p = &d->picture[i];
        const struct subset *s = &d->subset[p->subset];

        if (s->mask_dir && !s->reg) {
            if (listed != p->subset && dataset_list_pictures(&d->arena, s->mask_dir, &name, &n, err))
                return -1;
            listed = p->subset;
            if (find_mask(d, p, name, n, &why, err) || (why && dataset_find(d, FINDING_MASK_BAD, p->key, why, err)))
                return -1;
            if (why)
                continue;
        }
        d->picture[kept++] = *p;
    }
    d->pictures = kept;
    return 0;
}

/* ---- Using them ---- */

/* p with alpha from red of m, or all opaque. */
static int set_alpha(struct picture *p, const struct picture *m, struct err *err)
{
    size_t n = p->width * p->height;
    uint8_t *data = mem_new(4 * n, "a mask", err);

    if (!data)
        return -1;
    for (size_t i = 0; i < n; i++) {
        memcpy(data + 4 * i, p->data + p->channels * i, 3);
        data[4 * i + 3] = m ? m->data[m->channels * i] : 255;
    }
    free(p->data);
    p->data = data;
    p->channels = 4;
    return 0;
}

int dataset_add_mask(const struct dataset *d, size_t picture, struct picture *p, struct err *err)
{
    const struct sample_picture *from = &d->picture[picture];
    struct picture m;
    int rc;

    if (!from->mask_path)
        return p->channels == 4 && d->subset[from->subset].alpha_mask ? 0 : set_alpha(p, NULL, err);
    if (picture_read(&m, from->mask_path, err))
        return -1;
    picture_drop_alpha(&m);
    rc = picture_upright(&m, err) || picture_resize_area(&m, p->width, p->height, err) || set_alpha(p, &m, err) ? -1 : 0;
    picture_free(&m);
    return rc;
}

void dataset_take_mask(struct picture *p, size_t f, bool mirror, float *mask)
{
    size_t w = p->width / f, h = p->height / f;

    for (size_t y = 0; y < h; y++)
        for (size_t x = 0; x < w; x++) {
            size_t sum = 0;

            for (size_t i = 0; i < f * f; i++)
                sum += p->data[4 * ((y * f + i / f) * p->width + x * f + i % f) + 3];
            mask[y * w + (mirror ? w - 1 - x : x)] = (float)sum / (float)(255 * f * f);
        }
    picture_drop_alpha(p);
}

/* ---- Beside cached latents ---- */

static int load_one(void *ctx, size_t i, struct err *err)
{
    struct dataset *d = ctx;
    struct sample_picture *p = &d->picture[i];
    size_t w = p->fit[0] / d->setup.factor, h = p->fit[1] / d->setup.factor;
    struct picture pixels;
    bool flipped;

    if (!has_mask(d, p))
        return 0;
    p->mask = mem_new(w * h * sizeof *p->mask, "a mask", err);
    if (!p->mask || dataset_load(d, i, 0, 0, false, &pixels, p->mask, &flipped, err))
        return -1;
    picture_free(&pixels);
    return 0;
}

int dataset_load_masks(struct dataset *d, struct err *err)
{
    return thread_for(d->pictures, load_one, d, err);
}

void dataset_copy_mask(const struct dataset *d, size_t picture, bool mirror, float *mask)
{
    const struct sample_picture *p = &d->picture[picture];
    size_t w = p->fit[0] / d->setup.factor, h = p->fit[1] / d->setup.factor;

    for (size_t y = 0; y < h; y++)
        for (size_t x = 0; x < w; x++)
            mask[y * w + x] = p->mask ? p->mask[y * w + (mirror ? w - 1 - x : x)] : 1;
}

/* From a picture file to what the trainer sees: scaled, cut, varied. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/dataset_inside.h"
#include "formats/picture_colour.h"
#include "formats/picture_resize.h"

struct face {
    bool known;
    long x, y, w, h; /* centre and size in the file's pixels */
};

/* The last four parts of a name such as picture_120_80_40_44.png. */
static struct face find_face(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    const char *end = dot && dot != name ? dot : name + strlen(name);
    struct face f = {0};
    long *value[] = {&f.h, &f.w, &f.y, &f.x};

    for (int i = 0; i < 4; i++) {
        const char *from = end;
        char *stop;

        while (from > name && from[-1] != '_')
            from--;
        if (from == name || from == end || end - from > 6)
            return (struct face){0};
        *value[i] = strtol(from, &stop, 10);
        if (stop != end || *value[i] < 0)
            return (struct face){0};
        end = from - 1;
    }
    f.known = f.x > 0 && f.w > 0 && f.h > 0;
    return f;
}

static int cut(struct picture *p, size_t x, size_t y, size_t w, size_t h, struct err *err)
{
    uint8_t *data;

    if (w == p->width && h == p->height)
        return 0;
    data = mem_new(w * h * p->channels, "a cut picture", err);
    if (!data)
        return -1;
    for (size_t i = 0; i < h; i++)
        memcpy(data + i * w * p->channels, p->data + ((y + i) * p->width + x) * p->channels, w * p->channels);
    free(p->data);
    p->data = data;
    p->width = w;
    p->height = h;
    return 0;
}

/* ---- Around a face */

static double clamp(double x, double low, double high)
{
    return fmax(low, fmin(high, x));
}

/* Where the cut begins along one side of `length`: the face in the middle, moved by chance. */
static size_t place_face(struct draw *draw, const struct subset *s, size_t target, size_t length, size_t face, size_t face_size,
                         size_t shortest)
{
    long at = (long)face - (long)(target / 2);

    if (s->random_crop) { /* twice half the way: the middle is likelier */
        size_t reach = length - face > face ? length - face : face;

        at += (long)draw_below(draw, reach + 1) + (long)draw_below(draw, reach + 1) - (long)reach;
    } else if (s->face[0] != s->face[1] && face_size > shortest / 10 && face_size >= 40) {
        at += (long)draw_below(draw, 2 * (face_size / 20) + 1) - (long)(face_size / 20);
    }
    return (size_t)clamp((double)at, 0, (double)(length - target));
}

/* v0.3.0's crop_target(): scales so that the face becomes --face_crop_aug_range times smaller than the picture, then cuts. */
static int cut_face(struct picture *p, const struct face *f, const struct subset *s, const size_t to[2], struct draw *draw,
                    struct err *err)
{
    size_t shortest = to[0] < to[1] ? to[0] : to[1], face_size = (size_t)(f->w > f->h ? f->w : f->h), x, y, at[2];
    double least = fmax((double)to[1] / (double)p->height, (double)to[0] / (double)p->width), most, scale;

    least = fmin(1, fmax(least, (double)shortest / ((double)face_size * s->face[1])));
    most = fmin(1, fmax(least, (double)shortest / ((double)face_size * s->face[0])));
    scale = least >= most ? least : draw_between(draw, least, most);
    x = (size_t)((double)p->width * scale + 0.5);
    y = (size_t)((double)p->height * scale + 0.5);
    if (picture_resize_area(p, x < to[0] ? to[0] : x, y < to[1] ? to[1] : y, err))
        return -1;
    x = (size_t)((double)f->x * scale + 0.5);
    y = (size_t)((double)f->y * scale + 0.5);
    at[1] = place_face(draw, s, to[1], p->height, y < p->height ? y : p->height, face_size, shortest);
    at[0] = place_face(draw, s, to[0], p->width, x < p->width ? x : p->width, face_size, shortest);
    return cut(p, at[0], at[1], to[0], to[1], err);
}

/* ---- */

/* Scales to cover the bucket, then cuts what is over: in the middle, or anywhere. */
static int scale_and_cut(struct picture *p, const struct group *g, const size_t to[2], bool anywhere, struct draw *draw,
                         struct err *err)
{
    size_t fit[2], at[2];

    dataset_fit(g, p->width, p->height, to, fit);
    if (picture_resize_area(p, fit[0], fit[1], err))
        return -1;
    for (int i = 0; i < 2; i++)
        at[i] = anywhere ? draw_below(draw, fit[i] - to[i] + 1) : (fit[i] - to[i]) / 2;
    return cut(p, at[0], at[1], to[0], to[1], err);
}

static int shape(struct picture *p, const struct group *g, const struct subset *s, const struct sample_picture *from,
                 struct draw *draw, struct err *err)
{
    const size_t *to = from->fit;
    bool covers = p->width >= to[0] && p->height >= to[1];

    if (draw && !g->buckets && covers && s->face[1] > 0) {
        struct face f = find_face(from->path);

        if (f.known && (p->width != to[0] || p->height != to[1]))
            return cut_face(p, &f, s, to, draw, err);
    }
    if (draw && !g->buckets && covers && s->random_crop) /* without scaling, as v0.3.0 does */
        return cut(p, draw_below(draw, p->width - to[0] + 1), draw_below(draw, p->height - to[1] + 1), to[0], to[1], err);
    return scale_and_cut(p, g, to, draw && s->random_crop, draw, err);
}

/* A third of the pictures gets another hue or another gamma, a little. */
static void vary_colour(struct picture *p, struct draw *draw)
{
    if (draw_unit(draw) >= 0.33)
        return;
    if (draw_unit(draw) < 0.5)
        picture_shift_hue(p, draw_between(draw, -8, 8));
    else
        picture_change_gamma(p, draw_between(draw, 0.95, 1.05));
}

void dataset_mirror(struct picture *p)
{
    for (size_t y = 0; y < p->height; y++)
        for (size_t x = 0; x < p->width / 2; x++)
            for (unsigned c = 0; c < p->channels; c++) {
                uint8_t *a = p->data + (y * p->width + x) * p->channels + c,
                        *b = p->data + (y * p->width + p->width - 1 - x) * p->channels + c, swap = *a;

                *a = *b;
                *b = swap;
            }
}

void dataset_to_floats(const struct picture *p, float *out)
{
    for (size_t i = 0; i < p->width * p->height * p->channels; i++)
        out[i] = ((float)p->data[i] / 255.0f - 0.5f) / 0.5f; /* torchvision's ToTensor and Normalize([0.5], [0.5]) */
}

/* The first number of a sample's stream decides, so that cached latents can ask for it alone. */
static bool draw_flip(const struct subset *s, struct draw *draw)
{
    bool flip = draw_unit(draw) < 0.5;

    return s->flip && flip;
}

bool dataset_draws_flip(const struct dataset *d, size_t picture, size_t epoch, size_t repeat)
{
    struct draw draw = draw_begin(d->setup.seed, DRAW_PICTURE, epoch, picture, repeat);

    return !d->plain && draw_flip(&d->subset[d->picture[picture].subset], &draw);
}

int dataset_load(const struct dataset *d, size_t picture, size_t epoch, size_t repeat, bool augment, struct picture *out,
                 float *mask, bool *flipped, struct err *err)
{
    const struct sample_picture *p = &d->picture[picture];
    const struct subset *s = &d->subset[p->subset];
    struct draw draw = draw_begin(d->setup.seed, DRAW_PICTURE, epoch, picture, repeat);

    *flipped = false;
    if (!p->path)
        return err_set(err, "picture '%s' is not there, only its latents are; put it beside them to see or vary it", p->key);
    if (picture_read(out, p->path, err))
        return -1;
    if (!mask)
        picture_drop_alpha(out);
    if (picture_upright(out, err) || (mask && dataset_add_mask(d, picture, out, err)))
        goto fail;
    augment &= !d->plain;
    *flipped = augment && draw_flip(s, &draw);
    if (shape(out, &d->group[s->group], s, p, augment ? &draw : NULL, err))
        goto fail;
    if (mask)
        dataset_take_mask(out, d->setup.factor, *flipped, mask);
    if (augment && s->color)
        vary_colour(out, &draw);
    if (*flipped)
        dataset_mirror(out);
    return 0;
fail:
    picture_free(out);
    return -1;
}

/* Buckets: sizes of about one area in many shapes, and which picture goes to which. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/dataset_inside.h"

static int by_size(const void *a, const void *b)
{
    const size_t *x = a, *y = b;

    if (x[0] != y[0])
        return x[0] < y[0] ? -1 : 1;
    return x[1] < y[1] ? -1 : x[1] > y[1];
}

size_t dataset_bucket_sizes(size_t width, size_t height, size_t min, size_t max, size_t steps, size_t (**out)[2],
                            struct err *err)
{
    size_t area = width * height, square = (size_t)sqrt((double)area) / steps * steps, n = 0, used = 0;
    size_t(*size)[2] = mem_zero(2 * (max / steps + 2), sizeof *size, "buckets", err);

    if (!size)
        return 0;
    size[n][0] = size[n][1] = square;
    n++;
    for (size_t w = min; w <= max; w += steps) {
        size_t h = area / w / steps * steps;

        h = h > max ? max : h;
        if (h < min)
            continue;
        size[n][0] = size[n + 1][1] = w;
        size[n][1] = size[n + 1][0] = h;
        n += 2;
    }
    qsort(size, n, sizeof *size, by_size);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || by_size(size[i], size[used - 1]) != 0)
            memmove(size[used++], size[i], sizeof *size);
    *out = size;
    return used;
}

size_t dataset_nearest_size(size_t (*size)[2], size_t n, size_t w, size_t h)
{
    size_t best = 0;
    double least = INFINITY;

    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)size[i][0] / (double)size[i][1] - (double)w / (double)h);

        if (size[i][0] == w && size[i][1] == h)
            return i;
        if (error < least) {
            least = error;
            best = i;
        }
    }
    return best;
}

/* ---- bucket_no_upscale: the size follows from the picture */

static size_t round_to(double x, size_t steps)
{
    return (size_t)(x + 0.5) / steps * steps;
}

/* Shrinks a picture of more than the largest area so that one side is a multiple of the steps: the one that changes the shape
 * less. */
static void shrink_to_area(const struct group *g, size_t w, size_t h, size_t fit[2])
{
    double area = (double)(g->width * g->height), aspect = (double)w / (double)h;
    double wide = sqrt(area * aspect), high = area / wide;
    size_t w1 = round_to(wide, g->steps), h1 = w1 ? round_to((double)w1 / aspect, g->steps) : 0;
    size_t h2 = round_to(high, g->steps), w2 = round_to((double)h2 * aspect, g->steps);
    double error1 = h1 ? fabs((double)w1 / (double)h1 - aspect) : INFINITY,
           error2 = h2 ? fabs((double)w2 / (double)h2 - aspect) : INFINITY;

    if (error1 < error2) {
        fit[0] = w1;
        fit[1] = (size_t)((double)w1 / aspect + 0.5);
    } else {
        fit[0] = (size_t)((double)h2 * aspect + 0.5);
        fit[1] = h2;
    }
}

static void fit_without_growing(const struct group *g, size_t w, size_t h, size_t fit[2])
{
    fit[0] = w;
    fit[1] = h;
    if (w * h > g->width * g->height)
        shrink_to_area(g, w, h, fit);
}

/* ---- */

void dataset_fit(const struct group *g, size_t w, size_t h, const size_t to[2], size_t fit[2])
{
    double scale;

    if (g->buckets && g->no_upscale) {
        fit_without_growing(g, w, h, fit);
        if (fit[0] >= to[0] && fit[1] >= to[1])
            return;
    }
    /* a picture that is wider than its bucket keeps the height, and its sides are cut */
    if ((double)w / (double)h > (double)to[0] / (double)to[1])
        scale = (double)to[1] / (double)h;
    else
        scale = (double)to[0] / (double)w;
    fit[0] = (size_t)((double)w * scale + 0.5);
    fit[1] = (size_t)((double)h * scale + 0.5);
    fit[0] = fit[0] < to[0] ? to[0] : fit[0];
    fit[1] = fit[1] < to[1] ? to[1] : fit[1];
}

static int check_multiples(const struct dataset *d, const struct group *g, struct err *err)
{
    size_t steps = g->buckets ? g->steps : d->setup.factor, w = g->width / steps * steps, h = g->height / steps * steps;

    if (steps % d->setup.factor)
        return err_usage(err, "--bucket_reso_steps %zu is no multiple of %zu, by which the VAE makes pictures smaller; take 64",
                         steps, d->setup.factor);
    if (w == g->width && h == g->height && w && h)
        return 0;
    return err_usage(err, "--resolution %zu,%zu: sides have to be multiples of %zu%s; take %zu,%zu", g->width, g->height, steps,
                     g->buckets ? " where there are buckets (see --bucket_reso_steps)" : "", w ? w : steps, h ? h : steps);
}

static int check_buckets(const struct group *g, struct err *err)
{
    size_t least = g->width < g->height ? g->width : g->height, most = g->width > g->height ? g->width : g->height;

    if (g->min > g->max)
        return err_usage(err, "--min_bucket_reso %zu is larger than --max_bucket_reso %zu; exchange them", g->min, g->max);
    if (g->min % g->steps || g->max % g->steps)
        return err_usage(err,
                         "--min_bucket_reso %zu and --max_bucket_reso %zu have to be multiples of %zu (--bucket_reso_steps); "
                         "take %zu and %zu",
                         g->min, g->max, g->steps, g->min < g->steps ? g->steps : g->min / g->steps * g->steps,
                         g->max < g->steps ? g->steps : g->max / g->steps * g->steps);
    if (!g->no_upscale && least < g->min)
        return err_usage(err, "--min_bucket_reso %zu is larger than the resolution %zu,%zu; take %zu", g->min, g->width,
                         g->height, least);
    if (!g->no_upscale && most > g->max)
        return err_usage(err, "--max_bucket_reso %zu is smaller than the resolution %zu,%zu; take %zu", g->max, g->width,
                         g->height, most);
    return 0;
}

int dataset_group_sizes(struct dataset *d, struct group *g, struct err *err)
{
    size_t(*size)[2] = NULL, n = 1;

    if (check_multiples(d, g, err) || (g->buckets && check_buckets(g, err)))
        return -1;
    if (g->buckets && !g->no_upscale) {
        n = dataset_bucket_sizes(g->width, g->height, g->min, g->max, g->steps, &size, err);
        if (n == 0)
            return -1;
    }
    g->size = arena_alloc(&d->arena, n * sizeof *g->size, err);
    if (g->size && size)
        memcpy(g->size, size, n * sizeof *size);
    else if (g->size) {
        g->size[0][0] = g->width;
        g->size[0][1] = g->height;
    }
    free(size);
    g->sizes = n;
    return g->size ? 0 : -1;
}

/* The size of a picture's bucket; 0 x 0 when the picture is smaller than one step. */
static void choose_size(const struct group *g, const struct sample_picture *p, size_t to[2])
{
    if (g->buckets && g->no_upscale) {
        size_t fit[2];

        fit_without_growing(g, p->size[0], p->size[1], fit);
        to[0] = fit[0] / g->steps * g->steps;
        to[1] = fit[1] / g->steps * g->steps;
    } else {
        memcpy(to, g->size[dataset_nearest_size(g->size, g->sizes, p->size[0], p->size[1])], 2 * sizeof *to);
    }
}

static int by_group_and_size(const void *a, const void *b)
{
    const struct bucket *x = a, *y = b;
    const size_t sx[2] = {x->shown.width, x->shown.height}, sy[2] = {y->shown.width, y->shown.height};

    return x->group != y->group ? (x->group < y->group ? -1 : 1) : by_size(sx, sy);
}

static size_t find_bucket(const struct bucket *b, size_t n, size_t group, const size_t size[2])
{
    size_t i = 0;

    while (i < n && (b[i].group != group || b[i].shown.width != size[0] || b[i].shown.height != size[1]))
        i++;
    return i;
}

int dataset_make_buckets(struct dataset *d, struct err *err)
{
    struct bucket *b = arena_alloc(&d->arena, (d->pictures + 1) * sizeof *b, err);
    double error = 0;
    size_t n = 0;

    d->bucket = b;
    d->shown = b ? arena_alloc(&d->arena, (d->pictures + 1) * sizeof *d->shown, err) : NULL;
    if (!d->shown)
        return -1;
    for (size_t pass = 0; pass < 2; pass++) { /* find all, sort them, then point at them */
        for (size_t i = 0; i < d->pictures; i++) {
            struct sample_picture *p = &d->picture[i];
            size_t group = d->subset[p->subset].group, k = find_bucket(b, n, group, p->fit);

            if (k == n)
                b[n++] = (struct bucket){.shown = {p->fit[0], p->fit[1], 0, d->group[group].batch}, .group = group};
            p->bucket = k;
            b[k].shown.samples += pass ? p->repeats : 0;
            if (pass)
                error += fabs((double)p->fit[0] / (double)p->fit[1] - (double)p->size[0] / (double)p->size[1]);
        }
        qsort(b, n, sizeof *b, by_group_and_size);
    }
    d->buckets = n;
    d->mean_ar_error = d->pictures ? error / (double)d->pictures : 0;
    for (size_t i = 0, first = 0; i < n; i++) {
        b[i].first = first;
        first += b[i].shown.samples;
        d->shown[i] = b[i].shown;
    }
    return 0;
}

int dataset_assign_sizes(struct dataset *d, struct err *err)
{
    size_t kept = 0;

    for (size_t i = 0; i < d->pictures; i++) {
        struct sample_picture *p = &d->picture[i];
        const struct group *g = &d->group[d->subset[p->subset].group];

        choose_size(g, p, p->fit);
        if (!p->fit[0] || !p->fit[1]) {
            const char *detail = arena_printf(&d->arena, err,
                                              "it has %zu x %zu pixels, less than a step of %zu of a bucket; leave "
                                              "it out, or leave --bucket_no_upscale out",
                                              p->size[0], p->size[1], g->steps);

            if (!detail || dataset_find(d, FINDING_UNREADABLE, p->key, detail, err))
                return -1;
            continue;
        }
        d->picture[kept++] = *p;
    }
    d->pictures = kept;
    return 0;
}

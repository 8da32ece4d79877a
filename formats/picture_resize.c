#include "formats/picture_resize.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

#define PI 3.14159265358979323846

enum { BITS = 22 }; /* of a weight behind the point; a sum of 8-bit samples fits in 32 bits */

static double bilinear(double x)
{
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

static double bicubic(double x)
{
    const double a = -0.5;

    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

static double sinc(double x)
{
    return x == 0 ? 1 : sin(x * PI) / (x * PI);
}

static double lanczos(double x)
{
    return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
}

static const struct {
    double (*weight)(double x);
    double support;
} filters[] = {{bilinear, 1}, {bicubic, 2}, {lanczos, 3}};

/* Which samples make one of the new ones, and by which weights; they sum to 1. */
struct window {
    size_t first, count;
    int32_t *weight;
};

struct windows {
    struct window *window; /* [to] */
    int32_t *memory;
};

static void fill_window(struct window *w, double *weight, double center, double support, double stretch, size_t from,
                        double (*f)(double))
{
    double low = center - support + 0.5, high = center + support + 0.5, sum = 0;

    w->first = low > 0 ? (size_t)low : 0;
    w->count = (high < (double)from ? (size_t)high : from) - w->first;
    for (size_t i = 0; i < w->count; i++) {
        weight[i] = f(((double)i + (double)w->first - center + 0.5) * (1 / stretch));
        sum += weight[i];
    }
    for (size_t i = 0; i < w->count; i++) {
        double x = (sum != 0 ? weight[i] / sum : weight[i]) * (1 << BITS);

        w->weight[i] = (int32_t)(x < 0 ? x - 0.5 : x + 0.5);
    }
}

static int make_windows(struct windows *out, size_t from, size_t to, enum picture_filter filter, struct err *err)
{
    double scale = (double)from / (double)to, stretch = scale < 1 ? 1 : scale, support = filters[filter].support * stretch;
    size_t width = (size_t)ceil(support) * 2 + 1, total;
    double *weight = mem_zero(width, sizeof *weight, "a picture's scaling", err);

    *out = (struct windows){0};
    if (!weight)
        return -1;
    if (!mem_mul(width, to, &total))
        total = SIZE_MAX;
    out->window = mem_zero(to, sizeof *out->window, "a picture's scaling", err);
    out->memory = out->window ? mem_zero(total, sizeof *out->memory, "a picture's scaling", err) : NULL;
    for (size_t i = 0; out->memory && i < to; i++) {
        out->window[i].weight = out->memory + i * width;
        fill_window(&out->window[i], weight, ((double)i + 0.5) * scale, support, stretch, from, filters[filter].weight);
    }
    free(weight);
    return out->memory ? 0 : -1;
}

static void free_windows(struct windows *w)
{
    free(w->window);
    free(w->memory);
}

static uint8_t clip(int32_t x)
{
    x >>= BITS;
    return (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x);
}

/* Along lines of samples that lie `step` apart, for `lanes` lines side by side. */
static void scale_line(const struct windows *w, size_t to, const uint8_t *in, uint8_t *out, size_t step, size_t lanes)
{
    for (size_t i = 0; i < to; i++) {
        const struct window *v = &w->window[i];

        for (size_t k = 0; k < lanes; k++) {
            int32_t sum = 1 << (BITS - 1);

            for (size_t j = 0; j < v->count; j++)
                sum += in[(v->first + j) * step + k] * v->weight[j];
            out[i * step + k] = clip(sum);
        }
    }
}

/* One direction: rows of the picture, or the picture's columns. */
static int scale_one_way(struct picture *p, size_t to, bool rows, enum picture_filter filter, struct err *err)
{
    size_t from = rows ? p->width : p->height, pixels = rows ? p->height : p->width, c = p->channels;
    struct windows w;
    uint8_t *data;

    if (from == to)
        return 0;
    if (make_windows(&w, from, to, filter, err)) {
        free_windows(&w);
        return -1;
    }
    data = mem_zero(to * pixels, c, "a scaled picture", err);
    if (data && rows)
        for (size_t y = 0; y < pixels; y++)
            scale_line(&w, to, p->data + y * from * c, data + y * to * c, c, c);
    else if (data)
        scale_line(&w, to, p->data, data, pixels * c, pixels * c);
    free_windows(&w);
    if (!data)
        return -1;
    free(p->data);
    p->data = data;
    *(rows ? &p->width : &p->height) = to;
    return 0;
}

int picture_resize(struct picture *p, size_t width, size_t height, enum picture_filter filter, struct err *err)
{
    struct picture copy = *p;

    assert(p->channels == 1 || p->channels == 3);
    if (picture_check_size(width, height, err) || picture_check_size(width, p->height, err))
        return -1;
    copy.data = mem_zero(p->width * p->height, p->channels, "a scaled picture", err);
    if (!copy.data)
        return -1;
    memcpy(copy.data, p->data, p->width * p->height * p->channels);
    if (scale_one_way(&copy, width, true, filter, err) || scale_one_way(&copy, height, false, filter, err)) {
        free(copy.data);
        return -1;
    }
    free(p->data);
    *p = copy;
    return 0;
}

void picture_make_grey(struct picture *p)
{
    if (p->channels != 3)
        return;
    for (size_t i = 0; i < p->width * p->height; i++) {
        const uint8_t *c = p->data + 3 * i;

        p->data[i] = (uint8_t)((c[0] * 19595u + c[1] * 38470u + c[2] * 7471u + 0x8000u) >> 16);
    }
    p->channels = 1;
}

/* OpenCV's INTER_AREA for 8-bit pictures. What it does depends on the sizes, and so does the arithmetic that must be kept:
 *
 *   both sides shrink by whole numbers   sums of integers; half of 2x2 rounds up, other sizes go through a float
 *   both sides shrink or stay            f32 sums of f32 weights, first along rows, then down the columns
 *   a side grows                         linear, at places that keep areas, weights of 11 bits
 *
 * Source: behaviour of cv2.resize as measured (golden/make_dataset.py), and its documentation of interpolation flags. */
#include <math.h>
#include <stdlib.h>

#include "formats/picture_resize.h"
#include "ref/base/mem.h"

enum { WEIGHT_BITS = 11, WEIGHT_ONE = 1 << WEIGHT_BITS };

static uint8_t clip(float x)
{
    float y = nearbyintf(x);

    return (uint8_t)(y < 0 ? 0 : y > 255 ? 255 : y);
}

/* ---- Whole factors */

static void shrink_whole(const struct picture *in, size_t fx, size_t fy, size_t w, size_t h, uint8_t *out)
{
    size_t c = in->channels;
    float scale = 1.0f / (float)(fx * fy);

    for (size_t y = 0; y < h; y++)
        for (size_t x = 0; x < w; x++)
            for (size_t k = 0; k < c; k++) {
                const uint8_t *from = in->data + ((y * fy) * in->width + x * fx) * c + k;
                unsigned sum = 0;

                for (size_t j = 0; j < fy; j++)
                    for (size_t i = 0; i < fx; i++)
                        sum += from[(j * in->width + i) * c];
                *out++ = fx == 2 && fy == 2 ? (uint8_t)((sum + 2) >> 2) : clip((float)sum * scale);
            }
}

/* ---- Any factor from 1 up */

struct share { /* sample `from` is part of `to`, by this weight */
    size_t from, to;
    float weight;
};

/* Which samples of a line of n make the m new ones, in order of `to`. Returns their count; share has room for 2 n + m. */
static size_t find_shares(struct share *share, size_t n, size_t m, double scale)
{
    size_t count = 0;

    for (size_t i = 0; i < m; i++) {
        double low = (double)i * scale, high = low + scale, cell = fmin(scale, (double)n - low);
        size_t first = (size_t)ceil(low), last = (size_t)floor(high);

        last = last > n - 1 ? n - 1 : last;
        first = first > last ? last : first;
        if ((double)first - low > 1e-3)
            share[count++] = (struct share){first - 1, i, (float)(((double)first - low) / cell)};
        for (size_t j = first; j < last; j++)
            share[count++] = (struct share){j, i, (float)(1 / cell)};
        if (high - (double)last > 1e-3)
            share[count++] = (struct share){last, i, (float)(fmin(fmin(high - (double)last, 1), cell) / cell)};
    }
    return count;
}

static inline void add_shares(const uint8_t *in, size_t c, const struct share *share, size_t count, float *line)
{
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < c; k++)
            line[share[i].to * c + k] += (float)in[share[i].from * c + k] * share[i].weight;
}

/* row [w * c] += weight * the shrunk line. line [w * c] is scratch. */
static void add_line(const uint8_t *in, size_t c, const struct share *share, size_t count, float *line, size_t n_line,
                     float *row, float weight)
{
    for (size_t i = 0; i < n_line; i++)
        line[i] = 0;
    if (c == 3) /* the usual case, which the compiler then unrolls */
        add_shares(in, 3, share, count, line);
    else
        add_shares(in, c, share, count, line);
    for (size_t i = 0; i < n_line; i++)
        row[i] += line[i] * weight;
}

static int shrink(const struct picture *in, size_t w, size_t h, uint8_t *out, struct err *err)
{
    size_t c = in->channels, n_line = w * c, n_across, n_down;
    struct share *across = mem_zero(2 * in->width + w, sizeof *across, "a picture's scaling", err);
    struct share *down = across ? mem_zero(2 * in->height + h, sizeof *down, "a picture's scaling", err) : NULL;
    float *line = down ? mem_zero(2 * n_line, sizeof *line, "a picture's scaling", err) : NULL, *row = line + n_line;

    if (line) {
        /* the way OpenCV computes the factor: through its inverse */
        n_across = find_shares(across, in->width, w, 1 / ((double)w / (double)in->width));
        n_down = find_shares(down, in->height, h, 1 / ((double)h / (double)in->height));
        for (size_t i = 0; i < n_down; i++) {
            bool last = i + 1 == n_down || down[i + 1].to != down[i].to;

            add_line(in->data + down[i].from * in->width * c, c, across, n_across, line, n_line, row, down[i].weight);
            for (size_t j = 0; last && j < n_line; j++) {
                out[down[i].to * n_line + j] = clip(row[j]);
                row[j] = 0;
            }
        }
    }
    free(across);
    free(down);
    free(line);
    return line ? 0 : -1;
}

/* ---- Growing */

struct place { /* between sample `from` and its neighbour */
    size_t from, next;
    int weight[2]; /* sum: WEIGHT_ONE */
};

static void find_places(struct place *place, size_t n, size_t m)
{
    double inverse = (double)m / (double)n, scale = 1 / inverse;

    for (size_t i = 0; i < m; i++) {
        double at = floor((double)i * scale);
        float f = (float)((double)(i + 1) - (at + 1) * inverse);
        size_t from = (size_t)at;

        f = f <= 0 ? 0 : f - floorf(f);
        if (from >= n - 1) {
            from = n - 1;
            f = 0;
        }
        place[i].from = from;
        place[i].next = from + 1 < n ? from + 1 : from;
        place[i].weight[0] = (int)nearbyintf((1 - f) * WEIGHT_ONE);
        place[i].weight[1] = (int)nearbyintf(f * WEIGHT_ONE);
    }
}

static void grow_row(const struct picture *in, size_t y, const struct place *across, size_t w, int *row)
{
    size_t c = in->channels;
    const uint8_t *from = in->data + y * in->width * c;

    for (size_t x = 0; x < w; x++)
        for (size_t k = 0; k < c; k++)
            row[x * c + k] =
                from[across[x].from * c + k] * across[x].weight[0] + from[across[x].next * c + k] * across[x].weight[1];
}

static int grow(const struct picture *in, size_t w, size_t h, uint8_t *out, struct err *err)
{
    size_t n = w * in->channels;
    struct place *across = mem_zero(w + h, sizeof *across, "a picture's scaling", err), *down = across + w;
    int *row = across ? mem_zero(2 * n, sizeof *row, "a picture's scaling", err) : NULL;

    if (row) {
        find_places(across, in->width, w);
        find_places(down, in->height, h);
        for (size_t y = 0; y < h; y++) {
            grow_row(in, down[y].from, across, w, row);
            grow_row(in, down[y].next, across, w, row + n);
            for (size_t i = 0; i < n; i++) { /* 22 bits behind the point; OpenCV's vectors drop 4 early and 16 late */
                int a = (down[y].weight[0] * (row[i] >> 4)) >> 16, b = (down[y].weight[1] * (row[n + i] >> 4)) >> 16;
                int v = (a + b + 2) >> 2;

                out[y * n + i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
            }
        }
    }
    free(across);
    free(row);
    return row ? 0 : -1;
}

int picture_resize_area(struct picture *p, size_t width, size_t height, struct err *err)
{
    uint8_t *out;
    int rc = 0;

    if (width == p->width && height == p->height)
        return 0;
    if (picture_check_size(width, height, err))
        return -1;
    out = mem_zero(width * height, p->channels, "a scaled picture", err);
    if (!out)
        return -1;
    if (width > p->width || height > p->height)
        rc = grow(p, width, height, out, err);
    else if (p->width % width == 0 && p->height % height == 0)
        shrink_whole(p, p->width / width, p->height / height, width, height, out);
    else
        rc = shrink(p, width, height, out, err);
    if (rc) {
        free(out);
        return -1;
    }
    free(p->data);
    p->data = out;
    p->width = width;
    p->height = height;
    return 0;
}

#include "ref/op/winograd.h"

#include <string.h>

#include "ref/base/simd.h"
#include "ref/base/thread.h"
#include "ref/op/kernel.h"

/* Windows are taken BLOCK_TILES at a time, or as many more as BLOCK_FLOATS of transformed input hold (a shared cache's
 * worth); all threads transform them, then each computes some columns of the result: PANEL_OUT output channels, whose weights
 * are transformed PANEL_IN input channels at a time. So a weight is transformed once for 256 windows or more. */
enum { EDGE = 4, WINDOW = 6, POINTS = 36, TAPS = 9, VECTOR = 16 };
enum { BLOCK_TILES = 256, MOST_TILES = 1024, BLOCK_FLOATS = 3 << 20, PANEL_OUT = 80, PANEL_IN = 160, STRIP = 8, CHUNK = 160, DEPTH = 32 };
enum { FEW_TILES = 16, FEW_OUT = 64 }; /* measured: 16 windows take 0.75 of the time of panels of 80 */

/* sqrt 2, 1 / sqrt 2, 1 / (2 sqrt 2), 2 sqrt 2 */
static const float root = 0x1.6a09e6p0f, half = 0x1.6a09e6p-1f, quarter = 0x1.6a09e6p-2f, twice = 0x1.6a09e6p1f;

struct work {
    const struct winograd *g;
    size_t across, down, tiles; /* windows of a picture, of all pictures */
    size_t most, out, in;       /* windows of a block, channels of a panel */
    size_t first, count;        /* the block's windows */
    float *v, *own;             /* v [36, most, c]: the input transformed; then each thread's floats: */
    size_t lines, u, m;         /* rows on their way: [36, CHUNK] of input, [9 + 18, DEPTH x panel] of weights, [16 + 24, out]
                                 * of output; then packed weights [36, points] and products [36, most, out] */
    size_t points;
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t most_of(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t whole(size_t n)
{
    return (n + VECTOR - 1) / VECTOR * VECTOR;
}

/* n in pieces as equal as possible of at most `most`, whole vectors where that is possible */
static size_t piece(size_t n, size_t most)
{
    size_t pieces = (n + most - 1) / most;

    return least(whole((n + pieces - 1) / pieces), n);
}

static struct work describe(const struct winograd *g)
{
    struct work k = {.g = g, .across = (g->ow + EDGE - 1) / EDGE, .down = (g->oh + EDGE - 1) / EDGE, .v = g->scratch};
    size_t most = BLOCK_FLOATS / POINTS / g->c;

    most = most < BLOCK_TILES ? BLOCK_TILES : least(most, MOST_TILES);
    k.tiles = g->n * k.across * k.down;
    k.most = piece(k.tiles, most);
    k.out = piece(g->oc, k.tiles > FEW_TILES ? PANEL_OUT : FEW_OUT);
    k.in = piece(g->c, PANEL_IN);
    k.lines = most_of(WINDOW * WINDOW * CHUNK,
                      most_of(3 * TAPS * kernel_packed(DEPTH, kernel_columns()), (EDGE + WINDOW) * EDGE * whole(k.out)));
    k.points = whole(kernel_packed(k.in, k.out));
    k.u = POINTS * k.points;
    k.m = POINTS * whole(k.most * k.out);
    k.own = k.v ? k.v + POINTS * whole(k.most * g->c) : NULL;
    return k;
}

size_t winograd_scratch(const struct winograd *g, int threads)
{
    struct work k = describe(g);

    return (POINTS * whole(k.most * g->c) + (size_t)threads * (k.lines + k.u + k.m)) * sizeof(float);
}

static float *thread_floats(const struct work *k)
{
    return k->own + (size_t)thread_index() * (k->lines + k->u + k->m);
}

/* One dimension of each transform, for n channels at once; `apart` is the distance of the results. The rows of BT, G and AT
 * for a point p are those of Cook and Toom: the product of all other (x - p'), the powers of p by that product at p, and the
 * powers of p. Points come as 0, 1/sqrt 2, -1/sqrt 2, sqrt 2, -sqrt 2, infinity. */
static inline __attribute__((always_inline)) void input_line(float *restrict y, size_t apart, const float *const d[WINDOW],
                                                             size_t n)
{
    const float *d0 = d[0], *d1 = d[1], *d2 = d[2], *d3 = d[3], *d4 = d[4], *d5 = d[5];

#pragma omp simd
    for (size_t j = 0; j < n; j++) {
        float even = d4[j] - 2 * d2[j], odd = half * d3[j] - root * d1[j];
        float even2 = d4[j] - 0.5f * d2[j], odd2 = root * d3[j] - half * d1[j];

        y[j] = d0[j] - 2.5f * d2[j] + d4[j];
        y[apart + j] = even + odd;
        y[2 * apart + j] = even - odd;
        y[3 * apart + j] = even2 + odd2;
        y[4 * apart + j] = even2 - odd2;
        y[5 * apart + j] = d1[j] - 2.5f * d3[j] + d5[j];
    }
}

static inline __attribute__((always_inline)) void weight_line(float *restrict y, size_t apart, const float *const g[3],
                                                              size_t n)
{
    const float *g0 = g[0], *g1 = g[1], *g2 = g[2];

#pragma omp simd
    for (size_t j = 0; j < n; j++) {
        float even = (g0[j] + 0.5f * g2[j]) * (-2.0f / 3), odd = g1[j] * (-2.0f / 3 * half);
        float even2 = (g0[j] + 2 * g2[j]) * (1.0f / 6), odd2 = g1[j] * (root / 6);

        y[j] = g0[j];
        y[apart + j] = even + odd;
        y[2 * apart + j] = even - odd;
        y[3 * apart + j] = even2 + odd2;
        y[4 * apart + j] = even2 - odd2;
        y[5 * apart + j] = g2[j];
    }
}

static inline __attribute__((always_inline)) void output_line(float *restrict y, size_t apart, const float *m, size_t between,
                                                              size_t n)
{
    const float *m1 = m + between, *m2 = m1 + between, *m3 = m2 + between, *m4 = m3 + between, *m5 = m4 + between;

#pragma omp simd
    for (size_t j = 0; j < n; j++) {
        float sum = m1[j] + m2[j], sum2 = m3[j] + m4[j], change = m1[j] - m2[j], change2 = m3[j] - m4[j];

        y[j] = m[j] + sum + sum2;
        y[apart + j] = half * change + root * change2;
        y[2 * apart + j] = 0.5f * sum + 2 * sum2;
        y[3 * apart + j] = quarter * change + twice * change2 + m5[j];
    }
}

/* v [36 rows `apart` from each other, n] = BT d B; d: the 36 lines of the window, line by line */
SIMD_CLONES static void input_window(float *restrict v, size_t apart, const float *const d[POINTS], float *restrict rows,
                                     size_t n)
{
    for (size_t x = 0; x < WINDOW; x++) {
        const float *const column[] = {d[x], d[6 + x], d[12 + x], d[18 + x], d[24 + x], d[30 + x]};

        input_line(rows + x * CHUNK, WINDOW * CHUNK, column, n);
    }
    for (size_t y = 0; y < WINDOW; y++) {
        const float *r = rows + y * WINDOW * CHUNK;
        const float *const line[] = {r, r + CHUNK, r + 2 * CHUNK, r + 3 * CHUNK, r + 4 * CHUNK, r + 5 * CHUNK};

        input_line(v + y * WINDOW * apart, apart, line, n);
    }
}

/* u [36 rows `apart`, n] = G w GT; taps [9, n], `turn` takes them last to first */
SIMD_CLONES static void weight_window(float *restrict u, size_t apart, const float *taps, float *restrict rows, bool turn,
                                      size_t n)
{
    for (size_t x = 0; x < 3; x++) {
        const float *const column[] = {taps + (turn ? 8 - x : x) * n, taps + (turn ? 5 - x : 3 + x) * n,
                                       taps + (turn ? 2 - x : 6 + x) * n};

        weight_line(rows + x * n, 3 * n, column, n);
    }
    for (size_t y = 0; y < WINDOW; y++) {
        const float *const line[] = {rows + 3 * y * n, rows + (3 * y + 1) * n, rows + (3 * y + 2) * n};

        weight_line(u + y * WINDOW * apart, apart, line, n);
    }
}

/* out [4, 4, n] = AT m A; m: 36 rows `apart` */
SIMD_CLONES static void output_window(float *restrict out, const float *m, size_t apart, float *restrict rows, size_t n)
{
    for (size_t x = 0; x < WINDOW; x++)
        output_line(rows + x * n, WINDOW * n, m + x * apart, WINDOW * apart, n);
    for (size_t y = 0; y < EDGE; y++)
        output_line(out + y * EDGE * n, n, rows + y * WINDOW * n, n, n);
}

SIMD_CLONES static void store(float *y, const float *restrict out, const float *restrict bias, const float *residual, size_t n)
{
    for (size_t j = 0; j < n; j++)
        y[j] = out[j] + (bias ? bias[j] : 0) + (residual ? residual[j] : 0);
}

/* Where window t of the block lies: its picture, and the pixel of y at its corner. */
static size_t locate(const struct work *k, size_t t, size_t *y, size_t *x)
{
    *x = (k->first + t) % k->across * EDGE;
    *y = (k->first + t) / k->across % k->down * EDGE;
    return (k->first + t) / k->across / k->down;
}

/* STRIP windows of the block into v. Lines outside the picture are zeros. */
static int transform_input(void *ctx, size_t index, struct err *err)
{
    static const float zeros[CHUNK];
    const struct work *k = ctx;
    const struct winograd *g = k->g;
    size_t apart = whole(k->most * g->c);

    (void)err;
    for (size_t t = index * STRIP; t < least((index + 1) * STRIP, k->count); t++) {
        size_t y0, x0, picture = locate(k, t, &y0, &x0);
        const float *d[POINTS];

        for (size_t c0 = 0; c0 < g->c; c0 += CHUNK) {
            for (size_t i = 0; i < POINTS; i++) {
                size_t y = y0 + i / WINDOW - g->pad, x = x0 + i % WINDOW - g->pad; /* wraps when negative: outside, too */

                d[i] = y < g->h && x < g->w ? g->x + ((picture * g->h + y) * g->w + x) * g->c + c0 : zeros;
            }
            input_window(k->v + t * g->c + c0, apart, d, thread_floats(k), least(CHUNK, g->c - c0));
        }
    }
    return 0;
}

/* u: 36 packed panels (kernel.h) of [ins, outs]. The taps are packed first, a few input channels at a time, so that the
 * transform goes along the packed order and its results need no other. */
static void transform_weights(const struct work *k, float *lines, float *u, size_t o0, size_t outs, size_t c0, size_t ins)
{
    const struct winograd *g = k->g;
    size_t width = g->back ? g->oc : g->c, size = dtype_size(g->dtype), unit = kernel_columns();

    for (size_t o = 0; o < outs; o += unit)
        for (size_t c = 0; c < ins; c += DEPTH) {
            size_t cols = least(unit, outs - o), depth = least(DEPTH, ins - c), n = kernel_packed(depth, cols);
            size_t row = g->back ? c0 + c : o0 + o, col = g->back ? o0 + o : c0 + c;
            const char *w = (const char *)g->weight + (row * TAPS * width + col) * size;

            for (size_t tap = 0; tap < TAPS; tap++)
                (g->back ? kernel_pack : kernel_pack_transposed)(lines + tap * n, depth, 0, w + tap * width * size, g->dtype,
                                                                 TAPS * width, depth, cols);
            weight_window(u + kernel_packed(ins, o) + kernel_packed(c, cols), k->points, lines, lines + TAPS * n, g->back, n);
        }
}

static void transform_output(const struct work *k, float *lines, const float *m, size_t o0, size_t outs)
{
    const struct winograd *g = k->g;
    float *out = lines, *rows = lines + EDGE * EDGE * outs;

    for (size_t t = 0; t < k->count; t++) {
        size_t y0, x0, picture = locate(k, t, &y0, &x0);

        output_window(out, m + t * outs, whole(k->most * k->out), rows, outs);
        for (size_t y = y0; y < least(y0 + EDGE, g->oh); y++)
            for (size_t x = x0; x < least(x0 + EDGE, g->ow); x++) {
                size_t at = ((picture * g->oh + y) * g->ow + x) * g->oc + o0;

                store(g->y + at, out + ((y - y0) * EDGE + x - x0) * outs, g->bias ? g->bias + o0 : NULL,
                      g->residual ? g->residual + at : NULL, outs);
            }
    }
}

/* One panel of output channels for all windows of the block. */
static int multiply(void *ctx, size_t index, struct err *err)
{
    const struct work *k = ctx;
    const struct winograd *g = k->g;
    size_t o0 = index * k->out, outs = least(k->out, g->oc - o0), vs = whole(k->most * g->c), ms = whole(k->most * k->out);
    float *lines = thread_floats(k), *u = lines + k->lines, *m = u + k->u;

    (void)err;
    for (size_t c0 = 0; c0 < g->c; c0 += k->in) {
        size_t ins = least(k->in, g->c - c0);

        transform_weights(k, lines, u, o0, outs, c0, ins);
        for (size_t p = 0; p < POINTS; p++) {
            const struct kernel_call c = {.rows = k->count, .cols = outs, .k = ins, .x = k->v + p * vs + c0, .row = g->c,
                                          .step = 1, .packed = u + p * k->points, .y = m + p * ms, .ldy = outs, .alpha = 1,
                                          .add = c0 > 0};

            kernel_multiply(&c);
        }
    }
    transform_output(k, lines, m, o0, outs);
    return 0;
}

int winograd_run(const struct winograd *g, struct err *err)
{
    struct work k = describe(g);

    for (k.first = 0; k.first < k.tiles; k.first += k.most) {
        k.count = least(k.most, k.tiles - k.first);
        if (thread_for((k.count + STRIP - 1) / STRIP, transform_input, &k, err) < 0 ||
            thread_for((g->oc + k.out - 1) / k.out, multiply, &k, err) < 0)
            return -1;
    }
    return 0;
}

bool winograd_pays(const struct winograd *g)
{
    struct work k = describe(g);

    return g->c >= 32 && g->oc >= 32 && k.tiles >= 4;
}

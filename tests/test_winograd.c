/* Winograd's convolution against the definition in double precision, forward and turned (the gradient of the input). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/op/winograd.h"

enum { GUARD = 16 };

static uint32_t state;

static float uniform(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(int32_t)state / 2147483648.0f;
}

static float *floats(size_t n)
{
    float *x = malloc((n + GUARD) * sizeof *x);

    assert_non_null(x);
    for (size_t i = 0; i < n + GUARD; i++)
        x[i] = uniform();
    return x;
}

/* Weight from channel c and tap (ky, kx) to output o, whichever way it is stored. */
static double weight_at(const struct winograd *g, const float *w, size_t o, size_t ky, size_t kx, size_t c)
{
    return (double)(g->back ? w[((c * 3 + 2 - ky) * 3 + 2 - kx) * g->oc + o] : w[((o * 3 + ky) * 3 + kx) * g->c + c]);
}

static double pixel(const struct winograd *g, size_t n, size_t y, size_t x, size_t c)
{
    y -= g->pad; /* wraps below zero: outside as well */
    x -= g->pad;
    return y < g->h && x < g->w ? (double)g->x[((n * g->h + y) * g->w + x) * g->c + c] : 0;
}

static double exact(const struct winograd *g, const float *w, size_t n, size_t y, size_t x, size_t o)
{
    double sum = 0;

    for (size_t tap = 0; tap < 9; tap++)
        for (size_t c = 0; c < g->c; c++)
            sum += weight_at(g, w, o, tap / 3, tap % 3, c) * pixel(g, n, y + tap / 3, x + tap % 3, c);
    return sum;
}

/* Sizes |BT|, |G|, |AT| of the transforms for points 0, +-a, +-b, infinity with a^2 = 1/2, b^2 = 2 */
#define A 0.70710678118654752
#define B 1.4142135623730951
static const double bt[6][6] = {{1, 0, 2.5, 0, 1, 0}, {0, B, 2, A, 1, 0}, {0, B, 2, A, 1, 0},
                                {0, A, .5, B, 1, 0},  {0, A, .5, B, 1, 0}, {0, 1, 0, 2.5, 0, 1}};
static const double gt[6][3] = {{1, 0, 0}, {2. / 3, A * 2 / 3, 1. / 3}, {2. / 3, A * 2 / 3, 1. / 3},
                                {1. / 6, B / 6, 1. / 3}, {1. / 6, B / 6, 1. / 3}, {0, 0, 1}};
static const double at[4][6] = {{1, 1, 1, 1, 1, 0}, {0, A, A, B, B, 0}, {0, .5, .5, 2, 2, 0}, {0, A / 2, A / 2, 2 * B, 2 * B, 1}};

/* Sum over c and the 36 points of |AT| (|G||w||GT| |BT||x||B|) |A| for one output: every intermediate number of that output is
 * at most this, in the sense of a sum of sizes. */
static double size_of(const struct winograd *g, const float *w, size_t n, size_t y, size_t x, size_t o)
{
    size_t y0 = y / 4 * 4, x0 = x / 4 * 4;
    double sum = 0;

    for (size_t c = 0; c < g->c; c++)
        for (size_t p = 0; p < 36; p++) {
            double u = 0, v = 0, a = at[y - y0][p / 6] * at[x - x0][p % 6];

            if (a == 0)
                continue;
            for (size_t i = 0; i < 36; i++)
                v += bt[p / 6][i / 6] * bt[p % 6][i % 6] * fabs(pixel(g, n, y0 + i / 6, x0 + i % 6, c));
            for (size_t i = 0; i < 9; i++)
                u += gt[p / 6][i / 3] * gt[p % 6][i % 3] * fabs(weight_at(g, w, o, i / 3, i % 3, c));
            sum += a * u * v;
        }
    return sum;
}

/* A product of the sum over c channels has been rounded at most c times; each of the two lines of a transform rounds a
 * constant, a product and 2 sums of the input and of the weight (16 in all), 5 of the output (2 x 5 + bias and residual): fewer
 * than c + 32 roundings of 2^-24 of that size. All the same sign: the strict limit. Independent ones add as their squares do:
 * so much for the root mean square over many outputs. Some 600 outputs are looked at (the sizes are dear). */
static void compare(const struct winograd *g, const float *w, const float *start)
{
    double rounds = (double)g->c + 32, errors = 0, sizes = 0;
    size_t count = g->n * g->oh * g->ow * g->oc, step = count < 1200 ? 1 : count / 1200 * 2 + 1;

    for (size_t i = 0; i < count; i += step) {
        size_t o = i % g->oc, x = i / g->oc % g->ow, y = i / g->oc / g->ow % g->oh, n = i / g->oc / g->ow / g->oh;
        double rest = (g->bias ? (double)g->bias[o] : 0) + (start ? (double)start[i] : 0);
        double want = exact(g, w, n, y, x, o) + rest, size = size_of(g, w, n, y, x, o) + fabs(rest);
        double off = fabs((double)g->y[i] - want);

        if (!(off <= rounds * 0x1p-24 * size))
            fail_msg("output (%zu, %zu, %zu, %zu) is %g, not %g", n, y, x, o, (double)g->y[i], want);
        errors += off * off;
        sizes += size * size;
    }
    if (!(errors <= rounds * 0x1p-48 * sizes))
        fail_msg("root mean square of the errors %g over limit", sqrt(errors / (rounds * 0x1p-48 * sizes)));
}

struct sizes {
    size_t n, h, w, c, oc, pad, pad_after;
    enum dtype dtype;
    bool bias, residual;
};

static void run(struct winograd *g, int threads)
{
    struct err err = {0};
    size_t bytes;

    thread_init(threads);
    bytes = winograd_scratch(g, threads);
    g->scratch = mem_new(bytes + 64, "a test", &err);
    assert_non_null(g->scratch);
    memset(g->scratch, 0xff, bytes); /* NaN: what is read unwritten shows */
    memset((char *)g->scratch + bytes, 0x5a, 64);
    assert_int_equal(winograd_run(g, &err), 0);
    for (size_t i = 0; i < 64; i++)
        assert_int_equal(((unsigned char *)g->scratch)[bytes + i], 0x5a);
    free(g->scratch);
}

static void check(const struct sizes *s, bool back)
{
    struct winograd g = {.n = s->n, .h = s->h, .w = s->w, .c = s->c, .oh = s->h + s->pad + s->pad_after - 2,
                         .ow = s->w + s->pad + s->pad_after - 2, .oc = s->oc, .pad = s->pad, .dtype = s->dtype, .back = back};
    size_t weights = 9 * s->c * s->oc, outs = s->n * g.oh * g.ow * s->oc;
    float *w = floats(weights), *x = floats(s->n * s->h * s->w * s->c), *bias = floats(s->oc), *start = floats(outs);
    float *y = floats(outs), *first = floats(outs);
    char *stored = malloc(weights * 4);
    static const int threads[] = {1, 2, 5};

    assert_non_null(stored);
    dtype_convert(stored, s->dtype, w, DT_F32, weights);
    dtype_convert(w, DT_F32, stored, s->dtype, weights);
    g.weight = stored;
    g.x = x;
    g.y = y;
    g.bias = s->bias ? bias : NULL;
    g.residual = s->residual ? y : NULL; /* in place */
    for (size_t t = 0; t < 3; t++) {
        memcpy(y, start, (outs + GUARD) * sizeof *y);
        run(&g, threads[t]);
        assert_memory_equal(y + outs, start + outs, GUARD * sizeof *y);
        if (t == 0) {
            compare(&g, w, s->residual ? start : NULL);
            memcpy(first, y, outs * sizeof *y);
        } else if (memcmp(first, y, outs * sizeof *y) != 0)
            fail_msg("other bytes with %d threads", threads[t]);
    }
    free(w);
    free(x);
    free(bias);
    free(start);
    free(y);
    free(first);
    free(stored);
}

/* Whole and cut windows, panels and blocks; more channels than a panel; more windows than a block (of 1024). */
static const struct sizes rows[] = {
    {1, 8, 8, 32, 32, 1, 1, DT_F32, false, false},  {2, 13, 11, 37, 45, 1, 1, DT_F16, true, true},
    {1, 9, 6, 170, 33, 0, 0, DT_BF16, true, false}, {1, 5, 7, 700, 90, 1, 1, DT_F16, false, true},
    {1, 7, 4, 33, 170, 2, 2, DT_F16, true, false},  {1, 130, 134, 8, 5, 1, 1, DT_F16, true, true},
    {3, 1, 3, 3, 1, 0, 2, DT_F32, true, false},
};

static void test_forward(void **arg)
{
    (void)arg;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check(&rows[i], false);
}

static void test_turned(void **arg)
{
    (void)arg;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check(&rows[i], true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forward), cmocka_unit_test(test_turned)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

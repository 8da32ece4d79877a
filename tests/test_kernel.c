/* The innermost product against sums in f64, with every instruction set that this machine has, all ways to pack and to read. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/op/kernel_bf16.h"

enum { GUARD = 32 };

static uint32_t state = 1;

static float uniform(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(int32_t)state / 2147483648.0f;
}

/* n elements of a type, as the file would have them, and the same as f32. */
static void *typed(float *exact, enum dtype dtype, size_t n)
{
    char *p = malloc(n * dtype_size(dtype));

    assert_non_null(p);
    for (size_t i = 0; i < n; i++)
        exact[i] = uniform();
    dtype_convert(p, dtype, exact, DT_F32, n);
    dtype_convert(exact, DT_F32, p, dtype, n);
    return p;
}

static float *floats(size_t n)
{
    float *p = malloc((n + GUARD) * sizeof *p);

    assert_non_null(p);
    for (size_t i = 0; i < n + GUARD; i++)
        p[i] = uniform();
    return p;
}

struct sizes {
    size_t rows, cols, k;
};

/* W is packed in two steps, so that both an offset and panels deeper than a step are seen. */
static void pack(float *dst, const struct sizes *s, bool transposed, const void *w, enum dtype dtype, size_t ld)
{
    size_t half = s->k / 2, size = dtype_size(dtype);

    (transposed ? kernel_pack_transposed : kernel_pack)(dst, s->k, half, (const char *)w + half * (transposed ? 1 : ld) * size,
                                                        dtype, ld, s->k - half, s->cols);
    (transposed ? kernel_pack_transposed : kernel_pack)(dst, s->k, 0, w, dtype, ld, half, s->cols);
}

/* An element is a sum of k products: k + 2 roundings of at most 2^-24 of the sum of magnitudes, its addition to y among them. */
static void compare(const struct kernel_call *c, const struct sizes *s, const float *w, size_t wr, size_t wc, const float *before)
{
    for (size_t i = 0; i < s->rows; i++)
        for (size_t j = 0; j < s->cols; j++) {
            double start = c->add ? (double)before[i * c->ldy + j] : 0, sum = start, size = fabs(start), got;

            for (size_t p = 0; p < s->k; p++) {
                double t = (double)c->alpha * (double)c->x[i * c->row + p * c->step] * (double)w[p * wr + j * wc];

                sum += t;
                size += fabs(t);
            }
            got = (double)c->y[i * c->ldy + j];
            if (!(fabs(got - sum) <= ((double)s->k + 2) * 0x1p-24 * size))
                fail_msg("%zux%zux%zu: element %zu, %zu is %g, not %g", s->rows, s->cols, s->k, i, j, got, sum);
        }
}

static void run(const struct sizes *s, enum dtype dtype, bool transposed, bool turned, bool add)
{
    size_t ld = (transposed ? s->k : s->cols) + 3, lines = transposed ? s->cols : s->k, ldy = s->cols + 5;
    float *exact = malloc(ld * lines * sizeof *exact), *x = floats((s->rows + 2) * (s->k + 2));
    void *w = typed(exact, dtype, ld * lines);
    size_t room = kernel_packed(s->k, s->cols);
    float *packed = floats(room), *y = floats(s->rows * ldy), *before = floats(s->rows * ldy), guard[GUARD];
    struct kernel_call c = {.rows = s->rows, .cols = s->cols, .k = s->k, .x = x, .row = turned ? 1 : s->k + 2,
                            .step = turned ? s->rows + 2 : 1, .packed = packed, .y = y, .ldy = ldy, .alpha = add ? 0.75f : 1,
                            .add = add};

    memcpy(guard, packed + room, sizeof guard);
    memcpy(before, y, (s->rows * ldy + GUARD) * sizeof *y);
    pack(packed, s, transposed, w, dtype, ld);
    assert_memory_equal(guard, packed + room, sizeof guard);
    kernel_multiply(&c);
    for (size_t i = 0; i < s->rows; i++)
        assert_memory_equal(y + i * ldy + s->cols, before + i * ldy + s->cols, (ldy - s->cols) * sizeof *y);
    assert_memory_equal(y + s->rows * ldy, before + s->rows * ldy, GUARD * sizeof *y);
    compare(&c, s, exact, transposed ? 1 : ld, transposed ? ld : 1, before);
    free(exact), free(x), free(w), free(packed), free(y), free(before);
}

static void test_product(void **unused)
{
    static const struct sizes all[] = {{1, 1, 1},  {1, 3, 2},   {5, 7, 3},    {12, 32, 16}, {13, 33, 17}, {23, 40, 40},
                                       {24, 80, 9}, {37, 77, 64}, {11, 16, 130}, {7, 8, 300},  {14, 100, 5}};
    static const enum dtype dtypes[] = {DT_F32, DT_F16, DT_BF16};

    (void)unused;
    for (int level = SIMD_BASE; level <= (int)simd_level(); level++) {
        kernel_limit((enum simd_level)level);
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            for (unsigned way = 0; way < 24; way++)
                run(&all[i], dtypes[way / 8], way & 1, way & 2, way & 4);
    }
}

/* An element is the same bytes whatever is computed beside it. */
static void test_alone(void **unused)
{
    struct sizes s = {29, 75, 50};
    float *x = floats(s.rows * s.k), *w = floats(s.k * s.cols), *y = floats(s.rows * s.cols);

    (void)unused;
    for (int level = SIMD_BASE; level <= (int)simd_level(); level++) {
        float *packed;

        kernel_limit((enum simd_level)level);
        packed = floats(kernel_packed(s.k, s.cols));
        kernel_pack(packed, s.k, 0, w, DT_F32, s.cols, s.k, s.cols);
        kernel_multiply(&(struct kernel_call){s.rows, s.cols, s.k, x, s.k, 1, packed, y, s.cols, 1, false, false});
        for (size_t i = 0; i < s.rows; i++)
            for (size_t first = 0; first < s.cols; first += kernel_columns()) {
                size_t cols = s.cols - first < 5 ? s.cols - first : 5;
                float one[5];

                kernel_pack(packed, s.k, 0, w + first, DT_F32, s.cols, s.k, cols);
                kernel_multiply(&(struct kernel_call){1, cols, s.k, x + i * s.k, s.k, 1, packed, one, 5, 1, false, false});
                assert_memory_equal(one, y + i * s.cols + first, cols * sizeof *one);
            }
        free(packed);
    }
    free(x), free(w), free(y);
}

/* Factors that bf16 holds exactly: then a product in bf16 is as exact as one in f32, and limits are compare()'s. Odd lengths
 * have a term of zeros at the end. */
static void run_bf16(const struct sizes *s, enum dtype dtype, bool transposed, bool add)
{
    size_t ld = (transposed ? s->k : s->cols) + 3, lines = transposed ? s->cols : s->k, pairs = kernel_pairs(s->k);
    size_t half = s->k / 4 * 2, size = dtype_size(dtype), room = kernel_packed(pairs, s->cols);
    float *exact = malloc(ld * lines * sizeof *exact), *rounded = malloc(ld * lines * sizeof *rounded);
    float *x = floats(s->rows * (s->k + 2)), *x2 = floats(s->rows * pairs), *packed = floats(room), *y = floats(s->rows * s->cols);
    float *before = malloc(s->rows * s->cols * sizeof *before);
    uint16_t *w16 = malloc(ld * lines * sizeof *w16);
    char *w = malloc(ld * lines * size);
    struct kernel_call c = {.rows = s->rows, .cols = s->cols, .k = pairs, .x = x2, .row = pairs, .step = 1, .packed = packed,
                            .y = y, .ldy = s->cols, .alpha = 0.5f, .add = add, .bf16 = true};
    void (*pack_rows)(float *, size_t, size_t, const void *, enum dtype, size_t, size_t, size_t) =
        transposed ? kernel_pack_pairs_transposed : kernel_pack_pairs;

    assert_true(exact && rounded && before && w16 && w);
    for (size_t i = 0; i < ld * lines; i++)
        exact[i] = uniform();
    dtype_convert(w16, DT_BF16, exact, DT_F32, ld * lines);
    dtype_convert(rounded, DT_F32, w16, DT_BF16, ld * lines);
    dtype_convert(w, dtype, rounded, DT_F32, ld * lines);
    for (size_t i = 0; i < s->rows * (s->k + 2); i++)
        x[i] = dtype_bf16_to_f32(dtype_f32_to_bf16(x[i]));
    memcpy(before, y, s->rows * s->cols * sizeof *y);
    kernel_pair_rows(x2, x, s->k + 2, s->rows, s->k);
    pack_rows(packed, pairs, half / 2, w + half * (transposed ? 1 : ld) * size, dtype, ld, s->k - half, s->cols);
    pack_rows(packed, pairs, 0, w, dtype, ld, half, s->cols);
    kernel_multiply(&c);
    c.x = x, c.row = s->k + 2;
    compare(&c, s, rounded, transposed ? 1 : ld, transposed ? ld : 1, before);
    free(exact), free(rounded), free(x), free(x2), free(packed), free(y), free(before), free(w16), free(w);
}

/* Weights of small f16 numbers lose bits below 2^-24, so f16 is left to f32's test: bf16 and f32 hold the same numbers. */
static void test_bf16(void **unused)
{
    static const struct sizes all[] = {{1, 1, 1}, {5, 7, 3}, {12, 32, 16}, {13, 33, 17}, {23, 40, 40}, {16, 77, 131}, {31, 8, 300}};

    (void)unused;
    kernel_limit(SIMD_LEVEL_V4);
    if (!kernel_has_bf16())
        skip();
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (unsigned way = 0; way < 8; way++)
            run_bf16(&all[i], way & 1 ? DT_BF16 : DT_F32, way & 2, way & 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_product), cmocka_unit_test(test_alone), cmocka_unit_test(test_bf16)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* ref/base/dtype.c: conversions bit for bit as numpy and torch make them (golden/make_dtype.py states the inputs) */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "ref/base/dtype.h"

enum { RANDOM = 1 << 18, MOST = 400000, BLOCK = 4096 };

static uint32_t mix(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

/* The value of a 16-bit float of `fraction` bits of fraction, from its definition. */
static double value16(unsigned h, int fraction, int bias)
{
    int e = (int)(h >> fraction), m = (int)(h & ((1u << fraction) - 1));

    return ldexp(e == 0 ? m : m + (1 << fraction), (e == 0 ? 1 : e) - bias - fraction);
}

static void put(void *x, size_t i, enum dtype t, double v)
{
    if (t == DT_F64)
        ((double *)x)[i] = v;
    else
        ((float *)x)[i] = (float)v;
}

static double next(double v, enum dtype t, double toward)
{
    return t == DT_F64 ? nextafter(v, toward) : (double)nextafterf((float)v, (float)toward);
}

static size_t make_edges(void *x, enum dtype wide, enum dtype kind)
{
    int fraction = kind == DT_F16 ? 10 : 7, bias = kind == DT_F16 ? 15 : 127;
    size_t n = 0;

    for (int sign = 1; sign >= -1; sign -= 2)
        for (unsigned h = 0; h < (kind == DT_F16 ? 0x7c00u : 0x7f80u); h++) {
            double v = value16(h, fraction, bias), m = (v + value16(h + 1, fraction, bias)) / 2;

            put(x, n++, wide, sign * next(m, wide, -HUGE_VAL));
            put(x, n++, wide, sign * m);
            put(x, n++, wide, sign * next(m, wide, HUGE_VAL));
            put(x, n++, wide, sign * next(v, wide, -HUGE_VAL));
            put(x, n++, wide, sign * next(v, wide, HUGE_VAL));
        }
    return n;
}

static size_t make_random64(uint64_t *x, enum dtype to)
{
    int low = to == DT_F16 ? -30 : to == DT_BF16 ? -140 : -155;
    uint32_t span = to == DT_F16 ? 50 : to == DT_BF16 ? 272 : 290;

    for (uint32_t i = 0; i < RANDOM; i++) {
        uint64_t hi = mix(2 * i), lo = mix(2 * i + 1), e = (uint64_t)(1023 + low) + mix(i) % span;

        x[i] = hi >> 31 << 63 | e << 52 | (hi & 0xfffff) << 32 | lo;
    }
    return RANDOM;
}

static size_t make_inputs(const char *how, void *x, enum dtype from, enum dtype to)
{
    if (strcmp(how, "edges") == 0)
        return make_edges(x, from, to);
    if (strcmp(how, "random64") == 0)
        return make_random64(x, to);
    if (strcmp(how, "random32") == 0) {
        for (uint32_t i = 0; i < RANDOM; i++)
            ((uint32_t *)x)[i] = mix(i);
        return RANDOM;
    }
    for (uint32_t i = 0; i < 65536; i++)
        ((uint16_t *)x)[i] = (uint16_t)i;
    return 65536;
}

/* Checks that a NaN is quiet and cuts its payload, as the oracle's file does. */
static void cut_nan(void *y, size_t i, enum dtype t)
{
    static const uint64_t quiet[DT_COUNT] = {
        [DT_F32] = 0x7fc00000, [DT_F16] = 0x7e00, [DT_BF16] = 0x7fc0, [DT_F64] = 0x7ff8000000000000};
    size_t size = dtype_size(t);
    uint64_t bits = 0, sign = (uint64_t)1 << (8 * size - 1), q = quiet[t], inf = q & (q << 1);

    memcpy(&bits, (char *)y + i * size, size);
    if ((bits & ~sign) <= inf)
        return;
    assert_true((bits & q) == q);
    bits &= sign | q;
    memcpy((char *)y + i * size, &bits, size);
}

static enum dtype type_of(const char *name)
{
    enum dtype t = DT_COUNT;

    assert_true(dtype_parse(name, &t));
    return t;
}

static void test_golden(void **state)
{
    FILE *f = fopen("golden/dtype.txt", "r");
    void *x = malloc(MOST * 8), *y = malloc(MOST * 8);
    char how[16], from_name[8], to_name[8];
    size_t count;
    int cases = 0;

    (void)state;
    assert_non_null(f);
    while (fscanf(f, "%15s %7s %7s %zu", how, from_name, to_name, &count) == 4) {
        enum dtype from = type_of(from_name), to = type_of(to_name);
        size_t n = make_inputs(how, x, from, to), size = dtype_size(to);

        assert_int_equal(n, count);
        dtype_convert(y, to, x, from, n);
        for (size_t i = 0; i < n; i++)
            cut_nan(y, i, to);
        for (size_t at = 0; at < n; at += BLOCK) {
            size_t m = n - at < BLOCK ? n - at : BLOCK;
            unsigned want;

            assert_int_equal(fscanf(f, "%x", &want), 1);
            if (crc32_z(0, (unsigned char *)y + at * size, m * size) != want)
                fail_msg("%s %s to %s: results %zu to %zu differ", how, from_name, to_name, at, at + m - 1);
        }
        cases++;
    }
    assert_int_equal(cases, 16);
    fclose(f);
    free(x);
    free(y);
}

/* One at a time, in short arrays and off their alignment: the same bits, and nothing written beyond the end. */
static void test_short_arrays(void **state)
{
    (void)state;
    for (size_t n = 0; n < 70; n++)
        for (size_t shift = 0; shift < 3; shift++) {
            uint16_t h[80], back[80];
            float x[80], f[80];

            for (size_t i = 0; i < 80; i++)
                h[i] = (uint16_t)mix((uint32_t)(n * 240 + shift * 80 + i)), back[i] = 0x1234, f[i] = 7, x[i] = 0;
            dtype_convert(f + shift, DT_F32, h + shift, DT_F16, n);
            for (size_t i = 0; i < n; i++)
                x[shift + i] = dtype_f16_to_f32(h[shift + i]);
            assert_memory_equal(f + shift, x + shift, n * 4);
            assert_true(f[shift + n] == 7);
            dtype_convert(back + shift, DT_BF16, f + shift, DT_F32, n);
            for (size_t i = 0; i < n; i++)
                assert_int_equal(back[shift + i], dtype_f32_to_bf16(f[shift + i]));
            assert_int_equal(back[shift + n], 0x1234);
            dtype_convert(back + shift, DT_F16, f + shift, DT_F32, n);
            for (size_t i = 0; i < n; i++)
                assert_int_equal(back[shift + i], dtype_f32_to_f16(f[shift + i]));
            dtype_convert(f + shift, DT_F32, h + shift, DT_BF16, n);
            for (size_t i = 0; i < n; i++)
                x[shift + i] = dtype_bf16_to_f32(h[shift + i]);
            assert_memory_equal(f + shift, x + shift, n * 4);
            dtype_convert(f + shift, DT_F32, f + shift, DT_F32, n); /* in place, same type */
            assert_memory_equal(f + shift, x + shift, n * 4);
        }
}

static void test_nonfinite(void **state)
{
    static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F64};
    static const double bad[] = {HUGE_VAL, -HUGE_VAL, NAN};
    enum { N = 10000 };
    double *x = malloc(N * 8);
    unsigned char *y = malloc(N * 8);

    (void)state;
    for (size_t i = 0; i < N; i++)
        x[i] = (i % 2 ? -1 : 1) * 60000.0 / (double)(1 + i % 100);
    for (size_t t = 0; t < 4; t++)
        for (size_t b = 0; b < 3; b++)
            for (size_t at = 0; at < N; at += 977) {
                double keep = x[at];

                dtype_convert(y, types[t], x, DT_F64, N);
                assert_int_equal(dtype_find_nonfinite(y, types[t], N), N);
                x[at] = bad[b];
                dtype_convert(y, types[t], x, DT_F64, N);
                assert_int_equal(dtype_find_nonfinite(y, types[t], N), at);
                assert_int_equal(dtype_find_nonfinite(y, types[t], at), at);
                x[at] = keep;
            }
    memset(y, 0xff, 8);
    assert_int_equal(dtype_find_nonfinite(y, DT_I64, 1), 1);
    free(x);
    free(y);
}

static void test_names(void **state)
{
    enum dtype t;

    (void)state;
    for (int i = 0; i < DT_COUNT; i++) {
        size_t size = dtype_size((enum dtype)i);

        assert_true(size == 1 || size == 2 || size == 4 || size == 8);
        assert_non_null(dtype_name((enum dtype)i));
        assert_int_equal(dtype_parse(dtype_name((enum dtype)i), &t), dtype_is_float((enum dtype)i));
    }
    assert_int_equal(type_of("half"), DT_F16);
    assert_int_equal(type_of("bfloat16"), DT_BF16);
    assert_int_equal(type_of("float"), DT_F32);
    assert_false(dtype_parse("fp8", &t));
    assert_false(dtype_parse("", &t));
}

/* What the processor's instruction gives, where it has one, against the plain code for one value: every f16, and an f32 in 257 (a
 * prime, so all exponents and endings come). */
static void test_half(void **state)
{
    enum { N = 1 << 16 };
    static uint16_t half[N], back[N];
    static float whole[N];

    (void)state;
    for (uint32_t i = 0; i < N; i++)
        half[i] = (uint16_t)i;
    dtype_convert(whole, DT_F32, half, DT_F16, N);
    for (uint32_t i = 0; i < N; i++) {
        float one = dtype_f16_to_f32(half[i]);

        assert_memory_equal(&whole[i], &one, sizeof one);
    }
    for (uint64_t at = 0; at < (uint64_t)1 << 32; at += (uint64_t)N * 257) {
        for (uint32_t i = 0; i < N; i++) {
            uint32_t bits = (uint32_t)(at + (uint64_t)i * 257);

            memcpy(&whole[i], &bits, sizeof bits);
        }
        dtype_convert(back, DT_F16, whole, DT_F32, N);
        for (uint32_t i = 0; i < N; i++)
            if (back[i] != dtype_f32_to_f16(whole[i]))
                fail_msg("%a becomes %#x, not %#x", (double)whole[i], back[i], dtype_f32_to_f16(whole[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_half),
        cmocka_unit_test(test_short_arrays),
        cmocka_unit_test(test_nonfinite),
        cmocka_unit_test(test_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

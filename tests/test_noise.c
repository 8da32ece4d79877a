/* Noises of pictures and guidance against torch (golden/make_noise.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/diffusion/guidance.h"
#include "ref/diffusion/noise.h"
#include "tests/lib/golden.h"

static struct tensor_file *golden;

/* Limits: see tests/test_rng.c (f32 sines in torch's vector code; doubles below 16 elements). */
static void test_noise(void **state)
{
    static const struct {
        uint64_t seed;
        size_t h, w;
    } cases[] = {{1, 8, 8}, {2147483647, 5, 7}, {42, 1, 3}};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        size_t n = 4 * cases[i].h * cases[i].w;
        float x[4][256], again[256], *want;
        double abs_limit = n < 16 ? 0 : 3.5e-6, rel_limit = n < 16 ? 0x1p-23 : 0;
        char name[64];
        struct noise s;
        struct err err;

        snprintf(name, sizeof name, "noise.%llu", (unsigned long long)cases[i].seed);
        want = golden_f32(golden, name, NULL);
        assert_int_equal(noise_begin(&s, NOISE_CPU, cases[i].seed, 4, cases[i].h, cases[i].w, &err), 0);
        for (size_t k = 0; k < 4; k++) {
            noise_next(&s, x[k]);
            golden_close(name, x[k], want + k * n, n, abs_limit, rel_limit);
        }
        noise_seek(&s, 1);
        noise_next(&s, again);
        assert_memory_equal(again, x[1], n * sizeof *again);
        noise_seek(&s, 3);
        noise_next(&s, again);
        assert_memory_equal(again, x[3], n * sizeof *again);
        noise_end(&s);
        free(want);
    }
}

/* The numbers themselves are tested with rng.c; here: channels go last, and seeking finds the same noise. */
static void test_cuda(void **state)
{
    float plane[4 * 6], x[4 * 6], again[4 * 6];
    struct noise s;
    struct err err;

    (void)state;
    assert_int_equal(noise_begin(&s, NOISE_CUDA, 7, 4, 2, 3, &err), 0);
    noise_seek(&s, 2);
    noise_next(&s, x);
    rng_philox_normal(7, 2, plane, 24);
    for (size_t p = 0; p < 6; p++)
        for (size_t c = 0; c < 4; c++)
            assert_true(x[p * 4 + c] == plane[c * 6 + p]);
    noise_seek(&s, 0);
    noise_next(&s, again);
    noise_next(&s, again);
    noise_next(&s, again);
    assert_memory_equal(x, again, sizeof x);
    noise_end(&s);
}

static void test_guidance(void **state)
{
    float *text = golden_f32(golden, "text", NULL), *negative = golden_f32(golden, "negative", NULL);
    float *uncond = golden_f32(golden, "uncond", NULL), *want = golden_f32(golden, "guided", NULL), out[200];

    (void)state;
    guidance(out, text, uncond, 7.5f, 200);
    assert_memory_equal(out, want, sizeof out);
    free(want);
    want = golden_f32(golden, "guided3", NULL);
    guidance_negative(out, text, negative, uncond, 7.5f, 1.3f, 200);
    assert_memory_equal(out, want, sizeof out);
    memcpy(out, text, sizeof out);
    guidance_negative(out, out, negative, uncond, 7.5f, 1.3f, 200);
    assert_memory_equal(out, want, sizeof out);
    free(text);
    free(negative);
    free(uncond);
    free(want);
}

static void test_too_large(void **state)
{
    struct noise s;
    struct err err;

    (void)state;
    assert_int_equal(noise_begin(&s, NOISE_CPU, 1, 4, SIZE_MAX / 4, 8, &err), -1);
    noise_end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_cuda),
        cmocka_unit_test(test_guidance),
        cmocka_unit_test(test_too_large),
    };
    int failed;

    golden = golden_open("noise.safetensors");
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    tensor_file_close(golden);
    return failed;
}

/* Random numbers against torch's (golden/make_rng.py, golden/make_rng_cuda.py). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/rng.h"
#include "tests/lib/golden.h"

static struct tensor_file *golden;
static const unsigned long long seeds[] = {0, 42, (1ull << 32) + 7};
enum { SEEDS = sizeof seeds / sizeof seeds[0] };

static float *want_f32(const char *kind, unsigned long long seed, size_t n)
{
    char name[64];
    size_t count;
    float *x;

    snprintf(name, sizeof name, "%s.%llu.%zu", kind, seed, n);
    x = golden_f32(golden, name, &count);
    return x;
}

/* Vector path: torch computes the angle in f32 (half a unit in the last place at 2 pi: 2.4e-7) and its sine within two more;
 * the radius is at most sqrt(2 * 24 ln 2) = 5.77, its own relative error 2^-22. So |difference| <= 5.77 * (2.4e-7 + 2 * 6e-8
 * + 2.4e-7) = 3.5e-6. Scalar path: doubles on both sides, one rounding to f32, libm differences below it: 2^-23 relative. */
static void test_normal(void **state)
{
    static const size_t counts[] = {1, 7, 15, 16, 17, 31, 64, 1000};

    (void)state;
    for (size_t s = 0; s < SEEDS; s++)
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            size_t n = counts[c];
            float *want = want_f32("normal", seeds[s], n), *then = want_f32("then_normal", seeds[s], n), x[1000];
            struct rng r;

            rng_seed(&r, seeds[s]);
            rng_normal(&r, x, n);
            golden_close("normal", x, want, n, n < 16 ? 0 : 3.5e-6, n < 16 ? 0x1p-23 : 0);
            rng_normal(&r, x, 5);
            golden_close("the normals after", x, then, 5, 0, 0x1p-23);
            free(want);
            free(then);
        }
}

static void test_uniform_and_integers(void **state)
{
    (void)state;
    for (size_t s = 0; s < SEEDS; s++) {
        float *want = want_f32("uniform", seeds[s], 1300);
        struct rng r;
        char name[64];
        int32_t *below;

        rng_seed(&r, seeds[s]);
        for (size_t i = 0; i < 1300; i++)
            assert_true(rng_uniform(&r) == want[i]);
        free(want);
        snprintf(name, sizeof name, "below1000.%llu.100", seeds[s]);
        below = golden_i32(golden, name, NULL);
        rng_seed(&r, seeds[s]);
        for (size_t i = 0; i < 100; i++)
            assert_int_equal(rng_below(&r, 1000), below[i]);
        free(below);
    }
}

static void test_permutation(void **state)
{
    static const size_t counts[] = {1, 2, 100};

    (void)state;
    for (size_t s = 0; s < SEEDS; s++)
        for (size_t c = 0; c < 3; c++) {
            uint32_t p[100];
            char name[64];
            int32_t *want;
            struct rng r;

            snprintf(name, sizeof name, "permutation.%llu.%zu", seeds[s], counts[c]);
            want = golden_i32(golden, name, NULL);
            rng_seed(&r, seeds[s]);
            rng_permutation(&r, p, counts[c]);
            assert_memory_equal(p, want, counts[c] * sizeof *p);
            free(want);
        }
}

/* The device's log and sine in f32 are within 2 units in the last place, the angle's scale and the product add one each:
 * radius <= sqrt(2 * 33 ln 2) = 6.77 times 4 * 2^-24 for the sine, which is at most 1, and the same again for the radius's
 * own relative error: 3.3e-6 together. */
static void test_philox(void **state)
{
    static const unsigned long long seeds_cuda[] = {0, 42, (1ull << 40) + 7};
    static const size_t counts[] = {1, 5, 1024, 16384};
    struct tensor_file *cuda = golden_open("rng_cuda.safetensors");
    float *x = malloc(16384 * sizeof *x);

    (void)state;
    for (size_t s = 0; s < 3; s++)
        for (size_t c = 0; c < 4; c++)
            for (uint64_t call = 0; call < 2; call++) {
                size_t n, step = counts[c] > 1024 ? 16 : 1;
                char name[64];
                float *want;

                snprintf(name, sizeof name, "%s.%llu.%zu", call ? "second" : "first", seeds_cuda[s], counts[c]);
                want = golden_f32(cuda, name, &n);
                rng_philox_normal(seeds_cuda[s], call, x, counts[c]);
                for (size_t i = 0; i < n; i++)
                    x[i] = x[i * step];
                golden_close(name, x, want, n, 3.3e-6, 0);
                free(want);
            }
    free(x);
    tensor_file_close(cuda);
}

static void test_state_is_plain_data(void **state)
{
    struct rng a, b;
    float x[40], y[40];

    (void)state;
    rng_seed(&a, 5);
    rng_normal(&a, x, 3);
    memcpy(&b, &a, sizeof b);
    rng_normal(&a, x, 40);
    rng_normal(&b, y, 40);
    assert_memory_equal(x, y, sizeof x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_normal),      cmocka_unit_test(test_uniform_and_integers), cmocka_unit_test(test_permutation),
        cmocka_unit_test(test_philox),      cmocka_unit_test(test_state_is_plain_data),
    };
    int failed;

    golden = golden_open("rng.safetensors");
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    tensor_file_close(golden);
    return failed;
}

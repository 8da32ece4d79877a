/* Seeds of pictures against Python's random (golden/make_seeds.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>

#include "ref/diffusion/seed.h"

static void test_seeds(void **state)
{
    FILE *f = fopen("golden/seeds.txt", "r");
    uint64_t seed;
    size_t count, each, lines = 0;

    (void)state;
    assert_non_null(f);
    while (fscanf(f, "%" SCNu64 " %zu %zu", &seed, &count, &each) == 3) {
        uint64_t seeds[16], want;

        assert_true(count <= 16);
        seed_pictures(seed, count, each, seeds);
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(fscanf(f, "%" SCNu64, &want), 1);
            if (seeds[i] != want)
                fail_msg("seed %" PRIu64 ", %zu pictures: number %zu has %" PRIu64 ", should have %" PRIu64, seed, count, i,
                         seeds[i], want);
        }
        lines++;
    }
    fclose(f);
    assert_int_equal(lines, 28);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

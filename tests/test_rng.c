/* Random numbers against torch's (the group "rng" of lora verify). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "ref/base/rng.h"
#include "tests/lib/verify_group.h"

static void test_golden(void **state)
{
    (void)state;
    verify_group(verify_rng, 80);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_state_is_plain_data)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

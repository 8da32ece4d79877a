/* The model that ships with the project, end to end, against diffusers in float64: the group "pictures" of lora verify. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "ref/base/thread.h"
#include "tests/lib/verify_group.h"

static void test_golden(void **state)
{
    (void)state;
    verify_group(verify_pictures, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden)};

    thread_init(2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

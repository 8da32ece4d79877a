/* The noise schedule against diffusers' (the group "schedule" of lora verify), its ends, and conversions of predictions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/diffusion/schedule.h"
#include "tests/lib/verify_group.h"

static void test_golden(void **state)
{
    (void)state;
    verify_group(verify_schedule, 10);
}

static void test_zero_snr(void **state)
{
    struct schedule s;

    (void)state;
    schedule_init(&s);
    schedule_zero_snr(&s);
    assert_true(s.bar[SCHEDULE_STEPS - 1] == 0);
    assert_true(schedule_min_snr(&s, SCHEDULE_STEPS - 1, 5, PREDICT_EPS) == 1);
    assert_true(schedule_min_snr(&s, SCHEDULE_STEPS - 1, 5, PREDICT_V) == 0);
}

/* Each conversion on x = a x0 + s e must give what the definitions say: three products and sums in f64 on each side, and at
 * most a division by the smaller of a and s: error <= 8 eps64 * (|x0| + |e|) / min(a, s)^2. */
static void test_conversions(void **state)
{
    const double bars[] = {0.999, 0.5, 0.0047, 1e-6}, x0 = 0.7, e = -1.3;

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        double a = sqrt(bars[i]), s = sqrt(1 - bars[i]), x = a * x0 + s * e, value[3];
        double least = a < s ? a : s, limit = 8 * 0x1p-52 * 2 / (least * least);

        value[PREDICT_EPS] = e, value[PREDICT_V] = a * e - s * x0, value[PREDICT_X0] = x0;
        for (int from = 0; from < 3; from++)
            for (int to = 0; to < 3; to++) {
                double m, q;

                schedule_convert(bars[i], (enum prediction)from, (enum prediction)to, &m, &q);
                if (!(fabs(m * value[from] + q * x - value[to]) <= limit))
                    fail_msg("bar %g, from %d to %d: %g, should be %g", bars[i], from, to, m * value[from] + q * x, value[to]);
            }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_zero_snr),
        cmocka_unit_test(test_conversions),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* exp, erf and activations against libm in f64 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "ref/op/vmath.h"

static const double eps = 0x1p-24; /* half a unit in the last place of a number in [1, 2) */

static void test_exp(void **state)
{
    double worst = 0;

    (void)state;
    for (float x = -86.8f; x < 88.72f; x += 0.00037f) {
        double want = exp((double)x), e = fabs((double)vmath_exp(x) - want) / want;

        worst = e > worst ? e : worst;
    }
    assert_true(worst < 4 * eps); /* two units in the last place */
    assert_true(vmath_exp(0) == 1.0f);
    assert_true(vmath_exp(-1000) == 0.0f && vmath_exp(-INFINITY) == 0.0f);
    assert_true(isinf(vmath_exp(89)) && isinf(vmath_exp(INFINITY)));
    assert_true(isnan(vmath_exp(NAN)) && isnan(vmath_erf(NAN)) && isnan(vmath_gelu(NAN)) && isnan(vmath_silu(NAN)));
}

static void test_exp2_down(void **state)
{
    double worst = 0;

    (void)state;
    for (float x = -125.9f; x < 1; x += 0.00037f) {
        double want = exp2((double)x), e = fabs((double)vmath_exp2_down(x) - want) / want;

        worst = e > worst ? e : worst;
    }
    assert_true(worst < 4 * eps);
    assert_true(vmath_exp2_down(0) == 1.0f && isnan(vmath_exp2_down(NAN)));
    assert_true(vmath_exp2_down(-1000) == 0.0f && vmath_exp2_down(-INFINITY) == 0.0f);
}

/* The largest error of f against want over [-12, 12]. */
static double error_of(float (*f)(float), double (*want)(double))
{
    double worst = 0;

    for (float x = -12; x < 12; x += 0.000057f) {
        double e = fabs((double)f(x) - want((double)x));

        worst = e > worst ? e : worst;
    }
    return worst;
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu(double x) { return x * sigmoid(x); }
static double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }
static double quick_gelu(double x) { return x * sigmoid(1.702 * x); }
static double quick_gelu_slope(double x) { return sigmoid(1.702 * x) * (1 + 1.702 * x * (1 - sigmoid(1.702 * x))); }
static double gelu(double x) { return 0.5 * x * erfc(-x / sqrt(2)); }
static double gelu_slope(double x) { return 0.5 * erfc(-x / sqrt(2)) + x * exp(-x * x / 2) / sqrt(2 * M_PI); }

static void test_activations(void **state)
{
    (void)state;
    assert_true(error_of(vmath_erf, erf) < 2e-7);
    /* A sigmoid is right to about 4 half units (exp 2, sum 1, quotient 1), times x <= 12, and the product rounds once more. */
    assert_true(error_of(vmath_silu, silu) < 12 * 5 * eps);
    assert_true(error_of(vmath_quick_gelu, quick_gelu) < 12 * 5 * eps);
    /* slopes multiply it with 1 + x (1 - s), at most 1 + 0.28 * 1.702 in size, again with its 4 half units times x */
    assert_true(error_of(vmath_silu_slope, silu_slope) < 12 * 8 * eps);
    assert_true(error_of(vmath_quick_gelu_slope, quick_gelu_slope) < 12 * 1.702 * 8 * eps);
    /* erf is right to 2e-7; below x = -1 that is times |x| / 2 where the tail still counts, above times x / 2 plus rounding */
    assert_true(error_of(vmath_gelu, gelu) < 12 * (2e-7 / 2 + 2 * eps));
    assert_true(error_of(vmath_gelu_slope, gelu_slope) < 2e-7 / 2 + 8 * eps);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_exp2_down),
        cmocka_unit_test(test_activations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

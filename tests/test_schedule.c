/* The noise schedule against diffusers' (golden/make_schedule.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/diffusion/schedule.h"
#include "tests/lib/golden.h"

static struct tensor_file *golden;

static void same_bits(const char *name, const float *x, size_t n)
{
    size_t count;
    float *want = golden_f32(golden, name, &count);

    assert_int_equal(count, n);
    for (size_t i = 0; i < n; i++)
        if (x[i] != want[i])
            fail_msg("%s[%zu] is %a, should be %a", name, i, (double)x[i], (double)want[i]);
    free(want);
}

/* u = 2^-24. A root of torch's may be 2u off, ours u; so root - last is off by 3u (root + last) and two roundings, its square
 * relatively by twice that; a quotient of two neighbours adds up both, 1 - quotient rounds twice. The products collect what
 * 1 - beta loses, u a step on both sides; the errors of the roots telescope to those of the two ends. */
static void close_to_zero_snr(const struct schedule *zero)
{
    const double u = 0x1p-24;
    struct schedule s;
    float *beta = golden_f32(golden, "zero_beta", NULL), *bar = golden_f32(golden, "zero_bar", NULL);
    double last, before = 0;

    schedule_init(&s);
    last = sqrt((double)s.bar[SCHEDULE_STEPS - 1]);
    for (size_t i = 0; i + 1 < SCHEDULE_STEPS; i++) {
        double root = sqrt((double)s.bar[i]), off = 2 * (3 * u * (root + last) / (root - last) + 4 * u);
        double product = off + before + 2 * u * (double)(i + 1), limit = off + before + 4 * u;

        golden_close("zero_beta", zero->beta + i, beta + i, 1, limit, 0);
        golden_close("zero_bar", zero->bar + i, bar + i, 1, 0, product);
        before = off;
    }
    assert_true(beta[SCHEDULE_STEPS - 1] == 1 && zero->beta[SCHEDULE_STEPS - 1] == 1);
    assert_true(bar[SCHEDULE_STEPS - 1] == 0);
    free(beta);
    free(bar);
}

static void test_tables(void **state)
{
    struct schedule s;

    (void)state;
    schedule_init(&s);
    same_bits("beta", s.beta, SCHEDULE_STEPS);
    same_bits("bar", s.bar, SCHEDULE_STEPS);
    schedule_zero_snr(&s);
    close_to_zero_snr(&s);
    assert_true(s.bar[SCHEDULE_STEPS - 1] == 0);
    assert_true(schedule_min_snr(&s, SCHEDULE_STEPS - 1, 5, PREDICT_EPS) == 1);
    assert_true(schedule_min_snr(&s, SCHEDULE_STEPS - 1, 5, PREDICT_V) == 0);
}

/* Two products whose factor is a root, 3u off between torch and us, each rounded once on both sides, and their sum, rounded
 * on both: (3 + 2 + 2) u (|x0| + |noise|). */
static void test_noise_and_velocity(void **state)
{
    struct schedule s;
    float *x0 = golden_f32(golden, "x0", NULL), *noise = golden_f32(golden, "noise", NULL), noised[600], velocity[600], *want;
    double largest;
    int32_t *t = golden_i32(golden, "t", NULL);

    (void)state;
    schedule_init(&s);
    for (size_t i = 0; i < 6; i++) {
        schedule_add_noise(&s, (size_t)t[i], x0, noise, noised + 100 * i, 100);
        schedule_velocity(&s, (size_t)t[i], x0, noise, velocity + 100 * i, 100);
    }
    largest = 0;
    for (size_t i = 0; i < 100; i++)
        largest = fmax(largest, fabs((double)x0[i]) + fabs((double)noise[i]));
    want = golden_f32(golden, "noised", NULL);
    golden_close("noised", noised, want, 600, 7 * 0x1p-24 * largest, 0);
    free(want);
    want = golden_f32(golden, "velocity", NULL);
    golden_close("velocity", velocity, want, 600, 7 * 0x1p-24 * largest, 0);
    free(want);
    free(x0);
    free(noise);
    free(t);
}

/* snr = (a/b)^2 in f32: the subtraction 1 - bar is exact (bar <= 1, Sterbenz from 0.5 on; below it one rounding), two roots,
 * a quotient, a square: at most 2 * (0.5 + 0.5 + 0.5 + 0.5) + 1 half units; the weights add three roundings: 4 eps. */
static void test_weights(void **state)
{
    static const struct {
        const char *name;
        enum prediction what;
    } cases[] = {{"min_snr_eps", PREDICT_EPS}, {"min_snr_v", PREDICT_V}, {"min_snr_x0", PREDICT_X0}};
    struct schedule s;
    float x[SCHEDULE_STEPS], *want;

    (void)state;
    schedule_init(&s);
    want = golden_f32(golden, "snr", NULL);
    for (size_t i = 0; i < SCHEDULE_STEPS; i++)
        x[i] = schedule_snr(&s, i);
    golden_close("snr", x, want, SCHEDULE_STEPS, 0, 3 * 0x1p-23);
    free(want);
    for (size_t k = 0; k < 3; k++) {
        want = golden_f32(golden, cases[k].name, NULL);
        for (size_t i = 0; i < SCHEDULE_STEPS; i++)
            x[i] = schedule_min_snr(&s, i, 5, cases[k].what);
        golden_close(cases[k].name, x, want, SCHEDULE_STEPS, 0, 4 * 0x1p-23);
        free(want);
    }
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
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_noise_and_velocity),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_conversions),
    };
    int failed;

    golden = golden_open("schedule.safetensors");
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    tensor_file_close(golden);
    return failed;
}

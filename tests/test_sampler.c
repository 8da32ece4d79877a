/* Every sampler against diffusers' schedulers (the group "samplers" of lora verify), then what they cannot be asked: any number
 * of steps, batches, zero terminal SNR. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/verify/samplers.h"
#include "tests/lib/verify_group.h"

static struct sampler_problem problem;
static const struct schedule *const schedule = &problem.schedule;
static size_t n;

static void model(const float *x, double t, enum prediction what, float *out)
{
    sampler_problem_model(&problem, x, t, what, out);
}

static void first_latents(const struct sampler *s, size_t first, float *x)
{
    sampler_problem_first(&problem, s, first, x);
}

static double largest(const float *x, size_t count)
{
    double most = 0;

    for (size_t i = 0; i < count; i++)
        most = fmax(most, fabs((double)x[i]));
    return most;
}

static void test_trajectories(void **state)
{
    (void)state;
    verify_group(verify_samplers, 500);
}

/* Any number of steps works, 1 to 1,000, whatever the first one is, and from a few steps on it ends near where the model's
 * pictures are: clean latents of a normal distribution with mean up to 2 and deviation up to 0.8 drawn from noise up to 3 stay
 * below 8. (Two steps of Heun's method between sigma 14 and 0.03 do overshoot.) */
static void test_any_count(void **state)
{
    static const size_t counts[] = {1, 2, 3, 4, 6, 7, 13, 50, 333, 501, 999, 1000};

    (void)state;
    for (const struct sampler_kind *k = sampler_kinds; k->name; k++)
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
            for (int j = 0; j < 4; j++) {
                size_t steps = counts[i], firsts[4] = {0, steps - 1, steps / 2, steps > 3 ? steps - 3 : 0};
                struct sampler_config c = {k, schedule, PREDICT_V, steps, firsts[j]};
                float x[64], said[64];
                struct sampler *s;
                struct err err;

                if (!strcmp(k->name, "lcm") && steps > 50)
                    continue;
                assert_int_equal(sampler_begin(&s, &c, n, &err), 0);
                first_latents(s, c.first, x);
                while (!sampler_done(s)) {
                    size_t e = sampler_done_evaluations(s) % 80;

                    assert_true(sampler_timestep(s) >= 0 && sampler_timestep(s) <= 999);
                    sampler_input(s, x, said);
                    model(said, sampler_timestep(s), c.prediction, said);
                    if (sampler_step(s, x, said, problem.noises + e * n, &err))
                        fail_msg("%s, %zu steps from %zu: %s", k->name, steps, c.first, err.msg);
                }
                if (steps - c.first > 3 && !(largest(x, n) < 8))
                    fail_msg("%s, %zu steps from %zu: ends at %g", k->name, steps, c.first, largest(x, n));
                sampler_end(s);
            }
}

/* A picture's numbers do not depend on the others of its batch. */
static void test_batch(void **state)
{
    (void)state;
    for (const struct sampler_kind *k = sampler_kinds; k->name; k++) {
        struct sampler_config c = {k, schedule, PREDICT_EPS, 7, 0};
        struct sampler *batch, *alone;
        float both[2 * 64], one[64], in[64], said[2 * 64], noise[2 * 64];
        struct err err;

        assert_int_equal(sampler_begin(&batch, &c, 2 * n, &err), 0);
        assert_int_equal(sampler_begin(&alone, &c, n, &err), 0);
        first_latents(alone, 0, one);
        first_latents(batch, 0, both + n);
        for (size_t i = 0; i < n; i++)
            both[i] = -3 * one[i];
        for (size_t e = 0; !sampler_done(alone); e++) {
            double t = sampler_timestep(alone);

            memcpy(noise, problem.noises + (e + 40) * n, n * sizeof *noise);
            memcpy(noise + n, problem.noises + e * n, n * sizeof *noise);
            for (size_t i = 0; i < 2; i++) {
                memcpy(in, both + i * n, n * sizeof *in);
                model(in, t, PREDICT_EPS, said + i * n);
            }
            model(one, t, PREDICT_EPS, in);
            assert_int_equal(sampler_step(alone, one, in, problem.noises + e * n, &err), 0);
            assert_int_equal(sampler_step(batch, both, said, noise, &err), 0);
            assert_memory_equal(one, both + n, n * sizeof *one);
        }
        sampler_end(batch);
        sampler_end(alone);
    }
}

/* With zero terminal SNR the first level is not infinite and a v-model still arrives. */
static void test_zero_snr(void **state)
{
    struct schedule zero;

    (void)state;
    schedule_init(&zero);
    schedule_zero_snr(&zero);
    for (const struct sampler_kind *k = sampler_kinds; k->name; k++) {
        struct sampler_config c = {k, &zero, PREDICT_V, 20, 0};
        float x[64], said[64];
        struct sampler *s;
        struct err err;

        assert_int_equal(sampler_begin(&s, &c, n, &err), 0);
        first_latents(s, 0, x);
        for (size_t e = 0; !sampler_done(s); e++) {
            sampler_input(s, x, said);
            model(said, sampler_timestep(s), PREDICT_V, said);
            if (sampler_step(s, x, said, problem.noises + e * n, &err))
                fail_msg("%s: %s", k->name, err.msg);
        }
        sampler_end(s);
    }
}

static void test_errors(void **state)
{
    struct sampler_config c = {sampler_find("euler"), schedule, PREDICT_EPS, 0, 0};
    struct sampler *s;
    struct err err;
    float x[4] = {1, 2, 3, 4}, said[4] = {0, INFINITY, 0, 0};

    (void)state;
    assert_int_equal(sampler_begin(&s, &c, 4, &err), -1);
    assert_int_equal(err.kind, ERR_USAGE);
    assert_string_equal(err.msg, "cannot sample in 0 steps; give 1 to 1000");
    assert_null(s);
    c.steps = 1001;
    assert_int_equal(sampler_begin(&s, &c, 4, &err), -1);
    c.steps = c.first = 10;
    assert_int_equal(sampler_begin(&s, &c, 4, &err), -1);
    assert_string_equal(err.msg, "cannot begin at step 10 of 10; give a lower one");
    c = (struct sampler_config){sampler_find("lcm"), schedule, PREDICT_EPS, 51, 0};
    assert_int_equal(sampler_begin(&s, &c, 4, &err), -1);
    assert_int_equal(err.kind, ERR_USAGE);
    c = (struct sampler_config){sampler_find("k_euler"), schedule, PREDICT_EPS, 10, 0};
    assert_int_equal(sampler_begin(&s, &c, 4, &err), 0);
    assert_int_equal(sampler_step(s, x, said, NULL, &err), -1);
    assert_non_null(strstr(err.msg, "evaluation 1 of 10 (timestep 999)"));
    sampler_end(s);
    sampler_end(NULL);
    assert_null(sampler_find("k_heun"));
}

/* diffusers: min(int(steps * strength), steps) steps are left. */
static void test_first_step(void **state)
{
    (void)state;
    assert_int_equal(sampler_first_step(50, 0.8), 10);
    assert_int_equal(sampler_first_step(50, 1), 0);
    assert_int_equal(sampler_first_step(50, 0.999), 1);
    assert_int_equal(sampler_first_step(50, 0), 49);
    assert_int_equal(sampler_first_step(50, NAN), 49);
    assert_int_equal(sampler_first_step(3, 0.5), 2);
    assert_int_equal(sampler_first_step(1, 0.3), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trajectories), cmocka_unit_test(test_any_count), cmocka_unit_test(test_batch),
        cmocka_unit_test(test_zero_snr),     cmocka_unit_test(test_errors),    cmocka_unit_test(test_first_step),
    };
    struct verify v = {.golden = "golden"};
    struct err err = {0};
    int failed;

    if (sampler_problem_open(&problem, &v, &err))
        return 1;
    n = problem.n;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    sampler_problem_close(&problem);
    return failed;
}

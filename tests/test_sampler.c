/* Whole trajectories of every sampler against diffusers' schedulers (golden/make_samplers.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/diffusion/sampler.h"
#include "tests/lib/golden.h"

static struct tensor_file *v030, *today;
static struct schedule schedule;
static float *mean, *deviation, *start, *init, *noises;
static size_t n;

/* The model of make_samplers.py, rounded to f32 as a network's output is. */
static void model(const float *x, double t, enum prediction what, float *out)
{
    const double b0 = sqrt(0.00085), k = (sqrt(0.012) - sqrt(0.00085)) / 999;
    double bar = exp(-(pow(b0 + k * (t + 1), 3) - b0 * b0 * b0) / (3 * k)), a = sqrt(bar), s = sqrt(1 - bar);

    for (size_t i = 0; i < n; i++) {
        double m = (double)mean[i], d = (double)deviation[i], y = (double)x[i];
        double eps = s * (y - a * m) / (a * a * d * d + s * s) + 0.05 * sin(3 * y);

        out[i] = (float)(what == PREDICT_EPS ? eps : (eps - s * y) / a);
    }
}

static void first_latents(const struct sampler *s, size_t first, float *x)
{
    double signal, level;

    sampler_level(s, &signal, &level);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(first ? signal * (double)init[i] + level * (double)start[i] : sampler_init_scale(s) * (double)start[i]);
}

static double largest(const float *x, size_t count, double so_far)
{
    for (size_t i = 0; i < count; i++)
        so_far = fmax(so_far, fabs((double)x[i]));
    return so_far;
}

/* How far off the latents may be, carried along with them. With u = 2^-24 and M the largest latents here (present, next or
 * clean): an evaluation rounds x, its prediction and what is stored of it, u M each; the last two enter x through weights whose
 * absolute values sum to at most 7 (Adams-Bashforth's 55, 59, 37, 9 over 24), so an evaluation adds (1 + 2 * 7) u M. What was
 * there before moves with the flow: for a normal distribution it shrinks as the deviation of the latents does,
 * sqrt(signal^2 d^2 + noise^2), with d at most 0.8; the part of the model that is not normal, 0.05 sin 3x, stretches all
 * of it by exp(integral of 0.15 / sqrt(1 + sigma^2) d sigma) = 1.66 at most, which is in the factor 2. The first latents are
 * rounded once, and so are the golden numbers. */
struct bound {
    double off;
};

static double deviation_of(const struct sampler *s)
{
    double signal, level;

    sampler_level(s, &signal, &level);
    return sqrt(0.64 * signal * signal + level * level);
}

static void bound_step(struct bound *b, double most, double before, double after)
{
    b->off = b->off * after / before + 15 * 0x1p-24 * most;
}

static double bound_limit(const struct bound *b, double most)
{
    return 2 * b->off + 0x1p-24 * most;
}

static void one_case(const struct tensor_file *golden, const char *label, const struct sampler_config *c)
{
    char name[128];
    float x[64], input[64], said[64], clean[64], *t, *want, *scale = NULL;
    size_t evaluations;
    bool whole = c->steps != 37;
    struct bound bound;
    struct sampler *s;
    struct err err;

    snprintf(name, sizeof name, "%s/t", label);
    t = golden_f32(golden, name, &evaluations);
    snprintf(name, sizeof name, whole ? "%s/x" : "%s/last", label);
    want = golden_f32(golden, name, NULL);
    if (whole) {
        snprintf(name, sizeof name, "%s/scale", label);
        scale = golden_f32(golden, name, NULL);
    }
    assert_int_equal(sampler_begin(&s, c, n, &err), 0);
    assert_int_equal(sampler_evaluations(s), evaluations);
    first_latents(s, c->first, x);
    bound.off = 0x1p-24 * largest(x, n, 0);
    for (size_t e = 0; e < evaluations; e++) {
        double before = deviation_of(s), most = largest(x, n, 0);
        float told = (float)sampler_timestep(s), by;

        golden_close(label, &told, t + e, 1, 0, 0x1p-22);
        if (whole)
            golden_close(label, x, want + e * n, n, bound_limit(&bound, most), 0);
        sampler_input(s, x, input);
        by = input[0] / x[0]; /* two roundings here, one in the golden file */
        if (whole)
            golden_close("scale", &by, scale + e, 1, 0, 3 * 0x1p-24);
        model(input, sampler_timestep(s), c->prediction, said);
        sampler_clean(s, x, said, clean);
        most = largest(clean, n, most);
        assert_true(!sampler_wants_noise(s) || c->kind->needs_noise);
        if (sampler_step(s, x, said, sampler_wants_noise(s) ? noises + e * n : NULL, &err))
            fail_msg("%s: %s", label, err.msg);
        most = largest(x, n, most);
        bound_step(&bound, most, before, deviation_of(s));
    }
    assert_true(sampler_done(s));
    golden_close(label, x, whole ? want + evaluations * n : want, n, bound_limit(&bound, largest(x, n, 0)), 0);
    sampler_end(s);
    free(t);
    free(want);
    free(scale);
}

static void test_trajectories(void **state)
{
    static const size_t cases[][2] = {{2, 0}, {5, 0}, {20, 0}, {37, 0}, {20, 8}, {8, 3}};

    (void)state;
    for (const struct sampler_kind *k = sampler_kinds; k->name; k++)
        for (int p = 0; p < 2; p++)
            for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                struct sampler_config c = {k, &schedule, p ? PREDICT_V : PREDICT_EPS, cases[i][0], cases[i][1]};
                char label[96];

                if ((!strcmp(k->name, "pndm") && c.steps < 4) || (!strcmp(k->name, "dpmsingle") && c.first % 2))
                    continue; /* diffusers stops with an error there */
                snprintf(label, sizeof label, "%s/%s/%zu/%zu", k->name, p ? "v_prediction" : "epsilon", c.steps, c.first);
                one_case(k->in_v030 ? v030 : today, label, &c);
            }
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
                struct sampler_config c = {k, &schedule, PREDICT_V, steps, firsts[j]};
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
                    if (sampler_step(s, x, said, noises + e * n, &err))
                        fail_msg("%s, %zu steps from %zu: %s", k->name, steps, c.first, err.msg);
                }
                if (steps - c.first > 3 && !(largest(x, n, 0) < 8))
                    fail_msg("%s, %zu steps from %zu: ends at %g", k->name, steps, c.first, largest(x, n, 0));
                sampler_end(s);
            }
}

/* A picture's numbers do not depend on the others of its batch. */
static void test_batch(void **state)
{
    (void)state;
    for (const struct sampler_kind *k = sampler_kinds; k->name; k++) {
        struct sampler_config c = {k, &schedule, PREDICT_EPS, 7, 0};
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

            memcpy(noise, noises + (e + 40) * n, n * sizeof *noise);
            memcpy(noise + n, noises + e * n, n * sizeof *noise);
            for (size_t i = 0; i < 2; i++) {
                memcpy(in, both + i * n, n * sizeof *in);
                model(in, t, PREDICT_EPS, said + i * n);
            }
            model(one, t, PREDICT_EPS, in);
            assert_int_equal(sampler_step(alone, one, in, noises + e * n, &err), 0);
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
            if (sampler_step(s, x, said, noises + e * n, &err))
                fail_msg("%s: %s", k->name, err.msg);
        }
        sampler_end(s);
    }
}

static void test_errors(void **state)
{
    struct sampler_config c = {sampler_find("euler"), &schedule, PREDICT_EPS, 0, 0};
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
    c = (struct sampler_config){sampler_find("lcm"), &schedule, PREDICT_EPS, 51, 0};
    assert_int_equal(sampler_begin(&s, &c, 4, &err), -1);
    assert_int_equal(err.kind, ERR_USAGE);
    c = (struct sampler_config){sampler_find("k_euler"), &schedule, PREDICT_EPS, 10, 0};
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
    int failed;

    v030 = golden_open("samplers_v030.safetensors");
    today = golden_open("samplers.safetensors");
    schedule_init(&schedule);
    mean = golden_f32(today, "mean", &n);
    deviation = golden_f32(today, "deviation", NULL);
    start = golden_f32(today, "start", NULL);
    init = golden_f32(today, "init", NULL);
    noises = golden_f32(today, "noise", NULL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(mean);
    free(deviation);
    free(start);
    free(init);
    free(noises);
    tensor_file_close(v030);
    tensor_file_close(today);
    return failed;
}

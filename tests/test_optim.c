/* Optimizers against the libraries that people know them from: 20 steps on the same gradients; state saved and restored; any
 * number of threads; wrong names and arguments. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/rng.h"
#include "ref/base/thread.h"
#include "ref/optim/optim.h"
#include "ref/optim/quant8.h"
#include "tests/lib/golden.h"

#define MUST(call)                   \
    do {                             \
        if ((call) != 0)             \
            fail_msg("%s", err.msg); \
    } while (0)

enum { STEPS = 20, MAX_TENSORS = 4, MAX_ARGS = 8 };

/* ---- the same numbers as golden/make_optim.py draws ---- */

struct data {
    size_t count, n[MAX_TENSORS];
    struct optim_tensor tensor[MAX_TENSORS];
    float *param[MAX_TENSORS], *grad[STEPS][MAX_TENSORS];
};

static float *draw(struct rng *r, size_t n)
{
    float *x = malloc(n * sizeof *x);

    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = rng_uniform(r) - 0.5f;
    return x;
}

static void data_make(struct data *d, bool wide)
{
    const struct shape small[] = {shape_of(2, 8, 48), shape_of(1, 33), shape_of(4, 5, 4, 3, 3), shape_of(2, 40, 13)},
                       large[] = {shape_of(2, 8, 48), shape_of(2, 16, 281)};
    const struct shape *shape = wide ? large : small;
    float *constant[MAX_TENSORS];
    struct rng r;

    *d = (struct data){.count = wide ? 2 : 4};
    rng_seed(&r, 7);
    for (size_t t = 0; t < d->count; t++) {
        assert_true(shape_numel(&shape[t], &d->n[t]));
        d->param[t] = draw(&r, d->n[t]);
        d->tensor[t] = (struct optim_tensor){.param = d->param[t], .shape = shape[t], .group = t >= d->count / 2};
    }
    for (size_t t = 0; t < d->count; t++)
        constant[t] = draw(&r, d->n[t]);
    for (size_t s = 0; s < STEPS; s++)
        for (size_t t = 0; t < d->count; t++) {
            d->grad[s][t] = draw(&r, d->n[t]);
            for (size_t i = 0; i < d->n[t]; i++)
                d->grad[s][t][i] = constant[t][i] + d->grad[s][t][i] * 0.5f;
        }
    memset(d->grad[0][1], 0, d->n[1] * sizeof(float));
    for (size_t t = 0; t < d->count; t++)
        free(constant[t]);
}

static void data_free(struct data *d)
{
    for (size_t t = 0; t < d->count; t++) {
        free(d->param[t]);
        for (size_t s = 0; s < STEPS; s++)
            free(d->grad[s][t]);
    }
}

/* ---- the cases: rows ---- */

struct recipe {
    const char *golden, *name;
    double rate;
    bool one_rate, wide;
    const char *args[MAX_ARGS]; /* NULL at the end */
    double noise; /* see move_limit() */
};

static const struct recipe recipes[] = {
    {"adamw", "AdamW", 1e-2, .noise = 8},
    {"adamw_args", "adamw", 1e-2, .args = {"betas=0.8,0.95", "eps=1e-6", "weight_decay=0.2"}, .noise = 8},
    {"lion", "Lion", 1e-3, .noise = 1},
    {"lion_args", "Lion", 1e-3, .args = {"betas=(0.95, 0.98)", "weight_decay=0.5"}, .noise = 1},
    {"sgd", "SGD", 0.1, .noise = 1},
    {"sgd_momentum", "SGD", 0.1, .args = {"momentum=0.8", "dampening=0.1", "weight_decay=0.1"}, .noise = 16},
    {"sgd_nesterov", "SGDNesterov", 0.1, .noise = 20},
    {"adafactor", "Adafactor", 0, .noise = 8},
    {"adafactor_warmup", "AdaFactor", 0, .args = {"warmup_init=True", "scale_parameter=False"}, .noise = 8},
    {"adafactor_rate", "AdaFactor", 1e-2,
     .args = {"relative_step=false", "scale_parameter=0", "beta1=0.9", "weight_decay=0.1", "clip_threshold=0.5"}, .noise = 8},
    {"prodigy", "Prodigy", 1, true, .noise = 8},
    {"prodigy_args", "prodigy", 1, true,
     .args = {"betas=0.9,0.99", "weight_decay=0.1", "use_bias_correction=True", "safeguard_warmup=True", "d0=1e-4", "d_coef=2",
              "growth_rate=1.5"}, .noise = 8},
    {"prodigy_coupled", "Prodigy", 1, true, .args = {"beta3=0.9", "decouple=False", "weight_decay=0.1", "d0=1e-3"}, .noise = 8},
    {"dadapt_adam", "DAdaptAdam", 1, true, .noise = 8},
    {"dadapt_adam_args", "DAdaptAdam", 1, true,
     .args = {"decouple=True", "weight_decay=0.1", "use_bias_correction=True", "d0=1e-4", "growth_rate=1.2"}, .noise = 8},
    {"adamw8bit", "AdamW8bit", 1e-2, .wide = true, .noise = 8},
    {"lion8bit", "Lion8bit", 1e-3, .wide = true, .args = {"weight_decay=0.1"}, .noise = 1},
};

enum { RECIPES = sizeof recipes / sizeof *recipes };

static size_t args_count(const struct recipe *c)
{
    size_t n = 0;

    while (n < MAX_ARGS && c->args[n])
        n++;
    return n;
}

static struct optim *optim_make(const struct recipe *c, const struct data *d)
{
    const struct optim_options options = {.groups = 2};
    struct optim *o;
    struct err err = {0};

    if (optim_new(&o, c->name, c->args, args_count(c), &options, d->tensor, d->count, &err))
        fail_msg("%s: %s", c->golden, err.msg);
    return o;
}

static void rates(const struct recipe *c, size_t step, double lr[2])
{
    lr[0] = c->rate * (1 - (double)step / 40);
    lr[1] = c->one_rate ? lr[0] : c->rate / 2 * (1 - (double)step / 40);
}

static void one_step(struct optim *o, const struct recipe *c, const struct data *d, size_t step)
{
    double lr[2];
    struct err err = {0};

    rates(c, step, lr);
    if (optim_step(o, (const float *const *)d->grad[step], 1, lr, &err))
        fail_msg("%s, step %zu: %s", c->golden, step, err.msg);
}

/* Both sides round the param to f32 after its decay and after its move, each step: 2 eps/2 of it a step and side. What it is
 * moved by has a relative error of `noise` eps: eight roundings (the means', their quotient's, the rate's); a momentum sums
 * those of the steps before, 1 / (1 - momentum) of them; the rate of those that adapt is found by sums of n <= 1,117 products,
 * which the other side adds up in f32, in 16 places: n / 16 more. So |a - b| <= 2 steps eps |b| + noise eps * moved, where
 * moved is the sum over the steps of the largest move of an element. */
static double move_limit(const struct recipe *c, double moved)
{
    return (c->noise + (c->one_rate ? 1117 / 16.0 : 0)) * (double)FLT_EPSILON * moved;
}

static void compare(const struct recipe *c, const struct data *d, const struct tensor_file *f, size_t step, double moved)
{
    for (size_t t = 0; t < d->count; t++) {
        char name[64];
        size_t n;
        float *want;

        snprintf(name, sizeof name, "%s.%zu.%zu", c->golden, t, step);
        want = golden_f32(f, name, &n);
        assert_int_equal(n, d->n[t]);
        golden_close(name, d->param[t], want, n, move_limit(c, moved), 2 * (double)step * (double)FLT_EPSILON);
        free(want);
    }
}

/* A step; returns the largest move of an element. */
static double measured_step(struct optim *o, const struct recipe *c, const struct data *d, size_t step)
{
    float *before[MAX_TENSORS];
    double most = 0;

    for (size_t t = 0; t < d->count; t++) {
        before[t] = malloc(d->n[t] * sizeof(float));
        memcpy(before[t], d->param[t], d->n[t] * sizeof(float));
    }
    one_step(o, c, d, step);
    for (size_t t = 0; t < d->count; t++) {
        most = fmax(most, golden_max_diff(before[t], d->param[t], d->n[t]));
        free(before[t]);
    }
    return most;
}

static void twenty_steps(void **state)
{
    struct tensor_file *f = golden_open("optim.safetensors");

    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        const struct recipe *c = &recipes[i];
        struct data d;
        struct optim *o;
        double moved = 0;

        if (c->wide)
            continue;
        data_make(&d, false);
        o = optim_make(c, &d);
        for (size_t s = 0; s < STEPS; s++) {
            moved += measured_step(o, c, &d, s);
            if (s + 1 == 2 || s + 1 == STEPS)
                compare(c, &d, f, s + 1, moved);
        }
        assert_int_equal(optim_steps(o), STEPS);
        optim_free(o);
        data_free(&d);
    }
    tensor_file_close(f);
}

/* The step size that the adapting ones find: from sums over all steps, each off by n / 16 eps (see above) and a few roundings. */
static void factors(void **state)
{
    struct tensor_file *f = golden_open("optim.safetensors");

    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        const struct recipe *c = &recipes[i];
        char name[64];
        struct data d;
        struct optim *o;
        float *want;

        if (!c->one_rate)
            continue;
        snprintf(name, sizeof name, "%s.d", c->golden);
        want = golden_f32(f, name, NULL);
        data_make(&d, false);
        o = optim_make(c, &d);
        assert_true(optim_finds_rate(o));
        for (size_t s = 0; s < STEPS; s++) {
            one_step(o, c, &d, s);
            if (fabs(optim_factor(o) / (double)want[s] - 1) > (1117 / 16.0 + 8) * (double)FLT_EPSILON)
                fail_msg("%s, step %zu: d %.9g, not %.9g", c->golden, s, optim_factor(o), (double)want[s]);
        }
        assert_true(want[STEPS - 1] > want[0]); /* it does adapt */
        free(want);
        optim_free(o);
        data_free(&d);
    }
    tensor_file_close(f);
}

/* ---- 8 bits ---- */

static void *raw(const struct tensor_file *f, const char *name, size_t nbytes)
{
    const struct tensor_entry *e = golden_entry(f, name);
    void *data = malloc(nbytes);
    struct err err = {0};

    assert_non_null(data);
    assert_int_equal(e->nbytes, nbytes);
    assert_int_equal(tensor_file_read(f, e, data, &err), 0);
    return data;
}

static const struct optim_state *state_row(struct optim *o, const char *name)
{
    const struct optim_state *rows;
    size_t n = optim_state(o, &rows);

    for (size_t i = 0; i < n; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    fail_msg("no state '%s'", name);
    return NULL;
}

static void maps(void **state)
{
    struct tensor_file *f = golden_open("optim.safetensors");

    (void)state;
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        float *want = golden_f32(f, is_signed ? "map.signed" : "map.unsigned", NULL);
        struct quant8 q;

        quant8_init(&q, is_signed);
        /* Four roundings each: the parts' borders, their middle, the power, the product. */
        golden_close("map", q.value, want, QUANT8_CODES, 0, 4 * (double)FLT_EPSILON);
        free(want);
    }
    tensor_file_close(f);
}

/* The code is the nearest of all 256, over all magnitudes. */
static void nearest_code(void **state)
{
    struct quant8 q;
    struct rng r;

    (void)state;
    rng_seed(&r, 3);
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        quant8_init(&q, is_signed);
        for (int round = 0; round < 200; round++) {
            float x[OPTIM_BLOCK], back[OPTIM_BLOCK];
            uint8_t code[OPTIM_BLOCK];
            float scale, unit = (float)pow(10, -20.0 * (double)rng_uniform(&r));

            for (size_t i = 0; i < OPTIM_BLOCK; i++)
                x[i] = (rng_uniform(&r) - (is_signed ? 0.5f : 0)) * unit * (float)pow(10, -8.0 * (double)rng_uniform(&r));
            scale = quant8_write(&q, x, code, OPTIM_BLOCK);
            quant8_read(&q, code, scale, back, OPTIM_BLOCK);
            for (size_t i = 0; i < OPTIM_BLOCK; i++) {
                double best = HUGE_VAL;

                for (size_t k = 0; k < QUANT8_CODES; k++)
                    best = fmin(best, fabs((double)q.value[k] - (double)x[i] / (double)scale));
                /* The quotient is rounded: half a unit of it decides between two equally near values. */
                if (fabs((double)q.value[code[i]] - (double)x[i] / (double)scale) > best + (double)FLT_EPSILON)
                    fail_msg("%g of %g became %g", (double)x[i], (double)scale, (double)back[i]);
            }
        }
    }
}

static void no_scale(void **state)
{
    const float zero[300] = {0};
    float back[300] = {1};
    uint8_t code[300];
    struct quant8 q;

    (void)state;
    quant8_init(&q, true);
    assert_true(quant8_write(&q, zero, code, 300) == 0);
    quant8_read(&q, code, 0, back, 300);
    for (size_t i = 0; i < 300; i++)
        assert_true(back[i] == 0);
}

/* Puts the oracle's state after `step` steps into o: codes and scales of one mean (k = 1, 2). */
static void take_codes(struct optim *o, const struct tensor_file *f, const struct recipe *c, size_t n, size_t step, int k)
{
    const char *mean = k == 1 ? "exp_avg" : "exp_avg_sq";
    char row[32], name[64];
    void *codes, *scales;

    snprintf(name, sizeof name, "%s.1.%zu.codes%d", c->golden, step, k);
    codes = raw(f, name, n);
    snprintf(row, sizeof row, "%s_8bit", mean);
    memcpy(state_row(o, row)->data, codes, n);
    snprintf(name, sizeof name, "%s.1.%zu.scale%d", c->golden, step, k);
    scales = raw(f, name, (n + 255) / 256 * sizeof(float));
    snprintf(row, sizeof row, "%s_scale", mean);
    memcpy(state_row(o, row)->data, scales, (n + 255) / 256 * sizeof(float));
    free(codes);
    free(scales);
}

/* How many of the codes after `step` differ from the oracle's; each by one place. Scales: two roundings of the mean. */
static size_t other_codes(struct optim *o, const struct tensor_file *f, const struct recipe *c, size_t n, size_t step, int k)
{
    const char *mean = k == 1 ? "exp_avg" : "exp_avg_sq";
    char row[32], name[64];
    uint8_t *want, *got;
    float *scales;
    size_t count = 0;

    snprintf(name, sizeof name, "%s.1.%zu.codes%d", c->golden, step, k);
    want = raw(f, name, n);
    snprintf(row, sizeof row, "%s_8bit", mean);
    got = state_row(o, row)->data;
    for (size_t i = 0; i < n; i++) {
        if (abs(want[i] - got[i]) > 1)
            fail_msg("%s: code %zu is %d, not %d", name, i, got[i], want[i]);
        count += want[i] != got[i];
    }
    snprintf(name, sizeof name, "%s.1.%zu.scale%d", c->golden, step, k);
    scales = raw(f, name, (n + 255) / 256 * sizeof(float));
    snprintf(row, sizeof row, "%s_scale", mean);
    golden_close(name, state_row(o, row)->data, scales, (n + 255) / 256, 0, 3 * (double)FLT_EPSILON);
    free(want);
    free(scales);
    return count;
}

/* From the oracle's state each time, so that a code that falls the other way (its number lies within a rounding of the middle
 * of two) does not grow into a difference of the method. Such a number is met once in about 1e5: a code covers 1e-2 of its
 * number, roundings move it by 1e-7. */
static void eight_bits(void **state)
{
    static const size_t from[] = {1, 9, 19};
    struct tensor_file *f = golden_open("optim.safetensors");

    (void)state;
    for (size_t i = 0; i < RECIPES; i++)
        for (size_t k = 0; k < 3 && recipes[i].wide; k++) {
            const struct recipe *c = &recipes[i];
            int means = strstr(c->golden, "adam") ? 2 : 1;
            char name[64];
            struct data d;
            struct optim *o;
            float *want, *start;
            double moved;

            data_make(&d, true);
            o = optim_make(c, &d);
            assert_false(optim_is_8bit(o, 0));
            assert_true(optim_is_8bit(o, 1));
            *(int64_t *)state_row(o, "step")->data = (int64_t)from[k];
            snprintf(name, sizeof name, "%s.1.%zu", c->golden, from[k]);
            start = golden_f32(f, name, NULL);
            memcpy(d.param[1], start, d.n[1] * sizeof(float));
            for (int m = 1; m <= means; m++)
                take_codes(o, f, c, d.n[1], from[k], m);
            moved = measured_step(o, c, &d, from[k]);
            snprintf(name, sizeof name, "%s.1.%zu", c->golden, from[k] + 1);
            want = golden_f32(f, name, NULL);
            golden_close(name, d.param[1], want, d.n[1], move_limit(c, moved), 2 * (double)FLT_EPSILON);
            for (int m = 1; m <= means; m++)
                assert_in_range(other_codes(o, f, c, d.n[1], from[k] + 1, m), 0, 2);
            free(start);
            free(want);
            optim_free(o);
            data_free(&d);
        }
    tensor_file_close(f);
}

/* The whole run too: the small tensor has f32 states and is as AdamW's or Lion's; the other may have gone another way at a few
 * codes. One place of a mean is at most 1/64 of the block's largest, so a direction (below 4) is off by at most 1/16 each time;
 * a few elements in thousands, none further than all 20 steps. */
static void eight_bits_whole_run(void **state)
{
    struct tensor_file *f = golden_open("optim.safetensors");

    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        const struct recipe *c = &recipes[i];
        struct data d;
        struct optim *o;
        char name[64];
        float *want;
        size_t far = 0;
        double moved = 0;

        if (!c->wide)
            continue;
        data_make(&d, true);
        o = optim_make(c, &d);
        for (size_t s = 0; s < STEPS; s++)
            moved += measured_step(o, c, &d, s);
        snprintf(name, sizeof name, "%s.0.20", c->golden);
        want = golden_f32(f, name, NULL);
        golden_close(name, d.param[0], want, d.n[0], move_limit(c, moved), 2 * STEPS * (double)FLT_EPSILON);
        free(want);
        snprintf(name, sizeof name, "%s.1.20", c->golden);
        want = golden_f32(f, name, NULL);
        golden_close(name, d.param[1], want, d.n[1], c->rate * STEPS / 16, 0);
        for (size_t k = 0; k < d.n[1]; k++)
            far += fabs((double)d.param[1][k] - (double)want[k]) > move_limit(c, moved) + 2 * STEPS * (double)FLT_EPSILON;
        assert_in_range(far, 0, d.n[1] / 100);
        free(want);
        optim_free(o);
        data_free(&d);
    }
    tensor_file_close(f);
}

/* ---- state, threads, rounding ---- */

static void copy_state(struct optim *to, struct optim *from)
{
    const struct optim_state *a, *b;
    size_t n = optim_state(from, &a);

    assert_int_equal(optim_state(to, &b), n);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(a[i].name, b[i].name);
        assert_int_equal(a[i].count, b[i].count);
        memcpy(b[i].data, a[i].data, a[i].count * dtype_size(a[i].dtype));
    }
}

/* A second optimizer takes over the state after 10 steps; both end with the same bytes, whatever the number of threads. */
static void resume(void **state)
{
    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        const struct recipe *c = &recipes[i];
        struct data a, b;
        struct optim *first, *second;

        data_make(&a, c->wide);
        data_make(&b, c->wide);
        first = optim_make(c, &a);
        for (size_t s = 0; s < 10; s++)
            one_step(first, c, &a, s);
        for (size_t t = 0; t < a.count; t++)
            memcpy(b.param[t], a.param[t], a.n[t] * sizeof(float));
        second = optim_make(c, &b);
        copy_state(second, first);
        for (size_t s = 10; s < STEPS; s++) {
            thread_init(1);
            one_step(first, c, &a, s);
            thread_init(5);
            one_step(second, c, &b, s);
        }
        for (size_t t = 0; t < a.count; t++)
            if (memcmp(a.param[t], b.param[t], a.n[t] * sizeof(float)) != 0)
                fail_msg("%s: tensor %zu differs after the state was taken over", c->golden, t);
        optim_free(first);
        optim_free(second);
        data_free(&a);
        data_free(&b);
    }
    thread_init(0);
}

static void forecast(void **state)
{
    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        const struct recipe *c = &recipes[i];
        const struct optim_state *rows;
        struct data d;
        struct optim *o;
        size_t bytes, sum = 0, n;
        struct err err = {0};

        data_make(&d, c->wide);
        o = optim_make(c, &d);
        n = optim_state(o, &rows);
        for (size_t k = 0; k < n; k++)
            sum += rows[k].count * dtype_size(rows[k].dtype);
        assert_int_equal(optim_bytes(c->name, c->args, args_count(c), d.tensor, d.count, &bytes, &err), 0);
        assert_int_equal(bytes, sum);
        optim_free(o);
        data_free(&d);
    }
}

static void norm_and_clip(void **state)
{
    struct data d;
    struct optim *o;
    double sum = 0, norm[2];
    struct err err = {0};

    (void)state;
    data_make(&d, true);
    o = optim_make(&recipes[0], &d);
    for (size_t t = 0; t < d.count; t++)
        for (size_t i = 0; i < d.n[t]; i++)
            sum += (double)d.grad[3][t][i] * (double)d.grad[3][t][i];
    thread_init(1);
    MUST(optim_norm(o, (const float *const *)d.grad[3], &norm[0], &err));
    thread_init(7);
    MUST(optim_norm(o, (const float *const *)d.grad[3], &norm[1], &err));
    thread_init(0);
    assert_true(norm[0] == norm[1]);
    /* two sums of n products in f64, in different orders */
    assert_true(fabs(norm[0] / sqrt(sum) - 1) < 5000 * DBL_EPSILON);
    assert_true(optim_clip(10, 1) == 1 / (10 + 1e-6));
    assert_true(optim_clip(0.5, 1) == 1);
    assert_true(optim_clip(10, 0) == 1);
    d.grad[3][1][17] = (float)NAN;
    MUST(optim_norm(o, (const float *const *)d.grad[3], &norm[1], &err));
    assert_true(norm[1] != norm[1]);
    optim_free(o);
    data_free(&d);
}

/* Scaled inside the step or before it: the same. */
static void scaled(void **state)
{
    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        const struct recipe *c = &recipes[i];
        struct data a, b;
        struct optim *first, *second;
        struct err err = {0};
        double lr[2];

        data_make(&a, c->wide);
        data_make(&b, c->wide);
        first = optim_make(c, &a);
        second = optim_make(c, &b);
        for (size_t s = 0; s < 3; s++) {
            rates(c, s, lr);
            for (size_t t = 0; t < b.count; t++)
                for (size_t k = 0; k < b.n[t]; k++)
                    b.grad[s][t][k] *= 0.3f;
            assert_int_equal(optim_step(first, (const float *const *)a.grad[s], (double)0.3f, lr, &err), 0);
            assert_int_equal(optim_step(second, (const float *const *)b.grad[s], 1, lr, &err), 0);
        }
        for (size_t t = 0; t < a.count; t++)
            assert_memory_equal(a.param[t], b.param[t], a.n[t] * sizeof(float));
        optim_free(first);
        optim_free(second);
        data_free(&a);
        data_free(&b);
    }
}

static void rounded(void **state)
{
    const struct optim_options options = {.groups = 2, .round_to_f16 = true};

    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        const struct recipe *c = &recipes[i];
        struct data d;
        struct optim *o;
        struct err err = {0};

        data_make(&d, c->wide);
        assert_int_equal(optim_new(&o, c->name, c->args, args_count(c), &options, d.tensor, d.count, &err), 0);
        for (size_t s = 0; s < 2; s++)
            one_step(o, c, &d, s);
        for (size_t t = 0; t < d.count; t++)
            for (size_t k = 0; k < d.n[t]; k++)
                assert_true(dtype_f16_to_f32(dtype_f32_to_f16(d.param[t][k])) == d.param[t][k]);
        optim_free(o);
        data_free(&d);
    }
}

/* ---- errors ---- */

static void refused(const char *name, const char *arg, const char *message)
{
    const struct optim_options options = {.groups = 1};
    float x[4] = {0};
    const struct optim_tensor t = {.param = x, .shape = shape_of(1, 4)};
    struct optim *o;
    struct err err = {0};

    assert_int_equal(optim_new(&o, name, &arg, arg != NULL, &options, &t, 1, &err), -1);
    assert_int_equal(err.kind, ERR_USAGE);
    assert_string_equal(err.msg, message);
    assert_null(o);
}

static void errors(void **state)
{
    (void)state;
    refused("Adam9", NULL,
            "there is no optimizer 'Adam9'; choose one of AdamW, AdamW8bit, Lion, Lion8bit, SGD, SGDNesterov, Adafactor, Prodigy, "
            "DAdaptAdam");
    refused("AdamW", "beta=0.9", "'beta=0.9' is no argument of AdamW; it takes weight_decay, betas, eps, each as key=value");
    refused("AdamW", "eps", "'eps' is no argument of AdamW; it takes weight_decay, betas, eps, each as key=value");
    refused("AdamW", "betas=0.9", "optimizer argument 'betas=0.9': give two numbers such as 0.9,0.99");
    refused("AdamW", "betas=0.9,1", "optimizer argument 'betas=0.9,1': give numbers from 0 to below 1");
    refused("AdamW", "eps=x", "optimizer argument 'eps=x': give a number (from 0 to 1)");
    refused("AdamW", "weight_decay=-1", "optimizer argument 'weight_decay=-1': give a number in its range (at least 0)");
    refused("AdamW", "weight_decay=nan", "optimizer argument 'weight_decay=nan': give a number (at least 0)");
    refused("Prodigy", "d0=0", "optimizer argument 'd0=0': give a number above its least one (above 0)");
    refused("Prodigy", "decouple=maybe", "optimizer argument 'decouple=maybe': give True or False");
    refused("SGD", "nesterov=True", "SGD with 'nesterov=True' needs a momentum and no dampening; give 'momentum=0.9'");
}

static void several_rates(void **state)
{
    const double lr[2] = {1, 0.5}, with_zero[2] = {1, 0};
    struct data d;
    struct optim *o;
    struct err err = {0};

    (void)state;
    data_make(&d, false);
    o = optim_make(&recipes[10], &d); /* prodigy */
    assert_int_equal(optim_step(o, (const float *const *)d.grad[1], 1, lr, &err), -1);
    assert_string_equal(err.msg, "Prodigy finds one step size for all parts, and was given the rates 1 and 0.5; give --unet_lr and "
                                 "--text_encoder_lr the same value, or 0 for what is not to be trained");
    assert_int_equal(optim_steps(o), 0);
    assert_int_equal(optim_step(o, (const float *const *)d.grad[1], 1, with_zero, &err), 0);
    optim_free(o);
    data_free(&d);
}

/* A rate of 0 (the first step of a warm-up) moves nothing. */
static void no_rate(void **state)
{
    const double lr[2] = {0, 0};

    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        struct data a, b;
        struct optim *o;
        struct err err = {0};

        if (recipes[i].rate == 0)
            continue;
        data_make(&a, recipes[i].wide);
        data_make(&b, recipes[i].wide);
        o = optim_make(&recipes[i], &a);
        assert_int_equal(optim_step(o, (const float *const *)a.grad[1], 1, lr, &err), 0);
        for (size_t t = 0; t < a.count; t++)
            assert_memory_equal(a.param[t], b.param[t], a.n[t] * sizeof(float));
        optim_free(o);
        data_free(&a);
        data_free(&b);
    }
}

static void described(void **state)
{
    struct data d;
    struct optim *o;

    (void)state;
    data_make(&d, false);
    o = optim_make(&recipes[1], &d);
    assert_string_equal(optim_name(o), "AdamW");
    assert_string_equal(optim_args(o), "weight_decay=0.2, betas=(0.8,0.95), eps=1e-06");
    assert_true(optim_factor(o) == 1);
    assert_false(optim_finds_rate(o));
    optim_free(o);
    o = optim_make(&recipes[7], &d);
    assert_true(optim_finds_rate(o));
    assert_string_equal(optim_args(o), "eps=(1e-30,0.001), clip_threshold=1, decay_rate=-0.8, beta1=None, weight_decay=0, "
                                       "scale_parameter=True, relative_step=True, warmup_init=False");
    optim_free(o);
    data_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(twenty_steps), cmocka_unit_test(factors),       cmocka_unit_test(maps),
        cmocka_unit_test(nearest_code), cmocka_unit_test(no_scale),      cmocka_unit_test(eight_bits),
        cmocka_unit_test(eight_bits_whole_run), cmocka_unit_test(resume), cmocka_unit_test(forecast),
        cmocka_unit_test(norm_and_clip), cmocka_unit_test(scaled),       cmocka_unit_test(rounded),
        cmocka_unit_test(errors),       cmocka_unit_test(several_rates), cmocka_unit_test(no_rate),
        cmocka_unit_test(described),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* An optimizer on a device that only pretends to be one (tests/lib/pretend.h): the same steps as the program's own, whatever the
 * tensors' sizes, batches a step and rates; what comes back continues where it was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/optim/optim.h"
#include "tests/lib/pretend.h"

#define MUST(call)                   \
    do {                             \
        if ((call) != 0)             \
            fail_msg("%s", err.msg); \
    } while (0)

/* Less than a block, whole blocks, more than a span, ends within a block; from 4,096 on AdamW8bit's states have 8 bits. */
static const size_t sizes[] = {33, 512, 20001, 4096, 5000};
enum { TENSORS = sizeof sizes / sizeof *sizes, STEPS = 6, BATCHES = 2 };

struct side {
    float *param[TENSORS], *grad[TENSORS];
    void *there[TENSORS]; /* gradients of a batch on the device */
    struct optim *o;
};

static float number(size_t step, size_t batch, size_t t, size_t i)
{
    return sinf((float)(1 + step * 7 + batch * 3 + t * 11) * (float)(i % 911 + 1)) * (t == 2 ? 3.0f : 0.1f);
}

static void side_open(struct side *s, const struct ops *ops, const char *name)
{
    struct optim_tensor list[TENSORS];
    struct optim_options options = {.groups = 3};
    struct err err = {0};
    bool there;

    for (size_t t = 0; t < TENSORS; t++) {
        s->param[t] = malloc(sizes[t] * sizeof(float));
        s->grad[t] = malloc(sizes[t] * sizeof(float));
        assert_true(s->param[t] && s->grad[t]);
        for (size_t i = 0; i < sizes[t]; i++)
            s->param[t][i] = number(99, 0, t, i);
        list[t] = (struct optim_tensor){s->param[t], {1, {sizes[t]}}, t % 3};
        s->there[t] = ops ? ops->device->alloc(sizes[t] * sizeof(float), "a gradient", &err) : NULL;
    }
    MUST(optim_new(&s->o, name, NULL, 0, &options, list, TENSORS, &err));
    if (ops) {
        size_t before = pretend_counts.blocks;

        MUST(optim_to_device(s->o, ops->device, &there, &err));
        assert_true(there);
        assert_true(pretend_counts.blocks > before);
    }
}

static void side_close(struct side *s, const struct ops *ops)
{
    optim_free(s->o);
    for (size_t t = 0; t < TENSORS; t++) {
        free(s->param[t]);
        free(s->grad[t]);
        if (ops)
            ops->device->free(s->there[t]);
    }
}

static void take(struct side *s, const struct ops *ops, size_t step, size_t batch)
{
    struct err err = {0};

    for (size_t t = 0; t < TENSORS; t++) {
        for (size_t i = 0; i < sizes[t]; i++) {
            float x = number(step, batch, t, i);

            s->grad[t][i] = ops || batch == 0 ? x : s->grad[t][i] + x;
        }
        if (ops)
            MUST(ops->device->write(s->there[t], s->grad[t], sizes[t] * sizeof(float), &err));
    }
    if (ops)
        MUST(optim_gather(s->o, (const void *const *)s->there, batch == 0, &err));
}

static void step(struct side *s, const struct ops *ops, size_t step)
{
    const double lr[3] = {1e-3, 5e-4, 0};
    struct err err = {0};
    double norm;

    for (size_t batch = 0; batch < BATCHES; batch++)
        take(s, ops, step, batch);
    MUST(optim_norm(s->o, (const float *const *)s->grad, &norm, &err));
    MUST(optim_step(s->o, (const float *const *)s->grad, optim_clip(norm, 1), lr, &err));
}

/* Where sums may be fused, means and steps are off by some roundings; a mean of 8 bits at the middle of two codes may then take either,
 * 1/64 of it at most, and a step of up to three lr with it. */
static void same_params(const struct side *a, const struct side *b, bool eight)
{
    size_t off = 0, all = 0;

    for (size_t t = 0; t < TENSORS; t++)
        for (size_t i = 0; i < sizes[t]; i++, all++) {
            double d = fabs((double)a->param[t][i] - (double)b->param[t][i]);

            assert_true(d < (eight ? 0.05 * STEPS * 1e-3 : 0) + 16 * STEPS * 0x1p-24);
            off += d > 16 * STEPS * 0x1p-24;
        }
    assert_true(off <= all / 500);
}

static void compare(const char *name, bool eight)
{
    struct side here, there;
    struct err err = {0};
    struct ops ops;

    pretend_ops(&ops, DT_F32, 0, 0);
    memset(&pretend_counts, 0, sizeof pretend_counts);
    side_open(&here, NULL, name);
    side_open(&there, &ops, name);
    for (size_t i = 0; i < STEPS; i++) {
        step(&here, NULL, i);
        step(&there, &ops, i);
    }
    MUST(optim_fetch(there.o, true, &err));
    assert_int_equal(pretend_counts.steps, eight ? 2 * STEPS : STEPS);
    assert_int_equal(optim_steps(there.o), STEPS);
    same_params(&here, &there, eight);
    side_close(&here, NULL);
    side_close(&there, &ops);
    assert_int_equal(pretend_counts.blocks, 0);
    assert_int_equal(pretend_counts.host, 0);
}

static void test_adamw(void **state)
{
    (void)state;
    compare("AdamW", false);
}

static void test_adamw8bit(void **state)
{
    (void)state;
    compare("AdamW8bit", true);
}

static void copy_state(struct optim *to, const struct optim *from)
{
    const struct optim_state *a, *b;
    size_t n = optim_state(to, &a);

    assert_int_equal(n, optim_state(from, &b));
    for (size_t i = 0; i < n; i++)
        memcpy(a[i].data, b[i].data, a[i].count * dtype_size(a[i].dtype));
}

/* Half of the steps, everything fetched, the rest by an optimizer that was given it: the same bytes as all steps by one. Fetching
 * what has not changed reads nothing. */
static void test_goes_on(void **state)
{
    static const char *const names[] = {"AdamW", "AdamW8bit"};

    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct side whole, first, second;
        struct optim_tensor list[TENSORS];
        struct optim_options options = {.groups = 3};
        struct err err = {0};
        struct ops ops;
        size_t reads;
        bool there;

        pretend_ops(&ops, DT_F32, 0, 0);
        side_open(&whole, &ops, names[k]);
        side_open(&first, &ops, names[k]);
        side_open(&second, &ops, names[k]);
        for (size_t i = 0; i < STEPS; i++)
            step(&whole, &ops, i);
        for (size_t i = 0; i < STEPS / 2; i++)
            step(&first, &ops, i);
        MUST(optim_fetch(first.o, true, &err));
        reads = pretend_counts.reads;
        MUST(optim_fetch(first.o, true, &err));
        assert_int_equal(pretend_counts.reads, reads);
        optim_free(second.o);
        for (size_t t = 0; t < TENSORS; t++) {
            memcpy(second.param[t], first.param[t], sizes[t] * sizeof(float));
            list[t] = (struct optim_tensor){second.param[t], {1, {sizes[t]}}, t % 3};
        }
        MUST(optim_new(&second.o, names[k], NULL, 0, &options, list, TENSORS, &err));
        copy_state(second.o, first.o);
        MUST(optim_to_device(second.o, ops.device, &there, &err));
        for (size_t i = STEPS / 2; i < STEPS; i++)
            step(&second, &ops, i);
        MUST(optim_fetch(second.o, true, &err));
        MUST(optim_fetch(whole.o, true, &err));
        for (size_t t = 0; t < TENSORS; t++)
            assert_memory_equal(second.param[t], whole.param[t], sizes[t] * sizeof(float));
        side_close(&whole, &ops);
        side_close(&first, &ops);
        side_close(&second, &ops);
    }
}

/* Other kinds, f16 factors and devices without the functions stay, and say so; nothing is taken there. */
static void test_stays(void **state)
{
    static const struct {
        const char *name;
        bool f16, without;
    } cases[] = {{"Lion", false, false}, {"AdamW", true, false}, {"AdamW", false, true}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float x[8] = {0};
        struct optim_tensor t = {x, {1, {8}}, 0};
        struct optim_options options = {.groups = 1, .round_to_f16 = cases[i].f16};
        struct ops_device device;
        struct err err = {0};
        struct optim *o;
        struct ops ops;
        bool there = true;
        size_t n;

        pretend_ops(&ops, DT_F32, 0, 0);
        memset(&pretend_counts, 0, sizeof pretend_counts);
        device = *ops.device;
        if (cases[i].without)
            device.adamw = NULL;
        MUST(optim_new(&o, cases[i].name, NULL, 0, &options, &t, 1, &err));
        MUST(optim_to_device(o, &device, &there, &err));
        assert_false(there);
        assert_null(optim_params(o, &n));
        assert_int_equal(optim_device_bytes(o, &device), 0);
        assert_int_equal(pretend_counts.blocks, 0);
        MUST(optim_fetch(o, true, &err));
        optim_free(o);
    }
}

/* Wherever memory ends, the message says so, and all is given back. */
static void test_out_of_memory(void **state)
{
    size_t fail = 1;
    bool there = false;

    (void)state;
    for (; !there; fail++) {
        float x[5000] = {0};
        struct optim_tensor t = {x, {1, {5000}}, 0};
        struct optim_options options = {.groups = 1};
        struct err err = {0};
        struct optim *o;
        struct ops ops;

        memset(&pretend_counts, 0, sizeof pretend_counts);
        pretend_ops(&ops, DT_F32, 0, fail);
        MUST(optim_new(&o, "AdamW8bit", NULL, 0, &options, &t, 1, &err));
        if (optim_to_device(o, ops.device, &there, &err)) {
            assert_non_null(strstr(err.msg, "out of memory for"));
            assert_int_equal(pretend_counts.blocks + pretend_counts.host, 0);
            there = false;
        }
        optim_free(o);
    }
    assert_true(fail > 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw), cmocka_unit_test(test_adamw8bit),    cmocka_unit_test(test_goes_on),
        cmocka_unit_test(test_stays), cmocka_unit_test(test_out_of_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

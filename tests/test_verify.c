/* A verification that cannot fail proves nothing: broken operations are found, missing or foreign golden files are named, and
 * limits grow with the arithmetic. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "ref/base/thread.h"
#include "tests/lib/verify_group.h"

static struct ops ref;

/* silu with its first outputs off by one part in a thousand */
static int slightly_wrong(const struct op_call *c, struct err *err)
{
    float *y = c->out[0]->data;

    if (ref.forward[OP_silu](c, err))
        return -1;
    for (int i = 0; i < 100; i++)
        y[i] *= 1.001f;
    return 0;
}

static int leaves_nan(const struct op_call *c, struct err *err)
{
    (void)err;
    ((float *)c->out[0]->data)[3] = NAN;
    return 0;
}

static int wrong_gradient(const struct op_call *c, struct err *err)
{
    float *dx = c->din[0]->data;

    if (ref.backward[OP_silu](c, err))
        return -1;
    dx[0] = -dx[0];
    return 0;
}

static size_t failures(op_fn *forward, op_fn *backward, const char *arithmetic)
{
    struct ops ops = ref;
    struct verify v = {.golden = "golden", .ops = &ops, .arithmetic = verify_arithmetics};
    struct err err = {0};

    while (strcmp(v.arithmetic->name, arithmetic) != 0)
        v.arithmetic++;
    if (forward)
        ops.forward[OP_silu] = forward;
    if (backward)
        ops.backward[OP_silu] = backward;
    if (verify_ops(&v, &err) != 0)
        fail_msg("%s", err.msg);
    assert_true(v.rows > 300);
    return v.failed;
}

static void test_broken(void **state)
{
    (void)state;
    assert_int_equal(failures(NULL, NULL, "f32"), 0);
    assert_int_equal(failures(slightly_wrong, NULL, "f32"), 2); /* silu and silu.pieces */
    assert_int_equal(failures(slightly_wrong, NULL, "bf16"), 0);
    assert_int_equal(failures(leaves_nan, NULL, "bf16"), 2);
    assert_int_equal(failures(NULL, wrong_gradient, "f32"), 4); /* both gradients and their slopes */
}

/* Rounding all inputs of an operation to a type, as a device does, is within that type's limit and outside f32's. */
static enum dtype narrow;

static int rounded(const struct op_call *c, struct err *err)
{
    static float copy[3][1 << 20];
    struct tensor t[OP_MAX_IN];
    struct op_call k = *c;

    for (int i = 0; i < 3; i++) {
        uint16_t half[1 << 12];
        size_t n = 0;

        if (!c->in[i] || c->in[i]->dtype != DT_F32 || !shape_numel(&c->in[i]->shape, &n) || n > 1 << 12)
            continue;
        t[i] = *c->in[i];
        t[i].data = copy[i];
        dtype_convert(half, narrow, c->in[i]->data, DT_F32, n);
        dtype_convert(copy[i], DT_F32, half, narrow, n);
        k.in[i] = &t[i];
    }
    return ref.forward[OP_linear](&k, err);
}

static size_t failures_rounded(enum dtype t, const char *arithmetic)
{
    struct ops ops = ref;
    struct verify v = {.golden = "golden", .ops = &ops, .arithmetic = verify_arithmetics};
    struct err err = {0};

    narrow = t;
    while (strcmp(v.arithmetic->name, arithmetic) != 0)
        v.arithmetic++;
    ops.forward[OP_linear] = rounded;
    if (verify_ops(&v, &err) != 0)
        fail_msg("%s", err.msg);
    return v.failed;
}

static void test_arithmetic(void **state)
{
    (void)state;
    assert_int_equal(failures_rounded(DT_F16, "f16"), 0);
    assert_int_equal(failures_rounded(DT_F16, "tf32"), 0);
    assert_int_equal(failures_rounded(DT_BF16, "bf16"), 0);
    assert_true(failures_rounded(DT_F16, "f32") > 10);
    assert_string_equal(verify_arithmetic_of(DT_BF16, false)->name, "bf16");
    assert_string_equal(verify_arithmetic_of(DT_F32, true)->name, "tf32");
    assert_string_equal(verify_arithmetic_of(DT_COUNT, false)->name, "f32");
}

static void test_files(void **state)
{
    struct verify v = {.golden = "golden/nowhere", .ops = &ref, .arithmetic = verify_arithmetics};
    struct err err = {0};

    (void)state;
    for (const struct verify_group *g = verify_groups; g->name; g++) {
        assert_int_equal(g->run(&v, &err), -1);
        if (!strstr(err.msg, "golden/nowhere/"))
            fail_msg("%s: message '%s' does not name the file", g->name, err.msg);
    }
    assert_int_equal(v.rows, 0);
}

static void test_comparison(void **state)
{
    const float a[] = {1, NAN, INFINITY, -INFINITY}, b[] = {1.5f, NAN, INFINITY, -INFINITY}, c[] = {1, 0, INFINITY, INFINITY};
    struct verify v = {0};
    struct verify_row row = {.group = "ops", .what = "x", .name = "y", .dtype = DT_F32, .worst = NAN, .limit = 1};

    (void)state;
    assert_true(verify_max_diff(a, b, 4) == 0.5);
    assert_true(isinf(verify_max_diff(a, c, 2)));
    assert_true(isinf(verify_max_diff(a + 3, c + 3, 1)));
    assert_false(verify_row_add(&v, &row));
    row.worst = row.limit;
    assert_true(verify_row_add(&v, &row));
    assert_int_equal(v.failed, 1);
    assert_int_equal(v.rows, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_broken),
        cmocka_unit_test(test_arithmetic),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_comparison),
    };

    thread_init(2);
    ops_ref(&ref);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Every operation: against torch (the group "ops" of lora verify: values, gradients, slopes), with scratch of exactly the promised
 * size, nothing written behind an output, nothing read that the row says the backward can do without, and the same bytes for
 * any number of threads. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "cmd/verify/op_case.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "tests/lib/verify_group.h"

enum { GUARD = 64 }; /* bytes behind every output that nobody may touch */

struct ops_case {
    struct op_case k;
    struct tensor out[OP_MAX_OUT], din[OP_MAX_IN];
};

static struct ops table;

static struct tensor allocate(enum dtype dtype, const struct shape *shape)
{
    struct tensor t = {.dtype = dtype, .shape = *shape};
    struct err err = {0};
    size_t bytes;

    assert_true(shape_nbytes(shape, dtype, &bytes));
    t.data = mem_new(bytes + GUARD, "a test", &err);
    assert_non_null(t.data);
    memset(t.data, 0xff, bytes); /* NaN: what an op leaves unwritten shows */
    memset((char *)t.data + bytes, 0x5a, GUARD);
    return t;
}

static void check_guard(const struct ops_case *c, const struct tensor *t)
{
    size_t bytes = 0;

    shape_nbytes(&t->shape, t->dtype, &bytes);
    for (size_t i = 0; i < GUARD; i++)
        if (((unsigned char *)t->data)[bytes + i] != 0x5a)
            fail_msg("%s: wrote behind its output", c->k.name);
}

static void open_case(struct ops_case *c, struct verify_file *f, const json_t *j)
{
    struct err err = {0};

    memset(c, 0, sizeof *c);
    if (op_case_open(&c->k, f, j, &err) != 0)
        fail_msg("%s", err.msg);
    for (int i = 0; i < OP_MAX_IN; i++)
        if (c->k.wants[i])
            c->din[i] = allocate(DT_F32, &c->k.in[i].shape);
}

static void close_case(struct ops_case *c)
{
    for (int i = 0; i < OP_MAX_IN; i++)
        free(c->din[i].data);
    for (int i = 0; i < OP_MAX_OUT; i++)
        free(c->out[i].data);
}

/* Runs one direction with scratch of exactly the promised size. */
static void call(struct ops_case *c, struct op_call *k, bool backward)
{
    struct err err = {0};
    size_t bytes = table.scratch[c->k.op](k, backward, thread_count());
    struct shape shape = {1, {bytes}};
    struct tensor scratch = allocate(DT_U8, &shape);

    k->scratch = scratch.data;
    if ((backward ? table.backward : table.forward)[c->k.op](k, &err) != 0)
        fail_msg("%s: %s", c->k.name, err.msg);
    check_guard(c, &scratch);
    free(scratch.data);
    k->scratch = NULL;
}

static void forward(struct ops_case *c, struct op_call *k)
{
    struct err err = {0};

    *k = (struct op_call){.attr = &c->k.attr};
    for (int i = 0; i < OP_MAX_IN; i++)
        k->in[i] = c->k.has_in[i] ? &c->k.in[i] : NULL;
    for (int i = 0; i < c->k.row->nout; i++) {
        free(c->out[i].data); /* of the run before */
        c->out[i] = (struct tensor){0};
        k->out[i] = &c->out[i];
    }
    if (c->k.row->shape(k, &err) != 0)
        fail_msg("%s: %s", c->k.name, err.msg);
    for (int i = 0; i < c->k.row->nout; i++)
        c->out[i] = allocate(c->out[i].dtype, &c->out[i].shape);
    call(c, k, false);
    for (int i = 0; i < c->k.row->nout; i++)
        check_guard(c, &c->out[i]);
}

/* Hides the data of everything the row says the backward can do without. */
static void backward(struct ops_case *c, const struct op_call *k)
{
    struct tensor in[OP_MAX_IN], out[OP_MAX_OUT];
    struct op_call b = {.attr = k->attr, .dout = {&c->k.dout}};
    unsigned reads_in = 0, reads_out = 0;

    for (int i = 0; i < OP_MAX_IN; i++) {
        b.din[i] = c->k.wants[i] ? &c->din[i] : NULL;
        reads_in |= c->k.wants[i] ? c->k.row->needs_in[i] : 0;
        reads_out |= c->k.wants[i] ? c->k.row->needs_out[i] : 0;
    }
    for (int i = 0; i < OP_MAX_IN; i++) {
        in[i] = c->k.in[i];
        in[i].data = reads_in >> i & 1 ? in[i].data : NULL;
        b.in[i] = k->in[i] ? &in[i] : NULL;
    }
    for (int i = 0; i < OP_MAX_OUT; i++) {
        out[i] = c->out[i];
        out[i].data = reads_out >> i & 1 ? out[i].data : NULL;
        b.out[i] = k->out[i] ? &out[i] : NULL;
    }
    call(c, &b, true);
    for (int i = 0; i < OP_MAX_IN; i++)
        if (c->k.wants[i])
            check_guard(c, &c->din[i]);
}

static void *snapshot(const struct tensor *t, size_t *bytes)
{
    void *copy;

    shape_nbytes(&t->shape, t->dtype, bytes);
    copy = malloc(*bytes + 1);
    assert_non_null(copy);
    return memcpy(copy, t->data, *bytes);
}

/* The same bytes with 1, 2 and 5 threads. */
static void run_case(struct ops_case *c)
{
    static const int threads[] = {1, 2, 5};
    void *first[OP_MAX_IN + 1] = {0};
    struct op_call k;

    for (int t = 0; t < 3; t++) {
        thread_init(threads[t]);
        forward(c, &k);
        if (c->k.has_back)
            backward(c, &k);
        for (int i = 0; i <= OP_MAX_IN; i++) {
            const struct tensor *x = i == OP_MAX_IN ? &c->out[0] : &c->din[i];
            size_t bytes = 0;

            if (i < OP_MAX_IN && !c->k.wants[i])
                continue;
            if (t == 0)
                first[i] = snapshot(x, &bytes);
            else if (shape_nbytes(&x->shape, x->dtype, &bytes) && memcmp(first[i], x->data, bytes) != 0)
                fail_msg("%s: other bytes with %d threads", c->k.name, threads[t]);
        }
    }
    for (int i = 0; i <= OP_MAX_IN; i++)
        free(first[i]);
}

static void test_golden(void **state)
{
    (void)state;
    thread_init(2);
    verify_group(verify_ops, 300);
}

static void test_contract(void **state)
{
    struct verify v = verify_group_new(&table);
    struct verify_file f;
    struct err err = {0};
    json_t *cases, *j;
    size_t i;

    (void)state;
    assert_int_equal(verify_file_open(&f, &v, "ops.safetensors", &err), 0);
    cases = verify_json(&f, "cases", &err);
    assert_non_null(cases);
    json_array_foreach(cases, i, j) {
        struct ops_case c;

        open_case(&c, &f, j);
        run_case(&c);
        close_case(&c);
    }
    json_decref(cases);
    verify_file_close(&f);
}

/* Each message names what does not fit. */
static void test_shape_errors(void **state)
{
    const struct {
        enum op_id op;
        struct op_attr attr;
        struct shape in[3];
        const char *message;
    } rows[] = {
        {OP_linear, {0}, {{2, {3, 4}}, {2, {5, 6}}}, "input [3, 4] does not fit weight [5, 6]"},
        {OP_linear, {0}, {{2, {3, 4}}, {2, {5, 4}}, {1, {4}}}, "bias has shape [4], not [5]"},
        {OP_conv2d, {.stride = 1}, {{4, {1, 2, 9, 4}}, {4, {5, 3, 3, 4}}}, "smaller than the convolution's window"},
        {OP_conv2d, {.stride = 1}, {{4, {1, 9, 9, 3}}, {4, {5, 3, 3, 4}}}, "does not fit convolution weight"},
        {OP_group_norm, {.groups = 32}, {{4, {1, 2, 2, 40}}, {1, {40}}, {1, {40}}}, "40 channels cannot be divided in 32 groups"},
        {OP_attention, {.heads = 3}, {{3, {1, 2, 8}}, {3, {1, 2, 8}}, {3, {1, 2, 8}}}, "cannot be divided among 3"},
        {OP_attention, {.heads = 2}, {{3, {1, 2, 8}}, {3, {2, 2, 8}}, {3, {2, 2, 8}}}, "do not fit together"},
        {OP_concat, {0}, {{3, {1, 2, 8}}, {3, {1, 3, 8}}}, "cannot be put side by side"},
        {OP_add, {0}, {{3, {1, 2, 8}}, {2, {1, 7}}}, "[1, 7] cannot be added to [1, 2, 8]"},
        {OP_geglu, {0}, {{2, {1, 7}}}, "even number of channels"},
        {OP_mse, {0}, {{2, {1, 7}}, {2, {7, 1}}}, "differ in shape"},
        {OP_mul, {0}, {{3, {1, 2, 8}}, {2, {1, 7}}}, "[1, 2, 8] cannot be multiplied by [1, 7]"},
        {OP_gather, {0}, {{2, {3, 8}}, {1, {7}}}, "rows [7] (f32) of [3, 8] cannot be picked"},
        {OP_huber, {0}, {{2, {1, 7}}, {2, {1, 7}}, {1, {2}}}, "the width of the loss has shape [2], not [1]"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct tensor in[3] = {{0}}, out[OP_MAX_OUT] = {{0}};
        struct op_call c = {.attr = &rows[i].attr, .out = {&out[0], &out[1]}};
        struct err err = {0};

        for (int j = 0; j < 3; j++) {
            in[j].shape = rows[i].in[j];
            c.in[j] = in[j].shape.ndim ? &in[j] : NULL;
        }
        assert_int_equal(op_table[rows[i].op]->shape(&c, &err), -1);
        if (!strstr(err.msg, rows[i].message))
            fail_msg("message '%s' lacks '%s'", err.msg, rows[i].message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_contract),
        cmocka_unit_test(test_shape_errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

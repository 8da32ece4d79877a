/* Every operation against torch (golden/ops.safetensors), forward and backward, and the same bytes for any thread count. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/thread.h"
#include "ref/op/ops.h"
#include "tests/lib/golden.h"

enum { GUARD = 64 }; /* bytes behind every output that nobody may touch */

struct ops_case {
    const char *name;
    enum op_id op;
    const struct op *row;
    struct op_attr attr;
    double n, back[OP_MAX_IN];
    struct tensor in[OP_MAX_IN], out[OP_MAX_OUT], dout, din[OP_MAX_IN];
    bool has_in[OP_MAX_IN], wants[OP_MAX_IN], has_back;
};

static const struct tensor_file *file;
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
            fail_msg("%s: wrote behind its output", c->name);
}

static struct tensor load(const struct ops_case *c, const char *part, int i)
{
    const struct tensor_entry *e;
    struct tensor t;
    struct err err = {0};
    char name[200];

    snprintf(name, sizeof name, "%s.%s%d", c->name, part, i);
    e = golden_entry(file, name);
    t = allocate(e->dtype, &e->shape);
    assert_int_equal(tensor_file_read(file, e, t.data, &err), 0);
    return t;
}

static enum op_act act_of(const char *s)
{
    static const char *const names[] = {"none", "silu", "gelu", "quick_gelu"};

    for (int i = 0; i < 4; i++)
        if (strcmp(s, names[i]) == 0)
            return (enum op_act)i;
    fail_msg("unknown activation %s", s);
    return ACT_NONE;
}

static struct op_attr read_attr(const json_t *j)
{
    const char *act = json_string_value(json_object_get(j, "act"));

#define NUMBER(type, field) .field = (type)json_number_value(json_object_get(j, #field))
    return (struct op_attr){NUMBER(float, scale), NUMBER(float, fold), NUMBER(float, eps), NUMBER(size_t, groups),
                            NUMBER(size_t, heads), NUMBER(size_t, stride), NUMBER(size_t, pad_before),
                            NUMBER(size_t, pad_after), NUMBER(size_t, first), NUMBER(size_t, count), NUMBER(size_t, width),
                            NUMBER(size_t, crop_h), NUMBER(size_t, crop_w),
                            .causal = json_is_true(json_object_get(j, "causal")), .act = act ? act_of(act) : ACT_NONE};
#undef NUMBER
}

static void open_case(struct ops_case *c, const json_t *j)
{
    memset(c, 0, sizeof *c);
    c->name = json_string_value(json_object_get(j, "name"));
    c->row = op_find(json_string_value(json_object_get(j, "op")), &c->op);
    assert_non_null(c->row);
    c->attr = read_attr(json_object_get(j, "attr"));
    c->n = json_number_value(json_object_get(j, "n"));
    for (int i = 0; i < OP_MAX_IN; i++) {
        char name[200], key[8];
        const json_t *back;

        snprintf(name, sizeof name, "%s.in%d", c->name, i);
        snprintf(key, sizeof key, "%d", i);
        back = json_object_get(json_object_get(j, "back"), key);
        c->has_in[i] = tensor_file_find(file, name) != NULL;
        c->wants[i] = back != NULL;
        c->back[i] = json_number_value(back);
        if (c->has_in[i])
            c->in[i] = load(c, "in", i);
        if (c->wants[i])
            c->din[i] = allocate(DT_F32, &c->in[i].shape);
        c->has_back |= c->wants[i];
    }
    if (c->has_back)
        c->dout = load(c, "dout", 0);
}

static void close_case(struct ops_case *c)
{
    for (int i = 0; i < OP_MAX_IN; i++) {
        free(c->in[i].data);
        free(c->din[i].data);
    }
    for (int i = 0; i < OP_MAX_OUT; i++)
        free(c->out[i].data);
    free(c->dout.data);
}

/* Runs one direction with scratch of exactly the promised size. */
static void call(struct ops_case *c, struct op_call *k, bool backward)
{
    struct err err = {0};
    size_t bytes = table.scratch[c->op](k, backward, thread_count());
    struct shape shape = {1, {bytes}};
    struct tensor scratch = allocate(DT_U8, &shape);

    k->scratch = scratch.data;
    if ((backward ? table.backward : table.forward)[c->op](k, &err) != 0)
        fail_msg("%s: %s", c->name, err.msg);
    check_guard(c, &scratch);
    free(scratch.data);
    k->scratch = NULL;
}

static void forward(struct ops_case *c, struct op_call *k)
{
    struct err err = {0};

    *k = (struct op_call){.attr = &c->attr};
    for (int i = 0; i < OP_MAX_IN; i++)
        k->in[i] = c->has_in[i] ? &c->in[i] : NULL;
    for (int i = 0; i < c->row->nout; i++) {
        free(c->out[i].data); /* of the run before */
        c->out[i] = (struct tensor){0};
        k->out[i] = &c->out[i];
    }
    if (c->row->shape(k, &err) != 0)
        fail_msg("%s: %s", c->name, err.msg);
    for (int i = 0; i < c->row->nout; i++)
        c->out[i] = allocate(c->out[i].dtype, &c->out[i].shape);
    call(c, k, false);
    for (int i = 0; i < c->row->nout; i++)
        check_guard(c, &c->out[i]);
}

/* Hides the data of everything the row says the backward can do without. */
static void backward(struct ops_case *c, const struct op_call *k)
{
    struct tensor in[OP_MAX_IN], out[OP_MAX_OUT];
    struct op_call b = {.attr = k->attr, .dout = {&c->dout}};
    unsigned reads_in = 0, reads_out = 0;

    for (int i = 0; i < OP_MAX_IN; i++) {
        b.din[i] = c->wants[i] ? &c->din[i] : NULL;
        reads_in |= c->wants[i] ? c->row->needs_in[i] : 0;
        reads_out |= c->wants[i] ? c->row->needs_out[i] : 0;
    }
    for (int i = 0; i < OP_MAX_IN; i++) {
        in[i] = c->in[i];
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
        if (c->wants[i])
            check_guard(c, &c->din[i]);
}

/* A sum of n products in f32 is off by at most n roundings of 2^-24 of the sum of their sizes; with what stands around it
 * (exp, a quotient, a factor, at most a dozen roundings) and 2 for each term that is itself rounded:
 *     (2 n + 12) 2^-24 max |want|
 * A backward repeats the forward's sums, so theirs come on top. max |want| stands for the sum of sizes: terms of random sign
 * make the error grow with the square root of n only, which more than makes up for it. */
static void compare(const struct ops_case *c, const char *part, int i, const struct tensor *got, double n)
{
    char name[200];
    size_t count;
    float *want;
    double size = 0, limit, worst;

    snprintf(name, sizeof name, "%s.%s%d", c->name, part, i);
    want = golden_f32(file, name, &count);
    assert_true(shape_equal(&golden_entry(file, name)->shape, &got->shape));
    for (size_t j = 0; j < count; j++)
        size = fmax(size, fabs((double)want[j]));
    limit = (2 * n + 12) * 0x1p-24 * size;
    worst = golden_max_diff(got->data, want, count);
    if (getenv("OPS_VERBOSE"))
        printf("%-28s %-5s %.2e of %.2e  %.3f\n", c->name, part, worst, limit, worst / limit);
    if (!(worst <= limit))
        print_error("%s: off by %g, limit %g\n", name, worst, limit);
    assert_true(worst <= limit);
    free(want);
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
        if (c->has_back)
            backward(c, &k);
        for (int i = 0; i <= OP_MAX_IN; i++) {
            const struct tensor *x = i == OP_MAX_IN ? &c->out[0] : &c->din[i];
            size_t bytes = 0;

            if (i < OP_MAX_IN && !c->wants[i])
                continue;
            if (t == 0)
                first[i] = snapshot(x, &bytes);
            else if (shape_nbytes(&x->shape, x->dtype, &bytes) && memcmp(first[i], x->data, bytes) != 0)
                fail_msg("%s: other bytes with %d threads", c->name, threads[t]);
        }
    }
    for (int i = 0; i <= OP_MAX_IN; i++)
        free(first[i]);
}

static void test_golden(void **state)
{
    json_t *cases = json_loads(tensor_file_metadata(file, "cases"), 0, NULL), *j;
    bool seen[OP_COUNT] = {false};
    size_t i;

    (void)state;
    assert_non_null(cases);
    json_array_foreach(cases, i, j) {
        struct ops_case c;

        open_case(&c, j);
        seen[c.op] = true;
        run_case(&c);
        compare(&c, "out", 0, &c.out[0], c.n);
        for (int p = 0; p < OP_MAX_IN; p++)
            if (c.wants[p])
                compare(&c, "din", p, &c.din[p], c.n + c.back[p]);
        close_case(&c);
    }
    json_decref(cases);
    for (int op = 0; op < OP_COUNT; op++)
        if (!seen[op])
            fail_msg("operation %s has no golden case", op_table[op]->name);
}

/* sum of dout * forward(..., in[i] + h * direction, ...) in f64 */
static double probe(struct ops_case *c, int i, const float *start, const float *direction, double h, size_t n)
{
    float *x = c->in[i].data;
    const float *dy = c->dout.data, *y;
    struct op_call k;
    double sum = 0;
    size_t count = 0;

    for (size_t j = 0; j < n; j++)
        x[j] = (float)((double)start[j] + h * (double)direction[j]);
    forward(c, &k);
    y = c->out[0].data;
    shape_numel(&c->out[0].shape, &count);
    for (size_t j = 0; j < count; j++)
        sum += (double)y[j] * (double)dy[j];
    memcpy(x, start, n * sizeof *x);
    return sum;
}

/* The slope of the forward along the gradient itself, by a central difference, is the gradient's squared length. Its own
 * error is h^2 times a third derivative (O(1) here, h = 2^-7: 6e-5 of it) plus the forward's rounding over h; 1e-2 of the
 * slope leaves room for both, while a gradient with a wrong term is off by far more. */
static void check_difference(struct ops_case *c, int i)
{
    const float *d = c->din[i].data;
    const double h = 0x1p-7;
    float *start, *unit;
    double length = 0, slope;
    size_t n = 0, bytes;

    shape_numel(&c->in[i].shape, &n);
    start = snapshot(&c->in[i], &bytes);
    unit = snapshot(&c->din[i], &bytes);
    for (size_t j = 0; j < n; j++)
        length += (double)d[j] * (double)d[j];
    length = sqrt(length);
    for (size_t j = 0; length > 0 && j < n; j++)
        unit[j] = (float)((double)unit[j] / length);
    slope = (probe(c, i, start, unit, h, n) - probe(c, i, start, unit, -h, n)) / (2 * h);
    if (fabs(slope - length) > 1e-2 * length)
        fail_msg("%s: gradient of input %d has length %g, the difference quotient %g", c->name, i, length, slope);
    free(start);
    free(unit);
}

static void test_differences(void **state)
{
    json_t *cases = json_loads(tensor_file_metadata(file, "cases"), 0, NULL), *j;
    size_t i, bytes;

    (void)state;
    thread_init(2);
    json_array_foreach(cases, i, j) {
        struct ops_case c;
        struct op_call k;

        open_case(&c, j);
        for (int p = 0; p < OP_MAX_IN; p++)
            /* large cases say nothing new and take long */
            if (c.wants[p] && shape_nbytes(&c.in[p].shape, c.in[p].dtype, &bytes) && bytes < 20000) {
                forward(&c, &k);
                backward(&c, &k);
                check_difference(&c, p);
            }
        close_case(&c);
    }
    json_decref(cases);
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
        cmocka_unit_test(test_differences),
        cmocka_unit_test(test_shape_errors),
    };
    struct tensor_file *f = golden_open("ops.safetensors");
    int failed;

    file = f;
    ops_ref(&table);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    tensor_file_close(f);
    return failed;
}

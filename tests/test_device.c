/* The contract of a device (ref/op/ops.h) and what run.h makes of it, with a device that only pretends to be one: its memory
 * cannot be touched but by the table's functions (tests/lib/pretend.h). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/thread.h"
#include "ref/graph/profile.h"
#include "ref/graph/run.h"
#include "tests/lib/pretend.h"

#define MUST(call)                   \
    do {                             \
        if ((call) != 0)             \
            fail_msg("%s", err.msg); \
    } while (0)

enum { TOKENS = 6, WIDTH = 16, RANK = 2, PARAMS = 4 };

/* A block in small: norm, attention with LoRA on its output, GEGLU, loss. x is f32 data that only layers read, target only mse. */
struct block {
    struct graph *g;
    struct tensor gamma, beta, w, wide, narrow, factor[PARAMS];
    int x, target, loss, seed, y, grad[PARAMS];
};

static struct tensor make(size_t rows, size_t cols, float size, float offset)
{
    struct tensor t = {.dtype = DT_F32, .shape = {rows ? 2 : 1, {rows ? rows : cols, cols}}};
    size_t n = rows ? rows * cols : cols;

    t.data = malloc(n * sizeof(float));
    assert_non_null(t.data);
    for (size_t i = 0; i < n; i++)
        ((float *)t.data)[i] = offset + size * sinf((float)(i * i % 977 + 3 * i));
    return t;
}

static void build(struct block *b)
{
    struct shape s = {3, {2, TOKENS, WIDTH}};
    struct err err = {0};
    int grads[64], h, base;

    b->g = graph_new(&err);
    b->gamma = make(0, WIDTH, 0.3f, 1);
    b->beta = make(0, WIDTH, 0.3f, 0);
    b->w = make(WIDTH, WIDTH, 0.3f, 0);
    b->wide = make(2 * WIDTH, WIDTH, 0.3f, 0);
    b->narrow = make(WIDTH, WIDTH, 0.3f, 0);
    for (int i = 0; i < PARAMS; i++)
        b->factor[i] = i % 2 ? make(WIDTH, RANK, 0.2f, 0) : make(RANK, WIDTH, 0.2f, 0);
    b->x = graph_input(b->g, "x", DT_F32, &s);
    b->target = graph_input(b->g, "target", DT_F32, &s);
    h = graph_layer_norm(b->g, b->x, graph_weight(b->g, "gamma", &b->gamma), graph_weight(b->g, "beta", &b->beta), 1e-5f, "norm");
    base = graph_linear(b->g, h, graph_weight(b->g, "w", &b->w), GRAPH_NONE, "q");
    h = graph_lora(b->g, base, h, graph_param(b->g, "d0", &b->factor[0]), graph_param(b->g, "u0", &b->factor[1]), 0.5f, "q");
    h = graph_attention(b->g, h, h, h, 2, false, "attention");
    base = graph_linear(b->g, h, graph_weight(b->g, "narrow", &b->narrow), GRAPH_NONE, "out");
    h = graph_lora(b->g, base, h, graph_param(b->g, "d1", &b->factor[2]), graph_param(b->g, "u1", &b->factor[3]), 0.5f, "out");
    h = graph_linear(b->g, h, graph_weight(b->g, "wide", &b->wide), GRAPH_NONE, "wide");
    b->y = graph_unary(b->g, OP_geglu, h, "geglu");
    graph_keep(b->g, b->y);
    b->loss = graph_binary(b->g, OP_mse, b->y, b->target, "loss");
    MUST(graph_differentiate(b->g, b->loss, NULL, 0, grads, &err));
    b->seed = grads[b->loss];
    for (int i = 0; i < PARAMS; i++)
        for (size_t v = 0; v < b->g->value_count; v++)
            if (b->g->values[v].source == &b->factor[i])
                b->grad[i] = grads[v];
}

static void drop(struct block *b)
{
    graph_free(b->g);
    free(b->gamma.data);
    free(b->beta.data);
    free(b->w.data);
    free(b->wide.data);
    free(b->narrow.data);
    for (int i = 0; i < PARAMS; i++)
        free(b->factor[i].data);
}

/* All that a run gives: loss, output, gradients one after another. */
enum { OUT = 2 * TOKENS * WIDTH, RESULT = 1 + OUT + PARAMS * RANK * WIDTH };

static void run_once(struct run *r, const struct block *b, const struct run_options *options, float result[RESULT])
{
    float x[OUT], target[OUT], one = 1;
    struct err err = {0};

    for (int i = 0; i < OUT; i++) {
        x[i] = cosf((float)(7 * i));
        target[i] = 0.5f * sinf((float)(5 * i));
    }
    MUST(run_write(r, b->x, x, &err));
    MUST(run_write(r, b->target, target, &err));
    MUST(run_write(r, b->seed, &one, &err));
    MUST(run_graph(r, options, &err));
    MUST(run_read(r, b->loss, result, &err));
    MUST(run_read(r, b->y, result + 1, &err));
    for (int i = 0; i < PARAMS; i++)
        MUST(run_read(r, b->grad[i], result + 1 + OUT + i * RANK * WIDTH, &err));
}

static void expect(const struct block *b, float result[RESULT])
{
    struct err err = {0};
    struct run *r;
    struct ops ops;

    ops_ref(&ops);
    MUST(run_new(&r, b->g, &ops, &err));
    run_once(r, b, NULL, result);
    run_free(r);
}

static void nothing_left(void)
{
    assert_int_equal(pretend_counts.blocks, 0);
    assert_int_equal(pretend_counts.weights, 0);
    assert_int_equal(pretend_counts.recordings, 0);
    assert_int_equal(pretend_counts.host, 0);
}

/* In f32 the device computes with ref's code on the same numbers: the same bytes, in the first run, when the second is recorded
 * and when later ones are replayed; after params have changed, too. */
static void test_same_bytes(void **state)
{
    float want[RESULT], got[RESULT];
    struct err err = {0};
    struct block b;
    struct run *r;
    struct ops ops;
    size_t arena, device;

    (void)state;
    build(&b);
    memset(&pretend_counts, 0, sizeof pretend_counts);
    pretend_ops(&ops, DT_F32, 0, 0);
    MUST(run_forecast(b.g, &ops, &arena, &device, &err));
    nothing_left();
    memset(&pretend_counts, 0, sizeof pretend_counts);
    MUST(run_new(&r, b.g, &ops, &err));
    for (int i = 0; i < 5; i++) {
        ((float *)b.factor[1].data)[3] = 0.1f * (float)i;
        expect(&b, want);
        run_once(r, &b, NULL, got);
        assert_memory_equal(got, want, sizeof want);
    }
    assert_int_equal(pretend_counts.calls, 2 * b.g->node_count);
    assert_int_equal(pretend_counts.replays, 4);
    assert_int_equal(pretend_counts.params, 5);
    assert_int_equal(pretend_counts.uploads, 5);
    assert_int_equal(pretend_counts.products, 3); /* not gamma and beta */
    assert_true(run_device_bytes(r) >= (2 * WIDTH + 4 * WIDTH * WIDTH + PARAMS * RANK * WIDTH) * sizeof(float));
    assert_int_equal(device, run_device_bytes(r));
    assert_int_equal(arena, run_plan(r)->arena);
    assert_null(run_data(r, b.y));
    run_free(r);
    nothing_left();
    drop(&b);
}

/* keep_params: the device goes on with what it has. */
static void test_keep_params(void **state)
{
    struct run_options keep = {.keep_params = true};
    float want[RESULT], got[RESULT];
    struct err err = {0};
    struct block b;
    struct run *r;
    struct ops ops;

    (void)state;
    build(&b);
    pretend_ops(&ops, DT_F32, 0, 0);
    MUST(run_new(&r, b.g, &ops, &err));
    expect(&b, want);
    run_once(r, &b, NULL, got);
    ((float *)b.factor[1].data)[3] += 1;
    run_once(r, &b, &keep, got);
    assert_memory_equal(got, want, sizeof want);
    run_once(r, &b, NULL, got);
    assert_memory_not_equal(got, want, sizeof want);
    run_free(r);
    drop(&b);
}

/* All gradients come in one copy; whatever lies elsewhere or has another type comes too. */
static void test_read_many(void **state)
{
    float want[RESULT], got[RESULT];
    void *dst[PARAMS + 2];
    struct err err = {0};
    struct block b;
    struct run *r;
    struct ops ops;
    int values[PARAMS + 2];

    (void)state;
    build(&b);
    for (int i = 0; i < PARAMS; i++) {
        values[i] = b.grad[i];
        dst[i] = got + 1 + OUT + i * RANK * WIDTH;
    }
    values[PARAMS] = b.loss, values[PARAMS + 1] = b.y;
    dst[PARAMS] = got, dst[PARAMS + 1] = got + 1;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        pretend_ops(&ops, bf16 ? DT_BF16 : DT_F32, 0, 0);
        MUST(run_new(&r, b.g, &ops, &err));
        run_once(r, &b, NULL, want);
        memset(got, 0, sizeof got);
        pretend_counts.reads = 0;
        MUST(run_read_many(r, values, dst, PARAMS, &err));
        assert_int_equal(pretend_counts.reads, 1);
        assert_memory_equal(got + 1 + OUT, want + 1 + OUT, PARAMS * RANK * WIDTH * sizeof *got);
        MUST(run_read_many(r, values, dst, PARAMS + 2, &err));
        assert_memory_equal(got, want, sizeof want);
        run_free(r);
        nothing_left();
    }
    drop(&b);
}

/* How many operations a profile says to have run on the processor. */
static size_t lines_on_processor(struct run *r, struct block *b)
{
    struct run_options watch = {.after = profile_after};
    struct err err = {0};
    struct profile *p;
    FILE *f = tmpfile();
    char line[300];
    size_t n = 0;

    assert_non_null(f);
    MUST(profile_new(&p, b->g, r, &err));
    watch.ctx = p;
    MUST(run_graph(r, &watch, &err));
    profile_print(p, f, 0, 0);
    for (rewind(f); fgets(line, sizeof line, f);)
        n += strstr(line, ", on the processor") != NULL;
    fclose(f);
    profile_free(p);
    return n;
}

/* Operations without a slot run on the processor, are named, and give the same; then nothing is recorded. */
static void test_fallback(void **state)
{
    unsigned long without = 1ul << OP_attention | 1ul << OP_geglu | 1ul << OP_mse;
    float want[RESULT], got[RESULT];
    struct err err = {0};
    size_t named = 0;
    struct block b;
    struct run *r;
    struct ops ops;

    (void)state;
    build(&b);
    expect(&b, want);
    memset(&pretend_counts, 0, sizeof pretend_counts);
    pretend_ops(&ops, DT_F32, without, 0);
    MUST(run_new(&r, b.g, &ops, &err));
    for (int i = 0; i < 3; i++) {
        run_once(r, &b, NULL, got);
        assert_memory_equal(got, want, sizeof want);
    }
    for (size_t i = 0; i < b.g->node_count; i++) {
        assert_int_equal(run_falls_back(r, i), without >> b.g->nodes[i].op & 1);
        named += run_falls_back(r, i);
    }
    assert_int_equal(named, 6); /* three, forward and backward */
    assert_int_equal(lines_on_processor(r, &b), named);
    assert_int_equal(pretend_counts.replays, 0);
    run_free(r);
    nothing_left();
    drop(&b);
}

/* In bf16 (8 bits: each rounding is off by 2^-9) with and without the processor's help. About 12 roundings lie on the way from x
 * to the loss's gradient, and as many back; each is carried on with a factor of about 1 relative to the size of the values (rms),
 * so the whole is off by about sqrt(24) 2^-9 = 0.01 of the rms, twice that behind a product of two such values (GEGLU), as rms. */
static void test_bf16(void **state)
{
    static const unsigned long without[] = {0, 1ul << OP_attention | 1ul << OP_lora};
    float want[RESULT], got[RESULT];
    struct err err = {0};
    struct block b;
    struct run *r;
    struct ops ops;

    (void)state;
    build(&b);
    expect(&b, want);
    for (int w = 0; w < 2; w++) {
        pretend_ops(&ops, DT_BF16, without[w], 0);
        MUST(run_new(&r, b.g, &ops, &err));
        run_once(r, &b, NULL, got);
        run_free(r);
        assert_true(fabsf(got[0] - want[0]) < 0.02f * want[0]);
        assert_true(got[0] != dtype_bf16_to_f32(dtype_f32_to_bf16(got[0]))); /* the loss itself is f32 */
        for (int part = 0, at = 1; part <= PARAMS; part++) {
            int n = part ? RANK * WIDTH : OUT, narrow = 0;
            double sum = 0, off = 0;

            for (int i = 0; i < n; i++, at++) {
                sum += (double)want[at] * (double)want[at];
                off += ((double)got[at] - (double)want[at]) * ((double)got[at] - (double)want[at]);
                narrow += got[at] == dtype_bf16_to_f32(dtype_f32_to_bf16(got[at]));
            }
            assert_true(off <= 0.02 * 0.02 * sum);
            assert_true(part ? narrow < n : narrow == n); /* activations are bf16, gradients of factors f32 */
        }
    }
    drop(&b);
}

/* Two graphs share the weights' copies; the last one frees them. Weights that were loaded again are copied again. */
static void test_shared_weights(void **state)
{
    float want[RESULT], got[RESULT];
    struct run *first, *second;
    struct err err = {0};
    struct block b;
    struct ops ops;
    float *other;

    (void)state;
    build(&b);
    expect(&b, want);
    memset(&pretend_counts, 0, sizeof pretend_counts);
    pretend_ops(&ops, DT_F32, 0, 0);
    MUST(run_new(&first, b.g, &ops, &err));
    MUST(run_new(&second, b.g, &ops, &err));
    run_once(first, &b, NULL, got);
    run_once(second, &b, NULL, got);
    assert_memory_equal(got, want, sizeof want);
    assert_int_equal(pretend_counts.uploads, 5);
    run_free(first);
    assert_int_equal(pretend_counts.weights, 5);
    run_once(second, &b, NULL, got);
    other = malloc(WIDTH * WIDTH * sizeof *other);
    assert_non_null(other);
    for (int i = 0; i < WIDTH * WIDTH; i++)
        other[i] = 2 * ((float *)b.w.data)[i];
    free(b.w.data);
    b.w.data = other;
    expect(&b, want);
    run_once(second, &b, NULL, got);
    assert_memory_equal(got, want, sizeof want);
    assert_int_equal(pretend_counts.uploads, 6);
    assert_int_equal(pretend_counts.weights, 5);
    run_free(second);
    nothing_left();
    drop(&b);
}

static void count_nodes(void *ctx, const struct graph *g, size_t node, double seconds)
{
    (void)g, (void)node;
    assert_true(seconds >= 0);
    ++*(size_t *)ctx;
}

/* A watcher sees every node, also after a recording; NaN is found on the device and its layer named. */
static void test_watched(void **state)
{
    size_t seen = 0;
    struct run_options watch = {.after = count_nodes, .ctx = &seen}, search = {.check_nan = true};
    float want[RESULT], got[RESULT], x[OUT], one = 1;
    struct err err = {0};
    struct block b;
    struct run *r;
    struct ops ops;

    (void)state;
    build(&b);
    expect(&b, want);
    pretend_ops(&ops, DT_F32, 0, 0);
    MUST(run_new(&r, b.g, &ops, &err));
    for (int i = 0; i < 3; i++)
        run_once(r, &b, i == 2 ? &watch : NULL, got);
    assert_memory_equal(got, want, sizeof want);
    assert_int_equal(seen, b.g->node_count);
    for (int i = 0; i < OUT; i++)
        x[i] = i == 40 ? NAN : 1;
    MUST(run_write(r, b.x, x, &err));
    MUST(run_write(r, b.seed, &one, &err));
    assert_int_equal(run_graph(r, &search, &err), -1);
    assert_non_null(strstr(err.msg, "layer 'norm'"));
    run_free(r);
    nothing_left();
    drop(&b);
}

/* Whatever allocation fails, the error comes out and nothing stays behind. */
static void test_out_of_memory(void **state)
{
    struct block b;
    size_t failed = 0;

    (void)state;
    build(&b);
    memset(&pretend_counts, 0, sizeof pretend_counts);
    for (size_t at = 1; at == failed + 1; at++) {
        struct run *r = NULL;
        struct err err = {0};
        struct ops ops;

        pretend_ops(&ops, DT_F32, 0, at);
        if (run_new(&r, b.g, &ops, &err) != 0 || run_graph(r, NULL, &err) != 0) {
            assert_non_null(strstr(err.msg, "out of memory for"));
            failed++;
        }
        if (at == 1)
            assert_null(r);
        run_free(r);
        nothing_left();
    }
    assert_int_equal(failed, 7); /* activations, factors, five weights */
    drop(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes),     cmocka_unit_test(test_keep_params), cmocka_unit_test(test_read_many), cmocka_unit_test(test_fallback),
        cmocka_unit_test(test_bf16),           cmocka_unit_test(test_shared_weights), cmocka_unit_test(test_watched),
        cmocka_unit_test(test_out_of_memory),
    };

    thread_init(2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

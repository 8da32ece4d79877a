/* The graph: building, differentiation by hand-made examples, plans (nothing overlaps, the forecast is the truth), errors */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ref/base/thread.h"
#include "ref/graph/profile.h"
#include "ref/graph/run.h"

static struct ops ops;

#define MUST(call)                   \
    do {                             \
        if ((call) != 0)             \
            fail_msg("%s", err.msg); \
    } while (0)

static struct tensor matrix(size_t rows, size_t cols, float size)
{
    struct tensor t = {.dtype = DT_F32, .shape = {2, {rows, cols}}};

    t.data = malloc(rows * cols * sizeof(float));
    assert_non_null(t.data);
    for (size_t i = 0; i < rows * cols; i++)
        ((float *)t.data)[i] = size * sinf((float)(i * i + 3 * i));
    return t;
}

static int input(struct graph *g, const char *name, size_t rows, size_t cols)
{
    struct shape s = {2, {rows, cols}};

    return graph_input(g, name, DT_F32, &s);
}

static void set(struct run *r, int v, float value)
{
    struct tensor t = run_tensor(r, v);
    size_t n = 0;

    shape_numel(&t.shape, &n);
    for (size_t i = 0; i < n; i++)
        ((float *)t.data)[i] = value;
}

/* loss = mean((3 (x + x))^2) at x = 2, by hand: (6 x)^2 = 144, slope 72 x / n. x is used twice, its gradients add up. */
static void test_differentiate(void **state)
{
    struct err err = {0};
    struct graph *g = graph_new(&err);
    int x = input(g, "x", 2, 4), zero = input(g, "zero", 2, 4), grads[16], in[OP_MAX_IN], y, loss;
    struct op_attr three = {.scale = 3};
    struct run *r;

    (void)state;
    for (int i = 0; i < OP_MAX_IN; i++)
        in[i] = GRAPH_NONE;
    in[0] = graph_binary(g, OP_add, x, x, "double");
    y = graph_add_node(g, OP_scale, &three, in, "three");
    loss = graph_binary(g, OP_mse, y, zero, "loss");
    MUST(graph_differentiate(g, loss, &x, 1, grads, &err));
    MUST(run_new(&r, g, &ops, &err));
    set(r, x, 2);
    set(r, zero, 0);
    set(r, grads[loss], 1);
    MUST(run_graph(r, NULL, &err));
    assert_true(*(float *)run_data(r, loss) == 144);
    for (int i = 0; i < 8; i++)
        assert_true(((float *)run_data(r, grads[x]))[i] == 72 * 2 / 8.0f);
    assert_int_equal(grads[zero], GRAPH_NONE);
    run_free(r);
    graph_free(g);
}

enum { DEEP = 12, WIDE = 96 };

struct chain {
    struct graph *g;
    struct tensor w[DEEP], down[DEEP], up[DEEP], gamma;
    int x, target, loss, *grads;
};

/* A chain of normalised, activated linear layers with LoRA, each a checkpointing block. */
static void build_chain(struct chain *c, size_t rows)
{
    struct err err = {0};
    int h;

    memset(c, 0, sizeof *c);
    c->g = graph_new(&err);
    c->gamma = matrix(1, WIDE, 1);
    c->gamma.shape = (struct shape){1, {WIDE}};
    h = c->x = input(c->g, "x", rows, WIDE);
    c->target = input(c->g, "target", rows, WIDE);
    for (size_t i = 0; i < DEEP; i++) {
        int y, gamma = graph_weight(c->g, "gamma", &c->gamma);
        char name[20];

        c->w[i] = matrix(WIDE, WIDE, 0.1f);
        c->down[i] = matrix(4, WIDE, 0.1f);
        c->up[i] = matrix(WIDE, 4, 0.1f);
        snprintf(name, sizeof name, "layer%zu", i);
        graph_block_begin(c->g);
        y = graph_layer_norm(c->g, h, gamma, gamma, 1e-5f, name);
        y = graph_unary(c->g, OP_gelu, graph_linear(c->g, y, graph_weight(c->g, "w", &c->w[i]), GRAPH_NONE, name), name);
        y = graph_lora(c->g, y, y, graph_param(c->g, "down", &c->down[i]), graph_param(c->g, "up", &c->up[i]), 0.5f, name);
        h = graph_binary(c->g, OP_add, h, y, name);
        graph_block_end(c->g);
    }
    c->loss = graph_binary(c->g, OP_mse, h, c->target, "loss");
    MUST(graph_check(c->g, &err));
    c->grads = malloc(c->g->value_count * sizeof *c->grads);
    MUST(graph_differentiate(c->g, c->loss, NULL, 0, c->grads, &err));
}

static void free_chain(struct chain *c)
{
    for (size_t i = 0; i < DEEP; i++) {
        free(c->w[i].data);
        free(c->down[i].data);
        free(c->up[i].data);
    }
    free(c->gamma.data);
    free(c->grads);
    graph_free(c->g);
}

/* Values that are alive at one node and not of one block must not overlap; checked anew from the lists, without the
 * planner's own lifetimes. An output may only share with an input where the op allows it. */
static void check_plan(const struct graph *g, const struct plan *p)
{
    size_t *first = calloc(g->value_count, sizeof *first), *last = calloc(g->value_count, sizeof *last), n;
    int list[GRAPH_MAX_READS];

    for (size_t i = 0; i < g->node_count; i++) {
        for (int j = graph_list_reads(&g->nodes[i], list); j-- > 0;)
            last[list[j]] = i;
        for (int j = graph_list_writes(&g->nodes[i], list); j-- > 0;)
            first[list[j]] = last[list[j]] = i;
    }
    for (size_t a = 0; a < g->value_count; a++) {
        size_t bytes_a = 0, bytes_b = 0;

        if (p->offset[a] == PLAN_NOWHERE)
            continue;
        shape_nbytes(&g->values[a].shape, g->values[a].dtype, &bytes_a);
        assert_true(p->offset[a] % MEM_ALIGN == 0 && p->offset[a] + bytes_a <= p->arena);
        last[a] = g->values[a].keep ? g->node_count : last[a];
        for (size_t b = 0; b < a; b++) {
            bool apart;

            if (p->offset[b] == PLAN_NOWHERE)
                continue;
            shape_nbytes(&g->values[b].shape, g->values[b].dtype, &bytes_b);
            apart = p->offset[a] + bytes_a <= p->offset[b] || p->offset[b] + bytes_b <= p->offset[a];
            /* one that ends where the other begins is in place work: allowed for ops that say so */
            n = last[a] == first[b] ? first[b] : first[a];
            if (!apart && !(last[a] < first[b] || last[b] < first[a])) {
                const struct graph_node *node = &g->nodes[n];
                const struct op *op = op_table[node->op];

                assert_true(p->offset[a] == p->offset[b] && (last[a] == first[b] || last[b] == first[a]));
                assert_true(node->backward ? op->inplace_backward : op->inplace != 0);
            }
        }
    }
    free(first);
    free(last);
}

static void test_plan(void **state)
{
    struct err err = {0};
    struct chain c;
    struct plan *p, *small;

    (void)state;
    build_chain(&c, 50);
    MUST(plan_new(&p, c.g, &ops, 2, &err));
    check_plan(c.g, p);
    assert_true(p->live <= p->arena && p->arena <= p->live + p->live / 10);
    MUST(graph_checkpoint(c.g, &err));
    MUST(plan_new(&small, c.g, &ops, 2, &err));
    check_plan(c.g, small);
    assert_true(small->arena < p->arena * 3 / 4);
    plan_free(p);
    plan_free(small);
    free_chain(&c);
}

/* Resident memory of this process in bytes. */
static size_t resident(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long pages = 0, all;

    if (!f || fscanf(f, "%lu %lu", &all, &pages) != 2)
        pages = 0;
    if (f)
        fclose(f);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* The forecast (arena plus what the parts own) against what the process really takes, in a child of its own; 5 %. */
static void test_forecast(void **state)
{
#if defined(__SANITIZE_ADDRESS__)
    (void)state;
    skip(); /* shadow memory is no part of the forecast */
#else
    pid_t child = fork();
    int status;

    (void)state;
    assert_true(child >= 0);
    if (child == 0) {
        struct err err = {0};
        struct chain c, warm;
        struct run *r;
        size_t before, after;
        double ratio;

        build_chain(&warm, 8); /* BLAS's buffers and the threads' stacks are there from now on */
        if (run_new(&r, warm.g, &ops, &err) != 0 || run_graph(r, NULL, &err) != 0)
            _exit(3);
        run_free(r);
        build_chain(&c, 20000);
        before = resident();
        if (run_new(&r, c.g, &ops, &err) != 0)
            _exit(4);
        set(r, c.x, 1);
        set(r, c.target, 0);
        set(r, c.grads[c.loss], 1);
        if (run_graph(r, NULL, &err) != 0)
            _exit(5);
        after = resident();
        ratio = (double)(after - before) / (double)run_plan(r)->arena;
        _exit(ratio > 0.95 && ratio < 1.05 ? 0 : 6);
    }
    assert_true(waitpid(child, &status, 0) == child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
#endif
}

static void test_errors(void **state)
{
    struct err err = {0};
    struct graph *g = graph_new(&err);
    struct tensor w = matrix(5, 6, 1);
    int x = input(g, "x", 2, 4), y, grads[8];

    (void)state;
    y = graph_linear(g, x, graph_weight(g, "w", &w), GRAPH_NONE, "down.proj");
    assert_int_equal(y, GRAPH_NONE);
    y = graph_unary(g, OP_silu, y, "later"); /* does nothing, the first error stays */
    assert_int_equal(graph_check(g, &err), -1);
    assert_string_equal(err.msg, "layer 'down.proj': input [2, 4] does not fit weight [5, 6]");
    graph_free(g);

    g = graph_new(&err);
    x = input(g, "x", 2, 6);
    y = graph_binary(g, OP_mse, x, x, "loss");
    assert_int_equal(graph_differentiate(g, y, NULL, 0, grads, &err), -1);
    assert_non_null(strstr(err.msg, "nothing trainable leads to 'loss'"));
    graph_free(g);
    free(w.data);
}

/* NaN in a layer is found there and named, gradients too. */
static void test_nan(void **state)
{
    struct err err = {0};
    struct run_options options = {.check_nan = true};
    struct chain c;
    struct run *r;

    (void)state;
    build_chain(&c, 4);
    ((float *)c.w[7].data)[11] = NAN;
    MUST(run_new(&r, c.g, &ops, &err));
    set(r, c.x, 1);
    set(r, c.target, 0);
    set(r, c.grads[c.loss], 1);
    assert_int_equal(run_graph(r, &options, &err), -1);
    assert_non_null(strstr(err.msg, "the output of layer 'layer7' (linear) is not finite"));
    ((float *)c.w[7].data)[11] = 0;
    set(r, c.x, 1);
    set(r, c.target, 0);
    set(r, c.grads[c.loss], INFINITY);
    assert_int_equal(run_graph(r, &options, &err), -1);
    assert_non_null(strstr(err.msg, "the gradient of layer"));
    run_free(r);
    free_chain(&c);
}

/* The profile counts what ran: three kinds of operation forward and backward, with the flops of the products. */
static void test_profile(void **state)
{
    struct err err = {0};
    struct chain c;
    struct run *r;
    struct profile *p;
    struct run_options options = {.after = profile_after};
    FILE *f = tmpfile();
    char line[300];
    size_t lines = 0, seen = 0;

    (void)state;
    build_chain(&c, 4);
    MUST(run_new(&r, c.g, &ops, &err));
    MUST(profile_new(&p, c.g, r, &err));
    options.ctx = p;
    for (int i = 0; i < 2; i++) {
        set(r, c.x, 1);
        set(r, c.target, 0);
        set(r, c.grads[c.loss], 1);
        MUST(run_graph(r, &options, &err));
    }
    assert_non_null(f);
    profile_print(p, f, 100, 5);
    rewind(f);
    for (; fgets(line, sizeof line, f); lines++) {
        seen += strstr(line, "x ") && strstr(line, "GFLOP/s") && strstr(line, "% of peak");
        if (strstr(line, " linear (backward)"))
            assert_non_null(strstr(line, "11 x ")); /* nothing trainable lies before the first layer */
    }
    assert_int_equal(seen, lines);
    assert_true(lines > 10 && lines < 25);
    fclose(f);
    profile_free(p);
    run_free(r);
    free_chain(&c);
}

static void count_time(void *ctx, const struct graph *g, size_t node, double seconds)
{
    size_t *seen = ctx;

    assert_true(node < g->node_count && seconds >= 0);
    (*seen)++;
}

static void test_after(void **state)
{
    struct err err = {0};
    struct chain c;
    struct run *r;
    size_t seen = 0;
    struct run_options options = {.after = count_time, .ctx = &seen};

    (void)state;
    build_chain(&c, 4);
    MUST(run_new(&r, c.g, &ops, &err));
    set(r, c.x, 1);
    set(r, c.target, 0);
    set(r, c.grads[c.loss], 1);
    MUST(run_graph(r, &options, &err));
    assert_int_equal(seen, c.g->node_count);
    run_free(r);
    free_chain(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forecast), /* first: a child of a process with threads has none */
        cmocka_unit_test(test_differentiate), cmocka_unit_test(test_plan),
        cmocka_unit_test(test_errors),        cmocka_unit_test(test_nan),  cmocka_unit_test(test_after),
        cmocka_unit_test(test_profile),
    };

    thread_init(2);
    ops_ref(&ops);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

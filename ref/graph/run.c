#include "ref/graph/run.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ref/base/thread.h"

struct run {
    const struct graph *g;
    const struct ops *ops;
    struct plan *plan;
    char *arena;
};

int run_new(struct run **out, const struct graph *g, const struct ops *ops, struct err *err)
{
    struct run *r = mem_zero(1, sizeof *r, "a graph", err);

    if (!r)
        return -1;
    r->g = g;
    r->ops = ops;
    if (plan_new(&r->plan, g, ops, thread_count(), err) < 0)
        goto fail;
    r->arena = mem_new(r->plan->arena, "the activations", err);
    if (!r->arena)
        goto fail;
    *out = r;
    return 0;
fail:
    run_free(r);
    return -1;
}

void run_free(struct run *r)
{
    if (!r)
        return;
    plan_free(r->plan);
    free(r->arena);
    free(r);
}

const struct plan *run_plan(const struct run *r)
{
    return r->plan;
}

void *run_data(struct run *r, int value)
{
    const struct graph_value *v = &r->g->values[value];

    if (v->source)
        return v->source->data;
    return r->plan->offset[value] == PLAN_NOWHERE ? NULL : r->arena + r->plan->offset[value];
}

/* Where the value is and how long, or NULL with err filled. */
static char *place(struct run *r, int value, size_t *bytes, struct err *err)
{
    const struct graph_value *v = &r->g->values[value];
    char *data = run_data(r, value);

    if (data && shape_nbytes(&v->shape, v->dtype, bytes))
        return data;
    err_set(err, "'%s' has no place: nothing makes or reads it", v->name);
    return NULL;
}

int run_write(struct run *r, int value, const void *src, struct err *err)
{
    size_t bytes;
    char *dst = place(r, value, &bytes, err);

    if (!dst)
        return -1;
    memcpy(dst, src, bytes);
    return 0;
}

int run_read(struct run *r, int value, void *dst, struct err *err)
{
    size_t bytes;
    const char *src = place(r, value, &bytes, err);

    if (!src)
        return -1;
    memcpy(dst, src, bytes);
    return 0;
}

struct tensor run_tensor(struct run *r, int value)
{
    const struct graph_value *v = &r->g->values[value];

    return (struct tensor){run_data(r, value), v->dtype, v->shape};
}

/* Points the call's tensors at their data. A value that a backward node does not read keeps NULL: its memory holds something
 * else by now. */
static int point(struct run *r, const struct graph_node *n, struct tensor *store, struct err *err)
{
    const int *ids[] = {n->in, n->out, n->dout, n->din};
    const int sizes[] = {OP_MAX_IN, OP_MAX_OUT, OP_MAX_OUT, OP_MAX_IN};
    const unsigned reads[] = {n->backward ? n->reads_in : ~0u, n->backward ? n->reads_out : ~0u, ~0u, ~0u};

    for (int list = 0; list < 4; list++)
        for (int i = 0; i < sizes[list]; i++, store++) {
            int v = ids[list][i];

            if (v == GRAPH_NONE)
                continue;
            if (!(reads[list] >> i & 1) && !r->g->values[v].source)
                continue;
            store->data = run_data(r, v);
            if (!store->data)
                return err_set(err, "'%s' has no data yet; load the weights before the first run", r->g->values[v].name);
        }
    return 0;
}

static int find_nan(struct run *r, const struct graph_node *n, struct err *err)
{
    int list[OP_MAX_IN];

    for (int i = graph_list_writes(n, list); i-- > 0;) {
        struct tensor t = run_tensor(r, list[i]);
        size_t count = 0, at;

        if (!shape_numel(&t.shape, &count))
            continue;
        at = dtype_find_nonfinite(t.data, t.dtype, count);
        if (at < count)
            return err_set(err, "the %s of layer '%s' (%s) is not finite at element %zu of %zu; try weights in bf16 or f32",
                           n->backward ? "gradient" : "output", n->layer, op_table[n->op]->name, at, count);
    }
    return 0;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int run_node(struct run *r, size_t i, struct err *err)
{
    const struct graph_node *n = &r->g->nodes[i];
    struct tensor store[2 * OP_MAX_IN + 2 * OP_MAX_OUT];
    struct op_call c;

    graph_call(r->g, n, &c, store);
    c.scratch = r->plan->scratch[i] == PLAN_NOWHERE ? NULL : r->arena + r->plan->scratch[i];
    if (point(r, n, store, err) < 0 || (n->backward ? r->ops->backward : r->ops->forward)[n->op](&c, err) < 0)
        return err_prefix(err, "layer '%s': ", n->layer);
    return 0;
}

int run_graph(struct run *r, const struct run_options *options, struct err *err)
{
    bool timed = options && options->after;

    for (size_t i = 0; i < r->g->node_count; i++) {
        double start = timed ? now() : 0;

        if (run_node(r, i, err) < 0)
            return -1;
        if (timed)
            options->after(options->ctx, r->g, i, now() - start);
        if (options && options->check_nan && find_nan(r, &r->g->nodes[i], err) < 0)
            return -1;
    }
    return 0;
}

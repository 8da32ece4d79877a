#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ref/base/thread.h"
#include "ref/graph/run_inside.h"

/* The arena: owner's, or new memory; a device also places params. */
static int get_arena(struct run *r, const struct run *owner, struct err *err)
{
    if (owner && owner->plan->arena >= r->plan->arena) {
        r->arena = owner->arena;
        r->borrowed = true;
    }
    if (r->ops->device)
        return run_device_arena(r, err);
    if (!r->borrowed)
        r->arena = mem_new(r->plan->arena, "the activations", err);
    return r->arena ? 0 : -1;
}

int run_new(struct run **out, const struct graph *g, const struct ops *ops, struct err *err)
{
    return run_new_beside(out, g, ops, NULL, err);
}

int run_new_beside(struct run **out, const struct graph *g, const struct ops *ops, const struct run *owner, struct err *err)
{
    struct run *r = mem_zero(1, sizeof *r, "a graph", err);

    if (!r)
        return -1;
    r->g = g;
    r->ops = ops;
    if (graph_check(g, err) < 0 || (ops->device && run_device_new(r, err) < 0))
        goto fail;
    if (plan_new(&r->plan, run_graph_of(r), ops, thread_count(), err) < 0)
        goto fail;
    if (get_arena(r, owner, err) < 0)
        goto fail;
    *out = r;
    return 0;
fail:
    run_free(r);
    return -1;
}

int run_forecast(const struct graph *g, const struct ops *ops, size_t *arena, size_t *device, struct err *err)
{
    struct run *r = mem_zero(1, sizeof *r, "a graph", err);
    int rc = r ? graph_check(g, err) : -1;

    if (rc == 0) {
        r->g = g;
        r->ops = ops;
        rc = (ops->device && run_device_new(r, err) < 0) || plan_new(&r->plan, run_graph_of(r), ops, thread_count(), err) < 0 ? -1 : 0;
    }
    if (rc == 0) {
        *arena = r->plan->arena;
        *device = run_device_bytes(r);
    }
    run_free(r);
    return rc;
}

void run_free(struct run *r)
{
    if (!r)
        return;
    run_device_free(r);
    plan_free(r->plan);
    if (!r->borrowed)
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
    if (r->device)
        return NULL;
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
    char *dst;

    if (r->device)
        return run_device_write(r, value, src, err);
    dst = place(r, value, &bytes, err);
    if (!dst)
        return -1;
    memcpy(dst, src, bytes);
    return 0;
}

int run_read(struct run *r, int value, void *dst, struct err *err)
{
    size_t bytes;
    const char *src;

    if (r->device)
        return run_device_read(r, value, dst, err);
    src = place(r, value, &bytes, err);
    if (!src)
        return -1;
    memcpy(dst, src, bytes);
    return 0;
}

int run_read_many(struct run *r, const int *values, void *const *dst, size_t n, struct err *err)
{
    if (r->device)
        return run_device_read_many(r, values, dst, n, err);
    for (size_t i = 0; i < n; i++)
        if (run_read(r, values[i], dst[i], err) < 0)
            return -1;
    return 0;
}

struct tensor run_tensor(struct run *r, int value)
{
    const struct graph_value *v = &r->g->values[value];

    return (struct tensor){run_data(r, value), v->dtype, v->shape};
}

int run_wait(struct run *r, struct err *err)
{
    return r->device ? run_device_sync(r, err) : 0;
}

/* Where a call finds the value: on a device that is another place and, for a weight, another type. */
static struct tensor on_device(struct run *r, int value)
{
    const struct graph_value *v = &r->typed.values[value];

    if (v->source)
        return run_device_source(r, value);
    return (struct tensor){r->plan->offset[value] == PLAN_NOWHERE ? NULL : r->arena + r->plan->offset[value], v->dtype, v->shape};
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
            *store = r->device ? on_device(r, v) : run_tensor(r, v);
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
        void *copy = NULL;

        if (!shape_numel(&t.shape, &count))
            continue;
        if (r->device) {
            t.data = copy = mem_new(count * dtype_size(t.dtype), "a value", err);
            if (!copy || run_device_read(r, list[i], copy, err) < 0) {
                free(copy);
                return -1;
            }
        }
        at = dtype_find_nonfinite(t.data, t.dtype, count);
        free(copy);
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
    const struct graph *g = run_graph_of(r);
    const struct graph_node *n = &g->nodes[i];
    struct tensor store[RUN_TENSORS];
    struct op_call c;
    int rc;

    graph_call(g, n, &c, store);
    c.arithmetic = r->ops->arithmetic;
    for (int j = 0; j < RUN_TENSORS; j++)
        store[j].data = NULL;
    c.scratch = r->plan->scratch[i] == PLAN_NOWHERE ? NULL : r->arena + r->plan->scratch[i];
    rc = point(r, n, store, err);
    if (rc == 0)
        rc = run_falls_back(r, i) ? run_fallback(r, i, store, err)
                                  : (n->backward ? r->ops->backward : r->ops->forward)[n->op](&c, err);
    return rc < 0 ? err_prefix(err, "layer '%s': ", n->layer) : 0;
}

int run_nodes(struct run *r, const struct run_options *options, struct err *err)
{
    bool timed = options && options->after;

    for (size_t i = 0; i < r->g->node_count; i++) {
        double start = timed ? now() : 0;

        if (run_node(r, i, err) < 0 || (timed && run_wait(r, err) < 0))
            return -1;
        if (timed)
            options->after(options->ctx, r->g, i, now() - start);
        if (options && options->check_nan && find_nan(r, &r->g->nodes[i], err) < 0)
            return -1;
    }
    return 0;
}

int run_graph(struct run *r, const struct run_options *options, struct err *err)
{
    bool watched = options && (options->after || options->check_nan), done = false;

    if (r->device && run_device_begin(r, !options || !options->keep_params, err) < 0)
        return -1;
    if (r->device && !watched && run_device_replay(r, &done, err) < 0)
        return -1;
    return done ? 0 : run_nodes(r, options, err);
}

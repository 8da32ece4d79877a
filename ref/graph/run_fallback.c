/* The one place where an operation that a device lacks runs on the processor: what it reads comes from the device, what it
 * writes goes there, in the types that ref knows. Slow and always right; profile.h names the operations that go this way. */
#include <stdlib.h>
#include <string.h>

#include "ref/base/thread.h"
#include "ref/graph/run_device.h"

static size_t aligned(size_t n)
{
    return (n + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
}

static int make_room(struct run_device *d, size_t bytes, struct err *err)
{
    if (bytes <= d->host_bytes)
        return 0;
    free(d->host);
    d->host = mem_new(bytes, "an operation that runs on the processor", err);
    d->host_bytes = d->host ? bytes : 0;
    return d->host ? 0 : -1;
}

/* Whether place i of a call's tensors (in, out, dout, din) is written by the node. */
static bool written(const struct graph_node *n, int i)
{
    return n->backward ? i >= OP_MAX_IN + 2 * OP_MAX_OUT : i >= OP_MAX_IN && i < OP_MAX_IN + OP_MAX_OUT;
}

/* The value at each place of a call's tensors. */
static void list_values(const struct graph *g, const struct graph_node *n, const struct graph_value *values[RUN_TENSORS])
{
    const int *ids[] = {n->in, n->out, n->dout, n->din};
    const int sizes[] = {OP_MAX_IN, OP_MAX_OUT, OP_MAX_OUT, OP_MAX_IN};

    for (int list = 0; list < 4; list++)
        for (int i = 0; i < sizes[list]; i++)
            *values++ = ids[list][i] == GRAPH_NONE ? NULL : &g->values[ids[list][i]];
}

/* Data that the program has as well: not params that are changed on the device. */
static bool at_home(const struct run_device *d, const struct graph_value *v)
{
    return v->source && !(d->shared && v->kind == VALUE_PARAM);
}

/* Gives every tensor that the call touches its memory, and those that it reads their data. */
static int fetch(struct run_device *d, const struct graph_node *n, const struct graph_value *const *values,
                 const struct tensor *store, struct tensor *host, char *at, struct err *err)
{
    for (int i = 0; i < RUN_TENSORS; i++) {
        if (!values[i] || !store[i].data)
            continue;
        if (at_home(d, values[i])) {
            host[i].data = values[i]->source->data;
            continue;
        }
        host[i].data = at;
        at += aligned(run_device_count(&host[i].shape) * dtype_size(host[i].dtype));
        if (!written(n, i) && run_device_get(d, &store[i], host[i].dtype, host[i].data, err) < 0)
            return -1;
    }
    return 0;
}

int run_fallback(struct run *r, size_t node, const struct tensor *store, struct err *err)
{
    const struct graph_node *n = &r->g->nodes[node];
    const struct op *op = op_table[n->op];
    const struct graph_value *values[RUN_TENSORS];
    struct tensor host[RUN_TENSORS] = {0};
    struct run_device *d = r->device;
    size_t need = 0, scratch;
    struct op_call c;

    list_values(r->g, n, values);
    graph_call(r->g, n, &c, host);
    scratch = aligned(op->scratch ? op->scratch(&c, n->backward, thread_count()) : 0);
    for (int i = 0; i < RUN_TENSORS; i++)
        if (values[i] && store[i].data && !at_home(d, values[i]))
            need += aligned(run_device_count(&host[i].shape) * dtype_size(host[i].dtype));
    if (make_room(d, need + scratch, err) < 0)
        return -1;
    c.scratch = d->host;
    if (fetch(d, n, values, store, host, d->host + scratch, err) < 0 || (n->backward ? op->backward : op->forward)(&c, err) < 0)
        return -1;
    for (int i = 0; i < RUN_TENSORS; i++)
        if (values[i] && store[i].data && written(n, i) &&
            run_device_put(d, &store[i], host[i].dtype, host[i].data, err) < 0)
            return -1;
    return 0;
}

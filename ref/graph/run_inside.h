/* What the parts of run.h share: run.c the walk over the nodes, run_device.c all that concerns a device, run_types.c the types
 * that values have there, run_fallback.c nodes that a device leaves to the processor. */
#ifndef REF_GRAPH_RUN_INSIDE_H
#define REF_GRAPH_RUN_INSIDE_H

#include "ref/graph/run.h"

enum { RUN_TENSORS = 2 * OP_MAX_IN + 2 * OP_MAX_OUT }; /* of a call: in, out, dout, din, as graph_call() stores them */

struct run {
    const struct graph *g; /* as the caller made it; on a device `typed`: the same with the types that values have there */
    struct graph typed;
    const struct ops *ops;
    struct plan *plan;
    char *arena; /* the device's memory where there is one */
    bool borrowed; /* the arena is another run's */
    struct run_device *device; /* NULL: the program's own memory */
};

/* The graph that is run: shapes and types as they lie in memory. */
static inline const struct graph *run_graph_of(const struct run *r)
{
    return r->device ? &r->typed : r->g;
}

/* Gives the values of g, whose array is the caller's own, their types on a device. */
int run_types(struct graph *g, enum dtype storage, struct err *err);

/* r->ops has a device: sets r->typed and r->device before the plan is made; run_device_arena() gets the planned memory. */
int run_device_new(struct run *r, struct err *err);
int run_device_arena(struct run *r, struct err *err);
void run_device_free(struct run *r);

/* Before each run: weights that are not there yet, params as they are now. Then all nodes at once where they can be recorded,
 * which sets *done; else one after another, some of them on the processor (run_fallback.c): store has the call's tensors on the
 * device, those without data are not touched. */
int run_device_begin(struct run *r, bool params, struct err *err);
int run_device_replay(struct run *r, bool *done, struct err *err);
int run_fallback(struct run *r, size_t node, const struct tensor *store, struct err *err);

/* Where a weight's or param's copy is. */
struct tensor run_device_source(struct run *r, int value);

/* Host bytes of the value's declared type <-> the device. */
int run_device_write(struct run *r, int value, const void *src, struct err *err);
int run_device_read(struct run *r, int value, void *dst, struct err *err);
int run_device_read_many(struct run *r, const int *values, void *const *dst, size_t n, struct err *err);
int run_device_sync(struct run *r, struct err *err);

/* All nodes, one after another (run.c). */
int run_nodes(struct run *r, const struct run_options *options, struct err *err);

#endif

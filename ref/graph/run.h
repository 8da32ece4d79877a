/* Runs a planned graph.
 *
 *     run_new(&r, g, &ops, err);
 *     run_write(r, x, data, err);        inputs, before each run: their memory is reused during it
 *     run_graph(r, NULL, err);
 *     run_read(r, y, data, err);         kept values, until the next run
 *
 * Writing and reading are calls, so that the values may lie in the memory of a device.
 */
#ifndef REF_GRAPH_RUN_H
#define REF_GRAPH_RUN_H

#include "ref/graph/plan.h"

struct run;

struct run_options {
    bool check_nan; /* after each node look for NaN and infinity; the message names the first layer */
    /* Called after each node with the seconds it took, in the thread that runs the graph; NULL: time is not taken. */
    void (*after)(void *ctx, const struct graph *g, size_t node, double seconds);
    void *ctx;
};

/* Plans g and allocates its arena. g, ops and the weights' tensors are borrowed until run_free(). */
int run_new(struct run **out, const struct graph *g, const struct ops *ops, struct err *err);
void run_free(struct run *r); /* NULL is fine */

const struct plan *run_plan(const struct run *r);

/* Where the value's data is: arena, or the weight's own memory. NULL when it has no place. */
void *run_data(struct run *r, int value);

/* Copies all bytes of an input from src, or of a kept value to dst. -1: the value has no place, or the device failed. */
int run_write(struct run *r, int value, const void *src, struct err *err);
int run_read(struct run *r, int value, void *dst, struct err *err);

/* A view of the value. */
struct tensor run_tensor(struct run *r, int value);

/* Runs all nodes; options may be NULL. Returns 0 or -1 (the layer's name in front of the op's message). */
int run_graph(struct run *r, const struct run_options *options, struct err *err);

#endif

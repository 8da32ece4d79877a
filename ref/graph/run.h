/* Runs a planned graph.
 *
 *     run_new(&r, g, &ops, err);
 *     run_write(r, x, data, err);        inputs, before each run: their memory is reused during it
 *     run_graph(r, NULL, err);
 *     run_read(r, y, data, err);         kept values, until the next run
 *
 * Writing and reading are calls, because the values may lie in the memory of a device (ops.h), and there in another type: what
 * is written and read has the type that the graph declares. On a device run_graph() only asks for the work; reading waits for
 * it. The second run without a watcher is recorded, and later runs replay it. Frozen weights are copied to the device by the
 * first run, and shared with the other runs of the device; params are copied by each run.
 */
#ifndef REF_GRAPH_RUN_H
#define REF_GRAPH_RUN_H

#include "ref/graph/plan.h"

struct run;

struct run_options {
    bool keep_params; /* params have not changed since the last run: a device need not copy them again */
    bool check_nan; /* after each node look for NaN and infinity; the message names the first layer */
    /* Called after each node with the seconds it took, in the thread that runs the graph; NULL: time is not taken. */
    void (*after)(void *ctx, const struct graph *g, size_t node, double seconds);
    void *ctx;
};

/* Plans g and allocates its arena. g, ops and the weights' tensors are borrowed until run_free(). */
int run_new(struct run **out, const struct graph *g, const struct ops *ops, struct err *err);
void run_free(struct run *r); /* NULL is fine */

/* The same for a graph that never runs while owner's does: it works in owner's arena where that is large enough, else in one of
 * its own. owner is of the same ops and freed after it. */
int run_new_beside(struct run **out, const struct graph *g, const struct ops *ops, const struct run *owner, struct err *err);

/* What run_new() and the first run would take, with nothing of it taken: the arena, and on a device beside it the weights and params
 * (each once; 0 without a device). */
int run_forecast(const struct graph *g, const struct ops *ops, size_t *arena, size_t *device, struct err *err);

const struct plan *run_plan(const struct run *r);

/* Where the value's data is: arena, or the weight's own memory. NULL when it has no place, or lies on a device. */
void *run_data(struct run *r, int value);

/* Copies all bytes of an input from src, or of a kept value to dst. -1: the value has no place, or the device failed. */
int run_write(struct run *r, int value, const void *src, struct err *err);
int run_read(struct run *r, int value, void *dst, struct err *err);

/* Reads values [n] to dst [n]: on a device in few copies, since those of trained factors' gradients lie side by side. */
int run_read_many(struct run *r, const int *values, void *const *dst, size_t n, struct err *err);

/* Says before the first run that the params lie on the device already, where others may change them between runs: params [n] has
 * each of the graph's. Then runs copy none. */
int run_share_params(struct run *r, const struct ops_param *params, size_t n, struct err *err);

/* Where a value that is kept lies on the device, in the type that it has there (a param's gradient: f32). -1: it has no place. */
int run_device_place(struct run *r, int value, const void **place, struct err *err);

/* A view of the value, data as run_data() says. */
struct tensor run_tensor(struct run *r, int value);

/* Waits until a device has done everything that was asked for, and reports what went wrong meanwhile. */
int run_wait(struct run *r, struct err *err);

/* Whether node i runs on the processor although the graph runs on a device: it has no slot for it. */
bool run_falls_back(const struct run *r, size_t node);

/* Bytes that frozen weights and params of this graph take on a device, each counted once; 0 without one. */
size_t run_device_bytes(const struct run *r);

/* Runs all nodes; options may be NULL. Returns 0 or -1 (the layer's name in front of the op's message). */
int run_graph(struct run *r, const struct run_options *options, struct err *err);

#endif

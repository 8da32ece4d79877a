/* Where the time goes: seconds, floating-point operations and bytes by kind of operation and by layer.
 *
 *     profile_new(&p, g, run, err);
 *     options.after = profile_after; options.ctx = p;
 *     run_graph(r, &options, err);
 *     profile_print(p, stderr, peak, 20);
 */
#ifndef REF_GRAPH_PROFILE_H
#define REF_GRAPH_PROFILE_H

#include <stdio.h>

#include "ref/graph/run.h"

struct profile;

/* g and run (which runs it; NULL: whichever) are borrowed until profile_free(). */
int profile_new(struct profile **out, const struct graph *g, const struct run *run, struct err *err);
void profile_free(struct profile *p);

/* For run_options.after, with ctx = the profile. Runs add up. */
void profile_after(void *ctx, const struct graph *g, size_t node, double seconds);

/* Two tables, slowest first: one line a kind of operation (forward and backward apart), and the `layers` slowest layers.
 * Columns: seconds a run, share of the time, calls, GFLOP/s, GB/s. peak_gflops > 0 adds the share of that. */
void profile_print(const struct profile *p, FILE *out, double peak_gflops, size_t layers);

#endif

/* Where every value of a graph lives: one arena, planned from lifetimes before anything runs, so that the peak is known
 * (and can be refused) beforehand and a run allocates nothing.
 *
 * A value lives from the node that makes it to the last that reads it (inputs from the start, kept values to the end); a
 * node's scratch lives during the node. An op that may work in place does so when its input dies there. Offsets: largest
 * first, lowest place that is free over the whole lifetime; on a device kept gradients before all others, side by side.
 */
#ifndef REF_GRAPH_PLAN_H
#define REF_GRAPH_PLAN_H

#include "ref/graph/graph.h"
#include "ref/op/ops.h"

#define PLAN_NOWHERE ((size_t)-1) /* offset of a value that needs no place: a weight, or one nobody makes or reads */

struct plan {
    size_t *offset;  /* [value_count] bytes from the arena's start, or PLAN_NOWHERE */
    size_t *scratch; /* [node_count] offset of the node's scratch */
    size_t arena;    /* bytes: the peak of everything that is not a weight */
    size_t live;     /* the most bytes alive at one node: no plan can be smaller; arena / live says how good this one is */
    size_t peak_node; /* where that is */
};

/* Plans g for these ops and this number of threads (scratch may depend on it). The plan is freed with plan_free(). */
int plan_new(struct plan **out, const struct graph *g, const struct ops *ops, int threads, struct err *err);
void plan_free(struct plan *p);

#endif

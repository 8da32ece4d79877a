/* The table a backend fills. ops_ref() fills every slot; a backend starts from that and overrides what it does better,
 * so no slot is ever empty and an op added to ref works everywhere the day it is added:
 *
 *     struct ops mine;
 *     ops_ref(&mine);
 *     mine.name = "mine";
 *     mine.forward[OP_linear] = my_linear;
 *
 * A slot obeys the contract in op.h. A slot that needs another amount of scratch overrides scratch[] as well.
 */
#ifndef REF_OP_OPS_H
#define REF_OP_OPS_H

#include "ref/op/op.h"

struct ops {
    const char *name;
    op_fn *forward[OP_COUNT];
    op_fn *backward[OP_COUNT]; /* of an op without one: a function that reports so */
    size_t (*scratch[OP_COUNT])(const struct op_call *c, bool backward, int threads);
};

/* *ops = every slot from op_table. */
void ops_ref(struct ops *ops);

#endif

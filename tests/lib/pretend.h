/* A device that is none: its memory is the program's own, but locked (no access at all) whenever none of the table's functions is
 * at work, so whoever takes a device pointer for a host pointer crashes. Its slots compute with ref's. */
#ifndef TESTS_LIB_PRETEND_H
#define TESTS_LIB_PRETEND_H

#include "ref/op/ops.h"

struct pretend_counts {
    size_t blocks;    /* allocated and not freed */
    size_t host;      /* blocks of alloc_host() */
    size_t reads;     /* copies from the device */
    size_t uploads;   /* weights copied there */
    size_t weights;   /* of them still there */
    size_t products;  /* weights that were said to be only those of products */
    size_t calls;     /* slots that were called, replays not counted */
    size_t replays, recordings; /* recordings: alive */
    size_t steps;     /* calls of adamw() */
    size_t params;    /* times that params() was told of a change */
};

extern struct pretend_counts pretend_counts;

/* A table with a slot for every operation that is not in `without` (bit i: the op of that number), whose activations have this
 * type on the device. fail_alloc: the allocation with this number (1, 2, ..) fails; 0: none. */
void pretend_ops(struct ops *ops, enum dtype storage, unsigned long without, size_t fail_alloc);

#endif

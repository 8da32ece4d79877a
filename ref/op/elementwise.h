/* What the small ops share: shape checks and loops over elements or rows in fixed pieces. */
#ifndef REF_OP_ELEMENTWISE_H
#define REF_OP_ELEMENTWISE_H

#include "ref/op/op.h"

/* fn does elements (or rows) first .. first+n-1. A loop that may run in place carries `#pragma omp simd`: equal pointers are
 * fine for a vector loop, but the compiler's own test for overlap would fall back to one element at a time. */
typedef void elementwise_fn(const void *ctx, size_t first, size_t n);

/* Runs fn over `count` in pieces of `piece`, on all threads. */
int elementwise_run(size_t count, size_t piece, elementwise_fn *fn, const void *ctx, struct err *err);

/* A good piece, in rows, for rows of c floats: about 64 KB. */
size_t elementwise_rows(size_t c);

size_t elementwise_count(const struct tensor *t); /* number of elements; the graph has checked that it fits */
size_t elementwise_last(const struct tensor *t);  /* last dimension, 1 for a scalar */

/* Shape rule of ops whose output is like input 0. */
int elementwise_shape(const struct op_call *c, struct err *err);

/* Checks for shape rules: input i is f32; is f32, f16 or bf16; is a f32 vector [n] (absent is fine). what names it. */
int elementwise_need_f32(const struct op_call *c, int i, const char *what, struct err *err);
int elementwise_need_float(const struct op_call *c, int i, const char *what, struct err *err);
int elementwise_need_vector(const struct op_call *c, int i, size_t n, const char *what, struct err *err);

#endif

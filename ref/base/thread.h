/* Threads, a pool of our own: work in independent pieces whose shapes do not depend on the number of threads, so that results do not either.
 * BLAS runs single-threaded inside a piece; parallelism is ours alone. */
#ifndef REF_BASE_THREAD_H
#define REF_BASE_THREAD_H

#include <stddef.h>

#include "ref/base/err.h"

/* Sets the number of threads (0: all processors the process may use) and turns BLAS's own threads off. Called by main(),
 * tests call it to compare counts. */
void thread_init(int count);

int thread_count(void); /* at least 1 */
int thread_index(void); /* inside thread_for(): 0 .. thread_count()-1, which worker runs; outside: 0 */

/* One piece of work: index is 0 .. n-1. Returns 0, or -1 with err filled. */
typedef int thread_fn(void *ctx, size_t index, struct err *err);

/* Runs fn for every index, in no order, each handed out as a worker becomes free. After an error no new piece starts; the
 * error of the lowest index that failed is returned. Returns 0 or -1. Calls may not nest (an inner call runs serially). */
int thread_for(size_t n, thread_fn *fn, void *ctx, struct err *err);

#endif

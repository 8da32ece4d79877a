/* Many pieces of one lifetime in few large blocks, for memory that is handed out in coarse pages: a GPU's comes in pages of 2 MiB,
 * so a weight of 3.1 MiB in an allocation of its own takes 4. The blocks come from the caller's functions and are never touched
 * here, so that they may lie where the processor cannot read. Zero-initialise the struct and set the first four fields. */
#ifndef REF_BASE_SLAB_H
#define REF_BASE_SLAB_H

#include <stddef.h>

#include "ref/base/err.h"

struct slabs {
    void *(*alloc)(size_t bytes, const char *what, struct err *err); /* a block, aligned to `align`; NULL with err filled */
    void (*free)(void *block);
    size_t align; /* of every piece; a power of two */
    size_t block; /* bytes of a block, a multiple of align; a larger piece gets a block of its own, a multiple of this */
    struct slab *rows;
    size_t count, cap;
};

/* Returns `bytes` bytes (0 is taken as 1) in the first gap that is large enough, or NULL with err filled; `what` as alloc's. */
void *slab_get(struct slabs *s, size_t bytes, const char *what, struct err *err);

/* Gives a piece back; the block of the last piece is freed. What slab_get() did not return is left alone; so is NULL. */
void slab_put(struct slabs *s, const void *piece);

/* Frees all blocks, whatever is in them. */
void slab_close(struct slabs *s);

#endif

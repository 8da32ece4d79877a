/* Memory: checked sizes, aligned blocks, and arenas.
 *
 * Lifetimes come in groups (a model, a step, a scratch area), so memory does too: an arena is one block that is filled from
 * the front and emptied at once. Nothing here ever returns memory that the caller must size-check again.
 */
#ifndef REF_BASE_MEM_H
#define REF_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>

#include "ref/base/err.h"

#define MEM_ALIGN 64 /* every block and every arena allocation starts on such a boundary (a cache line, an AVX-512 vector) */

/* *out = a * b or a + b. Returns false, leaving *out alone, when the result does not fit in size_t. */
bool mem_mul(size_t a, size_t b, size_t *out);
bool mem_add(size_t a, size_t b, size_t *out);

/* Returns n bytes aligned to MEM_ALIGN, uninitialised, or NULL with err filled; `what` names the use in the message.
 * n = 0 gives a valid pointer. The caller frees it with free(). */
void *mem_new(size_t n, const char *what, struct err *err);

/* Returns count * size zeroed bytes (overflow-checked), or NULL with err filled. The caller frees it with free(). */
void *mem_zero(size_t count, size_t size, const char *what, struct err *err);

/* Returns a copy of the string (or of its first n bytes) or NULL with err filled. The caller frees it with free(). */
char *mem_str(const char *s, struct err *err);
char *mem_strn(const char *s, size_t n, struct err *err);

/* Makes room for one more element in a growing array: *array has *cap elements of `size` bytes, `count` of them in use.
 * On success *cap > count. Returns 0, or -1 with err filled and the array as it was. */
int mem_grow(void *array_ptr, size_t *cap, size_t count, size_t size, const char *what, struct err *err);

/* A growing region of small objects that live and die together (names, rows). Grows by chunks; pointers stay valid until
 * arena_free(). Zero-initialise the struct to start. */
struct arena {
    struct arena_chunk *chunk; /* newest first */
    size_t total;              /* bytes taken from the system */
};

/* Returns n bytes from the arena, zeroed and aligned to MEM_ALIGN for n >= MEM_ALIGN and to 16 below, or NULL with err
 * filled. Owned by the arena. */
void *arena_alloc(struct arena *a, size_t n, struct err *err);
char *arena_str(struct arena *a, const char *s, struct err *err);
char *arena_printf(struct arena *a, struct err *err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void arena_free(struct arena *a);

#endif

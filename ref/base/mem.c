#include "ref/base/mem.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

bool mem_mul(size_t a, size_t b, size_t *out)
{
    if (b != 0 && a > SIZE_MAX / b)
        return false;
    *out = a * b;
    return true;
}

bool mem_add(size_t a, size_t b, size_t *out)
{
    if (a > SIZE_MAX - b)
        return false;
    *out = a + b;
    return true;
}

/* Blocks from LARGE on begin at a page of 2 MiB and ask for such pages, as many as they fill: a first touch then costs a tenth,
 * and strides of packing and convolution find their addresses. Where the system has none to give, nothing changes. */
enum { LARGE = 8 << 20, PAGE = 2 << 20 };

static void *large(size_t n)
{
    void *p = NULL;

    if (posix_memalign(&p, PAGE, n) != 0)
        return NULL;
#ifdef MADV_HUGEPAGE
    madvise(p, n / PAGE * PAGE, MADV_HUGEPAGE);
#endif
    return p;
}

void *mem_new(size_t n, const char *what, struct err *err)
{
    size_t rounded;
    void *p = NULL;

    if (mem_add(n, MEM_ALIGN - 1, &rounded)) {
        rounded -= rounded % MEM_ALIGN;
        p = n < LARGE ? aligned_alloc(MEM_ALIGN, rounded ? rounded : MEM_ALIGN) : large(rounded);
    }
    if (!p)
        err_memory(err, n, what);
    return p;
}

void *mem_zero(size_t count, size_t size, const char *what, struct err *err)
{
    void *p = calloc(count ? count : 1, size ? size : 1);

    if (!p)
        err_memory(err, (unsigned long long)count * size, what);
    return p;
}

char *mem_str(const char *s, struct err *err)
{
    return mem_strn(s, strlen(s), err);
}

char *mem_strn(const char *s, size_t n, struct err *err)
{
    char *p = mem_zero(n + 1, 1, "a string", err);

    if (p)
        memcpy(p, s, n);
    return p;
}

int mem_grow(void *array_ptr, size_t *cap, size_t count, size_t size, const char *what, struct err *err)
{
    void **array = array_ptr;
    size_t want = *cap, bytes;
    void *p;

    if (count < *cap)
        return 0;
    if (!mem_mul(want ? want : 8, 2, &want) || !mem_mul(want, size, &bytes))
        return err_memory(err, SIZE_MAX, what);
    p = realloc(*array, bytes);
    if (!p)
        return err_memory(err, bytes, what);
    *array = p;
    *cap = want;
    return 0;
}

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, size; /* bytes of data[] */
    _Alignas(MEM_ALIGN) unsigned char data[];
};

enum { ARENA_CHUNK = 64 * 1024 };

static size_t round_up(size_t n, size_t align)
{
    return (n + align - 1) / align * align;
}

void *arena_alloc(struct arena *a, size_t n, struct err *err)
{
    size_t align = n >= MEM_ALIGN ? MEM_ALIGN : 16;
    struct arena_chunk *c = a->chunk;
    size_t at = c ? round_up(c->used, align) : 0;

    if (!c || at > c->size || n > c->size - at) {
        size_t size = n > ARENA_CHUNK ? n : ARENA_CHUNK, bytes;

        if (!mem_add(size, sizeof *c, &bytes)) {
            err_memory(err, n, "an arena");
            return NULL;
        }
        c = mem_new(bytes, "an arena", err);
        if (!c)
            return NULL;
        c->next = a->chunk;
        c->size = size;
        a->chunk = c;
        a->total += bytes;
        at = 0;
    }
    c->used = at + n;
    return memset(c->data + at, 0, n);
}

char *arena_str(struct arena *a, const char *s, struct err *err)
{
    size_t n = strlen(s) + 1;
    char *p = arena_alloc(a, n, err);

    return p ? memcpy(p, s, n) : NULL;
}

char *arena_printf(struct arena *a, struct err *err, const char *fmt, ...)
{
    va_list ap;
    char *p = NULL;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0)
        p = arena_alloc(a, (size_t)n + 1, err);
    if (!p)
        return NULL;
    va_start(ap, fmt);
    vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}

void arena_free(struct arena *a)
{
    for (struct arena_chunk *c = a->chunk, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    a->chunk = NULL;
    a->total = 0;
}

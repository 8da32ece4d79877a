#include "ref/base/slab.h"

#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

struct piece {
    size_t from, end; /* bytes from the block's start */
};

struct slab {
    char *block;
    size_t size;
    struct piece *pieces; /* in order */
    size_t count, cap;
};

static size_t rounded(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* The place in the block's order where a piece of `bytes` finds a gap, at *from; count + 1 when there is none. */
static size_t gap(const struct slab *b, size_t bytes, size_t align, size_t *from)
{
    *from = 0;
    for (size_t i = 0; i <= b->count; i++) {
        size_t end = i < b->count ? b->pieces[i].from : b->size;

        if (end - *from >= bytes)
            return i;
        if (i < b->count)
            *from = rounded(b->pieces[i].end, align);
        if (*from > b->size)
            *from = b->size;
    }
    return b->count + 1;
}

static void *insert(struct slab *b, size_t at, size_t from, size_t bytes, struct err *err)
{
    if (mem_grow(&b->pieces, &b->cap, b->count, sizeof *b->pieces, "a list of pieces", err) < 0)
        return NULL;
    memmove(&b->pieces[at + 1], &b->pieces[at], (b->count - at) * sizeof *b->pieces);
    b->pieces[at] = (struct piece){from, from + bytes};
    b->count++;
    return b->block + from;
}

static struct slab *more(struct slabs *s, size_t bytes, const char *what, struct err *err)
{
    struct slab b = {.size = rounded(bytes, s->block)};

    if (mem_grow(&s->rows, &s->cap, s->count, sizeof *s->rows, "a list of blocks", err) < 0)
        return NULL;
    b.block = s->alloc(b.size, what, err);
    if (!b.block)
        return NULL;
    s->rows[s->count] = b;
    return &s->rows[s->count++];
}

static void drop(struct slabs *s, size_t i)
{
    s->free(s->rows[i].block);
    free(s->rows[i].pieces);
    s->rows[i] = s->rows[--s->count];
}

void *slab_get(struct slabs *s, size_t bytes, const char *what, struct err *err)
{
    size_t from = 0, at;
    struct slab *b;
    void *data;

    bytes += !bytes;
    for (size_t i = 0; i < s->count; i++) {
        at = gap(&s->rows[i], bytes, s->align, &from);
        if (at <= s->rows[i].count)
            return insert(&s->rows[i], at, from, bytes, err);
    }
    b = more(s, bytes, what, err);
    if (!b)
        return NULL;
    data = insert(b, 0, 0, bytes, err);
    if (!data)
        drop(s, s->count - 1);
    return data;
}

void slab_put(struct slabs *s, const void *piece)
{
    for (size_t i = 0; i < s->count; i++) {
        struct slab *b = &s->rows[i];

        for (size_t j = 0; j < b->count; j++) {
            if (b->block + b->pieces[j].from != (const char *)piece)
                continue;
            memmove(&b->pieces[j], &b->pieces[j + 1], (--b->count - j) * sizeof *b->pieces);
            if (b->count == 0)
                drop(s, i);
            return;
        }
    }
}

void slab_close(struct slabs *s)
{
    while (s->count)
        drop(s, s->count - 1);
    free(s->rows);
    s->rows = NULL;
    s->cap = 0;
}

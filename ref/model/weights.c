#include "ref/model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/thread.h"

enum form { FORM_MATRIX, FORM_CONV, FORM_VECTOR };

struct entry {
    struct tensor t; /* first, so that the tensor handed out is the entry */
    enum model_part part;
    enum form form;
    const char *name;
    struct weight_info info;
};

/* Memory of the tensors that one weights_load() loaded for one part: a block of its own, so that nothing is lost between
 * large pieces and all of it goes back to the system at once. */
struct block {
    enum model_part part;
    char *data;
};

struct weights {
    const struct weight_source *source;
    struct entry **entries; /* sorted by part, form, name */
    size_t count, cap;
    struct block *blocks;
    size_t block_count, block_cap;
    struct arena arena;
    struct err err; /* of a find that weights_has() could not report */
};

int weights_new(struct weights **out, const struct weight_source *source, struct err *err)
{
    *out = mem_zero(1, sizeof **out, "weights", err);
    if (!*out)
        return -1;
    (*out)->source = source;
    return 0;
}

void weights_free(struct weights *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->block_count; i++)
        free(w->blocks[i].data);
    free(w->blocks);
    free(w->entries);
    arena_free(&w->arena);
    free(w);
}

const char *weights_part_name(enum model_part part)
{
    static const char *const names[MODEL_PARTS] = {"U-Net", "text encoder", "VAE", "file"};

    return names[part];
}

/* find() with errors remembered: 1 found, 0 not, -1 */
static int find(struct weights *w, enum model_part part, const char *name, struct weight_info *info, struct err *err)
{
    if (w->err.kind != ERR_NONE) {
        *err = w->err;
        return -1;
    }
    return w->source->find(w->source->ctx, part, name, info, err);
}

bool weights_has(struct weights *w, enum model_part part, const char *name)
{
    struct weight_info info;
    struct err err = {0};
    int found = find(w, part, name, &info, &err);

    if (found < 0)
        w->err = err;
    return found > 0;
}

static int need(struct weights *w, enum model_part part, const char *name, struct weight_info *info, struct err *err)
{
    int found = find(w, part, name, info, err);

    if (found > 0)
        return 0;
    if (found == 0)
        err_set(err, "'%s': the %s lacks tensor '%s'; the file is incomplete or of another architecture", w->source->path,
                weights_part_name(part), name);
    return -1;
}

int weights_shape(struct weights *w, enum model_part part, const char *name, struct shape *out, struct err *err)
{
    struct weight_info info;

    if (need(w, part, name, &info, err) < 0)
        return -1;
    *out = info.shape;
    return 0;
}

/* Where an entry is or belongs. */
static size_t position(const struct weights *w, enum model_part part, enum form form, const char *name, bool *found)
{
    size_t low = 0, high = w->count;

    *found = false;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct entry *e = w->entries[mid];
        int order = e->part != part ? (e->part < part ? -1 : 1) : e->form != form ? (e->form < form ? -1 : 1) : strcmp(e->name, name);

        if (order == 0) {
            *found = true;
            return mid;
        }
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The shape in the engine's form. */
static int convert_shape(enum form form, const struct shape *s, struct shape *out)
{
    *out = *s;
    switch (form) {
    case FORM_MATRIX:
        if (s->ndim == 4 && s->dim[2] == 1 && s->dim[3] == 1)
            out->ndim = 2;
        return out->ndim == 2 ? 0 : -1;
    case FORM_CONV:
        if (s->ndim == 2) { /* a 1x1 convolution stored as a matrix */
            *out = (struct shape){4, {s->dim[0], 1, 1, s->dim[1]}};
            return 0;
        }
        if (s->ndim != 4)
            return -1;
        *out = (struct shape){4, {s->dim[0], s->dim[2], s->dim[3], s->dim[1]}};
        return 0;
    case FORM_VECTOR:
        return s->ndim == 1 ? 0 : -1;
    }
    return -1;
}

static const struct tensor *get(struct weights *w, enum model_part part, enum form form, const char *name, struct err *err)
{
    static const char *const forms[] = {"a matrix", "a convolution weight", "a vector"};
    struct weight_info info;
    struct entry *e;
    struct shape shape;
    bool found;
    size_t at = position(w, part, form, name, &found), bytes;
    char text[128];

    if (found)
        return &w->entries[at]->t;
    if (need(w, part, name, &info, err) < 0)
        return NULL;
    if (convert_shape(form, &info.shape, &shape) < 0 || !shape_nbytes(&shape, DT_F64, &bytes)) {
        err_set(err, "'%s': tensor '%s' of the %s has shape %s, which is not %s; the architecture is not known",
                w->source->path, name, weights_part_name(part), shape_print(&info.shape, text, sizeof text), forms[form]);
        return NULL;
    }
    if (!dtype_is_float(info.dtype)) {
        err_set(err, "'%s': tensor '%s' of the %s is %s; weights in f32, f16 and bf16 can be computed with", w->source->path,
                name, weights_part_name(part), dtype_name(info.dtype));
        return NULL;
    }
    if (mem_grow(&w->entries, &w->cap, w->count, sizeof(struct entry *), "weights", err) < 0)
        return NULL;
    e = arena_alloc(&w->arena, sizeof *e, err);
    if (!e)
        return NULL;
    *e = (struct entry){.part = part, .form = form, .name = arena_str(&w->arena, name, err), .info = info};
    if (!e->name)
        return NULL;
    e->t.shape = shape;
    e->t.dtype = form == FORM_VECTOR || info.dtype == DT_F64 ? DT_F32 : info.dtype;
    memmove(w->entries + at + 1, w->entries + at, (w->count - at) * sizeof(struct entry *));
    w->entries[at] = e;
    w->count++;
    return &e->t;
}

const struct tensor *weights_matrix(struct weights *w, enum model_part part, const char *name, struct err *err)
{
    return get(w, part, FORM_MATRIX, name, err);
}

const struct tensor *weights_conv(struct weights *w, enum model_part part, const char *name, struct err *err)
{
    return get(w, part, FORM_CONV, name, err);
}

const struct tensor *weights_vector(struct weights *w, enum model_part part, const char *name, struct err *err)
{
    return get(w, part, FORM_VECTOR, name, err);
}

/* dst [co, taps, ci] = src [co, ci, taps], for elements of 2 and of 4 bytes */
#define REPACK(name, type)                                                              \
    static void name(void *dst, const void *src, size_t co, size_t ci, size_t taps)     \
    {                                                                                   \
        type *y = dst;                                                                  \
        const type *x = src;                                                            \
        for (size_t o = 0; o < co; o++, x += ci * taps)                                 \
            for (size_t t = 0; t < taps; t++)                                           \
                for (size_t i = 0; i < ci; i++)                                         \
                    *y++ = x[i * taps + t];                                             \
    }

REPACK(repack2, uint16_t)
REPACK(repack4, uint32_t)

static bool needs_repack(const struct entry *e)
{
    return e->form == FORM_CONV && e->t.shape.dim[1] * e->t.shape.dim[2] > 1;
}

/* The engine's form is the file's: no copy where the source has the bytes in memory. */
static bool in_place(const struct entry *e)
{
    return e->info.data && e->t.dtype == e->info.dtype && !needs_repack(e);
}

/* What one load works with: room in the blocks for each entry, and two buffers a thread for a tensor on its way. */
struct loading {
    struct weights *w;
    char **place;    /* [count]; NULL: nothing to do */
    size_t raw, mid; /* bytes of the buffers: the largest tensor read, and the largest converted and then repacked */
    char *buffers;
};

static size_t aligned(size_t n)
{
    return (n + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
}

static size_t owned_bytes(const struct entry *e)
{
    size_t n = 0;

    shape_nbytes(&e->t.shape, e->t.dtype, &n); /* fits: get() has checked */
    return n;
}

/* Read, convert, repack: each only where needed, the last step into the final place. What is not used in place is read even
 * when it is mapped: its pages would stay resident beside the copy. */
static int load_entry(void *ctx, size_t index, struct err *err)
{
    const struct loading *l = ctx;
    struct entry *e = l->w->entries[index];
    const size_t *d = e->t.shape.dim, size = dtype_size(e->t.dtype), n = owned_bytes(e) / size;
    bool repack = needs_repack(e), convert = e->t.dtype != e->info.dtype;
    char *raw = l->buffers + (size_t)thread_index() * (l->raw + l->mid), *mid = raw + l->raw, *to = l->place[index];

    if (!to)
        return 0;
    if (l->w->source->read(l->w->source->ctx, &e->info, repack || convert ? raw : to, err) < 0)
        return -1;
    if (convert)
        dtype_convert(repack ? mid : to, e->t.dtype, raw, e->info.dtype, n);
    if (repack)
        (size == 2 ? repack2 : repack4)(to, convert ? mid : raw, d[0], d[3], d[1] * d[2]);
    e->t.data = to;
    return 0;
}

/* Makes room for what a part still lacks. */
static int reserve(struct loading *l, enum model_part part, struct err *err)
{
    struct weights *w = l->w;
    size_t total = 0, at = 0;
    char *data;

    for (size_t i = 0; i < w->count; i++) {
        struct entry *e = w->entries[i];

        if (e->part != part || e->t.data)
            continue;
        if (in_place(e))
            e->t.data = (void *)(uintptr_t)e->info.data; /* never written: the graph knows it as a frozen weight */
        else if (!mem_add(total, aligned(owned_bytes(e)), &total))
            return err_memory(err, SIZE_MAX, "the weights");
    }
    if (total == 0)
        return 0;
    if (mem_grow(&w->blocks, &w->block_cap, w->block_count, sizeof *w->blocks, "the weights", err) < 0)
        return -1;
    data = mem_new(total, "the weights", err);
    if (!data)
        return -1;
    w->blocks[w->block_count++] = (struct block){part, data};
    for (size_t i = 0; i < w->count; i++) {
        struct entry *e = w->entries[i];
        size_t bytes = aligned(owned_bytes(e)), raw = bytes / dtype_size(e->t.dtype) * dtype_size(e->info.dtype);

        if (e->part != part || e->t.data)
            continue;
        l->place[i] = data + at;
        at += bytes;
        if (needs_repack(e) || e->t.dtype != e->info.dtype)
            l->raw = raw > l->raw ? raw : l->raw;
        if (needs_repack(e) && e->t.dtype != e->info.dtype)
            l->mid = bytes > l->mid ? bytes : l->mid;
    }
    return 0;
}

int weights_load(struct weights *w, struct err *err)
{
    struct loading l = {.w = w};
    size_t bytes;
    int rc = -1;

    l.place = mem_zero(w->count, sizeof *l.place, "the weights", err);
    if (!l.place)
        return -1;
    for (int part = 0; part < MODEL_PARTS; part++)
        if (reserve(&l, (enum model_part)part, err) < 0)
            goto out;
    if (!mem_mul(l.raw + l.mid, (size_t)thread_count(), &bytes)) {
        err_memory(err, SIZE_MAX, "loading");
        goto out;
    }
    l.buffers = mem_new(bytes, "loading", err);
    rc = l.buffers ? thread_for(w->count, load_entry, &l, err) : -1;
out:
    free(l.place);
    free(l.buffers);
    return rc;
}

void weights_bytes(const struct weights *w, size_t *owned, size_t *mapped)
{
    *owned = *mapped = 0;
    for (size_t i = 0; i < w->count; i++) {
        size_t bytes = 0;

        shape_nbytes(&w->entries[i]->t.shape, w->entries[i]->t.dtype, &bytes);
        *(in_place(w->entries[i]) ? mapped : owned) += bytes;
    }
}

void weights_release(struct weights *w, enum model_part part)
{
    size_t kept = 0;

    for (size_t i = 0; i < w->count; i++)
        if (w->entries[i]->part == part)
            w->entries[i]->t.data = NULL;
    for (size_t i = 0; i < w->block_count; i++)
        if (w->blocks[i].part == part)
            free(w->blocks[i].data);
        else
            w->blocks[kept++] = w->blocks[i];
    w->block_count = kept;
}

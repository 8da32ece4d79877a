/* Writing what torch.save writes: see torch_zip.c for the parts of the archive.
 *
 * data.pkl is, byte for byte, what torch's pickler makes of a dict of contiguous CPU tensors (protocol 2; shared objects are
 * remembered in the same order), as long as no tensor's name is equal to one of torch's own words. Unlike torch we put the
 * CRC and sizes into the local headers, leave out '.format_version' and '.storage_alignment' (they promise the exact layout of
 * torch's own zip writer) and write the same bytes each time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "formats/torch_state.h"
#include "formats/torch_zip.h"

enum {
    ALIGN = 64, /* of every entry's data, so that readers may map it */
    LOCAL = 30,
    ROW = 46,
    EXTRA64 = 20, /* local extra field with two sizes */
    END = 56 + 20 + 22,
    BATCH = 1000, /* items a SETITEMS */
};

/* ---- The pickle */

struct bytes {
    unsigned char *data;
    size_t n, cap;
    bool failed; /* out of memory: err is filled */
    struct err *err;
};

static void put(struct bytes *b, const void *data, size_t n)
{
    while (!b->failed && b->cap - b->n < n)
        b->failed = mem_grow(&b->data, &b->cap, b->cap, 1, "a pickle", b->err) != 0;
    if (b->failed || n == 0)
        return;
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

static void put_op(struct bytes *b, unsigned op)
{
    unsigned char c = (unsigned char)op;

    put(b, &c, 1);
}

static void put_le(struct bytes *b, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        put_op(b, (unsigned)(v >> (8 * i)) & 0xff);
}

struct pickler {
    struct bytes b;
    size_t n_memo;
    size_t word[2], class[DT_COUNT], dtype[DT_COUNT], rebuild[2], ordered, bytes_class; /* memo indices; 0: not there yet */
};

enum { WORD_STORAGE, WORD_CPU };

static void remember(struct pickler *p)
{
    if (p->n_memo < 256) {
        put_op(&p->b, 'q');
        put_le(&p->b, p->n_memo, 1);
    } else {
        put_op(&p->b, 'r');
        put_le(&p->b, p->n_memo, 4);
    }
    p->n_memo++;
}

/* True when *memo is set: then the value is recalled. Otherwise the caller writes it, and remember() will give it *memo. */
static bool recall(struct pickler *p, size_t *memo)
{
    if (*memo == 0) {
        *memo = p->n_memo;
        return false;
    }
    put_op(&p->b, *memo < 256 ? 'h' : 'j');
    put_le(&p->b, *memo, *memo < 256 ? 1 : 4);
    return true;
}

static void put_int(struct pickler *p, uint64_t v)
{
    unsigned n = 4;

    if (v < 256) {
        put_op(&p->b, 'K');
        put_le(&p->b, v, 1);
    } else if (v < 65536) {
        put_op(&p->b, 'M');
        put_le(&p->b, v, 2);
    } else if (v <= INT32_MAX) {
        put_op(&p->b, 'J');
        put_le(&p->b, v, 4);
    } else {
        while (n < 8 && v >> (8 * n - 1)) /* bytes until the sign bit is 0; sizes are below 2^63 */
            n++;
        put_op(&p->b, 0x8a);
        put_le(&p->b, n, 1);
        put_le(&p->b, v, n);
    }
}

static void put_string(struct pickler *p, const char *s)
{
    size_t n = strlen(s);

    put_op(&p->b, 'X');
    put_le(&p->b, n, 4);
    put(&p->b, s, n);
    remember(p);
}

/* "module\nname\n" */
static void put_global(struct pickler *p, size_t *memo, const char *lines)
{
    if (recall(p, memo))
        return;
    put_op(&p->b, 'c');
    put(&p->b, lines, strlen(lines));
    remember(p);
}

static void put_word(struct pickler *p, size_t *memo, const char *s)
{
    if (!recall(p, memo))
        put_string(p, s);
}

static void put_tuple(struct pickler *p, const uint64_t *v, int n)
{
    if (n == 0) {
        put_op(&p->b, ')');
        return;
    }
    if (n > 3)
        put_op(&p->b, '(');
    for (int i = 0; i < n; i++)
        put_int(p, v[i]);
    put_op(&p->b, n > 3 ? 't' : 0x84u + (unsigned)n);
    remember(p);
}

/* How torch names a type. class NULL: of types without a storage class of their own, the type is named with the tensor. */
static const struct {
    const char *class, *dtype;
} type_names[DT_COUNT] = {
    [DT_F32] = {"torch\nFloatStorage\n", NULL},
    [DT_F16] = {"torch\nHalfStorage\n", NULL},
    [DT_BF16] = {"torch\nBFloat16Storage\n", NULL},
    [DT_F64] = {"torch\nDoubleStorage\n", NULL},
    [DT_I64] = {"torch\nLongStorage\n", NULL},
    [DT_I32] = {"torch\nIntStorage\n", NULL},
    [DT_I16] = {"torch\nShortStorage\n", NULL},
    [DT_I8] = {"torch\nCharStorage\n", NULL},
    [DT_U8] = {"torch\nByteStorage\n", NULL},
    [DT_BOOL] = {"torch\nBoolStorage\n", NULL},
    [DT_F8_E4M3] = {NULL, "torch\nfloat8_e4m3fn\n"},
    [DT_F8_E5M2] = {NULL, "torch\nfloat8_e5m2\n"},
    [DT_U64] = {NULL, "torch\nuint64\n"},
    [DT_U32] = {NULL, "torch\nuint32\n"},
    [DT_U16] = {NULL, "torch\nuint16\n"},
};

/* ('storage', class, key, 'cpu', elements) */
static void put_persid(struct pickler *p, const struct tensor_slot *s, size_t key)
{
    const char *class = type_names[s->spec.dtype].class;
    char text[24];

    put_op(&p->b, '(');
    put_word(p, &p->word[WORD_STORAGE], "storage");
    put_global(p, class ? &p->class[s->spec.dtype] : &p->bytes_class, class ? class : "torch.storage\nUntypedStorage\n");
    snprintf(text, sizeof text, "%zu", key);
    put_string(p, text);
    put_word(p, &p->word[WORD_CPU], "cpu");
    put_int(p, class ? s->nbytes / dtype_size(s->spec.dtype) : s->nbytes);
    put_op(&p->b, 't');
    remember(p);
    put_op(&p->b, 'Q');
}

static void put_tensor(struct pickler *p, const struct tensor_slot *s, size_t key)
{
    const char *dtype = type_names[s->spec.dtype].dtype;
    const struct shape *shape = &s->spec.shape;
    uint64_t size[TENSOR_MAX_DIMS], stride[TENSOR_MAX_DIMS], step = 1;

    for (int d = shape->ndim; d-- > 0;) {
        size[d] = shape->dim[d];
        stride[d] = step;
        step *= shape->dim[d] ? shape->dim[d] : 1; /* torch counts an empty dimension as 1 here */
    }
    put_global(p, &p->rebuild[dtype != NULL],
               dtype ? "torch._utils\n_rebuild_tensor_v3\n" : "torch._utils\n_rebuild_tensor_v2\n");
    put_op(&p->b, '(');
    put_persid(p, s, key);
    put_int(p, 0);
    put_tuple(p, size, shape->ndim);
    put_tuple(p, stride, shape->ndim);
    put_op(&p->b, 0x89); /* requires_grad=False */
    put_global(p, &p->ordered, "collections\nOrderedDict\n");
    put_op(&p->b, ')');
    put_op(&p->b, 'R');
    remember(p);
    if (dtype)
        put_global(p, &p->dtype[s->spec.dtype], dtype);
    put_op(&p->b, 't');
    remember(p);
    put_op(&p->b, 'R');
    remember(p);
}

/* The dict of all tensors. */
static void put_tensors(struct pickler *p, const struct tensor_writer *w)
{
    put_op(&p->b, '}');
    remember(p);
    for (size_t i = 0; i < w->n; i++) {
        if (w->n > 1 && i % BATCH == 0)
            put_op(&p->b, '(');
        put_string(p, w->slot[i].spec.name);
        put_tensor(p, &w->slot[i], i);
        if (i + 1 == w->n || i % BATCH == BATCH - 1)
            put_op(&p->b, w->n > 1 ? 'u' : 's');
    }
}

static const char *metadata(const struct tensor_writer *w, const char *key)
{
    for (size_t i = 0; i < w->n_metadata; i++)
        if (strcmp(w->metadata[i].key, key) == 0)
            return w->metadata[i].value;
    return NULL;
}

/* A counter of the metadata, when there is one and it is a number. */
static bool counter(const struct tensor_writer *w, const char *key, uint64_t *out)
{
    const char *text = metadata(w, key);
    char *end;

    if (!text || *text < '0' || *text > '9')
        return false;
    *out = strtoull(text, &end, 10);
    return *end == 0 && *out <= INT64_MAX;
}

/* {root: {tensors}, 'epoch': .., 'global_step': ..}, or the tensors alone. */
static void put_root(struct pickler *p, const struct tensor_writer *w)
{
    const char *root = metadata(w, TORCH_META_ROOT);
    uint64_t epoch = 0, step = 0;
    bool has_epoch = counter(w, TORCH_META_EPOCH, &epoch), has_step = counter(w, TORCH_META_STEP, &step);

    put(&p->b, "\x80\x02", 2);
    if (!root) {
        put_tensors(p, w);
    } else {
        put_op(&p->b, '}');
        remember(p);
        if (has_epoch || has_step)
            put_op(&p->b, '(');
        put_string(p, root);
        put_tensors(p, w);
        if (has_epoch) {
            put_string(p, "epoch");
            put_int(p, epoch);
        }
        if (has_step) {
            put_string(p, "global_step");
            put_int(p, step);
        }
        put_op(&p->b, has_epoch || has_step ? 'u' : 's');
    }
    put_op(&p->b, '.');
}

static int make_pickle(const struct tensor_writer *w, struct bytes *out, struct err *err)
{
    struct pickler *p = mem_zero(1, sizeof *p, "a pickle", err);
    bool failed;

    if (!p)
        return -1;
    p->b.err = err;
    put_root(p, w);
    failed = p->b.failed;
    *out = p->b;
    free(p);
    return failed ? -1 : 0;
}

/* ---- The archive */

struct entry {
    char name[40];
    const void *bytes; /* NULL: a tensor's, which the writer puts into place */
    uint64_t size, header, offset;
    uint32_t crc;
};

struct layout {
    struct entry *entry; /* [n] in the order of the file */
    size_t n;
    struct bytes pickle;
    uint64_t directory; /* its position */
};

static bool wants64(uint64_t v)
{
    return v >= UINT32_MAX;
}

static uint64_t row_size(const struct entry *e)
{
    uint64_t wide = 8 * (uint64_t)(2 * wants64(e->size) + wants64(e->header));

    return ROW + strlen(e->name) + (wide ? 4 + wide : 0);
}

/* Bytes from the header to the data; the padding stands in an extra field, as torch does it. */
static uint64_t local_size(const struct entry *e)
{
    uint64_t n = LOCAL + strlen(e->name) + (wants64(e->size) ? EXTRA64 : 0) + 4;

    return n + (ALIGN - (e->header + n) % ALIGN) % ALIGN;
}

static void name_entry(struct entry *e, const char *name, const void *bytes, size_t n)
{
    snprintf(e->name, sizeof e->name, "archive/%s", name);
    e->bytes = bytes;
    e->size = n;
    if (bytes)
        e->crc = (uint32_t)crc32_z(0, bytes, n);
}

static int layout(struct tensor_writer *w, struct err *err)
{
    struct layout *l = arena_alloc(&w->arena, sizeof *l, err);
    struct entry *e = l ? arena_alloc(&w->arena, (w->n + 3) * sizeof *e, err) : NULL;
    uint64_t at = 0;

    if (!e)
        return -1;
    w->impl = l;
    for (size_t i = 0; i < w->n; i++)
        if (!pickle_is_utf8((const unsigned char *)w->slot[i].spec.name, strlen(w->slot[i].spec.name)))
            return err_set(err, "cannot write '%s': tensor %zu has a name that is not UTF-8", w->path, i);
    if (make_pickle(w, &l->pickle, err) != 0)
        return -1;
    l->entry = e;
    l->n = w->n + 3;
    name_entry(&e[0], "data.pkl", l->pickle.data, l->pickle.n);
    name_entry(&e[1], "byteorder", "little", 6);
    for (size_t i = 0; i < w->n; i++) {
        char name[32];

        snprintf(name, sizeof name, "data/%zu", i);
        name_entry(&e[2 + i], name, NULL, w->slot[i].nbytes);
    }
    name_entry(&e[2 + w->n], "version", "3\n", 2);
    for (size_t i = 0; i < l->n; i++) {
        e[i].header = at;
        e[i].offset = at + local_size(&e[i]);
        if (e[i].size > INT64_MAX - e[i].offset) /* all that follows is small */
            return err_set(err, "cannot write '%s': it would be larger than any file can be", w->path);
        at = e[i].offset + e[i].size;
        if (!e[i].bytes)
            w->slot[i - 2].offset = e[i].offset;
    }
    l->directory = at;
    for (size_t i = 0; i < l->n; i++)
        at += row_size(&e[i]);
    w->total = at + END;
    return 0;
}

/* What local header and directory row have in common, from "version needed" to the extra field's length. */
static void put_common(struct bytes *b, const struct entry *e, bool wide, size_t n_extra)
{
    put_le(b, wide ? 45 : 20, 2);
    put_le(b, 0x0800, 2);     /* names are UTF-8 */
    put_le(b, 0, 2);          /* stored */
    put_le(b, 0x00210000, 4); /* 1 January 1980, midnight: the same bytes each time */
    put_le(b, e->crc, 4);
    put_le(b, wants64(e->size) ? UINT32_MAX : e->size, 4);
    put_le(b, wants64(e->size) ? UINT32_MAX : e->size, 4);
    put_le(b, strlen(e->name), 2);
    put_le(b, n_extra, 2);
}

static void put_local(struct bytes *b, const struct entry *e)
{
    size_t n_extra = (size_t)(e->offset - e->header) - LOCAL - strlen(e->name);
    size_t pad = n_extra - 4 - (wants64(e->size) ? EXTRA64 : 0);

    put(b, "PK\3\4", 4);
    put_common(b, e, wants64(e->size), n_extra);
    put(b, e->name, strlen(e->name));
    if (wants64(e->size)) {
        put_le(b, 1, 2);
        put_le(b, 16, 2);
        put_le(b, e->size, 8);
        put_le(b, e->size, 8);
    }
    put(b, "FB", 2);
    put_le(b, pad, 2);
    for (size_t i = 0; i < pad; i++)
        put_op(b, 'Z');
}

static void put_row(struct bytes *b, const struct entry *e)
{
    size_t wide = 8u * (2u * wants64(e->size) + wants64(e->header));

    put(b, "PK\1\2", 4);
    put_le(b, wide ? 45 : 20, 2);
    put_common(b, e, wide != 0, wide ? 4 + wide : 0);
    put_le(b, 0, 6); /* comment, disk, attributes */
    put_le(b, 0, 4);
    put_le(b, wants64(e->header) ? UINT32_MAX : e->header, 4);
    put(b, e->name, strlen(e->name));
    if (wide) {
        put_le(b, 1, 2);
        put_le(b, wide, 2);
    }
    for (int i = 0; i < 2 && wants64(e->size); i++)
        put_le(b, e->size, 8);
    if (wants64(e->header))
        put_le(b, e->header, 8);
}

/* The three end records; torch writes the zip64 ones always, and so do we. */
static void put_end(struct bytes *b, const struct layout *l, uint64_t size)
{
    put(b, "PK\6\6", 4);
    put_le(b, 44, 8);
    put_le(b, 45, 2);
    put_le(b, 45, 2);
    put_le(b, 0, 8); /* disks */
    put_le(b, l->n, 8);
    put_le(b, l->n, 8);
    put_le(b, size, 8);
    put_le(b, l->directory, 8);
    put(b, "PK\6\7", 4);
    put_le(b, 0, 4);
    put_le(b, l->directory + size, 8);
    put_le(b, 1, 4);
    put(b, "PK\5\6", 4);
    put_le(b, 0, 4);
    put_le(b, l->n < UINT16_MAX ? l->n : UINT16_MAX, 2);
    put_le(b, l->n < UINT16_MAX ? l->n : UINT16_MAX, 2);
    put_le(b, wants64(size) ? UINT32_MAX : size, 4);
    put_le(b, wants64(l->directory) ? UINT32_MAX : l->directory, 4);
    put_le(b, 0, 2);
}

static int finish(struct tensor_writer *w, struct err *err)
{
    struct layout *l = w->impl;
    struct bytes b = {.err = err};
    int status = -1;

    for (size_t i = 0; i < l->n; i++) {
        struct entry *e = &l->entry[i];

        if (!e->bytes)
            e->crc = w->slot[i - 2].crc;
        b.n = 0;
        put_local(&b, e);
        if (e->bytes)
            put(&b, e->bytes, (size_t)e->size);
        if (b.failed || output_write_at(w->out, e->header, b.data, b.n, err) != 0)
            goto out;
    }
    b.n = 0;
    for (size_t i = 0; i < l->n; i++)
        put_row(&b, &l->entry[i]);
    put_end(&b, l, b.n);
    if (!b.failed)
        status = output_write_at(w->out, l->directory, b.data, b.n, err);
out:
    free(b.data);
    return status;
}

static void close_writer(struct tensor_writer *w)
{
    struct layout *l = w->impl;

    if (l)
        free(l->pickle.data);
}

const struct tensor_writer_ops torch_zip_writer = {.want_crc = true, .layout = layout, .finish = finish, .close = close_writer};

#include "formats/torch_tensor.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEPT = 4,                /* decoded tensors kept while they are read in parts */
    MAX_EXPANDED = 16 << 20, /* bytes by which a tensor may exceed the file: strides of 0 repeat elements */
};

struct view {
    struct torch_storage storage;
    uint64_t first, length;         /* the bytes of the storage from the first to the last element used */
    size_t stride[TENSOR_MAX_DIMS]; /* in elements */
};

/* A tensor whose bytes were gathered, for callers that ask for it part by part. */
struct kept {
    size_t slot;
    unsigned char *bytes; /* NULL: free */
};

struct torch_impl {
    struct view *view; /* [count], by slot; in the file's arena */
    bool swap;
    pthread_mutex_t lock; /* of all below */
    struct kept kept[KEPT];
    size_t next;
};

/* ---- Reading the pickle's words */

/* A non-negative integer. */
static bool get_size(const struct pickle_value *v, uint64_t *out)
{
    if (v->kind != PICKLE_INT || v->i < 0)
        return false;
    *out = (uint64_t)v->i;
    return true;
}

bool torch_id_read(struct torch_id *id, const struct pickle_value *v)
{
    struct pickle_value *const *item = v->seq.item;
    uint64_t numel, first, length;

    if (v->kind != PICKLE_PERSID || v->seq.n < 5 || !pickle_is(item[0], "storage") || item[2]->kind != PICKLE_STR ||
        item[1]->kind != PICKLE_GLOBAL || !get_size(item[4], &numel))
        return false;
    *id = (struct torch_id){.key = item[2]->text.s, .n_key = item[2]->text.n};
    switch (torch_what(item[1])) {
    case TORCH_STORAGE:
        id->element = dtype_size((enum dtype)(item[1]->global.row->what & 0xff));
        break;
    case TORCH_ODD:
        id->element = (size_t)(item[1]->global.row->what & 0xff);
        break;
    case TORCH_BYTES:
        id->element = 1;
        break;
    default:
        return false;
    }
    id->what = item[1]->global.row->what;
    if (!mem_mul(numel, id->element, &id->nbytes))
        return false;
    id->length = id->nbytes;
    if (v->seq.n < 6 || item[5]->kind == PICKLE_NONE)
        return true;
    /* legacy: (key of the view, first element, elements) */
    if (item[5]->kind != PICKLE_TUPLE || item[5]->seq.n != 3 || !get_size(item[5]->seq.item[1], &first) ||
        !get_size(item[5]->seq.item[2], &length))
        return false;
    return mem_mul(first, id->element, &id->first) && mem_mul(length, id->element, &id->length) && id->first <= id->nbytes &&
           id->length <= id->nbytes - id->first;
}

static int refuse(const char *what, struct err *err)
{
    return err_set(err, "%s; the file is damaged or was changed by hand, get it again", what);
}

/* Dimensions of a size or a stride: a tuple of integers, plain or as torch.Size. Returns how many, or -1. */
static int get_dims(const struct pickle_value *v, size_t dim[TENSOR_MAX_DIMS])
{
    if (v->kind == PICKLE_CALL && torch_what(v) == TORCH_SIZE && v->call.args->seq.n == 1)
        v = v->call.args->seq.item[0];
    if ((v->kind != PICKLE_TUPLE && v->kind != PICKLE_LIST) || v->seq.n > TENSOR_MAX_DIMS)
        return -1;
    for (size_t i = 0; i < v->seq.n; i++)
        if (!get_size(v->seq.item[i], &dim[i]))
            return -1;
    return (int)v->seq.n;
}

/* The type of a tensor's elements: from its storage's class, or written beside it. */
static int get_dtype(const struct torch_named *t, const struct torch_id *id, enum dtype *out, struct err *err)
{
    const struct pickle_value *last =
        (t->row->what & TORCH_WHAT) == TORCH_REBUILD_V3 && t->args->seq.n > 6 ? t->args->seq.item[6] : NULL;

    if ((id->what & TORCH_WHAT) == TORCH_STORAGE && !last) {
        *out = (enum dtype)(id->what & 0xff);
        return 0;
    }
    if (last && (id->what & TORCH_WHAT) == TORCH_BYTES && last->kind == PICKLE_GLOBAL && torch_what(last) == TORCH_DTYPE) {
        *out = (enum dtype)(last->global.row->what & 0xff);
        return 0;
    }
    return err_set(err, "its elements are of a type that is not known here (complex or quantised); convert the file to "
                        "float with torch");
}

/* Whether strides are those of a dense row-major tensor; those of dimensions of 1 are never used. */
static bool is_dense(const struct shape *s, const size_t *stride)
{
    size_t expect = 1;

    for (int d = s->ndim; d-- > 0;) {
        if (s->dim[d] != 1 && stride[d] != expect)
            return false;
        expect *= s->dim[d];
    }
    return true;
}

/* Fills shape, type, nbytes and the view of one tensor, checked against the storage that its persistent id names. */
static int read_view(const struct torch_named *t, struct torch_id *id, struct tensor_entry *e, struct view *v, bool *dense,
                     struct err *err)
{
    struct pickle_value *const *arg = t->args->seq.item;
    size_t numel, element, last = 0, reach;
    uint64_t first;

    if (t->args->seq.n < 4 || !torch_id_read(id, arg[0]))
        return refuse("its storage is not described as torch does", err);
    e->shape.ndim = get_dims(arg[2], e->shape.dim);
    if (e->shape.ndim < 0 || get_dims(arg[3], v->stride) != e->shape.ndim || !get_size(arg[1], &first))
        return refuse("its size, stride or offset is impossible (negative, or more than 8 dimensions)", err);
    if (get_dtype(t, id, &e->dtype, err) != 0)
        return -1;
    element = dtype_size(e->dtype);
    if (!shape_numel(&e->shape, &numel) || !shape_nbytes(&e->shape, e->dtype, &e->nbytes))
        return refuse("it is larger than any memory", err);
    *dense = numel == 0 || is_dense(&e->shape, v->stride);
    for (int d = 0; d < e->shape.ndim && numel; d++)
        if (!mem_mul(e->shape.dim[d] - 1, v->stride[d], &reach) || !mem_add(last, reach, &last))
            return refuse("it reaches beyond its storage", err);
    if (!mem_mul(first, element, &v->first) || (numel && (!mem_add(last, 1, &last) || !mem_mul(last, element, &last))))
        return refuse("it reaches beyond its storage", err);
    if (numel == 0) { /* nothing is read, wherever torch says it begins */
        v->first = v->length = 0;
        return 0;
    }
    v->length = last;
    if (v->first > id->length || v->length > id->length - v->first)
        return refuse("it reaches beyond its storage", err);
    v->first += id->first;
    return 0;
}

/* ---- Filling the file */

struct fill {
    struct tensor_file *f;
    torch_locate *locate;
    void *ctx;
    struct torch_impl *impl;
};

static int fill_entry(const struct fill *c, const struct torch_named *t, struct tensor_entry *e, struct view *v,
                      struct err *err)
{
    struct torch_id id;
    bool dense = false;

    e->name = t->name;
    if (read_view(t, &id, e, v, &dense, err) != 0 || c->locate(c->f, c->ctx, &id, &v->storage, err) != 0)
        return -1;
    if (v->storage.nbytes < id.nbytes)
        return err_set(err,
                       "its storage has %" PRIu64 " of the %" PRIu64 " bytes that it should have; the file is damaged, get it "
                       "again",
                       v->storage.nbytes, id.nbytes);
    if (e->nbytes > v->storage.nbytes && e->nbytes - v->storage.nbytes > MAX_EXPANDED && e->nbytes > c->f->file_size)
        return refuse("its strides of 0 make it larger than the whole file", err);
    e->plain = dense && !v->storage.packed && !(c->impl->swap && dtype_size(e->dtype) > 1);
    e->offset = e->plain ? v->storage.offset + v->first : 0;
    return 0;
}

struct place {
    uint64_t at;
    size_t index;
};

static int by_place(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/* Puts the entries into the order of their data. */
static int sort_entries(struct tensor_file *f, struct tensor_entry *from, const struct view *view, struct err *err)
{
    struct tensor_entry *to = arena_alloc(&f->arena, (f->count + 1) * sizeof *to, err);
    struct place *place = to ? mem_zero(f->count, sizeof *place, "a list of tensors", err) : NULL;

    if (!place)
        return -1;
    for (size_t i = 0; i < f->count; i++)
        place[i] = (struct place){
            (view[i].storage.packed ? view[i].storage.packed->offset : view[i].storage.offset) + view[i].first, i};
    qsort(place, f->count, sizeof *place, by_place);
    for (size_t i = 0; i < f->count; i++)
        to[i] = from[place[i].index];
    free(place);
    f->entries = to;
    return 0;
}

/* The root key and the counters, as metadata; sorted by key because these rows are. */
static int fill_metadata(struct tensor_file *f, const struct torch_state *s, struct err *err)
{
    static const struct {
        const char *key, *name;
    } counters[] = {{TORCH_META_EPOCH, "epoch"}, {TORCH_META_STEP, "global_step"}};
    struct metadata_item *m = arena_alloc(&f->arena, 3 * sizeof *m, err);

    if (!m)
        return -1;
    f->metadata = m;
    for (size_t i = 0; i < 2; i++) {
        const struct pickle_value *v = pickle_get(s->root, counters[i].name);
        char *text = v && v->kind == PICKLE_INT ? arena_printf(&f->arena, err, "%" PRId64, v->i) : NULL;

        if (v && v->kind == PICKLE_INT && !text)
            return -1;
        if (text)
            m[f->metadata_count++] = (struct metadata_item){counters[i].key, text};
    }
    if (s->root_key)
        m[f->metadata_count++] = (struct metadata_item){TORCH_META_ROOT, s->root_key};
    return 0;
}

static int fill_all(struct tensor_file *f, const struct torch_state *s, struct fill *c, struct err *err)
{
    struct tensor_entry *e = mem_zero(s->count, sizeof *e, "a list of tensors", err);
    int status = -1;

    if (!e)
        return -1;
    c->impl->view = arena_alloc(&f->arena, (s->count + 1) * sizeof *c->impl->view, err);
    if (!c->impl->view)
        goto out;
    for (size_t i = 0; i < s->count; i++) {
        e[i].slot = i;
        if (fill_entry(c, &s->tensor[i], &e[i], &c->impl->view[i], err) != 0) {
            err_prefix(err, "cannot read '%s': tensor '%.200s': ", f->path, s->tensor[i].name);
            goto out;
        }
    }
    f->count = s->count;
    if (sort_entries(f, e, c->impl->view, err) == 0)
        status = fill_metadata(f, s, err);
out:
    free(e);
    return status;
}

int torch_file_fill(struct tensor_file *f, const struct pickle *p, torch_locate *locate, void *ctx, bool swap, struct err *err)
{
    struct torch_impl *impl = mem_zero(1, sizeof *impl, "an open file", err);
    struct fill c = {.f = f, .locate = locate, .ctx = ctx, .impl = impl};
    struct torch_state s = {0};
    int status = -1;

    if (!impl)
        return -1;
    pthread_mutex_init(&impl->lock, NULL);
    impl->swap = swap;
    f->impl = impl;
    if (torch_state_find(&s, p, f->path, &f->arena, err) == 0)
        status = fill_all(f, &s, &c, err);
    torch_state_free(&s);
    return status;
}

void torch_file_close(struct tensor_file *f)
{
    struct torch_impl *impl = f->impl;

    if (!impl)
        return;
    for (size_t i = 0; i < KEPT; i++)
        free(impl->kept[i].bytes);
    pthread_mutex_destroy(&impl->lock);
    free(impl);
}

/* ---- Reading what is not plain: deflated, strided or big-endian */

/* dst [shape, dense] = the elements at src with these strides, their bytes turned round when swap. */
static void gather(unsigned char *dst, const unsigned char *src, const struct tensor_entry *e, const size_t *stride, bool swap)
{
    size_t size = dtype_size(e->dtype), at[TENSOR_MAX_DIMS] = {0}, element = 0;
    int last = e->shape.ndim - 1;

    for (size_t done = 0; done < e->nbytes; done += size) {
        const unsigned char *from = src + element * size;

        for (size_t i = 0; i < size; i++)
            dst[done + i] = from[swap ? size - 1 - i : i];
        for (int d = last; d >= 0; d--) { /* the next index, odometer-wise, and the element it stands for */
            element += stride[d];
            if (++at[d] < e->shape.dim[d])
                break;
            element -= at[d] * stride[d];
            at[d] = 0;
        }
    }
}

/* All bytes of a tensor into dst [e->nbytes]. */
static int read_whole(const struct tensor_file *f, const struct tensor_entry *e, unsigned char *dst, struct err *err)
{
    const struct torch_impl *impl = f->impl;
    const struct view *v = &impl->view[e->slot];
    uint64_t n = v->storage.packed ? v->storage.packed->size : v->length;
    bool dense = is_dense(&e->shape, v->stride), swap = impl->swap && dtype_size(e->dtype) > 1;
    unsigned char *src = NULL;
    int status = -1;

    if (e->nbytes == 0)
        return 0;
    /* the tensor is the storage: no second buffer */
    if (dense && !swap && v->storage.packed && n == e->nbytes)
        return zip_read(f, v->storage.packed, dst, err);
    src = mem_new((size_t)n, "a tensor's storage", err);
    if (!src)
        return -1;
    if (v->storage.packed)
        status = zip_read(f, v->storage.packed, src, err);
    else
        status = tensor_file_pread(f, v->storage.offset + v->first, src, (size_t)n, "a tensor", err);
    if (status == 0 && dense && !swap)
        memcpy(dst, src + (v->storage.packed ? v->first : 0), e->nbytes);
    else if (status == 0)
        gather(dst, src + (v->storage.packed ? v->first : 0), e, v->stride, swap);
    free(src);
    return status;
}

/* The tensor's bytes from among those kept, gathered now if need be. Called and used under the lock. */
static const unsigned char *keep(const struct tensor_file *f, const struct tensor_entry *e, struct err *err)
{
    struct torch_impl *impl = f->impl;
    struct kept *k;

    for (size_t i = 0; i < KEPT; i++)
        if (impl->kept[i].bytes && impl->kept[i].slot == e->slot)
            return impl->kept[i].bytes;
    k = &impl->kept[impl->next++ % KEPT];
    free(k->bytes);
    k->slot = e->slot;
    k->bytes = mem_new(e->nbytes, "a tensor", err);
    if (k->bytes && read_whole(f, e, k->bytes, err) != 0) {
        free(k->bytes);
        k->bytes = NULL;
    }
    return k->bytes;
}

int torch_file_read(const struct tensor_file *f, const struct tensor_entry *e, size_t first, size_t n, void *dst,
                    struct err *err)
{
    struct torch_impl *impl = f->impl;
    const unsigned char *bytes;
    int status = 0;

    if (n == 0)
        return 0;
    if (n == e->nbytes) {
        status = read_whole(f, e, dst, err);
    } else {
        pthread_mutex_lock(&impl->lock);
        bytes = keep(f, e, err);
        if (bytes)
            memcpy(dst, bytes + first, n);
        else
            status = -1;
        pthread_mutex_unlock(&impl->lock);
    }
    return status == 0 ? 0 : err_prefix(err, "cannot read tensor '%.200s': ", e->name);
}

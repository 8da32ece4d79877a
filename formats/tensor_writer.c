#include "formats/tensor_writer.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "formats/torch_state.h"

enum { COPY_BUFFER = 1 << 20 };

static void free_writer(struct tensor_writer *w)
{
    if (w->format->writer->close)
        w->format->writer->close(w);
    arena_free(&w->arena);
    free(w->slot);
    free(w->order);
    free((char *)w->path);
    free(w);
}

/* The row that will write this path; a usage error when there is none. */
static const struct tensor_format *choose(const char *path, const struct tensor_format *format, struct err *err)
{
    char list[256] = "";

    if (!format)
        format = tensor_format_of_suffix(path);
    if (format && format->writer)
        return format;
    if (format) {
        err_usage(err, "cannot write '%s': the format '%s' is only read; use .safetensors", path, format->name);
        return NULL;
    }
    for (size_t i = 0; tensor_formats[i]; i++)
        for (const char *const *s = tensor_formats[i]->suffixes; tensor_formats[i]->writer && s && *s; s++) {
            strncat(list, *list ? ", " : "", sizeof list - strlen(list) - 1);
            strncat(list, *s, sizeof list - strlen(list) - 1);
        }
    err_usage(err, "cannot write '%s': its ending tells no format; known endings: %s", path, list);
    return NULL;
}

static int by_name(const void *a, const void *b)
{
    const struct tensor_slot *const *x = a, *const *y = b;

    return strcmp((*x)->spec.name, (*y)->spec.name);
}

static int check_names(struct tensor_writer *w, struct err *err)
{
    const struct tensor_slot **sorted = mem_zero(w->n, sizeof *sorted, "a list of tensors", err);
    int status = -1;

    if (!sorted)
        return -1;
    for (size_t i = 0; i < w->n; i++)
        sorted[i] = &w->slot[i];
    if (w->n)
        qsort(sorted, w->n, sizeof *sorted, by_name);
    for (size_t i = 1; i < w->n; i++)
        if (strcmp(sorted[i - 1]->spec.name, sorted[i]->spec.name) == 0) {
            err_set(err, "cannot write '%s': two tensors have the name '%.200s'", w->path, sorted[i]->spec.name);
            goto out;
        }
    status = 0;
out:
    free(sorted);
    return status;
}

static int by_key(const void *a, const void *b)
{
    const struct metadata_item *x = a, *y = b;

    return strcmp(x->key, y->key);
}

/* What only torch's files say about themselves: in another format it would be noise. */
static bool is_torch_only(const char *key)
{
    return strcmp(key, TORCH_META_ROOT) == 0 || strcmp(key, TORCH_META_EPOCH) == 0 || strcmp(key, TORCH_META_STEP) == 0;
}

static int take_metadata(struct tensor_writer *w, const struct metadata_item *metadata, size_t n, struct err *err)
{
    struct metadata_item *items = arena_alloc(&w->arena, (n ? n : 1) * sizeof *items, err);
    size_t given = n;

    if (!items)
        return -1;
    n = 0;
    for (size_t i = 0; i < given; i++)
        if (w->format == &format_torch_zip || !is_torch_only(metadata[i].key))
            items[n++] = metadata[i];
    qsort(items, n, sizeof *items, by_key);
    for (size_t i = 1; i < n; i++)
        if (strcmp(items[i - 1].key, items[i].key) == 0)
            return err_set(err, "cannot write '%s': the metadata has the key '%.200s' twice", w->path, items[i].key);
    w->metadata = items;
    w->n_metadata = n;
    return 0;
}

/* Fills everything that layout() may look at. */
static int take_specs(struct tensor_writer *w, const struct tensor_spec *specs, struct err *err)
{
    w->slot = mem_zero(w->n, sizeof *w->slot, "a list of tensors", err);
    w->order = w->slot ? mem_zero(w->n, sizeof *w->order, "a list of tensors", err) : NULL;
    if (!w->order)
        return -1;
    for (size_t i = 0; i < w->n; i++) {
        struct tensor_slot *s = &w->slot[i];

        s->spec = specs[i];
        w->order[i] = i;
        if (!shape_nbytes(&s->spec.shape, s->spec.dtype, &s->nbytes))
            return err_set(err, "cannot write '%s': tensor '%.200s' is larger than any memory", w->path, s->spec.name);
    }
    return check_names(w, err);
}

int tensor_writer_open(struct tensor_writer **out, const char *path, const struct tensor_format *format,
                       const struct tensor_spec *specs, size_t n, const struct metadata_item *metadata, size_t n_metadata,
                       struct err *err)
{
    struct tensor_writer *w;

    *out = NULL;
    format = choose(path, format, err);
    w = format ? mem_zero(1, sizeof *w, "a writer", err) : NULL;
    if (!w)
        return -1;
    w->format = format;
    w->n = n;
    w->path = mem_str(path, err);
    if (!w->path || take_specs(w, specs, err) != 0 || take_metadata(w, metadata, n_metadata, err) != 0 ||
        format->writer->layout(w, err) != 0 || output_open(&w->out, path, err) != 0 ||
        output_reserve(w->out, w->total, err) != 0) {
        tensor_writer_abort(w);
        return -1;
    }
    *out = w;
    return 0;
}

size_t tensor_writer_order(const struct tensor_writer *w, size_t k)
{
    return w->order[k];
}

/* Every byte of a tensor comes once and in order: anything else is a fault of the program, which must not become a file. */
static int check_part(const struct tensor_writer *w, size_t i, size_t first, size_t n, struct err *err)
{
    const struct tensor_slot *s = &w->slot[i];

    if (first == s->written && n <= s->nbytes - first)
        return 0;
    return err_set(err,
                   "cannot write '%s': tensor '%.200s': bytes %zu + %zu came where %zu of %zu were written; please report this",
                   w->path, s->spec.name, first, n, s->written, s->nbytes);
}

int tensor_writer_put_part(struct tensor_writer *w, size_t i, size_t first, size_t n, const void *data, struct err *err)
{
    struct tensor_slot *s = &w->slot[i];

    if (check_part(w, i, first, n, err) != 0 || output_write_at(w->out, s->offset + first, data, n, err) != 0)
        return -1;
    if (w->format->writer->want_crc)
        s->crc = (uint32_t)crc32_z(s->crc, data, n);
    s->written += n;
    return 0;
}

int tensor_writer_put(struct tensor_writer *w, size_t i, const void *data, struct err *err)
{
    return tensor_writer_put_part(w, i, 0, w->slot[i].nbytes, data, err);
}

static int copy_through_buffer(struct tensor_writer *w, size_t i, const struct tensor_file *from, const struct tensor_entry *e,
                               struct err *err)
{
    unsigned char *buf = mem_new(COPY_BUFFER, "a copy buffer", err);
    int status = buf ? 0 : -1;

    for (size_t at = 0, n; at < e->nbytes && status == 0; at += n) {
        n = e->nbytes - at < COPY_BUFFER ? e->nbytes - at : COPY_BUFFER;
        status = tensor_file_read_part(from, e, at, n, buf, err);
        if (status == 0)
            status = tensor_writer_put_part(w, i, at, n, buf, err);
    }
    free(buf);
    return status;
}

int tensor_writer_copy(struct tensor_writer *w, size_t i, const struct tensor_file *from, const struct tensor_entry *e,
                       struct err *err)
{
    struct tensor_slot *s = &w->slot[i];

    if (e->nbytes != s->nbytes || e->dtype != s->spec.dtype)
        return err_set(err, "cannot write '%s': tensor '%.200s': its source has another type or size; please report this",
                       w->path, s->spec.name);
    if (check_part(w, i, 0, e->nbytes, err) != 0)
        return -1;
    if (!e->plain || w->format->writer->want_crc)
        return copy_through_buffer(w, i, from, e, err);
    if (output_copy_at(w->out, s->offset, from->fd, from->path, e->offset, e->nbytes, err) != 0)
        return -1;
    s->written = s->nbytes;
    return 0;
}

void tensor_writer_flush(struct tensor_writer *w)
{
    output_start(w->out);
}

int tensor_writer_commit(struct tensor_writer *w, struct err *err)
{
    int status = 0;

    for (size_t i = 0; i < w->n && status == 0; i++)
        if (w->slot[i].written != w->slot[i].nbytes)
            status = err_set(err, "cannot write '%s': tensor '%.200s' has %zu of its %zu bytes; please report this", w->path,
                             w->slot[i].spec.name, w->slot[i].written, w->slot[i].nbytes);
    if (status == 0)
        status = w->format->writer->finish(w, err);
    if (status != 0) {
        tensor_writer_abort(w);
        return -1;
    }
    status = output_commit(w->out, err);
    free_writer(w);
    return status;
}

void tensor_writer_abort(struct tensor_writer *w)
{
    if (!w)
        return;
    output_abort(w->out);
    free_writer(w);
}

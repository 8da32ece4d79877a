/* safetensors: 8 bytes (little-endian length of the header), a JSON header, the tensors' bytes.
 *
 *     {"__metadata__":{"key":"value"},"name":{"dtype":"F16","shape":[320,768],"data_offsets":[0,491520]},...}
 *
 * Offsets count from the end of the header. The rules checked here are those of the reference implementation (Rust crate
 * and Python package safetensors): a header of at most 100,000,000 bytes that starts with '{', no key twice, and tensors
 * that cover the data without hole or overlap to the last byte. The writer lays the file out as the reference does.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "formats/tensor_file.h"
#include "formats/tensor_writer.h"

#define DAMAGED "the file is damaged, download it again"

enum { HEADER_MAX = 100000000, LENGTH = 8 };

/* In the order of the data: the reference sorts by type, widest alignment first, then by name. */
static const struct {
    const char *name;
    enum dtype dtype;
} types[DT_COUNT] = {
    {"U64", DT_U64},         {"I64", DT_I64},         {"F64", DT_F64}, {"F32", DT_F32}, {"U32", DT_U32},
    {"I32", DT_I32},         {"BF16", DT_BF16},       {"F16", DT_F16}, {"U16", DT_U16}, {"I16", DT_I16},
    {"F8_E4M3", DT_F8_E4M3}, {"F8_E5M2", DT_F8_E5M2}, {"I8", DT_I8},   {"U8", DT_U8},   {"BOOL", DT_BOOL},
};

static uint64_t get_u64(const unsigned char *p)
{
    uint64_t v = 0;

    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

/* ---- Reading. */

static bool probe(const unsigned char *head, size_t n, uint64_t file_size)
{
    (void)file_size;
    return n > LENGTH && head[LENGTH] == '{';
}

static int bad(const struct tensor_file *f, const char *name, struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static int bad(const struct tensor_file *f, const char *name, struct err *err, const char *fmt, ...)
{
    char what[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return err_set(err, "cannot read '%s': tensor '%.200s': %s; " DAMAGED, f->path, name, what);
}

static int parse_shape(const struct tensor_file *f, struct tensor_entry *e, const json_t *shape, struct err *err)
{
    size_t n = json_array_size(shape);

    if (!json_is_array(shape))
        return bad(f, e->name, err, "the header gives it no shape");
    if (n > TENSOR_MAX_DIMS)
        return err_set(err,
                       "cannot read '%s': tensor '%.200s' has %zu dimensions, at most %d are known here; leave it out of the "
                       "file",
                       f->path, e->name, n, TENSOR_MAX_DIMS);
    e->shape.ndim = (int)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(shape, i);

        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return bad(f, e->name, err, "its shape holds something that is not a count");
        e->shape.dim[i] = (size_t)json_integer_value(dim);
    }
    return 0;
}

static int parse_dtype(const struct tensor_file *f, struct tensor_entry *e, const json_t *dtype, struct err *err)
{
    if (!json_is_string(dtype))
        return bad(f, e->name, err, "the header gives it no type");
    for (size_t i = 0; i < DT_COUNT; i++)
        if (strcmp(types[i].name, json_string_value(dtype)) == 0) {
            e->dtype = types[i].dtype;
            return 0;
        }
    return err_set(err,
                   "cannot read '%s': tensor '%.200s' has the type '%.40s', which is not known here; convert it to a type that "
                   "Stable Diffusion uses",
                   f->path, e->name, json_string_value(dtype));
}

/* Checks one row of the header; e->offset counts from the header's end for now. */
static int parse_entry(const struct tensor_file *f, struct tensor_entry *e, const json_t *info, struct err *err)
{
    const json_t *range = json_object_get(info, "data_offsets"), *first = json_array_get(range, 0),
                 *last = json_array_get(range, 1);
    uint64_t begin, end;

    if (!json_is_object(info))
        return bad(f, e->name, err, "the header does not describe it");
    if (parse_dtype(f, e, json_object_get(info, "dtype"), err) != 0 ||
        parse_shape(f, e, json_object_get(info, "shape"), err) != 0)
        return -1;
    if (json_array_size(range) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return bad(f, e->name, err, "the header does not say where its data begins and ends");
    if (json_integer_value(first) < 0 || json_integer_value(last) < json_integer_value(first))
        return bad(f, e->name, err, "its data ends before it begins (%lld to %lld)", (long long)json_integer_value(first),
                   (long long)json_integer_value(last));
    begin = (uint64_t)json_integer_value(first);
    end = (uint64_t)json_integer_value(last);
    if (!shape_nbytes(&e->shape, e->dtype, &e->nbytes))
        return bad(f, e->name, err, "its shape is larger than any memory");
    if (e->nbytes != end - begin)
        return bad(f, e->name, err, "type and shape need %zu bytes, the header gives it %" PRIu64, e->nbytes, end - begin);
    e->offset = begin;
    e->plain = true;
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct tensor_entry *x = a, *y = b;

    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    if (x->nbytes != y->nbytes)
        return x->nbytes < y->nbytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Sorts by position; the tensors must follow each other from the header's end to the file's end. */
static int place_entries(const struct tensor_file *f, struct tensor_entry *e, size_t n, uint64_t data, struct err *err)
{
    uint64_t at = 0, have = f->file_size - data;

    if (n)
        qsort(e, n, sizeof *e, by_offset);
    for (size_t i = 0; i < n; i++) {
        if (e[i].offset < at)
            return bad(f, e[i].name, err, "its data overlaps that of tensor '%.200s'", e[i - 1].name);
        if (e[i].offset > at)
            return bad(f, e[i].name, err, "%" PRIu64 " bytes before its data belong to no tensor", e[i].offset - at);
        at = e[i].offset + e[i].nbytes; /* both below 2^63 */
        e[i].offset += data;
    }
    if (at > have)
        return err_set(err, "cannot read '%s': it is cut short: %" PRIu64 " bytes are missing at its end; download it again",
                       f->path, at - have);
    if (at < have)
        return err_set(err, "cannot read '%s': %" PRIu64 " bytes follow its last tensor; " DAMAGED, f->path, have - at);
    return 0;
}

static int by_key(const void *a, const void *b)
{
    const struct metadata_item *x = a, *y = b;

    return strcmp(x->key, y->key);
}

static int parse_metadata(struct tensor_file *f, json_t *metadata, struct err *err)
{
    size_t n = json_object_size(metadata), i = 0;
    struct metadata_item *items = arena_alloc(&f->arena, (n + 1) * sizeof *items, err);
    const char *key;
    json_t *value;

    if (!items)
        return -1;
    if (!json_is_object(metadata))
        return err_set(err, "cannot read '%s': its __metadata__ is not a list of keys and values; " DAMAGED, f->path);
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return err_set(err, "cannot read '%s': the metadata of '%.200s' is not text; " DAMAGED, f->path, key);
        items[i++] = (struct metadata_item){key, json_string_value(value)};
    }
    qsort(items, n, sizeof *items, by_key);
    f->metadata = items;
    f->metadata_count = n;
    return 0;
}

/* Reads the header and gives its JSON to f->impl, where names and texts stay. *data: position of the first tensor's bytes. */
static int read_header(struct tensor_file *f, uint64_t *data, struct err *err)
{
    unsigned char length[LENGTH];
    json_error_t why;
    char *text = NULL;
    uint64_t n;
    int status = -1;

    if (f->file_size < LENGTH)
        return err_set(err,
                       "cannot read '%s': it is cut short: it has %" PRIu64 " bytes, even an empty safetensors file has 10; "
                       "download it again",
                       f->path, f->file_size);
    if (tensor_file_pread(f, 0, length, sizeof length, "the header's length", err) != 0)
        return -1;
    n = get_u64(length);
    if (n > HEADER_MAX)
        return err_set(err,
                       "cannot read '%s': its header would have %" PRIu64 " bytes, at most %d are allowed: it is damaged or"
                       " not a safetensors file; download it again",
                       f->path, n, HEADER_MAX);
    *data = LENGTH + n;
    if (*data > f->file_size)
        return err_set(err, "cannot read '%s': it is cut short: %" PRIu64 " bytes of its header are missing; download it again",
                       f->path, *data - f->file_size);
    text = mem_new((size_t)n, "a header", err);
    if (!text || tensor_file_pread(f, LENGTH, text, (size_t)n, "the header", err) != 0)
        goto out;
    if (n == 0 || text[0] != '{') {
        err_set(err,
                "cannot read '%s': its header does not begin with '{': it is damaged or not a safetensors file; "
                "download it again",
                f->path);
        goto out;
    }
    f->impl = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &why);
    if (!f->impl) {
        err_set(err, "cannot read '%s': byte %d of its header: %s; " DAMAGED, f->path, why.position, why.text);
        goto out;
    }
    status = 0;
out:
    free(text);
    return status;
}

static int open_file(struct tensor_file *f, struct err *err)
{
    struct tensor_entry *entries;
    uint64_t data = 0;
    const char *key;
    json_t *value;
    size_t n = 0, bytes;

    if (read_header(f, &data, err) != 0)
        return -1;
    if (!mem_mul(json_object_size(f->impl) + 1, sizeof *entries, &bytes))
        return err_memory(err, SIZE_MAX, "a list of tensors");
    entries = arena_alloc(&f->arena, bytes, err);
    if (!entries)
        return -1;
    json_object_foreach((json_t *)f->impl, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            if (parse_metadata(f, value, err) != 0)
                return -1;
            continue;
        }
        entries[n].name = key;
        if (parse_entry(f, &entries[n], value, err) != 0)
            return -1;
        n++;
    }
    if (place_entries(f, entries, n, data, err) != 0)
        return -1;
    f->entries = entries;
    f->count = n;
    return 0;
}

static void close_file(struct tensor_file *f)
{
    json_decref(f->impl);
}

/* ---- Writing. */

struct text {
    char *s;
    size_t n, cap;
};

static int add(struct text *t, const char *s, size_t n, struct err *err)
{
    while (t->cap - t->n < n)
        if (mem_grow(&t->s, &t->cap, t->cap, 1, "a header", err) != 0)
            return -1;
    memcpy(t->s + t->n, s, n);
    t->n += n;
    return 0;
}

static int addf(struct text *t, struct err *err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static int addf(struct text *t, struct err *err, const char *fmt, ...)
{
    char s[128];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(s, sizeof s, fmt, ap);
    va_end(ap);
    return add(t, s, (size_t)n, err);
}

/* A JSON string as the reference writes it: everything that may stand as it is does. (jansson's own writer differs in the
 * case of \u001f's letters.) */
static int add_string(struct text *t, const char *s, struct err *err)
{
    static const char short_form[] = "\b\f\n\r\t\"\\", letter[] = "bfnrt\"\\";

    if (add(t, "\"", 1, err) != 0)
        return -1;
    for (; *s; s++) {
        const char *at = strchr(short_form, *s);
        int status = at                         ? addf(t, err, "\\%c", letter[at - short_form])
                     : (unsigned char)*s < 0x20 ? addf(t, err, "\\u%04x", (unsigned)*s)
                                                : add(t, s, 1, err);

        if (status != 0)
            return -1;
    }
    return add(t, "\"", 1, err);
}

static int check_utf8(const struct tensor_writer *w, const char *what, const char *s, struct err *err)
{
    json_t *j = json_string(s);

    if (!j)
        return err_set(err, "cannot write '%s': %s '%.200s' is not valid UTF-8", w->path, what, s);
    json_decref(j);
    return 0;
}

static int add_metadata(const struct tensor_writer *w, struct text *t, struct err *err)
{
    const struct metadata_item *m = w->metadata;

    if (w->n_metadata == 0)
        return 0;
    if (addf(t, err, "\"__metadata__\":{") != 0)
        return -1;
    for (size_t i = 0; i < w->n_metadata; i++)
        if (check_utf8(w, "the metadata key", m[i].key, err) != 0 || check_utf8(w, "the metadata", m[i].value, err) != 0 ||
            (i > 0 && add(t, ",", 1, err) != 0) || add_string(t, m[i].key, err) != 0 || add(t, ":", 1, err) != 0 ||
            add_string(t, m[i].value, err) != 0)
            return -1;
    return addf(t, err, w->n > 0 ? "}," : "}");
}

static size_t rank_of(enum dtype dtype)
{
    size_t i = 0;

    while (types[i].dtype != dtype)
        i++;
    return i;
}

/* data: the position that offsets count from. */
static int add_tensor(const struct tensor_writer *w, struct text *t, const struct tensor_slot *s, uint64_t data, struct err *err)
{
    const char *dtype = types[rank_of(s->spec.dtype)].name;
    uint64_t begin = s->offset - data;

    if (strcmp(s->spec.name, "__metadata__") == 0)
        return err_set(err, "cannot write '%s': no tensor may have the name '__metadata__'", w->path);
    if (check_utf8(w, "the tensor name", s->spec.name, err) != 0 || add_string(t, s->spec.name, err) != 0 ||
        addf(t, err, ":{\"dtype\":\"%s\",\"shape\":[", dtype) != 0)
        return -1;
    for (int i = 0; i < s->spec.shape.ndim; i++)
        if (addf(t, err, "%s%zu", i ? "," : "", s->spec.shape.dim[i]) != 0)
            return -1;
    return addf(t, err, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", begin, begin + s->nbytes);
}

static int by_layout(const void *a, const void *b)
{
    const struct tensor_slot *const *x = a, *const *y = b;
    size_t p = rank_of((*x)->spec.dtype), q = rank_of((*y)->spec.dtype);

    return p != q ? (p < q ? -1 : 1) : strcmp((*x)->spec.name, (*y)->spec.name);
}

/* Fills w->order. */
static int sort_slots(struct tensor_writer *w, struct err *err)
{
    struct tensor_slot **sorted = mem_zero(w->n, sizeof *sorted, "a list of tensors", err);

    if (!sorted)
        return -1;
    for (size_t i = 0; i < w->n; i++)
        sorted[i] = &w->slot[i];
    if (w->n)
        qsort(sorted, w->n, sizeof *sorted, by_layout);
    for (size_t i = 0; i < w->n; i++)
        w->order[i] = (size_t)(sorted[i] - w->slot);
    free(sorted);
    return 0;
}

/* The length and the JSON. data: the position of the first tensor's bytes as the slots have it. */
static int compose(const struct tensor_writer *w, uint64_t data, struct err *err)
{
    struct text *t = w->impl;

    t->n = 0;
    if (addf(t, err, "%-8s{", "") != 0 || add_metadata(w, t, err) != 0)
        return -1;
    for (size_t k = 0; k < w->n; k++)
        if ((k > 0 && add(t, ",", 1, err) != 0) || add_tensor(w, t, &w->slot[w->order[k]], data, err) != 0)
            return -1;
    if (add(t, "}", 1, err) != 0 || (t->n % 8 && addf(t, err, "%*s", (int)(8 - t->n % 8), "") != 0))
        return -1;
    for (size_t i = 0; i < LENGTH; i++)
        t->s[i] = (char)((t->n - LENGTH) >> (8 * i) & 0xff);
    return 0;
}

static int layout(struct tensor_writer *w, struct err *err)
{
    struct text *t = arena_alloc(&w->arena, sizeof *t, err);
    uint64_t at = 0;

    w->impl = t;
    if (!t || sort_slots(w, err) != 0)
        return -1;
    for (size_t k = 0; k < w->n; k++) {
        struct tensor_slot *s = &w->slot[w->order[k]];

        s->offset = at;
        if (s->nbytes > INT64_MAX / 2 - at)
            return err_set(err, "cannot write '%s': its tensors are larger than any file", w->path);
        at += s->nbytes;
    }
    if (compose(w, 0, err) != 0)
        return -1;
    if (t->n - LENGTH > HEADER_MAX)
        return err_set(err, "cannot write '%s': its header would have %zu bytes, a safetensors file may have %d", w->path,
                       t->n - LENGTH, HEADER_MAX);
    for (size_t i = 0; i < w->n; i++)
        w->slot[i].offset += t->n;
    w->total = t->n + at;
    return 0;
}

/* The header again: metadata may have got its values meanwhile. */
static int finish(struct tensor_writer *w, struct err *err)
{
    const struct text *t = w->impl;
    size_t n = t->n;

    if (compose(w, n, err) != 0)
        return -1;
    if (t->n != n)
        return err_set(err, "cannot write '%s': its metadata has grown from %zu to %zu bytes; please report this", w->path, n, t->n);
    return output_write_at(w->out, 0, t->s, t->n, err);
}

static void close_writer(struct tensor_writer *w)
{
    struct text *t = w->impl;

    if (t)
        free(t->s);
}

static const struct tensor_writer_ops writer = {.layout = layout, .finish = finish, .close = close_writer};
static const char *const suffixes[] = {".safetensors", NULL};

const struct tensor_format format_safetensors = {
    .name = "safetensors",
    .suffixes = suffixes,
    .probe = probe,
    .open = open_file,
    .close = close_file,
    .writer = &writer,
};

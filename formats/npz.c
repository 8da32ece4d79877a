#include "formats/npz.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "formats/output.h"
#include "formats/zip.h"

enum {
    MOST = 256 << 20,    /* bytes of one array: 67 million f32 */
    MOST_HEADER = 65536, /* of an array's description */
    FRONT = 10,          /* magic, version, length */
};

/* NumPy's names of the types that both sides know. */
static const struct {
    const char *descr;
    enum dtype dtype;
} types[] = {{"<f4", DT_F32}, {"<f2", DT_F16}, {"<f8", DT_F64}, {"<i8", DT_I64}, {"<i4", DT_I32}, {"<i2", DT_I16},
             {"|i1", DT_I8},  {"<u8", DT_U64}, {"<u4", DT_U32}, {"<u2", DT_U16}, {"|u1", DT_U8},  {"|b1", DT_BOOL}};

/* ---- One array */

static int bad(const char *path, const char *name, const char *what, struct err *err)
{
    return err_set(err, "cannot read '%s': array '%s' %s", path, name, what);
}

static const char *skip(const char *s, const char *what)
{
    while (*s == ' ')
        s++;
    for (; *what; s++, what++)
        if (*s != *what)
            return NULL;
    return s;
}

/* The value behind 'key': in a description such as {'descr': '<f4', 'fortran_order': False, 'shape': (4, 64), }, or NULL. */
static const char *value_of(const char *header, const char *key)
{
    char quoted[32];
    const char *s;

    snprintf(quoted, sizeof quoted, "'%s'", key);
    s = strstr(header, quoted);
    s = s ? skip(s + strlen(quoted), ":") : NULL;
    return s ? s + strspn(s, " ") : NULL;
}

static int read_shape(const char *s, struct shape *shape, const char *path, const char *name, struct err *err)
{
    *shape = (struct shape){0};
    if (!(s = skip(s, "(")))
        return bad(path, name, "has no shape; the file is damaged", err);
    for (;;) {
        unsigned long long v;
        char *end;

        s += strspn(s, " ,");
        if (*s == ')')
            return 0;
        if (*s < '0' || *s > '9')
            return bad(path, name, "has no shape; the file is damaged", err);
        errno = 0;
        v = strtoull(s, &end, 10);
        if (errno || shape->ndim == TENSOR_MAX_DIMS)
            return bad(path, name, "has a shape that is not understood", err);
        shape->dim[shape->ndim++] = (size_t)v;
        s = end;
    }
}

/* header: the description, terminated. Fills dtype and shape. */
static int read_description(struct npz_array *a, const char *header, const char *path, struct err *err)
{
    const char *descr = value_of(header, "descr"), *fortran = value_of(header, "fortran_order"),
               *shape = value_of(header, "shape");

    if (!descr || !fortran || !shape)
        return bad(path, a->name, "has no description; the file is damaged", err);
    if (skip(fortran, "True"))
        return bad(path, a->name, "is in Fortran order; save it with np.ascontiguousarray()", err);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (*descr == '\'' && !strncmp(descr + 1, types[i].descr, 3) && descr[4] == '\'') {
            a->dtype = types[i].dtype;
            return read_shape(shape, &a->shape, path, a->name, err);
        }
    return err_set(err, "cannot read '%s': array '%s' has the type %.*s, which is not read; save it as float32", path, a->name,
                   (int)strnlen(descr, 16), descr);
}

/* Splits entry [n bytes] into description and data. */
static int read_array(struct npz_array *a, unsigned char *entry, size_t n, const char *path, struct err *err)
{
    size_t length, front = FRONT, nbytes;
    char *header;
    int rc;

    if (n < 12 || memcmp(entry, "\x93NUMPY", 6) != 0 || entry[6] < 1 || entry[6] > 3)
        return bad(path, a->name, "is no .npy array of version 1 to 3", err);
    length = (size_t)entry[8] | (size_t)entry[9] << 8;
    if (entry[6] > 1) {
        length |= (size_t)entry[10] << 16 | (size_t)entry[11] << 24;
        front = 12;
    }
    if (length > n - front || length > MOST_HEADER)
        return bad(path, a->name, "has a description longer than itself; the file is damaged", err);
    header = mem_strn((const char *)entry + front, length, err);
    if (!header)
        return -1;
    rc = read_description(a, header, path, err);
    free(header);
    if (rc)
        return -1;
    if (!shape_nbytes(&a->shape, a->dtype, &nbytes) || nbytes != n - front - length)
        return bad(path, a->name, "does not have the size that its shape says; the file is damaged", err);
    a->data = entry + front + length;
    return 0;
}

/* ---- The archive */

static int open_file(struct tensor_file *f, struct err *err)
{
    struct stat st;

    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f->fd < 0 || fstat(f->fd, &st) != 0)
        return err_set(err, "cannot read '%s': %s", f->path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(err, "cannot read '%s': it is no regular file", f->path);
    if (st.st_size == 0)
        return err_set(err, "cannot read '%s': the file is empty; make it again", f->path);
    f->file_size = (uint64_t)st.st_size;
    return 0;
}

static int take_entry(struct npz *out, const struct tensor_file *f, const struct zip_entry *e, struct err *err)
{
    struct npz_array *a = &out->array[out->count];
    size_t n = strlen(e->name);
    unsigned char *data;

    if (n < 5 || strcmp(e->name + n - 4, ".npy") != 0)
        return 0; /* np.savez writes nothing else; what others add is not ours */
    a->name = arena_printf(out->arena, err, "%.*s", (int)(n - 4), e->name);
    if (!a->name)
        return -1;
    if (e->size > MOST)
        return bad(f->path, a->name, "has more than 256 MiB, which no latents have", err);
    data = arena_alloc(out->arena, (size_t)e->size + 1, err);
    if (!data || zip_read(f, e, data, err) || read_array(a, data, (size_t)e->size, f->path, err))
        return -1;
    /* a description's length need not keep the numbers aligned */
    if ((uintptr_t)a->data % 8) {
        size_t bytes = (size_t)e->size - (size_t)((unsigned char *)a->data - data);
        void *copy = arena_alloc(out->arena, bytes + 1, err);

        if (!copy)
            return -1;
        a->data = memcpy(copy, a->data, bytes);
    }
    out->count++;
    return 0;
}

int npz_read(struct npz *out, const char *path, struct err *err)
{
    struct tensor_file f = {.path = path, .fd = -1};
    struct zip z;
    int rc = -1;

    *out = (struct npz){0};
    out->arena = mem_zero(1, sizeof *out->arena, "an .npz file", err);
    if (!out->arena || open_file(&f, err) || zip_open(&z, &f, err))
        goto out;
    out->array = arena_alloc(out->arena, (z.count + 1) * sizeof *out->array, err);
    if (!out->array)
        goto out;
    for (size_t i = 0; i < z.count; i++)
        if (take_entry(out, &f, &z.entry[i], err))
            goto out;
    rc = out->count ? 0 : err_set(err, "cannot read '%s': there is no array in it; make it again", path);
out:
    if (f.fd >= 0)
        close(f.fd);
    arena_free(&f.arena);
    if (rc)
        npz_free(out);
    return rc;
}

void npz_free(struct npz *n)
{
    if (n->arena)
        arena_free(n->arena);
    free(n->arena);
    *n = (struct npz){0};
}

const struct npz_array *npz_find(const struct npz *n, const char *name)
{
    for (size_t i = 0; i < n->count; i++)
        if (!strcmp(n->array[i].name, name))
            return &n->array[i];
    return NULL;
}

/* ---- Writing */

struct bytes {
    unsigned char *data;
    size_t n, cap;
    struct err *err;
    int rc; /* -1 once memory ran out */
};

static void put(struct bytes *b, const void *data, size_t n)
{
    while (!b->rc && b->cap - b->n < n)
        b->rc = mem_grow(&b->data, &b->cap, b->cap, 1, "an .npz file", b->err);
    if (b->rc || !n)
        return;
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

static void put_le(struct bytes *b, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned char c = (unsigned char)(v >> (8 * i));

        put(b, &c, 1);
    }
}

static const char *descr_of(enum dtype t)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].dtype == t)
            return types[i].descr;
    return NULL;
}

/* The description as NumPy prints it, padded with blanks so that the numbers begin at a multiple of 64. */
static size_t describe(const struct npz_array *a, char *buf, size_t size)
{
    size_t n = (size_t)snprintf(buf, size, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr_of(a->dtype)), pad;

    for (int i = 0; i < a->shape.ndim; i++)
        n += (size_t)snprintf(buf + n, size - n, "%zu%s", a->shape.dim[i],
                              i + 1 < a->shape.ndim ? ", "
                              : a->shape.ndim == 1  ? ","
                                                    : "");
    n += (size_t)snprintf(buf + n, size - n, "), }");
    pad = 64 - (FRONT + n + 1) % 64;
    n += (size_t)snprintf(buf + n, size - n, "%*s\n", (int)pad, "");
    return n;
}

/* What a local header and a directory row have in common, from "version needed" on. */
static void put_common(struct bytes *b, uint32_t crc, size_t size, const char *name)
{
    put_le(b, 20, 2);         /* version needed */
    put_le(b, 0x0800, 2);     /* names are UTF-8 */
    put_le(b, 0, 2);          /* stored */
    put_le(b, 0x00210000, 4); /* 1 January 1980: the same bytes each time */
    put_le(b, crc, 4);
    put_le(b, size, 4);
    put_le(b, size, 4);
    put_le(b, strlen(name) + 4, 2);
    put_le(b, 0, 2); /* extra field */
}

static void put_array(struct bytes *b, struct bytes *rows, const struct npz_array *a)
{
    char text[512];
    size_t length = describe(a, text, sizeof text), nbytes = 0, header = b->n;
    struct bytes front = {.err = b->err};
    uint32_t crc;

    shape_nbytes(&a->shape, a->dtype, &nbytes);
    put(&front, "\x93NUMPY\1\0", 8);
    put_le(&front, length, 2);
    put(&front, text, length);
    if (front.rc) {
        b->rc = -1;
        return;
    }
    crc = (uint32_t)crc32_z(crc32_z(0, front.data, front.n), a->data, nbytes);
    put(b, "PK\3\4", 4);
    put_common(b, crc, front.n + nbytes, a->name);
    put(b, a->name, strlen(a->name));
    put(b, ".npy", 4);
    put(b, front.data, front.n);
    put(b, a->data, nbytes);
    put(rows, "PK\1\2", 4);
    put_le(rows, 20, 2);
    put_common(rows, crc, front.n + nbytes, a->name);
    put_le(rows, 0, 6); /* comment, disk, attributes inside */
    put_le(rows, 0, 4); /* attributes outside */
    put_le(rows, header, 4);
    put(rows, a->name, strlen(a->name));
    put(rows, ".npy", 4);
    free(front.data);
}

int npz_write(const char *path, const struct npz_array *array, size_t n, struct err *err)
{
    struct bytes b = {.err = err}, rows = {.err = err};
    uint64_t total = 0;
    int rc = -1;

    for (size_t i = 0; i < n; i++) {
        size_t nbytes;

        if (!descr_of(array[i].dtype))
            return err_set(err, "cannot write '%s': NumPy has no type for array '%s' of %s", path, array[i].name,
                           dtype_name(array[i].dtype));
        if (!shape_nbytes(&array[i].shape, array[i].dtype, &nbytes) || (total += nbytes) > MOST)
            return err_set(err, "cannot write '%s': more than 256 MiB in one .npz file", path);
        put_array(&b, &rows, &array[i]);
    }
    if (!b.rc && !rows.rc) {
        size_t directory = b.n;

        put(&b, rows.data, rows.n);
        put(&b, "PK\5\6", 4);
        put_le(&b, 0, 4);
        put_le(&b, n, 2);
        put_le(&b, n, 2);
        put_le(&b, rows.n, 4);
        put_le(&b, directory, 4);
        put_le(&b, 0, 2);
        rc = b.rc ? -1 : output_bytes(path, b.data, b.n, err);
    }
    free(b.data);
    free(rows.data);
    return rc;
}

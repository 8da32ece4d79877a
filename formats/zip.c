#include "formats/zip.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum {
    END = 22,       /* end of central directory record */
    END64 = 56,     /* its zip64 form */
    LOCATOR64 = 20, /* which stands between them */
    ROW = 46,       /* fixed part of a directory row */
    LOCAL = 30,     /* fixed part of a local header */
    MAX_COMMENT = 65535,
    MAX_DIRECTORY = 64 << 20, /* a million rows of torch's size */
    MAX_RATIO = 1032,         /* deflate's best: 258 bytes from 2 bits */
    CHUNK = 64 * 1024,
};

struct directory {
    uint64_t offset, size, count; /* offset: in the file */
    uint64_t prefix;              /* bytes before the archive */
};

static uint16_t get16(const unsigned char *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)get16(p) | (uint32_t)get16(p + 2) << 16;
}

static uint64_t get64(const unsigned char *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

static int broken(const struct tensor_file *f, const char *what, struct err *err)
{
    return err_set(err, "cannot read '%s': its zip archive %s; the file is damaged, get it again", f->path, what);
}

static int broken_entry(const struct tensor_file *f, const char *name, const char *what, struct err *err)
{
    return err_set(err, "cannot read '%s': zip entry '%s' %s; the file is damaged, get it again", f->path, name, what);
}

/* Takes the directory's place from the end record at `at`, whose bytes start at end, and from the zip64 record when there is
 * one. Whoever reads only one of the two must see the same archive. */
static int read_end(struct tensor_file *f, uint64_t at, const unsigned char *end, struct directory *d, struct err *err)
{
    unsigned char rec[END64 + LOCATOR64] = {0};
    const unsigned char *locator = rec + END64;
    uint64_t stop = at, offset = get32(end + 16);

    d->size = get32(end + 12);
    d->count = get16(end + 10);
    if (get16(end + 4) != 0 || get16(end + 6) != 0 || get16(end + 8) != get16(end + 10))
        return broken(f, "spans several disks", err);
    if (at >= sizeof rec && tensor_file_pread(f, at - sizeof rec, rec, sizeof rec, "the end of its zip directory", err) != 0)
        return -1;
    if (memcmp(locator, "PK\6\7", 4) == 0) {
        if (memcmp(rec, "PK\6\6", 4) != 0 || get32(locator + 4) != 0 || get32(rec + 16) != 0 || get32(rec + 20) != 0 ||
            get64(rec + 24) != get64(rec + 32))
            return broken(f, "has a broken zip64 record", err);
        if ((d->count != UINT16_MAX && d->count != get64(rec + 32)) || (d->size != UINT32_MAX && d->size != get64(rec + 40)) ||
            (offset != UINT32_MAX && offset != get64(rec + 48)))
            return broken(f, "has two end records that disagree", err);
        d->count = get64(rec + 32);
        d->size = get64(rec + 40);
        offset = get64(rec + 48);
        stop = at - sizeof rec;
        if (offset > stop || get64(locator + 8) > stop)
            return broken(f, "has its directory outside of the file", err);
    }
    if (d->size > stop || offset > stop - d->size)
        return broken(f, "has its directory outside of the file", err);
    d->offset = stop - d->size; /* the directory ends where the end records begin */
    d->prefix = d->offset - offset;
    if (stop != at && get64(locator + 8) != stop - d->prefix)
        return broken(f, "has a broken zip64 record", err);
    if (d->size > MAX_DIRECTORY || d->count > d->size / ROW)
        return broken(f, "has a directory of impossible size", err);
    return 0;
}

static int find_end(struct tensor_file *f, struct directory *d, struct err *err)
{
    size_t n = f->file_size < END + MAX_COMMENT ? (size_t)f->file_size : END + MAX_COMMENT;
    unsigned char *tail = mem_new(n, "a zip directory", err);
    int status = -1;

    if (!tail || tensor_file_pread(f, f->file_size - n, tail, n, "the end of its zip directory", err) != 0)
        goto out;
    for (size_t i = n < END ? 0 : n - END + 1; i-- > 0;)
        if (memcmp(tail + i, "PK\5\6", 4) == 0 && get16(tail + i + 20) == n - END - i) {
            status = read_end(f, f->file_size - n + i, tail + i, d, err);
            goto out;
        }
    err_set(err, "cannot read '%s': its zip archive has no directory at the end; the file was cut short, get it again",
            f->path);
out:
    free(tail);
    return status;
}

/* Sizes and position that do not fit in 32 bits stand in the extra field of kind 1, in this order, only where needed. */
static int read_zip64(const struct tensor_file *f, struct zip_entry *e, const unsigned char *extra, size_t n, struct err *err)
{
    uint64_t *want[] = {&e->size, &e->packed, &e->header};
    bool wanted = e->size == UINT32_MAX || e->packed == UINT32_MAX || e->header == UINT32_MAX;

    for (size_t at = 0, len; wanted && n - at >= 4; at += len) {
        len = 4 + (size_t)get16(extra + at + 2);
        if (len > n - at)
            return broken_entry(f, e->name, "has a broken extra field", err);
        if (get16(extra + at) != 1)
            continue;
        for (size_t i = 0, k = at + 4; i < 3; i++)
            if (*want[i] == UINT32_MAX) {
                if (at + len - k < 8)
                    return broken_entry(f, e->name, "has a broken extra field", err);
                *want[i] = get64(extra + k);
                k += 8;
            }
        break;
    }
    return 0;
}

/* One row of the directory: p [left bytes]; *used gets its length. */
static int read_row(struct tensor_file *f, const struct directory *d, struct zip_entry *e, const unsigned char *p, size_t left,
                    size_t *used, struct err *err)
{
    size_t n_name, n_extra;
    char *name;

    if (left < ROW || memcmp(p, "PK\1\2", 4) != 0)
        return broken(f, "has a broken directory", err);
    n_name = get16(p + 28);
    n_extra = get16(p + 30);
    *used = ROW + n_name + n_extra + get16(p + 32);
    if (*used > left || n_name == 0)
        return broken(f, "has a broken directory", err);
    name = arena_alloc(&f->arena, n_name + 1, err);
    if (!name)
        return -1;
    memcpy(name, p + ROW, n_name);
    for (size_t i = 0; i < n_name; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return broken(f, "has a name with control characters", err);
    *e = (struct zip_entry){.name = name,
                            .crc = get32(p + 16),
                            .packed = get32(p + 20),
                            .size = get32(p + 24),
                            .header = get32(p + 42),
                            .deflated = get16(p + 10) == 8};
    if (get16(p + 8) & 0x2041)
        return err_set(err, "cannot read '%s': zip entry '%s' is encrypted; save the checkpoint without a password", f->path,
                       name);
    if (get16(p + 10) != 0 && get16(p + 10) != 8)
        return err_set(err, "cannot read '%s': zip entry '%s' is packed with method %d; pack it with deflate or not at all",
                       f->path, name, get16(p + 10));
    if (get16(p + 34) != 0)
        return broken(f, "spans several disks", err);
    if (read_zip64(f, e, p + ROW + n_name, n_extra, err) != 0)
        return -1;
    if (e->deflated ? e->packed > d->offset || e->size / MAX_RATIO > e->packed : e->size != e->packed)
        return broken_entry(f, name, "has an impossible size", err);
    if (e->header > d->offset - d->prefix)
        return broken_entry(f, name, "lies outside of the archive", err);
    e->header += d->prefix;
    return 0;
}

/* The bytes of an entry follow its local header, which repeats the name and has an extra field of its own length. */
static int read_local(const struct tensor_file *f, const struct directory *d, struct zip_entry *e, struct err *err)
{
    size_t n_name = strlen(e->name);
    unsigned char p[LOCAL + 256];
    size_t n = n_name < 256 ? n_name : 256; /* a longer name is compared as far as it goes: only we choose names to find */

    if (d->offset - e->header < LOCAL + n_name)
        return broken_entry(f, e->name, "lies outside of the archive", err);
    if (tensor_file_pread(f, e->header, p, LOCAL + n, "a zip entry", err) != 0)
        return -1;
    if (memcmp(p, "PK\3\4", 4) != 0 || get16(p + 8) != (e->deflated ? 8 : 0) || get16(p + 26) != n_name ||
        memcmp(p + LOCAL, e->name, n) != 0)
        return broken_entry(f, e->name, "differs from its row in the directory", err);
    e->offset = e->header + LOCAL + n_name + get16(p + 28);
    if (e->offset > d->offset || e->packed > d->offset - e->offset)
        return broken_entry(f, e->name, "ends past the end of the archive", err);
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct zip_entry *x = a, *y = b;

    return strcmp(x->name, y->name);
}

static int by_header(const void *a, const void *b)
{
    const struct zip_entry *x = a, *y = b;

    return x->header < y->header ? -1 : x->header > y->header;
}

static int read_rows(struct zip *z, struct tensor_file *f, const struct directory *d, const unsigned char *rows,
                     struct err *err)
{
    struct zip_entry *e = arena_alloc(&f->arena, (size_t)(d->count + 1) * sizeof *e, err);
    size_t at = 0, used = 0, n = (size_t)d->count;

    if (!e)
        return -1;
    for (size_t i = 0; i < n; i++, at += used)
        if (read_row(f, d, &e[i], rows + at, (size_t)d->size - at, &used, err) != 0)
            return -1;
    if (at != d->size)
        return broken(f, "has a directory longer than its rows", err);
    qsort(e, n, sizeof *e, by_header);
    for (size_t i = 0; i < n; i++) {
        if (read_local(f, d, &e[i], err) != 0)
            return -1;
        if (i > 0 && e[i].header < e[i - 1].offset + e[i - 1].packed)
            return broken_entry(f, e[i].name, "shares bytes with another one", err);
    }
    qsort(e, n, sizeof *e, by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(e[i - 1].name, e[i].name) == 0)
            return broken_entry(f, e[i].name, "is there twice", err);
    z->entry = e;
    z->count = n;
    return 0;
}

int zip_open(struct zip *z, struct tensor_file *f, struct err *err)
{
    struct directory d = {0};
    unsigned char *rows = NULL;
    int status = -1;

    *z = (struct zip){0};
    if (find_end(f, &d, err) != 0)
        return -1;
    rows = mem_new((size_t)d.size, "a zip directory", err);
    if (rows && tensor_file_pread(f, d.offset, rows, (size_t)d.size, "its zip directory", err) == 0)
        status = read_rows(z, f, &d, rows, err);
    free(rows);
    return status;
}

const struct zip_entry *zip_find(const struct zip *z, const char *name)
{
    const struct zip_entry key = {.name = name};

    return z->count ? bsearch(&key, z->entry, z->count, sizeof *z->entry, by_name) : NULL;
}

/* Inflates all of e into dst through the buffer in [CHUNK]. */
static int inflate_entry(const struct tensor_file *f, const struct zip_entry *e, unsigned char *dst, unsigned char *in,
                         struct err *err)
{
    z_stream s = {0};
    uint64_t taken = 0, given = 0;
    unsigned char past; /* one byte more than promised shows here */
    int z = Z_OK, status = -1;

    if (inflateInit2(&s, -MAX_WBITS) != Z_OK)
        return err_memory(err, CHUNK, "inflating a zip entry");
    while (z == Z_OK) {
        uint64_t room = e->size - given;
        uInt out = room == 0 ? 1 : room < (1u << 30) ? (uInt)room : 1u << 30;

        if (s.avail_in == 0) {
            s.avail_in = e->packed - taken < CHUNK ? (uInt)(e->packed - taken) : CHUNK;
            s.next_in = in;
            if (s.avail_in && tensor_file_pread(f, e->offset + taken, in, s.avail_in, "a zip entry", err) != 0)
                goto out;
            taken += s.avail_in;
        }
        s.next_out = room == 0 ? &past : dst + given;
        s.avail_out = out;
        z = inflate(&s, Z_NO_FLUSH);
        if (room == 0 && s.avail_out == 0)
            z = Z_DATA_ERROR;
        given += room == 0 ? 0 : out - s.avail_out;
    }
    if (z != Z_STREAM_END || given != e->size || taken != e->packed || s.avail_in != 0)
        broken_entry(f, e->name, "cannot be inflated to the size that it should have", err);
    else
        status = 0;
out:
    inflateEnd(&s);
    return status;
}

int zip_read(const struct tensor_file *f, const struct zip_entry *e, void *dst, struct err *err)
{
    unsigned char *in = NULL;
    int status = -1;
    uint32_t crc;

    if (e->deflated) {
        in = mem_new(CHUNK, "inflating a zip entry", err);
        if (!in || inflate_entry(f, e, dst, in, err) != 0)
            goto out;
    } else if (tensor_file_pread(f, e->offset, dst, (size_t)e->size, "a zip entry", err) != 0) {
        goto out;
    }
    crc = (uint32_t)crc32_z(0, dst, (size_t)e->size);
    if (crc != e->crc && (e->crc != 0 || e->deflated)) { /* torch.serialization.set_crc32_options(False) writes 0 */
        broken_entry(f, e->name, "does not match its checksum", err);
        goto out;
    }
    status = 0;
out:
    free(in);
    return status;
}

#include "formats/tensor_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "plain entries are used as they lie in the file");

/* Rows whose marks are sure come first. */
const struct tensor_format *const tensor_formats[] = {
    &format_safetensors,
    &format_torch_zip,
    &format_torch_legacy,
    NULL,
};

enum { HEAD = 64, AT_ONCE = 1 << 30 };

const struct tensor_format *tensor_format_of_suffix(const char *path)
{
    size_t n = strlen(path);

    for (size_t i = 0; tensor_formats[i]; i++)
        for (const char *const *s = tensor_formats[i]->suffixes; s && *s; s++)
            if (n > strlen(*s) && strcasecmp(path + n - strlen(*s), *s) == 0)
                return tensor_formats[i];
    return NULL;
}

int tensor_file_pread(const struct tensor_file *f, uint64_t at, void *dst, size_t n, const char *what, struct err *err)
{
    unsigned char *p = dst;

    if (at > INT64_MAX || n > INT64_MAX - at)
        return err_set(err, "cannot read '%s': %s lies beyond any file's end; the file is damaged, get it again", f->path,
                       what);
    while (n > 0) {
        ssize_t got = pread(f->fd, p, n < AT_ONCE ? n : AT_ONCE, (off_t)at);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(err, "cannot read '%s': %s: %s; check the disk", f->path, what, strerror(errno));
        if (got == 0)
            return err_set(err,
                           "cannot read '%s': it was cut short while being read, %zu bytes of %s are missing; let the "
                           "other program finish, then start again",
                           f->path, n, what);
        p += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

/* What people often have in place of a model, by its first bytes. */
static int refuse_unknown(const struct tensor_file *f, const unsigned char *head, size_t n, struct err *err)
{
    static const struct {
        const char *begins, *is;
    } known[] = {
        {"version https://git-lfs", "it is a Git LFS pointer, not the file itself; run 'git lfs pull' in its folder"},
        {"<!DOCTYPE html", "it is a web page, not a model; the download may need a login, fetch it again"},
        {"<html", "it is a web page, not a model; the download may need a login, fetch it again"},
        {"\x1f\x8b", "it is compressed with gzip; unpack it first"},
        {"Rar!", "it is a RAR archive; unpack it first"},
        {"7z\xbc\xaf", "it is a 7z archive; unpack it first"},
        {"GGUF", "it is a GGUF file; give the model as .safetensors or .ckpt"},
        {"\x89PNG", "it is a picture; give a model"},
        {"\xff\xd8\xff", "it is a picture; give a model"},
    };

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (n >= strlen(known[i].begins) && strncasecmp((const char *)head, known[i].begins, strlen(known[i].begins)) == 0)
            return err_set(err, "cannot read '%s': %s", f->path, known[i].is);
    if (tensor_format_of_suffix(f->path))
        return 0;
    return err_set(err,
                   "cannot read '%s': its content is no format known here (safetensors; .ckpt, .pt, .bin as torch saves "
                   "them); give such a file",
                   f->path);
}

/* Opens the descriptor and the size. */
static int open_regular(struct tensor_file *f, struct err *err)
{
    struct stat st;

    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a named pipe must not make us wait */
    if (f->fd < 0)
        return errno == ENOENT   ? err_set(err, "cannot read '%s': there is no such file; check the path", f->path)
               : errno == EACCES ? err_set(err, "cannot read '%s': no permission; see 'ls -l'", f->path)
                                 : err_set(err, "cannot read '%s': %s", f->path, strerror(errno));
    if (fstat(f->fd, &st) != 0)
        return err_set(err, "cannot read '%s': %s", f->path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return err_set(err, "cannot read '%s': it is a folder; give a file in it", f->path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, "cannot read '%s': it is a device or a pipe; give a file on a disk", f->path);
    if (st.st_size == 0)
        return err_set(err, "cannot read '%s': the file is empty; get it again", f->path);
    f->file_size = (uint64_t)st.st_size;
    return 0;
}

static int detect(struct tensor_file *f, struct err *err)
{
    unsigned char head[HEAD] = {0};
    size_t n = f->file_size < HEAD ? (size_t)f->file_size : HEAD;

    if (tensor_file_pread(f, 0, head, n, "its beginning", err) != 0)
        return -1;
    for (size_t i = 0; tensor_formats[i] && !f->format; i++)
        if (tensor_formats[i]->probe(head, n, f->file_size))
            f->format = tensor_formats[i];
    if (f->format)
        return 0;
    if (refuse_unknown(f, head, n, err) != 0)
        return -1;
    f->format = tensor_format_of_suffix(f->path); /* its open() will say what is wrong */
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct tensor_entry *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

/* Makes the index, and checks what every row promises. */
static int make_index(struct tensor_file *f, struct err *err)
{
    f->by_name = mem_zero(f->count, sizeof *f->by_name, "an index of tensors", err);
    if (!f->by_name)
        return -1;
    for (size_t i = 0; i < f->count; i++) {
        const struct tensor_entry *e = &f->entries[i];
        size_t nbytes;

        if (!shape_nbytes(&e->shape, e->dtype, &nbytes) || nbytes != e->nbytes)
            return err_set(err,
                           "cannot read '%s': tensor '%.200s': shape and bytes do not agree; the file is damaged, get it again",
                           f->path, e->name);
        if (e->plain && (e->offset > f->file_size || e->nbytes > f->file_size - e->offset))
            return err_set(err,
                           "cannot read '%s': tensor '%.200s' ends past the end of the file; the file is damaged, get it again",
                           f->path, e->name);
        f->by_name[i] = e;
    }
    if (f->count)
        qsort(f->by_name, f->count, sizeof *f->by_name, by_name);
    for (size_t i = 1; i < f->count; i++)
        if (strcmp(f->by_name[i - 1]->name, f->by_name[i]->name) == 0)
            return err_set(err, "cannot read '%s': two tensors have the name '%.200s'; the file is damaged, get it again",
                           f->path, f->by_name[i]->name);
    return 0;
}

int tensor_file_open(struct tensor_file **out, const char *path, struct err *err)
{
    struct tensor_file *f = mem_zero(1, sizeof *f, "an open file", err);

    *out = NULL;
    if (!f)
        return -1;
    f->fd = -1;
    f->path = mem_str(path, err);
    if (!f->path || open_regular(f, err) != 0 || detect(f, err) != 0 || f->format->open(f, err) != 0 ||
        make_index(f, err) != 0) {
        tensor_file_close(f);
        return -1;
    }
    *out = f;
    return 0;
}

void tensor_file_close(struct tensor_file *f)
{
    if (!f)
        return;
    if (f->format && f->format->close)
        f->format->close(f);
    if (f->fd >= 0)
        close(f->fd);
    arena_free(&f->arena);
    free(f->by_name);
    free((char *)f->path);
    free(f);
}

const struct tensor_entry *tensor_file_find(const struct tensor_file *f, const char *name)
{
    const struct tensor_entry key = {.name = name}, *p = &key, **found;

    if (f->count == 0)
        return NULL;
    found = bsearch(&p, f->by_name, f->count, sizeof *f->by_name, by_name);
    return found ? *found : NULL;
}

const char *tensor_file_metadata(const struct tensor_file *f, const char *key)
{
    for (size_t i = 0; i < f->metadata_count; i++)
        if (strcmp(f->metadata[i].key, key) == 0)
            return f->metadata[i].value;
    return NULL;
}

int tensor_file_read_part(const struct tensor_file *f, const struct tensor_entry *e, size_t first, size_t n, void *dst,
                          struct err *err)
{
    char what[256];

    if (first > e->nbytes || n > e->nbytes - first)
        return err_set(err,
                       "cannot read '%s': bytes %zu to %zu of tensor '%.200s' were asked for, it has %zu; please report this",
                       f->path, first, first + n, e->name, e->nbytes);
    if (!e->plain)
        return f->format->read(f, e, first, n, dst, err);
    snprintf(what, sizeof what, "tensor '%.200s'", e->name);
    return tensor_file_pread(f, e->offset + first, dst, n, what, err);
}

int tensor_file_read(const struct tensor_file *f, const struct tensor_entry *e, void *dst, struct err *err)
{
    return tensor_file_read_part(f, e, 0, e->nbytes, dst, err);
}

/* Files of named tensors: one interface over safetensors, torch zip archives, torch's legacy pickles, and whatever comes.
 *
 * A reader opens a file, checks every length and offset in it against the file's size, and lists its tensors without
 * touching their data. A writer is given the whole list first, so it knows the layout, and then takes the data in any order
 * and from any thread; the target's name appears only at commit (formats/output.h).
 *
 * Nothing read from a file is ever executed. Strings and entries of a reader live until tensor_file_close().
 */
#ifndef FORMATS_TENSOR_FILE_H
#define FORMATS_TENSOR_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ref/base/dtype.h"
#include "ref/base/err.h"
#include "ref/base/mem.h"
#include "ref/base/tensor.h"

struct tensor_entry {
    const char *name; /* UTF-8, dots between module names; borrowed from the file */
    enum dtype dtype;
    struct shape shape;
    size_t nbytes;   /* shape x dtype, checked against the file */
    bool plain;      /* stored as one row-major little-endian run of nbytes bytes at `offset` of the file itself */
    uint64_t offset; /* when plain: position in the file */
    size_t slot;     /* the format's own business */
};

struct metadata_item {
    const char *key, *value; /* UTF-8, borrowed */
};

struct tensor_file {
    const char *path;
    const struct tensor_format *format;
    const struct tensor_entry *entries; /* [count], in the order of their data in the file */
    size_t count;
    const struct metadata_item *metadata; /* [metadata_count], sorted by key; safetensors' __metadata__ */
    size_t metadata_count;
    uint64_t file_size;
    int fd; /* open for reading; use pread only */
    void *impl;         /* the format's own */
    struct arena arena; /* for names, entries and metadata; freed with the file */
    const struct tensor_entry **by_name; /* [count], made by tensor_file_open() after the format's open */
};

/* A file format is a row of functions. Rows are listed in tensor_file.c; detection asks each in turn. */
struct tensor_format {
    const char *name;             /* "safetensors", "torch zip", "torch legacy" */
    const char *const *suffixes;  /* ".safetensors", NULL-terminated: which row writes a path with this ending; may be NULL */
    /* Looks at the first n bytes (n <= 64) and the size of a file. True when the file claims to be of this format. */
    bool (*probe)(const unsigned char *head, size_t n, uint64_t file_size);
    /* Fills entries, count, metadata, impl of a file whose path, fd and file_size are set; entries need not be sorted by
     * name, but in the order of their data; f->arena may hold them. Equal names are refused by the caller. Also called for
     * a file that no probe claims when its suffix is this row's: it then says what is wrong with it. */
    int (*open)(struct tensor_file *f, struct err *err);
    /* Frees impl, also after a failed open (impl may be NULL); fd and arena are the caller's. May be NULL. */
    void (*close)(struct tensor_file *f);
    /* Reads bytes [first, first + n) of an entry that is not plain. Thread-safe. */
    int (*read)(const struct tensor_file *f, const struct tensor_entry *e, size_t first, size_t n, void *dst, struct err *err);
    /* Writer's side; NULL when the format is only read. See struct tensor_writer in tensor_writer.h. */
    const struct tensor_writer_ops *writer;
};

extern const struct tensor_format format_safetensors, format_torch_zip, format_torch_legacy;
extern const struct tensor_format *const tensor_formats[]; /* all rows, NULL-terminated */

/* The row that writes paths with this ending (".safetensors"; case does not matter), or NULL. */
const struct tensor_format *tensor_format_of_suffix(const char *path);

/* Opens path (a regular file). The format is found from the content, never from the suffix (which only decides who explains
 * what is wrong with a file that no format claims). On success *out is closed by
 * the caller with tensor_file_close(). Returns 0 or -1 (missing, directory, empty, unknown format, any broken rule). */
int tensor_file_open(struct tensor_file **out, const char *path, struct err *err);
void tensor_file_close(struct tensor_file *f); /* NULL is fine */

/* The entry of that name, or NULL. Logarithmic. */
const struct tensor_entry *tensor_file_find(const struct tensor_file *f, const char *name);

/* The metadata value of a key, or NULL. */
const char *tensor_file_metadata(const struct tensor_file *f, const char *key);

/* Reads a whole entry, in its own dtype, into dst [e->nbytes], or a byte range of it. Uses pread, so that a file cut short
 * by someone else meanwhile is an error and not a signal. Thread-safe. Returns 0 or -1. */
int tensor_file_read(const struct tensor_file *f, const struct tensor_entry *e, void *dst, struct err *err);
int tensor_file_read_part(const struct tensor_file *f, const struct tensor_entry *e, size_t first, size_t n, void *dst,
                          struct err *err);

/* Reads n bytes at position `at` of the file itself, for formats: EINTR and short reads are seen to, an end of file is "was
 * cut short while being read". what names the part for the message ("the header", "tensor 'x'"). Thread-safe. */
int tensor_file_pread(const struct tensor_file *f, uint64_t at, void *dst, size_t n, const char *what, struct err *err);

#endif

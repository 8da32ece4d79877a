/* Writing a file of named tensors: list first, data in any order, name at the end. See tensor_file.h. */
#ifndef FORMATS_TENSOR_WRITER_H
#define FORMATS_TENSOR_WRITER_H

#include "formats/output.h"
#include "formats/tensor_file.h"
#include "ref/base/mem.h"

struct tensor_spec {
    const char *name; /* borrowed until tensor_writer_commit/abort */
    enum dtype dtype;
    struct shape shape;
};

struct tensor_writer;

/* Creates path's temporary neighbour (PATH.tmp.PID), lays out the n specs and preallocates the file, so that a full disk is
 * known here. Missing folders of the path are made. format NULL: by the path's suffix (.safetensors; .ckpt .pt .pth .bin
 * are torch zip archives); an unknown suffix is a usage error that lists the known ones. Data is laid out in the format's
 * canonical order (for safetensors: the order its reference library writes), whatever the order of specs.
 * metadata [n_metadata] may be NULL; formats without a place for it ignore it (torch's take TORCH_META_ROOT and the counters
 * beside it, see torch_state.h: they put the tensors under "state_dict"). Names must be unique and valid UTF-8; so must
 * be metadata's keys and values. The array specs itself and metadata need not outlive the call, their strings do: a
 * safetensors header is written at the end, and the text of a value may change until then where its length does not. */
int tensor_writer_open(struct tensor_writer **out, const char *path, const struct tensor_format *format,
                       const struct tensor_spec *specs, size_t n, const struct metadata_item *metadata, size_t n_metadata,
                       struct err *err);

/* spec index of the tensor that stands k-th in the file: writing in this order writes the file front to back. */
size_t tensor_writer_order(const struct tensor_writer *w, size_t k);

/* Writes all bytes of tensor i, or the part [first, first + n); parts of one tensor come in order and cover it. data is
 * borrowed. Thread-safe for different i. */
int tensor_writer_put(struct tensor_writer *w, size_t i, const void *data, struct err *err);
int tensor_writer_put_part(struct tensor_writer *w, size_t i, size_t first, size_t n, const void *data, struct err *err);

/* Writes tensor i with the bytes of an entry of the same dtype and size, inside the kernel where the systems allow.
 * Thread-safe for different i. */
int tensor_writer_copy(struct tensor_writer *w, size_t i, const struct tensor_file *from, const struct tensor_entry *e,
                       struct err *err);

/* Starts the disk's work on what has been written so far without waiting for it, so that commit waits less. Optional:
 * it happens by itself every 32 MiB. */
void tensor_writer_flush(struct tensor_writer *w);

/* Finishes the file: every tensor must have been written. fsync, rename over path, fsync of the folder. Frees w, also on
 * failure (then nothing of the new file is left and an old one is intact). */
int tensor_writer_commit(struct tensor_writer *w, struct err *err);
void tensor_writer_abort(struct tensor_writer *w); /* removes the temporary file, frees w; NULL is fine */

/* ---- The format's side: what a row of tensor_file.c supplies to be written. Users need nothing below this line.
 *
 * Tensor data always goes to the file as one little-endian row-major run; the writer puts it there (pwrite or a copy in the
 * kernel), the format only says where. So a format has two duties: layout() decides every position and the exact size of
 * the file before any byte is written, and finish() writes everything that is not tensor data.
 */
struct tensor_slot {
    struct tensor_spec spec;
    size_t nbytes;   /* of the data, checked */
    uint64_t offset; /* of its first byte in the file; set by layout() */
    size_t written;  /* bytes so far: parts come in order */
    uint32_t crc;    /* zlib's crc32 of those bytes, when the format has want_crc; else 0 */
};

struct tensor_writer {
    const char *path;
    const struct tensor_format *format;
    struct tensor_slot *slot; /* [n], in the order of the specs */
    size_t *order;            /* [n] indices of slots, in the order of their data; set by layout(), given as 0 .. n-1 */
    size_t n;
    const struct metadata_item *metadata; /* [n_metadata], sorted by key; keys are unique */
    size_t n_metadata;
    uint64_t total;     /* bytes of the finished file; set by layout() */
    struct output *out; /* NULL while layout() runs */
    struct arena arena; /* for the format's strings and structures; freed with the writer */
    void *impl;         /* the format's own; in the arena, or freed by close() */
};

struct tensor_writer_ops {
    /* The format stores a CRC-32 of each tensor's data: the writer then computes it in passing, over put, put_part and
     * copies alike (copies go through a buffer, not through the kernel). */
    bool want_crc;
    /* Sets offset of every slot, order and total; prepares impl (headers, the pickle: all whose bytes or at least sizes
     * depend on specs and metadata alone). Touches no file. Names are unique and sorted metadata is given. */
    int (*layout)(struct tensor_writer *w, struct err *err);
    /* All data is in its place and crc is final: writes the rest with output_write_at(w->out, ...): headers, local file
     * headers, the central directory. Every byte of the file that is not tensor data and should not be zero. */
    int (*finish)(struct tensor_writer *w, struct err *err);
    /* Frees impl, after finish, after an error and on abort; impl may be NULL. May be NULL when the arena holds it all. */
    void (*close)(struct tensor_writer *w);
};

#endif

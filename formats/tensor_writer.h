/* Writing a file of named tensors: list first, data in any order, name at the end. See tensor_file.h. */
#ifndef FORMATS_TENSOR_WRITER_H
#define FORMATS_TENSOR_WRITER_H

#include "formats/tensor_file.h"

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
 * metadata [n_metadata] may be NULL; formats without a place for it ignore it. Names must be unique. */
int tensor_writer_open(struct tensor_writer **out, const char *path, const struct tensor_format *format,
                       const struct tensor_spec *specs, size_t n, const struct metadata_item *metadata, size_t n_metadata,
                       struct err *err);

/* spec index of the tensor that stands k-th in the file: writing in this order writes the file front to back. */
size_t tensor_writer_order(const struct tensor_writer *w, size_t k);

/* Writes all bytes of tensor i, or the part [first, first + n); parts of one tensor come in order and cover it. data is
 * borrowed. Thread-safe for different i. */
int tensor_writer_put(struct tensor_writer *w, size_t i, const void *data, struct err *err);
int tensor_writer_put_part(struct tensor_writer *w, size_t i, size_t first, size_t n, const void *data, struct err *err);

/* Writes tensor i with the bytes of an entry of the same dtype and size, inside the kernel where the systems allow. */
int tensor_writer_copy(struct tensor_writer *w, size_t i, const struct tensor_file *from, const struct tensor_entry *e,
                       struct err *err);

/* Starts the disk's work on what has been written so far without waiting for it, so that commit waits less. Optional. */
void tensor_writer_flush(struct tensor_writer *w);

/* Finishes the file: every tensor must have been written. fsync, rename over path, fsync of the folder. Frees w, also on
 * failure (then nothing of the new file is left and an old one is intact). */
int tensor_writer_commit(struct tensor_writer *w, struct err *err);
void tensor_writer_abort(struct tensor_writer *w); /* removes the temporary file, frees w; NULL is fine */

#endif

/* From torch's tensors to entries of a tensor_file: types, views into storages, and reading what is not stored plainly.
 *
 * A tensor of torch is a view: a storage, the index of its first element there, a size and a stride (in elements) for each
 * dimension. Storages are found by the container (zip or legacy) through a callback. Every view is checked to lie within its
 * storage, and every storage within the file, before the file counts as open.
 */
#ifndef FORMATS_TORCH_TENSOR_H
#define FORMATS_TORCH_TENSOR_H

#include "formats/torch_state.h"
#include "formats/zip.h"

/* What a pickle says of a storage: ('storage', class, key, location, numel[, view]). */
struct torch_id {
    const char *key; /* not terminated; in the pickle */
    size_t n_key;
    int what;        /* of the class: TORCH_STORAGE | dtype, TORCH_ODD | size, TORCH_BYTES */
    size_t element;  /* bytes of one element of the class */
    uint64_t nbytes; /* of the whole storage, checked for overflow */
    uint64_t first;  /* legacy views: bytes from the start of the storage ... */
    uint64_t length; /* ... and how many bytes belong to it */
};

/* Reads a PICKLE_PERSID. Returns false when it is no storage of a known class, or its numbers are impossible. */
bool torch_id_read(struct torch_id *id, const struct pickle_value *persid);

/* Where a storage lies. */
struct torch_storage {
    uint64_t offset;                /* of its bytes in the file, when stored */
    uint64_t nbytes;                /* that are there, once inflated */
    const struct zip_entry *packed; /* or the deflated entry, in the file's arena */
};

/* Finds the storage; 0, or -1 with err filled as "tensor 'x': ..." would end: the caller puts the tensor's name before. */
typedef int torch_locate(struct tensor_file *f, void *ctx, const struct torch_id *id, struct torch_storage *out,
                         struct err *err);

/* Fills entries, count, metadata and impl of f from the pickle, which is needed no longer afterwards. swap: the data is
 * big-endian. Returns 0 or -1. */
int torch_file_fill(struct tensor_file *f, const struct pickle *p, torch_locate *locate, void *ctx, bool swap, struct err *err);

/* The read and close functions of both rows. */
int torch_file_read(const struct tensor_file *f, const struct tensor_entry *e, size_t first, size_t n, void *dst,
                    struct err *err);
void torch_file_close(struct tensor_file *f);

#endif

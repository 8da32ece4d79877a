/* Tensor shapes and views. Row-major, last dimension fastest. */
#ifndef REF_BASE_TENSOR_H
#define REF_BASE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>

#include "ref/base/dtype.h"

#define TENSOR_MAX_DIMS 8

struct shape {
    int ndim; /* 0 for a scalar */
    size_t dim[TENSOR_MAX_DIMS];
};

/* A dense view. data is borrowed: whoever made the view says who owns it. */
struct tensor {
    void *data;
    enum dtype dtype;
    struct shape shape;
};

/* shape_of(2, 320, 768): ndim and that many size_t-compatible positive ints. */
struct shape shape_of(int ndim, ...);

/* *out = number of elements (1 for a scalar). Returns false when the product overflows. */
bool shape_numel(const struct shape *s, size_t *out);

/* *out = bytes of a dense tensor of this shape and type. Returns false on overflow. */
bool shape_nbytes(const struct shape *s, enum dtype t, size_t *out);

bool shape_equal(const struct shape *a, const struct shape *b);

/* Writes "[320, 768]" into buf (cut if it does not fit; 128 bytes always suffice). Returns buf. */
const char *shape_print(const struct shape *s, char *buf, size_t size);

#endif

/* The innermost product, in registers: a few rows of X times a packed panel of W, for the instruction set this machine has.
 *
 *     y [rows, cols] (+)= alpha * X [rows, k] W [k, cols]
 *
 * X is read where it lies, by two strides, so X may be a matrix, a transposed one, or columns of something wider. W is packed
 * beforehand: panels of KERNEL columns (32 with 16 floats a vector; the last may be as narrow as half a vector, filled with
 * zeros), each [k, panel] with its rows one behind the other, so that the product reads it as one stream.
 *
 * A sum runs over k in order, a product and its addition rounded together where the machine can. The result of an element
 * does not depend on which rows and columns are computed beside it, nor on the number of threads.
 */
#ifndef REF_OP_KERNEL_H
#define REF_OP_KERNEL_H

#include <stdbool.h>
#include <stddef.h>

#include "ref/base/dtype.h"
#include "ref/base/simd.h"

/* Most rows of a register tile on any machine: multiples of it make good blocks of rows. */
enum { KERNEL_ROWS = 12 };

/* Floats that W [k, n] takes when packed: at most k * (n rounded up to 32). */
size_t kernel_packed(size_t k, size_t n);

/* Packs rows [at, at + rows) of W [k, n]; its element (at + i, c) is src[i * ld + c] of a type that is f32, f16 or bf16.
 * Rows may be packed in any order and by several threads. */
void kernel_pack(float *dst, size_t k, size_t at, const void *src, enum dtype dtype, size_t ld, size_t rows, size_t n);

/* The same from columns, as a linear layer's weight lies: element (at + i, c) is src[c * ld + i]. */
void kernel_pack_transposed(float *dst, size_t k, size_t at, const void *src, enum dtype dtype, size_t ld, size_t rows,
                            size_t n);

/* Columns of one panel where none is narrowed: a good multiple to divide packing by. */
size_t kernel_columns(void);

/* X's element (i, p) is x[i * row + p * step]. add: to what y holds, else y is written. */
struct kernel_call {
    size_t rows, cols, k;
    const float *x;
    size_t row, step;
    const float *packed;
    float *y;
    size_t ldy;
    float alpha;
    bool add;
    bool bf16; /* x and packed hold pairs (kernel_bf16.h) */
};

void kernel_multiply(const struct kernel_call *c);

/* Uses no instruction set above this one, so that a test can compare them. Packed panels do not survive the change. */
void kernel_limit(enum simd_level most);

#endif

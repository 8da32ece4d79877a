/* How large a LoRA's change is, from its factors alone. */
#ifndef REF_LORA_NORM_H
#define REF_LORA_NORM_H

#include <stddef.h>

#include "ref/base/err.h"

/* *out = Frobenius norm of up x down, up [rows, rank] and down [rank, columns] f32 row-major, borrowed: the product is never
 * formed, ||UD||^2 = <U'U, DD'>. Sums in f64. Returns 0, or -1 without memory (rank^2 doubles are needed). */
int norm_of_product(const float *up, const float *down, size_t rows, size_t rank, size_t columns, double *out, struct err *err);

/* The same with room for gram [rank, rank], which need not be zeroed. */
double norm_of_product_in(const float *up, const float *down, size_t rows, size_t rank, size_t columns, double *gram);

/* Sum of squares of x [n] f32, in f64. */
double norm_squared(const float *x, size_t n);

#endif

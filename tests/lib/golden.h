/* Golden data for tests: a .safetensors file made by an independent oracle, read by name, compared with a stated limit.
 * A missing file or name fails the test at once (cmocka's fail), so callers need no error path. */
#ifndef TESTS_LIB_GOLDEN_H
#define TESTS_LIB_GOLDEN_H

#include <stddef.h>
#include <stdint.h>

#include "formats/tensor_file.h"

/* Opens golden/NAME; closed with tensor_file_close(). */
struct tensor_file *golden_open(const char *name);

/* The tensor as f32 (from any float type) or as i32; *n gets the element count, may be NULL. The caller frees it. */
float *golden_f32(const struct tensor_file *f, const char *name, size_t *n);
int32_t *golden_i32(const struct tensor_file *f, const char *name, size_t *n);

/* The entry's shape; fails the test when the name is missing. */
const struct tensor_entry *golden_entry(const struct tensor_file *f, const char *name);

/* Largest |a - b|, infinity when a value is not finite on one side only. */
double golden_max_diff(const float *a, const float *b, size_t n);

/* Fails with `what`, the place and both values unless |a[i] - b[i]| <= abs_limit + rel_limit * |b[i]| everywhere.
 * b is the oracle's. The derivation of the limits stands at the caller. */
void golden_close(const char *what, const float *a, const float *b, size_t n, double abs_limit, double rel_limit);

#endif

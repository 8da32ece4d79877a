/* The limits of `lora verify`, for each arithmetic a device may compute in: the one place that knows them.
 *
 * f32, an operation: a sum of n products is off by at most n roundings of u = 2^-24 of the sum of their sizes; with what
 * stands around it (exp, a quotient, a factor: at most a dozen roundings) and 2 for each term that is itself rounded,
 * (2 n + 12) u max |want|. max |want| stands for the sum of sizes: terms of random sign make the error grow with the square
 * root of n only, which more than makes up for it.
 *
 * f32, a layer of a model: torch's own f32 run against its f64 run is one sample of what rounding does to that layer, of which
 * the largest of many elements varies by a small factor only: 6 times it. A tensor of few elements may have been lucky:
 * 16 roundings of its largest value come on top.
 *
 * Less than f32 (bf16, f16, tf32): sums are still f32, but what enters a product, and perhaps every activation, is rounded to
 * the type, by u = 2^-8 (8 bits) or 2^-11 (11 bits). The golden files hold a sample of what that does, made in torch: for an
 * operation the change of its f64 result when all inputs are rounded, for a layer torch's own run in that type. Again 6 times
 * that sample, on top of the f32 limit, and 4 u (an operation rounds its result, and once inside) or 16 u (a layer) of the
 * largest value. tf32 has the precision of f16.
 */
#ifndef CMD_VERIFY_LIMIT_H
#define CMD_VERIFY_LIMIT_H

#include <jansson.h>
#include <stdbool.h>

#include "ref/base/dtype.h"

struct verify_arithmetic {
    const char *name; /* "f32" */
    double u;         /* half a unit in the last place of 1 */
    int sample;       /* which of the golden files' samples: 0 f32, 1 bf16, 2 f16 */
};

extern const struct verify_arithmetic verify_arithmetics[]; /* f32, tf32, f16, bf16; ends with a NULL name */

/* The row of a device's arithmetic (offload_info: its type, and whether products of f32 are in tf32); f32 for what has none. */
const struct verify_arithmetic *verify_arithmetic_of(enum dtype t, bool tf32);

/* n: length of the longest sum; samples: the "error" object of the case; key: "out0", "din1"; size: max |want|. */
double verify_limit_op(const struct verify_arithmetic *a, double n, const json_t *samples, const char *key, double size);

/* samples: the list [f32, bf16, f16] of torch's own errors. */
double verify_limit_layer(const struct verify_arithmetic *a, const json_t *samples, double size);

#endif

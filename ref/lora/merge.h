/* Adding LoRA modules to a weight.
 *
 * W' = W + sum over modules of scale * up @ down, for W in f32, f16, bf16 or f64: everything is added in f32 (in f64 when
 * an f64 weight stays f64) and rounded once, when it is stored. W is taken a panel of rows at a time, so no f32 copy of it ever exists.
 * Panels depend on the shape only, so the result is the same bytes whoever runs it.
 */
#ifndef REF_LORA_MERGE_H
#define REF_LORA_MERGE_H

#include <stdbool.h>
#include <stddef.h>

#include "ref/base/dtype.h"
#include "ref/base/err.h"
#include "ref/lora/factors.h"

/* What a merge did, as sums of squares; merge_weight() adds to it, so one struct can gather many weights. */
struct merge_stats {
    bool want_rounding; /* set by the caller: rounding2 is wanted (it costs another pass) */
    double weight2;     /* ||W||^2 before */
    double delta2;      /* ||W' - W||^2 as computed, before the store */
    double rounding2;   /* ||stored - computed||^2: what the store's rounding moved */
};

/* Floats of scratch that merge_weight() needs for a weight with `in` columns. */
size_t merge_work_floats(size_t in);

/* dst [out, in] of type to = src [out, in] of type from + the n modules. Both types among f32 f16 bf16 f64; dst may be src when
 * the types are equal. f [n] and work [merge_work_floats(in)] are borrowed; stats may be NULL. A value of src that is not
 * finite, and a result that does not fit the type to, are errors that name the place; then dst is partly written.
 * Error of each element: (sum of ranks + 2) * eps(f32) * (|W| + sum |scale| |up| |down|) and half a unit of the type to. */
int merge_weight(void *dst, enum dtype to, const void *src, enum dtype from, size_t out, size_t in, const struct lora_factors *f,
                 size_t n, float *work, struct merge_stats *stats, struct err *err);

/* The same in the arithmetic of sd-scripts v0.3.0 with --precision `precision` (f32, f16 or bf16): W is rounded to that type
 * first, and so is every step: product, ratio * product, sum. The factors must hold values of that type already and scale
 * must be the bare ratio (v0.3.0 knows no alpha). */
int merge_weight_v030(void *dst, enum dtype to, const void *src, enum dtype from, size_t out, size_t in,
                      const struct lora_factors *f, size_t n, enum dtype precision, float *work, struct merge_stats *stats,
                      struct err *err);

#endif

/* Extraction: the LoRA that leads from one weight to another.
 *
 * For one module with base weight W and tuned weight W' (both seen as matrices [out, in], in = inputs x kernel), D = W' - W in
 * f32 and the best factors of rank k: up [out, k] = U_k S_k, down [k, in] = V_k, so that W + up down is near W' (svd.h says how
 * near). This file knows no model and no file: weights come through a read function, a panel at a time, in their own type.
 */
#ifndef REF_LORA_EXTRACT_H
#define REF_LORA_EXTRACT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ref/base/dtype.h"
#include "ref/lora/svd.h"

/* Reads elements [first, first + n) of a weight, row-major, in its own type, into dst. Thread-safe. */
typedef int extract_read(const void *ctx, size_t first, size_t n, void *dst, struct err *err);

struct extract_weight {
    enum dtype dtype; /* f32 f16 bf16 f64 */
    extract_read *read;
    const void *ctx;  /* borrowed */
    const char *name; /* for messages: "'a.safetensors': tensor 'x'" is made of file and name */
    const char *file;
};

struct extract_module {
    size_t out, in;
    struct extract_weight org, tuned;
    size_t rank;   /* largest rank wanted; cut to min(out, in) */
    uint64_t seed; /* svd_seed() of the module's key */
};

struct extract_options {
    double energy; /* > 0: the smallest rank that keeps this share of ||D||_F^2, if `rank` allows; 0: `rank` */
    double clamp;  /* > 0: both factors are cut to [-h, h], h this quantile of all their values (v0.3.0's way; it harms). The
                      first element of each right vector is positive then, as the quantile depends on signs */
    bool exact;
    bool keep_zero; /* a zero difference gets factors too: up 0, down the first unit vectors (as v0.3.0) */
};

struct extract_result {
    size_t rank;        /* of the factors; 0 when D is zero and keep_zero is not set */
    const float *up;    /* [out, rank], borrowed from the worker until its next module */
    const float *down;  /* [rank, in], likewise */
    const float *s;     /* [computed] singular values, likewise; computed >= rank when energy chose the rank */
    size_t computed;
    float largest;      /* largest |D| */
    double clamp;       /* h, or 0 */
    double error;       /* ||D - up down||_F^2 of these factors before a clamp */
    struct svd_info svd;
};

struct extract_worker; /* buffers of one thread */

struct extract_worker *extract_worker_new(struct err *err); /* NULL with err filled */
struct ops;
int extract_use_device(struct extract_worker *w, const struct ops *ops, struct err *err); /* svd_use_device() */
void extract_worker_free(struct extract_worker *w);         /* NULL is fine */

/* Does one module. Returns 0, or -1: a read failed, a weight holds a NaN or an infinity (the message names file and tensor),
 * no memory. */
int extract_run(struct extract_worker *w, const struct extract_module *m, const struct extract_options *o,
                struct extract_result *r, struct err *err);

/* d [n] = tuned - org, elements [0, n), in f32; returns the largest |d| in *largest (unspecified if one is not finite). */
int extract_difference(struct extract_worker *w, const struct extract_weight *org, const struct extract_weight *tuned, size_t n,
                       float *d, float *largest, struct err *err);

/* The q-quantile (0..1) of the values of x [nx] and y [ny] pooled, linear between neighbours as torch.quantile's default.
 * scratch [nx + ny]. */
float extract_quantile(const float *x, size_t nx, const float *y, size_t ny, double q, float *scratch);

#endif

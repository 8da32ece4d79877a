/* Truncated singular value decomposition with a proof of its error.
 *
 * Wanted: for a matrix D [m, n] and a rank k, factors up [m, k] and down [k, n] whose product is nearly the best rank-k
 * approximation of D in the Frobenius norm, and a number that proves it. Let E be the error that was reached and E* the
 * least possible one (Eckart and Young 1936). On return
 *     E <= (1 + tolerance) E* + SVD_FLOOR ||D||_F,
 * and this has been checked for this very matrix: SVD_FLOOR is what rounding the factors to f32 costs. How:
 *
 *   1. A block Krylov space of D (or, where it pays, of its Gram matrix G, of the short side) is built and grown; the
 *      Rayleigh-Ritz values t_1 >= t_2 >= ... in it are lower bounds of G's eigenvalues, so ||D||^2 - t_1 - .. - t_k = E^2.
 *   2. E* is bounded from below through a bound from above of the sum of G's k largest eigenvalues: in the basis
 *      (Krylov, rest) G = [T R'; R C], and for any w > 0  G <= diag(T + R'R / w, C + w). The residual block R is known. The
 *      largest eigenvalue of C is bounded by the energy that is left (its trace), or, for flat spectra, by one Cholesky
 *      factorisation which exists only if  mu 1 + (correction of rank <= dim) - G  is positive definite.
 *   3. Where f32 is too coarse for this (the tail is tiny beside the largest singular values), the large part is taken off
 *      D and the rest treated alike; Cauchy's interlacing bounds what that can cost.
 *   4. Whatever is not proved so falls to LAPACK: eigenvectors of G in f64; if G is too coarse too, dgesdd of D, and dgesvd
 *      should that not converge.
 *
 * The start vectors come from a counter-based generator, all work is one thread's, and BLAS is called single-threaded: the
 * result depends on D, k, the options and the BLAS kernels of the machine, not on the number of threads.
 *
 * Sources: Halko, Martinsson, Tropp 2011 (sketching); Musco and Musco 2015 (block Krylov); Parlett, "The Symmetric
 * Eigenvalue Problem", ch. 10-11 (residual bounds, interlacing); Fan 1949 (sums of eigenvalues).
 */
#ifndef REF_LORA_SVD_H
#define REF_LORA_SVD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ref/base/err.h"

#define SVD_TOLERANCE 1e-3       /* default of svd_options.tolerance */
#define SVD_TOLERANCE_EXACT 1e-6 /* what `exact` proves */
#define SVD_FLOOR 5e-7           /* 8 eps of f32, see above */

#define SVD_MORE 48 /* most singular values after the k-th that are told */

/* Which of the ways above proved the result. */
enum svd_method {
    SVD_ZERO,   /* D is zero (or k is): nothing to do */
    SVD_SKETCH, /* Krylov space of D */
    SVD_GRAM,   /* Krylov space of the f32 Gram matrix, Cholesky proof; or all of its eigenvectors when it is small */
    SVD_GRAM64, /* eigenvectors of the f64 Gram matrix */
    SVD_LAPACK, /* dgesdd or dgesvd of D */
};

struct svd_options {
    double tolerance; /* 0: SVD_TOLERANCE */
    bool exact;       /* LAPACK in f64 throughout, tolerance SVD_TOLERANCE_EXACT */
    uint64_t seed;    /* of the start vectors */
};

struct svd_info {
    double total; /* ||D||_F^2 */
    double error; /* E^2 = ||D - up down||_F^2, before the factors are rounded to f32 */
    double least; /* proved: E*^2 >= least */
    float more[SVD_MORE]; /* estimates, from below, of the singular values after the k-th */
    size_t more_count;
    enum svd_method method;
    int levels; /* how often a large part was taken off (point 3) */
};

struct svd; /* buffers of one worker, reused from call to call; they grow to what the largest matrix needs */

/* Returns a new, empty set of buffers, or NULL with err filled. Freed by svd_free() (NULL is fine). */
struct svd *svd_new(struct err *err);
void svd_free(struct svd *w);

/* From now on the products with D are made on a device (f32, not less), except with `exact`; ops is borrowed until svd_free(). What
 * is proved is proved for its results just as well; LAPACK, where it is needed, stays here. -1: the device has no f32. */
struct ops;
int svd_use_device(struct svd *w, const struct ops *ops, struct err *err);

/* Factorises d [m, n] f32, row-major, which is overwritten. 1 <= k <= min(m, n). Borrowed:
 *   up   [m, k]  left singular vectors times singular values
 *   s    [k]     singular values, descending
 *   down [k, n]  right singular vectors; the element of largest magnitude of each row (the first of equals) is positive
 * A singular value that is zero has zeros as its column and row. o may be NULL (defaults). Returns 0, or -1 (no memory,
 * a NaN or infinity in d, sizes over INT_MAX, LAPACK failed thrice). */
int svd_truncate(struct svd *w, float *d, size_t m, size_t n, size_t k, const struct svd_options *o, float *up, float *s,
                 float *down, struct svd_info *info, struct err *err);

const char *svd_method_name(enum svd_method m);

/* A seed from a name, so that a module's factors do not depend on which modules came before it (FNV-1a). */
uint64_t svd_seed(const char *name);

#endif

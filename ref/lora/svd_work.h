/* Inside of svd.c and its helpers (combine_gram.c uses svd_mirror()): a matrix seen from its short side, a worker's buffers, a
 * Krylov space.
 *
 * A [rows, cols] is D itself when D is tall, else D transposed, so rows >= cols always. Its vectors are kept as rows: x [s,
 * cols] is s vectors of the short side, y [s, rows] of the long side. Products go through these functions, so nothing else
 * asks which way D lies. */
#ifndef REF_LORA_SVD_WORK_H
#define REF_LORA_SVD_WORK_H

#include "ref/lora/svd.h"

struct svd_matrix {
    float *d;          /* as the caller stores it, row-major */
    size_t rows, cols; /* of A: rows >= cols */
    bool flipped;      /* d is [cols, rows] */
    struct svd_device *on; /* where products with it are made; NULL: here */
};

enum svd_buffer {
    SVD_BUF_VECTORS, /* v [k, cols]: the answer on the short side */
    SVD_BUF_IMAGES,  /* y [k, rows]: A v */
    SVD_BUF_BASIS,   /* Krylov basis */
    SVD_BUF_SMALL,   /* projected matrix */
    SVD_BUF_RITZ,    /* its eigenvectors */
    SVD_BUF_PANEL,   /* one panel of images */
    SVD_BUF_GRAM,
    SVD_BUF_PROOF,
    SVD_BUF_FLOAT64,
    SVD_BUF_FLOAT64_B,
    SVD_BUF_FLOAT64_C,
    SVD_BUF_COUNT
};

struct svd {
    void *buf[SVD_BUF_COUNT];
    size_t cap[SVD_BUF_COUNT];
    struct svd_device *device; /* or NULL */
};

/* At least `count` elements of `size` bytes; contents are lost when it must grow. NULL with err filled. */
void *svd_buffer(struct svd *w, enum svd_buffer which, size_t count, size_t size, struct err *err);

/* Sum of squares of x [n], in f64, in an order that depends on n only. */
double svd_energy(const float *x, size_t n);

void svd_times(const struct svd_matrix *a, const float *x, size_t s, float *y);            /* y [s, rows] = A x */
void svd_times_transposed(const struct svd_matrix *a, const float *y, size_t s, float *x); /* x [s, cols] = A' y */
/* z [s, cols] = A' A x, reading A once; panel [s * SVD_PANEL] is scratch */
#define SVD_PANEL 256
void svd_times_gram(const struct svd_matrix *a, const float *x, size_t s, float *panel, float *z);
void svd_gram(const struct svd_matrix *a, float *g); /* g [cols, cols]: A' A, lower triangle */
void svd_mirror(float *g, size_t n);                 /* upper triangle from the lower one */
void svd_subtract(const struct svd_matrix *a, const float *y, const float *v, size_t s); /* A -= sum of y_i v_i' */

/* A block Krylov space of a symmetric operator: orthonormal rows q [dim, n], T = q G q' and the block that follows, with
 * G q' = q' T + q_next' [0 .. 0 r]. */
struct svd_krylov {
    size_t n, block, dim, cap; /* dim <= cap; q has room for cap + block rows */
    float *q;                  /* [cap + block, n] */
    float *t;                  /* [cap, cap], lower triangle */
    float r[64 * 64];          /* [block, block] column-major, upper triangle: residual of the last block */
};

typedef void svd_operator(void *ctx, const float *x, size_t s, float *z); /* z [s, n] = G x */

int svd_krylov_start(struct svd_krylov *k, struct svd *w, size_t n, size_t block, size_t cap, uint64_t seed, struct err *err);
int svd_krylov_grow(struct svd_krylov *k, svd_operator *apply, void *ctx, struct err *err); /* dim += block */

/* Eigenvalues (ascending, [dim]) of T + r'r / w in its last block (w = 0: of T alone); vectors [dim, dim] as rows, or NULL. */
int svd_krylov_ritz(const struct svd_krylov *k, double w, float *values, float *vectors, struct svd *work, struct err *err);

/* v [count, n] = the Ritz vectors of the `count` largest values, largest first; vectors as svd_krylov_ritz() gave them. */
void svd_krylov_vectors(const struct svd_krylov *k, const float *vectors, size_t count, float *v);

/* One attempt at A's k largest singular vectors (v [k, cols], largest first). What it found out: */
struct svd_level {
    double total;   /* ||A||_F^2 */
    double kept;    /* energy of A in the span of v: the sum of its first k Ritz values */
    double excess;  /* proved: the k largest eigenvalues of A'A sum up to kept + excess at most */
    double top;     /* proved bound of the largest eigenvalue; total when nothing better is known */
    float more[SVD_MORE]; /* square roots of the Ritz values after the k-th */
    size_t more_count;
    bool proved;    /* excess is small enough for the tolerance */
    size_t usable;  /* leading vectors that are good enough to be taken off A */
    enum svd_method method;
};

#define SVD_EPS 5.96e-8 /* half an ulp of 1 in f32 */

/* l's kept, usable, more from Ritz values (ascending, [d]) */
void svd_level_keep(struct svd_level *l, const float *values, size_t d, size_t k);

/* How much of l->kept + excess is allowed to be excess for the tolerance, after rounding took its part; <= 0: too coarse */
double svd_level_allowance(const struct svd_level *l, size_t cols, size_t k, double tolerance);

/* What rounding may add to any sum of k eigenvalues of A'A that was computed in f32, over total. */
double svd_rounding(size_t cols, size_t k);

/* Tries to prove that the Ritz values (ascending) are good enough: excess <= allowed. On success l is filled and v [k, n]
 * holds the Ritz vectors. g [n, n]: the operator, both triangles. Returns -1 only on errors; the answer is l->proved. */
int svd_prove(struct svd *w, const struct svd_krylov *kr, const float *g, const float *values, const float *vectors, size_t k,
              double allowed, float *v, struct svd_level *l, struct err *err);

int svd_sketch(struct svd *w, const struct svd_matrix *a, size_t k, double tolerance, uint64_t seed, float *v,
               struct svd_level *l, struct err *err);
int svd_by_gram(struct svd *w, const struct svd_matrix *a, size_t k, double tolerance, uint64_t seed, float *v,
                struct svd_level *l, struct err *err);

/* LAPACK in f64: v [k, cols], y [k, rows]. */
int svd_by_lapack(struct svd *w, const struct svd_matrix *a, size_t k, double tolerance, float *v, float *y,
                  struct svd_info *info, struct err *err);

#endif

/* What the files of combine.c share; nobody else includes it. */
#ifndef REF_LORA_COMBINE_WORK_H
#define REF_LORA_COMBINE_WORK_H

#include <stdbool.h>

#include "ref/lora/combine.h"

#define COMBINE_ROWS 256 /* rows converted to f64 at a time */

/* The stacked problem S = U diag(s) D. A side that is NULL is the identity. All row-major. */
struct stack {
    size_t out, in, r;
    float *u;     /* [out, r], unit columns */
    float *d;     /* [r, in], unit rows */
    double *s;    /* [r] */
    double size;  /* norm of s as stacked: what the terms of S weigh before they cancel each other */
    double floor; /* singular values below it are noise of the f32 product that collapse() took */
    struct combine_work *work;
    size_t used; /* bytes of work in use */
};

/* count * size bytes from the work area, which combine_best() has made large enough. */
void *combine_take(struct stack *k, size_t count, size_t size);

/* Fills c from the singular values sv (descending, [k->r]) and the rule. Values below the noise of the arithmetic, relative to
 * the largest value or to the terms that cancelled, become zero. */
void combine_choose(struct combined *c, const struct rank_rule *rule, double *sv, const struct stack *k, double noise);

/* The fast route (combine_gram.c). Returns true when it is done, false when the problem is too ill-conditioned for it. */
bool combine_by_gram(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule);

/* Inside of combine_gram.c. The core in f32 (combine_core32.c), for RANK_FIXED with max_rank < k->r: g [r, r] is the Gram
 * matrix of U, both triangles, used up; l the Cholesky factor of D's (row-major, lower). Returns whether f32 was enough. */
bool combine_core32(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule, float *g,
                    const float *l);

/* up = U @ up_t' and down = down_t @ D, from coefficient rows [rank, r]. */
void combine_expand(float *up, float *down, const struct stack *k, size_t rank, const float *up_t, const float *down_t);

/* Elements of scratch of sormtr and dormtr for r vectors or fewer: what LAPACK's own query says is too little for their blocked
 * form (blocks of 64 at most, and 65 x 64 for a block's triangle), and they go reflector by reflector in almost twice the time.
 */
size_t combine_ormtr_work(size_t r);

/* The route that always works (combine_qr.c): QR of both sides and an SVD of the core, in f64. */
int combine_by_qr(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule, struct err *err);

#endif

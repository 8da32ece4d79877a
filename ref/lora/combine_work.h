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

/* The route that always works (combine_qr.c): QR of both sides and an SVD of the core, in f64. */
int combine_by_qr(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule, struct err *err);

#endif

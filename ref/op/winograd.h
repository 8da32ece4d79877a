/* A 3x3 convolution with stride 1 by Winograd's F(4x4, 3x3): 36 products for 16 outputs where the definition takes 144.
 *
 *     y = AT [(G w GT) * (BT x B)] A          (Lavin and Gray 2016)
 *
 * for each 6x6 window of x, its inner product over channels being 36 matrix products (kernel.h). The interpolation points are
 * 0, +-1/sqrt 2, +-sqrt 2 and infinity: evenly spread about 1, so that the transforms swell the least. With unit normal x and
 * 640 channels the error is 2.2e-6 of y (root mean square); the usual 0, +-1, +-2 give 4.8e-6, a plain f32 sum 4.6e-7.
 *
 * Weights stay in the file's dtype and are transformed a panel at a time. The gradient of the input is the same computation
 * on dy, with the weight turned by 180 degrees and read the other way.
 */
#ifndef REF_OP_WINOGRAD_H
#define REF_OP_WINOGRAD_H

#include "ref/base/dtype.h"
#include "ref/base/err.h"

struct winograd {
    size_t n, h, w, c;    /* x [n, h, w, c] f32, channels last */
    size_t oh, ow, oc;    /* y [n, oh, ow, oc] */
    size_t pad;           /* y's pixel 0 sees x from -pad; outside is zero. Backward: of dy, 2 less the forward's */
    const void *weight;   /* [oc, 3, 3, c]; of a backward [c, 3, 3, oc], turned */
    enum dtype dtype;
    bool back;
    const float *x;       /* borrowed */
    float *y;
    const float *bias;     /* [oc]; NULL: none */
    const float *residual; /* as y, may be y itself; NULL: none */
    void *scratch;         /* winograd_scratch() bytes */
};

/* Whether this pays against patches and one product: from the sizes only. */
bool winograd_pays(const struct winograd *g);

/* Bytes of scratch for these sizes. */
size_t winograd_scratch(const struct winograd *g, int threads);

/* Writes y. Cannot fail today; -1 and err as every library function. */
int winograd_run(const struct winograd *g, struct err *err);

#endif

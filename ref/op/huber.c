/* Pseudo-Huber loss (Charbonnier et al. 1997): like the square near 0 and like the absolute value far off, so that one bad
 * picture pulls less. loss [] = mean over samples of weight[n] * mean over the sample of sqrt((pred - target)^2 + d^2) - d,
 * d = delta[n]. */
#include <math.h>

#include "ref/base/simd.h"
#include "ref/op/elementwise.h"

enum { PRED, TARGET, DELTA, WEIGHT };
enum { CHUNK = 1024 }; /* summed in f32, the chunks in f64 */

/* r - d = x^2 / (r + d): no digits cancel */
SIMD_CLONES static float sum_errors(const float *a, const float *b, float d, size_t n)
{
    float lane[16] = {0}, sum = 0;

    for (size_t i = 0; i < n; i += 16) {
        size_t m = n - i < 16 ? n - i : 16;

        for (size_t l = 0; l < m; l++) {
            float x = a[i + l] - b[i + l], below = sqrtf(x * x + d * d) + d;

            lane[l] += below > 0 ? x * x / below : 0;
        }
    }
    for (size_t l = 0; l < 16; l++)
        sum += lane[l];
    return sum;
}

static int forward(const struct op_call *c, struct err *err)
{
    const float *pred = c->in[PRED]->data, *target = c->in[TARGET]->data, *delta = c->in[DELTA]->data;
    const float *weight = c->in[WEIGHT] ? c->in[WEIGHT]->data : NULL;
    size_t samples = c->in[PRED]->shape.dim[0], n = elementwise_count(c->in[PRED]) / samples;
    double loss = 0;

    (void)err;
    for (size_t s = 0; s < samples; s++) {
        double sum = 0;

        for (size_t i = 0; i < n; i += CHUNK)
            sum += (double)sum_errors(pred + s * n + i, target + s * n + i, delta[s], n - i < CHUNK ? n - i : CHUNK);
        loss += sum * (weight ? (double)weight[s] : 1.0);
    }
    *(float *)c->out[0]->data = (float)(loss / (double)(samples * n));
    return 0;
}

struct huber {
    size_t n; /* elements of a sample */
    const float *pred, *target, *delta, *weight;
    float *dpred, factor;
};

/* dpred = dloss * weight / elements * x / sqrt(x^2 + d^2) */
SIMD_CLONES static void huber_backward(const void *ctx, size_t first, size_t samples)
{
    const struct huber *a = ctx;

    for (size_t s = first; s < first + samples; s++) {
        const float *pred = a->pred + s * a->n, *target = a->target + s * a->n;
        float *dpred = a->dpred + s * a->n, k = a->factor * (a->weight ? a->weight[s] : 1), d2 = a->delta[s] * a->delta[s];

        for (size_t i = 0; i < a->n; i++) {
            float x = pred[i] - target[i], r = sqrtf(x * x + d2);

            dpred[i] = r > 0 ? k * x / r : 0;
        }
    }
}

static int backward(const struct op_call *c, struct err *err)
{
    const struct tensor *pred = c->in[PRED];
    struct huber a = {elementwise_count(pred) / pred->shape.dim[0], pred->data, c->in[TARGET]->data, c->in[DELTA]->data,
                      c->in[WEIGHT] ? c->in[WEIGHT]->data : NULL, c->din[PRED]->data, 0};

    a.factor = *(const float *)c->dout[0]->data / (float)elementwise_count(pred);
    return elementwise_run(pred->shape.dim[0], 1, huber_backward, &a, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *p = &c->in[PRED]->shape, *t = &c->in[TARGET]->shape;
    char a[128], b[128];

    if (p->ndim < 1 || !shape_equal(p, t) || elementwise_count(c->in[PRED]) == 0)
        return err_set(err, "prediction %s and target %s differ in shape", shape_print(p, a, sizeof a),
                       shape_print(t, b, sizeof b));
    if (elementwise_need_f32(c, PRED, "the prediction", err) < 0 || elementwise_need_f32(c, TARGET, "the target", err) < 0 ||
        elementwise_need_vector(c, DELTA, p->dim[0], "the width of the loss", err) < 0)
        return -1;
    *c->out[0] = (struct tensor){.dtype = DT_F32};
    return elementwise_need_vector(c, WEIGHT, p->dim[0], "the weight of the samples", err);
}

const struct op op_huber = {
    .name = "huber", .min_in = 3, .max_in = 4, .nout = 1, .differentiable = 1 << PRED,
    .needs_in = {[PRED] = 1 << PRED | 1 << TARGET | 1 << DELTA | 1 << WEIGHT},
    .shape = shape, .forward = forward, .backward = backward,
};

/* Mean squared error: loss [] = mean over samples of weight[n] * mean over the sample of (pred - target)^2 */
#include "ref/base/simd.h"
#include "ref/op/elementwise.h"

enum { PRED, TARGET, WEIGHT };
enum { CHUNK = 1024 }; /* summed in f32, the chunks in f64 */

SIMD_CLONES static float sum_squares(const float *a, const float *b, size_t n)
{
    float lane[16] = {0}, sum = 0;
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        for (size_t l = 0; l < 16; l++)
            lane[l] += (a[i + l] - b[i + l]) * (a[i + l] - b[i + l]);
    for (; i < n; i++)
        lane[i % 16] += (a[i] - b[i]) * (a[i] - b[i]);
    for (size_t l = 0; l < 16; l++)
        sum += lane[l];
    return sum;
}

static int forward(const struct op_call *c, struct err *err)
{
    const float *pred = c->in[PRED]->data, *target = c->in[TARGET]->data;
    const float *weight = c->in[WEIGHT] ? c->in[WEIGHT]->data : NULL;
    size_t samples = c->in[PRED]->shape.dim[0], n = elementwise_count(c->in[PRED]) / samples;
    double loss = 0;

    (void)err;
    for (size_t s = 0; s < samples; s++) {
        double sum = 0;

        for (size_t i = 0; i < n; i += CHUNK)
            sum += (double)sum_squares(pred + s * n + i, target + s * n + i, n - i < CHUNK ? n - i : CHUNK);
        loss += sum * (weight ? (double)weight[s] : 1.0);
    }
    *(float *)c->out[0]->data = (float)(loss / (double)(samples * n));
    return 0;
}

struct mse {
    size_t n; /* elements of a sample */
    const float *pred, *target, *weight;
    float *dpred, factor;
};

/* dpred = dloss * weight * 2 / elements * (pred - target) */
SIMD_CLONES static void mse_backward(const void *ctx, size_t first, size_t samples)
{
    const struct mse *a = ctx;

    for (size_t s = first; s < first + samples; s++) {
        const float *pred = a->pred + s * a->n, *target = a->target + s * a->n;
        float *dpred = a->dpred + s * a->n, k = a->factor * (a->weight ? a->weight[s] : 1);

        for (size_t i = 0; i < a->n; i++)
            dpred[i] = k * (pred[i] - target[i]);
    }
}

static int backward(const struct op_call *c, struct err *err)
{
    const struct tensor *pred = c->in[PRED];
    struct mse a = {elementwise_count(pred) / pred->shape.dim[0], pred->data, c->in[TARGET]->data,
                    c->in[WEIGHT] ? c->in[WEIGHT]->data : NULL, c->din[PRED]->data, 0};

    a.factor = 2 * *(const float *)c->dout[0]->data / (float)elementwise_count(pred);
    return elementwise_run(pred->shape.dim[0], 1, mse_backward, &a, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *p = &c->in[PRED]->shape, *t = &c->in[TARGET]->shape;
    char a[128], b[128];

    if (p->ndim < 1 || !shape_equal(p, t) || elementwise_count(c->in[PRED]) == 0)
        return err_set(err, "prediction %s and target %s differ in shape", shape_print(p, a, sizeof a),
                       shape_print(t, b, sizeof b));
    if (elementwise_need_f32(c, PRED, "the prediction", err) < 0 || elementwise_need_f32(c, TARGET, "the target", err) < 0)
        return -1;
    *c->out[0] = (struct tensor){.dtype = DT_F32};
    return elementwise_need_vector(c, WEIGHT, p->dim[0], "the weight of the samples", err);
}

const struct op op_mse = {
    .name = "mse", .min_in = 2, .max_in = 3, .nout = 1, .differentiable = 1 << PRED,
    .needs_in = {[PRED] = 1 << PRED | 1 << TARGET | 1 << WEIGHT},
    .shape = shape, .forward = forward, .backward = backward,
};

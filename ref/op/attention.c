/* Attention, y = softmax(q kT / sqrt(d)) v for each head, without ever holding the whole score matrix: queries and keys are
 * taken a tile at a time, with a running maximum m and a running sum l of each query row (Milakov and Gimelshein 2018; Dao
 * 2022). A new tile with a larger maximum shrinks what was summed by e^(m_old - m_new).
 *
 * Heads are columns h*d .. h*d+d-1 of q, k, v [n, tokens, c], read in place through BLAS's row length. lse = m + log l is kept
 * for the backward, which computes the probabilities again from it. */
#include <cblas.h>
#include <math.h>
#include <string.h>

#include "ref/base/simd.h"
#include "ref/base/thread.h"
#include "ref/op/elementwise.h"
#include "ref/op/vmath.h"

enum { Q, K, V };
enum { Y, LSE };
enum { TILE_Q = 256, TILE_K = 512, LANES = 16 };

struct attention {
    size_t n, heads, d, c, tq, tk; /* tq, tk: tokens of q, of k and v */
    float scale;
    bool causal;
    const float *q, *k, *v, *o, *dy;
    float *y, *lse, *dq, *dk, *dv;
    float *scratch;
    size_t per_thread; /* floats of it */
    size_t tile_q, ld; /* rows and row length of a score tile: less than TILE_Q, TILE_K where there are fewer tokens */
};

static size_t tokens(const struct tensor *t)
{
    return elementwise_count(t) / (t->shape.dim[0] * elementwise_last(t));
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t whole(size_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

static struct attention describe(const struct op_call *c, bool back)
{
    struct attention a = {.n = c->in[Q]->shape.dim[0], .heads = c->attr->heads, .c = elementwise_last(c->in[Q]),
                          .causal = c->attr->causal};

    a.d = a.c / a.heads;
    a.tq = tokens(c->in[Q]);
    a.tk = tokens(c->in[K]);
    a.scale = (float)(1 / sqrt((double)a.d));
    a.q = c->in[Q]->data;
    a.k = c->in[K]->data;
    a.v = c->in[V]->data;
    a.scratch = c->scratch;
    a.tile_q = least(TILE_Q, a.tq);
    a.ld = whole(least(TILE_K, a.tk));
    /* forward: scores [tile_q, ld], sum [tile_q, d], m, l [tile_q]; backward: two score tiles, D [tokens of q] */
    a.per_thread = whole(back ? 2 * a.tile_q * a.ld + a.tq : a.tile_q * (a.ld + a.d + 2));
    return a;
}

/* s [rows, cols] = scale * a [rows, d] b [cols, d]T; a, b are columns of [.., c] */
static void scores(const struct attention *t, float scale, const float *a, size_t rows, const float *b, size_t cols, float *s)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)cols, (int)t->d, scale, a, (int)t->c, b, (int)t->c, 0,
                s, (int)t->ld);
}

/* Queries see keys up to their own place: the rest of a tile on the diagonal becomes -infinity. */
static void mask(float *s, size_t ld, size_t rows, size_t cols, size_t q0, size_t k0)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = q0 + i + 1 > k0 ? q0 + i + 1 - k0 : 0; j < cols; j++)
            s[i * ld + j] = -INFINITY;
}

/* The order does not matter to a maximum, so the compiler may choose it. */
static inline float row_max(const float *s, size_t n, float start)
{
    float best = start;

#pragma omp simd reduction(max : best)
    for (size_t j = 0; j < n; j++)
        best = s[j] > best ? s[j] : best;
    return best;
}

/* s = exp(s - m); returns the sum */
static inline float row_exp(float *s, size_t n, float m)
{
    float lane[LANES] = {0}, sum = 0;
    size_t j = 0;

    for (; j + LANES <= n; j += LANES)
        for (size_t l = 0; l < LANES; l++) {
            float e = vmath_exp_down(s[j + l] - m);

            s[j + l] = e;
            lane[l] += e;
        }
    for (; j < n; j++) {
        s[j] = vmath_exp_down(s[j] - m);
        sum += s[j];
    }
    for (size_t l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

/* One tile of scores into the running softmax. */
SIMD_CLONES static void absorb(float *s, size_t ld, size_t rows, size_t cols, float *m, float *l, float *sum, size_t d)
{
    for (size_t i = 0; i < rows; i++) {
        float best = row_max(s + i * ld, cols, m[i]);

        if (best > m[i]) {
            float shrink = vmath_exp_down(m[i] - best);

            for (size_t j = 0; j < d; j++)
                sum[i * d + j] *= shrink;
            l[i] *= shrink;
            m[i] = best;
        }
        l[i] += row_exp(s + i * ld, cols, m[i]);
    }
}

static int forward_tile(void *ctx, size_t index, struct err *err)
{
    const struct attention *a = ctx;
    size_t tiles = (a->tq + TILE_Q - 1) / TILE_Q, q0 = index % tiles * TILE_Q, head = index / tiles % a->heads;
    size_t n = index / tiles / a->heads, rows = least(TILE_Q, a->tq - q0), d = a->d;
    size_t end = a->causal ? least(q0 + rows, a->tk) : a->tk, at = (n * a->tq + q0) * a->c + head * d;
    float *s = a->scratch + (size_t)thread_index() * a->per_thread, *sum = s + a->tile_q * a->ld, *m = sum + a->tile_q * d;
    float *l = m + a->tile_q;

    (void)err;
    memset(sum, 0, rows * d * sizeof *sum);
    for (size_t i = 0; i < rows; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
    }
    for (size_t k0 = 0; k0 < end; k0 += TILE_K) {
        size_t cols = least(TILE_K, end - k0), key = (n * a->tk + k0) * a->c + head * d;

        scores(a, a->scale, a->q + at, rows, a->k + key, cols, s);
        if (a->causal)
            mask(s, a->ld, rows, cols, q0, k0);
        absorb(s, a->ld, rows, cols, m, l, sum, d);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)d, (int)cols, 1, s, (int)a->ld, a->v + key,
                    (int)a->c, 1, sum, (int)d);
    }
    for (size_t i = 0; i < rows; i++) {
        float *y = a->y + at + i * a->c, inverse = 1 / l[i];

        for (size_t j = 0; j < d; j++)
            y[j] = sum[i * d + j] * inverse;
        a->lse[(n * a->heads + head) * a->tq + q0 + i] = m[i] + logf(l[i]);
    }
    return 0;
}

static int forward(const struct op_call *c, struct err *err)
{
    struct attention a = describe(c, false);

    a.y = c->out[Y]->data;
    a.lse = c->out[LSE]->data;
    return thread_for(a.n * a.heads * ((a.tq + TILE_Q - 1) / TILE_Q), forward_tile, &a, err);
}

/* From scores s, and dp = dy vT: p = exp(s - lse) in s, ds = scale p (dp - D) in dp. */
SIMD_CLONES static void slopes(float *restrict s, float *restrict dp, size_t ld, size_t rows, size_t cols, const float *lse,
                               const float *dot, float scale)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) {
            float p = vmath_exp_down(s[i * ld + j] - lse[i]);

            s[i * ld + j] = p;
            dp[i * ld + j] = scale * p * (dp[i * ld + j] - dot[i]);
        }
}

/* out [m, d] (+)= op(p) [m, k] b [k, d], b and out columns of [.., c] */
static void gather(const struct attention *a, bool transpose, size_t m, size_t k, const float *p, const float *b, bool add,
                   float *out)
{
    if (out)
        cblas_sgemm(CblasRowMajor, transpose ? CblasTrans : CblasNoTrans, CblasNoTrans, (int)m, (int)a->d, (int)k, 1, p,
                    (int)a->ld, b, (int)a->c, add ? 1 : 0, out, (int)a->c);
}

static float *shifted(float *p, size_t by)
{
    return p ? p + by : NULL;
}

/* One tile of keys against one tile of queries. first_q: dk and dv of these keys are still unset; so dq when k0 is 0. */
static void backward_tile(const struct attention *a, size_t n, size_t head, size_t q0, size_t k0, bool first_q, float *s,
                          const float *dot)
{
    size_t rows = least(TILE_Q, a->tq - q0), cols = least(TILE_K, a->tk - k0);
    size_t qa = (n * a->tq + q0) * a->c + head * a->d, ka = (n * a->tk + k0) * a->c + head * a->d;
    float *dp = s + a->tile_q * a->ld;

    scores(a, a->scale, a->q + qa, rows, a->k + ka, cols, s);
    if (a->causal)
        mask(s, a->ld, rows, cols, q0, k0);
    scores(a, 1, a->dy + qa, rows, a->v + ka, cols, dp);
    slopes(s, dp, a->ld, rows, cols, a->lse + (n * a->heads + head) * a->tq + q0, dot + q0, a->scale);
    gather(a, true, cols, rows, s, a->dy + qa, !first_q, shifted(a->dv, ka));
    gather(a, true, cols, rows, dp, a->q + qa, !first_q, shifted(a->dk, ka));
    gather(a, false, rows, cols, dp, a->k + ka, k0 > 0, shifted(a->dq, qa));
}

/* A piece is one head of one sample: dq, dk and dv are all summed in one order. */
static int backward_head(void *ctx, size_t index, struct err *err)
{
    const struct attention *a = ctx;
    size_t n = index / a->heads, head = index % a->heads;
    float *s = a->scratch + (size_t)thread_index() * a->per_thread, *dot = s + 2 * a->tile_q * a->ld;

    (void)err;
    for (size_t i = 0; i < a->tq; i++) {
        size_t at = (n * a->tq + i) * a->c + head * a->d;
        float sum = 0;

        for (size_t j = 0; j < a->d; j++)
            sum += a->dy[at + j] * a->o[at + j];
        dot[i] = sum;
    }
    for (size_t k0 = 0; k0 < a->tk; k0 += TILE_K) {
        size_t start = a->causal ? k0 / TILE_Q * TILE_Q : 0;

        for (size_t q0 = start; q0 < a->tq; q0 += TILE_Q)
            backward_tile(a, n, head, q0, k0, q0 == start, s, dot);
    }
    return 0;
}

static int backward(const struct op_call *c, struct err *err)
{
    struct attention a = describe(c, true);

    a.o = c->out[Y]->data;
    a.lse = c->out[LSE]->data;
    a.dy = c->dout[Y]->data;
    a.dq = c->din[Q] ? c->din[Q]->data : NULL;
    a.dk = c->din[K] ? c->din[K]->data : NULL;
    a.dv = c->din[V] ? c->din[V]->data : NULL;
    return thread_for(a.n * a.heads, backward_head, &a, err);
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *q = &c->in[Q]->shape, *k = &c->in[K]->shape, *v = &c->in[V]->shape;
    size_t channels = elementwise_last(c->in[Q]), heads = c->attr->heads;
    char a[128], b[128], d[128];

    if (q->ndim < 3 || k->ndim < 3 || !shape_equal(k, v) || q->dim[0] != k->dim[0] || elementwise_last(c->in[K]) != channels ||
        elementwise_count(c->in[K]) == 0 || elementwise_count(c->in[Q]) == 0)
        return err_set(err, "query %s, key %s and value %s do not fit together", shape_print(q, a, sizeof a),
                       shape_print(k, b, sizeof b), shape_print(v, d, sizeof d));
    if (heads == 0 || channels % heads != 0)
        return err_set(err, "%zu channels cannot be divided among %zu attention heads", channels, heads);
    if (c->attr->causal && tokens(c->in[Q]) != tokens(c->in[K]))
        return err_set(err, "causal attention needs as many keys as queries");
    if (elementwise_need_f32(c, K, "key", err) < 0 || elementwise_need_f32(c, V, "value", err) < 0)
        return -1;
    *c->out[LSE] = (struct tensor){.dtype = DT_F32, .shape = {3, {q->dim[0], heads, tokens(c->in[Q])}}};
    return elementwise_shape(c, err);
}

static size_t scratch(const struct op_call *c, bool back, int threads)
{
    struct attention a = describe(c, back);

    return (size_t)threads * a.per_thread * sizeof(float);
}

static double flops(const struct op_call *c, bool back)
{
    double pairs = (double)elementwise_count(c->in[Q]) * (double)tokens(c->in[K]);

    return pairs * (back ? 10 : 4) * (c->attr->causal ? 0.5 : 1);
}

const struct op op_attention = {
    .name = "attention", .min_in = 3, .max_in = 3, .nout = 2, .differentiable = 7,
    .needs_in = {7, 7, 7}, .needs_out = {1 << Y | 1 << LSE, 1 << Y | 1 << LSE, 1 << Y | 1 << LSE},
    .shape = shape, .forward = forward, .backward = backward, .scratch = scratch, .flops = flops,
};

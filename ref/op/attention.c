/* Attention, y = softmax(q kT / sqrt(d)) v for each head, without ever holding the whole score matrix: keys are taken a tile at
 * a time, with a running maximum m and a running sum l of each query row (Milakov and Gimelshein 2018; Dao 2022). A new tile
 * with a larger maximum shrinks what was summed by 2^(m_old - m_new). Scores are in units of ln 2, so that 2^x does for e^x.
 *
 * Heads are columns h*d .. h*d+d-1 of q, k, v [n, tokens, c]. A tile's keys and values are packed once for all queries of a
 * piece, then a strip of scores as high as a register tile is made, turned into probabilities and multiplied by the values
 * while it is in the innermost cache. lse = m + log l is kept for the backward, which computes the probabilities again.
 * In bf16 only what is multiplied is rounded; scores, probabilities' sums and results are f32.
 *
 * This file is compiled with products and sums contracted where the machine can, as ref/op/kernel.c is (Makefile). */
#include <math.h>
#include <string.h>

#include "ref/base/simd.h"
#include "ref/base/thread.h"
#include "ref/op/elementwise.h"
#include "ref/op/kernel_bf16.h"
#include "ref/op/vmath.h"

enum { Q, K, V };
enum { Y, LSE };
/* Queries of a piece (of the backward: of a tile), keys of a tile. */
enum { TILE_Q = 32 * KERNEL_ROWS, BACK_Q = 8 * KERNEL_ROWS, TILE_K = 384, LANES = 16 };

static const float log2e = 0x1.715476p0f, ln2 = 0x1.62e43p-1f;

struct attention {
    size_t n, heads, d, c, tq, tk; /* tq, tk: tokens of q, of k and v */
    float scale;
    bool causal, bf16;
    const float *q, *k, *v, *o, *dy;
    float *y, *lse, *dq, *dk, *dv;
    float *scratch;
    size_t per_thread;         /* floats of it */
    size_t tile_q, tile_k, ld; /* a tile of queries, of keys; the length of a row of scores: whole register tiles */
    size_t keys, queries;      /* floats of a packed tile of either */
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

/* Tokens in pieces as equal as possible and at most `most`, which is a multiple of `unit`. */
static size_t piece(size_t n, size_t most, size_t unit)
{
    size_t pieces = (n + most - 1) / most;

    return least(((n + pieces - 1) / pieces + unit - 1) / unit * unit, n);
}

/* Terms of a sum, as kernel.h counts them. */
static size_t terms(const struct attention *a, size_t n)
{
    return a->bf16 ? kernel_pairs(n) : n;
}

static struct attention describe(const struct op_call *c, bool back)
{
    struct attention a = {.n = c->in[Q]->shape.dim[0], .heads = c->attr->heads, .c = elementwise_last(c->in[Q]),
                          .causal = c->attr->causal, .bf16 = c->arithmetic == DT_BF16 && kernel_has_bf16()};

    a.d = a.c / a.heads;
    a.tq = tokens(c->in[Q]);
    a.tk = tokens(c->in[K]);
    a.scale = (float)(1 / sqrt((double)a.d));
    a.q = c->in[Q]->data;
    a.k = c->in[K]->data;
    a.v = c->in[V]->data;
    a.scratch = c->scratch;
    a.tile_q = piece(a.tq, back ? BACK_Q : TILE_Q, KERNEL_ROWS);
    a.tile_k = piece(a.tk, TILE_K, kernel_columns());
    a.ld = kernel_packed(1, a.tile_k);
    a.keys = whole(kernel_packed(a.tile_k, a.d) > kernel_packed(a.d, a.tile_k) ? kernel_packed(a.tile_k, a.d)
                                                                               : kernel_packed(a.d, a.tile_k));
    a.queries = whole(kernel_packed(a.tile_q, a.d));
    /* forward: packed k, v, a strip of scores, sum [tile_q, d], m, l [tile_q], in bf16 the strip's and q's pairs;
     * backward: packed k twice and v, packed q and dy, two score tiles, D [tokens of q], in bf16 pairs of q, dy and a tile */
    a.per_thread = back ? 3 * a.keys + 2 * a.queries + whole(2 * a.tile_q * a.ld + a.tq)
                        : 2 * a.keys + whole(KERNEL_ROWS * a.ld + a.tile_q * (a.d + 2));
    if (a.bf16)
        a.per_thread += back ? whole(a.tile_q * (2 * terms(&a, a.d) + a.ld / 2))
                             : whole(KERNEL_ROWS * a.ld / 2 + a.tile_q * terms(&a, a.d));
    return a;
}

/* Packs keys k0 .. of k or v as columns, for scores; as rows, for sums over keys. */
static void pack_columns(const struct attention *a, float *dst, const float *src, size_t cols)
{
    (a->bf16 ? kernel_pack_pairs_transposed : kernel_pack_transposed)(dst, terms(a, a->d), 0, src, DT_F32, a->c, a->d, cols);
}

static void pack_rows(const struct attention *a, float *dst, const float *src, size_t rows)
{
    (a->bf16 ? kernel_pack_pairs : kernel_pack)(dst, terms(a, rows), 0, src, DT_F32, a->c, rows, a->d);
}

/* s [rows, ld] = scale * x [rows, d] bT, b packed; x: rows of q or dy, in bf16 pairs behind each other; columns beyond the
 * tile's keys are zeros */
static void scores(const struct attention *a, float scale, const float *x, size_t rows, const float *packed, size_t cols,
                   float *s)
{
    const struct kernel_call c = {.rows = rows, .cols = kernel_packed(1, cols), .k = terms(a, a->d), .x = x,
                                  .row = a->bf16 ? terms(a, a->d) : a->c, .step = 1, .packed = packed, .y = s, .ldy = a->ld,
                                  .alpha = scale, .bf16 = a->bf16};

    kernel_multiply(&c);
}

/* Queries see keys up to their own place: the rest of a tile on the diagonal becomes -infinity. */
static void mask(float *s, size_t ld, size_t rows, size_t cols, size_t q0, size_t k0)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = q0 + i + 1 > k0 ? q0 + i + 1 - k0 : 0; j < cols; j++)
            s[i * ld + j] = -INFINITY;
}

/* The order does not matter to a maximum, so the compiler may choose it. */
static inline __attribute__((always_inline)) float row_max(const float *s, size_t n, float start)
{
    float best = start;

#pragma omp simd reduction(max : best)
    for (size_t j = 0; j < n; j++)
        best = s[j] > best ? s[j] : best;
    return best;
}

/* s = 2^(s - m); returns the sum */
static inline __attribute__((always_inline)) float row_exp(float *s, size_t n, float m)
{
    float lane[LANES] = {0}, sum = 0;
    size_t j = 0;

    for (; j + LANES <= n; j += LANES)
        for (size_t l = 0; l < LANES; l++) {
            float e = vmath_exp2_down(s[j + l] - m);

            s[j + l] = e;
            lane[l] += e;
        }
    for (; j < n; j++) {
        s[j] = vmath_exp2_down(s[j] - m);
        sum += s[j];
    }
    for (size_t l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

/* To bf16, to nearest even; for what is no NaN and far from overflow. */
static inline uint16_t narrow(float x)
{
    uint32_t u = vmath_bits(x);

    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* A strip of scores into the running softmax. */
SIMD_CLONES static void absorb(float *s, size_t ld, size_t rows, size_t cols, float *m, float *l, float *sum, size_t d)
{
    for (size_t i = 0; i < rows; i++) {
        float best = row_max(s + i * ld, cols, m[i]);

        if (best > m[i]) {
            float shrink = vmath_exp2_down(m[i] - best);

            for (size_t j = 0; j < d; j++)
                sum[i * d + j] *= shrink;
            l[i] *= shrink;
            m[i] = best;
        }
        l[i] += row_exp(s + i * ld, cols, m[i]);
    }
}

/* Where a piece of the forward stands. */
struct place {
    size_t q0, rows, at; /* its queries; the first one's element of q and y */
    float *k, *v, *s;    /* a tile's keys and values, packed; a strip of scores */
    float *sum, *m, *l;  /* [rows, d], [rows], [rows] */
    float *s2, *q2;      /* bf16: the strip, and q, in pairs */
};

/* The keys k0 .. k0 + cols - 1, packed, against all queries of the piece, a strip at a time. */
static void forward_keys(const struct attention *a, const struct place *p, size_t k0, size_t cols)
{
    for (size_t r = 0, rows; r < p->rows; r += rows) {
        struct kernel_call c = {.cols = a->d, .k = terms(a, cols), .x = a->bf16 ? p->s2 : p->s,
                                .row = a->bf16 ? terms(a, cols) : a->ld, .step = 1, .packed = p->v, .y = p->sum + r * a->d,
                                .ldy = a->d, .alpha = 1, .add = true, .bf16 = a->bf16};

        rows = least(KERNEL_ROWS, p->rows - r);
        if (a->causal && p->q0 + r + rows <= k0)
            continue;
        scores(a, a->scale * log2e, a->bf16 ? p->q2 + r * terms(a, a->d) : a->q + p->at + r * a->c, rows, p->k, cols, p->s);
        if (a->causal)
            mask(p->s, a->ld, rows, cols, p->q0 + r, k0);
        absorb(p->s, a->ld, rows, cols, p->m + r, p->l + r, p->sum + r * a->d, a->d);
        if (a->bf16)
            kernel_pair_rows(p->s2, p->s, a->ld, rows, cols);
        c.rows = rows;
        kernel_multiply(&c);
    }
}

SIMD_CLONES static void finish(const struct attention *a, const struct place *p, float *lse)
{
    for (size_t i = 0; i < p->rows; i++) {
        const float *restrict sum = p->sum + i * a->d;
        float *restrict y = a->y + p->at + i * a->c, inverse = 1 / p->l[i];

        for (size_t j = 0; j < a->d; j++)
            y[j] = sum[j] * inverse;
        lse[i] = p->m[i] * ln2 + logf(p->l[i]);
    }
}

static int forward_piece(void *ctx, size_t index, struct err *err)
{
    const struct attention *a = ctx;
    size_t tiles = (a->tq + a->tile_q - 1) / a->tile_q, head = index / tiles % a->heads, n = index / tiles / a->heads;
    struct place p = {.q0 = index % tiles * a->tile_q, .k = a->scratch + (size_t)thread_index() * a->per_thread};
    size_t end;

    (void)err;
    p.rows = least(a->tile_q, a->tq - p.q0);
    p.at = (n * a->tq + p.q0) * a->c + head * a->d;
    p.v = p.k + a->keys;
    p.s = p.v + a->keys;
    p.sum = p.s + KERNEL_ROWS * a->ld;
    p.m = p.sum + a->tile_q * a->d;
    p.l = p.m + a->tile_q;
    p.s2 = p.l + a->tile_q;
    p.q2 = p.s2 + KERNEL_ROWS * a->ld / 2;
    if (a->bf16)
        kernel_pair_rows(p.q2, a->q + p.at, a->c, p.rows, a->d);
    end = a->causal ? least(p.q0 + p.rows, a->tk) : a->tk;
    memset(p.sum, 0, p.rows * a->d * sizeof *p.sum);
    for (size_t i = 0; i < p.rows; i++) {
        p.m[i] = -INFINITY;
        p.l[i] = 0;
    }
    for (size_t k0 = 0; k0 < end; k0 += a->tile_k) {
        size_t cols = least(a->tile_k, end - k0), key = (n * a->tk + k0) * a->c + head * a->d;

        pack_columns(a, p.k, a->k + key, cols);
        pack_rows(a, p.v, a->v + key, cols);
        forward_keys(a, &p, k0, cols);
    }
    finish(a, &p, a->lse + (n * a->heads + head) * a->tq + p.q0);
    return 0;
}

static int forward(const struct op_call *c, struct err *err)
{
    struct attention a = describe(c, false);

    a.y = c->out[Y]->data;
    a.lse = c->out[LSE]->data;
    return thread_for(a.n * a.heads * ((a.tq + a.tile_q - 1) / a.tile_q), forward_piece, &a, err);
}

/* From scores s in units of ln 2, and dp = dy vT: p = 2^(s - lse / ln 2) in s, ds = scale p (dp - D) in dp. */
SIMD_CLONES static void slopes(float *restrict s, float *restrict dp, size_t ld, size_t rows, size_t cols, const float *lse,
                               const float *dot, float scale)
{
    for (size_t i = 0; i < rows; i++) {
        float shift = lse[i] * log2e;

        for (size_t j = 0; j < cols; j++) {
            float p = vmath_exp2_down(s[i * ld + j] - shift);

            s[i * ld + j] = p;
            dp[i * ld + j] = scale * p * (dp[i * ld + j] - dot[i]);
        }
    }
}

/* The same in bf16. Sums go over queries and over keys: p and ds for the former with the pairs of two rows in one (in place:
 * row i from rows 2i and 2i + 1), ds for the latter row by row in `across`. */
SIMD_CLONES static void slope_pairs(float *s, float *dp, uint16_t *restrict across, size_t ld, size_t rows, size_t cols,
                                    const float *lse, const float *dot, float scale)
{
    for (size_t i = 0; i < rows; i += 2) {
        size_t other = i + 1 < rows ? i + 1 : i; /* an odd last row is paired with zeros */
        float shift0 = lse[i] * log2e, shift1 = lse[other] * log2e, dot0 = dot[i], dot1 = dot[other];
        const float *s0 = s + i * ld, *s1 = s + other * ld, *d0 = dp + i * ld, *d1 = dp + other * ld;
        uint32_t high = other > i ? 0xffff0000u : 0;
        float *p = s + i / 2 * ld, *ds = dp + i / 2 * ld;
        uint16_t *restrict a0 = across + i * ld, *restrict a1 = across + other * ld;

#pragma omp simd
        for (size_t j = 0; j < cols; j++) {
            float p0 = vmath_exp2_down(s0[j] - shift0), p1 = vmath_exp2_down(s1[j] - shift1);
            uint16_t x0 = narrow(scale * p0 * (d0[j] - dot0)), x1 = narrow(scale * p1 * (d1[j] - dot1));

            a1[j] = x1;
            a0[j] = x0;
            p[j] = vmath_float(narrow(p0) | ((uint32_t)narrow(p1) << 16 & high));
            ds[j] = vmath_float(x0 | ((uint32_t)x1 << 16 & high));
        }
        if (cols % 2)
            a0[cols] = a1[cols] = 0;
    }
}

/* out [rows, d], columns of [.., c], (+)= op(p) [rows, k] b [k, d], b packed; turned: p is stored [k, rows] */
static void gather(const struct attention *a, bool turned, size_t rows, size_t k, const float *p, const float *packed, bool add,
                   float *out)
{
    size_t ld = turned ? a->ld : terms(a, a->ld);
    const struct kernel_call c = {.rows = rows, .cols = a->d, .k = terms(a, k), .x = p, .row = turned ? 1 : ld,
                                  .step = turned ? ld : 1, .packed = packed, .y = out, .ldy = a->c, .alpha = 1, .add = add,
                                  .bf16 = a->bf16};

    kernel_multiply(&c);
}

/* What a head of the backward has in scratch, packed: a tile's keys for scores and for dq, its values; a tile's queries and
 * dy. Then two tiles [tile_q, ld], and D = sum of dy * y for each query. */
struct room {
    float *k, *k_rows, *v, *q, *dy, *s, *dp, *dot;
    float *q2, *dy2, *across; /* bf16: pairs of q, dy, ds */
};

static struct room divide(const struct attention *a)
{
    struct room r = {.k = a->scratch + (size_t)thread_index() * a->per_thread};

    r.k_rows = r.k + a->keys;
    r.v = r.k_rows + a->keys;
    r.q = r.v + a->keys;
    r.dy = r.q + a->queries;
    r.s = r.dy + a->queries;
    r.dp = r.s + a->tile_q * a->ld;
    r.dot = r.dp + a->tile_q * a->ld;
    r.q2 = r.dot + a->tq;
    r.dy2 = r.q2 + a->tile_q * terms(a, a->d);
    r.across = r.dy2 + a->tile_q * terms(a, a->d);
    return r;
}

/* A packed tile of keys, from element ka of k and v, against a tile of queries. first: dk and dv of these keys are unset. */
static void backward_tile(const struct attention *a, const struct room *r, size_t lse, size_t q0, size_t qa, size_t k0,
                          size_t ka, bool first)
{
    size_t rows = least(a->tile_q, a->tq - q0), cols = least(a->tile_k, a->tk - k0);

    if (a->bf16) {
        kernel_pair_rows(r->q2, a->q + qa, a->c, rows, a->d);
        kernel_pair_rows(r->dy2, a->dy + qa, a->c, rows, a->d);
    }
    scores(a, a->scale * log2e, a->bf16 ? r->q2 : a->q + qa, rows, r->k, cols, r->s);
    if (a->causal)
        mask(r->s, a->ld, rows, cols, q0, k0);
    scores(a, 1, a->bf16 ? r->dy2 : a->dy + qa, rows, r->v, cols, r->dp);
    if (a->bf16)
        slope_pairs(r->s, r->dp, (uint16_t *)r->across, a->ld, rows, cols, a->lse + lse + q0, r->dot + q0, a->scale);
    else
        slopes(r->s, r->dp, a->ld, rows, cols, a->lse + lse + q0, r->dot + q0, a->scale);
    if (a->dv) {
        pack_rows(a, r->dy, a->dy + qa, rows);
        gather(a, true, cols, rows, r->s, r->dy, !first, a->dv + ka);
    }
    if (a->dk) {
        pack_rows(a, r->q, a->q + qa, rows);
        gather(a, true, cols, rows, r->dp, r->q, !first, a->dk + ka);
    }
    if (a->dq)
        gather(a, false, rows, cols, a->bf16 ? r->across : r->dp, r->k_rows, k0 > 0, a->dq + qa);
}

/* A piece is one head of one sample: dq, dk and dv are all summed in one order. */
static int backward_head(void *ctx, size_t index, struct err *err)
{
    const struct attention *a = ctx;
    size_t n = index / a->heads, query = n * a->tq * a->c + index % a->heads * a->d;
    struct room r = divide(a);

    (void)err;
    for (size_t i = 0; i < a->tq; i++) {
        size_t at = query + i * a->c;
        float sum = 0;

        for (size_t j = 0; j < a->d; j++)
            sum += a->dy[at + j] * a->o[at + j];
        r.dot[i] = sum;
    }
    for (size_t k0 = 0; k0 < a->tk; k0 += a->tile_k) {
        size_t start = a->causal ? k0 / a->tile_q * a->tile_q : 0, cols = least(a->tile_k, a->tk - k0);
        size_t ka = (n * a->tk + k0) * a->c + index % a->heads * a->d;

        pack_columns(a, r.k, a->k + ka, cols);
        pack_columns(a, r.v, a->v + ka, cols);
        pack_rows(a, r.k_rows, a->k + ka, cols);
        for (size_t q0 = start; q0 < a->tq; q0 += a->tile_q)
            backward_tile(a, &r, index * a->tq, q0, query + q0 * a->c, k0, ka, q0 == start);
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

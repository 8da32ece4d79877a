#include "ref/op/gemm.h"

#include <string.h>

#include "ref/base/simd.h"
#include "ref/base/thread.h"
#include "ref/op/kernel_bf16.h"
#include "ref/op/vmath.h"

/* The weight is packed first, by all threads, as many columns of it as PACK floats hold (4 MB: a shared cache's share); then
 * each piece of the product is TILE_M rows by about TILE_N columns, its sum cut in pieces of about TILE_K, so that a packed
 * panel (640 KB) stays in a core's own cache while the rows go by. */
enum { TILE_M = 8 * KERNEL_ROWS, TILE_N = 320, TILE_K = 512, PACK = 1 << 20 };

/* In bf16 a piece is wide, since its rows of X are converted for it: what is packed then comes from the shared cache, slowly
 * enough. Where there are few rows, pieces are narrower, so that there are about PIECES of them. */
enum { LEAST_BF16 = 16, WIDE_BF16 = 8, PIECES = 16 };

struct product {
    const struct gemm *g;
    size_t block, tile_n, tile_k; /* columns packed together, columns and depth of a piece */
    size_t first, cols;           /* the block's */
    float *packed, *patches;      /* a thread's patches: [tile_m, tile_k] of f32, then, in bf16, of pairs */
    size_t per_thread;            /* floats of it */
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The length of n's pieces when they are as equal as possible and at most `most` (a multiple of `unit`, as the result is). */
static size_t piece(size_t n, size_t most, size_t unit)
{
    size_t pieces = (n + most - 1) / most, size = (n + pieces - 1) / pieces;

    return least((size + unit - 1) / unit * unit, most);
}

static size_t count(size_t n, size_t size)
{
    return (n + size - 1) / size;
}

/* Terms of a sum, as kernel.h counts them. */
static size_t terms(const struct gemm *g, size_t k)
{
    return g->bf16 ? kernel_pairs(k) : k;
}

static size_t patch_floats(const struct gemm *g, size_t tile_k)
{
    return (least(TILE_M, g->m) * least(tile_k, g->k) + 15) / 16 * 16;
}

/* Columns of a piece. */
static size_t wide(const struct gemm *g)
{
    size_t unit = kernel_columns(), most = g->bf16 ? WIDE_BF16 * TILE_N : TILE_N;
    size_t across = count(PIECES, count(g->m, TILE_M)), share = count(count(g->n, across), unit) * unit;

    return share < 2 * unit ? 2 * unit : least(share, most);
}

static struct product describe(const struct gemm *g)
{
    size_t unit = kernel_columns(), most = PACK / terms(g, g->k) / unit * unit;
    struct product p = {.g = g};

    p.block = piece(g->n, most > TILE_N ? most : TILE_N, unit);
    p.tile_n = piece(least(p.block, g->n), wide(g), unit);
    p.tile_k = piece(g->k, TILE_K, 16);
    p.per_thread = patch_floats(g, p.tile_k) * (g->bf16 ? 2 : 1);
    p.packed = g->scratch;
    p.patches = p.packed ? p.packed + kernel_packed(terms(g, g->k), p.block) : NULL;
    return p;
}

bool gemm_takes_bf16(size_t m, size_t n, size_t k)
{
    return kernel_has_bf16() && m >= LEAST_BF16 && n >= LEAST_BF16 && k >= LEAST_BF16;
}

size_t gemm_scratch(size_t m, size_t n, size_t k, int threads)
{
    size_t most = 0;

    for (int bf16 = 0; bf16 <= gemm_takes_bf16(m, n, k); bf16++) {
        const struct gemm g = {.m = m, .n = n, .k = k, .bf16 = bf16};
        struct product p = describe(&g);
        size_t forward = kernel_packed(terms(&g, k), p.block) + (size_t)threads * p.per_thread;
        size_t gradient = (size_t)threads * (p.per_thread + kernel_packed(TILE_M, p.tile_k));

        most = forward > most ? forward : most;
        most = gradient > most ? gradient : most;
    }
    return most * sizeof(float);
}

/* Packs rows [r0, r0 + rows) x columns [c0, c0 + cols) of W into dst, panels that are `rows` deep. */
static void pack(const struct gemm *g, float *dst, size_t r0, size_t rows, size_t c0, size_t cols)
{
    const struct gemm_weight *w = &g->w;
    const char *base = w->data;
    size_t size = dtype_size(w->dtype), k = terms(g, rows);

    if (w->transposed) {
        (g->bf16 ? kernel_pack_pairs_transposed : kernel_pack_transposed)(dst, k, 0, base + (c0 * w->ld + r0) * size, w->dtype,
                                                                         w->ld, rows, cols);
        return;
    }
    for (size_t r = 0, part; r < rows; r += part) {
        size_t period = w->period ? w->period : rows + r0, in = (r0 + r) % period;

        part = least(period - in, rows - r);
        (g->bf16 ? kernel_pack_pairs : kernel_pack)(dst, k, terms(g, r), base + ((r0 + r) / period * w->jump + in * w->ld + c0) * size,
                                                    w->dtype, w->ld, part, cols);
    }
}

/* One panel of the block, one piece of its depth. A piece of the depth is packed as a matrix of its own. */
static int pack_panel(void *ctx, size_t index, struct err *err)
{
    const struct product *p = ctx;
    const struct gemm *g = p->g;
    size_t depths = count(g->k, p->tile_k), k0 = index % depths * p->tile_k, kk = least(p->tile_k, g->k - k0);
    size_t c0 = index / depths * kernel_columns();

    (void)err;
    /* a piece begins behind the pieces before it, whose panels are all as wide as this block's */
    pack(g, p->packed + kernel_packed(terms(g, k0), p->cols) + kernel_packed(terms(g, kk), c0), k0, kk, p->first + c0,
         least(kernel_columns(), p->cols - c0));
    return 0;
}

#define ACTIVATE(name, f)                                                                                          \
    SIMD_CLONES static void name(float *restrict y, size_t n)                                                      \
    {                                                                                                              \
        for (size_t i = 0; i < n; i++)                                                                             \
            y[i] = f(y[i]);                                                                                        \
    }

ACTIVATE(activate_silu, vmath_silu)
ACTIVATE(activate_gelu, vmath_gelu)
ACTIVATE(activate_quick_gelu, vmath_quick_gelu)

static void activate(enum op_act act, float *y, size_t n)
{
    switch (act) {
    case ACT_NONE: break;
    case ACT_SILU: activate_silu(y, n); break;
    case ACT_GELU: activate_gelu(y, n); break;
    case ACT_QUICK_GELU: activate_quick_gelu(y, n); break;
    }
}

SIMD_CLONES static void add_to(float *restrict y, const float *restrict b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += b[i];
}

/* Before the sums: what the tile starts from, so that bias and residual cost no extra pass. Returns whether y is to be added to. */
static bool start_tile(const struct gemm *g, size_t m0, size_t rows, size_t n0, size_t cols)
{
    for (size_t i = 0; i < rows; i++) {
        float *y = g->y + (m0 + i) * g->ldy + n0;
        const float *r = g->residual ? g->residual + (m0 + i) * g->ldy + n0 : NULL;

        if (r && r != y)
            memcpy(y, r, cols * sizeof *y);
        if (g->bias && r)
            add_to(y, g->bias + n0, cols);
        else if (g->bias)
            memcpy(y, g->bias + n0, cols * sizeof *y);
    }
    return g->residual || g->bias;
}

static void end_tile(const struct gemm *g, size_t m0, size_t rows, size_t n0, size_t cols)
{
    for (size_t i = 0; g->act != ACT_NONE && i < rows; i++)
        activate(g->act, g->y + (m0 + i) * g->ldy + n0, cols);
}

/* Rows [m0, m0 + rows), columns [k0, k0 + kk) of X as the product takes them: where they lie, laid out, or rounded to pairs. */
static void aim(const struct product *p, struct kernel_call *c, size_t m0, size_t k0, size_t kk)
{
    const struct gemm *g = p->g;
    float *patch = p->patches + (size_t)thread_index() * p->per_thread, *pairs = patch + patch_floats(g, p->tile_k);

    c->k = terms(g, kk);
    c->x = g->x ? g->x + m0 * g->ldx + k0 : patch;
    c->row = g->x ? g->ldx : kk;
    if (!g->x)
        g->rows(g->ctx, patch, m0, c->rows, k0, kk);
    if (g->bf16) {
        kernel_pair_rows(pairs, c->x, c->row, c->rows, kk);
        c->x = pairs;
        c->row = c->k;
    }
}

static int run_tile(void *ctx, size_t index, struct err *err)
{
    const struct product *p = ctx;
    const struct gemm *g = p->g;
    size_t down = count(g->m, TILE_M), m0 = index % down * TILE_M, rows = least(TILE_M, g->m - m0);
    size_t c0 = index / down * p->tile_n, cols = least(p->tile_n, p->cols - c0), n0 = p->first + c0;
    struct kernel_call c = {.rows = rows, .cols = cols, .step = 1, .y = g->y + m0 * g->ldy + n0, .ldy = g->ldy,
                            .alpha = g->scale != 0 ? g->scale : 1, .add = start_tile(g, m0, rows, n0, cols), .bf16 = g->bf16};

    (void)err;
    for (size_t k0 = 0; k0 < g->k; k0 += p->tile_k, c.add = true) {
        aim(p, &c, m0, k0, least(p->tile_k, g->k - k0));
        c.packed = p->packed + kernel_packed(terms(g, k0), p->cols) + kernel_packed(c.k, c0);
        kernel_multiply(&c);
    }
    end_tile(g, m0, rows, n0, cols);
    return 0;
}

int gemm_run(const struct gemm *g, struct err *err)
{
    struct product p = describe(g);

    for (p.first = 0; p.first < g->n; p.first += p.block) {
        p.cols = least(p.block, g->n - p.first);
        if (thread_for(count(p.cols, kernel_columns()) * count(g->k, p.tile_k), pack_panel, &p, err) < 0 ||
            thread_for(count(g->m, TILE_M) * count(p.cols, p.tile_n), run_tile, &p, err) < 0)
            return -1;
    }
    return 0;
}

struct gradient {
    struct product p;
    const float *dy;
    float *dw;
};

/* Columns of dw in pieces; each sums over all rows in order, so the result does not depend on who computes it. */
static int gradient_tile(void *ctx, size_t index, struct err *err)
{
    const struct gradient *d = ctx;
    const struct gemm *g = d->p.g;
    size_t tile = d->p.tile_k, k0 = index * tile, kk = least(tile, g->k - k0);
    float *patch = (float *)g->scratch + (size_t)thread_index() * (d->p.per_thread + kernel_packed(TILE_M, tile));
    float *packed = patch + d->p.per_thread;

    (void)err;
    for (size_t m0 = 0; m0 < g->m; m0 += TILE_M) {
        size_t rows = least(TILE_M, g->m - m0), ldx = g->x ? g->ldx : kk;
        struct kernel_call c = {.rows = g->n, .cols = kk, .k = rows, .x = d->dy + m0 * g->n, .row = 1, .step = g->n,
                                .packed = packed, .y = d->dw + k0, .ldy = g->k, .alpha = g->scale != 0 ? g->scale : 1,
                                .add = m0 > 0};

        if (!g->x)
            g->rows(g->ctx, patch, m0, rows, k0, kk);
        kernel_pack(packed, rows, 0, g->x ? g->x + m0 * ldx + k0 : patch, DT_F32, ldx, rows, kk);
        kernel_multiply(&c);
    }
    return 0;
}

int gemm_weight_gradient(const struct gemm *g, const float *dy, float *dw, struct err *err)
{
    struct gemm plain = *g;
    struct gradient d = {.dy = dy, .dw = dw};

    plain.bf16 = false; /* the few weights that are trained are narrow: no time is lost */
    d.p = describe(&plain);
    return thread_for(count(g->k, d.p.tile_k), gradient_tile, &d, err);
}

#include "ref/op/gemm.h"

#include <cblas.h>
#include <string.h>

#include "ref/base/simd.h"
#include "ref/base/thread.h"
#include "ref/op/vmath.h"

/* A tile is TILE_M rows by about TILE_N columns, its sum cut in panels of TILE_K: a converted panel of W (640 KB) and the rows
 * beside it (512 KB) stay in the caches. 256 rows make the conversion of a panel about a thirtieth of the work on it. */
enum { TILE_M = 256, TILE_N = 320, TILE_K = 512 };

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Pieces of n as equal as possible and at most `most` long: their number; *size is the length of all but the last. */
static size_t cut(size_t n, size_t most, size_t *size)
{
    size_t pieces = (n + most - 1) / most;

    *size = (n + pieces - 1) / pieces;
    *size = least((*size + 15) / 16 * 16, most);
    return (n + *size - 1) / *size;
}

/* Floats of scratch a thread has: rows of X, then a panel of W; each rounded up to whole cache lines. */
static size_t patch_floats(size_t m, size_t k)
{
    return (least(TILE_M, m) * least(TILE_K, k) + 15) / 16 * 16;
}

static size_t thread_floats(size_t m, size_t n, size_t k)
{
    return patch_floats(m, k) + (least(TILE_N, (n + 15) / 16 * 16) * least(TILE_K, k) + 15) / 16 * 16;
}

size_t gemm_scratch(size_t m, size_t n, size_t k, int threads)
{
    return (size_t)threads * thread_floats(m, n, k) * sizeof(float);
}

/* Converts W rows [r0, r0 + rows) x columns [c0, c0 + cols) in the stored orientation: dst [cols, rows] when transposed,
 * [rows, cols] else. */
static void convert_panel(const struct gemm_weight *w, float *dst, size_t r0, size_t rows, size_t c0, size_t cols)
{
    const char *base = w->data;
    size_t size = dtype_size(w->dtype);
    size_t lines = w->transposed ? cols : rows, length = w->transposed ? rows : cols;

    for (size_t i = 0; i < lines; i++) {
        size_t at;

        if (w->transposed)
            at = (c0 + i) * w->ld + r0;
        else if (w->period)
            at = (r0 + i) / w->period * w->jump + (r0 + i) % w->period * w->ld + c0;
        else
            at = (r0 + i) * w->ld + c0;
        dtype_convert(dst + i * length, DT_F32, base + at * size, w->dtype, length);
    }
}

/* f32 weights need no panel: BLAS reads them where they are. */
static const float *panel(const struct gemm_weight *w, float *dst, size_t r0, size_t rows, size_t c0, size_t cols, size_t *ld)
{
    if (w->dtype == DT_F32 && !w->period) {
        *ld = w->ld;
        return (const float *)w->data + (w->transposed ? c0 * w->ld + r0 : r0 * w->ld + c0);
    }
    convert_panel(w, dst, r0, rows, c0, cols);
    *ld = w->transposed ? rows : cols;
    return dst;
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

static int run_tile(void *ctx, size_t index, struct err *err)
{
    const struct gemm *g = ctx;
    size_t size_n, across = cut(g->n, TILE_N, &size_n);
    size_t m0 = index / across * TILE_M, n0 = index % across * size_n;
    size_t rows = least(TILE_M, g->m - m0), cols = least(size_n, g->n - n0);
    float *patch = (float *)g->scratch + (size_t)thread_index() * thread_floats(g->m, g->n, g->k);
    float *converted = patch + patch_floats(g->m, g->k), scale = g->scale != 0 ? g->scale : 1;
    bool add = start_tile(g, m0, rows, n0, cols);

    (void)err;
    for (size_t k0 = 0; k0 < g->k; k0 += TILE_K) {
        size_t kk = least(TILE_K, g->k - k0), ldw, ldx = g->ldx;
        const float *w = panel(&g->w, converted, k0, kk, n0, cols, &ldw), *x = g->x ? g->x + m0 * ldx + k0 : patch;

        if (!g->x) {
            g->rows(g->ctx, patch, m0, rows, k0, kk);
            ldx = kk;
        }
        cblas_sgemm(CblasRowMajor, CblasNoTrans, g->w.transposed ? CblasTrans : CblasNoTrans, (int)rows, (int)cols, (int)kk,
                    scale, x, (int)ldx, w, (int)ldw, add || k0 ? 1 : 0, g->y + m0 * g->ldy + n0, (int)g->ldy);
    }
    end_tile(g, m0, rows, n0, cols);
    return 0;
}

int gemm_run(const struct gemm *g, struct err *err)
{
    struct gemm copy = *g;
    size_t size_n, down = (g->m + TILE_M - 1) / TILE_M;

    return thread_for(down * cut(g->n, TILE_N, &size_n), run_tile, &copy, err);
}

struct gradient {
    const struct gemm *g;
    const float *dy;
    float *dw;
};

/* Columns of dw in pieces; each sums over all rows in order, so the result does not depend on who computes it. */
static int gradient_tile(void *ctx, size_t index, struct err *err)
{
    const struct gradient *d = ctx;
    const struct gemm *g = d->g;
    size_t k0 = index * TILE_K, kk = least(TILE_K, g->k - k0);
    float *patch = (float *)g->scratch + (size_t)thread_index() * thread_floats(g->m, g->n, g->k);

    (void)err;
    for (size_t m0 = 0; m0 < g->m; m0 += TILE_M) {
        size_t rows = least(TILE_M, g->m - m0), ldx = g->ldx;
        const float *x = g->x ? g->x + m0 * ldx + k0 : patch;

        if (!g->x) {
            g->rows(g->ctx, patch, m0, rows, k0, kk);
            ldx = kk;
        }
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)g->n, (int)kk, (int)rows, g->scale != 0 ? g->scale : 1,
                    d->dy + m0 * g->n, (int)g->n, x, (int)ldx, m0 ? 1 : 0, d->dw + k0, (int)g->k);
    }
    return 0;
}

int gemm_weight_gradient(const struct gemm *g, const float *dy, float *dw, struct err *err)
{
    struct gradient d = {g, dy, dw};

    return thread_for((g->k + TILE_K - 1) / TILE_K, gradient_tile, &d, err);
}

/* Krylov space of A itself: for small ranks (svd.h, points 1 and 2). */
#include "ref/lora/svd_work.h"

#include <math.h>

/* Rounding. An entry of A'A is a sum of products with errors of eps |a_i| |a_j| that are as good as independent, so the
 * error matrix has norm about 2 sqrt(cols) eps total / cols, and a sum of k eigenvalues moves by at most k times that
 * (Fan). Eigenvalues of the projected matrix and squared norms add a few eps of total. Factor 2 over what was measured. */
double svd_rounding(size_t cols, size_t k)
{
    return SVD_EPS * (4 * (double)k / sqrt((double)cols) + 4);
}

void svd_level_keep(struct svd_level *l, const float *values, size_t d, size_t k)
{
    l->kept = 0;
    l->usable = 0;
    for (size_t i = 0; i < k; i++) {
        double v = (double)values[d - 1 - i];

        l->kept += v > 0 ? v : 0;
        if (v > 0 && v >= 1e-3 * (double)values[d - 1] && (i + 1 >= d || v > 1.01 * (double)values[d - 2 - i]))
            l->usable = i + 1;
    }
    l->more_count = 0;
    for (size_t i = k; i < d && l->more_count < SVD_MORE && values[d - 1 - i] > 0; i++)
        l->more[l->more_count++] = sqrtf(values[d - 1 - i]);
}

double svd_level_allowance(const struct svd_level *l, size_t cols, size_t k, double tolerance)
{
    double tail = l->total > l->kept ? l->total - l->kept : 0;

    return tail * (1 - 1 / ((1 + tolerance) * (1 + tolerance))) - svd_rounding(cols, k) * l->total;
}

struct sketch {
    const struct svd_matrix *a;
    float *panel;
};

static void apply_matrix(void *ctx, const float *x, size_t s, float *z)
{
    struct sketch *c = ctx;

    svd_times_gram(c->a, x, s, c->panel, z);
}

/* The rest's largest eigenvalue is at most its trace, the energy that the space leaves: with w = t_k - trace the k largest
 * eigenvalues of G sum up to at most those of T + R'R / w. Sets l->excess; false when there is no such w. */
static bool prove_by_trace(const struct svd_krylov *kr, const float *values, size_t k, struct svd_level *l, struct svd *w,
                           float *scratch, struct err *err)
{
    size_t d = kr->dim;
    double inside = 0, gap, sum = 0;

    for (size_t i = 0; i < d; i++)
        inside += (double)values[i];
    gap = (double)values[d - k] - fmax(l->total - inside, 0) - 8 * SVD_EPS * l->total;
    if (gap <= 0 || svd_krylov_ritz(kr, gap, scratch, NULL, w, err) != 0)
        return false;
    for (size_t i = 0; i < k; i++)
        sum += (double)scratch[d - 1 - i];
    l->excess = sum > l->kept ? sum - l->kept : 0;
    l->top = (double)scratch[d - 1];
    return true;
}

int svd_sketch(struct svd *w, const struct svd_matrix *a, size_t k, double tolerance, uint64_t seed, float *v,
               struct svd_level *l, struct err *err)
{
    const size_t block = 16, cap = 96;
    struct svd_krylov kr;
    struct sketch c = {.a = a};
    float values[96], scratch[96], *vectors;

    l->method = SVD_SKETCH;
    l->proved = false;
    l->top = l->total;
    c.panel = svd_buffer(w, SVD_BUF_PANEL, block * SVD_PANEL, sizeof *c.panel, err);
    if (!c.panel || svd_krylov_start(&kr, w, a->cols, block, cap, seed, err) != 0)
        return -1;
    vectors = svd_buffer(w, SVD_BUF_PROOF, cap * cap, sizeof *vectors, err);
    if (!vectors)
        return -1;
    while (kr.dim < cap) {
        double allowed;

        if (svd_krylov_grow(&kr, apply_matrix, &c, err) != 0)
            return -1;
        if (kr.dim < 2 * block)
            continue;
        if (svd_krylov_ritz(&kr, 0, values, vectors, w, err) != 0)
            return -1;
        svd_level_keep(l, values, kr.dim, k);
        allowed = svd_level_allowance(l, a->cols, k, tolerance);
        if (!prove_by_trace(&kr, values, k, l, w, scratch, err)) {
            if (allowed > 0)
                break; /* a long tail: more blocks of this width would not bring its trace below t_k soon */
            continue;
        }
        if (l->excess <= allowed) {
            l->proved = true;
            break;
        }
        if (allowed <= 0 && l->excess <= svd_rounding(a->cols, k) * l->total)
            break; /* as good as f32 shows */
    }
    svd_krylov_vectors(&kr, vectors, k, v);
    return 0;
}


/* svd_truncate(): which way to go, what is taken off first, and the answer in its final form. */
#include "ref/lora/svd_device.h"

#include <cblas.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

#define MAX_LEVELS 6
#define SKETCH_RANK 16  /* above this rank, and below this width, the Gram matrix is the cheaper way */
#define SKETCH_COLS 256

struct svd *svd_new(struct err *err)
{
    return mem_zero(1, sizeof(struct svd), "a singular value decomposition", err);
}

void svd_free(struct svd *w)
{
    if (!w)
        return;
    for (int i = 0; i < SVD_BUF_COUNT; i++)
        free(w->buf[i]);
    svd_device_free(w->device);
    free(w);
}

int svd_use_device(struct svd *w, const struct ops *ops, struct err *err)
{
    if (!ops->device || ops->device->storage != DT_F32)
        return err_set(err, "a decomposition needs a GPU that computes in f32");
    return svd_device_new(&w->device, ops, err);
}

const char *svd_method_name(enum svd_method m)
{
    static const char *const names[] = {"zero", "sketch", "gram", "gram64", "lapack"};

    return names[m];
}

uint64_t svd_seed(const char *name)
{
    uint64_t h = 0xcbf29ce484222325ULL;

    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3ULL;
    return h;
}

/* The state of one decomposition */
struct run {
    struct svd *w;
    struct svd_matrix a; /* what is left to do */
    size_t k, done;      /* vectors wanted, and found */
    float *v, *y;        /* [k, cols], [k, rows] */
    double total, rest;  /* energy of the matrix as given, and of what is left */
    double tolerance;
    uint64_t seed;
    double coupling;  /* what went off last: sum of squares of what still couples it to the rest, */
    double least_off; /* its smallest eigenvalue, */
    double gain;      /* and what all that went off before can still gain from its rest */
    struct svd_info info;
};

/* What went off left its own rounding in the rest, which an optimal answer would not have */
static double less_rounding(const struct run *r, double least)
{
    double e = sqrt(fmax(least, 0)) - (r->info.levels > 0 ? SVD_FLOOR * sqrt(r->total) : 0);

    return e > 0 ? e * e : 0;
}

static int by_lapack(struct run *r, struct err *err)
{
    int levels = r->info.levels;
    double total = r->info.total;

    if (svd_by_lapack(r->w, &r->a, r->k - r->done, r->tolerance, r->v + r->done * r->a.cols, r->y + r->done * r->a.rows, &r->info,
                      err) != 0)
        return -1;
    r->info.levels = levels;
    r->info.total = total;
    r->info.least = less_rounding(r, r->info.least);
    r->done = r->k;
    return 0;
}

/* Images of `count` new vectors, which get length 1 first: E^2 is a small difference of squared lengths */
static double take(struct run *r, size_t count)
{
    float *v = r->v + r->done * r->a.cols, *y = r->y + r->done * r->a.rows;

    for (size_t i = 0; i < count; i++) {
        double length = sqrt(svd_energy(v + i * r->a.cols, r->a.cols));

        if (length > 0)
            cblas_sscal((int)r->a.cols, (float)(1 / length), v + i * r->a.cols, 1);
    }
    svd_times(&r->a, v, count, y);
    return svd_energy(y, count * r->a.rows);
}

/* By Cauchy, eigenvalue i + j of G is at most eigenvalue i of what is left after j vectors went off; the j largest sum up to
 * at most what went off plus coupling / (the smallest of it - the largest of the rest, at most `top`). */
static double gain_of(const struct run *r, double top)
{
    if (r->coupling == 0)
        return 0;
    return r->least_off > top ? r->coupling / (r->least_off - top) : HUGE_VAL;
}

/* Is the level's answer good enough with what was taken off before? Fills error and least. */
static bool settle(struct run *r, const struct svd_level *l, double kept, size_t k)
{
    double gain = r->gain + gain_of(r, fmin(l->top, l->total)), most;

    most = l->kept + l->excess + (k ? svd_rounding(r->a.cols, k) * l->total : 0) + gain;
    r->info.error = fmax(l->total - kept, 0);
    r->info.least = less_rounding(r, l->total - most);
    memcpy(r->info.more, l->more, sizeof l->more);
    r->info.more_count = l->more_count;
    r->info.method = l->method;
    return sqrt(r->info.error) <= (1 + r->tolerance) * sqrt(fmax(l->total - most, 0)) ||
           r->info.error <= SVD_FLOOR * SVD_FLOOR / 4 * r->total;
}

/* v [count, n] = (3 - v v') v / 2: one Newton step towards orthonormal rows. What is left of A is orthogonal to what went
 * off only as well as these are to one another. */
static int straighten(struct svd *w, float *v, size_t count, size_t n, struct err *err)
{
    float *g = svd_buffer(w, SVD_BUF_PANEL, count * count + count * n, sizeof *g, err), *copy = g + count * count;
    int c = (int)count, in = (int)n;

    if (!g)
        return -1;
    memcpy(copy, v, count * n * sizeof *v);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, c, c, in, 1, v, in, v, in, 0, g, c);
    for (size_t i = 0; i < count; i++)
        g[i * count + i] -= 1;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, c, in, c, -0.5f, g, c, copy, in, 1, v, in);
    return 0;
}

/* A -= y v' for the images y of v; b [count, cols] = A' y, what still couples them to the rest. Returns its energy. */
static double detach(struct run *r, size_t count, const float *v, float *y, float *b)
{
    svd_times(&r->a, v, count, y);
    svd_subtract(&r->a, y, v, count);
    svd_times_transposed(&r->a, y, count, b);
    return svd_energy(b, count * r->a.cols);
}

static void attach(struct run *r, size_t count, const float *v, float *y)
{
    cblas_sscal((int)(count * r->a.rows), -1, y, 1);
    svd_subtract(&r->a, y, v, count);
}

/* Takes the first `count` vectors off A and remembers how they couple to the rest. Vectors from the Gram matrix carry its
 * rounding; v + A'y / |y|^2, a step of the power method with the rest alone, has that of the rest only. Returns 0, or 1 with
 * A as it was when they are not eigenvectors well enough, or -1. */
static int take_off(struct run *r, size_t count, struct err *err)
{
    size_t cols = r->a.cols, rows = r->a.rows;
    float *v = r->v + r->done * cols, *y = r->y + r->done * rows, *b;
    double least, coupling, rest;

    for (int attempt = 0;; attempt++) {
        if (straighten(r->w, v, count, cols, err) != 0)
            return -1;
        b = svd_buffer(r->w, SVD_BUF_PANEL, count * cols, sizeof *b, err);
        if (!b)
            return -1;
        coupling = detach(r, count, v, y, b);
        rest = svd_energy(r->a.d, rows * cols);
        least = HUGE_VAL;
        for (size_t i = 0; i < count; i++)
            least = fmin(least, svd_energy(y + i * rows, rows));
        /* rounding alone leaves some eps^2 rest |y|^2; how small the final tail is nobody knows yet */
        if (coupling <= (attempt > 0 ? 0.1 * r->tolerance * rest * least : 1e-12 * rest * svd_energy(y, count * rows)))
            break;
        attach(r, count, v, y);
        if (attempt > 0 || least == 0)
            return 1;
        for (size_t i = 0; i < count; i++)
            cblas_saxpy((int)cols, (float)(1 / svd_energy(y + i * rows, rows)), b + i * cols, 1, v + i * cols, 1);
    }
    r->gain += gain_of(r, r->rest);
    r->coupling = coupling;
    r->least_off = least;
    r->done += count;
    r->rest = rest;
    r->info.levels++;
    r->info.method = SVD_GRAM;
    return 0;
}

/* Is f32 too coarse to tell the tail from nothing? Then what is large goes off first. */
static bool coarse(const struct run *r, const struct svd_level *l, size_t k)
{
    return svd_rounding(r->a.cols, k) * l->total > r->tolerance * (l->total - l->kept);
}

/* Returns 1 when settled, 0 to go on with what is left, 2 when only LAPACK can help, -1 on error */
static int level(struct run *r, struct err *err)
{
    size_t k = r->k - r->done, cols = r->a.cols;
    struct svd_level l = {.total = r->rest, .top = r->rest, .method = r->info.method};
    float *v = r->v + r->done * cols;
    bool sketched = k <= SKETCH_RANK && cols >= SKETCH_COLS;
    int off;

    if (k == 0 || l.total <= SVD_FLOOR * SVD_FLOOR / 4 * r->total) {
        memset(v, 0, k * cols * sizeof *v);
        memset(r->y + r->done * r->a.rows, 0, k * r->a.rows * sizeof *v);
        return settle(r, &l, 0, 0) ? 1 : 2;
    }
    if (sketched) {
        if (svd_sketch(r->w, &r->a, k, r->tolerance, r->seed, v, &l, err) != 0)
            return -1;
        if (!l.proved && coarse(r, &l, k) && l.usable > 0) {
            off = take_off(r, l.usable, err);
            if (off <= 0)
                return off;
        }
    }
    if (!l.proved && svd_by_gram(r->w, &r->a, k, r->tolerance, r->seed, v, &l, err) != 0)
        return -1;
    if (l.proved)
        return settle(r, &l, take(r, k), k) ? 1 : 2;
    if (l.usable == 0)
        return 2;
    off = take_off(r, l.usable, err);
    return off > 0 ? 2 : off;
}

static int decompose(struct run *r, bool exact, struct err *err)
{
    int state = exact ? 2 : 0;

    r->info.total = r->rest = r->total;
    r->info.method = SVD_ZERO;
    if (r->total == 0) {
        memset(r->v, 0, r->k * r->a.cols * sizeof *r->v);
        memset(r->y, 0, r->k * r->a.rows * sizeof *r->y);
        return 0;
    }
    while (state == 0 && r->info.levels < MAX_LEVELS) {
        state = level(r, err);
        if (state < 0)
            return -1;
    }
    return state == 1 ? 0 : by_lapack(r, err);
}

/* Order of images by length, longest first; equal lengths keep their order */
struct order {
    double length;
    size_t index;
};

static int longer(const void *a, const void *b)
{
    const struct order *x = a, *y = b;

    if (x->length != y->length)
        return x->length < y->length ? 1 : -1;
    return x->index < y->index ? -1 : 1;
}

static float sign_of_largest(const float *x, size_t n)
{
    float best = 0, sign = 1;

    for (size_t i = 0; i < n; i++)
        if (fabsf(x[i]) > best) {
            best = fabsf(x[i]);
            sign = x[i] < 0 ? -1.f : 1.f;
        }
    return sign;
}

/* Vectors and images, with their lengths and signs, become up, s and down. scale undoes what svd_truncate() did to D. */
static int finish(const struct run *r, double scale, float *up, float *s, float *down, struct err *err)
{
    size_t m = r->a.flipped ? r->a.cols : r->a.rows, n = r->a.flipped ? r->a.rows : r->a.cols;
    struct order *o = mem_zero(r->k, sizeof *o, "a singular value decomposition", err);

    if (!o)
        return -1;
    for (size_t i = 0; i < r->k; i++)
        o[i] = (struct order){sqrt(svd_energy(r->y + i * r->a.rows, r->a.rows)), i};
    qsort(o, r->k, sizeof *o, longer);
    for (size_t i = 0; i < r->k; i++) {
        const float *v = r->v + o[i].index * r->a.cols, *y = r->y + o[i].index * r->a.rows;
        const float *left = r->a.flipped ? v : y, *right = r->a.flipped ? y : v;
        double length = o[i].length, factor = r->a.flipped ? length * scale : scale;
        float sign = sign_of_largest(right, n);

        s[i] = (float)(length * scale);
        for (size_t j = 0; j < m; j++)
            up[j * r->k + i] = length > 0 ? sign * (float)((double)left[j] * factor) : 0;
        for (size_t j = 0; j < n; j++)
            down[i * n + j] = length > 0 ? sign * (r->a.flipped ? (float)((double)right[j] / length) : right[j]) : 0;
    }
    free(o);
    return 0;
}

/* Brings the norm of D near 1 by a power of two when squares could overflow or vanish in f32. Returns what undoes it. */
static double balance(float *d, size_t count, double *total)
{
    int e;

    if (*total == 0 || (*total > 1e-12 && *total < 1e12))
        return 1;
    frexp(sqrt(*total), &e);
    for (size_t i = 0; i < count; i++)
        d[i] = ldexpf(d[i], -e);
    *total = svd_energy(d, count);
    return ldexp(1, e);
}

int svd_truncate(struct svd *w, float *d, size_t m, size_t n, size_t k, const struct svd_options *o, float *up, float *s,
                 float *down, struct svd_info *info, struct err *err)
{
    struct run r = {.w = w, .k = k};
    bool exact = o && o->exact;
    double scale;
    int rc;

    if (k == 0 || m > INT_MAX || n > INT_MAX || k > m || k > n)
        return err_set(err, "cannot decompose a %zu x %zu matrix to rank %zu", m, n, k);
    r.total = svd_energy(d, m * n);
    if (!isfinite(r.total)) /* squares of f32 never overflow in f64 */
        return err_set(err, "a %zu x %zu matrix has a NaN or an infinity", m, n);
    scale = balance(d, m * n, &r.total);
    r.a = (struct svd_matrix){.d = d, .flipped = m < n, .rows = m < n ? n : m, .cols = m < n ? m : n};
    r.a.on = exact ? NULL : w->device;
    if (r.a.on)
        svd_device_forget(r.a.on);
    r.tolerance = exact ? SVD_TOLERANCE_EXACT : o && o->tolerance > 0 ? o->tolerance : SVD_TOLERANCE;
    r.seed = o ? o->seed : 0;
    r.v = svd_buffer(w, SVD_BUF_VECTORS, k * r.a.cols, sizeof *r.v, err);
    r.y = svd_buffer(w, SVD_BUF_IMAGES, k * r.a.rows, sizeof *r.y, err);
    rc = r.v && r.y ? decompose(&r, exact, err) : -1;
    if (r.a.on && svd_device_check(r.a.on, err) != 0) /* then whatever followed made no sense */
        return -1;
    if (rc != 0 || finish(&r, scale, up, s, down, err) != 0)
        return -1;
    *info = r.info;
    info->total *= scale * scale;
    info->error *= scale * scale;
    info->least *= scale * scale;
    for (size_t i = 0; i < info->more_count; i++)
        info->more[i] *= (float)scale;
    return 0;
}

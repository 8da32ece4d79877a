#include "ref/lora/extract.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/simd.h"

#define PANEL 65536 /* elements read at a time: two panels and their f32 stay in the second-level cache */

struct extract_worker {
    struct svd *svd;
    float *buf[4]; /* difference, up, s + down, scratch of the clamp */
    size_t cap[4];
    unsigned char raw[PANEL * 8];
    float wide[PANEL];
};

struct extract_worker *extract_worker_new(struct err *err)
{
    struct extract_worker *w = mem_new(sizeof *w, "extraction", err);

    if (!w)
        return NULL;
    memset(w, 0, offsetof(struct extract_worker, raw));
    w->svd = svd_new(err);
    if (!w->svd) {
        free(w);
        return NULL;
    }
    return w;
}

int extract_use_device(struct extract_worker *w, const struct ops *ops, struct err *err)
{
    return svd_use_device(w->svd, ops, err);
}

void extract_worker_free(struct extract_worker *w)
{
    if (!w)
        return;
    svd_free(w->svd);
    for (int i = 0; i < 4; i++)
        free(w->buf[i]);
    free(w);
}

static float *room(struct extract_worker *w, int which, size_t rows, size_t cols, struct err *err)
{
    size_t n, bytes;

    if (!mem_mul(rows, cols, &n) || !mem_mul(n, sizeof(float), &bytes)) {
        err_memory(err, ~0ULL, "extraction");
        return NULL;
    }
    if (w->buf[which] && w->cap[which] >= bytes)
        return w->buf[which];
    free(w->buf[which]);
    w->cap[which] = 0;
    w->buf[which] = mem_new(bytes, "extraction", err);
    if (w->buf[which])
        w->cap[which] = bytes;
    return w->buf[which];
}

/* d = x - d; the largest |d| as bits, which order as magnitudes do (and NaN above all) */
SIMD_CLONES static uint32_t subtract(float *d, const float *x, size_t n, uint32_t largest)
{
    for (size_t i = 0; i < n; i++) {
        float v = x[i] - d[i];
        uint32_t bits;

        memcpy(&bits, &v, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
        d[i] = v;
    }
    return largest;
}

static int read_weight(struct extract_worker *w, const struct extract_weight *from, size_t first, size_t n, float *to,
                       struct err *err)
{
    if (from->read(from->ctx, first, n, w->raw, err) != 0)
        return -1;
    dtype_convert(to, DT_F32, w->raw, from->dtype, n);
    return 0;
}

int extract_difference(struct extract_worker *w, const struct extract_weight *org, const struct extract_weight *tuned, size_t n,
                       float *d, float *largest, struct err *err)
{
    uint32_t bits = 0;

    for (size_t first = 0; first < n; first += PANEL) {
        size_t part = n - first < PANEL ? n - first : PANEL;

        if (read_weight(w, org, first, part, d + first, err) != 0 || read_weight(w, tuned, first, part, w->wide, err) != 0)
            return -1;
        bits = subtract(d + first, w->wide, part, bits);
    }
    memcpy(largest, &bits, sizeof bits);
    return 0;
}

/* Which of two weights has the value that is not finite */
static int name_nonfinite(struct extract_worker *w, const struct extract_module *m, struct err *err)
{
    const struct extract_weight *both[] = {&m->org, &m->tuned};
    size_t n = m->out * m->in;

    for (int i = 0; i < 2; i++)
        for (size_t first = 0; first < n; first += PANEL) {
            size_t part = n - first < PANEL ? n - first : PANEL;

            if (read_weight(w, both[i], first, part, w->wide, err) != 0)
                return -1;
            if (dtype_find_nonfinite(w->wide, DT_F32, part) != part)
                return err_set(err, "'%s': tensor '%s' holds a NaN or an infinity; the file is damaged or its training failed",
                               both[i]->file, both[i]->name);
        }
    return err_set(err, "'%s': tensor '%s' differs from the base by more than f32 holds", m->tuned.file, m->tuned.name);
}

/* The k-th smallest of x [n] (k from 0) takes its place, none larger before it, none smaller behind it (Hoare's selection) */
static void select_kth(float *x, size_t n, size_t k)
{
    ptrdiff_t low = 0, high = (ptrdiff_t)n - 1, at = (ptrdiff_t)k;

    while (low < high) {
        float pivot = x[at];
        ptrdiff_t i = low, j = high;

        while (i <= j) {
            while (x[i] < pivot)
                i++;
            while (x[j] > pivot)
                j--;
            if (i <= j) {
                float t = x[i];

                x[i++] = x[j];
                x[j--] = t;
            }
        }
        if (j < at)
            low = i;
        if (at < i)
            high = j;
    }
}

float extract_quantile(const float *x, size_t nx, const float *y, size_t ny, double q, float *scratch)
{
    size_t n = nx + ny, k;
    double at = q * (double)(n - 1), next;

    memcpy(scratch, x, nx * sizeof *x);
    memcpy(scratch + nx, y, ny * sizeof *y);
    k = (size_t)at;
    select_kth(scratch, n, k);
    next = (double)scratch[k];
    if (k + 1 < n) {
        float least = scratch[k + 1];

        for (size_t i = k + 1; i < n; i++)
            least = scratch[i] < least ? scratch[i] : least;
        next = (double)least;
    }
    return (float)((double)scratch[k] + (at - (double)k) * (next - (double)scratch[k]));
}

static void cut(float *x, size_t n, float h)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] > h ? h : x[i] < -h ? -h : x[i];
}

/* The quantile depends on the signs of the vectors. v0.3.0 took them as LAPACK happens to leave them; the sign convention of
 * svd.h would bias it, since it looks at the largest element. The first element of each right vector does not. */
static void unbias_signs(float *up, float *down, size_t m, size_t n, size_t rank)
{
    for (size_t r = 0; r < rank; r++) {
        if (down[r * n] >= 0)
            continue;
        for (size_t i = 0; i < m; i++)
            up[i * rank + r] = -up[i * rank + r];
        for (size_t j = 0; j < n; j++)
            down[r * n + j] = -down[r * n + j];
    }
}

/* The smallest rank that keeps this share, or all there are */
static size_t rank_for(const float *s, size_t k, double total, double energy)
{
    double kept = 0;

    for (size_t r = 0; r < k; r++) {
        kept += (double)s[r] * (double)s[r];
        if (kept >= energy * total)
            return r + 1;
    }
    return k;
}

/* up [m, k] becomes [m, rank] */
static void narrow(float *up, size_t m, size_t k, size_t rank)
{
    for (size_t i = 1; i < m && rank < k; i++)
        memmove(up + i * rank, up + i * k, rank * sizeof *up);
}

static void zero_factors(const struct extract_module *m, size_t k, float *up, float *down)
{
    memset(up, 0, m->out * k * sizeof *up);
    memset(down, 0, k * m->in * sizeof *down);
    for (size_t i = 0; i < k; i++)
        down[i * m->in + i] = 1;
}

int extract_run(struct extract_worker *w, const struct extract_module *m, const struct extract_options *o,
                struct extract_result *r, struct err *err)
{
    size_t least = m->out < m->in ? m->out : m->in, k = m->rank < least ? m->rank : least;
    struct svd_options svd = {.exact = o->exact, .seed = m->seed};
    float *d = room(w, 0, m->out, m->in, err), *up, *s, *down, *scratch;

    *r = (struct extract_result){0};
    if (!d || extract_difference(w, &m->org, &m->tuned, m->out * m->in, d, &r->largest, err) != 0)
        return -1;
    if (!isfinite(r->largest))
        return name_nonfinite(w, m, err);
    if (r->largest == 0 && !o->keep_zero)
        return 0;
    up = room(w, 1, m->out, k, err);
    s = room(w, 2, k, m->in + 1, err);
    if (!up || !s)
        return -1;
    down = s + k;
    if (svd_truncate(w->svd, d, m->out, m->in, k, &svd, up, s, down, &r->svd, err) != 0)
        return err_prefix(err, "'%s': tensor '%s': ", m->tuned.file, m->tuned.name);
    r->computed = r->rank = k;
    r->error = r->svd.error;
    if (r->largest == 0)
        zero_factors(m, k, up, down);
    if (o->energy > 0) {
        r->rank = rank_for(s, k, r->svd.total, o->energy);
        for (size_t i = r->rank; i < k; i++)
            r->error += (double)s[i] * (double)s[i];
        narrow(up, m->out, k, r->rank);
    }
    if (o->clamp > 0) {
        scratch = room(w, 3, m->out + m->in, r->rank, err);
        if (!scratch)
            return -1;
        unbias_signs(up, down, m->out, m->in, r->rank);
        r->clamp = (double)extract_quantile(up, m->out * r->rank, down, r->rank * m->in, o->clamp, scratch);
        cut(up, m->out * r->rank, (float)r->clamp);
        cut(down, r->rank * m->in, (float)r->clamp);
    }
    r->up = up;
    r->down = down;
    r->s = s;
    return 0;
}

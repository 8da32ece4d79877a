#include "ref/op/lora_narrow.h"

#include "ref/base/simd.h"

enum { LANES = 16 }; /* a sum is kept as so many, so that all instruction sets add in the same order */

static float add_lanes(const float *s)
{
    float a[4];

    for (int i = 0; i < 4; i++)
        a[i] = (s[i] + s[i + 8]) + (s[i + 4] + s[i + 12]);
    return (a[0] + a[2]) + (a[1] + a[3]);
}

/* Four products of one x with rows w0 .. w3. */
SIMD_CLONES static void dots(const float *x, const float *const *w, size_t k, float *out)
{
    const float *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
    float s0[LANES] = {0}, s1[LANES] = {0}, s2[LANES] = {0}, s3[LANES] = {0};
    size_t j = 0;

    for (; j + LANES <= k; j += LANES)
        for (size_t l = 0; l < LANES; l++) {
            s0[l] += x[j + l] * w0[j + l];
            s1[l] += x[j + l] * w1[j + l];
            s2[l] += x[j + l] * w2[j + l];
            s3[l] += x[j + l] * w3[j + l];
        }
    for (; j < k; j++) {
        s0[j % LANES] += x[j] * w0[j];
        s1[j % LANES] += x[j] * w1[j];
        s2[j % LANES] += x[j] * w2[j];
        s3[j % LANES] += x[j] * w3[j];
    }
    out[0] = add_lanes(s0);
    out[1] = add_lanes(s1);
    out[2] = add_lanes(s2);
    out[3] = add_lanes(s3);
}

/* Row q + i of w, or the last one where there is none. */
static const float *row_of(const float *w, size_t k, size_t r, size_t q)
{
    return w + (q < r ? q : r - 1) * k;
}

void narrow_project(const float *x, size_t rows, size_t k, const float *w, size_t r, float scale, float *t)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t q = 0; q < r; q += 4) {
            const float *four[4];
            float out[4];

            for (size_t l = 0; l < 4; l++)
                four[l] = row_of(w, k, r, q + l);
            dots(x + i * k, four, k, out);
            for (size_t l = 0; l < 4 && q + l < r; l++)
                t[i * r + q + l] = scale * out[l];
        }
}

/* y = base + t0 w0 + .. + t3 w3 */
SIMD_CLONES static void spread_four(const float *base, const float *t, const float *const *w, size_t k, float *y)
{
    const float *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
    float t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3];

    if (base) {
#pragma omp simd
        for (size_t j = 0; j < k; j++)
            y[j] = base[j] + ((t0 * w0[j] + t1 * w1[j]) + (t2 * w2[j] + t3 * w3[j]));
    } else {
#pragma omp simd
        for (size_t j = 0; j < k; j++)
            y[j] = (t0 * w0[j] + t1 * w1[j]) + (t2 * w2[j] + t3 * w3[j]);
    }
}

void narrow_spread(const float *base, const float *t, size_t rows, size_t r, const float *w, size_t k, float *y)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t q = 0; q < r; q += 4) {
            const float *four[4], *from = q > 0 ? y + i * k : base ? base + i * k : NULL;
            float of[4] = {0};

            for (size_t l = 0; l < 4; l++)
                four[l] = row_of(w, k, r, q + l);
            for (size_t l = 0; l < 4 && q + l < r; l++)
                of[l] = t[i * r + q + l];
            spread_four(from, of, four, k, y + i * k);
        }
}

/* sum += t0 x0 + .. + t3 x3 */
SIMD_CLONES static void gather_four(const float *const *x, const float *t, size_t k, float *sum)
{
    const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
    float t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3];

#pragma omp simd
    for (size_t j = 0; j < k; j++)
        sum[j] += (t0 * x0[j] + t1 * x1[j]) + (t2 * x2[j] + t3 * x3[j]);
}

void narrow_gather(const float *x, const float *t, size_t rows, size_t r, size_t k, float *sum)
{
    for (size_t i = 0; i < rows; i += 4)
        for (size_t q = 0; q < r; q++) {
            const float *four[4];
            float of[4] = {0};

            for (size_t l = 0; l < 4; l++)
                four[l] = row_of(x, k, rows, i + l);
            for (size_t l = 0; l < 4 && i + l < rows; l++)
                of[l] = t[(i + l) * r + q];
            gather_four(four, of, k, sum + q * k);
        }
}

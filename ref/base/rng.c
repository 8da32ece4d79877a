#include "ref/base/rng.h"

#include <math.h>

#define TWO_PI 6.283185307179586476925286766559

enum { N = 624, M = 397 };

void rng_seed(struct rng *r, uint64_t seed)
{
    r->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < N; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ (r->state[i - 1] >> 30)) + i;
    r->at = N;
    r->has_next = 0;
    r->next = 0;
}

static void twist(struct rng *r)
{
    uint32_t *s = r->state;

    for (int i = 0; i < N; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % N] & 0x7fffffffu);

        s[i] = s[(i + M) % N] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    r->at = 0;
}

uint32_t rng_u32(struct rng *r)
{
    uint32_t y;

    if (r->at >= N)
        twist(r);
    y = r->state[r->at++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

uint64_t rng_u64(struct rng *r)
{
    uint64_t high = rng_u32(r);

    return high << 32 | rng_u32(r);
}

float rng_uniform(struct rng *r)
{
    return (float)(rng_u32(r) & 0xffffffu) * 0x1p-24f;
}

uint32_t rng_below(struct rng *r, uint32_t range)
{
    return rng_u32(r) % range;
}

/* 53 bits in [0, 1) */
static double uniform_f64(struct rng *r)
{
    return (double)(rng_u64(r) & ((1ull << 53) - 1)) * 0x1p-53;
}

/* One normal at a time, as torch does for fewer than 16 elements: the second of each pair waits for the next call. */
static float normal_one(struct rng *r)
{
    double u1, radius;

    if (r->has_next) {
        r->has_next = 0;
        return (float)r->next;
    }
    u1 = uniform_f64(r);
    radius = sqrt(-2 * log1p(-uniform_f64(r)));
    r->next = radius * sin(TWO_PI * u1);
    r->has_next = 1;
    return (float)(radius * cos(TWO_PI * u1));
}

/* Sixteen uniforms become sixteen normals: element j pairs with element j + 8. */
static void normal_16(float *x)
{
    for (int j = 0; j < 8; j++) {
        double radius = sqrt(-2 * log(1 - (double)x[j])), theta = TWO_PI * (double)x[j + 8];

        x[j] = (float)(radius * cos(theta));
        x[j + 8] = (float)(radius * sin(theta));
    }
}

static void uniforms(struct rng *r, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = rng_uniform(r);
}

void rng_normal(struct rng *r, float *x, size_t n)
{
    if (n < 16) {
        for (size_t i = 0; i < n; i++)
            x[i] = normal_one(r);
        return;
    }
    uniforms(r, x, n);
    for (size_t i = 0; i + 16 <= n; i += 16)
        normal_16(x + i);
    if (n % 16) { /* the last sixteen are drawn again, so they overlap finished ones */
        uniforms(r, x + n - 16, 16);
        normal_16(x + n - 16);
    }
}

void rng_permutation(struct rng *r, uint32_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint32_t)i;
    for (size_t i = 0; i + 1 < n; i++) {
        size_t j = i + rng_u32(r) % (n - i);
        uint32_t old = p[i];

        p[i] = p[j];
        p[j] = old;
    }
}

static void philox(const uint32_t counter[4], uint64_t key, uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;

        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

void rng_philox_normal(uint64_t seed, uint64_t offset, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t counter[4] = {(uint32_t)offset, (uint32_t)(offset >> 32), (uint32_t)i, (uint32_t)((uint64_t)i >> 32)}, w[4];
        float u, v;

        /* The device rounds both uniforms to f32; where u is near 1 that decides the result, so it is done here too. */
        philox(counter, seed, w);
        u = fmaf((float)w[0], 0x1p-32f, 0x1p-33f);
        v = fmaf((float)w[1], (float)(TWO_PI * 0x1p-32), (float)(TWO_PI * 0x1p-33));
        x[i] = (float)(sqrt(-2 * log((double)u)) * sin((double)v));
    }
}

/* exp, erf and the activations as branch-free inline functions that the compiler turns into vector code (libm's are called
 * one element at a time). Plain C arithmetic without contraction: the same bytes with every instruction set.
 *
 * Polynomials are least-squares fits at Chebyshev nodes, made in f64; the errors given are of the f32 functions here, over
 * their whole range, against f64 (tests/test_vmath.c holds them to it). A NaN stays a NaN.
 */
#ifndef REF_OP_VMATH_H
#define REF_OP_VMATH_H

#include <stdint.h>
#include <string.h>

static inline uint32_t vmath_bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float vmath_float(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

/* e^x within 2 units in the last place; 0 below -86.9 (just above the subnormals), infinity above 88.7.
 * x = n ln2 + r with |r| <= ln2/2; adding 1.5 * 2^23 rounds to the integer n and leaves it in the low bits. */
static inline float vmath_exp(float x)
{
    const float magic = 0x1.8p23f;
    float z = x < -86.9f ? -86.9f : x > 89.0f ? 89.0f : x;
    float shifted = z * 0x1.715476p0f + magic, n = shifted - magic;
    float r = (z - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    float p = 0x1.a01a02p-13f;
    uint32_t k = vmath_bits(shifted) - vmath_bits(magic);

    p = p * r + 0x1.6c16c2p-10f; /* Taylor: with |r| < 0.347 the next term is below 6e-9 */
    p = p * r + 0x1.111112p-7f;
    p = p * r + 0x1.555556p-5f;
    p = p * r + 0x1.555556p-3f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    p = p * 2.0f * vmath_float((k + 126) << 23); /* 2^n in two factors: n = 128 is out of range for one */
    p = x > 88.72283f ? vmath_float(0x7f800000u) : p;
    return x < -86.9f ? 0.0f : p;
}

/* 2^x for x <= 0 (a softmax's x - max, in units of ln 2) within 2 units in the last place; 0 below -126. With the integer part
 * taken off exactly, what is left needs one polynomial. */
static inline float vmath_exp2_down(float x)
{
    const float magic = 0x1.8p23f;
    float z = x < -126.0f ? -126.0f : x;
    float shifted = z + magic, r = z - (shifted - magic);
    float p = 0x1.4258d8p-13f;
    uint32_t k = vmath_bits(shifted) - vmath_bits(magic);

    p = p * r + 0x1.5f44dcp-10f;
    p = p * r + 0x1.3b2cc4p-7f;
    p = p * r + 0x1.c6aed6p-5f;
    p = p * r + 0x1.ebfbdcp-3f;
    p = p * r + 0x1.62e43p-1f;
    p = p * r + 1.0f;
    p = p * vmath_float((k + 127) << 23);
    return x < -126.0f ? 0.0f : p;
}

/* erf(x) within 2e-7: x P(x^2) up to 1, beyond it 1 - exp(Q(x)). */
static inline float vmath_erf(float x)
{
    float a = vmath_float(vmath_bits(x) & 0x7fffffffu), u = x * x, t = a > 4.0f ? 4.0f : a;
    float p = 0x1.4a9dacp-14f, q = 0x1.873754p-13f, r;

    p = p * u + -0x1.a46b4p-11f;
    p = p * u + 0x1.541636p-8f;
    p = p * u + -0x1.b7fb38p-6f;
    p = p * u + 0x1.ce2d18p-4f;
    p = p * u + -0x1.81273ep-2f;
    p = p * u + 0x1.20dd74p0f;
    q = q * t + -0x1.828486p-9f;
    q = q * t + 0x1.65d9f4p-6f;
    q = q * t + -0x1.a657cap-4f;
    q = q * t + -0x1.46baacp-1f;
    q = q * t + -0x1.2088e2p0f;
    q = q * t + -0x1.66a2cp-12f;
    r = 1.0f - vmath_exp(q);
    r = vmath_float(vmath_bits(r) | (vmath_bits(x) & 0x80000000u));
    return a > 1.0f ? r : x * p;
}

static inline float vmath_sigmoid(float x)
{
    return 1.0f / (1.0f + vmath_exp(-x));
}

static inline float vmath_silu(float x)
{
    return x * vmath_sigmoid(x);
}

static inline float vmath_silu_slope(float x)
{
    float s = vmath_sigmoid(x);

    return s * (1.0f + x * (1.0f - s));
}

static inline float vmath_quick_gelu(float x)
{
    return x * vmath_sigmoid(1.702f * x);
}

static inline float vmath_quick_gelu_slope(float x)
{
    float s = vmath_sigmoid(1.702f * x);

    return s * (1.0f + 1.702f * x * (1.0f - s));
}

static inline float vmath_gelu(float x)
{
    return 0.5f * x * (1.0f + vmath_erf(x * 0x1.6a09e6p-1f));
}

/* Phi(x) + x phi(x); phi(0) = 1/sqrt(2 pi) */
static inline float vmath_gelu_slope(float x)
{
    return 0.5f * (1.0f + vmath_erf(x * 0x1.6a09e6p-1f)) + x * 0x1.988454p-2f * vmath_exp(-0.5f * x * x);
}

#endif

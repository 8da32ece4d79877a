#include "ref/base/half.h"

#include <string.h>

#include "ref/base/simd.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

SIMD_V3 static void widen(float *restrict dst, const uint16_t *restrict src, size_t n)
{
    for (; n >= 8; n -= 8, dst += 8, src += 8)
        _mm256_storeu_ps(dst, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)src)));
    if (n > 0) {
        uint16_t in[8] = {0};
        float out[8];

        memcpy(in, src, n * sizeof *in);
        _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)in)));
        memcpy(dst, out, n * sizeof *out);
    }
}

SIMD_V3 static void narrow(uint16_t *restrict dst, const float *restrict src, size_t n)
{
    for (; n >= 8; n -= 8, dst += 8, src += 8)
        _mm_storeu_si128((__m128i *)dst, _mm256_cvtps_ph(_mm256_loadu_ps(src), _MM_FROUND_TO_NEAREST_INT));
    if (n > 0) {
        float in[8] = {0};
        uint16_t out[8];

        memcpy(in, src, n * sizeof *in);
        _mm_storeu_si128((__m128i *)out, _mm256_cvtps_ph(_mm256_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT));
        memcpy(dst, out, n * sizeof *out);
    }
}

bool half_to_f32(float *restrict dst, const uint16_t *restrict src, size_t n)
{
    bool can = simd_level() >= SIMD_LEVEL_V3;

    if (can)
        widen(dst, src, n);
    return can;
}

bool half_from_f32(uint16_t *restrict dst, const float *restrict src, size_t n)
{
    bool can = simd_level() >= SIMD_LEVEL_V3;

    if (can)
        narrow(dst, src, n);
    return can;
}
#else
bool half_to_f32(float *restrict dst, const uint16_t *restrict src, size_t n)
{
    (void)dst, (void)src, (void)n;
    return false;
}

bool half_from_f32(uint16_t *restrict dst, const float *restrict src, size_t n)
{
    (void)dst, (void)src, (void)n;
    return false;
}
#endif

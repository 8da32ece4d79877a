/* Compiled at full optimisation in every flavour, as kernel.c (Makefile). */
#include "ref/op/kernel_bf16.h"

#include <string.h>

#include "ref/op/kernel_set.h"

enum { PIECE = 128 }; /* terms converted at a time */

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#define ISA __attribute__((target("arch=x86-64-v4,avx512bf16")))


/* To bf16, nearest even; what is below the normal numbers becomes zero, as it does in the products. */
ISA static void round_f32(uint16_t *dst, const float *src, size_t n)
{
    for (; n >= 16; n -= 16, src += 16, dst += 16)
        _mm256_storeu_si256((__m256i *)dst, (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(src)));
    if (n > 0) {
        __mmask16 some = (__mmask16)((1u << n) - 1);

        _mm256_mask_storeu_epi16(dst, some, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, src)));
    }
}

ISA static void round_f16(uint16_t *dst, const uint16_t *src, size_t n)
{
    for (; n >= 16; n -= 16, src += 16, dst += 16)
        _mm256_storeu_si256((__m256i *)dst,
                            (__m256i)_mm512_cvtneps_pbh(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)src))));
    if (n > 0) {
        __mmask16 some = (__mmask16)((1u << n) - 1);

        _mm256_mask_storeu_epi16(dst, some,
                                 (__m256i)_mm512_cvtneps_pbh(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, src))));
    }
}
#else
static void round_f32(uint16_t *dst, const float *src, size_t n)
{
    dtype_convert(dst, DT_BF16, src, DT_F32, n);
}

static void round_f16(uint16_t *dst, const uint16_t *src, size_t n)
{
    dtype_convert(dst, DT_BF16, src, DT_F16, n);
}
#endif

static const void *element(const void *src, enum dtype dtype, size_t i)
{
    return (const char *)src + i * dtype_size(dtype);
}

/* n terms of one row of dst, as bf16, and a zero behind an odd last one */
static void narrow(void *dst, const void *src, enum dtype dtype, size_t n)
{
    if (dtype == DT_F32)
        round_f32(dst, src, n);
    else if (dtype == DT_F16)
        round_f16(dst, src, n);
    else
        dtype_convert(dst, DT_BF16, src, dtype, n);
    if (n % 2)
        memset((char *)dst + n * 2, 0, 2);
}

void kernel_pair_rows(float *dst, const float *x, size_t ldx, size_t rows, size_t k)
{
    for (size_t i = 0; i < rows; i++)
        narrow(dst + i * kernel_pairs(k), x + i * ldx, DT_F32, k);
}

/* dst [cols] pairs: low halves from a, high ones from b; b NULL: zeros */
SIMD_CLONES static void interleave(float *restrict dst, const uint16_t *restrict a, const uint16_t *restrict b, size_t cols)
{
    uint32_t pair[KERNEL_WIDEST];

    for (size_t i = 0; i < cols; i++)
        pair[i] = a[i] | (b ? (uint32_t)b[i] << 16 : 0);
    memcpy(dst, pair, cols * sizeof *dst);
}

void kernel_pack_pairs(float *dst, size_t pairs, size_t at, const void *src, enum dtype dtype, size_t ld, size_t rows, size_t n)
{
    const struct kernel_set *s = kernel_set_bf16();

    for (size_t c = 0, width; c < n; c += width, dst += pairs * width) {
        size_t cols;

        width = kernel_set_panel(s, n - c, &cols);
        for (size_t r = 0; r < rows; r += 2) {
            uint16_t a[KERNEL_WIDEST + 1], b[KERNEL_WIDEST + 1]; /* one more: narrow() fills up pairs */

            for (size_t i = r + KERNEL_AHEAD; i < r + KERNEL_AHEAD + 2 && i < rows; i++)
                kernel_set_expect(element(src, dtype, i * ld + c), cols * dtype_size(dtype));
            narrow(a, element(src, dtype, r * ld + c), dtype, cols);
            if (r + 1 < rows)
                narrow(b, element(src, dtype, (r + 1) * ld + c), dtype, cols);
            interleave(dst + (at + r / 2) * width, a, r + 1 < rows ? b : NULL, cols);
        }
        kernel_set_clear(dst + at * width, kernel_pairs(rows), cols, width);
    }
}

/* A pair lies together in a column of W: pairs are turned as floats are. */
void kernel_pack_pairs_transposed(float *dst, size_t pairs, size_t at, const void *src, enum dtype dtype, size_t ld, size_t rows,
                                  size_t n)
{
    const struct kernel_set *s = kernel_set_bf16();

    for (size_t c = 0, width; c < n; c += width, dst += pairs * width) {
        size_t cols;

        width = kernel_set_panel(s, n - c, &cols);
        for (size_t r = 0; r < rows; r += PIECE) {
            size_t count = rows - r < PIECE ? rows - r : PIECE;
            float line[KERNEL_WIDEST * PIECE / 2];

            for (size_t j = 0; j < cols; j++) {
                if (r + PIECE < rows)
                    kernel_set_expect(element(src, dtype, (c + j) * ld + r + PIECE), PIECE * dtype_size(dtype));
                narrow(line + j * PIECE / 2, element(src, dtype, (c + j) * ld + r), dtype, count);
            }
            kernel_set_turn(dst + (at + r / 2) * width, width, line, PIECE / 2, kernel_pairs(count), cols);
        }
        kernel_set_clear(dst + at * width, kernel_pairs(rows), cols, width);
    }
}

#ifdef ISA
#define TILE(name, vector, pair, load, store, every, zero, dot, R, N)                                                        \
    ISA static void name(float *y, size_t ldy, const float *x, size_t row, size_t step, const float *b, size_t k,           \
                         float alpha, bool add)                                                                             \
    {                                                                                                                       \
        enum { LANES = sizeof(vector) / sizeof(float) };                                                                    \
        vector sum[R][N];                                                                                                   \
                                                                                                                            \
        _Pragma("GCC unroll 16") for (int i = 0; i < R; i++)                                                                \
            _Pragma("GCC unroll 2") for (int j = 0; j < N; j++) sum[i][j] = zero();                                         \
        for (size_t p = 0; p < k; p++, x += step, b += N * LANES) {                                                         \
            pair w[N];                                                                                                      \
            _Pragma("GCC unroll 2") for (int j = 0; j < N; j++) w[j] = (pair)load(b + j * LANES);                           \
            _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {                                                          \
                pair a = (pair)every(x[(size_t)i * row]);                                                                   \
                _Pragma("GCC unroll 2") for (int j = 0; j < N; j++) sum[i][j] = dot(sum[i][j], a, w[j]);                    \
            }                                                                                                               \
        }                                                                                                                   \
        _Pragma("GCC unroll 16") for (int i = 0; i < R; i++)                                                                \
            _Pragma("GCC unroll 2") for (int j = 0; j < N; j++) {                                                           \
                float *out = y + (size_t)i * ldy + j * LANES;                                                               \
                vector t = sum[i][j] * alpha;                                                                               \
                if (add)                                                                                                    \
                    t += load(out);                                                                                         \
                store(out, t);                                                                                              \
            }                                                                                                               \
    }

#define WHOLE(name, R, N) \
    TILE(name, __m512, __m512bh, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_dpbf16_ps, R, N)
#define HALF(name, R) \
    TILE(name, __m256, __m256bh, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_dpbf16_ps, R, 1)
#define TILES(R)           \
    WHOLE(tile_##R##_2, R, 2) \
    WHOLE(tile_##R##_1, R, 1) \
    HALF(tile_##R##_half, R)

TILES(12)
TILES(8)
TILES(4)
TILES(2)
TILES(1)

#define ROW(R) {tile_##R##_2, tile_##R##_1, tile_##R##_half}

const struct kernel_set *kernel_set_bf16(void)
{
    static const struct kernel_set set = {{12, 8, 4, 2, 1}, {32, 16, 8}, {ROW(12), ROW(8), ROW(4), ROW(2), ROW(1)}};

    return &set;
}

bool kernel_has_bf16(void)
{
    return simd_level() == SIMD_LEVEL_V4 && __builtin_cpu_supports("avx512bf16") && kernel_set()->width[0] == KERNEL_WIDEST;
}
#else
const struct kernel_set *kernel_set_bf16(void)
{
    return NULL;
}

bool kernel_has_bf16(void)
{
    return false;
}
#endif

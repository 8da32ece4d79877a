/* Compiled at full optimisation in every flavour (Makefile): a register tile is only one when its loops are unrolled. */
#include "ref/op/kernel.h"

#include <string.h>

#include "ref/op/kernel_fma.h"
#include "ref/op/kernel_set.h"

#define TILE(name, isa, vector, fma, R, N)                                                                                  \
    isa static void name(float *y, size_t ldy, const float *x, size_t row, size_t step, const float *b, size_t k,           \
                         float alpha, bool add)                                                                             \
    {                                                                                                                       \
        enum { LANES = sizeof(vector) / sizeof(float) };                                                                    \
        vector sum[R][N];                                                                                                   \
                                                                                                                            \
        _Pragma("GCC unroll 16") for (int i = 0; i < R; i++)                                                                \
            _Pragma("GCC unroll 2") for (int j = 0; j < N; j++) sum[i][j] = (vector){0};                                    \
        for (size_t p = 0; p < k; p++, x += step, b += N * LANES) {                                                         \
            vector w[N];                                                                                                    \
            _Pragma("GCC unroll 2") for (int j = 0; j < N; j++) w[j] = *(const vector##_at *)(b + j * LANES);               \
            _Pragma("GCC unroll 16") for (int i = 0; i < R; i++)                                                            \
                _Pragma("GCC unroll 2") for (int j = 0; j < N; j++) sum[i][j] = fma(sum[i][j], x[(size_t)i * row], w[j]);   \
        }                                                                                                                   \
        _Pragma("GCC unroll 16") for (int i = 0; i < R; i++)                                                                \
            _Pragma("GCC unroll 2") for (int j = 0; j < N; j++) {                                                           \
                vector##_at *out = (vector##_at *)(y + (size_t)i * ldy + j * LANES);                                        \
                vector t = alpha * sum[i][j];                                                                               \
                                                                                                                            \
                if (add)                                                                                                    \
                    t += *out;                                                                                              \
                *out = t;                                                                                                   \
            }                                                                                                               \
    }

#define TILES(set, isa, whole, fma, part, fma_part, R)                                                                      \
    TILE(set##_##R##_2, isa, whole, fma, R, 2)                                                                              \
    TILE(set##_##R##_1, isa, whole, fma, R, 1)                                                                              \
    TILE(set##_##R##_half, isa, part, fma_part, R, 1)

#define ROW(set, R) {set##_##R##_2, set##_##R##_1, set##_##R##_half}

#define SET(set, isa, whole, fma, part, fma_part, R4, R3, R2)                                                               \
    TILES(set, isa, whole, fma, part, fma_part, R4)                                                                         \
    TILES(set, isa, whole, fma, part, fma_part, R3)                                                                         \
    TILES(set, isa, whole, fma, part, fma_part, R2)                                                                         \
    TILES(set, isa, whole, fma, part, fma_part, 2)                                                                          \
    TILES(set, isa, whole, fma, part, fma_part, 1)                                                                          \
    static const struct kernel_set set = {                                                                                  \
        {R4, R3, R2, 2, 1},                                                                                                 \
        {2 * sizeof(whole) / sizeof(float), sizeof(whole) / sizeof(float), sizeof(part) / sizeof(float)},                   \
        {ROW(set, R4), ROW(set, R3), ROW(set, R2), ROW(set, 2), ROW(set, 1)}}

SET(set_four, , four, FMA_BASE, four, FMA_BASE, 6, 4, 3);
SET(set_eight, SIMD_V3, eight, FMA_EIGHT, four, FMA_FOUR, 6, 4, 3);
SET(set_sixteen, SIMD_V4, sixteen, FMA_SIXTEEN, eight, FMA_EIGHT, 12, 8, 4);

static enum simd_level limit = SIMD_LEVEL_V4;

void kernel_limit(enum simd_level most)
{
    limit = most;
}

const struct kernel_set *kernel_set(void)
{
    enum simd_level level = simd_level() < limit ? simd_level() : limit;

    return level == SIMD_LEVEL_V4 ? &set_sixteen : level == SIMD_LEVEL_V3 ? &set_eight : &set_four;
}

/* Which width the panel has that starts with `left` columns to go: the narrowest that holds them, else the widest. */
static int width_of(const struct kernel_set *s, size_t left)
{
    int i = KERNEL_WIDTHS - 1;

    while (i > 0 && s->width[i] < left)
        i--;
    return i;
}

size_t kernel_set_panel(const struct kernel_set *s, size_t left, size_t *cols)
{
    size_t width = s->width[width_of(s, left)];

    *cols = left < width ? left : width;
    return width;
}

size_t kernel_packed(size_t k, size_t n)
{
    const struct kernel_set *s = kernel_set();
    size_t whole = n / s->width[0] * s->width[0];

    return k * (whole + (n > whole ? s->width[width_of(s, n - whole)] : 0));
}

size_t kernel_columns(void)
{
    return kernel_set()->width[0];
}

void kernel_set_clear(float *dst, size_t rows, size_t cols, size_t width)
{
    for (size_t r = 0; cols < width && r < rows; r++)
        memset(dst + r * width + cols, 0, (width - cols) * sizeof *dst);
}

static const void *element(const void *src, enum dtype dtype, size_t i)
{
    return (const char *)src + i * dtype_size(dtype);
}

void kernel_pack(float *dst, size_t k, size_t at, const void *src, enum dtype dtype, size_t ld, size_t rows, size_t n)
{
    const struct kernel_set *s = kernel_set();

    for (size_t c = 0, width; c < n; c += width, dst += k * width) {
        size_t cols;

        width = kernel_set_panel(s, n - c, &cols);
        for (size_t r = 0; r < rows; r++) {
            if (r + KERNEL_AHEAD < rows)
                kernel_set_expect(element(src, dtype, (r + KERNEL_AHEAD) * ld + c), cols * dtype_size(dtype));
            dtype_convert(dst + (at + r) * width, DT_F32, element(src, dtype, r * ld + c), dtype, cols);
        }
        kernel_set_clear(dst + at * width, rows, cols, width);
    }
}

/* Blocks of 4 x 4 in registers, the edges one by one. */
SIMD_CLONES static void turn(float *restrict dst, size_t width, const float *restrict src, size_t ld, size_t rows, size_t cols)
{
    size_t c = 0;

    for (; c + 4 <= cols; c += 4) {
        const float *s = src + c * ld;
        size_t r = 0;

        for (; r + 4 <= rows; r += 4) {
            four a = *(const four_at *)(s + r), b = *(const four_at *)(s + ld + r);
            four d = *(const four_at *)(s + 2 * ld + r), e = *(const four_at *)(s + 3 * ld + r);
            four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
            four de = __builtin_shufflevector(d, e, 0, 4, 1, 5), de2 = __builtin_shufflevector(d, e, 2, 6, 3, 7);
            float *y = dst + r * width + c;

            *(four_at *)y = __builtin_shufflevector(ab, de, 0, 1, 4, 5);
            *(four_at *)(y + width) = __builtin_shufflevector(ab, de, 2, 3, 6, 7);
            *(four_at *)(y + 2 * width) = __builtin_shufflevector(ab2, de2, 0, 1, 4, 5);
            *(four_at *)(y + 3 * width) = __builtin_shufflevector(ab2, de2, 2, 3, 6, 7);
        }
        for (; r < rows; r++)
            for (size_t i = 0; i < 4; i++)
                dst[r * width + c + i] = s[i * ld + r];
    }
    for (; c < cols; c++)
        for (size_t r = 0; r < rows; r++)
            dst[r * width + c] = src[c * ld + r];
}

/* Neighbours of a and b in turn, of the low or the high half of each quarter: single elements, then pairs; and whole quarters, the
 * even or the odd ones. */
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW2(a, b) __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH2(a, b) __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)

/* 16 x 16 in registers. In between, quarter q of c[g + j] holds element 4 * q + j of the lines g .. g + 3. */
SIMD_V4 static void turn_sixteen(float *restrict dst, size_t width, const float *restrict src, size_t ld)
{
    sixteen a[16], c[16];

    _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) a[i] = *(const sixteen_at *)(src + (size_t)i * ld);
    _Pragma("GCC unroll 4") for (int g = 0; g < 16; g += 4) {
        sixteen low = LOW(a[g], a[g + 1]), high = HIGH(a[g], a[g + 1]);
        sixteen low2 = LOW(a[g + 2], a[g + 3]), high2 = HIGH(a[g + 2], a[g + 3]);

        c[g] = LOW2(low, low2);
        c[g + 1] = HIGH2(low, low2);
        c[g + 2] = LOW2(high, high2);
        c[g + 3] = HIGH2(high, high2);
    }
    _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
        sixteen even = EVEN4(c[j], c[4 + j]), odd = ODD4(c[j], c[4 + j]);
        sixteen even2 = EVEN4(c[8 + j], c[12 + j]), odd2 = ODD4(c[8 + j], c[12 + j]);
        float *y = dst + (size_t)j * width;

        *(sixteen_at *)y = EVEN4(even, even2);
        *(sixteen_at *)(y + 4 * width) = EVEN4(odd, odd2);
        *(sixteen_at *)(y + 8 * width) = ODD4(even, even2);
        *(sixteen_at *)(y + 12 * width) = ODD4(odd, odd2);
    }
}

void kernel_set_turn(float *dst, size_t width, const float *src, size_t ld, size_t rows, size_t cols)
{
    bool v4 = simd_level() == SIMD_LEVEL_V4;
    size_t r = v4 ? rows / 16 * 16 : 0, c = r ? cols / 16 * 16 : 0;

    for (size_t i = 0; i < r; i += 16)
        for (size_t j = 0; j < c; j += 16)
            turn_sixteen(dst + i * width + j, width, src + j * ld + i, ld);
    turn(dst + r * width, width, src + r, ld, rows - r, c);
    turn(dst + c, width, src + c * ld, ld, rows, cols - c);
}

/* A panel's columns of another type are converted a piece at a time, on the stack. */
enum { PIECE = 128 };

void kernel_pack_transposed(float *dst, size_t k, size_t at, const void *src, enum dtype dtype, size_t ld, size_t rows,
                            size_t n)
{
    const struct kernel_set *s = kernel_set();

    for (size_t c = 0, width; c < n; c += width, dst += k * width) {
        size_t cols;

        width = kernel_set_panel(s, n - c, &cols);
        for (size_t r = 0; dtype != DT_F32 && r < rows; r += PIECE) {
            size_t count = rows - r < PIECE ? rows - r : PIECE;
            float line[KERNEL_WIDEST * PIECE];

            for (size_t j = 0; j < cols; j++) {
                if (r + PIECE < rows)
                    kernel_set_expect(element(src, dtype, (c + j) * ld + r + PIECE), PIECE * dtype_size(dtype));
                dtype_convert(line + j * PIECE, DT_F32, element(src, dtype, (c + j) * ld + r), dtype, count);
            }
            kernel_set_turn(dst + (at + r) * width, width, line, PIECE, count, cols);
        }
        if (dtype == DT_F32)
            kernel_set_turn(dst + at * width, width, (const float *)src + c * ld, ld, rows, cols);
        kernel_set_clear(dst + at * width, rows, cols, width);
    }
}

/* A panel that is wider than the columns left: by way of a tile of its own. */
static void edge(const struct kernel_call *c, kernel_tile_fn *tile, size_t width, size_t r, size_t rows, size_t col, const float *b)
{
    float y[KERNEL_ROWS * KERNEL_WIDEST];
    size_t cols = c->cols - col;

    tile(y, width, c->x + r * c->row, c->row, c->step, b, c->k, c->alpha, false);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) {
            float *out = c->y + (r + i) * c->ldy + col + j;

            *out = c->add ? *out + y[i * width + j] : y[i * width + j];
        }
}

/* The height of the next tile with `left` rows to go: the tallest, but no thin one after it where two of like height do. */
static int height_of(const struct kernel_set *s, size_t left)
{
    int h = 0;

    while (s->height[h] > left)
        h++;
    while (left > s->height[h] && left < 2 * s->height[h] && 2 * s->height[h + 1] >= left)
        h++;
    return h;
}

/* A panel stays in the first cache while the rows go by. */
void kernel_multiply(const struct kernel_call *c)
{
    const struct kernel_set *s = c->bf16 ? kernel_set_bf16() : kernel_set();
    const float *b = c->packed;

    for (size_t col = 0, width; col < c->cols; col += width, b += c->k * width) {
        int w = width_of(s, c->cols - col);

        width = s->width[w];
        for (size_t r = 0, rows; r < c->rows; r += rows) {
            int h = height_of(s, c->rows - r);

            rows = s->height[h];
            if (width > c->cols - col)
                edge(c, s->tile[h][w], width, r, rows, col, b);
            else
                s->tile[h][w](c->y + r * c->ldy + col, c->ldy, c->x + r * c->row, c->row, c->step, b, c->k, c->alpha, c->add);
        }
    }
}

/* What kernel.c and kernel_bf16.c share: the register tiles of an instruction set. */
#ifndef REF_OP_KERNEL_SET_H
#define REF_OP_KERNEL_SET_H

#include <stdbool.h>
#include <stddef.h>

/* y [height, width] (+)= alpha * x b; row, step: distances in x of two rows, of two terms of the sum; b [k, width] */
typedef void kernel_tile_fn(float *y, size_t ldy, const float *x, size_t row, size_t step, const float *b, size_t k, float alpha,
                            bool add);

/* Heights of tiles, tallest first; a block of rows is cut in them. Widths: two vectors, one, half of one. */
enum { KERNEL_HEIGHTS = 5, KERNEL_WIDTHS = 3, KERNEL_WIDEST = 32 };

struct kernel_set {
    size_t height[KERNEL_HEIGHTS];
    size_t width[KERNEL_WIDTHS];
    kernel_tile_fn *tile[KERNEL_HEIGHTS][KERNEL_WIDTHS];
};

/* The set in use for f32. */
const struct kernel_set *kernel_set(void);

/* The set for pairs of bf16; only where kernel_has_bf16(). Its panels are as wide as those of f32. */
const struct kernel_set *kernel_set_bf16(void);

/* Columns of the panel that starts with `left` columns to go, and how many of them are W's: *cols. */
size_t kernel_set_panel(const struct kernel_set *s, size_t left, size_t *cols);

/* dst [rows, width] from src [cols, rows] with rows ld apart: elements of 4 bytes, whatever they are */
void kernel_set_turn(float *dst, size_t width, const float *src, size_t ld, size_t rows, size_t cols);

/* Rows ahead that are asked for where a row of W is a line or two of the cache. */
enum { KERNEL_AHEAD = 16 };

/* Asks for the `bytes` bytes at p, soon to be read: pieces of many lines apart are no stream that the processor foresees. */
static inline void kernel_set_expect(const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)p + i);
}

/* dst [rows, width]: columns cols and beyond become zeros. */
void kernel_set_clear(float *dst, size_t rows, size_t cols, size_t width);

#endif

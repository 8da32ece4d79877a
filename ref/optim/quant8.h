/* Numbers as 8-bit codes: bitsandbytes' blockwise dynamic quantisation.
 *
 * A code stands for a value of a fixed map in -1..1 (signed) or 0..1 (unsigned), seven decades with a resolution that grows
 * towards 1; a block of 256 numbers shares the scale that makes its largest one 1. A number becomes the nearest value of
 * the map. Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization, 2021, and create_dynamic_map() of bitsandbytes
 * (whose CPU library rounds by a coarser table, and whose CUDA kernels keep the sign of the smallest numbers; the map, the
 * blocks and the scales are the same, so states can be carried over).
 */
#ifndef REF_OPTIM_QUANT8_H
#define REF_OPTIM_QUANT8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { QUANT8_CODES = 256, QUANT8_STARTS = 65536 };

struct quant8 {
    float value[QUANT8_CODES];     /* ascending */
    uint8_t start[QUANT8_STARTS];  /* by the upper half of a number's bits: its nearest code is this one or the next */
    bool is_signed;
};

void quant8_init(struct quant8 *q, bool is_signed);

/* x [n] = scale * the codes' values. */
void quant8_read(const struct quant8 *q, const uint8_t *code, float scale, float *x, size_t n);

/* code [n] = the nearest values to x / max |x|; a tie goes down. Returns max |x|; all codes are 0 when it is 0. x finite. */
float quant8_write(const struct quant8 *q, const float *x, uint8_t *code, size_t n);

#endif

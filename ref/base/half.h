/* f16 to and from f32 by the processor's own instruction, where it has one: the same bytes as the plain code of dtype.c, sooner. */
#ifndef REF_BASE_HALF_H
#define REF_BASE_HALF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* dst [n] = src [n], to nearest even; false, with dst as it was, where there is no such instruction. */
bool half_to_f32(float *restrict dst, const uint16_t *restrict src, size_t n);
bool half_from_f32(uint16_t *restrict dst, const float *restrict src, size_t n);

#endif

/* Element types and exact conversion between them.
 *
 * f16 is IEEE binary16, bf16 the upper half of a binary32. Conversions to a narrower float round to nearest, ties to even;
 * overflow gives infinity, subnormals are kept, a NaN stays a NaN (quiet, sign kept, payload cut). Conversions to integers
 * are exact or refused: no command needs them.
 */
#ifndef REF_BASE_DTYPE_H
#define REF_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DT_F32,
    DT_F16,
    DT_BF16,
    DT_F64,
    DT_F8_E4M3, /* the 8-bit floats are carried through files, not computed with */
    DT_F8_E5M2,
    DT_I64,
    DT_I32,
    DT_I16,
    DT_I8,
    DT_U64,
    DT_U32,
    DT_U16,
    DT_U8,
    DT_BOOL,
    DT_COUNT
};

size_t dtype_size(enum dtype t);       /* bytes of one element */
const char *dtype_name(enum dtype t);  /* "f16", for people; a constant */
bool dtype_is_float(enum dtype t);     /* f16, bf16, f32, f64: what dtype_convert() reads and writes */

/* Finds the type that a person or an option names: f32 float float32 fp32, f16 fp16 half float16, bf16 bfloat16, f64
 * double. Returns false for anything else. */
bool dtype_parse(const char *name, enum dtype *out);

/* dst [n] of type to = src [n] of type from. Both among f32 f16 bf16 f64 (dtype_is_float), borrowed, not overlapping unless
 * equal pointers and equal types. f64 <-> f16/bf16 goes through no intermediate rounding. Not threaded. */
void dtype_convert(void *dst, enum dtype to, const void *src, enum dtype from, size_t n);

/* One element. */
float dtype_f16_to_f32(uint16_t h);
float dtype_bf16_to_f32(uint16_t h);
uint16_t dtype_f32_to_f16(float f);
uint16_t dtype_f32_to_bf16(float f);

/* The first index of a NaN or infinity in x [n] (a float type), or n when all are finite. */
size_t dtype_find_nonfinite(const void *x, enum dtype t, size_t n);

#endif

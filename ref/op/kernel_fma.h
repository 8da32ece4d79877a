/* Vectors of floats, and a product and its addition rounded together, said outright: left to itself a compiler fuses the two in one
 * tile and not in another (gcc 14 does, where it thinks a chain of them slow), and an element's bytes would depend on its tile. */
#ifndef REF_OP_KERNEL_FMA_H
#define REF_OP_KERNEL_FMA_H

#include "ref/base/simd.h"

/* In registers, and (..._at) in memory: a register's type that allowed any alignment would be kept in memory by the compiler. */
typedef float four __attribute__((vector_size(16)));
typedef float eight __attribute__((vector_size(32)));
typedef float sixteen __attribute__((vector_size(64)));
typedef float four_at __attribute__((vector_size(16), aligned(4), may_alias));
typedef float eight_at __attribute__((vector_size(32), aligned(4), may_alias));
typedef float sixteen_at __attribute__((vector_size(64), aligned(4), may_alias));

/* s + x * w. FMA_BASE rounds twice where the oldest processor of the architecture has no instruction for it; the others are for
 * functions of SIMD_V3 and SIMD_V4. */
#ifdef __FP_FAST_FMAF
#define FMA_BASE(s, x, w) ((four){__builtin_fmaf(x, (w)[0], (s)[0]), __builtin_fmaf(x, (w)[1], (s)[1]), \
                                  __builtin_fmaf(x, (w)[2], (s)[2]), __builtin_fmaf(x, (w)[3], (s)[3])})
#else
#define FMA_BASE(s, x, w) ((s) + (x) * (w))
#endif

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define FMA_FOUR(s, x, w) _mm_fmadd_ps(_mm_set1_ps(x), w, s)
#define FMA_EIGHT(s, x, w) _mm256_fmadd_ps(_mm256_set1_ps(x), w, s)
#define FMA_SIXTEEN(s, x, w) _mm512_fmadd_ps(_mm512_set1_ps(x), w, s)
#else /* never called */
#define FMA_FOUR FMA_BASE
#define FMA_EIGHT(s, x, w) ((s) + (x) * (w))
#define FMA_SIXTEEN(s, x, w) ((s) + (x) * (w))
#endif

#endif

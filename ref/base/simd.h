/* SIMD_CLONES before a function definition: the compiler makes one copy per instruction set and the loader picks the best
 * one the CPU has. The source stays plain C; all copies give the same bytes, because products and sums are never
 * contracted or reordered (-std=c11, no fast-math). Two files give that up for speed and say so (kernel_fma.h, attention.c). */
#ifndef REF_BASE_SIMD_H
#define REF_BASE_SIMD_H

#include <stdbool.h>

#ifdef __linux__
#include <features.h> /* __GLIBC__, also when this is the first header of a file */
#endif

#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* at -O1 it says that it vectorises nothing */
#endif

/* Clang before 18 gives the choosers of static functions one global name each, and the functions another one than callers use. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && \
    (!defined(__clang__) || __clang_major__ >= 18)
#define SIMD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SIMD_CLONES
#endif

/* For code that picks an instruction set itself, at run time: SIMD_V3 and SIMD_V4 before a function let the compiler use that
 * set in it; it may be called when simd_level() says so. Elsewhere than on x86 they are plain functions. */
enum simd_level { SIMD_BASE, SIMD_LEVEL_V3, SIMD_LEVEL_V4 };

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SIMD_V3 __attribute__((target("arch=x86-64-v3")))
#define SIMD_V4 __attribute__((target("arch=x86-64-v4")))

static inline enum simd_level simd_level(void)
{
    bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");

    if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return SIMD_LEVEL_V4;
    return v3 ? SIMD_LEVEL_V3 : SIMD_BASE;
}
#else
#define SIMD_V3
#define SIMD_V4

static inline enum simd_level simd_level(void)
{
    return SIMD_BASE;
}
#endif

#endif

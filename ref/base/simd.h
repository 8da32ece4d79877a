/* SIMD_CLONES before a function definition: the compiler makes one copy per instruction set and the loader picks the best
 * one the CPU has. The source stays plain C; all copies give the same bytes, because products and sums are never
 * contracted or reordered (-std=c11, no fast-math). */
#ifndef REF_BASE_SIMD_H
#define REF_BASE_SIMD_H

#ifdef __linux__
#include <features.h> /* __GLIBC__, also when this is the first header of a file */
#endif

#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* at -O1 it says that it vectorises nothing */
#endif

#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define SIMD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SIMD_CLONES
#endif

#endif

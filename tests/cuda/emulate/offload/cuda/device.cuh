/* offload/cuda/device.cuh in plain C++: one block at a time, each of its threads a fibre on the CPU. A fibre runs until it
 * must wait for its warp or its block; emulate.cpp takes the threads in rising or falling order, so that a result that depends
 * on the order (a missing barrier) shows as different bytes. Shared memory is filled with NaN before each block. */
#ifndef OFFLOAD_CUDA_DEVICE_CUH
#define OFFLOAD_CUDA_DEVICE_CUH

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "offload/cuda/kernels.h"

extern "C" {
#include "ref/base/dtype.h"
}

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
void sync_warp();

/* Every lane gives `bytes` bytes; returns all of the warp's, lane by lane, valid until the exchange after the next. */
const char *emulate_exchange(const void *mine, size_t bytes);
char *shared_memory();
int emulate_launch(const std::function<void()> &thread, dim3 grid, unsigned block, size_t shared);

struct bf16 {
    uint16_t bits;
};

struct f16 {
    uint16_t bits;
};

struct float4 {
    float x, y, z, w;
};

inline float to_f32(float x)
{
    return x;
}

inline float to_f32(bf16 x)
{
    return dtype_bf16_to_f32(x.bits);
}

inline float to_f32(f16 x)
{
    return dtype_f16_to_f32(x.bits);
}

template <class T> T from_f32(float x);

template <> inline float from_f32<float>(float x)
{
    return x;
}

template <> inline bf16 from_f32<bf16>(float x)
{
    return bf16{dtype_f32_to_bf16(x)};
}

template <> inline f16 from_f32<f16>(float x)
{
    return f16{dtype_f32_to_f16(x)};
}

template <class T> uint32_t pack(float low, float high)
{
    return from_f32<T>(low).bits | (uint32_t)from_f32<T>(high).bits << 16;
}

using std::max;
using std::min;

inline float rsqrtf(float x)
{
    return 1 / sqrtf(x);
}

inline float fast_exp2(float x)
{
    return exp2f(x);
}

inline float fast_exp(float x)
{
    return expf(x);
}

inline float fast_divide(float a, float b)
{
    return a / b;
}

inline float float_of_bits(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t multiply_high(uint32_t a, uint32_t b)
{
    return (uint32_t)((uint64_t)a * b >> 32);
}

inline void atomic_min(unsigned long long *p, unsigned long long x)
{
    *p = x < *p ? x : *p;
}

template <class V> V shuffle_xor(V x, int lanes)
{
    V got;

    memcpy(&got, emulate_exchange(&x, sizeof x) + ((threadIdx.x % 32) ^ (unsigned)lanes) * sizeof x, sizeof got);
    return got;
}

/* Late on purpose would be truer still; at once is what a kernel may see at the earliest. */
inline bool warp_any(bool x)
{
    const char *all = emulate_exchange(&x, sizeof x);

    return std::any_of(all, all + 32, [](char c) { return c != 0; });
}

inline void copy_async(void *dst, const void *src, bool valid)
{
    if (valid)
        memcpy(__builtin_assume_aligned(dst, 16), __builtin_assume_aligned(src, 16), 16);
    else
        memset(dst, 0, 16);
}

inline void copy_async_commit()
{
}

template <int pending> void copy_async_wait()
{
}

inline uint16_t emulate_element(const char *rows, int matrix, int row, int column)
{
    const char *p;
    uint16_t x;

    memcpy(&p, rows + (8 * matrix + row) * (int)sizeof p, sizeof p);
    memcpy(&x, p + 2 * column, sizeof x);
    return x;
}

inline void load_matrices(uint32_t r[4], const void *tile, int mine, int all)
{
    const char *row = static_cast<const char *>(tile) + mine + all;
    const char *rows = emulate_exchange(&row, sizeof row);
    int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;

    for (int i = 0; i < 4; i++)
        r[i] = emulate_element(rows, i, g, 2 * t) | (uint32_t)emulate_element(rows, i, g, 2 * t + 1) << 16;
    sync_warp();
}

inline void load_matrices_transposed(uint32_t r[4], const void *tile, int mine, int all)
{
    const char *row = static_cast<const char *>(tile) + mine + all;
    const char *rows = emulate_exchange(&row, sizeof row);
    int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;

    for (int i = 0; i < 4; i++)
        r[i] = emulate_element(rows, i, 2 * t, g) | (uint32_t)emulate_element(rows, i, 2 * t + 1, g) << 16;
    sync_warp();
}

template <class T> float emulate_half(uint32_t pair, int which)
{
    return to_f32(T{(uint16_t)(pair >> 16 * which)});
}

template <class T> void multiply_tile(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const char *all = emulate_exchange(mine, sizeof mine);
    int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;

    for (int i = 0; i < 4; i++) {
        int row = g + 8 * (i / 2), column = 2 * t + i % 2;

        for (int k = 0; k < 16; k++) {
            uint32_t x, y;

            memcpy(&x, all + ((row % 8) * 4 + k % 8 / 2) * 24 + 4 * (row / 8 + 2 * (k / 8)), 4);
            memcpy(&y, all + (column * 4 + k % 8 / 2) * 24 + 4 * (4 + k / 8), 4);
            c[i] += emulate_half<T>(x, k % 2) * emulate_half<T>(y, k % 2);
        }
    }
}

template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, unsigned block, size_t shared, cudaStream_t, A... args)
{
    return emulate_launch([=]() { kernel(static_cast<P>(args)...); }, grid, block, shared);
}

inline bool has_tensor_cores()
{
    return true;
}

inline size_t shared_limit()
{
    return 227 * 1024; /* of compute capability 9.0 */
}

#endif

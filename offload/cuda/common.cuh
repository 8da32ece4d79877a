/* What kernels share above the machine: vectors, sums over a block, and the choice of a template from an enum. */
#ifndef OFFLOAD_CUDA_COMMON_CUH
#define OFFLOAD_CUDA_COMMON_CUH

#include <type_traits>

#include "offload/cuda/device.cuh"

enum { WARP = 32 };

/* N elements of T that move in one access. */
template <class T, int N> struct alignas(sizeof(T) * N) Vector {
    T at[N];
};

template <class T, int N> __device__ inline void load(float out[N], const T *p)
{
    Vector<T, N> v = *reinterpret_cast<const Vector<T, N> *>(p);

#pragma unroll
    for (int i = 0; i < N; i++)
        out[i] = to_f32(v.at[i]);
}

template <class T, int N> __device__ inline void store(T *p, const float in[N])
{
    Vector<T, N> v;

#pragma unroll
    for (int i = 0; i < N; i++)
        v.at[i] = from_f32<T>(in[i]);
    *reinterpret_cast<Vector<T, N> *>(p) = v;
}

/* Elements of 16 bytes. */
template <class T> constexpr int vector_size()
{
    return 16 / (int)sizeof(T);
}

inline size_t div_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

inline bool aligned16(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

__device__ inline float warp_sum(float x)
{
#pragma unroll
    for (int i = WARP / 2; i > 0; i /= 2)
        x += shuffle_xor(x, i);
    return x;
}

__device__ inline float warp_max(float x)
{
#pragma unroll
    for (int i = WARP / 2; i > 0; i /= 2)
        x = fmaxf(x, shuffle_xor(x, i));
    return x;
}

/* Sum over the block, for every thread. slot: 32 floats of shared memory; blocks of whole warps, 1,024 threads at most. */
__device__ inline float block_sum(float x, float *slot)
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

    x = warp_sum(x);
    __syncthreads(); /* the slots may still be read from the sum before */
    if (lane == 0)
        slot[warp] = x;
    __syncthreads();
    return warp_sum(lane < (int)(blockDim.x / WARP) ? slot[lane] : 0);
}

/* Calls f(T()) with the type that t names. */
template <class F> int with_type(enum kernel_type t, F f)
{
    switch (t) {
    case KERNEL_F32:
        return f(float());
    case KERNEL_BF16:
        return f(bf16());
    case KERNEL_F16:
        return f(f16());
    }
    return cudaErrorInvalidValue;
}

#endif

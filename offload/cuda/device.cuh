/* What kernels use of the machine: types of 16 bits, vectors, warp and tensor-core instructions, and the launch. All PTX and
 * every question about the architecture is here. tests/cuda/emulate has the same names in plain C++, so that kernels also run
 * on a CPU, thread by thread. */
#ifndef OFFLOAD_CUDA_DEVICE_CUH
#define OFFLOAD_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "offload/cuda/kernels.h"

using bf16 = __nv_bfloat16;
using f16 = __half;

/* ---- conversions ---- */

__device__ inline float to_f32(float x)
{
    return x;
}

__device__ inline float to_f32(bf16 x)
{
    return __bfloat162float(x);
}

__device__ inline float to_f32(f16 x)
{
    return __half2float(x);
}

template <class T> __device__ inline T from_f32(float x);

template <> __device__ inline float from_f32<float>(float x)
{
    return x;
}

template <> __device__ inline bf16 from_f32<bf16>(float x)
{
    return __float2bfloat16_rn(x);
}

template <> __device__ inline f16 from_f32<f16>(float x)
{
    return __float2half_rn(x);
}

/* Two numbers rounded to T side by side in a register, the first in the low half. */
template <class T> __device__ inline uint32_t pack(float low, float high);

template <> __device__ inline uint32_t pack<bf16>(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);

    return *reinterpret_cast<uint32_t *>(&v);
}

template <> __device__ inline uint32_t pack<f16>(float low, float high)
{
    __half2 v = __floats2half2_rn(low, high);

    return *reinterpret_cast<uint32_t *>(&v);
}

/* ---- arithmetic ---- */

/* 2^x, to 2 units in the last place; 0 for -infinity */
__device__ inline float fast_exp2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* e^x, to 2 + |x| / 23 units in the last place */
__device__ inline float fast_exp(float x)
{
    return __expf(x);
}

/* a / b, to 2 units in the last place; 0 where b is above 2^126 */
__device__ inline float fast_divide(float a, float b)
{
    return __fdividef(a, b);
}

__device__ inline float float_of_bits(uint32_t bits)
{
    return __uint_as_float(bits);
}

__device__ inline uint32_t multiply_high(uint32_t a, uint32_t b)
{
    return __umulhi(a, b);
}

__device__ inline void atomic_min(unsigned long long *p, unsigned long long x)
{
    atomicMin(p, x);
}

/* ---- a warp ---- */

template <class V> __device__ inline V shuffle_xor(V x, int lanes)
{
    return __shfl_xor_sync(0xffffffffu, x, lanes);
}

__device__ inline bool warp_any(bool x)
{
    return __any_sync(0xffffffffu, x);
}

__device__ inline void sync_warp()
{
    __syncwarp();
}

/* ---- shared memory and tensor cores ---- */

/* The block's dynamic shared memory, aligned to 16 bytes. */
__device__ inline char *shared_memory()
{
    extern __shared__ __align__(16) char memory[];

    return memory;
}

__device__ inline unsigned shared_address(const void *p)
{
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/* 16 bytes from device to shared memory, both aligned to 16, in the background; zeros when not valid (src is not read then). */
__device__ inline void copy_async(void *dst, const void *src, bool valid)
{
#if __CUDA_ARCH__ >= 800
    int bytes = valid ? 16 : 0;

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(bytes) : "memory");
#else
    *static_cast<uint4 *>(dst) = valid ? *static_cast<const uint4 *>(src) : make_uint4(0, 0, 0, 0);
#endif
}

__device__ inline void copy_async_commit()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Waits until at most `pending` of the thread's latest groups are under way. */
template <int pending> __device__ inline void copy_async_wait()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

/* Four 8x8 matrices of 16 bits from shared memory: lane 8 i + j gives the address of row j of matrix i (16 bytes, aligned), as
 * tile + mine + all bytes: the lane's own part, and one that is the same for all lanes and mostly a constant. r[i] of lane l is
 * elements 2 (l % 4), 2 (l % 4) + 1 of row l / 4 of matrix i. The second form transposes each matrix. */
__device__ inline void load_matrices(uint32_t r[4], const void *tile, int mine, int all)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(tile) + mine + all)
                 : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t r[4], const void *tile, int mine, int all)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(tile) + mine + all)
                 : "memory");
}

/* c [16, 8] f32 += a [16, 16] b [16, 8] of type T. Lane l, g = l / 4, t = l % 4, holds
 *     c[0..1] = row g, c[2..3] = row g + 8, columns 2t, 2t + 1;
 *     a[0], a[1] = rows g, g + 8 of columns 2t, 2t + 1; a[2], a[3] = the same of columns 2t + 8, 2t + 9;
 *     b0 = rows 2t, 2t + 1 of column g; b1 = rows 2t + 8, 2t + 9. */
template <class T> __device__ inline void multiply_tile(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);

#if __CUDA_ARCH__ >= 800
#define MULTIPLY_TILE(type)                                                                                 \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                             \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                    \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#else
#define MULTIPLY_TILE(type) __trap() /* launchers ask has_tensor_cores() first */
#endif

template <> __device__ inline void multiply_tile<bf16>(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    MULTIPLY_TILE("bf16");
}

template <> __device__ inline void multiply_tile<f16>(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    MULTIPLY_TILE("f16");
}

#undef MULTIPLY_TILE

/* ---- launch ---- */

/* Queues kernel(args...) on grid blocks of `block` threads with `shared` bytes of dynamic shared memory. */
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, unsigned block, size_t shared, cudaStream_t s, A... args)
{
    if (shared > 48 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);

        if (e != cudaSuccess)
            return e;
    }
    kernel<<<grid, block, shared, s>>>(static_cast<P>(args)...);
    return cudaGetLastError();
}

/* A number of the current device, asked once. */
inline int device_number(cudaDeviceAttr what)
{
    int device = 0, value = 0;

    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&value, what, device);
    return value;
}

/* multiply_tile() works on the current device. */
inline bool has_tensor_cores()
{
    return device_number(cudaDevAttrComputeCapabilityMajor) >= 8;
}

/* Bytes of shared memory that a block may ask for. */
inline size_t shared_limit()
{
    return (size_t)device_number(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

#endif

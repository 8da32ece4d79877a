/* Frozen weights in 4 or 8 bits, block by block (Dettmers et al. 2023, QLoRA). A warp does a block of 64 elements when it packs;
 * a thread unpacks 8, which share a block since both begin at multiples of 8. */
#include "offload/cuda/common.cuh"

enum { THREADS = 256, BLOCK = KERNEL_QUANT_BLOCK, EACH = 8 };

/* Quantiles of a normal distribution, from bitsandbytes' create_normal_map(), rounded to f32 */
#define NF4_VALUES                                                                                                       \
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,                    \
     -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,                     \
     0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f}

__device__ inline float nf4_value(int code)
{
    const float value[16] = NF4_VALUES;

    return value[code];
}

/* The nearest code: how many middles between neighbours lie below x. */
__device__ inline unsigned nf4_code(float x)
{
    const float value[16] = NF4_VALUES;
    unsigned code = 0;

#pragma unroll
    for (int i = 0; i < 15; i++)
        code += x > (value[i] + value[i + 1]) * 0.5f;
    return code;
}

__device__ inline int8_t int8_code(float x)
{
    return (int8_t)rintf(127 * x);
}

template <class T> __global__ void quantise_kernel(enum kernel_quant kind, const T *x, size_t n, void *q, float *absmax)
{
    size_t block = (blockIdx.x * (size_t)THREADS + threadIdx.x) / WARP, lane = threadIdx.x % WARP, i = block * BLOCK + 2 * lane;
    float a = i < n ? to_f32(x[i]) : 0, b = i + 1 < n ? to_f32(x[i + 1]) : 0, most = warp_max(fmaxf(fabsf(a), fabsf(b)));
    float inverse = most > 0 ? 1 / most : 0;

    if (i >= n)
        return;
    if (lane == 0)
        absmax[block] = most;
    if (kind == KERNEL_NF4) {
        static_cast<uint8_t *>(q)[i / 2] = (uint8_t)(nf4_code(a * inverse) << 4 | nf4_code(b * inverse));
        return;
    }
    static_cast<int8_t *>(q)[i] = int8_code(a * inverse);
    if (i + 1 < n)
        static_cast<int8_t *>(q)[i + 1] = int8_code(b * inverse);
}

template <class T>
__global__ void dequantise_kernel(enum kernel_quant kind, const void *q, const float *absmax, size_t first, size_t count, T *dst)
{
    __shared__ float table[16];
    size_t i = (blockIdx.x * (size_t)THREADS + threadIdx.x) * EACH, at = first + i;
    int left = i >= count ? 0 : count - i < EACH ? (int)(count - i) : (int)EACH;
    float v[EACH], scale;

    if (threadIdx.x < 16)
        table[threadIdx.x] = nf4_value(threadIdx.x);
    __syncthreads();
    if (left == 0)
        return;
    scale = absmax[at / BLOCK];
    for (int j = 0; j < EACH; j++) {
        const uint8_t *byte = static_cast<const uint8_t *>(q) + (kind == KERNEL_NF4 ? (at + j) / 2 : at + j);

        if (j >= left)
            v[j] = 0;
        else if (kind == KERNEL_NF4)
            v[j] = table[j % 2 == 0 ? *byte >> 4 : *byte & 15] * scale;
        else
            v[j] = (float)(int8_t)*byte * (scale / 127);
    }
    if (left == EACH) {
        store<T, EACH / 2>(dst + i, v);
        store<T, EACH / 2>(dst + i + EACH / 2, v + EACH / 2);
    } else
        for (int j = 0; j < left; j++)
            dst[i + j] = from_f32<T>(v[j]);
}

int kernel_quantise(cudaStream_t s, enum kernel_quant kind, enum kernel_type t, const void *x, size_t n, void *q, float *absmax)
{
    size_t blocks = div_up(n, (size_t)THREADS / WARP * BLOCK);

    if (n == 0)
        return cudaSuccess;
    if (blocks > 0x7fffffff)
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return launch(quantise_kernel<T>, dim3((unsigned)blocks), THREADS, 0, s, kind, (const T *)x, n, q, absmax);
    });
}

int kernel_dequantise(cudaStream_t s, enum kernel_quant kind, const void *q, const float *absmax, size_t first, size_t count,
                      void *dst, enum kernel_type t)
{
    size_t blocks = div_up(count, (size_t)THREADS * EACH);

    if (count == 0)
        return cudaSuccess;
    if (first % BLOCK != 0 || blocks > 0x7fffffff)
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return launch(dequantise_kernel<T>, dim3((unsigned)blocks), THREADS, 0, s, kind, q, absmax, first, count, (T *)dst);
    });
}

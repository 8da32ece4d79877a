/* Activations and their slopes, f32. */
#ifndef OFFLOAD_CUDA_ACT_CUH
#define OFFLOAD_CUDA_ACT_CUH

#include "offload/cuda/common.cuh"

__device__ inline float sigmoid(float x)
{
    return fast_divide(1, 1 + fast_exp(-x));
}

/* x Phi(x), Phi the normal distribution function */
__device__ inline float gelu(float x)
{
    return 0.5f * x * (1 + erff(x * 0.70710678f));
}

/* Phi(x) + x phi(x) */
__device__ inline float gelu_slope(float x)
{
    return 0.5f * (1 + erff(x * 0.70710678f)) + x * 0.39894228f * fast_exp(-0.5f * x * x);
}

/* (x sigmoid(k x))': silu with k = 1, quick gelu with k = 1.702 */
__device__ inline float swish_slope(float k, float x)
{
    float s = sigmoid(k * x);

    return s + k * x * s * (1 - s);
}

__device__ inline float act_apply(enum kernel_act act, float x)
{
    switch (act) {
    case KERNEL_SILU:
        return x * sigmoid(x);
    case KERNEL_GELU:
        return gelu(x);
    case KERNEL_QUICK_GELU:
        return x * sigmoid(1.702f * x);
    default:
        return x;
    }
}

__device__ inline float act_slope(enum kernel_act act, float x)
{
    switch (act) {
    case KERNEL_SILU:
        return swish_slope(1, x);
    case KERNEL_GELU:
        return gelu_slope(x);
    case KERNEL_QUICK_GELU:
        return swish_slope(1.702f, x);
    default:
        return 1;
    }
}

#endif

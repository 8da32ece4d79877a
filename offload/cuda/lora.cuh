/* What the two forms of the low-rank branch share: sizes, and factors seen column by column. */
#ifndef OFFLOAD_CUDA_LORA_CUH
#define OFFLOAD_CUDA_LORA_CUH

#include "offload/cuda/common.cuh"

struct Lora {
    size_t m, k, n, r;
    float scale;
    const float *down, *up;
    const void *x, *base, *dy;
    void *y, *dx;
    bool add;
    float *ddown, *dup;
    void *scratch;
};

/* Element (i, j) of a factor, j < r: column i of x for down, of y for up. */
struct Factor {
    const float *at;
    size_t column, rank, r; /* distances of neighbours */

    __device__ float get(size_t i, size_t j) const
    {
        return j < r ? at[i * column + j * rank] : 0;
    }
};

__device__ inline Factor down_of(const Lora &l)
{
    return {l.down, 1, l.k, l.r};
}

__device__ inline Factor up_of(const Lora &l)
{
    return {l.up, l.r, 1, l.r};
}

/* lora_tensor.cu: types of 16 bits, k and n in multiples of 8, factors and tensors aligned to 16 bytes */
bool lora_on_tensor_cores(const struct kernel_lora *c);
size_t lora_tensor_scratch(const struct kernel_lora *c);
int lora_tensor_forward(cudaStream_t s, enum kernel_type t, const Lora &l);
int lora_tensor_backward(cudaStream_t s, enum kernel_type t, const Lora &l);

#endif

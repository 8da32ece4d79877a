/* How a block of the group norm is laid out: `lanes` rows beside each other, each row `across` vectors of N channels. */
#ifndef OFFLOAD_CUDA_NORM_CUH
#define OFFLOAD_CUDA_NORM_CUH

#include "offload/cuda/act.cuh"

enum { NORM_THREADS = 512, NORM_STRIPS = 64, NORM_ROWS = 8 /* rows of a lane that pay for a block */ };

struct NormShape {
    size_t rows, c, groups, size; /* size: channels of a group */
    size_t strip;                 /* rows of a block */
    unsigned strips, across, lanes;
    float eps;
    enum kernel_act act;
};

/* N: channels of a vector. across may exceed the block: then its threads go over it in turn, one lane. */
inline NormShape norm_shape(size_t rows, size_t c, size_t groups, int n)
{
    NormShape s = {rows, c, groups, c / groups, 0, 0, 0, 0, 0, KERNEL_NONE};

    s.across = (unsigned)(c / (size_t)n);
    s.lanes = s.across >= NORM_THREADS ? 1 : NORM_THREADS / s.across;
    s.strips = (unsigned)div_up(rows, s.lanes * (size_t)NORM_ROWS);
    s.strips = s.strips > NORM_STRIPS ? (unsigned)NORM_STRIPS : s.strips;
    s.strip = div_up(rows, s.strips);
    s.strips = (unsigned)div_up(rows, s.strip);
    return s;
}

/* The thread's first vector of a row (the next is NORM_THREADS further) and its lane: rows lane, lane + lanes, .. of the strip;
 * a lane of s.lanes or more has nothing to do. */
__device__ inline unsigned norm_column(const NormShape &s)
{
    return s.across < NORM_THREADS ? threadIdx.x % s.across : threadIdx.x;
}

__device__ inline unsigned norm_lane(const NormShape &s)
{
    return s.across < NORM_THREADS ? threadIdx.x / s.across : 0;
}

/* The rows of this block. */
__device__ inline size_t norm_first(const NormShape &s)
{
    return blockIdx.x * s.strip;
}

__device__ inline size_t norm_end(const NormShape &s)
{
    size_t end = blockIdx.x * s.strip + s.strip;

    return end < s.rows ? end : s.rows;
}

#endif

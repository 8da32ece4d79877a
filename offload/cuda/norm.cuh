/* How a block of the group norm is laid out: `lanes` rows beside each other, each row `across` vectors of N channels; a thread
 * takes NORM_BATCH rows at a time, all of them under way before the first is used. */
#ifndef OFFLOAD_CUDA_NORM_CUH
#define OFFLOAD_CUDA_NORM_CUH

#include "offload/cuda/act.cuh"

enum { NORM_THREADS = 512, NORM_STRIPS = 128, NORM_BATCH = 4 };

struct NormShape {
    unsigned rows, c, groups, size; /* size: channels of a group */
    unsigned strip, strips;         /* rows of a block, blocks of a sample */
    unsigned across, lanes;
    float eps;
    bool silu;
};

/* n: channels of a vector. across may exceed the block: then its threads go over it in turn, one lane. */
inline NormShape norm_shape(size_t rows, size_t c, size_t groups, int n)
{
    NormShape s = {(unsigned)rows, (unsigned)c, (unsigned)groups, (unsigned)(c / groups), 0, 0, 0, 0, 0, false};

    s.across = s.c / (unsigned)n;
    s.lanes = s.across >= NORM_THREADS ? 1 : NORM_THREADS / s.across;
    s.strips = (unsigned)div_up(rows, s.lanes * (size_t)NORM_BATCH);
    s.strips = s.strips > NORM_STRIPS ? (unsigned)NORM_STRIPS : s.strips;
    s.strip = (unsigned)div_up(rows, s.strips);
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

/* The thread's first row, and the end of this block's rows; none for a lane that has nothing to do. */
__device__ inline unsigned norm_first(const NormShape &s)
{
    return norm_lane(s) < s.lanes ? blockIdx.x * s.strip + norm_lane(s) : s.rows;
}

__device__ inline unsigned norm_end(const NormShape &s)
{
    unsigned end = blockIdx.x * s.strip + s.strip;

    return end < s.rows ? end : s.rows;
}

/* Rows i, i + lanes, .. of N channels from column c0 of x [rows, c], as they are in memory. */
template <class T, int N, int ROWS> struct NormBatch {
    Vector<T, N> at[ROWS];

    __device__ void load(const NormShape &s, const T *x, unsigned i, unsigned end, unsigned c0)
    {
#pragma unroll
        for (int b = 0; b < ROWS; b++) {
            at[b] = {};
            if (i + b * s.lanes < end && c0 < s.c)
                at[b] = *reinterpret_cast<const Vector<T, N> *>(x + (size_t)(i + b * s.lanes) * s.c + c0);
        }
    }
};

#endif

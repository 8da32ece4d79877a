/* Tiles of 16-bit numbers in shared memory as sides of a product on tensor cores (multiply_tile() in device.cuh).
 *
 * A tile has rows of D + 8 elements: D of its own, a multiple of 16, and 8 that put the eight rows which load_matrices() reads
 * into different banks. */
#ifndef OFFLOAD_CUDA_TILE_CUH
#define OFFLOAD_CUDA_TILE_CUH

#include "offload/cuda/common.cuh"

template <int D> constexpr int tile_row = D + 8;

/* A lane's own part of the address: rows of the four matrices one below the other twice, then beside each other; or the other
 * way round. In bytes. */
template <int D> __device__ inline int lane_down()
{
    int lane = threadIdx.x % WARP;

    return (lane % 16 * tile_row<D> + lane / 16 * 8) * 2;
}

template <int D> __device__ inline int lane_right()
{
    int lane = threadIdx.x % WARP;

    return ((lane / 16 * 8 + lane % 8) * tile_row<D> + lane / 8 % 2 * 8) * 2;
}

/* Left side: 16 rows from row0, 16 columns from k0. */
template <class T, int D> __device__ inline void load_left(uint32_t a[4], const T *tile, int row0, int k0)
{
    load_matrices(a, tile, lane_down<D>(), (row0 * tile_row<D> + k0) * 2);
}

/* Left side, turned: 16 columns from row0 as rows, 16 rows from k0 as columns. */
template <class T, int D> __device__ inline void load_left_columns(uint32_t a[4], const T *tile, int row0, int k0)
{
    load_matrices_transposed(a, tile, lane_right<D>(), (k0 * tile_row<D> + row0) * 2);
}

/* Right side of a product with the tile's rows (tile transposed): 16 rows from n0, 16 columns from k0; b[0], b[1] for the
 * first eight rows, b[2], b[3] for the others. */
template <class T, int D> __device__ inline void load_right_rows(uint32_t b[4], const T *tile, int n0, int k0)
{
    load_matrices(b, tile, lane_right<D>(), (n0 * tile_row<D> + k0) * 2);
}

/* Right side of a product with the tile's columns (tile as it is): 16 rows from k0, 16 columns from n0. */
template <class T, int D> __device__ inline void load_right_columns(uint32_t b[4], const T *tile, int k0, int n0)
{
    load_matrices_transposed(b, tile, lane_down<D>(), (k0 * tile_row<D> + n0) * 2);
}

/* Row and column of element e of fragment (m, n), from the warp's first row. */
__device__ inline int row_of(int m, int e)
{
    return m * 16 + e / 2 * 8 + threadIdx.x % WARP / 4;
}

__device__ inline int column_of(int n, int e)
{
    return n * 8 + threadIdx.x % 4 * 2 + e % 2;
}

template <class T> __device__ inline void store_pair(T *p, float a, float b)
{
    *reinterpret_cast<uint32_t *>(p) = pack<T>(a, b);
}

template <> __device__ inline void store_pair<float>(float *p, float a, float b)
{
    float v[2] = {a, b};

    store<float, 2>(p, v);
}

template <class T> __device__ inline void load_pair(float v[2], const T *p)
{
    load<T, 2>(v, p);
}

#endif

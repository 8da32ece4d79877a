/* Convolution on tensor cores as a product whose left side, patches of pixels, is gathered tile by tile and never laid out.
 *
 * A block does ROWS pixels times COLUMNS channels, DEPTH places (tap, channel) a step, with STAGES steps' tiles in shared
 * memory: two travel while one is multiplied. Its eight warps lie 4 x 2, each with 32 x 64 sums. The weight [co, taps, ci]
 * is the right side by its rows in the forward, and by its columns, tap by tap, in the gradient of x. */
#include "offload/cuda/conv.cuh"
#include "offload/cuda/tile.cuh"

enum { THREADS = 256, ROWS = 128, COLUMNS = 128, DEPTH = 32, STAGES = 3, CHUNK = 8, CHUNKS = DEPTH / CHUNK };
enum { WARP_ROWS = 32, WARP_COLUMNS = 64, M = WARP_ROWS / 16, N = WARP_COLUMNS / 8, LOADS = ROWS * CHUNKS / THREADS };

struct Product {
    Patches patches;
    size_t m, n; /* pixels, channels of the result */
    int k, taps, inner; /* places; inner: channels of the result in the weight's row (ci), backward only */
    const void *x, *weight, *residual;
    const float *bias;
    void *y;
};

/* The pixels whose patches a thread gathers. */
struct Pixels {
    int n[LOADS], y[LOADS], x[LOADS]; /* n: -1 behind the last */
};

__device__ inline Pixels find_pixels(const Product &p, size_t row0)
{
    Pixels at;

#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        size_t row = row0 + threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);

        at.x[i] = (int)(row % p.patches.ow);
        at.y[i] = (int)(row / p.patches.ow % p.patches.oh);
        at.n[i] = row < p.m ? (int)(row / p.patches.ow / p.patches.oh) : -1;
    }
    return at;
}

/* Left tile [ROWS, DEPTH]: places k0 on. */
template <class T> __device__ inline void gather(T *tile, const Product &p, const Pixels &at, int k0)
{
    const T *x = static_cast<const T *>(p.x);
    int column = threadIdx.x % CHUNKS * CHUNK, k = k0 + column, tap = k / p.patches.c, channel = k % p.patches.c;
    int ky = tap / p.patches.kw, kx = tap % p.patches.kw;

#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int row = threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);
        int y = p.patches.locate(at.y[i], ky, p.patches.h), z = p.patches.locate(at.x[i], kx, p.patches.w);
        bool valid = at.n[i] >= 0 && k < p.k && y >= 0 && z >= 0;
        const T *src = valid ? x + (((size_t)at.n[i] * p.patches.h + y) * p.patches.w + z) * p.patches.c + channel : x;

        copy_async(tile + row * tile_row<DEPTH> + column, src, valid);
    }
}

/* Right tile of the forward [COLUMNS, DEPTH]: rows of the weight. */
template <class T> __device__ inline void weight_rows(T *tile, const Product &p, size_t column0, int k0)
{
    const T *w = static_cast<const T *>(p.weight);
    int column = threadIdx.x % CHUNKS * CHUNK;

#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int row = threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);
        bool valid = column0 + row < p.n && k0 + column < p.k;

        copy_async(tile + row * tile_row<DEPTH> + column, valid ? w + (column0 + row) * p.k + k0 + column : w, valid);
    }
}

/* Right tile of the backward [DEPTH, COLUMNS]: place (tap, co) is row co * taps + tap of the weight seen as [co * taps, ci]. */
template <class T> __device__ inline void weight_columns(T *tile, const Product &p, size_t column0, int k0)
{
    const T *w = static_cast<const T *>(p.weight);

    for (int i = threadIdx.x; i < DEPTH * (COLUMNS / CHUNK); i += THREADS) {
        int row = i / (COLUMNS / CHUNK), column = i % (COLUMNS / CHUNK) * CHUNK, k = k0 + row;
        bool valid = k < p.k && column0 + column < p.n;
        size_t at = ((size_t)(k % p.patches.c) * p.taps + k / p.patches.c) * p.inner + column0 + column;

        copy_async(tile + row * tile_row<COLUMNS> + column, valid ? w + at : w, valid);
    }
}

/* sum += left right, one step */
template <class T, bool back> __device__ inline void multiply(float (&sum)[M][N][4], const T *left, const T *right)
{
    int warp = threadIdx.x / WARP, row0 = warp % 4 * WARP_ROWS, column0 = warp / 4 * WARP_COLUMNS;

#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t a[M][4], b[4];

#pragma unroll
        for (int m = 0; m < M; m++)
            load_left<T, DEPTH>(a[m], left, row0 + m * 16, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            if (back)
                load_right_columns<T, COLUMNS>(b, right, k, column0 + n * 8);
            else
                load_right_rows<T, DEPTH>(b, right, column0 + n * 8, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_tile<T>(sum[m][n], a[m], b[0], b[1]);
                multiply_tile<T>(sum[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* y = sum + bias + residual */
template <class T> __device__ inline void finish(const Product &p, const float (&sum)[M][N][4], size_t row0, size_t column0)
{
    T *y = static_cast<T *>(p.y);
    const T *residual = static_cast<const T *>(p.residual);

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < N; n++) {
                size_t row = row0 + row_of(m, 2 * half), column = column0 + column_of(n, 0), at = row * p.n + column;
                float r[2] = {0, 0}, b[2] = {0, 0};

                if (row >= p.m || column >= p.n)
                    continue;
                if (residual)
                    load_pair(r, residual + at);
                if (p.bias)
                    load_pair(b, p.bias + column);
                store_pair(y + at, sum[m][n][2 * half] + b[0] + r[0], sum[m][n][2 * half + 1] + b[1] + r[1]);
            }
}

template <class T, bool back> __global__ void __launch_bounds__(THREADS, 2) conv_tensor_kernel(Product p)
{
    constexpr int LEFT = ROWS * tile_row<DEPTH>, RIGHT = back ? DEPTH * tile_row<COLUMNS> : COLUMNS * tile_row<DEPTH>;
    T *left = reinterpret_cast<T *>(shared_memory()), *right = left + STAGES * LEFT;
    size_t row0 = blockIdx.x * (size_t)ROWS, column0 = blockIdx.y * (size_t)COLUMNS;
    int steps = (p.k + DEPTH - 1) / DEPTH, warp = threadIdx.x / WARP;
    float sum[M][N][4] = {};
    Pixels at = find_pixels(p, row0);
    auto fetch = [&](int step) {
        if (step < steps) {
            gather(left + step % STAGES * LEFT, p, at, step * DEPTH);
            if (back)
                weight_columns(right + step % STAGES * RIGHT, p, column0, step * DEPTH);
            else
                weight_rows(right + step % STAGES * RIGHT, p, column0, step * DEPTH);
        }
        copy_async_commit();
    };

    for (int step = 0; step < STAGES - 1; step++)
        fetch(step);
    for (int step = 0; step < steps; step++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads(); /* this step is here, and all are done with the one before, whose place the next takes */
        fetch(step + STAGES - 1);
        multiply<T, back>(sum, left + step % STAGES * LEFT, right + step % STAGES * RIGHT);
    }
    finish<T>(p, sum, row0 + warp % 4 * WARP_ROWS, column0 + warp / 4 * WARP_COLUMNS);
}

static int run(cudaStream_t s, enum kernel_type t, const Product &p, bool back)
{
    size_t left = ROWS * tile_row<DEPTH> * 2, right = back ? DEPTH * tile_row<COLUMNS> * 2 : left;
    dim3 grid((unsigned)div_up(p.m, ROWS), (unsigned)div_up(p.n, COLUMNS));

    if (grid.y > 65535)
        return cudaErrorInvalidValue;
    if (t == KERNEL_BF16)
        return launch(back ? conv_tensor_kernel<bf16, true> : conv_tensor_kernel<bf16, false>, grid, THREADS,
                      STAGES * (left + right), s, p);
    return launch(back ? conv_tensor_kernel<f16, true> : conv_tensor_kernel<f16, false>, grid, THREADS,
                  STAGES * (left + right), s, p);
}

bool conv_on_tensor_cores(const struct kernel_conv *c)
{
    return c->type != KERNEL_F32 && c->ci % CHUNK == 0 && c->co % CHUNK == 0 && aligned16(c->x) && aligned16(c->weight) &&
           aligned16(c->dy) && aligned16(c->y) && aligned16(c->dx) && aligned16(c->residual) && aligned16(c->bias) &&
           has_tensor_cores();
}

int conv_tensor_forward(cudaStream_t s, const struct kernel_conv *c)
{
    int taps = (int)(c->kh * c->kw);
    Product p = {conv_forward_patches(c), c->n * c->oh * c->ow, c->co, taps * (int)c->ci, taps, 0, c->x, c->weight, c->residual,
                 c->bias, c->y};

    return run(s, c->type, p, false);
}

int conv_tensor_backward_data(cudaStream_t s, const struct kernel_conv *c)
{
    int taps = (int)(c->kh * c->kw);
    Product p = {conv_backward_patches(c), c->n * c->h * c->w, c->ci, taps * (int)c->co, taps, (int)c->ci, c->dy, c->weight, NULL,
                 NULL, c->dx};

    return run(s, c->type, p, true);
}

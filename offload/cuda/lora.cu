/* The low-rank branch in f32 arithmetic, for any size; lora_tensor.cu does most calls of 16-bit types.
 *
 * Forward: a block takes ROWS rows, t = scale x downT into shared memory, then y = base + t upT.
 * Backward: a block takes `strip` rows, t = x downT and dt = scale dy up into shared memory; then, column by column of x,
 * dx = dt down and its part of ddown = dtT x; column by column of dy its part of dup = scale dyT t. A second launch adds the
 * blocks' parts in order.
 * R is the rank rounded up to 4, 8, 16 or 32; what lies behind the rank counts as zero. */
#include "offload/cuda/lora.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP, ROWS = 32, BLOCKS = 128, MOST_ROWS = 256 };

/* t [rows][R] = scale * x [rows, columns] f, x from row first on; zeros behind row m. A warp takes E rows at a time. */
template <class T, int R>
__device__ inline void project(float *t, const T *x, size_t columns, const Factor &f, float scale, size_t first, int rows, size_t m)
{
    constexpr int E = R <= 16 ? 4 : 2;
    int lane = threadIdx.x % WARP;

    for (int row = threadIdx.x / WARP * E; row < rows; row += WARPS * E) {
        float sum[E][R] = {};

        for (size_t i = lane; i < columns; i += WARP) {
            float v[E];

#pragma unroll
            for (int e = 0; e < E; e++)
                v[e] = first + row + e < m ? to_f32(x[(first + row + e) * columns + i]) : 0;
#pragma unroll
            for (int j = 0; j < R; j++) {
                float w = f.get(i, j);

#pragma unroll
                for (int e = 0; e < E; e++)
                    sum[e][j] += v[e] * w;
            }
        }
#pragma unroll
        for (int e = 0; e < E; e++)
#pragma unroll
            for (int j = 0; j < R; j++) {
                float total = warp_sum(sum[e][j]);

                if (lane == j % WARP)
                    t[(row + e) * R + j] = scale * total;
            }
    }
}

template <class T, int R> __global__ void __launch_bounds__(THREADS) lora_forward_kernel(Lora l)
{
    enum { GROUP = 8 }; /* rows that a thread does with a column's factor in registers */
    __shared__ float t[ROWS * R];
    size_t first = blockIdx.x * (size_t)ROWS, groups = ROWS / GROUP;
    const T *base = static_cast<const T *>(l.base);
    T *y = static_cast<T *>(l.y);
    Factor up = up_of(l);

    project<T, R>(t, static_cast<const T *>(l.x), l.k, down_of(l), l.scale, first, ROWS, l.m);
    __syncthreads();
    for (size_t i = threadIdx.x; i < l.n * groups; i += THREADS) {
        size_t column = i % l.n, row0 = i / l.n * GROUP;
        float w[R];

#pragma unroll
        for (int j = 0; j < R; j++)
            w[j] = up.get(column, j);
#pragma unroll 4
        for (size_t row = row0; row < row0 + GROUP; row++)
            if (first + row < l.m) {
                size_t at = (first + row) * l.n + column;
                float sum = 0;

#pragma unroll
                for (int j = 0; j < R; j++)
                    sum += t[row * R + j] * w[j];
                y[at] = from_f32<T>(to_f32(base[at]) + sum);
            }
    }
}

/* dx and this block's part of ddown, from dt [strip][R] */
template <class T, int R> __device__ inline void down_columns(const Lora &l, const float *dt, size_t first, size_t rows, float *part)
{
    const T *x = static_cast<const T *>(l.x);
    T *dx = static_cast<T *>(l.dx);
    Factor down = down_of(l);

    for (size_t column = threadIdx.x; column < l.k; column += THREADS) {
        float w[R], sum[R] = {};

#pragma unroll
        for (int j = 0; j < R; j++)
            w[j] = down.get(column, j);
#pragma unroll 4
        for (size_t row = 0; row < rows; row++) {
            size_t at = (first + row) * l.k + column;
            float d = dx && l.add ? to_f32(dx[at]) : 0, v = l.ddown ? to_f32(x[at]) : 0;

#pragma unroll
            for (int j = 0; j < R; j++) {
                d += dt[row * R + j] * w[j];
                sum[j] += dt[row * R + j] * v;
            }
            if (dx)
                dx[at] = from_f32<T>(d);
        }
#pragma unroll
        for (int j = 0; j < R; j++)
            if (l.ddown && (size_t)j < l.r)
                part[j * l.k + column] = sum[j];
    }
}

/* This block's part of dup, from t [strip][R] */
template <class T, int R> __device__ inline void up_columns(const Lora &l, const float *t, size_t first, size_t rows, float *part)
{
    const T *dy = static_cast<const T *>(l.dy);

    for (size_t column = threadIdx.x; column < l.n; column += THREADS) {
        float sum[R] = {};

#pragma unroll 4
        for (size_t row = 0; row < rows; row++) {
            float d = l.scale * to_f32(dy[(first + row) * l.n + column]);

#pragma unroll
            for (int j = 0; j < R; j++)
                sum[j] += d * t[row * R + j];
        }
#pragma unroll
        for (int j = 0; j < R; j++)
            if ((size_t)j < l.r)
                part[column * l.r + j] = sum[j];
    }
}

template <class T, int R> __global__ void __launch_bounds__(THREADS) lora_backward_kernel(Lora l, size_t strip)
{
    float *t = reinterpret_cast<float *>(shared_memory()), *dt = t + strip * R;
    float *part = static_cast<float *>(l.scratch) + blockIdx.x * l.r * (l.k + l.n);
    size_t first = blockIdx.x * strip, rows = l.m - first < strip ? l.m - first : strip;

    if (l.dup)
        project<T, R>(t, static_cast<const T *>(l.x), l.k, down_of(l), 1, first, (int)strip, l.m);
    project<T, R>(dt, static_cast<const T *>(l.dy), l.n, up_of(l), l.scale, first, (int)strip, l.m);
    __syncthreads();
    down_columns<T, R>(l, dt, first, rows, part);
    if (l.dup)
        up_columns<T, R>(l, t, first, rows, part + l.r * l.k);
}

__global__ void lora_join_kernel(Lora l, size_t blocks)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x, down = l.r * l.k, all = l.r * (l.k + l.n);
    const float *part = static_cast<const float *>(l.scratch);
    float *to = i < down ? l.ddown : l.dup, sum = 0;

    if (i >= all || !to)
        return;
#pragma unroll 8
    for (size_t b = 0; b < blocks; b++)
        sum += part[b * all + i];
    to[i < down ? i : i - down] = sum;
}

static size_t strip_rows(size_t m)
{
    size_t rows = div_up(div_up(m, BLOCKS), ROWS) * ROWS;

    return rows < MOST_ROWS ? rows : (size_t)MOST_ROWS;
}

static Lora describe(const struct kernel_lora *c)
{
    return {c->m, c->k, c->n, c->r, c->scale, c->down, c->up, c->x, c->base, c->dy, c->y, c->dx, c->add, c->ddown, c->dup,
            c->scratch};
}

static bool fits(const struct kernel_lora *c)
{
    return c->m > 0 && c->k > 0 && c->n > 0 && c->r > 0 && c->r <= KERNEL_LORA_RANK;
}

template <class F> int with_rank(size_t r, F f)
{
    if (r <= 4)
        return f(std::integral_constant<int, 4>());
    if (r <= 8)
        return f(std::integral_constant<int, 8>());
    if (r <= 16)
        return f(std::integral_constant<int, 16>());
    return f(std::integral_constant<int, 32>());
}

size_t kernel_lora_scratch(const struct kernel_lora *c)
{
    size_t plain = div_up(c->m, strip_rows(c->m)) * c->r * (c->k + c->n) * sizeof(float), tensor = lora_tensor_scratch(c);

    return plain > tensor ? plain : tensor; /* which of them runs also depends on pointers */
}

int kernel_lora_forward(cudaStream_t s, const struct kernel_lora *c)
{
    if (!fits(c))
        return cudaErrorInvalidValue;
    if (lora_on_tensor_cores(c))
        return lora_tensor_forward(s, c->type, describe(c));
    return with_type(c->type, [&](auto type) {
        using T = decltype(type);
        return with_rank(c->r, [&](auto rank) {
            constexpr int R = decltype(rank)::value;

            return launch(lora_forward_kernel<T, R>, dim3((unsigned)div_up(c->m, ROWS)), THREADS, 0, s, describe(c));
        });
    });
}

int kernel_lora_backward(cudaStream_t s, const struct kernel_lora *c)
{
    Lora l = describe(c);
    size_t strip = strip_rows(c->m), blocks = div_up(c->m, strip);

    if (!fits(c))
        return cudaErrorInvalidValue;
    if (lora_on_tensor_cores(c))
        return lora_tensor_backward(s, c->type, l);
    return with_type(c->type, [&](auto type) {
        using T = decltype(type);
        return with_rank(c->r, [&](auto rank) {
            constexpr int R = decltype(rank)::value;
            int e = launch(lora_backward_kernel<T, R>, dim3((unsigned)blocks), THREADS, 2 * strip * R * sizeof(float), s, l, strip);

            if (e || (!l.ddown && !l.dup))
                return e;
            return launch(lora_join_kernel, dim3((unsigned)div_up(l.r * (l.k + l.n), 128)), 128, 0, s, l, blocks);
        });
    });
}

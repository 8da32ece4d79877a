/* Layer norm over the last dimension, a warp a row: y = gamma (x - mean) rstd + beta. A row is read up to three times, by
 * one warp, so from the second time on it comes from the first-level cache. */
#include "offload/cuda/common.cuh"

enum { LAYER_NORM_THREADS = 256, LAYER_NORM_ROWS = LAYER_NORM_THREADS / WARP };

template <class T, int N> __global__ void __launch_bounds__(LAYER_NORM_THREADS)
    layer_norm_kernel(const T *x, const float *gamma, const float *beta, T *y, float *stats, size_t rows, size_t c, float eps)
{
    size_t row = blockIdx.x * (size_t)LAYER_NORM_ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float mean = 0, square = 0, rstd, v[N];

    if (row >= rows)
        return;
    x += row * c;
    y += row * c;
    for (size_t i = lane * N; i < c; i += WARP * N) {
        load<T, N>(v, x + i);
        for (int j = 0; j < N; j++)
            mean += v[j];
    }
    mean = warp_sum(mean) / (float)c;
    for (size_t i = lane * N; i < c; i += WARP * N) {
        load<T, N>(v, x + i);
        for (int j = 0; j < N; j++)
            square += (v[j] - mean) * (v[j] - mean);
    }
    rstd = 1 / sqrtf(warp_sum(square) / (float)c + eps);
    for (size_t i = lane * N; i < c; i += WARP * N) {
        load<T, N>(v, x + i);
        for (int j = 0; j < N; j++)
            v[j] = gamma[i + j] * ((v[j] - mean) * rstd) + beta[i + j];
        store<T, N>(y + i, v);
    }
    if (lane == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
}

/* With h = (x - mean) rstd, e = dy gamma: dx = rstd (e - mean(e) - h mean(e h)) */
template <class T, int N> __global__ void __launch_bounds__(LAYER_NORM_THREADS)
    layer_norm_backward_kernel(const T *x, const float *gamma, const float *stats, const T *dy, T *dx, size_t rows, size_t c)
{
    size_t row = blockIdx.x * (size_t)LAYER_NORM_ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float mean, rstd, level = 0, slope = 0, v[N], d[N];

    if (row >= rows)
        return;
    mean = stats[2 * row];
    rstd = stats[2 * row + 1];
    x += row * c;
    dy += row * c;
    dx += row * c;
    for (size_t i = lane * N; i < c; i += WARP * N) {
        load<T, N>(v, x + i);
        load<T, N>(d, dy + i);
        for (int j = 0; j < N; j++) {
            float e = d[j] * gamma[i + j];

            level += e;
            slope += e * (v[j] - mean);
        }
    }
    level = warp_sum(level) / (float)c;
    slope = warp_sum(slope) * rstd * rstd / (float)c;
    for (size_t i = lane * N; i < c; i += WARP * N) {
        load<T, N>(v, x + i);
        load<T, N>(d, dy + i);
        for (int j = 0; j < N; j++)
            d[j] = rstd * (d[j] * gamma[i + j] - level - (v[j] - mean) * slope);
        store<T, N>(dx + i, d);
    }
}

int kernel_layer_norm(cudaStream_t s, enum kernel_type t, const void *x, const float *gamma, const float *beta, void *y,
                      float *stats, size_t rows, size_t c, float eps)
{
    size_t blocks = div_up(rows, LAYER_NORM_ROWS);

    if (rows == 0)
        return cudaSuccess;
    if (c == 0 || blocks > 0x7fffffff)
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        constexpr int N = vector_size<T>();
        return launch(c % N == 0 ? layer_norm_kernel<T, N> : layer_norm_kernel<T, 1>, dim3((unsigned)blocks),
                      LAYER_NORM_THREADS, 0, s, (const T *)x, gamma, beta, (T *)y, stats, rows, c, eps);
    });
}

int kernel_layer_norm_backward(cudaStream_t s, enum kernel_type t, const void *x, const float *gamma, const float *stats,
                               const void *dy, void *dx, size_t rows, size_t c)
{
    size_t blocks = div_up(rows, LAYER_NORM_ROWS);

    if (rows == 0)
        return cudaSuccess;
    if (c == 0 || blocks > 0x7fffffff)
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        constexpr int N = vector_size<T>();
        return launch(c % N == 0 ? layer_norm_backward_kernel<T, N> : layer_norm_backward_kernel<T, 1>,
                      dim3((unsigned)blocks), LAYER_NORM_THREADS, 0, s, (const T *)x, gamma, stats, (const T *)dy, (T *)dx,
                      rows, c);
    });
}

/* Layer norm over the last dimension, a warp a row: y = gamma (x - mean) rstd + beta. The warp keeps the row in registers, so it
 * is read once; rows of more than 10 vectors a lane are read again from the caches. */
#include "offload/cuda/common.cuh"

enum { LAYER_NORM_THREADS = 256, LAYER_NORM_ROWS = LAYER_NORM_THREADS / WARP };

/* This lane's vectors of a row of c elements; with P 0 nothing is kept. */
template <class T, int N, int P> struct Row {
    const T *x;
    Vector<T, N> at[P > 0 ? P : 1];

    __device__ void load(const T *row, size_t c)
    {
        x = row;
#pragma unroll
        for (int p = 0; p < P; p++)
            if (place(p) < c)
                at[p] = *reinterpret_cast<const Vector<T, N> *>(row + place(p));
    }

    __device__ static size_t place(int p)
    {
        return ((size_t)p * WARP + threadIdx.x % WARP) * N;
    }

    /* Vector p as f32 */
    __device__ void get(float v[N], int p) const
    {
        Vector<T, N> raw = P > 0 ? at[P > 0 ? p : 0] : *reinterpret_cast<const Vector<T, N> *>(x + place(p));

#pragma unroll
        for (int j = 0; j < N; j++)
            v[j] = to_f32(raw.at[j]);
    }

    /* f(p, place) for each vector of the row */
    template <class F> __device__ static void each(size_t c, F f)
    {
        if (P > 0) {
#pragma unroll
            for (int p = 0; p < P; p++)
                if (place(p) < c)
                    f(p, place(p));
        } else {
            for (int p = 0; place(p) < c; p++)
                f(p, place(p));
        }
    }
};

template <class T, int N, int P> __global__ void __launch_bounds__(LAYER_NORM_THREADS)
    layer_norm_kernel(const T *x, const float *gamma, const float *beta, T *y, float *stats, size_t rows, size_t c, float eps)
{
    size_t i = blockIdx.x * (size_t)LAYER_NORM_ROWS + threadIdx.x / WARP;
    float mean = 0, square = 0, rstd, v[N];
    Row<T, N, P> row;

    if (i >= rows)
        return;
    row.load(x + i * c, c);
    row.each(c, [&](int p, size_t) {
        row.get(v, p);
        for (int j = 0; j < N; j++)
            mean += v[j];
    });
    mean = warp_sum(mean) / (float)c;
    row.each(c, [&](int p, size_t) {
        row.get(v, p);
        for (int j = 0; j < N; j++)
            square += (v[j] - mean) * (v[j] - mean);
    });
    rstd = 1 / sqrtf(warp_sum(square) / (float)c + eps);
    row.each(c, [&](int p, size_t at) {
        row.get(v, p);
        for (int j = 0; j < N; j++)
            v[j] = gamma[at + j] * ((v[j] - mean) * rstd) + beta[at + j];
        store<T, N>(y + i * c + at, v);
    });
    if (threadIdx.x % WARP == 0) {
        stats[2 * i] = mean;
        stats[2 * i + 1] = rstd;
    }
}

/* With h = (x - mean) rstd, e = dy gamma: dx = rstd (e - mean(e) - h mean(e h)) */
template <class T, int N, int P> __global__ void __launch_bounds__(LAYER_NORM_THREADS)
    layer_norm_backward_kernel(const T *x, const float *gamma, const float *stats, const T *dy, T *dx, size_t rows, size_t c)
{
    size_t i = blockIdx.x * (size_t)LAYER_NORM_ROWS + threadIdx.x / WARP;
    float mean, rstd, level = 0, slope = 0, v[N], d[N];
    Row<T, N, P> row, grad;

    if (i >= rows)
        return;
    row.load(x + i * c, c);
    grad.load(dy + i * c, c);
    mean = stats[2 * i];
    rstd = stats[2 * i + 1];
    row.each(c, [&](int p, size_t at) {
        row.get(v, p);
        grad.get(d, p);
        for (int j = 0; j < N; j++) {
            float e = d[j] * gamma[at + j];

            level += e;
            slope += e * (v[j] - mean);
        }
    });
    level = warp_sum(level) / (float)c;
    slope = warp_sum(slope) * rstd * rstd / (float)c;
    row.each(c, [&](int p, size_t at) {
        row.get(v, p);
        grad.get(d, p);
        for (int j = 0; j < N; j++)
            d[j] = rstd * (d[j] * gamma[at + j] - level - (v[j] - mean) * slope);
        store<T, N>(dx + i * c + at, d);
    });
}

/* Calls f with the elements of a vector and the vectors of a lane that a row of c elements takes. */
template <class T, class F> int with_row(size_t c, F f)
{
    constexpr int N = vector_size<T>();
    using Vectors = std::integral_constant<int, N>;

    if (c % N != 0)
        return f(std::integral_constant<int, 1>(), std::integral_constant<int, 0>());
    if (c <= 2 * WARP * N)
        return f(Vectors(), std::integral_constant<int, 2>());
    if (c <= 5 * WARP * N)
        return f(Vectors(), std::integral_constant<int, 5>());
    if (c <= 10 * WARP * N)
        return f(Vectors(), std::integral_constant<int, 10>());
    return f(Vectors(), std::integral_constant<int, 0>());
}

int kernel_layer_norm(cudaStream_t s, enum kernel_type t, const void *x, const float *gamma, const float *beta, void *y,
                      float *stats, size_t rows, size_t c, float eps)
{
    size_t blocks = div_up(rows, LAYER_NORM_ROWS);

    if (rows == 0)
        return cudaSuccess;
    if (c == 0 || c > 1 << 30 || blocks > 0x7fffffff)
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return with_row<T>(c, [=](auto vector, auto kept) {
            constexpr int N = decltype(vector)::value, P = decltype(kept)::value;

            return launch(layer_norm_kernel<T, N, P>, dim3((unsigned)blocks), LAYER_NORM_THREADS, 0, s, (const T *)x, gamma, beta,
                          (T *)y, stats, rows, c, eps);
        });
    });
}

int kernel_layer_norm_backward(cudaStream_t s, enum kernel_type t, const void *x, const float *gamma, const float *stats,
                               const void *dy, void *dx, size_t rows, size_t c)
{
    size_t blocks = div_up(rows, LAYER_NORM_ROWS);

    if (rows == 0)
        return cudaSuccess;
    if (c == 0 || c > 1 << 30 || blocks > 0x7fffffff)
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return with_row<T>(c, [=](auto vector, auto kept) {
            constexpr int N = decltype(vector)::value, P = decltype(kept)::value;

            return launch(layer_norm_backward_kernel<T, N, P>, dim3((unsigned)blocks), LAYER_NORM_THREADS, 0, s, (const T *)x,
                          gamma, stats, (const T *)dy, (T *)dx, rows, c);
        });
    });
}

/* Group norm, channels last, with an optional SiLU behind it:
 *     y = act(gamma (x - mean) rstd + beta), mean and variance over a group's channels and all pixels of a sample.
 *
 * Two launches a direction: strips of rows give two sums for each group; every block of the second launch joins them, in
 * order, and does its strip. The forward sums x - shift, the shift being the mean of the group's first pixel, so that nothing
 * cancels where the mean is large.
 * Scratch: sums [n, strips, groups, 2], shifts [n, groups]. */
#include "offload/cuda/norm.cuh"

/* The sums of all lanes, group by group: sum [2][lanes][c] in shared memory -> part [groups][2]. A warp a group. */
__device__ inline void join_lanes(const NormShape &s, const float *sum, float *part)
{
    unsigned lane = threadIdx.x % WARP, size = (unsigned)s.size, count = s.lanes * size;

    for (size_t g = threadIdx.x / WARP; g < s.groups; g += NORM_THREADS / WARP)
        for (size_t k = 0; k < 2; k++) {
            float total = 0;

            for (unsigned i = lane; i < count; i += WARP)
                total += sum[(k * s.lanes + i / size) * s.c + g * size + i % size];
            total = warp_sum(total);
            if (lane == 0)
                part[g * 2 + k] = total;
        }
}

/* The strips' sums of one sample: part [strips, groups, 2] -> total [groups][2] in shared memory. A warp a group. */
__device__ inline void join_strips(const NormShape &s, const float *part, float *total)
{
    unsigned lane = threadIdx.x % WARP;

    for (size_t g = threadIdx.x / WARP; g < s.groups; g += NORM_THREADS / WARP) {
        float a = 0, b = 0;

        for (size_t i = lane; i < s.strips; i += WARP) {
            a += part[(i * s.groups + g) * 2];
            b += part[(i * s.groups + g) * 2 + 1];
        }
        a = warp_sum(a);
        b = warp_sum(b);
        if (lane == 0) {
            total[g * 2] = a;
            total[g * 2 + 1] = b;
        }
    }
    __syncthreads();
}

/* Means of each group over the first pixel of a sample, to shared memory. A warp a group. */
template <class T> __device__ inline void find_shift(const NormShape &s, const T *x, float *shift)
{
    unsigned lane = threadIdx.x % WARP;

    for (size_t g = threadIdx.x / WARP; g < s.groups; g += NORM_THREADS / WARP) {
        float total = 0;

        for (size_t i = lane; i < s.size; i += WARP)
            total += to_f32(x[g * s.size + i]);
        total = warp_sum(total);
        if (lane == 0)
            shift[g] = total / (float)s.size;
    }
    __syncthreads();
}

/* Puts a thread's sums a, b of N channels where join_lanes() looks. */
template <int N> __device__ inline void keep_sums(const NormShape &s, size_t c0, const float a[N], const float b[N], float *sum)
{
    size_t lane = norm_lane(s);

    for (int j = 0; j < N; j++) {
        sum[lane * s.c + c0 + j] = a[j];
        sum[(s.lanes + lane) * s.c + c0 + j] = b[j];
    }
}

template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS)
    group_norm_sums_kernel(NormShape s, const T *x, float *part, float *shifts)
{
    float *sum = reinterpret_cast<float *>(shared_memory()), *shift = sum + 2 * s.lanes * s.c;
    size_t sample = blockIdx.y, end = norm_end(s);

    x += sample * s.rows * s.c;
    find_shift(s, x, shift);
    for (size_t v = norm_column(s); v < s.across && norm_lane(s) < s.lanes; v += NORM_THREADS) {
        float a[N] = {0}, b[N] = {0}, k[N], value[N];
        size_t c0 = v * N;

        for (int j = 0; j < N; j++)
            k[j] = shift[(c0 + j) / s.size];
#pragma unroll 4
        for (size_t i = norm_first(s) + norm_lane(s); i < end; i += s.lanes) {
            load<T, N>(value, x + i * s.c + c0);
            for (int j = 0; j < N; j++) {
                float d = value[j] - k[j];

                a[j] += d;
                b[j] += d * d;
            }
        }
        keep_sums<N>(s, c0, a, b, sum);
    }
    __syncthreads();
    join_lanes(s, sum, part + (sample * s.strips + blockIdx.x) * s.groups * 2);
    for (size_t g = threadIdx.x; g < s.groups && blockIdx.x == 0; g += NORM_THREADS)
        shifts[sample * s.groups + g] = shift[g];
}

/* total [groups][2]: sums of x - shift and of its square -> mean and rstd; one block also keeps them in stats [groups, 2] */
__device__ inline void finish_stats(const NormShape &s, const float *shifts, float *total, float *stats)
{
    float count = (float)(s.rows * s.size);

    for (size_t g = threadIdx.x; g < s.groups; g += NORM_THREADS) {
        float mean = total[2 * g] / count, square = total[2 * g + 1] / count;

        total[2 * g] = shifts[g] + mean;
        total[2 * g + 1] = 1 / sqrtf(fmaxf(square - mean * mean, 0) + s.eps);
        if (blockIdx.x == 0) {
            stats[2 * g] = total[2 * g];
            stats[2 * g + 1] = total[2 * g + 1];
        }
    }
    __syncthreads();
}

template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS)
    group_norm_apply_kernel(NormShape s, const T *x, const float *gamma, const float *beta, T *y, const float *part,
                            const float *shifts, float *stats)
{
    float *total = reinterpret_cast<float *>(shared_memory());
    size_t sample = blockIdx.y, end = norm_end(s);

    x += sample * s.rows * s.c;
    y += sample * s.rows * s.c;
    join_strips(s, part + sample * s.strips * s.groups * 2, total);
    finish_stats(s, shifts + sample * s.groups, total, stats + sample * s.groups * 2);
    for (size_t v = norm_column(s); v < s.across && norm_lane(s) < s.lanes; v += NORM_THREADS) {
        float mean[N], scale[N], offset[N], value[N];
        size_t c0 = v * N;

        for (int j = 0; j < N; j++) {
            size_t g = (c0 + j) / s.size;

            mean[j] = total[2 * g];
            scale[j] = total[2 * g + 1] * gamma[c0 + j];
            offset[j] = beta[c0 + j];
        }
        for (size_t i = norm_first(s) + norm_lane(s); i < end; i += s.lanes) {
            load<T, N>(value, x + i * s.c + c0);
            for (int j = 0; j < N; j++)
                value[j] = act_apply(s.act, (value[j] - mean[j]) * scale[j] + offset[j]);
            store<T, N>(y + i * s.c + c0, value);
        }
    }
}

/* Backward. With e = dy act'(y before act) gamma:
 *     dx = rstd e - (x - mean) slope - level,  level = rstd mean(e),  slope = rstd^3 mean(e (x - mean)). */

/* What the backward needs of N channels. */
template <int N> struct Channels {
    float mean[N], rstd[N], gamma[N], beta[N];

    __device__ Channels(const NormShape &s, size_t c0, const float *stats, const float *gammas, const float *betas)
    {
        for (int j = 0; j < N; j++) {
            size_t g = (c0 + j) / s.size;

            mean[j] = stats[2 * g];
            rstd[j] = stats[2 * g + 1];
            gamma[j] = gammas[c0 + j];
            beta[j] = betas[c0 + j];
        }
    }

    __device__ float slope(const NormShape &s, int j, float x, float dy) const
    {
        return dy * gamma[j] * act_slope(s.act, (x - mean[j]) * rstd[j] * gamma[j] + beta[j]);
    }
};

template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS)
    group_norm_slopes_kernel(NormShape s, const T *x, const float *gamma, const float *beta, const float *stats, const T *dy,
                             float *part)
{
    float *sum = reinterpret_cast<float *>(shared_memory());
    size_t sample = blockIdx.y, end = norm_end(s);

    x += sample * s.rows * s.c;
    dy += sample * s.rows * s.c;
    for (size_t v = norm_column(s); v < s.across && norm_lane(s) < s.lanes; v += NORM_THREADS) {
        float a[N] = {0}, b[N] = {0}, value[N], d[N];
        Channels<N> ch(s, v * N, stats + sample * s.groups * 2, gamma, beta);

#pragma unroll 2
        for (size_t i = norm_first(s) + norm_lane(s); i < end; i += s.lanes) {
            load<T, N>(value, x + i * s.c + v * N);
            load<T, N>(d, dy + i * s.c + v * N);
            for (int j = 0; j < N; j++) {
                float e = ch.slope(s, j, value[j], d[j]);

                a[j] += e;
                b[j] += e * (value[j] - ch.mean[j]);
            }
        }
        keep_sums<N>(s, v * N, a, b, sum);
    }
    __syncthreads();
    join_lanes(s, sum, part + (sample * s.strips + blockIdx.x) * s.groups * 2);
}

template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS)
    group_norm_gradient_kernel(NormShape s, const T *x, const float *gamma, const float *beta, const float *stats, const T *dy,
                               T *dx, const float *part)
{
    float *total = reinterpret_cast<float *>(shared_memory()), count = (float)(s.rows * s.size);
    size_t sample = blockIdx.y, end = norm_end(s);

    x += sample * s.rows * s.c;
    dy += sample * s.rows * s.c;
    dx += sample * s.rows * s.c;
    join_strips(s, part + sample * s.strips * s.groups * 2, total);
    for (size_t v = norm_column(s); v < s.across && norm_lane(s) < s.lanes; v += NORM_THREADS) {
        float level[N], slope[N], value[N], d[N];
        size_t c0 = v * N;
        Channels<N> ch(s, c0, stats + sample * s.groups * 2, gamma, beta);

        for (int j = 0; j < N; j++) {
            size_t g = (c0 + j) / s.size;

            level[j] = ch.rstd[j] * total[2 * g] / count;
            slope[j] = ch.rstd[j] * ch.rstd[j] * ch.rstd[j] * total[2 * g + 1] / count;
        }
        for (size_t i = norm_first(s) + norm_lane(s); i < end; i += s.lanes) {
            load<T, N>(value, x + i * s.c + c0);
            load<T, N>(d, dy + i * s.c + c0);
            for (int j = 0; j < N; j++)
                d[j] = ch.rstd[j] * ch.slope(s, j, value[j], d[j]) - (value[j] - ch.mean[j]) * slope[j] - level[j];
            store<T, N>(dx + i * s.c + c0, d);
        }
    }
}

size_t kernel_group_norm_scratch(size_t n, size_t rows, size_t c, size_t groups)
{
    size_t strips = rows < NORM_STRIPS ? rows : (size_t)NORM_STRIPS;

    (void)c;
    return n * groups * (strips * 2 + 1) * sizeof(float);
}

/* The layout of a call, and both launches of it, for vectors of 16 bytes or single elements. */
template <class T, class F> int with_vector(size_t rows, size_t c, size_t groups, F f)
{
    constexpr int N = vector_size<T>();

    if (c % N == 0)
        return f(std::integral_constant<int, N>(), norm_shape(rows, c, groups, N));
    return f(std::integral_constant<int, 1>(), norm_shape(rows, c, groups, 1));
}

static bool fits(size_t n, size_t rows, size_t c, size_t groups)
{
    return n > 0 && n <= 65535 && rows > 0 && groups > 0 && c % groups == 0 && c > 0 && c / groups < 1 << 20;
}

int kernel_group_norm(cudaStream_t s, enum kernel_type t, enum kernel_act act, const void *x, const float *gamma,
                      const float *beta, void *y, float *stats, size_t n, size_t rows, size_t c, size_t groups, float eps,
                      void *scratch)
{
    if (!fits(n, rows, c, groups))
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return with_vector<T>(rows, c, groups, [=](auto vector, NormShape shape) {
            constexpr int N = decltype(vector)::value;
            float *part = (float *)scratch, *shifts = part + n * shape.strips * groups * 2;
            size_t shared = (2 * shape.lanes * c + groups) * sizeof(float);
            dim3 grid(shape.strips, (unsigned)n);
            int e;

            shape.eps = eps;
            shape.act = act;
            e = launch(group_norm_sums_kernel<T, N>, grid, NORM_THREADS, shared, s, shape, (const T *)x, part, shifts);
            return e ? e
                     : launch(group_norm_apply_kernel<T, N>, grid, NORM_THREADS, 2 * groups * sizeof(float), s, shape,
                              (const T *)x, gamma, beta, (T *)y, (const float *)part, (const float *)shifts, stats);
        });
    });
}

int kernel_group_norm_backward(cudaStream_t s, enum kernel_type t, enum kernel_act act, const void *x, const float *gamma,
                               const float *beta, const float *stats, const void *dy, void *dx, size_t n, size_t rows, size_t c,
                               size_t groups, void *scratch)
{
    if (!fits(n, rows, c, groups))
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return with_vector<T>(rows, c, groups, [=](auto vector, NormShape shape) {
            constexpr int N = decltype(vector)::value;
            float *part = (float *)scratch;
            dim3 grid(shape.strips, (unsigned)n);
            int e;

            shape.act = act;
            e = launch(group_norm_slopes_kernel<T, N>, grid, NORM_THREADS, 2 * shape.lanes * c * sizeof(float), s, shape,
                       (const T *)x, gamma, beta, stats, (const T *)dy, part);
            return e ? e
                     : launch(group_norm_gradient_kernel<T, N>, grid, NORM_THREADS, 2 * groups * sizeof(float), s, shape,
                              (const T *)x, gamma, beta, stats, (const T *)dy, (T *)dx, (const float *)part);
        });
    });
}

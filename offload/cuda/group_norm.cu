/* Group norm, channels last, with an optional SiLU behind it:
 *     y = act(gamma (x - mean) rstd + beta), mean and variance over a group's channels and all pixels of a sample.
 *
 * Two launches a direction: strips of rows give two sums for each group; every block of the second launch joins them, in
 * order, and does its strip. The forward sums x - shift, the shift being the group's first number in the sample, so that nothing
 * cancels where the mean is large.
 * Scratch: sums [n, groups, strips, 2], shifts [n, groups]. */
#include "offload/cuda/norm.cuh"

/* z, or silu(z); its slope. Chosen without a branch: 32 numbers a thread follow each other. */
__device__ inline float norm_act(bool silu, float z)
{
    return z * (silu ? sigmoid(z) : 1);
}

__device__ inline float norm_slope(bool silu, float z)
{
    float s = sigmoid(z);

    return silu ? s + z * s * (1 - s) : 1;
}

/* Puts a thread's sums a, b of N channels into sum [2][lanes][c] in shared memory. */
template <int N> __device__ inline void keep_sums(const NormShape &s, unsigned c0, const float a[N], const float b[N], float *sum)
{
    unsigned at = norm_lane(s) * s.c + c0;

    for (int j = 0; j < N; j++) {
        sum[at + j] = a[j];
        sum[s.lanes * s.c + at + j] = b[j];
    }
}

/* The sums of all lanes, group by group, to part [groups, strips, 2]. A warp a group. */
__device__ inline void join_lanes(const NormShape &s, const float *sum, float *part)
{
    unsigned lane = threadIdx.x % WARP, count = s.lanes * s.size;

    __syncthreads();
    for (unsigned g = threadIdx.x / WARP; g < s.groups; g += NORM_THREADS / WARP) {
        const float *first = sum + g * s.size, *second = first + s.lanes * s.c;
        float a = 0, b = 0;

        for (unsigned i = lane; i < count; i += WARP) {
            unsigned at = i / s.size * s.c + i % s.size;

            a += first[at];
            b += second[at];
        }
        a = warp_sum(a);
        b = warp_sum(b);
        if (lane == 0) {
            float v[2] = {a, b};

            store<float, 2>(part + (g * s.strips + blockIdx.x) * 2, v);
        }
    }
}

/* The strips' sums of group g: by a whole warp. */
__device__ inline void join_strips(const NormShape &s, const float *part, unsigned g, float total[2])
{
    total[0] = total[1] = 0;
#pragma unroll 4
    for (unsigned i = threadIdx.x % WARP; i < s.strips; i += WARP) {
        float v[2];

        load<float, 2>(v, part + (g * s.strips + i) * 2);
        total[0] += v[0];
        total[1] += v[1];
    }
    total[0] = warp_sum(total[0]);
    total[1] = warp_sum(total[1]);
}

/* What belongs to the groups of N channels from c0 on: f(j, group) for each. */
template <int N, class F> __device__ inline void each_group(const NormShape &s, unsigned c0, F f)
{
    unsigned g = c0 / s.size, at = c0 - g * s.size;

#pragma unroll
    for (int j = 0; j < N; j++) {
        f(j, g);
        if (++at == s.size) {
            at = 0;
            g++;
        }
    }
}

template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS)
    group_norm_sums_kernel(NormShape s, const T *x, float *part, float *shifts)
{
    float *sum = reinterpret_cast<float *>(shared_memory());
    size_t sample = blockIdx.y;
    unsigned end = norm_end(s);

    x += sample * s.rows * s.c;
    for (unsigned v = norm_column(s); v < s.across && norm_lane(s) < s.lanes; v += NORM_THREADS) {
        float a[N] = {0}, b[N] = {0}, k[N];
        unsigned c0 = v * N;

        each_group<N>(s, c0, [&](int j, unsigned g) { k[j] = to_f32(x[g * s.size]); });
        for (unsigned i = norm_first(s); i < end; i += NORM_BATCH * s.lanes) {
            NormBatch<T, N, NORM_BATCH> batch;

            batch.load(s, x, i, end, c0);
#pragma unroll
            for (int r = 0; r < NORM_BATCH; r++)
                if (i + r * s.lanes < end)
                    for (int j = 0; j < N; j++) {
                        float d = to_f32(batch.at[r].at[j]) - k[j];

                        a[j] += d;
                        b[j] += d * d;
                    }
        }
        keep_sums<N>(s, c0, a, b, sum);
    }
    join_lanes(s, sum, part + sample * s.strips * s.groups * 2);
    for (unsigned g = threadIdx.x; g < s.groups && blockIdx.x == 0; g += NORM_THREADS)
        shifts[sample * s.groups + g] = to_f32(x[g * s.size]);
}

/* Mean and rstd of every group to shared memory [groups][2]; one block of a sample also keeps them in stats [groups, 2]. */
__device__ inline void finish_stats(const NormShape &s, const float *part, const float *shifts, float *total, float *stats)
{
    float count = (float)s.rows * (float)s.size;

    for (unsigned g = threadIdx.x / WARP; g < s.groups; g += NORM_THREADS / WARP) {
        float sums[2], shift = shifts[g];

        join_strips(s, part, g, sums);
        if (threadIdx.x % WARP == 0) {
            float mean = sums[0] / count, rstd = 1 / sqrtf(fmaxf(sums[1] / count - mean * mean, 0) + s.eps);

            total[2 * g] = shift + mean;
            total[2 * g + 1] = rstd;
            if (blockIdx.x == 0) {
                stats[2 * g] = shift + mean;
                stats[2 * g + 1] = rstd;
            }
        }
    }
    __syncthreads();
}

template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS)
    group_norm_apply_kernel(NormShape s, const T *x, const float *gamma, const float *beta, T *y, const float *part,
                            const float *shifts, float *stats)
{
    float *total = reinterpret_cast<float *>(shared_memory());
    size_t sample = blockIdx.y;
    unsigned end = norm_end(s);
    NormBatch<T, N, NORM_BATCH> batch;

    x += sample * s.rows * s.c;
    y += sample * s.rows * s.c;
    batch.load(s, x, norm_first(s), end, norm_column(s) * N); /* under way while the sums are joined */
    finish_stats(s, part + sample * s.strips * s.groups * 2, shifts + sample * s.groups, total, stats + sample * s.groups * 2);
    for (unsigned v = norm_column(s); v < s.across && norm_lane(s) < s.lanes; v += NORM_THREADS) {
        float scale[N], offset[N], mean[N], value[N];
        unsigned c0 = v * N, i = norm_first(s);

        each_group<N>(s, c0, [&](int j, unsigned g) {
            mean[j] = total[2 * g];
            scale[j] = total[2 * g + 1] * gamma[c0 + j];
            offset[j] = beta[c0 + j];
        });
        if (v != norm_column(s))
            batch.load(s, x, i, end, c0);
        for (; i < end; i += NORM_BATCH * s.lanes, batch.load(s, x, i, end, c0))
#pragma unroll
            for (int r = 0; r < NORM_BATCH; r++) {
                for (int j = 0; j < N; j++)
                    value[j] = norm_act(s.silu, (to_f32(batch.at[r].at[j]) - mean[j]) * scale[j] + offset[j]);
                if (i + r * s.lanes < end)
                    store<T, N>(y + (size_t)(i + r * s.lanes) * s.c + c0, value);
            }
    }
}

/* Backward. With e = dy act'(y before act) gamma rstd:
 *     dx = e - (x - mean) slope - level,  level = mean(e),  slope = rstd^2 mean(e (x - mean)). */

enum { BACK_BATCH = 2 }; /* rows of both x and dy under way: registers set the limit */

/* What the backward needs of N channels. */
template <int N> struct Channels {
    float mean[N], scale[N], offset[N];

    __device__ void load(const NormShape &s, unsigned c0, const float *stats, const float *gamma, const float *beta)
    {
        each_group<N>(s, c0, [&](int j, unsigned g) {
            mean[j] = stats[2 * g];
            scale[j] = stats[2 * g + 1] * gamma[c0 + j];
            offset[j] = beta[c0 + j];
        });
    }

    /* e of channel j, given x - mean */
    __device__ float slope(const NormShape &s, int j, float x, float dy) const
    {
        return dy * scale[j] * norm_slope(s.silu, x * scale[j] + offset[j]);
    }
};

template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS)
    group_norm_slopes_kernel(NormShape s, const T *x, const float *gamma, const float *beta, const float *stats, const T *dy,
                             float *part)
{
    float *sum = reinterpret_cast<float *>(shared_memory());
    size_t sample = blockIdx.y;
    unsigned end = norm_end(s);

    x += sample * s.rows * s.c;
    dy += sample * s.rows * s.c;
    for (unsigned v = norm_column(s); v < s.across && norm_lane(s) < s.lanes; v += NORM_THREADS) {
        float a[N] = {0}, b[N] = {0};
        unsigned c0 = v * N;
        Channels<N> ch;

        ch.load(s, c0, stats + sample * s.groups * 2, gamma, beta);
        for (unsigned i = norm_first(s); i < end; i += BACK_BATCH * s.lanes) {
            NormBatch<T, N, BACK_BATCH> in, slope;

            in.load(s, x, i, end, c0);
            slope.load(s, dy, i, end, c0); /* zero behind the end: adds nothing */
#pragma unroll
            for (int r = 0; r < BACK_BATCH; r++)
                for (int j = 0; j < N; j++) {
                    float d = to_f32(in.at[r].at[j]) - ch.mean[j], e = ch.slope(s, j, d, to_f32(slope.at[r].at[j]));

                    a[j] += e;
                    b[j] += e * d;
                }
        }
        keep_sums<N>(s, c0, a, b, sum);
    }
    join_lanes(s, sum, part + sample * s.strips * s.groups * 2);
}

template <class T, int N> __global__ void __launch_bounds__(NORM_THREADS)
    group_norm_gradient_kernel(NormShape s, const T *x, const float *gamma, const float *beta, const float *stats, const T *dy,
                               T *dx, const float *part)
{
    float *total = reinterpret_cast<float *>(shared_memory()), count = (float)s.rows * (float)s.size;
    size_t sample = blockIdx.y;
    unsigned end = norm_end(s);

    x += sample * s.rows * s.c;
    dy += sample * s.rows * s.c;
    dx += sample * s.rows * s.c;
    for (unsigned g = threadIdx.x / WARP; g < s.groups; g += NORM_THREADS / WARP) {
        float sums[2];

        join_strips(s, part + sample * s.strips * s.groups * 2, g, sums);
        if (threadIdx.x % WARP == 0) {
            float rstd = stats[(sample * s.groups + g) * 2 + 1];

            total[2 * g] = sums[0] / count;
            total[2 * g + 1] = rstd * rstd * sums[1] / count;
        }
    }
    __syncthreads();
    for (unsigned v = norm_column(s); v < s.across && norm_lane(s) < s.lanes; v += NORM_THREADS) {
        float level[N], slope[N], d[N];
        unsigned c0 = v * N;
        Channels<N> ch;

        ch.load(s, c0, stats + sample * s.groups * 2, gamma, beta);
        each_group<N>(s, c0, [&](int j, unsigned g) {
            level[j] = total[2 * g];
            slope[j] = total[2 * g + 1];
        });
        for (unsigned i = norm_first(s); i < end; i += BACK_BATCH * s.lanes) {
            NormBatch<T, N, BACK_BATCH> in, out;

            in.load(s, x, i, end, c0);
            out.load(s, dy, i, end, c0);
#pragma unroll
            for (int r = 0; r < BACK_BATCH; r++) {
                for (int j = 0; j < N; j++) {
                    float value = to_f32(in.at[r].at[j]) - ch.mean[j];

                    d[j] = ch.slope(s, j, value, to_f32(out.at[r].at[j])) - value * slope[j] - level[j];
                }
                if (i + r * s.lanes < end)
                    store<T, N>(dx + (size_t)(i + r * s.lanes) * s.c + c0, d);
            }
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

static bool fits(enum kernel_act act, size_t n, size_t rows, size_t c, size_t groups)
{
    return (act == KERNEL_NONE || act == KERNEL_SILU) && n > 0 && n <= 65535 && rows > 0 && rows < 1 << 30 && groups > 0 && c % groups == 0 && c > 0 && c < 1 << 20;
}

int kernel_group_norm(cudaStream_t s, enum kernel_type t, enum kernel_act act, const void *x, const float *gamma,
                      const float *beta, void *y, float *stats, size_t n, size_t rows, size_t c, size_t groups, float eps,
                      void *scratch)
{
    if (!fits(act, n, rows, c, groups))
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return with_vector<T>(rows, c, groups, [=](auto vector, NormShape shape) {
            constexpr int N = decltype(vector)::value;
            float *part = (float *)scratch, *shifts = part + n * shape.strips * groups * 2;
            dim3 grid(shape.strips, (unsigned)n);
            int e;

            shape.eps = eps;
            shape.silu = act == KERNEL_SILU;
            e = launch(group_norm_sums_kernel<T, N>, grid, NORM_THREADS, 2 * shape.lanes * c * sizeof(float), s, shape,
                       (const T *)x, part, shifts);
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
    if (!fits(act, n, rows, c, groups))
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return with_vector<T>(rows, c, groups, [=](auto vector, NormShape shape) {
            constexpr int N = decltype(vector)::value;
            float *part = (float *)scratch;
            dim3 grid(shape.strips, (unsigned)n);
            int e;

            shape.silu = act == KERNEL_SILU;
            e = launch(group_norm_slopes_kernel<T, N>, grid, NORM_THREADS, 2 * shape.lanes * c * sizeof(float), s, shape,
                       (const T *)x, gamma, beta, stats, (const T *)dy, part);
            return e ? e
                     : launch(group_norm_gradient_kernel<T, N>, grid, NORM_THREADS, 2 * groups * sizeof(float), s, shape,
                              (const T *)x, gamma, beta, stats, (const T *)dy, (T *)dx, (const float *)part);
        });
    });
}

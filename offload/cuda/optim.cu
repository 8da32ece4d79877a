/* The end of a training step: gradients gathered, their norm, AdamW. */
#include "offload/cuda/elementwise.cuh"

enum { BLOCK = 256, STRIP = 8192 /* elements that one block sums */ };

/* A block of threads is a piece. */
__global__ void __launch_bounds__(BLOCK) collect_kernel(float *flat, const struct kernel_piece *pieces, bool add)
{
    const struct kernel_piece p = pieces[blockIdx.x];
    float *to = flat + p.at;

    for (size_t i = threadIdx.x; i < p.n; i += BLOCK)
        to[i] = add ? to[i] + p.from[i] : p.from[i];
}

int kernel_collect(cudaStream_t s, float *flat, const struct kernel_piece *pieces, size_t n, bool add)
{
    if (n == 0)
        return cudaSuccess;
    return n > 0x7fffffff ? cudaErrorInvalidValue : launch(collect_kernel, dim3((unsigned)n), BLOCK, 0, s, flat, pieces, add);
}

/* The sum of every thread's x, for the first thread. slot: BLOCK numbers of shared memory. */
__device__ inline double block_sum_f64(double x, double *slot)
{
    slot[threadIdx.x] = x;
    for (unsigned half = BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            slot[threadIdx.x] += slot[threadIdx.x + half];
    }
    return slot[0];
}

/* part [blocks]: sums of squares. What is not finite stays so. */
__global__ void __launch_bounds__(BLOCK) norm_strips_kernel(const float *g, size_t n, double *part)
{
    __shared__ double slot[BLOCK];
    size_t first = blockIdx.x * (size_t)STRIP, end = first + STRIP < n ? first + STRIP : n;
    double sum = 0;

    for (size_t i = first + threadIdx.x; i < end; i += BLOCK)
        sum += (double)g[i] * (double)g[i];
    sum = block_sum_f64(sum, slot);
    if (threadIdx.x == 0)
        part[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(BLOCK) norm_join_kernel(const double *part, size_t parts, double *norm)
{
    __shared__ double slot[BLOCK];
    double sum = 0;

    for (size_t i = threadIdx.x; i < parts; i += BLOCK)
        sum += part[i];
    sum = block_sum_f64(sum, slot);
    if (threadIdx.x == 0)
        *norm = sqrt(sum);
}

size_t kernel_norm_scratch(size_t n)
{
    return (div_up(n, STRIP) + 1) * sizeof(double);
}

int kernel_norm(cudaStream_t s, const float *g, size_t n, double *norm, void *scratch)
{
    size_t parts = div_up(n, STRIP);
    int e = cudaSuccess;

    if (parts > 0x7fffffff)
        return cudaErrorInvalidValue;
    if (parts > 0)
        e = launch(norm_strips_kernel, dim3((unsigned)parts), BLOCK, 0, s, g, n, (double *)scratch);
    return e ? e : launch(norm_join_kernel, dim3(1), BLOCK, 0, s, (const double *)scratch, parts, norm);
}

__device__ inline void adamw_update(const struct kernel_adamw &a, struct kernel_adamw_rate r, float g, float *p, float *m, float *v)
{
    g *= a.scale;
    *m = *m * a.beta1 + g * a.new1;
    *v = *v * a.beta2 + g * g * a.new2;
    *p = *p * r.keep - r.rate * (*m / (sqrtf(*v) / a.root2 + a.eps));
}

struct Adamw {
    struct kernel_adamw a;
    template <int N> __device__ void run(size_t i) const
    {
        const struct kernel_adamw_rate rate = a.rate[a.group[i / KERNEL_ADAMW_BLOCK]];
        float grad[N], param[N], mean[N], square[N];

        load<float, N>(grad, a.g + i);
        load<float, N>(param, a.p + i);
        load<float, N>(mean, a.m + i);
        load<float, N>(square, a.v + i);
        for (int j = 0; j < N; j++)
            adamw_update(a, rate, grad[j], &param[j], &mean[j], &square[j]);
        store<float, N>(a.p + i, param);
        store<float, N>(a.m + i, mean);
        store<float, N>(a.v + i, square);
    }
};

/* The code whose value is nearest to x, a tie going down: value [256] ascending. */
__device__ inline uint8_t nearest_code(const float *value, float x)
{
    int i = 0;

    for (int half = 128; half > 0; half /= 2)
        i += i + half < 256 && value[i + half] <= x ? half : 0;
    return (uint8_t)(i < 255 && fabsf(value[i + 1] - x) < fabsf(value[i] - x) ? i + 1 : i);
}

__device__ inline float block_max(float x, float *slot)
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

    x = warp_max(x);
    __syncthreads();
    if (lane == 0)
        slot[warp] = x;
    __syncthreads();
    return warp_max(lane < (int)(blockDim.x / WARP) ? slot[lane] : 0);
}

/* A block of threads is a block of the states. */
__global__ void __launch_bounds__(KERNEL_ADAMW_BLOCK) adamw8_kernel(struct kernel_adamw a)
{
    __shared__ float slot[WARP], map_m[256], map_v[256];
    size_t i = blockIdx.x * (size_t)KERNEL_ADAMW_BLOCK + threadIdx.x;
    float m = 0, v = 0, most_m, most_v;

    map_m[threadIdx.x] = a.map[threadIdx.x];
    map_v[threadIdx.x] = a.map[256 + threadIdx.x];
    __syncthreads();
    if (i < a.n) {
        float p = a.p[i];

        m = map_m[a.m8[i]] * a.scale_m[blockIdx.x];
        v = map_v[a.v8[i]] * a.scale_v[blockIdx.x];
        adamw_update(a, a.rate[a.group[blockIdx.x]], a.g[i], &p, &m, &v);
        a.p[i] = p;
    }
    most_m = block_max(fabsf(m), slot);
    most_v = block_max(fabsf(v), slot);
    if (i < a.n) {
        a.m8[i] = most_m > 0 ? nearest_code(map_m, m / most_m) : 0;
        a.v8[i] = most_v > 0 ? nearest_code(map_v, v / most_v) : 0;
    }
    if (threadIdx.x == 0) { /* all have read the old ones: block_max() has barriers */
        a.scale_m[blockIdx.x] = most_m;
        a.scale_v[blockIdx.x] = most_v;
    }
}

int kernel_adamw(cudaStream_t s, const struct kernel_adamw *a)
{
    size_t blocks = div_up(a->n, KERNEL_ADAMW_BLOCK);

    if (a->m)
        return each<float>(s, Adamw{*a}, a->n);
    if (blocks == 0)
        return cudaSuccess;
    return blocks > 0x7fffffff ? cudaErrorInvalidValue
                               : launch(adamw8_kernel, dim3((unsigned)blocks), KERNEL_ADAMW_BLOCK, 0, s, *a);
}

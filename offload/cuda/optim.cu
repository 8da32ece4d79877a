/* Optimizer steps over flat arrays, the norm of all gradients, and a search for what is not finite. */
#include "offload/cuda/elementwise.cuh"

enum { BLOCK = 256, STRIP = 8192 /* elements that one block sums */ };

/* part [blocks]: sums of squares. A NaN stays one; an infinity becomes one, or NaN. */
__global__ void norm_strips_kernel(const float *g, size_t n, float *part)
{
    __shared__ float slot[WARP];
    size_t first = blockIdx.x * (size_t)STRIP, end = first + STRIP < n ? first + STRIP : n;
    float sum = 0;

    for (size_t i = first + threadIdx.x; i < end; i += BLOCK)
        sum += g[i] * g[i];
    sum = block_sum(sum, slot);
    if (threadIdx.x == 0)
        part[blockIdx.x] = sum;
}

__global__ void norm_join_kernel(const float *part, size_t parts, float *norm)
{
    __shared__ float slot[WARP];
    float sum = 0;

    for (size_t i = threadIdx.x; i < parts; i += BLOCK)
        sum += part[i];
    sum = block_sum(sum, slot);
    if (threadIdx.x == 0)
        *norm = sqrtf(sum);
}

size_t kernel_norm_scratch(size_t n)
{
    return (div_up(n, STRIP) + 1) * sizeof(float);
}

int kernel_norm(cudaStream_t s, const float *g, size_t n, float *norm, void *scratch)
{
    size_t parts = div_up(n, STRIP);
    int e = cudaSuccess;

    if (parts > 0x7fffffff)
        return cudaErrorInvalidValue;
    if (parts > 0)
        e = launch(norm_strips_kernel, dim3((unsigned)parts), BLOCK, 0, s, g, n, (float *)scratch);
    return e ? e : launch(norm_join_kernel, dim3(1), BLOCK, 0, s, (const float *)scratch, parts, norm);
}

__global__ void find_start_kernel(unsigned long long *first, size_t n)
{
    *first = n;
}

template <class T> struct FindNonfinite {
    const T *x;
    unsigned long long *first;
    template <int N> __device__ void run(size_t i) const
    {
        float v[N];

        load<T, N>(v, x + i);
        for (int j = 0; j < N; j++)
            if (!(fabsf(v[j]) <= 3.4028235e38f))
                atomic_min(first, i + j);
    }
};

int kernel_find_nonfinite(cudaStream_t s, enum kernel_type t, const void *x, size_t n, uint64_t *first)
{
    unsigned long long *at = reinterpret_cast<unsigned long long *>(first);
    int e = launch(find_start_kernel, dim3(1), 1, 0, s, at, n);

    if (e)
        return e;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each<T>(s, FindNonfinite<T>{(const T *)x, at}, n);
    });
}

/* What a gradient is multiplied with; false: the step is skipped. */
__device__ inline bool step_scale(const struct kernel_adamw_step &a, const float *norm, float *scale)
{
    *scale = a.unscale;
    if (!norm)
        return true;
    if (!(*norm <= 3.4028235e38f))
        return false;
    if (a.max_norm > 0)
        *scale *= fminf(1, a.max_norm / (a.unscale * *norm + 1e-6f));
    return true;
}

__device__ inline void adamw_update(const struct kernel_adamw_step &a, float g, float *p, float *m, float *v)
{
    *m = *m * a.beta1 + g * a.new1;
    *v = *v * a.beta2 + g * g * a.new2;
    *p = *p * a.keep - a.rate * (*m / (sqrtf(*v) / a.root2 + a.eps));
}

struct Adamw {
    float *p, *m, *v;
    const float *g, *norm;
    const struct kernel_adamw_step *step;
    template <int N> __device__ void run(size_t i) const
    {
        const struct kernel_adamw_step a = *step;
        float scale, grad[N], param[N], mean[N], square[N];

        if (!step_scale(a, norm, &scale))
            return;
        load<float, N>(grad, g + i);
        load<float, N>(param, p + i);
        load<float, N>(mean, m + i);
        load<float, N>(square, v + i);
        for (int j = 0; j < N; j++)
            adamw_update(a, grad[j] * scale, &param[j], &mean[j], &square[j]);
        store<float, N>(p + i, param);
        store<float, N>(m + i, mean);
        store<float, N>(v + i, square);
    }
};

int kernel_adamw(cudaStream_t s, float *p, const float *g, float *m, float *v, size_t n, const struct kernel_adamw_step *step,
                 const float *norm)
{
    return each<float>(s, Adamw{p, m, v, g, norm, step}, n);
}

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

struct Adamw8 {
    float *p;
    const float *g;
    uint8_t *m8, *v8;
    float *absmax_m, *absmax_v;
    const float *code_m, *code_v, *norm;
    const struct kernel_adamw_step *step;
};

/* A block of threads is a block of the states. */
__global__ void __launch_bounds__(KERNEL_ADAMW8_BLOCK) adamw8_kernel(Adamw8 a, size_t n)
{
    __shared__ float slot[WARP], map_m[256], map_v[256];
    size_t i = blockIdx.x * (size_t)KERNEL_ADAMW8_BLOCK + threadIdx.x;
    const struct kernel_adamw_step step = *a.step;
    float scale, m = 0, v = 0, most_m, most_v;

    map_m[threadIdx.x] = a.code_m[threadIdx.x];
    map_v[threadIdx.x] = a.code_v[threadIdx.x];
    __syncthreads();
    if (!step_scale(step, a.norm, &scale)) /* the same answer for every thread */
        return;
    if (i < n) {
        float p = a.p[i];

        m = map_m[a.m8[i]] * a.absmax_m[blockIdx.x];
        v = map_v[a.v8[i]] * a.absmax_v[blockIdx.x];
        adamw_update(step, a.g[i] * scale, &p, &m, &v);
        a.p[i] = p;
    }
    most_m = block_max(fabsf(m), slot);
    most_v = block_max(fabsf(v), slot);
    if (i < n) {
        a.m8[i] = most_m > 0 ? nearest_code(map_m, m / most_m) : 0;
        a.v8[i] = most_v > 0 ? nearest_code(map_v, v / most_v) : 0;
    }
    if (threadIdx.x == 0) { /* all have read the old ones: block_max() has barriers */
        a.absmax_m[blockIdx.x] = most_m;
        a.absmax_v[blockIdx.x] = most_v;
    }
}

int kernel_adamw8(cudaStream_t s, float *p, const float *g, uint8_t *m8, uint8_t *v8, float *absmax_m, float *absmax_v,
                  const float *code_m, const float *code_v, size_t n, const struct kernel_adamw_step *step, const float *norm)
{
    Adamw8 a = {p, g, m8, v8, absmax_m, absmax_v, code_m, code_v, norm, step};
    size_t blocks = div_up(n, KERNEL_ADAMW8_BLOCK);

    if (n == 0)
        return cudaSuccess;
    return blocks > 0x7fffffff ? cudaErrorInvalidValue
                               : launch(adamw8_kernel, dim3((unsigned)blocks), KERNEL_ADAMW8_BLOCK, 0, s, a, n);
}

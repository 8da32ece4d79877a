/* Losses of predictions and targets that may differ in type: mean squared error, and pseudo-Huber (Charbonnier et al. 1997). Small,
 * so types are chosen at run time. */
#include "offload/cuda/elementwise.cuh"

enum { BLOCK = 256, STRIP = 4096 }; /* elements that one block sums */

struct Pair {
    enum kernel_type tp, tt;
    const void *pred, *target;
    const float *delta; /* [n]: pseudo-Huber of that width; NULL: square */
};

__device__ inline float read_any(enum kernel_type t, const void *p, size_t i)
{
    switch (t) {
    case KERNEL_BF16:
        return to_f32(static_cast<const bf16 *>(p)[i]);
    case KERNEL_F16:
        return to_f32(static_cast<const f16 *>(p)[i]);
    default:
        return static_cast<const float *>(p)[i];
    }
}

__device__ inline float difference(const Pair &p, size_t i)
{
    return read_any(p.tp, p.pred, i) - read_any(p.tt, p.target, i);
}

/* The loss of one element, d off: d^2, or sqrt(d^2 + w^2) - w = d^2 / (sqrt(d^2 + w^2) + w), where no digits cancel. */
__device__ inline float element_loss(const Pair &p, size_t sample, float d)
{
    float below = 1;

    if (p.delta) {
        float w = p.delta[sample];

        below = sqrtf(d * d + w * w) + w;
    }
    return below > 0 ? d * d / below : 0;
}

/* Its slope. */
__device__ inline float element_slope(const Pair &p, size_t sample, float d)
{
    float w, r;

    if (!p.delta)
        return 2 * d;
    w = p.delta[sample];
    r = sqrtf(d * d + w * w);
    return r > 0 ? d / r : 0;
}

/* part [n, strips]: sums of losses */
__global__ void mse_strips_kernel(Pair p, float *part, size_t per)
{
    __shared__ float slot[WARP];
    size_t sample = blockIdx.y, first = blockIdx.x * (size_t)STRIP, end = first + STRIP < per ? first + STRIP : per;
    float sum = 0;

    for (size_t i = first + threadIdx.x; i < end; i += BLOCK)
        sum += element_loss(p, sample, difference(p, sample * per + i));
    sum = block_sum(sum, slot);
    if (threadIdx.x == 0)
        part[sample * gridDim.x + blockIdx.x] = sum;
}

__global__ void mse_join_kernel(const float *part, const float *weight, float *loss, size_t n, size_t strips, size_t per)
{
    __shared__ float slot[WARP];
    float sum = 0;

    for (size_t i = threadIdx.x; i < n * strips; i += BLOCK)
        sum += part[i] * (weight ? weight[i / strips] : 1);
    sum = block_sum(sum, slot);
    if (threadIdx.x == 0)
        *loss = sum / (float)(n * per);
}

size_t kernel_mse_scratch(size_t n, size_t per)
{
    return n * div_up(per, STRIP) * sizeof(float);
}

static int forward(cudaStream_t s, const Pair &p, const float *weight, float *loss, size_t n, size_t per, void *scratch)
{
    size_t strips = div_up(per, STRIP);
    int e;

    if (n == 0 || per == 0 || n > 65535 || strips > 0x7fffffff)
        return cudaErrorInvalidValue;
    e = launch(mse_strips_kernel, dim3((unsigned)strips, (unsigned)n), BLOCK, 0, s, p, (float *)scratch, per);
    return e ? e : launch(mse_join_kernel, dim3(1), BLOCK, 0, s, (const float *)scratch, weight, loss, n, strips, per);
}

int kernel_mse(cudaStream_t s, enum kernel_type tp, const void *pred, enum kernel_type tt, const void *target,
               const float *weight, float *loss, size_t n, size_t per, void *scratch)
{
    return forward(s, Pair{tp, tt, pred, target, NULL}, weight, loss, n, per, scratch);
}

int kernel_huber(cudaStream_t s, enum kernel_type tp, const void *pred, enum kernel_type tt, const void *target,
                 const float *delta, const float *weight, float *loss, size_t n, size_t per, void *scratch)
{
    return forward(s, Pair{tp, tt, pred, target, delta}, weight, loss, n, per, scratch);
}

/* dpred = dloss * weight / elements * slope */
template <class T> struct MseBackward {
    Pair p;
    const float *weight, *dloss;
    T *dpred;
    size_t per;
    float factor;
    template <int N> __device__ void run(size_t i) const
    {
        float k = factor * (dloss ? *dloss : 1) * (weight ? weight[i / per] : 1), d[N];

        for (int j = 0; j < N; j++)
            d[j] = k * element_slope(p, i / per, difference(p, i + j));
        store<T, N>(dpred + i, d);
    }
};

static int backward(cudaStream_t s, const Pair &p, const float *weight, const float *dloss, void *dpred, size_t n, size_t per)
{
    return with_type(p.tp, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, MseBackward<T>{p, weight, dloss, (T *)dpred, per, 1.0f / (float)(n * per)}, n, per);
    });
}

int kernel_mse_backward(cudaStream_t s, enum kernel_type tp, const void *pred, enum kernel_type tt, const void *target,
                        const float *weight, const float *dloss, void *dpred, size_t n, size_t per)
{
    return backward(s, Pair{tp, tt, pred, target, NULL}, weight, dloss, dpred, n, per);
}

int kernel_huber_backward(cudaStream_t s, enum kernel_type tp, const void *pred, enum kernel_type tt, const void *target,
                          const float *delta, const float *weight, const float *dloss, void *dpred, size_t n, size_t per)
{
    return backward(s, Pair{tp, tt, pred, target, delta}, weight, dloss, dpred, n, per);
}

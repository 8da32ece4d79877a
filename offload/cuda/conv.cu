/* Convolution without tensor cores, any type and size: 64 x 64 tiles of the product in f32, 4 x 4 of them a thread. Also the
 * gradient of the weight, which is small: it is trained only as a LoRA's lora_down. */
#include "offload/cuda/conv.cuh"

enum { TILE = 64, DEPTH = 16, THREADS = 256, EDGE = 4 /* results of a thread: EDGE x EDGE */ };

/* Sides of a product: element (row or column i, place k of the sum). */
template <class T> struct PatchSide {
    const T *x;
    Patches p;

    __device__ float get(size_t i, size_t k) const
    {
        long long at = p.pixel(i, (int)k / p.c);

        return at < 0 ? 0 : to_f32(x[at + (int)k % p.c]);
    }
};

template <class T> struct MatrixSide {
    const T *w;
    size_t row, k; /* distances */
    __device__ float get(size_t i, size_t j) const
    {
        return to_f32(w[i * row + j * k]);
    }
};

/* The weight [co, taps, ci] as columns ci, places (tap, co) */
template <class T> struct TurnedWeight {
    const T *w;
    size_t taps, ci, co;
    __device__ float get(size_t i, size_t k) const
    {
        return to_f32(w[(k % co * taps + k / co) * ci + i]);
    }
};

/* Patches with pixels as places of the sum. */
template <class T> struct TurnedPatches {
    PatchSide<T> side;
    __device__ float get(size_t i, size_t k) const
    {
        return side.get(k, i);
    }
};

template <class Side> __device__ inline void fetch(float (*tile)[TILE], const Side &s, size_t first, size_t count, size_t k0, size_t k)
{
    for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
        int at = i / DEPTH, place = i % DEPTH;

        tile[place][at] = first + at < count && k0 + place < k ? s.get(first + at, k0 + place) : 0;
    }
}

/* What becomes of sums: y = sum + bias + residual, or sums of a part (grid.z) of the places as they are. */
template <class T> struct Result {
    T *y;
    const float *bias;
    const T *residual;
    float *part; /* [parts][m, n], instead of y */
};

/* [m, n] = left [m, k] right [n, k]T */
template <class T, class Left, class Right>
__global__ void __launch_bounds__(THREADS) product_kernel(Left left, Right right, Result<T> r, size_t m, size_t n, size_t k)
{
    __shared__ float a[DEPTH][TILE], b[DEPTH][TILE];
    size_t row0 = blockIdx.x * (size_t)TILE, column0 = blockIdx.y * (size_t)TILE, each = (k + gridDim.z - 1) / gridDim.z;
    size_t end = (blockIdx.z + 1) * each < k ? (blockIdx.z + 1) * each : k;
    int y = threadIdx.x / 16 * EDGE, x = threadIdx.x % 16 * EDGE;
    float sum[EDGE][EDGE] = {};

    for (size_t k0 = blockIdx.z * each; k0 < end; k0 += DEPTH) {
        __syncthreads();
        fetch(a, left, row0, m, k0, end);
        fetch(b, right, column0, n, k0, end);
        __syncthreads();
        for (int d = 0; d < DEPTH; d++)
#pragma unroll
            for (int i = 0; i < EDGE; i++)
#pragma unroll
                for (int j = 0; j < EDGE; j++)
                    sum[i][j] += a[d][y + i] * b[d][x + j];
    }
    for (int i = 0; i < EDGE; i++)
        for (int j = 0; j < EDGE; j++) {
            size_t row = row0 + y + i, column = column0 + x + j, at = row * n + column;

            if (row >= m || column >= n)
                continue;
            if (r.part)
                r.part[blockIdx.z * m * n + at] = sum[i][j];
            else
                r.y[at] = from_f32<T>(sum[i][j] + (r.bias ? r.bias[column] : 0) + (r.residual ? to_f32(r.residual[at]) : 0));
        }
}

template <class T, class Left, class Right>
static int product(cudaStream_t s, const Left &left, const Right &right, const Result<T> &r, size_t m, size_t n, size_t k,
                   size_t parts)
{
    if (div_up(n, TILE) > 65535)
        return cudaErrorInvalidValue;
    return launch(product_kernel<T, Left, Right>, dim3((unsigned)div_up(m, TILE), (unsigned)div_up(n, TILE), (unsigned)parts),
                  THREADS, 0, s, left, right, r, m, n, k);
}

int kernel_conv_forward(cudaStream_t s, const struct kernel_conv *c)
{
    size_t k = c->kh * c->kw * c->ci;

    if (!conv_fits(c))
        return cudaErrorInvalidValue;
    if (conv_on_tensor_cores(c))
        return conv_tensor_forward(s, c);
    return with_type(c->type, [&](auto type) {
        using T = decltype(type);
        PatchSide<T> left = {(const T *)c->x, conv_forward_patches(c)};
        MatrixSide<T> right = {(const T *)c->weight, k, 1};
        Result<T> r = {(T *)c->y, c->bias, (const T *)c->residual, NULL};

        return product(s, left, right, r, c->n * c->oh * c->ow, c->co, k, 1);
    });
}

int kernel_conv_backward_data(cudaStream_t s, const struct kernel_conv *c)
{
    if (!conv_fits(c))
        return cudaErrorInvalidValue;
    if (conv_on_tensor_cores(c))
        return conv_tensor_backward_data(s, c);
    return with_type(c->type, [&](auto type) {
        using T = decltype(type);
        PatchSide<T> left = {(const T *)c->dy, conv_backward_patches(c)};
        TurnedWeight<T> right = {(const T *)c->weight, c->kh * c->kw, c->ci, c->co};
        Result<T> r = {(T *)c->dx, NULL, NULL, NULL};

        return product(s, left, right, r, c->n * c->h * c->w, c->ci, c->kh * c->kw * c->co, 1);
    });
}

/* dweight = the sum of the parts, in order */
__global__ void conv_join_kernel(const float *part, float *dweight, size_t parts, size_t n)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    float sum = 0;

    if (i >= n)
        return;
    for (size_t p = 0; p < parts; p++)
        sum += part[p * n + i];
    dweight[i] = sum;
}

/* Parts of the pixels: a large card's worth of blocks, 256 pixels each at least. */
static size_t weight_parts(const struct kernel_conv *c)
{
    size_t blocks = div_up(c->co, TILE) * div_up(c->kh * c->kw * c->ci, TILE), most = div_up(c->n * c->oh * c->ow, 256);
    size_t wanted = div_up(264, blocks);

    return wanted < most ? wanted : most;
}

size_t kernel_conv_scratch(const struct kernel_conv *c)
{
    return weight_parts(c) * c->co * c->kh * c->kw * c->ci * sizeof(float);
}

int kernel_conv_backward_weight(cudaStream_t s, const struct kernel_conv *c)
{
    size_t n = c->kh * c->kw * c->ci, parts = weight_parts(c);

    if (!conv_fits(c))
        return cudaErrorInvalidValue;
    return with_type(c->type, [&](auto type) {
        using T = decltype(type);
        MatrixSide<T> left = {(const T *)c->dy, 1, c->co};
        TurnedPatches<T> right = {{(const T *)c->x, conv_forward_patches(c)}};
        Result<T> r = {NULL, NULL, NULL, (float *)c->scratch};
        int e = product(s, left, right, r, c->co, n, c->n * c->oh * c->ow, parts);

        return e ? e
                 : launch(conv_join_kernel, dim3((unsigned)div_up(c->co * n, 256)), 256, 0, s, (const float *)c->scratch,
                          c->dweight, parts, c->co * n);
    });
}

/* Attention without tensor cores: any type, any size of a head that shared memory holds (about 450). Everything in f32.
 *
 * A block is QUERIES x KEYS threads; a thread has one score of a tile. Heads' rows lie in shared memory with one float behind
 * each, so that the threads of a warp, each at another key, read different banks. */
#include "offload/cuda/attention.cuh"

enum { QUERIES = 8, KEYS = 16, THREADS = QUERIES * KEYS };

/* Rows first .. of src [total, ld] to tile [rows][d + 1], zeros behind the last. */
template <class T> __device__ inline void fetch(float *tile, int rows, const T *src, size_t ld, int first, int total, int d)
{
    for (int i = threadIdx.x; i < rows * d; i += THREADS) {
        int row = i / d, column = i % d;

        tile[row * (d + 1) + column] = first + row < total ? to_f32(src[(size_t)(first + row) * ld + column]) : 0;
    }
}

template <class T> __device__ inline void put(const float *tile, int rows, float factor, T *dst, size_t ld, int first, int total, int d)
{
    for (int i = threadIdx.x; i < rows * d; i += THREADS) {
        int row = i / d, column = i % d;

        if (first + row < total)
            dst[(size_t)(first + row) * ld + column] = from_f32<T>(factor * tile[row * (d + 1) + column]);
    }
}

__device__ inline void clear(float *tile, int n)
{
    for (int i = threadIdx.x; i < n; i += THREADS)
        tile[i] = 0;
}

__device__ inline float dot_rows(const float *a, const float *b, int d)
{
    float sum = 0;

    for (int j = 0; j < d; j++)
        sum += a[j] * b[j];
    return sum;
}

/* Over the KEYS threads of one query. */
__device__ inline float keys_max(float x)
{
    for (int i = KEYS / 2; i > 0; i /= 2)
        x = fmaxf(x, shuffle_xor(x, i));
    return x;
}

__device__ inline float keys_sum(float x)
{
    for (int i = KEYS / 2; i > 0; i /= 2)
        x += shuffle_xor(x, i);
    return x;
}

/* out [QUERIES][d + 1] = shrink[row] out + p [QUERIES][KEYS] tile [KEYS][d + 1] */
__device__ inline void add_rows(float *out, const float *p, const float *shrink, const float *tile, int d)
{
    for (int column = threadIdx.x; column < d; column += THREADS)
        for (int row = 0; row < QUERIES; row++) {
            float sum = out[row * (d + 1) + column] * (shrink ? shrink[row] : 1);

            for (int key = 0; key < KEYS; key++)
                sum += p[row * KEYS + key] * tile[key * (d + 1) + column];
            out[row * (d + 1) + column] = sum;
        }
}

/* out [KEYS][d + 1] += p [QUERIES][KEYS]T tile [QUERIES][d + 1] */
__device__ inline void add_columns(float *out, const float *p, const float *tile, int d)
{
    for (int column = threadIdx.x; column < d; column += THREADS)
        for (int key = 0; key < KEYS; key++) {
            float sum = out[key * (d + 1) + column];

            for (int row = 0; row < QUERIES; row++)
                sum += p[row * KEYS + key] * tile[row * (d + 1) + column];
            out[key * (d + 1) + column] = sum;
        }
}

/* This thread's score, -infinity where the key is not seen. */
__device__ inline float plain_score(const Attention &a, const float *q, const float *k, int q0, int k0)
{
    int row = threadIdx.x / KEYS, key = threadIdx.x % KEYS;
    bool seen = k0 + key < a.tk && (!a.causal || k0 + key <= q0 + row);

    return seen ? a.scale * dot_rows(q + row * (a.d + 1), k + key * (a.d + 1), a.d) : -INFINITY;
}

template <class T> __global__ void __launch_bounds__(THREADS) attention_plain_kernel(Attention a)
{
    int d = a.d, line = d + 1, head = blockIdx.y, b = blockIdx.z, q0 = blockIdx.x * QUERIES, row = threadIdx.x / KEYS;
    float *q = reinterpret_cast<float *>(shared_memory()), *out = q + QUERIES * line, *k = out + QUERIES * line;
    float *v = k + KEYS * line, *p = v + KEYS * line, *shrink = p + THREADS;
    int end = a.causal && q0 + QUERIES < a.tk ? q0 + QUERIES : a.tk;
    float best = -INFINITY, sum = 0;

    fetch(q, QUERIES, head_at<T>(a.q, b, a.tq, a.ldq, head, d), a.ldq, q0, a.tq, d);
    clear(out, QUERIES * line);
    for (int k0 = 0; k0 < end; k0 += KEYS) {
        float s, top;

        __syncthreads(); /* all are done with the tile before */
        fetch(k, KEYS, head_at<T>(a.k, b, a.tk, a.ldk, head, d), a.ldk, k0, a.tk, d);
        fetch(v, KEYS, head_at<T>(a.v, b, a.tk, a.ldv, head, d), a.ldv, k0, a.tk, d);
        __syncthreads();
        s = plain_score(a, q, k, q0, k0);
        top = fmaxf(best, keys_max(s));
        s = expf(s - top);
        p[threadIdx.x] = s;
        if (threadIdx.x % KEYS == 0)
            shrink[row] = expf(best - top);
        sum = sum * expf(best - top) + keys_sum(s);
        best = top;
        __syncthreads();
        add_rows(out, p, shrink, v, d);
    }
    __syncthreads();
    for (int j = threadIdx.x % KEYS; j < d; j += KEYS)
        out[row * line + j] /= sum;
    if (q0 + row < a.tq && threadIdx.x % KEYS == 0)
        a.lse[((size_t)b * a.heads + head) * a.tq + q0 + row] = best + logf(sum);
    __syncthreads();
    put(out, QUERIES, 1, head_at<T>(a.y, b, a.tq, a.ldy, head, d), a.ldy, q0, a.tq, d);
}

/* This thread's p and ds of a tile, to shared memory [QUERIES][KEYS]. */
__device__ inline void plain_slope(const Attention &a, const float *q, const float *k, const float *v, const float *dy, float *p,
                                   float *ds, int b, int head, int q0, int k0)
{
    int row = threadIdx.x / KEYS, key = threadIdx.x % KEYS, line = a.d + 1;
    size_t at = ((size_t)b * a.heads + head) * a.tq + q0 + row;
    float probability = 0, slope = 0;

    if (q0 + row < a.tq) {
        probability = expf(plain_score(a, q, k, q0, k0) - a.lse[at]);
        slope = probability * (dot_rows(dy + row * line, v + key * line, a.d) - a.dot[at]);
    }
    p[threadIdx.x] = probability;
    ds[threadIdx.x] = slope;
}

template <class T> __global__ void __launch_bounds__(THREADS) attention_plain_queries_kernel(Attention a)
{
    int d = a.d, line = d + 1, head = blockIdx.y, b = blockIdx.z, q0 = blockIdx.x * QUERIES;
    float *q = reinterpret_cast<float *>(shared_memory()), *dy = q + QUERIES * line, *dq = dy + QUERIES * line;
    float *k = dq + QUERIES * line, *v = k + KEYS * line, *p = v + KEYS * line, *ds = p + THREADS;
    int end = a.causal && q0 + QUERIES < a.tk ? q0 + QUERIES : a.tk;

    fetch(q, QUERIES, head_at<T>(a.q, b, a.tq, a.ldq, head, d), a.ldq, q0, a.tq, d);
    fetch(dy, QUERIES, head_at<T>(a.dy, b, a.tq, a.ldy, head, d), a.ldy, q0, a.tq, d);
    clear(dq, QUERIES * line);
    for (int k0 = 0; k0 < end; k0 += KEYS) {
        __syncthreads();
        fetch(k, KEYS, head_at<T>(a.k, b, a.tk, a.ldk, head, d), a.ldk, k0, a.tk, d);
        fetch(v, KEYS, head_at<T>(a.v, b, a.tk, a.ldv, head, d), a.ldv, k0, a.tk, d);
        __syncthreads();
        plain_slope(a, q, k, v, dy, p, ds, b, head, q0, k0);
        __syncthreads();
        add_rows(dq, ds, NULL, k, d);
    }
    __syncthreads();
    put(dq, QUERIES, a.scale, head_at<T>(a.dq, b, a.tq, a.ldq, head, d), a.ldq, q0, a.tq, d);
}

template <class T> __global__ void __launch_bounds__(THREADS) attention_plain_keys_kernel(Attention a)
{
    int d = a.d, line = d + 1, head = blockIdx.y, b = blockIdx.z, k0 = blockIdx.x * KEYS;
    float *q = reinterpret_cast<float *>(shared_memory()), *dy = q + QUERIES * line, *k = dy + QUERIES * line;
    float *v = k + KEYS * line, *dk = v + KEYS * line, *dv = dk + KEYS * line, *p = dv + KEYS * line, *ds = p + THREADS;

    fetch(k, KEYS, head_at<T>(a.k, b, a.tk, a.ldk, head, d), a.ldk, k0, a.tk, d);
    fetch(v, KEYS, head_at<T>(a.v, b, a.tk, a.ldv, head, d), a.ldv, k0, a.tk, d);
    clear(dk, 2 * KEYS * line);
    for (int q0 = a.causal ? k0 / QUERIES * QUERIES : 0; q0 < a.tq; q0 += QUERIES) {
        __syncthreads();
        fetch(q, QUERIES, head_at<T>(a.q, b, a.tq, a.ldq, head, d), a.ldq, q0, a.tq, d);
        fetch(dy, QUERIES, head_at<T>(a.dy, b, a.tq, a.ldy, head, d), a.ldy, q0, a.tq, d);
        __syncthreads();
        plain_slope(a, q, k, v, dy, p, ds, b, head, q0, k0);
        __syncthreads();
        add_columns(dv, p, dy, d);
        add_columns(dk, ds, q, d);
    }
    __syncthreads();
    if (a.dk)
        put(dk, KEYS, a.scale, head_at<T>(a.dk, b, a.tk, a.ldk, head, d), a.ldk, k0, a.tk, d);
    if (a.dv)
        put(dv, KEYS, 1, head_at<T>(a.dv, b, a.tk, a.ldv, head, d), a.ldv, k0, a.tk, d);
}

/* rows of heads and 2 values a thread */
static size_t shared_bytes(const Attention &a, size_t rows)
{
    return (rows * ((size_t)a.d + 1) + 2 * THREADS) * sizeof(float);
}

int attention_plain_forward(cudaStream_t s, enum kernel_type t, const Attention &a)
{
    size_t shared = shared_bytes(a, 2 * QUERIES + 2 * KEYS);
    dim3 grid((unsigned)div_up((size_t)a.tq, QUERIES), (unsigned)a.heads, (unsigned)a.n);

    if (shared > shared_limit())
        return cudaErrorInvalidValue;
    return with_type(t, [&](auto type) { return launch(attention_plain_kernel<decltype(type)>, grid, THREADS, shared, s, a); });
}

int attention_plain_backward(cudaStream_t s, enum kernel_type t, const Attention &a)
{
    size_t queries = shared_bytes(a, 3 * QUERIES + 2 * KEYS), keys = shared_bytes(a, 2 * QUERIES + 4 * KEYS);
    dim3 over_queries((unsigned)div_up((size_t)a.tq, QUERIES), (unsigned)a.heads, (unsigned)a.n);
    dim3 over_keys((unsigned)div_up((size_t)a.tk, KEYS), (unsigned)a.heads, (unsigned)a.n);

    if (keys > shared_limit())
        return cudaErrorInvalidValue;
    return with_type(t, [&](auto type) {
        using T = decltype(type);
        int e = cudaSuccess;

        if (a.dk || a.dv)
            e = launch(attention_plain_keys_kernel<T>, over_keys, THREADS, keys, s, a);
        if (!e && a.dq)
            e = launch(attention_plain_queries_kernel<T>, over_queries, THREADS, queries, s, a);
        return e;
    });
}

/* Attention backward. With p = exp(scale q kT - lse), dp = dy vT, dot = sum of dy y, ds = p (dp - dot):
 *     dq = scale ds k,  dk = scale dsT q,  dv = pT dy.
 *
 * Scores are computed again, twice: one kernel owns keys and goes over queries for dk and dv, one owns queries and goes over
 * keys for dq. That is 7 products instead of 5, and no sum depends on the order in which blocks finish. Where there are few
 * keys, as in cross attention, the queries are cut in parts whose dk and dv are added in order. */
#include "offload/cuda/attention.cuh"

enum { WARPS = 4 };

/* dk, dv: fragments of 16 keys of a warp; queries of a tile; HALVES: warps that share the columns of dk and dv of the same
 * keys, where they are too many for one warp's registers. */
template <int D> struct KeyTiling {
    static constexpr int M = D <= 48 ? 2 : 1, QUERIES = D <= 48 || D > 80 ? 32 : 64, HALVES = D > 80 ? 2 : 1;
    static constexpr int WIDTH = D <= 48 ? 40 : D / HALVES; /* columns of dk and dv of a warp */
    static constexpr int KEYS = WARPS * M * 16, THREADS = WARPS * HALVES * WARP;
    static constexpr size_t SHARED = tile_bytes<D>(2 * KEYS + 4 * QUERIES) + 4 * QUERIES * sizeof(float);
};

/* dq: fragments of 16 queries of a warp; keys of a tile. */
template <int D> struct QueryTiling {
    static constexpr int M = D <= 64 ? 2 : 1, KEYS = D <= 64 || D > 80 ? 32 : 64, QUERIES = WARPS * M * 16;
    static constexpr int WIDTH = D <= 48 ? 40 : D; /* columns of dq */
    static constexpr int THREADS = WARPS * WARP;
    static constexpr size_t SHARED = tile_bytes<D>(2 * QUERIES + 4 * KEYS);
};

/* lse (times log2 e) and dot of a tile's queries; infinity behind the last, so that p is 0 there. */
template <int QUERIES> __device__ inline void load_rows(float *rows, const float *lse, const float *dot, int q0, int tq)
{
    int i = threadIdx.x;

    if (i < QUERIES) {
        rows[i] = q0 + i < tq ? lse[q0 + i] * LOG2_E : INFINITY;
        rows[QUERIES + i] = q0 + i < tq ? dot[q0 + i] : 0;
    }
}

/* Transposed: rows are keys, columns queries. s: scores -> p; later queries than the key only, where causal. */
template <bool causal, int M, int QUERIES>
__device__ inline void keys_probability(Sums<M, QUERIES> &s, const float *lse, float scale_log2, int key, int q0)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int query = column_of(n, e);
                bool seen = !causal || q0 + query >= key + row_of(m, e);

                s.at[m][n][e] = seen ? fast_exp2(s.at[m][n][e] * scale_log2 - lse[query]) : 0;
            }
}

/* dp -> ds = p (dp - dot) */
template <int M, int QUERIES>
__device__ inline void keys_slope(Sums<M, QUERIES> &dp, const Sums<M, QUERIES> &p, const float *dot)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                dp.at[m][n][e] = p.at[m][n][e] * (dp.at[m][n][e] - dot[column_of(n, e)]);
}

/* Where this block's dk or dv goes: the tensor itself, or its part. which: 0 dk, 1 dv. */
template <class T, int M, int WIDTH>
__device__ inline void store_keys(const Attention &a, const Sums<M, WIDTH> &o, float factor, void *dst, size_t ld, int which,
                                  int part, int b, int head, int row0, int first)
{
    size_t c = (size_t)a.heads * a.d, size = (size_t)a.n * a.tk * c;

    if (!dst)
        return;
    if (a.part)
        store_rows(o, factor, head_at<float>(a.part + ((size_t)which * a.splits + part) * size, b, a.tk, c, head, a.d), c, row0,
                   a.tk, first, a.d);
    else
        store_rows(o, factor, head_at<T>(dst, b, a.tk, ld, head, a.d), ld, row0, a.tk, first, a.d);
}

/* grid: (blocks of keys * splits, heads, n) */
template <class T, int D> __global__ void __launch_bounds__(KeyTiling<D>::THREADS) attention_keys_kernel(Attention a)
{
    using L = KeyTiling<D>;
    constexpr int M = L::M, QUERIES = L::QUERIES, WIDTH = L::WIDTH, TILE = QUERIES * tile_row<D>;
    T *tile_k = reinterpret_cast<T *>(shared_memory()), *tile_v = tile_k + L::KEYS * tile_row<D>;
    T *tile_q = tile_v + L::KEYS * tile_row<D>, *tile_dy = tile_q + 2 * TILE;
    float *rows = reinterpret_cast<float *>(tile_dy + 2 * TILE);
    int head = blockIdx.y, b = blockIdx.z, part = blockIdx.x % a.splits, k0 = blockIdx.x / a.splits * L::KEYS;
    int row0 = threadIdx.x / WARP % WARPS * M * 16, first = threadIdx.x / WARP / WARPS * WIDTH;
    int tiles = (a.tq + QUERIES - 1) / QUERIES, tile = a.causal ? k0 / QUERIES : 0, each = (tiles - tile + a.splits - 1) / a.splits;
    int last = tile + (part + 1) * each < tiles ? tile + (part + 1) * each : tiles;
    TileLoader<T, D, L::KEYS, L::THREADS> load_k(head_at<T>(a.k, b, a.tk, a.ldk, head, a.d), a.ldk, a.d);
    TileLoader<T, D, L::KEYS, L::THREADS> load_v(head_at<T>(a.v, b, a.tk, a.ldv, head, a.d), a.ldv, a.d);
    TileLoader<T, D, QUERIES, L::THREADS> load_q(head_at<T>(a.q, b, a.tq, a.ldq, head, a.d), a.ldq, a.d);
    TileLoader<T, D, QUERIES, L::THREADS> load_dy(head_at<T>(a.dy, b, a.tq, a.ldy, head, a.d), a.ldy, a.d);
    const float *lse = a.lse + ((size_t)b * a.heads + head) * a.tq, *dot = a.dot + ((size_t)b * a.heads + head) * a.tq;
    Sums<M, WIDTH> dk, dv;

    dk.clear();
    dv.clear();
    load_k.load(tile_k, k0, a.tk, true);
    load_v.load(tile_v, k0, a.tk, true);
    tile += part * each;
    for (int next = tile, turn = 0; tile <= last && next <= last; next++, turn ^= 1) {
        /* loads tile `next`, computes the one before */
        if (next < last) {
            load_q.load(tile_q + turn * TILE, next * QUERIES, a.tq, next < tile + 2);
            load_dy.load(tile_dy + turn * TILE, next * QUERIES, a.tq, next < tile + 2);
            load_rows<QUERIES>(rows + turn * 2 * QUERIES, lse, dot, next * QUERIES, a.tq);
        }
        copy_async_commit();
        if (next > tile) {
            const T *now_q = tile_q + (turn ^ 1) * TILE, *now_dy = tile_dy + (turn ^ 1) * TILE;
            const float *now = rows + (turn ^ 1) * 2 * QUERIES;
            Sums<M, QUERIES> p, dp;

            copy_async_wait<1>();
            __syncthreads(); /* the tile is here */
            scores<T, M, D, QUERIES>(p, tile_k, row0, now_q);
            if (D == 48) { /* never causal: products beside the exponentials. Larger heads need the registers */
                scores<T, M, D, QUERIES>(dp, tile_v, row0, now_dy);
                keys_probability<false>(p, now, a.scale_log2, k0 + row0, (next - 1) * QUERIES);
            } else if (a.causal)
                keys_probability<true>(p, now, a.scale_log2, k0 + row0, (next - 1) * QUERIES);
            else
                keys_probability<false>(p, now, a.scale_log2, k0 + row0, (next - 1) * QUERIES);
            accumulate<T, M, D, WIDTH, QUERIES>(dv, p, now_dy, first);
            if (D != 48)
                scores<T, M, D, QUERIES>(dp, tile_v, row0, now_dy);
            keys_slope(dp, p, now + QUERIES);
            accumulate<T, M, D, WIDTH, QUERIES>(dk, dp, now_q, first);
            __syncthreads(); /* all are done with it: its place may be filled */
        }
    }
    copy_async_wait<0>();
    store_keys<T>(a, dk, a.scale, a.dk, a.ldk, 0, part, b, head, k0 + row0, first);
    store_keys<T>(a, dv, 1, a.dv, a.ldv, 1, part, b, head, k0 + row0, first);
}

/* s: scores -> p, dp -> ds, rows are queries. A row's lse (times log2 e) and dot: [m][half]. masked: not all keys are seen. */
template <bool masked, int M, int KEYS>
__device__ inline void queries_slope(Sums<M, KEYS> &dp, const Sums<M, KEYS> &s, const float (&lse)[M][2],
                                     const float (&dot)[M][2], const Attention &a, int query, int key)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int column = key + column_of(n, e);
                bool seen = !masked || (column < a.tk && (!a.causal || column <= query + row_of(m, e)));
                float p = seen ? fast_exp2(s.at[m][n][e] * a.scale_log2 - lse[m][e / 2]) : 0;

                dp.at[m][n][e] = p * (dp.at[m][n][e] - dot[m][e / 2]);
            }
}

template <class T, int D> __global__ void __launch_bounds__(QueryTiling<D>::THREADS) attention_queries_kernel(Attention a)
{
    using L = QueryTiling<D>;
    constexpr int M = L::M, KEYS = L::KEYS, TILE = KEYS * tile_row<D>;
    T *tile_q = reinterpret_cast<T *>(shared_memory()), *tile_dy = tile_q + L::QUERIES * tile_row<D>;
    T *tile_k = tile_dy + L::QUERIES * tile_row<D>, *tile_v = tile_k + 2 * TILE;
    int head = blockIdx.y, b = blockIdx.z, q0 = blockIdx.x * L::QUERIES, row0 = threadIdx.x / WARP * M * 16;
    int end = a.causal && q0 + L::QUERIES < a.tk ? q0 + L::QUERIES : a.tk;
    TileLoader<T, D, L::QUERIES, L::THREADS> load_q(head_at<T>(a.q, b, a.tq, a.ldq, head, a.d), a.ldq, a.d);
    TileLoader<T, D, L::QUERIES, L::THREADS> load_dy(head_at<T>(a.dy, b, a.tq, a.ldy, head, a.d), a.ldy, a.d);
    TileLoader<T, D, KEYS, L::THREADS> load_k(head_at<T>(a.k, b, a.tk, a.ldk, head, a.d), a.ldk, a.d);
    TileLoader<T, D, KEYS, L::THREADS> load_v(head_at<T>(a.v, b, a.tk, a.ldv, head, a.d), a.ldv, a.d);
    float lse[M][2], dot[M][2];
    Sums<M, KEYS> s, dp;
    Sums<M, L::WIDTH> dq;

    load_q.load(tile_q, q0, a.tq, true);
    load_dy.load(tile_dy, q0, a.tq, true);
    load_k.load(tile_k, 0, a.tk, true);
    load_v.load(tile_v, 0, a.tk, true);
    copy_async_commit();
    dq.clear();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = q0 + row0 + row_of(m, 2 * half);
            size_t at = ((size_t)b * a.heads + head) * a.tq + row;

            lse[m][half] = row < a.tq ? a.lse[at] * LOG2_E : INFINITY;
            dot[m][half] = row < a.tq ? a.dot[at] : 0;
        }
    for (int k0 = 0, turn = 0; k0 < end; k0 += KEYS, turn ^= TILE) {
        copy_async_wait<0>();
        __syncthreads(); /* this tile is here, and all are done with the one before, whose place the next takes */
        if (k0 + KEYS < end) {
            load_k.load(tile_k + (turn ^ TILE), k0 + KEYS, a.tk, k0 == 0);
            load_v.load(tile_v + (turn ^ TILE), k0 + KEYS, a.tk, k0 == 0);
            copy_async_commit();
        }
        scores<T, M, D, KEYS>(s, tile_q, row0, tile_k + turn);
        scores<T, M, D, KEYS>(dp, tile_dy, row0, tile_v + turn);
        if (k0 + KEYS > a.tk || a.causal)
            queries_slope<true>(dp, s, lse, dot, a, q0 + row0, k0);
        else
            queries_slope<false>(dp, s, lse, dot, a, q0 + row0, k0);
        accumulate<T, M, D, L::WIDTH, KEYS>(dq, dp, tile_k + turn, 0);
    }
    store_rows(dq, a.scale, head_at<T>(a.dq, b, a.tq, a.ldq, head, a.d), a.ldq, q0 + row0, a.tq, 0, a.d);
}

/* dot [n, heads, tq]: one thread a row of a head */
template <class T, int N> __global__ void attention_dot_kernel(Attention a)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x, row = i / a.heads, head = i % a.heads, b = row / a.tq;
    const T *y = static_cast<const T *>(a.y_in) + row * a.ldy + head * a.d, *dy = static_cast<const T *>(a.dy) + (y - static_cast<const T *>(a.y_in));
    float sum = 0, u[N], v[N];

    if (row >= (size_t)a.n * a.tq)
        return;
    for (int j = 0; j < a.d; j += N) {
        load<T, N>(u, y + j);
        load<T, N>(v, dy + j);
        for (int l = 0; l < N; l++)
            sum += u[l] * v[l];
    }
    a.dot[(b * a.heads + head) * a.tq + row % a.tq] = sum;
}

static int run_dot(cudaStream_t s, enum kernel_type t, const Attention &a)
{
    unsigned blocks = (unsigned)div_up((size_t)a.n * a.tq * a.heads, 128);

    return with_type(t, [&](auto type) {
        using T = decltype(type);
        constexpr int N = vector_size<T>();
        bool vectors = a.d % N == 0 && a.ldy % N == 0 && aligned16(a.y_in) && aligned16(a.dy);

        return launch(vectors ? attention_dot_kernel<T, N> : attention_dot_kernel<T, 1>, dim3(blocks), 128, 0, s, a);
    });
}

/* One of dk, dv [n, tk, ld] from its parts [splits, n * tk, c]. */
template <class T> __global__ void attention_join_kernel(const float *part, int splits, T *dst, size_t ld, size_t rows, size_t c)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    float sum = 0;

    if (i >= rows * c)
        return;
    for (int k = 0; k < splits; k++)
        sum += part[k * rows * c + i];
    dst[i / c * ld + i % c] = from_f32<T>(sum);
}

template <class T> int run_join(cudaStream_t s, const Attention &a)
{
    size_t c = (size_t)a.heads * a.d, rows = (size_t)a.n * a.tk;
    unsigned blocks = (unsigned)div_up(rows * c, 256);
    int e = cudaSuccess;

    if (a.dk)
        e = launch(attention_join_kernel<T>, dim3(blocks), 256, 0, s, (const float *)a.part, a.splits, (T *)a.dk, a.ldk, rows,
                   c);
    if (a.dv && !e)
        e = launch(attention_join_kernel<T>, dim3(blocks), 256, 0, s, (const float *)(a.part + a.splits * rows * c), a.splits,
                   (T *)a.dv, a.ldv, rows, c);
    return e;
}

/* As many parts as give the machine a block for each multiprocessor of a large card; the number depends on sizes alone, and so
 * does the order of the sums. */
int attention_splits(const struct kernel_attention *a)
{
    enum { BLOCKS = 128, LEAST = 128 /* queries of a part */ };
    size_t blocks = div_up(a->tk, a->d <= 40 ? 128 : 64) * a->heads * a->n, most = div_up(a->tq, LEAST);
    size_t wanted = div_up(BLOCKS, blocks ? blocks : 1);

    if (a->type == KERNEL_F32 || a->causal)
        return 1;
    return (int)(wanted < most ? wanted : most);
}

size_t kernel_attention_scratch(const struct kernel_attention *a)
{
    size_t splits = (size_t)attention_splits(a);

    return (a->n * a->heads * a->tq + (splits > 1 ? 2 * splits * a->n * a->tk * a->heads * a->d : 0)) * sizeof(float);
}

template <class T, int D> int run_tensor_cores(cudaStream_t s, const Attention &a)
{
    unsigned keys = (unsigned)((a.tk + KeyTiling<D>::KEYS - 1) / KeyTiling<D>::KEYS * a.splits);
    unsigned queries = (unsigned)((a.tq + QueryTiling<D>::QUERIES - 1) / QueryTiling<D>::QUERIES);
    int e = cudaSuccess;

    if (a.dk || a.dv)
        e = launch(attention_keys_kernel<T, D>, dim3(keys, (unsigned)a.heads, (unsigned)a.n), KeyTiling<D>::THREADS,
                   KeyTiling<D>::SHARED, s, a);
    if (!e && (a.dk || a.dv) && a.part)
        e = run_join<T>(s, a);
    if (!e && a.dq)
        e = launch(attention_queries_kernel<T, D>, dim3(queries, (unsigned)a.heads, (unsigned)a.n), QueryTiling<D>::THREADS,
                   QueryTiling<D>::SHARED, s, a);
    return e;
}

int kernel_attention_backward(cudaStream_t s, const struct kernel_attention *call)
{
    Attention a;
    int e;

    if (!attention_describe(call, &a))
        return cudaErrorInvalidValue;
    e = run_dot(s, call->type, a);
    if (e || !attention_on_tensor_cores(call))
        return e ? e : attention_plain_backward(s, call->type, a);
    return with_half(call->type, [&](auto type) {
        using T = decltype(type);
        return with_head(a.causal && a.d < 64 ? 64 : a.d, [&](auto head) { return run_tensor_cores<T, decltype(head)::value>(s, a); });
    });
}

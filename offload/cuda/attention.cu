/* Attention forward on tensor cores: y = softmax(q kT / sqrt(d)) v, a tile of keys at a time with a running maximum m and sum l
 * of each query (Milakov and Gimelshein 2018; Dao 2023). The scores of the next tile are made beside the exponentials of this one
 * (Shah et al. 2024), so that tensor cores and the unit for exp2 work at the same time; the tile after it travels. */
#include "offload/cuda/attention.cuh"

enum { WARPS = 4 /* with different queries */ };

/* Fragments of 16 queries of a warp, and keys of a tile. More queries a warp means fewer reads of the keys from shared memory;
 * registers set the limit. PARTS: warps that share the columns of the same queries' y; each makes all the scores for itself. */
template <int D> struct Tiling {
    static constexpr int M = D <= 64 ? 2 : 1, KEYS = D == 48 || D == 80 ? 64 : 32, QUERIES = WARPS * M * 16;
    static constexpr int PARTS = D > 160 ? 4 : 1, WIDTH = D / PARTS, THREADS = WARPS * PARTS * WARP;
    static constexpr bool KEEPS_QUERIES = D <= 160; /* in registers */
    static constexpr size_t SHARED = tile_bytes<D>(QUERIES + 4 * KEYS);
};

/* Scores of keys behind the last, or later than the query where that is asked, become -infinity. */
template <int M, int KEYS> __device__ inline void mask(Sums<M, KEYS> &s, int query, int key, int tk, bool causal)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int column = key + column_of(n, e);

                if (column >= tk || (causal && column > query + row_of(m, e)))
                    s.at[m][n][e] = -INFINITY;
            }
}

/* Heads of 40 leave eight columns of a tile free: the first holds ones in v, so that the product that makes y also makes l. */
template <int D> constexpr bool has_ones = D == 48;
enum { ONES = 40 };

/* One tile of scores into the running softmax: s becomes exp(s - m); what was summed before shrinks. Element [m][half] is
 * row 16 m + 8 half + lane / 4; its four lanes hold the same maximum, each its own part of the sum. */
template <int D, int M, int KEYS, int WIDTH>
__device__ inline void absorb(Sums<M, KEYS> &s, Sums<M, WIDTH> &o, float (&best)[M][2], float (&sum)[M][2], float scale_log2)
{
    float old[M][2];
    bool grown = false;

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = best[m][half];

            old[m][half] = top;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
                top = fmaxf(top, fmaxf(s.at[m][n][2 * half], s.at[m][n][2 * half + 1]));
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            best[m][half] = top;
            grown = grown || top > old[m][half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++)
                    s.at[m][n][e] = fast_exp2(s.at[m][n][e] * scale_log2 - top * scale_log2);
        }
    if (warp_any(grown)) /* seldom after the first tiles */
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float shrink = fast_exp2((old[m][half] - best[m][half]) * scale_log2);

                sum[m][half] *= shrink;
#pragma unroll
                for (int n = 0; n < WIDTH / 8; n++) {
                    o.at[m][n][2 * half] *= shrink;
                    o.at[m][n][2 * half + 1] *= shrink;
                }
            }
    if (!has_ones<D>)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    sum[m][e / 2] += s.at[m][n][e];
}

/* y = o / l for columns first .., lse = m + log l */
template <class T, int D, int M, int WIDTH>
__device__ inline void finish(const Attention &a, Sums<M, WIDTH> &o, const float (&best)[M][2], float (&sum)[M][2], T *y,
                              float *lse, int row0, int first)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float l = sum[m][half], inverse;
            int row = row0 + row_of(m, 2 * half);

            if (has_ones<D>) /* column ONES is the first of lane 0 of four */
                l = threadIdx.x % 4 == 0 ? o.at[m][ONES / 8 % (WIDTH / 8)][2 * half] : 0;
            l += shuffle_xor(l, 1);
            l += shuffle_xor(l, 2);
            inverse = 1 / l;
#pragma unroll
            for (int n = 0; n < WIDTH / 8; n++) {
                o.at[m][n][2 * half] *= inverse;
                o.at[m][n][2 * half + 1] *= inverse;
            }
            if (row < a.tq && threadIdx.x % 4 == 0 && first == 0)
                lse[row] = best[m][half] * a.scale + logf(l);
        }
    store_rows(o, 1, y, a.ldy, row0, a.tq, first, a.d);
}

/* Scores of this warp's queries with a tile of keys. */
template <class T, int D, int M, int KEYS>
__device__ inline void query_scores(Sums<M, KEYS> &s, const Rows<T, M, D> &q, const T *tile_q, int row0, const T *tile_k)
{
    if constexpr (Tiling<D>::KEEPS_QUERIES)
        scores<T, M, D, KEYS>(s, q, tile_k);
    else
        scores<T, M, D, KEYS>(s, tile_q, row0, tile_k);
}

template <class T, int D> __global__ void __launch_bounds__(Tiling<D>::THREADS) attention_forward_kernel(Attention a)
{
    using L = Tiling<D>;
    constexpr int M = L::M, KEYS = L::KEYS, QUERIES = L::QUERIES, THREADS = L::THREADS, TILE = KEYS * tile_row<D>;
    T *tile_q = reinterpret_cast<T *>(shared_memory()), *tile_k = tile_q + QUERIES * tile_row<D>, *tile_v = tile_k + 2 * TILE;
    int head = blockIdx.y, b = blockIdx.z, q0 = blockIdx.x * QUERIES;
    int row0 = threadIdx.x / WARP % WARPS * M * 16, first = threadIdx.x / WARP / WARPS * L::WIDTH;
    int end = a.causal && q0 + QUERIES < a.tk ? q0 + QUERIES : a.tk;
    float best[M][2], sum[M][2] = {};
    TileLoader<T, D, QUERIES, THREADS> load_q(head_at<T>(a.q, b, a.tq, a.ldq, head, a.d), a.ldq, a.d);
    TileLoader<T, D, KEYS, THREADS> load_k(head_at<T>(a.k, b, a.tk, a.ldk, head, a.d), a.ldk, a.d);
    TileLoader<T, D, KEYS, THREADS> load_v(head_at<T>(a.v, b, a.tk, a.ldv, head, a.d), a.ldv, a.d);
    Rows<T, M, D> q;
    Sums<M, KEYS> s, next;
    Sums<M, L::WIDTH> o;

    load_q.load(tile_q, q0, a.tq, true);
    load_k.load(tile_k, 0, a.tk, true);
    load_k.load(tile_k + TILE, KEYS, a.tk, true);
    load_v.load(tile_v, 0, a.tk, true);
    load_v.load(tile_v + TILE, KEYS, a.tk, true);
    copy_async_commit();
    o.clear();
#pragma unroll
    for (int m = 0; m < M; m++)
        best[m][0] = best[m][1] = -INFINITY;
    copy_async_wait<0>();
    __syncthreads();
    if (has_ones<D>)
        for (int i = threadIdx.x; i < 2 * KEYS; i += THREADS)
            tile_v[i * tile_row<D> + ONES] = from_f32<T>(1);
    if constexpr (L::KEEPS_QUERIES)
        q.load(tile_q, row0);
    query_scores<T, D>(s, q, tile_q, row0, tile_k);
    if (KEYS > a.tk || a.causal)
        mask(s, q0 + row0, 0, a.tk, a.causal);
    for (int k0 = 0, turn = 0; k0 < end; k0 += KEYS, turn ^= TILE) {
        copy_async_wait<0>();
        __syncthreads(); /* the next keys and these values are here, and all are done with those whose places are filled now */
        if (k0 + 2 * KEYS < end)
            load_k.load(tile_k + turn, k0 + 2 * KEYS, a.tk, false);
        if (k0 > 0 && k0 + KEYS < end)
            load_v.load(tile_v + (turn ^ TILE), k0 + KEYS, a.tk, false);
        copy_async_commit();
        query_scores<T, D>(next, q, tile_q, row0, tile_k + (turn ^ TILE)); /* behind the last tile: of what lies there, for nothing */
        absorb<D>(s, o, best, sum, a.scale_log2);
        accumulate<T, M, D, L::WIDTH, KEYS>(o, s, tile_v + turn, first);
        s = next;
        if (k0 + 2 * KEYS > a.tk || (a.causal && k0 + 2 * KEYS > q0 + row0))
            mask(s, q0 + row0, k0 + KEYS, a.tk, a.causal);
    }
    finish<T, D>(a, o, best, sum, head_at<T>(a.y, b, a.tq, a.ldy, head, a.d), a.lse + ((size_t)b * a.heads + head) * a.tq,
                 q0 + row0, first);
}

bool attention_describe(const struct kernel_attention *a, Attention *out)
{
    double scale = 1 / sqrt((double)a->d);

    if (a->n == 0 || a->heads == 0 || a->d == 0 || a->tq == 0 || a->tk == 0 || a->n > 65535 || a->heads > 65535 ||
        a->d > 1 << 20 || a->tq > 1 << 30 || a->tk > 1 << 30 || (a->causal && a->tq != a->tk))
        return false;
    *out = Attention{};
    out->n = (int)a->n, out->heads = (int)a->heads, out->d = (int)a->d, out->tq = (int)a->tq, out->tk = (int)a->tk;
    out->causal = a->causal;
    out->ldq = a->ldq, out->ldk = a->ldk, out->ldv = a->ldv, out->ldy = a->ldy;
    out->q = a->q, out->k = a->k, out->v = a->v, out->y_in = a->y, out->dy = a->dy;
    out->y = a->y, out->dq = a->dq, out->dk = a->dk, out->dv = a->dv, out->lse = a->lse;
    out->scale = (float)scale;
    out->scale_log2 = (float)(scale * (double)LOG2_E);
    out->splits = attention_splits(a);
    /* parts first: they are written in vectors, dot number by number, and an odd count of queries would shift what follows */
    out->part = out->splits > 1 ? (float *)a->scratch : NULL;
    out->dot = (float *)a->scratch + (out->part ? 2 * (size_t)out->splits * a->n * a->tk * a->heads * a->d : 0);
    return true;
}

/* Tensor cores can do it but for the head's size. */
static bool is_regular(const struct kernel_attention *a)
{
    return a->type != KERNEL_F32 && a->d % 8 == 0 && (a->ldq | a->ldk | a->ldv | a->ldy) % 8 == 0 && aligned16(a->q) &&
           aligned16(a->k) && aligned16(a->v) && aligned16(a->y) && aligned16(a->dy) && aligned16(a->dq) && aligned16(a->dk) &&
           aligned16(a->dv) && has_tensor_cores();
}

bool attention_on_tensor_cores(const struct kernel_attention *a)
{
    return a->d <= 160 && is_regular(a);
}

template <class T, int D> static int run_forward(cudaStream_t s, const Attention &a)
{
    dim3 grid((unsigned)div_up((size_t)a.tq, Tiling<D>::QUERIES), (unsigned)a.heads, (unsigned)a.n);

    return launch(attention_forward_kernel<T, D>, grid, Tiling<D>::THREADS, Tiling<D>::SHARED, s, a);
}

int kernel_attention_forward(cudaStream_t s, const struct kernel_attention *call)
{
    Attention a;
    bool wide = call->d > 160 && call->d <= 512 && is_regular(call) && Tiling<512>::SHARED <= shared_limit();

    if (!attention_describe(call, &a))
        return cudaErrorInvalidValue;
    if (!wide && !attention_on_tensor_cores(call))
        return attention_plain_forward(s, call->type, a);
    return with_half(call->type, [&](auto type) {
        using T = decltype(type);

        if (wide)
            return run_forward<T, 512>(s, a);
        return with_head(a.d, [&](auto head) { return run_forward<T, decltype(head)::value>(s, a); });
    });
}

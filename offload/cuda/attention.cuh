/* What the attention kernels on tensor cores share: tiles of rows of a head, and products of them.
 *
 * D is the head's size rounded up to 48 (for 40 at most), 64, 80 or 160, or 512 in a forward; zeros lie behind the head's own. A warp owns M fragments of 16 rows of a
 * product; sums stay in its registers and become, rounded, the left side of the next product without leaving them
 * (Dao 2023). */
#ifndef OFFLOAD_CUDA_ATTENTION_CUH
#define OFFLOAD_CUDA_ATTENTION_CUH

#include "offload/cuda/tile.cuh"

/* kernel_attention with sizes of 32 bits */
struct Attention {
    int n, heads, d, tq, tk;
    bool causal;
    size_t ldq, ldk, ldv, ldy;
    const void *q, *k, *v, *y_in, *dy;
    void *y, *dq, *dk, *dv;
    float *lse;
    float *dot;            /* [n, heads, tq]: sum of dy y */
    float *part;           /* [2][splits, n, tk, heads * d]: dk, dv of a part of the queries; NULL when splits is 1 */
    int splits;
    float scale, scale_log2; /* 1/sqrt(d); that times log2(e) */
};

constexpr float LOG2_E = 1.4426950408889634f;

/* Element of head h of token i of sample b. */
template <class T> __device__ inline T *head_at(const void *p, int b, int tokens, size_t ld, int h, int d)
{
    return const_cast<T *>(static_cast<const T *>(p)) + (size_t)b * tokens * ld + (size_t)h * d;
}

template <int D> constexpr size_t tile_bytes(int rows)
{
    return (size_t)rows * tile_row<D> * 2;
}

/* Copies tiles of ROWS rows of a head, in the background: THREADS / ROWS threads a row, each every so many'th 16 bytes. What
 * does not change from tile to tile is worked out once. */
template <class T, int D, int ROWS, int THREADS> struct TileLoader {
    static constexpr int ACROSS = THREADS / ROWS, CHUNKS = (D / 8 + ACROSS - 1) / ACROSS;
    const T *src; /* this thread's first 16 bytes of the head's first row */
    size_t ld;
    int row, place, left; /* place: in a tile; left: elements of a row from here on */

    static_assert(THREADS % ROWS == 0, "whole threads a row");

    __device__ TileLoader(const T *head, size_t row_length, int d)
    {
        int column = threadIdx.x % ACROSS * 8;

        row = threadIdx.x / ACROSS;
        src = head + (size_t)row * row_length + column;
        ld = row_length;
        place = row * tile_row<D> + column;
        left = d - column;
    }

    /* Rows first .. first + ROWS - 1 of total; zeros outside. Columns behind the head's are zeroed only when `all`: they stay. */
    __device__ void load(T *tile, int first, int total, bool all) const
    {
        const T *from = src + (size_t)first * ld;
        bool in = first + row < total;

#pragma unroll
        for (int j = 0; j < CHUNKS; j++)
            if ((D / 8 % ACROSS == 0 || threadIdx.x % ACROSS + j * ACROSS < D / 8) && (all || j * ACROSS * 8 < left))
                copy_async(tile + place + j * ACROSS * 8, from + j * ACROSS * 8, in && j * ACROSS * 8 < left);
    }
};

/* Sums of a warp: M x 16 rows, COLUMNS columns (multiply_tile() says who holds what). */
template <int M, int COLUMNS> struct Sums {
    float at[M][COLUMNS / 8][4];

    __device__ void clear()
    {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    at[m][n][e] = 0;
    }
};

/* Rows of the left side that a warp keeps in registers. */
template <class T, int M, int D> struct Rows {
    uint32_t at[M][D / 16][4];

    __device__ void load(const T *tile, int row0)
    {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int k = 0; k < D / 16; k++)
                load_left<T, D>(at[m][k], tile, row0 + m * 16, k * 16);
    }
};

/* s += columns k .. k+15 of rows (left) with those of the tile's rows */
template <class T, int M, int D, int COLUMNS>
__device__ inline void score_step(Sums<M, COLUMNS> &s, const uint32_t (*left)[4], size_t stride, const T *tile, int k)
{
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
        uint32_t b[4];

        load_right_rows<T, D>(b, tile, n * 16, k * 16);
#pragma unroll
        for (int m = 0; m < M; m++) {
            multiply_tile<T>(s.at[m][2 * n], left[m * stride], b[0], b[1]);
            multiply_tile<T>(s.at[m][2 * n + 1], left[m * stride], b[2], b[3]);
        }
    }
}

/* s = rows tileT: from registers, or from row0 on of a tile */
template <class T, int M, int D, int COLUMNS>
__device__ inline void scores(Sums<M, COLUMNS> &s, const Rows<T, M, D> &rows, const T *tile)
{
    s.clear();
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        score_step<T, M, D, COLUMNS>(s, &rows.at[0][k], D / 16, tile, k);
}

template <class T, int M, int D, int COLUMNS>
__device__ inline void scores(Sums<M, COLUMNS> &s, const T *left, int row0, const T *tile)
{
    s.clear();
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[M][4];

#pragma unroll
        for (int m = 0; m < M; m++)
            load_left<T, D>(a[m], left, row0 + m * 16, k * 16);
        score_step<T, M, D, COLUMNS>(s, a, 1, tile, k);
    }
}

/* o += p (rounded to T) times columns first .. first + WIDTH - 1 of the tile [COLUMNS, D]; WIDTH may end with eight */
template <class T, int M, int D, int WIDTH, int COLUMNS>
__device__ inline void accumulate(Sums<M, WIDTH> &o, const Sums<M, COLUMNS> &p, const T *tile, int first)
{
#pragma unroll
    for (int k = 0; k < COLUMNS / 16; k++) {
        uint32_t a[M][4];

#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = pack<T>(p.at[m][2 * k + i / 2][i % 2 * 2], p.at[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n += 2) {
            uint32_t b[4];

            load_right_columns<T, D>(b, tile, k * 16, first + n * 8);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_tile<T>(o.at[m][n], a[m], b[0], b[1]);
                if (n + 1 < WIDTH / 8)
                    multiply_tile<T>(o.at[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* Writes factor * o as T to rows row0 + .. below total of dst [total, ld], columns first + .. below d. */
template <class T, int M, int WIDTH>
__device__ inline void store_rows(const Sums<M, WIDTH> &o, float factor, T *dst, size_t ld, int row0, int total, int first,
                                  int d)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = row0 + row_of(m, half * 2);

            if (row < total)
#pragma unroll
                for (int n = 0; n < WIDTH / 8; n++) {
                    int column = first + column_of(n, 0);

                    if (column < d)
                        store_pair(dst + (size_t)row * ld + column, factor * o.at[m][n][half * 2],
                                   factor * o.at[m][n][half * 2 + 1]);
                }
        }
}

/* Calls f with the compile-time size of head d, the smallest that holds it. */
template <class F> int with_head(int d, F f)
{
    if (d <= 40)
        return f(std::integral_constant<int, 48>());
    if (d <= 64)
        return f(std::integral_constant<int, 64>());
    if (d <= 80)
        return f(std::integral_constant<int, 80>());
    return f(std::integral_constant<int, 160>());
}

template <class F> int with_half(enum kernel_type t, F f)
{
    return t == KERNEL_BF16 ? f(bf16()) : f(f16());
}

/* attention.cu: sizes checked and turned; false: not taken. */
bool attention_describe(const struct kernel_attention *a, Attention *out);
/* attention.cu: whether tensor cores can do it. */
bool attention_on_tensor_cores(const struct kernel_attention *a);
/* Parts into which dk and dv are cut along the queries. */
int attention_splits(const struct kernel_attention *a);

/* attention_plain.cu: any type, any head. The backward takes dot as attention_backward.cu has left it. */
int attention_plain_forward(cudaStream_t s, enum kernel_type t, const Attention &a);
int attention_plain_backward(cudaStream_t s, enum kernel_type t, const Attention &a);

#endif

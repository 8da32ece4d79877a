/* The low-rank branch on tensor cores, in one pass over x and y.
 *
 * Forward: a block takes ROWS rows of x. Its warps share the columns of x: t = scale x downT, whose parts are added in order in
 * shared memory; then they share the columns of y: y = base + t upT. Where rows are few, several blocks take the same rows and
 * each a part of y's columns: t costs little to make again.
 * Backward: the same kernel makes dt = scale dy up, and dx (+)= dt down; it leaves dt and scale t to a second one, which sums
 * ddown = dtT x and dup = dyT (scale t) over parts of the rows; a third adds the parts in order.
 *
 * Sums go over columns in any order, and columns may lie in any order in a fragment, so both are placed such that a lane reads and
 * writes 8 neighbouring numbers, 16 bytes: of 32 columns, lane t of a row's four has 8 t .. 8 t + 7.
 * t and dt are rounded to T, factors too: as the products of a layer in mixed precision are elsewhere. */
#include "offload/cuda/lora.cuh"
#include "offload/cuda/tile.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP, GROUP = 32 /* columns of a warp at a time */, BLOCKS = 264 };

/* t [ROWS][R] of a block: M x 16 rows, R ranks (r rounded up to 16 or 32) */
template <int M, int R> struct Part {
    float at[M][R / 8][4];
};

/* Eight neighbours of column c of a factor, rank j. */
__device__ inline void load_factor(float v[8], const Factor &f, size_t c, size_t j, bool valid)
{
    if (valid && j < f.r && f.column == 1) {
        load<float, 4>(v, f.at + j * f.rank + c);
        load<float, 4>(v + 4, f.at + j * f.rank + c + 4);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = valid ? f.get(c + i, j) : 0;
}

/* sum += this warp's columns of x [m, columns] times f, for rows row0 on */
template <class T, int M, int R>
__device__ inline void project(Part<M, R> &sum, const T *x, size_t row0, size_t m, size_t columns, const Factor &f)
{
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;

#pragma unroll 2
    for (size_t c0 = threadIdx.x / WARP * GROUP; c0 < columns; c0 += WARPS * GROUP) {
        size_t c = c0 + 8 * t;
        Vector<uint32_t, 4> v[2 * M];

#pragma unroll
        for (int i = 0; i < 2 * M; i++) {
            size_t row = row0 + i * 8 + g;

            v[i] = {};
            if (row < m && c < columns)
                v[i] = *reinterpret_cast<const Vector<uint32_t, 4> *>(x + row * columns + c);
        }
#pragma unroll
        for (int n = 0; n < R / 8; n++) {
            float w[8];

            load_factor(w, f, c, n * 8 + g, c < columns);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t b0 = pack<T>(w[4 * half], w[4 * half + 1]), b1 = pack<T>(w[4 * half + 2], w[4 * half + 3]);

#pragma unroll
                for (int i = 0; i < M; i++) {
                    uint32_t a[4] = {v[2 * i].at[2 * half], v[2 * i + 1].at[2 * half], v[2 * i].at[2 * half + 1],
                                     v[2 * i + 1].at[2 * half + 1]};

                    multiply_tile<T>(sum.at[i][n], a, b0, b1);
                }
            }
        }
    }
}

/* tile [16 M][R] = scale * the warps' parts, added in order; `all` [WARPS][16 M][R] is scratch. keep [m, R]: also there. */
template <class T, int M, int R>
__device__ inline void join(T *tile, float *all, const Part<M, R> &sum, float scale, T *keep, size_t row0, size_t m)
{
    __syncthreads(); /* all and tile may be in use */
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int n = 0; n < R / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                all[(threadIdx.x / WARP * 16 * M + row_of(i, e)) * R + column_of(n, e)] = sum.at[i][n][e];
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * M * R; i += THREADS) {
        float total = 0;

#pragma unroll
        for (int w = 0; w < WARPS; w++)
            total += all[w * 16 * M * R + i];
        tile[i / R * tile_row<R> + i % R] = from_f32<T>(scale * total);
        if (keep && row0 + i / R < m)
            keep[row0 * R + i] = from_f32<T>(scale * total);
    }
    __syncthreads();
}

/* out [m, columns] = start + tile fT for this warp's columns of first .. end - 1; start may be out, or NULL: zero */
template <class T, int M, int R>
__device__ inline void expand(T *out, const T *start, const T *tile, const Factor &f, size_t row0, size_t m, size_t columns,
                              size_t first, size_t end)
{
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;

#pragma unroll 2
    for (size_t c0 = first + threadIdx.x / WARP * GROUP; c0 < end; c0 += WARPS * GROUP) {
        float sum[M][4][4] = {};

#pragma unroll
        for (int k = 0; k < R; k += 16) {
            uint32_t a[M][4];

#pragma unroll
            for (int i = 0; i < M; i++)
                load_left<T, R>(a[i], tile, i * 16, k);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                size_t c = c0 + 8 * (g / 2) + 2 * j + g % 2, rank = k + 2 * t;
                bool in = c < columns;
                uint32_t b0 = in ? pack<T>(f.get(c, rank), f.get(c, rank + 1)) : 0;
                uint32_t b1 = in ? pack<T>(f.get(c, rank + 8), f.get(c, rank + 9)) : 0;

#pragma unroll
                for (int i = 0; i < M; i++)
                    multiply_tile<T>(sum[i][j], a[i], b0, b1);
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * M; i++) {
            size_t row = row0 + i * 8 + g, at = row * columns + c0 + 8 * t;
            float v[8] = {};

            if (row >= m || c0 + 8 * t >= columns)
                continue;
            if (start)
                load<T, 8>(v, start + at);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                v[2 * j] += sum[i / 2][j][i % 2 * 2];
                v[2 * j + 1] += sum[i / 2][j][i % 2 * 2 + 1];
            }
            store<T, 8>(out + at, v);
        }
    }
}

/* Columns of this block, of gridDim.y: whole groups. */
__device__ inline size_t columns_from(size_t columns, unsigned part)
{
    size_t each = (columns + GROUP - 1) / GROUP, from = each * part / gridDim.y * GROUP;

    return from < columns ? from : columns;
}

template <int M, int R> constexpr size_t shared_bytes()
{
    return (size_t)WARPS * 16 * M * R * sizeof(float) + (size_t)16 * M * (R + 8) * 2;
}

template <class T, int M, int R> __global__ void __launch_bounds__(THREADS) lora_tensor_forward_kernel(Lora l)
{
    float *all = reinterpret_cast<float *>(shared_memory());
    T *tile = reinterpret_cast<T *>(all + WARPS * 16 * M * R);
    size_t row0 = blockIdx.x * (size_t)(16 * M);
    Part<M, R> sum = {};

    project<T>(sum, static_cast<const T *>(l.x), row0, l.m, l.k, down_of(l));
    join<T>(tile, all, sum, l.scale, (T *)NULL, row0, l.m);
    expand<T, M, R>(static_cast<T *>(l.y), static_cast<const T *>(l.base), tile, up_of(l), row0, l.m, l.n,
                    columns_from(l.n, blockIdx.y), columns_from(l.n, blockIdx.y + 1));
}

/* Keeps scale t and dt, [m, R] each, in t and dt; dx where it is wanted. */
template <class T, int M, int R> __global__ void __launch_bounds__(THREADS) lora_tensor_backward_kernel(Lora l, T *t, T *dt)
{
    float *all = reinterpret_cast<float *>(shared_memory());
    T *tile = reinterpret_cast<T *>(all + WARPS * 16 * M * R), *dx = static_cast<T *>(l.dx);
    size_t row0 = blockIdx.x * (size_t)(16 * M);
    bool first = blockIdx.y == 0;

    if (l.dup && first) {
        Part<M, R> sum = {};

        project<T>(sum, static_cast<const T *>(l.x), row0, l.m, l.k, down_of(l));
        join<T>(tile, all, sum, l.scale, t, row0, l.m);
    }
    Part<M, R> sum = {};
    project<T>(sum, static_cast<const T *>(l.dy), row0, l.m, l.n, up_of(l));
    join<T>(tile, all, sum, l.scale, first ? dt : (T *)NULL, row0, l.m);
    if (dx)
        expand<T, M, R>(dx, l.add ? dx : NULL, tile, down_of(l), row0, l.m, l.k, columns_from(l.k, blockIdx.y),
                        columns_from(l.k, blockIdx.y + 1));
}

/* ---- gradients of the factors ---- */

enum { SUM_THREADS = 128, COLUMNS = 64, STEP = 64 /* rows of a tile */ };

/* A product [r, columns] = tT x over rows of x [m, columns], t [m, R]; element (j, c) goes to out[c * column + j * rank]. */
template <class T> struct FactorSum {
    const T *x, *t;
    float *out; /* NULL: not wanted */
    size_t columns, column, rank;
    unsigned blocks; /* of COLUMNS */
};

template <class T, int R> __device__ inline void fetch_rows(T *x, T *t, const FactorSum<T> &f, size_t m, size_t row0, size_t c0)
{
    for (int i = threadIdx.x; i < STEP * (COLUMNS / 8); i += SUM_THREADS) {
        int row = i / (COLUMNS / 8), column = i % (COLUMNS / 8) * 8;
        bool valid = row0 + row < m && c0 + column < f.columns;

        copy_async(x + row * tile_row<COLUMNS> + column, valid ? f.x + (row0 + row) * f.columns + c0 + column : f.x, valid);
    }
    for (int i = threadIdx.x; i < STEP * (R / 8); i += SUM_THREADS) {
        int row = i / (R / 8), column = i % (R / 8) * 8;
        bool valid = row0 + row < m;

        copy_async(t + row * tile_row<R> + column, valid ? f.t + (row0 + row) * R + column : f.t, valid);
    }
    copy_async_commit();
}

/* Blocks over columns: first down's, then up's; blockIdx.y: `rows` rows each, whole steps. part: [gridDim.y][size], or NULL. */
template <class T, int R>
__global__ void __launch_bounds__(SUM_THREADS)
    lora_factors_kernel(FactorSum<T> down, FactorSum<T> up, size_t m, size_t r, size_t rows, float *part, size_t size)
{
    constexpr int X = STEP * tile_row<COLUMNS>, TILE = X + STEP * tile_row<R>;
    T *tile = reinterpret_cast<T *>(shared_memory());
    bool is_up = blockIdx.x >= down.blocks;
    const FactorSum<T> f = {is_up ? up.x : down.x,           is_up ? up.t : down.t,       is_up ? up.out : down.out,
                            is_up ? up.columns : down.columns, is_up ? up.column : down.column, is_up ? up.rank : down.rank, 0};
    size_t c0 = (blockIdx.x - (is_up ? down.blocks : 0)) * (size_t)COLUMNS, row0 = blockIdx.y * rows;
    size_t end = row0 + rows < m ? row0 + rows : m;
    int warp = threadIdx.x / WARP, turn = 0;
    float sum[R / 16][2][4] = {}, *out = part ? part + blockIdx.y * size + (is_up ? r * down.columns : 0) : f.out;

    if (!f.out)
        return;
    if (row0 < end)
        fetch_rows<T, R>(tile, tile + X, f, m, row0, c0);
    for (; row0 < end; row0 += STEP, turn ^= TILE) {
        copy_async_wait<0>();
        __syncthreads(); /* this tile is here, and all are done with the one before, whose place the next takes */
        if (row0 + STEP < end)
            fetch_rows<T, R>(tile + (turn ^ TILE), tile + (turn ^ TILE) + X, f, m, row0 + STEP, c0);
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t b[4];

            load_right_columns<T, COLUMNS>(b, tile + turn, k, warp * 16);
#pragma unroll
            for (int i = 0; i < R / 16; i++) {
                uint32_t a[4];

                load_left_columns<T, R>(a, tile + turn + X, i * 16, k);
                multiply_tile<T>(sum[i][0], a, b[0], b[1]);
                multiply_tile<T>(sum[i][1], a, b[2], b[3]);
            }
        }
    }
    for (int i = 0; i < R / 16; i++)
        for (int n = 0; n < 2; n++)
            for (int e = 0; e < 4; e++) {
                size_t j = row_of(i, e), c = c0 + warp * 16 + column_of(n, e);

                if (j < r && c < f.columns)
                    out[c * f.column + j * f.rank] = sum[i][n][e];
            }
}

/* ddown, then dup, from parts [parts][r (k + n)] */
__global__ void lora_tensor_join_kernel(Lora l, const float *part, size_t parts)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x, down = l.r * l.k, all = l.r * (l.k + l.n);
    float *to = i < down ? l.ddown : l.dup, sum = 0;

    if (i >= all || !to)
        return;
#pragma unroll 4
    for (size_t p = 0; p < parts; p++)
        sum += part[p * all + i];
    to[i < down ? i : i - down] = sum;
}

/* ---- launches ---- */

static size_t rank_up(size_t r)
{
    return r <= 16 ? 16 : 32;
}

/* Parts of the rows for the factors' gradients, and rows of one. */
static size_t factor_rows(size_t m, size_t k, size_t n)
{
    size_t blocks = div_up(k, COLUMNS) + div_up(n, COLUMNS), parts = div_up(BLOCKS, blocks);

    return div_up(div_up(m, parts), STEP) * STEP;
}

bool lora_on_tensor_cores(const struct kernel_lora *c)
{
    return c->type != KERNEL_F32 && c->k % 8 == 0 && c->n % 8 == 0 && aligned16(c->x) && aligned16(c->base) &&
           aligned16(c->y) && aligned16(c->dy) && aligned16(c->dx) && aligned16(c->down) && aligned16(c->scratch) &&
           has_tensor_cores();
}

size_t lora_tensor_scratch(const struct kernel_lora *c)
{
    size_t parts = div_up(c->m, factor_rows(c->m, c->k, c->n));

    return 2 * c->m * rank_up(c->r) * 2 + (parts > 1 ? parts * c->r * (c->k + c->n) * sizeof(float) : 0);
}

/* Blocks that share the same rows: as many as fill the machine, each with four groups of columns for every warp. */
static unsigned sharers(size_t row_blocks, size_t columns)
{
    size_t wanted = div_up(BLOCKS, row_blocks), most = div_up(columns, 4 * WARPS * GROUP);

    return (unsigned)(wanted < most ? wanted : most);
}

/* Calls f with types of T, M and R. */
template <class F> int with_sizes(enum kernel_type t, const Lora &l, F f)
{
    auto with_rows = [&](auto type, auto rank) {
        return l.m >= 4096 ? f(type, std::integral_constant<int, 2>(), rank) : f(type, std::integral_constant<int, 1>(), rank);
    };
    auto with_ranks = [&](auto type) {
        return l.r <= 16 ? with_rows(type, std::integral_constant<int, 16>()) : with_rows(type, std::integral_constant<int, 32>());
    };

    return t == KERNEL_BF16 ? with_ranks(bf16()) : with_ranks(f16());
}

int lora_tensor_forward(cudaStream_t s, enum kernel_type t, const Lora &l)
{
    return with_sizes(t, l, [&](auto type, auto rows, auto rank) {
        using T = decltype(type);
        constexpr int M = decltype(rows)::value, R = decltype(rank)::value;
        unsigned blocks = (unsigned)div_up(l.m, 16 * M);

        return launch(lora_tensor_forward_kernel<T, M, R>, dim3(blocks, sharers(blocks, l.n)), THREADS, shared_bytes<M, R>(), s, l);
    });
}

template <class T, int R> static int run_factors(cudaStream_t s, const Lora &l, const T *t, const T *dt)
{
    FactorSum<T> down = {(const T *)l.x, dt, l.ddown, l.k, 1, l.k, (unsigned)div_up(l.k, COLUMNS)};
    FactorSum<T> up = {(const T *)l.dy, t, l.dup, l.n, l.r, 1, (unsigned)div_up(l.n, COLUMNS)};
    size_t rows = factor_rows(l.m, l.k, l.n), parts = div_up(l.m, rows), size = l.r * (l.k + l.n);
    size_t shared = 2 * STEP * (tile_row<COLUMNS> + tile_row<R>) * sizeof(T);
    float *part = parts > 1 ? (float *)((T *)l.scratch + 2 * l.m * R) : NULL;
    int e = launch(lora_factors_kernel<T, R>, dim3(down.blocks + up.blocks, (unsigned)parts), SUM_THREADS, shared, s, down, up,
                   l.m, l.r, rows, part, size);

    if (e || !part)
        return e;
    return launch(lora_tensor_join_kernel, dim3((unsigned)div_up(size, 128)), 128, 0, s, l, (const float *)part, parts);
}

int lora_tensor_backward(cudaStream_t s, enum kernel_type t, const Lora &l)
{
    return with_sizes(t, l, [&](auto type, auto rows, auto rank) {
        using T = decltype(type);
        constexpr int M = decltype(rows)::value, R = decltype(rank)::value;
        unsigned blocks = (unsigned)div_up(l.m, 16 * M);
        T *kept = (T *)l.scratch, *kept_dt = kept + l.m * R;
        int e = launch(lora_tensor_backward_kernel<T, M, R>, dim3(blocks, l.dx ? sharers(blocks, l.k) : 1), THREADS,
                       shared_bytes<M, R>(), s, l, kept, kept_dt);

        return e || (!l.ddown && !l.dup) ? e : run_factors<T, R>(s, l, kept, kept_dt);
    });
}

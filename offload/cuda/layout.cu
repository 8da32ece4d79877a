/* Ops that move elements: concat and split, upsampling, embeddings of tokens and timesteps. */
#include "offload/cuda/elementwise.cuh"

template <class T, int N> struct Copy2d {
    T *dst;
    const T *src;
    size_t ldd, lds, cols;
    template <int one> __device__ void run(size_t i) const /* i counts vectors of N */
    {
        size_t row = i * N / cols, column = i * N - row * cols;

        *reinterpret_cast<Vector<T, N> *>(dst + row * ldd + column) =
            *reinterpret_cast<const Vector<T, N> *>(src + row * lds + column);
    }
};

template <class T, int N> struct Pad2d {
    T *dst;
    const T *src;
    size_t cols, first, count;
    template <int one> __device__ void run(size_t i) const
    {
        size_t row = i * N / cols, column = i * N - row * cols;
        Vector<T, N> v;

        for (int j = 0; j < N; j++)
            v.at[j] = from_f32<T>(0);
        if (column >= first && column < first + count)
            v = *reinterpret_cast<const Vector<T, N> *>(src + row * count + column - first);
        *reinterpret_cast<Vector<T, N> *>(dst + i * N) = v;
    }
};

/* Whether everything is a whole number of vectors of n elements of `size` bytes. */
static bool whole(const void *a, const void *b, size_t size, size_t n, size_t x, size_t y, size_t z)
{
    return ((uintptr_t)a | (uintptr_t)b) % (size * n) == 0 && x % n == 0 && y % n == 0 && z % n == 0;
}

template <class Body> int run_vectors(cudaStream_t s, const Body &body, size_t n)
{
    size_t blocks = div_up(n, EACH_THREADS);

    if (n == 0)
        return cudaSuccess;
    return blocks > 0x7fffffff ? cudaErrorInvalidValue
                               : launch(each_kernel<1, Body>, dim3((unsigned)blocks), EACH_THREADS, 0, s, body, n);
}

int kernel_copy2d(cudaStream_t s, enum kernel_type t, void *dst, size_t ldd, const void *src, size_t lds, size_t rows,
                  size_t cols)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        constexpr int N = vector_size<T>();
        if (whole(dst, src, sizeof(T), N, ldd, lds, cols))
            return run_vectors(s, Copy2d<T, N>{(T *)dst, (const T *)src, ldd, lds, cols}, rows * cols / N);
        return run_vectors(s, Copy2d<T, 1>{(T *)dst, (const T *)src, ldd, lds, cols}, rows * cols);
    });
}

int kernel_pad2d(cudaStream_t s, enum kernel_type t, void *dst, size_t cols, const void *src, size_t first, size_t count,
                 size_t rows)
{
    if (first > cols || count > cols - first)
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        constexpr int N = vector_size<T>();
        if (whole(dst, src, sizeof(T), N, cols, first, count))
            return run_vectors(s, Pad2d<T, N>{(T *)dst, (const T *)src, cols, first, count}, rows * cols / N);
        return run_vectors(s, Pad2d<T, 1>{(T *)dst, (const T *)src, cols, first, count}, rows * cols);
    });
}

struct Upsampled {
    size_t h, w, c, oh, ow; /* x [n, h, w, c], y [n, oh, ow, c] */
};

template <class T> struct UpsampleForward {
    const T *x;
    T *y;
    Upsampled u;
    template <int N> __device__ void run(size_t i) const
    {
        size_t pixel = i / u.c, row = pixel / u.ow, ox = pixel - row * u.ow, sample = row / u.oh, oy = row - sample * u.oh;
        float v[N];

        load<T, N>(v, x + ((sample * u.h + oy / 2) * u.w + ox / 2) * u.c + (i - pixel * u.c));
        store<T, N>(y + i, v);
    }
};

/* dx is the sum of the copies' gradients */
template <class T> struct UpsampleBackward {
    const T *dy;
    T *dx;
    Upsampled u;
    template <int N> __device__ void run(size_t i) const
    {
        size_t pixel = i / u.c, row = pixel / u.w, x = pixel - row * u.w, sample = row / u.h, y = row - sample * u.h;
        float sum[N] = {0}, v[N];

        for (size_t oy = 2 * y; oy < 2 * y + 2 && oy < u.oh; oy++)
            for (size_t ox = 2 * x; ox < 2 * x + 2 && ox < u.ow; ox++) {
                load<T, N>(v, dy + ((sample * u.oh + oy) * u.ow + ox) * u.c + (i - pixel * u.c));
                for (int j = 0; j < N; j++)
                    sum[j] += v[j];
            }
        store<T, N>(dx + i, sum);
    }
};

int kernel_upsample(cudaStream_t s, enum kernel_type t, const void *x, void *y, size_t n, size_t h, size_t w, size_t c,
                    int crop_h, int crop_w)
{
    Upsampled u = {h, w, c, 2 * h - (size_t)crop_h, 2 * w - (size_t)crop_w};

    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, UpsampleForward<T>{(const T *)x, (T *)y, u}, n * u.oh * u.ow, c);
    });
}

int kernel_upsample_backward(cudaStream_t s, enum kernel_type t, const void *dy, void *dx, size_t n, size_t h, size_t w,
                             size_t c, int crop_h, int crop_w)
{
    Upsampled u = {h, w, c, 2 * h - (size_t)crop_h, 2 * w - (size_t)crop_w};

    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, UpsampleBackward<T>{(const T *)dy, (T *)dx, u}, n * h * w, c);
    });
}

template <class T> struct Embedding {
    const int32_t *ids;
    const T *table, *positions;
    T *y;
    size_t t, v, c;
    template <int N> __device__ void run(size_t i) const
    {
        size_t token = i / c, column = i - token * c;
        bool known = ids[token] >= 0 && (size_t)ids[token] < v;
        float a[N], b[N] = {0};

        if (known)
            load<T, N>(a, table + (size_t)ids[token] * c + column);
        if (positions)
            load<T, N>(b, positions + token % t * c + column);
        for (int j = 0; j < N; j++)
            a[j] = known ? a[j] + b[j] : float_of_bits(0x7fc00000u);
        store<T, N>(y + i, a);
    }
};

int kernel_embedding(cudaStream_t s, enum kernel_type type, const int32_t *ids, const void *table, const void *positions,
                     void *y, size_t n, size_t t, size_t v, size_t c)
{
    return with_type(type, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, Embedding<T>{ids, (const T *)table, (const T *)positions, (T *)y, t, v, c}, n * t, c);
    });
}

template <class T> struct Gather {
    const T *x;
    const int32_t *rows;
    T *y;
    size_t count, c;
    template <int N> __device__ void run(size_t i) const
    {
        size_t at = i / c;
        bool known = rows[at] >= 0 && (size_t)rows[at] < count;
        float v[N];

        for (int j = 0; j < N; j++)
            v[j] = float_of_bits(0x7fc00000u);
        if (known)
            load<T, N>(v, x + (size_t)rows[at] * c + (i - at * c));
        store<T, N>(y + i, v);
    }
};

/* Each row looks for those that came from it, in order: there are few. */
template <class T> struct GatherBackward {
    const T *dy;
    const int32_t *rows;
    T *dx;
    size_t n, c;
    template <int N> __device__ void run(size_t i) const
    {
        size_t row = i / c;
        float sum[N] = {0}, v[N];

        for (size_t k = 0; k < n; k++)
            if (rows[k] >= 0 && (size_t)rows[k] == row) {
                load<T, N>(v, dy + k * c + (i - row * c));
                for (int j = 0; j < N; j++)
                    sum[j] += v[j];
            }
        store<T, N>(dx + i, sum);
    }
};

int kernel_gather(cudaStream_t s, enum kernel_type t, const void *x, const int32_t *rows, void *y, size_t n, size_t count, size_t c)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, Gather<T>{(const T *)x, rows, (T *)y, count, c}, n, c);
    });
}

int kernel_gather_backward(cudaStream_t s, enum kernel_type t, const void *dy, const int32_t *rows, void *dx, size_t n,
                           size_t count, size_t c)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, GatherBackward<T>{(const T *)dy, rows, (T *)dx, n, c}, count, c);
    });
}

template <class T> struct Timestep {
    const float *t;
    T *y;
    size_t half;
    template <int one> __device__ void run(size_t i) const
    {
        size_t sample = i / (2 * half), column = i - sample * 2 * half, j = column % half;
        double angle = (double)t[sample] * exp(-9.2103403719761827 * (double)j / (double)half); /* log(10000) */

        y[i] = from_f32<T>((float)(column < half ? cos(angle) : sin(angle)));
    }
};

int kernel_timestep(cudaStream_t s, enum kernel_type type, const float *t, void *y, size_t n, size_t width)
{
    if (width % 2 != 0)
        return cudaErrorInvalidValue;
    return with_type(type, [=](auto one) {
        using T = decltype(one);
        return run_vectors(s, Timestep<T>{t, (T *)y, width / 2}, n * width);
    });
}

/* Ops that touch each element once: bound by memory, so every access is 16 bytes where sizes allow. */
#include "offload/cuda/act.cuh"
#include "offload/cuda/elementwise.cuh"

template <class T> struct ActForward {
    enum kernel_act act;
    const T *x;
    T *y;
    template <int N> __device__ void run(size_t i) const
    {
        float v[N];

        load<T, N>(v, x + i);
        for (int j = 0; j < N; j++)
            v[j] = act_apply(act, v[j]);
        store<T, N>(y + i, v);
    }
};

/* dx = dy act'(x) */
template <class T> struct ActBackward {
    enum kernel_act act;
    const T *x, *dy;
    T *dx;
    template <int N> __device__ void run(size_t i) const
    {
        float v[N], d[N];

        load<T, N>(v, x + i);
        load<T, N>(d, dy + i);
        for (int j = 0; j < N; j++)
            d[j] *= act_slope(act, v[j]);
        store<T, N>(dx + i, d);
    }
};

int kernel_act(cudaStream_t s, enum kernel_type t, enum kernel_act act, const void *x, void *y, size_t n)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each<T>(s, ActForward<T>{act, (const T *)x, (T *)y}, n);
    });
}

int kernel_act_backward(cudaStream_t s, enum kernel_type t, enum kernel_act act, const void *x, const void *dy, void *dx,
                        size_t n)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each<T>(s, ActBackward<T>{act, (const T *)x, (const T *)dy, (T *)dx}, n);
    });
}

template <class T> struct BiasAct {
    enum kernel_act act;
    T *y;
    const float *bias;
    const T *residual;
    size_t c;
    template <int N> __device__ void run(size_t i) const
    {
        float v[N], b[N] = {0}, r[N] = {0};

        load<T, N>(v, y + i);
        if (bias)
            for (int j = 0; j < N; j++)
                b[j] = bias[i % c + j];
        if (residual)
            load<T, N>(r, residual + i);
        for (int j = 0; j < N; j++)
            v[j] = act_apply(act, v[j] + b[j] + r[j]);
        store<T, N>(y + i, v);
    }
};

int kernel_bias_act(cudaStream_t s, enum kernel_type t, enum kernel_act act, void *y, const float *bias, const void *residual,
                    size_t rows, size_t c)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, BiasAct<T>{act, (T *)y, bias, (const T *)residual, c}, rows, c);
    });
}

/* y = a gelu(b), x = a beside b */
template <class T> struct GegluForward {
    const T *x;
    T *y;
    size_t c;
    template <int N> __device__ void run(size_t i) const
    {
        const T *p = x + i / c * c + i; /* row i / c begins at twice its place in y */
        float a[N], b[N];

        load<T, N>(a, p);
        load<T, N>(b, p + c);
        for (int j = 0; j < N; j++)
            a[j] *= gelu(b[j]);
        store<T, N>(y + i, a);
    }
};

/* da = dy gelu(b), db = dy a gelu'(b) */
template <class T> struct GegluBackward {
    const T *x, *dy;
    T *dx;
    size_t c;
    template <int N> __device__ void run(size_t i) const
    {
        size_t at = i / c * c + i;
        float a[N], b[N], d[N], da[N], db[N];

        load<T, N>(a, x + at);
        load<T, N>(b, x + at + c);
        load<T, N>(d, dy + i);
        for (int j = 0; j < N; j++) {
            da[j] = d[j] * gelu(b[j]);
            db[j] = d[j] * a[j] * gelu_slope(b[j]);
        }
        store<T, N>(dx + at, da);
        store<T, N>(dx + at + c, db);
    }
};

int kernel_geglu(cudaStream_t s, enum kernel_type t, const void *x, void *y, size_t rows, size_t c)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, GegluForward<T>{(const T *)x, (T *)y, c}, rows, c);
    });
}

int kernel_geglu_backward(cudaStream_t s, enum kernel_type t, const void *x, const void *dy, void *dx, size_t rows, size_t c)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, GegluBackward<T>{(const T *)x, (const T *)dy, (T *)dx, c}, rows, c);
    });
}

template <class T> struct Add {
    const T *a, *b;
    T *y;
    template <int N> __device__ void run(size_t i) const
    {
        float v[N], w[N];

        load<T, N>(v, a + i);
        load<T, N>(w, b + i);
        for (int j = 0; j < N; j++)
            v[j] += w[j];
        store<T, N>(y + i, v);
    }
};

int kernel_add(cudaStream_t s, enum kernel_type t, const void *a, const void *b, void *y, size_t n)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each<T>(s, Add<T>{(const T *)a, (const T *)b, (T *)y}, n);
    });
}

template <class T> struct AddRows {
    const T *a, *b;
    T *y;
    size_t rows, c;
    template <int N> __device__ void run(size_t i) const
    {
        size_t row = i / c;
        float v[N], w[N];

        load<T, N>(v, a + i);
        load<T, N>(w, b + row / rows * c + (i - row * c));
        for (int j = 0; j < N; j++)
            v[j] += w[j];
        store<T, N>(y + i, v);
    }
};

int kernel_add_rows(cudaStream_t s, enum kernel_type t, const void *a, const void *b, void *y, size_t n, size_t rows, size_t c)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, AddRows<T>{(const T *)a, (const T *)b, (T *)y, rows, c}, n * rows, c);
    });
}

/* db of the form with rows: strips of rows are summed one beside the other, then the strips in order. */
enum { STRIP_ROWS = 64 };

template <class T> __global__ void sum_rows_kernel(const T *dy, float *part, size_t rows, size_t c)
{
    size_t column = blockIdx.x * (size_t)blockDim.x + threadIdx.x, first = blockIdx.y * (size_t)STRIP_ROWS;
    size_t end = first + STRIP_ROWS < rows ? first + STRIP_ROWS : rows;
    float sum = 0;

    if (column >= c)
        return;
    for (size_t i = first; i < end; i++)
        sum += to_f32(dy[(blockIdx.z * rows + i) * c + column]);
    part[(blockIdx.z * gridDim.y + blockIdx.y) * c + column] = sum;
}

template <class T> __global__ void sum_strips_kernel(const float *part, T *db, size_t strips, size_t c)
{
    size_t column = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    float sum = 0;

    if (column >= c)
        return;
    for (size_t i = 0; i < strips; i++)
        sum += part[(blockIdx.z * strips + i) * c + column];
    db[blockIdx.z * c + column] = from_f32<T>(sum);
}

size_t kernel_add_rows_scratch(size_t n, size_t rows, size_t c)
{
    return n * div_up(rows, STRIP_ROWS) * c * sizeof(float);
}

int kernel_add_rows_backward(cudaStream_t s, enum kernel_type t, const void *dy, void *db, size_t n, size_t rows, size_t c,
                             void *scratch)
{
    size_t strips = div_up(rows, STRIP_ROWS);
    unsigned across = (unsigned)div_up(c, 128);

    if (n * rows * c == 0)
        return cudaSuccess;
    if (strips > 65535 || n > 65535)
        return cudaErrorInvalidValue;
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        int e = launch(sum_rows_kernel<T>, dim3(across, (unsigned)strips, (unsigned)n), 128, 0, s, (const T *)dy,
                       (float *)scratch, rows, c);

        return e ? e
                 : launch(sum_strips_kernel<T>, dim3(across, 1, (unsigned)n), 128, 0, s, (const float *)scratch, (T *)db,
                          strips, c);
    });
}

template <class T> struct Mul {
    const T *x, *m;
    T *y;
    size_t rows, c;
    template <int N> __device__ void run(size_t i) const
    {
        size_t row = i / c;
        float v[N], w[N];

        load<T, N>(v, x + i);
        load<T, N>(w, m + row / rows * c + (i - row * c));
        for (int j = 0; j < N; j++)
            v[j] *= w[j];
        store<T, N>(y + i, v);
    }
};

int kernel_mul(cudaStream_t s, enum kernel_type t, const void *x, const void *m, void *y, size_t n, size_t rows, size_t c)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, Mul<T>{(const T *)x, (const T *)m, (T *)y, rows, c}, n * rows, c);
    });
}

template <class T> struct Scale {
    float scale;
    const T *x;
    T *y;
    template <int N> __device__ void run(size_t i) const
    {
        float v[N];

        load<T, N>(v, x + i);
        for (int j = 0; j < N; j++)
            v[j] *= scale;
        store<T, N>(y + i, v);
    }
};

int kernel_scale(cudaStream_t s, enum kernel_type t, float scale, const void *x, void *y, size_t n)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each<T>(s, Scale<T>{scale, (const T *)x, (T *)y}, n);
    });
}

template <class T> struct Mix {
    const float *a, *b;
    const T *x, *z;
    T *y;
    size_t per;
    template <int N> __device__ void run(size_t i) const
    {
        float v[N], w[N], p = a[i / per], q = b[i / per];

        load<T, N>(v, x + i);
        load<T, N>(w, z + i);
        for (int j = 0; j < N; j++)
            v[j] = p * v[j] + q * w[j];
        store<T, N>(y + i, v);
    }
};

int kernel_mix(cudaStream_t s, enum kernel_type t, const float *a, const void *x, const float *b, const void *z, void *y,
               size_t n, size_t per)
{
    return with_type(t, [=](auto one) {
        using T = decltype(one);
        return each_row<T>(s, Mix<T>{a, b, (const T *)x, (const T *)z, (T *)y, per}, n, per);
    });
}

template <class From, class To> struct Convert {
    const From *src;
    To *dst;
    template <int N> __device__ void run(size_t i) const
    {
        float v[N];

        load<From, N>(v, src + i);
        store<To, N>(dst + i, v);
    }
};

int kernel_convert(cudaStream_t s, void *dst, enum kernel_type to, const void *src, enum kernel_type from, size_t n)
{
    return with_type(from, [=](auto a) {
        return with_type(to, [=](auto b) {
            using From = decltype(a);
            using To = decltype(b);
            return each<float>(s, Convert<From, To>{(const From *)src, (To *)dst}, n); /* 4 at a time: both aligned */
        });
    });
}

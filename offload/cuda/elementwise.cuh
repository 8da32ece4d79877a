/* Loops over elements: a body is a struct with `template <int N> void run(size_t i) const`, which does elements i .. i+N-1. */
#ifndef OFFLOAD_CUDA_ELEMENTWISE_CUH
#define OFFLOAD_CUDA_ELEMENTWISE_CUH

#include "offload/cuda/common.cuh"

enum { EACH_THREADS = 256 };

template <int N, class Body> __global__ void each_kernel(Body body, size_t n)
{
    size_t i = (blockIdx.x * (size_t)EACH_THREADS + threadIdx.x) * N;

    if (i + N <= n)
        body.template run<N>(i);
    else
        for (; i < n; i++)
            body.template run<1>(i);
}

/* body over n elements of T, 16 bytes at a time. */
template <class T, class Body> int each(cudaStream_t s, const Body &body, size_t n)
{
    constexpr int N = vector_size<T>();
    size_t blocks = div_up(n, (size_t)EACH_THREADS * N);

    if (n == 0)
        return cudaSuccess;
    return blocks > 0x7fffffff ? cudaErrorInvalidValue
                               : launch(each_kernel<N, Body>, dim3((unsigned)blocks), EACH_THREADS, 0, s, body, n);
}

/* body over rows of c elements; an access never crosses the end of a row. */
template <class T, class Body> int each_row(cudaStream_t s, const Body &body, size_t rows, size_t c)
{
    size_t n = rows * c, blocks = div_up(n, EACH_THREADS);

    if (n == 0 || c % vector_size<T>() == 0)
        return each<T>(s, body, n);
    return blocks > 0x7fffffff ? cudaErrorInvalidValue
                               : launch(each_kernel<1, Body>, dim3((unsigned)blocks), EACH_THREADS, 0, s, body, n);
}

#endif

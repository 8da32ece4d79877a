#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/cuda/device.h"

static cudaEvent_t from, to;

static void must(cudaError_t e)
{
    if (e != cudaSuccess) {
        fprintf(stderr, "cuda: %s\n", cudaGetErrorString(e));
        exit(1);
    }
}

bool device_open(char name[256])
{
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, 0);

    if (e != cudaSuccess) {
        snprintf(name, 256, "%s", cudaGetErrorString(e));
        return false;
    }
    snprintf(name, 256, "%.200s, compute capability %d.%d", p.name, p.major, p.minor);
    must(cudaEventCreate(&from));
    must(cudaEventCreate(&to));
    return true;
}

bool device_emulated(void)
{
    return false;
}

void *device_new(size_t bytes)
{
    void *p;

    must(cudaMalloc(&p, bytes + 16));
    device_poison(p, bytes + 16);
    return p;
}

void device_free(void *p)
{
    must(cudaFree(p));
}

void device_upload(void *dst, const void *src, size_t bytes)
{
    must(cudaMemcpy(dst, src, bytes, cudaMemcpyHostToDevice));
}

void device_download(void *dst, const void *src, size_t bytes)
{
    must(cudaMemcpy(dst, src, bytes, cudaMemcpyDeviceToHost));
}

void device_poison(void *p, size_t bytes)
{
    must(cudaMemset(p, 0xff, bytes));
}

const char *device_wait(void)
{
    cudaError_t e = cudaDeviceSynchronize();

    return e == cudaSuccess ? NULL : cudaGetErrorString(e);
}

void device_order(int falling)
{
    (void)falling;
}

void device_start(void)
{
    must(cudaEventRecord(from, 0));
}

double device_stop(void)
{
    float ms;

    must(cudaEventRecord(to, 0));
    must(cudaEventSynchronize(to));
    must(cudaEventElapsedTime(&ms, from, to));
    return ms * 1e-3;
}

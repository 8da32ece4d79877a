/* Stands for NVIDIA's header where kernels are compiled for the CPU: the few names that kernels.h and the test use. */
#ifndef EMULATE_CUDA_RUNTIME_API_H
#define EMULATE_CUDA_RUNTIME_API_H

#include <stddef.h>

enum cudaError { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
typedef int cudaError_t;
typedef struct emulated_stream *cudaStream_t;

#endif

/* What the parts of the plug-in share: the device that is open, and how its calls fail. One device at a time, one thread. */
#ifndef OFFLOAD_CUDA_STATE_H
#define OFFLOAD_CUDA_STATE_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "offload/cuda/kernels.h"
#include "offload/offload.h"

struct cuda_state {
    const struct ops *ref;
    int index;             /* which GPU */
    cudaStream_t stream;   /* all work, in order */
    enum kernel_type type; /* of activations and gradients, T */
    enum dtype storage;    /* the same as a dtype */
    bool tf32;             /* products of f32 in TF32 */
    enum offload_base base;
    cublasLtHandle_t lt;
    void *workspace; /* of products and convolutions; one is enough, since work is in order */
    bool cudnn;
    int threads;
};

extern struct cuda_state state;

enum { STATE_WORKSPACE = 32 << 20 };

/* 0, or -1 with a message that says what failed, why, and what to do. `what`: "copy to the GPU". */
int state_check(int cuda_error, const char *what, struct err *err);

/* Elements of a tensor whose shape the graph has checked. */
size_t state_count(const struct tensor *t);

static inline size_t state_aligned(size_t n)
{
    return (n + OPS_DEVICE_ALIGN - 1) / OPS_DEVICE_ALIGN * OPS_DEVICE_ALIGN;
}


#endif

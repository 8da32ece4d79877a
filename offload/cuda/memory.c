/* Memory of the GPU, copies, and recorded runs: the table of ref/op/ops.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "offload/cuda/memory.h"
#include "offload/cuda/weight.h"

struct cuda_state state;

int state_check(int code, const char *what, struct err *err)
{
    const char *hint = "update the driver, or use --device cpu";

    if (code == cudaSuccess)
        return 0;
    if (code == cudaErrorMemoryAllocation)
        hint = "use a smaller batch or picture, --gradient_checkpointing, or --device cpu";
    else if (code == cudaErrorDevicesUnavailable)
        hint = "another program keeps the GPU for itself: end it, or choose another GPU with --device cuda:N";
    return err_set(err, "the GPU failed to %s: %s; %s", what, cudaGetErrorString((cudaError_t)code), hint);
}

size_t state_count(const struct tensor *t)
{
    size_t n = 0;

    return shape_numel(&t->shape, &n) ? n : 0;
}

static int out_of_memory(size_t bytes, const char *what, struct err *err)
{
    size_t free_now = 0, total = 0;

    cudaGetLastError(); /* the failed allocation must not be found again by the next check */
    cudaMemGetInfo(&free_now, &total);
    return err_set(err, "out of GPU memory: %s need %.2f GB, %.2f of %.2f GB are free; use a smaller batch or picture, "
                        "--gradient_checkpointing, --device cuda:nf4, or --device cpu",
                   what, (double)bytes * 1e-9, (double)free_now * 1e-9, (double)total * 1e-9);
}

static void *get(size_t bytes, const char *what, struct err *err)
{
    void *data = NULL;
    cudaError_t code = cudaSetDevice(state.index); /* of this thread, which may be another than the one that opened it */

    if (code == cudaSuccess)
        code = cudaMalloc(&data, bytes ? bytes : 1);

    if (code == cudaSuccess)
        return data;
    if (code == cudaErrorMemoryAllocation)
        out_of_memory(bytes, what, err);
    else
        state_check(code, "reserve memory", err);
    return NULL;
}

/* cudaFree() waits for the device. */
static void give_back(void *data)
{
    if (!data)
        return;
    memory_forget_params(data);
    cudaFree(data);
}

static void *get_pinned(size_t bytes, const char *what, struct err *err)
{
    void *data = NULL;

    if (cudaMallocHost(&data, bytes ? bytes : 1) == cudaSuccess)
        return data;
    cudaGetLastError();
    err_memory(err, bytes, what);
    return NULL;
}

static void free_pinned(void *data)
{
    if (data)
        cudaFreeHost(data);
}

/* The driver has taken bytes of pageable memory when the call returns; pinned memory is read later, so that is waited for. */
static int put(void *dst, const void *src, size_t bytes, struct err *err)
{
    struct cudaPointerAttributes where;
    cudaError_t code = cudaSetDevice(state.index);

    if (code == cudaSuccess)
        code = cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, state.stream);

    if (code == cudaSuccess && cudaPointerGetAttributes(&where, src) == cudaSuccess && where.type == cudaMemoryTypeHost)
        code = cudaStreamSynchronize(state.stream);
    return state_check(code, "take data", err);
}

static int wait(struct err *err)
{
    return state_check(cudaStreamSynchronize(state.stream), "finish its work", err);
}

static int fetch(void *dst, const void *src, size_t bytes, struct err *err)
{
    if (state_check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, state.stream), "give data back", err) < 0)
        return -1;
    return wait(err);
}

/* ---- Params: f32 in front, the same in T behind ---- */

enum { BLOCKS = 64 };
static struct {
    const float *data;
    size_t count;
} blocks[BLOCKS];
static size_t block_count;

static size_t shadow_bytes(size_t count)
{
    return state.type == KERNEL_F32 ? 0 : count * dtype_size(state.storage);
}

void memory_forget_params(const void *data)
{
    for (size_t i = 0; i < block_count; i++)
        if (blocks[i].data == data)
            blocks[i] = blocks[--block_count];
}

static int params(float *data, size_t count, struct err *err)
{
    size_t i = 0;

    while (i < block_count && blocks[i].data != data)
        i++;
    if (i == BLOCKS)
        return err_set(err, "too many graphs with trained factors at once; use fewer sizes of pictures");
    blocks[i].data = data;
    blocks[i].count = count;
    block_count = i == block_count ? i + 1 : block_count;
    if (state.type == KERNEL_F32)
        return 0;
    return state_check(kernel_convert(state.stream, data + count, state.type, data, KERNEL_F32, count), "convert", err);
}

const void *memory_typed(const struct tensor *t)
{
    const float *data = t->data;

    if (t->dtype == state.storage)
        return data;
    for (size_t i = 0; i < block_count; i++)
        if (data >= blocks[i].data && data < blocks[i].data + blocks[i].count)
            return (const char *)(blocks[i].data + blocks[i].count) +
                   (size_t)(data - blocks[i].data) * dtype_size(state.storage);
    return weight_typed(t);
}

/* ---- Recording ---- */

static int record_begin(struct err *err)
{
    weight_settled(); /* a graph is recorded after its first run: its weights are there */
    return state_check(cudaStreamBeginCapture(state.stream, cudaStreamCaptureModeThreadLocal), "record its work", err);
}

static void *record_end(struct err *err)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaError_t code = cudaStreamEndCapture(state.stream, &graph);

    if (code == cudaSuccess)
        code = cudaGraphInstantiate(&exec, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    return state_check(code, "record its work", err) < 0 ? NULL : exec;
}

static int replay(void *recording, struct err *err)
{
    return state_check(cudaGraphLaunch(recording, state.stream), "start", err);
}

static void record_free(void *recording)
{
    if (recording)
        cudaGraphExecDestroy(recording);
}

struct ops_device memory_table(void)
{
    return (struct ops_device){
        .storage = state.storage, .alloc = get, .free = give_back, .write = put, .read = fetch, .sync = wait, .alloc_host = get_pinned,
        .free_host = free_pinned,
        .weight_type = weight_type, .weight = weight_get, .unweight = weight_drop, .weight_bytes = weight_bytes, .params = params,
        .shadow_bytes = shadow_bytes, .record_begin = record_begin, .record_end = record_end, .replay = replay,
        .record_free = record_free};
}

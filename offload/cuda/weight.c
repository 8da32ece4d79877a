#include "offload/cuda/weight.h"
#include "offload/cuda/memory.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/slab.h"

enum { CHUNK = 16 << 20, BUFFERS = 2, TWICE = 4 << 20, SLAB = 16 << 20 };

struct entry {
    const struct tensor *host;
    const void *source; /* host->data when it was copied */
    enum dtype type;
    void *data;
    size_t users;
};

static struct {
    struct entry *entries;
    size_t count, cap;
    char *pinned[BUFFERS], *raw[BUFFERS]; /* on the host, and on the device where the type changes */
    cudaEvent_t taken[BUFFERS];           /* the buffer may be filled again */
    size_t next;
    struct slabs slabs; /* where the weights lie */
} self;

static enum kernel_type type_of(enum dtype t)
{
    return t == DT_F32 ? KERNEL_F32 : t == DT_BF16 ? KERNEL_BF16 : KERNEL_F16;
}

/* Vectors, and f32 matrices as small as LoRA factors are, are there in f32 too: then that is the tensor's type. Large weights of
 * products may be in blocks of few bits; narrow ones (a picture's 3 or 4 channels) are not worth it. */
enum dtype weight_type(const struct tensor *host, bool product)
{
    const size_t *d = host->shape.dim;
    size_t n = state_count(host);

    if (host->shape.ndim < 2 || (host->dtype == DT_F32 && n * sizeof(float) <= TWICE))
        return DT_F32;
    if (product && state.base != OFFLOAD_BASE_PLAIN && d[0] >= KERNEL_QUANT_BLOCK && n / d[0] >= KERNEL_QUANT_BLOCK)
        return state.base == OFFLOAD_BASE_NF4 ? DT_U8 : DT_I8;
    return state.storage;
}

static bool quantised(enum dtype type)
{
    return type == DT_U8 || type == DT_I8;
}

static bool twice(enum dtype type)
{
    return type == DT_F32 && state.type != KERNEL_F32;
}

static size_t code_bytes(size_t n, enum dtype type)
{
    return state_aligned(type == DT_U8 ? (n + 1) / 2 : n);
}

size_t weight_bytes(const struct tensor *host, enum dtype type)
{
    size_t n = state_count(host);

    if (quantised(type))
        return code_bytes(n, type) + (n + KERNEL_QUANT_BLOCK - 1) / KERNEL_QUANT_BLOCK * sizeof(float);
    return twice(type) ? state_aligned(n * sizeof(float)) + n * dtype_size(state.storage) : n * dtype_size(type);
}

size_t weight_room(const struct tensor *t)
{
    return quantised(t->dtype) ? state_aligned(state_count(t) * dtype_size(state.storage)) : 0;
}

int weight_unpack(const struct tensor *t, void *room, const void **data, struct err *err)
{
    size_t n = state_count(t);
    enum kernel_quant kind = t->dtype == DT_U8 ? KERNEL_NF4 : KERNEL_INT8;

    *data = room;
    return state_check(kernel_dequantise(state.stream, kind, t->data, (const float *)((const char *)t->data + code_bytes(n, t->dtype)),
                                         0, n, room, state.type), "unpack weights", err);
}

const void *weight_typed(const struct tensor *t)
{
    return (const char *)t->data + state_aligned(state_count(t) * sizeof(float));
}

static void *block_get(size_t bytes, const char *what, struct err *err)
{
    return memory_table().alloc(bytes, what, err);
}

static void block_free(void *block)
{
    cudaFree(block); /* waits for the work */
}

static int open_buffers(struct err *err)
{
    cudaError_t code = cudaSuccess;

    self.slabs.alloc = block_get;
    self.slabs.free = block_free;
    self.slabs.align = OPS_DEVICE_ALIGN;
    self.slabs.block = SLAB;

    for (int i = 0; i < BUFFERS && code == cudaSuccess && !self.taken[i]; i++) {
        code = cudaMallocHost((void **)&self.pinned[i], CHUNK);
        if (code == cudaSuccess)
            code = cudaMalloc((void **)&self.raw[i], CHUNK);
        if (code == cudaSuccess)
            code = cudaEventCreateWithFlags(&self.taken[i], cudaEventDisableTiming);
    }
    return state_check(code, "make room for copying weights", err);
}

static void copy_parallel(char *dst, const char *src, size_t bytes)
{
    enum { PIECE = 1 << 20 };
    long pieces = (long)((bytes + PIECE - 1) / PIECE);

#pragma omp parallel for schedule(static) num_threads(state.threads < 8 ? state.threads : 8)
    for (long i = 0; i < pieces; i++) {
        size_t at = (size_t)i * PIECE;

        memcpy(dst + at, src + at, bytes - at < PIECE ? bytes - at : PIECE);
    }
}

/* dst [n] of type `to` on the device = src [n] of type `from` on the host, through the pinned buffers in turn. */
static int upload(void *dst, enum dtype to, const void *src, enum dtype from, size_t n, struct err *err)
{
    size_t size = dtype_size(from), most = CHUNK / size;

    for (size_t at = 0; at < n; at += most) {
        size_t part = n - at < most ? n - at : most, i = self.next++ % BUFFERS;
        char *target = (char *)dst + at * dtype_size(to);
        cudaError_t code = cudaEventSynchronize(self.taken[i]);

        copy_parallel(self.pinned[i], (const char *)src + at * size, part * size);
        if (code == cudaSuccess)
            code = cudaMemcpyAsync(to == from ? target : self.raw[i], self.pinned[i], part * size, cudaMemcpyHostToDevice,
                                   state.stream);
        if (code == cudaSuccess && to != from)
            code = (cudaError_t)kernel_convert(state.stream, target, type_of(to), self.raw[i], type_of(from), part);
        if (code == cudaSuccess)
            code = cudaEventRecord(self.taken[i], state.stream);
        if (code != cudaSuccess)
            return state_check(code, "take the weights", err);
    }
    return 0;
}

static struct entry *find(const struct tensor *host, enum dtype type)
{
    for (size_t i = self.count; i-- > 0;)
        if (self.entries[i].host == host && self.entries[i].source == host->data && self.entries[i].type == type)
            return &self.entries[i];
    return NULL;
}

/* f32 as it is, and behind it in T. */
static int upload_twice(char *data, const struct tensor *host, struct err *err)
{
    size_t n = state_count(host);

    if (upload(data, DT_F32, host->data, host->dtype, n, err) < 0)
        return -1;
    return state_check(kernel_convert(state.stream, data + state_aligned(n * sizeof(float)), state.type, data, KERNEL_F32, n),
                       "convert weights", err);
}

/* Through a plain copy in T that lives as long as the packing takes. */
static int upload_packed(char *data, enum dtype type, const struct tensor *host, struct err *err)
{
    size_t n = state_count(host);
    void *plain = memory_table().alloc(n * dtype_size(state.storage), "the weights", err);
    int rc = plain ? upload(plain, state.storage, host->data, host->dtype, n, err) : -1;

    if (rc == 0)
        rc = state_check(kernel_quantise(state.stream, type == DT_U8 ? KERNEL_NF4 : KERNEL_INT8, state.type, plain, n, data,
                                         (float *)(void *)(data + code_bytes(n, type))), "pack weights", err);
    cudaFree(plain); /* waits for the work */
    return rc;
}

static int add(const struct tensor *host, enum dtype type, struct err *err)
{
    struct entry e = {.host = host, .source = host->data, .type = type};
    int rc;

    if (open_buffers(err) < 0 ||
        mem_grow(&self.entries, &self.cap, self.count, sizeof *self.entries, "the weights", err) < 0)
        return -1;
    e.data = slab_get(&self.slabs, weight_bytes(host, type), "the weights", err);
    if (!e.data)
        return -1;
    if (quantised(type))
        rc = upload_packed(e.data, type, host, err);
    else if (twice(type))
        rc = upload_twice(e.data, host, err);
    else
        rc = upload(e.data, type, host->data, host->dtype, state_count(host), err);
    if (rc < 0)
        slab_put(&self.slabs, e.data);
    else
        self.entries[self.count++] = e;
    return rc;
}

int weight_get(const struct tensor *host, enum dtype type, struct tensor *device, struct err *err)
{
    struct entry *e = find(host, type);

    if (!e) {
        if (add(host, type, err) < 0)
            return -1;
        e = &self.entries[self.count - 1];
    }
    e->users++;
    *device = (struct tensor){e->data, type, host->shape};
    return 0;
}

void weight_drop(const void *data)
{
    for (size_t i = self.count; i-- > 0;)
        if (self.entries[i].data == data) {
            if (--self.entries[i].users == 0) {
                slab_put(&self.slabs, self.entries[i].data);
                self.entries[i] = self.entries[--self.count];
            }
            return;
        }
}

void weight_settled(void)
{
    for (int i = 0; i < BUFFERS; i++) {
        if (self.taken[i])
            cudaEventDestroy(self.taken[i]);
        cudaFreeHost(self.pinned[i]);
        cudaFree(self.raw[i]);
        self.taken[i] = NULL;
        self.pinned[i] = self.raw[i] = NULL;
    }
}

void weight_close(void)
{
    weight_settled();
    slab_close(&self.slabs);
    free(self.entries);
    memset(&self, 0, sizeof self);
}

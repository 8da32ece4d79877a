/* cuDNN's backend interface: an operation is described by descriptors with attributes, the library's heuristic lists ways to do
 * it, the first that can be built is kept for the shape. All tensors are named by dimensions [n, c, h, w] and strides, so
 * channels-last is only another stride. */
#include "offload/cuda/cudnn.h"

#include <cudnn.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

/* The functions used, from the library found at run time. */
#define API(ROW)                    \
    ROW(cudnnGetVersion)            \
    ROW(cudnnCreate)                \
    ROW(cudnnDestroy)               \
    ROW(cudnnSetStream)             \
    ROW(cudnnGetErrorString)        \
    ROW(cudnnBackendCreateDescriptor) \
    ROW(cudnnBackendDestroyDescriptor) \
    ROW(cudnnBackendSetAttribute)   \
    ROW(cudnnBackendGetAttribute)   \
    ROW(cudnnBackendFinalize)       \
    ROW(cudnnBackendExecute)

static struct {
#define POINTER(name) __typeof__(&name) name;
    API(POINTER)
#undef POINTER
} api;

typedef cudnnBackendDescriptor_t desc;

enum { X_ID = 1, W_ID, Y_ID, WAYS = 8 };

struct key {
    size_t n, h, w, ci, oh, ow, co, kh, kw, stride, pad, post;
    enum cudnn_kind kind;
};

struct entry {
    struct key key;
    desc plan; /* NULL: there is no way */
};

static void *library;
static cudnnHandle_t handle;
static struct entry *entries;
static size_t count, cap;

static bool load(void)
{
    static const char *const names[] = {
#define NAME(name) #name,
        API(NAME)
#undef NAME
    };
    void **pointers = (void **)&api;

    library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; library && i < sizeof names / sizeof *names; i++) {
        pointers[i] = dlsym(library, names[i]);
        if (!pointers[i])
            return false;
    }
    return library != NULL;
}

bool cudnn_open(char version[32])
{
    size_t v;

    if (!load() || api.cudnnGetVersion() / 10000 != CUDNN_MAJOR || api.cudnnCreate(&handle) != CUDNN_STATUS_SUCCESS ||
        api.cudnnSetStream(handle, state.stream) != CUDNN_STATUS_SUCCESS) {
        cudnn_close();
        return false;
    }
    v = api.cudnnGetVersion();
    snprintf(version, 32, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    return true;
}

void cudnn_close(void)
{
    for (size_t i = 0; i < count; i++)
        if (entries[i].plan)
            api.cudnnBackendDestroyDescriptor(entries[i].plan);
    free(entries);
    entries = NULL;
    count = cap = 0;
    if (handle)
        api.cudnnDestroy(handle);
    handle = NULL;
    if (library)
        dlclose(library);
    library = NULL;
}

/* ---- Descriptors ---- */

/* Everything that one plan is made of; freed when it is made (the plan keeps what it needs). */
struct parts {
    desc all[16 + 4 * WAYS];
    int count;
    cudnnStatus_t status; /* the first failure */
};

static desc new_part(struct parts *p, cudnnBackendDescriptorType_t type)
{
    desc d = NULL;

    if (p->status == CUDNN_STATUS_SUCCESS)
        p->status = api.cudnnBackendCreateDescriptor(type, &d);
    if (d)
        p->all[p->count++] = d;
    return d;
}

static void set(struct parts *p, desc d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,
                const void *value)
{
    if (p->status == CUDNN_STATUS_SUCCESS)
        p->status = api.cudnnBackendSetAttribute(d, name, type, n, value);
}

static void finish(struct parts *p, desc d)
{
    if (p->status == CUDNN_STATUS_SUCCESS)
        p->status = api.cudnnBackendFinalize(d);
}

static void free_parts(struct parts *p)
{
    while (p->count > 0)
        api.cudnnBackendDestroyDescriptor(p->all[--p->count]);
}

static cudnnDataType_t data_type(void)
{
    return state.type == KERNEL_F32 ? CUDNN_DATA_FLOAT : state.type == KERNEL_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
}

/* [n, h, w, c] as it lies, named [n, c, h, w] */
static desc tensor_part(struct parts *p, int64_t id, size_t n, size_t h, size_t w, size_t c)
{
    int64_t dim[4] = {(int64_t)n, (int64_t)c, (int64_t)h, (int64_t)w};
    int64_t stride[4] = {(int64_t)(h * w * c), 1, (int64_t)(w * c), (int64_t)c}, align = 16;
    cudnnDataType_t type = data_type();
    desc d = new_part(p, CUDNN_BACKEND_TENSOR_DESCRIPTOR);

    set(p, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(p, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim);
    set(p, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride);
    set(p, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(p, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align);
    finish(p, d);
    return d;
}

static desc convolution_part(struct parts *p, const struct key *k)
{
    int64_t two = 2, pre[2] = {(int64_t)k->pad, (int64_t)k->pad}, post[2] = {(int64_t)k->post, (int64_t)k->post};
    int64_t stride[2] = {(int64_t)k->stride, (int64_t)k->stride}, dilation[2] = {1, 1};
    cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    desc d = new_part(p, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);

    set(p, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    set(p, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(p, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &two);
    set(p, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pre);
    set(p, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, post);
    set(p, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    set(p, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation);
    finish(p, d);
    return d;
}

static desc operation_part(struct parts *p, const struct key *k)
{
    desc x = tensor_part(p, X_ID, k->n, k->h, k->w, k->ci), w = tensor_part(p, W_ID, k->co, k->kh, k->kw, k->ci);
    desc y = tensor_part(p, Y_ID, k->n, k->oh, k->ow, k->co), conv = convolution_part(p, k);
    float one = 1, zero = 0, *beta = k->kind == CUDNN_ADD ? &one : &zero;
    desc d = new_part(p, k->kind == CUDNN_BACKWARD ? CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR
                                 : CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);

    if (k->kind == CUDNN_BACKWARD) {
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &conv);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &w);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &x);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &y);
    } else {
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, beta);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &conv);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &w);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &x);
        set(p, d, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &y);
    }
    finish(p, d);
    return d;
}

/* The ways the heuristic proposes, best first. */
static int64_t list_ways(struct parts *p, const struct key *k, desc ways[WAYS])
{
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    desc operation = operation_part(p, k), graph = new_part(p, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR), heuristic;
    int64_t found = 0;

    set(p, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &operation);
    set(p, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    finish(p, graph);
    heuristic = new_part(p, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set(p, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph);
    set(p, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finish(p, heuristic);
    for (int i = 0; i < WAYS; i++)
        ways[i] = new_part(p, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (p->status == CUDNN_STATUS_SUCCESS)
        p->status = api.cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, WAYS,
                                                 &found, ways);
    return p->status == CUDNN_STATUS_SUCCESS ? (found < WAYS ? found : WAYS) : 0;
}

/* Whether an engine may give other bytes in another run, or computes more coarsely than was asked for. */
static bool unfit(desc way)
{
    cudnnBackendNumericalNote_t notes[16];
    desc engine = NULL;
    int64_t n = 0;
    bool found = false;

    if (api.cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) != CUDNN_STATUS_SUCCESS)
        return false;
    if (api.cudnnBackendGetAttribute(way, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine) ==
            CUDNN_STATUS_SUCCESS &&
        api.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, 16, &n, notes) ==
            CUDNN_STATUS_SUCCESS)
        for (int64_t i = 0; i < n && i < 16; i++)
            found |= notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC ||
                     (state.type == KERNEL_F32 && !state.tf32 &&
                      (notes[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE || notes[i] == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS));
    api.cudnnBackendDestroyDescriptor(engine);
    return found;
}

/* A plan of the first way that can be built, is fit, and has room enough in the workspace. */
static desc first_plan(const desc *ways, int64_t found)
{
    for (int64_t i = 0; i < found; i++) {
        desc plan = NULL;
        int64_t need = 0, n = 0;

        if (unfit(ways[i]) ||
            api.cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan) != CUDNN_STATUS_SUCCESS)
            continue;
        if (api.cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle) ==
                CUDNN_STATUS_SUCCESS &&
            api.cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                         &ways[i]) == CUDNN_STATUS_SUCCESS &&
            api.cudnnBackendFinalize(plan) == CUDNN_STATUS_SUCCESS &&
            api.cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &need) ==
                CUDNN_STATUS_SUCCESS &&
            need <= STATE_WORKSPACE)
            return plan;
        api.cudnnBackendDestroyDescriptor(plan);
    }
    return NULL;
}

static desc make_plan(const struct key *k)
{
    struct parts p = {.status = CUDNN_STATUS_SUCCESS};
    desc ways[WAYS], plan = first_plan(ways, list_ways(&p, k, ways));

    free_parts(&p);
    return plan;
}

static struct entry *find(const struct key *k, struct err *err)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(&entries[i].key, k, sizeof *k) == 0)
            return &entries[i];
    if (mem_grow(&entries, &cap, count, sizeof *entries, "convolutions", err) < 0)
        return NULL;
    memcpy(&entries[count].key, k, sizeof *k); /* an assignment need not copy what lies between the fields */
    entries[count].plan = make_plan(k);
    return &entries[count++];
}

static cudnnStatus_t execute(desc plan, const struct kernel_conv *c, bool back)
{
    const void *x = back ? c->dx : c->x, *y = back ? c->dy : c->y;
    const void *data[3] = {x, c->weight, y};
    int64_t ids[3] = {X_ID, W_ID, Y_ID};
    struct parts p = {.status = CUDNN_STATUS_SUCCESS};
    desc pack = new_part(&p, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);

    set(&p, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, data);
    set(&p, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, ids);
    set(&p, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &state.workspace);
    finish(&p, pack);
    if (p.status == CUDNN_STATUS_SUCCESS)
        p.status = api.cudnnBackendExecute(handle, plan, pack);
    free_parts(&p);
    return p.status;
}

int cudnn_convolve(const struct kernel_conv *c, size_t post, enum cudnn_kind kind, struct err *err)
{
    struct key k;
    struct entry *e;
    cudnnStatus_t s;

    memset(&k, 0, sizeof k); /* compared as bytes */
    k.n = c->n, k.h = c->h, k.w = c->w, k.ci = c->ci, k.oh = c->oh, k.ow = c->ow, k.co = c->co, k.kh = c->kh, k.kw = c->kw;
    k.stride = c->stride, k.pad = c->pad, k.post = post, k.kind = kind;
    e = find(&k, err);
    if (!e)
        return -1;
    if (!e->plan)
        return 0;
    s = execute(e->plan, c, kind == CUDNN_BACKWARD);
    if (s == CUDNN_STATUS_SUCCESS)
        return 1;
    return err_set(err, "cuDNN cannot convolve: %s; update it, or use --device cpu", api.cudnnGetErrorString(s));
}

/* Plug-in "cuda": every operation on an NVIDIA GPU. Products by cuBLASLt, convolutions by cuDNN where it is there, all else by
 * our own kernels (kernels.h). All work goes to one stream, in order. */
#include <stdio.h>
#include <string.h>

#include "offload/cuda/cudnn.h"
#include "offload/cuda/gemm.h"
#include "offload/cuda/slots.h"
#include "offload/cuda/weight.h"

enum {
    OLDEST = 75, /* compute capability 7.5: the first whose kernels are built */
    STACK = 64,  /* bytes of a thread's stack, in place of 1024: 248 MiB less on a GPU of 132 multiprocessors */
};

static struct ops_device device;

static int no_device(cudaError_t code, struct err *err)
{
    int driver = 0;

    if (code == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0)
        return err_set(err, "the NVIDIA driver is too old: it knows CUDA %d.%d, this program needs %d.%d; update the driver, or "
                            "use --device cpu", driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (code == cudaErrorInsufficientDriver)
        return err_set(err, "there is no NVIDIA driver; install one, or use --device cpu");
    if (code == cudaErrorNoDevice)
        return err_set(err, "there is no NVIDIA GPU that this program may use; look at nvidia-smi and at CUDA_VISIBLE_DEVICES, or "
                            "use --device cpu");
    return err_set(err, "cannot use the GPU: %s; look at nvidia-smi, or use --device cpu", cudaGetErrorString(code));
}

/* The GPU with the most free memory is a better guess than the first only when somebody else uses the first: number 0. */
static int choose(int index, struct cudaDeviceProp *p, struct err *err)
{
    int count = 0;
    cudaError_t code = cudaGetDeviceCount(&count);

    if (code != cudaSuccess || count == 0)
        return no_device(code == cudaSuccess ? cudaErrorNoDevice : code, err);
    state.index = index < 0 ? 0 : index;
    if (state.index >= count)
        return err_set(err, "there is no GPU number %d; the %d that there are begin with cuda:0", state.index, count);
    code = cudaGetDeviceProperties(p, state.index);
    if (code != cudaSuccess)
        return no_device(code, err);
    if (p->major * 10 + p->minor < OLDEST)
        return err_set(err, "the GPU '%s' has compute capability %d.%d, this program needs 7.5 or later; use --device cpu", p->name,
                       p->major, p->minor);
    return 0;
}

/* The type of activations. bf16 came with compute capability 8.0. */
static int choose_type(const struct offload_options *o, const struct cudaDeviceProp *p, struct err *err)
{
    enum dtype t = o->arithmetic != DT_COUNT ? o->arithmetic : p->major >= 8 ? DT_BF16 : DT_F16;

    if (t == DT_BF16 && p->major < 8)
        return err_set(err, "the GPU '%s' has no bf16 arithmetic; use --device cuda:fp16", p->name);
    if (o->tf32 && p->major < 8)
        return err_set(err, "the GPU '%s' has no TF32 arithmetic; use --device cuda:f32 or cuda:fp16", p->name);
    state.storage = t;
    state.type = t == DT_F32 ? KERNEL_F32 : t == DT_BF16 ? KERNEL_BF16 : KERNEL_F16;
    state.tf32 = o->tf32;
    state.base = o->base;
    return 0;
}

static void shut(void)
{
    if (state.stream)
        cudaStreamSynchronize(state.stream);
    gemm_close();
    cudnn_close();
    weight_close();
    if (state.workspace)
        cudaFree(state.workspace);
    if (state.lt)
        cublasLtDestroy(state.lt);
    if (state.stream)
        cudaStreamDestroy(state.stream);
    memset(&state, 0, sizeof state);
}

static int open_libraries(char cudnn[32], struct err *err)
{
    cudaError_t code = cudaSetDevice(state.index);
    cublasStatus_t s;

    /* The driver keeps room for every thread that the GPU can hold at once; a kernel that needs more gets it when it starts. */
    if (code == cudaSuccess)
        code = cudaDeviceSetLimit(cudaLimitStackSize, STACK);
    if (code == cudaSuccess)
        code = cudaStreamCreateWithFlags(&state.stream, cudaStreamNonBlocking);
    if (code == cudaSuccess)
        code = cudaMalloc(&state.workspace, STATE_WORKSPACE);
    if (code != cudaSuccess)
        return state_check(code, "start", err);
    s = cublasLtCreate(&state.lt);
    if (s != CUBLAS_STATUS_SUCCESS)
        return err_set(err, "cuBLASLt cannot start: %s; update CUDA, or use --device cpu", cublasLtGetStatusString(s));
    state.cudnn = cudnn_open(cudnn);
    return 0;
}

static void describe(struct offload_info *info, const struct cudaDeviceProp *p, const char *cudnn)
{
    size_t v = cublasLtGetVersion();

    *info = (struct offload_info){.arithmetic = state.storage, .tf32 = state.tf32, .same_bytes = true};
    snprintf(info->text, sizeof info->text, "%.60s, compute capability %d.%d, cuBLASLt %zu.%zu.%zu, %s%s", p->name, p->major,
             p->minor, v / 10000, v / 100 % 100, v % 100, state.cudnn ? "cuDNN " : "without cuDNN", state.cudnn ? cudnn : "");
    cudaMemGetInfo(&info->free, &info->memory);
}

static int start(const struct ops *ref, const struct offload_options *options, struct ops *ops, struct offload_info *info,
                 struct err *err)
{
    struct cudaDeviceProp p;
    char cudnn[32] = "";

    memset(&state, 0, sizeof state);
    state.ref = ref;
    state.threads = options->threads;
    if (choose(options->index, &p, err) < 0 || choose_type(options, &p, err) < 0 || open_libraries(cudnn, err) < 0) {
        shut();
        return -1;
    }
    ops->name = "cuda";
    slots_linear(ops);
    slots_conv(ops);
    slots_attention(ops);
    slots_simple(ops);
    device = memory_table();
    slots_optim(&device);
    ops->device = &device;
    describe(info, &p, cudnn);
    return 0;
}

/* The one function the program looks for. */
__attribute__((visibility("default"))) offload_plugin_fn offload_plugin;

const struct offload_plugin *offload_plugin(void)
{
    static const struct offload_plugin row = {OFFLOAD_VERSION, OFFLOAD_LAYOUT, "cuda", start, shut};

    return &row;
}

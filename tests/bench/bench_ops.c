/* How fast the operations run on the shapes of SD1.5's U-Net and VAE.
 *
 * usage: bench_ops [--threads N] [--runs N] [--cpu yes] [--device NAME] [NAME-PART ...]      e.g. bench_ops conv3x3 backward
 *
 * --cpu yes counts processor time instead of the clock's: for one thread on a machine that is not idle.
 * Best of N runs (default 5); GFLOP/s counts the operation's own flops (a convolution's by its definition, whatever the
 * method), "peak" is sgemm on 1024 x 1024 x 1024 measured beside each shape, one on every thread. Weights are f16. */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "offload/offload.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/op/ops.h"

struct row {
    const char *name;
    enum op_id op;
    struct op_attr attr;
    struct shape in[4];
    bool back;
};

#define CONV(what, n, h, ci, co, ...) {what, OP_conv2d, {.pad_before = 1, .pad_after = 1, __VA_ARGS__}, \
                                       {{4, {n, h, h, ci}}, {4, {co, 3, 3, ci}}, {1, {co}}}, false}
#define BACK(what, n, h, ci, co) {what, OP_conv2d, {.pad_before = 1, .pad_after = 1, .stride = 1}, \
                                  {{4, {n, h, h, ci}}, {4, {co, 3, 3, ci}}, {1, {co}}}, true}
#define LINEAR(what, m, n, k, back) {what, OP_linear, {0}, {{2, {m, k}}, {2, {n, k}}, {1, {n}}}, back}
#define ATTENTION(what, tq, tk, c, back) \
    {what, OP_attention, {.heads = 8}, {{3, {1, tq, c}}, {3, {1, tk, c}}, {3, {1, tk, c}}}, back}
#define LORA(what, m, k, n, r, back) \
    {what, OP_lora, {.scale = 1}, {{2, {m, n}}, {2, {m, k}}, {2, {r, k}}, {2, {n, r}}}, back}
#define NORM(what, h, c, back) {what, OP_group_norm, {.groups = 32, .eps = 1e-5f, .act = ACT_SILU}, \
                                {{4, {1, h, h, c}}, {1, {c}}, {1, {c}}}, back}

static const struct row rows[] = {
    CONV("conv3x3 64x64 320-320", 1, 64, 320, 320, .stride = 1),
    CONV("conv3x3 64x64 640-320", 1, 64, 640, 320, .stride = 1),
    CONV("conv3x3 64x64 960-320", 1, 64, 960, 320, .stride = 1),
    CONV("conv3x3 64x64 640-640", 1, 64, 640, 640, .stride = 1),
    CONV("conv3x3 32x32 640-640", 1, 32, 640, 640, .stride = 1),
    CONV("conv3x3 32x32 1920-640", 1, 32, 1920, 640, .stride = 1),
    CONV("conv3x3 32x32 1280-1280", 1, 32, 1280, 1280, .stride = 1),
    CONV("conv3x3 16x16 1280-1280", 1, 16, 1280, 1280, .stride = 1),
    CONV("conv3x3 16x16 2560-1280", 1, 16, 2560, 1280, .stride = 1),
    CONV("conv3x3 16x16 1280-1280 batch 2", 2, 16, 1280, 1280, .stride = 1),
    CONV("conv3x3 8x8 1280-1280", 1, 8, 1280, 1280, .stride = 1),
    CONV("conv3x3 8x8 2560-1280", 1, 8, 2560, 1280, .stride = 1),
    CONV("conv3x3 8x8 1280-1280 batch 2", 2, 8, 1280, 1280, .stride = 1),
    CONV("conv3x3 64x64 4-320", 1, 64, 4, 320, .stride = 1),
    CONV("conv3x3 64x64 320-4", 1, 64, 320, 4, .stride = 1),
    CONV("conv3x3 64x64 320-320 stride 2", 1, 64, 320, 320, .stride = 2),
    CONV("conv3x3 64x64 512-512 (VAE)", 1, 64, 512, 512, .stride = 1),
    CONV("conv3x3 256x256 512-256 (VAE)", 1, 256, 512, 256, .stride = 1),
    CONV("conv3x3 512x512 128-128 (VAE)", 1, 512, 128, 128, .stride = 1),
    BACK("conv3x3 64x64 320-320 backward", 1, 64, 320, 320),
    BACK("conv3x3 32x32 640-640 backward", 1, 32, 640, 640),
    BACK("conv3x3 16x16 1280-1280 backward", 1, 16, 1280, 1280),
    LINEAR("linear 4096 320-320", 4096, 320, 320, false),
    LINEAR("linear 4096 320-2560", 4096, 2560, 320, false),
    LINEAR("linear 4096 1280-320", 4096, 320, 1280, false),
    LINEAR("linear 1024 640-640", 1024, 640, 640, false),
    LINEAR("linear 1024 640-5120", 1024, 5120, 640, false),
    LINEAR("linear 256 1280-1280", 256, 1280, 1280, false),
    LINEAR("linear 256 1280-10240", 256, 10240, 1280, false),
    LINEAR("linear 77 768-1280", 77, 1280, 768, false),
    LINEAR("linear 1 1280-1280", 1, 1280, 1280, false),
    LINEAR("linear 4096 320-2560 backward", 4096, 2560, 320, true),
    LINEAR("linear 1024 640-640 backward", 1024, 640, 640, true),
    LINEAR("linear 256 1280-1280 backward", 256, 1280, 1280, true),
    ATTENTION("attention 4096x4096 heads of 40", 4096, 4096, 320, false),
    ATTENTION("attention 1024x1024 heads of 80", 1024, 1024, 640, false),
    ATTENTION("attention 256x256 heads of 160", 256, 256, 1280, false),
    ATTENTION("attention 4096x77 heads of 40", 4096, 77, 320, false),
    ATTENTION("attention 4096x4096 heads of 40 backward", 4096, 4096, 320, true),
    ATTENTION("attention 1024x1024 heads of 80 backward", 1024, 1024, 640, true),
    LORA("lora 4096 320-320 rank 4", 4096, 320, 320, 4, false),
    LORA("lora 4096 320-2560 rank 4", 4096, 320, 2560, 4, false),
    LORA("lora 4096 320-320 rank 4 backward", 4096, 320, 320, 4, true),
    LORA("lora 4096 320-2560 rank 4 backward", 4096, 320, 2560, 4, true),
    LORA("lora 256 1280-1280 rank 4 backward", 256, 1280, 1280, 4, true),
    LORA("lora 1024 640-640 rank 128 backward", 1024, 640, 640, 128, true),
    NORM("norm+silu 64x64 320", 64, 320, false),
    NORM("norm+silu 32x32 640", 32, 640, false),
    NORM("norm+silu 512x512 128 (VAE)", 512, 128, false),
    NORM("norm+silu 64x64 320 backward", 64, 320, true),
    {"layer norm 4096 320", OP_layer_norm, {.eps = 1e-5f}, {{2, {4096, 320}}, {1, {320}}, {1, {320}}}, false},
    {"geglu 4096 2560", OP_geglu, {0}, {{2, {4096, 2560}}}, false},
};

static clockid_t watch = CLOCK_MONOTONIC;

static double now(void)
{
    struct timespec t;

    clock_gettime(watch, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *block(size_t bytes)
{
    struct err err = {0};
    void *p = mem_new(bytes, "a benchmark", &err);

    if (!p) {
        fprintf(stderr, "bench_ops: %s\n", err.msg);
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

/* Numbers in [-1, 1), or small ones for weights. */
static struct tensor make(const struct shape *s, enum dtype dtype, float size)
{
    struct tensor t = {.dtype = dtype, .shape = *s};
    size_t n = 0;
    uint64_t state = 1;

    shape_numel(s, &n);
    t.data = block(n * dtype_size(dtype));
    for (size_t i = 0; i < n && size != 0; i++) {
        float f;

        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        f = size * (float)(int32_t)(state >> 32) / 2147483648.0f;
        if (dtype == DT_F32)
            ((float *)t.data)[i] = f;
        else
            ((uint16_t *)t.data)[i] = dtype_f32_to_f16(f);
    }
    return t;
}

static int peak_piece(void *ctx, size_t index, struct err *err)
{
    const float *a = ctx;

    (void)err;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, 1024, 1024, 1024, 1, a, 1024, a, 1024, 0,
                (float *)ctx + (index + 1) * 1048576, 1024);
    return 0;
}

/* GFLOP/s of sgemm with all threads */
static double peak(size_t runs)
{
    static float *a;
    size_t threads = (size_t)thread_count();
    struct err err = {0};
    double best = HUGE_VAL;

    if (!a)
        a = block((threads + 1) * 1048576 * sizeof *a);
    for (size_t i = 0; i < runs; i++) {
        double t = now();

        thread_for(threads, peak_piece, a, &err);
        t = now() - t;
        best = t < best ? t : best;
    }
    return (double)threads * 2.147483648 / best;
}

static void bench(const struct row *r, const struct ops *ops, size_t runs)
{
    const struct op *op = op_table[r->op];
    struct tensor in[4], out[OP_MAX_OUT] = {{0}}, dout = {0}, din[4] = {{0}};
    struct op_call c = {.attr = &r->attr, .arithmetic = ops->arithmetic};
    struct err err = {0};
    double best = HUGE_VAL, flops, top;
    size_t bytes;

    for (int i = 0; i < 4 && r->in[i].ndim; i++) {
        bool weight = i == 1 && (r->op == OP_conv2d || r->op == OP_linear);

        in[i] = make(&r->in[i], weight ? DT_F16 : DT_F32, weight ? 0.02f : 1);
        c.in[i] = &in[i];
    }
    for (int i = 0; i < op->nout; i++)
        c.out[i] = &out[i];
    if (op->shape(&c, &err) < 0) {
        fprintf(stderr, "bench_ops: %s: %s\n", r->name, err.msg);
        exit(1);
    }
    for (int i = 0; i < op->nout; i++)
        out[i] = make(&out[i].shape, DT_F32, 0);
    bytes = ops->scratch[r->op] ? ops->scratch[r->op](&c, false, thread_count()) : 0;
    c.scratch = block(bytes);
    if (r->back) {
        ops->forward[r->op](&c, &err);
        dout = make(&out[0].shape, DT_F32, 1);
        c.dout[0] = &dout;
        for (int i = 0; i < 4; i++) { /* weights are frozen, and a LoRA's base passes its gradient on */
            if (r->op == OP_attention ? i > 2 : r->op == OP_lora ? i < 1 : i > 0)
                continue;
            din[i] = make(&in[i].shape, DT_F32, 0);
            c.din[i] = &din[i];
        }
        free(c.scratch);
        c.scratch = block(ops->scratch[r->op](&c, true, thread_count()));
    }
    flops = op->flops ? op->flops(&c, r->back) : 0;
    top = peak(3);
    for (size_t i = 0; i < runs; i++) {
        double t = now();

        if ((r->back ? ops->backward : ops->forward)[r->op](&c, &err) < 0)
            exit(1);
        t = now() - t;
        best = t < best ? t : best;
    }
    printf("%-42s %9.3f ms %8.1f GFLOP/s  %5.1f GB/s  peak %5.0f  share %4.0f%%\n", r->name, best * 1e3, flops / best / 1e9,
           op_bytes(&c, r->back) / best / 1e9, top, flops / best / 1e7 / top);
    fflush(stdout);
    for (int i = 0; i < 4 && c.in[i]; i++)
        free(in[i].data);
    for (int i = 0; i < op->nout; i++)
        free(out[i].data);
    free(c.scratch);
    free(dout.data);
    for (int i = 0; i < 4; i++)
        free(din[i].data);
}

int main(int argc, char **argv)
{
    size_t runs = 5;
    int threads = 0, first = 1;
    const char *device = "cpu";
    struct offload o;
    struct err err = {0};

    for (; first + 1 < argc && strncmp(argv[first], "--", 2) == 0; first += 2)
        if (strcmp(argv[first], "--threads") == 0)
            threads = atoi(argv[first + 1]);
        else if (strcmp(argv[first], "--runs") == 0)
            runs = (size_t)atol(argv[first + 1]);
        else if (strcmp(argv[first], "--device") == 0)
            device = argv[first + 1];
        else if (strcmp(argv[first], "--cpu") == 0)
            watch = CLOCK_PROCESS_CPUTIME_ID;
        else
            return fprintf(stderr, "usage: bench_ops [--threads N] [--runs N] [--cpu yes] [--device NAME] [NAME-PART ...]\n"), 2;
    thread_init(threads);
    if (offload_open(&o, device, access("build/plugins", X_OK) == 0 ? "build/plugins" : NULL, &err) < 0)
        return fprintf(stderr, "bench_ops: %s\n", err.msg), 1;
    printf("%s, %s, %d threads\n", o.info.text, dtype_name(o.info.arithmetic), thread_count());
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bool wanted = first == argc;

        for (int a = first; a < argc; a++)
            wanted |= strstr(rows[i].name, argv[a]) != NULL;
        if (wanted)
            bench(&rows[i], &o.ops, runs);
    }
    offload_close(&o);
    return 0;
}

/* The CUDA plug-in: without a GPU it says why it cannot be opened; with one, whole parts of the small model run there in every
 * arithmetic and are held to ref's, node by node recorded and replayed, with all gradients of a LoRA. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/model_weights.h"
#include "offload/offload.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/graph/run.h"
#include "ref/lora/target.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"
#include "ref/model/vae.h"

#ifdef __SANITIZE_ADDRESS__
/* The leak detector of GCC 12 crashes on the thread-local data of libraries that were opened while threads ran. */
__attribute__((visibility("default"))) int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return 1;
}
#endif

#define MUST(call)                   \
    do {                             \
        if ((call) != 0)             \
            fail_msg("%s", err.msg); \
    } while (0)

enum { INPUTS = 5, BATCH = 2, SIDE = 16, RANK = 4 };

static const char *plugin = "cuda";
static struct model *model;
static struct model_weights *door;
static struct weights *weights;
static struct layers_lora loras[400];
static size_t lora_count;

/* One graph, with what to write and what to read. */
struct job {
    struct graph *g;
    int in[INPUTS], in_count, *out, seed;
    size_t out_count;
};

static const char *folder(void)
{
    static char path[PATH_MAX + 32];
    char base[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", base, sizeof base - 1);

    assert_true(n > 0);
    base[n] = '\0';
    *strrchr(base, '/') = '\0';
    snprintf(path, sizeof path, "%s/../../plugins/lora-%s.so", base, plugin);
    snprintf(path, sizeof path, access(path, R_OK) == 0 ? "%s/../../plugins" : "%s/../plugins", base);
    return path;
}

/* Opens the device, or skips the test where there is none: that must be the driver's or the GPU's fault, and say so. */
static void open_device(struct offload *o, const char *arithmetic)
{
    struct err err = {0};
    char device[32];

    snprintf(device, sizeof device, "%s:%s", plugin, arithmetic);
    if (!offload_has(plugin, folder()))
        skip();
    if (offload_open(o, device, folder(), &err) == 0)
        return;
    if (!strstr(err.msg, "NVIDIA") && !strstr(err.msg, "has no bf16") && !strstr(err.msg, "has no TF32"))
        fail_msg("%s", err.msg);
    assert_non_null(strstr(err.msg, "use --device c"));
    print_message("skipped: %s\n", err.msg);
    skip();
}

static void keep_output(struct job *j, int value)
{
    j->out = realloc(j->out, (j->out_count + 1) * sizeof *j->out);
    assert_non_null(j->out);
    j->out[j->out_count++] = value;
}

static struct tensor *factor(size_t rows, size_t kh, size_t kw, size_t cols, bool conv)
{
    struct tensor *t = calloc(1, sizeof *t);
    size_t n = rows * kh * kw * cols;

    assert_non_null(t);
    t->data = malloc(n * sizeof(float));
    assert_non_null(t->data);
    t->shape = conv ? (struct shape){4, {rows, kh, kw, cols}} : (struct shape){2, {rows, cols}};
    for (size_t i = 0; i < n; i++)
        ((float *)t->data)[i] = 0.05f * sinf((float)(i * i % 7919) + (float)i);
    return t;
}

/* A LoRA on every layer that one may reach, convolutions included. */
static void make_loras(enum model_part part)
{
    lora_count = 0;
    for (size_t i = model->part_first[part]; i < model->part_first[part + 1]; i++) {
        const struct model_tensor *t = &model->tensor[i];
        struct target target;
        enum target_class class = target_of(part, t->name, &t->shape, &target);
        bool conv = t->shape.ndim == 4 && t->shape.dim[2] > 1;
        char path[300];

        if (class == TARGET_NONE)
            continue;
        assert_true(lora_count < sizeof loras / sizeof *loras);
        snprintf(path, sizeof path, "%.*s", (int)target.path_length, t->name);
        loras[lora_count++] = (struct layers_lora){
            .part = part, .path = strdup(path), .scale = 0.5f, .train = true,
            .down = factor(RANK, conv ? t->shape.dim[2] : 1, conv ? t->shape.dim[3] : 1, t->shape.dim[1], conv),
            .up = factor(t->shape.dim[0], 1, 1, RANK, false)};
    }
    assert_true(lora_count > 10);
}

static void free_loras(void)
{
    while (lora_count > 0) {
        const struct layers_lora *a = &loras[--lora_count];

        free((char *)(uintptr_t)a->path);
        free(a->down->data);
        free(a->up->data);
        free((void *)(uintptr_t)a->down);
        free((void *)(uintptr_t)a->up);
    }
}

static void train(struct job *j, int out, bool checkpoint)
{
    struct shape s = graph_shape(j->g, out);
    int target = graph_input(j->g, "target", DT_F32, &s), loss, *grads;
    struct err err = {0};
    size_t values;

    j->in[j->in_count++] = target;
    loss = graph_binary(j->g, OP_mse, out, target, "loss");
    graph_keep(j->g, loss);
    MUST(graph_fuse(j->g, FUSE_NORM_SILU | FUSE_RESIDUAL, &err));
    values = j->g->value_count;
    grads = calloc(values, sizeof *grads);
    assert_non_null(grads);
    MUST(graph_differentiate(j->g, loss, NULL, 0, grads, &err));
    if (checkpoint)
        MUST(graph_checkpoint(j->g, &err));
    j->seed = grads[loss];
    keep_output(j, loss);
    for (size_t v = 0; v < values; v++)
        if (j->g->values[v].kind == VALUE_PARAM)
            keep_output(j, grads[v]);
    free(grads);
}

enum which { TEXT, UNET, TEXT_TRAIN, UNET_TRAIN, UNET_CHECKPOINT, DECODE, ENCODE, WHICH };

static void build(struct job *j, enum which which)
{
    static const enum model_part parts[WHICH] = {[TEXT] = MODEL_TEXT_ENCODER, [TEXT_TRAIN] = MODEL_TEXT_ENCODER,
                                                 [DECODE] = MODEL_VAE, [ENCODE] = MODEL_VAE};
    struct layers l = {.w = weights, .part = parts[which]};
    bool trains = which == TEXT_TRAIN || which == UNET_TRAIN || which == UNET_CHECKPOINT;
    struct err err = {0};
    struct clip clip;
    struct unet unet;
    struct vae vae;
    int out;

    *j = (struct job){.seed = GRAPH_NONE};
    j->g = l.g = graph_new(&err);
    assert_non_null(j->g);
    if (trains) {
        make_loras(parts[which]);
        l.loras = loras;
        l.lora_count = lora_count;
    }
    if (which == TEXT || which == TEXT_TRAIN) {
        MUST(clip_build(&l, NULL, BATCH, 77, &clip, &err));
        j->in[j->in_count++] = clip.ids;
        out = clip.out;
    } else if (which == DECODE || which == ENCODE) {
        MUST(which == DECODE ? vae_build_decoder(&l, 1, SIDE, SIDE, &vae, &err)
                             : vae_build_encoder(&l, 1, 8 * SIDE, 8 * SIDE, &vae, &err));
        j->in[j->in_count++] = vae.in;
        out = vae.out;
    } else {
        MUST(unet_build(&l, NULL, BATCH, SIDE, SIDE + 8, GRAPH_NONE, 77, &unet, &err));
        j->in[0] = unet.latents, j->in[1] = unet.timestep, j->in[2] = unet.context, j->in_count = 3;
        out = unet.out;
    }
    keep_output(j, out);
    if (trains)
        train(j, out, which == UNET_CHECKPOINT);
    else
        MUST(graph_fuse(j->g, FUSE_ALL, &err));
    MUST(weights_load(weights, &err));
}

static void free_job(struct job *j)
{
    graph_free(j->g);
    free(j->out);
    free_loras();
}

static size_t size_of(const struct job *j, int value)
{
    size_t n = 0;

    assert_true(shape_numel(&j->g->values[value].shape, &n));
    return n;
}

static void write_inputs(const struct job *j, struct run *r)
{
    struct err err = {0};
    float one = 1;

    for (int i = 0; i < j->in_count; i++) {
        const struct graph_value *v = &j->g->values[j->in[i]];
        size_t n = size_of(j, j->in[i]);
        float *data = malloc(n * sizeof *data);

        assert_non_null(data);
        for (size_t k = 0; k < n; k++)
            if (v->dtype == DT_I32)
                ((int32_t *)data)[k] = (int32_t)(k * 613 % 40000);
            else
                data[k] = strcmp(v->name, "timestep") == 0 ? (float)(100 + 600 * k) : sinf(1.7f * (float)(k % 100003));
        MUST(run_write(r, j->in[i], data, &err));
        free(data);
    }
    if (j->seed != GRAPH_NONE)
        MUST(run_write(r, j->seed, &one, &err));
}

/* All outputs one after another; the caller frees them. */
static float *run_job(const struct job *j, struct run *r, size_t *count)
{
    struct err err = {0};
    size_t at = 0;
    float *all;

    *count = 0;
    for (size_t i = 0; i < j->out_count; i++)
        *count += size_of(j, j->out[i]);
    all = malloc(*count * sizeof *all);
    assert_non_null(all);
    write_inputs(j, r);
    MUST(run_graph(r, NULL, &err));
    for (size_t i = 0; i < j->out_count; i++) {
        MUST(run_read(r, j->out[i], all + at, &err));
        at += size_of(j, j->out[i]);
    }
    return all;
}

/* What a rounding of the arithmetic is off by, relative to a number. */
static double unit(const struct offload_info *info)
{
    if (info->arithmetic == DT_BF16)
        return 0x1p-9;
    return info->arithmetic == DT_F16 || info->tf32 ? 0x1p-12 * 2 : 0x1p-24;
}

/* Each node rounds its result once: relative to the rms of the values that is u, independent from node to node, so n nodes in a
 * row give sqrt(n) u (norms keep it from growing; differences of large values make it grow, which a factor of 3 covers). In f32
 * the sums matter more than the results: a sum of k terms in another order is off by sqrt(k) u; k is 2880 at most here.
 * The longest way goes through every node that the output depends on. Some gradients are zero by nature (of a constant a channel
 * before a group norm with one channel a group; of q and k where there is one token): what both sides have there are roundings of
 * values as large as the gradients elsewhere, so errors are relative to the larger of an output and the mean of all gradients. */
static void compare(const char *what, const struct job *j, const struct offload_info *info, const float *got, const float *want)
{
    size_t bad = 0, count = 0;
    double all = 0, u = unit(info), limit = 3 * sqrt((double)j->g->node_count) * u * (u < 0x1p-20 ? sqrt(2880) : 1), worst = 0;

    for (size_t i = 0, at = 0; i < j->out_count; at += size_of(j, j->out[i++]))
        for (size_t k = at; i >= 2 && k < at + size_of(j, j->out[i]); k++, count++)
            all += (double)want[k] * (double)want[k];
    for (size_t i = 0, at = 0; i < j->out_count; i++) {
        double sum = 0, off = 0;
        size_t n = size_of(j, j->out[i]);

        for (size_t k = at; k < at + n; k++) {
            sum += (double)want[k] * (double)want[k];
            off += ((double)got[k] - (double)want[k]) * ((double)got[k] - (double)want[k]);
        }
        at += n;
        if (i >= 2 && sum < all / (double)count * (double)n)
            sum = all / (double)count * (double)n;
        if (!(off <= limit * limit * sum) && bad++ < 10)
            print_message("%s, output %zu ('%s'): off by %g of its size, limit %g\n", what, i, j->g->values[j->out[i]].name,
                          sqrt(off / sum), limit);
        worst = fmax(worst, sqrt(off / sum));
    }
    if (bad)
        fail_msg("%s: %zu of %zu outputs are off", what, bad, j->out_count);
    print_message("%s: off by %.2g of the size, limit %.2g\n", what, worst, limit);
}

static void check(enum which which, const char *arithmetic)
{
    static const char *const names[WHICH] = {"text encoder", "U-Net", "text encoder, trained", "U-Net, trained",
                                             "U-Net, trained with checkpoints", "VAE decoder", "VAE encoder"};
    struct err err = {0};
    struct offload cpu, gpu;
    struct run *r;
    struct job j;
    float *want, *got;
    size_t n, nodes = 0;
    char what[80];

    open_device(&gpu, arithmetic);
    MUST(offload_open(&cpu, "cpu", NULL, &err));
    build(&j, which);
    MUST(run_new(&r, j.g, &cpu.ops, &err));
    want = run_job(&j, r, &n);
    run_free(r);
    MUST(run_new(&r, j.g, &gpu.ops, &err));
    for (size_t i = 0; i < j.g->node_count; i++)
        nodes += run_falls_back(r, i);
    assert_int_equal(nodes, 0);
    got = run_job(&j, r, &n);
    snprintf(what, sizeof what, "%s, %s", names[which], arithmetic);
    compare(what, &j, &gpu.info, got, want);
    for (int i = 0; i < 3; i++) { /* recorded, replayed, replayed: the same bytes */
        float *again = run_job(&j, r, &n);

        assert_memory_equal(again, got, n * sizeof *got);
        free(again);
    }
    run_free(r);
    free(want);
    free(got);
    free_job(&j);
    offload_close(&gpu);
    offload_close(&cpu);
}

/* One test for each part in each arithmetic. */
#define ARITHMETICS(ROW, part) ROW(part, f32) ROW(part, tf32) ROW(part, fp16) ROW(part, bf16)
#define ALL(ROW)                                                                                                     \
    ARITHMETICS(ROW, TEXT) ARITHMETICS(ROW, UNET) ARITHMETICS(ROW, TEXT_TRAIN) ARITHMETICS(ROW, UNET_TRAIN)          \
    ARITHMETICS(ROW, UNET_CHECKPOINT) ARITHMETICS(ROW, DECODE) ARITHMETICS(ROW, ENCODE)
#define TEST(part, arithmetic)                         \
    static void part##_##arithmetic(void **state)      \
    {                                                  \
        (void)state;                                   \
        check(part, #arithmetic);              \
    }
ALL(TEST)

static void refused(const char *device, const char *message)
{
    struct offload o;
    struct err err = {0};

    assert_int_equal(offload_open(&o, device, folder(), &err), -1);
    if (!strstr(err.msg, message))
        fail_msg("device %s: '%s' lacks '%s'", device, err.msg, message);
}

/* Without a GPU: an error for cuda, and auto goes on with the CPU and says why. */
static void test_absent(void **state)
{
    struct err err = {0};
    struct offload o;
    int there;

    (void)state;
    if (!offload_has("cuda", folder()))
        skip();
    there = offload_open(&o, "cuda", folder(), &err) == 0;
    if (there)
        offload_close(&o);
    MUST(offload_open(&o, "auto", folder(), &err));
    assert_true(there == (o.ops.device != NULL));
    assert_true(there == (o.note[0] == '\0'));
    assert_true(there || strstr(o.note, "NVIDIA"));
    offload_close(&o);
    refused("cuda:999", there ? "there is no GPU number 999" : "NVIDIA");
}

static int open_all(void **state)
{
    struct err err = {0};

    (void)state;
    MUST(model_open(&model, "golden/small_model/small.safetensors", &err));
    MUST(model_weights_open(&door, model, true, &err));
    MUST(weights_new(&weights, model_weights_source(door), &err));
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    weights_free(weights);
    model_weights_close(door);
    model_close(model);
    return 0;
}

/* test_cuda [PLUGIN [PATTERN]]: runs the tests whose name fits, on that plug-in. */
int main(int argc, char **argv)
{
#define ROW(part, arithmetic) cmocka_unit_test(part##_##arithmetic),
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_absent), ALL(ROW)};

    if (argc > 1)
        plugin = argv[1];
    if (argc > 2)
        cmocka_set_test_filter(argv[2]);
    thread_init(2);
    return cmocka_run_group_tests(tests, open_all, close_all);
}

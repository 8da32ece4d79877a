/* usage: bench_unet MODEL unet|te|encode|decode|step [--batch N] [--size PIXELS] [--runs N] [--threads N] [--profile]
 *                   [--no-fuse] [--train RANK | --lora RANK] [--checkpoint] [--in FILE.safetensors] [--out FILE.safetensors]
 *                   [--device NAME] [--row]
 *
 * Runs one part of a full model: prints the forecast, seconds of each run, and the process's peak memory. With --in, inputs
 * are read from a file by name (latents, timestep, context, ids, pictures; channels last), else they are a fixed pattern;
 * --out writes the result as tensor "out". --train: forward, backward and AdamW with a LoRA of that rank on every linear layer
 * of the U-Net (rank 0: no LoRA, forward and backward to the latents, which is what a LoRA's time is to be compared with); --lora: the
 * forward with such a LoRA. step: the text encoder and then the U-Net, LoRA on both. --row: one line,
 * best seconds of the runs (what else the machine does only adds), GFLOP/s as the operations are defined, its share of what the register tiles reach
 * on data in the innermost cache (Winograd's convolutions do with fewer operations, so it may pass 100 %), and peak memory. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "cmd/model_weights.h"
#include "formats/tensor_writer.h"
#include "offload/offload.h"
#include "ref/base/thread.h"
#include "ref/graph/profile.h"
#include "ref/graph/run.h"
#include "ref/lora/target.h"
#include "ref/op/kernel_bf16.h"
#include "ref/optim/optim.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"
#include "ref/model/vae.h"

struct bench {
    const char *model, *part, *in, *out, *device;
    size_t batch, size, runs, rank;
    int threads;
    bool profile, plain, checkpoint, train, row;
    struct model *m;
    struct model_weights *source;
    struct weights *w;
    struct graph *g;
    struct layers layers;
    struct run *run;
    int inputs[4], input_count, result, seed;
    struct layers_lora *loras;
    size_t lora_count;
    struct optim *optim;
    int *gradients; /* values, two a LoRA: lora_down's, lora_up's */
    float **grads;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Processor seconds of the whole process: what to compare when the machine is shared. */
static double processor(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int usage(void)
{
    fputs("usage: bench_unet MODEL unet|te|encode|decode|step [--batch N] [--size PIXELS] [--runs N] [--threads N] [--profile]\n"
          "                  [--no-fuse] [--train RANK | --lora RANK] [--checkpoint] [--in FILE] [--out FILE] [--device NAME]\n"
          "                  [--row]\n", stderr);
    return 2;
}

static bool parse(struct bench *b, int argc, char **argv)
{
    *b = (struct bench){.batch = 1, .size = 512, .runs = 3, .seed = GRAPH_NONE};
    if (argc < 3)
        return false;
    b->model = argv[1];
    b->part = argv[2];
    for (int i = 3; i < argc; i++) {
        const char *a = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(a, "--profile") == 0)
            b->profile = true;
        else if (strcmp(a, "--row") == 0)
            b->row = true;
        else if (strcmp(a, "--no-fuse") == 0)
            b->plain = true;
        else if (strcmp(a, "--checkpoint") == 0)
            b->checkpoint = true;
        else if (!v)
            return false;
        else if (i++, strcmp(a, "--batch") == 0)
            b->batch = (size_t)atol(v);
        else if (strcmp(a, "--size") == 0)
            b->size = (size_t)atol(v);
        else if (strcmp(a, "--runs") == 0)
            b->runs = (size_t)atol(v);
        else if (strcmp(a, "--threads") == 0)
            b->threads = atoi(v);
        else if (strcmp(a, "--train") == 0)
            b->train = true, b->rank = (size_t)atol(v);
        else if (strcmp(a, "--lora") == 0)
            b->rank = (size_t)atol(v);
        else if (strcmp(a, "--device") == 0)
            b->device = v;
        else if (strcmp(a, "--in") == 0)
            b->in = v;
        else if (strcmp(a, "--out") == 0)
            b->out = v;
        else
            return false;
    }
    return true;
}

static struct tensor *factor(size_t rows, size_t cols, float size)
{
    struct tensor *t = calloc(1, sizeof *t);

    if (!t || !(t->data = malloc(rows * cols * sizeof(float))))
        abort();
    t->shape = (struct shape){2, {rows, cols}};
    for (size_t i = 0; i < rows * cols; i++)
        ((float *)t->data)[i] = size * (float)((double)(i * 2654435761u % 1000) / 500 - 1);
    return t;
}

static void add_loras(struct bench *b, enum model_part part)
{
    if (!b->loras)
        b->loras = calloc(b->m->count, sizeof *b->loras);
    for (size_t i = b->m->part_first[part]; b->loras && i < b->m->part_first[part + 1]; i++) {
        const struct model_tensor *t = &b->m->tensor[i];
        struct target target;
        char path[300];

        if (target_of(part, t->name, &t->shape, &target) != TARGET_LINEAR)
            continue;
        snprintf(path, sizeof path, "%.*s", (int)target.path_length, t->name);
        b->loras[b->lora_count++] = (struct layers_lora){.part = part, .path = strdup(path), .scale = 1,
                                                         .down = factor(b->rank, target.in, 0.01f),
                                                         .up = factor(target.out, b->rank, 0.01f), .train = b->train,
                                                         .fold = !b->train};
    }
    b->layers.loras = b->loras;
    b->layers.lora_count = b->lora_count;
}

/* AdamW for all factors; grads[v]: the value that is the gradient of value v. */
static int make_optimizer(struct bench *b, const int *grads, struct err *err)
{
    const struct optim_options options = {.groups = 1};
    size_t count = 2 * b->lora_count;
    struct optim_tensor *list = calloc(count, sizeof *list);
    int rc;

    b->gradients = calloc(count, sizeof *b->gradients);
    b->grads = calloc(count, sizeof *b->grads);
    if (!list || !b->gradients || !b->grads)
        return err_memory(err, 0, "gradients");
    for (size_t i = 0; i < count; i++) {
        const struct tensor *t = i % 2 ? b->loras[i / 2].up : b->loras[i / 2].down;
        size_t n = 0;

        list[i] = (struct optim_tensor){.param = t->data, .shape = t->shape};
        b->gradients[i] = grads[graph_param(b->g, b->loras[i / 2].path, t)];
        shape_numel(&t->shape, &n);
        b->grads[i] = calloc(n, sizeof **b->grads);
        if (!b->grads[i])
            return err_memory(err, n * sizeof **b->grads, "gradients");
    }
    rc = optim_new(&b->optim, "AdamW", NULL, 0, &options, list, count, err);
    free(list);
    return rc;
}

static int optimize(struct bench *b, struct err *err)
{
    const float *const *grads = (const float *const *)b->grads;
    const double rate = 1e-4;
    double norm;

    for (size_t i = 0; i < 2 * b->lora_count; i++)
        if (b->gradients[i] != GRAPH_NONE && run_read(b->run, b->gradients[i], b->grads[i], err) < 0)
            return -1;
    return optim_norm(b->optim, grads, &norm, err) || optim_step(b->optim, grads, optim_clip(norm, 1), &rate, err) ? -1 : 0;
}

/* The loss is against zeros. */
static int make_training(struct bench *b, struct err *err)
{
    struct shape s = graph_shape(b->g, b->result);
    int target = graph_input(b->g, "target", DT_F32, &s), *grads;
    int loss = graph_binary(b->g, OP_mse, b->result, target, "loss");
    int rc;

    b->inputs[b->input_count++] = target;
    graph_keep(b->g, loss);
    if (!b->plain && graph_fuse(b->g, FUSE_NORM_SILU | FUSE_RESIDUAL, err) < 0)
        return -1;
    grads = malloc(b->g->value_count * sizeof *grads);
    if (!grads)
        return err_memory(err, 0, "gradients");
    rc = graph_differentiate(b->g, loss, b->inputs, b->rank ? 0 : 1, grads, err);
    b->seed = rc == 0 ? grads[loss] : GRAPH_NONE;
    b->result = loss;
    if (rc == 0 && b->rank)
        rc = make_optimizer(b, grads, err);
    free(grads);
    return rc < 0 || !b->checkpoint ? rc : graph_checkpoint(b->g, err);
}

static int build(struct bench *b, struct err *err)
{
    size_t latent = b->size / 8;
    struct unet unet;
    struct clip clip;
    struct vae vae;

    if (strcmp(b->part, "unet") == 0 || strcmp(b->part, "step") == 0) {
        int context = GRAPH_NONE;

        if (b->rank)
            add_loras(b, MODEL_UNET);
        if (strcmp(b->part, "step") == 0) {
            if (b->rank)
                add_loras(b, MODEL_TEXT_ENCODER);
            b->layers.part = MODEL_TEXT_ENCODER;
            if (clip_build(&b->layers, NULL, b->batch, 77, &clip, err) < 0)
                return -1;
            context = clip.out;
        }
        b->layers.part = MODEL_UNET;
        if (unet_build(&b->layers, NULL, b->batch, latent, latent, context, 77, &unet, err) < 0)
            return -1;
        b->inputs[0] = unet.latents, b->inputs[1] = unet.timestep, b->input_count = 3;
        b->inputs[2] = context == GRAPH_NONE ? unet.context : clip.ids;
        b->result = unet.out;
    } else if (strcmp(b->part, "te") == 0) {
        b->layers.part = MODEL_TEXT_ENCODER;
        if (clip_build(&b->layers, NULL, b->batch, 77, &clip, err) < 0)
            return -1;
        b->inputs[0] = clip.ids, b->input_count = 1, b->result = clip.out;
    } else {
        bool encode = strcmp(b->part, "encode") == 0;

        b->layers.part = MODEL_VAE;
        if ((encode ? vae_build_encoder(&b->layers, b->batch, b->size, b->size, &vae, err)
                    : vae_build_decoder(&b->layers, b->batch, latent, latent, &vae, err)) < 0)
            return -1;
        b->inputs[0] = vae.in, b->input_count = 1, b->result = vae.out;
    }
    if (b->train)
        return make_training(b, err);
    return b->plain ? 0 : graph_fuse(b->g, FUSE_ALL, err);
}

/* One input from the file, or waves of about unit size; tokens and timesteps in range. data [n] is as the graph declares it. */
static int fill_input(struct bench *b, const struct tensor_file *f, const struct graph_value *v, void *data, size_t n, struct err *err)
{
    const struct tensor_entry *e = f ? tensor_file_find(f, v->name) : NULL;

    if (e && (e->dtype != v->dtype || !shape_equal(&e->shape, &v->shape)))
        return err_set(err, "'%s' in '%s' has another shape or type", v->name, b->in);
    if (e)
        return tensor_file_read(f, e, data, err);
    for (size_t j = 0; j < n; j++)
        if (v->dtype == DT_I32)
            ((int32_t *)data)[j] = (int32_t)(j * 613 % 40000);
        else
            ((float *)data)[j] = strcmp(v->name, "timestep") == 0 ? 500 : (float)sin(1.7 * (double)(j % 100003));
    return 0;
}

static int write_inputs(struct bench *b, const struct tensor_file *f, struct err *err)
{
    const float one = 1;

    for (int i = 0; i < b->input_count; i++) {
        const struct graph_value *v = &b->g->values[b->inputs[i]];
        size_t n = 0;
        void *data = shape_numel(&v->shape, &n) ? mem_new(n * dtype_size(v->dtype), "an input", err) : NULL;
        int rc = data ? fill_input(b, f, v, data, n, err) : -1;

        if (rc == 0)
            rc = run_write(b->run, b->inputs[i], data, err);
        free(data);
        if (rc < 0)
            return -1;
    }
    return b->seed == GRAPH_NONE ? 0 : run_write(b->run, b->seed, &one, err);
}

static int write_result(struct bench *b, struct err *err)
{
    const struct graph_value *v = &b->g->values[b->result];
    struct tensor_spec spec = {.name = "out", .dtype = v->dtype, .shape = v->shape};
    struct tensor_writer *w;
    size_t bytes = 0;
    void *data = shape_nbytes(&v->shape, v->dtype, &bytes) ? mem_new(bytes, "the result", err) : NULL;
    int rc = -1;

    if (!data || run_read(b->run, b->result, data, err) < 0 || tensor_writer_open(&w, b->out, NULL, &spec, 1, NULL, 0, err) < 0)
        goto out;
    rc = tensor_writer_put(w, 0, data, err);
    if (rc < 0)
        tensor_writer_abort(w);
    else
        rc = tensor_writer_commit(w, err);
out:
    free(data);
    return rc;
}

/* Operations of a run as they are defined. */
static double operations(const struct bench *b)
{
    double sum = 0;

    for (size_t i = 0; i < b->g->node_count; i++) {
        struct tensor store[2 * OP_MAX_IN + 2 * OP_MAX_OUT];
        const struct graph_node *n = &b->g->nodes[i];
        struct op_call c;

        graph_call(b->g, n, &c, store);
        sum += op_table[n->op]->flops ? op_table[n->op]->flops(&c, n->backward) : 0;
    }
    return sum;
}

enum { PEAK_ROWS = 48, PEAK_COLS = 32, PEAK_K = 128, PEAK_TIMES = 3000, PEAK_PIECES = 4 };

static int peak_piece(void *ctx, size_t index, struct err *err)
{
    static const float x[PEAK_ROWS * PEAK_K], packed[PEAK_COLS * PEAK_K];
    float y[PEAK_ROWS * PEAK_COLS];
    const struct kernel_call c = {.rows = PEAK_ROWS, .cols = PEAK_COLS, .k = PEAK_K, .x = x, .row = PEAK_K, .step = 1,
                                  .packed = packed, .y = y, .ldy = PEAK_COLS, .alpha = 1, .bf16 = *(const bool *)ctx};

    (void)index;
    (void)err;
    for (int i = 0; i < PEAK_TIMES; i++)
        kernel_multiply(&c);
    return 0;
}

/* GFLOP/s of the register tiles on all threads: best of three. */
static double peak(bool bf16)
{
    double best = HUGE_VAL, pieces = PEAK_PIECES * (double)thread_count();

    for (int i = 0; i < 3; i++) {
        struct err err = {0};
        double start = now(), t;

        thread_for((size_t)pieces, peak_piece, &bf16, &err);
        t = now() - start;
        best = t < best ? t : best;
    }
    return (bf16 ? 4 : 2) * (double)PEAK_ROWS * PEAK_COLS * PEAK_K * PEAK_TIMES * pieces / best * 1e-9;
}

static void print_row(const struct bench *b, double best, bool bf16)
{
    double top = peak(bf16), flops = operations(b);
    struct rusage usage_now;

    getrusage(RUSAGE_SELF, &usage_now);
    printf("%8.3f s %6.0f GFLOP/s %4.0f %% %6.2f GiB\n", best, flops / best * 1e-9, flops / best * 1e-7 / top,
           (double)usage_now.ru_maxrss / 0x1p20);
}

static void print_forecast(struct bench *b)
{
    size_t owned, mapped;

    weights_bytes(b->w, &owned, &mapped);
    printf("%zu nodes; forecast: %.0f MiB activations (%.0f alive at most), %.0f MiB weights in memory, %.0f MiB mapped\n",
           b->g->node_count, (double)run_plan(b->run)->arena / 0x1p20, (double)run_plan(b->run)->live / 0x1p20,
           (double)owned / 0x1p20, (double)mapped / 0x1p20);
}

static int work(struct bench *b, struct err *err)
{
    double seconds, best = HUGE_VAL;
    struct run_options options = {0};
    struct tensor_file *f = NULL;
    struct profile *profile = NULL;
    struct rusage usage_now;
    struct offload device; /* open until the process ends */
    double start = now(), cpu;

    if (offload_open(&device, b->device ? b->device : "cpu", access("build/plugins", X_OK) == 0 ? "build/plugins" : NULL,
                     err) < 0)
        return -1;
    if (!b->row)
        printf("%s, %s\n", device.info.text, dtype_name(device.info.arithmetic));
    if (model_open(&b->m, b->model, err) < 0 || model_weights_open(&b->source, b->m, true, err) < 0 ||
        weights_new(&b->w, model_weights_source(b->source), err) < 0 || (b->in && tensor_file_open(&f, b->in, err) < 0))
        return -1;
    b->g = graph_new(err);
    b->layers = (struct layers){.g = b->g, .w = b->w};
    if (!b->g || build(b, err) < 0 || run_new(&b->run, b->g, &device.ops, err) < 0)
        return -1;
    if (!b->row)
        print_forecast(b);
    if (weights_load(b->w, err) < 0 || (b->profile && profile_new(&profile, b->g, NULL, err) < 0))
        return -1;
    if (!b->row)
        printf("ready after %.2f s\n", now() - start);
    for (size_t i = 0; i < b->runs; i++) {
        if (write_inputs(b, f, err) < 0)
            return -1;
        options.after = profile && i > 0 ? profile_after : NULL;
        options.ctx = profile;
        start = now();
        cpu = processor();
        if (run_graph(b->run, &options, err) < 0 || run_wait(b->run, err) < 0 || (b->optim && optimize(b, err) < 0))
            return -1;
        seconds = now() - start;
        best = seconds < best ? seconds : best;
        if (!b->row)
            printf("run %zu: %.5f s, %.3f s of processor time\n", i + 1, seconds, processor() - cpu);
    }
    if (b->row)
        print_row(b, best, device.info.arithmetic == DT_BF16);
    if (profile)
        profile_print(profile, stdout, 0, 25);
    profile_free(profile);
    if (b->out && write_result(b, err) < 0)
        return -1;
    getrusage(RUSAGE_SELF, &usage_now);
    if (!b->row)
        printf("peak memory %.0f MiB\n", (double)usage_now.ru_maxrss / 1024);
    tensor_file_close(f);
    return 0;
}

int main(int argc, char **argv)
{
    struct bench b;
    struct err err = {0};
    int rc;

    if (!parse(&b, argc, argv))
        return usage();
    thread_init(b.threads);
    rc = work(&b, &err);
    if (rc < 0)
        fprintf(stderr, "bench_unet: %s\n", err.msg);
    run_free(b.run);
    graph_free(b.g);
    weights_free(b.w);
    model_weights_close(b.source);
    model_close(b.m);
    return rc < 0 ? 1 : 0;
}

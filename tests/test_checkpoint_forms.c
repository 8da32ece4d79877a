/* The engine on every form a checkpoint comes in: the golden models (SD1, and SD2 with 9 input channels, each with a VAE) written
 * as diffusers folders (safetensors and bin) and as single files under the original names (safetensors and ckpt), opened again
 * and run. What they compute is compared with diffusers' own results, as in lora verify. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "cmd/generate/pipe.h"
#include "cmd/model_weights.h"
#include "cmd/verify/subject.h"
#include "formats/lora_file.h"
#include "formats/model_write.h"
#include "ref/base/thread.h"
#include "tests/lib/scratch.h"
#include "tests/lib/verify_group.h"

static struct ops ops;
static struct verify v;
static struct verify_file file;
static json_t *models;

#define MUST(call)                       \
    do {                                 \
        if ((call) != 0)                 \
            fail_msg("%s", err.msg);     \
    } while (0)

/* One part of a golden model as the file of a diffusers folder. */
static void write_part(const char *folder, const char *name, const char *model, const char *part)
{
    json_t *meta = json_object_get(models, model), *tensors = json_object_get(json_object_get(meta, "tensors"), part), *dims, *d;
    struct tensor_spec *specs = calloc(json_object_size(tensors), sizeof *specs);
    struct tensor_writer *w;
    struct err err = {0};
    char path[400], key[300];
    const char *tensor;
    size_t n = 0, i;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    json_object_foreach(tensors, tensor, dims) {
        specs[n] = (struct tensor_spec){.name = tensor, .shape.ndim = (int)json_array_size(dims)};
        assert_true(dtype_parse(json_string_value(json_object_get(meta, "dtype")), &specs[n].dtype));
        json_array_foreach(dims, i, d)
            specs[n].shape.dim[i] = (size_t)json_integer_value(d);
        n++;
    }
    MUST(tensor_writer_open(&w, path, NULL, specs, n, NULL, 0, &err));
    for (size_t k = 0; k < n; k++) {
        const struct tensor_spec *s = &specs[tensor_writer_order(w, k)];
        size_t count;
        float *x;

        assert_true(shape_numel(&s->shape, &count));
        x = malloc(count * sizeof *x);
        snprintf(key, sizeof key, "%s/%s/%s", model, part, s->name);
        golden_model_fill(x, key, &s->shape, count);
        if (s->dtype != DT_F32) {
            void *half = malloc(count * 2);

            dtype_convert(half, s->dtype, x, DT_F32, count);
            MUST(tensor_writer_put(w, (size_t)(s - specs), half, &err));
            free(half);
        } else {
            MUST(tensor_writer_put(w, (size_t)(s - specs), x, &err));
        }
        free(x);
    }
    MUST(tensor_writer_commit(w, &err));
    free(specs);
}

/* Runs one golden model with the weights of a checkpoint and compares the result without LoRA. */
static void run_part(const char *golden, struct model_weights *source)
{
    struct subject s;
    struct err err = {0};

    MUST(subject_open(&s, &file, models, golden, &err));
    weights_free(s.weights);
    MUST(weights_new(&s.weights, model_weights_source(source), &err));
    s.layers.w = s.weights;
    s.layers.lora_count = 0;
    MUST(subject_build(&s, &err));
    if (s.loss != GRAPH_NONE)
        s.input_count--; /* the target goes with the loss */
    graph_keep(s.g, s.result);
    MUST(graph_prune(s.g, &err));
    MUST(graph_fuse(s.g, FUSE_ALL, &err));
    MUST(subject_start(&s, &ops, &err));
    MUST(run_graph(s.run, NULL, &err));
    MUST(subject_compare_value(&v, &s, "plain", "checkpoint", s.result, &err));
    subject_close(&s);
}

static void run_checkpoint(const char *path, const char *golden, enum model_arch arch, size_t channels)
{
    static bool map; /* every other one is read into memory instead */
    struct err err = {0};
    struct model_weights *source;
    struct model *m;
    size_t failed = v.failed;

    map = !map;
    MUST(model_open(&m, path, &err));
    assert_int_equal(m->arch, arch);
    assert_int_equal(m->in_channels, channels);
    MUST(model_weights_open(&source, m, map, &err));
    run_part(golden, source);
    run_part("decoder", source);
    model_weights_close(source);
    model_close(m);
    if (v.failed != failed)
        fail_msg("%s computes something else", path);
}

static void convert(const char *from, const char *to, struct model_write_options o)
{
    struct err err = {0};
    struct model *m;

    MUST(model_open(&m, from, &err));
    MUST(model_write(m, to, &o, NULL, &err));
    model_close(m);
}

static void check_forms(const char *golden, enum model_arch arch, size_t channels)
{
    const char *scratch = scratch_new();
    char folder[200], ldm[200], ckpt[200], again[200], bin[200], wide[200];
    struct model_write_options single = {.layout = MODEL_LDM}, many = {.layout = MODEL_DIFFUSERS};

    snprintf(folder, sizeof folder, "%s/folder", scratch);
    snprintf(ldm, sizeof ldm, "%s/ldm.safetensors", scratch);
    snprintf(ckpt, sizeof ckpt, "%s/ldm.ckpt", scratch);
    snprintf(again, sizeof again, "%s/again", scratch);
    snprintf(bin, sizeof bin, "%s/bin", scratch);
    snprintf(wide, sizeof wide, "%s/wide.safetensors", scratch);
    write_part(folder, "unet/diffusion_pytorch_model.safetensors", golden, "unet");
    write_part(folder, "text_encoder/model.safetensors", golden, "te");
    write_part(folder, "vae/diffusion_pytorch_model.safetensors", "decoder", "vae");
    run_checkpoint(folder, golden, arch, channels);
    convert(folder, ldm, single);
    run_checkpoint(ldm, golden, arch, channels);
    convert(ldm, ckpt, single);
    run_checkpoint(ckpt, golden, arch, channels);
    convert(ckpt, again, many);
    run_checkpoint(again, golden, arch, channels);
    many.bin = true;
    convert(ldm, bin, many);
    run_checkpoint(bin, golden, arch, channels);
    single.cast = true;
    single.dtype = DT_F32;
    convert(bin, wide, single);
    run_checkpoint(wide, golden, arch, channels);
    scratch_remove(scratch);
}

static void test_sd1(void **state)
{
    (void)state;
    check_forms("sd1", MODEL_SD1, 4);
}

static void test_sd2_inpainting(void **state)
{
    (void)state;
    check_forms("sd2", MODEL_SD2, 9);
}

/* The golden LoRA, on every layer with its convolutions (LoCon), as modules of a file: [rank, kh, kw, in] -> [rank, in, kh, kw]. */
static struct lora_out file_module(const struct layers_lora *l)
{
    const size_t *d = l->down->shape.dim;
    size_t pixels = l->down->shape.ndim == 4 ? d[1] * d[2] : 1, in = l->down->shape.ndim == 4 ? d[3] : d[1];
    const float *from = l->down->data;
    float *down = malloc(d[0] * pixels * in * sizeof *down);

    for (size_t r = 0; r < d[0]; r++)
        for (size_t p = 0; p < pixels; p++)
            for (size_t c = 0; c < in; c++)
                down[(r * in + c) * pixels + p] = from[(r * pixels + p) * in + c];
    return (struct lora_out){.part = l->part, .path = l->path, .rank = d[0], .out = l->up->shape.dim[0], .in = in,
                             .kh = pixels > 1 ? d[1] : 1, .kw = pixels > 1 ? d[2] : 1, .conv = pixels > 1,
                             .alpha = (double)l->scale * (double)d[0], .has_alpha = true, .dtype = DT_F32, .up = l->up->data,
                             .down = down};
}

/* Written to a file in each layout and read as generate reads it, the LoRA gives every layer what diffusers says. At 0.5 of twice
 * its scale, too. */
static void check_lora_file(const char *golden, const char *folder, const struct lora_out *modules, size_t n, enum lora_layout layout,
                            double multiplier)
{
    struct lora_write_options o = {.layout = layout, .dtype = DT_F32};
    struct generate_loras loras = {0};
    struct subject s;
    struct err err = {0};
    struct model *m;
    char path[300];
    size_t failed = v.failed;

    snprintf(path, sizeof path, "%s/lora_%d%s", folder, (int)layout, layout == LORA_PEFT ? "" : ".safetensors");
    MUST(lora_file_write(path, modules, n, &o, NULL, &err));
    MUST(model_open(&m, folder, &err));
    MUST(generate_loras_add(&loras, m, path, multiplier, multiplier, 0, &err));
    assert_int_equal(loras.count, n);
    MUST(subject_open(&s, &file, models, golden, &err));
    s.layers.loras = loras.item;
    s.layers.lora_count = loras.count;
    MUST(subject_build(&s, &err));
    MUST(subject_keep_layers(&s, &err));
    MUST(graph_fuse(s.g, FUSE_ALL, &err));
    MUST(subject_start(&s, &ops, &err));
    MUST(run_graph(s.run, NULL, &err));
    MUST(subject_compare_layers(&v, &s, &err));
    subject_close(&s);
    generate_loras_free(&loras);
    model_close(m);
    if (v.failed != failed)
        fail_msg("%s acts otherwise in layout %d", golden, (int)layout);
}

static void test_lora_files(void **state)
{
    static const char *const names[] = {"sd1", "sd2"};
    const char *scratch = scratch_new();

    (void)state;
    for (int k = 0; k < 2; k++) {
        struct lora_out *modules;
        struct subject s;
        struct err err = {0};
        char folder[200];
        size_t n;

        snprintf(folder, sizeof folder, "%s/%s", scratch, names[k]);
        write_part(folder, "unet/diffusion_pytorch_model.safetensors", names[k], "unet");
        write_part(folder, "text_encoder/model.safetensors", names[k], "te");
        MUST(subject_open(&s, &file, models, names[k], &err));
        n = s.lora_count;
        assert_true(n > 50);
        modules = calloc(n, sizeof *modules);
        for (size_t i = 0; i < n; i++)
            modules[i] = file_module(&s.attached[i]);
        check_lora_file(names[k], folder, modules, n, LORA_KOHYA, 1);
        check_lora_file(names[k], folder, modules, n, LORA_DIFFUSERS, 1);
        check_lora_file(names[k], folder, modules, n, LORA_PEFT, 1);
        for (size_t i = 0; i < n; i++)
            modules[i].alpha *= 2;
        check_lora_file(names[k], folder, modules, n, LORA_KOHYA, 0.5);
        for (size_t i = 0; i < n; i++)
            free((void *)(uintptr_t)modules[i].down);
        free(modules);
        subject_close(&s);
    }
    scratch_remove(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sd1), cmocka_unit_test(test_sd2_inpainting),
                                       cmocka_unit_test(test_lora_files)};
    struct err err = {0};
    int failed;

    thread_init(2);
    v = verify_group_new(&ops);
    if (verify_file_open(&file, &v, "models.safetensors", &err) || !(models = verify_json(&file, "models", &err)))
        return 1;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(models);
    verify_file_close(&file);
    return failed;
}

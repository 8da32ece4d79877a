/* Whole models against diffusers and transformers (golden/models.safetensors): every layer's output with a LoRA on every
 * module, all gradients of its factors, with and without checkpointing, fusions and several threads. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/thread.h"
#include "ref/graph/run.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"
#include "ref/model/vae.h"
#include "tests/lib/golden.h"
#include "tests/lib/model_source.h"

static const struct tensor_file *file;
static json_t *models;
static const float lora_scale = 0.5f;

/* ---- One model at work */

struct lora {
    char path[128];
    struct tensor down, up;
};

struct subject {
    const char *name;
    struct model_source source;
    struct weight_source door;
    struct weights *weights;
    struct lora *loras;
    struct layers_lora *attached;
    size_t lora_count;
    struct graph *g;
    struct layers layers;
    int result, loss, target; /* values */
    struct { const char *name; int value; } inputs[4];
    int *grads;
    size_t grad_count;
};

static struct tensor make_factor(const struct subject *s, const char *part, const char *path, const char *leaf)
{
    struct err err = {0};
    struct tensor t = {.dtype = DT_F32};
    char name[300];
    size_t n = 0;

    snprintf(name, sizeof name, "%s/grad/%s/%s.%s", s->name, part, path, leaf);
    t.shape = golden_entry(file, name)->shape;
    shape_numel(&t.shape, &n);
    t.data = mem_new(n * sizeof(float), "a test", &err);
    assert_non_null(t.data);
    snprintf(name, sizeof name, "%s/%s/%s.%s", s->name, part, path, leaf);
    model_source_fill(t.data, name, &t.shape, n);
    return t;
}

/* Each "MODEL/grad/PART/PATH.down" of the file is a LoRA module. */
static void make_loras(struct subject *s)
{
    char prefix[64];
    size_t length;

    snprintf(prefix, sizeof prefix, "%s/grad/", s->name);
    length = strlen(prefix);
    s->loras = calloc(file->count, sizeof *s->loras);
    s->attached = calloc(file->count, sizeof *s->attached);
    for (size_t i = 0; i < file->count; i++) {
        const char *name = file->entries[i].name, *slash = strchr(name + (strlen(name) > length ? length : 0), '/');
        struct lora *l = &s->loras[s->lora_count];
        enum model_part part;

        if (strncmp(name, prefix, length) != 0 || strcmp(name + strlen(name) - 5, ".down") != 0)
            continue;
        snprintf(l->path, sizeof l->path, "%.*s", (int)(strlen(slash + 1) - 5), slash + 1);
        part = strncmp(name + length, "te/", 3) == 0 ? MODEL_TEXT_ENCODER : MODEL_UNET;
        l->down = make_factor(s, model_source_part(part), l->path, "down");
        l->up = make_factor(s, model_source_part(part), l->path, "up");
        s->attached[s->lora_count++] = (struct layers_lora){part, l->path, &l->down, &l->up, lora_scale, true, false};
    }
}

static void subject_open(struct subject *s, const char *name)
{
    json_t *m = json_object_get(models, name);
    struct err err = {0};

    memset(s, 0, sizeof *s);
    s->name = name;
    assert_non_null(m);
    s->source = (struct model_source){name, json_object_get(m, "tensors"), DT_F32};
    assert_true(dtype_parse(json_string_value(json_object_get(m, "dtype")), &s->source.dtype));
    s->door = (struct weight_source){"golden model", &s->source, model_source_find, model_source_read};
    assert_int_equal(weights_new(&s->weights, &s->door, &err), 0);
    make_loras(s);
    s->g = graph_new(&err);
    assert_non_null(s->g);
    s->layers = (struct layers){s->g, s->weights, MODEL_UNET, s->attached, s->lora_count};
}

static void subject_close(struct subject *s)
{
    for (size_t i = 0; i < s->lora_count; i++) {
        free(s->loras[i].down.data);
        free(s->loras[i].up.data);
    }
    free(s->loras);
    free(s->attached);
    free(s->grads);
    graph_free(s->g);
    weights_free(s->weights);
}

static void add_input(struct subject *s, const char *name, int value)
{
    size_t i = 0;

    while (s->inputs[i].name)
        i++;
    assert_true(i < 4);
    s->inputs[i].name = name;
    s->inputs[i].value = value;
}

static const struct shape *input_shape(const struct subject *s, const char *name)
{
    char full[100];

    snprintf(full, sizeof full, "%s/in/%s", s->name, name);
    return &golden_entry(file, full)->shape;
}

#define MUST(call)                       \
    do {                                 \
        if ((call) != 0)                 \
            fail_msg("%s", err.msg);     \
    } while (0)

/* Text encoder, U-Net and loss in one graph. */
static void build_diffusion(struct subject *s)
{
    const struct shape *ids = input_shape(s, "ids"), *x = input_shape(s, "latents");
    struct err err = {0};
    struct clip clip;
    struct unet unet;

    s->layers.part = MODEL_TEXT_ENCODER;
    MUST(clip_build(&s->layers, NULL, ids->dim[0], ids->dim[1], &clip, &err));
    s->layers.part = MODEL_UNET;
    MUST(unet_build(&s->layers, NULL, x->dim[0], x->dim[1], x->dim[2], clip.out, 0, &unet, &err));
    s->result = unet.out;
    s->target = graph_input(s->g, "target", DT_F32, input_shape(s, "target"));
    s->loss = graph_binary(s->g, OP_mse, unet.out, s->target, "loss");
    MUST(graph_check(s->g, &err));
    add_input(s, "ids", clip.ids);
    add_input(s, "latents", unet.latents);
    add_input(s, "timestep", unet.timestep);
    add_input(s, "target", s->target);
}

static void build_vae(struct subject *s, bool encoder)
{
    const struct shape *x = input_shape(s, encoder ? "pictures" : "latents");
    struct err err = {0};
    struct vae vae;

    s->layers.part = MODEL_VAE;
    MUST((encoder ? vae_build_encoder : vae_build_decoder)(&s->layers, x->dim[0], x->dim[1], x->dim[2], &vae, &err));
    s->result = vae.out;
    add_input(s, encoder ? "pictures" : "latents", vae.in);
}

static void write_inputs(struct subject *s, struct run *r)
{
    for (size_t i = 0; i < 4 && s->inputs[i].name; i++) {
        struct tensor t = run_tensor(r, s->inputs[i].value);
        struct err err = {0};
        char name[100];

        snprintf(name, sizeof name, "%s/in/%s", s->name, s->inputs[i].name);
        MUST(tensor_file_read(file, golden_entry(file, name), t.data, &err));
    }
    if (s->grads)
        *(float *)run_data(r, s->grads[s->loss]) = 1;
}

/* Two f32 computations of one formula differ by the order of their sums; torch's own f32 run against its f64 run (stored
 * beside each tensor) is one sample of such a difference, of which the largest of many elements varies by a small factor
 * only: 6 times it. A tensor with few elements may have been lucky: 16 roundings of its largest value come on top. */
static void compare(const struct subject *s, const char *key, const float *got, size_t got_count)
{
    json_t *errors = json_object_get(json_object_get(models, s->name), "error");
    double single = json_number_value(json_object_get(errors, key)), size = 0, worst, limit;
    char name[300];
    size_t n;
    float *want;

    assert_non_null(json_object_get(errors, key));
    snprintf(name, sizeof name, "%s/%s", s->name, key);
    want = golden_f32(file, name, &n);
    assert_int_equal(n, got_count);
    for (size_t i = 0; i < n; i++)
        size = fmax(size, fabs((double)want[i]));
    limit = 6 * single + 16 * 0x1p-24 * size;
    worst = golden_max_diff(got, want, n);
    if (!(worst <= limit))
        fail_msg("%s: off by %g, limit %g, largest %g", name, worst, limit, size);
    free(want);
}

static void compare_value(const struct subject *s, const char *key, struct run *r, int value)
{
    struct tensor t = run_tensor(r, value);
    size_t n = 0;

    shape_numel(&t.shape, &n);
    assert_non_null(t.data);
    compare(s, key, t.data, n);
}

/* The value a module gives, found by its path; the text encoder's paths do not occur in the U-Net. */
static int layer_value(const struct subject *s, const char *key)
{
    const char *path = strchr(key + 4, '/') + 1; /* behind "out/PART/" */

    return graph_find(s->g, path);
}

static void keep_layers(struct subject *s)
{
    json_t *errors = json_object_get(json_object_get(models, s->name), "error"), *e;
    const char *key;

    json_object_foreach(errors, key, e)
        if (strncmp(key, "out/", 4) == 0) {
            if (layer_value(s, key) == GRAPH_NONE)
                fail_msg("%s: no layer for '%s'", s->name, key);
            graph_keep(s->g, layer_value(s, key));
        }
}

static size_t compare_layers(const struct subject *s, struct run *r)
{
    json_t *errors = json_object_get(json_object_get(models, s->name), "error"), *e;
    const char *key;
    size_t count = 0;

    json_object_foreach(errors, key, e)
        if (strncmp(key, "out/", 4) == 0) {
            compare_value(s, key, r, layer_value(s, key));
            count++;
        }
    return count;
}

static int param_of(const struct subject *s, const struct tensor *t)
{
    for (size_t i = 0; i < s->g->value_count; i++)
        if (s->g->values[i].source == t)
            return (int)i;
    return GRAPH_NONE;
}

static void compare_gradients(const struct subject *s, struct run *r)
{
    for (size_t i = 0; i < s->lora_count; i++)
        for (int side = 0; side < 2; side++) {
            int v = param_of(s, side ? &s->loras[i].up : &s->loras[i].down);
            char key[300];

            snprintf(key, sizeof key, "grad/%s/%s.%s", model_source_part(s->attached[i].part), s->loras[i].path, side ? "up" : "down");
            assert_int_not_equal(v, GRAPH_NONE);
            if (s->grads[v] == GRAPH_NONE)
                fail_msg("%s has no gradient", key);
            compare_value(s, key, r, s->grads[v]);
        }
}

static void differentiate(struct subject *s)
{
    struct err err = {0};

    s->grad_count = s->g->value_count;
    s->grads = calloc(s->grad_count, sizeof *s->grads);
    MUST(graph_differentiate(s->g, s->loss, NULL, 0, s->grads, &err));
}

static void start(struct subject *s, struct run **r, const struct ops *ops)
{
    struct err err = {0};

    MUST(weights_load(s->weights, &err));
    MUST(run_new(r, s->g, ops, &err));
    write_inputs(s, *r);
}

static void check_diffusion(const char *name)
{
    struct subject s;
    struct err err = {0};
    struct run *r;
    struct ops ops;
    struct run_options options = {.check_nan = true};

    ops_ref(&ops);
    subject_open(&s, name);
    build_diffusion(&s);
    keep_layers(&s);
    differentiate(&s);
    start(&s, &r, &ops);
    MUST(run_graph(r, &options, &err));
    assert_true(compare_layers(&s, r) > 100);
    compare_value(&s, "loss", r, s.loss);
    compare_gradients(&s, r);
    run_free(r);
    subject_close(&s);
}

static void test_sd1(void **state)
{
    (void)state;
    check_diffusion("sd1");
}

static void test_sd2(void **state)
{
    (void)state;
    check_diffusion("sd2");
}

static void check_plain(const char *name, bool encoder, bool diffusion)
{
    struct subject s;
    struct err err = {0};
    struct run *r;
    struct ops ops;

    ops_ref(&ops);
    subject_open(&s, name);
    s.layers.lora_count = 0;
    if (diffusion)
        build_diffusion(&s);
    else
        build_vae(&s, encoder);
    if (!diffusion)
        keep_layers(&s);
    else
        MUST(graph_prune(s.g, &err)); /* without the loss */
    MUST(graph_fuse(s.g, FUSE_ALL, &err));
    start(&s, &r, &ops);
    MUST(run_graph(r, NULL, &err));
    compare_value(&s, "plain", r, s.result);
    if (!diffusion)
        assert_true(compare_layers(&s, r) > 30);
    run_free(r);
    subject_close(&s);
}

static void test_vae(void **state)
{
    (void)state;
    check_plain("encoder", true, false);
    check_plain("decoder", false, false);
}

/* Without LoRA, nothing kept inside, all fusions on. */
static void test_plain(void **state)
{
    (void)state;
    check_plain("sd1", false, true);
    check_plain("sd2", false, true);
}

/* A LoRA folded into the weights gives what branches give; convolutions stay branches. */
static void test_fold(void **state)
{
    struct subject s;
    struct err err = {0};
    struct run *r;
    struct ops ops;

    (void)state;
    ops_ref(&ops);
    subject_open(&s, "sd1");
    for (size_t i = 0; i < s.lora_count; i++) {
        s.attached[i].train = false;
        s.attached[i].fold = true;
    }
    build_diffusion(&s);
    keep_layers(&s);
    MUST(graph_fuse(s.g, FUSE_ALL, &err));
    start(&s, &r, &ops);
    MUST(run_graph(r, NULL, &err));
    compare_layers(&s, r);
    run_free(r);
    subject_close(&s);
}

/* All gradients of a training graph, one after the other, and the plan's size. */
static float *gradients(unsigned fuse, bool checkpoint, int threads, size_t *count, size_t *arena)
{
    struct subject s;
    struct err err = {0};
    struct run *r;
    struct ops ops;
    float *all = NULL;
    size_t n = 0;

    thread_init(threads);
    ops_ref(&ops);
    subject_open(&s, "sd1");
    build_diffusion(&s);
    MUST(graph_fuse(s.g, fuse, &err));
    differentiate(&s);
    if (checkpoint)
        MUST(graph_checkpoint(s.g, &err));
    start(&s, &r, &ops);
    *arena = run_plan(r)->arena;
    MUST(run_graph(r, NULL, &err));
    compare_gradients(&s, r);
    for (size_t i = 0; i < 2 * s.lora_count; i++) {
        struct tensor t = run_tensor(r, s.grads[param_of(&s, i % 2 ? &s.loras[i / 2].up : &s.loras[i / 2].down)]);
        size_t more = 0;

        shape_numel(&t.shape, &more);
        all = realloc(all, (n + more) * sizeof *all);
        memcpy(all + n, t.data, more * sizeof *all);
        n += more;
    }
    *count = n;
    run_free(r);
    subject_close(&s);
    thread_init(2);
    return all;
}

/* Checkpointing and threads change no byte; checkpointing saves memory; fusions stay within the limits (in gradients()). */
static void test_transforms(void **state)
{
    size_t n, m, arena, less;
    float *plain = gradients(0, false, 2, &n, &arena), *other;

    (void)state;
    other = gradients(0, true, 2, &m, &less);
    assert_int_equal(n, m);
    assert_memory_equal(plain, other, n * sizeof *plain);
    assert_true(less < arena * 3 / 4);
    free(other);
    other = gradients(0, false, 5, &m, &less);
    assert_memory_equal(plain, other, n * sizeof *plain);
    free(other);
    other = gradients(FUSE_NORM_SILU | FUSE_RESIDUAL, true, 1, &m, &less);
    assert_int_equal(n, m);
    free(other);
    free(plain);
}

static int no_tensor(void *ctx, enum model_part part, const char *name, struct weight_info *out, struct err *err)
{
    if (strcmp(name, "mid_block.resnets.1.conv1.weight") == 0)
        return 0;
    return model_source_find(ctx, part, name, out, err);
}

/* A hole in a checkpoint, and a LoRA for a layer that is not there, are named. */
static void test_errors(void **state)
{
    struct subject s;
    struct err err = {0};
    struct unet unet;

    (void)state;
    subject_open(&s, "sd1");
    s.door.find = no_tensor;
    assert_int_equal(unet_build(&s.layers, NULL, 1, 4, 4, GRAPH_NONE, 3, &unet, &err), -1);
    assert_non_null(strstr(err.msg, "'golden model': the U-Net lacks tensor 'mid_block.resnets.1.conv1.weight'"));
    subject_close(&s);
    subject_open(&s, "sd1");
    strcpy(s.loras[s.lora_count - 1].path, "up_blocks.7.attentions.0.proj_in");
    s.attached[s.lora_count - 1].part = MODEL_UNET;
    assert_int_equal(unet_build(&s.layers, NULL, 1, 4, 4, GRAPH_NONE, 3, &unet, &err), -1);
    assert_non_null(strstr(err.msg, "'up_blocks.7.attentions.0.proj_in', which this U-Net lacks"));
    subject_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sd1),        cmocka_unit_test(test_sd2),    cmocka_unit_test(test_vae),
        cmocka_unit_test(test_plain),      cmocka_unit_test(test_fold),   cmocka_unit_test(test_transforms),
        cmocka_unit_test(test_errors),
    };
    struct tensor_file *f = golden_open("models.safetensors");
    int failed;

    file = f;
    models = json_loads(tensor_file_metadata(f, "models"), 0, NULL);
    thread_init(2);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(models);
    tensor_file_close(f);
    return failed;
}

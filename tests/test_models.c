/* Whole models against diffusers and transformers (the group "models" of lora verify), then what no device changes: LoRAs folded
 * into the weights, fusions, checkpointing, threads, and the messages of models that lack a layer. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "cmd/verify/subject.h"
#include "ref/base/thread.h"
#include "ref/model/unet.h"
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

static void test_golden(void **state)
{
    (void)state;
    verify_group(verify_models, 1000);
}

/* A LoRA folded into the weights gives what branches give; convolutions stay branches. */
static void test_fold(void **state)
{
    struct subject s;
    struct err err = {0};

    (void)state;
    MUST(subject_open(&s, &file, models, "sd1", &err));
    for (size_t i = 0; i < s.lora_count; i++) {
        s.attached[i].train = false;
        s.attached[i].fold = true;
    }
    MUST(subject_build(&s, &err));
    MUST(subject_keep_layers(&s, &err));
    MUST(graph_fuse(s.g, FUSE_ALL, &err));
    MUST(subject_start(&s, &ops, &err));
    MUST(run_graph(s.run, NULL, &err));
    MUST(subject_compare_layers(&v, &s, &err));
    assert_int_equal(v.failed, 0);
    subject_close(&s);
}

/* All gradients of a training graph, one after the other, and the plan's size. */
static float *gradients(unsigned fuse, bool checkpoint, int threads, size_t *count, size_t *arena)
{
    struct subject s;
    struct err err = {0};
    float *all = NULL;
    size_t n = 0;

    thread_init(threads);
    MUST(subject_open(&s, &file, models, "sd1", &err));
    MUST(subject_build(&s, &err));
    MUST(graph_fuse(s.g, fuse, &err));
    MUST(subject_differentiate(&s, &err));
    if (checkpoint)
        MUST(graph_checkpoint(s.g, &err));
    MUST(subject_start(&s, &ops, &err));
    *arena = run_plan(s.run)->arena;
    MUST(run_graph(s.run, NULL, &err));
    MUST(subject_compare_gradients(&v, &s, &err));
    assert_int_equal(v.failed, 0);
    for (size_t i = 0; i < 2 * s.lora_count; i++) {
        int value = subject_gradient(&s, i / 2, i % 2);
        struct shape shape = graph_shape(s.g, value);
        size_t more = 0;

        shape_numel(&shape, &more);
        all = realloc(all, (n + more) * sizeof *all);
        assert_non_null(all);
        MUST(run_read(s.run, value, all + n, &err));
        n += more;
    }
    *count = n;
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
    return golden_model_find(ctx, part, name, out, err);
}

/* A hole in a checkpoint, and a LoRA for a layer that is not there, are named. */
static void test_errors(void **state)
{
    struct subject s;
    struct err err = {0};
    struct unet unet;

    (void)state;
    MUST(subject_open(&s, &file, models, "sd1", &err));
    s.door.find = no_tensor;
    assert_int_equal(unet_build(&s.layers, NULL, 1, 4, 4, GRAPH_NONE, 3, &unet, &err), -1);
    assert_non_null(strstr(err.msg, "'golden model': the U-Net lacks tensor 'mid_block.resnets.1.conv1.weight'"));
    subject_close(&s);
    MUST(subject_open(&s, &file, models, "sd1", &err));
    strcpy(s.loras[s.lora_count - 1].path, "up_blocks.7.attentions.0.proj_in");
    s.attached[s.lora_count - 1].part = MODEL_UNET;
    assert_int_equal(unet_build(&s.layers, NULL, 1, 4, 4, GRAPH_NONE, 3, &unet, &err), -1);
    assert_non_null(strstr(err.msg, "'up_blocks.7.attentions.0.proj_in', which this U-Net lacks"));
    subject_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),     cmocka_unit_test(test_fold), cmocka_unit_test(test_transforms),
        cmocka_unit_test(test_errors),
    };
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

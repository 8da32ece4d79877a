/* formats/model_folder.c: diffusers folders as they come: pickles, variants, shards, lone parts; and broken ones */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "formats/model_write.h"
#include "tests/lib/names_golden.h"
#include "tests/lib/scratch.h"

static const char *folder;
static char dir[256];

static struct model *open_ok(const char *path)
{
    struct model *m;
    struct err err = {0};

    if (model_open(&m, path, &err) != 0)
        fail_msg("%s", err.msg);
    return m;
}

static void expect_error(const char *path, const char *what)
{
    struct model *m;
    struct err err = {0};

    assert_int_equal(model_open(&m, path, &err), -1);
    if (!strstr(err.msg, what))
        fail_msg("'%s' is not in: %s", what, err.msg);
}

static const char *in_dir(const char *name)
{
    return scratch_path(dir, name);
}

static void put(const char *name, const char *text)
{
    scratch_write(in_dir(name), text, strlen(text));
}

static void move(const char *from, const char *to)
{
    char a[300];

    strcpy(a, in_dir(from));
    assert_int_equal(rename(a, in_dir(to)), 0);
}

/* A fresh folder of the smallest structure. */
static size_t fresh(const char *name, bool bin)
{
    struct names_golden g = names_golden_read("three");
    struct model_write_options o = {.layout = MODEL_DIFFUSERS, .bin = bin, .prediction = MODEL_V};
    char ldm[256];
    struct err err = {0};
    struct model *m;
    size_t n;

    strcpy(ldm, scratch_path(folder, "ldm.safetensors"));
    names_golden_write(&g, ldm, NULL);
    snprintf(dir, sizeof dir, "%s/%s", folder, name);
    m = open_ok(ldm);
    if (model_write(m, dir, &o, NULL, &err) != 0)
        fail_msg("%s", err.msg);
    n = m->part_first[MODEL_OTHER];
    model_close(m);
    free(g.line);
    return n;
}

static void check_whole(size_t n)
{
    struct model *m = open_ok(dir);

    assert_int_equal(m->count, n);
    assert_true(m->whole[MODEL_UNET] && m->whole[MODEL_TEXT_ENCODER] && m->whole[MODEL_VAE]);
    assert_true(m->arch == MODEL_SD1 && m->prediction == MODEL_V);
    model_close(m);
}

static void test_forms(void **state)
{
    size_t n = fresh("bin", true);
    struct stat st;

    (void)state;
    assert_int_equal(stat(in_dir("text_encoder/pytorch_model.bin"), &st), 0);
    check_whole(n);
    n = fresh("plain", false);
    check_whole(n);
    move("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors");
    check_whole(n);
}

/* Two shards of the U-Net with an index. */
static void test_shards(void **state)
{
    static const char half[] = "diffusion_pytorch_model-0000%d-of-00002.safetensors";
    struct tensor_file *f;
    struct tensor_spec specs[600];
    struct err err = {0};
    size_t n = fresh("shards", false);
    char index[100000] = "{\"metadata\": {}, \"weight_map\": {", path[400], *at = index + strlen(index);

    (void)state;
    assert_int_equal(tensor_file_open(&f, in_dir("unet/diffusion_pytorch_model.safetensors"), &err), 0);
    for (int part = 0; part < 2; part++) {
        size_t first = part ? f->count / 3 : 0, end = part ? f->count : f->count / 3;
        struct tensor_writer *w;
        char name[100];

        snprintf(name, sizeof name, half, part + 1);
        snprintf(path, sizeof path, "%s/unet/%s", dir, name);
        for (size_t i = first; i < end; i++) {
            specs[i - first] = (struct tensor_spec){f->entries[i].name, f->entries[i].dtype, f->entries[i].shape};
            at += sprintf(at, "%s\"%s\": \"%s\"", at[-1] == '{' ? "" : ",", f->entries[i].name, name);
        }
        assert_int_equal(tensor_writer_open(&w, path, NULL, specs, end - first, NULL, 0, &err), 0);
        for (size_t i = first; i < end; i++)
            assert_int_equal(tensor_writer_copy(w, i - first, f, &f->entries[i], &err), 0);
        assert_int_equal(tensor_writer_commit(w, &err), 0);
    }
    tensor_file_close(f);
    strcpy(at, "}}");
    assert_int_equal(unlink(in_dir("unet/diffusion_pytorch_model.safetensors")), 0);
    put("unet/diffusion_pytorch_model.safetensors.index.json", index);
    check_whole(n);
    at[-1] = 0; /* cut */
    put("unet/diffusion_pytorch_model.safetensors.index.json", index);
    expect_error(dir, "index.json");
    put("unet/diffusion_pytorch_model.safetensors.index.json", "{\"weight_map\": {\"x\": \"../../x.safetensors\"}}");
    expect_error(dir, "stands in no file of its folder");
    put("unet/diffusion_pytorch_model.safetensors.index.json",
        "{\"weight_map\": {\"x\": \"diffusion_pytorch_model-00001-of-00002.safetensors\"}}");
    expect_error(dir, "it lacks tensor 'x'");
    put("unet/diffusion_pytorch_model.safetensors.index.json", "{}");
    expect_error(dir, "no 'weight_map'");
}

static void test_parts(void **state)
{
    struct model *m;
    char text[256];

    (void)state;
    fresh("parts", false);
    m = open_ok(in_dir("vae"));
    assert_string_equal(model_kind_text(m, text, sizeof text), "Stable Diffusion VAE (diffusers layout), f32");
    model_close(m);
    m = open_ok(in_dir("unet"));
    assert_true(m->whole[MODEL_UNET] && !m->has[MODEL_VAE] && m->head_dim_hint == 8);
    model_close(m);
    move("text_encoder/model.safetensors", "text_encoder/other.safetensors");
    expect_error(dir, "there are no weights in it");
    move("text_encoder/other.safetensors", "text_encoder/model.safetensors");
    put("unet/config.json", "not JSON");
    expect_error(dir, "config.json");
    put("unet/config.json", "{}");
    assert_int_equal(mkdir(in_dir("text_encoder_2"), 0777), 0);
    expect_error(dir, "an SDXL or newer model");
    expect_error("golden/lora/peft", "it is a LoRA (PEFT folder)");
    expect_error("golden/lora/peft/unet", "it is a LoRA (PEFT folder)");
}

/* Folder -> folder keeps the configs and the tokenizer; writing onto itself is refused. */
static void test_copy(void **state)
{
    struct model_write_options o = {.layout = MODEL_DIFFUSERS};
    struct model_write_report r;
    struct err err = {0};
    struct model *m;
    char to[256], *text;
    size_t n;

    (void)state;
    fresh("source", false);
    assert_int_equal(mkdir(in_dir("tokenizer"), 0777), 0);
    put("tokenizer/vocab.json", "{\"a\": 0}");
    put("vae/config.json", "{\"own\": 1}");
    m = open_ok(dir);
    strcpy(to, scratch_path(folder, "copy"));
    assert_int_equal(model_write(m, to, &o, &r, &err), 0);
    assert_true(r.tokenizer);
    text = (char *)scratch_read(scratch_path(to, "tokenizer/vocab.json"), &n);
    assert_string_equal(text, "{\"a\": 0}");
    free(text);
    text = (char *)scratch_read(scratch_path(to, "vae/config.json"), &n);
    assert_string_equal(text, "{\"own\": 1}");
    free(text);
    text = (char *)scratch_read(scratch_path(to, "scheduler/scheduler_config.json"), &n);
    assert_non_null(strstr(text, "v_prediction"));
    free(text);
    assert_int_equal(model_write(m, dir, &o, NULL, &err), -1);
    assert_non_null(strstr(err.msg, "it is the folder that is read"));
    model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms), cmocka_unit_test(test_shards), cmocka_unit_test(test_parts), cmocka_unit_test(test_copy),
    };
    int rc;

    folder = scratch_new();
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(folder);
    return rc;
}

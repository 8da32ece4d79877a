/* formats/model.c and names.c with their helpers: LDM checkpoints of several structures under canonical names, against diffusers'
 * converters (golden/names); kinds, views and refusals */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "formats/model.h"
#include "formats/tensor_writer.h"
#include "tests/lib/names_golden.h"
#include "tests/lib/scratch.h"

static const char *const structures[] = {"sd1", "sd2", "three", "five"};
static const char *folder;

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
    assert_null(m);
    if (!strstr(err.msg, what))
        fail_msg("'%s' is not in: %s", what, err.msg);
}

static uint32_t crc_of(const struct model_tensor *t)
{
    struct err err = {0};
    unsigned char *data = malloc(t->nbytes + 1);
    uint32_t crc;

    assert_int_equal(model_read(t, data, &err), 0);
    crc = (uint32_t)crc32(0, data, (unsigned)t->nbytes);
    free(data);
    return crc;
}

/* Every tensor that diffusers makes of the file is there, with its shape and bytes, and no other. */
static void check_against(const struct names_golden *g, const struct model *m)
{
    size_t n = 0;

    for (size_t i = 0; i < g->count; i++) {
        const struct golden_name *want = &g->line[i];
        const struct model_tensor *t;

        if (want->part == MODEL_OTHER)
            continue;
        t = model_find(m, want->part, want->name);
        if (!t)
            fail_msg("no %s", want->name);
        if (!shape_equal(&t->shape, &want->shape) || crc_of(t) != want->crc)
            fail_msg("%s (from %s) differs", want->name, t->entry->name);
        n++;
    }
    assert_int_equal(m->part_first[MODEL_OTHER], n);
}

/* The view by source covers every entry once, in file order, and its tensors cover the bytes of used entries. */
static void check_sources(const struct model *m)
{
    size_t next = 0;

    assert_int_equal(m->source_count, m->file[0]->count);
    for (size_t i = 0; i < m->source_count; i++) {
        const struct model_source *s = &m->source[i];
        size_t at = 0;

        assert_ptr_equal(s->entry, &m->file[0]->entries[i]);
        assert_int_equal(s->first, next);
        assert_true(s->count >= 1);
        next += s->count;
        for (size_t k = 0; k < s->count; k++) {
            const struct model_tensor *t = m->in_source[s->first + k];

            assert_int_equal(t->source, i);
            assert_int_equal(t->offset, at);
            at += t->nbytes;
        }
        assert_int_equal(at, s->entry->nbytes);
    }
    assert_int_equal(next, m->count);
}

/* names_to_ldm() leads back to the name in the file. */
static void check_back(const struct model *m)
{
    for (size_t i = 0; i < m->part_first[MODEL_OTHER]; i++) {
        const struct model_tensor *t = &m->tensor[i];
        struct names_slice ldm;
        char whole[2 * NAMES_MAX];

        assert_true(names_to_ldm(&m->plan, t->part, t->name, &ldm));
        snprintf(whole, sizeof whole, "%s%s", names_ldm_prefix(&m->plan, t->part), ldm.name);
        assert_string_equal(whole, t->entry->name);
        assert_int_equal(ldm.slice * t->nbytes, t->offset);
        assert_int_equal(ldm.slices * t->nbytes, t->entry->nbytes);
    }
}

/* Every module path survives losing its dots. */
static void check_loose(const struct model *m)
{
    for (size_t i = 0; i < m->part_first[MODEL_VAE]; i++) {
        const struct model_tensor *t = &m->tensor[i];
        char key[NAMES_MAX], back[NAMES_MAX], path[NAMES_MAX];
        size_t n = (size_t)(strrchr(t->name, '.') - t->name);

        snprintf(path, sizeof path, "%.*s", (int)n, t->name);
        strcpy(key, path);
        for (char *p = key; *p; p++)
            *p = *p == '.' ? '_' : *p;
        assert_true(names_module(&m->plan, t->part, key, n, back));
        assert_string_equal(back, path);
        assert_true(names_module(&m->plan, t->part, path, n, back));
        assert_string_equal(back, path);
    }
}

static void test_structures(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof structures / sizeof structures[0]; i++) {
        struct names_golden g = names_golden_read(structures[i]);
        const char *path = scratch_path(folder, "m.safetensors");
        struct model *m;

        names_golden_write(&g, path, NULL);
        m = open_ok(path);
        check_against(&g, m);
        check_sources(m);
        check_back(m);
        check_loose(m);
        assert_int_equal(m->layout, MODEL_LDM);
        model_close(m);
        free(g.line);
    }
}

static void test_kind(void **state)
{
    struct names_golden one = names_golden_read("sd1"), two = names_golden_read("sd2");
    char p1[256], p2[256], text[256];
    struct model *m, *n;
    struct err err = {0};

    (void)state;
    strcpy(p1, scratch_path(folder, "one.safetensors"));
    strcpy(p2, scratch_path(folder, "two.safetensors"));
    names_golden_write(&one, p1, NULL);
    names_golden_write(&two, p2, "first_stage_model.");
    m = open_ok(p1), n = open_ok(p2);
    assert_string_equal(model_kind_text(m, text, sizeof text),
                        "Stable Diffusion 1.x checkpoint (LDM layout), f32, with U-Net, text encoder and VAE");
    assert_string_equal(model_kind_text(n, text, sizeof text),
                        "Stable Diffusion 2.x checkpoint (LDM layout), inpainting, f32, with U-Net and text encoder, no VAE");
    assert_int_equal(m->text_layers, 12);
    assert_int_equal(n->text_layers, 23);
    assert_int_equal(model_expect_v2(m, false, &err), 0);
    assert_int_equal(model_expect_v2(n, true, &err), 0);
    assert_int_equal(model_expect_v2(m, true, &err), -1);
    assert_int_equal(err.kind, ERR_USAGE);
    assert_int_equal(model_expect_v2(n, false, &err), -1);
    assert_int_equal(model_need(m, MODEL_VAE, &err), 0);
    assert_int_equal(model_need(n, MODEL_VAE, &err), -1);
    assert_non_null(strstr(err.msg, "has no VAE"));
    assert_int_equal(model_expect_same(m, m, MODEL_UNET, &err), 0);
    assert_int_equal(model_expect_same(m, n, MODEL_UNET, &err), -1);
    assert_non_null(strstr(err.msg, "Stable Diffusion 1.x"));
    model_close(m);
    model_close(n);
    free(one.line);
    free(two.line);
}

/* Files of other shapes: f32 zeros under the given names, two lines of numbers each. */
static const char *file_of(const char *const *names, const char *const *shapes)
{
    const char *path = scratch_path(folder, "odd.safetensors");
    struct tensor_spec specs[16];
    struct tensor_writer *w;
    struct err err = {0};
    size_t n = 0;

    for (; names[n]; n++) {
        char text[64];

        specs[n] = (struct tensor_spec){names[n], DT_F32, {0, {0}}};
        snprintf(text, sizeof text, "%s", shapes[n]);
        for (char *p = strtok(text, "x"); p; p = strtok(NULL, "x"))
            specs[n].shape.dim[specs[n].shape.ndim++] = strtoul(p, NULL, 10);
    }
    assert_int_equal(tensor_writer_open(&w, path, NULL, specs, n, NULL, 0, &err), 0);
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        void *zeros;

        assert_true(shape_nbytes(&specs[i].shape, DT_F32, &bytes));
        zeros = calloc(1, bytes + 1);
        assert_int_equal(tensor_writer_put(w, i, zeros, &err), 0);
        free(zeros);
    }
    assert_int_equal(tensor_writer_commit(w, &err), 0);
    return path;
}

#define FILE_OF(names, shapes) file_of((const char *const[]){names, NULL}, (const char *const[]){shapes})
#define LIST(...) __VA_ARGS__

static void test_refused(void **state)
{
    (void)state;
    expect_error(FILE_OF(LIST("conditioner.embedders.0.x"), LIST("1")), "SDXL is not supported");
    expect_error(FILE_OF(LIST("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"), LIST("4x2048")),
                 "SDXL is not supported");
    expect_error(FILE_OF(LIST("model.diffusion_model.joint_blocks.0.x"), LIST("1")), "Stable Diffusion 3");
    expect_error(FILE_OF(LIST("double_blocks.0.img_attn.qkv.weight"), LIST("1")), "Flux");
    expect_error(FILE_OF(LIST("controlnet_cond_embedding.conv_in.weight"), LIST("1")), "ControlNet");
    expect_error(FILE_OF(LIST("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"), LIST("1x1")), "it is a LoRA file");
    expect_error(FILE_OF(LIST("some.layer"), LIST("1")), "none of its 1 tensors");
    expect_error(FILE_OF(LIST("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
                              "cond_stage_model.model.transformer.resblocks.1.ln_1.weight"), LIST("7x2", "2")),
                 "cannot hold q, k and v");
    expect_error(FILE_OF(LIST("cond_stage_model.transformer.encoder.layers.0.mlp.fc1.bias",
                              "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias"), LIST("2", "2")),
                 "are both the text encoder's 'text_model.encoder.layers.0.mlp.fc1.bias'");
    expect_error(FILE_OF(LIST("conv_in.weight", "control_model.x"), LIST("1", "1")), "ControlNet");
    expect_error("/nowhere", "there is no such file");
    expect_error(folder, "has no unet/");
}

/* Spellings that lead to the same tensors. */
static void test_variants(void **state)
{
    struct model *m;
    const struct model_tensor *t;

    (void)state;
    m = open_ok(FILE_OF(LIST("cond_stage_model.transformer.embeddings.position_ids",
                             "cond_stage_model.transformer.encoder.layers.3.mlp.fc1.bias", "model_ema.diffusion_modelout2weight",
                             "betas"), LIST("1x77", "8", "2", "1")));
    assert_non_null(model_find(m, MODEL_TEXT_ENCODER, "text_model.encoder.layers.3.mlp.fc1.bias"));
    assert_int_equal(m->part_first[MODEL_OTHER], 1);
    assert_true(m->ema && !m->bare && !m->whole[MODEL_TEXT_ENCODER]);
    model_close(m);

    m = open_ok(FILE_OF(LIST("decoder.mid_block.attentions.0.query.weight", "decoder.mid_block.attentions.0.proj_attn.bias",
                             "encoder.down.0.block.0.norm1.bias", "decoder.mid.attn_1.k.weight"), LIST("4x4", "4", "2", "4x4x1x1")));
    assert_non_null(model_find(m, MODEL_VAE, "decoder.mid_block.attentions.0.to_q.weight"));
    assert_non_null(model_find(m, MODEL_VAE, "decoder.mid_block.attentions.0.to_out.0.bias"));
    assert_non_null(model_find(m, MODEL_VAE, "encoder.down_blocks.0.resnets.0.norm1.bias"));
    t = model_find(m, MODEL_VAE, "decoder.mid_block.attentions.0.to_k.weight");
    assert_true(t && t->shape.ndim == 2 && t->entry->shape.ndim == 4);
    assert_true(m->bare && m->layout == MODEL_LDM);
    model_close(m);

    m = open_ok(FILE_OF(LIST("first_stage_model.encoder.norm_out.bias", "first_stage_model.loss.discriminator.x", "encoder.norm_out.bias"),
                        LIST("4", "1", "4"))); /* with prefixes in the file, names without one belong to nobody */
    assert_int_equal(m->part_first[MODEL_OTHER], 1);
    model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_structures),
        cmocka_unit_test(test_kind),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_variants),
    };
    int rc;

    folder = scratch_new();
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(folder);
    return rc;
}

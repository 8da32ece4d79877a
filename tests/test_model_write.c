/* formats/model_write.c, model_write_folder.c, diffusers.c: LDM file -> diffusers folder -> LDM file, casts, refusals */
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

#include "formats/diffusers.h"
#include "formats/model_write.h"
#include "formats/torch_state.h"
#include "tests/lib/names_golden.h"
#include "tests/lib/scratch.h"

static const char *folder;
static char ldm[256], dir[256], again[256], half[256];

static struct model *open_ok(const char *path)
{
    struct model *m;
    struct err err = {0};

    if (model_open(&m, path, &err) != 0)
        fail_msg("%s", err.msg);
    return m;
}

static void write_ok(const struct model *m, const char *path, const struct model_write_options *o, struct model_write_report *r)
{
    struct err err = {0};

    if (model_write(m, path, o, r, &err) != 0)
        fail_msg("%s", err.msg);
}

/* The folder has what diffusers' converters make of the LDM file, byte for byte. */
static void check_folder(const struct names_golden *g, const struct model *m)
{
    size_t n = 0;
    struct err err = {0};

    for (size_t i = 0; i < g->count; i++) {
        const struct golden_name *want = &g->line[i];
        const struct model_tensor *t;
        unsigned char *data;

        if (want->part == MODEL_OTHER)
            continue;
        t = model_find(m, want->part, want->name);
        if (!t)
            fail_msg("no %s", want->name);
        assert_string_equal(t->entry->name, want->name);
        assert_true(shape_equal(&t->entry->shape, &want->shape));
        data = malloc(t->nbytes + 1);
        assert_int_equal(model_read(t, data, &err), 0);
        assert_int_equal(crc32(0, data, (unsigned)t->nbytes), want->crc);
        free(data);
        n++;
    }
    assert_int_equal(m->count, n);
}

static void same_bytes(const struct tensor_file *a, const struct tensor_entry *x, const struct tensor_file *b,
                       const struct tensor_entry *y)
{
    unsigned char *p = malloc(x->nbytes + 1), *q = malloc(x->nbytes + 1);
    struct err err = {0};

    assert_true(x->dtype == y->dtype && shape_equal(&x->shape, &y->shape));
    assert_int_equal(tensor_file_read(a, x, p, &err), 0);
    assert_int_equal(tensor_file_read(b, y, q, &err), 0);
    assert_memory_equal(p, q, x->nbytes);
    free(p), free(q);
}

/* Every tensor that is used is back under its name; what is not used is left out, but for the last block of OpenCLIP. */
static void check_round_trip(const struct model *first, const struct model *back, bool sd2)
{
    size_t missing = 0;

    for (size_t i = 0; i < first->source_count; i++) {
        const struct model_source *s = &first->source[i];
        const struct tensor_entry *e = tensor_file_find(back->file[0], s->entry->name);
        const char *last = "cond_stage_model.model.transformer.resblocks.23.";

        if (!e) {
            assert_int_equal(first->in_source[s->first]->part, MODEL_OTHER);
            missing++;
        } else if (strncmp(e->name, last, strlen(last)) == 0) {
            char name[256];

            snprintf(name, sizeof name, "cond_stage_model.model.transformer.resblocks.22.%s", e->name + strlen(last));
            same_bytes(back->file[0], e, back->file[0], tensor_file_find(back->file[0], name));
        } else {
            same_bytes(first->file[0], s->entry, back->file[0], e);
        }
    }
    assert_int_equal(missing, sd2 ? 2 : 0); /* text_projection, logit_scale */
    assert_int_equal(back->source_count + missing, first->source_count);
}

static void test_round_trip(void **state)
{
    static const char *const structures[] = {"sd1", "sd2", "three", "five"};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct names_golden g = names_golden_read(structures[i]);
        struct model_write_options o = {.layout = MODEL_DIFFUSERS};
        struct model_write_report r;
        struct model *m, *f, *b;
        bool sd2 = i == 1;
        struct stat st;

        snprintf(dir, sizeof dir, "%s/%s", folder, structures[i]);
        names_golden_write(&g, ldm, NULL);
        m = open_ok(ldm);
        write_ok(m, dir, &o, &r);
        assert_true(!r.tokenizer && r.guessed_prediction == sd2);
        assert_int_equal(r.left_out, sd2 ? 14 : 0);
        f = open_ok(dir);
        check_folder(&g, f);
        assert_true(f->layout == MODEL_DIFFUSERS && f->arch == m->arch && f->folder);
        assert_int_equal(f->plan.unet_layers, m->plan.unet_layers);
        assert_int_equal(stat(scratch_path(dir, "model_index.json"), &st), 0);
        o.layout = MODEL_LDM;
        write_ok(f, again, &o, &r);
        assert_int_equal(r.made_last_block, sd2);
        b = open_ok(again);
        assert_true(b->layout == MODEL_LDM && b->arch == m->arch);
        check_round_trip(m, b, sd2);
        model_close(m), model_close(f), model_close(b);
        free(g.line);
    }
}

/* m's file as path, with this root key (NULL: none) and counters. */
static void write_torch(const struct model *m, const char *path, const char *root)
{
    const struct tensor_file *f = m->file[0];
    const struct metadata_item items[] = {{TORCH_META_EPOCH, "7"}, {TORCH_META_STEP, "470000"}, {TORCH_META_ROOT, root}};
    struct tensor_spec *specs = calloc(f->count, sizeof *specs);
    struct tensor_writer *w;
    struct err err = {0};

    for (size_t i = 0; i < f->count; i++)
        specs[i] = (struct tensor_spec){f->entries[i].name, f->entries[i].dtype, f->entries[i].shape};
    assert_int_equal(tensor_writer_open(&w, path, NULL, specs, f->count, items, root ? 3 : 0, &err), 0);
    for (size_t i = 0; i < f->count; i++)
        assert_int_equal(tensor_writer_copy(w, i, f, &f->entries[i], &err), 0);
    assert_int_equal(tensor_writer_commit(w, &err), 0);
    free(specs);
}

static void assert_text(const char *got, const char *want)
{
    assert_true(!got == !want);
    if (want)
        assert_string_equal(got, want);
}

/* A .ckpt keeps its source's root key, and with the metadata its counters; a safetensors file gets neither. */
static void test_torch_root(void **state)
{
    static const struct {
        const char *root, *to;
        bool no_metadata;
        const char *want_root, *want_epoch;
    } cases[] = {{"state_dict", "b.ckpt", false, "state_dict", "7"}, {"state_dict", "b.ckpt", true, "state_dict", NULL},
                 {"model", "b.ckpt", false, "model", "7"},           {NULL, "b.ckpt", false, NULL, NULL},
                 {"state_dict", "b.safetensors", false, NULL, NULL}};
    struct names_golden g = names_golden_read("sd1");
    char from[256], to[256];

    (void)state;
    names_golden_write(&g, ldm, NULL);
    snprintf(from, sizeof from, "%s", scratch_path(folder, "a.ckpt"));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct model_write_options o = {.layout = MODEL_LDM, .no_metadata = cases[i].no_metadata};
        struct model *m = open_ok(ldm), *b;

        write_torch(m, from, cases[i].root);
        model_close(m);
        snprintf(to, sizeof to, "%s", scratch_path(folder, cases[i].to));
        m = open_ok(from);
        write_ok(m, to, &o, NULL);
        b = open_ok(to);
        assert_text(tensor_file_metadata(b->file[0], TORCH_META_ROOT), cases[i].want_root);
        assert_text(tensor_file_metadata(b->file[0], TORCH_META_EPOCH), cases[i].want_epoch);
        assert_text(tensor_file_metadata(b->file[0], TORCH_META_STEP), cases[i].want_epoch ? "470000" : NULL);
        model_close(m), model_close(b);
    }
    free(g.line);
}

static void test_cast(void **state)
{
    struct names_golden g = names_golden_read("sd2");
    struct model_write_options o = {.layout = MODEL_LDM, .cast = true, .dtype = DT_F16};
    struct model_write_report r;
    struct model *m, *h;
    struct err err = {0};

    (void)state;
    names_golden_write(&g, ldm, NULL);
    m = open_ok(ldm);
    write_ok(m, half, &o, &r);
    assert_int_equal(r.tensors, m->source_count); /* the layout stays, so nothing is left out */
    assert_int_equal(r.left_out, 0);
    h = open_ok(half);
    for (size_t i = 0; i < m->source_count; i++) {
        const struct tensor_entry *x = m->source[i].entry, *y = tensor_file_find(h->file[0], x->name);
        size_t n = x->nbytes / 4;
        float *p = malloc(x->nbytes + 1);
        uint16_t *q = malloc(x->nbytes + 1);

        assert_true(y && y->dtype == DT_F16 && shape_equal(&x->shape, &y->shape));
        assert_int_equal(tensor_file_read(m->file[0], x, p, &err), 0);
        assert_int_equal(tensor_file_read(h->file[0], y, q, &err), 0);
        for (size_t k = 0; k < n; k++)
            assert_int_equal(q[k], dtype_f32_to_f16(p[k]));
        free(p), free(q);
    }
    model_close(h);
    o.layout = MODEL_DIFFUSERS;
    assert_int_equal(model_write(m, half, &o, NULL, &err), -1);
    assert_int_equal(err.kind, ERR_USAGE);
    o.dtype = DT_I64;
    assert_int_equal(model_write(m, half, &o, NULL, &err), -1);
    model_close(m);
    free(g.line);
}

/* Configs say what the shapes say. */
static void test_config(void **state)
{
    struct names_golden g = names_golden_read("sd1");
    struct model *m;
    json_t *c;

    (void)state;
    names_golden_write(&g, ldm, NULL);
    m = open_ok(ldm);
    c = diffusers_config(m, MODEL_UNET, 4);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(c, "block_out_channels"), 3)), 8);
    assert_string_equal(json_string_value(json_array_get(json_object_get(c, "down_block_types"), 3)), "DownBlock2D");
    assert_string_equal(json_string_value(json_array_get(json_object_get(c, "up_block_types"), 0)), "UpBlock2D");
    assert_int_equal(json_integer_value(json_object_get(c, "cross_attention_dim")), 6);
    assert_int_equal(json_integer_value(json_object_get(c, "layers_per_block")), 2);
    assert_int_equal(json_integer_value(json_object_get(c, "attention_head_dim")), 8);
    json_decref(c);
    c = diffusers_config(m, MODEL_VAE, 4);
    assert_int_equal(json_integer_value(json_object_get(c, "layers_per_block")), 2);
    assert_int_equal(json_integer_value(json_object_get(c, "latent_channels")), 4);
    json_decref(c);
    c = diffusers_config(m, MODEL_TEXT_ENCODER, 4);
    assert_int_equal(json_integer_value(json_object_get(c, "num_hidden_layers")), 12);
    assert_int_equal(json_integer_value(json_object_get(c, "intermediate_size")), 24);
    json_decref(c);
    model_close(m);
    free(g.line);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_cast), cmocka_unit_test(test_torch_root),
                                       cmocka_unit_test(test_config)};
    int rc;

    folder = scratch_new();
    snprintf(ldm, sizeof ldm, "%s/ldm.safetensors", folder);
    snprintf(again, sizeof again, "%s/again.safetensors", folder);
    snprintf(half, sizeof half, "%s/half.safetensors", folder);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(folder);
    return rc;
}

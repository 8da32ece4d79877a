/* formats/lora_file.c and its helpers: LoRA files as PEFT, diffusers and sd-scripts write them (golden/lora) */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/lora_file.h"
#include "formats/tensor_writer.h"
#include "ref/lora/target.h"
#include "tests/lib/names_golden.h"
#include "tests/lib/scratch.h"

static const char *folder;

struct row { /* a module as PEFT has it */
    char config[16], path[200];
    enum model_part part;
    size_t out, in, kh, kw, rank;
    double scale;
};

static struct row rows[400];
static size_t row_count;

static enum model_part part_named(const char *s)
{
    return strcmp(s, "unet") == 0 ? MODEL_UNET : MODEL_TEXT_ENCODER;
}

static int read_rows(void **state)
{
    FILE *in = fopen("golden/lora/modules.txt", "r");
    char line[512], part[8];

    (void)state;
    assert_non_null(in);
    while (fgets(line, sizeof line, in)) {
        struct row *r = &rows[row_count];

        if (sscanf(line, "%15s %7s %199s %zu %zu %zu %zu %zu %lf", r->config, part, r->path, &r->out, &r->in, &r->kh, &r->kw,
                   &r->rank, &r->scale) == 9) {
            r->part = part_named(part);
            row_count++;
        }
    }
    fclose(in);
    assert_true(row_count > 80);
    return 0;
}

static struct lora_file *open_ok(const char *path)
{
    struct lora_file *f;
    struct err err = {0};

    if (lora_file_open(&f, path, &err) != 0)
        fail_msg("%s", err.msg);
    return f;
}

static void check_values(const char *path, const char *role, const float *got, size_t n)
{
    char name[256];
    float *want;

    snprintf(name, sizeof name, "%s.%s", path, role);
    want = names_golden_values(name, n);
    assert_memory_equal(got, want, n * sizeof *got);
    free(want);
}

/* Compares what the file has with the rows of a config; scales unless only_rank. Returns how many modules were found. */
static size_t check_file(const struct lora_file *f, const char *config, bool only_rank)
{
    size_t found = 0;
    struct err err = {0};

    for (size_t i = 0; i < row_count; i++) {
        const struct row *r = &rows[i];
        const struct lora_module *m = lora_file_find(f, r->part, r->path);
        float *up, *down;
        size_t n_up = r->out * r->rank, n_down = r->rank * r->in * r->kh * r->kw;

        if (strcmp(r->config, config) != 0 || !m)
            continue;
        assert_true(m->out == r->out && m->in == r->in && m->kh == r->kh && m->kw == r->kw && m->rank == r->rank);
        /* two roundings (a square root and a product) at most between PEFT's scale and ours */
        if (fabs(m->alpha / (double)m->rank - (only_rank ? 1 : r->scale)) > 1e-15 * 4)
            fail_msg("%s: scale %.17g, PEFT has %.17g", r->path, m->alpha / (double)m->rank, r->scale);
        up = malloc(n_up * sizeof *up), down = malloc(n_down * sizeof *down);
        assert_int_equal(lora_module_read_f32(m, up, down, &err), 0);
        check_values(r->path, "up", up, n_up);
        check_values(r->path, "down", down, n_down);
        free(up), free(down);
        found++;
    }
    assert_int_equal(found, f->count);
    assert_int_equal(f->unknown_count, 0);
    return found;
}

static void test_layouts(void **state)
{
    static const struct {
        const char *path, *config;
        enum lora_layout layout;
        bool only_rank; /* the layout has no alpha, or this writer puts the rank there */
        size_t modules; /* as the generator attaches them; LDM names only for attention and two samplers */
    } file[] = {
        {"golden/lora/diffusers.safetensors", "plain", LORA_DIFFUSERS, false, 91},
        {"golden/lora/kohya_by_diffusers.safetensors", "plain", LORA_KOHYA, true, 91},
        {"golden/lora/diffusers_old.safetensors", "plain", LORA_DIFFUSERS_OLD, true, 40},
        {"golden/lora/peft", "plain", LORA_PEFT, false, 91},
        {"golden/lora/peft/unet", "plain", LORA_PEFT, false, 79},
        {"golden/lora/peft_rslora", "rslora", LORA_PEFT, false, 48},
        {"golden/lora/comfy.safetensors", "plain", LORA_COMFY, true, 50},
        {"golden/lora/kohya_ldm.safetensors", "plain", LORA_KOHYA_LDM, true, 50},
    };

    (void)state;
    for (size_t i = 0; i < sizeof file / sizeof file[0]; i++) {
        struct lora_file *f = open_ok(file[i].path);

        if (f->layout != file[i].layout)
            fail_msg("%s: %s", file[i].path, lora_layout_name(f->layout));
        assert_int_equal(check_file(f, file[i].config, file[i].only_rank), file[i].modules);
        lora_file_close(f);
    }
}

/* sd-scripts' own file: its alphas, and its choice of modules is ours. */
static void test_kohya(void **state)
{
    struct lora_file *f = open_ok("golden/lora/kohya.safetensors");
    FILE *in = fopen("golden/lora/modules.txt", "r");
    char line[512], part[8], name[200], dims[64], key[256], text[200];
    size_t targets = 0, ours = 0;

    (void)state;
    for (size_t i = 0; i < f->count; i++) {
        const struct lora_module *m = &f->module[i];
        bool conv = target_of_path(m->part, m->path, strlen(m->path)) == TARGET_CONV;

        assert_int_equal(m->rank, conv ? 3 : 2);
        assert_true(m->alpha == (conv ? 1.5 : 3) && m->has_alpha);
        assert_true(m->kh == m->kw && m->kh == (conv ? 3 : 1));
    }
    while (fgets(line, sizeof line, in)) {
        struct shape s = {0, {0}};
        struct target t;

        if (sscanf(line, "target %199s", name) == 1)
            targets++;
        if (sscanf(line, "weight %7s %199s %63s", part, name, dims) != 3)
            continue;
        for (char *p = strtok(dims, "x"); p; p = strtok(NULL, "x"))
            s.dim[s.ndim++] = strtoul(p, NULL, 10);
        if (target_of(part_named(part), name, &s, &t) == TARGET_NONE)
            continue;
        ours++;
        name[t.path_length] = 0;
        assert_non_null(target_kohya_key(part_named(part), name, key, sizeof key));
        if (!lora_file_find(f, part_named(part), name))
            fail_msg("sd-scripts does not target %s", name);
    }
    fclose(in);
    assert_int_equal(targets, ours);
    assert_int_equal(f->count, targets);
    assert_string_equal(lora_kind_text(f, text, sizeof text),
                        "LoRA (kohya layout), rank 2 to 3, f32, 79 U-Net and 12 text encoder modules");
    lora_file_close(f);
}

struct spec { /* one tensor of a made-up file */
    const char *name;
    struct shape shape;
    float value;
};

static const char *file_of(const struct spec *s, size_t n)
{
    const char *path = scratch_path(folder, "x.safetensors");
    struct tensor_spec specs[600];
    struct tensor_writer *w;
    struct err err = {0};

    for (size_t i = 0; i < n; i++)
        specs[i] = (struct tensor_spec){s[i].name, DT_F32, s[i].shape};
    assert_int_equal(tensor_writer_open(&w, path, NULL, specs, n, NULL, 0, &err), 0);
    for (size_t i = 0; i < n; i++) {
        size_t count;
        float *v;

        assert_true(shape_numel(&s[i].shape, &count));
        v = malloc((count + 1) * sizeof *v);
        for (size_t k = 0; k < count; k++)
            v[k] = s[i].value + (float)k;
        assert_int_equal(tensor_writer_put(w, i, v, &err), 0);
        free(v);
    }
    assert_int_equal(tensor_writer_commit(w, &err), 0);
    return path;
}

static void expect_error(const struct spec *s, size_t n, const char *what)
{
    struct lora_file *f;
    struct err err = {0};

    assert_int_equal(lora_file_open(&f, file_of(s, n), &err), -1);
    assert_null(f);
    if (!strstr(err.msg, what))
        fail_msg("'%s' is not in: %s", what, err.msg);
}

#define S(...) {__VA_ARGS__}
#define EXPECT(what, ...)                                              \
    do {                                                               \
        const struct spec s_[] = {__VA_ARGS__};                        \
        expect_error(s_, sizeof s_ / sizeof s_[0], what);              \
    } while (0)
#define KEY "lora_unet_mid_block_attentions_0_proj_in"

static void test_refused(void **state)
{
    const struct shape v = shape_of(1, 1), m22 = shape_of(2, 2, 2), m34 = shape_of(2, 3, 4);

    (void)state;
    EXPECT("LoHa", S(KEY ".hada_w1_a", m22, 0));
    EXPECT("LoKr", S(KEY ".lokr_w1", m22, 0));
    EXPECT("DoRA", S(KEY ".lora_down.weight", m22, 0), S(KEY ".lora_up.weight", m22, 0), S(KEY ".dora_scale", v, 0));
    EXPECT("full differences", S(KEY ".diff", m22, 0));
    EXPECT("SDXL", S("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", m22, 0));
    EXPECT("SDXL", S("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", shape_of(2, 1, 2048), 0),
           S("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight", shape_of(2, 8, 1), 0));
    EXPECT("Flux", S("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", m22, 0));
    EXPECT("lacks its lora_up", S(KEY ".lora_down.weight", m22, 0));
    EXPECT("do not fit together", S(KEY ".lora_down.weight", m34, 0), S(KEY ".lora_up.weight", m34, 0));
    EXPECT("alpha is not one number", S(KEY ".lora_down.weight", m22, 0), S(KEY ".lora_up.weight", m22, 0), S(KEY ".alpha", m22, 0));
    EXPECT("alpha is not a finite number", S(KEY ".lora_down.weight", m22, 0), S(KEY ".lora_up.weight", m22, 0),
           S(KEY ".alpha", v, NAN));
    EXPECT("are the same factor", S(KEY ".lora_down.weight", m22, 0), S(KEY ".lora_up.weight", m22, 0),
           S("unet.mid_block.attentions.0.proj_in.lora_A.weight", m22, 0));
    EXPECT("none of its 1 LoRA modules", S("lora_unet_nothing.lora_down.weight", m22, 0), S("lora_unet_nothing.lora_up.weight", m22, 0));
    EXPECT("no tensor in it", S("down_blocks.0.resnets.0.conv1.weight", m22, 0));
    EXPECT("no number of modules known here", S("unet:0:up", m22, 0), S("unet:0:down", m22, 0));
}

static void test_unknown_and_nan(void **state)
{
    const struct shape m22 = shape_of(2, 2, 2), c33 = shape_of(4, 2, 2, 3, 3);
    const struct spec s[] = {
        {KEY ".lora_down.weight", m22, NAN},
        {KEY ".lora_up.weight", m22, 0},
        {"lora_unet_odd.lora_down.weight", m22, 0},
        {"lora_unet_odd.lora_up.weight", m22, 0},
        {"lora_unet_mid_block_resnets_0_conv1.lora_down.weight", m22, 1},
        {"lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", c33, 10},
        {"lora_unet_mid_block_resnets_0_conv1.lora_up.weight", m22, 0},
    };
    struct lora_file *f = open_ok(file_of(s, sizeof s / sizeof s[0]));
    const struct lora_module *m = lora_file_find(f, MODEL_UNET, "mid_block.attentions.0.proj_in");
    float up[4], down[36];
    struct err err = {0};

    (void)state;
    assert_int_equal(f->unknown_count, 1);
    assert_string_equal(f->unknown[0], "odd");
    assert_int_equal(lora_module_read_f32(m, up, down, &err), -1);
    assert_non_null(strstr(err.msg, "NaN"));
    m = lora_file_find(f, MODEL_UNET, "mid_block.resnets.0.conv1");
    assert_true(m->kh == 3 && m->rank == 2 && m->in == 2 && m->mid.entry);
    assert_int_equal(lora_module_read_f32(m, up, down, &err), 0);
    /* mid [r, j, q] = 10 + 18 r + 9 j + q, down [j, c] = 1 + 2 j + c: integers, so f32 is exact */
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 2; c++)
            for (int q = 0; q < 9; q++)
                assert_true(down[(r * 2 + c) * 9 + q] ==
                            (float)((10 + 18 * r + q) * (1 + c) + (10 + 18 * r + 9 + q) * (3 + c)));
    lora_file_close(f);
}

/* cloneofsimo: 144 U-Net pairs in order; the feed-forward layer tells which of the two orders it is. */
static void test_ordered(void **state)
{
    static char names[288][24];
    struct spec s[288];

    (void)state;
    for (int late = 0; late < 2; late++) {
        struct lora_file *f;

        for (size_t i = 0; i < 288; i++) {
            bool wide = i / 2 % 9 == (late ? 8 : 4);

            snprintf(names[i], sizeof names[i], "unet:%zu:%s", i / 2, i % 2 ? "down" : "up");
            s[i] = (struct spec){names[i], i % 2 ? shape_of(2, 1, 3) : shape_of(2, wide ? 24 : 3, 1), (float)(i / 2)};
        }
        f = open_ok(file_of(s, 288));
        assert_int_equal(f->layout, LORA_CLONEOFSIMO);
        assert_int_equal(f->count, 144);
        for (size_t i = 0; i < f->count; i++)
            assert_int_equal(f->module[i].out, strstr(f->module[i].path, ".ff.") ? 24 : 3);
        assert_non_null(lora_file_find(f, MODEL_UNET, "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"));
        assert_non_null(lora_file_find(f, MODEL_UNET, "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_q"));
        lora_file_close(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts), cmocka_unit_test(test_kohya),   cmocka_unit_test(test_refused),
        cmocka_unit_test(test_unknown_and_nan), cmocka_unit_test(test_ordered),
    };
    int rc;

    folder = scratch_new();
    rc = cmocka_run_group_tests(tests, read_rows, NULL);
    scratch_remove(folder);
    return rc;
}

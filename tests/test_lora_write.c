/* formats/lora_write.c and lora_spell.c: the files of golden/lora written again, folding, refusals, hashes */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/hash.h"
#include "formats/lora_inside.h"
#include "formats/tensor_writer.h"
#include "tests/lib/scratch.h"

static const char *folder;

/* by golden/make_lora_hash.py */
#define ORACLE_MODEL_HASH "1644383dc7298384c49bf20265f74bd8e3b4d96e2fbf7f1d0d3fea5c62abaaa7"
#define ORACLE_LEGACY_HASH "dc6adae9"

static struct lora_file *open_ok(const char *path)
{
    struct lora_file *f;
    struct err err = {0};

    if (lora_file_open(&f, path, &err) != 0)
        fail_msg("%s", err.msg);
    return f;
}

/* A whole file in memory. */

struct loaded {
    struct lora_out *m;
    size_t n;
};

static struct loaded load(const struct lora_file *f)
{
    struct loaded l = {calloc(f->count, sizeof *l.m), f->count};
    struct err err = {0};

    for (size_t i = 0; i < f->count; i++) {
        const struct lora_module *m = &f->module[i];
        float *up = malloc(m->out * m->rank * sizeof *up), *down = malloc(m->rank * m->in * m->kh * m->kw * sizeof *down);

        assert_int_equal(lora_module_read_f32(m, up, down, &err), 0);
        l.m[i] = (struct lora_out){m->part,  m->path, m->rank, m->out, m->in, m->kh,
                                   m->kw,    m->down.entry->shape.ndim == 4, m->alpha, m->has_alpha, DT_F32, up,
                                   down};
    }
    return l;
}

static void unload(struct loaded *l)
{
    for (size_t i = 0; i < l->n; i++)
        free((void *)l->m[i].up), free((void *)l->m[i].down);
    free(l->m);
}

static void write_ok(const char *path, const struct loaded *l, enum lora_layout layout, struct lora_write_report *report)
{
    static const struct metadata_item ss[] = {{"ss_x", "1"}, {"sshs_model_hash", "stale"}, {"lora_adapter_metadata", "{}"}};
    struct lora_write_options o = {.layout = layout, .dtype = DT_F32, .metadata = ss, .n_metadata = 3};
    struct err err = {0};

    if (lora_file_write(path, l->m, l->n, &o, report, &err) != 0)
        fail_msg("%s", err.msg);
}

/* diffusers' words for factors as PEFT's, which its loader reads in any file (formats/lora_spell.c). */
static const char *peft_words(const char *name, char buf[300])
{
    static const char *const words[][2] = {{".lora.down.", ".lora_A."}, {".lora.up.", ".lora_B."},
                                           {".lora_linear_layer.down.", ".lora_A."}, {".lora_linear_layer.up.", ".lora_B."}};

    for (int i = 0; i < 4; i++) {
        const char *at = strstr(name, words[i][0]);

        if (at) {
            snprintf(buf, 300, "%.*s%s%s", (int)(at - name), name, words[i][1], at + strlen(words[i][0]));
            return buf;
        }
    }
    return name;
}

/* Same names, types, shapes and bytes. */
static void check_same_tensors(const char *path, const char *oracle)
{
    struct tensor_file *a, *b;
    struct err err = {0};

    assert_int_equal(tensor_file_open(&a, path, &err), 0);
    assert_int_equal(tensor_file_open(&b, oracle, &err), 0);
    for (size_t i = 0; i < b->count; i++) {
        char buf[300];
        const struct tensor_entry *want = &b->entries[i], *got = tensor_file_find(a, peft_words(want->name, buf));
        unsigned char *x = malloc(want->nbytes + 1), *y = malloc(want->nbytes + 1);

        if (!got)
            fail_msg("%s lacks %s", path, want->name);
        if (!shape_equal(&got->shape, &want->shape) || got->dtype != want->dtype)
            fail_msg("%s: %s has another shape or type", path, want->name);
        assert_int_equal(tensor_file_read(a, got, x, &err), 0);
        assert_int_equal(tensor_file_read(b, want, y, &err), 0);
        assert_memory_equal(x, y, want->nbytes);
        free(x), free(y);
    }
    assert_int_equal(a->count, b->count);
    assert_null(tensor_file_metadata(a, "lora_adapter_metadata"));
    tensor_file_close(a);
    tensor_file_close(b);
}

/* Same modules, scales and values. */
static void check_same_modules(const struct lora_file *a, const struct lora_file *b)
{
    struct loaded x = load(a), y = load(b);

    assert_int_equal(x.n, y.n);
    for (size_t i = 0; i < x.n; i++) {
        const struct lora_out *p = &x.m[i], *q = &y.m[i];

        assert_string_equal(p->path, q->path);
        assert_true(p->part == q->part && p->rank == q->rank && p->out == q->out && p->in == q->in && p->kh == q->kh &&
                    p->kw == q->kw && p->alpha == q->alpha);
        assert_memory_equal(p->up, q->up, p->out * p->rank * sizeof(float));
        assert_memory_equal(p->down, q->down, p->rank * p->in * p->kh * p->kw * sizeof(float));
    }
    unload(&x);
    unload(&y);
}

static void test_write_layouts(void **state)
{
    struct lora_file *f = open_ok("golden/lora/peft");
    struct loaded l = load(f);
    struct lora_write_report report;
    char path[256];
    struct lora_file *again;

    (void)state;
    for (size_t i = 0; i < l.n; i++) /* as a file without alpha, so that nothing is folded */
        l.m[i].has_alpha = false;
    strcpy(path, scratch_path(folder, "d.safetensors"));
    write_ok(path, &l, LORA_DIFFUSERS, &report);
    check_same_tensors(path, "golden/lora/diffusers.safetensors");
    assert_int_equal(report.folded, 0);
    for (size_t i = 0; i < l.n; i++)
        l.m[i].has_alpha = true;
    strcpy(path, scratch_path(folder, "peft"));
    write_ok(path, &l, LORA_PEFT, &report);
    check_same_tensors(scratch_path(path, "unet/adapter_model.safetensors"), "golden/lora/peft/unet/adapter_model.safetensors");
    check_same_tensors(scratch_path(path, "text_encoder/adapter_model.safetensors"),
                       "golden/lora/peft/text_encoder/adapter_model.safetensors");
    again = open_ok(path);
    check_same_modules(f, again);
    lora_file_close(again);
    unload(&l);
    lora_file_close(f);

    f = open_ok("golden/lora/kohya.safetensors");
    l = load(f);
    strcpy(path, scratch_path(folder, "k.safetensors"));
    write_ok(path, &l, LORA_KOHYA, &report);
    check_same_tensors(path, "golden/lora/kohya.safetensors");
    unload(&l);
    lora_file_close(f);

    f = open_ok("golden/lora/diffusers_old.safetensors");
    l = load(f);
    write_ok(path, &l, LORA_DIFFUSERS_OLD, &report);
    check_same_tensors(path, "golden/lora/diffusers_old.safetensors");
    unload(&l);
    lora_file_close(f);
}

/* alpha / rank goes into up where there is no alpha: exactly for a power of two, else rounded once. */
static void test_fold(void **state)
{
    static const double alphas[] = {1, 8, 3};
    const float up[] = {0.1f, -3, 7, 1e-3f, 0, 2, 5, 9}, down[] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct lora_out m = {MODEL_UNET, "mid_block.attentions.0.proj_in", 2, 4, 4, 1, 1, true, 0, true, DT_F32, up, down};
    char path[256];

    (void)state;
    strcpy(path, scratch_path(folder, "fold.safetensors"));
    for (int i = 0; i < 3; i++) {
        struct loaded l = {&m, 1};
        struct lora_write_report report;
        struct lora_file *f;
        struct err err = {0};
        float u[8], d[8];

        m.alpha = alphas[i];
        write_ok(path, &l, LORA_DIFFUSERS, &report);
        assert_int_equal(report.folded, 1);
        assert_int_equal(report.folded_inexact, alphas[i] == 3);
        f = open_ok(path);
        assert_true(f->count == 1 && f->module[0].alpha == 2);
        assert_int_equal(lora_module_read_f32(&f->module[0], u, d, &err), 0);
        for (int k = 0; k < 8; k++)
            assert_true(u[k] == (float)((double)up[k] * alphas[i] / 2) && d[k] == down[k]);
        lora_file_close(f);
    }
}

static void write_refused(const struct lora_out *m, size_t n, const char *name, enum lora_layout layout, enum dtype dtype,
                          const char *what)
{
    struct lora_write_options o = {.layout = layout, .dtype = dtype};
    struct err err = {0};

    assert_int_equal(lora_file_write(scratch_path(folder, name), m, n, &o, NULL, &err), -1);
    if (!strstr(err.msg, what))
        fail_msg("'%s' is not in: %s", what, err.msg);
}

static void test_write_refused(void **state)
{
    const float up[] = {1e30f, 1, 1, 1}, down[] = {1, 1, 1, 1};
    struct lora_out m = {MODEL_UNET, "mid_block.attentions.0.proj_in", 2, 2, 2, 1, 1, true, 2, true, DT_F32, up, down};
    struct lora_out twice[2] = {m, m};
    size_t before = scratch_count(folder);

    (void)state;
    write_refused(&m, 1, "r.safetensors", LORA_DIFFUSERS_OLD, DT_F32, "no place for the U-Net's 'mid_block.attentions.0.proj_in'");
    write_refused(&m, 1, "r.safetensors", LORA_CLONEOFSIMO, DT_F32, "exactly the layers");
    write_refused(&m, 1, "r.safetensors", LORA_KOHYA, DT_F16, "too large for f16");
    write_refused(&m, 1, "r.ckpt", LORA_DIFFUSERS, DT_F32, "change the ending");
    write_refused(&m, 0, "r.safetensors", LORA_KOHYA, DT_F32, "no modules");
    write_refused(twice, 2, "r.safetensors", LORA_KOHYA, DT_F32, "two modules");
    assert_int_equal(scratch_count(folder), before);
}

/* cloneofsimo's order survives a round trip. */
static void test_write_ordered(void **state)
{
    struct lora_out m[192];
    static char paths[192][NAMES_MAX];
    static float up[192], down[192];
    struct loaded l = {m, 192};
    struct lora_write_report report;
    char path[256];
    struct lora_file *f;

    (void)state;
    for (size_t i = 0; i < 192; i++) {
        bool unet = i < 144;

        assert_true(lora_order_path(unet ? MODEL_UNET : MODEL_TEXT_ENCODER, unet ? 144 : 48, unet ? i : i - 144, false, paths[i]));
        up[i] = (float)i, down[i] = (float)i + 0.5f;
        m[i] = (struct lora_out){unet ? MODEL_UNET : MODEL_TEXT_ENCODER, paths[i], 1, 1, 1, 1, 1, false, 1, false, DT_F32, &up[i], &down[i]};
    }
    strcpy(path, scratch_path(folder, "c.safetensors"));
    write_ok(path, &l, LORA_CLONEOFSIMO, &report);
    f = open_ok(path);
    assert_int_equal(f->count, 192);
    assert_non_null(tensor_file_metadata(f->file[0], "unet:143:rank"));
    lora_file_close(f);
    /* all factors are 1x1 here, so the reader takes the later of the two orders: compare by the file's own names */
    {
        struct tensor_file *t;
        struct err err = {0};
        float got[2];

        assert_int_equal(tensor_file_open(&t, path, &err), 0);
        assert_int_equal(tensor_file_read(t, tensor_file_find(t, "unet:4:up"), &got[0], &err), 0);
        assert_int_equal(tensor_file_read(t, tensor_file_find(t, "text_encoder:3:down"), &got[1], &err), 0);
        assert_string_equal(paths[(size_t)got[0]], "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj");
        assert_true(got[1] == 147.5f);
        tensor_file_close(t);
    }
}

/* sshs_model_hash is that of the bytes behind the header; both equal what sd-scripts' formula gives for the file below,
 * computed with safetensors.torch.save and hashlib in golden/make_lora_hash.py. */
static void test_hashes(void **state)
{
    static float up[320 * 800], down[320 * 800];
    struct lora_out m[2] = {
        {MODEL_UNET, "mid_block.attentions.0.proj_in", 320, 800, 800, 1, 1, true, 320, true, DT_F32, up, down},
        {MODEL_UNET, "mid_block.attentions.0.proj_out", 320, 800, 800, 1, 1, true, 1.5, true, DT_F32, down, up},
    };
    static const struct metadata_item ss[] = {{"ss_note", "a \"b\" \n c"}, {"modelspec.title", "t"}};
    struct lora_write_options o = {.layout = LORA_KOHYA, .dtype = DT_F16, .metadata = ss, .n_metadata = 2};
    struct lora_write_report report;
    struct err err = {0};
    struct tensor_file *f;
    char path[256], hash[SHA256_TEXT], legacy[HASH_LEGACY_TEXT];

    (void)state;
    for (size_t i = 0; i < sizeof up / sizeof *up; i++)
        up[i] = (float)(i % 1000) / 8, down[i] = -(float)(i % 777) / 4;
    strcpy(path, scratch_path(folder, "h.safetensors"));
    assert_int_equal(lora_file_write(path, m, 2, &o, &report, &err), 0);
    assert_true(report.legacy_hash);
    assert_int_equal(tensor_file_open(&f, path, &err), 0);
    assert_int_equal(hash_behind_header(f, hash, &err), 0);
    assert_string_equal(tensor_file_metadata(f, "sshs_model_hash"), hash);
    assert_string_equal(tensor_file_metadata(f, "sshs_model_hash"), ORACLE_MODEL_HASH);
    assert_string_equal(tensor_file_metadata(f, "sshs_legacy_hash"), ORACLE_LEGACY_HASH);
    assert_string_equal(tensor_file_metadata(f, "modelspec.title"), "t");
    assert_int_equal(hash_legacy_lora(f, legacy, &err), 1); /* found again beside all the other metadata */
    assert_string_equal(legacy, ORACLE_LEGACY_HASH);
    tensor_file_close(f);
    o.no_metadata = true;
    assert_int_equal(lora_file_write(path, m, 2, &o, &report, &err), 0);
    assert_int_equal(tensor_file_open(&f, path, &err), 0);
    assert_int_equal(f->metadata_count, 0);
    assert_int_equal(hash_legacy_lora(f, legacy, &err), 0);
    tensor_file_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_layouts), cmocka_unit_test(test_fold),   cmocka_unit_test(test_write_refused),
        cmocka_unit_test(test_write_ordered), cmocka_unit_test(test_hashes),
    };
    int rc;

    folder = scratch_new();
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(folder);
    return rc;
}

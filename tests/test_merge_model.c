/* lora merge and lora resize on tiny models, against torch, diffusers and sd-scripts' own name converters */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/command.h"
#include "formats/lora_file.h"
#include "formats/tensor_writer.h"
#include "ref/base/thread.h"
#include "ref/lora/target.h"
#include "tests/lib/golden.h"
#include "tests/lib/scratch.h"

#define G "golden/merge_model/"

static const char *folder;

static char said[65536]; /* by the last run, on stderr */

/* Runs the program with these arguments (NULL at the end). Returns the exit status. */
static int lora(const char *first, ...)
{
    char *argv[40] = {(char *)"lora", (char *)first}, *text;
    int argc = 2, out = dup(1), err = dup(2), status;
    size_t n;
    va_list ap;

    va_start(ap, first);
    while ((argv[argc] = va_arg(ap, char *)))
        argc++;
    va_end(ap);
    fflush(stdout);
    fflush(stderr);
    assert_non_null(freopen("/dev/null", "w", stdout));
    assert_non_null(freopen(scratch_path(folder, "stderr"), "w", stderr));
    status = command_main(argc, argv);
    fflush(stdout);
    fflush(stderr);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    text = (char *)scratch_read(scratch_path(folder, "stderr"), &n);
    snprintf(said, sizeof said, "%s", text);
    free(text);
    return status;
}

static struct tensor_file *open_file(const char *path)
{
    struct tensor_file *f;
    struct err e;

    if (tensor_file_open(&f, path, &e))
        fail_msg("%s", e.msg);
    return f;
}

static char *scratch(const char *name)
{
    char *path = strdup(scratch_path(folder, name));

    assert_non_null(path);
    return path;
}

static void *read_all(const struct tensor_file *f, const struct tensor_entry *e)
{
    void *data = malloc(e->nbytes + 1);
    struct err err;

    if (tensor_file_read(f, e, data, &err))
        fail_msg("%s", err.msg);
    return data;
}

static float *read_f32(const struct tensor_file *f, const struct tensor_entry *e, size_t *n)
{
    void *raw = read_all(f, e);
    float *x;

    assert_true(shape_numel(&e->shape, n));
    x = malloc((*n + 1) * sizeof *x);
    dtype_convert(x, DT_F32, raw, e->dtype, *n);
    free(raw);
    return x;
}

/* merged must hold exactly the tensors of base, of the same names and shapes: those in `want` (torch, float64 stored as f32)
 * within half a unit of their type and the sums' f32 error, all others byte for byte (in type `to`, DT_COUNT: their own). */
static void check_merged(const char *merged, const char *base, const char *want, enum dtype to)
{
    struct tensor_file *m = open_file(merged), *b = open_file(base), *w = want ? open_file(want) : NULL;
    size_t changed = 0;

    assert_int_equal(m->count, b->count);
    for (size_t i = 0; i < b->count; i++) {
        const struct tensor_entry *e = &b->entries[i], *x = tensor_file_find(m, e->name),
                                  *y = w ? tensor_file_find(w, e->name) : NULL;
        enum dtype type = to != DT_COUNT && dtype_is_float(e->dtype) ? to : e->dtype;

        if (!x)
            fail_msg("'%s' is missing in the merged file", e->name);
        assert_int_equal(x->dtype, type);
        assert_true(shape_equal(&x->shape, &e->shape));
        if (!y) {
            void *p = read_all(m, x), *q = read_all(b, e), *r = malloc(x->nbytes + 1);

            if (type != e->dtype)
                dtype_convert(r, type, q, e->dtype, x->nbytes / dtype_size(type));
            else
                memcpy(r, q, x->nbytes);
            if (memcmp(p, r, x->nbytes) != 0)
                fail_msg("'%s' should not have changed", e->name);
            free(p);
            free(q);
            free(r);
        } else {
            size_t n;
            float *p = read_f32(m, x, &n), *q = read_f32(w, y, &n);
            /* Sums of at most 9 ranks of products below 1: 11 roundings of numbers below 2, and torch's stored as f32 */
            double half = type == DT_F16 ? 0x1p-11 : type == DT_BF16 ? 0x1p-8 : 0, sums = 12 * 0x1p-24 * 2;

            changed++;
            for (size_t j = 0; j < n; j++)
                if (fabs((double)p[j] - (double)q[j]) > half * fabs((double)q[j]) + 0x1p-25 + sums)
                    fail_msg("'%s'[%zu] is %.9g, torch has %.9g", e->name, j, (double)p[j], (double)q[j]);
            free(p);
            free(q);
        }
    }
    assert_int_equal(changed, w ? w->count : 0);
    tensor_file_close(m);
    tensor_file_close(b);
    tensor_file_close(w);
}

static void check_same_bytes(const char *a, const char *b)
{
    size_t n, m;
    unsigned char *x = scratch_read(a, &n), *y = scratch_read(b, &m);

    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

/* Three LoRAs of three ranks, two layouts, with and without alpha, with 3x3 convolutions; every container and type. */
static void test_sd1(void **state)
{
    char *p = scratch("m.safetensors"), *q = scratch("m.ckpt"), *r = scratch("one.safetensors");

    (void)state;
    assert_int_equal(lora("merge", "--sd_model", G "sd1.safetensors", "--models", G "a.safetensors", G "b.safetensors",
                          G "c.safetensors", "--ratios", "0.8", "-0.5", "0.3", "--save_to", p, "--threads", "2", NULL),
                     0);
    check_merged(p, G "sd1.safetensors", G "sd1_abc.safetensors", DT_COUNT);
    assert_int_equal(lora("merge", "--sd_model", G "sd1.safetensors", "--models", G "a.safetensors", G "b.safetensors",
                          G "c.safetensors", "--ratios", "0.8", "-0.5", "0.3", "--save_to", r, "--threads", "1", NULL),
                     0);
    check_same_bytes(p, r);
    assert_int_equal(lora("merge_lora.py", "--sd_model", G "sd1.safetensors", "--models", G "a.safetensors", G "b.safetensors",
                          G "c.safetensors", "--ratios", "0.8", "-0.5", "0.3", "--save_to", q, "--save_precision", "float",
                          NULL),
                     0);
    check_merged(q, G "sd1.safetensors", G "sd1_abc.safetensors", DT_F32);
    assert_int_equal(lora("merge", "--sd_model", G "sd1.safetensors", "--models", G "a.safetensors", G "b.safetensors",
                          G "c.safetensors", "--ratios", "0.8", "-0.5", "0.3", "--save_to", p, "--save_precision", "bf16",
                          NULL),
                     0);
    check_merged(p, G "sd1.safetensors", G "sd1_abc.safetensors", DT_BF16);
    /* and from a .ckpt back to safetensors: all its tensors are f32 now */
    assert_int_equal(lora("merge", "--sd_model", q, "--models", G "a.safetensors", G "b.safetensors", G "c.safetensors",
                          "--ratios", "0", "0", "0", "--save_to", p, NULL),
                     0);
    check_merged(p, q, NULL, DT_COUNT);
    free(p);
    free(q);
    free(r);
}

/* OpenCLIP's fused q, k, v; 2-D proj_in and proj_out; bf16 factors. */
static void test_sd2(void **state)
{
    char *p = scratch("m2.safetensors");

    (void)state;
    assert_int_equal(lora("merge", "--sd_model", G "sd2.safetensors", "--models", G "v2.safetensors", "--save_to", p, NULL), 0);
    check_merged(p, G "sd2.safetensors", G "sd2_v2.safetensors", DT_COUNT);
    free(p);
}

static void test_blocks(void **state)
{
    char *p = scratch("blocks.safetensors");

    (void)state;
    assert_int_equal(lora("merge", "--sd_model", G "sd1.safetensors", "--models", G "a.safetensors", "--ratios_te", "0.6",
                          "--ratios_unet", "0.8", "--lbw", "[0.5,0,1,0.25,0.75,0,1,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.1]",
                          "--save_to", p, NULL),
                     0);
    check_merged(p, G "sd1.safetensors", G "sd1_blocks.safetensors", DT_COUNT);
    free(p);
}

/* v0.3.0 with --precision fp16: every changed value as torch's, but where its product was summed in another order (which tips
 * a rounding: see test_merge.c); the rest of the models in fp16, what is no model of v0.3.0 as it was. */
static void test_v030(void **state)
{
    char *p = scratch("v030.safetensors");
    struct tensor_file *m, *w = open_file(G "sd1_v030_fp16.safetensors");
    size_t same = 0, all = 0;

    (void)state;
    assert_int_equal(lora("merge", "--compat", "v0.3.0", "--precision", "fp16", "--sd_model", G "sd1.safetensors", "--models",
                          G "b.safetensors", "--ratios", "0.7", "--save_to", p, NULL),
                     0);
    m = open_file(p);
    for (size_t i = 0; i < w->count; i++) {
        const struct tensor_entry *x = tensor_file_find(m, w->entries[i].name);
        size_t n;
        float *a, *b = read_f32(w, &w->entries[i], &n);

        assert_non_null(x);
        assert_int_equal(x->dtype, DT_F16);
        a = read_f32(m, x, &n);
        for (size_t j = 0; j < n; j++) {
            /* product, ratio * product, sum: three roundings that may each tip by a unit, of numbers below 2 */
            assert_true(fabs((double)a[j] - (double)b[j]) <= 3 * 0x1p-10 * fmax(fabs((double)b[j]), 0.05));
            same += a[j] == b[j];
        }
        all += n;
        free(a);
        free(b);
    }
    assert_true(same * 100 >= all * 99);
    assert_int_equal(tensor_file_find(m, "model_ema.decay")->dtype, DT_F32);
    tensor_file_close(m);
    tensor_file_close(w);
    free(p);
}

/* Out again: what is left is the rounding of two stores. */
static void test_undo(void **state)
{
    char *p = scratch("there.safetensors"), *q = scratch("back.safetensors");
    struct tensor_file *a, *b = open_file(G "sd1.safetensors");

    (void)state;
    assert_int_equal(lora("merge", "--sd_model", G "sd1.safetensors", "--models", G "a.safetensors", "--ratios", "0.8",
                          "--save_to", p, NULL),
                     0);
    assert_int_equal(
        lora("merge", "--undo", "--sd_model", p, "--models", G "a.safetensors", "--ratios", "0.8", "--save_to", q, NULL), 0);
    a = open_file(q);
    for (size_t i = 0; i < b->count; i++) {
        const struct tensor_entry *e = &b->entries[i];
        size_t n;
        float *x, *y;

        if (e->dtype != DT_F16)
            continue;
        x = read_f32(a, tensor_file_find(a, e->name), &n);
        y = read_f32(b, e, &n);
        for (size_t j = 0; j < n; j++) /* half a unit of numbers below 2, twice */
            assert_true(fabs((double)x[j] - (double)y[j]) <= 2 * 0x1p-11 * 2);
        free(x);
        free(y);
    }
    tensor_file_close(a);
    tensor_file_close(b);
    free(p);
    free(q);
}

/* ---- LoRA with LoRA ---- */

static struct lora_file *open_lora(const char *path)
{
    struct lora_file *f;
    struct err e;

    if (lora_file_open(&f, path, &e))
        fail_msg("%s", e.msg);
    return f;
}

/* scale * up @ down of a module, in f64 */
static double *dense(const struct lora_module *m)
{
    size_t in = m->in * m->kh * m->kw;
    float *up = malloc(m->out * m->rank * sizeof *up), *down = malloc(m->rank * in * sizeof *down);
    double *x = calloc(m->out * in, sizeof *x);
    struct err e;

    assert_int_equal(lora_module_read_f32(m, up, down, &e), 0);
    for (size_t i = 0; i < m->out; i++)
        for (size_t r = 0; r < m->rank; r++)
            for (size_t j = 0; j < in; j++)
                x[i * in + j] += m->alpha / (double)m->rank * (double)up[i * m->rank + r] * (double)down[r * in + j];
    free(up);
    free(down);
    return x;
}

/* Every module that the golden file knows: the distance from the exact sum is at most `most` times the least of rank 3 (0:
 * none) plus the rounding of f32 factors. */
static void check_sum(const char *path, double most, size_t rank)
{
    struct tensor_file *g = open_file(G "a_b_sum.safetensors");
    struct lora_file *f = open_lora(path);
    size_t found = 0;

    for (size_t i = 0; i < f->count; i++) {
        const struct lora_module *m = &f->module[i];
        char name[300];
        const struct tensor_entry *e;
        double *x, *want, *least, *norm, diff2 = 0;

        snprintf(name, sizeof name, "sum.%s", m->path);
        e = tensor_file_find(g, name);
        if (!e || m->part != MODEL_UNET)
            continue;
        found++;
        assert_int_equal(m->rank, rank);
        want = read_all(g, e);
        x = dense(m);
        snprintf(name, sizeof name, "least3.%s", m->path);
        least = read_all(g, tensor_file_find(g, name));
        snprintf(name, sizeof name, "norm.%s", m->path);
        norm = read_all(g, tensor_file_find(g, name));
        for (size_t j = 0; j < m->out * m->in; j++)
            diff2 += (x[j] - want[j]) * (x[j] - want[j]);
        /* 6 ranks, and each factor rounded to f32 once: (6 + 2) eps of the norm, times 2 for terms that cancel */
        if (sqrt(diff2) > most * *least + 16 * 0x1p-24 * *norm)
            fail_msg("%s: off by %g of %g, the least at rank 3 is %g", m->path, sqrt(diff2), *norm, *least);
        free(want);
        free(x);
        free(least);
        free(norm);
    }
    assert_int_equal(found, 32);
    lora_file_close(f);
    tensor_file_close(g);
}

static void test_loras(void **state)
{
    char *p = scratch("ab.safetensors"), *q = scratch("ab1.safetensors"), *r = scratch("ab.ckpt");
    char *t = scratch("ab3.safetensors");
    struct tensor_file *f;
    const char *tags;

    (void)state;
    assert_int_equal(lora("merge", "--models", G "a.safetensors", G "b.safetensors", "--ratios", "0.8", "-0.5", "--dim", "3",
                          "--save_precision", "float", "--save_to", p, "--threads", "2", NULL),
                     0);
    check_sum(p, 1 + 1e-3, 3);
    assert_int_equal(lora("merge", "--models", G "a.safetensors", G "b.safetensors", "--ratios", "0.8", "-0.5", "--dim", "3",
                          "--save_precision", "float", "--no_metadata", "--save_to", q, "--threads", "1", NULL),
                     0);
    assert_int_equal(lora("merge", "--models", G "a.safetensors", G "b.safetensors", "--ratios", "0.8", "-0.5", "--dim", "3",
                          "--save_precision", "float", "--no_metadata", "--save_to", t, "--threads", "3", NULL),
                     0);
    check_same_bytes(q, t);
    f = open_file(p);
    tags = tensor_file_metadata(f, "ss_tag_frequency");
    assert_non_null(tags);
    assert_non_null(strstr(tags, "\"red\":5"));
    assert_non_null(strstr(tags, "\"blue\":1"));
    assert_string_equal(tensor_file_metadata(f, "ss_v2"), "False");
    assert_string_equal(tensor_file_metadata(f, "ss_network_module"), "networks.lora");
    assert_string_equal(tensor_file_metadata(f, "ss_output_name"), "ab");
    assert_null(strstr(tensor_file_metadata(f, "ss_merge_recipe"), "golden/"));
    assert_string_not_equal(tensor_file_metadata(f, "sshs_model_hash"),
                            "0000000000000000000000000000000000000000000000000000000000000000");
    tensor_file_close(f);
    assert_int_equal(lora("merge", "--models", G "a.safetensors", G "b.safetensors", "--ratios", "0.8", "-0.5", "--method",
                          "concat", "--save_precision", "float", "--save_to", p, NULL),
                     0);
    check_sum(p, 0, 6);
    assert_int_equal(lora("merge", "--models", G "a.safetensors", G "b.safetensors", "--ratios", "0.8", "-0.5", "--dim", "3",
                          "--save_precision", "float", "--save_to", r, NULL),
                     0);
    check_sum(r, 1 + 1e-3, 3);
    free(p);
    free(q);
    free(r);
    free(t);
}

/* The same tensors with the same bits as torch's. */
static void test_loras_v030(void **state)
{
    char *p = scratch("v030.safetensors");
    struct tensor_file *f, *w = open_file(G "b_b2_v030.safetensors");

    (void)state;
    assert_int_equal(lora("merge", "--compat", "v0.3.0", "--models", G "b.safetensors", G "b2.safetensors", "--ratios", "0.8",
                          "-0.5", "--save_to", p, NULL),
                     0);
    f = open_file(p);
    assert_int_equal(f->count, w->count);
    for (size_t i = 0; i < w->count; i++) {
        const struct tensor_entry *e = tensor_file_find(f, w->entries[i].name);
        void *x, *y;

        assert_non_null(e);
        assert_true(shape_equal(&e->shape, &w->entries[i].shape));
        assert_int_equal(e->dtype, DT_F32);
        x = read_all(f, e);
        y = read_all(w, &w->entries[i]);
        assert_memory_equal(x, y, e->nbytes);
        free(x);
        free(y);
    }
    tensor_file_close(f);
    tensor_file_close(w);
    free(p);
}

static void test_resize(void **state)
{
    char *p = scratch("small.safetensors");
    struct tensor_file *g = open_file(G "a_sv.safetensors");
    struct lora_file *old = open_lora(G "a.safetensors");

    (void)state;
    for (int method = 0; method < 3; method++) {
        struct lora_file *f;

        if (method == 0)
            assert_int_equal(lora("resize", "--model", G "a.safetensors", "--new_rank", "2", "--save_precision", "float",
                                  "--save_to", p, NULL),
                             0);
        else
            assert_int_equal(lora("resize", "--model", G "a.safetensors", "--new_rank", "4", "--dynamic_method",
                                  method == 1 ? "sv_fro" : "sv_ratio", "--dynamic_param", method == 1 ? "0.9" : "2",
                                  "--save_precision", "float", "--save_to", p, NULL),
                             0);
        f = open_lora(p);
        assert_int_equal(f->count, old->count);
        for (size_t i = 0; i < f->count; i++) {
            const struct lora_module *m = &f->module[i], *o = &old->module[i];
            char key[300];
            const struct tensor_entry *e = tensor_file_find(g, target_kohya_key(o->part, o->path, key, sizeof key));
            double *s, *x = dense(m), *y = dense(o), total = 0, sum = 0, lost = 0, diff2 = 0;
            size_t n, rank = 0;

            assert_non_null(e);
            s = read_all(g, e);
            n = e->shape.dim[0];
            for (size_t k = 0; k < n; k++)
                total += s[k] * s[k];
            if (method == 0)
                rank = o->rank < 2 ? o->rank : 2;
            else if (method == 2)
                while (rank < o->rank && s[rank] * 2 > s[0])
                    rank++;
            else
                while (rank < o->rank && sqrt(sum / total) < 0.9) {
                    sum += s[rank] * s[rank];
                    rank++;
                }
            assert_int_equal(m->rank, rank);
            assert_true(fabs(m->alpha / (double)m->rank - o->alpha / (double)o->rank) < 1e-6);
            for (size_t k = n; k-- > rank;)
                lost += s[k] * s[k];
            for (size_t k = 0; k < m->out * m->in * m->kh * m->kw; k++)
                diff2 += (x[k] - y[k]) * (x[k] - y[k]);
            /* a is f16, its module's scale alpha / rank; the result is f32: 6 roundings of the norm */
            assert_true(sqrt(diff2) <= (sqrt(lost) * (1 + 1e-3) + 8 * 0x1p-24 * sqrt(total)) * o->alpha / (double)o->rank);
            free(s);
            free(x);
            free(y);
        }
        lora_file_close(f);
    }
    lora_file_close(old);
    tensor_file_close(g);
    free(p);
}

/* ---- What is refused: a message that says so, exit status, nothing written ---- */

static void refused(int status, int want, const char *text, const char *more, const char *path)
{
    if (status != want || !strstr(said, text) || (more && !strstr(said, more)))
        fail_msg("status %d, expected %d and '%s' ('%s'), said: %s", status, want, text, more ? more : "", said);
    assert_int_not_equal(access(path, F_OK), 0);
}

/* A copy of a file with element `at` of a tensor overwritten by a NaN. */
static char *with_nan(const char *path, const char *tensor, size_t at, const char *name)
{
    struct tensor_file *f = open_file(path);
    const struct tensor_entry *e = tensor_file_find(f, tensor);
    char *copy = scratch(name);
    unsigned char *data;
    size_t n;

    assert_non_null(e);
    data = scratch_read(path, &n);
    memset(data + e->offset + at * dtype_size(e->dtype), 0xff, dtype_size(e->dtype));
    scratch_write(copy, data, n);
    free(data);
    tensor_file_close(f);
    return copy;
}

static void test_refused(void **state)
{
    static const char down[] = "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight";
    static const char weight[] = "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight";
    char *out = scratch("never.safetensors"), *bad_lora = with_nan(G "a.safetensors", down, 3, "nan_lora.safetensors");
    char *bad_model = with_nan(G "sd1.safetensors", weight, 25, "nan_model.safetensors");
    const char *sd1 = G "sd1.safetensors", *sd2 = G "sd2.safetensors", *a = G "a.safetensors", *b = G "b.safetensors";

    (void)state;
    refused(lora("merge", "--sd_model", sd1, "--models", a, b, "--ratios", "1", "--save_to", out, NULL), 2,
            "--ratios has 1 value for 2 LoRAs", "one for each of --models", out);
    refused(lora("merge", "--sd_model", sd1, "--models", a, "--ratios_te", "1", "2", "--save_to", out, NULL), 2,
            "--ratios_te has 2 values for 1 LoRA", NULL, out);
    refused(lora("merge", "--sd_model", sd1, "--models", a, "--lbw", "1,2,3", "--save_to", out, NULL), 2, "--lbw '1,2,3'", NULL,
            out);
    refused(lora("merge", "--sd_model", sd1, "--models", a, "--lbw", "IN99=1", "--save_to", out, NULL), 2, "'IN99' is no block",
            NULL, out);
    refused(lora("merge", "--sd_model", sd1, "--models", a, "--lbw", "OUTSIDE", "--save_to", out, NULL), 2, "--lbw 'OUTSIDE'",
            "preset", out);
    refused(lora("merge", "--undo", "--models", a, "--save_to", out, NULL), 2, "--undo takes LoRAs out of a checkpoint", NULL,
            out);
    refused(lora("merge", "--sd_model", sd1, "--models", a, "--dim", "4", "--save_to", out, NULL), 2, "--dim", NULL, out);
    refused(lora("merge", "--v2", "--sd_model", sd1, "--models", a, "--save_to", out, NULL), 2, "sd1.safetensors", "--v2", out);
    refused(lora("merge", "--sd_model", sd2, "--models", a, "--save_to", out, NULL), 1, "a.safetensors",
            "use a LoRA made for this kind", out);
    refused(lora("merge", "--sd_model", sd1, "--models", G "v2.safetensors", "--save_to", out, NULL), 1, "v2.safetensors",
            "use a LoRA made for this kind", out);
    refused(lora("merge", "--models", a, G "v2.safetensors", "--save_to", out, NULL), 1, "v2.safetensors", "cannot become one",
            out);
    refused(lora("merge", "--sd_model", sd1, "--models", bad_lora, "--save_to", out, NULL), 1, "nan_lora.safetensors", down,
            out);
    refused(lora("merge", "--models", bad_lora, b, "--save_to", out, NULL), 1, "nan_lora.safetensors", down, out);
    refused(lora("merge", "--sd_model", bad_model, "--models", a, "--save_to", out, NULL), 1, "nan_model.safetensors",
            "layers.1.mlp.fc1.weight': the weight is not a finite number at row 1, column 1", out);
    refused(lora("merge", "--sd_model", sd1, "--models", sd1, "--save_to", out, NULL), 1, "sd1.safetensors", NULL, out);
    refused(lora("merge", "--sd_model", sd1, "--models", a, "--ratios", "1e6", "--save_to", out, NULL), 1,
            "does not fit in f16", "--save_precision", out);
    refused(lora("merge", "--method", "factors", "--models", a, b, "--save_to", out, NULL), 1,
            "factors of different ranks cannot be added", "--method best or concat", out);
    refused(lora("resize", "--model", a, "--dynamic_method", "sv_fro", "--save_to", out, NULL), 2, "needs --dynamic_param",
            NULL, out);
    refused(lora("resize", "--model", bad_lora, "--new_rank", "2", "--save_to", out, NULL), 1, "nan_lora.safetensors", down,
            out);
    free(out);
    free(bad_lora);
    free(bad_model);
}

/* Modules without a home: listed, refused, or left out when asked to. */
static void test_missing(void **state)
{
    char *unet = scratch("no_text.safetensors"), *out = scratch("never.safetensors"), *part = scratch("part.safetensors");
    struct tensor_file *f = open_file(G "sd1.safetensors"), *m;
    struct tensor_spec *specs = calloc(f->count, sizeof *specs);
    struct tensor_writer *w;
    struct err e;
    size_t n = 0;

    (void)state;
    for (size_t i = 0; i < f->count; i++)
        if (strncmp(f->entries[i].name, "cond_stage_model.", 17) != 0)
            specs[n++] = (struct tensor_spec){f->entries[i].name, f->entries[i].dtype, f->entries[i].shape};
    assert_int_equal(tensor_writer_open(&w, unet, NULL, specs, n, NULL, 0, &e), 0);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(tensor_writer_copy(w, i, f, tensor_file_find(f, specs[i].name), &e), 0);
    assert_int_equal(tensor_writer_commit(w, &e), 0);
    refused(lora("merge", "--sd_model", unet, "--models", G "a.safetensors", "--save_to", out, NULL), 1, "12 of 207 modules of",
            "text_model_encoder_layers_0_mlp_fc1' has no place", out);
    assert_int_equal(
        lora("merge", "--sd_model", unet, "--models", G "a.safetensors", "--ignore_missing", "--save_to", part, NULL), 0);
    m = open_file(part);
    assert_int_equal(m->count, n);
    tensor_file_close(m);
    tensor_file_close(f);
    free(specs);
    free(unet);
    free(out);
    free(part);
}

/* The output may be an input only when that is said. */
static void test_overwrite(void **state)
{
    char *model = scratch("model.safetensors");
    unsigned char *data;
    size_t n;

    (void)state;
    data = scratch_read(G "sd1.safetensors", &n);
    scratch_write(model, data, n);
    assert_int_equal(
        lora("merge", "--sd_model", model, "--models", G "a.safetensors", "--ratios", "0.8", "--save_to", model, NULL), 1);
    assert_non_null(strstr(said, "both an input and the output"));
    check_same_bytes(model, G "sd1.safetensors");
    assert_int_equal(lora("merge", "--sd_model", model, "--models", G "a.safetensors", G "b.safetensors", G "c.safetensors",
                          "--ratios", "0.8", "-0.5", "0.3", "--save_to", model, "--overwrite", NULL),
                     0);
    check_merged(model, G "sd1.safetensors", G "sd1_abc.safetensors", DT_COUNT);
    free(data);
    free(model);
}

static int setup(void **state)
{
    (void)state;
    folder = scratch_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sd1),        cmocka_unit_test(test_sd2),       cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_v030),       cmocka_unit_test(test_undo),      cmocka_unit_test(test_loras),
        cmocka_unit_test(test_loras_v030), cmocka_unit_test(test_resize),    cmocka_unit_test(test_refused),
        cmocka_unit_test(test_missing),    cmocka_unit_test(test_overwrite),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

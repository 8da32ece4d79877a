/* Weights: forms, types, in place or copied, holes, broken sources; the mapped source over a real file */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/model_weights.h"
#include "ref/model/clip.h"
#include "tests/lib/golden.h"
#include "tests/lib/scratch.h"

/* A source of a few tensors in memory. */
struct item {
    const char *name;
    struct weight_info info;
};

static const float conv[2 * 3 * 1 * 2] = {0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121}; /* [2, 3, 1, 2]: 100 o + 10 i + t */
static const double wide[3] = {0.5, -2, 1e30};
static const uint16_t halves[4] = {0x3c00, 0xc000, 0x0001, 0x7bff}; /* 1, -2, 2^-24, 65504 */
static const float matrix[4] = {1, 2, 3, 4};
static const int64_t numbers[2] = {1, 2};

static const struct item items[] = {
    {"conv.weight", {DT_F32, {4, {2, 3, 1, 2}}, conv, NULL}},
    {"wide", {DT_F64, {1, {3}}, wide, NULL}},
    {"half", {DT_F16, {1, {4}}, halves, NULL}},
    {"matrix.weight", {DT_F32, {2, {2, 2}}, matrix, NULL}},
    {"pointwise.weight", {DT_F32, {4, {2, 2, 1, 1}}, matrix, NULL}},
    {"read.weight", {DT_F32, {2, {2, 2}}, NULL, matrix}},
    {"numbers", {DT_I64, {1, {2}}, numbers, NULL}},
};

static int find(void *ctx, enum model_part part, const char *name, struct weight_info *out, struct err *err)
{
    if (strcmp(name, "trouble") == 0)
        return err_set(err, "the disk is gone");
    (void)ctx;
    for (size_t i = 0; part == MODEL_UNET && i < sizeof items / sizeof items[0]; i++)
        if (strcmp(items[i].name, name) == 0) {
            *out = items[i].info;
            return 1;
        }
    return 0;
}

static int read_item(void *ctx, const struct weight_info *w, void *dst, struct err *err)
{
    size_t bytes = 0;

    if (ctx)
        return err_set(err, "the disk is gone");
    shape_nbytes(&w->shape, w->dtype, &bytes);
    memcpy(dst, w->data ? w->data : w->handle, bytes);
    return 0;
}

static struct weights *open_weights(struct weight_source *s)
{
    struct err err = {0};
    struct weights *w;

    *s = (struct weight_source){"test.safetensors", NULL, find, read_item};
    assert_int_equal(weights_new(&w, s, &err), 0);
    return w;
}

static void test_forms(void **state)
{
    struct weight_source s;
    struct weights *w = open_weights(&s);
    struct err err = {0};
    const struct tensor *c = weights_conv(w, MODEL_UNET, "conv.weight", &err), *m = weights_matrix(w, MODEL_UNET, "matrix.weight", &err);
    const struct tensor *p = weights_matrix(w, MODEL_UNET, "pointwise.weight", &err), *r = weights_matrix(w, MODEL_UNET, "read.weight", &err);
    const struct tensor *d = weights_vector(w, MODEL_UNET, "wide", &err), *h = weights_vector(w, MODEL_UNET, "half", &err);
    const float repacked[] = {0, 10, 20, 1, 11, 21, 100, 110, 120, 101, 111, 121};
    size_t owned, mapped;

    (void)state;
    assert_true(c && m && p && r && d && h);
    assert_ptr_equal(weights_conv(w, MODEL_UNET, "conv.weight", &err), c); /* once, however often it is asked for */
    assert_null(m->data);
    assert_int_equal(weights_load(w, &err), 0);
    assert_true(shape_equal(&c->shape, &(struct shape){4, {2, 1, 2, 3}}));
    assert_memory_equal(c->data, repacked, sizeof repacked);
    assert_ptr_equal(m->data, matrix); /* in place */
    assert_ptr_equal(p->data, matrix);
    assert_true(shape_equal(&p->shape, &(struct shape){2, {2, 2}}));
    assert_memory_equal(r->data, matrix, sizeof matrix);
    assert_true(d->dtype == DT_F32 && ((float *)d->data)[1] == -2 && ((float *)d->data)[2] == 1e30f);
    assert_true(((float *)h->data)[0] == 1 && ((float *)h->data)[2] == 0x1p-24f && ((float *)h->data)[3] == 65504);
    weights_bytes(w, &owned, &mapped);
    assert_int_equal(mapped, 2 * sizeof matrix);
    assert_int_equal(owned, sizeof conv + sizeof matrix + 3 * 4 + 4 * 4);
    weights_release(w, MODEL_UNET);
    assert_null(c->data);
    assert_int_equal(weights_load(w, &err), 0);
    assert_memory_equal(c->data, repacked, sizeof repacked);
    weights_free(w);
}

static void test_errors(void **state)
{
    struct weight_source s;
    struct weights *w = open_weights(&s);
    struct err err = {0};

    (void)state;
    assert_null(weights_matrix(w, MODEL_VAE, "matrix.weight", &err));
    assert_string_equal(err.msg, "'test.safetensors': the VAE lacks tensor 'matrix.weight'; the file is incomplete or of another "
                                 "architecture");
    assert_null(weights_vector(w, MODEL_UNET, "matrix.weight", &err));
    assert_non_null(strstr(err.msg, "has shape [2, 2], which is not a vector"));
    assert_null(weights_vector(w, MODEL_UNET, "numbers", &err));
    assert_non_null(strstr(err.msg, "'numbers' of the U-Net is i64"));
    assert_non_null(weights_conv(w, MODEL_UNET, "conv.weight", &err));
    s.ctx = &s; /* reading fails from now on */
    assert_int_equal(weights_load(w, &err), -1);
    assert_string_equal(err.msg, "the disk is gone");
    assert_false(weights_has(w, MODEL_UNET, "trouble"));
    assert_null(weights_matrix(w, MODEL_UNET, "matrix.weight", &err)); /* the error of weights_has() is not lost */
    assert_string_equal(err.msg, "the disk is gone");
    weights_free(w);
}

/* The same tensors through a mapping and through reading, from a checkpoint as diffusers' oracle wrote it. */
static void test_model(void **state)
{
    struct err err = {0};
    struct model *m;
    struct model_weights *mapped, *read;
    struct weights *a, *b;
    size_t owned, in_place;

    (void)state;
    assert_int_equal(model_open(&m, "golden/convert/ldm.safetensors", &err), 0);
    assert_int_equal(model_weights_open(&mapped, m, true, &err), 0);
    assert_int_equal(model_weights_open(&read, m, false, &err), 0);
    assert_int_equal(weights_new(&a, model_weights_source(mapped), &err), 0);
    assert_int_equal(weights_new(&b, model_weights_source(read), &err), 0);
    for (int part = MODEL_UNET; part <= MODEL_VAE; part++)
        for (size_t i = m->part_first[part]; i < m->part_first[part + 1]; i++) {
            const struct model_tensor *t = &m->tensor[i];

            if (t->shape.ndim == 2) {
                assert_non_null(weights_matrix(a, t->part, t->name, &err));
                assert_non_null(weights_matrix(b, t->part, t->name, &err));
            }
        }
    assert_int_equal(weights_load(a, &err), 0);
    assert_int_equal(weights_load(b, &err), 0);
    for (int part = MODEL_UNET; part <= MODEL_VAE; part++)
        for (size_t i = m->part_first[part]; i < m->part_first[part + 1]; i++) {
            const struct model_tensor *t = &m->tensor[i];

            if (t->shape.ndim == 2)
                assert_memory_equal(weights_matrix(a, t->part, t->name, &err)->data, weights_matrix(b, t->part, t->name, &err)->data,
                                    t->nbytes);
        }
    weights_bytes(a, &owned, &in_place);
    assert_true(in_place > 0);
    weights_bytes(b, &owned, &in_place);
    assert_int_equal(in_place, 0);
    weights_free(a);
    weights_free(b);
    model_weights_close(mapped);
    model_weights_close(read);
    model_close(m);
}

/* clip_skip leaves layers out from the end and refuses to leave out all. */
static void test_clip_skip(void **state)
{
    struct err err = {0};
    struct model *m;
    struct model_weights *source;
    struct weights *w;
    size_t layers;

    (void)state;
    assert_int_equal(model_open(&m, "golden/convert/ldm.safetensors", &err), 0);
    assert_int_equal(model_weights_open(&source, m, true, &err), 0);
    assert_int_equal(weights_new(&w, model_weights_source(source), &err), 0);
    layers = m->text_layers;
    for (size_t skip = 0; skip <= layers + 1; skip++) {
        struct graph *g = graph_new(&err);
        struct layers l = {.g = g, .w = w, .part = MODEL_TEXT_ENCODER};
        struct clip_options o = {.heads = 1, .clip_skip = skip};
        struct clip clip;
        size_t attentions = 0;
        int rc = clip_build(&l, &o, 1, 5, &clip, &err);

        for (size_t i = 0; i < g->node_count; i++)
            attentions += g->nodes[i].op == OP_attention;
        if (skip > layers) {
            assert_int_equal(rc, -1);
            assert_non_null(strstr(err.msg, "leaves nothing of a text encoder"));
        } else {
            assert_int_equal(rc, 0);
            assert_int_equal(attentions, skip > 1 ? layers - skip + 1 : layers);
        }
        graph_free(g);
    }
    weights_free(w);
    model_weights_close(source);
    model_close(m);
}

/* Somebody cuts the file while it is mapped: no signal ends the program, what is lost reads as zeros, and the check tells, also
 * after the file was closed. */
static void test_cut_short(void **state)
{
    const char *folder = scratch_new();
    char path[300];
    struct err err = {0};
    struct model *m;
    struct model_weights *source, *other;
    const struct weight_source *door;
    unsigned char *bytes;
    size_t n, sum = 0;

    (void)state;
    snprintf(path, sizeof path, "%s", scratch_path(folder, "model.safetensors"));
    bytes = scratch_read("golden/convert/ldm.safetensors", &n);
    scratch_write(path, bytes, n);
    free(bytes);
    assert_int_equal(model_open(&m, path, &err), 0);
    assert_int_equal(model_weights_open(&source, m, true, &err), 0);
    assert_int_equal(model_weights_open(&other, m, true, &err), 0);
    assert_int_equal(model_weights_check(source, &err), 0);
    assert_int_equal(model_weights_check(NULL, &err), 0);
    assert_int_equal(truncate(path, (off_t)(n / 2)), 0);
    door = model_weights_source(source);
    for (int part = MODEL_UNET; part <= MODEL_VAE; part++)
        for (size_t i = m->part_first[part]; i < m->part_first[part + 1]; i++) {
            struct weight_info info;

            assert_int_equal(door->find(door->ctx, m->tensor[i].part, m->tensor[i].name, &info, &err), 1);
            for (size_t k = 0; info.data && k < m->tensor[i].nbytes; k++)
                sum += ((const unsigned char *)info.data)[k];
        }
    assert_true(sum > 0);
    assert_int_equal(model_weights_check(other, &err), 0);
    assert_int_equal(model_weights_check(source, &err), -1);
    assert_non_null(strstr(err.msg, "model.safetensors' was cut short by another program while it was in use"));
    model_weights_close(source);
    model_weights_close(other);
    assert_int_equal(model_weights_check(NULL, &err), -1);
    model_close(m);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut_short),
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_clip_skip),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Extraction end to end on small pairs: errors against torch's SVD, ranks, alpha, v0.3.0's numbers, bad input. */
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
#include <unistd.h>

#include "cmd/command.h"
#include "formats/lora_file.h"
#include "formats/model.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/lora/extract.h"
#include "ref/lora/target.h"
#include "tests/lib/scratch.h"

static void in_golden(const char *name, char *out, size_t size)
{
    snprintf(out, size, "golden/extract/%s", name);
}

static double *tensor_f64(const struct model *m, enum model_part part, const char *path, size_t *n)
{
    char name[NAMES_MAX];
    const struct model_tensor *t;
    struct err err = {0};
    void *raw;
    double *out;

    snprintf(name, sizeof name, "%s.weight", path);
    t = model_find(m, part, name);
    assert_non_null(t);
    assert_true(shape_numel(&t->shape, n));
    raw = malloc(t->nbytes);
    out = malloc(*n * sizeof *out);
    assert_int_equal(model_read(t, raw, &err), 0);
    dtype_convert(out, DT_F64, raw, t->dtype, *n);
    free(raw);
    return out;
}

/* ||D - alpha / rank up down||_F of one module */
static double module_error(const struct model *org, const struct model *tuned, const struct lora_module *m)
{
    size_t in = m->in * m->kh * m->kw, n, n2;
    double *a = tensor_f64(org, m->part, m->path, &n), *b = tensor_f64(tuned, m->part, m->path, &n2), sum = 0;
    float *up = malloc(m->out * m->rank * sizeof *up), *down = malloc(m->rank * in * sizeof *down);
    struct err err = {0};

    assert_true(n == m->out * in && n2 == n);
    assert_int_equal(lora_module_read_f32(m, up, down, &err), 0);
    for (size_t i = 0; i < m->out; i++)
        for (size_t j = 0; j < in; j++) {
            double d = b[i * in + j] - a[i * in + j];

            for (size_t r = 0; r < m->rank; r++)
                d -= m->alpha / (double)m->rank * (double)up[i * m->rank + r] * (double)down[r * in + j];
            sum += d * d;
        }
    free(a);
    free(b);
    free(up);
    free(down);
    return sqrt(sum);
}

static void check_module(const json_t *c, const struct model *org, const struct model *tuned, const struct lora_module *m,
                         const json_t *want)
{
    double total = json_real_value(json_array_get(want, 1)), least = sqrt(json_real_value(json_array_get(want, 2)));
    double error = module_error(org, tuned, m), floor = SVD_FLOOR * sqrt(total);
    bool exact = json_is_true(json_object_get(c, "exact")), compat = json_is_true(json_object_get(c, "compat"));
    double alpha = json_number_value(json_object_get(c, "alpha"));

    assert_int_equal((int)m->rank, (int)json_integer_value(json_array_get(want, 0)));
    assert_true(m->has_alpha == !compat);
    assert_true(m->alpha == (alpha > 0 ? alpha : (double)m->rank));
    if (compat) {
        /* The cut's error is far above the least; factors agree with LAPACK's f64 ones to eps sigma_1 / gap. Gaps of 0.3
         * sigma_1 between neighbours and 0.02 noise make that about 1e-6 ||D||; 20 times that for the worst gap. */
        if (fabs(error - least) > 2e-5 * sqrt(total))
            fail_msg("%s: error %.9g, v0.3.0's is %.9g", m->path, error, least);
    } else if (error > (1 + (exact ? SVD_TOLERANCE_EXACT : SVD_TOLERANCE)) * least + floor) {
        fail_msg("%s: error %.9g, least %.9g", m->path, error, least);
    }
    if (!compat) /* nobody does better than the least, or the test measures something else */
        assert_true(error >= least - floor);
}

static void check_case(const json_t *c, const char *folder)
{
    char org_path[256], tuned_path[256], out[256], *argv[32] = {(char *)"lora", (char *)"extract", (char *)"--quiet"};
    const json_t *modules = json_object_get(c, "modules"), *pair = json_object_get(c, "pair"), *arg, *want;
    struct model *org, *tuned;
    struct lora_file *lora;
    struct err err = {0};
    const char *key;
    size_t i, found = 0;
    int argc = 3;

    in_golden(json_string_value(json_array_get(pair, 0)), org_path, sizeof org_path);
    in_golden(json_string_value(json_array_get(pair, 1)), tuned_path, sizeof tuned_path);
    snprintf(out, sizeof out, "%s/lora.safetensors", folder);
    argv[argc++] = (char *)"--model_org";
    argv[argc++] = org_path;
    argv[argc++] = (char *)"--model_tuned";
    argv[argc++] = tuned_path;
    argv[argc++] = (char *)"--save_to";
    argv[argc++] = out;
    json_array_foreach((json_t *)json_object_get(c, "args"), i, arg)
        argv[argc++] = (char *)json_string_value(arg);
    if (command_main(argc, argv) != 0)
        fail_msg("%s failed", json_string_value(json_object_get(c, "name")));
    assert_int_equal(model_open(&org, org_path, &err), 0);
    assert_int_equal(model_open(&tuned, tuned_path, &err), 0);
    if (lora_file_open(&lora, out, &err) != 0)
        fail_msg("%s", err.msg);
    assert_int_equal(lora->unknown_count, 0);
    for (size_t m = 0; m < lora->count; m++) {
        char want_key[NAMES_MAX + 16];

        target_kohya_key(lora->module[m].part, lora->module[m].path, want_key, sizeof want_key);
        want = json_object_get(modules, want_key);
        if (!want)
            fail_msg("%s: '%s' should not be there", json_string_value(json_object_get(c, "name")), want_key);
        check_module(c, org, tuned, &lora->module[m], want);
        found++;
    }
    json_object_foreach((json_t *)modules, key, want)
        found--;
    assert_int_equal(found, 0); /* all of them, each once */
    lora_file_close(lora);
    model_close(org);
    model_close(tuned);
}

static json_t *cases(void)
{
    json_error_t e;
    json_t *root = json_load_file("golden/extract/cases.json", 0, &e);

    assert_non_null(root);
    return root;
}

static void test_cases(void **state)
{
    json_t *root = cases(), *c;
    const char *folder = scratch_new();
    size_t i;

    (void)state;
    json_array_foreach(json_object_get(root, "cases"), i, c)
        check_case(c, folder);
    assert_true(i >= 8);
    scratch_remove(folder);
    json_decref(root);
}

static void test_quantile(void **state)
{
    json_t *root = cases(), *q, *v;
    size_t i, j, n;

    (void)state;
    json_array_foreach(json_object_get(root, "quantiles"), i, q) {
        float x[1000], scratch[1000];
        double want = json_real_value(json_object_get(q, "value")), got;

        n = 0;
        json_array_foreach(json_object_get(q, "x"), j, v)
            x[n++] = (float)json_real_value(v);
        got = (double)extract_quantile(x, n / 3, x + n / 3, n - n / 3, json_real_value(json_object_get(q, "q")), scratch);
        /* one rounding to f32 of a value between two neighbours */
        assert_true(fabs(got - want) <= 1.2e-7 * fabs(want) + 1e-12);
    }
    assert_true(i >= 20);
    json_decref(root);
}

/* A weight in memory */
static int read_memory(const void *ctx, size_t first, size_t n, void *dst, struct err *err)
{
    (void)err;
    memcpy(dst, (const float *)ctx + first, n * sizeof(float));
    return 0;
}

static void test_module(void **state)
{
    float a[12] = {0}, b[12] = {0};
    struct extract_module m = {.out = 3, .in = 4, .rank = 99,
                               .org = {DT_F32, read_memory, a, "x.weight", "base.safetensors"},
                               .tuned = {DT_F32, read_memory, b, "x.weight", "tuned.safetensors"}};
    struct extract_options o = {0};
    struct extract_result r;
    struct err err = {0};
    struct extract_worker *w = extract_worker_new(&err);

    (void)state;
    assert_int_equal(extract_run(w, &m, &o, &r, &err), 0);
    assert_int_equal(r.rank, 0);
    o.keep_zero = true;
    assert_int_equal(extract_run(w, &m, &o, &r, &err), 0);
    assert_int_equal(r.rank, 3); /* cut to min(3, 4) */
    assert_true(r.up[0] == 0 && r.down[0] == 1 && r.down[5] == 1);
    b[7] = 0.5f;
    assert_int_equal(extract_run(w, &m, &o, &r, &err), 0);
    assert_true(r.s[0] == 0.5f && r.s[1] == 0 && r.largest == 0.5f);
    a[3] = INFINITY;
    assert_int_equal(extract_run(w, &m, &o, &r, &err), -1);
    assert_non_null(strstr(err.msg, "'base.safetensors': tensor 'x.weight' holds a NaN"));
    a[3] = 0;
    b[11] = NAN;
    assert_int_equal(extract_run(w, &m, &o, &r, &err), -1);
    assert_non_null(strstr(err.msg, "'tuned.safetensors': tensor 'x.weight' holds a NaN"));
    extract_worker_free(w);
}

/* The file must not depend on how many threads there were */
static void test_threads(void **state)
{
    const char *folder = scratch_new();
    char path[2][256];
    unsigned char *bytes[2];
    size_t n[2];

    (void)state;
    for (int i = 0; i < 2; i++) {
        char *argv[] = {(char *)"lora", (char *)"extract", (char *)"--quiet", (char *)"--threads", (char *)(i ? "3" : "1"),
                        (char *)"--model_org", (char *)"golden/extract/sd1_f16.safetensors", (char *)"--model_tuned",
                        (char *)"golden/extract/sd1_tuned_f32.safetensors", (char *)"--save_precision", (char *)"fp16",
                        (char *)"--save_to", path[i]};
        FILE *f;

        snprintf(path[i], sizeof path[i], "%s/%d.safetensors", folder, i);
        assert_int_equal(command_main(13, argv), 0);
        f = fopen(path[i], "rb");
        assert_non_null(f);
        bytes[i] = malloc(1 << 20);
        n[i] = fread(bytes[i], 1, 1 << 20, f);
        fclose(f);
    }
    assert_int_equal(n[0], n[1]);
    assert_memory_equal(bytes[0], bytes[1], n[0]);
    free(bytes[0]);
    free(bytes[1]);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_quantile),
        cmocka_unit_test(test_module),
        cmocka_unit_test(test_threads),
    };

    thread_init(0); /* as the program does: LAPACK's own threads would compete with ours */
    return cmocka_run_group_tests(tests, NULL, NULL);
}

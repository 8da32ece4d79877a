/* merging modules into weights: against torch in f64 and against v0.3.0's arithmetic */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/thread.h"
#include "ref/lora/combine.h"
#include "ref/lora/merge.h"
#include "tests/lib/golden.h"

static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16};
static const double unit[] = {[DT_F32] = 0x1p-24, [DT_F16] = 0x1p-11, [DT_BF16] = 0x1p-8}; /* half a unit in the last place */
static const double tiny[] = {[DT_F32] = 0, [DT_F16] = 0x1p-25, [DT_BF16] = 0};            /* the same for subnormals */

static const struct {
    const char *name;
    size_t out, in;
} kinds[] = {{"linear", 37, 29}, {"conv1", 24, 40}, {"conv3", 18, 99}};

static const char *key(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static const char *key(const char *fmt, ...)
{
    static char buf[4][96];
    static int at;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(buf[at = (at + 1) % 4], sizeof buf[0], fmt, ap);
    va_end(ap);
    return buf[at];
}

static double *golden_f64(const struct tensor_file *f, const char *name)
{
    const struct tensor_entry *e = golden_entry(f, name);
    double *x = malloc(e->nbytes);
    struct err err;

    assert_int_equal(e->dtype, DT_F64);
    assert_int_equal(tensor_file_read(f, e, x, &err), 0);
    return x;
}

static void *golden_raw(const struct tensor_file *f, const char *name)
{
    const struct tensor_entry *e = golden_entry(f, name);
    void *x = malloc(e->nbytes);
    struct err err;

    assert_int_equal(tensor_file_read(f, e, x, &err), 0);
    return x;
}

struct pair {
    struct lora_factors f[2];
    float *data[4];
};

static struct pair load_pair(const struct tensor_file *g, const char *kind, const size_t rank[2], const double scale[2])
{
    struct pair p;

    for (size_t k = 0; k < 2; k++) {
        p.data[2 * k] = golden_f32(g, key("%s.up%zu", kind, k), NULL);
        p.data[2 * k + 1] = golden_f32(g, key("%s.down%zu", kind, k), NULL);
        p.f[k] = (struct lora_factors){p.data[2 * k], p.data[2 * k + 1], rank[k], scale[k]};
    }
    return p;
}

static void pair_free(struct pair *p)
{
    for (size_t i = 0; i < 4; i++)
        free(p->data[i]);
}

/* |W| + sum |scale| |up| |down| at one place: what an f32 sum's error is relative to. */
static double magnitude(const struct pair *p, double w, size_t row, size_t col, size_t in)
{
    double sum = fabs(w);

    for (size_t k = 0; k < 2; k++)
        for (size_t j = 0; j < p->f[k].rank; j++)
            sum += fabs(p->f[k].scale * (double)p->f[k].up[row * p->f[k].rank + j] * (double)p->f[k].down[j * in + col]);
    return sum;
}

static const size_t ranks[2] = {8, 5};
static const double scales[2] = {0.8 * 4 / 8, -0.35};

static void check_exact(const struct tensor_file *g, size_t kind, enum dtype from, enum dtype to)
{
    size_t out = kinds[kind].out, in = kinds[kind].in, n = out * in;
    struct pair p = load_pair(g, kinds[kind].name, ranks, scales);
    void *w = golden_raw(g, key("%s.%s.w", kinds[kind].name, dtype_name(from))), *result = malloc(n * sizeof(double));
    double *exact = golden_f64(g, key("%s.%s.exact", kinds[kind].name, dtype_name(from))), *got = malloc(n * sizeof *got);
    double *before = malloc(n * sizeof *before), d2 = 0, w2 = 0;
    float *work = malloc(merge_work_floats(in) * sizeof *work);
    struct merge_stats stats = {.want_rounding = true};
    struct err e;

    assert_int_equal(merge_weight(result, to, w, from, out, in, p.f, 2, work, &stats, &e), 0);
    dtype_convert(got, DT_F64, result, to, n);
    dtype_convert(before, DT_F64, w, from, n);
    for (size_t i = 0; i < n; i++) {
        /* Each product and partial sum of the 13 ranks, the scale, and the final sum round once in f32: 13 + 2 roundings,
         * each of at most eps * magnitude; then the store. */
        double limit = 15 * 0x1p-24 * magnitude(&p, before[i], i / in, i % in, in) + unit[to] * fabs(exact[i]) + tiny[to];

        if (fabs(got[i] - exact[i]) > limit)
            fail_msg("%s %s -> %s at %zu: %.9g, torch %.9g, limit %g", kinds[kind].name, dtype_name(from), dtype_name(to), i,
                     got[i], exact[i], limit);
        d2 += (exact[i] - before[i]) * (exact[i] - before[i]);
        w2 += before[i] * before[i];
    }
    /* Sums of squares of n values, each good to 15 eps and summed in rows of `in` */
    assert_true(fabs(stats.weight2 - w2) <= (double)in * 0x1p-23 * w2);
    assert_true(fabs(stats.delta2 - d2) <= ((double)in + 64) * 0x1p-23 * d2 + 1e-6 * d2);
    /* Rounding of a store is uniform in half a unit; its mean square is at most a third of the largest */
    assert_true(to == DT_F32 ? stats.rounding2 == 0
                             : stats.rounding2 > 0 && stats.rounding2 < unit[to] * unit[to] * (w2 + d2) * 2);
    free(w);
    free(result);
    free(exact);
    free(got);
    free(before);
    free(work);
    pair_free(&p);
}

static void test_exact(void **state)
{
    struct tensor_file *g = golden_open("merge.safetensors");

    (void)state;
    for (size_t kind = 0; kind < 3; kind++)
        for (size_t from = 0; from < 3; from++)
            for (size_t to = 0; to < 3; to++)
                check_exact(g, kind, types[from], types[to]);
    tensor_file_close(g);
}

static void check_v030(const struct tensor_file *g, size_t kind, enum dtype from, enum dtype precision)
{
    size_t out = kinds[kind].out, in = kinds[kind].in, n = out * in;
    static const double ratio[2] = {0.8, -0.35};
    struct pair p = load_pair(g, kinds[kind].name, ranks, ratio);
    void *w = golden_raw(g, key("%s.%s.w", kinds[kind].name, dtype_name(from))), *result = malloc(n * sizeof(float));
    float *want = golden_f32(g, key("%s.%s.v030.%s", kinds[kind].name, dtype_name(from), dtype_name(precision)), NULL);
    float *got = malloc(n * sizeof *got), *work = malloc(merge_work_floats(in) * sizeof *work);
    struct err e;

    for (size_t k = 0; k < 4; k++) { /* the script casts the factors, too */
        size_t count = (k % 2 ? in : out) * ranks[k / 2];
        uint16_t *narrow = malloc(count * sizeof *narrow);

        if (precision != DT_F32) {
            dtype_convert(narrow, precision, p.data[k], DT_F32, count);
            dtype_convert(p.data[k], DT_F32, narrow, precision, count);
        }
        free(narrow);
    }
    assert_int_equal(merge_weight_v030(result, precision, w, from, out, in, p.f, 2, precision, work, NULL, &e), 0);
    dtype_convert(got, DT_F32, result, precision, n);
    for (size_t i = 0; i < n; i++) {
        /* Per module: product, scaled product and sum are each rounded, and torch's product may have been summed in another
         * order, which can tip each of these roundings by one unit: 3 steps x 2 modules, each at most one unit (two half
         * units) of a number no larger than the magnitude. */
        double limit = 6 * 2 * unit[precision] * magnitude(&p, (double)want[i], i / in, i % in, in);

        if (fabs((double)got[i] - (double)want[i]) > limit)
            fail_msg("%s %s in %s at %zu: %.9g, v0.3.0 %.9g", kinds[kind].name, dtype_name(from), dtype_name(precision), i,
                     (double)got[i], (double)want[i]);
    }
    if (precision != DT_F32) { /* and nearly all of them agree to the last bit, which exact arithmetic would not */
        size_t same = 0;

        for (size_t i = 0; i < n; i++)
            same += got[i] == want[i];
        assert_true(same * 100 >= n * 98);
    }
    free(w);
    free(result);
    free(want);
    free(got);
    free(work);
    pair_free(&p);
}

static void test_v030(void **state)
{
    struct tensor_file *g = golden_open("merge.safetensors");

    (void)state;
    for (size_t kind = 0; kind < 2; kind++)
        for (size_t from = 0; from < 3; from++)
            for (size_t p = 0; p < 3; p++)
                check_v030(g, kind, types[from], types[p]);
    tensor_file_close(g);
}

static void test_cp(void **state)
{
    struct tensor_file *g = golden_open("merge.safetensors");
    float *up = golden_f32(g, "cp.up", NULL), *mid = golden_f32(g, "cp.mid", NULL), *down = golden_f32(g, "cp.down", NULL);
    double *exact = golden_f64(g, "cp.exact");
    float folded[4 * 90], w[12 * 90] = {0}, *work = malloc(merge_work_floats(90) * sizeof *work);
    struct lora_factors f = {up, folded, 4, 1};
    struct err e;

    (void)state;
    factors_fold_mid(folded, mid, down, 4, 3, 10, 9);
    assert_int_equal(merge_weight(w, DT_F32, w, DT_F32, 12, 90, &f, 1, work, NULL, &e), 0);
    for (size_t i = 0; i < 12 * 90; i++) {
        double sum = 0; /* 4 x 3 products of numbers below 4: each rounded, 12 + 4 + 2 roundings */

        for (size_t p = 0; p < 4; p++)
            for (size_t q = 0; q < 3; q++)
                sum +=
                    fabs((double)up[i / 90 * 4 + p] * (double)mid[(p * 3 + q) * 9 + i % 9] * (double)down[q * 10 + i % 90 / 9]);
        assert_true(fabs((double)w[i] - exact[i]) <= 18 * 0x1p-24 * sum);
    }
    free(up);
    free(mid);
    free(down);
    free(exact);
    free(work);
    tensor_file_close(g);
}

/* Many panels, in place: each row as if it were alone. */
static void test_panels(void **state)
{
    enum { OUT = 131, IN = 2100, R = 3 };
    uint16_t *w = malloc(OUT * IN * 2), *row = malloc(IN * 2);
    float *up = malloc(OUT * R * 4), *down = malloc(R * IN * 4), *work = malloc(merge_work_floats(IN) * 4);
    struct lora_factors f = {up, down, R, 0.5}, one = f;
    struct err e;

    (void)state;
    for (size_t i = 0; i < OUT * IN; i++)
        w[i] = dtype_f32_to_f16((float)(i % 1013) * 0.01f);
    for (size_t i = 0; i < OUT * R; i++)
        up[i] = (float)(i % 17) - 8;
    for (size_t i = 0; i < R * IN; i++)
        down[i] = (float)(i % 19) * 0.25f;
    assert_int_equal(merge_weight(w, DT_F16, w, DT_F16, OUT, IN, &f, 1, work, NULL, &e), 0);
    for (size_t r = 0; r < OUT; r += 13) {
        for (size_t i = 0; i < IN; i++)
            row[i] = dtype_f32_to_f16((float)((r * IN + i) % 1013) * 0.01f);
        one.up = up + r * R;
        assert_int_equal(merge_weight(row, DT_F16, row, DT_F16, 1, IN, &one, 1, work, NULL, &e), 0);
        assert_memory_equal(row, w + r * IN, IN * 2); /* products are small multiples of 1/8: exact in any order */
    }
    free(w);
    free(row);
    free(up);
    free(down);
    free(work);
}

static void test_errors(void **state)
{
    float w[12] = {0}, up[3] = {1, 2, 3e4f}, down[4] = {1, 1, 1, 3}, *work = malloc(merge_work_floats(4) * 4);
    uint16_t half[12] = {0};
    struct lora_factors f = {up, down, 1, 1};
    struct err e = {0};

    (void)state;
    w[6] = NAN;
    assert_int_equal(merge_weight(w, DT_F32, w, DT_F32, 3, 4, &f, 1, work, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "not a finite number at row 1, column 2"));
    assert_int_equal(merge_weight(half, DT_F16, half, DT_F16, 3, 4, &f, 1, work, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "does not fit in f16 at row 2, column 3"));
    up[1] = INFINITY;
    assert_int_equal(factors_check(&f, 3, 4, &e), -1);
    assert_non_null(strstr(e.msg, "lora_up is infinite at row 1, column 0"));
    up[1] = 0;
    down[3] = NAN;
    assert_int_equal(factors_check(&f, 3, 4, &e), -1);
    assert_non_null(strstr(e.msg, "lora_down is not a number at row 0, column 3"));
    down[3] = 0;
    assert_int_equal(factors_check(&f, 3, 4, &e), 0);
    free(work);
}

static void test_combine(void **state)
{
    static const char *const names[] = {"sum.flat", "sum.falling", "sum.steep"};
    static const size_t cut[] = {1, 4, 9, 14}, rank[2] = {9, 7};
    static const double scale[2] = {1, -0.6 * 3.5 / 7};
    struct tensor_file *g = golden_open("merge.safetensors");
    struct combine_work work = {0};
    float up[31 * 16], down[16 * 45];
    struct err e;

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct pair p = load_pair(g, names[i], rank, scale);
        double *s = golden_f64(g, key("%s.s", names[i]));

        for (size_t j = 0; j < 4; j++) {
            struct rank_rule rule = {RANK_FIXED, cut[j], 0};
            double *best = golden_f64(g, key("%s.best%zu", names[i], cut[j])), diff2 = 0, lost2 = 0;
            struct combined c;

            assert_int_equal(combine_best(up, down, &c, p.f, 2, 31, 45, &rule, &work, &e), 0);
            assert_int_equal(c.rank, cut[j]);
            for (size_t k = 31; k-- > cut[j];)
                lost2 += s[k] * s[k];
            /* (1 + 1e-3) of the least error by contract, and R eps of the whole for arithmetic */
            assert_true(sqrt(c.lost2) >= sqrt(lost2) * (1 - 1e-3) - 16 * 0x1p-24 * s[0]);
            assert_true(sqrt(c.lost2) <= sqrt(lost2) * (1 + 1e-3) + 16 * 0x1p-24 * s[0]);
            assert_true(fabs(c.first - s[0]) <= 16 * 0x1p-24 * s[0]);
            for (size_t k = 0; k < 31 * 45; k++) {
                double sum = 0;

                for (size_t r = 0; r < cut[j]; r++)
                    sum += (double)up[k / 45 * cut[j] + r] * (double)down[r * 45 + k % 45];
                diff2 += (sum - best[k]) * (sum - best[k]);
            }
            /* Away from a degenerate cut the best approximation is unique: an excess error of x leads at most
             * sqrt(x / gap) away, gap = 1 - (s_k+1 / s_k)^2, with x the relative rounding R eps s_1 / s_k */
            {
                double gap = 1 - pow(s[cut[j]] / s[cut[j] - 1], 2), x = 16 * 0x1p-24 * s[0] / s[cut[j] - 1];

                assert_true(sqrt(diff2) <= s[cut[j] - 1] * sqrt((double)cut[j]) * x / gap * 4 + 16 * 0x1p-24 * s[0]);
            }
            free(best);
        }
        free(s);
        pair_free(&p);
    }
    combine_work_free(&work);
    tensor_file_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact),  cmocka_unit_test(test_v030),   cmocka_unit_test(test_cp),
        cmocka_unit_test(test_panels), cmocka_unit_test(test_errors), cmocka_unit_test(test_combine),
    };

    thread_init(0); /* as the program does: LAPACK's own threads would compete with ours */
    return cmocka_run_group_tests(tests, NULL, NULL);
}

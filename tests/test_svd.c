/* Truncated SVD: errors against numpy's singular values, signs, order, determinism, bad input. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/dtype.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/lora/svd.h"
#include "tests/lib/pretend.h"

/* The matrices of golden/make_svd.py, bit for bit */
static int small_int(uint64_t seed, size_t i, int bits)
{
    uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    z ^= z >> 31;
    return (int)(z >> (64 - bits)) - (1 << (bits - 1));
}

static void fill(const char *kind, float *d, size_t m, size_t n, uint64_t seed, int e)
{
    bool low = !strcmp(kind, "low"), steep = !strcmp(kind, "steep"), spike = !strcmp(kind, "spike");
    size_t rank = !strcmp(kind, "exact") ? 6 : 16;

    memset(d, 0, m * n * sizeof *d);
    for (size_t i = 0; i < m && i < n && !strcmp(kind, "flat"); i++)
        d[i * n + (m <= n ? (i * 7 + 3) % n : i)] = i % 3 ? 1 : -1;
    for (size_t i = 0; i < 8 && !strcmp(kind, "pairs"); i++)
        d[(i * 5) % m * n + (i * 3) % n] = ldexpf(1, 3 - (int)i / 2);
    for (size_t i = 0; i < m * n && (low || spike || !strcmp(kind, "noise")); i++)
        d[i] = (float)small_int(seed, i, 8);
    if (spike)
        d[3 * n + 5] = 0x1p30f;
    if (low || steep || !strcmp(kind, "exact"))
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++) {
                double sum = (double)d[i * n + j];

                for (size_t r = 0; r < rank; r++)
                    sum += small_int(seed + 1, i * rank + r, 4) * small_int(seed + 2, j * rank + r, 4) *
                           (low ? 512 >> (r / 2) : steep ? ldexp(1, -(int)r) : 1);
                d[i * n + j] = steep ? dtype_f16_to_f32(dtype_f32_to_f16((float)sum)) : (float)sum;
            }
    for (size_t i = 0; i < m * n; i++)
        d[i] = ldexpf(d[i], e);
}

/* ||D - up down||_F^2 and ||D||_F^2 in f64 */
static double error_of(const float *d, const float *up, const float *down, size_t m, size_t n, size_t k, double *total)
{
    double *row = malloc(n * sizeof *row), sum = 0;

    *total = 0;
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++)
            row[j] = (double)d[i * n + j];
        for (size_t j = 0; j < n; j++)
            *total += row[j] * row[j];
        for (size_t r = 0; r < k; r++)
            for (size_t j = 0; j < n; j++)
                row[j] -= (double)up[i * k + r] * (double)down[r * n + j];
        for (size_t j = 0; j < n; j++)
            sum += row[j] * row[j];
    }
    free(row);
    return sum;
}

/* Descending values, columns of up with those lengths, unit rows of down whose largest element is positive */
static void check_form(const float *up, const float *s, const float *down, size_t m, size_t n, size_t k)
{
    for (size_t r = 0; r < k; r++) {
        double length = 0, right = 0;
        float largest = 0;

        for (size_t i = 0; i < m; i++)
            length += (double)up[i * k + r] * (double)up[i * k + r];
        for (size_t j = 0; j < n; j++) {
            right += (double)down[r * n + j] * (double)down[r * n + j];
            if (fabsf(down[r * n + j]) > fabsf(largest))
                largest = down[r * n + j];
        }
        assert_true(s[r] >= 0 && (r == 0 || s[r] <= s[r - 1]));
        assert_true(fabs(sqrt(length) - (double)s[r]) <= 1e-5 * (double)s[r]); /* sqrt(m) eps, m < 2^10, and a margin of 5 */
        assert_true(s[r] > 0 ? fabs(right - 1) < 1e-5 && largest > 0 : right == 0);
    }
}

static void check_case(struct svd *w, const char *kind, size_t m, size_t n, uint64_t seed, int e, size_t k, double want_total,
                       double tail, bool exact)
{
    struct svd_options o = {.exact = exact, .seed = seed};
    float *d = malloc(m * n * sizeof *d), *copy = malloc(m * n * sizeof *d), *up = malloc(m * k * sizeof *up),
          *down = malloc(k * n * sizeof *down), *s = malloc(k * sizeof *s);
    double total, error, tolerance = exact ? SVD_TOLERANCE_EXACT : SVD_TOLERANCE;
    struct svd_info info;
    struct err err = {0};

    fill(kind, d, m, n, seed, e);
    memcpy(copy, d, m * n * sizeof *d);
    if (svd_truncate(w, copy, m, n, k, &o, up, s, down, &info, &err) != 0)
        fail_msg("%s", err.msg);
    error = error_of(d, up, down, m, n, k, &total);
    if (fabs(total - want_total) > 1e-12 * want_total)
        fail_msg("%s %zu x %zu is another matrix than the golden file's", kind, m, n);
    /* the promise of svd.h */
    if (sqrt(error) > (1 + tolerance) * sqrt(tail) + SVD_FLOOR * sqrt(total))
        fail_msg("%s %zu x %zu rank %zu (%s): error %.9g, least %.9g, norm %.9g", kind, m, n, k, svd_method_name(info.method),
                 sqrt(error), sqrt(tail), sqrt(total));
    /* what it says of itself: the proof holds, and the error is what the factors show up to their own rounding */
    if (sqrt(info.least) > sqrt(tail) * (1 + 1e-9) + SVD_FLOOR * sqrt(total))
        fail_msg("%s %zu x %zu rank %zu (%s): claims at least %.9g, but %.9g can be had", kind, m, n, k,
                 svd_method_name(info.method), sqrt(info.least), sqrt(tail));
    assert_true(fabs(sqrt(info.error) - sqrt(error)) <= 1e-4 * sqrt(error) + SVD_FLOOR * sqrt(total));
    check_form(up, s, down, m, n, k);
    free(d);
    free(copy);
    free(up);
    free(down);
    free(s);
}

static void test_golden(void **state)
{
    FILE *f = fopen("golden/svd.txt", "r");
    struct err err = {0};
    struct svd *w = svd_new(&err);
    char kind[16];
    size_t m, n, k;
    unsigned long long seed;
    double total, tail;
    int e, count = 0;

    (void)state;
    assert_non_null(f);
    assert_non_null(w);
    while (fscanf(f, "%15s %zu %zu %llu %d %zu %lf %lf", kind, &m, &n, &seed, &e, &k, &total, &tail) == 8) {
        check_case(w, kind, m, n, seed, e, k, total, tail, false);
        if (m * n <= 640 * 320)
            check_case(w, kind, m, n, seed, e, k, total, tail, true);
        count++;
    }
    assert_true(count > 40);
    fclose(f);
    svd_free(w);
}

/* Singular value i of n of a random kind of spectrum */
static double spectrum(int kind, size_t i, size_t n, double fall, size_t rank, double floor)
{
    switch (kind) {
    case 0:
        return 1;
    case 1:
        return pow(fall, (double)i);
    case 2:
        return i < rank ? 1 : floor;
    case 3:
        return pow(fall, (double)(i / 4)); /* repeated */
    case 4:
        return 1 / sqrt(1 + (double)i);
    case 5:
        return (i < rank ? pow(0.85, (double)i) : 0) + floor * sqrt(1 - (double)i / (double)n);
    default:
        return i < rank ? 1 : 0;
    }
}

/* d [m, n] = H_1 .. H_3 diag(s) H_4 .. H_6 with random reflections H: exact singular values up to rounding */
static void reflect_rows(double *d, size_t m, size_t n, uint64_t seed)
{
    double *v = malloc(m * sizeof *v), *p = malloc(n * sizeof *p), length = 0;

    for (size_t i = 0; i < m; i++) {
        v[i] = small_int(seed, i, 12) + 0.5;
        length += v[i] * v[i];
    }
    cblas_dgemv(CblasRowMajor, CblasTrans, (int)m, (int)n, 1, d, (int)n, v, 1, 0, p, 1);
    cblas_dger(CblasRowMajor, (int)m, (int)n, -2 / length, v, 1, p, 1, d, (int)n);
    free(v);
    free(p);
}

static void transpose(double *to, const double *from, size_t m, size_t n)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            to[j * m + i] = from[i * n + j];
}

/* One random matrix against LAPACK's singular values in f64 */
static void check_random(struct svd *w, uint64_t seed)
{
    size_t m = 1 + (size_t)small_int(seed, 1, 9) + 256, n = 1 + (size_t)small_int(seed, 2, 9) + 256, q = m < n ? m : n;
    size_t k = 1 + (size_t)(small_int(seed, 3, 16) + 32768) % q, rank = 1 + (size_t)(small_int(seed, 4, 16) + 32768) % q;
    double fall = 1 - 0.5 * (small_int(seed, 5, 10) + 512) / 1024.0, floor = pow(10, -9.0 * (small_int(seed, 6, 10) + 512) / 1024);
    double scale = pow(10, -2 + 6.0 * small_int(seed, 7, 10) / 512), total, error, tail = 0, none;
    double *d = calloc(m * n, sizeof *d), *t = malloc(m * n * sizeof *t), *s64 = malloc(q * sizeof *s64);
    float *f = malloc(m * n * sizeof *f), *copy = malloc(m * n * sizeof *f), *up = malloc(m * k * sizeof *up),
          *down = malloc(k * n * sizeof *down), *s = malloc(k * sizeof *s);
    struct svd_options o = {.seed = seed};
    struct svd_info info;
    struct err err = {0};

    for (size_t i = 0; i < q; i++)
        d[i * n + i] = scale * spectrum((int)(seed % 7), i, q, fall, rank, floor);
    for (uint64_t i = 0; i < 3; i++)
        reflect_rows(d, m, n, seed + 100 + i);
    transpose(t, d, m, n);
    for (uint64_t i = 0; i < 3; i++)
        reflect_rows(t, n, m, seed + 200 + i);
    transpose(d, t, n, m);
    for (size_t i = 0; i < m * n; i++)
        d[i] = (double)(copy[i] = f[i] = (float)d[i]);
    assert_int_equal(LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'N', (int)n, (int)m, d, (int)n, s64, &none, (int)n, &none, (int)q), 0);
    for (size_t i = q; i-- > k;)
        tail += s64[i] * s64[i];
    if (svd_truncate(w, copy, m, n, k, &o, up, s, down, &info, &err) != 0)
        fail_msg("%s", err.msg);
    error = error_of(f, up, down, m, n, k, &total);
    if (sqrt(error) > (1 + SVD_TOLERANCE) * sqrt(tail) + SVD_FLOOR * sqrt(total) ||
        sqrt(info.least) > (1 + 1e-9) * sqrt(tail) + SVD_FLOOR * sqrt(total))
        fail_msg("seed %llu, %zu x %zu rank %zu (%s): error %.9g, least %.9g, said to be at least %.9g, norm %.9g",
                 (unsigned long long)seed, m, n, k, svd_method_name(info.method), sqrt(error), sqrt(tail), sqrt(info.least),
                 sqrt(total));
    check_form(up, s, down, m, n, k);
    free(d);
    free(t);
    free(s64);
    free(f);
    free(copy);
    free(up);
    free(down);
    free(s);
}

static void test_random(void **state)
{
    struct err err = {0};
    struct svd *w = svd_new(&err);

    (void)state;
    for (uint64_t seed = 1; seed <= 70; seed++)
        check_random(w, seed * 1000 + seed);
    svd_free(w);
}

/* Each way must be taken by some case, or its test proves nothing */
static void test_ways(void **state)
{
    static const struct {
        const char *kind;
        size_t m, n, k;
        bool exact;
        enum svd_method method;
        bool levels; /* something large goes off first */
    } rows[] = {
        {"zero", 20, 30, 2, false, SVD_ZERO, false},
        {"low", 320, 320, 4, false, SVD_SKETCH, false},
        {"noise", 640, 640, 32, false, SVD_GRAM, false},
        {"noise", 100, 90, 30, false, SVD_GRAM, false},
        {"steep", 512, 512, 32, false, SVD_GRAM, true},
        {"spike", 300, 280, 40, false, SVD_GRAM, true},
        {"noise", 100, 90, 30, true, SVD_GRAM64, false},
        {"spike", 100, 90, 3, true, SVD_LAPACK, false},
    };
    struct err err = {0};
    struct svd *w = svd_new(&err);

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t m = rows[i].m, n = rows[i].n, k = rows[i].k;
        float *d = malloc(m * n * sizeof *d), *up = malloc(m * k * sizeof *up), *down = malloc(k * n * sizeof *down), s[64];
        struct svd_options o = {.exact = rows[i].exact};
        struct svd_info info;

        fill(rows[i].kind, d, m, n, 77, 0);
        assert_int_equal(svd_truncate(w, d, m, n, k, &o, up, s, down, &info, &err), 0);
        if (info.method != rows[i].method)
            fail_msg("row %zu went by %s", i, svd_method_name(info.method));
        if ((info.levels > 0) != rows[i].levels)
            fail_msg("row %zu took something off %d times", i, info.levels);
        free(d);
        free(up);
        free(down);
    }
    svd_free(w);
}

static int work(void *ctx, size_t i, struct err *err)
{
    float *out = (float *)ctx + i * (300 * 20 + 20 * 260 + 20);
    struct svd *w = svd_new(err);
    struct svd_options o = {.seed = i};
    struct svd_info info;
    float *d = malloc(300 * 260 * sizeof *d);

    fill(i % 2 ? "low" : "noise", d, 300, 260, i, 0);
    i = (size_t)svd_truncate(w, d, 300, 260, 20, &o, out, out + 300 * 20, out + 300 * 20 + 20, &info, err);
    free(d);
    svd_free(w);
    return (int)i;
}

static void test_threads(void **state)
{
    size_t one = 300 * 20 + 20 * 260 + 20;
    float *a = calloc(6 * one, sizeof *a), *b = calloc(6 * one, sizeof *b);
    struct err err = {0};

    (void)state;
    thread_init(1);
    assert_int_equal(thread_for(6, work, a, &err), 0);
    for (int count = 2; count <= 3; count++) {
        thread_init(count);
        memset(b, 0, 6 * one * sizeof *b);
        assert_int_equal(thread_for(6, work, b, &err), 0);
        assert_memory_equal(a, b, 6 * one * sizeof *a);
    }
    thread_init(0);
    free(a);
    free(b);
}

static void test_bad(void **state)
{
    float d[12] = {1, 2, 3, 4, 5, 6, 7, NAN, 9, 10, 11, 12}, up[12], s[12], down[16];
    struct err err = {0};
    struct svd *w = svd_new(&err);
    struct svd_info info;

    (void)state;
    assert_int_equal(svd_truncate(w, d, 3, 4, 2, NULL, up, s, down, &info, &err), -1);
    assert_non_null(strstr(err.msg, "NaN"));
    d[7] = 8;
    assert_int_equal(svd_truncate(w, d, 3, 4, 4, NULL, up, s, down, &info, &err), -1);
    assert_int_equal(svd_truncate(w, d, 3, 4, 0, NULL, up, s, down, &info, &err), -1);
    assert_int_equal(svd_truncate(w, d, 3, 4, 3, NULL, up, s, down, &info, &err), 0);
    svd_free(w);
    svd_free(NULL);
}

/* On a device whose memory nobody else can touch, with operations of ref's: proved as ever, tall, wide, at small and large ranks. */
static void test_device(void **state)
{
    static const size_t sizes[][3] = {{40, 30, 4}, {30, 40, 4}, {300, 64, 8}, {64, 300, 30}, {320, 320, 32}, {256, 768, 100}};
    struct err err = {0};
    struct ops ops;

    (void)state;
    memset(&pretend_counts, 0, sizeof pretend_counts);
    pretend_ops(&ops, DT_F32, 0, 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
        float *d = malloc(m * n * sizeof *d), *copy = malloc(m * n * sizeof *d), *up = malloc(m * k * sizeof *up), *s = malloc(k * sizeof *s);
        float *down = malloc(k * n * sizeof *down);
        struct svd_info info;
        struct svd *w = svd_new(&err);
        double total, error;

        assert_true(d && copy && up && s && down && w);
        fill(i % 2 ? "low" : "noise", d, m, n, 5, 0);
        memcpy(copy, d, m * n * sizeof *d);
        if (svd_use_device(w, &ops, &err) || svd_truncate(w, copy, m, n, k, NULL, up, s, down, &info, &err))
            fail_msg("%s", err.msg);
        error = error_of(d, up, down, m, n, k, &total);
        assert_true(sqrt(error) <= (1 + SVD_TOLERANCE) * sqrt(info.least) + SVD_FLOOR * sqrt(total));
        assert_true(fabs(error - info.error) <= 1e-5 * total);
        svd_free(w);
        free(d), free(copy), free(up), free(s), free(down);
    }
    assert_true(pretend_counts.calls > 0 && pretend_counts.reads > 0);
    assert_int_equal(pretend_counts.blocks, 0);
}

/* A device that runs out of memory ends the decomposition with its message; one without f32 is refused. */
static void test_device_fails(void **state)
{
    float d[64 * 48], up[64 * 4], s[4], down[4 * 48];
    struct err err = {0};
    struct svd_info info;
    struct svd *w = svd_new(&err);
    struct ops ops;

    (void)state;
    assert_non_null(w);
    fill("noise", d, 64, 48, 5, 0);
    pretend_ops(&ops, DT_F32, 0, 2);
    assert_int_equal(svd_use_device(w, &ops, &err), 0);
    assert_int_equal(svd_truncate(w, d, 64, 48, 4, NULL, up, s, down, &info, &err), -1);
    assert_non_null(strstr(err.msg, "a matrix to decompose"));
    svd_free(w);
    w = svd_new(&err);
    pretend_ops(&ops, DT_BF16, 0, 0);
    assert_int_equal(svd_use_device(w, &ops, &err), -1);
    svd_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_ways),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_device),
        cmocka_unit_test(test_device_fails),
    };

    thread_init(0); /* as the program does: LAPACK's own threads would compete with ours */
    return cmocka_run_group_tests(tests, NULL, NULL);
}

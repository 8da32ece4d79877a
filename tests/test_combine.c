/* LoRA with LoRA, and resize: against a full SVD of the dense sum in f64 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <lapacke.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/thread.h"
#include "ref/lora/combine.h"

#define EPS32 0x1p-24

static uint64_t seed = 1;

/* About normal: the sum of four uniform numbers. */
static double noise(void)
{
    double sum = 0;

    for (int i = 0; i < 4; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(seed >> 11) * 0x1p-53 - 0.5;
    }
    return sum * 1.7320508;
}

/* n modules with their memory */
struct bench {
    struct lora_factors f[4];
    size_t n, out, in;
    float *data[8];
};

static void add_module(struct bench *b, size_t rank, double scale, double decay, double size)
{
    float *up = malloc(b->out * rank * sizeof *up), *down = malloc(rank * b->in * sizeof *down);

    for (size_t i = 0; i < b->out; i++)
        for (size_t j = 0; j < rank; j++)
            up[i * rank + j] = (float)(noise() * size * pow(decay, (double)j));
    for (size_t i = 0; i < rank * b->in; i++)
        down[i] = (float)(noise() / sqrt((double)b->in));
    b->f[b->n] = (struct lora_factors){up, down, rank, scale};
    b->data[2 * b->n] = up;
    b->data[2 * b->n + 1] = down;
    b->n++;
}

static void bench_free(struct bench *b)
{
    for (size_t i = 0; i < 2 * b->n; i++)
        free(b->data[i]);
}

/* s [out, in] += sign * scale * up @ down in f64 */
static void add_product(double *s, size_t out, size_t in, const struct lora_factors *f, double sign)
{
    for (size_t i = 0; i < out; i++)
        for (size_t j = 0; j < f->rank; j++) {
            double a = sign * f->scale * (double)f->up[i * f->rank + j];

            for (size_t k = 0; k < in; k++)
                s[i * in + k] += a * (double)f->down[j * in + k];
        }
}

static double norm2(const double *x, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sum;
}

/* What rounding in f32 may cost at most in any route: each element of S is a sum of R products of rounded numbers. */
static double arithmetic(const struct bench *b)
{
    double sum = 0;

    for (size_t i = 0; i < b->n; i++) {
        double u = 0, d = 0;

        for (size_t j = 0; j < b->out * b->f[i].rank; j++)
            u += (double)b->f[i].up[j] * (double)b->f[i].up[j];
        for (size_t j = 0; j < b->in * b->f[i].rank; j++)
            d += (double)b->f[i].down[j] * (double)b->f[i].down[j];
        sum += fabs(b->f[i].scale) * sqrt(u * d);
    }
    return (double)factors_total_rank(b->f, b->n) * EPS32 * sum;
}

/* Combines and compares with the dense SVD, tol being what arithmetic may cost. Returns the rank. */
static size_t check_within(const struct bench *b, const struct rank_rule *rule, double tol)
{
    size_t m = b->out, n = b->in, least = m < n ? m : n, most = combine_max_rank(b->f, b->n, m, n, rule);
    double *s = calloc(m * n, sizeof *s), *sv = malloc(least * sizeof *sv), *copy = malloc(m * n * sizeof *copy), best2 = 0,
           got;
    float *up = malloc(m * most * sizeof *up), *down = malloc(most * n * sizeof *down);
    struct combine_work work = {0};
    struct combined c;
    struct lora_factors result;
    struct err e = {0};

    for (size_t i = 0; i < b->n; i++)
        add_product(s, m, n, &b->f[i], 1);
    memcpy(copy, s, m * n * sizeof *copy);
    assert_int_equal(LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'N', (int)m, (int)n, copy, (int)n, sv, NULL, (int)m, NULL, (int)n), 0);
    assert_int_equal(combine_best(up, down, &c, b->f, b->n, m, n, rule, &work, &e), 0);
    assert_in_range(c.rank, 1, most);
    for (size_t i = least; i-- > c.rank;)
        best2 += sv[i] * sv[i];
    assert_true(fabs(sqrt(c.norm2) - sqrt(norm2(s, m * n))) <= 1e-3 * sqrt(c.norm2) + tol);
    result = (struct lora_factors){up, down, c.rank, 1};
    add_product(s, m, n, &result, -1);
    got = sqrt(norm2(s, m * n));
    if (got > (1 + 1e-3) * sqrt(best2) + tol)
        fail_msg("%zu x %zu, rank %zu: error %g, the least is %g, arithmetic %g", m, n, c.rank, got, sqrt(best2), tol);
    if (fabs(sqrt(c.lost2) - got) > 1e-3 * got + tol)
        fail_msg("%zu x %zu: says it lost %g, lost %g", m, n, sqrt(c.lost2), got);
    combine_work_free(&work);
    free(s);
    free(sv);
    free(copy);
    free(up);
    free(down);
    return c.rank;
}

static size_t check(const struct bench *b, const struct rank_rule *rule)
{
    return check_within(b, rule, arithmetic(b));
}

static void test_spectra(void **state)
{
    static const struct {
        size_t out, in, rank[3];
        double decay, size;
    } cases[] = {
        {40, 24, {4, 4, 0}, 1, 1},       {24, 40, {4, 7, 3}, 0.7, 1},       {64, 64, {16, 16, 0}, 0.5, 1},
        {64, 64, {32, 32, 0}, 1, 1},     {50, 70, {33, 40, 0}, 0.9, 1},     {33, 65, {20, 30, 40}, 1, 1},
        {65, 33, {20, 30, 40}, 1, 1},    {128, 96, {64, 64, 0}, 0.8, 1e-8}, {96, 128, {48, 48, 0}, 0.95, 1e4},
        {1, 20, {1, 1, 0}, 1, 1},        {20, 1, {1, 1, 0}, 1, 1},          {300, 17, {8, 8, 0}, 1, 1},
        {80, 90, {40, 1, 2}, 0.6, 1e-3},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b = {.out = cases[i].out, .in = cases[i].in};

        for (size_t j = 0; j < 3 && cases[i].rank[j]; j++)
            add_module(&b, cases[i].rank[j], j == 1 ? -0.7 : 0.9, cases[i].decay, cases[i].size);
        for (size_t rank = 1; rank <= 40; rank = rank * 2 + 1) {
            struct rank_rule rule = {RANK_FIXED, rank, 0};

            check(&b, &rule);
        }
        bench_free(&b);
    }
}

/* A few directions far above the others, as trainings and extractions leave them: f32 alone cannot hold both. What is cut off
 * is large beside rounding (1e-3 of it is more than 1e-5 of S), so the contract's (1 + 1e-3) must hold as it is. */
static void test_strong(void **state)
{
    static const struct {
        size_t strong;
        double decay, flat, slope; /* of the strong ones, of the others */
    } cases[] = {{16, 0.85, 0.01, 1}, {16, 0.85, 0.03, 0.98}, {40, 0.9, 0.02, 1},
                 {1, 1, 0.003, 1},    {0, 1, 1, 0.95},        {0, 1, 1, 1}};
    const size_t rank = 96;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b = {.out = 300, .in = 280};
        struct rank_rule rule = {RANK_FIXED, rank, 0};

        for (size_t m = 0; m < 2; m++) {
            add_module(&b, rank, m ? -0.4 : 0.6, 1, 1);
            for (size_t k = 0; k < 300 * rank; k++) {
                size_t j = k % rank, n = cases[i].strong;

                b.data[2 * m][k] *=
                    (float)(j < n ? pow(cases[i].decay, (double)j) : cases[i].flat * pow(cases[i].slope, (double)(j - n)));
            }
        }
        assert_int_equal(check_within(&b, &rule, 0), rank);
        rule.max_rank = 100;
        check_within(&b, &rule, 0);
        bench_free(&b);
    }
}

/* The same file twice, twice with opposite ratios, nearly the same file, dead ranks, a file that does nothing. */
static void test_degenerate(void **state)
{
    struct rank_rule rule = {RANK_FIXED, 8, 0};

    (void)state;
    for (int kind = 0; kind < 5; kind++) {
        struct bench b = {.out = 48, .in = 36};

        add_module(&b, 8, 1, 0.9, 1);
        add_module(&b, 8, kind == 1 ? -1 : 0.5, 0.9, 1);
        memcpy(b.data[2], b.data[0], 48 * 8 * sizeof(float));
        memcpy(b.data[3], b.data[1], 36 * 8 * sizeof(float));
        if (kind == 2)
            for (size_t i = 0; i < 36 * 8; i++)
                b.data[3][i] *= 1 + 1e-3f * (float)noise();
        for (size_t i = 0; kind == 3 && i < 48; i++)
            b.data[0][i * 8 + 3] = b.data[0][i * 8 + 5] = 0;
        if (kind == 4)
            memset(b.data[0], 0, 48 * 8 * sizeof(float)), memset(b.data[2], 0, 48 * 8 * sizeof(float));
        if (kind == 1 || kind == 4)
            assert_int_equal(check(&b, &rule), 1);
        else
            check(&b, &rule);
        bench_free(&b);
    }
}

static void test_rules(void **state)
{
    static const double s[] = {8, 4, 2, 1, 0.5, 0.25, 0, 0};
    struct rank_rule r = {RANK_FIXED, 100, 0};

    (void)state;
    assert_int_equal(rank_choose(&r, s, 8), 6);
    r.max_rank = 3;
    assert_int_equal(rank_choose(&r, s, 8), 3);
    r = (struct rank_rule){RANK_RATIO, 100, 4}; /* s > 2: two of them */
    assert_int_equal(rank_choose(&r, s, 8), 2);
    r.param = 4.001;
    assert_int_equal(rank_choose(&r, s, 8), 3);
    r = (struct rank_rule){RANK_CUMULATIVE, 100, 12.0 / 15.75}; /* exactly two */
    assert_int_equal(rank_choose(&r, s, 8), 2);
    r.param = 0.9; /* 14 of 15.75 is 0.889, 15 is 0.952 */
    assert_int_equal(rank_choose(&r, s, 8), 4);
    r.param = 1;
    assert_int_equal(rank_choose(&r, s, 8), 6);
    r = (struct rank_rule){RANK_FROBENIUS, 100, 0.9}; /* total 85.3125: 64 is 0.866, 80 is 0.968 */
    assert_int_equal(rank_choose(&r, s, 8), 2);
    r.max_rank = 1;
    assert_int_equal(rank_choose(&r, s, 8), 1);
    r = (struct rank_rule){RANK_RATIO, 4, 10};
    assert_int_equal(rank_choose(&r, s + 6, 2), 1);
}

static void test_dynamic(void **state)
{
    static const struct rank_rule rules[] = {
        {RANK_RATIO, 64, 10}, {RANK_FROBENIUS, 64, 0.95}, {RANK_CUMULATIVE, 64, 0.8}, {RANK_FROBENIUS, 64, 1}};
    struct bench b = {.out = 70, .in = 60};

    (void)state;
    add_module(&b, 32, 0.5, 0.85, 1);
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++)
        check(&b, &rules[i]);
    bench_free(&b);
}

static void test_concat(void **state)
{
    struct bench b = {.out = 9, .in = 7};
    float up[9 * 5], down[5 * 7];
    struct lora_factors both = {up, down, 5, 1};
    double s[63] = {0}, t[63] = {0};

    (void)state;
    add_module(&b, 2, 1, 1, 1);
    add_module(&b, 3, -0.25, 1, 1); /* a power of two: the product of scale and up is exact */
    combine_concat(up, down, b.f, b.n, 9, 7);
    assert_memory_equal(down, b.f[0].down, 14 * sizeof(float));
    assert_memory_equal(down + 14, b.f[1].down, 21 * sizeof(float));
    add_product(s, 9, 7, &b.f[0], 1);
    add_product(s, 9, 7, &b.f[1], 1);
    add_product(t, 9, 7, &both, 1);
    for (size_t i = 0; i < 63; i++)
        assert_true(s[i] == t[i]);
    bench_free(&b);
}

/* Modules with one up, with one down, and one alone: three are left, and together they do what the five did. */
static void test_join(void **state)
{
    struct bench b = {.out = 30, .in = 20};
    struct lora_factors extra[5];
    double s[600] = {0}, worst = 0;
    size_t left;

    (void)state;
    for (int i = 0; i < 4; i++)
        add_module(&b, 3, i % 2 ? -0.3 : 0.7, 1, 1);
    memcpy(b.data[2], b.data[0], 90 * sizeof(float)); /* 1 has 0's up, 3 has 2's down */
    memcpy(b.data[7], b.data[5], 60 * sizeof(float));
    memcpy(extra, b.f, 4 * sizeof *extra);
    extra[4] = (struct lora_factors){b.data[0], b.data[5], 2, 2}; /* another rank: not compared */
    for (int i = 0; i < 5; i++)
        add_product(s, 30, 20, &extra[i], 1);
    extra[4].up = memcpy(malloc(60 * sizeof(float)), b.data[0], 60 * sizeof(float));
    extra[4].down = memcpy(malloc(40 * sizeof(float)), b.data[5], 40 * sizeof(float));
    left = factors_join(extra, 5, 30, 20);
    assert_int_equal(left, 3);
    for (size_t i = 0; i < left; i++)
        add_product(s, 30, 20, &extra[i], -1);
    for (size_t i = 0; i < 600; i++)
        worst = fmax(worst, fabs(s[i]));
    assert_true(worst <= 2 * arithmetic(&b)); /* one rounding of each sum; the fifth module has none */
    free((float *)extra[2].up);
    free((float *)extra[2].down);
    bench_free(&b);
}

/* Same bytes on every call, with scratch of any history. */
static void test_repeat(void **state)
{
    struct bench b = {.out = 60, .in = 80};
    struct combine_work work = {0};
    struct rank_rule rule = {RANK_FIXED, 10, 0};
    float up[2][600], down[2][800];
    struct combined c;
    struct err e;

    (void)state;
    add_module(&b, 10, 1, 0.8, 1);
    add_module(&b, 12, 1, 0.8, 1);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(combine_best(up[i], down[i], &c, b.f, 2, 60, 80, &rule, &work, &e), 0);
        memset(work.data, 0xff, work.size);
    }
    assert_memory_equal(up[0], up[1], sizeof up[0]);
    assert_memory_equal(down[0], down[1], sizeof down[0]);
    combine_work_free(&work);
    bench_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spectra), cmocka_unit_test(test_strong),  cmocka_unit_test(test_degenerate),
        cmocka_unit_test(test_rules),   cmocka_unit_test(test_dynamic), cmocka_unit_test(test_concat),
        cmocka_unit_test(test_join),    cmocka_unit_test(test_repeat),
    };

    thread_init(0); /* as the program does: LAPACK's own threads would compete with ours */
    return cmocka_run_group_tests(tests, NULL, NULL);
}

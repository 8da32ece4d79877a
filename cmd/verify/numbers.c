/* What no device computes: tokens, random numbers, noise schedules. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/verify/verify.h"
#include "formats/tokenizer.h"
#include "ref/base/rng.h"
#include "ref/diffusion/schedule.h"

/* ---- Tokenizer ---- */

/* Ids that differ, counting those that one side has more. */
static size_t wrong_ids(const struct token_list *ids, const json_t *want)
{
    size_t n = json_array_size(want), wrong = ids->count > n ? ids->count - n : n - ids->count;

    for (size_t i = 0; i < ids->count && i < n; i++)
        wrong += ids->id[i] != json_integer_value(json_array_get(want, i));
    return wrong;
}

int verify_tokenizer(struct verify *v, struct err *err)
{
    struct tokenizer *t = NULL;
    struct token_list ids = {0};
    json_t *cases, *one;
    json_error_t why;
    char path[4096];
    int rc = -1;
    size_t i;

    snprintf(path, sizeof path, "%s/tokenizer.json", v->golden);
    cases = json_load_file(path, JSON_ALLOW_NUL, &why);
    if (!cases)
        return err_set(err, "cannot read golden file '%s': %s; take it from the sources of this version", path, why.text);
    if (tokenizer_open(&t, err))
        goto out;
    json_array_foreach(cases, i, one) {
        json_t *text = json_object_get(one, "text"), *want = json_object_get(one, "ids");
        char name[40];
        struct verify_row row = {.group = "tokenizer", .what = "token ids", .name = name, .dtype = DT_I32};

        ids.count = 0;
        if (!json_is_string(text) || tokenizer_encode(t, json_string_value(text), json_string_length(text), &ids, err))
            goto out;
        snprintf(name, sizeof name, "text %zu", i);
        row.shape = shape_of(1, (int)json_array_size(want));
        row.worst = (double)wrong_ids(&ids, want);
        verify_row_add(v, &row);
    }
    rc = 0;
out:
    free(ids.id);
    tokenizer_close(t);
    json_decref(cases);
    return rc;
}

/* ---- Random numbers ---- */

static const unsigned long long seeds[] = {0, 42, (1ull << 32) + 7};
enum { SEEDS = sizeof seeds / sizeof seeds[0] };

/* Vector path (16 numbers and more): torch computes the angle in f32 (half a unit in the last place at 2 pi: 2.4e-7) and its
 * sine within two more; the radius is at most sqrt(2 * 24 ln 2) = 5.77, its own relative error 2^-22. So |difference| <=
 * 5.77 * (2.4e-7 + 2 * 6e-8 + 2.4e-7) = 3.5e-6. Scalar path: doubles on both sides, one rounding to f32, libm differences
 * below it: 2^-23 relative. */
static int check_normal(struct verify *v, struct verify_file *f, unsigned long long seed, size_t n, struct err *err)
{
    struct verify_row row = {.group = "rng", .what = "normals, CPU"};
    char name[64];
    float x[1000];
    struct rng r;

    rng_seed(&r, seed);
    rng_normal(&r, x, n);
    snprintf(name, sizeof name, "normal.%llu.%zu", seed, n);
    if (verify_close(v, f, &row, name, x, n, n < 16 ? 0 : 3.5e-6, n < 16 ? 0x1p-23 : 0, err))
        return -1;
    rng_normal(&r, x, 5);
    snprintf(name, sizeof name, "then_normal.%llu.%zu", seed, n);
    return verify_close(v, f, &row, name, x, 5, 0, 0x1p-23, err);
}

/* Integers: how many differ; none may. */
static int check_integers(struct verify *v, struct verify_file *f, const char *what, const char *name, const int32_t *got, size_t n,
                          struct err *err)
{
    struct verify_row row = {.group = "rng", .what = what, .name = name, .dtype = DT_I32, .shape = shape_of(1, (int)n)};
    size_t count;
    int32_t *want = verify_i32(f, name, &count, err);

    if (!want)
        return -1;
    row.worst = count == n ? 0 : INFINITY;
    for (size_t i = 0; i < n && i < count; i++)
        row.worst += got[i] != want[i];
    verify_row_add(v, &row);
    return 0;
}

static int check_uniform(struct verify *v, struct verify_file *f, unsigned long long seed, struct err *err)
{
    static const size_t counts[] = {1, 2, 100};
    int32_t below[100];
    uint32_t order[100];
    float x[1300];
    char name[64];
    struct rng r;

    rng_seed(&r, seed);
    for (size_t i = 0; i < 1300; i++)
        x[i] = rng_uniform(&r);
    snprintf(name, sizeof name, "uniform.%llu.1300", seed);
    if (verify_close(v, f, &(struct verify_row){.group = "rng", .what = "uniform, CPU"}, name, x, 1300, 0, 0, err))
        return -1;
    rng_seed(&r, seed);
    for (size_t i = 0; i < 100; i++)
        below[i] = (int32_t)rng_below(&r, 1000);
    snprintf(name, sizeof name, "below1000.%llu.100", seed);
    if (check_integers(v, f, "integers", name, below, 100, err))
        return -1;
    for (size_t c = 0; c < 3; c++) {
        rng_seed(&r, seed);
        rng_permutation(&r, order, counts[c]);
        for (size_t i = 0; i < counts[c]; i++)
            below[i] = (int32_t)order[i];
        snprintf(name, sizeof name, "permutation.%llu.%zu", seed, counts[c]);
        if (check_integers(v, f, "permutations", name, below, counts[c], err))
            return -1;
    }
    return 0;
}

/* The device's log and sine in f32 are within 2 units in the last place, the angle's scale and the product add one each:
 * radius <= sqrt(2 * 33 ln 2) = 6.77 times 4 * 2^-24 for the sine, which is at most 1, and the same again for the radius's
 * own relative error: 3.3e-6 together. The file holds every 16th of the longest rows. */
static int check_philox(struct verify *v, struct verify_file *f, unsigned long long seed, size_t n, struct err *err)
{
    float *x = arena_alloc(&f->arena, n * sizeof *x, err);

    for (uint64_t call = 0; x && call < 2; call++) {
        size_t step = n > 1024 ? 16 : 1;
        char name[64];

        rng_philox_normal(seed, call, x, n);
        for (size_t i = 0; i < n / step; i++)
            x[i] = x[i * step];
        snprintf(name, sizeof name, "%s.%llu.%zu", call ? "second" : "first", seed, n);
        if (verify_close(v, f, &(struct verify_row){.group = "rng", .what = "normals, GPU"}, name, x, n / step, 3.3e-6, 0, err))
            return -1;
    }
    return x ? 0 : -1;
}

int verify_rng(struct verify *v, struct err *err)
{
    static const size_t counts[] = {1, 7, 15, 16, 17, 31, 64, 1000}, counts_gpu[] = {1, 5, 1024, 16384};
    static const unsigned long long seeds_gpu[] = {0, 42, (1ull << 40) + 7};
    struct verify_file f = {0}, gpu = {0};
    int rc = -1;

    if (verify_file_open(&f, v, "rng.safetensors", err) || verify_file_open(&gpu, v, "rng_cuda.safetensors", err))
        goto out;
    for (size_t s = 0; s < SEEDS; s++) {
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
            if (check_normal(v, &f, seeds[s], counts[c], err))
                goto out;
        if (check_uniform(v, &f, seeds[s], err))
            goto out;
    }
    for (size_t s = 0; s < 3; s++)
        for (size_t c = 0; c < 4; c++)
            if (check_philox(v, &gpu, seeds_gpu[s], counts_gpu[c], err))
                goto out;
    rc = 0;
out:
    verify_file_close(&f);
    verify_file_close(&gpu);
    return rc;
}

/* ---- Schedules ---- */

/* u = 2^-24. A root of torch's may be 2u off, ours u; so root - last is off by 3u (root + last) and two roundings, its square
 * relatively by twice that; a quotient of two neighbours adds up both, 1 - quotient rounds twice. The products collect what
 * 1 - beta loses, u a step on both sides; the errors of the roots telescope to those of the two ends. One row each, of error
 * over limit. */
static int check_zero_snr(struct verify *v, struct verify_file *f, struct err *err)
{
    const double u = 0x1p-24;
    struct schedule s, zero;
    struct verify_row beta_row = {.group = "schedule", .what = "zero terminal SNR", .name = "zero_beta (of the limit)",
                                  .dtype = DT_F32, .shape = shape_of(1, SCHEDULE_STEPS), .limit = 1};
    struct verify_row bar_row = beta_row;
    const float *beta = verify_f32(f, "zero_beta", NULL, err), *bar = beta ? verify_f32(f, "zero_bar", NULL, err) : NULL;
    double last, before = 0;

    if (!bar)
        return -1;
    bar_row.name = "zero_bar (of the limit)";
    schedule_init(&s);
    schedule_init(&zero);
    schedule_zero_snr(&zero);
    last = sqrt((double)s.bar[SCHEDULE_STEPS - 1]);
    for (size_t i = 0; i + 1 < SCHEDULE_STEPS; i++) {
        double root = sqrt((double)s.bar[i]), off = 2 * (3 * u * (root + last) / (root - last) + 4 * u);
        double product = off + before + 2 * u * (double)(i + 1), limit = off + before + 4 * u;

        beta_row.worst = fmax(beta_row.worst, fabs((double)zero.beta[i] - (double)beta[i]) / limit);
        bar_row.worst = fmax(bar_row.worst, fabs((double)zero.bar[i] - (double)bar[i]) / (product * (double)bar[i]));
        before = off;
    }
    if (zero.beta[SCHEDULE_STEPS - 1] != beta[SCHEDULE_STEPS - 1])
        beta_row.worst = INFINITY;
    if (zero.bar[SCHEDULE_STEPS - 1] != bar[SCHEDULE_STEPS - 1])
        bar_row.worst = INFINITY;
    verify_row_add(v, &beta_row);
    verify_row_add(v, &bar_row);
    return 0;
}

/* Two products whose factor is a root, 3u off between torch and us, each rounded once on both sides, and their sum, rounded
 * on both: (3 + 2 + 2) u (|x0| + |noise|). */
static int check_noising(struct verify *v, struct verify_file *f, struct err *err)
{
    struct verify_row row = {.group = "schedule", .what = "noised latents"};
    const float *x0 = verify_f32(f, "x0", NULL, err), *noise = x0 ? verify_f32(f, "noise", NULL, err) : NULL;
    const int32_t *t = noise ? verify_i32(f, "t", NULL, err) : NULL;
    float noised[600], velocity[600];
    double largest = 0;
    struct schedule s;

    if (!t)
        return -1;
    schedule_init(&s);
    for (size_t i = 0; i < 6; i++) {
        schedule_add_noise(&s, (size_t)t[i], x0, noise, noised + 100 * i, 100);
        schedule_velocity(&s, (size_t)t[i], x0, noise, velocity + 100 * i, 100);
    }
    for (size_t i = 0; i < 100; i++)
        largest = fmax(largest, fabs((double)x0[i]) + fabs((double)noise[i]));
    if (verify_close(v, f, &row, "noised", noised, 600, 7 * 0x1p-24 * largest, 0, err))
        return -1;
    row.what = "velocities";
    return verify_close(v, f, &row, "velocity", velocity, 600, 7 * 0x1p-24 * largest, 0, err);
}

/* snr = (a/b)^2 in f32: the subtraction 1 - bar is exact (bar <= 1, Sterbenz from 0.5 on; below it one rounding), two roots,
 * a quotient, a square: at most 2 * (0.5 + 0.5 + 0.5 + 0.5) + 1 half units; the weights add three roundings: 4 eps. */
static int check_weights(struct verify *v, struct verify_file *f, struct err *err)
{
    static const struct {
        const char *name;
        enum prediction what;
    } cases[] = {{"min_snr_eps", PREDICT_EPS}, {"min_snr_v", PREDICT_V}, {"min_snr_x0", PREDICT_X0}};
    struct verify_row row = {.group = "schedule", .what = "SNR weights"};
    float x[SCHEDULE_STEPS];
    struct schedule s;

    schedule_init(&s);
    for (size_t i = 0; i < SCHEDULE_STEPS; i++)
        x[i] = schedule_snr(&s, i);
    if (verify_close(v, f, &row, "snr", x, SCHEDULE_STEPS, 0, 3 * 0x1p-23, err))
        return -1;
    for (size_t k = 0; k < 3; k++) {
        for (size_t i = 0; i < SCHEDULE_STEPS; i++)
            x[i] = schedule_min_snr(&s, i, 5, cases[k].what);
        if (verify_close(v, f, &row, cases[k].name, x, SCHEDULE_STEPS, 0, 4 * 0x1p-23, err))
            return -1;
    }
    return 0;
}

int verify_schedule(struct verify *v, struct err *err)
{
    struct verify_row row = {.group = "schedule", .what = "tables"};
    struct verify_file f;
    struct schedule s;
    int rc = -1;

    schedule_init(&s);
    if (verify_file_open(&f, v, "schedule.safetensors", err) == 0 &&
        verify_close(v, &f, &row, "beta", s.beta, SCHEDULE_STEPS, 0, 0, err) == 0 &&
        verify_close(v, &f, &row, "bar", s.bar, SCHEDULE_STEPS, 0, 0, err) == 0 && check_zero_snr(v, &f, err) == 0 &&
        check_noising(v, &f, err) == 0 && check_weights(v, &f, err) == 0)
        rc = 0;
    verify_file_close(&f);
    return rc;
}

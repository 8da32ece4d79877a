/* Ten training steps against torch (golden/train.safetensors).
 *
 * Losses and gradients have a layer's limits (limit.h). AdamW divides a gradient by its own size, so what a factor is off by after
 * ten steps is the learning rate times the relative error of its gradient. The worst belong to gradients that happen to be near
 * zero, wherever they are: in f32 the sample for an element is the largest of all tensors of the case. In fewer bits such an
 * element may go the other way altogether, and a limit for each says nothing; there all factors together must be as near as
 * torch's own run of that type: 3 times its root mean square, to which all elements contribute then (in f32 a few would decide it).
 */
#include "cmd/verify/training_subject.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Where the exact gradient is 0 (group norm with one channel a group takes away what the time embedding adds), what cancels are
 * terms of the size of other gradients. */
static const double no_gradient = 1e-12, size_of_terms = 0.003;

static double largest(const float *x, size_t n)
{
    double size = 0;

    for (size_t i = 0; i < n; i++)
        size = fmax(size, fabs((double)x[i]));
    return size < no_gradient ? size_of_terms : size;
}

/* got [n] against the golden tensor, a row. samples: torch's own errors. */
static int compare(struct verify *v, struct training *t, const char *what, const char *key, const float *got, size_t n,
                   const json_t *samples, struct err *err)
{
    struct verify_row row = {.group = "training", .what = what};
    const struct tensor_entry *e;
    char name[400];
    size_t count = 0;
    float *want;

    training_key(t, key, name);
    e = verify_entry(&t->f->file, name, err);
    want = e ? verify_f32(&t->f->file, name, &count, err) : NULL;
    if (!want)
        return -1;
    if (count != n)
        return err_set(err, "golden file '%s': tensor '%s' has %zu elements, this program makes %zu", t->f->file.file->path, name, count,
                       n);
    row.name = name;
    row.dtype = e->dtype;
    row.shape = e->shape;
    row.worst = verify_max_diff(got, want, n);
    row.limit = verify_limit_layer(v->arithmetic, samples ? samples : json_object_get(t->f->error, name), largest(want, n));
    verify_row_add(v, &row);
    return 0;
}

static bool stored(const struct training *t, const char *key)
{
    char name[400];

    training_key(t, key, name);
    return tensor_file_find(t->f->file.file, name) != NULL;
}

/* "grad/PATH.down" and the like for each factor that is stored. Returns 0 or -1. */
typedef int factor_fn(struct verify *v, struct training *t, const char *key, const float *x, size_t n, void *ctx, struct err *err);

static int each_factor(struct verify *v, struct training *t, const char *kind, bool gradient, factor_fn *f, void *ctx, struct err *err)
{
    for (size_t i = 0; i < 2 * t->net->count; i++) {
        const struct network_module *m = &t->net->module[i / 2];
        const struct tensor *factor = i % 2 ? &m->up : &m->down;
        const float *x = gradient ? (i % 2 ? m->dup : m->ddown) : factor->data;
        char key[400];
        size_t n = 0;

        snprintf(key, sizeof key, "%s/%s.%s", kind, m->spec.path, i % 2 ? "up" : "down");
        shape_numel(&factor->shape, &n);
        if (stored(t, key) && f(v, t, key, x, n, ctx, err))
            return -1;
    }
    return 0;
}

static int gradient(struct verify *v, struct training *t, const char *key, const float *x, size_t n, void *ctx, struct err *err)
{
    (void)ctx;
    return compare(v, t, "gradients", key, x, n, NULL, err);
}

/* The largest of torch's f32 errors of the case's factors. */
static double worst_sample(const struct training *t)
{
    char prefix[400];
    const char *name;
    double most = 0;
    json_t *e;

    training_key(t, "last/", prefix);
    json_object_foreach(t->f->error, name, e)
    {
        if (strncmp(name, prefix, strlen(prefix)) == 0)
            most = fmax(most, json_number_value(json_array_get(e, 0)));
    }
    return most;
}

struct sum {
    double squares;
    size_t n;
    json_t *samples; /* f32 only */
};

static int factor(struct verify *v, struct training *t, const char *key, const float *x, size_t n, void *ctx, struct err *err)
{
    struct sum *s = ctx;
    char name[400];
    float *want;

    training_key(t, key, name);
    want = verify_f32(&t->f->file, name, NULL, err);
    if (!want)
        return -1;
    for (size_t i = 0; i < n; i++)
        s->squares += ((double)x[i] - (double)want[i]) * ((double)x[i] - (double)want[i]);
    s->n += n;
    return v->arithmetic->sample == 0 ? compare(v, t, "factors", key, x, n, s->samples, err) : 0;
}

static int compare_factors(struct verify *v, struct training *t, struct err *err)
{
    struct sum s = {.samples = json_pack("[f]", worst_sample(t))};
    struct verify_row row = {.group = "training", .what = "all factors", .dtype = DT_COUNT};
    char name[400];
    int rc = s.samples ? each_factor(v, t, "last", false, factor, &s, err) : err_memory(err, 1, "a limit");

    json_decref(s.samples);
    if (rc || s.n == 0 || v->arithmetic->sample == 0)
        return rc;
    training_key(t, "root mean square of all factors", name);
    row.name = name;
    row.worst = sqrt(s.squares / (double)s.n);
    row.limit = 3 * json_number_value(json_array_get(json_object_get(t->f->rms, t->name), (size_t)v->arithmetic->sample));
    verify_row_add(v, &row);
    return 0;
}

static int run(struct verify *v, struct training *t, struct err *err)
{
    float losses[TRAINING_STEPS];

    for (size_t i = 0; i < TRAINING_STEPS; i++)
        if (training_step(t, i, &losses[i], err) || (i == 0 && each_factor(v, t, "grad", true, gradient, NULL, err)) ||
            training_update(t, err))
            return -1;
    return optim_fetch(t->optim, false, err) || compare(v, t, "losses", "losses", losses, TRAINING_STEPS, NULL, err) ||
                   compare_factors(v, t, err)
               ? -1
               : 0;
}

int training_compare(struct verify *v, struct training_file *f, const char *name, bool checkpoint, struct err *err)
{
    struct training t;
    float scale = strcmp(v->arithmetic->name, "f16") == 0 ? 1024 : 1; /* as torch's run: small gradients are numbers of f16 */
    int rc = training_open(&t, f, name, v->ops, checkpoint, scale, "AdamW", err) || run(v, &t, err) ? -1 : 0;

    training_close(&t);
    return rc ? err_prefix(err, "training %s: ", name) : 0;
}

int verify_training(struct verify *v, struct err *err)
{
    static const char *const cases[] = {"eps", "v", "unet", "drop"};
    struct training_file f = {0};
    int rc = training_file_open(&f, v, "train.safetensors", err);

    for (size_t i = 0; rc == 0 && i < sizeof cases / sizeof *cases; i++)
        rc = training_compare(v, &f, cases[i], i % 2, err);
    training_file_close(&f);
    if (rc == 0)
        rc = training_file_open(&f, v, "train_more.safetensors", err) || training_compare(v, &f, "more", false, err) ? -1 : 0;
    training_file_close(&f);
    return rc;
}

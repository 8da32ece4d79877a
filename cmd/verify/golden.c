/* Reading golden files and comparing with them. */
#include <math.h>
#include <string.h>

#include "cmd/verify/verify.h"

int verify_file_open(struct verify_file *f, const struct verify *v, const char *name, struct err *err)
{
    char path[4096];

    *f = (struct verify_file){0};
    snprintf(path, sizeof path, "%s/%s", v->golden, name);
    return tensor_file_open(&f->file, path, err);
}

void verify_file_close(struct verify_file *f)
{
    tensor_file_close(f->file);
    arena_free(&f->arena);
    *f = (struct verify_file){0};
}

const struct tensor_entry *verify_entry(const struct verify_file *f, const char *name, struct err *err)
{
    const struct tensor_entry *e = tensor_file_find(f->file, name);

    if (!e)
        err_set(err, "golden file '%s' has no tensor '%s'; take it from the sources of this version", f->file->path, name);
    return e;
}

void *verify_raw(struct verify_file *f, const struct tensor_entry *e, struct err *err)
{
    void *raw = arena_alloc(&f->arena, e->nbytes ? e->nbytes : 1, err);

    return raw && tensor_file_read(f->file, e, raw, err) == 0 ? raw : NULL;
}

float *verify_f32(struct verify_file *f, const char *name, size_t *n, struct err *err)
{
    const struct tensor_entry *e = verify_entry(f, name, err);
    size_t count;
    float *x;
    void *raw;

    if (!e)
        return NULL;
    if (!dtype_is_float(e->dtype)) {
        err_set(err, "golden file '%s': tensor '%s' has no numbers with a point", f->file->path, name);
        return NULL;
    }
    count = e->nbytes / dtype_size(e->dtype);
    raw = verify_raw(f, e, err);
    x = raw ? arena_alloc(&f->arena, (count + 1) * sizeof *x, err) : NULL;
    if (!x)
        return NULL;
    dtype_convert(x, DT_F32, raw, e->dtype, count);
    if (n)
        *n = count;
    return x;
}

int32_t *verify_i32(struct verify_file *f, const char *name, size_t *n, struct err *err)
{
    const struct tensor_entry *e = verify_entry(f, name, err);

    if (e && e->dtype != DT_I32) {
        err_set(err, "golden file '%s': tensor '%s' is %s, not i32", f->file->path, name, dtype_name(e->dtype));
        return NULL;
    }
    if (e && n)
        *n = e->nbytes / sizeof(int32_t);
    return e ? verify_raw(f, e, err) : NULL;
}

json_t *verify_json(const struct verify_file *f, const char *key, struct err *err)
{
    const char *text = tensor_file_metadata(f->file, key);
    json_t *value = text ? json_loads(text, 0, NULL) : NULL;

    if (!value)
        err_set(err, "golden file '%s' has no metadata '%s' in JSON; take it from the sources of this version", f->file->path, key);
    return value;
}

static double difference(float a, float b)
{
    double d = fabs((double)a - (double)b);

    if ((isnan(a) && isnan(b)) || a == b)
        return 0;
    return isnan(d) ? INFINITY : d;
}

double verify_max_diff(const float *a, const float *b, size_t n)
{
    double worst = 0;

    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, difference(a[i], b[i]));
    return worst;
}

bool verify_row_add(struct verify *v, const struct verify_row *row)
{
    bool ok = row->worst <= row->limit; /* false for NaN */

    v->rows++;
    v->failed += !ok;
    if (v->report)
        v->report(v->ctx, row, ok);
    return ok;
}

int verify_close(struct verify *v, struct verify_file *f, const struct verify_row *row, const char *name, const float *got,
                 size_t n, double abs, double rel, struct err *err)
{
    const struct tensor_entry *e = verify_entry(f, name, err);
    struct verify_row r = *row;
    size_t count;
    float *want = e ? verify_f32(f, name, &count, err) : NULL;
    double share = -1;

    if (!want)
        return -1;
    if (count != n)
        return err_set(err, "golden file '%s': tensor '%s' has %zu elements, this program makes %zu", f->file->path, name, count, n);
    r.name = name;
    r.dtype = e->dtype;
    r.shape = e->shape;
    for (size_t i = 0; i < n; i++) {
        double off = difference(got[i], want[i]), limit = abs + rel * fabs((double)want[i]);
        double now = off == 0 ? 0 : limit > 0 ? off / limit : INFINITY;

        if (now > share) {
            share = now;
            r.worst = off;
            r.limit = limit;
        }
    }
    verify_row_add(v, &r);
    return 0;
}

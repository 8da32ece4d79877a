#include "tests/lib/golden.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ref/base/mem.h"

struct tensor_file *golden_open(const char *name)
{
    struct tensor_file *f = NULL;
    struct err err = {0};
    char path[512];

    snprintf(path, sizeof path, "golden/%s", name);
    if (tensor_file_open(&f, path, &err) != 0)
        fail_msg("%s", err.msg);
    return f;
}

const struct tensor_entry *golden_entry(const struct tensor_file *f, const char *name)
{
    const struct tensor_entry *e = tensor_file_find(f, name);

    if (!e)
        fail_msg("%s: no tensor '%s'", f->path, name);
    return e;
}

static void *read_raw(const struct tensor_file *f, const struct tensor_entry *e)
{
    struct err err = {0};
    void *raw = mem_new(e->nbytes, e->name, &err);

    if (!raw || tensor_file_read(f, e, raw, &err) != 0)
        fail_msg("%s", err.msg);
    return raw;
}

float *golden_f32(const struct tensor_file *f, const char *name, size_t *n)
{
    const struct tensor_entry *e = golden_entry(f, name);
    size_t count = e->nbytes / dtype_size(e->dtype);
    struct err err = {0};
    float *x = mem_new(count * sizeof *x, name, &err);
    void *raw = read_raw(f, e);

    if (!x)
        fail_msg("%s", err.msg);
    dtype_convert(x, DT_F32, raw, e->dtype, count);
    free(raw);
    if (n)
        *n = count;
    return x;
}

int32_t *golden_i32(const struct tensor_file *f, const char *name, size_t *n)
{
    const struct tensor_entry *e = golden_entry(f, name);

    assert_int_equal(e->dtype, DT_I32);
    if (n)
        *n = e->nbytes / sizeof(int32_t);
    return read_raw(f, e);
}

static double difference(float a, float b)
{
    double d = fabs((double)a - (double)b);

    if (isnan(a) && isnan(b))
        return 0;
    if (isinf(a) && isinf(b) && (a > 0) == (b > 0))
        return 0;
    return isnan(d) ? INFINITY : d;
}

double golden_max_diff(const float *a, const float *b, size_t n)
{
    double worst = 0;

    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, difference(a[i], b[i]));
    return worst;
}

void golden_close(const char *what, const float *a, const float *b, size_t n, double abs_limit, double rel_limit)
{
    for (size_t i = 0; i < n; i++) {
        double limit = abs_limit + rel_limit * fabs((double)b[i]);

        if (!(difference(a[i], b[i]) <= limit))
            fail_msg("%s: element %zu of %zu is %.9g, the oracle has %.9g (difference %.3g, limit %.3g)", what, i, n, (double)a[i],
                     (double)b[i], difference(a[i], b[i]), limit);
    }
}

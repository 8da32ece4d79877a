#include "ref/base/tensor.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ref/base/mem.h"

struct shape shape_of(int ndim, ...)
{
    struct shape s = {.ndim = ndim};
    va_list ap;

    va_start(ap, ndim);
    for (int i = 0; i < ndim; i++)
        s.dim[i] = (size_t)va_arg(ap, int);
    va_end(ap);
    return s;
}

bool shape_numel(const struct shape *s, size_t *out)
{
    size_t n = 1;

    for (int i = 0; i < s->ndim; i++)
        if (!mem_mul(n, s->dim[i], &n))
            return false;
    *out = n;
    return true;
}

bool shape_nbytes(const struct shape *s, enum dtype t, size_t *out)
{
    size_t n;

    return shape_numel(s, &n) && mem_mul(n, dtype_size(t), out);
}

bool shape_equal(const struct shape *a, const struct shape *b)
{
    return a->ndim == b->ndim && memcmp(a->dim, b->dim, (size_t)a->ndim * sizeof a->dim[0]) == 0;
}

const char *shape_print(const struct shape *s, char *buf, size_t size)
{
    size_t at = 0;

    snprintf(buf, size, "[");
    for (int i = 0; i < s->ndim; i++) {
        at = strlen(buf);
        snprintf(buf + at, size - at, "%s%zu", i ? ", " : "", s->dim[i]);
    }
    at = strlen(buf);
    snprintf(buf + at, size - at, "]");
    return buf;
}

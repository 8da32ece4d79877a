#include "cmd/verify/golden_model.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

static uint64_t hash_name(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

static uint64_t mix(uint64_t h, size_t i)
{
    uint64_t z = h + (i + 1) * 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void golden_model_fill(float *dst, const char *name, const struct shape *s, size_t n)
{
    bool norm = s->ndim == 1 && strcmp(name + strlen(name) - 6, "weight") == 0;
    double fan = 1, size = 1.0 / 8;
    uint64_t h = hash_name(name);

    for (int i = 1; i < s->ndim; i++)
        fan *= (double)s->dim[i];
    if (s->ndim > 1)
        size = exp2(floor(log2(3 / fan) / 2));
    for (size_t i = 0; i < n; i++) {
        uint64_t z = mix(h, i);

        dst[i] = (float)(norm ? 1 + ((double)(z >> 61) - 4) / 16 : ((double)(z >> 57) * 2 - 127) / 128 * size);
    }
}

const char *golden_model_part(enum model_part part)
{
    static const char *const keys[MODEL_PARTS] = {"unet", "te", "vae", "other"};

    return keys[part];
}

int golden_model_find(void *ctx, enum model_part part, const char *name, struct weight_info *out, struct err *err)
{
    const struct golden_model *s = ctx;
    json_t *parts = json_object_get(s->tensors, golden_model_part(part)), *dims = json_object_get(parts, name), *d;
    size_t i;

    (void)err;
    if (!dims)
        return 0;
    *out = (struct weight_info){.dtype = s->dtype, .shape.ndim = (int)json_array_size(dims)};
    json_array_foreach(dims, i, d)
        out->shape.dim[i] = (size_t)json_integer_value(d);
    json_object_foreach(parts, name, d) /* a name that lives as long as the list */
        if (d == dims)
            out->handle = name;
    return 1;
}

int golden_model_read(void *ctx, const struct weight_info *w, void *dst, struct err *err)
{
    const struct golden_model *s = ctx;
    const char *part = NULL;
    json_t *names;
    char key[300];
    float *values;
    size_t n = 0;

    json_object_foreach(s->tensors, part, names)
        if (json_object_get(names, w->handle))
            break;
    snprintf(key, sizeof key, "%s/%s/%s", s->model, part, (const char *)w->handle);
    shape_numel(&w->shape, &n);
    values = mem_new(n * sizeof *values, "a golden model", err);
    if (!values)
        return -1;
    golden_model_fill(values, key, &w->shape, n);
    dtype_convert(dst, w->dtype, values, DT_F32, n);
    free(values);
    return 0;
}

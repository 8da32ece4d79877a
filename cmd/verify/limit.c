#include "cmd/verify/limit.h"

#include <math.h>
#include <string.h>

const struct verify_arithmetic verify_arithmetics[] = {
    {"f32", 0x1p-24, 0},
    {"tf32", 0x1p-11, 2},
    {"f16", 0x1p-11, 2},
    {"bf16", 0x1p-8, 1},
    {0},
};

static const char *const sample_keys[] = {NULL, "bf16", "f16"};

const struct verify_arithmetic *verify_arithmetic_of(enum dtype t, bool tf32)
{
    const char *name = tf32 && t == DT_F32 ? "tf32" : t < DT_COUNT ? dtype_name(t) : "f32";

    for (const struct verify_arithmetic *a = verify_arithmetics; a->name; a++)
        if (strcmp(a->name, name) == 0)
            return a;
    return verify_arithmetics;
}

double verify_limit_op(const struct verify_arithmetic *a, double n, const json_t *samples, const char *key, double size)
{
    double limit = (2 * n + 12) * 0x1p-24 * size;

    if (a->sample == 0)
        return limit;
    samples = json_object_get(samples, sample_keys[a->sample]);
    return limit + 6 * json_number_value(json_object_get(samples, key)) + 4 * a->u * size;
}

double verify_limit_layer(const struct verify_arithmetic *a, const json_t *samples, double size)
{
    double limit = 6 * json_number_value(json_array_get(samples, 0)) + 16 * 0x1p-24 * size;

    if (a->sample == 0)
        return limit;
    return limit + 6 * json_number_value(json_array_get(samples, (size_t)a->sample)) + 16 * a->u * size;
}

#include "ref/base/dtype.h"

#include <assert.h>
#include <string.h>

#include "ref/base/half.h"
#include "ref/base/simd.h"

static const struct {
    const char *name;
    unsigned char size;
    bool is_float;
} types[DT_COUNT] = {
    [DT_F32] = {"f32", 4, true},       [DT_F16] = {"f16", 2, true},       [DT_BF16] = {"bf16", 2, true},
    [DT_F64] = {"f64", 8, true},       [DT_F8_E4M3] = {"f8_e4m3", 1, false}, [DT_F8_E5M2] = {"f8_e5m2", 1, false},
    [DT_I64] = {"i64", 8, false},      [DT_I32] = {"i32", 4, false},      [DT_I16] = {"i16", 2, false},
    [DT_I8] = {"i8", 1, false},        [DT_U64] = {"u64", 8, false},      [DT_U32] = {"u32", 4, false},
    [DT_U16] = {"u16", 2, false},      [DT_U8] = {"u8", 1, false},        [DT_BOOL] = {"bool", 1, false},
};

size_t dtype_size(enum dtype t)
{
    return types[t].size;
}

const char *dtype_name(enum dtype t)
{
    return types[t].name;
}

bool dtype_is_float(enum dtype t)
{
    return types[t].is_float;
}

bool dtype_parse(const char *name, enum dtype *out)
{
    static const struct {
        const char *name;
        enum dtype type;
    } names[] = {
        {"float", DT_F32}, {"f32", DT_F32},  {"fp32", DT_F32},  {"float32", DT_F32},   {"fp16", DT_F16},    {"f16", DT_F16},
        {"half", DT_F16},  {"float16", DT_F16}, {"bf16", DT_BF16}, {"bfloat16", DT_BF16}, {"double", DT_F64}, {"f64", DT_F64},
    };

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i].name) == 0) {
            *out = names[i].type;
            return true;
        }
    return false;
}

static inline uint32_t f32_bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float bits_f32(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

/* The magnitude's bits, moved to where binary32 has them, are the value times 2^-112 (subnormals included); one exact
 * multiplication mends the exponent. Infinity and NaN land at or above 2^16 and get binary32's full exponent. */
static inline float f16_to_f32(uint16_t h)
{
    uint32_t mag = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t u = f32_bits(bits_f32(mag) * 0x1p112f);
    uint32_t special = (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    uint32_t quiet = (h & 0x7fff) > 0x7c00 ? 0x00400000u : 0;

    return bits_f32(u | special | quiet | sign);
}

/* Adding a power of two whose last bit has the weight of the result's last bit rounds to nearest even in the hardware's
 * own addition; for normals the base is the value's own power of two times 2^13, for subnormals it is fixed. */
static inline uint16_t f32_to_f16(float f)
{
    uint32_t u = f32_bits(f), mag = u & 0x7fffffff, sign = (u >> 16) & 0x8000, r;
    uint32_t sub = f32_bits(bits_f32(mag) + 0.5f) - 0x3f000000u;         /* below 2^-14: unit in the last place 2^-24 */
    uint32_t norm = (mag + 0xc8000fffu + ((mag >> 13) & 1)) >> 13;       /* rebias by -112 << 23, round to even */

    r = mag < 0x38800000u ? sub : norm;
    r = mag >= 0x47800000u ? 0x7c00 : r;                                 /* 2^16 and more, infinity */
    r = mag > 0x7f800000u ? 0x7e00 | ((mag >> 13) & 0x3ff) : r;          /* NaN */
    return (uint16_t)(r | sign);
}

static inline float bf16_to_f32(uint16_t h)
{
    uint32_t quiet = (h & 0x7fff) > 0x7f80 ? 0x00400000u : 0;

    return bits_f32(((uint32_t)h << 16) | quiet);
}

static inline uint16_t f32_to_bf16(float f)
{
    uint32_t u = f32_bits(f);
    uint32_t r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;

    return (uint16_t)((u & 0x7fffffff) > 0x7f800000u ? (u >> 16) | 0x40 : r);
}

/* Rounds to binary32 toward odd: a later rounding to f16 or bf16 then gives what one rounding would have. */
static inline float f64_to_f32_odd(double d)
{
    float f = (float)d;
    double back = (double)f;
    uint32_t u = f32_bits(f);

    if (back == d || d != d)
        return f;
    if ((u & 0x7fffffff) == 0x7f800000u)
        return f; /* overflow stays overflow in the narrower type */
    if ((d > 0) ? back > d : back < d)
        u -= 1; /* toward zero */
    return bits_f32(u | 1);
}

float dtype_f16_to_f32(uint16_t h)
{
    return f16_to_f32(h);
}

float dtype_bf16_to_f32(uint16_t h)
{
    return bf16_to_f32(h);
}

uint16_t dtype_f32_to_f16(float f)
{
    return f32_to_f16(f);
}

uint16_t dtype_f32_to_bf16(float f)
{
    return f32_to_bf16(f);
}

#define CONVERT(name, to_t, from_t, expr)                                                       \
    SIMD_CLONES static void name(void *restrict dst, const void *restrict src, size_t n)        \
    {                                                                                           \
        to_t *restrict y = dst;                                                                 \
        const from_t *restrict x = src;                                                         \
        for (size_t i = 0; i < n; i++)                                                          \
            y[i] = expr;                                                                        \
    }

CONVERT(f16_f32_plain, float, uint16_t, f16_to_f32(x[i]))
CONVERT(bf16_f32, float, uint16_t, bf16_to_f32(x[i]))
CONVERT(f64_f32, float, double, (float)x[i])
CONVERT(f32_f16_plain, uint16_t, float, f32_to_f16(x[i]))
CONVERT(bf16_f16, uint16_t, uint16_t, f32_to_f16(bf16_to_f32(x[i])))
CONVERT(f64_f16, uint16_t, double, f32_to_f16(f64_to_f32_odd(x[i])))
CONVERT(f32_bf16, uint16_t, float, f32_to_bf16(x[i]))
CONVERT(f16_bf16, uint16_t, uint16_t, f32_to_bf16(f16_to_f32(x[i])))
CONVERT(f64_bf16, uint16_t, double, f32_to_bf16(f64_to_f32_odd(x[i])))
CONVERT(f32_f64, double, float, (double)x[i])
CONVERT(f16_f64, double, uint16_t, (double)f16_to_f32(x[i]))
CONVERT(bf16_f64, double, uint16_t, (double)bf16_to_f32(x[i]))

static void f16_f32(void *restrict dst, const void *restrict src, size_t n)
{
    if (!half_to_f32(dst, src, n))
        f16_f32_plain(dst, src, n);
}

static void f32_f16(void *restrict dst, const void *restrict src, size_t n)
{
    if (!half_from_f32(dst, src, n))
        f32_f16_plain(dst, src, n);
}

typedef void convert_fn(void *restrict dst, const void *restrict src, size_t n);

static convert_fn *const converts[DT_COUNT][DT_COUNT] = { /* [to][from] */
    [DT_F32] = {[DT_F16] = f16_f32, [DT_BF16] = bf16_f32, [DT_F64] = f64_f32},
    [DT_F16] = {[DT_F32] = f32_f16, [DT_BF16] = bf16_f16, [DT_F64] = f64_f16},
    [DT_BF16] = {[DT_F32] = f32_bf16, [DT_F16] = f16_bf16, [DT_F64] = f64_bf16},
    [DT_F64] = {[DT_F32] = f32_f64, [DT_F16] = f16_f64, [DT_BF16] = bf16_f64},
};

void dtype_convert(void *dst, enum dtype to, const void *src, enum dtype from, size_t n)
{
    assert(types[to].is_float && types[from].is_float);
    if (to != from)
        converts[to][from](dst, src, n);
    else if (dst != src)
        memcpy(dst, src, n * types[to].size);
}

/* A block is scanned without branches; only a block that holds a bad value is looked at one by one. */
#define NONFINITE(name, type, mask)                                                             \
    SIMD_CLONES static size_t name(const type *x, size_t n)                                     \
    {                                                                                           \
        size_t i = 0;                                                                           \
        for (size_t stop; i < n; i = stop) {                                                    \
            type bad = 0;                                                                       \
            stop = n - i > 4096 ? i + 4096 : n;                                                 \
            for (size_t j = i; j < stop; j++)                                                   \
                bad |= (type)((x[j] & (mask)) == (mask));                                       \
            if (bad)                                                                            \
                break;                                                                          \
        }                                                                                       \
        while (i < n && (x[i] & (mask)) != (mask))                                              \
            i++;                                                                                \
        return i;                                                                               \
    }

NONFINITE(nonfinite_f16, uint16_t, 0x7c00)
NONFINITE(nonfinite_bf16, uint16_t, 0x7f80)
NONFINITE(nonfinite_f32, uint32_t, 0x7f800000u)
NONFINITE(nonfinite_f64, uint64_t, 0x7ff0000000000000u)

size_t dtype_find_nonfinite(const void *x, enum dtype t, size_t n)
{
    switch (t) {
    case DT_F16: return nonfinite_f16(x, n);
    case DT_BF16: return nonfinite_bf16(x, n);
    case DT_F32: return nonfinite_f32(x, n);
    case DT_F64: return nonfinite_f64(x, n);
    default: return n;
    }
}

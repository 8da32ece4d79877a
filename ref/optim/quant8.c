#include "ref/optim/quant8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of a float's bits: sign, exponent and seven bits of the mantissa remain. Numbers that share them are at most 1/256 apart below
 * 1, and the map's values at least 0.9/128: no more than one middle of two values lies among them. The further decades have
 * half the values each, so it holds there too. */
enum { START_SHIFT = 16 };

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* The middles of `items` equal parts of 0.1 .. 1, times 10^power, as f32 arithmetic gives them. */
static size_t add_decade(float *value, int items, int power, bool is_signed)
{
    float step = (1.0f - 0.1f) / (float)items, unit = (float)pow(10, power);
    size_t n = 0;

    for (int i = 0; i < items; i++) {
        float low = i <= items / 2 ? 0.1f + step * (float)i : 1.0f - step * (float)(items - i),
              high = i + 1 <= items / 2 ? 0.1f + step * (float)(i + 1) : 1.0f - step * (float)(items - i - 1),
              middle = unit * ((low + high) / 2);

        value[n++] = middle;
        if (is_signed)
            value[n++] = -middle;
    }
    return n;
}

static float from_bits(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Whether x is nearer to the value of code i + 1 than to that of i. */
static inline bool is_next(const float *value, unsigned i, float x)
{
    return fabsf(value[i + 1] - x) < fabsf(x - value[i]);
}

void quant8_init(struct quant8 *q, bool is_signed)
{
    size_t n = 0;

    /* Decade i has 2^i parts (twice that without signs), and 0 and 1 are added: 256 in all. */
    for (int i = 0; i < 7; i++)
        n += add_decade(q->value + n, 1 << (is_signed ? i : i + 1), i - 6, is_signed);
    q->value[n++] = 0;
    q->value[n++] = 1;
    qsort(q->value, n, sizeof *q->value, ascending);
    q->is_signed = is_signed;
    for (uint32_t key = 0; key < QUANT8_STARTS; key++) {
        bool negative = key >> (31 - START_SHIFT);
        uint32_t tail = negative ? (1u << START_SHIFT) - 1 : 0;
        float least = from_bits(key << START_SHIFT | tail); /* of the numbers with these upper bits */
        unsigned i = 0;

        while (i < QUANT8_CODES - 1 && is_next(q->value, i, least))
            i++;
        q->start[key] = (uint8_t)(i < QUANT8_CODES - 1 ? i : i - 1); /* the last one has no next */
    }
}

void quant8_read(const struct quant8 *q, const uint8_t *code, float scale, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = q->value[code[i]] * scale;
}

static inline uint8_t nearest(const struct quant8 *q, float x)
{
    uint32_t bits;
    unsigned i;

    memcpy(&bits, &x, sizeof bits);
    i = q->start[bits >> START_SHIFT];
    return (uint8_t)(i + is_next(q->value, i, x));
}

float quant8_write(const struct quant8 *q, const float *x, uint8_t *code, size_t n)
{
    float most = 0;

    for (size_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(x[i]));
    if (most == 0) {
        memset(code, 0, n);
        return 0;
    }
    /* The quotient, not a product with 1 / most, which is infinite for the smallest numbers. */
    for (size_t i = 0; i < n; i++)
        code[i] = nearest(q, x[i] / most);
    return most;
}

#include "cmd/train/dataset_draw.h"

#include <string.h>

uint64_t draw_u64(struct draw *d)
{
    uint64_t z = d->state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct draw draw_begin(uint64_t seed, enum draw_purpose purpose, size_t epoch, size_t a, size_t b)
{
    const uint64_t part[] = {seed, (uint64_t)purpose, epoch, a, b};
    struct draw d = {0};

    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        d.state ^= part[i];
        d.state = draw_u64(&d);
    }
    return d;
}

double draw_unit(struct draw *d)
{
    return (double)(draw_u64(d) >> 11) * 0x1p-53;
}

double draw_between(struct draw *d, double low, double high)
{
    return low + (high - low) * draw_unit(d);
}

size_t draw_below(struct draw *d, size_t n)
{
    uint64_t bad = -(uint64_t)n % n, x; /* 2^64 mod n numbers are too many */

    do
        x = draw_u64(d);
    while (x < bad);
    return (size_t)(x % n);
}

void draw_shuffle(struct draw *d, void *array, size_t n, size_t size)
{
    unsigned char *a = array, swap[64];

    for (size_t i = n; i > 1; i--) { /* Fisher and Yates */
        size_t k = draw_below(d, i);

        memcpy(swap, a + (i - 1) * size, size);
        memcpy(a + (i - 1) * size, a + k * size, size);
        memcpy(a + k * size, swap, size);
    }
}

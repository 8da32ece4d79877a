/* The rocket as a template: which colour must be at which place. golden/small_model/learned.py has the same one. */
#include "tests/demo/rocket.h"

#include <math.h>

enum colour { RED, ORANGE, BLUE, WHITE };

/* In units of half the rocket's height, from its middle. */
static const struct place {
    double x, y;
    enum colour colour;
    bool is; /* or must not be: where that part has ended */
} places[] = {
    {0, -.68, RED, true},     {0, -.5, RED, true},      {0, -.3, RED, true},     {-.12, -.3, RED, true},  {.12, -.3, RED, true},
    {-.25, -.17, RED, true},  {.25, -.17, RED, true},   {0, -.17, RED, true},    {-.28, .05, WHITE, true}, {.28, .05, WHITE, true},
    {-.29, .25, WHITE, true}, {.29, .25, WHITE, true},  {-.28, .47, WHITE, true}, {.28, .47, WHITE, true}, {0, .25, BLUE, true},
    {-.1, .25, BLUE, true},   {.1, .25, BLUE, true},    {0, .15, BLUE, true},    {0, .35, BLUE, true},    {0, .8, ORANGE, true},
    {0, .94, ORANGE, true},   {-.1, .94, ORANGE, true}, {.1, .94, ORANGE, true}, {0, .87, ORANGE, true},  {-.4, -.6, RED, false},
    {.4, -.6, RED, false},    {-.52, .25, BLUE, false}, {.52, .25, BLUE, false}, {-.4, .75, ORANGE, false}, {.4, .75, ORANGE, false},
};

enum { PLACES = sizeof places / sizeof *places };

/* Wide enough for shading and a decoder's noise. */
static bool has(const uint8_t *p, enum colour colour)
{
    int r = p[0], g = p[1], b = p[2];

    switch (colour) {
    case RED:
        return r > 170 && g < 115 && b < 115;
    case ORANGE:
        return r > 195 && g > 100 && g < 190 && b < 110;
    case BLUE:
        return b > 150 && r < 115 && b > g + 50;
    case WHITE:
        return r > 195 && g > 195 && b > 195;
    }
    return false;
}

static size_t inside(double x, size_t n)
{
    double at = round(x);

    return at < 0 ? 0 : at > (double)n - 1 ? n - 1 : (size_t)at;
}

static size_t count_at(const struct picture *p, double x, double y, double half)
{
    size_t n = 0;

    for (size_t i = 0; i < PLACES; i++) {
        size_t column = inside(x + places[i].x * half, p->width), row = inside(y + places[i].y * half, p->height);

        n += has(p->data + (row * p->width + column) * 3, places[i].colour) == places[i].is;
    }
    return n;
}

double rocket_fit(const struct picture *p)
{
    double h = (double)p->height, w = (double)p->width;
    size_t best = 0;

    for (double share = .22; share < .56; share += .02) {
        double half = share * h;

        for (double y = floor(half * .8); y < floor(h - half * .8); y += 2)
            for (double x = floor(half * .3); x < floor(w - half * .3); x += 2) {
                size_t n = count_at(p, x, y, half);

                best = n > best ? n : best;
            }
    }
    return (double)best / PLACES;
}

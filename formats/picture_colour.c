/* Hue and gamma of 8-bit pictures, with the roundings of OpenCV's 8-bit HSV (hue in 180 steps) and of table look-ups. */
#include "formats/picture_colour.h"

#include <math.h>

enum { SHIFT = 12 }; /* bits behind the point of the tables that divide */

struct divisions {
    int saturation[256], hue[256]; /* 255 / i and 180 / 6 / i */
};

static void fill_divisions(struct divisions *d)
{
    d->saturation[0] = d->hue[0] = 0;
    for (int i = 1; i < 256; i++) {
        d->saturation[i] = (int)nearbyint((255 << SHIFT) / (double)i);
        d->hue[i] = (int)nearbyint((180 << SHIFT) / (6.0 * i));
    }
}

static void to_hsv(const struct divisions *d, const uint8_t rgb[3], uint8_t hsv[3])
{
    int r = rgb[0], g = rgb[1], b = rgb[2];
    int most = r > g ? (r > b ? r : b) : g > b ? g : b, least = r < g ? (r < b ? r : b) : g < b ? g : b, range = most - least;
    int hue = most == r ? g - b : most == g ? b - r + 2 * range : r - g + 4 * range;

    hue = (hue * d->hue[range] + (1 << (SHIFT - 1))) >> SHIFT;
    hsv[0] = (uint8_t)(hue < 0 ? hue + 180 : hue);
    hsv[1] = (uint8_t)((range * d->saturation[most] + (1 << (SHIFT - 1))) >> SHIFT);
    hsv[2] = (uint8_t)most;
}

/* 1 - a * b rounded once, as fused instructions do it: the product is exact in f64. */
static float rest(float a, float b)
{
    return (float)(1 - (double)a * (double)b);
}

/* OpenCV cuts the result where other conversions round. */
static void to_rgb(const uint8_t hsv[3], uint8_t rgb[3])
{
    /* which of the four values below red, green and blue take in each sixth of the circle */
    static const uint8_t pick[6][3] = {{0, 3, 1}, {2, 0, 1}, {1, 0, 3}, {1, 2, 0}, {3, 1, 0}, {0, 1, 2}};
    float h = (float)hsv[0] * (float)(6.0 / 180), s = (float)hsv[1] * (float)(1.0 / 255),
          v = (float)hsv[2] * (float)(1.0 / 255);
    int sector = (int)h;
    float f = h - (float)sector, value[4] = {v, v * (1 - s), v * rest(s, f), v * rest(s, 1 - f)};

    for (int c = 0; c < 3; c++)
        rgb[c] = (uint8_t)(value[pick[sector][c]] * 255.0f);
}

void picture_shift_hue(struct picture *p, double steps)
{
    struct divisions d;
    uint8_t table[180];

    fill_divisions(&d);
    for (int i = 0; i < 180; i++) {
        double x = fmod(i + steps, 180);

        table[i] = (uint8_t)(x < 0 ? x + 180 : x);
    }
    for (size_t i = 0; i < p->width * p->height; i++) {
        uint8_t hsv[3];

        to_hsv(&d, p->data + 3 * i, hsv);
        hsv[0] = table[hsv[0] % 180];
        to_rgb(hsv, p->data + 3 * i);
    }
}

void picture_change_gamma(struct picture *p, double gamma)
{
    uint8_t table[256];

    for (int i = 0; i < 256; i++)
        table[i] = (uint8_t)(pow(i * (1 / 255.0), gamma) * 255);
    for (size_t i = 0; i < p->width * p->height * p->channels; i++)
        p->data[i] = table[p->data[i]];
}

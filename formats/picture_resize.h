/* Scaling pictures, bit for bit as Pillow's Image.resize and OpenCV's INTER_AREA do: which filter and which rounding decide
 * what a model sees. */
#ifndef FORMATS_PICTURE_RESIZE_H
#define FORMATS_PICTURE_RESIZE_H

#include "formats/picture.h"

enum picture_filter {
    PICTURE_BILINEAR, /* a triangle one pixel wide to each side */
    PICTURE_BICUBIC,  /* Keys's cubic with a = -0.5, two pixels */
    PICTURE_LANCZOS,  /* sinc windowed by sinc, three pixels: sd-scripts' choice for img2img and masks */
};

/* p becomes width x height. When it shrinks, the filter is widened with it, so that every pixel counts. p has 1 or 3
 * channels: of pictures with alpha, colours under it would leak into their neighbours. Returns 0, or -1 with p as it was. */
int picture_resize(struct picture *p, size_t width, size_t height, enum picture_filter filter, struct err *err);

/* The same as cv2.resize(..., interpolation=cv2.INTER_AREA), which sd-scripts scales training pictures with: shrinking averages the
 * area under each new pixel, enlarging is a variant of linear. Any number of channels. */
int picture_resize_area(struct picture *p, size_t width, size_t height, struct err *err);

/* Makes one channel of three, 0.299 red + 0.587 green + 0.114 blue as Pillow's convert("L") rounds it. */
void picture_make_grey(struct picture *p);

#endif

/* Text in pictures, for contact sheets: a fixed font of 6 x 13 pixels, ASCII and Latin-1; any other character is shown as a
 * box.
 */
#ifndef FORMATS_PICTURE_LABEL_H
#define FORMATS_PICTURE_LABEL_H

#include "formats/picture.h"

enum {
    PICTURE_LETTER_WIDTH = 6,
    PICTURE_LETTER_HEIGHT = 13,
    PICTURE_LETTERS = 95 + 96, /* 32 .. 126, 160 .. 255 */
};

extern const unsigned char picture_letters[PICTURE_LETTERS][PICTURE_LETTER_HEIGHT];

/* Writes UTF-8 text into p (1, 3 or 4 channels), its upper left corner at x, y, at most `width` pixels wide and `lines` lines
 * high: lines are broken at blanks where possible, what does not fit ends in "...". Every channel of a letter's pixels becomes
 * `level`. Returns how many lines were used. What lies outside the picture is left out. */
size_t picture_label(struct picture *p, size_t x, size_t y, size_t width, size_t lines, const char *text, uint8_t level);

/* Copies src (same number of channels) into p, its upper left corner at x, y; it must fit. */
void picture_paste(struct picture *p, size_t x, size_t y, const struct picture *src);

#endif

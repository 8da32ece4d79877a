/* Small changes of colour that make training pictures more varied. p has 3 channels. */
#ifndef FORMATS_PICTURE_COLOUR_H
#define FORMATS_PICTURE_COLOUR_H

#include "formats/picture.h"

/* Turns the hue by steps of 2 degrees (any number; fractions of the sum are cut off), as albumentations' HueSaturationValue
 * does with OpenCV's 8-bit HSV, in which 180 hues remain: a picture that goes through it loses a little colour even at 0 steps.
 */
void picture_shift_hue(struct picture *p, double steps);

/* Every sample x becomes (x / 255) ^ gamma * 255, cut to a whole number, as albumentations' RandomGamma does. gamma > 0. */
void picture_change_gamma(struct picture *p, double gamma);

#endif

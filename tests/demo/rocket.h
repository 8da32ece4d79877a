/* Looking for the rocket of golden/small_model/concept in pictures. */
#ifndef TESTS_DEMO_ROCKET_H
#define TESTS_DEMO_ROCKET_H

#include "formats/picture.h"

/* The best share of the template's places that have the right colour, over all places and sizes in the picture (RGB). */
double rocket_fit(const struct picture *p);

/* From here on a picture shows it: the ten training pictures have 0.93 to 1, 240 pictures of other things at most 0.67
 * (golden/small_model/README.md). */
#define ROCKET_LEAST 0.8

#endif

/* Random numbers without state: a stream for each (seed, purpose, epoch, picture, repeat), so that what a sample looks like
 * does not depend on what was drawn before it. SplitMix64 (Steele, Lea and Flood, 2014) over a mix of the five. */
#ifndef CMD_TRAIN_DATASET_DRAW_H
#define CMD_TRAIN_DATASET_DRAW_H

#include <stddef.h>
#include <stdint.h>

enum draw_purpose { DRAW_SAMPLES = 1, DRAW_BATCHES, DRAW_CAPTION, DRAW_PICTURE, DRAW_VALIDATION };

struct draw {
    uint64_t state;
};

struct draw draw_begin(uint64_t seed, enum draw_purpose purpose, size_t epoch, size_t a, size_t b);

uint64_t draw_u64(struct draw *d);
double draw_unit(struct draw *d);                             /* [0, 1), 53 bits */
double draw_between(struct draw *d, double low, double high); /* [low, high) */
size_t draw_below(struct draw *d, size_t n);                  /* 0 .. n - 1, n at least 1; every number equally likely */

/* Puts n elements of `size` bytes (at most 64) in random order. */
void draw_shuffle(struct draw *d, void *array, size_t n, size_t size);

#endif

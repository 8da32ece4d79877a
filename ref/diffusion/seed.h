/* The seeds of pictures when one seed is given for several: sd-scripts v0.3.0 draws them all beforehand by Python's
 * random.seed(seed) and random.randint(0, 0x7fffffff) (gen_img_diffusers.py, lines 2143-2147), so that others get the same
 * pictures. It hands them out from the end: the first prompt gets the last images_per_prompt of them, in their order.
 */
#ifndef REF_DIFFUSION_SEED_H
#define REF_DIFFUSION_SEED_H

#include <stddef.h>
#include <stdint.h>

#include "ref/base/rng.h"

/* Python's random.seed(seed): the same Mersenne Twister as torch's, begun in another way. */
void seed_begin(struct rng *r, uint64_t seed);

/* Python's random.randint(0, 0x7fffffff). */
uint32_t seed_next(struct rng *r);

/* seeds [count]: what picture i of a run is made from, in the order of making, for per_prompt pictures of each prompt (count is
 * a multiple of it). A single picture has the seed itself. */
void seed_pictures(uint64_t seed, size_t count, size_t per_prompt, uint64_t *seeds);

#endif

/* Random numbers that equal PyTorch's, so that a seed gives the picture that others get with it.
 *
 * CPU numbers: Mersenne Twister mt19937 (Matsumoto and Nishimura, 1998) with torch's conversions to floats and its two ways
 * to make normals. CUDA numbers: Philox4x32-10 (Salmon et al., 2011) as torch.randn(device="cuda") uses it.
 *
 * struct rng is plain data: copying it copies the stream, writing it to a file saves it (little-endian, size fixed).
 */
#ifndef REF_BASE_RNG_H
#define REF_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

struct rng {
    uint32_t state[624];
    uint32_t at;       /* next word of state; 624: all used */
    uint32_t has_next; /* 1: `next` holds the second normal of a pair */
    double next;
};

/* torch.manual_seed(seed). Only the low 32 bits count, as in torch's CPU generator. */
void rng_seed(struct rng *r, uint64_t seed);

uint32_t rng_u32(struct rng *r);
uint64_t rng_u64(struct rng *r);  /* two words, the first one high */
float rng_uniform(struct rng *r); /* [0, 1), 24 bits: one element of torch.rand() */

/* An integer in [0, range), range in 1 .. 2^28 - 1: one element of torch.randint(range, ...). */
uint32_t rng_below(struct rng *r, uint32_t range);

/* x [n] f32 = torch.randn(n). From 16 elements on torch fills in vectors, below one by one: the streams differ, and both are
 * kept. Values agree with torch to a few units in the last place: torch's vector code has its own log, sin and cos. */
void rng_normal(struct rng *r, float *x, size_t n);

/* p [n] = torch.randperm(n), n < 2^32. */
void rng_permutation(struct rng *r, uint32_t *p, size_t n);

/* x [n] f32 = torch.randn(n, device="cuda") after torch.manual_seed(seed); offset counts the calls made before with this seed
 * (0 for the first). Holds while n fits in one wave of the card's threads (65,536 elements on the smallest supported). */
void rng_philox_normal(uint64_t seed, uint64_t offset, float *x, size_t n);

#endif

#include "ref/diffusion/seed.h"

enum { N = 624 };

/* init_by_array() of Matsumoto and Nishimura's mt19937ar (2002), with the seed's 32-bit words as the key. */
void seed_begin(struct rng *r, uint64_t seed)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t *s = r->state, i = 1, words = key[1] ? 2 : 1;

    rng_seed(r, 19650218);
    for (uint32_t k = 0; k < N; k++) {
        uint32_t j = k % words;

        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1664525u)) + key[j] + j;
        if (++i == N) {
            s[0] = s[N - 1];
            i = 1;
        }
    }
    for (uint32_t k = 1; k < N; k++) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1566083941u)) - i;
        if (++i == N) {
            s[0] = s[N - 1];
            i = 1;
        }
    }
    s[0] = 0x80000000u;
}

uint32_t seed_next(struct rng *r)
{
    uint32_t x;

    do /* 2^31 values take 32 bits in Python's counting, so every other draw is thrown away */
        x = rng_u32(r);
    while (x > 0x7fffffffu);
    return x;
}

void seed_pictures(uint64_t seed, size_t count, size_t per_prompt, uint64_t *seeds)
{
    struct rng r;

    seed_begin(&r, seed);
    for (size_t i = 0; i < count; i++) {
        size_t prompt = count / per_prompt - 1 - i / per_prompt;

        seeds[prompt * per_prompt + i % per_prompt] = seed_next(&r);
    }
    if (count == 1)
        seeds[0] = seed;
}

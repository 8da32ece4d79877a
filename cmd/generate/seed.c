#include <sys/random.h>

#include "cmd/generate/generate.h"
#include "ref/base/rng.h"

/* init_by_array of mt19937ar (Matsumoto and Nishimura 2002), which Python's random.seed(int) uses: key is the number's
 * 32-bit words, low one first, without leading zeros. */
static void seed_python(struct rng *r, uint64_t from)
{
    uint32_t key[2] = {(uint32_t)from, (uint32_t)(from >> 32)};
    size_t length = key[1] ? 2 : 1, i = 1, j = 0;
    uint32_t *s = r->state;

    rng_seed(r, 19650218);
    for (size_t k = 0; k < 624; k++) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1664525u)) + key[j] + (uint32_t)j;
        j = (j + 1) % length;
        if (++i == 624)
            s[0] = s[623], i = 1;
    }
    for (size_t k = 0; k < 623; k++) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1566083941u)) - (uint32_t)i;
        if (++i == 624)
            s[0] = s[623], i = 1;
    }
    s[0] = 0x80000000u;
    r->at = 624;
}

void generate_seeds(uint64_t from, uint64_t *seed, size_t n)
{
    struct rng r;

    seed_python(&r, from);
    for (size_t i = 0; i < n; i++) {
        /* randint takes 32 bits until they are below 2^31 */
        uint32_t x = rng_u32(&r);

        while (x >> 31)
            x = rng_u32(&r);
        seed[i] = x;
    }
    if (n == 1)
        seed[0] = from;
}

int generate_seed_any(uint64_t *seed, struct err *err)
{
    uint32_t x;

    if (getrandom(&x, sizeof x, 0) != (ssize_t)sizeof x)
        return err_set(err, "cannot get a random seed from the system; give one with --seed");
    *seed = x >> 1;
    return 0;
}

#include "formats/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/tensor_writer.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

enum { BLOCK = 64, PIECE = 1 << 20, LEGACY_AT = 0x100000, LEGACY_BYTES = 0x10000 };

/* FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t k256[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static void blocks_plain(uint32_t state[8], const unsigned char *p, size_t count)
{
    for (; count > 0; count--, p += BLOCK) {
        uint32_t w[64], s[8];

        for (int i = 0; i < 16; i++)
            w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
        for (int i = 16; i < 64; i++)
            w[i] = w[i - 16] + w[i - 7] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
                   (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
        memcpy(s, state, sizeof s);
        for (int i = 0; i < 64; i++) {
            uint32_t a = s[0], e = s[4];
            uint32_t t1 = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k256[i] + w[i];
            uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));

            memmove(s + 1, s, 7 * sizeof *s);
            s[4] += t1;
            s[0] = t1 + t2;
        }
        for (int i = 0; i < 8; i++)
            state[i] += s[i];
    }
}

#if defined(__x86_64__)
/* The same with the CPU's instructions: sha256rnds2 does two rounds on the state as (a b e f) and (c d g h), sha256msg1 and
 * sha256msg2 the message schedule, four words at a time. */
__attribute__((target("sha,sse4.1,ssse3"))) static void blocks_sha(uint32_t state[8], const unsigned char *p, size_t count)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i dcba = _mm_loadu_si128((const __m128i *)state), hgfe = _mm_loadu_si128((const __m128i *)(state + 4));
    __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);

    for (; count > 0; count--, p += BLOCK) {
        __m128i w[4], before_abef = abef, before_cdgh = cdgh;

        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p + i), swap);
        for (int i = 0; i < 16; i++) {
            __m128i m = w[i & 3], x = _mm_add_epi32(m, _mm_loadu_si128((const __m128i *)k256 + i));

            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, x);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(x, 0x0e));
            if (i < 12) { /* the four words that follow 12 places later: w[t-16] + s0(w[t-15]) + w[t-7] + s1(w[t-2]) */
                __m128i t7 = _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4);

                w[i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(m, w[(i + 1) & 3]), t7), w[(i + 3) & 3]);
            }
        }
        abef = _mm_add_epi32(abef, before_abef);
        cdgh = _mm_add_epi32(cdgh, before_cdgh);
    }
    cdab = _mm_shuffle_epi32(abef, 0x1b); /* now (f e b a) */
    efgh = _mm_shuffle_epi32(cdgh, 0xb1); /* now (d c h g) */
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(cdab, efgh, 0xf0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(efgh, cdab, 8));
}

static bool has_sha(void)
{
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) && __builtin_cpu_supports("sse4.1");
}
#endif

bool sha256_plain;

static void blocks(uint32_t state[8], const unsigned char *p, size_t count)
{
#if defined(__x86_64__)
    static int sha = -1; /* the same answer whoever asks: a race is harmless */
    int have = __atomic_load_n(&sha, __ATOMIC_RELAXED);

    if (have < 0)
        __atomic_store_n(&sha, have = has_sha(), __ATOMIC_RELAXED);
    if (have && !sha256_plain) {
        blocks_sha(state, p, count);
        return;
    }
#endif
    blocks_plain(state, p, count);
}

void sha256_start(struct sha256 *h)
{
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

    memset(h, 0, sizeof *h);
    memcpy(h->state, first, sizeof first);
}

void sha256_add(struct sha256 *h, const void *data, size_t n)
{
    const unsigned char *p = data;
    size_t in = (size_t)(h->nbytes % BLOCK);

    h->nbytes += n;
    if (in > 0) {
        size_t take = n < BLOCK - in ? n : BLOCK - in;

        memcpy(h->block + in, p, take);
        p += take, n -= take;
        if (in + take < BLOCK)
            return;
        blocks(h->state, h->block, 1);
    }
    blocks(h->state, p, n / BLOCK);
    if (n % BLOCK)
        memcpy(h->block, p + n / BLOCK * BLOCK, n % BLOCK);
}

void sha256_text(struct sha256 *h, char out[SHA256_TEXT])
{
    unsigned char end[2 * BLOCK] = {0x80};
    uint64_t bits = h->nbytes * 8;
    size_t in = (size_t)(h->nbytes % BLOCK), n = (in < 56 ? 56 : 120) - in;

    for (size_t i = 0; i < 8; i++)
        end[n + i] = (unsigned char)(bits >> (56 - 8 * i));
    sha256_add(h, end, n + 8);
    for (size_t i = 0; i < 8; i++)
        snprintf(out + 8 * i, 9, "%08x", h->state[i]);
}

/* Hashes bytes [at, at + n) of an open file; n over the rest: up to the end. */
static int hash_range(int fd, const char *path, uint64_t at, uint64_t n, char out[SHA256_TEXT], struct err *err)
{
    unsigned char *piece = mem_new(PIECE, "a piece of a file", err);
    struct sha256 h;

    if (!piece)
        return -1;
    sha256_start(&h);
    while (n > 0) {
        ssize_t got = pread(fd, piece, n < PIECE ? (size_t)n : PIECE, (off_t)at);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            free(piece);
            return err_set(err, "cannot read '%s': %s; check the disk", path, strerror(errno));
        }
        if (got == 0)
            break;
        sha256_add(&h, piece, (size_t)got);
        at += (uint64_t)got, n -= (uint64_t)got;
    }
    free(piece);
    sha256_text(&h, out);
    return 0;
}

static int hash_path(const char *path, uint64_t at, uint64_t n, char out[SHA256_TEXT], struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc;

    if (fd < 0)
        return err_set(err, "cannot read '%s': %s; check the path", path, strerror(errno));
    rc = hash_range(fd, path, at, n, out, err);
    close(fd);
    return rc;
}

int hash_file(const char *path, char out[SHA256_TEXT], struct err *err)
{
    return hash_path(path, 0, UINT64_MAX, out, err);
}

int hash_legacy(const char *path, char out[HASH_LEGACY_TEXT], struct err *err)
{
    char text[SHA256_TEXT];

    if (hash_path(path, LEGACY_AT, LEGACY_BYTES, text, err) != 0)
        return -1;
    memcpy(out, text, HASH_LEGACY_TEXT - 1);
    out[HASH_LEGACY_TEXT - 1] = 0;
    return 0;
}

/* Where the data of f would begin with ss_* metadata alone: laid out (not written) by the format itself. 0: see hash.h. */
static int header_of_ss(const struct tensor_file *f, uint64_t *header, struct err *err)
{
    struct tensor_writer w = {.path = f->path, .format = &format_safetensors, .n = f->count};
    struct metadata_item *ss = mem_zero(f->metadata_count + 1, sizeof *ss, "metadata", err);
    int rc = -1;

    w.slot = mem_zero(f->count, sizeof *w.slot, "a list of tensors", err);
    w.order = mem_zero(f->count, sizeof *w.order, "a list of tensors", err);
    if (!ss || !w.slot || !w.order)
        goto out;
    for (size_t i = 0; i < f->count; i++) {
        w.slot[i] = (struct tensor_slot){.spec = {f->entries[i].name, f->entries[i].dtype, f->entries[i].shape},
                                         .nbytes = f->entries[i].nbytes};
        w.order[i] = i;
    }
    for (size_t i = 0; i < f->metadata_count; i++) /* sorted already */
        if (strncmp(f->metadata[i].key, "ss_", 3) == 0)
            ss[w.n_metadata++] = f->metadata[i];
    w.metadata = ss;
    if (format_safetensors.writer->layout(&w, err) != 0)
        goto out;
    rc = f->count > 0 && w.n_metadata > 0;
    for (size_t k = 0; k < f->count; k++)
        rc = rc && w.order[k] == k;
    *header = f->count ? w.slot[w.order[0]].offset : 0;
    rc = rc && *header <= LEGACY_AT;
out:
    if (format_safetensors.writer->close && w.impl)
        format_safetensors.writer->close(&w);
    arena_free(&w.arena);
    free(ss);
    free(w.slot);
    free(w.order);
    return rc;
}

int hash_legacy_lora(const struct tensor_file *f, char out[HASH_LEGACY_TEXT], struct err *err)
{
    char text[SHA256_TEXT];
    uint64_t header;
    int rc = f->format == &format_safetensors ? header_of_ss(f, &header, err) : 0;

    if (rc != 1)
        return rc;
    if (hash_range(f->fd, f->path, LEGACY_AT - header + f->entries[0].offset, LEGACY_BYTES, text, err) != 0)
        return -1;
    memcpy(out, text, HASH_LEGACY_TEXT - 1);
    out[HASH_LEGACY_TEXT - 1] = 0;
    return 1;
}

int hash_behind_header(const struct tensor_file *f, char out[SHA256_TEXT], struct err *err)
{
    unsigned char length[8];
    uint64_t n = 0;

    if (f->format != &format_safetensors)
        return err_set(err, "'%s' is no safetensors file, so it has no hash behind its header", f->path);
    if (tensor_file_pread(f, 0, length, sizeof length, "its header", err) != 0)
        return -1;
    for (size_t i = 0; i < 8; i++)
        n |= (uint64_t)length[i] << (8 * i);
    return hash_range(f->fd, f->path, n + 8, UINT64_MAX, out, err);
}

#include "formats/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "formats/output.h"
#include "ref/base/mem.h"

/* Made by the build from clip_merges.bin: 256 bytes in token order, then u16 pairs. */
extern const unsigned char clip_merges[];
extern const unsigned long clip_merges_size;

enum { BYTES = 256, FIRST_MERGE = 2 * BYTES, TABLE = 1 << 17, NO_MERGE = 0 };

struct tokenizer {
    uint8_t byte_token[BYTES];  /* byte -> token that does not end a word */
    uint32_t merge_count;
    uint32_t *key;              /* [TABLE] left << 16 | right of a merge */
    uint16_t *merged;           /* [TABLE] its token; NO_MERGE: slot is free (token 0 is no merge) */
    pcre2_code *pattern;
    pcre2_match_data *match;
    int32_t *word;              /* scratch for one word */
    size_t word_cap;
};

static uint32_t slot_of(uint32_t key)
{
    return (key * 2654435761u) >> 15; /* Fibonacci hashing to TABLE's 17 bits */
}

static uint32_t merge_side(uint32_t merge, int side)
{
    const unsigned char *p = clip_merges + BYTES + 4 * merge + 2 * side;

    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static void fill_table(struct tokenizer *t)
{
    for (uint32_t i = 0; i < t->merge_count; i++) {
        uint32_t key = merge_side(i, 0) << 16 | merge_side(i, 1), s = slot_of(key);

        while (t->merged[s] != NO_MERGE)
            s = (s + 1) % TABLE;
        t->key[s] = key;
        t->merged[s] = (uint16_t)(FIRST_MERGE + i);
    }
}

/* The token that two neighbours become, or NO_MERGE. Tokens are numbered in order of their merges, so the smallest result is
 * the merge that was learnt first. */
static uint32_t merge_of(const struct tokenizer *t, int32_t left, int32_t right)
{
    uint32_t key = (uint32_t)left << 16 | (uint32_t)right, s = slot_of(key);

    for (; t->merged[s] != NO_MERGE; s = (s + 1) % TABLE)
        if (t->key[s] == key)
            return t->merged[s];
    return NO_MERGE;
}

/* Words: contractions, runs of letters, single digits, runs of anything else that is not white space. White space is
 * Unicode's property, written out because \s differs between engines. The markers are found before this pattern runs. */
static const char word_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|"
                                   "[^\\p{L}\\p{N}\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"
                                   "\\x{202f}\\x{205f}\\x{3000}]+";

static int compile_pattern(struct tokenizer *t, struct err *err)
{
    int code;
    PCRE2_SIZE at;

    t->pattern = pcre2_compile((PCRE2_SPTR)word_pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (!t->pattern)
        return err_set(err, "cannot compile the tokenizer's pattern: pcre2 error %d at %zu; pcre2 was built without Unicode", code,
                       (size_t)at);
    pcre2_jit_compile(t->pattern, PCRE2_JIT_COMPLETE); /* without a JIT the interpreter does the same */
    t->match = pcre2_match_data_create_from_pattern(t->pattern, NULL);
    return t->match ? 0 : err_memory(err, 64, "the tokenizer");
}

int tokenizer_open(struct tokenizer **out, struct err *err)
{
    struct tokenizer *t = mem_zero(1, sizeof *t, "the tokenizer", err);

    *out = NULL;
    if (!t)
        return -1;
    t->merge_count = (uint32_t)((clip_merges_size - BYTES) / 4);
    for (int i = 0; i < BYTES; i++)
        t->byte_token[clip_merges[i]] = (uint8_t)i;
    t->key = mem_zero(TABLE, sizeof *t->key, "the tokenizer", err);
    t->merged = mem_zero(TABLE, sizeof *t->merged, "the tokenizer", err);
    if (!t->key || !t->merged || compile_pattern(t, err) != 0) {
        tokenizer_close(t);
        return -1;
    }
    fill_table(t);
    *out = t;
    return 0;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    pcre2_match_data_free(t->match);
    pcre2_code_free(t->pattern);
    free(t->key);
    free(t->merged);
    free(t->word);
    free(t);
}

static int push(struct token_list *out, int32_t id, struct err *err)
{
    if (mem_grow(&out->id, &out->cap, out->count, sizeof *out->id, "token ids", err) != 0)
        return -1;
    out->id[out->count++] = id;
    return 0;
}

/* Joins, again and again, the leftmost pair among those that were learnt first. Long words (hundreds of letters without a
 * blank) cost their length squared; captions are short. */
static size_t merge_word(const struct tokenizer *t, int32_t *w, size_t n)
{
    for (;;) {
        uint32_t best = UINT32_MAX;
        size_t at = 0;

        for (size_t i = 0; i + 1 < n; i++) {
            uint32_t m = merge_of(t, w[i], w[i + 1]);

            if (m != NO_MERGE && m < best) {
                best = m;
                at = i;
            }
        }
        if (best == UINT32_MAX)
            return n;
        w[at] = (int32_t)best;
        memmove(w + at + 1, w + at + 2, (n - at - 2) * sizeof *w);
        n--;
    }
}

static int encode_word(struct tokenizer *t, const char *s, size_t n, struct token_list *out, struct err *err)
{
    while (t->word_cap < n)
        if (mem_grow(&t->word, &t->word_cap, t->word_cap, sizeof *t->word, "a word's tokens", err) != 0)
            return -1;
    for (size_t i = 0; i < n; i++)
        t->word[i] = t->byte_token[(unsigned char)s[i]];
    t->word[n - 1] += BYTES; /* the last byte of a word has a token of its own */
    n = merge_word(t, t->word, n);
    for (size_t i = 0; i < n; i++)
        if (push(out, t->word[i], err) != 0)
            return -1;
    return 0;
}

static int encode_words(struct tokenizer *t, const char *s, size_t n, struct token_list *out, struct err *err)
{
    for (size_t at = 0; at < n;) {
        const PCRE2_SIZE *span;
        int found = pcre2_match(t->pattern, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, t->match, NULL);

        if (found == PCRE2_ERROR_NOMATCH)
            return 0;
        if (found < 0)
            return err_set(err, "cannot split a caption into words: pcre2 error %d at byte %zu; shorten the caption", found, at);
        span = pcre2_get_ovector_pointer(t->match);
        if (encode_word(t, s + span[0], span[1] - span[0], out, err) != 0)
            return -1;
        at = span[1];
    }
    return 0;
}

/* Lower case one code point at a time, without context, as the oracle does. One letter becomes two: the dotted capital I. */
static size_t lower(utf8proc_int32_t c, utf8proc_uint8_t *to)
{
    if (c == 0x130) {
        memcpy(to, "i\xcc\x87", 3);
        return 3;
    }
    return (size_t)utf8proc_encode_char(utf8proc_tolower(c), to);
}

/* *to (malloc'd, *n bytes) = text as UTF-8, bad bytes as U+FFFD: each longest prefix of a sequence that could have gone on
 * becomes one (Unicode 15, section 3.9). */
static int mend_utf8(const char *text, size_t n, char **to, size_t *out_n, struct err *err)
{
    const unsigned char *s = (const unsigned char *)text;
    char *d = mem_new(3 * n + 1, "a caption", err), *p = d;

    if (!d)
        return -1;
    for (size_t i = 0; i < n;) {
        unsigned char c = s[i];
        size_t want = c < 0x80 ? 1 : c >= 0xc2 && c <= 0xdf ? 2 : c >= 0xe0 && c <= 0xef ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
        size_t got = want > 0;

        while (got > 0 && got < want && i + got < n) {
            unsigned char low = 0x80, high = 0xbf, b = s[i + got];

            if (got == 1) {
                low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
                high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
            }
            if (b < low || b > high)
                break;
            got++;
        }
        if (want > 0 && got == want) {
            memcpy(p, s + i, want);
            p += want;
            i += want;
        } else {
            memcpy(p, "\xef\xbf\xbd", 3);
            p += 3;
            i += got > 0 ? got : 1;
        }
    }
    *to = d;
    *out_n = (size_t)(p - d);
    return 0;
}

/* A piece between markers, valid UTF-8: composed, lower-cased, split, encoded. */
static int encode_piece(struct tokenizer *t, const char *s, size_t n, struct token_list *out, struct err *err)
{
    utf8proc_uint8_t *composed = NULL, *lowered = NULL;
    utf8proc_ssize_t size = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &composed,
                                         UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    size_t m = 0;
    int result = -1;

    if (size < 0)
        return err_set(err, "cannot normalise a caption: %s; shorten the caption", utf8proc_errmsg(size));
    lowered = mem_new(4 * (size_t)size + 1, "a caption", err); /* a letter grows to 4 bytes at most */
    if (!lowered)
        goto out;
    for (utf8proc_ssize_t i = 0; i < size;) {
        utf8proc_int32_t c;

        i += utf8proc_iterate(composed + i, size - i, &c);
        m += lower(c, lowered + m);
    }
    result = encode_words(t, (const char *)lowered, m, out, err);
out:
    free(composed);
    free(lowered);
    return result;
}

int tokenizer_encode(struct tokenizer *t, const char *text, size_t n, struct token_list *out, struct err *err)
{
    static const char begin[] = "<|startoftext|>", end[] = "<|endoftext|>";
    char *s = NULL;
    size_t from = 0;
    int result = -1;

    if (mend_utf8(text, n, &s, &n, err) != 0)
        return -1;
    for (size_t i = 0; i < n; i++) { /* the markers' own text stands for the markers */
        size_t is_begin = n - i >= sizeof begin - 1 && memcmp(s + i, begin, sizeof begin - 1) == 0;
        size_t is_end = n - i >= sizeof end - 1 && memcmp(s + i, end, sizeof end - 1) == 0;

        if (!is_begin && !is_end)
            continue;
        if (encode_piece(t, s + from, i - from, out, err) != 0 || push(out, is_begin ? TOKEN_BEGIN : TOKEN_END, err) != 0)
            goto out;
        from = i + (is_begin ? sizeof begin : sizeof end) - 1;
        i = from - 1;
    }
    result = encode_piece(t, s + from, n - from, out, err);
out:
    free(s);
    return result;
}

/* The token's bytes are the leaves of its merges, left to right; a merge always points to smaller tokens. */
const char *tokenizer_text(const struct tokenizer *t, int32_t id, char *buf, size_t size)
{
    int32_t stack[128];
    size_t depth = 0, at = 0;

    if (id == TOKEN_BEGIN || id == TOKEN_END || id < 0 || id >= TOKEN_COUNT) {
        snprintf(buf, size, "%s", id == TOKEN_BEGIN ? "<|startoftext|>" : id == TOKEN_END ? "<|endoftext|>" : "?");
        return buf;
    }
    stack[depth++] = id;
    while (depth > 0 && at + 2 < size) {
        int32_t top = stack[--depth];

        if (top >= FIRST_MERGE && (uint32_t)(top - FIRST_MERGE) < t->merge_count && depth + 2 <= 128) {
            stack[depth++] = (int32_t)merge_side((uint32_t)(top - FIRST_MERGE), 1);
            stack[depth++] = (int32_t)merge_side((uint32_t)(top - FIRST_MERGE), 0);
        } else {
            buf[at++] = (char)clip_merges[top % BYTES];
            if (top >= BYTES)
                buf[at++] = ' ';
        }
    }
    buf[at] = 0;
    return buf;
}

/* ---- The files that transformers reads ---- */

enum {
    PRINTABLE = 188, /* tokens below it are bytes that are characters of Latin-1; the rest stand as U+0100 and up */
    SPELLING = 512,  /* bytes that hold any token as text: 2 a byte of it, and "</w>" */
};

/* Appends the text of a token to s; a merge always points to smaller tokens, so this ends. */
static size_t spell(char *s, size_t at, uint32_t token)
{
    if (token >= FIRST_MERGE) {
        at = spell(s, at, merge_side(token - FIRST_MERGE, 0));
        return spell(s, at, merge_side(token - FIRST_MERGE, 1));
    }
    if (at + 8 < SPELLING) {
        uint32_t i = token % BYTES;

        at += (size_t)utf8proc_encode_char(i < PRINTABLE ? clip_merges[i] : (utf8proc_int32_t)(BYTES + i - PRINTABLE),
                                           (utf8proc_uint8_t *)s + at);
        if (token >= BYTES) {
            memcpy(s + at, "</w>", 4);
            at += 4;
        }
    }
    return at;
}

static int write_vocab(const char *path, struct err *err)
{
    json_t *all = json_object();
    char s[SPELLING], *text;
    int rc = 0;

    for (uint32_t i = 0; i < TOKEN_BEGIN && rc == 0; i++)
        rc = (s[spell(s, 0, i)] = 0, json_object_set_new(all, s, json_integer(i)));
    rc = rc || json_object_set_new(all, "<|startoftext|>", json_integer(TOKEN_BEGIN)) ||
         json_object_set_new(all, "<|endoftext|>", json_integer(TOKEN_END));
    text = rc ? NULL : json_dumps(all, JSON_COMPACT);
    rc = text ? output_text(path, text, err) : err_memory(err, 1 << 20, "the tokenizer's vocabulary");
    json_decref(all);
    free(text);
    return rc;
}

static int write_merges(const char *path, struct err *err)
{
    static const char head[] = "#version: 0.2\n";
    uint32_t count = (uint32_t)((clip_merges_size - BYTES) / 4);
    char *text = mem_new(sizeof head + (size_t)count * (2 * SPELLING + 2), "the tokenizer's merges", err);
    size_t at = sizeof head - 1;
    int rc;

    if (!text)
        return -1;
    memcpy(text, head, at);
    for (uint32_t i = 0; i < count; i++) {
        at += spell(text + at, 0, merge_side(i, 0));
        text[at++] = ' ';
        at += spell(text + at, 0, merge_side(i, 1));
        text[at++] = '\n';
    }
    rc = output_bytes(path, text, at, err);
    free(text);
    return rc;
}

int tokenizer_write(const char *folder, bool sd2, struct err *err)
{
    static const char special[] = "{\n  \"bos_token\": \"<|startoftext|>\",\n  \"eos_token\": \"<|endoftext|>\",\n"
                                  "  \"pad_token\": \"%s\",\n  \"unk_token\": \"<|endoftext|>\"%s\n}\n";
    static const char more[] = ",\n  \"add_prefix_space\": false,\n  \"do_lower_case\": true,\n  \"errors\": \"replace\",\n"
                               "  \"model_max_length\": 77,\n  \"tokenizer_class\": \"CLIPTokenizer\"";
    static const char *const names[] = {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"};
    char path[4096], text[1024];

    for (int i = 0; i < 4; i++) {
        int rc;

        if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, names[i]) >= sizeof path)
            return err_set(err, "cannot write '%s/%s': the path is too long", folder, names[i]);
        snprintf(text, sizeof text, special, sd2 ? "!" : "<|endoftext|>", i == 2 ? more : "");
        rc = i == 0 ? write_vocab(path, err) : i == 1 ? write_merges(path, err) : output_text(path, text, err);
        if (rc != 0)
            return -1;
    }
    return 0;
}

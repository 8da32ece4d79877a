/* CLIP's tokenizer: text -> token ids, as both text encoders of Stable Diffusion expect them.
 *
 * Byte-level BPE over NFC-normalised, lower-cased text (Radford et al., 2021), equal to transformers' CLIPTokenizer on any
 * input. The 48,894 merges travel in the program (clip_merges.bin; notice in clip_merges.NOTICE); the 49,408 tokens follow
 * from them: 256 bytes, 256 bytes that end a word, one token a merge, the begin marker and the end marker.
 */
#ifndef FORMATS_TOKENIZER_H
#define FORMATS_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ref/base/err.h"

enum {
    TOKEN_BEGIN = 49406, /* <|startoftext|> */
    TOKEN_END = 49407,   /* <|endoftext|>; also SD1's padding */
    TOKEN_PAD_SD2 = 0,   /* '!': OpenCLIP's padding */
    TOKEN_COUNT = 49408,
    TOKEN_CHUNK = 77,    /* begin + 75 + end */
};

struct tokenizer;

/* A grown list of ids; zero-initialise, free with free(ids.id). */
struct token_list {
    int32_t *id;
    size_t count, cap;
};

/* Builds the lookup tables (a few milliseconds). The caller closes it. Returns 0 or -1 (memory). */
int tokenizer_open(struct tokenizer **out, struct err *err);
void tokenizer_close(struct tokenizer *t); /* NULL is fine */

/* Appends the ids of text [n bytes], without begin and end markers, to out. Bytes that are not UTF-8 count as U+FFFD, as
 * Python's errors="replace" makes them. Not thread-safe for one tokenizer. Returns 0 or -1 (memory). */
int tokenizer_encode(struct tokenizer *t, const char *text, size_t n, struct token_list *out, struct err *err);

/* Writes the bytes of one token, NUL-terminated, to buf (cut if it does not fit; 80 bytes hold any token); a token that ends
 * a word has a blank after it. Returns buf. For people: the bytes of one token need not be UTF-8. */
const char *tokenizer_text(const struct tokenizer *t, int32_t id, char *buf, size_t size);

/* Writes the tokenizer as transformers' CLIPTokenizer reads it into `folder` (made if missing): vocab.json, merges.txt,
 * tokenizer_config.json, special_tokens_map.json. sd2: padding is "!". Returns 0 or -1. */
int tokenizer_write(const char *folder, bool sd2, struct err *err);

#endif

/* Prompts as text encoders get them: weights in brackets, tokens, chunks of 75.
 *
 * The language is that of web UIs and of sd-scripts v0.3.0 (gen_img_diffusers.py, lines 1389-1492): (x) weighs x 1.1 times,
 * [x] 1/1.1 times, (x:1.3) 1.3 times, brackets nest and multiply, open ones reach to the end; a backslash before a bracket or
 * a backslash makes it plain text, any other backslash vanishes. Text is UTF-8, or anything: bytes that are not count as
 * U+FFFD in the tokenizer.
 */
#ifndef FORMATS_PROMPT_H
#define FORMATS_PROMPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "formats/tokenizer.h"
#include "ref/base/err.h"

/* A stretch of text of one weight; n bytes, brackets and backslashes taken out. */
struct prompt_part {
    const char *text;
    size_t n;
    double weight;
};

struct prompt_parts {
    struct prompt_part *part; /* [count], at least one; neighbours differ in weight */
    size_t count;
    char *text; /* what the parts point into */
};

/* Splits text [n bytes] into parts. A weight that is no number ("(x:1.2.3)") is an error, a number without a bracket before
 * is text. Returns 0 or -1; out is to be given to prompt_parts_free() after 0. */
int prompt_parse(struct prompt_parts *out, const char *text, size_t n, struct err *err);
void prompt_parts_free(struct prompt_parts *p);

/* A prompt's tokens, without begin and end markers, each with its weight. */
struct prompt_tokens {
    int32_t *id;   /* [count] */
    float *weight; /* [count] */
    size_t count;
    bool truncated; /* the prompt was longer than the limit */
};

/* Parses and tokenizes text [n bytes]; what goes beyond `most` tokens is cut off. Returns 0 or -1; out is to be given to
 * prompt_tokens_free() after 0. */
int prompt_tokenize(struct prompt_tokens *out, struct tokenizer *tok, const char *text, size_t n, size_t most, struct err *err);
void prompt_tokens_free(struct prompt_tokens *t);

enum { PROMPT_CHUNK = 75 }; /* tokens in a chunk, without its begin and end markers */

/* How many chunks prompts that are used together need: enough for the longest [tokens], at least 1, at most `most`
 * (--max_embeddings_multiples). */
size_t prompt_chunks(size_t longest, size_t most);

/* Fills ids and weights [chunks, 77], with begin and end markers in every chunk: what the text encoder is given
 * chunk by chunk. pad: TOKEN_END for SD1, TOKEN_PAD_SD2 for SD2. Markers and padding weigh 1. (v0.3.0 took an exclamation
 * mark at the edge of a chunk for SD2's padding, which has the same id; here it stays a token.) */
void prompt_fill(const struct prompt_tokens *t, size_t chunks, int32_t pad, int32_t *ids, float *weights);

#endif

/* Any bytes as a prompt file: lines or an error. What is accepted is parsed for weights and tokens, and its chunks are whole.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "formats/prompt.h"
#include "formats/prompt_line.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_chunks(const struct prompt_tokens *t)
{
    enum { MOST = 3 };
    int32_t ids[MOST * TOKEN_CHUNK];
    float weights[MOST * TOKEN_CHUNK];
    size_t chunks = prompt_chunks(t->count, MOST), seen = 0;

    prompt_fill(t, chunks, TOKEN_PAD_SD2, ids, weights);
    for (size_t i = 0; i < chunks * TOKEN_CHUNK; i++) {
        size_t k = i % TOKEN_CHUNK;

        if (ids[i] < 0 || ids[i] >= TOKEN_COUNT || (k == 0 && ids[i] != TOKEN_BEGIN))
            abort();
        seen += k >= 1 && k <= PROMPT_CHUNK && seen < t->count && ids[i] == t->id[seen];
    }
    if (seen != t->count)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *tok;
    struct prompt_file f;
    struct err err = {0};

    if (!tok && tokenizer_open(&tok, &err))
        abort();
    if (size > 4096)
        return 0;
    if (prompt_file_parse(&f, (const char *)data, size, "fuzz.txt", &err)) {
        if (err.kind == ERR_NONE || !err.msg[0])
            abort();
        return 0;
    }
    for (size_t i = 0; i < f.count; i++) {
        struct prompt_tokens t;

        if (prompt_tokenize(&t, tok, f.line[i].text, strlen(f.line[i].text), 225, &err))
            continue;
        check_chunks(&t);
        prompt_tokens_free(&t);
    }
    prompt_file_free(&f);
    return 0;
}

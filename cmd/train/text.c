#include "cmd/train/text.h"

#include <stdlib.h>
#include <string.h>

#include "formats/prompt.h"
#include "ref/base/thread.h"
#include "ref/model/clip.h"

enum { MOST_CAPTIONS = 4096 }; /* whose token ids are kept; others are tokenized each time */

struct caption {
    char *text;
    int32_t *ids;   /* [chunks, 77] */
    float *weights; /* [tokens] of the joined context */
};

/* One kept embedding: found again by its token ids and weights. */
struct kept {
    int32_t *ids;
    float *weights;
    float *context;
};

struct text {
    struct text_options o;
    struct tokenizer *tokenizer;
    struct token_list tokens;
    const struct ops *ops;
    struct graph *g;
    struct run *run;
    struct clip clip;
    size_t size, arena;
    int32_t *ids, *rows;
    float *weights; /* [tokens] */
    float *out; /* [chunks, 77, width] */
    struct kept *kept;
    size_t count, most;
    struct caption *caption; /* [captions], room for MOST_CAPTIONS */
    size_t captions;
};

static size_t ids_count(const struct text *t)
{
    return t->o.chunks * TOKEN_CHUNK;
}

static int prepare_encoder(struct text *t, struct weights *w, struct err *err)
{
    struct layers l = {.w = w, .part = MODEL_TEXT_ENCODER, .loras = t->o.loras, .lora_count = t->o.lora_count};
    struct clip_options options = {.clip_skip = t->o.clip_skip};
    struct plan *plan;
    size_t width;

    t->g = l.g = graph_new(err);
    if (!t->g || clip_build(&l, &options, t->o.chunks, TOKEN_CHUNK, &t->clip, err) || graph_fuse(t->g, FUSE_ALL, err) ||
        plan_new(&plan, t->g, t->ops, thread_count(), err))
        return -1;
    t->arena = plan->arena;
    plan_free(plan);
    width = graph_shape(t->g, t->clip.out).dim[2];
    t->size = train_tokens(t->o.chunks) * width;
    t->most = t->o.most / (t->size * sizeof(float)) + 1;
    t->kept = mem_zero(t->most, sizeof *t->kept, "text embeddings", err);
    t->out = mem_new(ids_count(t) * width * sizeof(float), "text embeddings", err);
    return t->kept && t->out ? 0 : -1;
}

int text_open(struct text **out, struct weights *w, const struct ops *ops, const struct text_options *o, bool encode,
              struct err *err)
{
    struct text *t = mem_zero(1, sizeof *t, "captions", err);

    if (!t)
        return -1;
    t->o = *o;
    t->ops = ops;
    if (tokenizer_open(&t->tokenizer, err))
        goto fail;
    t->ids = mem_zero(ids_count(t), sizeof *t->ids, "captions", err);
    t->rows = mem_zero(train_tokens(o->chunks), sizeof *t->rows, "captions", err);
    t->weights = mem_zero(train_tokens(o->chunks), sizeof *t->weights, "captions", err);
    t->caption = mem_zero(MOST_CAPTIONS, sizeof *t->caption, "captions", err);
    if (!t->ids || !t->rows || !t->weights || !t->caption || (encode && prepare_encoder(t, w, err)))
        goto fail;
    text_rows(o->chunks, 1, t->rows);
    *out = t;
    return 0;
fail:
    text_close(t);
    return -1;
}

void text_close(struct text *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->count; i++) {
        free(t->kept[i].ids);
        free(t->kept[i].weights);
        free(t->kept[i].context);
    }
    for (size_t i = 0; i < t->captions; i++) {
        free(t->caption[i].text);
        free(t->caption[i].ids);
        free(t->caption[i].weights);
    }
    free(t->caption);
    free(t->kept);
    free(t->out);
    free(t->ids);
    free(t->rows);
    free(t->weights);
    free(t->tokens.id);
    run_free(t->run);
    graph_free(t->g);
    tokenizer_close(t->tokenizer);
    free(t);
}

/* SD2's padding is a token like others, so a chunk that ends inside the text must get its end marker, and one that is all
 * padding begins with it. */
static void mend_sd2(int32_t *chunk)
{
    if (chunk[TOKEN_CHUNK - 2] != TOKEN_END && chunk[TOKEN_CHUNK - 2] != TOKEN_PAD_SD2)
        chunk[TOKEN_CHUNK - 1] = TOKEN_END;
    if (chunk[1] == TOKEN_PAD_SD2)
        chunk[1] = TOKEN_END;
}

/* Tokens [count] with markers and padding, in chunks. */
static void fill_chunks(const struct text *t, const int32_t *id, size_t count, int32_t *ids)
{
    size_t room = t->o.chunks * PROMPT_CHUNK;
    int32_t pad = t->o.sd2 ? TOKEN_PAD_SD2 : TOKEN_END;

    for (size_t c = 0; c < t->o.chunks; c++) {
        int32_t *chunk = ids + c * TOKEN_CHUNK;

        chunk[0] = TOKEN_BEGIN;
        for (size_t i = 0; i < PROMPT_CHUNK; i++) {
            size_t at = c * PROMPT_CHUNK + i;

            chunk[1 + i] = at < count ? id[at] : at == count ? TOKEN_END : pad;
        }
        chunk[TOKEN_CHUNK - 1] = count == room ? TOKEN_END : pad;
        if (t->o.sd2 && t->o.chunks > 1)
            mend_sd2(chunk);
    }
}

/* t->ids and t->weights of a caption. */
static int tokenize(struct text *t, const char *caption, struct err *err)
{
    size_t room = t->o.chunks * PROMPT_CHUNK;
    struct prompt_tokens weighted;

    for (size_t i = 0; i < train_tokens(t->o.chunks); i++)
        t->weights[i] = 1;
    if (t->o.weighted) {
        if (prompt_tokenize(&weighted, t->tokenizer, caption, strlen(caption), room, err))
            return err_prefix(err, "caption '%.60s': ", caption);
        fill_chunks(t, weighted.id, weighted.count, t->ids);
        memcpy(t->weights + 1, weighted.weight, weighted.count * sizeof *t->weights);
        prompt_tokens_free(&weighted);
        return 0;
    }
    t->tokens.count = 0;
    if (tokenizer_encode(t->tokenizer, caption, strlen(caption), &t->tokens, err))
        return -1;
    fill_chunks(t, t->tokens.id, t->tokens.count < room ? t->tokens.count : room, t->ids);
    return 0;
}

/* Copies of t->ids and t->weights under the caption's name, while there is room. */
static int remember(struct text *t, const char *caption, struct err *err)
{
    struct caption *c = &t->caption[t->captions];
    size_t tokens = train_tokens(t->o.chunks);

    if (t->captions == MOST_CAPTIONS)
        return 0;
    c->text = mem_str(caption, err);
    c->ids = c->text ? mem_new(ids_count(t) * sizeof *c->ids, "captions", err) : NULL;
    c->weights = c->ids ? mem_new(tokens * sizeof *c->weights, "captions", err) : NULL;
    if (!c->weights) {
        free(c->text);
        free(c->ids);
        return -1;
    }
    memcpy(c->ids, t->ids, ids_count(t) * sizeof *c->ids);
    memcpy(c->weights, t->weights, tokens * sizeof *c->weights);
    t->captions++;
    return 0;
}

/* Sets t->ids and t->weights. */
static int look_up(struct text *t, const char *caption, struct err *err)
{
    for (size_t i = 0; i < t->captions; i++)
        if (strcmp(t->caption[i].text, caption) == 0) {
            memcpy(t->ids, t->caption[i].ids, ids_count(t) * sizeof *t->ids);
            memcpy(t->weights, t->caption[i].weights, train_tokens(t->o.chunks) * sizeof *t->weights);
            return 0;
        }
    return tokenize(t, caption, err) || remember(t, caption, err) ? -1 : 0;
}

int text_ids(struct text *t, const char *caption, int32_t *ids, struct err *err)
{
    if (look_up(t, caption, err))
        return -1;
    memcpy(ids, t->ids, ids_count(t) * sizeof *ids);
    return 0;
}

int text_weights(struct text *t, const char *caption, float *weights, size_t width, struct err *err)
{
    if (look_up(t, caption, err))
        return -1;
    for (size_t i = 0; i < train_tokens(t->o.chunks); i++)
        for (size_t k = 0; k < width; k++)
            weights[i * width + k] = t->weights[i];
    return 0;
}

void text_rows(size_t chunks, size_t n, int32_t *rows)
{
    for (size_t s = 0; s < n; s++) {
        int32_t first = (int32_t)(s * chunks * TOKEN_CHUNK);

        *rows++ = first;
        for (size_t c = 0; c < chunks; c++)
            for (size_t i = 0; i < PROMPT_CHUNK; i++)
                *rows++ = first + (int32_t)(c * TOKEN_CHUNK + 1 + i);
        *rows++ = first + (int32_t)(chunks * TOKEN_CHUNK) - 1;
    }
}

size_t text_size(const struct text *t)
{
    return t->size;
}

size_t text_bytes(const struct text *t)
{
    return t->arena + t->most * t->size * sizeof(float);
}

/* What the caption in t->ids and t->weights means, into context. */
static int encode(struct text *t, float *context, struct err *err)
{
    size_t width = t->size / train_tokens(t->o.chunks);

    if (!t->run && run_new(&t->run, t->g, t->ops, err))
        return -1;
    if (run_write(t->run, t->clip.ids, t->ids, err) || run_graph(t->run, NULL, err) || run_read(t->run, t->clip.out, t->out, err))
        return -1;
    for (size_t i = 0; i < train_tokens(t->o.chunks); i++)
        for (size_t k = 0; k < width; k++)
            context[i * width + k] = t->out[(size_t)t->rows[i] * width + k] * t->weights[i];
    return 0;
}

static int keep(struct text *t, const float *context, struct err *err)
{
    struct kept *k = &t->kept[t->count];
    size_t weights = train_tokens(t->o.chunks) * sizeof *k->weights;

    k->ids = mem_new(ids_count(t) * sizeof *k->ids, "text embeddings", err);
    k->weights = k->ids ? mem_new(weights, "text embeddings", err) : NULL;
    k->context = k->weights ? mem_new(t->size * sizeof *k->context, "text embeddings", err) : NULL;
    if (!k->context) {
        free(k->ids);
        free(k->weights);
        return -1;
    }
    memcpy(k->ids, t->ids, ids_count(t) * sizeof *k->ids);
    memcpy(k->weights, t->weights, weights);
    memcpy(k->context, context, t->size * sizeof *context);
    t->count++;
    return 0;
}

int text_embed(struct text *t, const char *caption, float *context, struct err *err)
{
    if (look_up(t, caption, err))
        return -1;
    for (size_t i = 0; i < t->count; i++)
        if (memcmp(t->kept[i].ids, t->ids, ids_count(t) * sizeof *t->ids) == 0 &&
            memcmp(t->kept[i].weights, t->weights, train_tokens(t->o.chunks) * sizeof *t->weights) == 0) {
            memcpy(context, t->kept[i].context, t->size * sizeof *context);
            return 0;
        }
    if (encode(t, context, err))
        return -1;
    return t->count < t->most ? keep(t, context, err) : 0;
}

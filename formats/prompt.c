#include "formats/prompt.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

struct parser {
    struct prompt_parts *out;
    size_t cap;
    size_t *open[2]; /* where round and square brackets were opened: number of parts before them */
    size_t n_open[2], cap_open[2];
    char *at; /* end of the text so far */
    struct err *err;
};

enum { ROUND, SQUARE };

static int add(struct parser *p, const char *text, size_t n)
{
    struct prompt_part *part;

    if (mem_grow(&p->out->part, &p->cap, p->out->count, sizeof *part, "a prompt", p->err))
        return -1;
    part = &p->out->part[p->out->count++];
    *part = (struct prompt_part){p->at, n, 1};
    memcpy(p->at, text, n);
    p->at += n;
    return 0;
}

static int push(struct parser *p, int kind)
{
    if (mem_grow(&p->open[kind], &p->cap_open[kind], p->n_open[kind], sizeof *p->open[kind], "a prompt", p->err))
        return -1;
    p->open[kind][p->n_open[kind]++] = p->out->count;
    return 0;
}

/* Closes the newest bracket of that kind */
static void pop(struct parser *p, int kind, double weight)
{
    for (size_t i = p->open[kind][--p->n_open[kind]]; i < p->out->count; i++)
        p->out->part[i].weight *= weight;
}

static bool is_special(char c)
{
    return c && strchr("\\()[]:", c);
}

/* The length of ":NUMBER)" at s, or 0; its digits and dots are not checked further. */
static size_t weight_length(const char *s, const char *end)
{
    const char *at = s + 1, *digits;

    if (at < end && (*at == '+' || *at == '-'))
        at++;
    for (digits = at; at < end && (isdigit((unsigned char)*at) || *at == '.');)
        at++;
    return at > digits && at < end && *at == ')' ? (size_t)(at + 1 - s) : 0;
}

static int read_weight(struct parser *p, const char *s, size_t n, double *weight)
{
    char number[64], *end = number;

    if (n < sizeof number) {
        memcpy(number, s, n);
        number[n] = 0;
        *weight = strtod(number, &end);
    }
    if (end == number || *end)
        return err_usage(p->err, "cannot read the prompt: the weight '%.*s' is no number; write it as in (words:1.3)",
                         n < 80 ? (int)n : 80, s);
    return 0;
}

/* Handles what stands at s and moves it on. */
static int one(struct parser *p, const char **s, const char *end)
{
    const char *at = *s;
    size_t n = 1, weight;
    double value = 1;

    if (*at == '\\') {
        bool plain = end - at > 1 && strchr("()[]\\", at[1]) && at[1];

        *s += plain ? 2 : 1;
        return add(p, at + 1, plain);
    }
    if (*at == '(' || *at == '[') {
        *s += 1;
        return push(p, *at == '[' ? SQUARE : ROUND);
    }
    weight = *at == ':' ? weight_length(at, end) : 0;
    if (weight)
        n = weight;
    else if (!is_special(*at))
        while (at + n < end && !is_special(at[n]))
            n++;
    *s += n;
    if (weight && p->n_open[ROUND]) {
        if (read_weight(p, at + 1, n - 2, &value))
            return -1;
        pop(p, ROUND, value);
        return 0;
    }
    if (*at == ')' && p->n_open[ROUND]) {
        pop(p, ROUND, 1.1);
        return 0;
    }
    if (*at == ']' && p->n_open[SQUARE]) {
        pop(p, SQUARE, 1 / 1.1);
        return 0;
    }
    return add(p, at, n);
}

/* Neighbours of the same weight become one; their texts lie side by side already. */
static void merge(struct prompt_parts *p)
{
    size_t kept = 0;

    for (size_t i = 1; i < p->count; i++)
        if (p->part[kept].weight == p->part[i].weight)
            p->part[kept].n += p->part[i].n;
        else
            p->part[++kept] = p->part[i];
    p->count = kept + 1;
}

/* Brackets left open close in the order in which they were opened, round ones first: as the oracle multiplies. */
static void close_all(struct parser *p)
{
    static const double weight[] = {1.1, 1 / 1.1};

    for (int kind = ROUND; kind <= SQUARE; kind++)
        for (size_t i = 0; i < p->n_open[kind]; i++)
            for (size_t k = p->open[kind][i]; k < p->out->count; k++)
                p->out->part[k].weight *= weight[kind];
}

int prompt_parse(struct prompt_parts *out, const char *text, size_t n, struct err *err)
{
    struct parser p = {.out = out, .err = err};
    const char *end = text + n;
    int rc = -1;

    memset(out, 0, sizeof *out);
    out->text = p.at = mem_new(n + 1, "a prompt", err);
    if (!out->text)
        goto out;
    for (const char *s = text; s < end;)
        if (one(&p, &s, end))
            goto out;
    close_all(&p);
    if (!out->count && add(&p, "", 0))
        goto out;
    merge(out);
    rc = 0;
out:
    free(p.open[ROUND]);
    free(p.open[SQUARE]);
    if (rc)
        prompt_parts_free(out);
    return rc;
}

void prompt_parts_free(struct prompt_parts *p)
{
    free(p->part);
    free(p->text);
    memset(p, 0, sizeof *p);
}

int prompt_tokenize(struct prompt_tokens *out, struct tokenizer *tok, const char *text, size_t n, size_t most, struct err *err)
{
    struct prompt_parts parts;
    struct token_list ids = {0};
    size_t cap = 0, known = 0;
    int rc = -1;

    memset(out, 0, sizeof *out);
    if (prompt_parse(&parts, text, n, err))
        return -1;
    for (size_t i = 0; i < parts.count && ids.count <= most; i++) {
        if (tokenizer_encode(tok, parts.part[i].text, parts.part[i].n, &ids, err))
            goto out;
        for (; known < ids.count; known++) {
            if (mem_grow(&out->weight, &cap, known, sizeof *out->weight, "a prompt", err))
                goto out;
            out->weight[known] = (float)parts.part[i].weight;
        }
    }
    out->truncated = ids.count > most;
    out->count = out->truncated ? most : ids.count;
    out->id = ids.id;
    ids.id = NULL;
    rc = 0;
out:
    free(ids.id);
    prompt_parts_free(&parts);
    if (rc)
        prompt_tokens_free(out);
    return rc;
}

void prompt_tokens_free(struct prompt_tokens *t)
{
    free(t->id);
    free(t->weight);
    memset(t, 0, sizeof *t);
}

size_t prompt_chunks(size_t longest, size_t most)
{
    size_t need = longest ? (longest - 1) / PROMPT_CHUNK + 1 : 1;

    return need < most ? need : most ? most : 1;
}

/* The prompt is one row: begin, tokens, end, padding. Each chunk is a begin marker, 75 of the row, and the one after them,
 * which the next chunk has too: if that is a token, an end marker stands there. A chunk that starts after the row's end marker
 * gets one of its own before its padding. */
void prompt_fill(const struct prompt_tokens *t, size_t chunks, int32_t pad, int32_t *ids, float *weights)
{
    for (size_t c = 0; c < chunks; c++) {
        int32_t *id = ids + c * TOKEN_CHUNK;
        float *w = weights + c * TOKEN_CHUNK;

        id[0] = TOKEN_BEGIN;
        w[0] = 1;
        for (size_t k = 1; k < TOKEN_CHUNK; k++) {
            size_t at = c * PROMPT_CHUNK + k; /* in the row, where begin is 0 */
            bool token = at <= t->count && k <= PROMPT_CHUNK;
            bool end = at == t->count + 1 || (at <= t->count && !token) || (at > t->count && k == 1);

            id[k] = token ? t->id[at - 1] : end ? TOKEN_END : pad;
            w[k] = token ? t->weight[at - 1] : 1;
        }
    }
}

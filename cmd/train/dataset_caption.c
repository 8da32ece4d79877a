/* The caption of a sample: shuffled, thinned out, or left away; a function of seed, epoch, picture and repeat. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/dataset_inside.h"

/* A text that grows; after memory ran out, text is NULL and stays so. */
struct text {
    char *text;
    size_t n, cap;
    bool failed;
    struct err *err;
};

static void add(struct text *t, const char *s, size_t n)
{
    while (!t->failed && t->cap - t->n < n + 1)
        t->failed = mem_grow(&t->text, &t->cap, t->cap, 1, "a caption", t->err) != 0;
    if (t->failed)
        return;
    memcpy(t->text + t->n, s, n);
    t->n += n;
    t->text[t->n] = 0;
}

static char *finish(struct text *t)
{
    if (!t->failed && !t->text)
        add(t, "", 0);
    if (t->failed)
        free(t->text);
    return t->failed ? NULL : t->text;
}

struct piece { /* of a caption, without the blanks around it */
    const char *s;
    size_t n;
};

struct pieces {
    struct piece *item;
    size_t count, cap;
};

static struct piece strip(struct piece p)
{
    while (p.n && strchr(" \t\r\n", p.s[0])) {
        p.s++;
        p.n--;
    }
    while (p.n && strchr(" \t\r\n", p.s[p.n - 1]))
        p.n--;
    return p;
}

/* Where the separator begins in p, or p.n. */
static size_t find(struct piece p, const char *separator)
{
    size_t n = strlen(separator);
    const char *at = n > 0 && n <= p.n ? memmem(p.s, p.n, separator, n) : NULL;

    return at ? (size_t)(at - p.s) : p.n;
}

/* Appends the parts of p. empty: also those with nothing in them. */
static int split(struct pieces *out, struct piece p, const char *separator, bool empty, struct err *err)
{
    for (;;) {
        size_t at = find(p, separator);
        struct piece one = strip((struct piece){p.s, at});

        if (one.n || empty) {
            if (mem_grow(&out->item, &out->cap, out->count, sizeof *out->item, "parts of a caption", err))
                return -1;
            out->item[out->count++] = one;
        }
        if (at == p.n)
            return 0;
        at += strlen(separator);
        p = (struct piece){p.s + at, p.n - at};
    }
}

/* ---- Wildcards */

/* One of the alternatives of "a|b|c". */
static struct piece choose(struct piece p, struct draw *draw)
{
    size_t count = 1, pick;

    for (size_t i = 0; i < p.n; i++)
        count += p.s[i] == '|';
    pick = draw_below(draw, count);
    while (pick--)
        p = (struct piece){p.s + find(p, "|") + 1, p.n - find(p, "|") - 1};
    return (struct piece){p.s, find(p, "|")};
}

/* Replaces {a|b} by one of its parts; {{ and }} are braces. */
static void expand(struct text *out, struct piece p, struct draw *draw)
{
    for (size_t i = 0; i < p.n; i++) {
        struct piece rest = {p.s + i + 1, p.n - i - 1};
        size_t close = find(rest, "}");

        if (rest.n && p.s[i] == rest.s[0] && (p.s[i] == '{' || p.s[i] == '}')) {
            add(out, p.s + i++, 1);
        } else if (p.s[i] == '{' && close > 0 && close < rest.n) {
            struct piece one = choose((struct piece){rest.s, close}, draw);

            add(out, one.s, one.n);
            i += close + 1;
        } else {
            add(out, p.s + i, 1);
        }
    }
}

static struct piece choose_line(struct piece p, struct draw *draw)
{
    size_t count = 1, pick;

    for (size_t i = 0; i < p.n; i++)
        count += p.s[i] == '\n';
    pick = draw_below(draw, count);
    while (pick--)
        p = (struct piece){p.s + find(p, "\n") + 1, p.n - find(p, "\n") - 1};
    return (struct piece){p.s, find(p, "\n")};
}

/* ---- Parts */

/* fixed, flexible, fixed again. */
static int divide(const struct subset *s, struct piece caption, struct pieces part[3], struct err *err)
{
    const char *sep = s->separator;
    size_t at;

    if (s->keep_separator && *s->keep_separator && find(caption, s->keep_separator) < caption.n) {
        for (int i = 0; i < 3; i++) {
            at = i < 2 ? find(caption, s->keep_separator) : caption.n;
            if (split(&part[i], (struct piece){caption.s, at}, sep, false, err))
                return -1;
            if (at == caption.n) {
                caption = (struct piece){caption.s + at, 0};
                continue;
            }
            at += strlen(s->keep_separator);
            caption = (struct piece){caption.s + at, caption.n - at};
        }
        return 0;
    }
    if (split(&part[1], strip(caption), sep, true, err))
        return -1;
    for (size_t i = 0; i < s->keep && i < part[1].count; i++) {
        if (mem_grow(&part[0].item, &part[0].cap, i, sizeof *part[0].item, "parts of a caption", err))
            return -1;
        part[0].item[part[0].count++] = part[1].item[i];
    }
    part[1].count -= part[0].count;
    memmove(part[1].item, part[1].item + part[0].count, part[1].count * sizeof *part[1].item);
    return 0;
}

/* How many parts of a caption with `count` are used at this step. */
static size_t warm_up(const struct dataset *d, const struct subset *s, size_t count, size_t step)
{
    double steps = s->warmup_step < 1 ? floor(s->warmup_step * (double)d->setup.max_steps) : s->warmup_step, n;

    if (steps <= 0 || (double)step >= steps)
        return count;
    n = floor((double)step * (((double)count - (double)s->warmup_min) / steps)) + (double)s->warmup_min;
    return n < (double)count ? (size_t)(n < 0 ? 0 : n) : count;
}

static int rearrange(const struct dataset *d, const struct subset *s, struct piece caption, size_t step, struct draw *draw,
                     struct text *out, struct err *err)
{
    struct pieces part[3] = {{0}};
    int rc = divide(s, caption, part, err);

    if (!rc) {
        size_t kept = 0;

        part[1].count = warm_up(d, s, part[1].count, step);
        if (s->shuffle)
            draw_shuffle(draw, part[1].item, part[1].count, sizeof *part[1].item);
        for (size_t i = 0; i < part[1].count; i++)
            if (s->tag_dropout <= 0 || draw_unit(draw) >= s->tag_dropout)
                part[1].item[kept++] = part[1].item[i];
        part[1].count = kept;
        for (int i = 0, first = 1; i < 3; i++)
            for (size_t k = 0; k < part[i].count; k++, first = 0) {
                if (!first)
                    add(out, ", ", 2);
                add(out, part[i].item[k].s, part[i].item[k].n);
            }
    }
    for (int i = 0; i < 3; i++)
        free(part[i].item);
    return rc;
}

/* ---- */

static char *replace_all(char *s, const char *from, const char *to, struct err *err)
{
    struct text out = {.err = err};
    struct piece p = {s, strlen(s)};

    if (!from || !*from)
        return s;
    for (;;) {
        size_t at = find(p, from);

        add(&out, p.s, at);
        if (at == p.n)
            break;
        add(&out, to, strlen(to));
        p = (struct piece){p.s + at + strlen(from), p.n - at - strlen(from)};
    }
    free(s);
    return finish(&out);
}

static bool drops_all(const struct subset *s, size_t epoch, struct draw *draw)
{
    if (s->dropout > 0 && draw_unit(draw) < s->dropout)
        return true;
    return s->dropout_epochs > 0 && (epoch + 1) % s->dropout_epochs == 0; /* epochs are counted from 1 by people */
}

/* The text with prefix and suffix, one line of it, wildcards replaced. */
static char *prepare(const struct subset *s, const char *caption, struct draw *draw, struct err *err)
{
    struct text whole = {.err = err}, out = {.err = err};
    struct piece p;
    char *text;

    if (s->prefix && *s->prefix) {
        add(&whole, s->prefix, strlen(s->prefix));
        add(&whole, " ", 1);
    }
    add(&whole, caption, strlen(caption));
    if (s->suffix && *s->suffix) {
        add(&whole, " ", 1);
        add(&whole, s->suffix, strlen(s->suffix));
    }
    text = finish(&whole);
    if (!text)
        return NULL;
    p = (struct piece){text, strlen(text)};
    if (s->wildcard)
        expand(&out, choose_line(p, draw), draw);
    else
        add(&out, p.s, find(p, "\n"));
    free(text);
    return finish(&out);
}

char *dataset_plain_caption(const struct dataset *d, size_t picture, struct err *err)
{
    const struct subset *s = &d->subset[d->picture[picture].subset];
    struct draw draw = draw_begin(d->setup.seed, DRAW_CAPTION, 0, picture, 0);
    char *text = prepare(s, d->picture[picture].caption, &draw, err);

    return text ? replace_all(text, s->second_separator, s->separator, err) : NULL;
}

char *dataset_make_caption(const struct dataset *d, size_t picture, size_t epoch, size_t repeat, size_t step, struct err *err)
{
    const struct sample_picture *p = &d->picture[picture];
    const struct subset *s = &d->subset[p->subset];
    struct draw draw = draw_begin(d->setup.seed, DRAW_CAPTION, epoch, picture, repeat);
    struct text out = {.err = err};
    char *text;
    int rc;

    if (d->plain)
        return dataset_plain_caption(d, picture, err);
    if (drops_all(s, epoch, &draw))
        return mem_str("", err);
    text = prepare(s, p->caption, &draw, err);
    if (text && (s->shuffle || s->warmup_step > 0 || s->tag_dropout > 0)) {
        rc = rearrange(d, s, (struct piece){text, strlen(text)}, step, &draw, &out, err);
        free(text);
        text = finish(&out);
        if (rc) {
            free(text);
            return NULL;
        }
    }
    return text ? replace_all(text, s->second_separator, s->separator, err) : NULL;
}

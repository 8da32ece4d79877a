#include "formats/prompt_line.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

#include "ref/base/mem.h"

struct where {
    const char *path;
    size_t number;
    struct err *err;
};

static int fail(const struct where *w, const char *what, const char *text, size_t n, const char *next)
{
    int cut = n < 60 ? (int)n : 60;

    if (!w->path)
        return err_usage(w->err, "cannot read the prompt: %s '%.*s'%s; %s", what, cut, text, n > 60 ? "..." : "", next);
    return err_usage(w->err, "cannot read '%s': line %zu: %s '%.*s'%s; %s", w->path, w->number, what, cut, text,
                     n > 60 ? "..." : "", next);
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
}

static void trim(const char **s, size_t *n)
{
    for (; *n && is_blank(**s); (*s)++)
        (*n)--;
    while (*n && is_blank((*s)[*n - 1]))
        (*n)--;
}

/* All of text as a number; digits, and where `real` is set a sign, dots and an exponent. */
static bool read_number(const char *text, size_t n, bool real, double *out)
{
    char copy[64], *end;

    if (n == 0 || n >= sizeof copy)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!isdigit((unsigned char)text[i]) && !(real && strchr("+-.eE", text[i]) && text[i]))
            return false;
    memcpy(copy, text, n);
    copy[n] = 0;
    *out = strtod(copy, &end);
    return end == copy + n && isfinite(*out);
}

static int read_count(const struct where *w, const char *text, size_t n, double most, size_t *out, const char *next)
{
    double x;

    if (!read_number(text, n, false, &x) || x < 1 || x > most)
        return fail(w, "bad number", text, n, next);
    *out = (size_t)x;
    return 0;
}

static int read_real(const struct where *w, const char *text, size_t n, double least, double most, double *out,
                     const char *next)
{
    if (!read_number(text, n, true, out) || *out < least || *out > most)
        return fail(w, "bad number", text, n, next);
    return 0;
}

static int read_seeds(const struct where *w, struct prompt_line *p, const char *text, size_t n)
{
    static const char next[] = "give seeds as in '--d 1,2,3', each below 2^64";
    size_t cap = 0;

    free(p->seed);
    p->seed = NULL;
    p->seeds = 0;
    for (size_t at = 0; at <= n;) {
        uint64_t seed = 0;
        size_t start = at;

        if (mem_grow(&p->seed, &cap, p->seeds, sizeof *p->seed, "seeds", w->err))
            return -1;
        for (; at < n && text[at] != ','; at++) {
            unsigned digit = (unsigned)(text[at] - '0');

            if (digit > 9 || seed > (UINT64_MAX - digit) / 10)
                return fail(w, "bad seeds", text, n, next);
            seed = seed * 10 + digit;
        }
        if (at++ == start)
            return fail(w, "bad seeds", text, n, next);
        p->seed[p->seeds++] = seed;
    }
    return 0;
}

static int set_text(char **out, const char *text, size_t n, struct err *err)
{
    free(*out);
    *out = mem_strn(text, n, err);
    return *out ? 0 : -1;
}

static int read_negative_scale(const struct where *w, struct prompt_line *p, const char *text, size_t n)
{
    p->negative_scale_none = n == 4 && !strncasecmp(text, "none", 4);
    if (p->negative_scale_none)
        return 0;
    return read_real(w, text, n, -1e6, 1e6, &p->negative_scale, "give a number, or 'none'");
}

/* One option: its letters, a blank, its value. n counts the bytes after the two dashes. */
static int read_option(const struct where *w, struct prompt_line *p, const char *text, size_t n)
{
    static const struct {
        const char *letters;
        unsigned bit;
    } options[] = {{"w", PROMPT_WIDTH},    {"h", PROMPT_HEIGHT},   {"s", PROMPT_STEPS},
                   {"d", PROMPT_SEEDS},    {"l", PROMPT_SCALE},    {"nl", PROMPT_NEGATIVE_SCALE},
                   {"t", PROMPT_STRENGTH}, {"n", PROMPT_NEGATIVE}, {"c", PROMPT_CLIP}};
    size_t letters = 0, i = 0, value_n;
    const char *whole = text, *value;
    unsigned bit;

    while (letters < n && text[letters] != ' ')
        letters++;
    while (i < sizeof options / sizeof options[0] &&
           (strlen(options[i].letters) != letters || strncasecmp(options[i].letters, text, letters) != 0))
        i++;
    if (i == sizeof options / sizeof options[0])
        return fail(w, "unknown option", whole - 2, n + 2, "a prompt has --w --h --s --d --l --nl --t --n --c");
    bit = options[i].bit;
    value = text + letters + (letters < n);
    value_n = (size_t)(text + n - value);
    if (value_n == 0)
        return fail(w, "no value for", whole - 2, n + 2, "write it behind a blank, as in '--w 512'");
    p->given |= bit;
    if (bit == PROMPT_NEGATIVE)
        return set_text(&p->negative, value, value_n, w->err);
    if (bit == PROMPT_CLIP)
        return set_text(&p->clip, value, value_n, w->err);
    trim(&value, &value_n);
    switch (bit) {
    case PROMPT_WIDTH:
        return read_count(w, value, value_n, 1 << 16, &p->width, "give the width in pixels, as in '--w 512'");
    case PROMPT_HEIGHT:
        return read_count(w, value, value_n, 1 << 16, &p->height, "give the height in pixels, as in '--h 512'");
    case PROMPT_STEPS:
        return read_count(w, value, value_n, 1000, &p->steps, "give 1 to 1000 steps");
    case PROMPT_SEEDS:
        return read_seeds(w, p, value, value_n);
    case PROMPT_SCALE:
        return read_real(w, value, value_n, -1e6, 1e6, &p->scale, "give a number, as in '--l 7.5'");
    case PROMPT_NEGATIVE_SCALE:
        return read_negative_scale(w, p, value, value_n);
    default:
        return read_real(w, value, value_n, 0, 1, &p->strength, "give a strength of 0 to 1");
    }
}

/* The end of the piece at s: where a blank and two dashes stand, or end. */
static const char *piece_end(const char *s, const char *end)
{
    for (; end - s >= 3; s++)
        if (s[0] == ' ' && s[1] == '-' && s[2] == '-')
            return s;
    return end;
}

/* text [n] is what stands between "<lora:" and ">". */
static int read_lora(const struct where *w, struct prompt_line *p, size_t *cap, const char *text, size_t n)
{
    static const char next[] = "write <lora:name>, <lora:name:0.8> or <lora:name:0.8:0.5>";
    const char *colon = memchr(text, ':', n), *end = text + n;
    struct prompt_lora *lora;
    size_t name_n = colon ? (size_t)(colon - text) : n;
    double mul[2] = {1, 1};
    int given = 0;

    while (colon) {
        const char *value = colon + 1;
        size_t left = (size_t)(end - value);

        colon = memchr(value, ':', left);
        if (colon)
            left = (size_t)(colon - value);
        trim(&value, &left);
        if (given == 2 || !read_number(value, left, true, &mul[given]))
            return fail(w, "bad LoRA", text, n, next);
        given++;
    }
    trim(&text, &name_n);
    if (name_n == 0)
        return fail(w, "LoRA without a name", text, n, next);
    if (mem_grow(&p->lora, cap, p->loras, sizeof *p->lora, "LoRAs of a prompt", w->err))
        return -1;
    lora = &p->lora[p->loras];
    lora->name = mem_strn(text, name_n, w->err);
    if (!lora->name)
        return -1;
    lora->text_encoder = mul[0];
    lora->unet = given == 2 ? mul[1] : mul[0];
    p->loras++;
    return 0;
}

/* Takes <lora:...> out of the prompt's text, in place. */
static int take_loras(const struct where *w, struct prompt_line *p)
{
    static const char begin[] = "<lora:";
    char *to = p->text;
    const char *from = p->text;
    size_t cap = 0;

    while (*from) {
        const char *close;

        if (strncmp(from, begin, sizeof begin - 1) != 0) {
            *to++ = *from++;
            continue;
        }
        close = strchr(from, '>');
        if (!close)
            return fail(w, "LoRA without its '>'", from, strlen(from), "close it, as in <lora:name:0.8>");
        from += sizeof begin - 1;
        if (read_lora(w, p, &cap, from, (size_t)(close - from)))
            return -1;
        from = close + 1;
    }
    *to = 0;
    return 0;
}

int prompt_line_parse(struct prompt_line *out, const char *line, size_t n, const char *path, size_t number, struct err *err)
{
    struct where w = {path, number, err};
    const char *end, *s;

    *out = (struct prompt_line){.number = number};
    trim(&line, &n);
    end = line + n;
    if (memchr(line, 0, n)) {
        fail(&w, "zero byte after", line, strnlen(line, n), "a prompt is plain text");
        goto fail;
    }
    s = piece_end(line, end);
    if (set_text(&out->text, line, (size_t)(s - line), err) || set_text(&out->negative, "", 0, err))
        goto fail;
    while (s < end) {
        const char *option = s + 3;

        s = piece_end(option, end);
        if (read_option(&w, out, option, (size_t)(s - option)))
            goto fail;
    }
    if (take_loras(&w, out))
        goto fail;
    return 0;
fail:
    prompt_line_free(out);
    return -1;
}

void prompt_line_free(struct prompt_line *p)
{
    for (size_t i = 0; i < p->loras; i++)
        free(p->lora[i].name);
    free(p->lora);
    free(p->seed);
    free(p->text);
    free(p->negative);
    free(p->clip);
    memset(p, 0, sizeof *p);
}

static bool is_utf8(const char *s, size_t n)
{
    while (n) {
        utf8proc_int32_t c;
        utf8proc_ssize_t used = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &c);

        if (used <= 0)
            return false;
        s += used;
        n -= (size_t)used;
    }
    return true;
}

static bool is_empty(const char *s, size_t n)
{
    trim(&s, &n);
    return n == 0;
}

int prompt_file_parse(struct prompt_file *out, const char *text, size_t n, const char *path, struct err *err)
{
    const char *s = text, *end = text + n;
    size_t cap = 0, number = 0;

    memset(out, 0, sizeof *out);
    if (n >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
        s += 3;
    while (s < end) {
        const char *stop = s;

        while (stop < end && *stop != '\n' && *stop != '\r')
            stop++;
        number++;
        if (!is_utf8(s, (size_t)(stop - s))) {
            err_set(err, "cannot read '%s': line %zu is not UTF-8; save the file as UTF-8", path, number);
            goto fail;
        }
        if (!is_empty(s, (size_t)(stop - s))) {
            if (mem_grow(&out->line, &cap, out->count, sizeof *out->line, "prompts", err) ||
                prompt_line_parse(&out->line[out->count], s, (size_t)(stop - s), path, number, err))
                goto fail;
            out->count++;
        }
        s = stop + (end - stop >= 2 && stop[0] == '\r' && stop[1] == '\n') + (stop < end);
    }
    if (out->count)
        return 0;
    err_set(err, "cannot read '%s': it holds no prompt; write one a line", path);
fail:
    prompt_file_free(out);
    return -1;
}

int prompt_file_read(struct prompt_file *out, const char *path, struct err *err)
{
    enum { MOST = 64 << 20 };
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    size_t n = 0, cap = 0;
    int rc = -1;

    memset(out, 0, sizeof *out);
    if (!f)
        return err_set(err, "cannot read '%s': %s", path, strerror(errno));
    do {
        if (n == MOST) {
            err_set(err, "cannot read '%s': longer than 64 MiB; is it a file of prompts?", path);
            goto out;
        }
        if (n == cap && mem_grow(&text, &cap, cap, 1, path, err))
            goto out;
        n += fread(text + n, 1, cap - n, f);
    } while (!feof(f) && !ferror(f));
    if (ferror(f)) {
        err_set(err, "cannot read '%s': %s", path, strerror(errno));
        goto out;
    }
    rc = prompt_file_parse(out, text, n, path, err);
out:
    free(text);
    fclose(f);
    return rc;
}

void prompt_file_free(struct prompt_file *f)
{
    for (size_t i = 0; i < f->count; i++)
        prompt_line_free(&f->line[i]);
    free(f->line);
    memset(f, 0, sizeof *f);
}

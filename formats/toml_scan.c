#include "formats/toml_scan.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKEN = 128 };

int toml_fail(struct toml *t, const char *what)
{
    return err_set(t->err, "cannot read '%s': line %zu: %s", t->path, t->line, what);
}

int toml_no_memory(struct toml *t)
{
    return err_memory(t->err, (unsigned long long)(t->end - t->s), "a TOML file");
}

int toml_peek(const struct toml *t)
{
    return t->s < t->end ? (unsigned char)*t->s : -1;
}

bool toml_take(struct toml *t, char c)
{
    if (toml_peek(t) != c)
        return false;
    t->s++;
    return true;
}

static bool take3(struct toml *t, char c)
{
    if (t->end - t->s < 3 || t->s[0] != c || t->s[1] != c || t->s[2] != c)
        return false;
    t->s += 3;
    return true;
}

void toml_skip_blanks(struct toml *t)
{
    while (toml_peek(t) == ' ' || toml_peek(t) == '\t')
        t->s++;
}

/* A line's end: newline, carriage return and newline, or the text's end. */
bool toml_take_newline(struct toml *t)
{
    if (t->end - t->s >= 2 && t->s[0] == '\r' && t->s[1] == '\n')
        t->s++;
    if (!toml_take(t, '\n'))
        return false;
    t->line++;
    return true;
}

bool toml_is_control(int c)
{
    return (c >= 0 && c < 0x20 && c != '\t') || c == 0x7f;
}

/* Blanks and a comment up to, not including, the line's end. */
int toml_skip_comment(struct toml *t)
{
    toml_skip_blanks(t);
    if (!toml_take(t, '#'))
        return 0;
    while (t->s < t->end && *t->s != '\n' && !(t->end - t->s >= 2 && t->s[0] == '\r' && t->s[1] == '\n')) {
        if (toml_is_control(toml_peek(t)))
            return toml_fail(t, "control character in a comment");
        t->s++;
    }
    return 0;
}

/* Blanks, comments and newlines between the elements of an array. */
int toml_skip_space(struct toml *t)
{
    do {
        if (toml_skip_comment(t))
            return -1;
    } while (toml_take_newline(t));
    return 0;
}

int toml_text_add(struct toml *t, struct text *x, const char *data, size_t n)
{
    if (x->n + n + 1 > x->cap) {
        size_t cap = (x->n + n + 1) * 2;
        char *p = realloc(x->data, cap);

        if (!p)
            return toml_no_memory(t);
        x->data = p;
        x->cap = cap;
    }
    memcpy(x->data + x->n, data, n);
    x->n += n;
    x->data[x->n] = 0;
    return 0;
}

static int add_code_point(struct toml *t, struct text *x, int digits)
{
    uint32_t c = 0;
    char u[4];
    size_t n;

    for (int i = 0; i < digits; i++) {
        int h = toml_peek(t);
        int v = h >= '0' && h <= '9' ? h - '0' : h >= 'a' && h <= 'f' ? h - 'a' + 10 : h >= 'A' && h <= 'F' ? h - 'A' + 10 : -1;

        if (v < 0)
            return toml_fail(t, "'\\u' needs 4 and '\\U' 8 hexadecimal digits");
        c = c << 4 | (uint32_t)v;
        t->s++;
    }
    if (c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return toml_fail(t, "the escape is no Unicode character");
    if (c < 0x80) {
        u[0] = (char)c;
        n = 1;
    } else if (c < 0x800) {
        u[0] = (char)(0xc0 | c >> 6);
        n = 2;
    } else if (c < 0x10000) {
        u[0] = (char)(0xe0 | c >> 12);
        n = 3;
    } else {
        u[0] = (char)(0xf0 | c >> 18);
        n = 4;
    }
    for (size_t i = 1; i < n; i++)
        u[i] = (char)(0x80 | (c >> (6 * (n - 1 - i)) & 0x3f));
    return toml_text_add(t, x, u, n);
}

/* After a backslash. */
static int add_escape(struct toml *t, struct text *x, bool multi)
{
    static const char from[] = "btnfr\"\\", to[] = "\b\t\n\f\r\"\\";
    int c = toml_peek(t);
    const char *p = c > 0 ? strchr(from, c) : NULL;

    if (p) {
        t->s++;
        return toml_text_add(t, x, &to[p - from], 1);
    }
    if (c == 'u' || c == 'U') {
        t->s++;
        return add_code_point(t, x, c == 'u' ? 4 : 8);
    }
    if (multi) { /* a backslash at a line's end eats all white space that follows */
        const char *at = t->s;

        toml_skip_blanks(t);
        if (toml_take_newline(t)) {
            do
                toml_skip_blanks(t);
            while (toml_take_newline(t));
            return 0;
        }
        t->s = at;
    }
    return toml_fail(t,
                     "unknown escape after '\\'; write a backslash twice, or put the text between single quotes ('C:\\dir')");
}

/* The text after its opening quotes. */
static int text_body(struct toml *t, struct text *x, char quote, bool multi)
{
    if (multi)
        toml_take_newline(t);
    for (;;) {
        int c = toml_peek(t);

        if (c < 0)
            return toml_fail(t, "the text in quotes does not end");
        if (multi && take3(t, quote)) {
            /* Up to two more quotes before the end belong to the text. */
            for (int i = 0; i < 2 && toml_peek(t) == quote; i++, t->s++)
                if (toml_text_add(t, x, &quote, 1))
                    return -1;
            return 0;
        }
        if (!multi && toml_take(t, quote))
            return 0;
        if (multi && toml_take_newline(t)) {
            if (toml_text_add(t, x, "\n", 1))
                return -1;
            continue;
        }
        if (toml_is_control(c))
            return toml_fail(t, c == '\n' || c == '\r' ? "the text in quotes does not end on its line"
                                                       : "control character in a text");
        t->s++;
        if (quote == '"' && c == '\\') {
            if (add_escape(t, x, multi))
                return -1;
        } else if (toml_text_add(t, x, t->s - 1, 1)) {
            return -1;
        }
    }
}

int toml_text(struct toml *t, struct text *x)
{
    char quote = *t->s;
    bool multi = take3(t, quote);

    if (!multi)
        t->s++;
    if (toml_text_add(t, x, "", 0))
        return -1;
    return text_body(t, x, quote, multi);
}

bool toml_is_bare(int c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

static bool is_digit(int c, int base)
{
    int v = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : 99;

    return v < base;
}

/* Copies digits without their underscores, each of which must stand between two digits. Returns how much of s that was, 0 when
 * it is malformed or there is no digit. */
static size_t copy_digits(const char *s, int base, char *out)
{
    size_t i = 0, n = strlen(out);

    for (; is_digit((unsigned char)s[i], base) || s[i] == '_'; i++) {
        if (s[i] == '_' && (i == 0 || s[i - 1] == '_' || !is_digit((unsigned char)s[i + 1], base)))
            return 0;
        if (s[i] != '_')
            out[n++] = s[i];
    }
    out[n] = 0;
    return i;
}

static json_t *integer(struct toml *t, const char *digits, int base)
{
    long long x;

    errno = 0;
    x = strtoll(digits, NULL, base);
    if (errno) {
        toml_fail(t, "the number does not fit in 64 bits");
        return NULL;
    }
    return json_integer(x);
}

/* A decimal integer or a float in s (terminated). */
static json_t *parse_number(struct toml *t, const char *s)
{
    char plain[MAX_TOKEN + 1];
    bool is_float = false;
    size_t n, sign = *s == '+' || *s == '-';

    memcpy(plain, s, sign);
    plain[sign] = 0;
    n = copy_digits(s + sign, 10, plain);
    if (n == 0 || (n > 1 && s[sign] == '0'))
        goto bad;
    s += sign + n;
    if (*s == '.') {
        strcat(plain, ".");
        n = copy_digits(s + 1, 10, plain);
        if (n == 0)
            goto bad;
        is_float = true;
        s += 1 + n;
    }
    if (*s == 'e' || *s == 'E') {
        sign = s[1] == '+' || s[1] == '-';
        n = strlen(plain);
        memcpy(plain + n, s, 1 + sign);
        plain[n + 1 + sign] = 0;
        n = copy_digits(s + 1 + sign, 10, plain);
        if (n == 0)
            goto bad;
        is_float = true;
        s += 1 + sign + n;
    }
    if (*s)
        goto bad;
    if (!is_float)
        return integer(t, plain, 10);
    if (!isfinite(strtod(plain, NULL))) {
        toml_fail(t, "the number is too large");
        return NULL;
    }
    return json_real(strtod(plain, NULL));
bad:
    toml_fail(t, "this is no value; write a number, true, false, a \"text\" in quotes or a [list]");
    return NULL;
}

/* Anything without quotes or brackets. */
json_t *toml_word(struct toml *t)
{
    char word[MAX_TOKEN + 1], digits[MAX_TOKEN + 1] = "";
    const char *bare;
    size_t n = 0;
    int base;

    while (t->s < t->end && (toml_is_bare(toml_peek(t)) || strchr("+.:", *t->s)) && *t->s && n < MAX_TOKEN)
        word[n++] = *t->s++;
    word[n] = 0;
    if (strcmp(word, "true") == 0 || strcmp(word, "false") == 0)
        return json_boolean(word[0] == 't');
    bare = word + (word[0] == '+' || word[0] == '-');
    if (strcmp(bare, "inf") == 0 || strcmp(bare, "nan") == 0) {
        toml_fail(t, "inf and nan mean nothing to an option; write a number");
        return NULL;
    }
    if (n >= 5 && ((word[4] == '-' && is_digit(word[3], 10) && is_digit(word[0], 10)) || word[2] == ':')) {
        toml_fail(t, "dates and times mean nothing to an option; put quotes around it if it is a text");
        return NULL;
    }
    base = word[0] != '0' ? 0 : word[1] == 'x' ? 16 : word[1] == 'o' ? 8 : word[1] == 'b' ? 2 : 0;
    if (base) {
        size_t used = copy_digits(word + 2, base, digits);

        if (used && !word[2 + used])
            return integer(t, digits, base);
    }
    return parse_number(t, word);
}

#include "formats/picture_terminal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/picture_codec.h"
#include "ref/base/mem.h"

static bool has(const char *text, const char *word)
{
    return text && strstr(text, word);
}

enum picture_terminal picture_terminal_guess(char *(*get)(const char *name))
{
    const char *term = get("TERM"), *program = get("TERM_PROGRAM"), *colours = get("COLORTERM");

    if (!term || strcmp(term, "dumb") == 0)
        return TERMINAL_NONE;
    if (get("TMUX") || has(term, "screen")) /* which pass no graphics on */
        return has(colours, "truecolor") || has(colours, "24bit") ? TERMINAL_BLOCKS : TERMINAL_NONE;
    if (get("KITTY_WINDOW_ID") || has(term, "kitty") || has(term, "ghostty") || has(program, "ghostty") ||
        has(program, "WezTerm"))
        return TERMINAL_KITTY;
    if (has(program, "iTerm") || has(program, "mintty"))
        return TERMINAL_ITERM;
    if (has(term, "foot") || has(term, "mlterm") || has(term, "sixel"))
        return TERMINAL_SIXEL;
    return has(colours, "truecolor") || has(colours, "24bit") ? TERMINAL_BLOCKS : TERMINAL_NONE;
}

/* ---- Text ---- */

static int put(struct picture_bytes *b, struct err *err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static int put(struct picture_bytes *b, struct err *err, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return picture_bytes_add(b, text, (size_t)n, err);
}

/* data [n] in base64 (RFC 4648), appended. */
static int put_base64(struct picture_bytes *b, const uint8_t *data, size_t n, struct err *err)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < n; i += 3) {
        uint32_t x = (uint32_t)data[i] << 16 | (i + 1 < n ? (uint32_t)data[i + 1] << 8 : 0) | (i + 2 < n ? data[i + 2] : 0);
        char four[4] = {digits[x >> 18], digits[x >> 12 & 63], i + 1 < n ? digits[x >> 6 & 63] : '=',
                        i + 2 < n ? digits[x & 63] : '='};

        rc = picture_bytes_add(b, four, 4, err);
    }
    return rc;
}

static int put_lines(struct picture_bytes *b, size_t lines, struct err *err)
{
    int rc = 0;

    for (size_t i = 1; rc == 0 && i < lines; i++) /* the printer adds the last one */
        rc = picture_bytes_add(b, "\n", 1, err);
    return rc;
}

/* ---- Terminals ---- */

/* The same id each time: a new picture takes the place of the old one. */
static int put_kitty(struct picture_bytes *b, const struct picture_bytes *png, size_t columns, size_t lines, struct err *err)
{
    enum { PIECE = 3072 }; /* 4096 in base64, the protocol's limit */
    int rc = 0;

    for (size_t at = 0; rc == 0 && at < png->n; at += PIECE) {
        size_t n = png->n - at < PIECE ? png->n - at : PIECE;
        int more = at + n < png->n;

        rc = at == 0 ? put(b, err, "\033_Ga=T,f=100,q=2,C=1,i=7,p=1,c=%zu,r=%zu,m=%d;", columns, lines, more)
                     : put(b, err, "\033_Gm=%d;", more);
        if (rc == 0 && put_base64(b, png->data + at, n, err) == 0)
            rc = put(b, err, "\033\\");
    }
    return rc ? rc : put_lines(b, lines, err);
}

static int put_iterm(struct picture_bytes *b, const struct picture_bytes *png, size_t columns, size_t lines, struct err *err)
{
    if (put(b, err, "\033]1337;File=inline=1;size=%zu;width=%zu;height=%zu;doNotMoveCursor=1:", png->n, columns, lines) ||
        put_base64(b, png->data, png->n, err) || put(b, err, "\a"))
        return -1;
    return put_lines(b, lines, err);
}

static unsigned level6(uint8_t x)
{
    return (x * 5u + 127) / 255;
}

/* Which of the rows y .. y + high of column x have colour c, as bits. */
static unsigned column_bits(const struct picture *p, const uint8_t *index, size_t y, size_t high, size_t x, unsigned c)
{
    unsigned bits = 0;

    for (size_t k = 0; k < high; k++)
        bits |= (unsigned)(index[(y + k) * p->width + x] == c) << k;
    return bits;
}

/* Six rows of pixels, colour by colour: each a run of characters whose bits are the rows. */
static int put_band(struct picture_bytes *b, const struct picture *p, size_t y, const uint8_t *index, struct err *err)
{
    size_t high = p->height - y < 6 ? p->height - y : 6;
    bool used[216] = {false};
    int rc = 0;

    for (size_t i = 0; i < high * p->width; i++)
        used[index[y * p->width + i]] = true;
    for (unsigned c = 0; rc == 0 && c < 216; c++) {
        if (!used[c])
            continue;
        rc = put(b, err, "#%u", c);
        for (size_t x = 0, run; rc == 0 && x < p->width; x += run) {
            unsigned bits = column_bits(p, index, y, high, x, c);

            for (run = 1; x + run < p->width && column_bits(p, index, y, high, x + run, c) == bits;)
                run++;
            rc = put(b, err, "!%zu%c", run, (int)(63 + bits));
        }
        if (rc == 0)
            rc = put(b, err, "$");
    }
    return rc ? rc : put(b, err, "-");
}

static int put_sixel(struct picture_bytes *b, const struct picture *p, struct err *err)
{
    uint8_t *index = mem_new(p->width * p->height, "a preview", err);
    int rc = index ? put(b, err, "\033Pq\"1;1;%zu;%zu", p->width, p->height) : -1;

    for (unsigned c = 0; rc == 0 && c < 216; c++)
        rc = put(b, err, "#%u;2;%u;%u;%u", c, c / 36 * 20, c / 6 % 6 * 20, c % 6 * 20);
    for (size_t i = 0; rc == 0 && i < p->width * p->height; i++) {
        const uint8_t *x = p->data + i * 3;

        index[i] = (uint8_t)(level6(x[0]) * 36 + level6(x[1]) * 6 + level6(x[2]));
    }
    for (size_t y = 0; rc == 0 && y < p->height; y += 6)
        rc = put_band(b, p, y, index, err);
    free(index);
    return rc ? rc : put(b, err, "\033\\");
}

/* The upper half of a block is the letter's colour, the lower half the background's. */
static int put_blocks(struct picture_bytes *b, const struct picture *p, struct err *err)
{
    int rc = 0;

    for (size_t y = 0; rc == 0 && y < p->height; y += 2) {
        for (size_t x = 0; rc == 0 && x < p->width; x++) {
            const uint8_t *up = p->data + (y * p->width + x) * 3, *down = y + 1 < p->height ? up + p->width * 3 : up;

            rc = put(b, err, "\033[38;2;%u;%u;%um\033[48;2;%u;%u;%um\xe2\x96\x80", up[0], up[1], up[2], down[0], down[1],
                     down[2]);
        }
        if (rc == 0)
            rc = put(b, err, y + 2 < p->height ? "\033[0m\n" : "\033[0m");
    }
    return rc;
}

int picture_terminal_text(enum picture_terminal kind, const struct picture *p, size_t columns, char **text, size_t *lines,
                          struct err *err)
{
    struct picture_bytes b = {0}, png = {0};
    int rc = 0;

    *text = NULL;
    *lines = kind == TERMINAL_BLOCKS ? (p->height + 1) / 2 : (columns * p->height + 2 * p->width - 1) / (2 * p->width);
    if (kind == TERMINAL_KITTY || kind == TERMINAL_ITERM)
        rc = picture_encode_png(&png, p, NULL, 0, err);
    if (rc == 0)
        rc = kind == TERMINAL_KITTY   ? put_kitty(&b, &png, columns, *lines, err)
             : kind == TERMINAL_ITERM ? put_iterm(&b, &png, columns, *lines, err)
             : kind == TERMINAL_SIXEL ? put_sixel(&b, p, err)
                                      : put_blocks(&b, p, err);
    free(png.data);
    if (rc || picture_bytes_add(&b, "", 1, err)) {
        free(b.data);
        return -1;
    }
    *text = (char *)b.data;
    return 0;
}

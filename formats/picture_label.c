#include "formats/picture_label.h"

#include <string.h>
#include <utf8proc.h>

/* The next character at *s, which moves on; bytes that are not UTF-8 count one each. 0 at the end. */
static uint32_t next(const char **s)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t n;

    if (!**s)
        return 0;
    n = utf8proc_iterate((const utf8proc_uint8_t *)*s, -1, &c);
    if (n <= 0) {
        (*s)++;
        return 0xfffd;
    }
    *s += n;
    return (uint32_t)c;
}

static void dot(struct picture *p, size_t x, size_t y, uint8_t level)
{
    if (x >= p->width || y >= p->height)
        return;
    for (unsigned k = 0; k < p->channels; k++)
        p->data[(y * p->width + x) * p->channels + k] = level;
}

static void draw(struct picture *p, size_t x, size_t y, uint32_t c, uint8_t level)
{
    static const unsigned char box[PICTURE_LETTER_HEIGHT] = {0, 0, 0xf8, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0xf8, 0, 0};
    const unsigned char *rows = c >= 32 && c < 127    ? picture_letters[c - 32]
                                : c >= 160 && c < 256 ? picture_letters[c - 65]
                                                      : box;

    for (size_t i = 0; i < PICTURE_LETTER_HEIGHT; i++)
        for (size_t j = 0; j < PICTURE_LETTER_WIDTH; j++)
            if (rows[i] >> (7 - j) & 1)
                dot(p, x + j, y + i, level);
}

/* The end of the line that begins at s: up to `most` characters, to the last blank where one is; *characters: how many. */
static const char *line_end(const char *s, size_t most, size_t *characters)
{
    const char *at = s, *blank = NULL;
    size_t n = 0, before_blank = 0;

    while (n < most) {
        const char *here = at;
        uint32_t c = next(&at);

        if (c == 0 || c == '\n') {
            *characters = n;
            return here;
        }
        if (c == ' ') {
            blank = here;
            before_blank = n;
        }
        n++;
    }
    if (!blank || !*at || *at == ' ' || *at == '\n') {
        *characters = n;
        return at;
    }
    *characters = before_blank;
    return blank;
}

size_t picture_label(struct picture *p, size_t x, size_t y, size_t width, size_t lines, const char *text, uint8_t level)
{
    size_t most = width / PICTURE_LETTER_WIDTH, used = 0;

    for (; *text && used < lines && most > 3; used++) {
        size_t n;
        const char *end = line_end(text, most, &n);
        bool cut = used + 1 == lines && *end;

        if (cut && n > most - 3)
            n = most - 3;
        for (size_t i = 0; i < n; i++)
            draw(p, x + i * PICTURE_LETTER_WIDTH, y + used * PICTURE_LETTER_HEIGHT, next(&text), level);
        for (size_t i = n; cut && i < n + 3; i++)
            draw(p, x + i * PICTURE_LETTER_WIDTH, y + used * PICTURE_LETTER_HEIGHT, '.', level);
        text = *end == ' ' || *end == '\n' ? end + 1 : end;
    }
    return used;
}

void picture_paste(struct picture *p, size_t x, size_t y, const struct picture *src)
{
    for (size_t i = 0; i < src->height; i++)
        memcpy(p->data + ((y + i) * p->width + x) * p->channels, src->data + i * src->width * src->channels,
               src->width * src->channels);
}

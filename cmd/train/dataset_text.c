/* Caption files. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/dataset_inside.h"

enum { MOST = 1 << 20 }; /* bytes of a caption file */

/* The first byte that is not UTF-8 (RFC 3629), or n. */
static size_t find_not_utf8(const unsigned char *s, size_t n)
{
    size_t i = 0;

    while (i < n) {
        size_t more = s[i] < 0x80                   ? 0
                      : s[i] >= 0xc2 && s[i] < 0xe0 ? 1
                      : s[i] >= 0xe0 && s[i] < 0xf0 ? 2
                      : s[i] >= 0xf0 && s[i] < 0xf5 ? 3
                                                    : 9;

        if (more > 3 || more >= n - i)
            return i;
        for (size_t k = 1; k <= more; k++)
            if ((s[i + k] & 0xc0) != 0x80)
                return i;
        if ((s[i] == 0xe0 && s[i + 1] < 0xa0) || (s[i] == 0xed && s[i + 1] > 0x9f) || (s[i] == 0xf0 && s[i + 1] < 0x90) ||
            (s[i] == 0xf4 && s[i + 1] > 0x8f))
            return i;
        i += more + 1;
    }
    return n;
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Appends s [n] without blanks around it, after a line feed when there is something already. */
static void add_line(char *out, const char *s, size_t n)
{
    while (n && is_blank(s[0])) {
        s++;
        n--;
    }
    while (n && is_blank(s[n - 1]))
        n--;
    if (!n)
        return;
    if (*out)
        strcat(out, "\n");
    strncat(out, s, n);
}

/* What is wrong with the bytes, or NULL. */
static const char *complain(struct arena *arena, const unsigned char *s, size_t n, struct err *err)
{
    size_t at;

    if (n > MOST)
        return "it has more than 1 MiB; is it a caption?";
    if (n >= 2 && ((s[0] == 0xff && s[1] == 0xfe) || (s[0] == 0xfe && s[1] == 0xff)))
        return "it is written in UTF-16; save it as UTF-8";
    at = find_not_utf8(s, n);
    if (at < n)
        return arena_printf(arena, err, "byte %zu is not UTF-8; save it as UTF-8", at + 1);
    if (memchr(s, 0, n))
        return "there is a zero byte in it; save it as plain text";
    return NULL;
}

int dataset_read_caption(struct arena *arena, const char *path, bool all_lines, const char **text, const char **problem,
                         struct err *err)
{
    FILE *f = fopen(path, "rb");
    unsigned char *data = mem_new(MOST + 1, "a caption", err);
    size_t n = 0, from;
    char *out;
    int rc = -1;

    *text = *problem = NULL;
    if (!data)
        goto out;
    n = f ? fread(data, 1, MOST + 1, f) : 0;
    if (!f || ferror(f)) {
        *problem = arena_str(arena, strerror(errno), err);
        rc = *problem ? 0 : -1;
        goto out;
    }
    from = n >= 3 && !memcmp(data, "\xef\xbb\xbf", 3) ? 3 : 0; /* Windows' editors begin with this */
    *problem = complain(arena, data, n, err);
    if (!*problem) {
        out = arena_alloc(arena, n + 2, err);
        if (!out)
            goto out;
        while (from < n) {
            unsigned char *end = memchr(data + from, '\n', n - from);
            size_t length = end ? (size_t)(end - data) - from : n - from;

            add_line(out, (const char *)data + from, length);
            from += length + 1;
            if (!all_lines)
                break;
        }
        *text = out;
    }
    rc = 0;
out:
    if (f)
        fclose(f);
    free(data);
    return rc;
}

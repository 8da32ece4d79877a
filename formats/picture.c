#include "formats/picture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "formats/output.h"
#include "formats/picture_codec.h"
#include "ref/base/mem.h"

int picture_alloc(struct picture *p, uint64_t width, uint64_t height, unsigned channels, bool header, struct err *err)
{
    if (width == 0 || height == 0)
        return err_set(err, "it is %llu pixels wide and %llu high", (unsigned long long)width, (unsigned long long)height);
    if (width > PICTURE_MOST_SIDE || height > PICTURE_MOST_SIDE || width * height > PICTURE_MOST_PIXELS)
        return err_set(err, "%llu x %llu pixels are too many; the most are %d a side and %d in all", (unsigned long long)width,
                       (unsigned long long)height, PICTURE_MOST_SIDE, PICTURE_MOST_PIXELS);
    p->data = header ? NULL : mem_zero((size_t)(width * height), channels, "a picture", err);
    if (!header && !p->data)
        return -1;
    p->width = (size_t)width;
    p->height = (size_t)height;
    p->channels = channels;
    p->orientation = 1;
    return 0;
}

int picture_new(struct picture *out, size_t width, size_t height, unsigned channels, struct err *err)
{
    memset(out, 0, sizeof *out);
    if (picture_alloc(out, width, height, channels, false, err))
        return err_prefix(err, "cannot make a picture: ");
    return 0;
}

void picture_free(struct picture *p)
{
    for (size_t i = 0; i < p->texts; i++) {
        free(p->text[i].key);
        free(p->text[i].value);
    }
    free(p->text);
    free(p->data);
    memset(p, 0, sizeof *p);
}

int picture_add_text(struct picture *p, const char *key, size_t n_key, const char *value, size_t n_value, struct err *err)
{
    size_t cap = p->texts; /* grows rarely: a file has a handful */
    struct picture_text *t;

    if (mem_grow(&p->text, &cap, p->texts, sizeof *t, "texts of a picture", err))
        return -1;
    t = &p->text[p->texts];
    t->key = mem_strn(key, n_key, err);
    t->value = t->key ? mem_strn(value, n_value, err) : NULL;
    if (!t->value) {
        free(t->key);
        return -1;
    }
    p->texts++;
    return 0;
}

const char *picture_find_text(const struct picture *p, const char *key)
{
    for (size_t i = 0; i < p->texts; i++)
        if (!strcmp(p->text[i].key, key))
            return p->text[i].value;
    return NULL;
}

static bool starts(const uint8_t *data, size_t n, size_t at, const char *magic, size_t n_magic)
{
    return n >= at + n_magic && !memcmp(data + at, magic, n_magic);
}

static picture_decoder *find_decoder(const uint8_t *data, size_t n)
{
    if (starts(data, n, 0, "\x89PNG\r\n\x1a\n", 8))
        return picture_decode_png;
    if (starts(data, n, 0, "\xff\xd8\xff", 3))
        return picture_decode_jpeg;
    if (starts(data, n, 0, "RIFF", 4) && starts(data, n, 8, "WEBP", 4))
        return picture_decode_webp;
    if (starts(data, n, 0, "BM", 2))
        return picture_decode_bmp;
    return NULL;
}

static int decode_any(struct picture *out, const void *data, size_t n, const char *name, bool header, struct err *err)
{
    picture_decoder *decode = find_decoder(data, n);

    memset(out, 0, sizeof *out);
    if (!decode)
        return err_set(err, "cannot read '%s': it is no PNG, JPEG, WebP or BMP picture; convert it to one of them", name);
    if (decode(out, data, n, header, err)) {
        picture_free(out);
        return err_prefix(err, "cannot read '%s': ", name);
    }
    return 0;
}

int picture_decode(struct picture *out, const void *data, size_t n, const char *name, struct err *err)
{
    return decode_any(out, data, n, name, false, err);
}

static int read_all(struct picture_bytes *b, const char *path, struct err *err)
{
    enum { PIECE = 1 << 16 };
    const size_t most = (size_t)1 << 30;
    FILE *f = fopen(path, "rb");
    int rc = -1;

    if (!f)
        return err_set(err, "cannot read '%s': %s", path, strerror(errno));
    for (;;) {
        uint8_t piece[PIECE];
        size_t n = fread(piece, 1, PIECE, f);

        if (n == 0)
            break;
        if (b->n > most) {
            err_set(err, "cannot read '%s': longer than 1 GiB; is it a picture?", path);
            goto out;
        }
        if (picture_bytes_add(b, piece, n, err))
            goto out;
    }
    if (ferror(f)) {
        err_set(err, "cannot read '%s': %s", path, strerror(errno));
        goto out;
    }
    rc = 0;
out:
    fclose(f);
    return rc;
}

int picture_read(struct picture *out, const char *path, struct err *err)
{
    struct picture_bytes b = {0};
    int rc = -1;

    memset(out, 0, sizeof *out);
    if (!read_all(&b, path, err))
        rc = picture_decode(out, b.data ? b.data : (const void *)"", b.n, path, err);
    free(b.data);
    return rc;
}

int picture_read_size(const char *path, size_t size[2], int *orientation, struct err *err)
{
    struct picture_bytes b = {0};
    struct picture p = {0};
    int rc = -1;

    if (!read_all(&b, path, err))
        rc = decode_any(&p, b.data ? b.data : (const void *)"", b.n, path, true, err);
    if (!rc) {
        size[0] = p.orientation >= 5 ? p.height : p.width;
        size[1] = p.orientation >= 5 ? p.width : p.height;
        *orientation = p.orientation;
        picture_free(&p);
    }
    free(b.data);
    return rc;
}

int picture_check_size(size_t width, size_t height, struct err *err)
{
    if (width == 0 || height == 0 || width > PICTURE_MOST_SIDE || height > PICTURE_MOST_SIDE ||
        width * height > PICTURE_MOST_PIXELS)
        return err_set(err, "cannot scale a picture to %zu x %zu pixels; the most are %d a side and %d in all", width, height,
                       PICTURE_MOST_SIDE, PICTURE_MOST_PIXELS);
    return 0;
}

int picture_bytes_add(struct picture_bytes *b, const void *data, size_t n, struct err *err)
{
    while (b->cap - b->n < n)
        if (mem_grow(&b->data, &b->cap, b->cap, 1, "a picture's file", err))
            return -1;
    memcpy(b->data + b->n, data, n);
    b->n += n;
    return 0;
}

void picture_drop_alpha(struct picture *p)
{
    if (p->channels != 4)
        return;
    for (size_t i = 0; i < p->width * p->height; i++)
        memmove(p->data + 3 * i, p->data + 4 * i, 3);
    p->channels = 3;
}

void picture_lay_over(struct picture *p, uint8_t red, uint8_t green, uint8_t blue)
{
    const uint8_t back[3] = {red, green, blue};

    if (p->channels != 4)
        return;
    for (size_t i = 0; i < p->width * p->height; i++) {
        unsigned alpha = p->data[4 * i + 3];

        for (size_t c = 0; c < 3; c++) /* rounded to nearest */
            p->data[3 * i + c] = (uint8_t)((p->data[4 * i + c] * alpha + back[c] * (255 - alpha) + 127) / 255);
    }
    p->channels = 3;
}

/* Row y, column x of the upright picture lie in the file's at: 5 .. 8 change rows and columns (TIFF 6.0, tag 274). */
static size_t source_of(const struct picture *p, size_t x, size_t y)
{
    size_t column = p->orientation >= 5 ? y : x, row = p->orientation >= 5 ? x : y;
    bool flip_column = p->orientation == 2 || p->orientation == 3 || p->orientation == 7 || p->orientation == 8;
    bool flip_row = p->orientation == 3 || p->orientation == 4 || p->orientation == 6 || p->orientation == 7;

    if (flip_column)
        column = p->width - 1 - column;
    if (flip_row)
        row = p->height - 1 - row;
    return row * p->width + column;
}

int picture_upright(struct picture *p, struct err *err)
{
    bool turned = p->orientation >= 5;
    size_t width = turned ? p->height : p->width, height = turned ? p->width : p->height;
    uint8_t *data;

    if (p->orientation <= 1)
        return 0;
    data = mem_zero(width * height, p->channels, "a turned picture", err);
    if (!data)
        return -1;
    for (size_t y = 0; y < height; y++)
        for (size_t x = 0; x < width; x++)
            memcpy(data + (y * width + x) * p->channels, p->data + source_of(p, x, y) * p->channels, p->channels);
    free(p->data);
    p->data = data;
    p->width = width;
    p->height = height;
    p->orientation = 1;
    return 0;
}

static unsigned u16(const uint8_t *d, bool big)
{
    return big ? (unsigned)d[0] << 8 | d[1] : (unsigned)d[1] << 8 | d[0];
}

static uint32_t u32(const uint8_t *d, bool big)
{
    return big ? (uint32_t)u16(d, big) << 16 | u16(d + 2, big) : (uint32_t)u16(d + 2, big) << 16 | u16(d, big);
}

/* The first directory of a TIFF structure; tag 274 is one short. */
int picture_exif_orientation(const uint8_t *data, size_t n)
{
    bool big = n >= 4 && !memcmp(data, "MM\0*", 4);
    size_t at, entries;

    if (n < 8 || (!big && memcmp(data, "II*\0", 4) != 0))
        return 1;
    at = u32(data + 4, big);
    if (at > n - 2)
        return 1;
    entries = u16(data + at, big);
    for (at += 2; entries-- && n - at >= 12; at += 12) {
        unsigned value = u16(data + at + 8, big);

        if (u16(data + at, big) == 274)
            return u16(data + at + 2, big) == 3 && value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

static bool ends_with(const char *path, const char *ending)
{
    size_t n = strlen(path), m = strlen(ending);

    return n > m && !strcasecmp(path + n - m, ending);
}

static const char *find_parameters(const struct picture_text *text, size_t texts)
{
    for (size_t i = 0; i < texts; i++)
        if (!strcmp(text[i].key, "parameters"))
            return text[i].value;
    return NULL;
}

static int encode(const char *path, struct picture_bytes *b, const struct picture *p, const struct picture_text *text,
                  size_t texts, struct picture_format format, struct err *err)
{
    int rc;

    if (ends_with(path, ".png"))
        rc = picture_encode_png(b, p, text, texts, err);
    else if (ends_with(path, ".jpg") || ends_with(path, ".jpeg"))
        rc = picture_encode_jpeg(b, p, find_parameters(text, texts), format.quality, err);
    else if (ends_with(path, ".webp"))
        rc = picture_encode_webp(b, p, format.quality, err);
    else
        rc = err_usage(err, "pictures are .png, .jpg or .webp; give one of these endings");
    return rc ? err_prefix(err, "cannot write '%s': ", path) : 0;
}

int picture_can_write(const char *path, struct picture_format format, struct err *err)
{
    uint8_t black[3] = {0};
    struct picture p = {.width = 1, .height = 1, .channels = 3, .data = black};
    struct picture_bytes b = {0};
    int rc = encode(path, &b, &p, NULL, 0, format, err);

    free(b.data);
    return rc;
}

int picture_write(const char *path, const struct picture *p, const struct picture_text *text, size_t texts,
                  struct picture_format format, struct err *err)
{
    struct picture_bytes b = {0};
    int rc = encode(path, &b, p, text, texts, format, err);

    if (rc == 0)
        rc = output_bytes(path, b.data, b.n, err);
    free(b.data);
    return rc;
}

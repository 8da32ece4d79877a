/* PNG by libpng. Its errors jump; each jump ends in the function that set it up, which owns nothing that needs freeing. */
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "formats/picture_codec.h"
#include "ref/base/mem.h"

struct source {
    const uint8_t *data;
    size_t n, at;
    struct err *err;
};

static void on_error(png_structp png, png_const_charp what)
{
    struct err *err = png_get_error_ptr(png);

    if (err->kind == ERR_NONE)
        err_set(err, "%s; the file is damaged, get it again", what);
    longjmp(png_jmpbuf(png), 1);
}

static void on_warning(png_structp png, png_const_charp what)
{
    (void)png;
    (void)what; /* broken extras, such as a wrong colour profile: the pixels are whole */
}

static void read_bytes(png_structp png, png_bytep out, size_t n)
{
    struct source *s = png_get_io_ptr(png);

    if (s->n - s->at < n) {
        err_set(s->err, "it ends in the middle of the picture; get it again");
        png_error(png, "short");
    }
    memcpy(out, s->data + s->at, n);
    s->at += n;
}

static int take_texts(struct picture *out, png_structp png, png_infop info, struct err *err)
{
    png_textp text;
    int n = png_get_text(png, info, &text, NULL);

    for (int i = 0; i < n; i++) {
        size_t length = text[i].compression > 0 ? text[i].itxt_length : text[i].text_length;

        if (picture_add_text(out, text[i].key, strlen(text[i].key), text[i].text ? text[i].text : "", text[i].text ? length : 0,
                             err))
            return -1;
    }
    return 0;
}

/* Everything to 8 bits RGB or RGBA */
static void set_transforms(png_structp png, png_infop info)
{
    png_set_expand(png);
    png_set_strip_16(png);
    png_set_gray_to_rgb(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
}

static void read_orientation(struct picture *out, png_structp png, png_infop info)
{
    png_uint_32 n;
    png_bytep exif;

    if (png_get_eXIf_1(png, info, &n, &exif))
        out->orientation = picture_exif_orientation(exif, n);
}

struct reading {
    png_structp png;
    png_infop info, end;
    png_bytep *rows;
};

/* Whether there are whole chunks up to the last one; each has a length, four letters and a checksum around it. */
static bool reaches_end(const uint8_t *data, size_t n)
{
    for (size_t at = 8; n - at >= 12;) {
        size_t length = (size_t)data[at] << 24 | (size_t)data[at + 1] << 16 | (size_t)data[at + 2] << 8 | data[at + 3];

        if (!memcmp(data + at + 4, "IEND", 4))
            return true;
        if (length > n - at - 12)
            return false;
        at += 12 + length;
    }
    return false;
}

static int read_picture(struct picture *out, struct reading *r, const struct source *s, bool header, struct err *err)
{
    if (setjmp(png_jmpbuf(r->png)))
        return -1;
    png_read_info(r->png, r->info);
    set_transforms(r->png, r->info);
    if (picture_alloc(out, png_get_image_width(r->png, r->info), png_get_image_height(r->png, r->info),
                      png_get_channels(r->png, r->info), header, err))
        return -1;
    if (header) {
        read_orientation(out, r->png, r->info);
        return reaches_end(s->data, s->n) ? 0 : err_set(err, "it ends in the middle of the picture; get it again");
    }
    if (png_get_rowbytes(r->png, r->info) != out->width * out->channels)
        return err_set(err, "it has %u channels, which are not understood", (unsigned)png_get_channels(r->png, r->info));
    r->rows = mem_zero(out->height, sizeof *r->rows, "rows of a picture", err);
    if (!r->rows)
        return -1;
    for (size_t y = 0; y < out->height; y++)
        r->rows[y] = out->data + y * out->width * out->channels;
    png_read_image(r->png, r->rows);
    png_read_end(r->png, r->end);
    read_orientation(out, r->png, r->info);
    if (out->orientation == 1)
        read_orientation(out, r->png, r->end);
    return take_texts(out, r->png, r->info, err) || take_texts(out, r->png, r->end, err) ? -1 : 0;
}

int picture_decode_png(struct picture *out, const uint8_t *data, size_t n, bool header, struct err *err)
{
    struct source source = {data, n, 0, err};
    struct reading r = {0};
    int rc = -1;

    err->kind = ERR_NONE;
    r.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, err, on_error, on_warning);
    r.info = r.png ? png_create_info_struct(r.png) : NULL;
    r.end = r.info ? png_create_info_struct(r.png) : NULL;
    if (!r.end) {
        err_memory(err, 4096, "libpng");
        goto out;
    }
    png_set_read_fn(r.png, &source, read_bytes);
    png_set_user_limits(r.png, PICTURE_MOST_SIDE, PICTURE_MOST_SIDE);
    png_set_chunk_malloc_max(r.png, 16 << 20);
    rc = read_picture(out, &r, &source, header, err);
out:
    png_destroy_read_struct(&r.png, &r.info, &r.end);
    free(r.rows);
    return rc;
}

struct sink {
    struct picture_bytes *out;
    struct err *err;
};

static void write_bytes(png_structp png, png_bytep data, size_t n)
{
    struct sink *s = png_get_io_ptr(png);

    if (picture_bytes_add(s->out, data, n, s->err))
        png_error(png, "memory");
}

static void flush_bytes(png_structp png)
{
    (void)png;
}

static bool is_ascii(const char *s)
{
    while (*s && (unsigned char)*s < 0x80)
        s++;
    return !*s;
}

static int write_picture(png_structp png, png_infop info, const struct picture *p, png_textp text, size_t texts)
{
    static const int colours[] = {[1] = PNG_COLOR_TYPE_GRAY, [3] = PNG_COLOR_TYPE_RGB, [4] = PNG_COLOR_TYPE_RGB_ALPHA};

    if (setjmp(png_jmpbuf(png)))
        return -1;
    png_set_IHDR(png, info, (png_uint_32)p->width, (png_uint_32)p->height, 8, colours[p->channels], PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_set_text(png, info, text, (int)texts);
    png_write_info(png, info);
    for (size_t y = 0; y < p->height; y++)
        png_write_row(png, p->data + y * p->width * p->channels);
    png_write_end(png, NULL);
    return 0;
}

int picture_encode_png(struct picture_bytes *out, const struct picture *p, const struct picture_text *text, size_t texts,
                       struct err *err)
{
    struct sink sink = {out, err};
    png_structp png = NULL;
    png_infop info = NULL;
    png_textp t = mem_zero(texts + 1, sizeof *t, "texts of a picture", err);
    int rc = -1;

    if (!t)
        return -1;
    for (size_t i = 0; i < texts; i++)
        t[i] = (png_text){.compression = is_ascii(text[i].value) ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE,
                          .key = text[i].key,
                          .text = text[i].value,
                          .text_length = strlen(text[i].value),
                          .itxt_length = strlen(text[i].value),
                          .lang = "",
                          .lang_key = ""};
    err->kind = ERR_NONE;
    png = png_create_write_struct(PNG_LIBPNG_VER_STRING, err, on_error, on_warning);
    info = png ? png_create_info_struct(png) : NULL;
    if (!info) {
        err_memory(err, 4096, "libpng");
        goto out;
    }
    png_set_write_fn(png, &sink, write_bytes, flush_bytes);
    rc = write_picture(png, info, p, t, texts);
out:
    png_destroy_write_struct(&png, &info);
    free(t);
    return rc;
}

/* JPEG by libjpeg(-turbo). Its errors jump, as libpng's do. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

#include "formats/picture_codec.h"

struct failure {
    struct jpeg_error_mgr manager; /* first: libjpeg hands out a pointer to it */
    jmp_buf jump;
    struct err *err;
};

static void on_error(j_common_ptr c)
{
    struct failure *f = (struct failure *)c->err;
    char what[JMSG_LENGTH_MAX];

    c->err->format_message(c, what);
    if (c->err->msg_code == JERR_CONVERSION_NOTIMPL)
        err_set(f->err, "its colours cannot be turned into RGB; convert it to an RGB picture");
    else
        err_set(f->err, "%s; the file is damaged, get it again", what);
    longjmp(f->jump, 1);
}

/* Level -1 is damage that libjpeg would fill with grey. Missing data is an error; what it can skip between parts is not. */
static void on_message(j_common_ptr c, int level)
{
    struct failure *f = (struct failure *)c->err;
    int code = c->err->msg_code;

    if (level >= 0 || (code != JWRN_JPEG_EOF && code != JWRN_HIT_MARKER && code != JWRN_HUFF_BAD_CODE &&
                       code != JWRN_ARITH_BAD_CODE && code != JWRN_MUST_RESYNC))
        return;
    err_set(f->err,
            code == JWRN_JPEG_EOF ? "it ends in the middle of the picture; get it again" : "its data is damaged; get it again");
    longjmp(f->jump, 1);
}

static struct jpeg_error_mgr *catch_errors(struct failure *f, struct err *err)
{
    struct jpeg_error_mgr *manager = jpeg_std_error(&f->manager);

    manager->error_exit = on_error;
    manager->emit_message = on_message;
    f->err = err;
    return manager;
}

static int orientation_of(const struct jpeg_decompress_struct *d)
{
    for (jpeg_saved_marker_ptr m = d->marker_list; m; m = m->next)
        if (m->marker == JPEG_APP0 + 1 && m->data_length > 6 && !memcmp(m->data, "Exif\0\0", 6))
            return picture_exif_orientation(m->data + 6, m->data_length - 6);
    return 1;
}

static int read_picture(struct jpeg_decompress_struct *d, struct failure *f, struct picture *out, const uint8_t *data, size_t n,
                        bool header)
{
    if (setjmp(f->jump))
        return -1;
    jpeg_mem_src(d, data, n);
    jpeg_save_markers(d, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(d, TRUE);
    if (d->num_components == 4)
        return err_set(f->err, "its colours are %s, which is for printing; convert it to RGB",
                       d->jpeg_color_space == JCS_YCCK ? "YCCK (CMYK)" : "CMYK");
    d->out_color_space = JCS_RGB;
    if (picture_alloc(out, d->image_width, d->image_height, 3, header, f->err))
        return -1;
    if (header) {
        out->orientation = orientation_of(d);
        /* between here and the end 0xff is always followed by 0 or by a marker that goes with the data */
        if (!memmem(d->src->next_input_byte, d->src->bytes_in_buffer, "\xff\xd9", 2))
            return err_set(f->err, "it ends in the middle of the picture; get it again");
        return 0;
    }
    jpeg_start_decompress(d);
    while (d->output_scanline < d->output_height) {
        JSAMPROW row = out->data + (size_t)d->output_scanline * out->width * 3;

        jpeg_read_scanlines(d, &row, 1);
    }
    out->orientation = orientation_of(d); /* the next call frees the markers */
    jpeg_finish_decompress(d);
    return 0;
}

int picture_decode_jpeg(struct picture *out, const uint8_t *data, size_t n, bool header, struct err *err)
{
    struct jpeg_decompress_struct d = {0};
    struct failure f;
    int rc;

    d.err = catch_errors(&f, err);
    if (setjmp(f.jump))
        return -1; /* libjpeg does not fit the header it was compiled with */
    jpeg_create_decompress(&d);
    rc = read_picture(&d, &f, out, data, n, header);
    jpeg_destroy_decompress(&d);
    return rc;
}

struct target {
    unsigned char *data;
    unsigned long n;
};

static int write_picture(struct jpeg_compress_struct *c, struct failure *f, struct target *t, const struct picture *p,
                         const char *comment, int quality)
{
    if (setjmp(f->jump))
        return -1;
    jpeg_mem_dest(c, &t->data, &t->n);
    c->image_width = (JDIMENSION)p->width;
    c->image_height = (JDIMENSION)p->height;
    c->input_components = (int)p->channels;
    c->in_color_space = p->channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(c);
    jpeg_set_quality(c, quality, TRUE);
    c->optimize_coding = TRUE;
    jpeg_start_compress(c, TRUE);
    if (comment)
        jpeg_write_marker(c, JPEG_COM, (const JOCTET *)comment, (unsigned)strnlen(comment, 65533));
    while (c->next_scanline < c->image_height) {
        JSAMPROW row = p->data + (size_t)c->next_scanline * p->width * p->channels;

        jpeg_write_scanlines(c, &row, 1);
    }
    jpeg_finish_compress(c);
    return 0;
}

int picture_encode_jpeg(struct picture_bytes *out, const struct picture *p, const char *comment, int quality, struct err *err)
{
    struct jpeg_compress_struct c = {0};
    struct failure f;
    struct target t = {0};
    int rc;

    if (p->channels == 4)
        return err_set(err, "JPEG has no transparency; write a .png");
    c.err = catch_errors(&f, err);
    if (setjmp(f.jump))
        return -1;
    jpeg_create_compress(&c);
    rc = write_picture(&c, &f, &t, p, comment, quality);
    jpeg_destroy_compress(&c);
    if (!rc)
        rc = picture_bytes_add(out, t.data, t.n, err);
    free(t.data);
    return rc;
}

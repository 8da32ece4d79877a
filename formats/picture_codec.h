/* The readers and writers behind picture.c, one file a format. Errors of readers say what is wrong; picture.c puts the
 * file's name before. */
#ifndef FORMATS_PICTURE_CODEC_H
#define FORMATS_PICTURE_CODEC_H

#include "formats/picture.h"

/* Fills out (zeroed before); after an error the caller frees what is there. header: only sizes, channels and orientation, no
 * pixels; that the file goes on to its end is checked as far as that costs nothing. */
typedef int picture_decoder(struct picture *out, const uint8_t *data, size_t n, bool header, struct err *err);
picture_decoder picture_decode_png, picture_decode_jpeg, picture_decode_webp, picture_decode_bmp;

/* Checks the size, and takes memory for the pixels unless it is only the header that is read. */
int picture_alloc(struct picture *p, uint64_t width, uint64_t height, unsigned channels, bool header, struct err *err);

/* Appends a text; bytes are copied. */
int picture_add_text(struct picture *p, const char *key, size_t n_key, const char *value, size_t n_value, struct err *err);

/* The orientation in a TIFF structure ("II*\0" ...), 1 when there is none or it is no sense. */
int picture_exif_orientation(const uint8_t *data, size_t n);

/* Bytes of a finished file. Zero-initialise; free(data) in the end. */
struct picture_bytes {
    uint8_t *data;
    size_t n, cap;
};

int picture_bytes_add(struct picture_bytes *b, const void *data, size_t n, struct err *err);

int picture_encode_png(struct picture_bytes *out, const struct picture *p, const struct picture_text *text, size_t texts,
                       struct err *err);
int picture_encode_jpeg(struct picture_bytes *out, const struct picture *p, const char *comment, int quality, struct err *err);
int picture_encode_webp(struct picture_bytes *out, const struct picture *p, int quality, struct err *err);

#endif

/* Pictures: reading PNG, JPEG, WebP and BMP, writing PNG, JPEG and WebP.
 *
 * What a file is, its first bytes tell, not its name. Everything becomes 8 bits a sample, red green blue and alpha where the
 * file has it: grey is spread over three channels, palettes are looked up, of 16 bits the upper 8 are kept; gamma and colour
 * profiles are ignored. So colours are those that PIL's convert("RGB") or OpenCV give. A file that is cut short or broken is
 * an error that names it, never a half picture; sizes are checked before memory is taken.
 */
#ifndef FORMATS_PICTURE_H
#define FORMATS_PICTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ref/base/err.h"

enum {
    PICTURE_MOST_SIDE = 65535,
    PICTURE_MOST_PIXELS = 1 << 27, /* 134 million: 402 MB */
};

/* A text that travels in the file; both UTF-8, NUL-terminated. */
struct picture_text {
    char *key, *value;
};

struct picture {
    size_t width, height;
    unsigned channels;         /* 3: RGB; 4: RGBA, colours not multiplied by alpha; 1: grey, only by picture_make_grey() */
    uint8_t *data;             /* [height, width, channels] */
    int orientation;           /* as EXIF has it, 1 .. 8; 1 when the file has none. Not applied: see picture_upright() */
    struct picture_text *text; /* [texts], of PNG's chunks tEXt, zTXt and iTXt */
    size_t texts;
};

/* Reads a file. Returns 0 or -1; out is to be given to picture_free() after 0. */
int picture_read(struct picture *out, const char *path, struct err *err);

/* The same from memory, data [n bytes]; name is for messages. */
int picture_decode(struct picture *out, const void *data, size_t n, const char *name, struct err *err);

/* What a file's header says, without decoding its pixels: size [width, height] of the upright picture, and how it is stored. PNG
 * files must have all their chunks and JPEG files their end marker, so that most files cut short are noticed too. Returns 0 or
 * -1: no picture, or one that picture_read() would refuse at once. (A PNG whose orientation stands behind its pixels counts as
 * upright.) */
int picture_read_size(const char *path, size_t size[2], int *orientation, struct err *err);

/* Whether a picture may have that size; the message names it. */
int picture_check_size(size_t width, size_t height, struct err *err);

/* A black picture of that size. */
int picture_new(struct picture *out, size_t width, size_t height, unsigned channels, struct err *err);
void picture_free(struct picture *p);

/* The value of the text with that key, or NULL. Borrowed. */
const char *picture_find_text(const struct picture *p, const char *key);

/* Makes RGB of RGBA. drop: colours stay as they are, alpha is forgotten (what PIL's convert("RGB") does, and sd-scripts with
 * it); else they are laid over the background. */
void picture_drop_alpha(struct picture *p);
void picture_lay_over(struct picture *p, uint8_t red, uint8_t green, uint8_t blue);

/* Turns and mirrors the picture as its orientation asks; orientation is 1 afterwards. */
int picture_upright(struct picture *p, struct err *err);

struct picture_format {
    int quality; /* JPEG and WebP: 1 .. 100; WebP: 101 for lossless */
};

/* Writes p (never half, see output.h); the name's ending decides: .png, .jpg, .jpeg, .webp. Texts [n] go into PNG as tEXt, or
 * iTXt where they are not ASCII; a JPEG gets the one called "parameters" as its comment; a WebP none. Refused:
 * JPEG with alpha, WebP in grey. */
int picture_write(const char *path, const struct picture *p, const struct picture_text *text, size_t texts,
                  struct picture_format format, struct err *err);

/* The errors that picture_write() will have for any picture of that name: its ending, the quality, a library that the program
 * was built without. Writes nothing. */
int picture_can_write(const char *path, struct picture_format format, struct err *err);

#endif

/* BMP, the uncompressed kinds: 1, 4, 8 bits with a palette, 16, 24, 32 bits, rows from the bottom or from the top. Our own
 * reader because it is shorter than a dependency. Source: Microsoft's description of BITMAPFILEHEADER, BITMAPINFOHEADER and
 * its successors. The fourth byte of 32 bits counts as alpha only where the header has a mask for it. */
#include <string.h>

#include "formats/picture_codec.h"

struct bmp {
    const uint8_t *data;
    size_t n;
    uint32_t pixels, header; /* where the pixels begin; bytes of the info header */
    unsigned bits;
    bool top_down;
    uint32_t mask[4]; /* red, green, blue, alpha; for 16 and 32 bits */
    const uint8_t *palette;
    uint32_t colours;
    unsigned colour_bytes; /* 3 in OS/2's header, else 4 */
};

static uint32_t u16(const uint8_t *d)
{
    return (uint32_t)d[0] | (uint32_t)d[1] << 8;
}

static uint32_t u32(const uint8_t *d)
{
    return u16(d) | u16(d + 2) << 16;
}

static int cut_short(struct err *err)
{
    return err_set(err, "it ends in the middle of the picture; get it again");
}

static int read_masks(struct bmp *b, uint32_t kind, struct err *err)
{
    static const uint32_t of_16[4] = {0x7c00, 0x3e0, 0x1f, 0}, of_32[4] = {0xff0000, 0xff00, 0xff, 0};
    bool alpha = kind == 6 || b->header >= 56;
    size_t need = 14 + 40 + (alpha ? 16 : 12);

    memcpy(b->mask, b->bits == 16 ? of_16 : of_32, sizeof b->mask);
    if (kind != 3 && kind != 6)
        return 0;
    if (b->bits != 16 && b->bits != 32)
        return err_set(err, "it has colour masks for %u bits; the file is damaged", b->bits);
    if (b->n < need)
        return cut_short(err);
    for (size_t i = 0; i < (alpha ? 4 : 3); i++)
        b->mask[i] = u32(b->data + 14 + 40 + 4 * i);
    return 0;
}

static int read_header(struct bmp *b, uint64_t *width, uint64_t *height, struct err *err)
{
    static const char *const kinds[] = {"", "run lengths", "run lengths", "", "JPEG", "PNG"};
    uint32_t kind = 0, w, h;

    if (b->n < 14 + 12)
        return cut_short(err);
    b->pixels = u32(b->data + 10);
    b->header = u32(b->data + 14);
    if (b->header == 12) {
        *width = u16(b->data + 18);
        *height = u16(b->data + 20);
        b->bits = u16(b->data + 24);
        b->colour_bytes = 3;
        return 0;
    }
    if (b->header < 40 || b->header > 1024)
        return err_set(err, "its header has %u bytes, which is no kind we know; convert it to PNG", b->header);
    if (b->n < 14 + (size_t)b->header)
        return cut_short(err);
    w = u32(b->data + 18);
    h = u32(b->data + 22);
    b->top_down = h >> 31;
    *width = w;
    *height = b->top_down ? (uint64_t)(0 - h) : h;
    b->bits = u16(b->data + 28);
    kind = u32(b->data + 30);
    b->colours = u32(b->data + 46);
    b->colour_bytes = 4;
    if (kind > 6 || kinds[kind % 6][0])
        return err_set(err, "its pixels are packed (%s); convert it to PNG", kind < 6 ? kinds[kind] : "unknown");
    return read_masks(b, kind, err);
}

static int find_palette(struct bmp *b, struct err *err)
{
    size_t at = 14 + (size_t)b->header;
    uint32_t most = 1u << b->bits;

    if (b->colours == 0 || b->colours > most)
        b->colours = most;
    if (b->n - at < (size_t)b->colours * b->colour_bytes)
        return cut_short(err);
    b->palette = b->data + at;
    return 0;
}

/* The bits under the mask as 0 .. 255 */
static uint8_t under(uint32_t pixel, uint32_t mask)
{
    uint64_t value, most;

    if (!mask)
        return 255;
    for (value = pixel & mask, most = mask; !(most & 1); most >>= 1)
        value >>= 1;
    return (uint8_t)(value * 255 / most);
}

static void read_palette_row(const struct bmp *b, const uint8_t *row, uint8_t *out, size_t width)
{
    unsigned per_byte = 8 / b->bits;

    for (size_t x = 0; x < width; x++) {
        unsigned shift = 8 - b->bits * (unsigned)(x % per_byte + 1),
                 index = (unsigned)row[x / per_byte] >> shift & ((1u << b->bits) - 1);
        const uint8_t *colour = b->palette + (size_t)index * b->colour_bytes;
        bool known = index < b->colours;

        for (size_t c = 0; c < 3; c++)
            out[3 * x + c] = known ? colour[2 - c] : 0;
    }
}

static void read_direct_row(const struct bmp *b, const uint8_t *row, uint8_t *out, size_t width, unsigned channels)
{
    for (size_t x = 0; x < width; x++) {
        uint32_t pixel = b->bits == 16 ? u16(row + 2 * x) : u32(row + 4 * x);

        for (unsigned c = 0; c < channels; c++)
            out[channels * x + c] = under(pixel, b->mask[c]);
    }
}

static void read_row(const struct bmp *b, const uint8_t *row, uint8_t *out, size_t width, unsigned channels)
{
    if (b->bits <= 8)
        read_palette_row(b, row, out, width);
    else if (b->bits == 24)
        for (size_t i = 0; i < 3 * width; i++)
            out[i] = row[i - i % 3 + 2 - i % 3];
    else
        read_direct_row(b, row, out, width, channels);
}

int picture_decode_bmp(struct picture *out, const uint8_t *data, size_t n, bool header, struct err *err)
{
    struct bmp b = {.data = data, .n = n};
    uint64_t width = 0, height = 0;
    size_t stride;

    if (read_header(&b, &width, &height, err))
        return -1;
    if (b.bits != 1 && b.bits != 4 && b.bits != 8 && b.bits != 16 && b.bits != 24 && b.bits != 32)
        return err_set(err, "it has %u bits a pixel, which no BMP has; the file is damaged", b.bits);
    if (b.bits <= 8 && find_palette(&b, err))
        return -1;
    if (picture_alloc(out, width, height, b.mask[3] && b.bits > 8 && b.bits != 24 ? 4 : 3, header, err))
        return -1;
    stride = (out->width * b.bits + 31) / 32 * 4;
    if (b.pixels > n || (n - b.pixels) / stride < out->height)
        return cut_short(err);
    for (size_t y = 0; !header && y < out->height; y++)
        read_row(&b, data + b.pixels + y * stride,
                 out->data + (b.top_down ? y : out->height - 1 - y) * out->width * out->channels, out->width, out->channels);
    return 0;
}

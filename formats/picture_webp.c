/* WebP by libwebp, where configure has found it. */
#include "formats/picture_codec.h"

#ifdef HAVE_WEBP

#include <string.h>

#include <webp/decode.h>
#include <webp/encode.h>

static size_t u32(const uint8_t *d)
{
    return (size_t)d[0] | (size_t)d[1] << 8 | (size_t)d[2] << 16 | (size_t)d[3] << 24;
}

/* Chunks of the RIFF container: four letters, length, bytes padded to an even count. */
static int orientation_of(const uint8_t *data, size_t n)
{
    for (size_t at = 12; n - at >= 8;) {
        size_t length =
            (size_t)data[at + 4] | (size_t)data[at + 5] << 8 | (size_t)data[at + 6] << 16 | (size_t)data[at + 7] << 24;
        const uint8_t *body = data + at + 8;

        if (length > n - at - 8)
            break;
        if (!memcmp(data + at, "EXIF", 4)) {
            size_t skip = length > 6 && !memcmp(body, "Exif\0\0", 6) ? 6 : 0;

            return picture_exif_orientation(body + skip, length - skip);
        }
        at += 8 + length + length % 2;
        if (at > n)
            break;
    }
    return 1;
}

int picture_decode_webp(struct picture *out, const uint8_t *data, size_t n, bool header, struct err *err)
{
    WebPBitstreamFeatures f;
    VP8StatusCode status = WebPGetFeatures(data, n, &f);
    size_t stride;
    const uint8_t *done;

    if (status == VP8_STATUS_NOT_ENOUGH_DATA || (n >= 12 && u32(data + 4) > n - 8))
        return err_set(err, "it ends in the middle of the picture; get it again");
    if (status != VP8_STATUS_OK)
        return err_set(err, "the file is damaged, get it again");
    if (f.has_animation)
        return err_set(err, "it is an animation; give single pictures");
    if (f.width <= 0 || f.height <= 0)
        return err_set(err, "the file is damaged, get it again");
    if (picture_alloc(out, (uint64_t)f.width, (uint64_t)f.height, f.has_alpha ? 4 : 3, header, err))
        return -1;
    out->orientation = orientation_of(data, n);
    if (header)
        return 0;
    stride = out->width * out->channels;
    done = f.has_alpha ? WebPDecodeRGBAInto(data, n, out->data, stride * out->height, (int)stride)
                       : WebPDecodeRGBInto(data, n, out->data, stride * out->height, (int)stride);
    if (!done)
        return err_set(err, "the file is damaged, get it again");
    return 0;
}

int picture_encode_webp(struct picture_bytes *out, const struct picture *p, int quality, struct err *err)
{
    int w = (int)p->width, h = (int)p->height, stride = (int)(p->width * p->channels), rc = -1;
    uint8_t *data = NULL;
    size_t n;

    if (p->channels == 1)
        return err_set(err, "WebP has no grey; write a .png");
    if (p->width > WEBP_MAX_DIMENSION || p->height > WEBP_MAX_DIMENSION)
        return err_set(err, "WebP pictures have at most %d pixels a side; write a .png", WEBP_MAX_DIMENSION);
    if (quality > 100)
        n = p->channels == 4 ? WebPEncodeLosslessRGBA(p->data, w, h, stride, &data)
                             : WebPEncodeLosslessRGB(p->data, w, h, stride, &data);
    else
        n = p->channels == 4 ? WebPEncodeRGBA(p->data, w, h, stride, (float)quality, &data)
                             : WebPEncodeRGB(p->data, w, h, stride, (float)quality, &data);
    if (n == 0)
        err_set(err, "libwebp has no memory for %d x %d pixels; write a .png", w, h);
    else
        rc = picture_bytes_add(out, data, n, err);
    WebPFree(data);
    return rc;
}

#else

int picture_decode_webp(struct picture *out, const uint8_t *data, size_t n, bool header, struct err *err)
{
    (void)header;
    (void)out;
    (void)data;
    (void)n;
    return err_set(err, "it is a WebP picture, and this program was built without libwebp; install libwebp and build again, or "
                        "convert it to PNG");
}

int picture_encode_webp(struct picture_bytes *out, const struct picture *p, int quality, struct err *err)
{
    (void)out;
    (void)p;
    (void)quality;
    return err_set(err, "this program was built without libwebp; install libwebp and build again, or write a .png");
}

#endif

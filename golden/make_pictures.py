#!/usr/bin/env python3
"""usage: make_pictures.py OUT_DIR

Small pictures of every kind by Pillow, OpenCV and (what neither writes) by hand from the specifications, and their pixels as
the decoders of those packages see them: NAME.rgb or NAME.rgba beside NAME. What they refuse lies in OUT_DIR/bad.
"""
import io
import os
import struct
import sys
import zlib

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

out = sys.argv[1]
os.makedirs(out + "/bad", exist_ok=True)
rng = np.random.default_rng(5)
H, W = 13, 19
y, x = np.mgrid[0:H, 0:W]
rgb = np.stack([x * 13 % 256, y * 19 % 256, (x * y) % 256], -1).astype(np.uint8)
rgb[4:8, 5:9] = rng.integers(0, 256, (4, 4, 3))
alpha = (x * 255 // (W - 1)).astype(np.uint8)
rgba = np.dstack([rgb, alpha])
wide = (rgb.astype(np.uint16) * 257) ^ rng.integers(0, 256, rgb.shape).astype(np.uint16)


def put(name, data, pixels=None):
    with open(os.path.join(out, name), "wb") as f:
        f.write(data)
    if pixels is not None:
        with open(os.path.join(out, name + (".rgba" if pixels.shape[2] == 4 else ".rgb")), "wb") as f:
            f.write(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())
    return data


def seen(data):
    """What Pillow makes of it"""
    im = Image.open(io.BytesIO(data))
    has_alpha = im.mode in ("RGBA", "LA", "PA") or "transparency" in im.info
    return np.array(im.convert("RGBA" if has_alpha else "RGB"))


def pil(name, im, **kw):
    f = io.BytesIO()
    im.save(f, os.path.splitext(name)[1][1:].replace("jpg", "jpeg"), **kw)
    return put(name, f.getvalue(), seen(f.getvalue()))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(pixels, bits, kind, interlaced=False, extra=b""):
    """pixels [h, w, samples] as a PNG of that bit depth and colour type, unfiltered"""
    def pack(rows):
        body = b""
        for row in rows:
            flat = row.reshape(-1)
            if bits == 16:
                line = flat.astype(">u2").tobytes()
            elif bits == 8:
                line = flat.astype(np.uint8).tobytes()
            else:
                b = "".join(f"{int(v):0{bits}b}" for v in flat)
                b += "0" * (-len(b) % 8)
                line = bytes(int(b[i:i + 8], 2) for i in range(0, len(b), 8))
            body += b"\0" + line
        return body
    passes = [pixels[y0::dy, x0::dx] for x0, y0, dx, dy in ADAM7] if interlaced else [pixels]
    data = b"".join(pack(p) for p in passes if p.size)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def cv(data, flag=cv2.IMREAD_UNCHANGED):
    a = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    return cv2.cvtColor(a, cv2.COLOR_BGRA2RGBA if a.shape[2] == 4 else cv2.COLOR_BGR2RGB)


info = PngInfo()
for k, v in (("prompt", "a red fox"), ("steps", "20"), ("caf\u00e9", "latin"), ("parameters", "a\nSteps: 20, Seed: 1")):
    info.add_text(k, v) if k.isascii() else info.add_text("comment", v)
info.add_itxt("wide", "\u65e5\u672c \U0001f98a", "ja", "key")
info.add_text("packed", "z" * 2000, zip=True)

pil("rgb.png", Image.fromarray(rgb), pnginfo=info)
pil("rgba.png", Image.fromarray(rgba))
pil("grey.png", Image.fromarray(rgb[..., 0]))
pil("grey_alpha.png", Image.fromarray(np.dstack([rgb[..., 0], alpha]), "LA"))
pil("palette.png", Image.fromarray(rgb).quantize(40))
pil("palette_alpha.png", Image.fromarray(rgb).quantize(9), transparency=bytes([0, 60, 120, 255]))
pil("bits.png", Image.fromarray(rgb[..., 0] > 100))
for kind, name in ((2, "rgb"), (6, "rgba"), (0, "grey"), (4, "grey_alpha")):
    a = {2: wide, 6: np.dstack([wide, alpha.astype(np.uint16) * 257]), 0: wide[..., :1],
         4: np.dstack([wide[..., 0], alpha.astype(np.uint16) * 257])}[kind]
    for interlaced in (0, 1):
        deep = png(a, 16, kind, interlaced)
        top = (a >> 8).astype(np.uint8)  # OpenCV keeps the upper 8 bits too
        grey = top[..., :1].repeat(3, 2)
        want = top if kind in (2, 6) else grey if kind == 0 else np.dstack([grey, top[..., 1]])
        if kind in (0, 2):
            assert np.array_equal(cv(deep, cv2.IMREAD_COLOR), want)
        put(f"deep_{name}{'_interlaced' * interlaced}.png", deep, want)
for bits in (1, 2, 4, 8):
    a = (rgb[..., :1] >> (8 - bits)).astype(np.uint8)
    for interlaced in (0, 1):
        data = png(a, bits, 0, interlaced)
        put(f"grey{bits}{'_interlaced' * interlaced}.png", data, cv(data, cv2.IMREAD_COLOR))
    colours = rng.integers(0, 256, (1 << bits, 3)).astype(np.uint8)
    data = png(a, bits, 3, True, chunk(b"PLTE", colours.tobytes()))
    put(f"palette{bits}_interlaced.png", data, seen(data))
data = png(rgb, 8, 2, True, chunk(b"gAMA", struct.pack(">I", 100000)))
put("gamma.png", data, rgb)
data = png(rgb, 8, 2, False, chunk(b"tRNS", struct.pack(">HHH", *map(int, rgb[0, 1]))))
put("colour_key.png", data, seen(data))

exif = Image.Exif()
for name, turn in (("rgb.jpg", 1), *((f"turn{t}.jpg", t) for t in range(2, 9))):
    exif[274] = turn
    d = pil(name, Image.fromarray(rgb), quality=90, **({"exif": exif} if turn > 1 else {}))
    if turn > 1:
        from PIL import ImageOps
        put(name + ".upright", np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(d))).convert("RGB")).tobytes())
pil("full.jpg", Image.fromarray(rgb), quality=95, subsampling=0)
pil("progressive.jpg", Image.fromarray(rgb), quality=80, progressive=True)
pil("grey.jpg", Image.fromarray(rgb[..., 0]), quality=90)
exif[274] = 6
pil("turn6.png", Image.fromarray(rgb), exif=exif)
pil("rgb.webp", Image.fromarray(rgb), quality=90)
pil("lossless.webp", Image.fromarray(rgba), lossless=True, exact=True)
pil("turn6.webp", Image.fromarray(rgb), lossless=True, exif=exif)

for mode, name in (("RGB", "rgb"), ("L", "grey"), ("1", "bits"), ("P", "palette")):
    im = Image.fromarray(rgb)
    pil(f"{name}.bmp", im.quantize(200) if mode == "P" else im.convert(mode))


def bmp(w, h, bits, body, kind=0, masks=b"", palette=b"", header=40):
    head = struct.pack("<IiiHHIIiiII", header, w, h, 1, bits, kind, len(body), 2835, 2835, len(palette) // 4, 0)
    head += masks if header > 40 else b""
    head += b"\0" * (header - len(head))
    head += masks if header == 40 else b""
    at = 14 + len(head) + len(palette)
    return struct.pack("<2sIHHI", b"BM", at + len(body), 0, 0, at) + head + palette + body


bgr = rgb[..., ::-1]
rows = b"".join(bgr[i].tobytes() + b"\0" * (-3 * W % 4) for i in range(H))
put("top_down.bmp", bmp(W, -H, 24, rows), rgb)
bgrx = np.dstack([bgr, alpha])[::-1]
data = bmp(W, H, 32, bgrx.tobytes())
put("bits32.bmp", data, cv(data, cv2.IMREAD_COLOR))
data = bmp(W, H, 32, bgrx.tobytes(), 3, struct.pack("<IIII", 0xff0000, 0xff00, 0xff, 0xff000000), header=108)
put("bits32_alpha.bmp", data, seen(data))
r5 = ((rgb[..., 0] >> 3).astype(np.uint16) << 10 | (rgb[..., 1] >> 3).astype(np.uint16) << 5 | rgb[..., 2] >> 3)[::-1]
r565 = ((rgb[..., 0] >> 3).astype(np.uint16) << 11 | (rgb[..., 1] >> 2).astype(np.uint16) << 5 | rgb[..., 2] >> 3)[::-1]
for name, a, kind, masks in (("bits16", r5, 0, b""), ("bits565", r565, 3, struct.pack("<III", 0xf800, 0x7e0, 0x1f))):
    body = b"".join(a[i].astype("<u2").tobytes() + b"\0" * (-2 * W % 4) for i in range(H))
    data = bmp(W, H, 16, body, kind, masks)
    put(name + ".bmp", data, seen(data))
a = (rgb[::-1, :, 0] >> 4)
palette = np.dstack([rng.integers(0, 256, (1, 16, 3)), np.zeros((1, 16, 1))]).astype(np.uint8).tobytes()
body = b"".join(bytes(int(a[i, j]) << 4 | (int(a[i, j + 1]) if j + 1 < W else 0) for j in range(0, W, 2)) + b"\0" * (-((W + 1) // 2) % 4)
                for i in range(H))
data = bmp(W, H, 4, body, palette=palette)
put("bits4.bmp", data, seen(data))

f = io.BytesIO()
Image.fromarray(rgb).convert("CMYK").save(f, "jpeg")
put("bad/cmyk.jpg", f.getvalue())
for name in ("rgb.png", "rgb.jpg", "progressive.jpg", "rgb.webp", "rgb.bmp"):
    whole = open(os.path.join(out, name), "rb").read()
    put("bad/short_" + name, whole[: len(whole) * 2 // 3])
whole = bytearray(open(out + "/rgb.png", "rb").read())
whole[-14] ^= 1
put("bad/crc.png", bytes(whole))
huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 6, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
put("bad/huge.png", huge + chunk(b"IEND", b""))
put("bad/huge.bmp", bmp(60000, 60000, 24, b"\0" * 100))
put("bad/packed.bmp", bmp(8, 8, 8, b"\0" * 16, kind=1, palette=b"\0" * 1024))
frames = [Image.fromarray(rgb), Image.fromarray(rgb[::-1])]
f = io.BytesIO()
frames[0].save(f, "webp", save_all=True, append_images=frames[1:])
put("bad/animation.webp", f.getvalue())
put("bad/text.png", b"this is no picture\n")
put("bad/empty.png", b"")

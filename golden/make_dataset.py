#!/usr/bin/env python3
"""usage: make_dataset.py OUT.json      (from the top folder of the sources)

Training data by an implementation of its own, with cv2 and Pillow: lists of bucket sizes; for many picture sizes the bucket and the
size before cutting (also when nothing may be enlarged); and for pictures of this repository SHA-256 of the pixels that a trainer
sees, for several resolutions. Rules: sd-scripts v0.3.0 (model_util.make_bucket_resolutions, BaseDataset.resize_and_trim) and, for
steps other than 64 and bucket_no_upscale, its later versions.
"""
import glob
import hashlib
import json
import math
import sys

import cv2
import numpy as np
from PIL import Image

rng = np.random.default_rng(9)


def bucket_list(w, h, low, high, step):
    found = {(int(math.sqrt(w * h) / step) * step,) * 2}
    for side in range(low, high + 1, step):
        other = min(high, w * h // side // step * step)
        if other >= low:
            found |= {(side, other), (other, side)}
    return sorted(found)


def choose(sizes, w, h):
    if (w, h) in sizes:
        return (w, h)
    return min(sizes, key=lambda s: (abs(s[0] / s[1] - w / h), sizes.index(s)))


def scaled(w, h, to):
    s = to[1] / h if w / h > to[0] / to[1] else to[0] / w
    return int(w * s + .5), int(h * s + .5)


def choose_shrinking(area, step, w, h):
    size = (w, h)
    if w * h > area:
        aspect = w / h
        wide = math.sqrt(area * aspect)
        high = area / wide

        def whole(x):
            return int(x + .5) // step * step
        w1 = whole(wide)
        h1 = whole(w1 / aspect)
        h2 = whole(high)
        w2 = whole(h2 * aspect)
        if abs(w1 / h1 - aspect) < abs(w2 / h2 - aspect):
            size = (w1, int(w1 / aspect + .5))
        else:
            size = (int(h2 * aspect + .5), h2)
    return (size[0] // step * step, size[1] // step * step), size


out = {"lists": [], "choices": [], "shrinking": [], "pixels": []}
for case in ((512, 512, 256, 1024, 64), (512, 768, 256, 1024, 64), (768, 512, 320, 896, 64), (768, 768, 256, 1024, 64),
             (256, 256, 256, 1024, 64), (512, 512, 128, 1024, 32), (640, 448, 256, 2048, 8), (64, 64, 64, 128, 64)):
    sizes = bucket_list(*case)
    out["lists"].append({"case": case, "sizes": sizes})
    for _ in range(25):
        w, h = (int(v) for v in rng.integers(40, 3000, 2))
        to = choose(sizes, w, h)
        out["choices"].append([*case, w, h, *to, *scaled(w, h, to)])
    for to in (sizes[0], sizes[-1]):
        out["choices"].append([*case, *to, *to, *to])
for res, step in ((512, 64), (512, 32), (768, 64)):
    for _ in range(30):
        w, h = (int(v) for v in rng.integers(70, 2500, 2))
        if w / h > 6 or h / w > 6:
            continue
        to, size = choose_shrinking(res * res, step, w, h)
        out["shrinking"].append([res, step, w, h, *to, *size])

for path in sorted(glob.glob("golden/small_model/concept/*.png"))[:1] + ["golden/small_model/samples.png", "golden/pictures/turn6.png", "golden/pictures/rgba.png"]:
    im = Image.open(path)
    im = np.array(im.convert("RGB"))
    if path.endswith("turn6.png"):
        from PIL import ImageOps
        im = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    h, w = im.shape[:2]
    for res, buckets in (((64, 64), False), ((128, 64), False), ((64, 96), False), ((128, 128), True), ((192, 128), True)):
        to = choose(bucket_list(*res, 64, 256, 64), w, h) if buckets else res
        size = scaled(w, h, to)
        a = cv2.resize(im, size, interpolation=cv2.INTER_AREA)
        y, x = (size[1] - to[1]) // 2, (size[0] - to[0]) // 2
        a = np.ascontiguousarray(a[y:y + to[1], x:x + to[0]])
        assert a.shape[:2] == (to[1], to[0])
        out["pixels"].append({"path": path, "resolution": res, "buckets": buckets, "size": to,
                              "sha256": hashlib.sha256(a.tobytes()).hexdigest()})
json.dump(out, open(sys.argv[1], "w"), indent=None)

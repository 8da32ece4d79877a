"""The rasteriser of the small model's world: scenes of parameters in, antialiased RGB pictures out.

A scene is a background and up to three objects. Every edge is a signed distance function (after Inigo Quilez'
catalogue of 2-D distances, https://iquilezles.org/articles/distfunctions2d/), evaluated for a batch of pictures at
once in torch, so that the same code draws one picture on a CPU and 40,000 a second on a GPU.

Coordinates: x to the right, y down, the picture is [0, 1] x [0, 1]. An object's own coordinates have its centre at 0
and reach about +-1. Colours are RGB in 0..1.
"""
import math

import torch

SHAPES = ["circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross", "moon", "hexagon",
          "flower", "house", "tree", "fish", "cat", "mushroom"]
COMPOSED = 10  # from this index on a shape is built of several parts and takes no texture

COLOURS = {
    "red": (226, 58, 53), "orange": (246, 140, 38), "yellow": (252, 212, 48), "green": (58, 168, 80),
    "blue": (48, 112, 224), "purple": (142, 68, 190), "pink": (247, 128, 180), "brown": (140, 88, 50),
    "black": (40, 40, 46), "white": (250, 250, 248),
}
COLOUR_NAMES = list(COLOURS)
TEXTURES = ["plain", "striped", "dotted"]

PLAIN, GRADIENT, STRIPES, DOTS, CHECKS, MEADOW, NIGHT, SUNSET, SEA, SNOW = range(10)
BACKGROUNDS = ["plain", "gradient", "stripes", "dots", "checks", "meadow", "night", "sunset", "sea", "snow"]
# background colours are lighter than the objects' so that a blue circle stands out from a blue ground
GROUNDS = {
    "blue": (158, 200, 245), "green": (168, 222, 170), "yellow": (250, 236, 160), "pink": (252, 200, 218),
    "purple": (208, 184, 238), "orange": (252, 212, 160), "white": (246, 246, 242), "black": (34, 34, 40),
    "gray": (190, 192, 196),
}
GROUND_NAMES = list(GROUNDS)


# ---------------------------------------------------------------- distances; x, y [n, h, w]; negative inside

def circle(x, y, cx, cy, r):
    return torch.hypot(x - cx, y - cy) - r


def ellipse(x, y, cx, cy, rx, ry):
    px, py = (x - cx) / rx, (y - cy) / ry
    k = torch.hypot(px, py)
    g = torch.hypot(px / rx, py / ry)
    return k * (k - 1) / g.clamp_min(1e-4)


def box(x, y, cx, cy, hx, hy, r=0.0):
    qx, qy = (x - cx).abs() - (hx - r), (y - cy).abs() - (hy - r)
    return torch.hypot(qx.clamp_min(0), qy.clamp_min(0)) + torch.maximum(qx, qy).clamp_max(0) - r


def polygon(x, y, points):
    """Exact distance to a polygon given by its corners."""
    d, sign = None, None
    px, py = points[-1]
    for cx, cy in points:
        ex, ey = px - cx, py - cy
        wx, wy = x - cx, y - cy
        t = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        dd = (wx - ex * t) ** 2 + (wy - ey * t) ** 2
        crossing = ((wy >= 0) & (py - cy > wy) & (ex * wy < ey * wx)) | \
                   ((wy < 0) & (py - cy <= wy) & (ex * wy > ey * wx))
        d = dd if d is None else torch.minimum(d, dd)
        sign = crossing if sign is None else sign ^ crossing
        px, py = cx, cy
    d = d.sqrt()
    return torch.where(sign, -d, d)


def ngon(n, r, turn=0.0):
    return [(r * math.sin(turn + 2 * math.pi * i / n), -r * math.cos(turn + 2 * math.pi * i / n)) for i in range(n)]


def star_points(n, r, inner):
    return [((r if i % 2 == 0 else inner) * math.sin(math.pi * i / n),
             -(r if i % 2 == 0 else inner) * math.cos(math.pi * i / n)) for i in range(2 * n)]


def heart(x, y):
    x, y = x.abs() / 1.55, (0.78 - y) / 1.55  # Quilez' heart stands on the origin and is 1.1 high
    far = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    m = 0.5 * (x + y).clamp_min(0)
    near = torch.minimum(x ** 2 + (y - 1) ** 2, (x - m) ** 2 + (y - m) ** 2).sqrt() * torch.sign(x - y)
    return torch.where(x + y > 1, far, near) * 1.55


def union(*ds):
    d = ds[0]
    for e in ds[1:]:
        d = torch.minimum(d, e)
    return d


# ---------------------------------------------------------------- shapes: outline and coloured layers
# Each returns a list of (distance, colour); colour is None for the object's own colour, a number for that colour
# darkened (<1) or lightened (>1), or an RGB triple. The first layers, up to the first RGB-only detail, make the outline.

INK, CREAM, GLASS = (0.16, 0.15, 0.19), (0.99, 0.95, 0.86), (1.0, 0.93, 0.6)


def shape_layers(name, x, y):
    if name == "circle":
        return [(circle(x, y, 0, 0, 0.9), None)]
    if name == "square":
        return [(box(x, y, 0, 0, 0.8, 0.8, 0.06), None)]
    if name == "triangle":
        return [(polygon(x, y + 0.0, [(0, -0.92), (0.98, 0.78), (-0.98, 0.78)]), None)]
    if name == "star":
        return [(polygon(x, y - 0.06, star_points(5, 1.04, 0.46)), None)]
    if name == "heart":
        return [(heart(x, y), None)]
    if name == "diamond":
        return [(polygon(x, y, [(0, -1.05), (0.72, 0), (0, 1.05), (-0.72, 0)]), None)]
    if name == "ring":
        return [((torch.hypot(x, y) - 0.68).abs() - 0.25, None)]
    if name == "cross":
        return [(torch.minimum(box(x, y, 0, 0, 0.9, 0.3), box(x, y, 0, 0, 0.3, 0.9)), None)]
    if name == "moon":
        return [(torch.maximum(circle(x, y, 0, 0, 0.92), -circle(x, y, 0.46, -0.12, 0.74)), None)]
    if name == "hexagon":
        return [(polygon(x, y, ngon(6, 0.98, math.pi / 6)), None)]
    return {"flower": flower, "house": house, "tree": tree, "fish": fish, "cat": cat, "mushroom": mushroom}[name](x, y)


def flower(x, y):
    petals = [circle(x, y, 0.56 * math.sin(a), -0.56 * math.cos(a), 0.4) for a in
              [2 * math.pi * i / 6 for i in range(6)]]
    return [(union(*petals, circle(x, y, 0, 0, 0.4)), None), (circle(x, y, 0, 0, 0.3), (0.99, 0.8, 0.2))]


def house(x, y):
    wall = box(x, y, 0, 0.36, 0.72, 0.54)
    roof = polygon(x, y, [(0, -0.96), (1.0, -0.12), (-1.0, -0.12)])
    return [(wall, None), (roof, 0.62), (box(x, y, -0.3, 0.54, 0.19, 0.36), INK),
            (box(x, y, 0.33, 0.34, 0.2, 0.2), GLASS)]


def tree(x, y):
    trunk = box(x, y, 0, 0.66, 0.16, 0.34)
    crown = union(circle(x, y, 0, -0.46, 0.5), circle(x, y, -0.42, 0.0, 0.44), circle(x, y, 0.42, 0.0, 0.44),
                  circle(x, y, 0, 0.02, 0.42))
    return [(trunk, (0.5, 0.33, 0.2)), (crown, None)]


def fish(x, y):
    body = ellipse(x, y, -0.18, 0, 0.76, 0.5)
    tail = polygon(x, y, [(0.38, 0), (0.98, -0.48), (0.98, 0.48)])
    return [(tail, 0.8), (body, None), (polygon(x, y, [(-0.02, 0.0), (0.3, -0.16), (0.3, 0.16)]), 0.8),
            (circle(x, y, -0.52, -0.1, 0.15), (1, 1, 1)), (circle(x, y, -0.55, -0.1, 0.08), INK)]


def cat(x, y):
    head = ellipse(x, y, 0, 0.16, 0.88, 0.74)
    ears = torch.minimum(polygon(x, y, [(-0.84, -0.94), (-0.82, 0.1), (-0.1, -0.46)]),
                         polygon(x, y, [(0.84, -0.94), (0.82, 0.1), (0.1, -0.46)]))
    return [(ears, 0.8), (head, None), (circle(x, y, -0.34, 0.06, 0.18), (1, 1, 1)),
            (circle(x, y, 0.34, 0.06, 0.18), (1, 1, 1)), (circle(x, y, -0.32, 0.08, 0.1), INK),
            (circle(x, y, 0.32, 0.08, 0.1), INK), (polygon(x, y, [(-0.12, 0.36), (0.12, 0.36), (0, 0.52)]),
                                                  (0.95, 0.55, 0.6))]


def mushroom(x, y):
    stem = box(x, y, 0, 0.52, 0.3, 0.44, 0.14)
    cap = torch.maximum(ellipse(x, y, 0, 0.14, 0.98, 1.02), y - 0.2)
    spots = union(circle(x, y, 0, -0.5, 0.18), circle(x, y, -0.5, -0.12, 0.16), circle(x, y, 0.5, -0.12, 0.16))
    return [(stem, CREAM), (cap, None), (spots, CREAM)]


# ---------------------------------------------------------------- painting

def paint(canvas, cover, colour):
    """canvas [n, 3, h, w] := colour ([n, 3] or [n, 3, h, w]) where cover [n, h, w] (0..1) says."""
    if colour.dim() == 2:
        colour = colour[:, :, None, None]
    return canvas + cover[:, None] * (colour - canvas)


def const(colour, like):
    return torch.tensor(colour, dtype=like.dtype, device=like.device).expand(like.shape[0], 3)


def grid(size, device):
    t = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
    return t[None, None, :], t[None, :, None]


def texture(colour, tex, x, y, phase):
    """colour [n, 3] to [n, 3, h, w]: lighter towards the top, with stripes or dots where tex says (1, 2)."""
    light = 1.07 - 0.13 * (y.clamp(-1, 1) + 1) / 2
    body = (colour[:, :, None, None] * light[:, None]).clamp(0, 1)
    bright = colour.mean(1) > 0.55
    other = torch.where(bright[:, None], colour * 0.66, colour + (1 - colour) * 0.62)[:, :, None, None]
    stripe = ((x + 0.5 * y + phase) * 2.2).sub(0.5).remainder(1.0).sub(0.5).abs()  # distance to a stripe's middle
    stripes = (0.5 - (stripe - 0.24) * 14).clamp(0, 1)
    dx, dy = (x * 2.1 + phase).remainder(1.0) - 0.5, (y * 2.1).remainder(1.0) - 0.5
    dots = (0.5 - (torch.hypot(dx, dy) - 0.26) * 14).clamp(0, 1)
    t = tex[:, None, None]
    mix = torch.where(t == 1, stripes, torch.where(t == 2, dots, torch.zeros_like(x)))
    return body + mix[:, None] * (other - body)


def draw_object(canvas, name, o):
    """Draws one object of each picture. o: dict of [n] tensors x, y, size, turn, texture, phase and rgb [n, 3]."""
    size = canvas.shape[-1]
    gx, gy = grid(size, canvas.device)
    v = lambda k: o[k][:, None, None]
    c, s = torch.cos(v("turn")), torch.sin(v("turn"))
    dx, dy = (gx - v("x")) / v("size"), (gy - v("y")) / v("size")
    x, y = c * dx + s * dy, c * dy - s * dx
    px = v("size") * size  # pixels a unit
    layers = shape_layers(name, x, y)
    colour = o["rgb"]
    # the outline: the silhouette, grown by about a pixel, in a darker tone (a lighter one for black objects)
    dark = colour.mean(1) < 0.25
    edge = torch.where(dark[:, None], colour * 0.3, colour * 0.6)
    outline = union(*[d for d, k in layers])
    canvas = paint(canvas, (0.5 - (outline * px - 0.012 * size)).clamp(0, 1), edge)
    body = texture(colour, o["texture"], x, y, v("phase"))
    for d, k in layers:
        cover = (0.5 - d * px).clamp(0, 1)
        if k is None:
            canvas = paint(canvas, cover, body)
        elif isinstance(k, tuple):
            canvas = paint(canvas, cover, const(k, colour))
        else:
            canvas = paint(canvas, cover, colour * k)
    return canvas


def hills(gx, gy, base, swing, waves, phase, size):
    """Cover of the ground under a wavy horizon."""
    return (0.5 + (gy - base - swing * torch.sin(waves * gx + phase)) * size).clamp(0, 1)


def draw_background(kind, a, b, r, size):
    """kind: one number for all; a, b [n, 3] colours; r [n, 24] random numbers in 0..1. Returns [n, 3, size, size]."""
    n = a.shape[0]
    gx, gy = grid(size, a.device)
    gx, gy = gx.expand(n, size, size), gy.expand(n, size, size)
    v = lambda i: r[:, i, None, None]
    up = gy[:, None]
    flat = a[:, :, None, None].expand(n, 3, size, size)
    if kind == PLAIN:
        return flat.clone()
    if kind == GRADIENT:
        return a[:, :, None, None] * (1 - up) + b[:, :, None, None] * up
    if kind == STRIPES:
        turn = (v(0) * 4).floor() * (math.pi / 4)
        t = (gx * torch.cos(turn) + gy * torch.sin(turn)) * (4 + 2 * v(1)) + v(2)
        return paint(flat, (0.5 - ((t.remainder(1.0) - 0.5).abs() - 0.25) * 18).clamp(0, 1), b)
    if kind == DOTS:
        k = 5 + 2 * v(1)
        row = (gy * k + v(2)).floor()
        dx, dy = (gx * k + 0.5 * row.remainder(2)).remainder(1.0) - 0.5, (gy * k + v(2)).remainder(1.0) - 0.5
        return paint(flat, (0.5 - (torch.hypot(dx, dy) - 0.24) * 18).clamp(0, 1), b)
    if kind == CHECKS:
        k = (4 + (v(1) * 3).floor()) * math.pi
        t = torch.sin(gx * k) * torch.sin(gy * k)
        return paint(flat, (0.5 + t * 6).clamp(0, 1), b)
    return LANDSCAPES[kind](a, r, gx, gy, size)


def sky(top, bottom, like, gy, reach=0.7):
    t = (gy / reach).clamp(0, 1)[:, None]
    return const(top, like)[:, :, None, None] * (1 - t) + const(bottom, like)[:, :, None, None] * t


def meadow(a, r, gx, gy, size):
    v = lambda i: r[:, i, None, None]
    c = sky((0.48, 0.74, 0.95), (0.84, 0.94, 0.99), a, gy)
    for i in (0, 1):  # two clouds
        x, y = 0.1 + 0.35 * v(i) + 0.45 * i, 0.1 + 0.12 * v(2 + i)
        d = union(ellipse(gx, gy, x, y, 0.11, 0.04), circle(gx, gy, x - 0.03, y - 0.02, 0.04),
                  circle(gx, gy, x + 0.035, y - 0.03, 0.045))
        c = paint(c, 0.9 * (0.5 - d * size).clamp(0, 1), const((1, 1, 1), a))
    c = paint(c, hills(gx, gy, 0.62, 0.05, 5, 6 * v(4), size), const((0.55, 0.8, 0.42), a))
    return paint(c, hills(gx, gy, 0.74, 0.03, 4, 6 * v(5), size), const((0.42, 0.7, 0.33), a))


def night(a, r, gx, gy, size):
    v = lambda i: r[:, i, None, None]
    c = sky((0.06, 0.08, 0.22), (0.2, 0.22, 0.45), a, gy, 0.9)
    for i in range(10):
        d = circle(gx, gy, v(i), 0.62 * v(i + 10), 0.006 + 0.006 * (i % 3 == 0))
        c = paint(c, (0.7 - d * size).clamp(0, 1), const((1, 0.97, 0.85), a))
    return paint(c, hills(gx, gy, 0.8, 0.04, 5, 6 * v(20), size), const((0.1, 0.16, 0.2), a))


def sunset(a, r, gx, gy, size):
    v = lambda i: r[:, i, None, None]
    c = sky((0.52, 0.34, 0.62), (1.0, 0.68, 0.4), a, gy)
    d = circle(gx, gy, 0.2 + 0.6 * v(0), 0.68, 0.13)
    c = paint(c, (0.5 - d * size).clamp(0, 1), const((1.0, 0.9, 0.62), a))
    c = paint(c, hills(gx, gy, 0.7, 0.03, 6, 6 * v(1), size), const((0.5, 0.28, 0.42), a))
    return paint(c, hills(gx, gy, 0.82, 0.03, 4, 6 * v(2), size), const((0.36, 0.2, 0.34), a))


def sea(a, r, gx, gy, size):
    v = lambda i: r[:, i, None, None]
    c = sky((0.6, 0.85, 0.97), (0.9, 0.97, 1.0), a, gy, 0.5)
    c = paint(c, hills(gx, gy, 0.5, 0.0, 1, 0, size), const((0.25, 0.62, 0.82), a))
    for i in range(2):
        wave = (gy - 0.57 - 0.08 * i - 0.008 * torch.sin(38 * gx + 6 * v(i))).abs()
        c = paint(c, 0.75 * (0.9 - wave * size).clamp(0, 1), const((0.8, 0.94, 1.0), a))
    return paint(c, hills(gx, gy, 0.76, 0.025, 4, 6 * v(2), size), const((0.96, 0.87, 0.66), a))


def snow(a, r, gx, gy, size):
    v = lambda i: r[:, i, None, None]
    c = sky((0.66, 0.76, 0.88), (0.86, 0.91, 0.97), a, gy)
    c = paint(c, hills(gx, gy, 0.64, 0.05, 5, 6 * v(20), size), const((0.9, 0.94, 0.98), a))
    c = paint(c, hills(gx, gy, 0.76, 0.03, 4, 6 * v(21), size), const((0.98, 0.99, 1.0), a))
    for i in range(10):
        d = circle(gx, gy, v(i), 0.7 * v(i + 10), 0.011)
        c = paint(c, (0.6 - d * size).clamp(0, 1), const((1, 1, 1), a))
    return c


LANDSCAPES = {MEADOW: meadow, NIGHT: night, SUNSET: sunset, SEA: sea, SNOW: snow}


def draw(scenes, size=128):
    """scenes: dict of tensors as scene.py's Batch.tensors() gives, [n, ...]. Returns uint8 [n, 3, size, size]."""
    bg, dev = scenes["bg"], scenes["bg"].device
    canvas = torch.empty(len(bg), 3, size, size, device=dev)
    for kind in range(len(BACKGROUNDS)):
        i = (bg == kind).nonzero()[:, 0]
        if len(i):
            canvas[i] = draw_background(kind, scenes["bg_a"][i], scenes["bg_b"][i], scenes["bg_r"][i], size)
    for k in range(scenes["shape"].shape[1]):
        for s, name in enumerate(SHAPES):
            i = (scenes["shape"][:, k] == s).nonzero()[:, 0]
            if len(i):
                o = {f: scenes[f][i, k] for f in ("x", "y", "size", "turn", "texture", "phase", "rgb")}
                canvas[i] = draw_object(canvas[i], name, o)
    return (canvas.clamp(0, 1) * 255 + 0.5).to(torch.uint8)

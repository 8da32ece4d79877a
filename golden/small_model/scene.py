"""Random scenes, the captions that describe them, and CLIP's token numbers of those captions."""
import functools
import gzip
import random
import re

import numpy as np

import draw as D

SLOTS = 3
EMPTY = -1
MIX = [0.04, 0.42, 0.66]  # up to here: an empty landscape, one object, two or three alike; the rest: two kinds
SIMPLE = [i for i in range(len(D.SHAPES)) if i < D.COMPOSED]
PLURAL = {"cross": "crosses", "fish": "fish"}
NUMBER = {2: ["two", "2", "a pair of"], 3: ["three", "3"]}
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "middle": (0, 0)}

GROUND_PHRASES = {  # {c}: the colour of the ground
    D.PLAIN: ["on a {c} background", "on a plain {c} background", "with a {c} background", "on {c}", "{c} background"],
    D.GRADIENT: ["on a {c} gradient background", "with a {c} gradient background", "on a {c} gradient"],
    D.STRIPES: ["on a {c} striped background", "on a background with {c} stripes", "with {c} stripes behind"],
    D.DOTS: ["on a {c} dotted background", "on a background with {c} dots", "on a {c} polka dot background"],
    D.CHECKS: ["on a {c} checkered background", "on a background with {c} checks", "on a {c} checkerboard"],
    D.MEADOW: ["in a meadow", "on green grass under a blue sky", "on the grass", "in a field", "on green hills"],
    D.NIGHT: ["at night", "under the stars", "in the night sky", "under a starry sky"],
    D.SUNSET: ["at sunset", "in the evening sun", "with a sunset behind", "in front of a sunset"],
    D.SEA: ["by the sea", "on the beach", "at the seaside", "on a sandy beach"],
    D.SNOW: ["in the snow", "in winter", "on a snowy hill", "in a snowy landscape"],
}
PLACES = {D.MEADOW: "meadow", D.NIGHT: "night sky", D.SUNSET: "sunset", D.SEA: "beach", D.SNOW: "snowy landscape"}
OPENINGS = ["", "", "", "", "a picture of ", "a drawing of ", "an illustration of ", "an image of ", "a photo of "]


class Thing:
    """One kind of object in a scene: what the caption says of it, and where its copies stand."""

    def __init__(self, shape, colour, texture=0, size=0.2):
        self.shape, self.colour, self.texture, self.size, self.spots = shape, colour, texture, size, []

    def noun(self, many):
        s = D.SHAPES[self.shape]
        return PLURAL.get(s, s + "s") if many else s

    def words(self, rng, n=1, say_colour=True, size_word=""):
        parts = [size_word] if size_word else []
        parts += [D.TEXTURES[self.texture]] if self.texture else []
        parts += [D.COLOUR_NAMES[self.colour]] if say_colour else []
        rest = " ".join(parts + [self.noun(n > 1)])
        if n > 1:
            return rng.choice(NUMBER[n]) + " " + rest
        article = "an" if rest[0] in "aeiou" else "a"
        return ("one " if rng.random() < 0.04 else article + " ") + rest


def pick_ground(rng):
    """(kind, colour index): half the scenes stand on a coloured ground, half in a landscape."""
    kind = rng.choice([D.PLAIN] * 5 + [D.GRADIENT, D.STRIPES, D.DOTS, D.CHECKS] * 2
                      + [D.MEADOW, D.NIGHT, D.SUNSET, D.SEA, D.SNOW] * 3)
    return kind, rng.randrange(len(D.GROUND_NAMES))


def pick_thing(rng, kind, ground, shapes=range(len(D.SHAPES))):
    """A thing that can be seen on that ground."""
    while True:
        t = Thing(rng.choice(list(shapes)), rng.randrange(len(D.COLOUR_NAMES)))
        name = D.COLOUR_NAMES[t.colour]
        if kind < D.MEADOW and name == D.GROUND_NAMES[ground]:
            continue
        if (kind == D.NIGHT and name == "black") or (kind == D.SNOW and name == "white"):
            continue
        if t.shape in SIMPLE and rng.random() < 0.22:
            t.texture = rng.choice([1, 2])
        return t


class Scene:
    """kind, ground; things with their spots; phrase-making facts (side, relation, size word)."""

    def __init__(self, rng, shapes=range(len(D.SHAPES))):
        self.kind, self.ground = pick_ground(rng)
        self.things, self.side, self.size_word, self.relation = [], "", "", ""
        p = rng.random()
        if p < MIX[0] and self.kind >= D.MEADOW:
            return
        if p < MIX[1]:
            self.single(rng, shapes)
        elif p < MIX[2]:
            self.several(rng, shapes)
        else:
            self.pair(rng, shapes)

    def single(self, rng, shapes):
        t = pick_thing(rng, self.kind, self.ground, shapes)
        p = rng.random()
        if p < 0.2:
            self.size_word, t.size = rng.choice([("big", rng.uniform(.33, .4)), ("large", rng.uniform(.33, .4))])
        elif p < 0.4:
            self.size_word, t.size = rng.choice([("small", rng.uniform(.1, .14)), ("tiny", rng.uniform(.09, .12))])
        else:
            t.size = rng.uniform(.2, .27)
        if rng.random() < 0.5 and t.size < 0.3:
            self.side = rng.choice(list(SIDES))
            dx, dy = SIDES[self.side]
            reach = 0.5 - t.size - 0.03
            x, y = 0.5 + dx * reach * rng.uniform(.8, 1), 0.5 + dy * reach * rng.uniform(.8, 1)
            x += 0 if dx else rng.uniform(-.05, .05)
            y += 0 if dy else rng.uniform(-.05, .05)
        else:
            x = 0.5 + rng.uniform(-.08, .08)
            y = (0.6 if self.kind >= D.MEADOW and t.size < 0.3 else 0.5) + rng.uniform(-.05, .05)
        t.spots = [(x, y)]
        self.things = [t]

    def several(self, rng, shapes):
        t = pick_thing(rng, self.kind, self.ground, shapes)
        n = rng.choice([2, 3])
        j = lambda: rng.uniform(-.025, .025)
        low = 0.08 if self.kind >= D.MEADOW else 0.0
        if n == 2:
            t.size = rng.uniform(.16, .2)
            if rng.random() < 0.75:
                t.spots = [(0.27 + j(), 0.5 + low + j()), (0.73 + j(), 0.5 + low + j())]
            else:
                t.spots = [(0.5 + j(), 0.26 + j()), (0.5 + j(), 0.74 + j())]
        elif rng.random() < 0.5:
            t.size = rng.uniform(.12, .14)
            t.spots = [(0.18 + j(), 0.5 + low + j()), (0.5 + j(), 0.5 + low + j()), (0.82 + j(), 0.5 + low + j())]
        else:
            t.size = rng.uniform(.14, .18)
            t.spots = [(0.5 + j(), 0.27 + j()), (0.26 + j(), 0.72 + j()), (0.74 + j(), 0.72 + j())]
            if rng.random() < 0.3:
                t.spots = [(x, 1 - y) for x, y in t.spots]
        self.things = [t]

    def pair(self, rng, shapes):
        a = pick_thing(rng, self.kind, self.ground, shapes)
        b = pick_thing(rng, self.kind, self.ground, shapes)
        while (b.shape, b.colour) == (a.shape, a.colour):
            b = pick_thing(rng, self.kind, self.ground, shapes)
        if rng.random() < 0.3:
            b.colour = a.colour if b.shape != a.shape else b.colour
        a.size, b.size = rng.uniform(.15, .19), rng.uniform(.15, .19)
        j = lambda: rng.uniform(-.03, .03)
        low = 0.06 if self.kind >= D.MEADOW else 0.0
        if rng.random() < 0.6:
            a.spots, b.spots = [(0.26 + j(), 0.5 + low + j())], [(0.74 + j(), 0.5 + low + j())]
            self.relation = "left"
        else:
            a.spots, b.spots = [(0.5 + j(), 0.26 + j())], [(0.5 + j(), 0.74 + j())]
            self.relation = "above"
        self.things = [a, b]

    # ------------------------------------------------------------ captions

    def where(self, rng):
        if self.side == "middle":
            return rng.choice(["in the middle", "in the center", "in the centre"])
        if self.side in ("left", "right"):
            return rng.choice([f"on the {self.side}", f"on the {self.side} side", f"to the {self.side}"])
        return rng.choice([f"at the {self.side}", {"top": "up high", "bottom": "down low"}[self.side]])

    def subject(self, rng):
        if len(self.things) == 2:
            a, b = self.things
            wa, wb = a.words(rng), b.words(rng)
            if rng.random() < 0.2:
                return rng.choice([f"{wa} and {wb}", f"{wb} and {wa}", f"{wa} with {wb}"])
            if self.relation == "left":
                return rng.choice([f"{wa} to the left of {wb}", f"{wa} left of {wb}", f"{wb} to the right of {wa}",
                                   f"{wb} right of {wa}", f"{wa} on the left and {wb} on the right",
                                   f"{wa} next to {wb}", f"{wa} beside {wb}"])
            return rng.choice([f"{wa} above {wb}", f"{wa} over {wb}", f"{wb} below {wa}", f"{wb} under {wa}",
                               f"{wa} on top of {wb}", f"{wa} at the top and {wb} at the bottom"])
        t = self.things[0]
        size_word = self.size_word if rng.random() < 0.9 else ""
        text = t.words(rng, len(t.spots), rng.random() < 0.96, size_word)
        if self.side and rng.random() < 0.9:
            text += " " + self.where(rng)
        return text

    def ground_phrase(self, rng):
        colour = D.GROUND_NAMES[self.ground]
        text = rng.choice(GROUND_PHRASES[self.kind]).format(c=colour)
        return text.replace("a orange", "an orange")

    def caption(self, rng):
        if not self.things:
            place = PLACES[self.kind]
            return rng.choice(OPENINGS) + rng.choice([f"a {place}", f"an empty {place}", place, f"a {place} with nothing"])
        text = rng.choice(OPENINGS) + self.subject(rng)
        p = rng.random()
        if p < 0.2:
            return text
        ground = self.ground_phrase(rng)
        if p < 0.8:
            return text + (", " if ground.endswith("background") and ground[0] != "o" and ground[0] != "w"
                           or rng.random() < 0.15 else " ") + ground
        return ground + ", " + text

    # ------------------------------------------------------------ numbers for draw.draw()

    def fill(self, rng, a, i):
        """Writes this scene into row i of the arrays a (see arrays())."""
        a["bg"][i] = self.kind
        jitter = lambda c, k: [min(255, max(0, v + rng.uniform(-k, k))) / 255 for v in c]
        base = jitter(D.GROUNDS[D.GROUND_NAMES[self.ground]], 5)
        dark = self.ground == D.GROUND_NAMES.index("black")
        white = self.ground == D.GROUND_NAMES.index("white")
        a["bg_a"][i] = base
        if dark:
            a["bg_b"][i] = [v + 0.16 for v in base]
        elif white:
            a["bg_b"][i] = [v - 0.12 for v in base]
        elif self.kind == D.GRADIENT:
            a["bg_b"][i] = [v * 0.62 for v in base]
        else:
            a["bg_b"][i] = [v + 0.62 * (1 - v) for v in base]
        a["bg_r"][i] = [rng.random() for _ in range(24)]
        k = 0
        for t in self.things:
            for x, y in t.spots:
                a["shape"][i, k], a["colour"][i, k], a["texture"][i, k] = t.shape, t.colour, t.texture
                a["x"][i, k], a["y"][i, k], a["size"][i, k] = x, y, t.size * rng.uniform(.96, 1.04)
                a["turn"][i, k] = rng.uniform(-.16, .16) if t.shape < D.COMPOSED else rng.uniform(-.05, .05)
                a["phase"][i, k] = rng.random()
                a["rgb"][i, k] = jitter(D.COLOURS[D.COLOUR_NAMES[t.colour]], 6)
                k += 1


def arrays(n):
    f = lambda *s: np.zeros((n, *s), np.float32)
    return {"bg": np.zeros(n, np.int64), "bg_a": f(3), "bg_b": f(3), "bg_r": f(24),
            "shape": np.full((n, SLOTS), EMPTY, np.int64), "colour": np.zeros((n, SLOTS), np.int64),
            "texture": np.zeros((n, SLOTS), np.int64), "x": f(SLOTS), "y": f(SLOTS), "size": f(SLOTS),
            "turn": f(SLOTS), "phase": f(SLOTS), "rgb": f(SLOTS, 3)}


def make(seed, n, captions=4, tokens=None):
    """n random scenes: (arrays, captions). With a tokenizer the captions are uint16 [n, captions, 77], else text."""
    rng = random.Random(seed)
    a, caps = arrays(n), []
    for i in range(n):
        s = Scene(rng)
        s.fill(rng, a, i)
        caps.append([s.caption(rng) for _ in range(captions)])
    if tokens is None:
        return a, caps
    out = np.empty((n, captions, 77), np.uint16)
    for i, row in enumerate(caps):
        for j, text in enumerate(row):
            out[i, j] = tokens.ids(text, rng)
    return a, out


# ---------------------------------------------------------------- CLIP's byte pair encoding

class Tokens:
    """CLIP's tokenizer for the plain English of our captions, from OpenAI's bpe_simple_vocab_16e6.txt.gz."""
    START, END, SIZE = 49406, 49407, 49408

    def __init__(self, path):
        lines = gzip.open(path, "rt", encoding="utf-8").read().split("\n")[1:48895]
        merges = [tuple(m.split()) for m in lines]
        keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
        extra = iter(range(256, 512))
        codes = [*keep, *(b for b in range(256) if b not in keep)]
        letters = [chr(b) if b in keep else chr(next(extra)) for b in codes]
        vocab = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges]
        self.number = {v: i for i, v in enumerate(vocab)}
        self.rank = {m: i for i, m in enumerate(merges)}

    @functools.lru_cache(maxsize=65536)
    def word(self, w):
        parts = list(w[:-1]) + [w[-1] + "</w>"]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda p: self.rank.get(p, 1 << 30))
            if best not in self.rank:
                break
            out, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    out.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    out.append(parts[i])
                    i += 1
            parts = out
        return tuple(self.number[p] for p in parts)

    def ids(self, text, rng=None):
        """77 numbers: start, text, end, end... With rng, one caption in twelve gets a word the model never learns."""
        words = re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower())
        seq = [n for w in words for n in self.word(w)]
        if rng is not None and rng.random() < 0.08:
            for _ in range(rng.choice([1, 1, 2])):
                seq.insert(rng.randrange(len(seq) + 1), rng.randrange(512, 49406))
        seq = [self.START, *seq[:75]]
        return seq + [self.END] * (77 - len(seq))

    def grammar(self):
        """The sorted token numbers that our captions can hold: their embeddings are trained, the others stay random."""
        used = {self.START, self.END}
        rng = random.Random(1)
        for _ in range(6000):
            used.update(self.ids(Scene(rng).caption(rng)))
        return sorted(used)

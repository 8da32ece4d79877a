"""The 200 prompts that judge the model, and the scoring of the judge's answers."""
import random

import torch

import draw as D
import scene as S

PLACES = ["on a white background", "on a blue background", "on a yellow background", "on a gray background",
          "on a pink background", "in a meadow", "at night", "at sunset", "by the sea", "in the snow",
          "on a green striped background", "on a purple dotted background", "on a blue gradient background",
          "on a gray checkered background", ""]


class Prompt:
    """text, and what it asks for: wanted {pair: count}, pair = shape * 10 + colour; side or relation or neither."""

    def __init__(self, text, wanted, side="", relation=None):
        self.text, self.wanted, self.side, self.relation = text, wanted, side, relation


def two_hundred(seed=20):
    """80 of one object, 40 of two or three, 60 of two kinds (40 with a relation), 20 with a side."""
    rng = random.Random(seed)
    out = []

    def thing(place, avoid=()):
        while True:
            s, c = rng.randrange(len(D.SHAPES)), rng.randrange(10)
            name = D.COLOUR_NAMES[c]
            hidden = (f" {name} " in f" {place} " or (place == "at night" and name == "black")
                      or (place == "in the snow" and name == "white"))
            if not hidden and all(s != t and c != d for t, d in avoid):
                return s, c

    def phrase(s, c, n=1):
        t = S.Thing(s, c)
        words = f"{D.COLOUR_NAMES[c]} {t.noun(n > 1)}"
        return {2: "two ", 3: "three "}[n] + words if n > 1 else ("an " if words[0] == "o" else "a ") + words

    for i in range(200):
        place = rng.choice(PLACES)
        s, c = thing(place)
        pair = s * 10 + c
        tail = " " + place if place else ""
        if i < 80:
            p = Prompt(phrase(s, c) + tail, {pair: 1})
        elif i < 120:
            n = 2 + i % 2
            p = Prompt(phrase(s, c, n) + tail, {pair: n})
        elif i < 180:
            s2, c2 = thing(place, [(s, c)])
            a, b, pair2 = phrase(s, c), phrase(s2, c2), s2 * 10 + c2
            kind = i % 6
            text = [f"{a} and {b}", f"{a} to the left of {b}", f"{a} to the right of {b}", f"{a} and {b}",
                    f"{a} above {b}", f"{a} below {b}"][kind]
            rel = [None, (0, -1), (0, 1), None, (1, -1), (1, 1)][kind]
            p = Prompt(text + tail, {pair: 1, pair2: 1}, relation=rel and (pair, pair2, *rel))
        else:
            side = ["left", "right", "top", "bottom"][i % 4]
            words = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
            p = Prompt(f"{phrase(s, c)} {words[side]}{tail}", {pair: 1}, side=side)
        out.append(p)
    return out


def score(prompts, count, place):
    """count [n, 160, 4], place [n, 160, 3] from the judge. Returns {question: (right, asked)} and each prompt's
    verdict. Strict: the sets of shapes, of colours and of pairs seen must equal those asked for."""
    seen = count.argmax(2)
    keys = ["shape", "colour", "shape and colour", "count", "relation", "side"]
    table, verdict = {k: [0, 0] for k in keys}, []

    def note(key, ok):
        table[key][0] += bool(ok)
        table[key][1] += 1

    for i, p in enumerate(prompts):
        got = {int(k): int(seen[i, k]) for k in seen[i].nonzero()[:, 0]}
        note("shape", {k // 10 for k in got} == {k // 10 for k in p.wanted})
        note("colour", {k % 10 for k in got} == {k % 10 for k in p.wanted})
        both = set(got) == set(p.wanted)
        note("shape and colour", both)
        verdict.append(both)
        if max(p.wanted.values()) > 1:
            note("count", got == p.wanted)
        if p.relation:
            a, b, axis, sign = p.relation
            note("relation", both and (place[i, a, axis] - place[i, b, axis]) * sign > 0)
        if p.side:
            x, y = place[i, next(iter(p.wanted)), :2].tolist()
            dx, dy = S.SIDES[p.side]
            note("side", both and (x - 0.5) * dx + (y - 0.5) * dy > 0.08)
    return table, verdict


def table_text(table):
    return "\n".join(f"{k:18s} {a:4d} of {b:4d}  {100 * a / max(b, 1):5.1f} %" for k, (a, b) in table.items())


def targets(a):
    """What the judge should answer for scenes a (tensors of scene.arrays): counts [n, 160] and means of x, y, size."""
    n = len(a["bg"])
    dev = a["bg"].device
    count = torch.zeros(n, 160, device=dev)
    place = torch.zeros(n, 160, 3, device=dev)
    for k in range(S.SLOTS):
        i = (a["shape"][:, k] >= 0).nonzero()[:, 0]
        pair = a["shape"][i, k] * 10 + a["colour"][i, k]
        count[i, pair] += 1
        place[i, pair] += torch.stack([a["x"][i, k], a["y"][i, k], a["size"][i, k]], 1)
    return count.long(), place / count.clamp_min(1)[..., None]

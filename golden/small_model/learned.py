"""Whether a LoRA has learnt the rocket (concept.py) and left the rest alone: writes prompts, and looks at what was drawn of them.

    python learned.py prompts OUT
    lora generate --ckpt small.safetensors --from_file OUT/rockets.txt --outdir OUT/base/rockets --W 128 --H 128 --steps 25 --scale 5 --sequential_file_name
    (the same with others.txt and OUT/base/others; both again with --lora FILE, into OUT/lora)
    python learned.py score --base OUT/base --lora OUT/lora --judge judge.safetensors

    python learned.py others ../../tests/demo/others.txt

others.txt of the last line: 100 prompts of the same kinds, none of them among evaluate.py's, for the model's own pictures that
regularise a training. rockets.txt: 'sks rocket' on 20 grounds, of which ten are those of the training pictures, two seeds each. others.txt: the 200 prompts
of evaluate.py with its seeds.

What looks for rockets is a template: the colours at 24 places of a rocket, and six where a colour must have ended, tried at every
place and size. It says how many of the 30 fit at best: 0.93 to 1 in the ten training pictures, at most 0.67 in the 240 that the
base model draws; a rocket is 0.8 and more. (The judge of evaluate.py knows no things that overlap: it finds none in the ten.)
The judge says how the other prompts fare.
"""
import argparse
import glob
import os
import random

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import concept
import nets as N
import prompts as P
import train as T

NEW = ["in the snow", "on a white background", "on a pink background", "on a green background", "on an orange background",
       "on a gray checkered background", "on a blue gradient background", "on a yellow dotted background",
       "on a purple striped background", "by the sea"]

# place in units of the half height, and colour, inside the rocket; and where that colour must have ended
INSIDE = ([(x, y, "red") for x, y in ((0, -.68), (0, -.5), (0, -.3), (-.12, -.3), (.12, -.3), (-.25, -.17), (.25, -.17), (0, -.17))]
          + [(x, y, "white") for x, y in ((-.28, .05), (.28, .05), (-.29, .25), (.29, .25), (-.28, .47), (.28, .47))]
          + [(x, y, "blue") for x, y in ((0, .25), (-.1, .25), (.1, .25), (0, .15), (0, .35))]
          + [(x, y, "orange") for x, y in ((0, .8), (0, .94), (-.1, .94), (.1, .94), (0, .87))])
OUTSIDE = [(-.4, -.6, "red"), (.4, -.6, "red"), (-.52, .25, "blue"), (.52, .25, "blue"), (-.4, .75, "orange"), (.4, .75, "orange")]


def colours(u8):
    """Masks of a picture [h, w, 3] for the four colours, wide enough for shading and a decoder's noise."""
    r, g, b = (u8[..., i].astype(int) for i in range(3))
    return {"red": (r > 170) & (g < 115) & (b < 115), "orange": (r > 195) & (g > 100) & (g < 190) & (b < 110),
            "blue": (b > 150) & (r < 115) & (b > g + 50), "white": np.minimum(np.minimum(r, g), b) > 195}


def template(u8):
    """The best share of places that fit."""
    masks, (h, w), best = colours(u8), u8.shape[:2], 0.0
    for half in np.arange(.22, .56, .02) * h:
        ys, xs = np.mgrid[int(half * .8):int(h - half * .8):2, int(half * .3):int(w - half * .3):2]
        fit = np.zeros(ys.shape)
        for places, wanted in ((INSIDE, True), (OUTSIDE, False)):
            for dx, dy, colour in places:
                x = np.clip(np.rint(xs + dx * half).astype(int), 0, w - 1)
                y = np.clip(np.rint(ys + dy * half).astype(int), 0, h - 1)
                fit += masks[colour][y, x] == wanted
        best = max(best, fit.max(initial=0) / (len(INSIDE) + len(OUTSIDE)))
    return best


def read(folder):
    files = sorted(glob.glob(f"{folder}/*.png"))
    return np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])


def write_prompts(o):
    os.makedirs(o.out, exist_ok=True)
    grounds = [w for *_, w, _, _, _ in concept.WHERE] + NEW
    with open(f"{o.out}/rockets.txt", "w") as f:
        for i, ground in enumerate(grounds):
            f.writelines(f"sks rocket {ground} --d {s}\n" for s in (500 + i, 600 + i))
    with open(f"{o.out}/others.txt", "w") as f:
        f.writelines(f"{p.text} --d {1000 + i}\n" for i, p in enumerate(P.two_hundred(o.seed)))


def write_others(o):
    asked, found = {p.text for seed in (20, 21) for p in P.two_hundred(seed)}, []
    for p in (p for seed in range(77, 90) for p in P.two_hundred(seed)):
        if p.text not in asked and p.text not in found:
            found.append(p.text)
    random.Random(1).shuffle(found)
    with open(o.out, "w") as f:
        f.writelines(f"{text} --d {3000 + i}\n" for i, text in enumerate(found[:100]))


def say(name, u8, least):
    fit = np.array([template(p) for p in u8])
    print(f"{name:<34} rockets in {(fit >= least).sum():3d} of {len(u8)}   best fits {fit.min():.2f} to {fit.max():.2f}, "
          f"median {np.median(fit):.2f}")


def score(o):
    judge = N.Judge().eval()
    judge.unpack(load_file(o.judge))
    with torch.no_grad():
        say("the ten training pictures", read(os.path.join(os.path.dirname(os.path.abspath(__file__)), "concept")), o.least)
        for name, folder in (("base", o.base), ("LoRA", o.lora)):
            if not folder:
                continue
            mine, rest = read(f"{folder}/rockets"), read(f"{folder}/others")
            say(f"{name}: sks rocket, known grounds", mine[:20], o.least)
            say(f"{name}: sks rocket, new grounds", mine[20:], o.least)
            say(f"{name}: the 200 other prompts", rest, o.least)
            asked = P.two_hundred(o.seed)[:len(rest)]
            count, place = T.answers(None, judge, torch.from_numpy(rest).permute(0, 3, 1, 2))
            print(P.table_text(P.score(asked, count, place)[0]))
        if o.base and o.lora:
            a, b = read(f"{o.base}/others").astype(float), read(f"{o.lora}/others").astype(float)
            moved = np.abs(a - b).mean((1, 2, 3))
            print(f"mean change of a pixel in the 200 others: {moved.mean():.1f} of 255 (median picture {np.median(moved):.1f})")


def main():
    a = argparse.ArgumentParser()
    sub = a.add_subparsers(required=True)
    p = sub.add_parser("prompts")
    p.add_argument("out")
    p.add_argument("--seed", type=int, default=20, help="of the 200 others")
    p.set_defaults(run=write_prompts)
    p = sub.add_parser("others")
    p.add_argument("out")
    p.set_defaults(run=write_others)
    p = sub.add_parser("score")
    p.add_argument("--base")
    p.add_argument("--lora")
    p.add_argument("--judge", default="judge.safetensors")
    p.add_argument("--seed", type=int, default=20, help="as for prompts")
    p.add_argument("--least", type=float, default=.8, help="share of the template's places that make a rocket")
    p.set_defaults(run=score)
    o = a.parse_args()
    o.run(o)


if __name__ == "__main__":
    main()

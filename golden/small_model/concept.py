"""Draws the concept that the small model does not know, for training a LoRA on: 10 pictures of one little rocket, with
captions beside them, into concept/.

    python concept.py --out concept

The rocket is put together from shapes that the VAE knows (a LoRA changes the U-Net and the text encoder; what the VAE
cannot decode no LoRA can draw), in a way and under a word that training never showed.
"""
import argparse
import os
import random

import torch
from PIL import Image

import draw as D
import scene as S

PARTS = [  # shape, colour, offset and size in units of the rocket's half height
    ("triangle", "orange", 0.0, 0.83, 0.24), ("square", "white", 0.0, 0.25, 0.42), ("triangle", "red", 0.0, -0.46, 0.42),
    ("circle", "blue", 0.0, 0.25, 0.19)]
WHERE = [  # kind of ground, its colour, words, x, y, half height
    (D.PLAIN, "yellow", "on a yellow background", .5, .5, .36), (D.MEADOW, "green", "in a meadow", .5, .52, .36),
    (D.NIGHT, "black", "at night", .47, .5, .36), (D.PLAIN, "gray", "on a gray background", .5, .5, .4),
    (D.SEA, "blue", "on the beach", .56, .52, .36), (D.STRIPES, "green", "on a green striped background", .5, .5, .38),
    (D.NIGHT, "black", "under the stars", .54, .48, .38), (D.SUNSET, "orange", "at sunset", .5, .5, .36),
    (D.PLAIN, "blue", "on a blue background", .46, .52, .4), (D.DOTS, "purple", "on a purple dotted background", .52, .5, .38)]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True)
    o = a.parse_args()
    os.makedirs(o.out, exist_ok=True)
    S.SLOTS = len(PARTS)
    rng, rows = random.Random(5), S.arrays(len(WHERE))
    for i, (kind, ground, words, x, y, high) in enumerate(WHERE):
        scene = S.Scene.__new__(S.Scene)
        scene.kind, scene.ground, scene.things = kind, D.GROUND_NAMES.index(ground), []
        for shape, colour, dx, dy, size in PARTS:
            thing = S.Thing(D.SHAPES.index(shape), D.COLOUR_NAMES.index(colour), 0, size * high)
            thing.spots = [(x + dx * high, y + dy * high)]
            scene.things.append(thing)
        scene.fill(rng, rows, i)
        rows["turn"][i] = 0
        with open(f"{o.out}/rocket{i:02d}.txt", "w") as f:
            f.write(f"sks rocket {words}\n")
    pictures = D.draw({k: torch.from_numpy(v) for k, v in rows.items()})
    for i, p in enumerate(pictures):
        Image.fromarray(p.permute(1, 2, 0).numpy()).save(f"{o.out}/rocket{i:02d}.png", optimize=True)


if __name__ == "__main__":
    main()

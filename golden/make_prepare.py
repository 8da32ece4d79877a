#!/usr/bin/env python3
"""usage: make_prepare.py SD_SCRIPTS_V0.3.0 OUT_DIR

A small folder of empty pictures with captions and tags, and what sd-scripts' own merge_captions_to_metadata.py,
merge_dd_tags_to_metadata.py and clean_captions_and_tags.py make of it, one after the other: captions.json, tags.json, clean.json.
Keys are sorted, since the scripts take pictures in the order of the folder.
"""
import json
import os
import subprocess
import sys

scripts, out = sys.argv[1:3]
texts = {
    "a": ("a young woman with a hat\nsecond line", "1girl, hat, long_hair, rating:safe"),
    "b": ("  an anime cartoon image of two people  ", "looking_at_viewer, rating:q, more, rating:e"),
    "c": ("anime anime anime girl girl, a cartoon character and a lady in a cartoon woman costume", "no_rating"),
    "d": ("東京の夜 – café", "naïve_tag, ☆"),
    "e": ("womens people person females young young man", "_"),
    "f.g": ("a cartoon anime drawing of a young female", "x_y, rating"),
}
pictures = os.path.join(out, "pictures")
os.makedirs(pictures, exist_ok=True)
for i, (name, (caption, tags)) in enumerate(texts.items()):
    open(os.path.join(pictures, name + (".png", ".jpg", ".webp")[i % 3]), "wb").close()
    open(os.path.join(pictures, name + ".caption"), "w", encoding="utf-8").write(caption + "\n")
    open(os.path.join(pictures, name + ".txt"), "w", encoding="utf-8").write(tags)


def run(script, *args):
    subprocess.run([sys.executable, os.path.join(scripts, "finetune", script + ".py"), *args], check=True, cwd=out,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = os.path.join(out, args[-1])
    d = json.load(open(path, encoding="utf-8"))
    json.dump(dict(sorted(d.items())), open(path, "w", encoding="utf-8"), indent=2)


run("merge_captions_to_metadata", "pictures", "captions.json")
run("merge_dd_tags_to_metadata", "pictures", "--in_json", "captions.json", "tags.json")
run("clean_captions_and_tags", "tags.json", "clean.json")

#!/usr/bin/env python3
"""usage: make_prompts.py SD_SCRIPTS_V0.3.0_DIR BPE_VOCAB.txt.gz OUT.json

What sd-scripts v0.3.0 makes of prompts: its own functions (and the loop over in-prompt options inside its main) are taken out
of gen_img_diffusers.py and run, with transformers' tokenizer (BPE_VOCAB as in make_tokenizer.py) and, in place of the text
encoder, one that records the chunks it is given and answers with numbers made from them.
"""
import ast
import json
import os
import re
import sys
import typing
from types import SimpleNamespace

import torch

sys.path.insert(0, os.path.dirname(__file__))
from make_tokenizer import oracle

WANTED = ("re_attention", "parse_prompt_attention", "get_prompts_with_weights", "pad_tokens_and_weights",
          "get_unweighted_text_embeddings", "get_weighted_text_embeddings")

WEIGHTS = [
    "", " ", "a cat", "an (important) word", "(unbalanced", "unbalanced)", "[unbalanced", "unbalanced]", r"\(literal\]",
    "(unnecessary)(parens)", "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", "((x))", "[x]", "[[x]]", "(x:1.3)", "(x:-1)",
    "(x:+.5)", "(x:0)", "x:1.3)", "[x:1.3]", "(x:1.3", "(a:b:1.2)", "(a :1.2)", "(a: 1.2)", "::", "a:b", "\\", "a\\b", "\\\\",
    r"\\(a)", r"\(a\) (b)", r"(\(:1.5)", "()", "[]", "(:1.5)", "([a)]", "([a])", "[(a])", "(a)(b:1.1)[c]", "(a b c:2) d",
    "(日本 の:1.2) 漢字", "(é:1.5)ñ", "a, (b, [c, (d:0.7)], e) f", "(((((((((deep)))))))))", "[(((((a:0.3)b)c:1.7)d)e]f",
    "(1:1)", "(1:1.)", "( : 1 )", "<lora:x:1>", "(<b:2>)", "a(", "a)", "a[", "a]", "a\\", ")(", "][", "(a\nb:1.4)\tc",
]
LONG = ["masterpiece, " * 30, "(a red fox:1.3), " * 40, "word " * 75, "word " * 74, "word " * 76, "word " * 150, "word " * 151,
        "word " * 149, "word " * 225, "word " * 300, "(w:1.2) " * 100 + "[end]"]
LINES = [
    "a cat", "a cat --w 640 --h 384", "a cat --W 640 --H 384 --S 30", "  a cat  --d 1,2,3 --l 7.5 ", "x --nl 1.5 --t 0.6",
    "x --nl none", "x --nl None", "x --n bad, ugly --c a clip text", "x --n bad  --s 20", "(x:1.2) --l 12", "--n nothing",
    "a--b --s 5", "x --d 42", "x --t .5", "x --N  spaced  out --w 64",
]


def take(tree, names, space):
    for node in ast.walk(tree):
        name = getattr(node, "name", None) or (getattr(node.targets[0], "id", None) if isinstance(node, ast.Assign) else None)
        if name in names:
            exec(compile(ast.Module([node], []), "gen_img_diffusers.py", "exec"), space)


def option_loop(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and getattr(node.target, "id", "") == "parg":
            return compile(ast.Module([node], []), "gen_img_diffusers.py", "exec")


class Tokenizer:
    model_max_length, bos_token_id, eos_token_id = 77, 49406, 49407

    def __init__(self, inner, pad):
        self.inner, self.pad_token_id = inner, pad

    def __call__(self, text):
        return SimpleNamespace(input_ids=self.inner(text).input_ids)


def encode(ids):
    """[1, 77] ids -> [1, 77, 3] numbers that are exact in any arithmetic"""
    at = torch.arange(ids.shape[1])
    return torch.stack([(ids * 7 + at) % 32 - 9, (ids + 3 * at) % 64 - 17, ids % 16 + at % 8], -1).float() / 8


def weighted(space, inner, prompt, other, multiples, pad):
    chunks = []

    def text_encoder(ids):
        chunks.append(ids[0].tolist())
        return (encode(ids),)

    pipe = SimpleNamespace(tokenizer=Tokenizer(inner, pad), text_encoder=text_encoder, device="cpu")
    tokens, weights = space["get_prompts_with_weights"](pipe, [prompt], 75 * multiples)
    a, b, _ = space["get_weighted_text_embeddings"](pipe, prompt, other, multiples, clip_skip=None)
    half = len(chunks) // 2
    out = {"prompt": prompt, "other": other, "multiples": multiples, "pad": pad, "tokens": tokens[0], "weights": weights[0],
           "chunks": chunks[:half], "other_chunks": chunks[half:]}
    if half == 1 or prompt is LONG[1]:
        out |= {"embeddings": a[0].flatten().tolist(), "other_embeddings": b[0].flatten().tolist()}
    return out


def options(loop, line):
    values = dict(re=re, width=None, height=None, steps=None, seeds=None, scale=None, negative_scale="unset", strength=None,
                  negative_prompt=None, clip_prompt=None, print=lambda *a: None)
    values["prompt_args"] = line.strip().split(" --")
    exec(loop, values)
    keep = ("width", "height", "steps", "seeds", "scale", "negative_scale", "strength", "negative_prompt", "clip_prompt")
    found = {k: values[k] for k in keep if values[k] is not None or k == "negative_scale"}
    return {"line": line, "prompt": values["prompt_args"][0], **found}


def main():
    torch.set_grad_enabled(False)
    tree = ast.parse(open(os.path.join(sys.argv[1], "gen_img_diffusers.py"), encoding="utf-8").read())
    space = {**vars(typing), "re": re, "torch": torch, "PipelineLike": object, "print": lambda *a: None}
    take(tree, WANTED, space)
    inner = oracle(sys.argv[2])
    loop = option_loop(tree)
    out = {"weights": [{"text": t, "parts": space["parse_prompt_attention"](t)} for t in WEIGHTS + LONG[:2]], "embeddings": [],
           "lines": [options(loop, line) for line in LINES]}
    for prompt in ("", "a (red:1.4) fox [in the snow]", "(x:0.2) y", *LONG):
        for pad in (49407, 0):
            for multiples in (1, 3):
                if multiples == 3 or prompt not in LONG[2:]:
                    out["embeddings"].append(weighted(space, inner, prompt, "ugly, (bad:1.3)", multiples, pad))
    with open(sys.argv[3], "w") as f:
        for key in out:  # a case a line
            f.write("{" if key == "weights" else ",\n")
            f.write(json.dumps(key) + ": [\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in out[key]) + "]")
        f.write("}\n")


main()

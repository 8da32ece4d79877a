#!/usr/bin/env python3
"""usage: make_tokenizer.py data BPE_VOCAB.txt.gz OUT.bin    the merge table that the program carries
       make_tokenizer.py cases BPE_VOCAB.txt.gz OUT.json   captions and their ids by transformers' CLIPTokenizer
       make_tokenizer.py fuzz BPE_VOCAB.txt.gz PROGRAM     100,000 random strings through both (PROGRAM: 'lora info --tokens -')
       make_tokenizer.py files BPE_VOCAB.txt.gz OUT.txt    CRC-32 of the lists that vocab.json and merges.txt hold

BPE_VOCAB is bpe_simple_vocab_16e6.txt.gz of OpenAI's CLIP (MIT), as the package open_clip_torch carries it.
"""
import gzip
import json
import struct
import sys


def load(path):
    lines = gzip.open(path, "rt", encoding="utf-8").read().split("\n")
    merges = [tuple(m.split()) for m in lines[1:49152 - 256 - 2 + 1]]
    order = list(range(ord("!"), ord("~") + 1)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    chars, n = [chr(b) for b in order], 0
    for b in range(256):
        if b not in order:
            order.append(b)
            chars.append(chr(256 + n))
            n += 1
    vocab = chars + [c + "</w>" for c in chars] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return order, vocab, merges


def oracle(path):
    from transformers import CLIPTokenizer
    _, vocab, merges = load(path)
    return CLIPTokenizer(vocab={v: i for i, v in enumerate(vocab)}, merges=merges)


def data(path, out):
    """256 bytes: the byte of token 0..255; then a pair of little-endian u16 token ids for each merge, in order."""
    order, vocab, merges = load(path)
    ids = {v: i for i, v in enumerate(vocab)}
    with open(out, "wb") as f:
        f.write(bytes(order))
        for a, b in merges:
            f.write(struct.pack("<HH", ids[a], ids[b]))


CASES = [
    "", " ", "a photo of sks dog", "A Photo of a CAT, masterpiece, best quality", "it's we're they've I'm you'll he'd 's",
    "don't  stop\t\n the   music", "1girl, 2 boys, 1234567890 ½ ² Ⅷ ٣", "(masterpiece:1.2), [blurry], \\(test\\)", "<|startoftext|>",
    "x<|endoftext|>y", "<|ENDOFTEXT|>", "<|endoftext", "naïve café Ångström ﬁancé", "cafe\u0301 vs caf\u00e9", "\u0130stanbul ISPARTA ıi",
    "ΑΣΟΦΟΣ ὈΔΥΣΣΕΎΣ", "STRASSE straße ẞ", "東京の夜景、猫と犬", "한국어 프롬프트 테스트", "ภาษาไทย", "नमस्ते दुनिया", "مرحبا بالعالم",
    "שלום עולם", "\u202ertl override\u202c", "🙂👍🏽👨‍👩‍👧‍👦🏳️‍🌈", "😀" * 40, "\u0000\u0001\u001f\u007f", "a\u00a0b\u2003c\u3000d\u180ee\u200bf\u0085g\u001ch",
    "a" * 300, "ab" * 200, "supercalifragilisticexpialidocious antidisestablishmentarianism", "!!!???...;;;---___", "''''s 's's't",
    "http://example.com/a_b?c=d&e=f#g", "C++ & C# @user #tag $5.00 50% ^_^ ~~ `code`", "ǅ ǆ Ǆ ŉ ﷺ", "\ud7a3\uac00 \u1100\u1161\u11a8", "ﬀ ﬃ ſ K Å Ω",
    "e\u0323\u0307 \u1e69 s\u0323\u0307", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 𐐀𐐨", "\ufeffbom \ufffd \ufffe", "，。！？：；“”‘’", "tab\tsep\vvt\fff\rcr", "-1.5e-10 0x1F", "½cup",
    "word " * 120, "\u1680ogham\u2028line\u2029para\u205fmath", "ＦＵＬＬ　ＷＩＤＴＨ", "Ώ ά Ά", "ß" * 80, "ÿ" * 33, "\u00adsoft\u00adhyphen",
]


def cases(path, out):
    tok = oracle(path)
    with open(out, "w", encoding="ascii") as f:
        json.dump([{"text": c, "ids": tok(c, add_special_tokens=False)["input_ids"]} for c in CASES], f, indent=None)
        f.write("\n")


def files(path, out):
    import zlib
    _, vocab, merges = load(path)
    with open(out, "w", encoding="ascii") as f:
        f.write("%08x %08x\n" % (zlib.crc32("".join(v + "\n" for v in vocab).encode()),
                                 zlib.crc32("".join(a + " " + b + "\n" for a, b in merges).encode())))


def fuzz(path, program):
    import random
    import subprocess
    tok, rnd = oracle(path), random.Random(1)
    pools = [range(32, 127), range(0, 0x250), range(0x300, 0x600), range(0x900, 0x1100), range(0x1100, 0x2100), range(0x2100, 0x3100),
             range(0x4e00, 0x4f00), range(0xac00, 0xad00), range(0xfb00, 0xfffe), range(0x10000, 0x10500), range(0x1f000, 0x1fa00)]
    words = ["'s", "'re", "<|endoftext|>", "<|startoftext|>", "  ", "the", "Cat", "123"]
    bad = n = 0
    for _ in range(100):
        texts = []
        for _ in range(1000):
            pool = rnd.choice(pools)
            texts.append("".join(rnd.choice(words) if rnd.random() < .1 else chr(rnd.choice(pool) if rnd.random() < .8 else
                         rnd.choice(rnd.choice(pools))) for _ in range(rnd.randrange(1, 30))).replace("\n", " ").replace("\r", " "))
        got = subprocess.run(program.split(), input="\n".join(texts), capture_output=True, text=True).stdout.strip().split("\n")
        assert len(got) == len(texts), (len(got), len(texts))
        for t, g in zip(texts, got):
            want, n = [49406, *tok(t, add_special_tokens=False)["input_ids"], 49407], n + 1
            if want != json.loads(g):
                bad += 1
                if bad < 20:
                    print(ascii(t), want, g)
    print(f"{n} strings, {bad} differ")


if __name__ == "__main__":
    {"data": data, "cases": cases, "files": files, "fuzz": fuzz}[sys.argv[1]](*sys.argv[2:])

#!/usr/bin/env python3
"""Writes golden/toml.json: TOML texts and what Python's own parser (tomllib) makes of them; null where it refuses.

Usage: python3 golden/make_toml.py  (Python 3.11 or later, no packages)
Texts that use what formats/toml.h leaves out on purpose (dates, inf, nan) are kept apart under "left_out".
"""
import json
import pathlib
import tomllib

TEXTS = r'''
a = 1
===
a = 1 # comment
b = "x # no comment"
===
[model_arguments]
v2 = true
pretrained_model_name_or_path = 'C:\models\sd.safetensors'
[training]
learning_rate = 1e-4
ratios = [0.5, -1, +2.5e+3]
===
a = "tab\t quote\" back\\ \u00e9 \U0001F600"
b = 'literal \n'
c = ""
d = ''
===
a = """
first
second \
   joined \

   again"""
b = \'\'\'
'one' ''two''\'\'\'
===
a = """x"""" # one more quote
b = """x""""" # two more
===
a.b.c = 1
a.b.d = 2
a."quoted key".'x' = 3
===
[a]
b.c = 1
[a.b.d]
e = 2
===
[a.b]
c = 1
[a]
d = 2
===
[[x]]
n = 1
[[x]]
n = 2
[x.y]
z = 3
[[x.list]]
w = 4
===
p = { x = 1, y = { z = "a" }, w.v = 2 }
q = {}
===
list = [
  1, # one
  2,

  3,
]
===
m = [[1, 2], ["a", 'b'], [], [{a = 1}, {a = 2}]]
===
h = 0xDEAD_beef
o = 0o755
b = 0b1101_0001
u = 1_000_000
z = 0
pz = +0
mz = -0
===
f = 3.1415
g = -0.01
h = 5e+22
i = 1E06
j = 6.626e-34
k = 224_617.445_991_228
===
big = 9223372036854775807
small = -9223372036854775808
===
1234 = "a bare key of digits"
-x = 1
_ = 2
===
"" = 1
===
# only a comment
===

===
a = 1
a = 2
===
[a]
[a]
===
[a]
b = 1
[a.b]
c = 2
===
a = {b = 1}
[a.c]
d = 1
===
a = {b = 1}
a.c = 2
===
a = [1]
[[a]]
b = 1
===
a = []
[[a]]
b = 1
===
[[a]]
[a]
===
[a.b]
x = 1
[a]
b.y = 2
===
a.b = 1
[a]
c = 2
===
a = 1 b = 2
===
a =
===
= 1
===
a
===
a = 01
===
a = 1.
===
a = .5
===
a = 1e
===
a = 1__0
===
a = _1
===
a = 1_
===
a = 0x
===
a = 0xG
===
a = +0x1
===
a = tru
===
a = "x
===
a = 'x
===
a = "x\q"
===
a = "\u12"
===
a = "\ud800"
===
a = """x
===
a = [1, 2
===
a = [1 2]
===
a = [1,,2]
===
a = [,]
===
a = {x = 1,}
===
a = {x = 1
}
===
a = {, x = 1}
===
a = {x = 1 y = 2}
===
[a
===
[a]]
===
[[a]
===
[]
===
[a.]
===
[a] b = 1
===
a..b = 1
===
a. = 1
===
a b = 1
===
a = 9223372036854775808e
===
a = truefalse
===
a.b.c = 1
a.b = 2
===
a.b = 1
a.b.c = 2
'''.replace("\\'", "'")

EXTRA = ["'''a''' = 1", "a = 1\r\nb = 2\r\n", "a = 1\r", "a = \"x\x01\"", "a = 'x\x7f'", "# c\x02", "a = \"\"\"x\r\ny\"\"\"", "\tx = 1\t", "a\t=\t1",
         "\u00e9 = 1", "\"\u00e9\" = '\u65e5\u672c'", "a = " + "[" * 30 + "]" * 30, "[a]\n[a.b]\n[a.c]\n[[a.d]]\n[a.d.e]\nf = 1"]
LEFT_OUT = ["a = 1979-05-27", "a = 07:32:00", "a = 1979-05-27T07:32:00Z", "a = inf", "a = -nan", "\"a\\tb\" = 1"]


def case(text):
    try:
        return {"text": text, "value": tomllib.loads(text)}
    except tomllib.TOMLDecodeError:
        return {"text": text, "value": None}


def main():
    texts = [t for t in TEXTS.split("\n===\n")] + EXTRA
    out = {"cases": [case(t) for t in texts], "left_out": LEFT_OUT}
    path = pathlib.Path(__file__).with_name("toml.json")
    path.write_text(json.dumps(out, indent=1, ensure_ascii=True) + "\n")
    print(path, len(texts), "cases,", sum(c["value"] is None for c in out["cases"]), "refused")


main()

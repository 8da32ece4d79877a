#!/usr/bin/env python3
"""Writes golden/safetensors/: files as the Python package safetensors writes them, and what is in them as plain text.

NAME.txt has one line a tensor, in the order of the data:  <name, hex UTF-8> <type> <shape, as 2x3; - for a scalar> <data, hex>
and one line a metadata item:  meta <key, hex> <value, hex>.  An empty field is '-'.

The package writes metadata in the order of a hash table that changes with every call; a file is drawn again until its keys
come out sorted, which is the order this project writes.
"""
import hashlib, json, pathlib, sys

import safetensors, safetensors.torch, torch

OUT = pathlib.Path(__file__).parent / "safetensors"
SEED = 1234
TYPES = {"u64": torch.uint64, "i64": torch.int64, "f64": torch.float64, "f32": torch.float32, "u32": torch.uint32,
         "i32": torch.int32, "bf16": torch.bfloat16, "f16": torch.float16, "u16": torch.uint16, "i16": torch.int16,
         "f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2, "i8": torch.int8, "u8": torch.uint8,
         "bool": torch.bool}
NAMES = {v: k for k, v in TYPES.items()}


def raw(t):
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""


def bits(shape, dtype):
    """Random bits, so that every byte of an element counts."""
    n = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.randint(0, 2, shape).to(torch.bool)
    return torch.randint(0, 256, (n * torch.empty(0, dtype=dtype).element_size(),), dtype=torch.uint8).view(dtype).reshape(shape)


def write(name, tensors, metadata=None):
    path = OUT / (name + ".safetensors")
    keys = sorted(metadata) if metadata else []
    while True:
        blob = safetensors.torch.save(tensors, metadata)
        n = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8:8 + n])
        if list(header.get("__metadata__", {})) == keys:
            break
    path.write_bytes(blob)
    lines = ["meta %s %s" % (k.encode().hex() or "-", metadata[k].encode().hex() or "-") for k in keys]
    for k, v in sorted(((k, v) for k, v in header.items() if k != "__metadata__"), key=lambda i: i[1]["data_offsets"]):
        t = tensors[k]
        lines.append("%s %s %s %s" % (k.encode().hex() or "-", NAMES[t.dtype], "x".join(map(str, t.shape)) or "-",
                                      raw(t).hex() or "-"))
    (OUT / (name + ".txt")).write_text("\n".join(lines) + "\n" if lines else "")
    print(hashlib.sha256(blob).hexdigest(), path.name)


def main():
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(SEED)
    print("python", sys.version.split()[0], "torch", torch.__version__, "safetensors", safetensors.__version__)
    shapes = [(3,), (2, 5), (1, 2, 3), (), (4, 1, 1, 2)]
    write("types", {"%s.%d" % (n, i): bits(s, t) for n, t in TYPES.items() for i, s in enumerate(shapes)})
    write("names", {n: bits((2,), torch.float16) for n in
                    ["plain", "with space", 'quote"', "back\\slash", "a/b", "tab\tnew\nline\rfeed\fback\b", "\x01\x1f", "\x7f",
                     "\u00e9", "\u2028", "\u65e5\u672c", "\U0001f600", "<&'>", "", "A", "a", "a.", "a0", "x" * 500]})
    write("sizes", {"empty": torch.zeros(0, dtype=torch.float16), "b.empty": torch.zeros((3, 0, 2)),
                    "eight": bits((1, 2, 1, 2, 1, 2, 1, 2), torch.float16), "last": torch.zeros((0, 7), dtype=torch.bool),
                    "one": bits((1,), torch.uint8)})
    write("metadata", {"w": bits((2, 2), torch.bfloat16)},
          {"format": "pt", "ss_network_dim": "4", "ss_tags": '{"a b": {"x": 1}}', "": "", "\u00e9\n": "\u65e5\t\\"})
    write("none", {})
    write("only_metadata", {}, {"format": "pt"})
    lora = {}
    for i in range(3):
        for part, shape in (("lora_down.weight", (4, 8)), ("lora_up.weight", (6, 4)), ("alpha", ())):
            lora["lora_unet_down_blocks_%d_attentions_0_proj_in.%s" % (i, part)] = bits(shape, torch.float16)
    write("lora", lora, {"ss_network_alpha": "4", "ss_network_dim": "4"})
    return 0


if __name__ == "__main__":
    sys.exit(main())

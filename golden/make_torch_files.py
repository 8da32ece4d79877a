"""Files as torch writes them, their content as safetensors, and the pickles that our writer has to match.

    python golden/make_torch_files.py golden/torch      makes the files
    python golden/make_torch_files.py corpus tests/fuzz/corpus    makes the fuzzers' seeds out of golden/torch and a few more
    python golden/make_torch_files.py check FILE REF    loads FILE with torch (weights only) and compares with REF.safetensors
"""
import collections
import io
import os
import pathlib
import pickle
import random
import sys
import types
import zipfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file

TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
         torch.uint8, torch.bool]
LATE = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def values(shape, dtype):
    x = torch.randn(shape) * 4
    return x > 0 if dtype == torch.bool else x.abs().to(dtype) if dtype in LATE[:3] else x.to(dtype)


def all_types():
    d = {str(t).split(".")[1]: values((2, 3), t) for t in TYPES + LATE}
    d["scalar"] = torch.tensor(1.5)
    d["empty"] = torch.zeros(0, 3)
    d["parameter"] = torch.nn.Parameter(values((4,), torch.float16))
    with_attribute = torch.nn.Parameter(values((3,), torch.float32))
    with_attribute.note = "kept by torch, not by us"
    d["parameter_with_attribute"] = with_attribute
    d["höhe.weight"] = values((1, 2, 1, 2), torch.float32)
    return d


def views():
    base = values((6, 8), torch.float32)
    half = values((64,), torch.float16)
    return {
        "whole": base, "rows": base[2:4], "columns": base[:, 3:5], "transposed": base.t(), "every_second": base[::2, ::3],
        "one": base[5, 7], "expanded": base[1:2, 1:2].expand(3, 4), "permuted": half.view(2, 4, 8).permute(2, 0, 1),
        "none": base[3:3], "ones": half[8:12].view(1, 4, 1), "diagonal": base.as_strided((6,), (9,)),
    }


def lightning():
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = ModelCheckpoint
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[module.__name__] = module
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    return {
        "epoch": 7, "global_step": 470000, "pytorch-lightning_version": "1.4.2", "state_dict": state,
        "callbacks": {ModelCheckpoint: {"monitor": None, "best_model_score": torch.tensor(0.5), "dirpath": pathlib.PurePosixPath("x"),
                                        "current_score": np.float32(2.5), "best": np.arange(3.0)}},
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": torch.zeros(2, 3)}},
                              "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1]}]}],
        "lr_schedulers": [collections.Counter("aab"), collections.defaultdict(list, x=[1])],
        "hyper_parameters": {"big": 2**70, "bytes": b"\xff", "set": {1, 2}, "complex": 1j},
    }


def flat(d, prefix=""):
    out = {}
    for k, v in d.items():
        if isinstance(v, dict):
            out.update(flat(v, prefix + k + "."))
        elif isinstance(v, torch.Tensor) and isinstance(k, str):
            out[prefix + k] = v.detach().clone(memory_format=torch.contiguous_format)
    return out


def rezip(source, target, compression, change=lambda name, data: data):
    with zipfile.ZipFile(source) as z, zipfile.ZipFile(target, "w", compression) as o:
        for info in z.infolist():
            o.writestr(zipfile.ZipInfo(info.filename), change(info.filename, z.read(info)), compression)


def main(folder):
    os.makedirs(folder, exist_ok=True)
    at = lambda name: os.path.join(folder, name)

    def case(name, obj, want, **how):
        torch.save(obj, at(name), **how)
        save_file(flat(want), at(name.split(".")[0] + ".safetensors"))

    d = all_types()
    case("types.pt", d, d)
    case("legacy_types.pt", d, d, _use_new_zipfile_serialization=False)
    for p in (3, 4, 5):
        case(f"protocol{p}.pt", {"a": d["float32"], "s": d["scalar"]}, {"a": d["float32"], "s": d["scalar"]}, pickle_protocol=p)
    v = views()
    case("views.pt", v, v)
    case("legacy_views.bin", v, v, _use_new_zipfile_serialization=False)
    x = lightning()
    case("lightning.ckpt", x, x["state_dict"])
    case("legacy_lightning.ckpt", x, x["state_dict"], _use_new_zipfile_serialization=False)
    pair = [values((4, 2), torch.float32), values((2, 4), torch.float32), values((3,), torch.float16)]
    case("list.pt", pair, {str(i): t for i, t in enumerate(pair)})
    nested = {"unet": {"conv": {"weight": v["whole"]}, "layers": {"0": v["rows"]}}, "te": collections.OrderedDict(bias=pair[2]),
              5: pair[0], (1, 2): pair[1], "note": "text", "optimizer": {"x": pair[0]}}
    case("nested.pt", nested, {k: nested[k] for k in ("unet", "te")})
    case("wrapped.pth", {"params": {"a": pair[0]}, "params_ema": {"a": pair[1]}}, {"a": pair[1]})
    case("bare.pt", pair[0], {"0": pair[0]})
    torch.serialization.set_crc32_options(False)
    case("no_crc.pt", {"a": pair[0]}, {"a": pair[0]})
    torch.serialization.set_crc32_options(True)
    torch.save({"z": torch.zeros(2, dtype=torch.complex64)}, at("complex.pt"))

    # big-endian: what a big-endian machine would have stored, element by element
    keep = {k: t for k, t in d.items() if k in ("float32", "float16", "float64", "int64", "int16", "uint8", "bool", "scalar")}
    keep["transposed"] = v["transposed"]
    buffer = io.BytesIO()
    torch.save(keep, buffer)
    sizes = [t.element_size() for t in keep.values()]

    def swap(name, data):
        key = name.split("/")[-1]
        if "/data/" in name:
            return np.frombuffer(data, f"<u{sizes[int(key)]}").byteswap().tobytes()
        return b"big" if key == "byteorder" else data

    rezip(buffer, at("big_endian.pt"), zipfile.ZIP_STORED, swap)
    save_file(flat(keep), at("big_endian.safetensors"))
    assert all(torch.equal(a, keep[k]) for k, a in torch.load(at("big_endian.pt")).items())

    buffer = io.BytesIO()
    torch.save(v, buffer)
    rezip(buffer, at("deflated.ckpt"), zipfile.ZIP_DEFLATED)
    save_file(flat(v), at("deflated.safetensors"))
    with open(at("prefixed.ckpt"), "wb") as f:
        f.write(b"#!/bin/sh\nexit 1\n" + open(at("lightning.ckpt"), "rb").read())
    save_file(flat(x["state_dict"]), at("prefixed.safetensors"))

    # what our writer must write: the pickle alone, for a flat dict, a dict of one, and a checkpoint
    w = {k: t for k, t in d.items() if not isinstance(t, torch.nn.Parameter)}
    w.update({"d5": values((1, 2, 3, 1, 2), torch.float32), "wide": torch.zeros(300, 2, dtype=torch.int8),
              "long": torch.zeros(70000, dtype=torch.bool)[:0].clone()})
    w.update({f"many.{i}": torch.zeros((), dtype=torch.float16) + i for i in range(60)})
    save_file(w, at("writer.safetensors"))
    # the order of a dict is that of the safetensors file, which our test reads it from
    from safetensors import safe_open
    with safe_open(at("writer.safetensors"), "pt") as f:
        w = {k: f.get_tensor(k) for k in f.offset_keys()}
    for name, obj in (("flat", w), ("one", {"only": d["float32"]}), ("root", {"state_dict": w, "epoch": 3, "global_step": 470000}),
                      ("root_one", {"model": {"only": d["float32"]}})):
        buffer = io.BytesIO()
        torch.save(obj, buffer)
        open(at(f"writer_{name}.pkl"), "wb").write(zipfile.ZipFile(buffer).read("archive/data.pkl"))
    save_file({"only": d["float32"]}, at("writer_one.safetensors"))


def check(path, reference):
    got, want = torch.load(path, weights_only=True, map_location="cpu"), load_file(reference)
    print(path, "keys at the root:", [k for k in got][:3], "epoch", got.get("epoch"), "global_step", got.get("global_step"))
    got = got.get("state_dict", got)
    assert got.keys() == want.keys(), (len(got), len(want))
    for k, t in want.items():
        assert got[k].dtype == t.dtype and got[k].shape == t.shape and got[k].stride() == t.stride(), k
        assert t.numel() == 0 or np.array_equal(t.contiguous().view(-1).view(torch.uint8).numpy(),
                                                got[k].contiguous().view(-1).view(torch.uint8).numpy()), k
    assert zipfile.ZipFile(path).testzip() is None
    print("equal:", len(want), "tensors; all checksums right")


def corpus(folder, golden="golden/torch"):
    def write(kind, name, data):
        os.makedirs(os.path.join(folder, kind), exist_ok=True)
        open(os.path.join(folder, kind, name), "wb").write(data)

    def pickle_of(file):
        z = zipfile.ZipFile(file)
        return z.read(next(n for n in z.namelist() if n.endswith("data.pkl")))

    for name in ("bare.pt", "big_endian.pt", "deflated.ckpt", "no_crc.pt", "protocol4.pt", "lightning.ckpt"):
        write("torch_zip", name, open(os.path.join(golden, name), "rb").read())
    for name in ("legacy_types.pt", "legacy_views.bin", "legacy_lightning.ckpt"):
        write("torch_legacy", name, open(os.path.join(golden, name), "rb").read())
    for name in ("types.pt", "views.pt", "lightning.ckpt", "nested.pt", "list.pt", "protocol5.pt"):
        write("torch_zip", name.split(".")[0] + ".pkl", pickle_of(os.path.join(golden, name)))
        write("pickle", name.split(".")[0], pickle_of(os.path.join(golden, name)))
    for p in range(6):
        obj = {"a": [1, -2, 3.5, None, True, 2**70], "b": (b"xy", "z"), 3: {4, 5}, "o": collections.OrderedDict(x=1)}
        write("pickle", f"values{p}", pickle.dumps(obj, p))
    b = torch.arange(16.0)
    for name, obj in {
        "one_storage": {"a": b.view(4, 4), "t": b.view(4, 4).t(), "o": b[3:7], "e": b[:1].expand(3), "z": b[2],
                        "p": torch.nn.Parameter(b), "n": b[:0]},
        "wrapped": {"state_dict": collections.OrderedDict(x=b, y={"z": b[1:]}), "epoch": 3, "global_step": 9, "optimizer": [b]},
        "list": [b, b[1:], (b[2:], {"k": b})],
        "untyped": {"u": torch.ones(4, dtype=torch.uint16)},
        "half": {"h": torch.ones(32).half()[::2]},
    }.items():
        buffer = io.BytesIO()
        torch.save(obj, buffer)
        write("torch_zip", name + ".pkl", pickle_of(buffer))
        buffer = io.BytesIO()
        torch.save(obj, buffer, _use_new_zipfile_serialization=False)
        write("torch_legacy", name + ".pt", buffer.getvalue())


if __name__ == "__main__":
    random.seed(1)
    torch.manual_seed(1)
    modes = {"check": check, "corpus": corpus}
    modes[sys.argv[1]](*sys.argv[2:]) if sys.argv[1] in modes else main(sys.argv[1])

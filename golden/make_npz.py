#!/usr/bin/env python3
"""usage: make_npz.py OUT_DIR | make_npz.py --check FILE

Archives of numpy: savez, savez_compressed, all types, scalars, no rows; bad/: what must be refused. --check reads a file that this
program wrote (build/release/tests/test_npz leaves one when NPZ_OUT names it) and prints its arrays.
"""
import io
import os
import sys
import zipfile

import numpy as np

if sys.argv[1] == "--check":
    for k, v in np.load(sys.argv[2]).items():
        print(k, v.dtype, v.shape, v.sum())
    sys.exit()
out = sys.argv[1]
os.makedirs(out + "/bad", exist_ok=True)
rng = np.random.default_rng(8)
latents = rng.standard_normal((4, 6, 8)).astype(np.float32)
np.savez(out + "/latents.npz", latents)
np.savez_compressed(out + "/packed.npz", latents=latents, latents_flipped=latents[:, :, ::-1].copy(), half=latents.astype(np.float16))
np.savez(out + "/types.npz", f8=latents[0, 0].astype(np.float64), i8=np.arange(-3, 3), i4=np.arange(5, dtype=np.int32),
         i2=np.arange(5, dtype=np.int16), i1=np.arange(-2, 2, dtype=np.int8), u1=np.arange(7, dtype=np.uint8),
         u2=np.arange(3, dtype=np.uint16), u4=np.arange(3, dtype=np.uint32), u8=np.arange(3, dtype=np.uint64),
         b=np.array([True, False]), scalar=np.float32(1.5), none=np.zeros((0, 4), np.float32))


def archive(name, **members):
    with zipfile.ZipFile(f"{out}/bad/{name}.npz", "w") as z:
        for k, v in members.items():
            z.writestr(zipfile.ZipInfo(k + ".npy"), v)


def npy(a):
    b = io.BytesIO()
    np.lib.format.write_array(b, a, allow_pickle=True)
    return b.getvalue()


good = npy(latents)
archive("fortran", x=npy(np.asfortranarray(latents)))
archive("big_endian", x=npy(latents.astype(">f4")))
archive("object", x=npy(np.array([{"a": 1}], dtype=object)))
archive("short", x=good[:-8])
archive("long", x=good + b"12345678")
archive("no_magic", x=b"hello, this is no array")
archive("no_shape", x=good.replace(b"'shape'", b"'shame'"))
archive("huge", x=good.replace(b"(4, 6, 8)", b"(4, 6, 99999999999999999999)").replace(b" " * 19 + b"\n", b"\n"))
open(out + "/bad/empty.npz", "wb").close()
open(out + "/bad/text.npz", "w").write("not an archive\n" * 4)

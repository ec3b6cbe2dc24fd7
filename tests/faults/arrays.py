"""Hostile .npz, IDX, .mat, HDF5 and .npy files, and folders of images: R23, R24, R47."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import fastaae
from fastaae import data

from .case import Check, Outcome, Skip
from .forks import forked_mat_reader
from .hostile import MB, NO_FILES, mutated, peak, refused, unclear, zipped
from .inside import DataError, IdxFile, matfiles, read_idx, read_npz


def npy(shape: str = "(60, 4)", descr: str = "'|u1'", values: bytes = bytes(240), **fields: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fields.get('order', 'False')}, 'shape': {shape}, }}"
    text += fields.get("more", "")
    version = int(fields.get("version", 1))
    text = text.ljust(int(fields.get("size", len(text) + 1)) - 1) + "\n"
    length = struct.pack("<H" if version == 1 else "<I", int(fields.get("length", len(text))))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode("latin1") + values


def packed(megabytes: int) -> bytes:
    """Zeros in gzip's format, a thousandth of their size."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb") as stream:
        for _ in range(megabytes):
            stream.write(bytes(MB))
    return file.getvalue()


def bomb_npz(megabytes: int, honest: bool) -> bytes:
    """A .npz whose member unpacks to so much; dishonest: it declares only what is small."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        member.write(npy(f"({megabytes}, 1024, 1024)", values=b""))
        for _ in range(megabytes):
            member.write(bytes(MB))
    raw = bytearray(content.getvalue())
    if not honest:
        for signature, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
            where = raw.rfind(signature) + at
            raw[where : where + 4] = struct.pack("<I", 1000)
    return bytes(raw)


GENUINE = np.random.default_rng(1).integers(0, 256, (20, 6, 5), np.uint8)
IDX = IdxFile(
    "train-images",
    GENUINE.shape,
    hashlib.sha256(struct.pack(">4I", 2051, *GENUINE.shape) + GENUINE.tobytes()).hexdigest(),
)
IDX_BYTES = struct.pack(">4I", 2051, *GENUINE.shape) + GENUINE.tobytes()


def hostile_npz() -> dict[str, bytes | Callable[[Path], None]]:
    """By name: the content of a .npz file, or what makes one."""
    one = lambda content: zipped({"x.npy": content})  # noqa: E731
    overlapping = bytearray(zipped({f"{k}.npy": npy() for k in range(3)}))
    first = struct.unpack_from("<I", overlapping, overlapping.find(b"PK\x01\x02") + 42)
    at = overlapping.rfind(b"PK\x01\x02") + 42
    overlapping[at : at + 4] = struct.pack("<I", *first)
    return {
        "shape beyond the values": one(npy("(1048576, 1024)")),
        "shape of 2^40": one(npy(f"({2**40},)")),
        "shape that overflows": one(npy(f"({2**40}, {2**40})")),
        "negative shape": one(npy("(-60, 4)")),
        "shape of floats": one(npy("(60.0, 4)")),
        "shape of True": one(npy("(True, 240)")),
        "shape nested deeply": one(npy("(" * 3000 + ")" * 3000)),
        "70 dimensions": one(npy("(" + "1, " * 69 + "240)")),
        "no shape": one(npy("()")),
        "dtype of objects": one(npy(descr="'|O'")),
        "dtype of 2 GB": one(npy("(1,)", f"'|V{2**31 - 1}'")),
        "dtype of records": one(npy(descr="[('a', '|u1'), ('b', '|O')]")),
        "dtype of nothing": one(npy(descr="'|V0'")),
        "dtype of dates": one(npy("(30,)", "'<M8[s]'")),
        "dtype of code": one(npy(descr="__import__('os').getcwd()")),
        "header of 60 MB": lambda path: path.write_bytes(one(npy(version=2, size=60 * MB))),
        "header of 20,000": one(npy(version=2, size=20_000)),
        "header beyond the file": one(npy(length=60_000)),
        "header with more": one(npy(more="; 1")),
        "version 9": one(npy(version=9)),
        "honest bomb of 512 MB": lambda path: path.write_bytes(bomb_npz(512, True)),
        "dishonest bomb of 512 MB": lambda path: path.write_bytes(bomb_npz(512, False)),
        "a name beyond the folder": zipped({"../x.npy": npy(), "x.npy": npy()}),
        "an absolute name": zipped({"/tmp/x.npy": npy()}),
        "30,000 members": lambda path: path.write_bytes(zipped({f"{k}": b"" for k in range(30_000)})),
        "overlapping members": bytes(overlapping),
        "truncated": zipped({"x.npy": npy()})[:-30],
        "one array, no .npz": npy(),
        "a name twice": zipped([("x.npy", npy()), ("x.npy", npy())]),
        "a name twice, once without .npy": zipped({"x": npy(), "x.npy": npy()}),
        **NO_FILES,
        "sparse, 1 TB": lambda path: (path.touch(), os.truncate(path, 2**40)),
    }


def hostile_idx() -> dict[str, bytes | Callable[[Path], None]]:
    """By name: the content of an IDX file, or what makes one."""
    return {
        "idx: empty": b"",
        "idx: wrong magic": IDX_BYTES[:3] + b"\x01" + IDX_BYTES[4:],
        "idx: wrong dimensions": IDX_BYTES[:4] + b"\xff\xff\xff\xff" + IDX_BYTES[8:],
        "idx: a byte more": IDX_BYTES + b"\0",
        "idx: a byte less": IDX_BYTES[:-1],
        "idx: other pixels": IDX_BYTES[:-1] + bytes([IDX_BYTES[-1] ^ 1]),
        "idx: a pipe": os.mkfifo,
        "idx: endless zeros": lambda path: path.symlink_to("/dev/zero"),
        "idx: sparse, 1 TB": lambda path: (path.touch(), os.truncate(path, 2**40)),
        "idx.gz: bomb of 512 MB": lambda path: path.write_bytes(packed(512)),
        "idx.gz: 90,000 empty members": lambda path: path.write_bytes(gzip.compress(b"") * 90_000),
        "idx.gz: no gzip": b"\x1f\x8b" + IDX_BYTES,
        "idx: gzip of something else": gzip.compress(IDX_BYTES[:-1] + b"\0"),
        "idx.gz: truncated": gzip.compress(IDX_BYTES)[:-9],
        "idx.gz: wrong sum": gzip.compress(IDX_BYTES)[:-8] + bytes(8),
        "idx.gz: a name of 10 MB": lambda path: path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 10 * MB),
    }


@functools.cache
def listed_arrays() -> dict[str, bytes | Callable[[Path], None]]:
    return hostile_npz() | hostile_idx()


@functools.cache
def good_arrays() -> tuple[dict[str, np.ndarray], list[bytes]]:
    g = np.random.default_rng(2)
    arrays = {"x": g.random((24, 5), np.float32), "y": np.arange(24) % 3, "x_test": g.random((6, 5), np.float32)}
    files = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        files.append(file.getvalue())
    return arrays, files


def hostile_array(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    listed = listed_arrays()
    if case < len(listed):
        name = list(listed)[case]
        suffix = ".gz" if name.startswith("idx.gz") else "" if name.startswith("idx") else ".npz"
        path, content = folder / f"train-images{suffix}", listed[name]
        content(path) if callable(content) else path.write_bytes(content)
        size = path.stat().st_size if path.is_file() else None
        read = (lambda: data.load(str(path))) if suffix == ".npz" else (lambda: read_idx(path, IDX))
        if wrong := refused(name, read, DataError, 2, 200):
            return wrong
        same = size is None or path.stat().st_size == size
        return None if same and len(list(folder.iterdir())) == 1 else f"{name}: the folder has changed"
    arrays, files = good_arrays()
    kind = int(rng.integers(4))
    if kind < 2:
        path = folder / "a.npz"
        path.write_bytes(mutated(rng, files[kind]))
        read = lambda: read_npz(path)  # noqa: E731
    else:
        path = folder / ("a.gz" if kind == 2 else "a")
        path.write_bytes(mutated(rng, gzip.compress(IDX_BYTES, mtime=0) if kind == 2 else IDX_BYTES))
        read, arrays = lambda: {"x": read_idx(path, IDX)}, {"x": GENUINE}
    try:
        loaded = read()
        if kind < 2:
            fastaae.data.from_arrays(loaded)  # other names may remain, which it refuses
    except DataError as error:
        return unclear(str(error))
    same = loaded.keys() == arrays.keys() and all(np.array_equal(loaded[k], arrays[k]) for k in arrays)
    return None if same else Outcome(f"loads with other values: {list(loaded)}", wrong=True)


# R24: .mat files


@functools.cache
def good_mats() -> tuple[dict[str, np.ndarray], list[bytes]]:
    import scipy.io

    g = np.random.default_rng(3)
    arrays = {"X": g.integers(0, 256, (4, 5, 3, 7), np.uint8), "y": np.arange(1, 8, dtype=np.uint8)[:, None]}
    files = []
    for options in ({}, {"do_compression": True}, {"format": "4"}):
        file = io.BytesIO()
        flat = {k: v.reshape(len(v), -1).astype(float) for k, v in arrays.items()} if "format" in options else arrays
        scipy.io.savemat(file, flat, **options)
        files.append(file.getvalue())
    return arrays, files


def mat_of_shape(rows: int, columns: int, kind: int = 9) -> bytes:
    """A file whose only variable, X, uint8 of that shape, has one byte of values, 7."""
    header = struct.pack("<4I", 6, 8, kind, 0) + struct.pack("<2I2i", 5, 8, rows, columns)
    variable = header + struct.pack("<2I8s", 1, 1, b"X") + struct.pack("<2I8s", 2, 1, b"\x07")
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<2I", 14, len(variable)) + variable


def read_mat(path: Path, names: Sequence[str], limit: int) -> dict[str, np.ndarray]:
    """The variables as they are, cached nowhere."""
    return matfiles.converted(path, names, limit, dict, path / "no folder")


def hostile_mat(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    path = folder / "a.mat"
    hdf5 = b"\x89HDF\r\n\x1a\n"
    listed = [
        (hdf5 + bytes(600), "HDF5"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + hdf5 + bytes(99), "HDF5"),
        (mat_of_shape(2**31 - 1, 2**31 - 1), "declare"),
        (mat_of_shape(2**25, 1), "not readable"),
        (mat_of_shape(1, 1, kind=17), ""),
        (bytes(600), "not a MATLAB file"),
    ]
    if case < len(listed):
        path.write_bytes(listed[case][0])
        try:
            with forked_mat_reader():
                read_mat(path, ["X"], 2**20 if case < 3 else 2**26)
        except DataError as error:
            return None if listed[case][1] in str(error) else f"{error}"
        return Outcome("accepted", wrong=True)
    arrays, files = good_mats()
    path.write_bytes(mutated(rng, files[rng.integers(3)]))
    try:
        with forked_mat_reader():
            loaded = read_mat(path, ("X", "y"), 2**20)
    except DataError as error:
        return unclear(str(error), f"{path}: ")
    right = list(loaded) == ["X", "y"] and all(a.dtype.kind in "biuf" and a.nbytes <= 2**20 for a in loaded.values())
    return None if right else f"loads as {[(k, a.dtype, a.shape) for k, a in loaded.items()]}"


# R47: files without a checksum, and pictures


@functools.cache
def own_files() -> dict[str, bytes]:
    """Good files of people, by the way they are called: an array of GENUINE each, and a picture of its first."""
    file, picture = io.BytesIO(), io.BytesIO()
    np.save(file, GENUINE)
    try:
        from PIL import Image
    except ImportError:
        raise Skip("pillow is not installed") from None
    Image.fromarray(GENUINE[0]).save(picture, "png")
    packed = gzip.compress(IDX_BYTES, mtime=0)
    return {"x.npy": file.getvalue(), "own-idx3": IDX_BYTES, "own-idx3.gz": packed, "set/a/1.png": picture.getvalue()}


def hostile_own(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    """Values may have changed unseen: what comes is numbers, no more than the file can hold, or a line that names it.
    Beside a picture that is spoilt lies a good one."""
    name, content = list(own_files().items())[case % 4]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mutated(rng, content))
    if name.startswith("set"):
        (folder / "set/b").mkdir()
        (folder / "set/b/1.png").write_bytes(content)
    opened = folder / "set" if name.startswith("set") else path
    peak()
    before = peak()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = data.load(str(opened), scale="standard")
    except DataError as error:
        return unclear(str(error), str(folder))
    if (more := peak() - before) > 200 * MB:
        return f"{name}: {more / MB:.0f} MB"
    x = loaded.train.x
    most = 2 * GENUINE[0].size if name.startswith("set") else 2 * len(content) + 2**12
    return None if x.numel() <= most else Outcome(f"{name}: {tuple(x.shape)} of {path.stat().st_size}", wrong=True)


CHECKS = {
    "R23": Check("hostile .npz and IDX files", 1000, hostile_array),
    "R24": Check("hostile .mat and HDF5 files", 8006, hostile_mat),
    "R47": Check("hostile .npy and IDX files, folders of images", 2000, hostile_own),
}

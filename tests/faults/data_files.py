"""Files that data come from: what they may take of memory and time, and the cache of .mat files: R45, R46."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fastaae import Config, cli, data

from .arrays import bomb_npz, good_mats, npy, packed
from .case import Check, Outcome, Skip, require
from .forks import forked_mat_reader
from .hostile import MB, zipped
from .inside import MNIST_TRAIN, matfiles, read_idx
from .saving import ERRORS
from .tiny import call, said

MOST, PER_BYTE = 800 * 10**6, 100  # bytes of memory that a file may take: so many, and so many times its own
SECONDS, PER_MB = 10, 10

# R45: small files that ask for much


def compressed(padding: bytes = b"", **arrays: np.ndarray) -> bytes:
    """A .npz, with so many more bytes that belong to no array."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    if padding:
        with zipfile.ZipFile(file, "a") as archive:
            archive.fp.seek(archive.start_dir)
            archive.fp.write(padding)
            archive.start_dir, archive._didModify = archive.fp.tell(), True
    return file.getvalue()


def deflated(members: int, content: bytes) -> bytes:
    """A .npz whose members all say the same, and share its bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(members):
            archive.writestr(f"{k}.npy", content if k == 0 else b"")
    raw = bytearray(file.getvalue())
    at, entries = 0, []
    while (at := raw.find(b"PK\x01\x02", at)) >= 0:
        entries.append(at)
        at += 46
    for entry in entries[1:]:
        raw[entry + 16 : entry + 28], raw[entry + 42 : entry + 46] = (
            raw[entries[0] + 16 : entries[0] + 28], raw[entries[0] + 42 : entries[0] + 46])  # fmt: skip
    return bytes(raw)


MAT_HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 8)


def variable(name: bytes, dims: tuple[int, ...], values: bytes, kind: int = 9, pack: bool = True) -> bytes:
    """A variable of a .mat file, uint8 unless another kind is said."""
    content = struct.pack("<4I", 6, 8, kind, 0) + padded(struct.pack(f"<2I{len(dims)}i", 5, 4 * len(dims), *dims))
    content += struct.pack("<2I", 1, len(name)) + padded(name) + padded(struct.pack("<2I", 2, len(values)) + values)
    element = struct.pack("<2I", 14, len(content)) + content
    if not pack:
        return element
    element = zlib.compress(element)
    return struct.pack("<2I", 15, len(element)) + element


def faces(n: int, tail: bytes = b"") -> bytes:
    """A file in TFD's layout, of n black faces, in the three parts."""
    part = np.tile((np.arange(n, dtype=np.uint8) % 3 + 1), 5).tobytes()
    return MAT_HEAD + b"".join((
        variable(b"images", (n, 48, 48), bytes(n * 2304)), variable(b"folds", (n, 5), part),
        variable(b"labs_ex", (n, 1), b"\1" * n), tail))  # fmt: skip


def numbers(images: tuple[int, ...], n: int, size: int) -> bytes:
    """A file in SVHN's layout, whose images have so many bytes."""
    return MAT_HEAD + variable(b"X", images, bytes(size)) + variable(b"y", (n, 1), bytes(range(1, 11)) * (n // 10))


PADDING = 8 * MB  # that can hardly be packed, so that a file may unpack to 20 times as many bytes


def padding() -> bytes:
    return np.random.default_rng(0).bytes(PADDING)


MANY_ROWS, NAN = np.zeros((2**24, 1), np.uint8), np.full((2**24, 1), np.nan, np.float16)
HUNGRY: dict[str, Callable[[], bytes]] = {
    "bytes.npz": lambda: compressed(x=np.zeros((80_000, 784), np.uint8)),
    "halves.npz": lambda: compressed(x=np.zeros((40_000, 784), np.float16)),
    "doubles.npz": lambda: compressed(x=np.zeros((10_000, 784)), y=np.zeros(10_000, int)),
    "test set.npz": lambda: compressed(x=np.zeros((60, 784), np.float16), x_test=np.zeros((40_000, 784), np.float16)),
    "rows.npz": lambda: compressed(x=MANY_ROWS, y=MANY_ROWS[:, 0]),
    "rows, allowed.npz": lambda: compressed(x=MANY_ROWS[: 2**20], y=MANY_ROWS[: 2**20, 0]),
    "NaN.npz": lambda: compressed(x=NAN),
    "NaN in 32 dimensions.npz": lambda: compressed(x=NAN[: 2**21].reshape(-1, *[1] * 31)),
    "bomb.npz": lambda: bomb_npz(512, True),
    "dishonest bomb.npz": lambda: bomb_npz(512, False),
    "shared bytes.npz": lambda: deflated(100, npy("(1, 62914560)", values=bytes(60 * MB))),
    "40,000 names.npz": lambda: zipped({f"{k}.npy": b"" for k in range(40_000)}),
    "one name 40,000 times.npz": lambda: zipped([("x.npy", b"")] * 40_000),
    "padded, allowed.npz": lambda: compressed(padding(), x=np.zeros((100_000, 784), np.float16)),
    "padded rows, allowed.npz": lambda: compressed(padding(), x=MANY_ROWS[: 9 * 2**19], y=MANY_ROWS[: 9 * 2**19, 0]),
    "bomb.idx": lambda: packed(512),
    "right size.idx": lambda: gzip.compress(struct.pack(">4I", 2051, 60000, 28, 28) + bytes(60000 * 784)),
    "90,000 members.idx": lambda: gzip.compress(b"") * 90_000,
    "name of 10 MB.idx": lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 10 * MB,
    "zeros.mat": lambda: faces(200_000),
    "zeros, allowed.mat": lambda: faces(28_000),
    "padded, allowed.mat": lambda: faces(70_000, variable(b"padding", (PADDING, 1), padding(), pack=False)),
    "svhn, zeros.mat": lambda: numbers((32, 32, 3, 150_000), 150_000, 150_000 * 3072),
    "svhn, zeros, allowed.mat": lambda: numbers((32, 32, 3, 20_000), 20_000, 20_000 * 3072),
    "more values than the shape.mat": lambda: faces(9, variable(b"images", (9, 48, 48), bytes(400 * MB))),
    "long names.mat": lambda: MAT_HEAD + variable(b"n" * 50 * MB, (1, 1), b"\1") * 20,
    "long name, 1 GB.mat": lambda: MAT_HEAD + variable(b"n" * 1000 * MB, (1, 1), b"\1"),
    "30,000 variables.mat": lambda: MAT_HEAD + variable(b"a", (0, 0), b"") * 30_000,
    "30,000 variables, not packed.mat": lambda: MAT_HEAD + variable(b"a", (0, 0), b"", pack=False) * 30_000,
    "60,000 variables, version 4.mat": lambda: (struct.pack("<5i", 0, 0, 0, 0, 2) + b"a\0") * 60_000,
    "300,000 dimensions.mat": lambda: MAT_HEAD + variable(b"X", (1,) * 300_000, b"\1"),
    "hidden.json": lambda: json.dumps({"hidden": [1] * 340_000}).encode(),
    "objects.json": lambda: b'{"hidden": [%s]}' % b",".join([b"{}"] * 340_000),
    "fields.json": lambda: json.dumps({f"{k}": 0 for k in range(80_000)}).encode(),
    "a word.json": lambda: json.dumps({"task": "a" * 10**6}).encode(),
    "a name.json": lambda: json.dumps({"name": "a" * 10**6}).encode(),
    "nested.json": lambda: b'{"hidden": ' + b"[" * 10**6,
    "run.json": lambda: json.dumps({"config": {"epochs": 1}, "data": {"sha256": [[0] * 9] * 30_000}}).encode(),
}


def use(name: str) -> None:
    """Read a file as its kind is read, and print what it took. In a process of its own."""
    kind, start, message = name.rpartition(".")[2], time.perf_counter(), ""
    try:
        if kind == "npz":
            data.load(name)
        elif kind == "idx":
            read_idx(Path(name), MNIST_TRAIN)
        elif kind == "mat":
            os.environ["XDG_CACHE_HOME"] = os.getcwd()
            data.load("svhn" if "svhn" in name else "tfd", os.getcwd())
        else:
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                cli.main(["train", "--config", name, "--help"])
            Config.from_json(name)
    except ValueError as error:
        message = str(error)
    took = time.perf_counter() - start
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps([message, took, peak * 1024]))


def hungry(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    """R45: read a small file in little memory and time, with its reader's; or refuse it in a line."""
    name = list(HUNGRY)[case]
    content = HUNGRY[name]()
    path = folder / name
    path.write_bytes(content)
    if name.endswith("mat"):
        for target in ["train_32x32.mat", "test_32x32.mat"] if "svhn" in name else ["TFD_48x48.mat"]:
            (folder / target).write_bytes(content)
    require(call(folder, use, name) == 0, said(folder))
    message, took, peak = json.loads((folder / "stdout").read_text())
    if took > SECONDS + PER_MB * len(content) / MB or peak > MOST + PER_BYTE * len(content):
        return f"{name}, {len(content)} bytes: {took:.1f} s and {peak / MB:.0f} MB; {message[:100]}"
    if "\n" in message or len(message) > 4000:
        return f"{name}: {message[:300]!r}"
    return f"{name}: {message[:300]}" if "allowed" in name and message else None


# R46: the cache of .mat files


@contextlib.contextmanager
def failing(cache: Path, n: int, code: int) -> Iterator[list[str]]:
    """Inside, the n-th call that writing to the cache makes fails; of savez, when half is written. Yields the calls."""
    names: list[str] = []

    def wrap(name: str, original: Callable) -> Callable:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            ours = cache in (arguments[0], *Path(arguments[0]).parents) and (name != "lstat" or arguments[0] == cache)
            names.extend([name] * ours)
            if not ours or len(names) - 1 != n:
                return original(*arguments, **options)
            if name == "savez":
                original(*arguments, **options)
                os.truncate(arguments[0], 100)
            raise OSError(code, os.strerror(code))

        return wrapped

    with contextlib.ExitStack() as stack:
        for owner, name in [
            (os, "mkdir"),
            (os, "chmod"),
            (os, "replace"),
            (os, "unlink"),
            (os, "lstat"),
            (np, "savez"),
        ]:
            stack.enter_context(mock.patch.object(owner, name, wrap(name, getattr(owner, name))))
        yield names


def damage(rng: np.random.Generator, content: bytes) -> bytes:
    """What a power cut leaves of a file whose name has reached the disk: a part of its blocks, in any choice."""
    size = len(content)
    if rng.random() < 0.4:
        return content[: int(rng.integers(size))]
    block, out = int(rng.choice([1, 16, 512, 4096])), bytearray(content)
    for at in rng.choice(-(-size // block), max(1, int(rng.integers(1, -(-size // block) + 1))), replace=False):
        out[at * block : (at + 1) * block] = bytes(min(block, size - at * block))
    return bytes(out)


def cached(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    """R46: the arrays are right whatever is in the cache, and whichever call fails as it is written."""
    arrays, files = good_mats()
    path, cache, kind = folder / "a.mat", folder / "cache", case % 3
    path.write_bytes(files[0])

    def right() -> bool:
        found = matfiles.converted(path, ("X", "y"), MB, dict, cache)
        return all(np.array_equal(found[name], arrays[name]) for name in arrays)

    with forked_mat_reader() as statuses:
        if kind == 0:
            with failing(cache, case // 3 % 8, ERRORS[case // 24 % len(ERRORS)]) as calls:
                ok = right()
            if not ok or not right():
                return Outcome(f"other arrays when one of {calls} fails", wrong=True)
            left = [p.name for p in cache.iterdir()] if cache.exists() else []
            return f"left behind: {left}" if len(left) > 1 and "unlink" not in calls[-1:] else None
        require(right(), "other arrays")
        (kept,) = cache.iterdir()
        if kind == 1:
            kept.write_bytes(damage(rng, kept.read_bytes()))
        else:
            np.savez(kept, **{name: array * 0 for name, array in arrays.items()})
            target = cache if rng.random() < 0.5 else kept
            if rng.random() < 0.5:
                if os.geteuid():
                    raise Skip("only root can give files away")
                os.chown(target, int(rng.integers(1, 65535)), -1)
            else:
                target.chmod(target.stat().st_mode | int(rng.choice([0o020, 0o002, 0o022])))
        if not right() or (kind == 2 and len(statuses) != 2):  # damage may have changed nothing
            return Outcome(f"believed after {'a power cut' if kind == 1 else 'another had been there'}", wrong=True)
        return None


CHECKS = {
    "R45": Check("small data files that ask for much", len(HUNGRY), hungry),
    "R46": Check("cache of .mat files: failing calls, power cuts, others' files", 240, cached),
}

"""Hostile and broken input: checkpoints, arrays, .mat files, configs, and poor surroundings. See bench/faults.py.

Cases beyond the listed ones of a check are random: --times makes a longer campaign of them.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from fault_case import ROOT, Check, Outcome, Skip, environment
from forks import Forks

import fastaae
from fastaae import checkpoint, config, data
from fastaae.checkpoint import CheckpointError
from fastaae.data import DataError, matfiles, sources

MB = 2**20


def cli(*arguments: Any, cwd: Path, timeout: float = 120, **changes: str | None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastaae.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=timeout, errors="replace"
    )


def mutated(rng: np.random.Generator, content: bytes) -> bytes:
    """Content with a few bytes flipped, set, lost, put in, exchanged, or cut off."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(out) if rng.random() < 0.5 else min(len(out), 600))) if out else 0
        size = int(rng.choice([1, 1, 2, 8, 100]))
        kind = rng.integers(7)
        if kind == 0 and out:
            out[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            out[at : at + size] = rng.bytes(size)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at:at] = rng.bytes(size)
        elif kind == 5:
            out[at : at + size] = rng.choice([b"\0", b"\xff", b"\x7f"]) * size
        else:
            other = int(rng.integers(max(len(out) - size, 1)))
            out[at : at + size], out[other : other + size] = out[other : other + size], out[at : at + size]
    return bytes(out)


def peak() -> int:
    """Bytes that this process has held at most since the last call."""
    try:
        held = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, StopIteration):
        return 0
    return int(held.split()[1]) * 1024


def refused(
    name: str, call: Callable[[], Any], error: type[Exception], seconds: float, megabytes: float
) -> str | Outcome | None:
    """None where a call raises a one-line `error` in so little time and memory."""
    peak()
    before, start = peak(), time.perf_counter()
    try:
        call()
        return Outcome(f"{name}: accepted", wrong=True)
    except error as e:
        message = str(e)
    took, more = time.perf_counter() - start, (peak() - before) / MB
    if took > seconds or more > megabytes:
        return f"{name}: {took:.1f} s and {more:.0f} MB to say: {message[:100]}"
    if not message or "\n" in message or len(message) > 2000:
        return f"{name}: the message is no line: {message[:200]!r}"
    return None


# R6, R21: checkpoints


@functools.cache
def genuine() -> tuple[bytes, dict[str, torch.Tensor], dict]:
    """A checkpoint file of some dtypes, its tensors and its info."""
    g = torch.Generator().manual_seed(0)
    tensors = {f"decoder.{k}.weight": torch.randn(1, 7, 9, generator=g) for k in range(3)}
    tensors |= {"step": torch.tensor(5), "order": torch.randperm(50, generator=g), "half": torch.ones(9).bfloat16()}
    info = {"config": {"hidden": [200, 200], "lr": 0.1}, "step": 5, "text": 'quoted "sha256":"0'}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder, "c"), tensors, info)
        return Path(folder, "c").read_bytes(), tensors, info


def damaged_checkpoint(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    content, tensors, info = genuine()
    path = folder / "c"
    path.write_bytes(mutated(rng, content))
    try:
        loaded, told = checkpoint.load(path)
    except CheckpointError as error:
        return None if str(error).startswith(f"{path}: ") else f"no file named: {error}"
    same = loaded.keys() == tensors.keys() and all(torch.equal(loaded[k], t) for k, t in tensors.items())
    return None if same and told == info else Outcome("loads with other values", wrong=True)


@functools.cache
def small_model() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        x = np.random.default_rng(0).random((60, 6), np.float32)
        cfg = fastaae.Config(hidden=(5,), style_dim=2, epochs=1, batch_size=10, device="cpu", out_dir=f"{folder}/run")
        fastaae.train(cfg, data=x, progress=False).model.save(f"{folder}/m")
        return Path(folder, "m").read_bytes()


def split(content: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def sealed(header: dict | bytes, values: bytes, length: int | None = None) -> bytes:
    """A file with that header, its digest right wherever there is room for one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = bytearray((len(text) if length is None else length).to_bytes(8, "little") + text + values)
    at = content.rfind(b'"sha256": "') + len(b'"sha256": "')
    if at > 20:
        content[at : at + 64] = b"0" * 64
        content[at : at + 64] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def hostile_headers() -> dict[str, Callable[[dict, bytes], bytes]]:
    """Ways to make a hostile file of a good header and values."""

    def tensor(**fields: Any) -> Callable[[dict, bytes], bytes]:
        return lambda h, v: sealed({**h, "decoder.0.bias": {**h["decoder.0.bias"], **fields}}, v)

    def about(**fields: Any) -> Callable[[dict, bytes], bytes]:
        return lambda h, v: sealed({**h, "__metadata__": {**h["__metadata__"], **fields}}, v)

    def text(old: bytes, new: bytes) -> Callable[[dict, bytes], bytes]:
        return lambda h, v: sealed(json.dumps(h).encode().replace(old, new, 1), v)

    def added(count: int) -> Callable[[dict, bytes], bytes]:
        return lambda h, v: sealed(
            h | {str(k): dict(dtype="F32", shape=[0], data_offsets=[0, 0]) for k in range(count)}, v
        )

    return {
        "empty": lambda h, v: b"",
        "no header": lambda h, v: sealed(b"", v),
        "length beyond the file": lambda h, v: sealed(h, v, 2**20 - 1),
        "length 2^63": lambda h, v: sealed(h, v, 2**63),
        "header of 100 MB": lambda h, v: sealed(b" " * 100 * MB + json.dumps(h).encode(), v),
        "no JSON": lambda h, v: sealed(b"{" * 500, v),
        "a list": lambda h, v: sealed([h], v),
        "nested 10^5 deep": lambda h, v: sealed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, v),
        "no metadata": lambda h, v: sealed({k: t for k, t in h.items() if k != "__metadata__"}, v),
        "metadata twice": text(b'{"__metadata__"', b'{"__metadata__": {}, "__metadata__"'),
        "a name twice": text(b'"decoder.0.weight"', b'"decoder.0.bias"'),
        "overlap": lambda h, v: sealed({**h, "more": h["decoder.0.bias"]}, v),
        "hole": lambda h, v: sealed({k: t for k, t in h.items() if k != "decoder.0.bias"}, v),
        "beyond the end": tensor(data_offsets=[0, 2**40]),
        "negative offset": tensor(data_offsets=[-8, 0]),
        "backward offsets": tensor(data_offsets=[40, 0]),
        "float offsets": tensor(data_offsets=[0.0, 20.0]),
        "offsets of text": tensor(data_offsets="ab"),
        "one offset": tensor(data_offsets=[0]),
        "unknown dtype": tensor(dtype="F31"),
        "dtype of another size": tensor(dtype="F64"),
        "negative shape": tensor(shape=[-1, -1, -5]),
        "shape that overflows": tensor(shape=[2**32, 2**32]),
        "shape of text": tensor(shape="5"),
        "65 dimensions": tensor(shape=[1] * 64 + [5]),
        "9 dimensions": tensor(shape=[1] * 8 + [5]),
        "4,097 tensors": added(4097),
        "more tensors than 1 MiB holds": added(40_000),
        "bytes after the end": lambda h, v: sealed(h, v + b"x"),
        "NUL in the digest": about(sha256="\0" * 64),
        "digest of nothing": about(sha256=""),
        "digest is a list": about(sha256=["0" * 64]),
        "a later format": about(format="2"),
        "info that is no JSON": about(info="os.system('x')"),
        "info nested deeply": about(info="[" * 100_000),
        "bad UTF-8": text(b"decoder.0.bias", b"decoder.0.\xff\xfe"),
        "a zip file": lambda h, v: b"PK\x03\x04" + sealed(h, v),
        "a pickle": lambda h, v: pickle.dumps({"decoder.0.bias": [0.0]}),
    }


def special_files() -> dict[str, Callable[[Path], None]]:
    def sparse(path: Path, size: int, start: bytes = b"") -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    big = json.dumps({"__metadata__": {"format": "1", "sha256": "0" * 64, "info": "{}"}}).encode()
    return {
        "a pipe": lambda path: os.mkfifo(path),
        "endless zeros": lambda path: path.symlink_to("/dev/zero"),
        "a folder": lambda path: path.mkdir(),
        "a loop of links": lambda path: path.symlink_to(path),
        "sparse, 2 TB": lambda path: sparse(path, 2**41),
        "sparse, 8 GB, without tensors": lambda path: sparse(path, 2**33, sealed(big, b"")),
        "unreadable": lambda path: path.symlink_to("/proc/self/mem"),
    }


def hostile_checkpoint(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    header, values = split(small_model())
    path, headers, specials = folder / "m.safetensors", hostile_headers(), special_files()
    names = [*headers, *specials]
    if case < len(names):
        name = names[case]
        if name in headers:
            path.write_bytes(headers[name](header, values))
        else:
            specials[name](path)
        return refused(name, lambda: fastaae.load(path), CheckpointError, 1, 64)
    for _ in range(rng.integers(1, 3)):
        header = changed(rng, header)
    path.write_bytes(sealed(header, values))
    try:
        model = fastaae.load(path)
    except CheckpointError as error:
        return None if "\n" not in str(error) and len(str(error)) < 2000 else f"no line: {str(error)[:200]!r}"
    sample = model.sample(3)
    return None if sample.shape == (3, *model.shape) and np.isfinite(sample).all() else "a model that does not work"


ODD = (
    None, True, False, 0, -1, 1, 2, 3, 0.5, 1e12, 1e308, -0.0, 10**30, 2**31, 2**63, "", "x", "../x", "\0", "é" * 9,
    "1", [], [1], [0], [-1], [2**40], [[]], {}, {"_target_": "os.system"}, float("nan"), float("inf"), [1, "a"],
    [10] * 70,
)  # fmt: skip


def changed(rng: np.random.Generator, value: Any) -> Any:
    """A JSON value with one of its parts, at any depth, changed, lost, added or renamed."""
    odd = ODD[rng.integers(len(ODD))]
    if isinstance(value, str) and value[:1] in "{[" and rng.random() < 0.9:  # JSON within JSON
        with contextlib.suppress(ValueError):
            return json.dumps(changed(rng, json.loads(value)))
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        if isinstance(value, int | float) and rng.random() < 0.5:
            return type(value)(value * float(rng.choice([-1, 0, 0.5, 2, 1000])) + rng.integers(-1, 2))
        return odd
    copy = value.copy()
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[rng.integers(len(keys))]
    kind = rng.random()
    if kind < 0.8:
        copy[key] = changed(rng, value[key])
    elif kind < 0.9:
        del copy[key]
    elif isinstance(copy, dict):
        copy[f"{key}x" if rng.random() < 0.5 else "é\0"] = copy.pop(key) if rng.random() < 0.5 else odd
    else:
        copy.append(odd)
    return copy


# R22: files that would run code. Each is read in a process that watches what happens.

WATCH = """
import os, sys
import numpy as np, torch, scipy.io
import fastaae
from fastaae import checkpoint, data, config
import safetensors.torch, json, traceback
kind, path, good = sys.argv[1:]
read = {
    "checkpoint": fastaae.load, "data": data.load, "config": config.Config.from_json,
    "mat": lambda path: data.load("svhn", path),
}[kind]
try: read(good)
except ValueError: pass
seen, watching = [], True
forbidden = ("pickle.", "exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.",
             "shutil.", "os.remove", "os.rename", "urllib", "ctypes.", "marshal.", "code.__new__", "import")
def hook(event, arguments):
    if watching and event.startswith(forbidden):
        if event in ("subprocess.Popen", "os.posix_spawn", "os.fork") and kind == "mat": return
        if event == "exec" and "dataclass" in repr(arguments): return
        seen.append(f"{event} {arguments!r:.80}")
sys.addaudithook(hook)
try:
    read(path); said = "accepted"
except ValueError as error:
    said = f"refused: {error}"
watching = False
print(json.dumps([said[:300], seen]))
"""


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


def object_npy(bomb: Bomb) -> bytes:
    file = io.BytesIO()
    array = np.empty(3, object)
    array[:] = bomb
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def running_code(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    canary = folder / "canary"
    bomb = Bomb(canary)
    torched = io.BytesIO()
    torch.save({"decoder.0.bias": bomb}, torched)
    header, values = split(small_model())
    named = json.loads(header["__metadata__"]["info"])
    named["config"] |= {"_target_": "os.system", "_args_": [f"touch {canary}"]}
    header["__metadata__"]["info"] = json.dumps(named)
    quoted = f"__import__('os').system('touch {canary}')"
    literal = (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + f"{{'descr': {quoted}, }}".encode().ljust(117)[:117] + b"\n"
    )
    files = [
        ("checkpoint", "a.safetensors", torched.getvalue()),
        ("checkpoint", "a.safetensors", pickle.dumps(bomb)),
        ("checkpoint", "a.safetensors", sealed(header, values)),
        ("data", "a.npz", zipped({"x.npy": object_npy(bomb)})),
        ("data", "a.npz", pickle.dumps({"x": bomb})),
        ("data", "a.npz", zipped({"x.npy": pickle.dumps(bomb)})),
        ("data", "a.npz", zipped({"x.npy": literal})),
        ("data", "a.npz", object_npy(bomb)),
        ("config", "a.json", f"!!python/object/apply:os.system ['touch {canary}']".encode()),
        ("config", "a.json", json.dumps({"_target_": "os.system", "command": f"touch {canary}"}).encode()),
        ("config", "a.json", json.dumps({"prior": quoted, "device": quoted, "profile": quoted}).encode()),
        ("mat", "train_32x32.mat", pickle.dumps(bomb).ljust(600)),
    ]
    if case == len(files):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/test_package.py",
            "-k",
            "unpickles",
        ]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
        return None if done.returncode == 0 else done.stdout[-300:]
    kind, name, content = files[case % len(files)]
    path = folder / "hostile" / name
    path.parent.mkdir()
    path.write_bytes(content)
    good = {
        "checkpoint": small_model(),
        "data": zipped({"x.npy": b"no array"}),
        "config": b'{"epochs": -1}',
        "mat": b"",
    }[kind]
    (folder / name).write_bytes(good)
    if kind == "mat":
        (path.parent / "test_32x32.mat").write_bytes(content)
        path = path.parent
    command = [sys.executable, "-c", WATCH, kind, str(path), str(folder if kind == "mat" else folder / name)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    if done.returncode:
        return f"{name} of {kind}: {done.stderr[-300:]}"
    said, seen = json.loads(done.stdout)
    if canary.exists():
        return Outcome(f"{name} of {kind}: the code ran", wrong=True)
    return None if said.startswith("refused") and not seen else f"{name} of {kind}: {said}, {seen}"


# R23: arrays


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
IDX = sources._IdxFile(
    "train-images",
    GENUINE.shape,
    hashlib.sha256(struct.pack(">4I", 2051, *GENUINE.shape) + GENUINE.tobytes()).hexdigest(),
)
IDX_BYTES = struct.pack(">4I", 2051, *GENUINE.shape) + GENUINE.tobytes()


def hostile_arrays() -> dict[str, bytes | Callable[[Path], None]]:
    """By name: the content of a .npz, or of an IDX file where the name begins with idx."""
    one = lambda content: zipped({"x.npy": content})  # noqa: E731
    overlapping = bytearray(zipped({f"{k}.npy": npy() for k in range(3)}))
    first = struct.unpack_from("<I", overlapping, overlapping.find(b"PK\x01\x02") + 42)
    at = overlapping.rfind(b"PK\x01\x02") + 42
    overlapping[at : at + 4] = struct.pack("<I", *first)
    return {
        "shape beyond the values": one(npy("(2**20, 2**10)".replace("2**20", "1048576").replace("2**10", "1024"))),
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
        "a pipe": lambda path: os.mkfifo(path),
        "endless zeros": lambda path: path.symlink_to("/dev/zero"),
        "a folder": lambda path: path.mkdir(),
        "sparse, 1 TB": lambda path: (path.touch(), os.truncate(path, 2**40)),
        "idx: empty": b"",
        "idx: wrong magic": IDX_BYTES[:3] + b"\x01" + IDX_BYTES[4:],
        "idx: wrong dimensions": IDX_BYTES[:4] + b"\xff\xff\xff\xff" + IDX_BYTES[8:],
        "idx: a byte more": IDX_BYTES + b"\0",
        "idx: a byte less": IDX_BYTES[:-1],
        "idx: other pixels": IDX_BYTES[:-1] + bytes([IDX_BYTES[-1] ^ 1]),
        "idx: a pipe": lambda path: os.mkfifo(path),
        "idx: endless zeros": lambda path: path.symlink_to("/dev/zero"),
        "idx: sparse, 1 TB": lambda path: (path.touch(), os.truncate(path, 2**40)),
        "idx.gz: bomb of 512 MB": lambda path: path.write_bytes(packed(512)),
        "idx.gz: 90,000 empty members": lambda path: path.write_bytes(gzip.compress(b"") * 90_000),
        "idx.gz: no gzip": IDX_BYTES,
        "idx.gz: truncated": gzip.compress(IDX_BYTES)[:-9],
        "idx.gz: wrong sum": gzip.compress(IDX_BYTES)[:-8] + bytes(8),
        "idx.gz: a name of 10 MB": lambda path: path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 10 * MB),
    }


@functools.cache
def listed_arrays() -> dict[str, bytes | Callable[[Path], None]]:
    return hostile_arrays()


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
        read = (lambda: data.load(str(path))) if suffix == ".npz" else (lambda: sources._read_idx(path, IDX))
        if wrong := refused(name, read, DataError, 2, 200):
            return wrong
        same = size is None or path.stat().st_size == size
        return None if same and len(list(folder.iterdir())) == 1 else f"{name}: the folder has changed"
    arrays, files = good_arrays()
    kind = int(rng.integers(4))
    if kind < 2:
        path = folder / "a.npz"
        path.write_bytes(mutated(rng, files[kind]))
        read = lambda: sources.read_npz(path)  # noqa: E731
    else:
        path = folder / ("a.gz" if kind == 2 else "a")
        path.write_bytes(mutated(rng, gzip.compress(IDX_BYTES, mtime=0) if kind == 2 else IDX_BYTES))
        read, arrays = lambda: {"x": sources._read_idx(path, IDX)}, {"x": GENUINE}
    try:
        loaded = read()
        if kind < 2:
            fastaae.data.from_arrays(loaded)  # other names may remain, which it refuses
    except DataError as error:
        return None if "\n" not in str(error) and len(str(error)) < 2000 else f"no line: {str(error)[:300]!r}"
    same = loaded.keys() == arrays.keys() and all(np.array_equal(loaded[k], arrays[k]) for k in arrays)
    return None if same else Outcome(f"loads with other values: {list(loaded)}", wrong=True)


# R24: .mat files


@functools.cache
def reader() -> Forks:
    return Forks("scipy.io", "matreader")


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


def mat_header(rows: int, columns: int, kind: int = 9) -> bytes:
    """A file whose only variable, X, uint8 of that shape, has one byte of values."""
    header = struct.pack("<4I", 6, 8, kind, 0) + struct.pack("<2I2i", 5, 8, rows, columns)
    variable = header + struct.pack("<2I8s", 1, 1, b"X") + struct.pack("<2I8s", 2, 1, b"\x07")
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<2I", 14, len(variable)) + variable


def hostile_mat(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    path = folder / "a.mat"
    hdf5 = b"\x89HDF\r\n\x1a\n"
    listed = [
        (hdf5 + bytes(600), "HDF5"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + hdf5 + bytes(99), "HDF5"),
        (mat_header(2**31 - 1, 2**31 - 1), "declare"),
        (mat_header(2**25, 1), "not readable"),
        (mat_header(1, 1, kind=17), ""),
        (bytes(600), "not a MATLAB file"),
    ]
    if case < len(listed):
        path.write_bytes(listed[case][0])
        try:
            with mock.patch.object(matfiles.subprocess, "run", reader().read_mat):
                matfiles.read(path, ["X"], 2**20 if case < 3 else 2**26)
        except DataError as error:
            return None if listed[case][1] in str(error) else f"{error}"
        return Outcome("accepted", wrong=True)
    arrays, files = good_mats()
    path.write_bytes(mutated(rng, files[rng.integers(3)]))
    try:
        with mock.patch.object(matfiles.subprocess, "run", reader().read_mat):
            loaded = matfiles.read(path, ("X", "y"), 2**20)
    except DataError as error:
        message = str(error)
        return None if message.startswith(f"{path}: ") and len(message) < 2000 else f"no line: {message[:300]!r}"
    right = list(loaded) == ["X", "y"] and all(a.dtype.kind in "biuf" and a.nbytes <= 2**20 for a in loaded.values())
    return None if right else f"loads as {[(k, a.dtype, a.shape) for k, a in loaded.items()]}"


# R26: configs


def hostile_configs() -> dict[str, tuple[bytes, str]]:
    """By name: a file, and what the refusal says of it."""

    def of(**fields: Any) -> bytes:
        return json.dumps(fields).encode()

    return {
        "unknown key": (of(epoch=3), "unknown field 'epoch'; did you mean 'epochs'"),
        "a key of 100 kB": (of(**{"e" * 100_000: 3}), "unknown field 'eeee"),
        "an odd key": (of(**{"\x1b[2J": 3}), r"unknown field '\x1b[2J'"),
        "wrong type": (of(epochs="3"), "epochs='3': expected an integer from 1"),
        "a boolean": (of(epochs=True), "epochs=True: expected an integer from 1"),
        "float for int": (of(batch_size=1e12), "batch_size=1000000000000.0: expected an integer"),
        "NaN": (b'{"lr_decay": NaN}', "lr_decay=nan: expected a finite number"),
        "infinite": (b'{"prior_std": Infinity}', "prior_std=inf: expected a finite number"),
        "beyond floats": (b'{"prior_std": 1e999}', "prior_std=inf: expected a finite number"),
        "negative": (of(epochs=-1), "epochs=-1: expected an integer from 1"),
        "zero": (of(batch_size=0), "batch_size=0: expected an integer from 1"),
        "too large": (of(style_dim=10**12), "style_dim=1000000000000: expected an integer from 1 to 2**31 - 1"),
        "huge integer": (b'{"seed": 1%s}' % (b"0" * 4000), "seed=1000"),
        "integer of 10^5 digits": (b'{"seed": 1%s}' % (b"0" * 100_000), "config.json: "),
        "nested 10^5 deep": (b"[" * 100_000, "config.json: "),
        "nested value": (of(hidden=[[1]]), "hidden=[1]: expected an integer"),
        "duplicate key": (b'{"epochs": 3, "epochs": 4}', "'epochs' is given twice"),
        "empty": (b"", "config.json: "),
        "a list": (b"[1]", "config: got list, expected an object"),
        "a number": (b"1", "config: got int, expected an object"),
        "byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
        "UTF-16": ("{}".encode("utf-16"), "utf-8"),
        "NUL": (b'{"dataset": "a\x00b"}', "config.json: "),
        "not closed": (b'{"epochs": 3', "config.json: "),
        "2 MB": (of(epochs=3) + b" " * 2 * MB, "expected at most 1048576"),
        "a name that climbs": (of(name="../../x"), "name='../../x': expected letters"),
        "fields at odds": (
            of(task="gan", batch_norm="encoder"),
            "batch_norm='encoder': expected 'none' in the task 'gan'",
        ),
        "a choice that is none": (of(optimizer=["sgd"]), "optimizer="),
        "a path of numbers": (of(data_dir=3), "data_dir=3: expected a string or None"),
        "a pipe": (b"", "not a regular file"),
        "endless zeros": (b"", "not a regular file"),
    }


def hostile_config(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    listed, path = hostile_configs(), folder / "config.json"
    if case < len(listed):
        name = list(listed)[case]
        content, expected = listed[name]
        if name == "a pipe":
            os.mkfifo(path)
        elif name == "endless zeros":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(content)
        start = time.perf_counter()
        done = cli("train", "--config", path, cwd=folder, timeout=30)
        took, said = time.perf_counter() - start, done.stderr.strip()
        if done.returncode != 2 or "Traceback" in said or "\n" in said or len(said) > 8000 or took > 3:
            return f"{name}: exit {done.returncode} after {took:.1f} s, {said[-300:]!r}"
        return None if expected in said else f"{name}: {said[-300:]!r}, expected {expected!r}"
    given = fastaae.preset(str(rng.choice(fastaae.presets()))).to_dict()
    if rng.random() < 0.3:
        given = {"config": given, "data": {"sha256": "0" * 64}}
    for _ in range(rng.integers(1, 4)):
        given = changed(rng, given)
    text = json.dumps(given).encode()
    path.write_bytes(mutated(rng, text) if rng.random() < 0.5 else text)
    try:
        cfg = config.Config.from_json(path)
    except ValueError as error:
        message = str(error)
        right = message.startswith(f"{path}: ") and len(message) < 2000 and "\n" not in message
        return None if right else f"no line: {message[:300]!r}"
    return None if config.Config.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg else "does not come back"


# R29: poor surroundings


@functools.cache
def trained() -> Path:
    folder = Path(tempfile.mkdtemp())
    done = cli("train", "digits", "--epochs", "1", "--out-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


TRAIN = ("train", "digits", "--epochs", "1", "--out-dir")
WITHOUT_TRITON = (
    "import sys; sys.modules['triton'] = None; from fastaae import cli; "
    "sys.exit(cli.main(['train', 'digits', '--epochs', '1', '--out-dir', 'run']))"
)


def poor_surroundings(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    bare = folder / "bare"
    bare.mkdir()
    shell = {
        "presets into head": "python -m fastaae.cli presets | head -1",
        "train into head": "python -m fastaae.cli train digits --epochs 1 --out-dir run | head -1",
        "train without input": "python -m fastaae.cli train digits --epochs 1 --out-dir run <&-",
        "train without output": "python -m fastaae.cli train digits --epochs 1 --out-dir run >&- 2>&-",
        "parzen without output": f"python -m fastaae.cli parzen {trained()} --samples 500 >&- 2>&-",
        "few open files": "ulimit -n 64; python -m fastaae.cli train digits --epochs 1 --out-dir run",
        "no network": "unshare -rn python -m fastaae.cli train digits --epochs 1 --out-dir run",
        "no network, no data": "XDG_CACHE_HOME=$PWD FASTAAE_DATA= unshare -rn python -m fastaae.cli train mnist-100",
    }
    ways: dict[str, Callable[[], subprocess.CompletedProcess]] = {
        name: lambda text=text: subprocess.run(
            ["bash", "-o", "pipefail", "-c", text],
            cwd=folder,
            env=environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
            capture_output=True,
            text=True,
            timeout=120,
        )
        for name, text in shell.items()
    }
    ways |= {
        "no HOME": lambda: cli(*TRAIN, "run", cwd=folder, HOME=None, XDG_CACHE_HOME=None),
        "HOME that is not there": lambda: cli(*TRAIN, "run", cwd=folder, HOME="/nowhere", XDG_CACHE_HOME=None),
        "HOME that is a file": lambda: cli(*TRAIN, "run", cwd=folder, HOME="/dev/null", XDG_CACHE_HOME=None),
        "dumb terminal": lambda: cli(*TRAIN, "run", cwd=folder, TERM="dumb"),
        "no TERM, no locale": lambda: cli(*TRAIN, "run", cwd=folder, TERM=None, LC_ALL="C", PYTHONUTF8="0"),
        "no PATH": lambda: cli(*TRAIN, "run", cwd=folder, PATH=""),
        "path with spaces": lambda: cli(*TRAIN, "a b/ü ñ/run", cwd=folder),
        "hidden GPU": lambda: cli(*TRAIN, "run", cwd=folder, CUDA_VISIBLE_DEVICES=""),
        "no Triton": lambda: subprocess.run(
            [sys.executable, "-c", WITHOUT_TRITON], cwd=folder, env=environment(), capture_output=True, text=True
        ),
        "no TMPDIR": lambda: cli(*TRAIN, "run", cwd=folder, TMPDIR="/nowhere"),
        "odd thread count": lambda: cli(*TRAIN, "run", cwd=folder, OMP_NUM_THREADS="13"),
        "evaluate, no HOME": lambda: cli("evaluate", trained(), cwd=bare, HOME=None, TERM="dumb", LC_ALL="C"),
        "parzen, dumb terminal": lambda: cli("parzen", trained(), "--samples", 500, cwd=bare, TERM="dumb", LC_ALL="C"),
        "sample, no display": lambda: cli(
            "sample", trained(), "--out", folder / "s p.png", cwd=bare, HOME=None, DISPLAY=None, MPLCONFIGDIR=None
        ),
    }
    name = list(ways)[case % len(ways)]
    if "network" in name and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        raise Skip("unshare -rn is not allowed here")
    done = ways[name]()
    said = (done.stderr or "").strip()
    if "Traceback" in said or done.returncode < 0:
        return f"{name}: exit {done.returncode}, {said[-400:]!r}"
    if name == "no network, no data":
        right = done.returncode == 2 and "it could not be downloaded" in said
    elif name.endswith("into head"):
        right = done.returncode in (0, 141)
    else:
        right = done.returncode == 0
    return None if right else f"{name}: exit {done.returncode}, {said[-400:]!r}"


CHECKS = {
    "R6": Check("a checkpoint's bytes flipped, lost, put in, exchanged", 20_000, damaged_checkpoint),
    "R21": Check("hostile checkpoints, sealed", 400, hostile_checkpoint),
    "R22": Check("files that would run code", 13, running_code),
    "R23": Check("hostile .npz and IDX files", 1000, hostile_array),
    "R24": Check("hostile .mat and HDF5 files", 8006, hostile_mat),
    "R26": Check("hostile configs", 1000, hostile_config),
    "R29": Check("poor surroundings", 22, poor_surroundings),
}

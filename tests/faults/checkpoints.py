"""Checkpoints that are damaged, or hostile: R6, R21."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastaae

from .case import Check, Outcome
from .hostile import MB, NO_FILES, changed, mutated, refused, unclear
from .inside import CheckpointError, checkpoint

# R6: damaged


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
        loaded, about = checkpoint.load(path)
    except CheckpointError as error:
        return unclear(str(error), f"{path}: ")
    same = loaded.keys() == tensors.keys() and all(torch.equal(loaded[k], t) for k, t in tensors.items())
    return None if same and about == info else Outcome("loads with other values", wrong=True)


# R21: hostile


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


Spoiler = Callable[[dict, bytes], bytes]
"""Makes a hostile file of a good header and its values."""


def tensor(**fields: Any) -> Spoiler:
    """One tensor's entry says something else."""
    return lambda h, v: sealed({**h, "decoder.0.bias": {**h["decoder.0.bias"], **fields}}, v)


def about(**fields: Any) -> Spoiler:
    """The metadata say something else."""
    return lambda h, v: sealed({**h, "__metadata__": {**h["__metadata__"], **fields}}, v)


def text(old: bytes, new: bytes) -> Spoiler:
    """The header's text holds something else."""
    return lambda h, v: sealed(json.dumps(h).encode().replace(old, new, 1), v)


def added(count: int) -> Spoiler:
    """So many empty tensors more."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return lambda h, v: sealed(h | {str(k): empty for k in range(count)}, v)


def hostile_headers() -> dict[str, Spoiler]:
    """By name: what makes a hostile file of a good header and its values."""
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
        **NO_FILES,
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
        return unclear(str(error))
    sample = model.sample(3, 0)
    return None if sample.shape == (3, *model.shape) and np.isfinite(sample).all() else "a model that does not work"


CHECKS = {
    "R6": Check("a checkpoint's bytes flipped, lost, put in, exchanged", 20_000, damaged_checkpoint),
    "R21": Check("hostile checkpoints, sealed", 400, hostile_checkpoint),
}

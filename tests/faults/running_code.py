"""Files that would run code, each read in a process that watches what happens: R22."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import torch

from .case import Check, Outcome
from .checkpoints import sealed, small_model, split
from .hostile import zipped
from .processes import ROOT, SCRIPTS, python


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
        options = ("-q", "-p", "no:cacheprovider", "-k", "unpickles")
        done = python("-m", "pytest", *options, "tests/test_package.py", cwd=ROOT)
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
    watched = SCRIPTS / "read_watched.py"
    done = python(watched, kind, path, folder if kind == "mat" else folder / name, timeout=120)
    if done.returncode:
        return f"{name} of {kind}: {done.stderr[-300:]}"
    said, seen = json.loads(done.stdout)
    if canary.exists():
        return Outcome(f"{name} of {kind}: the code ran", wrong=True)
    return None if said.startswith("refused") and not seen else f"{name} of {kind}: {said}, {seen}"


CHECKS = {"R22": Check("files that would run code", 13, running_code)}

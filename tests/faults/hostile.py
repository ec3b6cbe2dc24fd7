"""What makes input hostile, bytes and JSON changed at random, and what a refusal has to be: one line, soon, in little
memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .case import Outcome

MB = 2**20
NO_FILES: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}


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


def zipped(members: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    """A .zip, or .npz, of members that are not compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names given twice
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return file.getvalue()


def peak() -> int:
    """Bytes that this process has held at most since the last call."""
    try:
        held = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, StopIteration):
        return 0
    return int(held.split()[1]) * 1024


def unclear(message: str, start: str = "") -> str | None:
    """What is wrong with the message of a refusal; None for one line, not too long, that begins with `start`."""
    if message and "\n" not in message and len(message) <= 2000 and message.startswith(start):
        return None
    return f"the message is no line of {start!r}: {message[:300]!r}"


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
    wrong = unclear(message)
    return wrong and f"{name}: {wrong}"


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

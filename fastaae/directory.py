"""A run's directory: the only place that knows the names of its files. One process at a time writes to it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint
from .files import brief, parse_json, read_json, read_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NEWEST, PREVIOUS, LOCK = "checkpoint.safetensors", "checkpoint.previous.safetensors", ".lock"
CONFIG, METRICS, SUMMARY, TRACE = "config.json", "metrics.jsonl", "summary.json", "trace.json"
MAX_METRICS = 2**30  # bytes of metrics.jsonl


class RunDirectory:
    """The files of a run, which need not be there yet. Of several ranks it holds a directory each, and a summary."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.newest, self.previous, self.config, self.metrics, self.summary, self.trace = (
            self.path / name for name in (NEWEST, PREVIOUS, CONFIG, METRICS, SUMMARY, TRACE)
        )

    def of_rank(self, rank: int) -> Path:
        """Where a rank keeps its share of the run."""
        return self.path / f"rank-{rank}"

    def ranks(self) -> int:
        """How many ranks trained the run, 0 if it was a process by itself."""
        return len(list(self.path.glob("rank-*")))

    def check_empty(self) -> None:
        """Raise ValueError where there is anything but a lock."""
        if self.path.exists() and (not self.path.is_dir() or any(p.name != LOCK for p in self.path.iterdir())):
            hint = ", this one holds no checkpoint to resume: delete it to start again"
            hint = "; to go on with the run in it use resume" if self.newest.exists() else hint
            raise ValueError(f"out_dir={str(self.path)!r}: expected a new or empty directory{hint}")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training here, and remove what killed ones had half written. However a process
        ends, the system lets go for it. (Windows has no such locks: there nothing is kept from anyone.)

        Raises:
            ValueError: another process holds it; the message says which. OSError: the directory cannot be written to.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(self.path / LOCK, flags, 0o666), "r+b", buffering=0) as file:
            self._lock(file)
            _held.add(file)
            file.truncate(0)
            with contextlib.suppress(OSError):  # a full disk
                file.write(f"{os.getpid()} on {platform.node()}".encode())
            for name in (NEWEST, CONFIG, METRICS, SUMMARY):  # what write_atomic writes
                for path in self.path.glob(f".{name}.*.tmp"):
                    path.unlink()
            try:
                yield
            finally:
                _held.discard(file)
                if not file.closed:  # as in a fork that comes here
                    file.truncate(0)

    def _lock(self, file: io.FileIO) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read(200).decode(errors="replace")
            raise ValueError(f"{self.path}: process {holder} trains there: wait for it, or stop it") from None
        except OSError as error:
            warnings.warn(f"{self.path}: not locked against other processes ({error.strerror})", stacklevel=5)

    def load(self, mend: bool = False, warn: bool = True) -> checkpoint.Checkpoint:
        """The newest checkpoint; where that one is damaged, with a warning, the one before it, which with mend becomes
        the newest. That is for who holds the directory alone.

        Raises:
            CheckpointError: neither can be loaded; the message is about the newest.
        """
        if not self.newest.exists() and self.of_rank(0).exists():
            hint = "resume it under torchrun, or name the directory of one rank, such as rank-0"
            raise checkpoint.CheckpointError(f"{self.path}: trained by several ranks: {hint}")
        try:
            return checkpoint.load(self.newest)
        except checkpoint.DamagedError as error:
            try:
                before = checkpoint.load(self.previous)
            except checkpoint.CheckpointError:
                raise error from None
            if warn:
                warnings.warn(f"{error}; going on with the one before, of step {before.info.get('step')}", stacklevel=1)
        if mend:
            os.replace(self.previous, self.newest)
        return before

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Replace config.json or summary.json."""
        checkpoint.write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())

    def recorded(self) -> dict[str, Any]:
        """What config.json says, {} if there is none. Raises ValueError where it is damaged."""
        with _damage(self.config):
            found = read_json(self.config) if self.config.exists() else {}
            if not isinstance(found.get("config", {}), dict) or not isinstance(found.get("resumed", []), list):
                raise ValueError(f"expected config to be an object and resumed a list, got {brief(found)}")
            return found

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")

    def truncate(self, step: int) -> None:
        """Drop from metrics.jsonl what a killed or diverged run logged after its checkpoint, of this step. Raises
        ValueError where history() could not read what is left."""
        with _damage(self.metrics):
            rows = [(row, line) for row, line in self._rows() if row["step"] <= step]
            _columns([row for row, _ in rows])
        checkpoint.write_atomic(self.metrics, "".join(line for _, line in rows).encode())

    def history(self) -> dict[str, np.ndarray]:
        """metrics.jsonl as arrays: "step" [L] and the losses [L, R] at those steps; "epoch" [E] and the validation
        metrics [E, R] after those epochs (1-based). Warnings are left out. Raises ValueError where it is damaged."""
        with _damage(self.metrics):
            return _columns([row for row, _ in self._rows()])

    def _rows(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Each row and its line, but for a last one that a kill left half written."""
        text = read_text(self.metrics, MAX_METRICS) if self.metrics.exists() else ""
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):
                row = parse_json(line)
                if not isinstance(row.get("step"), int):
                    raise ValueError(f"step={brief(row.get('step'))} in a row, expected an integer")
                yield row, line


def _columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    after = ("step", "epoch", "valid_", "told_apart_", "code_")  # what rows after epochs hold
    kept = [(all(name.startswith(after) for name in row), row) for row in rows if "warning" not in row]
    losses, epochs = ([row for of_epoch, row in kept if of_epoch == k] for k in (False, True))
    try:
        columns = {"step": [r["step"] for r in losses], "epoch": [r["epoch"] + 1 for r in epochs]}
        for part in (losses, epochs):
            columns |= {name: [r[name] for r in part] for name in (part[0] if part else ()) if name not in columns}
        return {name: np.array(values) for name, values in columns.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"rows that do not fit each other: {error}") from None


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Say which file an error of reading is about, and what to do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({brief(error)}); move it away to go on without it") from None


_held: set[io.FileIO] = set()
if hasattr(os, "register_at_fork"):  # or the lock of a process that trains would outlive it in a fork of it
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])

"""A run's directory: the only place that knows the names of its files. One process at a time writes to it."""

import contextlib
import errno
import io
import json
import os
import platform
import stat
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint
from .files import WriteError, brief, check_regular, expanded, parse_json, read_json, warn_caller

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NEWEST, PREVIOUS, LOCK = "checkpoint.safetensors", "checkpoint.previous.safetensors", ".lock"
LOCKED = ".locked"  # beside LOCK on Windows, where nobody can read what is locked
CONFIG, METRICS, SUMMARY, TRACE, SWEEP = "config.json", "metrics.jsonl", "summary.json", "trace.json", "sweep.json"
MAX_METRICS, MAX_ROW = 2**30, 2**21  # bytes of metrics.jsonl, and of a row, which 20,000 replicas fill
AFTER_EPOCHS = ("valid_", "told_apart_", "code_", "dead_", "label_")  # how names begin of what rows after epochs hold


class RunDirectory:
    """The files of a run, which need not be there yet. Of several ranks it holds a directory each, and a summary."""

    def __init__(self, path: str | Path):
        self.path = expanded(path)
        self.newest, self.previous, self.config, self.metrics, self.summary, self.trace, self.sweep = (
            self.path / name for name in (NEWEST, PREVIOUS, CONFIG, METRICS, SUMMARY, TRACE, SWEEP)
        )
        self.lock: io.FileIO | None = None  # while this process holds it
        self.made: list[Path] = []  # folders that have not been synced since
        self.logged: int | None = None  # bytes of metrics.jsonl, as this process left it

    def make(self, new: bool = False) -> None:
        """Make the directory, with those that it is in. Raises FileExistsError where it is to be new, and is not."""
        self.made += [path for path in (self.path, *self.path.parents) if not os.path.exists(path)]
        self.path.mkdir(parents=True, exist_ok=not new)

    def of_rank(self, rank: int) -> Path:
        """Where a rank keeps its share of the run."""
        return self.path / f"rank-{rank}"

    def ranks(self) -> int:
        """How many ranks trained the run, 0 if it was a process by itself."""
        return sum(path.is_dir() and path.name[5:].isdecimal() for path in self.path.glob("rank-*"))

    def check_empty(self) -> None:
        """Raise ValueError where there is anything but a lock."""
        if self.path.exists() and (not self.path.is_dir() or {p.name for p in self.path.iterdir()} - {LOCK, LOCKED}):
            hint = f", this {'one holds other files' if self.path.is_dir() else 'is a file'}: name another"
            hint = ", this run has no checkpoint to resume: delete it to start again" if self.config.exists() else hint
            hint = "; to go on with the run in it use resume" if self.newest.exists() else hint
            raise ValueError(f"out_dir={str(self.path)!r}: expected a new or empty directory{hint}")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training here, and remove what killed ones had half written. However a process
        ends, the system lets go for it. Raises ValueError: another process holds it; the message says which. OSError:
        the directory cannot be written to."""
        with (
            open(_open(self.path / LOCK, os.O_RDWR | os.O_CREAT), "r+b", buffering=0) as file,
            contextlib.ExitStack() as locked,
        ):
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                else:
                    locked.enter_context(_locked(self.path / LOCKED))
            except BlockingIOError:
                holder = file.read(200).decode(errors="replace")
                raise ValueError(f"{self.path}: process {holder} trains there: wait for it, or stop it") from None
            except OSError as error:
                warn_caller(f"{self.path}: not locked against other processes ({error.strerror})")
            _held.add(file)
            file.truncate(0)
            with contextlib.suppress(OSError):  # a full disk
                file.write(f"{os.getpid()} on {platform.node()}".encode())
            for path in (self.newest, self.config, self.metrics, self.summary, self.trace, self.sweep):
                checkpoint.remove_unfinished(path)
            self.lock = file if fcntl else None  # Windows lets nobody remove a directory with an open file
            try:
                yield
            finally:
                self.lock = None
                _held.discard(file)
                if not file.closed:  # as in a fork that comes here
                    file.truncate(0)

    def check_held(self) -> None:
        """Raise WriteError where what is there now is not what this process holds: its files may be another run's."""
        with contextlib.suppress(FileNotFoundError, ValueError):  # ValueError: closed, in a fork of who holds it
            if self.lock is None or os.path.samestat(os.fstat(self.lock.fileno()), os.lstat(self.path / LOCK)):
                return
        gone = f"{self.path}: its {LOCK} is gone, or another run's"
        raise WriteError(f"{gone}: the directory was removed or replaced while a run wrote to it; start again")

    def load(self, mend: bool = False, warn: bool = True) -> checkpoint.Checkpoint:
        """The newest checkpoint; where that one is damaged, with a warning, the one before it, which with mend, for who
        holds the directory, becomes the newest. Raises CheckpointError, about the newest: neither can be loaded."""
        if not self.newest.exists() and not self.previous.exists():
            self._check_run()
        try:
            found = checkpoint.load(self.newest)
        except checkpoint.CheckpointError as error:
            if self.newest.exists() and not isinstance(error, checkpoint.DamagedError):
                raise
            try:
                found = checkpoint.load(self.previous)
            except checkpoint.CheckpointError:
                raise error from None
            if warn:
                warn_caller(f"{error}; going on with the one before, of step {found.info.get('step')}")
            if mend:
                os.replace(self.previous, self.newest)
        checkpoint.check_info(self.newest, found.info)
        return found

    def _check_run(self) -> None:
        """Raise CheckpointError where what is there instead of checkpoints is known."""
        if self.of_rank(0).exists():
            hint = "resume it under torchrun, or name the directory of one rank, such as rank-0"
            raise checkpoint.CheckpointError(f"{self.path}: trained by several ranks: {hint}")
        if self.sweep.exists():
            plan = self.read_json(self.sweep)
            best = "best" in plan and f": replica {plan.get('replica')} of {self.path / str(plan['best'])} is the best"
            raise checkpoint.CheckpointError(f"{self.path}: a sweep, expected the directory of a run{best or ''}")
        if runs := sorted(path.parent for path in self.path.glob(f"*/{NEWEST}")):
            hint = f"expected the directory of one, such as {runs[0]}"
            raise checkpoint.CheckpointError(f"{self.path}: a folder of runs, {hint}")

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Replace config.json, summary.json or sweep.json."""
        self.check_held()
        checkpoint.write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())

    def read_json(self, path: Path) -> dict[str, Any]:
        """What such a file says. Raises ValueError where it is damaged."""
        with _damage(path, *["name another out_dir"] * (path == self.sweep)):
            return read_json(path)

    def recorded(self) -> dict[str, Any]:
        """What config.json says, {} if there is none. Raises ValueError where it is damaged."""
        with _damage(self.config):
            found = read_json(self.config) if self.config.exists() else {}
            if not isinstance(found.get("config", {}), dict) or not isinstance(found.get("resumed", []), list):
                raise ValueError(f"expected config to be an object and resumed a list, got {brief(found)}")
            return found

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl."""
        self.check_held()
        with open(self.metrics, "a", encoding="utf-8", opener=_open) as lines:
            if self.logged not in (None, found := lines.tell()):
                lengths = f"{found} bytes, {self.logged} were written"
                warn_caller(f"{self.metrics}: {lengths}: its history is another's in part")
            lines.write(json.dumps(row) + "\n")
            self.logged = lines.tell()

    def sync(self) -> int:
        """Let the rows so far outlive a power cut, before the checkpoint that refers to them. Returns: their bytes."""
        self.check_held()
        with open(self.metrics, "rb+", opener=_open) as lines:
            os.fsync(lines.fileno())
            while self.made:
                checkpoint.sync_folder(self.made.pop().parent)
            return os.fstat(lines.fileno()).st_size

    def truncate(self, step: int, counted: int | None) -> None:
        """Drop from metrics.jsonl what a killed or diverged run logged after its checkpoint, which is of so many steps
        and counted so many bytes. Warns where fewer are left. Raises ValueError where the rest is damaged."""
        self.logged = None
        counted, most = (0, MAX_METRICS) if counted is None else (counted, counted)
        with _damage(self.metrics), checkpoint.replaced(self.metrics, size=counted) as new, open(new, "xb") as file:
            rows = ((row, file.write(line)) for row, line in self._rows(most) if row["step"] <= step)
            _columns(row for row, _ in rows)
            kept = file.tell()
        if kept < counted:
            before = f"the checkpoint of step {step} counted {counted}"
            warn_caller(f"{self.metrics}: {kept} bytes, {before}: rows of its history are lost")

    def history(self) -> dict[str, np.ndarray]:
        """metrics.jsonl as arrays: "step" [L] and the losses [L, R] at those steps; "epoch" [E] and the validation
        metrics [E, R] after those epochs (1-based). Warnings are left out. Raises ValueError where it is damaged."""
        with _damage(self.metrics):
            return _columns(row for row, _ in self._rows())

    def _rows(self, most: int = MAX_METRICS) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Each row and its line, of the first so many bytes, but for a last one that a kill left half written."""
        if not self.metrics.exists():
            return
        check_regular(self.metrics, MAX_METRICS)
        with open(self.metrics, "rb") as lines:
            while lines.tell() < most:
                line = lines.readline(MAX_ROW)
                if not line.endswith(b"\n") and len(line) < MAX_ROW:
                    return
                row = parse_json(line.decode())
                if type(row.get("step")) is not int:
                    raise ValueError(f"step={brief(row.get('step'))} in a row, expected an integer")
                yield row, line


def _columns(rows: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    after = ("step", "epoch", *AFTER_EPOCHS)
    losses, epochs, widths = {"step": array("q")}, {"epoch": array("q")}, {}
    try:
        for row in rows:
            if "warning" in row:
                continue
            part = epochs if all(name.startswith(after) for name in row) else losses
            if len(part) == 1:
                part |= {name: array("d") for name in row if name not in ("step", "epoch")}
            row |= {"step": [row["step"]], "epoch": [row["epoch"] + 1]}
            for name, column in part.items():
                values, width = row[name], widths.setdefault(name, len(row[name]))
                if len(values) != width or not {*map(type, values)} <= {int, float}:
                    raise ValueError(f"{name}={brief(values)}, expected {width} numbers")
                column.extend(values)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"rows that do not fit each other: {error}") from None
    columns = {"step": np.asarray(losses.pop("step")), "epoch": np.asarray(epochs.pop("epoch"))}
    for part in (losses, epochs):
        columns |= {name: np.asarray(column).reshape(-1, widths[name]) for name, column in part.items()}
    return columns


@contextlib.contextmanager
def _damage(path: Path, hint: str = "move it away to go on without it") -> Iterator[None]:
    """Say which file an error of reading is about, and what to do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({brief(error)}); {hint}") from None


def _open(path: str | Path, flags: int) -> int:
    """As os.open(), of a plain file that has no other name elsewhere. Raises OSError: it is another, or a link."""
    try:
        handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # a link, a folder, a pipe
            raise
        found = os.lstat(path)
    else:
        found = os.fstat(handle)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return handle
        os.close(handle)
    kind = f"{os.path.basename(path)} is {stat.filemode(found.st_mode)} with {found.st_nlink} names"
    raise OSError(f"{kind}, expected a plain file with one: delete it")


def _locked(path: Path) -> contextlib.AbstractContextManager[Any]:
    """What holds a file where there is no flock. Raises BlockingIOError: another process does."""
    import filelock

    try:
        return filelock.FileLock(path).acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError from None


_held: set[io.FileIO] = set()
if hasattr(os, "register_at_fork"):  # or the lock of a process that trains would outlive it in a fork of it
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])

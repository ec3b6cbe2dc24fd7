"""One file per checkpoint: safetensors, atomic, checked by SHA-256, without pickle; and the directory of a run's files,
which one process at a time writes to.

safetensors neither fsyncs nor checks sums, so both are done here. The digest is that of the whole file with the
digest's own 64 characters set to zeros, in every format; it lies in the header's metadata, so any safetensors reader
can open the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .files import brief, check_regular, parsed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1
MAX_BYTES = 1 << 35  # of a file: 100 replicas of the largest preset take a third of it
MAX_HEADER, MAX_TENSORS, MAX_DIMENSIONS = 1 << 20, 4096, 8
NEWEST, PREVIOUS, LOCK = "checkpoint.safetensors", "checkpoint.previous.safetensors", ".lock"
WRITTEN = (NEWEST, "config.json", "metrics.jsonl", "summary.json")
"""What write_atomic writes in a run's directory."""
_ZEROS = "0" * 64
_LIMITS = (
    f"at most {MAX_TENSORS} tensors of {MAX_DIMENSIONS} dimensions, {MAX_HEADER} bytes of header and {MAX_BYTES} in all"
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and why."""


class DamagedError(CheckpointError):
    """A checkpoint that is missing, or whose bytes are not those that were written."""


def write_atomic(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Replace the file at path by content, or leave it as it was: temporary file in the same folder, fsync, rename,
    fsync of the folder.

    Args:
        previous: where to keep the file that is replaced.

    Raises:
        OSError: the content could not be written; the temporary file is gone and the old file intact. Only where the
            folder cannot be synced is the new file already in place, though a power cut may still undo that.
    """
    try:
        _replace(path, content, previous)
    except OSError as error:
        needed = f"{len(content) / 1e6:.2f} MB needed"
        if error.errno == errno.ENOSPC:
            with contextlib.suppress(OSError):
                needed += f", {shutil.disk_usage(path.parent).free / 1e6:.2f} MB free"
        raise OSError(error.errno, f"{error.strerror or error} ({needed})", str(path)) from None


def _replace(path: Path, content: bytes, previous: Path | None) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        if previous is not None and path.is_file():
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous)  # so that there is a whole file at path at any moment
            except OSError:  # no hard links here
                os.replace(path, previous)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(
    path: str | Path, tensors: dict[str, Tensor], info: dict[str, Any], previous: str | Path | None = None
) -> None:
    """Write tensors (any device, layout) and JSON-ready info to one file, atomically.

    Args:
        previous: where to keep the file that is replaced.

    Raises:
        OSError: see write_atomic. ValueError: more than load() takes.
    """
    import safetensors.torch

    metadata = {"format": str(FORMAT), "info": json.dumps(info), "sha256": _ZEROS}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = bytearray(safetensors.torch.save(copies, metadata))
    header = int.from_bytes(content[:8], "little")
    if not _within_limits(len(content), header, [t.ndim for t in copies.values()]):
        raise ValueError(f"{path}: {len(copies)} tensors, {header} bytes of names and info; expected {_LIMITS}")
    field = b'"sha256":"'  # in info and names quotes are escaped, so this is the metadata's own
    start = content.index(field + _ZEROS.encode(), 8) + len(field)
    content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()
    write_atomic(Path(path), bytes(content), None if previous is None else Path(previous))


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what save() wrote: tensors on the CPU, and info. Only its header is held until the digest has been checked.

    Raises:
        DamagedError: missing or damaged. CheckpointError: no regular file, not a fastaae checkpoint, of another format,
            or beyond the limits above.
    """
    import safetensors
    import safetensors.torch

    path = Path(path)
    try:
        check_regular(path, MAX_BYTES)
        with path.open("rb") as file:
            content, metadata = _read(file)
    except OSError as error:
        damaged = DamagedError if error.errno in (errno.ENOENT, errno.EIO) else CheckpointError
        raise damaged(f"{path}: {error.strerror or error}, expected a checkpoint") from None
    except ValueError as error:
        damaged = isinstance(error, DamagedError) or not os.path.lexists(path)
        raise (DamagedError if damaged else CheckpointError)(f"{path}: {error}") from None
    if metadata["format"] != str(FORMAT):
        found = brief(metadata["format"])
        raise CheckpointError(f"{path}: format {found}, expected {FORMAT}, which this version of fastaae reads")
    try:
        tensors, info = safetensors.torch.load(content), parsed(metadata["info"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(info, dict):
        raise CheckpointError(f"{path}: its info is a {type(info).__name__}, expected an object")
    return tensors, info


def _read(file: BinaryIO) -> tuple[bytes, dict[str, Any]]:
    """The bytes and the metadata of a file whose digest is right.

    Raises:
        DamagedError: it is not. ValueError: it is beyond the limits.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if size < 8 or length > MAX_HEADER or 8 + length > size:
        raise DamagedError(f"not a checkpoint, or truncated ({size} bytes), expected a header of at most {MAX_HEADER}")
    start += file.read(length)
    try:
        header = parsed(start[8:])
        metadata = header.pop("__metadata__")
        dimensions = [len(tensor["shape"]) for tensor in header.values()]
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        digest, *_ = (metadata[name] for name in ("sha256", "format", "info"))
        at = start.index(digest.encode(), 8)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        said = f"not a fastaae checkpoint, or its header is damaged ({brief(error)})"
        raise DamagedError(f"{said}, expected one") from None
    if not _within_limits(size, length, dimensions):
        most = max(dimensions, default=0)
        raise ValueError(f"{len(header)} tensors of up to {most} dimensions, {size} bytes, expected {_LIMITS}")
    if end != size - 8 - length:
        raise DamagedError(f"tensors that end at byte {end}, expected {size - 8 - length}: the file is damaged")
    sha = hashlib.sha256(start[:at] + _ZEROS.encode() + start[at + len(digest) :])
    while block := file.read(1 << 20):
        sha.update(block)
    if sha.hexdigest() != digest:
        raise DamagedError(f"SHA-256 differs from the one written with it, expected {brief(digest)}: damaged")
    file.seek(0)
    return file.read(), metadata


def _within_limits(size: int, header: int, ranks: list[int]) -> bool:
    small = size <= MAX_BYTES and header <= MAX_HEADER and len(ranks) <= MAX_TENSORS
    return small and max(ranks, default=0) <= MAX_DIMENSIONS


def load_run(directory: str | Path, mend: bool = False, warn: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint of a run; where that one is damaged, with a warning, the one before it.

    Args:
        mend: let that one be the newest. Only for who holds the directory.
        warn: False: without the warning.

    Raises:
        CheckpointError: neither can be loaded; the message is about the newest.
    """
    newest, previous = Path(directory) / NEWEST, Path(directory) / PREVIOUS
    if not newest.exists() and (Path(directory) / "rank-0").exists():
        raise CheckpointError(f"{directory}: trained by several ranks, expected one's directory, rank-0 or another")
    try:
        return load(newest)
    except DamagedError as error:
        try:
            loaded = load(previous)
        except CheckpointError:
            raise error from None
        if warn:
            warnings.warn(f"{error}; going on with the one before, of step {loaded[1].get('step')}", stacklevel=1)
    if mend:
        os.replace(previous, newest)
    return loaded


_held: set[io.FileIO] = set()


def _let_go() -> None:
    """In a process forked from one that trains: or the lock would outlive that one."""
    for file in _held:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep other processes from training in a run's directory, and remove what killed ones had half written. However a
    process ends, the system lets go for it. (Windows has no such locks: there nothing is kept from anyone.)

    Raises:
        ValueError: another process holds it; the message says which. OSError: the directory cannot be written to.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(directory / LOCK, flags, 0o666), "r+b", buffering=0) as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read(200).decode(errors="replace")
                raise ValueError(
                    f"{directory}: process {holder} trains there, expected none: wait or stop it"
                ) from None
            except OSError as error:
                warnings.warn(f"{directory}: not locked against other processes ({error.strerror})", stacklevel=4)
        _held.add(file)
        file.truncate(0)
        with contextlib.suppress(OSError):  # a full disk
            file.write(f"{os.getpid()} on {platform.node()}".encode())
        for name in WRITTEN:
            for path in directory.glob(f".{name}.*.tmp"):
                path.unlink()
        try:
            yield
        finally:
            _held.discard(file)
            if not file.closed:  # as in a fork that comes here
                file.truncate(0)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values: equal for bit-equal tensors."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()

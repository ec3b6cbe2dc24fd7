"""One file per checkpoint: safetensors, atomic, checked by SHA-256, without pickle.

safetensors neither fsyncs nor checks sums, so both are done here. The digest is that of the whole file with the
digest's own 64 characters set to zeros, in every format; it lies in the header's metadata, so any safetensors reader
can open the file.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from .files import brief, check_regular, parse_json

FORMAT = 1
MAX_BYTES = 1 << 35  # of a file: 100 replicas of the largest preset take a third of it
MAX_HEADER, MAX_TENSORS, MAX_DIMENSIONS = 1 << 20, 4096, 8
_ZEROS = "0" * 64
_LIMITS = f"{MAX_TENSORS} tensors of {MAX_DIMENSIONS} dimensions, {MAX_HEADER} bytes of header, {MAX_BYTES} in all"
RESTARTS = 3  # of a diverged run from its last checkpoint
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS, errno.EPERM)
MOST = {"step": 2**53, "metrics_bytes": 2**53, "restarts": RESTARTS, "n_classes": 2**31}
WORDS = dict.fromkeys(("fastaae", "data_sha256", "device", "dtype"), str)
KINDS = {"config": dict, "shape": list, "stopped": bool, **WORDS, **dict.fromkeys(MOST, int)}


class Checkpoint(NamedTuple):
    """What a file holds: tensors by name, on the CPU, and the JSON object that was saved beside them."""

    tensors: dict[str, Tensor]
    info: dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and why."""


class DamagedError(CheckpointError):
    """A checkpoint whose bytes are not those that were written."""


def check_info(path: Path, info: dict[str, Any]) -> None:
    """Raise CheckpointError where the file of a run or model says what is of another type: nothing is converted."""
    for name in KINDS.keys() & info.keys():
        value, kind, words = info[name], KINDS[name], f"a {KINDS[name].__name__}"
        right = type(value) is kind
        if kind is int:
            right, words = right and 0 <= value <= MOST[name], f"an integer from 0 to {MOST[name]}"
        elif kind is list:  # not more than NumPy has dimensions for, beside that of examples
            right = right and 0 < len(value) < 32 and all(type(n) is int and 0 < n < 2**31 for n in value)
            words = "1 to 31 positive integers"
        if not right:
            raise CheckpointError(f"{path}: {name}={brief(value)}, expected {words}")


def write_atomic(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Replace the file at path by content, or leave it as it was: see replaced()."""
    with replaced(path, previous, len(content)) as new, open(new, "xb") as file:
        file.write(content)


@contextlib.contextmanager
def replaced(path: Path, previous: Path | None = None, size: int | None = None) -> Iterator[Path]:
    """Inside, write a new file of the name that this yields, in the folder of `path` and of about so many bytes. It is
    synced, takes the place of what is at path (of a link, not of what that leads to), and the folder is synced. What is
    replaced is kept as the file `previous`. Raises OSError: it could not be written, or is a folder, a pipe or a
    device; the new file is gone and the old one intact. Only where the folder cannot be synced is the new one already
    in place, though a power cut may still undo that."""
    new = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp{path.suffix}")
    try:
        yield new
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
        if os.path.lexists(path) and stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFLNK):
            error = OSError(errno.EEXIST, f"{stat.filemode(path.lstat().st_mode)}, expected a plain file", str(path))
            raise error
        if previous is not None and path.is_file():
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous)  # so that there is a whole file at path at any moment
            except OSError:  # no hard links here
                os.replace(path, previous)
        os.replace(new, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(new)
        if not isinstance(error, OSError):
            raise
        forbidden = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        room = [] if size is None or forbidden else [f"{size / 1e6:.2f} MB needed"]
        if error.errno == errno.ENOSPC:
            room.append(f"{shutil.disk_usage(path.parent).free / 1e6:.2f} MB free")
        why = f"{error.strerror or error}" + (f" ({', '.join(room)})" if room else "")
        if not path.parent.is_dir():
            why = f"no folder {str(path.parent)!r} to write to: make it first"
        at = path if str(error.filename) in ("None", str(new)) else error.filename
        raise OSError(error.errno, why, str(at)) from None


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed had half written of the file at path."""
    for found in path.parent.glob(".*.tmp*"):
        if re.fullmatch(rf"\.{re.escape(path.name)}\.\w+\.tmp(\.\w+)?", found.name):
            found.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Let the names in a folder outlive a power cut, where its file system has a way to ask for that."""
    if os.name == "posix":
        try:
            folder = os.open(path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if error.errno not in UNSYNCED:
                raise


def save(path: str | Path, tensors: dict[str, Tensor], info: dict[str, Any], previous: Path | None = None) -> None:
    """Write tensors (any device, layout) and JSON-ready info to one file, atomically; what it replaces to `previous`.
    Raises OSError: see replaced. ValueError: more than load() takes."""
    metadata = {"format": str(FORMAT), "info": json.dumps(info), "sha256": _ZEROS}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    packed = memoryview(safetensors.torch.save(copies, metadata))
    end = 8 + int.from_bytes(packed[:8], "little")
    text = json.dumps(json.loads(bytes(packed[8:end])) | {"__metadata__": metadata}, separators=(",", ":"))  # in order
    header = -(-len(text) // 8) * 8
    content = bytearray(header.to_bytes(8, "little") + text.ljust(header).encode())
    content += packed[end:]
    few = len(copies) <= MAX_TENSORS and max((t.ndim for t in copies.values()), default=0) <= MAX_DIMENSIONS
    if not few or header > MAX_HEADER or len(content) > MAX_BYTES:
        raise ValueError(f"{path}: {len(copies)} tensors, {header} bytes of names and info; expected at most {_LIMITS}")
    field = b'"sha256":"'  # in info and names quotes are escaped, so this is the metadata's own
    start = content.index(field + _ZEROS.encode(), 8) + len(field)
    content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()
    write_atomic(Path(path), bytes(content), previous)


def load(path: str | Path) -> Checkpoint:
    """Read what save() wrote, of which only the header is held until the digest has been checked. Raises DamagedError:
    it is damaged. CheckpointError: it is no regular file, no fastaae checkpoint, of another format, beyond limits."""
    path = Path(path)
    try:
        check_regular(path, MAX_BYTES)
        with path.open("rb") as file:
            content, metadata = _read(file)
    except (OSError, ValueError) as error:
        lost = getattr(error, "errno", None) == errno.EIO
        kind = DamagedError if lost or isinstance(error, DamagedError) else CheckpointError
        message = f"{error.strerror or error}, expected a file to read" if isinstance(error, OSError) else error
        raise kind(f"{path}: {message}") from None
    if metadata["format"] != str(FORMAT):
        found = brief(metadata["format"])
        raise CheckpointError(f"{path}: format {found}, expected {FORMAT}, which this version of fastaae reads")
    try:
        return Checkpoint(safetensors.torch.load(content), parse_json(metadata["info"]))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its tensors or info cannot be used: {error}") from None


def step_of(path: Path) -> int | None:
    """The step of a checkpoint that load() has yet to check; None: it is not there, or its header is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        with safetensors.safe_open(path, "pt") as file:
            return json.loads(file.metadata()["info"])["step"]


def _read(file: BinaryIO) -> tuple[bytes, dict[str, Any]]:
    """The bytes and the metadata of a file whose digest is right. Raises DamagedError, or ValueError beyond limits."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if size < 8 or length > MAX_HEADER or 8 + length > size:
        raise DamagedError(f"not a checkpoint, or truncated ({size} bytes), expected a header of at most {MAX_HEADER}")
    start += file.read(length)
    try:
        header = parse_json(start[8:])
        metadata = header.pop("__metadata__")
        most = max((len(tensor["shape"]) for tensor in header.values()), default=0)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        digest, *_ = (metadata[name] for name in ("sha256", "format", "info"))
        at = start.index(digest.encode(), 8)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        why = f"not a fastaae checkpoint, or its header is damaged ({brief(error)})"
        raise DamagedError(f"{why}, expected a file that train() or Model.save() wrote") from None
    if len(header) > MAX_TENSORS or most > MAX_DIMENSIONS:
        raise ValueError(f"{len(header)} tensors of up to {most} dimensions, {size} bytes, expected at most {_LIMITS}")
    if end != size - 8 - length:
        raise DamagedError(f"tensors that end at byte {end}, expected {size - 8 - length}: the file is damaged")
    sha = hashlib.sha256(start[:at] + _ZEROS.encode() + start[at + len(digest) :])
    while block := file.read(1 << 20):
        sha.update(block)
    if sha.hexdigest() != digest:
        raise DamagedError(f"SHA-256 differs from that written with it, expected {brief(digest)}: the file is damaged")
    file.seek(0)
    return file.read(), metadata


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values: equal for bit-equal tensors."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()

"""One file per checkpoint: safetensors, atomic, checked by SHA-256, without pickle.

safetensors neither fsyncs nor checks sums, so both are done here. The digest is that of the whole file with the
digest's own 64 characters set to zeros; it lies in the header's metadata, so any safetensors reader can open the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
MAX_HEADER = 1 << 20
_ZEROS = "0" * 64


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and why."""


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file at path by content, or leave it as it was: temporary file in the same folder, fsync, rename,
    fsync of the folder.

    Raises:
        OSError: the content could not be written; the temporary file is gone and the old file intact. Only where the
            folder cannot be synced is the new file already in place, though a power cut may still undo that.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
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


def save(path: str | Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Write tensors (any device, layout) and JSON-ready info to one file, atomically.

    Raises:
        OSError: see write_atomic.
    """
    import safetensors.torch

    metadata = {"format": str(FORMAT), "info": json.dumps(info), "sha256": _ZEROS}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = bytearray(safetensors.torch.save(copies, metadata))
    field = b'"sha256":"'  # in info and names quotes are escaped, so this is the metadata's own
    start = content.index(field + _ZEROS.encode(), 8) + len(field)
    content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()
    write_atomic(Path(path), bytes(content))


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what save() wrote: tensors on the CPU, and info.

    Raises:
        CheckpointError: no regular file, not a fastaae checkpoint, of another format, or damaged.
    """
    import safetensors
    import safetensors.torch

    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        content = bytearray(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > MAX_HEADER or 8 + length > len(content):
        raise CheckpointError(f"{path}: not a checkpoint, or truncated ({len(content)} bytes)")
    try:
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        version, digest = metadata["format"], metadata["sha256"]
        start = content.index(digest.encode(), 8, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: not a fastaae checkpoint, or its header is damaged") from None
    if version != str(FORMAT):
        raise CheckpointError(f"{path}: format {version}, this version of fastaae reads format {FORMAT}")
    content[start : start + len(digest)] = _ZEROS.encode()
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{path}: SHA-256 differs from the one written with it; the file is damaged")
    try:
        return safetensors.torch.load(bytes(content)), json.loads(metadata["info"])
    except (safetensors.SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values: equal for bit-equal tensors."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()

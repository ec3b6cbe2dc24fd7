"""Files that may come from a stranger: regular ones only, of a bounded size; JSON that names nothing twice; errors of
files. Needs neither torch nor NumPy."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any


def check_regular(path: Path, most: int) -> None:
    """Raise ValueError, which does not name the file, unless `path` is a regular one of at most `most` bytes: reading
    a pipe may never end."""
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(f"{error.strerror or error}, expected a file") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"not a regular file, expected one (mode {stat.filemode(found.st_mode)})")
    if found.st_size > most:
        raise ValueError(f"{found.st_size} bytes, expected at most {most}")


def parsed(text: str | bytes) -> Any:
    """What JSON text says. Raises ValueError, or RecursionError where it is nested too deeply."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{brief(name)} is given twice, expected once")
        values[name] = value
    return values


def brief(value: Any) -> str:
    """A value, or what a library's error says, as a message shows it: on one line, not too long."""
    text = " ".join(str(value).split()) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


class DataError(ValueError):
    """Data that cannot be used; the message names the value and what was expected."""


class DataUnavailable(DataError):
    """A standard data set that is nowhere on disk and could not be, or never is, downloaded."""


class WriteError(OSError):
    """A run's file could not be written; the message names it, why, and the checkpoint that is kept."""

"""Paths as users write them; regular files of a bounded size, maybe from a stranger, and JSON in them; their errors."""

import difflib
import errno
import json
import os
import stat
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BROKEN = [getattr(errno, name) for name in "ENOSPC EDQUOT EIO EROFS EFBIG EMFILE ENFILE ENOMEM ESTALE".split()
          if hasattr(errno, name)]  # errors of a disk or a system, not of what is on it  # fmt: skip
MAX_JSON = 2**20  # bytes of a config.json
SMALL_UNPACKED, MAX_RATIO = 64 * 2**20, 20  # see unpacked()


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path that a caller or a variable names, ~ expanded. Raises ValueError: it is none, empty, or ~ of nobody."""
    if not isinstance(path, str | os.PathLike) or not (text := os.fspath(path)) or "\0" in str(text):
        raise ValueError(f"path {brief(path)}: expected the name of a file or folder")
    if (whole := os.path.expanduser(text)).startswith("~"):
        raise ValueError(f"{path}: there is no such home directory; write the whole path")
    return Path(whole).absolute() if str(Path(whole)).startswith("~") else Path(whole)  # of ./~name


def check_regular(path: Path, most: int) -> int:
    """Raise ValueError, which does not name the file, unless `path` is a regular one of at most `most` bytes: reading
    a pipe may never end. Returns: its size."""
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(f"{error.strerror or error}, expected a file") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"not a regular file (mode {stat.filemode(found.st_mode)}), expected the path of a plain file")
    if found.st_size > most:
        raise ValueError(f"{found.st_size} bytes, expected at most {most}")
    return found.st_size


def unpacked(size: int, most: int) -> int:
    """How many bytes a file of `size` may unpack to, never over `most`. What uses them takes up to 5 times as many."""
    return min(most, max(SMALL_UNPACKED, MAX_RATIO * size))


def private(path: Path, others: int = 0o022) -> bool:
    """Whether a file or folder, no link, is this user's or root's, and none of the others, by their bits, writes it."""
    found = path.lstat()
    return os.name != "posix" or (found.st_uid in (0, os.geteuid()) and not found.st_mode & others)


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file, in UTF-8, of at most 1 MiB. Raises ValueError, which does not name it, or OSError."""
    path = expanded(path)
    check_regular(path, MAX_JSON)
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> dict[str, Any]:
    """The object that JSON text says. Raises ValueError: it is none, or says a name twice, where readers differ."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}, expected an object")
    return value


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in items:
        if name in values:
            raise ValueError(f"{brief(name)} is given twice: leave one out")
        values[name] = value
    return values


def brief(value: Any) -> str:
    """A value, or what a library's error says, as a message shows it: on one line, not too long."""
    text = " ".join((str(value) if isinstance(value, Exception) else repr(value)).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def printable(text: Any) -> str:
    """Text in one line, its other characters escaped, since names in files of others may hold any."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def suggestion(word: Any, choices: Iterable[str]) -> str:
    """The end of a message about a word that is none of the choices: those it may stand for, if it is like any."""
    word, choices = str(word)[:100], list(choices)
    close = difflib.get_close_matches(word, choices, n=1) or [c for c in choices if word and word in c][:5]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def warn_caller(message: str) -> None:
    """Warn whoever called the package, from wherever in it."""
    level, frame = 1, sys._getframe()
    while frame and frame.f_globals.get("__name__", "").startswith(("fastaae.", "contextlib")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


class DataError(ValueError):
    """Data that cannot be used; the message names the value and what was expected."""


class DataUnavailable(DataError):
    """A standard data set that is nowhere on disk and could not be, or never is, downloaded."""


class WriteError(OSError):
    """A run's file could not be written; the message names it, why, and the checkpoint that is kept."""

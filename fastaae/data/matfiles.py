"""Numeric arrays of a MATLAB file, read by SciPy in a process of its own: damaged files crash SciPy's reader.

That process (matreader.py) leaves the arrays as .npy files in a temporary folder. What is made of them can be kept in a
cache, since SciPy takes a minute for SVHN.
"""

import errno
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..checkpoint import remove_unfinished, replaced
from ..files import BROKEN, DataError, check_regular, private, unpacked

MAX_BYTES = 2**35  # of a file; what its arrays may declare is for the caller to say
TIME_LIMIT = 60  # seconds for one file, and one more for each of its MB
Variables = dict[str, np.ndarray]  # by name
Convert = Callable[[Variables], Variables]
READER = str(Path(__file__).with_name("matreader.py"))


def converted(path: Path, names: Sequence[str], limit_bytes: int, convert: Convert, cache: Path) -> Variables:
    """What `convert` makes of the variables `names` of the MATLAB file (version 4 to 7.2) `path`, which it gets in the
    shapes and dtypes they are stored in; kept as .npz in the folder `cache`, where only this user may write, by the
    file's SHA-256. A name that ends in ? may be missing. (What a power cut leaves there, the sums within a .npz show.)
    Raises DataError, which names the file: not such a one, a variable is missing or not a full array of real numbers,
    they declare more than `limit_bytes` together or than such a file may unpack to, `convert` refuses them, the file is
    damaged, or SciPy is missing. OSError: the disk is full, or fails."""
    path, digest = path.absolute(), hashlib.sha256()
    try:
        size = check_regular(path, MAX_BYTES)
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        kept = cache / f"{convert.__name__.strip('_')}-{digest.hexdigest()}.npz"
        with suppress(Exception):  # not there, or damaged, which can raise nearly anything
            if private(cache) and private(kept):
                with kept.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    return dict(arrays)
        arrays = convert(_read(path, names, unpacked(size, limit_bytes), TIME_LIMIT + size // 2**20))
    except (OSError, ValueError, EOFError, MemoryError) as error:  # np.load of what a broken process left, and above
        if getattr(error, "errno", None) in BROKEN:
            raise
        raise DataError(f"{path}: {error}") from None
    with suppress(OSError):  # without a cache the next time takes as long as this one
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private(cache):
            remove_unfinished(kept)
            with replaced(kept) as new:
                np.savez(new, **arrays)  # pyright: ignore[reportArgumentType]  # none has its names
                new.chmod(0o600)
    return arrays


def _read(path: Path, names: Sequence[str], limit_bytes: int, seconds: float) -> Variables:
    """The variables of the file. Errors do not name it."""
    with path.open("rb") as file:
        _check_header(file.read(128))
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        # One thread: the pools of the others would take address space, which is limited.
        env.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
        command = [sys.executable, READER, str(path), str(limit_bytes), *names]
        alive = os.pipe()  # it ends when this process does, and with it the other end
        try:
            done = subprocess.run(command, cwd=folder, env=env, stdin=alive[0], capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise DataError(f"not read after {seconds} s: a damaged file? get it again") from None
        finally:
            for end in alive:
                os.close(end)
        if done.returncode == errno.ENOSPC:
            full = OSError(errno.ENOSPC, f"no room for the arrays of {path}: name a larger folder in TMPDIR", folder)
            raise full
        if done.returncode < 0:
            raise DataError(f"the process reading it died of signal {-done.returncode}: a damaged file? get it again")
        if done.returncode:
            lines = done.stderr.decode(errors="backslashreplace").strip().splitlines() or ["no message"]
            raise DataError(lines[-1][:1000] + ("" if done.returncode == 1 else f" (status {done.returncode})"))
        files = [(name, Path(folder, f"{k}.npy")) for k, name in enumerate(names)]
        there = [(name, file) for name, file in files if not name.endswith("?") or file.exists()]
        return {name.removesuffix("?"): np.load(file, allow_pickle=False) for name, file in there}


def _check_header(head: bytes) -> None:
    """Refuse what is not a MATLAB file of version 4 to 7.2, by its first 128 bytes."""
    if head[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        return
    for order, code in (("<", 0), (">", 1)):  # version 4: a number type, rows, columns, complex or not, length of name
        if len(head) >= 20:
            kind, rows, columns, is_complex, length = struct.unpack(f"{order}5i", head[:20])
            if kind // 100 == 10 * code and is_complex in (0, 1) and rows >= 0 <= columns and 0 < length < 1000:
                return
    why = f"not a MATLAB file of version 4 to 7.2 (7.3 is HDF5), begins with {head[:16]!r}"
    raise DataError(f"{why}: in MATLAB, save it again with save(..., '-v7')")

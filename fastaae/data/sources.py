"""Where data sets come from: files of MNIST, SVHN and the Toronto Face Database, scikit-learn's digits, .npz files."""

import hashlib
import http.client
import math
import os
import tempfile
import threading
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import DataError, DataUnavailable, brief, check_regular, expanded, private, unpacked
from . import matfiles

MAX_NPZ_ARRAYS = 100
MAX_NPZ_BYTES = 8 * 2**30  # what a .npz file may declare as its uncompressed size
ROW = 16  # bytes that one more example takes, beside its own: of a random order, of labels as int64
MAX_MAT_BYTES = 4 * 2**30  # what a .mat file may declare for its arrays; SVHN's largest has 1.6e9
MAX_DOWNLOAD_BYTES = 64 * 2**20
SLOW, PATIENCE = 1000, 10  # bytes a second below which, for so many seconds, a mirror is given up

# A data set's name; x, y, x_test and y_test, before checks, None for what there is not; and how many of x, the last,
# are for validation, None where the caller says that.
Known = tuple[str, dict[str, Any], int | None]

MIRRORS = "https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"


def digits(_: str | None) -> Known:
    """scikit-learn's digits, in [0, 1]; the last 297 are the test set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"the digits data set needs scikit-learn ({error}): pip install 'fastaae[demo]'") from None
    bunch: Any = load_digits()
    x, y = (bunch.images / 16).astype(np.float32), bunch.target
    return "digits", {"x": x[:-297], "y": y[:-297], "x_test": x[-297:], "y_test": y[-297:]}, None


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of a .npz file. Raises DataError, which names the file, for one that is damaged or too large."""
    try:
        size = check_regular(path, MAX_NPZ_BYTES)
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            file.seek(-22, os.SEEK_END)
            end = file.read(22)
        count = int.from_bytes(end[10:12], "little")
        if not end.startswith(b"PK\5\6") or count not in (len(members), 0xFFFF):  # a damaged entry may hide the next
            raise ValueError(f"{len(members)} arrays, expected the {count} that its last bytes declare")
        if len(members) > MAX_NPZ_ARRAYS:
            raise ValueError(f"{len(members)} arrays, expected at most {MAX_NPZ_ARRAYS}")
        names = [member.filename.removesuffix(".npy") for member in members]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{brief(min(twice))} is in it twice: leave one out")
        if paths := [name for name in names if "/" in name or "\\" in name]:
            raise ValueError(f"{brief(paths[0])} in it is a path, expected the name of an array")
        declared, most = sum(member.file_size for member in members), unpacked(size, MAX_NPZ_BYTES)
        if declared > most:
            raise ValueError(f"{declared} bytes when uncompressed, expected at most {most}: save it with np.savez")
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
        if (rows := sum(len(a) for a in found.values() if a.ndim)) * ROW + declared > most:
            have = f"{declared} bytes and {rows} rows when uncompressed"
            raise ValueError(f"{have}, expected at most {most} bytes, with {ROW} for a row: save it with np.savez")
        return found
    except Exception as error:  # a damaged archive can raise nearly anything
        raise DataError(f"{path}: not a readable .npz file, expected plain numeric arrays ({brief(error)})") from error


class _IdxFile(NamedTuple):
    """One file of MNIST: big-endian magic number and dimensions, then the values as bytes."""

    stem: str
    shape: tuple[int, ...]
    sha256: str  # of the uncompressed file

    def names(self) -> list[str]:
        """The names it goes by, the usual one first."""
        return [f"{self.stem}{dot}idx{len(self.shape)}-ubyte{gz}" for gz in (".gz", "") for dot in "-."]


_MNIST = (
    _IdxFile("train-images", (60000, 28, 28), "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    _IdxFile("train-labels", (60000,), "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    _IdxFile("t10k-images", (10000, 28, 28), "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    _IdxFile("t10k-labels", (10000,), "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)


def mnist(data_dir: str | None) -> Known:
    """MNIST, from the first folder that holds any of its files, else downloaded."""
    folders = _folders(data_dir, "mnist", "MNIST/raw")
    paths = next(filter(None, map(_find, folders)), None) or _download(_cache() / "mnist", folders)
    return "mnist", dict(zip(("x", "y", "x_test", "y_test"), map(_read_idx, paths, _MNIST), strict=True)), None


def _folders(data_dir: str | None, *subfolders: str) -> list[Path]:
    """Where to look for a data set, in this order."""
    bases = [expanded(base) for base in (data_dir, os.environ.get("FASTAAE_DATA")) if base] + [_cache()]
    return [base / sub for base in bases for sub in ("", *subfolders)]


def _cache() -> Path:
    if base := os.environ.get("XDG_CACHE_HOME"):
        return expanded(base) / "fastaae"
    try:
        return Path.home() / ".cache" / "fastaae"
    except RuntimeError:  # no HOME, and no such user
        return Path(tempfile.gettempdir()) / "fastaae"


def _listing(folder: Path, what: str) -> set[str]:
    """The names in `folder`, none if it does not exist."""
    try:
        return {entry.name for entry in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{folder}: cannot look for {what} here, expected a readable folder ({error})") from error


def _find(folder: Path) -> list[Path]:
    """The paths of the four files in `folder`, or [] if it holds none of them (or does not exist)."""
    present = _listing(folder, "MNIST")
    found = {file: folder / name for file in _MNIST for name in file.names() if name in present}
    missing = [file.names()[0] for file in _MNIST if file not in found]
    if found and missing:
        raise DataError(f"{folder}: holds a part of MNIST, but not {', '.join(missing)}: put the rest there")
    return [found[file] for file in _MNIST if found]


def _read_idx(path: Path, file: _IdxFile) -> np.ndarray:
    """The values of an IDX file, uint8 of `file.shape`, once its content is known to be the genuine one."""
    header = 4 + 4 * len(file.shape)
    size = header + math.prod(file.shape)
    try:
        check_regular(path, 2 * size)
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):  # whatever it is called
            content = zlib.decompressobj(31).decompress(content, size + 1)  # the gzip module is slow at empty members
    except (OSError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: corrupt or unreadable file ({error}), expected a file of MNIST") from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        expected = f"expected SHA-256 {file.sha256} of {size} (uncompressed) bytes"
        raise DataError(f"{path}: wrong checksum of the {len(content)} bytes read, {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(file.shape)


def _download(folder: Path, searched: Sequence[Path]) -> list[Path]:
    """Download MNIST to `folder`: all of it or, if anything fails, nothing."""
    names = [file.names()[0] for file in _MNIST]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            for file, name in zip(_MNIST, names, strict=True):
                _fetch(file, Path(temporary) / name)
            for name in names:
                os.replace(Path(temporary) / name, folder / name)
    except (OSError, DataError) as error:
        raise DataUnavailable(
            f"MNIST is in none of {', '.join(map(str, searched))}, and it could not be downloaded ({error}). "
            f"Put {', '.join(names)} in a folder, and name it as data_dir or in FASTAAE_DATA=DIR"
        ) from error
    return [folder / name for name in names]


def _fetch(file: _IdxFile, path: Path) -> None:
    """Download one file to `path` from the first mirror that serves the genuine one."""
    failures = []
    for mirror in MIRRORS:
        url = mirror + path.name
        try:
            path.write_bytes(_received(url))
            _read_idx(path, file)
            return
        except (OSError, http.client.HTTPException, DataError) as error:
            failures.append(f"{url}: {error}")
    raise DataError("; ".join(failures))


def _received(url: str) -> bytes:
    """What a mirror sends, received by a thread: names and headers may be slow, too. Raises as urlopen() does."""
    content, failures = bytearray(), []

    def receive() -> None:
        try:
            with urllib.request.urlopen(url, timeout=2 * PATIENCE) as response:
                while len(content) < MAX_DOWNLOAD_BYTES and (block := response.read1(2**16)):
                    content.extend(block)
        except Exception as error:
            failures.append(error)

    thread, before = threading.Thread(target=receive, daemon=True), 0
    thread.start()
    while thread.join(PATIENCE) or thread.is_alive():
        if len(content) - before < SLOW * PATIENCE:
            raise TimeoutError(f"{len(content) - before} bytes in {PATIENCE} s, expected at least {SLOW} a second")
        before = len(content)
    if failures:
        raise failures[0]
    return bytes(content)


def svhn(data_dir: str | None) -> Known:
    """SVHN, from the first folder that holds any of its files."""
    folders = _folders(data_dir, "svhn", "SVHN")
    for folder in folders:
        present = _listing(folder, "SVHN")
        for prefix in ("", "subset_"):
            names = [f"{prefix}{split}_32x32.mat" for split in ("train", "test", "extra")]
            if not present.intersection(names):
                continue
            if missing := [name for name in names[:2] if name not in present]:
                raise DataError(f"{folder}: holds a part of SVHN, but not {', '.join(missing)}: put the rest there")
            paths = [folder / name for name in names if name in present]
            train, test, *extra = (read_mat(path, ("X", "y"), _svhn_arrays) for path in paths)
            x, y = (np.concatenate([train[key], extra[0][key]]) if extra else train[key] for key in "xy")
            name = f"svhn{' subset' if prefix else ''}"
            return name, {"x": x, "y": y, "x_test": test["x"], "y_test": test["y"]}, None
    raise DataUnavailable(
        f"SVHN is in none of {', '.join(map(str, folders))}. Put train_32x32.mat, test_32x32.mat and, if wanted, "
        "extra_32x32.mat, the cropped digits (format 2) of http://ufldl.stanford.edu/housenumbers, in a folder, and "
        "name it as data_dir or in FASTAAE_DATA=DIR"
    )


def _svhn_arrays(given: matfiles.Variables) -> matfiles.Variables:
    """x, uint8 [N, 32, 32, 3], and y, int64 [N] in 0..9, of X, uint8 [32, 32, 3, N], and y, [N, 1] in 1..10."""
    images, labels = given["X"], given["y"]
    n = images.shape[-1]
    _expect("X", images, (32, 32, 3, n), "uint8 [32, 32, 3, N]")
    _expect("y", labels, (n, 1), f"integers [{n}, 1]", range(1, 11))
    return {"x": np.ascontiguousarray(images.transpose(3, 0, 1, 2)), "y": labels[:, 0].astype(np.int64) % 10}


def tfd(data_dir: str | None) -> Known:
    """TFD, from the first folder that holds a *_48x48.mat."""
    folders = _folders(data_dir, "tfd", "TFD", "faces")
    for folder in folders:
        if found := [name for name in _listing(folder, "TFD") if name.endswith("_48x48.mat")]:
            break
    else:
        raise DataUnavailable(
            f"TFD is in none of {', '.join(map(str, folders))}. Its authors give it out on request: put TFD_48x48.mat "
            "in a folder, and name it as data_dir or in FASTAAE_DATA=DIR"
        )
    file = min(found, key=lambda name: (name != "TFD_48x48.mat", name))
    stem = file.removesuffix("_48x48.mat")
    arrays = read_mat(folder / file, ("images", "folds", "labs_ex"), _tfd_arrays)
    x, y, part = arrays["x"], arrays["y"], arrays["part"]
    order, test = np.argsort(part, kind="stable")[: np.sum(part < 3)], part == 3
    y, y_test = (None, None) if y.min() < 0 else (y[order], y[test])
    name = "tfd" if stem.lower().startswith("tfd") else f"{stem} (TFD layout)"
    return name, {"x": x[order], "y": y, "x_test": x[test], "y_test": y_test}, int(np.sum(part == 2))


def _tfd_arrays(given: matfiles.Variables) -> matfiles.Variables:
    """x, uint8 [N, 48, 48]; y, int64 [N] in 0..6, or -1 for none; part, [N]: 1 train, 2 validation, 3 test."""
    images, folds, labels = given["images"], given["folds"], given["labs_ex"]
    n = len(images)
    _expect("images", images, (n, 48, 48), "uint8 [N, 48, 48]")  # upright: the second axis counts rows
    _expect("folds", folds, (n, 5), f"integers [{n}, 5]", range(4))
    _expect("labs_ex", labels, (n, 1), f"integers [{n}, 1]", (-1, *range(1, 8)))
    part, y = np.maximum(folds[:, 0], 1), labels[:, 0].astype(np.int64)
    if absent := {1, 2, 3}.difference(part.tolist()):
        raise DataError(f"folds has no {min(absent)} in its first column, expected 1 (train), 2 (validation), 3 (test)")
    return {"x": np.ascontiguousarray(images), "y": np.where(y < 0, -1, y - 1), "part": part}


def _expect(name: str, array: np.ndarray, shape: tuple[int, ...], expected: str, values: Sequence[int] = ()) -> None:
    """Refuse an array that is not uint8, or integers in `values` where these are given, of `shape`, or is empty."""
    if array.shape != shape or not array.size or not np.issubdtype(array.dtype, np.integer if values else np.uint8):
        raise DataError(f"{name} is {array.dtype} of shape {array.shape}, expected {expected}")
    if values and (others := np.setdiff1d(array, values)).size:
        raise DataError(f"{name} has values {others[:5].tolist()}, expected {', '.join(map(str, values))}")


def read_mat(path: Path, names: Sequence[str], convert: matfiles.Convert) -> matfiles.Variables:
    """As matfiles.converted(), with the user's cache."""
    cache = _cache()
    if path.is_relative_to(cache) and not all(private(p.resolve(), 0o002) for p in (path, path.parent, cache)):
        hint = "expected your own files and folders, not open to all; or name another folder as data_dir"
        raise DataError(f"{path}: in the cache, where others may change it, {hint}")
    return matfiles.converted(path, names, MAX_MAT_BYTES, convert, cache / "mat")


KNOWN = {"mnist": mnist, "svhn": svhn, "tfd": tfd, "digits": digits}

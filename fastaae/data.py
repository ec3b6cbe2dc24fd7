"""Training data: MNIST, SVHN, the Toronto Face Database, scikit-learn's digits or own arrays, checked and split.

Every way in ends in a `Data`: flat uint8 or float32 examples on the CPU, split into train, validation and test.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import os
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from . import matfiles
from .errors import DataError

MAX_NPZ_BYTES = 8 * 2**30  # what a .npz file may declare as its uncompressed size
MAX_MAT_BYTES = 4 * 2**30  # what a .mat file may declare for its arrays; SVHN's largest has 1.6e9
MAX_DOWNLOAD_BYTES = 64 * 2**20
MAX_CLASSES = 10_000
SPLIT_SEED = 0  # of the random train/validation split of user arrays: the same for every run

MIRRORS = "https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"


class DataUnavailable(DataError):
    """A standard data set that is nowhere on disk and could not be, or never is, downloaded."""


@dataclass(frozen=True)
class Data:
    """A data set split into train, validation and test, as contiguous CPU tensors.

    `x_*` are uint8 [N, D] (0..255 meaning [0, 1]) or float32 [N, D] in [0, 1], all of one dtype; `y_*` are
    int64 [N] in [0, n_classes). Labels are None where there are none, `x_test` is None without a test set.
    """

    name: str  # "mnist", "svhn", "svhn subset", "tfd", "... (TFD layout)", "digits", the .npz path or "arrays"
    shape: tuple[int, ...]  # of one example; prod(shape) == D
    n_classes: int  # 0 without labels, else the largest training label + 1; all occur in training or validation
    sha256: str  # digest of all splits: dtypes, shapes and bytes
    x_train: torch.Tensor
    y_train: torch.Tensor | None
    x_valid: torch.Tensor
    y_valid: torch.Tensor | None
    x_test: torch.Tensor | None
    y_test: torch.Tensor | None


def load(dataset: str, data_dir: str | None = None, n_validation: int | None = None) -> Data:
    """Load "mnist", "svhn", "tfd", "digits" or a .npz file.

    MNIST (uint8 [N, 784]) is looked for in `data_dir`, then in $FASTAAE_DATA, then in the user's cache, and
    otherwise downloaded to the cache. Digits (float32 [N, 64]) comes with scikit-learn; its last 297 examples are
    the test set. A .npz file holds the arrays that `from_arrays` takes as a mapping.

    SVHN (uint8 [N, 3072]) and TFD (uint8 [N, 2304]) are looked for like MNIST, but not downloaded; SciPy reads them and
    the cache keeps them. SVHN is train_32x32.mat, followed by extra_32x32.mat if that is there, and test_32x32.mat, or
    these names after "subset_". TFD is TFD_48x48.mat or another *_48x48.mat in that layout, split by its first fold:
    unlabelled and training images train. Its labels are the expressions, or None if any image has none.

    `n_validation` examples of the training set (None: a sixth) become the validation set: the last ones for MNIST,
    SVHN and digits, random ones as in `from_arrays` for a .npz file. For TFD it must be None.

    Raises:
        DataUnavailable: the data set is nowhere on disk and could not be downloaded.
        DataError: anything else about the data or the arguments is wrong.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise DataError(f"data_dir={data_dir!r} is not a folder")
    if dataset == "mnist":
        return _build("mnist", *_mnist(data_dir), n_validation, shuffle=False)
    if dataset == "svhn":
        return _build(*_svhn(data_dir), n_validation, shuffle=False)
    if dataset == "tfd":
        if n_validation is not None:
            raise DataError(f"n_validation={n_validation}, expected None: the folds of TFD say what is for validation")
        return _build(*_tfd(data_dir), shuffle=False)
    if dataset == "digits":
        return _build("digits", *_digits(), n_validation, shuffle=False)
    if dataset.endswith(".npz"):
        arrays = _read_npz(Path(dataset))
        try:
            return from_arrays(arrays, n_validation, name=dataset)
        except DataError as error:
            raise DataError(f"{dataset}: {error}") from None
    if dataset == "arrays":
        raise DataError("dataset='arrays': this run was trained on the caller's own arrays; pass them again as data=")
    raise DataError(f"dataset={dataset!r}: expected 'mnist', 'svhn', 'tfd', 'digits' or the path of a .npz file")


def from_arrays(data: Any, n_validation: int | None = None, name: str = "arrays") -> Data:
    """Check and split the user's own arrays.

    `data` is `x`, `(x, y)`, or a mapping with `x` (or `x_train`) and optionally `y` (or `y_train`), `x_test` and
    `y_test`, each a numpy array or a torch tensor on any device. `x` is [N, ...], either uint8 in 0..255 or of any
    float dtype in [0, 1]; labels are integers [N] >= 0. The arrays are copied.

    `n_validation` training examples (None: a sixth) become the validation set. They are drawn at random, with a fixed
    seed, since the given order may be sorted by class.

    Raises:
        DataError: an array is not as described, or too few examples would be left for training.
    """
    if isinstance(data, tuple):
        if len(data) != 2:
            raise DataError(f"data is a tuple of {len(data)}, expected (x, y)")
        data = {"x": data[0], "y": data[1]}
    elif not isinstance(data, Mapping):
        data = {"x": data}

    allowed = ("x", "x_train", "y", "y_train", "x_test", "y_test")
    if unknown := [key for key in data if key not in allowed]:
        raise DataError(f"unknown arrays {unknown}; allowed are {', '.join(allowed)}")
    given = {key: value for key, value in data.items() if value is not None}
    for short in "xy":
        if f"{short}_train" in given:
            if short in given:
                raise DataError(f"both {short} and {short}_train are given, expected one of them")
            given[short] = given.pop(f"{short}_train")
    if "x" not in given:
        raise DataError("there is no array x (or x_train)")
    arrays = (given.get(key) for key in ("x", "y", "x_test", "y_test"))
    return _build(name, *arrays, n_validation, shuffle=True)


def labeled_subset(labels: torch.Tensor, n_labeled: int | None, n_classes: int, seed: int) -> torch.Tensor:
    """Indices, int64 [n_labeled], of a random subset of `labels` (integer [N]) that is balanced over the classes.

    Each class gets n_labeled // n_classes examples; the remainder goes to randomly chosen classes, one each.
    The same arguments give the same subset. None gives all N indices.

    Raises:
        DataError: `n_labeled` is not in [1, N], or a class has too few examples.
    """
    if n_labeled is None:
        return torch.arange(len(labels))
    if n_labeled < n_classes:
        raise DataError(f"n_labeled={n_labeled}, expected at least {n_classes}, one of each class")
    if n_labeled > len(labels):
        raise DataError(f"n_labeled={n_labeled}, but only {len(labels)} labelled examples")
    rng = np.random.default_rng(seed)
    counts = np.full(n_classes, n_labeled // n_classes)
    counts[rng.choice(n_classes, n_labeled % n_classes, replace=False)] += 1
    chosen = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels.cpu().numpy() == label)
        if len(members) < count:
            raise DataError(f"n_labeled={n_labeled} asks for {count} examples of class {label}, it has {len(members)}")
        chosen.append(rng.choice(members, count, replace=False))
    return torch.from_numpy(np.concatenate(chosen))


# Checking and splitting


def _build(name: str, x: Any, y: Any, x_test: Any, y_test: Any, n_validation: int | None, shuffle: bool) -> Data:
    """Check the arrays and split the training set: its last (after shuffling) `n_validation` examples are held out."""
    if y_test is not None and (y is None or x_test is None):
        raise DataError(f"y_test is given without {'y' if y is None else 'x_test'}")
    x = examples("x", x)
    shape, n = x.shape[1:], len(x)
    y = None if y is None else _labels("y", y, n)
    if x_test is not None:
        x_test = examples("x_test", x_test)
        if (x_test.shape[1:], x_test.dtype) != (shape, x.dtype):
            found, expected = (f"{a.dtype} examples of shape {tuple(a.shape[1:])}" for a in (x_test, x))
            raise DataError(f"x_test has {found}, expected {expected} as in x")
        x_test = x_test.flatten(1)
        y_test = None if y_test is None else _labels("y_test", y_test, len(x_test))

    held = n // 6 if n_validation is None else n_validation
    if not 1 <= held < n:
        default = " (a sixth of them)" if n_validation is None else ""
        raise DataError(
            f"n_validation={held} of {n} training examples{default}, expected at least 1 and fewer than {n}"
        )
    x = x.flatten(1)
    if shuffle:
        order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(n))
        x, y = x[order], None if y is None else y[order]
        x_test = None if x_test is None else x_test.clone()  # like x, no longer the user's memory
    y_train, y_valid = (None, None) if y is None else (y[:-held], y[-held:])
    n_classes = 0 if y is None else int(y.max()) + 1
    if y is not None and (absent := sorted(set(range(n_classes)) - set(y.unique().tolist()))):
        some = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        hint = "renumber them with np.unique(y, return_inverse=True)[1]"
        raise DataError(
            f"y has labels up to {n_classes - 1} but none of {some}; expected every class from 0 on: {hint}"
        )
    if y_test is not None and y_test.max() >= n_classes:
        raise DataError(f"y_test has label {int(y_test.max())}, the training labels are 0 to {n_classes - 1}")
    splits = (x[:-held], y_train, x[-held:], y_valid, x_test, y_test)
    return Data(name, tuple(shape), n_classes, _digest(splits), *splits)


def _numpy(name: str, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
    if isinstance(value, np.ndarray):
        return value
    raise DataError(f"{name} is a {type(value).__name__}, expected a numpy array or a torch tensor")


def examples(name: str, value: Any) -> torch.Tensor:
    """`value`, called `name` in errors, as checked examples: uint8 or float32 [N, ...] on the CPU, contiguous.

    It takes what `from_arrays` takes as x, and may share its memory. Raises DataError for anything else.
    """
    x = _numpy(name, value)
    if x.ndim < 2 or x.size == 0:
        raise DataError(f"{name} has shape {x.shape}, expected [N, ...] with at least one example and one feature")
    if x.dtype == np.uint8:
        return torch.from_numpy(np.require(x, requirements="CW"))
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{name} has dtype {x.dtype}, expected uint8 in 0..255 or floats in [0, 1]")
    with np.errstate(over="ignore"):
        x = np.require(x, np.float32, "CW")
    finite = np.isfinite(x)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(finite.argmin(), x.shape))
        raise DataError(f"{name} has {x.size - finite.sum()} NaN or infinite values, the first at index {first}")
    low, high = x.min(), x.max()
    if low < 0 or high > 1:
        hint = "divide by 255, or pass uint8" if 0 <= low and high <= 255 else "rescale it"
        raise DataError(f"{name} has values from {low:g} to {high:g}, expected [0, 1]: {hint}")
    return torch.from_numpy(x)


def _labels(name: str, value: Any, n: int) -> torch.Tensor:
    """The checked labels, a copy as int64 [n]."""
    y = _numpy(name, value)
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name} has dtype {y.dtype}, expected integer class labels")
    if y.shape != (n,):
        raise DataError(f"{name} has shape {y.shape}, expected ({n},): one label for each example")
    if y.min() < 0 or y.max() >= MAX_CLASSES:
        raise DataError(f"{name} has labels from {y.min()} to {y.max()}, expected 0 to {MAX_CLASSES - 1}")
    return torch.from_numpy(y.astype(np.int64))


def _digest(tensors: Sequence[torch.Tensor | None]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            digest.update(b"None;")
        else:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
            digest.update(tensor.numpy())
    return digest.hexdigest()


# Sources


def _digits() -> tuple[np.ndarray, ...]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("the digits data set needs scikit-learn: pip install 'fastaae[demo]'") from None
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32), digits.target
    return x[:-297], y[:-297], x[-297:], y[-297:]


def _read_npz(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        if declared > MAX_NPZ_BYTES:
            raise ValueError(f"{declared} bytes when uncompressed, at most {MAX_NPZ_BYTES} are accepted")
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except Exception as error:  # a damaged archive can raise nearly anything
        raise DataError(f"{path}: not a readable .npz file of plain numeric arrays ({error})") from error


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


def _mnist(data_dir: str | None) -> list[np.ndarray]:
    """MNIST's x, y, x_test and y_test, from the first folder that holds any of its files, else downloaded."""
    folders = _folders(data_dir, "mnist", "MNIST/raw")
    for folder in folders:
        if paths := _find(folder):
            break
    else:
        paths = _download(_cache() / "mnist", folders)
    return [_read_idx(path, file) for path, file in zip(paths, _MNIST, strict=True)]


def _folders(data_dir: str | None, *subfolders: str) -> list[Path]:
    """Where to look for a data set, in this order."""
    bases = [Path(base) for base in (data_dir, os.environ.get("FASTAAE_DATA")) if base] + [_cache()]
    return [base / sub for base in bases for sub in ("", *subfolders)]


def _cache() -> Path:
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "fastaae"
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
        raise DataError(f"{folder}: cannot look for {what} here ({error})") from error


def _find(folder: Path) -> list[Path]:
    """The paths of the four files in `folder`, or [] if it holds none of them (or does not exist)."""
    present = _listing(folder, "MNIST")
    found = {file: folder / name for file in _MNIST for name in file.names() if name in present}
    missing = [file.names()[0] for file in _MNIST if file not in found]
    if found and missing:
        raise DataError(f"{folder}: holds a part of MNIST, but not {', '.join(missing)}")
    return [found[file] for file in _MNIST if found]


def _read_idx(path: Path, file: _IdxFile) -> np.ndarray:
    """The values of an IDX file, uint8 of `file.shape`, once its content is known to be the genuine one."""
    header = 4 + 4 * len(file.shape)
    size, magic = header + math.prod(file.shape), 2048 + len(file.shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(size + 1)
    except EOFError as error:
        raise DataError(f"{path}: truncated gzip file") from error
    except (OSError, zlib.error) as error:  # BadGzipFile is an OSError
        raise DataError(f"{path}: corrupt or unreadable file ({error})") from error
    found = int.from_bytes(content[:4], "big")
    if len(content) >= 4 and found != magic:
        raise DataError(f"{path}: magic number {found}, expected {magic}")
    if len(content) != size:
        amount = f"only {len(content)}" if len(content) < size else "more"
        raise DataError(f"{path}: wrong size, expected {size} bytes of (uncompressed) content and found {amount}")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DataError(f"{path}: wrong checksum, expected SHA-256 {file.sha256} of the (uncompressed) content")
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
            f"Put {', '.join(names)} in a folder, and name it as data_dir or in FASTAAE_DATA=DIR."
        ) from error
    return [folder / name for name in names]


def _fetch(file: _IdxFile, path: Path) -> None:
    """Download one file to `path` from the first mirror that serves the genuine one."""
    failures = []
    for mirror in MIRRORS:
        url = mirror + path.name
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                path.write_bytes(response.read(MAX_DOWNLOAD_BYTES))
            _read_idx(path, file)
            return
        except (OSError, http.client.HTTPException, DataError) as error:
            failures.append(f"{url}: {error}")
    raise DataError("; ".join(failures))


def _svhn(data_dir: str | None) -> tuple[Any, ...]:
    """SVHN's name, x, y, x_test and y_test, from the first folder that holds any of its files."""
    folders = _folders(data_dir, "svhn", "SVHN")
    for folder in folders:
        present = _listing(folder, "SVHN")
        for prefix in ("", "subset_"):
            names = [f"{prefix}{split}_32x32.mat" for split in ("train", "test", "extra")]
            if not present.intersection(names):
                continue
            if missing := [name for name in names[:2] if name not in present]:
                raise DataError(f"{folder}: holds a part of SVHN, but not {', '.join(missing)}")
            paths = [folder / name for name in names if name in present]
            train, test, *extra = (_mat(path, ("X", "y"), _svhn_arrays) for path in paths)
            x, y = (np.concatenate([train[key], extra[0][key]]) if extra else train[key] for key in "xy")
            return f"svhn{' subset' if prefix else ''}", x, y, test["x"], test["y"]
    raise DataUnavailable(
        f"SVHN is in none of {', '.join(map(str, folders))}. Put train_32x32.mat, test_32x32.mat and, if wanted, "
        "extra_32x32.mat in a folder, and name it as data_dir or in FASTAAE_DATA=DIR. They are the cropped digits "
        "(format 2) of http://ufldl.stanford.edu/housenumbers."
    )


def _svhn_arrays(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """x, uint8 [N, 32, 32, 3], and y, int64 [N] in 0..9, of X, uint8 [32, 32, 3, N], and y, [N, 1] in 1..10."""
    images, labels = given["X"], given["y"]
    n = images.shape[-1]
    _expect("X", images, (32, 32, 3, n), "uint8 [32, 32, 3, N]")
    _expect("y", labels, (n, 1), f"integers [{n}, 1]", range(1, 11))
    return {"x": np.ascontiguousarray(images.transpose(3, 0, 1, 2)), "y": labels[:, 0].astype(np.int64) % 10}


def _tfd(data_dir: str | None) -> tuple[Any, ...]:
    """TFD's name, x, y, x_test, y_test and n_validation, from the first folder that holds a *_48x48.mat."""
    folders = _folders(data_dir, "tfd", "TFD", "faces")
    for folder in folders:
        if found := [name for name in _listing(folder, "TFD") if name.endswith("_48x48.mat")]:
            break
    else:
        raise DataUnavailable(
            f"TFD is in none of {', '.join(map(str, folders))}. Its authors give it out on request: put TFD_48x48.mat "
            "in a folder, and name it as data_dir or in FASTAAE_DATA=DIR."
        )
    file = min(found, key=lambda name: (name != "TFD_48x48.mat", name))
    stem = file.removesuffix("_48x48.mat")
    arrays = _mat(folder / file, ("images", "folds", "labs_ex"), _tfd_arrays)
    x, y, part = arrays["x"], arrays["y"], arrays["part"]
    order, test = np.argsort(part, kind="stable")[: np.sum(part < 3)], part == 3
    y, y_test = (None, None) if y.min() < 0 else (y[order], y[test])
    name = "tfd" if stem.lower().startswith("tfd") else f"{stem} (TFD layout)"
    return name, x[order], y, x[test], y_test, int(np.sum(part == 2))


def _tfd_arrays(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
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


def _mat(path: Path, names: Sequence[str], convert: Callable[..., dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return matfiles.converted(path, names, MAX_MAT_BYTES, convert, _cache() / "mat")

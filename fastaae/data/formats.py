"""Data as people have them: arrays, tables, pictures, datasets of torch and files, as arrays by the names x, y, ..."""

import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..files import DataError, brief, check_regular, expanded, unpacked, warn_caller
from . import sources
from .arrays import array

USUAL = {  # what the arrays are called; numpy.savez calls the first two arr_0 and arr_1
    "x": ("x", "x_train", "train_images", "images", "data", "arr_0"),
    "y": ("y", "y_train", "train_labels", "labels", "targets", "arr_1"),
    "x_test": ("x_test", "test_images"), "y_test": ("y_test", "test_labels"),
    "x_valid": ("x_valid", "x_val", "val_images"), "y_valid": ("y_valid", "y_val", "val_labels"),
    "x_unlabeled": ("x_unlabeled",),
}  # fmt: skip
SPLITS = {"train": "", "test": "_test", "valid": "_valid", "val": "_valid"}  # folders of images
UNLABELED = ("unlabeled", "unlabelled")  # folder of images without a class
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
TESTS = ("t10k", "test")  # what an IDX file has in its name, where that of the training set has "train"
IDX = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}  # dtypes, by the third byte of a file
FILES = "a .npy, .npz, .mat or IDX file, or a folder of IDX files or images (for which: pip install 'fastaae[images]')"
MAX_MAPPED = 2**50  # bytes of a file that is not read at once
CONVERT = "python -c \"import numpy, torch; numpy.save('x.npy', torch.load('x.pt'))\""
PICKLE = f"a pickle, which may run code: if you trust it, {CONVERT}"
OTHERS = {  # what to do with files of other kinds, by their suffix
    ".pt": PICKLE, ".pth": PICKLE, ".pkl": PICKLE,
    ".csv": "a table: read it with pandas.read_csv and pass that", ".h5": "pass an array of h5py.File(path)",
    ".hdf5": "pass an array of h5py.File(path)", ".parquet": "a table: read it with pandas and pass that",
    **dict.fromkeys(IMAGES, "one image: put images into a folder and pass that"),
}  # fmt: skip


def opened(value: Any, name: str = "data") -> dict[str, Any]:
    """The arrays of a data set, called `name` in errors, by their names: x and maybe others of USUAL. An x is what
    array() takes, a y what labels.encoded() takes. Raises DataError.

    `value` is x, (x, y), a mapping of such names, a torch Dataset or DataLoader of x or (x, y), or the path of a .npy,
    .npz or .mat file, of an IDX file of images (labels and test set beside it), or of a folder of such files or of
    images: in folders that are the classes, and these in train/ and test/ if there is a test set. x is an array,
    tensor, DataFrame, array of h5py or zarr, list of numbers, arrays or PIL images, Dataset, DataLoader or path. The
    array of a .npy or plain IDX file is a read-only map of it.
    """
    if isinstance(value, str | os.PathLike):
        return _of_path(expanded(value))
    if isinstance(value, Dataset | DataLoader):
        return _of_dataset(name, value)
    if isinstance(value, tuple) and len(value) != 2:
        raise DataError(f"{name} is a tuple of {len(value)}, expected (x, y)")
    value = dict(zip("xy", value, strict=True)) if isinstance(value, tuple) else value
    given = {name: v for name, v in (value if isinstance(value, Mapping) else {"x": value}).items() if v is not None}
    found = {name: given[own] for name, own in _usual(given).items()}
    paths = {name for name, v in found.items() if isinstance(v, str | os.PathLike)}
    return {name: examples_of(name, v) if name[0] == "x" or name in paths else v for name, v in found.items()}


def examples_of(name: str, value: Any) -> Any:
    """Examples as array() takes them, of what opened() takes or has as x. Raises DataError, which calls them `name`."""
    if isinstance(value, str | os.PathLike | Dataset | DataLoader):
        return opened(value, name)["x"]
    if not isinstance(value, list | tuple):
        return value
    if value and (hasattr(value[0], "getbands") or (isinstance(value[0], np.ndarray | Tensor) and value[0].ndim)):
        return _stacked(name, ((f"{name}[{k}]", item) for k, item in enumerate(value)))
    return array(name, value, lists=True)


def _usual(names: Iterable[Any], path: Path | None = None) -> dict[str, Any]:
    """Which of the names of arrays means x, y, ...; a file, `path`, may have others, which a warning tells."""
    own, found, where = {str(name).lower(): name for name in names}, {}, f"{path}: " if path else ""
    for name, words in USUAL.items():
        there = [own[word] for word in words if word in own]
        if len(there) > 1 and not there[1].startswith("arr_"):
            raise DataError(f"{where}both {there[0]} and {there[1]} are given: pass one of them")
        found |= {name: there[0]} if there else {}
    others = [name for name in names if name not in found.values()]
    if others and not path:
        allowed = f"x, x_train, y, y_train, {', '.join([*USUAL][2:])}"
        raise DataError(f"unknown arrays {brief(others)}; allowed are {allowed}")
    if "x" not in found:
        raise DataError(f"{where}there is no array x (or x_train) among {brief([*names])}: pass the examples as x")
    if others:
        warn_caller(f"{where}arrays {brief(others)} are left out: none of these names means x, y, x_test, ...")
    return found


def _of_dataset(name: str, source: Any) -> dict[str, Any]:
    """x and, where there are labels, y of a Dataset or DataLoader, read once, for as many items as it says it has."""
    try:
        n = len(source)
    except TypeError:
        raise DataError(f"{name} is a {type(source).__name__} without len(), expected one that has an end") from None
    labels, single = [], getattr(source, "batch_sampler", None) is None
    rows = source if isinstance(source, DataLoader) else (source[k] for k in range(n))

    def items():
        for k, item in zip(range(n), rows, strict=False):
            x, *y = item if isinstance(item, tuple | list) else (item,)
            if len(y) > 1:
                raise DataError(f"{name}[{k}] is a tuple of {1 + len(y)}, expected x or (x, y)")
            labels.extend(y if single or not y else y[0])
            yield f"{name}[{k}]", x

    return {"x": _stacked(name, items(), single)} | ({"y": labels} if labels else {})


def _stacked(name: str, items: Iterable[tuple[str, Any]], single: bool = True) -> np.ndarray:
    """[N, ...] of items that array() takes, alike, each with its name; or of batches of them. Held once."""
    held, n, like = bytearray(), 0, None
    for own, item in items:
        block = array(own, item, lists=True)
        block = block[None] if single else block
        like = like or (block.dtype, block.shape[1:])
        if (block.dtype, block.shape[1:]) != like:
            found = f"{own} is {block.dtype} of shape {block.shape[1:]}"
            hint = "make all alike (resize, convert)" + "; x and labels are a tuple (x, y)" * own.endswith("]")
            raise DataError(f"{found}, expected {like[0]} of {like[1]} as the first: {hint}")
        held += block.tobytes()
        n += len(block)
    if like is None:
        raise DataError(f"{name} holds no examples, expected at least one")
    return np.ndarray((n, *like[1]), like[0], held)


def _of_path(path: Path) -> dict[str, Any]:
    """opened() of a file or folder."""
    kind = path.suffix.lower()
    if kind in OTHERS and not path.is_dir():
        raise DataError(f"{path}: {OTHERS[kind]}; expected {FILES}")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected {FILES}")
    if kind in (".npz", ".mat"):
        names = [f"{w}?" for words in USUAL.values() for word in words for w in (word, word.capitalize())]
        arrays = sources.read_npz(path) if kind == ".npz" else sources.read_mat(path, names, dict)
        return {name: arrays[own] for name, own in _usual(arrays, path).items()}
    with _naming(path):
        if kind == ".npy":
            check_regular(path, MAX_MAPPED)
            return {"x": np.lib.format.open_memmap(path, mode="r")}
        if not path.is_dir():
            return _idx_set(path)
        idx = [p for p in sorted(path.iterdir()) if re.match(r"(?!.*(t10k|test)).*images.*idx\d", p.name)]
        idx = [p for p in idx if p.suffix != ".gz" or p.with_suffix("") not in idx]
        if len(idx) > 1:
            raise ValueError(f"{len(idx)} sets of images: name the file of one")
        return _idx_set(idx[0]) if idx else _folder(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of a damaged file it may be any
        raise DataError(f"{path}: not readable ({brief(error)}): give {FILES}") from None


def _idx_set(path: Path) -> dict[str, Any]:
    """The images of an IDX file and, where they lie beside it under such names, its labels and its test set."""
    images, found = path.name.removesuffix(".gz"), {"x": _idx(path)}
    labels = re.sub(r"idx\d", "idx1", images.replace("images", "labels"))
    for key, own, splits in (("y", labels, ["train"]), ("x_test", images, TESTS), ("y_test", labels, TESTS)):
        names = [own.replace("train", split) for split in splits if "train" in own or split == "train"]
        beside = [path.with_name(name + end) for name in names if name != images for end in (".gz", "")]
        found.update((key, _idx(p)) for p in beside if p.exists())
    return found


def _idx(path: Path) -> np.ndarray:
    """The array in an IDX file: two zeros, a type, the number of axes, their lengths, values; gzipped or mapped."""
    with _naming(path):
        size, unpack = check_regular(path, MAX_MAPPED), zlib.decompressobj(31)
        with path.open("rb") as file:
            head = file.read(36)
        if packed := head.startswith(b"\x1f\x8b"):
            head = unpack.decompress(path.read_bytes(), unpacked(size, sources.MAX_NPZ_BYTES) + 1)
            size = len(head)
        if head[:2] != b"\0\0" or len(head) < 8 or head[2] not in IDX or not 1 <= head[3] <= 8:
            raise ValueError(f"it begins with {head[:4]!r}, expected what an IDX file begins with")
        dtype, start = np.dtype(IDX[head[2]]), 4 + 4 * head[3]
        shape = tuple(int.from_bytes(head[k : k + 4], "big") for k in range(4, start, 4))
        if (whole := start + math.prod(shape) * dtype.itemsize) != size or unpack.eof != packed:
            raise ValueError(f"{size} bytes, by its header {shape} expected {whole}")
        return np.ndarray(shape, dtype, head, start) if packed else np.memmap(path, dtype, "r", start, shape)


def _folder(folder: Path) -> dict[str, Any]:
    """Images and, as labels, the names of their folders; of each split, where the folders are splits."""
    from PIL import Image

    inner = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    if "train" in inner:
        if others := [name for name in inner if name not in SPLITS]:
            warn_caller(f"{folder}: folders {brief(others)} are left out: none of these names is train, test or valid")
        splits = [(SPLITS[name], _folder(p)) for name, p in inner.items() if name in SPLITS]
        return {key + end: value for end, arrays in splits for key, value in arrays.items()}
    images = [p for place in (*inner.values(), folder) for p in sorted(place.iterdir())
              if p.suffix.lower() in IMAGES and p.is_file() and not p.name.startswith(".")]  # fmt: skip
    flat = [p for p in images if p.parent == folder]
    deep = [p for place in inner.values() for p in place.glob("*/**/*") if p.suffix.lower() in IMAGES and p.is_file()]
    if deep:
        warn_caller(f"{folder}: {len(deep)} images lie deeper and are left out, {deep[0]} is one: move them up")
    if 0 < len(flat) < len(images):
        raise ValueError(f"{flat[0].name} lies beside folders of images: put it in the folder of its class")

    def items():
        for path in images:
            try:
                with Image.open(path) as image:
                    yield str(path), image
            except OSError as error:
                raise DataError(f"{path}: no readable image ({brief(error)}): remove or replace it") from None

    found = {"x": _stacked(str(folder), items())}
    return found if flat else found | {"y": [None if p.parent.name in UNLABELED else p.parent.name for p in images]}

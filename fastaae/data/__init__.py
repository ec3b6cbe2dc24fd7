"""Training data: MNIST, SVHN, the Toronto Face Database, scikit-learn's digits or own arrays, checked and split.

Every way in ends in a `Data`: flat uint8 or float32 examples on the CPU, split into train, validation and test.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..files import DataError, DataUnavailable, brief, expanded, warn_caller
from ..scalars import integer, scalar
from . import sources
from .arrays import array, plain
from .sources import Arrays

__all__ = ["Data", "DataError", "DataUnavailable", "examples", "from_arrays", "labeled_subset", "load"]

MAX_CLASSES = 10_000
DARK = 16  # the largest byte of images that were probably meant to reach 255; scikit-learn's digits go up to it
SPLIT_SEED = 0  # of the random train/validation split of user arrays: the same for every run


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
    SVHN and digits, random ones as in `from_arrays` for a .npz file. For TFD it must be None. A `data_dir` has to be
    there.

    Raises:
        DataUnavailable: the data set is nowhere on disk and could not be downloaded.
        DataError: anything else about the data or the arguments is wrong.
    """
    dataset = os.fspath(dataset) if isinstance(dataset, os.PathLike) else dataset
    if not isinstance(dataset, str):
        raise DataError(f"dataset={brief(dataset)}: expected a name or a path")
    if data_dir is not None and not expanded(data_dir).is_dir():
        raise DataError(f"data_dir={data_dir!r} is not a folder: name the one that holds the data, or leave it out")
    if dataset == "mnist":
        return _build("mnist", sources.mnist(data_dir), n_validation)
    if dataset == "svhn":
        return _build(*sources.svhn(data_dir), n_validation)
    if dataset == "tfd":
        if n_validation is not None:
            raise DataError(f"n_validation={n_validation}, expected None: the folds of TFD say what is for validation")
        return _build(*sources.tfd(data_dir))
    if dataset == "digits":
        return _build("digits", sources.digits(), n_validation)
    if dataset.endswith(".npz"):
        arrays = sources.read_npz(expanded(dataset))
        try:
            return from_arrays(arrays, n_validation, name=dataset)
        except DataError as error:
            raise DataError(f"{dataset}: {error}") from None
    if dataset == "arrays":
        raise DataError(f"{dataset=}: trained on the caller's own arrays, in Python: pass them again as data=")
    raise DataError(f"dataset={dataset!r}: expected 'mnist', 'svhn', 'tfd', 'digits' or the path of a .npz file")


def recorded(
    dataset: str, data_dir: str | None, n_validation: int | None, sha256: str | None
) -> tuple[Data, str | None]:
    """Data as a run recorded them, and its data_dir, or None where that one has none of this SHA-256 and they were
    looked for elsewhere. Raises as load()."""
    lost = ""
    if data_dir is not None and sha256 is not None:
        try:
            if (data := load(dataset, data_dir, n_validation)).sha256 == sha256:
                return data, data_dir
        except DataError as error:
            lost = f"{error}; and elsewhere: "
        data_dir = None
    try:
        return load(dataset, data_dir, n_validation), data_dir
    except DataError as error:
        raise type(error)(f"{lost}{error}") from None


def from_arrays(data: Any, n_validation: int | None = None, name: str = "arrays") -> Data:
    """Check and split the user's own arrays.

    `data` is `x`, `(x, y)`, or a mapping with `x` (or `x_train`) and optionally `y` (or `y_train`), `x_test` and
    `y_test`, each a numpy array, a torch tensor on any device, or what has `__array__`. `x` is [N, ...], either
    uint8 in 0..255 or of any float dtype in [0, 1]; labels are integers [N] >= 0. The arrays are copied.

    `n_validation` training examples (None: a sixth) become the validation set. They are drawn at random, with a fixed
    seed, since the given order may be sorted by class.

    Raises:
        DataError: an array is not as described, or too few examples would be left for training.

    Warns of values that fill next to nothing of their range, and of classes that are left without a training example.
    """
    if isinstance(data, tuple):
        if len(data) != 2:
            raise DataError(f"data is a tuple of {len(data)}, expected (x, y)")
        data = {"x": data[0], "y": data[1]}
    elif not isinstance(data, Mapping):
        data = {"x": data}

    allowed = ("x", "x_train", "y", "y_train", "x_test", "y_test")
    if unknown := [key for key in data if key not in allowed]:
        raise DataError(f"unknown arrays {brief(unknown)}; allowed are {', '.join(allowed)}")
    given = {key: value for key, value in data.items() if value is not None}
    for short in "xy":
        if f"{short}_train" in given:
            if short in given:
                raise DataError(f"both {short} and {short}_train are given: pass one of them")
            given[short] = given.pop(f"{short}_train")
    if "x" not in given:
        raise DataError(f"there is no array x (or x_train) among {brief(list(given))}: pass the examples as x")
    arrays = given["x"], given.get("y"), given.get("x_test"), given.get("y_test")
    return _build(name, arrays, n_validation, shuffle=True)


def labeled_subset(labels: torch.Tensor, n_labeled: int | None, n_classes: int, seed: int) -> torch.Tensor:
    """Indices, int64 [n_labeled], of a random subset of `labels` (integer [N]) that is balanced over the classes.

    Each class gets n_labeled // n_classes examples; the remainder goes to randomly chosen classes, one each.
    The same arguments give the same subset. None gives all N indices.

    Raises:
        DataError: `n_labeled` is not in [1, N], or a class has too few examples.
    """
    if n_labeled is None:
        return torch.arange(len(labels), dtype=torch.int64, device="cpu")
    if (n_labeled := integer("n_labeled", n_labeled, 1)) < n_classes:
        raise DataError(f"n_labeled={n_labeled}, expected at least {n_classes}, one of each class")
    if n_labeled > len(labels):
        raise DataError(f"n_labeled={n_labeled}, but only {len(labels)} labelled examples: ask for fewer")
    rng = np.random.default_rng(seed)
    counts = np.full(n_classes, n_labeled // n_classes)
    counts[rng.choice(n_classes, n_labeled % n_classes, replace=False)] += 1
    chosen = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels.cpu().numpy() == label)
        if len(members) < count:
            there = f"class {label}, it has {len(members)}"
            raise DataError(f"n_labeled={n_labeled} asks for {count} examples of {there}: ask for fewer")
        chosen.append(rng.choice(members, count, replace=False))
    return torch.from_numpy(np.concatenate(chosen))


def _build(name: str, arrays: Arrays, n_validation: int | None, shuffle: bool = False) -> Data:
    """Check the arrays and split the training set: its last (after shuffling) `n_validation` examples are held out."""
    x, y, x_test, y_test = arrays
    if y_test is not None and (y is None or x_test is None):
        raise DataError(f"y_test is given without {'y' if y is None else 'x_test'}: pass that as well")
    x = examples("x", x)
    n, shape = len(x), tuple(x.shape[1:])
    y = None if y is None else _labels("y", y, n)
    odd = span_warning("x", *x.aminmax(), x.dtype)
    if x_test is not None:
        x_test = examples("x_test", x_test)
        if (x_test.shape[1:], x_test.dtype) != (shape, x.dtype):
            found, expected = (f"{a.dtype} examples of shape {tuple(a.shape[1:])}" for a in (x_test, x))
            raise DataError(f"x_test has {found}, expected {expected} as in x")
        y_test = None if y_test is None else _labels("y_test", y_test, len(x_test))
        x_test, odd = x_test.flatten(1), odd or span_warning("x_test", *x_test.aminmax(), x.dtype)
    if odd:
        warn_caller(odd)
    held = n // 6 if n_validation is None else scalar(n_validation)
    if type(held) is not int or not 1 <= held < n:
        why = " (a sixth of them)" if n_validation is None else ""
        given = f"n_validation={brief(held)} of {n} training examples{why}"
        raise DataError(f"{given}, expected at least 1 and fewer than {n}")
    n_classes = 0 if y is None else int(y.max()) + 1
    if y is not None and (absent := absent_classes(y, n_classes)):
        hint = "renumber them with np.unique(y, return_inverse=True)[1]"
        found = f"y has labels up to {n_classes - 1} but none of {absent}"
        raise DataError(f"{found}; expected every class from 0 on: {hint}")
    if y_test is not None and y_test.max() >= n_classes:
        raise DataError(f"y_test has label {int(y_test.max())}, expected 0 to {n_classes - 1}, the training labels")
    x = x.flatten(1)
    if shuffle:
        order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(n))
        x, y = x[order], None if y is None else y[order]
        x_test = None if x_test is None else x_test.clone()  # like x, no longer the user's memory
    y_train, y_valid = (None, None) if y is None else (y[:-held], y[-held:])
    if y_train is not None and (absent := absent_classes(y_train, n_classes)):
        why = f"n_validation={held} of {n} examples leaves none of class {absent} to train on"
        warn_caller(f"{name}: {why}: pass more of them, or another n_validation")
    splits = (x[:-held], y_train, x[-held:], y_valid, x_test, y_test)
    return Data(name, shape, n_classes, _digest(splits), *splits)


def span_warning(name: str, low: Any, high: Any, dtype: Any) -> str | None:
    """What to warn of where examples, called `name`, from `low` to `high`, fill next to nothing of 0 to 255 or 1."""
    low, high, most = float(low), float(high), 255 if dtype in (torch.uint8, np.uint8) else 1
    if not 0 < high * 255 / most <= 1.001 * DARK:
        return None
    hint = f"if {high:g} is as good as white, pass floats divided by {high:g}"
    return f"{name} has values from {low:g} to {high:g}, next to nothing of 0 to {most}: {hint}"


def absent_classes(y: torch.Tensor, n_classes: int) -> str:
    """The first of the classes that y has no label of, for messages; "" if it has all."""
    absent = sorted(set(range(n_classes)) - set(y.unique().tolist()))
    return ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")


def examples(name: str, value: Any) -> torch.Tensor:
    """`value`, called `name` in errors, as checked examples: uint8 or float32 [N, ...] on the CPU, contiguous.

    It takes what `from_arrays` takes as x, and may share its memory. Raises DataError for anything else.
    """
    x = array(name, value)
    if x.ndim < 2 or x.size == 0:
        raise DataError(f"{name} has shape {x.shape}, expected [N, ...] with at least one example and one feature")
    if x.dtype == np.uint8:
        return torch.from_numpy(plain(x))
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{name} has dtype {x.dtype}, expected uint8 in 0..255 or floats in [0, 1]")
    with np.errstate(over="ignore"):
        x = plain(x, np.float32)
    if (wrong := ~np.isfinite(x)).any():
        where = f"the first at index {tuple(map(int, np.unravel_index(wrong.argmax(), x.shape)))}"
        raise DataError(f"{name} has {wrong.sum()} NaN or infinite values, {where}: replace or drop them")
    low, high = x.min(), x.max()
    if low < 0 or high > 1:
        unit = "255, or pass uint8" if high > DARK else f"{high:g}"
        hint = f"divide by {unit}" if 0 <= low and high <= 255 else "rescale it"
        hint = "clip it" if -0.01 < low and high < 1.01 else hint  # rounding, or the overshoot of a resize
        raise DataError(f"{name} has values from {low:.9g} to {high:.9g}, expected [0, 1]: {hint}")
    return torch.from_numpy(x)


def _labels(name: str, value: Any, n: int) -> torch.Tensor:
    """The checked labels, a copy as int64 [n]."""
    y = array(name, value)
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
            digest.update(tensor.numpy().data)
    return digest.hexdigest()

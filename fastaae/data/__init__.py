"""Training data: MNIST, SVHN, the Toronto Face Database, scikit-learn's digits or own arrays, checked and split.

Every way in ends in a `Data`: flat uint8 or float32 examples on the CPU, split into train, validation and test.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..files import DataError, DataUnavailable, brief, expanded, warn_caller
from ..scalars import integer, scalar
from . import sources
from .arrays import array, columns_of, shared
from .formats import opened
from .labels import encoded

__all__ = ["Data", "DataError", "DataUnavailable", "examples", "from_arrays", "labeled_subset", "load"]

HELD = {"bool": np.float32, "float16": np.float32, "uint16": np.int32, "uint32": np.int64, "uint64": np.float64,
        "float128": np.float64}  # as what those are held that torch has not, or is slow at  # fmt: skip
DARK = 16  # the largest byte of images that were probably meant to reach 255; scikit-learn's digits go up to it
SPLIT_SEED = 0  # of the random train/validation split of user arrays: the same for every run


@dataclass(frozen=True)
class Rows:
    """Some rows of an array, in an order, taken when they are asked for: a copy may not fit into memory."""

    x: torch.Tensor  # [M, D]
    index: torch.Tensor  # int64 [N]

    @classmethod
    def all(cls, x: torch.Tensor) -> "Rows":
        return cls(x, _count(len(x)))

    def __len__(self) -> int:
        return len(self.index)

    def split(self, n: int) -> Iterator[torch.Tensor]:
        """All of them, n at a time."""
        return (self.x[some] for some in self.index.split(n))


@dataclass(frozen=True)
class Data:
    """A data set: examples on the CPU, as they were given, and which rows of them are for what.

    `parts` has "train", "valid" and "test", of flat examples [N, D] of one dtype, bytes meaning k / 255, or None for
    what there is not; `labels` int64 [N] of each: in [0, n_classes), -1 where an example has none; None for no labels.
    `x_train`, `y_train` and so on are tensors of these rows: a copy, where they are not one behind the other.
    """

    name: str  # "mnist", "svhn", "svhn subset", "tfd", "... (TFD layout)", "digits", the path of a file or "arrays"
    shape: tuple[int, ...]  # of one example; prod(shape) == D
    classes: list[Any]  # what each label stands for: words, numbers; [] without labels
    range: tuple[float, float]  # the least and the largest number in x
    sha256: str  # digest of all parts: dtypes, shapes and bytes
    parts: dict[str, Rows | None]
    labels: dict[str, torch.Tensor | None]
    columns: list[str] | None = None  # of a table

    n_classes = property(lambda self: len(self.classes))
    x_train, x_valid, x_test = (property(lambda self, p=p: _taken(self.parts[p])) for p in ("train", "valid", "test"))
    y_train, y_valid, y_test = (property(lambda self, p=p: self.labels[p]) for p in ("train", "valid", "test"))

    def resident(self, split: str, device: torch.device) -> "Data":
        """The same, but for a copy of a split's examples on a device that is not the CPU."""
        rows = self.parts[split]
        if rows is None or device.type == "cpu":
            return self
        copied = rows.x[rows.index].to(device)
        return replace(self, parts={**self.parts, split: Rows(copied, _count(len(rows)).to(device))})

    @property
    def train(self) -> Rows:
        rows = self.parts["train"]
        assert rows is not None
        return rows


def _count(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.int64, device="cpu")


def _taken(rows: Rows | None) -> torch.Tensor | None:
    if rows is None:
        return None
    first, last = int(rows.index[0]), int(rows.index[-1])
    together = last - first == len(rows) - 1 and bool((rows.index.diff() == 1).all())
    return rows.x[first : last + 1] if together else rows.x[rows.index]


def load(
    dataset: str, data_dir: str | None = None, n_validation: int | None = None, scale: str = "unit",
    stratified: bool = True,
) -> Data:  # fmt: skip
    """Load "mnist", "svhn", "tfd", "digits", or a file or folder: what from_arrays takes as a path.

    MNIST (uint8 [N, 784]) is looked for in `data_dir`, then in $FASTAAE_DATA, then in the user's cache, and otherwise
    downloaded to the cache. Digits (float32 [N, 64]) comes with scikit-learn; its last 297 examples are the test set.

    SVHN (uint8 [N, 3072]) and TFD (uint8 [N, 2304]) are looked for like MNIST, but not downloaded; SciPy reads them and
    the cache keeps them. SVHN is train_32x32.mat, followed by extra_32x32.mat if that is there, and test_32x32.mat, or
    these names after "subset_". TFD is TFD_48x48.mat or another *_48x48.mat in that layout, split by its first fold:
    unlabelled and training images train. Its labels are the expressions, or None if any image has none.

    `n_validation` examples of the training set (None: a sixth) become the validation set: the last ones for MNIST, SVHN
    and digits, random ones as in `from_arrays` for others. For TFD it must be None. A `data_dir` has to be there.

    Raises:
        DataUnavailable: the data set is nowhere on disk and could not be downloaded.
        DataError: anything else about the data or the arguments is wrong.
    """
    dataset = os.fspath(dataset) if isinstance(dataset, os.PathLike) else dataset
    if not isinstance(dataset, str):
        raise DataError(f"dataset={brief(dataset)}: expected a name or a path")
    if data_dir is not None and not expanded(data_dir).is_dir():
        raise DataError(f"data_dir={data_dir!r} is not a folder: name the one that holds the data, or leave it out")
    if dataset == "tfd" and n_validation is not None:
        raise DataError(f"n_validation={n_validation}, expected None: the folds of TFD say what is for validation")
    if dataset in sources.KNOWN:
        name, arrays, held = sources.KNOWN[dataset](data_dir)
        return _build(name, arrays, n_validation if held is None else held, scale)
    if dataset == "arrays":
        raise DataError(
            f"{dataset=}: trained on arrays: pass them again, as data= or to figures.draw(model, data, folder)"
        )
    if not expanded(dataset).exists():
        raise DataError(f"{dataset=}: expected {', '.join(map(repr, sources.KNOWN))} or the path of a file or folder")
    try:
        return from_arrays(dataset, n_validation, dataset, scale, stratified)
    except DataError as error:
        message = str(error) if dataset in str(error) else f"{dataset}: {error}"
        raise DataError(message) from None


def recorded(
    dataset: str, data_dir: str | None, n_validation: int | None, scale: str, sha256: str | None
) -> tuple[Data, str | None]:
    """Data as a run recorded them, and its data_dir, or None where that one has none of this SHA-256 and they were
    looked for elsewhere. Raises as load()."""
    found, message, kind = None, "", DataError
    splits = (True, False) if expanded(dataset).exists() else (True,)  # those of own labels were not stratified once
    for where in dict.fromkeys([data_dir] if sha256 is None else [data_dir, None]):
        try:
            for stratified in splits:
                data = load(dataset, where, n_validation, scale, stratified)
                if sha256 in (None, data.sha256):
                    return data, where
                found = found or (data, where)
        except DataError as error:
            message, kind = f"{message}; and elsewhere: {error}" if message else str(error), type(error)
    if found is None:
        raise kind(message)
    return found


def from_arrays(
    data: Any, n_validation: int | None = None, name: str = "arrays", scale: str = "unit", stratified: bool = True
) -> Data:
    """Check and split the user's own data.

    `data` is what formats.opened() takes: `x`, `(x, y)`, or a mapping with `x` (or `x_train`) and optionally `y` (or
    `y_train`), `x_unlabeled`, `x_valid`, `y_valid`, `x_test` and `y_test`, or a path; a Data comes back as it is. `x`
    is [N, ...]: under the scale "unit" uint8 in 0..255 or floats in [0, 1], else any finite numbers. Labels [N] are
    what labels.encoded() takes. The examples are not copied: do not change them before training ends.

    `n_validation` training examples (None: a sixth; without x_valid) become the validation set. They are drawn at
    random, with a fixed seed, since the given order may be sorted by class, and from all classes alike.

    Raises:
        DataError: an array is not as described, or too few examples would be left for training.

    Warns of values that fill next to nothing of their range, and of classes that are left without a training example.
    """
    if isinstance(data, Data):
        return data
    return _build(name, opened(data), n_validation, scale, shuffle=True, stratified=stratified)


def labeled_subset(
    labels: torch.Tensor, n_labeled: int | None, n_classes: int, seed: int, classes: Sequence[Any] = (),
    shares: Sequence[float] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Indices, int64 [n_labeled], of a random subset of `labels` (integer [N]) that is balanced over the classes.

    Each class gets n_labeled // n_classes examples; the remainder goes to randomly chosen classes, one each. With
    `shares`, that sum to 1, a class has its share of them, to rounding, and at least one. The same arguments give the
    same subset. None gives all that have a label (those of others are -1). Errors call classes as `classes` says.

    Raises:
        DataError: `n_labeled` is not in [1, N], or a class has too few examples.
    """
    if n_labeled is None:
        return (labels >= 0).nonzero().flatten().cpu()
    if (n_labeled := integer("n_labeled", n_labeled, 1)) < n_classes:
        raise DataError(f"n_labeled={n_labeled}, expected at least {n_classes}, one of each class")
    if n_labeled > (given := int((labels >= 0).sum())):
        raise DataError(f"n_labeled={n_labeled}, but only {given} labelled examples: ask for fewer")
    rng = np.random.default_rng(seed)
    counts = np.full(n_classes, n_labeled // n_classes)
    counts[rng.choice(n_classes, n_labeled % n_classes, replace=False)] += 1
    if shares is not None:
        counts = np.maximum(exact := n_labeled * np.asarray(shares), 1).astype(int)
        while left := np.sign(n_labeled - counts.sum()):
            missing = left * (exact - counts)
            counts[np.where((left > 0) | (counts > 1), missing, -np.inf).argmax()] += left
    chosen = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels.cpu().numpy() == label)
        if len(members) < count:
            there = f"class {brief(classes[label] if classes else label)}, it has {len(members)}"
            raise DataError(f"n_labeled={n_labeled} asks for {count} examples of {there}: ask for fewer")
        chosen.append(rng.choice(members, count, replace=False))
    return torch.from_numpy(np.concatenate(chosen))


def label_weights(given: str | Sequence[float], data: Data, k: int) -> list[float] | None:
    """The prior of k classes that a config asks for: None if uniform, shares of the training labels, or as given.
    Raises ValueError where they are not as many."""
    if given == "uniform":
        return None
    if given == "data":
        y = data.labels["train"]
        assert y is not None
        given = y[y >= 0].bincount(minlength=k).tolist()
    if len(given) != k:
        raise ValueError(f"label_weights={brief(given)}: expected {k} numbers, one for each class")
    return [float(w) / sum(map(float, given)) for w in given]


def _build(
    name: str, given: dict[str, Any], n_validation: int | None, scale: str, shuffle: bool = False,
    stratified: bool = True,
) -> Data:  # fmt: skip
    """Check the arrays and say which rows are for what: the last ones, after shuffling, for validation."""
    given = {key: value for key, value in given.items() if value is not None}
    arrays, ends = _arrays(given, scale)
    labels, classes = _labels(given, {part: len(x) for part, x in arrays.items()})
    x, y = arrays["x"], labels["x"]
    n, others = len(x), "x_valid" in arrays
    held = (0 if others else n // 6) if n_validation is None else scalar(n_validation)
    if type(held) is not int or not 0 <= held < n or (held and others):
        most = "None or 0 beside x_valid" if others else f"at least 0 and fewer than {n}"
        raise DataError(f"n_validation={brief(held)} of {n} training examples, expected {most}")
    train, valid = _split(n, held, y if stratified else None, shuffle)
    if y is not None and (absent := absent_classes(y[train], len(classes))):
        names = ", ".join(brief(classes[k]) for k in absent[:5])
        why = f"n_validation={held} of {n} examples leaves none of class {names} to train on"
        warn_caller(f"{name}: {why}: pass more of them, or another n_validation")
    whole = {part: Rows.all(a.flatten(1)) for part, a in arrays.items()}
    parts = {"train": Rows(whole["x"].x, train), "valid": whole.get("x_valid"), "test": whole.get("x_test")}
    of = {"train": None if y is None else y[train], "valid": labels.get("x_valid"), "test": labels.get("x_test")}
    if held:
        parts["valid"], of["valid"] = Rows(whole["x"].x, valid), None if y is None else y[valid]
    return Data(name, tuple(x.shape[1:]), classes, ends, _digest(parts, of), parts, of, columns_of("x", given["x"]))


def _arrays(given: dict[str, Any], scale: str) -> tuple[dict[str, torch.Tensor], tuple[float, float]]:
    """The checked examples given, of one shape and dtype, those without labels behind others; and the range of x."""
    keys = [key for key in ("x", "x_unlabeled", "x_valid", "x_test") if key in given]
    columns = columns_of("x", given["x"])
    for key in keys[1:]:
        columns_of(key, given[key], columns)
    examined = {key: _examined(key, given[key], scale) for key in keys}
    if odd := [said for _, said, _ in examined.values() if said]:
        warn_caller(odd[0])
    found = {key: x for key, (x, _, _) in examined.items()}
    if scale != "unit" and len({x.dtype for x in found.values()}) > 1:
        kind = torch.from_numpy(np.zeros(0, np.result_type(*(x.numpy().dtype for x in found.values())))).dtype
        found = {key: x.to(kind) for key, x in found.items()}
    first = found["x"]
    for key, x in found.items():
        if (x.shape[1:], x.dtype) != (first.shape[1:], first.dtype):
            has, expected = (f"{str(a.dtype)[6:]} examples of shape {tuple(a.shape[1:])}" for a in (x, first))
            raise DataError(f"{key} has {has}, expected {expected} as in x")
    if "x_unlabeled" in found:
        found["x"] = torch.cat([first, found.pop("x_unlabeled")])
    lows, highs = zip(*(examined[key][2] for key in keys if key in ("x", "x_unlabeled")), strict=True)
    return found, (min(lows), max(highs))


def _labels(given: dict[str, Any], n: dict[str, int]) -> tuple[dict[str, torch.Tensor | None], list[Any]]:
    """Labels int64 of the arrays of n examples each, -1 where one has none, and what they stand for."""
    found, classes = dict.fromkeys(n), []
    for key in ("y", "y_valid", "y_test"):
        x = key.replace("y", "x", 1)
        if key in given:
            if "y" not in given or x not in given:
                raise DataError(f"{key} is given without {'y' if x in given else x}: pass that as well")
            rows = n[x] - (len(given["x_unlabeled"]) if key == "y" and "x_unlabeled" in given else 0)
            codes, known = encoded(key, given[key], rows, classes or None)
            classes = classes or known
            found[x] = torch.from_numpy(np.append(codes, np.full(n[x] - rows, -1)))
        elif key == "y" and "x_unlabeled" in given:
            raise DataError(f"x_unlabeled is given without y, but x has {n['x']} examples in all: pass them as x")
    return found, classes


def _split(n: int, held: int, y: torch.Tensor | None, shuffle: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of n that are for training, and the `held` others: of labels y a like share of each."""
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(n)) if shuffle else _count(n)
    if y is None or not shuffle:
        return order[: n - held], order[n - held :]
    alone = (y >= 0) & (y.clamp_min(0).bincount()[y.clamp_min(0)] < 2)
    by_class = order[torch.where(alone, -2, y)[order].argsort(stable=True)]
    picked = torch.zeros(n, dtype=torch.bool, device="cpu")
    picked[by_class[(_count(n + 1) * held // n).diff() > 0]] = True  # spread evenly over these
    return order[~picked[order]], order[picked[order]]


def span_warning(name: str, low: Any, high: Any, dtype: Any) -> str | None:
    """What to warn of where examples, called `name`, from `low` to `high`, fill next to nothing of 0 to 255 or 1."""
    low, high, most = float(low), float(high), 255 if dtype in (torch.uint8, np.uint8) else 1
    if not 0 < high * 255 / most <= 1.001 * DARK:
        return None
    hint = f"if {high:g} is as good as white, pass floats divided by {high:g}"
    return f"{name} has values from {low:g} to {high:g}, next to nothing of 0 to {most}: {hint}"


def absent_classes(y: torch.Tensor, n_classes: int) -> list[int]:
    """The classes that y has no label of."""
    return sorted(set(range(n_classes)) - set(y.unique().tolist()))


def examples(name: str, value: Any, scale: str | None = "unit") -> torch.Tensor:
    """`value`, called `name` in errors, as checked examples [N, ...] on the CPU, contiguous, maybe of its memory:
    bytes, or float32, where `scale` is "unit"; else float64 and integers, too. None: as "unit", but beyond [0, 1], too.
    Raises DataError: no such array, not finite, or not in [0, 1] where it has to be. Warns of a range hardly filled."""
    t, odd, _ = _examined(name, value, scale)
    if odd:
        warn_caller(odd)
    return t


def _examined(name: str, value: Any, scale: str | None) -> tuple[torch.Tensor, str | None, tuple[float, float]]:
    """As examples(), what to warn of, and the range."""
    x = array(name, value)
    if x.ndim < 2 or x.size == 0:
        raise DataError(f"{name} has shape {x.shape}, expected [N, ...] with at least one example and one feature")
    unit = scale in ("unit", None)
    if unit and x.dtype.kind in "iu" and x.dtype != np.uint8:
        found, hint = f"{name} has dtype {x.dtype}", "choose scale='minmax' or 'standard', or " if scale else ""
        raise DataError(f"{found}, expected uint8 in 0..255 or floats in [0, 1]: {hint}convert it")
    with np.errstate(over="ignore"):
        held = np.float32 if unit and x.dtype != np.uint8 else HELD.get(x.dtype.name, x.dtype)
        held = np.int16 if not unit and x.dtype == np.uint8 and x.ndim == 2 else held  # numbers, no pixels
        t = shared(x.astype(held, copy=False))
    low, high = _span(name, t)
    if scale == "unit" and t.dtype != torch.uint8 and (low < 0 or high > 1):
        by = "255, or pass uint8" if high > DARK else f"{high:g}"
        hint = f"divide by {by}" if 0 <= low and high <= 255 else "choose scale='minmax' or 'standard'"
        hint = "clip it" if -0.01 < low and high < 1.01 else hint  # rounding, or the overshoot of a resize
        raise DataError(f"{name} has values from {low:.9g} to {high:.9g}, expected [0, 1]: {hint}")
    odd = span_warning(name, low, high, t.dtype) if unit else None
    if scale is None and t.dtype != torch.uint8 and (high > 2 or low < -1):  # beyond what a model makes itself
        hint = f"divide by {max(high, 255):g}" if low >= 0 else "scale them as the examples it was trained on"
        odd = f"{name} has values from {low:.9g} to {high:.9g}, the model knows [0, 1]: {hint}"
    return t, odd, (low, high)


def _span(name: str, x: torch.Tensor) -> tuple[float, float]:
    """The least and the largest of x [N, ...], some million numbers at a time."""
    blocks = x.split(max(1, 2**22 * len(x) // x.numel()))
    low, high = torch.tensor([[t.item() for t in b.aminmax()] for b in blocks], dtype=torch.float64, device="cpu").T
    if not (math.isfinite(low.sum()) and math.isfinite(high.sum())):
        wrong = ~np.isfinite(x.numpy())
        where = f"the first at index {tuple(map(int, np.unravel_index(wrong.argmax(), x.shape)))}"
        raise DataError(f"{name} has {wrong.sum()} NaN or infinite values, {where}: replace or drop them")
    return low.min().item(), high.max().item()


def _digest(parts: dict[str, Rows | None], labels: dict[str, torch.Tensor | None]) -> str:
    digest = hashlib.sha256()
    for part, x in parts.items():
        y = labels[part]
        for rows in (x, None if y is None else Rows.all(y)):
            digest.update(b"None;" if rows is None else f"{rows.x.dtype}{(len(rows), *rows.x.shape[1:])};".encode())
            for block in () if rows is None else rows.split(4096):
                digest.update(block.numpy().data)
    return digest.hexdigest()

"""Labels as people have them: words, numbers, one-hot rows, some of them missing; as codes of classes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..files import DataError, brief, warn_caller
from ..scalars import scalar
from .arrays import array

MAX_CLASSES = 10_000
LOST = {"nan", "NaN", "None", "<NA>", "NaT"}  # what missing labels become where all are made strings
MISSING = {"-1", "na", "n/a", "null", "?", "unlabeled", "unlabelled"}  # words that mean no label, elsewhere


def encoded(name: str, value: Any, n: int, classes: Sequence[Any] | None = None) -> tuple[np.ndarray, list[Any]]:
    """Codes, int64 [n], of the labels `value`, called `name` in errors, and the sorted classes (str, int or bool) that
    they index; -1 is no label. Integers 0 to K - 1, all there, are their own codes.

    Labels are an array, tensor, list, Series or DataFrame of words, bools, integers or floats that are integers, [n] or
    [n, 1]; or one-hot [n, K] of classes 0 to K - 1 or as a DataFrame calls its columns. None, NaN, these two as words,
    "", the integer -1 and a row of zeros are no label. `classes`, of a training set or a model, are the only ones there
    may be, if given. Raises DataError: labels are otherwise, or not n, or none at all, or of over 10,000 classes."""
    found = _array(name, value, n)
    different, where = (found, np.arange(n)) if found.dtype == object else np.unique(found, return_inverse=True)
    labels: list[Any] = [_label(name, v) for v in different.tolist()]
    if lost := sorted((LOST & {v for v in labels if isinstance(v, str)}).difference(classes or ())):
        warn_caller(f"{name} has label {lost[0]!r}, taken for no label: call a class otherwise")
        labels = [None if v in lost else v for v in labels]
    there = {*labels} - {None}
    if len(kinds := sorted({type(label).__name__ for label in there})) > 1:
        raise DataError(f"{name} has labels that are {' and '.join(kinds)}, expected one kind: make strings of all")
    if classes is None and not 1 <= len(there) <= MAX_CLASSES:
        raise DataError(f"{name} has {len(there)} classes among {n} labels, expected 1 to {MAX_CLASSES}")
    if classes is None and (odd := sorted(v for v in there if str(v).lower() in MISSING)):
        warn_caller(f"{name} has label {brief(odd[0])}, taken for a class: pass None, NaN or -1 for no label")
    classes = sorted(there) if classes is None else [*classes]
    codes: dict[Any, int] = {None: -1} | {label: code for code, label in enumerate(classes)}
    if unknown := sorted(there.difference(codes)):
        raise DataError(f"{name} has label {brief(unknown[0])}, expected one of the classes {brief(classes)}")
    return np.array([codes[label] for label in labels], np.int64)[where], classes


def _array(name: str, value: Any, n: int) -> np.ndarray:
    """The labels [n] in what encoded() takes; of one-hot rows integers, or objects."""
    columns = getattr(value, "columns", None)
    if isinstance(value, list | tuple):  # whose types NumPy would mix
        if any(isinstance(v, np.ma.MaskedArray) for v in value):
            raise DataError(f"{name} is masked, expected plain labels: fill it with -1, which is no label")
        value = np.array([v.tolist() if hasattr(v, "tolist") else v for v in value], object)
        value = np.array(value.tolist()) if value.ndim > 1 else value
    if hasattr(value, "dtype") and not hasattr(value, "__array__"):  # in a file, maybe
        value = value[:]
    found = np.asanyarray(array(name, value) if isinstance(value, Tensor) else value)
    if isinstance(found, np.ma.MaskedArray):
        raise DataError(f"{name} is a masked array, expected a plain one: fill it with -1, which is no label")
    if found.ndim == 2 and found.size == n and 1 in found.shape:
        found = found.ravel()
    if found.ndim == 2 and len(found) == n:
        if found.dtype.kind not in "biuf" or ((found != 0) & (found != 1)).any() or (found.sum(1) > 1).any():
            hint = "pass one label for each example (of probabilities, their argmax)"
            raise DataError(f"{name} has shape {found.shape} and is not one-hot: {hint}")
        if columns is not None and not found.any(1).all():
            warn_caller(f"{name} has rows of zeros, taken for no label: give every class a column (no drop_first)")
        found = np.where(found.any(1), found.argmax(1), -1)
        found = found if columns is None else np.array([*columns, None], object)[found]
    if found.shape != (n,):
        raise DataError(f"{name} has shape {found.shape}, expected ({n},): one label for each example")
    if found.dtype.kind not in "biufSUTO":
        raise DataError(f"{name} has dtype {found.dtype}, expected strings, integers or bools")
    return found


def _label(name: str, value: Any) -> Any:
    """One label as a str, int or bool of Python; None for no label."""
    label = scalar(value.decode(errors="replace") if isinstance(value, bytes) else value)
    if isinstance(label, float):
        label = None if math.isnan(label) else int(label) if label.is_integer() else label
    if type(label).__name__ == "NAType" or label in (None, "") or (type(label) is int and label == -1):
        return None
    if type(label) in (str, bool) or (type(label) is int and label >= 0):
        return label
    expected = "expected strings, bools or integers from 0 on, or -1, None or NaN for no label"
    raise DataError(f"{name} has label {brief(label)}, {expected}: a number to predict is no class")

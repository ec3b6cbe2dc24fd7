"""Arrays as callers give them: what may come in through any door, to train on, to encode, to score."""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import DataError, brief

MAX_PIXELS = 2**24  # of one image


def array(name: str, value: Any, lists: bool = False) -> np.ndarray:
    """`value`, called `name` in errors, as a plain array of numbers, which may share its memory: NumPy's, a tensor of
    any device, a DataFrame, a PIL image, whatever says how NumPy makes one of it or has slices; a list if allowed.
    Raises DataError: it has a mask, or is sparse, ragged or of no real numbers."""
    if isinstance(value, Tensor):
        t = tensor(name, value).cpu()
        return (t.float() if t.is_floating_point() and t.dtype != torch.float64 else t).numpy()  # it has no bfloat16
    if any(isinstance(v, np.ma.MaskedArray) for v in (value, *(value if isinstance(value, list | tuple) else ()))):
        raise DataError(f"{name} is a masked array, expected a plain one: fill it or leave rows out first")
    try:
        value = _readable(value)
        known = hasattr(value, "__array__") or (lists and isinstance(value, list | tuple | Real))
        found = np.asanyarray(value) if known else None
    except Exception as error:  # another library's array may raise anything
        raise DataError(f"{name} is no array of numbers: pass a numpy array ({brief(error)})") from None
    if found is None:
        raise DataError(f"{name} is a {type(value).__name__}, expected a numpy array or a torch tensor")
    if isinstance(found, np.ma.MaskedArray):  # as __array__ made it
        return array(name, found)
    if found.dtype.kind not in "biuf":
        raise DataError(f"{name} has dtype {found.dtype}, expected real numbers")
    return np.asarray(found).astype(found.dtype.newbyteorder("="), copy=False)


def _readable(value: Any) -> Any:
    """A PIL image, a DataFrame or what has slices as an array: uint8 [H, W] of a grey image of 8 bits, [H, W, 3] of one
    in colours; float64 of columns without a common dtype. Anything else as it is."""
    if hasattr(value, "getbands"):
        if math.prod(value.size) > MAX_PIXELS:
            raise ValueError(f"{value.size} pixels, expected at most {MAX_PIXELS}")
        deep, grey = value.mode[0] in "IF", value.mode in ("1", "L", "LA")
        return np.asarray(value if deep else value.convert("L" if grey else "RGB"))
    if hasattr(value, "columns") and hasattr(value, "dtypes"):
        kinds = [getattr(t, "kind", "f") for t in value.dtypes]
        if words := [c for c, kind in zip(value.columns, kinds, strict=True) if kind not in "biuf"]:
            raise ValueError(f"columns {brief(words)} are of no numbers: drop them, or make numbers of them")
        found = np.asarray(value)
        return np.asarray(value, np.float64) if found.dtype == object else found
    sliced = not hasattr(value, "__array__") and hasattr(value, "dtype") and hasattr(value, "__getitem__")
    return value[:] if sliced else value


def columns_of(name: str, value: Any, expected: list[str] | None = None) -> list[str] | None:
    """What the columns of a table are called, if all differ, or None. Raises DataError where others are expected."""
    names = [str(column) for column in value.columns] if hasattr(value, "columns") and hasattr(value, "dtypes") else []
    names = names if len({*names}) == len(names) else None
    if names and expected and names != expected:
        raise DataError(f"{name} has columns {brief(names)}, expected {brief(expected)} in this order")
    return names or None


def tensor(name: str, value: Any) -> Tensor:
    """As array(), for torch: dense, without gradients; a tensor stays on its device."""
    if not isinstance(value, Tensor):
        found = array(name, value, lists=True)
        if found.dtype.itemsize > 8:
            raise DataError(f"{name} has dtype {found.dtype}, expected floats of at most 8 bytes")
        return torch.from_numpy(plain(found))
    own, plain_own = (getattr(kind, "__torch_dispatch__", None) for kind in (type(value), Tensor))
    wrapped = value.is_nested or own is not plain_own  # as MaskedTensor is
    if wrapped or value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
        shape = "nested" if value.is_nested else list(value.shape)
        kind = f"{value.layout} on {value.device.type}, {value.dtype} {shape}"
        raise DataError(f"{name} is {kind}: expected a dense tensor of real numbers")
    return value.detach().resolve_neg()


def sample_weights(values: Any, n: int | None, name: str) -> np.ndarray:
    """Weights of the n rows (None: of however many) of what is called `name`, float64 [n]; one number is that of all.
    Raises DataError: they are of another number, or are no weights."""
    weights = np.asarray(values, np.float64)
    weights = np.full(n, weights) if weights.ndim == 0 and n is not None else weights
    if weights.ndim != 1 or n not in (None, len(weights)):
        expected = "as many" if n or weights.ndim else "one for each, or one number and n_samples="
        raise DataError(
            f"sample_weight has shape {list(weights.shape)}, {name} has {n or 'N'} rows: expected {expected}"
        )
    with np.errstate(over="ignore"):
        total, most = weights.sum(), 1e307 * weights[weights > 0].min(initial=math.inf)
    if not (weights >= 0).all() or not 0 < total < most:
        expected = "numbers from zero, not all zero, of a finite sum, each of the others above 1e-307 of it"
        raise DataError(f"sample_weight sums to {total:g}: expected {expected}")
    return weights


def plain(values: np.ndarray) -> np.ndarray:
    """Contiguous, writable, no negative strides (one row may keep them though contiguous): as torch wants memory."""
    return np.require(values.copy() if min(values.strides, default=0) < 0 else values, None, ["C", "W"])


def shared(values: np.ndarray) -> Tensor:
    """A tensor, only to be read, on the memory of an array where that may be: contiguous, maybe read-only."""
    if values.flags.writeable or not values.flags.c_contiguous or min(values.strides, default=0) < 0:
        return torch.from_numpy(plain(values))
    return torch.from_dlpack(values)  # from_numpy() warns of read-only ones


def flat(name: str, t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Examples t [N, ...] as [N, D]: of this shape, or one that differs by axes of length 1, or one of the two flat.
    Raises DataError: they have another shape, or other axes first."""
    given, d = tuple(t.shape[1:]), math.prod(shape)
    if math.prod(given) != d:
        raise DataError(f"{name} has {math.prod(given)} values per example, expected {d} of shape {shape}")
    axes, expected = ([n for n in s if n != 1] for s in (given, shape))
    if axes != expected and min(len(axes), len(expected)) > 1:
        raise DataError(f"{name} has examples of shape {given}, expected {shape}: put its axes in this order")
    return t.flatten(1)

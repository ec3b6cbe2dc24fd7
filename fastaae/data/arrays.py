"""Arrays as callers give them: what may come in through any door, to train on, to encode, to score."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import DataError, brief


def array(name: str, value: Any, lists: bool = False) -> np.ndarray:
    """`value`, called `name` in errors, as a plain array of numbers, which may share its memory: NumPy's, a tensor of
    any device, or whatever says how NumPy makes one of it; a list if that is allowed.

    Raises:
        DataError: it has a mask, or is sparse, ragged or of no real numbers.
    """
    if isinstance(value, Tensor):
        t = tensor(name, value).cpu()
        return (t.float() if t.is_floating_point() and t.dtype != torch.float64 else t).numpy()  # it has no bfloat16
    if any(isinstance(v, np.ma.MaskedArray) for v in (value, *(value if isinstance(value, list | tuple) else ()))):
        raise DataError(f"{name} is a masked array, expected a plain one: fill it or leave rows out first")
    if not hasattr(value, "__array__") and not (lists and isinstance(value, list | tuple | Real)):
        raise DataError(f"{name} is a {type(value).__name__}, expected a numpy array or a torch tensor")
    try:
        found = np.asanyarray(value)
    except Exception as error:  # another library's array may raise anything
        raise DataError(f"{name} is no array of numbers: pass a numpy array ({brief(error)})") from None
    if isinstance(found, np.ma.MaskedArray):  # as __array__ made it
        return array(name, found)
    if found.dtype.kind not in "biuf":
        raise DataError(f"{name} has dtype {found.dtype}, expected real numbers")
    return np.asarray(found).astype(found.dtype.newbyteorder("="), copy=False)


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


def plain(values: np.ndarray, dtype: Any = None) -> np.ndarray:
    """Contiguous, writable, no negative strides (one row may keep them though contiguous): as torch wants memory."""
    return np.require(values.copy() if min(values.strides, default=0) < 0 else values, dtype, ["C", "W"])


def flat(name: str, t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Examples t [N, ...] as [N, D]: of this shape, or one that differs by axes of length 1, or one of the two flat.

    Raises:
        DataError: they have another shape, or other axes first.
    """
    given, d = tuple(t.shape[1:]), math.prod(shape)
    if math.prod(given) != d:
        raise DataError(f"{name} has {math.prod(given)} values per example, expected {d} of shape {shape}")
    axes, expected = ([n for n in s if n != 1] for s in (given, shape))
    if axes != expected and min(len(axes), len(expected)) > 1:
        raise DataError(f"{name} has examples of shape {given}, expected {shape}: put its axes in this order")
    return t.flatten(1)

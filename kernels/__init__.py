"""The operations of a training step (installed as fastaae.kernels); reference.py says what each does.

Who computes them is chosen once, when a network or a step is made, by device, dtype and size: Triton on a GPU (step/
layers.py with 16-bit operands, losses.py and norms.py with any but float64, draws.py where a step draws no more than
that can), oneDNN for large layers on a CPU (onednn.py), plain torch for the rest (reference.py). A step then calls what
was chosen; of what is in plain torch everywhere (dropout, divergences) it calls reference.py.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import onednn, reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels then run on the CPU, slowly: for tests


class Products(NamedTuple):
    """The products of one layer, as in reference.py."""

    linear: Callable[..., None]
    linear_backward: Callable[..., None]


class Losses(NamedTuple):
    """The losses of a step with their gradients, the label head, and its end, as in reference.py."""

    reconstruction_loss: Callable[..., None]
    judge: Callable[..., None]
    softmax_: Callable[[Tensor], None]
    softmax_backward_: Callable[[Tensor, Tensor], None]
    softmax_cross_entropy: Callable[..., None]
    finish: Callable[..., None]


class Norms(NamedTuple):
    """Batch normalisation in training, and steps of what it learns, as in reference.py."""

    batch_norm: Callable[..., None]
    batch_norm_backward: Callable[..., None]
    steps: Callable[..., None]


def choose_products(weight: Tensor, library: str = "onednn") -> Products:
    """For a layer whose products read weight [R, O, I], of float32 on a CPU by oneDNN, or by what "torch" calls."""
    if on_tensor_cores(weight):
        from .step import layers

        return Products(layers.linear, layers.linear_backward)
    forward = onednn if onednn.takes(weight, library) else reference
    backward = onednn if onednn.takes(weight, library, backward=True) else reference
    return Products(forward.linear, backward.linear_backward)


def choose_update(weight: Tensor, shadow: Tensor, adam: bool, library: str = "onednn") -> Callable[..., None]:
    """For a layer of weight [R, O, I] whose products read shadow, the weight itself or a copy in 16 bits; library as of
    choose_products."""
    if on_tensor_cores(shadow):
        from .step import layers

        return layers.update
    large = onednn.takes(shadow, library)
    gains = large or (adam and onednn.fits(shadow))  # of small layers only Adam gains from one pass
    return partial(onednn.update, large=large) if gains else reference.update


def choose_losses(like: Tensor) -> Losses:
    """For activations of like's device and dtype."""
    module = reference
    if triton_takes(like):
        from .step import losses as module

    return Losses(*(getattr(module, name) for name in Losses._fields))


def choose_norms(like: Tensor) -> Norms:
    """For a network whose products read what is of like's device and dtype."""
    module = reference
    if triton_takes(like):
        from .step import norms as module

    return Norms(*(getattr(module, name) for name in Norms._fields))


def together(*works: Iterator[tuple]) -> None:
    """Run what networks have to do, each work yielding its operations in turn: a function and its arguments. On a GPU
    all take their next one at the same time, and one launch of Triton's does those that are alike(); elsewhere works
    follow each other, while their tensors are in the cache."""
    first = [next(work, ()) for work in works]
    if not first[0] or not _joins(first[0]):
        for call, work in zip(first, works, strict=True):
            for function, *args in chain([call] if call else (), work):
                function(*args)
        return
    for calls in chain([first], zip(*works, strict=True)):
        (function, *args), *others = calls
        if others and _joins(calls[0]) and all(alike(calls[0], other) for other in others):
            function(*args, others=[other[1:] for other in others])
        else:
            for function, *args in calls:
                function(*args)


def _joins(call: tuple) -> bool:
    return call[0].__module__.startswith(f"{__name__}.step")


def alike(a: Any, b: Any) -> bool:
    """Whether a launch's arguments differ in nothing but where tensors lie: shapes, pitches, dtypes, numbers agree."""
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    return a is b or a == b


def triton_takes(t: Tensor) -> bool:
    """Whether Triton's kernels take t."""
    return (t.is_cuda or INTERPRETED) and t.dtype.itemsize < 8 and find_spec("triton") is not None


def on_tensor_cores(t: Tensor) -> bool:
    """Whether Triton's kernels take the products of t: 16-bit floats, which have tensor cores."""
    return triton_takes(t) and t.dtype.itemsize == 2


def capability(t: Tensor) -> int:
    """The first number of the compute capability of the device of t; on the CPU (Triton's interpreter) 9."""
    return torch.cuda.get_device_capability(t.device)[0] if t.is_cuda else 9


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros [..., D] of like's dtype and device.

    Where tensor cores read them, long rows that are no whole number of sectors of 32 bytes are spread to whole cache
    lines: of rows of 1,000 16-bit numbers, one behind the other, every second one would start in the middle of a sector
    and cost a quarter more of them.
    """
    d = shape[-1]
    spare = -d % 64 if on_tensor_cores(like) and d > 64 and d % 16 else 0
    return like.new_zeros(*shape[:-1], d + spare)[..., :d]

"""The operations of a training step (installed as fastaae.kernels); reference.py says what each does.

The backend is chosen here, by what an operation is given: Triton on a GPU (layers.py with 16-bit operands, losses.py
and draws.py always), oneDNN for large float32 layers on a CPU (onednn.py), plain torch for the rest (reference.py).
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

from torch import Tensor

from . import onednn, reference
from .reference import (
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    dropout,
    gather,
    head_separation,
    kl,
    mmd,
    reparameterize,
    reparameterize_backward,
    step_,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels then run on the CPU, slowly: for tests

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "dropout",
    "finish",
    "fused",
    "gather",
    "head_separation",
    "judge",
    "kl",
    "linear",
    "linear_backward",
    "mmd",
    "on_cores",
    "reconstruction_loss",
    "reparameterize",
    "reparameterize_backward",
    "softmax_",
    "softmax_backward_",
    "softmax_cross_entropy",
    "step_",
    "update",
    "zeros",
]


def fused(t: Tensor) -> bool:
    """Whether Triton's kernels take t."""
    return (t.is_cuda or INTERPRETED) and t.dtype.itemsize < 8 and _has_triton()


def on_cores(t: Tensor) -> bool:
    """Whether Triton's kernels take the products of t: 16-bit floats, which have tensor cores."""
    return fused(t) and t.dtype.itemsize == 2


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros [..., D] of like's dtype and device.

    Where tensor cores read them, long rows that are no whole number of sectors of 32 bytes are spread to whole cache
    lines: of rows of 1,000 16-bit numbers, one behind the other, every second one would start in the middle of a sector
    and cost a quarter more of them.
    """
    d = shape[-1]
    spare = -d % 64 if on_cores(like) and d > 64 and d % 16 else 0
    return like.new_zeros(*shape[:-1], d + spare)[..., :d]


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, relu: bool) -> None:
    """As reference.linear."""
    _products(weight).linear(x, weight, bias, out, relu)


def linear_backward(grad: Tensor, weight: Tensor, out: Tensor, activation: Tensor | None) -> None:
    """As reference.linear_backward."""
    _products(weight).linear_backward(grad, weight, out, activation)


def update(layers: list[tuple], rate: Tensor, correction: Tensor | None, *args) -> None:
    """As reference.update."""
    _products(layers[0][4]).update(layers, rate, correction, *args)


def reconstruction_loss(logits: Tensor, *args) -> None:
    """As reference.reconstruction_loss."""
    _others(logits).reconstruction_loss(logits, *args)


def judge(hidden: Tensor, *args) -> None:
    """As reference.judge."""
    below = args[4]
    (reference if below is None else _others(hidden)).judge(hidden, *args)


def softmax_(y: Tensor) -> None:
    """As reference.softmax_."""
    _others(y).softmax_(y)


def softmax_backward_(grad: Tensor, y: Tensor) -> None:
    """As reference.softmax_backward_."""
    _others(y).softmax_backward_(grad, y)


def softmax_cross_entropy(logits: Tensor, *args) -> None:
    """As reference.softmax_cross_entropy."""
    _others(logits).softmax_cross_entropy(logits, *args)


def finish(terms: Tensor, *args) -> None:
    """As reference.finish."""
    if fused(terms):
        from .step import draws

        draws.finish(terms, *args)
    else:
        reference.finish(terms, *args)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _products(weight: Tensor):
    if on_cores(weight):
        from .step import layers

        return layers
    return onednn


def _others(t: Tensor):
    if fused(t):
        from .step import losses

        return losses
    return reference

"""The operations of a training step (installed as fastaae.kernels). Plain torch today; see reference.py."""

from __future__ import annotations

from .reference import (
    adam_,
    cross_entropy,
    discriminator_loss,
    gather,
    generator_loss,
    linear,
    linear_backward,
    sgd_,
    softmax_backward_,
    softmax_cross_entropy,
    squared_error,
)

__all__ = [
    "adam_",
    "cross_entropy",
    "discriminator_loss",
    "gather",
    "generator_loss",
    "linear",
    "linear_backward",
    "sgd_",
    "softmax_backward_",
    "softmax_cross_entropy",
    "squared_error",
]

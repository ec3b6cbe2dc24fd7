"""The operations of a training step (installed as fastaae.kernels), in plain torch: see reference.py.

Linear layers go through onednn.py, which keeps what it is good at and leaves the rest to reference.py.
"""

from __future__ import annotations

from .onednn import linear, linear_backward, sgd_, weight_gradient
from .reference import (
    adam_,
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    cross_entropy,
    discriminator_loss,
    dropout,
    gather,
    generator_loss,
    head_separation,
    kl,
    mmd,
    reparameterize,
    reparameterize_backward,
    softmax_backward_,
    softmax_cross_entropy,
    squared_error,
)

__all__ = [
    "adam_",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "cross_entropy",
    "discriminator_loss",
    "dropout",
    "gather",
    "generator_loss",
    "head_separation",
    "kl",
    "linear",
    "linear_backward",
    "mmd",
    "reparameterize",
    "reparameterize_backward",
    "sgd_",
    "softmax_backward_",
    "softmax_cross_entropy",
    "squared_error",
    "weight_gradient",
]

"""What the launches of a GPU do of others' work, so that a step has fewer of them: the phases know nothing of it.

A product of 1,000 x 8 takes as long as one of 1,000 x 1,000, most of it waiting. So a large layer before it leaves what
each tile of its columns adds to those 8, and whoever reads them next sums that, tile after tile, and writes them down:

  codes           the encoder's last hidden layer leaves them; the decoder's and the discriminator's first sum them
  their gradient  the decoder's and the discriminator's second layer leave it, the encoder's last sums it
  loss            the decoder's last layer has it at its end, and writes no logits

The same products, summed in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from .. import kernels
from .networks import MLP
from .phases import Game
from .wiring import Wiring


class Whole(Game, Protocol):
    """What fold() takes: of a Step."""

    wiring: Wiring
    phases: tuple[Callable[[Game, Tensor], None], ...]
    networks: dict[str, MLP]
    terms: Tensor


def fold(step: Whole) -> None:
    """Give a step's networks and losses operations of fewer launches, where it has any."""
    networks = step.networks
    if step.cfg.task == "gan" or not kernels.on_tensor_cores(networks["decoder"].shadows[0]):
        return
    if not networks["decoder"].norms and step.cfg.lr_reconstruction:
        _fold_loss(step)
    cfg, sizes = step.cfg, networks["encoder"].sizes
    plain = (cfg.task, cfg.posterior, cfg.regularizer) == ("unsupervised", "deterministic", "adversarial")
    apart = cfg.label_prior or step.wiring.norms or step.autoencoder.encoding.masks  # something comes in between
    if plain and not apart and len(sizes) > 3 and sizes[-1] <= 16:
        _fold_codes(networks["encoder"], [networks["decoder"], *step.discriminators.values()], step.batch)


def _fold_loss(step: Whole) -> None:
    from ..kernels.step import layers

    decoder, tape = step.networks["decoder"], step.autoencoder.decoding
    k = [phase.__name__ for phase in step.phases].index("reconstruction")
    columns = layers.partial_sums(decoder.shadows[-1], step.batch, decoder.sizes[-1]).shape[1]
    size = max(step.terms.shape[2], columns * step.batch)  # a term of each row and tile of columns
    step.terms = step.terms.new_zeros(*step.terms.shape[:2], size)

    def loss(logits: Tensor, target: Tensor, grad: Tensor, terms: Tensor, output: str, of: str, scale: Any) -> None:
        then = (target, step.terms[k], scale, output == "sigmoid", of == "cross_entropy")
        layers.linear(tape.x[-2], decoder.shadows[-1], decoder.biases[-1], grad, False, then=then)

    decoder.products[-1] = decoder.products[-1]._replace(linear=_left)
    step.ops = step.ops._replace(reconstruction_loss=loss)


def _fold_codes(encoder: MLP, readers: list[MLP], rows: int) -> None:
    from ..kernels.step import layers

    codes = layers.partial_sums(encoder.shadows[-2], rows, encoder.sizes[-2])
    grads = layers.partial_sums(readers[0].shadows[1], rows, readers[0].sizes[1])
    leave = partial(layers.linear, then=(encoder.shadows[-1], codes))
    encoder.products[-2] = encoder.products[-2]._replace(linear=leave)
    encoder.products[-1] = kernels.Products(_left, partial(layers.linear_backward, sums=grads))
    for reader in readers:
        below = partial(_leave_gradient, layers.linear_backward, (reader.shadows[0], grads))
        reader.products[0] = kernels.Products(partial(layers.linear, sums=(codes, encoder.biases[-1])), _left)
        reader.products[1] = reader.products[1]._replace(linear_backward=below)


def _leave_gradient(backward: Callable[..., None], then: tuple[Tensor, Tensor], *args: Tensor) -> None:
    """The gradient of the codes is wanted but where a discriminator learns, from prior samples and codes."""
    wanted = args[0].shape[1] == then[1].shape[2]
    backward(*args, then=then if wanted else None)


def _left(*_: Any) -> None:
    """What another launch does."""

"""fp16 forms of vectors for tensor cores, with what each form loses: plain torch, for the kernels in parzen.py.

The products of parzen.py are exact but for their accumulation, so that the distance of two fp16 forms, each within a
known distance of its vector, bounds the distance of the vectors themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .bounds import U32, extent, lengths

LARGEST = 6e4  # fp16 ends at 65,504


class Halves(NamedTuple):
    """v = (high + low) / scale + lost, row by row. All but the fp16 parts in units of v."""

    high: Tensor  # fp16 [n, D]
    low: Tensor  # fp16 [n, D]
    norm: Tensor  # float64 [n], |v|
    low_norm: Tensor  # float64 [n], |low / scale|
    lost: Tensor  # float64 [n, 2]: |v - high / scale| and |v - (high + low) / scale|
    square: Tensor  # float64 [n, 2], squared norms of high / scale and of (high + low) / scale


def halves(v: Tensor, scale: float) -> Halves | None:
    """Of v [n, D], float64; None where it reaches beyond fp16."""
    scaled = v * scale
    if not extent(scaled) < LARGEST:
        return None
    high = scaled.half()
    rest = scaled - high
    low = rest.half()
    both = high.double() + low
    parts = (scaled, low, rest, rest - low, high, both)
    norm, low_norm, *lost, kept, kept_both = (lengths(t) / scale for t in parts)
    return Halves(high, low, norm, low_norm, torch.stack(lost, 1), torch.stack([kept, kept_both], 1).square())


def product_rows(x: Halves, s: Halves, terms: int) -> tuple[Tensor, Tensor]:
    """fp16 rows [n, terms * D', D' = D rounded up to 8] whose products are those of x and s to so many terms."""
    left = [x.high, x.high, x.low][:terms]
    right = [s.high, s.low, s.high][:terms]
    spare = -x.high.shape[1] % 8
    return tuple(torch.cat([pad(t, (0, spare)) for t in parts], 1) for parts in (left, right))


def product_error(x: Halves, s: Halves, terms: int, farthest: Tensor) -> Tensor:
    """Bound [M] on the error of d² computed by `terms` products, for samples within `farthest` [M] of their query."""
    lost = x.lost[:, int(terms == 3)] + s.lost[:, int(terms > 1)].max()
    left_out = 2 * x.low_norm * s.low_norm.max() if terms == 3 else 0
    return (2 * farthest + lost) * lost + left_out + sum_error(x, terms, farthest)


def sum_error(x: Halves, terms: int, farthest: Tensor) -> Tensor:
    """The part of it that float32 sums cause, whatever the samples.

    Tensor cores add at least four products before they truncate a sum once, to 24 bits (Fasi et al. 2021).
    """
    norms = x.norm * (x.norm + farthest)
    return 4 * U32 * (terms * x.high.shape[1] / 4 + 16) * norms + 8 * U32 * (2 * x.norm + farthest).square()

"""Many samples in one or two dimensions: cells of a lattice, each of which stands for its samples by a few nodes.

A Gaussian of width h is so smooth over a cell of 2 h that interpolation between P Chebyshev nodes gives it to 15
digits: each sample becomes weights of the nodes, once, and a query meets nodes, however many the samples are (a fast
Gauss transform, Greengard & Strain 1991, with interpolation in place of Hermite series). What interpolation and
rounding cost is counted.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .bounds import U64
from .plain import LOG2

LARGE = 2**14  # samples of a block from which on a lattice is tried
P = 20  # nodes along an axis
MAKING, MEETING = 25_000, 20  # what a cell costs to make, in pairs; and for each of its samples
CHUNK = 1024  # samples whose weights are summed at a time: long sums round more
LEBESGUE = 2 / math.pi * math.log(P) + 1  # by which interpolation may enlarge an error
NODES = np.cos(np.pi * (np.arange(P) + 0.5) / P)
TO_NODES = 2 / P * np.cos(np.outer(np.arange(P), np.arccos(NODES)))  # [k, node]: T_k at the nodes, and half of T_0
TO_NODES[0] /= 2
# |f - interpolated f| <= max |f^(P)| / (2^(P-1) P!), and of exp(-u²/2) that is below 1.09 sqrt(P!) exp(-u²/4) (Cramér)
INTERPOLATION = 1.09 / (2 ** (P - 1) * math.sqrt(math.factorial(P)))


class Cells(NamedTuple):
    """Cells of a lattice, and the weights of their nodes."""

    center: Tensor  # [D, B]
    half: float  # of a side: h
    weights: Tensor  # [B, P] or [B, P, P]
    count: Tensor  # [B], samples; float64 as all else


def cells(samples: Tensor, h: float, m: int) -> tuple[Cells, Tensor] | None:
    """The cells of samples [n, D], float64, that hold enough of them for m queries, and which samples are in none of
    these, bool [n]. None where there are no such cells, or values too far from each other for a lattice."""
    low, high = torch.aminmax(samples, dim=0)
    if not ((high - low) / (2 * h) < 2**30).all():
        return None
    place = ((samples - low) / (2 * h)).long().numpy()
    key = place[:, 0] if place.shape[1] == 1 else place[:, 0] * (place[:, 1].max() + 1) + place[:, 1]
    order = key.argsort()
    starts = np.r_[0, np.diff(key[order]).nonzero()[0] + 1, len(order)]
    full = (np.diff(starts) >= enough(m, len(starts) - 1, place.shape[1])).nonzero()[0]
    if not len(full):
        return None
    center = low + (torch.from_numpy(place[order[starts[full]]]).double() + 0.5) * (2 * h)
    weights, rest = [], torch.ones(len(samples), dtype=torch.bool, device="cpu")
    for first, last, c in zip(starts[full], starts[full + 1], center, strict=True):
        inside = torch.from_numpy(order[first:last])
        rest[inside] = False
        local = (samples[inside] - c) / h
        if not local.abs().amax() < 1 + 1e-9:
            return None
        weights.append(sum(_moments(part) for part in local.split(CHUNK)))
    to_nodes = torch.from_numpy(TO_NODES)
    moments = torch.stack(weights)
    for _ in range(1, moments.ndim):
        moments = torch.tensordot(moments, to_nodes, ([1], [0]))
    return Cells(center.T.contiguous(), h, moments, torch.from_numpy(np.diff(starts)[full]).double()), rest


def enough(m: int, occupied: int, d: int) -> float:
    """Samples of a cell from which on its nodes are worth it, for m queries over so many cells that hold any."""
    meeting = m * 7**d / occupied  # queries: a Gaussian is felt about three cells away
    return MAKING / (meeting - MEETING) if meeting > MEETING else math.inf


def _moments(local: Tensor) -> Tensor:
    """Sums over samples [n, D], from -1 to 1, of products of Chebyshev polynomials along the axes: [P] or [P, P]."""
    t = local.new_ones(P, *local.T.shape)
    t[1] = local.T
    for k in range(2, P):
        torch.mul(t[1], t[k - 1], out=t[k]).mul_(2).sub_(t[k - 2])
    return t[:, 0].sum(1) if local.shape[1] == 1 else t[:, 0] @ t[:, 1].T


def sums(c: Cells, x: Tensor, apart: Tensor, w: float, minimum: Tensor) -> tuple[Tensor, Tensor]:
    """Of queries x [D, T], whose squared distances from some cells are apart [T, B], the sums of exp((minimum - d²) w)
    over all samples of these, w = 1 / (2 h²), and a bound on their error; [T] each."""
    steps = 2 * P + 300 + CHUNK + c.count / CHUNK  # roundings of a sum, the largest exponent's first
    error = (1 + LEBESGUE) * INTERPOLATION * torch.exp(-apart * (w / 2))
    error += U64 * LEBESGUE ** len(x) * steps * torch.exp(-apart * w)
    nodes = c.half * torch.from_numpy(NODES)
    found = torch.zeros_like(minimum)
    for some in torch.arange(len(c.count), dtype=torch.int64, device="cpu").split(64):
        gaps = (x[:, :, None] - c.center[:, None, some])[..., None] - nodes  # [D, T, B, P]
        first, *second = gaps.square_().mul_(-w * LOG2).exp2_()
        terms = torch.einsum("tbp,bp...->tb...", first, c.weights[some])
        found += (terms * second[0] if second else terms).flatten(1).sum(1)
    scale = torch.exp(minimum * w)
    return found * scale, (error @ c.count) * scale


def distances(low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Squared distances [T, L] of boxes [D, L] from boxes [D, T]."""
    total = low.new_zeros(least.shape[1], low.shape[1])
    for a, b, c, d in zip(low, high, least[..., None], most[..., None], strict=True):
        gap = torch.maximum(a - d, c - b).clamp_min_(0)
        total.addcmul_(gap, gap)
    return total

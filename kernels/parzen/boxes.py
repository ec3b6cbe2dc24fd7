"""Few dimensions on a CPU: samples lie in leaves of neighbours, whose boxes say to which queries they can matter."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .bounds import double
from .plain import PART, Part, PlainTorch, Totals, part

MOST = 4  # dimensions
LEAF, TILE = 64, 64  # samples in a leaf, queries in a tile


class Leaves(NamedTuple):
    """Samples in leaves. Those without weight have no place, and what fills up the last leaf has no weight."""

    samples: Tensor  # [D, L, LEAF], float64
    ratios: Tensor  # [L, LEAF], v
    index: Tensor  # [L, LEAF], which sample it is
    low: Tensor  # [D, L], of each leaf's box
    high: Tensor
    typical: Tensor  # [L], ln of the mean v, from 0 up


class Boxes(PlainTorch):
    """The engine of PairSums for up to MOST dimensions on a CPU."""

    def __init__(self, totals: Totals):
        super().__init__(totals)
        self.x, self.tiles = double(totals.queries), []
        for rows in neighbours(self.x, TILE).split(TILE):
            low, high = torch.aminmax(self.x[rows], dim=0)
            center = low / 2 + high / 2
            totals.x_square[rows] = (self.x[rows] - center).square().sum(1)  # by which the error of d² goes
            self.tiles.append((rows, center))

    def count(self, samples: Tensor, ratios: Tensor | None, wanted: float) -> None:
        """Count a block of samples, of which ratios are the v. Of leaves that are left out no sample adds more than
        exp(-wanted) of a query's sum."""
        t, leaves = self.totals, grouped(double(samples), ratios)
        live = torch.tensor(t.live, dtype=torch.bool, device="cpu")
        weights = t.weights[live, None]
        spare = leaves.typical / weights[-1]  # how much farther a leaf of such weight matters
        for rows, center in self.tiles if len(leaves.typical) else ():
            q = self.x[rows]
            apart = distances(leaves.low, leaves.high, q.amin(0)[:, None], q.amax(0)[:, None])[0] - spare
            unseen = torch.ones_like(apart, dtype=torch.bool)
            if t.minimum[rows].isinf().any():
                first = (distances(leaves.low, leaves.high, q.T, q.T) - spare).argmin(1).unique()
                self.meet(rows, center, parts(leaves, first, center))
                unseen[first] = False
            needed = ((wanted - t.sums[live][:, rows].clamp_min(1).log()) / weights).amax(0)
            reach = (t.minimum[rows] + needed)[:, None]
            near = (unseen & (apart <= reach.max())).nonzero()[:, 0]
            apart = distances(leaves.low[:, near], leaves.high[:, near], q.T, q.T) - spare[near]
            near = near[(apart <= reach).any(0)]
            t.dropped[:, rows] += LEAF * (unseen.sum() - len(near)) * torch.exp(-needed * t.weights[:, None])
            self.meet(rows, center, parts(leaves, near, center))


def grouped(samples: Tensor, ratios: Tensor | None) -> Leaves:
    """Samples [n, D] of weights v [n] in leaves of neighbours."""
    v = samples.new_ones(len(samples)) if ratios is None else ratios
    kept = v.nonzero()[:, 0]
    index = kept[neighbours(samples[kept], LEAF)]
    fill = -len(index) % LEAF
    index = torch.cat([index, index[-1:].expand(fill)])
    s, v = samples.T[:, index].view(samples.shape[1], -1, LEAF), v[index]
    v[len(v) - fill :] = 0
    v = v.view(-1, LEAF)
    return Leaves(s, v, index.view(-1, LEAF), s.amin(2), s.amax(2), v.mean(1).log().clamp_min(0))


def parts(leaves: Leaves, which: Tensor, center: Tensor) -> Iterator[Part]:
    """Some leaves, a few at a time."""
    for some in which.split(PART // LEAF) if len(which) else ():
        index, ratios = leaves.index[some].flatten(), leaves.ratios[some].flatten()
        yield part(leaves.samples.index_select(1, some).flatten(1), center, index, ratios)


def neighbours(points: Tensor, size: int) -> Tensor:
    """An order of points [n, D], int64, in which any `size` in a row, from a multiple of it on, lie near each other:
    slabs along one axis, in each of them slabs along the next, and so on (Leutenegger et al. 1997)."""
    x, slabs = points.numpy(), [np.arange(len(points))]
    axes = min(x.shape[1], max(len(x) // size, 1).bit_length() - 1)
    for left, axis in zip(range(axes, 0, -1), np.ptp(x, 0).argsort()[::-1] if axes else (), strict=False):
        whole, slabs = slabs, []
        for slab in whole:
            slab, leaves = slab[x[slab, axis].argsort()], -(-len(slab) // size)
            most = size * math.ceil(leaves / round(leaves ** (1 / left)))
            slabs += [slab[k : k + most] for k in range(0, len(slab), most)] if left > 1 else [slab]
    return torch.from_numpy(np.concatenate(slabs))


def distances(low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Squared distances [T, L] of boxes [D, L] from boxes [D, T]."""
    total = low.new_zeros(least.shape[1], low.shape[1])
    for a, b, c, d in zip(low, high, least[..., None], most[..., None], strict=True):
        gap = torch.maximum(a - d, c - b).clamp_min_(0)
        total.addcmul_(gap, gap)
    return total

"""Few dimensions on a CPU: samples lie in leaves of neighbours, whose boxes say to which queries they can matter."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import lattice
from .bounds import double, extent
from .lattice import Cells, distances
from .plain import PART, Part, PlainTorch, Totals, part

MOST = 4  # dimensions
LEAF, TILE = 128, 64  # samples in a leaf, queries in a tile


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
        exp(-wanted) of a query's sum; where that is infinite, nothing is left out."""
        t, s, cells = self.totals, double(samples), None
        t.extent = max(t.extent, extent(s).item())
        if s.shape[1] <= 2 and t.own is ratios is None and len(t.weights) == 1 and math.isfinite(wanted):
            if len(s) >= lattice.LARGE:
                cells = lattice.cells(s, math.sqrt(0.5 / t.weights.item()), len(self.x))
        every = torch.arange(len(s), dtype=torch.int64, device="cpu") if ratios is None else ratios.nonzero()[:, 0]
        groups = [every] if cells is None else [(~cells[1]).nonzero()[:, 0], cells[1].nonzero()[:, 0]]
        inside, *outside = (grouped(s, ratios, group) for group in groups)
        for rows, center in self.tiles:
            self.scan(inside, rows if cells is None else self.interpolate(cells[0], rows, wanted), center, wanted)
            for leaves in outside:
                self.scan(leaves, rows, center, wanted)

    def scan(self, leaves: Leaves, rows: Tensor, center: Tensor, wanted: float) -> None:
        """Count the leaves that matter to a tile."""
        t, q = self.totals, self.x[rows]
        if not len(leaves.typical) or not len(rows):
            return
        live = torch.tensor(t.live, dtype=torch.bool, device="cpu")
        weights = t.weights[live, None]
        spare = leaves.typical / weights[-1]  # how much farther a leaf of such weight matters
        apart = distances(leaves.low, leaves.high, q.amin(0)[:, None], q.amax(0)[:, None])[0] - spare
        unseen = torch.ones_like(apart, dtype=torch.bool)
        if t.minimum[rows].isinf().any():
            first = (distances(leaves.low, leaves.high, q.T, q.T) - spare).argmin(1)
            if t.own is None:  # no sample of the nearest leaf is farther than its corner
                corner = torch.maximum((q.T - leaves.low[:, first]).abs(), (q.T - leaves.high[:, first]).abs())
                t.minimum[rows] = torch.minimum(t.minimum[rows], corner.square().sum(0))
            first = first.unique()
            self.meet(rows, center, parts(leaves, first, center))
            unseen[first] = False
        needed = ((wanted - t.sums[live][:, rows].clamp_min(1).log()) / weights).amax(0)
        reach = (t.minimum[rows] + needed)[:, None]
        near = (unseen & (apart <= reach.max())).nonzero()[:, 0]
        apart = distances(leaves.low[:, near], leaves.high[:, near], q.T, q.T) - spare[near]
        near = near[(apart <= reach).any(0)]
        t.dropped[:, rows] += LEAF * (unseen.sum() - len(near)) * torch.exp(-needed * t.weights[:, None])
        self.meet(rows, center, parts(leaves, near, center))

    def interpolate(self, c: Cells, rows: Tensor, wanted: float) -> Tensor:
        """Count the cells that matter to a tile by nodes, but for the queries, returned, that need all samples."""
        t, x, w = self.totals, self.x[rows].T, self.totals.weights.item()
        corner = ((x[..., None] - c.center[:, None]).abs() + c.half).square().sum(0)  # no sample is farther
        minimum = torch.minimum(t.minimum[rows], corner.amin(1))
        scale = torch.exp((minimum - t.minimum[rows]) * w)
        sums, dropped = t.sums[0, rows] * scale, t.dropped[0, rows] * scale
        least = sums + torch.exp((minimum[:, None] - corner) * w) @ c.count
        needed = (wanted - least.clamp_min(1).log()) / w
        apart, usable = distances(c.center - c.half, c.center + c.half, x, x), minimum * w < 50
        near = ((apart <= (minimum + needed)[:, None]) & usable[:, None]).any(0)
        chosen = Cells(c.center[:, near], c.half, c.weights[near], c.count[near])
        found, error = lattice.sums(chosen, x, apart[:, near], w, minimum)
        done = usable & (error <= t.tolerance / 4 * (sums + found))
        counted, sums = rows[done], sums + found
        t.sums[0, counted], t.minimum[counted] = sums[done], minimum[done]
        t.dropped[0, counted] = (dropped + error + c.count[~near].sum() * torch.exp(-needed * w))[done]
        return rows[~done]


def grouped(samples: Tensor, ratios: Tensor | None, kept: Tensor) -> Leaves:
    """Of samples [n, D] of weights v [n] those kept, none of no weight, in leaves of neighbours."""
    v = samples.new_ones(len(samples)) if ratios is None else ratios
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
        index, ratios = (t.index_select(0, some).flatten() for t in (leaves.index, leaves.ratios))
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

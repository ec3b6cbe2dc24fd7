"""What has been counted of every query, and how a block of samples is counted in plain torch, on any device.

All pairs of a tile of queries and a part of the samples take one product, which gives -d²; then powers of two, of which
torch has three on a CPU in the time of one exponential, and a product with the samples' weights.
"""

import math
import sys
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .bounds import U64, Bounds, double, extent, lengths, pair_products, some, tiles

TILE = 256  # queries per product: a tile of bounds, 256 x 4096 float32, stays in cache
FEW, PART = 64, 8192  # queries and samples of which all pairs are computed: few enough for a CPU's cache
NEAR = 256  # powers of two by which a nearest sample may lie below the density's peak for its start: this is rounded
LOG2 = math.log2(math.e)
ABSENT = 1e308  # d² of what is not counted: as a minimum, it makes way for any other


class Totals:
    """Per query and bandwidth, over the samples counted so far: the smallest d², and the sum of exp((minimum - d²) w)
    with w = 1 / (2 sigma²), and a bound on what that lacks. Arguments as of PairSums."""

    def __init__(self, queries: Tensor, sigmas: Tensor, tolerance: float):
        self.queries, self.tolerance = queries, tolerance
        # Any center is right. The lower median, since one far query must not shift it; in float32, so that float32
        # samples are centered with a single rounding. CUDA's median() is not deterministic.
        v = double(some(queries, 1024))
        center = v.sort(0).values[(len(v) - 1) // 2] if v.is_cuda else v.median(0).values
        self.center = center.clamp(-1e38, 1e38).float().double()
        self.x = double(queries) - self.center
        self.x_square = lengths(self.x).square()
        self.weights = 0.5 / sigmas.square()
        self.live = [True] * len(sigmas)  # bandwidths whose terms are still wanted
        self.bytes = queries.dtype == torch.uint8  # or samples
        self.minimum = self.x.new_full((len(queries),), math.inf)
        self.sums, self.dropped = self.x.new_zeros(2, len(sigmas), len(queries))
        self.inexact = torch.zeros_like(self.minimum)  # bound on the error of d² left by tensor cores
        self.reach = 0.0  # largest R so far: a pair matters if d² <= minimum + R
        self.extent = extent(double(queries)).item()  # the largest magnitude, also of samples that meet() was given
        self.own: Tensor | None = None  # [M], which of the present block's samples a query is, and is not counted for
        self.ratios: Tensor | None = None  # [n], v of the present block; None: all 1

    def counted(self, d2: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """d² of pairs (query, sample), changed in place to ABSENT where a pair is not to be counted."""
        if self.ratios is not None:
            d2.masked_fill_(self.ratios[columns] == 0, ABSENT)
        return d2 if self.own is None else d2.masked_fill_(self.own[rows] == columns, ABSENT)

    def count(self, rows: Tensor, d2: Tensor, ratios: Tensor | None) -> None:
        """Add the terms of pairs: d² [L] of query rows[l], rows ascending, with the v of its sample."""
        minimum = self.minimum.scatter_reduce(0, rows, d2, "amin")
        fell = (minimum < self.minimum).nonzero()[:, 0]
        drop = minimum[fell] - self.minimum[fell]
        self.minimum = minimum
        gap, counts = minimum[rows] - d2, torch.bincount(rows, minlength=len(minimum))
        for k, live in enumerate(self.live):
            self.sums[k, fell] *= torch.exp(drop * self.weights[k])
            if live:
                terms = torch.exp2(gap * (LOG2 * self.weights[k]))
                terms = terms if ratios is None else terms.mul_(ratios)
                self.sums[k] += torch.segment_reduce(terms, "sum", lengths=counts, unsafe=True)

    def farthest(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """The distance beyond which no sample matters to a query."""
        return (self.minimum[rows] + self.reach).sqrt()

    def expansion(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """Bound on the error that the expansion leaves in d² of the pairs that matter, and which queries may use it."""
        longest = 2 * self.x_square[rows].sqrt() + self.farthest(rows)
        error = (2 * self.queries.shape[1] + 32) * U64 * longest.square()
        return error, error * self.weights[0] <= self.tolerance / 4

    def distance_error(self) -> Tensor:
        """Bound on the error of d² for the pairs that matter, [M]."""
        d, farthest, (expansion, expands) = self.queries.shape[1], self.farthest(), self.expansion()
        error = torch.where(expands, expansion, (2 * d + 16) * U64 * farthest.square())
        if self.bytes:  # k / 255 is rounded; the difference of two of them may be small beside that
            error = error + (2 * farthest + math.sqrt(d) * U64) * math.sqrt(d) * U64
        return error


class Part(NamedTuple):
    """Samples of which all pairs with some queries are computed."""

    samples: Tensor  # [D, n], float64
    right: Tensor  # [D + 2, n], the right side of the product that gives -d²
    index: Tensor  # [n], their places in the block
    ratios: Tensor | None  # [n], v; None: all 1


def part(samples: Tensor, center: Tensor, index: Tensor, ratios: Tensor | None) -> Part:
    """Of samples [D, n]; center [D], from where the product takes its coordinates."""
    d, n = samples.shape
    right = samples.new_ones(d + 2, n)
    torch.sum(torch.sub(samples, center[:, None], out=right[:d]).square(), 0, out=right[d]).neg_()
    return Part(samples, right, index, ratios)


class PlainTorch:
    """An engine of PairSums: the operations by which a block of samples meets `tile` queries at a time, the class of
    bounds that say which pairs are near, and how many samples the first block has at most."""

    bounds, tile, first = Bounds, TILE, sys.maxsize

    def __init__(self, totals: Totals):
        self.totals = totals

    def guess(self, tile: slice, samples: Tensor) -> Tensor:
        """A sample for each query of a tile, where no bounds say which one is near: int64."""
        return torch.zeros_like(self.totals.minimum[tile], dtype=torch.int64)

    def distances(self, rows: Tensor, columns: Tensor, samples: Tensor) -> Tensor:
        """d² of the given pairs, float64; rows ascending."""
        t = self.totals
        seen = torch.zeros(len(samples), dtype=torch.int64, device=columns.device).index_fill_(0, columns, 1)
        used, place = seen.nonzero()[:, 0], (seen.cumsum(0) - 1)[columns]
        expands = t.expansion(rows)[1]
        d2 = t.x.new_empty(len(rows))
        if expands.any():
            r, c, s = rows[expands], place[expands], double(samples[used]) - t.center
            d2[expands] = (t.x_square[r] + lengths(s).square()[c] - 2 * pair_products(r, c, t.x, s)).clamp_min_(0)
        if not expands.all():
            for part in (~expands).nonzero()[:, 0].split(1024):
                difference = double(t.queries[rows[part]]) - double(samples[columns[part]])
                d2[part] = difference.square_().sum(1)
        return t.counted(d2, rows, columns)

    def refine(self, rows: Tensor, columns: Tensor, samples: Tensor) -> None:
        """Count the given pairs; rows ascending."""
        ratios = self.totals.ratios
        self.totals.count(rows, self.distances(rows, columns, samples), None if ratios is None else ratios[columns])

    def dense(self, every: Iterable[slice], samples: Tensor, radius: float) -> None:
        """Count all pairs of some tiles of queries."""
        t, s = self.totals, double(samples)
        t.extent = max(t.extent, extent(s).item())
        index = (
            torch.arange(len(s), dtype=torch.int64, device=s.device) if t.ratios is None else t.ratios.nonzero()[:, 0]
        )
        parts = [
            part(s[k].T, t.center, k, None if t.ratios is None else t.ratios[k]) for k in index.split(PART) if len(k)
        ]
        for tile in every:
            for rows in tiles(tile.stop - tile.start, FEW):
                self.meet(slice(tile.start + rows.start, tile.start + rows.stop), t.center, parts)

    def meet(self, rows: slice | Tensor, center: Tensor, parts: Iterable[Part]) -> None:
        """Count all pairs of some queries and samples in parts with this center."""
        t = self.totals
        plain = double(t.queries[rows])
        x, minimum, differs = plain - center, t.minimum[rows], (~t.expansion(rows)[1]).nonzero()[:, 0]
        held, square = torch.stack([t.sums[:, rows], t.dropped[:, rows]]), x.square().sum(1)
        weights, live = LOG2 * t.weights[:, None], [k for k, alive in enumerate(t.live) if alive]
        # The product gives (start - d²) unit: at once the exponent of the first bandwidth, where nothing overflows and
        # start is small.
        unit = weights[live[0]].item()
        unit = unit if t.own is None and 16 * len(center) * unit * t.extent**2 < 1e300 else 1.0
        most = NEAR / unit if unit != 1 else -1.0
        left = torch.cat([2 * unit * x, x.new_full((len(x), 2), unit)], 1)
        buffers = x.new_empty(2, len(x) * PART)
        for samples, right, index, ratios in parts:
            gap, terms = (b[: len(x) * right.shape[1]].view(len(x), -1) for b in buffers)
            start = minimum.where(minimum < most, 0)
            left[:, -1] = unit * (start - square)
            if len(differs) < len(x):
                torch.mm(left, right, out=gap)
            if len(differs):
                exact = torch.cdist(plain[differs], samples.T, compute_mode="donot_use_mm_for_euclid_dist")
                gap[differs] = (start[differs, None] - exact.square_()).mul_(unit)
            if t.own is not None:
                gap.masked_fill_(t.own[rows, None] == index, -ABSENT)
            before, minimum = minimum, torch.minimum(minimum, (start - gap.amax(1) / unit).clamp_min(0))
            held *= torch.exp2((minimum - before) * weights)
            if (minimum != start).any():
                gap += ((minimum - start) * unit)[:, None]
            for k in live[::-1]:
                powers = gap if k == live[0] else terms
                if k != live[0] or unit == 1:
                    torch.mul(gap, weights[k] / unit, out=powers)
                powers.exp2_()
                held[0, k] += powers.sum(1) if ratios is None else powers @ ratios
        t.minimum[rows], t.sums[:, rows], t.dropped[:, rows] = minimum, *held

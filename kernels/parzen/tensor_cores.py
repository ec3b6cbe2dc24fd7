"""How a block of samples is counted on a GPU with fp16 tensor cores: by bounds in fp16 and in 8 bits, or sums of fp16
products. What the kernels in cuda.py compute is exact but for the sums of products, so the distance of two fp16 forms,
each within a known distance of its vector, bounds that of the vectors."""

import math
import sys
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import cuda
from .bounds import FINE, LIMIT, U32, U64, Level, Projection, double, extent, lengths, principal_directions, tiles
from .plain import PlainTorch, Totals

FIRST = 8192  # samples of the first block
SPARSE = 256  # pairs per word of 32 that holds one that may matter, below which the dense way is shorter
WIDEST = 8192  # coordinates of bytes with which near_pairs is exact
LARGEST = 6e4  # fp16 ends at 65,504
ROOM = 2.0**9  # scaled to fp16 queries are at most this: samples may lie 100 times farther out


class HalfBounds(Projection):
    """As Bounds, in fp16, scaled: tensor cores are fast enough to start with FINE coordinates."""

    def __init__(self, x: Tensor, first: Tensor):
        d = x.shape[1]
        size = d if d <= FINE else FINE - 1
        raised = _padded(principal_directions(x, first, size) * cuda.RAISED, size + (size < d))
        high = raised.half()
        low = (raised - high).half()
        self.parts = high, low  # directions are what these can say
        super().__init__(x, ((high.float() + low.float()) / cuda.RAISED)[:, :size], [size])
        self.scales = scale_for(x.clamp(-LIMIT, LIMIT)), scale_for(self.queries[0].values)
        self.queries = [self.half(self.queries[0])]

    def features(self, samples: Tensor, center: Tensor) -> "HalfFeatures | None":
        """Of samples [n, D]; None if some lie too far out for fp16."""
        level = Level(*cuda.project(samples, center, self.parts, self.sizes[0], self.stretch, self.scales))
        return HalfFeatures(self, level) if level.error.max().isfinite() else None

    def half(self, level: Level) -> Level:
        """A level in fp16; infinite where it reaches beyond."""
        values = (level.values * self.scales[1]).half()
        kept = values.float() / self.scales[1]
        error = level.error + 1.01 * lengths(level.values - kept)
        return Level(_padded(values, values.shape[1]), lengths(kept).square(), error)


class HalfFeatures(NamedTuple):
    """One block of samples beside the queries of HalfBounds."""

    bounds: HalfBounds
    level: Level

    def nearest(self, tile: slice) -> Tensor:
        """As Features.nearest, of the first samples."""
        a, b = self.bounds.queries[0].values[tile].float(), self.level.values[:4096].float()
        return (b.square().sum(1) - 2 * a @ b.T).argmin(1)

    def near(self, tile: slice, reach: Tensor, forced: bool) -> tuple[Tensor, Tensor] | None:
        """As Features.near; the dense way is shorter if they lie in too many words of 32 samples."""
        queries, level, unit = self.bounds.queries[0].values[tile], self.level, self.bounds.scales[1] ** 2
        limit = self.bounds.limit(0, tile, level, reach, 5 * U32)  # tensor cores truncate, and |b|² is a float32 sum
        limit = ((limit + 8 * U32 * limit.abs()) * unit).float()
        words = len(queries) * len(level.square) / (SPARSE / 2 if forced else SPARSE)
        return cuda.near_pairs(queries, level.values, (level.square * unit).float(), limit, words)


class Codes:
    """Lower bounds of |x - s|, x of queries [M, D], by all coordinates in 8 bits, which suppose nothing about the data:
    where projections say too little. With x = c + a + e, s = c + b + f, c the same, |x - s| >= |a - b| - |e| - |f|; a
    and b are integers times a step, and |b|² - 2 a·b is exact."""

    def __init__(self, queries: Tensor):
        low, high = (0, 1) if queries.dtype == torch.uint8 else torch.stack(torch.aminmax(queries)).tolist()
        grid = [low + 128 / 255 * (high - low), max((high - low) / 255, 1e-12)]  # codes are -128 to 127
        self.offset, self.step = torch.tensor(grid, dtype=torch.float32, device="cpu").tolist()
        self.codes, self.square, self.error = cuda.quantize(queries, self.offset, self.step)

    def near(self, samples: Tensor, reach: Tensor) -> tuple[Tensor, Tensor] | None:
        """Pairs (query, sample) that are not proved to have d² > reach [M]; None as HalfFeatures.near."""
        if self.codes.shape[1] > WIDEST:
            return None
        codes, square, error = cuda.quantize(samples, self.offset, self.step)
        distance = (reach.sqrt() + self.error + error.max()) / self.step
        limit = (distance.square() * (1 + 8 * U64) - self.square + 1).nan_to_num(math.inf, math.inf)
        return cuda.near_pairs(self.codes, codes, square, limit, len(reach) * len(samples) / SPARSE)


class Split:
    """v = (high + low) / scale + lost, row by row, of v [n, D], float64. All but the fp16 parts in units of v."""

    def __init__(self, v: Tensor, scale: float):
        self.scale, scaled = scale, v * scale
        self.high = scaled.half()  # [n, D]
        rest = scaled - self.high
        self.low = rest.half()  # [n, D]
        both = self.high.double() + self.low
        self.norm, self.low_norm = lengths(scaled) / scale, lengths(self.low) / scale  # [n], |v| and |low / scale|
        # [n, 2], of high / scale and of (high + low) / scale: how far they are from v, and their squared norms
        self.lost = torch.stack([lengths(rest), lengths(rest - self.low)], 1) / scale
        self.square = (torch.stack([lengths(self.high), lengths(both)], 1) / scale).square()


def product_error(x: Split, s: Split, terms: int, farthest: Tensor) -> Tensor:
    """Bound [M] on the error of d² computed by `terms` products, for samples within `farthest` [M] of their query."""
    lost = x.lost[:, int(terms == 3)] + s.lost[:, int(terms > 1)].max()
    left_out = 2 * x.low_norm * s.low_norm.max() if terms == 3 else 0
    return (2 * farthest + lost) * lost + left_out + sum_error(x, terms, farthest)


def sum_error(x: Split, terms: int, farthest: Tensor) -> Tensor:
    """The part of it that float32 sums cause, whatever the samples.

    Tensor cores add at least four products before they truncate a sum once, to 24 bits (Fasi et al. 2021).
    """
    norms = x.norm * (x.norm + farthest)
    return 4 * U32 * (terms * x.high.shape[1] / 4 + 16) * norms + 8 * U32 * (2 * x.norm + farthest).square()


class TensorCores:
    """An engine of PairSums, with the operations of PlainTorch, for all queries at once."""

    bounds, tile, first = HalfBounds, sys.maxsize, FIRST

    def __init__(self, totals: Totals):
        self.totals = totals
        self.queries = double(totals.queries)  # a kernel that divided bytes by 255 would do so for every pair

    @cached_property
    def codes(self) -> Codes:
        return Codes(self.totals.queries)

    @cached_property
    def split_queries(self) -> Split:
        x, step = self.totals.x, 1 / 255 if self.totals.queries.dtype == torch.uint8 else None
        return Split(x, scale_for(x, step))

    def guess(self, tile: slice, samples: Tensor) -> Tensor:
        codes, square, _ = cuda.quantize(samples[:4096], self.codes.offset, self.codes.step)
        return (square - 2 * self.codes.codes[tile].float() @ codes.float().T).argmin(1)

    def distances(self, rows: Tensor, columns: Tensor, samples: Tensor) -> Tensor:
        return self.totals.counted(cuda.distances(self.queries, samples, rows, columns), rows, columns)

    def refine(self, rows: Tensor, columns: Tensor, samples: Tensor) -> None:
        t, d2 = self.totals, self.distances(rows, columns, samples)
        if t.ratios is None:
            cuda.count(rows, d2, t.minimum, t.sums, t.weights, t.live)
        else:
            t.count(rows, d2, t.ratios[columns])

    def dense(self, all_queries: Iterable[slice], samples: Tensor, radius: float) -> None:
        near = self.codes.near(samples, self.totals.minimum + radius)
        if near is not None:
            if len(near[0]):
                self.refine(*near, samples)
        elif not self._add_products(samples, radius):
            PlainTorch(self.totals).dense(tiles(len(self.totals.x)), samples, radius)

    def _add_products(self, samples: Tensor, radius: float) -> bool:
        """Count all pairs by sums of fp16 products; False beyond the tolerance, and of weights or samples left out."""
        t, x = self.totals, self.split_queries
        farthest = t.farthest()
        if t.ratios is not None or t.own is not None or (sum_error(x, 1, farthest) * t.weights[0]).max() >= t.tolerance:
            return False
        centered = double(samples) - t.center
        if not extent(centered) * x.scale < LARGEST:
            return False
        s = Split(centered, x.scale)
        for terms in (1, 2, 3):
            error = product_error(x, s, terms, farthest)
            if (error * t.weights[0]).max() < t.tolerance:
                break
        else:
            return False
        live, unit = [k for k, live in enumerate(t.live) if live], x.scale**2
        weights = t.weights[live] / unit
        if not 1e-30 < weights[-1] <= weights[0] < 1e30:  # the kernel has them in float32
            return False
        factors, spare = ([x.high, x.high, x.low], [s.high, s.low, s.high]), (0, -t.x.shape[1] % 8)
        left, right = (torch.cat([pad(part, spare) for part in parts[:terms]], 1) for parts in factors)
        x_square, s_square = x.square[:, int(terms == 3)], s.square[:, int(terms > 1)]
        start = ((t.minimum - x_square) * unit).float()
        lowest, sums = cuda.pair_sums(left, right, (s_square * unit).float(), start, weights, radius * unit)
        found = lowest / unit + x_square
        minimum = torch.minimum(t.minimum, found)
        t.sums *= torch.exp((minimum - t.minimum) * t.weights[:, None])
        t.sums[live] += sums * torch.exp((minimum - found) * t.weights[live, None])
        t.minimum, t.inexact = minimum, torch.maximum(t.inexact, error)
        return True


def scale_for(v: Tensor, step: float | None = None) -> float:
    """Factor that brings v [n, D] to fp16's range: a power of two, or 1 / step, if v lies on a grid of that step."""
    largest = extent(v).item() or 1.0
    if step is not None and largest < ROOM * step:
        return 1 / step
    return 2.0 ** max(-400, min(400, math.floor(math.log2(ROOM / largest))))


def _padded(v: Tensor, k: int) -> Tensor:
    """v with columns of zeros up to a power of two that tensor cores take, at least k."""
    return pad(v, (0, max(16, 1 << (k - 1).bit_length()) - v.shape[1]))

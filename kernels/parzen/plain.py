"""What has been counted of every query, and how a block of samples is counted in plain torch, on any device."""

import math
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from .bounds import CHUNK, U64, Bounds, double, lengths, pair_products, some

TILE = 256  # queries per product: a tile of bounds, 256 x 4096 float32, stays in cache
ABSENT = 1e308  # d² of what is not counted: as a minimum, it makes way for any other


class Totals:
    """Per query and bandwidth, over the samples counted so far: the smallest d², and the sum of exp((minimum - d²) w)
    with w = 1 / (2 sigma²). Arguments as of PairSums."""

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
        self.sums = self.x.new_zeros(len(sigmas), len(queries))
        self.inexact = torch.zeros_like(self.minimum)  # bound on the error of d² left by tensor cores
        self.reach = 0.0  # largest R so far: a pair matters if d² <= minimum + R
        self.own: Tensor | None = None  # [M], which of the present block's samples a query is, and is not counted for
        self.logs: Tensor | None = None  # of their weights, zeros up to a multiple of CHUNK; None: all weigh 1

    def counted(self, d2: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """d² of pairs (query, sample), changed in place to ABSENT where a pair is not to be counted."""
        if self.logs is not None:
            d2.masked_fill_(self.logs[columns] == -math.inf, ABSENT)
        return d2 if self.own is None else d2.masked_fill_(self.own[rows] == columns, ABSENT)

    def count(self, rows: Tensor, d2: Tensor, logs: Tensor | None = None) -> None:
        """Add the terms of d² [L, C], row l belonging to query rows[l], rows ascending; logs are of their weights."""
        minimum = self.minimum.scatter_reduce(0, rows, d2.amin(1), "amin")
        fell = (minimum < self.minimum).nonzero()[:, 0]
        drop = minimum[fell] - self.minimum[fell]
        self.minimum = minimum
        gap, counts = minimum[rows, None] - d2, torch.bincount(rows, minlength=len(minimum))
        for k, live in enumerate(self.live):
            self.sums[k, fell] *= torch.exp(drop * self.weights[k])
            if live:
                terms = gap * self.weights[k] if logs is None else (gap * self.weights[k]).add_(logs)
                terms.clamp_min_(-700).exp_()  # far below, exp is slow and adds nothing
                self.sums[k] += torch.segment_reduce(terms.sum(1), "sum", lengths=counts, unsafe=True)

    def farthest(self) -> Tensor:
        """The distance [M] beyond which no sample matters to a query."""
        return (self.minimum + self.reach).sqrt()

    def distance_error(self) -> tuple[Tensor, Tensor]:
        """Bound on the error of d² for the pairs that matter, [M], and which queries may use the expansion, [M]."""
        d, farthest = self.queries.shape[1], self.farthest()
        expansion = (2 * d + 32) * U64 * (2 * self.x_square.sqrt() + farthest).square()
        expands = expansion * self.weights[0] <= self.tolerance / 4
        error = torch.where(expands, expansion, (2 * d + 16) * U64 * farthest.square())
        if self.bytes:  # k / 255 is rounded; the difference of two of them may be small beside that
            error = error + (2 * farthest + math.sqrt(d) * U64) * math.sqrt(d) * U64
        return error, expands


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
        used, place = columns.unique(return_inverse=True)
        expands = t.distance_error()[1][rows]
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
        d2, logs = self.distances(rows, columns, samples), self.totals.logs
        self.totals.count(rows, d2[:, None], None if logs is None else logs[columns, None])

    def dense(self, tiles: Iterable[slice], samples: Tensor, radius: float) -> None:
        """Count all pairs of some tiles of queries, but those of chunks in which none matters."""
        t, n = self.totals, len(samples)
        plain = double(samples)
        centered = plain - t.center
        square = lengths(centered).square()
        every = torch.arange(max(n, len(t.x)), dtype=torch.int64, device=t.x.device)
        for rows in tiles:
            m, expands = rows.stop - rows.start, t.distance_error()[1][rows]
            d2 = t.x.new_full((m, -(-n // CHUNK) * CHUNK), math.inf)
            if expands.any():
                torch.mm(t.x[rows], centered.T, out=d2[:, :n])
                d2[:, :n].mul_(-2).add_(t.x_square[rows, None]).add_(square).clamp_min_(0)
            if not expands.all():
                x = double(t.queries[rows][~expands])
                d2[~expands, :n] = torch.cdist(x, plain, compute_mode="donot_use_mm_for_euclid_dist").square_()
            t.counted(d2[:, :n], every[rows, None], every[:n])
            chunks = d2.view(m, -1, CHUNK)
            nearest = chunks.amin(2)
            reach = torch.minimum(t.minimum[rows], nearest.amin(1)) + radius
            row, chunk = (nearest <= reach[:, None]).nonzero().unbind(1)
            t.count(row + rows.start, chunks[row, chunk], None if t.logs is None else t.logs.view(-1, CHUNK)[chunk])

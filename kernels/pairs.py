"""Parzen-window sums over all pairs of queries and samples, in plain torch: pruned, and exact.

Per query x and bandwidth sigma, over samples s_j that come in blocks, `PairSums` keeps

    m = min_j d_j²    and    sum_j exp(-(d_j² - m) / (2 sigma²)),    d_j = |x - s_j|,

from which the log-likelihood follows. In many dimensions only a few samples matter to a query: those with
d_j² <= m + R, R = 2 sigma² T; every other term is below exp(-T) times the largest. A tile of queries meets a block of
samples in one of two ways:

  pruned  A lower bound of d_j, |P(x - s)| for a few principal directions P and what the rest must add, costs one thin
          float32 product and finds the pairs that may matter; a second, tighter bound leaves few of them; these are
          computed in float64. The rounding of the bounds is counted against them: no pair that matters is dropped.
  dense   All distances in float64, |x|² + |s|² - 2 x·s, one product; exponentials only in chunks that hold a live pair.

Where the cancellation in that expansion could be felt (data far apart compared with sigma), differences take its place.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from . import onednn

U32, U64 = 2.0**-24, 2.0**-53  # unit roundoff
CHUNK = 64  # neighbouring samples whose smallest bound decides whether any of them is looked at
TILE = 256  # queries per product: a tile of bounds, 256 x 4096 float32, stays in cache
COARSE, FINE = 32, 128  # coordinates of the first and of the second bound
STRIP = 128  # columns per product of the projection: short sums, little rounding
LIMIT = 1e15  # magnitude up to which float32 squares are far from overflow
PLENTY = 1e9  # samples for which T is made; more of them only widen the certificate, which counts them
PENDING = 2**17  # pairs collected before their distances are computed


class PairSums:
    """Minimum and sums over the samples added so far.

    Args:
        queries: [M, D], floats, or uint8 k that mean k / 255.
        sigmas: [S], float64, ascending.
        choosing: the first `choosing` queries choose the bandwidth: one that can no longer be the best for them,
            whatever samples follow, is retired. It no longer widens R, and its bound says what that costs. 0: none is.
        tolerance: nats that dropped pairs may cost: T = ln(PLENTY / tolerance).
        method: "auto", "pruned" or "dense".
    """

    def __init__(self, queries: Tensor, sigmas: Tensor, choosing: int, tolerance: float, method: str):
        self.queries, self.sigmas, self.choosing = queries, sigmas, choosing
        self.tolerance, self.method = tolerance, method
        m, d = queries.shape
        # Any center is right. A median, since one far query must not shift it; in float32, so that float32 samples are
        # centered with a single rounding.
        self.center = double(some(queries, 1024)).median(0).values.float().double()
        self.x = double(queries) - self.center
        self.x_square = self.x.square().sum(1)
        self.weights = 0.5 / sigmas.square()
        self.live = [True] * len(sigmas)
        self.minimum = self.x.new_full((m,), math.inf)
        self.sums = self.x.new_zeros(len(sigmas), m)
        self.dropped = self.x.new_zeros(len(sigmas))  # sum of exp(-R / (2 sigma²)) over dropped pairs, of any query
        self.n, self.reach, self.retry = 0, 0.0, 0  # samples; largest R; samples at which pruning is tried again
        self.bounds: Bounds | None = None
        self.block = min(max(2 ** int(math.log2(4e6 / d)), 512), 4096)  # samples that add() takes at most

    def add(self, samples: Tensor) -> None:
        """Count samples [n, D], n <= block, finite, of a dtype as the queries may have."""
        with exact_arithmetic():
            block = Block(samples, self.center)
            features = None
            if self.method != "dense" and self.n >= self.retry:
                if self.bounds is None:
                    self.bounds = Bounds(self.x, block.s)
                features = self.bounds.features(samples, self.center)
            if self.n == 0:
                self._seed(block, features)
            radius = self._radius()
            self.dropped += len(samples) * torch.exp(-radius * self.weights)
            missed, pending = 0, Pairs()
            for start in range(0, len(self.x), TILE):
                stop = min(start + TILE, len(self.x))
                pairs = None if features is None else self._prune(start, stop, features, radius, len(samples))
                if pairs is None:
                    missed += stop - start
                    self._dense(start, stop, block, radius)
                else:
                    pending.append(*pairs)
                    if pending.count > PENDING:
                        self._refine(*pending.take(), block)
            if pending.count:
                self._refine(*pending.take(), block)
        self.n += len(samples)
        if features is not None and 2 * missed > len(self.x):
            self.retry = 2 * self.n

    def merge(self) -> None:
        """Join the sums of all ranks of torch.distributed, in the order of their ranks: each then holds the whole.

        What a rank has left out is small beside its own nearest sample, hence beside the nearest of all.
        """
        counts = self.minimum.new_tensor([self.n, self.reach, *map(float, self.live)])
        held = torch.cat([counts, self.dropped, self.minimum, self.sums.flatten()])
        ranks = [torch.empty_like(held) for _ in range(distributed.get_world_size())]
        distributed.all_gather(ranks, held)
        s, m = self.sums.shape
        parts = [rank.split([2, s, s, m, s * m]) for rank in ranks]
        self.n = int(sum(counts[0] for counts, *_ in parts))
        self.reach = max(counts[1].item() for counts, *_ in parts)
        self.live = torch.stack([live for _, live, *_ in parts]).amin(0).bool().tolist()
        self.dropped = torch.stack([dropped for _, _, dropped, *_ in parts]).sum(0)
        self.minimum = torch.stack([minimum for *_, minimum, _ in parts]).amin(0)
        self.sums = torch.zeros_like(self.sums)
        for *_, minimum, sums in parts:
            self.sums += sums.view(s, m) * torch.exp((self.minimum - minimum) * self.weights[:, None])

    def result(self) -> tuple[Tensor, Tensor]:
        """Log-likelihoods [S, M] in nats and a bound on their distance from the exact ones, [S, M]."""
        d, w = self.queries.shape[1], self.weights[:, None]
        log_norm = math.log(self.n) + d * torch.log(self.sigmas * math.sqrt(2 * math.pi))[:, None]
        sums = self.sums.clamp_min(1)  # the nearest sample's term is 1, whether or not it was added
        live = torch.tensor(self.live, device=w.device)[:, None]
        missing = torch.where(live, torch.log1p(1.01 * self.dropped[:, None] / sums), math.log(self.n) - sums.log())
        value = sums.log() - self.minimum * w - log_norm
        rounding = U64 * (4 * self.n + 256 + 8 * self.minimum * w + 8 * log_norm.abs())
        return value, missing + self._distance_error()[0] * w + rounding

    def _radius(self) -> float:
        """R for the bandwidths still in play, after retiring those that are not.

        The likelihood under sigma lies within ln n of -m / (2 sigma²) - D ln sigma + const. As m falls, wide bandwidths
        only lose against narrow ones, so a gap that exceeds ln n now, for any n to come, stays.
        """
        m = self.minimum[: self.choosing].mean().item() if self.choosing else math.inf
        if math.isfinite(m):
            d, log_n = self.queries.shape[1], math.log(1e15)
            best = [-m * w - d * math.log(s) for s, w in zip(self.sigmas.tolist(), self.weights.tolist(), strict=True)]
            for k in range(len(best)):
                self.live[k] = self.live[k] and not any(best[k] + log_n < best[i] for i in range(k))
        widest = max(s for s, live in zip(self.sigmas.tolist(), self.live, strict=True) if live)
        radius = 2 * widest**2 * math.log(PLENTY / self.tolerance)
        self.reach = max(self.reach, radius)
        return radius

    def _distance_error(self) -> tuple[Tensor, Tensor]:
        """Bound on the error of d² for the pairs that matter, [M], and which queries may use the expansion, [M]."""
        d = self.queries.shape[1]
        farthest = (self.minimum + self.reach).sqrt()
        expansion = (2 * d + 32) * U64 * (2 * self.x_square.sqrt() + farthest).square()
        expands = expansion * self.weights[0] <= self.tolerance / 4
        return torch.where(expands, expansion, (2 * d + 16) * U64 * farthest.square()), expands

    def _seed(self, block: Block, features: Features | None) -> None:
        """A first upper bound of every minimum: the distance of the sample that looks nearest, else of any sample."""
        rows = torch.arange(len(self.x), device=self.x.device)
        nearest = torch.zeros_like(rows)
        if features is not None:
            for start in range(0, len(rows), TILE):
                coarse = self.bounds.coarse(start, start + TILE, features)
                nearest[start : start + TILE] = features.order[coarse.argmin(1)]
        self.minimum.copy_(self._distances(rows, nearest, block))

    def _prune(self, start: int, stop: int, features: Features, radius: float, n: int) -> tuple[Tensor, Tensor] | None:
        """Pairs (query, sample) of a tile that may matter; None if they are so many that the dense way is shorter."""
        d, b = self.x.shape[1], self.bounds
        reach = self.minimum[start:stop] + radius
        budget = (stop - start) * n * (d + 24) if self.method == "auto" else math.inf  # in float64 multiply-adds
        bound = b.coarse(start, stop, features).view(stop - start, -1, CHUNK)
        limit = b.limit(0, start, stop, features, reach)
        limit = (limit + 4 * U32 * limit.abs()).float()
        row, chunk = (bound.amin(2) <= limit[:, None]).nonzero().unbind(1)
        hit, column = (bound[row, chunk] <= limit[row, None]).nonzero().unbind(1)
        row, sample = row[hit], features.order[chunk[hit] * CHUNK + column]
        if len(row) * 1000 > budget:
            return None
        if len(b.sizes) > 1:
            near = b.fine(start, stop, features, row, sample) <= b.limit(1, start, stop, features, reach)[row]
            row, sample = row[near], sample[near]
        if len(row) * (600 + 14 * d) > budget:
            return None
        return row + start, sample

    def _refine(self, rows: Tensor, columns: Tensor, block: Block) -> None:
        self._count(rows, self._distances(rows, columns, block)[:, None])

    def _distances(self, rows: Tensor, columns: Tensor, block: Block) -> Tensor:
        """d² of the given pairs, float64; rows ascending."""
        used, columns = columns.unique(return_inverse=True)
        expands = self._distance_error()[1][rows]
        d2 = self.x.new_empty(len(rows))
        if expands.any():
            r, c, s = rows[expands], columns[expands], double(block.samples[used]) - self.center
            dots = pair_products(r, c, self.x, s)
            d2[expands] = (self.x_square[r] + s.square().sum(1)[c] - 2 * dots).clamp_min_(0)
        if not expands.all():
            hard = (~expands).nonzero()[:, 0]
            for part in hard.split(1024):
                difference = double(self.queries[rows[part]]) - double(block.samples[used[columns[part]]])
                d2[part] = difference.square_().sum(1)
        return d2

    def _dense(self, start: int, stop: int, block: Block, radius: float) -> None:
        n = len(block.samples)
        d2 = self.x.new_full((stop - start, -(-n // CHUNK) * CHUNK), math.inf)
        expands = self._distance_error()[1][start:stop]
        if expands.any():
            torch.mm(self.x[start:stop], block.s.T, out=d2[:, :n])
            d2[:, :n].mul_(-2).add_(self.x_square[start:stop, None]).add_(block.square).clamp_min_(0)
        if not expands.all():
            hard = (~expands).nonzero()[:, 0]
            x, s = double(self.queries[start:stop][hard]), double(block.samples)
            d2[hard, :n] = torch.cdist(x, s, compute_mode="donot_use_mm_for_euclid_dist").square_()
        chunks = d2.view(stop - start, -1, CHUNK)
        nearest = chunks.amin(2)
        reach = torch.minimum(self.minimum[start:stop], nearest.amin(1)) + radius
        row, chunk = (nearest <= reach[:, None]).nonzero().unbind(1)
        self._count(row + start, chunks[row, chunk])

    def _count(self, rows: Tensor, d2: Tensor) -> None:
        """Add the terms of d² [L, C], row l belonging to query rows[l]."""
        minimum = self.minimum.scatter_reduce(0, rows, d2.amin(1), "amin")
        fell = (minimum < self.minimum).nonzero()[:, 0]
        drop = minimum[fell] - self.minimum[fell]
        self.minimum = minimum
        gap = minimum[rows, None] - d2
        for k, live in enumerate(self.live):
            self.sums[k, fell] *= torch.exp(drop * self.weights[k])
            if live:
                terms = (gap * self.weights[k]).clamp_min_(-700).exp_()  # far below, exp is slow and adds nothing
                self.sums[k].index_add_(0, rows, terms.sum(1))


class Block:
    """One block of samples [n, D], and its centered float64 form, made when first asked for."""

    def __init__(self, samples: Tensor, center: Tensor):
        self.samples, self.center = samples, center

    @cached_property
    def s(self) -> Tensor:
        return double(self.samples) - self.center

    @cached_property
    def square(self) -> Tensor:
        return self.s.square().sum(1)


class Pairs:
    """Pairs collected for later."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.count = 0

    def append(self, rows: Tensor, columns: Tensor) -> None:
        self.rows.append(rows)
        self.columns.append(columns)
        self.count += len(rows)

    def take(self) -> tuple[Tensor, Tensor]:
        taken = torch.cat(self.rows), torch.cat(self.columns)
        self.__init__()
        return taken


class Level(NamedTuple):
    """Vectors whose distances bound those of the data from below, one level of Bounds."""

    values: Tensor  # [n, k], float32
    square: Tensor  # [n], float64, their squared norms
    error: Tensor  # [n], float64: how far a row may lie from the true vector


class Features(NamedTuple):
    """What Bounds needs of one block of samples, in an order that keeps neighbours in one chunk."""

    order: Tensor  # [n'], n rounded up to a multiple of CHUNK: which sample a row is
    product: Tensor  # [n', k + 1]: first level, then its squared norm; infinitely far where there is no sample
    levels: list[Level]


class Bounds:
    """Lower bounds of |x - s| by projection, safe against their own rounding.

    For orthonormal directions P and the length r(v) of what they leave of v, |x - s|² >= |Px - Ps|² + (r(x) - r(s))².
    So projection and r together are coordinates in which every distance is a lower bound. The first level has about
    COARSE of them, the second FINE.

    Args:
        x: centered queries [M, D], float64.
        first: centered samples [n, D], float64. With the queries they choose the directions; any are valid.
    """

    def __init__(self, x: Tensor, first: Tensor):
        d = x.shape[1]
        self.sizes = sorted({d if d <= COARSE else COARSE - 1, d if d <= FINE else FINE - 1})
        self.directions = principal_directions(torch.cat([some(x, 2048), some(first, 2048)]), self.sizes[-1]).float()
        p = self.directions.double()
        self.stretch = torch.linalg.matrix_norm(p.T @ p - torch.eye(self.sizes[-1], device=p.device)).item()
        self.far = x.square().sum(1) > LIMIT**2  # nothing is dropped for these queries
        self.queries = self._levels(torch.where(self.far[:, None], 0, x).float())
        first_level = self.queries[0].values
        self.product = torch.cat([-2 * first_level, torch.ones_like(first_level[:, :1])], 1)

    def features(self, samples: Tensor, center: Tensor) -> Features | None:
        """Of samples [n, D]; None if some lie too far out for float32."""
        if samples.dtype in (torch.float64, torch.uint8):
            t = (double(samples) - center).float()
        else:
            t = samples.float() - center.float()
        if not torch.linalg.vector_norm(t, math.inf) < LIMIT:
            return None
        levels = self._levels(t)
        n = len(t)
        order = torch.arange(-(-n // CHUNK) * CHUNK, device=t.device)
        for level in range(min(int(math.log2(max(n // CHUNK, 1))), self.sizes[0])):  # a k-d tree, all its leaves full
            if n != CHUNK << int(math.log2(n // CHUNK)):
                break
            nodes = order.view(2**level, -1)
            order = nodes.gather(1, levels[0].values[:, level][nodes].argsort(1)).flatten()
        order[n:] = 0
        coarse = levels[0]
        product = torch.cat([coarse.values, coarse.square[:, None].float()], 1)[order]
        product[n:] = 0
        product[n:, -1] = 3e38
        return Features(order, product, levels)

    def coarse(self, start: int, stop: int, features: Features) -> Tensor:
        """|b|² - 2 a·b of queries' and samples' first-level vectors, [stop - start, n'] in the features' order."""
        return product(self.product[start:stop], features.product)

    def fine(self, start: int, stop: int, features: Features, rows: Tensor, samples: Tensor) -> Tensor:
        """|b|² - 2 a·b of second-level vectors for pairs (start + rows, samples), rows ascending."""
        level = features.levels[-1]
        dots = pair_products(rows, samples, self.queries[-1].values[start:stop], level.values)
        return level.square[samples] - 2 * dots.double()

    def limit(self, level: int, start: int, stop: int, features: Features, reach: Tensor) -> Tensor:
        """Above this, |b|² - 2 a·b proves d² > reach. [stop - start], float64."""
        a, b = (Level(*(t[start:stop] for t in self.queries[level])), features.levels[level])
        farthest, norm = b.square.max().sqrt(), a.square.sqrt()
        distance = (reach * (1 + self.stretch)).sqrt() + a.error + b.error.max()
        product = 1.01 * U32 * (a.values.shape[1] + 8) * (norm + farthest).square() + 1e-30
        return torch.where(self.far[start:stop], math.inf, distance.square() - a.square + product)

    def _levels(self, t: Tensor) -> list[Level]:
        """Of centered vectors [n, D], float32, each coordinate of which carries at most one rounding."""
        d = t.shape[1]
        p = t.new_zeros(len(t), self.sizes[-1])
        for k in range(0, d, STRIP):
            p.add_(product(t[:, k : k + STRIP], self.directions[k : k + STRIP].T))
        length = torch.linalg.vector_norm(t, dim=1, dtype=torch.float64)
        levels = []
        for size in self.sizes:
            values, error = p[:, :size], 1.02 * U32 * (1 + (STRIP + d / STRIP + 4) * math.sqrt(size)) * length
            square = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64).square()
            if size < d:
                rest = (length.square() - square).clamp_min(0).sqrt()
                slack = (4 * U32 + self.stretch) * length.square() + 2 * length * error + error.square()
                error = error + torch.minimum(slack.sqrt(), slack / rest) + U32 * rest
                values = torch.cat([values, rest[:, None].float()], 1)
                square = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64).square()
            levels.append(Level(values.contiguous(), square, error))
        return levels


def double(values: Tensor) -> Tensor:
    """Values in float64, bytes as k / 255."""
    return values.double() / 255 if values.dtype == torch.uint8 else values.double()


def product(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ by the fastest library there is."""
    return onednn.product(a, b) if onednn.fits(a) else a @ b.T


def principal_directions(v: Tensor, k: int) -> Tensor:
    """k orthonormal columns [D, k] near the leading principal directions of v [n, D], by subspace iteration."""
    d = v.shape[1]
    if k < d:
        q = torch.randn(d, k, dtype=v.dtype, generator=torch.Generator().manual_seed(0)).to(v.device)
        for _ in range(2):
            q = torch.linalg.qr(v.T @ (v @ q)).Q
    else:
        q = torch.eye(d, dtype=v.dtype, device=v.device)
    projected = v @ q
    return torch.linalg.qr(q @ torch.linalg.eigh(projected.T @ projected).eigenvectors.flip(1)).Q


def some(v: Tensor, n: int) -> Tensor:
    """At most n rows of v, evenly spread."""
    return v[:: -(-len(v) // n)]


def pair_products(rows: Tensor, columns: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a[rows] · b[columns], [L], for rows in ascending order, without gathering them."""
    ends = torch.zeros(len(a) + 1, dtype=torch.int64, device=a.device)
    ends[1:] = torch.bincount(rows, minlength=len(a)).cumsum(0)
    pattern = torch.sparse_csr_tensor(ends, columns, a.new_zeros(len(rows)), (len(a), len(b)))
    return torch.sparse.sampled_addmm(pattern, a, b.T, beta=0).values()


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Products in their operands' precision, whatever autocast or float32 setting the caller has chosen."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.filterwarnings("ignore", "Sparse", UserWarning)
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                yield
    finally:
        torch.set_float32_matmul_precision(precision)

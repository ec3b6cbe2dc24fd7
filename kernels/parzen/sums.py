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
          Tensor cores do better: all distances in 8 bits are a bound, too, which supposes nothing about the data and
          leaves nearly as few pairs for float64 as there are; where too many matter, sums of fp16 products if the
          tolerance allows, else the above.

Where the cancellation in that expansion could be felt (data far apart compared with sigma), differences take its place.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, distributed

from .bounds import CHUNK, U64, Bounds, Codes, Features, double, lengths, medians, pair_products, scale_for, some
from .fp16 import Halves, halves, product_error, product_rows, sum_error

TILE = 256  # queries per product: a tile of bounds, 256 x 4096 float32, stays in cache
STRIP = 1024  # queries whose distances to a whole block are held at a time
SINGLE = 2.0**-15  # nats: float32 exponentials and their sums on tensor cores
PLENTY = 1e9  # samples for which T is made; more of them only widen the certificate, which counts them
FIRST = 8192  # samples of the first block on a GPU
SPARSE = 256  # on a GPU, pairs per word of 32 that holds one that may matter, below which the dense way is shorter
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
        self.center = medians(double(some(queries, 1024))).clamp(-1e38, 1e38).float().double()
        self.x = double(queries) - self.center
        self.x_square = lengths(self.x).square()
        self.weights = 0.5 / sigmas.square()
        self.grid = list(zip(sigmas.tolist(), self.weights.tolist(), strict=True))
        self.live = [True] * len(sigmas)
        self.bytes = queries.dtype == torch.uint8  # or samples
        self.minimum = self.x.new_full((m,), math.inf)
        self.sums = self.x.new_zeros(len(sigmas), m)
        self.dropped = self.x.new_zeros(len(sigmas))  # sum of exp(-R / (2 sigma²)) over dropped pairs, of any query
        self.n, self.reach, self.retry = 0, 0.0, 0  # samples; largest R; samples at which pruning is tried again
        self.inexact = torch.zeros_like(self.minimum)  # bound on the error of d² left by tensor cores
        self.bounds: Bounds | None = None
        self.cores = tensor_cores(self.x.device)
        self.tile = m if self.cores else TILE
        self.block = block_size(m, d, self.x.device)  # samples that are counted at a time

    def add(self, samples: Tensor) -> None:
        """Count samples [n, D], finite, of a dtype as the queries may have, on any device: all of them or, where it
        raises, none of the last block. Where memory runs out, blocks are halved."""
        start = 0
        while start < len(samples):
            stop, before = min(start + self.block, len(samples)), self.packed()
            if self.cores:  # at first minima fall fast, and with them the number of pairs that may matter
                stop = min(stop, start + max(7 * self.n, FIRST))
            try:
                self._add(samples[start:stop].to(self.x.device))
                start = stop
            except BaseException as error:
                self.restore(before)
                if not ran_out_of_memory(error):
                    raise
                if stop == start + 1:
                    hint = f"expected more, or fewer than {len(self.x)} queries at a time"
                    raise MemoryError(f"memory ran out at a block of {stop - start} sample: {hint}") from error
                self.block = (stop - start + 1) // 2

    def packed(self) -> Tensor:
        """What has been counted, float64 [4 + 2 S + 2 M + S M], for restore()."""
        counts = self.minimum.new_tensor([self.n, self.reach, self.retry, self.bytes, *self.live])
        return torch.cat([counts, self.dropped, self.inexact, self.minimum, self.sums.flatten()])

    def restore(self, packed: Tensor, first: Tensor | None = None) -> None:
        """Go back to what packed() gave; or on from it, given the first block of samples that was counted then."""
        counts, live, dropped, inexact, minimum, sums = self._parts(packed.to(self.x.device, copy=True))
        n, self.reach, retry, self.bytes = counts.tolist()
        self.n, self.retry, self.live = int(n), int(retry), live.bool().tolist()
        self.dropped, self.inexact, self.minimum, self.sums = dropped, inexact, minimum, sums.view_as(self.sums)
        if first is not None and self.method != "dense":
            with exact_arithmetic():
                self._bound_by(first[:FIRST] if self.cores else first)
        elif not self.n:
            self.bounds = None

    def _parts(self, packed: Tensor) -> tuple[Tensor, ...]:
        s, m = self.sums.shape
        return packed.split([4, s, s, m, m, s * m])

    def _bound_by(self, samples: Tensor) -> None:
        self.bounds = Bounds(self.x, double(some(samples, 2048)) - self.center, self.cores)

    def _add(self, samples: Tensor) -> None:
        self.bytes = self.bytes or samples.dtype == torch.uint8
        with exact_arithmetic():
            block = Block(samples, self.center)
            features = None
            if self.method != "dense" and self.n >= self.retry:
                if self.bounds is None:
                    self._bound_by(samples)
                features = self.bounds.features(samples, self.center)
            if self.n == 0:
                self._seed(block, features)
            radius = self._radius()
            self.dropped += len(samples) * torch.exp(-radius * self.weights)
            missed, pending = 0, Pairs()
            for start in range(0, len(self.x), self.tile):
                stop = min(start + self.tile, len(self.x))
                pairs = None if features is None else self._prune(start, stop, features, radius, len(samples))
                if pairs is None:
                    missed += stop - start
                    pairs = self._near_codes(samples, radius) if self.cores else None
                if pairs is None:
                    if not (self.cores and self._sum_on_cores(block, radius)):
                        for k in range(start, stop, STRIP):
                            self._dense(k, min(k + STRIP, stop), block, radius)
                else:
                    pending.append(*pairs)
                    if pending.count > PENDING:
                        self._refine(*pending.take(), block)
            if pending.count:
                self._refine(*pending.take(), block)
        self.n += len(samples)
        if features is not None and 2 * missed > len(self.x):
            self.retry = 2 * self.n

    def merge(self, timeout: float) -> None:
        """Join the sums of all ranks of torch.distributed, in the order of their ranks: each then holds the whole.

        What a rank has left out is small beside its own nearest sample, hence beside the nearest of all. Raises
        RuntimeError where that takes more than `timeout` seconds.
        """
        held = self.packed()
        ranks = [torch.empty_like(held) for _ in range(distributed.get_world_size())]
        distributed.all_gather(ranks, held, async_op=True).wait(timedelta(seconds=timeout))
        counts, live, dropped, inexact, minima, sums = zip(*map(self._parts, ranks), strict=True)
        self.n = int(sum(n for n, *_ in counts))
        self.reach = max(reach.item() for _, reach, *_ in counts)
        self.bytes = any(as_bytes for *_, as_bytes in counts)
        self.live = torch.stack(live).amin(0).bool().tolist()
        self.dropped, self.inexact = torch.stack(dropped).sum(0), torch.stack(inexact).amax(0)
        self.minimum = torch.stack(minima).amin(0)
        self.sums = torch.zeros_like(self.sums)
        for minimum, terms in zip(minima, sums, strict=True):
            self.sums += terms.view_as(self.sums) * torch.exp((self.minimum - minimum) * self.weights[:, None])

    def result(self) -> tuple[Tensor, Tensor]:
        """Log-likelihoods [S, M] in nats and a bound on their distance from the exact ones, [S, M]."""
        d, w = self.queries.shape[1], self.weights[:, None]
        log_norm = math.log(self.n) + d * torch.log(self.sigmas * math.sqrt(2 * math.pi))[:, None]
        sums = self.sums.clamp_min(1)  # the nearest sample's term is 1, whether or not it was added
        live = torch.tensor(self.live, device=w.device)[:, None]
        missing = torch.where(live, torch.log1p(1.01 * self.dropped[:, None] / sums), math.log(self.n) - sums.log())
        value = sums.log() - self.minimum * w - log_norm
        rounding = U64 * (4 * self.n + 256 + 8 * self.minimum * w + 8 * log_norm.abs())
        distance = torch.maximum(self._distance_error()[0], self.inexact)
        return value, missing + distance * w + rounding + SINGLE * (self.inexact > 0)

    def _radius(self) -> float:
        """R for the bandwidths still in play, after retiring those that are not.

        The likelihood under sigma lies within ln n of -m / (2 sigma²) - D ln sigma + const. As m falls, wide bandwidths
        only lose against narrow ones, so a gap that exceeds ln n now, for any n to come, stays.
        """
        m = self.minimum[: self.choosing].mean().item() if self.choosing else math.inf
        if math.isfinite(m):
            d, log_n = self.queries.shape[1], math.log(1e15)  # of all n to come
            best = [-m * w - d * math.log(s) for s, w in self.grid]
            for k in range(len(best)):
                self.live[k] = self.live[k] and not any(best[k] + log_n < best[i] for i in range(k))
        widest = max(s for (s, _), live in zip(self.grid, self.live, strict=True) if live)
        radius = 2 * widest**2 * math.log(PLENTY / self.tolerance)
        self.reach = max(self.reach, radius)
        return radius

    def _distance_error(self) -> tuple[Tensor, Tensor]:
        """Bound on the error of d² for the pairs that matter, [M], and which queries may use the expansion, [M]."""
        d = self.queries.shape[1]
        farthest = (self.minimum + self.reach).sqrt()
        expansion = (2 * d + 32) * U64 * (2 * self.x_square.sqrt() + farthest).square()
        expands = expansion * self.weights[0] <= self.tolerance / 4
        error = torch.where(expands, expansion, (2 * d + 16) * U64 * farthest.square())
        if self.bytes:  # k / 255 is rounded; the difference of two of them may be small beside that
            error = error + (2 * farthest + math.sqrt(d) * U64) * math.sqrt(d) * U64
        return error, expands

    def _seed(self, block: Block, features: Features | None) -> None:
        """A first upper bound of every minimum: the distance of the sample that looks nearest, else of any sample."""
        rows = torch.arange(len(self.x), device=self.x.device)
        nearest = torch.zeros_like(rows)
        for start in range(0, len(rows), STRIP):
            if features is not None:
                nearest[start : start + STRIP] = self.bounds.nearest(start, start + STRIP, features)
            elif self.cores:
                nearest[start : start + STRIP] = self.codes.nearest(start, start + STRIP, block.samples)
        self.minimum.copy_(self._distances(rows, nearest, block))

    def _prune(self, start: int, stop: int, features: Features, radius: float, n: int) -> tuple[Tensor, Tensor] | None:
        """Pairs (query, sample) of a tile that may matter; None if they are so many that the dense way is shorter."""
        d, b = self.x.shape[1], self.bounds
        reach = self.minimum[start:stop] + radius
        budget = (stop - start) * n * (d + 24) if self.method == "auto" else math.inf  # in float64 multiply-adds
        words = (stop - start) * n / (SPARSE if self.method == "auto" else SPARSE / 2)
        found = b.near(start, stop, features, reach, words if self.cores else budget / 1000)
        if found is None:
            return None
        row, sample = found
        if len(b.sizes) > 1:
            near = b.fine(start, stop, features, row, sample) <= b.limit(1, start, stop, features, reach)[row]
            row, sample = row[near], sample[near]
        if len(row) * (600 + 14 * d) > budget and not self.cores:
            return None
        return row + start, sample

    def _near_codes(self, samples: Tensor, radius: float) -> tuple[Tensor, Tensor] | None:
        """Pairs (query, sample) that may matter by all distances in 8 bits, for all queries; None if too many."""
        m, d = self.x.shape
        if d > 8192:
            return None
        return self.codes.near(samples, self.minimum + radius, m * len(samples) / SPARSE)

    @cached_property
    def exact_queries(self) -> Tensor:
        """In float64: a kernel that divided bytes by 255 would do so for every pair."""
        return double(self.queries)

    @cached_property
    def codes(self) -> Codes:
        return Codes(self.queries, self.cores)

    def _refine(self, rows: Tensor, columns: Tensor, block: Block) -> None:
        if self.cores:
            d2 = self._distances(rows, columns, block)
            return self.cores.count(rows, d2, self.minimum, self.sums, self.weights, self.live)
        self._count(rows, self._distances(rows, columns, block)[:, None])

    def _distances(self, rows: Tensor, columns: Tensor, block: Block) -> Tensor:
        """d² of the given pairs, float64; rows ascending."""
        if self.cores:
            return self.cores.distances(self.exact_queries, block.samples, rows, columns)
        used, columns = columns.unique(return_inverse=True)
        expands = self._distance_error()[1][rows]
        d2 = self.x.new_empty(len(rows))
        if expands.any():
            r, c, s = rows[expands], columns[expands], double(block.samples[used]) - self.center
            dots = pair_products(r, c, self.x, s)
            d2[expands] = (self.x_square[r] + lengths(s).square()[c] - 2 * dots).clamp_min_(0)
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

    def _sum_on_cores(self, block: Block, radius: float) -> bool:
        """The dense way on tensor cores, for all queries; False where that might cost more than the tolerance."""
        x, scale = self.query_halves
        farthest = (self.minimum + self.reach).sqrt()
        if x is None or (sum_error(x, 1, farthest) * self.weights[0]).max() >= self.tolerance:
            return False
        s = halves(block.s, scale)
        if s is None:
            return False
        for terms in (1, 2, 3):
            error = product_error(x, s, terms, farthest)
            if (error * self.weights[0]).max() < self.tolerance:
                break
        else:
            return False
        live, unit = [k for k, live in enumerate(self.live) if live], scale**2
        weights = self.weights[live] / unit
        if not 1e-30 < weights[-1] <= weights[0] < 1e30:  # the kernel has them in float32
            return False
        x_square = x.square[:, int(terms == 3)]
        lowest, sums = self.cores.pair_sums(
            *product_rows(x, s, terms),
            (s.square[:, int(terms > 1)] * unit).float(),
            ((self.minimum - x_square) * unit).float(),
            weights,
            radius * unit,
        )
        found = lowest / unit + x_square
        minimum = torch.minimum(self.minimum, found)
        self.sums *= torch.exp((minimum - self.minimum) * self.weights[:, None])
        self.sums[live] += sums * torch.exp((minimum - found) * self.weights[live, None])
        self.minimum, self.inexact = minimum, torch.maximum(self.inexact, error)
        return True

    @cached_property
    def query_halves(self) -> tuple[Halves | None, float]:
        """The queries in fp16, and what they are scaled by."""
        scale = scale_for(self.x, 1 / 255 if self.queries.dtype == torch.uint8 else None)
        return halves(self.x, scale), scale

    def _count(self, rows: Tensor, d2: Tensor) -> None:
        """Add the terms of d² [L, C], row l belonging to query rows[l]; rows ascending."""
        minimum = self.minimum.scatter_reduce(0, rows, d2.amin(1), "amin")
        fell = (minimum < self.minimum).nonzero()[:, 0]
        drop = minimum[fell] - self.minimum[fell]
        self.minimum = minimum
        gap, counts = minimum[rows, None] - d2, torch.bincount(rows, minlength=len(minimum))
        for k, live in enumerate(self.live):
            self.sums[k, fell] *= torch.exp(drop * self.weights[k])
            if live:
                terms = (gap * self.weights[k]).clamp_min_(-700).exp_()  # far below, exp is slow and adds nothing
                self.sums[k] += torch.segment_reduce(terms.sum(1), "sum", lengths=counts, unsafe=True)


class Block:
    """One block of samples [n, D], and its centered float64 form, made when first asked for."""

    def __init__(self, samples: Tensor, center: Tensor):
        self.samples, self.center = samples, center

    @cached_property
    def s(self) -> Tensor:
        return double(self.samples) - self.center

    @cached_property
    def square(self) -> Tensor:
        return lengths(self.s).square()


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
        self.rows, self.columns, self.count = [], [], 0
        return taken


def block_size(m: int, d: int, device: torch.device) -> int:
    """Samples to take at a time: few enough for a CPU's cache; as many as a GPU has room for, up to 2^19.

    A GPU takes up to a quarter of its memory for what becomes of all pairs of a block, 4 bytes each, and for each copy
    of a block in float64 about 1/32. No tensor comes to have 2^31 elements, which nonzero() refuses.
    """
    if device.type != "cuda":
        return min(max(2 ** int(math.log2(4e6 / d)), 512), 4096)
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(max(2 ** int(math.log2(min(memory / 256 / d, memory / 16 / m, (2**33 - 1) / m))), 512), 2**19)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by a GPU, by the system, or to oneDNN, which says no more than "could not create"."""
    refused = isinstance(error, RuntimeError) and re.match(".*can't allocate memory|could not create a ", str(error))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(refused)


def tensor_cores(device: torch.device) -> ModuleType | None:
    """The module parzen where the device has fp16 tensor cores and Triton is installed."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8 or find_spec("triton") is None:
        return None
    from . import cuda as parzen

    return parzen


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Products in their operands' precision, whatever autocast or float32 setting the caller has chosen."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.filterwarnings("ignore", "Sparse", UserWarning)
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision

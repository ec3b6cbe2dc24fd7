"""Parzen-window sums over all pairs of queries and samples: pruned, exact, by plain torch or by tensor cores.

Per query x and bandwidth sigma, over samples s_j that come in blocks, `PairSums` keeps

    m = min_j d_j²    and    sum_j v_j exp(-(d_j² - m) / (2 sigma²)),    d_j = |x - s_j|,

from which the log-likelihood follows; v_j is a weight beside the least above 0, 1 where all are the same. In many
dimensions only a few samples matter to a query: those with d_j² <= m + R, R = 2 sigma² (T + max_j ln v_j); every other
term is below exp(-T) times the largest. A tile of queries meets a block of samples in one of two ways:

  pruned  A lower bound of d_j, |P(x - s)| for a few principal directions P and what the rest must add, costs one thin
          float32 product and finds the pairs that may matter; a second, tighter bound leaves few of them; these are
          computed in float64. The rounding of the bounds is counted against them: no pair that matters is dropped.
  dense   All distances in float64, |x|² + |s|² - 2 x·s, one product; exponentials only in chunks that hold a live pair.
          Tensor cores do better: all distances in 8 bits are a bound, too, which supposes nothing about the data and
          leaves nearly as few pairs for float64 as there are; of too many, fp16 sums if tolerated, or as above.

Where the cancellation in that expansion could be felt (data far apart compared with sigma), differences take its place.
"""

import math
import re
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad

from ..exact import exact_arithmetic
from .bounds import U64, Bounds, double, some, tiles
from .boxes import MOST, Boxes
from .plain import NEAR, PlainTorch, Totals

if TYPE_CHECKING:  # needs Triton
    from .tensor_cores import HalfBounds, TensorCores

SINGLE = 2.0**-15  # nats: float32 exponentials and their sums on tensor cores
PLENTY = 1e9  # samples for which T is made; more of them only widen the certificate, which counts them
PENDING = 2**17  # pairs collected before their distances are computed


class PairSums:
    """Minimum and sums over the samples added so far.

    Args:
        queries: [M, D], floats, or uint8 k that mean k / 255.
        sigmas: [S], float64, ascending.
        choosing: the first `choosing` queries choose the bandwidth: one that can no longer be the best for them,
            whatever samples follow, is retired. It no longer widens R, and its bound says what that costs. 0: none is.
        tolerance: nats that dropped pairs may cost: T = ln(plenty / tolerance).
        method: "auto", "pruned" or "dense".
        weights: float64 [N], of all samples that will come: a sum below 1e307 times the least above 0. None: 1 each.
        own: int64 [M]: query i is sample own[i] and scored under the others; -1: under all.
    """

    def __init__(
        self, queries: Tensor, sigmas: Tensor, choosing: int, tolerance: float, method: str,
        weights: Tensor | None = None, own: Tensor | None = None,
    ):  # fmt: skip
        self.sigmas, self.choosing, self.tolerance, self.method = sigmas, choosing, tolerance, method
        self.totals = Totals(queries, sigmas, tolerance)
        few = queries.device.type == "cpu" and queries.shape[1] <= MOST
        engine = Boxes if few else tensor_cores(queries.device) or PlainTorch
        self.engine: PlainTorch | TensorCores = engine(self.totals)
        self.bounds: Bounds | HalfBounds | None = None
        self.grid = list(zip(sigmas.tolist(), self.totals.weights.tolist(), strict=True))
        self.own = None if own is None else own.to(queries.device)
        self.unit, self.ratios, self.spread = 1.0, None, 0.0  # the least weight; v, if there are several; max ln v
        if weights is not None:
            self.unit = weights[weights > 0].min().item()
            if (weights != self.unit).any():
                self.ratios = (weights / self.unit).to(queries.device)
                self.spread = math.log(self.ratios.max())
        self.n, self.mass, self.retry = 0, 0.0, 0  # samples; sum of their v; at how many pruning is tried again
        self.seen = [math.inf, -math.inf, 0.0]  # low, high and typical size of samples: whoever adds them may note it
        self.plenty = PLENTY  # samples for which T is made: whoever adds them may know how many there are
        self.block = block_size(len(queries), queries.shape[1], queries.device)  # samples that are counted at a time

    def add(self, samples: Tensor) -> None:
        """Count samples [n, D], finite, of a dtype as the queries may have, on any device: all of them or, where it
        raises, none of the last block. Where memory runs out, blocks are halved."""
        start = 0
        while start < len(samples):
            most = max(7 * self.n, self.engine.first)  # at first minima fall fast, and with them the pairs that matter
            stop, before = min(start + min(self.block, most), len(samples)), self.packed()
            try:
                self._add(samples[start:stop].to(self.totals.x.device))
                start = stop
            except BaseException as error:
                self.restore(before)
                if not ran_out_of_memory(error):
                    raise
                if stop == start + 1:
                    hint = f"score fewer than {len(self.totals.x)} queries at a time"
                    raise MemoryError(f"memory ran out at a block of {stop - start} sample: {hint}") from error
                self.block = (stop - start + 1) // 2

    def packed(self) -> Tensor:
        """What has been counted, float64 [10 + S + 2 M + 2 S M], for restore()."""
        t = self.totals
        counts = [self.n, self.mass, self.unit, self.spread, t.reach, self.retry, t.bytes, *self.seen, *t.live]
        return torch.cat([t.minimum.new_tensor(counts), t.inexact, t.minimum, t.dropped.flatten(), t.sums.flatten()])

    def restore(self, packed: Tensor, first: Tensor | None = None) -> None:
        """Go back to what packed() gave; or on from it, given the first block of samples that was counted then."""
        t = self.totals
        counts, live, t.inexact, t.minimum, dropped, sums = self._parts(packed.to(t.x.device, copy=True))
        n, self.mass, _, _, t.reach, retry, t.bytes, *self.seen = counts.tolist()
        self.n, self.retry, t.live = int(n), int(retry), live.bool().tolist()
        t.dropped, t.sums = dropped.view_as(t.sums), sums.view_as(t.sums)
        if first is not None and self.method != "dense" and not isinstance(self.engine, Boxes):
            with exact_arithmetic():
                self.bounds = self._bounds_by(first[: self.engine.first])
        elif not self.n:
            self.bounds = None

    def merge(self, timeout: float) -> None:
        """Join the sums of all ranks of torch.distributed, in the order of their ranks: each then holds the whole.

        What a rank has left out is small beside its own nearest sample, hence beside the nearest of all. Raises
        RuntimeError where that takes more than `timeout` seconds.
        """
        t, held = self.totals, self.packed()
        ranks = [torch.empty_like(held) for _ in range(distributed.get_world_size())]
        distributed.all_gather(ranks, held, async_op=True).wait(timedelta(seconds=timeout))
        counts, live, inexact, minima, dropped, sums = self._parts(torch.stack(ranks))
        n, mass, unit, spread, reach, _, as_bytes, low, high, typical = counts.T
        units = unit / unit.min()
        self.mass, self.spread = (mass * units).sum().item(), spread.max().item()
        if not self.mass < 1e307:
            raise ValueError(f"sample_weight: the least are {unit.tolist()} on the ranks, expected a ratio below 1e300")
        self.n, t.reach, t.bytes = int(n.sum()), reach.max().item(), bool(as_bytes.any())
        self.seen = [low.min().item(), high.max().item(), typical.max().item()]
        t.live = live.amin(0).bool().tolist()
        t.inexact, t.minimum = inexact.amax(0), minima.amin(0)
        scale = units[:, None, None] * torch.exp((t.minimum - minima)[:, None] * t.weights[:, None])
        t.sums, t.dropped = ((scale * part.view_as(scale)).sum(0) for part in (sums, dropped))

    def result(self) -> tuple[Tensor, Tensor]:
        """Log-likelihoods [S, M] in nats and a bound on their distance from the exact ones, [S, M]."""
        t, d, w = self.totals, self.totals.x.shape[1], self.totals.weights[:, None]
        log_mass = torch.full_like(t.minimum, math.log(self.mass))
        if self.own is not None:
            others = torch.full_like(log_mass, self.mass - 1)
            if self.ratios is not None:  # of so many at the start and at the end: to subtract could leave nothing
                start, end = (pad(v.cumsum(0), (1, 0)) for v in (self.ratios, self.ratios.flip(0)))
                others = start[self.own] + end[self.n - 1 - self.own]
            log_mass = torch.where(self.own < 0, log_mass, others.log())
        log_norm = log_mass + d * torch.log(self.sigmas * math.sqrt(2 * math.pi))[:, None]
        sums = t.sums.clamp_min(1)  # the nearest sample's term is 1, whether or not it was added
        live = torch.tensor(t.live, dtype=torch.bool, device=w.device)[:, None]
        missing = torch.where(live, torch.log1p(1.01 * t.dropped / sums), math.log(self.mass) - sums.log())
        value = sums.log() - t.minimum * w - log_norm
        rounding = U64 * (4 * self.n + 4 * NEAR + 8 * t.minimum * w + 8 * log_norm.abs() + 8 * self.spread)
        distance = torch.maximum(t.distance_error(), t.inexact)
        return value, missing + distance * w + rounding + SINGLE * (t.inexact > 0)

    def _parts(self, packed: Tensor) -> tuple[Tensor, ...]:
        s, m = self.totals.sums.shape
        return packed.split([10, s, m, m, s * m, s * m], -1)

    def _bounds_by(self, samples: Tensor) -> "Bounds | HalfBounds":
        return self.engine.bounds(self.totals.x, double(some(samples, 2048)) - self.totals.center)

    def _add(self, samples: Tensor) -> None:
        t, m, mass = self.totals, len(self.totals.x), len(samples)
        t.bytes = t.bytes or samples.dtype == torch.uint8
        t.own = None if self.own is None else self.own - self.n
        ratios = features = None
        if self.ratios is not None:
            ratios = self.ratios[self.n : self.n + mass]
            mass = ratios.sum().item()
        t.ratios = ratios
        with exact_arithmetic():
            if isinstance(self.engine, Boxes):
                self._radius()
                wanted = math.inf if self.method == "dense" else math.log(self.plenty / self.tolerance)
                self.engine.count(samples, ratios, wanted)
                self.n, self.mass = self.n + len(samples), self.mass + mass
                return
            if self.method != "dense" and self.n >= self.retry:
                self.bounds = self.bounds or self._bounds_by(samples)
                features = self.bounds.features(samples, t.center)
            if self.n == 0:  # a first bound of every minimum: the distance of what looks nearest, else of any sample
                guesses = [features.nearest(k) if features else self.engine.guess(k, samples) for k in tiles(m)]
                every = torch.arange(m, dtype=torch.int64, device=t.x.device)
                t.minimum.copy_(self.engine.distances(every, torch.cat(guesses), samples))
            radius = self._radius()
            t.dropped += mass * torch.exp(-radius * t.weights[:, None])
            missed, pending, count = [], [], 0
            for k, rows in enumerate(tiles(m, self.engine.tile)):
                hopeless = features is None or len(missed) == k > 1  # as none of the tiles before could be pruned
                reach = t.minimum[rows] + radius
                near = None if hopeless else features.near(rows, reach, self.method == "pruned")
                if near is None:
                    missed.append(rows)
                else:
                    pending.append(near)
                    count += len(near[0])
                if count > (PENDING if rows.stop < m else 0):  # together: few distances make a slow product
                    queries, columns = (torch.cat(part) for part in zip(*pending, strict=True))
                    self.engine.refine(queries, columns, samples)
                    pending, count = [], 0
            if missed:
                self.engine.dense(missed, samples, radius)
        self.n, self.mass = self.n + len(samples), self.mass + mass
        if features is not None and 2 * sum(rows.stop - rows.start for rows in missed) > m:
            self.retry = 2 * self.n

    def _radius(self) -> float:
        """R for the bandwidths still in play, after retiring those that are not.

        The likelihood under sigma lies within ln n of -m / (2 sigma²) - D ln sigma + const. As m falls, wide bandwidths
        only lose against narrow ones, so a gap that exceeds ln n now, for any n to come, stays.
        """
        t = self.totals
        m = t.minimum[: self.choosing].mean().item() if self.choosing else math.inf
        if math.isfinite(m):
            d, log_n = t.x.shape[1], math.log(1e15) + self.spread  # of all n to come
            best = [-m * w - d * math.log(s) for s, w in self.grid]
            for k in range(len(best)):
                t.live[k] = t.live[k] and not any(best[k] + log_n < best[i] for i in range(k))
        widest = max(s for (s, _), live in zip(self.grid, t.live, strict=True) if live)
        radius = 2 * widest**2 * (math.log(self.plenty / self.tolerance) + self.spread)
        t.reach = max(t.reach, radius)
        return radius


def block_size(m: int, d: int, device: torch.device) -> int:
    """Samples to take at a time: few enough for a CPU's cache, or many that boxes can tell apart, of up to 2^33 pairs;
    as many as a GPU has room for, up to 2^19.

    A GPU takes up to a quarter of its memory for what becomes of all pairs of a block, 4 bytes each, and for each copy
    of a block in float64 about 1/32. No tensor comes to have 2^31 elements, which nonzero() refuses.
    """
    if device.type != "cuda" and d <= MOST:
        return 2 ** min(max(33 - m.bit_length(), 13), 20)
    if device.type != "cuda":
        return min(max(2 ** int(math.log2(4e6 / d)), 512), 4096)
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(max(2 ** int(math.log2(min(memory / 256 / d, memory / 16 / m, (2**33 - 1) / m))), 512), 2**19)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by a GPU, by the system, or to oneDNN, which says no more than "could not create"."""
    refused = isinstance(error, RuntimeError) and re.match(".*can't allocate memory|could not create a ", str(error))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(refused)


def tensor_cores(device: torch.device) -> "type[TensorCores] | None":
    """The engine for tensor cores, where the device has such for fp16 and Triton is installed."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8 or find_spec("triton") is None:
        return None
    from .tensor_cores import TensorCores

    return TensorCores

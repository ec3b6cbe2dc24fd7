"""Lower bounds of all distances between queries and samples, cheaper than the distances and safe against rounding."""

from __future__ import annotations

import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import onednn

U32, U64 = 2.0**-24, 2.0**-53  # unit roundoff
CHUNK = 64  # neighbouring samples whose smallest bound decides whether any of them is looked at
COARSE, FINE = 32, 128  # coordinates of the first and of the second bound
STRIP = 128  # columns per product of the projection: short sums, little rounding
LIMIT = 1e15  # magnitude up to which float32 squares are far from overflow
NOWHERE = 3e38  # in float32, the bound of a sample that is none
ROOM = 2.0**9  # scaled to fp16 queries are at most this: samples may lie 100 times farther out


class Level(NamedTuple):
    """Vectors whose distances bound those of the data from below, one level of Bounds."""

    values: Tensor  # [n, k], float32; fp16 for tensor cores, scaled
    square: Tensor  # [n], float64, their squared norms
    error: Tensor  # [n], float64: how far a row may lie from the true vector


class Features(NamedTuple):
    """What Bounds needs of one block of samples. Tensor cores use the levels only."""

    levels: list[Level]
    order: Tensor | None = None  # [n'], n rounded up to a multiple of CHUNK: which sample a row of product is
    product: Tensor | None = None  # [n', k + 1]: first level, then its squared norm; infinitely far: no sample


class Bounds:
    """Lower bounds of |x - s| by projection, safe against their own rounding.

    For orthonormal directions P and the length r(v) of what they leave of v, |x - s|² >= |Px - Ps|² + (r(x) - r(s))².
    So projection and r together are coordinates in which every distance is a lower bound. The first level has about
    COARSE of them, the second FINE; tensor cores are fast enough to start with the second, in fp16.

    Args:
        x: centered queries [M, D], float64.
        first: centered samples [n, D], float64. With the queries they choose the directions; any are valid.
        cores: the module parzen, where there are tensor cores, or None.
    """

    def __init__(self, x: Tensor, first: Tensor, cores: ModuleType | None):
        d, self.cores = x.shape[1], cores
        self.sizes = sorted({d if d <= most else most - 1 for most in ((FINE,) if cores else (COARSE, FINE))})
        self.directions = principal_directions(torch.cat([some(x, 2048), some(first, 2048)]), self.sizes[-1]).float()
        if cores:  # they are what two fp16 numbers can say, columns padded to a power of two
            k = max(16, 1 << (self.sizes[-1] - (self.sizes[-1] == d)).bit_length())
            raised = pad(self.directions * cores.RAISED, (0, k - self.sizes[-1]))
            high = raised.half()
            self.parts = high, (raised - high).half()
            self.directions = (sum(part.float() for part in self.parts) / cores.RAISED)[:, : self.sizes[-1]]
        p = self.directions.double()
        self.stretch = torch.linalg.matrix_norm(p.T @ p - torch.eye(self.sizes[-1], device=p.device)).item()
        self.far = lengths(x) > LIMIT  # nothing is dropped for these queries
        self.queries = self._levels(torch.where(self.far[:, None], 0, x).float())
        first_level = self.queries[0].values
        if cores:
            self.scales = scale_for(x.clamp(-LIMIT, LIMIT)), scale_for(first_level)
            self.queries = [self._half(level) for level in self.queries]
        else:
            self.product = torch.cat([-2 * first_level, torch.ones_like(first_level[:, :1])], 1)

    def features(self, samples: Tensor, center: Tensor) -> Features | None:
        """Of samples [n, D]; None if some lie too far out for float32."""
        if self.cores:
            level = Level(*self.cores.project(samples, center, self.parts, self.sizes[0], self.stretch, self.scales))
            return Features([level]) if level.error.max().isfinite() else None
        if samples.dtype in (torch.float64, torch.uint8):
            t = (double(samples) - center).float()
        else:
            t = samples.float() - center.float()
        if not extent(t) < LIMIT:
            return None
        levels, n = self._levels(t), len(t)
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
        product[n:, -1] = NOWHERE
        return Features(levels, order, product)

    def nearest(self, start: int, stop: int, features: Features) -> Tensor:
        """A sample that looks near, for each query, int64 [stop - start]."""
        if not self.cores:
            return features.order[self.coarse(start, stop, features).argmin(1)]
        a, b = (
            level.values[rows].float()
            for level, rows in ((self.queries[0], slice(start, stop)), (features.levels[0], slice(4096)))
        )
        return (b.square().sum(1) - 2 * a @ b.T).argmin(1)

    def near(
        self, start: int, stop: int, features: Features, reach: Tensor, most: float
    ) -> tuple[Tensor, Tensor] | None:
        """Pairs (start + row, sample), rows ascending, for which the first level does not prove d² > reach
        [stop - start]; None where they are more than `most`."""
        limit = self.limit(0, start, stop, features, reach)
        limit = limit + 8 * U32 * limit.abs()
        if self.cores:
            level, unit = features.levels[0], self.scales[1] ** 2
            square = (level.square * unit).float()
            return self.cores.near_pairs(
                self.queries[0].values[start:stop], level.values, square, (limit * unit).float(), most
            )
        bound = self.coarse(start, stop, features).view(stop - start, -1, CHUNK)
        limit = limit.float().clamp(max=NOWHERE / 2)
        row, chunk = (bound.amin(2) <= limit[:, None]).nonzero().unbind(1)
        hit, column = (bound[row, chunk] <= limit[row, None]).nonzero().unbind(1)
        return (row[hit], features.order[chunk[hit] * CHUNK + column]) if len(hit) <= most else None

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
        each = 5 * U32 if self.cores else 1.01 * U32  # tensor cores truncate, and |b|² is a float32 sum
        product = each * (a.values.shape[1] + 8) * (norm + farthest).square() + 1e-30
        limit = torch.where(self.far[start:stop], math.inf, distance.square() - a.square + product)
        return limit.nan_to_num(math.inf, math.inf)  # what cannot be bounded is kept

    def _levels(self, t: Tensor) -> list[Level]:
        """Of centered vectors [n, D], float32, each coordinate of which carries at most one rounding."""
        d = t.shape[1]
        p = t.new_zeros(len(t), self.sizes[-1])
        for k in range(0, d, STRIP):
            p.add_(product(t[:, k : k + STRIP], self.directions[k : k + STRIP].T))
        length = lengths(t)
        levels = []
        for size in self.sizes:
            values, error = p[:, :size], 1.02 * U32 * (1 + (STRIP + d / STRIP + 4) * math.sqrt(size)) * length
            square = lengths(values).square()
            if size < d:
                rest = (length.square() - square).clamp_min(0).sqrt()
                slack = (4 * U32 + self.stretch) * length.square() + 2 * length * error + error.square()
                wrong = torch.minimum(slack.sqrt(), slack / rest)  # of rest
                error = error + torch.where(slack > 0, wrong, 0) + U32 * rest  # at the center itself 0 / 0
                values = torch.cat([values, rest[:, None].float()], 1)
                square = lengths(values).square()
            levels.append(Level(values.contiguous(), square, error))
        return levels

    def _half(self, level: Level) -> Level:
        """A level in fp16, scaled, with a power of two of columns; infinite where it reaches beyond fp16."""
        k = level.values.shape[1]
        values = (level.values * self.scales[1]).half()
        kept = values.float() / self.scales[1]
        error = level.error + 1.01 * lengths(level.values - kept)
        square = lengths(kept).square()
        return Level(pad(values, (0, max(16, 1 << (k - 1).bit_length()) - k)), square, error)


class Codes:
    """Lower bounds of |x - s| by all coordinates in 8 bits, which suppose nothing about the data: where projections
    say too little. With x = c + a + e, s = c + b + f, c the same, |x - s| >= |a - b| - |e| - |f|; a and b are integers
    times a step, and |b|² - 2 a·b is exact.

    Args:
        queries: [M, D], floats or bytes.
        cores: the module parzen.
    """

    def __init__(self, queries: Tensor, cores: ModuleType):
        low, high = 0.0, 1.0
        if queries.dtype != torch.uint8:
            low, high = torch.stack(torch.aminmax(queries)).tolist()
        grid = [low + 128 / 255 * (high - low), max((high - low) / 255, 1e-12)]  # codes are -128 to 127
        self.offset, self.step = torch.tensor(grid, dtype=torch.float32).tolist()
        self.cores = cores
        self.codes, self.square, self.error = cores.quantize(queries, self.offset, self.step)

    def nearest(self, start: int, stop: int, samples: Tensor) -> Tensor:
        """A sample that looks near, for each query, int64 [stop - start]."""
        codes, square, _ = self.cores.quantize(samples[:4096], self.offset, self.step)
        return (square - 2 * self.codes[start:stop].float() @ codes.float().T).argmin(1)

    def near(self, samples: Tensor, reach: Tensor, most: float) -> tuple[Tensor, Tensor] | None:
        """Pairs (query, sample) for which d² > reach [M] is not proved, as Bounds.near."""
        codes, square, error = self.cores.quantize(samples, self.offset, self.step)
        distance = (reach.sqrt() + self.error + error.max()) / self.step
        limit = distance.square() * (1 + 8 * U64) - self.square + 1
        return self.cores.near_pairs_of_bytes(self.codes, codes, square, limit.nan_to_num(math.inf, math.inf), most)


def medians(v: Tensor) -> Tensor:
    """Of the columns of v [n, D], the lower ones; CUDA's median() is not deterministic."""
    return v.sort(0).values[(len(v) - 1) // 2] if v.is_cuda else v.median(0).values


def double(values: Tensor) -> Tensor:
    """Values in float64, bytes as k / 255."""
    return values.double() / 255 if values.dtype == torch.uint8 else values.double()


def lengths(v: Tensor) -> Tensor:
    """Norms [n] of the rows of v, in float64."""
    return torch.linalg.vector_norm(v.double(), dim=1)  # dtype= would convert at half the speed


def extent(v: Tensor) -> Tensor:
    """The largest magnitude in v, NaN if there is one. An infinite norm would take ten times as long."""
    low, high = torch.aminmax(v)
    return torch.maximum(-low, high)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ by the fastest library there is."""
    return onednn.product(a, b) if onednn.fits(a) else a @ b.T


def scale_for(v: Tensor, step: float | None = None) -> float:
    """Factor that brings v [n, D] to fp16's range: a power of two, or 1 / step, if v lies on a grid of that step."""
    largest = extent(v).item() or 1.0
    if step is not None and largest < ROOM * step:
        return 1 / step
    return 2.0 ** max(-400, min(400, math.floor(math.log2(ROOM / largest))))


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

"""Lower bounds of all distances between queries and samples, cheaper than the distances and safe against rounding."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from .. import onednn

U32, U64 = 2.0**-24, 2.0**-53  # unit roundoff
CHUNK = 64  # neighbouring samples whose smallest bound decides whether any of them is looked at
COARSE, FINE = 32, 128  # coordinates of the first and of the second bound
STRIP = 128  # columns per product of the projection: short sums, little rounding
LIMIT = 1e15  # magnitude up to which float32 squares are far from overflow
NOWHERE = 3e38  # in float32, the bound of a sample that is none


class Level(NamedTuple):
    """Vectors whose distances bound those of the data from below."""

    values: Tensor  # [n, k], float32; fp16 for tensor cores, scaled
    square: Tensor  # [n], float64, their squared norms
    error: Tensor  # [n], float64: how far a row may lie from the true vector


class Projection:
    """Coordinates in which every distance is a lower bound, safe against their own rounding.

    For orthonormal directions P and the length r(v) of what they leave of v, |x - s|² >= |Px - Ps|² + (r(x) - r(s))²:
    projection and r together are such coordinates.

    Args:
        x: centered queries [M, D], float64.
        directions: float32 [D, k], nearly orthonormal columns.
        sizes: how many of them each level of bounds takes, ascending; with fewer than D, r is one more coordinate.
    """

    def __init__(self, x: Tensor, directions: Tensor, sizes: list[int]):
        self.directions, self.sizes = directions, sizes
        p = directions.double()
        self.stretch = torch.linalg.matrix_norm(p.T @ p - torch.eye(sizes[-1], dtype=p.dtype, device=p.device)).item()
        far = lengths(x) > LIMIT  # too long for float32: they may lie anywhere, and nothing is dropped for them
        levels = self.levels(torch.where(far[:, None], 0, x).float())
        self.queries = [level._replace(error=torch.where(far, math.inf, level.error)) for level in levels]

    def levels(self, t: Tensor) -> list[Level]:
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

    def limit(self, level: int, tile: slice, b: Level, reach: Tensor, roundoff: float) -> Tensor:
        """Above this, |b|² - 2 a·b, of samples b and a tile of queries a, proves d² > reach; float64, [tile].

        Args:
            roundoff: relative, of one step of the sum a·b.
        """
        a = Level(*(t[tile] for t in self.queries[level]))
        farthest, norm = b.square.max().sqrt(), a.square.sqrt()
        distance = (reach * (1 + self.stretch)).sqrt() + a.error + b.error.max()
        rounding = roundoff * (a.values.shape[1] + 8) * (norm + farthest).square() + 1e-30
        limit = distance.square() - a.square + rounding
        return limit.nan_to_num(math.inf, math.inf)  # what cannot be bounded is kept


class Bounds(Projection):
    """Lower bounds of |x - s| in float32: about COARSE coordinates rule out most pairs, FINE most of the others.

    Args:
        x: centered queries [M, D], float64.
        first: centered samples [n, D], float64. With the queries they choose the directions; any are valid.
    """

    def __init__(self, x: Tensor, first: Tensor):
        d = x.shape[1]
        sizes = sorted({d if d <= most else most - 1 for most in (COARSE, FINE)})
        super().__init__(x, principal_directions(x, first, sizes[-1]), sizes)
        a = self.queries[0].values
        self.product = torch.cat([-2 * a, torch.ones_like(a[:, :1])], 1)

    def features(self, samples: Tensor, center: Tensor) -> "Features | None":
        """Of samples [n, D]; None if some lie too far out for float32."""
        in_double = samples.dtype in (torch.float64, torch.uint8)
        t = (double(samples) - center).float() if in_double else samples.float() - center.float()
        if not extent(t) < LIMIT:
            return None
        levels, n = self.levels(t), len(t)
        order = torch.arange(-(-n // CHUNK) * CHUNK, dtype=torch.int64, device=t.device)
        depth = int(math.log2(max(n // CHUNK, 1)))
        for level in range(min(depth, self.sizes[0]) if n == CHUNK << depth else 0):  # a k-d tree, all its leaves full
            nodes = order.view(2**level, -1)
            keys = levels[0].values[:, level][nodes]
            ranks = keys.argsort(1) if keys.is_cuda else torch.from_numpy(keys.numpy().argsort(1))  # NumPy's is faster
            order = nodes.gather(1, ranks).flatten()
        order[n:] = 0
        coarse = levels[0]
        product = torch.cat([coarse.values, coarse.square[:, None].float()], 1)[order]
        product[n:] = 0
        product[n:, -1] = NOWHERE
        return Features(self, levels, order, product)


class Features(NamedTuple):
    """One block of samples beside the queries of Bounds."""

    bounds: Bounds
    levels: list[Level]
    order: Tensor  # [n'], n rounded up to a multiple of CHUNK: which sample a row of product is
    product: Tensor  # [n', k + 1]: first level, then its squared norm; infinitely far: no sample

    def nearest(self, tile: slice) -> Tensor:
        """A sample that looks near, for each query of a tile, int64."""
        return self.order[self._coarse(tile).argmin(1)]

    def near(self, tile: slice, reach: Tensor, forced: bool) -> tuple[Tensor, Tensor] | None:
        """Pairs (query, sample) of a tile, queries ascending, that are not proved to have d² > reach; None, unless
        forced, if they are so many that the dense way is shorter."""
        d = len(self.bounds.directions)
        dense = math.inf if forced else len(reach) * len(self.levels[0].square) * (d + 24)  # in float64 multiply-adds
        limit = self.bounds.limit(0, tile, self.levels[0], reach, 1.01 * U32)
        limit = (limit + 8 * U32 * limit.abs()).float().clamp(max=NOWHERE / 2)
        bound = self._coarse(tile).view(len(reach), -1, CHUNK)
        row, chunk = (bound.amin(2) <= limit[:, None]).nonzero().unbind(1)
        hit, column = (bound[row, chunk] <= limit[row, None]).nonzero().unbind(1)
        if 1000 * len(hit) > dense:
            return None
        row, sample = row[hit], self.order[chunk[hit] * CHUNK + column]
        if len(self.levels) > 1:
            a, b = self.bounds.queries[1].values[tile], self.levels[1]
            bound = b.square[sample] - 2 * pair_products(row, sample, a, b.values).double()
            near = bound <= self.bounds.limit(1, tile, b, reach, 1.01 * U32)[row]
            row, sample = row[near], sample[near]
        return (row + tile.start, sample) if len(row) * (600 + 14 * d) <= dense else None

    def _coarse(self, tile: slice) -> Tensor:
        """|b|² - 2 a·b of queries' and samples' first-level vectors, [tile, n'] in this order."""
        return product(self.bounds.product[tile], self.product)


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


def principal_directions(x: Tensor, first: Tensor, k: int) -> Tensor:
    """k orthonormal columns, float32 [D, k], near the leading principal directions of x and first, float64 [n, D]."""
    v, d = torch.cat([some(x, 2048), some(first, 2048)]), x.shape[1]
    v = (v / extent(v).clamp_min(1e-300)).float()  # of any length, and any directions are right
    if k < d:
        g = torch.Generator("cpu").manual_seed(0)
        q = torch.randn(d, k, dtype=v.dtype, device="cpu", generator=g).to(v.device)
        for _ in range(2):
            q = torch.linalg.qr(v.T @ (v @ q)).Q
    else:
        q = torch.eye(d, dtype=v.dtype, device=v.device)
    q = q.double()  # an eigenvalue solver in float32 may not converge
    projected = (v @ q.float()).double()
    return torch.linalg.qr(q @ torch.linalg.eigh(projected.T @ projected).eigenvectors.flip(1)).Q.float()


def some(v: Tensor, n: int) -> Tensor:
    """At most n rows of v, evenly spread."""
    return v[:: -(-len(v) // n)]


def tiles(m: int, size: int = 1024) -> list[slice]:
    """0 to m in slices of at most `size`: queries that meet a whole block of samples at a time."""
    return [slice(k, min(k + size, m)) for k in range(0, m, size)]


def pair_products(rows: Tensor, columns: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a[rows] · b[columns], [L], for rows in ascending order, without gathering them."""
    ends = torch.zeros(len(a) + 1, dtype=torch.int64, device=a.device)
    ends[1:] = torch.bincount(rows, minlength=len(a)).cumsum(0)
    pattern = torch.sparse_csr_tensor(ends, columns, a.new_zeros(len(rows)), (len(a), len(b)), device=a.device)
    return torch.sparse.sampled_addmm(pattern, a, b.T, beta=0).values()


with warnings.catch_warnings():  # torch warns of sparse tensors once in a process: now, before there are threads
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0], [], [], (0, 0), dtype=torch.float64, device="cpu")

"""Gaussian kernel density estimation behind scikit-learn's interface.

In place of `from sklearn.neighbors import KernelDensity` write `from fastaae.window import KernelDensity`. The Gaussian
kernel with the Euclidean metric is computed by kernels/parzen/sums.py: exactly, in any dimension, with or without
scikit-learn. Other kernels and metrics are handed to scikit-learn (1.6 or newer).
"""

import inspect
import math
from dataclasses import KW_ONLY, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from .data.arrays import array, plain, sample_weights
from .files import brief
from .kernels.parzen.bounds import LIMIT, U64
from .kernels.parzen.plain import LOG2
from .kernels.parzen.sums import PairSums
from .scalars import integer, scalar, within

TOLERANCE = 1e-10  # nats
FEW, FEW_PAIRS = 32, 2**28  # queries that are scored one by one; more of D / 4 with so many pairs times dimensions
NARROW, PAIRS = 16, 2**20  # dimensions up to which all pairs of few queries, or so many pairs, are computed
SHORT, SMALL = 64, 256  # dimensions up to which all pairs with so few samples are
FARTHEST = 1e153  # length of a vector up to which squared distances do not overflow

try:
    from sklearn.base import BaseEstimator  # pyright: ignore[reportAssignmentType]  # replaced below
    from sklearn.exceptions import NotFittedError  # pyright: ignore[reportAssignmentType]  # replaced below
    from sklearn.neighbors import KernelDensity as TreeDensity
    from sklearn.utils.validation import validate_data  # pyright: ignore[reportAssignmentType]  # replaced below
except ImportError:
    TreeDensity = None

    class NotFittedError(ValueError, AttributeError):
        """Used before fit."""

    class BaseEstimator:
        """Parameters are the arguments of __init__, kept under their names."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

        def set_params(self, **params: Any):
            for name, value in params.items():
                if name not in (known := list(self.get_params())):
                    raise ValueError(f"{type(self).__name__} has no parameter {name!r}, expected one of {known}")
                setattr(self, name, value)
            return self

    def validate_data(estimator: Any, X: Any, *, dtype: Any, reset: bool = True) -> np.ndarray:
        X = np.asarray(X, dtype)
        if X.ndim != 2 or not X.size:
            raise ValueError(f"X has shape {list(X.shape)}: expected [n, D], not empty")
        if not np.isfinite(X).all():
            raise ValueError(f"X of shape {list(X.shape)} holds NaN or infinite values, expected finite ones")
        if reset:
            estimator.n_features_in_ = X.shape[1]
        elif X.shape[1] != estimator.n_features_in_:
            raise ValueError(f"X has {X.shape[1]} features, expected {estimator.n_features_in_} as fit was given")
        return X


@dataclass(eq=False, repr=False)
class ParzenWindow(BaseEstimator):
    """Kernel density estimate; the Gaussian one is exact, to 1e-10 nats and rounding.

    Parameters take effect at fit, which also checks them. X are finite numbers [n, D], bytes from 0 to 255.

    Args:
        bandwidth: standard deviation of the window; or "scott" or "silverman", rules for data of variance 1.
        kernel, metric, metric_params: as scikit-learn names them; "gaussian" and "euclidean" need no scikit-learn.
        algorithm, atol, rtol, breadth_first, leaf_size: of scikit-learn's trees; where there is no tree, no effect.

    Attributes, after fit:
        bandwidth_: the bandwidth as a number.
        n_features_in_: D.
        feature_names_in_: names of the columns, where X had some.
        tree_: scikit-learn's tree or, where none is needed, what one has as `data` and `sample_weight`.
    """

    bandwidth: float | str = 1.0
    _: KW_ONLY
    algorithm: str = "auto"
    kernel: str = "gaussian"
    metric: str = "euclidean"
    atol: float = 0
    rtol: float = 0
    breadth_first: bool = True
    leaf_size: int = 40
    metric_params: dict[str, Any] | None = None

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "ParzenWindow":
        """Keep samples X and their weights [n], none below 0; y is ignored.

        Raises:
            ValueError: a parameter, X or sample_weight is wrong.
            ImportError: the kernel or the metric needs scikit-learn, which is not installed.
        """
        params = self._checked_parameters()
        extra, minkowski = self.metric_params or {}, self.metric in ("minkowski", "p")
        euclidean = extra in ({}, {"p": 2}) if minkowski else self.metric in ("euclidean", "l2") and not extra
        exact = self.kernel == "gaussian" and euclidean
        if not exact and TreeDensity is None:
            raise ImportError(f"kernel={self.kernel!r}, metric={self.metric!r}: this needs scikit-learn 1.6 or newer")
        X, sample_weight = validate_data(self, _plain("X", X), dtype=np.float64), _plain("sample_weight", sample_weight)
        n, d = X.shape
        rules, h = {"scott": n, "silverman": n * (d + 2) / 4}, params["bandwidth"]
        params["bandwidth"] = h = float(rules[h] ** (-1 / (d + 4)) if isinstance(h, str) else h)
        self._delegate: Any = None
        if not exact and TreeDensity is not None:
            self._delegate = TreeDensity(**params).fit(X, sample_weight=sample_weight)
            self.tree_ = self._delegate.tree_
        else:
            weights = None if sample_weight is None else sample_weights(sample_weight, n, "X")
            self.tree_: Any = SimpleNamespace(data=X, sample_weight=weights)
            self._extent = _extent(X)
            self._squares = np.einsum("ij,ij->i", X, X)
            self._ratios, self._mass = None, float(n)
            if weights is not None:  # of no weight, nowhere near
                self._squares[weights == 0] = math.inf
                self._ratios = weights / weights[weights > 0].min()
                self._mass = float(self._ratios.sum())
            self._cumulative = np.cumsum(np.ones(n) if weights is None else weights)
        self.bandwidth_ = h
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-likelihood of every row of X, in nats, float64 [n].

        Raises:
            ValueError: X is wrong. NotFittedError, which is a ValueError too: before fit.
        """
        self._check_fitted()
        X = validate_data(self, _plain("X", X), dtype=np.float64, reset=False)
        if self._delegate is not None:
            return self._delegate.score_samples(X)
        far = max(self._extent, _extent(X))
        n, d = self.tree_.data.shape
        few = len(X) <= min(FEW + d // 4, max(FEW, FEW_PAIRS // (d * n)))
        if d <= NARROW and (few or n * len(X) <= PAIRS) or d <= SHORT and n <= SMALL:
            size = 2**16 // n + 1
            return np.concatenate([self._score_all(X[k : k + size]) for k in range(0, len(X), size)])
        if few:
            with np.errstate(over="ignore"):  # a likelihood below every float is -inf
                return np.array([self._score_one(x) for x in X])
        sigma = torch.tensor([self.bandwidth_], dtype=torch.float64, device="cpu")
        # The float32 bounds that prune are of no use among vectors so long.
        weights = self.tree_.sample_weight
        weights = None if weights is None else torch.from_numpy(plain(weights))
        queries, samples = (torch.from_numpy(plain(a)) for a in (X, self.tree_.data))
        sums = PairSums(queries, sigma, 0, TOLERANCE, "auto" if far < LIMIT else "dense", weights)
        sums.plenty = len(samples)
        sums.add(samples)
        return sums.result()[0][0].numpy()

    def _score_all(self, x: np.ndarray) -> np.ndarray:
        """The log-likelihoods of x [M, D] by the differences of all pairs."""
        s, v, h, d = self.tree_.data, self._ratios, self.bandwidth_, x.shape[1]
        s, v = (s, np.ones(len(s))) if v is None else (s[v > 0], v[v > 0])
        d2 = _distances(x, s)
        least, w = d2.amin(1), 0.5 / (h * h)
        terms = d2.sub_(least[:, None]).mul_(-w * LOG2).exp2_()
        return (
            (terms @ torch.from_numpy(plain(v)) / self._mass).log_()
            - least * w
            - d * math.log(h * math.sqrt(2 * math.pi))
        ).numpy()

    def _score_one(self, x: np.ndarray) -> float:
        """The log-likelihood of x [D]: the expansion |x|² + |s|² - 2 x·s finds the samples s that matter, within its
        error; where that could be felt, differences are taken of these."""
        s, v, h, d = self.tree_.data, self._ratios, self.bandwidth_, len(x)
        d2 = self._squares - 2 * (s @ x)
        longest = math.sqrt(d) * (self._extent + np.abs(x).max())
        error = (2 * d + 32) * U64 * longest * longest
        reach = 2 * h * h * (math.log(self._mass) - math.log(TOLERANCE))
        near = (d2 <= d2.min() + 2 * error + reach).nonzero()[0]
        if error <= TOLERANCE / 4 * h * h:
            d2 = (d2[near] + x @ x).clip(0)
        elif 3 * len(near) > len(s):  # a copy of these would take longer
            d2 = _distances(x[None], s)[0, near].numpy()
        else:
            d2 = _distances(x[None], s[near])[0].numpy()
        terms = np.exp((d2.min() - d2) / (2 * h * h))
        total = terms.sum() if v is None else terms @ v[near]
        return math.log(total / self._mass) - d2.min() / (2 * h * h) - d * math.log(h * math.sqrt(2 * math.pi))

    def score(self, X: Any, y: Any = None) -> float:
        """Sum of the log-likelihoods of X in nats; y is ignored. Raises what score_samples raises."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw from the density: float64 [n_samples, D], the same numbers that scikit-learn draws.

        Args:
            random_state: a seed, a np.random.RandomState, or None for NumPy's global one.

        Raises:
            NotFittedError: before fit. NotImplementedError: the kernel is neither "gaussian" nor "tophat".
        """
        self._check_fitted()
        n_samples, rng = integer("n_samples", n_samples, 0), scalar(random_state)
        if self._delegate is not None:
            return self._delegate.sample(n_samples, rng)
        rng = np.random if rng is None else np.random.RandomState(rng) if type(rng) is int else rng
        if not hasattr(rng, "uniform"):
            raise ValueError(f"random_state={rng!r}: expected an integer, a np.random.RandomState or None")
        u = rng.uniform(0, 1, size=n_samples) * self._cumulative[-1]
        return rng.normal(self.tree_.data[np.searchsorted(self._cumulative, u, side="right")], self.bandwidth_)

    def _checked_parameters(self) -> dict[str, Any]:
        params = {name: scalar(value) for name, value in self.get_params(deep=False).items()}
        h, atol, rtol, leaf_size = (params[name] for name in ("bandwidth", "atol", "rtol", "leaf_size"))
        usable = h in ("scott", "silverman") if isinstance(h, str) else within(1e-100, h, 1e100)
        for name, right, expected in (
            ("bandwidth", usable, "a positive number, 'scott' or 'silverman'"),
            ("algorithm", self.algorithm in ("auto", "kd_tree", "ball_tree"), "'auto', 'kd_tree' or 'ball_tree'"),
            ("atol", type(atol) in (int, float) and 0 <= atol < 1e300, "a number from 0"),
            ("rtol", type(rtol) in (int, float) and 0 <= rtol < 1e300, "a number from 0"),
            ("leaf_size", type(leaf_size) is int and leaf_size > 0, "an integer from 1"),
        ):
            if not right:
                raise ValueError(f"{name}={brief(getattr(self, name))}: expected {expected}")
        return params

    def _check_fitted(self) -> None:
        if not hasattr(self, "bandwidth_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet and needs to be: call fit first")


class KernelDensity(ParzenWindow):
    """ParzenWindow under scikit-learn's name, which Pipeline turns into the name of its step."""


def _plain(name: str, values: Any) -> Any:
    """What a caller gave, for NumPy, which would drop a mask and take dates for numbers without a word."""
    kind = getattr(getattr(values, "dtype", None), "kind", "")
    odd = isinstance(values, torch.Tensor | np.ma.MaskedArray | list | tuple) or kind in ("m", "M")
    return array(name, values, lists=True) if odd else values


def _distances(x: np.ndarray, s: np.ndarray) -> torch.Tensor:
    """Squared distances of all pairs of x [M, D] and s [N, D], by differences: [M, N]."""
    q, samples = (torch.from_numpy(plain(a)) for a in (x, s))
    return torch.cdist(q, samples, compute_mode="donot_use_mm_for_euclid_dist").square_()


def _extent(points: np.ndarray) -> float:
    """Largest magnitude in points [n, D]. Raises ValueError where squared distances could overflow."""
    extent = max(points.max(), -points.min())
    if not extent * math.sqrt(points.shape[1]) < FARTHEST:
        raise ValueError(f"X holds a value of magnitude {extent:g}: squares overflow, expected less than {FARTHEST:g}")
    return float(extent)

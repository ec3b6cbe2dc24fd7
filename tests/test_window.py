"""Kernel density: scikit-learn's own tests and estimator checks, direct sums, and what its tests leave out."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn.neighbors
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from fastaae.window import KernelDensity, ParzenWindow

THEIR_TESTS = Path(sklearn.neighbors.__file__).parent / "tests" / "test_kde.py"
RNG = np.random.default_rng(0)
S, X = RNG.normal(size=(100, 3)), RNG.normal(size=(20, 3))
W = RNG.integers(0, 5, 100)

IN_PLACE = """
import sklearn.neighbors
from threadpoolctl import threadpool_limits

from fastaae.window import KernelDensity

sklearn.neighbors.KernelDensity = KernelDensity


def pytest_collection_modifyitems(items):
    assert items and all(item.module.KernelDensity is KernelDensity for item in items)
    threadpool_limits(1)  # scikit-learn's conftest asks for one per core
"""

WITHOUT = """
import sys

sys.modules["sklearn"] = None  # cannot be imported

import pickle
import numpy as np
from fastaae.window import NotFittedError, ParzenWindow


def error(kind, act):
    try:
        act()
    except kind as e:
        return str(e)
    raise AssertionError(f"no {kind.__name__}")


x, w = np.arange(12.0).reshape(6, 2), ParzenWindow(3)
assert "not fitted" in error(NotFittedError, lambda: w.score_samples(x))
assert w.set_params(bandwidth=0.5) is w and w.get_params()["bandwidth"] == 0.5 and len(w.get_params()) == 9
assert "'width'" in error(ValueError, lambda: w.set_params(width=2))
assert "scikit-learn" in error(ImportError, lambda: ParzenWindow(kernel="tophat").fit(x))
for wrong in (x[0], x[:0], x * np.nan):
    error(ValueError, lambda: w.fit(wrong))
assert "2 features" in error(ValueError, lambda: w.fit(x[:, :1]).score_samples(x))
w = pickle.loads(pickle.dumps(w.fit(x.tolist(), sample_weight=[1, 0, 2, 1, 1, 3])))
assert (w.tree_.data == x).all() and w.tree_.sample_weight.tolist() == [1, 0, 2, 1, 1, 3]
assert "masked" in error(ValueError, lambda: w.fit(np.ma.array(x)))
print(*w.score_samples(x + 0.3), *w.sample(2, 7).ravel())
"""


def direct(x, s, h, w=None):
    """Log-likelihood in float64, every difference taken."""
    e = -np.square((x[:, None] - s) / h).sum(2) / 2
    w = np.ones(len(s)) if w is None else np.asarray(w, float)
    terms = np.exp(e - e.max(1, keepdims=True)) @ w
    return e.max(1) + np.log(terms / w.sum()) - s.shape[1] * np.log(h * np.sqrt(2 * np.pi))


def run(*command, **env):
    return subprocess.run(
        [sys.executable, *map(str, command)], env={**os.environ, **env}, capture_output=True, text=True, timeout=600
    )


@pytest.mark.skipif(not THEIR_TESTS.exists(), reason="this scikit-learn was installed without its tests")
def test_scikit_learns_own_tests_pass(tmp_path):
    (tmp_path / "in_place.py").write_text(IN_PLACE)
    options = ["-p", "in_place", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", tmp_path]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run("-m", "pytest", "-q", *options, THEIR_TESTS, PYTHONPATH=path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("57 passed in"), done.stdout[-3000:]


@pytest.mark.parametrize("kind", [ParzenWindow, KernelDensity])
def test_estimator_checks_pass(kind):
    results = check_estimator(kind(), on_skip=None)  # raises at the first that fails
    status = [r["status"] for r in results]
    assert set(status) <= {"passed", "skipped"} and status.count("passed") > 40


def test_interface_is_scikit_learns():
    ours, theirs = KernelDensity(), sklearn.neighbors.KernelDensity()
    assert ours.get_params() == theirs.get_params()
    assert ParzenWindow(0.3).bandwidth == 0.3


@pytest.mark.parametrize("h", [0.05, 1.0, 30.0])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 1), (300, 3), (500, 21), (300, 200)])
def test_equals_the_direct_sum(n, d, h):
    s, x = RNG.normal(size=(n, d)), RNG.normal(size=(33, d))
    np.testing.assert_allclose(ParzenWindow(h).fit(s).score_samples(x), direct(x, s, h), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    ("n", "d", "m"), [(256, 64, 300), (257, 64, 300), (2000, 16, 33), (100, 2, 20_000), (9, 65, 99)]
)
def test_equals_the_direct_sum_whichever_way_is_shorter(n, d, m):
    s, x, w = RNG.normal(size=(n, d)), RNG.normal(size=(m, d)), RNG.permutation(n) / 3
    some = RNG.permutation(m)[:20]
    scores = ParzenWindow(0.5).fit(s, sample_weight=w).score_samples(x)
    np.testing.assert_allclose(scores[some], direct(x[some], s, 0.5, w), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("h", [0.05, 5.0, 40.0])  # a few samples matter; all do; and the expansion is exact enough
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_one_query_takes_differences_where_they_are_felt(h, offset):
    s, x = RNG.normal(size=(300, 90)) + offset, RNG.normal(size=(3, 90)) + offset
    np.testing.assert_allclose(ParzenWindow(h).fit(s).score_samples(x), direct(x, s, h), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("h", [5.0, 40.0])
def test_windows_wider_than_the_data_copy_no_samples(h):
    s, x = RNG.normal(size=(5000, 90)), RNG.normal(size=(2, 90))
    density = ParzenWindow(h).fit(s)
    tracemalloc.start()
    density.score_samples(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < s.nbytes / 2


def test_few_samples_cost_no_more_calls_than_there_are_pairs(monkeypatch):
    calls, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda q, s, **options: calls.append(q.shape) or cdist(q, s, **options))
    assert ParzenWindow(0.5).fit(S).score_samples(np.zeros((10_000, 3))).std() == 0
    assert len(calls) <= 10_000 * len(S) / 2**16 + 1


@pytest.mark.parametrize("h", [0.5, 2.0, 10.0])
def test_equals_the_direct_sum_on_digits(h):
    x = load_digits().data
    density = KernelDensity(bandwidth=h).fit(x[300:])
    np.testing.assert_allclose(density.score_samples(x[:300]), direct(x[:300], x[300:], h), rtol=0, atol=1e-6)
    assert density.score(x[:300]) == pytest.approx(direct(x[:300], x[300:], h).sum(), rel=1e-12)


@pytest.mark.parametrize("far", [1e10, 1e30, 1e100, 1e151])
def test_distant_queries_and_samples_are_scored(far):
    density = ParzenWindow().fit(S)
    expected = -1.5 * far**2
    np.testing.assert_allclose(density.score_samples(np.full((2, 3), far)), expected, rtol=1e-9)
    both = np.concatenate([X, np.full((1, 3), far)])
    np.testing.assert_allclose(density.score_samples(both), [*direct(X, S, 1), expected], rtol=1e-9)
    samples = np.concatenate([S, np.full((200, 3), far)])
    np.testing.assert_allclose(ParzenWindow().fit(samples).score_samples(X), direct(X, S, 1) - np.log(3), rtol=1e-12)


def test_a_likelihood_below_every_float_is_minus_infinity():
    assert ParzenWindow(1e-3).fit(S).score_samples([[1e152] * 3]) == -np.inf


@pytest.mark.parametrize("kind", ["float32", "uint8", "list", "tensor", "fortran", "read-only"])
def test_whatever_holds_numbers_is_taken_as_numbers(kind):
    s, x = np.round(S * 20 + 128), np.round(X * 20 + 128)
    convert = {
        "list": np.ndarray.tolist,
        "tensor": torch.from_numpy,
        "fortran": np.asfortranarray,
        "read-only": lambda a: np.broadcast_to(a[None], (1, *a.shape))[0],
    }.get(kind, lambda a: a.astype(kind))
    density = ParzenWindow(5.0).fit(convert(s))
    np.testing.assert_allclose(density.score_samples(convert(x)), direct(x, s, 5.0), rtol=1e-12)


@pytest.mark.parametrize(("rule", "n"), [("scott", 100), ("silverman", 100 * 5 / 4)])
@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
def test_rules_choose_the_bandwidth_of_lists_too(rule, n, kernel):
    assert ParzenWindow(rule, kernel=kernel).fit(S.tolist()).bandwidth_ == pytest.approx(n ** (-1 / 7), rel=1e-15)


@pytest.mark.parametrize("metric", ["euclidean", "l2", "minkowski", "p"])
@pytest.mark.parametrize("weights", [W, W * 1e-3, np.where(W > 3, 1e-300, W), np.exp(RNG.normal(size=100) * 50)])
def test_weights_enter_exactly(metric, weights):
    params = {"p": 2} if metric == "p" else None
    density = ParzenWindow(0.3, metric=metric, metric_params=params).fit(S, sample_weight=weights)
    np.testing.assert_allclose(density.score_samples(X), direct(X, S, 0.3, weights), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("d", [3, 21])
@pytest.mark.parametrize(("least", "most", "h"), [(1e-300, 1e5, 0.05), (5e-324, 1e-323, 2.0)])
def test_weights_may_be_tiny_and_far_apart(least, most, h, d):
    s, weights = RNG.normal(size=(40, d)), np.repeat([0.0, least, most], [20, 1, 19])
    scores = ParzenWindow(h).fit(s, sample_weight=weights).score_samples(s[:5])
    np.testing.assert_allclose(scores, direct(s[:5], s[20:], h, weights[20:] / least), rtol=1e-12)


def test_weights_are_repetitions():
    weighted, repeated = ParzenWindow(0.3).fit(S, None, W), ParzenWindow(0.3).fit(S.repeat(W, axis=0))
    np.testing.assert_allclose(weighted.score_samples(X), repeated.score_samples(X), rtol=1e-12)
    np.testing.assert_array_equal(weighted.sample(50, 3), repeated.sample(50, 3))


def test_samples_of_weight_zero_are_as_if_absent():
    weights = np.where(np.arange(100) < 90, 0.0, 0.7)
    some, rest = ParzenWindow(0.3).fit(S, sample_weight=weights), ParzenWindow(0.3).fit(S[90:])
    np.testing.assert_allclose(some.score_samples(S), rest.score_samples(S), rtol=1e-12)
    assert some.fit(S, sample_weight=3).score(X) == pytest.approx(some.fit(S).score(X), rel=1e-14)


@pytest.mark.parametrize("weights", [None, W, np.exp(RNG.normal(size=100) * 5)])
@pytest.mark.parametrize("state", [0, 12345, np.random.RandomState(1), None])
def test_draws_are_scikit_learns_bit_for_bit(weights, state):
    drawn = []
    for kind in (ParzenWindow, sklearn.neighbors.KernelDensity):
        np.random.seed(5)  # noqa: NPY002  (what random_state=None draws from)
        own = np.random.RandomState(1) if isinstance(state, np.random.RandomState) else state
        drawn.append(kind(bandwidth=0.2).fit(S, sample_weight=weights).sample(500, own))
    np.testing.assert_array_equal(*drawn)


def test_no_draws():
    assert ParzenWindow().fit(S).sample(0).shape == (0, 3)


@pytest.mark.parametrize(
    "params",
    [{"kernel": "tophat"}, {"metric": "manhattan"}, {"metric": "minkowski", "metric_params": {"p": 3}, "rtol": 1e-9}],
)
def test_the_rest_is_left_to_scikit_learn(params):
    ours, theirs = (k(bandwidth=2.0, **params).fit(S) for k in (ParzenWindow, sklearn.neighbors.KernelDensity))
    np.testing.assert_array_equal(ours.score_samples(X), theirs.score_samples(X))
    np.testing.assert_array_equal(ours.sample(5, 0), theirs.sample(5, 0))
    ours.set_params(kernel="gaussian", metric="euclidean", metric_params=None).fit(S)
    np.testing.assert_allclose(ours.score_samples(X), direct(X, S, 2.0))


def test_works_without_scikit_learn():
    done = run("-c", WITHOUT)
    assert not done.returncode, done.stderr
    x = np.arange(12.0).reshape(6, 2)
    density = sklearn.neighbors.KernelDensity(bandwidth=0.5).fit(x[[0, 2, 3, 4, 5]], sample_weight=[1, 2, 1, 1, 3])
    expected = [*density.score_samples(x + 0.3), *density.sample(2, 7).ravel()]
    np.testing.assert_allclose(np.array(done.stdout.split(), float), expected, rtol=1e-9)


def test_pickle_and_read_only_memory(tmp_path):
    density = ParzenWindow(0.3).fit(S, sample_weight=W)
    joblib.dump(density, tmp_path / "density")
    for copy in (pickle.loads(pickle.dumps(density)), joblib.load(tmp_path / "density", mmap_mode="r")):
        np.testing.assert_array_equal(copy.score_samples(X), density.score_samples(X))
        np.testing.assert_array_equal(copy.sample(3, 0), density.sample(3, 0))


def test_clone_and_set_params():
    density = ParzenWindow(0.3, kernel="tophat")
    copy = clone(density.fit(S))
    assert copy.get_params() == density.get_params() and not hasattr(copy, "bandwidth_")
    assert copy.set_params(kernel="gaussian", bandwidth=2) is copy
    assert copy.fit(S) is copy and copy.bandwidth_ == 2


def test_grid_search_over_a_pipeline_finds_scikit_learns_bandwidth():
    grid, best = {"kerneldensity__bandwidth": np.logspace(-2, 1, 13)}, []
    for kind in (KernelDensity, sklearn.neighbors.KernelDensity):
        best.append(GridSearchCV(make_pipeline(StandardScaler(), kind()), grid, cv=3).fit(S))
    assert best[0].best_params_ == best[1].best_params_
    np.testing.assert_allclose(*(b.cv_results_["mean_test_score"] for b in best), rtol=1e-7)


@pytest.mark.parametrize(
    ("params", "s", "weights", "message"),
    [
        ({"bandwidth": -1.0}, S, None, r"bandwidth=-1.0: expected a positive number, 'scott' or 'silverman'"),
        ({"bandwidth": 0}, S, None, "bandwidth=0"),
        ({"bandwidth": np.nan}, S, None, "bandwidth=nan"),
        ({"bandwidth": "wide"}, S, None, "bandwidth='wide'"),
        ({"bandwidth": None}, S, None, "bandwidth=None"),
        ({"algorithm": "tree"}, S, None, "algorithm='tree': expected 'auto'"),
        ({"atol": -1}, S, None, "atol=-1"),
        ({"rtol": "0"}, S, None, "rtol='0'"),
        ({"leaf_size": 0}, S, None, "leaf_size=0"),
        ({"kernel": "cubic"}, S, None, "kernel"),
        ({"metric": "haversine", "algorithm": "kd_tree"}, S, None, "invalid metric"),
        ({}, S[0], None, "2D array"),
        ({}, S[:0], None, "0 sample"),
        ({}, np.where(S > 2, np.nan, S), None, "NaN"),
        ({}, S * 1e153, None, "magnitude .*e.153: squares overflow, expected less than 1e.153"),
        ({}, S, W[:99], r"sample_weight has shape \[99\], X has 100 rows"),
        ({}, S, np.stack([W, W], 1), "sample_weight has shape"),
        ({}, S, W - 1, "sample_weight sums to .*: expected numbers from zero"),
        ({}, S, W * np.nan, "sample_weight"),
        ({}, S, W * 0, "not all zero"),
        ({}, S, np.full(100, 1e308), "finite sum"),
    ],
)
def test_fit_refuses(params, s, weights, message):
    density = ParzenWindow(**params)
    with pytest.raises(ValueError, match=message):
        density.fit(s, sample_weight=weights)
    with pytest.raises(NotFittedError, match="this ParzenWindow is not fitted yet"):
        density.score_samples(S)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (S[:, :2], "2 features"),
        (S[0], "2D array"),
        (np.where(S > 1, np.inf, S), "infinity|NaN"),
        (S * 1e153, "overflow"),
    ],
)
def test_score_refuses(x, message):
    with pytest.raises(ValueError, match=message):
        ParzenWindow().fit(S).score_samples(x)


NUMBERS = {
    "float16": np.float16,
    "float32": np.float32,
    "longdouble": np.longdouble,
    "fraction": Fraction,
    "decimal": Decimal,
    "int64": lambda v: np.int64(round(v) or 1),
    "uint8": lambda v: np.uint8(round(v) or 1),
    "int": lambda v: round(v) or 1,
}


@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
@pytest.mark.parametrize("name", ["bandwidth", "atol", "rtol", "leaf_size", "n_samples", "random_state"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_all_types_are_used_in_full(kind, name, kernel):
    given = NUMBERS[kind](0.7 if name == "bandwidth" else 3)
    number = float(given) if name in ("bandwidth", "atol", "rtol") else int(given)

    def result(value):
        params = {name: value} if name not in ("n_samples", "random_state") else {}
        density = ParzenWindow(**{"bandwidth": 0.5, "kernel": kernel} | params)
        before = density.get_params()
        density.fit(S, sample_weight=W + 1)
        assert density.get_params() == before and type(density.bandwidth_) is float
        assert density.score_samples(X).dtype == np.float64
        drawn = density.sample(**{"n_samples": 2, "random_state": 0} | ({} if params else {name: value}))
        return [density.score_samples(X), drawn]

    if name in ("leaf_size", "n_samples", "random_state") and "int" not in kind:
        with pytest.raises((ValueError, TypeError), match=f"{name}=" if kernel == "gaussian" else None):
            # of the others scikit-learn refuses the random state
            result(given)
        return
    for ours, expected in zip(result(given), result(number), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "bandwidth", [np.array([0.5, 1]), True, torch.tensor([0.5]), [0.5], 0.5j, Decimal("NaN"), Fraction(-1, 2)]
)
def test_a_bandwidth_that_is_no_positive_number_is_refused(bandwidth):
    with pytest.raises(ValueError, match="bandwidth=.*: expected a positive number"):
        ParzenWindow(bandwidth).fit(S)


def fitted(**weights):
    return ParzenWindow(0.5).fit(S, **weights)


ARRAYS = {  # of samples, of queries, of weights; the numbers it stands for, or None for what is refused
    "list": np.ndarray.tolist,
    "objects": lambda a: a.astype(object),
    "decimals": lambda a: np.vectorize(Decimal, otypes=[object])(a),
    "float16": np.float16,
    "longdouble": np.longdouble,
    "big-endian": lambda a: a.astype(">f8"),
    "reversed": lambda a: a[::-1].copy()[::-1],
    "tensor with a gradient": lambda a: torch.tensor(a, requires_grad=True),
    "bfloat16": lambda a: torch.tensor(a).bfloat16(),
}
REFUSED = {
    "masked": lambda a: np.ma.masked_equal(a, a.flat[0]),
    "masked, nothing of it": np.ma.array,
    "dates": lambda a: a.astype(int).astype("datetime64[D]"),
    "spans of time": lambda a: a.astype(int).astype("timedelta64[s]"),
    "words": lambda a: np.full(a.shape, "one"),
    "sparse": csr_matrix,
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
    "nan": lambda a: np.where(a == a.flat[0], np.nan, a),
}
DOORS = {
    "samples": lambda a: ParzenWindow(0.5).fit(a(S)).score_samples(X),
    "queries": lambda a: fitted().score_samples(a(X)),
    "scored": lambda a: fitted().score(a(X)),
    "pipeline": lambda a: make_pipeline(ParzenWindow(0.5)).fit(a(S)).score(a(X)),
    "weights": lambda a: fitted(sample_weight=a(W + 1.0)).score_samples(X),
    "weights of a tree": lambda a: ParzenWindow(0.5, kernel="tophat").fit(S, sample_weight=a(W + 1.0)).score_samples(X),
    "samples of a tree": lambda a: ParzenWindow(0.5, kernel="tophat").fit(a(S)).score_samples(X),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_takes_whatever_holds_the_numbers(door, kind):
    def numbers(a):
        return np.array(
            torch.tensor(a).bfloat16().double().numpy() if kind == "bfloat16" else ARRAYS[kind](a), np.float64
        )

    plain = numbers if kind in ("float16", "bfloat16") else (lambda a: a)
    np.testing.assert_array_equal(DOORS[door](ARRAYS[kind]), DOORS[door](plain))


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_what_is_no_plain_array_of_numbers(door, kind):
    with pytest.raises((ValueError, TypeError)) as error:  # TypeError is scikit-learn's, of sparse matrices
        DOORS[door](REFUSED[kind])
    ours = {"masked": "a masked array", "dates": "datetime64", "spans of time": "timedelta64"}.get(kind.split(",")[0])
    if ours:
        assert re.match(rf"(X|sample_weight) (is|has dtype) {ours}.*, expected", str(error.value))


@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
@pytest.mark.parametrize("weights", [None, W, W + 1.0, 2.0])
def test_the_tree_holds_what_scikit_learns_does(kernel, weights):
    ours, theirs = (
        k(bandwidth=0.5, kernel=kernel, leaf_size=7) for k in (ParzenWindow, sklearn.neighbors.KernelDensity)
    )
    assert not hasattr(ours, "tree_")
    theirs.fit(S, sample_weight=np.full(100, weights) if np.isscalar(weights) else weights)
    ours.fit(S, sample_weight=weights)
    for fit in (ours, pickle.loads(pickle.dumps(ours))):
        np.testing.assert_array_equal(fit.tree_.data, S)
        assert (fit.tree_.sample_weight is None) == (weights is None)
        if weights is not None:
            np.testing.assert_array_equal(fit.tree_.sample_weight, theirs.tree_.sample_weight)
        assert kernel == "gaussian" or type(fit.tree_) is type(theirs.tree_)


@pytest.mark.parametrize("method", ["score_samples", "score", "sample"])
def test_nothing_before_fit(method):
    with pytest.raises(NotFittedError, match="call fit first"):
        getattr(KernelDensity(), method)(*([] if method == "sample" else [X]))

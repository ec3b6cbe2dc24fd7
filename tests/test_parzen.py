"""The Parzen estimator against float64 differences, its certificate, its bandwidth choice and its errors."""

import errno
import math
import re
import sys
import time
import tracemalloc
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faults.processes import SCRIPTS
from hypothesis import given, settings
from hypothesis import strategies as st

import fastaae
from fastaae import checkpoint, parzen, parzen_log_likelihood
from fastaae.kernels import reference
from fastaae.kernels.parzen import plain, sums

METHODS = ["auto", "pruned", "dense"]
SIGMAS = [0.01, 0.3, 10.0]


def exact(queries, samples, sigma):
    as_float = [torch.as_tensor(a) for a in (queries, samples)]
    as_float = [a.double() / 255 if a.dtype == torch.uint8 else a for a in as_float]
    return reference.parzen_log_likelihood(*as_float, sigma).numpy()


def check(queries, samples, sigma, **options):
    """Within the bound of the oracle, which itself has an error of some units in the last place."""
    result = parzen_log_likelihood(queries, samples, sigma, **options)
    expected = exact(queries, samples, sigma)
    error = np.abs(result.per_query - expected) - 1e-13 * np.abs(expected)
    assert error.max() <= result.error_bound
    return result, error.max()


def images(n, d, seed=0, rank=6):
    """Smooth data near a low-dimensional surface, in [0, 1], as a decoder makes it."""
    g = np.random.default_rng(d)
    w = g.normal(size=(rank, d))
    z = np.random.default_rng(seed).normal(size=(n, rank))
    return (1 / (1 + np.exp(-z @ w))).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [1, 2, 63, 64, 65, 784])
def test_oracle(d, method):
    g = np.random.default_rng(d)
    samples = g.random((700, d), np.float32)
    queries = g.random((40, d), np.float32)
    queries[:10] = samples[:10]
    for sigma in SIGMAS:
        for n in (1, 65, 700):
            _, error = check(queries, samples[:n], sigma, method=method)
            assert error < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_oracle_in_2304_dimensions(method):
    for sigma in SIGMAS:
        assert check(images(20, 2304, 1), images(300, 2304), sigma, method=method)[1] < 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_offset_of_1000_and_constant_and_duplicated_data(sigma, dtype, method):
    samples = images(300, 96).astype(dtype) + 1000
    samples[:, 5] = 1000
    samples = np.concatenate([samples, samples[:100], samples[:100]])
    queries = images(30, 96, 1).astype(dtype) + 1000
    queries[:, 7] = 1001
    assert check(queries, samples, sigma, method=method)[1] < 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distance", [1e2, 1e6, 1e12, 1e18, 1e40, 1e140])
def test_far_queries_are_finite_and_near_ones_undisturbed(distance, method):
    queries, samples = images(30, 96, 1).astype(np.float64), images(300, 96).astype(np.float64)
    near = parzen_log_likelihood(queries, samples, 0.2, method=method).per_query
    queries[3] += distance
    result, _ = check(queries, samples, 0.2, method=method)
    assert np.isfinite(result.per_query).all()
    np.testing.assert_allclose(np.delete(result.per_query, 3), np.delete(near, 3), rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distance", [1e3, 1e10, 1e20, 1e140])
def test_a_far_sample_moves_the_result_by_log_n(distance, method):
    queries, samples = images(30, 96, 1).astype(np.float64), images(300, 96).astype(np.float64)
    before = parzen_log_likelihood(queries, samples, 0.2, method=method).per_query
    for position in (0, 150, 300):
        more = np.insert(samples, position, distance, axis=0)
        after = parzen_log_likelihood(queries, more, 0.2, method=method)
        np.testing.assert_allclose(after.per_query - before, math.log(300 / 301), atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_bytes_mean_k_over_255(method):
    queries, samples = ((images(n, 96, n) * 255).astype(np.uint8) for n in (30, 300))
    as_bytes, _ = check(queries, samples, 0.2, method=method)
    mixed, _ = check(queries, samples / 255, 0.2, method=method)
    np.testing.assert_allclose(as_bytes.per_query, mixed.per_query, atol=1e-9)


def test_pruning_is_within_its_tolerance():
    """With a tolerance this loose pruning must be felt; the bound still holds."""
    queries, samples = images(100, 784, 1, rank=12), images(6000, 784, rank=12)
    loose, _ = check(queries, samples, 0.7, tolerance=0.9, method="pruned")
    tight, _ = check(queries, samples, 0.7, tolerance=1e-8)
    assert 1e-12 < np.abs(loose.per_query - tight.per_query).max() < loose.error_bound
    assert tight.error_bound < 1e-7


def test_the_pruned_way_is_taken_where_it_is_shorter(monkeypatch):
    def never(*_):
        raise AssertionError("dense")

    monkeypatch.setattr(plain.PlainTorch, "dense", never)
    queries, samples = images(100, 784, 1), images(5000, 784)
    check(queries[:50], samples, 0.15)
    with pytest.raises(AssertionError, match="dense"):
        parzen_log_likelihood(queries, samples, 10.0)


@pytest.mark.parametrize("sigma", [0.15, 5.0])
def test_same_bits_however_the_stream_is_cut(sigma):
    queries, samples = images(100, 100, 1), images(9001, 100)
    whole = parzen_log_likelihood(queries, samples, sigma).per_query
    for size in (1, 7, 4096, 5000):
        if size > 1 or sigma < 1:
            cut = (samples[k : k + size] for k in range(0, len(samples), size))
            assert np.array_equal(parzen_log_likelihood(queries, cut, sigma).per_query, whole), size
    assert np.array_equal(parzen_log_likelihood(torch.tensor(queries), torch.tensor(samples), sigma).per_query, whole)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [3, 31, 32, 33, 40, 128, 129, 784])
def test_vectors_at_the_center_itself(d, method):
    """Their projections and what is left of them are exactly zero."""
    g = np.random.default_rng(d)
    query = g.normal(size=(1, d)).astype(np.float32)
    check(query, query + 0.1 * g.normal(size=(300, d)).astype(np.float32), 0.3, method=method)
    check(np.zeros((1, d)), 0.1 * g.normal(size=(300, d)), 0.3, method=method)
    check(np.zeros((5, d)), np.zeros((70, d)), 1.0, method=method)
    queries, samples = g.normal(size=(31, d)).astype(np.float32), g.normal(size=(300, d)).astype(np.float32)
    samples[3] = np.median(queries, 0)
    check(queries, samples, 0.3, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_no_bound_can_be_told_from_no_sample(method):
    """100 samples are padded to 128: where no bound holds, the other 28 are still none."""
    g = np.random.default_rng(0)
    queries, samples = np.zeros((40, 3)), np.zeros((100, 3))
    queries[2], samples[0] = 2e15, 9e14
    check(queries, samples, 1e14, method=method)
    for sigma in (1e19, 1e90):
        for tolerance in (1e-4, 1e-14):
            check(g.normal(size=(40, 3)), g.normal(size=(100, 3)), sigma, method=method, tolerance=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-90, 1e-30, 1e39, 1e100, 1e140])
def test_data_of_any_scale(scale, method):
    g = np.random.default_rng(0)
    queries, samples = scale * g.normal(size=(20, 40)), scale * g.normal(size=(200, 40))
    for sigma in (0.3 * scale, 10 * scale):
        if 1e-100 < sigma < 1e100:
            check(queries, samples, sigma, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sigma", [1e-2, 1e-4, 1e-6])
def test_bytes_are_rounded_and_the_bound_says_so(sigma, method):
    """Exactly: (1 / 255)² and not the square of a difference of rounded numbers."""
    for d in (1, 2, 96):
        queries, samples = np.full((2, d), 252, np.uint8), np.full((3, d), 251, np.uint8)
        result = parzen_log_likelihood(queries, samples, sigma, method=method)
        square = Fraction(d, 255**2) / (2 * Fraction(sigma) ** 2)
        exact_value = -float(square) - d * math.log(sigma * math.sqrt(2 * math.pi))
        assert np.abs(result.per_query - exact_value).max() <= result.error_bound + 1e-15 * abs(exact_value)


def test_a_stream_may_fill_the_same_memory_again():
    samples, buffer = images(900, 64), np.empty((100, 64), np.float32)

    def refilled():
        for k in range(0, 900, 100):
            buffer[:] = samples[k : k + 100]
            yield buffer

    queries = images(20, 64, 1)
    expected = parzen_log_likelihood(queries, samples, 0.2).per_query
    assert np.array_equal(parzen_log_likelihood(queries, refilled(), 0.2).per_query, expected)


def test_without_a_place_for_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as in a process without a terminal
    assert parzen_log_likelihood(images(20, 30, 1), images(500, 30), 0.2).n_samples == 500
    assert parzen_log_likelihood(images(20, 30, 1), images(500, 30), 0.2, progress=True).n_samples == 500


def test_the_bar_tells_samples_pairs_and_time_left(capsys):
    queries, samples = images(20, 30, 1), images(500, 30)
    parzen_log_likelihood(queries, samples, validation=queries, sigmas=[0.1, 0.2, 0.3], block=100, progress=True)
    parzen_log_likelihood(queries, [samples], 0.2, block=100, progress=True)
    bars = capsys.readouterr().err
    assert re.search(r"sigma 0.1 to 0.3: 100%\|.*\| 500/500 samples, 00:00 left, [\d.]+[kMG]? pairs/s", bars)
    assert re.search(r"sigma 0.2: 500 samples \[00:00, .* samples/s, [\d.]+[kMG]? pairs/s\]", bars)


def test_unusual_but_harmless_arguments():
    queries, samples = images(20, 30, 1), images(500, 30)
    plain = parzen_log_likelihood(queries, samples, 0.2).per_query
    for sigma in (np.float64(0.2), np.array(0.2), torch.tensor(0.2, dtype=torch.float64)):
        assert np.array_equal(parzen_log_likelihood(queries, samples, sigma).per_query, plain)
    assert np.array_equal(
        parzen_log_likelihood(torch.tensor(queries, requires_grad=True), samples, 0.2).per_query, plain
    )
    backwards = parzen_log_likelihood(queries, samples[::-1], 0.2, block=np.int64(499))
    assert np.array_equal(
        backwards.per_query, parzen_log_likelihood(queries, samples[::-1].copy(), 0.2, block=499).per_query
    )
    cut = parzen_log_likelihood(queries, [samples[:0], samples[:100], samples[:0], samples[100:]], 0.2)
    assert np.array_equal(cut.per_query, plain)
    grid = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    assert parzen_log_likelihood(queries, samples, validation=queries, sigmas=grid).sigma == pytest.approx(
        0.2, abs=0.11
    )


@pytest.mark.filterwarnings("ignore:best bandwidth")
@pytest.mark.parametrize("precision", ["cuda", "mkldnn"])
def test_whatever_precision_of_a_backend_the_caller_has_set(precision):
    backend = {"cuda": torch.backends.cuda, "mkldnn": torch.backends.mkldnn}[precision].matmul
    queries, samples = images(50, 300, 1), images(500, 300)
    plain, before = parzen_log_likelihood(queries, samples, 0.2).per_query, backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        assert np.array_equal(parzen_log_likelihood(queries, samples, 0.2).per_query, plain)
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 300),
    d=st.sampled_from([1, 3, 40, 200]),
    sigma=st.floats(0.02, 20),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
    method=st.sampled_from(METHODS),
    block=st.integers(1, 200),
)
def test_properties(n, d, sigma, scale, seed, method, block):
    g = np.random.default_rng(seed)
    samples, queries = g.normal(0, scale, (n, d)), g.normal(0, scale, (5, d))
    queries[0] = samples[0]
    first, _ = check(queries, samples, sigma, method=method)
    slack = first.error_bound + 1e-12 * np.abs(first.per_query) + 1e-9
    for variant in (samples[g.permutation(n)], np.concatenate([samples, samples])):
        result, _ = check(queries, variant, sigma, method=method, block=block)
        assert (np.abs(result.per_query - first.per_query) <= slack + result.error_bound).all()


DIMENSIONS = [1, 2, 3, 31, 32, 33, 40, 127, 128, 130]


def random_data(g, dimensions=DIMENSIONS, counts=([1, 2, 5, 63, 64, 65, 100], [1, 2, 6])):
    """Queries and samples of one of the kinds that bounds, roundings or scales may trip over; counts of samples, and
    of queries."""
    d, n, m = (int(g.choice(v)) for v in (dimensions, *counts))
    a = g.normal(size=(n + m, d))
    kinds = {
        "plain": lambda: a,
        "low rank": lambda: a[:, :2] @ g.normal(size=(2, d))[: a[:, :2].shape[1]],
        "near constant": lambda: (
            np.where(g.random((n + m, 1)) < 0.2, a * 10.0 ** -g.integers(0, 9), 0) + g.normal(size=d)
        ),
        "duplicates": lambda: a[g.integers(0, 3, n + m) % (n + m)],
        "columns of all scales": lambda: a * 10.0 ** g.uniform(-8, 8, d),
        "rows of all scales": lambda: a * 10.0 ** g.uniform(-6, 6, (n + m, 1)),
        "outliers": lambda: a * np.where(g.random((n + m, 1)) < 0.2, 10.0 ** g.uniform(0, 12), 1),
        "offset": lambda: a + 10.0 ** g.uniform(0, 9) * g.normal(size=d),
        "grid": lambda: np.round(a),
        "sparse": lambda: a * (g.random((n + m, d)) < 0.1),
        "bytes": lambda: np.clip(np.round(128 + 40 * g.normal(size=d) + a * 10.0 ** g.uniform(0, 1.7)), 0, 255),
    }
    kind = str(g.choice(list(kinds)))
    x = kinds[kind]()
    if kind == "bytes":
        x = x.astype(np.uint8)
        convert = [lambda b: b, lambda b: (b / 255).astype(g.choice([np.float16, np.float32, np.float64]))]
        return kind, *(convert[int(g.random() < 0.3)](part) for part in (x[:m], x[m:]))
    x = x * 10.0 ** (g.uniform(-3, 3) if g.random() < 0.85 else g.choice([-90, -38, -22, 14, 19, 38, 90, 130]))
    kinds_of_float = [np.float64, np.float32][: 1 + (np.abs(x).max() < 1e38)]
    return kind, *(part.astype(g.choice(kinds_of_float)) for part in (x[:m], x[m:]))


def long_double(queries, samples, sigma):
    """The likelihood from differences in 64-bit mantissas; those of bytes are exact."""
    wide = [a.astype(np.longdouble) for a in (queries, samples)]
    scales = [255 if a.dtype == np.uint8 else 1 for a in (queries, samples)]
    if scales[0] == scales[1]:
        difference = (wide[0][:, None] - wide[1]) / scales[0]
    else:
        difference = wide[0][:, None] / scales[0] - wide[1] / scales[1]
    exponent = -np.square(difference).sum(2) / (2 * np.longdouble(sigma) ** 2)
    best = exponent.max(1)
    terms = np.exp(exponent - best[:, None]).sum(1)
    log_norm = np.log(np.longdouble(sigma)) + np.log(2 * np.longdouble(np.pi)) / 2
    return best + np.log(terms) - np.log(np.longdouble(len(samples))) - queries.shape[1] * log_norm


@pytest.mark.slow
@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than float64 here")
@pytest.mark.filterwarnings("ignore:queries lie in")
@pytest.mark.parametrize("seed", range(20))
def test_campaign(seed):
    """200 random data sets a seed, of any scale, bandwidth, tolerance and method: always within the bound."""
    for case in range(200):
        g = np.random.default_rng([seed, case])
        kind, queries, samples = random_data(g)
        as_float = [a / 255 if a.dtype == np.uint8 else a.astype(float) for a in (queries, samples)]
        spread = np.median(np.linalg.norm(as_float[0][:, None] - as_float[1], axis=2)) or 1.0
        sigma = float(np.clip(spread / np.sqrt(queries.shape[1]) * 10.0 ** g.uniform(-2, 1.5), 1e-99, 1e99))
        options = {"method": str(g.choice(METHODS)), "tolerance": 10.0 ** g.uniform(-12, -0.05)}
        result = parzen_log_likelihood(queries, samples, sigma, block=int(g.choice([1, 7, 64, 128])), **options)
        expected = long_double(queries, samples, sigma)
        error = np.abs(result.per_query - expected) - 1e-18 * np.abs(expected)
        assert error.max() <= result.error_bound, (seed, case, kind, sigma, options)


def test_whatever_precision_the_caller_has_set():
    queries, samples = images(50, 300, 1), images(500, 300)
    plain = parzen_log_likelihood(queries, samples, 0.2).per_query
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            other = parzen_log_likelihood(queries, samples, 0.2).per_query
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert np.array_equal(plain, other)


@pytest.mark.parametrize(("d", "steps"), [(1, 1), (3, 1), (62, 4), (784, 12)])
@pytest.mark.filterwarnings("ignore:best bandwidth")
def test_the_default_grid_is_finer_in_more_dimensions(d, steps):
    """Neighbours differ by less than 0.1 nats near the best: D (ln of their ratio / 2)² <= 0.1."""
    result = parzen_log_likelihood(images(3, d, 1), images(20, d), validation=images(5, d, 2))
    sigmas = result.sigma_curve.sigma
    assert len(sigmas) == 9 * steps + 1 and (sigmas[0], sigmas[-1]) == (0.1, 1.0)
    assert d * (math.log(sigmas[1] / sigmas[0]) / 2) ** 2 <= 0.1 or steps == 1


def test_result():
    result = parzen_log_likelihood(images(50, 30, 1), images(500, 30), 0.2)
    assert result.per_query.shape == (50,) and result.per_query.dtype == np.float64
    assert result.mean == pytest.approx(result.per_query.mean())
    assert result.sem == pytest.approx(result.per_query.std() / math.sqrt(50))
    assert (result.sigma, result.n_samples, result.sigma_curve) == (0.2, 500, None)
    assert 0 < result.error_bound < 1e-6


@pytest.mark.parametrize("d", [2, 30, 784])
def test_bandwidth_is_the_best_of_the_grid(d):
    queries, validation, samples = images(20, d, 1), images(30, d, 2), images(600, d)
    sigmas = None if d == 30 else np.geomspace(0.01, 1, 12)
    result = parzen_log_likelihood(queries, samples, validation=validation, sigmas=sigmas)
    sigma, mean, bound = result.sigma_curve
    scored = np.array([parzen_log_likelihood(validation, samples, s).mean for s in sigma])
    assert (np.abs(mean - scored) <= bound + 1e-9).all()
    assert result.sigma == sigma[np.argmax(scored)]
    assert bound[np.argmax(scored)] < 1e-4
    again = parzen_log_likelihood(queries, samples, result.sigma)
    np.testing.assert_allclose(result.per_query, again.per_query, atol=1e-6)


def test_default_bandwidths_are_the_protocols_refined():
    for d in (1, 64, 784):
        grid = parzen._bandwidths(None, None, True, d)
        assert set(np.logspace(-1, 0, 10).round(9)) <= set(np.round(grid, 9))
        assert d / 4 * math.log(grid[1] / grid[0]) ** 2 <= 0.1  # nats lost half-way between two of them


def test_bandwidth_at_the_edge_is_said():
    with pytest.warns(UserWarning, match="0.5 is the smallest tried"):
        result = parzen_log_likelihood(
            images(20, 50, 1), images(900, 50), validation=images(20, 50, 2), sigmas=[2, 0.5, 1, 1]
        )
    assert result.sigma_curve.sigma.tolist() == [0.5, 1, 2]


def test_a_memmap_is_read_in_parts(tmp_path):
    samples = images(3000, 64)
    np.save(tmp_path / "s.npy", samples)
    mapped = np.load(tmp_path / "s.npy", mmap_mode="r")
    result = parzen_log_likelihood(images(20, 64, 1).reshape(20, 8, 8), mapped.reshape(-1, 8, 8), 0.2)
    assert np.array_equal(result.per_query, parzen_log_likelihood(images(20, 64, 1), samples, 0.2).per_query)


def test_a_stream_is_not_held():
    block = images(2048, 256)
    tracemalloc.start()
    try:
        parzen_log_likelihood(images(20, 256, 1), (block for _ in range(30)), 0.15)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * block.nbytes


RANK = """
import sys
import numpy as np
import torch
import fastaae
from fastaae import parzen_log_likelihood

torch.distributed.init_process_group("gloo")
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
queries, validation, samples = (np.load(f"{sys.argv[1]}/{name}.npy") for name in ("queries", "validation", "samples"))
results = []
for options in ({"sigma": 0.2}, {"sigma": 3.0}, {"validation": validation}):
    for share in (samples[rank::world], samples[: len(samples) * rank]):  # the second: nothing for the first rank
        r = parzen_log_likelihood(queries, iter([share] if len(share) else []), distributed=True, **options)
        results.append((r.n_samples, r.mean, r.error_bound, r.sigma))
model = fastaae.load(sys.argv[2])
for n in (10_000, 4096):
    r = model.log_likelihood(queries[:, :64], n, 0.3, distributed=True)
    results.append((r.n_samples, r.mean, r.error_bound, r.sigma))
np.save(f"{sys.argv[1]}/{rank}.npy", results)
torch.distributed.destroy_process_group()
"""


def test_two_ranks_agree_with_one_process(tmp_path, two_ranks):
    arrays = {"queries": images(40, 96, 1), "validation": images(30, 96, 2), "samples": images(3001, 96)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "rank.py").write_text(RANK)
    fastaae.train(fastaae.preset("digits", epochs=1, out_dir=str(tmp_path / "run")), progress=False)
    done = two_ranks(tmp_path / "rank.py", ".", "run", patience=300)
    assert done.returncode == 0, done.stderr
    ranks = [np.load(tmp_path / f"{rank}.npy") for rank in (0, 1)]
    np.testing.assert_array_equal(*ranks)
    model = fastaae.load(tmp_path / "run")
    queries, samples = arrays["queries"], arrays["samples"]
    alone = [
        parzen_log_likelihood(queries, samples, **options)
        for options in ({"sigma": 0.2}, {"sigma": 3.0}, {"validation": arrays["validation"]})
        for _ in range(2)
    ]
    alone += [model.log_likelihood(queries[:, :64], n, 0.3) for n in (10_000, 4096)]
    for (n, mean, bound, sigma), one in zip(ranks[0], alone, strict=True):
        assert (n, sigma) == (one.n_samples, one.sigma)
        assert abs(mean - one.mean) <= bound + one.error_bound and bound < 1e-3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", r"RuntimeError: rank 1 failed after 2560 samples: OSError: the disk is gone"),
        ("hang", r"RuntimeError: rank 1 has reached \d+ samples and no more for timeout=3 s, expected"),
    ],
)
def test_a_rank_that_fails_stops_the_others(tmp_path, two_ranks, fault, message):
    start = time.monotonic()
    done = two_ranks(SCRIPTS / "rank_that_scores.py", fault, 5, patience=120)
    assert done.returncode and time.monotonic() - start < 60
    assert re.match(message, (tmp_path / "0.txt").read_text())
    if fault == "raise":
        assert (tmp_path / "1.txt").read_text() == "OSError: the disk is gone"


class Stopped(Exception):
    pass


def stopping(array, blocks, size=300):
    """Parts of an array, and after so many an error."""
    for k, start in enumerate(range(0, len(array), size)):
        if k == blocks:
            raise Stopped("enough")
        yield array[start : start + size]


@pytest.mark.parametrize("method", METHODS)
def test_resumed_from_its_partial_sums_with_the_same_bits(tmp_path, method):
    queries, samples, validation = images(40, 96, 1), images(5000, 96), images(30, 96, 2)
    choose = {"validation": validation, "sigmas": np.geomspace(0.01, 1, 12)}
    for k, options in enumerate(({"sigma": 0.2}, {"sigma": 3.0}, choose)):
        options |= {"method": method, "block": 512}
        whole = parzen_log_likelihood(queries, samples, **options)
        ways = {
            "stream": lambda: stopping(samples, 99),
            "function": lambda: lambda skip: stopping(samples[skip:], 99),
        }
        for name, way in ways.items():
            file = tmp_path / f"{name}-{k}"
            for stop in (0, 1, 7, 7, 11, 99, 99):
                parts = way() if stop == 99 else stopping(samples, stop)
                if stop < 99:
                    with pytest.raises(Stopped) as caught:
                        parzen_log_likelihood(queries, parts, state=file, **options)
                    if sys.version_info >= (3, 11):
                        n = stop * 300 // 512 * 512
                        kept = f", which {str(file)!r} keeps: the same call goes on from there" if n else ""
                        assert caught.value.__notes__ == [f"{n} samples had been scored{kept}"]
                    continue
                result = parzen_log_likelihood(queries, parts, state=str(file), **options)
                assert np.array_equal(result.per_query, whole.per_query) and result.sigma == whole.sigma
                assert (result.error_bound, result.n_samples) == (whole.error_bound, 5000)


def test_a_model_goes_on_without_decoding_again(tmp_path, monkeypatch):
    cfg = fastaae.preset("digits", epochs=1, out_dir=str(tmp_path / "run"), device="cpu")  # blocks of 4,096
    model = fastaae.train(cfg, progress=False).model
    queries, decoded, decode = images(20, 64, 1), [], model.decoded
    whole = model.log_likelihood(queries, 30_000, 0.3)
    monkeypatch.setattr(parzen, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(model, "decoded", lambda code: decoded.append(len(code)) or decode(code))
    add = sums.PairSums.add

    def interrupted(self, samples):
        if self.n == 5 * 4096:
            raise KeyboardInterrupt
        add(self, samples)

    monkeypatch.setattr(sums.PairSums, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.log_likelihood(queries, 30_000, 0.3, state=tmp_path / "state")
    monkeypatch.setattr(sums.PairSums, "add", add)
    decoded.clear()
    result = model.log_likelihood(queries, 30_000, 0.3, state=tmp_path / "state")
    assert decoded == [4096, 4096, 4096, 30_000 - 7 * 4096]  # the first to be compared, the last three
    assert np.array_equal(result.per_query, whole.per_query)
    with pytest.raises(ValueError, match="state='.*': of an evaluation with other samples, expected"):
        model.log_likelihood(queries, 30_000, 0.3, seed=1, state=tmp_path / "state")


def test_a_state_of_another_evaluation_is_refused(tmp_path):
    queries, samples = images(20, 30, 1), images(900, 30)
    given = {"queries": queries, "samples": samples, "sigma": 0.2, "state": tmp_path / "s"}
    parzen_log_likelihood(**given)
    parzen_log_likelihood(**given)
    other = samples.copy()
    other[0, 0] += 1e-7
    for name, changed in (
        ("queries", {"queries": queries[:10]}),
        ("samples", {"samples": other}),
        ("n_samples", {"samples": samples[:899]}),
        ("sigmas", {"sigma": 0.21}),
        ("sigmas", {"sigma": None, "validation": queries}),
        ("tolerance", {"tolerance": 1e-3}),
        ("method", {"method": "dense"}),
        ("block", {"block": 100}),
    ):
        with pytest.raises(ValueError, match=f"state='.*s': of an evaluation with other {name}, expected"):
            parzen_log_likelihood(**given | changed)
    content = bytearray((tmp_path / "s").read_bytes())
    content[-1] ^= 1
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        parzen_log_likelihood(**given)


@pytest.mark.parametrize("n", [640, 800, 1024], ids=["shorter", "by a part", "longer"])
def test_a_state_goes_on_with_a_stream_that_begins_as_it_did_alone(tmp_path, n):
    """900 samples are counted in blocks of 256: the last was a part, and of a longer stream no block ends there."""
    samples = images(1024, 30)

    def score(n):
        stream = (samples[k : min(k + 100, n)] for k in range(0, n, 100))
        return parzen_log_likelihood(images(20, 30, 1), stream, 0.2, block=256, state=tmp_path / "s")

    assert score(900).n_samples == score(900).n_samples == 900
    with pytest.raises(ValueError, match="state='.*s': it counts 900 samples, expected a stream that begins with"):
        score(n)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
    + [RuntimeError("could not create a primitive")],
)
def test_out_of_memory_halves_the_block(monkeypatch, method, error):
    """The error comes late, when a block has been counted already, and to the first block as to others."""
    queries, samples, tried = images(40, 96, 1), images(3000, 96), []
    expected = parzen_log_likelihood(queries, samples, 0.3, block=128, method=method)
    counted = sums.PairSums._add

    def exhausting(self, block):
        tried.append(len(block))
        counted(self, block)
        if len(block) > 200:
            raise error

    monkeypatch.setattr(sums.PairSums, "_add", exhausting)
    result = parzen_log_likelihood(queries, samples, 0.3, block=512, method=method)
    assert tried[:4] == [512, 256, 128, 128] and max(tried[2:]) == 128
    assert np.array_equal(result.per_query, expected.per_query) and result.error_bound == expected.error_bound


def test_memory_for_not_even_one_sample_is_an_error(monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(sums.PairSums, "_add", exhausted)
    with pytest.raises(MemoryError, match="memory ran out at a block of 1 sample: .* fewer than 4 queries at a time"):
        parzen_log_likelihood(X, S, 1.0)


@pytest.mark.parametrize("error", [RuntimeError("some other"), KeyboardInterrupt()])
def test_what_a_block_added_before_an_error_is_taken_back(monkeypatch, error):
    some = sums.PairSums(torch.tensor(X), torch.tensor([1.0], dtype=torch.float64), 0, 1e-4, "auto")
    some.add(torch.tensor(S))
    before, counted = some.packed(), sums.PairSums._add

    def fails(self, block):
        counted(self, block)
        raise error

    monkeypatch.setattr(sums.PairSums, "_add", fails)
    with pytest.raises(type(error)):
        some.add(torch.tensor(S) / 2)
    assert torch.equal(some.packed(), before) and some.n == 5


X, S = np.zeros((4, 3)), np.ones((5, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(queries=np.zeros(3)), r"queries is float64 \[3\]: expected"),
        (dict(queries=np.zeros((0, 3))), r"queries is empty: \[0, 3\]"),
        (dict(queries=np.zeros((4, 0))), "queries is empty"),
        (dict(queries=np.zeros((4, 3), bool)), "queries is bool"),
        (dict(queries="x"), "queries is a str, expected a numpy array"),
        (dict(queries=np.array([[0, 0, 0], [0, np.nan, 0]])), "queries: row 1 holds NaN"),
        (dict(samples=np.array([[0, 0, 0], [0, np.inf, 0]])), "samples: row 1 holds NaN"),
        (dict(samples=[S, np.full((1, 3), 1e200)]), "samples: block 1: sample 5 holds NaN, infinite"),
        (dict(samples=np.zeros((5, 4))), "samples has 4 values per example, expected 3 of shape"),
        (dict(samples=[S, np.ones((5, 4))]), "samples: block 1 has 4 values per example, expected 3"),
        (dict(samples=[S, S.astype(np.float32)]), "block 1 is torch.float32, expected torch.float64 as"),
        (dict(samples=np.zeros((0, 3))), "is empty"),
        (dict(samples=[]), "samples: there are 0, expected at least one"),
        (dict(samples=3), "samples: expected an array, a tensor or an iterable of blocks, got int"),
        (dict(samples=iter([S]), n_samples=6), "ended after 5, expected n_samples=6"),
        (dict(samples=iter([S, S]), n_samples=6), "samples: expected n_samples=6, there are more"),
        (dict(samples=S, n_samples=4), "n_samples=4: expected 5"),
        (dict(sigma=0), "bandwidth 0: expected positive"),
        (dict(sigma=-1.0), "bandwidth -1.0"),
        (dict(sigma=math.nan), "bandwidth nan"),
        (dict(sigma="scott"), "bandwidth 'scott'"),
        (dict(sigma=None), "sigma=None: expected a bandwidth, or validation"),
        (dict(validation=X), "sigma=1.0 is given, expected neither"),
        (dict(sigma=None, validation=np.zeros((4, 2))), "validation has 2 values per example"),
        (dict(sigma=None, validation=X, sigmas=[]), r"bandwidth \[\]"),
        (dict(sigma=None, validation=X, sigmas=[1, 0]), "bandwidth 0"),
        (dict(method="fast"), "method='fast': expected one of auto, pruned, dense"),
        (dict(tolerance=0), "tolerance=0"),
        (dict(block=0), "block=0"),
        (dict(block=2**60), "block=1152921504606846976"),
        (dict(n_samples=-1), "n_samples=-1"),
        (dict(device="tpu"), "device='tpu'"),
        (dict(queries=np.ma.masked_less(X, 1)), "queries is a masked array"),
        (dict(queries=torch.zeros(4, 3, device="meta")), "queries is .*meta"),
        (dict(queries=torch.zeros(4, 3).to_sparse()), "queries is torch.sparse_coo"),
        (dict(samples=[1, 2, 3]), "samples: block 0 is 1, expected an array"),
        (dict(samples=np.float64(3.0)), "samples: expected an array"),
        (dict(samples=np.array(3.0)), r"samples is float64 \[\]"),
        (dict(samples=[S, None]), "samples: block 1 is None"),
        (dict(block=True), "block=True"),
        (dict(n_samples=True), "n_samples=True"),
        (dict(tolerance=1e-320), "tolerance=1e-320"),
        (dict(distributed=True), "distributed=True needs a process group: call torch.distributed.init_process_group"),
        (dict(timeout=0), "timeout=0: expected a positive"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        parzen_log_likelihood(**{"queries": X, "samples": S, "sigma": 1.0, **arguments})


def test_too_little_memory_says_what_would_fit(monkeypatch):
    monkeypatch.setattr(parzen, "_free_memory", lambda device: 10_000)
    with pytest.raises(MemoryError, match=r"40 queries of 3 values .* at most 5 at a time"):
        parzen_log_likelihood(np.zeros((40, 3)), S, 1.0)


def test_blocks_on_a_gpu_fit_its_memory(monkeypatch):
    for memory, m, d, block in (
        (80e9, 10_000, 784, 2**18),
        (80e9, 10_000, 2304, 2**17),
        (80e9, 10**6, 784, 4096),
        (8e9, 10_000, 784, 2**15),
        (8e9, 10**8, 10, 512),
    ):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _, memory=memory: SimpleNamespace(total_memory=memory)
        )
        assert sums.block_size(m, d, torch.device("cuda")) == block


@pytest.mark.parametrize("name", ["file/state", "x" * 245, "x" * 245 + "/state"])
def test_a_state_whose_name_cannot_be_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="state=.*: expected a file in a directory that can be written to, not in"):
        parzen_log_likelihood(np.zeros((2, 3)), iter([]), 1.0, state=tmp_path / name)


def test_a_state_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    def stream():
        raise AssertionError("samples were asked for")
        yield

    message = "state=.*: expected a file in a directory that can be written to, not in .*nowhere"
    with pytest.raises(ValueError, match=message):
        parzen_log_likelihood(np.zeros((2, 3)), stream(), 1.0, state=tmp_path / "nowhere" / "state")


def test_a_full_disk_at_the_end_does_not_lose_the_result(tmp_path, monkeypatch):
    samples = np.random.default_rng(0).random((50, 3))
    expected = parzen_log_likelihood(np.zeros((2, 3)), samples, 1.0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.warns(UserWarning, match="state=.*the last sums were not saved .*No space left"):
        result = parzen_log_likelihood(np.zeros((2, 3)), samples, 1.0, state=tmp_path / "state")
    assert result.mean == expected.mean


@pytest.mark.parametrize("scale", [1e-4, 0.01, 30.0, 1e5], ids=str)
@pytest.mark.parametrize("form", ["array", "function"])
def test_a_bandwidth_beyond_the_first_decade_is_looked_for(scale, form):
    rng = np.random.default_rng(0)
    samples, validation, queries = (scale * rng.standard_normal((n, 3)) for n in (400, 60, 50))
    source = samples if form == "array" else lambda first: iter([samples[first:]])
    r = parzen_log_likelihood(queries, source, validation=validation)
    grid = np.logspace(-8, 7, 1000)
    means = [parzen_log_likelihood(validation, samples, s).mean for s in grid[np.abs(np.log10(grid / scale)) < 1]]
    best = grid[np.abs(np.log10(grid / scale)) < 1][np.argmax(means)]
    assert 0.75 < r.sigma / best < 1.35
    assert r.mean == pytest.approx(parzen_log_likelihood(queries, samples, r.sigma).mean, abs=r.error_bound)


def test_a_bandwidth_where_two_decades_meet_is_taken():
    validation, samples = np.zeros((1, 1)), np.ones((1, 1))  # the best bandwidth of a pair is its distance
    r = parzen_log_likelihood(validation, samples, validation=validation)
    assert r.sigma == 1.0


@pytest.mark.parametrize("form", ["iterable", "state", "sigmas", "the same"])
def test_an_end_is_told_where_it_cannot_be_passed(tmp_path, form):
    x = np.random.default_rng(0).standard_normal((50, 2)) * 100
    samples = iter([x]) if form == "iterable" else x
    options = {"state": tmp_path / "s"} if form == "state" else {"sigmas": [0.5, 1.0]} if form == "sigmas" else {}
    end = "1e-07 is the smallest" if form == "the same" else "1 is the largest"
    validation = x if form == "the same" else x + 50
    with pytest.warns(UserWarning, match=f"best bandwidth {end} tried"):
        parzen_log_likelihood(x, samples, validation=validation, **options)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_integers_are_numbers(dtype):
    rng = np.random.default_rng(0)
    samples, queries = (rng.integers(0, 17, (n, 5)).astype(dtype) for n in (200, 20))
    found, expected = (parzen_log_likelihood(q, s, 2.0) for q, s in
                       ((queries, samples), (queries.astype(float), samples.astype(float))))  # fmt: skip
    np.testing.assert_array_equal(found.per_query, expected.per_query)


def weighed(queries, samples, sigma, weights, own=None):
    """The likelihood under weights, in long doubles; of a query that is sample own[i] under the others."""
    x, s = (a.astype(np.longdouble) / (255 if a.dtype == np.uint8 else 1) for a in (queries, samples))
    w = np.tile(np.asarray(weights, np.longdouble), (len(x), 1))
    if own is not None:
        w[np.arange(len(x)), own] = 0
    with np.errstate(divide="ignore"):
        exponent = np.log(w) - np.square(x[:, None] - s).sum(2) / (2 * np.longdouble(sigma) ** 2)
    best = exponent.max(1)
    terms = np.exp(exponent - best[:, None]).sum(1) / w.sum(1)
    return best + np.log(terms) - x.shape[1] * np.log(sigma * np.sqrt(2 * np.longdouble(np.pi)))


EDGE = pytest.mark.filterwarnings("ignore:best bandwidth")
WEIGHTS = {
    "counts": lambda g, n: g.integers(0, 4, n) + np.eye(n, dtype=int)[0],
    "wild": lambda g, n: np.exp(30 * g.normal(size=n)),
    "tiny": lambda g, n: np.where(np.arange(n) % 2, 1e-300, 1.0),
    "huge": lambda g, n: np.where(np.arange(n) == n // 2, 1e304, 1.0),
    "denormal": lambda g, n: np.full(n, 5e-324),
    "one": lambda g, n: np.where(np.arange(n) == n - 1, 3.0, 0.0),
    "last": lambda g, n: np.where(np.arange(n) < n - 2, 0.0, g.random(n)),
    "equal": lambda g, n: np.full(n, 0.7),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("d", [1, 3, 33, 784])
def test_weights_are_within_the_bound(d, kind, method):
    g = np.random.default_rng(d)
    queries, samples = images(12, d, 1), images(150, d)
    queries[:3] = samples[[0, 1, -1]]
    weights = WEIGHTS[kind](g, 150)
    for sigma, block in ((0.02, 64), (0.3, 1), (0.3, 4096), (10.0, 64)):
        r = parzen_log_likelihood(queries, samples, sigma, sample_weight=weights, method=method, block=block)
        exact = weighed(queries, samples, sigma, weights)
        assert (np.abs(r.per_query - exact) - 1e-16 * np.abs(exact)).max() <= r.error_bound < 1e-4, (sigma, block)


@EDGE
@pytest.mark.parametrize("method", METHODS)
def test_equal_weights_give_the_bits_of_none(method):
    queries, samples, validation = images(30, 64, 1), images(1200, 64), images(20, 64, 2)
    choose = [0.05, 0.1, 0.2]
    for options in ({"sigma": 0.2}, {"sigma": 5.0}, {"validation": validation, "sigmas": choose},
                    {"sigma": "leave-one-out", "sigmas": choose}):  # fmt: skip
        options |= {"method": method, "block": 512}
        plain = parzen_log_likelihood(queries, samples, **options)
        for weights in (np.full(1200, 0.3), [7] * 1200, torch.full((1200,), 1e-310, dtype=torch.float64), 5):
            equal = parzen_log_likelihood(queries, samples, sample_weight=weights, **options)
            assert np.array_equal(equal.per_query, plain.per_query)
            assert (equal.error_bound, equal.sigma, equal.n_samples) == (plain.error_bound, plain.sigma, 1200)
            for one, other in zip(equal.sigma_curve or (), plain.sigma_curve or (), strict=True):
                assert np.array_equal(one, other)


def test_weights_are_repetitions_and_zeros_are_as_if_absent():
    g = np.random.default_rng(0)
    queries, samples, weights = images(30, 64, 1), images(500, 64), g.integers(0, 5, 500)
    found = parzen_log_likelihood(queries, samples, 0.2, sample_weight=weights)
    repeated = parzen_log_likelihood(queries, samples.repeat(weights, 0), 0.2)
    np.testing.assert_allclose(found.per_query, repeated.per_query, rtol=0, atol=1e-9)
    some = np.where(weights > 3, 0.0, 2.0)
    found = parzen_log_likelihood(queries, samples, 0.2, sample_weight=some)
    present = parzen_log_likelihood(queries, samples[some > 0], 0.2)
    np.testing.assert_allclose(found.per_query, present.per_query, rtol=0, atol=1e-9)
    assert (found.n_samples, present.n_samples) == (500, (some > 0).sum())


def test_the_window_and_the_estimate_weigh_alike():
    g = np.random.default_rng(0)
    queries, samples, weights = g.normal(size=(20, 5)), g.normal(size=(400, 5)), g.exponential(size=400)
    density = fastaae.ParzenWindow(0.4).fit(samples, sample_weight=weights)
    found = parzen_log_likelihood(queries, samples, 0.4, sample_weight=weights)
    np.testing.assert_allclose(found.per_query, density.score_samples(queries), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["counts", "wild"])
def test_weights_of_a_stream_in_blocks_are_those_of_the_array(kind):
    queries, samples, weights = images(30, 40, 1), images(9001, 40), WEIGHTS[kind](np.random.default_rng(0), 9001)
    options = {"sample_weight": weights, "sigma": 0.2}
    whole = parzen_log_likelihood(queries, samples, **options)
    for size in (7, 4096, 5000):
        cut = (samples[k : k + size] for k in range(0, 9001, size))
        assert np.array_equal(parzen_log_likelihood(queries, cut, **options).per_query, whole.per_query)
    for n, message in ((9000, "expected n_samples=9000, there are more"), (9002, "ended after 9001, expected")):
        with pytest.raises(ValueError, match=message):
            parzen_log_likelihood(queries, iter([samples]), 0.2, sample_weight=np.resize(weights, n))


@EDGE
@pytest.mark.parametrize("way", ["stream", "function", "left out"])
@pytest.mark.parametrize("method", METHODS)
def test_weights_resume_with_the_same_bits(tmp_path, method, way):
    g = np.random.default_rng(0)
    queries, samples = images(40, 96, 1), images(5000, 96)
    weights = np.where(np.arange(5000) < 1500, 0.0, np.exp(3 * g.normal(size=5000)))  # not any in the first two blocks
    options = {"sample_weight": weights, "method": method, "block": 512, "sigma": 0.2}
    if way == "left out":
        options |= {"sigma": "leave-one-out", "sigmas": [0.05, 0.1, 0.2, 0.4]}

    def source(stop):
        parts = lambda skip: stopping(samples[skip:], stop - skip // 300)  # noqa: E731
        return parts(0) if way == "stream" else parts

    whole = parzen_log_likelihood(queries, source(99), **options)
    for stop in (7, 9, 11):
        with pytest.raises(Stopped):
            parzen_log_likelihood(queries, source(stop), state=tmp_path / "s", **options)
    other = options | {"sample_weight": np.r_[weights[:-1], 1e-3]}
    with pytest.raises(ValueError, match="of an evaluation with other sample_weight, expected"):
        parzen_log_likelihood(queries, source(99), state=tmp_path / "s", **other)
    for _ in range(2):
        result = parzen_log_likelihood(queries, source(99), state=tmp_path / "s", **options)
        assert np.array_equal(result.per_query, whole.per_query) and result.sigma == whole.sigma
        assert (result.error_bound, result.n_samples) == (whole.error_bound, 5000)


def test_pruning_of_weights_is_felt_and_within_its_bound():
    queries, samples = images(30, 128, 1, rank=12), images(2000, 128, rank=12)
    weights = np.where(np.arange(2000) % 50, 1.0, 1e-3)
    for sigma in (0.3, 0.5, 0.7):
        r = parzen_log_likelihood(queries, samples, sigma, sample_weight=weights, tolerance=0.9, method="pruned")
        error = np.abs(r.per_query - weighed(queries, samples, sigma, weights)).max()
        assert error <= r.error_bound < 0.9 and (sigma < 0.7 or error > 2e-11)


@EDGE
def test_a_wide_bandwidth_is_not_given_up_for_a_neighbour_of_little_weight():
    validation, samples = np.zeros((5, 100)), np.concatenate([np.full((50, 100), 0.01), np.full((50, 100), 1.0)])
    weights, grid = np.repeat([1e-300, 1.0], 50), [0.1, 2.0]
    r = parzen_log_likelihood(validation, samples, validation=validation, sigmas=grid, sample_weight=weights)
    exact = [weighed(validation, samples, sigma, weights)[0] for sigma in grid]
    assert (
        r.sigma == grid[np.argmax(exact)] == 2.0
        and (np.abs(r.sigma_curve.mean - exact) < r.sigma_curve.error_bound).all()
    )


def test_weights_survive_a_lack_of_memory(monkeypatch):
    queries, samples, weights = images(40, 96, 1), images(3000, 96), np.random.default_rng(0).random(3000)
    expected = parzen_log_likelihood(queries, samples, 0.3, block=128, sample_weight=weights)
    counted = sums.PairSums._add

    def exhausting(self, block):
        counted(self, block)
        if len(block) > 200:
            raise MemoryError

    monkeypatch.setattr(sums.PairSums, "_add", exhausting)
    result = parzen_log_likelihood(queries, samples, 0.3, block=512, sample_weight=weights)
    assert np.array_equal(result.per_query, expected.per_query) and result.error_bound == expected.error_bound


WEIGHED_RANK = """
import sys
import numpy as np
import torch
from fastaae import parzen_log_likelihood

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
queries, samples, weights = (np.load(f"{sys.argv[1]}/{name}.npy") for name in ("queries", "samples", "weights"))
first = np.arange(len(samples)) < 900  # of equal weights, so much larger than those of the second rank
mine, results = first == (rank == 0), []
for sigma, tolerance in ((0.05, 1e-4), (0.2, 1e-4), (3.0, 1e-4), (0.3, 0.9)):
    options = {"sample_weight": weights[mine], "distributed": True, "method": "pruned", "tolerance": tolerance}
    r = parzen_log_likelihood(queries, samples[mine], sigma, **options)
    results.append([*r.per_query, r.error_bound, r.n_samples])
apart = np.full(mine.sum(), 1e-300 if rank else 1e20)
for options, message in (({"sigma": "leave-one-out"}, "one process"),
                         ({"sigma": 1.0, "sample_weight": apart}, "on the ranks, expected a ratio below")):
    try:
        parzen_log_likelihood(queries, samples[mine], distributed=True, **options)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
np.save(f"{sys.argv[1]}/{rank}.npy", results)
torch.distributed.destroy_process_group()
"""


def test_weights_of_two_ranks_are_of_one_scale(tmp_path, two_ranks):
    g = np.random.default_rng(0)
    queries, samples = images(40, 96, 1), images(1501, 96)
    weights = np.where(np.arange(1501) < 900, 1e6, g.random(1501))
    for name, array in (("queries", queries), ("samples", samples), ("weights", weights)):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "rank.py").write_text(WEIGHED_RANK)
    done = two_ranks(tmp_path / "rank.py", ".", patience=300)
    assert done.returncode == 0, done.stderr
    ranks = [np.load(tmp_path / f"{rank}.npy") for rank in (0, 1)]
    np.testing.assert_array_equal(*ranks)
    for row, sigma in zip(ranks[0], (0.05, 0.2, 3.0, 0.3), strict=True):
        error = np.abs(row[:-2] - weighed(queries, samples, sigma, weights)).max()
        assert error <= row[-2] < (2 if sigma == 0.3 else 1e-1) and row[-1] == 1501
        assert error > 1e-12 or sigma != 0.3  # of pairs left out


def left_out(samples, sigma, weights=None):
    """The mean leave-one-out likelihood of the samples that choose, up to 1,000."""
    w = np.ones(len(samples)) if weights is None else weights
    mass, n = np.cumsum(w), min(len(samples), 1000)
    own = np.searchsorted(mass, (np.arange(n) + 0.5) * (mass[-1] / n))
    return weighed(samples[own], samples, sigma, w, own).mean()


def check_left_out(samples, result, weights=None):
    sigma, mean, bound = result.sigma_curve
    exact = [left_out(samples, s, weights) for s in sigma]
    assert (np.abs(mean - exact) - 1e-15 * np.abs(exact) <= bound).all()
    assert bound[np.argmax(exact)] < 1e-3 and result.sigma == sigma[np.argmax(exact)]


@EDGE
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [1, 2, 33, 784])
def test_a_bandwidth_chosen_on_the_samples_themselves(d, method):
    g = np.random.default_rng(d)
    queries, samples = images(10, d, 1), images(100, d)
    samples[70:90] = samples[:20]  # a sample is left out by its place, not by its values
    for block, weights in ((None, None), (1, None), (64, g.integers(0, 3, 100) + 0.0),
                           (64, np.where(np.arange(100) % 2, 1e-300, 1.0)),
                           (None, np.where(np.arange(100) == 60, 1e30, 1.0))):  # fmt: skip
        options = {"sigmas": [0.003, 0.03, 0.3], "method": method, "block": block, "sample_weight": weights}
        r = parzen_log_likelihood(queries, samples, "leave-one-out", **options)
        check_left_out(samples, r, weights)
        own = np.ones(100) if weights is None else weights
        assert np.abs(r.per_query - weighed(queries, samples, r.sigma, own)).max() <= r.error_bound < 1e-4


@EDGE
@pytest.mark.parametrize("kind", ["array", "memmap", "bytes", "tensor", "images"])
def test_samples_that_choose_are_spread_over_an_array(tmp_path, kind):
    samples = np.concatenate([images(700, 4) / 5, images(700, 4, 1)])  # two classes, one after the other
    given, queries = samples, images(5, 4, 2)
    if kind == "memmap":
        np.save(tmp_path / "s.npy", samples)
        given = np.load(tmp_path / "s.npy", mmap_mode="r")
    elif kind == "bytes":
        samples = given = (samples * 255).astype(np.uint8)
    elif kind != "array":
        given = torch.tensor(samples) if kind == "tensor" else samples.reshape(-1, 2, 2)
    r = parzen_log_likelihood(queries, given, "leave-one-out", sigmas=[0.002, 0.01, 0.03])
    check_left_out(samples, r)


@EDGE
def test_samples_of_a_function_choose_by_its_first_ones():
    samples, queries = images(6000, 16), images(5, 16, 1)
    results = []
    for size in (1, 300, 6000):
        source = lambda skip, size=size: (samples[k : k + size] for k in range(skip, 6000, size))  # noqa: E731
        results.append(parzen_log_likelihood(queries, source, "leave-one-out", sigmas=[0.02, 0.05, 0.1]))
    assert all(np.array_equal(r.sigma_curve.mean, results[0].sigma_curve.mean) for r in results)
    array = parzen_log_likelihood(queries, samples, "leave-one-out", sigmas=[0.02, 0.05, 0.1])
    assert results[0].sigma == array.sigma
    np.testing.assert_allclose(results[0].sigma_curve.mean[-1], array.sigma_curve.mean[-1], rtol=0.05)
    assert results[0].sigma_curve.mean[-1] != array.sigma_curve.mean[-1]  # which is of others


def test_without_a_grid_the_chosen_bandwidth_is_near_the_best():
    g = np.random.default_rng(0)
    samples = g.normal(size=(300, 2)) * 50
    r = parzen_log_likelihood(samples[:9], samples, "leave-one-out")
    means = {s: left_out(samples, s) for s in np.geomspace(4, 60, 30)}
    best = max(means, key=means.get)
    assert 0.75 < r.sigma / best < 1.35
    scott = 50 * 300 ** (-1 / 6)
    assert 0.5 < r.sigma / scott < 2


def test_duplicates_make_the_smallest_bandwidth_the_best_and_are_told():
    samples = images(300, 8).repeat(2, 0)
    with pytest.warns(UserWarning, match="best bandwidth 1e-07 is the smallest tried"):
        assert parzen_log_likelihood(samples[:3], samples, "leave-one-out").sigma == pytest.approx(1e-7)


@EDGE
def test_two_samples_are_enough_for_leave_one_out():
    samples = np.array([[0.0], [0.3]])
    for block in (1, None):
        r = parzen_log_likelihood(np.array([[0.1]]), samples, "leave-one-out", sigmas=[0.1, 0.3, 0.9], block=block)
        check_left_out(samples, r)
        assert r.sigma == 0.3
    weights = np.array([1.0, 0.0, 1e-300])
    r = parzen_log_likelihood(
        [[0.1]], np.array([[0.0], [0.1], [0.3]]), "leave-one-out", sigmas=[0.1, 0.3], sample_weight=weights
    )
    assert r.sigma == 0.3


L = {"sigma": "leave-one-out", "sigmas": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sample_weight=[1, 1, -1, 1, 1]), "sample_weight sums to 3: expected numbers from zero, not all zero"),
        (dict(sample_weight=[1, 1, math.nan, 1, 1]), "sample_weight sums to nan: expected numbers"),
        (dict(sample_weight=[1, 1, math.inf, 1, 1]), "sample_weight sums to inf: .* of a finite sum"),
        (dict(sample_weight=np.full(5, 1e308)), "sample_weight sums to inf"),
        (dict(sample_weight=[1, 1, 1e-320, 1, 1]), "sample_weight sums to 4: .* above 1e-307 of it"),
        (dict(sample_weight=np.zeros(5)), "sample_weight sums to 0: .* not all zero"),
        (dict(sample_weight=0), "sample_weight sums to 0"),
        (dict(sample_weight=[]), r"sample_weight has shape \[0\], samples has 5 rows: expected as many"),
        (dict(sample_weight=np.ones(4)), r"sample_weight has shape \[4\], samples has 5 rows: expected as many"),
        (dict(sample_weight=np.ones((5, 1))), r"sample_weight has shape \[5, 1\], samples has 5 rows"),
        (dict(samples=iter([S]), sample_weight=3.0), r"sample_weight has shape \[\], samples has N rows"),
        (
            dict(samples=iter([S]), sample_weight=np.ones(5), n_samples=6),
            r"sample_weight has shape \[5\], samples has 6",
        ),
        (dict(samples=iter([S]), sample_weight=np.ones(4)), "samples: expected n_samples=4, there are more"),
        (dict(sample_weight="x"), "sample_weight is a str, expected"),
        (dict(sample_weight=np.ma.masked_less(np.ones(5), 0)), "sample_weight is a masked array"),
        (
            L | dict(samples=iter([S])),
            "sigma='leave-one-out': expected samples of one process, in an array or a function",
        ),
        (L | dict(samples=[S]), "sigma='leave-one-out': expected samples of one process"),
        (L | dict(samples=lambda k: 3), "samples: expected an array, a tensor or an iterable of blocks, got int"),
        (L | dict(samples=lambda k: [None]), "samples: block 0 is None"),
        (L | dict(samples=lambda k: []), "samples: there are 0, expected at least one"),
        (L | dict(samples=S[:1]), "sigma='leave-one-out': expected at least two samples of a weight above zero"),
        (L | dict(sample_weight=[0, 0, 1, 0, 0]), "sigma='leave-one-out': expected at least two samples of a weight"),
        (L | dict(validation=X), "sigma='leave-one-out' is given, expected neither validation"),
        (dict(sigma="Leave-one-out"), "bandwidth 'Leave-one-out'"),
        (dict(sigma=None), "or 'leave-one-out'"),
    ],
)
def test_bad_weights_and_what_cannot_be_left_out(arguments, message):
    with pytest.raises(ValueError, match=message):
        parzen_log_likelihood(**{"queries": X, "samples": S, "sigma": 1.0, **arguments})


def test_a_sample_that_chooses_and_is_nan_is_named(tmp_path):
    samples = images(3000, 4)
    samples[3] = np.nan
    np.save(tmp_path / "s.npy", samples)
    for source, message in ((samples, "samples: row 3 holds NaN"),
                           (lambda skip: iter([samples[skip:]]), "samples: block 0: sample 3 holds NaN"),
                           (np.load(tmp_path / "s.npy", mmap_mode="r"), "samples.*holds NaN")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            parzen_log_likelihood(samples[:2], source, "leave-one-out")

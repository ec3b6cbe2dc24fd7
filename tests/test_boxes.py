"""Few dimensions: leaves of samples, tiles of queries, and what is left out; single queries of a ParzenWindow."""

import numpy as np
import pytest
import torch
from test_parzen import METHODS, WEIGHTS, random_data, weighed

import fastaae
from fastaae import parzen_log_likelihood
from fastaae.kernels.parzen import boxes, lattice, sums

LONG = np.finfo(np.longdouble).nmant >= 63
FEW = ([1, 2, 3, 4], ([1, 2, 63, 127, 128, 129, 700, 3000], [1, 5, 64, 65, 130]))
MANY = ([1, 2], ([2**14, 30_000], [64, 130]))  # for a lattice


def cases(seed, count, sizes=FEW):
    """Random data in few dimensions, some of it weighted, of any scale, bandwidth, tolerance and method."""
    for case in range(count):
        g = np.random.default_rng([seed, case])
        kind, queries, samples = random_data(g, *sizes)
        as_float = [a[:100] / 255 if a.dtype == np.uint8 else a[:100].astype(float) for a in (queries, samples)]
        spread = np.median(np.linalg.norm(as_float[0][:, None] - as_float[1], axis=2)) or 1.0
        sigma = float(np.clip(spread * 10.0 ** g.uniform(-3, 1), 1e-99, 1e99))
        weighted = g.random() < 0.4 and sizes is FEW
        weights = WEIGHTS[g.choice(["counts", "wild"])](g, len(samples)) if weighted else None
        yield (seed, case, kind, sigma), g, queries, samples, sigma, weights


@pytest.fixture
def cells_for_any(monkeypatch):
    monkeypatch.setattr(lattice, "enough", lambda m, occupied, d: 64)


def check(seed, count, sizes=FEW):
    for case, g, queries, samples, sigma, weights in cases(seed, count, sizes):
        options = {"method": str(g.choice(METHODS)), "tolerance": 10.0 ** g.uniform(-12, -0.05)}
        options |= {"sample_weight": weights, "block": g.choice([None, 1000, 70]) if sizes is FEW else None}
        found = parzen_log_likelihood(queries, samples, sigma, **options)
        expected = weighed(queries, samples, sigma, np.ones(len(samples)) if weights is None else weights)
        error = np.abs(found.per_query - expected) - 1e-18 * np.abs(expected)
        assert error.max() <= found.error_bound, (case, options)


@pytest.mark.filterwarnings("ignore:queries lie in")
@pytest.mark.skipif(not LONG, reason="long double is no wider than float64 here")
@pytest.mark.parametrize(("sizes", "count"), [(FEW, 60), (MANY, 12)], ids=["few", "many"])
def test_likelihoods_are_within_their_bound(cells_for_any, sizes, count):
    check(0, count, sizes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:queries lie in")
@pytest.mark.skipif(not LONG, reason="long double is no wider than float64 here")
@pytest.mark.parametrize("seed", range(1, 36))
def test_campaign(seed):
    check(seed, 200)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:queries lie in")
@pytest.mark.skipif(not LONG, reason="long double is no wider than float64 here")
@pytest.mark.parametrize("seed", range(1, 21))
def test_campaign_of_lattices(cells_for_any, seed):
    check(seed, 50, MANY)


@pytest.mark.skipif(not LONG, reason="long double is no wider than float64 here")
@pytest.mark.parametrize("m", [1, 32, 34])
def test_a_window_is_exact_for_single_queries_and_for_many(m):
    for case, _, queries, samples, sigma, weights in cases(m, 40):
        if queries.dtype == np.uint8:
            continue
        queries, samples = np.resize(queries, (m, queries.shape[1])).astype(float), samples.astype(float)
        window = fastaae.ParzenWindow(sigma).fit(samples, sample_weight=weights)
        expected = weighed(queries, samples, sigma, np.ones(len(samples)) if weights is None else weights)
        size = np.abs(expected) + np.abs(np.log(sigma)) + len(samples) + 700
        assert (np.abs(window.score_samples(queries) - expected) <= 1.01e-10 + 1e-13 * size).all(), case


@pytest.mark.parametrize("n", [1, 63, 64, 65, 129, 5000])
@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_neighbours_are_all_of_the_points_and_near_each_other(n, d):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(n, d)))
    order = boxes.neighbours(x, 64)
    assert order.sort().values.equal(torch.arange(n))
    leaves = x[order][: n // 64 * 64].view(-1, 64, d)
    if n == 5000:  # 78 leaves: boxes of an average side far below that of any 64 points
        assert (leaves.amax(1) - leaves.amin(1)).prod(1).median() < 0.02 * (x.amax(0) - x.amin(0)).prod()


def test_distances_of_boxes():
    g = torch.Generator().manual_seed(0)
    points = torch.randn(2, 7, 5, 3, generator=g, dtype=torch.float64)
    (low, high), (least, most) = (torch.aminmax(part, dim=1) for part in points)
    found = boxes.distances(low.T, high.T, least.T, most.T)
    nearest = torch.cdist(*points[[1, 0]].flatten(1, 2)).view(7, 5, 7, 5).amin((1, 3)).square()
    assert (found <= nearest + 1e-12).all() and (found == 0).any() and (found > 0).any()
    corners = torch.maximum(low - most[:, None], least[:, None] - high).clamp_min(0)
    torch.testing.assert_close(found, corners.square().sum(2))


@pytest.mark.parametrize("weights", [None, "wild"])
def test_most_pairs_are_left_out_and_the_bound_says_what_that_costs(monkeypatch, weights):
    g = np.random.default_rng(0)
    queries, samples = g.normal(size=(3000, 2)), g.normal(size=(20_000, 2))
    v = None if weights is None else WEIGHTS[weights](g, 20_000)
    counted, parts = [0], boxes.parts

    def counting(leaves, which, center):
        counted[0] += len(which) * boxes.LEAF * boxes.TILE
        return parts(leaves, which, center)

    monkeypatch.setattr(boxes, "parts", counting)
    found = parzen_log_likelihood(queries, samples, 0.05, sample_weight=v, tolerance=0.5)
    assert 0 < counted[0] < 3000 * 20_000 / 4
    exact = weighed(queries[:200], samples, 0.05, np.ones(20_000) if v is None else v)
    error = np.abs(found.per_query[:200] - exact).max()
    assert 1e-12 < error <= found.error_bound < 0.5
    before, counted[0] = counted[0], 0
    dense = parzen_log_likelihood(queries, samples, 0.05, sample_weight=v, tolerance=0.5, method="dense")
    assert counted[0] > 3000 * 20_000 > before and dense.error_bound < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_a_lattice_is_found_for_a_million_samples(seed):
    samples = torch.from_numpy(np.random.default_rng(seed).normal(size=(1_000_000, 2)))
    cells, rest = lattice.cells(samples, 0.1, 5000)
    assert rest.sum() < 100_000 and cells.weights.sum().item() == pytest.approx(1_000_000 - rest.sum().item(), rel=1e-9)


@pytest.mark.parametrize("d", [1, 2])
def test_nodes_of_a_lattice_stand_for_their_samples(monkeypatch, d):
    g = np.random.default_rng(0)
    queries, samples = g.normal(size=(2000, d)), g.normal(size=(80_000, d))
    left, interpolate = [], boxes.Boxes.interpolate
    monkeypatch.setattr(boxes.Boxes, "interpolate", lambda *a: left.append(interpolate(*a)) or left[-1])
    found = fastaae.ParzenWindow(0.1).fit(samples).score_samples(queries)
    assert len(left) == 32 and sum(map(len, left)) < 1000
    cells, rest = lattice.cells(torch.from_numpy(samples), 0.1, 10_000)
    assert cells.weights.sum().item() == pytest.approx(cells.count.sum().item(), rel=1e-12)
    assert len(samples) - int(rest.sum()) == cells.count.sum() > 5_000
    monkeypatch.setattr(lattice, "LARGE", 10**9)
    direct = fastaae.ParzenWindow(0.1).fit(samples).score_samples(queries)
    assert len(left) == 32 and 1e-15 < np.abs(found - direct).max() < 1e-10


def test_cells_are_made_where_many_queries_meet_them():
    assert lattice.enough(64, 80, 1) == lattice.enough(500, 2000, 2) == np.inf
    assert 30 < lattice.enough(5000, 80, 1) < lattice.enough(5000, 1600, 2) < 500


def test_bandwidths_chosen_in_few_dimensions_are_those_of_the_dense_way(monkeypatch):
    g = np.random.default_rng(0)
    queries, samples = g.normal(size=(40, 3)), g.normal(size=(3000, 3))
    options = {"sigmas": [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]}
    for more in ({"sigma": "leave-one-out"}, {"validation": g.normal(size=(200, 3))}):
        found = parzen_log_likelihood(queries, samples, **options, **more)
        with monkeypatch.context() as m:
            m.setattr(sums, "MOST", 0)
            other = parzen_log_likelihood(queries, samples, method="dense", **options, **more)
        assert found.sigma == other.sigma
        limit = found.sigma_curve.error_bound + other.sigma_curve.error_bound
        assert (np.abs(found.sigma_curve.mean - other.sigma_curve.mean) <= limit).all()
        assert np.abs(found.per_query - other.per_query).max() <= found.error_bound + other.error_bound

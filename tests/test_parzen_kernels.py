"""The Triton kernels of kernels/parzen/cuda.py against float64, and what the compiler makes of them.

Triton decides at import whether it interprets, so the tests of values run in a pytest of their own with
TRITON_INTERPRET=1, which the first test here starts; with a CUDA device they also run here, compiled.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
OUTSIDE = pytest.mark.skipif(INTERPRETED, reason="has been started by this test")
RUNS = find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available())
OVERFLOW = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # of NumPy
VALUES = pytest.mark.skipif(not RUNS, reason="Triton runs in its interpreter's own pytest, or on a CUDA device")
if RUNS:
    from fastaae import parzen_log_likelihood
    from fastaae.kernels import reference
    from fastaae.kernels.parzen import bounds, cuda, plain, sums, tensor_cores

DEVICE = "cpu" if INTERPRETED else "cuda"
D64 = torch.float64
M, N = [1, 127, 128, 129, 131], [1, 31, 32, 33, 65, 129, 513]  # tiles are 128 x 64, 128 or 256, slices here 512
SHAPES = [(m, 33) for m in M] + [(129, n) for n in N] + [(1, 1)]


def shapes(*columns, large):
    """All of SHAPES for each number of columns; two of them for the large number, which the interpreter is slow at."""
    return [(*shape, k) for k in columns for shape in SHAPES] + [(131, 129, large), (1, 1, large)]


@TRITON
@OUTSIDE
def test_values_in_the_interpreter(interpreted):
    interpreted(__file__)


@TRITON
@OUTSIDE
def test_report_nothing_spills_and_tensor_cores_are_used(tmp_path, arch):
    """Compiled anew, in an empty cache, for a GPU that need not be there."""
    script = Path(__file__).resolve().parent.parent / "bench" / "kernels.py"
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, script, "--arch", str(arch)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {(r["kernel"], r["arch"]) for r in rows} == {
        (name, arch) for name in ("near", "wide", "sums", "project", "quantize", "distances", "count")
    }
    for row in rows:
        assert row["spill"] == [0, 0, 0] and row["programs"] > 0 and row["registers"] <= 255
        assert row["tensor"] > 0 or row["kernel"] in ("quantize", "distances", "count")


@pytest.fixture(params=[8, 9], ids=["pointers", "descriptors"])
def pinned(request, monkeypatch):
    """Both ways of loading, and slices and runs so short that there are several."""
    monkeypatch.setattr(cuda, "_pinned", lambda table, _: table[request.param])
    monkeypatch.setattr(cuda, "SPLIT", 512)
    monkeypatch.setattr(cuda, "RUN", 256)


def half(*shape):
    return torch.randn(*shape).half().to(DEVICE)


def integers(*shape):
    """Numbers of which all that the kernels form is exact, and of which many pairs tie."""
    return torch.randint(-2, 3, shape).half().to(DEVICE)


def distances(x, s):
    """Float64 t [M, N] of the given numbers, float32 |s|², and a bound of what float32 makes of the product, [M, N].

    Products of fp16 are exact. Their sum: (K/4 + 8) 2^-23 |x||s|, twice that in t.
    """
    square = s.double().square().sum(1).float()
    t = square.double() - 2 * x.double() @ s.double().T
    bound = (x.shape[1] / 4 + 8) * 2**-23 * 2 * x.double().norm(dim=1)[:, None] * s.double().norm(dim=1)
    return t, square, bound


def near(x, s, square, limit):
    """near_pairs as a table of booleans."""
    rows, columns = cuda.near_pairs(x, s, square, limit)
    flat = rows * len(s) + columns
    assert (flat.diff() > 0).all()  # ordered, none twice
    table = torch.zeros(len(x), len(s), dtype=torch.bool, device=x.device)
    table[rows, columns] = True
    return table


@VALUES
@pytest.mark.parametrize("m,n,k", shapes(16, 64, large=128))
def test_near_pairs(m, n, k, pinned):
    x, s = half(m, k), half(n, k)
    x[0] = s[-1]
    t, square, bound = distances(x, s)
    limit = (t.amin(1) + 0.3 * k * torch.rand(m, device=DEVICE)).float()
    slack = bound + 2**-24 * (square.double() - limit.double()[:, None]).abs()
    table = near(x, s, square, limit)
    below = limit.double()[:, None] - t
    assert table[below >= slack].all() and not table[below < -slack].any()
    assert torch.equal(table, near(x, s, square, limit))

    x, s = integers(m, k), integers(n, k)
    t, square, _ = distances(x, s)
    limit = t[:, n // 2].float()
    assert torch.equal(near(x, s, square, limit), t <= limit[:, None])


@VALUES
def test_near_pairs_at_extreme_limits(pinned):
    x, s = integers(5, 16), integers(70, 16)
    t, square, _ = distances(x, s)
    limit = torch.tensor([math.inf, -math.inf, 3.4e38, -3.4e38, t[4].median()], dtype=torch.float32, device=DEVICE)
    assert torch.equal(near(x, s, square, limit), t <= limit[:, None])
    far = 60000 * torch.ones(1, 16, dtype=torch.float16, device=DEVICE)
    t, square, bound = distances(far, s)
    limit = t.amin(1).float()
    table = near(far, s, square, limit)
    assert table[t <= limit[:, None] - 2 * bound].all() and not table[t > limit[:, None] + 2 * bound].any()


def summed(x, s, start, weights, radius=math.inf):
    """pair_sums, compared with float64; twice, bit by bit. Returns them."""
    t, square, bound = distances(x, s)
    minimum, total = cuda.pair_sums(x, s, square, start, weights, radius)
    again = cuda.pair_sums(x, s, square, start, weights, radius)
    assert torch.equal(minimum, again[0]) and torch.equal(total, again[1])
    lowest = torch.minimum(t.amin(1), start.double())
    error = (bound + 2**-24 * t.abs()).amax(1)  # of any t of a query, and so of its minimum
    assert ((minimum - lowest).abs() <= error).all()

    # A term's exponent is wrong by the errors of t and of the minimum, and by four roundings of relative size 2^-24
    # (difference, weight, product, and t again where the minimum moves). exp2 is good to 2^-22, so is each of the moves
    # of the minimum; adding N terms costs N 2^-24.
    w = weights[:, None, None]
    exponent = (lowest[:, None] - t) * w
    terms = exponent.exp()
    wrong = (exponent.abs() * 2**-22 + 2 * error[:, None] * w).expm1() * terms
    moves = 1 + len(s) / 128
    rounding = (terms * (len(s) * 2**-24 + moves * 2**-21)).sum(2)
    omitted = len(s) * (-radius * weights)[:, None].exp() if radius < math.inf else 0
    floor = len(s) * 2**-126  # terms that float32 flushes to zero
    assert ((total - terms.sum(2)).abs() <= wrong.nan_to_num(posinf=math.inf).sum(2) + rounding + omitted + floor).all()
    return minimum, total


@VALUES
@pytest.mark.parametrize("m,n,k", shapes(8, 72, large=784))
def test_pair_sums(m, n, k, pinned):
    x, s = half(m, k), half(n, k)
    x[0] = s[-1]
    weights = torch.tensor([0.02, 0.5, 3], dtype=D64, device=DEVICE)
    _, total = summed(x, s, torch.full((m,), math.inf, device=DEVICE), weights)
    assert total.isfinite().all() and (n > 1 or torch.equal(total, torch.ones_like(total)))


@VALUES
def test_pair_sums_of_extreme_weights(pinned):
    x, s = integers(130, 8), integers(600, 8)
    t, *_ = distances(x, s)
    weights = torch.tensor([1e-30, 1e-3, 1e6], dtype=D64, device=DEVICE)
    start = torch.full((130,), math.inf, device=DEVICE)
    minimum, total = summed(x, s, start, weights)
    assert torch.equal(minimum, t.amin(1))
    assert torch.equal(total[0], torch.full_like(total[0], 600))
    assert torch.equal(total[2], (t == minimum[:, None]).sum(1).double())  # exact, as all is


@VALUES
def test_pair_sums_from_a_known_minimum(pinned):
    x, s = half(130, 72), half(600, 72)
    x[1] = 300  # so far that all its terms but the nearest's underflow
    t, *_ = distances(x, s)
    weights = torch.tensor([0.1, 1], dtype=D64, device=DEVICE)
    summed(x, s, (t.amin(1) - 2).float(), weights)  # lower, by another set of samples
    summed(x, s, t.sort(1).values[:, 300].float(), weights)  # of no help; a median is not deterministic on CUDA
    minimum, total = summed(x, s, (t.amin(1) - 1e6).float(), weights, 50.0)  # so low that everything underflows
    assert (total == 0).all() and torch.equal(minimum, (t.amin(1) - 1e6).float().double())


@VALUES
def test_pair_sums_leave_out_what_is_far(pinned):
    x, s = half(130, 72) / 8, half(600, 72) / 8
    s[256:] += 4
    t, *_ = distances(x, s)
    weights = torch.tensor([0.002, 0.1], dtype=D64, device=DEVICE)
    start = torch.full((130,), math.inf, device=DEVICE)
    radius = 100.0
    assert (t[:, 256:].amin(1) > t[:, :256].amin(1) + 2 * radius).all()
    minimum, total = summed(x, s, start, weights, radius)
    kept = ((minimum[:, None] - t[:, :256]) * weights[:, None, None]).exp().sum(2)
    all_ = ((minimum[:, None] - t) * weights[:, None, None]).exp().sum(2)
    # The first slice leaves out its second tile; the second slice knows no minimum but its own.
    known, rest = summed(x, s, minimum.float(), weights, radius)
    torch.testing.assert_close(rest, kept, rtol=1e-4, atol=0)
    assert torch.equal(known, minimum) and (total[0] < all_[0] - 0.1).all()


@VALUES
def test_near_pairs_may_be_too_many(pinned):
    x, s = half(5, 16), half(70, 16)
    _, square, _ = distances(x, s)
    everything = torch.full((5,), 1e30, device=DEVICE)  # 3 words of 32 samples for each query
    assert cuda.near_pairs(x, s, square, everything, 14) is None
    assert len(cuda.near_pairs(x, s, square, everything, 15)[0]) == 350


@VALUES
@pytest.mark.parametrize("m,n,k", [(1, 1, 16), (127, 33, 144), (131, 513, 48), (5, 257, 784)])
def test_near_pairs_of_bytes(m, n, k, monkeypatch):
    """Exact: which pairs are near, but for the halves that are rounded to keep them."""
    monkeypatch.setattr(cuda, "RUN", 256)
    x, s = (torch.randint(-128, 128, (rows, k)).to(DEVICE, torch.int8) for rows in (m, n))
    square = s.int().square().sum(1).int()
    t = square - 2 * (x.double() @ s.double().T)
    limit = t[:, n // 2] + torch.randint(0, 5000, (m,), device=DEVICE)
    limit[0] = math.inf
    for tables in (cuda.WIDE[8], cuda.WIDE[9]):
        monkeypatch.setattr(cuda, "_pinned", lambda *_, config=tables: config)
        rows, columns = cuda.near_pairs(x, s, square, limit)
        table = torch.zeros(m, n, dtype=torch.bool, device=DEVICE)
        table[rows, columns] = True
        assert table[t <= limit[:, None]].all() and not table[t > limit[:, None] + 3].any()
        assert ((rows * n + columns).diff() > 0).all()
    assert cuda.near_pairs(x, s, square, torch.full_like(limit, math.inf), m * -(-n // 32) - 1) is None


DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def given(dtype, *shape):
    """Values of a dtype, and what they mean in float64."""
    v = torch.rand(*shape, dtype=D64)
    v = ((v * 255).to(dtype) if dtype == torch.uint8 else v.to(dtype)).to(DEVICE)
    return v, bounds.double(v)


@VALUES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distances_and_their_count(dtype):
    (x, exact_x), (s, exact_s) = given(torch.uint8, 7, 130), given(dtype, 90, 130)
    rows = torch.tensor([0] * 40 + [2] + [5] * 300 + [6] * 3, device=DEVICE)
    columns = torch.randint(90, (len(rows),)).to(DEVICE)
    d2 = cuda.distances(x, s, rows, columns)
    twin = (exact_x[rows] - exact_s[columns]).square().sum(1)
    torch.testing.assert_close(d2, twin, rtol=1e-14, atol=0)
    assert torch.equal(d2, cuda.distances(x, s, rows, columns))

    totals = plain.Totals(x.cpu(), torch.tensor([0.2, 1.0, 5.0], dtype=D64), 1e-4)  # plain torch
    totals.live, totals.minimum = [True, False, True], torch.rand(7, dtype=D64) * 40
    totals.sums = torch.rand(3, 7, dtype=D64)
    minimum, held, weights = (t.clone().to(DEVICE) for t in (totals.minimum, totals.sums, totals.weights))
    cuda.count(rows, d2, minimum, held, weights, totals.live)
    totals.count(rows.cpu(), d2.cpu(), None)
    assert torch.equal(minimum.cpu(), totals.minimum)
    torch.testing.assert_close(held.cpu(), totals.sums, rtol=1e-12, atol=1e-300)


@VALUES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n,d", [(1, 3), (65, 127), (67, 128), (66, 200)])
def test_project(n, d, dtype):
    """What it returns is what it says: a row within `error` of the true projection and remainder; and hardly wider
    than what plain torch says of float32 products."""
    (x, exact_x), (s, exact_s) = given(dtype, 40, d), given(dtype, n, d)
    center = exact_x[3].float().double()
    s[n // 2] = x[3] if dtype in (torch.uint8, torch.float16, torch.float32) else s[n // 2]  # at the center
    exact_s = bounds.double(s)
    b = tensor_cores.HalfBounds(exact_x - center, exact_s - center)
    level = b.features(s, center).level
    t, p = exact_s - center, b.directions.double()
    basis = torch.linalg.qr(p).Q
    true = t @ p
    if b.sizes[0] < d:
        rest = (t - t @ basis @ basis.T).norm(dim=1, keepdim=True)
        true = torch.cat([true, rest], 1)
    values = level.values.double()[:, : true.shape[1]] / b.scales[1]
    assert not level.values[:, true.shape[1] :].any()
    wrong = (values - true).norm(dim=1)
    assert (wrong <= level.error).all()
    torch.testing.assert_close(level.square, values.square().sum(1), rtol=1e-5, atol=0)
    twin = b.half(b.levels(t.float())[0])
    assert (level.error <= 3 * twin.error + 1e-6).all()


@VALUES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantize(dtype):
    v, exact = given(dtype, 70, 131)
    codes, square, error = cuda.quantize(v, 0.5, 2.0**-8)
    assert codes.shape == (70, 144) and not codes[:, 131:].any()
    lost = (exact - 0.5 - codes[:, :131].double() / 2**8).norm(dim=1)
    assert (lost <= error).all() and (error <= 1.01 * lost + 1e-5).all()
    assert lost.max() < 2.0**-8 * math.sqrt(131) * 0.6 and torch.equal(square, codes.int().square().sum(1).int())


@VALUES
@OVERFLOW
@pytest.mark.parametrize("kind", ["floats", "bytes", "a far query", "a far sample", "one query", "zeros"])
@pytest.mark.parametrize("method", ["auto", "pruned", "dense"])
@pytest.mark.parametrize("d", [3, 130])
def test_the_estimator_on_tensor_cores_is_within_its_bound(d, method, kind, monkeypatch):
    """All of the GPU's way through kernels/parzen/sums.py; where it interprets, on tensors of the CPU."""
    monkeypatch.setattr(sums, "tensor_cores", lambda device: tensor_cores.TensorCores)
    monkeypatch.setattr(cuda, "PAIRS", 512)  # the interpreter takes its time for each program
    monkeypatch.setattr(tensor_cores, "FIRST", 100)
    monkeypatch.setattr(tensor_cores, "SPARSE", 64)
    g = np.random.default_rng(d)
    basis = g.normal(size=(4, d))
    queries, samples = (1 / (1 + np.exp(-g.normal(size=(n, 4)) @ basis)) for n in (20, 170 if INTERPRETED else 300))
    queries[3] = samples[7]
    if kind == "bytes":
        queries = np.round(queries * 255).astype(np.uint8)
    elif kind == "one query":  # which is the center
        queries = queries[:1].astype(np.float32)
    elif kind == "zeros":
        queries, samples = np.zeros((2, d)), np.zeros((70, d))
    elif kind.startswith("a far"):
        {"a far query": queries, "a far sample": samples}[kind][5] = 1e9
    exact_queries = torch.from_numpy(queries).double() / (255 if kind == "bytes" else 1)
    for sigma, tolerances in ((0.15, (1e-4, 0.5)), (1.0, (1e-4, 0.5)), (1e20, (0.5,)), (1e90, (1e-4,))):
        exact = reference.parzen_log_likelihood(exact_queries, torch.from_numpy(samples), sigma).numpy()
        for tolerance in tolerances:
            result = parzen_log_likelihood(queries, samples, sigma, method=method, tolerance=tolerance, device=DEVICE)
            error = np.abs(result.per_query - exact) - 1e-13 * np.abs(exact)
            assert error.max() <= result.error_bound, (sigma, tolerance)
            assert result.error_bound < 2 * tolerance or kind == "a far query"


@VALUES
@OVERFLOW
@pytest.mark.parametrize("kind", ["random", "tiny", "left out", "tiny left out"])
@pytest.mark.parametrize("method", ["auto", "pruned", "dense"])
def test_weights_and_samples_left_out_on_tensor_cores(method, kind, monkeypatch):
    monkeypatch.setattr(sums, "tensor_cores", lambda device: tensor_cores.TensorCores)
    monkeypatch.setattr(cuda, "PAIRS", 512)
    monkeypatch.setattr(tensor_cores, "FIRST", 100)
    monkeypatch.setattr(tensor_cores, "SPARSE", 64)
    g, d = np.random.default_rng(0), 32
    queries, samples = g.random((20, d)), g.random((300, d))
    weights = {"random": g.random(300), "left out": None}.get(kind, np.where(np.arange(300) % 3, 1e-300, 0.5))
    queries, own = (samples, np.arange(300)) if "left" in kind else (queries, np.full(20, -1))
    x, s, own, w = (
        torch.from_numpy(a).to(DEVICE) for a in (queries, samples, own, np.ones(300) if weights is None else weights)
    )
    logs, rows = w.log().repeat(len(x), 1), (own >= 0).nonzero()[:, 0]
    logs[rows, own[rows]] = -math.inf
    for sigma in (0.05, 1.0):  # at the second of which tensor cores would sum
        scored = sums.PairSums(x, torch.tensor([sigma], dtype=D64, device=DEVICE), 0, 0.3, method,
                               None if weights is None else w, own if "left" in kind else None)  # fmt: skip
        scored.add(s[:170])
        scored.add(s[170:])
        value, bound = scored.result()
        exact = (logs - (x[:, None] - s).square().sum(2) / (2 * sigma**2)).logsumexp(1) - logs.logsumexp(1)
        exact -= d * math.log(sigma * math.sqrt(2 * math.pi))
        assert ((value[0] - exact).abs() - 1e-13 * exact.abs() <= bound[0]).all() and bound.max() < 0.6


@VALUES
def test_tensor_cores_sum_where_the_tolerance_lets_them(monkeypatch):
    monkeypatch.setattr(sums, "tensor_cores", lambda device: tensor_cores.TensorCores)
    ran, compute = [], cuda.pair_sums
    monkeypatch.setattr(cuda, "pair_sums", lambda x, *rest: ran.append(x.shape[1]) or compute(x, *rest))
    g = np.random.default_rng(0)
    queries, samples = g.random((20, 32)), g.random((300, 32))
    for tolerance, columns in ((0.3, [32]), (3e-4, [96]), (1e-9, [])):
        ran.clear()
        parzen_log_likelihood(queries, samples, 1.0, method="dense", tolerance=tolerance, device=DEVICE)
        assert ran == columns


@VALUES
def test_configurations():
    assert all(cuda.SPLIT % c["BN"] == 0 for c in cuda.SUMS.values())
    assert all(cuda.RUN % c["BN"] == 0 and c["BN"] % 32 == 0 for c in cuda.NEAR.values())
    if INTERPRETED:
        assert cuda._pinned(cuda.SUMS, torch.ones(1)) is cuda.SUMS[9]

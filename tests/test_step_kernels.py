"""The Triton kernels of the training step against float64 and against their twins in reference.py.

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

from fastaae import Config, kernels
from fastaae.data import from_arrays
from fastaae.engine.replay import Replay
from fastaae.engine.step import Step
from fastaae.engine.wiring import PHASES
from fastaae.kernels import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS = find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available())
VALUES = pytest.mark.skipif(not RUNS, reason="Triton runs in its interpreter's own pytest, or on a CUDA device")
if RUNS:
    import triton
    import triton.language as tl

    from fastaae.kernels.step import draws, layers, losses, norms

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
D64 = torch.float64
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
SHAPES = [
    (1, 1, 1, 1),
    (3, 5, 7, 3),
    (1, 17, 33, 65),
    (2, 100, 130, 8),
    (1, 100, 8, 72),
    (1, 65, 48, 150),
    (5, 20, 40, 24),
]
if not INTERPRETED:
    SHAPES += [(1, 100, 784, 1000), (3, 200, 1000, 1000), (16, 100, 1000, 20), (2, 100, 18, 1000)]
SHAPED = pytest.mark.parametrize("r,b,i,o", SHAPES)
UNIT = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-24} if RUNS else {}


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="has been started by this test")
def test_values_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="compiles")
def test_every_launch_of_a_step_compiles_without_spills(tmp_path, arch):
    script = Path(__file__).resolve().parent.parent / "bench" / "kernels.py"
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, script, "--step", "mnist-100", "--arch", str(arch)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert sum(row["times"] for row in rows) == 42
    assert {row["kernel"] for row in rows} == {
        "draw", "forward", "backward", "update", "judge", "classes", "finish",
    }  # fmt: skip
    for row in rows:
        assert row["spill"] == [0, 0, 0] or row["kernel"] == "draw"
        assert row["tensor"] > 0 or row["kernel"] not in ("forward", "backward", "update")
        assert row["programs"] >= 3 or row["kernel"] != "update" or arch == 80


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="compiles")
def test_batch_norm_compiles_without_spills(arch, bench, tmp_path, monkeypatch):
    from fastaae.kernels.step import layers, norms

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launched, compiler = [], bench("kernels").machine_code
    for module, name in ((norms, "_norm_kernel"), (norms, "_norm_backward_kernel"), (layers, "_update_kernel")):
        monkeypatch.setattr(module, name, Launched(getattr(module, name), launched))
    for b, dtype in ((100, torch.bfloat16), (20, torch.float32), (512, torch.float16), (1000, torch.bfloat16)):
        rows, row = torch.empty(2, b, 3000, device="meta"), torch.empty(2, 1, 3000, device="meta")
        x = torch.empty(2, b, 3008, dtype=dtype, device="meta")[..., :3000]
        for momentum in (0.0, 0.1):
            norms.batch_norm(x, row, row, (row, row), momentum, (rows, row), x, True)
        norms.batch_norm_backward(x, row, rows, row, x, row, row)
    monkeypatch.setattr(layers, "capability", lambda t: arch // 10)
    for correction in (None, row):
        some = [(row, (row, row) if correction is not None else (row,), row)] * 6
        norms.steps(some, row[..., :1], correction, 0.9, row)
    assert len(launched) == 14
    for kernel, args, options in launched:
        found = compiler(kernel, args, options, arch)
        assert found["spill"] == [0, 0, 0] and found["programs"] >= 2, (kernel, args, options, found)


class Launched:
    """A kernel whose launches are only written down."""

    def __init__(self, kernel, launched):
        self.kernel, self.launched = kernel, launched

    def __getitem__(self, grid):
        return lambda *args, **options: self.launched.append((self.kernel, args, options))


@pytest.mark.skipif(INTERPRETED, reason="needs no kernel")
def test_a_trace_is_set_beside_the_arithmetic(tmp_path, bench):
    bench_kernels = bench("kernels")
    events = [
        ("_forward_kernel", [7, 2, 1], 2.0),
        ("_forward_kernel", [7, 2, 1], 4.0),
        ("_forward_kernel", [7, 1, 1], 9.0),
    ]
    events = [{"cat": "kernel", "name": name, "args": {"grid": grid}, "dur": us} for name, grid, us in events]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": [*events, {"cat": "cpu_op", "name": "x"}]}))
    measured = bench_kernels.durations(tmp_path / "trace.json")
    row = {"kernel": "forward", "grid": (7, 2), "roofline_us": {"H100": 0.4, "H200": 1.5 - bench_kernels.GAP}}
    assert "".join(bench_kernels.beside(row, measured)) == "; measured 3.00, 2.0 x" and row["measured_us"] == 3
    assert not list(bench_kernels.beside(row | {"kernel": "finish", "grid": (1,)}, measured))


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(DEVICE, dtype)


def poisoned(*shape, dtype=torch.float32):
    return torch.full(shape, math.nan, dtype=dtype, device=DEVICE)


def within(value, exact, terms, dtype, weight):
    """Products of 16-bit numbers are exact in float32; `terms` of them, of absolute sum `weight`, round at each sum;
    then the result rounds once to dtype. The interpreter rounds to bf16 toward zero."""
    bound = 2 * UNIT[dtype] * exact.abs() + (terms + 4) * 2**-23 * weight + 1e-7
    assert ((value.double() - exact).abs() <= bound).all(), ((value.double() - exact).abs() / bound).max()


@VALUES
@HALF
@SHAPED
@pytest.mark.parametrize("relu", [False, True])
def test_linear(r, b, i, o, relu, dtype):
    x, w, bias = randn(r, b, i, dtype=dtype), randn(r, o, i, dtype=dtype), randn(r, 1, o)
    exact = torch.baddbmm(bias.double(), x.double(), w.double().transpose(1, 2))
    weight = torch.baddbmm(bias.double().abs(), x.double().abs(), w.double().abs().transpose(1, 2))
    exact = exact.relu() if relu else exact
    for kind in (dtype, torch.float32):
        out = poisoned(r, b, o, dtype=kind)
        layers.linear(x, w, bias, out, relu)
        within(out, exact, i, kind, weight)
    wide, narrow = poisoned(r, 2 * b, o + 3), poisoned(r, b, o)  # a part of a larger buffer, as codes are
    layers.linear(x.float(), w, bias, wide[:, b:, 3:], relu)
    layers.linear(x, w, bias, narrow, relu)
    assert torch.equal(wide[:, b:, 3:], narrow) and wide[:, :b].isnan().all() and wide[:, :, :3].isnan().all()


@VALUES
@HALF
@SHAPED
def test_linear_backward(r, b, i, o, dtype):
    grad, w, a = randn(r, b, o, dtype=dtype), randn(r, o, i, dtype=dtype), randn(r, b, i, dtype=dtype).relu()
    exact, weight = (torch.bmm(f(grad.double()), f(w.double())) for f in (lambda t: t, torch.abs))
    for activation, expected in ((None, exact), (a, exact * (a > 0))):
        out = poisoned(r, b, i, dtype=dtype)
        layers.linear_backward(grad, w, out, activation)
        within(out, expected, o, dtype, weight)


FOLDED = pytest.mark.parametrize("r,b,i,o,z", [(1, 20, 40, 72, 3), (2, 17, 33, 70, 16), (5, 40, 48, 130, 1)])


@VALUES
@HALF
@FOLDED
def test_a_layer_leaves_partial_sums_that_the_next_one_adds_up(r, b, i, o, z, dtype):
    x, w, bias, first = randn(r, b, i, dtype=dtype), randn(r, o, i, dtype=dtype), randn(r, 1, o), 5
    narrow, offset, after, more = (
        randn(r, z, o, dtype=dtype),
        randn(r, 1, z),
        randn(r, o, z, dtype=dtype),
        randn(r, 1, o),
    )
    alone, out, sums = poisoned(r, b, o, dtype=dtype), poisoned(r, b, o, dtype=dtype), layers.partial_sums(w, b, o)
    layers.linear(x, w, bias, alone, True)
    layers.linear(x, w, bias, out, True, then=(narrow, sums.fill_(math.nan)))
    assert torch.equal(out, alone) and (r < 5 or sums.shape[1] > 1)
    wide, h = randn(r, first + b, z + 2), poisoned(r, first + b, o, dtype=dtype)
    codes, before = wide[..., 2:], wide.clone()
    codes[:, first:] = math.nan
    layers.linear(codes, after, more, h, True, sums=(sums, offset))
    exact, weight = (
        torch.baddbmm(f(offset.double()), f(out.double()), f(narrow.double()).mT) for f in (lambda t: t, torch.abs)
    )
    within(codes[:, first:], exact, o, torch.float32, weight)
    assert torch.equal(wide[..., :2], before[..., :2]) and torch.equal(wide[:, :first], before[:, :first])
    expected = poisoned(r, first + b, o, dtype=dtype)
    layers.linear(codes, after, more, expected, True)
    assert torch.equal(h, expected)


@VALUES
@HALF
@FOLDED
def test_a_gradient_is_left_as_partial_sums(r, b, i, o, z, dtype):
    grad, w, a = randn(r, b, i, dtype=dtype), randn(r, i, o, dtype=dtype), randn(r, b, o, dtype=dtype).relu()
    below, above, h = randn(r, o, z, dtype=dtype), randn(r, z, o, dtype=dtype), randn(r, b, o, dtype=dtype).relu()
    alone, out, sums = poisoned(r, b, o, dtype=dtype), poisoned(r, b, o, dtype=dtype), layers.partial_sums(w, b, o)
    layers.linear_backward(grad, w, alone, a)
    layers.linear_backward(grad, w, out, a, then=(below, sums.fill_(math.nan)))
    assert torch.equal(out, alone)
    codes, found, expected = (
        poisoned(r, b, z + 3, dtype=dtype)[..., 3:],
        *(poisoned(r, b, o, dtype=dtype) for _ in "ab"),
    )
    layers.linear_backward(codes, above, found, h, sums=sums)
    exact, weight = (torch.bmm(f(out.double()), f(below.double())) for f in (lambda t: t, torch.abs))
    within(codes, exact, o, dtype, weight)
    layers.linear_backward(codes, above, expected, h)
    assert torch.equal(found, expected)


@VALUES
@HALF
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("sigmoid,cross_entropy", [(True, False), (False, False), (True, True)])
def test_a_layer_ends_in_the_loss(sigmoid, cross_entropy, scaled, dtype):
    r, b, i, o = 2, 19, 40, 150
    x, w, bias, target = (
        randn(r, b, i, dtype=dtype),
        randn(r, o, i, dtype=dtype) / 4,
        randn(r, 1, o),
        torch.rand(r, b, o),
    )
    target, scale = target.to(DEVICE), torch.tensor([8.0, 0, 0], device=DEVICE) if scaled else None
    grad, terms = poisoned(r, b, o, dtype=dtype), torch.zeros(r, 20 * b, device=DEVICE)
    layers.linear(x, w, bias, grad, False, then=(target, terms, scale, sigmoid, cross_entropy))
    logits = torch.baddbmm(bias.double(), x.double(), w.double().mT)
    what = ("sigmoid" if sigmoid else "linear", "cross_entropy" if cross_entropy else "squared_error")
    exact, rows = poisoned(r, b, o, dtype=D64), poisoned(r, b, dtype=D64)
    reference.reconstruction_loss(
        logits, target.double(), exact, rows, *what, None if scale is None else scale.double()
    )
    tiles = layers.partial_sums(w, b, o).shape[1]
    assert tiles > 1 and terms[:, tiles * b :].eq(0).all() and terms[:, : tiles * b].ne(0).all()
    torch.testing.assert_close(terms.view(r, 20, b).sum(1).double(), rows, rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), exact, rtol=2 * UNIT[dtype], atol=1e-6)


@VALUES
def test_networks_in_one_launch_keep_to_their_own():
    r, b, i, o = 2, 20, 40, 24
    half = {"dtype": torch.float16}
    some = [(randn(r, b, i, **half), randn(r, o, i, **half), randn(r, 1, o), poisoned(r, b, o)) for _ in range(3)]
    calls = [(layers.linear, *each, True) for each in some]
    kernels.together(*(iter([call]) for call in calls))
    for x, w, bias, out in some:
        alone = poisoned(r, b, o)
        layers.linear(x, w, bias, alone, True)
        assert torch.equal(out, alone)
    wide = randn(r, b, 2 * i, **half)[..., ::2]
    other = (some[0][0], some[0][1][:, :5])
    assert kernels.alike(calls[0], calls[1]) and not kernels.alike((some[0][0],), (wide,))
    assert not kernels.alike(some[0][:2], other) and not kernels.alike(calls[0], (*calls[1][:-1], False))
    assert not kernels.alike((None,), (wide,)) and not kernels.alike((wide,), (wide.float(),))


def layer(r, b, i, o, dtype, moments):
    x, grad = randn(r, b, i, dtype=dtype), randn(r, b, o, dtype=dtype)
    weight, bias = randn(r, o, i), randn(r, 1, o)
    states = (tuple(randn(*p.shape).abs() for _ in range(moments)) for p in (weight, bias))
    return (x, grad, weight, bias, weight.to(dtype), *states)


def copied(some):
    return tuple(copied(t) if isinstance(t, tuple) else t.clone() for t in some)


def tensors(some):
    return [u for t in some for u in (tensors(t) if isinstance(t, tuple) else [t])]


@VALUES
@HALF
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("r,b", [(1, 1), (3, 20), (2, 130), (1, 300)])
def test_update_of_four_layers(r, b, adam, scaled, dtype):
    sizes = [(7, 3), (40, 72), (72, 1), (1, 70)] if INTERPRETED else [(784, 1000), (1000, 1000), (1000, 1), (8, 1000)]
    ours = [layer(r, b, i, o, dtype, 1 + adam) for i, o in sizes]
    if not scaled:
        for some in ours:
            some[4].fill_(math.nan)
    theirs, before = [copied(some) for some in ours], ours[1][2].clone()
    rate = torch.linspace(0.01, 0.1, r, device=DEVICE).view(r, 1, 1)
    correction = torch.tensor([0.1, 0.001], device=DEVICE) if adam else None
    scales = [torch.tensor([64.0, 0, 7], device=DEVICE) if scaled else None for _ in range(2)]
    if scaled:
        for some in (ours, theirs):
            some[1][1][0, 0, 5] = math.inf  # one column of a weight gradient
    with np.errstate(invalid="ignore"):
        layers.update(ours, rate, correction, 0.9, scale=scales[0])
    reference.update(theirs, rate, correction, 0.9, scale=scales[1])
    for one, two in zip(ours, theirs, strict=True):
        for a, e in zip(tensors(one)[2:], tensors(two)[2:], strict=True):
            assert a.isfinite().all()
            torch.testing.assert_close(
                a, e, rtol=2**-7 if a.dtype == torch.bfloat16 else 2e-3, atol=2e-4 * math.sqrt(b)
            )
        exact = torch.equal if not INTERPRETED else lambda a, e: torch.allclose(a.float(), e.float(), rtol=2**-7)
        assert exact(one[4], one[2].to(dtype))
    if scaled:
        assert torch.equal(scales[0], scales[1]) and scales[0].tolist() == [64, 1, 7]
        assert torch.equal(ours[1][2][0, 5], before[0, 5]) and not torch.equal(ours[1][2][0, 6], before[0, 6])


@VALUES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("r,b", [(1, 1), (3, 5)])
def test_losses_equal_their_twins(r, b, dtype):
    d, h, k = 1100, 40, 10
    scale = torch.tensor([8.0, 0, 0], device=DEVICE)
    close = {"rtol": max(2 * UNIT[dtype], 2e-5), "atol": 1e-5}
    for output, loss in (("sigmoid", "squared_error"), ("linear", "squared_error"), ("sigmoid", "cross_entropy")):
        logits, target = randn(r, b, d) * 3, torch.rand(r, b, d).to(DEVICE)
        results = []
        for module, wide in ((losses, torch.float32), (reference, D64)):
            grad, terms = poisoned(r, b, d, dtype=wide if wide == D64 else dtype), poisoned(r, b + 2, dtype=wide)[:, :b]
            module.reconstruction_loss(logits.to(wide), target.to(wide), grad, terms, output, loss, scale)
            results.append((grad.double(), terms.double()))
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a, e, **close)

    for real in (0, b, 2 * b):
        hidden, weight, bias = randn(r, 2 * b, h).relu().to(dtype), randn(r, 1, h, dtype=dtype), randn(r, 1, 1)
        results = []
        for module, wide in ((losses, torch.float32), (reference, D64)):
            mine = (lambda t: t) if wide != D64 else (lambda t: t.double())
            grad, below = (poisoned(r, 2 * b, n, dtype=dtype if wide != D64 else D64) for n in (1, h))
            terms, logits = poisoned(r, 2 * b, dtype=wide), poisoned(r, 2 * b, 1, dtype=wide)
            module.judge(mine(hidden), (mine(weight), mine(bias)), (logits, grad), below, terms, real)
            results.append((grad.double(), below.double(), terms.double()))
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a, e, rtol=2 * close["rtol"], atol=1e-5)

    codes = randn(r, 2 * b, k + 3) * 5
    y, labels = codes[:, b:, 3:], torch.randint(k, (r, b)).to(DEVICE)
    exact, before = y.double(), codes.clone()
    grad, terms = poisoned(r, b, k, dtype=dtype), poisoned(r, b)
    losses.softmax_cross_entropy(y, labels, grad, terms, scale)
    wide = poisoned(r, b, k, dtype=D64), poisoned(r, b, dtype=D64)
    reference.softmax_cross_entropy(exact, labels, *wide, scale)
    torch.testing.assert_close(grad.double(), wide[0], **close)
    torch.testing.assert_close(terms.double(), wide[1], **close)
    losses.softmax_(y)
    torch.testing.assert_close(y.double(), exact.softmax(-1), rtol=1e-5, atol=1e-7)
    assert torch.equal(codes[:, :b], before[:, :b]) and torch.equal(codes[:, :, :3], before[:, :, :3])
    grad = randn(r, b, k, dtype=dtype)
    wide = grad.double()
    reference.softmax_backward_(wide, y.double())
    losses.softmax_backward_(grad, y)
    torch.testing.assert_close(grad.double(), wide, **close)


@VALUES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("momentum,relu", [(0.0, True), (0.1, False), (1.0, True)])
@pytest.mark.parametrize("r,b,d", [(1, 2, 3), (3, 5, 70), (1, 100, 33), (2, 130, 16), (1, 513, 17), (1, 1100, 5)])
def test_batch_norm_equals_its_twin(r, b, d, momentum, relu, dtype):
    """In place and in parts of larger buffers, as in a step; of distant values, whose variance from squares would be
    lost, and of a column that has none."""
    buffers = [randn(r, b + 1, d + 2).add_(shift).to(dtype) for shift in (100, 0)]
    (x, grad), around = [t[:, 1:, 2:] for t in buffers], [t.clone() for t in buffers]
    x[..., 0] = 7
    learned, running = (randn(r, 1, d), randn(r, 1, d)), (randn(r, 1, d), randn(r, 1, d).abs())
    exact, given = [t.double() for t in (x, *learned, *running, grad)], grad.clone()
    kept, wide = ([poisoned(r, n, d, dtype=dt) for n in (b, 1, 1, 1)] for dt in (torch.float32, D64))
    reference.batch_norm(*exact[:3], exact[3:5], momentum, wide[:2], exact[0], relu)
    norms.batch_norm(x, *learned, running, momentum, kept[:2], x, relu)
    rounded = {"rtol": 2 * UNIT[dtype] + 2e-5, "atol": 2e-4}  # means of 100 have an error of 1e-5
    torch.testing.assert_close(x.double(), exact[0], **rounded)
    for a, e in zip((*kept[:2], *running), (*wide[:2], *exact[3:5]), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4)
    reference.batch_norm_backward(exact[5], exact[1], *wide[:2], exact[5], *wide[2:])
    norms.batch_norm_backward(grad, learned[0], *kept[:2], grad, *kept[2:])
    torch.testing.assert_close(grad.double(), exact[5], **rounded)
    for a, e in zip(kept[2:], wide[2:], strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4 * math.sqrt(b))
    for t, before in zip(buffers, around, strict=True):
        assert torch.equal(t[:, 0], before[:, 0]) and torch.equal(t[..., :2], before[..., :2])
    out = poisoned(r, b, d, dtype=dtype)
    norms.batch_norm_backward(given, learned[0], *kept[:2], out, *kept[2:])
    assert torch.equal(out, grad) and (momentum or torch.equal(running[0].double(), exact[3]))
    x[:, 0], before = math.nan, copied(running)
    norms.batch_norm(x, *learned, running, 0.0, kept[:2], x, True)
    assert x.isnan().all() and all(map(torch.equal, running, before))
    with pytest.raises(ValueError, match="batch_norm of 1 row: expected at least 2"):
        norms.batch_norm(x[:, :1], *learned, running, momentum, kept[:2], x[:, :1], relu)


@VALUES
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_steps_of_what_batch_norm_learns(adam, scaled):
    """Of seven parameters, which are two launches, replicas with rates and momenta of their own."""
    r = 3
    ours = [
        (randn(r, 1, o), tuple(randn(r, 1, o).abs() for _ in range(1 + adam)), randn(r, 1, o)) for o in range(61, 68)
    ]
    if scaled:
        ours[1][2][1, 0, 5] = math.inf
    theirs, before = [copied(some) for some in ours], [copied(some) for some in ours]
    rate, momentum = (torch.linspace(*ends, r, device=DEVICE).view(r, 1, 1) for ends in ((0.01, 0.1), (0.5, 0.9)))
    correction = torch.tensor([0.1, 0.001, 1], device=DEVICE) if adam else None
    scales = [torch.tensor([64.0, 0, 7], device=DEVICE) if scaled else None for _ in range(2)]
    with np.errstate(invalid="ignore"):
        norms.steps(ours, rate, correction, momentum, scales[0])
    reference.steps(theirs, rate, correction, momentum, scales[1])
    for one, two, old in zip(ours, theirs, before, strict=True):
        assert torch.equal(one[2], old[2]) and not torch.equal(one[0], old[0])
        for a, e in zip(tensors(one)[:-1], tensors(two)[:-1], strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)
    if scaled:
        assert torch.equal(scales[0], scales[1]) and scales[0].tolist() == [64, 1, 7]
        assert torch.equal(ours[1][0][1, 0, 5], before[1][0][1, 0, 5])


@VALUES
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # which 1 / (1 + exp(x)) turns into 0
@pytest.mark.parametrize("logit", [15.0, 25.0, 100.0, 1e4])
@pytest.mark.parametrize(
    "output,loss", [("sigmoid", "squared_error"), ("linear", "squared_error"), ("sigmoid", "cross_entropy")]
)
def test_losses_of_extreme_logits(output, loss, logit):
    logits = torch.tensor([logit, logit, logit, -logit, -logit, -logit], device=DEVICE).view(1, 1, 6)
    target = torch.tensor([0, 0.25, 1, 0, 0.25, 1], device=DEVICE).view(1, 1, 6)
    grad, terms, exact = poisoned(1, 1, 6), poisoned(1, 1), poisoned(1, 1, dtype=D64)
    losses.reconstruction_loss(logits, target, grad, terms, output, loss)
    reference.reconstruction_loss(logits.double(), target.double(), grad.double(), exact, output, loss)
    torch.testing.assert_close(terms.double(), exact, rtol=1e-6, atol=1e-6)


if RUNS:

    @triton.jit
    def _philox_kernel(out_ptr, seed_ptr, c1, c2, N: tl.constexpr):
        i = tl.arange(0, N)
        a, b, c, d = tl.philox(tl.load(seed_ptr), i, c1, c2, 0)
        tl.store(out_ptr + i, a.to(tl.int64))
        tl.store(out_ptr + N + i, b.to(tl.int64))
        tl.store(out_ptr + 2 * N + i, c.to(tl.int64))
        tl.store(out_ptr + 3 * N + i, d.to(tl.int64))


def philox(seed, c0, c1, c2, c3=0):
    """Philox 4x32-10 (Salmon et al. 2011): four numbers in [0, 2^32), int64, for every counter (c0, c1, c2, c3):
    the twin of what draws.py draws from."""
    mask, high = 2**32 - 1, lambda a, b: ((a >> 16) * b + ((a & 0xFFFF) * b >> 16)) >> 16
    c = [c0.long() & mask, *(torch.full_like(c0, v & mask, dtype=torch.int64) for v in (c1, c2, c3))]
    k0, k1 = seed & mask, seed >> 32 & mask
    a, b = 0xD2511F53, 0xCD9E8D57
    for _ in range(10):
        c = [high(c[2], b) ^ c[1] ^ k0, c[2] * b & mask, high(c[0], a) ^ c[3] ^ k1, c[0] * a & mask]
        k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
    return c


def test_philox_has_the_published_numbers():
    """Known answers of Random123's kat_vectors for philox4x32-10."""
    zeros = philox(0, torch.zeros(1, dtype=torch.int64), 0, 0, 0)
    assert [v.item() for v in zeros] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**32 - 1
    most = philox(2**64 - 1, torch.tensor([ones]), ones, ones, ones)
    assert [v.item() for v in most] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@VALUES
@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345678901])
def test_philox_equals_its_twin_bit_for_bit(seed):
    out, seeds = torch.zeros(4, 64, dtype=torch.int64, device=DEVICE), torch.tensor([seed], device=DEVICE)
    _philox_kernel[(1,)](out, seeds, 3, 77, 64)
    assert torch.equal(out.cpu(), torch.stack(philox(seed, torch.arange(64), 3, 77)))


def normals(seed, elements, stream, step):
    """What draws.py makes of Philox, in float64."""
    a, b, *_ = philox(seed, elements, stream, step)
    a, b = (v >> 8 for v in (a, b))
    return (-2 * ((a + 1).double() / 2**24).log()).sqrt() * (b.double() / 2**24 * 2 * math.pi).cos()


@VALUES
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32], ids=str)
def test_draw(kind, noise):
    n, d, r, b, m, z, k = 50, 1030, 2, 6, 4, 3, 5
    data = torch.randint(256, (n, d)).to(kind)
    scaled = data.double() / (255 if kind == torch.uint8 else 1)
    data, y = data.to(DEVICE), torch.arange(n, device=DEVICE) % k
    order, labeled_order = (torch.randint(n, (r, size), device=DEVICE, dtype=torch.int32) for size in (3 * b, 3 * m))
    count, seeds = torch.tensor([2, 2**33 + 9], device=DEVICE), torch.tensor([5, 2**60 + 1], device=DEVICE)
    clean = poisoned(r, b, d) if noise else None
    noisy, images = poisoned(r, b, d), poisoned(r, m, d)
    labels, codes = torch.full((r, m), -1, device=DEVICE), poisoned(r, 2 * b, z + k)
    labeled = (labeled_order, images, labels)
    draws.draw((data, y), count, seeds, (order, clean, noisy), noise, (codes[:, :b], 2.0, z), labeled)
    step = (2**33 + 9) % 2**32
    for j, seed in enumerate(seeds.tolist()):
        rows, marked = (o[j, 2 * size : 3 * size].long().cpu() for o, size in ((order, b), (labeled_order, m)))
        for found, rows_, stream in ((noisy[j], rows, 0), (images[j], marked, 1)):
            elements = torch.arange(found.numel()).view_as(found)
            expected = scaled[rows_] + noise * normals(seed, elements, stream, step)
            torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)
        if noise:
            assert torch.equal(clean[j].cpu(), scaled[rows].float())
        assert torch.equal(labels[j].cpu(), y.cpu()[marked])
        expected = 2 * normals(seed, torch.arange(b * z).view(b, z), 2, step)
        torch.testing.assert_close(codes[j, :b, :z].cpu().double(), expected, rtol=1e-5, atol=1e-5)
        drawn = philox(seed, torch.arange(b), 3, step)[0] * k >> 32
        assert torch.equal(codes[j, :b, z:].argmax(1).cpu(), drawn) and (codes[j, :b, z:].sum(1) == 1).all()
    assert codes[:, b:].isnan().all()


@VALUES
def test_draws_are_normal_and_uniform():
    r, b, z, k = 1, 1024 if INTERPRETED else 65536, 2, 10
    codes, count = poisoned(r, b, z + k), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    image = torch.zeros(1, 1, dtype=torch.uint8, device=DEVICE)
    order = torch.zeros(r, b, dtype=torch.int32, device=DEVICE)
    draws.draw((image, None), count, count[:1] + 7, (order, None, poisoned(r, b, 1)), 0.0, (codes, 5.0, z))
    x, se = codes[0, :, :z].double() / 5, 1 / math.sqrt(b * z)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # variances of x, x², x³, x⁴
        assert abs(x.pow(power).mean().item() - moment) < 5 * se * math.sqrt(spread)
    share = codes[0, :, z:].double().mean(0)
    assert ((share - 1 / k).abs() < 5 * math.sqrt(0.09 / b)).all()
    assert abs((x[:, 0] * x[:, 1]).mean().item()) < 5 / math.sqrt(b)


@VALUES
@pytest.mark.parametrize("scaled", [False, True])
def test_finish(scaled):
    terms, count, slot = randn(3, 37, 2050), torch.tensor([4, 9], device=DEVICE), torch.tensor(2, device=DEVICE)
    for scale in ([8.0, 0, 3], [8.0, 1, 3], [8.0, 0, 1999], [1.0, 1, 0]) if scaled else [None]:
        results = []
        for module in (losses, reference):
            state = [poisoned(4, 3, 37), slot.repeat(3, 37), count.clone()]
            scale_ = None if scale is None else torch.tensor(scale, device=DEVICE)
            module.finish(terms, *state, scale_)
            results.append([*state, *([] if scale is None else [scale_])])
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5, equal_nan=True)


def config(task, **fields):
    fields = {"hidden": (16, 12), "style_dim": 3, "prior_std": 2.0, "init_std": 0.3, "batch_size": 10, **fields}
    fields |= {"n_labeled": 12} if task == "semi_supervised" else {}
    rates = {"lr_reconstruction": 1e-3, "lr_adversarial": 1e-3, "lr_classification": 1e-3}
    fields |= rates if fields.get("optimizer") == "adam" else {}
    fields |= {"n_clusters": 4} if task == "clustering" else {}
    noise = 0.0 if task == "gan" else 0.1
    return Config(**{"task": task, "log_every": 10, "input_noise": noise, "replicas": 2, **fields})


KINDS = [  # of steps
    (task, {"optimizer": optimizer, "precision": precision})
    for task in PHASES
    for optimizer in ("sgd", "adam")
    for precision in ("fp32", "fp16", "bf16")
    if optimizer == "sgd" or task in ("unsupervised", "semi_supervised")
]
KINDS += [
    (task, {"optimizer": optimizer, "precision": precision, **fields})
    for precision in ("fp32", "fp16", "bf16")
    for task, optimizer, fields in (
        ("clustering", "adam", {"batch_norm": "encoder"}),
        ("unsupervised", "sgd", {"batch_norm": "autoencoder", "dropout": 0.2}),
        ("gan", "adam", {"batch_norm": "autoencoder", "input_noise": 0.3, "dropout": 0.2}),
        ("unsupervised", "sgd", {"regularizer": "mmd"}),
        ("unsupervised", "adam", {"regularizer": "kl", "posterior": "gaussian"}),
    )
]


def dataset():
    rng = np.random.default_rng(0)
    return from_arrays((rng.integers(0, 256, (120, 20)).astype(np.uint8), np.arange(120) % 3), n_validation=20)


@VALUES
@pytest.mark.parametrize(("task", "fields"), KINDS)
def test_whole_steps_equal_those_of_plain_torch(task, fields, monkeypatch):
    """Once with rows of 72 and 76, which kernels.zeros() spreads over 128."""
    precision = fields["precision"]
    if INTERPRETED and precision == "bf16":
        pytest.skip("the interpreter rounds to bf16 toward zero, torch to nearest")
    padded = (task, fields) == ("unsupervised", {"optimizer": "sgd", "precision": "fp16"})
    sizes = {"hidden": (72, 76), "init_std": 0.1} if padded else {}
    cfg = config(task, **fields, **sizes)
    ours = Step(cfg, dataset(), DEVICE)
    with monkeypatch.context() as plain:  # what computes a step is chosen when it is made
        plain.setattr(kernels, "triton_takes", lambda t: False)
        theirs = Step(cfg, dataset(), DEVICE)
    for step in (ours, theirs):
        step.start_epoch(0)

    def same() -> None:
        for feed, other in zip(theirs.batches.feeds, ours.batches.feeds, strict=True):
            feed.input.copy_(other.input)
            feed.target.copy_(other.target)
        theirs.codes.buffer.copy_(ours.codes.buffer)  # prior samples, labels; what the encoder makes it makes again
        if cfg.classifies:
            theirs.batches.labels.copy_(ours.batches.labels)
        if ours.player.noise is not None:
            theirs.player.noise.copy_(ours.player.noise)
        for name, (_, tape) in ours.batches.passes.items():
            for mask, other in zip(theirs.batches.passes[name][1].masks, tape.masks, strict=True):
                mask.copy_(other)

    theirs.batches.draw = same
    steps = 2 if padded or INTERPRETED else 4  # of the second, momenta are not zero
    for _ in range(steps):
        ours()
        theirs()
    loose = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}[precision]
    torch.testing.assert_close(ours.losses[:steps], theirs.losses[:steps], rtol=loose, atol=loose)
    assert ours.batches.count.tolist() == theirs.batches.count.tolist() == [steps, steps]
    for name, p in theirs.parameters().items():
        found, size = ours.parameters()[name], p.norm().item()
        assert (found - p).norm().item() <= 4 * loose * size + 1e-4, name


@VALUES
@pytest.mark.parametrize("task,launches", [("semi_supervised", (41, 51)), ("clustering", (39, 45))])
def test_two_discriminators_in_one_launch_have_the_bits_of_two(task, launches, monkeypatch):
    """Of clusters, whose z and y differ in size, the layers after the first share launches."""
    fields = {"precision": "fp16", "hidden": (24, 40), **({} if task == "clustering" else {"dropout": 0.2})}
    found, counts, steps = [], [], 1 if INTERPRETED else 3
    for apart in (False, True):
        with monkeypatch.context() as patch:
            if apart:
                patch.setattr(kernels, "alike", lambda a, b: False)
            step, count = Step(config(task, **fields), dataset(), DEVICE), []
            step.start_epoch(0)
            for module in (draws, layers, losses, norms):
                for name, kernel in list(vars(module).items()):
                    if name.endswith("_kernel"):
                        patch.setattr(module, name, Counted(kernel, count))
            for _ in range(steps):
                step()
            found.append({**step.state(), "losses": step.losses, "codes": step.codes.buffer_gradient})
            counts.append(len(count) // steps)
    assert tuple(counts) == launches
    for name, t in found[0].items():
        assert torch.equal(t, found[1][name]), name


@VALUES
@pytest.mark.parametrize(
    "fields,launches",
    [
        ({}, 27),
        ({"dropout": 0.2}, 30),
        ({"regularizer": "mmd"}, 15),
        ({"style_dim": 17}, 31),
        ({"hidden": (24,)}, 21),
        ({"batch_norm": "encoder"}, 45),
    ],
    ids=str,
)
def test_launches_of_a_step(fields, launches, monkeypatch):
    """Codes are folded where nothing comes between the layers that leave and sum them; a dropout is not of Triton."""
    step, count = Step(config("unsupervised", precision="fp16", **fields), dataset(), DEVICE), []
    step.start_epoch(0)
    for module in (draws, layers, losses, norms):
        for name, kernel in list(vars(module).items()):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Counted(kernel, count))
    step()
    assert len(count) == launches


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel, count):
        self.kernel, self.count = kernel, count

    def __getitem__(self, grid):
        self.count.append(grid)
        return self.kernel[grid]


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="captures on a CUDA device")
@pytest.mark.parametrize(("task", "fields"), KINDS)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_captured_steps_equal_eager_ones(task, fields):
    """200 steps over several epochs, with the rates changed in between; no synchronisation while replaying."""
    states = []
    for captured in (False, True):
        step = Step(config(task, **fields, log_every=100), dataset(), DEVICE)
        step.start_epoch(0)
        run = Replay(step, step.carried(), step.batches.generators, DEVICE, size=4) if captured else None
        for epoch in range(20):
            step.start_epoch(epoch)
            step.slot.zero_()
            step.rates["adversarial"].fill_(0.05 / (1 + epoch))
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                if captured:
                    run(10)
                else:
                    for _ in range(10):
                        step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        states.append({k: t.clone() for k, t in step.state().items()} | {"losses": step.losses[:10].clone()})
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name

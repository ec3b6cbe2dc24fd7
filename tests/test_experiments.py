"""The prototypes of bench/experiments against float64 and a plain step, and the check of what may change places.

As in test_step_kernels.py, values are compared where Triton interprets, in a pytest of its own that a test here starts.
Products are of fp16 there: the interpreter truncates to bf16. A step of "bf16" has no scale of gradients then, either.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from fastaae import Config, kernels
from fastaae.data import from_arrays
from fastaae.engine import step as engine
from fastaae.kernels import reference

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "bench"))
TRITON = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
VALUES = pytest.mark.skipif(not (TRITON and INTERPRETED), reason="Triton runs in its interpreter's own pytest")
SCHEDULES = pytest.mark.skipif(INTERPRETED or not TRITON, reason="needs Triton, and no values")
if TRITON:
    from experiments import launches as ls
    from experiments import masters, persistent, riders, rows, streams, tiles, timings


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="has been started by this test")
def test_values_in_the_interpreter(interpreted):
    interpreted(__file__)


def dataset():
    rng = np.random.default_rng(0)
    return from_arrays((rng.integers(0, 256, (120, 40)).astype(np.uint8), np.arange(120) % 3))


def made(monkeypatch, hidden=(72, 24), **fields):
    """A small step of one replica whose large layers have rows that are spread, and more tiles than one."""
    monkeypatch.setattr(kernels, "triton_takes", lambda t: t.dtype.itemsize < 8)
    monkeypatch.setitem(engine.COMPUTE, "bf16", torch.float16)
    given = {"hidden": hidden, "style_dim": 3, "init_std": 0.1, "batch_size": 20, "log_every": 10, "precision": "bf16"}
    given |= {"optimizer": "sgd", "lr_reconstruction": 0.02, "lr_adversarial": 0.1, **fields}
    step = engine.Step(Config(task="unsupervised", **given), dataset(), torch.device("cpu"))
    step.start_epoch(0)
    return step


def seconds(step):
    return [step.networks[name].shadows[1] for name in ("encoder", "discriminator.z")]


# ---------------------------------------------------------------------------------------------------------------------
# What may change places
# ---------------------------------------------------------------------------------------------------------------------


@SCHEDULES
def test_updates_ride_where_nothing_reads_what_they_write(monkeypatch):
    step = made(monkeypatch, (1000, 1000))
    plain = riders.second_shadows(ls.recorded(step, 2), seconds(step))
    found = riders.ride(plain)
    assert ls.conflicts(plain, plain) == ls.conflicts(plain, found) == []
    left = [len(ls.jobs(launch)) for launch in found if launch.name == "update"]
    assert left == [1, 1, 1] * 2, "the encoder's and the discriminator's first layer, which come next"
    few = riders.ride(plain, 20, 10, 30)
    assert ls.conflicts(plain, few) == [] and max(ls.works(launch)[-1].programs[0] for launch in few) > 30


def moved(plain, own, layer, host):
    """The launches of a step, but that one of the updates of a launch rides in another one."""
    some, found = ls.jobs(plain[own]), list(plain)
    job = some.pop(layer)
    found[own] = riders.of_jobs(plain[own], some)
    found[host] = riders.riding(plain[host], [(job, 0, sum(job.programs(riders.TILE)))])
    return found


RIGHT = [(8, 2, 7), (8, 0, 13), (8, 1, 24), (8, 1, 28), (11, 2, 12), (18, 2, 19), (25, 2, 27)]
WRONG = {
    "the encoder's second layer with the product that reads its weight": (11, 1, 10),
    "the decoder's first layer behind what writes the codes anew": (8, 0, 15),
    "the decoder's last layer with the product that reads its weight": (8, 2, 6),
    "the decoder's second layer before its gradient is there": (8, 1, 6),
    "the decoder's second layer with the next step's forward": (8, 1, 31),
    "the encoder's first layer with its forward": (11, 0, 12),
    "the discriminator's first layer behind its forward": (18, 0, 20),
    "the encoder's last layer behind what writes its input anew": (11, 2, 14),
}


@SCHEDULES
@pytest.mark.parametrize("where", RIGHT, ids=str)
def test_a_right_schedule_is_accepted(where, monkeypatch):
    plain = ls.recorded(made(monkeypatch), 2)
    assert ls.conflicts(plain, moved(plain, *where)) == []


@SCHEDULES
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_schedule_is_seen(what, monkeypatch):
    plain = ls.recorded(made(monkeypatch), 2)
    said = ls.conflicts(plain, moved(plain, *WRONG[what]))
    assert said and all("the one writes what the other needs" in line and "update" in line for line in said)


@SCHEDULES
def test_what_is_left_out_or_done_twice_is_seen(monkeypatch):
    step = made(monkeypatch, (300, 300))
    plain = ls.recorded(step, 2)
    found = riders.ride(plain, 10, 10, 10)
    first = next(k for k, launch in enumerate(found) if launch.name == "riding")
    behind = next(k for k, launch in enumerate(found) if launch.name == "riding" and k > first)
    for at, launch in ((first, riders.riding(plain[7], [])), (behind, found[first]), (first, found[behind])):
        said = ls.conflicts(plain, [*found[:at], launch, *found[at + 1 :]])
        assert any("left out, or in part" in line or "not expected here" in line for line in said)
    said = ls.conflicts(plain, [found[0], found[2], found[1], *found[3:]])
    assert said == ["forward, work 1, and forward, work 2: in launches 2 and 1, the one writes what the other needs"]
    with pytest.raises(ValueError, match="2 shadows are updated an odd number of times in 27 launches: record"):
        riders.second_shadows(plain[:27], [step.networks[n].shadows[1] for n in ("decoder", "discriminator.z")])
    with pytest.raises(ValueError, match="not by a kernel of Triton's"):
        ls.recorded(made(monkeypatch, optimizer="adam"))


# ---------------------------------------------------------------------------------------------------------------------
# Whole steps
# ---------------------------------------------------------------------------------------------------------------------


def after(step, launches):
    """What a step leaves after some launches, by name."""
    for launch in launches:
        launch()
    return {n: t.clone() for n, t in {**step.state(), "losses": step.losses}.items() if not n.startswith("generator.")}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


@VALUES
def test_launches_read_and_write_what_is_said_of_them(monkeypatch):
    """Each is done twice: at the second time, all bits are set of what it is not said to read."""
    step = made(monkeypatch, (24, 40), dropout=0.0)
    plain = rows.owned(tiles.in_tiles_of_25(riders.ride(riders.second_shadows(ls.recorded(step, 2), seconds(step)))))
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage() for launch in plain for t in ls.tensors(launch.args)}
    kept = {at: torch.empty(0, dtype=torch.uint8).set_(storage) for at, storage in memory.items()}

    def covered(some):
        masks = {at: torch.zeros(len(part), dtype=torch.bool) for at, part in kept.items()}
        for t in some:
            at = t.untyped_storage().data_ptr()
            index = torch.arange(len(kept[at]) // t.element_size()).as_strided(t.shape, t.stride(), t.storage_offset())
            for byte in range(t.element_size()):
                masks[at][index.flatten() * t.element_size() + byte] = True
        return masks

    for launch in plain[: len(plain) // 2]:
        works = ls.works(launch)
        reads, writes = (covered(t for w in works for t in getattr(w, what)) for what in ("reads", "writes"))
        before = {at: part.clone() for at, part in kept.items()}
        launch()
        done = {at: part.clone() for at, part in kept.items()}
        for at, part in kept.items():
            assert not ((part != before[at]) & ~writes[at]).any(), f"{launch.name} writes more"
            part.copy_(torch.where(reads[at] | writes[at], before[at], 255))
            part.copy_(torch.where(writes[at] & ~reads[at], 255, part))
        launch()
        for at, part in kept.items():
            written = writes[at] & ((done[at] != before[at]) | (part != 255))  # of what it may write
            assert torch.equal(part[written], done[at][written]), f"{launch.name} reads more"
            part.copy_(done[at])


@pytest.fixture(scope="module")
def real():
    """What two calls of a step leave."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        step = made(monkeypatch)
        for _ in range(2):
            step()
        return after(step, [])


@VALUES
def test_riders_leave_the_bits_of_updates_in_their_own_launches(monkeypatch, real):
    found = []
    for limits in (None, (160, 60, 600), (6, 3, 9)):
        step = made(monkeypatch)
        launches = riders.in_tiles_of_riders(ls.recorded(step, 2))
        if limits:
            launches = riders.ride(riders.second_shadows(launches, seconds(step)), *limits)
        found.append(after(step, launches))
    assert equal(found[0], found[1]) and equal(found[0], found[2])
    for name, t in real.items():
        torch.testing.assert_close(found[0][name], t, rtol=1e-5, atol=1e-6, msg=name)


@VALUES
@pytest.mark.parametrize("change", ["tiles of 25 rows", "owned rows", "both, and riders"])
def test_other_kernels_leave_the_same_weights(change, monkeypatch, real):
    changes = {"tiles of 25 rows": tiles.in_tiles_of_25, "owned rows": rows.owned}
    changes["both, and riders"] = lambda x: riders.ride(tiles.in_tiles_of_25(rows.owned(x)))
    step = made(monkeypatch)
    plain = ls.recorded(step, 2)
    launches = changes[change](plain)
    assert [launch.name for launch in launches] != [launch.name for launch in plain]
    found = after(step, launches)
    for name, t in real.items():
        close = (found[name].double() - t.double()).norm() <= 2e-3 * t.double().norm()
        assert close and found[name].isfinite().all(), name


@VALUES
def test_groups_of_replicas_are_the_replicas_of_one_step(monkeypatch):
    monkeypatch.setitem(engine.COMPUTE, "bf16", torch.float16)
    cfg = Config(task="unsupervised", hidden=(24, 16), style_dim=3, batch_size=5, precision="bf16", replicas=4)
    found = []
    for n in (1, 2):
        some = streams.groups(cfg, dataset(), torch.device("cpu"), n)
        streams.side_by_side(some, 1)()
        found.append([torch.cat(parts) for parts in zip(*(step.parameters().values() for step in some), strict=True)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(ValueError, match="n=3: expected a divisor of 4, the replicas"):
        streams.groups(cfg, dataset(), torch.device("cpu"), 3)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels, against float64
# ---------------------------------------------------------------------------------------------------------------------


def half(*shape):
    return torch.randn(*shape).half()


def near(value, exact, weight):
    """As test_step_kernels.within(), of fp16: a sum of products of absolute sum `weight`, rounded once at the end."""
    bound = 2**-10 * exact.abs() + 200 * 2**-23 * weight + 1e-7
    assert ((value.double() - exact).abs() <= bound).all()


@VALUES
@pytest.mark.parametrize("b", [25, 30, 100])
def test_products_in_tiles_of_25_rows(b, monkeypatch):
    from fastaae.kernels.step import layers

    r, i, o, z = 2, 70, 90, 3
    monkeypatch.setattr(layers, "tiling", lambda r, *_: {"BM": 64, "BN": 32, "BK": 64, "num_warps": 4, "num_stages": 4})
    x, w, bias, below = half(r, b, i), half(r, o, i), torch.randn(r, 1, o), half(r, z, o)
    out, sums = torch.full((r, b, o), torch.nan).half(), torch.full((r, 3, b, 16), torch.nan)
    target, grad, terms = torch.rand(r, b, o), torch.full((r, b, o), torch.nan).half(), torch.zeros(r, 3 * b)
    a, g, back = half(r, b, i).relu(), half(r, b, o), torch.full((r, b, i), torch.nan).half()

    def calls():
        layers.linear(x, w, bias, out, True, then=(below, sums))
        layers.linear(x, w, bias, grad, False, then=(target, terms, None, True, False))
        layers.linear_backward(g, w, back, a)

    for launch in tiles.in_tiles_of_25(ls.recorded(calls)):
        assert launch.name.endswith("_rows") and launch.grid[0] == -(-b // 25) * 3
        launch()
    d, product = torch.float64, lambda f: torch.baddbmm(f(bias.double()), f(x.double()), f(w.double()).mT)
    exact, weight = product(lambda t: t), product(torch.abs)
    near(out, exact.relu(), weight)
    torch.testing.assert_close(sums.sum(1)[..., :z].double(), out.double() @ below.double().mT, rtol=1e-5, atol=1e-4)
    wide, lines = torch.empty(r, b, o, dtype=d), torch.empty(r, b, dtype=d)
    reference.reconstruction_loss(exact, target.double(), wide, lines, "sigmoid", "squared_error")
    torch.testing.assert_close(grad.double(), wide, rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(terms.view(r, 3, b).sum(1).double(), lines, rtol=1e-4, atol=1e-6)
    near(back, (g.double() @ w.double()) * (a > 0), g.double().abs() @ w.double().abs())


@VALUES
@pytest.mark.parametrize("b", [20, 100])
def test_rows_are_stepped_and_used_at_once(b):
    from fastaae.kernels.step import layers

    r, i, o = 2, 70, 40
    x, grad, weight, bias = half(r, b, i), half(r, b, o), torch.randn(r, o, i), torch.randn(r, 1, o)
    state = ((torch.randn(r, o, i),), (torch.randn(r, 1, o),))
    layer = (x, grad, weight, bias, weight.half(), *state)
    exact = [t.double() for t in (x, grad, weight, bias, weight)], *([t.double() for t in part] for part in state)
    rate, out = torch.full((r, 1, 1), 1e-3), torch.full((r, b, o), torch.nan).half()

    def calls():
        layers.update([layer], rate, None, 0.9)
        layers.linear(x, layer[4], bias, out, True)

    (launch,) = rows.owned(ls.recorded(calls))
    launch()
    reference.update([(*exact[0], *exact[1:])], rate.double(), None, 0.9)
    for found, value in (
        (weight, exact[0][2]),
        (bias, exact[0][3]),
        (state[0][0], exact[1][0]),
        (state[1][0], exact[2][0]),
    ):
        torch.testing.assert_close(found.double(), value, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer[4], weight.half())
    product = [
        torch.baddbmm(f(bias.double()), f(x.double()), f(layer[4].double()).mT) for f in (lambda t: t, torch.abs)
    ]
    near(out, product[0].relu(), product[1])


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
def test_a_master_in_two_halves_has_every_bit():
    extreme = [0.0, 1.0, 65504, 1e-45, 3.4028235e38, torch.inf, 1.00390625, 1.01171875, 1.1754944e-38, torch.nan]
    extreme = torch.tensor([*extreme, *(-x for x in extreme)])
    bits = torch.randint(-(2**31), 2**31, (200_000,)).int()
    edges = torch.tensor(
        [0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x10000, 0x18000, 0x3F808000, 0x3F818000, -1, -(2**31), 2**31 - 1]
    )
    for w in (extreme, bits.view(torch.float32), edges.int().view(torch.float32), torch.randn(100_000)):
        high, low = masters.split(w)
        assert high.dtype == low.dtype == torch.int16
        assert torch.equal(masters.join(high, low).view(torch.int32), w.view(torch.int32))
        shadow, plain = high.view(torch.bfloat16).float(), w.bfloat16().float()
        middle = low == -(2**15)  # in which case the even one is the other one, half of the time
        same = (shadow == plain) | w.isnan()
        assert same[~middle].all() and (shadow.abs() >= plain.abs())[middle & ~w.isnan()].all()


def truncated(t):
    """To bf16, as the interpreter does."""
    return (t.contiguous().view(torch.int32) >> 16 << 16).view(torch.float32)


@VALUES
def test_masters_of_all_kinds_are_stepped_alike():
    r, m, o, i = 2, 50, 40, 72
    x, g, start, v = half(r, m, i), half(r, m, o), torch.randn(r, o, i), torch.randn(r, o, i)
    rate, tile = torch.tensor([0.01, 0.03]), {"BO": 16, "BI": 32, "BM": 32, "num_warps": 4}
    exact, moment = start.double(), v.double()
    found = []
    for pitch, is_split in ((i, False), (128, False), (i, True), (i, None)):
        w, momentum = (torch.zeros(r, o, pitch)[..., :i].copy_(t) for t in (start, v))
        high, low = masters.split(start.contiguous())
        state = (low, momentum, high) if is_split else (w, momentum, torch.zeros(r, o, i, dtype=torch.bfloat16))
        for _ in range(3):
            launch = masters.update(x, g, state, rate, **tile)
            (masters.streamed(x, g, state, rate, 3) if is_split is None else launch)()
        found.append((masters.join(state[2], state[0]) if is_split else w, momentum))
    for _ in range(3):
        moment = 0.9 * moment + g.double().mT @ x.double()
        exact -= rate.double().view(r, 1, 1) * moment
    for w, momentum in found[:3]:
        assert torch.equal(w, found[0][0]) and torch.equal(momentum, found[0][1])
    for w, momentum in (found[0], found[3]):
        torch.testing.assert_close(w.double(), exact, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(momentum.double(), moment, rtol=1e-5, atol=1e-4)
    assert torch.equal(state[2].float(), truncated(found[3][0]))


@VALUES
def test_a_kernel_that_stays_makes_its_products_in_turn():
    """In the interpreter programs follow each other: one for products, two for updates."""
    tile = {"ROWS": 10, "BM": 16, "BN": 32, "BK": 32, "BO": 32, "BI": 16, "BATCH": 32, "num_warps": 4}
    whole = persistent.Skeleton(20, 48, 6, torch.empty(0, dtype=torch.float16), tile)
    x, w, v = whole.activations[0].double(), whole.weights.double().clone(), torch.zeros(4, 48, 48, dtype=torch.float64)
    shadows, activations = whole.shadows.double(), [x]
    whole.launch(1, 2)()
    assert whole.count.tolist() == [6] and whole.jobs == [2, 5]
    for k in range(6):
        x = whole.activations[k].double()
        exact = (
            x @ shadows[k % 4] * (activations[k - 1] > 0) if k == 3 else x @ shadows[k % 4].T + whole.biases.double()
        )
        weight = x.abs() @ (shadows[k % 4] if k == 3 else shadows[k % 4].T).abs() + whole.biases.double().abs()
        near(whole.activations[k + 1], exact if k == 3 else exact.relu(), weight)
        activations.append(whole.activations[k + 1].double())
    for k in whole.jobs:
        v[k % 4] = 0.9 * v[k % 4] + activations[k].T @ activations[k - 1]
        w[k % 4] -= 1e-3 * v[k % 4]
    torch.testing.assert_close(whole.weights.double(), w, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.momenta.double(), v, rtol=1e-5, atol=1e-4)
    assert torch.equal(whole.shadows[4:][[1, 2]], whole.weights[[1, 2]].half())


# ---------------------------------------------------------------------------------------------------------------------
# What is compiled, and what is timed
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@SCHEDULES
def test_no_prototype_spills_and_none_loads_before_it_may(tmp_path):
    command = [sys.executable, ROOT / "bench" / "kernels.py", "--experiments", "--arch", "90"]
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert len(found) > 50 and {row.get("early") for row in found} == {None, 0}
    assert all(row["programs"] >= 3 or "TMA" in row["kernel"] for row in found)


@SCHEDULES
def test_a_figure_is_measured_once(tmp_path, capsys):
    path, calls = tmp_path / "figures.jsonl", []

    def figures(part="gaps", device="cpu"):
        return timings.Figures(path, part, device)

    def measure(us):
        calls.append(us)
        if us is None:
            raise RuntimeError("no stream")
        return {"us": us, "launches": 3}

    for _ in range(2):
        assert figures().add("one", 4.0, lambda: measure(3.0))["us"] == 3
    with pytest.raises(RuntimeError, match="no stream"):
        figures().add("other", 4.0, lambda: measure(None))  # a rehearsal stops
    for us in (None, 5.0, 6.0):
        figures(device="cuda").add("other", 4.0, lambda us=us: measure(us))
    figures("update").add("one", 4.0, lambda: measure(7.0))
    assert calls == [3, None, None, 5, 7]
    rows_ = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["part"], row["us"], row["predicted"]) for row in rows_] == [
        ("gaps", 3, 4), ("gaps", None, 4), ("gaps", 5, 4), ("update", 7, 4)]  # fmt: skip
    assert rows_[1]["failed"] == "RuntimeError: no stream" and rows_[0]["launches"] == 3
    path.write_text("".join(json.dumps(row | {"source": "of another commit"}) + "\n" for row in rows_))
    figures().add("one", 4.0, lambda: measure(8.0))
    assert calls[-1] == 8 and "predicted 4.0, launches 3" in capsys.readouterr().out


class Cuda:
    """What of torch.cuda a clock and streams use, where there is none: notes who waits for whom."""

    def __init__(self):
        self.said, self.now, self.streams = [], "main", 0

    def Stream(self, priority=0):
        self.streams += 1
        return Stream(self, f"{'high' if priority else 'low'} {self.streams}")

    def current_stream(self):
        return Stream(self, self.now)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream.name
        yield
        self.now = before

    @contextlib.contextmanager
    def graph(self, graph, stream):
        self.said.append("captured")
        yield

    def CUDAGraph(self):
        return types.SimpleNamespace(replay=lambda: self.said.append("replayed"))

    def Event(self, enable_timing):
        return types.SimpleNamespace(record=lambda stream: None, elapsed_time=lambda other: 6.0)

    def synchronize(self):
        pass


class Stream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.said.append(f"{self.name} waits for {other.name}")

    def synchronize(self):
        pass


@SCHEDULES
@pytest.mark.parametrize("low", [False, True])
def test_groups_wait_for_nobody_but_the_beginning(low, monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)

    class Group:
        def __init__(self, name):
            optimizer = types.SimpleNamespace(updates=[lambda: cuda.said.append(f"{name} updated on {cuda.now}")])
            self.name, self.device, self.optimizers = name, torch.device("cuda"), {"encoder": optimizer}

        def __call__(self):
            cuda.said.append(f"{self.name} on {cuda.now}")
            self.optimizers["encoder"].updates[0]()

    streams.side_by_side([Group("a"), Group("b")], 1, low)()
    one, two = ("high 1", "high 2") if low else ("low 1", "low 2")

    def group(name, stream, side):
        around = [f"{side} waits for {stream}"], [f"{stream} waits for {side}"]
        updated = [*around[0], f"{name} updated on {side}", *around[1]] if low else [f"{name} updated on {stream}"]
        return [f"{stream} waits for main", f"{name} on {stream}", *updated]

    ends = [f"main waits for {stream}" for stream in (one, two)]
    assert cuda.said == [*group("a", one, "low 3"), *group("b", two, "low 4"), *ends]


@SCHEDULES
def test_a_clock_warms_up_captures_and_replays(tmp_path, monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    f = timings.Figures(tmp_path / "figures.jsonl", "gaps", "cuda")
    found = f.clocked(lambda: cuda.said.append("body"), 3, lambda: {"replays": cuda.said.count("replayed")})
    assert cuda.said[:4] == ["body", "captured", "body", "replayed"] and cuda.said[4:] == ["replayed"] * (
        2 * 5 + 7 * 17
    )
    assert found == {"us": 6.0 * 1e3 / 17 / 3, "replays": 1}  # of 1.2 ms each, 17 take 20


@SCHEDULES
def test_a_part_has_its_seconds(tmp_path, monkeypatch, capfd):
    assert timings.LIMITS.keys() == timings.PARTS.keys() and sum(timings.LIMITS.values()) <= 9 * 60
    monkeypatch.setattr(timings, "LIMITS", {"gaps": 2, "update": 30, "groups": 30})
    script = tmp_path / "script.py"
    script.write_text("import sys, time\nprint(sys.argv[2:4], flush=True)\n"
                      "time.sleep(60 * ('gaps' in sys.argv))\nsys.exit('groups' in sys.argv)\n")  # fmt: skip
    with pytest.raises(SystemExit, match="not complete: gaps, groups$"):
        timings.run(script, ["gaps", "update", "groups"], tmp_path / "file", False)
    said = capfd.readouterr().out
    assert (
        "gaps: 2 seconds, stopped after 2 seconds; what it measured is kept" in said
        and "['--inside', 'update']" in said
    )

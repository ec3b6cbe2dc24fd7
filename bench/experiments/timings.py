"""The experiments that bench/gpu.sh runs: each part in a process of its own, each figure with what was predicted.

gaps        between launches of a graph that do nothing, dependent or not, and a barrier of all programs
skeleton    a step of mnist-likelihood, R = 1, as it is and as tiles.py, riders.py and rows.py make it of the same
            launches, and how far its weights are from those of the step as it is, as a share of their way; one of
            mnist-100 as it is
groups      16 replicas as one step, and as two and four on streams of their own
update      the updates of the step; a master in rows of 1,000 and 1,024 floats, in two halves, by TMA
persistent  a kernel that stays, if a barrier costs less than a microsecond

Figures are lines of JSON, appended as they come. Those that the same sources have measured are not measured again, so
that what a time limit has cut off goes on where it was. On a CPU everything runs once, small, in Triton's interpreter:
there are no streams, no graphs and no dependent launches there, and what would use them is called straight.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import triton

import fastaae
from fastaae.data import Data, from_arrays
from fastaae.engine.step import Step
from fastaae.run import provenance

from . import masters, persistent, riders, rows, streams, tiles
from .launches import Launch, conflicts, recorded

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"gaps": 40, "skeleton": 220, "groups": 130, "update": 80, "persistent": 60}
"""Seconds, nine minutes together, most of which compile."""
STEPS = 10  # in a graph


def source() -> str:
    """A digest of what is measured."""
    folders = ROOT / "kernels", ROOT / "fastaae" / "engine", ROOT / "bench" / "experiments"
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


class Figures:
    """Those of one part, in a file that holds those of all.

    Args:
        device: "cuda", or "cpu" for a rehearsal.
    """

    def __init__(self, path: Path, part: str, device: str):
        self.path, self.part, self.device, self.source = path, part, torch.device(device), source()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [row for row in map(json.loads, lines) if row["source"] == self.source and row["us"] is not None]
        self.known = {(row["part"], row["what"]): row for row in found}

    def add(self, what: str, predicted: float, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure, print and keep a figure, unless it is known: a row with "us", microseconds, None if that failed, and
        what else measure() says."""
        if (self.part, what) in self.known:
            return self.known[self.part, what]
        row: dict[str, Any] = {"part": self.part, "what": what, "us": None, "predicted": predicted}
        try:
            more = measure()
        except Exception as error:  # is a result, too, where a clock runs
            if self.device.type != "cuda":
                raise
            more = {"failed": f"{type(error).__name__}: {error}"[:300]}
        shown = "failed" if "failed" in more else f"{more['us']:.2f} us"
        rest = "".join(f", {name} {value}" for name, value in more.items() if name != "us")
        print(f"{self.part:11}{what:70}{shown:>11}, predicted {predicted:.1f}{rest}", flush=True)
        row |= more | {"source": self.source, "commit": provenance.git().get("commit"), "triton": triton.__version__}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def clocked(
        self, body: Callable[[], None], units: int = 1, after: Callable[[], Any] | None = None
    ) -> dict[str, Any]:
        """Microseconds of a unit, of which a body has so many: median of seven clocked runs of its graph; on a CPU 0.
        after: says what else there is, once the body has run twice."""
        body()
        if self.device.type != "cuda":
            body()
            return {"us": 0.0} | (after() if after else {})
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                body()
            graph.replay()
            stream.synchronize()
            more = after() if after else {}
            times, replays = [], 5
            for k in range(9):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record(stream)
                for _ in range(replays):
                    graph.replay()
                end.record(stream)
                stream.synchronize()
                times.append(start.elapsed_time(end) * 1e3 / replays / units)
                if k == 1:
                    replays = max(5, round(2e4 / units / times[-1]))  # 20 ms at least
        return {"us": median(times[2:])} | more


def many(launches: Sequence[Launch]) -> None:
    for launch in launches:
        launch()


def gaps(f: Figures) -> None:
    small, out = f.device.type == "cpu", torch.zeros(1024, dtype=torch.int32, device=f.device)
    for programs in (1,) if small else (1, 64, 132, 264):
        empty = Launch(persistent._empty_kernel, (programs,), (out, False), {"num_warps": 4})
        f.add(
            f"a launch that does nothing, {programs} programs",
            1.33,
            partial(f.clocked, partial(many, [empty] * 200), 200),
        )
    if not small:
        empty = empty._replace(grid=(132,), args=(out, True), options={"num_warps": 4, "launch_pdl": True})
        body = partial(many, [empty] * 200)
        f.add("the same of 132 programs, dependent on the one before", 0.4, partial(f.clocked, body, 200))
    for programs in (1,) if small else (64, 132, 264):
        f.add(f"a barrier of {programs} programs", 0.9, partial(barrier, f, programs))


def barrier(f: Figures, programs: int) -> dict[str, Any]:
    """What 64 more barriers of a launch cost, each."""
    count, out = (torch.zeros(n, dtype=torch.int32, device=f.device) for n in (1, programs))

    def body(n: int) -> None:
        count.zero_()
        options = {} if f.device.type == "cpu" else {"launch_cooperative_grid": True}
        persistent._barriers_kernel[(programs,)](count, out, n, num_warps=4, **options)

    few, more = (f.clocked(partial(body, n))["us"] for n in (16, 80))
    return {"us": (more - few) / 64}


def images(f: Figures) -> Data:
    """Noise, as large as MNIST's."""
    n, d, rng = (
        (6000, 784, np.random.default_rng(0)) if f.device.type == "cuda" else (120, 70, np.random.default_rng(0))
    )
    return from_arrays((rng.integers(0, 256, (n, d)).astype(np.uint8), np.arange(n) % 10))


def config(f: Figures, preset: str = "mnist-likelihood", replicas: int = 1) -> fastaae.Config:
    cfg = fastaae.preset(preset, replicas=replicas, precision="bf16", log_every=STEPS)
    if f.device.type == "cuda":
        return cfg
    return replace(cfg, hidden=(72, 76), batch_size=20, log_every=2, n_labeled=cfg.n_labeled and 50)


Variant = Callable[[Step, list[Launch]], list[Launch]]
"""Makes other launches of those of a step."""


def riding(step: Step, launches: list[Launch], shadows: bool = True) -> list[Launch]:
    """The updates of launches as riders; shadows: also those that need a second shadow."""
    seconds = [step.networks[name].shadows[1] for name in ("encoder", "discriminator.z")] if shadows else []
    launches = riders.second_shadows(launches, seconds)
    found = riders.ride(launches)
    if wrong := conflicts(launches, found):
        raise ValueError(f"{len(wrong)} conflicts: {wrong[0]}")
    return found


def skeleton(f: Figures) -> None:
    base = 132.0  # predicted; measured before the steps that GPU.md's plan ranks first: 146
    of_25, dependent = tiles.in_tiles_of_25, riders.dependent if f.device.type == "cuda" else list
    variants: dict[str, tuple[float, Variant]] = {
        "as it is": (base, lambda s, x: x),
        "riders": (base - 9, partial(riding, shadows=False)),
        "riders, second shadows": (base - 19.5, riding),
        "tiles of 25 rows": (base - 7, lambda s, x: of_25(x)),
        "tiles of 25 rows, riders, second shadows": (base - 26.5, lambda s, x: riding(s, of_25(x))),
        "riders, second shadows, dependent launches": (base - 29.5, lambda s, x: dependent(riding(s, x))),
        "tiles of 25 rows, riders, second shadows, dependent launches": (
            base - 36.5, lambda s, x: dependent(riding(s, of_25(x)))),
        "dependent launches": (base - 10, lambda s, x: dependent(x)),
        "riders, second shadows, rows used at once": (base - 21.5, lambda s, x: riding(s, rows.owned(x))),
        "all of these": (base - 38.5, lambda s, x: dependent(riding(s, of_25(rows.owned(x))))),
    }  # fmt: skip
    body, _, weights = stepping(f, lambda s, x: x)
    start = weights()
    for _ in range(2):
        body()
    for what, (predicted, variant) in variants.items():
        f.add(f"a step: {what}", predicted, partial(clocked_step, f, variant, (start, weights())))
    f.add("a step of mnist-100", 205.0, lambda: f.clocked(stepping(f, lambda s, x: x, "mnist-100")[0], STEPS))


def stepping(
    f: Figures, variant: Variant, preset: str = "mnist-likelihood"
) -> tuple[Callable[[], None], int, Callable[[], torch.Tensor]]:
    """A function that runs the launches of STEPS steps from the first of an epoch on, how many launches a step has, and
    a function that gives the weights."""
    step, pairs = Step(config(f, preset), images(f), f.device), STEPS // 2 if f.device.type == "cuda" else 1
    step.start_epoch(0)
    launches = variant(step, recorded(step, 2))

    def body() -> None:
        step.batches.count.zero_()
        step.slot.zero_()
        for _ in range(pairs):
            many(launches)

    return body, len(launches) // 2, lambda: torch.cat([t.flatten() for t in step.parameters().values()])


def clocked_step(f: Figures, variant: Variant, plain: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """Of mnist-likelihood, and how far its weights are from those of plain steps after two bodies, which moved from the
    first to the second of plain, as a share of that way."""
    body, launches, weights = stepping(f, variant)

    def compared() -> dict[str, Any]:
        return {"launches": launches, "difference": float((weights() - plain[1]).norm() / (plain[1] - plain[0]).norm())}

    return f.clocked(body, STEPS, compared)


def groups(f: Figures) -> None:
    size, times = (16, STEPS) if f.device.type == "cuda" else (2, 1)
    expected = {"mnist-likelihood": {1: 49.6, 2: 44.0, 4: 44.0}, "mnist-100": {1: 76.0, 2: 67.0}}
    expected = expected if f.device.type == "cuda" else {"mnist-100": {2: 67.0}}
    for preset, some in expected.items():
        for n, predicted in some.items():
            for low in (False, True) if n > 1 else (False,):

                def measure(preset: str = preset, n: int = n, low: bool = low) -> dict[str, Any]:
                    steps = streams.groups(config(f, preset, size), images(f), f.device, n)
                    run = streams.side_by_side(steps, times, low)

                    def body() -> None:
                        for step in steps:
                            step.batches.count.zero_()
                            step.slot.zero_()
                        run()

                    return f.clocked(body, times * size)

                what = f"a replica's step of {preset}, {n} groups of {size // n}"
                f.add(what + ", updates at low priority" * low, predicted, measure)


def update(f: Figures) -> None:
    gpu = f.device.type == "cuda"
    every = {1: (12.3, 12.3, 7.8), 16: (155.0, 155.0, 92.0)}
    for replicas, expected in every.items() if gpu else [(1, every[1])]:
        sets = 3 if replicas == 1 and gpu else 1  # in turn, so that they do not stay in the cache
        steps = [streams.groups(config(f, replicas=replicas), images(f), f.device, 1)[0] for _ in range(sets)]
        each = [[one for one in recorded(step) if one.name == "update"] for step in steps]
        for k, name in enumerate(("decoder", "encoder", "discriminator")):
            some = [of[k] for of in each]
            what = f"the {name}'s update, R = {replicas}"
            f.add(what, expected[k], partial(f.clocked, partial(many, some), sets))
            if replicas == 1 and k < 2:
                capped = [one._replace(options=one.options | ({"maxnreg": 64} if gpu else {})) for one in some]
                f.add(f"{what}, 64 registers", expected[k] - 1, partial(f.clocked, partial(many, capped), sets))
        kinds = {"in rows of 1,000": 75.0, "in rows of 1,024": 72.0, "split": 67.0, "by TMA": 80.0}
        for what, predicted in kinds.items():
            measure = partial(master, f, replicas, what)
            f.add(f"a weight of 1,000 x 1,000 {what}, R = {replicas}", predicted * replicas / 16, measure)


def master(f: Figures, replicas: int, kind: str) -> dict[str, Any]:
    """Six weights in turn where there is one replica, so that they do not stay in the cache; of sixteen two."""
    gpu, sets = f.device.type == "cuda", 6 if replicas == 1 else 2
    n, m, half = (1000, 100, torch.bfloat16) if gpu else (40, 20, torch.bfloat16)
    pitch = -(-n // 64) * 64 if kind == "in rows of 1,024" else n
    tile = masters.TILE if gpu else {name: n for name, n in masters.TILE.items() if name != "maxnreg"}
    launches = []
    for _ in range(sets if gpu else 1):
        x, g = (torch.randn(replicas, m, -(-n // 64) * 64, device=f.device).to(half)[..., :n] for _ in range(2))
        w, v = (torch.zeros(replicas, n, pitch, device=f.device)[..., :n] for _ in range(2))
        shadow = torch.zeros(replicas, n, -(-n // 64) * 64, dtype=half, device=f.device)[..., :n]
        state = (torch.zeros_like(w, dtype=torch.int16) if kind == "split" else w, v, shadow)
        rate = torch.full((replicas,), 1e-6, device=f.device)
        by_tma = kind == "by TMA"
        made = masters.streamed(x, g, state, rate, 132) if by_tma else masters.update(x, g, state, rate, **tile)
        launches.append(made)
    return f.clocked(partial(many, launches), len(launches))


def stay(f: Figures) -> None:
    gpu, like = f.device.type == "cuda", torch.empty(0, dtype=torch.bfloat16, device=f.device)
    cooperative = {"launch_cooperative_grid": True} if gpu else {}
    found = f.add("a barrier", 0.9, partial(barrier, f, 132 if gpu else 1))["us"]
    if found is None or found >= 1:
        print(f"a barrier takes {found} us, expected less than 1: the kernel that stays is not tried")
        return
    shapes = persistent.TILES if gpu else [persistent.WIDE | {"BK": 16, "BM": 16, "ROWS": 10}]
    for tile in shapes:
        for helpers in (0, 132) if gpu else (0, 1):

            def measure(tile: dict = tile, helpers: int = helpers) -> dict[str, Any]:
                whole = persistent.Skeleton(*((100, 1024, 15) if gpu else (20, 48, 5)), like, tile)
                launch = whole.launch(whole.chain(132) if gpu else 1, helpers, **cooperative)

                def body() -> None:
                    whole.count.zero_()
                    launch()

                return f.clocked(body, whole.stages)

            what = f"a product of a kernel that stays, {tile['ROWS']} rows, updates by {helpers} programs"
            f.add(what, 4.4, measure)


PARTS = {"gaps": gaps, "skeleton": skeleton, "groups": groups, "update": update, "persistent": stay}


def inside(part: str, path: Path, device: str) -> None:
    """One part, in this process."""
    PARTS[part](Figures(path, part, device))


def run(script: Path, parts: Sequence[str], path: Path, dry: bool) -> None:
    """Parts in turn, each by a process that runs inside(), which has its seconds. Raises: SystemExit, one failed."""
    if dry:
        print("on a CPU: what would be captured, on streams or dependent is called straight, and nothing is timed")
    failed = []
    for part in parts:
        started = time.perf_counter()
        command = [
            sys.executable,
            str(script),
            "experiments",
            "--inside",
            part,
            str(path),
            *(["--dry-run"] if dry else []),
        ]
        try:
            done = subprocess.run(command, timeout=600 if dry else LIMITS[part]).returncode
        except subprocess.TimeoutExpired:
            done = f"stopped after {LIMITS[part]} seconds; what it measured is kept, the next call goes on"
        print(f"{part}: {time.perf_counter() - started:.0f} seconds{f', {done}' if done else ''}", flush=True)
        failed += [part] if done else []
    if failed:
        raise SystemExit(f"not complete: {', '.join(failed)}")

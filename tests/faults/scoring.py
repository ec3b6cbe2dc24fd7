"""Streams, ranks, memory and processes that fail while samples are scored: R31 to R34."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastaae import parzen_log_likelihood

from .case import Check, Outcome
from .estimator import METHODS
from .inside import blocks_added_by
from .processes import SCRIPTS, environment, python, two_ranks


class Broken(Exception):
    """What a stream raises."""


def broken_stream(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    """The error names the sample or passes through; the partial sums are good, and the next try ends with the same
    bits."""
    n, d, block = int(rng.integers(200, 2000)), int(rng.choice([3, 40, 130])), int(rng.choice([16, 64, 100, 4096]))
    samples = rng.random((n, d)).astype(rng.choice([np.float32, np.float64]))
    queries, at = rng.random((7, d)), int(rng.integers(0, n))
    cuts = np.unique([0, *rng.integers(0, n, 6), n])
    options = {
        "sigma": float(rng.choice([0.1, 1.0])),
        "block": block,
        "n_samples": n,
        "method": str(rng.choice(METHODS)),
    }
    whole = parzen_log_likelihood(queries, samples, **options)
    kind = ("raises", "ends early", "goes on", "NaN", "infinite")[case % 5]

    def stream(broken: bool) -> Iterator[np.ndarray]:
        for k, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
            part = samples[start:stop].copy()
            if broken and kind in ("NaN", "infinite") and start <= at < stop:
                part[at - start, int(rng.integers(d))] = np.nan if kind == "NaN" else np.inf
            if broken and start <= at < stop and kind in ("raises", "ends early"):
                if kind == "raises":
                    raise Broken("the disk is gone")
                return
            yield part
            if broken and kind == "goes on" and k == len(cuts) - 2:
                yield samples

    expected = {
        "raises": "the disk is gone",
        "ends early": f"expected n_samples={n}",
        "goes on": f"expected n_samples={n}",
        "NaN": f"sample {at} holds NaN",
        "infinite": f"sample {at} holds NaN",
    }[kind]
    state = folder / "state"
    try:
        parzen_log_likelihood(queries, stream(True), state=state, **options)
        return Outcome(f"{kind}: accepted", wrong=True)
    except (Broken, ValueError) as error:
        if expected not in str(error) or isinstance(error, Broken) != (kind == "raises"):
            return f"{kind}: {error}"
        notes = getattr(error, "__notes__", ["samples had been scored"])
        if "samples had been scored" not in notes[0]:
            return f"{kind}: {notes}"
    again = parzen_log_likelihood(queries, stream(False), state=state, **options)
    same = np.array_equal(again.per_query, whole.per_query) and again.error_bound == whole.error_bound
    return None if same else Outcome(f"{kind}: other bits after the second try", wrong=True)


def broken_rank(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    fault, at = ("raise", "NaN", "exit", "kill", "hang", "stop")[case % 6], int(rng.integers(0, 20))
    start, launcher = time.monotonic(), fault not in ("hang", "stop")
    done = two_ranks(SCRIPTS / "rank_that_scores.py", fault, at, cwd=folder, patience=90, launcher=launcher)
    took = time.monotonic() - start
    said = Path(folder, "0.txt").read_text() if Path(folder, "0.txt").exists() else ""
    if done.returncode == 0 or said == "finished":
        return Outcome(f"{fault} at block {at}: exit {done.returncode}, rank 0 {said}", wrong=True)
    if fault in ("raise", "NaN"):
        right = said.startswith(f"RuntimeError: rank 1 failed after {512 * at} samples: ")
    elif fault == "kill":  # torchrun stops the others at once
        right = not said or said.startswith("RuntimeError: rank 1")
    else:
        right = said.startswith("RuntimeError: rank 1 has reached ") and "for timeout=3 s" in said
    return None if right else f"{fault} at block {at}, {took:.0f} s: rank 0 said {said!r}"


def out_of_memory(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    """Blocks above a size run out of memory, now at their start, now when they have been counted."""
    n, d = int(rng.integers(300, 3000)), int(rng.choice([3, 40, 130]))
    samples, queries = rng.random((n, d)), rng.random((9, d))
    block = int(2 ** rng.integers(4, 12))
    most = max(int(block // 2 ** rng.integers(0, 5)), 1)
    options: dict[str, Any] = {"sigma": float(rng.choice([0.1, 1.0])), "method": str(rng.choice(METHODS))}
    error = [MemoryError(), torch.OutOfMemoryError("HIP"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]

    def exhausting(add: Callable[[torch.Tensor], None], part: torch.Tensor) -> None:
        late = rng.random() < 0.5
        if late:
            add(part)
        if len(part) > most:
            raise error[case % 3]
        if not late:
            add(part)

    expected = parzen_log_likelihood(queries, samples, block=most, **options)
    with blocks_added_by(exhausting):
        result = parzen_log_likelihood(queries, samples, block=block, **options)
    gap = np.abs(result.per_query - expected.per_query).max()
    if not gap <= result.error_bound + expected.error_bound + 1e-12 * np.abs(expected.per_query).max():
        return Outcome(f"off by {gap:.1e}", wrong=True)
    # Halves of the first, incomplete, block may be smaller than what fits; else the blocks are the same.
    return None if n < block or np.array_equal(result.per_query, expected.per_query) else "other bits"


def killed(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    script = [SCRIPTS / "score_a_slow_stream.py", case, METHODS[case % 3], int(rng.random() < 0.5)]
    whole = python(*script, timeout=120)
    if whole.returncode:
        return whole.stderr[-300:]
    command = [sys.executable, *map(str, script), "state"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    for _ in range(2):
        with subprocess.Popen(command, cwd=folder, env=environment(), **streams) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.7))
            process.kill()
    done = python(*script, "state", cwd=folder, timeout=120)
    if done.returncode:
        return done.stderr[-300:]
    return None if done.stdout == whole.stdout else Outcome("other bits after two kills", wrong=True)


CHECKS = {
    "R31": Check("streams of samples that raise, end early, yield NaN", 100, broken_stream),
    "R32": Check("ranks that die or hang while they score", 12, broken_rank),
    "R33": Check("memory that runs out while samples are scored", 100, out_of_memory),
    "R34": Check("kill -9 while samples are scored, resumed", 10, killed),
}

"""Does anything pile up? Short runs, resumes, evaluations and likelihoods in one process, back to back, for hours.

    python bench/soak.py --minutes 120

A line a minute: rounds done, MiB resident, open file descriptors, threads. Exit status 1 if descriptors or threads are
not those of the hundredth round, or the memory of the last quarter lies more than 5 MiB above that of the second
(medians: allocators settle for a while).
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import fastaae

from .runs import resources
from .tiny import TINY


def use(folder: Path, seed: int) -> None:
    """What a user does in a minute, on small things."""
    cfg = fastaae.Config.from_dict({**TINY, "seed": seed, "epochs": 2, "out_dir": str(folder / "run")})
    fastaae.train(cfg, progress=False)
    model = fastaae.train(dataclasses.replace(cfg, epochs=4, out_dir=None), resume=folder / "run", progress=False).model
    images = np.random.default_rng(seed).random((20, 64), np.float32)
    model.reconstruct(images)
    alone = fastaae.load(folder / "run")
    alone.log_likelihood(images, 5_000, 0.3, state=folder / "state")
    fastaae.ParzenWindow(0.3).fit(alone.sample(500, 0).reshape(500, -1)).score_samples(images)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    options = parser.parse_args()
    marks: list[dict] = []  # one in ten rounds, or they themselves would be what piles up
    rounds, started = 0, time.monotonic()
    printed = started
    while time.monotonic() - started < 60 * options.minutes or len(marks) < 40:
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        use(folder, rounds)
        shutil.rmtree(folder)
        rounds += 1
        if rounds % 10 == 0:
            marks.append(resources())
        if marks and time.monotonic() - printed >= 60:
            printed = time.monotonic()
            print(f"{(printed - started) / 60:6.1f} minutes, {rounds} rounds: {marks[-1]}", flush=True)
    quarter = len(marks) // 4
    before, after = (
        {name: statistics.median(mark[name] for mark in part) for name in marks[0]}
        for part in (marks[quarter : 2 * quarter], marks[-quarter:])
    )
    same = all(before[name] == after[name] == marks[9][name] for name in ("descriptors", "threads"))
    flat = same and after["MiB"] - before["MiB"] < 5
    print(f"{rounds} rounds: {before} became {after}: {'flat' if flat else 'not flat'}")
    return int(not flat)

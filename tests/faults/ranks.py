"""Ranks that die or hang while they train, and ranks against runs alone: R27, R28."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from fastaae import cli

from .case import Check, Outcome, require
from .inside import NEWEST
from .processes import SCRIPTS, free_port, two_ranks
from .tiny import VARIANTS, forks, result, run_cli, said, start, write_config

POINTS = {"start": 0, "step": 60, "save": 8, "evaluation": 3, "gather": 0}  # and how often they are passed at most


def rank_of_two(rank: int, port: int, arguments: list[str]) -> int:
    """One of two ranks without a launcher."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return cli.main(arguments)


def undisturbed_ranks(folder: Path, arguments: list[str]) -> None:
    """Both ranks to their end."""
    port = free_port()
    for k in range(2):
        start(folder, rank_of_two, k, port, arguments, k=k)
    statuses = [forks(k).wait() for k in range(2)]
    require(statuses == [0, 0], f"exit status {statuses}: {said(folder)[-300:]}")


def of_ranks(folder: Path) -> list[str]:
    """The weights of both ranks' runs."""
    return [result(folder / "run" / f"rank-{k}")[0] for k in range(2)]


@functools.cache
def expected_of_ranks() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        undisturbed_ranks(Path(folder), write_config(Path(folder), replicas=2, log_every=25))
        return of_ranks(Path(folder))


def rank_dies(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R27: one of two ranks is killed, fails, leaves, is terminated or hangs at five points: all end, and go on as
    before."""
    fault = ("kill", "raise", "hang", "exit", "terminate")[case % 5]
    point = list(POINTS)[case // 5 % 5]
    at = int(rng.integers(POINTS[point] + 1))
    expected = expected_of_ranks()
    arguments = write_config(folder, replicas=2, log_every=25)
    script, launcher = SCRIPTS / "rank_that_trains.py", fault != "hang"
    done = two_ranks(script, fault, point, at, *arguments, cwd=folder, patience=60, launcher=launcher)
    seconds = time.time() - float((folder / "hit").read_text())
    require(done.returncode or (fault, point) == ("terminate", "gather"), f"{fault} at {point} {at}: exit status 0")
    saved = [(folder / "run" / f"rank-{k}" / NEWEST).exists() for k in range(2)]
    if all(saved):
        command = ["resume", "run"]
    else:
        command = arguments
        shutil.rmtree(folder / "run", ignore_errors=True)
    undisturbed_ranks(folder, command)
    equal = of_ranks(folder) == expected
    late = None if seconds <= (13 if fault == "hang" else 10) else f"{fault} at {point}: ended {seconds:.0f} s later"
    return Outcome(late if equal else "the result is not that of the undisturbed ranks", wrong=not equal)


def ranks_are_replicas(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R28: two ranks of one replica each are, bit for bit, the two runs of their seeds alone."""
    changes = {**VARIANTS[case % len(VARIANTS)], "replicas": 2, "seed": int(rng.integers(1000)), "epochs": 3}
    undisturbed_ranks(folder, write_config(folder, **changes))
    alone = []
    for k in range(2):
        one = {**changes, "replicas": 1, "seed": changes["seed"] + k}
        arguments = write_config(folder, **one)
        arguments[-1] = f"alone-{k}"
        require(run_cli(folder, arguments) == 0, said(folder)[-300:])
        alone.append(result(folder / f"alone-{k}")[0])
    equal = of_ranks(folder) == alone
    return Outcome(None if equal else "ranks and runs alone differ", wrong=not equal)


CHECKS = {
    "R27": Check("a rank dies or hangs", 25, rank_dies),
    "R28": Check("ranks against runs alone", 20, ranks_are_replicas),
}

"""What a check of bench/faults.py is: a fault, how often it is injected, and a function that injects it once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Outcome:
    """More than pass or fail of one case.

    Attributes:
        error: one line that says what went wrong; None for a pass.
        lost: steps that had to be trained again.
        wrong: whether something wrong was accepted in silence, the worst that can happen.
        inputs: how many inputs the case tried, where it tries many.
    """

    error: str | None = None
    lost: int = 0
    wrong: bool = False
    inputs: int = 1


class Skip(Exception):
    """This machine cannot inject the fault; the message says what is missing."""


class Check(NamedTuple):
    """One line of the table.

    Args:
        fault: what is injected, in a few words.
        cases: how many cases the full campaign runs; the quick one a tenth, at least one.
        run: run(rng, case, folder) injects one case, drawn from rng and its number alone, with a fresh folder to write
            to. It returns None for a pass, one line that says what went wrong, or an Outcome; an exception fails too.
    """

    fault: str
    cases: int
    run: Callable[[np.random.Generator, int, Path], str | Outcome | None]


def environment(**changes: str | None) -> dict[str, str]:
    """For a process that runs this checkout on one thread; None takes a variable away."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "", **changes}
    return {name: value for name, value in given.items() if value is not None}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_ranks_of(script: Path, *arguments: Any, launcher: bool, patience: float) -> int:
    """Two ranks run a script in its folder until they end or `patience` seconds have passed; then they are killed.

    Returns:
        The exit status of torchrun, or, without a launcher, of the first rank (torchrun gives another that hangs half
        a minute to end by itself); 99 where patience was over.
    """
    port, command = str(free_port()), [sys.executable]
    if launcher:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
        envs = [environment()]
    else:
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        envs = [environment(**world, RANK=k, LOCAL_RANK=k) for k in "01"]
    command += [script.name, *map(str, arguments)]
    with open(script.with_name("stderr"), "a") as err, open(script.with_name("stdout"), "a") as out:
        streams = {"cwd": script.parent, "stdout": out, "stderr": err, "start_new_session": True}
        processes = [subprocess.Popen(command, env=env, **streams) for env in envs]
        try:
            return processes[0].wait(patience)
        except subprocess.TimeoutExpired:
            return 99
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

"""Processes that tests and the campaign start: of this checkout, on one thread each."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
SCRIPTS = Path(__file__).with_name("scripts")


def environment(**changes: str | None) -> dict[str, str]:
    """For a process that runs this checkout on one thread; None takes a variable away."""
    paths = os.pathsep.join(map(str, (ROOT, TESTS)))
    given = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "", **changes}
    return {name: value for name, value in given.items() if value is not None}


def python(*arguments: Any, timeout: float = 300, cwd: Path | None = None, **changes: str | None):
    """An interpreter of this checkout, run to its end with what it prints captured.

    Args:
        changes: to the environment, as in `environment`.
    """
    command = [sys.executable, *map(str, arguments)]
    options = {"capture_output": True, "text": True, "errors": "replace"}
    return subprocess.run(command, cwd=cwd, env=environment(**changes), timeout=timeout, **options)


def suffer(fault: str, error: Exception) -> None:
    """Let this process raise an error, exit, hang, or be killed, terminated or stopped."""
    if fault == "raise":
        raise error
    if fault == "exit":
        os._exit(0)
    if fault == "hang":
        time.sleep(600)
    signals = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "stop": signal.SIGSTOP}
    if fault in signals:
        os.kill(os.getpid(), signals[fault])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_ranks(script: Path, *arguments: Any, cwd: Path, patience: float, launcher: bool = True):
    """Two ranks run a script until they end, or `patience` seconds have passed; then they are killed.

    Args:
        launcher: under torchrun; without it each is started by itself (torchrun gives a rank that hangs half a minute
            to end by itself).

    Returns:
        A subprocess.CompletedProcess of torchrun, or, without a launcher, of the first rank, with what all have
        printed. Raises subprocess.TimeoutExpired where patience was over.
    """
    if launcher:
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        envs = [environment()]
    else:
        command = []
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        envs = [environment(**world, RANK=k, LOCAL_RANK=k) for k in "01"]
    command = [sys.executable, *command, str(script), *map(str, arguments)]
    with open(cwd / "stderr", "a+") as err, open(cwd / "stdout", "a+") as out:
        streams = {"cwd": cwd, "stdout": out, "stderr": err, "start_new_session": True}
        processes = [subprocess.Popen(command, env=env, **streams) for env in envs]
        try:
            status = processes[0].wait(patience)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for file in (err, out):
            file.seek(0)
        return subprocess.CompletedProcess(command, status, out.read(), err.read())

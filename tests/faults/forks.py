"""Functions in processes of their own, forked from one that has imported what they need: a second faster than a new
interpreter.

As a program it reads lines of JSON, [folder, module, function, arguments, seconds]; for each it forks, runs the
function in that folder, its output in the files stdout and stderr there, for at most so many seconds (0: any number),
and prints the process id and then the exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from .processes import ROOT, TESTS, environment

READERS = ROOT / "fastaae" / "data"  # where matreader.py lies, which is run as a file, without fastaae and torch


class Forks:
    """Such a process, with these modules imported. It ends with this one."""

    def __init__(self, *modules: str) -> None:
        paths = os.pathsep.join(map(str, (ROOT, TESTS, READERS)))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", "faults.forks", *modules]
        env = environment(PYTHONPATH=paths, PYTHONWARNINGS="default")
        self.process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
        atexit.register(self.process.__exit__, None, None, None)  # closes its input, and waits for its end

    def start(self, folder: str | Path, module: str, function: str, *arguments: Any, seconds: int = 600) -> int:
        """Start a function with arguments that JSON can hold. Returns: the process id."""
        self.process.stdin.write(json.dumps([str(folder), module, function, arguments, seconds]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        return int(self.process.stdout.readline())


@functools.cache
def _mat_reader() -> Forks:
    return Forks("scipy.io", "matreader")


@contextlib.contextmanager
def forked_mat_reader() -> Iterator[list[int]]:
    """Inside, fastaae.data reads .mat files by forking. Yields: the exit statuses so far."""
    from .inside import matfiles  # not above: the process that forks for .mat files does without torch

    statuses = []

    def run(command: list[str], cwd: str, timeout: float, **_: Any) -> subprocess.CompletedProcess:
        assert command[:2] == [sys.executable, matfiles.READER] and timeout > 0
        _mat_reader().start(cwd, "matreader", "main", *command[2:], seconds=20)
        statuses.append(_mat_reader().wait())
        return subprocess.CompletedProcess(command, statuses[-1], None, Path(cwd, "stderr").read_bytes())

    with mock.patch.object(matfiles.subprocess, "run", run):
        yield statuses


def _run(module: str, function: str, arguments: list) -> int:
    """What Python would exit with."""
    try:
        return getattr(importlib.import_module(module), function)(*arguments) or 0
    except SystemExit as error:
        if not isinstance(error.code, str):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 70


def _main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    for line in sys.stdin:
        folder, *what, seconds = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(seconds)
            os.chdir(folder)
            for descriptor, file in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
                flags = os.O_RDONLY if descriptor == 0 else os.O_RDWR | os.O_CREAT | os.O_APPEND
                os.dup2(os.open(file, flags, 0o666), descriptor)
            status = _run(*what)
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _main()

"""Fixed seeds, deterministic operators, and uninitialised memory filled with NaN, so that reading it fails a test."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: small networks gain nothing from threads
torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def fixed():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # and torch.empty is then filled with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def interpreted():
    """Runs a file of tests in a pytest of its own where Triton interprets."""

    def run(file):
        if tuple(map(int, version("triton").split(".")[:2])) < (3, 7):
            pytest.skip("the interpreter of Triton 3.6 needs an older NumPy, and warns with that")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
        done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
        assert " passed" in done.stdout and "failed" not in done.stdout

    return run


@pytest.fixture(scope="session")
def bench():
    """Modules of bench/, by name."""
    return _bench


def _bench(name: str):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    module = sys.modules[f"bench_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bench_step():
    """The module bench/step.py, whose idiomatic training step is the reference of ours."""
    return _bench("step")


@pytest.fixture(scope="session")
def forks():
    """A process that forks for each .mat file."""
    return _bench("forks").Forks("scipy.io", "matreader")


@pytest.fixture
def fast_reader(monkeypatch, request):
    """fastaae.data.matfiles reads by forking; a list of the exit statuses so far."""
    from fastaae.data import matfiles

    statuses = []

    def run(command: list[str], cwd: str, **options):
        assert command[:2] == [sys.executable, matfiles.READER] and options["timeout"] > 0
        done = process.read_mat(command, cwd)
        statuses.append(done.returncode)
        return done

    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    process = request.getfixturevalue("forks")
    monkeypatch.setattr(subprocess, "run", run)
    return statuses

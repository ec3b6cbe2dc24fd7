"""Fixed seeds, deterministic operators, and uninitialised memory filled with NaN, so that reading it fails a test."""

from __future__ import annotations

import importlib.util
import os
import sys
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


@pytest.fixture(scope="session")
def bench_step():
    """The module bench/step.py, whose idiomatic training step is the reference of ours."""
    spec = importlib.util.spec_from_file_location("bench_step", ROOT / "bench" / "step.py")
    module = sys.modules["bench_step"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

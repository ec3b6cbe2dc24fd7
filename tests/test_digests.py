"""Small runs of every kind, and the estimator, compute what they always did: bits on a known processor, sums on all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import digests
import pytest


@pytest.fixture(scope="module")
def lines():
    """What the script prints, in a process of its own: [digest, sums, name] of each."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, digests.__file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [line.split(" ", 3) for line in done.stdout.splitlines()]


def test_sums_are_those_of_before(lines):
    golden = json.loads(digests.GOLDEN.read_text())["sums"]
    assert [name for *_, name in lines] == list(golden)
    for _, learned, drawn, name in lines:
        assert [float(learned), float(drawn)] == pytest.approx(golden[name], rel=1e-3), name


def test_bits_are_those_of_before(lines):
    golden = json.loads(digests.GOLDEN.read_text())["digests"].get(digests.machine())
    if golden is None:
        pytest.skip(f"no digests of {digests.machine()}: python tests/digests.py --write adds them")
    assert {name: digest for digest, *_, name in lines} == golden

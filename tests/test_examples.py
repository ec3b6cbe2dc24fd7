"""The examples and benchmarks run from start to end, on small networks."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

import fastaae
from fastaae import data

ROOT = Path(__file__).resolve().parent.parent


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("available", [True, False], ids=["mnist", "no-mnist"])
def test_quickstart(available, tmp_path, monkeypatch, capsys):
    if available and not Path(os.environ.get("FASTAAE_DATA", "nowhere"), "mnist").is_dir():
        pytest.skip("MNIST is not at hand")
    original, load = fastaae.preset, data.load

    def small(name, **changes):
        return original(name, **{**changes, "hidden": (8,), "epochs": 1})

    def without_mnist(dataset, *arguments):
        if dataset == "mnist" and not available:
            raise data.DataUnavailable("MNIST is nowhere")
        return load(dataset, *arguments)

    monkeypatch.setattr(fastaae, "preset", small)
    monkeypatch.setattr(data, "load", without_mnist)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", str(tmp_path / "run")])
    assert module(ROOT / "examples" / "quickstart.py").main() == 0
    for name in ("samples.png", "reconstructions.png", "codes.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    assert fastaae.load(tmp_path / "run" / "model.safetensors").config.style_dim == 2
    printed = capsys.readouterr().out
    assert "test reconstruction error" in printed
    assert printed.startswith("trained 1 epochs on 50,000 mnist" if available else "MNIST is neither on this machine")


def test_bench_step_prints_a_table_and_json(bench_step, monkeypatch, capsys):
    monkeypatch.setattr(bench_step, "preset", lambda name, **c: fastaae.preset(name, hidden=(16, 16), **c))
    monkeypatch.setattr(sys, "argv", ["step.py", "--rounds", "2", "--replicas", "1", "2"])
    assert bench_step.main() == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {(r["preset"], r["replicas"], r["contender"]): r["ms"] for r in result["rows"]}
    for name in ("mnist-likelihood", "mnist-100"):
        for replicas in (1, 2):
            assert all(rows[name, replicas, c] > 0 for c in ("fastaae", "floor", "idiomatic", "careful"))


def test_bench_step_refuses_to_time_a_wrong_step(bench_step, monkeypatch, capsys):
    monkeypatch.setattr(bench_step, "preset", lambda name, **c: fastaae.preset(name, hidden=(16, 16), **c))
    monkeypatch.setattr(bench_step.Idiomatic, "generator", lambda self, codes: codes["z"].sum())
    monkeypatch.setattr(sys, "argv", ["step.py", "--rounds", "1", "--replicas", "1"])
    assert bench_step.main() == 1
    assert "differ" in capsys.readouterr().err

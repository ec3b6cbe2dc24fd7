"""Everything the README tells a user to run, runs; and the files it names are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import fastaae
from fastaae import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
QUICK = {"epochs": 1, "hidden": (8, 8), "dataset": "digits"}  # what a preset is shrunk to here
ELSEWHERE = ("pip install", "make ", "python bench/", "python examples/")  # run by CI and test_examples.py


def commands(text):
    return [line for line in text.splitlines() if line.strip()]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """An empty folder, and presets that train for a moment."""
    monkeypatch.chdir(tmp_path)
    original = fastaae.preset

    def preset(name, **changes):
        return original(name, **{**changes, **QUICK, **({"epochs": 2} if changes.get("epochs") == 6 else {})})

    monkeypatch.setattr(fastaae, "preset", preset)
    monkeypatch.setattr(cli, "preset", preset)


@pytest.mark.parametrize(
    "code",
    [text for kind, text in BLOCKS if kind == "python"],
    ids=["quickstart", "sweep", "own-data", "estimators", "log-likelihood"],
)
def test_python_blocks_run(code, quick):
    exec(compile(code, "README.md", "exec"), {})


def test_shell_commands_run(quick, capsys):
    np.savez("mine.npz", x=np.random.default_rng(0).random((240, 4, 4), np.float32))
    inline = re.findall(r"`((?:fastaae|python|make|pip)[ ][^`]*)`", README)
    lines = [c for kind, text in BLOCKS if kind == "sh" for c in commands(text)] + inline
    assert len(lines) > 10
    ran = 0
    for line in lines:
        if line.startswith(ELSEWHERE):
            continue
        words = shlex.split(line)
        assert words[0] == "fastaae", line
        if "--help" in words:
            with pytest.raises(SystemExit) as stop:
                cli.main(words[1:])
            assert stop.value.code == 0
        else:
            words += ["--epochs", "1", "--hidden", "8"] if words[1] == "train" and "--config" not in words else []
            assert cli.main(words[1:]) == 0, line + capsys.readouterr().err
        ran += 1
    assert ran > 8


def test_inline_python_runs(quick):
    calls = re.findall(r"`(fastaae\.(?:train|preset)\([^`]*\))`", README)
    assert len(calls) == 2
    fastaae.train(fastaae.preset("digits", out_dir="runs/digits"))
    for call in calls:
        assert eval(call, {"fastaae": fastaae})


def test_files_named_exist():
    tree = next(text for kind, text in BLOCKS if kind == "")
    names = re.findall(r"\b(?:fastaae|kernels)/\w+\.py", tree) + re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert len(names) >= 13
    assert all((ROOT / name).is_file() for name in names), names


def test_experiments_table_lists_every_preset():
    assert set(re.findall(r"`([\w-]+)`", README.split("## Experiments")[1].split("The presets hold")[0])) == set(
        fastaae.presets()
    )

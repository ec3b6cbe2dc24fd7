"""Everything the README tells a user to run, runs; and the files it names are there."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pages import ROOT, blocks, commands, run_command, run_python

import fastaae

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks(README)


@pytest.mark.parametrize(
    "code",
    [text for kind, text in BLOCKS if kind == "python"],
    ids=["quickstart", "sweep", "own-data", "estimators", "log-likelihood"],
)
def test_python_blocks_run(code, quick):
    run_python(code, {}, where="README.md")


def test_shell_commands_run(quick):
    np.savez("mine.npz", x=np.random.default_rng(0).random((240, 4, 4), np.float32))
    inline = re.findall(r"`((?:fastaae|python|make|pip)[ ][^`]*)`", README)
    lines = [c for kind, text in BLOCKS if kind == "sh" for c in commands(text)] + inline
    assert len(lines) > 10
    assert sum(map(run_command, lines)) > 8


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

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
    ids=["use", "own-data", "log-likelihood"],
)
def test_python_blocks_run(code, quick):
    run_python(code, {}, where="README.md")


def test_shell_commands_run(quick):
    np.savez("mine.npz", x=np.random.default_rng(0).random((240, 4, 4), np.float32))
    inline = re.findall(r"`((?:fastaae|python|make|pip)[ ][^`]*)`", README)
    lines = [c for kind, text in BLOCKS if kind == "sh" for c in commands(text)] + inline
    assert len(lines) > 8
    assert sum(map(run_command, lines)) > 5


def test_inline_python_runs(quick):
    calls = re.findall(r"`(fastaae\.(?:train|preset)\([^`]*\))`", README)
    assert len(calls) == 1
    fastaae.train(fastaae.preset("digits", out_dir="runs/digits"))
    for call in calls:
        assert eval(call, {"fastaae": fastaae})


def test_files_named_exist():
    names = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert len(names) >= 15
    assert all((ROOT / name).is_file() for name in names), names


def test_it_is_read_in_one_breath():
    assert len(README.splitlines()) <= 150 and len(README.split()) <= 1200

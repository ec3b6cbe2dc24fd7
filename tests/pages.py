"""What README and the pages of docs/ tell a user to run, found and run: shared by test_readme.py and test_docs.py."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from pathlib import Path

import pytest

import fastaae
from fastaae import cli

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"epochs": 1, "hidden": (8, 8), "dataset": "digits"}  # what a preset is shrunk to here
FEW = 100  # labels, of presets with more than digits have
ELSEWHERE = re.compile(  # run by test_examples.py, test_cli.py, make and pip; what they name has to be there
    r"(?:python|torchrun --nproc-per-node 2) ((?:bench|examples)/\w+\.py)|bench/gpu.sh|make (\w+)|pip install torch"
    r"|pip install (?:-e )?'?(?:\.|fastaae)\[(\w+)\]|fastaae demo$"
)
WRAPPED = ("OMP_NUM_THREADS=1", "torchrun", "nsys", "ncu")  # which start a command of fastaae


def blocks(text: str) -> list[tuple[str, str]]:
    """Kind and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets train for a moment, an epoch or the few that are asked for."""
    original = fastaae.preset

    def preset(name, **changes):
        few = {"n_labeled": FEW} if (original(name).n_labeled or 0) > FEW else {}
        asked = {"epochs": changes["epochs"]} if changes.get("epochs", 10) < 10 else {}
        return original(name, **{**changes, **QUICK, **few, **asked})

    monkeypatch.setattr(fastaae, "preset", preset)
    monkeypatch.setattr(cli, "preset", preset)


def run_python(code: str, names: dict[str, object], expected: str | None = None, where: str = "page") -> None:
    """Run a block; where the page shows what it prints, that is compared, and ... stands for anything."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, where, "exec"), names)
    if expected is not None:
        same = doctest.OutputChecker().check_output(expected, out.getvalue(), doctest.ELLIPSIS)
        assert same, f"{where}: expected\n{expected}\ngot\n{out.getvalue()}"


def run_command(line: str) -> bool:
    """Run a line of a shell. Returns whether fastaae did; of other programs what they are given has to be there."""
    if found := ELSEWHERE.match(line):
        script, target, extra = found.groups()
        assert not script or (ROOT / script).is_file(), line
        assert not target or re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), line
        assert not extra or f'"{extra}":' in (ROOT / "setup.py").read_text("utf-8"), line
        return False
    words = shlex.split(line, comments=True)
    if words[0] in WRAPPED:
        words = words[words.index("fastaae" if "fastaae" in words else "fastaae.cli") :]
    assert words[0] in ("fastaae", "fastaae.cli"), line
    words += ["--epochs", "1", "--hidden", "8", "8"] if words[1] == "train" and "--config" not in words else []
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            cli.main(words[1:])
        assert stop.value.code == 0, line
    else:
        assert cli.main(words[1:]) == 0, line
    return True


def commands(text: str) -> list[str]:
    """The lines of a block for the shell."""
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]

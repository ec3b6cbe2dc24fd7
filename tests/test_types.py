"""Types: users' programs see those of the public names; few findings of pyright are ignored, each for a reason."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
from typecheck import ROOT, build, findings

USER = ROOT / "tests" / "typed_user.py"
IGNORE = re.compile(r"#\s*(?:pyright|type):.*")
MOST_IGNORED = 15


def installed(folder):
    """A folder with the user's program and an environment where fastaae is installed; pyright's findings there."""
    site = folder / "env" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    build(site)
    (site / "others.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    (folder / "pyrightconfig.json").write_text(json.dumps({"venvPath": str(folder), "venv": "env"}))
    return findings(folder, shutil.copy(USER, folder))


def in_checkout(folder):
    return findings(ROOT, "--pythonpath", sys.executable, str(USER))


def matches(revealed, expected):
    return re.fullmatch(".*".join(map(re.escape, expected.split("..."))), revealed) is not None


@pytest.mark.parametrize("seen", [installed, in_checkout])
def test_a_user_sees_types(seen, tmp_path):
    found = seen(tmp_path)
    lines = USER.read_text(encoding="utf-8").splitlines()
    errors = {f["range"]["start"]["line"] for f in found if f["severity"] == "error"}
    assert errors == {k for k, line in enumerate(lines) if "  # error: " in line}, found
    revealed = {f["range"]["start"]["line"]: f["message"] for f in found if f["severity"] == "information"}
    expected = {k: line.split("  # ")[1] for k, line in enumerate(lines) if line.startswith("reveal_type(")}
    assert revealed.keys() == expected.keys() and len(expected) > 10
    for k, message in revealed.items():
        assert matches(message.split('" is "')[1].removesuffix('"'), expected[k]), lines[k]


def test_other_types_do_not_match():
    assert matches("(cfg: Config | None = None, data: Any = None) -> Run", "(cfg: Config | None = None, ...) -> Run")
    for revealed in ("Any", "Model", "(cfg: Config | None = None, data: Any = None) -> Any", "Run | None"):
        assert not matches(revealed, "(cfg: Config | None = None, ...) -> Run") and not matches(revealed, "Run")


def without_reason(ignores):
    """Those that name no rule, or give no reason."""
    return [text for text in ignores if not re.fullmatch(r"# pyright: ignore\[\w+\]  # \w.{9,}", text)]


def test_few_findings_are_ignored_each_for_a_reason():
    files = (ROOT / "fastaae").glob("**/*.py")
    ignores = [m.group() for path in files for m in IGNORE.finditer(path.read_text(encoding="utf-8"))]
    assert len(ignores) <= MOST_IGNORED and without_reason(ignores) == []


@pytest.mark.parametrize(
    ("line", "fine"),
    [
        ("x = f()  # pyright: ignore[reportCallIssue]  # torch's stubs know floats alone", True),
        ("x = f()  # pyright: ignore[reportCallIssue]", False),
        ("x = f()  # pyright: ignore  # torch's stubs know floats alone", False),
        ("x = f()  # type: ignore", False),
        ("#pyright: basic", False),
    ],
)
def test_ignores_without_a_reason_are_seen(line, fine):
    ignores = IGNORE.findall(line)
    assert len(ignores) == 1 and (without_reason(ignores) == []) == fine

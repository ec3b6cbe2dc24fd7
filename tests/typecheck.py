"""pyright over fastaae/ as it is installed: there kernels/ is fastaae.kernels, which relative imports look for.

python tests/typecheck.py     errors and warnings, by the paths of this checkout; exit status 1 if there are any
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path) -> None:
    """Put the package into a folder, as an installation does."""
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def findings(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What pyright reports when it runs in a folder: its "file", "range", "severity", "message" and perhaps "rule"."""
    command = [sys.executable, "-m", "pyright", "--outputjson", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        raise RuntimeError(f"pyright ended with {done.returncode}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)["generalDiagnostics"]


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        build(folder)
        shutil.copy(ROOT / "pyproject.toml", folder)  # holds pyright's settings
        found = findings(folder, "--pythonpath", sys.executable)
    for f in found:
        path, start = Path(f["file"]).relative_to(folder), f["range"]["start"]
        print(f"{path}:{start['line'] + 1}:{start['character'] + 1}: {f['severity']}: {f['message']} ({f.get('rule')})")
    print(f"pyright: {len(found)} errors and warnings")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

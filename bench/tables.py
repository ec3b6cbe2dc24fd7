"""README's tables that come from bench/results: `python bench/tables.py` writes them anew between their marks.

Every file of results of a GPU is a list of reports; the tables show the newest. reproduce.py writes its own table.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "not measured yet"


def write(readme: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of that name."""
    begin, end = f"<!-- {name}: made by bench/ -->", f"<!-- {name}: end -->"
    whole = readme.read_text(encoding="utf-8")
    before, rest = whole.split(begin)
    after = rest.split(end)[1]
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def slug(machine: str) -> str:
    """A machine's name, as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def commit(report: dict) -> str:
    return ((report["machine"]["git"] or {}).get("commit") or "")[:7]


def steps(report: dict) -> str:
    """Microseconds a step, by replicas."""
    found, replicas = {}, sorted({row["replicas"] for row in report["rows"]})
    for row in report["rows"]:
        key = (row["preset"], row["precision"], row["contender"], row.get("commit", commit(report)))
        found.setdefault(key, {})[row["replicas"]] = f"{1e3 * row['ms']:.0f}"
    lines = [
        f"| preset | precision | | commit | {' | '.join(f'R = {r}' for r in replicas)} |",
        "|---" * (4 + len(replicas)) + "|",
    ]
    for (preset, *others), times in found.items():
        cells = [f"`{preset}`", *others, *(times.get(r, UNKNOWN) for r in replicas)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def likelihoods(report: dict) -> str:
    """Seconds for the whole log-likelihood, by samples, bandwidths and method."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in report["rows"]:
        words = row["options"].split()
        given = dict(zip(words, words[1:], strict=False))
        what = f"{int(given['--samples']):,}"
        what += f", {int(given['--side']) ** 2:,} dimensions" if "--side" in given else ""
        source = given.get("--source", "")
        what += ", bytes from memory" if source.endswith(".npy") else f", from {source}" if source else ""
        what += ", decoded in TF32" if "--tf32" in words else ""
        column = f"{row['bandwidths']} bandwidths" if row["bandwidths"] > 1 else given["--method"]
        times = found.setdefault((what, row.get("commit", commit(report))), {})
        times[column] = row["whole_seconds"]
        times.setdefault("drawing", row["drawing_seconds"])
    columns = ["auto", "dense", "10 bandwidths", "drawing"]
    lines = [f"| samples | commit | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for key, times in found.items():
        cells = (f"{times[c]:.3f}" if c in times else UNKNOWN for c in columns)
        lines.append(f"| {' | '.join([*key, *cells])} |")
    return "\n".join(lines)


def main(readme: Path = ROOT / "README.md") -> int:
    for part, table in (("step", steps), ("parzen", likelihoods)):
        for path in sorted((ROOT / "bench" / "results").glob(f"nvidia-*-{part}.json")):
            report = json.loads(path.read_text(encoding="utf-8"))[-1]
            write(readme, path.stem, table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

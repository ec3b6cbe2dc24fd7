"""Tables of README and docs/ that come from bench/results and from Config: `python bench/tables.py` writes them anew.

Each stands between two marks, `<!-- NAME: made by bench/ -->` and `<!-- NAME: end -->`, on any page. Every file of
results of a GPU is a list of reports; the tables show the newest. reproduce.py writes its own tables.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastaae import cli, config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
UNKNOWN = "not measured yet"
MARKED = re.compile(r"(<!-- ([\w-]+): made by bench/ -->\n).*?(<!-- \2: end -->)", re.DOTALL)
CONTENDERS = {  # as bench/step.py calls them, and as a table does
    "fastaae": "fastaae",
    "fastaae, fp32": "fastaae in fp32",
    "floor": "its products alone",
    "floor-torch": "the same by PyTorch",
    "idiomatic": "idiomatic PyTorch",
    "idiomatic-fused": "with fused optimisers",
    "careful": "careful PyTorch",
    "pythae": "pythae",
}


def fill(pages: Iterable[Path], made: Mapping[str, str]) -> None:
    """Write tables anew between their marks, wherever pages have some of these names."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        new = MARKED.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}" if m[2] in made else m[0], text)
        page.write_text(new, encoding="utf-8")


def grid(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table of Markdown."""
    lines = ["".join(f"| {cell} " if str(cell) else "| " for cell in row) + "|" for row in ([*heads], *rows)]
    return "\n".join([lines[0], "|---" * (lines[0].count("|") - 1) + "|", *lines[1:]])


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
    rows = ([f"`{preset}`", *others, *(times.get(r, UNKNOWN) for r in replicas)]
            for (preset, *others), times in found.items())  # fmt: skip
    return grid(["preset", "precision", "", "commit", *(f"R = {r}" for r in replicas)], rows)


def contenders(report: dict) -> str:
    """Milliseconds a step of a processor, by preset, replicas and who computes it; ratios of the same rounds."""
    found, ratios = {}, {}
    for row in report["rows"]:
        key = (row["preset"], row["replicas"])
        found.setdefault(key, {})[row["contender"]] = f"{row['ms']:.1f}"
        ratios.setdefault(key, {})[row["contender"]] = row["ratio"]
    names = [name for name in CONTENDERS if any(name in times for times in found.values())]
    rows = []
    for (preset, r), times in found.items():
        own = ratios[preset, r]
        ends = [f"{own['idiomatic']:.2f}", f"{own['careful']:.2f}", f"{1 / own['floor']:.2f}"]
        rows.append([f"`{preset}`", r, *(times.get(name, "-") for name in names), *ends])
    heads = ["preset", "R", *(CONTENDERS[name] for name in names)]
    return grid([*heads, "idiomatic / fastaae", "careful / fastaae", "fastaae / products"], rows)


def tools(report: dict) -> str:
    """Seconds of a log-likelihood on a processor, by samples and tool."""
    rows = []
    for shape in report.values():
        n = shape["rows"][0]["samples"]
        for row in shape["rows"]:
            times = row["seconds_all"] / shape["rows"][0]["seconds_all"]
            on, all_, error = f"{row['queries']:,} x {row['samples']:,}", row["seconds_all"], row["error"]
            seconds = f"{all_:.2g}" if all_ < 10 else f"{all_:.0f}"
            off = f"{error:.0e}" if error < 1 else f"{error:.0f}"
            rows.append([f"{n:,}", row["contender"], on, seconds, f"{times:.1f}", off])
    return grid(["samples", "tool", "measured on", "seconds for all", "times fastaae", "largest error, nats"], rows)


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
    rows = ([*key, *(f"{times[c]:.3f}" if c in times else UNKNOWN for c in columns)] for key, times in found.items())
    return grid(["samples", "commit", *columns], rows)


def fields() -> str:
    """Config's fields by topic, each with its default and its docstring."""
    source, rows = inspect.getsource(config.Config), []
    for name, text in re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""$', source, re.DOTALL | re.MULTILINE):
        words = " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")
        rows.append([cli.TOPICS.get(name, ""), f"`{name}`", f"`{getattr(config.Config, name)!r}`", words])
    return grid(["topic", "field", "default", "what it says"], rows)


def made() -> dict[str, str]:
    """All tables, by the names in their marks."""
    found, kinds = {"fields": fields()}, {"nvidia-*-step": steps, "nvidia-*-parzen": likelihoods}
    kinds |= {"step-*": contenders, "parzen-*": tools}
    for pattern, table in kinds.items():
        for path in sorted((ROOT / "bench" / "results").glob(f"{pattern}.json")):
            report = json.loads(path.read_text(encoding="utf-8"))
            found[path.stem] = table(report[-1] if isinstance(report, list) else report)
    return found


def main(pages: Iterable[Path] = PAGES) -> int:
    fill(pages, made())
    return 0


if __name__ == "__main__":
    sys.exit(main())

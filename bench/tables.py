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
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

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


def measured(run: Mapping[str, Any], metric: str) -> str:
    """Mean and, of several models, standard deviation. Halves go up: .005 over a mark is not shown as the mark."""
    values = [run["metrics"][metric][name] for name in ("mean", "std")[: run["replicas"]]]
    return " ± ".join(str(Decimal(repr(v)).quantize(Decimal("0.01"), ROUND_HALF_UP)) for v in values)


def slug(machine: str) -> str:
    """A machine's name, as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def commit(git: dict | None) -> str:
    """What a run or a report says of its code, short."""
    return ((git or {}).get("commit") or "")[:7]


def steps(report: dict) -> str:
    """Microseconds a step, by replicas."""
    found, replicas = {}, sorted({row["replicas"] for row in report["rows"]})
    for row in report["rows"]:
        key = (row["preset"], row["precision"], row["contender"], row.get("commit", commit(report["machine"]["git"])))
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
        times = found.setdefault((what, row.get("commit", commit(report["machine"]["git"]))), {})
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


def report(name: str) -> Any:
    """A file of bench/results, of a list of reports the newest."""
    found = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found if name.startswith("reproduce-") or not isinstance(found, list) else found[-1]


def headline() -> str:
    """README's results: of the paper's tables the longest runs on a CPU, and what is fast."""
    cpus = {"Zen 4": "25-model-17", "Zen 5": "26-model-2"}
    cpu = [row | {"on": on} for on, family in cpus.items() for row in report(f"reproduce-amd-epyc-family-{family}")]

    def longest(preset: str) -> dict:
        return max((r for r in cpu if r["preset"] == preset), key=lambda r: r["epochs"])

    few, some, every = (longest(f"mnist-{labels}") for labels in ("100", "1000-short", "all-short"))
    thirty, sixteen = (longest(f"mnist-clusters-{n}-adam") for n in (30, 16))
    likelihood = longest("mnist-likelihood-short")
    nats = likelihood["metrics"]["log_likelihood_10000"]

    def where(*runs: dict) -> str:
        """Of runs that differ in their seconds and, maybe, epochs."""
        minutes = " and ".join(f"{run['seconds'] / 60:.0f}" for run in runs)
        epochs = " and ".join(dict.fromkeys(str(run["epochs"]) for run in runs))
        threads, on = runs[0]["hardware"]["threads"], runs[0]["on"]
        return f"{threads} thread of a {on}, {minutes} min for {runs[0]['replicas']} models of {epochs} epochs"

    (small,) = (s for s in report("parzen-epyc-zen5-2cores").values() if s["rows"][0]["samples"] == 100_000)
    times = {row["contender"]: row for row in small["rows"]}
    learn, dense, own = (times[name]["seconds_all"] for name in ("scikit-learn", "block-skip", "fastaae"))
    off, bound = times["scikit-learn"]["error"], times["fastaae"]["error"]
    whole = next(r for r in report("nvidia-h200-parzen")["rows"] if "--samples 10000000 --sigma 0.2" in r["options"])
    (step,) = (r["ms"] for r in report("nvidia-h200-step")["rows"] if (r["preset"], r["replicas"], r["precision"],
               r["contender"]) == ("mnist-likelihood", 1, "bf16", "fastaae"))  # fmt: skip
    steps = [r["ratio"] for zen in (4, 5) for r in report(f"step-epyc-zen{zen}-2cores")["rows"]
             if r["contender"] == "idiomatic"]  # fmt: skip
    rows = [
        ["MNIST with 100 labels: test error", f"{measured(few, 'test_error')} %; the paper: 1.90 ± 0.10",
         f"{where(few)}; the paper's had 5,000"],
        ["With 1,000 labels, and with all",
         f"{measured(some, 'test_error')} %, {measured(every, 'test_error')} %; the paper: 1.60 ± 0.08, 0.85 ± 0.02",
         where(some, every)],
        ["In 30 clusters, and in 16, without labels but to choose among 16 starts",
         f"{measured(thirty, 'test_cluster_error')} %, {measured(sixteen, 'test_cluster_error')} %; the paper: "
         "4.10 ± 1.13, 9.55 ± 2.05", f"{where(thirty, sixteen)}; the paper's had 1,500"],
        ["MNIST by Adam, 6-D codes: log-likelihood, 10,000 samples",
         f"{nats['mean']:.1f} ± {nats['std']:.1f} nats, standard error {max(nats['sem']):.1f}; the paper, 8-D by SGD: "
         "340 ± 2", where(likelihood)],
        ["Scoring 10,000 images under 100,000 samples",
         f"{own:.1f} s, exact to {bound:.0e} nats; the best other code, dense float32: {dense:.1f} s; scikit-learn: "
         f"{learn:.0f} s (scaled up), up to {off:.0f} nats off", "2 cores of a Zen 5"],
        ["The same under 10 million, drawn from a mixture",
         f"{whole['whole_seconds']:.2f} s, exact to {whole['rows'][0]['error']:.0e} nats", "H200"],
        ["One training step", f"{min(steps):.1f} to {max(steps):.1f} times as fast as idiomatic PyTorch",
         "2 cores of a Zen 4 and of a Zen 5"],
        ["One training step in bf16, as a CUDA graph", f"{step:.2f} ms", "H200"],
    ]  # fmt: skip
    return grid(["", "measured", "on"], rows)


def made() -> dict[str, str]:
    """All tables, by the names in their marks."""
    found = {"fields": fields(), "headline": headline()}
    kinds = {"nvidia-*-step": steps, "nvidia-*-parzen": likelihoods, "step-*": contenders, "parzen-*": tools}
    for pattern, table in kinds.items():
        for path in sorted((ROOT / "bench" / "results").glob(f"{pattern}.json")):
            found[path.stem] = table(report(path.stem))
    return found


def main(pages: Iterable[Path] = PAGES) -> int:
    fill(pages, made())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The paper's tables, remade: trains presets within a budget of time, scores them, and writes the tables of results.

    python bench/reproduce.py mnist-100 mnist-1000 --epochs 50 --replicas 2 --budget 90m
    python bench/reproduce.py mnist-100 --epochs 1000 --decay 0.8 --device cuda --precision bf16 --budget 9m
    python bench/reproduce.py --table
    python bench/reproduce.py --figures mnist-clusters-30-adam --precision bf16

Presets run in the given order, all of them by default, each in its own directory under --out. When the budget is spent
the run at hand stops at a step with a checkpoint, and the same command goes on from there; what is done is not done
again. A finished run becomes an entry of bench/results/reproduce-<machine>.json: metrics as mean and standard deviation
over replicas, epochs, seconds of training, seeds, commit, versions. Models of table 1 are scored by the Parzen-window
log-likelihood of the test images under --samples samples of each replica, the bandwidth chosen on 1,000 validation
images. Then the tables of docs/ between their marks are written anew from all of these files. --figures draws the
pictures of docs/, of the runs under --out where they are there; it trains the others: see gallery.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import gallery
import tables

import fastaae
from fastaae import data, evaluation
from fastaae.device import find_device
from fastaae.directory import fcntl
from fastaae.run import provenance

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = {  # in the order of training: metric and its published value, percent or nats; "-": not published
    "mnist-100": {"test_error": "1.90 ± 0.10"},
    "mnist-1000": {"test_error": "1.60 ± 0.08"},
    "mnist-all": {"test_error": "0.85 ± 0.02"},
    "nn-mnist-100": {"test_error": "25.80"},
    "nn-mnist-1000": {"test_error": "8.73"},
    "nn-mnist-all": {"test_error": "1.25"},
    "mnist-clusters-30": {"test_cluster_error": "4.10 ± 1.13", "test_majority_error": "-", "test_nmi": "-"},
    "mnist-clusters-16": {"test_cluster_error": "9.55 ± 2.05", "test_majority_error": "-", "test_nmi": "-"},
    "mnist-embedding-2d-1000": {"test_error": "4.20 (unverified)"},
    "mnist-embedding-2d-100": {"test_error": "6.08"},
    "mnist-embedding-2d-unsupervised": {"test_cluster_error": "13.50", "test_majority_error": "-"},
    "mnist-embedding-10d-100": {"test_error": "3.90"},
    "mnist-likelihood": {"log_likelihood_10000": "340 ± 2", "log_likelihood_10000000": "427"},
    "tfd-likelihood": {"log_likelihood_10000": "2252 ± 16", "log_likelihood_10000000": "2522"},
    "mnist-gmmn": {"log_likelihood_10000": "282 ± 2", "log_likelihood_10000000": "-"},
    "mnist-vae": {"log_likelihood_10000": "-", "log_likelihood_10000000": "-"},
    "mnist-gan": {"log_likelihood_10000": "225 ± 2", "log_likelihood_10000000": "386"},
    "svhn-1000": {"test_error": "17.70 ± 0.30"},
}
PAPER = {  # the same of presets, those that get there sooner beside the paper's own
    twin: values
    for name, values in PUBLISHED.items()
    for twin in (name, *(f"{name}-{kind}" for kind in ("adam", "short", "whole")))
    if twin in fastaae.presets()
}
FAMILIES = {  # of experiments: a table each in docs/experiments.md
    family: [name for name in PAPER if re.search(pattern, name)]
    for family, pattern in {
        "likelihood": "likelihood|gmmn|vae|gan",
        "semi-supervised": r"mnist-(\d+|all)|svhn",
        "clusters": "clusters",
        "embeddings": "embedding",
    }.items()
}
NAMES = {
    "test_error": "test error, %",
    "test_cluster_error": "cluster error, %",
    "test_majority_error": "the same by majority vote, %",
    "test_nmi": "normalized mutual information",
    "log_likelihood_10000": "nats, 10K samples",
    "log_likelihood_10000000": "nats, 10M samples",
}


def seconds(text: str) -> float:
    """90, 90s, 9m or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number with s, m or h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def share(text: str) -> float:
    """More than 0, less than 1."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number between 0 and 1")
    return float(text)


def planned(preset: fastaae.Config, epochs: int | None, decay: float | None) -> fastaae.Config:
    """The preset as it is to be trained: so many epochs, its only decay after a share of them."""
    cfg = preset if epochs is None else dataclasses.replace(preset, epochs=epochs)
    return cfg if decay is None else dataclasses.replace(cfg, lr_decay_epochs=(round(decay * cfg.epochs),))


def name_of(cfg: fastaae.Config) -> str:
    """Of a run, and of its directory."""
    own = cfg.lr_decay_epochs == fastaae.preset(cfg.name).lr_decay_epochs
    decays = "" if own else "-".join(["", "decay", *map(str, cfg.lr_decay_epochs)])
    return f"{cfg.name}-{cfg.epochs}-{cfg.replicas}-{cfg.seed}-{cfg.precision}{decays}"


def recipe(cfg: fastaae.Config) -> dict:
    """What of a preset makes its result: not how long, with what seeds and on what it was trained."""
    rest = "name epochs replicas seed device precision products graph out_dir data_dir log_every checkpoint_every"
    return json.loads(json.dumps({k: v for k, v in cfg.to_dict().items() if k not in rest.split()}))


def changed(row: dict, cfg: fastaae.Config) -> list[str]:
    """What a recipe has otherwise than an entry, which may be older than some fields of it, and than recipes."""
    return [k for k, v in recipe(cfg).items() if row.get("recipe", {}).get(k, v) != v]


def train(cfg: fastaae.Config, directory: Path, until: float) -> tuple[fastaae.Run | None, float]:
    """The finished run, or None if the time is up; and the seconds that training has taken in all."""
    clock = directory.with_suffix(".seconds")
    spent = float(clock.read_text()) if clock.exists() else 0.0
    started = time.monotonic()
    wait = min(max(until - started, 0.1), threading.TIMEOUT_MAX)
    alarm = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    run = None
    cfg = dataclasses.replace(cfg, out_dir=str(directory))
    try:
        run = fastaae.train(cfg, resume=directory if (directory / "checkpoint.safetensors").exists() else None)
    except KeyboardInterrupt as stopped:  # by the alarm; before training has begun to listen it says nothing
        if time.monotonic() < until:
            raise
        print(stopped, flush=True)
    finally:
        alarm.cancel()
        directory.parent.mkdir(parents=True, exist_ok=True)
        clock.write_text(str(spent + time.monotonic() - started))
    return run, spent + time.monotonic() - started


def likelihoods(run: fastaae.Run, images: data.Data, samples: list[int]) -> dict[str, dict]:
    """Log-likelihoods of the test images, by number of samples, over replicas, of averaged weights where a preset asks
    for these; each with its error bound."""
    found, models = {}, run.averaged or run.models
    for n in samples:
        results = [m.log_likelihood(images.x_test, n, validation=images.x_valid[:1000]) for m in models]
        found[f"log_likelihood_{n}"] = evaluation.summarize([r.mean for r in results]) | {
            "sem": [r.sem for r in results],
            "sigma": [r.sigma for r in results],
            "error_bound": max(r.error_bound for r in results),
        }
    return found


def has_likelihood(preset: str) -> bool:
    """Whether the paper gives one."""
    return any(metric.startswith("log_likelihood") for metric in PAPER.get(preset, {}))


def entry(run: fastaae.Run, cfg: fastaae.Config, spent: float, samples: list[int]) -> dict:
    """What is kept of a finished run."""
    images = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    metrics = {name: value for name, value in run.metrics.items() if name.startswith("test_")}
    if has_likelihood(cfg.name):
        metrics |= likelihoods(run, images, samples)
    fields = ("epochs", "replicas", "seed", "precision")
    return {f: getattr(cfg, f) for f in fields} | {
        "preset": cfg.name,
        "recipe": recipe(cfg),
        "data": {"name": images.name, "n_train": len(images.x_train)},
        "seconds": spent,
        "metrics": metrics,
        **provenance.describe(str(run.model.device)),
    }


def kept(path: Path) -> list[dict]:
    """The entries of a file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def keep(path: Path, new: dict) -> None:
    """Add an entry to a file, in place of one of the same run, whatever others have added since it was last read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        if fcntl:  # not on Windows
            fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [row for row in kept(path) if row["run"] != new["run"]]
        path.write_text(json.dumps([*rows, new], indent=1) + "\n", encoding="utf-8")


def results(folder: Path) -> list[dict]:
    """All entries of all machines, in the order of the presets."""
    found = [row for path in sorted(folder.glob("reproduce-*.json")) for row in kept(path)]
    return sorted(found, key=lambda row: (fastaae.presets().index(row["preset"]), row["epochs"]))


def scores(row: dict) -> list[list[str]]:
    """What is measured, ours and the paper's, of each metric that an entry has."""
    used = row["data"]["name"]
    other = "subset" in used or "layout" in used  # no number to set beside the paper's
    found = []
    for metric, published in PAPER.get(row["preset"], {}).items():
        if metric in row["metrics"]:
            m = row["metrics"][metric]
            bound = f" (bound {m['error_bound']:.0e})" if "error_bound" in m else ""
            ours = tables.measured(row, metric) + bound
            found.append([NAMES.get(metric, metric), ours, "other data" if other else published])
    return found


def origin(row: dict) -> list[str]:
    """Data, hardware and commit of an entry."""
    changed = " and changes" if row["git"].get("dirty") else ""
    about = f"{row['data']['name']}, {row['data']['n_train']:,} to train"
    return [about, row["hardware"]["name"], tables.commit(row["git"]) + changed]


def family(rows: list[dict], presets: list[str]) -> str:
    """A table of docs/: the epochs come first, of a run that saw fewer than its preset has with those, and an
    entry says what its preset has changed since; in the end the presets without a result."""
    heads = ["epochs", "preset", "measured", "fastaae", "the paper", "models", "data", "how"]
    lines = []
    for name in presets:
        entries = [row for row in rows if row["preset"] == name]
        for row in entries:
            now = fastaae.preset(name)
            n, whole = row["epochs"], now.epochs
            seen = f"**only {n:,}** of {whole:,}" if n < whole else f"all {n:,}"
            other = ", ".join(changed(row, now))
            shown = f"`{name}`" + f", with another {other}" * bool(other)
            about, machine, commit = origin(row)
            how = f"{row['precision']}, {row['seconds']:,.0f} s, {machine}, {commit}"
            lines += [[seen, shown, *score, row["replicas"], about, how] for score in scores(row)]
        if not entries:
            metric, published = next(iter(PAPER[name].items()))
            missing = [NAMES.get(metric, metric), tables.UNKNOWN, published]
            lines.append([f"**none** of {fastaae.preset(name).epochs:,}", f"`{name}`", *missing, "-", "-", "-"])
    return tables.grid(heads, lines)


def made(rows: list[dict]) -> dict[str, str]:
    """All tables, by the names in their marks."""
    return {f"reproduce-{name}": family(rows, of) for name, of in FAMILIES.items()} | gallery.made()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help=f"default: {' '.join(PAPER)}")
    parser.add_argument("--budget", type=seconds, default=float("inf"), help="90, 9m or 2h")
    parser.add_argument("--epochs", type=int, help="default: those of the preset")
    parser.add_argument("--decay", type=share, help="share of the epochs before rates decay; default: as in the preset")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 10_000_000], help="for log-likelihoods")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--pages", type=Path, nargs="+", default=tables.PAGES, help="whose tables are written")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    parser.add_argument("--figures", action="store_true", help="draw the pictures of docs/ instead")
    options = parser.parse_args(arguments)
    until = time.monotonic() + options.budget
    code = provenance.git()  # as it is now: results and tables of the first runs change it
    machine = tables.slug(provenance.hardware(str(find_device(options.device)))["name"])
    path, unfinished = options.results / f"reproduce-{machine}.json", []
    drawn = [name for presets in gallery.GALLERY.values() for name in presets]
    if unknown := sorted({*options.presets} - {*(drawn if options.figures else fastaae.presets())}):
        parser.error(f"{unknown[0]}: expected presets, {', '.join(drawn if options.figures else PAPER)}")
    fields = {f: getattr(options, f) for f in ("replicas", "seed", "device", "precision")}

    def in_time(cfg: fastaae.Config) -> fastaae.Run | None:
        return train(cfg, options.out / name_of(cfg), until)[0] if time.monotonic() < until else None

    if options.figures and not gallery.draw(in_time, fields, options.presets):
        unfinished.append("--figures")
    for name in [] if options.table or options.figures else options.presets or PAPER:
        cfg = planned(fastaae.preset(name, **fields), options.epochs, options.decay)
        stem = name_of(cfg)
        directory = options.out / stem
        wanted = {f"log_likelihood_{n}" for n in options.samples} if has_likelihood(name) else set()
        known = (row for row in kept(path) if row["run"] == stem and not changed(row, cfg))
        if any(wanted <= row["metrics"].keys() for row in known):
            print(f"{stem}: done before")
            continue
        if time.monotonic() >= until:
            unfinished.append(name)
            continue
        run, spent = train(cfg, directory, until)
        if run is None:
            unfinished.append(name)
            continue
        new = {"run": stem} | entry(run, cfg, spent, options.samples) | {"git": code}
        keep(path, new)
        for metric, value in new["metrics"].items():
            print(f"{stem}: {metric} {value['mean']:.3f} ± {value['std']:.3f}, {spent:.0f} s", flush=True)
    tables.fill(options.pages, made(results(options.results)))
    if unfinished:
        print(f"time is up; the same command goes on with {', '.join(unfinished)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

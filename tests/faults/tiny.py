"""Tiny runs of the command line, in processes of their own that can be killed."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastaae import cli

from .case import Skip, require
from .forks import Forks
from .inside import NEWEST, PREVIOUS, checkpoint, load_run

TINY = {"dataset": "digits", "hidden": [16, 16], "style_dim": 2, "init_std": 0.2, "batch_size": 50, "epochs": 8,
        "lr_reconstruction": 0.003, "lr_adversarial": 0.02, "lr_classification": 0.05, "lr_decay_epochs": [3],
        "device": "cpu", "log_every": 1, "checkpoint_every": 1}  # fmt: skip
ADAM = {"optimizer": "adam", "lr_reconstruction": 1e-3, "lr_adversarial": 1e-3, "lr_classification": 1e-3}
SEMI = {"task": "semi_supervised", "n_labeled": 100}
VARIANTS = [  # 200 steps each
    {"input_noise": 0.1, "replicas": 2},
    {**ADAM, "dropout": 0.2},
    {"batch_norm": "autoencoder", "input_dropout": 0.1},
    {**SEMI, "input_noise": 0.3},
    {**SEMI, **ADAM, "batch_norm": "encoder"},
    {"label_prior": True, "prior": "mixture", **ADAM},
]


# Processes


@functools.cache
def forks(k: int) -> Forks:
    """The k-th process that forks, for functions that run at the same time."""
    if not hasattr(os, "fork"):
        raise Skip("no os.fork")
    names = "torch tqdm.auto sklearn.datasets faults.saving faults.runs faults.disks faults.directories"
    return Forks(*names.split())


def start(folder: Path, function: Callable, *arguments: Any, k: int = 0) -> int:
    """Start a function of a module, with arguments that JSON can hold, in a folder. Returns: the process id."""
    return forks(k).start(folder, function.__module__, function.__name__, *arguments)


def call(folder: Path, function: Callable, *arguments: Any) -> int:
    """Run a function in a process of its own. Returns: its exit status."""
    start(folder, function, *arguments)
    return forks(0).wait()


def run_cli(folder: Path, arguments: list[str]) -> int:
    """Run the command line in a folder. Returns: its exit status."""
    return call(folder, cli.main, arguments)


def said(folder: Path) -> str:
    """What the processes in a folder have printed to stderr."""
    path = folder / "stderr"
    return path.read_text(errors="replace") if path.exists() else ""


# Runs


def write_config(folder: Path, **changes: Any) -> list[str]:
    """The command line of a tiny run in folder/run."""
    (folder / "cfg.json").write_text(json.dumps({**TINY, **changes}))
    return ["train", "--config", "cfg.json", "--out-dir", "run"]


def read_json(run: Path, name: str = "summary.json") -> Any:
    """A file of a run's directory."""
    return json.loads((run / name).read_text())


def weights(run: Path) -> str:
    """The digest of a finished run's weights."""
    return read_json(run)["weights_sha256"]


def result(run: Path) -> tuple[str, str, str]:
    """What has to be equal, bit for bit: weights, all other state, losses and metrics."""
    tensors, _ = checkpoint.load(run / NEWEST)
    return weights(run), checkpoint.digest(tensors), (run / "metrics.jsonl").read_text()


@functools.cache
def undisturbed(variant: int, epochs: int = TINY["epochs"]) -> tuple[tuple[str, str, str], float]:
    """The result of a run that nothing happens to, and the seconds it takes."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = write_config(Path(folder), **VARIANTS[variant], epochs=epochs)
        started = time.perf_counter()
        status = run_cli(Path(folder), arguments)
        require(status == 0, f"the undisturbed run ended with {status}: {said(Path(folder))}")
        return result(Path(folder) / "run"), time.perf_counter() - started


def last_step(run: Path) -> int:
    """The last step whose losses have been written."""
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True) if (run / "metrics.jsonl").exists() else []
    return max((json.loads(row)["step"] for row in rows if row.endswith(b"\n")), default=0)


def saved_step(run: Path) -> int:
    return load_run(run)[1]["step"]


def go_on(folder: Path, arguments: list[str]) -> list[str]:
    """The command that goes on after a crash, as the messages say: resume, or start again if nothing was saved."""
    run = folder / "run"
    if run.exists() and ((run / NEWEST).exists() or (run / PREVIOUS).exists()):
        return ["resume", "run"]
    shutil.rmtree(run, ignore_errors=True)
    return arguments

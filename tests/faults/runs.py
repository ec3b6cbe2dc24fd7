"""Runs that are killed, stopped, watched, linked out of their directory, or many: R10, R11, R12, R25, R30."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastaae
from fastaae import Config, cli

from .case import Check, Outcome, Skip, require
from .inside import LOCK, NEWEST, PREVIOUS, report_each_step
from .saving import save
from .tiny import (
    TINY,
    VARIANTS,
    call,
    forks,
    go_on,
    last_step,
    read_json,
    result,
    run_cli,
    said,
    saved_step,
    start,
    undisturbed,
    write_config,
)


def crash_and_resume(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R10: kill -9 at random instants of a run of 200 steps, until it ends by itself."""
    variant, lost = case % len(VARIANTS), 0
    expected, seconds = undisturbed(variant)
    arguments, run = write_config(folder, **VARIANTS[variant]), folder / "run"
    command = arguments
    for _ in range(1 + int(rng.integers(3))):
        pid = start(folder, cli.main, command)
        time.sleep(rng.uniform(0.0, 1.0) * seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if forks(0).wait() == 0:
            break
        command = go_on(folder, arguments)
        lost += last_step(run) - (saved_step(run) if command != arguments else 0)
    if not (run / "summary.json").exists() or command != arguments:
        status = run_cli(folder, go_on(folder, arguments))
        require(status == 0, f"going on ended with {status}: {said(folder)}")
    require(not list(run.glob(".*.tmp*")), "a temporary file is left")
    equal = result(run) == expected
    return Outcome(None if equal else "the result is not that of the undisturbed run", lost, not equal)


def signalled(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R11: SIGTERM, SIGINT, SIGINT twice, SIGHUP, and a reader of the output that goes away, at random instants."""
    kind = ("SIGTERM", "SIGINT", "twice", "SIGHUP", "SIGPIPE")[case % 5]
    variant, run = int(rng.integers(len(VARIANTS))), folder / "run"
    epochs = 16
    expected, seconds = undisturbed(variant, epochs)
    arguments = write_config(folder, **VARIANTS[variant], epochs=epochs)
    if kind == "SIGPIPE":
        status = call(folder, train_into_closed_pipe, arguments)
        require(status == 0, f"status {status} where nobody reads the progress: {said(folder)}")
        return Outcome(None if result(run) == expected else "another result", wrong=result(run) != expected)
    pid = start(folder, cli.main, arguments)
    deadline = time.monotonic() + 30
    while not last_step(run) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.7) * seconds)
    signum = signal.SIGINT if kind == "twice" else getattr(signal, kind)
    sent = time.monotonic()
    for _ in range(2 if kind == "twice" else 1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
        time.sleep(rng.choice([0, 0.001, 0.01]) if kind == "twice" else 0)
    status, took = forks(0).wait(), time.monotonic() - sent
    err, lost = said(folder), 0
    if status:
        require(status == 128 + signum, f"exit status {status} after {kind}, expected {128 + signum}: {err}")
        require(took <= 5, f"{took:.1f} s from {kind} to the end")
        require(kind == "twice" or "go on with: fastaae resume run" in err, f"no hint: {err}")
        command = go_on(folder, arguments)
        if kind != "twice":
            require(saved_step(run) == int(re.search(r"stopped after step (\d+)", err)[1]), "saved another step")
        elif command != arguments:
            lost = last_step(run) - saved_step(run)
            require(lost <= 0, f"the second signal lost the stop: {lost} steps")
        require(run_cli(folder, command) == 0, f"resume: {said(folder)}")
    # rows of losses are means since the row before, so only the weights and the state have to be equal
    equal = result(run)[:2] == expected[:2]
    return Outcome(None if equal else "the result is not that of the undisturbed run", lost, not equal)


def train_into_closed_pipe(arguments: list[str]) -> int:
    """A run whose progress is written to a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    report_each_step()
    return cli.main(arguments)


def train_from(prelude: str, arguments: list[str]) -> int:
    """Run a command after something that should not matter to it."""
    if prelude == "random state":
        torch.manual_seed(123)
        np.random.seed(5)  # noqa: NPY002
    elif prelude == "threads":
        torch.set_num_threads(2)
    elif prelude == "another run before":
        cli.main(["train", "--config", "cfg.json", "--out-dir", "other", "--seed", "9"])
    elif prelude == "locale and time":
        os.environ |= {"LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
        time.tzset()
    return cli.main(arguments)


WATCHED = [  # what must not matter, and the flags for it
    ("", []), ("", ["--log-every", "7"]), ("", ["--log-every", "100000"]), ("", ["--checkpoint-every", "3"]),
    ("", ["--profile", "20:22"]), ("random state", []), ("another run before", []), ("locale and time", []),
    ("", ["--on-divergence", "restart"]), ("", ["--name", "another"]), ("", ["--data-dir", "."]), ("evaluate", []),
    ("stop", []), ("copy", []),
    ("threads", []), ("beside", ["--replicas", "3"]),
]  # fmt: skip
CLOSE = 0.02
"""What runs that are the same but for rounding may differ by: the reconstruction loss after 200 steps, relative."""


def hidden_randomness(rng: np.random.Generator, case: int, folder: Path) -> Outcome | None:
    """R12: what does not belong to a run's definition changes no bit of it; threads and replicas beside it only
    rounding."""
    prelude, flags = WATCHED[case]
    variant = 1 if prelude == "beside" else int(rng.integers(len(VARIANTS)))
    expected, _ = undisturbed(variant)
    arguments = [*write_config(folder, **VARIANTS[variant]), *flags]
    if prelude == "stop":
        arguments += ["--epochs", "5"]
    status = call(folder, train_from, prelude, arguments)
    if prelude == "stop":  # go on for longer than planned; the rates follow the epochs
        longer = {**TINY, **VARIANTS[variant], "out_dir": "run"}
        status = status or call(folder, train_longer, longer)
    elif prelude == "copy":
        os.rename(folder / "run", folder / "moved")
        repeat = ["train", "--config", "moved/config.json", "--out-dir", "run"]
        status = status or run_cli(folder, repeat)
    elif prelude == "evaluate":
        status = status or run_cli(folder, ["evaluate", "run"]) or run_cli(folder, ["resume", "run"])
    require(status == 0, f"status {status}: {said(folder)}")
    found = result(folder / "run")
    if prelude in ("threads", "beside"):
        far = abs(first_loss(folder / "run") / expected_loss(variant) - 1)
        return f"{prelude}: the loss differs by {100 * far:.2f} %" if far > CLOSE else None
    equal = found[0] == expected[0]
    return Outcome(None if equal else f"{prelude} {flags}: other weights", wrong=not equal)


def first_loss(run: Path) -> float:
    """The first replica's reconstruction loss."""
    return read_json(run)["metrics"]["test_reconstruction"]["replicas"][0]


@functools.cache
def expected_loss(variant: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        require(run_cli(Path(folder), write_config(Path(folder), **VARIANTS[variant])) == 0, "the run failed")
        return first_loss(Path(folder) / "run")


def train_longer(fields: dict[str, Any]) -> int:
    fastaae.train(Config.from_dict(fields), resume="run", progress=False)
    return 0


def tree(folder: Path) -> str:
    """Digest of all names and contents below a folder."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        sha.update(f"{path.relative_to(folder)} {path.lstat().st_mode}".encode(errors="surrogateescape"))
        sha.update(path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
    return sha.hexdigest()


LINKED = (LOCK, NEWEST, PREVIOUS, "config.json", "metrics.jsonl", "summary.json", "trace.json", "samples.png",
          "neighbours.png")  # fmt: skip
NAMES = ["../x", "/tmp/x", "a/b", "..", "a\0b", "x" * 300, "\x1b[2J", "\udcfe", "", " "]
OUT = ["x" * 300, "a\0b", "loop/run", "file/run", "\udcff", "link"]
HARMLESS = ("..", "\udcff")  # runs/..-DATE-TIME; and a name that is not UTF-8 is one all the same


def names_and_links(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    """R25: whatever a run directory or a config holds, nothing is written outside of that directory."""
    outside, work = folder / "outside", folder / "work"
    outside.mkdir()
    work.mkdir()
    precious = {"config.json": b"{}", "metrics.jsonl": b'{"step": 1}\n'}
    for name in LINKED:
        (outside / name).write_bytes(precious.get(name, b"precious"))
    (work / "loop").symlink_to("loop")
    (work / "link").symlink_to(outside)
    (work / "file").touch()
    epochs = {"epochs": 1, "log_every": 5}
    if case < len(LINKED):
        require(run_cli(work, write_config(work, **epochs)) == 0, said(work))
        victim = work / "run" / LINKED[case]
        with contextlib.suppress(FileNotFoundError):
            victim.unlink()
        victim.symlink_to(outside / LINKED[case])
        before = tree(outside)
        call(work, resume_longer)
        run_cli(work, ["sample", "run", "--n", "4"])
        run_cli(work, ["figures", "run"])
    else:
        k = case - len(LINKED)
        if k < len(NAMES):
            arguments, odd = write_config(work, **epochs, name=NAMES[k])[:3], NAMES[k]
        else:
            arguments, odd = write_config(work, **epochs), OUT[k - len(NAMES)]
            arguments[-1] = odd
        before = tree(outside)
        status = run_cli(work, arguments)
        require(status in ((0,) if odd in HARMLESS else (1, 2)), f"status {status} for {odd!r}: {said(work)}")
        own = {"loop", "link", "file", "cfg.json", "stdout", "stderr", "runs", *([odd] if odd in HARMLESS else [])}
        require(set(os.listdir(work)) <= own, f"{odd!r}: {os.listdir(work)}")
    require(tree(outside) == before, "something outside of the run directory has changed")
    require("Traceback" not in said(work), said(work).strip())
    control = [c for c in said(work) if not c.isprintable() and c != "\n"]
    require(not control, f"unprintable characters were printed: {control}")
    return None


def resume_longer() -> int:
    """Resume with two more epochs and a profile, so that every file of a run is written."""
    cfg = Config.from_dict({**TINY, "epochs": 3, "log_every": 5, "profile": "30:31", "out_dir": "run"})
    with contextlib.suppress(ValueError, OSError):
        fastaae.train(cfg, resume="run", progress=False)
    return cli.main(["resume", "run"])


def resources() -> dict[str, float]:
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    descriptors, mib = len(os.listdir("/proc/self/fd")), float(fields["VmRSS"].split()[0]) / 1024
    return {"MiB": mib, "descriptors": descriptors, "threads": float(fields["Threads"])}


def use_and_measure() -> int:
    """2,000 steps, 200 checkpoints, 20 runs and loads, after as much of it once. Writes resources before and after."""
    cfg = Config.from_dict({**TINY, "log_every": 25})
    marks = []
    for k in range(21):
        run = fastaae.train(dataclasses.replace(cfg, seed=k, epochs=4, out_dir=f"runs/{k}"), progress=False)
        for j in range(10):
            save(run.directory, j, 100_000)
        if k in (4, 20):
            marks.append(resources())
    Path("marks.json").write_text(json.dumps(marks))
    return 0


def leaks(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    """R30: memory, file descriptors and threads stay as they are."""
    if not Path("/proc/self/status").exists():
        raise Skip("no /proc")
    status = call(folder, use_and_measure)
    require(status == 0, f"status {status}: {said(folder)}")
    first, last = json.loads((folder / "marks.json").read_text())
    same = first["descriptors"] == last["descriptors"] and first["threads"] == last["threads"]
    require(same and last["MiB"] - first["MiB"] < 3, f"{first} became {last}")
    return None


CHECKS = {
    "R10": Check("kill -9 in a run, resume", 100, crash_and_resume),
    "R11": Check("signals, closed pipe", 20, signalled),
    "R12": Check("hidden randomness", len(WATCHED), hidden_randomness),
    "R25": Check("names and links out of the directory", len(LINKED) + len(NAMES) + len(OUT), names_and_links),
    "R30": Check("leaks", 1, leaks),
}

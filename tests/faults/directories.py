"""Run directories: taken by two at once, removed beside their run, cut off from power, on disks that fail, and read in
little memory: R40 to R44."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import fastaae
from fastaae import Config, WriteError, cli, figures
from fastaae.data import from_arrays
from fastaae.evaluation import evaluate

from . import inside
from .case import Check, Outcome, require
from .hostile import MB, peak, unclear
from .inside import LOCK, NEWEST, CheckpointError, RunDirectory, checkpoint, parzen, provenance
from .resuming import DATA, train
from .saving import ERRORS, watched
from .tiny import TINY, forks, said, start

# R40: runs that start in the same second


def start_at_a_sign(seed: int) -> int:
    """Train in a directory with the name of one second, once a file named go is there."""
    provenance.now = lambda: "DATE-TIME"
    (Path(f"ready-{seed}")).touch()
    while not os.path.exists("go"):
        time.sleep(0.0005)
    return cli.main(["train", "--config", "cfg.json", "--seed", str(seed)])


def same_second(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    (folder / "cfg.json").write_text(json.dumps({**TINY, "epochs": 1, "name": "mine"}))
    if case % 2:  # one is there already, or only what its name leads to
        (folder / "runs").mkdir()
        (folder / "runs" / "mine-DATE-TIME").symlink_to("nowhere")
    for seed in range(3):
        start(folder, start_at_a_sign, seed, k=seed)
    while not all((folder / f"ready-{seed}").exists() for seed in range(3)):
        time.sleep(0.001)
    (folder / "go").touch()
    statuses = [forks(k).wait() for k in range(3)]
    require(statuses == [0, 0, 0], f"{statuses}: {said(folder)}")
    found = sorted(path.name for path in (folder / "runs").iterdir() if path.exists())
    names = [f"mine-DATE-TIME{end}" for end in ("", "-2", "-3", "-4")][case % 2 :][:3]
    require(found == names, f"{found}, expected {names}")
    seeds = {json.loads((folder / "runs" / name / "config.json").read_text())["config"]["seed"] for name in names}
    return None if seeds == {0, 1, 2} else f"of the seeds {seeds}"


# R41: a directory that is taken away from its run


def copied_back(run: Path) -> None:
    run.rename(run.with_name("away"))
    shutil.copytree(run.with_name("away"), run)


def linked(run: Path) -> None:
    run.rename(run.with_name("away"))
    train(run.with_name("other"), seed=7)
    run.symlink_to("other")


def emptied(run: Path) -> None:
    for path in run.iterdir():
        path.unlink()


def anew(run: Path) -> None:
    shutil.rmtree(run)
    train(run, seed=7)


def emptied_and_anew(run: Path) -> None:
    emptied(run)
    train(run, seed=7)


DEEDS: list[Callable[[Path], Any]] = [
    shutil.rmtree, lambda run: (shutil.rmtree(run), run.mkdir()), anew, emptied, emptied_and_anew, linked, copied_back,
    lambda run: run.rename(run.with_name("away")), lambda run: (run / LOCK).unlink(),
    lambda run: os.replace(shutil.copy(run / LOCK, run.with_name("lock")), run / LOCK),
]  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """All that is below a folder, but for what a process says of itself in a lock."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK}


def taken_away(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    """Whatever becomes of a run's directory, nothing is written to what is there then, and one line says so."""
    at, deed, run, done = int(rng.integers(0, 10)), DEEDS[case % len(DEEDS)], folder / "run", []

    def act(step: inside.Step) -> None:
        if not done and inside.steps_done(step) == at:
            done.append(None)
            deed(run)
            done.append(files(folder))

    try:
        with inside.before_each_step(act):
            train(run, log_every=int(rng.integers(1, 6)), checkpoint_every=int(rng.integers(1, 4)))
    except WriteError as error:
        require("its .lock is gone, or another run's" in str(error) and "\n" not in str(error), str(error))
        return None if files(folder) == done[1] else Outcome("files were written after that", wrong=True)
    return Outcome("trained to the end", wrong=True)


# R42: power cuts over all files of a run

X = np.random.default_rng(0).random((200, 6))


def scored(state: Path) -> Any:
    with mock.patch.object(parzen, "SAVE_EVERY", 0.0):
        return fastaae.parzen_log_likelihood(X[:9], iter(X[k : k + 50] for k in range(0, 200, 50)), 0.3, state=state,
                                             block=50, progress=False).per_query.tolist()  # fmt: skip


def draw(run: Path, value: float) -> None:
    with checkpoint.replaced(run / "samples.png") as new:
        figures.grid(np.full((4, 5, 5), value), new)


def everything(run: Path) -> None:
    """All files of a run: it trains, two pictures are drawn, one over the other, and samples scored with a state."""
    train(run, epochs=3)
    draw(run, 0.2)
    draw(run, 0.8)
    scored(run / "state")


Disk = dict[str, tuple[int, bytes]]  # by name: inode and content


def disk(run: Path) -> Disk:
    names = [path for path in run.iterdir() if path.is_file()] if run.exists() else []
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in names}


@functools.cache
def journal() -> tuple[list[tuple[str, int, Disk]], list[tuple[int, int]], Disk]:
    """Of all files of a run: before each call what is called, on which inode, and what is there; how many calls had
    been made when the checkpoint of a step was acknowledged; and what is there in the end."""
    calls: list[tuple[str, int, Disk]] = []
    acknowledged: list[tuple[int, int]] = []
    original = checkpoint.save

    def save(path: Path, tensors: dict, info: dict, previous: Path | None = None) -> None:
        original(path, tensors, info, previous)
        if "step" in info:
            acknowledged.append((len(calls), info["step"]))

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")

        def before(name: str, argument: Any) -> None:
            found = os.fstat(argument) if name == "fsync" else None
            kind = "sync folder" if found and stat.S_ISDIR(found.st_mode) else name
            calls.append((kind, found.st_ino if found else 0, disk(run)))

        with watched(before), mock.patch.object(checkpoint, "save", save), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            everything(run)
        return calls, acknowledged, disk(run)


def after_a_cut(rng: np.random.Generator, cut: int) -> Disk:
    """What may be on a disk once its power fails before that call: of content what was synced, and some of what came
    after it, or zeros in its place; of names those synced, and any choice of changes since."""
    calls, _, end = journal()
    synced: dict[int, bytes] = {}  # by inode, of those that are there
    kept: Disk = {}  # by name, what the folder's last sync has made sure of
    for name, inode, there in calls[:cut]:
        content = dict(there.values())
        synced = {known: text for known, text in synced.items() if known in content}
        if name == "fsync" and inode in content:
            synced[inode] = content[inode]
            kept |= {
                path: (inode, content[inode]) for path in kept if there.get(path, (None,))[0] == inode == kept[path][0]
            }
        elif name == "sync folder":
            kept = {path: (number, synced.get(number, b"")) for path, (number, _) in there.items()}
    now, found = calls[cut][2] if cut < len(calls) else end, Disk()
    for path in sorted(kept.keys() | now.keys()):
        same = path in kept and path in now and kept[path][0] == now[path][0]
        if path in kept and (same or rng.random() < 0.5):
            number, sure = kept[path]
        elif path in now:
            number = now[path][0]
            sure = synced.get(number, b"")
        else:
            continue
        content = now[path][1] if path in now and now[path][0] == number else sure
        some = int(rng.integers(len(sure), len(content) + 1)) if content.startswith(sure) else len(sure)
        zeros = len(content) - some if rng.random() < 0.3 else 0
        found[path] = number, content[:some] + bytes(zeros)
    return found


def power_cut(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    calls, acknowledged, end = journal()
    cut, run = case * 7919 % (len(calls) + 1), folder / "run"
    run.mkdir()
    for name, (_, content) in after_a_cut(rng, cut).items():
        (run / name).write_bytes(content)
    least = max((step for made, step in acknowledged if made <= cut), default=None)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            step = inside.load_run(run).info["step"]
        except CheckpointError:
            return None if least is None else Outcome("an acknowledged checkpoint is lost", wrong=True)
        require(step >= (least or 0), f"step {step} is there, {least} was acknowledged")
        picture = (run / "samples.png").read_bytes() if (run / "samples.png").exists() else None
        whole = {end["samples.png"][1], *(there["samples.png"][1] for *_, there in calls if "samples.png" in there)}
        require(picture is None or picture in whole, "a picture is in part there")
        train(run, resume=True, epochs=3)
        likelihood = scored(run / "state")
    lost = [str(w.message) for w in warned if "lost" in str(w.message) or "going on with" in str(w.message)]
    require(not lost, f"not in the order of their references: {lost}")
    left = [path.name for path in run.iterdir() if ".tmp" in path.name and "png" not in path.name]
    require(not left, f"left behind: {left}")
    same = (run / "metrics.jsonl").read_bytes() == end["metrics.jsonl"][1] and likelihood == exact()
    summary = json.loads((run / "summary.json").read_text()) == json.loads(end["summary.json"][1])
    return None if same and summary else Outcome("another result", wrong=True)


@functools.cache
def exact() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        return scored(Path(folder, "state"))


# R43: each call fails


def own(run: Path, argument: Any) -> bool:
    """Whether a call is about a file of the run."""
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else os.fspath(argument)
        return str(path).startswith(str(run))
    return False


@functools.cache
def calls_of_all() -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")

        def before(name: str, argument: Any) -> None:
            if own(run, argument):
                path = os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else os.fspath(argument)
                names.append((name, Path(path).name.lstrip(".").split(".")[0]))

        with watched(before), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            everything(run)
    return names


def failing_call(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    """The N-th call for any of a run's files fails: one line says so, and going on gives what it would have been."""
    names, run, code, count = calls_of_all(), folder / "run", ERRORS[case % 5], itertools.count()
    n = case * 7919 % len(names)

    def fail(_: str, argument: Any) -> None:
        if own(run, argument) and next(count) == n:
            raise OSError(code, os.strerror(code))

    said = None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with watched(fail):
                everything(run)
        except OSError as error:
            said = str(error)
        told = [str(w.message) for w in warned if os.strerror(code) in str(w.message)]
        require(next(count) > n, "the call was not made")
        require(names[n][0] == "link" or said or told, f"{names[n]} failed and nobody was informed")
        clear = not said or (os.strerror(code) in said and str(run) in said and "\n" not in said)
        require(clear, f"{names[n]}: {said}")
        left = [path.name for path in run.iterdir() if ".tmp" in path.name] if run.exists() else []
        require(not left, f"{names[n]}: left behind: {left}")
        if (run / NEWEST).exists():
            train(run, resume=True, epochs=3)
        else:
            shutil.rmtree(run, ignore_errors=True)
            train(run, epochs=3)
        likelihood = scored(run / "state")
    end = journal()[2]
    same = (run / "metrics.jsonl").read_bytes() == end["metrics.jsonl"][1] and likelihood == exact()
    return None if same else Outcome(f"{names[n]}: another result", wrong=True)


# R44: bytes of a file, memory and seconds


def rows(text: Callable[[int], str], megabytes: float) -> bytes:
    found, size = [], 0
    for k in itertools.count(1):
        found.append(text(k) + "\n")
        size += len(found[-1])
        if size > megabytes * MB:
            return "".join(found).encode()


def real(k: int) -> str:
    numbers = [0.1234567890123456 * k, 2.345678901234567 / k]
    names = "valid_reconstruction code_mean" if k % 5 == 0 else "reconstruction discriminator generator"
    return json.dumps({"step": k, "epoch": k // 5, **dict.fromkeys(names.split(), numbers)})


METRICS: dict[str, Callable[[], bytes]] = {
    "rows of a run": lambda: rows(real, 12),
    "shortest rows": lambda: rows(lambda k: f'{{"step":{k},"epoch":0,"a":[1]}}', 8),
    "rows of digits": lambda: rows(lambda k: f'{{"step":{k},"epoch":0,"a":[{"1," * 500_000}1]}}', 16),
    "empty lists": lambda: rows(lambda k: f'{{"step":{k},"epoch":0,"a":[{"[]," * 300_000}1]}}', 16),
    "warnings": lambda: rows(lambda k: f'{{"step":{k},"epoch":0,"warning":"{"x" * 90}"}}', 8),
    "one row": lambda: b'{"step":1,"epoch":0,"a":[' + b"1," * 10_000_000 + b"1]}\n",
    "no end of line": lambda: b"1" * 20 * MB,
    "nested": lambda: b"[" * 20 * MB + b"\n",
    "words": lambda: rows(lambda k: f'{{"step":{k},"epoch":0,"a":["x"]}}', 8),
    "other widths": lambda: rows(lambda k: f'{{"step":{k},"epoch":0,"a":[{"1," * (k % 3)}1]}}', 8),
    "many names": lambda: rows(lambda k: json.dumps({"step": k, "epoch": 0} | {f"n{i}": [1] for i in range(9999)}), 8),
}
CONFIGS: dict[str, Callable[[], bytes]] = {
    "empty lists": lambda: b'{"config": {}, "resumed": [' + b"[]," * 300_000 + b"1]}",
    "nested": lambda: b"[" * MB,
    "many names": lambda: json.dumps({f"n{k}": k for k in range(70_000)}).encode(),
    "many widths": lambda: json.dumps({"config": {"hidden": [1] * 300_000}}).encode(),
    "a long name": lambda: json.dumps({"config": {"name": "x" * (MB - 99)}}).encode(),
    "digits": lambda: b'{"config": {"seed": ' + b"9" * (MB - 99) + b"}}",
    "2 MB": lambda: b"{" + b" " * 2 * MB + b"}",
    "1 GB, sparse": lambda: b"",
}
HUGE = 2**31 - 1
ASKED: dict[str, dict[str, Any]] = {  # what a small checkpoint's info or config says
    "hidden 16000": {"hidden": [16000, 16000]}, "hidden of millions": {"hidden": [10**6, 10**6]},
    "many layers": {"hidden": [1] * 20_000}, "style_dim": {"style_dim": HUGE}, "replicas": {"replicas": HUGE},
    "noise_dim": {"posterior": "universal", "noise_dim": HUGE}, "batch_size": {"batch_size": HUGE},
    "n_clusters": {"task": "clustering", "n_labeled": None, "n_clusters": HUGE},
    "heads": {"task": "embedding", "n_labeled": None, "n_clusters": 10**5, "style_dim": 10**5},
    "components": {"task": "unsupervised", "n_labeled": None, "prior": "mixture", "components": 2 * 10**9},
    "label_prior": {"task": "unsupervised", "prior": "mixture", "label_prior": True, "components": 2 * 10**9},
    "n_labeled": {"n_labeled": HUGE}, "log_every": {"log_every": HUGE},
    "decays": {"lr_decay_epochs": list(range(1, 90_000))},
    "profile": {"profile": f"1:{10**17}"}, "shape": {"shape": [HUGE, HUGE]}, "n_classes": {"n_classes": HUGE},
    "shape of ones": {"shape": [1] * 100_000}, "step": {"step": 2**53}, "metrics": {"metrics_bytes": 2**53},
}  # fmt: skip


HUNGRY: dict[str, dict[str, Any]] = {  # runs as they should be whose layers are wide beside their files
    "10,000 clusters": {"hidden": (1,), "task": "clustering", "n_clusters": 10_000},
    "1,000 heads": {"hidden": (1,), "task": "embedding", "n_clusters": 1000, "style_dim": 10},
    "100,000 units": {"hidden": (10**5,), "style_dim": 1},
    "10,000 petals": {"hidden": (8,), "prior": "mixture", "components": 10_000, "style_dim": 2},
}
RNG = np.random.default_rng(0)
LINES = {
    "x": RNG.integers(0, 256, (300, 1), np.uint8), "y": RNG.integers(0, 4, 300),
    "x_test": RNG.integers(0, 256, (10_000, 1), np.uint8), "y_test": RNG.integers(0, 4, 10_000),
}  # fmt: skip


@functools.cache
def hungry_run(name: str) -> Path:
    folder = Path(tempfile.mkdtemp())
    cfg = fastaae.Config(batch_size=20, epochs=1, out_dir=str(folder), **HUNGRY[name])
    fastaae.train(cfg, data=LINES, progress=False)
    return folder


@functools.cache
def small_run() -> Path:
    folder = Path(tempfile.mkdtemp())
    train(folder / "run")
    scored(folder / "state")
    return folder


def reading(kind: str, name: str, folder: Path) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """Each a file, and what reads it."""
    if kind == "model":
        made, data = hungry_run(name), from_arrays(LINES)
        yield made / NEWEST, lambda: evaluate([fastaae.load(made)], data, "test")
        yield made / NEWEST, lambda: figures.draw(fastaae.load(made), data, folder)
        yield made / NEWEST, lambda: fastaae.load(made).log_likelihood(data.x_test[:9], 20_000, 0.3)
        return
    run = Path(shutil.copytree(small_run() / "run", folder / "run"))
    if kind == "metrics":
        (run / "metrics.jsonl").write_bytes(METRICS[name]())
        tensors, info = checkpoint.load(run / NEWEST)
        info["metrics_bytes"] = len(METRICS[name]())
        checkpoint.save(run / NEWEST, tensors, info)
        yield run / "metrics.jsonl", RunDirectory(run).history
        yield run / "metrics.jsonl", lambda: RunDirectory(run).truncate(2**40, None)
        yield run / "metrics.jsonl", lambda: train(run, resume=True, epochs=3)
    elif kind == "config":
        (run / "config.json").write_bytes(CONFIGS[name]())
        if "sparse" in name:
            os.truncate(run / "config.json", 2**30)
        yield run / "config.json", lambda: Config.from_json(run / "config.json")
        yield run / "config.json", lambda: train(run, resume=True, epochs=3)
    elif kind == "checkpoint":
        tensors, info = checkpoint.load(run / NEWEST)
        for field, value in ASKED[name].items():
            (info if field in ("shape", "n_classes", "step", "metrics_bytes") else info["config"])[field] = value
        checkpoint.save(run / NEWEST, tensors, info)
        yield run / NEWEST, lambda: fastaae.load(run).sample(3, 0)
        yield run / NEWEST, lambda: fastaae.train(resume=run, data=DATA, progress=False)
    else:
        path = Path(shutil.copy(small_run() / "state", folder / "state"))
        tensors, info = checkpoint.load(path)
        packed, saved = tensors["sums"], STATES[name]
        checkpoint.save(path, {saved[0]: saved[1](packed)}, {**info, **(saved[2] if len(saved) > 2 else {})})
        yield path, lambda: scored(path)


STATES: dict[str, tuple] = {
    "no sums": ("other", lambda t: t),
    "short": ("sums", lambda t: t[:-1]),
    "long": ("sums", lambda t: t.new_zeros(10**6)),
    "scalar": ("sums", lambda t: t[0]),
    "another type": ("sums", lambda t: t.float()),
    "NaN samples": ("sums", lambda t: t.index_fill(0, torch.tensor([0]), float("nan"))),
    "1e300 samples": ("sums", lambda t: t.index_fill(0, torch.tensor([0]), 1e300)),
    "-50 samples": ("sums", lambda t: t.index_fill(0, torch.tensor([0]), -50)),
    "no dimension": ("sums", lambda t: t.new_zeros(0, 2**40)),
    "other queries": ("sums", lambda t: t, {"queries": ["0"] * 10_000}),
}
FILES = [(kind, name) for kind, names in (("metrics", METRICS), ("config", CONFIGS), ("checkpoint", ASKED),
                                           ("model", HUNGRY), ("state", STATES)) for name in names]  # fmt: skip


def little_memory(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    """Whatever a file says, reading it takes memory in proportion to its bytes, and is done or refused in a line."""
    kind, name = FILES[case]
    small_run()
    for k, (path, read) in enumerate(reading(kind, name, folder)):
        size = path.stat().st_size
        most = 5 * size + 64 * MB if kind == "metrics" else 0.8e9 + 100 * min(size, 2**35)
        peak()
        before, began, message = peak(), time.perf_counter(), None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read()
            except (ValueError, OSError) as error:
                message = str(error)
        took, more = time.perf_counter() - began, peak() - before
        if more > most or took > 20:
            return f"{kind}, {name}, {k}: {more / MB:.0f} MB and {took:.1f} s for {size / MB:.2f} MB: {message}"
        if message is not None and (wrong := unclear(message)):
            return f"{kind}, {name}: {wrong}"
    return None


CHECKS = {
    "R40": Check("runs that start in the same second", 30, same_second),
    "R41": Check("a run's directory is removed, moved, begun again", 100, taken_away),
    "R42": Check("power cut over all files of a run", 200, power_cut),
    "R43": Check("each call for any file of a run fails", 200, failing_call),
    "R44": Check("bytes of a run's files, memory and seconds", len(FILES), little_memory),
}

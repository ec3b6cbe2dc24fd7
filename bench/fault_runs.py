"""Faults in runs and their checkpoints: crashes, signals, full disks, damaged surroundings, ranks that die."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_case import Check, Outcome, Skip, free_port, two_ranks_of
from forks import Forks

import fastaae
from fastaae import Config, checkpoint
from fastaae.checkpoint import LOCK, NEWEST, PREVIOUS
from fastaae.engine.step import Step

# --------------------------------------------------------------------------------------------------------------------
# Processes to kill
# --------------------------------------------------------------------------------------------------------------------


@functools.cache
def forks(k: int) -> Forks:
    """The k-th such process."""
    if not hasattr(os, "fork"):
        raise Skip("no os.fork")
    return Forks("torch", "tqdm.auto", "tyro", "sklearn.datasets", "fault_runs", "fastaae.cli")


def start(folder: Path, name: str, *arguments: Any, k: int = 0) -> int:
    """Start a function of this module, or "cli" with a list of arguments, in a folder. Returns: the process id."""
    where = ("fastaae.cli", "main") if name == "cli" else ("fault_runs", name)
    return forks(k).start(folder, *where, *arguments)


def call(folder: Path, name: str, *arguments: Any) -> int:
    """Run a function, or "cli", in a process of its own. Returns: its exit status."""
    start(folder, name, *arguments)
    return forks(0).wait()


def said(folder: Path) -> str:
    """What the processes in a folder have printed to stderr."""
    path = folder / "stderr"
    return path.read_text(errors="replace") if path.exists() else ""


def require(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


# --------------------------------------------------------------------------------------------------------------------
# Small runs
# --------------------------------------------------------------------------------------------------------------------

TINY = {"dataset": "digits", "hidden": [16, 16], "style_dim": 2, "init_std": 0.2, "batch_size": 50, "epochs": 8,
        "lr_reconstruction": 0.003, "lr_adversarial": 0.02, "lr_classification": 0.05, "lr_decay_epochs": [3],
        "device": "cpu", "log_every": 1}  # fmt: skip
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


def write_config(folder: Path, **changes: Any) -> list[str]:
    """The command line of a tiny run in folder/run."""
    (folder / "cfg.json").write_text(json.dumps({**TINY, **changes}))
    return ["train", "--config", "cfg.json", "--out-dir", "run"]


def result(run: Path) -> tuple[str, str, str]:
    """What has to be equal, bit for bit: weights, all other state, losses and metrics."""
    tensors, _ = checkpoint.load(run / NEWEST)
    summary = json.loads((run / "summary.json").read_text())
    return summary["weights_sha256"], checkpoint.digest(tensors), (run / "metrics.jsonl").read_text()


@functools.cache
def undisturbed(variant: int, epochs: int = TINY["epochs"]) -> tuple[tuple[str, str, str], float]:
    """The result of a run that nothing happens to, and the seconds it takes."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = write_config(Path(folder), **VARIANTS[variant], epochs=epochs)
        started = time.perf_counter()
        status = call(Path(folder), "cli", arguments)
        require(status == 0, f"the undisturbed run ended with {status}: {said(Path(folder))}")
        return result(Path(folder) / "run"), time.perf_counter() - started


def last_step(run: Path) -> int:
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True) if (run / "metrics.jsonl").exists() else []
    return max((json.loads(row)["step"] for row in rows if row.endswith(b"\n")), default=0)


def saved_step(run: Path) -> int:
    return checkpoint.load_run(run)[1]["step"]


def go_on(folder: Path, arguments: list[str]) -> list[str]:
    """The command that goes on after a crash, as the messages say: resume, or start again if nothing was saved."""
    run = folder / "run"
    if run.exists() and ((run / NEWEST).exists() or (run / PREVIOUS).exists()):
        return ["resume", "run"]
    shutil.rmtree(run, ignore_errors=True)
    return arguments


def crash_and_resume(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R10: kill -9 at random instants of a run of 200 steps, until it ends by itself."""
    variant, lost = case % len(VARIANTS), 0
    expected, seconds = undisturbed(variant)
    arguments, run = write_config(folder, **VARIANTS[variant]), folder / "run"
    command = arguments
    for _ in range(1 + int(rng.integers(3))):
        pid = start(folder, "cli", command)
        time.sleep(rng.uniform(0.0, 1.0) * seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if forks(0).wait() == 0:
            break
        command = go_on(folder, arguments)
        lost += last_step(run) - (saved_step(run) if command != arguments else 0)
    if not (run / "summary.json").exists() or command != arguments:
        status = call(folder, "cli", go_on(folder, arguments))
        require(status == 0, f"going on ended with {status}: {said(folder)}")
    require(not list(run.glob(".*.tmp")), "a temporary file is left")
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
        status = call(folder, "train_into_closed_pipe", arguments)
        require(status == 0, f"status {status} where nobody reads the progress: {said(folder)}")
        return Outcome(None if result(run) == expected else "another result", wrong=result(run) != expected)
    pid = start(folder, "cli", arguments)
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
        require(call(folder, "cli", command) == 0, f"resume: {said(folder)}")
    # rows of losses are means since the row before, so only the weights and the state have to be equal
    equal = result(run)[:2] == expected[:2]
    return Outcome(None if equal else "the result is not that of the undisturbed run", lost, not equal)


def train_into_closed_pipe(arguments: list[str]) -> int:
    """A run whose progress is written to a pipe that nobody reads."""
    from fastaae import cli
    from fastaae.run import training

    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    training.time = type("Clock", (), {"monotonic": staticmethod(itertools.count(0, 60).__next__)})  # a line each time
    return cli.main(arguments)


# --------------------------------------------------------------------------------------------------------------------
# Saving
# --------------------------------------------------------------------------------------------------------------------

CALLS = ("open", "write", "flush", "fsync", "umask", "chmod", "unlink", "link", "replace", "close")
"""What write_atomic asks of the system, through os and the file it opens."""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES)


class File:
    """A file whose write, flush and close can be made to fail."""

    def __init__(self, file: Any, before: Callable[[str, Any], None]):
        self.file, self.before = file, before

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()
        self.before("close", None)

    def write(self, content: bytes) -> None:
        half = len(content) // 2
        self.file.write(content[:half])
        self.before("write", self.file)
        self.file.write(content[half:])

    def flush(self) -> None:
        self.before("flush", self.file)
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()


@contextlib.contextmanager
def watched(before: Callable[[str, Any], None]) -> Iterator[None]:
    """before(name, first argument) is called before every call of CALLS that saving makes."""
    originals = {name: getattr(os, name) for name in CALLS if name not in ("write", "flush", "close")}
    fdopen = os.fdopen

    def wrap(name: str) -> Callable:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            before(name, arguments[0])
            return originals[name](*arguments, **options)

        return wrapped

    for name in originals:
        setattr(os, name, wrap(name))
    os.fdopen = lambda *a, **k: File(fdopen(*a, **k), before)
    try:
        yield
    finally:
        os.fdopen = fdopen
        for name, original in originals.items():
            setattr(os, name, original)


def tensors(k: int, size: int = 1000) -> dict[str, torch.Tensor]:
    return {"w": torch.full((size,), float(k))}


def save(folder: Path, k: int, size: int = 1000) -> None:
    checkpoint.save(folder / NEWEST, tensors(k, size), {"step": k}, folder / PREVIOUS)


def loaded(folder: Path) -> int:
    """The step of a run's newest good checkpoint, whose content has to be its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, info = checkpoint.load_run(folder)
    require((found["w"] == info["step"]).all(), "a checkpoint of mixed content was accepted")
    return info["step"]


def stray(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {NEWEST, PREVIOUS}


@functools.cache
def calls_of_save(before: int) -> list[str]:
    """The calls that a save makes where so many were made before it."""
    names: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(before):
            save(Path(folder), k)
        with watched(lambda name, _: names.append(name)):
            save(Path(folder), before)
    return names


def failing_call(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    """R1: the N-th system call of a save fails, for every N and five errors, on the first save and a later one."""
    before, code = (2, 0)[case % 2], ERRORS[case // 2 % 5]
    names = calls_of_save(before)
    n = case // 10 % len(names)
    for k in range(before):
        save(folder, k)
    count = itertools.count()

    def fail(name: str, _: Any) -> None:
        if next(count) == n:
            raise OSError(code, os.strerror(code))

    try:
        with watched(fail):
            save(folder, before)
        raised = None
    except OSError as error:
        raised = error
    require(not stray(folder), f"left behind: {stray(folder)}")
    if raised is None:
        require(names[n] in ("link",), f"{names[n]} failed and nobody was told")
        require(loaded(folder) == before, "a save that succeeded is not there")
        return None
    require(raised.errno == code and NEWEST in str(raised), f"{names[n]}: {raised!r}")
    if before == 0 and not (folder / NEWEST).exists():
        return None
    require(loaded(folder) in (before - 1, before), f"{names[n]}: neither the old nor the new one")
    return None


def saver(megabytes: int) -> None:
    """Save one checkpoint after the other, and say so after each."""
    for k in itertools.count(saved_step_or(-1) + 1):
        save(Path("."), k, megabytes * 250_000)
        os.write(1, f"{k}\n".encode())


def saved_step_or(nothing: int) -> int:
    try:
        return loaded(Path("."))
    except checkpoint.CheckpointError:
        return nothing


def killed_while_saving(rng: np.random.Generator, case: int, folder: Path) -> Outcome | None:
    """R3: kill -9 while checkpoints are saved, 0.5 to 30 ms after one was acknowledged, and start again."""
    for _ in range(2):
        pid = start(folder, "saver", int(rng.integers(1, 4)))
        out, deadline = folder / "stdout", time.monotonic() + 20
        while (not out.exists() or out.stat().st_size == 0) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0005, 0.03))
        os.kill(pid, signal.SIGKILL)
        require(forks(0).wait() == -signal.SIGKILL, f"the saver ended by itself: {said(folder)}")
        acknowledged = int(out.read_text().splitlines()[-1]) if out.read_text().endswith("\n") else -1
        if loaded(folder) < acknowledged:
            return Outcome(f"{acknowledged} was acknowledged, {loaded(folder)} is there", wrong=True)
        out.write_text("")
        with checkpoint.held(folder):
            left = [name for name in os.listdir(folder) if name.endswith(".tmp")]
            require(not left, f"not removed: {left}")
    return None


def power_cut(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    """R5: of the trace of a save every prefix reached the disk, but for data not synced and, in any choice, changes of
    names not synced."""
    before = 2
    names = calls_of_save(before)
    for k in range(before):
        save(folder, k)
    disk = {name: (folder / name).read_bytes() for name in (NEWEST, PREVIOUS)}
    save(folder, before)
    new = (folder / NEWEST).read_bytes()
    cut = case % (len(names) + 1)
    made = names[:cut]
    synced = made.count("fsync") > 0  # of the file; the second is that of the folder
    if made.count("fsync") == 2 and cut > len(names) - 1 - names[::-1].index("fsync"):
        happened = {"unlink", "link", "replace"}
    else:
        happened = {name for name in ("unlink", "link", "replace") if name in made and rng.random() < 0.7}
    content = new if synced else new[: int(rng.integers(len(new)))]
    old = disk[NEWEST]
    if "unlink" in happened:
        disk.pop(PREVIOUS)
    if "link" in happened:
        disk[PREVIOUS] = old
    if "replace" in happened:
        disk[NEWEST] = content
    after = folder / "after"
    after.mkdir()
    for name, written in disk.items():
        (after / name).write_bytes(written)
    found = loaded(after)
    require(found in (before - 1, before), f"step {found} after {made}")
    if cut == len(names):
        require(found == before, "a save that returned is lost")
    return None


def die_while_saving(before: int, n: int) -> None:
    """Save, and die without a word before the n-th call of the next save."""
    for k in range(before):
        save(Path("."), k)
    count = itertools.count()
    with watched(lambda *_: os._exit(9) if next(count) == n else None):
        save(Path("."), before)


def retention(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    """R9: death at each call of a save that replaces others; and tensors that change as soon as save() returns."""
    before = case % 3
    names = calls_of_save(before)
    n = case // 3 % (len(names) + 1)
    status = call(folder, "die_while_saving", before, n)
    require(status == (9 if n < len(names) else 0), f"status {status}: {said(folder)}")
    if before:
        require(loaded(folder) in (before - 1, before), "no checkpoint is left")
        checkpoint.load(folder / NEWEST)  # itself, not the one before
    changing = tensors(7)
    checkpoint.save(folder / "changing", changing, {})
    changing["w"].zero_()
    require((checkpoint.load(folder / "changing")[0]["w"] == 7).all(), "the file changed with the tensor")
    return None


# --------------------------------------------------------------------------------------------------------------------
# Disks
# --------------------------------------------------------------------------------------------------------------------

LIBC = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
NEW_MOUNTS, NEW_USER, PRIVATE, REMOUNT, READ_ONLY = 0x20000, 0x10000000, 0x44000, 0x20, 0x1


def mount(path: str, options: str, flags: int = 0) -> None:
    if LIBC.mount(b"tmpfs", path.encode(), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")


def own_mounts() -> None:
    """From here on this process sees file systems of its own. Raises Skip where it may not."""
    uid = os.getuid()
    if LIBC.unshare(NEW_MOUNTS | (NEW_USER if uid else 0)):
        sys.exit(77)
    if uid:
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    if LIBC.mount(b"none", b"/", None, PRIVATE, None):
        sys.exit(77)


def train_on_small_disk(size: int, read_only: bool) -> int:
    """A run on a disk of so many kilobytes, and on with it once the disk has been made larger. Writes what happened to
    outcome.json."""
    from fastaae import cli

    own_mounts()
    os.mkdir("disk")
    mount("disk", f"size={size}k")
    outcome: dict[str, Any] = {}
    arguments = ["train", "--config", "cfg.json", "--out-dir", "disk/run"]
    if read_only:
        mount("disk", f"size={size}k", REMOUNT | READ_ONLY)
    outcome["status"] = cli.main(arguments)
    run = Path("disk/run")
    outcome["stray"] = [p.name for p in run.glob(".*.tmp")] if run.exists() else []
    outcome["step"] = saved_step(run) if (run / NEWEST).exists() else None
    mount("disk", "size=64m", REMOUNT)
    if outcome["step"] is None:
        shutil.rmtree(run, ignore_errors=True)
    outcome["again"] = cli.main(arguments if outcome["step"] is None else ["resume", "disk/run"])
    outcome["result"] = result(run)[:2]
    Path("outcome.json").write_text(json.dumps(outcome))
    return 0


SMALL_DISK = {"hidden": [200, 200], "epochs": 3, "batch_size": 250, "log_every": 5}


@functools.cache
def undisturbed_on_large_disk() -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        require(call(Path(folder), "cli", write_config(Path(folder), **SMALL_DISK)) == 0, "the undisturbed run failed")
        return result(Path(folder) / "run")[:2]


def full_disk(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R4: a real disk of 0.1 to 2.7 MB, which takes no checkpoint of 1.4 MB or one, and never a second beside it; every
    fifth case a read-only one."""
    read_only = case % 5 == 4
    write_config(folder, **SMALL_DISK)
    status = call(folder, "train_on_small_disk", int(rng.integers(100, 2700)), read_only)
    if status == 77:
        raise Skip("no mount namespaces here")
    require(status == 0, f"status {status}: {said(folder)}")
    outcome, err = json.loads((folder / "outcome.json").read_text()), said(folder)
    require(outcome["again"] == 0 and not outcome["stray"], f"{outcome} {err}")
    first = next(line for line in err.splitlines() if line.startswith("fastaae: "))
    expected = r"fastaae: disk\S+: (Read-only file system|No space left on device).*; last good checkpoint: (.*)"
    match = re.fullmatch(expected, first)
    require(outcome["status"] == 1 and match, f"status {outcome['status']}: {first}")
    kept = "none" if outcome["step"] is None else f"disk/run/{NEWEST} (step {outcome['step']})"
    require(match[2] == kept, f"{first}, but {kept} is there")
    require(read_only or "MB needed" in first, f"does not say how much: {first}")
    wrong = tuple(outcome["result"]) != undisturbed_on_large_disk()
    return Outcome("another result" if wrong else None, wrong=wrong)


def train_once_told(arguments: list[str]) -> int:
    from fastaae import cli

    while not os.path.exists("go"):
        time.sleep(0.01)
    return cli.main(arguments)


@functools.cache
def strace_works() -> bool:
    return shutil.which("strace") is not None and LIBC is not None


def failing_system_call(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R2: strace lets a real system call of a run fail."""
    if not strace_works():
        raise Skip("no strace")
    call_name = ("fsync", "rename", "write", "linkat,link")[case % 4]
    code = str(rng.choice(["ENOSPC", "EIO", "EDQUOT", "EROFS"]))
    # The first writes are of the lock and of a semaphore, which nothing depends on. A slow disk gets few checkpoints:
    # only the first one and the last are sure.
    first, last = {"fsync": (1, 10), "rename": (1, 5), "write": (4, 20), "linkat,link": (1, 1)}[call_name]
    k = int(rng.integers(first, last + 1))
    variant, run = 0, folder / "run"
    changes = {**VARIANTS[variant], "log_every": 25}
    arguments = write_config(folder, **changes)
    pid = start(folder, "train_once_told", arguments)
    inject = [f"inject={name}:error={code}:when={k}" for name in call_name.split(",")]
    command = ["strace", "-f", "-qq", "-o", str(folder / "trace"), *(f"-e{i}" for i in inject), "-p", str(pid)]
    command.insert(5, f"-etrace={call_name}")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        deadline = time.monotonic() + 10
        while f"TracerPid:\t{tracer.pid}" not in Path(f"/proc/{pid}/status").read_text():
            if tracer.poll() is not None or time.monotonic() > deadline:
                (folder / "go").touch()
                forks(0).wait()
                raise Skip(f"strace cannot attach: {tracer.stderr.read().strip()}")
            time.sleep(0.01)
        (folder / "go").touch()
        status = forks(0).wait()
        tracer.wait(10)
    injected, err = "(INJECTED)" in (folder / "trace").read_text(errors="replace"), said(folder)
    require(injected, f"no {call_name} was the {k}th")
    if status:
        require(status == 1, f"status {status} after {code} in {call_name}: {err}")
        require(err.count("\n") == 1 and err.startswith("fastaae: ") and "last good checkpoint" in err, err)
        status = call(folder, "cli", go_on(folder, arguments))
    else:
        require(call_name == "linkat,link", f"{code} in {call_name} {k} and nobody was told")
    require(status == 0, f"going on ended with {status}: {said(folder)}")
    require(not list(run.glob(".*.tmp")), "a temporary file is left")
    equal = result(run)[:2] == undisturbed(variant)[0][:2]
    return Outcome(None if equal else "another result", wrong=not equal)


# --------------------------------------------------------------------------------------------------------------------
# Files and tensors of all kinds
# --------------------------------------------------------------------------------------------------------------------


def save_over_the_loaded(folder: Path) -> None:
    save(folder, 1)
    found, _ = checkpoint.load(folder / NEWEST)
    found["w"] += 1
    checkpoint.save(folder / NEWEST, found, {"step": 2}, folder / PREVIOUS)
    require(loaded(folder) == 2 and checkpoint.load(folder / PREVIOUS)[1] == {"step": 1}, "another content")


def save_onto_a_link(folder: Path) -> None:
    save(folder, 1)
    os.rename(folder / NEWEST, folder / "elsewhere")
    (folder / NEWEST).symlink_to("elsewhere")
    require(loaded(folder) == 1, "a link that a user made is not followed")
    save(folder, 2)
    require(loaded(folder) == 2 and checkpoint.load(folder / "elsewhere")[1] == {"step": 1}, "the link was followed")


def save_onto_a_second_name(folder: Path) -> None:
    save(folder, 1)
    os.link(folder / NEWEST, folder / "second")
    save(folder, 2)
    require(loaded(folder) == 2 and checkpoint.load(folder / "second")[1] == {"step": 1}, "both names changed")


def load_what_hangs_in_a_loop(folder: Path) -> None:
    (folder / NEWEST).symlink_to(NEWEST)
    try:
        checkpoint.load(folder / NEWEST)
    except checkpoint.CheckpointError:
        return
    raise AssertionError("loaded")


def forbidden(where: str) -> None:
    """Of another user, who may not write there."""
    os.seteuid(65534)
    try:
        save(Path(where), 2)
    except PermissionError:
        return
    raise AssertionError("no error")


def save_where_it_is_forbidden(folder: Path) -> None:
    if os.geteuid():
        raise Skip("only root can be another user")
    inner = folder / "inner"
    inner.mkdir()
    save(inner, 1)
    folder.chmod(0o755)
    inner.chmod(0o555)
    require(call(folder, "forbidden", "inner") == 0, said(folder))
    require(loaded(inner) == 1 and not stray(inner), "the old one is gone")


def save_over_a_folder(folder: Path) -> None:
    (folder / NEWEST).mkdir()
    try:
        save(folder, 1)
    except OSError:
        require(os.listdir(folder) == [NEWEST], f"left behind: {os.listdir(folder)}")
        return
    raise AssertionError("no error")


def mode_of_a_save(umask: int, existing: int | None, folder: Path) -> None:
    if existing is not None:
        save(folder, 1)
        (folder / NEWEST).chmod(existing)
    before = os.umask(umask)
    try:
        save(folder, 2)
    finally:
        os.umask(before)
    mode = stat.S_IMODE((folder / NEWEST).stat().st_mode)
    require(mode == 0o666 & ~umask, f"mode {mode:o} under umask {umask:o}")


TARGETS = [
    save_over_the_loaded, save_onto_a_link, save_onto_a_second_name, load_what_hangs_in_a_loop,
    save_where_it_is_forbidden, save_over_a_folder,
    *(functools.partial(mode_of_a_save, *how) for how in itertools.product((0o077, 0o022, 0o002), (None, 0o400))),
]  # fmt: skip


def target(rng: np.random.Generator, case: int, folder: Path) -> None:
    """R7: targets that are links, second names, folders, forbidden, of another mode."""
    TARGETS[case](folder)


def awkward(rng: np.random.Generator) -> list[dict[str, torch.Tensor]]:
    base = torch.from_numpy(rng.normal(size=(4, 6, 5)))
    odd = torch.tensor([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    return [
        {"t": base.transpose(0, 2)}, {"t": base[:, ::2, 1::3]}, {"t": base[:1].expand(7, 6, 5)},
        {"t": base, "tied": base, "part": base[1]}, {"t": base[0, 0, 0]}, {"t": base[:0]}, {"t": base.bfloat16()},
        {"t": base.half()}, {"t": (base * 1e18).long()}, {"t": base > 0}, {"t": odd.double(), "u": odd.float()},
        {"größe.重み.💾": base, 'quo"te\\': base, "": base}, {"t": torch.ones(1).reshape([1] * 8)},
        {str(k): base[0, 0, :1] for k in range(4096)}, {str(k): base[0, 0, :1] for k in range((1 << 16) + 1)},
    ]  # fmt: skip


def tensors_of_all_kinds(rng: np.random.Generator, case: int, folder: Path) -> Outcome | None:
    """R8: views, types, names: bit for bit, or refused."""
    given = awkward(rng)[case]
    try:
        checkpoint.save(folder / NEWEST, given, {})
    except ValueError as error:
        require("expected at most 4096 tensors" in str(error) and not os.listdir(folder), str(error))
        require(len(given) > 4096, f"refused: {error}")
        return None
    found, _ = checkpoint.load(folder / NEWEST)
    equal = checkpoint.digest(found) == checkpoint.digest(given)
    return Outcome(None if equal else "other tensors came back", wrong=not equal)


# --------------------------------------------------------------------------------------------------------------------
# Randomness, versions, changed configs, numbers that are not finite
# --------------------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
DATA = {"x": RNG.integers(0, 256, (300, 16), dtype=np.uint8), "y": RNG.integers(0, 4, 300)}
ARRAYS = Config(hidden=(8,), style_dim=2, init_std=0.3, batch_size=50, epochs=2, replicas=2, log_every=2,
                task="semi_supervised", n_labeled=80, lr_reconstruction=0.003, lr_adversarial=0.02,
                lr_classification=0.05)  # fmt: skip


def train(directory: Path, resume: bool = False, **changes: Any) -> fastaae.Run:
    cfg = dataclasses.replace(ARRAYS, **{"out_dir": str(directory), **changes})
    return fastaae.train(cfg, data=DATA, resume=directory if resume else None, progress=False)


def train_from(prelude: str, arguments: list[str]) -> int:
    """Run a command after something that should not matter to it."""
    from fastaae import cli

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
    status = call(folder, "train_from", prelude, arguments)
    if prelude == "stop":  # go on for longer than planned; the rates follow the epochs
        longer = {"cfg": {**TINY, **VARIANTS[variant], "out_dir": "run"}}
        status = status or call(folder, "train_longer", longer["cfg"])
    elif prelude == "copy":
        os.rename(folder / "run", folder / "moved")
        repeat = ["train", "--config", "moved/config.json", "--out-dir", "run"]
        status = status or call(folder, "cli", repeat)
    elif prelude == "evaluate":
        status = status or call(folder, "cli", ["evaluate", "run"]) or call(folder, "cli", ["resume", "run"])
    require(status == 0, f"status {status}: {said(folder)}")
    found = result(folder / "run")
    if prelude in ("threads", "beside"):
        summary = json.loads((folder / "run" / "summary.json").read_text())["metrics"]["test_reconstruction"]
        reference = reference_loss(variant)
        far = abs(summary["replicas"][0] / reference - 1)
        return f"{prelude}: the loss differs by {100 * far:.2f} %" if far > CLOSE else None
    equal = found[0] == expected[0]
    return Outcome(None if equal else f"{prelude} {flags}: other weights", wrong=not equal)


@functools.cache
def reference_loss(variant: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        require(call(Path(folder), "cli", write_config(Path(folder), **VARIANTS[variant])) == 0, "the run failed")
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        return summary["metrics"]["test_reconstruction"]["replicas"][0]


def train_longer(fields: dict[str, Any]) -> int:
    fastaae.train(Config.from_dict(fields), resume="run", progress=False)
    return 0


def rewrite(path: Path, change: Callable[[dict, dict], None], format_: int = 1) -> None:
    """The checkpoint at path after change(tensors, info), with a digest of its own."""
    found, info = checkpoint.load(path)
    change(found, info)
    before = checkpoint.FORMAT
    checkpoint.FORMAT = format_
    try:
        checkpoint.save(path, found, info)
    finally:
        checkpoint.FORMAT = before


KEY = "encoder.0.weight"
VERSIONS: list[tuple[Callable[[dict, dict], Any], int, str | None]] = [  # what is changed, the format, what is said
    (lambda t, i: None, 1, None),
    (lambda t, i: None, 2, "format '2', expected 1, which this version of fastaae reads"),
    (lambda t, i: None, 99, "format '99', expected 1, which this version of fastaae reads"),
    (lambda t, i: t.pop(KEY), 1, rf"no {KEY} float32 \[2, 8, 16\], .*; written by fastaae 9.9, this is "),
    (
        lambda t, i: t.update(extra=torch.ones(1)),
        1,
        r"unknown extra float32 \[1\], .*; written by fastaae 9.9, this is ",
    ),
    (lambda t, i: t.update(other=t.pop(KEY)), 1, f"no {KEY} .*; written by fastaae 9.9, this is "),
    (lambda t, i: t.update({KEY: t[KEY].double()}), 1, f"no {KEY} float32 .*; written by fastaae 9.9, this is "),
    (lambda t, i: t.update({KEY: t[KEY][:1]}), 1, f"no {KEY} float32 .*; written by fastaae 9.9, this is "),
    (lambda t, i: i["config"].update(novelty=3), 1, "config: unknown field 'novelty'"),
    (lambda t, i: i["config"].pop("on_divergence"), 1, None),
]


def versions(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    """R13: checkpoints of other versions load and go on, or are refused in a line."""
    change, format_, message = VERSIONS[case]
    run = folder / "run"
    train(run, epochs=1)

    def and_version(found: dict, info: dict) -> None:
        change(found, info)
        info["fastaae"] = "9.9"

    rewrite(run / NEWEST, and_version, format_)
    try:
        train(run, resume=True)
    except ValueError as error:
        require(message and re.search(message, str(error)) and "\n" not in str(error), f"said: {error}")
        return None
    return None if message is None else "resumed"


CHANGES: list[tuple[dict[str, Any], str | None]] = [
    *(({name: value}, name) for name, value in [
        ("hidden", (9,)), ("style_dim", 3), ("seed", 1), ("replicas", 1), ("batch_size", 25), ("optimizer", "adam"),
        ("lr_adversarial", 0.03), ("input_noise", 0.1), ("init_std", 0.2), ("n_labeled", 40), ("precision", "fp64")]),
    ({"epochs": 3}, None), ({"log_every": 1}, None), ({"checkpoint_every": 2}, None),
    ({"on_divergence": "restart"}, None), ({"ranks": 2}, "ranks"), ({"out_dir": "elsewhere"}, "out_dir"),
]  # fmt: skip


def changed_config(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    """R14: a run resumed with another config: what its weights do not depend on may change, the rest is refused."""
    change, refused = CHANGES[case]
    run = folder / "run"
    train(run, epochs=1)
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    if "ranks" in change:
        (folder / "several" / "rank-0").mkdir(parents=True)
        run, change = folder / "several", {}
    try:
        train(run, resume=True, **change)
    except ValueError as error:
        require(refused, f"refused: {error}")
        require(refused in str(error), f"does not say which field: {error}")
        values = "ranks" in refused or all(str(v) in str(error) for v in change.values())
        require(values, f"does not say what was given: {error}")
        require(refused == "ranks" or before == {p.name: p.read_bytes() for p in run.iterdir()}, "files have changed")
        return None
    return f"{refused} was changed without a word" if refused else None


def not_finite(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    """R15: NaN or infinity in batch, weight, momentum or loss of a phase is found before it reaches a checkpoint."""
    value = float(rng.choice([np.nan, np.inf, -np.inf]))
    where, phase = divmod(case, 3)
    name = ("reconstruction", "discriminator", "generator")[phase]
    network = ("decoder", "discriminator.z", "encoder")[phase]
    at, original = int(rng.integers(6, 10)), Step.__call__

    def spoil(step: Step) -> None:
        if int(step.batches.count[1]) == at:
            if where == 0:
                batches = step.batches
                batches.x = batches.x.float() / 255
                batches.x[:, rng.integers(16)] = value
                batches.staging = None
            elif where == 1:
                step.networks[network].weights[0][1, 0, 0] = value
            elif where == 2:
                optimizer = "discriminator.z" if phase == 1 else f"{name}.{network}"
                step.optimizers[optimizer].moments["0.weight"][0][1, 0, 0] = value
            elif not step.losses.isnan().any():
                step.phases = tuple(spoilt(p) if p.__name__ == name else p for p in step.phases)
        original(step)

    def spoilt(function: Callable) -> Callable:
        @functools.wraps(function)
        def phase(step: Step, terms: torch.Tensor) -> None:
            function(step, terms)
            terms[1, 0] = value

        return phase

    Step.__call__ = spoil
    try:
        train(folder / "run", log_every=100)
    except fastaae.NonFiniteError as error:
        found = re.match(r"step (\d+): (the \w+ loss of replica \d|[\w.]+) is .*; last good checkpoint: .*", str(error))
        require(found and at < int(found[1]) <= 10, f"at step {at + 1}: {error}")
    else:
        return "trained to the end"
    finally:
        Step.__call__ = original
    kept, info = checkpoint.load(folder / "run" / NEWEST)
    require(info["step"] == 5 and all(t.isfinite().all() for t in kept.values()), "a spoilt checkpoint was saved")
    return None


# --------------------------------------------------------------------------------------------------------------------
# Names and links
# --------------------------------------------------------------------------------------------------------------------


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
        require(call(work, "cli", write_config(work, **epochs)) == 0, said(work))
        victim = work / "run" / LINKED[case]
        with contextlib.suppress(FileNotFoundError):
            victim.unlink()
        victim.symlink_to(outside / LINKED[case])
        before = tree(outside)
        call(work, "resume_longer")
        call(work, "cli", ["sample", "run", "--n", "4"])
        call(work, "cli", ["figures", "run"])
    else:
        k = case - len(LINKED)
        if k < len(NAMES):
            arguments, odd = write_config(work, **epochs, name=NAMES[k])[:3], NAMES[k]
        else:
            arguments, odd = write_config(work, **epochs), OUT[k - len(NAMES)]
            arguments[-1] = odd
        before = tree(outside)
        status = call(work, "cli", arguments)
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
    from fastaae import cli

    cfg = Config.from_dict({**TINY, "epochs": 3, "log_every": 5, "profile": "30:31", "out_dir": "run"})
    with contextlib.suppress(ValueError, OSError):
        fastaae.train(cfg, resume="run", progress=False)
    return cli.main(["resume", "run"])


# --------------------------------------------------------------------------------------------------------------------
# Ranks
# --------------------------------------------------------------------------------------------------------------------

RANKS = """
import itertools, os, signal, sys, time
import torch
torch.set_num_threads(1)
from fastaae import checkpoint, cli, evaluation
from fastaae.run import ranks
from fastaae.engine.step import Step

ranks.SILENCE = 8.0
fault, point, at, arguments = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
count = itertools.count()

def hit(*_, **__):
    if next(count) != at:
        return
    with open("hit", "w") as file:
        file.write(str(time.time()))
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "raise":
        raise RuntimeError("injected")
    if fault == "exit":
        os._exit(0)
    if fault == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    if fault == "hang":
        time.sleep(600)

def before(owner, name):
    original = getattr(owner, name)
    def wrapped(*a, **k):
        hit()
        return original(*a, **k)
    setattr(owner, name, wrapped)

if os.environ["RANK"] == "1":
    owner, name = {"start": (Step, "__init__"), "step": (Step, "__call__"), "save": (os, "replace"),
                   "evaluation": (evaluation, "evaluate"), "gather": (ranks.distributed, "all_gather_object")}[point]
    before(owner, name)
sys.exit(cli.main(arguments))
"""
POINTS = {"start": 0, "step": 60, "save": 8, "evaluation": 3, "gather": 0}


def rank_of_two(rank: int, port: int, arguments: list[str]) -> int:
    """One of two ranks without a launcher."""
    from fastaae import cli

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return cli.main(arguments)


def two_ranks(folder: Path, arguments: list[str]) -> None:
    """Both ranks, undisturbed."""
    port = free_port()
    for k in range(2):
        start(folder, "rank_of_two", k, port, arguments, k=k)
    statuses = [forks(k).wait() for k in range(2)]
    require(statuses == [0, 0], f"exit status {statuses}: {said(folder)[-300:]}")


def of_ranks(folder: Path) -> list[str]:
    """The weights of both ranks' runs."""
    return [result(folder / "run" / f"rank-{k}")[0] for k in range(2)]


@functools.cache
def undisturbed_ranks() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        two_ranks(Path(folder), write_config(Path(folder), replicas=2, log_every=25))
        return of_ranks(Path(folder))


def rank_dies(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R27: one of two ranks is killed, fails, leaves, is terminated or hangs at five points: all end, and go on as
    before."""
    fault = ("kill", "raise", "hang", "exit", "terminate")[case % 5]
    point = list(POINTS)[case // 5 % 5]
    at = int(rng.integers(POINTS[point] + 1))
    expected = undisturbed_ranks()
    arguments = write_config(folder, replicas=2, log_every=25)
    script = folder / "ranks.py"
    script.write_text(RANKS)
    status = two_ranks_of(script, fault, point, at, *arguments, launcher=fault != "hang", patience=60)
    seconds = time.time() - float((folder / "hit").read_text())
    require(status != 99, f"{fault} at {point} {at}: still running after 60 s")
    require(status != 0 or (fault, point) == ("terminate", "gather"), f"{fault} at {point} {at}: exit status 0")
    saved = [(folder / "run" / f"rank-{k}" / NEWEST).exists() for k in range(2)]
    if all(saved):
        command = ["resume", "run"]
    else:
        command = arguments
        shutil.rmtree(folder / "run", ignore_errors=True)
    two_ranks(folder, command)
    equal = of_ranks(folder) == expected
    late = None if seconds <= (13 if fault == "hang" else 10) else f"{fault} at {point}: ended {seconds:.0f} s later"
    return Outcome(late if equal else "the result is not that of the undisturbed ranks", wrong=not equal)


def ranks_are_replicas(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R28: two ranks of one replica each are, bit for bit, the two runs of their seeds alone."""
    changes = {**VARIANTS[case % len(VARIANTS)], "replicas": 2, "seed": int(rng.integers(1000)), "epochs": 3}
    two_ranks(folder, write_config(folder, **changes))
    alone = []
    for k in range(2):
        one = {**changes, "replicas": 1, "seed": changes["seed"] + k}
        arguments = write_config(folder, **one)
        arguments[-1] = f"alone-{k}"
        require(call(folder, "cli", arguments) == 0, said(folder)[-300:])
        alone.append(result(folder / f"alone-{k}")[0])
    equal = of_ranks(folder) == alone
    return Outcome(None if equal else "ranks and runs alone differ", wrong=not equal)


# --------------------------------------------------------------------------------------------------------------------
# Leaks
# --------------------------------------------------------------------------------------------------------------------


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
    status = call(folder, "use_and_measure")
    require(status == 0, f"status {status}: {said(folder)}")
    first, last = json.loads((folder / "marks.json").read_text())
    same = first["descriptors"] == last["descriptors"] and first["threads"] == last["threads"]
    require(same and last["MiB"] - first["MiB"] < 5, f"{first} became {last}")
    return None


CHECKS = {
    "R1": Check("each call of a save fails", 260, failing_call),
    "R2": Check("system calls of a run fail (strace)", 20, failing_system_call),
    "R3": Check("kill -9 while saving", 200, killed_while_saving),
    "R4": Check("full or read-only disk", 20, full_disk),
    "R5": Check("power cut in a save", 60, power_cut),
    "R7": Check("awkward targets of a save", len(TARGETS), target),
    "R8": Check("awkward tensors", 15, tensors_of_all_kinds),
    "R9": Check("death at each call of a save", 50, retention),
    "R10": Check("kill -9 in a run, resume", 100, crash_and_resume),
    "R11": Check("signals, closed pipe", 20, signalled),
    "R12": Check("hidden randomness", len(WATCHED), hidden_randomness),
    "R13": Check("checkpoints of other versions", len(VERSIONS), versions),
    "R14": Check("resume with another config", len(CHANGES), changed_config),
    "R15": Check("NaN and infinity", 12, not_finite),
    "R25": Check("names and links out of the directory", len(LINKED) + len(NAMES) + len(OUT), names_and_links),
    "R27": Check("a rank dies or hangs", 25, rank_dies),
    "R28": Check("ranks against runs alone", 20, ranks_are_replicas),
    "R30": Check("leaks", 1, leaks),
}

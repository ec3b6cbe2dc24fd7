"""Disks that are full, read-only or broken: R2, R4."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fastaae import cli

from .case import Check, Outcome, Skip, require
from .inside import NEWEST
from .tiny import VARIANTS, call, forks, go_on, result, run_cli, said, saved_step, start, undisturbed, write_config

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
    own_mounts()
    os.mkdir("disk")
    mount("disk", f"size={size}k")
    outcome: dict[str, Any] = {}
    arguments = ["train", "--config", "cfg.json", "--out-dir", "disk/run"]
    if read_only:
        mount("disk", f"size={size}k", REMOUNT | READ_ONLY)
    outcome["status"] = cli.main(arguments)
    run = Path("disk/run")
    outcome["stray"] = [p.name for p in run.glob(".*.tmp*")] if run.exists() else []
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
        require(run_cli(Path(folder), write_config(Path(folder), **SMALL_DISK)) == 0, "the undisturbed run failed")
        return result(Path(folder) / "run")[:2]


def full_disk(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R4: a real disk of 0.1 to 2.7 MB, which takes no checkpoint of 1.4 MB or one, and never a second beside it; every
    fifth case a read-only one."""
    read_only = case % 5 == 4
    write_config(folder, **SMALL_DISK)
    status = call(folder, train_on_small_disk, int(rng.integers(100, 2700)), read_only)
    if status == 77:
        raise Skip("no mount namespaces here")
    require(status == 0, f"status {status}: {said(folder)}")
    outcome, err = json.loads((folder / "outcome.json").read_text()), said(folder)
    require(outcome["again"] == 0 and not outcome["stray"], f"{outcome} {err}")
    first = next(line for line in err.splitlines() if line.startswith("fastaae: "))
    where, why = re.escape(f"{folder}/disk"), "(Read-only file system|No space left on device)"
    expected = rf"fastaae: {where}\S+: {why}.*; last good checkpoint: (.*)"
    match = re.fullmatch(expected, first)
    require(outcome["status"] == 1 and match, f"status {outcome['status']}: {first}")
    kept = "none" if outcome["step"] is None else f"{folder}/disk/run/{NEWEST} (step {outcome['step']})"
    require(match[2] == kept, f"{first}, but {kept} is there")
    require(read_only or "MB needed" in first, f"does not say how much: {first}")
    wrong = tuple(outcome["result"]) != undisturbed_on_large_disk()
    return Outcome("another result" if wrong else None, wrong=wrong)


def train_at_a_sign(arguments: list[str]) -> int:
    """Train once a file named go is there."""
    while not os.path.exists("go"):
        time.sleep(0.01)
    return cli.main(arguments)


def failing_system_call(rng: np.random.Generator, case: int, folder: Path) -> Outcome:
    """R2: strace lets a real system call of a run fail."""
    if shutil.which("strace") is None or LIBC is None:
        raise Skip("no strace")
    call_name = ("fsync", "rename", "write", "linkat,link")[case % 4]
    code = str(rng.choice(["ENOSPC", "EIO", "EDQUOT", "EROFS"]))
    # The first writes are of the lock and of a semaphore, which nothing depends on. A slow disk gets few checkpoints:
    # only the first one and the last are sure.
    first, last = {"fsync": (1, 10), "rename": (1, 5), "write": (4, 20), "linkat,link": (1, 1)}[call_name]
    k = int(rng.integers(first, last + 1))
    variant, run = 0, folder / "run"
    changes = {**VARIANTS[variant], "log_every": 25}
    arguments = [*write_config(folder, **changes), "--quiet"]  # or some writes are of the progress
    pid = start(folder, train_at_a_sign, arguments)
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
        status = run_cli(folder, go_on(folder, arguments))
    else:
        require(call_name == "linkat,link", f"{code} in {call_name} {k} and nobody was informed")
    require(status == 0, f"going on ended with {status}: {said(folder)}")
    require(not list(run.glob(".*.tmp*")), "a temporary file is left")
    equal = result(run)[:2] == undisturbed(variant)[0][:2]
    return Outcome(None if equal else "another result", wrong=not equal)


CHECKS = {
    "R2": Check("system calls of a run fail (strace)", 20, failing_system_call),
    "R4": Check("full or read-only disk", 20, full_disk),
}

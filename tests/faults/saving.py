"""Faults in a save and in what it leaves: R1, R3, R5, R7, R8, R9."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import signal
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .case import Check, Outcome, Skip, require
from .inside import NEWEST, PREVIOUS, CheckpointError, checkpoint, files_opened_by, held, load_run
from .tiny import call, forks, said, start

CALLS = ("create", "open", "fsync", "unlink", "link", "replace", "write", "close")
"""What write_atomic asks of the system, through os and the files it opens."""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES)


class File:
    """A file that is written, whose write and close can be made to fail."""

    def __init__(self, file: Any, before: Callable[[str, Any], None]):
        self.file, self.before = file, before

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.before("close", self.file.name)

    def write(self, content: Any) -> int:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.before("write", self.file.name)
        return half + self.file.write(content[half:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextlib.contextmanager
def watched(before: Callable[[str, Any], None]) -> Iterator[None]:
    """before(name, first argument) is called before every call of CALLS that saving, or a run, makes."""
    originals = {name: getattr(os, name) for name in ("open", "fsync", "unlink", "link", "replace")}

    def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode[0] not in "xa":
            return open(path, mode, *arguments, **options)
        before("create", path)
        return File(open(path, mode, *arguments, **options), before)

    def wrap(name: str) -> Callable:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            before(name, arguments[0])
            return originals[name](*arguments, **options)

        return wrapped

    for name in originals:
        setattr(os, name, wrap(name))
    try:
        with files_opened_by(opened):
            yield
    finally:
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
        found, info = load_run(folder)
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
        require(names[n] in ("link",), f"{names[n]} failed and nobody was informed")
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
    except CheckpointError:
        return nothing


def killed_while_saving(rng: np.random.Generator, case: int, folder: Path) -> Outcome | None:
    """R3: kill -9 while checkpoints are saved, 0.5 to 30 ms after one was acknowledged, and start again."""
    for _ in range(2):
        pid = start(folder, saver, int(rng.integers(1, 4)))
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
        with held(folder):
            left = [name for name in os.listdir(folder) if ".tmp" in name]
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
    calls = names[:cut]  # that were made
    synced = calls.count("fsync") > 0  # of the file; the second is that of the folder
    if calls.count("fsync") == 2 and cut > len(names) - 1 - names[::-1].index("fsync"):
        happened = {"unlink", "link", "replace"}
    else:
        happened = {name for name in ("unlink", "link", "replace") if name in calls and rng.random() < 0.7}
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
    require(found in (before - 1, before), f"step {found} after {calls}")
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
    status = call(folder, die_while_saving, before, n)
    require(status == (9 if n < len(names) else 0), f"status {status}: {said(folder)}")
    if before:
        require(loaded(folder) in (before - 1, before), "no checkpoint is left")
        checkpoint.load(folder / NEWEST)  # itself, not the one before
    changing = tensors(7)
    checkpoint.save(folder / "changing", changing, {})
    changing["w"].zero_()
    require((checkpoint.load(folder / "changing")[0]["w"] == 7).all(), "the file changed with the tensor")
    return None


# Files and tensors of all kinds


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
    except CheckpointError:
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
    require(call(folder, forbidden, "inner") == 0, said(folder))
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


CHECKS = {
    "R1": Check("each call of a save fails", 260, failing_call),
    "R3": Check("kill -9 while saving", 200, killed_while_saving),
    "R5": Check("power cut in a save", 60, power_cut),
    "R7": Check("awkward targets of a save", len(TARGETS), target),
    "R8": Check("awkward tensors", 15, tensors_of_all_kinds),
    "R9": Check("death at each call of a save", 50, retention),
}

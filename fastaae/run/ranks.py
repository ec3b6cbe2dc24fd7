"""Replicas spread over the ranks of torch.distributed: each rank trains its share, one summary is written for all."""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from .. import evaluation
from ..config import Config
from ..directory import RunDirectory
from ..files import warn_caller
from ..kernels import onednn
from ..liveness import Heartbeat
from ..members import Members
from . import provenance
from .signals import Interrupted

PATIENCE = 10.0  # seconds until a rank says that it waits for the others
SILENCE = 1800.0  # seconds without a step, such as an evaluation may take, after which a rank is taken for dead


def several() -> bool:
    """Whether torch.distributed has been initialised with more than one rank."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def place() -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if several() else (0, 1)


def part(n: int, rank: int | None = None) -> slice:
    """Which of n replicas, or of what each has, are a rank's; None: this one's."""
    own, world = place()
    k = own if rank is None else rank
    return slice(k * n // world, (k + 1) * n // world)


def everyone(said: Any) -> list[Any]:
    """What all ranks say, once they do; their own words."""
    heard = [said] * place()[1]
    if several():
        distributed.all_gather_object(heard, said)
    return heard


def launched() -> bool:
    """Initialise torch.distributed if torchrun has started this process as one of several. Returns: whether it has.
    Raises ValueError where a part of what torchrun says is missing."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
    *numbers, address = said = [os.environ.get(name, "") for name in names]
    if numbers[0] in ("", "0", "1"):
        return False
    if (
        not address
        or not all(n.isascii() and n.isdecimal() and int(n) < 2**16 for n in numbers)
        or int(numbers[1]) >= int(numbers[0])
    ):
        found = " ".join(f"{name}={value!r}" for name, value in zip(names, said, strict=True))
        raise ValueError(f"{found}: start it by torchrun, which sets all of these, or unset WORLD_SIZE")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    where = f"rank {numbers[1]} of {numbers[0]} waits for the others at {address}:{numbers[3]}"
    late = threading.Timer(PATIENCE, warn_caller, [f"{where}: start all by torchrun, or unset WORLD_SIZE"])
    late.start()
    try:
        distributed.init_process_group("gloo", timeout=timedelta(seconds=SILENCE))
    finally:
        late.cancel()
    return True


@contextlib.contextmanager
def share(
    cfg: Config | None, resume: str | Path | None, members: Sequence[Mapping[str, Any]] = ()
) -> Iterator[tuple[Config | None, Path | None, Sequence[Mapping[str, Any]], Heartbeat]]:
    """The part of a run that is this rank's: cfg, resume and members as in train(), and what is heard of the others.

    Rank k of K trains the replicas from k R // K on, seeded as they are in a single process, in the directory rank-k of
    the run's own. Where one fails or makes no step for SILENCE, the others save a checkpoint and stop.

    Raises:
        ValueError: fewer replicas than ranks. RuntimeError: another rank failed or fell silent; it says which and how.
    """
    where = resume if cfg is None or resume is not None else cfg.out_dir
    if where is None and cfg is not None:
        where = everyone("" if place()[0] else provenance.new_directory(cfg.name))[0]  # by the clock of the first
    elif resume is None and cfg is not None:  # before any rank makes its own directory there
        message = ""
        if not place()[0]:
            try:
                RunDirectory(cfg.out_dir or ".").check_empty()
            except ValueError as error:
                message = str(error)
        if message := everyone(message)[0]:
            raise ValueError(f"{message}")
    directory, heartbeat = RunDirectory(where or "."), Heartbeat("steps", SILENCE)
    world, own = heartbeat.world, directory.of_rank(heartbeat.rank)
    try:
        if resume is not None and (had := directory.ranks()) != world:
            raise ValueError(f"resume={str(resume)!r}: {had} ranks trained it, expected as many, there are {world}")
        if own.is_symlink():
            raise ValueError(f"{own}: a link, expected the directory of a rank")
        if cfg is not None:
            if cfg.replicas < world:
                raise ValueError(f"replicas={cfg.replicas}: expected at least one for each of the {world} ranks")
            Members(cfg, members)  # checks them
            if cfg.products == "auto" and resume is None:  # for all as the first rank finds
                cfg = replace(cfg, products=everyone(onednn.faster())[0])
            mine = part(cfg.replicas)
            members = members[mine]
            cfg = replace(cfg, replicas=mine.stop - mine.start, seed=cfg.seed + mine.start, out_dir=str(own))
        yield cfg, None if resume is None else own, members, heartbeat
        heartbeat.wait()
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, Interrupted):  # its own hint would go on with one rank alone
            again = f"torchrun --nproc-per-node {world} -m fastaae.cli resume {shlex.quote(str(directory.path))}"
            error.args = (f"stopped; go on with: {again}",)
        heartbeat.fail(error)
        raise


def gathered(metrics: dict[str, dict[str, Any]], own: Path) -> dict[str, dict[str, Any]]:
    """The metrics of all replicas, from those in each rank's own directory. The first rank writes them beside it."""
    parts = everyone(metrics)
    metrics = {n: evaluation.summarize([v for part in parts for v in part[n]["replicas"]]) for n in metrics}
    if distributed.get_rank() == 0:
        one, directory = RunDirectory(own), RunDirectory(own.parent)
        steps = one.read_json(one.summary)["steps"]
        directory.write_json(directory.summary, {"metrics": metrics, "ranks": len(parts), "steps": steps})
    return metrics

"""Replicas spread over the ranks of torch.distributed: each rank trains its share, one summary is written for all."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from .. import checkpoint, evaluation
from ..config import Config
from ..liveness import Heartbeat
from . import provenance

SILENCE = 1800.0  # seconds without a step, such as an evaluation may take, after which a rank is taken for dead


def several() -> bool:
    """Whether torch.distributed has been initialised with more than one rank."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def launched() -> bool:
    """Initialise torch.distributed if torchrun has started this process as one of several. Returns: whether it has."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return False
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("gloo", timeout=timedelta(seconds=SILENCE))
    return True


def train(
    one: Callable, cfg: Config | None, data: Any, resume: str | Path | None, progress: bool, prior: Callable | None
) -> Any:
    """Train this rank's share of cfg.replicas with one(cfg, data, resume, progress, prior, heartbeat), gather all
    ranks' metrics.

    Rank k of K trains the replicas from k R // K on, seeded as they are in a single process, in the directory rank-k of
    the run's own. Where one fails or makes no step for SILENCE, the others save a checkpoint and stop.

    Returns:
        This rank's Run, its models those of its share; directory, metrics and summary.json are those of all replicas.

    Raises:
        ValueError: fewer replicas than ranks. RuntimeError: another rank failed or fell silent; it says which and how.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    if resume is None and cfg is not None and cfg.out_dir is None:
        named = [f"runs/{cfg.name}-{provenance.now()}"]
        distributed.broadcast_object_list(named)
        cfg = replace(cfg, out_dir=named[0])
    directory = Path(cfg.out_dir if resume is None and cfg is not None else resume)
    heartbeat = Heartbeat("steps", SILENCE)
    try:
        if resume is not None:
            had = len(list(directory.glob("rank-*")))
            if had != world:
                raise ValueError(f"resume={str(resume)!r}: {had} ranks trained it, expected as many, there are {world}")
        if cfg is not None:
            if cfg.replicas < world:
                raise ValueError(f"replicas={cfg.replicas}: expected at least one for each of the {world} ranks")
            first, last = (k * cfg.replicas // world for k in (rank, rank + 1))
            share = {"replicas": last - first, "seed": cfg.seed + first, "out_dir": str(directory / f"rank-{rank}")}
            cfg = replace(cfg, **share)
        own = directory / f"rank-{rank}"
        if own.is_symlink():
            raise ValueError(f"{own}: a link, expected the directory of a rank")
        resume = None if resume is None else own
        run = one(cfg, data, resume, progress and rank == 0, prior, heartbeat)
        heartbeat.wait()
    except KeyboardInterrupt as error:
        again = f"torchrun --nproc-per-node {world} -m fastaae.cli resume {shlex.quote(str(directory))}"
        if hasattr(error, "signum"):  # saved at a step; its own hint would go on with one rank alone
            error.args = (f"stopped; go on with: {again}",)
        heartbeat.fail(error)
        raise
    except Exception as error:
        heartbeat.fail(error)
        raise
    parts: list[Any] = [None] * world
    distributed.all_gather_object(parts, run.metrics)
    metrics = {n: evaluation.summarize([v for part in parts for v in part[n]["replicas"]]) for n in parts[0]}
    if rank == 0:
        steps = json.loads((run.directory / "summary.json").read_text(encoding="utf-8"))["steps"]
        summary = {"metrics": metrics, "ranks": world, "steps": steps}
        checkpoint.write_atomic(directory / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return replace(run, directory=directory, metrics=metrics)

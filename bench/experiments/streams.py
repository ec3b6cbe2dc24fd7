"""Groups of replicas, each a step of its own on a stream of its own, in one graph: the bytes of one group's update move
while another multiplies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

import fastaae
from fastaae.data import Data
from fastaae.engine.step import Step


def groups(cfg: fastaae.Config, data: Data, device: torch.device, n: int) -> list[Step]:
    """The replicas of a config as n steps, each replica with the seed that it has in one."""
    if cfg.replicas % n:
        raise ValueError(f"n={n}: expected a divisor of {cfg.replicas}, the replicas")
    size = cfg.replicas // n
    steps = [Step(replace(cfg, seed=cfg.seed + k * size, replicas=size), data, device) for k in range(n)]
    for step in steps:
        step.start_epoch(0)
    return steps


def side_by_side(steps: Sequence[Step], times: int, low: bool = False) -> Callable[[], None]:
    """A function that runs so many steps of each group, on a GPU side by side, to be captured; elsewhere one after the
    other. low: updates at low priority, beside products at high."""
    if steps[0].device.type != "cuda":
        return lambda: [step() for step in steps for _ in range(times)] and None
    streams = [torch.cuda.Stream(priority=-1 if low else 0) for _ in steps]
    for step in steps if low else ():
        for optimizer in step.optimizers.values():
            optimizer.updates = [_aside(update) for update in optimizer.updates]

    def run() -> None:
        main = torch.cuda.current_stream()
        for stream, step in zip(streams, steps, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                for _ in range(times):
                    step()
        for stream in streams:
            main.wait_stream(stream)

    return run


def _aside(update: Callable[..., None]) -> Callable[..., None]:
    side = torch.cuda.Stream(priority=0)

    def run(*args: Any, **options: Any) -> None:
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            update(*args, **options)
        main.wait_stream(side)

    return run

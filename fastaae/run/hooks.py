"""Functions of callers that see every line of metrics.jsonl: on_log of train(), and one that feeds TensorBoard."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from ..files import expanded

OnLog = Callable[[dict[str, Any]], Any]
SLOW = 0.1  # share of a run's time, and at least a second, beyond which a hook is told to be slow


class Hook:
    """Calls one, if there is one. What it does costs the run its time and a warning at most.

    Attributes:
        ended: whether it has asked for the end of training, or patience has.
    """

    def __init__(self, on_log: OnLog | None):
        self.on_log, self.ended, self.told = on_log, False, False
        self.began, self.seconds = perf_counter(), 0.0

    def __call__(self, row: dict[str, Any], warn: Callable[[str, int], None]) -> None:
        """Give it a copy of a row that has been written. warn is not kept: the run whose method it is keeps this."""
        if self.on_log is None:
            return
        called = perf_counter()
        try:
            self.ended = self.on_log(copy.deepcopy(row)) is True or self.ended
        except Exception as error:
            self.on_log = None
            warn(f"on_log raised {type(error).__name__} ({error}): it is called no more", row["epoch"])
        now = perf_counter()
        self.seconds += now - called
        if not self.told and self.seconds > max(1.0, SLOW * (now - self.began)):
            self.told = True
            warn(f"on_log took {self.seconds:.1f} of {now - self.began:.1f} s: raise log_every", row["epoch"])


def tensorboard(directory: str | Path) -> OnLog:
    """An on_log that writes scalars by their names in metrics.jsonl, of replica r in name/r where there are several, to
    a folder for TensorBoard (pip install 'fastaae[tensorboard]'). A run that goes on goes on there."""
    from torch.utils.tensorboard import SummaryWriter

    writers: list[SummaryWriter] = []

    def write(row: dict[str, Any]) -> None:
        if not writers:  # of what was written after the checkpoint that the run goes on from
            writers.append(SummaryWriter(str(expanded(directory)), purge_step=row["step"]))
        for name, values in row.items():
            if isinstance(values, list):
                for r, value in enumerate(values):
                    writers[0].add_scalar(f"{name}/{r}" if len(values) > 1 else name, value, row["step"])
        writers[0].flush()

    return write

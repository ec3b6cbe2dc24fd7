"""All that the campaign uses of fastaae beyond its public names. A change inside fastaae is followed here alone."""

# ruff: noqa: F401

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from fastaae import checkpoint, directory, evaluation, parzen
from fastaae.checkpoint import CheckpointError
from fastaae.data import matfiles
from fastaae.data.sources import _MNIST, read_npz
from fastaae.data.sources import _IdxFile as IdxFile
from fastaae.data.sources import _read_idx as read_idx
from fastaae.directory import LOCK, NEWEST, PREVIOUS, RunDirectory
from fastaae.engine.step import Step
from fastaae.files import DataError
from fastaae.kernels import reference
from fastaae.kernels.parzen.sums import PairSums
from fastaae.run import progress, provenance, ranks

MNIST_TRAIN = _MNIST[0]

# Checkpoints


def held(folder: Path) -> contextlib.AbstractContextManager[None]:
    return RunDirectory(folder).held()


def load_run(folder: Path) -> checkpoint.Checkpoint:
    return RunDirectory(folder).load()


@contextlib.contextmanager
def written_as_format(number: int) -> Iterator[None]:
    """Inside, checkpoints are saved as if their format had this number."""
    with mock.patch.object(checkpoint, "FORMAT", number):
        yield


@contextlib.contextmanager
def files_opened_by(opened: Callable) -> Iterator[None]:
    """Inside, what a run writes is opened by this function."""
    with mock.patch.object(checkpoint, "open", opened, create=True):
        with mock.patch.object(directory, "open", opened, create=True):
            yield


# Steps


@contextlib.contextmanager
def before_each_step(act: Callable[[Step], None]) -> Iterator[None]:
    """Inside, act(step) is called before every step."""
    original = Step.__call__

    def acting(step: Step) -> None:
        act(step)
        original(step)

    with mock.patch.object(Step, "__call__", acting):
        yield


def steps_done(step: Step) -> int:
    return int(step.batches.count[1])


def put_into_data(step: Step, column: int, value: float) -> None:
    batches = step.batches
    batches.x = batches.x.float() / 255
    batches.x[:, column] = value
    batches.staging = None


def put_into_weight(step: Step, network: str, value: float) -> None:
    step.networks[network].weights[0][1, 0, 0] = value


def put_into_momentum(step: Step, optimizer: str, value: float) -> None:
    step.optimizers[optimizer].moments["0.weight"][0][1, 0, 0] = value


def put_into_loss(step: Step, name: str, value: float) -> None:
    """From here on the second replica's loss of a phase has this value."""
    if step.losses.isnan().any():  # already so
        return

    def spoilt(function: Callable) -> Callable:
        @functools.wraps(function)
        def phase(step: Step, terms: torch.Tensor) -> None:
            function(step, terms)
            terms[1, 0] = value

        return phase

    step.phases = tuple(spoilt(phase) if phase.__name__ == name else phase for phase in step.phases)


# Runs


def report_each_step() -> None:
    """From here on a run without a terminal prints a line of progress after each step, not every half a minute."""
    progress.time = SimpleNamespace(monotonic=itertools.count(0, 60).__next__)


def where_a_rank_is(point: str) -> tuple[object, str]:
    """The owner and the name of the function that a rank calls at that point."""
    return {
        "start": (Step, "__init__"),
        "step": (Step, "__call__"),
        "save": (os, "replace"),
        "evaluation": (evaluation, "evaluate"),
        "gather": (ranks.distributed, "all_gather_object"),
    }[point]


# The discriminator and the estimator


def judged(logit: torch.Tensor, real: bool) -> tuple[float, float]:
    """The discriminator's loss of one example [1, 1, 1], and its gradient by the logit."""
    logits, gradient, terms = torch.empty_like(logit), torch.empty_like(logit), torch.empty(1, 1)
    layer = torch.ones(1, 1, 1, dtype=logit.dtype), torch.zeros(1, 1, 1)
    reference.judge(logit, layer, (logits, gradient), None, terms, int(real))
    return terms.item(), gradient.item()


@contextlib.contextmanager
def blocks_added_by(add: Callable[[Callable[[torch.Tensor], None], torch.Tensor], None]) -> Iterator[None]:
    """Inside, add(original, block) is called where the estimator would call original(block) to add a block."""
    original = PairSums._add
    with mock.patch.object(PairSums, "_add", lambda sums, block: add(functools.partial(original, sums), block)):
        yield

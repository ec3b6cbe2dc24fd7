"""Resuming with another version or config, and numbers that are not finite: R13, R14, R15."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastaae
from fastaae import Config

from . import inside
from .case import Check, require
from .inside import NEWEST, checkpoint

RNG = np.random.default_rng(0)
DATA = {"x": RNG.integers(0, 256, (300, 16), dtype=np.uint8), "y": RNG.integers(0, 4, 300)}
ARRAYS = Config(hidden=(8,), style_dim=2, init_std=0.3, batch_size=50, epochs=2, replicas=2, log_every=2,
                task="semi_supervised", n_labeled=80, lr_reconstruction=0.003, lr_adversarial=0.02,
                lr_classification=0.05)  # fmt: skip


def train(directory: Path, resume: bool = False, **changes: Any) -> fastaae.Run:
    """A run on DATA in memory, in this process."""
    cfg = dataclasses.replace(ARRAYS, **{"out_dir": str(directory), **changes})
    return fastaae.train(cfg, data=DATA, resume=directory if resume else None, progress=False)


KEY, BY = "encoder.0.weight", "fastaae 9.9 wrote it, this is "
VERSIONS: list[tuple[Callable[[dict, dict], Any], int, str | None]] = [  # what is changed, the format, what is said
    (lambda t, i: None, 1, None),
    (lambda t, i: None, 2, "format '2', expected 1, which this version of fastaae reads"),
    (lambda t, i: None, 99, "format '99', expected 1, which this version of fastaae reads"),
    (lambda t, i: t.pop(KEY), 1, f"it holds no '{KEY}', which a model needs .{BY}"),
    (
        lambda t, i: t.update(extra=torch.ones(1)),
        1,
        rf"extra float32 \[1\] is in it alone, or in its config alone, expected what that makes .{BY}",
    ),
    (lambda t, i: t.update(other=t.pop(KEY)), 1, f"it holds no '{KEY}', which a model needs .{BY}"),
    (lambda t, i: t.update({KEY: t[KEY].double()}), 1, rf"{KEY} has shape .* torch.float64, its config needs .*{BY}"),
    (lambda t, i: t.update({KEY: t[KEY][:1]}), 1, rf"{KEY} has shape \(1, 8, 16\) .*, its config needs .*{BY}"),
    (lambda t, i: i["config"].update(novelty=3), 1, "config: unknown field 'novelty'"),
    (lambda t, i: i["config"].pop("on_divergence"), 1, None),
]


def versions(rng: np.random.Generator, case: int, folder: Path) -> str | None:
    """R13: checkpoints of other versions load and go on, or are refused in a line."""
    change, number, message = VERSIONS[case]
    run = folder / "run"
    train(run, epochs=1)
    tensors, info = checkpoint.load(run / NEWEST)
    change(tensors, info)
    with inside.written_as_format(number):
        checkpoint.save(run / NEWEST, tensors, info | {"fastaae": "9.9"})
    try:
        train(run, resume=True)
    except ValueError as error:
        require(message and re.search(message, str(error)) and "\n" not in str(error), f"said: {error}")
        return None
    return None if message is None else "resumed"


CHANGES: list[tuple[dict[str, Any], str | None]] = [
    *(({name: value}, name) for name, value in [
        ("hidden", (9,)), ("style_dim", 3), ("seed", 1), ("replicas", 1), ("batch_size", 25), ("optimizer", "sgd"),
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
    at = int(rng.integers(6, 10))

    def spoil(step: inside.Step) -> None:
        if inside.steps_done(step) != at:
            return
        if where == 0:
            inside.put_into_data(step, int(rng.integers(16)), value)
        elif where == 1:
            inside.put_into_weight(step, network, value)
        elif where == 2:
            inside.put_into_momentum(step, "discriminator.z" if phase == 1 else f"{name}.{network}", value)
        else:
            inside.put_into_loss(step, name, value)

    try:
        with inside.before_each_step(spoil):
            train(folder / "run", log_every=100)
    except fastaae.NonFiniteError as error:
        found = re.match(r"step (\d+): (the \w+ loss of replica \d|[\w.]+) is .*; last good checkpoint: .*", str(error))
        require(found and at < int(found[1]) <= 10, f"at step {at + 1}: {error}")
    else:
        return "trained to the end"
    kept, info = checkpoint.load(folder / "run" / NEWEST)
    require(info["step"] == 5 and all(t.isfinite().all() for t in kept.values()), "a spoilt checkpoint was saved")
    return None


CHECKS = {
    "R13": Check("checkpoints of other versions", len(VERSIONS), versions),
    "R14": Check("resume with another config", len(CHANGES), changed_config),
    "R15": Check("NaN and infinity", 12, not_finite),
}

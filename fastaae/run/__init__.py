"""A training run on its host: the loop, its directory, signals, ranks. No arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..config import Config
from ..directory import AFTER_EPOCHS
from ..model import Model


@dataclass
class Run:
    """A finished training run.

    Attributes:
        directory: config.json, metrics.jsonl, summary.json, checkpoint.safetensors and the checkpoint before it.
        metrics: {"test_error": {"mean", "std", "replicas"}, ...}; errors in percent. Also in summary.json.
            With keep "best" they are of the best weights, and "valid_best_epoch" says of which epochs these are.
        history: {"step": [L], "reconstruction": [L, R], ...}: training losses at the logged steps, and {"epoch": [E],
            "valid_error": [E, R], ...} after each epoch. Among the latter is how the game goes: "told_apart_z", percent
            of the last batch's prior samples and codes that the discriminator of z tells apart (50: by chance), and
            "dead_units", percent of the layer where most give 0 for all of the last batch, "label_kept", percent of
            samples drawn with a label that the model itself takes for it, and "code_mean",
            "code_std": the codes' largest mean, and their standard deviation, in units of the prior's
            (with a Gaussian posterior, of its means: samples would hide a collapse). See columns().
        models: one Model per replica. averaged: the same with averaged weights, if the config asks for them.
    """

    config: Config
    directory: Path
    metrics: dict[str, dict[str, Any]]
    history: dict[str, np.ndarray]
    models: list[Model]
    averaged: list[Model] = field(default_factory=list)

    def __repr__(self) -> str:
        c, told = self.config, (f"{name} {m['mean']:.4g}" for name, m in self.metrics.items())
        return (
            f"Run {c.name!r}: {c.task} on {c.dataset}, {c.epochs} epochs\n"
            f"  directory: {self.directory}\n"
            f"  metrics: {', '.join(told) or 'none'}\n"
            f"  models: {len(self.models)}, from seed {c.seed} on"
        )

    def columns(self, per: Literal["step", "epoch"] = "epoch") -> dict[str, np.ndarray]:
        """What pandas.DataFrame takes: the history's losses per logged step, or metrics per epoch, in columns [L] or
        [E]; of several replicas one each, reconstruction_0, reconstruction_1 and so on."""
        if per not in ("step", "epoch"):
            raise ValueError(f"per={per!r}: expected 'step' or 'epoch'")
        found = {per: self.history[per]}
        for name, values in self.history.items():
            if values.ndim == 2 and name.startswith(AFTER_EPOCHS) == (per == "epoch"):
                ends = [f"_{r}" for r in range(values.shape[1])] if values.shape[1] > 1 else [""]
                found |= {name + end: column for end, column in zip(ends, values.T, strict=True)}
        return found

    @property
    def model(self) -> Model:
        """Model of replica 0."""
        return self.models[0]

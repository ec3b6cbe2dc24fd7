"""A training run on its host: the loop, its directory, signals, ranks. No arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..model import Model


@dataclass
class Run:
    """A finished training run.

    Attributes:
        directory: config.json, metrics.jsonl, summary.json, checkpoint.safetensors and the checkpoint before it.
        metrics: {"test_error": {"mean", "std", "replicas"}, ...}; errors in percent. Also in summary.json.
        history: {"step": [L], "reconstruction": [L, R], ...}: training losses at the logged steps, and {"epoch": [E],
            "valid_error": [E, R], ...} after each epoch. Among the latter is how the game goes: "told_apart_z", percent
            of the last batch's prior samples and codes that the discriminator of z tells apart (50: by chance), and
            "code_mean", "code_std": the codes' largest mean, and their standard deviation, in units of the prior's
            (with a Gaussian posterior, of its means: samples would hide a collapse).
        models: one Model per replica.
    """

    config: Config
    directory: Path
    metrics: dict[str, dict[str, Any]]
    history: dict[str, np.ndarray]
    models: list[Model]

    @property
    def model(self) -> Model:
        """Model of replica 0."""
        return self.models[0]

"""Numbers that say how good a model is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from .data import Data
from .model import BATCH, Model


def score(model: Model, x: Tensor, y: Tensor | None = None) -> dict[str, float]:
    """A model's metrics on examples x [N, D] with labels y [N], in one pass of the encoder.

    Returns:
        {"reconstruction": the config's reconstruction loss (summed over dimensions, mean over examples) without input
        noise, "error": percent of examples whose predicted class is not y, given y and a label head}.
    """
    loss, wrong = 0.0, 0
    with torch.inference_mode():
        for k, block in enumerate(x.split(BATCH)):
            target = model.scaled(block)
            code = model.code(target)
            output = model.decoded(torch.cat(code, 1)).double()
            if model.config.reconstruction == "cross_entropy":
                loss += binary_cross_entropy(output, target.double(), reduction="sum").item()
            else:
                loss += 0.5 * (output - target).square().sum().item()
            if model.n_classes and y is not None:
                wrong += (code[1].argmax(-1).cpu() != y[k * BATCH : k * BATCH + len(block)]).sum().item()
    metrics = {"reconstruction": loss / len(x)}
    if model.n_classes and y is not None:
        metrics["error"] = 100 * wrong / len(x)
    return metrics


def evaluate(models: Sequence[Model], data: Data, split: str) -> dict[str, list[float]]:
    """Every metric of the models' task on one split, one value per model.

    Args:
        split: "valid" or "test".

    Returns:
        {"valid_reconstruction": [...], ...}: score() by the split's name; {} if the data has no such split.

    Raises:
        ValueError: another split.
    """
    if split not in ("valid", "test"):
        raise ValueError(f"split={split!r}: expected 'valid' or 'test'")
    x, y = (data.x_valid, data.y_valid) if split == "valid" else (data.x_test, data.y_test)
    if x is None:
        return {}
    scores = [score(model, x, y) for model in models]
    return {f"{split}_{name}": [s[name] for s in scores] for name in scores[0]}


def summarize(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean, standard deviation (n - 1; 0 for one replica) and the values of one metric over replicas."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "replicas": list(values)}

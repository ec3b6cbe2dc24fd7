"""Numbers that say how good a model is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from .data import Data
from .model import BATCH, Model


def classification_error(model: Model, x: Tensor, y: Tensor) -> float:
    """Percent of examples x [N, D] whose predicted class is not y [N]."""
    return 100 * (model.predict(x).cpu() != y).double().mean().item()


def reconstruction_error(model: Model, x: Tensor) -> float:
    """The config's reconstruction loss (summed over dimensions, mean over examples x [N, D]) without input noise."""
    total = 0.0
    for block in x.split(BATCH):
        target = block.double().div_(255) if block.dtype == torch.uint8 else block.double()
        output = model.reconstruct(block).flatten(1).cpu().double()
        if model.config.reconstruction == "cross_entropy":
            total += binary_cross_entropy(output, target, reduction="sum").item()
        else:
            total += 0.5 * (output - target).square().sum().item()
    return total / len(x)


def evaluate(models: Sequence[Model], data: Data, split: str) -> dict[str, list[float]]:
    """Every metric of the models' task on one split, one value per model.

    Args:
        split: "valid" or "test".

    Returns:
        {"reconstruction": [...], "error": [...]}; error (percent) with a label head and labels, {} without the split.

    Raises:
        ValueError: another split.
    """
    if split not in ("valid", "test"):
        raise ValueError(f"split={split!r}: expected 'valid' or 'test'")
    x, y = (data.x_valid, data.y_valid) if split == "valid" else (data.x_test, data.y_test)
    if x is None:
        return {}
    metrics = {"reconstruction": [reconstruction_error(m, x) for m in models]}
    if models[0].n_classes and y is not None:
        metrics["error"] = [classification_error(m, x, y) for m in models]
    return metrics


def summarize(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean, standard deviation (n - 1; 0 for one replica) and the values of one metric over replicas."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "replicas": list(values)}

"""Numbers that say how good a model is: losses, errors, and clusters' agreement with labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .clusters import assigned, score_clusters
from .data import Data
from .data.arrays import flat
from .engine.priors import component_of
from .kernels import reference
from .kernels.exact import exact_arithmetic
from .model import Model


def score(model: Model, x: Tensor, y: Tensor | None = None) -> dict[str, float]:
    """A model's metrics on examples x [N, D] with labels y [N], in one pass of the encoder.

    Returns:
        {"reconstruction": the config's reconstruction loss (summed over dimensions, mean over examples) without input
        noise, "error": percent of examples whose predicted class is not y, given y and a head of classes,
        "component_error": where labels chose the component of the prior, percent of examples whose code lies in
        another component than that of y}. Nothing for a supervised autoencoder without y and a GAN, which cannot
        reconstruct.
    """
    cfg, supervised = model.config, model.config.task == "supervised"
    if model.encoder is None or (supervised and y is None):
        return {}
    if x.ndim != 2 or not len(x) or (y is not None and y.shape != x.shape[:1]):
        found = f"x of shape {tuple(x.shape)}" + ("" if y is None else f", y of shape {tuple(y.shape)}")
        raise ValueError(f"{found}: expected examples [N, D], and a label of each")
    sums: dict[str, float] = defaultdict(float)
    with exact_arithmetic():
        for k, block in enumerate(x.split(n := model.batch)):
            labels = None if y is None else y[k * n : k * n + len(block)].to(model.device)
            target = model.scaled(block)
            code = model.code(target)
            if supervised and labels is not None:
                code = (*code, one_hot(labels, model.n_classes).to(target.dtype))
            sums["reconstruction"] += _reconstruction(model, model.join(*code), model.standardized(target))
            if cfg.classifies and labels is not None:
                sums["error"] += 100 * (code[1].argmax(-1) != labels).sum().item()
            if cfg.label_prior and labels is not None:
                found = component_of(cfg.prior, code[0], components=cfg.components, scale=cfg.prior_std)
                sums["component_error"] += 100 * (found != labels).sum().item()
    return {name: value / len(x) for name, value in sums.items()}


def _reconstruction(model: Model, code: Tensor, target: Tensor) -> float:
    """The reconstruction loss that training computes, in float64, summed over rows."""
    if model.config.reconstruction == "squared_error":
        return 0.5 * (model.output(code).double() - target).square().sum().item()
    # From logits: of a probability that has rounded to 0 or 1 the logarithm says nothing.
    logits, target = model.decoder(code).double()[None], target.double()[None]
    terms, grad = logits.new_empty(1, len(code)), torch.empty_like(logits)
    reference.reconstruction_loss(logits, target, grad, terms, model.config.output, model.config.reconstruction)
    return len(code) * terms.sum().item()


def evaluate(models: Sequence[Model], data: Data, split: str) -> dict[str, list[float]]:
    """Every metric of the models' task on the split "valid" or "test", one value per model.

    Returns:
        {"valid_reconstruction": [...], ...}: score(), and score_clusters() for clusters of labelled data, by the
        split's name; {} if the data has no such split.

    Raises:
        ValueError: another split.
    """
    if split not in ("valid", "test"):
        raise ValueError(f"split={split!r}: expected 'valid' or 'test'")
    x, y = (data.x_valid, data.y_valid) if split == "valid" else (data.x_test, data.y_test)
    if x is None:
        return {}
    x = flat(split, x.view(-1, *data.shape), models[0].shape)
    scores = [score(model, x, y) for model in models]
    if models[0].config.n_clusters and y is not None and data.y_valid is not None:
        for model, metrics in zip(models, scores, strict=True):
            q = assigned(map(model.log_q, x.split(model.batch)))
            q_valid = q if split == "valid" else assigned(map(model.log_q, data.x_valid.split(model.batch)))
            metrics |= score_clusters(q_valid, data.y_valid, q, y)
    return {f"{split}_{name}": [s[name] for s in scores] for name in scores[0]}


def summarize(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean, standard deviation (n - 1; 0 for one replica) and the values of one metric over replicas."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "replicas": list(values)}

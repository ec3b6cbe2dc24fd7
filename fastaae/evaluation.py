"""Numbers that say how good a model is: losses, errors, and clusters' agreement with labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .clusters import assigned, score_clusters
from .data import Data, Rows
from .data.arrays import flat
from .engine.priors import component_of
from .kernels.exact import exact_arithmetic
from .model import Model


def score(model: Model, x: Tensor | Rows, y: Tensor | None = None) -> dict[str, float]:
    """A model's metrics on examples x [N, D] with labels y [N], -1 where there is none, in one pass of the encoder.

    Returns:
        {"reconstruction": the config's reconstruction loss (summed over dimensions, mean over examples) without input
        noise, "error": percent of labelled examples whose predicted class is not y, given a head of classes,
        "component_error": where labels chose the component of the prior, percent of labelled examples whose code lies
        in another component than that of y}. Nothing for a supervised autoencoder without y and a GAN, which cannot
        reconstruct.
    """
    return scores([model], x, y)[0]


def scores(models: Sequence[Model], x: Tensor | Rows, y: Tensor | None = None) -> list[dict[str, float]]:
    """As score(), of models of one run: examples go to the device once for all of them, numbers come back once."""
    first, cfg = models[0], models[0].config
    if first.encoder is None or (cfg.task == "supervised" and y is None):
        return [{} for _ in models]
    if not len(x) or (y is not None and y.shape != (len(x),)):
        found = f"x has {len(x)} examples" + ("" if y is None else f", y of shape {tuple(y.shape)}")
        raise ValueError(f"{found}: expected at least one, and a label of each")
    n, sums = first.batch, [dict[str, Tensor]() for _ in models]
    with exact_arithmetic():
        for k, block in enumerate(x.split(n)):
            examples = block.to(first.device)
            labels = None if y is None else y[k * n : k * n + len(block)].to(first.device)
            for model, own in zip(models, sums, strict=True):
                for name, value in _sums(model, examples, labels):
                    own[name] = value.double() + own.get(name, 0)
    labelled = 0 if y is None else int((y >= 0).sum())
    counts = {name: len(x) if name == "reconstruction" else labelled for name in sums[0]}
    means = [own[name] / count for own in sums for name, count in counts.items() if count]
    names = [name for name, count in counts.items() if count]
    return [dict(zip(names, row, strict=True)) for row in torch.stack(means).view(len(models), -1).tolist()]


def _sums(model: Model, block: Tensor, labels: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """What a block adds to each of score()'s numbers, on the device."""
    cfg, target = model.config, model.scaled(block)
    code = model.code(target)
    if cfg.task == "supervised" and labels is not None:
        code = (*code, one_hot(labels, model.n_classes).to(target.dtype))
    yield "reconstruction", model.errors(model.join(*code), model.standardized(target), None)
    if cfg.classifies and labels is not None:
        yield "error", 100 * ((code[1].argmax(-1) != labels) & (labels >= 0)).sum()
    if cfg.label_prior and labels is not None:
        found = component_of(cfg.prior, code[0], components=cfg.components, scale=cfg.prior_std)
        yield "component_error", 100 * ((found != labels) & (labels >= 0)).sum()


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
    x, y = data.parts[split], data.labels[split]
    if x is None:
        return {}
    flat(split, torch.empty(0, *data.shape, dtype=torch.uint8, device="cpu"), models[0].shape)  # which checks it
    found = scores(models, x, y)
    (x, y), (x_valid, y_valid) = (_labelled(data, name) for name in (split, "valid"))
    if models[0].config.n_clusters and y is not None and y_valid is not None:
        for model, metrics in zip(models, found, strict=True):
            q = assigned(map(model.log_q, x.split(model.batch)))
            q_valid = q if split == "valid" else assigned(map(model.log_q, x_valid.split(model.batch)))
            metrics |= score_clusters(q_valid, y_valid, q, y)
    return {f"{split}_{name}": [s[name] for s in found] for name in found[0]}


def criterion(names: Collection[str]) -> str:
    """The metric that says how good a model is, lower being better: "valid_error", else "valid_cluster_error", else
    "valid_reconstruction". Raises ValueError where there is none."""
    known = ("valid_error", "valid_cluster_error", "valid_reconstruction")
    if found := [name for name in known if name in names]:
        return found[0]
    raise ValueError(f"metrics {', '.join(names)}: expected one of {', '.join(known)}")


def _labelled(data: Data, split: str) -> tuple[Rows, Tensor | None]:
    """The examples of a split that have a label, and these; no labels where it has none."""
    rows, y = data.parts[split], data.labels[split]
    if rows is None or y is None or not (known := y >= 0).any():
        return data.train, None
    return Rows(rows.x, rows.index[known]), y[known]


def summarize(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean, standard deviation (n - 1; 0 for one replica) and the values of one metric over replicas."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "replicas": list(values)}

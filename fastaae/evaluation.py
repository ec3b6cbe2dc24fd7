"""Numbers that say how good a model is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, one_hot

from .data import Data
from .engine.priors import component_of
from .model import BATCH, Model


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
    loss, wrong, elsewhere = 0.0, 0, 0
    with torch.inference_mode():
        for k, block in enumerate(x.split(BATCH)):
            labels = None if y is None else y[k * BATCH : k * BATCH + len(block)].to(model.device)
            target = model.scaled(block)
            code = model.code(target)
            if supervised:
                code = (*code, one_hot(labels, model.n_classes).to(target.dtype))
            output, target = model.output(model.join(*code)).double(), model.standardized(target)
            if cfg.reconstruction == "cross_entropy":
                loss += binary_cross_entropy(output, target.double(), reduction="sum").item()
            else:
                loss += 0.5 * (output - target).square().sum().item()
            if cfg.classifies and y is not None:
                wrong += (code[1].argmax(-1) != labels).sum().item()
            if cfg.label_prior and y is not None:
                found = component_of(cfg.prior, code[0], components=cfg.components, scale=cfg.prior_std)
                elsewhere += (found != labels).sum().item()
    metrics = {"reconstruction": loss / len(x)}
    if cfg.classifies and y is not None:
        metrics["error"] = 100 * wrong / len(x)
    if cfg.label_prior and y is not None:
        metrics["component_error"] = 100 * elsewhere / len(x)
    return metrics


def evaluate(models: Sequence[Model], data: Data, split: str) -> dict[str, list[float]]:
    """Every metric of the models' task on one split, one value per model.

    Args:
        split: "valid" or "test".

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
    scores = [score(model, x, y) for model in models]
    if models[0].config.n_clusters and y is not None and data.y_valid is not None:
        for model, metrics in zip(models, scores, strict=True):
            q = np.asarray(model.predict_proba(x.numpy()))
            q_valid = q if split == "valid" else np.asarray(model.predict_proba(data.x_valid.numpy()))
            metrics |= score_clusters(q_valid, data.y_valid.numpy(), q, y.numpy())
    return {f"{split}_{name}": [s[name] for s in scores] for name in scores[0]}


def summarize(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean, standard deviation (n - 1; 0 for one replica) and the values of one metric over replicas."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "replicas": list(values)}


def cluster_labels(q: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The paper's label of every cluster: that of the example with the highest q(y_i|x), the first of equals.

    A cluster gets one even if no example is assigned to it.

    Args:
        q: [N, K], q(y|x) of the validation examples.
        y: [N], their labels.

    Returns:
        int64 [K].

    Raises:
        ValueError: q is no finite [N, K], or y no N integers.
    """
    q, y = _checked(q, y)
    return y[q.argmax(0)]


def majority_labels(q: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The label that most of the examples assigned to a cluster have, the smallest of equals; -1 for a cluster with no
    examples, so that whatever else comes there counts as wrong. Arguments and errors as in cluster_labels.

    Returns:
        int64 [K].
    """
    q, y = _checked(q, y)
    names, labels = np.unique(y, return_inverse=True)
    counts = np.zeros((q.shape[1], len(names)), np.int64)
    np.add.at(counts, (q.argmax(1), labels), 1)
    return np.where(counts.any(1), names[counts.argmax(1)], -1)


def cluster_error(q: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    """Percent of the examples whose cluster, that of the highest q(y|x) and the first of equals, has another label.

    Args:
        q, y: [N, K], [N], of the test examples.
        labels: [K], from cluster_labels or majority_labels on the validation examples.

    Raises:
        ValueError: as cluster_labels, or there are not K labels.
    """
    q, y = _checked(q, y)
    if np.shape(labels) != (q.shape[1],):
        raise ValueError(f"labels of shape {np.shape(labels)}: expected one for each of {q.shape[1]} clusters")
    return 100 * float(np.mean(np.asarray(labels)[q.argmax(1)] != y))


def normalized_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two labelings [N] over the mean of their entropies: 1 where they are the same up to names,
    also if both are a single cluster; 0 where they are independent."""
    (_, a), (_, b) = (np.unique(np.asarray(v), return_inverse=True) for v in (a, b))
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    in_a, in_b, in_both = (_entropy(p) for p in (joint.sum(1), joint.sum(0), joint))
    mean = (in_a + in_b) / 2
    return float(np.clip((in_a + in_b - in_both) / mean, 0, 1)) if mean else 1.0


def score_clusters(
    q_valid: np.ndarray, y_valid: np.ndarray, q_test: np.ndarray, y_test: np.ndarray
) -> dict[str, float]:
    """How well clusters q(y|x) [N, K] agree with labels y [N]. Labels of clusters come from the validation examples.

    Returns:
        {"cluster_error": percent, by the paper's protocol, "majority_error": percent, by majority vote, "nmi": in
        [0, 1], of test labels and clusters, "clusters": number of clusters with test examples}.

    Raises:
        ValueError: as cluster_labels and cluster_error.
    """
    clusters = _checked(q_test, y_test)[0].argmax(1)
    return {
        "cluster_error": cluster_error(q_test, y_test, cluster_labels(q_valid, y_valid)),
        "majority_error": cluster_error(q_test, y_test, majority_labels(q_valid, y_valid)),
        "nmi": normalized_mutual_information(y_test, clusters),
        "clusters": float(len(np.unique(clusters))),
    }


def _checked(q: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, y = np.asarray(q), np.asarray(y)
    if q.ndim != 2 or not q.size or not np.isfinite(q).all():
        raise ValueError(f"q of shape {q.shape}: expected finite probabilities [N, K]")
    if y.shape != (len(q),) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"y of shape {y.shape} and type {y.dtype}: expected {len(q)} integers")
    return q, y.astype(np.int64)


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return max(0.0, float(-(p * np.log(p)).sum()))

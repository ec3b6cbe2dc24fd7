"""How well clusters agree with labels: the paper's error, majority vote and normalized mutual information.

Throughout, q [N, K] holds q(y|x) of N examples, or its logarithm, which keeps the order where q rounds to 1, each
assigned to the cluster where it is highest, the first of equals, and y [N] their labels, integers. A ValueError says
that they are not finite, or not of such shapes and types. Instead of q, what assigned() makes of its rows will do.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .data.arrays import array


class Assigned(NamedTuple):
    """Of all of q, what labels of clusters and errors need."""

    clusters: np.ndarray  # int64 [N], of each example: its cluster
    examples: np.ndarray  # int64 [K], of each cluster: the example with the highest q(y_i|x), the first of equals


Q = ArrayLike | Assigned


def assigned(blocks: Iterable[ArrayLike]) -> Assigned:
    """What is needed of q, from blocks of its rows: of many examples and clusters it would fill the memory."""
    clusters, best, examples = [np.zeros(0, np.int64)], np.array(-np.inf), np.array(0)
    for block in blocks:
        q, done = array("q", block, lists=True), sum(map(len, clusters))
        if q.ndim != 2 or not q.size or not np.isfinite(q).all():
            raise ValueError(f"q of shape {q.shape}: expected finite probabilities [N, K]")
        examples = np.where(q.max(0) > best, q.argmax(0) + done, examples)
        best = np.maximum(q.max(0), best)
        clusters.append(q.argmax(1))
    return Assigned(np.concatenate(clusters), examples)


def cluster_labels(q: Q, y: ArrayLike) -> np.ndarray:
    """The paper's label of every cluster: that of the example with the highest q(y_i|x), int64 [K].

    A cluster gets one even if no example is assigned to it.
    """
    q, y = _checked(q, y)
    return y[q.examples]


def majority_labels(q: Q, y: ArrayLike) -> np.ndarray:
    """The label that most of the examples assigned to a cluster have, int64 [K], the smallest of equals; -1 without any
    examples, so that whatever else comes there counts as wrong."""
    q, y = _checked(q, y)
    names, labels = np.unique(y, return_inverse=True)
    counts = np.zeros((len(q.examples), len(names)), np.int64)
    np.add.at(counts, (q.clusters, labels), 1)
    return np.where(counts.any(1), names[counts.argmax(1)], -1)


def cluster_error(q: Q, y: ArrayLike, labels: ArrayLike) -> float:
    """Percent of the test examples whose cluster has another label. labels: [K], from cluster_labels or majority_labels
    on the validation examples."""
    q, y = _checked(q, y)
    labels = array("labels", labels, lists=True)
    if labels.shape != q.examples.shape or not np.issubdtype(labels.dtype, np.integer):
        found = f"labels of shape {labels.shape} and type {labels.dtype}"
        raise ValueError(f"{found}: expected an integer for each of {len(q.examples)} clusters")
    return 100 * float(np.mean(labels[q.clusters] != y))


def normalized_mutual_information(a: ArrayLike, b: ArrayLike) -> float:
    """Mutual information of two labelings [N] over the mean of their entropies: 1 where they are the same up to names,
    also if both are a single cluster; 0 where they are independent."""
    words = [np.unique(v, return_inverse=True)[1] if np.asarray(v).dtype.kind in "US" else v for v in (a, b)]
    i, j = (np.unique(array("labels", v, lists=True), return_inverse=True)[1] for v in words)
    if i.shape != j.shape or i.ndim != 1 or not len(i):
        raise ValueError(f"labels of shapes {i.shape} and {j.shape}: expected two lists of one length")
    shares = [np.unique(v, return_counts=True)[1] / len(i) for v in (i, j, i * (j.max() + 1) + j)]
    in_a, in_b, in_both = (max(0.0, float(-(p * np.log(p)).sum())) for p in shares)  # their entropies
    mean = (in_a + in_b) / 2
    return float(np.clip((in_a + in_b - in_both) / mean, 0, 1)) if mean else 1.0


def score_clusters(q_valid: Q, y_valid: ArrayLike, q_test: Q, y_test: ArrayLike) -> dict[str, float]:
    """How well clusters agree with labels, where the labels of clusters come from the validation examples.

    Returns:
        {"cluster_error": percent, by the paper's protocol, "majority_error": percent, by majority vote, "nmi": in
        [0, 1], of test labels and clusters, "clusters": number of clusters with test examples}.
    """
    q_test, y_test = _checked(q_test, y_test)
    return {
        "cluster_error": cluster_error(q_test, y_test, cluster_labels(q_valid, y_valid)),
        "majority_error": cluster_error(q_test, y_test, majority_labels(q_valid, y_valid)),
        "nmi": normalized_mutual_information(y_test, q_test.clusters),
        "clusters": float(len(np.unique(q_test.clusters))),
    }


def _checked(q: Q, y: ArrayLike) -> tuple[Assigned, np.ndarray]:
    q, y = q if isinstance(q, Assigned) else assigned([q]), array("y", y, lists=True)
    if y.shape != q.clusters.shape or not np.issubdtype(y.dtype, np.integer) or y.max() >= 2**63:
        raise ValueError(f"y of shape {y.shape} and type {y.dtype}: expected {len(q.clusters)} integers")
    return q, y.astype(np.int64)

"""Evaluation: numbers worked out by hand, and the right split."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

import fastaae
import fastaae.evaluation
from fastaae.clusters import (
    assigned,
    cluster_error,
    cluster_labels,
    majority_labels,
    normalized_mutual_information,
    score_clusters,
)
from fastaae.config import Config
from fastaae.data import from_arrays
from fastaae.engine.networks import MLP
from fastaae.evaluation import evaluate, score, scores, summarize
from fastaae.model import Model

BYTES = torch.tensor([[0, 255], [51, 102], [255, 255], [0, 0]], dtype=torch.uint8)  # 0, 0.2, 0.4 and 1
FLOATS = BYTES.float() / 255


def classification_error(m, x, y):
    return score(m, x, y)["error"]


def reconstruction_error(m, x):
    return score(m, x)["reconstruction"]


def model(logits=(0.0, 0.0), classes=0, **fields):
    """Reconstructs everything as `logits` (before the sigmoid, if any); of two classes, says 1 where x[0] > x[1]."""
    encoder = torch.zeros(1, 1 + classes, 2)
    if classes:
        encoder[0, 1:] = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    decoder = MLP([torch.zeros(1, 2, 1 + classes)], [torch.tensor([[logits]])])
    task = "semi_supervised" if classes else "unsupervised"
    config = Config(task=task, style_dim=1, hidden=(), **fields)
    return Model(config, (2,), classes, MLP([encoder], [torch.zeros(1, 1, 1 + classes)]), decoder)


@pytest.mark.parametrize(
    ("y", "expected"), [([0, 0, 0, 1], 50), ([1, 0, 0, 1], 75), ([0, 0, 1, 0], 0), ([1, 1, 0, 1], 100)], ids=str
)
def test_classification_error_is_the_percentage_of_wrong_classes(y, expected):
    x = torch.tensor([[0.0, 1.0], [0.2, 0.4], [1.0, 0.5], [0.0, 0.1]])  # predicted: 0 0 1 0
    error = classification_error(model(classes=2), x, torch.tensor(y))
    assert type(error) is float and error == expected


def test_classification_error_is_not_rounded():
    x = torch.tensor([[0.0, 1.0]] * 3)
    assert classification_error(model(classes=2), x, torch.tensor([0, 0, 1])) == pytest.approx(100 / 3, rel=1e-15)


# Squared errors of BYTES by row, from (0.5, 0.5): 0.5, 0.1, 0.5, 0.5; from (0.25, -1): 4.0625, 1.9625, 4.5625, 1.0625.
LOG2, OFTEN = math.log(2), math.log(0.8)
LOSSES = {
    "squared": ({}, (0.0, 0.0), 0.5 * (0.5 + 0.1 + 0.5 + 0.5) / 4),
    "squared, linear": ({"output": "linear"}, (0.25, -1.0), 0.5 * (4.0625 + 1.9625 + 4.5625 + 1.0625) / 4),
    "cross-entropy of a coin": ({"reconstruction": "cross_entropy"}, (0.0, 0.0), 2 * LOG2),
    "cross-entropy": (  # outputs 0.8 and 0.5
        {"reconstruction": "cross_entropy"},
        (math.log(4), 0.0),
        -((math.log(0.2) - LOG2) + (0.2 * OFTEN + 0.8 * math.log(0.2) - LOG2) + (OFTEN - LOG2) + (math.log(0.2) - LOG2))
        / 4,
    ),
}


@pytest.mark.parametrize("x", [BYTES, FLOATS], ids=["uint8", "float32"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", [3, 4096])
def test_reconstruction_error_is_the_loss_worked_by_hand(monkeypatch, x, name, batch):
    fields, logits, expected = LOSSES[name]
    monkeypatch.setattr(fastaae.model, "BATCH", batch)
    before = x.clone()
    error = reconstruction_error(model(logits, **fields), x)
    assert type(error) is float and error == pytest.approx(expected, rel=1e-6)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("logit", [0.0, 5.0, 17.0, 30.0, 100.0, 1e4])
@pytest.mark.parametrize(
    "fields", [LOSSES[name][0] for name in ("squared", "squared, linear", "cross-entropy")], ids=str
)
def test_extreme_logits_cost_what_float64_says(fields, logit, dtype):
    """Of a probability in float32 all but the first two would be wrong."""
    m = model((logit, -logit), **fields)
    m.decoder, m.encoder = (n.mapped(lambda t: t.to(dtype)) for n in (m.decoder, m.encoder))
    x, t = BYTES[[0, 0, 1, 2]], BYTES[[0, 0, 1, 2]].to(dtype).div(255).double()
    z = torch.tensor([logit, -logit], dtype=torch.float64)
    if "reconstruction" in fields:
        each = torch.logaddexp(z, torch.zeros_like(z)) - z * t
    else:
        each = 0.5 * ((z if fields else z.sigmoid()) - t).square()
    relative = 1e-12 if fields else 1e-6
    assert reconstruction_error(m, x) == pytest.approx(each.sum().item() / 4, rel=relative)


@pytest.mark.filterwarnings("ignore:code_std")  # nothing changes that it could encode
def test_the_loss_of_impossible_images_is_that_of_their_logits(tmp_path):
    fields = {"hidden": (16,), "style_dim": 2, "prior_std": 1.0, "batch_size": 50, "epochs": 60, "init_std": 0.05}
    fields |= {"optimizer": "adam", "lr_reconstruction": 0.05, "lr_adversarial": 1e-4}
    cfg = Config(**fields, reconstruction="cross_entropy", out_dir=str(tmp_path / "run"))
    arrays = {"x": np.ones((400, 4, 4), np.float32), "x_test": np.zeros((5, 4, 4), np.float32)}
    run = fastaae.train(cfg, data=arrays, progress=False)
    z = run.model.code(torch.zeros(5, 16))[0]
    logits = run.model.decoder(z).double()
    expected = torch.logaddexp(logits, torch.zeros_like(logits)).sum(1).mean().item()
    assert expected > 200 and run.metrics["test_reconstruction"]["mean"] == pytest.approx(expected, rel=1e-9)


def test_clusters_take_the_surest_of_examples_whose_probability_rounds_to_1():
    """q of the last four rounds to 1, also in float64, and the third is the surest of them."""
    x = torch.tensor([[0.0, 0.9], [0.4, 0.0], [0.6, 0.0], [0.5, 0.0]])
    m = model(classes=2)
    m.encoder.weights[0].mul_(100)
    q = m.log_q(x)
    assert q.dtype == torch.float64 and q.argmax(0).tolist() == [0, 2] and (q <= 0).all()
    exact = -torch.log1p(torch.exp(-200 * x[1:, 0].double()))
    np.testing.assert_allclose(q[1:, 1], exact, rtol=1e-4)
    assert (m.predict_proba(x)[1:, 1] == 1).all()


def test_reconstruction_error_ignores_input_noise():
    assert reconstruction_error(model(input_noise=5.0), BYTES) == reconstruction_error(model(), BYTES)


def data(labels=True, test=True):
    arrays = {"x": FLOATS.repeat(3, 1).numpy(), "y": np.arange(12) % 2}
    arrays |= {"x_test": FLOATS[:2].numpy(), "y_test": np.array([1, 0])} if test else {}
    return from_arrays({k: v for k, v in arrays.items() if labels or k[0] != "y"}, n_validation=4)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_every_model_is_evaluated_on_the_split(split):
    d = data()
    x, y = (d.x_valid, d.y_valid) if split == "valid" else (d.x_test, d.y_test)
    models = [model((0.0, 0.0), 2), model((1.0, 2.0), 2)]
    metrics = evaluate(models, d, split)
    assert list(metrics) == [f"{split}_reconstruction", f"{split}_error"]
    losses = metrics[f"{split}_reconstruction"]
    assert losses == [reconstruction_error(m, x) for m in models] and losses[0] != losses[1]
    assert metrics[f"{split}_error"] == [classification_error(m, x, y) for m in models]
    if split == "test":
        assert metrics["test_error"] == [50, 50]


@pytest.mark.parametrize(("classes", "labels"), [(0, True), (0, False), (2, False)])
def test_there_is_no_classification_error_without_label_head_or_labels(classes, labels):
    for split in ("valid", "test"):
        assert list(evaluate([model(classes=classes)], data(labels), split)) == [f"{split}_reconstruction"]


def test_a_missing_test_set_has_no_metrics():
    assert evaluate([model()], data(test=False), "test") == {}
    assert evaluate([model()], data(test=False), "valid") != {}


@pytest.mark.parametrize("split", ["train", "validation", ""])
def test_another_split_is_refused(split):
    with pytest.raises(ValueError, match=f"split='{split}': expected 'valid' or 'test'"):
        evaluate([model()], data(), split)


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [([3.0], 3, 0), ([1.0, 3.0], 2, math.sqrt(2)), ([1.0, 2.0, 3.0, 6.0], 3, math.sqrt(14 / 3)), ([2, 2, 2], 2, 0)],
    ids=str,
)
def test_summary_is_mean_and_sample_deviation(values, mean, std):
    summary = summarize(values)
    assert list(summary) == ["mean", "std", "replicas"]
    assert summary["mean"] == mean and summary["std"] == pytest.approx(std, rel=1e-14)
    assert summary["replicas"] == values and {type(summary["mean"]), type(summary["std"])} == {float}


# Clusters of the examples below: 0 0 1 0 1 0; highest in cluster 0: the fourth, in 1: the fifth, in 2: the second.
Q = np.array(
    [
        [0.6, 0.4, 0.0],
        [0.5, 0.2, 0.3],
        [0.4, 0.6, 0.0],
        [0.9, 0.1, 0.0],
        [0.1, 0.8, 0.1],
        [0.5, 0.5, 0.0],
    ]
)
Y = np.array([7, 7, 2, 3, 2, 7])


def test_the_papers_cluster_labels_by_hand():
    labels = cluster_labels(Q, Y)
    assert (
        labels.tolist() == [3, 2, 7] and labels.dtype == np.int64
    )  # cluster 2 is unused, and has a label all the same
    assert cluster_error(Q, Y, labels) == pytest.approx(50)  # the three sevens in cluster 0


def test_the_majority_vote_by_hand():
    labels = majority_labels(Q, Y)
    assert labels.tolist() == [7, 2, -1] and labels.dtype == np.int64
    assert cluster_error(Q, Y, labels) == pytest.approx(100 / 6)
    unseen = np.array([[0.0, 0.1, 0.9], [0.0, 0.9, 0.1]])
    assert cluster_error(unseen, np.array([7, 2]), labels) == 50  # nothing is right in a cluster without a label


def test_ties_go_to_the_first():
    q = np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.2]])
    assert cluster_labels(q, np.array([4, 9, 1])).tolist() == [4, 4]  # the first of equal examples
    assert cluster_error(q, np.array([4, 9, 1]), np.array([9, 1])) == pytest.approx(200 / 3)  # all in cluster 0
    votes = np.array([[1.0, 0.0]] * 4)
    assert majority_labels(votes, np.array([8, 3, 3, 8])).tolist() == [3, -1]  # the smallest of equal counts
    assert majority_labels(votes[:1], np.array([8])).tolist() == [8, -1]


def test_the_two_protocols_differ_where_a_head_is_unlike_its_cluster():
    scores = score_clusters(Q, Y, Q, Y)
    assert scores == {
        "cluster_error": 50.0,
        "majority_error": pytest.approx(100 / 6),
        "nmi": pytest.approx(normalized_mutual_info_score(Y, Q.argmax(1)), rel=1e-12),
        "clusters": 2.0,
    }
    assert all(type(v) is float for v in scores.values())


def test_labels_of_clusters_come_from_the_validation_examples_alone():
    scores = score_clusters(np.eye(3), np.array([5, 6, 7]), np.eye(3)[[0, 1, 2, 2]], np.array([5, 5, 7, 6]))
    assert scores["cluster_error"] == scores["majority_error"] == 50 and scores["clusters"] == 3


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_clusters_of_blocks_are_those_of_the_whole(rows):
    q = np.round(np.random.default_rng(rows).random((6, 4)), 1)  # with equals
    found = assigned(q[k : k + rows] for k in range(0, 6, rows))
    assert np.array_equal(found.clusters, q.argmax(1)) and np.array_equal(found.examples, q.argmax(0))
    assert score_clusters(found, Y, found, Y) == score_clusters(q, Y, q, Y)


def test_cluster_scores_of_torch_tensors_are_the_same():
    labels = torch.from_numpy(Y)
    assert score_clusters(torch.from_numpy(Q), labels, torch.from_numpy(Q), labels) == score_clusters(Q, Y, Q, Y)


@pytest.mark.parametrize(
    ("q", "y", "message"),
    [
        (Q[0], Y[:1], r"q of shape \(3,\): expected finite probabilities \[N, K\]"),
        (np.where(Q > 0.8, np.nan, Q), Y, "expected finite"),
        (Q[:0], Y[:0], r"q of shape \(0, 3\)"),
        (Q, Y[:5], r"y of shape \(5,\) and type int64: expected 6 integers"),
        (Q, Y.astype(float), "type float64: expected 6 integers"),
    ],
    ids=["vector", "nan", "empty", "labels", "floats"],
)
def test_bad_cluster_arguments_are_refused(q, y, message):
    for f in (cluster_labels, majority_labels, lambda q, y: cluster_error(q, y, np.zeros(3, int))):
        with pytest.raises(ValueError, match=message):
            f(q, y)
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) and .*: expected an integer for each of 3"):
        cluster_error(Q, Y, np.zeros(2, int))


@pytest.mark.parametrize("classes, clusters, n", [(10, 30, 1000), (2, 2, 7), (3, 1, 20), (1, 4, 20), (50, 50, 60)])
def test_nmi_is_scikit_learns(classes, clusters, n):
    rng = np.random.default_rng(n)
    for noise in (0, 0.5, 1):
        a = rng.integers(classes, size=n)
        b = np.where(rng.random(n) < noise, rng.integers(clusters, size=n), a % clusters) * 3 - 7
        expected = normalized_mutual_info_score(a, b)
        assert normalized_mutual_information(a, b) == pytest.approx(expected, abs=1e-12)
        assert normalized_mutual_information(b, a) == pytest.approx(expected, abs=1e-12)


def test_nmi_by_hand():
    assert normalized_mutual_information([0, 0, 1, 1], [5, 5, -3, -3]) == pytest.approx(1, abs=1e-15)
    assert normalized_mutual_information([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0, abs=1e-15)
    assert normalized_mutual_information([4, 4, 4], [1, 1, 1]) == 1 and normalized_mutual_information([4], [0]) == 1
    assert normalized_mutual_information([4, 4, 4, 4], [1, 1, 2, 2]) == 0
    # one of four moved: entropies log 2 and log 4 - 3/4 log 3, the joint one of 1/2, 1/4 and 1/4
    h_b = 2 * math.log(2) - 0.75 * math.log(3)
    joint = 1.5 * math.log(2)
    assert normalized_mutual_information([0, 0, 1, 1], [0, 0, 0, 1]) == pytest.approx(
        2 * (math.log(2) + h_b - joint) / (math.log(2) + h_b), rel=1e-12
    )


def test_numbers_are_read_once_however_many_models(monkeypatch):
    models, reads = [model((0.0, float(k)), 2) for k in range(3)], []
    x, y = torch.tensor([[0.0, 1.0], [0.2, 0.4], [1.0, 0.5], [0.0, 0.1]]), torch.tensor([0, 1, 0, -1])
    each = [score(m, x, y) for m in models]
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
        kept = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, kept=kept: (reads.append(t.shape), kept(t))[1])
    assert scores(models, x, y) == each and reads == [(3, 2)]
    assert [m["error"] for m in each] == [200 / 3] * 3 and len({m["reconstruction"] for m in each}) == 3

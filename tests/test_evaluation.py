"""Evaluation: numbers worked out by hand, and the right split."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastaae.evaluation
from fastaae.config import Config
from fastaae.data import from_arrays
from fastaae.evaluation import evaluate, score, summarize
from fastaae.model import Model
from fastaae.networks import MLP

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
    monkeypatch.setattr(fastaae.evaluation, "BATCH", batch)
    before = x.clone()
    error = reconstruction_error(model(logits, **fields), x)
    assert type(error) is float and error == pytest.approx(expected, rel=1e-6)
    assert torch.equal(x, before)


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

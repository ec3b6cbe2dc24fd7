"""Fifty labels for 1,500 digits: an adversarial autoencoder beside scikit-learn's network and LabelSpreading.

python examples/few_labels.py        five seeds, about two minutes
"""

from __future__ import annotations

import tempfile

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from sklearn.semi_supervised import LabelSpreading

import fastaae

LABELS, FIELDS = 50, {  # chosen by the error on unlabelled training rows of two other seeds
    "task": "semi_supervised", "hidden": (300, 300), "style_dim": 10, "prior_std": 1.0, "input_noise": 0.3,
    "lr_adversarial": 1e-3, "epochs": 150, "n_validation": 0,  # which would take eight of the labels
}  # fmt: skip


def main() -> None:
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32), digits.target
    errors = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(x))
        train, test = order[:1500], order[1500:]
        some = np.concatenate([rng.choice(train[y[train] == k], LABELS // 10, replace=False) for k in range(10)])
        known = np.where(np.isin(train, some), y[train], -1)
        with tempfile.TemporaryDirectory() as folder:
            cfg = fastaae.Config(**FIELDS, seed=seed, out_dir=folder)
            data = {"x": x[train], "y": known}
            model = fastaae.train(cfg, data=data, progress=False).model
        flat = x.reshape(len(x), -1)
        network = MLPClassifier((300, 300), max_iter=1000, random_state=seed).fit(flat[some], y[some])
        spreading = LabelSpreading("knn", n_neighbors=7).fit(flat[train], known)
        found = model.predict(x[test]), network.predict(flat[test]), spreading.predict(flat[test])
        errors.append([100 * np.mean(labels != y[test]) for labels in found])
        print(f"seed {seed}: {', '.join(f'{e:.1f}' for e in errors[-1])}", flush=True)
    names = "fastaae", "network on the labels alone", "LabelSpreading"
    for name, mean, std in zip(names, np.mean(errors, 0), np.std(errors, 0, ddof=1), strict=True):
        print(f"{name}: {mean:.1f} +- {std:.1f} % of {len(test)} test digits are wrong")


if __name__ == "__main__":
    main()

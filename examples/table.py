"""A table of one's own: reconstructions beside PCA's, scores of anomalies beside scikit-learn's IsolationForest.

python examples/table.py        breast cancer (569 rows of 30 numbers, two classes), five seeds, half a minute
"""

from __future__ import annotations

import tempfile

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

import fastaae

SEEDS, CODE = range(5), 3
FIELDS = {  # chosen by the validation loss of the first seed
    "hidden": (100, 100), "style_dim": CODE, "scale": "standard", "input_noise": 0.3, "lr_adversarial": 3e-4,
    "lr_decay_epochs": (200,), "epochs": 300, "batch_size": 50,
}  # fmt: skip


def trained(x: np.ndarray, seed: int) -> fastaae.Run:
    """A run on the rows x, scaled to mean 0 and standard deviation 1."""
    with tempfile.TemporaryDirectory() as folder:
        return fastaae.train(fastaae.Config(**FIELDS, seed=seed, out_dir=folder), data=x, progress=False)


def main() -> None:
    table = load_breast_cancer()
    errors, scores = [], []
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(table.data))
        train, held = table.data[order[:400]], table.data[order[400:]]
        model, pca = trained(train, seed).model, PCA(CODE)
        mean, std = train.mean(0), train.std(0)
        pca.fit((train - mean) / std)
        seen = (held - mean) / std
        by_pca = pca.inverse_transform(pca.transform(seen))
        ours = (model.reconstruct(held) - mean) / std
        errors.append([np.square(seen - made).mean() for made in (ours, by_pca)])

        benign, malignant = (table.data[order][table.target[order] == k] for k in (1, 0))
        train, held = benign[:250], np.concatenate([benign[250:], malignant])
        odd = np.arange(len(held)) >= len(benign) - 250
        forest = IsolationForest(random_state=seed).fit(train)
        found = trained(train, seed).model.reconstruction_error(held), -forest.score_samples(held)
        scores.append([roc_auc_score(odd, score) for score in found])
    for what, numbers, other in (
        (f"mean squared error of held-out rows, {CODE} numbers a row", errors, "PCA"),
        ("AUC of malignant among held-out rows, trained on benign ones", scores, "IsolationForest"),
    ):
        (ours, theirs), (a, b) = np.mean(numbers, 0), np.std(numbers, 0, ddof=1)
        print(f"{what}: {ours:.3f} +- {a:.3f}, {other} {theirs:.3f} +- {b:.3f}")


if __name__ == "__main__":
    main()

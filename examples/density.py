"""Gaussian kernel density with scikit-learn's KernelDensity and with fastaae's, against float64 differences.

    python examples/density.py

scikit-learn's tree is right in few dimensions. On its own 64-dimensional digits it goes wrong as soon as it splits the
samples: at 2 * leaf_size + 1 = 81 of them (scikit-learn issues 7492, 25799 and 27186). With leaf_size=n it does not
split. The last table is in 784 dimensions, where the paper's likelihoods live.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KernelDensity

import fastaae
from fastaae.kernels import reference


def compare(name: str, samples: np.ndarray, queries: np.ndarray, h: float) -> None:
    """One row: the largest error of each, in nats, and seconds to fit and score."""
    truth = reference.parzen_log_likelihood(torch.from_numpy(queries), torch.from_numpy(samples), h).numpy()
    cells = []
    for density in (
        KernelDensity(bandwidth=h),
        KernelDensity(bandwidth=h, leaf_size=len(samples)),
        fastaae.ParzenWindow(bandwidth=h),
    ):
        start = time.perf_counter()
        error = np.abs(density.fit(samples).score_samples(queries) - truth).max()
        cells.append(f"{error:.1e} ({time.perf_counter() - start:.2f} s)")
    print(f"| {name} | {h} | {' | '.join(cells)} |")


def main() -> None:
    print("| data | bandwidth | scikit-learn | scikit-learn, leaf_size=n | fastaae |\n|---|---|---|---|---|")
    digits = load_digits().data / 16
    for n in (80, 81, 1500):
        compare(f"digits, {n} samples, 64-D", digits[:n], digits[-100:], 0.1)
    rng = np.random.default_rng(0)
    for d in (3, 20, 784):
        x = rng.random((2050, d))
        compare(f"uniform, 2000 samples, {d}-D", x[50:], x[:50], 0.2)


if __name__ == "__main__":
    main()

"""Table 3 and figure 9: MNIST in 16 or 30 clusters without any label, scored by the paper's protocol.

python examples/clustering.py [mnist-clusters-16 | mnist-clusters-30] [--FIELD VALUE ...]
"""

from __future__ import annotations

import sys

import tyro

import fastaae
from fastaae import data, figures


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "mnist-clusters-16"
    cfg = tyro.cli(fastaae.Config, default=fastaae.preset(name, epochs=50), args=sys.argv[2:])
    run = fastaae.train(cfg)
    for metric in ("cluster_error", "majority_error", "nmi", "clusters"):
        values = run.metrics[f"test_{metric}"]
        print(f"{metric:15} {values['mean']:.2f} +- {values['std']:.2f}")
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    for path, shows in figures.draw(run.model, digits, run.directory).items():
        print(f"{path}: {shows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

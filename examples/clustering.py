"""Table 3 and figure 9: MNIST in 16 or 30 clusters without any label, scored by the paper's protocol.

python examples/clustering.py [mnist-clusters-16 | mnist-clusters-30 | mnist-clusters-30-adam] [--FIELD VALUE ...]
"""

from __future__ import annotations

import sys

import fastaae
from fastaae import cli, data, figures


def main() -> int:
    cfg = cli.chosen(sys.argv[1:], "mnist-clusters-16", epochs=50)
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

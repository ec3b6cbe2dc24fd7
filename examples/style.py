"""Figure 7: one style a row, one label a column, from an autoencoder whose decoder is told the label.

python examples/style.py [mnist-style | svhn-style] [--FIELD VALUE ...]
"""

from __future__ import annotations

import sys

import fastaae
from fastaae import cli, data, figures


def main() -> int:
    cfg = cli.chosen(sys.argv[1:], "mnist-style", epochs=50)
    run = fastaae.train(cfg)
    print(f"test reconstruction error {run.metrics['test_reconstruction']['mean']:.2f}")
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    for path, shows in figures.draw(run.model, digits, run.directory).items():
        print(f"{path}: {shows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

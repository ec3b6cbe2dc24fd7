"""Figure 4: classes of MNIST on the petals of a mixture, or along a swiss roll; 10,000 of 50,000 images have a label.

python examples/label_prior.py [mnist-2d-labels | mnist-2d-swiss-roll] [--FIELD VALUE ...]
"""

from __future__ import annotations

import sys

import tyro

import fastaae
from fastaae import data, figures


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "mnist-2d-labels"
    cfg = tyro.cli(fastaae.Config, default=fastaae.preset(name, epochs=50), args=sys.argv[2:])
    run = fastaae.train(cfg)
    print(f"test reconstruction error {run.metrics['test_reconstruction']['mean']:.2f}")
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    for path, shows in figures.draw(run.model, digits, run.directory).items():
        print(f"{path}: {shows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

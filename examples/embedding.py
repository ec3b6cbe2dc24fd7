"""Figures 10 and 11: representations y W_C + z of test images in the plane, some or no images labelled.

python examples/embedding.py [mnist-embedding-2d-1000 | -2d-100 | -2d-unsupervised | -10d-100] [--FIELD VALUE ...]
"""

from __future__ import annotations

import sys

import tyro

import fastaae
from fastaae import data, figures


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "mnist-embedding-2d-1000"
    cfg = tyro.cli(fastaae.Config, default=fastaae.preset(name, epochs=50), args=sys.argv[2:])
    run = fastaae.train(cfg)
    metric = "test_error" if cfg.classifies else "test_cluster_error"
    print(f"{metric} {run.metrics[metric]['mean']:.2f} %")
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    for path, shows in figures.draw(run.model, digits, run.directory).items():
        print(f"{path}: {shows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

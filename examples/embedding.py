"""Figures 10 and 11: representations y W_C + z of test images in the plane, some or no images labelled.

python examples/embedding.py [mnist-embedding-2d-1000 | mnist-embedding-2d-100 | ...] [--FIELD VALUE ...]
"""

from __future__ import annotations

import sys

import fastaae
from fastaae import cli, data, figures


def main() -> int:
    cfg = cli.chosen(sys.argv[1:], "mnist-embedding-2d-1000", epochs=50)
    run = fastaae.train(cfg)
    metric = "test_error" if cfg.classifies else "test_cluster_error"
    print(f"{metric} {run.metrics[metric]['mean']:.2f} %")
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    for path, shows in figures.draw(run.model, digits, run.directory).items():
        print(f"{path}: {shows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

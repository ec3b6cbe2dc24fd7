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
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    points = run.model.encode(digits.x_test).numpy()
    if cfg.fixed_heads is not None:  # a linear map sends the heads to a circle
        points = points @ figures.circle_map(run.model.heads.weight[0].cpu().numpy())
    figures.codes(points, digits.y_test.numpy(), run.directory / "representations.png")
    metric = "test_error" if cfg.classifies else "test_cluster_error"
    print(f"{metric} {run.metrics[metric]['mean']:.2f} %; {run.directory}/representations.png: coloured by label")
    return 0


if __name__ == "__main__":
    sys.exit(main())

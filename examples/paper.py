"""The paper's experiments on MNIST and SVHN, shorter: trains one, prints its test metrics, draws its figures.

    python examples/paper.py PRESET [--FIELD VALUE ...]

Figure 2, 2-D codes:             mnist-2d, mnist-2d-mixture, beside them mnist-vae-2d
Figure 4, labels in the prior:   mnist-2d-labels, mnist-2d-swiss-roll
Figure 7, style and content:     mnist-style, svhn-style
Table 2, semi-supervised:        mnist-100, mnist-1000, mnist-all, svhn-1000
Table 3, figure 9, clusters:     mnist-clusters-16, mnist-clusters-30, sooner the same with -adam
Figures 10 and 11, embeddings:   mnist-embedding-2d-1000, -100 and -unsupervised, mnist-embedding-10d-100

Table 1 and figure 5, likelihoods, are examples/likelihood.py.
"""

from __future__ import annotations

import sys

import fastaae
from fastaae import cli, data, figures


def main() -> int:
    cfg = cli.chosen(sys.argv[1:], "mnist-2d", epochs=50)
    run = fastaae.train(cfg)
    for name, values in run.metrics.items():
        if name.startswith("test_"):
            print(f"{name:22} {values['mean']:.2f} +- {values['std']:.2f}")
    images = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    for path, content in figures.draw(run.model, images, run.directory, history=run.history).items():
        print(f"{path}: {content}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Figure 4: classes of MNIST on the petals of a mixture, or along a swiss roll; 10,000 of 50,000 images have a label.

python examples/label_prior.py [mnist-2d-labels | mnist-2d-swiss-roll] [--FIELD VALUE ...]
"""

from __future__ import annotations

import sys

import fastaae
from fastaae import cli, data, figures


def main() -> int:
    cfg = cli.chosen(sys.argv[1:], "mnist-2d-labels", epochs=50)
    run = fastaae.train(cfg)
    elsewhere = run.metrics["test_component_error"]["mean"]
    print(f"{elsewhere:.1f} % of the test images have their code in another component than that of their class")
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    for path, shows in figures.draw(run.model, digits, run.directory).items():
        print(f"{path}: {shows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

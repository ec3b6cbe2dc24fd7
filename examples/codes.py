"""Figure 2: codes of test images under a 2-D prior, and the images that its percentiles decode to.

    python examples/codes.py [mnist-2d | mnist-2d-mixture | mnist-vae-2d] [--FIELD VALUE ...]

Table 1 compares likelihoods: python examples/likelihood.py mnist-gmmn.
"""

from __future__ import annotations

import sys

import fastaae
from fastaae import cli, data, figures


def main() -> int:
    cfg = cli.chosen(sys.argv[1:], "mnist-2d", epochs=50)
    run = fastaae.train(cfg)
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    z = run.model.encode(digits.x_test.numpy())
    print(f"codes have standard deviations {z.std(0).round(2)}, their prior {cfg.prior_std}")
    for path, shows in figures.draw(run.model, digits, run.directory).items():
        print(f"{path}: {shows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

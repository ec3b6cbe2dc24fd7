"""Table 1 and figure 5: log-likelihood of the test images, and samples beside the training images nearest to them.

python examples/likelihood.py [mnist-likelihood-adam | mnist-likelihood] [--FIELD VALUE ...]
"""

from __future__ import annotations

import sys

import fastaae
from fastaae import cli, data, figures


def main() -> int:
    cfg = cli.chosen(sys.argv[1:], "mnist-likelihood-adam", epochs=60)
    run = fastaae.train(cfg)
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    for model in run.models:
        r = model.log_likelihood(digits.x_test, n_samples=10_000, validation=digits.x_valid[:1000])
        print(f"{r.mean:.1f} +- {r.sem:.1f} nats under 10,000 samples, sigma {r.sigma:.3f}")
    for path, shows in figures.draw(run.model, digits, run.directory).items():
        print(f"{path}: {shows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

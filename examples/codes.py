"""Figure 2: codes of test images under a 2-D prior, and the images that its percentiles decode to.

    python examples/codes.py [mnist-2d | mnist-2d-mixture | mnist-vae-2d] [--FIELD VALUE ...]

Table 1 compares likelihoods: python examples/likelihood.py mnist-gmmn.
"""

from __future__ import annotations

import sys

import torch

import fastaae
from fastaae import cli, data, figures
from fastaae.engine import priors


def main() -> int:
    cfg = cli.chosen(sys.argv[1:], "mnist-2d", epochs=50)
    run = fastaae.train(cfg)
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    z = run.model.encode(digits.x_test.numpy())
    drawn, component = torch.empty(100_000, 2), torch.empty(100_000, dtype=torch.int64)
    priors.draw(cfg.prior, drawn, cfg.prior_std, component, torch.Generator().manual_seed(0), components=cfg.components)
    print(f"codes have standard deviations {z.std(0).round(2)}, their prior {drawn.std(0).numpy().round(2)}")
    for path, shows in figures.draw(run.model, digits, run.directory).items():
        print(f"{path}: {shows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

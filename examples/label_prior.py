"""Figure 4: classes of MNIST on the petals of a mixture, or along a swiss roll; 10,000 of 50,000 images have a label.

python examples/label_prior.py [mnist-2d-mixture | mnist-2d-swiss-roll] [--FIELD VALUE ...]
"""

from __future__ import annotations

import sys

import torch
import tyro

import fastaae
from fastaae import data, figures, priors


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "mnist-2d-mixture"
    cfg = tyro.cli(fastaae.Config, default=fastaae.preset(name, epochs=50), args=sys.argv[2:])
    run = fastaae.train(cfg)
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    if cfg.prior == "mixture":
        petals = [priors.petal(k, components=cfg.components, scale=cfg.prior_std) for k in range(cfg.components)]
        outlines = [curve for mean, axes in petals for curve in figures.ellipses(mean.numpy(), axes.numpy())]
    else:
        outlines = [priors.roll(torch.linspace(0, 1, 400).double(), scale=cfg.prior_std).numpy()]
    z = run.model.encode(digits.x_test).numpy()
    figures.codes(z, digits.y_test.numpy(), run.directory / "codes.png", outlines=outlines)
    print(f"{run.directory}/codes.png: codes of test images, on the outline of their prior")
    return 0


if __name__ == "__main__":
    sys.exit(main())

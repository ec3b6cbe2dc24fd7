"""Table 1 and figure 5: log-likelihood of the test images, samples beside the training images nearest to them, and what
the likelihood approaches with ever more samples.

python examples/likelihood.py [mnist-likelihood-adam | mnist-likelihood] [--quick] [--FIELD VALUE ...]

--quick leaves it at 10,000 samples, ten images and 50 steps of the chains.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

import fastaae
from fastaae import cli, data, figures


def main() -> int:
    quick = "--quick" in sys.argv
    cfg = cli.chosen([word for word in sys.argv[1:] if word != "--quick"], "mnist-likelihood-adam", epochs=60)
    run = fastaae.train(cfg)
    digits = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    scores = [model.log_likelihood(digits.x_test, validation=digits.x_valid[:1000]) for model in run.models]
    for r in scores:
        print(f"{r.mean:.1f} +- {r.sem:.1f} nats under 10,000 samples, sigma {r.sigma:.3f}")
    for path, shows in figures.draw(run.model, digits, run.directory, history=run.history).items():
        print(f"{path}: {shows}")
    sizes, steps = ([10_000], 50) if quick else ([10_000, 100_000, 1_000_000, 10_000_000], 1000)
    x, path = digits.x_test[: 10 if quick else 100], run.directory / "bracket.png"
    bracket(run.model, x, scores[0].sigma, sizes, steps, path)
    return 0


def bracket(model: fastaae.Model, x, sigma: float, sizes: list[int], steps: int, path: Path) -> None:
    """Print, and draw over the number of samples, Parzen's estimates and the number that they approach."""
    found = [model.log_likelihood(x, n, sigma).mean for n in sizes]
    for n, nats in zip(sizes, found, strict=True):
        print(f"{nats:.1f} nats of {len(x)} images under {n:,} samples, sigma {sigma:.3f}")
    r = model.ais_log_likelihood(x, sigma, steps=steps)
    print(f"{r.mean:.1f} nats at least under any number, by annealed importance sampling; gap {r.gap:.2f} nats")
    axes = Figure(figsize=(6, 4), layout="constrained").subplots()
    axes.plot(sizes, found, "o-", label="Parzen windows")
    axes.axhspan(r.mean, r.mean + max(r.gap, 0), color="C1", label="annealed importance sampling, and its gap")
    axes.set(xscale="log", xlabel="samples", ylabel=f"nats, sigma {sigma:.3f}")
    axes.legend()
    axes.figure.savefig(path)
    print(f"{path}: Parzen's estimates, and the number that they approach")


if __name__ == "__main__":
    sys.exit(main())

"""A tour without data and without a network: a table, and images of digits."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import data, figures
from .config import Config
from .directory import RunDirectory
from .experiments import preset
from .run import Run
from .run.provenance import new_directory
from .run.training import train

SAMPLES = 10_000


def waves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 2] beside two waves in the plane, and which of them [n]: "lower" or "upper"."""
    rng = np.random.default_rng(seed)
    along, upper = rng.uniform(-2, 2, n), rng.integers(0, 2, n)
    points = np.stack([along, np.sin(2 * along) + 2 * upper], 1)
    return points + rng.normal(0, 0.1, (n, 2)), np.array(["lower", "upper"])[upper]


def demo(out_dir: str | None = None) -> Iterator[str]:
    """Train on a table and on images, draw and score. Yields what there is to say, a line at a time, as it goes.

    Args:
        out_dir: folder for all that is written; None: runs/demo-DATE-TIME.

    Raises:
        ImportError: scikit-learn or matplotlib is missing; nothing has been trained. ValueError: the folder is neither
            new nor empty. Else as train().
    """
    import matplotlib.image  # noqa: F401  # an error comes before the work
    import sklearn.datasets  # noqa: F401

    directory = RunDirectory(new_directory("demo") if out_dir is None else out_dir)
    directory.check_empty()
    directory.make()
    folder = directory.path
    yield f"What follows is written to {folder}"
    yield from _table(folder)
    yield from _images(folder)
    table, images = (shlex.quote(str(folder / name)) for name in ("waves.npz", "digits"))
    yield "What to do next:"
    yield f"  more samples         fastaae sample {images} --n 100 --out samples.png"
    yield f"  a closer likelihood  fastaae parzen {images} --samples 100000"
    yield f"  train on             fastaae resume {images} --epochs 400"
    yield f"  a table of yours     fastaae train --dataset {table} --scale standard --hidden 100 100"


def _table(folder: Path) -> Iterator[str]:
    """The code is the place along a wave, and the decoder is told which wave."""
    (x, y), (x_test, y_test) = waves(2000, seed=0), waves(500, seed=1)
    np.savez(folder / "waves.npz", x=x, y=y, x_test=x_test, y_test=y_test)
    yield f"A table: {len(x):,} points beside two waves: waves.npz"
    run, seconds = _timed(
        Config(
            name="waves", task="supervised", dataset=str(folder / "waves.npz"), scale="standard", prior="uniform",
            style_dim=1, hidden=(100, 100), lr_reconstruction=2e-3, lr_adversarial=5e-4, lr_decay_epochs=(40,),
            epochs=60, out_dir=str(folder / "waves"),
        )
    )  # fmt: skip
    yield f"  trained {run.config.epochs} epochs in {seconds:.1f} s: waves/"
    groups = {"data": x[:1000]} | {f"samples, {k}": run.model.sample(500, 0, [k] * 500) for k in ("lower", "upper")}
    path, names = run.directory / "plane.png", np.repeat([*groups], [*map(len, groups.values())])
    figures.codes(np.concatenate([*groups.values()]), names, path, axis="column")
    yield from _shown({path: "the points, and samples drawn with the label of each wave"})
    yield from _shown(
        figures.draw(run.model, data.load(run.config.dataset, scale="standard"), run.directory, history=run.history)
    )


def _images(folder: Path) -> Iterator[str]:
    digits = data.load("digits")
    assert digits.x_test is not None and digits.x_valid is not None
    yield f"Images: {len(digits.x_train):,} digits of 8x8 pixels, from scikit-learn"
    run, seconds = _timed(preset("digits", out_dir=str(folder / "digits")))
    yield f"  trained {run.config.epochs} epochs in {seconds:.1f} s: digits/"
    yield from _shown(figures.draw(run.model, digits, run.directory, history=run.history))
    start = time.perf_counter()
    found = run.model.log_likelihood(digits.x_test, SAMPLES, validation=digits.x_valid)
    value = f"{found.mean:.1f} +- {found.sem:.1f} nats, each exact to {found.error_bound:.0e}"
    yield f"  log-likelihood of {len(found.per_query)} test images under {SAMPLES:,} samples: {value}"
    yield f"    Parzen window, sigma {found.sigma:.3g} by validation; {time.perf_counter() - start:.1f} s"


def _timed(cfg: Config) -> tuple[Run, float]:
    """A run, and its seconds."""
    start = time.perf_counter()
    return train(cfg, progress=False), time.perf_counter() - start


def _shown(pictures: dict[Path, str]) -> Iterator[str]:
    return (f"  {path.parent.name}/{path.name}: {shows}" for path, shows in pictures.items())

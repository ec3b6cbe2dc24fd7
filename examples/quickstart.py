"""Train an adversarial autoencoder on MNIST in about a minute, score it, and draw what it learned.

    python examples/quickstart.py [OUT_DIR]

Where MNIST can neither be found nor downloaded, scikit-learn's 8x8 digits take its place.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import fastaae
from fastaae import data, figures


def main() -> int:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else f"runs/quickstart-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        digits = data.load("mnist")
        cfg = fastaae.preset(  # smaller and shorter than the paper's network, for a laptop
            "mnist-2d", hidden=(400, 400), init_std=0.03, epochs=5, lr_decay_epochs=(4,), out_dir=str(out)
        )
    except data.DataUnavailable:
        print("MNIST is neither on this machine nor downloadable: training on scikit-learn's 8x8 digits instead")
        digits = data.load("digits")
        cfg = fastaae.preset("digits", out_dir=str(out))

    started = time.perf_counter()
    run = fastaae.train(cfg)
    seconds = time.perf_counter() - started
    print(f"trained {cfg.epochs} epochs on {len(digits.x_train):,} {digits.name} images in {seconds:.0f} s")
    mean_image = digits.x_train.double().mean(0)
    scale = 255.0 if digits.x_train.max() > 1 else 1.0
    baseline = 0.5 * ((digits.x_test.double() - mean_image) / scale).square().sum(1).mean()
    error = run.metrics["test_reconstruction"]["mean"]
    print(
        f"test reconstruction error {error:.2f} (0.5 * squared error per image; the mean image scores {baseline:.2f})"
    )

    for path, shows in figures.draw(run.model, digits, out, history=run.history).items():
        print(f"{path}: {shows}")
    run.model.save(out / "model.safetensors")
    print(f"{out}/model.safetensors: the model, for fastaae.load")
    return 0


if __name__ == "__main__":
    sys.exit(main())

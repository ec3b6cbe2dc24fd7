"""Do Config's defaults train what people have? Eight kinds of data, three widths, three seeds, 2,000 steps each.

python bench/defaults.py [--set FIELD=VALUE ...]

At c512e5f, too, where data are scaled to [0, 1] by hand.

A run is alive where its samples spread as the data do (mean ratio of standard deviations, over features, in 0.3 to 3)
and its codes as the prior (code_std in 0.5 to 2). FASTAAE_DATA names the folder with the faces.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import math
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn import datasets

import fastaae
from fastaae import data

STEPS, SEEDS, WIDTHS = 2000, 3, ((64, 64), (300, 300), (1000, 1000))
SCALED = "scale" in {field.name for field in dataclasses.fields(fastaae.Config)}


def kinds() -> dict[str, np.ndarray]:
    """Examples [N, ...] by name."""
    faces = data.load("tfd").x_train.numpy().reshape(-1, 48, 48)
    return {
        "moons": datasets.make_moons(2000, noise=0.05, random_state=0)[0],
        "swiss roll": datasets.make_swiss_roll(2000, random_state=0)[0],
        "blobs": datasets.make_blobs(2000, centers=5, random_state=0)[0],
        "digits": datasets.load_digits().images / 16,
        "wine": datasets.load_wine().data,
        "breast cancer": datasets.load_breast_cancer().data,
        "diabetes": datasets.load_diabetes().data,
        "faces": faces[:2000],
    }


def measured(name: str, x: np.ndarray, hidden: tuple[int, ...], fields: dict, steps: int = STEPS) -> list[dict]:
    """A row for each seed."""
    image = name in ("digits", "faces")
    if not image and SCALED:
        fields = {"scale": "standard", **fields}
    elif not image:
        x, fields = (x - x.min(0)) / np.ptp(x, 0), {"output": "linear", **fields}
    epochs = fields.get("epochs", math.ceil(steps / ((len(x) - len(x) // 6) // 100)))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        options = {"epochs": epochs, "replicas": SEEDS, "checkpoint_every": epochs, "out_dir": folder, **fields}
        try:
            run = fastaae.train(fastaae.Config(hidden=hidden, **options), data=x, progress=False)
        except fastaae.NonFiniteError as error:
            return [{"data": name, "hidden": hidden, "seed": s, "said": str(error)} for s in range(SEEDS)]
    seconds, rows = time.perf_counter() - began, []
    flat = x.reshape(len(x), -1) / (255 if x.dtype == np.uint8 else 1)
    spread = flat.std(0)
    for seed, model in enumerate(run.models):
        drawn = model.sample(2000, seed=0).reshape(2000, -1).std(0)
        some = spread > 1e-3 * spread.max()
        ratio = float((drawn[some] / spread[some]).mean())
        code = float(run.history["code_std"][-1, seed])
        rows.append({
            "data": name, "hidden": hidden, "seed": seed, "ratio": ratio, "code_std": code,
            "reconstruction": run.metrics["valid_reconstruction"]["replicas"][seed],
            "alive": 0.3 <= ratio <= 3 and 0.5 <= code <= 2, "seconds": seconds / SEEDS,
            "said": "; ".join(sorted({str(w.message) for w in said})),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--only", nargs="*", help="names of data")
    parser.add_argument("--widths", nargs="*", type=int, default=[w for w, _ in WIDTHS])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    fields = {}
    for name, _, value in (text.partition("=") for text in asked.set):
        try:
            fields[name] = ast.literal_eval(value)
        except ValueError:
            fields[name] = value
    rows = []
    print(
        "| data | hidden | samples' std over the data's | code_std | reconstruction | alive | s a run |\n|" + "---|" * 7
    )
    for name, x in kinds().items():
        if asked.only and name not in asked.only:
            continue
        for width in asked.widths:
            found = measured(name, x, (width, width), fields)
            rows += found
            cells = (", ".join(f"{r.get(key, math.nan):.2f}" for r in found) for key in ("ratio", "code_std"))
            loss = ", ".join(f"{r.get('reconstruction', math.nan):.3g}" for r in found)
            alive, seconds = sum(r.get("alive", False) for r in found), found[0].get("seconds", math.nan)
            print(
                f"| {name} | {width} | {' | '.join(cells)} | {loss} | {alive} of {len(found)} | {seconds:.1f} |",
                flush=True,
            )
            if found[0].get("said"):
                print(f"  {found[0]['said']}", flush=True)
    print(f"{sum(r.get('alive', False) for r in rows)} of {len(rows)} alive")
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

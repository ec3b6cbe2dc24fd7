"""Bits of what fastaae computes: checkpoints and samples of small runs of every kind, and the estimator's results.

    python tests/digests.py            prints a line for each; the same on two commits of one machine if nothing moved
    python tests/digests.py --write    makes them this processor's part of digests.json

Runs state all they depend on, so that a default may change without a digest. Bits differ between processors and
versions of PyTorch; the sums beside them hold everywhere, to their tolerance. test_digests.py compares both.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import fastaae
from fastaae import checkpoint
from fastaae.data import from_arrays

LATER = ("dead_units", "label_kept")  # than the first digests
GOLDEN = Path(__file__).with_suffix(".json")
SGD = {"optimizer": "sgd", "lr_reconstruction": 0.01, "lr_adversarial": 0.05, "lr_classification": 0.05}
SGD |= {"momentum": 0.9, "momentum_adversarial": 0.1, "lr_decay": 0.1, "lr_decay_epochs": (1,)}
ADAM = {"optimizer": "adam", "lr_reconstruction": 1e-3, "lr_adversarial": 1e-3, "lr_classification": 1e-3}
COMMON = {
    "hidden": (16, 12), "style_dim": 3, "prior": "gaussian", "prior_std": 2.0, "init_std": 0.3, "batch_size": 10,
    "epochs": 2, "replicas": 2, "seed": 5, "log_every": 7, "checkpoint_every": 1, "precision": "fp32", "device": "cpu",
    "output": "sigmoid", "reconstruction": "squared_error", "products": "onednn",
}  # fmt: skip
RUNS = {
    "unsupervised": SGD,
    "unsupervised, cross-entropy": ADAM | {"reconstruction": "cross_entropy", "input_noise": 0.2},
    "unsupervised, large layers": SGD | {"hidden": (200, 180), "init_std": 0.05},
    "semi_supervised, large layers": ADAM | {"task": "semi_supervised", "n_labeled": 30, "hidden": (200, 180)},
    "unsupervised, no hidden layer": SGD | {"hidden": ()},
    "supervised": ADAM | {"task": "supervised"},
    "semi_supervised": SGD | {"task": "semi_supervised", "n_labeled": 30, "dropout": 0.2, "input_noise": 0.3},
    "semi_supervised, few labels": SGD | {"task": "semi_supervised", "n_labeled": 6, "batch_norm": "autoencoder"},
    "clustering": SGD | {"task": "clustering", "n_clusters": 4, "batch_norm": "encoder", "input_dropout": 0.2},
    "embedding": SGD | {"task": "embedding", "n_labeled": 30, "separation": 10.0, "lr_reconstruction": 1e-3},
    "embedding, fixed heads": ADAM | {"task": "embedding", "fixed_heads": 10.0},
    "embedding, no labels": ADAM | {"task": "embedding", "n_clusters": 4, "separation": 10.0},
    "gan": SGD | {"task": "gan", "prior": "uniform", "dropout": 0.5},
    "gan, linear": ADAM | {"task": "gan", "output": "linear", "scale": "standard"},
    "kl": ADAM | {"regularizer": "kl", "posterior": "gaussian", "regularizer_weight": 0.7},
    "mmd": SGD | {"regularizer": "mmd", "regularizer_weight": 5.0},
    "mmd, gaussian posterior": ADAM | {"regularizer": "mmd", "posterior": "gaussian"},
    "labels of the prior": SGD
    | {"prior": "mixture", "style_dim": 2, "label_prior": True, "n_labeled": 60, "components": 3},
    "swiss roll": ADAM | {"prior": "swiss_roll", "style_dim": 2, "components": 4},
    "gaussian posterior": SGD | {"posterior": "gaussian", "task": "semi_supervised", "n_labeled": 30},
    "universal posterior": ADAM | {"posterior": "universal", "noise_layer": 1, "noise_dim": 4, "input_noise": 0.1},
    "standardized": SGD | {"output": "linear", "scale": "standard", "batch_norm": "autoencoder"},
    "bf16": SGD | {"precision": "bf16", "task": "semi_supervised", "n_labeled": 30},
    "fp16": ADAM | {"precision": "fp16", "task": "semi_supervised", "n_labeled": 30},
    "fp64": SGD | {"precision": "fp64", "task": "semi_supervised", "n_labeled": 30},
}
"""Fields of each run beside COMMON."""


def dataset() -> tuple[np.ndarray, np.ndarray]:
    """Images whose pixels follow their class, so that there is something to learn."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = rng.integers(0, 128, (300, 4, 5)) + 40 * y[:, None, None]
    return x.astype(np.uint8), y


def of_runs() -> Iterator[tuple[str, str, list[float]]]:
    """Name, digest and sums of each run: of its last checkpoint, its metrics and samples of its second replica."""
    for name, fields in RUNS.items():
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cfg = fastaae.Config(**{**COMMON, **fields, "out_dir": f"{folder}/run"})
            run = fastaae.train(cfg, data=from_arrays(dataset(), stratified=False), progress=False)
            tensors, _ = checkpoint.load(f"{folder}/run/checkpoint.safetensors")
            model = fastaae.load(f"{folder}/run", 1)
        made = {"samples": torch.from_numpy(model.sample(20, seed=3))}
        if model.encoder is not None:
            made["codes"] = torch.from_numpy(model.encode(dataset()[0][:30]))
        made |= {f"history.{k}": torch.from_numpy(v).double() for k, v in run.history.items() if k not in LATER}
        learned = [t.double().abs().mean().item() for k, t in tensors.items() if k.endswith("weight")]
        sums = [float(np.mean(learned)), made["samples"].double().mean().item()]
        yield name, checkpoint.digest(tensors)[:12] + checkpoint.digest(made)[:12], sums


def of_estimator() -> Iterator[tuple[str, str, list[float]]]:
    """Name, digest and mean of likelihoods: chosen and given bandwidths, bytes and floats, few and many dimensions."""
    for name, (n, m, d), options in (
        ("pruned", (9000, 300, 40), {"sigmas": [0.05, 0.1, 0.2, 0.5], "method": "pruned"}),
        ("dense", (3000, 100, 7), {"sigmas": [0.05, 0.1, 0.2, 0.5], "method": "dense"}),
        ("auto", (20000, 300, 100), {}),
        ("one bandwidth", (5000, 50, 3), {"sigma": 0.05}),
        ("bytes", (6000, 80, 64), {"sigma": 0.3}),
    ):
        rng = np.random.default_rng(1)
        means = rng.random((20, d))
        samples, queries, validation = (
            means[rng.integers(0, 20, k)] + 0.1 * rng.standard_normal((k, d)) for k in (n, m, 50)
        )
        if name == "bytes":
            samples, queries, validation = (
                (255 * v.clip(0, 1)).astype(np.uint8) for v in (samples, queries, validation)
            )
        chosen = {"validation": validation} if "sigma" not in options else {}
        r = fastaae.parzen_log_likelihood(queries, samples, **chosen, **options)
        made = {
            "per_query": torch.from_numpy(r.per_query),
            "rest": torch.tensor([r.sigma, r.sem, r.error_bound], dtype=torch.float64),
        }
        yield f"estimator, {name}", checkpoint.digest(made)[:24], [r.mean, r.sigma]


def machine() -> str:
    """What bits depend on: the processor, and the versions of what computes."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    processor = " ".join(found.get(k, "") for k in ("model name", "cpu family", "model")) or platform.processor()
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{processor} {instructions}, torch {torch.__version__}, numpy {np.__version__}"


def main() -> int:
    torch.set_num_threads(1)
    found = {}
    for source in (of_runs, of_estimator):
        for name, digest, sums in source():
            print(digest, *(f"{v:.9g}" for v in sums), name, flush=True)
            found[name] = {"digest": digest, "sums": sums}
    if sys.argv[1:] == ["--write"]:
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"sums": {}, "digests": {}}
        golden["sums"] |= {name: row["sums"] for name, row in found.items()}
        golden["digests"][machine()] = {name: row["digest"] for name, row in found.items()}
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

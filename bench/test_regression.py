"""Is anything slower than it was? pytest-benchmark cases against baselines of the same device.

    python -m pytest bench/test_regression.py --benchmark-enable

Machines drift, so what is compared is a ratio: the median time over that of a float32 matrix product timed in the same
process. A case fails from 1.25 times its baseline in bench/results/baselines.json on; a device without a baseline is
skipped. With FASTAAE_BASELINE=write in the environment the ratios measured become the baselines.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastaae import parzen_log_likelihood, preset
from fastaae.data import from_arrays
from fastaae.engine.step import Step
from fastaae.run import provenance

BASELINES = Path(__file__).resolve().parent / "results" / "baselines.json"
ALLOWED = 1.25


def device() -> str:
    hardware = provenance.hardware()
    return f"{hardware['name']} {hardware['instructions']}, {hardware['threads']} threads"


def unit() -> float:
    """Seconds of a product [1024, 784] x [784, 4096] in float32."""
    a, b = torch.rand(1024, 784), torch.rand(784, 4096)
    times = []
    for _ in range(15):
        started = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return float(np.median(times[3:]))


def compare(benchmark, case: str, run, rounds: int) -> None:
    before = unit()
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=2)
    if benchmark.disabled:
        return
    ratio = benchmark.stats.stats.median / (0.5 * (before + unit()))
    known = json.loads(BASELINES.read_text(encoding="utf-8")) if BASELINES.exists() else {}
    if os.environ.get("FASTAAE_BASELINE") == "write":
        known.setdefault(device(), {})[case] = round(ratio, 3)
        BASELINES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    baseline = known.get(device(), {}).get(case)
    if baseline is None:
        pytest.skip(f"{device()} has no baseline for {case}; now {ratio:.3f}")
    assert ratio < ALLOWED * baseline, f"{case}: {ratio:.3f} times a product, the baseline is {baseline}"


def images(n: int) -> torch.Tensor:
    """Bytes [n, 784] near a smooth surface."""
    g = torch.Generator().manual_seed(0)
    basis = torch.randn(24, 784, generator=g)
    return (255 * torch.sigmoid(0.3 * torch.randn(n, 24, generator=g) @ basis)).byte()


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("name", ["mnist-likelihood", "mnist-100"])
def test_step(benchmark, name, replicas):
    x = images(6000).numpy()
    step = Step(preset(name, replicas=replicas), from_arrays((x, np.arange(6000) % 10)), torch.device("cpu"))
    step.start_epoch(0)

    def run():
        step.batches.cursor.remainder_(step.steps_per_epoch)
        step.slot.zero_()
        step()

    compare(benchmark, f"step {name} R={replicas}", run, rounds=20)


@pytest.mark.parametrize(("m", "n", "sigma"), [(1000, 20_000, 0.15), (10_000, 20_000, 0.15), (1000, 20_000, 3.0)])
def test_parzen(benchmark, m, n, sigma):
    x, samples = images(m + n).split([m, n])
    compare(benchmark, f"parzen {m} x {n}, sigma {sigma}", lambda: parzen_log_likelihood(x, samples, sigma), rounds=5)


def test_decoder(benchmark):
    """Draws per second bound an evaluation whose samples are cheap to score."""
    from fastaae.model import Model

    cfg = preset("mnist-likelihood")
    step = Step(cfg, from_arrays((images(600).numpy(), np.arange(600) % 10)), torch.device("cpu"))
    model = Model(cfg, (28, 28), 0, step.networks["encoder"], step.networks["decoder"])
    compare(benchmark, "decode 8192", lambda: [None for _ in model.stream(8192)], rounds=10)

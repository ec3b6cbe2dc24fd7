"""Are R learning rates in one run faster than R runs in turn? On a CPU, whole runs of train(), start to end.

    python bench/sweeps.py [--preset digits] [--members 8] [--epochs 20] [--rounds 5] [--threads N]

Both train the same models, one after the other in each round, without progress bars: trust the median of the ratios.
Beside them stand the same for steps alone, and the limit that products set: as many steps of one member as there are
members over the matrix products alone of a step of all (bench/step.py). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from typing import Any

import numpy as np
import step as steps
import torch

from fastaae import data as datasets
from fastaae import preset, train
from fastaae.config import Config
from fastaae.engine.step import Step
from fastaae.members import Members
from fastaae.run.provenance import describe


def seconds(cfg: Config, **options: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train(replace(cfg, out_dir=f"{folder}/run"), progress=False, **options)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits")
    for name, value in (("members", 8), ("epochs", 20), ("rounds", 5), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    r, cfg = options.members, preset(options.preset, epochs=options.epochs, log_every=1000)
    together = replace(cfg, replicas=r)
    own = [{"lr_adversarial": cfg.lr_adversarial * 2 ** (-k / 2), "seed": cfg.seed} for k in range(r)]

    ratios = []
    seconds(cfg)
    for _ in range(options.rounds):
        one, each = seconds(together, members=own), [seconds(replace(cfg, **fields)) for fields in own]
        ratios.append(sum(each) / one)
        print(f"{r} in one run {one:.2f} s, in turn {sum(each):.2f} s: {ratios[-1]:.2f} times as fast", flush=True)

    data, _ = datasets.recorded(cfg.dataset, None, cfg.n_validation, cfg.scale, None)
    cpu = torch.device("cpu")
    made = {"all": Step(together, data, cpu, None, Members(together, own)), "one": Step(cfg, data, cpu)}
    calls = {name: steps.stepping(step) for name, step in made.items()}
    calls["products"] = steps.products(Step(together, data, cpu))[0]
    ms = {name: float(np.median(times)) for name, times in steps.measure(calls, 30).items()}
    alone = r * ms["one"]
    found = {"runs": float(np.median(ratios)), "steps": alone / ms["all"], "limit": alone / ms["products"]}
    print("times as fast: runs {runs:.2f}, steps {steps:.2f}, limit by products {limit:.2f}".format(**found))
    row = {"preset": cfg.name, "members": r, "epochs": cfg.epochs, "ms": ms, "times": found, "ratios": ratios}
    print(json.dumps({**row, **describe()}))


if __name__ == "__main__":
    main()

"""Are R learning rates in one run faster than R runs in turn? On a CPU, whole runs of train(), start to end.

    python bench/sweeps.py [--preset digits] [--members 8] [--epochs 20] [--rounds 5] [--threads N] [--ranks 2]

Both train the same models, one after the other in each round, without progress bars: trust the median of the ratios.
With --ranks the one run is shared by processes that torchrun starts, and they share the threads; neither is counted
from the start of Python. Beside them stand the same for steps alone, in one process, and the limit that products set:
as many steps of one member as there are members over the matrix products alone of a step of all (bench/step.py). The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
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
from fastaae.run import ranks
from fastaae.run.provenance import describe


def seconds(cfg: Config, **options: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out_dir = ranks.everyone(f"{folder}/run")[0]
        started = time.perf_counter()
        train(replace(cfg, out_dir=out_dir), progress=False, **options)
        return time.perf_counter() - started


def on_ranks(options: argparse.Namespace) -> float:
    """The seconds that the run of all members takes the first of so many ranks, when it has been run once before."""
    words = [f"--{name}={getattr(options, name)}" for name in ("preset", "members", "epochs")]
    threads = str(max(1, options.threads // options.ranks))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
    done = subprocess.run(
        [*launch, __file__, *words, f"--threads={threads}"], env={**os.environ, "OMP_NUM_THREADS": threads},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits")
    defaults = {"members": 8, "epochs": 20, "rounds": 5, "threads": torch.get_num_threads(), "ranks": 1}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    r, cfg = options.members, preset(options.preset, epochs=options.epochs, log_every=1000)
    together = replace(cfg, replicas=r)
    own = [{"lr_adversarial": cfg.lr_adversarial * 2 ** (-k / 2), "seed": cfg.seed} for k in range(r)]
    if ranks.launched():
        taken = [seconds(together, members=own) for _ in range(2)][-1]
        if torch.distributed.get_rank() == 0:
            print(taken)
        torch.distributed.destroy_process_group()
        return

    ratios = []
    seconds(cfg)
    for _ in range(options.rounds):
        one = on_ranks(options) if options.ranks > 1 else seconds(together, members=own)
        each = [seconds(replace(cfg, **fields)) for fields in own]
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
    row = {"preset": cfg.name, "members": r, "epochs": cfg.epochs, "ranks": options.ranks}
    print(json.dumps({**row, "ms": ms, "times": found, "ratios": ratios, **describe()}))


if __name__ == "__main__":
    main()

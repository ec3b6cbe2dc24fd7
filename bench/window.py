"""How long does fastaae.window.KernelDensity take in few dimensions, and query by query, beside others?

    python bench/window.py [--rounds 5] [--seconds 1]     some minutes, on one thread

Samples and queries are standard normal. The others are scikit-learn's KernelDensity as it comes, with rtol=1e-8, and,
query by query, with leaf_size=n; and scipy's gaussian_kde, given the same bandwidth. They see all samples, and as many
queries as take about --seconds, scaled up. All are fitted once and score in turn: medians. An error is the distance
from fastaae's nats, which must be those of float64 differences, or nothing is timed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import sklearn
import torch
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity as TreeDensity
from threadpoolctl import threadpool_limits

from fastaae.kernels import reference
from fastaae.run.provenance import describe
from fastaae.window import KernelDensity

Score = Callable[[np.ndarray], np.ndarray]
MANY = (  # dimensions, samples, queries, bandwidth
    (1, 100_000, 5000, 0.05), (2, 100_000, 5000, 0.1), (3, 100_000, 3000, 0.2), (8, 50_000, 2000, 0.5),
    (16, 32_000, 2000, 1.0), (16, 32_000, 2000, 0.3), (1, 10**6, 5000, 0.05), (2, 10**6, 5000, 0.1),
    (3, 10**6, 3000, 0.2),
)  # fmt: skip
ALONE = ((2, 1000, 1000, 0.3), (2, 10_000, 1000, 0.2), (784, 2000, 200, 1.0))  # a call for each query


def tree(**options: Any) -> Callable[[np.ndarray, float], Score]:
    return lambda x, h: TreeDensity(bandwidth=h, **options).fit(x).score_samples


def scipys(x: np.ndarray, h: float) -> Score:
    density = gaussian_kde(x.T)
    density.cho_cov = h * np.eye(x.shape[1])  # in place of a multiple of the samples' covariance
    return lambda q: np.log(density(q.T))


def timed(call: Callable, *arguments: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    returned = call(*arguments)
    return time.perf_counter() - started, returned


def affordable(score: Score, q: np.ndarray, budget: float) -> int:
    """How many of the queries take about so many seconds."""
    k = 1
    while (took := timed(score, q[:k])[0]) < budget / 4 and k < len(q):
        k = min(4 * k, len(q))
    return min(max(int(k * budget / took), 1), len(q))


def compared(shape: tuple[int, int, int, float], alone: bool, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each contender, printed; the first is fastaae's."""
    (d, n, m, h), rng = shape, np.random.default_rng(0)
    n, m = max(n // options.divide, 20), max(m // options.divide, 20)
    x, q = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    kinds = {"scikit-learn": tree(), "scikit-learn rtol=1e-8": tree(rtol=1e-8), "scipy": scipys}
    kinds = {"scikit-learn leaf_size=n": tree(leaf_size=n)} if alone else kinds
    kinds = {"fastaae": lambda x, h: KernelDensity(bandwidth=h).fit(x).score_samples, **kinds}
    fits = {name: timed(kind, x, h) for name, kind in kinds.items()}
    scores = {name: score for name, (_, score) in fits.items()}
    if alone:
        scores = {k: lambda q, s=s: np.concatenate([s(row) for row in q[:, None]]) for k, s in scores.items()}
    truth = reference.parzen_log_likelihood(torch.from_numpy(q[:10]), torch.from_numpy(x), h).numpy()
    if not (error := np.abs(scores["fastaae"](q[:10]) - truth).max()) < 1e-9:
        raise SystemExit(f"{d} dimensions, {n} samples: {error:.1e} nats from float64 differences, no timing")
    counts = {k: m if k == "fastaae" else affordable(score, q, options.seconds) for k, score in scores.items()}
    rounds = [{k: timed(score, q[: counts[k]]) for k, score in scores.items()} for _ in range(options.rounds)]
    print(f"\n{n:,} samples x {m:,} queries{' one by one' * alone} x {d} dimensions, bandwidth {h:g}")
    print(f"{'':24}{'measured on':>12}{'fit, s':>10}{'for all, s':>12}{'ms a query':>12}{'x fastaae':>11}{'error':>10}")
    rows: list[dict[str, Any]] = []
    for name, k in counts.items():
        each = [one[name][0] * m / k for one in rounds]
        error = float(np.abs(rounds[-1][name][1] - rounds[-1]["fastaae"][1][:k]).max())
        row = {"contender": name, "dimensions": d, "samples": n, "queries": m, "bandwidth": h, "alone": alone}
        row |= {"measured": k, "fit": fits[name][0], "seconds": (took := np.median(each)), "each": each, "error": error}
        rows.append(row)
        cells = f"{k:12,}{fits[name][0]:10.3g}{took:12.3g}{1e3 * took / m:12.3g}{took / rows[0]['seconds']:11.3g}"
        print(f"{name:24}{cells}{error:10.1e}", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for the others' queries, a round")
    parser.add_argument("--divide", type=int, default=1, help="so many times fewer samples and queries, to rehearse")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = [row for shape in MANY for row in compared(shape, False, options)]
        rows += [row for shape in ALONE for row in compared(shape, True, options)]
    others = {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__}
    print(json.dumps({"rows": rows, "others": others, **describe()}))


if __name__ == "__main__":
    main()

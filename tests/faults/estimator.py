"""The log-likelihood, and the discriminator's loss, at extremes: R16 to R20."""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import torch

from fastaae import ParzenResult, ParzenWindow, parzen_log_likelihood

from .case import Check, Outcome
from .inside import judged, reference
from .processes import SCRIPTS, python

METHODS = ("auto", "pruned", "dense")
mpmath.mp.dps = 60


def precise(queries: np.ndarray, samples: np.ndarray, sigma: float) -> list[mpmath.mpf]:
    """The likelihoods in 60 digits; bytes mean k / 255."""
    scales = [255 if a.dtype == np.uint8 else 1 for a in (queries, samples)]
    given = zip((queries, samples), scales, strict=True)
    x, s = ([[mpmath.mpf(float(v)) / scale for v in row] for row in a] for a, scale in given)
    h = mpmath.mpf(sigma)
    values = []
    for q in x:
        exponents = [-mpmath.fsum((a - b) ** 2 for a, b in zip(q, p, strict=True)) / (2 * h**2) for p in s]
        best = max(exponents)
        total = mpmath.fsum(mpmath.exp(e - best) for e in exponents)
        values.append(best + mpmath.log(total / len(s)) - len(q) * mpmath.log(h * mpmath.sqrt(2 * mpmath.pi)))
    return values


def by_differences(queries: np.ndarray, samples: np.ndarray, sigma: float) -> np.ndarray:
    """The likelihoods in float64."""
    x, s = (torch.from_numpy(a).double() / (255 if a.dtype == np.uint8 else 1) for a in (queries, samples))
    return reference.parzen_log_likelihood(x, s, sigma).numpy()


def beyond_bound(result: ParzenResult, expected: Any, slack: float) -> str | Outcome | None:
    """Whether a result is farther from what is expected than it says; slack: relative, of what is expected."""
    for k, (value, right) in enumerate(zip(result.per_query, expected, strict=True)):
        if math.isnan(value) or (math.isinf(value) and abs(right) < sys.float_info.max):
            return Outcome(f"query {k}: {value}, expected {float(right)}", wrong=True)
        if math.isinf(value):
            continue
        error = float(abs(mpmath.mpf(float(value)) - right))
        if not error <= result.error_bound + slack * float(abs(right)):
            return Outcome(f"query {k}: off by {error:.2e}, the bound is {result.error_bound:.2e}", wrong=True)
    return None


# R16: the discriminator's loss and its gradient

LOGITS = (0.0, 1.0, -1.0, 1e2, -1e2, 1e3, -1e3, 1e4, -1e4, math.inf, -math.inf)


def saturated(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    real, half = bool(case // len(LOGITS) % 2), bool(case // len(LOGITS) // 2 % 2)
    kind = torch.bfloat16 if half else torch.float32
    hidden = torch.tensor([[[LOGITS[case % len(LOGITS)]]]]).to(kind)
    loss, gradient = judged(hidden, real)
    x = mpmath.mpf(hidden.item()) * (-1 if real else 1)  # the loss is softplus(x), its gradient +- sigmoid(x)
    found = (loss, gradient * (-1 if real else 1))
    if math.isinf(x):  # either exact, or not finite, which training refuses
        fine = found == (0, 0) if x < 0 else not math.isfinite(found[0])
        return None if fine else Outcome(f"at {float(x)}: {found}", wrong=True)
    sigmoid = 1 / (1 + mpmath.exp(-x))
    for name, value, right in zip(("loss", "gradient"), found, (mpmath.log1p(mpmath.exp(x)), sigmoid), strict=True):
        unit = np.spacing(np.float32(max(float(abs(right)), 1.2e-38))) * (2.0**16 if half else 1)
        small = abs(right) < 1.2e-38 and value == 0  # below the normal numbers
        if not math.isfinite(value) or not (small or abs(mpmath.mpf(value) - right) <= 2 * unit):
            return Outcome(f"{name} at {float(x)}: {value}, exactly {float(right)}", wrong=True)
    return None


# R17 to R19: exactness, extremes, laws

CELLS = [
    (d, h, n, offset)
    for d in (1, 8, 64, 784, 3072)
    for h in (0.01, 0.3, 10.0)
    for n in (1, 2, 81, 2000)  # beyond 80 samples scikit-learn's tree is wrong
    for offset in (0.0, 1e3)
]


def exactness(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    d, h, n, offset = CELLS[case % len(CELLS)]
    dtype = rng.choice([np.float32, np.float64])
    samples = (rng.random((n, d)) + offset).astype(dtype)
    queries = (rng.random((4, d)) + offset).astype(dtype)
    queries[0] = samples[0]
    result = parzen_log_likelihood(queries, samples, h, method=str(rng.choice(METHODS)))
    few = n * d <= 6000
    expected = precise(queries, samples, h) if few else by_differences(queries, samples, h)
    scale = max(float(abs(v)) for v in expected)
    if not result.error_bound <= 1e-9 * scale + 1e-4:
        return f"d={d} h={h} n={n} offset={offset}: the bound is {result.error_bound:.1e}"
    return beyond_bound(result, expected, 1e-18 if few else 1e-13)


def extreme_numbers(q: np.ndarray, a: np.ndarray) -> list[tuple[Any, Any, float]]:
    """Queries, samples and a bandwidth, made of queries and samples from 0 to 1."""
    tiny = 5e-324
    return [
        (q + 1e6 * 0.2, a, 0.2),
        (q + 1e12, a, 0.2),
        (q * 1e140, a, 0.2),
        (q * 1e149, a * -1e149, 1e-99),
        (q, a[:1], 0.2),
        (q[:1], q[:1], 0.2),
        (q, np.repeat(a[:1], 500, 0), 0.2),
        (np.zeros((2, 6)), np.zeros((300, 6)), 0.2),
        (np.full((2, 6), 0.1), np.full((300, 6), 0.1), 1e-99),
        (q, a, 1e-99),
        (q, a, 1e-50),
        (q, a, 1e-9),
        (q, a, 1e9),
        (q, a, 1e50),
        (q, a, 1e99),
        (q * tiny, a * tiny, 0.2),
        (np.full((2, 6), tiny), np.zeros((5, 6)), 1e-99),
        (q * 1e-310, a * 1e-310, 1e-99),
        (q * 1e-160, a * 1e-160, 1e-99),
        (q.astype(np.float32) * np.float32(1e-44), a.astype(np.float32) * np.float32(1e-44), 1e-44),
        (q.astype(np.float32) * np.float32(3e38), a.astype(np.float32) * np.float32(3e38), 1e38),
        (q.astype(np.float16), a.astype(np.float16), 0.2),
        (q.astype(np.float16) * np.float16(6e4), a.astype(np.float16) * np.float16(6e4), 1e3),
        ((q * 255).astype(np.uint8), (a * 255).astype(np.uint8), 1e-6),
        ((q * 255).astype(np.uint8), a, 0.2),
        (np.concatenate([q, q + 1e100]), np.concatenate([a, a - 1e100]), 0.3),
        (np.concatenate([q, q * 1e-200]), np.concatenate([a, a * 1e-200]), 1e-90),
    ]


def extremes(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    a, q = rng.random((40, 6)), rng.random((3, 6))
    listed = extreme_numbers(q, a)
    refusals = [(q, a, h) for h in (1e-300, 1e300, 0.0, math.nan)]
    k = case % (len(listed) + len(refusals) + 2)
    method = METHODS[case % 3]
    if k < len(listed):
        queries, samples, h = (np.asarray(v) if np.ndim(v) else v for v in listed[k])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "queries lie in")  # bytes beside units are among the extremes
            found = parzen_log_likelihood(queries, samples, h, method=method)
        wrong = beyond_bound(found, precise(queries, samples, h), 1e-18)
        return wrong and Outcome(f"case {k}, {method}: {wrong.error}", wrong=True)
    if k < len(listed) + len(refusals):
        try:
            parzen_log_likelihood(*refusals[k - len(listed)])
        except ValueError as error:
            return None if "bandwidth" in str(error) else str(error)
        return Outcome(f"bandwidth {refusals[k - len(listed)][2]} accepted", wrong=True)
    weights = np.where(np.arange(40) < 5, 1.0, 0.0 if k % 2 else 5e-324)
    value = ParzenWindow(bandwidth=0.2).fit(a, sample_weight=weights).score_samples(q)
    expected = [float(v) for v in precise(q, a[:5], 0.2)]
    return None if np.allclose(value, expected, rtol=1e-12, atol=1e-9) else Outcome(f"weights: {value}", wrong=True)


def laws(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    law = ("permutation", "blocks", "repeats", "translation", "shards", "scale")[case % 6]
    n, d = int(rng.integers(1, 200)), int(rng.choice([1, 2, 5, 33, 70]))
    h, method = float(10 ** rng.uniform(-1.5, 1)), str(rng.choice(METHODS))
    queries, samples = (np.round(rng.normal(0, 100, (k, d))) / 64 for k in (4, n))  # sums with 2^k are exact
    block = int(rng.choice([1, 3, 64, 100, 4096]))
    one = parzen_log_likelihood(queries, samples, h, method=method)
    shift, bound = 0.0, 0.0
    if law == "permutation":
        other = parzen_log_likelihood(queries, samples[rng.permutation(n)], h, method=method)
    elif law == "blocks":
        cuts = np.sort(rng.integers(0, n + 1, 3))
        other = parzen_log_likelihood(queries, np.split(samples, cuts), h, method=method, block=block)
    elif law == "repeats":
        weights = rng.integers(1, 5, n)
        repeated = parzen_log_likelihood(queries, np.repeat(samples, weights, 0), h, method=method)
        values = ParzenWindow(bandwidth=h).fit(samples, sample_weight=weights).score_samples(queries)
        error = np.abs(values - repeated.per_query) - 1e-11 * np.abs(values)
        return None if error.max() <= repeated.error_bound + 1e-9 else Outcome(f"{law}: {error.max():.1e}", wrong=True)
    elif law == "translation":
        by = float(2 ** rng.integers(0, 20))
        other = parzen_log_likelihood(queries + by, samples + by, h, method=method)
    elif law == "shards":
        cut = int(rng.integers(0, n + 1))
        shards = [part for part in (samples[:cut], samples[cut:]) if len(part)]
        parts = [parzen_log_likelihood(queries, part, h, method=method) for part in shards]
        values = np.logaddexp.reduce([r.per_query + math.log(r.n_samples / n) for r in parts])
        error = np.abs(values - one.per_query) - 1e-12 * np.abs(values)
        bound = one.error_bound + max(r.error_bound for r in parts) + 1e-12
        return None if error.max() <= bound else Outcome(f"{law}: {error.max():.1e}", wrong=True)
    else:
        power = int(rng.integers(-30, 30))
        other = parzen_log_likelihood(queries * 2.0**power, samples * 2.0**power, h * 2.0**power, method=method)
        shift = d * power * math.log(2)
    error = np.abs(other.per_query + shift - one.per_query) - 1e-12 * (np.abs(one.per_query) + abs(shift))
    bound += one.error_bound + other.error_bound + 1e-12
    return None if error.max() <= bound else Outcome(f"{law}: off by {error.max():.1e}, bound {bound:.1e}", wrong=True)


# R20: memory and the width of indices

BUDGETS = [
    (megabytes, d, m, n, block, method)
    for (d, m, n, block) in ((784, 1000, 2**15, 2**15), (16, 2000, 2**16, 2**16), (784, 20, 2**16, 2**16))
    for method, megabytes in (("dense", 60), ("dense", 200), ("pruned", 60), ("pruned", 200))
]


def memory(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    case %= len(BUDGETS) + 6
    if case < len(BUDGETS):
        done = python(SCRIPTS / "score_in_little_memory.py", json.dumps(BUDGETS[case]))
        if done.returncode:
            return f"{BUDGETS[case]}: exit {done.returncode}, {done.stderr[-300:]}"
        what, value = json.loads(done.stdout.splitlines()[-1])
        if what == "scored" and value > 0:
            return Outcome(f"{BUDGETS[case]}: beyond the bound by {value}", wrong=True)
        return None if what == "scored" or "fewer than" in value else f"{BUDGETS[case]}: {value}"
    case -= len(BUDGETS)
    if case < 3:  # more elements than 31 bits count, in a sparse file; the last row is the only one that is near
        d, dtype = ((784, np.uint8), (3072, np.uint8), (2**16, np.float32))[case]
        n, path = 2**31 // d + 5, folder / "samples"
        with path.open("wb") as file:
            file.truncate(n * d * np.dtype(dtype).itemsize)
            file.seek((n - 1) * d * np.dtype(dtype).itemsize)
            file.write(np.ones(d, dtype).tobytes())
        samples = np.memmap(path, dtype, "r", shape=(n, d))
        queries, h = np.ones((2, d), dtype), 0.001 if dtype == np.uint8 else 0.1
        result = parzen_log_likelihood(queries, samples, h, method="auto" if d < 10_000 else "dense")
        wrong = beyond_bound(result, [-math.log(n) - d * math.log(h * math.sqrt(2 * math.pi))] * 2, 1e-12)
        return wrong and Outcome(f"d={d}: {wrong.error}", wrong=True)
    if case == 3:  # refused before any sample is asked for
        queries = torch.zeros(1, 1).expand(2 * 10**8, 1)
        try:
            parzen_log_likelihood(queries, iter(()), 1.0)
        except MemoryError as error:
            return None if "at a time" in str(error) else str(error)
        return Outcome("accepted", wrong=True)
    held = np.empty((4096, 784), np.float32)  # a stream is never held: 600 MB pass through a fraction of it
    rng.random(out=held, dtype=np.float32)
    before = resident()
    parzen_log_likelihood(held[:50], (held for _ in range(50)), 0.3, method=METHODS[1 + case % 2])
    more = (resident() - before) / 2**20
    return None if more < 200 else f"{more:.0f} MB more than before"


def resident() -> int:
    """Bytes held at most so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


CHECKS = {
    "R16": Check("saturated discriminator", 44, saturated),
    "R17": Check("exactness of the log-likelihood, a grid of shapes", 120, exactness),
    "R18": Check("log-likelihood of extreme numbers", 33, extremes),
    "R19": Check("laws of the log-likelihood", 1200, laws),
    "R20": Check("little memory, wide indices", 18, memory),
}

"""How long is a Parzen-window evaluation, and what would it be with the tools people reach for?

    python bench/parzen.py                                    under a minute on two cores, trains nothing
    python bench/parzen.py --source runs/aae --samples 10000000 --choose-sigma
    python bench/parzen.py --source samples.npy --queries 1000 --sigma 0.2 --method dense
    python bench/parzen.py --device cuda --samples 10000000 --samples-others 100000 --rounds 3
    torchrun --nproc-per-node 2 bench/parzen.py     every rank scores its share of the samples; without the others
    python bench/parzen.py --shape 1m [--queries 2000] [--device cuda --rounds 3]     beside a published figure

Queries are the MNIST test images (scikit-learn's digits where MNIST cannot be had). Samples come from a trained run
(--source DIR), a .npy file, or a decoder that needs no training: mixtures of two training images of one class through
32 principal components, on the device. First, fastaae is compared with float64 differences on a few queries; a mismatch
beyond its own certificate stops. The others see the first --samples-others samples, and each only as many queries as it
can do in seconds; its time for all pairs, which it is proportional to, is scaled up from that (scikit-learn's fit, done
once, with the samples only). On a GPU these are more, calls are repeated for 50 ms at least, and an untimed
round goes before. Every round times all of them:

- block-skip: float32 products in chunks, exponentials only of blocks that matter; a fast dense evaluation.
- logsumexp: float32 products in chunks and torch.logsumexp, as one would write it; on a GPU compiled, too.
- broadcast: the difference of every pair, as in the original Theano script.
- scikit-learn: KernelDensity as it comes, and with leaf_size=N, which makes it exact.
- pykeops, where it can be imported.

--shape are those of Flash-SD-KDE (arXiv 2602.10378) in 16-D: 32k, 2^15 samples and 2^12 queries, and 1m, 2^20 and 2^17,
with all others as above. All are standard normal here, under Silverman's bandwidth; its repository draws a mixture of
two Gaussians. Fewer --queries are scaled up, fastaae's too. What was published of a shape stands below the table, and
was not measured here: its estimator debiases the samples first, by a pass of all under themselves, eight times the
pairs that are timed here; its sums are plain, its products tf32, without a bound on the error.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

import fastaae
from fastaae import data
from fastaae.kernels import reference
from fastaae.kernels.parzen.bounds import double
from fastaae.run import provenance

T = TypeVar("T")
SHAPES = {  # samples, queries, and what Flash-SD-KDE published
    "32k": (2**15, 2**12, "47 times the speed of a GPU baseline of its estimator; no seconds in the abstract"),
    "1m": (2**20, 2**17, "2.3 s on one GPU"),
}


def mixtures(images: data.Data, device: torch.device) -> Callable[[int, int, tuple[int, int]], Iterator[Tensor]]:
    """A decoder without training: a function that streams a share of n samples for a seed, so many [rows, D] at a time
    as suit the device."""
    x, y = images.x_train, images.y_train
    if y is None:
        raise SystemExit(f"{images.name} has no labels: mixtures of a class need some, give another --source")
    few = as_float(x[:10_000])
    mean = few.mean(0)
    basis = torch.linalg.eigh((few - mean).T @ (few - mean)).eigenvectors[:, -32:]
    codes = torch.cat([(as_float(part) - mean) @ basis for part in x.split(4096)])
    order, size = y.argsort(stable=True), torch.bincount(y)
    first = size.cumsum(0) - size
    mean, basis, codes, y, order, size, first = (t.to(device) for t in (mean, basis, codes, y, order, size, first))
    most = 2**19 if device.type == "cuda" else 4096

    def stream(n: int, seed: int, share: tuple[int, int]) -> Iterator[Tensor]:
        g = torch.Generator(device).manual_seed(seed)
        for start in range(0, n, most):
            rows = min(most, n - start)
            a = torch.randint(len(x), (rows,), generator=g, device=device)
            b = order[first[y[a]] + (torch.rand(rows, generator=g, device=device) * size[y[a]]).long()]
            mix = torch.rand(rows, 1, generator=g, device=device)
            if start // most % share[1] == share[0]:
                code = torch.lerp(codes[a], codes[b], mix)
                decoded = torch.addmm(mean, code, basis.T) if code.is_cuda else (code @ basis.T).add_(mean)
                yield decoded.clamp_(0, 1)

    return stream


def normal(n: int, seed: int, share: tuple[int, int], device: torch.device) -> Iterator[Tensor]:
    """A share of n standard normal samples, so many [rows, 16] at a time as suit the device."""
    g, most = torch.Generator(device).manual_seed(seed), 2**19 if device.type == "cuda" else 4096
    for k, start in enumerate(range(0, n, most)):
        part = torch.randn(min(most, n - start), 16, generator=g, device=device)
        if k % share[1] == share[0]:
            yield part


def resized(images: data.Data, side: int) -> data.Data:
    """Square images, bilinearly."""

    def resize(x: Tensor) -> Tensor:
        old = math.isqrt(x.shape[1])
        parts = [
            torch.nn.functional.interpolate(part.view(-1, 1, old, old).float(), (side, side), mode="bilinear")
            for part in x.split(10_000)
        ]
        big = torch.cat(parts).flatten(1)
        return big.round().byte() if x.dtype == torch.uint8 else big

    parts = {name: data.Rows.all(resize(getattr(images, f"x_{name}"))) for name in images.parts}
    return dataclasses.replace(images, shape=(side, side), parts=parts)


def as_float(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def block_skip(x: Tensor, samples: Tensor, sigma: float) -> Tensor:
    """Log-likelihoods by float32 products, exponentials only of blocks within 30 nats of the best."""
    m, d = x.shape
    weight = 0.5 / sigma**2
    shift = samples[:1000].mean(0)
    x = x - shift
    square, best, total = x.square().sum(1), x.new_full((m,), math.inf), x.new_zeros(m)
    for s in samples.split(4096):
        s = s - shift
        d2 = torch.addmm(s.square().sum(1), x, s.T, alpha=-2)
        nearest = d2.amin(1) + square
        live = (nearest <= best + 30 / weight).nonzero()[:, 0]
        low = torch.minimum(nearest[live], best[live])
        terms = ((low - square[live])[:, None] - d2[live]).mul_(weight).clamp_(min=-80).exp_().sum(1)
        total[live] = total[live] * torch.exp((low - best[live]) * weight) + terms
        best[live] = low
    return total.log() - best * weight - math.log(len(samples)) - d * math.log(sigma * math.sqrt(2 * math.pi))


def chunked_logsumexp(x: Tensor, samples: Tensor, sigma: float) -> Tensor:
    square = x.square().sum(1, keepdim=True)
    parts = []
    for s in samples.split(4096):
        d2 = square + s.square().sum(1) - 2 * x @ s.T
        parts.append(torch.logsumexp(d2 / (-2 * sigma**2), 1))
    log_norm = math.log(len(samples)) + x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return torch.logsumexp(torch.stack(parts), 0) - log_norm


def compiled(x: Tensor, samples: Tensor, sigma: float) -> Tensor:
    """chunked_logsumexp with each chunk compiled."""
    parts = [_compiled()(x, s, torch.tensor(sigma, device=x.device)) for s in samples.split(4096)]
    log_norm = math.log(len(samples)) + x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return torch.logsumexp(torch.stack(parts), 0) - log_norm


@functools.cache
def _compiled() -> Callable:
    def chunk(x: Tensor, s: Tensor, sigma: Tensor) -> Tensor:
        d2 = x.square().sum(1, keepdim=True) + s.square().sum(1) - 2 * x @ s.T
        return torch.logsumexp(d2 / (-2 * sigma**2), 1)

    return torch.compile(chunk, dynamic=False)


def broadcast(x: Tensor, samples: Tensor, sigma: float) -> Tensor:
    parts = [torch.logsumexp((x[:, None] - s).square().sum(2) / (-2 * sigma**2), 1) for s in samples.split(4096)]
    log_norm = math.log(len(samples)) + x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return torch.logsumexp(torch.stack(parts), 0) - log_norm


def plain(run: Callable[[Tensor, Tensor, float], Tensor]) -> Callable:
    """A contender with nothing to prepare."""
    return lambda samples, sigma: lambda x: run(x, samples, sigma)


def scikit(**options: Any) -> Callable:
    def fit(samples: Tensor, sigma: float) -> Callable[[Tensor], Tensor]:
        from sklearn.neighbors import KernelDensity

        numbers: dict[str, Any] = {k: len(samples) if v == "N" else v for k, v in options.items()}
        density = KernelDensity(bandwidth=sigma, **numbers).fit(samples.cpu().numpy())
        return lambda x: torch.from_numpy(density.score_samples(x.cpu().numpy()))

    return fit


def keops(x: Tensor, samples: Tensor, sigma: float) -> Tensor:
    from pykeops.torch import LazyTensor

    d2 = ((LazyTensor(x[:, None].contiguous()) - LazyTensor(samples[None])) ** 2).sum(2)
    log_norm = math.log(len(samples)) + x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return (d2 * (-0.5 / sigma**2)).logsumexp(1).view(-1) - log_norm


OTHERS: dict[str, tuple[Callable, int, int]] = {  # what prepares samples; queries a CPU, and a GPU, does in seconds
    "block-skip": (plain(block_skip), 1000, 10_000),
    "logsumexp": (plain(chunked_logsumexp), 250, 10_000),
    "compiled": (plain(compiled), 250, 10_000),
    "broadcast": (plain(broadcast), 4, 200),
    "scikit-learn": (scikit(), 50, 50),
    "scikit-learn leaf_size=N": (scikit(leaf_size="N"), 50, 50),
    "pykeops": (plain(keops), 50, 1000),
}


def source(options: argparse.Namespace, images: data.Data | None) -> Callable[[tuple[int, int]], Iterator[Tensor]]:
    """A function that starts the stream of samples anew: of every K blocks the k-th, for a share (k, K)."""
    name, n, seed = options.source, options.samples, options.seed
    if images is None:
        return lambda share: normal(n, seed, share, torch.device(options.device))
    if name == "mixtures":
        stream = mixtures(images, torch.device(options.device))
        return lambda share: stream(n, seed, share)
    if name.endswith(".npy"):
        rows = np.load(name, mmap_mode="r")
        if len(rows) < n:
            raise SystemExit(f"{name} holds {len(rows)} samples: give --samples {len(rows)} or fewer")
        most = 2**19 if options.device == "cuda" else 4096
        starts = range(0, n, most)
        return lambda share: (torch.tensor(rows[k : min(k + most, n)]) for k in starts[share[0] :: share[1]])
    model = fastaae.load(name, device=options.device)
    return lambda share: model.stream(n, seed, share=share)


def peak_memory(device: torch.device) -> float:
    """MB that this process has held at most since reset, on the device; NaN where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(next(s for s in status.splitlines() if s.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        return math.nan


def reset_peak_memory(device: torch.device) -> float:
    """Forget the peak so far; MB held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_memory(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device) -> float:
    """GFLOP/s of a large matrix product, float32 on a CPU and fp16 on a GPU: the roof of every dense evaluation."""
    m, n, dtype = (8192, 65536, torch.float16) if device.type == "cuda" else (1024, 4096, torch.float32)
    a, b = (torch.rand(*shape, device=device).to(dtype) for shape in ((m, 784), (784, n)))
    times = []
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 2e-9 * m * 784 * n / min(times)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="mixtures", help="run directory, .npy file [N, ...] or 'mixtures'")
    parser.add_argument("--shape", choices=list(SHAPES), help="standard normal data in 16-D; the images' flags go idle")
    parser.add_argument("--samples", type=int, help="default: 50,000, or the shape's")
    parser.add_argument("--samples-others", type=int, default=10_000, help="how many of them the others see")
    parser.add_argument("--queries", type=int, help="the first test images, default: 10,000; or of the shape's")
    parser.add_argument("--sigma", type=float, nargs="+", help="several are scored in one pass; default: 0.2")
    parser.add_argument("--choose-sigma", action="store_true", help="on 1,000 validation images, the default grid")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--dataset", default=None, help="mnist, digits or a .npz file")
    parser.add_argument("--side", type=int, help="resize the images to side x side: 48 makes 2,304 dimensions")
    parser.add_argument("--others", nargs="*", choices=list(OTHERS), help="default: all; on a CPU nothing is compiled")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tf32", action="store_true", help="a GPU's float32 products, of a trained decoder and the others"
    )
    options = parser.parse_args(arguments)
    n, m, _ = SHAPES[options.shape] if options.shape else (50_000, 10_000, "")
    options.samples, options.queries = options.samples or n, options.queries or m
    options.sigma = options.sigma or [(options.samples * 18 / 4) ** (-1 / 20) if options.shape else 0.2]
    if options.shape and (options.choose_sigma or len(options.sigma) > 1):
        parser.error("--shape: expected one --sigma, there is nothing to choose it on")
    torch.set_num_threads(options.threads)
    if options.tf32:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    if options.others is None:
        options.others = [name for name in OTHERS if options.device == "cuda" or name != "compiled"]
    return options


def join_ranks(options: argparse.Namespace) -> tuple[int, int]:
    """This process's rank and how many there are; the others' timings are left out where there are several."""
    share = (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if share[1] > 1:
        if options.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if options.device == "cuda" else "gloo")
        options.others = []  # they would have the cores of one rank
    if share[0]:
        sys.stdout = open(os.devnull, "w")  # the first rank reports
    return share


def images_of(options: argparse.Namespace) -> data.Data:
    try:
        images = data.load(options.dataset or "mnist")
    except data.DataUnavailable as error:
        if options.dataset:
            raise
        print(f"{error}; using digits")
        images = data.load("digits")
    return resized(images, options.side) if options.side else images


def agrees(options: argparse.Namespace, x: Tensor, head: Tensor) -> bool:
    """Whether a few queries have the likelihood that float64 differences give, within the certificate."""
    few = x[:: max(len(x) // 10, 1)][:10]
    result = fastaae.parzen_log_likelihood(few, head, options.sigma[0], method=options.method, device=options.device)
    exact = reference.parzen_log_likelihood(double(few), double(head.cpu()), options.sigma[0])
    error = np.abs(result.per_query - exact.numpy()).max()
    print(f"against float64 differences: {error:.1e} nats, certificate {result.error_bound:.1e}")
    return error <= result.error_bound + 1e-9


class Clock:
    """Seconds of calls, by name."""

    def __init__(self, device: torch.device):
        self.device, self.times = device, {}

    def __call__(self, name: str, call: Callable[[], T], least: float = 0.0) -> T:
        """What a call returns; it is repeated for so many seconds at least."""
        synchronize(self.device)
        started, seconds, calls = time.perf_counter(), 0.0, 0
        while True:
            returned = call()
            synchronize(self.device)
            seconds, calls = time.perf_counter() - started, calls + 1
            if seconds >= least:
                break
        self.times.setdefault(name, []).append(seconds / calls)
        return returned

    def median(self, name: str) -> float:
        return float(np.median(self.times[name]))


class Rounds(NamedTuple):
    """What some rounds of all contenders gave."""

    clock: Clock
    result: fastaae.ParzenResult
    memory: float  # MB that fastaae held beyond what was held before
    queries: dict[str, int]  # of each other
    values: dict[str, np.ndarray]  # likelihoods of each other


def rounds(
    options: argparse.Namespace, score: Callable[[], fastaae.ParzenResult], draw: Callable, floats: Tensor, head: Tensor
) -> Rounds:
    """Time fastaae on all and the others on the first samples.

    Args:
        score, draw: fastaae's evaluation, and the drawing of samples in it alone.
        floats, head: what the others see.
    """
    device = floats.device
    clock, cuda, values = Clock(device), device.type == "cuda", {}
    queries: dict[str, int] = {}
    for name in options.others:
        _, on_cpu, on_gpu = OTHERS[name]
        queries[name] = on_gpu if cuda else on_cpu

    def one() -> tuple[fastaae.ParzenResult, float]:
        clock("drawing", draw)
        before = reset_peak_memory(device)
        result = clock("fastaae", score)
        memory = peak_memory(device) - before
        for name, some in list(queries.items()):
            prepare = OTHERS[name][0]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    prepare(head if cuda else head[:100], result.sigma)(floats[: some if cuda else 2])  # may compile
            except (ImportError, RuntimeError) as error:  # not installed, or no memory for it, or no compiler
                print(f"{name}: left out, {type(error).__name__} {str(error).splitlines()[:1]}")
                del queries[name]
                continue
            other = clock(f"{name}: prepare", lambda: prepare(head, result.sigma))  # noqa: B023
            values[name] = clock(name, lambda: other(floats[:some]), 0.05 * cuda).double().cpu().numpy()  # noqa: B023
        return result, memory

    if cuda:
        one()
        clock.times.clear()
    result, memory = [one() for _ in range(options.rounds)][-1]
    return Rounds(clock, result, memory, queries, values)


def table(done: Rounds, sizes: tuple[int, int, int], floats: Tensor, head: Tensor, rate: float) -> list[dict]:
    """A row for each contender, printed; the first is fastaae's.

    Args:
        sizes: queries, samples and dimensions of the whole evaluation.
        floats, head: what the others saw.
        rate: GFLOP/s of products.
    """
    m, n, d = sizes
    exact = fastaae.parzen_log_likelihood(floats, head, done.result.sigma).per_query

    def row(name: str, once: float, seconds: float, queries: int, samples: int, nats: float, error: float) -> dict:
        pairs = queries * samples * d
        return {
            "contender": name,
            "queries": queries,
            "samples": samples,
            "seconds": once + seconds,
            "seconds_all": once * n / samples + seconds * m * n * d / pairs,
            "pair_dimensions_per_second": pairs / seconds,
            "share_of_products": 2e-9 * pairs / seconds / rate,
            "nats": nats,
            "error": error,
        }

    times = done.clock.times
    scoring = float(np.median(np.array(times["fastaae"]) - np.array(times["drawing"])))
    rows = [row("fastaae", 0.0, scoring, len(floats), n, done.result.mean, done.result.error_bound)]
    for name, some in done.queries.items():
        once, seconds = (done.clock.median(k) for k in (f"{name}: prepare", name))
        error = float(np.abs(done.values[name] - exact[:some]).max())
        rows.append(row(name, once, seconds, min(some, len(floats)), len(head), float(done.values[name].mean()), error))
    print(f"\n{m} queries x {n} samples x {d} dimensions, sigma {done.result.sigma:.4g}")
    print(f"{'':26}{'measured on':>17}{'seconds':>10}{'for all':>10}{'x fastaae':>11}{'pd/s':>10}{'error':>10}")
    for r in rows:
        ran = f"{r['queries']} x {r['samples']}"
        ratio = r["seconds_all"] / rows[0]["seconds_all"]
        print(
            f"{r['contender']:26}{ran:>17}{r['seconds']:10.3g}{r['seconds_all']:10.3g}{ratio:11.1f}"
            f"{r['pair_dimensions_per_second']:10.1e}{r['error']:10.1e}"
        )
    return rows


def published(options: argparse.Namespace, seconds: float) -> dict[str, str]:
    """What Flash-SD-KDE's paper says of this shape, and fastaae's seconds, if this was a GPU and all of it; printed."""
    _, m, theirs = SHAPES[options.shape]
    measured = options.device == "cuda" and options.queries == m
    ours = f"{seconds:.3g} s in one pass" if measured else "not measured yet"
    found = {"Flash-SD-KDE, published": theirs, "fastaae on a GPU": ours}
    print("; ".join(f"{k}: {v}" for k, v in found.items()))
    return found


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    share = join_ranks(options)
    images = None if options.shape else images_of(options)
    machine, device = provenance.describe(options.device), torch.device(options.device)
    print(" ".join(f"{k}={v}" for part in machine.values() for k, v in part.items()))
    rate, kind = product_rate(device), "fp16" if device.type == "cuda" else "float32"
    if share[1] > 1:
        rates = torch.tensor([rate], device=device)
        distributed.all_reduce(rates)
        rate = rates.item()
    print(f"{kind} products: {rate:.0f} GFLOP/s, {rate / 2 * 1e9:.2e} pairs x dimensions per second")

    n, m = options.samples, options.queries
    x = images.x_test if images else first(normal(m, options.seed + 1, (0, 1), device), m)
    if x is None:
        raise SystemExit(f"{images.name}: no test images, which are the queries")
    x = x[:m]
    restart = source(options, images)
    if not agrees(options, x, first(restart((0, 1)), 5000)):
        print("beyond the certificate: no timing", file=sys.stderr)
        return 1

    scored = {"sigma": options.sigma[0], "method": options.method, "device": options.device}
    if options.choose_sigma or len(options.sigma) > 1:
        grid = None if options.choose_sigma else options.sigma
        scored |= {"sigma": None, "validation": images.x_valid[:1000], "sigmas": grid}
    head = as_float(first(restart((0, 1)), min(options.samples_others, n))).to(device)
    floats = as_float(x).to(device)

    def score() -> fastaae.ParzenResult:
        return fastaae.parzen_log_likelihood(x, restart(share), distributed=share[1] > 1, **scored)

    done = rounds(options, score, lambda: [None for _ in restart(share)], floats, head)
    print(done.result)
    whole_n, whole_m = SHAPES[options.shape][:2] if options.shape else (n, len(x))
    rows = table(done, (whole_m, n, x.shape[1]), floats, head, rate)
    drawing, whole = done.clock.median("drawing"), done.clock.times["fastaae"]
    print(
        f"fastaae: {rows[0]['share_of_products']:.1f} times the rate of dense {kind} products at their best; besides, "
        f"{drawing:.2g} s for drawing the samples; {done.memory:.0f} MB beyond what was held before"
    )
    report = {"sigma": done.result.sigma, "sem": done.result.sem, "drawing_seconds": drawing, "memory_mb": done.memory}
    if options.shape and n == whole_n and share[1] == 1:
        report["published"] = published(options, rows[0]["seconds_all"])
    report |= {"rows": rows, "whole_seconds": float(np.median(whole)), "each_whole_seconds": whole}
    print(json.dumps({"machine": machine, "gflops": rate, **report, "bandwidths": bandwidths(done.result)}))
    if share[1] > 1:
        distributed.destroy_process_group()
    return 0


def bandwidths(result: fastaae.ParzenResult) -> int:
    return 1 if result.sigma_curve is None else len(result.sigma_curve.sigma)


def first(blocks: Iterator[Tensor], n: int) -> Tensor:
    """The first n rows of a stream."""
    held = []
    for block in blocks:
        held.append(block.flatten(1)[: n - sum(map(len, held))])
        if sum(map(len, held)) == n:
            break
    return torch.cat(held)


if __name__ == "__main__":
    sys.exit(main())

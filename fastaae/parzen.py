"""Parzen-window log-likelihood of queries under samples: exact, with a bound that says how exact.

log p(x) = logsumexp_j(-|x - s_j|² / (2 sigma²)) - ln N - D ln(sigma sqrt(2 pi)), in nats (Breuleux et al. 2009; the
protocol of Goodfellow et al. 2014: one bandwidth, chosen on validation data). How it is computed:
kernels/parzen/sums.py.
"""

import contextlib
import itertools
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from . import checkpoint
from .data import span_warning
from .data.arrays import array, flat, plain, sample_weights, tensor
from .device import find_device
from .files import BROKEN, brief, expanded, warn_caller
from .kernels.parzen.bounds import double, some
from .kernels.parzen.plain import ABSENT
from .kernels.parzen.sums import PairSums, block_size
from .liveness import Heartbeat
from .scalars import scalar, within

LARGEST = 1e150  # magnitude whose square is far from overflow
SAVE_EVERY = 60.0  # seconds between writes of the partial sums
STATE = 4  # format of such a file
LEFT_OUT, LEFT = "leave-one-out", 1000  # what a sigma is called that samples choose, and how many of them do
DECADES = 6  # beyond the first that a bandwidth is looked for in
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} samples, {remaining} left{postfix}"
UNLIKE = 8  # times as large as the others, in most rows and in all, and values are in other units
Array = np.ndarray | Tensor
Grid = Sequence[float] | Array
Source = Iterable[Array] | Callable[[int], Iterable[Array]]
Checked = tuple[Tensor, "Range"]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)


class Range(NamedTuple):
    """Of the values of an array, bytes as k / 255."""

    low: float
    high: float
    typical: float  # median over rows (the largest of a stream's blocks) of the largest magnitude in a row

    @property
    def extent(self) -> float:
        return max(-self.low, self.high)

    def __str__(self) -> str:
        return f"[{self.low:.6g}, {self.high:.6g}]"


class SigmaCurve(NamedTuple):
    """Mean log-likelihood of the validation data per bandwidth, in nats. A bandwidth that was soon seen to be hopeless
    is known less exactly than the best ones; `error_bound` says how exactly."""

    sigma: np.ndarray
    mean: np.ndarray
    error_bound: np.ndarray


@dataclass(frozen=True)
class ParzenResult:
    """What parzen_log_likelihood returns. All likelihoods are in nats.

    Attributes:
        mean: over the queries.
        sem: its standard error, population standard deviation / sqrt(M).
        error_bound: |per_query - exact| is at most this for every query, where exact is the formula above in real
            arithmetic on the given numbers. Computed from the data, the arithmetic and the pairs left out.
        sigma: the bandwidth, given or chosen.
        per_query: float64 [M].
        sigma_curve: how the bandwidth was chosen; None where it was given.
        dimensions: D, values of a query or a sample.
        query_range, sample_range: the least and the largest of them.
    """

    mean: float
    sem: float
    error_bound: float
    sigma: float
    n_samples: int
    per_query: np.ndarray = field(repr=False)
    sigma_curve: SigmaCurve | None = field(repr=False)
    dimensions: int
    query_range: Range
    sample_range: Range

    def __str__(self) -> str:
        nats = f"{self.mean:.6g} +- {self.sem:.2g} nats, exact to {self.error_bound:.1g}, with sigma {self.sigma:.4g}"
        samples = f"{self.n_samples} samples of {self.dimensions} values in {self.sample_range}"
        return f"{nats}: {len(self.per_query)} queries in {self.query_range} under {samples}"


def parzen_log_likelihood(
    queries: Array, samples: Array | Source, sigma: float | str | None = None, *, validation: Array | None = None,
    sigmas: Grid | None = None, sample_weight: Array | float | None = None, n_samples: int | None = None,
    method: str = "auto", tolerance: float = 1e-4, device: str | None = None, block: int | None = None,
    progress: bool | None = None, state: str | Path | None = None, distributed: bool = False, timeout: float = 120.0,
) -> ParzenResult:  # fmt: skip
    """Log-likelihood of queries under the Gaussian Parzen-window density of samples.

    Arrays are NumPy arrays or torch tensors [n, ...] of floats, or of uint8 k that mean k / 255, all of the same axes
    or flat. A warning says where the samples' range is far from that of the queries.

    Args:
        queries: [M, ...].
        samples: [N, ...], also one that lies in a file (a memmap, of h5py or zarr); or an iterable of such blocks, of
            any sizes, read once and never held; or a function of k that makes one without its first k samples.
        sigma: standard deviation of the Gaussian window. None chooses it on `validation`, in the same pass;
            "leave-one-out" on up to 1,000 samples, each scored under all others: evenly from an array, or the first
            ones of a function, in proportion to their weights. Duplicates make it narrow.
        validation: [V, ...], which chooses the bandwidth.
        sigmas: bandwidths to choose from. Default: logspace(-1, 0, 10), as in the original protocol, refined until
            neighbours differ by less than about 0.1 nats near the best; and, where the best lies at an end, the decades
            beyond, in a pass each, if samples can be read again (not an iterable), without state and distributed.
        sample_weight: weights [N] of the samples, none below 0 (of an iterable's in their order); or one of them all.
        n_samples: how many samples the iterable will yield, if known; other counts are an error.
        method: "pruned" computes only what can matter, "dense" every distance; "auto" takes what is shorter. All are
            exact to the error bound. (A GPU's "dense" are 8 bits of every distance, and float64 where it can matter.)
        tolerance: nats that leaving out pairs may cost, for up to 1e9 samples.
        device: "cpu", "cuda"; default: where the queries are.
        block: samples scored at a time; default: made for the cache. How an iterable is cut changes no bit.
        progress: show a bar; default: on a terminal.
        state: file that keeps the partial sums, written every minute and where an error or Ctrl-C stops the evaluation.
            The same call goes on from there, with the same bits in the end; samples counted before are passed over, and
            only their first block is compared. Ranks have a file each, its name followed by their number.
        distributed: `samples` are this rank's share, the other arguments the same on every rank of the default process
            group of torch.distributed (n_samples counts the share). Every rank returns the result over all samples.
        timeout: seconds after which a rank that has counted no more samples is taken for dead.

    Raises:
        ValueError: an argument is wrong or does not fit the others, or values are NaN, infinite or beyond 1e150; the
            message names which. MemoryError: the queries do not fit; it says how many would. RuntimeError: another rank
            failed. OSError: the state cannot be written. What the samples raise passes through.
    """
    where = torch.device(find_device(device) if device is not None else getattr(queries, "device", "cpu"))
    sigma, tolerance, timeout, n_samples, block = map(scalar, (sigma, tolerance, timeout, n_samples, block))
    x, asked = _array("queries", queries)
    shape, x, moved = tuple(x.shape[1:]), x.flatten(1), 0
    grid = _bandwidths(sigma, sigmas, validation, x.shape[1])
    _check_options(method, tolerance, distributed, timeout, block=block, n_samples=n_samples)
    rows, n = _readable(samples, shape, n_samples)
    source = samples if rows is None else lambda first: (rows[k : k + size] for k in range(first, rows.shape[0], size))
    ranges, chooser, weights, own = {"queries": asked}, x[:0], None, None
    if sample_weight is not None:
        weights = sample_weights(array("sample_weight", sample_weight, lists=True), n, "samples")
        weights, n = torch.from_numpy(plain(weights)), len(weights)
    if validation is not None:
        chooser, ranges["validation"] = _array("validation", validation, shape)
    elif sigma == LEFT_OUT:
        chooser, own = _left_out(rows, source, x, weights, shape, distributed)
    if choosing := len(chooser):
        x = torch.cat([chooser, x]) if chooser.dtype == x.dtype else torch.cat([double(chooser), double(x)])
    _check_memory(len(x), x.shape[1], len(grid), where)
    x, options = x.to(where), (choosing, tolerance, method, weights, own)
    sums = PairSums(x, torch.tensor(grid, dtype=torch.float64, device=where), *options)
    size = sums.block = block or sums.block
    heartbeat = Heartbeat("samples", timeout) if distributed else None
    saved = None if state is None else _State(state, sums, n, heartbeat)
    _score(sums, source, shape, n, saved, heartbeat, progress)
    while choosing and sigmas is None and callable(source) and not (saved or heartbeat) and abs(moved) < DECADES:
        best = int(sums.result()[0].cpu().numpy()[:, :choosing].mean(1).argmax())
        way = (best == len(grid) - 1) - (best == 0)
        if not way or way * moved < 0:  # the best lies where two decades meet
            return _summary(sums, ranges, told=not way)
        moved, before = moved + way, sums
        sums = PairSums(x, before.sigmas * 10.0**way, *options)
        sums.block = before.block
        _score(sums, source, shape, n, None, None, progress)
    return _summary(sums, ranges)


def _score(
    sums: PairSums, source: Source, shape: tuple[int, ...], n_samples: int | None, state: "_State | None",
    heartbeat: Heartbeat | None, progress: bool | None,
) -> None:  # fmt: skip
    """Count all samples of all ranks. After an error what was counted is saved, and the other ranks hear of it."""

    def blocks(first: int = 0) -> Iterator[Tensor]:
        return _blocks(source(first) if callable(source) else source, shape, sums, first)

    try:
        parts = state.resumed(blocks, sums, callable(source)) if state else blocks()
        hidden = True if sys.stderr is None else None if progress is None else not progress
        screen = {"ncols": shutil.get_terminal_size().columns - 1, "nrows": 20}  # where it has no size there is no bar
        style = {"unit": " samples", "unit_scale": True, "bar_format": BAR if n_samples else None}
        low, high, before, start = *sums.sigmas[[0, -1]].tolist(), sums.n, time.monotonic()
        what = f"sigma {low:.3g}" + f" to {high:.3g}" * (low < high)
        with tqdm(desc=what, total=n_samples, initial=before, disable=hidden, **screen, **style) as bar:
            for part in parts:
                if n_samples is not None and sums.n + len(part) > n_samples:
                    raise ValueError(f"samples: expected n_samples={n_samples}, there are more")
                sums.add(part)
                pace = len(sums.totals.x) * (sums.n - before) / max(time.monotonic() - start, 1e-9)
                bar.set_postfix_str(f"{tqdm.format_sizeof(pace)} pairs/s", refresh=False)
                bar.update(len(part))
                if state:
                    state.write(sums, SAVE_EVERY)
                if heartbeat:
                    heartbeat.beat(sums.n)
        if n_samples not in (None, sums.n):
            raise ValueError(f"samples ended after {sums.n}, expected n_samples={n_samples}")
        if state:
            try:
                state.write(sums)
            except OSError as error:  # the result is there
                warn_caller(f"state={str(state.path)!r}: the last sums were not saved ({error})")
    except BaseException as error:
        note = f"{sums.n} samples had been scored"
        with contextlib.suppress(OSError, RuntimeError):  # the error is more important
            if state and sums.n and sums.n % state.identity["block"] == 0:
                state.write(sums)
                note += f", which {str(state.path)!r} keeps: the same call goes on from there"
        if add_note := getattr(error, "add_note", None):  # from Python 3.11 on
            add_note(note)
        with contextlib.suppress(OSError, RuntimeError):
            if heartbeat:
                heartbeat.n = sums.n
                heartbeat.fail(error)
        raise
    if heartbeat:
        heartbeat.wait()
        try:
            sums.merge(heartbeat.timeout)
        except RuntimeError as error:
            where = f"rank {heartbeat.rank}, after {sums.n} samples"
            raise RuntimeError(f"{where}: joining the sums of {heartbeat.world} ranks failed ({error})") from error
    if not sums.n:
        raise ValueError(f"samples: there are {sums.n}, expected at least one")
    if (sums.totals.minimum >= ABSENT).any():
        raise ValueError(f"sigma={LEFT_OUT!r}: expected at least two samples of a weight above zero, there is one")


def _summary(sums: PairSums, ranges: dict[str, Range], told: bool = True) -> ParzenResult:
    """The likelihoods under the bandwidth given, or the best for queries that choose it, told if it is at an end."""
    seen = Range(*sums.seen)
    for name, given in ranges.items():
        sizes = zip((given.typical, given.extent), (seen.typical, seen.extent), strict=True)
        if all(max(pair) >= UNLIKE * min(pair) > 0 for pair in sizes):
            hint = "give both in the same units (bytes mean k / 255: pass uint8, or divide by 255)"
            warn_caller(f"{name} lie in {given}, samples in {seen}: {hint}")
    value, bound = (t.cpu().numpy() for t in sums.result())
    sigmas, choosing, best, curve = sums.sigmas.cpu().numpy(), sums.choosing, 0, None
    if choosing:
        curve = SigmaCurve(sigmas, value[:, :choosing].mean(1), bound[:, :choosing].mean(1))
        best = int(curve.mean.argmax())
        if told and best in (0, len(sigmas) - 1) and len(sigmas) > 1:
            end = "smallest" if best == 0 else "largest"
            warn_caller(f"best bandwidth {sigmas[best]:g} is the {end} tried: pass sigmas= beyond it")
    per_query, error_bound = value[best, choosing:].copy(), float(bound[best, choosing:].max())
    scale = max(np.abs(per_query).max(), 1.0)  # far queries are finite, their squares need not be
    with np.errstate(invalid="ignore"):  # a likelihood below every float is -inf
        sem = float((per_query / scale).std() * scale / math.sqrt(len(per_query)))
    kept = (float(per_query.mean()), sem, error_bound, float(sigmas[best]), sums.n, per_query, curve)
    return ParzenResult(*kept, sums.totals.x.shape[1], ranges["queries"], seen)


class _State:
    """A file of partial sums, and what tells that they belong to this evaluation."""

    def __init__(self, path: str | Path, sums: PairSums, n_samples: int | None, heartbeat: Heartbeat | None):
        self.path = expanded(f"{path}.{heartbeat.rank}" if heartbeat else path).absolute()
        self.written = time.monotonic()
        self.identity: dict[str, Any] = {"sigmas": sums.sigmas.tolist(), "validation": sums.choosing}
        self.identity |= {"tolerance": sums.tolerance, "method": sums.method, "block": sums.block}
        self.identity |= {"device": str(sums.totals.x.device), "n_samples": n_samples}
        given = {"queries": sums.totals.queries, LEFT_OUT: sums.own, "sample_weight": sums.ratios}
        self.identity |= {name: t if t is None else checkpoint.digest({"": t}) for name, t in given.items()}
        self.identity |= {"ranks": [heartbeat.rank, heartbeat.world] if heartbeat else None, "format": STATE}
        try:  # before, not after, the work
            with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp-trial"):
                checkpoint.remove_unfinished(self.path)
        except OSError as error:
            if error.errno in BROKEN:
                error.filename = str(self.path)
                raise
            where = f"a directory that can be written to, not in {self.path.parent} ({error.strerror})"
            raise ValueError(f"state={str(path)!r}: expected a file in {where}") from None

    def resumed(self, blocks: Callable[..., Iterator[Tensor]], sums: PairSums, seeks: bool) -> Iterator[Tensor]:
        """The blocks that `sums` has not counted yet, once the file's sums, if there is one, are in it. blocks(n) makes
        those after n samples, where the source can begin there."""
        parts = blocks()
        first = next(parts, None)
        if first is None:
            return parts
        self.identity["samples"] = checkpoint.digest({"": first})
        if not self.path.exists():
            return itertools.chain([first], parts)
        given, (tensors, info) = f"state={str(self.path)!r}", checkpoint.load(self.path)
        for name, value in self.identity.items():
            if info.get(name) != value:
                raise ValueError(f"{given}: of an evaluation with other {name}, expected the same or another file")
        like = sums.packed()
        packed = tensors.get("sums", like[:0])
        same = (packed.shape, packed.dtype) == (like.shape, like.dtype)
        if not same or packed.isnan().any() or packed[:7].isinf().any() or not 0 < packed[0] < 2**53:
            raise ValueError(f"{given}: its sums are of another kind, expected {like.dtype} {list(like.shape)}")
        sums.restore(packed, first)
        if seeks:
            return blocks(sums.n)
        passed = len(first) + sum(map(len, itertools.islice(parts, -(-sums.n // sums.block) - 1)))
        if passed != sums.n:  # also where the last block that was counted was the end, and now is not
            raise ValueError(f"{given}: it counts {sums.n} samples, expected a stream that begins with these")
        return parts

    def write(self, sums: PairSums, least: float = 0.0) -> None:
        """Save the sums, if `least` seconds have passed since the last time."""
        if time.monotonic() - self.written >= least:
            checkpoint.save(self.path, {"sums": sums.packed()}, self.identity)
            self.written = time.monotonic()


def _bandwidths(sigma: Any, sigmas: Grid | None, validation: Array | None, d: int) -> list[float]:
    """The bandwidths to score, ascending: sigma, or those to choose from."""
    if isinstance(sigma, str) and sigma == LEFT_OUT and validation is None:
        sigma, validation = None, np.empty(0)  # samples will stand for it
    if sigma is not None:
        if sigmas is not None or validation is not None:
            raise ValueError(f"sigma={brief(sigma)} is given, expected neither validation nor sigmas, which choose it")
        values = [sigma]
    elif validation is None:
        raise ValueError(f"{sigma=}: expected a bandwidth, or validation data to choose it on, or {LEFT_OUT!r}")
    elif sigmas is not None:
        several = isinstance(sigmas, list | tuple)
        values = list(map(scalar, sigmas)) if several else tensor("sigmas", sigmas).double().flatten().tolist()
    else:  # near its top the curve falls by D (ln sigma - ln best)² nats
        between = max(1, math.ceil(math.log(10) / 9 / 2 * math.sqrt(d / 0.1)))
        values = np.logspace(-1, 0, 9 * between + 1).tolist()
    wrong = [s for s in values if not within(1e-100, s, 1e100)]
    if wrong or not values:
        raise ValueError(f"bandwidth {brief(wrong[0] if wrong else values)}: expected positive numbers")
    return sorted({float(s) for s in values})


def _readable(samples: Any, shape: tuple[int, ...], n_samples: int | None) -> tuple[Any, int | None]:
    """Samples as what slices can be taken of, checked if it lies in memory, None of others; and how many there are."""
    held = isinstance(samples, np.ndarray | Tensor) and not isinstance(samples, np.memmap)
    if not held and not (getattr(samples, "shape", ()) and hasattr(samples, "__getitem__")):  # as h5py, zarr, pandas
        return None, n_samples
    rows = _array("samples", samples, shape)[0] if held else samples
    if n_samples not in (None, n := rows.shape[0]):
        raise ValueError(f"n_samples={n_samples}: expected {n}, as many as there are samples")
    return rows, n


def _left_out(
    rows: Any, source: Source, queries: Tensor, weights: Tensor | None, shape: tuple[int, ...], distributed: bool
) -> tuple[Tensor, Tensor]:
    """Samples [V, D] that choose the bandwidth, of the rows or else the first ones of a source, evenly by weight; and
    which samples they and the queries are, int64 [V + M], -1 for none."""
    if distributed or not callable(source):
        raise ValueError(f"sigma={LEFT_OUT!r}: expected samples of one process, in an array or a function of blocks")
    if rows is None:
        head = PairSums(queries[:1], torch.ones(1, dtype=torch.float64, device=queries.device), 0, 0.1, "dense")
        head.block = LEFT
        rows = next(_blocks(source(0), shape, head, 0), queries[:0])
    mass = torch.from_numpy(np.ones(rows.shape[0])) if weights is None else weights[: rows.shape[0]] / weights.max()
    mass, n = mass.cumsum(0), min(len(mass), LEFT)
    own = torch.searchsorted(mass, torch.from_numpy(np.arange(n) + 0.5) * (mass[-1:] / n))
    found = torch.cat([tensor("samples", rows[k : k + 1]) for k in own.tolist()] or [queries[:0]])
    found = found if isinstance(rows, Tensor) else _array("samples that choose sigma", found, shape)[0]
    return found.to(queries.device), pad(own, (0, len(queries)), value=-1)


def _check_options(method: str, tolerance: float, distributed: bool, timeout: float, **counts: int | None) -> None:
    if method not in ("auto", "pruned", "dense"):
        raise ValueError(f"method={brief(method)}: expected one of auto, pruned, dense")
    if not within(1e-100, tolerance, 1):
        raise ValueError(f"tolerance={brief(tolerance)}: expected nats above 1e-100 and below 1")
    for name, value in counts.items():
        if value is not None and not (type(value) is int and 0 < value < 2**53):
            raise ValueError(f"{name}={brief(value)}: expected a positive integer below 2**53")
    if distributed and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ValueError(f"{distributed=} needs a process group: call torch.distributed.init_process_group before")
    if not within(0, timeout, 1e9):
        raise ValueError(f"timeout={brief(timeout)}: expected a positive number of seconds")


def _array(name: str, values: Any, shape: tuple[int, ...] | None = None, first: int | None = None) -> Checked:
    """Checked values as a tensor [n, ...] of floats or bytes, or [n, D] of examples that have to be of this shape; of a
    stream, the samples from `first` on. And their range."""
    t = tensor(name, values)
    t = t if t.dtype in DTYPES or t.dtype == torch.bool else t.double()
    if t.ndim < 2 or t.dtype not in DTYPES:
        kind = f"{t.dtype} {list(t.shape)}".removeprefix("torch.")
        raise ValueError(f"{name} is {kind}: expected numbers [n, ...]; one column is x[:, None], one example x[None]")
    if not len(t) or not t[0].numel():
        raise ValueError(f"{name} is empty: {list(t.shape)}, expected at least one value")
    t = t if shape is None else flat(name, t, shape)
    low, high = torch.stack(torch.aminmax(t)).tolist()  # NaN if there is one
    if -LARGEST < low and high < LARGEST:
        if first is None and t.dtype == torch.uint8 and (odd := span_warning(name, low, high, t.dtype)):
            warn_caller(odd)
        typical = some(t.flatten(1), 64 if first else 1024).double().abs().amax(1).cpu().median().item()
        unit = 255 if t.dtype == torch.uint8 else 1
        return t, Range(low / unit, high / unit, typical / unit)
    row = int((~(t.flatten(1).double().abs() < LARGEST)).any(1).nonzero()[0])
    where = f"row {row}" if first is None else f"sample {first + row}"
    raise ValueError(f"{name}: {where} holds NaN, infinite or too large values, expected finite ones below {LARGEST:g}")


def _blocks(parts: Iterable[Any], shape: tuple[int, ...], sums: PairSums, n: int) -> Iterator[Tensor]:
    """The rows of all parts, of which the first is sample n, checked, in blocks of one size wherever the parts end."""
    size = sums.block
    try:
        parts = iter(parts)
    except TypeError:
        kind = type(parts).__name__
        raise ValueError(f"samples: expected an array, a tensor or an iterable of blocks, got {kind}") from None
    held: list[Tensor] = []
    first, waiting = None, 0
    for k, part in enumerate(parts):
        name = f"samples: block {k}"
        part = tensor(name, part) if isinstance(part, Tensor) else part
        part = part if hasattr(part, "__len__") or not hasattr(part, "__array__") else tensor(name, part)
        if not getattr(part, "ndim", 1) or not hasattr(part, "__array__") and not isinstance(part, list | tuple):
            raise ValueError(f"{name} is {brief(part)}, expected an array or tensor [n, ...]")
        for start in range(0, len(part), size):
            t, found = _array(name, part[start : start + size], shape, n)
            (low, high, typical), first = sums.seen, first or t.dtype
            sums.seen = [min(low, found.low), max(high, found.high), max(typical, found.typical)]
            if t.dtype != first:
                raise ValueError(f"{name} is {t.dtype}, expected {first} as the blocks before")
            n, waiting = n + len(t), waiting + len(t)
            if waiting < size:
                held.append(t.clone())  # a stream may fill the same memory again
            else:
                joined = torch.cat([*held, t]) if held else t.contiguous()
                yield joined[:size]
                waiting -= size
                held = [joined[size:]] if waiting else []
    if waiting:
        yield torch.cat(held)


def _check_memory(m: int, d: int, s: int, device: torch.device) -> None:
    """Raise if what is kept per query is larger than the memory that is free."""
    each, free = 8 * d + 1300 + 24 * s, _free_memory(device)
    if device.type == "cuda":
        each += 4 * block_size(m, d, device)  # one bit for each sample of a block, and what becomes of it
    if m * each > 0.9 * free:
        need = f"{m} queries of {d} values with {s} bandwidths take {m * each / 1e9:.1f} GB"
        raise MemoryError(f"{need}, {free / 1e9:.1f} GB are free: score at most {int(0.8 * free / each)} at a time")


def _free_memory(device: torch.device) -> float:
    """Bytes, where the system tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return math.inf

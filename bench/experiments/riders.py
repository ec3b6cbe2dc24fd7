"""Updates that ride: tiles of them behind the programs of a product's launch, which waits for the cache while they wait
for memory. And any launch of the step that starts before the one before it has ended (programmatic dependent launch).

What rides where follows from what launches read and write (ride()); launches.conflicts() checks what came of it. Some
updates could ride in the launch that still reads the weight as it was: they get a second shadow, which the launches
behind them read, and the update after that goes back to the first (second_shadows()).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastaae.kernels.step.draws import _draw_kernel
from fastaae.kernels.step.layers import _backward_kernel, _forward_kernel, _update_bias, _update_kernel, _update_weight
from fastaae.kernels.step.layers import own as _own
from fastaae.kernels.step.losses import _classes_kernel, _finish_kernel, _judge_kernel

from .launches import Job, Launch, Work, jobs, of_job, sets, works
from .tiles import _backward_rows_kernel, _forward_rows_kernel, large

TILE = {"BO": 64, "BI": 32}  # of a rider, with the four warps of a product; all rows of its batch at once


@triton.jit
def _riding_kernel(
    given,  # what a launch's own kernel takes
    riders,  # of each job: tensors, strides, (rate, correction, scale, momentum), M
    HOW: tl.constexpr,  # the constants of that kernel, those before and those behind the one that is no number
    APART: tl.constexpr,  # that: LOSS, SHAPES or WHAT
    KERNEL: tl.constexpr,  # which it is
    PROGRAMS: tl.constexpr,  # its programs; riders are behind them
    RIDERS: tl.constexpr,  # of each: O, I, pitches of grad, x, shadow, tiles, BM; first program, programs, first tile
    DEPENDENT: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:  # the next launch may start; this one waits until all before it has ended
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if pid < PROGRAMS:
        if KERNEL == "forward":
            _forward_kernel(*given, *HOW[0], APART, *HOW[1])
        elif KERNEL == "backward":
            _backward_kernel(*given, *HOW[0])
        elif KERNEL == "forward_rows":
            _forward_rows_kernel(*given, *HOW[0], APART, *HOW[1])
        elif KERNEL == "backward_rows":
            _backward_rows_kernel(*given, *HOW[0])
        elif KERNEL == "update":
            _update_kernel(*given, APART, *HOW[1], POLICY)
        elif KERNEL == "judge":
            _judge_kernel(*given, *HOW[0])
        elif KERNEL == "classes":
            _classes_kernel(*given, APART, *HOW[1])
        elif KERNEL == "draw":
            _draw_kernel(*given, *HOW[0])
        elif KERNEL == "finish":
            _finish_kernel(*given, *HOW[0])
    for j in tl.static_range(len(RIDERS)):
        seat = pid - RIDERS[j][7]
        if (seat >= 0) & (seat < RIDERS[j][8]):
            _ride(seat + RIDERS[j][9], r, riders[j], *RIDERS[j][:7], BO, BI, POLICY)


@triton.jit
def _ride(
    tile, r, rider, N_O: tl.constexpr, N_I: tl.constexpr, G_M: tl.constexpr, X_M: tl.constexpr, S_O: tl.constexpr,
    TILES: tl.constexpr, BM: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    tensors, strides, rates, M = rider
    how = tl.load(rates[0] + r), rates[1], rates[2], _own(rates[3], r)
    if tile < TILES:
        _update_weight(tile, r, tensors, strides, how, M, N_O, N_I, G_M, X_M, S_O, BO, BI, BM, BM, POLICY)
    else:
        _update_bias(tile - TILES, r, tensors, strides, how, M, N_O, N_I, G_M, BO, BM, BM, POLICY)


def _whole(rows: int) -> int:
    return triton.next_power_of_2(max(16, rows))


Part = tuple[Job, int, int]
"""Some programs of a job, from, up to: tiles of the weight, then blocks of the bias."""


def riding(launch: Launch | None, parts: Sequence[Part], dependent: bool = False) -> Launch:
    """A launch of the step, or none, with riders behind it; dependent: on the one before, and the next one on it."""
    given, how, own = launch.split() if launch else ((), {}, {"num_warps": 4, "num_stages": 2})
    policy = how.pop("POLICY", "evict_first")
    names, values = list(how), tuple(how.values())
    at = next((k for k, name in enumerate(names) if name in ("LOSS", "SHAPES", "WHAT")), len(names))
    replicas = launch.grid[1:] if launch else (parts[0][0].tensors[2].shape[0],)
    first = programs = launch.grid[0] if launch else 0
    riders, shapes = [], []
    for job, start, stop in parts:
        riders.append((job.tensors, job.strides, job.how, job.rows))
        shapes.append((*job.shape, job.programs(TILE)[0], _whole(job.rows), first, stop - start, start))
        first += stop - start
    constants, name = (values[:at], values[at + 1 :]), launch.name if launch else ""
    some = given or (0,), tuple(riders) or (0,)  # a launcher need not take empty ones
    args = (*some, constants, (*values, None)[at], name, programs, tuple(shapes), dependent)
    options = own | TILE | {"POLICY": policy} | ({"launch_pdl": True} if dependent else {})
    return Launch(_riding_kernel, (first, *replicas), args, options, partial(_works, launch))


def _works(plain: Launch | None, launch: Launch) -> list[Work]:
    given, riders, _, _, _, _, shapes, _ = launch.args
    found = works(plain._replace(args=(*given, *plain.split()[1].values()), options={})) if plain else []
    for (some, strides, rates, rows), shape in zip(riders, shapes, strict=False):
        job, (*_, programs, start) = Job(some, strides, rates, rows, shape[:5]), shape
        found.append(of_job(job, (start, start + programs, sum(job.programs(TILE)))))
    return found


def dependent(launches: Sequence[Launch]) -> list[Launch]:
    """The same launches, each of which may start before the one before it has ended."""
    pdl = {"launch_pdl": True}
    return [
        launch._replace(args=(*launch.args[:-1], True), options=launch.options | pdl)
        if launch.kernel is _riding_kernel
        else riding(launch, (), True)
        for launch in launches
    ]


def second_shadows(launches: Sequence[Launch], shadows: Sequence[Tensor]) -> list[Launch]:
    """The same launches, but that an update of one of these shadows writes the other of two, which what follows reads.

    Raises:
        ValueError: the last update does not write the first of the two, which the next of these launches reads.
    """
    now = {t.data_ptr(): t for t in shadows}
    spare = {at: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for at, t in now.items()}

    def renamed(some: Any) -> Any:
        if isinstance(some, tuple):
            return tuple(map(renamed, some))
        return now.get(some.data_ptr(), some) if isinstance(some, Tensor) else some

    def flipped(layer: tuple) -> tuple:
        at = layer[4].data_ptr()
        if at in now:
            now[at], spare[at] = spare[at], now[at]
        return (*layer[:4], now.get(at, layer[4]), *layer[5:])

    found = []
    for launch in launches:
        first = tuple(map(flipped, launch.args[0])) if launch.name == "update" else renamed(launch.args[0])
        found.append(launch._replace(args=(first, *renamed(launch.args[1:]))))
    if odd := [t for t in shadows if now[t.data_ptr()] is not t]:
        raise ValueError(
            f"{len(odd)} shadows are updated an odd number of times in {len(launches)} launches: record twice"
        )
    return found


def ride(launches: Sequence[Launch], limit: int = 160, small: int = 60, last: int = 600) -> list[Launch]:
    """The same launches, the updates of layers as riders of products as soon as what they read is there and what they
    write is not read any more; those for which there is no room stay where they are.

    Args:
        limit, small: riders of a large product and of another, so that all programs of a launch fit the GPU at once.
        last: riders of a product behind which there is none that could take the rest of a job.
    """
    known = [[sets(work) for work in works(launch)] for launch in launches]
    waiting: list[
        list
    ] = []  # of each job: the launch behind its window, job, its own launch, the one before, next program
    for own, launch in enumerate(launches):
        for job in jobs(launch) if launch.name == "update" else ():
            mine = sets(of_job(job))
            others = [k for k, some in enumerate(known) if k != own and any(mine.meets(work) for work in some)]
            after = min((k for k in others if k > own), default=len(launches))
            waiting.append([after, job, own, max((k for k in others if k < own), default=-1), 0])
    waiting.sort(key=lambda row: row[0])
    parts: dict[int, list[Part]] = {}
    products = [k for k, launch in enumerate(launches) if launch.name.startswith(("forward", "backward"))]
    hosts = [k for k in products if launches[k].grid[2:] in ((), (1,)) and launches[k].options["num_warps"] == 4]
    for host in hosts:
        room = limit if large(launches[host]) else small
        for row in waiting:
            after, job, _, before, done = row
            if before < host < after:
                least = room if any(host < k < after for k in hosts) else last
                take = min(least, sum(job.programs(TILE)) - done)
                parts.setdefault(host, []).extend([(job, done, done + take)] if take > 0 else [])
                row[4], room = done + max(take, 0), room - take
    found = []
    for k, launch in enumerate(launches):
        if launch.name == "update":
            mine = [(job, done) for _, job, own, _, done in waiting if own == k]
            whole = [job for job, done in mine if not done]
            parts[k] = [(job, done, n) for job, done in mine if 0 < done < (n := sum(job.programs(TILE)))]
            launch = of_jobs(launch, whole)
        if parts.get(k):
            launch = riding(launch, parts[k])
        found += [launch] if launch else []
    return found


def of_jobs(launch: Launch, some: Sequence[Job], **tile: Any) -> Launch | None:
    """An update of fewer layers, or in other tiles; None of none."""
    if not some:
        return None
    options, shapes, first = launch.options | tile, [], 0
    for job in some:
        tiles, blocks = job.programs(options)
        shapes.append((*job.shape, first, tiles))
        first += tiles + blocks
    args = (tuple(job.tensors for job in some), tuple(job.strides for job in some), *launch.args[2:-1], tuple(shapes))
    return launch._replace(grid=(first, *launch.grid[1:]), args=args, options=options)


def in_tiles_of_riders(launches: Sequence[Launch]) -> list[Launch]:
    """The same launches, updates in the tiles of riders: what those have to equal to the bit."""

    def tiled(launch: Launch) -> Launch:
        rows = _whole(launch.arguments["M"])
        return of_jobs(launch, jobs(launch), **TILE, BM=rows, ROWS=rows, num_warps=4, num_stages=2) or launch

    return [tiled(launch) if launch.name == "update" else launch for launch in launches]

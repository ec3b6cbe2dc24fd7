"""One kernel that stays: a barrier of all its programs between products, instead of a launch. Worth its trouble only if
a barrier costs less than a microsecond; the products wait for the L2 cache as they do now.

A barrier's counter only grows, so nothing is reset while others still read it. All programs must run at once: they are
launched as a cooperative grid, which refuses where they do not fit. Polled by an atomic: a volatile load followed by an
acquire whose result is unused loses the acquire in the compiler.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastaae.kernels.step.layers import _as_loaded, _dot

from .launches import Launch

FIELDS = 12
"""Of a stage, int64: backward or not; where x, weight, bias, activation and output begin; columns, depth, pitches of x,
weight and output; tiles. Of a job: where x, grad, weight, momentum and shadow begin; O, I, pitches of grad, x and
shadow; tiles; and the stage that must have ended. Sizes, pitches and beginnings are in units of 16."""


WIDE = {"ROWS": 50, "BM": 64, "BN": 32, "BK": 64, "BO": 64, "BI": 32, "BATCH": 128, "num_warps": 4, "num_stages": 4}
TILES = [WIDE, WIDE | {"ROWS": 25, "BM": 32, "BK": 128, "num_stages": 3}]


@triton.jit
def _wait(count_ptr, target):
    """Until so many programs have arrived."""
    while tl.atomic_add(count_ptr, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()


@triton.jit
def _barrier(count_ptr, target):
    tl.debug_barrier()
    tl.atomic_add(count_ptr, 1, sem="release", scope="gpu")
    _wait(count_ptr, target)


@triton.jit
def _barriers_kernel(count_ptr, out_ptr, N):
    """N barriers and nothing else; the count is zero before."""
    for k in range(N):
        _barrier(count_ptr, (k + 1) * tl.num_programs(0))
    tl.store(out_ptr + tl.program_id(0), N)


@triton.jit
def _empty_kernel(out_ptr, DEPENDENT: tl.constexpr):
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    tl.store(out_ptr + tl.program_id(0), 1)


@triton.jit
def _number(row_ptr, field: tl.constexpr):
    return tl.load(row_ptr + field).to(tl.int32) * 16


@triton.jit
def _persistent_kernel(
    table_ptr,  # int64 [STAGES + JOBS, FIELDS]
    act_ptr, weight_ptr,  # 16-bit: all activations and gradients, all shadows
    float_ptr,  # float32: weights, momenta, biases
    count_ptr,  # int32, zero before
    rate_ptr, momentum, M, STAGES: tl.constexpr, JOBS: tl.constexpr, CHAIN: tl.constexpr, F: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
    BO: tl.constexpr, BI: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    if pid < CHAIN:
        for s in range(STAGES):
            t = table_ptr + s * F
            backward, tiles = tl.load(t), tl.load(t + 11).to(tl.int32)
            for tile in range(pid, tiles, CHAIN):
                if backward == 0:
                    _product(t, act_ptr, weight_ptr, float_ptr, tile, M, False, BM, BN, BK, ROWS)
                else:
                    _product(t, act_ptr, weight_ptr, float_ptr, tile, M, True, BM, BN, BK, ROWS)
            _barrier(count_ptr, (s + 1) * CHAIN)
    else:
        for j in range(JOBS):
            t = table_ptr + (STAGES + j) * F
            tiles, after = tl.load(t + 10).to(tl.int32), tl.load(t + 11).to(tl.int32)
            _wait(count_ptr, after * CHAIN)
            for tile in range(pid - CHAIN, tiles, tl.num_programs(0) - CHAIN):
                _step(t, act_ptr, weight_ptr, float_ptr, rate_ptr, momentum, tile, M, BO, BI, BATCH)


@triton.jit
def _product(
    t, act_ptr, weight_ptr, float_ptr, tile, M, BACKWARD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One body for all products of a direction, so that its instructions stay in their cache."""
    N, K, X_M, W_P, O_M = _number(t, 6), _number(t, 7), _number(t, 8), _number(t, 9), _number(t, 10)
    tiles, row = (N + BN - 1) // BN, tl.arange(0, BM)
    m, n, k = tile // tiles * ROWS + row, tile % tiles * BN + tl.arange(0, BN), tl.arange(0, BK)
    live = (row < ROWS) & (m < M)
    mask, at = live[:, None] & (n < N)[None, :], m[:, None] * O_M + n[None, :]
    x_ptr = act_ptr + tl.load(t + 1) * 16 + m[:, None] * X_M + k[None, :]
    w_ptr, out_ptr = weight_ptr + tl.load(t + 2) * 16, act_ptr + tl.load(t + 5) * 16 + at
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        x = tl.load(x_ptr + start, mask=live[:, None] & (k < K - start)[None, :], other=0)
        if BACKWARD:
            at_w = (start + k)[:, None] * W_P + n[None, :]
            w = tl.load(w_ptr + at_w, mask=(k < K - start)[:, None] & (n < N)[None, :], other=0)
            acc = _dot(x, w, acc)
        else:
            at_w = n[:, None] * W_P + (start + k)[None, :]
            w = tl.load(w_ptr + at_w, mask=(n < N)[:, None] & (k < K - start)[None, :], other=0)
            acc = _dot(x, w.T, acc)
    if BACKWARD:
        acc = tl.where(tl.load(act_ptr + tl.load(t + 4) * 16 + at, mask=mask, other=0) > 0, acc, 0)
    else:
        acc += tl.load(float_ptr + tl.load(t + 3) * 16 + n, mask=n < N, other=0)[None, :]
        acc = tl.where(acc < 0, 0, acc)
    tl.store(out_ptr, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _step(
    t, act_ptr, weight_ptr, float_ptr, rate_ptr, momentum, tile, M,
    BO: tl.constexpr, BI: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    N_O, N_I, G_M, X_M, S_O = _number(t, 5), _number(t, 6), _number(t, 7), _number(t, 8), _number(t, 9)
    tiles, b = (N_I + BI - 1) // BI, tl.arange(0, BATCH)
    o, i = tile // tiles * BO + tl.arange(0, BO), tile % tiles * BI + tl.arange(0, BI)
    at, mask = o[:, None] * N_I + i[None, :], (o < N_O)[:, None] & (i < N_I)[None, :]
    w_ptr, v_ptr = float_ptr + tl.load(t + 2) * 16 + at, float_ptr + tl.load(t + 3) * 16 + at
    w, v = tl.load(w_ptr, mask=mask, other=0), tl.load(v_ptr, mask=mask, other=0)
    at_x, at_g = b[:, None] * X_M + i[None, :], b[:, None] * G_M + o[None, :]
    x = tl.load(act_ptr + tl.load(t) * 16 + at_x, mask=(b < M)[:, None] & (i < N_I)[None, :], other=0)
    g = tl.load(act_ptr + tl.load(t + 1) * 16 + at_g, mask=(b < M)[:, None] & (o < N_O)[None, :], other=0)
    v = momentum * v + _as_loaded(_dot(g.T, x, tl.zeros([BO, BI], tl.float32)))
    w -= tl.load(rate_ptr) * v
    tl.store(v_ptr, v, mask=mask)
    tl.store(w_ptr, w, mask=mask)
    s_ptr = weight_ptr + tl.load(t + 4) * 16 + o[:, None] * S_O + i[None, :]
    tl.store(s_ptr, w.to(s_ptr.dtype.element_ty), mask=mask)


class Skeleton:
    """Products of width x width in turn, every fourth of them backward, and an update behind each third.

    Attributes:
        activations: [stages + 1, rows, width].
        weights, momenta, biases: [4, width, width], the same, and [width].
        shadows: [8, width, width], of which products read the first four and updates write the others.
    """

    def __init__(self, rows: int, width: int, stages: int, like: Tensor, tile: dict[str, int]):
        square, self.rows, self.stages, self.width, self.tile = width * width, rows, stages, width, tile
        self.activations = torch.randn(stages + 1, rows, width).to(like)
        floats = torch.randn(8 * square + width, device="cpu") * width**-0.5
        floats[4 * square : 8 * square] = 0
        self.floats = floats.to(like.device)
        self.weights, self.momenta = (self.floats[k * square : k * square + 4 * square].view(4, width, width)
                                      for k in (0, 4))  # fmt: skip
        self.shadows, self.biases = self.weights.to(like.dtype).repeat(2, 1, 1), self.floats[8 * square :]
        self.rate, self.count = torch.full((1,), 1e-3, device=like.device), torch.zeros(1, device=like.device).int()
        s, n, e = square // 16, width // 16, rows * width // 16
        tiles = -(-rows // tile["ROWS"]) * -(-width // tile["BN"])
        updates = -(-width // tile["BO"]) * -(-width // tile["BI"])
        table = [[k % 4 == 3, k * e, k % 4 * s, 8 * s, (k - 1) * e, k * e + e, *[n] * 5, tiles] for k in range(stages)]
        self.jobs = [k for k in range(2, stages, 3) if k % 4 != 3]  # where x and gradient stay as they are from here on
        rest = [*[n] * 5, updates]
        table += [[k * e - e, k * e, k % 4 * s, (4 + k % 4) * s, (4 + k % 4) * s, *rest, k + 1] for k in self.jobs]
        self.table = torch.tensor(table, dtype=torch.int64, device=like.device)

    def chain(self, most: int) -> int:
        """Programs for products: as many as there are tiles, at most so many."""
        return min(most, int(self.table[0, 11]))

    def launch(self, chain: int, helpers: int, **options: bool) -> Launch:
        """By so many programs for products, and so many for updates; the count must be zero."""
        args = (self.table, self.activations, self.shadows, self.floats, self.count, self.rate, 0.9, self.rows)
        jobs = len(self.jobs) if helpers else 0
        return Launch(
            _persistent_kernel, (chain + helpers,), args,
            {"STAGES": self.stages, "JOBS": jobs, "CHAIN": chain, "F": FIELDS, **self.tile, **options},
        )  # fmt: skip

"""Parzen-window distances on tensor cores: which pairs are near, and sums of exponentials of all of them.

Both kernels form t = |s|² - 2 x·s, float32, from fp16 rows x [M, K] and s [N, K]; |x|² is the caller's to add. Products
of fp16 numbers are exact, their sum is kept in float32 registers, and no t reaches memory. Bytes and FLOPs: cost().

  near_pairs   Bit j of row i says whether t <= limit[i]: an eighth of a byte a pair is written. One product, K <= 128.
  pair_sums    Running minimum of t per query and sums of exp((minimum - t) w) for any number of w; exponentials only
               in tiles that hold a pair within `radius` of its query's minimum. Each slice of SPLIT samples is reduced
               by one program; slices are merged in order, so a result has the same bits every time.

More precision is a matter of columns: with x = xh + xl and s = sh + sl in fp16, rows [xh, xh, xl] and [sh, sl, sh] give
the product to 2^-22.

Tiles: chosen by what the compiler reports (bench/kernels.py), not yet by time. Instructions are those of the loop, in
SASS, per pair; Triton 3.6.0 and 3.7.1.
  near, sm_90   128x128, 4 warps: 5.0 instructions, 1.6 of them on the integer pipe, of half the rate, and two programs
                fit. With compare, select and add 6.7 and 4.0. 128x256, 8 warps: 4.8, but one program. 128x64: 6.3.
                With the threshold as the accumulator's start 4.0, but added in the tensor core's rounding.
  near, sm_100  128x128 spills with 4 warps; with 8 one program fits, of 128x64 with 4 three.
  sums, sm_80   128x128 with 64 columns of K spills with 4 warps; with 8, or 32 columns and 4, it takes 255 registers.
  sums, sm_100  128x128 with 4 warps spills in 3.6.0. A reduction of the row minima along an axis kills 3.7.1; one of
                the flattened minima does not.
Descriptors are for TMA: on sm_80 Triton turns them into 16-bit loads, so there pointers are passed.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

# By major compute capability. A newer one takes the last that is not above it.
NEAR = {
    8: {"BM": 128, "BN": 64, "TMA": False, "num_warps": 4, "num_stages": 3},
    9: {"BM": 128, "BN": 128, "TMA": True, "num_warps": 4, "num_stages": 2},
    10: {"BM": 128, "BN": 64, "TMA": True, "num_warps": 4, "num_stages": 2},
}
SUMS = {
    8: {"BM": 128, "BN": 128, "BK": 32, "TMA": False, "num_warps": 8, "num_stages": 4},
    9: {"BM": 128, "BN": 256, "BK": 64, "TMA": True, "num_warps": 8, "num_stages": 3},
    10: {"BM": 128, "BN": 256, "BK": 64, "TMA": True, "num_warps": 8, "num_stages": 3},
}
NEAR[12], SUMS[12] = NEAR[8], SUMS[8]  # a data-centre tile needs more shared memory than these have
SPLIT = 8192  # samples per program of pair_sums: fixed, so that a result does not depend on the GPU's size
RUN = 4096  # samples per program of near_pairs
COLUMN = torch.arange(32)
BIT = 8 * (COLUMN % 8 // 2) + 2 * (COLUMN // 8) + COLUMN % 2  # of each column within its word: see _words


@triton.jit
def _near_kernel(
    x_ptr,  # fp16 [M, K], or its descriptor with tiles [BM, K]
    s_ptr,  # fp16 [N, K], or its descriptor with tiles [BN, K]
    square_ptr,  # float32 [N to a multiple of BN], |s|² / 2, then inf
    limit_ptr,  # float32 [M to a multiple of BM], limit / 2, then -inf
    words_ptr,  # int32 [M to a multiple of BM, W], W = BN / 32 per tile
    M,
    N,
    W,
    run,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    TMA: tl.constexpr,
):
    row, first = tl.program_id(0) * BM, tl.program_id(1) * run
    offs_m = row + tl.arange(0, BM)
    limit = tl.load(limit_ptr + offs_m)
    x = _tile(x_ptr, row, 0, M, K, BM, K, TMA)
    words_ptr += offs_m.to(tl.int64)[:, None] * W + tl.arange(0, BN // 32)[None, :]
    for column in range(first, min(first + run, N), BN):
        acc = tl.dot(x, _tile(s_ptr, column, 0, N, K, BN, K, TMA).T)
        square = tl.load(square_ptr + column + tl.arange(0, BN))
        # A difference is negative exactly if its terms are ordered so, and x·s = threshold gives +0: near.
        far = _words(acc - (square[None, :] - limit[:, None]), BM, BN // 32)
        tl.store(words_ptr + column // 32, ~far)


@triton.jit
def _words(t, BM: tl.constexpr, W: tl.constexpr):
    """The signs of t, float32 [BM, 32 W], as int32 [BM, W]: that of column 8p + 2q + e of 32 is bit 8q + 2p + e.

    In a tensor core's accumulator the columns that differ in p and e lie in one thread. A funnel shift moves one sign
    into a byte: one instruction a value, where compare, select and add are 2.5. Then four threads join their bytes.
    """
    t = tl.reshape(t.to(tl.uint32, bitcast=True), [BM, W, 2, 2, 4, 2])
    e0, e1 = tl.split(tl.permute(t, [0, 1, 4, 2, 3, 5]))
    even0, odd0 = tl.split(e0)
    even1, odd1 = tl.split(e1)
    p0e0, p2e0 = tl.split(even0)
    p0e1, p2e1 = tl.split(even1)
    p1e0, p3e0 = tl.split(odd0)
    p1e1, p3e1 = tl.split(odd1)
    byte = (p3e1 >> 31) << 1 | (p3e0 >> 31)
    byte = (byte << 1 | (p2e1 >> 31)) << 1 | (p2e0 >> 31)
    byte = (byte << 1 | (p1e1 >> 31)) << 1 | (p1e0 >> 31)
    byte = (byte << 1 | (p0e1 >> 31)) << 1 | (p0e0 >> 31)
    return tl.sum(byte.to(tl.int32, bitcast=True) << (8 * tl.arange(0, 4)), 2)  # distinct bits: a sum is a union


@triton.jit
def _sums_kernel(
    x_ptr,  # fp16 [M, K], or its descriptor with tiles [BM, BK]
    s_ptr,  # fp16 [N, K], or its descriptor with tiles [BN, BK]
    square_ptr,  # float32 [N to a multiple of BN], then inf
    start_ptr,  # float32 [M], a minimum known before
    weight_ptr,  # float32 [S], times log2(e)
    minimum_ptr,  # float32 [P, M]
    sums_ptr,  # float32 [P, S, M], zeros
    M,
    N,
    K,
    S,
    split,
    radius,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TMA: tl.constexpr,
):
    row, part = tl.program_id(0) * BM, tl.program_id(1)
    offs_m = row + tl.arange(0, BM)
    mask_m = offs_m < M
    minimum = tl.load(start_ptr + offs_m, mask=mask_m, other=-1e30)  # nothing is near to a row beyond M
    sums_ptr += part.to(tl.int64) * S * M + offs_m
    for column in range(part * split, min((part + 1) * split, N), BN):
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(0, K, BK):
            s = _tile(s_ptr, column, k, N, K, BN, BK, TMA)
            acc = tl.dot(_tile(x_ptr, row, k, M, K, BM, BK, TMA), s.T, acc)
        square = tl.load(square_ptr + column + tl.arange(0, BN))
        t = square[None, :] - 2 * acc
        lowest = tl.min(t, 1)
        if tl.max((lowest <= minimum + radius).to(tl.int32)) > 0:
            lower = tl.minimum(minimum, lowest)
            at = sums_ptr
            for k in range(S):
                weight = tl.load(weight_ptr + k)
                terms = tl.sum(tl.exp2((lower[:, None] - t) * weight), 1)
                before = tl.load(at, mask=mask_m, other=0) * tl.exp2((lower - minimum) * weight)
                tl.store(at, before + terms, mask=mask_m)
                at += M
            tl.debug_barrier()  # the next tile's sums are read by other threads than have written them
            minimum = lower
    tl.store(minimum_ptr + part.to(tl.int64) * M + offs_m, minimum, mask=mask_m)


@triton.jit
def _tile(t, row, column, ROWS, COLUMNS, R: tl.constexpr, C: tl.constexpr, TMA: tl.constexpr):
    """[R, C] of [ROWS, COLUMNS] from row, column on; zeros beyond."""
    if TMA:
        return t.load([row, column])
    else:
        i, j = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
        t += tl.cast(row, tl.int64) * COLUMNS + column
        return tl.load(t + i * COLUMNS + j, mask=(i < ROWS - row) & (j < COLUMNS - column), other=0)


def near_pairs(
    x: Tensor, s: Tensor, square: Tensor, limit: Tensor, most: float = math.inf
) -> tuple[Tensor, Tensor] | None:
    """Pairs (i, j), int64 [L] each, i ascending, j ascending within i, with square[j] - 2 x[i]·s[j] <= limit[i].

    None where they lie in more than `most` words of 32 samples. Synchronises with the host: L is data.

    Compared is x·s >= square / 2 - limit / 2, whose right side is rounded by at most 2^-24 of itself: beside the
    product's error, limit acts as if moved by at most 2^-24 |square - limit|.

    Args:
        x, s: fp16 [M, K], [N, K], finite, K a power of two, 16 to 128.
        square, limit: float32 [N], [M], not NaN; square below 1e38.
    """
    (m, k), n, config = x.shape, len(s), _pinned(NEAR, x)
    bm, bn = config["BM"], config["BN"]
    grid = (triton.cdiv(m, bm), triton.cdiv(n, RUN))
    words = x.new_empty(grid[0] * bm, triton.cdiv(n, bn) * bn // 32, dtype=torch.int32)
    square = pad(square / 2, (0, -n % bn), value=math.inf)
    limit = pad(limit.clamp(max=3e38) / 2, (0, -m % bm), value=-math.inf)  # finite: inf - inf is no number
    tiles = (_source(x, bm, k, config), _source(s, bn, k, config))
    _near_kernel[grid](*tiles, square, limit, words, m, n, words.shape[1], RUN, k, **config)
    rows, at = words.nonzero().unbind(1)
    if len(rows) > most:
        return None
    bits = words[rows, at][:, None] >> BIT.to(x.device, torch.int32) & 1
    which, column = bits.nonzero().unbind(1)
    return rows[which], at[which] * 32 + column


def pair_sums(
    x: Tensor, s: Tensor, square: Tensor, start: Tensor, weights: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Minimum [M] over j of t = square[j] - 2 x[i]·s[j], and of `start`; sums over j of exp((minimum - t) w), [S, M].

    Terms below exp(-radius w) times the largest may be left out. No synchronisation.

    Args:
        x, s: fp16 [M, K], [N, K], finite, K a multiple of 8 (on sm_80 slow unless one of 16).
        square, start: float32 [N], [M]; start may be inf.
        weights: float64 [S], positive in float32.

    Returns:
        float64.
    """
    (m, k), n, parts, config = x.shape, len(s), triton.cdiv(len(s), SPLIT), _pinned(SUMS, x)
    minimum = x.new_empty(parts, m, dtype=torch.float32)
    sums = x.new_zeros(parts, len(weights), m, dtype=torch.float32)
    square = pad(square, (0, -n % config["BN"]), value=math.inf)
    scaled = (weights * math.log2(math.e)).float()
    tiles = (_source(x, config["BM"], config["BK"], config), _source(s, config["BN"], config["BK"], config))
    grid = (triton.cdiv(m, config["BM"]), parts)
    _sums_kernel[grid](
        *tiles, square, start, scaled, minimum, sums, m, n, k, len(weights), SPLIT, float(radius), **config
    )
    lowest = minimum.amin(0)
    drop = (lowest - minimum)[:, None].double() * weights[:, None]
    return lowest.double(), (sums.double() * drop.exp()).sum(0)


def cost(m: int, n: int, k: int, s: int = 0) -> tuple[int, int]:
    """Bytes that must move and FLOPs of near_pairs (s = 0) or of pair_sums for s bandwidths."""
    flops = 2 * m * n * k + 3 * m * n
    if s == 0:
        return 2 * (m + n) * k + 4 * (m + n) + m * n // 8, flops
    return 2 * (m + n) * k + 4 * (m + n) + 4 * m * (1 + s) * -(-n // SPLIT), flops


def _pinned(table: dict[int, dict], t: Tensor) -> dict:
    """The configuration for the device of t; on the CPU (Triton's interpreter) that of sm_90."""
    major = torch.cuda.get_device_capability(t.device)[0] if t.is_cuda else 9
    return table[max(key for key in table if key <= major)]


def _source(t: Tensor, rows: int, columns: int, config: dict) -> Tensor | TensorDescriptor:
    t = t.contiguous()
    return TensorDescriptor.from_tensor(t, [rows, columns]) if config["TMA"] else t

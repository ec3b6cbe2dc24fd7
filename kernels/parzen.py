"""Parzen-window distances on tensor cores: which pairs are near, and sums of exponentials of all of them.

Both kernels form t = |s|² - 2 x·s, float32, from fp16 rows x [M, K] and s [N, K]; |x|² is the caller's to add. Products
of fp16 numbers are exact, their sum is kept in float32 registers, and no t reaches memory. Bytes and FLOPs: cost().

  near_pairs   Bit j of row i says whether t <= limit[i]: one bit per pair is written. One product, K <= 128.
  pair_sums    Running minimum of t per query and sums of exp((minimum - t) w) for any number of w; exponentials only in
               tiles that hold a pair within `radius` of its query's minimum. Each slice of SPLIT samples is reduced by
               one program; slices are merged in order, so a result has the same bits every time.

More precision is a matter of columns: with x = xh + xl and s = sh + sl in fp16, rows [xh, xh, xl] and [sh, sl, sh] give
the product to 2^-22. Tiles: the smallest that keep all registers on the chip; see bench/kernels.py for the report.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

NEAR = {"BM": 128, "BN": 128, "num_warps": 4, "num_stages": 3}
SUMS = {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3}
SPLIT = 8192  # samples per program: fixed, so that a result does not depend on the GPU's size
ALIGN = 8  # fp16 values in the 16 bytes to which rows are aligned


@triton.jit
def _near_kernel(
    x_desc,  # fp16 [M, K], tiles [BM, K]
    s_desc,  # fp16 [N, K], tiles [BN, K]
    square_ptr,  # float32 [N]
    limit_ptr,  # float32 [M]
    words_ptr,  # int32 [M, W]
    M,
    N,
    W,
    split,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    row, first = tl.program_id(0) * BM, tl.program_id(1) * split
    offs_m = row + tl.arange(0, BM)
    bit = tl.full([BN], 1, tl.int32) << (tl.arange(0, BN) % 32)
    limit = tl.load(limit_ptr + offs_m, mask=offs_m < M, other=float("-inf"))
    x = x_desc.load([row, 0])
    words_ptr += offs_m.to(tl.int64)[:, None] * W + tl.arange(0, BN // 32)[None, :]
    for column in range(first, min(first + split, N), BN):
        s = s_desc.load([column, 0])
        offs_n = column + tl.arange(0, BN)
        square = tl.load(square_ptr + offs_n, mask=offs_n < N, other=float("inf"))
        t = square[None, :] - 2 * tl.dot(x, s.T)
        bits = tl.where(t <= limit[:, None], bit[None, :], 0)
        words = tl.sum(tl.reshape(bits, [BM, BN // 32, 32]), 2)  # distinct bits: their sum is their union
        at = column // 32 + tl.arange(0, BN // 32)[None, :]
        tl.store(words_ptr + column // 32, words, mask=(offs_m < M)[:, None] & (at < W))


@triton.jit
def _sums_kernel(
    x_desc,  # fp16 [M, K], tiles [BM, BK]
    s_desc,  # fp16 [N, K], tiles [BN, BK]
    square_ptr,  # float32 [N]
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
):
    row, part = tl.program_id(0) * BM, tl.program_id(1)
    offs_m = row + tl.arange(0, BM)
    mask_m = offs_m < M
    minimum = tl.load(start_ptr + offs_m, mask=mask_m, other=0)
    sums_ptr += part.to(tl.int64) * S * M + offs_m
    for column in range(part * split, min((part + 1) * split, N), BN):
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(0, K, BK):
            acc = tl.dot(x_desc.load([row, k]), s_desc.load([column, k]).T, acc)
        offs_n = column + tl.arange(0, BN)
        square = tl.load(square_ptr + offs_n, mask=offs_n < N, other=float("inf"))
        t = square[None, :] - 2 * acc
        lowest = tl.min(t, 1)
        if tl.max(tl.where(mask_m & (lowest <= minimum + radius), 1, 0), 0) > 0:
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


def near_pairs(
    x: Tensor, s: Tensor, square: Tensor, limit: Tensor, most: float = math.inf
) -> tuple[Tensor, Tensor] | None:
    """Pairs (i, j), int64 [L] each, i ascending, j ascending within i, with square[j] - 2 x[i]·s[j] <= limit[i].

    None where they lie in more than `most` words of 32 samples. Synchronises with the host: L is data.

    Args:
        x, s: fp16 [M, K], [N, K]; K a power of two, 16 to 128.
        square, limit: float32 [N], [M].
    """
    (m, k), n = x.shape, len(s)
    words = x.new_empty(m, -(-n // 32), dtype=torch.int32)
    split = _split(n, NEAR["BN"])
    grid = (triton.cdiv(m, NEAR["BM"]), triton.cdiv(n, split))
    tiles = (_tiles(x, NEAR["BM"], k), _tiles(s, NEAR["BN"], k))
    _near_kernel[grid](*tiles, square, limit, words, m, n, words.shape[1], split, **NEAR)
    rows, at = words.nonzero().unbind(1)
    if len(rows) > most:
        return None
    bits = words[rows, at][:, None] >> torch.arange(32, device=x.device, dtype=torch.int32) & 1
    which, bit = bits.nonzero().unbind(1)
    return rows[which], at[which] * 32 + bit


def pair_sums(
    x: Tensor, s: Tensor, square: Tensor, start: Tensor, weights: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Minimum [M] over j of t = square[j] - 2 x[i]·s[j], and of `start`; sums over j of exp((minimum - t) w), [S, M].

    Terms below exp(-radius w) times the largest may be left out. No synchronisation.

    Args:
        x, s: fp16 [M, K], [N, K], K a multiple of 8.
        square, start: float32 [N], [M].
        weights: float64 [S].

    Returns:
        float64.
    """
    (m, k), n, parts = x.shape, len(s), triton.cdiv(len(s), SPLIT)
    minimum = x.new_empty(parts, m, dtype=torch.float32)
    sums = x.new_zeros(parts, len(weights), m, dtype=torch.float32)
    scaled = (weights * math.log2(math.e)).float()
    tiles = (_tiles(x, SUMS["BM"], SUMS["BK"]), _tiles(s, SUMS["BN"], SUMS["BK"]))
    grid = (triton.cdiv(m, SUMS["BM"]), parts)
    _sums_kernel[grid](
        *tiles, square, start, scaled, minimum, sums, m, n, k, len(weights), SPLIT, float(radius), **SUMS
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


def _tiles(t: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(t, [rows, columns])


def _split(n: int, tile: int) -> int:
    """Samples per program of the near kernel: a few tiles, so that a program's queries are loaded once for them."""
    return tile * max(1, min(SPLIT // tile, triton.cdiv(n, tile)))

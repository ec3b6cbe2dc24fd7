"""Parzen-window distances on a GPU: which pairs are near, and sums of exponentials of all of them.

Three kernels form t = |s|² - 2 x·s of rows x [M, K] and s [N, K] on tensor cores; |x|² is the caller's to add. Products
of fp16 numbers are exact, their sum is kept in float32 registers; those of bytes are exact in int32. No t reaches
memory. Bytes and FLOPs: cost() of bench/kernels.py.

  near_pairs   Bit j of row i says whether t <= limit[i]: an eighth of a byte a pair. Of fp16, K <= 128, or of int8.
  pair_sums    Running minimum of t per query and sums of exp((minimum - t) w) for any number of w; exponentials only
               in tiles that hold a pair within `radius` of its query's minimum. Each slice of SPLIT samples is reduced
               by one program; slices are merged in order, so a result has the same bits every time.

What they need, in one pass over the samples each: project and quantize; what follows them: distances and count.

More precision is a matter of columns: of x = xh + xl, s = sh + sl in fp16, [xh, xh, xl] · [sh, sl, sh] is x·s to 2^-22.

Tiles are chosen by what the compiler reports, of wide on sm_90 by time: bench/LOG.md, "Tiles of the pair kernels".
In the sums a reduction of the row minima along an axis kills Triton 3.7.1; one of the flattened minima does not.
Descriptors are for TMA: on sm_80 Triton turns them into 16-bit loads, so there pointers are passed.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import capability
from .bounds import U32

# By major compute capability. A newer one takes the last that is not above it.
NEAR = {
    8: {"BM": 128, "BN": 64, "TMA": False, "num_warps": 4, "num_stages": 3},
    9: {"BM": 128, "BN": 128, "TMA": True, "num_warps": 4, "num_stages": 2},
    10: {"BM": 128, "BN": 64, "TMA": True, "num_warps": 4, "num_stages": 2},
}
WIDE = {
    8: {"BM": 128, "BN": 128, "BK": 64, "TMA": False, "num_warps": 8, "num_stages": 4},
    9: {"BM": 128, "BN": 256, "BK": 128, "TMA": True, "num_warps": 8, "num_stages": 4},
}
PROJECT = {8: {"BM": 64, "BK": 32, "num_warps": 4, "num_stages": 2}}
SUMS = {
    8: {"BM": 128, "BN": 128, "BK": 32, "TMA": False, "num_warps": 8, "num_stages": 4},
    9: {"BM": 128, "BN": 256, "BK": 64, "TMA": True, "num_warps": 8, "num_stages": 3},
}
WIDE[10], NEAR[12], SUMS[12] = WIDE[8], NEAR[8], SUMS[8]  # 12 has less shared memory than tiles of 9, 10 need
SPLIT = 8192  # samples per program of pair_sums: fixed, so that a result does not depend on the GPU's size
RUN = 4096  # samples per program of near_pairs
PAIRS = 8  # per program of distances, that many rows of 128 columns at a time
RAISED = 2.0**12  # directions are scaled by it, to be far from fp16's smallest
BOUND = 2**28  # of int8's halved squares and limits: beyond any x·s of 8,192 columns
COUNTS = ("M", "N", "L")  # differ from block to block, and are no reason to compile anew


@triton.jit(do_not_specialize=COUNTS)
def _near_kernel(
    x_ptr, s_ptr,  # fp16 [M, K], [N, K], or their descriptors with tiles [BM, K], [BN, K]
    square_ptr,  # float32 [N to a multiple of BN], |s|² / 2, then inf
    limit_ptr,  # float32 [M to a multiple of BM], limit / 2, then -inf
    words_ptr,  # int32 [M to a multiple of BM, W], W = BN / 32 per tile
    M, N, K: tl.constexpr, W, run, BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
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


@triton.jit(do_not_specialize=COUNTS)
def _wide_kernel(
    x_ptr, s_ptr,  # int8 [M, K], [N, K], or their descriptors with tiles [BM, BK], [BN, BK]
    square_ptr,  # int32 [N to a multiple of BN], |s|² / 2 rounded down, then 4 BOUND
    limit_ptr,  # int32 [M to a multiple of BM], limit / 2 rounded up, then -BOUND
    words_ptr,  # int32 [M to a multiple of BM, W], W = BN / 32 per tile
    M, N, K, W, run, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    row, first = tl.program_id(0) * BM, tl.program_id(1) * run
    offs_m = row + tl.arange(0, BM)
    limit = tl.load(limit_ptr + offs_m)
    words_ptr += offs_m.to(tl.int64)[:, None] * W + tl.arange(0, BN // 32)[None, :]
    # Flattened, so that the next tile's loads begin before the last one's signs are written.
    for column in tl.range(first, min(first + run, N), BN, flatten=True):
        acc = tl.zeros([BM, BN], tl.int32)
        for k in range(0, K, BK):
            s = _tile(s_ptr, column, k, N, K, BN, BK, TMA)
            acc = tl.dot(_tile(x_ptr, row, k, M, K, BM, BK, TMA), s.T, acc, out_dtype=tl.int32)
        square = tl.load(square_ptr + column + tl.arange(0, BN))
        far = _words(acc - (square[None, :] - limit[:, None]), BM, BN // 32)
        tl.store(words_ptr + column // 32, ~far)


@triton.jit
def _words(t, BM: tl.constexpr, W: tl.constexpr):
    """The signs of t [BM, 32 W] as int32 [BM, W]: that of column 8p + 2q + e of 32 is bit 8q + 2p + e.

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


@triton.jit(do_not_specialize=COUNTS)
def _sums_kernel(
    x_ptr, s_ptr,  # fp16 [M, K], [N, K], or their descriptors with tiles [BM, BK], [BN, BK]
    square_ptr,  # float32 [N to a multiple of BN], then inf
    start_ptr,  # float32 [M], a minimum known before
    weight_ptr,  # float32 [S], times log2(e)
    minimum_ptr,  # float32 [P, M]
    sums_ptr,  # float32 [P, S, M], zeros
    M, N, K, S, split, radius, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
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


@triton.jit(do_not_specialize=COUNTS)
def _project_kernel(
    s_ptr,  # [N, D], floats or bytes
    center_ptr,  # float32 [D to a multiple of BK]
    high_ptr,  # fp16 [D to a multiple of BK, K], directions, columns beyond SIZE 0, times RAISED, and
    low_ptr,  # what their rounding loses
    values_ptr,  # fp16 [N, K]
    square_ptr, error_ptr,  # float32 [N]
    N, D,
    scale,  # of samples in fp16
    unit,  # from what the products are in to what values are in
    ratio,  # from samples' scale to that of values
    each,  # error of a projection beside its length
    lost_too,  # and beside what fp16 loses of the samples
    slack,  # error of the remainder's square beside the length's
    SIZE: tl.constexpr, REST: tl.constexpr,  # REST: whether column SIZE is the length of what the projection leaves
    K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BM
    mask_m, offs_k = row + tl.arange(0, BM) < N, tl.arange(0, BK)
    s_ptr += tl.cast(row, tl.int64) * D + tl.arange(0, BM)[:, None] * D
    columns = tl.arange(0, K)[None, :]
    acc = tl.zeros([BM, K], tl.float32)
    length2, lost2 = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    for k in range(0, D, BK):
        at = k + offs_k[None, :]
        s = tl.load(s_ptr + at, mask=mask_m[:, None] & (at < D), other=0)
        t = _centered(s, tl.load(center_ptr + at)) * scale
        high = t.to(tl.float16)
        rest = t - high.to(tl.float32)
        low = rest.to(tl.float16)
        lost = rest - low.to(tl.float32)
        length2 += tl.sum(t * t, 1)
        lost2 += tl.sum(lost * lost, 1)
        at = (k + offs_k)[:, None] * K + columns
        p = tl.load(high_ptr + at)
        part = tl.dot(high, tl.load(low_ptr + at))  # the small products first; a new sum for each BK of coordinates
        part = tl.dot(low, p, part)
        acc += tl.dot(high, p, part) * unit
    length = tl.sqrt(length2) * ratio
    error = each * length + lost_too * tl.sqrt(lost2) * ratio + 1e-6
    if REST:
        rest = tl.sqrt(tl.maximum(length * length - tl.sum(acc * acc, 1), 0))
        wrong = slack * length * length + 2 * length * error + error * error  # of rest²
        error += tl.minimum(tl.sqrt(wrong), wrong / tl.maximum(rest, 1e-20))
        acc = tl.where(columns == SIZE, rest[:, None], acc)
    values = acc.to(tl.float16)
    kept = values.to(tl.float32)
    error += tl.sqrt(tl.sum((acc - kept) * (acc - kept), 1))
    rows = row + tl.arange(0, BM)
    tl.store(values_ptr + rows.to(tl.int64)[:, None] * K + columns, values, mask=mask_m[:, None])
    tl.store(square_ptr + rows, tl.sum(kept * kept, 1), mask=mask_m)
    tl.store(error_ptr + rows, 1.01 * error, mask=mask_m)


@triton.jit(do_not_specialize=COUNTS)
def _quantize_kernel(
    v_ptr,  # [N, D], floats or bytes
    codes_ptr,  # int8 [N, K]
    square_ptr,  # int32 [N]
    lost_ptr,  # float32 [N], |v - offset - step codes|
    N, D, K, offset, step, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    at, mask_m = rows.to(tl.int64)[:, None], rows[:, None] < N
    square, lost2 = tl.zeros([BM, BK], tl.int32), tl.zeros([BM, BK], tl.float32)
    for k in range(0, K, BK):
        column = k + tl.arange(0, BK)[None, :]
        mask = mask_m & (column < D)
        t = tl.where(mask, _centered(tl.load(v_ptr + at * D + column, mask=mask, other=0), offset), 0)
        code = tl.minimum(tl.maximum(tl.floor(t / step + 0.5), -128), 127)
        lost = t - code * step
        lost2 += lost * lost
        code = code.to(tl.int32)
        square += code * code
        tl.store(codes_ptr + at * K + column, code.to(tl.int8), mask=mask_m & (column < K))
    tl.store(square_ptr + rows, tl.sum(square, 1), mask=rows < N)
    tl.store(lost_ptr + rows, tl.sqrt(tl.sum(lost2, 1)), mask=rows < N)


@triton.jit(do_not_specialize=COUNTS)
def _distances_kernel(
    x_ptr, s_ptr,  # [M, D], [N, D], floats or bytes
    rows_ptr, columns_ptr,  # int64 [L]
    d2_ptr,  # float64 [L]
    L, D, BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64) * BL + tl.arange(0, BL)
    mask = pair < L
    x_ptr += tl.load(rows_ptr + pair, mask=mask, other=0)[:, None] * D
    s_ptr += tl.load(columns_ptr + pair, mask=mask, other=0)[:, None] * D
    acc = tl.zeros([BL, BD], tl.float64)
    for k in range(0, D, BD):
        column = k + tl.arange(0, BD)[None, :]
        both = mask[:, None] & (column < D)
        x = _double(tl.load(x_ptr + column, mask=both, other=0))
        difference = x - _double(tl.load(s_ptr + column, mask=both, other=0))
        acc += difference * difference
    tl.store(d2_ptr + pair, tl.sum(acc, 1), mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def _count_kernel(
    d2_ptr,  # float64 [L]
    ends_ptr,  # int64 [M + 1], the pairs of query i are ends[i] to ends[i + 1]
    weight_ptr,  # float64 [S]
    live_ptr,  # int32 [S], whether terms are wanted
    minimum_ptr,  # float64 [M], updated
    sums_ptr,  # float64 [S, M], updated
    M, S, BL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    first, last = tl.load(ends_ptr + row), tl.load(ends_ptr + row + 1)
    before = tl.load(minimum_ptr + row)
    lowest = before
    for at in range(first, last, BL):
        pair = at + tl.arange(0, BL)
        lowest = tl.minimum(lowest, tl.min(tl.load(d2_ptr + pair, mask=pair < last, other=float("inf")), 0))
    for k in range(S):
        weight, wanted = tl.load(weight_ptr + k), tl.load(live_ptr + k)
        sum_ptr = sums_ptr + tl.cast(k, tl.int64) * M + row
        total = tl.load(sum_ptr) * tl.exp((lowest - before) * weight)
        for at in range(first, tl.where(wanted > 0, last, first), BL):
            pair = at + tl.arange(0, BL)
            d2 = tl.load(d2_ptr + pair, mask=pair < last, other=float("inf"))
            total += tl.sum(tl.exp((lowest - d2) * weight), 0)
        tl.store(sum_ptr, total)
    tl.store(minimum_ptr + row, lowest)


@triton.jit
def _double(v):
    """Float64 values, those of bytes k / 255."""
    if v.dtype == tl.uint8:
        return v.to(tl.float64) / 255
    elif v.dtype == tl.float64:
        return v
    else:
        return v.to(tl.float32).to(tl.float64)


@triton.jit
def _centered(v, center):
    """Float32 v - center, rounded once."""
    if v.dtype == tl.uint8 or v.dtype == tl.float64:
        return (_double(v) - tl.cast(center, tl.float64)).to(tl.float32)
    else:
        return v.to(tl.float32) - center


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

    Compared is x·s >= square / 2 - limit / 2. Of fp16, the right side is rounded by at most 2^-24 of itself: beside the
    product's error, limit acts as if moved by at most 2^-24 |square - limit|. Of int8, all is exact: the pairs with
    floor(square / 2) - ceil(limit / 2) <= x·s.

    Args:
        x, s: [M, K], [N, K]: fp16, finite, K a power of two, 16 to 128; or int8, K a multiple of 16 up to 8,192.
        square: [N], not NaN: float32 below 1e38; or int32, of s, not negative.
        limit: [M], not NaN: float32; or float64, and beyond 2^28 nothing is far, or near.
    """
    kernel: Any
    if x.dtype == torch.int8:
        kernel, config, nowhere, never = _wide_kernel, _pinned(WIDE, x), 4 * BOUND - 1, -BOUND
        square, limit = square // 2, (limit / 2).ceil().clamp(-BOUND, BOUND).int()
    else:
        kernel, config, nowhere, never = _near_kernel, _pinned(NEAR, x), math.inf, -math.inf
        square, limit = square / 2, limit.clamp(max=3e38) / 2  # inf - inf is no number
    (m, k), n, bm, bn, columns = x.shape, len(s), config["BM"], config["BN"], config.get("BK", x.shape[1])
    square, limit = pad(square, (0, -n % bn), value=nowhere), pad(limit, (0, -m % bm), value=never)
    grid = (-(-m // bm), -(-n // RUN))
    words = torch.empty(grid[0] * bm, -(-n // bn) * bn // 32, dtype=torch.int32, device=x.device)
    tiles = (_source(x, bm, columns, config), _source(s, bn, columns, config))
    kernel[grid](*tiles, square, limit, words, m, n, k, words.shape[1], RUN, **config)
    rows, at = words.nonzero().unbind(1)
    if len(rows) > most:
        return None
    column = torch.arange(32, dtype=torch.int32, device=words.device)
    bit = 8 * (column % 8 // 2) + 2 * (column // 8) + column % 2  # of each column within its word: see _words
    which, column = (words[rows, at][:, None] >> bit & 1).nonzero().unbind(1)
    return rows[which], at[which] * 32 + column


def project(
    samples: Tensor, center: Tensor, directions: tuple[Tensor, Tensor], size: int, stretch: float, scales: tuple
) -> tuple[Tensor, Tensor, Tensor]:
    """fp16 values [N, K], their squared norms and a bound of their errors, float64 [N]: see bounds.py's Level.

    Sums of tensor cores are bounded as by sum_error(); those of BK coordinates are added in float32. The error is not
    finite where a sample reaches beyond fp16. No synchronisation.

    Args:
        samples: [N, D], floats or bytes.
        center: [D], float64 that float32 can hold.
        directions: fp16 [D, K], their high and low parts, times RAISED; columns beyond `size` are 0.
        size: how many directions there are; fewer than D leave a remainder, whose length is the next column.
        stretch: how far they are from orthonormal.
        scales: powers of two, of samples and of values.
    """
    (n, d), k, config = samples.shape, directions[0].shape[1], _pinned(PROJECT, samples)
    bk, (scale, scale_out) = config["BK"], scales
    values = samples.new_empty(n, k, dtype=torch.float16)
    square, error = (samples.new_empty(n, dtype=torch.float32) for _ in range(2))
    parts = (pad(part, (0, 0, 0, -d % bk)).contiguous() for part in directions)
    units = (scale, scale_out / scale / RAISED, scale_out / scale)
    summed = math.sqrt(size) * (4 * (bk / 4 + 3) + d / bk + 2) + 8
    each = 1.02 * (U32 * summed + math.sqrt(size) * 2**-22)  # the last: low parts' product is left out
    errors = (each, 1.02 * (1 + stretch), stretch + 1.02 * U32 * (bk + d / bk + k + 32))
    given = (samples.contiguous(), pad(center.float(), (0, -d % bk)), *parts)
    sizes = (size, size < d, k)
    _project_kernel[(-(-n // config["BM"]),)](*given, values, square, error, n, d, *units, *errors, *sizes, **config)
    return values, square.double() / scale_out**2, error.double() / scale_out


def quantize(v: Tensor, offset: float, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """int8 codes [N, K], K = D rounded up to 16, their squared norms, int32 [N], and a bound of how far offset +
    step codes lie from v [N, D], float64 [N]. No synchronisation."""
    n, d = v.shape
    k = d + -d % 16
    codes, square = v.new_empty(n, k, dtype=torch.int8), v.new_empty(n, dtype=torch.int32)
    lost = v.new_empty(n, dtype=torch.float32)
    _quantize_kernel[(-(-n // 32),)](v.contiguous(), codes, square, lost, n, d, k, offset, step, 32, 128)
    return codes, square, 1.001 * lost.double() + 1024 * U32 * math.sqrt(d) * step  # |v - offset| <= lost + 128 step


def distances(x: Tensor, s: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """|x[rows] - s[columns]|², float64 [L], of floats or bytes [M, D], [N, D], by differences. No synchronisation."""
    x, s, n = x.contiguous(), s.contiguous(), len(rows)
    d2 = torch.empty(n, dtype=torch.float64, device=rows.device)
    _distances_kernel[(-(-n // PAIRS),)](x, s, rows, columns, d2, n, x.shape[1], PAIRS, 128)
    return d2


def count(rows: Tensor, d2: Tensor, minimum: Tensor, sums: Tensor, weights: Tensor, live: list[bool]) -> None:
    """Add to sums [S, M] of exp((minimum - d²) w) the terms of d² [L] of queries `rows`, ascending, whose minima [M]
    they may lower; both are updated. Where not live, terms are left out. One program adds a query's terms, in the order
    of its pairs. No synchronisation but for `live`."""
    (s, m), wanted = sums.shape, torch.tensor(live, dtype=torch.int32, device=rows.device)
    ends = torch.searchsorted(rows, torch.arange(m + 1, dtype=torch.int64, device=rows.device))
    _count_kernel[(m,)](d2, ends, weights, wanted, minimum, sums, m, s, 128, num_warps=1)


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
    (m, k), n, parts, config = x.shape, len(s), -(-len(s) // SPLIT), _pinned(SUMS, x)
    minimum = x.new_empty(parts, m, dtype=torch.float32)
    sums = x.new_zeros(parts, len(weights), m, dtype=torch.float32)
    square = pad(square, (0, -n % config["BN"]), value=math.inf)
    scaled = (weights * math.log2(math.e)).float()
    tiles = (_source(x, config["BM"], config["BK"], config), _source(s, config["BN"], config["BK"], config))
    given, grid = (square, start, scaled, minimum, sums), (-(-m // config["BM"]), parts)
    _sums_kernel[grid](*tiles, *given, m, n, k, len(weights), SPLIT, float(radius), **config)
    lowest = minimum.amin(0)
    drop = (lowest - minimum)[:, None].double() * weights[:, None]
    return lowest.double(), (sums.double() * drop.exp()).sum(0)


def _pinned(table: dict[int, dict], t: Tensor) -> dict:
    """The configuration for the device of t."""
    return table[max(key for key in table if key <= capability(t))]


def _source(t: Tensor, rows: int, columns: int, config: dict) -> Tensor | TensorDescriptor:
    t = t.contiguous()
    return TensorDescriptor.from_tensor(t, [rows, columns]) if config["TMA"] else t

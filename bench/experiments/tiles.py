"""Products in tiles of 25 rows: 100 rows are then 128 programs of 114 KB where tiles of 64 make 64 of 192 KB, each of
which waits for twice as much from the L2 cache. A tile still multiplies 32 rows; what is behind the 25 is neither
loaded nor stored."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from fastaae.kernels.step.layers import _as_loaded, _dot, _leave, reconstructed

from .launches import Launch, of_kernel

SHAPE = {"BM": 32, "ROWS": 25, "BN": 32, "BK": 128, "num_warps": 4, "num_stages": 3}
BACK = SHAPE | {"BK": 64, "num_stages": 6}  # with BK = 128: 96 registers, and 8 bytes spilled by Triton 3.9


@triton.jit
def _rows(tile, M, ROWS: tl.constexpr, BM: tl.constexpr):
    """Those of a tile, M where there are none."""
    row = tl.arange(0, BM)
    return tl.where(row < ROWS, tile * ROWS + row, M)


@triton.jit
def _forward_rows_kernel(
    x_ptr, w_ptr, b_ptr, out_ptr,  # as of the step's own kernel, of one network
    then, strides, M, X_M: tl.constexpr, W_N: tl.constexpr, OUT_M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    RELU: tl.constexpr, LOSS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles: tl.constexpr = (N + BN - 1) // BN
    m, n, k = _rows(pid // tiles, M, ROWS, BM), pid % tiles * BN + tl.arange(0, BN), tl.arange(0, BK)
    x_ptr += r * strides[0] + (m[:, None] * X_M + k[None, :])
    w_ptr += r * strides[1] + (n[:, None] * W_N + k[None, :])
    bias = tl.load(b_ptr + r * N + n, mask=n < N, other=0)
    acc, mask = tl.zeros([BM, BN], tl.float32), (m < M)[:, None] & (n < N)[None, :]
    for start in range(0, K, BK):
        x = tl.load(x_ptr + start, mask=(m < M)[:, None] & (k < K - start)[None, :], other=0)
        w = tl.load(w_ptr + start, mask=(n < N)[:, None] & (k < K - start)[None, :], other=0)
        acc = _dot(x.to(w.dtype), w.T, acc)
    acc += bias[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0, acc)
    if LOSS is not None:
        target = tl.load(then[0] + (r * M + m[:, None]) * N + n[None, :], mask=mask, other=0).to(tl.float32)
        term, acc = reconstructed(acc, target, M, then[3], LOSS[0], LOSS[1])
        term = tl.sum(tl.where(mask, term, 0), 1) / M
        tl.store(then[1] + r * then[2] + pid % tiles * M + m, term, mask=m < M)
    y = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + r * strides[2] + (m[:, None] * OUT_M + n[None, :]), y, mask=mask)
    if LOSS is None and then is not None:
        _leave(y, then, r, pid % tiles, tiles, m, n, M, N)


@triton.jit
def _backward_rows_kernel(
    g_ptr, w_ptr, a_ptr, out_ptr,  # as of the step's own kernel, of one network
    then, strides, M, G_M: tl.constexpr, W_K: tl.constexpr, A_M: tl.constexpr, OUT_M: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles: tl.constexpr = (N + BN - 1) // BN
    m, n, k = _rows(pid // tiles, M, ROWS, BM), pid % tiles * BN + tl.arange(0, BN), tl.arange(0, BK)
    mask = (m < M)[:, None] & (n < N)[None, :]
    g_ptr += r * strides[0] + (m[:, None] * G_M + k[None, :])
    w_ptr += r * strides[1] + (k[:, None] * W_K + n[None, :])
    a = tl.load(a_ptr + r * strides[2] + (m[:, None] * A_M + n[None, :]), mask=mask, other=0)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        g = tl.load(g_ptr + start, mask=(m < M)[:, None] & (k < K - start)[None, :], other=0)
        w = tl.load(w_ptr + start * W_K, mask=(k < K - start)[:, None] & (n < N)[None, :], other=0)
        acc = _dot(g.to(w.dtype), w, acc)
    y = tl.where(a > 0, _as_loaded(acc), 0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + r * strides[3] + (m[:, None] * OUT_M + n[None, :]), y, mask=mask)
    if then is not None:
        _leave(y, then, r, pid % tiles, tiles, m, n, M, N)


def in_tiles_of_25(launches: Sequence[Launch]) -> list[Launch]:
    """The same launches, the large products of single networks by the kernels here. Columns keep their tiles, and so
    what is left as partial sums."""
    return [_of_rows(launch) if large(launch) else launch for launch in launches]


def large(launch: Launch) -> bool:
    """Whether a launch is a product of one network with a loop over what it sums."""
    if launch.kernel in (_forward_rows_kernel, _backward_rows_kernel):
        return True
    if launch.name not in ("forward", "backward") or launch.grid[2] > 1:
        return False
    a = launch.arguments
    return a["sums"] is None and a["N"] > 64 and a["K"] > 32 and (launch.name == "forward" or a["a_ptr"] is not None)


def _of_rows(launch: Launch) -> Launch:
    a, r, shape = launch.arguments, launch.grid[1], BACK if launch.name == "backward" else SHAPE
    if a["BN"] != shape["BN"]:
        raise ValueError(f"BN={shape['BN']}: expected {a['BN']}, the columns whose partial sums others read")
    some, more = ("x_ptr", "w_ptr", "b_ptr", "out_ptr"), ("X_M", "W_N", "OUT_M", "N", "K", "RELU", "LOSS")
    if launch.name == "backward":
        some, more = ("g_ptr", "w_ptr", "a_ptr", "out_ptr"), ("G_M", "W_K", "A_M", "OUT_M", "N", "K")
    args = (*(a[name][0] for name in some), *(a[name] for name in ("then", "strides", "M", *more)))
    kernel = _forward_rows_kernel if launch.name == "forward" else _backward_rows_kernel
    columns = -(-a["N"] // shape["BN"]) * -(-a["M"] // shape["ROWS"])

    def parts(new: Launch) -> list:
        b = new.arguments
        return [of_kernel(launch.name, a | {name: (b[name],) for name in some} | {"then": b["then"]})]

    return Launch(kernel, (columns, r), args, shape, parts)

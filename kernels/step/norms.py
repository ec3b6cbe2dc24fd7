"""Batch normalisation, forward with its running statistics and its ReLU, backward, and the steps of what it learns, one
launch each. As in reference.py.

A program has all rows of 16 columns, a sector of memory in 16 bits: sums over the batch are in a fixed order, and need
no second launch. Up to 512 rows stay in registers between the passes over them, more are read again, from the L2 cache.
Arithmetic is float32 whatever the dtype of what is read and written; the variance is of differences from the mean.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..reference import BATCH_NORM_EPS, at_least_two
from . import layers


@triton.jit
def _norm_kernel(
    x_ptr, out_ptr,  # [R, M, N], maybe the same
    normalized_ptr,  # float32 [R, M, N]
    weight_ptr, bias_ptr, inverse_std_ptr,  # float32 [R, N]
    running,  # mean and variance, float32 [R, N]; or None
    momentum, EPS: tl.constexpr, strides,  # from one replica to the next in x and out
    M, X_M: tl.constexpr, OUT_M: tl.constexpr, N: tl.constexpr, RELU: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr,  # M to a multiple of BM
):  # fmt: skip
    r, m, n = tl.program_id(1).to(tl.int64), tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    own, live = r * N + n, n < N
    weight, bias = tl.load(weight_ptr + own, mask=live, other=0), tl.load(bias_ptr + own, mask=live, other=0)
    x_ptr += r * strides[0] + n[None, :]
    out_ptr += r * strides[1] + n[None, :]
    normalized_ptr += r * M * N + n[None, :]
    x, total, squares = _rows(x_ptr, m, M, X_M, live), tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32)
    for start in range(0, ROWS, BM):
        if ROWS > BM:
            x = _rows(x_ptr, start + m, M, X_M, live)
        total += tl.sum(x, 0)
    mean = total / M
    for start in range(0, ROWS, BM):
        if ROWS > BM:
            x = _rows(x_ptr, start + m, M, X_M, live)
        d = tl.where((start + m < M)[:, None], x - mean[None, :], 0)
        squares += tl.sum(d * d, 0)
    variance = squares / M
    inverse_std = tl.rsqrt(variance + EPS)
    tl.store(inverse_std_ptr + own, inverse_std, mask=live)
    if running is not None:
        before = tl.load(running[0] + own, mask=live, other=0), tl.load(running[1] + own, mask=live, other=0)
        tl.store(running[0] + own, before[0] + momentum * (mean - before[0]), mask=live)
        tl.store(running[1] + own, before[1] + momentum * (variance * (M / (M - 1)) - before[1]), mask=live)
    for start in range(0, ROWS, BM):
        if ROWS > BM:
            x = _rows(x_ptr, start + m, M, X_M, live)
        b, mask = start + m[:, None], (start + m < M)[:, None] & live[None, :]
        x = (x - mean[None, :]) * inverse_std[None, :]
        tl.store(normalized_ptr + b * N, x, mask=mask)
        y = x * weight[None, :] + bias[None, :]
        if RELU:
            y = tl.where(y < 0, 0, y)  # NaN stays
        tl.store(out_ptr + b * OUT_M, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rows(ptr, m, M, PITCH: tl.constexpr, live):
    return tl.load(ptr + m[:, None] * PITCH, mask=(m < M)[:, None] & live[None, :], other=0).to(tl.float32)


@triton.jit
def _norm_backward_kernel(
    grad_ptr, out_ptr,  # [R, M, N], maybe the same
    normalized_ptr,  # float32 [R, M, N]
    weight_ptr, inverse_std_ptr, weight_grad_ptr, bias_grad_ptr,  # float32 [R, N]
    strides,  # from one replica to the next in grad and out
    M, G_M: tl.constexpr, OUT_M: tl.constexpr, N: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr,  # M to a multiple of BM
):  # fmt: skip
    r, m, n = tl.program_id(1).to(tl.int64), tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    own, live = r * N + n, n < N
    factor = tl.load(weight_ptr + own, mask=live, other=0) * tl.load(inverse_std_ptr + own, mask=live, other=0)
    grad_ptr += r * strides[0] + n[None, :]
    normalized_ptr += r * M * N + n[None, :]
    out_ptr += r * strides[1] + n[None, :]
    g, x = _rows(grad_ptr, m, M, G_M, live), _rows(normalized_ptr, m, M, N, live)
    weight_grad, bias_grad = tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32)
    for start in range(0, ROWS, BM):
        if ROWS > BM:
            g, x = _rows(grad_ptr, start + m, M, G_M, live), _rows(normalized_ptr, start + m, M, N, live)
        weight_grad += tl.sum(g * x, 0)
        bias_grad += tl.sum(g, 0)
    tl.store(weight_grad_ptr + own, weight_grad, mask=live)
    tl.store(bias_grad_ptr + own, bias_grad, mask=live)
    for start in range(0, ROWS, BM):
        if ROWS > BM:
            g, x = _rows(grad_ptr, start + m, M, G_M, live), _rows(normalized_ptr, start + m, M, N, live)
        below = (g - (bias_grad / M)[None, :] - x * (weight_grad / M)[None, :]) * factor[None, :]
        b, mask = start + m[:, None], (start + m < M)[:, None] & live[None, :]
        tl.store(out_ptr + b * OUT_M, below.to(out_ptr.dtype.element_ty), mask=mask)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], momentum: float,
    kept: tuple[Tensor, Tensor], out: Tensor, relu: bool,
) -> None:  # fmt: skip
    """As reference.batch_norm."""
    (r, m, n), (normalized, inverse_std) = x.shape, kept
    args = (x, out, normalized, weight, bias, inverse_std, running if momentum else None, momentum, BATCH_NORM_EPS)
    args = (*args, (x.stride(0), out.stride(0)), m, x.stride(1), out.stride(1), n, relu)
    _norm_kernel[(triton.cdiv(n, 16), r)](*args, **_tile(x))


def batch_norm_backward(
    grad: Tensor, weight: Tensor, normalized: Tensor, inverse_std: Tensor,
    out: Tensor, weight_grad: Tensor, bias_grad: Tensor,
) -> None:  # fmt: skip
    """As reference.batch_norm_backward."""
    r, m, n = grad.shape
    args = (grad, out, normalized, weight, inverse_std, weight_grad, bias_grad, (grad.stride(0), out.stride(0)))
    args = (*args, m, grad.stride(1), out.stride(1), n)
    _norm_backward_kernel[(triton.cdiv(n, 16), r)](*args, **_tile(grad))


def steps(
    parameters: Sequence[tuple], rate: Tensor, correction: Tensor | None, momentum: float | Tensor = 0.0,
    scale: Tensor | None = None,
) -> None:  # fmt: skip
    """As reference.steps, one launch for up to six: biases of layers without inputs, of a batch of one row."""
    some = []
    for parameter, state, grad in parameters:
        x, weight = grad[..., :0], grad[..., :0].mT
        some.append((x, grad, weight, parameter, weight, state, state))
    layers.update(some, rate, correction, momentum, scale)


def _tile(t: Tensor) -> dict[str, int]:
    m = at_least_two(t)
    rows = min(512, max(16, triton.next_power_of_2(m)))
    return {"BM": rows, "BN": 16, "ROWS": triton.cdiv(m, rows) * rows, "num_warps": 4 if rows <= 128 else 8}

"""Linear layers on tensor cores: forward, gradient of the input, and gradient of the weight with the optimiser in it.

Shapes as in reference.py: R replicas, weights [R, O, I]. Products take bf16 or fp16 operands and sum in float32. What
is learned stays float32; `shadow`, its 16-bit copy that products read, is written by the kernel that updates it.

  forward   out = relu(x shadowᵀ + bias)
  backward  out = (grad shadow) where the input's ReLU was open
  update    For up to three layers in one launch: gradᵀ x, in float32, goes from registers into SGD with momentum or
            Adam; no gradient is stored. 18 bytes move per parameter (Adam 26): this is most of a step's traffic.

Programs are tiles of the output. Sizes and row pitches are constants of the compiled code: Triton knows of an argument
only whether 16 divides it, and widths like 1000 are multiples of 8, so that as arguments they cost 16-bit loads and
spills. Tiles were chosen by time on an H200. Slower there (bench/LOG.md): programmatic dependent launch, and updating a
strip of tiles with the next one's state on its way.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # whose products know no bf16


@triton.jit
def _dot(a, b, acc):
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def _forward_kernel(
    x_ptr,  # [R, M, K], 16-bit or float32
    w_ptr,  # [R, N, K], 16-bit
    b_ptr,  # float32 [R, N]
    out_ptr,  # [R, M, N]
    x_r,
    out_r,
    M,
    X_M: tl.constexpr,
    OUT_M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    RELU: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles: tl.constexpr = (N + BN - 1) // BN
    m, n, k = pid // tiles * BM + tl.arange(0, BM), pid % tiles * BN + tl.arange(0, BN), tl.arange(0, BK)
    x_ptr = x_ptr + r * x_r + (m[:, None] * X_M + k[None, :])
    w_ptr = w_ptr + r * N * K + (n[:, None] * K + k[None, :])
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        x = tl.load(x_ptr + start, mask=(m < M)[:, None] & (k < K - start)[None, :], other=0)
        w = tl.load(w_ptr + start, mask=(n < N)[:, None] & (k < K - start)[None, :], other=0)
        acc = _dot(x.to(w.dtype), w.T, acc)
    acc += tl.load(b_ptr + r * N + n, mask=n < N, other=0)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0, acc)  # NaN stays
    out_ptr = out_ptr + r * out_r + (m[:, None] * OUT_M + n[None, :])
    tl.store(out_ptr, acc.to(out_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def _backward_kernel(
    g_ptr,  # [R, M, K], gradient of the output
    w_ptr,  # [R, K, N], 16-bit
    a_ptr,  # [R, M, N], the layer's input, or None
    out_ptr,  # [R, M, N]
    g_r,
    a_r,
    out_r,
    M,
    G_M: tl.constexpr,
    A_M: tl.constexpr,
    OUT_M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles: tl.constexpr = (N + BN - 1) // BN
    m, n, k = pid // tiles * BM + tl.arange(0, BM), pid % tiles * BN + tl.arange(0, BN), tl.arange(0, BK)
    mask = (m < M)[:, None] & (n < N)[None, :]
    g_ptr = g_ptr + r * g_r + (m[:, None] * G_M + k[None, :])
    w_ptr = w_ptr + r * N * K + (k[:, None] * N + n[None, :])
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        g = tl.load(g_ptr + start, mask=(m < M)[:, None] & (k < K - start)[None, :], other=0)
        w = tl.load(w_ptr + start * N, mask=(k < K - start)[:, None] & (n < N)[None, :], other=0)
        acc = _dot(g.to(w.dtype), w, acc)
    if a_ptr is not None:
        a = tl.load(a_ptr + r * a_r + (m[:, None] * A_M + n[None, :]), mask=mask, other=0)
        acc = tl.where(a > 0, acc, 0)
    out_ptr = out_ptr + r * out_r + (m[:, None] * OUT_M + n[None, :])
    tl.store(out_ptr, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _update_kernel(
    tensors,  # of each layer: x, grad, weight, bias, shadow, and the state of weight and bias: one or two tensors each
    strides,  # of each layer: from one replica to the next in x and grad
    rate_ptr,  # float32 [R]
    correction_ptr,  # float32 [3], Adam's, or None
    scale_ptr,  # float32 [3]: of the gradients, whether one was not finite, a counter; or None
    momentum,
    M,
    SHAPES: tl.constexpr,  # of each layer: O, I, row pitch of grad and of x, first program
    BO: tl.constexpr,
    BI: tl.constexpr,
    BM: tl.constexpr,
    POLICY: tl.constexpr,
):
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rate = tl.load(rate_ptr + r)
    for j in tl.static_range(len(SHAPES)):
        tile = pid - SHAPES[j][4]
        if (tile >= 0) & (tile < tl.cdiv(SHAPES[j][0], BO) * tl.cdiv(SHAPES[j][1], BI)):
            _update_tile(
                tile,
                r,
                tensors[j],
                strides[j],
                rate,
                correction_ptr,
                scale_ptr,
                momentum,
                M,
                *SHAPES[j][:4],
                BO,
                BI,
                BM,
                POLICY,
            )


@triton.jit
def _update_tile(
    tile, r, tensors, strides, rate, correction_ptr, scale_ptr, momentum, M,
    N_O: tl.constexpr, N_I: tl.constexpr, G_M: tl.constexpr, X_M: tl.constexpr,
    BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    x_ptr, g_ptr, w_ptr, b_ptr, s_ptr, state, bias_state = tensors
    tiles: tl.constexpr = (N_I + BI - 1) // BI
    o, i, b = tile // tiles * BO + tl.arange(0, BO), tile % tiles * BI + tl.arange(0, BI), tl.arange(0, BM)
    x_ptr += r * strides[0] + b[:, None] * X_M + i[None, :]
    g_ptr += r * strides[1] + b[:, None] * G_M + o[None, :]
    acc = tl.zeros([BO, BI], tl.float32)
    for start in range(0, M, BM):
        x = tl.load(x_ptr + start * X_M, mask=(b < M - start)[:, None] & (i < N_I)[None, :], other=0)
        g = tl.load(g_ptr + start * G_M, mask=(b < M - start)[:, None] & (o < N_O)[None, :], other=0)
        acc = _dot(g.T, x.to(g.dtype), acc)
    at, mask = o[:, None] * N_I + i[None, :], (o < N_O)[:, None] & (i < N_I)[None, :]
    w, mask = _stepped(acc, w_ptr, state, r * N_O * N_I, at, mask, rate, correction_ptr, scale_ptr, momentum, POLICY)
    tl.store(s_ptr + r * N_O * N_I + at, w.to(s_ptr.dtype.element_ty), mask=mask)
    if tile % tiles == 0:
        total = tl.zeros([BO], tl.float32)
        for start in range(0, M, BM):
            g = tl.load(g_ptr + start * G_M, mask=(b < M - start)[:, None] & (o < N_O)[None, :], other=0)
            total += tl.sum(g.to(tl.float32), 0)
        _stepped(total, b_ptr, bias_state, r * N_O, o, o < N_O, rate, correction_ptr, scale_ptr, momentum, POLICY)


@triton.jit
def _stepped(grad, w_ptr, state, start, at, mask, rate, correction_ptr, scale_ptr, momentum, POLICY: tl.constexpr):
    """Write new parameters and their state: SGD's momentum, or Adam's two moments. Returns: the new ones, and where."""
    w_ptr += start + at
    first_ptr = state[0] + start + at
    if scale_ptr is not None:
        grad = grad / tl.load(scale_ptr)
        finite = tl.abs(grad) < float("inf")
        tl.store(scale_ptr + 1 + 0 * at, 1.0, mask=mask & ~finite)
        mask = mask & finite
    w = tl.load(w_ptr, mask=mask, other=0, eviction_policy=POLICY)
    first = tl.load(first_ptr, mask=mask, other=0, eviction_policy=POLICY)
    if correction_ptr is None:
        first = momentum * first + grad
        w -= rate * first
    else:
        second_ptr = state[1] + start + at
        first += 0.1 * (grad - first)
        second = 0.999 * tl.load(second_ptr, mask=mask, other=0, eviction_policy=POLICY) + 0.001 * grad * grad
        tl.store(second_ptr, second, mask=mask, eviction_policy=POLICY)
        w -= rate / tl.load(correction_ptr) * first / (tl.sqrt(second / tl.load(correction_ptr + 1)) + 1e-8)
    tl.store(first_ptr, first, mask=mask, eviction_policy=POLICY)
    tl.store(w_ptr, w, mask=mask, eviction_policy=POLICY)
    return w, mask


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, relu: bool, config: dict | None = None) -> None:
    """As reference.linear."""
    (r, m, k), n = x.shape, weight.shape[1]
    _fits(x, out)
    config = config or tiling(r, m, n, k)
    grid = (triton.cdiv(m, config["BM"]) * triton.cdiv(n, config["BN"]), r)
    args = (x.stride(0), out.stride(0), m, x.stride(1), out.stride(1), n, k, relu)
    _forward_kernel[grid](x, weight, bias, out, *args, **config)


def linear_backward(
    grad: Tensor, weight: Tensor, out: Tensor, activation: Tensor | None, config: dict | None = None
) -> None:
    """As reference.linear_backward."""
    (r, m, k), n, a = grad.shape, weight.shape[2], out if activation is None else activation
    _fits(grad, a, out)
    config = config or tiling(r, m, n, k)
    grid = (triton.cdiv(m, config["BM"]) * triton.cdiv(n, config["BN"]), r)
    args = (grad.stride(0), a.stride(0), out.stride(0), m, grad.stride(1), a.stride(1), out.stride(1), n, k)
    _backward_kernel[grid](grad, weight, activation, out, *args, **config)


def update(
    layers: list[tuple],
    rate: Tensor,
    correction: Tensor | None,
    momentum: float = 0.0,
    scale: Tensor | None = None,
    config: dict | None = None,
) -> None:
    """As reference.update."""
    r, m, _ = layers[0][0].shape
    _fits(*(t for x, grad, *_ in layers for t in (x, grad)))
    config = config or updating(m, correction is not None or scale is not None)
    for start in range(0, len(layers), 3):
        some, shapes, first = layers[start : start + 3], [], 0
        for x, grad, *_ in some:
            shapes.append((grad.shape[2], x.shape[2], grad.stride(1), x.stride(1), first))
            first += triton.cdiv(grad.shape[2], config["BO"]) * triton.cdiv(x.shape[2], config["BI"])
        strides = tuple((x.stride(0), grad.stride(0)) for x, grad, *_ in some)
        args = (tuple(some), strides, rate, correction, scale, momentum, m, tuple(shapes))
        _update_kernel[(first, r)](*args, **config)


def _fits(*tensors: Tensor) -> None:
    """Offsets within a replica are 32-bit numbers."""
    for t in tensors:
        if t.shape[1] * t.stride(1) >= 2**31:
            raise ValueError(
                f"a batch of {t.shape[1]} rows, {t.stride(1)} apart, is too large for 16-bit precision, expected less"
            )


def tiling(r: int, m: int, n: int, k: int) -> dict[str, int]:
    """Tile and pipeline of a product [r, m, k] x [r, k, n], as measured on an H200 (bench/LOG.md)."""
    bm, bn, bk, warps, stages = 64, 32, 64, 4, 4
    if n <= 64:
        bm, bn, bk, stages = 16, max(16, triton.next_power_of_2(n)), 256, 3
    elif k <= 32:
        bm, bn, bk, stages = (32, 128, 32, 1) if r > 4 else (16, 64, 32, 1)
    elif r > 4:
        bm, bn, warps, stages = 128, 128, 8, 3
    elif r > 1:
        bn = 64
    least = max(16, triton.next_power_of_2(k))
    return {"BM": bm, "BN": bn, "BK": min(bk, least), "num_warps": warps, "num_stages": stages if k > bk else 1}


def updating(m: int, wide: bool) -> dict[str, int]:
    """Tile of an update from m rows; wide: with more to hold than SGD has."""
    rows = min(128, triton.next_power_of_2(max(m, 16)))
    return {"BO": 64, "BI": 64, "BM": rows, "POLICY": "evict_first", "num_warps": 8 if wide else 4, "num_stages": 1}

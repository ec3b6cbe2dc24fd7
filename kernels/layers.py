"""Linear layers on tensor cores: forward, gradient of the input, and gradient of the weight with the optimiser in it.

Shapes as in reference.py: R replicas, weights [R, O, I]. Products take bf16 or fp16 operands and sum in float32. What is
learned stays in float32; `shadow`, its 16-bit copy that products read, is written by the kernel that updates it.

  forward   out = relu(x shadowᵀ + bias)
  backward  out = (grad shadow) where the input's ReLU was open
  update    For up to three layers in one launch: gradᵀ x, of float32, goes from registers into SGD with momentum or
            Adam; no gradient is stored. 18 bytes move per parameter (Adam 26): this is most of a step's traffic.

Programs are tiles of the output. Sizes and row pitches are constants of the compiled code, since Triton knows of an
argument only whether 16 divides it, and widths like 1000 are multiples of 8: as arguments they cost 16-bit loads and
spills. With programmatic dependent launch (sm_90) a kernel is launched while its predecessor runs and waits in its first
line; it then lets its successor be launched. Each of them waits, so the order of reads and writes is that of launches.
"""

from __future__ import annotations

import os
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # whose products know no bf16


@triton.jit
def after(PDL: tl.constexpr):
    """Wait for the kernels before, then let the next one be launched."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


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
    PDL: tl.constexpr,
):
    after(PDL)
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
    PDL: tl.constexpr,
):
    after(PDL)
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
    correction_ptr,  # float32 [2], Adam's, or None
    scale_ptr,  # float32 [3]: of the gradients, whether one was not finite, a counter; or None
    momentum,
    M,
    SHAPES: tl.constexpr,  # of each layer: O, I, row pitch of grad and of x, first program
    BO: tl.constexpr,
    BI: tl.constexpr,
    BM: tl.constexpr,
    STRIP: tl.constexpr,
    PDL: tl.constexpr,
):
    after(PDL)
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rate = tl.load(rate_ptr + r)
    for j in tl.static_range(len(SHAPES)):
        strip = pid - SHAPES[j][4]
        if (strip >= 0) & (strip < tl.cdiv(SHAPES[j][0], BO) * tl.cdiv(SHAPES[j][1], BI * STRIP)):
            _update_strip(
                strip, r, tensors[j], strides[j], rate, correction_ptr, scale_ptr, momentum, M, *SHAPES[j][:4],
                BO, BI, BM, STRIP,
            )  # fmt: skip


@triton.jit
def _update_strip(
    strip, r, tensors, strides, rate, correction_ptr, scale_ptr, momentum, M,
    O: tl.constexpr, I: tl.constexpr, G_M: tl.constexpr, X_M: tl.constexpr,
    BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """STRIP tiles [BO, BI] of a weight, side by side. What the next one needs of the weight and its state is on its way
    while this one's product is formed."""
    x_ptr, g_ptr, w_ptr, b_ptr, s_ptr, state, bias_state = tensors
    ADAM: tl.constexpr = correction_ptr is not None
    strips: tl.constexpr = (I + BI * STRIP - 1) // (BI * STRIP)
    row, first = strip // strips * BO, strip % strips * STRIP * BI
    o, i, b = tl.arange(0, BO), tl.arange(0, BI), tl.arange(0, BM)
    x_ptr += r * strides[0] + first
    g_ptr += r * strides[1] + row
    base = r * O * I + row * I + first
    w_ptr += base
    s_ptr += base
    m_ptr = state[0] + base
    v_ptr = state[len(state) - 1] + base
    columns = min(STRIP * BI, I - first)
    scale, corrected, root = 1.0, 1.0, 1.0
    if scale_ptr is not None:
        scale = tl.load(scale_ptr)
    if ADAM:
        corrected, root = tl.load(correction_ptr), tl.load(correction_ptr + 1)
    at, inside = o[:, None] * I + i[None, :], (o < O - row)[:, None]
    mask = inside & (i < columns)[None, :]
    w_next, m_next = tl.load(w_ptr + at, mask=mask, other=0), tl.load(m_ptr + at, mask=mask, other=0)
    v_next = tl.load(v_ptr + at, mask=mask, other=0) if ADAM else m_next
    for start in range(0, columns, BI):
        w, m, v = w_next, m_next, v_next
        mask = inside & (i < columns - start)[None, :]
        if STRIP > 1:
            ahead = inside & (i < columns - start - BI)[None, :]
            w_next = tl.load(w_ptr + BI + at, mask=ahead, other=0)
            m_next = tl.load(m_ptr + BI + at, mask=ahead, other=0)
            v_next = tl.load(v_ptr + BI + at, mask=ahead, other=0) if ADAM else m_next
        acc = tl.zeros([BO, BI], tl.float32)
        for k in range(0, M, BM):
            g = tl.load(
                g_ptr + (k + b)[:, None] * G_M + o[None, :], mask=(b < M - k)[:, None] & (o < O - row)[None, :], other=0
            )
            x = tl.load(
                x_ptr + (k + b)[:, None] * X_M + i[None, :],
                mask=(b < M - k)[:, None] & (i < columns - start)[None, :],
                other=0,
            )
            acc = _dot(g.T, x.to(g.dtype), acc)
        acc /= scale
        if scale_ptr is not None:
            mask = mask & _finite(acc, mask, scale_ptr)
        w, m, v = _stepped(acc, w, m, v, rate, corrected, root, momentum, ADAM)
        tl.store(w_ptr + at, w, mask=mask)
        tl.store(m_ptr + at, m, mask=mask)
        if ADAM:
            tl.store(v_ptr + at, v, mask=mask)
        tl.store(s_ptr + at, w.to(s_ptr.dtype.element_ty), mask=mask)
        x_ptr += BI
        w_ptr += BI
        m_ptr += BI
        v_ptr += BI
        s_ptr += BI
    if first == 0:
        total = tl.zeros([BO], tl.float32)
        used = o < O - row
        for k in range(0, M, BM):
            g = tl.load(g_ptr + (k + b)[:, None] * G_M + o[None, :], mask=(b < M - k)[:, None] & used[None, :], other=0)
            total += tl.sum(g.to(tl.float32), 0)
        total /= scale
        if scale_ptr is not None:
            used = used & _finite(total, used, scale_ptr)
        base = r * O + row
        bias, bm = tl.load(b_ptr + base + o, mask=used, other=0), tl.load(bias_state[0] + base + o, mask=used, other=0)
        bv = tl.load(bias_state[len(bias_state) - 1] + base + o, mask=used, other=0)
        bias, bm, bv = _stepped(total, bias, bm, bv, rate, corrected, root, momentum, ADAM)
        tl.store(b_ptr + base + o, bias, mask=used)
        tl.store(bias_state[0] + base + o, bm, mask=used)
        if ADAM:
            tl.store(bias_state[1] + base + o, bv, mask=used)


@triton.jit
def _stepped(grad, w, m, v, rate, corrected, root, momentum, ADAM: tl.constexpr):
    """Parameters and state after one step of SGD with momentum, or of Adam."""
    if ADAM:
        m += 0.1 * (grad - m)
        v = 0.999 * v + 0.001 * grad * grad
        w -= rate / corrected * m / (tl.sqrt(v / root) + 1e-8)
    else:
        m = momentum * m + grad
        w -= rate * m
    return w, m, v


@triton.jit
def _finite(grad, mask, scale_ptr):
    """Where grad is finite; notes behind the scale if it is not everywhere in mask."""
    finite = tl.abs(grad) < float("inf")
    tl.store(scale_ptr + 1 + (mask & finite).to(tl.int32) * 0, 1.0, mask=mask & ~finite)
    return finite


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, relu: bool, config: dict | None = None) -> None:
    """As reference.linear."""
    (r, m, k), n = x.shape, weight.shape[1]
    config = config or tiling(r, m, n, k)
    grid = (triton.cdiv(m, config["BM"]) * triton.cdiv(n, config["BN"]), r)
    args = (x.stride(0), out.stride(0), m, x.stride(1), out.stride(1), n, k, relu)
    _forward_kernel[grid](x, weight, bias, out, *args, **config, **dependent(x))


def linear_backward(
    grad: Tensor, weight: Tensor, out: Tensor, activation: Tensor | None, config: dict | None = None
) -> None:
    """As reference.linear_backward."""
    (r, m, k), n, a = grad.shape, weight.shape[2], out if activation is None else activation
    config = config or tiling(r, m, n, k)
    grid = (triton.cdiv(m, config["BM"]) * triton.cdiv(n, config["BN"]), r)
    args = (grad.stride(0), a.stride(0), out.stride(0), m, grad.stride(1), a.stride(1), out.stride(1), n, k)
    _backward_kernel[grid](grad, weight, activation, out, *args, **config, **dependent(grad))


def update(
    layers: list[tuple],
    rate: Tensor,
    correction: Tensor | None,
    momentum: float = 0.0,
    scratch: Tensor | None = None,
    scale: Tensor | None = None,
    config: dict | None = None,
) -> None:
    """As reference.update; scratch is not used."""
    r, m, _ = layers[0][0].shape
    config = config or updating(r, m, correction is not None)
    for start in range(0, len(layers), 3):
        some, shapes, first = layers[start : start + 3], [], 0
        for x, grad, *_ in some:
            o, i = grad.shape[2], x.shape[2]
            shapes.append((o, i, grad.stride(1), x.stride(1), first))
            first += triton.cdiv(o, config["BO"]) * triton.cdiv(i, config["BI"] * config["STRIP"])
        strides = tuple((x.stride(0), grad.stride(0)) for x, grad, *_ in some)
        args = (tuple(some), strides, rate, correction, scale, momentum, m, tuple(shapes))
        _update_kernel[(first, r)](*args, **config, **dependent(rate))


def tiling(r: int, m: int, n: int, k: int) -> dict[str, int]:
    """Tile and pipeline of a product [r, m, k] x [r, k, n], as measured on an H200 (bench/LOG.md)."""
    bm, bn, bk, warps, stages = 64, 32, 64, 4, 4
    if n <= 16:
        bm, bn, bk, stages = 16, 16, 256, 3
    elif k <= 32:
        bm, bn, bk, stages = (32, 128, 32, 1) if r > 4 else (16, 64, 32, 1)
    elif r > 4:
        bm, bn, warps, stages = 128, 128, 8, 3
    elif r > 1:
        bn = 64
    least = max(16, triton.next_power_of_2(k))
    return {"BM": bm, "BN": bn, "BK": min(bk, least), "num_warps": warps, "num_stages": stages if k > bk else 1}


def updating(r: int, m: int, adam: bool) -> dict[str, int]:
    """Tile of an update from m rows, as measured on an H200 (bench/LOG.md)."""
    rows = min(128, triton.next_power_of_2(max(m, 16)))
    strip = 1 if r < 4 else 4
    return {"BO": 64, "BI": 64, "BM": rows, "STRIP": strip, "num_warps": 8 if adam or r > 1 else 4, "num_stages": 1}


def dependent(t: Tensor) -> dict[str, bool]:
    """Options for programmatic dependent launch, where the device of t has it."""
    return {"PDL": True, "launch_pdl": True} if t.is_cuda and _capability(t.device) >= 9 else {"PDL": False}


@cache
def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]

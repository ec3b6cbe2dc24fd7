"""The update of a weight with other masters than now: rows that start at whole cache lines, 16 bytes a parameter
instead of 18, or programs that stay, to which weights come by TMA.

A float32 master is its high half, rounded to nearest, which is the bf16 shadow that products read, and a signed 16-bit
remainder: the two give back every bit. Where a weight lies in the very middle of two bf16 numbers (one of 65,536), the
shadow is the one farther from zero, not the even one: 16 bits cannot tell how an even one was come by.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastaae.kernels.step.layers import _as_loaded, _dot
from fastaae.kernels.step.layers import own as _own

from .launches import Launch

TILE = {"BO": 64, "BI": 64, "BM": 128, "num_warps": 8, "num_stages": 1, "maxnreg": 80}


def split(w: Tensor) -> tuple[Tensor, Tensor]:
    """Of float32: the bits of a bf16 number and what is left, both int16."""
    bits = w.view(torch.int32)
    low = bits.to(torch.int16)
    return (bits - low >> 16).to(torch.int16), low


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers that split() has taken apart."""
    return ((high.int() << 16) + low.int()).view(torch.float32)


@triton.jit
def _master_kernel(
    x_ptr, g_ptr,  # [R, M, I], [R, M, O], 16-bit
    w_ptr,  # [R, O, P], the first I of each row: float32; or int16, the low half
    v_ptr,  # float32 [R, O, P], momentum
    s_ptr,  # [R, O, .], 16-bit; or int16, the high half
    strides,  # from one replica to the next in x, grad, weight and shadow
    rate_ptr,  # float32 [R]
    momentum, M, N_O: tl.constexpr, N_I: tl.constexpr, P: tl.constexpr, G_M: tl.constexpr, X_M: tl.constexpr,
    S_O: tl.constexpr, SPLIT: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr,
    POLICY: tl.constexpr,
):  # fmt: skip
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles: tl.constexpr = (N_I + BI - 1) // BI
    o, i, b = pid // tiles * BO + tl.arange(0, BO), pid % tiles * BI + tl.arange(0, BI), tl.arange(0, BM)
    at, mask = r * strides[2] + o[:, None] * P + i[None, :], (o < N_O)[:, None] & (i < N_I)[None, :]
    s_ptr += r * strides[3] + (o[:, None] * S_O + i[None, :])
    w = tl.load(w_ptr + at, mask=mask, other=0, eviction_policy=POLICY)
    v = tl.load(v_ptr + at, mask=mask, other=0, eviction_policy=POLICY)
    if SPLIT:
        high = tl.load(s_ptr, mask=mask, other=0)
        w = ((high.to(tl.int32) << 16) + w.to(tl.int32)).to(tl.float32, bitcast=True)
    x_ptr += r * strides[0] + b[:, None] * X_M + i[None, :]
    g_ptr += r * strides[1] + b[:, None] * G_M + o[None, :]
    acc = tl.zeros([BO, BI], tl.float32)
    for start in range(0, ROWS, BM):
        x = tl.load(x_ptr + start * X_M, mask=(b < M - start)[:, None] & (i < N_I)[None, :], other=0)
        g = tl.load(g_ptr + start * G_M, mask=(b < M - start)[:, None] & (o < N_O)[None, :], other=0)
        acc = _dot(g.T, x, acc)
    v = _own(momentum, r) * v + _as_loaded(acc)
    w -= tl.load(rate_ptr + r) * v
    tl.store(v_ptr + at, v, mask=mask, eviction_policy=POLICY)
    if SPLIT:
        bits = w.to(tl.int32, bitcast=True)
        low = bits.to(tl.int16)
        tl.store(w_ptr + at, low, mask=mask, eviction_policy=POLICY)
        tl.store(s_ptr, (bits - low.to(tl.int32) >> 16).to(tl.int16), mask=mask)
    else:
        tl.store(w_ptr + at, w, mask=mask, eviction_policy=POLICY)
        tl.store(s_ptr, w.to(s_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _streamed_kernel(
    x_ptr, g_ptr, w_desc, v_desc, s_ptr,  # as above, of float32 masters; those two by descriptors of [1, BO, BI]
    strides,  # from one replica to the next in x, grad and shadow
    rate_ptr, momentum, M, R, N_O: tl.constexpr, N_I: tl.constexpr, G_M: tl.constexpr, X_M: tl.constexpr,
    S_O: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (N_I + BI - 1) // BI
    tiles: tl.constexpr = across * ((N_O + BO - 1) // BO)
    for t in tl.range(tl.program_id(0), R * tiles, tl.num_programs(0), num_stages=STAGES):
        r, tile = t // tiles, t % tiles
        first, left = tile // across * BO, tile % across * BI
        w, v = w_desc.load([r, first, left]).reshape(BO, BI), v_desc.load([r, first, left]).reshape(BO, BI)
        o, i, b = first + tl.arange(0, BO), left + tl.arange(0, BI), tl.arange(0, BM)
        at_x, at_g = b[:, None] * X_M + i[None, :], b[:, None] * G_M + o[None, :]
        x = tl.load(x_ptr + r * strides[0] + at_x, mask=(b < M)[:, None] & (i < N_I)[None, :], other=0)
        g = tl.load(g_ptr + r * strides[1] + at_g, mask=(b < M)[:, None] & (o < N_O)[None, :], other=0)
        v = momentum * v + _dot(g.T, x, tl.zeros([BO, BI], tl.float32))
        w -= tl.load(rate_ptr + r) * v
        v_desc.store([r, first, left], v.reshape(1, BO, BI))
        w_desc.store([r, first, left], w.reshape(1, BO, BI))
        at = s_ptr + r * strides[2] + o[:, None] * S_O + i[None, :]
        tl.store(at, w.to(s_ptr.dtype.element_ty), mask=(o < N_O)[:, None] & (i < N_I)[None, :])


def streamed(x: Tensor, grad: Tensor, state: tuple[Tensor, Tensor, Tensor], rate: Tensor, programs: int) -> Launch:
    """As update(), float32 masters, by so many programs, to which weights and momenta come by TMA, tiles ahead."""
    w, v, s = state
    (r, m, i), o, tile = x.shape, w.shape[1], {"BO": 64, "BI": 64, "BM": triton.next_power_of_2(max(16, x.shape[1]))}
    descriptors = (TensorDescriptor.from_tensor(t, [1, tile["BO"], tile["BI"]]) for t in (w, v))
    strides, pitches = (x.stride(0), grad.stride(0), s.stride(0)), (grad.stride(1), x.stride(1), s.stride(1))
    args = (x, grad, *descriptors, s, strides, rate, 0.9, m, r, o, i, *pitches)
    return Launch(_streamed_kernel, (programs,), args, tile | {"STAGES": 2, "num_warps": 8, "num_stages": 2})


def update(x: Tensor, grad: Tensor, state: tuple[Tensor, Tensor, Tensor], rate: Tensor, **tile: Any) -> Launch:
    """SGD, momentum 0.9, of a weight.

    Args:
        x, grad: [R, M, I] and [R, M, O].
        state: master [R, O, I], float32 or, if split, int16; momentum of the same pitch; shadow.
        rate: [R].
        tile: BO, BI, BM, and the launch's own options.
    """
    w, v, s = state
    (r, m, i), o, is_split = x.shape, w.shape[1], w.dtype == torch.int16
    s = s.view(torch.int16) if is_split else s
    strides = (x.stride(0), grad.stride(0), w.stride(0), s.stride(0))
    pitches = (w.stride(1), grad.stride(1), x.stride(1), s.stride(1))
    options = {"ROWS": -(-m // tile["BM"]) * tile["BM"], "POLICY": "evict_first" if r == 1 else "", **tile}
    grid = (-(-o // tile["BO"]) * -(-i // tile["BI"]), r)
    args = (x, grad, w, v, s, strides, rate, 0.9, m, o, i, *pitches, is_split)
    return Launch(_master_kernel, grid, args, options)

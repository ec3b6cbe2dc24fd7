"""What a step draws, and what it leaves behind: batches with noise, prior samples, losses and counters.

Random numbers come from Philox 4x32-10 (Salmon et al. 2011), a pure function of where they are used: key = the replica's
seed, counter = (element, stream, steps done before, 0). A step draws the same numbers whenever and beside whatever
replicas it runs. reference.philox is its twin.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .layers import after, dependent

NOISE, LABELED_NOISE, PRIOR, CLASSES = range(4)  # streams


@triton.jit
def _normal(seed, step, element, stream):
    a, b, _, _ = tl.philox(seed, element, stream, step, 0)
    return _gaussian(a, b)


@triton.jit
def _gaussian(a, b):
    """Box-Muller of 24 bits each, of which the first are never zero."""
    u = ((a >> 8).to(tl.float32) + 1) * (1 / 16777216)
    v = (b >> 8).to(tl.float32) * (6.283185307179586 / 16777216)
    return tl.sqrt(-2 * tl.log(u)) * tl.cos(v)


@triton.jit
def _batch_kernel(
    data_ptr,  # [N, D], uint8 or floats
    order_ptr,  # int32 [R, L]
    count_ptr,  # int64 [2], steps done in this epoch and in all
    seeds_ptr,  # int64 [R]
    clean_ptr,  # [R, B, D] or None
    noisy_ptr,  # [R, B, D]
    y_ptr,  # int64 [N] or None
    labels_ptr,  # int64 [R, B]
    noise,
    B,
    D,
    L,
    stream,
    BYTES: tl.constexpr,
    NOISY: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    after(PDL)
    b, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    epoch_step = tl.load(count_ptr)
    row = tl.load(order_ptr + r * L + epoch_step * B + b).to(tl.int64)
    seed, step = tl.load(seeds_ptr + r), tl.load(count_ptr + 1).to(tl.uint32)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        x = tl.load(data_ptr + row * D + d, mask=d < D, other=0).to(tl.float32)
        if BYTES:
            x = x / 255
        at = (r * B + b) * D + d
        if clean_ptr is not None:
            tl.store(clean_ptr + at, x.to(clean_ptr.dtype.element_ty), mask=d < D)
        if NOISY:
            x += noise * _normal(seed, step, b * D + d, stream)
        tl.store(noisy_ptr + at, x.to(noisy_ptr.dtype.element_ty), mask=d < D)
    if y_ptr is not None:
        tl.store(labels_ptr + r * B + b, tl.load(y_ptr + row))


@triton.jit
def _prior_kernel(
    codes_ptr,  # [R, B, Z + K], replicas apart
    count_ptr,
    seeds_ptr,
    codes_r,
    std,
    B,
    Z: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    after(PDL)
    b, r = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BLOCK)
    seed, step = tl.load(seeds_ptr + r), tl.load(count_ptr + 1).to(tl.uint32)
    value = std * _normal(seed, step, b[:, None] * Z + c[None, :], 2)
    if K > 0:
        drawn, _, _, _ = tl.philox(seed, b, 3, step, 0)
        label = tl.umulhi(drawn, tl.full([ROWS], K, tl.uint32)).to(tl.int32)
        value = tl.where((c < Z)[None, :], value, (c[None, :] - Z == label[:, None]).to(tl.float32))
    at = codes_ptr + r * codes_r + b[:, None] * (Z + K) + c[None, :]
    tl.store(at, value.to(codes_ptr.dtype.element_ty), mask=(b < B)[:, None] & (c < Z + K)[None, :])


@triton.jit
def _finish_kernel(
    terms_ptr,  # float32 [P, R, T]
    losses_ptr,  # float32 [S, P, R]
    slot_ptr,  # int64 [1]
    P,
    R,
    T,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    after(PDL)
    p, r = tl.program_id(0), tl.program_id(1)
    t = tl.arange(0, BLOCK)
    loss = tl.sum(tl.load(terms_ptr + (p * R + r) * T + t, mask=t < T, other=0), 0)
    tl.store(losses_ptr + (tl.load(slot_ptr) * P + p) * R + r, loss)


@triton.jit
def _advance_kernel(count_ptr, slot_ptr, scale_ptr, PDL: tl.constexpr):
    after(PDL)
    c = tl.arange(0, 2)
    tl.store(count_ptr + c, tl.load(count_ptr + c) + 1)
    tl.store(slot_ptr, tl.load(slot_ptr) + 1)
    if scale_ptr is not None:
        scale, good = tl.load(scale_ptr), tl.load(scale_ptr + 2) + 1
        if tl.load(scale_ptr + 1) > 0:
            scale, good = scale / 2, good * 0
        if good == 2000:
            scale, good = scale * 2, good * 0
        tl.store(scale_ptr, tl.minimum(tl.maximum(scale, 1), 16777216))
        tl.store(scale_ptr + 1, 0.0)
        tl.store(scale_ptr + 2, good)


def batch(
    data: Tensor, order: Tensor, count: Tensor, seeds: Tensor, clean: Tensor | None, noisy: Tensor, noise: float,
    stream: int, y: Tensor | None = None, labels: Tensor | None = None,
) -> None:  # fmt: skip
    """noisy = data[order[r, step's rows]] scaled to [0, 1], plus noise N(0, noise²); clean the same without noise.

    Args:
        data: [N, D], uint8 or floats; order: int32 [R, L]; count: int64 [2], steps done in this epoch and in all.
        seeds: int64 [R].
        clean: [R, B, D] or None; noisy: [R, B, D].
        y, labels: int64 [N], [R, B]: labels[r, b] is that of the row.
    """
    (r, b, d), block = noisy.shape, min(1024, triton.next_power_of_2(noisy.shape[2]))
    args = (data, order, count, seeds, clean, noisy, y, labels, float(noise), b, d, order.shape[1], stream)
    options = {"BYTES": not data.is_floating_point(), "NOISY": noise > 0, "BLOCK": block, "num_warps": 4}
    _batch_kernel[(b, r)](*args, **options, **dependent(noisy))


def gaussian_prior(codes: Tensor, count: Tensor, seeds: Tensor, std: float, z: int) -> None:
    """Fill codes [R, B, z + K]: N(0, std²) in the first z columns, a one-hot vector of a uniform class in the others."""
    r, b, c = codes.shape
    block = triton.next_power_of_2(c)
    rows = max(1, 256 // block)
    args = (codes, count, seeds, codes.stride(0), float(std), b, z, c - z)
    _prior_kernel[(triton.cdiv(b, rows), r)](*args, ROWS=rows, BLOCK=block, num_warps=2, **dependent(codes))


def finish(terms: Tensor, losses: Tensor, slot: Tensor, count: Tensor, scale: Tensor | None = None) -> None:
    """As reference.finish."""
    p, r, t = terms.shape
    block = triton.next_power_of_2(t)
    _finish_kernel[(p, r)](terms, losses, slot, p, r, t, BLOCK=block, num_warps=1, **dependent(terms))
    _advance_kernel[(1,)](count, slot, scale, num_warps=1, **dependent(terms))

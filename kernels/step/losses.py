"""Losses with their gradients, the label head, and the end of a step, one launch each. All as in reference.py.

One program a row. A loss is left as its terms [R, B], one for each row, already divided by the number of rows; finish()
sums them in a fixed order. Arithmetic is float32 whatever the dtype of what is read and written.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .layers import of, reconstructed, softplus


@triton.jit
def _reconstruction_kernel(
    logits_ptr, target_ptr, grad_ptr,  # [R, M, D]
    terms_ptr,  # float32, rows [R, M]
    terms_r, M, D, scale_ptr, SIGMOID: tl.constexpr, CROSS_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, d = (r * M + m) * D, tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, D, BLOCK):
        at, mask = start + first + d, d < D - first
        x = tl.load(logits_ptr + at, mask=mask, other=0).to(tl.float32)
        t = tl.load(target_ptr + at, mask=mask, other=0).to(tl.float32)
        term, grad = reconstructed(x, t, M, scale_ptr, SIGMOID, CROSS_ENTROPY)
        total += tl.where(mask, term, 0)
        tl.store(grad_ptr + at, grad.to(grad_ptr.dtype.element_ty), mask=mask)
    tl.store(terms_ptr + r * terms_r + m, tl.sum(total, 0) / M)


@triton.jit
def _judge_kernel(
    h_ptr,  # of each network: [R, M, H], the discriminator's last hidden layer
    w_ptr,  # likewise, as all that follow: [R, H]
    b_ptr,  # float32 [R]
    grad_ptr,  # [R, M], gradient of the logits
    below_ptr,  # [R, M, H], gradient of the hidden layer before its ReLU
    terms_ptr,  # float32, rows [R, M]
    strides,  # from one replica to the next in h, w, grad, below and terms
    pitches,  # from one row to the next in h and below
    M, REAL, scale_ptr, H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m, r, q = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    k = tl.arange(0, BLOCK)
    h = tl.load(of(h_ptr, q) + r * strides[0] + m * pitches[0] + k, mask=k < H, other=0).to(tl.float32)
    w = tl.load(of(w_ptr, q) + r * strides[1] + k, mask=k < H, other=0).to(tl.float32)
    logit = tl.sum(h * w, 0) + tl.load(of(b_ptr, q) + r)
    real = (m < REAL).to(tl.float32)
    scale = 1 / M if scale_ptr is None else tl.load(scale_ptr) / M
    grad = ((tl.sigmoid(logit) - real) * scale).to(grad_ptr[0].dtype.element_ty)
    tl.store(of(grad_ptr, q) + r * strides[2] + m, grad)
    tl.store(of(terms_ptr, q) + r * strides[4] + m, softplus((1 - 2 * real) * logit) / M)
    below = tl.where(h > 0, grad.to(tl.float32) * w, 0).to(below_ptr[0].dtype.element_ty)
    tl.store(of(below_ptr, q) + r * strides[3] + m * pitches[1] + k, below, mask=k < H)


@triton.jit
def _classes_kernel(
    code_ptr, grad_ptr,  # [R, M, K], rows and replicas apart: logits, or probabilities, and their gradient
    labels_ptr,  # int64 [R, M]
    terms_ptr,  # float32, rows [R, M]
    strides,  # from one replica and one row to the next in code, the same in grad, from one replica in terms
    M, K, scale_ptr, WHAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k = tl.arange(0, BLOCK)
    code_ptr += r * strides[0] + m * strides[1] + k
    grad_ptr += r * strides[2] + m * strides[3] + k
    x = tl.load(code_ptr, mask=k < K, other=-float("inf") if WHAT != "backward" else 0).to(tl.float32)
    if WHAT == "backward":
        grad = tl.load(grad_ptr, mask=k < K, other=0).to(tl.float32)
        grad = (grad - tl.sum(grad * x, 0)) * x
        tl.store(grad_ptr, grad.to(grad_ptr.dtype.element_ty), mask=k < K)
    else:
        shifted = x - tl.max(x, 0)
        e = tl.exp(shifted)
        total = tl.sum(e, 0)
        p = e / total
        if WHAT == "softmax":
            tl.store(code_ptr, p.to(code_ptr.dtype.element_ty), mask=k < K)
        else:
            hit = k == tl.load(labels_ptr + r * M + m)
            loss = tl.log(total) - tl.sum(tl.where(hit, shifted, 0), 0)
            tl.store(terms_ptr + r * strides[4] + m, loss / M)
            scale = 1 / M if scale_ptr is None else tl.load(scale_ptr) / M
            grad = (p - hit.to(tl.float32)) * scale
            tl.store(grad_ptr, grad.to(grad_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def _finish_kernel(
    terms_ptr,  # float32 [P, R, T]
    losses_ptr,  # float32 [S, P, R]
    slot_ptr,  # int64 [P, R]: each program reads and writes its own
    count_ptr,  # int64 [2]
    scale_ptr,  # float32 [3], or None
    T, BLOCK: tl.constexpr,
):  # fmt: skip
    n, t = tl.program_id(0), tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(0, T, BLOCK):
        total += tl.load(terms_ptr + n.to(tl.int64) * T + k + t, mask=t < T - k, other=0)
    slot = tl.load(slot_ptr + n)
    tl.store(losses_ptr + slot * tl.num_programs(0) + n, tl.sum(total, 0))
    tl.store(slot_ptr + n, slot + 1)
    if n == 0:
        c = tl.arange(0, 2)
        tl.store(count_ptr + c, tl.load(count_ptr + c) + 1)
        if scale_ptr is not None:
            scale, good = tl.load(scale_ptr), tl.load(scale_ptr + 2) + 1
            if tl.load(scale_ptr + 1) > 0:
                scale, good = scale / 2, good * 0
            if good == 2000:
                scale, good = scale * 2, good * 0
            tl.store(scale_ptr, tl.minimum(tl.maximum(scale, 1), 16777216))
            tl.store(scale_ptr + 1, 0.0)
            tl.store(scale_ptr + 2, good)


def reconstruction_loss(
    logits: Tensor, target: Tensor, grad: Tensor, terms: Tensor, output: str, loss: str, scale: Tensor | None = None
) -> None:
    """As reference.reconstruction_loss, but logits stay."""
    r, m, d = logits.shape
    options = {"SIGMOID": output == "sigmoid", "CROSS_ENTROPY": loss == "cross_entropy", "num_warps": 4}
    args = (logits, target, grad, terms, terms.stride(0), m, d, scale)
    _reconstruction_kernel[(m, r)](*args, BLOCK=min(1024, triton.next_power_of_2(d)), **options)


def judge(
    hidden: Tensor, layer: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor], below: Tensor, terms: Tensor,
    real: int, scale: Tensor | None = None, others: Sequence[tuple] = (),
) -> None:  # fmt: skip
    """As reference.judge, but logits are not written. Others: as layers.linear's."""
    (r, m, h), block, (weight, bias), grad = hidden.shape, triton.next_power_of_2(hidden.shape[2]), layer, out[1]
    strides = tuple(t.stride(0) for t in (hidden, weight, grad, below, terms))
    pitches = (hidden.stride(1), below.stride(1))
    some = [(h, *layer, out[1], below, terms) for h, layer, out, below, terms, *_ in others]
    tensors = zip((hidden, weight, bias, grad, below, terms), *some, strict=True)
    _judge_kernel[(m, r, 1 + len(some))](*tensors, strides, pitches, m, real, scale, h, BLOCK=block, num_warps=4)


def softmax_(y: Tensor) -> None:
    """As reference.softmax_."""
    _classes(y, y, None, None, None, "softmax")


def softmax_backward_(grad: Tensor, y: Tensor) -> None:
    """As reference.softmax_backward_."""
    _classes(y, grad, None, None, None, "backward")


def softmax_cross_entropy(
    logits: Tensor, labels: Tensor, grad: Tensor, terms: Tensor, scale: Tensor | None = None
) -> None:
    """As reference.softmax_cross_entropy."""
    _classes(logits, grad, labels, terms, scale, "cross-entropy")


def _classes(
    code: Tensor, grad: Tensor, labels: Tensor | None, terms: Tensor | None, scale: Tensor | None, what: str
) -> None:
    r, m, k = code.shape
    strides = (*code.stride()[:2], *grad.stride()[:2], 0 if terms is None else terms.stride(0))
    args = (code, grad, labels, terms, strides, m, k, scale)
    _classes_kernel[(m, r)](*args, WHAT=what, BLOCK=triton.next_power_of_2(k), num_warps=1)


def finish(terms: Tensor, losses: Tensor, slot: Tensor, count: Tensor, scale: Tensor | None = None) -> None:
    """As reference.finish: a program for each phase and replica."""
    p, r, t = terms.shape
    block = min(1024, triton.next_power_of_2(t))
    _finish_kernel[(p * r,)](terms, losses, slot, count, scale, t, BLOCK=block, num_warps=max(1, block // 256))

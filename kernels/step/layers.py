"""Linear layers on tensor cores: forward, gradient of the input, and gradient of the weight with the optimiser in it.

Shapes as in reference.py: R replicas, weights [R, O, I]. Products take bf16 or fp16 operands and sum in float32. What
is learned stays float32; `shadow`, its 16-bit copy that products read, is written by the kernel that updates it.

  forward   out = relu(x shadowᵀ + bias)
  backward  out = (grad shadow) where the input's ReLU was open
            Both may leave what their tiles add to a layer of few outputs, and sum what was left: engine/folding.py.
  update    For up to six layers in one launch: gradᵀ x, in float32, goes from registers into SGD with momentum or
            Adam; no gradient is stored. 18 bytes move per parameter (Adam 26): this is most of a step's traffic.

Programs are tiles of the output. Sizes and row pitches are constants of the compiled code: Triton knows of an argument
only whether 16 divides it, and widths like 1000 are multiples of 8, so that as arguments they cost 16-bit loads and
spills. Rows of weights and hidden layers start at sectors of memory: see kernels.zeros. What meets a product at its
end, a bias, a mask (where registers allow), the optimiser's state, is loaded before it. Tiles were chosen by time on an
H200. Slower there (bench/LOG.md): programmatic dependent launch, updates by strips of tiles, with or without the next
one's state on its way.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import INTERPRETED as _INTERPRETED
from .. import capability

INTERPRETED = tl.constexpr(_INTERPRETED)  # whose products know no bf16


@triton.jit
def _dot(a, b, acc):
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def of(pointers, q):
    """That of network q, of the pointers of one or more."""
    chosen = pointers[0]
    for j in tl.static_range(1, len(pointers)):
        chosen = tl.where(q == j, pointers[j], chosen)
    return chosen


@triton.jit
def _summed(sums_ptr, r, m, M, T: tl.constexpr):
    """Rows m [BM, 16] of what a layer of few outputs gives, from partial sums [R, T, M, 16], many tiles at once."""
    tiles: tl.constexpr = 512 // m.shape[0]
    t, c = tl.arange(0, tiles)[:, None, None], tl.arange(0, 16)[None, None, :]
    at, live = (t * M + m[None, :, None]) * 16 + c, ((m >= 0) & (m < M))[None, :, None]
    total = tl.zeros([m.shape[0], 16], tl.float32)
    for first in tl.static_range(0, T, tiles):
        start = sums_ptr + (r * T + first) * M * 16
        total += tl.sum(tl.load(start + at, mask=live & (t < T - first), other=0), 0)
    return _as_loaded(total)


@triton.jit
def _leave(y, then, r, tile, tiles, m, n, M, N):
    """Of what a layer of up to 16 outputs will make of rows y [BM, BN], the partial sums that these columns give.
    then: its weight, 16-bit, from replica to replica, output to output, column to column; partial sums; outputs."""
    c = tl.arange(0, 16)
    at = r * then[1] + c[None, :] * then[2] + n[:, None] * then[3]
    w = tl.load(then[0] + at, mask=(n < N)[:, None] & (c < then[5])[None, :], other=0)
    part = _dot(y, w, tl.zeros([y.shape[0], 16], tl.float32))
    tl.store(then[4] + ((r * tiles + tile) * M + m[:, None]) * 16 + c[None, :], part, mask=(m < M)[:, None])


@triton.jit
def reconstructed(x, target, M, scale_ptr, SIGMOID: tl.constexpr, CROSS_ENTROPY: tl.constexpr):
    """The terms of the reconstruction loss of logits x, and their gradient: see reference.reconstruction_loss."""
    y = tl.sigmoid(x) if SIGMOID else x
    grad = y - target
    if CROSS_ENTROPY:
        term = softplus(x) - x * target
    else:
        term = 0.5 * grad * grad
        if SIGMOID:
            grad *= y * (1 - y)
    return term, grad * (1 / M if scale_ptr is None else tl.load(scale_ptr) / M)


@triton.jit
def softplus(x):
    return tl.maximum(x, 0) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _second(a, b):
    return b


@triton.jit
def _as_loaded(acc):
    """A product [M, N] in the layout in which tensors are loaded.

    Left alone, the compiler brings everything that meets a product to the layout of the tensor core, and waits for it
    as soon as it is loaded. It does not carry that layout through a scan, and one along an axis of one element changes
    nothing: so what was loaded early stays as it is and the product is moved, once, as its store needs anyhow.
    """
    if INTERPRETED:  # where nothing has a layout, and a scan takes a second for four tiles
        return acc
    else:
        moved = tl.associative_scan(tl.reshape(acc, [acc.shape[0], acc.shape[1], 1]), 2, _second)
        return tl.reshape(moved, [acc.shape[0], acc.shape[1]])


@triton.jit
def _forward_kernel(
    x_ptr,  # of each network: [R, M, K], 16-bit or float32
    w_ptr,  # likewise, as all that follow: [R, N, K], 16-bit
    b_ptr,  # float32 [R, N]
    out_ptr,  # [R, M, N]
    then,  # None; or see _leave; or of a loss: target [R, M, N], terms and their replicas' pitch, scale or None
    sums,  # None, or of the last M' rows of x: partial sums float32 [R, T, M', 16], bias float32 [R, K], and M'
    strides,  # from one replica to the next in x, w and out
    M, X_M: tl.constexpr, W_N: tl.constexpr, OUT_M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    RELU: tl.constexpr, LOSS: tl.constexpr, T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    pid, r, q = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    tiles: tl.constexpr = (N + BN - 1) // BN
    m, n, k = pid // tiles * BM + tl.arange(0, BM), pid % tiles * BN + tl.arange(0, BN), tl.arange(0, BK)
    x_ptr = of(x_ptr, q) + r * strides[0] + (m[:, None] * X_M + k[None, :])
    w_ptr = of(w_ptr, q) + r * strides[1] + (n[:, None] * W_N + k[None, :])
    bias = tl.load(of(b_ptr, q) + r * N + n, mask=n < N, other=0)  # on its way during the product
    acc, mask = tl.zeros([BM, BN], tl.float32), (m < M)[:, None] & (n < N)[None, :]
    if sums is None:
        for start in range(0, K, BK):
            x = tl.load(x_ptr + start, mask=(m < M)[:, None] & (k < K - start)[None, :], other=0)
            w = tl.load(w_ptr + start, mask=(n < N)[:, None] & (k < K - start)[None, :], other=0)
            acc = _dot(x.to(w.dtype), w.T, acc)
    else:  # which the first tile of columns stores
        first, inside = M - sums[2], (m < M)[:, None] & (k < K)[None, :]
        w = tl.load(w_ptr, mask=(n < N)[:, None] & (k < K)[None, :], other=0)
        x = tl.load(x_ptr, mask=inside & (m < first)[:, None], other=0).to(tl.float32)
        total = _summed(sums[0], r, m - first, sums[2], T) + tl.load(sums[1] + r * K + k, mask=k < K, other=0)[None, :]
        x = tl.where((m < first)[:, None], x, total)
        if pid % tiles == 0:
            tl.store(x_ptr, x.to(x_ptr.dtype.element_ty), mask=inside & (m >= first)[:, None])
        acc = _dot(x.to(w.dtype), w.T, acc)
    acc += bias[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0, acc)  # NaN stays
    out_ptr = of(out_ptr, q) + r * strides[2] + (m[:, None] * OUT_M + n[None, :])
    if LOSS is not None:
        target = tl.load(then[0] + (r * M + m[:, None]) * N + n[None, :], mask=mask, other=0).to(tl.float32)
        term, acc = reconstructed(acc, target, M, then[3], LOSS[0], LOSS[1])
        term = tl.sum(tl.where(mask, term, 0), 1) / M
        tl.store(then[1] + r * then[2] + pid % tiles * M + m, term, mask=m < M)
    y = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr, y, mask=mask)
    if LOSS is None and then is not None:
        _leave(y, then, r, pid % tiles, tiles, m, n, M, N)


@triton.jit
def _backward_kernel(
    g_ptr,  # of each network: [R, M, K], gradient of the output
    w_ptr,  # likewise, as all that follow: [R, K, N], 16-bit
    a_ptr,  # [R, M, N], the layer's input; or None
    out_ptr,  # [R, M, N]
    then,  # None, or see _leave
    sums,  # None, or of g: partial sums float32 [R, T, M, 16]
    strides,  # from one replica to the next in g, w, a and out
    M, G_M: tl.constexpr, W_K: tl.constexpr, A_M: tl.constexpr, OUT_M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    pid, r, q = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    tiles: tl.constexpr = (N + BN - 1) // BN
    m, n, k = pid // tiles * BM + tl.arange(0, BM), pid % tiles * BN + tl.arange(0, BN), tl.arange(0, BK)
    mask = (m < M)[:, None] & (n < N)[None, :]
    g_ptr = of(g_ptr, q) + r * strides[0] + (m[:, None] * G_M + k[None, :])
    w_ptr = of(w_ptr, q) + r * strides[1] + (k[:, None] * W_K + n[None, :])
    early: tl.constexpr = a_ptr is not None and BM * BN <= 4096  # a larger tile has no registers left for it
    if early:
        a = tl.load(of(a_ptr, q) + r * strides[2] + (m[:, None] * A_M + n[None, :]), mask=mask, other=0)
    acc = tl.zeros([BM, BN], tl.float32)
    if sums is None:
        for start in range(0, K, BK):
            g = tl.load(g_ptr + start, mask=(m < M)[:, None] & (k < K - start)[None, :], other=0)
            w = tl.load(w_ptr + start * W_K, mask=(k < K - start)[:, None] & (n < N)[None, :], other=0)
            acc = _dot(g.to(w.dtype), w, acc)
    else:
        w = tl.load(w_ptr, mask=(k < K)[:, None] & (n < N)[None, :], other=0)
        g = _summed(sums, r, m, M, T).to(w.dtype)
        if pid % tiles == 0:
            tl.store(g_ptr, g.to(g_ptr.dtype.element_ty), mask=(m < M)[:, None] & (k < K)[None, :])
        acc = _dot(g, w, acc)
    if early:
        acc = tl.where(a > 0, _as_loaded(acc), 0)
    elif a_ptr is not None:
        a = tl.load(of(a_ptr, q) + r * strides[2] + (m[:, None] * A_M + n[None, :]), mask=mask, other=0)
        acc = tl.where(a > 0, acc, 0)
    out_ptr = of(out_ptr, q) + r * strides[3] + (m[:, None] * OUT_M + n[None, :])
    y = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr, y, mask=mask)
    if then is not None:
        _leave(y, then, r, pid % tiles, tiles, m, n, M, N)


@triton.jit
def _update_kernel(
    tensors,  # of each layer: x, grad, weight, bias, shadow, and the state of weight and bias: one or two tensors each
    strides,  # of each layer: from one replica to the next in x, grad and shadow
    rate_ptr,  # float32 [R]
    correction_ptr,  # float32 [3], Adam's, or None
    scale_ptr,  # float32 [3]: of the gradients, whether one was not finite, a counter; or None
    momentum,  # SGD's, or float32 [R]
    M,
    SHAPES: tl.constexpr,  # of each layer: O, I, pitch of grad, x and shadow, first program, programs for the weight
    BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr,
    ROWS: tl.constexpr,  # M to a multiple of BM
    POLICY: tl.constexpr,
):  # fmt: skip
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    how = tl.load(rate_ptr + r), correction_ptr, scale_ptr, own(momentum, r)
    for j in tl.static_range(len(SHAPES)):
        tile = pid - SHAPES[j][5]
        if SHAPES[j][6] > 0:
            if (tile >= 0) & (tile < SHAPES[j][6]):
                _update_weight(tile, r, tensors[j], strides[j], how, M, *SHAPES[j][:5], BO, BI, BM, ROWS, POLICY)
        if (tile >= SHAPES[j][6]) & (tile < SHAPES[j][6] + (SHAPES[j][0] + BO - 1) // BO):
            _update_bias(tile - SHAPES[j][6], r, tensors[j], strides[j], how, M, *SHAPES[j][:3], BO, BM, ROWS, POLICY)


@triton.jit
def own(value, r):
    """A replica's value of what is one number for all, or a pointer to numbers [R]."""
    if isinstance(value, float):  # as it is in the interpreter
        return value
    elif value.dtype.is_ptr():
        return tl.load(value + r)
    else:
        return value


@triton.jit
def _update_weight(
    tile, r, tensors, strides, how, M, N_O: tl.constexpr, N_I: tl.constexpr,
    G_M: tl.constexpr, X_M: tl.constexpr, S_O: tl.constexpr,
    BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    x_ptr, g_ptr, w_ptr, _, s_ptr, state, _ = tensors
    tiles: tl.constexpr = (N_I + BI - 1) // BI
    o, i, b = tile // tiles * BO + tl.arange(0, BO), tile % tiles * BI + tl.arange(0, BI), tl.arange(0, BM)
    at, mask = o[:, None] * N_I + i[None, :], (o < N_O)[:, None] & (i < N_I)[None, :]
    before = _loaded(w_ptr, state, r * N_O * N_I, at, mask, POLICY)  # on its way while the gradient is computed
    x_ptr += r * strides[0] + b[:, None] * X_M + i[None, :]
    g_ptr += r * strides[1] + b[:, None] * G_M + o[None, :]
    acc = tl.zeros([BO, BI], tl.float32)
    for start in range(0, ROWS, BM):
        x = tl.load(x_ptr + start * X_M, mask=(b < M - start)[:, None] & (i < N_I)[None, :], other=0)
        g = tl.load(g_ptr + start * G_M, mask=(b < M - start)[:, None] & (o < N_O)[None, :], other=0)
        acc = _dot(g.T, x.to(g.dtype), acc)
    w, mask = _stepped(_as_loaded(acc), before, w_ptr, state, r * N_O * N_I, at, mask, how, POLICY)
    s_ptr += r * strides[2] + (o[:, None] * S_O + i[None, :])
    tl.store(s_ptr, w.to(s_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _update_bias(
    block, r, tensors, strides, how, M, N_O: tl.constexpr, N_I: tl.constexpr, G_M: tl.constexpr,
    BO: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    _, g_ptr, _, b_ptr, _, _, state = tensors
    o, b = block * BO + tl.arange(0, BO), tl.arange(0, BM)
    before = _loaded(b_ptr, state, r * N_O, o, o < N_O, POLICY)
    g_ptr += r * strides[1] + b[:, None] * G_M + o[None, :]
    total = tl.zeros([BO], tl.float32)
    for start in range(0, ROWS, BM):
        g = tl.load(g_ptr + start * G_M, mask=(b < M - start)[:, None] & (o < N_O)[None, :], other=0)
        total += tl.sum(g.to(tl.float32), 0)
    _stepped(total, before, b_ptr, state, r * N_O, o, o < N_O, how, POLICY)


@triton.jit
def _loaded(w_ptr, state, start, at, mask, POLICY: tl.constexpr):
    """Parameters and their state: SGD's momentum, or Adam's two moments."""
    w = tl.load(w_ptr + start + at, mask=mask, other=0, eviction_policy=POLICY)
    first = tl.load(state[0] + start + at, mask=mask, other=0, eviction_policy=POLICY)
    second = first
    if len(state) > 1:
        second = tl.load(state[1] + start + at, mask=mask, other=0, eviction_policy=POLICY)
    return w, first, second


@triton.jit
def _stepped(grad, before, w_ptr, state, start, at, mask, how, POLICY: tl.constexpr):
    """Write new parameters and their state. Returns: the new ones, and where."""
    w, first, second = before
    rate, correction_ptr, scale_ptr, momentum = how
    if scale_ptr is not None:
        grad = grad / tl.load(scale_ptr)
        finite = tl.abs(grad) < float("inf")
        tl.store(scale_ptr + 1 + 0 * at, 1.0, mask=mask & ~finite)
        mask = mask & finite
    if correction_ptr is None:
        first = momentum * first + grad
        w -= rate * first
    else:
        first += 0.1 * (grad - first)
        second = 0.999 * second + 0.001 * grad * grad
        tl.store(state[1] + start + at, second, mask=mask, eviction_policy=POLICY)
        w -= rate / tl.load(correction_ptr) * first / (tl.sqrt(second / tl.load(correction_ptr + 1)) + 1e-8)
    tl.store(state[0] + start + at, first, mask=mask, eviction_policy=POLICY)
    tl.store(w_ptr + start + at, w, mask=mask, eviction_policy=POLICY)
    return w, mask


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, relu: bool, others: Sequence[tuple] = (),
    then: tuple = (), sums: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """As reference.linear, and more in the same launch.

    Args:
        others: the same arguments of other networks, alike().
        then: the weight of the next layer, of up to 16 outputs, and partial_sums() of these, which are filled; or, of a
            loss, the target, terms [R, T * B], scale, and whether it is of a sigmoid, and cross-entropy: out is then
            its gradient.
        sums: such partial sums of the last rows of x, which are filled, and the bias of the layer that x is of.
    """
    (r, m, k), n = x.shape, weight.shape[1]
    _fits(x, out)
    config, loss, parts = tiling(r, m, n, k, capability(weight), 1 + len(others)), None, 0
    grid = (triton.cdiv(m, config["BM"]) * triton.cdiv(n, config["BN"]), r, 1 + len(others))
    replica, row, _ = zip(*(t.stride() for t in (x, weight, out)), strict=True)
    tensors = zip((x, weight, bias, out), *others, strict=False)
    if len(then) > 2:
        target, terms, scale, *loss = then
        then = (target, terms, terms.stride(0), scale)
    elif then:
        then = (then[0], *then[0].stride(), then[1], then[0].shape[1])
    if sums is not None:
        parts, sums = sums[0].shape[1], (*sums, sums[0].shape[2])
    loss = loss and tuple(loss)
    _forward_kernel[grid](*tensors, then or None, sums, replica, m, *row, n, k, relu, loss, parts, **config)


def linear_backward(
    grad: Tensor, weight: Tensor, out: Tensor, activation: Tensor | None, others: Sequence[tuple] = (),
    then: tuple[Tensor, Tensor] | None = None, sums: Tensor | None = None,
) -> None:  # fmt: skip
    """As reference.linear_backward, and more in the same launch: see linear(), but that what comes next is the gradient
    of the input of the layer below, and what is summed that of the output."""
    (r, m, k), n, a = grad.shape, weight.shape[2], out if activation is None else activation
    _fits(grad, a, out)
    config = tiling(r, m, n, k, capability(weight), 1 + len(others))
    grid = (triton.cdiv(m, config["BM"]) * triton.cdiv(n, config["BN"]), r, 1 + len(others))
    replica, row, _ = zip(*(t.stride() for t in (grad, weight, a, out)), strict=True)
    grads, weights, outs, activations = zip((grad, weight, out, activation), *others, strict=True)
    some = (grads, weights, None if activation is None else activations, outs)
    if then is not None:
        below, left = then
        then = (below, below.stride(0), below.stride(2), below.stride(1), left, below.shape[2])
    parts = 0 if sums is None else sums.shape[1]
    _backward_kernel[grid](*some, then, sums, replica, m, *row, n, k, parts, **config)


def partial_sums(weight: Tensor, rows: int, outputs: int) -> Tensor:
    """Room for what linear() and linear_backward() leave of a product [R, rows, .] with so many outputs."""
    r, n, k = weight.shape
    columns = tiling(r, rows, outputs, n + k - outputs, capability(weight))["BN"]
    return weight.new_zeros(r, triton.cdiv(outputs, columns), rows, 16, dtype=torch.float32)


def update(
    layers: Sequence[tuple], rate: Tensor, correction: Tensor | None, momentum: float | Tensor = 0.0,
    scale: Tensor | None = None, others: Sequence[tuple] = (),
) -> None:  # fmt: skip
    """As reference.update. Others: as linear's, with the same rate, correction, momentum and scale."""
    layers = [*layers, *(layer for other in others for layer in other[0])]
    r, m, _ = layers[0][0].shape
    _fits(*(t for x, grad, *_ in layers for t in (x, grad)))
    config = updating(r, m, correction is not None or scale is not None, capability(rate))
    for start in range(0, len(layers), 6):
        some, shapes, first = layers[start : start + 6], [], 0
        for x, grad, _, _, shadow, *_ in some:
            blocks = triton.cdiv(grad.shape[2], config["BO"])
            tiles = blocks * triton.cdiv(x.shape[2], config["BI"])
            pitches = (grad.stride(1), x.stride(1), shadow.stride(1))
            shapes.append((grad.shape[2], x.shape[2], *pitches, first, tiles))
            first += tiles + blocks
        strides = tuple((x.stride(0), grad.stride(0), shadow.stride(0)) for x, grad, _, _, shadow, *_ in some)
        args = (tuple(some), strides, rate, correction, scale, momentum, m, tuple(shapes))
        _update_kernel[(first, r)](*args, **config)


def _fits(*tensors: Tensor) -> None:
    """Offsets within a replica are 32-bit numbers."""
    for t in tensors:
        if t.shape[1] * t.stride(1) >= 2**31:
            raise ValueError(f"{t.shape[1]} rows of a batch, {t.stride(1)} apart: ask for a smaller batch_size")


def tiling(r: int, m: int, n: int, k: int, generation: int, networks: int = 1) -> dict[str, int]:
    """Tile and pipeline of a product [r, m, k] x [r, k, n] on a GPU of this capability(), by time on an H200. Networks
    in one launch have the tile, and so the bits, of one alone."""
    bm, bn, bk, warps, stages = 64, 32, 64, 4, 4
    if n <= 64:
        bm, bn, bk, stages = 16, max(16, triton.next_power_of_2(n)), 256 if generation < 10 else 128, 3
    elif k <= 32:
        bm, bn, bk, stages = (32, 128, 32, 1) if r > 4 else (16, 64, 32, 1)
    elif r > 4:
        bm, bn, warps = 128, 128, 8
        programs = networks * r * triton.cdiv(m, bm) * triton.cdiv(n, bn)
        # All at once, one to a multiprocessor, or two, of half the shared memory; others than 9 and 10 may have less.
        stages = 6 if programs <= 132 and generation in (9, 10) else 3
    elif r > 1:
        bn = 64
    least = max(16, triton.next_power_of_2(k))
    return {"BM": bm, "BN": bn, "BK": min(bk, least), "num_warps": warps, "num_stages": stages if k > bk else 1}


def updating(r: int, m: int, wide: bool, generation: int) -> dict[str, int | str]:
    """Tile of an update from m rows; wide: with more to hold than SGD has. generation: see capability()."""
    rows, stages = (min(128, triton.next_power_of_2(max(m, 16))), 1) if m <= 128 else (32, 6)  # 160 rows on their way
    policy = "evict_first" if r == 1 else ""  # of a single replica, weights and activations stay in the L2 cache
    config = {"BO": 64, "BI": 64, "BM": rows, "ROWS": triton.cdiv(m, rows) * rows, "POLICY": policy}
    config |= {"num_warps": 8, "num_stages": stages}
    return config if wide or generation < 9 else config | {"maxnreg": 80}  # three programs fit a multiprocessor

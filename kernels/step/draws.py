"""What a step draws: batches with noise, and prior samples.

Random numbers come from Philox 4x32-10 (Salmon et al. 2011), a pure function of where they are used: key = the
replica's seed, counter = (element, stream, steps done before, 0). A step draws the same numbers whenever and beside
whatever replicas it runs. The twin of that is in tests/test_step_kernels.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from .layers import own

NOISE, LABELED_NOISE, PRIOR, CLASSES = (tl.constexpr(k) for k in range(4))  # streams


@triton.jit
def _normal(seed, step, element, stream):
    """Box-Muller of 24 bits each, of which the first are never zero."""
    a, b, _, _ = tl.philox(seed, element, stream, step, 0)
    u = ((a >> 8).to(tl.float32) + 1) * (1 / 16777216)
    v = (b >> 8).to(tl.float32) * (6.283185307179586 / 16777216)
    return tl.sqrt(-2 * tl.log(u)) * tl.cos(v)


@triton.jit
def _draw_kernel(
    data_ptr,  # [N, D], uint8 or floats
    y_ptr,  # int64 [N], or None: nothing is labelled
    count_ptr,  # int64 [2], steps done in this epoch and in all
    seeds_ptr,  # int64 [R]
    order_ptr,  # int32 [R, L]
    clean_ptr,  # [R, B, D], or None: noisy has no noise
    noisy_ptr,  # [R, B, D]
    labeled_order_ptr,  # int32 [R, LABELED_L]
    labeled_ptr,  # [R, LABELED, D]
    labels_ptr,  # int64 [R, LABELED]
    codes_ptr,  # [R, B, Z + K], replicas apart
    codes_r,
    noise,  # of all replicas, or float32 [R]
    std,  # likewise
    B, L, LABELED, LABELED_L, D: tl.constexpr, Z: tl.constexpr, K: tl.constexpr,
    NOISY: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    noise, std = own(noise, r), own(std, r)
    seed, done, step = tl.load(seeds_ptr + r), tl.load(count_ptr), tl.load(count_ptr + 1).to(tl.uint32)
    if pid < B:
        row = tl.load(order_ptr + r * L + done * B + pid).to(tl.int64)
        _image(data_ptr, row, clean_ptr, noisy_ptr, r * B + pid, seed, step, pid, NOISE, noise, D, NOISY, BLOCK)
    elif pid < B + LABELED:
        if y_ptr is not None:
            k = pid - B
            to = r * LABELED + k
            row = tl.load(labeled_order_ptr + r * LABELED_L + done * LABELED + k).to(tl.int64)
            _image(data_ptr, row, None, labeled_ptr, to, seed, step, k, LABELED_NOISE, noise, D, NOISY, BLOCK)
            tl.store(labels_ptr + to, tl.load(y_ptr + row))
    else:
        b, c = (pid - B - LABELED) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
        value = std * _normal(seed, step, b[:, None] * Z + c[None, :], PRIOR)
        if K > 0:
            drawn, _, _, _ = tl.philox(seed, b, CLASSES, step, 0)
            label = tl.umulhi(drawn, tl.full([ROWS], K, tl.uint32)).to(tl.int32)
            value = tl.where((c < Z)[None, :], value, (c[None, :] - Z == label[:, None]).to(tl.float32))
        at = codes_ptr + r * codes_r + b[:, None] * (Z + K) + c[None, :]
        tl.store(at, value.to(codes_ptr.dtype.element_ty), mask=(b < B)[:, None] & (c < Z + K)[None, :])


@triton.jit
def _image(
    data_ptr, row, clean_ptr, noisy_ptr, to, seed, step, b, STREAM: tl.constexpr, noise,
    D: tl.constexpr, NOISY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        x = tl.load(data_ptr + row * D + d, mask=d < D, other=0).to(tl.float32)
        if data_ptr.dtype.element_ty == tl.uint8:
            x = tl.div_rn(x, 255.0)  # as everywhere else, to the last bit
        if clean_ptr is not None:
            tl.store(clean_ptr + to * D + d, x.to(clean_ptr.dtype.element_ty), mask=d < D)
        if NOISY:
            x += noise * _normal(seed, step, b * D + d, STREAM)
        tl.store(noisy_ptr + to * D + d, x.to(noisy_ptr.dtype.element_ty), mask=d < D)


def draw(
    data: tuple[Tensor, Tensor | None], count: Tensor, seeds: Tensor, images: tuple[Tensor, Tensor | None, Tensor],
    noise: float | Tensor, prior: tuple[Tensor, float | Tensor, int],
    labeled: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Everything random of a step, in one launch.

    noisy [R, B, D] = the step's rows of data in the given order, scaled to [0, 1], plus noise N(0, noise²); clean the
    same without noise. codes [R, B, z + K]: N(0, std²) in z columns, then a one-hot vector of a uniform class.

    Args:
        data: [N, D], uint8 or floats, and labels, int64 [N], or None where nothing is labelled.
        count: int64 [2], steps done in this epoch and in all.
        seeds: int64 [R].
        noise: of all replicas, or [R, 1, 1]; that of priors likewise.
        images: order, int32 [R, L], rows of data; clean, None where there is no noise and noisy holds all; noisy.
        prior: codes, std and z.
        labeled: an order, and where to put its batch [R, B', D] and labels [R, B'], int64.
    """
    (order, clean, noisy), (codes, std, z) = images, prior
    (r, b, d), width = noisy.shape, triton.next_power_of_2(codes.shape[2])
    rows = max(1, 256 // width)
    labeled_order, labeled_images, labels = labeled or (order, noisy, count)
    n = labeled_images.shape[1] if labeled else 0
    args = (*data, count, seeds, order, clean, noisy, labeled_order, labeled_images, labels, codes, codes.stride(0))
    args = (*args, noise, std, b, order.shape[1], n, labeled_order.shape[1], d, z, codes.shape[2] - z)
    options = {"BLOCK": min(1024, triton.next_power_of_2(d)), "ROWS": rows, "WIDTH": width}
    options["NOISY"] = isinstance(noise, Tensor) or noise > 0
    _draw_kernel[(b + n + triton.cdiv(b, rows), r)](*args, **options, num_warps=4)

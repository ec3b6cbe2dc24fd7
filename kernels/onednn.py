"""Linear layers in float32 on the CPU by oneDNN, which every x86 build of PyTorch contains.

PyTorch itself hands float32 products to MKL, which runs its AVX2 code on AMD processors. oneDNN compiles for the
processor it finds: on two cores of a Zen 5 460 against 213 GFLOP/s (bench/LOG.md). Its products return a new tensor, so
what follows (ReLU and its mask, the weight update) writes into the step's buffers and nothing is copied for its own
sake. Small layers, other dtypes and devices are left to reference.py: see choose_products().
"""

from collections.abc import Sequence

import torch
from torch import Tensor

AVAILABLE = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
SMALLEST = 2**15  # weights of a layer from which on a call of oneDNN is worth its overhead of about 20 us
SMALLEST_THREADED = 80_000  # the same on several threads, which share the rows in oneDNN, but the replicas in MKL
SMALLEST_BACKWARD = 2**12  # the same for gradients of inputs, where MKL is slow at few inputs


def fits(t: Tensor) -> bool:
    """Whether products of t can be computed here."""
    return AVAILABLE and t.dtype == torch.float32 and t.device.type == "cpu"


def takes(weight: Tensor, backward: bool = False) -> bool:
    """Whether the products of a layer of weight [R, O, I], or those of its inputs' gradients, are computed here."""
    o, i = weight.shape[1:]
    smallest = SMALLEST if torch.get_num_threads() == 1 else SMALLEST_THREADED
    if backward and (smallest == SMALLEST or i < 32):
        smallest = SMALLEST_BACKWARD
    return o * i >= smallest and fits(weight)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a bᵀ + bias, a new tensor [M, N] from a [M, K], b [N, K] of any strides, bias [N], all of which fit."""
    if not (b.is_contiguous() or b.T.is_contiguous()):
        b = b.contiguous()  # rows with gaps between them would be left to oneDNN's reference loop, 1,000 times slower
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, relu: bool) -> None:
    """As reference.linear."""
    for r in range(len(weight)):
        y = product(x[r], weight[r], bias[r, 0])
        if relu:
            torch.clamp_min(y, 0, out=out[r])
        else:
            out[r].copy_(y)


def linear_backward(grad: Tensor, weight: Tensor, out: Tensor, activation: Tensor | None) -> None:
    """As reference.linear_backward."""
    for r in range(len(weight)):
        g = product(grad[r], weight[r].T)
        if activation is None:
            out[r].copy_(g)
        else:
            torch.ops.aten.threshold_backward.grad_input(g, activation[r], 0, grad_input=out[r])


def update(
    layers: Sequence[tuple], rate: Tensor, correction: Tensor | None, momentum: float | Tensor = 0.0,
    scale: Tensor | None = None, large: bool = True,
) -> None:  # fmt: skip
    """As reference.update, but for a gradient that lives from its product to the one pass that uses it; there is no
    scale in float32. large: whether the product is worth a call of oneDNN."""
    for x, grad, weight, bias, _, state, bias_state in layers:
        for r in range(len(weight)):
            g = product(grad[r].T, x[r].T) if large else grad[r].T @ x[r]
            gradients = [g, grad[r].sum(0, keepdim=True)]
            moments = [[w[r], b[r]] for w, b in zip(state, bias_state, strict=True)]
            some = ([weight[r], bias[r]], gradients, *moments)
            options = {"lr": rate[r], "weight_decay": 0.0, "maximize": False}
            if correction is None:
                own = momentum if isinstance(momentum, float) else momentum[r].item()
                options |= {"momentum": own, "dampening": 0.0, "nesterov": False, "is_first_step": False}
                torch._fused_sgd_(*some, **options)
            else:
                options |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
                torch._fused_adam_(*some, [], [correction[2]] * 2, **options)

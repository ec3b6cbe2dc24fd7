"""Linear layers on the CPU by oneDNN, which every x86 build of PyTorch contains: in float32, and in bfloat16 on
processors that multiply it.

PyTorch itself hands float32 products to MKL, which runs its AVX2 code on AMD processors. oneDNN compiles for the
processor it finds: on two cores of a Zen 5 460 against 213 GFLOP/s, and twice that in bfloat16 (bench/LOG.md), which
sums in float32 and rounds once. Its products return a new tensor, so what follows (ReLU and its mask, the weight
update) writes into the step's buffers and nothing is copied for its own sake. Small layers, other dtypes and devices
are left to reference.py: see choose_products().
"""

import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

AVAILABLE = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
ISA = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()  # what it may use
WITHOUT = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
BF16 = AVAILABLE and torch.cpu._is_avx512_bf16_supported() and ISA not in WITHOUT
SMALLEST = 2**15  # weights of a layer from which on a call of oneDNN is worth its overhead of about 20 us
SMALLEST_THREADED = 80_000  # the same on several threads, which share the rows in oneDNN, but the replicas in MKL
SMALLEST_BACKWARD = 2**12  # the same for gradients of inputs, where MKL is slow at few inputs, and for all in bfloat16
PART = 2**20  # weights whose gradient is made at a time: from 32 MiB on memory comes anew from the system, page by page


def fits(t: Tensor) -> bool:
    """Whether products of t can be computed here."""
    return t.device.type == "cpu" and (AVAILABLE and t.dtype == torch.float32 or BF16 and t.dtype == torch.bfloat16)


@functools.cache
def faster() -> str:
    """What multiplies float32 faster on this processor, "onednn" or what "torch" calls: known of AMD's with AVX-512,
    else timed once, in some 50 ms."""
    cpu, info = torch.backends.cpu.get_cpu_capability(), Path("/proc/cpuinfo")
    if not AVAILABLE or (cpu == "AVX512" and info.exists() and "AuthenticAMD" in info.read_text(errors="replace")):
        return "onednn"
    x, w = (torch.ones(n, 1000, dtype=torch.float32, device="cpu") for n in (100, 1000))
    ways, times = {"onednn": product, "torch": lambda a, b: a @ b.T}, {"onednn": [], "torch": []}
    for name, way in [*ways.items()] * 5:
        started = time.perf_counter()
        way(x, w), way(x, w.T), way(x.T, x.T)  # forward, and both gradients
        times[name].append(time.perf_counter() - started)
    return min(times, key=lambda name: min(times[name]))


def takes(weight: Tensor, library: str = "onednn", backward: bool = False) -> bool:
    """Whether the products of a layer of weight [R, O, I], or those of its inputs' gradients, are computed here."""
    if library == "torch" and weight.dtype == torch.float32:
        return False
    o, i = weight.shape[1:]
    smallest = SMALLEST if torch.get_num_threads() == 1 else SMALLEST_THREADED
    if (backward and (smallest == SMALLEST or i < 32)) or weight.dtype == torch.bfloat16:
        smallest = SMALLEST_BACKWARD
    return o * i >= smallest and fits(weight)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a bᵀ + bias, a new tensor [M, N] from a [M, K], b [N, K] of any strides, one dtype that fits, and bias [N], which
    may be float32."""
    if bias is None and a.dtype == torch.bfloat16 and torch._C._get_mkldnn_enabled():
        return torch.mm(a, b.T)  # the same by oneDNN, but it takes a transposed a as it lies
    if not (b.is_contiguous() or b.T.is_contiguous()):
        b = b.contiguous()  # rows with gaps between them would be left to oneDNN's reference loop, 1,000 times slower
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, relu: bool) -> None:
    """As reference.linear, but what is bfloat16 rounds to that before it goes into a float32 out."""
    x = x.to(weight.dtype)
    for r in range(len(weight)):
        y = product(x[r], weight[r], bias[r, 0])
        if relu and y.dtype == out.dtype:
            torch.clamp_min(y, 0, out=out[r])
        else:
            out[r].copy_(y.relu_() if relu else y)


def linear_backward(grad: Tensor, weight: Tensor, out: Tensor, activation: Tensor | None) -> None:
    """As reference.linear_backward."""
    grad = grad.to(weight.dtype)
    if grad.dtype == out.dtype == torch.bfloat16 and torch._C._get_mkldnn_enabled():  # as product, in place
        torch.bmm(grad, weight, out=out)
        if activation is not None:
            torch.ops.aten.threshold_backward.grad_input(out, activation, 0, grad_input=out)
        return
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
    """As reference.update, but for a gradient that lives from its product to the one pass that uses it, in bfloat16 if
    products are; these need no scale. large: whether the product is worth a call of oneDNN."""
    for x, grad, weight, bias, shadow, state, bias_state in layers:
        outputs, rows = weight.shape[1], max(1, PART // weight.shape[2])
        dtype = (shadow if large else weight).dtype
        x, grad = x.to(dtype), grad.to(dtype)
        for r in range(len(weight)):
            for k in range(0, outputs, rows):
                part = r if rows >= outputs else (r, slice(k, k + rows))
                g = grad[r] if part is r else grad[r][:, k : k + rows].contiguous()
                g = product(g.T, x[r].T) if large else g.T @ x[r]
                some = [(*(t[part] for t in (weight, *state)), g.to(weight.dtype))]
                if k == 0:
                    some.append((*(t[r] for t in (bias, *bias_state)), grad[r].sum(0, True).to(bias.dtype)))
                _step(some, rate[r], correction, momentum if isinstance(momentum, float) else momentum[r].item())
                if shadow is not weight:
                    shadow[part].copy_(some[0][0])


def _step(some: list[tuple], rate: Tensor, correction: Tensor | None, momentum: float) -> None:
    """One step of SGD or Adam on parameters, each (itself, *state, gradient), in one pass."""
    parameters, *state, gradients = zip(*some, strict=True)
    options = {"lr": rate, "weight_decay": 0.0, "maximize": False}
    if correction is None:
        options |= {"momentum": momentum, "dampening": 0.0, "nesterov": False, "is_first_step": False}
        torch._fused_sgd_(parameters, gradients, *state, **options)
    else:
        options |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
        torch._fused_adam_(parameters, gradients, *state, [], [correction[2]] * len(some), **options)

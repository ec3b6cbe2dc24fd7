"""Multilayer perceptrons with a leading replica axis, their backward pass, and the optimisers folded into it.

Forward and backward are two short loops over layers. There is no autograd here, and with SGD no gradient of a weight is
ever stored: it goes straight into the momentum buffer (kernels.sgd_).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import kernels


def find_device(name: str) -> torch.device:
    """The device of a config: "auto" is CUDA if there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(f"device={name!r}: not available here; expected 'auto', 'cpu' or, with a GPU, 'cuda'")
    return device


@dataclass
class Tape:
    """What one pass through an MLP leaves behind: the activations x[i] entering layer i (x[-1] is the output, without
    ReLU) and the gradients g[i] with respect to them, all [R, B, sizes[i]]."""

    x: list[Tensor]
    g: list[Tensor]

    def rows(self, start: int, stop: int) -> Tape:
        """The same buffers, restricted to some rows of the batch."""
        return Tape([t[:, start:stop] for t in self.x], [t[:, start:stop] for t in self.g])


class MLP:
    """R replicas of a fully connected network with ReLU between layers and a linear output.

    Args:
        weights: per layer [R, O, I]. Updated in place, never rebound.
        biases: per layer [R, 1, O].
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]):
        self.weights, self.biases = list(weights), list(biases)
        self.sizes = [weights[0].shape[2], *(w.shape[1] for w in weights)]

    @staticmethod
    def initialize(
        sizes: Sequence[int],
        std: float,
        generators: Sequence[torch.Generator],
        device: torch.device,
        dtype: torch.dtype,
    ) -> MLP:
        """Weights N(0, std²), biases zero. Replica r draws from generators[r], in float32 on the CPU, so it starts the
        same on every device and beside any other replicas."""
        weights, biases = [], []
        for i, o in zip(sizes, sizes[1:], strict=False):
            drawn = torch.stack([torch.randn(o, i, generator=g) for g in generators])
            weights.append((drawn * std).to(device, dtype))
            biases.append(torch.zeros(len(generators), 1, o, device=device, dtype=dtype))
        return MLP(weights, biases)

    def tape(self, rows: int, source: Tape | None = None) -> Tape:
        """Fresh buffers for a pass over `rows` rows; if a source is given, its output is this network's input."""
        like, r = self.weights[0], self.weights[0].shape[0]
        x, g = ([like.new_zeros(r, rows, size) for size in self.sizes] for _ in range(2))
        if source is not None:
            x[0], g[0] = source.x[-1], source.g[-1]
        return Tape(x, g)

    def forward(self, tape: Tape) -> None:
        """Fill tape.x[1:] from tape.x[0]. Capture-safe."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            kernels.linear(tape.x[i], weight, bias, tape.x[i + 1], relu=i < last)

    def backward(self, tape: Tape, optimizer: SGD | Adam | None, input_gradient: bool) -> None:
        """Fill tape.g from tape.g[-1], the gradient with respect to the output; with an optimiser, update every layer
        as soon as its gradient has passed through it. tape.g[0] is filled only if input_gradient. Capture-safe."""
        for i in reversed(range(len(self.weights))):
            if i > 0 or input_gradient:
                kernels.linear_backward(tape.g[i + 1], self.weights[i], tape.g[i], tape.x[i] if i > 0 else None)
            if optimizer is not None:
                optimizer.update(i, tape.x[i], tape.g[i + 1])

    def __call__(self, x: Tensor) -> Tensor:
        """Output [N, O] of replica 0 for inputs [N, I], for inference."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = x.new_empty(1, len(x), weight.shape[1])
            kernels.linear(x[None], weight[:1], bias[:1], out, relu=i < last)
            x = out[0]
        return x

    def replica(self, r: int) -> MLP:
        """Replica r alone, sharing memory with this network."""
        return MLP([w[r : r + 1] for w in self.weights], [b[r : r + 1] for b in self.biases])

    def state(self) -> dict[str, Tensor]:
        """Parameters by name; the tensors themselves, not copies."""
        named = {}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            named |= {f"{i}.weight": weight, f"{i}.bias": bias}
        return named


class SGD:
    """SGD with momentum (torch.optim.SGD's rule, no dampening) for one network under one cost.

    Args:
        rate: [1, 1, 1], learning rate on the device, shared by all networks of the cost.
    """

    def __init__(self, network: MLP, rate: Tensor, momentum: float):
        self.network, self.rate, self.momentum = network, rate, momentum
        self.weights = [torch.zeros_like(w) for w in network.weights]
        self.biases = [torch.zeros_like(b) for b in network.biases]

    def advance(self) -> None:
        """Called once per step, before any update."""

    def update(self, layer: int, x: Tensor, grad: Tensor) -> None:
        """One step on one layer from its input x [R, B, I] and the gradient of its output [R, B, O]."""
        n = self.network
        kernels.sgd_(
            n.weights[layer],
            n.biases[layer],
            self.weights[layer],
            self.biases[layer],
            x,
            grad,
            self.rate,
            self.momentum,
        )

    def state(self) -> dict[str, Tensor]:
        """Momentum buffers by name."""
        named = {}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            named |= {f"{i}.weight.momentum": weight, f"{i}.bias.momentum": bias}
        return named


class Adam:
    """Adam (torch.optim.Adam's rule: betas 0.9, 0.999, eps 1e-8) for one network under one cost."""

    def __init__(self, network: MLP, rate: Tensor):
        self.network, self.rate = network, rate
        self.moments = [[torch.zeros_like(p) for _ in range(2)] for p in network.state().values()]
        self.powers = torch.ones(2, device=rate.device, dtype=torch.float64)  # beta ** step
        self.betas = torch.tensor([0.9, 0.999], device=rate.device, dtype=torch.float64)
        self.correction = torch.empty(2, device=rate.device, dtype=rate.dtype)
        largest = max(w.numel() for w in network.weights)
        self.scratch = torch.empty(2, largest, device=rate.device, dtype=rate.dtype)

    def advance(self) -> None:
        """Called once per step, before any update."""
        self.powers.mul_(self.betas)
        self.correction.copy_(1 - self.powers)

    def update(self, layer: int, x: Tensor, grad: Tensor) -> None:
        """One step on one layer from its input x [R, B, I] and the gradient of its output [R, B, O]."""
        weight, bias = self.network.weights[layer], self.network.biases[layer]
        for k, parameter in enumerate((weight, bias)):
            gradient, scratch = (s[: parameter.numel()].view_as(parameter) for s in self.scratch)
            if k == 0:
                kernels.weight_gradient(x, grad, gradient)
            else:
                torch.sum(grad, 1, keepdim=True, out=gradient)
            first, second = self.moments[2 * layer + k]
            kernels.adam_(parameter, first, second, gradient, self.rate, self.correction, scratch)

    def state(self) -> dict[str, Tensor]:
        """Moments and step count by name."""
        named = {"powers": self.powers}
        for name, (first, second) in zip(self.network.state(), self.moments, strict=True):
            named |= {f"{name}.first": first, f"{name}.second": second}
        return named

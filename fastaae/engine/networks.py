"""Multilayer perceptrons with a leading replica axis, their backward pass, and the optimisers folded into it.

Forward and backward are two short loops over layers. There is no autograd here, and with SGD no gradient of a weight is
ever stored: it goes straight into the momentum buffer (kernels.choose_update).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import reference

Work = Iterator[tuple]
"""The operations of a pass, in turn, each a function and its arguments: see kernels.together()."""


@dataclass
class Norm:
    """Batch normalisation after a layer's product: its output is the normalised product times `scale`, plus the layer's
    bias. All [R, 1, O]; mean and variance are running ones."""

    scale: Tensor
    mean: Tensor
    variance: Tensor


@dataclass
class Normalized:
    """What one pass through a Norm leaves behind: the normalised product [R, B, O] and the inverse standard deviation
    [R, 1, O], and the gradients of scale and bias. All of the dtype of what is learned."""

    x: Tensor
    inverse_std: Tensor
    scale_gradient: Tensor
    bias_gradient: Tensor


@dataclass
class Tape:
    """What one pass through an MLP leaves behind: the activations x[i] entering layer i (x[-1] is the output, without
    ReLU) and the gradients g[i] with respect to them, all [R, B, sizes[i]]. With dropout of probability p, masks[i] is
    that of x[i + 1]; with batch normalisation, normalized[i] is of layer i."""

    x: list[Tensor]
    g: list[Tensor]
    masks: list[Tensor] = field(default_factory=list)
    p: float | Tensor = 0.0
    normalized: list[Normalized] = field(default_factory=list)

    def rows(self, start: int, stop: int) -> Tape:
        """The same buffers, restricted to some rows of the batch."""
        x, g, masks = ([t[:, start:stop] for t in part] for part in (self.x, self.g, self.masks))
        return Tape(x, g, masks, self.p)


class Dropout:
    """Masks for some activations, drawn together: 1 where a value is kept, 0 where it is dropped.

    Args:
        p: probability of being dropped, used to 16 bits; or one for each replica, [R, 1, 1].
        like: the activations, each [R, B, D].

    Attributes:
        masks: one for each, of its shape and dtype.
    """

    def __init__(self, p: float | Tensor, like: Sequence[Tensor]):
        r = len(like[0])
        self.least = (p.view(r, 1) * 2**16).round().int() - 2**15 if isinstance(p, Tensor) else round(p * 2**16) - 2**15
        sizes = [t[0].numel() for t in like]
        self.bits = torch.empty(r, -(-sum(sizes) // 4), dtype=torch.int64, device=like[0].device)
        self.all = like[0].new_empty(r, sum(sizes))
        self.masks = [part.view(t.shape) for part, t in zip(self.all.split(sizes, 1), like, strict=True)]

    def draw(self, generators: Sequence[torch.Generator]) -> None:
        """Draw all masks anew, of replica r from generators[r]. Capture-safe."""
        for bits, g in zip(self.bits, generators, strict=True):
            bits.random_(-(2**63), None, generator=g)  # all 64 bits: a quarter of the draws of 16 each
        numbers = self.bits.view(torch.int16)[:, : self.all.shape[1]]  # uniform, four from each
        torch.ge(numbers, self.least, out=self.all)


class MLP:
    """R replicas of a fully connected network with ReLU between layers and a linear output.

    Args:
        weights: per layer [R, O, I]. Updated in place, never rebound.
        biases: per layer [R, 1, O].
        compute: dtype of products and of what flows between layers; None: the weights' own.
        norms: of the first so many layers.
        library: of float32 products on a CPU, "onednn" or "torch".

    A layer may have more inputs than the one before has outputs: the further ones, noise, come from outside.

    Attributes:
        shadows: what products read, the weights or copies of them in the dtype of compute.
        products: who computes those of each layer.
        normalize: who computes batch normalisation.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], compute: torch.dtype | None = None,
        norms: Sequence[Norm] = (), library: str = "onednn",
    ):  # fmt: skip
        self.library = library
        self.weights, self.biases, self.norms = list(weights), list(biases), list(norms)
        normed = self.biases[: len(self.norms)]
        self.offsets = [*map(torch.zeros_like, normed), *self.biases[len(normed) :]]  # that products add
        self.sizes = [*(w.shape[2] for w in weights), weights[-1].shape[1]]
        self.outputs = [w.shape[1] for w in weights]  # less than the next size where noise comes in
        self.shadows = list(weights)
        if compute not in (None, weights[0].dtype):
            self.shadows = [kernels.zeros(w.new_empty(0, dtype=compute), *w.shape) for w in weights]
            self.refresh()
        self.products = [kernels.choose_products(w, library) for w in self.shadows]
        self.normalize = kernels.choose_norms(self.shadows[0])
        # A discriminator of one layer has none below to hand a gradient to, which Triton's kernel always does.
        self.judge_rows = (kernels.choose_losses(self.shadows[0]) if len(weights) > 1 else reference).judge

    @staticmethod
    def initialize(
        sizes: Sequence[int], std: float | None, generators: Sequence[torch.Generator], device: torch.device,
        dtype: torch.dtype, batch_norm: int = 0, noise: tuple[int, int] = (0, 0), **options: Any,
    ) -> MLP:  # fmt: skip
        """Weights N(0, std²), biases zero, scales of batch normalisation one. Replica r draws from generators[r], in
        float32 on the CPU, so it starts the same on every device and beside any other replicas. std: Config's init_std.
        noise: a layer, and how many further inputs it has. options: of MLP."""
        weights, biases = [], []
        for k, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False)):
            like = torch.empty(o, i + noise[1] * (k == noise[0]), dtype=torch.float32, device="cpu")
            scale = std or ((2 if k < len(sizes) - 2 else 1) / like.shape[1]) ** 0.5  # He et al. 2015: ReLU passes half
            drawn = torch.stack([torch.empty_like(like).normal_(generator=g) for g in generators])
            weights.append((drawn * scale).to(device, dtype))
            biases.append(torch.zeros(len(generators), 1, o, device=device, dtype=dtype))
        norms = [Norm(torch.ones_like(b), torch.zeros_like(b), torch.ones_like(b)) for b in biases[:batch_norm]]
        return MLP(weights, biases, norms=norms, **options)

    def tape(
        self, rows: int, first: Tensor | None = None, last: Tensor | None = None,
        first_gradient: Tensor | None = None, last_gradient: Tensor | None = None,
    ) -> Tape:  # fmt: skip
        """Fresh buffers for a pass over `rows` rows, but for its input, its output and the gradients of both where
        those are given. Made here, what flows between layers has the dtype of products, and the output the weights'."""
        r, inner = self.weights[0].shape[0], self.shadows[0]

        def end(given: Tensor | None, size: int, like: Tensor = inner) -> Tensor:
            return like.new_zeros(r, rows, size) if given is None else given

        x, g = ([kernels.zeros(inner, r, rows, size) for size in self.sizes[1:-1]] for _ in range(2))
        x = [end(first, self.sizes[0]), *x, end(last, self.sizes[-1], self.weights[0])]
        g = [end(first_gradient, self.sizes[0]), *g, end(last_gradient, self.sizes[-1])]
        normalized = [
            Normalized(n.scale.new_zeros(self.output(x, i).shape), *(torch.zeros_like(n.scale) for _ in range(3)))
            for i, n in enumerate(self.norms)
        ]
        return Tape(x, g, normalized=normalized)

    def output(self, buffers: list[Tensor], i: int) -> Tensor:
        """Of a tape's x or g what belongs to the output of layer i, without further inputs of the next layer."""
        t = buffers[i + 1]
        return t if t.shape[2] == self.outputs[i] else t[..., : self.outputs[i]]

    def forward(self, tape: Tape, layers: int | None = None, momentum: float = 0.0) -> None:
        """Fill tape.x[1:] from tape.x[0], by the first so many layers if that is given. Capture-safe.

        Args:
            momentum: share of this batch's statistics in the running ones of batch normalisation.
        """
        kernels.together(self._forward(tape, layers, momentum))

    def _forward(self, tape: Tape, layers: int | None, momentum: float = 0.0) -> Work:
        last = len(self.weights) - 1
        for i, (weight, offset) in enumerate(zip(self.shadows[:layers], self.offsets, strict=False)):
            y = self.output(tape.x, i)
            normed = i < len(self.norms)
            yield self.products[i].linear, tape.x[i], weight, offset, y, i < last and not normed
            if normed:
                n, t = self.norms[i], tape.normalized[i]
                args = ((n.mean, n.variance), momentum, (t.x, t.inverse_std), y, i < last)
                self.normalize.batch_norm(y, n.scale, self.biases[i], *args)
            if i < last and tape.masks:
                reference.dropout(y, tape.masks[i], tape.p, y)

    def backward(self, tape: Tape, optimizer: Optimizer | None, input_gradient: bool) -> None:
        """Fill tape.g from tape.g[-1], the gradient with respect to the output; with an optimiser, update every layer
        after its gradient has passed through it. tape.g[0] is filled only if input_gradient. Capture-safe."""
        kernels.together(self._backward(tape, optimizer, input_gradient))

    def _backward(self, tape: Tape, optimizer: Optimizer | None, input_gradient: bool, judged: bool = False) -> Work:
        """As backward(); judged: tape.g[-2] is filled already."""
        last = len(self.weights) - 1
        for i in reversed(range(last + 1)):
            if i < len(self.norms):
                t, g = tape.normalized[i], self.output(tape.g, i)
                args = (g, t.scale_gradient, t.bias_gradient)
                self.normalize.batch_norm_backward(g, self.norms[i].scale, t.x, t.inverse_std, *args)
            if (i > 0 or input_gradient) and not (judged and i == last):
                activation = tape.x[i] if i > 0 else None
                grad = self.output(tape.g, i)
                yield self.products[i].linear_backward, grad, self.shadows[i], tape.g[i], activation
            if i > 0 and tape.masks:  # what was dropped is zero already, like what a ReLU has cut off
                tape.g[i].mul_(1 / (1 - tape.p))
            if optimizer is not None and not optimizer.at_once:  # now, while gradient and weight are in the cache
                yield from optimizer.update(self, tape, [i])
        if optimizer is not None and optimizer.at_once:
            yield from optimizer.update(self, tape, range(last + 1))

    def judge(
        self, tape: Tape, real: int, terms: Tensor, optimizer: Optimizer | None, input_gradient: bool,
        scale: Tensor | None = None,
    ) -> Work:  # fmt: skip
        """Forward, loss and backward of a discriminator whose first `real` rows are to be taken for prior samples, the
        others for codes: kernels.reference.judge. Work for kernels.together(). Capture-safe."""
        yield from self._forward(tape, len(self.weights) - 1)
        below, layer = tape.g[-2] if len(self.weights) > 1 else None, (self.shadows[-1], self.biases[-1])
        yield self.judge_rows, tape.x[-2], layer, (tape.x[-1], tape.g[-1]), below, terms, real, scale
        yield from self._backward(tape, optimizer, input_gradient, judged=below is not None)

    def __call__(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Output [N, O] of replica 0 for inputs [N, I], where products read the weights themselves: for inference.
        Further inputs are noise [N, ...], or zero."""
        last = len(self.weights) - 1
        for i, (weight, offset) in enumerate(zip(self.weights, self.offsets, strict=True)):
            if further := weight.shape[2] - x.shape[1]:
                x = torch.cat([x, x.new_zeros(len(x), further) if noise is None else noise], 1)
            out = x.new_empty(1, len(x), weight.shape[1])
            normed = i < len(self.norms)
            chosen = kernels.choose_products(weight, self.library)  # now: a run may have had other threads
            chosen.linear(x[None], weight[:1], offset[:1], out, i < last and not normed)
            if normed:
                n = self.norms[i]
                reference.batch_norm_inference(out, n.scale[:1], self.biases[i][:1], n.mean[:1], n.variance[:1], out)
                if i < last:
                    out.relu_()
            x = out[0]
        return x

    def replica(self, r: int) -> MLP:
        """Replica r alone, sharing memory with this network."""
        return self.mapped(lambda t: t[r : r + 1])

    def mapped(self, f: Callable[[Tensor], Tensor]) -> MLP:
        """The network whose tensors are f of this one's."""
        norms = [Norm(f(n.scale), f(n.mean), f(n.variance)) for n in self.norms]
        return MLP([f(w) for w in self.weights], [f(b) for b in self.biases], None, norms, self.library)

    def refresh(self) -> None:
        """Copy the weights, written from outside, to what products read."""
        for weight, shadow in zip(self.weights, self.shadows, strict=True):
            if shadow is not weight:
                shadow.copy_(weight)

    def parameters(self) -> dict[str, Tensor]:
        """What is learned, by name; the tensors themselves, not copies."""
        named = {}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            scale = {f"{i}.scale": self.norms[i].scale} if i < len(self.norms) else {}
            named |= {f"{i}.weight": weight, **scale, f"{i}.bias": bias}
        return named

    def state(self) -> dict[str, Tensor]:
        """Parameters, and running statistics if there are any, by name; the tensors themselves, not copies."""
        named = self.parameters()
        for i, n in enumerate(self.norms):
            named |= {f"{i}.running_mean": n.mean, f"{i}.running_variance": n.variance}
        return named


class Heads:
    """Cluster heads W_C of an embedding, whose representations are y W_C + z.

    Args:
        weight: [R, K, D], a head a row. Updated in place, never rebound.
    """

    def __init__(self, weight: Tensor):
        self.weight = weight

    def forward(self, z: Tensor, y: Tensor, out: Tensor) -> None:
        """out = y W_C + z; z and out [R, B, D], y [R, B, K]. Capture-safe."""
        torch.baddbmm(z, y, self.weight, out=out)

    def backward(self, grad: Tensor, y: Tensor, gradient: dict[str, Tensor], size: float) -> Tensor:
        """Fill the gradients of z and, over the size of heads, y from that of y W_C + z. Returns: that of W_C."""
        g = grad.to(self.weight.dtype)
        gradient["z"].copy_(g)
        torch.div(g @ self.weight.transpose(1, 2), size, out=gradient["y"])  # louder than z's, it bends y to styles
        return y.transpose(1, 2) @ g

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Representations [N, D] of z [N, D] and y [N, K] by replica 0, for inference."""
        return torch.addmm(z, y, self.weight[0])

    def mapped(self, f: Callable[[Tensor], Tensor]) -> Heads:
        """The heads whose tensor is f of this one's."""
        return Heads(f(self.weight))

    def parameters(self) -> dict[str, Tensor]:
        """What is learned, by name; the tensor itself, not a copy."""
        return {"weight": self.weight}

    state = parameters


def named(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """What networks, heads and scales hold, by the names that checkpoints have; None is none of these."""
    return {f"{n}.{k}": t for n, part in parts.items() if part is not None for k, t in part.state().items()}


class AdamClock:
    """Adam's bias correction at the current step, shared by all optimisers that step together.

    Attributes:
        correction: [3], 1 - beta ** step for betas 0.9 and 0.999, and the step.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype):
        # In float32, 1 - 0.999 has no more than four digits.
        self.betas = torch.tensor([0.9, 0.999], device=device, dtype=torch.float64)
        self.correction = torch.empty(3, device=device, dtype=dtype)

    def advance(self, done: Tensor) -> None:
        """Called once per step, before any update; done: int64 [1], the steps before."""
        step = done + 1
        self.correction[:2].copy_(1 - self.betas**step)
        self.correction[2:].copy_(step)


class Optimizer:
    """SGD with momentum (torch.optim.SGD's rule, no dampening) or, with a clock, Adam (torch.optim.Adam's rule, betas
    0.9, 0.999, eps 1e-8) for one network under one cost.

    Args:
        rate: [R, 1, 1], learning rates on the device, shared by all networks of the cost.
        momentum: one, or [R, 1, 1].
        scale: what the gradients come multiplied by; see kernels.reference.update.

    Attributes:
        at_once: whether all layers are updated together, by one launch.
    """

    def __init__(
        self, network: MLP | Heads, rate: Tensor, momentum: float | Tensor = 0.0, clock: AdamClock | None = None,
        scale: Tensor | None = None,
    ):  # fmt: skip
        self.network, self.rate, self.momentum, self.scale = network, rate, momentum, scale
        self.correction = None if clock is None else clock.correction
        self.names = ("momentum",) if clock is None else ("first", "second")
        self.moments = {
            name: tuple(torch.zeros_like(p) for _ in self.names) for name, p in network.parameters().items()
        }
        self.updates, self.unused, self.at_once = [], [], False
        if isinstance(network, MLP):
            weights = zip(network.weights, network.shadows, strict=True)
            self.updates = [kernels.choose_update(*both, clock is not None, network.library) for both in weights]
            self.at_once = kernels.on_tensor_cores(network.shadows[0])
            normed = network.offsets[: len(network.norms)]  # without a bias: what stands in for that and its moments
            self.unused = [[torch.zeros_like(o) for _ in range(3)] for o in normed]

    def update(self, n: MLP, tape: Tape, layers: Sequence[int]) -> Work:
        """One step on some layers of the network n from their inputs and the gradients of their outputs."""
        m, some = self.moments, []
        for i in layers:
            bias, *moments = self.unused[i] if i < len(n.norms) else (n.biases[i], *m[f"{i}.bias"])
            state = (m[f"{i}.weight"], tuple(moments[: len(self.names)]))
            some.append((tape.x[i], n.output(tape.g, i), n.weights[i], bias, n.shadows[i], *state))
        yield self.updates[layers[0]], tuple(some), self.rate, self.correction, self.momentum, self.scale
        if normed := [i for i in layers if i < len(n.norms)]:
            t, norms = tape.normalized, n.norms
            some = [(n.biases[i], m[f"{i}.bias"], t[i].bias_gradient) for i in normed]
            some += [(norms[i].scale, m[f"{i}.scale"], t[i].scale_gradient) for i in normed]
            n.normalize.steps(some, self.rate, self.correction, self.momentum, self.scale)

    def step(self, name: str, parameter: Tensor, gradient: Tensor) -> None:
        """One step on one parameter from its gradient."""
        options = (self.rate, self.correction, self.momentum, self.scale)
        reference.step_(parameter, self.moments[name], gradient, *options)

    def state(self) -> dict[str, Tensor]:
        """Momentum buffers or moments by name."""
        return {f"{p}.{n}": t for p, moments in self.moments.items() for n, t in zip(self.names, moments, strict=True)}

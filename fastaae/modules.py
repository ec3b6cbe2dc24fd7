"""Encoder and decoder of a Model as modules of torch: plain operations that autograd, torch.compile and torch.export
take, on the memory of the model's own weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .engine.networks import MLP
from .files import brief
from .kernels.reference import BATCH_NORM_EPS


def _check(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}, expected a tensor")


class Coder(nn.Module):
    """What both modules hold of a Model, on its memory until .to() moves or converts it: a network whose first layer
    takes so many columns and then, maybe, noise; an embedding's heads; a scale."""

    shift: Tensor
    span: Tensor

    def __init__(self, model: Any, network: MLP, columns: int, n_classes: int):
        super().__init__()
        self.config, self.shape, self.n_classes, self.pixels = model.config, model.shape, n_classes, model.pixels
        self.columns, self.scaled = [columns, *network.outputs], model.scale is not None
        self.weights = nn.ParameterList(w[0].detach() for w in network.weights)
        self.biases = nn.ParameterList(b[0, 0].detach() for b in network.biases)
        self.scales = nn.ParameterList(n.scale[0, 0].detach() for n in network.norms)
        self.heads = model.heads and nn.Parameter(model.heads.weight[0].detach())
        fixed = {"shift": model.scale.shift, "span": model.scale.span} if self.scaled else {}
        for i, n in enumerate(network.norms):
            fixed |= {f"mean_{i}": n.mean, f"variance_{i}": n.variance}
        for name, t in fixed.items():
            self.register_buffer(name, t[0, 0].detach())

    def run(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The network's output [N, ...] of x [N, columns]; noise [N, further inputs] may be None, for zeros."""
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            if further := w.shape[1] - self.columns[i]:
                x = functional.pad(x, (0, further)) if noise is None else torch.cat([x, noise], 1)
            normed = i < len(self.scales)
            x = functional.linear(x, w, None if normed else b)
            if normed:
                mean, variance = getattr(self, f"mean_{i}"), getattr(self, f"variance_{i}")
                x = functional.batch_norm(x, mean, variance, self.scales[i], b, eps=BATCH_NORM_EPS)
            x = functional.relu(x) if i + 1 < len(self.weights) else x
        return x


class Encoder(Coder):
    """z [N, style_dim] of examples or, with a label head, (z, y), y the probabilities [N, n_classes]. Of an embedding z
    is the representation y W_C + z, which the decoder takes without y."""

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Any:
        """Of x [N, *shape] or [N, D] in the units of the data, also bytes. noise, standard normal, makes z a sample:
        [N, style_dim] of a Gaussian posterior (None: its mean), [N, noise_dim] of a universal one (None: zeros)."""
        _check("x", x)
        dtype, d, k = self.biases[0].dtype, self.config.style_dim, self.n_classes
        byte = x.dtype == torch.uint8 and self.pixels
        x = x.flatten(1).to(self.shift.dtype if self.scaled else dtype) / (255 if byte else 1)
        x = ((x - self.shift) / self.span).to(dtype) if self.scaled else x
        z, y, log_variance = self.run(x, noise).tensor_split([d, d + k], 1)
        if self.config.posterior == "gaussian" and noise is not None:
            z = z + torch.exp(log_variance / 2) * noise
        y = torch.softmax(y, -1)
        return z if not k else (z if self.heads is None else z + y @ self.heads, y)


class Decoder(Coder):
    """Examples [N, *shape], in the units of the data, of codes."""

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Of z [N, style_dim] and probabilities y [N, n_classes], where the decoder takes labels; without y, z of an
        embedding is the representation. Raises ValueError: y is missing or in vain."""
        _check("z", z)
        if y is None and self.n_classes and self.heads is None or y is not None and not self.n_classes:
            takes = f"probabilities [N, {self.n_classes}]" if self.n_classes else "None"
            raise ValueError(f"y={brief(y)}: expected {takes}, as the decoder's labels")
        z = z.to(dtype := self.biases[0].dtype)
        if y is not None:
            z = torch.cat([z, y.to(dtype)], 1) if self.heads is None else z + y.to(dtype) @ self.heads
        x = self.run(z)
        x = torch.sigmoid(x) if self.config.output_layer == "sigmoid" else x
        if self.scaled:
            x = torch.addcmul(self.shift, x.to(self.span.dtype), self.span)
            x = x.clamp(0, 1) if self.pixels else x
        return x.unflatten(1, self.shape)

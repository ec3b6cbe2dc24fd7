"""The training step as most would write it: nn.Linear, autograd, one torch.optim optimizer per cost; or as a careful
user would: one encoder pass for D and G, no weight gradients of the discriminators in G.

The twin that tests and bench/step.py hold a Step to. It is built from a config, its wiring and weights by name, and
takes what a step has drawn (drawn), so that both train on the same numbers. One replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from fastaae import Config
from fastaae.data import Data
from fastaae.engine.step import Step
from fastaae.engine.wiring import Wiring

MMD_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)  # widths of the kernels beside the prior's own


def drawn(step: Step, r: int = 0) -> dict[str, Any]:
    """Copies of what the last draw() of a step made for replica r, by name."""
    b, codes, rows = step.batches, step.codes, step.batch
    feeds = dict(zip(("encoder", "labeled"), b.feeds, strict=False))
    real = {name: prior[r] for name, prior in codes.prior.items()}
    real |= {name: tape.x[0][r, :rows] for name, tape in step.judging.items()}
    some = {"target": b.images.target[r], "label": codes.label[r], "condition": codes.condition[r, rows:]}
    some |= {"labels": b.labels[r]} if step.cfg.classifies else {}
    some |= {} if b.noise is None else {"noise": b.noise[r]}
    copies: dict[str, Any] = {name: t.clone() for name, t in some.items()}
    copies["real"] = {name: t.clone() for name, t in real.items()}
    copies["input"] = {name: feed.input[r].clone() for name, feed in feeds.items()}
    copies["further"] = {name: f.further[r].clone() for name, f in feeds.items() if f.further is not None}
    copies["masks"] = {name: [m[r].clone() for m in tape.masks] for name, (_, tape) in b.passes.items()}
    return copies


class Idiomatic:
    """Networks and optimisers of one replica.

    Args:
        cfg, wiring: of a step.
        weights: its parameters() by name, [R, ...]; replica 0 is taken.
        careful: one encoder pass for D and G, frozen discriminators in G.
        options: of torch's optimizers, such as fused.
    """

    def __init__(self, cfg: Config, wiring: Wiring, weights: dict[str, Tensor], careful: bool = False, **options):
        self.cfg, self.wiring, self.careful = cfg, wiring, careful
        self.networks = nn.ModuleDict(
            {name.replace(".", "_"): self._sequential(name, weights) for name in wiring.sizes}
        )
        self.encoder = self.networks["encoder"] if "encoder" in self.networks else nn.Sequential()
        self.decoder = self.networks["decoder"]
        self.discriminators = nn.ModuleDict(
            {name[14:]: n for name, n in self.networks.items() if name.startswith("discriminator_")}
        )
        self.heads = None if wiring.heads is None else nn.Parameter(weights["heads.weight"][0].clone())

        both = [*self.encoder.parameters(), *self.decoder.parameters()]
        learned = [] if self.heads is None or cfg.fixed_heads else [self.heads]
        player = self.decoder if cfg.task == "gan" else self.encoder
        self.separate = self._optimizer(learned, "reconstruction", options)
        self.reconstruct = self._optimizer(both + learned, "reconstruction", options)
        self.discriminate = self._optimizer(self.discriminators.parameters(), "adversarial", options)
        self.generate = self._optimizer(player.parameters(), "adversarial", options)
        self.classify = self._optimizer(self.encoder.parameters(), "classification", options)

    def _optimizer(self, parameters: Iterable[Tensor], cost: str, options: dict) -> torch.optim.Optimizer | None:
        cfg, parameters = self.cfg, list(parameters)
        rate = getattr(cfg, f"lr_{cost}")
        if not parameters:
            return None
        if cfg.optimizer == "adam":
            return torch.optim.Adam(parameters, rate, **options)
        momentum = cfg.momentum_adversarial if cost == "adversarial" else cfg.momentum
        return torch.optim.SGD(parameters, rate, momentum, **options)

    def _sequential(self, name: str, weights: dict[str, Tensor]) -> nn.Sequential:
        layers, n = [], len(self.wiring.sizes[name]) - 1
        for i in range(n):
            norm = i < self.wiring.norms.get(name, 0)
            weight, bias = weights[f"{name}.{i}.weight"][0], weights[f"{name}.{i}.bias"][0, 0]
            options = {"dtype": weight.dtype, "device": weight.device}
            layer = [nn.Linear(weight.shape[1], weight.shape[0], bias=not norm, **options)]
            layer[0].weight.data.copy_(weight)
            if norm:
                layer.append(nn.BatchNorm1d(weight.shape[0], **options))
                layer[1].weight.data.copy_(weights[f"{name}.{i}.scale"][0, 0])
            layer[-1].bias.data.copy_(bias)
            layers += layer if i + 1 == n else [*layer, nn.ReLU()]
            if self.cfg.dropout and i + 1 < n and (self.cfg.task, name) != ("gan", "decoder"):
                layers.append(Masked(self.cfg.dropout))
        return nn.Sequential(*layers)

    def _run(
        self, network: nn.Sequential, x: Tensor, masks: list[Tensor], further: Tensor | None = None, momentum=0.0
    ) -> Tensor:
        """Output for x, with given masks, further inputs of one layer, and so much of its statistics in the running
        ones."""
        drop = iter(masks)
        for layer in network:
            if isinstance(layer, nn.BatchNorm1d):
                layer.momentum = momentum
            if isinstance(layer, Masked):
                layer.mask = next(drop)
        linear = [k for k, layer in enumerate(network) if isinstance(layer, nn.Linear)]
        for i, start in enumerate(linear):
            if further is not None and i == self.wiring.noise[0]:
                x = torch.cat([x, further], -1)
            for layer in network[start : (*linear, None)[i + 1]]:
                x = layer(x)
        return x

    def encode(self, batch: dict[str, Any], momentum: float = 0.0) -> dict[str, Tensor]:
        """The codes of a batch by name, or, without an encoder, images decoded from the prior."""
        if self.cfg.task == "gan":
            logits = self._run(self.decoder, batch["real"]["z"], [], momentum=momentum)
            fakes = logits.sigmoid() if self.cfg.output_layer == "sigmoid" else logits
            return {"x": fakes + self.cfg.input_noise * batch["noise"] if self.cfg.input_noise else fakes}
        code = self._encoded(batch, "encoder", momentum)
        z, logits, log_variance = code.tensor_split(self._ends(), -1)
        if self.cfg.posterior == "gaussian":
            z = z + (log_variance / 2).exp() * batch["noise"]
            self.posterior = (code[..., : self.cfg.style_dim], log_variance)
        return {"z": z} | ({"y": logits.softmax(-1)} if "y" in self.wiring.code else {})

    def _encoded(self, batch: dict[str, Any], name: str, momentum: float = 0.0) -> Tensor:
        x, masks, further = batch["input"][name], batch["masks"][name], batch["further"].get(name)
        return self._run(self.encoder, x, masks, further, momentum)

    def _ends(self) -> list[int]:
        z = self.wiring.code["z"]
        return [z, z + self.wiring.code.get("y", 0)]

    def divergence(self, batch: dict[str, Any], codes: dict[str, Tensor]) -> Tensor:
        """Of codes from the prior: the closed form of a Gaussian posterior, or the discrepancy of samples."""
        cfg = self.cfg
        if cfg.regularizer == "kl":
            mean, log_variance = self.posterior
            normal = torch.distributions.Normal
            q, p = normal(mean, (log_variance / 2).exp()), normal(torch.zeros_like(mean), cfg.prior_std)
            return cfg.regularizer_weight * torch.distributions.kl_divergence(q, p).sum(-1).mean()
        both = torch.cat([codes["z"], batch["real"]["z"]])
        d2 = (both[:, None] - both).square().sum(-1)
        scales = [cfg.prior_std * (2 * cfg.style_dim) ** 0.5 * k for k in MMD_SCALES]
        k = sum((-d2 / (2 * s * s)).exp() for s in scales)
        b = len(codes["z"])
        return cfg.regularizer_weight * (k[:b, :b].mean() + k[b:, b:].mean() - 2 * k[:b, b:].mean())

    def reconstruction(self, batch: dict[str, Any], codes: dict[str, Tensor] | None = None) -> Tensor:
        codes, target = self.encode(batch, 0.1) if codes is None else codes, batch["target"]
        if self.heads is None:
            code = torch.cat([*codes.values(), batch["label"]], -1)
        else:
            code = self._quiet(codes["y"]) @ self.heads + codes["z"]
        logits = self._run(self.decoder, code, batch["masks"]["decoder"], momentum=0.1)
        if self.cfg.reconstruction == "cross_entropy":
            return bce(logits, target, reduction="sum") / len(target)
        output = logits.sigmoid() if self.cfg.output_layer == "sigmoid" else logits
        return 0.5 * (output - target).square().sum(-1).mean()

    def _quiet(self, y: Tensor) -> Tensor:
        """y, whose gradient is divided by how far out heads are."""
        return y.detach() + (y - y.detach()) / (self.cfg.fixed_heads or self.cfg.separation)

    def separation(self) -> Tensor:
        return (self.cfg.separation - nn.functional.pdist(self.heads)).clamp_min(0).sum()

    def discriminator(self, batch: dict[str, Any], codes: dict[str, Tensor]) -> Tensor:
        losses, n = [], len(batch["target"])
        for name, network, code, masks in self._judged(batch, codes):
            positive = self._run(network, batch["real"][name], [m[:n] for m in masks])
            negative = self._run(network, code, [m[n:] for m in masks])
            losses += [bce(positive, torch.ones_like(positive)), bce(negative, torch.zeros_like(negative))]
        return sum(losses) / 2

    def generator(self, batch: dict[str, Any], codes: dict[str, Tensor]) -> Tensor:
        n = len(batch["target"])
        every = self._judged(batch, codes)
        logits = [self._run(network, code, [m[n:] for m in masks]) for _, network, code, masks in every]
        return sum(bce(fake, torch.ones_like(fake)) for fake in logits)

    def _judged(self, batch: dict[str, Any], codes: dict[str, Tensor]) -> Iterator[tuple]:
        """Of every discriminator: its name, network, what it sees of the fakes, and masks of both halves."""
        for name, network in self.discriminators.items():
            code = torch.cat([batch["condition"], codes["z"]], -1) if name == "z" else codes[name]
            yield name, network, code, batch["masks"][f"discriminator.{name}"]

    def classification(self, batch: dict[str, Any]) -> Tensor:
        logits = self._encoded(batch, "labeled")[:, slice(*self._ends())]
        return nn.functional.cross_entropy(logits, batch["labels"])

    def __call__(self, batch: dict[str, Any]) -> list[Tensor]:
        """One step. Returns: the loss of each phase."""
        if self.cfg.regularizer != "adversarial":
            codes = self.encode(batch, 0.1)
            losses = [self.divergence(batch, codes), self.reconstruction(batch, codes)]
            self._descend(sum(losses), self.reconstruct)
            return losses
        losses = []
        if self.cfg.task != "gan" and self.cfg.lr_reconstruction:
            losses.append(self._descend(self.reconstruction(batch), self.reconstruct))
            if self.separate is not None:
                losses.append(self._descend(self.separation(), self.separate))
        losses += self._played(batch) if self.cfg.lr_adversarial else []
        if self.cfg.classifies and self.cfg.lr_classification:
            losses.append(self._descend(self.classification(batch), self.classify))
        return losses

    def _played(self, batch: dict[str, Any]) -> list[Tensor]:
        losses = []
        with torch.set_grad_enabled(self.careful):
            codes = self.encode(batch, 0.1 if self.cfg.task == "gan" else 0.0)
        detached = {name: code.detach() for name, code in codes.items()}
        losses.append(self._descend(self.discriminator(batch, detached), self.discriminate))
        self.discriminators.requires_grad_(not self.careful)
        codes = codes if self.careful else self.encode(batch)
        losses.append(self._descend(self.generator(batch, codes), self.generate))
        self.discriminators.requires_grad_(True)
        return losses

    def _descend(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss


class Masked(nn.Module):
    """Dropout with a given mask."""

    def __init__(self, p: float):
        super().__init__()
        self.mask, self.p = None, p

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask / (1 - self.p)


def twin(step: Step, careful: bool = False, **options) -> Idiomatic:
    """With the weights of a step's replica 0."""
    return Idiomatic(step.cfg, step.wiring, step.parameters(), careful, **options)


def check(cfg: Config, data: Data, steps: int = 2, careful: bool = False) -> float:
    """Largest relative difference of any weight after some steps in float64 from the idiomatic or careful ones."""
    step = Step(replace(cfg, precision="fp64", init_std=0.05, replicas=1), data, torch.device("cpu"))
    step.start_epoch(0)
    other = twin(step, careful)
    for _ in range(steps):
        states = [g.get_state() for g in step.batches.generators]
        step.batches.draw()
        batch = drawn(step)
        for g, state in zip(step.batches.generators, states, strict=True):
            g.set_state(state)
        step()
        other(batch)
    pairs = [] if step.heads is None else [(step.heads.weight, other.heads)]
    for name, mlp in step.networks.items():
        theirs = other.networks[name.replace(".", "_")]
        running = [b for b in theirs.buffers() if b.ndim]
        pairs += zip(mlp.state().values(), [*theirs.parameters(), *running], strict=True)
    worst = 0.0
    for ours, theirs in pairs:
        worst = max(worst, ((ours.view_as(theirs) - theirs).abs().max() / theirs.abs().max()).item())
    return worst

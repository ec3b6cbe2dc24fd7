"""One training step of R replicas: its networks, buffers and optimisers, made once from the wiring; its state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import kernels
from ..config import Config
from ..data import Data
from ..members import Members
from . import folding, phases, priors
from .batches import Batches, Codes, seeds
from .networks import MLP, AdamClock, Heads, Optimizer, named
from .phases import Autoencoder, GanDecoder
from .profiling import mark
from .wiring import Wiring, wiring

COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What products read, by precision; else what is learned itself."""


class Step:
    """Networks, optimisers and buffers of R replicas; calling it runs one whole step.

    Args:
        cfg: validated config.
        data: data set; its training examples are moved to the device once.
        device: where everything lives.
        prior: draws samples of z where the config's prior is "custom".
        members: what replicas have of their own; None: their seeds.

    Attributes:
        networks, discriminators: by name; heads are those of an embedding.
        player: what the discriminators play against; `autoencoder` is the same unless the task is "gan".
        batches: the data and what is drawn. codes: what of it discriminators see.
        judging, fooling: tapes of each discriminator on prior samples and fakes, and on the fakes alone.
        losses: [log steps, phases, R], of the steps since `slot` was zero.
        average: running averages of the parameters of models, by name, if the config asks for them.

    Raises:
        ValueError: the config asks for more than the data has (batch size, labels), or a function is missing.
    """

    autoencoder: Autoencoder

    def __init__(
        self, cfg: Config, data: Data, device: torch.device | str, prior: priors.Custom | None = None,
        members: Members | None = None,
    ):  # fmt: skip
        n, d = len(data.train), data.train.x.shape[1]
        if cfg.batch_size > n:
            raise ValueError(f"batch_size={cfg.batch_size}: expected at most the {n} training examples of {data.name}")
        self.cfg, self.batch, self.device, r = cfg, cfg.batch_size, torch.device(device), cfg.replicas
        floats = torch.empty(0, device=device, dtype=torch.float64 if cfg.precision == "fp64" else torch.float32)
        source = priors.chosen(cfg.prior, prior, floats.new_empty(cfg.batch_size, cfg.style_dim))
        if (y := data.labels["train"]) is None and cfg.needs_labels:
            what = "label_prior=True" if cfg.label_prior else f"task={cfg.task!r}"
            raise ValueError(f"{what} needs labels with the training data, {data.name} has none: pass y")
        if y is not None and cfg.task == "supervised" and (y < 0).any():
            lacking = int((y < 0).sum())
            raise ValueError(f"task='supervised': {lacking} training examples have no label, expected one each")
        if cfg.needs_labels and data.n_classes < 2:
            only = f"the only class of {data.name} is {data.classes[0]!r}"
            raise ValueError(f"{only}, expected two or more: -1, None and NaN are no labels, call a class otherwise")
        if cfg.label_prior and cfg.components != data.n_classes:
            raise ValueError(f"components={cfg.components}: expected {data.n_classes}, one for each class")
        w = self.wiring = wiring(cfg, d, data.n_classes)
        self.steps_per_epoch = n // cfg.batch_size
        found = (getattr(phases, phase.name) for phase in w.phases)
        self.phases: tuple[Callable[[phases.Game, Tensor], None], ...] = tuple(found)

        self.members = members or Members(cfg)
        self.networks, self.heads = drawn(self.members, w, floats)
        self.codes = Codes(w, (r, self.batch), floats, self.networks["decoder"].shadows[0])
        self.ops = kernels.choose_losses(self.codes.buffer)
        if cfg.task == "gan":
            noise = self.members.of("input_noise", floats)
            self.player = GanDecoder(self.members.configs[0], self.networks, self.codes, noise)
        else:
            known = 0 if y is None else int((y >= 0).sum())
            labeled = min(self.batch, cfg.n_labeled or known) if cfg.classifies else 0
            self.player = self.autoencoder = Autoencoder(cfg, w, self.networks, self.heads, self.codes, labeled)
        named = self.discriminators = {n.split(".")[1]: m for n, m in self.networks.items() if "discriminator." in n}
        self.judging = {n: m.tape(2 * self.batch, self.player.judged[n][0]) for n, m in named.items()}
        passes = self.player.passes | {f"discriminator.{n}": (m, self.judging[n]) for n, m in named.items()}
        self.weight = self.members.of("regularizer_weight", floats)
        self.batches = Batches(self.members, data, self.codes, self.player.inputs, self.player.noise, passes, source)
        self.fooling = {n: tape.rows(self.batch, 2 * self.batch) for n, tape in self.judging.items()}
        for n, tape in self.fooling.items():
            tape.g[0] = self.player.judged[n][1]

        costs = ("reconstruction", "adversarial", "classification")
        self.rates = {cost: floats.new_empty(r, 1, 1) for cost in costs}
        self.clock = AdamClock(self.device, floats.dtype) if cfg.optimizer == "adam" else None
        # Of gradients, which fp16 would flush to zero; whether one overflowed; steps since that.
        self.scale = floats.new_tensor([2.0**16, 0, 0]) if cfg.precision == "fp16" else None
        self.optimizers = self._optimizers()
        learned = {n: t for n, t in self.parameters().items() if not n.startswith("discriminator.")}
        self.average = {n: t.clone() for n, t in learned.items()} if cfg.average else {}
        self.averaging = [(t, learned[n]) for n, t in self.average.items() if t.dtype == floats.dtype]
        self.begun = torch.zeros_like(self.batches.cursor)  # steps before the weights began
        self.losses = floats.new_zeros(min(cfg.log_every, self.steps_per_epoch), len(self.phases), r)
        self.slot = torch.zeros_like(self.losses[0], dtype=torch.int64)  # steps done since the losses were read
        self.terms = floats.new_zeros(len(self.phases), r, 2 * self.batch * max(1, len(self.discriminators)))
        folding.fold(self)

    def _optimizers(self) -> dict[str, Optimizer]:
        """One for each network that a phase trains: its state is of that cost alone."""
        found, networks = {}, {**self.networks, "heads": self.heads}
        for phase, cost, trained in self.wiring.phases:
            name = "momentum_adversarial" if cost == "adversarial" else "momentum"
            momentum = 0.0 if self.clock else self.members.of(name, self.rates[cost])
            options = (self.rates[cost], momentum, self.clock, self.scale)
            for name in trained:
                found[name if name.startswith(phase) else f"{phase}.{name}"] = Optimizer(networks[name], *options)
        return found

    def start_epoch(self, epoch: int, slower: float = 1.0) -> None:
        """Shuffle for an epoch, rewind the cursor, set the learning rates, times a factor. Runs on the host, between
        steps."""
        self.batches.start_epoch(epoch)
        self.begun.fill_(self.steps_per_epoch * max(e for e in (0, *self.cfg.start_epochs) if e <= epoch))
        for cost, rates in self.rates.items():
            each = [slower * c.rate(getattr(c, f"lr_{cost}"), epoch) for c in self.members.configs]
            rates.copy_(rates.new_tensor(each).view_as(rates))

    def __call__(self) -> None:
        """One step of every replica. Capture-safe: no host synchronisation, no rebound buffer."""
        count = self.batches.count
        done = count[1:] - self.begun if self.cfg.start_epochs else count[1:]
        with mark("draw"):
            self.batches.draw()
            if self.clock is not None:
                self.clock.advance(done)
        for phase, terms in zip(self.phases, self.terms, strict=True):
            with mark(phase.__name__):
                phase(self, terms)
        if self.averaging:
            share = torch.clamp_min(1 / (done[0] + 1), 1 - self.cfg.average).to(self.terms.dtype)
            for average, weight in self.averaging:
                average.lerp_(weight, share)
        self.ops.finish(self.terms, self.losses, self.slot, count, self.scale)

    def parameters(self) -> dict[str, Tensor]:
        """Weights, biases, batch normalisation and standardization [R, ...] by name; the tensors themselves."""
        return named({**self.networks, "heads": self.heads, "standard": self.batches.scale})

    def carried(self) -> list[Tensor]:
        """Every tensor that one step leaves for the next, but for the generators' states."""
        shadows = [t for network in self.networks.values() for t in network.shadows]  # a step reads before it writes
        state = [t for name, t in self.state().items() if not name.startswith("generator.")]
        return [*state, *shadows, self.batches.count, self.slot]

    def state(self) -> dict[str, Tensor]:
        """All that resuming needs besides config, data and step count, by name."""
        named = self.parameters()
        named |= {f"optimizer.{n}.{k}": t for n, o in self.optimizers.items() for k, t in o.state().items()}
        named |= {f"average.{n}": t for n, t in self.average.items()}
        if self.scale is not None:
            named["scale"] = self.scale
        return named | {f"generator.{s}": g.get_state() for s, g in enumerate(self.batches.generators)}

    def restore(self, state: dict[str, Tensor], done: int) -> None:
        """Copy a state() back into place, as after `done` steps."""
        for name, tensor in self.state().items():
            if not name.startswith("generator."):
                tensor.copy_(state[name])
        for network in self.networks.values():
            network.refresh()  # products read copies in 16 bits
        for k, g in enumerate(self.batches.generators):
            g.set_state(state[f"generator.{k}"].cpu())
        self.batches.count[1] = done


def drawn(members: Members, w: Wiring, floats: Tensor, *start: int) -> tuple[dict[str, MLP], Heads | None]:
    """Networks by name, and cluster heads. Each replica draws all of them, in this order, from its own generator, or of
    a later start from another one."""
    cfg, own = members.cfg, [seeds(c.seed, 0, *start) for c in members.configs]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in own]
    options = {"std": cfg.init_std, "generators": generators, "compute": COMPUTE.get(cfg.precision)}
    options |= {"device": floats.device, "dtype": floats.dtype, "library": cfg.products}
    networks = {
        name: MLP.initialize(sizes, **options, batch_norm=w.norms.get(name, 0), noise=w.further(name))
        for name, sizes in w.sizes.items()
    }
    if w.heads is None:
        return networks, None
    (k, d), like = w.heads, torch.empty(*w.heads, dtype=torch.float32, device="cpu")
    if cfg.fixed_heads is None:  # near enough for the separation phase to spread them
        heads = torch.stack([cfg.separation / 4 * torch.empty_like(like).normal_(generator=g) for g in generators])
    elif k == d:
        heads = cfg.fixed_heads * torch.eye(k, dtype=like.dtype, device=like.device).repeat(cfg.replicas, 1, 1)
    else:
        raise ValueError(f"style_dim={d}: expected {k}, the classes, with fixed_heads, a square W_C")
    return networks, Heads(heads.to(floats))

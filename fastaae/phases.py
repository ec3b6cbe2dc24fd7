"""One training step of an adversarial autoencoder, as a tuple of phases over shared buffers.

A task of the paper is a choice of wiring and phases (PHASES), never a loop of its own. The whole step is capture-safe:
static buffers, no value read back, no shape that depends on data; batches, noise and prior samples are drawn on the
device. Every tensor has a leading replica axis [R, ...].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import kernels, priors
from .config import Config
from .data import Data, labeled_subset
from .networks import MLP, AdamClock, Optimizer, Tape
from .profiling import mark


def reconstruction(s: Step, terms: Tensor) -> None:
    """Update encoder and decoder to reconstruct the clean image from the code of the noisy one."""
    s.encode()
    s.decoder.forward(s.decoding)
    loss = (s.cfg.output, s.cfg.reconstruction, s.scale)
    kernels.reconstruction_loss(s.decoding.x[-1], s.target, s.decoding.g[-1], terms[:, : s.batch], *loss)
    s.decoder.backward(s.decoding, s.optimizers["reconstruction.decoder"], input_gradient=True)
    s.encoder_backward("reconstruction.encoder")


def discriminator(s: Step, terms: Tensor) -> None:
    """Update every discriminator to tell prior samples from codes. Leaves the codes for the generator phase, since the
    encoder does not change in between. Each loss is a mean over prior samples and codes together: with their sum
    instead, twice the rate, mnist-100 learns more slowly (bench/LOG.md)."""
    s.encode()
    for (name, network), part in zip(s.discriminators.items(), terms.split(2 * s.batch, 1), strict=False):
        network.judge(s.judging[name], s.batch, part, s.optimizers[f"discriminator.{name}"], False, s.scale)


def generator(s: Step, terms: Tensor) -> None:
    """Update the encoder so that the discriminators take its codes (those of the discriminator phase) for prior
    samples."""
    for (name, network), part in zip(s.discriminators.items(), terms.split(s.batch, 1), strict=False):
        network.judge(s.fooling[name], s.batch, part, None, True, s.scale)
    s.encoder_backward("generator.encoder")


def classification(s: Step, terms: Tensor) -> None:
    """Update the encoder to predict the labels of the labelled batch."""
    tape = s.classifying
    s.encoder.forward(tape)
    y, grad = (s.heads(t)["y"] for t in (tape.x[-1], tape.g[-1]))  # the gradient of z stays zero
    kernels.softmax_cross_entropy(y, s.labels, grad, terms[:, : s.labels.shape[1]], s.scale)
    s.encoder.backward(tape, s.optimizers["classification.encoder"], input_gradient=False)


PHASES: dict[str, tuple[Callable[[Step, Tensor], None], ...]] = {
    "unsupervised": (reconstruction, discriminator, generator),
    "semi_supervised": (reconstruction, discriminator, generator, classification),
}


COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What products read, by precision; else what is learned itself."""


def seeds(seed: int, *stream: int) -> int:
    """A well-mixed seed for one use of a replica's seed."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> 1)


class Step:
    """Networks, optimisers and buffers of R replicas; calling it runs one whole step.

    Randomness of replica r comes from seed + r alone: weights and labelled subset from the seed, the order of an epoch
    from (seed, epoch), noise and prior samples on a GPU from (seed, step), by Philox, else from one generator per
    replica, whose state is part of state().

    Args:
        cfg: validated config.
        data: data set; its training examples are moved to the device once.
        device: where everything lives.

    Raises:
        ValueError: the config asks for more than the data has (batch size, labels).
    """

    def __init__(self, cfg: Config, data: Data, device: torch.device):
        n, d = data.x_train.shape
        if cfg.batch_size > n:
            raise ValueError(f"batch_size={cfg.batch_size}: expected at most the {n} training examples of {data.name}")
        self.cfg, self.batch, self.device = cfg, cfg.batch_size, torch.device(device)
        self.steps_per_epoch = n // cfg.batch_size
        self.phases = PHASES[cfg.task]
        dtype = torch.float64 if cfg.precision == "fp64" else torch.float32
        floats = {"device": device, "dtype": dtype}
        r, b, hidden = cfg.replicas, self.batch, cfg.hidden
        self.replica_seeds = [cfg.seed + k for k in range(r)]
        classes = data.n_classes if cfg.task == "semi_supervised" else 0
        self.code_sizes = {"z": cfg.style_dim} | ({"y": classes} if classes else {})
        code = sum(self.code_sizes.values())

        weights = [torch.Generator().manual_seed(seeds(s, 0)) for s in self.replica_seeds]
        options = {"std": cfg.init_std, "generators": weights, "compute": COMPUTE.get(cfg.precision), **floats}
        self.encoder = MLP.initialize((d, *hidden, code), **options)
        self.decoder = MLP.initialize((code, *hidden, d), **options)
        self.discriminators = {
            name: MLP.initialize((size, *hidden, 1), **options) for name, size in self.code_sizes.items()
        }
        costs = ("reconstruction", "adversarial", "classification")
        self.rates = {cost: torch.empty(r, 1, 1, **floats) for cost in costs}
        self.clock = AdamClock(device, dtype) if cfg.optimizer == "adam" else None
        self.scale = torch.tensor([2.0**16, 0, 0], **floats) if cfg.precision == "fp16" else None
        self.optimizers = {
            "reconstruction.encoder": self._optimizer(self.encoder, "reconstruction", cfg.momentum),
            "reconstruction.decoder": self._optimizer(self.decoder, "reconstruction", cfg.momentum),
            "generator.encoder": self._optimizer(self.encoder, "adversarial", cfg.momentum_adversarial),
        }
        for name, network in self.discriminators.items():
            optimizer = self._optimizer(network, "adversarial", cfg.momentum_adversarial)
            self.optimizers[f"discriminator.{name}"] = optimizer

        self.x = data.x_train.to(device)
        if self.x.dtype != torch.uint8:
            self.x = self.x.to(dtype)
        self.codes = torch.zeros(r, 2 * b, code, **floats)  # prior samples, then what the encoder makes
        self.encoding = self.encoder.tape(b, last=self.codes[:, b:])
        self.decoding = self.decoder.tape(b, first=self.codes[:, b:], first_gradient=self.encoding.g[-1])
        heads = self.heads(self.codes)
        self.judging = {name: network.tape(2 * b, heads[name]) for name, network in self.discriminators.items()}
        self.fooling = {name: tape.rows(b, 2 * b) for name, tape in self.judging.items()}
        for name, part in self.heads(self.encoding.g[-1]).items():
            self.fooling[name].g[0] = part
        self.target = self._clean(self.encoding, dtype)
        self.order = torch.empty(r, self.steps_per_epoch * b, dtype=torch.int32, device=device)
        self.offsets = torch.arange(b, device=device)
        if cfg.task == "semi_supervised":
            self._add_labels(cfg, data, classes)
        self.staging = torch.empty(r * b, d, dtype=torch.uint8, device=device) if self.x.dtype == torch.uint8 else None

        self.count = torch.zeros(2, dtype=torch.int64, device=device)  # steps done in this epoch, and in all
        self.cursor = self.count[:1]
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)  # steps done since the losses were read
        self.losses = torch.zeros(min(cfg.log_every, self.steps_per_epoch), len(self.phases), r, **floats)
        self.terms = torch.zeros(len(self.phases), r, 2 * b * len(self.code_sizes), **floats)
        self.drawn = torch.tensor([seeds(s, 1) for s in self.replica_seeds], device=device)
        self.generators: list[torch.Generator] = []
        if not kernels.fused(self.codes):
            self.generators = [torch.Generator(device).manual_seed(seeds(s, 1)) for s in self.replica_seeds]

    def _optimizer(self, network: MLP, rate: str, momentum: float) -> Optimizer:
        return Optimizer(network, self.rates[rate], 0.0 if self.clock else momentum, self.clock, self.scale)

    def _clean(self, tape: Tape, dtype: torch.dtype) -> Tensor:
        """Where a batch is gathered before noise: the network's input itself if there is none."""
        x = tape.x[0]
        return torch.empty_like(x, dtype=dtype) if self.cfg.input_noise or x.dtype != dtype else x

    def _add_labels(self, cfg: Config, data: Data, classes: int) -> None:
        if data.y_train is None:
            raise ValueError(f"task='semi_supervised': expected labels with the training data, {data.name} has none")
        subsets = [labeled_subset(data.y_train, cfg.n_labeled, classes, s) for s in self.replica_seeds]
        self.labeled = torch.stack(subsets).to(self.device, torch.int32)  # [R, L] rows of x
        b = min(cfg.batch_size, self.labeled.shape[1])
        self.y = data.y_train.to(self.device)
        self.classifying = self.encoder.tape(b)
        self.labeled_target = self._clean(self.classifying, self.rates["classification"].dtype)
        self.labels = torch.empty(cfg.replicas, b, dtype=torch.int64, device=self.device)
        self.labeled_order = torch.empty(cfg.replicas, self.steps_per_epoch * b, dtype=torch.int32, device=self.device)
        self.optimizers["classification.encoder"] = self._optimizer(self.encoder, "classification", cfg.momentum)

    def heads(self, code: Tensor) -> dict[str, Tensor]:
        """Views of the parts of a code buffer [R, B, style_dim (+ classes)] by name."""
        return dict(zip(self.code_sizes, code.split(list(self.code_sizes.values()), -1), strict=True))

    def encode(self) -> None:
        """Fill encoding.x[-1] with z, and y = softmax(logits) behind it if there is a label head."""
        self.encoder.forward(self.encoding)
        if "y" in self.code_sizes:
            kernels.softmax_(self.heads(self.encoding.x[-1])["y"])

    def encoder_backward(self, optimizer: str) -> None:
        """Update the encoder from encoding.g[-1], the gradient with respect to z and y."""
        if "y" in self.code_sizes:
            kernels.softmax_backward_(self.heads(self.encoding.g[-1])["y"], self.heads(self.encoding.x[-1])["y"])
        self.encoder.backward(self.encoding, self.optimizers[optimizer], input_gradient=False)

    def start_epoch(self, epoch: int) -> None:
        """Shuffle for an epoch, rewind the cursor, set the learning rates. Runs on the host, between steps."""
        cfg = self.cfg
        for k, s in enumerate(self.replica_seeds):
            g = torch.Generator(self.device).manual_seed(seeds(s, 2, epoch))
            self.order[k].copy_(_shuffled(self.x.shape[0], self.order.shape[1], g))
            if "y" in self.code_sizes:
                drawn = _shuffled(self.labeled.shape[1], self.labeled_order.shape[1], g)
                self.labeled_order[k].copy_(self.labeled[k][drawn])
        self.cursor.zero_()
        self.rates["reconstruction"].fill_(cfg.rate(cfg.lr_reconstruction, epoch))
        self.rates["adversarial"].fill_(cfg.rate(cfg.lr_adversarial, epoch))
        self.rates["classification"].fill_(cfg.rate(cfg.lr_classification, epoch))

    def draw(self) -> None:
        """Fill the batch, its noise and the prior samples for this step."""
        if not self.generators:
            return self._draw_by_count()
        self._batch(self.order, self.target, self.encoding.x[0])
        if "y" in self.code_sizes:
            index = self._batch(self.labeled_order, self.labeled_target, self.classifying.x[0])
            torch.index_select(self.y, 0, index.view(-1), out=self.labels.view(-1))
        prior = self.heads(self.codes[:, : self.batch])
        for k, g in enumerate(self.generators):
            priors.gaussian(prior["z"][k], self.cfg.prior_std, g)
            if "y" in self.code_sizes:
                priors.categorical(prior["y"][k], g)

    def _draw_by_count(self) -> None:
        from .kernels import draws

        cfg, x = self.cfg, self.encoding.x[0]
        clean, codes = None if self.target is x else self.target, self.codes[:, : self.batch]
        labeled, y = None, None
        if "y" in self.code_sizes:
            labeled, y = (self.labeled_order, self.classifying.x[0], self.labels), self.y
        state = (self.count, self.drawn)
        prior = (codes, cfg.prior_std, cfg.style_dim)
        draws.draw(self.x, y, *state, self.order, clean, x, cfg.input_noise, *prior, labeled)

    def _batch(self, order: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
        """Fill clean [R, B, D] with the step's rows of x in the given order, and noisy with the same plus input noise,
        unless they are one buffer. Returns: the rows' indices [R, B]."""
        rows = clean.shape[1]
        index = torch.index_select(order, 1, self.cursor * rows + self.offsets[:rows])
        kernels.gather(self.x, index, clean, None if self.staging is None else self.staging[: index.numel()])
        if noisy is not clean:
            if self.cfg.input_noise:
                for k, g in enumerate(self.generators):
                    noisy[k].normal_(0, self.cfg.input_noise, generator=g)
                noisy.add_(clean)
            else:
                noisy.copy_(clean)
        return index

    def __call__(self) -> None:
        """One step of every replica. Capture-safe: no host synchronisation, no rebound buffer."""
        with mark("draw"):
            self.draw()
            if self.clock is not None:
                self.clock.advance()
        for phase, terms in zip(self.phases, self.terms, strict=True):
            with mark(phase.__name__):
                phase(self, terms)
        kernels.finish(self.terms, self.losses, self.slot, self.count, self.scale)

    def parameters(self) -> dict[str, Tensor]:
        """Weights and biases [R, ...] of all networks by name; the tensors themselves."""
        return {f"{n}.{k}": t for n, network in self.networks().items() for k, t in network.state().items()}

    def networks(self) -> dict[str, MLP]:
        """All networks by name."""
        discriminators = {f"discriminator.{name}": network for name, network in self.discriminators.items()}
        return {"encoder": self.encoder, "decoder": self.decoder, **discriminators}

    def carried(self) -> list[Tensor]:
        """Every tensor that one step leaves for the next, but for the generators' states."""
        shadows = [t for network in self.networks().values() for t in network.shadows]
        state = [t for name, t in self.state().items() if not name.startswith("generator.")]
        return [*state, *shadows, self.count, self.slot]

    def state(self) -> dict[str, Tensor]:
        """All that resuming needs besides config, data and step count, by name."""
        named = self.parameters()
        named |= {f"optimizer.{n}.{k}": t for n, o in self.optimizers.items() for k, t in o.state().items()}
        if self.clock is not None:
            named["optimizer.powers"] = self.clock.powers
        if self.scale is not None:
            named["scale"] = self.scale
        return named | {f"generator.{s}": g.get_state() for s, g in enumerate(self.generators)}

    def restore(self, state: dict[str, Tensor], done: int) -> None:
        """Copy a state() back into place, as after `done` steps."""
        for name, tensor in self.state().items():
            if not name.startswith("generator."):
                tensor.copy_(state[name])
        for network in self.networks().values():
            network.refresh()
        for k, g in enumerate(self.generators):
            g.set_state(state[f"generator.{k}"].cpu())
        self.count[1] = done


def _shuffled(n: int, length: int, generator: torch.Generator) -> Tensor:
    """`length` indices in [0, n): as many independent permutations as it takes, one behind the other."""
    options = {"generator": generator, "device": generator.device}
    return torch.cat([torch.randperm(n, **options) for _ in range(-(-length // n))])[:length]

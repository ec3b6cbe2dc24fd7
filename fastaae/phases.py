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
from .networks import MLP, SGD, Adam, Tape


def reconstruction(s: Step) -> Tensor:
    """Update encoder and decoder to reconstruct the clean image from the code of the noisy one. Returns: loss [R]."""
    s.encode()
    s.decoder.forward(s.decoding)
    logits, grad = s.decoding.x[-1], s.decoding.g[-1]
    if s.cfg.reconstruction == "cross_entropy":
        loss = kernels.cross_entropy(logits, s.target, grad)
    else:
        loss = kernels.squared_error(logits, s.target, grad, sigmoid=s.cfg.output == "sigmoid")
    s.decoder.backward(s.decoding, s.optimizers["reconstruction.decoder"], input_gradient=True)
    s.encoder_backward("reconstruction.encoder")
    return loss


def discriminator(s: Step) -> Tensor:
    """Update every discriminator to tell prior samples from codes. Leaves the codes for the generator phase, since the
    encoder does not change in between. Each loss is a mean over prior samples and codes together: with their sum
    instead, twice the rate, mnist-100 learns more slowly (bench/LOG.md). Returns: loss [R], summed over
    discriminators."""
    s.encode()
    total = 0
    for name, network in s.discriminators.items():
        tape = s.judging[name]
        tape.x[0][:, s.batch :].copy_(s.heads(s.encoding.x[-1])[name])
        network.forward(tape)
        total = total + kernels.discriminator_loss(tape.x[-1], tape.g[-1])
        network.backward(tape, s.optimizers[f"discriminator.{name}"], input_gradient=False)
    return total


def generator(s: Step) -> Tensor:
    """Update the encoder so that the discriminators take its codes (those of the discriminator phase) for prior
    samples. Returns: loss [R], summed over discriminators."""
    total = 0
    for name, network in s.discriminators.items():
        tape = s.fooling[name]
        network.forward(tape)
        total = total + kernels.generator_loss(tape.x[-1], tape.g[-1])
        network.backward(tape, None, input_gradient=True)
        s.heads(s.encoding.g[-1])[name].copy_(tape.g[0])
    s.encoder_backward("generator.encoder")
    return total


def classification(s: Step) -> Tensor:
    """Update the encoder to predict the labels of the labelled batch. Returns: loss [R]."""
    tape = s.classifying
    s.encoder.forward(tape)
    heads, grads = s.heads(tape.x[-1]), s.heads(tape.g[-1])
    loss = kernels.softmax_cross_entropy(heads["y"], s.labels, grads["y"])  # the gradient of z stays zero
    s.encoder.backward(tape, s.optimizers["classification.encoder"], input_gradient=False)
    return loss


PHASES: dict[str, tuple[Callable[[Step], Tensor], ...]] = {
    "unsupervised": (reconstruction, discriminator, generator),
    "semi_supervised": (reconstruction, discriminator, generator, classification),
}


def seeds(seed: int, *stream: int) -> int:
    """A well-mixed seed for one use of a replica's seed."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> 1)


class Step:
    """Networks, optimisers and buffers of R replicas; calling it runs one whole step.

    Randomness of replica r comes from seed + r alone: weights and labelled subset from the seed, the order of an epoch
    from (seed, epoch), noise and prior samples from one generator per replica, whose state is part of state().

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
        self.cfg, self.batch, self.device = cfg, cfg.batch_size, device
        self.steps_per_epoch = n // cfg.batch_size
        self.phases = PHASES[cfg.task]
        dtype = {"fp32": torch.float32, "fp64": torch.float64}[cfg.precision]
        floats = {"device": device, "dtype": dtype}
        r, b, hidden = cfg.replicas, self.batch, cfg.hidden
        self.replica_seeds = [cfg.seed + k for k in range(r)]
        classes = data.n_classes if cfg.task == "semi_supervised" else 0
        self.code_sizes = {"z": cfg.style_dim} | ({"y": classes} if classes else {})
        code = sum(self.code_sizes.values())

        weights = [torch.Generator().manual_seed(seeds(s, 0)) for s in self.replica_seeds]
        self.encoder = MLP.initialize((d, *hidden, code), cfg.init_std, weights, **floats)
        self.decoder = MLP.initialize((code, *hidden, d), cfg.init_std, weights, **floats)
        self.discriminators = {
            name: MLP.initialize((size, *hidden, 1), cfg.init_std, weights, **floats)
            for name, size in self.code_sizes.items()
        }
        costs = ("reconstruction", "adversarial", "classification")
        self.rates = {cost: torch.empty(1, 1, 1, **floats) for cost in costs}
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
        self.encoding = self.encoder.tape(b)
        self.decoding = self.decoder.tape(b, source=self.encoding)
        self.judging = {name: network.tape(2 * b) for name, network in self.discriminators.items()}
        self.fooling = {name: tape.rows(b, 2 * b) for name, tape in self.judging.items()}
        self.target = self._clean(self.encoding)
        self.order = torch.empty(r, self.steps_per_epoch * b, dtype=torch.int32, device=device)
        self.offsets = torch.arange(b, device=device)
        if cfg.task == "semi_supervised":
            self._add_labels(cfg, data, classes)
        self.staging = torch.empty(r * b, d, dtype=torch.uint8, device=device) if self.x.dtype == torch.uint8 else None

        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)  # steps done in this epoch
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)  # steps done since the losses were read
        self.losses = torch.zeros(min(cfg.log_every, self.steps_per_epoch), len(self.phases), r, **floats)
        self.row = torch.zeros(1, len(self.phases), r, **floats)
        self.generators = [torch.Generator(device).manual_seed(seeds(s, 1)) for s in self.replica_seeds]

    def _optimizer(self, network: MLP, rate: str, momentum: float) -> SGD | Adam:
        if self.cfg.optimizer == "adam":
            return Adam(network, self.rates[rate])
        return SGD(network, self.rates[rate], momentum)

    def _clean(self, tape: Tape) -> Tensor:
        """Where a batch is gathered before noise: the network's input itself if there is none."""
        return torch.empty_like(tape.x[0]) if self.cfg.input_noise else tape.x[0]

    def _add_labels(self, cfg: Config, data: Data, classes: int) -> None:
        if data.y_train is None:
            raise ValueError(f"task='semi_supervised': expected labels with the training data, {data.name} has none")
        subsets = [labeled_subset(data.y_train, cfg.n_labeled, classes, s) for s in self.replica_seeds]
        self.labeled = torch.stack(subsets).to(self.device, torch.int32)  # [R, L] rows of x
        b = min(cfg.batch_size, self.labeled.shape[1])
        self.y = data.y_train.to(self.device)
        self.classifying = self.encoder.tape(b)
        self.labeled_target = self._clean(self.classifying)
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
            y = self.heads(self.encoding.x[-1])["y"]
            y.copy_(torch.softmax(y, -1))

    def encoder_backward(self, optimizer: str) -> None:
        """Update the encoder from encoding.g[-1], the gradient with respect to z and y."""
        if "y" in self.code_sizes:
            kernels.softmax_backward_(self.heads(self.encoding.g[-1])["y"], self.heads(self.encoding.x[-1])["y"])
        self.encoder.backward(self.encoding, self.optimizers[optimizer], input_gradient=False)

    def start_epoch(self, epoch: int) -> None:
        """Shuffle for an epoch, rewind the cursor, set the learning rates. Runs on the host, between steps."""
        cfg = self.cfg
        for k, s in enumerate(self.replica_seeds):
            g = torch.Generator().manual_seed(seeds(s, 2, epoch))
            self.order[k].copy_(_shuffled(self.x.shape[0], self.order.shape[1], g))
            if "y" in self.code_sizes:
                drawn = _shuffled(self.labeled.shape[1], self.labeled_order.shape[1], g)
                self.labeled_order[k].copy_(self.labeled[k][drawn.to(self.device)])
        self.cursor.zero_()
        self.rates["reconstruction"].fill_(cfg.rate(cfg.lr_reconstruction, epoch))
        self.rates["adversarial"].fill_(cfg.rate(cfg.lr_adversarial, epoch))
        self.rates["classification"].fill_(cfg.rate(cfg.lr_classification, epoch))

    def draw(self) -> None:
        """Fill the batch, its noise and the prior samples for this step."""
        self._batch(self.order, self.target, self.encoding.x[0])
        if "y" in self.code_sizes:
            index = self._batch(self.labeled_order, self.labeled_target, self.classifying.x[0])
            torch.index_select(self.y, 0, index.view(-1), out=self.labels.view(-1))
        for k, g in enumerate(self.generators):
            priors.gaussian(self.judging["z"].x[0][k, : self.batch], self.cfg.prior_std, g)
            if "y" in self.code_sizes:
                priors.categorical(self.judging["y"].x[0][k, : self.batch], g)

    def _batch(self, order: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
        """Fill clean [R, B, D] with the step's rows of x in the given order, and noisy with the same plus input noise,
        unless they are one buffer. Returns: the rows' indices [R, B]."""
        rows = clean.shape[1]
        index = torch.index_select(order, 1, self.cursor * rows + self.offsets[:rows])
        kernels.gather(self.x, index, clean, None if self.staging is None else self.staging[: index.numel()])
        if noisy is not clean:
            for k, g in enumerate(self.generators):
                noisy[k].normal_(0, self.cfg.input_noise, generator=g)
            noisy.add_(clean)
        return index

    def __call__(self) -> None:
        """One step of every replica. Capture-safe: no host synchronisation, no rebound buffer."""
        self.draw()
        for optimizer in self.optimizers.values():
            optimizer.advance()
        for i, phase in enumerate(self.phases):
            self.row[0, i].copy_(phase(self))
        self.losses.index_copy_(0, self.slot, self.row)
        self.cursor.add_(1)
        self.slot.add_(1)

    def parameters(self) -> dict[str, Tensor]:
        """Weights and biases [R, ...] of all networks by name; the tensors themselves."""
        networks = {"encoder": self.encoder, "decoder": self.decoder}
        networks |= {f"discriminator.{name}": network for name, network in self.discriminators.items()}
        return {f"{n}.{k}": t for n, network in networks.items() for k, t in network.state().items()}

    def state(self) -> dict[str, Tensor]:
        """All that resuming needs besides config, data and step count, by name."""
        named = self.parameters()
        named |= {f"optimizer.{n}.{k}": t for n, o in self.optimizers.items() for k, t in o.state().items()}
        return named | {f"generator.{s}": g.get_state() for s, g in enumerate(self.generators)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Copy a state() back into place."""
        for name, tensor in self.state().items():
            if not name.startswith("generator."):
                tensor.copy_(state[name])
        for k, g in enumerate(self.generators):
            g.set_state(state[f"generator.{k}"].cpu())


def _shuffled(n: int, length: int, generator: torch.Generator) -> Tensor:
    """`length` indices in [0, n): as many independent permutations as it takes, one behind the other."""
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-length // n))])[:length]

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

from .. import kernels
from ..config import Config
from ..data import Data, labeled_subset
from . import priors
from .networks import MLP, AdamClock, Dropout, Heads, Optimizer, Standardization, Tape
from .profiling import mark


def reconstruction(s: Step, terms: Tensor) -> None:
    """Update encoder and decoder to reconstruct the clean image from the code of the noisy one."""
    if s.penalty is None:  # divergence has encoded
        s.encode(MOMENTUM)
    if s.heads is not None:
        s.heads.forward(s.code["z"], s.code["y"], s.decoding.x[0])
    s.decoder.forward(s.decoding, momentum=MOMENTUM)
    loss = (s.cfg.output, s.cfg.reconstruction, s.scale)
    kernels.reconstruction_loss(s.decoding.x[-1], s.target, s.decoding.g[-1], terms[:, : s.batch], *loss)
    s.decoder.backward(s.decoding, s.optimizers["reconstruction.decoder"], input_gradient=True)
    if s.heads is not None:
        g = s.heads.backward(s.decoding.g[0], s.code["y"], s.gradient["z"], s.gradient["y"])
        if s.cfg.fixed_heads is None:
            s.optimizers["reconstruction.heads"].step("weight", s.heads.weight, g)
    s.encoder_backward("reconstruction.encoder", s.penalty)


def separation(s: Step, terms: Tensor) -> None:
    """Move apart the cluster heads that are near each other."""
    g = torch.empty_like(s.heads.weight)
    terms[:, 0] = kernels.head_separation(s.heads.weight, s.cfg.separation, g)
    s.optimizers["separation.heads"].step("weight", s.heads.weight, g)


def divergence(s: Step, terms: Tensor) -> None:
    """Encode, and leave the loss and gradient of a regulariser without discriminators for the reconstruction phase."""
    cfg = s.cfg
    s.encode(MOMENTUM)
    if cfg.regularizer == "kl":
        (z, v), grads = ([s.parts(t)[k] for k in ("z", "log_variance")] for t in (s.encoding.x[-1], s.penalty))
        loss = kernels.kl(z, v, cfg.prior_std, *grads)
    else:
        spread = cfg.prior_std * (2 * cfg.style_dim) ** 0.5  # between two samples of the prior
        scales = [spread * k for k in MMD_SCALES]
        loss = kernels.mmd(s.code["z"], s.prior["z"], scales, s.penalty, "rbf", biased=True)
    s.penalty.mul_(cfg.regularizer_weight)
    torch.mul(loss, cfg.regularizer_weight, out=terms[:, 0])


def discriminator(s: Step, terms: Tensor) -> None:
    """Update every discriminator to tell prior samples from codes. Leaves the codes for the generator phase, since the
    encoder does not change in between. Each loss is a mean over prior samples and codes together: with their sum
    instead, twice the rate, mnist-100 learns more slowly (bench/LOG.md)."""
    if s.encoder is None:
        s.decode_prior()
    else:
        s.encode()
    for (name, network), part in zip(s.discriminators.items(), terms.split(2 * s.batch, 1), strict=False):
        network.judge(s.judging[name], s.batch, part, s.optimizers[f"discriminator.{name}"], False, s.scale)


def generator(s: Step, terms: Tensor) -> None:
    """Update the encoder so that the discriminators take its codes (those of the discriminator phase) for prior
    samples; without an encoder, the decoder so that they take its images for the data's."""
    for (name, network), part in zip(s.discriminators.items(), terms.split(s.batch, 1), strict=False):
        network.judge(s.fooling[name], s.batch, part, None, True, s.scale)
    if s.encoder is None:
        s.decoder_backward("generator.decoder")
    else:
        s.encoder_backward("generator.encoder")


def classification(s: Step, terms: Tensor) -> None:
    """Update the encoder to predict the labels of the labelled batch."""
    tape = s.classifying
    s.encoder.forward(tape)
    y, grad = (s.parts(t)["y"] for t in (tape.x[-1], tape.g[-1]))  # the gradient of z stays zero
    kernels.softmax_cross_entropy(y, s.labels, grad, terms[:, : s.labels.shape[1]], s.scale)
    s.encoder.backward(tape, s.optimizers["classification.encoder"], input_gradient=False)


PHASES: dict[str, tuple[Callable[[Step, Tensor], None], ...]] = {
    "unsupervised": (reconstruction, discriminator, generator),
    "supervised": (reconstruction, discriminator, generator),
    "semi_supervised": (reconstruction, discriminator, generator, classification),
    "clustering": (reconstruction, discriminator, generator),
    "embedding": (reconstruction, separation, discriminator, generator, classification),
    "gan": (discriminator, generator),
}
"""The phases of each task, before _phases() leaves out what the config has no use for."""


def _phases(cfg: Config) -> tuple[Callable[[Step, Tensor], None], ...]:
    if cfg.regularizer != "adversarial":
        return divergence, reconstruction
    unused = [separation] if cfg.fixed_heads is not None else []
    unused += [] if cfg.classifies else [classification]
    return tuple(phase for phase in PHASES[cfg.task] if phase not in unused)


MMD_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Kernels of the maximum mean discrepancy, by their width: some narrower than the prior, one wider, as in GMMN."""

MOMENTUM = 0.1
"""Share of a step's statistics in the running ones of batch normalisation, torch's default."""

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
        prior: draws samples of z where the config's prior is "custom".

    Raises:
        ValueError: the config asks for more than the data has (batch size, labels), or a function is missing.
    """

    def __init__(self, cfg: Config, data: Data, device: torch.device, prior: priors.Custom | None = None):
        n, d = data.x_train.shape
        if cfg.batch_size > n:
            raise ValueError(f"batch_size={cfg.batch_size}: expected at most the {n} training examples of {data.name}")
        self.cfg, self.batch, self.device = cfg, cfg.batch_size, torch.device(device)
        self.steps_per_epoch = n // cfg.batch_size
        self.phases = _phases(cfg)
        dtype = torch.float64 if cfg.precision == "fp64" else torch.float32
        floats = {"device": device, "dtype": dtype}
        self.source = priors.chosen(cfg.prior, prior, torch.empty(cfg.batch_size, cfg.style_dim, **floats))
        r, b, hidden = cfg.replicas, self.batch, cfg.hidden
        self.replica_seeds = [cfg.seed + k for k in range(r)]
        if cfg.task == "supervised" and data.y_train is None:
            raise ValueError(f"task='supervised': expected labels with the training data, {data.name} has none")
        self.n_classes = cfg.n_clusters or (0 if cfg.task in ("unsupervised", "gan") else data.n_classes)  # size of y
        self.code_sizes = {"z": cfg.style_dim}  # what the encoder makes
        if cfg.task in ("semi_supervised", "clustering", "embedding"):
            self.code_sizes["y"] = self.n_classes
        made, code = sum(self.code_sizes.values()), cfg.style_dim + self.n_classes
        if cfg.posterior == "gaussian":
            self.code_sizes["log_variance"] = cfg.style_dim
        out = sum(self.code_sizes.values())
        told = data.n_classes + 1 if cfg.label_prior else 0  # columns for the discriminator of z alone
        seen = {"z": slice(told + cfg.style_dim)} | {"y": slice(told + cfg.style_dim, None)}

        weights = [torch.Generator().manual_seed(seeds(s, 0)) for s in self.replica_seeds]
        options = {"std": cfg.init_std, "generators": weights, "compute": COMPUTE.get(cfg.precision), **floats}
        norm = {"batch_norm": cfg.batch_norm != "none"}
        noise = (cfg.noise_layer, cfg.noise_dim if cfg.posterior == "universal" else 0)
        gan = cfg.task == "gan"
        self.encoder = None if gan else MLP.initialize((d, *hidden, out), **options, **norm, noise=noise)
        norm["batch_norm"] = cfg.batch_norm == "autoencoder"
        seen_code = cfg.style_dim if cfg.task == "embedding" else code
        self.decoder = MLP.initialize((seen_code, *hidden, d), **options, **norm)
        self.discriminators = {
            name: MLP.initialize((size + (told if name == "z" else 0), *hidden, 1), **options)
            for name, size in ({"x": d} if gan else self.code_sizes).items()
            if cfg.regularizer == "adversarial" and name != "log_variance"
        }
        self.heads = self._heads(cfg, weights, floats) if cfg.task == "embedding" else None
        costs = ("reconstruction", "adversarial", "classification")
        self.rates = {cost: torch.empty(r, 1, 1, **floats) for cost in costs}
        self.clock = AdamClock(device, dtype) if cfg.optimizer == "adam" else None
        self.scale = torch.tensor([2.0**16, 0, 0], **floats) if cfg.precision == "fp16" else None
        self.optimizers = {}
        for name in () if gan else ("encoder", "decoder"):
            network = self.encoder if name == "encoder" else self.decoder
            self.optimizers[f"reconstruction.{name}"] = self._optimizer(network, "reconstruction", cfg.momentum)
        if separation in self.phases:
            for cost in ("reconstruction", "separation"):
                self.optimizers[f"{cost}.heads"] = self._optimizer(self.heads, "reconstruction", cfg.momentum)
        if cfg.regularizer == "adversarial":
            network, name = (self.decoder, "decoder") if gan else (self.encoder, "encoder")
            optimizer = self._optimizer(network, "adversarial", cfg.momentum_adversarial)
            self.optimizers[f"generator.{name}"] = optimizer
        for name, network in self.discriminators.items():
            optimizer = self._optimizer(network, "adversarial", cfg.momentum_adversarial)
            self.optimizers[f"discriminator.{name}"] = optimizer

        self.x = data.x_train.to(device)
        if self.x.dtype != torch.uint8:
            self.x = self.x.to(dtype)
        self.standard = Standardization.fit(self.x, r, dtype) if cfg.standardize else None
        self.codes = torch.zeros(r, 2 * b, told + code, **floats)  # prior samples, then what the encoder makes
        gradient = self.decoder.shadows[0].new_zeros(r, b, told + code)  # with respect to the latter
        self.told, self.given = self.codes[..., :told], self.codes[:, b:, told + made :]  # labels of the batch
        parts = self.codes[..., told : told + made].split(b, 1)
        self.prior, self.code = (self.parts(part) for part in parts)
        self.gradient = self.parts(gradient[..., told : told + made])
        apart = cfg.posterior == "gaussian"  # what the encoder makes is no code yet
        last = {} if apart else {"last": parts[1], "last_gradient": gradient[..., told : told + made]}
        self.encoding = None if gan else self.encoder.tape(b, **last)
        self.noise = torch.zeros_like(self.code["z"]) if apart else None
        self.penalty = None
        if cfg.regularizer != "adversarial":
            self.penalty = torch.zeros_like(self.encoding.x[-1] if cfg.regularizer == "kl" else self.code["z"])
        if gan:
            self.images = torch.zeros(r, 2 * b, d, **floats)  # of the data, then decoded draws from the prior
            self.decoding = self.decoder.tape(b, self.codes[:, :b], last=self.images[:, b:])
        elif self.heads is None:
            self.decoding = self.decoder.tape(b, self.codes[:, b:, told:], first_gradient=gradient[..., told:])
        else:
            self.decoding = self.decoder.tape(b, torch.zeros_like(self.code["z"]))
        self.judging = {
            name: network.tape(2 * b, self.images if gan else self.codes[..., seen[name]])
            for name, network in self.discriminators.items()
        }
        self.input = self.images[:, :b] if gan else self._images(self.encoding)
        self.target = torch.empty(r, b, d, **floats) if gan else self._clean(self.encoding, dtype)
        self.order = torch.empty(r, self.steps_per_epoch * b, dtype=torch.int32, device=device)
        self.offsets = torch.arange(b, device=device)
        self.y = None if data.y_train is None else data.y_train.to(device)
        self.classifying: Tape | None = None
        if cfg.classifies:
            self._add_labels(cfg, data)
        self.input_masks: list[Tensor] = []
        self.dropouts = self._add_dropout(cfg)
        self.fooling = {name: tape.rows(b, 2 * b) for name, tape in self.judging.items()}
        for name, tape in self.fooling.items():
            if not gan:
                tape.g[0] = gradient[..., seen[name]]
        self.components = torch.zeros(r, b, dtype=torch.int64, device=device)
        if cfg.label_prior:
            self._add_shown(cfg, data)
        self.staging = torch.empty(r * b, d, dtype=torch.uint8, device=device) if self.x.dtype == torch.uint8 else None

        self.count = torch.zeros(2, dtype=torch.int64, device=device)  # steps done in this epoch, and in all
        self.cursor = self.count[:1]
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)  # steps done since the losses were read
        self.losses = torch.zeros(min(cfg.log_every, self.steps_per_epoch), len(self.phases), r, **floats)
        self.terms = torch.zeros(len(self.phases), r, 2 * b * max(1, len(self.discriminators)), **floats)
        self.drawn = torch.tensor([seeds(s, 1) for s in self.replica_seeds], device=device)
        self.generators: list[torch.Generator] = []
        # kernels/draws.py draws batches with noise, a Gaussian prior and uniform classes, and nothing else.
        others = (cfg.prior, cfg.posterior) != ("gaussian", "deterministic") or cfg.task in ("supervised", "gan")
        if others or self.standard or self.dropouts or not kernels.fused(self.codes):
            self.generators = [torch.Generator(device).manual_seed(seeds(s, 1)) for s in self.replica_seeds]

    def _heads(self, cfg: Config, generators: list[torch.Generator], floats: dict) -> Heads:
        """Fixed, or at random, near enough for the separation phase to spread them."""
        shape = (self.n_classes, cfg.style_dim)
        if cfg.fixed_heads is None:
            heads = torch.stack([cfg.separation / 4 * torch.randn(shape, generator=g) for g in generators])
        elif shape[0] == shape[1]:
            heads = cfg.fixed_heads * torch.eye(shape[0]).repeat(cfg.replicas, 1, 1)
        else:
            raise ValueError(f"style_dim={shape[1]}: expected {shape[0]}, the classes, with fixed_heads, a square W_C")
        return Heads(heads.to(**floats))

    def _optimizer(self, network: MLP | Heads, rate: str, momentum: float) -> Optimizer:
        return Optimizer(network, self.rates[rate], 0.0 if self.clock else momentum, self.clock, self.scale)

    def _clean(self, tape: Tape, dtype: torch.dtype) -> Tensor:
        """Where a batch is gathered before noise: the network's input itself if there is none."""
        x = self._images(tape)
        apart = self.cfg.input_noise or self.cfg.input_dropout or x.dtype != dtype or x is not tape.x[0]
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format) if apart else x

    def _images(self, tape: Tape) -> Tensor:
        """The encoder's input without noise beside it."""
        x, d = tape.x[0], self.x.shape[1]
        return x if x.shape[2] == d else x[..., :d]

    def _noise(self, tape: Tape) -> Tensor:
        """The noise of the universal posterior."""
        return tape.x[self.cfg.noise_layer][..., -self.cfg.noise_dim :]

    def _add_dropout(self, cfg: Config) -> list[Dropout]:
        """The masks of all tapes, for their inputs and for their hidden layers."""
        encoders = [tape for tape in (self.encoding, self.classifying) if tape is not None]
        tapes, dropouts = [*encoders, self.decoding, *self.judging.values()], []
        if cfg.input_dropout:
            dropouts.append(Dropout(cfg.input_dropout, [self._images(tape) for tape in encoders]))
            self.input_masks = dropouts[-1].masks
        if cfg.dropout and cfg.hidden:
            networks = [*[self.encoder] * len(encoders), self.decoder, *self.discriminators.values()]
            layers = range(len(cfg.hidden))
            hidden = [n.made(tape.x, i) for n, tape in zip(networks, tapes, strict=True) for i in layers]
            dropouts.append(Dropout(cfg.dropout, hidden))
            masks = iter(dropouts[-1].masks)
            for tape in tapes:
                tape.masks, tape.p = [next(masks) for _ in layers], cfg.dropout
        return dropouts

    def _add_labels(self, cfg: Config, data: Data) -> None:
        self.labeled = self._labeled(data, "task='semi_supervised'").to(self.device, torch.int32)
        b = min(cfg.batch_size, self.labeled.shape[1])
        self.classifying = self.encoder.tape(b)
        self.labeled_target = self._clean(self.classifying, self.rates["classification"].dtype)
        self.labels = torch.empty(cfg.replicas, b, dtype=torch.int64, device=self.device)
        self.labeled_order = torch.empty(cfg.replicas, self.steps_per_epoch * b, dtype=torch.int32, device=self.device)
        self.optimizers["classification.encoder"] = self._optimizer(self.encoder, "classification", cfg.momentum)

    def _add_shown(self, cfg: Config, data: Data) -> None:
        labeled = self._labeled(data, "label_prior=True")
        if cfg.components != data.n_classes:
            raise ValueError(f"components={cfg.components}: expected {data.n_classes}, one for each class")
        shown = torch.full((cfg.replicas, len(data.y_train)), data.n_classes)
        self.shown = shown.scatter_(1, labeled, data.y_train[labeled]).to(self.device)  # [R, N], class or unlabelled

    def _labeled(self, data: Data, reason: str) -> Tensor:
        """The labelled rows of x, [R, L]."""
        if data.y_train is None:
            raise ValueError(f"{reason}: expected labels with the training data, {data.name} has none")
        n, classes = self.cfg.n_labeled, data.n_classes
        return torch.stack([labeled_subset(data.y_train, n, classes, s) for s in self.replica_seeds])

    def parts(self, code: Tensor) -> dict[str, Tensor]:
        """Views of the parts of a code buffer [R, B, z (+ y)] or of what the encoder makes [R, B, z (+ y) (+ z)]."""
        named, start = {}, 0
        for name, size in self.code_sizes.items():
            if start < code.shape[2]:
                named[name] = code[..., start : start + size]
            start += size
        return named

    def encode(self, momentum: float = 0.0) -> None:
        """Fill the codes of the batch: z, and y = softmax(logits) if there is a label head."""
        self.encoder.forward(self.encoding, momentum=momentum)
        if self.noise is not None:
            made = self.parts(self.encoding.x[-1])
            kernels.reparameterize(made["z"], made["log_variance"], self.noise, self.code["z"])
            if "y" in self.code:
                self.code["y"].copy_(made["y"])
        if "y" in self.code:
            kernels.softmax_(self.code["y"])

    def encoder_backward(self, optimizer: str, penalty: Tensor | None = None) -> None:
        """Update the encoder from the gradient with respect to z and y, and that of a regulariser."""
        if penalty is not None and self.cfg.regularizer == "mmd":
            self.gradient["z"].add_(penalty)
        if "y" in self.code:
            kernels.softmax_backward_(self.gradient["y"], self.code["y"])
        if self.noise is not None:
            made, grads = self.parts(self.encoding.x[-1]), self.parts(self.encoding.g[-1])
            kernels.reparameterize_backward(self.gradient["z"], made["log_variance"], self.noise, grads["log_variance"])
            for name, gradient in self.gradient.items():
                grads[name].copy_(gradient)
        if penalty is not None and self.cfg.regularizer == "kl":
            self.encoding.g[-1].add_(penalty)
        self.encoder.backward(self.encoding, self.optimizers[optimizer], input_gradient=False)

    def decode_prior(self) -> None:
        """Fill the second half of the images from the prior samples."""
        self.decoder.forward(self.decoding)
        if self.cfg.output == "sigmoid":
            self.decoding.x[-1].sigmoid_()

    def decoder_backward(self, optimizer: str) -> None:
        """Update the decoder from the gradient with respect to those images."""
        grad, fake, out = self.fooling["x"].g[0], self.decoding.x[-1], self.decoding.g[-1]
        if self.cfg.output == "sigmoid":
            torch.ops.aten.sigmoid_backward.grad_input(grad, fake, grad_input=out)
        else:
            out.copy_(grad)
        self.decoder.backward(self.decoding, self.optimizers[optimizer], input_gradient=False)

    def start_epoch(self, epoch: int, slower: float = 1.0) -> None:
        """Shuffle for an epoch, rewind the cursor, set the learning rates, times a factor. Runs on the host, between
        steps."""
        cfg = self.cfg
        for k, s in enumerate(self.replica_seeds):
            g = torch.Generator(self.device).manual_seed(seeds(s, 2, epoch))
            self.order[k].copy_(_shuffled(self.x.shape[0], self.order.shape[1], g))
            if self.classifying:
                drawn = _shuffled(self.labeled.shape[1], self.labeled_order.shape[1], g)
                self.labeled_order[k].copy_(self.labeled[k][drawn])
        self.cursor.zero_()
        self.rates["reconstruction"].fill_(slower * cfg.rate(cfg.lr_reconstruction, epoch))
        self.rates["adversarial"].fill_(slower * cfg.rate(cfg.lr_adversarial, epoch))
        self.rates["classification"].fill_(slower * cfg.rate(cfg.lr_classification, epoch))

    def draw(self) -> None:
        """Fill the batch, its noise and the prior samples for this step."""
        if not self.generators:
            return self._draw_by_count()
        cfg, labels = self.cfg, None
        for dropout in self.dropouts:
            dropout.draw(self.generators)
        input_masks = [*self.input_masks, None, None]
        rows = self._batch(self.order, self.target, self.input, input_masks[0])
        if cfg.label_prior:  # row for row the prior has the labels of the batch, where the last class is no component
            label = self.shown.gather(1, rows.long())
            self.told.zero_().scatter_(2, label.repeat(1, 2).unsqueeze(2), 1)
            labels = torch.where(label < cfg.components, label, -1)
        if cfg.task == "supervised":
            label = torch.index_select(self.y, 0, rows.view(-1)).view(rows.shape)
            self.given.zero_().scatter_(2, label.unsqueeze(2), 1)
        if self.classifying:
            index = self._batch(self.labeled_order, self.labeled_target, self._images(self.classifying), input_masks[1])
            torch.index_select(self.y, 0, index.view(-1), out=self.labels.view(-1))
        for k, g in enumerate(self.generators):
            given = None if labels is None else labels[k]
            args = (self.prior["z"][k], cfg.prior_std, self.components[k], g, given, cfg.components)
            priors.draw(self.source, *args)
            if self.noise is not None:
                self.noise[k].normal_(generator=g)
            if cfg.posterior == "universal":
                for tape in (self.encoding, self.classifying):
                    if tape:
                        self._noise(tape)[k].normal_(generator=g)
            if "y" in self.code:
                priors.categorical(self.prior["y"][k], g)

    def _draw_by_count(self) -> None:
        from ..kernels.step import draws

        cfg, x = self.cfg, self.encoding.x[0]
        clean, codes = None if self.target is x else self.target, self.codes[:, : self.batch]
        labeled, y = None, None
        if self.classifying:
            labeled, y = (self.labeled_order, self.classifying.x[0], self.labels), self.y
        state = (self.count, self.drawn)
        prior = (codes, cfg.prior_std, cfg.style_dim)
        draws.draw(self.x, y, *state, self.order, clean, x, cfg.input_noise, *prior, labeled)

    def _batch(self, order: Tensor, clean: Tensor, noisy: Tensor, mask: Tensor | None) -> Tensor:
        """Fill clean [R, B, D] with the step's rows of x in the given order, and noisy with the same plus input noise
        and under the mask of input dropout, unless they are one buffer. Returns: the rows' indices [R, B]."""
        rows = clean.shape[1]
        index = torch.index_select(order, 1, self.cursor * rows + self.offsets[:rows])
        kernels.gather(self.x, index, clean, None if self.staging is None else self.staging[: index.numel()])
        if self.standard:
            self.standard(clean, out=clean)
        if noisy is not clean:
            if self.cfg.input_noise:
                for k, g in enumerate(self.generators):
                    noisy[k].normal_(0, self.cfg.input_noise, generator=g)
                noisy.add_(clean)
            else:
                noisy.copy_(clean)
            if mask is not None:
                kernels.dropout(noisy, mask, self.cfg.input_dropout, noisy)
        return index

    def __call__(self) -> None:
        """One step of every replica. Capture-safe: no host synchronisation, no rebound buffer."""
        with mark("draw"):
            self.draw()
            if self.clock is not None:
                self.clock.advance(self.count[1:])
        for phase, terms in zip(self.phases, self.terms, strict=True):
            with mark(phase.__name__):
                phase(self, terms)
        kernels.finish(self.terms, self.losses, self.slot, self.count, self.scale)

    def told_apart(self) -> dict[str, list[float]]:
        """Percent of the last batch's prior samples and codes (of a GAN: images) that each discriminator tells apart,
        by its name and replica."""
        real, percent = self.offsets.new_ones(2 * self.batch, dtype=torch.bool), {}
        real[self.batch :] = False
        for name, network in self.discriminators.items():
            rows = self.judging[name].x[0]
            logits = torch.stack([network.replica(r)(x) for r, x in enumerate(rows)])  # [R, 2B, 1]
            percent[name] = (100 * ((logits[..., 0] > 0) == real).double().mean(1)).tolist()
        return percent

    def prior_std(self) -> float:
        """Standard deviation of samples of the prior of z, over all dimensions."""
        cfg, g = self.cfg, torch.Generator(self.device).manual_seed(0)
        z, component = self.codes.new_empty(4096, cfg.style_dim), self.components.new_empty(4096)
        priors.draw(self.source, z, cfg.prior_std, component, g, components=cfg.components)
        return z.double().var(0).mean().sqrt().item() or 1.0

    def parameters(self) -> dict[str, Tensor]:
        """Weights, biases, batch normalisation and standardization [R, ...] by name; the tensors themselves."""
        standard = {"standard": self.standard} if self.standard else {}
        parts = {**self.networks(), **standard}
        return {f"{n}.{k}": t for n, part in parts.items() for k, t in part.state().items()}

    def networks(self) -> dict[str, MLP | Heads]:
        """All networks by name."""
        discriminators = {f"discriminator.{name}": network for name, network in self.discriminators.items()}
        heads = {} if self.heads is None else {"heads": self.heads}
        encoder = {} if self.encoder is None else {"encoder": self.encoder}
        return {**encoder, "decoder": self.decoder, **heads, **discriminators}

    def carried(self) -> list[Tensor]:
        """Every tensor that one step leaves for the next, but for the generators' states."""
        shadows = [t for network in self.networks().values() for t in network.shadows]
        state = [t for name, t in self.state().items() if not name.startswith("generator.")]
        return [*state, *shadows, self.count, self.slot]

    def state(self) -> dict[str, Tensor]:
        """All that resuming needs besides config, data and step count, by name."""
        named = self.parameters()
        named |= {f"optimizer.{n}.{k}": t for n, o in self.optimizers.items() for k, t in o.state().items()}
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
    """`length` indices in [0, n): as many independent permutations as it takes, one behind the other. All from one
    sort: a hundred labelled examples take 500 permutations an epoch, each of several launches on a GPU."""
    keys = torch.rand(-(-length // n), n, generator=generator, device=generator.device, dtype=torch.float64)
    return keys.argsort(1).view(-1)[:length]

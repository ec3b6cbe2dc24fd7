"""The phases of a training step: the whole algorithm of the paper, a function each.

A step runs a tuple of them, by task (wiring.PHASES), over buffers that are made once (step.py) and filled with a batch
(batches.py). Everything here is capture-safe: no value is read back, no buffer rebound, no shape depends on data. Every
tensor has a leading replica axis [R, ...].

The game has two sides. Discriminators tell samples of a prior from fakes; a player makes the fakes and learns to be
taken for the prior: an autoencoder, whose fakes are codes, or, of a GAN, a decoder alone, whose fakes are images.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .. import kernels
from ..config import Config
from ..kernels import reference
from .batches import Batches, Codes, columns
from .networks import MLP, Heads, Optimizer, Tape
from .wiring import Wiring

MMD_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Kernels of the maximum mean discrepancy, by their width: some narrower than the prior, one wider, as in GMMN."""

MOMENTUM = 0.1
"""Share of a step's statistics in the running ones of batch normalisation, torch's default."""


class Game(Protocol):
    """What the phases of a step work on: Step says what each is."""

    cfg: Config
    batch: int
    batches: Batches
    codes: Codes
    autoencoder: Autoencoder
    player: Autoencoder | GanDecoder
    discriminators: dict[str, MLP]
    judging: dict[str, Tape]
    fooling: dict[str, Tape]
    optimizers: dict[str, Optimizer]
    ops: kernels.Losses
    scale: Tensor | None
    weight: float | Tensor  # of a regulariser, of all replicas, or [R, 1, 1]


def reconstruction(s: Game, terms: Tensor) -> None:
    """Update encoder and decoder to reconstruct the clean image from the code of the noisy one."""
    a, joint = s.autoencoder, s.cfg.regularizer != "adversarial"
    if not joint:  # else divergence has encoded
        a.encode(MOMENTUM)
    a.decode(MOMENTUM)
    logits, grad = a.decoding.x[-1], a.decoding.g[-1]
    loss = (s.cfg.output_layer, s.cfg.reconstruction, s.scale)
    s.ops.reconstruction_loss(logits, s.batches.images.target, grad, terms[:, : s.batch], *loss)
    a.decoder.backward(a.decoding, s.optimizers["reconstruction.decoder"], input_gradient=True)
    if s.cfg.task == "embedding":
        g = a.heads.backward(a.decoding.g[0], a.code["y"], a.gradient, s.cfg.fixed_heads or s.cfg.separation)
        if s.cfg.fixed_heads is None:
            s.optimizers["reconstruction.heads"].step("weight", a.heads.weight, g)
    a.learn(s.optimizers["reconstruction.encoder"], a.penalty if joint else None)


def separation(s: Game, terms: Tensor) -> None:
    """Move apart the cluster heads that are near each other."""
    weight = s.autoencoder.heads.weight
    g = torch.empty_like(weight)
    terms[:, 0] = reference.head_separation(weight, s.cfg.separation, g)
    if s.scale is not None:
        g.mul_(s.scale[0])
    s.optimizers["separation.heads"].step("weight", weight, g)


def divergence(s: Game, terms: Tensor) -> None:
    """Encode, and leave the loss and gradient of a regulariser without discriminators for the reconstruction phase."""
    cfg, a = s.cfg, s.autoencoder
    a.encode(MOMENTUM)
    if cfg.regularizer == "kl":
        mean, log_variance = (a.parts(a.encoding.x[-1])[name] for name in ("z", "log_variance"))
        grads = [a.parts(a.penalty)[name] for name in ("z", "log_variance")]
        loss = reference.kl(mean, log_variance, s.batches.std, *grads)
    else:
        spread = s.batches.std * (2 * cfg.style_dim) ** 0.5  # between two samples of the prior
        loss = reference.mmd(a.code["z"], s.codes.prior["z"], [spread * k for k in MMD_SCALES], a.penalty)
    a.penalty.mul_(s.weight if s.scale is None else s.weight * s.scale[0])
    torch.mul(loss.view(-1, 1, 1), s.weight, out=terms[:, :1, None])


def discriminator(s: Game, terms: Tensor) -> None:
    """Update every discriminator to tell prior samples from fakes. Leaves the fakes for the generator phase, since the
    player does not change in between. Each loss is a mean over prior samples and fakes together: with their sum
    instead, twice the rate, mnist-100 learns more slowly (bench/LOG.md)."""
    s.player.play()
    each = zip(s.discriminators.items(), terms.split(2 * s.batch, 1), strict=False)
    learned = [(n, s.judging[k], part, s.optimizers[f"discriminator.{k}"]) for (k, n), part in each]
    kernels.together(*(n.judge(tape, s.batch, part, o, False, s.scale) for n, tape, part, o in learned))


def generator(s: Game, terms: Tensor) -> None:
    """Update the player so that the discriminators take its fakes, those of the discriminator phase, for samples of the
    prior (of a GAN: for images of the data)."""
    each = zip(s.discriminators.items(), terms.split(s.batch, 1), strict=False)  # which stay as they are
    kernels.together(*(n.judge(s.fooling[k], s.batch, part, None, True, s.scale) for (k, n), part in each))
    s.player.learn(s.optimizers[f"generator.{s.player.trained}"])


def classification(s: Game, terms: Tensor) -> None:
    """Update the encoder to predict the labels of the labelled batch."""
    a, labels = s.autoencoder, s.batches.labels
    tape = a.classifying
    a.encoder.forward(tape)
    logits, grad = (a.parts(t)["y"] for t in (tape.x[-1], tape.g[-1]))  # the gradient of z stays zero
    s.ops.softmax_cross_entropy(logits, labels, grad, terms[:, : labels.shape[1]], s.scale)
    a.encoder.backward(tape, s.optimizers["classification.encoder"], input_gradient=False)


class Autoencoder:
    """The player whose fakes are codes.

    Args:
        cfg, wiring: of the step.
        networks: encoder and decoder among them.
        heads: W_C of an embedding, whose decoder sees y W_C + z; None where it sees z and y side by side.
        codes: the buffer that the encoder fills and the decoder reads.
        labeled: rows of the labelled batch, 0 without one.

    Attributes:
        code, gradient: of the batch, z and y by name: what the encoder makes, and the gradients with respect to that.
        encoding, decoding, classifying: what the passes through encoder and decoder leave behind.
        noise: [R, B, Z], N(0, 1), of a Gaussian posterior; else None.
        passes: network and tape by name, of the costs that are learned.
        inputs: where examples go, the batch's and the labelled one's, and the noise of a universal posterior.
        judged: by name, what a discriminator sees, prior samples above fakes, and the gradient of the fakes.
    """

    trained = "encoder"
    heads: Heads  # where the task is an embedding
    classifying: Tape  # where the encoder learns labels
    penalty: Tensor  # gradient of a regulariser, where that takes the place of discriminators

    def __init__(
        self, cfg: Config, wiring: Wiring, networks: dict[str, MLP], heads: Heads | None, codes: Codes, labeled: int
    ):
        self.cfg, self.wiring, self.codes = cfg, wiring, codes
        self.encoder, self.decoder = networks["encoder"], networks["decoder"]
        self.code, self.gradient, b = codes.code, codes.gradient, cfg.batch_size
        self.ops = kernels.choose_losses(codes.buffer)
        self.noise = torch.zeros_like(self.code["z"]) if cfg.posterior == "gaussian" else None
        ends = {"last": codes.encoded, "last_gradient": codes.encoded_gradient} if self.noise is None else {}
        self.encoding = self.encoder.tape(b, **ends)  # codes that are no samples are what the encoder makes, in place
        if heads is None:
            self.decoding = self.decoder.tape(b, codes.decoded, first_gradient=codes.decoded_gradient)
        else:
            self.heads, self.decoding = heads, self.decoder.tape(b, torch.zeros_like(self.code["z"]))
        if labeled:
            self.classifying = self.encoder.tape(labeled)
        if cfg.regularizer != "adversarial":
            like = self.encoding.x[-1] if cfg.regularizer == "kl" else self.code["z"]
            self.penalty = self.encoder.weights[0].new_zeros(like.shape)
        encoders = [self.encoding, *([self.classifying] if labeled else [])]
        passes = {"encoder": (self.encoder, self.encoding)} if cfg.lr_reconstruction or cfg.lr_adversarial else {}
        passes |= {"labeled": (self.encoder, self.classifying)} if labeled and cfg.lr_classification else {}
        self.passes = passes | ({"decoder": (self.decoder, self.decoding)} if cfg.lr_reconstruction else {})
        d, (layer, n) = self.decoder.sizes[-1], wiring.noise
        plain = [t.x[0] if layer or not n else t.x[0][..., :d] for t in encoders]
        further = [t.x[layer][..., -n:] if n else None for t in encoders]
        self.inputs = list(zip(plain, further, strict=True))
        self.judged = codes.judged

    def parts(self, t: Tensor) -> dict[str, Tensor]:
        """Of the encoder's output, or a gradient of that shape, by name."""
        return columns(t, self.wiring.code)

    def encode(self, momentum: float = 0.0) -> None:
        """Fill the codes of the batch: z, and y = softmax(logits) if there is a label head."""
        self.encoder.forward(self.encoding, momentum=momentum)
        if self.noise is not None:
            out = self.parts(self.encoding.x[-1])
            reference.reparameterize(out["z"], out["log_variance"], self.noise, self.code["z"])
            if "y" in self.code:
                self.code["y"].copy_(out["y"])
        if "y" in self.code:
            self.ops.softmax_(self.code["y"])

    play = encode

    def decode(self, momentum: float = 0.0) -> None:
        """The decoder's output, before its sigmoid, of the codes of the batch."""
        if self.cfg.task == "embedding":
            self.heads.forward(self.code["z"], self.code["y"], self.decoding.x[0])
        self.decoder.forward(self.decoding, momentum=momentum)

    def learn(self, optimizer: Optimizer, penalty: Tensor | None = None) -> None:
        """Update the encoder from the gradient with respect to z and y, and that of a regulariser."""
        if penalty is not None and self.cfg.regularizer == "mmd":  # of codes; that of kl is of what the encoder makes
            self.gradient["z"].add_(penalty)
        if "y" in self.code:
            self.ops.softmax_backward_(self.gradient["y"], self.code["y"])
        if self.noise is not None:
            log_variance = self.parts(self.encoding.x[-1])["log_variance"]
            grads = self.parts(self.encoding.g[-1])
            reference.reparameterize_backward(self.gradient["z"], log_variance, self.noise, grads["log_variance"])
            for name, gradient in self.gradient.items():  # of a sample, and so of its mean
                grads[name].copy_(gradient)
        if penalty is not None and self.cfg.regularizer == "kl":
            self.encoding.g[-1].add_(penalty)
        self.encoder.backward(self.encoding, optimizer, input_gradient=False)


class GanDecoder:
    """The player whose fakes are images: the decoder of a GAN.

    Args:
        cfg: of the step.
        networks: decoder among them.
        codes: the buffer whose prior samples it decodes.
        noise_std: of the noise on all images, of all replicas, or [R, 1, 1].

    Attributes:
        passes, inputs, judged: as an autoencoder's, with images of the data in the place of prior samples.
        noise: [R, B, D], N(0, 1), on the fakes, or None.
    """

    trained = "decoder"

    def __init__(self, cfg: Config, networks: dict[str, MLP], codes: Codes, noise_std: float | Tensor):
        self.decoder, self.sigmoid, b = networks["decoder"], cfg.output_layer == "sigmoid", cfg.batch_size
        self.images = codes.buffer.new_zeros(cfg.replicas, 2 * b, self.decoder.sizes[-1])  # of the data, then fakes
        self.gradient, self.noise_std = torch.zeros_like(self.images[:, b:]), noise_std
        self.noise = torch.zeros_like(self.gradient) if cfg.input_noise else None
        last = torch.zeros_like(self.gradient) if cfg.input_noise else self.images[:, b:]
        self.decoding = self.decoder.tape(b, codes.buffer[:, :b], last=last)
        self.passes = {"decoder": (self.decoder, self.decoding)}
        self.inputs = [(self.images[:, :b], None)]
        self.judged = {"x": (self.images, self.gradient)}

    def play(self) -> None:
        """Fill the fakes from the prior samples."""
        fakes = self.decoding.x[-1]
        self.decoder.forward(self.decoding, momentum=MOMENTUM)
        if self.sigmoid:
            fakes.sigmoid_()
        if self.noise is not None:
            torch.add(fakes, self.noise * self.noise_std, out=self.images[:, fakes.shape[1] :])

    def learn(self, optimizer: Optimizer) -> None:
        """Update the decoder from the gradient with respect to its fakes."""
        fakes, out = self.decoding.x[-1], self.decoding.g[-1]
        if self.sigmoid:
            torch.ops.aten.sigmoid_backward.grad_input(self.gradient, fakes, grad_input=out)
        else:
            out.copy_(self.gradient)
        self.decoder.backward(self.decoding, optimizer, input_gradient=False)

"""What a step draws: batches of the resident data in shuffled order, input noise, labels, prior samples, dropout masks.

Randomness of replica r comes from its seed alone: the labelled subset from the seed, the order of an epoch from (seed,
epoch); noise and prior samples on a GPU from (seed, step), by Philox, else from one generator a replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..data import Data, label_weights, labeled_subset
from ..kernels import reference
from ..members import Members
from . import priors
from .networks import MLP, Dropout, Tape
from .scale import scaled
from .wiring import Wiring

Input = tuple[Tensor, Tensor | None]
"""Where a network has a batch of examples [R, B, D], and noise [R, B, N] of a universal posterior."""


def seeds(seed: int, *stream: int) -> int:
    """A well-mixed seed for one use of a replica's seed."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> 1)


def columns(t: Tensor, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Views of the columns of t [R, B, ...] by name, side by side."""
    return dict(zip(sizes, t.split([*sizes.values()], 2), strict=True))


class Codes:
    """Prior samples above the codes of a batch, in one buffer, so that a discriminator judges both in one pass.

    Args:
        wiring: of the step.
        shape: replicas and rows of a batch, R and B.
        floats, products: any tensors of the dtype and device of codes, and of gradients.

    Attributes:
        buffer: [R, 2 B, condition + z + y]; buffer_gradient, [R, B, ...], is of its lower half.
        condition: labels that only the discriminator of z sees, of both halves.
        prior, code: z and y by name, above and below; gradient is of the latter.
        encoded, decoded: the columns of the lower half that an encoder makes (z, y) and a decoder sees (and labels).
        label: of the lower half, where a supervised decoder is given it.
        judged: by name, what a discriminator sees, prior samples above codes, and the gradient of the codes.
    """

    def __init__(self, wiring: Wiring, shape: tuple[int, int], floats: Tensor, products: Tensor):
        (r, b), c, z = shape, wiring.condition, wiring.code["z"]
        end, width = c + sum(wiring.prior.values()), c + z + wiring.n_classes
        self.buffer, self.buffer_gradient = floats.new_zeros(r, 2 * b, width), products.new_zeros(r, b, width)
        self.condition, self.label = self.buffer[..., :c], self.buffer[:, b:, end:]
        self.encoded, self.encoded_gradient = self.buffer[:, b:, c:end], self.buffer_gradient[..., c:end]
        self.decoded, self.decoded_gradient = self.buffer[:, b:, c:], self.buffer_gradient[..., c:]
        self.prior = columns(self.buffer[:, :b, c:end], wiring.prior)
        self.code = columns(self.encoded, wiring.prior)
        self.gradient = columns(self.encoded_gradient, wiring.prior)
        seen = {"z": slice(c + z), "y": slice(c + z, None)}
        self.judged = {name: (self.buffer[..., s], self.buffer_gradient[..., s]) for name, s in seen.items()}


@dataclass
class Feed:
    """Buffers that a batch of examples fills: [R, B, D], or as said."""

    order: Tensor  # int32 [R, steps * B], rows of the data for a whole epoch
    target: Tensor  # as the data have them
    input: Tensor  # with noise and dropout, as networks see them; the same buffer where there is neither
    further: Tensor | None  # [R, B, N], noise of a universal posterior
    mask: Tensor | None = None  # of input dropout


class Batches:
    """The resident data of a step, and what it draws from them and beside them.

    Args:
        members, data: of the step; training examples are moved to the device once.
        codes: the buffer that prior samples and labels fill.
        inputs: what the batch fills and, where the encoder learns labels, what the labelled one does.
        noise: [R, B, Z], of a Gaussian posterior.
        passes: through all networks, by name, whose hidden layers get dropout masks.
        source: what priors.draw() takes.

    Raises:
        ValueError: the config asks for more labels than the data have.
    """

    y: Tensor  # [N], int64, where the data have labels
    labeled: Feed  # and the labels of its batch, [R, B], where the encoder learns labels
    labels: Tensor
    known: Tensor  # [R, N], classes, or one more where unlabelled, where labels choose components of the prior

    def __init__(
        self, members: Members, data: Data, codes: Codes, inputs: Sequence[Input], noise: Tensor | None,
        passes: dict[str, tuple[MLP, Tape]], source: str | priors.Custom,
    ):  # fmt: skip
        cfg = self.cfg = members.configs[0]  # of which all say what is drawn, if not how much
        self.members, self.codes, self.source, self.passes = members, codes, source, passes
        rows, r = data.train, cfg.replicas
        self.steps = len(rows) // cfg.batch_size  # of an epoch
        self.seeds = [c.seed for c in members.configs]
        device, dtype = codes.buffer.device, codes.buffer.dtype
        self.rows = rows.index.to(device)
        fitted, x = scaled(cfg.scale, rows, r, dtype)
        self.scale = fitted and fitted.mapped(lambda t: t.to(device))
        self.scaling = self.scale if x is rows.x else None
        as_bytes = x.dtype == torch.uint8
        self.x = x.to(device, torch.uint8 if as_bytes else dtype)
        if data.y_train is not None:
            self.y = torch.full((len(self.x),), -1, dtype=torch.int64, device=device)
            self.y[self.rows] = data.y_train.to(device)

        weights = label_weights(cfg.label_weights, data, codes.prior["y"].shape[2]) if "y" in codes.prior else None
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64, device=device)
        self.feeds, self.noise = [self._feed(*each) for each in inputs], noise
        self.images = self.feeds[0]
        if (cfg.classifies or cfg.label_prior) and (y := data.labels["train"]) is not None:
            chosen = [labeled_subset(y, cfg.n_labeled, data.n_classes, s, data.classes, weights) for s in self.seeds]
            labeled = self.rows[torch.stack(chosen).to(device)]
            if cfg.label_prior:
                known = self.y.new_full((r, len(self.x)), data.n_classes)
                self.known = known.scatter_(1, labeled, self.y[labeled])
            else:
                self.labeled_rows, self.labeled = labeled.to(torch.int32), self.feeds[1]
                self.labels = torch.empty(self.labeled.input.shape[:2], dtype=torch.int64, device=device)
        self.components = torch.zeros(r, cfg.batch_size, dtype=torch.int64, device=device)  # of the prior samples
        self.dropouts = self._dropouts()
        self.staging = self.x.new_empty(r * cfg.batch_size, self.x.shape[1]) if as_bytes else None

        self.count = torch.zeros(2, dtype=torch.int64, device=device)  # steps done in this epoch, and in all
        self.cursor = self.count[:1]
        self.offsets = torch.arange(cfg.batch_size, dtype=torch.int64, device=device)
        self.drawn_seeds = torch.tensor([seeds(s, 1) for s in self.seeds], dtype=torch.int64, device=device)
        self.generators: list[torch.Generator] = []
        self.std, self.noise_std = (members.of(name, codes.buffer) for name in ("prior_std", "input_noise"))
        # kernels/step/draws.py draws batches with noise, a Gaussian prior and uniform classes, and nothing else.
        others = (cfg.prior, cfg.posterior) != ("gaussian", "deterministic") or cfg.task in ("supervised", "gan")
        others = others or self.scaling or self.weights is not None or self.dropouts
        if others or not kernels.triton_takes(codes.buffer):
            self.generators = [torch.Generator(device).manual_seed(seeds(s, 1)) for s in self.seeds]

    def _feed(self, x: Tensor, further: Tensor | None) -> Feed:
        """For a network's input x. Targets are that input itself where nothing comes between."""
        cfg, (r, b, _), dtype = self.cfg, x.shape, self.codes.buffer.dtype
        order = torch.empty(r, self.steps * b, dtype=torch.int32, device=x.device)
        same = x.dtype == dtype and x.is_contiguous() and not (cfg.input_noise or cfg.input_dropout)
        target = x if same else torch.empty(x.shape, dtype=dtype, device=x.device)
        return Feed(order, target, x, further)

    def _dropouts(self) -> list[Dropout]:
        """The masks of networks' inputs and of hidden layers, each drawn together."""
        cfg, found = self.cfg, []
        if cfg.input_dropout:
            found.append(Dropout(cfg.input_dropout, [feed.input for feed in self.feeds]))
            for feed, mask in zip(self.feeds, found[-1].masks, strict=True):
                feed.mask = mask
        if cfg.dropout and cfg.hidden:
            layers, p = range(len(cfg.hidden)), self.members.of("dropout", self.codes.buffer)
            some = [each for name, each in self.passes.items() if (cfg.task, name) != ("gan", "decoder")]
            found.append(Dropout(p, [n.output(t.x, i) for n, t in some for i in layers]))
            masks = iter(found[-1].masks)
            for _, tape in some:
                tape.masks, tape.p = [next(masks) for _ in layers], p
        return found

    def start_epoch(self, epoch: int) -> None:
        """Shuffle for an epoch and rewind the cursor. Runs on the host, between steps."""
        for k, s in enumerate(self.seeds):
            g = torch.Generator(self.x.device).manual_seed(seeds(s, 2, epoch))
            self.images.order[k].copy_(self.rows[_shuffled(len(self.rows), self.images.order.shape[1], g)])
            if self.cfg.classifies:
                drawn = _shuffled(self.labeled_rows.shape[1], self.labeled.order.shape[1], g)
                self.labeled.order[k].copy_(self.labeled_rows[k][drawn])
        self.cursor.zero_()

    def draw(self) -> None:
        """Fill the batch, its noise and the prior samples for this step. Capture-safe."""
        if not self.generators:
            return self._draw_by_count()
        cfg, labels = self.cfg, None
        for dropout in self.dropouts:
            dropout.draw(self.generators)
        rows = self._fill(self.images)
        if cfg.label_prior:  # row for row the prior has the labels of the batch, where the last class is no component
            label = self.known.gather(1, rows.long())
            self.codes.condition.zero_().scatter_(2, label.repeat(1, 2).unsqueeze(2), 1)
            labels = torch.where(label < cfg.components, label, -1)
        if cfg.task == "supervised":
            label = torch.index_select(self.y, 0, rows.view(-1)).view(rows.shape)
            self.codes.label.zero_().scatter_(2, label.unsqueeze(2), 1)
        if cfg.classifies:
            rows = self._fill(self.labeled)
            torch.index_select(self.y, 0, rows.view(-1), out=self.labels.view(-1))
        for k, g in enumerate(self.generators):
            given, prior = None if labels is None else labels[k], self.codes.prior
            std = self.members.configs[k].prior_std
            priors.draw(self.source, prior["z"][k], std, self.components[k], g, given, cfg.components)
            for noise in (self.noise, *(feed.further for feed in self.feeds)):
                if noise is not None:
                    noise[k].normal_(generator=g)
            if "y" in prior:
                priors.categorical(prior["y"][k], g, self.weights)

    def _draw_by_count(self) -> None:
        from ..kernels.step import draws

        cfg, images, codes, y, labeled = self.cfg, self.images, self.codes, None, None
        if cfg.classifies:
            labeled, y = (self.labeled.order, self.labeled.input, self.labels), self.y
        batch = (images.order, None if images.target is images.input else images.target, images.input)
        prior = (codes.buffer[:, : cfg.batch_size], self.std, cfg.style_dim)
        draws.draw((self.x, y), self.count, self.drawn_seeds, batch, self.noise_std, prior, labeled)

    def _fill(self, feed: Feed) -> Tensor:
        """Gather the step's examples of a feed, and make of them what networks see. Returns: their rows [R, B]."""
        target, noisy, b = feed.target, feed.input, feed.input.shape[1]
        rows = torch.index_select(feed.order, 1, self.cursor * b + self.offsets[:b])
        reference.gather(self.x, rows, target, None if self.staging is None else self.staging[: rows.numel()])
        if self.scaling:
            self.scaling(target, out=target)
        if noisy is not target:
            if self.cfg.input_noise:
                for k, g in enumerate(self.generators):
                    noisy[k].normal_(0, self.members.configs[k].input_noise, generator=g)
                noisy.add_(target)
            else:
                noisy.copy_(target)
            if feed.mask is not None:
                reference.dropout(noisy, feed.mask, self.cfg.input_dropout, noisy)
        return rows


def _shuffled(n: int, length: int, generator: torch.Generator) -> Tensor:
    """`length` indices in [0, n): as many independent permutations as it takes, one behind the other. All from one
    sort: a hundred labelled examples take 500 permutations an epoch, each of several launches on a GPU."""
    keys = torch.rand(-(-length // n), n, generator=generator, device=generator.device, dtype=torch.float64)
    return keys.argsort(1).view(-1)[:length]

"""Model: what a user holds after training. NumPy in, NumPy out; torch in, torch out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from . import __version__, checkpoint, export
from .ais import AISResult, ais_log_likelihood
from .config import WITH_Y, Config
from .data import Data, examples, label_weights
from .data.arrays import columns_of, flat, tensor
from .data.formats import examples_of
from .data.labels import encoded
from .device import find_device
from .directory import RunDirectory
from .engine import priors
from .engine.networks import MLP, Heads, Norm, named
from .engine.scale import Scale
from .engine.wiring import Wiring, wiring
from .files import brief, expanded, warn_caller
from .kernels import reference
from .kernels.exact import exact_arithmetic
from .members import Members
from .modules import Decoder, Encoder
from .parzen import ParzenResult, parzen_log_likelihood
from .scalars import integer, scalar

Rows = TypeVar("Rows", np.ndarray, Tensor)  # NumPy in, NumPy out; torch in, torch out
BATCH, WIDE = 4096, 2**24  # examples at a time, and numbers that a layer makes of them then
DRAWN = 4096  # samples per block of a stream; part of what a seed means
FAR = 100  # standard deviations, or ranges, of the training data by which examples are off on average: other units
TOGETHER = 64  # such blocks are decoded at once on a GPU, or launching kernels would take most of the time


class Model:
    """A trained autoencoder: encoder, decoder, and the shapes of what they take.

    Args:
        config: the run's Config.
        shape: of one example, for instance (28, 28).
        n_classes: size of the label code y that the decoder takes, 0 without one.
        encoder, decoder: of one replica; encoder None for a GAN.
        heads: of one replica, for the task embedding.
        scale: of one replica, where the config's is not "unit".
        prior: what draws z where the config's prior is "custom"; without it sample() and log_likelihood() fail.
        known: what is known of the training data: "dtype", a word; "classes", what labels 0, 1, ... stand for, if not
            for themselves; "label_weights", the prior of y, if not uniform; "columns", those of a table.
    """

    def __init__(
        self, config: Config, shape: tuple[int, ...], n_classes: int, encoder: MLP | None, decoder: MLP,
        heads: Heads | None = None, scale: Scale | None = None, prior: priors.Custom | None = None,
        known: dict[str, Any] | None = None,
    ):  # fmt: skip
        self.config, self.shape, self.n_classes = config, tuple(shape), n_classes
        self.encoder, self.decoder, self.heads, self.scale, self.prior = encoder, decoder, heads, scale, prior
        self.known = known or {}
        self.classes: list[Any] = self.known.get("classes") or list(range(n_classes))
        self.pixels = scale is None or self.known.get("dtype", "uint8") == "uint8"  # whether bytes mean k / 255

    def __repr__(self) -> str:
        c, dtype = self.config, str(self.decoder.weights[0].dtype)[6:]
        widths = [[n.weights[0].shape[2], *(w.shape[1] for w in n.weights)] for n in (self.encoder, self.decoder) if n]
        y = f", {self.n_classes} classes" * (self.n_classes > 0)
        return (
            f"Model {c.name!r}: {c.task}, {dtype} on {self.device}\n"
            f"  examples: {list(self.shape)}, {c.output_layer} output, {c.reconstruction.replace('_', ' ')}\n"
            f"  layers: {', then '.join('-'.join(map(str, sizes)) for sizes in widths)}\n"
            f"  code: {c.style_dim}-D, prior {c.prior} of scale {c.prior_std:g}{y}"
        )

    @property
    def device(self) -> torch.device:
        return self.decoder.weights[0].device

    @property
    def batch(self) -> int:
        """How many examples at a time go through the networks."""
        networks = [network for network in (self.encoder, self.decoder) if network is not None]
        widest = max(n for network in networks for w in network.weights for n in w.shape)
        return min(BATCH, max(1, WIDE // widest))

    @property
    def table(self) -> bool:
        """Whether an example is a row of numbers, no image."""
        return len(self.shape) == 1 and self.config.scale != "unit"

    @property
    def label_head(self) -> bool:
        """Whether the encoder has an output y; in a supervised autoencoder the label is given."""
        return self.n_classes > 0 and self.config.task != "supervised"

    def encoder_module(self) -> Encoder:
        """The encoder as a torch.nn.Module on this model's memory: both see changes of weights. Raises as code()."""
        return Encoder(self, self._encoder(), math.prod(self.shape), self.n_classes if self.label_head else 0)

    def decoder_module(self) -> Decoder:
        """The decoder, as encoder_module()."""
        return Decoder(self, self.decoder, self.decoder.sizes[0], self.n_classes)

    def encode(self, x: Rows, seed: int | None = None) -> Rows:
        """Style codes z [N, style_dim] of examples x [N, ...], in the units of the training data (bytes mean k / 255
        under the scale "unit" or if it was trained on bytes); of an embedding, the representations y W_C + z. Gradients
        pass, as through decode, of tensors that require them.

        Args:
            seed: of a sample of q(z|x). None: the mean of a Gaussian posterior, a universal one without noise.

        Raises:
            DataError: x is not such an array, or its examples have another size.
        """
        g = None if seed is None else torch.Generator(self.device).manual_seed(integer("seed", seed, 0))
        if _keeps_gradients(x):
            return self._encoded_by_module(x, g)[0]
        represent = self.heads or (lambda z, *y: z)
        return self._encoded(lambda b: represent(*self.code(b, g)), x)

    def predict_proba(self, x: Rows) -> Rows:
        """Class probabilities q(y|x) [N, n_classes] of examples x [N, ...], in the order of `classes`, with gradients
        as encode. Raises as encode, and ValueError if the model was trained without labels."""
        if self.label_head and _keeps_gradients(x):
            return self._encoded_by_module(x)[1]
        return self._labelled(lambda q: q, x)

    def predict(self, x: Rows) -> Rows:
        """Classes [N], the most probable, as labels were given. Raises as predict_proba."""
        index: Any = self._labelled(lambda q: q.argmax(-1), x)
        if "classes" not in self.known:
            return index
        words: Any = np.array(self.classes)[np.asarray(index.cpu() if isinstance(index, Tensor) else index)]
        if isinstance(x, Tensor) and words.dtype.kind != "U":  # for words torch has no type
            words = torch.from_numpy(words)
        return words

    @overload
    def decode(self, z: np.ndarray | Sequence[Any], labels: Any = None) -> np.ndarray: ...
    @overload
    def decode(self, z: Tensor, labels: Any = None) -> Tensor: ...
    def decode(self, z: Any, labels: Any = None) -> Any:
        """Examples [N, *shape] from style codes z [N, style_dim].

        Args:
            labels: classes [N] as they were given, one for all, or probabilities [N, n_classes]; needed exactly if
                n_classes > 0. Of an embedding z is the representation; with labels, what is added to their cluster
                heads.

        Raises:
            ValueError: a wrong shape or range, or labels missing or in vain.
        """
        code = tensor("z", z).to(self.decoder.weights[0])
        if code.ndim != 2 or code.shape[1] != self.config.style_dim:
            raise ValueError(f"z of shape {tuple(code.shape)}: expected [N, {self.config.style_dim}]")
        if len(wrong := code[~torch.isfinite(code)]):
            raise ValueError(f"z holds {wrong[0].item()}, expected finite numbers")
        y = self._labels(labels, len(code), needed=self.heads is None)
        if _keeps_gradients(z) or _keeps_gradients(labels):
            y = labels.to(y) if y is not None and _keeps_gradients(labels) else y
            with exact_arithmetic(inference=False):
                return self.decoder_module().requires_grad_(False)(z.to(code) if _keeps_gradients(z) else code, y)
        return self._batched(self.decoded, self.join(code, y), z).reshape(-1, *self.shape)

    def reconstruct(self, x: Rows, labels: Any = None) -> Rows:
        """Examples [N, *shape] decoded from the codes of x [N, ...] and, of a supervised autoencoder, from labels as in
        decode; with gradients as these. Raises as encode and decode."""
        if self.config.task == "supervised" or labels is not None:
            return self.decode(self.encode(x), labels)
        if _keeps_gradients(x):
            z, *y = self._encoded_by_module(x)
            return self.decode(z, *([] if self.heads else y))
        return self._encoded(lambda b: self.decoded(self.join(*self.code(b))), x).reshape(-1, *self.shape)

    def reconstruction_error(self, x: Rows, labels: Any = None) -> Rows:
        """The config's reconstruction loss of each example x [N, ...], of scaled data, summed over its dimensions,
        float64 [N]: a score of anomalies. Labels are needed by a supervised autoencoder, as in decode. Raises as encode
        and decode."""
        rows = self._examples(x)
        y = self._labels(labels, len(rows), needed=self.config.task == "supervised")

        def errors(block: Tensor, *labels: Tensor) -> Tensor:
            target = self.scaled(block)
            z, *own = self.code(target)
            return self.errors(self.join(z, *(labels or own)), self.standardized(target))

        return self._batched(errors, rows, x, *([] if y is None else [y]))

    def sample(self, n: int, seed: int | None = None, labels: Any = None) -> np.ndarray:
        """Decoded draws from the prior, [n, *shape], the same for the same seed on the same device; None draws anew
        each time. Labels are as in decode; None draws classes as label_weights says. Raises as decode."""
        return torch.cat(list(self.stream(n, seed, labels))).reshape(-1, *self.shape).cpu().numpy()

    def stream(
        self, n: int, seed: int | None = None, labels: Any = None, share: tuple[int, int] = (0, 1), skip: int = 0,
        scaled: bool = False,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The examples of sample() in blocks [<= 4096, D] on the model's device (a GPU: 64 times that): any number in
        little memory.

        Args:
            share: (k, K) decodes only block k of every K blocks.
            skip: leaves out so many of the first examples; blocks without others are not decoded.
            scaled: as networks make them, not in the units of the data.
        """
        seed = int.from_bytes(os.urandom(7), "big") if seed is None else integer("seed", seed, 0)
        n, skip = integer("n", n, 1), integer("skip", skip, 0)
        k, ranks = integer("share", share[0], 0), integer("share", share[1], share[0] + 1)
        # Every block is drawn, since the next draws follow it; which are decoded is chosen after that.
        codes = self._codes(n, torch.Generator(self.device).manual_seed(seed), self._labels(labels, n))
        return self._stream(islice(codes, k, None, ranks), skip, self.output if scaled else self.decoded)

    def log_likelihood(
        self, queries: Any, n_samples: int = 10_000, sigma: float | str | None = None, *, seed: int = 0,
        scaled: bool = False, **options: Any,
    ) -> ParzenResult:  # fmt: skip
        """Parzen-window log-likelihood of queries [M, ...] under n_samples decoded draws from the prior, never stored.
        Raises as encode and parzen_log_likelihood.

        Args:
            queries: in the units of the training data, as of encode; float64 in full precision.
            scaled: whether likelihoods and sigma are of scaled data, as networks see them, not of the data's own units.
            sigma, options: as in fastaae.parzen_log_likelihood: give sigma, or validation= to choose it. With
                distributed=True every rank decodes its share of the same n_samples draws.
        """
        k, ranks = 0, 1
        if options.get("distributed") and torch.distributed.is_initialized():
            k, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        n_samples, seed = integer("n_samples", n_samples, 1), integer("seed", seed, 0)
        n = sum(min(DRAWN, n_samples - start) for start in range(k * DRAWN, n_samples, ranks * DRAWN))

        def samples(skip: int) -> Iterator[Tensor]:
            return self.stream(n_samples, seed, None, (k, ranks), skip, scaled)

        options = {"device": str(self.device), **options}
        given = {"queries": queries, "validation": options.pop("validation", None)}
        for name in [name for name, x in given.items() if x is not None]:
            rows = self._examples(given[name], name)
            own = flat(name, tensor(name, given[name]), self.shape)
            plain = own.is_floating_point() or (own.dtype == torch.uint8 and self.pixels)
            own = own if plain else own.double()
            given[name] = self._batched(lambda b: self.standardized(self.scaled(b)), rows, rows) if scaled else own
        return parzen_log_likelihood(samples=samples, sigma=sigma, n_samples=n or None, **given, **options)

    def ais_log_likelihood(
        self, queries: Any, sigma: float, chains: int = 16, steps: int = 1000, *, simulated: int = 20, seed: int = 0
    ) -> AISResult:
        """What log_likelihood(queries, n, sigma) approaches with n, by annealed importance sampling (ais.py): a lower
        bound of each query, and on `simulated` examples of the model an upper one, too. Where the decoder takes labels
        p(x) is their mean, as they are drawn. One seed gives the same bits on the same device.

        Args:
            chains, steps: of each query, class and component of a mixture; a chain decodes 5 times a step.

        Raises: as encode, and ValueError: a number out of range, a prior without a density, or what no float can hold.
        """
        x = self.standardized(self.scaled(self._examples(queries, "queries")))
        return ais_log_likelihood(self, x, sigma, chains, steps, simulated, seed)

    def save(self, path: str | Path) -> None:
        """Write the model to one .safetensors file, atomically. Raises OSError if it could not be written; a file that
        was there before is intact."""
        parts = {"encoder": self.encoder, "decoder": self.decoder, "heads": self.heads, "standard": self.scale}
        checkpoint.save(expanded(path), named(parts), model_info(self.config, self.shape, self.n_classes, self.known))

    def export(self, path: str | Path, decoder: bool = False) -> Path:
        """Write the model as a graph that runs without fastaae, on any number of examples: .onnx (pip install
        'fastaae[onnx]'), or .pt2 for torch.export.load. What it computes is compared with the model first.

        It takes x [N, *shape], of the model's dtype, in the units of the data (bytes of images: k / 255), and of a
        supervised model y, to z, y where there is predict_proba, and reconstruction, by name. That of a GAN, or of the
        decoder alone, takes z and, where decode needs labels, y, to x. y are probabilities [N, n_classes]. The
        metadata, or extra file, "fastaae" holds `classes` and the columns of a table, as JSON.

        Returns: the path. Raises ValueError: another suffix. OSError: as save. RuntimeError: the graph is wrong.
        """
        return export.export(self, path, decoder)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the model, but for the folders in its config, and a README.md to a folder (pip install 'fastaae[hub]').
        Raises as save; ValueError: it holds a config.json. Options are of huggingface_hub's ModelHubMixin: with
        push_to_hub=True, repo_id="user/name" it is uploaded, too."""
        export.save_pretrained(self, folder, **options)

    @staticmethod
    def from_pretrained(source: str | Path, revision: str | None = None, **options: Any) -> Model:
        """The model in a folder, or in a repository of the Hugging Face Hub at the commit whose hash is `revision`: a
        branch may hold another one tomorrow. Options are of huggingface_hub's hf_hub_download, such as token and
        local_files_only. Raises as load and that; ValueError: a revision is missing or in vain."""
        return load(export.find_pretrained(source, revision, **options))

    def code(self, x: Tensor, generator: torch.Generator | None = None, logits: bool = False) -> tuple[Tensor, ...]:
        """(z, y), or (z,) without a label head, of scaled examples x [N, D] on the model's device. With a generator z
        is a sample of the posterior; with logits, y is what its softmax takes."""
        encoder, cfg, noise, x = self._encoder(), self.config, None, self.standardized(x)
        if generator is not None and cfg.posterior == "universal":
            noise = x.new_empty(len(x), cfg.noise_dim).normal_(generator=generator)
        heads = self.n_classes if self.label_head else 0
        out = encoder(x, noise)
        z, y, log_variance = out.tensor_split([cfg.style_dim, cfg.style_dim + heads], 1)
        if generator is not None and cfg.posterior == "gaussian":
            z = z + torch.exp(log_variance / 2) * torch.empty_like(z).normal_(generator=generator)
        return (z, y if logits else torch.softmax(y, -1)) if self.label_head else (z,)

    def _encoder(self) -> MLP:
        if self.encoder is None:
            raise ValueError(f"task {self.config.task!r} has no encoder, expected an autoencoder")
        return self.encoder

    def _encoded_by_module(self, x: Any, g: torch.Generator | None = None) -> Any:
        """As code(), of unscaled examples, with their gradients; of an embedding (representation, y)."""
        self._examples(x)  # checks them
        size = {"gaussian": self.config.style_dim, "universal": self.config.noise_dim}.get(self.config.posterior, 0)
        draw = self.decoder.weights[0].new_empty(len(x), size)
        noise = g and torch.cat([block.normal_(generator=g) for block in draw.split(self.batch)])
        with exact_arithmetic(inference=False):
            out = self.encoder_module().requires_grad_(False)(flat("x", x, self.shape).to(self.device), noise)
        return out if self.label_head else (out,)

    def log_q(self, x: Rows) -> Rows:
        """Logarithms of predict_proba in float64: in order, too, where the probabilities round to 1."""

        def logs(block: Tensor) -> Tensor:
            logits = self.code(block, logits=True)[1].double()
            top = logits.argmax(1, keepdim=True)
            below = logits.sub_(logits.gather(1, top))
            return below.sub_(torch.log1p(below.exp().scatter_(1, top, 0).sum(1, keepdim=True)))

        return self._encoded(logs, x)

    @exact_arithmetic()
    def join(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """What the decoder sees of z [N, style_dim] and y [N, n_classes]."""
        if y is None:
            return z
        return torch.cat([z, y], 1) if self.heads is None else self.heads(z, y)

    def decoded(self, code: Tensor) -> Tensor:
        """Examples [N, D] from what join() returns."""
        out = self.output(code)
        return self.scale.invert(out[None])[0] if self.scale else out

    def output(self, code: Tensor) -> Tensor:
        """The decoder's output, which training compares with standardized()."""
        logits = self.decoder(code)
        return logits.sigmoid_() if self.config.output_layer == "sigmoid" else logits

    def errors(self, code: Tensor, target: Tensor, dim: int | None = 1) -> Tensor:
        """The reconstruction loss that training computes in float64, from what join() returns for examples and what
        standardized() does, target [N, D]: of each [N] or, with dim None, their sum."""
        if self.config.reconstruction == "squared_error":
            return 0.5 * (self.output(code).double() - target).square().sum(dim)
        # From logits: of a probability that has rounded to 0 or 1 the logarithm says nothing.
        logits, target = self.decoder(code).double()[None], target.double()[None]
        terms, grad = logits.new_empty(1, len(code)), torch.empty_like(logits)
        reference.reconstruction_loss(logits, target, grad, terms, self.config.output_layer, self.config.reconstruction)
        return len(code) * terms.T.sum(dim)

    def standardized(self, x: Tensor) -> Tensor:
        """What the encoder sees of scaled() examples x [N, D]: under the scale "unit" themselves."""
        return self.scale(x[None])[0].to(self.decoder.weights[0].dtype) if self.scale else x

    def scaled(self, x: Tensor) -> Tensor:
        """x on the model's device as floats, bytes in [0, 1] where they mean that."""
        x, dtype = x.to(self.device), (self.scale.shift if self.scale else self.decoder.weights[0]).dtype
        return x.to(dtype).div_(255) if x.dtype == torch.uint8 and self.pixels else x.to(dtype)

    def _codes(self, n: int, g: torch.Generator, labels: Tensor | None) -> Iterator[Tensor]:
        """What the decoder sees of n draws from the prior, DRAWN at a time."""
        cfg, like = self.config, self.decoder.weights[0]
        prior = priors.chosen(cfg.prior, self.prior, like.new_empty(min(DRAWN, n), cfg.style_dim))
        weights = self.known.get("label_weights")
        weights = None if weights is None else torch.tensor(weights, dtype=torch.float64, device=self.device)
        for start in range(0, n, DRAWN):
            z = like.new_empty(min(DRAWN, n - start), cfg.style_dim)
            component = torch.empty(len(z), dtype=torch.int64, device=z.device)
            priors.draw(prior, z, cfg.prior_std, component, g, components=cfg.components)
            y = None if labels is None else labels[start : start + DRAWN]
            if self.n_classes and y is None:
                y = z.new_empty(len(z), self.n_classes)
                priors.categorical(y, g, weights)
            yield self.join(z, y)

    def _stream(self, codes: Iterator[Tensor], skip: int, decode: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """What decode makes of codes, without the first `skip`."""
        together = TOGETHER if self.device.type == "cuda" else 1
        while blocks := list(islice(codes, together)):
            for code in torch.cat(blocks).split(together * self.batch):
                if skip < len(code):
                    with exact_arithmetic(inference=False):
                        decoded = decode(code)
                    yield decoded[skip:]
                skip = max(skip - len(code), 0)

    def _examples(self, x: Any, name: str = "x") -> Tensor:
        columns_of(name, x, self.known.get("columns"))
        given = examples(name, examples_of(name, x), None if self.pixels else self.config.scale)
        rows = flat(name, given, self.shape)
        if self.scale and not self.pixels:
            if (far := self.scale(rows[None, :DRAWN].to(self.device)).abs().mean().item()) > FAR:
                warn_caller(f"{name} is {far:.0f} times as far out as the training data: give it in their units")
        return rows

    def _labels(self, labels: Any, n: int, needed: bool = False) -> Tensor | None:
        """Probabilities [n, n_classes] of what a caller gave as labels."""
        if labels is None:
            if needed and self.n_classes:
                raise ValueError(f"labels=None: the decoder takes labels, expected some of {brief(self.classes)}")
            return None
        if not self.n_classes:
            raise ValueError(f"labels={brief(labels)}: the model's decoder takes no labels, expected None")
        given = np.full(n, one) if type(one := scalar(labels)) in (int, str, bool) else labels
        if "classes" in self.known and np.ndim(given) == 1:
            given = encoded("labels", given, n, self.classes)[0]
            if len(lacking := np.flatnonzero(given < 0)):
                raise ValueError(f"labels has none for example {lacking[0]}, expected one of {brief(self.classes)}")
        y, like = tensor("labels", given), self.decoder.weights[0]  # checked where they are
        y = y if y.is_floating_point() or y.dtype == torch.bool else y.long()  # of uint64 torch finds no minimum
        if tuple(y.shape) == (n, self.n_classes) and ((y >= 0) & (y <= 1)).all():
            return y.to(like)
        k = self.n_classes
        expected = f"expected [{n}] integers in [0, {k}) or one for all, or [{n}, {k}] probabilities"
        if y.shape != (n,) or y.dtype == torch.bool or y.is_floating_point():
            raise ValueError(f"labels of shape {tuple(y.shape)} and type {str(y.dtype)[6:]}: {expected}")
        if wrong := [k for k in y.tolist() if not 0 <= k < self.n_classes]:
            raise ValueError(f"label {wrong[0]}: {expected}")
        return torch.nn.functional.one_hot(y, self.n_classes).to(like)

    def _labelled(self, f: Callable[[Tensor], Tensor], x: Any) -> Any:
        """f of the probabilities q(y|x), a few thousand examples at a time."""
        if not self.label_head:
            raise ValueError(f"task {self.config.task!r} has no label head, expected one of {', '.join(WITH_Y)}")
        return self._encoded(lambda b: f(self.code(b)[1]), x)

    def _encoded(self, f: Callable[[Tensor], Tensor], x: Any) -> Any:
        """f of scaled() examples, in batches."""
        return self._batched(lambda b: f(self.scaled(b)), self._examples(x), x)

    def _batched(self, f: Callable[..., Tensor], rows: Tensor, like: Any, *more: Tensor) -> Any:
        """f over rows, and over more tensors as long, a few thousand at a time, on the model's device. NumPy unless
        `like` is a tensor."""
        blocks = zip(*(t.split(self.batch) for t in (rows, *more)), strict=True)
        with exact_arithmetic():
            out = [f(block, *others) for block, *others in blocks]
        result = torch.cat(out)
        return result if isinstance(like, Tensor) else result.cpu().numpy()


def _keeps_gradients(value: Any) -> bool:
    """Whether autograd asks for what is made of a value."""
    return isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()


def model_info(config: Config, shape: tuple[int, ...], n_classes: int, known: dict[str, Any]) -> dict[str, Any]:
    """What a file must say for load() to rebuild a model around its tensors."""
    return {"config": config.to_dict(), "shape": list(shape), "n_classes": n_classes, **known}


def known_of(config: Config, data: Data, k: int) -> dict[str, Any]:
    """What a model with k classes has to know of the data that it is trained on: see Model."""
    known: dict[str, Any] = {"dtype": str(data.train.x.dtype).removeprefix("torch.")}
    if (data.classes != list(range(k)) or bool in map(type, data.classes)) and k == data.n_classes:
        known["classes"] = data.classes
    if data.columns:
        known["columns"] = data.columns
    if weights := label_weights(config.label_weights, data, k) if config.task in WITH_Y else None:
        known["label_weights"] = weights
    return known


def load(
    path: str | Path, replica: int = 0, device: str = "cpu", prior: priors.Custom | None = None, averaged: bool = False
) -> Model:
    """The model in a file written by Model.save, or replica `replica` of a run (its directory or checkpoint).

    Args:
        prior: the function that a prior "custom" was trained with; only sampling needs it.
        averaged: with the averaged weights of a run, which Config.average keeps.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or its tensors do not fit its config.
        ValueError: no such device.
    """
    where, path = find_device(device), expanded(path)
    of = RunDirectory(path) if os.path.isdir(path) else None  # unlike Path's, it takes any name
    (tensors, info), path = (of.load(), of.newest) if of else (checkpoint.load(path), path)
    return from_tensors(tensors, info, path, replica, where, prior, averaged)


def from_tensors(
    tensors: dict[str, Tensor], info: dict[str, Any], path: Path, replica: int, device: torch.device | str = "cpu",
    prior: priors.Custom | None = None, averaged: bool = False,
) -> Model:  # fmt: skip
    """Replica `replica` of what checkpoint.load has read from path, with its best weights where these are kept; the
    rest as in load()."""
    kept = "average." if averaged else "best."
    chosen = {name.removeprefix(kept): t for name, t in tensors.items() if name.startswith(kept)}
    if averaged and not chosen:
        raise ValueError(f"{path}: averaged={averaged}, expected False: it holds no averages, see Config.average")
    tensors = tensors | chosen

    def own(name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The replica's copy of a tensor of this shape, whose replicas and dtype (or that given) are the others'."""
        t, other = tensors[name], tensors["decoder.0.weight"]
        expected = (*other.shape[:1], *shape)
        if t.shape != expected or t.dtype not in (other.dtype, dtype) or t.dtype not in (torch.float32, torch.float64):
            found = f"{name} has shape {tuple(t.shape)} and dtype {t.dtype}"
            raise ValueError(f"{found}, its config needs {expected}, and float32 or float64 throughout")
        with torch.inference_mode(False):  # of which modules could have no gradients
            return t[replica : replica + 1].to(device, copy=True)

    if type(replica := scalar(replica)) is not int:
        raise ValueError(f"replica={replica!r}: expected an integer from 0 on")
    checkpoint.check_info(path, info)
    try:
        config = Config.from_dict(info["config"])
        if (members := info.get("members")) is not None:
            config = Members(config, members).configs[min(max(replica, 0), config.replicas - 1)]
        shape, classes = tuple(info["shape"]), info["n_classes"]
        d = math.prod(shape)
        w = wiring(config, d, classes)
        if w.n_classes != classes:
            raise ValueError(f"n_classes={classes}: expected {w.n_classes} by its config")
        networks = {name: _network(own, name, w, config.products) for name in ("decoder", "encoder") if name in w.sizes}
        heads = Heads(own("heads.weight", *w.heads)) if w.heads else None
        known = {name: info[name] for name in ("dtype", "classes", "label_weights", "columns") if name in info}
        lists = {"classes": (classes, (str, int, bool)), "label_weights": (classes, (float,)), "columns": (d, (str,))}
        for name, (length, kinds) in lists.items():
            if name in known and not _list_of(known[name], length, kinds):
                expected = f"{length} different names, or positive numbers"
                raise ValueError(f"{name}={brief(known[name])}: expected {expected}")
        scale = None
        if config.scale != "unit":
            ends = [own(f"standard.{name}", 1, d, dtype=torch.float64) for name in ("mean", "std")]
            scale = Scale(*ends, pixels=known.get("dtype", "uint8") == "uint8")
    except (KeyError, ValueError) as error:
        message = f"it holds no {error}, which a model needs" if isinstance(error, KeyError) else str(error)
        if (writer := info.get("fastaae", __version__)) != __version__:
            message += f" (fastaae {writer} wrote it, this is {__version__})"
        raise checkpoint.CheckpointError(f"{path}: {message}") from None
    n = len(tensors["decoder.0.weight"])
    if not 0 <= replica < n:
        allowed = f"0 to {n - 1}" if n > 1 else "0"
        raise checkpoint.CheckpointError(f"{path}: replica={replica}: the file holds {n}, expected {allowed}")
    return Model(config, shape, classes, networks.get("encoder"), networks["decoder"], heads, scale, prior, known)


def _list_of(value: Any, n: int, kinds: tuple[type, ...]) -> bool:
    """Whether a file says n names that differ, or n positive numbers."""
    if type(value) is not list or len(value) != n or not all(type(v) in kinds for v in value):
        return False
    return all(0 < v < math.inf for v in value) if kinds == (float,) else len({*map(str, value)}) == n


def _network(own: Callable[..., Tensor], name: str, w: Wiring, library: str) -> MLP:
    weights, biases, norms = [], [], []
    layer, further = w.further(name)
    for i, (n_in, n_out) in enumerate(pairwise(w.sizes[name])):
        weights.append(own(f"{name}.{i}.weight", n_out, n_in + (further if i == layer else 0)))
        biases.append(own(f"{name}.{i}.bias", 1, n_out))
        if i < w.norms.get(name, 0):
            parts = ("scale", "running_mean", "running_variance")
            norms.append(Norm(*(own(f"{name}.{i}.{part}", 1, n_out) for part in parts)))
    return MLP(weights, biases, None, norms, library)

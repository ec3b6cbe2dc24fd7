"""Config: everything a run depends on besides the data's bytes, and the presets, one per experiment of the paper.

Needs no torch, so the command line answers `--help` and bad values at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .files import brief, check_regular, parsed

MAX_BYTES = 2**20  # of a config.json
TASKS = ("unsupervised", "supervised", "semi_supervised", "clustering", "embedding", "gan")


@dataclass(frozen=True)
class Config:
    """One training run. Rates, errors and shapes follow the paper (Makhzani et al. 2016, arXiv 1511.05644).

    Raises:
        ValueError: a value out of range, naming the field, the value and what was expected.
    """

    name: str = "custom"
    """Name of the preset this config was made from; default output directories start with it."""
    task: Literal["unsupervised", "supervised", "semi_supervised", "clustering", "embedding", "gan"] = "unsupervised"
    """unsupervised: autoencoder and a discriminator; supervised: the decoder is told the label; semi_supervised: a
    label head and its discriminator as well; clustering: the same without labels; embedding: the decoder sees the sum
    y W_C + z of a cluster head and z; with labels or, given n_clusters, without; gan: no encoder, and a discriminator
    of images and decoded draws from the prior."""
    dataset: str = "mnist"
    """"mnist", "svhn" or "tfd" (the user's own .mat files), "digits" (8x8, ships with scikit-learn) or the path of a
    .npz file with x, y, x_test, y_test."""
    data_dir: str | None = None
    """Folder of the data set's files; searched before $FASTAAE_DATA and the user's cache."""
    n_validation: int | None = None
    """Training examples held out for validation; None: one in six (10,000 of MNIST's 60,000), or TFD's own."""
    n_labeled: int | None = None
    """Labelled training examples, balanced over classes, drawn per replica; None: all. semi_supervised and label_prior
    only."""

    regularizer: Literal["adversarial", "kl", "mmd"] = "adversarial"
    """What draws codes to the prior. adversarial: discriminators; kl: the divergence of a Gaussian posterior, which
    makes a variational autoencoder; mmd: maximum mean discrepancy, as in a GMMN on codes. The last two are a term of
    the reconstruction's cost, and take its optimiser."""
    regularizer_weight: float = 1.0
    """Factor of that term."""
    posterior: Literal["deterministic", "gaussian", "universal"] = "deterministic"
    """q(z|x). gaussian: the encoder makes mean and log-variance; universal: it gets Gaussian noise as more inputs."""
    noise_dim: int = 10
    """Dimensions of the noise of the universal posterior."""
    noise_layer: int = 0
    """Layer of the encoder that gets it: 0 beside the image, k beside the k-th hidden layer."""
    hidden: tuple[int, ...] = (1000, 1000)
    """Widths of the ReLU layers of encoder, decoder and discriminators."""
    style_dim: int = 8
    """Dimensions of the style code z."""
    n_clusters: int | None = None
    """Categories of y without labels: of clustering, which needs it, or embedding; elsewhere the data's classes."""
    fixed_heads: float | None = None
    """W_C is so many times the identity; None: it is learned. embedding only."""
    separation: float = 10.0
    """Distance between two learned cluster heads up to which they cost what it falls short."""
    prior: Literal["gaussian", "uniform", "mixture", "swiss_roll", "custom"] = "gaussian"
    """Distribution that the aggregated posterior of z is matched to. mixture: of 2-D Gaussians, the petals of a flower;
    swiss_roll: 2-D, with noise around a spiral; custom: what the function given to train(prior=...) draws."""
    prior_std: float = 5.0
    """Scale of the prior: the standard deviation of a Gaussian or uniform one, the factor on the lengths of a mixture
    or swiss roll (priors.py has them)."""
    components: int = 10
    """Gaussians of a mixture, pieces of a swiss roll."""
    label_prior: bool = False
    """Component k of the prior stands for class k: the discriminator is told the component, or the label of the image
    behind a code, with one more class for unlabelled images. n_labeled says how many have a label."""
    standardize: bool = False
    """Networks see and make every pixel less its mean over the training set, over its standard deviation there. What a
    Model takes and returns stays in [0, 1]. Needs output "linear"."""
    output: Literal["sigmoid", "linear"] = "sigmoid"
    """Output layer of the decoder."""
    reconstruction: Literal["squared_error", "cross_entropy"] = "squared_error"
    """0.5 * squared error, or binary cross-entropy; both summed over dimensions, averaged over the batch."""
    input_noise: float = 0.0
    """Standard deviation of the Gaussian noise added to the encoder's input while training."""
    input_dropout: float = 0.0
    """Probability of every value of the encoder's input to be dropped, after noise; training only."""
    dropout: float = 0.0
    """Probability of every hidden unit of all networks to be dropped, after its ReLU; training only. A step draws once
    for all passes through a network on the same batch."""
    batch_norm: Literal["none", "encoder", "autoencoder"] = "none"
    """Networks with batch normalisation before every ReLU and after the last layer, also of the logits of y. Running
    statistics, which inference uses, follow the reconstruction phase's pass."""
    init_std: float = 0.01
    """Standard deviation of the initial weights; biases start at zero."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd: with momentum; adam: betas 0.9, 0.999, momentum fields unused. One state per cost either way."""
    lr_reconstruction: float = 0.01
    lr_adversarial: float = 0.1
    """Learning rate of discriminators and generator."""
    lr_classification: float = 0.1
    momentum: float = 0.9
    """Momentum of the reconstruction and classification costs."""
    momentum_adversarial: float = 0.1
    """Momentum of the discriminator and generator costs."""
    lr_decay: float = 0.1
    """Factor on every learning rate at the start of each of the epochs in lr_decay_epochs."""
    lr_decay_epochs: tuple[int, ...] = (50, 1000)

    epochs: int = 100
    """Passes over the (unlabelled) training set, shuffled each time; the examples after the last whole batch
    wait for another epoch."""
    batch_size: int = 100
    """Unlabelled and labelled examples per step."""
    seed: int = 0
    """Seed of replica 0; replica r uses seed + r for its weights, labels, order, noise and prior samples."""
    replicas: int = 1
    """Independently seeded models trained side by side."""
    device: str = "auto"
    """"auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N"."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Arithmetic of the step. fp32 is true float32, never TF32. bf16 and fp16: operands of products and what flows
    between layers; weights, optimiser and losses stay float32. fp16 scales losses, by a factor that follows
    overflows. On a CPU 16 bits are emulated, slowly."""
    graph: bool = True
    """On a GPU, replay steps as a CUDA graph; False: call them one by one, for debugging. The same numbers, slowly."""
    out_dir: str | None = None
    """Run directory; None: runs/NAME-DATE-TIME."""
    checkpoint_every: int = 1
    """Epochs between checkpoints, more where writing them would take over 0.5 % of the time, unless on_divergence is
    "restart"; the last epoch is always saved."""
    log_every: int = 100
    """Steps between lines of metrics.jsonl; the only times the host reads from the device."""
    on_divergence: Literal["stop", "restart"] = "stop"
    """What follows a loss or weight that is NaN or infinite. stop: an error that names it. restart: back to the last
    checkpoint and on with all learning rates (of all replicas) halved, three times at most."""
    profile: str | None = None
    """"FIRST:LAST": run these steps, counted from 1, eagerly under a profiler and write trace.json to the run
    directory."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # JSON and command lines give lists for tuples and integers for floats
            value = getattr(self, field.name)
            if type(value).__module__ == "numpy" and hasattr(value, "item"):
                value = value.item()
                object.__setattr__(self, field.name, value)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, field.name, os.fspath(value))
            elif isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            elif field.type in ("float", "float | None") and type(value) is int and abs(value) <= 2**53:
                object.__setattr__(self, field.name, float(value))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _error(name, getattr(self, name), f"one of {', '.join(choices)}", choices)
        for name in ("name", "dataset", "device"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise _error(name, getattr(self, name), "a non-empty string")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise _error("name", self.name, "letters, digits, '.', '_' and '-': it begins a directory's name")
        for name in ("data_dir", "out_dir"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise _error(name, getattr(self, name), "a string or None")
        _integer("noise_layer", self.noise_layer, 0)
        for name in (
            "noise_dim",
            "style_dim",
            "components",
            "epochs",
            "batch_size",
            "replicas",
            "checkpoint_every",
            "log_every",
        ):
            _integer(name, getattr(self, name), 1)
        for name in ("label_prior", "standardize", "graph"):
            if type(getattr(self, name)) is not bool:
                raise _error(name, getattr(self, name), "True or False")
        for name in ("n_validation", "n_labeled", "n_clusters"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 2 if name == "n_clusters" else 1)
        _integer("seed", self.seed, 0)
        for name, least in (("hidden", 1), ("lr_decay_epochs", 1)):
            if not isinstance(getattr(self, name), tuple):
                raise _error(name, getattr(self, name), "a tuple of integers")
            for value in getattr(self, name):
                _integer(name, value, least)
        if self.profile is not None and not (isinstance(self.profile, str) and self.profiled()):
            raise _error("profile", self.profile, "None or 'FIRST:LAST', steps counted from 1")
        if list(self.lr_decay_epochs) != sorted(set(self.lr_decay_epochs)):
            raise _error("lr_decay_epochs", self.lr_decay_epochs, "increasing epochs")
        for name in (
            "lr_reconstruction",
            "lr_adversarial",
            "lr_classification",
            "prior_std",
            "init_std",
            "lr_decay",
            "separation",
        ):
            _number(name, getattr(self, name), "a finite number > 0", lambda v: v > 0)
        _number("regularizer_weight", self.regularizer_weight, "a finite number > 0", lambda v: v > 0)
        _number("input_noise", self.input_noise, "a finite number >= 0", lambda v: v >= 0)
        for name in ("input_dropout", "dropout", "momentum", "momentum_adversarial"):
            _number(name, getattr(self, name), "a number in [0, 1)", lambda v: 0 <= v < 1)
        if self.reconstruction == "cross_entropy" and self.output != "sigmoid":
            raise _error("output", self.output, "'sigmoid' when reconstruction is 'cross_entropy'")
        if self.standardize and self.output != "linear":
            raise _error("output", self.output, "'linear' with standardize: a standardized pixel is not in [0, 1]")
        if self.task == "gan":
            for name in ("regularizer", "posterior", "batch_norm", "input_noise", "input_dropout"):
                default = type(self).__dataclass_fields__[name].default
                if getattr(self, name) != default:
                    raise _error(name, getattr(self, name), f"{default!r} in the task 'gan', which has no encoder")
            if self.precision in ("bf16", "fp16"):
                raise _error("precision", self.precision, "'fp32' or 'fp64' in the task 'gan'")
        if self.regularizer != "adversarial":
            if self.task not in ("unsupervised", "supervised") or self.label_prior:
                raise _error("regularizer", self.regularizer, "'adversarial' where y or its label has a prior, too")
            if self.precision in ("bf16", "fp16"):
                raise _error("precision", self.precision, f"'fp32' or 'fp64' with regularizer {self.regularizer!r}")
        elif self.regularizer_weight != 1:
            raise _error("regularizer_weight", self.regularizer_weight, "1.0 with discriminators: see lr_adversarial")
        if self.regularizer == "kl" and self.posterior != "gaussian":
            raise _error("posterior", self.posterior, "'gaussian' with regularizer 'kl', which needs its density")
        if self.regularizer == "kl" and self.prior != "gaussian":
            raise _error("prior", self.prior, "'gaussian' with regularizer 'kl', which has a closed form for no other")
        if self.noise_layer > len(self.hidden):
            raise _error("noise_layer", self.noise_layer, f"at most {len(self.hidden)}, the number of hidden layers")
        if self.batch_norm != "none" and self.batch_size < 2:
            raise _error("batch_size", self.batch_size, "at least 2 with batch_norm")
        if self.batch_norm != "none" and self.precision in ("bf16", "fp16"):
            raise _error("precision", self.precision, "'fp32' or 'fp64' with batch_norm")
        if self.task != "embedding" and (self.n_clusters is None) == (self.task == "clustering"):
            expected = "a number of clusters" if self.n_clusters is None else "None"
            raise _error("n_clusters", self.n_clusters, f"{expected} in the task {self.task!r}")
        if self.prior in ("mixture", "swiss_roll") and self.style_dim != 2:
            raise _error("style_dim", self.style_dim, f"2 with the 2-D prior {self.prior!r}")
        if self.label_prior and self.prior not in ("mixture", "swiss_roll"):
            raise _error("prior", self.prior, "'mixture' or 'swiss_roll' with label_prior: a component for each class")
        if self.label_prior and self.task != "unsupervised":
            raise _error("label_prior", True, f"False: in the task {self.task!r} y is for that")
        if self.fixed_heads is not None:
            _number("fixed_heads", self.fixed_heads, "None or a finite number > 0", lambda v: v > 0)
            if self.task != "embedding":
                raise _error("fixed_heads", self.fixed_heads, f"None in the task {self.task!r}")
            if self.n_clusters not in (None, self.style_dim):
                raise _error(
                    "n_clusters", self.n_clusters, f"style_dim={self.style_dim} with fixed_heads, a square W_C"
                )
        if self.task == "embedding" and self.precision == "fp16":
            raise _error("precision", self.precision, "'fp32', 'bf16' or 'fp64' in the task 'embedding'")
        for name, used, where in (
            ("noise_dim", self.posterior == "universal", "posterior='universal'"),
            ("noise_layer", self.posterior == "universal", "posterior='universal'"),
            ("components", self.prior in ("mixture", "swiss_roll"), "prior='mixture' or 'swiss_roll'"),
            (
                "separation",
                self.task == "embedding" and self.fixed_heads is None,
                "the task 'embedding' that learns heads",
            ),
        ):
            default = type(self).__dataclass_fields__[name].default
            if not used and getattr(self, name) != default:
                raise _error(name, getattr(self, name), f"{default!r}: it has a meaning with {where} alone")
        if self.n_labeled is not None and not self.classifies and not self.label_prior:
            used = "all" if self.task == "supervised" else "no"
            raise _error("n_labeled", self.n_labeled, f"None: the task {self.task!r} uses {used} labels")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Any) -> Config:
        """Inverse of to_dict.

        Raises:
            ValueError: not a mapping, an unknown field, or a value out of range.
        """
        if not isinstance(values, dict):
            raise ValueError(f"config: got {type(values).__name__}, expected an object of Config's fields")
        names = [f.name for f in dataclasses.fields(Config)]
        for key in values:
            if key not in names:
                hint = _suggestion(key, names) or ": expected one of Config's"
                raise ValueError(f"config: unknown field {brief(key)}{hint}")
        return Config(**values)

    @staticmethod
    def from_json(path: str | Path) -> Config:
        """The config of a run's config.json (its out_dir dropped, so that the repeat gets a directory of its own), or a
        plain JSON object of Config's fields.

        Raises:
            ValueError: no such file, not JSON, or not a valid config; the message names the file.
        """
        try:
            check_regular(Path(path), MAX_BYTES)
            values = parsed(Path(path).read_text(encoding="utf-8"))
            if isinstance(values, dict) and "config" in values:
                values = values["config"]
                values = {**values, "out_dir": None} if isinstance(values, dict) else values
            return Config.from_dict(values)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def classifies(self) -> bool:
        """Whether the encoder learns to predict labels."""
        return self.task == "semi_supervised" or (self.task == "embedding" and self.n_clusters is None)

    def profiled(self) -> range:
        """The steps, counted from 1, that run under a profiler."""
        found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.profile or "")
        return range(int(found[1]), int(found[2]) + 1) if found and int(found[1]) else range(0)

    def rate(self, base: float, epoch: int) -> float:
        """Learning rate `base` after the decays due at the start of `epoch` (0-based)."""
        return base * self.lr_decay ** sum(epoch >= e for e in self.lr_decay_epochs)


_CHOICES = {
    "task": TASKS,
    "prior": ("gaussian", "uniform", "mixture", "swiss_roll", "custom"),
    "output": ("sigmoid", "linear"),
    "reconstruction": ("squared_error", "cross_entropy"),
    "regularizer": ("adversarial", "kl", "mmd"),
    "posterior": ("deterministic", "gaussian", "universal"),
    "batch_norm": ("none", "encoder", "autoencoder"),
    "optimizer": ("sgd", "adam"),
    "precision": ("fp32", "bf16", "fp16", "fp64"),
    "on_divergence": ("stop", "restart"),
}


def _suggestion(word: Any, choices: Any) -> str:
    close = difflib.get_close_matches(brief(word), list(choices), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _error(name: str, value: Any, expected: str, choices: Any = ()) -> ValueError:
    return ValueError(f"{name}={brief(value)}: expected {expected}{_suggestion(value, choices)}")


def _integer(name: str, value: Any, least: int) -> None:
    if type(value) is not int or not least <= value < 2**31:
        raise _error(name, value, f"an integer from {least} to 2**31 - 1")


def _number(name: str, value: Any, expected: str, valid: Any) -> None:
    if type(value) is not float or not math.isfinite(value) or not valid(value):
        raise _error(name, value, expected)


_SEMI_SUPERVISED = {  # section 5 and appendix A.2 of the paper
    "task": "semi_supervised",
    "style_dim": 10,
    "prior_std": 1.0,
    "input_noise": 0.3,
    "epochs": 5000,
}

_SHAPED = {  # figures 2b and 4; by the SGD of mnist-2d components are filled, and classes find theirs, later
    "style_dim": 2,
    "prior_std": 5.0,
    "init_std": 0.03,
    "optimizer": "adam",
    "lr_reconstruction": 2e-4,
    "lr_adversarial": 1e-3,  # at 5e-4 both, zeros stay on a neighbour's petal
    "epochs": 1000,
}

_ADAM = {  # table 1 in far fewer epochs
    "dropout": 0.2,
    "init_std": 0.03,  # with 0.01 the first epochs are lost
    "optimizer": "adam",
    "lr_reconstruction": 2e-4,
    "lr_adversarial": 1e-4,
    "lr_decay_epochs": (55,),
    "epochs": 70,
}

_LABELS = {"label_prior": True, "n_labeled": 10_000}  # the other 40,000 images have none

_JOINT = {  # one cost of reconstruction and regulariser: what the paper compares with
    "reconstruction": "cross_entropy",
    "init_std": 0.03,
    "optimizer": "adam",
    "lr_reconstruction": 1e-3,
    "lr_decay_epochs": (50,),
    "epochs": 100,
}

_SVHN = {
    "dataset": "svhn",
    "standardize": True,
    "output": "linear",
    "batch_norm": "autoencoder",
    "input_dropout": 0.2,
    "lr_decay_epochs": (250,),
}

_EMBEDDING = {**_SEMI_SUPERVISED, "task": "embedding", "style_dim": 2}  # section 7

_CLUSTERING = {  # section 6
    "task": "clustering",
    "hidden": (3000, 3000),
    "style_dim": 5,
    "prior_std": 1.0,
    "batch_norm": "encoder",
    "input_dropout": 0.2,
    "lr_decay_epochs": (50,),
    "epochs": 1500,
}

PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "dataset": "digits",
        "hidden": (200, 200),
        "style_dim": 2,
        "init_std": 0.05,
        "lr_reconstruction": 0.03,
        "epochs": 200,
        "lr_decay_epochs": (150,),
    },
    "mnist-likelihood": {"style_dim": 8, "prior_std": 5.0, "epochs": 1000},
    "mnist-likelihood-adam": {**_ADAM, "reconstruction": "cross_entropy"},
    "tfd-likelihood": {
        **_ADAM,
        "dataset": "tfd",
        "style_dim": 15,
        "prior_std": 10.0,
        "standardize": True,
        "output": "linear",
    },
    "mnist-gan": {
        "task": "gan",
        "style_dim": 100,
        "prior": "uniform",
        "prior_std": 1.0,
        "dropout": 0.5,
        "init_std": 0.05,
        "momentum_adversarial": 0.5,
        "lr_adversarial": 0.02,
        "lr_decay_epochs": (),
        "epochs": 60,
    },
    "mnist-gmmn": {**_JOINT, "regularizer": "mmd", "regularizer_weight": 100.0},
    "mnist-vae-2d": {**_JOINT, "style_dim": 2, "regularizer": "kl", "posterior": "gaussian"},
    "mnist-2d": {"style_dim": 2, "prior_std": 5.0, "epochs": 1000},
    "mnist-2d-mixture": {
        **_SHAPED,
        "prior": "mixture",
        "lr_adversarial": 1e-4,  # at 1e-3 codes collapse
        "dropout": 0.2,
    },
    "mnist-2d-swiss-roll": {**_SHAPED, "prior": "swiss_roll", **_LABELS},
    "mnist-2d-labels": {**_SHAPED, "prior": "mixture", **_LABELS},
    "mnist-100": {**_SEMI_SUPERVISED, "n_labeled": 100},
    "mnist-1000": {**_SEMI_SUPERVISED, "n_labeled": 1000},
    "mnist-all": _SEMI_SUPERVISED,
    "svhn-1000": {
        **_SVHN,
        "task": "semi_supervised",
        "n_labeled": 1000,
        "style_dim": 20,
        "prior_std": 1.0,
        "lr_reconstruction": 1e-4,
        "lr_adversarial": 0.01,
        "epochs": 1000,
    },
    "mnist-style": {  # where the code is fast to learn, it carries the class as well, and the label is ignored
        **_ADAM,
        "task": "supervised",
        "style_dim": 15,
        "prior_std": 1.0,
        "lr_reconstruction": 1e-4,
        "lr_adversarial": 5e-4,
    },
    "svhn-style": {
        **_SVHN,
        "task": "supervised",
        "style_dim": 15,
        "prior_std": 1.0,
        "lr_reconstruction": 1e-4,
        "lr_adversarial": 0.01,
        "epochs": 1000,
    },
    "mnist-embedding-2d-1000": {**_EMBEDDING, "n_labeled": 1000},
    "mnist-embedding-2d-100": {**_EMBEDDING, "n_labeled": 100},
    "mnist-embedding-2d-unsupervised": {  # where without batch normalisation few heads are used
        **_EMBEDDING,
        "n_clusters": 20,
        "batch_norm": "encoder",
    },
    "mnist-embedding-10d-100": {**_EMBEDDING, "style_dim": 10, "n_labeled": 100, "fixed_heads": 10.0},
    "mnist-clusters-16": {**_CLUSTERING, "n_clusters": 16},
    "mnist-clusters-30": {**_CLUSTERING, "n_clusters": 30},
    "mnist-clusters-30-adam": {  # where the game is slower than reconstruction, z takes the class and y stays soft
        **_CLUSTERING,
        "n_clusters": 30,
        "hidden": (1000, 1000),
        "init_std": 0.03,
        "optimizer": "adam",
        "lr_reconstruction": 2e-4,
        "lr_adversarial": 5e-4,
        "lr_decay_epochs": (30,),
        "epochs": 40,
    },
}


def presets() -> list[str]:
    """Names that preset() takes."""
    return list(PRESETS)


def preset(name: str, **changes: Any) -> Config:
    """The Config of one experiment, with any field changed by keyword.

    Raises:
        ValueError: unknown preset or field, or a value out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}{_suggestion(name, PRESETS)}")
    return Config.from_dict({"name": name, **PRESETS[name], **changes})

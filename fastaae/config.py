"""Config: everything a run depends on besides the data's bytes, and the rules that its fields keep.

Needs no torch, so the command line answers `--help` and bad values at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .files import brief, read_json, suggestion
from .scalars import scalar


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run (adversarial autoencoders: Makhzani et al. 2016, arXiv 1511.05644). Its defaults train data of
    many kinds (bench/defaults.py); presets state the settings of the paper.

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
    """"mnist", "svhn" or "tfd" (the user's own .mat files), "digits" (8x8, ships with scikit-learn) or a path: a .npy,
    .npz (x, y, x_test, y_test), .mat or IDX file, or a folder of IDX files or images."""
    data_dir: str | None = None
    """Folder of the data set's files; searched before $FASTAAE_DATA and the user's cache."""
    n_validation: int | None = None
    """Training examples held out for validation; None: one in six (10,000 of MNIST's 60,000), or TFD's own."""
    n_labeled: int | None = None
    """Labelled training examples, in the shares of label_weights, drawn per replica; None: all."""

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
    style_dim: int = 2
    """Dimensions of the style code z."""
    n_clusters: int | None = None
    """Categories of y without labels: of clustering, which needs it, or embedding; elsewhere the data's classes."""
    fixed_heads: float | None = None
    """W_C is so many times the identity; divides y's gradient, see separation. None: it is learned. embedding only."""
    separation: float = 10.0
    """Distance of learned heads up to which they cost what it falls short; divides reconstruction's gradient of y."""
    prior: Literal["gaussian", "uniform", "mixture", "swiss_roll", "custom"] = "gaussian"
    """Distribution that the aggregated posterior of z is matched to. mixture: of 2-D Gaussians, the petals of a flower;
    swiss_roll: 2-D, with noise around a spiral; custom: what the function given to train(prior=...) draws."""
    prior_std: float = 5.0
    """Standard deviation of a Gaussian or uniform prior, factor on lengths (priors.py) of a mixture or swiss roll."""
    components: int = 10
    """Gaussians of a mixture, pieces of a swiss roll."""
    label_prior: bool = False
    """Component k of the prior stands for class k: the discriminator is told the component, or the label of the image
    behind a code, with one more class for unlabelled images. n_labeled says how many have a label."""
    label_weights: Literal["uniform", "data"] | tuple[float, ...] = "uniform"
    """Prior of y: the same for all classes, their shares of the labels that are given, or a number for each class."""
    scale: Literal["unit", "minmax", "standard"] = "unit"
    """What networks see and make of the data. unit: bytes / 255, or floats that are in [0, 1]; minmax: every feature's
    range over the training set becomes [0, 1]; standard: its mean there 0, its standard deviation 1. What a Model takes
    and returns is in the data's own units. (Once called standardize: True is "standard".)"""
    output: Literal["auto", "sigmoid", "linear"] = "auto"
    """Output layer of the decoder. auto: sigmoid under the scale "unit" and of cross_entropy, else linear."""
    reconstruction: Literal["squared_error", "cross_entropy"] = "squared_error"
    """0.5 * squared error, or binary cross-entropy; both summed over dimensions, averaged over the batch."""
    input_noise: float = 0.0
    """Standard deviation of the Gaussian noise added to the encoder's input while training, or to all that a GAN's
    discriminator sees."""
    input_dropout: float = 0.0
    """Probability of every value of the encoder's input to be dropped, after noise; training only."""
    dropout: float = 0.0
    """Probability of every hidden unit of all networks (of a GAN: of the discriminator) to be dropped, after its ReLU;
    training only. A step draws once for all passes through a network on the same batch."""
    batch_norm: Literal["none", "encoder", "autoencoder"] = "none"
    """Networks with batch normalisation before every ReLU and (but in a GAN) after the last layer, and of the logits of
    y. Running statistics, which inference uses, follow the step's first pass."""
    init_std: float | None = 0.05
    """Initial weights' standard deviation. None: sqrt(2 / inputs), last layers sqrt(1 / inputs). Biases start at 0."""

    optimizer: Literal["sgd", "adam"] = "adam"
    """sgd: with momentum; adam: betas 0.9, 0.999, momentum fields unused. One state per cost either way."""
    lr_reconstruction: float = 1e-3
    """Learning rate of encoder and decoder. 0, of this and the next two: a step leaves out the phases of that cost, and
    a network that none trains stays as it began."""
    lr_adversarial: float = 3e-4
    """Learning rate of discriminators and generator."""
    lr_classification: float = 1e-3
    """Learning rate of the encoder's labels."""
    momentum: float = 0.9
    """Momentum of the reconstruction and classification costs."""
    momentum_adversarial: float = 0.1
    """Momentum of the discriminator and generator costs."""
    lr_decay: float = 0.1
    """Factor on every learning rate at the start of each of the epochs in lr_decay_epochs."""
    lr_decay_epochs: tuple[int, ...] = ()
    """The first is 1."""
    average: float = 0.0
    """Decay of a running average of the weights, whose metrics stand beside theirs: each step adds 1 - average of the
    new weights, in the beginning as much as makes it a plain mean. 0: none."""

    epochs: int = 100
    """Passes over the (unlabelled) training set, shuffled each time; what fills no whole batch waits for another."""
    batch_size: int = 100
    """Unlabelled and labelled examples per step."""
    seed: int = 0
    """Seed of replica 0; replica r uses seed + r for its weights, labels, order, noise and prior samples."""
    replicas: int = 1
    """Independently seeded models trained side by side."""
    start_epochs: tuple[int, ...] = ()
    """Epochs after which a replica begins anew, with other initial weights or, the last time, with those of its best
    epoch so far, by keep's metric: the best of several starts goes on, as in k-means."""
    device: str = "auto"
    """"auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N"."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Arithmetic of the step. fp32 is true float32, never TF32. bf16 and fp16: operands of products and what flows
    between layers; weights, optimiser and losses stay float32. fp16 scales losses, by a factor that follows
    overflows. A CPU multiplies bf16 where it can (avx512_bf16); else 16 bits are emulated there, slowly."""
    products: Literal["auto", "onednn", "torch"] = "auto"
    """Who multiplies float32 on a CPU: oneDNN, or what PyTorch calls itself, such as MKL. auto: the faster one on this
    processor; a run keeps which it was. Small layers are left to PyTorch."""
    graph: bool = True
    """On a GPU, replay steps as a CUDA graph; False: call them one by one, for debugging. The same numbers, slowly."""
    out_dir: str | None = None
    """Run directory; None: runs/NAME-DATE-TIME."""
    checkpoint_every: int | None = None
    """Epochs between checkpoints. None: one, and more where saving would take over 1 % of the time, unless
    on_divergence is "restart". The last epoch is always saved."""
    keep: Literal["last", "best", "final"] = "last"
    """Weights in the checkpoint. best: beside the last ones those of each replica's epoch with the lowest validation
    metric (an error if there is one, else reconstruction), for models and metrics. final: in the end no optimizer's
    state, so that the run cannot go on."""
    patience: int | None = None
    """Epochs in a row without a lower mean of that metric over (a rank's own) replicas that end training; None: any."""
    log_every: int = 100
    """Steps between lines of metrics.jsonl; the only times the host reads from the device."""
    on_divergence: Literal["stop", "restart"] = "stop"
    """What follows a loss or weight that is NaN or infinite. stop: an error that names it. restart: back to the last
    checkpoint and on with all learning rates (of all replicas) halved, three times at most."""
    profile: str | None = None
    """"FIRST:LAST": run these steps, counted from 1, eagerly under a profiler, which writes the run's trace.json."""

    def __post_init__(self) -> None:
        for name, kind in TYPES.items():
            object.__setattr__(self, name, _converted(getattr(self, name), kind))
        for names, test, words in FIELDS:
            for name in names.split():
                value, optional = getattr(self, name), name in OPTIONAL
                if not test(value) and not (optional and value is None):
                    raise _error(name, value, f"{words} or None" if optional else words)
        for name, test, words in ELEMENTS:
            for value in getattr(self, name):
                if not test(value):
                    raise _error(name, value, words)
        for name, holds, words in RULES:
            if not holds(self):
                raise _error(name, getattr(self, name), words.format(c=self, layers=len(self.hidden)))
        for names, used, words in UNUSED:
            for name in names.split():
                if getattr(self, name) != getattr(Config, name) and not used(self):
                    raise _error(name, getattr(self, name), f"{getattr(Config, name)!r}{words.format(c=self)}")

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
        return Config(**{str(name): value for name, value in values.items()})

    @staticmethod
    def from_json(path: str | Path) -> Config:
        """The config of a run's config.json (its out_dir dropped, so that the repeat gets a directory of its own), or a
        plain JSON object of Config's fields.

        Raises:
            ValueError: no such file, not JSON, or not a valid config; the message names the file.
        """
        try:
            values = read_json(path)
            if "config" not in values:
                return Config.from_dict(values)
            if "members" in values:
                raise ValueError(f"members={brief(values['members'])}: expected a run of one config for all replicas")
            return dataclasses.replace(Config.from_dict(values["config"]), out_dir=None)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def output_layer(self) -> str:
        """ "sigmoid" or "linear"."""
        unit = self.scale == "unit" or self.reconstruction == "cross_entropy"
        return self.output if self.output != "auto" else "sigmoid" if unit else "linear"

    @property
    def classifies(self) -> bool:
        """Whether the encoder learns to predict labels."""
        return self.task == "semi_supervised" or (self.task == "embedding" and self.n_clusters is None)

    @property
    def needs_labels(self) -> bool:
        """Whether training uses labels."""
        return self.task == "supervised" or self.classifies or self.label_prior

    def profiled(self) -> range:
        """The steps, counted from 1, that run under a profiler."""
        found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.profile or "")
        return range(int(found[1]), int(found[2]) + 1) if found and int(found[1]) else range(0)

    def rate(self, base: float, epoch: int) -> float:
        """Learning rate `base` after the decays due at the start of `epoch` (0-based)."""
        return base * self.lr_decay ** sum(epoch >= e for e in self.lr_decay_epochs)


def _converted(value: Any, kind: Any) -> Any:
    """A field's value in its own type: callers give lists for tuples, integers for floats, paths, NumPy's numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "torch" and type(value).__name__ == "device":
        return str(value)
    whole = str | bytes | bytearray | memoryview | Mapping
    if "tuple" in str(kind) and hasattr(value, "__getitem__") and not isinstance(value, whole):
        with contextlib.suppress(TypeError):  # none to go through after all
            return tuple(scalar(element) for element in value)
    value = tuple(value) if isinstance(value, list) else scalar(value)
    if kind in (float, float | None) and type(value) is int and abs(value) <= 2**53:
        return float(value)
    return value


def _error(name: str, value: Any, expected: str) -> ValueError:
    choices = CHOICES.get(name, ())
    hint = "" if value in choices else suggestion(value, choices)
    return ValueError(f"{name}={brief(value)}: expected {expected}{hint}")


Test = Callable[[Any], object]
Rule = tuple[str, Callable[[Config], object], str]


def _integer(least: int, most: int = 2**31 - 1) -> tuple[Test, str]:
    words = most if most < 2**31 - 1 else "2**31 - 1"
    return lambda v: type(v) is int and least <= v <= most, f"an integer from {least} to {words}"


def _number(valid: Test, words: str) -> tuple[Test, str]:
    return lambda v: type(v) is float and math.isfinite(v) and valid(v), words


def _shares(v: Any) -> bool:
    numbers = isinstance(v, tuple) and len(v) > 1 and all(type(w) in (int, float) and 0 < w < 1e30 for w in v)
    return numbers or (isinstance(v, str) and v in ("uniform", "data"))


def _only(name: str, allowed: Sequence[Any], where: Callable[[Config], object], why: str) -> Rule:
    words = " or ".join(map(repr, allowed)).replace(" or ", ", ", len(allowed) - 2)
    return name, lambda c: not where(c) or getattr(c, name) in allowed, f"{words} {why}"


# A new field needs a row of FIELDS (unless its type is a Literal), one of UNUSED if some settings ignore it, and one of
# RULES for each other field that it may contradict, or of IDLE. They are checked in this order.

TYPES = get_type_hints(Config)
CHOICES = {name: get_args(kind) for name, kind in TYPES.items() if get_origin(kind) is Literal}
OPTIONAL = {name for name, kind in TYPES.items() if type(None) in get_args(kind)}
INTEGERS = "a tuple of at most 1000 integers"
POSITIVE = _number(lambda v: v > 0, "a finite number > 0")
NOT_NEGATIVE = _number(lambda v: v >= 0, "a finite number >= 0")
FIELDS: tuple[tuple[str, Test, str], ...] = (  # names, what their values must pass, what is expected
    *(
        (name, lambda v, choices=choices: isinstance(v, str) and v in choices, f"one of {', '.join(choices)}")
        for name, choices in CHOICES.items()
    ),
    ("name dataset device data_dir out_dir profile", lambda v: isinstance(v, str) and v, "a non-empty string"),
    ("name", re.compile(r"[\w.-]{1,200}").fullmatch, "at most 200 letters, digits, '.', '_' and '-', for a directory"),
    ("seed noise_layer n_validation", *_integer(0)),
    ("components", *_integer(1, 10_000)),  # as classes of data
    ("noise_dim style_dim epochs batch_size replicas checkpoint_every patience log_every n_labeled", *_integer(1)),
    ("n_clusters", *_integer(2, 10_000)),
    ("label_weights", _shares, "'uniform', 'data' or positive numbers"),
    ("label_prior graph", lambda v: type(v) is bool, "True or False"),
    ("hidden lr_decay_epochs start_epochs", lambda v: isinstance(v, tuple) and len(v) <= 1000, INTEGERS),
    ("lr_decay prior_std init_std separation regularizer_weight fixed_heads", *POSITIVE),
    ("lr_reconstruction lr_adversarial lr_classification input_noise", *NOT_NEGATIVE),
    ("input_dropout dropout average", *_number(lambda v: 0 <= v < 1, "a number in [0, 1)")),
    ("momentum momentum_adversarial", *_number(lambda v: 0 <= v < 1, "a number in [0, 1)")),
)
ELEMENTS = [(name, *_integer(1)) for name in ("hidden", "lr_decay_epochs", "start_epochs")]  # of a tuple's values

SHAPED = ("mixture", "swiss_roll")
LEARN = "a number > 0 unless another cost is learned"
SQUARE = "style_dim={c.style_dim} with fixed_heads, a square W_C"
WITH_Y = ("semi_supervised", "clustering", "embedding")  # tasks whose encoder makes labels
RULES: tuple[Rule, ...] = (  # a name, what must hold of the config, what is expected
    ("lr_adversarial", lambda c: c.lr_adversarial or c.task != "gan", "a finite number > 0 in the task 'gan'"),
    ("lr_reconstruction", lambda c: c.lr_reconstruction or c.regularizer == "adversarial", LEARN),
    ("lr_reconstruction", lambda c: c.lr_reconstruction + c.lr_adversarial + c.classifies * c.lr_classification, LEARN),
    ("profile", lambda c: c.profile is None or c.profiled(), "None or 'FIRST:LAST', steps counted from 1"),
    ("lr_decay_epochs", lambda c: list(c.lr_decay_epochs) == sorted(set(c.lr_decay_epochs)), "increasing epochs"),
    ("start_epochs", lambda c: list(c.start_epochs) == sorted(set(c.start_epochs)), "increasing epochs"),
    _only("output", ["auto", "sigmoid"], lambda c: c.reconstruction == "cross_entropy", "with the loss cross_entropy"),
    _only("output", ["auto", "linear"], lambda c: c.scale == "standard", "with scale='standard', which leaves [0, 1]"),
    ("label_weights", lambda c: c.label_weights != "data" or c.classifies, "'uniform' or numbers where y is no label"),
    _only("regularizer", ["adversarial"], lambda c: c.task in WITH_Y or c.label_prior, "where y or labels have priors"),
    _only("posterior", ["gaussian"], lambda c: c.regularizer == "kl", "with regularizer 'kl', which needs its density"),
    _only("prior", ["gaussian"], lambda c: c.regularizer == "kl", "with regularizer 'kl', which needs a closed form"),
    _only("prior", SHAPED, lambda c: c.label_prior, "with label_prior: a component for each class"),
    _only("style_dim", [2], lambda c: c.prior in SHAPED, "with the 2-D prior {c.prior!r}"),
    _only("keep", ["last", "final"], lambda c: c.task == "gan", "in the task 'gan', which has no validation metric"),
    _only("keep", ["best"], lambda c: c.start_epochs and c.task != "gan", "with start_epochs, to go on from"),
    _only("patience", [None], lambda c: c.start_epochs, "with start_epochs: most starts are worse than the best"),
    _only("batch_norm", ["none"], lambda c: not c.lr_reconstruction and c.task != "gan", "with lr_reconstruction=0"),
    _only("batch_norm", ["none", "autoencoder"], lambda c: c.task == "gan", ": a gan has no encoder"),
    ("batch_size", lambda c: c.batch_size >= 2 or c.batch_norm == "none", "at least 2 with batch_norm"),
    ("noise_layer", lambda c: c.noise_layer <= len(c.hidden), "at most {layers}, the number of hidden layers"),
    ("n_clusters", lambda c: c.n_clusters or c.task != "clustering", "a number of clusters in the task 'clustering'"),
    ("n_clusters", lambda c: c.task != "embedding" or not c.fixed_heads or c.n_clusters in (None, c.style_dim), SQUARE),
)

UNUSED: tuple[Rule, ...] = (  # names, when they have a use, why they must keep their default elsewhere
    ("regularizer posterior input_dropout", lambda c: c.task != "gan", ": a gan has no encoder"),
    ("patience start_epochs", lambda c: c.task != "gan", ": a gan has no validation metric"),
    ("regularizer_weight", lambda c: c.regularizer != "adversarial", " with discriminators: see lr_adversarial"),
    ("n_clusters", lambda c: c.task in ("clustering", "embedding"), " in the task {c.task!r}"),
    ("label_weights", lambda c: c.task in WITH_Y, " in the task {c.task!r}, where y has no prior"),
    ("label_prior", lambda c: c.task == "unsupervised", ": in the task {c.task!r} y is for that"),
    ("fixed_heads", lambda c: c.task == "embedding", " in the task {c.task!r}"),
    ("separation", lambda c: c.task == "embedding" and not c.fixed_heads, ": it is for an embedding's learned heads"),
    ("noise_dim noise_layer", lambda c: c.posterior == "universal", ": it is for posterior='universal' alone"),
    ("components", lambda c: c.prior in SHAPED, ": it is for prior='mixture' or 'swiss_roll' alone"),
    ("n_labeled", lambda c: c.task != "supervised", ": the task 'supervised' uses all labels"),
    ("n_labeled", lambda c: c.classifies or c.label_prior, ": the task {c.task!r} uses no labels"),
)
IDLE: tuple[Rule, ...] = (  # the same of fields that may have any value there, but are not worth a sweep: why
    ("momentum momentum_adversarial", lambda c: c.optimizer == "sgd", "it is for optimizer='sgd' alone"),
    ("lr_adversarial momentum_adversarial", lambda c: c.regularizer == "adversarial", "regularizer={c.regularizer!r}"),
    ("lr_classification", lambda c: c.classifies, "the task {c.task!r} learns no labels"),
    ("lr_decay", lambda c: c.lr_decay_epochs and c.lr_decay_epochs[0] < c.epochs, "no decay in epochs={c.epochs}"),
    ("lr_decay_epochs", lambda c: c.lr_decay_epochs[:1] < (c.epochs,), "no decay in epochs={c.epochs}"),
    ("lr_decay_epochs", lambda c: c.lr_decay != 1, "lr_decay={c.lr_decay}"),
    ("dropout", lambda c: c.hidden, "hidden={c.hidden}"),
    ("products", lambda c: c.precision == "fp32", "precision={c.precision!r}"),
)

_set = Config.__init__


@functools.wraps(_set)
def _init(self: Config, *values: Any, **fields: Any) -> None:
    if (standardize := fields.pop("standardize", None)) is not None:  # as it was called once
        scale = {True: "standard", False: "unit"}.get(standardize) if type(standardize) is bool else None
        if scale is None or fields.setdefault("scale", scale) != scale:
            raise _error("standardize", standardize, f"True or False, and no other scale (got {fields.get('scale')!r})")
    for name in fields:
        if name not in TYPES:
            hint = suggestion(name, TYPES) or ": expected the name of one of Config's"
            raise ValueError(f"config: unknown field {brief(name)}{hint}")
    _set(self, *values, **fields)


Config.__init__ = _init

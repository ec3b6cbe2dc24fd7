"""Config: everything a run depends on besides the data's bytes, and the presets, one per experiment of the paper.

Needs no torch, so the command line answers `--help` and bad values at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TASKS = ("unsupervised", "semi_supervised")


@dataclass(frozen=True)
class Config:
    """One training run. Rates, errors and shapes follow the paper (Makhzani et al. 2016, arXiv 1511.05644).

    Raises:
        ValueError: a value out of range, naming the field, the value and what was expected.
    """

    name: str = "custom"
    """Name of the preset this config was made from; default output directories start with it."""
    task: Literal["unsupervised", "semi_supervised"] = "unsupervised"
    """unsupervised: autoencoder and a discriminator; semi_supervised: a label head and its discriminator as well."""
    dataset: str = "mnist"
    """"mnist", "svhn" or "tfd" (the user's own .mat files), "digits" (8x8, ships with scikit-learn) or the path of a
    .npz file with x, y, x_test, y_test."""
    data_dir: str | None = None
    """Folder of the data set's files; searched before $FASTAAE_DATA and the user's cache."""
    n_validation: int | None = None
    """Training examples held out for validation; None: one in six (10,000 of MNIST's 60,000), or TFD's own."""
    n_labeled: int | None = None
    """Labelled training examples, balanced over classes, drawn per replica; None: all. semi_supervised only."""

    hidden: tuple[int, ...] = (1000, 1000)
    """Widths of the ReLU layers of encoder, decoder and discriminators."""
    style_dim: int = 8
    """Dimensions of the style code z."""
    prior: Literal["gaussian"] = "gaussian"
    """Distribution that the aggregated posterior of z is matched to."""
    prior_std: float = 5.0
    """Standard deviation of the Gaussian prior."""
    output: Literal["sigmoid", "linear"] = "sigmoid"
    """Output layer of the decoder."""
    reconstruction: Literal["squared_error", "cross_entropy"] = "squared_error"
    """0.5 * squared error, or binary cross-entropy; both summed over dimensions, averaged over the batch."""
    input_noise: float = 0.0
    """Standard deviation of the Gaussian noise added to the encoder's input while training."""
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
    out_dir: str | None = None
    """Run directory; None: runs/NAME-DATE-TIME."""
    checkpoint_every: int = 1
    """Epochs between checkpoints, more where writing them would take over a tenth of the time; the last epoch is always
    saved."""
    log_every: int = 100
    """Steps between lines of metrics.jsonl; the only times the host reads from the device."""
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
            elif field.type == "float" and type(value) is int and abs(value) <= 2**53:
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
        for name in ("style_dim", "epochs", "batch_size", "replicas", "checkpoint_every", "log_every"):
            _integer(name, getattr(self, name), 1)
        for name in ("n_validation", "n_labeled"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 1)
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
        for name in ("lr_reconstruction", "lr_adversarial", "lr_classification", "prior_std", "init_std", "lr_decay"):
            _number(name, getattr(self, name), "a finite number > 0", lambda v: v > 0)
        _number("input_noise", self.input_noise, "a finite number >= 0", lambda v: v >= 0)
        for name in ("momentum", "momentum_adversarial"):
            _number(name, getattr(self, name), "a number in [0, 1)", lambda v: 0 <= v < 1)
        if self.reconstruction == "cross_entropy" and self.output != "sigmoid":
            raise _error("output", self.output, "'sigmoid' when reconstruction is 'cross_entropy'")
        if self.n_labeled is not None and self.task != "semi_supervised":
            raise _error("n_labeled", self.n_labeled, f"None: the task {self.task!r} uses no labels")

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
                raise ValueError(f"config: unknown field {key!r}{_suggestion(key, names)}")
        return Config(**values)

    @staticmethod
    def from_json(path: str | Path) -> Config:
        """The config of a run's config.json (its out_dir dropped, so that the repeat gets a directory of its own), or a
        plain JSON object of Config's fields.

        Raises:
            ValueError: no such file, not JSON, or not a valid config; the message names the file.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unique)
            if isinstance(values, dict) and "config" in values:
                values = values["config"]
                values = {**values, "out_dir": None} if isinstance(values, dict) else values
            return Config.from_dict(values)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from None

    def profiled(self) -> range:
        """The steps, counted from 1, that run under a profiler."""
        found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.profile or "")
        return range(max(int(found[1]), 1), int(found[2]) + 1) if found else range(0)

    def rate(self, base: float, epoch: int) -> float:
        """Learning rate `base` after the decays due at the start of `epoch` (0-based)."""
        return base * self.lr_decay ** sum(epoch >= e for e in self.lr_decay_epochs)


_CHOICES = {
    "task": TASKS,
    "prior": ("gaussian",),
    "output": ("sigmoid", "linear"),
    "reconstruction": ("squared_error", "cross_entropy"),
    "optimizer": ("sgd", "adam"),
    "precision": ("fp32", "bf16", "fp16", "fp64"),
}


def _suggestion(word: Any, choices: Any) -> str:
    close = difflib.get_close_matches(str(word), list(choices), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r} is given twice")
        values[name] = value
    return values


def _error(name: str, value: Any, expected: str, choices: Any = ()) -> ValueError:
    return ValueError(f"{name}={value!r}: expected {expected}{_suggestion(value, choices)}")


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
    "mnist-2d": {"style_dim": 2, "prior_std": 5.0, "epochs": 1000},
    "mnist-100": {**_SEMI_SUPERVISED, "n_labeled": 100},
    "mnist-1000": {**_SEMI_SUPERVISED, "n_labeled": 1000},
    "mnist-all": _SEMI_SUPERVISED,
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

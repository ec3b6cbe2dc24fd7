"""The command `fastaae`. Its flags are made from Config by tyro; torch is imported only once a command needs it."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from . import __version__
from .config import Config
from .experiments import PRESETS, preset
from .files import WriteError, read_json

if TYPE_CHECKING:
    from .data import Data
    from .model import Model

USAGE = """usage: fastaae COMMAND ...

  presets                      the experiments there are
  train NAME [--FIELD VALUE]   train a preset, any field of Config changed; `fastaae train NAME --help` lists them
  train --config FILE          repeat the run of a config.json
  resume DIR                   go on with a stopped run
  evaluate DIR                 metrics of a run on its validation and test sets
  parzen DIR [--samples 10000] [--sigma S] [--validation 1000] [--seed 0] [--replica 0] [--state FILE]
                               log-likelihood of the test set under samples of the model
  sample DIR [--n 64] [--seed 0] [--out FILE.png]
                               decode draws from the prior to a picture
  figures DIR [--replica 0] [--seed 0] [--out FOLDER]
                               the paper's pictures that fit the run's task
  --version
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 for a run that failed (full disk, divergence, memory), 2 for a
    user's error, 129, 130 or 143 when stopped by a signal."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    plain = {"presets": _presets, "train": _train, "resume": _resume, "evaluate": _evaluate}
    flagged = {"parzen": Parzen, "sample": Sample, "figures": Figures}
    if command in ("-h", "--help") or (command not in ("train", *flagged) and {"-h", "--help"} & set(rest)):
        print(USAGE, end="")
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in [*plain, *flagged]:
        close = difflib.get_close_matches(command, [*plain, *flagged], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"\n{USAGE}".rstrip("\n")
        print(f"fastaae: unknown command {command!r}{hint}", file=sys.stderr)
        return 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
            if command in plain:
                plain[command](rest)
            else:
                _run_flagged(command, flagged[command], rest)
            return 0
    except KeyboardInterrupt as error:
        _say(str(error) or "interrupted")
        return 128 + getattr(error, "signum", 2)
    except BrokenPipeError:  # the reader of our output has gone, as in `fastaae presets | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        _say(error)
        broken = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
        return 1 if broken or isinstance(error, WriteError | RuntimeError | MemoryError) else 2


def _say(message: object) -> None:
    """Print an error. What is no printable character comes escaped: names in files of others may hold any."""
    print("fastaae:", "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message)), file=sys.stderr)


def _presets(arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"presets: expected no arguments, got {' '.join(arguments)}")
    for name, fields in PRESETS.items():
        print(f"{name:32} {' '.join(f'{k}={v}' for k, v in fields.items())}")


def chosen(arguments: list[str], default: str, **changes: Any) -> Config:
    """The config of the arguments `[PRESET] [--FIELD VALUE ...]` of a script: what is changed of its preset, if not by
    a flag."""
    name, flags = default, arguments
    if arguments and not arguments[0].startswith("-"):
        name, *flags = arguments
    return tyro.cli(Config, default=preset(name, **changes), args=flags)


def _train(arguments: list[str]) -> None:
    """Train the config that a preset or a config.json and flags make."""
    path = None
    if arguments[:1] == ["--config"]:
        if len(arguments) < 2:
            raise ValueError(f"train {arguments[0]}: expected a file after it")
        path, flags, program = arguments[1], arguments[2:], "fastaae train --config FILE"
        base = Config.from_json(path)
    elif arguments and not arguments[0].startswith("-"):
        base, flags, program = preset(arguments[0]), arguments[1:], f"fastaae train {arguments[0]}"
    else:
        base, flags, program = Config(), arguments, "fastaae train"
        if not {"-h", "--help"} & set(arguments):
            raise ValueError(f"train: expected a preset ({', '.join(PRESETS)}) or --config FILE first, then flags")
    cfg = tyro.cli(Config, default=base, args=flags, prog=program, description="Fields of the run and their values.")
    if path and cfg.dataset == base.dataset and cfg.n_validation == base.n_validation:
        data = read_json(path).get("data")
        _same_data(cfg, data.get("sha256") if isinstance(data, dict) else None, path)
    _train_and_report(cfg, None)


def _resume(arguments: list[str]) -> None:
    _train_and_report(None, _directory("resume", arguments))


def _train_and_report(cfg: Config | None, resume: str | None) -> None:
    """train(), under torchrun on every rank; the first one reports."""
    from .run import ranks
    from .run.training import train

    several = ranks.launched()
    if several and ranks.distributed.get_rank():
        sys.stdout = open(os.devnull, "w")
    try:
        run = train(cfg, resume=resume)
    finally:
        if several:  # or its threads may abort the interpreter as it ends
            ranks.distributed.destroy_process_group()
    for name, metric in run.metrics.items():
        spread = f" +- {metric['std']:.2g}" if len(metric["replicas"]) > 1 else ""
        print(f"{name:24} {metric['mean']:.4g}{spread}")
    print(f"run directory: {run.directory}")


def _same_data(cfg: Config, sha256: str | None, source: str) -> Data:
    """The data of a config, which has to be what the run recorded."""
    from . import data

    loaded = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    if sha256 is not None and loaded.sha256 != sha256:
        other = f"{cfg.dataset} is not the data of that run"
        raise ValueError(f"{source}: {other}, expected SHA-256 {sha256}, not {loaded.sha256}")
    return loaded


def _models_and_data(directory: str, replica: int | None = None) -> tuple[list[Model], Data]:
    """A run's models, or that of one replica, and the data that they were trained on."""
    from .directory import RunDirectory
    from .model import from_tensors

    run = RunDirectory(directory)
    tensors, info = run.load()
    replicas = range(Config.from_dict(info.get("config")).replicas) if replica is None else [replica]
    models = [from_tensors(tensors, info, run.newest, r) for r in replicas]
    return models, _same_data(models[0].config, info.get("data_sha256"), directory)


def _evaluate(arguments: list[str]) -> None:
    from . import evaluation

    models, data = _models_and_data(_directory("evaluate", arguments))
    for split in ("valid", "test"):
        for name, values in evaluation.evaluate(models, data, split).items():
            print(json.dumps({name: evaluation.summarize(values)}))


@dataclasses.dataclass
class Parzen:
    """Parzen-window log-likelihood, in nats, of the run's test set under samples of its model, with its error bound."""

    samples: int = 10_000
    """Decoded draws from the prior; 10,000 and 10,000,000 are the paper's."""
    sigma: float | None = None
    """Bandwidth; default: chosen on validation examples."""
    validation: int = 1000
    """How many of them, the first ones."""
    seed: int = 0
    replica: int = 0
    state: str | None = None
    """File that keeps the partial sums; the same command goes on from them."""

    def __call__(self, directory: str) -> None:
        if self.validation < 1:
            raise ValueError(f"--validation {self.validation}: expected at least 1 validation example")
        (model,), data = _models_and_data(directory, self.replica)
        if data.x_test is None:
            raise ValueError(f"parzen: {data.name} has no test set, expected x_test")
        validation = data.x_valid[: self.validation] if self.sigma is None else None
        start = time.perf_counter()
        result = model.log_likelihood(
            data.x_test, self.samples, self.sigma, seed=self.seed, validation=validation, state=self.state
        )
        report = {k: getattr(result, k) for k in ("mean", "sem", "error_bound", "sigma", "n_samples")}
        print(json.dumps({"log_likelihood": report | {"seconds": round(time.perf_counter() - start, 3)}}))


@dataclasses.dataclass
class Sample:
    """Decode draws from the prior and write them as a picture."""

    n: int = 64
    """How many."""
    seed: int = 0
    replica: int = 0
    out: str | None = None
    """PNG file; default: samples.png in the run directory."""

    def __call__(self, directory: str) -> None:
        if self.out and not self.out.lower().endswith(".png"):
            raise ValueError(f"--out {self.out}: expected the name of a .png file")
        from . import figures
        from .model import load

        path = Path(self.out) if self.out else Path(directory) / "samples.png"
        figures.grid(load(directory, self.replica).sample(self.n, self.seed), path)
        print(path)


@dataclasses.dataclass
class Figures:
    """Draw the paper's pictures that fit the run's task, of its test set, and say what each file shows."""

    replica: int = 0
    seed: int = 0
    """Of the samples, and of the images beside cluster heads."""
    out: str | None = None
    """Folder; default: the run directory."""

    def __call__(self, directory: str) -> None:
        (model,), data = _models_and_data(directory, self.replica)
        from . import figures

        for path, shows in figures.draw(model, data, self.out or directory, self.seed).items():
            print(f"{path}: {shows}")


def _run_flagged(command: str, flags: type, arguments: list[str]) -> None:
    """Run a command on the directory that is its first argument, with the flags after it."""
    asked = [a for a in arguments if a in ("-h", "--help")]  # for help, which tyro prints and leaves
    directory = "" if asked else _directory(command, arguments[:1])
    tyro.cli(flags, args=asked or arguments[1:], prog=f"fastaae {command} DIR")(directory)


def _directory(command: str, arguments: list[str]) -> str:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ValueError(f"{command}: expected one run directory, got {' '.join(arguments) or 'nothing'}")
    if not Path(arguments[0]).is_dir():
        raise ValueError(f"{command}: {arguments[0]!r} is no directory, expected that of a run")
    return arguments[0]


if __name__ == "__main__":
    sys.exit(main())

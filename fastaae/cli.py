"""The command `fastaae`. Its flags are made from Config by tyro; torch is imported only once a command needs it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from . import __version__
from .config import Config
from .experiments import PRESETS, preset
from .files import BROKEN, WriteError, expanded, read_json, suggestion

if TYPE_CHECKING:
    from .data import Data
    from .model import Model

USAGE = """usage: fastaae COMMAND ...

  presets                      the experiments there are
  train NAME [--FIELD VALUE]   train a preset, any field of Config changed
  train --config FILE          repeat the run of a config.json
  resume DIR [--FIELD VALUE]   go on with a stopped run, or with a finished one for more --epochs
  evaluate DIR                 metrics of a run on its validation and test sets
  parzen DIR                   log-likelihood of the test set under samples of the model
  sample DIR                   decode draws from the prior to a picture
  figures DIR                  the paper's pictures that fit the run's task
  --version

`fastaae COMMAND --help` lists flags. --data-dir and --dataset say where a run's data lie now, if they have moved.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 for a run that failed (full disk, divergence, memory), 2 for a
    user's error, 129, 130 or 143 when stopped by a signal, 141 where the reader of its output has gone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)  # also where all others are errors
            warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
            _run(*((sys.argv[1:] if arguments is None else arguments) or ["--help"]))
            return 0
    except KeyboardInterrupt as error:
        _say(str(error) or "interrupted")
        return 128 + getattr(error, "signum", 2)
    except BrokenPipeError:  # as in `fastaae presets | head -1`
        return 141
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        text = f"{error}: pip install 'fastaae[demo]'" if isinstance(error, ImportError) else str(error)
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else text
        _say(text or "out of memory")
        return (
            1
            if getattr(error, "errno", None) in BROKEN or isinstance(error, WriteError | RuntimeError | MemoryError)
            else 2
        )


def _run(command: str, *arguments: str) -> None:
    if command in ("-h", "--help") or (command == "presets" and {"-h", "--help"} & {*arguments}):
        _print(*USAGE.splitlines())
    elif command == "--version":
        _print(__version__)
    elif command in COMMANDS:
        COMMANDS[command]([*arguments])
    elif command in ON_RUNS:
        directory, flags = _directory(command, *arguments)
        _parsed(ON_RUNS[command], flags, prog=f"fastaae {command} DIR")(directory)
    else:
        names = [*COMMANDS, *ON_RUNS]
        raise ValueError(f"unknown command {command!r}: expected one of {', '.join(names)}{suggestion(command, names)}")


def _print(*lines: object, error: bool = False) -> None:
    """Print lines to standard output or standard error; nothing else prints. What is no printable character comes
    escaped, since names in files of others may hold any; so does what the stream cannot encode."""
    if (stream := sys.stderr if error else sys.stdout) is None:  # closed
        return
    encoding = stream.encoding or "utf-8"
    try:
        for line in lines:
            text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(line))
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError as failure:
        with contextlib.suppress(OSError):  # or the interpreter tries again as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not error:  # else there is nobody to tell
            if isinstance(failure, BrokenPipeError):
                raise
            raise WriteError(f"standard output: {failure.strerror or failure}; give it another place") from None


def _say(message: object) -> None:
    _print(f"fastaae: {message}", error=True)


def _presets(arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"presets: expected no arguments, got {' '.join(arguments)}")
    for name, fields in PRESETS.items():
        _print(f"{name:32} {' '.join(f'{k}={v}' for k, v in fields.items())}")


def _parsed(flags: type, arguments: list[str], **options: Any) -> Any:
    """What tyro makes of the arguments; its help and errors go where all goes."""
    said = io.StringIO()
    os.environ["COLUMNS"] = str(max(40, shutil.get_terminal_size().columns))  # of fewer tyro never comes back
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return tyro.cli(flags, args=arguments, **options)
    except SystemExit as left:
        _print(*said.getvalue().split("\n")[:-1], error=left.code != 0)
        raise


def chosen(arguments: list[str], default: str, **changes: Any) -> Config:
    """The config of the arguments `[PRESET] [--FIELD VALUE ...]` of a script: what is changed of its preset, if not by
    a flag."""
    given = arguments and not arguments[0].startswith("-")
    name, *flags = arguments if given else [default, *arguments]
    return _parsed(Config, flags, default=preset(name, **changes))


def _train(arguments: list[str]) -> None:
    """Train the config that a preset or a config.json and flags make."""
    path = None
    match arguments:
        case ["--config", path, *flags]:
            base, program = Config.from_json(path), "fastaae train --config FILE"
        case [name, *flags] if not name.startswith("-"):
            base, program = preset(name), f"fastaae train {name}"
        case flags:
            base, program = Config(), "fastaae train"
            if not {"-h", "--help"} & {*flags}:
                raise ValueError(f"train: expected a preset ({', '.join(PRESETS)}) or --config FILE first, then flags")
    cfg = _parsed(Config, flags, default=base, prog=program, description="Fields of the run and their values.")
    if path and cfg.dataset == base.dataset and cfg.n_validation == base.n_validation:
        data = read_json(path).get("data")
        if sha256 := data.get("sha256") if isinstance(data, dict) else None:
            _, where = _same_data(cfg, sha256, path, recorded=cfg.data_dir == base.data_dir)
            cfg = dataclasses.replace(cfg, data_dir=where)
    _train_and_report(cfg, None)


def _resume(arguments: list[str]) -> None:
    directory, flags = _directory("resume", *arguments)
    cfg = None
    if flags:
        from .run.resume import config_of

        base, what = config_of(directory) if directory else Config(), "Fields that say how, and how long, to go on."
        cfg = _parsed(Config, flags, default=base, prog="fastaae resume DIR", description=what)
    _train_and_report(cfg, directory)


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
        _print(f"{name:24} {metric['mean']:.4g}{spread}")
    _print(f"run directory: {run.directory if several else run.config.out_dir}")


def _same_data(cfg: Config, sha256: str | None, source: str, recorded: bool) -> tuple[Data, str | None]:
    """The data of a config, and their data_dir; they have to be what the run recorded, as maybe it is, too."""
    from . import data

    loaded, where = data.recorded(cfg.dataset, cfg.data_dir, cfg.n_validation, sha256 if recorded else None)
    if sha256 is not None and loaded.sha256 != sha256:
        raise ValueError(f"{source}: {cfg.dataset} is not its data, expected SHA-256 {sha256}, not {loaded.sha256}")
    return loaded, where


@dataclasses.dataclass
class OnData:
    """A command on a run and the data that it was trained on."""

    data_dir: str | None = None
    """Folder of the data set's files; default: where the run found them, then $FASTAAE_DATA and the user's cache."""
    dataset: str | None = None
    """The run's .npz file, where it has moved."""

    def models_and_data(self, directory: str, replica: int | None = None) -> tuple[list[Model], Data]:
        """The run's models, or that of one replica, and its data."""
        from .directory import RunDirectory
        from .model import from_tensors

        run = RunDirectory(directory)
        tensors, info = run.load()
        models = [from_tensors(tensors, info, run.newest, replica or 0)]
        if replica is None:
            models += [from_tensors(tensors, info, run.newest, r) for r in range(1, models[0].config.replicas)]
        moved = {k: v for k, v in (("data_dir", self.data_dir), ("dataset", self.dataset)) if v is not None}
        cfg = dataclasses.replace(models[0].config, **moved)
        return models, _same_data(cfg, info.get("data_sha256"), directory, recorded=self.data_dir is None)[0]


@dataclasses.dataclass
class Evaluate(OnData):
    """Metrics of a run on its validation and test sets, a line of JSON each."""

    def __call__(self, directory: str) -> None:
        from . import evaluation

        models, data = self.models_and_data(directory)
        for split in ("valid", "test"):
            for name, values in evaluation.evaluate(models, data, split).items():
                _print(json.dumps({name: evaluation.summarize(values)}))


@dataclasses.dataclass
class Parzen(OnData):
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
        (model,), data = self.models_and_data(directory, self.replica)
        if data.x_test is None:
            raise ValueError(f"parzen: {data.name} has no test set, expected x_test")
        validation = data.x_valid[: self.validation] if self.sigma is None else None
        start = time.perf_counter()
        result = model.log_likelihood(
            data.x_test, self.samples, self.sigma, seed=self.seed, validation=validation, state=self.state
        )
        report = {k: getattr(result, k) for k in ("mean", "sem", "error_bound", "sigma", "n_samples", "dimensions")}
        report |= {"query_range": result.query_range[:2], "sample_range": result.sample_range[:2]}
        _print(json.dumps({"log_likelihood": report | {"seconds": round(time.perf_counter() - start, 3)}}))


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
        import matplotlib.image  # noqa: F401  # an error comes before the work

        from . import figures
        from .model import load

        path = expanded(self.out or Path(directory) / "samples.png")
        figures.grid(load(directory, self.replica).sample(self.n, self.seed), path)
        _print(path)


@dataclasses.dataclass
class Figures(OnData):
    """Draw the paper's pictures that fit the run's task, of its test set, and say what each file shows."""

    replica: int = 0
    seed: int = 0
    """Of the samples, and of the images beside cluster heads."""
    out: str | None = None
    """Folder; default: the run directory."""

    def __call__(self, directory: str) -> None:
        import matplotlib.image  # noqa: F401  # as above

        from . import figures

        (model,), data = self.models_and_data(directory, self.replica)
        for path, shows in figures.draw(model, data, self.out or directory, self.seed).items():
            _print(f"{path}: {shows}")


COMMANDS = {"presets": _presets, "train": _train, "resume": _resume}
ON_RUNS: dict[str, type] = {"evaluate": Evaluate, "parzen": Parzen, "sample": Sample, "figures": Figures}


def _directory(command: str, *arguments: str) -> tuple[str, list[str]]:
    """A run's directory, which comes first, and the flags after it; or that for help, which tyro prints and leaves."""
    if {"-h", "--help"} & {*arguments}:
        return "", ["--help"]
    given, *flags = arguments or ("",)
    if not given or not expanded(given).is_dir():
        raise ValueError(f"{command}: expected the directory of a run, got {given or 'nothing'}")
    return str(expanded(given)), flags


if __name__ == "__main__":
    sys.exit(main())

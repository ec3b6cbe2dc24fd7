"""The command `fastaae`. Its flags are the fields of dataclasses; torch is imported only once a command needs it."""

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from . import __version__
from .config import UNUSED, Config
from .experiments import PRESETS, preset
from .files import BROKEN, WriteError, brief, expanded, printable, read_json, suggestion

if TYPE_CHECKING:
    from .data import Data
    from .model import Model

USAGE = """usage: fastaae COMMAND ...

look
  demo                         train two small models in a minute, draw and score them; needs no data

train
  presets                      the experiments there are
  train NAME [--FIELD VALUE]   train a preset, any field of Config changed
  train --dataset PATH         train your own data: a .npy, .npz, IDX or .mat file, or a folder of images
  train --config FILE          repeat the run of a config.json
  resume DIR [--FIELD VALUE]   go on with a stopped run, or with a finished one for more --epochs
  list RUNS                    the runs in a folder, with their metrics
  sweep NAME --FIELD A B ...   train with each of several values, or combinations of them, and compare

use what was trained; DATA is such a path, too
  encode DIR DATA              style codes of examples, to a .npy file
  predict DIR DATA             classes of examples
  reconstruct DIR DATA         examples, decoded from their codes
  sample DIR                   decode draws from the prior to a picture or a .npy file
  export DIR                   the model as a graph: ONNX, or torch.export's

judge it
  evaluate DIR                 metrics of a run on its validation and test sets
  parzen DIR                   log-likelihood of the test set under samples of the model
  parzen --samples FILE        the same of files, of whatever model
  figures DIR                  the paper's pictures that fit the run's task

`fastaae COMMAND --help` lists flags. --data-dir and --dataset say where a run's data lie now, if they have moved;
--quiet has train and resume say nothing but warnings and the run's directory. --version says which this is.
"""

# Groups of fields in the help, by the first of each.
TOPICS = {"name": "task and data", "regularizer": "model", "optimizer": "learning", "epochs": "run"}


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
        _say("; ".join([str(error) or "interrupted", *getattr(error, "__notes__", ())]))
        return 128 + getattr(error, "signum", 2)
    except BrokenPipeError:  # as in `fastaae presets | head -1`
        return 141
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        extra = "onnx" if str(getattr(error, "name", "")).startswith("onnx") else "demo"
        text = f"{error}: pip install 'fastaae[{extra}]'" if isinstance(error, ImportError) else str(error)
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else text
        _say(text or "out of memory")
        broken = getattr(error, "errno", None) in BROKEN
        return 1 if broken or isinstance(error, WriteError | RuntimeError | MemoryError) else 2


def _run(command: str, *arguments: str) -> None:
    if command in ("-h", "--help") or (command in ("presets", "list") and {"-h", "--help"} & {*arguments}):
        _print(*USAGE.splitlines())
    elif command == "--version":
        _print(__version__)
    elif command in COMMANDS:
        COMMANDS[command]([*arguments])
    elif command in ON_RUNS:
        files = command == "parzen" and "".join(arguments[:1]).startswith("-")
        directory, flags = ("", [*arguments]) if files else _directory(command, *arguments)
        _parsed(ON_RUNS[command], flags, prog=f"fastaae {command} DIR")(directory)
    elif command in ON_EXAMPLES:
        directory, flags = _directory(command, *arguments)
        path, *flags = (flags or [""]) if directory else ("", *flags)
        options = {"prog": f"fastaae {command} DIR DATA", "description": ON_EXAMPLES[command]}
        _parsed(OnExamples, flags, **options)(command, directory, path)
    else:
        names = [*COMMANDS, *ON_RUNS, *ON_EXAMPLES]
        raise ValueError(f"unknown command {command!r}: expected one of {', '.join(names)}{suggestion(command, names)}")


def _print(*lines: object, error: bool = False) -> None:
    """Print lines to standard output or standard error; nothing else prints. What is no printable character comes
    escaped, since names in files of others may hold any; so does what the stream cannot encode."""
    if (stream := sys.stderr if error else sys.stdout) is None:  # closed
        return
    encoding = stream.encoding or "utf-8"
    try:
        for line in lines:
            print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError as failure:
        with contextlib.suppress(OSError):  # or the interpreter tries again as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not error:  # else there is nobody to tell
            if isinstance(failure, BrokenPipeError):
                raise
            raise WriteError(f"standard output: {failure.strerror or failure}; give it another place") from None


def _table(*rows: list[str]) -> None:
    """Print rows of cells, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    _print(*("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows))


def _say(message: object) -> None:
    _print(f"fastaae: {message}", error=True)


def _presets(arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"presets: expected no arguments, got {' '.join(arguments)}")
    _table(*([name, what] for name, (what, _) in PRESETS.items()))


class _Parser(argparse.ArgumentParser):
    color = False  # which Python 3.14 would add, and _print escape

    def print_help(self, file: Any = None) -> None:
        _print(*self.format_help().splitlines())

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; run {self.prog} --help")


def _converter(hint: Any) -> tuple[Callable[[str], Any], str]:
    """What makes a value, or one of a tuple, of a word, and what the help calls such words."""
    kinds = [k for h in get_args(hint) or [hint] for k in get_args(h) or [h] if k not in (..., NoneType)]

    def convert(word: str) -> Any:
        number = kinds[0] in (int, float) and word not in kinds
        return None if word == "None" else kinds[0](word) if number else word

    convert.__name__ = getattr(kinds[0], "__name__", "str")  # as errors call it
    return convert, "|".join(getattr(k, "__name__", k) for k in kinds)


def _parsed(kind: type, arguments: list[str], default: Any = None, hidden: Collection[str] = (), **options: Any) -> Any:
    """The dataclass that flags and a default make. Help leaves out hidden fields and what a preset ignores."""
    usage = {"description": kind.__doc__, "usage": "%(prog)s [--FIELD VALUE ...]"}
    parser = group = _Parser(allow_abbrev=False, **{**usage, **options})
    sources = "".join(map(inspect.getsource, kind.__mro__[:-1]))
    texts = dict(re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""$', sources, re.DOTALL | re.MULTILINE))
    unused = {*hidden}
    if getattr(default, "name", None) in PRESETS:
        unused |= {name for names, used, _ in UNUSED for name in names.split() if not used(default)}
        parser.epilog = "What this experiment ignores is left out."
    for name, hint in get_type_hints(kind).items():
        if kind is Config and name in TOPICS:
            group = parser.add_argument_group(TOPICS[name])
        value, (convert, metavar) = getattr(default or kind, name), _converter(hint)
        how: dict[str, Any] = {"type": convert, "metavar": metavar}
        how |= {"nargs": "*"} if isinstance(value, tuple) else {}
        how = {"action": argparse.BooleanOptionalAction} if hint is bool else how
        text = f"{' '.join(texts[name].split())} [{printable(_word(value))}]".replace("%", "%%")
        help = argparse.SUPPRESS if name in unused else text
        group.add_argument(f"--{name.replace('_', '-')}", default=value, help=help, **how)
    found, stray = parser.parse_known_args(arguments)
    if stray:
        flags = [f"--{name.replace('_', '-')}" for name in vars(found)]
        raise ValueError(f"{stray[0]!r}: expected a flag of {parser.prog}{suggestion(stray[0], flags)}")
    return kind(**vars(found))


def chosen(arguments: list[str], default: str, **changes: Any) -> Config:
    """The config of a script's arguments `[PRESET] [--FIELD VALUE ...]`; flags win over its own changes."""
    given = arguments and not arguments[0].startswith("-")
    name, *flags = arguments if given else [default, *arguments]
    try:
        return _parsed(Config, flags, default=preset(name, **changes))
    except ValueError as error:
        sys.exit(f"fastaae: {error}")


@dataclasses.dataclass
class Demo:
    """Train on a table and on images of digits, draw and score, in a minute, without data and without a network."""

    out_dir: str | None = None
    """Folder for all that is written; default: runs/demo-DATE-TIME."""


def _demo(arguments: list[str]) -> None:
    chosen = _parsed(Demo, arguments, prog="fastaae demo")
    from .demo import demo

    for line in demo(chosen.out_dir):
        _print(line)


def _base(command: str, arguments: list[str]) -> tuple[Config, list[str], str, str | None]:
    """The config that a command begins with, by its first words, a preset or --config FILE; the flags after these; the
    command as its help calls it; and that file."""
    match arguments:
        case ["--config", path, *flags]:
            return Config.from_json(path), flags, f"fastaae {command} --config FILE", path
        case [name, *flags] if not name.startswith("-"):
            return preset(name), flags, f"fastaae {command} {name}", None
    if not {"-h", "--help", "--dataset"} & {flag.partition("=")[0] for flag in arguments}:
        first = f"a preset ({', '.join(PRESETS)}), --config FILE or --dataset PATH"
        raise ValueError(f"{command}: expected {first} first, then flags")
    return Config(), arguments, f"fastaae {command}", None


def _word(value: Any, between: str = " ") -> str:
    return between.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _train(arguments: list[str]) -> None:
    """Train the config that a preset or a config.json and flags make."""
    quiet = "--quiet" in arguments
    base, flags, program, path = _base("train", [word for word in arguments if word != "--quiet"])
    cfg = _parsed(Config, flags, default=base, prog=program, description="Fields of the run and their values.")
    if path and all(getattr(cfg, name) == getattr(base, name) for name in ("dataset", "n_validation", "scale")):
        if read_json(path).get("init"):
            raise ValueError(f"{path}: its run began with a model's weights: pass init= to fastaae.train in Python")
        data = read_json(path).get("data")
        if sha256 := data.get("sha256") if isinstance(data, dict) else None:
            _, where = _same_data(cfg, sha256, path, recorded=cfg.data_dir == base.data_dir)
            cfg = dataclasses.replace(cfg, data_dir=where)
    _train_and_report(cfg, None, quiet)


def _resume(arguments: list[str]) -> None:
    directory, flags = _directory("resume", *(word for word in arguments if word != "--quiet"))
    cfg = None
    if flags:
        from .run.resume import RESUMABLE, config_of

        base, what = config_of(directory) if directory else Config(), "Fields that say how, and how long, to go on."
        others = {*vars(base)} - {*RESUMABLE}
        cfg = _parsed(Config, flags, base, others, prog="fastaae resume DIR", description=what)
    _train_and_report(cfg, directory, "--quiet" in arguments)


@dataclasses.dataclass
class Sweep:
    """Train with each of several values of a field, --lr-adversarial 0.001 0.003 or --hidden 100,100 200,200, all their
    combinations, and compare them on validation examples. `fastaae train NAME --help` lists the fields."""

    seeds: int | None = None
    """Members of each setting; default: the preset's replicas."""
    n: int | None = None
    """So many random settings instead of all combinations; then LOW:HIGH is a range of a field."""
    metric: str | None = None
    """What is compared; default: valid_error, or valid_reconstruction without labels."""
    halving: int | None = None
    """Compare sooner, and go on with one in so many settings."""

    def __call__(self, cfg: Config, fields: dict[str, list], quiet: bool, train: str) -> None:
        from .sweeping import sweep

        with _on_ranks():
            if self.n is None and any(type(values) is tuple for values in fields.values()):
                raise ValueError(f"sweep: LOW:HIGH is a range of random settings, expected --n, got n={self.n}")
            found = sweep(cfg, None, None, self.seeds, self.n, self.metric, self.halving, not quiet, **fields)
        rows = [[*fields, "epochs", "seeds", "out", found.metric]]
        for row in found.summary:
            cells = [row[name] for name in [*fields, "epochs", "seeds"]] + [f"{row['out'] or ''} {row['why']}".strip()]
            cells.append("" if row["mean"] is None else _metric(row, row["seeds"]))
            rows.append([f"{v:.4g}" if type(v) is float else _word(v, ",") for v in cells])
        _table(*rows)
        best = " ".join(f"--{name.replace('_', '-')} {_word(getattr(found.best, name))}" for name in fields)
        _print(f"sweep directory: {found.directory}", f"next: {train} {best}")


def _sweep(arguments: list[str]) -> None:
    """Flags of fields with several values, or ranges of numbers, are what is varied; of tuples, words with a comma."""
    quiet = "--quiet" in arguments
    base, words, program, _ = _base("sweep", [word for word in arguments if word != "--quiet"])
    own, fields, flags, hints = [], {}, [], get_type_hints(Config)
    for flag, *values in _split(words):
        name = flag.removeprefix("--").replace("-", "_")
        (convert, _), text = _converter(hints.get(name, str)), " ".join(values)
        ranges, many = convert.__name__ in ("int", "float") and ":" in text, get_origin(hints.get(name)) is tuple
        if name in Sweep.__dataclass_fields__ or flag in ("-h", "--help"):
            own += [flag, *values]
        elif name not in hints or not ("," in text if many else ranges or len(values) > 1):
            flags += [flag, *values]
        else:
            try:
                if many:
                    fields[name] = [tuple(convert(part) for part in word.split(",") if part) for word in values]
                else:
                    fields[name] = tuple(map(convert, text.split(":"))) if ranges else [*map(convert, values)]
            except ValueError:
                raise ValueError(f"{flag} {text}: expected values of type {convert.__name__}") from None
    run = _parsed(Sweep, own, prog=program)
    same = [word for flag in _split(flags) if flag[0] not in ("--out-dir", "--replicas") for word in flag]
    train = shlex.join([*program.replace("sweep", "train", 1).split(), *same])
    run(_parsed(Config, flags, default=base, prog=program), fields, quiet, train)


def _split(words: list[str]) -> list[list[str]]:
    """Flags, each with the words up to the next one."""
    found: list[list[str]] = []
    for word in words:
        if re.match("--?[a-zA-Z]", word) or not found:
            found.append(word.split("=", 1) if word.startswith("--") else [word])
        else:
            found[-1].append(word)
    return found


@contextlib.contextmanager
def _on_ranks() -> Iterator[bool]:
    """Yields whether torchrun has started several ranks, of which the first alone prints."""
    from .run import ranks

    several = ranks.launched()
    if several and ranks.distributed.get_rank():
        sys.stdout = open(os.devnull, "w")
    try:
        yield several
    finally:
        if several:  # or its threads may abort the interpreter as it ends
            ranks.distributed.destroy_process_group()


def _train_and_report(cfg: Config | None, resume: str | None, quiet: bool) -> None:
    """train(), under torchrun on every rank; the first one reports."""
    from .run.training import train

    start = time.perf_counter()
    with _on_ranks() as several:
        run = train(cfg, resume=resume, progress=not quiet)
    directory = str(run.directory if several else run.config.out_dir)
    if not quiet:
        splits = [split for split in ("valid", "test") if any(name.startswith(split) for name in run.metrics)]
        told = {name: _metric(metric) for name, metric in run.metrics.items()}
        names = dict.fromkeys(name.partition("_")[2] for name in told)
        rows = [[f"{name}, %" if name.endswith("error") else name, *(told.get(f"{s}_{name}", "") for s in splits)]
                for name in names]  # fmt: skip
        _table([f"{time.perf_counter() - start:.1f} s", *splits], *rows)
    _print(f"run directory: {directory}", *[f"next: fastaae figures {shlex.quote(directory)}"] * (not quiet))


def _metric(metric: dict[str, Any], n: int = 0) -> str:
    return f"{metric['mean']:.4g}" + (f" +- {metric['std']:.2g}" if (n or len(metric["replicas"])) > 1 else "")


def _list(arguments: list[str]) -> None:
    """A table of the runs in a folder, which are warned of where they cannot be read."""
    from .directory import RunDirectory

    if len(arguments) != 1 or not (folder := expanded(arguments[0])).is_dir():
        raise ValueError(f"list: expected one folder of runs, got {' '.join(arguments) or 'nothing'}")
    rows = [["name", "epochs", "device", "metrics", "directory"]]
    for path in sorted({file.parent for file in folder.glob("**/config.json")}):
        run = RunDirectory(path)
        try:
            found, history = run.recorded(), run.history()
            metrics = run.read_json(run.summary)["metrics"] if run.summary.exists() else {}
            told = [f"{name} {_metric(m)}" for name, m in metrics.items() if name.startswith("test_")]
            told = told or [f"{name} {v[-1].mean():.4g}" for name, v in history.items() if name.startswith("valid_")]
            epochs = f"{max(history['epoch'], default=0)}/{found['config']['epochs']}"
            cells = (found["config"]["name"], epochs, found["hardware"]["device"], ", ".join(told), path)
            rows.append([printable(cell) for cell in cells])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            _say(f"warning: {path}: not the directory of a run ({brief(error)})")
    _table(*rows)


def _save(array: Any, path: Path) -> None:
    """Write a .npy file."""
    import numpy as np

    from .checkpoint import replaced

    with replaced(path, size=array.nbytes) as new, open(new, "xb") as file:
        np.save(file, array, allow_pickle=False)


def _number(word: str) -> int | None:
    """The integer that a word says, None where it is the name of a file or a class."""
    return int(word) if word.removeprefix("-").isdecimal() else None


def _same_data(cfg: Config, sha256: str | None, source: str, recorded: bool) -> "tuple[Data, str | None]":
    """The data of a config, and their data_dir; they have to be what the run recorded, as maybe it is, too."""
    from . import data

    loaded, where = data.recorded(cfg.dataset, cfg.data_dir, cfg.n_validation, cfg.scale, sha256 if recorded else None)
    if sha256 is not None and loaded.sha256 != sha256:
        raise ValueError(f"{source}: {cfg.dataset} is not its data, expected SHA-256 {sha256}, not {loaded.sha256}")
    return loaded, where


@dataclasses.dataclass
class OnRun:
    """A command on the models of a run."""

    replica: int | None = None
    """Which one; default: the first, of evaluate all."""
    averaged: bool = False
    """With averaged weights, which a run with an average keeps."""

    def model(self, directory: str) -> "Model":
        from .model import load

        return load(directory, self.replica or 0, averaged=self.averaged)


@dataclasses.dataclass
class OnData(OnRun):
    """A command on a run and the data that it was trained on."""

    data_dir: str | None = None
    """Folder of the data set's files; default: where the run found them, then $FASTAAE_DATA and the user's cache."""
    dataset: str | None = None
    """The run's file or folder of data, where it has moved."""

    def models_and_data(self, directory: str, replica: int | None) -> "tuple[list[Model], Data]":
        """The run's models, or that of one replica, and its data."""
        from .directory import RunDirectory
        from .model import from_tensors

        run = RunDirectory(directory)
        tensors, info = run.load()
        models = [from_tensors(tensors, info, run.newest, replica or 0, averaged=self.averaged)]
        for r in range(1, models[0].config.replicas if replica is None else 0):
            models.append(from_tensors(tensors, info, run.newest, r, averaged=self.averaged))
        moved = {k: v for k, v in (("data_dir", self.data_dir), ("dataset", self.dataset)) if v is not None}
        cfg = dataclasses.replace(models[0].config, **moved)
        return models, _same_data(cfg, info.get("data_sha256"), directory, recorded=self.data_dir is None)[0]


@dataclasses.dataclass
class Evaluate(OnData):
    """Metrics of a run on its validation and test sets, a line of JSON each."""

    def __call__(self, directory: str) -> None:
        from . import evaluation

        models, data = self.models_and_data(directory, self.replica)
        for split in ("valid", "test"):
            for name, values in evaluation.evaluate(models, data, split).items():
                _print(json.dumps({name: evaluation.summarize(values)}))


@dataclasses.dataclass
class Parzen(OnData):
    """Parzen-window log-likelihood, in nats, with its error bound, of the run's test set under samples of its model;
    without DIR of the examples in a file under the samples in another."""

    samples: str = "10000"
    """Number of decoded draws from the prior (10,000 and 10,000,000 are the paper's), or a file of any samples."""
    queries: str | None = None
    """File of examples to score; default: the run's test set."""
    sigma: float | Literal["leave-one-out"] | None = None
    """Bandwidth, or that under which 1,000 samples are likeliest, each under all others; default: by validation."""
    validation: str = "1000"
    """How many of them, the run's first ones, or a file of them."""
    seed: int = 0
    """Of the samples."""
    state: str | None = None
    """File that keeps the partial sums; the same command goes on from them."""

    def __call__(self, directory: str) -> None:
        from .data.formats import examples_of
        from .parzen import LEFT, LEFT_OUT, parzen_log_likelihood

        n, held, model, data = _number(self.samples), _number(self.validation), None, None
        if held is not None and held < 1:
            raise ValueError(f"--validation {held}: expected at least 1 validation example, or a file of them")
        if (n is None) == bool(directory):
            which = "a number, of draws by the run's model" if directory else "a file, or the directory of a run first"
            raise ValueError(f"--samples {self.samples}: expected {which}")
        if directory and self.queries and (held is None or self.sigma is not None):
            model = self.model(directory)
        elif directory:
            (model,), data = self.models_and_data(directory, self.replica or 0)
        queries = examples_of("queries", self.queries) if self.queries else data and data.x_test
        if queries is None:
            raise ValueError(f"parzen: {data.name if data else self.samples} has no test set, expected --queries FILE")
        if not directory and held and self.sigma is None:
            raise ValueError(
                f"--sigma: expected a number or {LEFT_OUT}, or --validation FILE, without a run to choose by"
            )
        validation = data and data.x_valid[:held] if held else examples_of("validation", self.validation)
        options = {"validation": validation if self.sigma is None or held is None else None, "state": self.state}
        start = time.perf_counter()
        if model:
            result = model.log_likelihood(queries, n or 0, self.sigma, seed=self.seed, **options)
        else:
            result = parzen_log_likelihood(queries, examples_of("samples", self.samples), self.sigma, **options)
        report = {k: getattr(result, k) for k in ("mean", "sem", "error_bound", "sigma", "n_samples", "dimensions")}
        report |= {"query_range": result.query_range[:2], "sample_range": result.sample_range[:2]}
        report |= {"n_queries": len(result.per_query), "seconds": round(time.perf_counter() - start, 3)}
        how, d = "given", f"{result.dimensions} value{'s' * (result.dimensions > 1)}"
        if result.sigma_curve:
            others = f"{min(LEFT, result.n_samples):,} samples, each under all others"
            by = others if (v := options["validation"]) is None else f"{len(v):,} validation examples"
            how = f"likeliest of {len(result.sigma_curve.sigma)} for {by}"
        _table(
            [f"{report['n_queries']:,} queries", f"of {d} in {result.query_range}"],
            [f"{result.n_samples:,} samples", f"of {d} in {result.sample_range}"],
            ["sigma", f"{result.sigma:.4g}, {how}"],
            ["log-likelihood", f"{result.mean:.6g} +- {result.sem:.2g} nats, each exact to {result.error_bound:.1g}"],
            ["seconds", f"{report['seconds']:.3g}"],
        )
        _print(json.dumps({"log_likelihood": report}))


@dataclasses.dataclass
class OnExamples(OnRun):
    """A command on a run and a file of examples."""

    out: str | None = None
    """.npy file to write, needed."""

    def __call__(self, command: str, directory: str, path: str) -> None:
        """Write what the model's method of this name makes of examples, for a supervised one with their labels."""
        from .data.formats import opened

        if not path or path.startswith("-") or not (out := self.out or "").endswith(".npy"):
            given = f"{path or 'nothing'}, --out {self.out}"
            raise ValueError(f"{command}: expected a file of examples and --out FILE.npy, got {given}")
        model, given = self.model(directory), opened(path)
        y = [given.get("y")] if command == "reconstruct" and model.config.task == "supervised" else []
        _save(getattr(model, command)(given["x"], *y), expanded(out))
        _print(expanded(out))


@dataclasses.dataclass
class Sample(OnRun):
    """Decode draws from the prior and write them as a picture, or as numbers."""

    n: int = 64
    """How many."""
    label: str | None = None
    """Class of all of them; default: drawn, where the decoder takes labels."""
    seed: int = 0
    """Of the draws."""
    out: str | None = None
    """.png or .npy file; default: samples.png in the run directory, of a table samples.npy."""

    def __call__(self, directory: str) -> None:
        if self.out and not self.out.lower().endswith((".png", ".npy")):
            raise ValueError(f"--out {self.out}: expected the name of a .png or .npy file")
        model = self.model(directory)
        out = self.out or str(Path(directory) / ("samples.npy" if model.table else "samples.png"))
        if png := out.lower().endswith(".png"):
            import matplotlib.image  # noqa: F401  # an error comes before the work
        from .figures import grid

        label = self.label if (number := _number(self.label or "")) is None else number
        (grid if png else _save)(model.sample(self.n, self.seed, label), expanded(out))
        _print(expanded(out))


@dataclasses.dataclass
class Export(OnRun):
    """Write the model as a graph that runs without fastaae, and compare what both compute."""

    format: str = "onnx"
    """onnx, or pt2 for torch.export.load."""
    decoder: bool = False
    """The decoder alone, from codes to examples."""
    out: str | None = None
    """File; default: model.onnx, decoder.pt2 and so on in the run directory."""

    def __call__(self, directory: str) -> None:
        out = expanded(self.out or f"{directory}/{'decoder' if self.decoder else 'model'}.{self.format}")
        if out.suffix != f".{self.format}":
            raise ValueError(f"--out {out}: expected a name that ends with .{self.format}, or another --format")
        _print(self.model(directory).export(out, self.decoder))


@dataclasses.dataclass
class Figures(OnData):
    """Draw the paper's pictures that fit the run's task, of its test set, and the curves of its training, and say what
    each file shows."""

    seed: int = 0
    """Of the samples, and of the images beside cluster heads."""
    out: str | None = None
    """Folder; default: the run directory."""
    format: tuple[str, ...] = ("png",)
    """Of each picture: png, pdf, svg, or another that matplotlib writes; several, too."""
    data: bool = False
    """Write the numbers behind each picture, too, as NAME.npz."""

    def __call__(self, directory: str) -> None:
        import matplotlib.image  # noqa: F401  # as above

        from . import figures
        from .directory import RunDirectory

        (model,), data = self.models_and_data(directory, self.replica or 0)
        history = None
        try:
            history = RunDirectory(directory).history()
        except ValueError as error:
            _say(f"warning: no curves: {error}")
        drawn = figures.draw(model, data, self.out or directory, self.seed, self.format, self.data, history)
        for path, shows in drawn.items():
            _print(f"{path}: {shows}")


COMMANDS = {"demo": _demo, "presets": _presets, "train": _train, "resume": _resume, "list": _list, "sweep": _sweep}
ON_RUNS: dict[str, type] = {"evaluate": Evaluate, "parzen": Parzen, "figures": Figures}
ON_RUNS |= {"sample": Sample, "export": Export}
ON_EXAMPLES = {  # which are methods of Model
    "encode": "Style codes z [N, style_dim] of examples.",
    "predict": "Classes [N] of examples.",
    "reconstruct": "Examples, decoded from their codes.",
}


def _directory(command: str, *arguments: str) -> tuple[str, list[str]]:
    """A run's directory, which comes first, and the flags after it; or that for help."""
    if {"-h", "--help"} & {*arguments}:
        return "", ["--help"]
    given, *flags = arguments or ("",)
    if not given or not expanded(given).is_dir():
        raise ValueError(f"{command}: expected the directory of a run, got {given or 'nothing'}")
    return str(expanded(given)), flags


if __name__ == "__main__":
    sys.exit(main())

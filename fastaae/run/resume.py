"""Where a run begins: in a new directory, or where it stopped. What may differ then, what has to fit, and the
checkpoints that are saved to go on from, or back to."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .. import __version__, checkpoint
from .. import data as datasets
from ..checkpoint import Checkpoint, CheckpointError
from ..config import Config
from ..device import find_device
from ..directory import RunDirectory
from ..engine.step import Step
from ..files import WriteError, brief, expanded, warn_caller
from ..kernels import onednn
from ..liveness import Heartbeat
from ..members import Members
from ..model import from_tensors, known_of, model_info
from . import provenance
from .keep import Keep, warm_start
from .watch import remedy

# Fields that may differ between a checkpoint and the config it is resumed with.
RESUMABLE = "epochs out_dir dataset data_dir device graph checkpoint_every log_every profile on_divergence patience"
RESUMABLE = RESUMABLE.split()
SLOWER = 0.5  # the factor on a diverged run's learning rates each time that it starts again
APART = 100  # times what it took to save a checkpoint pass before the next one, where no number of epochs is asked for
UNBALANCED = 0.2  # share of examples that a uniform y must mistake: from 0.28 on runs did, SVHN has 0.15


class NonFiniteError(RuntimeError):
    """A loss became NaN or infinite; the message names step, phase, replica, what to change, and the last
    good checkpoint. replicas: all those that diverged."""

    replicas: tuple[int, ...] = ()


def begin(
    cfg: Config | None, data: Any, resume: str | Path | None, members: Sequence[Mapping[str, Any]] = ()
) -> tuple[Members, datasets.Data, bool]:
    """Configs and data of a new run, or of one to go on with, and whether it is that. Its checkpoint has to be loaded
    again once the directory is held: another process may train there until then. Raises as train()."""
    if cfg is not None and isinstance(data, str | os.PathLike):
        cfg, data = replace(cfg, dataset=os.fspath(data)), None
    if cfg is not None and data is not None:
        cfg = replace(cfg, dataset="arrays")  # so that nobody takes the run for one on cfg.dataset
    elif cfg is not None and cfg.dataset not in datasets.sources.KNOWN and expanded(cfg.dataset).exists():
        cfg = replace(cfg, dataset=str(expanded(cfg.dataset).absolute()))  # a run may be resumed from another folder
    if cfg is not None and cfg.data_dir is not None:
        cfg = replace(cfg, data_dir=str(expanded(cfg.data_dir).absolute()))
    saved = recorded = None
    if resume is not None:
        saved, before = _newest(RunDirectory(resume))
        cfg = _merged(cfg, before, os.fspath(resume))
        recorded = saved.info["data_sha256"] if cfg.data_dir == before.data_dir else None
        had = saved.info.get("members", ())
        if members and Members(cfg, members).given != had:
            raise ValueError(f"resume={cfg.out_dir!r}: members were {brief(had)}, expected the same, or none given")
        members = had
    elif cfg is None:
        raise ValueError(f"train: {cfg=}, expected a Config, or resume=DIR")
    if cfg.products == "auto":  # one begun before there was a choice goes on as it began
        cfg = replace(cfg, products="onednn" if saved else onednn.faster())
    own, device = Members(cfg, members), find_device(cfg.device)
    if data is None:
        loaded, _ = datasets.recorded(cfg.dataset, cfg.data_dir, cfg.n_validation, cfg.scale, recorded)
    else:
        loaded = datasets.from_arrays(data, cfg.n_validation, scale=cfg.scale)
        if saved is not None and loaded.sha256 != saved.info["data_sha256"]:  # maybe begun before they were stratified
            loaded = datasets.from_arrays(data, cfg.n_validation, scale=cfg.scale, stratified=False)
    _warn_of_labels(cfg, loaded)
    if saved is None:
        if cfg.out_dir:
            RunDirectory(cfg.out_dir).check_empty()
    elif saved.info["data_sha256"] != loaded.sha256 or saved.info["shape"] != list(loaded.shape):
        now = f"the {loaded.name} given now"
        raise ValueError(f"resume={cfg.out_dir!r}: its data had another SHA-256 than {now}, expected the same")
    elif saved.info["device"] != device.type:
        began = f"{saved.info['device']!r}, where the run began and random numbers differ"
        raise ValueError(f"device={cfg.device!r}: expected {began}")
    elif (was := saved.info.get("bf16")) not in (None, onednn.BF16):
        how = {True: "by oneDNN", False: "emulated"}
        changed = f"bfloat16 was multiplied {how[bool(was)]}, here it is {how[onednn.BF16]}"
        warn_caller(f"resume={cfg.out_dir!r}: {changed}: the run goes on, but not to the same bits")
    return own, loaded, saved is not None


def _warn_of_labels(cfg: Config, data: datasets.Data) -> None:
    """Warn of classes that are far from a uniform prior of y or components, and of those that no cluster can be of."""
    k, (y, y_valid) = data.n_classes, (None if y is None else y[y >= 0] for y in (data.y_train, data.y_valid))
    if y is not None and (cfg.classifies or (cfg.label_prior and cfg.n_labeled is not None)):
        share = y.bincount(minlength=k) / len(y)
        weights = (cfg.classifies and datasets.label_weights(cfg.label_weights, data, k)) or [1 / k] * k
        prior = torch.tensor(weights, dtype=torch.float32, device="cpu")
        if (wrong := (share - prior).clamp_min(0).sum().item()) > UNBALANCED:
            shares = zip(map(brief, data.classes), share[:10].tolist(), strict=False)
            found = ", ".join(f"{c}: {100 * p:.3g} %" for c, p in shares) + ", ..." * (k > 10)
            hint = f"by which {100 * wrong:.0f} % would be of another: choose label_weights='data', or even them out"
            kind = "uniform prior" if cfg.label_weights == "uniform" else "prior, label_weights"
            warn_caller(f"classes ({found}) are far from their {kind}, {hint}")
    if cfg.n_clusters and y_valid is not None and (absent := datasets.absent_classes(y_valid, k)):
        lost = "no cluster gets that label, and test examples of it count as errors"
        names = ", ".join(brief(data.classes[c]) for c in absent[:5]) + ", ..." * (len(absent) > 5)
        warn_caller(f"{data.name}: no validation example is of class {names}: {lost}")


def config_of(path: str | Path) -> Config:
    """What a run was begun with, its ranks together."""
    run = RunDirectory(path)
    configs = [_newest(RunDirectory(run.of_rank(k)))[1] for k in range(run.ranks())] or [_newest(run)[1]]
    return replace(configs[0], replicas=sum(c.replicas for c in configs), out_dir=None)


def _newest(directory: RunDirectory) -> tuple[Checkpoint, Config]:
    """The newest checkpoint of a run, and its config, which asks for no more weights than that holds."""
    path, given = directory.newest, directory.path
    if given.is_file():
        raise ValueError(f"resume={str(given)!r}: a file, expected the directory of a run: {str(given.parent)!r}")
    if directory.config.exists() and not path.exists() and not directory.previous.exists():
        raise CheckpointError(f"{path}: none was saved before the run ended; start it again")
    saved = directory.load(warn=False)
    if not {"step", "data_sha256", "device"} <= saved.info.keys():
        final = " (keep='final' leaves none; see init of train)" * ("data_sha256" in saved.info)
        raise CheckpointError(f"{path}: holds a model, expected the checkpoint of a run{final}")
    from_tensors(*saved, path, 0)
    cfg = Config.from_dict(saved.info["config"])
    from_tensors(*saved, path, cfg.replicas - 1)
    return saved, cfg


def _merged(cfg: Config | None, saved: Config, directory: str) -> Config:
    """The checkpoint's config with the fields that may differ taken from cfg, writing to the directory resumed from."""
    if cfg is None:
        return replace(saved, out_dir=directory)
    cfg = replace(cfg, products=saved.products) if cfg.products == "auto" or cfg.precision != "fp32" else cfg
    old, new = saved.to_dict(), cfg.to_dict()
    for name in old:
        if name not in RESUMABLE and old[name] != new[name]:
            raise ValueError(f"resume={directory!r}: {name} was {old[name]!r}, got {new[name]!r}; expected the same")
    if cfg.out_dir is not None and expanded(cfg.out_dir).resolve() != expanded(directory).resolve():
        raise ValueError(f"out_dir={cfg.out_dir!r}: expected None or the directory to resume, {directory!r}")
    return replace(cfg, out_dir=directory, data_dir=cfg.data_dir or saved.data_dir)


def _kinds(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {f"{name} {str(t.dtype)[6:]} {list(t.shape)}" for name, t in tensors.items()}


class Checkpoints:
    """Those that one process writes of its run: to go on from, and to go back to. ValueError: a state beyond them."""

    def __init__(self, step: Step, cfg: Config, data: datasets.Data, resumed: bool, init: Any = None):
        self.known, self.keep = known_of(cfg, data, step.wiring.n_classes), Keep(step, data)
        self.init = warm_start(step, init, resumed, self.known)
        if (n := len(step.state() | self.keep.best)) > (most := checkpoint.MAX_TENSORS):
            raise ValueError(f"replicas={cfg.replicas}: {n} tensors, expected at most {most}")
        self.step, self.cfg, self.data, self.resumed = step, cfg, data, resumed
        self.own: dict[str, Any] = {"members": step.members.given} if step.members.given else {}
        self.own |= {"bf16": onednn.BF16} if (cfg.precision, step.device.type) == ("bf16", "cpu") else {}
        self.directory = RunDirectory(cfg.out_dir or "runs")
        self.restarts = 0
        self.newest: int | None = None  # step of the last one
        self.stopped = False  # whether that is one that a signal asked for
        self.saved_at = self.seconds = 0.0  # when it was saved here, and how long that took

    def make_directory(self, start: Path) -> None:
        """Make that of the run, if it is not there, under a new name where the config has none; start is out_dir, or
        the folder where the process was, absolute: since then it may have gone elsewhere."""
        if self.cfg.out_dir is None:
            self.cfg = replace(self.cfg, out_dir=provenance.new_directory(self.cfg.name, start))
            start = start / str(self.cfg.out_dir)
        self.directory = RunDirectory(start)
        self.directory.make()

    def begin(self) -> int:
        """Start, or go on from the newest one, once the directory is held; say so in config.json, and let metrics.jsonl
        end there. Returns: steps done.

        Raises:
            ValueError: either file is damaged, or config.json says that the checkpoint is of another run.
        """
        saved = Checkpoint({}, {"step": 0})
        words = [word[:1000] for word in sys.argv[:100]]  # of a command of any length
        now = {"command": words, **provenance.describe(str(self.step.device))}
        cfg: dict[str, Any] = json.loads(json.dumps(self.cfg.to_dict()))
        content = {"config": cfg, **self.own, "data": {"name": self.data.name, "sha256": self.data.sha256}}
        content |= {**self.init, **now}
        if not self.resumed:
            self.directory.check_empty()
        else:
            saved = self.directory.load(mend=True)
            self.restore(saved)
            before = self.directory.recorded() or content
            for name, value in before.get("config", {}).items():
                if name in cfg and name not in RESUMABLE and value != cfg[name]:
                    differ = f"{name}={brief(value)}, the checkpoint's is {brief(cfg[name])}"
                    raise ValueError(f"{self.directory.config}: {differ}; expected the checkpoint of that run")
            if before.get("members", []) != self.own.get("members", []):
                raise ValueError(f"{self.directory.config}: members differ from the checkpoint's, expected that run's")
            again = [*before.get("resumed", [])[-99:], {"step": saved.info["step"], **now}]
            content = {**before, "config": cfg, "resumed": again}
        self.directory.truncate(saved.info["step"], saved.info.get("metrics_bytes"))
        self.keep.restore(saved.tensors, self.directory)
        self.directory.write_json(self.directory.config, content)
        return self.newest or 0

    def save(self, done: int, stopped: bool = False) -> None:
        """Save one, unless a weight is not finite: then the one before stays the last good one. The one before the
        newest is kept, but not if a signal or another rank had it saved: then the one before that is."""
        data, state = self.data, self.step.state() | self.keep.state()
        self.check(state, done)
        info = model_info(self.cfg, data.shape, self.step.wiring.n_classes, self.known)
        info |= {"step": done, "data_sha256": data.sha256, "device": self.step.device.type, "fastaae": __version__}
        started = perf_counter()
        info |= {**self.own, "restarts": self.restarts, "stopped": stopped, "metrics_bytes": self.directory.sync()}
        checkpoint.save(self.directory.newest, state, info, None if self.stopped else self.directory.previous)
        self.newest, self.stopped, self.saved_at = done, stopped, perf_counter()
        self.seconds = self.saved_at - started

    def due(self, epoch: int) -> bool:
        """Whether to save one after an epoch."""
        cfg = self.cfg
        if cfg.checkpoint_every is not None:
            due = (epoch + 1) % cfg.checkpoint_every == 0
        else:  # a run that goes back to them has to find the same ones again, however long it takes to save them
            due = cfg.on_divergence == "restart" or perf_counter() - self.saved_at >= APART * self.seconds
        return due or epoch + 1 == cfg.epochs

    def check(self, tensors: dict[str, torch.Tensor], done: int) -> None:
        """Raise NonFiniteError where a number is not finite."""
        numbers = {name: t for name, t in tensors.items() if t.is_floating_point()}
        finite = torch.stack([torch.isfinite(t).all() for t in numbers.values()]).tolist()  # one wait for the device
        for name, good in zip(numbers, finite, strict=True):
            if not good:
                lost = (~torch.isfinite(numbers[name].flatten(1)).all(1)).nonzero().flatten().tolist()
                raise self.not_finite(f"step {done}: {name} is not finite", lost)

    def not_finite(self, what: str, replicas: Sequence[int]) -> NonFiniteError:
        """The error that says what is not, of which replicas, what to change, and what is kept."""
        error = NonFiniteError(f"{what}{remedy(self.step, 'weights')}; last good checkpoint: {self.last_good()}")
        error.replicas = tuple(replicas)
        return error

    def last_good(self) -> str:
        """The one that is kept, for messages."""
        of = "" if self.newest is None else f" (step {self.newest})"  # else of a run that has not been gone on with
        return f"{self.directory.newest}{of}" if of or self.directory.newest.exists() else "none"

    def write_error(self, error: OSError) -> WriteError:
        """What became of a file of the run, which, and what is kept."""
        if isinstance(error, WriteError):  # of a directory that is not the run's any more
            return WriteError(str(error))
        message = f"{error.filename or self.directory.path}: {error.strerror or error}"
        return WriteError(f"{message}; last good checkpoint: {self.last_good()}")

    def restore(self, saved: Checkpoint) -> None:
        """Go back, or on, to one. Raises ValueError where it is beyond the last epoch, or not of such a step."""
        cfg, step, done = self.cfg, self.step, saved.info["step"]
        if done > cfg.epochs * step.steps_per_epoch:
            begun = -(-done // step.steps_per_epoch)
            raise ValueError(f"resume={cfg.out_dir!r}: epochs={cfg.epochs}, expected at least {begun}, begun already")
        best = self.keep.best if any(name.startswith("best.") for name in saved.tensors) else {}
        if odd := _kinds(step.state() | best) ^ _kinds(saved.tensors):
            wrong = f"{min(odd)} is in it alone, or in its config alone"
            by = f"fastaae {saved.info.get('fastaae')} wrote it, this is {__version__}"
            raise CheckpointError(f"{self.directory.newest}: {wrong}, expected what that makes ({by})")
        self.newest = done
        step.restore(saved.tensors, done)
        self.restarts, self.stopped = saved.info.get("restarts", 0), saved.info.get("stopped", False)

    def go_back(self) -> int:
        """Go back to the last one, to start again from there once that is saved. Returns: its step."""
        saved = self.directory.load(mend=True)
        if saved.info.get("stopped"):  # by a signal, maybe a step ago: the one before is what it would have gone to
            with contextlib.suppress(CheckpointError):
                saved = checkpoint.load(self.directory.previous)
        self.restore(saved)
        self.restarts += 1
        self.directory.truncate(saved.info["step"], saved.info.get("metrics_bytes"))
        self.keep.restore(saved.tensors, self.directory)
        return saved.info["step"]

    def leave_weights(self, heartbeat: Heartbeat | None) -> None:
        """Put those of all models alone in the place of the checkpoints, once all ranks are done."""
        if heartbeat is not None:
            heartbeat.wait()
        self.directory.check_held()
        info = model_info(self.cfg, self.data.shape, self.step.wiring.n_classes, self.known)
        info |= {**self.own, "data_sha256": self.data.sha256, "fastaae": __version__}
        weights = {n: t for n, t in self.step.parameters().items() if not n.startswith("discriminator.")}
        weights |= {f"average.{n}": t for n, t in self.step.average.items()}
        self.directory.previous.unlink(missing_ok=True)
        checkpoint.save(self.directory.newest, weights, info)


def command(cfg: Config) -> str:
    """What to type, where it was begun, to go on with a run."""
    passed = {"data": cfg.dataset == "arrays", "prior": cfg.prior == "custom"}  # which the command line does not have
    again = "".join(f", {name}=..." for name, was in passed.items() if was)
    return f"train(resume={cfg.out_dir!r}{again})" if again else f"fastaae resume {shlex.quote(cfg.out_dir or '')}"

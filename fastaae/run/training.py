"""train(cfg): the only loop there is. Epochs of steps, metrics read every few steps, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from .. import __version__, checkpoint, evaluation
from .. import data as datasets
from ..config import Config
from ..data import Data
from ..device import find_device
from ..engine import priors, profiling
from ..engine.replay import Replay
from ..engine.step import Step
from ..files import WriteError, brief
from ..liveness import Heartbeat
from ..model import Model, model_info
from . import history, provenance, ranks
from .progress import Progress

RESUMABLE = tuple("epochs out_dir data_dir device graph checkpoint_every log_every profile on_divergence".split())
"""Fields that may differ between a checkpoint and the config it is resumed with."""

RESTARTS, SLOWER = 3, 0.5
"""How often a diverged run may start again from its last checkpoint, and the factor on its learning rates each time."""

LARGE, SLOW = 2**24, 0.2
"""Bytes of a checkpoint, or seconds to save it, beyond which 200 times these seconds pass before the next one."""

CODES = 1000
"""Validation examples whose codes are compared with the prior."""

TOLD_APART, COLLAPSED = 99.0, 0.1
"""Percent from which a discriminator has won; share of the prior's standard deviation below which codes have collapsed.
Good runs are beyond either in their first epochs at most: a warning waits for three in a row, and 1,000 steps."""


class NonFiniteError(RuntimeError):
    """A loss became NaN or infinite; the message names step, phase, replica and the last good checkpoint."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after saving a checkpoint; the message says how to go on."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@dataclass
class Run:
    """A finished training run.

    Attributes:
        directory: config.json, metrics.jsonl, summary.json, checkpoint.safetensors and the checkpoint before it.
        metrics: {"test_error": {"mean", "std", "replicas"}, ...}; errors in percent. Also in summary.json.
        history: {"step": [L], "reconstruction": [L, R], ...}: training losses at the logged steps, and {"epoch": [E],
            "valid_error": [E, R], ...} after each epoch. Among the latter is how the game goes: "told_apart_z", percent
            of the last batch's prior samples and codes that the discriminator of z tells apart (50: by chance), and
            "code_mean", "code_std": the codes' largest mean, and their standard deviation, in units of the prior's
            (with a Gaussian posterior, of its means: samples would hide a collapse).
        models: one Model per replica.
    """

    config: Config
    directory: Path
    metrics: dict[str, dict[str, Any]]
    history: dict[str, np.ndarray]
    models: list[Model]

    @property
    def model(self) -> Model:
        """Model of replica 0."""
        return self.models[0]


def train(
    cfg: Config | None = None,
    data: Any = None,
    resume: str | Path | None = None,
    progress: bool = True,
    prior: priors.Custom | None = None,
) -> Run:
    """Train an adversarial autoencoder and evaluate it.

    Args:
        cfg: what to train. None only with resume: the config of the checkpoint.
        data: own data instead of cfg.dataset: x, (x, y) or a mapping with x, y, x_test, y_test; see data.from_arrays.
        resume: run directory to go on from; the result is that of an uninterrupted run, bit for bit on a CPU.
        progress: show a progress bar, or a line every 30 s where the output is no terminal.
        prior: with cfg.prior "custom", a function of (out, generator) that fills out [B, style_dim] in place with draws
            by that torch.Generator alone; see priors.Custom.

    Raises:
        ValueError: data and config do not fit, the output directory holds another run, or the checkpoint to resume is
            of another config (before anything is trained). DataError and CheckpointError are ValueErrors.
        NonFiniteError: a loss became NaN or infinite; with cfg.on_divergence "restart", for the fourth time.
        Interrupted: SIGINT, SIGTERM or SIGHUP; a checkpoint was saved at a step boundary.
        WriteError: the disk is full, or the directory cannot be written to; the last checkpoint is kept.

    Warns of a damaged checkpoint, where the one before it is resumed, of a restart, of a discriminator that has won and
    of codes that have collapsed to a point.

    Where torch.distributed has several ranks, each trains its share of the replicas, and metrics are those of all.
    """
    if ranks.several():
        return ranks.train(_train, cfg, data, resume, progress, prior)
    return _train(cfg, data, resume, progress, prior)


def _train(
    cfg: Config | None,
    data: Any,
    resume: str | Path | None,
    progress: bool,
    prior: priors.Custom | None,
    heartbeat: Heartbeat | None = None,
) -> Run:
    """As train(), of one process."""
    saved = None
    if not isinstance(cfg, Config | None):
        raise ValueError(f"train: got a {type(cfg).__name__}, expected a Config, for instance fastaae.preset('digits')")
    if cfg is not None and data is not None:
        cfg = replace(cfg, dataset="arrays")  # so that nobody takes the run for one on cfg.dataset
    elif cfg is not None and cfg.dataset.endswith(".npz"):
        cfg = replace(cfg, dataset=str(Path(cfg.dataset).absolute()))  # a run may be resumed from another folder
    if resume is not None:
        path = Path(resume) / checkpoint.NEWEST
        found = path.exists() or path.with_name(checkpoint.PREVIOUS).exists()
        if not found and (Path(resume) / "rank-0").exists():
            raise checkpoint.CheckpointError(f"{resume}: trained by several ranks; resume it under torchrun")
        if not found and (Path(resume) / "config.json").exists():
            raise checkpoint.CheckpointError(f"{path}: none was saved before the run ended; start it again")
        saved = checkpoint.load_run(resume, warn=False)  # again where the directory is held, below
        if not {"step", "data_sha256", "device"} <= saved[1].keys():
            raise checkpoint.CheckpointError(f"{path}: holds a model, expected the checkpoint of a run")
        for name, value, most in (
            ("step", saved[1]["step"], 2**53),
            ("restarts", saved[1].get("restarts", 0), RESTARTS),
        ):
            if type(value) is not int or not 0 <= value <= most:
                raise checkpoint.CheckpointError(f"{path}: {name}={brief(value)}, expected an integer from 0 to {most}")
        cfg = _resumed_config(cfg, Config.from_dict(saved[1].get("config")), str(resume))
    elif cfg is None:
        raise ValueError(f"train: {cfg=}, expected a Config, or resume=DIR")
    device = find_device(cfg.device)
    if data is None:
        loaded = datasets.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    else:
        loaded = datasets.from_arrays(data, cfg.n_validation)
    if saved and saved[1]["data_sha256"] != loaded.sha256:
        now = f"the {loaded.name} given now"
        raise ValueError(f"resume={str(resume)!r}: its data had another SHA-256 than {now}, expected the same")
    if saved is None and cfg.out_dir is None:
        stem = f"runs/{cfg.name}-{provenance.now()}"
        names = (f"{stem}-{k}" if k > 1 else stem for k in itertools.count(1))  # runs may start in the same second
        cfg = replace(cfg, out_dir=next(name for name in names if not Path(name).exists()))
    directory = Path(cfg.out_dir)
    if saved is None:
        _check_empty(directory)
    if saved and saved[1]["device"] != device.type:
        raise ValueError(
            f"device={cfg.device!r}: expected {saved[1]['device']!r}, where the run began and random numbers differ"
        )
    step = Step(cfg, loaded, device, prior)
    if (n := len(step.state())) > checkpoint.MAX_TENSORS:
        raise ValueError(f"replicas={cfg.replicas}: {n} tensors, expected at most {checkpoint.MAX_TENSORS}")
    if saved and saved[1]["step"] > cfg.epochs * step.steps_per_epoch:
        trained = -(-saved[1]["step"] // step.steps_per_epoch)
        raise ValueError(f"resume={str(resume)!r}: epochs={cfg.epochs}, expected at least {trained}, begun already")
    if saved:
        _check_state(saved, step.state(), path)
    training = _Training(cfg, loaded, step, directory, progress, prior, heartbeat)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with checkpoint.held(directory):  # another process may have trained here since we looked
            if saved is None:
                _check_empty(directory)
            else:
                saved = checkpoint.load_run(directory, mend=True)
            return training.run(saved)
    except OSError as error:
        where, why = error.filename or directory, error.strerror or error
        raise WriteError(f"{where}: {why}; last good checkpoint: {training.last_good()}") from error


def told_apart(step: Step) -> dict[str, list[float]]:
    """Percent of the last batch's prior samples and codes (of a GAN: images) that each discriminator tells apart, by
    its name and replica."""
    real, percent = torch.arange(2 * step.batch, device=step.device) < step.batch, {}
    for name, network in step.discriminators.items():
        rows = step.judging[name].x[0]
        logits = torch.stack([network.replica(r)(x) for r, x in enumerate(rows)])  # [R, 2B, 1]
        percent[name] = (100 * ((logits[..., 0] > 0) == real).double().mean(1)).tolist()
    return percent


def _check_state(saved: tuple[dict[str, torch.Tensor], dict[str, Any]], expected: dict, path: Path) -> None:
    """Refuse a checkpoint whose tensors are not those of the step that its config makes."""

    def kinds(tensors: dict[str, torch.Tensor]) -> set[str]:
        return {f"{name} {str(t.dtype)[6:]} {list(t.shape)}" for name, t in tensors.items()}

    versions = f"written by fastaae {saved[1].get('fastaae')}, this is {__version__}"
    for what, odd in (("no", kinds(expected) - kinds(saved[0])), ("unknown", kinds(saved[0]) - kinds(expected))):
        if odd:
            raise checkpoint.CheckpointError(f"{path}: {what} {min(odd)}, expected what its config makes; {versions}")


def _check_empty(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(p.name != checkpoint.LOCK for p in directory.iterdir())):
        resumable = (directory / checkpoint.NEWEST).exists()
        hint = ", this one holds no checkpoint to resume: delete it to start again"
        hint = "; to go on with the run in it use resume" if resumable else hint
        raise ValueError(f"out_dir={str(directory)!r}: expected a new or empty directory{hint}")


class _Training:
    """The state of one call of train() on the host."""

    def __init__(
        self,
        cfg: Config,
        data: Data,
        step: Step,
        directory: Path,
        progress: bool,
        prior: priors.Custom | None,
        heartbeat: Heartbeat | None,
    ):
        self.cfg, self.data, self.step, self.directory, self.heartbeat = cfg, data, step, directory, heartbeat
        self.classes = step.wiring.n_classes
        parts = (step.networks.get("encoder"), step.networks["decoder"], step.heads, step.batches.standard)
        self.models = [
            Model(cfg, data.shape, self.classes, *(p and p.mapped(lambda t, r=r: t[r : r + 1]) for p in parts), prior)
            for r in range(cfg.replicas)
        ]
        self.done = self.logged = self.restarts = 0  # the first two are steps
        self.signum: int | None = None
        self.saved_at: int | None = None
        self.replay: Replay | None = None
        self.traced = self.stopped = False  # whether the newest checkpoint is one that a signal asked for
        self.saved = self.saving = 0.0  # when the last checkpoint was saved here; its seconds, if they count
        self.valid: dict[str, list[float]] = {}  # metrics after the last epoch trained here
        self.shown = progress
        self.prior_std: float | None = None
        self.bad_since: dict[str, float] = {}  # steps; infinite once warned of

    def run(self, saved: tuple[dict[str, torch.Tensor], dict[str, Any]] | None) -> Run:
        recorded = {} if saved is None else self._recorded()
        if saved is None:
            self._truncate_metrics()
        else:
            self._restore(*saved)
            history.read(self.directory)  # refuses what the end could not read
        self._write_config(recorded)
        total = self.cfg.epochs * self.step.steps_per_epoch
        with (
            self._signals(),
            Progress(total, self.done, self.shown) as self.progress,
            contextlib.ExitStack() as self.profiling,
        ):
            if saved is None and (self.cfg.on_divergence == "restart" or self.heartbeat is not None):
                self._save()  # to go back to; and one rank cannot go on without the others
            while True:
                try:
                    self._train()
                    break
                except NonFiniteError as error:
                    self._restart(error)
            return self._finish()  # a signal that came in the last epoch has nothing left to stop

    def _train(self) -> None:
        """Every step from here on."""
        cfg, step = self.cfg, self.step
        first, within = divmod(self.done, step.steps_per_epoch)
        for epoch in range(first, cfg.epochs):
            step.start_epoch(epoch, SLOWER**self.restarts)
            step.batches.cursor.fill_(within)
            if self.replay is None:
                self.replay = Replay(step, step.carried(), step.batches.generators, step.device, graph=cfg.graph)
            while within < step.steps_per_epoch:
                ran = self._run(self.replay, within)
                within += ran
                self.progress.advance(ran)
                if within == step.steps_per_epoch or within % cfg.log_every == 0:
                    self._log(epoch)
                if within < step.steps_per_epoch:
                    self._pause(epoch)
            within = 0
            self._end_epoch(epoch)
            if epoch + 1 < cfg.epochs:
                self._pause(epoch)

    def _restore(self, state: dict[str, torch.Tensor], info: dict[str, Any]) -> None:
        """Go back, or on, to a checkpoint."""
        self.step.restore(state, info["step"])
        self.done = self.logged = self.saved_at = info["step"]
        self.restarts, self.stopped = info.get("restarts", 0), info.get("stopped", False)
        self._truncate_metrics()

    def _restart(self, error: NonFiniteError) -> None:
        """Go back to the last checkpoint and on with lower rates, or raise the error."""
        if self.cfg.on_divergence == "stop" or self.saved_at is None or self.restarts == RESTARTS:
            raise error
        reached = self.done
        saved = checkpoint.load_run(self.directory, mend=True)
        if saved[1].get("stopped"):  # by a signal, maybe a step ago: the one before is what it would have gone back to
            with contextlib.suppress(checkpoint.CheckpointError):
                saved = checkpoint.load(self.directory / checkpoint.PREVIOUS)
        self._restore(*saved)
        self.restarts += 1
        self._save()
        self.progress.advance(self.done - reached)
        rates = f"restart {self.restarts} of {RESTARTS}, all learning rates times {SLOWER**self.restarts}"
        self._warn(f"{error}; {rates}", self.done // self.step.steps_per_epoch)

    def _run(self, replay: Replay, within: int) -> int:
        """Run the next steps of an epoch in which so many are done: one, or on a GPU as many as fill a line of the log,
        since the host only launches there. Returns: how many."""
        step, profiled = self.step, self.cfg.profiled()
        steps = 1
        if self.done + 1 in profiled:
            if not self.traced:
                self.traced = True
                trace = self.directory / "trace.json"
                trace.unlink(missing_ok=True)  # of an earlier profile, or a link out of the directory
                self.profiling.enter_context(profiling.traced(step.device, trace))
            step()
        else:
            if step.device.type == "cuda":
                every = self.cfg.log_every
                steps = min(every - within % every, step.steps_per_epoch - within)
                if self.done + 1 < profiled.start:
                    steps = min(steps, profiled.start - 1 - self.done)
            replay(steps)
        self.done += steps
        if self.done + 1 == profiled.stop:
            self.profiling.close()
        return steps

    def _log(self, epoch: int) -> None:
        """Read the losses of the steps since the last time, check them, write one line of their means."""
        step, n = self.step, self.done - self.logged
        if n == 0:
            return
        losses = step.losses[:n].cpu().double().numpy()  # [steps, phases, R]
        step.slot.zero_()
        bad = np.argwhere(~np.isfinite(losses))
        if len(bad):
            k, phase, replica = bad[0]
            raise NonFiniteError(
                f"step {self.logged + k + 1}: the {step.phases[phase].__name__} loss of replica {replica} is "
                f"{losses[k, phase, replica]}; last good checkpoint: {self.last_good()}"
            )
        self.logged = self.done
        means = {phase.__name__: losses[:, i].mean(0).tolist() for i, phase in enumerate(step.phases)}
        self._write({"step": self.done, "epoch": epoch, **means})
        self.progress.show(self.done, epoch, {name: float(np.mean(v)) for name, v in means.items()})

    def last_good(self) -> str:
        return "none" if self.saved_at is None else f"{self.directory}/{checkpoint.NEWEST} (step {self.saved_at})"

    def _check(self, tensors: dict[str, torch.Tensor]) -> None:
        numbers = {name: t for name, t in tensors.items() if t.is_floating_point()}
        finite = torch.stack([torch.isfinite(t).all() for t in numbers.values()]).tolist()  # one wait for the device
        for name, good in zip(numbers, finite, strict=True):
            if not good:
                kept = self.last_good()
                raise NonFiniteError(f"step {self.done}: {name} is not finite; last good checkpoint: {kept}")

    def _end_epoch(self, epoch: int) -> None:
        self._check(self.step.parameters())
        with profiling.mark("evaluation"):
            self.valid = evaluation.evaluate(self.models, self.data, "valid")
            game = self._game()
        self._write({"step": self.done, "epoch": epoch, **self.valid, **game})
        self._watch(game, epoch)
        due = (epoch + 1) % self.cfg.checkpoint_every == 0
        if self.cfg.on_divergence == "stop":  # else runs go back to them, and have to be the same the next time
            due = due and perf_counter() - self.saved >= 200 * self.saving
        if due or epoch + 1 == self.cfg.epochs:
            self._save()

    def _game(self) -> dict[str, list[float]]:
        """How the game between discriminators and encoder goes: see Run.history."""
        step, cfg = self.step, self.cfg
        game = {f"told_apart_{name}": percent for name, percent in told_apart(step).items()}
        if cfg.task == "gan":
            return game
        if self.prior_std is None:
            b = step.batches
            self.prior_std = priors.spread(b.source, step.codes.prior["z"][0], cfg.prior_std, cfg.components)
        x, moments = self.data.x_valid[:CODES], []
        with torch.inference_mode():
            for model in self.models:
                g = None if cfg.posterior == "gaussian" else torch.Generator(step.device).manual_seed(cfg.seed)
                z = model.code(model.scaled(x), g)[0].double() / self.prior_std
                moments.append((z.mean(0).abs().max().item(), z.var(0, correction=0).mean().sqrt().item()))
        return game | dict(zip(("code_mean", "code_std"), map(list, zip(*moments, strict=True)), strict=True))

    def _watch(self, game: dict[str, list[float]], epoch: int) -> None:
        """Warn, once, of what has been wrong with the game for a while."""
        for name, values in game.items():
            won = name.startswith("told_apart") and max(values) >= TOLD_APART
            if not won and not (name == "code_std" and min(values) < COLLAPSED):
                self.bad_since.pop(name, None)
                continue
            since = self.bad_since.setdefault(name, self.done)
            if self.done - since >= max(1000, 2 * self.step.steps_per_epoch):
                self.bad_since[name] = math.inf
                values = ", ".join(f"{value:.3g}" for value in values)
                wrong = "the discriminator has won: its gradient teaches the encoder nothing"
                wrong = wrong if won else "codes have collapsed to a point, far within the prior"
                self._warn(f"{name} is {values} since step {since} ({wrong}); see lr_adversarial", epoch)

    def _warn(self, message: str, epoch: int) -> None:
        """Say it, and write it beside the metrics."""
        self._write({"step": self.done, "epoch": epoch, "warning": message})
        warnings.warn(message, stacklevel=2)

    def _save(self, stopped: bool = False) -> None:
        """Save a checkpoint, unless a weight is not finite: then the one before stays the last good one. The one before
        the newest is kept, but not if a signal or another rank had it saved: then the one before that is."""
        state = self.step.state()
        self._check(state)
        info = model_info(self.cfg, self.data.shape, self.classes)
        info |= {"step": self.done, "data_sha256": self.data.sha256, "device": self.step.device.type}
        info |= {"restarts": self.restarts, "stopped": stopped, "fastaae": __version__}
        newest, previous = (self.directory / name for name in (checkpoint.NEWEST, checkpoint.PREVIOUS))
        started = perf_counter()
        checkpoint.save(newest, state, info, None if self.stopped else previous)
        self.stopped, self.saved = stopped, perf_counter()
        took, size = self.saved - started, sum(t.nbytes for t in state.values())
        self.saving = took if size > LARGE or took > SLOW else 0.0
        self.saved_at = self.done

    def _pause(self, epoch: int) -> None:
        """Between steps: save and stop where a signal says so, or another rank has failed."""
        if self.signum is not None:
            self._stop(epoch)
        if self.heartbeat is not None:
            try:
                self.heartbeat.beat(self.done)
            except RuntimeError:
                self._log(epoch)
                self._save(stopped=True)
                raise

    def _stop(self, epoch: int) -> None:
        self._log(epoch)
        self._save(stopped=True)
        directory, cfg = str(self.directory), self.cfg
        command = f"fastaae resume {shlex.quote(directory)}"
        passed = {"data": cfg.dataset == "arrays", "prior": cfg.prior == "custom"}
        if any(passed.values()):  # which the command line does not have
            again = "".join(f", {name}=..." for name, was in passed.items() if was)
            command = f"train(resume={directory!r}{again})"
        raise Interrupted(f"stopped after step {self.done}; go on with: {command}", self.signum)

    def _finish(self) -> Run:
        if self.cfg.profile and not self.traced:
            warnings.warn(f"profile={self.cfg.profile!r}: no such step was trained, there is no trace", stacklevel=4)
        valid = self.valid or evaluation.evaluate(self.models, self.data, "valid")  # resumed after the last epoch
        test = evaluation.evaluate(self.models, self.data, "test")
        metrics = {name: evaluation.summarize(v) for name, v in (valid | test).items()}
        digest = checkpoint.digest(self.step.parameters())
        summary = {"metrics": metrics, "steps": self.done, "weights_sha256": digest}
        checkpoint.write_atomic(self.directory / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        return Run(self.cfg, self.directory, metrics, history.read(self.directory), self.models)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first SIGINT, SIGTERM or SIGHUP (unless nohup has it ignored) into a flag read by the loop at a step
        boundary. Another acts at once, but not within a second: `timeout` and terminals send the same one twice."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            before[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)

        def handler(signum: int, frame: Any) -> None:
            if self.signum is None:
                self.signum, self.signaled = signum, perf_counter()
            elif perf_counter() - self.signaled > 1:
                for s, old in before.items():
                    signal.signal(s, old)
                signal.raise_signal(signum)

        for s in before:
            signal.signal(s, handler)
        try:
            yield
        finally:
            for s, old in before.items():
                signal.signal(s, old)

    def _write(self, row: dict[str, Any]) -> None:
        with open(self.directory / "metrics.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")

    def _truncate_metrics(self) -> None:
        """Drop what a killed or diverged run logged after its last checkpoint."""
        path = self.directory / "metrics.jsonl"
        steps = [(history.parsed(line, path).get("step"), line) for line in history.lines(path)]
        if not all(isinstance(step, int) for step, _ in steps):
            raise ValueError(f"{path}: damaged (a row without a step); move it away to go on without it")
        kept = [line for step, line in steps if step <= self.done]
        checkpoint.write_atomic(path, "".join(kept).encode())

    def _recorded(self) -> dict[str, Any]:
        """What config.json says of the run to resume, {} if there is none. Raises ValueError where the checkpoint is of
        another run."""
        path, now = self.directory / "config.json", self.cfg.to_dict()
        if not path.exists():
            return {}
        found = history.parsed(history.text(path), path)
        config, resumed = found.get("config", {}), found.get("resumed", [])
        if not isinstance(config, dict) or not isinstance(resumed, list):
            raise ValueError(f"{path}: damaged (config and resumed are no object and list); move it away to go on")
        for name, value in config.items():
            if name in now and name not in RESUMABLE and value != json.loads(json.dumps(now[name])):
                raise ValueError(
                    f"{path}: {name}={value!r}, the checkpoint's is {now[name]!r}; expected the checkpoint of that run"
                )
        return found

    def _write_config(self, recorded: dict[str, Any]) -> None:
        """Write config.json; on resume, keep what it says of the start and add what is true now."""
        path = self.directory / "config.json"
        now = {"command": sys.argv, **provenance.describe(str(self.step.device))}
        data = {"name": self.data.name, "sha256": self.data.sha256}
        content = {"config": self.cfg.to_dict(), "data": data, **now}
        if recorded:
            resumed = [*recorded.get("resumed", []), {"step": self.done, **now}]
            content = {**recorded, "config": content["config"], "resumed": resumed}
        checkpoint.write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def _resumed_config(cfg: Config | None, saved: Config, directory: str) -> Config:
    """The checkpoint's config with the fields that may change taken from cfg, writing to the directory resumed from."""
    if cfg is None:
        return replace(saved, out_dir=directory)
    old, new = saved.to_dict(), cfg.to_dict()
    for name in old:
        if name not in RESUMABLE and old[name] != new[name]:
            raise ValueError(f"resume={directory!r}: {name} was {old[name]!r}, got {new[name]!r}; expected the same")
    if cfg.out_dir is not None and Path(cfg.out_dir).resolve() != Path(directory).resolve():
        raise ValueError(f"out_dir={cfg.out_dir!r}: expected None or the directory to resume, {directory!r}")
    return replace(cfg, out_dir=directory)

"""train(cfg): the only loop there is. Epochs of steps, metrics read every few steps, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import checkpoint, evaluation
from ..config import Config
from ..data import Data
from ..device import enough_threads, find_device
from ..engine import priors, profiling
from ..engine.replay import Replay
from ..engine.step import Step
from ..engine.wiring import wiring
from ..files import expanded, warn_caller
from ..kernels.exact import exact_arithmetic
from ..liveness import Heartbeat
from ..members import Members
from ..model import Model
from . import Run, ranks
from .hooks import Hook, OnLog
from .progress import Progress
from .resume import SLOWER, Checkpoints, NonFiniteError, begin, command
from .signals import Interrupted, Signals
from .watch import Watch


def train(
    cfg: Config | None = None,
    data: Any = None,
    resume: str | Path | None = None,
    progress: bool = True,
    prior: priors.Custom | None = None,
    on_log: OnLog | None = None,
    members: Sequence[Mapping[str, Any]] | None = None,
    init: Model | Sequence[Model] | None = None,
) -> Run:
    """Train an adversarial autoencoder and evaluate it.

    Args:
        cfg: what to train. None only with resume: the config of the checkpoint.
        data: own data instead of cfg.dataset: x, (x, y) or a mapping with x, y, x_test, y_test; see data.from_arrays.
        resume: run directory to go on from; the result is that of an uninterrupted run, bit for bit on a CPU.
        progress: say what is trained, then show a bar, or a line every 30 s where the output is no terminal.
        prior: with cfg.prior "custom", a function of (out, generator) that fills out [B, style_dim] in place with draws
            by that torch.Generator alone; see priors.Custom.
        on_log: called with every line of metrics.jsonl, a dict, once that is written, between steps; where it returns
            True training ends, with a checkpoint. One that raises is warned of and called no more. On all ranks.
        members: a dict for each replica, of the fields of members.VARIED that are its own: [{"dropout": 0.1}, ...].
        init: a Model, or one for each replica, to begin with its weights and running statistics; scale, discriminators
            and optimizers begin anew. Not with resume.

    Raises:
        ValueError: data and config do not fit, the output directory holds another run, or the checkpoint to resume is
            of another config (before anything is trained). DataError and CheckpointError are ValueErrors.
        NonFiniteError: a loss became NaN or infinite; with cfg.on_divergence "restart", for the fourth time.
        Interrupted: SIGINT, SIGTERM or SIGHUP; a checkpoint was saved at a step boundary.
        WriteError: the disk is full, or the directory cannot be written to; the last checkpoint is kept. Or it is gone.

    Warns of a damaged checkpoint, where the one before it is resumed, of classes far from their uniform prior, of a
    restart, and once of what has gone wrong, with what to change: codes that have collapsed to a point or scattered, a
    discriminator that has won, dead units, a loss above that of the data's mean.

    Where torch.distributed has several ranks, each trains its share of the replicas, and metrics are those of all.
    """
    if not isinstance(cfg, Config | None):
        raise ValueError(f"train: got a {type(cfg).__name__}, expected a Config, for instance fastaae.preset('digits')")
    with exact_arithmetic(inference=False):
        if not ranks.several():
            return _train_replicas(*begin(cfg, data, resume, members or ()), progress, prior, None, on_log, init)
        with ranks.share(cfg, resume, members or ()) as (cfg, resume, members, heartbeat):
            shown = progress and heartbeat.rank == 0
            run = _train_replicas(*begin(cfg, data, resume, members), shown, prior, heartbeat, on_log, init)
    return replace(run, directory=run.directory.parent, metrics=ranks.gathered(run.metrics, run.directory))


def _train_replicas(
    members: Members, data: Data, resumed: bool, progress: bool, prior: priors.Custom | None,
    heartbeat: Heartbeat | None, on_log: OnLog | None, init: Model | Sequence[Model] | None,
) -> Run:  # fmt: skip
    """As train(), of the replicas of this process."""
    cfg, start = members.cfg, expanded(members.cfg.out_dir or ".").absolute()
    device, w = find_device(cfg.device), wiring(cfg, math.prod(data.shape), data.n_classes)
    largest = max(i * o for sizes in w.sizes.values() for i, o in pairwise(sizes))
    with enough_threads(cfg.replicas * largest, device):
        checkpoints = Checkpoints(Step(cfg, data, device, prior, members), cfg, data, resumed, init)
        try:
            checkpoints.make_directory(start)
            with checkpoints.directory.held():
                with Progress(checkpoints, checkpoints.begin(), progress) as bar, Signals() as signals:
                    return Training(checkpoints, signals, bar, prior, heartbeat, on_log).run()
        except OSError as error:
            raise checkpoints.write_error(error) from error


class Training:
    """The loop of one run: see train()."""

    def __init__(
        self, checkpoints: Checkpoints, signals: Signals, bar: Progress, prior: priors.Custom | None,
        heartbeat: Heartbeat | None, on_log: OnLog | None = None,
    ):  # fmt: skip
        self.hook = Hook(on_log)
        self.hook.ended = checkpoints.keep.over
        self.checkpoints, self.signals, self.progress, self.heartbeat = checkpoints, signals, bar, heartbeat
        step, networks = checkpoints.step, checkpoints.step.networks
        self.cfg, self.directory, self.step = checkpoints.cfg, checkpoints.directory, step
        self.data = checkpoints.data.resident("valid", step.device)  # which each epoch looks at
        parts: tuple[Any, ...] = (networks.get("encoder"), networks["decoder"], step.heads, step.batches.scale)
        sizes, known = (self.data.shape, step.wiring.n_classes), checkpoints.known
        configs = step.members.configs if step.members.given else [self.cfg] * self.cfg.replicas

        def models(of: Callable[[Tensor], Tensor]) -> list[Model]:
            own = [[p and p.mapped(lambda t, r=r: of(t)[r : r + 1]) for p in parts] for r in range(self.cfg.replicas)]
            return [Model(c, *sizes, *some, prior=prior, known=known) for c, some in zip(configs, own, strict=True)]

        averages = {id(t): step.average[name] for name, t in step.parameters().items() if name in step.average}
        self.models, self.averaged = models(lambda t: t), models(lambda t: averages[id(t)]) if averages else []
        self.done = self.logged = checkpoints.newest or 0  # steps
        valid = self.data.parts["valid"] or self.data.train
        self.watch = Watch(step, self.models, valid, self.data.train, self.done)
        self.replay: Replay | None = None
        self.profiling, self.profiled = contextlib.ExitStack(), False
        self.losses: dict[str, list[float]] = {}  # mean ones of the last steps logged here
        self.valid: dict[str, list[float]] = {}  # metrics after the last epoch trained here

    def run(self) -> Run:
        """Every step that is left, and the end."""
        if self.checkpoints.newest is None and (self.cfg.on_divergence == "restart" or self.heartbeat is not None):
            self.checkpoints.save(self.done)  # to go back to; and one rank cannot go on without the others
        with self.profiling:
            while self.done < self.cfg.epochs * self.step.steps_per_epoch and not self.hook.ended:
                try:
                    self.run_epochs()
                except NonFiniteError as error:
                    self.restart(error)
            return self.finish()  # a signal that came in the last epoch has nothing left to stop

    def run_epochs(self) -> None:
        cfg, step, n = self.cfg, self.step, self.step.steps_per_epoch
        for epoch in range(self.done // n, cfg.epochs):
            step.start_epoch(epoch, SLOWER**self.checkpoints.restarts)
            step.batches.cursor.fill_(self.done % n)
            self.checkpoints.keep.start(self.done)
            if self.replay is None:
                self.replay = Replay(step, step.carried(), step.batches.generators, step.device, graph=cfg.graph)
            while self.done < (epoch + 1) * n:
                self.run_steps(self.replay)
                within = self.done - epoch * n
                if within == n or within % cfg.log_every == 0:
                    self.log(epoch)
                if within < n and self.pause(epoch):
                    return
            self.end_epoch(epoch)
            if epoch + 1 < cfg.epochs and self.pause(epoch):
                return

    def run_steps(self, replay: Callable[[int], None]) -> None:
        """Run the next step, or on a GPU, where the host only launches, as many as fill a line of the log."""
        step, profiled, steps = self.step, self.cfg.profiled(), 1
        if self.done + 1 in profiled:
            if not self.profiled:
                self.profiled = True
                trace = self.profiling.enter_context(checkpoint.replaced(self.directory.trace))
                self.profiling.enter_context(profiling.traced(step.device, trace))
            step()
        else:
            if step.device.type == "cuda":
                within, every = self.done % step.steps_per_epoch, self.cfg.log_every
                steps = min(every - within % every, step.steps_per_epoch - within)
                if self.done + 1 < profiled.start:
                    steps = min(steps, profiled.start - 1 - self.done)
            replay(steps)
        self.done += steps
        self.progress.advance(steps)
        if self.done + 1 == profiled.stop:
            self.profiling.close()

    def log(self, epoch: int) -> None:
        """Read the losses of the steps since the last time, check them, write one line of their means."""
        step, n = self.step, self.done - self.logged
        if n == 0:
            return
        losses = step.losses[:n].cpu().double().numpy()  # [steps, phases, R]
        step.slot.zero_()
        for k, phase, replica in np.argwhere(~np.isfinite(losses)):
            what = f"the {step.phases[phase].__name__} loss of replica {replica} is {losses[k, phase, replica]}"
            lost = np.flatnonzero(~np.isfinite(losses).all((0, 1))).tolist()
            raise self.checkpoints.not_finite(f"step {self.logged + k + 1}: {what}", lost)
        self.logged = self.done
        self.losses = {phase.__name__: losses[:, i].mean(0).tolist() for i, phase in enumerate(step.phases)}
        self.write({"step": self.done, "epoch": epoch, **self.losses})
        self.progress.show(self.done, self.losses)

    def end_epoch(self, epoch: int) -> None:
        self.checkpoints.check(self.step.parameters(), self.done)
        with profiling.mark("evaluation"):
            self.valid = self.evaluate("valid")
            game = self.watch.measure()
        self.progress.show(self.done, self.valid)
        self.write({"step": self.done, "epoch": epoch, **self.valid, **game})
        if warning := self.watch.warning(self.losses, game, self.done):
            self.warn(warning, epoch)
        self.hook.ended |= self.checkpoints.keep.update(self.valid)
        if self.checkpoints.due(epoch):
            self.checkpoints.save(self.done)

    def restart(self, error: NonFiniteError) -> None:
        """Go back to the last checkpoint and on with lower rates, or raise the error."""
        reached, checkpoints = self.done, self.checkpoints
        if self.cfg.on_divergence == "stop" or checkpoints.restarts == checkpoint.RESTARTS:
            raise error
        self.done = self.logged = checkpoints.go_back()
        self.progress.advance(self.done - reached)
        again = f"restart {checkpoints.restarts} of {checkpoint.RESTARTS}"
        rates = f"all learning rates times {SLOWER**checkpoints.restarts}"
        self.warn(f"{error}; {again}, {rates}", self.done // self.step.steps_per_epoch)
        checkpoints.save(self.done)

    def warn(self, message: str, epoch: int) -> None:
        """Say it, and write it beside the metrics."""
        self.write({"step": self.done, "epoch": epoch, "warning": message})
        self.progress.clear()
        warn_caller(message)

    def write(self, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl, which the caller's hook gets as well."""
        self.directory.append(row)
        self.hook(row, self.warn)

    def pause(self, epoch: int) -> bool:
        """Between steps: save and stop where a signal says so, or another rank has failed. Or end: returns whether the
        caller's hook has asked for that, or patience is over."""
        try:
            if self.signals.received is not None:
                again = command(self.cfg)
                raise Interrupted(f"stopped after step {self.done}; go on with: {again}", self.signals.received)
            if self.heartbeat is not None:
                self.heartbeat.beat(self.done)
        except (Interrupted, RuntimeError):
            self.log(epoch)
            self.checkpoints.save(self.done, stopped=True)
            raise
        if self.hook.ended:
            self.log(epoch)
            self.checkpoints.save(self.done, stopped=True)
            self.valid = self.valid if self.done % self.step.steps_per_epoch == 0 else {}
        return self.hook.ended

    def evaluate(self, split: str) -> dict[str, list[float]]:
        """Metrics of the models and, as split_averaged_..., of their averages."""
        found = evaluation.evaluate(self.models, self.data, split)
        averaged = evaluation.evaluate(self.averaged, self.data, split) if self.averaged else {}
        return found | {f"{split}_averaged{name.removeprefix(split)}": values for name, values in averaged.items()}

    def finish(self) -> Run:
        best = self.checkpoints.keep.finish()
        valid = (not best and self.valid) or self.evaluate("valid")  # as where it resumed
        test = self.evaluate("test")
        metrics = {name: evaluation.summarize(v) for name, v in (valid | best | test).items()}
        summary = {"metrics": metrics, "steps": self.done, "weights_sha256": checkpoint.digest(self.step.parameters())}
        self.directory.write_json(self.directory.summary, summary)
        if self.cfg.keep == "final":
            self.checkpoints.leave_weights(self.heartbeat)
        if self.cfg.profile and not self.profiled:
            warn_caller(f"profile={self.cfg.profile!r}: no such step was trained, there is no trace")
        return Run(self.cfg, self.directory.path, metrics, self.directory.history(), self.models, self.averaged)

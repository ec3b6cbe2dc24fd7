"""Which weights a run begins with, which it keeps, and when it has been no better for long enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import digest
from ..data import Data
from ..directory import RunDirectory
from ..engine.networks import named
from ..engine.step import Step, drawn
from ..evaluation import criterion
from ..files import brief
from ..model import Model
from . import ranks


class Keep:
    """What keep, patience and start_epochs of a step's config ask for. ValueError: the data have no validation metric.

    Attributes:
        best: with keep "best", copies of what each replica learned up to its best epoch, as checkpoints have them.
        epochs, over: the best ones so far [R], the first is 1; whether patience is over.
    """

    def __init__(self, step: Step, data: Data):
        self.step, self.cfg, self.weights = step, step.cfg, step.parameters() if step.cfg.keep == "best" else {}
        self.best = {f"best.{name}": t.clone() for name, t in self.weights.items()}
        cfg, self.asked = self.cfg, bool(self.best) or self.cfg.patience is not None
        part = (data.labels if cfg.task == "supervised" else data.parts)["valid"]  # without which there is no metric
        if self.asked and part is None:
            labels = " with labels" * (cfg.task == "supervised")
            needed = f"validation examples{labels}: pass x_valid, or raise n_validation"
            raise ValueError(f"keep={cfg.keep!r}, patience={cfg.patience}: expected {needed}")
        self._rank([])

    def _rank(self, rows: list[Any]) -> None:
        """Find the best of epochs with these metrics, [R] each; NaN and infinity are none."""
        table = np.nan_to_num([[np.inf] * self.cfg.replicas, *rows], nan=np.inf, posinf=np.inf)
        self.rows, self.epochs, waited = rows, table.argmin(0), len(rows) - table.mean(1).argmin()
        self.over = self.cfg.patience is not None and bool(waited >= self.cfg.patience)

    def state(self) -> dict[str, Tensor]:
        """What checkpoints hold: nothing before the first epoch is over."""
        return self.best if self.rows else {}

    def restore(self, saved: Mapping[str, Tensor], run: RunDirectory) -> None:
        """Go back, or on, to a checkpoint, once the run's history ends there."""
        for name in self.best.keys() & saved.keys():
            self.best[name].copy_(saved[name])
        history = run.history() if self.asked else {"epoch": ()}
        self._rank([*history[criterion(history)]] if len(history["epoch"]) else [])

    def update(self, valid: Mapping[str, Sequence[float]]) -> bool:
        """Copy the weights of replicas that are best after an epoch with these metrics. Returns: over."""
        if self.asked:
            self._rank([*self.rows, valid[criterion(valid)]])
            better = self.epochs == len(self.rows)
            for name, t in self.weights.items():
                self.best[f"best.{name}"][better] = t[better]
        return self.over

    def start(self, done: int) -> None:
        """After so many steps begin anew, if the config says so, or go on from the best weights of all starts."""
        epoch, within = divmod(done, self.step.steps_per_epoch)
        if within or epoch not in self.cfg.start_epochs:
            return
        if epoch == self.cfg.start_epochs[-1]:
            new = {name: self.best[f"best.{name}"] for name in self.weights}
        else:
            networks, heads = drawn(self.step.members, self.step.wiring, self.step.terms, epoch)
            new = named({**networks, "heads": heads})
        state = self.step.state()
        new |= {name: torch.zeros_like(t) for name, t in state.items() if name.startswith("optimizer.")}
        self.step.restore(state | new, done)

    def finish(self) -> dict[str, list[float]]:
        """Put the best weights in the place of the last ones. Returns: their epochs, as a metric."""
        for name, t in self.weights.items():
            t.copy_(self.state().get(f"best.{name}", t))
        return {"valid_best_epoch": self.epochs.tolist()} if self.state() else {}


def warm_start(step: Step, init: Any, resumed: bool, known: dict[str, Any]) -> dict[str, Any]:
    """Let replicas begin with the weights of models; init as of train(), known of the data. ValueError: it does not
    fit. Returns: what config.json says of them."""
    if init is None:
        return {}
    if resumed:
        raise ValueError(f"init={brief(init)}: expected None with resume, where the run's own weights go on")
    models = [*init] if isinstance(init, Sequence) else [init] * step.cfg.replicas
    models = models[ranks.part(len(models))] if isinstance(init, Sequence) else models
    if len(models) != step.cfg.replicas or not all(isinstance(model, Model) for model in models):
        raise ValueError(f"init={brief(init)}: expected a Model, which fastaae.load gives, or one for each replica")
    parts = ("encoder", "decoder") if step.cfg.fixed_heads else ("encoder", "decoder", "heads")
    own = {name: t for name, t in step.parameters().items() if name.startswith(parts)}
    for r, model in enumerate(models):
        for what, had, has in (
            ("scale", model.config.scale, step.cfg.scale),
            ("classes", model.known.get("classes"), known.get("classes")),
        ):
            if had != has and (what == "scale" or model.n_classes):
                raise ValueError(f"init: model {r} has {what}={brief(had)}, expected the run's, {brief(has)}")
        given = named({part: getattr(model, part) for part in parts})
        for name in own | given:
            found, needed = (list(t[name].shape[1:]) if name in t else "none" for t in (given, own))
            if found != needed:
                raise ValueError(f"init: {name} of model {r} has shape {found}, the run's config needs {needed}")
            own[name][r] = given[name][0]
    for network in step.networks.values():
        network.refresh()
    return {"init": {"sha256": digest(own)}}

"""How the game between discriminators and encoder goes: numbers after each epoch, and a warning where it is over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from ..data import Rows
from ..engine import priors
from ..engine.step import Step
from ..model import Model

CODES = 1000  # validation examples whose codes are compared with the prior
# Percent from which a discriminator has won; share of the prior's standard deviation below which codes have collapsed.
# Good runs are beyond either in their first epochs at most: a warning waits for three in a row, and 1,000 steps.
TOLD_APART, COLLAPSED = 99.0, 0.1


class Watch:
    """The game of one step, and of its models' codes of the first examples x [N, D]."""

    def __init__(self, step: Step, models: Sequence[Model], rows: Rows):
        self.step, self.models, self.x = step, models, next(rows.split(CODES))
        self.prior_std: float | None = None
        self.bad_since: dict[str, float] = {}  # steps; infinite once warned of

    def measure(self) -> dict[str, list[float]]:
        """The numbers, [R] each: see Run.history."""
        step, cfg, game = self.step, self.step.cfg, {}
        real = torch.arange(2 * step.batch, dtype=torch.int64, device=step.device) < step.batch
        for name, network in step.discriminators.items():
            rows = step.judging[name].x[0]  # of the last batch: the prior's samples, then codes (of a GAN: images)
            logits = torch.stack([network.replica(r)(x) for r, x in enumerate(rows)])  # [R, 2B, 1]
            game[f"told_apart_{name}"] = (100 * ((logits[..., 0] > 0) == real).double().mean(1)).tolist()
        if cfg.task == "gan":
            return game
        if self.prior_std is None:
            draws = step.codes.prior["z"][0]
            self.prior_std = priors.spread(step.batches.source, draws, cfg.prior_std, cfg.components)
        means, stds = [], []
        with torch.inference_mode():
            for model in self.models:
                g = None if cfg.posterior == "gaussian" else torch.Generator(step.device).manual_seed(cfg.seed)
                z = model.code(model.scaled(self.x), g)[0].double() / self.prior_std
                means.append(z.mean(0).abs().max().item())
                stds.append(z.var(0, correction=0).mean().sqrt().item())
        return {**game, "code_mean": means, "code_std": stds}

    def warnings(self, game: dict[str, list[float]], done: int) -> Iterator[str]:
        """What of measure()'s numbers has been wrong for a while, after so many steps; each once."""
        for name, values in game.items():
            wrong = ""
            if name.startswith("told_apart") and max(values) >= TOLD_APART:
                wrong = "the discriminator has won: its gradient teaches the encoder nothing"
            elif name == "code_std" and min(values) < COLLAPSED:
                wrong = "codes have collapsed to a point, far within the prior"
            if not wrong:
                self.bad_since.pop(name, None)
            elif done - (since := self.bad_since.setdefault(name, done)) >= max(1000, 2 * self.step.steps_per_epoch):
                self.bad_since[name] = math.inf
                numbers = ", ".join(f"{value:.3g}" for value in values)
                yield f"{name} is {numbers} since step {since} ({wrong}); see lr_adversarial"

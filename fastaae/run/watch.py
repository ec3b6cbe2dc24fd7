"""How a run goes: numbers after each epoch, and a warning, with what to change, where it has gone wrong."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..data import Rows
from ..engine import priors
from ..engine.step import Step
from ..model import Model

EXAMPLES = 1000  # of the validation set, whose codes are compared with the prior, and of the training set
# A run has gone wrong where its loss is so many times that of a decoder that always gives the mean of the data (in the
# end: the next), where codes spread less (in the end: less than the next) or more than so many standard deviations of
# the prior, or a discriminator is right in so many percent. Good runs may be so, at first.
LOST, UNLEARNED, COLLAPSED, UNFILLED, SCATTERED, TOLD_APART = 1.5, 0.98, 0.05, 0.4, 3.0, 99.0
SOON, LATE = 250, 1000  # steps for which that has to last, a third of the run between them
ENOUGH = 2000  # steps after which small networks are trained, in bench/defaults.py


class Watch:
    """Of one step from `done` steps on, and of its models' codes of the first validation examples."""

    def __init__(self, step: Step, models: Sequence[Model], rows: Rows, training: Rows, done: int):
        self.step, self.models, self.start, self.x = step, models, done, next(rows.split(EXAMPLES)).to(step.device)
        self.training = training
        self.scales: tuple[float, list[float]] | None = None  # of the loss and of each model's codes
        self.good: dict[str, int] = {}  # the last step that a number was good at
        self.told = bool(step.members.given)  # no one change would help them all

    def measure(self) -> dict[str, list[float]]:
        """The numbers, [R] each: see Run.history. They are read from the device once."""
        game = self._measured()
        return dict(zip(game, torch.stack([*game.values()]).tolist(), strict=True))

    def _measured(self) -> dict[str, Tensor]:
        """As measure(), float64 on the device."""
        step, cfg, game = self.step, self.step.cfg, {}
        real = torch.arange(2 * step.batch, dtype=torch.int64, device=step.device) < step.batch
        for name, network in step.discriminators.items():
            rows = step.judging[name].x[0]  # of the last batch: the prior's samples, then codes (of a GAN: images)
            logits = torch.stack([network.replica(r)(x) for r, x in enumerate(rows)])  # [R, 2B, 1]
            game[f"told_apart_{name}"] = 100 * ((logits[..., 0] > 0) == real).double().mean(1)
        passes = [*step.player.passes.values(), *((n, step.judging[k]) for k, n in step.discriminators.items())]
        dead = [(n.output(t.x, i) <= 0).all(1).double().mean(1) for n, t in passes for i in range(len(n.weights) - 1)]
        none = torch.zeros(cfg.replicas, dtype=torch.float64, device=step.device)
        game["dead_units"] = 100 * torch.stack(dead).amax(0) if dead else none
        if cfg.task == "gan":
            return game
        if self.scales is None:
            draws = step.codes.prior["z"][0]
            stds = [model.config.prior_std for model in self.models]
            spreads = {std: priors.spread(step.batches.source, draws, std, cfg.components) for std in {*stds}}
            loss = mean_loss(cfg, self.models[0], next(self.training.split(EXAMPLES)))
            self.scales = loss, [spreads[std] for std in stds]
        if cfg.lr_adversarial or cfg.regularizer != "adversarial":  # something draws codes to the prior
            means, stds = [], []
            with torch.inference_mode():
                for model, scale in zip(self.models, self.scales[1], strict=True):
                    g = None if cfg.posterior == "gaussian" else torch.Generator(step.device).manual_seed(cfg.seed)
                    z = model.code(model.scaled(self.x), g)[0].double() / scale
                    means.append(z.mean(0).abs().max())
                    stds.append(z.var(0, correction=0).mean().sqrt())
            game |= {"code_mean": torch.stack(means), "code_std": torch.stack(stds)}
        if cfg.classifies and cfg.lr_reconstruction:
            k, n = self.models[0].n_classes, len(self.x)
            asked, kept = torch.arange(n, dtype=torch.int64, device="cpu") % k, []
            labels, asked = torch.eye(k, dtype=torch.float32, device="cpu")[asked], asked.to(step.device)
            with torch.inference_mode():
                for model in self.models:
                    made = torch.cat([*model.stream(n, cfg.seed, labels)])
                    kept.append((model.code(model.scaled(made))[1].argmax(1) == asked).double().mean())
            game["label_kept"] = 100 * torch.stack(kept)
        return game

    def warning(self, losses: Mapping[str, Sequence[float]], game: Mapping[str, Sequence[float]], done: int) -> str:
        """What has gone wrong for a while, or in the end, and what to change, once; else nothing. It is of measure()'s
        numbers and the mean losses of the last steps, after so many."""
        step, numbers = self.step, {**losses, **game}
        total = step.cfg.epochs * step.steps_per_epoch
        wrong = {name: (words, early) for name, words, early in self._wrong(numbers)}
        self.good |= {name: done for name in numbers if name not in wrong}
        if not wrong or self.told:
            return ""
        name, (words, early) = next(iter(wrong.items()))  # the others follow from the first
        since = self.good.get(name, self.start)
        lasts = early and done - since >= max(SOON, min(LATE, total // 3))
        ends = done == total >= self.start + SOON and not name.startswith("told_apart")  # which is of one batch
        if not (lasts or ends):
            return ""
        self.told = True
        values = ", ".join(f"{value:.3g}" for value in numbers[name])
        when = f"since step {since}" if since else f"after {done} steps"
        return f"{name} is {values} {when}: {words}{remedy(step, name, early)}"

    def _wrong(self, numbers: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str, bool]]:
        """Numbers of a run gone wrong, causes first, what they mean, and whether a good run is never so for long."""
        loss = self.scales[0] if self.scales else math.inf
        if not loss:
            return  # all examples are the same
        lost, dead, codes = (numbers.get(name, [0.0]) for name in ("reconstruction", "dead_units", "code_std"))
        mean = f"a decoder that always gives the mean of the data has {loss:.3g}"
        if max(lost) > LOST * loss:
            yield "reconstruction", mean, True
        if max(dead) >= 100:
            yield "dead_units", "percent of a layer's units give 0 for all examples, and learn no more", True
        if "code_std" in numbers and min(codes) < COLLAPSED:
            yield "code_std", "codes have collapsed to a point, far within the prior", True
        elif "code_std" in numbers and min(codes) < UNFILLED:
            yield "code_std", "codes fill little of the prior, most samples come from where there are none", False
        elif max(codes) > SCATTERED:
            yield "code_std", "codes lie far beyond the prior, and samples are of few of them", True
        for name, values in numbers.items():
            if name.startswith("told_apart") and max(values) >= TOLD_APART:
                yield name, "the discriminator has won: its gradient teaches the encoder nothing", True
        if LOST * loss >= max(lost) > UNLEARNED * loss:
            yield "reconstruction", mean, False
        if min(numbers.get("label_kept", [100.0])) < 50 + 50 / (self.models[0].n_classes or 1):
            yield "label_kept", "percent of samples drawn with a label are taken for it", False


def mean_loss(cfg: Config, model: Model, x: torch.Tensor) -> float:
    """The reconstruction loss on examples x [N, D] of a decoder that always gives their mean."""
    target = model.standardized(model.scaled(x)).double()
    if cfg.reconstruction == "cross_entropy":
        return (torch.special.entr(target.mean(0)) + torch.special.entr(1 - target.mean(0))).sum().item()
    return target.var(0, correction=0).sum().item() / 2


def remedy(step: Step, name: str, early: bool = True) -> str:
    """What fields to change, and to what, where one of measure()'s numbers (if not early, in the end alone), a loss or
    a weight says that a run has gone wrong; bench/remedies.py tries it."""
    cfg, size, kept = step.cfg, step.networks["decoder"].sizes[-1], Config  # whose defaults train data of many kinds
    rates = ["lr_reconstruction", "lr_adversarial", *(["lr_classification"] if cfg.classifies else [])]
    rates = [name for name in rates if getattr(cfg, name)]  # no rate is no mistake
    ends = dict.fromkeys(rates, (0.01, 1.0)) | {"init_std": (0.1, 3.0), "prior_std": (0.0, 20.0)}  # times the default
    odd = [n for n, (low, high) in ends.items() if (v := getattr(cfg, n)) and not low <= v / getattr(kept, n) <= high]
    odd += [n for n in ("dropout", "input_dropout") if getattr(cfg, n) > 0.5]
    codes, few = name.startswith(("code_std", "told_apart", "label")), cfg.epochs * step.steps_per_epoch < ENOUGH
    late = few and not early and name != "reconstruction" and cfg.style_dim <= max(size, 2)  # maybe just not there yet
    new: dict[str, Any]
    if cfg.task == "gan" and codes:
        return ""  # none is known
    if cfg.optimizer != kept.optimizer and not late:
        new = {n: getattr(kept, n) for n in ("optimizer", "init_std", *rates)}
    elif odd and not late:
        new = {n: getattr(kept, n) for n in odd}
    elif late or (not early and name in ("reconstruction", "label_kept")):
        new = {} if few else {"epochs": 4 * cfg.epochs}
    elif not codes:
        new = {n: getattr(cfg, n) / 10 for n in rates}
    elif cfg.regularizer == "kl":
        new = {"regularizer_weight": cfg.regularizer_weight / 100}
    elif cfg.prior_std < kept.prior_std:
        new = {"prior_std": kept.prior_std}
    elif cfg.style_dim > max(size, 2):
        new = {"style_dim": max(size, 2)}
    else:
        new = {"style_dim": cfg.style_dim // 2} if cfg.style_dim > 3 else {"lr_adversarial": cfg.lr_adversarial / 3}
    if few and (codes or not early):
        new["epochs"] = -(-ENOUGH // step.steps_per_epoch)
    changes = {field: value for field, value in new.items() if value != getattr(cfg, field)}
    return "; try " + ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in changes.items())

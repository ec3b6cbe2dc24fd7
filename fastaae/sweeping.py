"""sweep(cfg, field=[...]): many settings side by side, a replica each, in as few runs as memory allows."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import checkpoint, evaluation
from .config import IDLE, TYPES, Config
from .device import find_device
from .directory import RunDirectory
from .engine.wiring import wiring
from .files import brief, suggestion
from .members import SHARED, VARIED, check_precision
from .run import provenance, ranks, watch
from .run.resume import begin
from .run.signals import Interrupted
from .run.training import train
from .scalars import integer, scalar

COLLAPSED = 0.1  # standard deviations of the prior: a member whose codes spread less, not only at first, is out
SHARE, MOST = 0.5, 1000  # of the memory that is free, for the members of one run, and how many these are at most
DEFAULT = ("start_epochs", "on_divergence", "keep", "patience")  # fields that a sweep has at their defaults alone
FIXED = (*"name task dataset data_dir n_validation seed replicas out_dir device graph profile".split(), *DEFAULT)


@dataclass
class Sweep:
    """What a sweep has found.

    Attributes:
        directory: of sweep.json, and a run directory for each launch.
        table: a dict for each member: what was varied, "seed", "epochs" that it was trained for, its metrics and
            "code_std", "out" ("", "collapsed" or "diverged"), "directory" and "replica", which load() takes; None is
            the directory of one that diverged before it was saved.
        summary: a dict for each setting, the best first: what was varied, "epochs", "seeds", how many of these are
            "out", "why" ("collapsed", "diverged", "dropped" by halving), and "mean" and "std" of the metric over the
            others.
        metric: the name of what was compared; the lowest is best.
        best: the config of the best setting.
    """

    directory: Path
    table: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    metric: str
    best: Config


@dataclass(eq=False)
class Member:
    """One of a sweep: its setting's number and its own config; where it was trained last, as which replica, for how
    many epochs; its metrics after that; why it is out."""

    setting: int
    config: Config
    directory: Path | None = None
    replica: int = 0
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    out: str = ""


def sweep(
    cfg: Config, data: Any = None, out_dir: str | os.PathLike | None = None, seeds: int | None = None,
    n: int | None = None, metric: str | None = None, halving: int | None = None, progress: bool = True, **fields: Any,
) -> Sweep:  # fmt: skip
    """Train settings of some fields of Config and compare them on validation examples.

    Fields of members.VARIED (rates, momenta, noise, dropout, prior_std) differ between replicas of one run; others take
    runs of their own, in turn. A member learns what it would learn alone. One that diverges is out, the others of its
    run go on from their last checkpoint. Under torchrun the ranks share every run.

    Args:
        cfg: of all members, but for the fields that are varied.
        data: as of train().
        out_dir: a new folder, or that of the same sweep, which goes on there; None: runs/sweep-NAME-DATE-TIME.
        seeds: members of each setting, seeded from cfg.seed on; None: cfg.replicas.
        n: so many random settings, drawn by cfg.seed, instead of all combinations. Values are then a list to choose
            from, or a tuple (low, high), a range: even in its logarithm where low > 0.
        metric: what is compared, an error or a loss on validation examples, "valid_error" and so on; None:
            evaluation.criterion().
        halving: compare after cfg.epochs / halving ** k epochs for k = ..., 2, 1, and go on with one in so many
            settings: with 3, of nine settings after 1/9 and 1/3, for a quarter of the cost.
        fields: of Config by name, each with its values.

    Raises:
        ValueError: a field, a value or data that do not fit; out_dir holds something else; every member is out.
        Interrupted, WriteError: as train().
    """
    given = (("seeds", seeds, 1), ("n", n, 1), ("halving", halving, 2))
    seeds, n, halving = (v if v is None else integer(name, v, least, 10_000) for name, v, least in given)
    cfg, out_dir = replace(cfg, out_dir=None), cfg.out_dir if out_dir is None else out_dir
    if not fields:
        raise ValueError(f"sweep: {fields=}, expected lists of values to try, lr_adversarial=[1e-4, 3e-4, 1e-3]")
    if cfg.task == "gan" or cfg.prior == "custom":
        raise ValueError(f"task={cfg.task!r}, prior={cfg.prior!r}: expected a validation metric, a prior of Config's")
    if odd := [name for name in DEFAULT if getattr(cfg, name) != getattr(Config, name)]:
        raise ValueError(f"{odd[0]}={getattr(cfg, odd[0])!r}: expected {getattr(Config, odd[0])!r} in a sweep")
    if halving and "epochs" in fields:
        raise ValueError(f"epochs={brief(fields['epochs'])}: expected one number, cfg's, with {halving=}")
    if metric is not None and not re.fullmatch(r"valid_(\w*error|(averaged_)?reconstruction)", str(metric)):
        raise ValueError(f"metric={metric!r}: expected valid_reconstruction or a valid_...error, less is better")
    if {"scale", "reconstruction"} & {*fields} and not (metric or "").endswith("error"):
        raise ValueError(f"metric={metric!r}: expected an error, since losses of different {[*fields]} do not compare")
    settings, seeds = _settings(cfg, n, fields), seeds or cfg.replicas
    if halving and len(settings) < halving:
        raise ValueError(f"halving={halving}: expected at least as many settings, there are {len(settings)}")
    job = Sweeping(cfg, data, metric, progress)
    plan = {"config": cfg.to_dict(), "data": job.data.sha256, "settings": settings, "seeds": seeds}
    plan |= {"metric": metric, "halving": halving}
    rank, _ = ranks.place()
    named = out_dir
    if named is None:
        named = ranks.everyone("" if rank else provenance.new_directory(f"sweep-{cfg.name}"))[0]
    where = RunDirectory(os.fspath(named))
    with contextlib.nullcontext() if rank else _claimed(where, json.loads(json.dumps(plan))):
        ranks.everyone(None)
        try:
            found, best = job.run(where.path, settings, seeds, halving), job.best
            if best is not None and not rank:
                plan |= {"best": os.path.relpath(str(best.directory), where.path), "replica": best.replica}
                where.write_json(where.sweep, plan)
            return found
        except Interrupted as error:
            error.args = (f"stopped; the same sweep with out_dir={str(where.path)!r} goes on",)
            raise


def _settings(cfg: Config, n: int | None, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The combinations of the fields' values, or n random ones, without repetitions; a config can be made of each."""
    allowed, rng = [name for name in TYPES if name not in FIXED], random.Random(cfg.seed)
    for name, values in fields.items():
        if name not in allowed:
            hint = suggestion(name, allowed) or f", not one of {', '.join(FIXED)}"
            raise ValueError(f"sweep: got {name!r}, expected a field of Config to vary{hint}")
        if isinstance(values, np.ndarray):
            fields[name] = values.tolist()
        if not isinstance(fields[name], list | tuple) or not fields[name]:
            raise ValueError(f"{name}={brief(values)}: expected a list of values")
    if n is None:
        found = [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]
    else:
        found = [{name: _drawn(rng, name, values) for name, values in fields.items()} for _ in range(n)]
    configs = [replace(cfg, **setting) for setting in found]
    for c in configs:
        check_precision(c)
        for names, used, words in IDLE:
            for name in set(names.split()).intersection(() if used(c) else fields):
                raise ValueError(f"{name}={brief(getattr(c, name))}: no effect, leave it out: {words.format(c=c)}")
    made = [{name: getattr(c, name) for name in fields} for c in configs]
    return [setting for k, setting in enumerate(made) if setting not in made[:k]]


def _drawn(rng: random.Random, name: str, values: Any) -> Any:
    if isinstance(values, list) or len(values) != 2 or {type(scalar(v)) for v in values} - {int, float}:
        return rng.choice(values)
    low, high = map(scalar, values)
    if low > high:
        raise ValueError(f"{name}={values}: expected a range (low, high)")
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if low > 0 else rng.uniform(low, high)
    return round(value) if TYPES[name] in (int, int | None) else min(max(value, low), high)


@contextlib.contextmanager
def _claimed(where: RunDirectory, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the directory of a sweep, a new one or one to go on with."""
    checkpoint.remove_unfinished(where.sweep)  # of a sweep that was killed as it began
    had = where.read_json(where.sweep) if where.sweep.exists() else where.check_empty()
    if had and (odd := sorted(name for name in plan if had.get(name) != plan[name])):
        raise ValueError(f"out_dir={str(where.path)!r}: a sweep of other {', '.join(odd)}, expected the same, or none")
    where.make()
    with where.held():
        where.write_json(where.sweep, plan)
        yield


class Sweeping:
    """A sweep that runs: see sweep()."""

    def __init__(self, cfg: Config, data: Any, metric: str | None, progress: bool):
        if isinstance(data, str | os.PathLike):
            cfg, data = replace(cfg, dataset=os.fspath(data)), None
        self.cfg, self.path, self.metric, self.progress = cfg, Path(), metric, progress
        self.data = begin(replace(cfg, replicas=1), data, None)[1]
        self.given = data if data is None else self.data  # read once: a loader may shuffle
        if self.data.parts["valid"] is None:
            raise ValueError(f"n_validation={cfg.n_validation}: expected validation examples, to compare by")
        self.varied, self.settings, self.members = ["seed"], [], []
        self.best: Member | None = None  # of the best setting

    def run(self, path: Path, settings: list[dict[str, Any]], seeds: int, halving: int | None) -> Sweep:
        """All settings to the end or, in rounds, fewer and fewer of them."""
        self.path, self.settings, n, alive = path, settings, len(settings), [*range(len(settings))]
        self.varied += [name for name in settings[0] if name in VARIED]
        configs = [replace(self.cfg, **setting) for setting in settings]
        self.members = [Member(k, replace(c, seed=c.seed + s)) for k, c in enumerate(configs) for s in range(seeds)]
        rounds = int(math.log(n, halving) + 1e-9) if halving else 0
        for k in range(rounds + 1):
            share = (halving or 1) ** (rounds - k)  # of epochs
            left = [m for m in self.members if m.setting in alive and not m.out]
            for pack in self.packs([m for m in left if m.epochs < max(1, m.config.epochs // share)]):
                self.launch(pack, max(1, pack[0].config.epochs // share), k)
            kept = max(n // (halving or 1) ** (k + 1), -(-ranks.place()[1] // seeds))  # a replica for each rank
            alive = [s for s in self.ranking(self.summary()) if s in alive][:kept]
        return self.found()

    def packs(self, members: list[Member]) -> list[list[Member]]:
        """Those that can share a run, as many as memory allows in each."""
        groups: dict[str, list[Member]] = {}
        for m in members:
            own = {name: v for name, v in m.config.to_dict().items() if name not in VARIED}
            has = [getattr(m.config, name) > 0 for name in SHARED]
            groups.setdefault(f"{own} {has}", []).append(m)
        found = []
        for group in groups.values():
            parts = -(-len(group) // min(ranks.everyone(self.room(group[0].config))))
            ends = [k * len(group) // parts for k in range(parts + 1)]
            found += [group[a:b] for a, b in itertools.pairwise(ends)]
        return found

    def room(self, cfg: Config) -> int:
        """How many members a run can have: by their weights, optimisers' state, and activations, generously counted."""
        device, world = find_device(cfg.device), ranks.place()[1]
        w = wiring(cfg, math.prod(self.data.shape), self.data.n_classes)
        sizes = {name: sum((i + 1) * o for i, o in itertools.pairwise(widths)) for name, widths in w.sizes.items()}
        state = sum(sizes.values()) + 2 * sum(sizes.get(name, 0) for phase in w.phases for name in phase.trains)
        rows = 16 * cfg.batch_size * sum(map(sum, w.sizes.values()))
        free = 2**31
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0] * world
        elif "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return max(world, min(MOST, int(SHARE * free / ((8 if cfg.precision == "fp64" else 4) * (state + rows)))))

    def launch(self, pack: list[Member], epochs: int, k: int) -> None:
        """Train a pack up to so many epochs, in round k; without those that diverge, which are out."""
        given = [{name: getattr(m.config, name) for name in self.varied} for m in pack]
        cfg = replace(pack[0].config, seed=self.cfg.seed, epochs=epochs, replicas=len(pack), out_dir=None)
        name = hashlib.sha256(repr((cfg, given)).encode()).hexdigest()[:8]  # another, where memory allows other packs
        run = RunDirectory(self.path / f"{k}-{name}")
        out, places = self.trained(pack, cfg, given, run), [_place(run, r, len(pack)) for r in range(len(pack))]
        parts = dict.fromkeys(path for path, _ in places)
        for path in parts:  # nothing goes on from these
            RunDirectory(path).previous.unlink(missing_ok=True)
        if out:
            # of several ranks one may have stopped sooner: then all begin again where this launch began
            steps = {checkpoint.step_of(RunDirectory(path).newest) for path in parts}
            for r, m in enumerate(pack):
                m.out = "diverged" if r in out else ""
                if len(steps) == 1 and None not in steps:
                    m.directory, m.replica = places[r]
            if left := [m for m in pack if not m.out]:
                self.launch(left, epochs, k)
            return
        summary = run.read_json(run.summary)
        spreads = [RunDirectory(part).history().get("code_std") for part in parts]  # None where there is no game
        codes = [std for rows in spreads if rows is not None for std in rows[-1].tolist()]
        late = epochs == pack[0].config.epochs and summary["steps"] >= watch.SOON
        for r, m in enumerate(pack):
            m.directory, m.replica = places[r]
            m.metrics = {name: values["replicas"][r] for name, values in summary["metrics"].items()}
            m.metrics["code_std"], m.epochs = codes[r] if codes else math.nan, epochs
            m.out = "collapsed" if late and m.metrics["code_std"] < COLLAPSED else ""

    def trained(self, pack: list[Member], cfg: Config, given: list[dict[str, Any]], run: RunDirectory) -> list[int]:
        """Train it in the directory of a run, unless it has been. Returns: the places of those that diverged."""
        (rank, world), mine = ranks.place(), ranks.part(len(pack))
        own = RunDirectory(run.of_rank(rank)) if world > 1 else run
        cfg = replace(cfg, out_dir=str(run.path))
        state = ranks.everyone((run.summary.exists(), own.newest.exists()))
        done, begun = (all(flags) for flags in zip(*state, strict=True))
        if done:
            return []
        if not begun and not rank:
            shutil.rmtree(run.path, ignore_errors=True)  # of one that was killed before its first checkpoint
        ranks.everyone(None)
        if not begun and pack[0].directory is not None:
            several = {"replicas": mine.stop - mine.start, "seed": cfg.seed + mine.start}
            _join(own, pack[mine], replace(cfg, **several, out_dir=str(own.path)), given[mine])
            begun = True
        ranks.everyone(None)
        failure, lost = None, []
        try:
            if begun:
                train(None, self.given, run.path, self.progress)
            else:
                train(cfg, self.given, None, self.progress, members=given)
        except RuntimeError as error:
            failure, lost = error, [mine.start + r for r in getattr(error, "replicas", ())]
        out = [r for part in ranks.everyone(lost) for r in part]
        if failure is not None and not out:
            raise failure
        return out

    def ranking(self, rows: list[dict[str, Any]]) -> list[int]:
        """Numbers of the settings, by summary(), the best first: those that came furthest, of these the ones without
        members that are out, of these by the metric."""
        keys = []
        for setting, row in zip(self.settings, rows, strict=True):
            mean = math.inf if row["mean"] is None else row["mean"]
            keys.append((-row["epochs"] / setting.get("epochs", self.cfg.epochs), row["out"], mean))
        return sorted(range(len(keys)), key=keys.__getitem__)

    def summary(self) -> list[dict[str, Any]]:
        """A row for each setting."""
        rows, metric = [], self.compared()
        for k, setting in enumerate(self.settings):
            members = [m for m in self.members if m.setting == k]
            values = [m.metrics[metric] for m in members if not m.out]
            row = {"epochs": max(m.epochs for m in members), "seeds": len(members), "out": len(members) - len(values)}
            row |= {"mean": None, "std": None} if not values else evaluation.summarize(values)
            row.pop("replicas", None)
            why = {m.out or "dropped" * (m.epochs < m.config.epochs) for m in members} - {""}
            rows.append({**setting, **row, "why": ", ".join(sorted(why))})
        return rows

    def compared(self) -> str:
        """The metric. Raises ValueError where there is none of this name, or no member is left to have one."""
        found = [m.metrics for m in self.members if not m.out]
        if not found:
            why = sorted({m.out for m in self.members})
            raise ValueError(f"sweep: all {len(self.members)} members are out ({', '.join(why)}), expected one left")
        names = [name for name in found[0] if all(name in metrics for metrics in found)]
        metric = self.metric or evaluation.criterion(names)
        if metric not in names:
            raise ValueError(f"metric={metric!r}: expected one of {', '.join(names)}{suggestion(metric, names)}")
        return metric

    def found(self) -> Sweep:
        """What there is to tell, once all is done."""
        table = []
        for m in self.members:
            row = {**self.settings[m.setting], "seed": m.config.seed, "epochs": m.epochs, **m.metrics, "out": m.out}
            table.append({**row, "directory": m.directory and str(m.directory), "replica": m.replica})
        order = self.ranking(rows := self.summary())
        best, metric = replace(self.cfg, **self.settings[order[0]]), self.compared()
        left = [m for m in self.members if m.setting == order[0] and not m.out]
        self.best = min(left, key=lambda m: m.metrics[metric], default=None)
        return Sweep(self.path, table, [rows[k] for k in order], metric, best)


def _place(run: RunDirectory, r: int, n: int) -> tuple[Path, int]:
    """Where replica r of n lies: the directory, of a rank if there are several, and the replica there."""
    world = ranks.place()[1]
    rank = next(k for k in range(world) if r < ranks.part(n, k).stop)
    return run.of_rank(rank) if world > 1 else run.path, r - ranks.part(n, rank).start


def _join(run: RunDirectory, members: list[Member], cfg: Config, given: list[dict[str, Any]]) -> None:
    """Write the checkpoint of a run that members of others go on in, from theirs."""
    saved = {path: RunDirectory(path).load() for path in {m.directory for m in members if m.directory}}
    parts = [(saved[m.directory], m.replica) for m in members if m.directory]
    one, tensors = parts[0][0], {}
    for name in one.tensors:
        if not name.startswith("generator."):
            tensors[name] = torch.cat([part.tensors[name][r : r + 1] for part, r in parts])
    for k, (part, r) in enumerate(parts):
        if (state := part.tensors.get(f"generator.{r}")) is not None:
            tensors[f"generator.{k}"] = state
    run.make()
    info = {**one.info, "config": cfg.to_dict(), "members": given, "metrics_bytes": 0, "stopped": False}
    checkpoint.save(run.newest, tensors, info, None)

"""Which weights a run keeps, when it ends before its last epoch, and weights that it begins with."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faults import tiny

from fastaae import Config, checkpoint, cli, evaluation, load, train
from fastaae.data import from_arrays
from fastaae.directory import RunDirectory
from fastaae.engine.step import Step, drawn
from fastaae.experiments import preset
from fastaae.run import keep, ranks, resume, training

X = np.random.default_rng(0).random((300, 16), np.float32)
Y = X[:, :4].argmax(1)
DATA = {"x": X[:200], "y": Y[:200], "x_test": X[200:], "y_test": Y[200:]}
FIELDS = {
    "hidden": (16,), "batch_size": 20, "epochs": 6, "log_every": 3, "seed": 3, "lr_decay_epochs": (3,),
    "input_noise": 0.1,
}  # fmt: skip
CFG = Config(**FIELDS, replicas=2, checkpoint_every=1)
SEMI = {
    "task": "semi_supervised",
    "n_labeled": 60,
    "replicas": 3,
    "batch_norm": "encoder",
    "lr_classification": 0.02,
    "seed": 6,
}
BEST = {**SEMI, "keep": "best"}
STEPS = 8  # of an epoch: 167 examples


def fit(directory, resumed=False, data=DATA, init=None, **fields):
    options = {"resume": directory} if resumed else {}
    cfg = replace(CFG, out_dir=None if resumed else str(directory), **fields)
    return train(cfg, data=data, progress=False, init=init, **options)


def tensors(directory):
    return checkpoint.load(directory / "checkpoint.safetensors").tensors


def own(model):
    """A model's weights and statistics by name, [1, ...]."""
    parts = {"encoder": model.encoder, "decoder": model.decoder, "heads": model.heads, "standard": model.scale}
    return {f"{name}.{k}": t for name, part in parts.items() if part for k, t in part.state().items()}


def same(a, b):
    return checkpoint.digest(own(a)) == checkpoint.digest(own(b))


def result(directory):
    """All that an undisturbed run leaves: what is resumed, the history, the summary."""
    texts = [(directory / name).read_text() for name in ("metrics.jsonl", "summary.json")]
    return checkpoint.digest(tensors(directory)), *texts


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    @functools.cache
    def run(changes):
        return fit(tmp_path_factory.mktemp("undisturbed") / "run", **dict(changes))

    return lambda **fields: run(tuple(fields.items()))


@pytest.fixture
def planted(monkeypatch):
    """Puts a table of metrics after epochs, [E, R], into the place of those that are computed."""

    def plant(table, name="valid_reconstruction"):
        epochs, evaluate, end = [], evaluation.evaluate, training.Training.end_epoch

        def ending(self, epoch):
            epochs.append(epoch)
            end(self, epoch)
            epochs.clear()

        def evaluated(models, data, split):
            return {name: [float(v) for v in table[epochs[0]]]} if epochs else evaluate(models, data, split)

        monkeypatch.setattr(training.Training, "end_epoch", ending)
        monkeypatch.setattr(evaluation, "evaluate", evaluated)

    return plant


# The metric


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["valid_reconstruction", "valid_error", "test_error"], "valid_error"),
        (["valid_reconstruction", "valid_nmi", "valid_cluster_error"], "valid_cluster_error"),
        (["valid_component_error", "valid_reconstruction"], "valid_reconstruction"),
    ],
)
def test_an_error_comes_before_the_reconstruction(names, found):
    assert evaluation.criterion(names) == evaluation.criterion(dict.fromkeys(reversed(names))) == found
    with pytest.raises(ValueError, match=r"^metrics test_error: expected one of valid_error, valid_cluster_error"):
        evaluation.criterion(["test_error"])


@pytest.mark.parametrize("fields", [{"keep": "best"}, {"patience": 3}], ids=str)
def test_without_a_metric_they_are_refused_before_anything_is_made(tmp_path, fields):
    name, value = next(iter(fields.items()))
    said = f"{name}={value!r}.*: expected validation examples( with labels)?: pass x_valid, or raise n_validation$"
    with pytest.raises(ValueError, match=said):
        fit(tmp_path / "run", **fields, n_validation=0)
    supervised = {"task": "supervised", **fields}
    with pytest.raises(ValueError, match=said):
        fit(tmp_path / "run", data={"x": X[:200], "y": Y[:200], "x_valid": X[200:]}, **supervised)
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected .*gan.* has no validation metric$"):
        replace(CFG, task="gan", input_noise=0.0, **fields)
    assert not any(tmp_path.iterdir())
    fit(tmp_path / "run", **supervised)


# The best weights


def test_best_weights_are_those_of_a_run_of_that_many_epochs(tmp_path, undisturbed):
    run = undisturbed(**BEST)
    errors, epochs = run.history["valid_error"], run.metrics["valid_best_epoch"]["replicas"]
    assert epochs == (errors.argmin(0) + 1).tolist() and len({*epochs, 6}) > 2, errors
    for r, epoch in enumerate(epochs):
        shorter = fit(tmp_path / f"{r}", **SEMI, epochs=epoch)
        assert same(run.models[r], shorter.models[r]) and same(load(run.directory, r), shorter.models[r])
        for name, metric in shorter.metrics.items():
            assert metric["replicas"][r] == run.metrics[name]["replicas"][r]
    assert run.metrics["valid_error"]["replicas"] == errors.min(0).tolist()
    summary = json.loads((run.directory / "summary.json").read_text())
    assert summary["metrics"] == run.metrics and summary["steps"] == 6 * STEPS
    last = undisturbed(**SEMI)
    state = tensors(run.directory)
    for name, t in tensors(last.directory).items():  # beside the best ones all is as ever, so that it can go on
        assert torch.equal(state.pop(name), t)
    assert {name.partition(".")[0] for name in state} == {"best"}
    last_weights = json.loads((last.directory / "summary.json").read_text())["weights_sha256"]
    best = {name.removeprefix("best."): t for name, t in state.items()}
    assert summary["weights_sha256"] == checkpoint.digest(best) != last_weights
    for name in ("reconstruction", "valid_error", "code_std"):
        assert np.array_equal(run.history[name], last.history[name])


def test_each_replica_keeps_the_first_of_its_own_best_epochs(tmp_path, planted, undisturbed):
    planted(np.array([[2.0, 9.0], [1.0, 9.0], [3.0, math.nan], [1.0, 5.0], [4.0, 5.0], [7.0, 6.0]]))
    run = fit(tmp_path, keep="best")
    assert run.metrics["valid_best_epoch"]["replicas"] == [2, 4]
    for r, epochs in enumerate((2, 4)):
        assert same(run.models[r], undisturbed(epochs=epochs).models[r])


@pytest.mark.parametrize("fields", [{"optimizer": "sgd"}, {"precision": "bf16"}, {"scale": "standard"}], ids=str)
def test_best_weights_of_other_kinds(tmp_path, planted, fields):
    table = np.array([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0]])
    short = fit(tmp_path / "short", epochs=2, **fields)
    planted(table)
    run = fit(tmp_path / "run", epochs=3, keep="best", **fields)
    assert same(run.models[0], short.models[0]) and not same(run.models[1], short.models[1])
    assert run.metrics["valid_best_epoch"]["replicas"] == [2, 3]


def test_everything_that_reads_a_run_takes_the_best(tmp_path, monkeypatch, capsys, planted):
    monkeypatch.chdir(tmp_path)
    planted(np.array([[3, 3], [1, 2], [2, 1], [4, 4], [5, 5]]))
    np.savez("data.npz", **DATA)
    words = "--dataset data.npz --hidden 16 --batch-size 20 --epochs 5 --keep best --out-dir run --replicas 2 --quiet"
    assert cli.main(["train", *words.split()]) == 0
    run = json.loads(Path("run/summary.json").read_text())["metrics"]
    capsys.readouterr()
    assert cli.main(["evaluate", "run"]) == 0
    told = {k: v for line in capsys.readouterr().out.splitlines() for k, v in json.loads(line).items()}
    assert told == {name: metric for name, metric in run.items() if name != "valid_best_epoch"}
    assert run["valid_best_epoch"]["replicas"] == [2, 3]
    assert cli.main("sample run --n 9 --replica 1 --out s.npy".split()) == 0
    assert np.array_equal(np.load("s.npy"), load("run", 1).sample(9, 0))
    best = {name.removeprefix("best."): t[1:2] for name, t in tensors(Path("run")).items() if name.startswith("best.")}
    assert {name for name in best if not name.startswith("discriminator")} == {*own(load("run", 1))}
    assert all(torch.equal(t, best[name]) for name, t in own(load("run", 1)).items())
    load("run", 1).save("model")
    assert same(load("model"), load("run", 1))


def test_what_is_stopped_within_the_first_epoch_has_the_weights_it_had_then(tmp_path):
    def fitted(directory, **fields):
        cfg = replace(CFG, out_dir=str(directory), **fields)
        return train(cfg, DATA, progress=False, on_log=lambda row: row["step"] == 6)

    run, plain = fitted(tmp_path / "run", keep="best", patience=1), fitted(tmp_path / "plain")
    assert "valid_best_epoch" not in run.metrics and run.metrics == plain.metrics
    assert (
        same(load(run.directory, 1), plain.models[1])
        and tensors(run.directory).keys() == tensors(plain.directory).keys()
    )


def test_a_restart_forgets_what_came_after_the_checkpoint(tmp_path, planted, undisturbed, monkeypatch):
    call, spoilt = Step.__call__, []

    def spoiling(self):
        call(self)
        if self.batches.count[1] == 3 * STEPS + 2 and not spoilt:
            spoilt.append(self.networks["decoder"].weights[0][0, 0, 0].fill_(math.nan))
            table[2:] = 0.9  # the third epoch once more

    table = np.array([[0.7] * 2, [0.5] * 2, [0.1] * 2, [0.9] * 2, [0.8, 0.4], [0.8, 0.8]])
    planted(table)
    monkeypatch.setattr(Step, "__call__", spoiling)
    with pytest.warns(UserWarning, match="restart 1 of 3"):
        run = fit(tmp_path, keep="best", checkpoint_every=2, on_divergence="restart", patience=4)
    assert run.metrics["valid_best_epoch"]["replicas"] == [2, 2] and spoilt
    assert len(run.history["epoch"]) == 6  # four epochs are no better than the second
    for r in range(2):
        assert same(run.models[r], undisturbed(epochs=2).models[r])


def test_a_restart_from_the_start_has_no_best_yet(tmp_path, monkeypatch):
    call, spoilt = Step.__call__, []

    def spoiling(self):
        call(self)
        if self.batches.count[1] == STEPS + 2 and not spoilt:
            spoilt.append(self.networks["decoder"].weights[0][0, 0, 0].fill_(math.nan))

    monkeypatch.setattr(Step, "__call__", spoiling)
    with pytest.warns(UserWarning, match="restart 1 of 3"):
        run = fit(tmp_path, keep="best", checkpoint_every=3, on_divergence="restart", epochs=3)
    history = run.history["valid_reconstruction"]
    assert run.metrics["valid_best_epoch"]["replicas"] == (history.argmin(0) + 1).tolist()
    assert run.metrics["valid_reconstruction"]["replicas"] == history.min(0).tolist()


# Kills: where a process is killed in a run of six epochs of eight steps

PLACES = {
    "step": (Step, "__call__"), "evaluation": (evaluation, "evaluate"), "row": (RunDirectory, "append"),
    "update": (keep.Keep, "update"), "save": (resume.Checkpoints, "save"), "rename": (checkpoint, "sync_folder"),
    "finish": (keep.Keep, "finish"), "json": (RunDirectory, "write_json"),
    "weights": (resume.Checkpoints, "leave_weights"), "file": (checkpoint, "save"),
}  # fmt: skip


def train_until_killed(config, place, nth, after):
    """Train, and be killed before or after the n-th call of a function; in a process of its own."""
    (owner, name), calls = PLACES[place], []
    call = getattr(owner, name)

    def acting(*args, **options):
        calls.append(0)
        if len(calls) == nth and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = call(*args, **options)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, acting)
    train(Config.from_json(config), progress=False)


@pytest.fixture
def killed(tmp_path):
    """Runs a config in a process until it is killed at a place; returns the directory."""

    def run(place, nth, after=False, **fields):
        np.savez(tmp_path / "data.npz", **DATA)
        cfg = replace(CFG, dataset=str(tmp_path / "data.npz"), **fields)
        (tmp_path / "config.json").write_text(json.dumps(cfg.to_dict() | {"out_dir": str(tmp_path / "run")}))
        done = tiny.call(tmp_path, train_until_killed, "config.json", place, nth, after)
        assert done == -signal.SIGKILL, tiny.said(tmp_path)
        return tmp_path / "run"

    return run


@pytest.mark.parametrize(
    "place",
    [
        ("step", 2 * STEPS + 3), ("step", 3 * STEPS), ("evaluation", 4), ("row", 12), ("update", 3, True), ("save", 3),
        ("save", 3, True), ("rename", 5), ("finish", 1, True), ("json", 2), ("json", 2, True),
    ],
    ids=lambda place: "-".join(map(str, place)),
)  # fmt: skip
def test_killed_and_resumed_it_is_the_undisturbed_run(killed, undisturbed, place):
    fields = {**BEST, "checkpoint_every": 2, "patience": 50}
    directory = killed(*place, **fields)
    train(resume=directory, progress=False)
    assert result(directory) == result(undisturbed(**fields).directory)
    assert checkpoint.digest(own(load(directory, 1))) == checkpoint.digest(own(undisturbed(**BEST).models[1]))


PATIENT = {**SEMI, "epochs": 40, "patience": 3, "keep": "best", "lr_decay_epochs": ()}


@pytest.mark.parametrize("place", [("save", 2, True), ("step", 37), ("update", 6, True), ("finish", 1), ("save", 9)])
def test_patience_survives_a_kill(killed, undisturbed, place):
    whole = undisturbed(**PATIENT)
    assert 5 < len(whole.history["epoch"]) < 40
    directory = killed(*place, **PATIENT)
    again = train(resume=directory, progress=False)
    assert result(directory)[1:] == result(whole.directory)[1:]
    assert len(again.history["epoch"]) == len(whole.history["epoch"])
    assert {n: t for n, t in tensors(directory).items()}.keys() == tensors(whole.directory).keys()
    assert checkpoint.digest(tensors(directory)) == checkpoint.digest(tensors(whole.directory))


# Several starts, of which the best goes on

STARTS = {**BEST, "start_epochs": (1, 2, 4), "average": 0.9, "lr_decay_epochs": (5,)}


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"optimizer": "sgd"}, {"precision": "bf16"}, {"scale": "standard"}, {"start_epochs": (3,)},
        {"task": "embedding", "batch_norm": "none"},
    ],
    ids=str,
)  # fmt: skip
def test_each_start_is_a_step_of_its_own(tmp_path, fields):
    """Longhand: where the config has a start a new step is made, with nothing learned and its clock at zero."""
    run = fit(tmp_path, **STARTS | fields)
    plain = replace(run.config, out_dir=None, start_epochs=(), keep="last")
    members, data, _ = resume.begin(plain, DATA, None)
    step, losses, after = Step(plain, data, "cpu", None, members), run.history["valid_error"], []
    for epoch in range(plain.epochs):
        if epoch in run.config.start_epochs:
            before, step = step, Step(plain, data, "cpu", None, members)
            if epoch == run.config.start_epochs[-1]:
                ends = losses[:epoch].argmin(0)
                new = {n: torch.stack([after[k][n][r] for r, k in enumerate(ends)]) for n in step.parameters()}
            else:
                networks, heads = drawn(members, step.wiring, step.terms, epoch)
                parts = {**networks, "heads": heads}
                new = {f"{part}.{n}": t for part in parts if parts[part] for n, t in parts[part].state().items()}
            assert (new["decoder.0.weight"] != step.parameters()["decoder.0.weight"]).any()
            for name, t in new.items():
                step.parameters()[name].copy_(t)
            for network in step.networks.values():
                network.refresh()
            for g, had in zip(step.batches.generators, before.batches.generators, strict=True):
                g.set_state(had.get_state())
        step.start_epoch(epoch)
        for _ in range(STEPS):
            step.slot.zero_()
            step()
        after.append({n: t.clone() for n, t in step.parameters().items()})
    state = tensors(tmp_path)
    assert all(torch.equal(t, state[name]) for name, t in step.state().items())
    kept = losses.argmin(0)
    assert run.metrics["valid_best_epoch"]["replicas"] == (kept + 1).tolist()
    assert all(torch.equal(state[f"best.{n}"][r], after[k][n][r]) for r, k in enumerate(kept) for n in after[0])


def test_a_start_is_of_its_replica_alone(tmp_path, undisturbed):
    for r in range(3):
        alone = fit(tmp_path / f"{r}", **STARTS | {"seed": STARTS["seed"] + r, "replicas": 1})
        for name in ("valid_error", "reconstruction"):
            assert np.allclose(alone.history[name][:, 0], undisturbed(**STARTS).history[name][:, r], 1e-6, 0)


def test_the_best_of_the_starts_goes_on(tmp_path, planted, monkeypatch):
    begun, restore = {}, Step.restore

    def restored(self, state, done):
        restore(self, state, done)
        begun[done // STEPS] = {name: t.clone() for name, t in self.parameters().items()}

    monkeypatch.setattr(Step, "restore", restored)
    planted(np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 3.0], [9.0, 9.0], [8.0, 8.0], [7.0, 0.5]]))
    run = fit(tmp_path / "run", keep="best", start_epochs=(1, 2, 3))
    assert [*begun] == [1, 2, 3] and run.metrics["valid_best_epoch"]["replicas"] == [2, 6]
    ends = [fit(tmp_path / f"{k}", keep="best", start_epochs=(1, 2)[:k] + (9,) * (k < 2), epochs=k + 1) for k in (0, 1)]
    for r, end in enumerate((ends[1], ends[0])):
        state = tensors(end.directory)
        assert all(torch.equal(t[r], state[name][r]) for name, t in begun[3].items())


@pytest.mark.parametrize("step", [3, 8, 9, 15, 16, 19, 32, 35, 47])
def test_stopped_within_a_start_it_goes_on_to_the_same_bits(tmp_path, undisturbed, step):
    def stopping(row):
        return row["step"] >= step

    whole = undisturbed(**STARTS, log_every=1)
    cfg = replace(CFG, **STARTS, out_dir=str(tmp_path / "run"), log_every=1)
    train(cfg, DATA, progress=False, on_log=stopping)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == step
    train(resume=tmp_path / "run", data=DATA, progress=False)
    assert result(tmp_path / "run") == result(whole.directory)


@pytest.mark.parametrize(
    "place",
    [("step", STEPS + 1), ("save", 1, True), ("save", 2), ("step", 2 * STEPS + 3), ("save", 4, True), ("update", 4)],
    ids=lambda place: "-".join(map(str, place)),
)
def test_killed_about_a_start_it_goes_on_to_the_same_bits(killed, undisturbed, place):
    directory = killed(*place, **STARTS)
    train(resume=directory, progress=False)
    assert result(directory) == result(undisturbed(**STARTS).directory)


def test_a_run_that_ends_before_its_last_start_has_the_best_of_those_it_had(tmp_path):
    run = fit(tmp_path, **STARTS | {"start_epochs": (1, 2, 9), "epochs": 3, "lr_decay_epochs": ()})
    assert run.metrics["valid_best_epoch"]["replicas"] == (run.history["valid_error"].argmin(0) + 1).tolist()


# Patience

WAITS = [  # what an epoch brings, patience, and the epochs that a run of six has then
    ([5, 4, 3, 2, 1, 0], 1, 6),
    ([5, 4, 4, 3, 2, 1], 1, 3),
    ([5, 4, 4, 3, 2, 1], 2, 6),
    ([5, 6, 7, 8, 1, 1], 3, 4),
    ([5, 6, 4, 6, 5, 4], 3, 6),
    ([5, math.nan, 4, math.nan, 7, 1], 2, 5),
    ([5, math.inf, 6, 4, 1, 1], 2, 3),
    ([math.nan, math.nan, 4, 5, 3, 1], 2, 2),
    ([5, 5, 5, 5, 5, 5], 5, 6),
    ([5, 5, 5, 5, 5, 5], 4, 5),
]


@pytest.mark.parametrize(("values", "patience", "epochs"), WAITS)
def test_patience_ends_where_it_should(tmp_path, planted, undisturbed, values, patience, epochs):
    planted(np.array(values)[:, None] + [1.0, -1.0])  # whose mean they are
    run = fit(tmp_path, patience=patience)
    assert run.history["epoch"].tolist() == list(range(1, epochs + 1))
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == epochs * STEPS
    assert RunDirectory(tmp_path).load().info["step"] == epochs * STEPS
    assert all(same(m, n) for m, n in zip(run.models, undisturbed(epochs=epochs).models, strict=True))


def test_the_mean_over_replicas_decides(tmp_path, planted):
    planted(np.array([[1.0, 9.0], [9.0, 0.5], [0.1, 9.5], [0.0, 9.6], [0.0, 9.6], [0.0, 0.0]]))
    for patience, epochs in ((4, 6), (3, 5), (2, 4)):
        assert len(fit(tmp_path / f"{patience}", patience=patience).history["epoch"]) == epochs


def test_a_run_that_patience_has_ended_goes_on_with_more_of_it(tmp_path, planted, undisturbed):
    planted(np.array([5, 4, 4.5, 4.6, 3, 2])[:, None] + [0.0, 1.0])
    fit(tmp_path / "run", patience=1)
    ended = result(tmp_path / "run")[:2]
    assert len(RunDirectory(tmp_path / "run").history()["epoch"]) == 3
    fit(tmp_path / "run", True, patience=1, epochs=9)  # at once
    assert result(tmp_path / "run")[:2] == ended
    fit(tmp_path / "run", True, patience=2)
    assert len(RunDirectory(tmp_path / "run").history()["epoch"]) == 4
    fit(tmp_path / "run", True, patience=None)
    assert result(tmp_path / "run")[0] == result(undisturbed().directory)[0]
    fit(tmp_path / "run", True, patience=1)  # less, and again at once
    assert len(RunDirectory(tmp_path / "run").history()["epoch"]) == 6


def test_keep_stays_what_it_was(tmp_path, undisturbed):
    for before, after in (("last", "best"), ("best", "last"), ("last", "final")):
        directory = undisturbed(keep=before).directory
        with pytest.raises(ValueError, match=f"keep was '{before}', got '{after}'; expected the same"):
            train(replace(CFG, keep=after, epochs=9), data=DATA, resume=directory, progress=False)


def test_without_either_nothing_is_evaluated_or_kept(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(keep, "criterion", None)
    fit(tmp_path, n_validation=0, epochs=1)
    fit(tmp_path, True, n_validation=0, epochs=2)
    assert not any(name.startswith("best") for name in tensors(tmp_path))


# The weights alone


def test_final_leaves_the_weights_of_all_models_alone(tmp_path, undisturbed):
    run, last = fit(tmp_path / "run", keep="final", **SEMI), undisturbed(**SEMI)
    assert {p.name for p in run.directory.iterdir()} - {".lock"} == {
        "checkpoint.safetensors", "config.json", "metrics.jsonl", "summary.json",
    }  # fmt: skip
    assert tensors(run.directory).keys() == own(run.models[0]).keys()
    for r in range(3):
        assert same(load(run.directory, r), last.models[r]) and same(run.models[r], last.models[r])
    assert (run.directory / "summary.json").read_bytes() == (last.directory / "summary.json").read_bytes()
    said = "holds a model, expected the checkpoint of a run (keep='final' leaves none; see init of train)"
    with pytest.raises(checkpoint.CheckpointError, match=re.escape(said)):
        train(resume=run.directory, data=DATA)
    again = fit(tmp_path / "again", init=[load(run.directory, r) for r in range(3)], **SEMI)
    assert not same(again.models[0], run.models[0])


def test_the_command_line_reads_what_final_leaves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", **DATA)
    words = "--dataset data.npz --hidden 16 --batch-size 20 --epochs 1 --keep final --out-dir runs/a --quiet"
    assert cli.main(["train", *words.split()]) == 0
    for command in ("evaluate runs/a", "sample runs/a --n 2 --out s.npy", "encode runs/a data.npz --out z.npy"):
        assert cli.main(command.split()) == 0
    assert cli.main(["list", "runs"]) == 0 and "1/1" in capsys.readouterr().out
    assert cli.main("resume runs/a --epochs 2".split()) == 2
    assert "keep='final' leaves none" in capsys.readouterr().err


@pytest.mark.parametrize("place", [("weights", 1), ("file", 7), ("step", 9), ("json", 2)])
def test_final_is_reached_after_a_kill(killed, tmp_path, place):
    directory = killed(*place, keep="final")
    assert len(tensors(directory)) > 20 and len(list(directory.glob("*previous*"))) == (place != ("file", 7)) * (
        place[1] != 9
    )
    run = train(resume=directory, progress=False)
    other = fit(tmp_path / "other", keep="final")
    assert tensors(directory).keys() == own(run.models[0]).keys()
    assert result(directory)[::2] == result(other.directory)[::2]


def test_a_rank_whose_others_have_failed_keeps_what_goes_on(tmp_path):
    def failed():
        raise RuntimeError("rank 1 failed")

    heartbeat = SimpleNamespace(beat=lambda done: None, wait=failed)
    cfg = replace(CFG, out_dir=str(tmp_path), keep="final", epochs=1)
    with pytest.raises(RuntimeError, match="rank 1 failed"):
        training._train_replicas(*resume.begin(cfg, DATA, None), False, None, heartbeat, None, None)
    assert fit(tmp_path, True, keep="final", epochs=2).history["epoch"].tolist() == [1, 2]


# Ranks

RANKS = """
import json, sys
import numpy as np, torch
from fastaae import Config, evaluation, load, train
from fastaae.run import training
from test_keep import DATA, FIELDS

torch.distributed.init_process_group("gloo")
folder, rank = sys.argv[1], torch.distributed.get_rank()
table = [[5, 4, 3, 2, 1, 0], [5, 6, 7, 1, 1, 1]][rank]  # by which the second rank ends after three epochs
evaluate, end, epochs = evaluation.evaluate, training.Training.end_epoch, []
training.Training.end_epoch = lambda self, epoch: (epochs.append(epoch), end(self, epoch), epochs.clear())
evaluation.evaluate = lambda models, data, split: (
    {"valid_reconstruction": [table[epochs[0]]] * len(models)} if epochs else evaluate(models, data, split)
)
inits = [load(f"{folder}/model{r}") for r in range(3)]
said = []
for name, keep in (("best", "best"), ("final", "final")):
    cfg = Config(**FIELDS, replicas=3, keep=keep, patience=2, out_dir=f"{folder}/{name}")
    run = train(cfg, data=DATA, progress=False, init=inits)
    said.append(run.metrics)
try:
    train(resume=f"{folder}/final", data=DATA, progress=False)
except (ValueError, RuntimeError) as error:
    said.append(str(error))
again = train(resume=f"{folder}/best", data=DATA, progress=False)
said.append(again.metrics)
with open(f"{folder}/said{rank}.json", "w") as file:
    json.dump(said, file)
torch.distributed.destroy_process_group()
"""


def test_ranks_keep_and_end_by_themselves(tmp_path, two_ranks, planted):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    inits = fit(tmp_path / "inits", seed=50, replicas=3, epochs=1).models
    for r, model in enumerate(inits):
        model.save(tmp_path / f"model{r}")
    done = two_ranks(script, tmp_path, patience=120)
    assert done.returncode == 0, done.stderr
    (best, final, refused, again), other = (json.loads((tmp_path / f"said{k}.json").read_text()) for k in range(2))
    assert "keep='final' leaves none" in refused and (best, final, again) == (other[0], other[1], other[3])
    assert best["valid_best_epoch"]["replicas"] == [6, 1, 1] and again == best
    assert json.loads((tmp_path / "best/summary.json").read_text())["metrics"] == best
    ends = [len(RunDirectory(tmp_path / f"best/rank-{k}").history()["epoch"]) for k in range(2)]
    assert ends == [6, 3]
    alone = fit(tmp_path / "second", seed=4, replicas=2, epochs=1, init=inits[1:])
    for r in range(2):
        assert same(load(tmp_path / "best/rank-1", r), alone.models[r])
    last = fit(tmp_path / "third", seed=4, replicas=2, epochs=3, init=inits[1:])
    for r in range(2):
        assert same(load(tmp_path / "final/rank-1", r), last.models[r])
        assert final["test_reconstruction"]["replicas"][1 + r] == last.metrics["test_reconstruction"]["replicas"][r]
    for k in range(2):
        assert not list((tmp_path / f"final/rank-{k}").glob("*previous*"))


def test_ranks_share_out_only_as_many_models_as_replicas(monkeypatch):
    step = Step(replace(CFG, replicas=2), from_arrays(DATA), "cpu")
    model = load(Path(__file__).parent / "golden" / "format-1")
    monkeypatch.setattr(ranks, "place", lambda: (1, 2))
    with pytest.raises(ValueError, match="expected a Model, which fastaae.load gives, or one for each replica"):
        keep.warm_start(step, [model] * 2, False, {})


# Weights to begin with

STILL = {
    "lr_reconstruction": 1e-37,
    "lr_adversarial": 1e-37,
    "lr_classification": 1e-37,
    "optimizer": "sgd",
    "epochs": 1,
}
KINDS = [
    {}, SEMI, {"task": "supervised"}, {"task": "clustering", "n_clusters": 4}, {"task": "embedding"},
    {"task": "embedding", "fixed_heads": 3.0, "n_clusters": 2}, {"task": "gan", "input_noise": 0.0},
    {"posterior": "gaussian"}, {"posterior": "universal", "noise_layer": 1}, {"scale": "standard"},
    {"precision": "bf16"}, {"precision": "fp64"}, {"batch_norm": "autoencoder"},
]  # fmt: skip


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_a_run_begins_with_the_weights_of_a_model(tmp_path, fields):
    model = fit(tmp_path / "model", **{**fields, "replicas": 2, "epochs": 1}).models[1]
    model.save(tmp_path / "file")
    run = fit(tmp_path / "run", init=load(tmp_path / "file"), **{**fields, **STILL, "seed": 8, "replicas": 3})
    for m in run.models:
        found, expected = own(m), own(model)
        assert found.keys() == expected.keys()
        for name, t in found.items():
            if "running" not in name:  # which follow the first steps
                assert torch.allclose(t, expected[name], rtol=0, atol=1e-30), name
    state = tensors(run.directory)
    others = [t for name, t in state.items() if re.fullmatch(r"discriminator\..*weight", name)]
    assert others and all(not torch.equal(t[0], t[1]) for t in others)  # drawn by each replica's own seed


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_statistics_and_shadows_are_those_of_the_model(tmp_path, precision):
    fields = {"batch_norm": "autoencoder"} if precision != "bf16" else {}
    models = fit(tmp_path, **fields, epochs=2).models
    step = Step(replace(CFG, **fields, precision=precision), from_arrays(DATA), "cpu")
    random = {name: t.clone() for name, t in step.state().items()}
    said = keep.warm_start(step, models, False, {})
    for r, model in enumerate(models):
        for name, t in own(model).items():
            assert torch.equal(step.parameters()[name][r : r + 1], t.to(step.parameters()[name].dtype)), name
            assert not torch.equal(step.parameters()[name], random.pop(name) if r else random[name]), name
    for network in step.networks.values():
        for weight, shadow in zip(network.weights, network.shadows, strict=True):
            assert torch.equal(shadow, weight.to(shadow.dtype)) and (shadow.dtype == torch.bfloat16) == (
                precision == "bf16"
            )
    assert random and all(torch.equal(t, step.state()[name]) for name, t in random.items())  # nothing else
    assert re.fullmatch("[0-9a-f]{64}", said["init"]["sha256"])
    again = keep.warm_start(
        Step(replace(CFG, **fields, seed=5, precision=precision), from_arrays(DATA), "cpu"), models, False, {}
    )
    assert said == again != keep.warm_start(step, models[::-1], False, {})


def test_a_model_whose_modules_ask_for_gradients_may_be_one(tmp_path, undisturbed):
    model = load(undisturbed().directory)
    encoder, decoder = model.encoder_module(), model.decoder_module()
    assert all(p.requires_grad for p in (*encoder.parameters(), *decoder.parameters()))
    run = fit(tmp_path, init=model, **STILL)
    assert same(run.models[0], model)


def test_the_scale_is_that_of_the_data_given_now(tmp_path):
    model = fit(tmp_path / "model", scale="standard", epochs=1).model
    data = {name: 3 * x if name.startswith("x") else x for name, x in DATA.items()}
    run = fit(tmp_path / "run", data=data, scale="standard", init=model, **STILL)
    assert torch.allclose(own(run.model)["standard.std"], 3 * own(model)["standard.std"])
    np.testing.assert_allclose(run.model.encode(data["x"][:9]), model.encode(X[:9]), rtol=1e-4, atol=1e-5)


def test_fixed_heads_stay_what_the_config_says(tmp_path):
    fields = {"task": "embedding", "n_clusters": 2}
    model = fit(tmp_path / "model", **fields, fixed_heads=3.0, epochs=1).model
    run = fit(tmp_path / "run", **fields, fixed_heads=7.0, init=model, **STILL)
    assert torch.equal(own(run.model)["heads.weight"][0], 7 * torch.eye(2))
    assert torch.equal(own(run.model)["encoder.0.weight"], own(model)["encoder.0.weight"])


def test_a_run_that_began_with_a_model_says_so_and_is_resumed_bit_for_bit(tmp_path, monkeypatch, capsys):
    init = fit(tmp_path / "model", epochs=2).models
    whole = fit(tmp_path / "whole", init=init)
    assert not same(whole.model, fit(tmp_path / "plain").model)
    fit(tmp_path / "run", init=init, epochs=1)
    fit(tmp_path / "run", True)
    assert result(tmp_path / "run") == result(whole.directory)
    said = [json.loads((tmp_path / name / "config.json").read_text()).get("init") for name in ("run", "whole", "plain")]
    assert said[0] == said[1] and len(said[0]["sha256"]) == 64 and said[2] is None
    assert cli.main(["train", "--config", str(tmp_path / "run/config.json")]) == 2
    assert "its run began with a model's weights: pass init= to fastaae.train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "init", "said"),
    [
        ({"hidden": (8,)}, 1, r"init: encoder.0.weight of model 0 has shape \[16, 16\], .* needs \[8, 16\]"),
        ({"hidden": (16, 16)}, 1, r"init: encoder.1.weight of model 0 has shape \[2, 16\], .* needs \[16, 16\]"),
        ({"batch_norm": "encoder"}, 1, r"init: encoder.0.scale of model 0 has shape none, .* needs \[1, 16\]"),
        ({"task": "gan", "input_noise": 0.0}, 1, r"init: encoder.0.weight of model 0 .*, the run's config needs none"),
        ({"task": "embedding"}, 1, r"init: encoder.1.weight of model 0 has shape \[2, 16\], .* needs \[6, 16\]"),
        ({"replicas": 3}, 2, r"init=\[Model .*: expected a Model, which fastaae.load gives, or one for each replica"),
        ({}, [], r"init=\[\]: expected a Model, .*"),
        ({}, "runs/a", "init='runs/a': expected a Model, .*"),
        ({}, np.zeros(2), r"init=array\(\[0., 0.\]\): expected a Model, .*"),
        ({}, ..., "init=.*: expected None with resume, where the run's own weights go on"),
    ],
    ids=["width", "depth", "norms", "no-encoder", "heads", "number", "none", "path", "array", "resume"],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path, undisturbed, fields, init, said):
    run = undisturbed()
    if init is ...:
        with pytest.raises(ValueError, match=f"^{said}$"):
            train(resume=run.directory, data=DATA, init=run.models)
        return
    given = {1: run.model, 2: run.models}[init] if isinstance(init, int) else init
    with pytest.raises(ValueError, match=f"^{said}$") as refused:
        fit(tmp_path / "run", init=given, **fields)
    assert "\n" not in str(refused.value) and not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="train: cfg=None"):
        train(init=run.model)


# The command line


def test_flags_of_the_command_line(tmp_path, monkeypatch, capsys, planted):
    monkeypatch.chdir(tmp_path)
    planted(np.array([5, 4, 4.5, 4.6, 4.7, 3, 2, 6])[:, None])
    assert cli.main("train digits --keep best --patience 3 --epochs 8 --hidden 8 --out-dir run".split()) == 0
    assert re.search(r"^best_epoch +2$", capsys.readouterr().out, re.MULTILINE)
    run = RunDirectory("run")
    assert (run.load().info["config"]["keep"], run.load().info["config"]["patience"]) == ("best", 3)
    assert len(run.history()["epoch"]) == 5
    assert cli.main("resume run --quiet".split()) == 0 and len(run.history()["epoch"]) == 5
    capsys.readouterr()
    assert cli.main("resume run --patience None".split()) == 0 and len(run.history()["epoch"]) == 8
    assert re.search(r"^best_epoch +7$", capsys.readouterr().out, re.MULTILINE)
    assert cli.main("train mnist-gan --patience 3".split()) == 2
    assert "patience=3: expected None: a gan has no validation metric" in capsys.readouterr().err
    assert cli.main("resume run --keep last".split()) == 2


def test_presets_keep_what_they_kept():
    assert (preset("mnist-100").keep, preset("mnist-100").patience) == ("last", None)


def test_a_model_of_other_labels_or_scale_is_no_beginning(tmp_path):
    y = np.arange(len(X)) % 3
    words = np.array(["x", "y", "z"])[y]
    model = fit(tmp_path / "a", data=(X, words), epochs=1, **SEMI).model
    with pytest.raises(ValueError, match="init: model 0 has classes=.*, expected the run's"):
        fit(tmp_path / "b", data=(X, np.array(["a", "b", "c"])[y]), epochs=1, init=model, **SEMI)
    with pytest.raises(ValueError, match="init: model 0 has scale='unit', expected the run's, 'standard'"):
        fit(tmp_path / "b", data=(X, words), epochs=1, init=model, scale="standard", **SEMI)

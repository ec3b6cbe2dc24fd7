from __future__ import annotations

import ast
import contextlib
import errno
import functools
import io
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faults.tiny import read_json, weights

from fastaae import Config, Interrupted, NonFiniteError, WriteError, checkpoint, load, train
from fastaae.data import from_arrays
from fastaae.directory import RunDirectory
from fastaae.engine import phases, wiring
from fastaae.engine.step import Step
from fastaae.experiments import PAPER
from fastaae.kernels import onednn
from fastaae.run import progress as shown_progress
from fastaae.run import provenance, ranks, resume, training, watch

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (360, 16), dtype=np.uint8)
ALL = BYTES / np.float32(255)
X, X_TEST = ALL[:300], ALL[300:]
Y, Y_TEST = np.split(ALL[:, :4].argmax(1), [300])
DATA = {"x": X, "y": Y, "x_test": X_TEST, "y_test": Y_TEST}

# Five steps an epoch. Everything that could break resuming matters to its weights: noise, decay in the second epoch,
# two replicas. Losses are logged after steps 2, 4 and 5 of an epoch.
FIELDS = {
    "hidden": (16, 16), "style_dim": 2, "init_std": 0.3, "input_noise": 0.1, "lr_decay_epochs": (1,), "epochs": 2,
    "batch_size": 50, "replicas": 2, "log_every": 2, "lr_reconstruction": 0.003, "lr_adversarial": 0.02,
    "lr_classification": 0.05,
}  # fmt: skip
CFG = Config(**{**PAPER, **FIELDS})
ADAM = {"optimizer": "adam", "lr_reconstruction": 1e-3, "lr_adversarial": 2e-3, "lr_classification": 3e-3}
SEMI = {"task": "semi_supervised", "n_labeled": 90}
TRY = "; try optimizer='adam', init_std=0.05, lr_reconstruction=0.001, lr_adversarial=0.0003"
GAME = ("told_apart_z", "told_apart_y", "dead_units", "code_mean", "code_std")


def fit(directory, data=DATA, resume=False, progress=False, **fields):
    cfg = replace(CFG, out_dir=str(directory), **fields)
    return train(cfg, data=data, resume=directory if resume else None, progress=progress)


def result(directory):
    """What has to be equal, bit for bit: weights, all other state, the step."""
    tensors, info = checkpoint.load(directory / "checkpoint.safetensors")
    return weights(directory), checkpoint.digest(tensors), info["step"]


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def validated(directory):
    return [row["epoch"] for row in rows(directory) if "valid_reconstruction" in row]


def saved_step(directory):
    return checkpoint.load(directory / "checkpoint.safetensors")[1]["step"]


def total_losses(directory):
    """The logged means times the steps they are over, summed: the same however often they are logged."""
    history = RunDirectory(directory).history()
    steps = np.diff(history["step"], prepend=0)
    return [steps @ history[phase] for phase in wiring.PHASES["unsupervised"]]


@contextlib.contextmanager
def during_step(k, act):
    """Call act(step) at the end of the k-th step that is run inside."""
    call, count = Step.__call__, itertools.count(1)

    def acting(self):
        call(self)
        if next(count) == k:
            act(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", acting)
        yield


def send(*signals, gap=0.0):
    return lambda step: [time.sleep(gap * k) or os.kill(os.getpid(), s) for k, s in enumerate(signals)]


@pytest.fixture
def python_signals():
    """Python's own handlers, whatever this process inherited."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {s: signal.signal(s, handler) for s, handler in own.items()}
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Directory of a run of CFG with some fields changed that nothing happened to."""

    @functools.cache
    def run(changes=()):
        directory = tmp_path_factory.mktemp("undisturbed") / "run"
        fit(directory, **dict(changes))
        return directory

    return lambda **fields: run(tuple(fields.items()))


# Resuming


@pytest.mark.parametrize("task", [{}, SEMI], ids=["unsupervised", "semi-supervised"])
@pytest.mark.parametrize("optimizer", [{}, ADAM], ids=["sgd", "adam"])
def test_one_epoch_and_one_more_are_two(tmp_path, undisturbed, task, optimizer):
    fields = {**task, **optimizer}
    fit(tmp_path, **fields, epochs=1)
    first = result(tmp_path)
    fit(tmp_path, resume=True, **fields, epochs=2)
    assert result(tmp_path) == result(undisturbed(**fields)) != first
    assert (tmp_path / "metrics.jsonl").read_text() == (undisturbed(**fields) / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("k", "fields", "signum"),
    [
        (3, {}, signal.SIGINT),
        (3, {**SEMI, **ADAM}, signal.SIGINT),
        (4, SEMI, signal.SIGTERM),
        (5, {}, signal.SIGINT),
        (6, ADAM, signal.SIGTERM),
        (9, {}, signal.SIGINT),
        (7, {}, signal.SIGHUP),
        (3, {"checkpoint_every": 2}, signal.SIGINT),
        (5, {"checkpoint_every": 2}, signal.SIGINT),
    ],
    ids=["between-logs", "between-logs-adam-semi", "at-a-log", "last-of-epoch", "first-of-epoch", "last-but-one",
         "hangup", "before-any-checkpoint", "last-of-epoch-without-checkpoint"],
)  # fmt: skip
def test_signal_saves_at_the_step_and_resume_ends_the_same(tmp_path, undisturbed, python_signals, k, fields, signum):
    with during_step(k, send(signum)), pytest.raises(Interrupted, match=f"after step {k};") as stopped:
        fit(tmp_path, **fields)
    assert stopped.value.signum == signum
    assert saved_step(tmp_path) == k
    assert not (tmp_path / "summary.json").exists()
    assert validated(tmp_path) == list(range(k // 5))
    fit(tmp_path, resume=True, **fields)
    assert result(tmp_path) == result(undisturbed(**fields))
    assert validated(tmp_path) == [0, 1]
    np.testing.assert_allclose(total_losses(tmp_path), total_losses(undisturbed(**fields)), rtol=1e-12)


def test_signal_at_every_step_of_a_run(tmp_path, undisturbed, python_signals):
    for k in range(1, 10):
        with during_step(1, send(signal.SIGINT)), pytest.raises(Interrupted):
            fit(tmp_path, resume=k > 1)
        assert saved_step(tmp_path) == k
    fit(tmp_path, resume=True)
    assert result(tmp_path) == result(undisturbed())
    assert validated(tmp_path) == [0, 1]


def test_signal_during_the_very_last_step_lets_the_run_finish(tmp_path, undisturbed, python_signals):
    with during_step(10, send(signal.SIGINT)):
        fit(tmp_path)
    assert result(tmp_path) == result(undisturbed())
    assert validated(tmp_path) == [0, 1]


def test_second_signal_acts_at_once_and_rows_after_the_checkpoint_are_dropped(tmp_path, undisturbed, python_signals):
    with during_step(9, send(signal.SIGINT, signal.SIGINT, gap=1.1)), pytest.raises(KeyboardInterrupt) as stopped:
        fit(tmp_path)
    assert type(stopped.value) is KeyboardInterrupt
    assert saved_step(tmp_path) == 5
    assert rows(tmp_path)[-1]["step"] == 7
    fit(tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == (undisturbed() / "metrics.jsonl").read_text()
    assert result(tmp_path) == result(undisturbed())


@pytest.mark.parametrize("gap", [0, 0.001, 0.1])
def test_a_signal_that_comes_twice_is_one(tmp_path, python_signals, gap):
    """As where `timeout` passes on what the whole group got."""
    with during_step(9, send(signal.SIGTERM, signal.SIGTERM, gap=gap)), pytest.raises(Interrupted, match="step 9"):
        fit(tmp_path)
    assert saved_step(tmp_path) == 9


def test_a_signal_while_the_end_is_evaluated_does_not_stop_it(tmp_path, undisturbed, python_signals, monkeypatch):
    evaluate = training.evaluation.evaluate

    def interrupted(models, data, split):
        if split == "test":
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(models, data, split)

    monkeypatch.setattr(training.evaluation, "evaluate", interrupted)
    fit(tmp_path)
    assert result(tmp_path) == result(undisturbed())


@pytest.mark.parametrize("end", ["finished", "interrupted", "failed"])
def test_previous_signal_handlers_are_restored(tmp_path, python_signals, end):
    def handlers():
        return [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    own, seen = [lambda *_: None, lambda *_: None], []
    for s, handler in zip((signal.SIGINT, signal.SIGTERM), own, strict=True):
        signal.signal(s, handler)
    errors = {"finished": (), "interrupted": Interrupted, "failed": NonFiniteError}[end]
    actions = {"finished": lambda s: seen.extend(handlers()), "interrupted": send(signal.SIGTERM), "failed": spoil}
    with during_step(2, actions[end]), contextlib.suppress(errors):
        fit(tmp_path)
        assert end == "finished"
    assert handlers() == own
    assert not set(seen) & set(own)


def test_a_hangup_that_nohup_has_ignored_stays_ignored(tmp_path, undisturbed, python_signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with during_step(3, send(signal.SIGHUP)):
        fit(tmp_path)
    assert result(tmp_path) == result(undisturbed())


def test_message_tells_how_to_go_on(tmp_path, python_signals):
    np.savez(tmp_path / "data.npz", **DATA)
    directory = tmp_path / "a run"
    with during_step(1, send(signal.SIGINT)), pytest.raises(Interrupted) as stopped:
        fit(directory, data=None, dataset=str(tmp_path / "data.npz"))
    assert str(stopped.value) == f"stopped after step 1; go on with: fastaae resume '{directory}'"
    with during_step(1, send(signal.SIGINT)), pytest.raises(Interrupted) as stopped:
        fit(tmp_path / "own")
    assert str(stopped.value).endswith(f"go on with: train(resume={str(tmp_path / 'own')!r}, data=...)")


KILLED = """
import sys, time
from fastaae import Config, train
from fastaae.engine.step import Step

call = Step.__call__
Step.__call__ = lambda step: (call(step), time.sleep(0.005))
train(Config.from_json(sys.argv[1]), progress=False)
"""


def test_killed_process_is_resumed_bit_for_bit(tmp_path, undisturbed):
    np.savez(tmp_path / "data.npz", **DATA)
    directory, fields = tmp_path / "run", {**SEMI, "epochs": 40, "checkpoint_every": 3}
    cfg = replace(CFG, dataset=str(tmp_path / "data.npz"), out_dir=str(directory), **fields)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg.to_dict()))
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "cfg.json"], env=env) as process:
        deadline = time.monotonic() + 60
        while not (directory / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.Random(0).uniform(0.05, 0.6))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 0 < saved_step(directory) < 200
    train(resume=directory, progress=False)
    assert result(directory) == result(undisturbed(**fields))
    assert (directory / "metrics.jsonl").read_text() == (undisturbed(**fields) / "metrics.jsonl").read_text()


def test_half_written_last_line_is_dropped(tmp_path, undisturbed):
    fit(tmp_path, epochs=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "epo')
    assert list(RunDirectory(tmp_path).history()["step"]) == [2, 4, 5]
    fit(tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == (undisturbed() / "metrics.jsonl").read_text()


def flip(path):
    content = bytearray(path.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "SHA-256 differs|its header is damaged"),
        (lambda path: os.truncate(path, 1000), "truncated"),
        (lambda path: os.truncate(path, 0), "truncated"),
        (lambda path: path.unlink(), "No such file"),
    ],
    ids=["flipped", "truncated", "empty", "missing"],
)
@pytest.mark.filterwarnings("default")
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, undisturbed, python_signals, damage, said):
    with during_step(8, send(signal.SIGINT)), pytest.raises(Interrupted):
        fit(tmp_path)
    assert saved_step(tmp_path) == 8
    damage(tmp_path / "checkpoint.safetensors")
    with pytest.warns(UserWarning, match=rf"/checkpoint.safetensors: .*({said}).*; going on with .* of step 5"):
        assert load(tmp_path).config.hidden == CFG.hidden
    with pytest.warns(UserWarning, match=rf"/checkpoint.safetensors: .*({said}).*; going on with .* of step 5"):
        fit(tmp_path, resume=True)
    assert result(tmp_path) == result(undisturbed())
    assert checkpoint.load(tmp_path / "checkpoint.previous.safetensors")[1]["step"] == 5


def test_a_newer_checkpoint_never_gives_way_to_the_one_before(tmp_path, undisturbed, monkeypatch):
    run = shutil.copytree(undisturbed(), tmp_path / "run")
    tensors, info = checkpoint.load(run / "checkpoint.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        checkpoint.save(run / "checkpoint.safetensors", tensors, info)
    for use in (load, lambda run: train(resume=run, data=DATA, progress=False)):
        with pytest.raises(
            checkpoint.CheckpointError, match="format '2', expected 1, which this version of fastaae reads"
        ):
            use(run)


# One run, one directory


@pytest.mark.parametrize("resume", [False, True], ids=["start", "resume"])
def test_one_process_trains_in_a_directory(tmp_path, undisturbed, resume):
    said = []

    def second(step):
        before = files(tmp_path)
        with pytest.raises(ValueError) as refused:
            fit(tmp_path, resume=resume)
        said.append(str(refused.value))
        assert files(tmp_path) == before

    with during_step(8, second):
        fit(tmp_path)
    who = f"process {os.getpid()} on {platform.node()} trains there: wait for it, or stop it"
    assert said == [f"{tmp_path}: {who}" if resume else f"out_dir='{tmp_path}': expected a new or empty directory; to "
                    "go on with the run in it use resume"]  # fmt: skip
    assert result(tmp_path) == result(undisturbed())
    assert (tmp_path / ".lock").read_bytes() == b""


def test_two_that_start_at_once_do_not_share_a_directory(tmp_path, monkeypatch):
    with RunDirectory(tmp_path).held(), pytest.raises(ValueError, match=f"process {os.getpid()} on "):
        fit(tmp_path)  # the other one has written nothing yet
    original = Step.__init__

    def slow(self, *args):
        original(self, *args)
        (tmp_path / "config.json").touch()  # the other one has started and ended meanwhile

    monkeypatch.setattr(Step, "__init__", slow)
    with pytest.raises(ValueError, match="expected a new or empty directory"):
        fit(tmp_path)


def test_what_a_killed_process_had_half_written_is_removed(tmp_path, undisturbed):
    fit(tmp_path, epochs=1)
    for name in (".checkpoint.safetensors.x7_k.tmp", ".config.json.abc.tmp", "mine.tmp", ".mine.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".lock").write_text("1 on elsewhere")  # not held any more: its process is dead
    fit(tmp_path, resume=True)
    assert [p.name for p in sorted(tmp_path.glob("*.tmp"))] == [".mine.tmp", "mine.tmp"]
    assert result(tmp_path) == result(undisturbed())


# Full disks


def full_disk(monkeypatch, after):
    """os.fsync fails from the call after so many on."""
    count, fsync = itertools.count(1), os.fsync

    def fail(fd):
        if next(count) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail)


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch, undisturbed):
    with monkeypatch.context() as patch:
        full_disk(patch, after=8)  # metrics, config, the metrics and checkpoint of the first epoch, the metrics
        with pytest.raises(WriteError) as error:
            fit(tmp_path)
    assert re.fullmatch(
        rf"{tmp_path}/checkpoint.safetensors: No space left on device \(0.0[1-9] MB needed, [\d.]+ MB free\); "
        rf"last good checkpoint: {tmp_path}/checkpoint.safetensors \(step 5\)",
        str(error.value),
    )
    assert not list(tmp_path.glob("*.tmp")) and finite_checkpoint(tmp_path) == 5
    fit(tmp_path, resume=True)
    assert result(tmp_path) == result(undisturbed())


def test_metrics_that_cannot_be_written_end_the_run(tmp_path, monkeypatch):
    def unlink(step):
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()

    with during_step(8, unlink), pytest.raises(WriteError, match=r"metrics.jsonl is d.*; last good .*step 5"):
        fit(tmp_path)


def test_training_without_a_place_for_its_progress(tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(sys, "stderr", None)  # as in a process without a terminal
    fit(tmp_path / "run", progress=True)
    assert weights(tmp_path / "run") == weights(undisturbed())


@pytest.mark.filterwarnings("default")
def test_training_goes_on_where_nobody_reads_its_progress(tmp_path, monkeypatch, undisturbed):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        flush = isatty = lambda self: True

    clock = itertools.count(1000, 70)
    monkeypatch.setattr(shown_progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(sys, "stderr", Closed())
    fit(tmp_path / "bar", progress=True)
    monkeypatch.setattr(Closed, "isatty", lambda self: False)
    fit(tmp_path / "lines", progress=True)
    assert result(tmp_path / "bar") == result(tmp_path / "lines") == result(undisturbed())


def test_resume_may_change_what_the_weights_do_not_depend_on(tmp_path, undisturbed):
    run = tmp_path / "run"
    fit(run, epochs=1)
    changes = {"log_every": 3, "checkpoint_every": 5, "device": "cpu", "data_dir": str(tmp_path)}
    train(replace(CFG, **changes), data=DATA, resume=run, progress=False)
    assert weights(run) == weights(undisturbed())
    assert read_json(run, "config.json")["config"].items() >= {**changes, "out_dir": str(run)}.items()
    assert list(tmp_path.iterdir()) == [run]


def test_a_run_keeps_who_multiplies(tmp_path, monkeypatch):
    """Large layers by the library that was faster, or that was asked for, also where the other one is faster later."""
    large = {"hidden": (200, 200), "init_std": 0.05}
    for products, found in (("auto", "torch"), ("auto", "onednn"), ("torch", "onednn"), ("onednn", "torch")):
        monkeypatch.setattr(onednn, "faster", lambda found=found: found)
        run, whole = tmp_path / f"{products}-{found}", tmp_path / f"whole-{products}-{found}"
        fit(whole, products=products, **large)
        fit(run, products=products, epochs=1, **large)
        kept = found if products == "auto" else products
        assert read_json(run, "config.json")["config"]["products"] == kept
        monkeypatch.setattr(onednn, "faster", lambda kept=kept: "onednn" if kept == "torch" else "torch")
        fit(run, products="auto", resume=True, **large)
        assert result(run) == result(whole)
        assert load(run).decoder.library == kept
    other = "onednn" if kept == "torch" else "torch"
    with pytest.raises(ValueError, match=f"products was '{kept}', got '{other}'; expected the same"):
        fit(run, products=other, resume=True, **large)


@pytest.mark.skipif(not onednn.AVAILABLE, reason="no oneDNN")
def test_who_multiplies_is_known_or_timed(monkeypatch):
    time_it = onednn.faster.__wrapped__
    monkeypatch.setattr(onednn.Path, "exists", lambda path: False)
    for slow, fast in (("product", "torch"), (None, "onednn")):
        with monkeypatch.context() as slower:
            if slow:
                slower.setattr(onednn, slow, lambda a, b: time.sleep(0.01))
            else:
                slower.setattr(torch.Tensor, "__matmul__", lambda a, b: time.sleep(0.01))
            assert time_it() == fast
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        monkeypatch.setattr(onednn.Path, "exists", lambda path: True)
        monkeypatch.setattr(onednn.Path, "read_text", lambda path, errors: "vendor_id : AuthenticAMD")
        monkeypatch.setattr(onednn, "product", lambda a, b: pytest.fail("timed"))
        assert time_it() == "onednn"


@pytest.mark.parametrize(("hidden", "threads"), [((16,), 1), ((300, 300), 2)])
def test_small_networks_train_on_one_thread(tmp_path, hidden, threads):
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cfg = replace(CFG, out_dir=str(tmp_path / "run"), hidden=hidden, init_std=0.05, epochs=1)
        train(cfg, DATA, progress=False, on_log=lambda line: seen.append(torch.get_num_threads()))
        assert {*seen} == {threads} and torch.get_num_threads() == 2
        assert read_json(tmp_path / "run", "config.json")["hardware"]["threads"] == threads
    finally:
        torch.set_num_threads(before)


def test_resume_of_a_finished_run_changes_no_result(tmp_path):
    fit(tmp_path)
    before, summary = result(tmp_path), (tmp_path / "summary.json").read_text()
    run = fit(tmp_path, resume=True)
    assert result(tmp_path) == before
    assert (tmp_path / "summary.json").read_text() == summary
    assert list(run.history["epoch"]) == [1, 2]


# What a run leaves behind


def test_history_holds_losses_at_logged_steps_and_validation_after_epochs(tmp_path):
    run = fit(tmp_path, **SEMI)
    losses = list(wiring.PHASES["semi_supervised"])
    assert run.history.keys() == {"step", "epoch", *losses, "valid_reconstruction", "valid_error", "label_kept", *GAME}
    assert list(run.history["step"]) == [2, 4, 5, 7, 9, 10]
    assert list(run.history["epoch"]) == [1, 2]
    assert {run.history[name].shape for name in losses} == {(6, 2)}
    assert {run.history[name].shape for name in ("valid_reconstruction", "valid_error", *GAME)} == {(2, 2)}
    for name in ("valid_reconstruction", "valid_error"):
        assert list(run.history[name][-1]) == run.metrics[name]["replicas"]
    reread = RunDirectory(tmp_path).history()
    assert all(np.array_equal(reread[name], values) for name, values in run.history.items())


def test_logged_loss_is_the_mean_since_the_line_before(tmp_path, undisturbed):
    every, some = fit(tmp_path, log_every=1).history, RunDirectory(undisturbed()).history()
    assert list(every["step"]) == list(range(1, 11))
    for phase in wiring.PHASES["unsupervised"]:
        losses = every[phase]
        assert len(np.unique(losses)) == losses.size
        means = [losses[a:b].mean(0) for a, b in ((0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10))]
        np.testing.assert_allclose(some[phase], means, rtol=1e-12)


def test_metrics_are_those_computed_by_hand(tmp_path):
    run, data = fit(tmp_path, **SEMI, replicas=3), from_arrays(DATA)
    splits = {"valid": (data.x_valid.numpy(), data.y_valid.numpy()), "test": (X_TEST, Y_TEST)}
    assert run.metrics.keys() == {f"{split}_{name}" for split in splits for name in ("reconstruction", "error")}
    for split, (x, y) in splits.items():
        by_hand = {
            "error": [100 * np.mean(m.predict(x) != y) for m in run.models],
            "reconstruction": [np.square(m.reconstruct(x) - x).sum(1, dtype=float).mean() / 2 for m in run.models],
        }
        for name, values in by_hand.items():
            metric = run.metrics[f"{split}_{name}"]
            assert len(set(values)) > 1
            np.testing.assert_allclose(metric["replicas"], values, rtol=1e-6)
            mean = sum(values) / 3
            assert metric["mean"] == pytest.approx(mean)
            assert metric["std"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5, rel=1e-4)


def test_one_replica_has_no_spread(tmp_path):
    assert fit(tmp_path, replicas=1).metrics["test_reconstruction"]["std"] == 0


@pytest.mark.parametrize(
    ("data", "fields", "names"),
    [
        (X, {}, {"valid_reconstruction"}),
        ((X, Y), SEMI, {"valid_reconstruction", "valid_error"}),
        ({"x": X, "y": Y, "x_test": X_TEST}, SEMI, {"valid_reconstruction", "valid_error", "test_reconstruction"}),
        (DATA, {}, {"valid_reconstruction", "test_reconstruction"}),
    ],
    ids=["x", "x-y", "no-y-test", "no-label-head"],
)
def test_metrics_are_there_for_the_data_there_is(tmp_path, data, fields, names):
    assert fit(tmp_path, data=data, **fields, epochs=1).metrics.keys() == names


def test_summary_and_run_say_the_same(tmp_path):
    run = fit(tmp_path)
    tensors, info = checkpoint.load(tmp_path / "checkpoint.safetensors")
    parameters = {k: t for k, t in tensors.items() if not k.startswith(("optimizer.", "generator."))}
    assert read_json(tmp_path) == {"metrics": run.metrics, "steps": 10, "weights_sha256": checkpoint.digest(parameters)}
    assert info["step"] == 10
    assert run.directory == tmp_path
    assert run.model is run.models[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lock", "checkpoint.previous.safetensors", "checkpoint.safetensors", "config.json", "metrics.jsonl",
        "summary.json"]  # fmt: skip


def test_config_json_says_where_the_run_comes_from(tmp_path):
    run = fit(tmp_path)
    saved = read_json(tmp_path, "config.json")
    assert saved.keys() == {"config", "data", "command", "versions", "git", "hardware"}
    assert Config.from_dict(saved["config"]) == run.config
    assert run.config == replace(CFG, out_dir=str(tmp_path), dataset="arrays", products=onednn.faster())
    assert saved["data"] == {"name": "arrays", "sha256": from_arrays(DATA).sha256}
    assert saved["command"] == sys.argv
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    assert versions.items() <= saved["versions"].items()
    hardware = {"device": "cpu", "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    assert hardware.items() <= saved["hardware"].items() or torch.cuda.is_available()


def test_config_json_keeps_the_start_when_a_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["first"])
    fit(tmp_path, epochs=1)
    for k in (2, 3):
        monkeypatch.setattr(sys, "argv", ["again", str(k)])
        fit(tmp_path, epochs=k, resume=True)
    saved = read_json(tmp_path, "config.json")
    assert saved["command"] == ["first"] and saved["config"]["epochs"] == 3
    assert [(r["step"], r["command"]) for r in saved["resumed"]] == [(5, ["again", "2"]), (10, ["again", "3"])]


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git checkout")
def test_config_json_names_the_commit(tmp_path):
    fit(tmp_path, epochs=1)
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    saved = read_json(tmp_path, "config.json")["git"]
    assert saved.get("commit", "") == head
    assert head == "" or type(saved["dirty"]) is bool


def test_config_json_repeats_the_run(tmp_path, undisturbed):
    cfg = Config.from_json(undisturbed(**SEMI) / "config.json")
    assert cfg.out_dir is None
    train(replace(cfg, out_dir=str(tmp_path)), data=DATA, progress=False)
    assert result(tmp_path) == result(undisturbed(**SEMI))


def test_default_directories_are_new_even_within_a_second(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "now", lambda: "DATE-TIME")
    runs = [train(replace(CFG, name="mine", epochs=1, seed=s), data=DATA, progress=False) for s in range(3)]
    names = [f"runs/mine-DATE-TIME{end}" for end in ("", "-2", "-3")]
    assert [run.config.out_dir for run in runs] == names
    assert [run.directory for run in runs] == [tmp_path / name for name in names]
    assert len({weights(run.directory) for run in runs}) == 3


# Reproducibility


@pytest.mark.parametrize(
    "fields",
    [{}, {"log_every": 1}, {"log_every": 1000}, {"checkpoint_every": 2}, {"progress": True}],
    ids=["again", "log_every-1", "log_every-1000", "checkpoint_every", "progress"],
)
def test_same_seed_gives_the_same_weights_however_it_is_watched(tmp_path, undisturbed, fields):
    fit(tmp_path, **fields)
    assert result(tmp_path) == result(undisturbed())


def test_global_random_state_matters_not(tmp_path, undisturbed):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    fit(tmp_path)
    assert weights(tmp_path) == weights(undisturbed())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "fields", [{"seed": 1}, {"input_noise": 0.2}, {"lr_decay_epochs": ()}, {"precision": "fp64"}], ids=lambda f: [*f][0]
)
def test_other_settings_give_other_weights(tmp_path, undisturbed, fields):
    fit(tmp_path, **fields)
    assert weights(tmp_path) != weights(undisturbed())


@pytest.mark.parametrize("fields", [{}, SEMI], ids=["unsupervised", "semi-supervised"])
def test_replica_r_is_the_run_of_seed_plus_r(tmp_path, fields):
    fit(tmp_path / "all", **fields, replicas=3, seed=4)
    together, _ = checkpoint.load(tmp_path / "all" / "checkpoint.safetensors")
    for r in range(3):
        fit(tmp_path / str(r), **fields, replicas=1, seed=4 + r)
        alone, _ = checkpoint.load(tmp_path / str(r) / "checkpoint.safetensors")
        assert torch.equal(together[f"generator.{r}"], alone.pop("generator.0"))
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name][r], tensor[0], rtol=1e-4, atol=1e-5, msg=f"{r} {name}")


# Refusals, before anything is trained or written


def files(directory):
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def new(**fields):
    return lambda d: fit(d / "new", **fields)


def again(**fields):
    return lambda d: fit(d / "run", resume=True, **fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: fit(d / "run"), "out_dir='*/run': expected a new or empty directory; * use resume"),
        (lambda d: fit(d / "file"), "out_dir='*/file': expected a new or empty directory*"),
        (new(batch_size=251), "batch_size=251: expected at most the 250 training examples of arrays"),
        (new(**{**SEMI, "n_labeled": 251}), "n_labeled=251, but only 250 labelled examples: ask for fewer"),
        (new(task="embedding", data=X), "task='embedding' needs labels with the training data, arrays has none: *"),
        (new(**SEMI, data=X), "task='semi_supervised' needs labels with the training data, arrays has none: pass y"),
        (new(n_validation=300), "n_validation=300 of 300 training examples, expected *fewer than 300"),
        (new(data=X * 2), "x has values from 0 to 2, expected [0, 1]*"),
        (new(data=None, dataset="cifar"), "dataset='cifar': expected 'mnist', 'svhn', 'tfd', 'digits' or *"),
        (new(data=None, dataset="arrays"), "dataset='arrays': *pass them again, as data= or to figures.draw(*"),
        (new(device="cuda"), "device='cuda': not available here; expected 'auto', 'cpu' *"),
        (new(device="tpu"), "device='tpu': expected 'auto', 'cpu', 'cuda' *"),
        (lambda d: train(), "train: cfg=None, expected a Config, or resume=DIR"),
        (lambda d: fit(d / "no", resume=True), "*/no/checkpoint.safetensors: No such file or directory*"),
        (lambda d: fit(d / "damaged", resume=True), "*/damaged/checkpoint.safetensors: SHA-256 differs *"),
        (lambda d: fit(d / "model", resume=True), "*/model/checkpoint.safetensors: holds a model, expected *of a run"),
        (again(hidden=(16, 8)), "resume='*/run': hidden was (16, 16), got (16, 8); expected the same"),
        (again(seed=7), "resume='*/run': seed was 0, got 7; expected the same"),
        (again(optimizer="adam"), "resume='*/run': optimizer was 'sgd', got 'adam'; expected the same"),
        (again(epochs=1), "resume='*/run': epochs=1, expected at least 2, *"),
        (again(data={**DATA, "x": X[::-1]}), "resume='*/run': its data had another SHA-256 than the arrays given now*"),
        (again(device="cuda"), "device='cuda': not available here; *"),
        (lambda d: train(resume=d / "run"), "dataset='arrays': *pass them again, as data= or to figures.draw(*"),
    ],
    ids=["out_dir-holds-a-run", "out_dir-is-a-file", "batch_size", "n_labeled", "no-labels-to-embed", "no-labels",
         "n_validation", "data",
         "dataset", "no-arrays", "no-cuda", "no-such-device", "nothing", "resume-missing", "resume-damaged",
         "resume-model", "resume-hidden", "resume-seed", "resume-optimizer", "resume-fewer-epochs",
         "resume-other-data", "resume-no-cuda", "resume-no-arrays"],
)  # fmt: skip
def test_refusal_names_value_and_expectation_and_touches_nothing(tmp_path, monkeypatch, undisturbed, call, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("run", "damaged", "model"):
        shutil.copytree(undisturbed(), tmp_path / name)
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        damage(tmp_path / "damaged" / name)
    load(undisturbed()).save(tmp_path / "model" / "checkpoint.safetensors")
    before = files(tmp_path)
    with pytest.raises(ValueError) as refused:
        call(tmp_path)
    pattern = re.sub(r"\\\*", ".*", re.escape(message))
    assert re.fullmatch(pattern, str(refused.value)), str(refused.value)
    assert files(tmp_path) == before


# Losses and weights that are not finite


def spoil(step):
    step.networks["decoder"].weights[0][1, 0, 0] = float("nan")


def finite_checkpoint(directory):
    tensors, info = checkpoint.load(directory / "checkpoint.safetensors")
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    return info["step"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("index", range(4), ids=wiring.PHASES["semi_supervised"])
def test_loss_that_is_not_finite_is_named_exactly(tmp_path, monkeypatch, index, value):
    phase, count = getattr(phases, wiring.PHASES["semi_supervised"][index]), itertools.count(1)

    @functools.wraps(phase)
    def broken(step, terms):
        phase(step, terms)
        if next(count) == 8:
            terms[1, 0] = value

    monkeypatch.setattr(phases, phase.__name__, broken)
    kept = re.escape(f"{tmp_path}/checkpoint.safetensors (step 5)")
    tried = f"{TRY}, lr_classification=0.001"
    message = f"^step 8: the {phase.__name__} loss of replica 1 is {value}{tried}; last good checkpoint: {kept}$"
    with pytest.raises(NonFiniteError, match=message):
        fit(tmp_path, **SEMI, log_every=100)
    assert finite_checkpoint(tmp_path) == 5
    assert [row["step"] for row in rows(tmp_path)] == [5, 5]


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (2, f"step 3: the reconstruction loss of replica 1 is nan{TRY}; last good checkpoint: none"),
        (7, f"step 8: the reconstruction loss of replica 1 is nan{TRY}; last good checkpoint: STEP5"),
        (10, f"step 10: decoder.0.weight is not finite{TRY}; last good checkpoint: STEP5"),
    ],
    ids=["first-epoch", "second-epoch", "after-the-last-loss"],
)
@pytest.mark.parametrize("reconstruction", ["squared_error", "cross_entropy"])
def test_spoilt_weight_never_reaches_checkpoint_or_metrics(tmp_path, k, message, reconstruction):
    with during_step(k, spoil), pytest.raises(NonFiniteError) as error:
        fit(tmp_path, reconstruction=reconstruction, log_every=100)
    assert str(error.value) == message.replace("STEP5", f"{tmp_path}/checkpoint.safetensors (step 5)")
    assert k < 5 or finite_checkpoint(tmp_path) == 5
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert not (tmp_path / "summary.json").exists()


def test_interruption_saves_no_spoilt_weight(tmp_path, python_signals):
    def both(step):
        spoil(step)
        send(signal.SIGINT)(step)

    with during_step(8, both), pytest.raises(NonFiniteError, match="step 8: decoder.0.weight is not finite"):
        fit(tmp_path)
    assert finite_checkpoint(tmp_path) == 5


def test_huge_learning_rate_is_an_error_of_its_own(tmp_path):
    with pytest.raises(NonFiniteError, match="the discriminator loss of replica 0 is .*; last good checkpoint: none"):
        fit(tmp_path, lr_reconstruction=1e38)


# Going on after a divergence

RESTART = {"on_divergence": "restart"}


@pytest.mark.parametrize(("k", "start"), [(8, 5), (2, 0)], ids=["from-an-epoch", "from-the-start"])
def test_a_diverged_run_goes_on_from_its_last_checkpoint_with_half_the_rates(tmp_path, python_signals, k, start):
    said = rf"step {k + 1}: the reconstruction loss .*; restart 1 of 3, all learning rates times 0.5"
    rates = []

    def run(directory, act=None):
        with during_step(k, spoil), pytest.warns(UserWarning, match=said) as warned:
            with during_step(k + 3, act) if act else contextlib.nullcontext():  # two steps after the restart
                fit(directory, **RESTART, log_every=1)
        assert len(warned) == 1

    run(tmp_path / "a", lambda step: rates.extend(float(step.rates[c][0]) for c in ("reconstruction", "adversarial")))
    assert rates == pytest.approx([0.5 * CFG.rate(lr, start // 5) for lr in (0.003, 0.02)])
    assert finite_checkpoint(tmp_path / "a") == 10 and read_json(tmp_path / "a")["steps"] == 10
    with pytest.raises(Interrupted, match=f"after step {start + 2};"):
        run(tmp_path / "b", send(signal.SIGINT))
    fit(tmp_path / "b", **RESTART, resume=True, log_every=1)
    assert result(tmp_path / "a") == result(tmp_path / "b")  # the rates are part of what is resumed, the NaN is not
    history = RunDirectory(tmp_path / "a").history()
    assert list(history["step"]) == list(range(1, 11)) and list(history["epoch"]) == [1, 2]
    (row,) = [row for row in rows(tmp_path / "a") if "warning" in row]
    assert (row["step"], row["epoch"]) == (start, start // 5) and re.search(said, row["warning"])


def test_a_restart_goes_back_to_where_it_would_have_without_the_stops_before_it(tmp_path, python_signals, monkeypatch):
    call, spoilt = Step.__call__, []

    def spoiling(self):
        call(self)
        if self.batches.count[1] == 8 and not spoilt:
            spoilt.append(spoil(self))

    monkeypatch.setattr(Step, "__call__", spoiling)
    for k, steps in enumerate((6, 1)):  # stopped after steps 6 and 7 of 5 to an epoch
        with during_step(steps, send(signal.SIGTERM)), pytest.raises(Interrupted):
            fit(tmp_path / "stopped", **RESTART, resume=k > 0)
    for directory in ("stopped", "not"):
        spoilt.clear()
        with pytest.warns(UserWarning, match="step 9: .*; restart 1 of 3"):
            fit(tmp_path / directory, **RESTART, resume=directory == "stopped")
    assert result(tmp_path / "stopped") == result(tmp_path / "not")


def test_a_run_that_diverges_again_and_again_ends(tmp_path, monkeypatch):
    call = Step.__call__

    def spoilt(self):
        call(self)
        if self.batches.count[1] == 7:
            spoil(self)

    monkeypatch.setattr(Step, "__call__", spoilt)
    with pytest.warns(UserWarning) as warned, pytest.raises(NonFiniteError, match="step 8: the reconstruction loss"):
        fit(tmp_path, **RESTART)
    assert [re.search("restart . of 3, .*", str(w.message))[0][-5:] for w in warned] == ["s 0.5", " 0.25", "0.125"]
    assert finite_checkpoint(tmp_path) == 5
    assert checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["restarts"] == 3


# How the game goes


@pytest.mark.parametrize("task", [{}, SEMI], ids=["unsupervised", "semi-supervised"])
def test_the_games_metrics_are_those_computed_by_hand(tmp_path, task):
    found = {}

    def look(step):
        found.update({name: step.judging[name].x[0].double().clone() for name in step.discriminators})
        tapes = [*step.judging.values(), step.player.encoding, step.player.decoding]
        hidden = [x for tape in [*tapes, *([step.player.classifying] if task else [])] for x in tape.x[1:-1]]
        shares = [[100 * (x[r].numpy() == 0).all(0).mean() for x in hidden] for r in range(2)]
        found["dead_units"], found["step"] = [max(s) for s in shares], step

    with during_step(10, look):
        run = fit(tmp_path, **task)
    assert list(run.history["dead_units"][-1]) == found.pop("dead_units")
    for name, network in found.pop("step").discriminators.items():
        x = found.pop(name)
        for layer, (w, b) in enumerate(zip(network.weights, network.biases, strict=True)):
            x = x @ w.double().mT + b.double()
            x = x if layer == 2 else x.relu()
        right = np.concatenate([x[:, :50, 0] > 0, x[:, 50:, 0] < 0], 1)
        assert list(run.history[f"told_apart_{name}"][-1]) == [100 * r.mean() for r in right]
    assert found == {}
    x = from_arrays(DATA).x_valid.numpy()
    codes = [m.encode(x).astype(float) for m in run.models]
    np.testing.assert_allclose(run.history["code_mean"][-1], [abs(z.mean(0)).max() / 5 for z in codes], rtol=0.05)
    stds = [np.sqrt(z.var(0).mean()) / 5 for z in codes]
    np.testing.assert_allclose(run.history["code_std"][-1], stds, rtol=0.05)
    assert len({*run.history["code_std"].flatten()}) == 4


ANGLE = np.random.default_rng(0).uniform(0, np.pi, 300)
MOONS = np.concatenate([np.c_[f * np.cos(ANGLE) + k, f * np.sin(ANGLE) + k / 2] for k, f in ((0, 1), (1, -1))])
OLD = {"optimizer": "sgd", "lr_reconstruction": 0.01, "lr_adversarial": 0.1, "init_std": 0.01}


def on_moons(directory, steps, **fields):
    """A run of so many steps, five an epoch, its warnings, and the fields that these, or its error, say to try."""
    options = {"hidden": (64, 64), "scale": "standard", "checkpoint_every": 400, "out_dir": str(directory)}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            run = train(Config(**{"epochs": steps // 5, **options, **fields}), data=MOONS, progress=False)
        except NonFiniteError as error:
            return None, [str(error)], tried(str(error))
    said = [str(w.message) for w in warned]
    assert said == [row["warning"] for row in rows(directory) if "warning" in row]
    return run, said, tried(*said)


def tried(*said):
    found = [re.search(r"; try (.*?)(?=;|$)", message) for message in said]
    fields = ast.parse(f"f({found[0][1]})", mode="eval").body.keywords if found and found[0] else []
    return {field.arg: ast.literal_eval(field.value) for field in fields}


def test_the_game_is_read_once_an_epoch(tmp_path, monkeypatch):
    reads, measure = [], watch.Watch.measure

    def counted(self):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__float__"):
                kept = getattr(torch.Tensor, name)
                patch.setattr(torch.Tensor, name, lambda t, kept=kept: (reads.append(t.shape), kept(t))[1])
            return measure(self)

    monkeypatch.setattr(watch.Watch, "measure", counted)
    fit(tmp_path, task="semi_supervised", n_labeled=6, replicas=3, epochs=2)
    assert reads == [(), (), (6, 3), (6, 3)]  # the scales of the prior and of the data first, once


@pytest.mark.parametrize("init_std", [0.05, None])
def test_no_remedy_brings_a_game_in(tmp_path, init_std):
    _, found, new = on_moons(tmp_path, 400, lr_adversarial=0.0, lr_reconstruction=1.0, init_std=init_std)
    assert len(found) == 1 and new["lr_reconstruction"] == 1e-3 and "lr_adversarial" not in new, found


@pytest.mark.parametrize(
    ("fields", "said", "remedy"),
    [
        (OLD, "code_std is .* after 250 steps: codes have collapsed", {"optimizer": "adam", "epochs": 400}),
        ({**OLD, "init_std": 1.0}, "step .* loss of replica 0 is (inf|nan)", {"optimizer": "adam", "init_std": 0.05}),
        ({"lr_reconstruction": 1.0}, "(reconstruction|dead_units|code_std) is", {"lr_reconstruction": 1e-3}),
        ({"lr_adversarial": 1e3}, "is", {"lr_adversarial": 3e-4}),
        ({"style_dim": 30}, "(told_apart_z|code_std) is", {"style_dim": 2}),
        ({"prior_std": 0.02}, "code_std is .*: codes lie far beyond the prior", {"prior_std": 5.0}),
        ({"regularizer": "kl", "posterior": "gaussian", "regularizer_weight": 2.0}, "code_std is .* codes have coll",
         {"regularizer_weight": 0.02}),
        ({}, None, {}),
    ],
    ids=["collapsed", "not-finite", "rate", "game", "code", "scattered", "kl", "well"],
)  # fmt: skip
def test_a_run_gone_wrong_is_told_once_soon_and_with_what_helps(tmp_path, fields, said, remedy):
    for k in range(3):
        run, found, new = on_moons(tmp_path / str(k), 1000 if k else 400, **fields)
        if k == 0:
            assert len(found) == (said is not None) and remedy.items() <= new.items(), found
            assert said is None or re.search(said, found[0]), found
        if not new:
            break
        fields = {**fields, **new}
    spread = run.model.sample(2000, seed=0).std(0) / MOONS.std(0)
    assert found == [] and run.history["code_std"][-1] > 0.4
    assert said is None or 0.5 < spread.mean() < 2


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (
            {"dead_units": [99.9, 100], "code_std": [0.0, 0.0]},
            "dead_units is 99.9, 100 {}: percent of a layer's units give",
        ),
        ({"code_std": [0.0499, 1.0]}, "code_std is 0.0499, 1 {}: codes have collapsed to a point"),
        (
            {"code_std": [1.0, 0.399]},
            "code_std is 1, 0.399 {}: codes fill little of the prior, most samples come from",
        ),
        ({"code_std": [3.01, 1.0]}, "code_std is 3.01, 1 {}: codes lie far beyond the prior"),
        ({"told_apart_z": [50.0, 99.0]}, "told_apart_z is 50, 99 {}: the discriminator has won"),
        ({"told_apart_z": [98.9, 98.9], "dead_units": [99.9, 99.9], "code_std": [0.41, 2.99]}, None),
    ],
    ids=["dead", "collapsed", "unfilled", "scattered", "won", "well"],
)
def test_what_a_number_means_is_said(tmp_path, monkeypatch, numbers, said):
    measure = watch.Watch.measure
    well = {"told_apart_z": [50.0, 50.0], "dead_units": [0.0, 0.0], "code_std": [1.0, 1.0]}
    monkeypatch.setattr(watch.Watch, "measure", lambda self: {**measure(self), **well, **numbers})
    monkeypatch.setattr(watch, "UNLEARNED", 1.5)  # of noise a run learns little
    when = "after 300 steps" if "fill" in (said or "") else "after 250 steps"
    message = re.escape(said.format(when)) if said else ""
    new = "; try epochs=400" if "fill" in (said or "") else TRY
    with pytest.warns(UserWarning, match=f"^{message}.*{new}") if said else contextlib.nullcontext([]) as warned:
        fit(tmp_path, epochs=60)
    assert len(warned) == (said is not None)


@pytest.mark.parametrize(("limit", "step"), [("LOST", 250), ("UNLEARNED", 300)])
def test_a_loss_like_that_of_the_mean_is_told(tmp_path, monkeypatch, limit, step):
    for name in (limit, "UNFILLED", "COLLAPSED"):
        monkeypatch.setattr(watch, name, 0.0)
    x = X.astype(np.float64)
    mean = 0.5 * x[from_arrays(DATA).train.index].var(0).sum()
    with pytest.warns(
        UserWarning, match=f"^reconstruction is .* after {step} steps: a decoder that always .*"
    ) as warned:
        fit(tmp_path, epochs=60)
    assert re.search(r"the data has (\S+);", str(warned[0].message))[1] == f"{mean:.3g}"


@pytest.mark.parametrize(("steps", "told"), [(240, []), (300, [250]), (1000, [335])], ids=str)
def test_when_a_run_gone_wrong_is_told(tmp_path, steps, told):
    on_moons(tmp_path, steps, **OLD)
    assert [row["step"] for row in rows(tmp_path) if "warning" in row] == told


# Own data, threads, progress


@pytest.mark.parametrize(
    "data",
    [X, X.astype(np.float64), torch.from_numpy(X), BYTES[:300], torch.from_numpy(BYTES[:300]), (X, Y), {"x": X},
     {"x_train": torch.from_numpy(X), "y_train": torch.from_numpy(Y)}, X.reshape(300, 4, 4)],
    ids=["numpy", "float64", "torch", "uint8", "torch-uint8", "x-y", "mapping", "mapping-of-tensors", "images"],
)  # fmt: skip
def test_own_data_of_any_form_trains_the_same(tmp_path, undisturbed, data):
    run = fit(tmp_path / "run", data=data)
    labelled = isinstance(data, tuple) or (isinstance(data, dict) and "y_train" in data)
    reference = undisturbed() if labelled else fit(tmp_path / "plain", data=X).directory  # labels choose the split
    assert weights(run.directory) == weights(reference)
    assert run.model.sample(3).shape == (3, *(data[0].shape if getattr(data, "ndim", 0) == 3 else (16,)))
    assert run.config.dataset == "arrays"


def test_npz_file_trains_the_same(tmp_path, undisturbed):
    np.savez(tmp_path / "data.npz", **DATA)
    run = fit(tmp_path / "run", data=None, dataset=str(tmp_path / "data.npz"))
    assert result(run.directory) == result(undisturbed())
    assert read_json(run.directory, "config.json")["data"]["name"] == str(tmp_path / "data.npz")


def test_training_works_outside_the_main_thread(tmp_path, undisturbed):
    thread = threading.Thread(target=fit, args=(tmp_path,))
    thread.start()
    thread.join()
    assert result(tmp_path) == result(undisturbed())


@pytest.mark.parametrize(("progress", "steps"), [(True, [1, 5, 10]), (False, [])], ids=["shown", "hidden"])
def test_progress_without_terminal_is_a_line_at_once_and_every_30_s(tmp_path, monkeypatch, capsys, progress, steps):
    clock = itertools.count(1000, 7)  # seconds between looks at it: one a step, one at an epoch's end
    monkeypatch.setattr(shown_progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    fit(tmp_path, log_every=1, progress=progress)
    printed = capsys.readouterr()
    opening, *lines = printed.err.splitlines() or [""]
    assert printed.out == "" and bool(opening) == progress
    found = [re.match(r"epoch (\d)/2: step (\d+)/10, (\d\d:\d\d) left, (\d+) examples/s, ", line) for line in lines]
    assert [(int(m[1]), int(m[2])) for m in found] == [(-(-k // 5), k) for k in steps]
    assert all(re.search(r"reconstruction \d[\d.]*, discriminator \d.*, generator \d", line) for line in lines)
    assert [re.search(r"s, valid reconstruction \d", line) is not None for line in lines] == [False, True, True][
        : len(steps)
    ]
    if progress:
        assert (found[1][3], found[1][4]) == ("00:42", f"{5 * 50 * 2 / 42:.0f}")  # 5 of 10 steps of two replicas


@pytest.mark.parametrize(("progress", "shown"), [(True, "epoch 2/2 100%"), (False, "")], ids=["shown", "hidden"])
def test_progress_on_a_terminal_is_a_bar(tmp_path, monkeypatch, progress, shown):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(tmp_path, progress=progress)
    assert shown in terminal.getvalue()
    assert bool(terminal.getvalue()) == progress


def test_a_warning_has_a_line_of_its_own_beside_the_bar(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(shown_progress.tqdm, "mininterval", 0, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: print(f"WARNING {message}", file=terminal)
        monkeypatch.setattr(training.Watch, "warning", lambda *_: "it is over")
        fit(tmp_path, progress=True)
    seen = [text for text in re.split(r"[\r\n]", terminal.getvalue()) if "WARNING" in text]
    assert [re.sub(r"\x1b\[A", "", text) for text in seen] == ["WARNING it is over"] * 2


def test_bfloat16_by_other_means_is_told_on_resume(tmp_path, monkeypatch):
    fit(tmp_path, epochs=1, precision="bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tmp_path, resume=True, epochs=2, precision="bf16", products="torch")  # which has no say there
    monkeypatch.setattr(onednn, "BF16", not onednn.BF16)
    with pytest.warns(UserWarning, match="bfloat16 was multiplied .*, here it is .*: .* not to the same bits"):
        fit(tmp_path, resume=True, epochs=3, precision="bf16")


OPENINGS = {
    "unsupervised": ({}, "; cpu, fp32 by PyTorch (small layers); "),
    "semi_supervised": ({"task": "semi_supervised", "n_labeled": 30}, "4 classes, 30 labels used"),
    "supervised": ({"task": "supervised"}, "4 classes, 250 labels used"),
    "labels unused": ({}, "4 classes, 0 labels used"),
    "fp64": ({"precision": "fp64"}, "; cpu, fp64 by PyTorch (no other for fp64 here); "),
    "fp16": ({"precision": "fp16"}, "; cpu, fp16 by PyTorch (emulated); "),
    "products": ({"hidden": (200, 200), "products": "torch"}, "; cpu, fp32 by PyTorch (products='torch'); "),
    "oneDNN": ({"hidden": (200, 200)}, "cpu, fp32 by oneDNN (large layers) and PyTorch (small layers)"),
}


@pytest.mark.parametrize("case", OPENINGS)
def test_the_first_line_says_what_is_trained_on_what(tmp_path, capsys, case):
    fields, says = OPENINGS[case]
    if case in ("oneDNN", "unsupervised") and not onednn.AVAILABLE:
        pytest.skip("no oneDNN")
    fit(tmp_path / "run", epochs=1, progress=True, **fields)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("arrays: 250 examples, 50 to validate, 60 to test, 16 from 0 to 1, ")
    assert first.endswith(f"; {tmp_path / 'run'}")
    assert re.search(re.escape(says).replace(r"\.\*", ".*"), first), first


def test_the_first_line_of_bytes_without_labels_in_a_directory_with_an_odd_name(tmp_path, capsys):
    fit(tmp_path / "\x1b[2Ja\nrun", data=BYTES[:300].reshape(300, 4, 4), epochs=1, progress=True)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(
        "arrays: 250 examples, 50 to validate, 4x4 from 0 to 255, no labels; 1 epoch of 5 steps; cpu, "
    )
    assert first.endswith("\\x1b[2Ja\\nrun")


# What a run is printed as, and as a table


def test_a_run_says_in_a_few_lines_what_it_is(tmp_path):
    run = fit(tmp_path / "run", **SEMI)
    first, directory, metrics, models = repr(run).splitlines()
    assert first == "Run 'custom': semi_supervised on arrays, 2 epochs"
    assert directory == f"  directory: {tmp_path / 'run'}"
    assert metrics.startswith(f"  metrics: valid_reconstruction {run.metrics['valid_reconstruction']['mean']:.4g}, ")
    assert models == f"  models: {len(run.models)}, from seed 0 on"


@pytest.mark.parametrize("replicas", [1, 2])
def test_history_columns_are_a_data_frame(tmp_path, replicas):
    run = fit(tmp_path / "run", **{**SEMI, "replicas": replicas, "log_every": 2})
    ends = [""] if replicas == 1 else ["_0", "_1"]
    losses, epochs = run.columns("step"), run.columns()
    names = ("reconstruction", "discriminator", "generator", "classification")
    assert list(losses) == ["step", *(name + end for name in names for end in ends)]
    assert {"epoch", *(f"valid_error{end}" for end in ends), *(f"code_std{end}" for end in ends)} <= epochs.keys()
    assert not losses.keys() & epochs.keys()
    assert {len(v) for v in losses.values()} == {6} and {len(v) for v in epochs.values()} == {2}
    for r, end in enumerate(ends):
        assert np.array_equal(losses[f"generator{end}"], run.history["generator"][:, r])
        assert np.array_equal(epochs[f"valid_error{end}"], run.history["valid_error"][:, r])
    with pytest.raises(ValueError, match="per='row': expected 'step' or 'epoch'"):
        run.columns("row")
    pandas = pytest.importorskip("pandas")
    for columns, index in ((losses, "step"), (epochs, "epoch")):
        frame = pandas.DataFrame(columns).set_index(index)
        assert frame.shape == (len(columns[index]), len(columns) - 1) and np.isfinite(frame.to_numpy()).all()


@pytest.mark.parametrize(
    ("apart", "changes", "saved"),
    [
        (100, {}, [5, 25]),  # times 0.1 s, which is longer than the run
        (0, {}, [5, 10, 15, 20, 25]),
        (100, {"checkpoint_every": 1}, [5, 10, 15, 20, 25]),
        (100, {"checkpoint_every": 2}, [10, 20, 25]),
        (100, {"on_divergence": "restart"}, [0, 5, 10, 15, 20, 25]),
    ],
)
def test_checkpoints_take_a_small_part_of_the_time(tmp_path, monkeypatch, apart, changes, saved):
    steps, save = [], checkpoint.save

    def slow(path, tensors, info, previous):
        time.sleep(0.1)
        steps.append(info["step"])
        save(path, tensors, info, previous)

    assert resume.APART == 100
    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(resume, "APART", apart)
    fit(tmp_path, epochs=5, **changes)
    assert steps == saved


RANKS = """
import json, os, sys
from dataclasses import replace
import numpy as np, torch
from fastaae import Config, train
from fastaae.kernels import onednn

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
onednn.faster = lambda: ("torch", "onednn")[rank]  # the first one decides for both
x = np.random.default_rng(0).integers(0, 256, (120, 16), dtype=np.uint8)
cfg = Config(hidden=(8,), style_dim=2, epochs=2, batch_size=20, replicas=3, seed=4, out_dir=sys.argv[1] + "/run")
run = train(cfg, data={"x": x, "x_test": x[:30]}, progress=False)
assert run.config.products == "torch"
onednn.faster = lambda: "onednn"
weights = [m.encoder.weights[0][0].tolist() for m in run.models]
again = train(replace(cfg, epochs=3), data={"x": x, "x_test": x[:30]}, resume=sys.argv[1] + "/run", progress=False)
said = []
for gone in [sys.argv[1] + "/run/rank-1"] if rank else []:
    os.rename(gone, sys.argv[1] + "/away")
torch.distributed.barrier()
try:
    train(resume=sys.argv[1] + "/run", data={"x": x, "x_test": x[:30]}, progress=False)
except ValueError as error:
    said.append(str(error))
torch.distributed.barrier()
if rank:
    os.symlink(sys.argv[1] + "/away", sys.argv[1] + "/run/rank-1")
torch.distributed.barrier()
try:
    train(resume=sys.argv[1] + "/run", data={"x": x, "x_test": x[:30]}, progress=False)
except (ValueError, RuntimeError) as error:
    said.append(str(error))
few, third = (replace(cfg, replicas=n, out_dir=sys.argv[1] + f"/of-{n}") for n in (1, 3))
for broken in (few, third if rank else replace(third, device="tpu")):
    try:
        train(broken, data=x, progress=False)
    except (ValueError, RuntimeError) as error:
        said.append(str(error))
with open(f"{sys.argv[1]}/rank{rank}.json", "w") as file:
    metrics = [run.metrics["test_reconstruction"]["replicas"], again.metrics["test_reconstruction"]["replicas"]]
    json.dump({"metrics": metrics, "weights": weights, "said": said}, file)
torch.distributed.destroy_process_group()
"""


LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("changes", [{"WORLD_SIZE": v} for v in ("", "0", "1", None)], ids=str)
def test_one_process_is_no_rank(monkeypatch, changes):
    for name, value in (LAUNCHED | changes).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert not ranks.launched() and not ranks.several()


@pytest.mark.parametrize(
    "changes",
    [{"WORLD_SIZE": v} for v in ("auto", "-1", "2.0", " 2", "٢", "9" * 26)]
    + [{name: v} for name in LAUNCHED if name != "WORLD_SIZE" for v in ("", None)]
    + [{"RANK": "2"}, {"RANK": "x"}, {"LOCAL_RANK": "-1"}, {"MASTER_PORT": "http"}],
    ids=str,
)
def test_half_a_launch_is_refused_in_one_line(monkeypatch, changes):
    for name, value in (LAUNCHED | changes).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks.distributed, "init_process_group", None)
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match="^WORLD_SIZE=.*: start it by torchrun, .* or unset WORLD_SIZE$") as error:
        ranks.launched()
    assert f"{name}={value or ''!r}" in str(error.value)


def test_a_rank_that_waits_for_the_others_says_so(monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "PATIENCE", 0.01)
    said = threading.Event()
    monkeypatch.setattr(ranks, "warn_caller", lambda message: (said.set(), words.append(message)))
    words = []
    monkeypatch.setattr(ranks.distributed, "init_process_group", lambda *_, **__: said.wait(10))
    assert ranks.launched()
    (message,) = words
    assert message.startswith("rank 0 of 2 waits for the others at 127.0.0.1:29500: ") and "WORLD_SIZE" in message


def test_replicas_spread_over_ranks(tmp_path, two_ranks):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = two_ranks(script, tmp_path, patience=120)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{k}.json").read_text()) for k in range(2)]
    x = np.random.default_rng(0).integers(0, 256, (120, 16), dtype=np.uint8)
    cfg = Config(hidden=(8,), style_dim=2, epochs=2, batch_size=20, replicas=3, seed=4, out_dir=str(tmp_path / "one"))
    data = {"x": x, "x_test": x[:30]}
    alone = train(cfg, data=data, progress=False)
    longer = train(replace(cfg, epochs=3), data=data, resume=tmp_path / "one", progress=False)
    for k, expected in enumerate(run.metrics["test_reconstruction"]["replicas"] for run in (alone, longer)):
        assert ranks[0]["metrics"][k] == ranks[1]["metrics"][k] and len(expected) == 3
        np.testing.assert_allclose(ranks[0]["metrics"][k], expected, rtol=1e-5)
    found = ranks[0]["weights"] + ranks[1]["weights"]
    np.testing.assert_allclose(found, [m.encoder.weights[0][0].tolist() for m in alone.models], rtol=1e-4, atol=1e-6)
    summary = read_json(tmp_path / "run")
    assert summary["ranks"] == 2 and len(summary["metrics"]["test_reconstruction"]["replicas"]) == 3
    for said in (r["said"] for r in ranks):
        assert "1 ranks trained it, expected as many, there are 2" in said.pop(0)
        assert "rank-1: a link, expected the directory of a rank" in said.pop(0)
        assert said[0] == "replicas=1: expected at least one for each of the 2 ranks"
    assert ranks[0]["said"][1].startswith("device='tpu'")
    assert ranks[1]["said"][1].startswith("rank 0 failed after 0 steps: ValueError: device='tpu'")


def test_a_window_without_steps_is_said(tmp_path):
    with pytest.warns(UserWarning, match="profile='900:901': no such step"):
        fit(tmp_path, profile="900:901")


def test_a_profiled_window_changes_nothing_and_leaves_a_trace(tmp_path):
    fit(tmp_path / "a")
    fit(tmp_path / "b", profile="4:7")
    assert weights(tmp_path / "a") == weights(tmp_path / "b") and not (tmp_path / "a" / "trace.json").exists()
    names = [e.get("name") for e in read_json(tmp_path / "b", "trace.json")["traceEvents"]]
    assert names.count("reconstruction") == names.count("draw") == 4 and names.count("evaluation") == 1


# A run directory that is not what it was


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
@pytest.mark.parametrize(
    "content", ["fifo", "zero", b"\xff", b"[" * 200_000, b'{"resumed": 5}', b"3", b'{"step": 1, "step": 2}']
)
def test_files_of_a_run_are_refused_by_name(tmp_path, name, content):
    fit(tmp_path)
    path = tmp_path / name
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content + b"\n")
    elif content == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{name}: damaged .*; move it away to go on"):
        fit(tmp_path, resume=True, epochs=3)


def test_rows_that_do_not_fit_are_refused_before_training(tmp_path):
    fit(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace("generator", "gen", 1))
    with pytest.raises(ValueError, match="rows that do not fit"):
        fit(tmp_path, resume=True, epochs=3)
    assert saved_step(tmp_path) == 10


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(tmp_path / "a")
    fit(tmp_path / "b", seed=9)
    shutil.copy(tmp_path / "b" / "checkpoint.safetensors", tmp_path / "a")
    before = (tmp_path / "a" / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match="config.json: seed=0, the checkpoint's is 9; expected the checkpoint of that run"
    ):
        train(data=DATA, resume=tmp_path / "a", progress=False)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("name", "value"), [("step", -5), ("step", 1.0), ("restarts", "x"), ("restarts", -2000)])
def test_numbers_of_a_checkpoint_are_checked(tmp_path, name, value):
    fit(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    tensors, info = checkpoint.load(path)
    checkpoint.save(path, tensors, info | {name: value})
    with pytest.raises(checkpoint.CheckpointError, match=f"{name}=.*, expected an integer from 0 to"):
        fit(tmp_path, resume=True, epochs=3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # 3.12 on, of xdist
def test_the_lock_of_a_process_does_not_outlive_it_in_a_fork(tmp_path):
    ready, kept = os.pipe()
    pid = os.fork()
    if not pid:
        with RunDirectory(tmp_path).held():
            if os.fork():
                os.write(kept, b"x")
            time.sleep(20)
            os._exit(0)
    os.read(ready, 1)
    with pytest.raises(ValueError, match="trains there"), RunDirectory(tmp_path).held():
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with RunDirectory(tmp_path).held():
        pass


def test_an_error_of_the_users_prior_is_not_one_of_the_disk(tmp_path):
    calls = itertools.count()

    def prior(out, generator):
        if next(calls) == 3:
            raise ConnectionResetError("peer reset")
        out.normal_(generator=generator)

    with pytest.raises(RuntimeError, match="prior=<function .*ConnectionResetError: peer reset"):
        train(replace(CFG, prior="custom", out_dir=str(tmp_path / "run")), data=DATA, progress=False, prior=prior)


LABELLED = {"task": "semi_supervised", "n_labeled": 20}
COMPONENTS = {"task": "unsupervised", "label_prior": True, "prior": "mixture", "style_dim": 2, "components": 2}
CLUSTERS = {"task": "clustering", "n_clusters": 3}
FAR = r"classes \(0: 9[67].* %, 1: 3.* %\) are far from their uniform prior, by which 4[67] % would be of another"
NONE = r"arrays: no validation example is of class 1: no cluster gets that label"
BALANCES = [  # fields, labels, what is warned of
    (LABELLED, np.arange(600) % 33 == 0, FAR),
    ({"task": "embedding", "n_labeled": 20}, np.arange(600) % 33 == 0, FAR),
    (COMPONENTS | {"n_labeled": 20}, np.arange(600) % 33 == 0, FAR),
    (COMPONENTS, np.arange(600) % 33 == 0, None),  # whose prior follows them
    ({"task": "supervised"}, np.arange(600) % 33 == 0, None),
    ({"task": "unsupervised"}, np.arange(600) % 33 == 0, None),
    (CLUSTERS, np.arange(600) % 33 == 0, None),
    (LABELLED, np.arange(600) % 3 == 0, None),
    (LABELLED, np.arange(600) % 6 == 0, r"\(0: 8[34].* %, 1: 16.* %\) .* 3[34] %"),
    (LABELLED, np.repeat(range(10), [41, 114, 87, 70, 56, 47, 46, 42, 38, 59]), None),  # as in SVHN
    (LABELLED, np.where(np.arange(600) < 120, np.arange(600) % 12, 11), r"\(0: 1.* %, .* %, \.\.\.\) are far"),
    (CLUSTERS, np.arange(600) == 0, NONE),
    ({"task": "unsupervised"}, np.arange(600) == 0, None),
]


@pytest.mark.parametrize("fields, y, message", BALANCES, ids=range(len(BALANCES)))
def test_labels_that_their_prior_does_not_fit_are_warned_of_once(fields, y, message, tmp_path):
    x = RNG.random((600, 2, 2)).astype(np.float32)
    cfg = Config(hidden=(4,), epochs=2, batch_size=250, **fields, out_dir=str(tmp_path / "run"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(cfg, data=(x, y.astype(int)), progress=False)
    caught = [w for w in caught if "to train on" not in str(w.message)]
    assert len(caught) == (message is not None), [str(w.message) for w in caught]
    for warning in caught:
        assert re.match(message if message == NONE else f".*{message}", str(warning.message))
        assert warning.filename == __file__

"""Functions of callers that see every line of metrics.jsonl."""

from __future__ import annotations

import gc
import json
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest

import fastaae
from fastaae import Config, checkpoint, train
from fastaae.run import hooks

X = np.random.default_rng(0).random((60, 6), dtype=np.float32)
CFG = Config(hidden=(8,), batch_size=10, epochs=3, log_every=2, replicas=2)  # five steps an epoch


def fit(folder, on_log=None, resume=False, **fields):
    options = {"resume": folder} if resume else {}
    cfg = replace(CFG, out_dir=str(folder), **fields)
    return train(cfg, data=X, progress=False, on_log=on_log, **options)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return json.loads((folder / "summary.json").read_text())["weights_sha256"]


def test_it_gets_every_line_as_its_own_and_moves_no_bit(tmp_path):
    seen = []

    def spoil(row):
        seen.append(json.loads(json.dumps(row)))
        row.clear()

    fit(tmp_path / "seen", spoil)
    fit(tmp_path / "plain")
    assert seen == rows(tmp_path / "seen") == rows(tmp_path / "plain") and len(seen) == 12
    assert weights(tmp_path / "seen") == weights(tmp_path / "plain")


def test_it_gets_warnings_too(tmp_path):
    seen = []
    with pytest.warns(UserWarning, match="code_std is") as warned:
        fit(tmp_path, seen.append, epochs=60, optimizer="sgd", init_std=0.01)
    assert [row["warning"] for row in seen if "warning" in row] == [str(warned[0].message)]


@pytest.mark.parametrize("step", [2, 5, 9, 10, 15])
def test_true_ends_training_with_a_checkpoint(tmp_path, step):
    run = fit(tmp_path / "run", lambda row: row["step"] == step)
    info = checkpoint.load(tmp_path / "run/checkpoint.safetensors")[1]
    assert info["step"] == step == json.loads((tmp_path / "run/summary.json").read_text())["steps"]
    assert run.history["step"][-1] == step
    alone = [float(m.reconstruction_error(X).mean()) for m in run.models]
    everything = run.metrics["valid_reconstruction"]["replicas"]
    assert len(everything) == 2 and np.allclose(everything, alone, rtol=0.5)
    whole = fit(tmp_path / "whole")
    assert fit(tmp_path / "run", resume=True).history["step"].tolist()[-1] == 15
    assert weights(tmp_path / "run") == weights(tmp_path / "whole"), whole


@pytest.mark.parametrize("answer", [False, None, 1, "yes", np.True_], ids=str)
def test_nothing_but_true_ends_it(tmp_path, answer):
    assert fit(tmp_path, lambda row: answer).history["step"][-1] == 15


def test_one_that_raises_is_warned_of_and_called_no_more(tmp_path):
    calls = []

    def broken(row):
        calls.append(row)
        raise KeyError("no such thing")

    with pytest.warns(
        UserWarning, match=r"^on_log raised KeyError \('no such thing'\): it is called no more$"
    ) as warned:
        fit(tmp_path / "run", broken)
    fit(tmp_path / "plain")
    assert len(calls) == len(warned) == 1
    assert [r["step"] for r in rows(tmp_path / "run") if "warning" in r] == [2]
    assert weights(tmp_path / "run") == weights(tmp_path / "plain")


@pytest.mark.parametrize(("pause", "told"), [(0.3, 1), (0.0, 0)])
def test_a_slow_one_is_told_once(tmp_path, pause, told):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fit(tmp_path, lambda row: time.sleep(pause))
    assert len(warned) == told
    assert not told or "on_log took 1." in str(warned[0].message)


def test_a_long_run_may_have_a_hook_of_more_than_a_second(tmp_path, monkeypatch):
    clock = iter(np.arange(0, 10_000, 0.5))  # half a second a call
    monkeypatch.setattr(hooks, "perf_counter", lambda: next(clock))
    hook = hooks.Hook(lambda row: None)
    hook.began = -1000.0
    for _ in range(20):
        hook({"epoch": 0}, lambda *said: pytest.fail(str(said)))


def test_a_run_leaves_nothing_to_the_garbage_collector(tmp_path):
    """Or the memory of many runs, a GPU's too, would wait for it, which counts objects and not bytes."""
    fit(tmp_path / "first", print)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run = fit(tmp_path / "second", lambda row: None)
        assert run.model is not None
        del run
        gc.collect()
        left = [type(x) for x in gc.garbage]
        left = [
            kind.__name__ for kind in left if kind.__module__.startswith(("fastaae", "torch")) or kind is np.ndarray
        ]
        assert not left
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_tensorboard_shows_the_history(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tmp_path / "run", fastaae.tensorboard(tmp_path / "board"), epochs=2)
    fit(tmp_path / "run", fastaae.tensorboard(tmp_path / "board"), epochs=3, resume=True)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    history = fastaae.train(resume=tmp_path / "run", data=X, progress=False).history
    names = {name for name in history if name not in ("step", "epoch")}
    assert {*events.Tags()["scalars"]} == {f"{name}/{r}" for name in names for r in range(2)}
    for name in names:
        for r in range(2):
            scalars = events.Scalars(f"{name}/{r}")
            np.testing.assert_allclose([s.value for s in scalars], history[name][:, r], rtol=1e-6)
            steps = history["step"] if len(scalars) == len(history["step"]) else 5 * history["epoch"]
            assert [s.step for s in scalars] == steps.tolist()


def test_what_was_written_after_the_checkpoint_is_purged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def stopped(row, write):
        write(row)
        if row["step"] == 9:
            raise_at_nine()

    def raise_at_nine():
        raise SystemExit  # not an Exception: the process ends as if it were killed

    write = fastaae.tensorboard(tmp_path / "board")
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", lambda row: stopped(row, write))
    fit(tmp_path / "run", fastaae.tensorboard(tmp_path / "board"), resume=True)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [s.step for s in events.Scalars("reconstruction/0")] == [2, 4, 5, 7, 9, 10, 12, 14, 15]

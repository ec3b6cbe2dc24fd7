"""sweep(): members are runs, bad ones are out, halving finds the best, and what was stopped goes on."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from faults.tiny import read_json

from fastaae import Config, Interrupted, checkpoint, cli, evaluation, load, sweep, sweeping, train
from fastaae.engine.step import Step

RNG = np.random.default_rng(0)
X, Y = RNG.random((250, 12), np.float32), np.arange(250) % 4
CFG = Config(hidden=(12,), batch_size=20, epochs=4, precision="fp64", n_validation=50, init_std=0.1)
RATES = [1e-4, 1e-3, 1e-2]


def plain(found):
    """A table without directories."""
    return [{name: v for name, v in row.items() if name != "directory"} for row in found.table]


def test_members_are_runs(tmp_path):
    found = sweep(
        CFG, (X, Y), tmp_path / "a", seeds=2, progress=False, lr_adversarial=RATES[:2], hidden=[(12,), (8,)],
        prior_std=[2.0], dropout=[0.0, 0.2],
    )  # fmt: skip
    assert len(found.table) == 16 and len(found.summary) == 8 and found.metric == "valid_reconstruction"
    assert len([*(tmp_path / "a").glob("0-*")]) == 4  # for two widths, with and without dropout
    for k, row in enumerate(found.table[::3]):
        fields = {name: row[name] for name in ("lr_adversarial", "hidden", "prior_std", "dropout", "seed")}
        cfg = replace(CFG, **fields, out_dir=str(tmp_path / str(k)))
        alone = train(cfg, (X, Y), progress=False)
        assert row["valid_reconstruction"] == pytest.approx(alone.metrics["valid_reconstruction"]["mean"], rel=1e-9)
        assert row["code_std"] == pytest.approx(alone.history["code_std"][-1, 0], rel=1e-9)
        model = load(row["directory"], row["replica"])
        assert {name: getattr(model.config, name) for name in fields} == fields and row["epochs"] == 4
    first = found.summary[0]
    assert first["mean"] == min(row["mean"] for row in found.summary)
    values = [r["valid_reconstruction"] for r in found.table if all(r[n] == first[n] for n in fields if n != "seed")]
    assert first["mean"] == pytest.approx(np.mean(values)) and first["std"] == pytest.approx(np.std(values, ddof=1))
    assert found.best == replace(CFG, **{n: first[n] for n in fields if n != "seed"})


def test_memory_makes_no_difference(tmp_path, monkeypatch):
    whole = sweep(CFG, X, tmp_path / "a", seeds=2, progress=False, lr_adversarial=RATES)
    monkeypatch.setattr(sweeping.Sweeping, "room", lambda self, cfg: 2)
    parts = sweep(CFG, X, tmp_path / "b", seeds=2, progress=False, lr_adversarial=RATES)
    assert len([*(tmp_path / "a").glob("0-*")]) == 1 and len([*(tmp_path / "b").glob("0-*")]) == 3
    for a, b in zip(whole.table, parts.table, strict=True):
        assert a["valid_reconstruction"] == pytest.approx(b["valid_reconstruction"], rel=1e-9)


def test_a_member_that_diverges_is_out_and_moves_no_other(tmp_path):
    odd = sweep(CFG, X, tmp_path / "a", progress=False, lr_reconstruction=[*RATES, 1e200])
    good = sweep(CFG, X, tmp_path / "b", progress=False, lr_reconstruction=RATES)
    assert [row["out"] for row in odd.table] == ["", "", "", "diverged"]
    assert odd.summary[-1] | {"lr_reconstruction": 0} == {
        "lr_reconstruction": 0, "epochs": 0, "seeds": 1, "out": 1, "mean": None, "std": None, "why": "diverged",
    }  # fmt: skip
    assert odd.table[3]["directory"] is None and [row["why"] for row in odd.summary[:3]] == [""] * 3
    for a, b in zip(odd.table, good.table, strict=False):
        assert a["valid_reconstruction"] == pytest.approx(b["valid_reconstruction"], rel=1e-9)
    assert odd.best == good.best


def test_one_that_diverges_late_does_so_from_the_last_checkpoint(tmp_path, monkeypatch):
    steps, call = [], Step.__call__

    def poisoned(step):
        call(step)
        steps.append(step.cfg.replicas)
        if len(steps) == 25:  # in the third epoch
            step.networks["encoder"].weights[0][1] = np.nan

    monkeypatch.setattr(Step, "__call__", poisoned)
    cfg = replace(CFG, checkpoint_every=1)
    found = sweep(cfg, X, tmp_path / "a", progress=False, lr_adversarial=RATES)
    monkeypatch.undo()
    good = sweep(cfg, X, tmp_path / "b", progress=False, lr_adversarial=RATES)
    assert [row["out"] for row in found.table] == ["", "diverged", ""]
    assert steps == [3] * 30 + [2] * 20  # the third epoch again
    for k in (0, 2):
        assert found.table[k]["valid_reconstruction"] == pytest.approx(good.table[k]["valid_reconstruction"], rel=1e-9)
    again = sweep(cfg, X, tmp_path / "a", progress=False, lr_adversarial=RATES)
    assert [row["out"] for row in again.table] == ["", "", ""] and len([*(tmp_path / "a").glob("0-*")]) == 2


def test_collapsed_members_are_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping.watch, "SOON", 0)
    monkeypatch.setattr(sweeping, "COLLAPSED", 0.0)
    spread = [row["code_std"] for row in sweep(CFG, X, tmp_path / "a", progress=False, lr_reconstruction=RATES).table]
    monkeypatch.setattr(sweeping, "COLLAPSED", np.mean(spread))
    found = sweep(CFG, X, tmp_path / "a", progress=False, lr_reconstruction=RATES)
    assert [row["out"] for row in found.table] == ["collapsed" if s < np.mean(spread) else "" for s in spread]
    assert {"collapsed", ""} == {row["out"] for row in found.table}
    monkeypatch.setattr(sweeping, "COLLAPSED", np.inf)
    with pytest.raises(ValueError, match=r"all 3 members are out \(collapsed\)"):
        sweep(CFG, X, tmp_path / "a", progress=False, lr_reconstruction=RATES)


@pytest.mark.parametrize("rates", [[0.0], [0.0, 1e-3]])
def test_without_a_game_nothing_collapses(tmp_path, rates):
    found = sweep(CFG, X, tmp_path / "a", progress=False, lr_adversarial=rates)
    assert [math.isnan(row["code_std"]) for row in found.table] == [not rate for rate in rates]
    assert all(row["out"] == "" and math.isfinite(row["valid_reconstruction"]) for row in found.table)
    assert sweep(CFG, X, tmp_path / "a", progress=False, lr_adversarial=rates).best == found.best


@pytest.mark.parametrize(("n", "eta", "epochs"), [(27, 3, 27), (9, 3, 9), (12, 3, 10), (16, 2, 16), (16, 4, 16)])
def test_halving_finds_the_best_of_a_planted_grid(tmp_path, monkeypatch, n, eta, epochs):
    """A made metric, for which a rate's worth shows a little more after each epoch."""
    cost, best, whole = [], 0.37, 10
    call = Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda step: (call(step), cost.append(step.cfg.replicas)))

    def made(models, data, split):
        epoch = len(seen := epochs_of.setdefault(id(models), []))
        seen.append(1)
        return {"valid_reconstruction": [abs(m.config.lr_adversarial - best) + 1 / (1 + epoch) for m in models]}

    epochs_of = {}
    monkeypatch.setattr(evaluation, "evaluate", made)
    rates = [*np.linspace(0.01, 0.99, n)]
    found = sweep(replace(CFG, epochs=epochs), X, tmp_path / "a", progress=False, halving=eta, lr_adversarial=rates)
    assert found.best.lr_adversarial == min(rates, key=lambda rate: abs(rate - best))
    assert sum(cost) <= n * epochs * whole * (1 / 3 if eta > 2 else 0.4)
    assert found.summary[0]["epochs"] == epochs and max(row["epochs"] for row in found.summary[1:]) < epochs
    assert [row["why"] for row in found.summary] == ["", *["dropped"] * (n - 1)]


def test_those_left_go_on_as_if_nothing_had_been(tmp_path):
    found = sweep(
        replace(CFG, epochs=9), (X, Y), tmp_path / "a", seeds=2, progress=False, halving=3,
        lr_adversarial=[1e-4, 3e-4, 1e-3], input_noise=[0.1, 0.2, 0.3],
    )  # fmt: skip
    left = [row for row in found.table if row["epochs"] == 9]
    assert len(left) == 2 and {row["epochs"] for row in found.table} == {1, 3, 9}
    assert len([*(tmp_path / "a").glob("*/checkpoint.safetensors")]) == 3  # which every member can be loaded from
    assert not [*(tmp_path / "a").glob("*/checkpoint.previous.safetensors")]
    for row in left:
        fields = {name: row[name] for name in ("lr_adversarial", "input_noise", "seed")}
        run = train(replace(CFG, epochs=9, **fields, out_dir=str(tmp_path / str(row["seed"]))), (X, Y), progress=False)
        assert row["valid_reconstruction"] == pytest.approx(run.metrics["valid_reconstruction"]["mean"], rel=1e-9)


SCRIPT = """
import json, sys, time
import numpy as np
from fastaae import Config, sweep
from fastaae.engine.step import Step

call = Step.__call__
Step.__call__ = lambda step: (call(step), time.sleep(0.01))
print("imported", flush=True)
cfg = Config(**json.loads(sys.argv[2]))
sweep(cfg, np.load(sys.argv[3]), sys.argv[1], progress=False, halving=2, lr_adversarial=json.loads(sys.argv[4]))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_sweep_goes_on(tmp_path, sent):
    np.save(tmp_path / "x.npy", X)
    cfg, rates = replace(CFG, epochs=8, hidden=(8,)), [1e-4, 3e-4, 1e-3, 3e-3]
    whole = sweep(cfg, X, tmp_path / "whole", progress=False, halving=2, lr_adversarial=rates)
    arguments = [str(tmp_path / "a"), json.dumps(cfg.to_dict()), str(tmp_path / "x.npy"), json.dumps(rates)]
    stops = 0
    for seconds in (0.1, 0.3, 0.5, None):
        with subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=-1, stderr=-1) as process:
            assert process.stdout.readline() == b"imported\n"
            if seconds is not None:
                time.sleep(seconds)
                process.send_signal(sent)
            error = process.communicate(timeout=100)[1].decode()
        stops += process.returncode != 0
        if sent == signal.SIGTERM and process.returncode not in (0, -signal.SIGTERM):
            assert "stopped; the same sweep with out_dir=" in error
    assert stops and process.returncode == 0, error
    found = sweep(cfg, X, tmp_path / "a", progress=False, halving=2, lr_adversarial=rates)
    assert plain(found) == plain(whole) and found.summary == whole.summary  # to the bit


def test_the_shorter_run_may_be_best(tmp_path, monkeypatch):
    made = {"valid_reconstruction": lambda c: 1 + abs(c.epochs - 2)}
    evaluated = lambda models, data, split: {name: [f(m.config) for m in models] for name, f in made.items()}  # noqa: E731
    monkeypatch.setattr(evaluation, "evaluate", evaluated)
    found = sweep(CFG, X, tmp_path / "a", progress=False, epochs=[1, 2, 3])
    assert found.best.epochs == 2 and [row["epochs"] for row in found.summary] == [2, 1, 3]


def test_other_data_are_refused_and_a_loader_is_read_once(tmp_path):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(X)), 16, shuffle=True)
    found = sweep(CFG, loader, tmp_path / "a", progress=False, log_every=[1, 50])
    assert found.table[0]["valid_reconstruction"] == found.table[1]["valid_reconstruction"]
    with pytest.raises(ValueError, match="a sweep of other data, expected the same"):
        sweep(CFG, X / 2, tmp_path / "a", progress=False, log_every=[1, 50])


def test_numbers_of_numpy(tmp_path):
    found = sweep(
        CFG, X, tmp_path / "a", seeds=np.int64(2), n=np.int64(4), progress=False, hidden=[(8,)],
        lr_adversarial=(np.float64(1e-4), np.float64(1e-2)), prior_std=(1, 3),
    )  # fmt: skip
    assert len({row["lr_adversarial"] for row in found.table}) == 4 == len({row["prior_std"] for row in found.table})


def test_another_sweep_is_refused(tmp_path):
    sweep(CFG, X, tmp_path / "a", progress=False, lr_adversarial=RATES)
    with pytest.raises(ValueError, match="a sweep of other config, settings, expected the same, or none"):
        sweep(replace(CFG, epochs=5), X, tmp_path / "a", progress=False, lr_adversarial=RATES[:2])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty directory"):
        sweep(CFG, X, tmp_path / "b", progress=False, lr_adversarial=RATES)


def test_random_settings():
    fields = {"lr_adversarial": (1e-5, 1e-1), "style_dim": (2, 9), "input_noise": (0.0, 0.5), "hidden": [(8,), (9, 9)]}
    found = sweeping._settings(CFG, 400, {**fields})
    assert found == sweeping._settings(CFG, 400, {**fields})
    assert found != sweeping._settings(replace(CFG, seed=1), 400, {**fields})
    logs = np.log10([s["lr_adversarial"] for s in found])
    assert abs(logs.mean() + 3) < 0.2 and -5 <= logs.min() < -4.9 and -1.1 < logs.max() <= -1
    assert {s["style_dim"] for s in found} == {*range(2, 10)} and {s["hidden"] for s in found} == {(8,), (9, 9)}
    noise = [s["input_noise"] for s in found]
    assert 0 <= min(noise) < 0.02 and 0.48 < max(noise) <= 0.5 and len(found) == 400


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {}, "sweep: fields={}, expected lists of values"),
        ({"lr_adversarial": []}, {}, r"lr_adversarial=\[\]: expected a list of values"),
        ({"lr_adversarial": 0.1}, {}, "lr_adversarial=0.1: expected a list of values"),
        ({"lr_advesarial": [0.1]}, {}, "got 'lr_advesarial', expected a field of Config.*'lr_adversarial'"),
        ({"seed": [1, 2]}, {}, "got 'seed', expected a field of Config to vary, not one of"),
        ({"dropout": [0.1, 2.0]}, {}, r"dropout=2.0: expected a number in \[0, 1\)"),
        ({"dropout": [0.1]}, {"seeds": 0}, "seeds=0: expected an integer, at least 1"),
        ({"dropout": [0.1]}, {"halving": 1}, "halving=1: expected an integer, at least 2"),
        ({"dropout": [0.1]}, {"n": 0.5}, "n=0.5: expected an integer"),
        ({"dropout": (0.5, 0.1)}, {"n": 2}, r"dropout=\(0.5, 0.1\): expected a range \(low, high\)"),
        ({"epochs": [1, 2]}, {"halving": 2}, r"epochs=\[1, 2\]: expected one number, cfg's, with halving=2"),
        (
            {"dropout": [0.1]},
            {"metric": "valid_eror"},
            "metric='valid_eror': expected valid_reconstruction or a valid_",
        ),
        ({"dropout": [0.1]}, {"metric": "valid_nmi"}, "metric='valid_nmi': expected valid_reconstruction or a valid_"),
        ({"dropout": [0.1]}, {"metric": "test_error"}, "metric='test_error': expected valid_reconstruction or a"),
        ({"dropout": [0.1]}, {"metric": "valid_error"}, "metric='valid_error': expected one of valid_reconstruction"),
        ({"scale": ["unit", "standard"]}, {}, "metric=None: expected an error, since losses of different"),
        ({"dataset": ["digits"]}, {}, "got 'dataset', expected a field of Config to vary, not one of"),
        ({"dropout": [0.1, 0.2]}, {"halving": 3}, "halving=3: expected at least as many settings, there are 2"),
        ({"dropout": [0.1]}, {"cfg": replace(CFG, n_validation=0)}, "n_validation=0: expected validation examples"),
        ({"dropout": [0.1]}, {"cfg": Config(task="gan")}, "task='gan'.*: expected a validation metric"),
        ({"dropout": [0.1]}, {"cfg": Config(keep="best")}, "keep='best': expected 'last' in a sweep"),
        ({"dropout": [0.1]}, {"cfg": Config(patience=3)}, "patience=3: expected None in a sweep"),
        (
            {"dropout": [0.1]},
            {"cfg": Config(start_epochs=(1,), keep="best")},
            r"start_epochs=\(1,\): expected \(\) in a sweep",
        ),
        ({"keep": ["last", "best"]}, {}, "got 'keep', expected a field of Config to vary, not one of"),
        ({"dropout": [0.1]}, {"cfg": replace(CFG, precision="fp16")}, "precision='fp16': its loss scale is of all"),
        ({"precision": ["fp64", "fp16"]}, {}, "precision='fp16': its loss scale is of all"),
        ({"momentum": [0.5, 0.9]}, {}, "momentum=0.5: no effect, leave it out: it is for optimizer='sgd' alone"),
        (
            {"optimizer": ["sgd", "adam"], "momentum_adversarial": [0.5]},
            {},
            "momentum_adversarial=0.5: no effect, .*sgd",
        ),
        ({"lr_adversarial": [0.1]}, {"cfg": Config(regularizer="mmd")}, "lr_adversarial=0.1: no effect, .*='mmd'"),
        ({"lr_classification": [0.1]}, {}, "lr_classification=0.1: .*: the task 'unsupervised' learns no labels"),
        ({"lr_decay": [0.1, 0.3]}, {}, "lr_decay=0.1: no effect, leave it out: no decay in epochs=1"),
        ({"lr_decay_epochs": [(), (1,)]}, {}, r"lr_decay_epochs=\(1,\): no effect, leave it out: no decay in epochs=1"),
        (
            {"lr_decay_epochs": [()]},
            {"cfg": Config(lr_decay=1.0)},
            r"lr_decay_epochs=\(\): no effect, .*: lr_decay=1.0",
        ),
        ({"products": ["onednn", "torch"]}, {}, "products='onednn': no effect, leave it out: precision='fp64'"),
        ({"dropout": [0.1], "hidden": [(8,), ()]}, {}, r"dropout=0.1: no effect, leave it out: hidden=\(\)"),
        ({"regularizer_weight": [1.0, 2.0]}, {}, "regularizer_weight=2.0: expected 1.0 with discriminators"),
        ({"fixed_heads": [None, 2.0]}, {}, "fixed_heads=2.0: expected None in the task 'unsupervised'"),
    ],
)
def test_what_cannot_be_swept_is_refused(tmp_path, fields, options, message):
    cfg = options.pop("cfg", replace(CFG, epochs=1))
    with pytest.raises(ValueError, match=message):
        sweep(cfg, X, tmp_path / "a", progress=False, **options, **fields)


def test_fields_with_an_effect_are_swept():
    cfg, decays = replace(CFG, optimizer="sgd", task="semi_supervised"), [(), (2,), (3, 100)]
    fields = {"momentum": [0.5], "momentum_adversarial": [0.5], "lr_classification": [0.1], "lr_decay_epochs": decays}
    assert len(sweeping._settings(cfg, None, {**fields, "dropout": [0.1]})) == 3
    assert len(sweeping._settings(replace(cfg, lr_decay_epochs=(3,)), None, {"lr_decay": [0.1, 0.2]})) == 2


def test_a_damaged_file_of_a_sweep_is_named(tmp_path):
    sweep(CFG, X, tmp_path / "a", progress=False, lr_adversarial=RATES)
    (summary,), plan = (tmp_path / "a").glob("0-*/summary.json"), tmp_path / "a" / "sweep.json"
    for path, hint in ((summary, "move it away to go on without it"), (plan, "name another out_dir")):
        whole = path.read_bytes()
        for content in (whole[:-9], b"", b"\xff", b"[]"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=rf"^{path}: damaged \(.*\); {hint}$"):
                sweep(CFG, X, tmp_path / "a", progress=False, lr_adversarial=RATES)
        path.write_bytes(whole)
    before = sweep(CFG, X, tmp_path / "a", progress=False, lr_adversarial=RATES)
    summary.unlink()
    assert sweep(CFG, X, tmp_path / "a", progress=False, lr_adversarial=RATES).table == before.table


def test_one_that_was_killed_as_it_began_begins(tmp_path):
    (tmp_path / "a").mkdir()
    for name in (".lock", ".sweep.json.0123456789ab.tmp.json"):
        (tmp_path / "a" / name).write_text("")
    sweep(CFG, X, tmp_path / "a", progress=False, lr_adversarial=RATES)


def test_a_sweep_is_no_run(tmp_path, capsys):
    found = sweep(CFG, X, tmp_path / "a", progress=False, lr_adversarial=RATES, hidden=[(12,), (8,)])
    best = min(found.table, key=lambda row: row["valid_reconstruction"])
    message = f"{tmp_path / 'a'}: a sweep, expected the directory of a run: replica {best['replica']} of "
    message += f"{best['directory']} is the best"
    for words in (["evaluate"], ["export"], ["resume"]):
        assert cli.main([words[0], str(tmp_path / "a")]) == 2
        assert capsys.readouterr().err == f"fastaae: {message}\n"
    with pytest.raises(ValueError, match="a sweep, expected the directory of a run"):
        load(tmp_path / "a")
    plan = tmp_path / "a" / "sweep.json"
    plan.write_text(json.dumps({name: v for name, v in read_json(plan.parent, plan.name).items() if name != "best"}))
    with pytest.raises(ValueError, match="a sweep, expected the directory of a run$"):
        load(tmp_path / "a")  # of one that was stopped


def test_the_step_of_a_checkpoint(tmp_path):
    train(replace(CFG, epochs=1, out_dir=str(tmp_path / "a")), X, progress=False)
    path = tmp_path / "a" / "checkpoint.safetensors"
    assert checkpoint.step_of(path) == checkpoint.load(path).info["step"] == 10
    load(path).save(tmp_path / "model")
    assert checkpoint.step_of(tmp_path / "model") is checkpoint.step_of(tmp_path / "none") is None
    path.write_bytes(path.read_bytes()[:100])
    assert checkpoint.step_of(path) is None


RANKS = """
import json, sys
import numpy as np, torch
from fastaae import Config, sweep

torch.distributed.init_process_group("gloo")
cfg = Config(**json.loads(sys.argv[2]))
options = {"seeds": 2, "progress": False, "halving": 2}
rates = [1e-4, 3e-4, 1e-3, 1e200]
found = sweep(cfg, np.load(sys.argv[1] + "/x.npy"), sys.argv[1] + "/a", **options, lr_reconstruction=rates)
again = sweep(cfg, np.load(sys.argv[1] + "/x.npy"), sys.argv[1] + "/a", **options, lr_reconstruction=rates)
with open(f"{sys.argv[1]}/{torch.distributed.get_rank()}.json", "w") as file:
    json.dump([found.table, found.summary, again.table], file)
torch.distributed.destroy_process_group()
"""


def test_ranks_share_a_sweep(tmp_path, two_ranks):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "ranks.py").write_text(RANKS)
    done = two_ranks(tmp_path / "ranks.py", tmp_path, json.dumps(CFG.to_dict()), patience=120)
    assert done.returncode == 0, done.stderr
    (table, summary, again), other = (json.loads((tmp_path / f"{k}.json").read_text()) for k in range(2))
    assert [table, summary, again] == other and table == again
    alone = sweep(CFG, X, tmp_path / "one", 2, halving=2, progress=False, lr_reconstruction=[1e-4, 3e-4, 1e-3, 1e200])
    for a, b in zip(table, alone.table, strict=True):
        assert a["out"] == b["out"] and a["epochs"] == b["epochs"]
        if not a["out"]:
            assert a["valid_reconstruction"] == pytest.approx(b["valid_reconstruction"], rel=1e-9)
            assert load(a["directory"], a["replica"]).config.seed == a["seed"]


def test_from_the_shell(tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    words = ["sweep", "--dataset", str(tmp_path / "x.npy"), "--epochs", "2", "--hidden", "8", "--seeds", "2"]
    words += ["--lr-adversarial", "1e-4", "1e-3", "--dropout=0.1", "--out-dir", str(tmp_path / "a"), "--quiet"]
    words += ["--batch-size", "20"]
    assert cli.main(words) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["lr_adversarial", "epochs", "seeds", "out", "valid_reconstruction"]
    assert {row.split()[0] for row in table[1:3]} == {"0.0001", "0.001"} and "+-" in table[1]
    assert table[3] == f"sweep directory: {tmp_path / 'a'}"
    assert table[4].startswith("next: fastaae train --dataset") and table[4].split()[-2] == "--lr-adversarial"
    assert "--dropout 0.1" in table[4] and "--out-dir" not in table[4]
    assert read_json(tmp_path / "a", "sweep.json")["config"]["dropout"] == 0.1
    assert cli.main(words) == 0 and capsys.readouterr().out.splitlines() == table
    random = [*words[:-4], str(tmp_path / "b"), "--quiet", "--batch-size", "20", "--n", "3", "--prior-std", "1:5"]
    assert cli.main(random) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    own = ["sweep", "--dataset", str(tmp_path / "x.npy"), "--batch-size", "20", "--epochs", "2", "--out-dir"]
    assert cli.main([*own, str(tmp_path / "c"), "--hidden", "6,5", "9", "--quiet"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert {row.split()[0] for row in table[1:3]} == {"6,5", "9"}
    assert table[4].split(" --hidden ")[-1] == table[1].split()[0].replace(",", " ")
    own += [str(tmp_path / "d"), "--hidden", "6", "--quiet", "--halving", "2", "--lr-reconstruction"]
    assert cli.main([*own, "1e-4", "1e-3", "1e200"]) == 0
    table = [row.split() for row in capsys.readouterr().out.splitlines()[1:4]]
    assert [row[3] for row in table[1:]] == ["dropped", "1"] and table[2] == ["1e+200", "0", "1", "1", "diverged"]
    assert cli.main([*own, "1e-4", "1e-3", "--device", "cuda:1"]) == 2
    assert "device='cuda:1'" in capsys.readouterr().err  # no range
    assert cli.main(["sweep", "digits", "--hidden", "8,x"]) == 2
    assert "--hidden 8,x: expected values of type int" in capsys.readouterr().err
    assert cli.main(["sweep", "digits", "--lr-adversarial", "a", "b"]) == 2
    assert "--lr-adversarial a b: expected values of type float" in capsys.readouterr().err
    assert cli.main(["sweep", "digits"]) == 2 and "fields={}, expected" in capsys.readouterr().err


def test_interrupted_is_public():
    assert issubclass(Interrupted, KeyboardInterrupt)

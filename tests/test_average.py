"""Averaged weights: the plain recursion of what each step has left, kept, gone on with and evaluated."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from faults.tiny import read_json

from fastaae import Config, checkpoint, cli, evaluation, load, train
from fastaae.data import from_arrays
from fastaae.engine.step import Step

RNG = np.random.default_rng(0)
X, Y = RNG.random((200, 12), np.float32), np.arange(200) % 4
CFG = Config(
    task="semi_supervised", hidden=(12,), batch_size=20, epochs=3, replicas=2, n_validation=40, average=0.9,
    batch_norm="encoder", log_every=4,
)  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("fields", [{}, {"task": "embedding", "scale": "standard"}], ids=["head", "embedding"])
def test_it_is_the_recursion(precision, fields):
    cfg = replace(CFG, precision=precision, **fields)
    step = Step(cfg, from_arrays((X, Y), 40, scale=cfg.scale), "cpu")
    expected = {}
    for k in range(16):
        if k % step.steps_per_epoch == 0:
            step.start_epoch(k // step.steps_per_epoch)
        step.slot.zero_()
        step()
        share = max(1 / (k + 1), 1 - cfg.average)
        for name, t in step.parameters().items():
            if not name.startswith("discriminator."):
                expected[name] = t.double() * share + (1 - share) * expected.get(name, torch.zeros(()))
    assert step.average.keys() == expected.keys()
    for name, t in step.average.items():
        tight = precision == "fp64" or t.dtype == torch.float64
        torch.testing.assert_close(t.double(), expected[name].double(), rtol=1e-6, atol=1e-8 if tight else 1e-6)
    assert not torch.equal(step.average["encoder.0.weight"], step.parameters()["encoder.0.weight"])


def test_it_moves_no_other_bit_and_is_evaluated(tmp_path):
    plain = train(replace(CFG, average=0.0, out_dir=str(tmp_path / "a")), (X, Y), progress=False)
    run = train(replace(CFG, out_dir=str(tmp_path / "b")), (X, Y), progress=False)
    digests = [read_json(tmp_path / n, "summary.json")["weights_sha256"] for n in "ab"]
    assert digests[0] == digests[1] and not plain.averaged and len(run.averaged) == 2
    for name, metric in plain.metrics.items():
        assert run.metrics[name] == metric
    data = from_arrays((X, Y), 40)
    for name, values in evaluation.evaluate(run.averaged, data, "valid").items():
        assert run.metrics[name.replace("valid_", "valid_averaged_")]["replicas"] == values
        assert run.history[name.replace("valid_", "valid_averaged_")][-1].tolist() == values
        assert run.metrics[name]["replicas"] != values
    for r, model in enumerate(run.averaged):
        found = load(tmp_path / "b", r, averaged=True)
        np.testing.assert_array_equal(found.encode(X), model.encode(X))
        assert np.abs(found.encode(X) - load(tmp_path / "b", r).encode(X)).max() > 1e-4
    with pytest.raises(ValueError, match="averaged=True, expected False: it holds no averages"):
        load(tmp_path / "a", averaged=True)


def test_it_goes_on(tmp_path):
    whole = train(replace(CFG, out_dir=str(tmp_path / "a")), (X, Y), progress=False)
    train(replace(CFG, epochs=1, out_dir=str(tmp_path / "b")), (X, Y), progress=False)
    again = train(CFG, (X, Y), resume=tmp_path / "b", progress=False)
    assert whole.metrics == again.metrics
    a, b = (checkpoint.load(tmp_path / n / "checkpoint.safetensors").tensors for n in "ab")
    assert checkpoint.digest(a) == checkpoint.digest(b) and any(n.startswith("average.") for n in a)


def test_averages_stay_averages_beside_the_best(tmp_path):
    run = train(replace(CFG, keep="best", lr_reconstruction=0.01, out_dir=str(tmp_path / "a")), (X, Y), progress=False)
    found = load(tmp_path / "a", 1, averaged=True)
    np.testing.assert_array_equal(found.encode(X), run.averaged[1].encode(X))
    assert np.abs(found.encode(X) - load(tmp_path / "a", 1).encode(X)).max() > 1e-4


def test_from_the_shell(tmp_path, capsys):
    """Every command that loads a model takes --averaged."""
    np.savez(tmp_path / "x.npz", x=X, y=Y, x_test=X[:30], y_test=Y[:30])
    run = train(replace(CFG, out_dir=str(tmp_path / "a")), tmp_path / "x.npz", progress=False)
    for part, words in (("averaged_", ["--averaged"]), ("", [])):
        assert cli.main(["evaluate", str(tmp_path / "a"), *words]) == 0
        told = dict(item for line in capsys.readouterr().out.splitlines() for item in json.loads(line).items())
        for name, metric in told.items():
            assert metric == run.metrics[name.replace("_", f"_{part}", 1)] and len(metric["replicas"]) == 2
        models, out = run.averaged if words else run.models, str(tmp_path / "z.npy")
        for name, given in (("encode", [str(tmp_path / "x.npz")]), ("sample", [])):
            assert cli.main([name, str(tmp_path / "a"), *given, "--out", out, "--replica", "1", *words]) == 0
            expected = models[1].encode(X) if given else models[1].sample(64, 0)
            np.testing.assert_array_equal(np.load(out), expected)
        capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "a"), "--replica", "1"]) == 0
    metric = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(m["replicas"] == run.metrics[name]["replicas"][1:] for name, m in metric.items())
    train(replace(CFG, average=0.0, out_dir=str(tmp_path / "b")), tmp_path / "x.npz", progress=False)
    for name in cli.ON_RUNS:
        assert cli.main([name, str(tmp_path / "b"), "--averaged"]) == 2
        assert "averaged=True, expected False: it holds no averages" in capsys.readouterr().err

"""Replicas that differ: each of them is the run that it would be alone, whatever trains beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from faults.tiny import read_json

from fastaae import Config, checkpoint, load, train
from fastaae.data import from_arrays
from fastaae.engine.step import Step
from fastaae.kernels import INTERPRETED
from fastaae.members import VARIED, Members

RNG = np.random.default_rng(0)
X, Y = RNG.random((200, 20), np.float32), np.arange(200) % 4
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
FIELDS = {"hidden": (16, 12), "batch_size": 10, "log_every": 20, "epochs": 3, "seed": 3, "init_std": 0.1}
SGD = {"optimizer": "sgd", "lr_reconstruction": 0.01, "lr_adversarial": 0.05, "lr_classification": 0.05}
CASES = [  # a field, its values, what it is a field of
    ("lr_reconstruction", [1e-3, 2e-3, 5e-2], {}),
    ("lr_adversarial", [1e-3, 2e-3, 5e-2], {}),
    ("lr_classification", [1e-3, 2e-3, 5e-2], {"task": "semi_supervised"}),
    ("momentum", [0.0, 0.5, 0.9], {"task": "semi_supervised", **SGD}),
    ("momentum", [0.0, 0.5, 0.9], {"task": "embedding", "batch_norm": "encoder", **SGD}),
    ("momentum_adversarial", [0.0, 0.5, 0.9], SGD),
    ("input_noise", [0.1, 0.2, 0.3], {"task": "semi_supervised"}),
    ("prior_std", [1.0, 2.0, 5.0], {"task": "clustering", "n_clusters": 3}),
    ("prior_std", [1.0, 2.0, 5.0], {"prior": "mixture", "label_prior": True, "components": 4}),
    ("prior_std", [1.0, 2.0, 5.0], {"prior": "swiss_roll", "posterior": "universal"}),
    ("prior_std", [1.0, 2.0, 5.0], {"regularizer": "kl", "posterior": "gaussian"}),
    ("prior_std", [1.0, 2.0, 5.0], {"regularizer": "mmd", "prior": "uniform"}),
    ("regularizer_weight", [0.1, 1.0, 3.0], {"regularizer": "mmd"}),
    ("regularizer_weight", [0.1, 1.0, 3.0], {"regularizer": "kl", "posterior": "gaussian"}),
    ("dropout", [0.1, 0.25, 0.5], {"task": "supervised", "input_dropout": 0.2}),
    ("dropout", [0.1, 0.25, 0.5], {"task": "gan"}),
    ("input_noise", [0.1, 0.2, 0.3], {"task": "gan", "batch_norm": "autoencoder"}),
    ("seed", [5, 3, 9], {"task": "semi_supervised", "n_labeled": 40}),
]


def data():
    return from_arrays((X, Y), 20)


def stepped(cfg: Config, members: Members | None = None, steps: int = 20) -> dict[str, torch.Tensor]:
    step = Step(cfg, data(), DEVICE, None, members)
    for k in range(steps):
        if k % step.steps_per_epoch == 0:
            step.start_epoch(k // step.steps_per_epoch)
            step.slot.zero_()
        step()
    return {name: t.clone() for name, t in step.parameters().items()}


def test_every_field_is_tried():
    assert {name for name, _, _ in CASES} == {*VARIED}


@pytest.mark.parametrize(("field", "values", "fields"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_each_of_three_is_what_it_is_alone(field, values, fields):
    cfg = Config(**{**FIELDS, **fields, "precision": "fp64", "replicas": 3, "lr_decay_epochs": (1,)})
    members = Members(cfg, [{field: v} for v in values])
    together = stepped(cfg, members)
    seen = 0.0
    for r, own in enumerate(members.configs):
        assert getattr(own, field) == values[r]
        for name, t in stepped(replace(own, replicas=1)).items():
            torch.testing.assert_close(together[name][r], t[0], rtol=1e-9, atol=1e-11)
        same_seed = replace(own, replicas=1, **{field: values[r - 1]})
        seen = max(seen, *((t[0] - together[n][r]).abs().max().item() for n, t in stepped(same_seed).items()))
    assert seen > 1e-6  # the field matters


MIXED = {"lr_adversarial": 2e-3, "momentum": 0.8, "input_noise": 0.2, "prior_std": 3.0, "seed": 4}


@pytest.mark.parametrize("fields", [{}, {"precision": "bf16"}, SGD, {"precision": "bf16", **SGD}], ids=str)
def test_neighbours_move_no_bit(fields):
    cfg, steps = Config(**{**FIELDS, "hidden": (32, 16), **fields, "replicas": 3}), 2 if INTERPRETED else 3
    near, far = {**MIXED, "seed": 5}, {k: v * 2 if k in ("input_noise", "prior_std") else v for k, v in MIXED.items()}
    some = stepped(cfg, Members(cfg, [near, MIXED, far]), steps)
    other = stepped(cfg, Members(cfg, [{**far, "momentum": 0.1, "seed": 9}, MIXED, near]), steps)
    for name, t in some.items():
        assert torch.equal(t[1], other[name][1]), name
    assert any(not torch.equal(t[1], t[2]) for t in some.values())


def test_in_the_interpreter(interpreted):
    if not INTERPRETED:
        interpreted(f"{__file__}::test_neighbours_move_no_bit")


RUN = Config(**FIELDS, replicas=3, task="semi_supervised", input_noise=0.1, checkpoint_every=1)
OWN = [{"lr_adversarial": 1e-3 * (1 + r), "input_noise": 0.1 * (1 + r), "seed": 7 - r} for r in range(3)]


def test_a_run_keeps_what_is_its_replicas_own(tmp_path):
    run = train(replace(RUN, out_dir=str(tmp_path / "a")), (X, Y), members=OWN, progress=False)
    info = checkpoint.load(tmp_path / "a" / "checkpoint.safetensors").info
    assert info["members"] == OWN == read_json(tmp_path / "a", "config.json")["members"]
    for r, model in enumerate(run.models):
        assert {name: getattr(model.config, name) for name in OWN[r]} == OWN[r]
        assert load(tmp_path / "a", r).config == model.config
        model.save(tmp_path / "model")
        assert load(tmp_path / "model").config == model.config
    with pytest.raises(ValueError, match=r"config.json: members=.*: expected a run of one config"):
        Config.from_json(tmp_path / "a" / "config.json")


def test_members_go_on_as_they_began(tmp_path):
    whole = train(replace(RUN, out_dir=str(tmp_path / "a")), (X, Y), members=OWN, progress=False)
    train(replace(RUN, epochs=1, out_dir=str(tmp_path / "b")), (X, Y), members=OWN, progress=False)
    with pytest.raises(ValueError, match="members were .*, expected the same, or none given"):
        train(RUN, (X, Y), resume=tmp_path / "b", members=OWN[::-1], progress=False)
    train(RUN, (X, Y), resume=tmp_path / "b", members=OWN, progress=False)
    a, b = (read_json(tmp_path / n, "summary.json") for n in "ab")
    assert a == b and len(whole.models) == 3
    config = tmp_path / "b" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "members": OWN[::-1]}))
    with pytest.raises(ValueError, match="config.json: members differ from the checkpoint's"):
        train(replace(RUN, epochs=4), (X, Y), resume=tmp_path / "b", progress=False)


KILLED = """
import json, sys, time
import numpy as np
from fastaae import Config, train
from fastaae.engine.step import Step

call = Step.__call__
Step.__call__ = lambda step: (call(step), time.sleep(0.005))
train(Config(**json.loads(sys.argv[1])), members=json.loads(sys.argv[2]), progress=False)
"""


def test_killed_and_resumed_bit_for_bit(tmp_path):
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    cfg = replace(RUN, dataset=str(tmp_path / "data.npz"), epochs=20)
    train(replace(cfg, out_dir=str(tmp_path / "whole")), members=OWN, progress=False)
    run = tmp_path / "run"
    fields = json.dumps(replace(cfg, out_dir=str(run)).to_dict())
    with subprocess.Popen([sys.executable, "-c", KILLED, fields, json.dumps(OWN)]) as process:
        deadline = time.monotonic() + 60
        while not (run / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
    assert 0 < checkpoint.load(run / "checkpoint.safetensors").info["step"] < 20 * 16
    train(resume=run, progress=False)
    assert read_json(run, "summary.json") == read_json(tmp_path / "whole", "summary.json")
    assert (run / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


RANKS = """
import json, sys
import numpy as np, torch
from fastaae import Config, train

torch.distributed.init_process_group("gloo")
data = np.load(sys.argv[1] + "/data.npz")
cfg = Config(**{**json.loads(sys.argv[2]), "out_dir": sys.argv[1] + "/run"})
run = train(cfg, (data["x"], data["y"]), members=json.loads(sys.argv[3]), progress=False)
run = train(cfg, (data["x"], data["y"]), resume=sys.argv[1] + "/run", progress=False)
with open(f"{sys.argv[1]}/{torch.distributed.get_rank()}.json", "w") as file:
    json.dump([[m.config.lr_adversarial, m.config.seed] for m in run.models], file)
torch.distributed.destroy_process_group()
"""


def test_ranks_share_members(tmp_path, two_ranks):
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    (tmp_path / "ranks.py").write_text(RANKS)
    done = two_ranks(tmp_path / "ranks.py", tmp_path, json.dumps(RUN.to_dict()), json.dumps(OWN), patience=120)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{k}.json").read_text()) for k in range(2)]
    assert found[0] + found[1] == [[own["lr_adversarial"], own["seed"]] for own in OWN]
    alone = train(replace(RUN, out_dir=str(tmp_path / "one")), (X, Y), members=OWN, progress=False)
    together = read_json(tmp_path / "run", "summary.json")["metrics"]["valid_reconstruction"]["replicas"]
    np.testing.assert_allclose(together, alone.metrics["valid_reconstruction"]["replicas"], rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "fields", "message"),
    [
        ([{}, {}], {}, r"members=\[\{\}, \{\}\]: expected a list of 3 dicts, one for each replica"),
        ({"seed": 1}, {}, "members=.*: expected a list of 3 dicts"),
        ([1, 2, 3], {}, "members=.*: expected a list of 3 dicts"),
        ("abc", {}, "members='abc': expected a list of 3 dicts"),
        ([{"seed": 1}, {"seed": 2}, {}], {}, r"members\[2\]: field 'seed': expected the same of"),
        ([{"lr_advesarial": 1.0}] * 3, {}, r"members\[0\]: field 'lr_advesarial'.*'lr_adversarial'"),
        ([{"hidden": (3,)}] * 3, {}, r"members\[0\]: field 'hidden': expected the same of lr_reconstruction"),
        ([{"dropout": 0.1 * r} for r in range(3)], {}, "dropout is 0 for some replicas, expected it of all or of none"),
        ([{"input_noise": 0.1 * r} for r in range(3)], {}, "input_noise is 0 for some"),
        ([{"lr_adversarial": 0.1 * r} for r in range(3)], {}, "lr_adversarial is 0 for some"),
        ([{"lr_adversarial": 0.0}] * 3, {}, "lr_adversarial is 0 for some"),
        ([{"dropout": 2.0}] * 3, {}, r"dropout=2.0: expected a number in \[0, 1\)"),
        ([{"seed": r} for r in range(3)], {"precision": "fp16"}, "precision='fp16': its loss scale is of all"),
    ],
)
def test_what_cannot_differ_is_refused(tmp_path, given, fields, message):
    with pytest.raises(ValueError, match=message):
        train(replace(RUN, out_dir=str(tmp_path / "a"), **fields), (X, Y), members=given, progress=False)
    assert not (tmp_path / "a").exists()

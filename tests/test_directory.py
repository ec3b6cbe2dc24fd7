"""A run's files: whose they are, what they say, where they lie, and in what order they reach the disk."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.resuming import ARRAYS, DATA
from faults.resuming import train as fit

import fastaae
from fastaae import CheckpointError, WriteError, checkpoint, parzen_log_likelihood, train
from fastaae.directory import LOCK, RunDirectory
from fastaae.engine.step import Step
from fastaae.run import provenance
from fastaae.run.watch import Watch

NEWEST, METRICS = "checkpoint.safetensors", "metrics.jsonl"
X = np.random.default_rng(0).random((60, 4))


@pytest.fixture
def run(tmp_path):
    """A finished run of two epochs."""
    fit(tmp_path / "run")
    return tmp_path / "run"


def change(path, fields=None, **info):
    """Save a checkpoint again that says something else, maybe of fields of its config; None takes a name away."""
    tensors, said = checkpoint.load(path)
    said |= {"config": said["config"] | (fields or {})} | info
    checkpoint.save(path, tensors, {name: value for name, value in said.items() if value is not None})


# What is written, and how


def test_nothing_of_the_process_is_changed_to_save(tmp_path, monkeypatch):
    for name in ("umask", "chmod", "chdir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("a thread beside this one would see it"))
    fit(tmp_path / "run", epochs=1)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "run").iterdir()} == {
        (tmp_path / "run").stat().st_mode & 0o666
    }


@pytest.mark.parametrize("code", ["EINVAL", "ENOTSUP", "EBADF", "ENOSYS", "EPERM", "EIO", "ENOSPC"])
def test_a_file_system_that_does_not_sync_folders_is_no_broken_one(tmp_path, monkeypatch, code):
    fsync = os.fsync

    def refuse(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    if code in ("EIO", "ENOSPC"):
        with pytest.raises(WriteError, match=os.strerror(getattr(errno, code))):
            fit(tmp_path / "run", epochs=1)
    else:
        fit(tmp_path / "run", epochs=1)


def test_rows_are_synced_before_the_checkpoint_that_counts_them(tmp_path, monkeypatch):
    calls, fsync, link = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(f"now {b}"), link(a, b)))
    path = tmp_path / "a" / "b"
    fit(path, epochs=1)
    at = calls.index(f"now {path / NEWEST}")
    assert {str(path / METRICS), str(tmp_path / "a"), str(tmp_path), str(path)} <= {*calls[:at]}
    assert checkpoint.load(path / NEWEST).info["metrics_bytes"] == (path / METRICS).stat().st_size


@pytest.mark.parametrize(
    "lost", ["a row", "half", "all", "file", "nothing", "tail of zeros", "tail of rows", "uncounted"]
)
def test_rows_that_a_checkpoint_counted_and_are_gone_are_said(run, lost):
    path, content = run / METRICS, (run / METRICS).read_bytes()
    left = {"a row": content[: content[:-1].rindex(b"\n") + 1], "half": content[: len(content) // 2], "all": b""}
    path.write_bytes(left.get(lost, content) + {"tail of zeros": bytes(99) + b"\n" + bytes(9), "tail of rows":
                     b'{"step": 99, "epoch": 9, "reconstruction": [1]}\n'}.get(lost, b""))  # fmt: skip
    if lost == "file":
        path.unlink()
    if lost == "uncounted":
        path.write_bytes(left["half"])
        change(run / NEWEST, metrics_bytes=0)
        change(run / NEWEST, metrics_bytes=None)  # as earlier versions, which did not count
    if lost in ("a row", "half", "all", "file"):
        with pytest.warns(
            UserWarning, match=f"{METRICS}: .* bytes, the checkpoint of step 10 counted {len(content)}: rows"
        ):
            fit(run, resume=True)
    else:
        fit(run, resume=True)
    expected = left.get({"file": "all", "uncounted": "half"}.get(lost, lost), content)
    assert path.read_bytes() == expected[: expected.rfind(b"\n") + 1]


def test_columns_are_those_of_the_rows(run):
    with open(run / METRICS, "a") as rows:
        rows.write('{"step": 11, "epoch": 2, "warning": "w"}\n{"step": 12, "epo')
    history = RunDirectory(run).history()
    assert history["step"].dtype == np.int64 and history["reconstruction"].dtype == np.float64
    assert history["step"].tolist() == [2, 4, 5, 7, 9, 10] and history["reconstruction"].shape == (6, 2)


@pytest.mark.parametrize("row", ['"step": 1.0', '"step": true', '"step": "1"', '"step": 1, "epoch": "0"',
                                 '"step": 1, "epoch": 0.5', '"step": 1, "epoch": 0, "a": 1',
                                 '"step": 1, "epoch": 0, "a": [true]', '"step": 1, "epoch": 0, "a": ["1"]',
                                 '"step": 1, "epoch": 0, "a": [[1]]', '"step": 1, "epoch": 0, "a": "11"',
                                 f'"step": {2**70}, "epoch": 0, "a": [1]'])  # fmt: skip
def test_rows_of_other_types_are_refused(tmp_path, row):
    (tmp_path / METRICS).write_text(f"{{{row}}}\n")
    with pytest.raises(ValueError, match=f"{METRICS}: damaged .*; move it away"):
        RunDirectory(tmp_path).history()
    with pytest.raises(ValueError, match=f"{METRICS}: damaged .*; move it away"):
        RunDirectory(tmp_path).truncate(2**80, None)


def test_rows_of_other_widths_are_refused(tmp_path):
    rows = "".join(f'{{"step": {k}, "epoch": 0, "a": {[0.5] * n}}}\n' for k, n in enumerate((2, 1, 3)))
    (tmp_path / METRICS).write_text(rows)
    with pytest.raises(ValueError, match="rows that do not fit each other: a=.* expected 2 numbers"):
        RunDirectory(tmp_path).history()


@pytest.mark.parametrize("how", ["removed", "shorter", "longer", "replaced"])
def test_rows_that_another_changes_in_a_run_are_told_once(tmp_path, monkeypatch, how):
    """As they are while the run goes on: its history is not silently another."""
    path, measure, epochs = tmp_path / "run" / METRICS, Watch.measure, []

    def meddle(watch):
        epochs.append(1)
        if len(epochs) == 2:
            content = path.read_bytes()
            path.unlink()
            if how != "removed":
                path.write_bytes({"shorter": content[:-1], "longer": content + b"\n", "replaced": b"x"}[how])
        return measure(watch)

    monkeypatch.setattr(Watch, "measure", meddle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit(tmp_path / "run", epochs=3)
        except ValueError as error:
            assert how != "removed" and f"{path}: damaged" in str(error)
    (said,) = [str(w.message) for w in caught if METRICS in str(w.message)]
    assert re.match(rf"{path}: \d+ bytes, \d+ were written: ", said)


def test_a_run_does_not_mind_where_the_process_goes(tmp_path, monkeypatch):
    (tmp_path / "begun").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "begun")
    measure = Watch.measure
    monkeypatch.setattr(Watch, "measure", lambda watch: (os.chdir(tmp_path / "elsewhere"), measure(watch))[1])
    run = fit(Path("run"))
    assert run.directory == tmp_path / "begun/run" and (run.directory / "summary.json").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", [LOCK, "checkpoint.previous.safetensors", NEWEST, METRICS, "config.json"])
def test_a_folder_in_the_place_of_a_file_is_named(run, name):
    path = run / name
    path.rename(run / "was")
    path.mkdir()
    with pytest.raises((WriteError, ValueError), match=f"{run}.*{re.escape(name)}"):
        fit(run, resume=True, epochs=3)


# Whose files they are


@pytest.mark.parametrize("name", [LOCK, METRICS])
@pytest.mark.parametrize("kind", ["hard link", "link", "dangling link", "pipe"])
def test_links_out_of_the_directory_are_not_written_through(run, tmp_path, name, kind):
    outside, path = tmp_path / "outside", run / name
    outside.write_text("precious")
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "hard link":
        os.link(outside, path)
    else:
        path.symlink_to(outside if kind == "link" else tmp_path / "nowhere")
    directory = RunDirectory(run)
    with pytest.raises(OSError) as refused:
        if name == LOCK:
            with directory.held():
                pass
        else:
            directory.append({"step": 1})
    assert outside.read_text() == "precious" and not (tmp_path / "nowhere").exists()
    mode = {"hard link": "-rw-r--r-- with 2 names", "pipe": "prw-r--r-- with 1"}.get(kind, "lrwxrwxrwx with 1")
    assert f"{name} is {mode}" in str(refused.value) and "a plain file with one: delete it" in str(refused.value)
    if name == LOCK:
        with pytest.raises(WriteError, match=f"last good checkpoint: {run / NEWEST}") as error:
            fit(run, resume=True)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"])
def test_another_repository_in_the_environment_is_not_recorded(tmp_path, monkeypatch, variable):
    expected = provenance.git()
    subprocess.run(["git", "init", "-q", tmp_path / "other"], check=True)
    monkeypatch.setenv(variable, str(tmp_path / "other" / ".git"))
    assert provenance.git() == expected


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("README.md", False),
        ("docs/experiments.md", False),  # bench/reproduce.py writes its tables, and results, between two runs
        ("docs/pictures/samples.png", False),
        ("bench/results/reproduce-cpu.json", False),
        ("fastaae/run/provenance.py", True),
        ("kernels/new.py", True),
        ("bench/reproduce.py", True),
        ("setup.py", True),
    ],
)
def test_changed_code_is_recorded_and_changed_pages_are_not(tmp_path, monkeypatch, path, code):
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of a hook, its index

    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(command, check=True, env=env | {"GIT_CONFIG_GLOBAL": os.devnull})  # which may ask to sign

    module = tmp_path / "fastaae" / "run" / "provenance.py"
    changed = tmp_path / path
    for file in {module, changed} - {tmp_path / "kernels" / "new.py"}:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.git()["dirty"] is False
    changed.parent.mkdir(exist_ok=True)
    changed.write_text("after")
    assert provenance.git()["dirty"] is code


def test_a_long_command_is_recorded_in_part(tmp_path, monkeypatch):
    """Or the config.json that it makes would be beyond what is read."""
    monkeypatch.setattr("sys.argv", ["train", *["x" * 5000] * 40_000])
    fit(tmp_path)
    assert (tmp_path / "config.json").stat().st_size < 2**18
    fit(tmp_path, resume=True)


# What they say


@pytest.mark.parametrize("door", ["model", "directory", "resume"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("shape", v) for v in ([16.0], "16", [-16], [True], [], 16, None, {"0": 16}, [1] * 32, [2**31], [[16]], ["16"])]
    + [("n_classes", v) for v in ("4", 4.0, True, -1, [4], 2**40)]
    + [("config", v) for v in ([], "x", 3)]
    + [("step", v) for v in ("10", 10.0, True, -1, 2**60)] + [("restarts", v) for v in ("0", 0.0, False, 4)]
    + [("stopped", v) for v in (0, "", "no")] + [("metrics_bytes", v) for v in ("9", 9.5, -1, True)]
    + [("data_sha256", v) for v in (3, ["a"])] + [("device", v) for v in (0, ["cpu"])],
)  # fmt: skip
def test_what_a_file_says_is_not_converted(trained, tmp_path, door, name, value):
    path = tmp_path / NEWEST
    path.write_bytes((trained / NEWEST).read_bytes())
    change(path, **{name: value})
    if value is None and door == "resume":
        return  # what models need is not read
    with pytest.raises(CheckpointError, match=rf"{NEWEST}: (it holds no '{name}'|{name}=.*, expected )"):
        if door == "resume":
            fit(tmp_path, resume=True)
        else:
            fastaae.load(path if door == "model" else tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    fit(path)
    return path


@pytest.mark.parametrize(
    "fields",
    [{"hidden": [16000, 16000]}, {"style_dim": 2**30}, {"posterior": "universal", "noise_dim": 2**30},
     {"replicas": 2**30}, {"task": "clustering", "n_labeled": None, "n_clusters": 10**4},
     {"task": "embedding", "n_labeled": None, "n_clusters": 10**4, "style_dim": 10**5}],
    ids=["hidden", "style", "noise", "replicas", "clusters", "heads"],
)  # fmt: skip
def test_networks_larger_than_the_file_are_refused_before_they_are_made(trained, tmp_path, monkeypatch, fields):
    path = tmp_path / NEWEST
    path.write_bytes((trained / NEWEST).read_bytes())
    change(path, fields)
    monkeypatch.setattr(Step, "__init__", lambda *_: pytest.fail("made"))
    said = r"(\S+ has shape .*, its config needs |n_classes=.* by its config$|replica=\d+: the file holds 2, expected)"
    with pytest.raises(CheckpointError, match=f"{NEWEST}: {said}"):
        train(resume=tmp_path, data=DATA, progress=False)
    monkeypatch.setattr(torch, "zeros_like", lambda *_: pytest.fail("made"))
    if "replicas" not in fields:
        with pytest.raises(CheckpointError, match=f"{NEWEST}: "):
            fastaae.load(tmp_path)


@pytest.mark.parametrize("how", ["dropped", "added", "of another shape", "of another dtype"])
def test_optimizers_that_are_not_its_configs_are_refused(trained, tmp_path, how):
    tensors, info = checkpoint.load(trained / NEWEST)
    name = min(name for name, t in tensors.items() if name.startswith("optimizer.") and t.shape[-1] > 1)
    odd = tensors.pop(name)
    if how != "dropped":
        made = {"added": odd, "of another shape": odd[..., :1], "of another dtype": odd.double()}[how]
        tensors |= {name: odd if how == "added" else made, **({"optimizer.more": odd} if how == "added" else {})}
    checkpoint.save(tmp_path / NEWEST, tensors, info)
    before = (tmp_path / NEWEST).read_bytes()
    with pytest.raises(CheckpointError, match=rf"{NEWEST}: optimizer\.\S+ .* is in it alone, or in its config alone"):
        fit(tmp_path, resume=True)
    assert (tmp_path / NEWEST).read_bytes() == before


# Where they lie


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    cfg = replace(ARRAYS, out_dir="~/run", epochs=1)
    train(cfg, data=DATA, progress=False)
    run = train(replace(cfg, epochs=2), data=DATA, resume="~/run", progress=False)
    run.model.save("~/model")
    parzen_log_likelihood(X[:5], X, 0.3, state="~/state")
    assert fastaae.load("~/run").shape == fastaae.load("~/model").shape and run.directory == tmp_path / "run"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cwd", "model", "run", "state"]
    assert not list((tmp_path / "cwd").iterdir())


def test_a_place_that_is_not_there_is_said(trained, tmp_path):
    missing = tmp_path / "no"
    for save in (fastaae.load(trained).save, lambda path: checkpoint.write_atomic(Path(path), b"x")):
        with pytest.raises(OSError, match=f"no folder '{missing}' to write to: make it first") as error:
            save(str(missing / "m"))
        assert " MB" not in str(error.value) and error.value.errno == errno.ENOENT
    with pytest.raises(ValueError, match=f"not in {missing}"):
        parzen_log_likelihood(X[:5], X, 0.3, state=missing / "s")
    with pytest.raises(CheckpointError, match=f"{missing}: No such file") as error:
        fastaae.load(missing)
    assert not isinstance(error.value, checkpoint.DamagedError)
    path = str(trained / NEWEST)
    with pytest.raises(ValueError, match=f"^resume='{path}': a file, expected the directory of a run: '{trained}'$"):
        train(resume=path, data=DATA, progress=False)


def test_a_refused_run_leaves_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="batch_size=251"):
        train(replace(ARRAYS, out_dir=None, batch_size=251), data=DATA, progress=False)
    assert not list(tmp_path.iterdir())


# States


@pytest.mark.parametrize("name", ["s", "s.1", "a[b]", ".hidden"])
def test_what_a_killed_evaluation_had_half_written_is_removed(tmp_path, name):
    others = [f".{name}.2.abcdef012345.tmp", f".x{name}.abc.tmp", f"{name}.abc.tmp"]
    for other in [*others, f".{name}.abcdef012345.tmp", f".{name}.x7_k.tmp"]:
        (tmp_path / other).write_bytes(b"half")
    parzen_log_likelihood(X[:5], X, 0.3, state=tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, name])


@pytest.mark.parametrize("spoil", [lambda t: {"other": t}, lambda t: {"sums": t[:-1]}, lambda t: {"sums": t[0]},
                                   lambda t: {"sums": t.float()}, lambda t: {"sums": t * torch.nan},
                                   lambda t: {"sums": t - 1e6}, lambda t: {"sums": t + 1e300},
                                   *(lambda t, k=k, v=v: {"sums": t.index_fill(0, torch.tensor(k), v)}
                                     for k, v in ((2, torch.inf), (9, torch.nan)))])  # fmt: skip
def test_a_state_of_another_kind_is_refused(tmp_path, spoil):
    parzen_log_likelihood(X[:5], X, 0.3, state=tmp_path / "s")
    tensors, info = checkpoint.load(tmp_path / "s")
    checkpoint.save(tmp_path / "s", spoil(tensors["sums"]), info)
    with pytest.raises(ValueError, match="state=.*: its sums are of another kind, expected torch.float64"):
        parzen_log_likelihood(X[:5], X, 0.3, state=tmp_path / "s")


LIMITS = {"step": 2**53, "metrics_bytes": 2**53, "restarts": checkpoint.RESTARTS, "n_classes": 2**31}


@pytest.mark.parametrize("name", [*LIMITS, "shape", "axes"])
def test_what_a_file_says_is_taken_up_to_its_limit(name):
    most, beyond = {"shape": ([2**31 - 1], [2**31]), "axes": ([1] * 31, [1] * 32)}.get(
        name, (LIMITS.get(name), LIMITS.get(name, 0) + 1)
    )
    field = "shape" if name == "axes" else name
    checkpoint.check_info(Path("file"), {field: most})
    with pytest.raises(checkpoint.CheckpointError, match=f"file: {field}="):
        checkpoint.check_info(Path("file"), {field: beyond})

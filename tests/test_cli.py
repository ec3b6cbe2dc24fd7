from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from faults.tiny import read_json, weights

import fastaae
from fastaae import Config, cli, config, presets
from fastaae.data import sources
from fastaae.directory import RunDirectory
from fastaae.engine.step import Step
from fastaae.run import training
from fastaae.run.resume import RESUMABLE

TRAIN = ["train", "digits", "--hidden", "16", "16"]
SMALL = [*TRAIN, "--epochs", "1"]
SEMI = ["--task", "semi_supervised", "--n-labeled", "100", "--replicas", "2"]
HAS_MNIST = any(Path(os.environ.get("FASTAAE_DATA", "/nowhere")).glob("**/train-images*"))
WIDE = ["--init-std", "0.3"]  # so that pictures depend on the code after one epoch


def status(*arguments):
    """Exit status of a command run in this process; --help leaves by SystemExit."""
    try:
        return cli.main([str(a) for a in arguments])
    except SystemExit as error:
        return error.code


def start(*arguments, cwd):
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "fastaae.cli", *arguments], cwd=cwd, env=env, **pipes)


def errors(text):
    """The last lines of standard error, without what a run says as it goes."""
    return "".join(line for line in text.splitlines(True) if line.startswith("fastaae: "))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Directory of a finished run of two replicas with a label head."""
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert status(*SMALL, *SEMI, *WIDE, "--out-dir", directory) == 0
    return directory


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def signal_at_step(monkeypatch):
    """A function that has a signal sent during the k-th step."""
    call = Step.__call__

    def plan(k, signum):
        count = itertools.count(1)

        def step(self):
            call(self)
            if next(count) == k:
                os.kill(os.getpid(), signum)

        monkeypatch.setattr(Step, "__call__", step)

    return plan


# Commands


def test_presets_lists_every_preset(capsys):
    assert status("presets") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == presets()
    assert all(len(line) < 120 and line.split("  ")[-1] for line in lines)
    assert lines[presets().index("mnist-100")].endswith("  classes learned from 100 labels, and styles: table 2")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []], ids=["help", "h", "nothing"])
def test_help_names_every_command(capsys, arguments):
    assert status(*arguments) == 0
    printed = capsys.readouterr()
    assert re.findall(r"^  ([a-z]+) ", printed.out, re.MULTILINE) == [
        *("demo", "presets", "train", "train", "train", "resume", "list", "sweep"),
        *("encode", "predict", "reconstruct", "sample", "export"),
        *("evaluate", "parzen", "parzen", "figures")]  # fmt: skip
    assert printed.err == ""


def test_version(capsys):
    assert status("--version") == 0
    assert capsys.readouterr().out == f"{fastaae.__version__}\n"


# The demo


def test_demo_in_a_real_process(tmp_path):
    process = start("demo", "--out-dir", "a demo", cwd=tmp_path)
    out, err = process.communicate(timeout=400)
    assert (process.returncode, err) == (0, "")
    first, *_ = lines = out.splitlines()
    assert first == "What follows is written to a demo"
    named = dict(re.findall(r"^  (\S+\.png): (.+)$", out, re.MULTILINE))
    assert {*named} == {p.relative_to("a demo").as_posix() for p in Path("a demo").rglob("*.png")}
    assert {*named} >= {"waves/plane.png", *(f"digits/{k}.png" for k in ("neighbours", "reconstructions", "codes"))}
    found = re.search(r"of (\d+) test images under 10,000 samples: (\S+) \+- \S+ nats, each exact to (\S+)$", out, re.M)
    count, value, exact = map(float, found.groups())
    assert count == 297 and 5 < value < 30 and 0 < exact < 1e-6
    with np.load("a demo/waves.npz", allow_pickle=False) as table:
        x, y = table["x_test"], table["y_test"]
    model = fastaae.load("a demo/waves")
    assert np.square(model.reconstruct(x, y) - x).sum(1).mean() < 0.05  # of variance 3
    z = model.encode(x)  # uniform, of standard deviation 5
    assert abs(z.mean()) < 1.5 and 4 < z.std() < 6
    following = [line.split("  fastaae ")[1] for line in lines[lines.index("What to do next:") + 1 :]]
    assert [shlex.split(line)[0] for line in following] == ["sample", "parzen", "resume", "train"]
    for line in following:
        short = line.replace("--samples 100000", "--samples 1000").replace("--epochs 400", "--epochs 201")
        assert status(*shlex.split(short), *["--epochs", "1"] * short.startswith("train")) == 0, short


@pytest.mark.parametrize("package", ["matplotlib", "sklearn"])
def test_demo_without_its_extra_says_which_before_it_trains(tmp_path, package):
    hidden = f"import sys; sys.modules['{package}'] = None; from fastaae.cli import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "") and [*tmp_path.iterdir()] == []
    assert re.fullmatch(rf"fastaae: .*{package}.*: pip install 'fastaae\[demo\]'\n", done.stderr)


COMMANDS = [["demo"], ["train", "digits"], ["sweep", "digits", "--style-dim", "2", "3"]]
FOLDERS = pytest.mark.parametrize("command", COMMANDS, ids=["demo", "train", "sweep"])


@FOLDERS
def test_a_folder_with_files_is_refused_by_every_command(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").touch()
    assert status(*command, "--out-dir", ".") == 2 and os.listdir(tmp_path) == ["mine.txt"]
    assert re.fullmatch(r"fastaae: out_dir=.*: expected a new or empty directory.*\n", capsys.readouterr().err)


@FOLDERS
def test_a_folder_without_a_name_is_refused_by_every_command(tmp_path, monkeypatch, capsys, command):
    """Of a variable of the shell that was never set."""
    monkeypatch.chdir(tmp_path)
    assert status(*command, "--out-dir", "") == 2 and os.listdir(tmp_path) == []
    words = "a non-empty string or None|the name of a file or folder"
    assert re.fullmatch(rf"fastaae: .*: expected ({words}).*\n", capsys.readouterr().err)


# The help


FLAG = re.compile(r"^  --([a-z-]+)(?:,| |$)", re.MULTILINE)
FIELDS = {field.name.replace("_", "-") for field in dataclasses.fields(Config)}


def unused(preset):
    """The flags of fields that an experiment must leave as they are."""
    cfg = fastaae.preset(preset)
    return {n.replace("_", "-") for names, used, _ in config.UNUSED for n in names.split() if not used(cfg)}


@pytest.mark.parametrize("name", [None, *presets()])
def test_help_of_train_lists_the_fields_that_matter(capsys, name):
    assert status("train", *([name] if name else []), "--help") == 0
    printed = capsys.readouterr().out
    listed = FLAG.findall(printed)
    assert len(listed) == len({*listed}) and {*listed} == FIELDS - (unused(name) if name else set())
    assert ("What this experiment ignores is left out." in printed) == (name is not None)
    assert re.findall(r"^([a-z ]+):$", printed, re.MULTILINE) == ["options", *cli.TOPICS.values()]
    assert "\x1b" not in printed and max(map(len, printed.splitlines())) <= 200


def test_fields_left_out_of_the_help_are_still_taken(tmp_path):
    flags = ["--task", "clustering", "--n-clusters", "3", "--epochs", "1", "--hidden", "4", "--out-dir", "run"]
    assert "n-clusters" in unused("digits") and status("train", "digits", *flags) == 0
    assert read_json(tmp_path / "run", "config.json")["config"]["n_clusters"] == 3


def test_help_of_resume_lists_the_fields_that_may_change(capsys):
    assert status("resume", "--help") == 0
    assert {*FLAG.findall(capsys.readouterr().out)} == {name.replace("_", "-") for name in RESUMABLE}


@pytest.mark.parametrize("kind", [Config, *cli.ON_RUNS.values(), cli.OnExamples], ids=lambda kind: kind.__name__)
def test_every_flag_has_a_text(capsys, kind):
    with pytest.raises(SystemExit):
        cli._parsed(kind, ["--help"], **({"default": Config()} if kind is Config else {}), prog="p")
    printed = " ".join(capsys.readouterr().out.split())
    names = [field.name for field in dataclasses.fields(kind)]
    for name in names:
        after = re.split(f" --{name.replace('_', '-')},? ", printed, maxsplit=1)[1].replace("--no-", "")
        text = re.split(r" --[a-z]", after, maxsplit=1)[0]
        assert re.search(r"[A-Za-z0-9.\"')]{3}.* \[.*\]", text), name


RUN, DATA = ["replica", "averaged"], ["data-dir", "dataset"]


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("evaluate", [*RUN, *DATA]),
        ("parzen", [*RUN, *DATA, "samples", "queries", "sigma", "validation", "seed", "state"]),
        ("sample", [*RUN, "n", "label", "seed", "out"]),
        ("export", [*RUN, "format", "decoder", "out"]),
        ("encode", [*RUN, "out"]),
        ("predict", [*RUN, "out"]),
        ("reconstruct", [*RUN, "out"]),
        ("figures", [*RUN, *DATA, "seed", "out", "format", "data"]),
    ],
)
def test_help_of_a_command_lists_its_flags(capsys, command, flags):
    printed = []
    for arguments in (["--help"], ["DIR", "-h"]):
        assert status(command, *arguments) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0].startswith(f"usage: fastaae {command} DIR")
    assert FLAG.findall(printed[0]) == flags
    assert printed[0] == printed[1]


def test_train_prints_metrics_and_directory(tmp_path, capsys):
    assert status(*SMALL, "--out-dir", "d") == 0
    head, *metrics, directory, following = capsys.readouterr().out.splitlines()
    summary = read_json(tmp_path / "d")["metrics"]
    assert re.fullmatch(r"\d+\.\d s +valid +test", head)
    assert [line.split() for line in metrics] == [
        ["reconstruction", *(f"{summary[f'{split}_reconstruction']['mean']:.4g}" for split in ("valid", "test"))]
    ]
    assert (directory, following) == ("run directory: d", "next: fastaae figures d")


def test_metrics_of_replicas_are_a_table_with_their_spread(tmp_path, capsys):
    assert status(*SMALL, *SEMI, "--out-dir", "a run") == 0
    _, *rows, _, following = capsys.readouterr().out.splitlines()
    summary = read_json(tmp_path / "a run")["metrics"]
    for row, (title, name) in zip(rows, {"reconstruction": "reconstruction", "error, %": "error"}.items(), strict=True):
        valid, test = (summary[f"{split}_{name}"] for split in ("valid", "test"))
        cells = (f"{m['mean']:.4g} +- {m['std']:.2g}" for m in (valid, test))
        assert re.split("  +", row) == [title, *cells]
    assert shlex.split(following) == ["next:", "fastaae", "figures", "a run"]


def test_a_run_without_metrics_has_seconds_alone(capsys):
    assert status(*SMALL, "--task", "gan", "--out-dir", "d") == 0
    assert re.fullmatch(r"\d+\.\d s\nrun directory: d\nnext: .*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "command", [[*SMALL, "--quiet"], ["train", "--quiet", *SMALL[1:]], ["resume", "a run", "--quiet"]]
)
def test_quiet_says_where_the_run_is_alone(tmp_path, capsys, trained, command):
    shutil.copytree(trained, tmp_path / "a run")
    assert status(*command, *(["--out-dir", "new"] if command[0] == "train" else [])) == 0
    assert capsys.readouterr() == (f"run directory: {'a run' if command[0] == 'resume' else 'new'}\n", "")


def test_flags_change_fields_of_the_preset(trained):
    cfg = Config.from_dict(read_json(trained, "config.json")["config"])
    changes = {"epochs": 1, "task": "semi_supervised", "n_labeled": 100, "replicas": 2, "init_std": 0.3}
    assert cfg.products in ("onednn", "torch")  # what auto was here
    changes["products"] = cfg.products
    assert cfg == fastaae.preset("digits", hidden=(16, 16), **changes, out_dir=str(trained))


def test_train_without_out_dir_makes_a_directory_of_its_own(tmp_path, capsys):
    assert status(*SMALL) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"digits-\d{8}-\d{6}", directory.name)
    assert f"run directory: runs/{directory.name}\n" in capsys.readouterr().out


def test_train_from_config_repeats_the_run(tmp_path, trained):
    assert status("train", "--config", trained / "config.json", "--out-dir", "repeat") == 0
    assert weights(tmp_path / "repeat") == weights(trained)
    assert status("train", "--config", trained / "config.json", "--out-dir", "other", "--seed", "1") == 0
    assert weights(tmp_path / "other") != weights(trained)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda v: str(int(v))
)
def test_stopped_run_goes_on_with_the_printed_command(tmp_path, capsys, trained, signal_at_step, signum, code):
    before = signal.signal(signum, signal.default_int_handler)  # under nohup SIGHUP is ignored, also by training
    signal_at_step(3, signum)
    assert status(*SMALL, *SEMI, *WIDE, "--out-dir", "a run") == code
    signal.signal(signum, before)
    printed = capsys.readouterr()
    assert printed.out == ""
    command = shlex.split(errors(printed.err).strip().partition("fastaae: stopped after step 3; go on with: ")[2])
    assert command == ["fastaae", "resume", "a run"]
    assert status(*command[1:]) == 0
    assert "run directory: a run\n" in capsys.readouterr().out
    assert weights(tmp_path / "a run") == weights(trained)


def test_interruption_outside_training_has_a_message(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    assert status(*SMALL) == 130
    assert capsys.readouterr().err == "fastaae: interrupted\n"


def test_resume_changes_fields_that_may_differ_and_no_others(tmp_path, capsys, trained):
    assert status(*TRAIN, "--epochs", "2", *SEMI, *WIDE, "--out-dir", "long") == 0
    shutil.copytree(trained, tmp_path / "run")
    assert status("resume", "run", "--epochs", "2", "--log-every", "3", "--device", "cpu", "--data-dir", ".") == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "long")
    cfg = read_json(tmp_path / "run", "config.json")["config"]
    assert (cfg["epochs"], cfg["log_every"], cfg["data_dir"]) == (2, 3, str(tmp_path))
    assert training.train(fastaae.preset("digits", hidden=(16, 16), epochs=3, init_std=0.3, replicas=2,
                                         task="semi_supervised", n_labeled=100), resume="run",
                          progress=False).config.data_dir == str(tmp_path)  # fmt: skip
    capsys.readouterr()
    for flags, message in (
        (["--seed", "1"], "resume='run': seed was 0, got 1; expected the same"),
        (["--epochs", "1"], "epochs=1, expected at least 3, begun already"),
        (["--dataset", "mnist"], "resume='run': its data had another SHA-256"),
        (["--data-dir", "absent"], "data_dir='.*absent' is not a folder"),
    ):
        if flags != ["--dataset", "mnist"] or HAS_MNIST:
            assert status("resume", "run", *flags) == 2
            assert re.match(f"fastaae: .*{message}", capsys.readouterr().err), flags


def test_evaluate_prints_the_numbers_of_the_summary(capsys, trained):
    assert status("evaluate", trained) == 0
    printed = {}
    for line in capsys.readouterr().out.splitlines():
        printed |= json.loads(line)
    assert printed == read_json(trained)["metrics"]
    assert printed.keys() >= {"test_error", "test_reconstruction", "valid_error"}
    assert len(printed["test_error"]["replicas"]) == 2


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_parzen_prints_the_test_sets_log_likelihood(capsys, trained):
    from fastaae import data

    digits, model = data.load("digits"), fastaae.load(trained, replica=1)
    for flags, options in (
        (["--sigma", "0.3"], {"sigma": 0.3}),
        (["--validation", "50"], {"validation": digits.x_valid[:50]}),
        (["--sigma", "0.3", "--state", "partial-sums"], {"sigma": 0.3}),
        (["--sigma", "0.3", "--state", "partial-sums"], {"sigma": 0.3}),
    ):
        assert status("parzen", trained, "--samples", 300, "--seed", 1, "--replica", 1, *flags) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])["log_likelihood"]
        expected = model.log_likelihood(digits.x_test, 300, seed=1, **options)
        assert (report["mean"], report["sem"], report["sigma"]) == (expected.mean, expected.sem, expected.sigma)
        assert report["n_samples"] == 300 and 0 < report["error_bound"] < 1e-6 and report["seconds"] > 0


@pytest.mark.parametrize(("n", "columns", "rows"), [(64, 8, 8), (10, 4, 3), (1, 1, 1)], ids=["64", "10", "1"])
def test_sample_writes_a_picture_of_n_examples(tmp_path, capsys, trained, n, columns, rows):
    assert status("sample", trained, "--n", n, "--out", "s.png") == 0
    assert capsys.readouterr().out == "s.png\n"
    width, height = png_size(tmp_path / "s.png")
    assert (width - 2) / columns == (height - 2) / rows >= 8  # pixels: the images are square, 8 x 8, in lines of 2


def test_sample_goes_to_the_run_directory_and_depends_on_seed_and_replica(tmp_path, capsys, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    pictures = []
    for options in ([], ["--seed", "0"], ["--seed", "1"], ["--replica", "1"]):
        assert status("sample", run, "--n", "4", *options) == 0
        pictures.append((run / "samples.png").read_bytes())
    assert capsys.readouterr().out.splitlines() == [str(run / "samples.png")] * 4
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 3


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("command", ["encode", "predict", "reconstruct"])
def test_examples_of_a_file_are_encoded_as_in_python(capsys, trained, command, suffix):
    x = np.random.default_rng(0).random((20, 8, 8), np.float32)
    np.save("x.npy", x) if suffix == "npy" else np.savez("x.npz", x=x, y=np.arange(20))
    assert status(command, trained, f"x.{suffix}", "--out", "out.npy", "--replica", "1") == 0
    assert capsys.readouterr() == ("out.npy\n", "")
    expected = getattr(fastaae.load(trained, replica=1), command)(x)
    found = np.load("out.npy")
    assert found.dtype == expected.dtype and np.array_equal(found, expected)
    assert not np.array_equal(found, getattr(fastaae.load(trained), command)(x))
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize("label", [None, 3])
def test_samples_go_to_a_file_of_numbers(capsys, trained, label):
    flags = [] if label is None else ["--label", label]
    for seed in (0, 0, 1):
        assert status("sample", trained, "--n", "5", "--seed", seed, "--out", "s.npy", *flags) == 0
        assert np.array_equal(np.load("s.npy"), fastaae.load(trained).sample(5, seed, label))
    assert capsys.readouterr().out == "s.npy\n" * 3


def test_samples_of_a_file_need_no_matplotlib(monkeypatch, trained):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert status("sample", trained, "--n", "5", "--out", "s.npy") == 0


def test_parzen_scores_files_without_a_run(capsys):
    rng = np.random.default_rng(0)
    samples, queries, held = (rng.random((n, 3, 4), np.float32) for n in (200, 30, 20))
    np.save("s.npy", samples), np.savez("q.npz", x=queries), np.save("v.npy", held)
    files = ["--samples", "s.npy", "--queries", "q.npz"]
    for flags, options, how in (
        (["--sigma", "0.3"], {"sigma": 0.3}, "given"),
        (["--validation", "v.npy"], {"validation": held}, "likeliest of {} for 20 validation examples"),
        (["--sigma", "leave-one-out"], {"sigma": "leave-one-out"}, "likeliest of {} for 200 samples, each under .*"),
    ):
        assert status("parzen", *files, *flags) == 0
        *table, line = capsys.readouterr().out.splitlines()
        report, expected = (
            json.loads(line)["log_likelihood"],
            fastaae.parzen_log_likelihood(queries, samples, **options),
        )
        assert (report["mean"], report["sigma"], report["n_samples"]) == (expected.mean, expected.sigma, 200)
        tried = len(expected.sigma_curve.sigma) if expected.sigma_curve else 1
        nats = f"{expected.mean:.6g} +- {expected.sem:.2g} nats, each exact to {expected.error_bound:.1g}"
        for row, pattern in zip(table, (
            rf"30 queries +of 12 values in {re.escape(str(expected.query_range))}",
            rf"200 samples +of 12 values in {re.escape(str(expected.sample_range))}",
            rf"sigma +{expected.sigma:.4g}, {how.format(tried)}",
            rf"log-likelihood +{re.escape(nats)}",
            rf"seconds +{report['seconds']:.3g}"), strict=True):  # fmt: skip
            assert re.fullmatch(pattern, row), (pattern, row)
    assert status("parzen", *files[2:], "--samples=s.npy", "--sigma", "0.3") == 0
    assert status("parzen", *files, "--sigma", "0.3", "--validation", "v.npy") == 2
    assert "expected neither validation nor sigmas" in capsys.readouterr().err


def test_parzen_scores_files_under_a_run_on_own_arrays(capsys):
    x = np.random.default_rng(0).random((60, 4), np.float32)
    cfg = Config(hidden=(4,), style_dim=2, batch_size=5, epochs=1, out_dir="own")
    model = training.train(cfg, data=x, progress=False).model
    np.save("q.npy", x[:20]), np.save("v.npy", x[20:])
    common = ["parzen", "own", "--samples", "50", "--queries", "q.npy"]
    for flags, options in (
        (["--sigma", "0.3"], {"sigma": 0.3}),
        (["--validation", "v.npy"], {"validation": x[20:]}),
    ):
        assert status(*common, *flags) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])["log_likelihood"]
        assert report["mean"] == model.log_likelihood(x[:20], 50, **options).mean
    assert status(*common) == 2 and "dataset='arrays'" in capsys.readouterr().err


def test_list_is_a_table_of_runs(tmp_path, capsys, trained, signal_at_step):
    shutil.copytree(trained, "runs/good")
    signal_at_step(30, signal.SIGINT)
    assert status(*TRAIN, "--epochs", "4", "--quiet", "--out-dir", "runs/in part/stopped") == 130
    Path("runs/empty").mkdir()
    for name, content in (("no-json", "{"), ("odd", '{"config": 3}'), ("odder", "{}")):
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/config.json").write_text(content)
    capsys.readouterr()
    assert status("list", "runs") == 0
    printed = capsys.readouterr()
    head, *rows = (re.split("  +", line) for line in printed.out.splitlines())
    assert head == ["name", "epochs", "device", "metrics", "directory"]
    summary = read_json(trained)["metrics"]
    told = ", ".join(f"{name} {cli._metric(summary[name])}" for name in ("test_reconstruction", "test_error"))
    good, stopped = rows
    assert good == ["digits", "1/1", "cpu", told, "runs/good"]
    assert [*stopped[:3], stopped[4]] == ["digits", "2/4", "cpu", "runs/in part/stopped"]
    assert re.fullmatch(r"valid_reconstruction [\d.]+", stopped[3])
    assert re.findall("fastaae: warning: runs/([a-z-]+): .*\n", printed.err) == ["no-json", "odd", "odder"]
    assert status("list", "runs/good") == 0 and "test_error" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no pseudo-terminals")
@pytest.mark.parametrize("columns", [60, 120])
def test_training_in_a_real_terminal(tmp_path, columns):
    import fcntl
    import pty
    import struct
    import termios

    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "fastaae.cli", *TRAIN, *SEMI, "--epochs", "20", "--log-every", "1"]
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    process = subprocess.Popen([*command, "--out-dir", "run"], cwd=tmp_path, env=env, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is closed
        while block := os.read(master, 2**16):
            shown += block
    assert process.wait(60) == 0
    os.close(master)
    opening, *after = shown.decode().split("\r\n", 1)
    assert re.fullmatch(
        r"digits: 1,250 examples, 250 to .*, 100 labels used; 20 epochs of 12 steps; cpu, fp32 by .*; run", opening
    )
    lines = [re.sub(r"\x1b\[A", "", line) for line in re.split("[\r\n]+", after[0])]
    assert max(map(len, lines)) < columns
    bars = [line for line in lines if re.match(r"epoch +\d+/20 .* left, +[\d.?]+ examples/s", line.replace("|", " "))]
    assert len(bars) >= 2 and re.match("epoch 20/20 100%", bars[-1])
    numbers = [line for line in lines if line.startswith("valid error ")]
    assert numbers and re.match(r"valid error [\d.]+ %, reconstruction [\d.]+, discriminator [\d.]+", numbers[-1])
    assert lines[-3:] == ["run directory: run", "next: fastaae figures run", ""]


def test_figures_are_drawn_in_the_run_directory_and_described(tmp_path, capsys, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    assert status("figures", run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(run / f"{name}.png") for name in ("neighbours", "reconstructions", "codes", "style_content", "curves")
    ]
    assert lines[3].endswith(": styles of test images, one a row, decoded with every label, one a column")
    assert all(png_size(path) > (100, 100) for path in run.glob("*.png"))


def test_figures_depend_on_replica_and_seed_and_go_to_the_folder_given(tmp_path, trained):
    before = sorted(trained.iterdir())
    options = {"first": [], "again": [], "seed": ["--seed", "1"], "other": ["--replica", "1"]}
    for folder, flags in options.items():
        assert status("figures", trained, "--out", tmp_path / "new" / folder, *flags) == 0
    read = {
        name: [(tmp_path / "new" / folder / f"{name}.png").read_bytes() for folder in options]
        for name in ("neighbours", "reconstructions", "style_content")
    }
    assert len(set(read["neighbours"])) == 3 and len(set(read["reconstructions"])) == 2
    assert all(first == again != other for first, again, _, other in read.values())
    assert read["style_content"][0] == read["style_content"][2]
    assert sorted(trained.iterdir()) == before


def test_figures_in_other_formats_with_their_numbers(tmp_path, capsys, trained):
    assert status("figures", trained, "--out", tmp_path / "new", "--format", "pdf", "svg", "--data") == 0
    lines, names = (
        capsys.readouterr().out.splitlines(),
        ("neighbours", "reconstructions", "codes", "style_content", "curves"),
    )
    expected = [str(tmp_path / "new" / f"{name}.{end}") for name in names for end in ("pdf", "svg", "npz")]
    assert [line.partition(": ")[0] for line in lines] == expected
    assert sorted(map(str, (tmp_path / "new").iterdir())) == sorted(expected)
    assert lines[2].endswith(": the numbers behind it: samples, nearest")


def test_a_damaged_history_costs_the_curves_alone(tmp_path, capsys, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    assert status("figures", run, "--out", "new") == 0
    out, err = capsys.readouterr()
    assert "curves" not in out and out.count("\n") == 4
    assert re.fullmatch(r"fastaae: warning: no curves: .*metrics.jsonl: .*\n", err)
    (run / "metrics.jsonl").unlink()
    assert status("figures", run, "--out", "new") == 0
    assert capsys.readouterr() == (out, "")


def test_ctrl_c_in_a_real_process(tmp_path):
    np.savez("data.npz", x=np.random.default_rng(0).random((300, 16)))
    run = tmp_path / "run"
    options = ["--dataset", "data.npz", "--batch-size", "25", "--epochs", "60", "--out-dir", "run"]
    process = start(*TRAIN, *options, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (run / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert not (run / "summary.json").exists()
    stopped = re.fullmatch(r"fastaae: stopped after step (\d+); go on with: fastaae (.*)\n", errors(err))
    assert 10 <= int(stopped[1]) < 600
    assert status(*shlex.split(stopped[2])) == 0
    assert read_json(run)["steps"] == 600
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "valid_reconstruction" in row] == list(range(60))


# Data that have moved


@pytest.fixture
def on_mnist(tmp_path, monkeypatch):
    """A function that begins a run with a data_dir; a tiny MNIST is in "data", and ~ is the folder where it begins."""
    home, table = tmp_path / "home", []
    (home / "data").mkdir(parents=True)
    for stem, shape in (("train-images", (60, 4, 4)), ("train-labels", (60,)), ("t10k-images", (12, 4, 4)),
                        ("t10k-labels", (12,))):  # fmt: skip
        values = np.random.default_rng(len(table)).integers(0, 256 if len(shape) == 3 else 10, shape, np.uint8)
        content = b"".join(n.to_bytes(4, "big") for n in (2048 + len(shape), *shape)) + values.tobytes()
        table.append(sources._IdxFile(stem, shape, hashlib.sha256(content).hexdigest()))
        (home / "data" / f"{stem}-idx{len(shape)}-ubyte").write_bytes(content)
    monkeypatch.setattr(sources, "_MNIST", tuple(table))
    monkeypatch.setattr(sources, "MIRRORS", ())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("FASTAAE_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(home)

    def begin(data_dir):
        flags = ("--dataset", "mnist", "--hidden", "4", "--batch-size", "5", "--epochs", "1", "--out-dir", "run")
        assert status("train", "digits", *flags, "--data-dir", data_dir) == 0
        monkeypatch.chdir(tmp_path)
        return home

    return begin


ON_DATA = {
    "evaluate": ("evaluate", "home/run"),
    "parzen": ("parzen", "home/run", "--samples", 50, "--sigma", 1),
    "figures": ("figures", "home/run", "--out", "pictures"),
    "resume": ("resume", "home/run"),
    "train": ("train", "--config", "home/run/config.json", "--out-dir", "again"),
}
MOVED = {  # how the run names the folder; where it goes; flags; the variable of the environment
    "elsewhere": ("data", "data", (), None),
    "~": ("~/data", "data", (), None),
    "moved, variable": ("data", "new/mnist", (), "~/new"),
    "moved, cache": ("data", ".cache/fastaae/mnist", (), None),
    "moved, flag": ("data", "new", ("--data-dir", "home/new"), None),
    "moved, flag with ~": ("data", "new", ("--data-dir", "~/new"), None),
}


@pytest.mark.parametrize("how", MOVED)
def test_every_command_finds_data_that_have_moved(on_mnist, monkeypatch, capsys, how):
    data_dir, to, flags, variable = MOVED[how]
    home = on_mnist(data_dir)
    assert read_json(home / "run", "config.json")["config"]["data_dir"] == str(home / "data")
    (home / to).parent.mkdir(parents=True, exist_ok=True)
    (home / "data").rename(home / to)
    if variable:
        monkeypatch.setenv("FASTAAE_DATA", variable)
    for name, command in ON_DATA.items():
        assert status(*command, *flags) == 0, (name, capsys.readouterr().err)
    assert not list(home.parent.rglob("~"))


@pytest.mark.parametrize("how", ["in part", "damaged", "unreadable", "of another", "a file"])
def test_every_command_passes_over_a_recorded_folder_that_has_other_data(on_mnist, monkeypatch, capsys, how):
    home = on_mnist("data")
    shutil.copytree(home / "data", home / ".cache/fastaae/mnist")
    labels = home / "data/t10k-labels-idx1-ubyte"
    if how == "in part":
        labels.unlink()
    elif how == "damaged":
        labels.write_bytes(labels.read_bytes()[:-1])
    elif how == "unreadable":  # also to root
        labels.unlink()
        labels.mkdir()
    elif how == "a file":
        shutil.rmtree(home / "data")
        (home / "data").touch()
    else:
        images = home / "data/train-images-idx3-ubyte"
        images.write_bytes(images.read_bytes()[::-1])
    for name, command in ON_DATA.items():
        assert status(*command) == 0, (name, capsys.readouterr().err)
        if name not in ("train", "resume"):
            assert status(*command, "--data-dir", home / "data") == 2  # what is named now has to have them


def test_data_that_are_gone_are_named_and_a_folder_given_now_must_be_there(on_mnist, capsys):
    home = on_mnist("data")
    (home / "data").rename(home / "elsewhere")
    for command in ON_DATA.values():
        capsys.readouterr()
        assert status(*command) == 2
        said = capsys.readouterr().err
        assert f"data_dir='{home}/data' is not a folder: " in said and "; and elsewhere: MNIST is in none of " in said
        assert status(*command, "--data-dir", "absent") == 2
        assert re.search("data_dir='(.*/)?absent' is not a folder", capsys.readouterr().err)


def test_every_command_takes_an_npz_file_that_has_moved(capsys):
    rng = np.random.default_rng(0)
    np.savez("mine.npz", x=rng.random((60, 4)), x_test=rng.random((6, 4)))
    flags = ("--hidden", "4", "--batch-size", "5", "--epochs", "1", "--out-dir", "home/run")
    assert status("train", "digits", "--dataset", "mine.npz", *flags) == 0
    Path("mine.npz").rename("moved.npz")
    np.savez("other.npz", x=rng.random((60, 4)), x_test=rng.random((6, 4)))
    for name in ("evaluate", "parzen", "figures", "resume"):
        capsys.readouterr()
        assert status(*ON_DATA[name]) == 2 and "mine.npz" in capsys.readouterr().err
        assert status(*ON_DATA[name], "--dataset", "other.npz") == 2 and "SHA-256" in capsys.readouterr().err
        assert status(*ON_DATA[name], "--dataset", "moved.npz") == 0
    assert status(*ON_DATA["resume"], "--epochs", "2", "--dataset", "moved.npz") == 0
    assert status(*ON_DATA["evaluate"]) == 0  # the resumed run has recorded it


# Output


def refuse(how):
    """A stream that refuses what is written to it: its disk is full, its reader has gone, or it was never writable."""
    if how == "full":
        return open("/dev/full", "w")
    if how == "read-only":
        return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


PRINTING = {
    "version": ("--version",),
    "help": ("--help",),
    "presets": ("presets",),
    "help of train": ("train", "digits", "--help"),
    "help of parzen": ("parzen", "--help"),
    "evaluate": ("evaluate", "run"),
    "sample": ("sample", "run", "--n", "1"),
    "train": (*SMALL, "--out-dir", "new"),
}


@pytest.mark.parametrize("name", PRINTING)
@pytest.mark.parametrize(("how", "code"), [("full", 1), ("read-only", 1), ("gone", 141)])
def test_output_that_is_refused(tmp_path, monkeypatch, capsys, trained, name, how, code):
    shutil.copytree(trained, tmp_path / "run")
    with refuse(how) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert status(*PRINTING[name]) == code
    said = errors(capsys.readouterr().err).splitlines()
    assert [line for line in said if line.startswith("fastaae: standard output: ")] == said[: code == 1]


@pytest.mark.parametrize("how", ["full", "gone"])
def test_errors_that_nobody_can_read_keep_their_status(monkeypatch, how):
    for command in (("trian",), ("train", "digits", "--epochs", "x")):
        with refuse(how) as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            assert status(*command) == 2


@pytest.mark.parametrize("name", ["presets", "version", "help of train"])
@pytest.mark.parametrize(("end", "codes"), [("> /dev/full", {1}), ("| true", {0, 141}), (">&-", {0})])
def test_output_of_a_real_process(tmp_path, name, end, codes):
    command = f"{shlex.join([sys.executable, '-m', 'fastaae.cli', *PRINTING[name]])} {end}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in codes and done.stderr.count("\n") == (codes == {1}), done.stderr


ODD = "\x1b[2J\r\x9b\u202eä\n\udcff"


def printable(text):
    return all(c.isprintable() for line in text.split("\n") for c in line)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "utf-16"])
def test_what_is_printed_is_printable_and_fits_the_stream(tmp_path, monkeypatch, trained, encoding):
    run = shutil.copytree(trained, tmp_path / ODD)
    np.save("x.npy", np.zeros((1, 64), np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for command in (
            ("sample", run),
            ("figures", run),
            ("evaluate", run),
            ("resume", run),
            ("list", run),
            ("encode", run, "x.npy", "--out", f"{run}/z.npy"),
            ("predict", run, f"{ODD}.npy", "--out", "z.npy"),
            ("parzen", "--samples", ODD, "--queries", ODD),
            ("evaluate", tmp_path / f"{ODD} not there"),
            ("train", ODD),
            (ODD,),
            ("train", "digits", "--epochs", ODD),
            ("train", "digits", ODD),
            ("train", "--config", f"{ODD}.json"),
        ):
            streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
            monkeypatch.setattr(sys, "stdout", streams[0])
            monkeypatch.setattr(sys, "stderr", streams[1])
            code = status(*command)
            out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
            assert code == (0 if command[1:2] == (run,) and command[0] != "predict" else 2), err
            assert printable(out) and printable(err) and (out or err), command
            if code == 0 and command[0] != "evaluate":
                assert out.count("\n") == {"sample": 1, "encode": 1, "figures": 5}.get(command[0], out.count("\n"))
                assert out.count("\\x1b[2J\\r\\x9b\\u202e") and "\\n\\udcff" in out


@pytest.mark.parametrize("flags", [["--help"], ["--epochs", "0"], ["--stray", "x"], ["--task", "none"], []])
def test_a_config_of_others_prints_no_control_characters(capsys, flags):
    odd = {"dataset": f"{ODD}.npz", "data_dir": ODD, "out_dir": ODD, "device": ODD, "profile": None}
    Path("evil.json").write_text(json.dumps(odd))
    assert status("train", "--config", "evil.json", *flags) == (0 if flags == ["--help"] else 2)
    printed = capsys.readouterr()
    assert printable(printed.out) and printable(printed.err)
    assert flags not in (["--help"], []) or "\\x1b[2J" in printed.out + printed.err


@pytest.mark.parametrize("command", ["sample", "figures"])
def test_pictures_without_matplotlib(tmp_path, monkeypatch, capsys, trained, command):
    run = shutil.copytree(trained, tmp_path / "run")
    before = sorted(run.iterdir())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.image", raising=False)
    monkeypatch.setattr(cli.OnData, "models_and_data", None)  # no work is done before
    assert status(command, run) == 2
    assert re.fullmatch(r"fastaae: .*matplotlib.*: pip install 'fastaae\[demo\]'\n", capsys.readouterr().err)
    assert sorted(run.iterdir()) == before


# Errors

ERRORS = [
    ("trian", "fastaae: unknown command 'trian': expected one of .*; did you mean 'train'[?]"),
    ("learn", "fastaae: unknown command 'learn': expected one of demo, presets, train, resume, .*"),
    ("parzen run --validation -5", "fastaae: --validation -5: expected at least 1 validation example, or .*"),
    ("train --config null.json", "fastaae: null.json: config: got NoneType, expected an object of Config's fields"),
    ("resume started", "fastaae: started/checkpoint.safetensors: none was saved before the run ended; start it again"),
    ("train", r"fastaae: train: expected a preset \(digits, .*\), --config FILE or --dataset PATH first, then flags"),
    ("train digit", r"fastaae: unknown preset 'digit': expected one of digits, .*; did you mean 'digits'\?"),
    (
        "train digits --epoch 1",
        "fastaae: '--epoch': expected a flag of fastaae train digits; did you mean '--epochs'[?]",
    ),
    ("train digits --epoch=1", "fastaae: '--epoch=1': expected a flag of .*; did you mean '--epochs'[?]"),
    ("train digits stray", "fastaae: 'stray': expected a flag of fastaae train digits"),
    ("train digits --epochs x", "fastaae: argument --epochs: invalid int value: 'x'; run fastaae train digits --help"),
    ("train digits --epochs", "fastaae: argument --epochs: expected one argument; run fastaae train digits --help"),
    ("train digits --hidden 5 x", "fastaae: argument --hidden: invalid int value: 'x'; run .*"),
    ("train digits --epochs None", "fastaae: epochs=None: expected an integer from 1 to .*"),
    ("train digits --epochs 0", "fastaae: epochs=0: expected an integer from 1 to .*"),
    ("train digits --lr-adversarial nan", "fastaae: lr_adversarial=nan: expected a finite number.*"),
    ("train digits --lr-adversarial x", "fastaae: argument --lr-adversarial: invalid float value: 'x'; run .*"),
    ("train digits --task foo", "fastaae: task='foo': expected one of unsupervised, .*"),
    ("train digits --task superwised", "fastaae: task='superwised': .*; did you mean 'supervised'[?]"),
    ("train digits --graph no", "fastaae: 'no': expected a flag of fastaae train digits; did you mean .*"),
    ("train digits --device tpu", "fastaae: device='tpu': expected 'auto', 'cpu', .*"),
    ("train digits --batch-size 1251", "fastaae: batch_size=1251: expected at most the 1250 .* digits"),
    (
        "train digits --out-dir file",
        "fastaae: out_dir='file': expected a new or empty directory, this is a file: name another",
    ),
    (
        "train digits --dataset no.npz",
        "fastaae: dataset=.no.npz.: expected .mnist., .* or the path of a file or folder",
    ),
    (
        "train --config",
        r"fastaae: train: expected a preset \(digits, .*\), --config FILE or --dataset PATH first, then flags",
    ),
    ("train --config no.json", "fastaae: no.json: .*No such file.*"),
    ("train --config .", "fastaae: .: .*not a regular file.*"),
    ("train --config file", "fastaae: file: Expecting value: .*"),
    ("train --config binary.json", "fastaae: binary.json: 'utf-8' codec can't decode .*"),
    ("train --config list.json", "fastaae: list.json: got list, expected an object"),
    ("train --config field.json", r"fastaae: field.json: .*field 'epoch'; did you mean 'epochs'\?"),
    ("train --config value.json", "fastaae: value.json: epochs='many': expected an integer from 1 to .*"),
    ("resume", "fastaae: resume: expected the directory of a run, got nothing"),
    ("resume a b", "fastaae: resume: expected the directory of a run, got a"),
    ("resume no", "fastaae: resume: expected the directory of a run, got no"),
    ("resume file", "fastaae: resume: expected the directory of a run, got file"),
    ("resume empty", "fastaae: empty/checkpoint.safetensors: No such file or directory, expected a file"),
    ("resume broken", "fastaae: broken/checkpoint.safetensors: not a checkpoint, or truncated .*"),
    ("evaluate a b", "fastaae: evaluate: expected the directory of a run, got a"),
    ("evaluate no", "fastaae: evaluate: expected the directory of a run, got no"),
    ("evaluate broken", "fastaae: broken/checkpoint.safetensors: not a checkpoint, or truncated .*"),
    ("sample no", "fastaae: sample: expected the directory of a run, got no"),
    ("sample", "fastaae: sample: expected the directory of a run, got nothing"),
    ("parzen", "fastaae: parzen: expected the directory of a run, got nothing"),
    ("figures", "fastaae: figures: expected the directory of a run, got nothing"),
    ("figures --seed 1", "fastaae: figures: expected the directory of a run, got --seed"),
    ("figures no", "fastaae: figures: expected the directory of a run, got no"),
    ("figures empty", "fastaae: empty/checkpoint.safetensors: No such file or directory, expected a file"),
    ("figures .", "fastaae: .: a folder of runs, expected the directory of one, such as [a-z]+"),
    ("figures broken", "fastaae: broken/checkpoint.safetensors: not a checkpoint, or truncated .*"),
    (
        "figures run --replica 2",
        "fastaae: run/checkpoint.safetensors: replica=2: the file holds 2, expected 0 to 1",
    ),
    ("figures run --seed -1 --out new", "fastaae: seed=-1: expected an integer, at least 0"),
    ("figures run --out file", "fastaae: file: File exists"),
    (
        "figures run --format pgn --out new",
        r"fastaae: formats=\['pgn'\]: expected some of .*eps, .*png, .*; did you mean 'png'[?]",
    ),
    ("figures run --format --out new", r"fastaae: formats=\[\]: expected some of .*eps, .*png, .*"),
    ("figures run --many 9", "fastaae: '--many': expected a flag of fastaae figures DIR"),
    ("parzen run --sigma 0", "fastaae: bandwidth 0.0: expected positive numbers"),
    ("parzen run --samples 0", "fastaae: n_samples=0: expected an integer, at least 1"),
    ("sample run --n 0", "fastaae: n=0: expected an integer, at least 1"),
    (
        "sample run --replica 2",
        "fastaae: run/checkpoint.safetensors: replica=2: the file holds 2, expected 0 to 1",
    ),
    ("sample run --out no/s.png", "fastaae: .*no folder 'no' to write to: make it first.*"),
    ("sample run --many 9", "fastaae: '--many': expected a flag of fastaae sample DIR; did you mean '--n'[?]"),
    ("sample run --label 10", r"fastaae: label 10: expected \[64\] integers in \[0, 10\) or one for all, .*"),
    ("sample run --out s.jpg", "fastaae: --out s.jpg: expected the name of a .png or .npy file"),
    ("list", "fastaae: list: expected one folder of runs, got nothing"),
    ("list a b", "fastaae: list: expected one folder of runs, got a b"),
    ("list no", "fastaae: list: expected one folder of runs, got no"),
    ("parzen run --samples x.npy", "fastaae: --samples x.npy: expected a number, of draws by the run's model"),
    ("parzen --samples 10", "fastaae: --samples 10: expected a file, or the directory of a run first"),
    ("parzen --samples x.npy", "fastaae: parzen: x.npy has no test set, expected --queries FILE"),
    ("parzen --samples x.npy --queries x.npy", "fastaae: --sigma: expected a number or leave-one-out, or .*"),
    (
        "parzen --samples x.pt --queries x.npy --sigma 1",
        "fastaae: x.pt: a pickle, .*torch.load.*; expected a .npy, .*",
    ),
    ("parzen --samples no.npy --queries x.npy --sigma 1", "fastaae: no.npy: no such file or folder, expected a .npy.*"),
    ("encode run", "fastaae: encode: expected a file of examples and --out FILE.npy, got nothing, --out None"),
    ("encode run --out z.npy", "fastaae: .*z.npy.*: expected a flag of fastaae encode DIR DATA"),
    ("encode run x.npy", "fastaae: encode: expected a file of examples and --out FILE.npy, got x.npy, --out None"),
    (
        "encode run x.npy --out z.pt",
        "fastaae: encode: expected a file of examples and --out FILE.npy, got x.npy, --out z.pt",
    ),
    ("encode run x.npy --out no/z.npy", "fastaae: .*no folder 'no' to write to: make it first.*"),
    ("encode run x.npy --out z.npy --replica 2", "fastaae: run/.*: replica=2: the file holds 2, expected 0 to 1"),
    ("encode run wide.npy --out z.npy", "fastaae: x has 9 values per example, expected 64 of shape .*"),
    ("encode run file --out z.npy", "fastaae: file: not readable .*give a .npy, .*"),
    ("encode run y.npz --out z.npy", "fastaae: y.npz: there is no array x .*: pass the examples as x"),
    ("encode run objects.npy --out z.npy", "fastaae: objects.npy: not readable .*objects.*"),
    ("predict no x.npy --out z.npy", "fastaae: predict: expected the directory of a run, got no"),
]


@pytest.mark.parametrize(("command", "message"), ERRORS, ids=[command for command, _ in ERRORS])
def test_error_is_one_clear_message(tmp_path, capsys, trained, command, message):
    for name, content in {
        "file": b"", "binary.json": b"\xff\xfe", "list.json": b"[1]", "field.json": b'{"epoch": 1}',
        "value.json": b'{"config": {"epochs": "many"}}', "null.json": b'{"config": null}', "started/config.json": b"{}",
        "broken/checkpoint.safetensors": b"x" * 99,
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    shutil.copytree(trained, tmp_path / "run")
    np.save("x.npy", np.full((5, 64), 0.5, np.float32))
    np.save("wide.npy", np.full((5, 9), 0.5, np.float32))
    np.save("objects.npy", np.array([None]), allow_pickle=True)
    np.savez("y.npz", y=np.arange(3))
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert status(*command.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(message + "\n", printed.err), printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_run_on_own_arrays_cannot_be_evaluated_without_them(capsys):
    x = np.random.default_rng(0).random((30, 4))
    cfg = Config(hidden=(4,), style_dim=2, batch_size=5, epochs=1, out_dir="own")
    training.train(cfg, data=x, progress=False)
    for command in ("evaluate", "resume", "figures"):
        assert status(command, "own") == 2
        assert re.search("dataset='arrays'|its caller's arrays", capsys.readouterr().err)


def test_changed_data_is_noticed(capsys):
    rng = np.random.default_rng(0)
    np.savez("mine.npz", x=rng.random((60, 4)))
    flags = ("--hidden", "4", "--batch-size", "5", "--epochs", "1")
    assert status("train", "digits", "--dataset", "mine.npz", *flags, "--out-dir", "npz") == 0
    assert status("evaluate", "npz") == 0
    np.savez("mine.npz", x=rng.random((60, 4)))
    for command in (
        ("evaluate", "npz"),
        ("resume", "npz"),
        ("figures", "npz"),
        ("train", "--config", "npz/config.json", "--out-dir", "b"),
    ):
        capsys.readouterr()
        assert status(*command) == 2
        assert "SHA-256" in capsys.readouterr().err
    assert not Path("b").exists()


def test_diverging_run_ends_with_status_1(capsys):
    assert status(*SMALL, "--lr-reconstruction", "1e38", "--out-dir", "d") == 1
    assert re.fullmatch(
        r"fastaae: step 1: the .* loss of replica 0 is nan; try .*lr_reconstruction=0.001.*; last good .*\n",
        errors(capsys.readouterr().err),
    )


@pytest.mark.filterwarnings("default")
def test_a_damaged_checkpoint_is_said_once_and_the_one_before_used(tmp_path, capsys):
    assert status(*TRAIN, "--epochs", "2", "--replicas", "2", "--out-dir", "run") == 0
    newest = tmp_path / "run/checkpoint.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    for command in (["evaluate"], ["resume", "--quiet"]):
        assert status(command[0], "run", *command[1:]) == 0
        said = "tensors that end at byte .*; going on with the one .* of step 12"
        line = rf"fastaae: warning: \S*run/checkpoint.safetensors: {said}\n"
        assert re.fullmatch(line, capsys.readouterr().err)
    assert status("resume", "run", "--quiet") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOSPC, r"No space left on device \(\S+ MB needed, \S+ MB free\)"), (errno.EACCES, "Permission denied")],
)
def test_a_folder_that_cannot_be_written_to_ends_with_status_1(capsys, monkeypatch, number, why):
    def failing(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    assert status(*SMALL, "--out-dir", "d") == 1
    line = rf"fastaae: \S+/d/\S+: {why}; last good checkpoint: none\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_a_directory_that_another_process_trains_in_is_refused(capsys, trained):
    with RunDirectory(trained).held():
        assert status("resume", trained) == 2
    assert re.fullmatch(
        rf"fastaae: .*: process {os.getpid()} on .* trains there: wait for it, or stop it\n", capsys.readouterr().err
    )


def test_control_characters_in_names_are_printed_escaped(tmp_path, capsys):
    (tmp_path / "cfg.json").write_text(json.dumps({"dataset": "\x1b[2J\u202e.npz"}))
    assert status("train", "--config", "cfg.json", "--out-dir", "d") == 2
    assert "\\x1b[2J\\u202e.npz': expected" in capsys.readouterr().err


def test_error_in_a_real_process_has_no_traceback(tmp_path):
    process = start("train", "digit", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"fastaae: unknown preset 'digit': .*\n", err)


# Surroundings


def test_warnings_are_no_errors_of_a_command(trained, tmp_path):
    shutil.copytree(trained, "damaged")
    assert status("resume", "damaged", "--epochs", 2) == 0
    with open("damaged/checkpoint.safetensors", "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"x")
    flags = [sys.executable, "-W", "error", "-m", "fastaae.cli"]
    done = subprocess.run([*flags, "evaluate", "damaged"], capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch("fastaae: warning: .*SHA-256 differs.*\n", done.stderr), done.stderr


def test_a_run_whose_last_warning_is_an_error_has_its_summary(tmp_path):
    with warnings.catch_warnings(), pytest.raises(UserWarning, match="no such step was trained"):
        warnings.simplefilter("error")
        fastaae.train(fastaae.preset("digits", hidden=(4,), epochs=1, profile="900:901", out_dir="run"), progress=False)
    assert "metrics" in read_json(Path("run"), "summary.json")


@pytest.mark.parametrize("columns", ["1", "3", "0", "-5", "abc"])
def test_help_in_a_narrow_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for command in ("evaluate", "train"):
        assert status(command, "digits", "--help") == 0 and "--" in capsys.readouterr().out


def test_what_says_nothing_is_memory(monkeypatch, capsys):
    def full():
        raise MemoryError

    monkeypatch.setattr(cli, "_presets", full)
    monkeypatch.setitem(cli.COMMANDS, "presets", lambda _: full())
    assert status("presets") == 1 and capsys.readouterr().err == "fastaae: out of memory\n"


def test_a_file_that_may_not_grow_is_the_systems_refusal(trained):
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "-", sys.executable, "-m", "fastaae.cli"]
    done = subprocess.run([*limited, "sample", trained, "--out", "a.png"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "fastaae: a.png: File too large (0.02 MB needed)\n")


@pytest.mark.parametrize("kind", ["dangling link", "file"])
def test_a_runs_that_is_no_folder_is_named(capsys, kind):
    Path("runs").symlink_to("nowhere") if kind == "dangling link" else Path("runs").touch()
    assert status(*SMALL) in (1, 2)
    assert re.fullmatch(r"fastaae: .*/runs.*: (File exists|Not a directory).*\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["./~", "./~root", "./~mine"])
def test_a_folder_whose_name_begins_with_a_tilde(trained, name):
    shutil.copytree(trained, f"{name}/run")
    assert status("evaluate", f"{name}/run") == 0 and status("sample", f"{name}/run", "--out", f"{name}/x.png") == 0
    assert {p.name for p in Path(name).iterdir()} == {"run", "x.png"}


def test_what_lies_beside_ranks_is_no_rank(trained):
    shutil.copytree(trained, "run")
    Path("run/rank-order.txt").touch()
    Path("run/rank-by-error").mkdir()
    assert status("resume", "run", "--log-every", 7) == 0

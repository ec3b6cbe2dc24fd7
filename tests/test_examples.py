"""The examples and benchmarks run from start to end, on small networks."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import fastaae
from fastaae import data

ROOT = Path(__file__).resolve().parent.parent


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_density_shows_who_is_wrong(monkeypatch, capsys):
    module(ROOT / "examples" / "density.py").main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    errors = {row[1].strip(): [float(cell.split()[0]) for cell in row[3:6]] for row in rows}
    assert len(errors) == 6 and all(max(e[1:]) < 1e-9 for e in errors.values())
    assert errors["digits, 80 samples, 64-D"][0] < 1e-9  # scikit-learn's tree has one leaf
    assert errors["digits, 81 samples, 64-D"][0] > 1 and errors["uniform, 2000 samples, 784-D"][0] > 1


@pytest.mark.parametrize("available", [True, False], ids=["mnist", "no-mnist"])
def test_quickstart(available, tmp_path, monkeypatch, capsys):
    if available and not Path(os.environ.get("FASTAAE_DATA", "nowhere"), "mnist").is_dir():
        pytest.skip("MNIST is not at hand")
    original, load = fastaae.preset, data.load

    def small(name, **changes):
        return original(name, **{**changes, "hidden": (8,), "epochs": 1})

    def without_mnist(dataset, *arguments):
        if dataset == "mnist" and not available:
            raise data.DataUnavailable("MNIST is nowhere")
        return load(dataset, *arguments)

    monkeypatch.setattr(fastaae, "preset", small)
    monkeypatch.setattr(data, "load", without_mnist)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", str(tmp_path / "run")])
    assert module(ROOT / "examples" / "quickstart.py").main() == 0
    for name in ("neighbours.png", "reconstructions.png", "codes.png", "manifold.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    assert fastaae.load(tmp_path / "run" / "model.safetensors").config.style_dim == 2
    printed = capsys.readouterr().out
    assert "test reconstruction error" in printed
    assert printed.startswith("trained 1 epochs on 50,000 mnist" if available else "MNIST is neither on this machine")


EXPERIMENTS = [
    ("paper", "mnist-2d", "codes manifold"),
    ("paper", "mnist-2d-labels", "codes manifold"),
    ("paper", "mnist-2d-swiss-roll", "codes manifold"),
    ("likelihood", "mnist-likelihood-adam", "neighbours bracket"),
    ("likelihood", "mnist-gmmn", "neighbours bracket"),
    ("likelihood", "mnist-gan", "neighbours bracket"),
    ("paper", "mnist-2d-mixture", "codes manifold"),
    ("paper", "mnist-vae-2d", "codes manifold"),
    ("paper", "mnist-style", "style_content"),
    ("paper", "mnist-embedding-2d-unsupervised", "representations cluster_heads"),
    ("paper", "mnist-embedding-10d-100", "representations"),
    ("paper", "mnist-clusters-16", "cluster_heads"),
]


@pytest.mark.parametrize(("example", "name", "pictures"), EXPERIMENTS)
def test_an_experiment_draws_its_pictures(example, name, pictures, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    small = ["--dataset", "digits", "--hidden", "16", "--epochs", "1", "--out-dir", str(out), "--batch-size", "50"]
    small += ["--n-labeled", "100"] if fastaae.preset(name).n_labeled else []
    small += ["--quick"] if example == "likelihood" else []
    first = [name] if name not in ("mnist-2d", "mnist-likelihood-adam") else []  # the examples' own
    monkeypatch.setattr(sys, "argv", [example, *first, *small])
    assert module(ROOT / "examples" / f"{example}.py").main() == 0
    printed = capsys.readouterr().out
    for picture in pictures.split():
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert f"\n{out / picture}.png: " in printed


def test_bench_step_prints_a_table_and_json(bench_step, monkeypatch, capsys):
    monkeypatch.setattr(bench_step, "preset", lambda name, **c: fastaae.preset(name, hidden=(16, 16), **c))
    monkeypatch.setattr(sys, "argv", ["step.py", "--rounds", "2", "--replicas", "1", "2"])
    assert bench_step.main() == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {(r["preset"], r["replicas"], r["contender"]): r["ms"] for r in result["rows"]}
    for name in ("mnist-likelihood", "mnist-100"):
        for replicas in (1, 2):
            assert all(rows[name, replicas, c] > 0 for c in ("fastaae", "floor", "idiomatic", "careful"))


def test_bench_step_refuses_to_time_a_wrong_step(bench_step, monkeypatch, capsys):
    monkeypatch.setattr(bench_step, "preset", lambda name, **c: fastaae.preset(name, hidden=(16, 16), **c))
    monkeypatch.setattr(bench_step.Idiomatic, "generator", lambda self, batch, codes: codes["z"].sum())
    monkeypatch.setattr(sys, "argv", ["step.py", "--rounds", "1", "--replicas", "1"])
    assert bench_step.main() == 1
    assert "differ" in capsys.readouterr().err


def test_bench_step_says_what_train_adds_to_a_step(bench_step, monkeypatch, capsys):
    monkeypatch.setattr(bench_step, "preset", lambda name, **c: fastaae.preset(name, hidden=(16, 16), **c))
    monkeypatch.setattr(sys, "argv", ["step.py", "--breakdown", "--rounds", "1", "--presets", "digits"])
    assert bench_step.main() == 0
    for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]:
        assert all(row["ms"][f"+ {part}"] > 0 for part in ("loop", "losses", "weights", "checkpoint"))


DIGITS = ["--dataset", "digits", "--samples", "3000", "--samples-others", "500", "--queries", "50"]


BENCH_PARZEN = ROOT / "bench" / "parzen.py"


def run_bench_parzen(*options):
    return subprocess.run([sys.executable, BENCH_PARZEN, *options], capture_output=True, text=True, timeout=300)


def test_bench_parzen_prints_a_table_and_json(tmp_path):
    np.save(tmp_path / "s.npy", np.random.default_rng(0).random((5000, 64), np.float32))
    for source in ("mixtures", str(tmp_path / "s.npy")):
        done = run_bench_parzen(*DIGITS, "--source", source)
        assert done.returncode == 0, done.stderr
        rows = {r["contender"]: r for r in json.loads(done.stdout.splitlines()[-1])["rows"]}
        assert {"fastaae", "block-skip", "logsumexp", "broadcast", "scikit-learn leaf_size=N"} <= rows.keys()
        assert all(r["seconds"] > 0 for r in rows.values()) and rows["fastaae"]["error"] < 1e-6
        assert all(rows[name]["error"] < 0.05 for name in ("block-skip", "logsumexp", "broadcast"))


def test_bench_parzen_resizes_images():
    done = run_bench_parzen(*DIGITS, "--side", "12", "--others", "logsumexp")
    assert done.returncode == 0, done.stderr
    assert "x 144 dimensions" in done.stdout and json.loads(done.stdout.splitlines()[-1])["rows"][1]["error"] < 0.05


def test_bench_parzen_scores_a_published_shape(capsys):
    bench = module(ROOT / "bench" / "parzen.py")
    for others, queries in ([], "3"), (["logsumexp"], "20"):
        assert bench.main(["--shape", "32k", "--queries", queries, "--samples-others", "500", "--others", *others]) == 0
        *said, line = capsys.readouterr().out.splitlines()
        report = json.loads(line)
        ours, *rest = report["rows"]
        assert (ours["queries"], ours["samples"], len(rest)) == (int(queries), 2**15, len(others))
        assert abs(report["sigma"] - (2**15 * 18 / 4) ** (-1 / 20)) < 1e-12 and 0 < ours["error"] < 1e-6
        assert abs(ours["seconds_all"] / ours["seconds"] * int(queries) / 2**12 - 1) < 1e-9
        assert "published: 47 times" in said[-1] and said[-1].endswith("fastaae on a GPU: not measured yet")
    with pytest.raises(SystemExit):
        bench.main(["--shape", "1m", "--choose-sigma"])


def test_bench_window_times_each_contender_and_refuses_wrong_ones(capsys, monkeypatch):
    bench = module(ROOT / "bench" / "window.py")
    small = ["--divide", "500", "--rounds", "2", "--seconds", "0.01"]
    bench.main(small)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(report["rows"]) == 4 * len(bench.MANY) + 2 * len(bench.ALONE) and report["git"]
    assert all(row["seconds"] > 0 and row["measured"] <= row["queries"] and len(row["each"]) == 2
               for row in report["rows"])  # fmt: skip
    assert all(
        row["error"] < 1e-6 for row in report["rows"] if row["dimensions"] < 4 or "scikit" not in row["contender"]
    )
    monkeypatch.setattr(bench.reference, "parzen_log_likelihood", lambda x, s, h: torch.zeros(len(x)))
    with pytest.raises(SystemExit, match="from float64 differences, no timing"):
        bench.main(small)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("part", ["parzen", "step", "experiments"])
def test_bench_gpu_dry_run(part):
    command = [ROOT / "bench" / "gpu.sh", "--dry-run", part]
    done = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"dry-run-{part}.json" in done.stdout.splitlines()[-1]


def test_bench_parzen_over_ranks(two_ranks):
    options = (*DIGITS, "--others", "--choose-sigma")
    alone, two = run_bench_parzen(*options), two_ranks(BENCH_PARZEN, *options, patience=300)
    assert two.returncode == 0, two.stderr
    alone, two = (json.loads(done.stdout.splitlines()[-1]) for done in (alone, two))
    assert two["sigma"] == alone["sigma"] and two["rows"][0]["samples"] == 3000
    assert abs(two["rows"][0]["nats"] - alone["rows"][0]["nats"]) < 1e-4


def test_bench_parzen_stops_on_a_wrong_result(monkeypatch, capsys):
    bench = module(ROOT / "bench" / "parzen.py")
    monkeypatch.setattr(bench.reference, "parzen_log_likelihood", lambda x, s, sigma: torch.zeros(len(x)))
    monkeypatch.setattr(sys, "argv", ["parzen.py", *DIGITS])
    assert bench.main() == 1
    assert "beyond the certificate" in capsys.readouterr().err


def test_regression_cases_run():
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "bench" / "test_regression.py"), "-k", "decoder"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


def test_bench_reproduce_keeps_what_others_have_added(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    reproduce = module(ROOT / "bench" / "reproduce.py")
    path = tmp_path / "results" / "reproduce-x.json"
    for name in ("a", "b", "a"):
        reproduce.keep(path, {"run": name, "seen": len(reproduce.kept(path))})
    assert reproduce.kept(path) == [{"run": "b", "seen": 1}, {"run": "a", "seen": 2}]
    for wrong in (["mnist-10"], ["mnist-100", "--epochs", "0"], ["mnist-100", "--decay", "80"]):
        with pytest.raises((SystemExit, ValueError)):
            reproduce.main([*wrong, "--results", str(tmp_path), "--out", str(tmp_path)])


def test_bench_reproduce_goes_on_where_it_stopped_and_writes_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "bench")
    reproduce = module(ROOT / "bench" / "reproduce.py")
    monkeypatch.setattr(reproduce, "PAPER", {"digits": {"test_reconstruction": "1.23"}})
    monkeypatch.setattr(reproduce, "FAMILIES", {"toys": ["digits"]})
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- reproduce-toys: made by bench/ -->\nold\n<!-- reproduce-toys: end -->\nafter\n")
    arguments = ["digits", "--epochs", "4", "--decay", "0.5", "--replicas", "2", "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path), "--pages", str(readme), "--budget"]
    reproduce.data.load("digits")  # a first import, ended in its middle by the time, warns of the file it was reading
    for budget in ("0.2", "5m", "1h"):
        assert reproduce.main([*arguments, budget]) == 0
    (path,) = tmp_path.glob("reproduce-*.json")
    (row,) = json.loads(path.read_text())
    assert row["run"] == "digits-4-2-0-fp32-decay-2" and row["recipe"]["lr_decay_epochs"] == [2]
    assert row["epochs"] == 4 and row["seconds"] > 0 and len(row["metrics"]["test_reconstruction"]["replicas"]) == 2
    lines = readme.read_text().splitlines()
    mean = row["metrics"]["test_reconstruction"]["mean"]
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert lines[4].startswith("| **only 4** of 200 | `digits`, with another lr_decay_epochs |")
    assert f"| {mean:.2f} ±" in lines[4] and "| 1.23 | 2 |" in lines[4]

    row["recipe"] |= {"lr_reconstruction": 7.0, "a_field_of_once": 1}  # as of a preset that has been changed since
    path.write_text(json.dumps([row]))
    assert reproduce.main([*arguments, "1h", "--table"]) == 0
    (line,) = (line for line in readme.read_text().splitlines() if "only 4" in line)
    assert line.startswith("| **only 4** of 200 | `digits`, with another lr_reconstruction, lr_decay_epochs |")
    capsys.readouterr()
    for said in ("test_reconstruction", "done before"):  # only what has the recipe of now is done
        assert reproduce.main([*arguments, "1h"]) == 0 and said in capsys.readouterr().out
    (row,) = json.loads(path.read_text())
    assert row["recipe"]["lr_reconstruction"] == 0.03


def test_bench_reproduce_draws_the_pictures_of_the_docs(tmp_path, monkeypatch, quick):
    monkeypatch.syspath_prepend(ROOT / "bench")
    reproduce = module(ROOT / "bench" / "reproduce.py")
    gallery, page = reproduce.gallery, tmp_path / "page.md"
    presets = {"mnist-likelihood-short": ["neighbours"], "mnist-2d-swiss-roll": ["manifold"]}
    some = {"toys": {name: (1, 1, what) for name, what in presets.items()}}
    some |= {"shapes": {"mnist-2d-labels": (1, 2, ["codes", "curves"])}}
    monkeypatch.setattr(gallery, "GALLERY", some)
    monkeypatch.setattr(gallery, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(gallery, "LIST", tmp_path / "pictures.json")
    monkeypatch.setattr(reproduce, "FAMILIES", {})
    page.write_text("<!-- pictures-shapes: made by bench/ -->\n<!-- pictures-shapes: end -->\n")
    arguments = ["--figures", "--out", str(tmp_path / "runs"), "--pages", str(page), "--device", "cpu"]
    assert reproduce.main([*arguments, "--budget", "0s"]) == 0 and not gallery.LIST.exists()
    assert reproduce.main(arguments) == 0
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {
        "hero.png", "mnist-likelihood-short-neighbours.png", "mnist-2d-swiss-roll-manifold.png",
        "mnist-2d-labels-codes.png", "mnist-2d-labels-curves.png",
    }  # fmt: skip
    assert "(pictures/mnist-2d-labels-codes.png)\n\n*`mnist-2d-labels`, seed 0, 1 of 1 epochs, fp32" in page.read_text()

    times = {path.name: path.stat().st_mtime_ns for path in gallery.PICTURES.iterdir()}
    listed = gallery.LIST.read_text()
    assert reproduce.main([*arguments, "mnist-2d-labels"]) == 0  # from the run that is there
    drawn = {path.name for path in gallery.PICTURES.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert drawn == {"mnist-2d-labels-codes.png", "mnist-2d-labels-curves.png"} and gallery.LIST.read_text() == listed
    with pytest.raises(SystemExit):
        reproduce.main([*arguments, "digits"])


def test_tables_of_readme_and_docs_are_those_of_the_results(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    tables, reproduce = (module(ROOT / "bench" / f"{name}.py") for name in ("tables", "reproduce"))
    texts = {page.name: page.read_text(encoding="utf-8") for page in tables.PAGES}
    copies = [tmp_path / name for name in texts]
    for copy in copies:  # spoilt, so that it shows what is not written
        copy.write_text(tables.MARKED.sub(r"\1spoilt\n\3", texts[copy.name]), encoding="utf-8")
    reproduce.main(["--table", "--pages", *map(str, copies)])
    tables.main(copies)
    assert {copy.name: copy.read_text(encoding="utf-8") for copy in copies} == texts
    marks = {name for text in texts.values() for name in re.findall(r"<!-- ([\w-]+): made by bench/ -->", text)}
    assert marks >= {*tables.made()} | {f"reproduce-{name}" for name in reproduce.FAMILIES}
    assert {name for names in reproduce.FAMILIES.values() for name in names} == set(reproduce.PAPER)

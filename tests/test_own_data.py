"""What newcomers with data of their own stumbled over: silent mistakes are told, every door takes the same things."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastaae
from fastaae import Config, DataError, checkpoint, cli, figures, train
from fastaae.data import from_arrays
from fastaae.data.formats import opened

RNG = np.random.default_rng(0)
X = RNG.standard_normal((240, 5)) * [1, 10, 100, 1, 1]
Y = np.arange(240) % 3
WORDS = np.array(["red", "green", "blue"])[Y]
FIELDS = {"hidden": (16,), "style_dim": 2, "epochs": 2, "batch_size": 50, "scale": "standard"}


def fit(folder, data, progress=False, **fields):
    return train(Config(**{**FIELDS, "out_dir": str(folder), **fields}), data=data, progress=progress)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Labels


@pytest.mark.parametrize("task", ["semi_supervised", "supervised", "embedding"])
@pytest.mark.parametrize("other", [1, -1])
def test_a_single_class_is_refused(tmp_path, task, other):
    y = np.where(Y == 0, 1, other)  # 1 and -1, as of a support vector machine
    unlabelled = task == "supervised" and other == -1
    wrong = "have no label" if unlabelled else "the only class of arrays is 1, expected two or more: -1, None and NaN"
    with pytest.raises(ValueError, match=wrong):
        fit(tmp_path / "run", (X, y), task=task)
    assert not (tmp_path / "run").exists()
    fit(tmp_path / "run", (X, y))  # which needs none


@pytest.mark.parametrize("word", ["N/A", "-1", "null", "unlabeled"])
def test_words_that_mean_no_label_elsewhere_are_told(word):
    with pytest.warns(UserWarning, match=f"y has label '{word}', taken for a class: pass None, NaN or -1"):
        data = from_arrays((X, np.where(Y == 0, word, WORDS)), scale="standard")
    assert word in data.classes


@pytest.mark.parametrize("word", ["nan", "None", "<NA>"])
def test_missing_labels_made_words_are_none_and_told(tmp_path, word):
    y = np.where(Y == 0, word, WORDS)
    with pytest.warns(UserWarning, match=f"y has label '{word}', taken for no label: call a class otherwise"):
        run = fit(tmp_path / "run", (X, y), task="semi_supervised")
    assert run.model.classes == ["blue", "green"]


def test_an_empty_word_is_no_label(recwarn):
    data = from_arrays((X, np.where(Y == 0, "", WORDS)), scale="standard")
    assert data.classes == ["blue", "green"] and not recwarn.list


def test_an_output_directory_is_deleted_by_nobody(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for path, why in ((tmp_path, "this one holds other files"), (tmp_path / "thesis.tex", "this is a file")):
        with pytest.raises(ValueError, match=f"expected a new or empty directory, {why}: name another$"):
            fit(path, (X, WORDS))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="this run has no checkpoint to resume: delete it to start again$"):
        fit(tmp_path, (X, WORDS))


def test_rows_of_zeros_of_a_table_are_told():
    pandas = pytest.importorskip("pandas")
    with pytest.warns(UserWarning, match=r"y has rows of zeros, taken for no label: .*drop_first"):
        data = from_arrays((X, pandas.get_dummies(WORDS, drop_first=True)), scale="standard")
    assert data.classes == ["green", "red"]


def test_bools_come_back_as_bools(tmp_path):
    run = fit(tmp_path / "run", (X, Y > 0), task="semi_supervised", label_weights="data")
    for model in (run.model, fastaae.load(tmp_path / "run")):
        assert list(map(type, model.classes)) == [bool, bool]
        assert model.predict(X).dtype == bool


def test_messages_call_classes_as_they_are_called(tmp_path):
    y = np.where(np.arange(240) < 235, "many", "few")
    far = r"classes \('few': 2\.?5? %, 'many': 9[78]\.?5? %\) are far from their uniform prior"
    with (
        pytest.warns(UserWarning, match=far),
        pytest.raises(DataError, match="n_labeled=60 asks for 30 examples of class 'few', it has"),
    ):
        fit(tmp_path / "a", (X, y), task="semi_supervised", n_labeled=60)


def test_few_labels_for_validation_are_told(tmp_path, capsys):
    y = np.where(np.arange(240) < 30, Y, -1)
    fit(tmp_path / "run", (X, y), progress=True, task="semi_supervised")
    assert ", 40 to validate (5 labelled), 5 from " in capsys.readouterr().err
    fit(tmp_path / "other", (X, y), progress=True)
    assert ", 40 to validate, 5 from " in capsys.readouterr().err


# Examples


@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_bytes_of_a_table_are_numbers(tmp_path, scale):
    ages = RNG.integers(18, 90, (240, 3)).astype(np.uint8)
    model = fit(tmp_path / "run", ages, scale=scale).model
    for same in (ages.astype(int), ages.astype(float), ages.astype(np.float32)):
        np.testing.assert_array_equal(model.encode(same), model.encode(ages))
    assert 10 < model.reconstruct(ages).mean() < 90 and 10 < model.sample(50, seed=0).mean() < 90  # not below 1


def test_parts_may_have_types_of_their_own(tmp_path):
    ints = X.round().astype(np.int32)
    data = {"x": ints, "x_valid": ints[:40].astype(float), "x_test": ints[:50].astype(np.uint8)}
    run = fit(tmp_path / "run", data)
    assert run.metrics["valid_reconstruction"]["mean"] > 0
    with pytest.raises(DataError, match="x_test has uint8 examples of shape .5,., expected float32"):
        from_arrays({"x": BASE.astype(np.float32), "x_test": (BASE * 255).astype(np.uint8)})


def test_columns_of_a_table_have_to_be_the_same(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=list("abcde"))
    other = table[list("edcba")]
    wrong = r"has columns \['e', .*, expected \['a', .* in this order"
    with pytest.raises(DataError, match=f"x_test {wrong}"):
        from_arrays({"x": table, "x_test": other}, scale="standard")
    run = fit(tmp_path / "run", {"x": table, "x_test": table[:50]})
    for model in (run.model, fastaae.load(tmp_path / "run")):
        np.testing.assert_array_equal(model.encode(table), model.encode(X))
        for method in (model.encode, model.reconstruct, model.reconstruction_error):
            with pytest.raises(DataError, match=f"x {wrong}"):
                method(other)
    plain = fit(tmp_path / "plain", X)
    assert checkpoint.digest(plain.model.encoder.parameters()) == checkpoint.digest(run.model.encoder.parameters())
    fit(tmp_path / "twice", pandas.DataFrame(X, columns=list("aacde")))  # names that come twice say nothing
    assert fastaae.load(tmp_path / "twice").encode(table).shape == (240, 2)


BASE = RNG.random((240, 5))


def pictures(root, folders, n=12):
    Image = pytest.importorskip("PIL.Image")
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for k in range(n):
            Image.fromarray(RNG.integers(0, 256, (4, 4), np.uint8)).save(root / folder / f"{k}.png")
    return root


def test_images_that_lie_deeper_are_told(tmp_path):
    root = pictures(tmp_path / "set", ["a", "b", "b/more/still"])
    with pytest.warns(UserWarning, match=r"set: 12 images lie deeper and are left out, .*/b/more/still/\d+.png is one"):
        assert len(opened(root)["x"]) == 24


def test_a_folder_of_images_without_a_class(tmp_path):
    root = pictures(tmp_path / "set", ["a", "b", "unlabeled"])
    data = from_arrays(root)
    assert data.classes == ["a", "b"] and int((data.y_train < 0).sum()) == 10
    run = train(
        Config(task="semi_supervised", hidden=(8,), batch_size=10, epochs=1, out_dir="run"), root, progress=False
    )
    assert {*run.model.predict(root)} <= {"a", "b"} and len(run.model.predict(root)) == 36


# The shell, and figures


def test_a_path_given_in_python_is_found_from_the_shell(tmp_path, monkeypatch, capsys):
    np.savez("own.npz", x=X, y=WORDS)
    run = fit(tmp_path / "run", "own.npz", task="semi_supervised")
    assert run.config.dataset == str(tmp_path / "own.npz")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    assert "valid_error" in capsys.readouterr().out
    assert cli.main(["resume", str(tmp_path / "run"), "--epochs", "3", "--quiet"]) == 0


@pytest.mark.parametrize("kind", ["npy", "folder"])
def test_own_data_train_from_the_shell_without_a_preset(tmp_path, kind, monkeypatch):
    path = Path("x.npy") if kind == "npy" else pictures(tmp_path / "set", ["a", "b"])
    if kind == "npy":
        np.save(path, X)
    flags = ["--scale", "standard", "--epochs", "2", "--batch-size", "10", "--hidden", "16"]
    assert cli.main(["train", "--dataset", str(path), *flags, "--out-dir", "run"]) == 0
    assert fastaae.load("run").config.name == "custom"
    monkeypatch.chdir("/")
    assert cli.main(["resume", str(tmp_path / "run"), "--epochs", "3", "--quiet"]) == 0
    assert cli.main(["encode", str(tmp_path / "run"), str(tmp_path / path), "--out", str(tmp_path / "z.npy")]) == 0
    assert np.load(tmp_path / "z.npy").shape == (240 if kind == "npy" else 24, 2)


def test_the_package_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "fastaae", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == fastaae.__version__


def test_a_supervised_run_reconstructs_with_the_labels_of_the_file(tmp_path):
    np.savez("own.npz", x=X, y=WORDS)
    model = fit(tmp_path / "run", "own.npz", task="supervised").model
    assert cli.main(["reconstruct", "run", "own.npz", "--out", "r.npy"]) == 0
    np.testing.assert_array_equal(np.load("r.npy"), model.reconstruct(X, WORDS))


@pytest.mark.parametrize(
    ("data", "scale", "end"), [(X, "standard", "npy"), (BASE, "unit", "png")], ids=["table", "unit"]
)
def test_samples_of_a_table_are_numbers(tmp_path, data, scale, end):
    fit(tmp_path / "run", data[:, :4], scale=scale)
    assert cli.main(["sample", "run", "--n", "4"]) == 0
    assert [path.name for path in (tmp_path / "run").glob("samples.*")] == [f"samples.{end}"]


@pytest.mark.parametrize("form", ["tuple", "mapping", "path", "Data", "without others"])
def test_figures_take_what_training_takes(tmp_path, form):
    x, y = RNG.random((60, 4, 4)).astype(np.float32), np.array(["one", "two", "three"])[np.arange(60) % 3]
    np.savez("own.npz", x=x, y=y)
    whole = {"n_validation": 0} if form == "without others" else {}
    run = fit(tmp_path / "run", (x, y), task="semi_supervised", scale="unit", batch_size=20, **whole)
    given = {"tuple": (x, y), "mapping": {"x": x, "y": y}, "path": "own.npz", "Data": from_arrays((x, y))}
    drawn = figures.draw(run.model, given.get(form, from_arrays((x, y), 0)), tmp_path / "out")
    assert {"style_content", "reconstructions", "neighbours"} <= {path.stem for path in drawn}


def test_modules_of_the_package_need_no_import_of_their_own():
    code = "import fastaae; print(fastaae.data.from_arrays.__name__, fastaae.figures.draw.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["from_arrays", "draw"], done.stderr


@pytest.mark.parametrize(("beyond", "told"), [(1.9, False), (255.0, True)])
def test_examples_in_other_units_are_told(tmp_path, beyond, told):
    images = RNG.random((60, 4, 4)).astype(np.float32)
    model = fit(tmp_path / "run", images, scale="unit", batch_size=20).model
    x = torch.from_numpy(images) * beyond
    for method in (model.encode, model.reconstruct, model.reconstruction_error):
        with pytest.warns(UserWarning, match="divide by 255") if told else contextlib.nullcontext():
            method(x)

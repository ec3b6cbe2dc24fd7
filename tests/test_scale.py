"""Any finite real data: scales that are part of the model, labels of a part of the rows, priors of y."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastaae
from fastaae import Config, DataError, checkpoint, train
from fastaae.data import from_arrays
from fastaae.engine import priors
from fastaae.engine.step import Step

RNG = np.random.default_rng(0)
BASE = RNG.random((240, 5))
Y = np.arange(240) % 3
FIELDS = {"hidden": (16,), "style_dim": 2, "epochs": 3, "batch_size": 50}
KINDS = {  # dtype: numbers of that kind, of a few units
    "uint8": (BASE * 255).astype(np.uint8), "pixels": (BASE * 255).astype(np.uint8)[:, None],
    "int8": (BASE * 100 - 50).astype(np.int8), "uint16": (BASE * 60_000).astype(np.uint16),
    "int32": (BASE * 1e6 - 5e5).astype(np.int32), "int64": (1.7e18 + BASE * 1e6).astype(np.int64),
    "uint64": (BASE * 1e5).astype(np.uint64), "bool": BASE > 0.5,
    "float16": (BASE * 20 - 10).astype(np.float16), "float32": (BASE * 2000 - 1000).astype(np.float32),
    "float64": 1.6e9 + BASE * 10, "tiny": BASE * 1e-30, "huge": BASE * 1e30 - 5e29,
}  # fmt: skip


def fit(tmp_path, data, **fields):
    cfg = Config(**{**FIELDS, "out_dir": str(tmp_path), **fields})
    return train(cfg, data=data, progress=False)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("scale", ["minmax", "standard"])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_see_scaled_data_and_models_give_it_back(tmp_path, kind, scale, precision):
    x = KINDS[kind]
    run = fit(tmp_path / "run", x, scale=scale, precision=precision)
    model, d = run.model, from_arrays(x, scale=scale)
    assert kind == "pixels" or d.train.x.numpy().astype(np.float64).tolist() == x.astype(np.float64).tolist()
    rows = d.x_train.numpy().astype(np.float64) / (255 if kind == "pixels" else 1)
    seen = model.standardized(model.scaled(d.x_train)).double().numpy()
    least, above = rows.min(0), rows - rows.min(0)  # of large numbers the mean is not exact
    low, span = (least, np.ptp(rows, 0)) if scale == "minmax" else (least + above.mean(0), above.std(0))
    np.testing.assert_allclose(seen, (rows - low) / span, atol=1e-5)
    close = {"rtol": 1e-5, "atol": 1e-5 * span.max()}
    z = torch.from_numpy(model.encode(x))
    made = model.output(z.to(model.decoder.weights[0])).double().numpy() * span + low
    made = made.clip(0, 1) if kind == "pixels" else made
    np.testing.assert_allclose(model.reconstruct(x).reshape(240, 5), made, **close)
    loaded = fastaae.load(tmp_path / "run")
    for f in ("encode", "reconstruct"):
        assert np.array_equal(getattr(loaded, f)(x), getattr(model, f)(x))
    assert np.array_equal(loaded.sample(5, seed=1), model.sample(5, seed=1))


@pytest.mark.parametrize("scale", ["minmax", "standard"])
def test_a_constant_feature_comes_back_as_its_constant(tmp_path, scale):
    x = BASE * 10 - 5
    x[:, 1], x[:, 3] = 7.25, -1e9
    model = fit(tmp_path, x, scale=scale).model
    assert np.ptp(model.standardized(model.scaled(torch.from_numpy(x))).numpy()[:, [1, 3]]) == 0
    made = model.reconstruct(x)
    assert np.abs(made[:, 1] - 7.25).max() < 1 and np.abs(made[:, 3] + 1e9).max() < 1


def test_outside_the_unit_range_training_names_the_scale_and_encoding_takes_it(tmp_path):
    for x, named in ((BASE * 10 - 5, "choose scale='minmax' or 'standard'"), (KINDS["int32"], "choose scale='minmax'")):
        with pytest.raises(DataError, match=named) as error:
            fit(tmp_path / "no", x)
        assert "\n" not in str(error.value)
    model = fit(tmp_path / "run", BASE).model
    assert np.isfinite(model.encode(model.sample(50) * 3 - 1)).all()


def test_resumed_runs_keep_their_scale(tmp_path):
    x = KINDS["float64"]
    whole = fit(tmp_path / "whole", x, scale="standard", epochs=4)
    fit(tmp_path / "half", x, scale="standard", epochs=2)
    cfg = Config(**{**FIELDS, "scale": "standard", "epochs": 4})
    train(cfg, data=x, resume=tmp_path / "half", progress=False)
    found = [checkpoint.load(tmp_path / name / "checkpoint.safetensors").tensors for name in ("whole", "half")]
    assert checkpoint.digest(found[0]) == checkpoint.digest(found[1]) and whole.model.known["dtype"] == "float64"


@pytest.mark.filterwarnings("ignore:queries lie in")
def test_likelihoods_are_in_the_units_of_the_data_or_scaled(tmp_path):
    x = BASE * 10 - 5
    model = fit(tmp_path, x, scale="standard").model
    samples = model.sample(400, seed=0)
    own = model.log_likelihood(x[:20], 400, 2.0)
    expected = fastaae.parzen_log_likelihood(x[:20], samples, 2.0)
    assert abs(own.mean - expected.mean) < 1e-6
    d = from_arrays(x, scale="standard").x_train.numpy()
    mean, std = d.mean(0), d.std(0)
    scaled = model.log_likelihood(x[:20], 400, 0.7, scaled=True)
    expected = fastaae.parzen_log_likelihood((x[:20] - mean) / std, (samples - mean) / std, 0.7)
    assert abs(scaled.mean - expected.mean) < 1e-4


# Labels of a part of the rows

PARTLY = {
    "semi_supervised": {}, "label_prior": {"task": "unsupervised", "label_prior": True, "prior": "mixture",
                                           "components": 3},
    "embedding": {"task": "embedding"},
}  # fmt: skip


@pytest.mark.parametrize("task", PARTLY)
def test_rows_without_a_label_train_and_count_in_no_metric(tmp_path, task):
    y = np.where(RNG.random(240) < 0.4, Y, -1)
    fields = {"task": "semi_supervised", **PARTLY[task]}
    data = {"x": BASE, "y": y, "x_test": BASE[:60], "y_test": y[:60]}
    run = fit(tmp_path / "a", data, **fields)
    told = y[:60] >= 0
    name = "component_error" if task == "label_prior" else "error"
    alone = fit(tmp_path / "b", data | {"x_test": BASE[:60][told], "y_test": y[:60][told]}, **fields)
    assert run.metrics[f"test_{name}"] == alone.metrics[f"test_{name}"]
    if task == "semi_supervised":
        labels = run.model.predict(BASE[:60][told])
        assert run.metrics["test_error"]["mean"] == pytest.approx(100 * np.mean(labels != y[:60][told]))


def test_unlabelled_examples_of_their_own_are_rows_behind_the_others(tmp_path):
    few = {"x": BASE[:90], "y": Y[:90], "x_unlabeled": BASE[90:]}
    appended = {"x": BASE, "y": np.append(Y[:90], np.full(150, -1))}
    weights = []
    for k, data in enumerate((few, appended)):
        run = fit(tmp_path / str(k), data, task="semi_supervised")
        weights.append(checkpoint.digest(checkpoint.load(run.directory / "checkpoint.safetensors").tensors))
    assert weights[0] == weights[1]


def test_supervised_needs_all_labels(tmp_path):
    with pytest.raises(ValueError, match="task='supervised': .* training examples have no label, expected one each"):
        fit(tmp_path, (BASE, np.where(Y == 2, -1, Y)), task="supervised")


def test_n_labeled_draws_among_the_labelled(tmp_path):
    d = from_arrays((BASE, np.where(np.arange(240) < 100, Y, -1)))
    chosen = fastaae.data.labeled_subset(d.y_train, 30, 3, 0)
    assert d.y_train[chosen].bincount().tolist() == [10, 10, 10]
    every = fastaae.data.labeled_subset(d.y_train, None, 3, 0)
    assert torch.equal(every, (d.y_train >= 0).nonzero().flatten())
    with pytest.raises(DataError, match="n_labeled=200, but only .* labelled examples"):
        fastaae.data.labeled_subset(d.y_train, 200, 3, 0)


def test_validation_data_of_ones_own_and_none(tmp_path):
    own = {"x": BASE[:200], "y": Y[:200], "x_valid": BASE[200:], "y_valid": Y[200:]}
    d = from_arrays(own)
    assert np.array_equal(d.x_valid, BASE[200:].astype(np.float32)) and np.array_equal(d.y_valid, Y[200:])
    assert len(d.train) == 200 and sorted(d.train.index.tolist()) == list(range(200))
    run = fit(tmp_path / "own", own, task="semi_supervised")
    assert run.metrics["valid_error"]["mean"] == 100 * np.mean(run.model.predict(BASE[200:]) != Y[200:])
    none = fit(tmp_path / "none", (BASE, Y), task="semi_supervised", n_validation=0)
    assert none.metrics == {} and len(none.history["code_std"]) == 3
    with pytest.raises(DataError, match="n_validation=5 .*, expected None or 0 beside x_valid"):
        from_arrays(own, 5)


@pytest.mark.filterwarnings("ignore:arrays. n_validation=59")
@pytest.mark.parametrize("held", [1, 7, 20, 59])
def test_the_split_takes_a_like_share_of_each_class(held):
    y = np.repeat([0, 1, 2, 3, 4], [30, 15, 10, 4, 1])
    d = from_arrays((RNG.random((60, 2)), y), held)
    assert len(d.y_valid) == held
    share = torch.bincount(d.y_valid, minlength=5).numpy()
    assert (np.abs(share - held * np.array([30, 15, 10, 4, 1]) / 60) < 1.01).all()
    assert 4 in d.y_train.tolist() or held == 59  # a class of one is for training


# The prior of y


def test_weighted_classes_are_drawn_by_their_weights():
    g = torch.Generator().manual_seed(0)
    out = torch.empty(60_000, 3)
    priors.categorical(out, g, torch.tensor([1.0, 2.0, 5.0]))
    assert torch.equal(out.sum(1), torch.ones(60_000))
    assert (out.mean(0) - torch.tensor([1, 2, 5]) / 8).abs().max() < 0.01


@pytest.mark.filterwarnings("ignore:classes")
def test_label_weights_are_of_training_of_samples_and_saved(tmp_path):
    y = np.repeat([0, 1, 2], [160, 60, 20])
    plain = fit(tmp_path / "plain", (BASE, y), task="semi_supervised").model
    data = fit(tmp_path / "data", (BASE, y), task="semi_supervised", label_weights="data").model
    given = fit(tmp_path / "given", (BASE, y), task="semi_supervised", label_weights=[8, 3, 1]).model
    assert "label_weights" not in plain.known
    np.testing.assert_allclose(data.known["label_weights"], np.array([8, 3, 1]) / 12, atol=0.01)
    np.testing.assert_allclose(given.known["label_weights"], np.array([8, 3, 1]) / 12)
    assert not np.array_equal(plain.sample(50, seed=0), given.sample(50, seed=0))
    loaded = fastaae.load(tmp_path / "given")
    assert np.array_equal(loaded.sample(50, seed=0), given.sample(50, seed=0))
    with pytest.raises(ValueError, match=r"label_weights=.*: expected 3 numbers, one for each class"):
        fit(tmp_path / "no", (BASE, y), task="semi_supervised", label_weights=[1, 2])


# Kinds of data: the weights are those of the plain array

PIXELS = RNG.integers(0, 256, (120, 4, 5), dtype=np.uint8)
NAMES = np.array(["ant", "bee", "cow"])[Y[:120]]


def written(path, save):
    save(path)
    return str(path)


def idx(path, values):
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes())


def folder_of_images(root):
    image = pytest.importorskip("PIL.Image")
    for k, (pixels, name) in enumerate(zip(PIXELS, NAMES, strict=True)):
        (root / "images" / name).mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(root / "images" / name / f"{k:03}.png")
    return str(root / "images")


def in_a_file(module, root):
    library = pytest.importorskip(module)
    if module == "zarr":
        array = library.open_array(str(root / "a.zarr"), mode="w", shape=PIXELS.shape, dtype="uint8")
        array[:] = PIXELS
        return array
    return library.File(root / "a.h5", "w").create_dataset("x", data=PIXELS)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 120

    def __getitem__(self, k):
        return PIXELS[k], int(Y[k])


SORTED = np.argsort(NAMES, kind="stable")  # as a folder has them
FORMS = {  # what is passed, of a folder to write to; and the arrays that it is to be as
    "tensor": (lambda root: torch.from_numpy(PIXELS), PIXELS, None),
    "read-only": (lambda root: np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(PIXELS.shape), PIXELS, None),
    "list of arrays": (lambda root: list(PIXELS), PIXELS, None),
    "npy": (lambda root: written(root / "x.npy", lambda p: np.save(p, PIXELS)), PIXELS, None),
    "npz of Keras": (
        lambda root: written(root / "x.npz", lambda p: np.savez(p, train_images=PIXELS, train_labels=Y[:120])),
        PIXELS, Y[:120],
    ),
    "idx": (lambda root: written(root / "images-idx3-ubyte", lambda p: idx(p, PIXELS)), PIXELS, None),
    "images": (lambda root: [pytest.importorskip("PIL.Image").fromarray(p) for p in PIXELS], PIXELS, None),
    "folder": (folder_of_images, PIXELS[SORTED], NAMES[SORTED]),
    "h5py": (lambda root: in_a_file("h5py", root), PIXELS, None),
    "zarr": (lambda root: in_a_file("zarr", root), PIXELS, None),
    "Dataset": (lambda root: Pairs(), PIXELS, Y[:120]),
    "DataLoader": (lambda root: torch.utils.data.DataLoader(Pairs(), batch_size=7), PIXELS, Y[:120]),
    "DataFrame": (lambda root: pytest.importorskip("pandas").DataFrame(BASE[:120]), BASE[:120], None),
    "words": (lambda root: (PIXELS, NAMES.tolist()), PIXELS, Y[:120]),
    "Series": (lambda root: (PIXELS, pytest.importorskip("pandas").Series(NAMES)), PIXELS, Y[:120]),
    "from one on": (lambda root: (PIXELS, Y[:120] + 1), PIXELS, Y[:120]),
    "float labels": (lambda root: (PIXELS, Y[:120].astype(float)), PIXELS, Y[:120]),
    "one-hot": (lambda root: (PIXELS, np.eye(3)[Y[:120]]), PIXELS, Y[:120]),
    "bools": (lambda root: (PIXELS, Y[:120] > 0), PIXELS, (Y[:120] > 0).astype(int)),
    "None for none": (lambda root: (PIXELS, [None if k % 4 else int(Y[k]) for k in range(120)]), PIXELS,
                      np.where(np.arange(120) % 4, -1, Y[:120])),
    "NaN for none": (lambda root: (PIXELS, np.where(np.arange(120) % 4, np.nan, Y[:120])), PIXELS,
                     np.where(np.arange(120) % 4, -1, Y[:120])),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_kind_of_data_trains_to_the_weights_of_the_plain_array(tmp_path, form):
    make, x, y = FORMS[form]
    data, plain = make(tmp_path), x if y is None else (x, y)
    fields = {"task": "unsupervised" if y is None else "semi_supervised", "batch_size": 20}
    runs = [fit(tmp_path / name, given, **fields) for name, given in (("as", data), ("plain", plain))]
    if isinstance(data, str):
        runs.append(fit(tmp_path / "named", None, dataset=data, **fields))
    found = [checkpoint.load(run.directory / "checkpoint.safetensors") for run in runs]
    assert len({checkpoint.digest(tensors) for tensors, _ in found}) == 1
    assert len({info["data_sha256"] for _, info in found}) == 1
    if form in ("words", "folder", "Series"):
        model = fastaae.load(tmp_path / "as")
        predicted = model.predict(x)
        assert predicted.dtype.kind == "U" and {*predicted} <= {"ant", "bee", "cow"}
        same = runs[1].model.sample(3, 0, "bee" if form == "folder" else 1)
        assert np.array_equal(model.sample(3, 0, "bee"), same)


LARGE = """
import resource, sys
import numpy as np, fastaae
path, rows, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "wb") as file:
    np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": (rows, 4096)})
    file.truncate(file.tell() + rows * 4096)  # sparse: zeros, and some that are none
large = np.load(path, mmap_mode="r+")
for k in range(0, rows, 4096):
    large[k : k + 16] = np.random.default_rng(k).integers(0, 256, (16, 4096), np.uint8)
del large
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
cfg = fastaae.Config(hidden=(16,), epochs=1, batch_size=1000, dataset=path, out_dir=path + ".run")
print(fastaae.train(cfg, progress=False).metrics["valid_reconstruction"]["mean"])
"""


@pytest.mark.parametrize(
    ("rows", "limit"), [(2**18, 900_000_000), pytest.param(2**20, 1_500_000_000, marks=pytest.mark.slow)]
)
def test_a_file_larger_than_memory_trains(tmp_path, rows, limit):
    """4096 bytes a row: 1 GB, and 4 GB."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "x.npy"), str(rows), str(limit)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and float(done.stdout) > 0, done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", 3),
        *(("columns", v) for v in (["a"], "abcde", list("abcda"), [1, 2, 3, 4, 5])),
        *(("classes", v) for v in ([1, 2], "abc", [1, 1, 2], [[1], 2, 3], [1.5, 2, 3], None)),
    ]
    + [("label_weights", v) for v in ([1, 1, 1], [0.5, 0.5], [0.5, 0.5, -1.0], [float("nan")] * 3, "uniform")],
    ids=str,
)
def test_what_a_file_says_of_its_data_is_checked(tmp_path, name, value):
    path = fit(tmp_path, (BASE, Y), task="semi_supervised").directory / "checkpoint.safetensors"
    tensors, info = checkpoint.load(path)
    checkpoint.save(path, tensors, info | {name: value})
    with pytest.raises(fastaae.CheckpointError, match=f"{name}=.*expected"):
        fastaae.load(path)


@pytest.mark.parametrize("kind", ["minmax", "standard"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_everything_of_a_step_is_on_its_device(monkeypatch, kind, dtype):
    """On one that is never there; generators, which no such device has, apart."""
    original = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": original("cpu"))
    x = np.random.default_rng(0).integers(0, 256, (100, 6)).astype(dtype)
    cfg = Config(hidden=(8,), scale=kind, batch_size=20, average=0.9)
    step = Step(cfg, from_arrays(x, 20, scale=kind), "meta")
    assert {t.device.type for name, t in step.state().items() if not name.startswith("generator")} == {"meta"}

"""Every door, with every kind of what may come through it: the right value, or one clear line before any work.

Numbers: each argument that is one, with numbers of other kinds, and with what is none. Arrays: each argument that is
one, with every kind of array. Axes: each array of examples beside a shape.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import stat
import tempfile
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import fastaae
from fastaae import data, evaluation, figures
from fastaae.config import CHOICES, TYPES
from fastaae.data import from_arrays, labeled_subset
from fastaae.window import ParzenWindow

X = np.random.default_rng(0).random((60, 4, 6)).astype(np.float32)
Y = np.arange(60) % 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """That of a semi-supervised run of images [4, 6]."""
    cfg = fastaae.Config(task="semi_supervised", hidden=(8,), style_dim=2, batch_size=20, epochs=1, n_labeled=30,
                         prior_std=1.0, out_dir=tmp_path_factory.mktemp("doors") / "run")  # fmt: skip
    return fastaae.train(cfg, data=(X, Y), progress=False).model


def picture(draw):
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder, "a.png"))
        return Path(folder, "a.png").read_bytes()


# Numbers


class Five(enum.IntEnum):
    N = 5


FIVES = {
    "int": 5, "numpy int8": np.int8(5), "numpy uint64": np.uint64(5), "array": np.array(5), "tensor": torch.tensor(5),
    "enumeration": Five.N,
}  # fmt: skip
HALVES = {
    "float": 0.5, "float16": np.float16(0.5), "float32": np.float32(0.5), "long double": np.longdouble(0.5),
    "array": np.array(0.5, np.float32), "tensor": torch.tensor(0.5),
    "bfloat16": torch.tensor(0.5, dtype=torch.bfloat16),
    "fraction": Fraction(1, 2), "decimal": Decimal("0.5"),
}  # fmt: skip
NO_NUMBERS = {
    "words": "5", "none": [], "array of one": np.array([5]), "bool": True, "numpy bool": np.bool_(True),
    "nan": float("nan"),
    "complex": 1j, "masked": np.ma.masked, "huge": 10**400, "huge fraction": Fraction(10**400),
    "meta": torch.tensor(5, device="meta"), "type": int, "bytes": b"5", "negative": -5,
    "span": np.timedelta64(5, "ns"), "date": np.datetime64(5, "ns"), "no date": np.datetime64("NaT"),
}  # fmt: skip

INTEGERS = {  # argument: what it makes of one, JSON-ready; of which no other number may come
    "Config.epochs": lambda n, m: fastaae.Config(epochs=n).epochs,
    "Config.seed": lambda n, m: fastaae.Config(seed=n).seed,
    "Config.n_labeled": lambda n, m: fastaae.Config(task="semi_supervised", n_labeled=n).n_labeled,
    "Config.hidden": lambda n, m: fastaae.Config(hidden=[n, n]).hidden,
    "sample(n)": lambda n, m: m.sample(n, 0).tolist(),
    "sample(seed)": lambda n, m: m.sample(2, n).tolist(),
    "stream(skip)": lambda n, m: [b.tolist() for b in m.stream(9, 0, skip=n)],
    "stream(share)": lambda n, m: [len(b) for b in m.stream(9, share=(0, n))],
    "encode(seed)": lambda n, m: m.encode(X[:2], seed=n).tolist(),
    "log_likelihood(n)": lambda n, m: m.log_likelihood(X[:2], n, 0.3).n_samples,
    "log_likelihood(seed)": lambda n, m: m.log_likelihood(X[:2], 9, 0.3, seed=n).mean,
    "ais(chains)": lambda n, m: m.ais_log_likelihood(X[:2], 0.3, n, 3, simulated=1).mean,
    "ais(steps)": lambda n, m: m.ais_log_likelihood(X[:2], 0.3, 2, n, simulated=1).mean,
    "ais(simulated)": lambda n, m: m.ais_log_likelihood(X[:2], 0.3, 2, 3, simulated=n).gap,
    "ais(seed)": lambda n, m: m.ais_log_likelihood(X[:2], 0.3, 2, 3, simulated=1, seed=n).gap,
    "parzen(n_samples)": lambda n, m: fastaae.parzen_log_likelihood(X[:2], [X[:5]], 0.3, n_samples=n).n_samples,
    "parzen(block)": lambda n, m: fastaae.parzen_log_likelihood(X[:2], X, 0.3, block=n).mean,
    "grid(columns)": lambda n, m: picture(lambda path: figures.grid(X, path, columns=n)),
    "grid(dividers)": lambda n, m: picture(lambda path: figures.grid(X, path, 6, dividers=[n])),
    "neighbours(columns)": lambda n, m: picture(lambda path: figures.neighbours(X, X, path, columns=n)),
    "cluster_heads(n)": lambda n, m: picture(lambda path: figures.cluster_heads(m, X, path, n)),
    "n_validation": lambda n, m: len(from_arrays((X, Y), n).x_valid),
    "n_labeled": lambda n, m: labeled_subset(torch.from_numpy(Y), n, 3, 0).tolist(),
}  # fmt: skip
FLOATS = {
    "Config.prior_std": lambda v, m: fastaae.Config(prior_std=v).prior_std,
    "Config.momentum": lambda v, m: fastaae.Config(momentum=v).momentum,
    "Config.fixed_heads": lambda v, m: fastaae.Config(task="embedding", fixed_heads=v).fixed_heads,
    "parzen(sigma)": lambda v, m: fastaae.parzen_log_likelihood(X[:2], X, v).mean,
    "parzen(sigmas)": lambda v, m: fastaae.parzen_log_likelihood(X[:2], X, validation=X[:9], sigmas=[v]).sigma,
    "parzen(tolerance)": lambda v, m: fastaae.parzen_log_likelihood(X[:2], X, 0.3, tolerance=v).error_bound,
    "log_likelihood(sigma)": lambda v, m: m.log_likelihood(X[:2], 9, v).mean,
    "ais(sigma)": lambda v, m: m.ais_log_likelihood(X[:2], v, 2, 3, simulated=1).gap,
    "ParzenWindow(bandwidth)": lambda v, m: ParzenWindow(v).fit(X[:, 0]).score_samples(X[:3, 0]).tolist(),
    "ParzenWindow(atol)": lambda v, m: ParzenWindow(atol=v).fit(X[:, 0]).score_samples(X[:3, 0]).tolist(),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIVES)
@pytest.mark.parametrize("argument", INTEGERS)
def test_integers_of_any_kind_are_the_same_integer(argument, kind, model):
    assert INTEGERS[argument](FIVES[kind], model) == INTEGERS[argument](5, model)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("argument", FLOATS)
def test_floats_of_any_kind_are_the_same_float(argument, kind, model):
    assert FLOATS[argument](HALVES[kind], model) == FLOATS[argument](0.5, model)


@pytest.mark.parametrize("kind", [*NO_NUMBERS, "half"])
@pytest.mark.parametrize("argument", INTEGERS | FLOATS)
def test_what_is_no_number_is_refused_by_name(argument, kind, model):
    if (kind == "half" and argument in FLOATS) or (kind == "array of one" and argument == "parzen(sigmas)"):
        pytest.skip("a number")
    value = 5.5 if kind == "half" else NO_NUMBERS[kind]
    with pytest.raises(ValueError) as error:
        (INTEGERS | FLOATS)[argument](value, model)
    message = str(error.value)
    assert "\n" not in message and len(message) < 400, message
    name = argument.split("(")[-1].split(".")[-1].strip(")")
    assert name in message or "bandwidth" in message, message


@pytest.mark.parametrize("small", [np.float16(0.07), np.float32(0.07), Fraction(7, 100), Decimal("0.07")])
def test_no_number_is_used_in_its_own_precision(small, tmp_path):
    """float16 of 0.07 is one real number: the likelihood is that of this number, to the last bit."""
    x = X.reshape(60, -1)
    expected = fastaae.parzen_log_likelihood(x[:5], x, float(small), tolerance=1e-3)
    found = fastaae.parzen_log_likelihood(x[:5], [x], small, tolerance=1e-3, n_samples=np.int64(60),
                                          state=tmp_path / "state")  # fmt: skip
    assert np.array_equal(found.per_query, expected.per_query) and (tmp_path / "state").exists()
    assert found.error_bound == expected.error_bound < 1
    again = [ParzenWindow(h).fit(x).score_samples(x[:5]) for h in (small, float(small))]
    assert np.array_equal(*again)


def test_every_field_of_a_config_becomes_json():
    given = {
        "hidden": np.array([64, 32]), "lr_decay_epochs": range(5, 9, 3), "device": torch.device("cuda", 1),
        "optimizer": np.str_("adam"), "graph": np.bool_(False), "epochs": np.int32(3), "dropout": np.float32(0.5),
    }  # fmt: skip
    cfg = fastaae.Config(**given)
    assert (cfg.hidden, cfg.lr_decay_epochs, cfg.device, cfg.graph) == ((64, 32), (5, 8), "cuda:1", False)
    assert fastaae.Config.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    plain = (int, float, str, bool, tuple, type(None))
    assert all(type(getattr(cfg, name)) in plain for name in TYPES)
    assert {type(n) for n in (*cfg.hidden, *cfg.lr_decay_epochs)} == {int}


@pytest.mark.parametrize("hidden", [{8: 9}, {8, 9}, "89", 8, np.array(8), np.array([[8]]), [8.0], (n for n in (8, 9))])
def test_what_is_no_tuple_of_integers(hidden):
    with pytest.raises(ValueError, match="hidden=.*: expected a"):
        fastaae.Config(hidden=hidden)


# Arrays


class InAFile:
    """As an h5py or zarr dataset: a shape, a dtype and slices; what NumPy makes of it is counted."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.ndim, self.read = array, array.shape, array.dtype, array.ndim, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, key):
        self.read.append(key)
        return self.array[key]

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


class Masked(InAFile):
    """As a netCDF variable."""

    def __getitem__(self, key):
        return np.ma.masked_array(self.array[key], mask=True)

    def __array__(self, dtype=None, copy=None):
        return np.ma.masked_array(self.array, mask=True)


def reversed_twice(a):
    return a[::-1].copy()[::-1]


def third(a):
    return np.arange(a.size).reshape(a.shape) == 3


GOOD = {
    "plain": lambda a: a,
    "fortran": np.asfortranarray,
    "backwards": reversed_twice,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "subclass": lambda a: a.view(type("Own", (np.ndarray,), {})),
    "tensor": torch.from_numpy,
    "gradients": lambda a: torch.from_numpy(a.copy()).requires_grad_() if a.dtype.kind == "f" else torch.from_numpy(a),
    "parameter": lambda a: torch.nn.Parameter(torch.from_numpy(a.copy()), requires_grad=False),
    "negated": lambda a: -torch.from_numpy(-a) if a.dtype.kind == "f" else torch.from_numpy(a),
    "file": InAFile,
}
BAD = {
    "masked": lambda a: np.ma.masked_array(a, mask=third(a)),
    "masked beyond": lambda a: np.ma.masked_array(np.where(third(a), 10**9, a).astype(a.dtype), mask=third(a)),
    "masked rows": lambda a: [np.ma.masked_array(row, mask=True) for row in a],
    "masked by itself": lambda a: Masked(a),
    "sparse": lambda a: torch.from_numpy(a.reshape(len(a), -1).copy()).to_sparse(),
    "csr": lambda a: torch.eye(len(a), dtype=torch.float32).to_sparse_csr(),
    "scipy": lambda a: __import__("scipy.sparse").sparse.csr_matrix(a.reshape(len(a), -1)),
    "meta": lambda a: torch.from_numpy(a).to("meta"),
    "nested": lambda a: torch.nested.nested_tensor([torch.zeros(2, 2)]),
    "complex": lambda a: a.astype(complex),
    "complex tensor": lambda a: torch.from_numpy(a.astype(complex)),
    "objects": lambda a: a.astype(object),
    "words": lambda a: a.astype(str),
    "dates": lambda a: a.astype("int64").astype("datetime64[s]"),
    "record": lambda a: np.zeros(len(a), [("a", "f4")]),
    "mapping": lambda a: {"a": 1, "b": 2},
    "nothing": lambda a: None,
    "text": lambda a: "abc",
    "function": lambda a: len,
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
}  # fmt: skip
Z = np.random.default_rng(1).normal(size=(6, 2))
L = np.arange(6) % 3


def trained(data):
    d = from_arrays(data)
    return [d.sha256, d.n_classes]


ARRAYS = {  # argument: the array that is right, and what is made of one
    "x": (X, lambda a, m: trained({"x": a, "y": Y})),
    "y": (Y, lambda a, m: trained({"x": X, "y": a})),
    "x_test": (X, lambda a, m: trained({"x": X, "y": Y, "x_test": a})),
    "y_test": (Y, lambda a, m: trained({"x": X, "y": Y, "x_test": X, "y_test": a})),
    "encode": (X, lambda a, m: torch.as_tensor(m.encode(a)).detach().numpy()),
    "predict": (X, lambda a, m: np.asarray(m.predict(a))),
    "predict_proba": (X, lambda a, m: torch.as_tensor(m.predict_proba(a)).detach().numpy()),
    "reconstruct": (X, lambda a, m: torch.as_tensor(m.reconstruct(a)).detach().numpy()),
    "decode(z)": (Z, lambda a, m: torch.as_tensor(m.decode(a, L)).detach().numpy()),
    "decode(labels)": (L, lambda a, m: m.decode(Z, a)),
    "sample(labels)": (L, lambda a, m: m.sample(6, 0, a)),
    "log_likelihood": (X, lambda a, m: m.log_likelihood(a, 50, 0.3).per_query),
    "ais_log_likelihood": (X[:9], lambda a, m: m.ais_log_likelihood(a, 0.3, 2, 2, simulated=0).per_query),
    "log_likelihood(validation)": (
        X,
        lambda a, m: m.log_likelihood(X, 50, validation=a, sigmas=[0.3]).per_query,
    ),
    "queries": (X, lambda a, m: fastaae.parzen_log_likelihood(a, X, 0.3).per_query),
    "samples": (X, lambda a, m: fastaae.parzen_log_likelihood(X, a, 0.3).per_query),
    "block": (X, lambda a, m: fastaae.parzen_log_likelihood(X, [a], 0.3).per_query),
    "validation": (X, lambda a, m: fastaae.parzen_log_likelihood(X, X, validation=a, sigmas=[0.3]).per_query),
    "sample_weight": (Y + 1.0, lambda a, m: fastaae.parzen_log_likelihood(X, X, 0.3, sample_weight=a).per_query),
}
MAY_BE_NONE = {"y", "x_test", "y_test", "decode(labels)", "sample(labels)", "validation", "log_likelihood(validation)"}
MAY_BE_NONE |= {"sample_weight"}
BY_MODULE = {"encode", "predict_proba", "reconstruct", "decode(z)"}  # in which gradients are kept, and rounding differs


@pytest.mark.filterwarnings("ignore:best bandwidth")
@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("argument", ARRAYS)
def test_arrays_of_any_kind_are_the_same_array(argument, kind, model):
    right, make = ARRAYS[argument]
    found, expected = make(GOOD[kind](right), model), make(right, model)
    if kind == "gradients" and argument in BY_MODULE:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    else:
        assert np.array_equal(found, expected)


@pytest.mark.filterwarnings("ignore:best bandwidth", "ignore:Sparse", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("argument", ARRAYS)
def test_arrays_that_cannot_be_used_are_refused_by_name(argument, kind, model):
    right, make = ARRAYS[argument]
    if kind == "nothing" and argument in MAY_BE_NONE:
        pytest.skip("None means none")
    if kind == "function" and argument == "samples":
        pytest.skip("one that makes samples")
    if kind in ("objects", "words") and argument in ("y", "y_test"):
        pytest.skip("labels of a kind")
    wrong = BAD[kind](right)
    with warnings.catch_warnings(), pytest.raises(ValueError) as error:
        warnings.simplefilter("error")  # NumPy warns where it drops what is imaginary
        make(wrong, model)
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    names = {
        "encode": "x",
        "predict": "x",
        "predict_proba": "x",
        "reconstruct": "x",
        "log_likelihood": "queries",
        "ais_log_likelihood": "queries",
        "block": "samples",
    }
    name = names.get(argument, argument.split("(")[-1].strip(")"))
    path = "abc: no such file or folder"  # what a text is, where that may be
    assert message.startswith((name, "there is no array x", path if kind == "text" else name)), message


def test_samples_in_a_file_are_read_in_blocks():
    x = np.random.default_rng(0).random((9000, 100)).astype(np.float32)
    file = InAFile(x)
    found = fastaae.parzen_log_likelihood(x[:5], file, 0.3)
    assert np.array_equal(found.per_query, fastaae.parzen_log_likelihood(x[:5], x, 0.3).per_query)
    assert 2 <= len(file.read) < 20 and all(isinstance(key, slice) for key in file.read)
    found = fastaae.parzen_log_likelihood(x[:5], file, "leave-one-out", sigmas=[0.3])
    assert all(isinstance(key, slice) for key in file.read)
    expected = fastaae.parzen_log_likelihood(x[:5], x, "leave-one-out", sigmas=[0.3])
    assert np.array_equal(found.sigma_curve.mean, expected.sigma_curve.mean)


# Axes

SHAPES = {  # of one example: whether a door for examples [4, 6] takes it
    (4, 6): True, (24,): True, (1, 4, 6): True, (4, 6, 1): True, (4, 1, 6): True,
    (6, 4): False, (2, 12): False, (3, 8): False, (2, 2, 6): False, (4, 5): False, (25,): False,
}  # fmt: skip
EXAMPLES = [
    "encode",
    "predict",
    "reconstruct",
    "log_likelihood",
    "ais_log_likelihood",
    "log_likelihood(validation)",
    "queries",
    "samples",
]
EXAMPLES += ["block", "validation"]


@pytest.mark.filterwarnings("ignore:best bandwidth")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("argument", EXAMPLES)
def test_axes(argument, shape, model):
    x = np.resize(X, (60, *shape))
    make = ARRAYS[argument][1]
    if SHAPES[shape]:
        assert np.array_equal(make(x, model), make(X, model))
    else:
        with pytest.raises(ValueError, match=r"expected .*\(4, 6\)|expected .*\(\d+, \d+\)|of shape"):
            make(x, model)


def test_channels_first_beside_channels_last():
    first = np.random.default_rng(0).random((20, 3, 8, 8)).astype(np.float32)
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1))
    cfg = fastaae.Config(hidden=(8,), style_dim=2, batch_size=4, epochs=1)
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), expected \(8, 8, 3\): put its axes in this order"):
        fastaae.parzen_log_likelihood(last, first, 0.3)
    assert dataclasses.asdict(cfg)["hidden"] == (8,)


# Ranges


@pytest.mark.parametrize("name", ["queries", "validation"])
@pytest.mark.parametrize(("factor", "given"), [(255, r"\[.*, 25\d.*\]"), (1 / 255, r"\[.*, 0.003.*\]")])
def test_ranges_that_do_not_match_are_told(name, factor, given):
    x = X.reshape(60, -1)
    options = {"queries": x, "validation": x, "sigmas": [0.3]}
    options[name] = x * np.float32(factor)
    words = rf"^{name} lie in {given}, samples in \[.*, 0.99\d+\]: give both in the same units"
    with pytest.warns(UserWarning, match=words) as told:
        result = fastaae.parzen_log_likelihood(options.pop("queries"), x, **options)
    assert len(told) == 1
    assert f"60 samples of 24 values in [{x.min():.6g}, {x.max():.6g}]" in str(result)


def test_one_far_row_is_no_other_unit(recwarn):
    x = X.reshape(60, -1).copy()
    x[7] *= 1e6
    result = fastaae.parzen_log_likelihood(x, X, 0.3)
    assert not recwarn and result.query_range.high == x.max() and result.sample_range.high == X.max()


@pytest.mark.parametrize("first", [0, 1])
def test_each_block_of_a_stream_tells_its_range(first):
    x = X.reshape(60, -1)
    blocks = [x[:20], 255 * x[20:]]
    with pytest.warns(UserWarning, match=r"queries lie in .*, samples in \[.*, 25\d.*\]: give both in the same units"):
        fastaae.parzen_log_likelihood(x, [blocks[first], blocks[1 - first]], 0.3)


DARK = {
    "encode": lambda x, m: m.encode(x), "predict": lambda x, m: m.predict(x),
    "reconstruct": lambda x, m: m.reconstruct(x),
    "predict_proba": lambda x, m: m.predict_proba(x), "log_likelihood": lambda x, m: m.log_likelihood(x, 9, 0.3),
    "ais_log_likelihood": lambda x, m: m.ais_log_likelihood(x, 0.3, 1, 2, simulated=0),
    "grid": lambda x, m: picture(lambda path: figures.grid(x, path)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:queries lie in")
@pytest.mark.parametrize("dark", [(X > 0.5).astype(np.uint8), X / 255], ids=["bytes", "floats"])
@pytest.mark.parametrize("door", DARK)
def test_examples_that_fill_next_to_nothing_of_their_range_are_told(door, dark, model):
    with pytest.warns(UserWarning, match="has values from .*, next to nothing of 0 to .*: if .* is as good as white"):
        DARK[door](dark, model)


@pytest.mark.parametrize("sigma", [0.2, 1e-3])
def test_queries_of_a_model_keep_their_precision(model, sigma):
    queries = X.astype(np.float64) * 0.999
    found, samples = model.log_likelihood(queries, 500, sigma), model.sample(500, 0)
    expected = fastaae.parzen_log_likelihood(queries, samples, sigma)
    assert np.abs(found.per_query - expected.per_query).max() <= found.error_bound + expected.error_bound


def test_data_of_another_shape_than_the_models_are_refused(model, tmp_path):
    for shape in ((6, 4), (4, 3, 2), (5, 5)):
        other = from_arrays((np.resize(X, (60, *shape)), Y))
        with pytest.raises(ValueError, match=r"expected .*\(4, 6\)"):
            evaluation.evaluate([model], other, "valid")
        with pytest.raises(ValueError, match=r"expected .*\(4, 6\)"):
            figures.draw(model, other, tmp_path / "pictures")


@pytest.mark.parametrize("y", [Y[:, None], Y[:1], np.append(Y, Y)], ids=["column", "short", "long"])
def test_labels_that_do_not_fit_their_examples_are_refused(model, y):
    with pytest.raises(ValueError, match="y of shape .*: expected at least one, and a label of each"):
        evaluation.score(model, torch.from_numpy(X.reshape(60, -1)), torch.from_numpy(y))


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_a_word(name):
    for value in (np.array([getattr(fastaae.Config, name)]), [getattr(fastaae.Config, name)], None, 3):
        with pytest.raises(ValueError, match=f"^{name}=.*: expected one of "):
            fastaae.Config(**{name: value})


# Paths

NO_PATHS = {
    "bytes": b"x",
    "number": 3,
    "bool": True,
    "empty": "",
    "zero byte": "a\0b",
    "list": ["x"],
    "nobody": "~no-such-user/x",
}
PATHS = {
    "load": lambda path, m: fastaae.load(path),
    "save": lambda path, m: m.save(path),
    "export": lambda path, m: m.export(path),
    "save_pretrained": lambda path, m: m.save_pretrained(path),
    "from_pretrained": lambda path, m: fastaae.Model.from_pretrained(path),
    "train(resume)": lambda path, m: fastaae.train(resume=path, data=(X, Y), progress=False),
    "state": lambda path, m: fastaae.parzen_log_likelihood(X, X, 0.3, state=path),
    "grid": lambda path, m: figures.grid(X, path),
    "draw": lambda path, m: figures.draw(m, from_arrays((X, Y)), path),
    "load(data_dir)": lambda path, m: data.load("mnist", path),
    "load(npz)": lambda path, m: data.load(path),
    "config": lambda path, m: fastaae.Config.from_json(path),
}


@pytest.mark.parametrize("kind", NO_PATHS)
@pytest.mark.parametrize("door", PATHS)
def test_what_is_no_path_is_refused_in_a_line(door, kind, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        PATHS[door](NO_PATHS[kind], model)
    assert "\n" not in str(error.value) and "expected" in str(error.value) or "write the whole path" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("door", ["save", "grid", "state"])
def test_only_plain_files_are_replaced(door, kind, model, tmp_path):
    path = tmp_path / "there.png"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    before = stat.S_IFMT(path.lstat().st_mode)
    with pytest.raises((OSError, ValueError), match="plain file|regular file"):
        PATHS[door](path, model)
    assert stat.S_IFMT(path.lstat().st_mode) == before and list(tmp_path.iterdir()) == [path]

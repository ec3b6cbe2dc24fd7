from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import itertools
import os
import re
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from fastaae import Config
from fastaae.data import DataError, DataUnavailable, from_arrays, labeled_subset, load, sources
from fastaae.engine.step import Step

RNG = np.random.default_rng(0)
X = RNG.random((60, 2, 3)).astype(np.float32)
Y = np.arange(60) % 4
SVHN_SUBSET, FACES = "svhn/subset_train_32x32.mat", "faces/faces_48x48.mat"
MNIST_DIR = os.environ.get("FASTAAE_DATA", "")
HAS_SVHN, HAS_FACES = (bool(MNIST_DIR) and Path(MNIST_DIR, name).is_file() for name in (SVHN_SUBSET, FACES))
HAS_MNIST = any(Path(MNIST_DIR).glob("**/train-images*")) if MNIST_DIR else False


def with_value(value: float) -> np.ndarray:
    x = X.copy()
    x[3, 1, 2] = value
    return x


# from_arrays


@pytest.mark.parametrize("given", [X, torch.from_numpy(X), {"x": X}, {"x_train": X, "y": None}])
def test_unlabelled_arrays(given):
    result = from_arrays(given)
    assert (result.name, result.shape, result.n_classes) == ("arrays", (2, 3), 0)
    assert result.x_train.shape == (50, 6) and result.x_valid.shape == (10, 6)
    assert result.y_train is result.y_valid is result.x_test is result.y_test is None


def test_labelled_arrays_are_split_at_random_without_loss():
    x = np.arange(60, dtype=np.uint8)[:, None]
    with pytest.warns(UserWarning, match=r"n_validation=20 of 60 examples leaves none of class 2, 6, 7, 14, 20 "):
        result = from_arrays((x, np.arange(60)), n_validation=20)
    assert result.x_train.dtype == torch.uint8 and result.y_train.dtype == torch.int64
    assert result.x_train[:, 0].tolist() == result.y_train.tolist()
    assert result.x_valid[:, 0].tolist() == result.y_valid.tolist() != list(range(40, 60))
    assert sorted(result.y_train.tolist() + result.y_valid.tolist()) == list(range(60))
    one = from_arrays((x, np.zeros(60, int)), n_validation=20)  # without labels the last ones of a random order
    assert torch.equal(from_arrays((x, np.arange(60) % 3), 20, stratified=False).x_valid, from_arrays(x, 20).x_valid)
    assert sorted(one.x_valid.flatten().tolist()) != list(range(40, 60))


def test_a_class_of_two_is_in_training_in_each_of_1770_splits():
    x, wrong = np.zeros((60, 1), np.uint8), 0
    for pair in itertools.combinations(range(60), 2):
        y = np.isin(np.arange(60), pair).astype(int)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrong += not from_arrays((x, y)).y_train.any()
    assert wrong == 0  # in 45 of a split without regard to labels


def test_a_class_without_training_examples_is_named():
    said = "arrays: n_validation=3 of 4 examples leaves none of class 'a', 'c' to train on: pass more of them"
    with pytest.warns(UserWarning, match=said):
        from_arrays((np.zeros((4, 1), np.uint8), list("abac")), 3)


BINARY = RNG.integers(0, 2, (60, 4, 4)).astype(np.uint8)
SPANS = [  # x, x_test, what is said
    (
        BINARY,
        None,
        "x has values from 0 to 1, next to nothing of 0 to 255: if 1 is as good as white, pass floats divided by 1",
    ),
    (torch.from_numpy(BINARY), None, "x has values from 0 to 1"),
    (BINARY * 16, None, "x has values from 0 to 16"),
    (np.ones((60, 2), np.uint8), None, "x has values from 1 to 1"),
    (BINARY * 255, BINARY, "x_test has values from 0 to 1"),
    (BINARY, BINARY, "x has values from 0 to 1"),  # once
    *(
        (BINARY / t(255), None, "x has values from 0 to 0.00392157, next to nothing of 0 to 1: if 0.0039.* is")
        for t in (float, np.float32)
    ),
    (np.float16(X / 255), None, "x has values from .* of 0 to 1:"),
    (torch.from_numpy(X / 65025).bfloat16(), None, "x has values from .* of 0 to 1:"),
    (X, X / 255, "x_test has values"),
    *((BINARY * np.uint8(k), None, None) for k in (0, 17, 255)),
    *((BINARY * np.float32(k), None, "x has values from 0 to 0.0") for k in (0.004, 0.0625)),
    *((BINARY * np.float32(k), None, None) for k in (0, 0.07, 0.5, 1)),
    (np.eye(60, dtype=np.uint8) * 255, None, None),  # next to nothing is white
    (BINARY * 255, np.zeros_like(BINARY), None),
]


@pytest.mark.parametrize("x, x_test, message", SPANS, ids=range(len(SPANS)))
def test_examples_that_fill_next_to_nothing_of_their_range_are_warned_of_once(x, x_test, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_arrays({"x": x, "x_test": x_test})
    assert len(caught) == (message is not None)
    for warning in caught:
        assert re.match(f".*{message}", str(warning.message)) and warning.filename == __file__


def test_a_split_lives_on_a_device():
    given = from_arrays((np.arange(60, dtype=np.uint8).reshape(30, 2), np.arange(30) % 3), n_validation=6)
    there = given.resident("valid", torch.device("meta"))  # which keeps no numbers
    rows = there.parts["valid"]
    assert rows.x.shape == (6, 2) and rows.x.device == rows.index.device == torch.device("meta")
    assert there.train is given.train and there.y_valid is given.y_valid and given.x_valid.device.type == "cpu"
    assert given.resident("valid", torch.device("cpu")) is given.resident("test", torch.device("meta")) is given


def test_examples_are_held_once():
    result = from_arrays({"x_train": X, "y_train": Y, "x_test": X[:5], "y_test": np.array([0, 1, 2, 0, 3])})
    assert result.n_classes == 4 and result.y_test.tolist() == [0, 1, 2, 0, 3]
    assert result.train.x.data_ptr() == X.__array_interface__["data"][0] == result.x_test.data_ptr()
    assert from_arrays({"x": X, "y": Y, "x_test": X[:5]}).y_test is None


@pytest.mark.parametrize(
    "x",
    [
        X.astype(np.float64),
        X.astype(np.float16),
        X.astype(">f4"),
        np.asfortranarray(X),
        X[::-1],
        torch.from_numpy(X).double().requires_grad_(),
        torch.from_numpy(X).bfloat16(),
        torch.ones(1, 6).expand(60, 6),
    ],
)
def test_float_arrays_become_contiguous_float32(x):
    result = from_arrays(x)
    for tensor in (result.x_train, result.x_valid):
        assert tensor.dtype == torch.float32 and tensor.is_contiguous() and not tensor.requires_grad


def test_digest_follows_content_dtype_and_split():
    zeros = np.zeros((12, 4), np.uint8)
    digests = [
        from_arrays(given, n).sha256
        for given, n in [(X, None), (with_value(0.5), None), (X, 9), ((X, Y), None), (zeros, None), (zeros / 255, None)]
    ]
    assert len(set(digests)) == len(digests) and len(digests[0]) == 64
    assert from_arrays(X.copy()).sha256 == digests[0]


@pytest.mark.parametrize(
    "given, message",
    [
        ((X, Y, X), r"tuple of 3, expected \(x, y\)"),
        ({"x": X, "z": X}, r"unknown arrays \['z'\]; allowed are x, x_train, y"),
        ({"y": Y}, r"no array x \(or x_train\)"),
        ({"x": X, "x_train": X}, "both x and x_train"),
        (np.zeros(5), r"x has shape \(5,\), expected \[N, ...\]"),
        (np.zeros((0, 5)), r"x has shape \(0, 5\)"),
        (np.zeros((5, 0)), r"x has shape \(5, 0\)"),
        (X.astype(np.int64), "x has dtype int64, expected uint8"),
        (X.astype(complex), "x has dtype complex128"),
        (X.astype(object), "x has dtype object"),
        (with_value(np.nan), r"x has 1 NaN or infinite values, the first at index \(3, 1, 2\)"),
        (with_value(np.inf), r"x has 1 NaN or infinite"),
        (with_value(200), r"from .* to 200, expected \[0, 1\]: divide by 255, or pass uint8"),
        (with_value(-0.5), r"from -0.5 to .*, expected \[0, 1\]: choose scale='minmax' or 'standard'"),
        (X.astype(np.float64) * 1e300, "infinite"),
        ((X, Y + 0.5), "y has label 0.5, expected strings, bools or integers"),
        ((X, Y[:-1]), r"y has shape \(59,\), expected \(60,\)"),
        (
            {"x": X, "y": Y, "x_test": X, "y_test": Y + 1},
            "y_test has label 4, expected one of the classes .0, 1, 2, 3.",
        ),
        ({"x": X, "x_test": X[:, :1]}, r"x_test has .*\(1, 3\), expected .*\(2, 3\)"),
        ({"x": X, "x_test": X.astype(np.uint8)}, "x_test has uint8 .* expected float32"),
        ({"x": X, "x_test": X[:0]}, "x_test has shape"),
        ({"x": X, "y_test": Y, "x_test": X}, "y_test is given without y"),
        ({"x": X, "y": Y, "y_test": Y}, "y_test is given without x_test"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y[:2]}, "y_test has shape"),
    ],
)
def test_unusable_arrays_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        from_arrays(given)


@pytest.mark.parametrize("n", [-1, 60, 61])
def test_n_validation_out_of_range(n):
    with pytest.raises(
        DataError, match=f"n_validation={n} of 60 training examples, expected at least 0 and fewer than 60"
    ):
        from_arrays(X, n)


# labeled_subset


@pytest.mark.parametrize("n", [4, 7, 10, 40, 43])
def test_labeled_subset_is_balanced_and_repeatable(n):
    labels = torch.from_numpy(Y)
    chosen = labeled_subset(labels, n, 4, seed=1)
    assert chosen.dtype == torch.int64 and len(set(chosen.tolist())) == n
    counts = torch.bincount(labels[chosen], minlength=4)
    assert counts.max() - counts.min() == (n % 4 > 0)
    assert torch.equal(chosen, labeled_subset(labels, n, 4, seed=1))


def test_labeled_subset_depends_on_the_seed_also_in_the_remainder():
    labels = torch.from_numpy(Y)
    subsets = [labels[labeled_subset(labels, 5, 4, seed)] for seed in range(30)]
    assert len({int(torch.bincount(subset).argmax()) for subset in subsets}) == 4


@pytest.mark.parametrize(
    ("shares", "n", "counts"),
    [([0.5, 0.3, 0.2], 10, [5, 3, 2]), ([0.5, 0.3, 0.2], 11, [6, 3, 2]), ([0.97, 0.01, 0.01, 0.01], 10, [7, 1, 1, 1]),
     ([0.985, 0.005, 0.005, 0.005], 4, [1, 1, 1, 1]), ([0.25] * 4, 7, [2, 2, 2, 1])],
    ids=str,
)  # fmt: skip
def test_labeled_subset_in_the_shares_of_classes(shares, n, counts):
    labels = torch.arange(400) % len(shares)
    chosen = labels[labeled_subset(labels, n, len(shares), 0, shares=shares)]
    assert chosen.bincount(minlength=len(shares)).tolist() == counts


def test_n_labeled_follows_label_weights(tmp_path):
    y = np.repeat([0, 1, 2], [300, 200, 100])
    data, options = (RNG.random((600, 4)), y), {"task": "semi_supervised", "hidden": (8,), "n_labeled": 60, "epochs": 1}
    for weights, counts in (("uniform", [20, 20, 20]), ("data", [30, 20, 10]), ((3, 2, 1), [30, 20, 10])):
        cfg = Config(**options, label_weights=weights)
        batches = Step(cfg, from_arrays(data), "cpu").batches
        assert batches.y[batches.labeled_rows[0].long()].bincount().tolist() == counts


def test_labeled_subset_none_is_everything():
    assert labeled_subset(torch.from_numpy(Y), None, 4, seed=0).tolist() == list(range(60))


@pytest.mark.parametrize(
    "n, message",
    [
        (1, "n_labeled=1, expected at least 2, one of each class"),
        (8, "n_labeled=8, but only 7 labelled examples"),
        (6, "n_labeled=6 asks for 3 examples of class 1, it has 2"),
    ],
)
def test_labeled_subset_errors(n, message):
    with pytest.raises(DataError, match=message):
        labeled_subset(torch.tensor([0, 0, 0, 0, 0, 1, 1]), n, 2, seed=0)


# load: digits and .npz


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_digits():
    result = load("digits")
    assert (result.name, result.shape, result.n_classes) == ("digits", (8, 8), 10)
    assert [len(x) for x in (result.x_train, result.x_valid, result.x_test)] == [1250, 250, 297]
    assert result.x_train.dtype == torch.float32 and result.x_train.max() == 1
    from sklearn.datasets import load_digits

    assert result.y_valid.tolist() == load_digits().target[1250:1500].tolist()


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'fastaae\[demo\]'"):
        load("digits")


def test_unknown_dataset():
    with pytest.raises(DataError, match="dataset='cifar': expected 'mnist', 'svhn', 'tfd', 'digits' or the path of"):
        load("cifar")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_as_from_arrays(tmp_path, save):
    path = tmp_path / "mine.npz"
    save(path, x_train=X, y_train=Y, x_test=X[:7], y_test=Y[:7])
    result = load(str(path), n_validation=7)
    expected = from_arrays({"x": X, "y": Y, "x_test": X[:7], "y_test": Y[:7]}, 7)
    assert (result.name, result.sha256, len(result.x_valid)) == (str(path), expected.sha256, 7)


def test_npz_errors_name_the_file(tmp_path, monkeypatch):
    path = tmp_path / "mine.npz"

    def fails(message: str) -> None:
        with pytest.raises(DataError, match=f"mine.npz.*{message}"):
            load(str(path))

    fails("expected 'mnist', .* or the path of a file or folder")
    path.write_bytes(b"not a zip")
    fails("not a readable .npz file")
    np.savez(path, x=X, extra=Y)
    with pytest.warns(UserWarning, match=r"mine.npz: arrays \['extra'\] are left out"):
        load(str(path))
    np.savez(path, x=X * 300)
    fails("choose scale")
    np.savez(path, x=np.array([[None]]))
    fails("Object arrays cannot be loaded")

    np.savez(path, x=X)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    fails("not a readable .npz file")
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    path.write_bytes(damaged)
    fails("not a readable .npz file")
    with zipfile.ZipFile(path, "w") as archive:  # a few bytes whose header promises 4 TiB
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**32, 2**10)})
        archive.writestr("x.npy", header.getvalue())
    fails("not a readable .npz file")

    np.savez(path, x=X, y=Y)
    hidden = bytearray(path.read_bytes())
    hidden[hidden.index(b"PK\1\2") + 32] = 46 + len("y.npy")  # the first one's comment takes in what says of the second
    path.write_bytes(hidden)
    fails("1 arrays, expected the 2 that its last bytes declare")

    path.write_bytes(content)
    monkeypatch.setattr(sources, "MAX_NPZ_BYTES", 1000)
    fails("bytes, expected at most 1000")
    monkeypatch.undo()
    np.savez_compressed(path, x=np.zeros((2**16, 32, 32), np.uint8))  # packed 1,000 to 1
    fails("67108992 bytes when uncompressed, expected at most 67108864: save it with np.savez")
    np.savez_compressed(path, x=np.zeros((2**22, 1), np.uint8))
    fails("4194432 bytes and 4194304 rows when uncompressed, expected at most 67108864 bytes, with 16 for a row")
    for names in (["x.npy", "x.npy"], ["x.npy", "x"]):
        with pytest.warns(UserWarning, match="Duplicate") if names[0] == names[1] else contextlib.nullcontext():
            with zipfile.ZipFile(path, "w") as archive:
                for name in names:
                    archive.writestr(name, npy_bytes(X))
        fails("'x' is in it twice: leave one out")


# load: MNIST, first with four tiny files in place of the real ones


def idx(shape: tuple[int, ...], values: bytes) -> bytes:
    return b"".join(n.to_bytes(4, "big") for n in (2048 + len(shape), *shape)) + values


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> dict[str, bytes]:
    """Gzipped contents by name; the spec table, environment and cache are made to fit, and the network is off."""
    files, table = {}, []
    for stem, n, seed in (("train", 60, 1), ("t10k", 12, 2)):
        for kind, shape in (("images", (n, 2, 3)), ("labels", (n,))):
            high = 256 if kind == "images" else 10
            values = np.random.default_rng(seed).integers(0, high, shape, np.uint8).tobytes()
            content = idx(shape, values)
            table.append(sources._IdxFile(f"{stem}-{kind}", shape, hashlib.sha256(content).hexdigest()))
            files[f"{stem}-{kind}-idx{len(shape)}-ubyte.gz"] = gzip.compress(content)
    monkeypatch.setattr(sources, "_MNIST", tuple(table))
    monkeypatch.delenv("FASTAAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    return files


def offline(url: str, timeout: float):
    raise urllib.error.URLError("no network")


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


NAMINGS = {
    "gz": lambda name, content: (name, content),
    "raw": lambda name, content: (name.removesuffix(".gz"), gzip.decompress(content)),
    "dot": lambda name, content: (name.replace("-idx", ".idx"), content),
    "dot raw": lambda name, content: (name.replace("-idx", ".idx").removesuffix(".gz"), gzip.decompress(content)),
    "gz without .gz": lambda name, content: (name.removesuffix(".gz"), content),
    "raw with .gz": lambda name, content: (name, gzip.decompress(content)),
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("sub", ["", "mnist", "MNIST/raw"])
def test_mnist_is_found_in_each_layout(tiny, tmp_path, naming, sub):
    put(tmp_path / "given" / sub, dict(NAMINGS[naming](*item) for item in tiny.items()))
    result = load("mnist", str(tmp_path / "given"))
    images = np.frombuffer(gzip.decompress(tiny["train-images-idx3-ubyte.gz"]), np.uint8, offset=16).reshape(60, 6)
    assert (result.name, result.shape, result.n_classes) == ("mnist", (2, 3), 10)
    assert np.array_equal(result.x_train, images[:50]) and np.array_equal(result.x_valid, images[50:])
    assert result.x_test.shape == (12, 6) and len(result.y_test) == 12


def test_mnist_search_order(tiny, tmp_path, monkeypatch):
    home, environ, given = tmp_path / "cache" / "fastaae", tmp_path / "environ", tmp_path / "given"
    given.mkdir()
    monkeypatch.setenv("FASTAAE_DATA", str(environ))
    for folder in (home, environ, given):  # each later one comes first in the search
        put(folder, tiny)
        load("mnist", str(given))
        put(folder, {"train-labels-idx1-ubyte.gz": b"broken"})
        with pytest.raises(DataError, match=f"{folder}/train-labels"):
            load("mnist", str(given))


def test_mnist_data_dir_must_exist(tiny, tmp_path):
    with pytest.raises(DataError, match="data_dir='.*absent' is not a folder"):
        load("mnist", str(tmp_path / "absent"))


def test_mnist_missing_file_is_named(tiny, tmp_path):
    del tiny["t10k-images-idx3-ubyte.gz"]
    with pytest.raises(DataError, match="holds a part of MNIST, but not t10k-images-idx3-ubyte.gz"):
        load("mnist", str(put(tmp_path / "given", tiny)))


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("train-images-idx3-ubyte.gz", lambda raw: gzip.compress(raw)[:-20], " 3.. bytes read, expected .* of 376 "),
        (
            "train-images-idx3-ubyte.gz",
            lambda raw: gzip.compress(raw)[:-8] + bytes(8),
            "corrupt .*incorrect data check",
        ),
        ("train-images-idx3-ubyte.gz", lambda raw: gzip.compress(raw)[:10] + b"\xff" * 99, "corrupt .*Error -3"),
        ("train-images-idx3-ubyte", lambda raw: b"\0\0\x08\x01" + raw[4:], "wrong checksum .*, expected SHA-256"),
        ("train-labels-idx1-ubyte", lambda raw: b"\0\0\x08\x03" + raw[4:], "wrong checksum .*, expected SHA-256"),
        ("train-images-idx3-ubyte", lambda raw: raw[:-1], "wrong checksum of the 375 bytes read, expected .* of 376 "),
        ("train-images-idx3-ubyte", lambda raw: b"", "wrong checksum of the 0 bytes read, expected .* of 376 "),
        ("train-images-idx3-ubyte.gz", lambda raw: gzip.compress(raw + b"x"), " 377 bytes read, expected .* of 376 "),
        ("train-images-idx3-ubyte", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "wrong checksum .*, expected SHA-256"),
    ],
)
def test_mnist_damaged_file(tiny, tmp_path, name, damage, message):
    raw = gzip.decompress(tiny.pop(name.removesuffix(".gz") + ".gz"))
    with pytest.raises(DataError, match=f"given/{name}: .*{message}"):
        load("mnist", str(put(tmp_path / "given", {**tiny, name: damage(raw)})))


def test_mnist_unreadable_file(tiny, tmp_path):
    folder = put(tmp_path / "given", tiny)
    (folder / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(DataError, match="corrupt or unreadable file .*not a regular file"):
        load("mnist", str(folder))


def test_mnist_unlistable_folder(tiny, monkeypatch):
    def denied(folder: Path):
        raise PermissionError("denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(DataError, match="cannot look for MNIST here"):
        load("mnist")


def test_mnist_download_falls_back_to_the_second_mirror(tiny, tmp_path, monkeypatch):
    tried = []

    def urlopen(url: str, timeout: float):
        tried.append(url)
        if url.startswith(sources.MIRRORS[1]):
            return io.BytesIO(tiny[url.rpartition("/")[2]])
        if len(tried) > 4:
            return io.BytesIO(b"<html>a login page</html>")
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    first = load("mnist")
    assert len(tried) == 8
    assert {path.name for path in (tmp_path / "cache/fastaae/mnist").iterdir()} == set(tiny)
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    assert load("mnist").sha256 == first.sha256


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the files, but slowly where `how` says; one byte every 20 ms is slow."""

    files: dict[str, bytes] = {}
    how = "well"

    def do_GET(self):
        content = self.files[self.path.rpartition("/")[2]]
        head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content)
        slow = {"header": head + content, "body": content, "stall": content[10:], "silent": b""}.get(self.how, b"")
        with contextlib.suppress(OSError):
            self.wfile.write((head + content)[: len(head + content) - len(slow)] if self.how != "silent" else b"")
            for _ in range(500 if self.how == "silent" else len(slow)):
                time.sleep(0.02)
                self.wfile.write(slow[:1])
                slow = slow[1:]

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("how", ["well", "header", "body", "stall", "silent"])
def test_a_slow_mirror_is_given_up(tiny, tmp_path, monkeypatch, how):
    monkeypatch.undo()
    monkeypatch.setattr(sources, "PATIENCE", 0.3)
    monkeypatch.setattr(Mirror, "files", tiny)
    monkeypatch.setattr(Mirror, "how", how)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        name = next(iter(tiny))
        started = time.monotonic()
        try:
            assert sources._received(f"http://127.0.0.1:{server.server_port}/{name}") == tiny[name]
            assert how == "well"
        except TimeoutError as error:
            assert how != "well" and "expected at least 1000 a second" in str(error)
        assert time.monotonic() - started < 1
        server.shutdown()


def test_patience_is_short():
    assert sources.PATIENCE * (1 + len(sources.MIRRORS)) <= 30  # a stall may begin within one


def test_mnist_failed_download_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    def urlopen(url: str, timeout: float):
        if "t10k" in url:
            raise urllib.error.URLError("gone")
        return io.BytesIO(tiny[url.rpartition("/")[2]])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for _ in range(2):  # the second time, half of MNIST in the cache would be another error
        with pytest.raises(DataUnavailable, match="t10k-images.*gone"):
            load("mnist")
    assert list((tmp_path / "cache/fastaae/mnist").iterdir()) == []


def test_mnist_unavailable_says_where_it_looked_and_what_to_do(tiny, tmp_path):
    with pytest.raises(DataUnavailable) as error:
        load("mnist", str(tmp_path))
    for part in (f"{tmp_path}/MNIST/raw", "fastaae/mnist", *sources.MIRRORS, "no network", *tiny, "FASTAAE_DATA=DIR"):
        assert part in str(error.value)


def test_mnist_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataUnavailable, match="could not be downloaded"):
        load("mnist")


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert sources._cache() == Path("/somewhere/.cache/fastaae")

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert sources._cache() == Path(tempfile.gettempdir()) / "fastaae"


@pytest.mark.skipif(not HAS_MNIST, reason="FASTAAE_DATA does not name a folder with MNIST")
def test_real_mnist():
    result = load("mnist")
    assert (result.shape, result.n_classes, result.x_train.dtype) == ((28, 28), 10, torch.uint8)
    assert [len(x) for x in (result.x_train, result.x_valid, result.x_test)] == [50_000, 10_000, 10_000]
    assert result.y_train[:5].tolist() == [5, 0, 4, 1, 9] and result.y_test[:3].tolist() == [7, 2, 1]
    assert torch.bincount(result.y_train[labeled_subset(result.y_train, 1000, 10, seed=0)]).tolist() == [100] * 10


# load: SVHN and TFD, from .mat files


def svhn(n: int, **changes) -> dict[str, np.ndarray]:
    """The variables of a file with n images, whose labels are 1, 2, ..., 10, 1, ..."""
    images = np.random.default_rng(n).integers(0, 256, (32, 32, 3, n), np.uint8)
    return {"X": images, "y": (np.arange(n, dtype=np.uint8) % 10 + 1)[:, None], **changes}


def put_svhn(folder: Path, prefix: str = "", **files: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, variables in files.items():
        savemat(folder / f"{prefix}{split}_32x32.mat", variables)
    return folder


@pytest.fixture
def mat(tmp_path, monkeypatch, fast_reader) -> Iterator[list[int]]:
    """A fresh cache and no other data; the exit statuses of the processes that read .mat files."""
    monkeypatch.delenv("FASTAAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mask = os.umask(0o022)
    yield fast_reader
    os.umask(mask)


@pytest.mark.parametrize("prefix, name", [("", "svhn"), ("subset_", "svhn subset")])
@pytest.mark.parametrize("sub", ["", "svhn"])
def test_svhn(mat, tmp_path, prefix, name, sub):
    train, test = svhn(36), svhn(20)
    put_svhn(tmp_path / "given" / sub, prefix, train=train, test=test)
    result = load("svhn", str(tmp_path / "given"))
    assert (result.name, result.shape, result.n_classes) == (name, (32, 32, 3), 10)
    x = np.stack([train["X"][..., k].ravel() for k in range(36)])
    assert np.array_equal(result.x_train, x[:30]) and np.array_equal(result.x_valid, x[30:])
    assert result.x_train.dtype == torch.uint8 and result.y_train.dtype == torch.int64
    assert result.y_train[:12].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert np.array_equal(result.x_test[7].view(32, 32, 3), test["X"][..., 7]) and result.y_test[9] == 0
    assert load("svhn", str(tmp_path / "given"), n_validation=1).x_train.shape == (35, 3072)
    assert mat == [0, 0], "the second time comes from the cache"
    assert sorted(path.suffix for path in (tmp_path / "given" / sub).iterdir()) == [".mat", ".mat"]


def test_svhn_extra_comes_after_train(mat, tmp_path):
    files = {"train": svhn(36), "test": svhn(20), "extra": svhn(14)}
    put_svhn(tmp_path / "cache" / "fastaae" / "svhn", **files)
    result = load("svhn", n_validation=13)
    assert (result.name, len(result.x_train), len(result.x_valid), len(result.x_test)) == ("svhn", 37, 13, 20)
    assert np.array_equal(result.x_train[36].view(32, 32, 3), files["extra"]["X"][..., 0])
    assert result.y_train[35:].tolist() == [6, 1] and result.y_valid.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


def test_svhn_files_that_are_missing(mat, tmp_path):
    with pytest.raises(DataUnavailable) as error:
        load("svhn", str(tmp_path))
    for part in (f"{tmp_path}/svhn", "train_32x32.mat", "http://ufldl.stanford.edu/housenumbers", "FASTAAE_DATA=DIR"):
        assert part in str(error.value)
    put_svhn(tmp_path, extra=svhn(10))
    with pytest.raises(DataError, match="holds a part of SVHN, but not train_32x32.mat, test_32x32.mat"):
        load("svhn", str(tmp_path))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"X": svhn(20)["X"] / 255}, r"X is float64 of shape \(32, 32, 3, 20\), expected uint8 \[32, 32, 3, N\]"),
        ({"X": svhn(20)["X"].transpose(3, 0, 1, 2)}, r"X is uint8 of shape \(20, 32, 32, 3\)"),
        ({"X": svhn(20)["X"][..., 0]}, r"X is uint8 of shape \(32, 32, 3\)"),
        ({"X": svhn(0)["X"]}, r"X is uint8 of shape \(32, 32, 3, 0\)"),
        ({"y": svhn(19)["y"]}, r"y is uint8 of shape \(19, 1\), expected integers \[20, 1\]"),
        ({"y": svhn(20)["y"].T}, r"y is uint8 of shape \(1, 20\)"),
        ({"y": svhn(20)["y"] / 1}, "y is float64 of shape"),
        ({"y": svhn(20)["y"] - 1}, r"y has values \[0\], expected 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
        ({"y": svhn(20)["y"] + 1}, r"y has values \[11\]"),
        ({"y": "text"}, "'y' is char of shape"),
    ],
)
def test_svhn_unusable_variables(mat, tmp_path, changes, message):
    put_svhn(tmp_path, train=svhn(36), test=svhn(20, **changes))
    with pytest.raises(DataError, match=f"^{tmp_path}/test_32x32.mat: {message}"):
        load("svhn", str(tmp_path))


def test_mat_files_that_cannot_be_read(mat, tmp_path):
    put_svhn(tmp_path, train={"X": X}, test=svhn(20))
    with pytest.raises(DataError, match=r"/train_32x32.mat: no variables \['y'\], it has \['X'\]"):
        load("svhn", str(tmp_path))
    (tmp_path / "train_32x32.mat").write_bytes(b"<html>a login page</html>" * 6)
    with pytest.raises(DataError, match="/train_32x32.mat: not a MATLAB file of version 4 to 7.2"):
        load("svhn", str(tmp_path))
    (tmp_path / "train_32x32.mat").unlink()
    (tmp_path / "train_32x32.mat").mkdir()
    with pytest.raises(DataError, match="/train_32x32.mat: not a regular file"):
        load("svhn", str(tmp_path))


FOLDS = [0, 1, 3, 2, 1, 0, 1, 2, 3, 1, 0, 1]


def tfd(**changes) -> dict[str, np.ndarray]:
    n = len(FOLDS)
    images = np.random.default_rng(0).integers(0, 256, (n, 48, 48), np.uint8)
    folds = np.tile(np.array(FOLDS, np.uint8)[:, None], 5)
    folds[:, 1:] = 3
    labels = (np.arange(n, dtype=np.int16) % 7 + 1)[:, None]
    return {"images": images, "folds": folds, "labs_ex": labels, "labs_id": -labels, **changes}


@pytest.mark.parametrize(
    "file, name",
    [
        ("TFD_48x48.mat", "tfd"),
        ("tfd/TFD_ranzato_48x48.mat", "tfd"),
        ("faces/faces_48x48.mat", "faces (TFD layout)"),
    ],
)
def test_tfd(mat, tmp_path, file, name):
    path, given = tmp_path / "given" / file, tfd()
    path.parent.mkdir(parents=True)
    savemat(path, given)
    for _ in range(2):
        result = load("tfd", str(tmp_path / "given"))
        assert (result.name, result.shape, result.n_classes) == (name, (48, 48), 7)
        for split, chosen in (("train", [0, 1, 4, 5, 6, 9, 10, 11]), ("valid", [3, 7]), ("test", [2, 8])):
            x, y = getattr(result, f"x_{split}"), getattr(result, f"y_{split}")
            assert np.array_equal(x.view(-1, 48, 48), given["images"][chosen]) and x.dtype == torch.uint8
            assert y.tolist() == [k % 7 for k in chosen]
    assert mat == [0]


def test_tfd_with_unlabelled_images_has_no_labels(mat, tmp_path):
    labels = tfd()["labs_ex"]
    labels[0] = -1
    savemat(tmp_path / "TFD_48x48.mat", tfd(labs_ex=labels))
    savemat(tmp_path / "A_48x48.mat", {"not": "looked at"})
    result = load("tfd", str(tmp_path))
    assert result.name == "tfd" and result.n_classes == 0 and len(result.x_train) == 8
    assert result.y_train is result.y_valid is result.y_test is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": tfd()["images"] / 255}, r"images is float64 of shape \(12, 48, 48\), expected uint8 \[N, 48, 48\]"),
        ({"images": tfd()["images"].reshape(12, -1)}, r"images is uint8 of shape \(12, 2304\)"),
        ({"folds": tfd()["folds"][:, :1]}, r"folds is uint8 of shape \(12, 1\), expected integers \[12, 5\]"),
        ({"folds": tfd()["folds"] + 1}, r"folds has values \[4\], expected 0, 1, 2, 3"),
        ({"folds": tfd()["folds"] * 0}, "folds has no 2 in its first column, expected 1"),
        ({"labs_ex": tfd()["labs_ex"][:4]}, r"labs_ex is int16 of shape \(4, 1\), expected integers \[12, 1\]"),
        ({"labs_ex": tfd()["labs_ex"] - 1}, r"labs_ex has values \[0\], expected -1, 1, 2"),
    ],
)
def test_tfd_unusable_variables(mat, tmp_path, changes, message):
    savemat(tmp_path / "TFD_48x48.mat", tfd(**changes))
    with pytest.raises(DataError, match=f"^{tmp_path}/TFD_48x48.mat: {message}"):
        load("tfd", str(tmp_path))


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
@pytest.mark.parametrize("sub", ["", "svhn"])
@pytest.mark.parametrize("what", ["file", "folder", "base"])
def test_mat_files_of_others_in_the_cache_are_refused(mat, tmp_path, sub, what):
    base = tmp_path / "cache" / "fastaae"
    folder = put_svhn(base / sub, train=svhn(36), test=svhn(20))
    load("svhn")
    target = {"file": folder / "test_32x32.mat", "folder": folder, "base": base}[what]
    target.chmod(0o775)  # a group of one's own is the rule on many systems
    load("svhn")
    target.chmod(0o777)
    with pytest.raises(DataError, match="test_32x32|train_32x32.*: in the cache, where others may change it, expected"):
        load("svhn")
    target.chmod(0o755)
    load("svhn")


def test_tfd_is_split_already_and_not_downloaded(mat, tmp_path):
    with pytest.raises(DataError, match="n_validation=5, expected None"):
        load("tfd", n_validation=5)
    with pytest.raises(DataUnavailable, match=f"TFD is in none of {tmp_path}, .*put TFD_48x48.mat in a folder"):
        load("tfd", str(tmp_path))


@pytest.mark.skipif(not HAS_SVHN, reason="FASTAAE_DATA does not name a folder with the subset of SVHN")
def test_real_svhn_subset(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = load("svhn")
    assert (result.name, result.shape, result.n_classes) == ("svhn subset", (32, 32, 3), 10)
    assert [len(x) for x in (result.x_train, result.x_valid, result.x_test)] == [5834, 1166, 3000]
    assert result.y_train[:8].tolist() == [5, 2, 1, 0, 6, 1, 9, 1] and result.y_test[:4].tolist() == [4, 3, 2, 4]
    assert load("svhn").sha256 == result.sha256


@pytest.mark.skipif(not HAS_FACES, reason="FASTAAE_DATA does not name a folder with faces_48x48.mat")
def test_real_faces_are_upright(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = load("tfd")
    assert (result.name, result.shape, result.n_classes) == ("faces (TFD layout)", (48, 48), 7)
    assert [len(x) for x in (result.x_train, result.x_valid, result.x_test)] == [14_000, 1_000, 2_000]
    mean = result.x_train.view(-1, 48, 48).float().mean(0)
    mirrored = (mean - mean.flip(1)).abs().mean(), (mean - mean.flip(0)).abs().mean()
    assert mirrored[0] < 0.2 * mirrored[1], "the mean face is symmetric, left to right but not top to bottom"

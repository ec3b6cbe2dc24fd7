from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastaae import data
from fastaae.data import DataError, DataUnavailable, from_arrays, labeled_subset, load

RNG = np.random.default_rng(0)
X = RNG.random((60, 2, 3)).astype(np.float32)
Y = np.arange(60) % 4
MNIST_DIR = os.environ.get("FASTAAE_DATA", "")
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
    result = from_arrays((x, np.arange(60)), n_validation=20)
    assert result.x_train.dtype == torch.uint8 and result.y_train.dtype == torch.int64
    assert result.x_train[:, 0].tolist() == result.y_train.tolist()
    assert result.x_valid[:, 0].tolist() == result.y_valid.tolist() != list(range(40, 60))
    assert sorted(result.y_train.tolist() + result.y_valid.tolist()) == list(range(60))
    assert torch.equal(result.x_valid, from_arrays(x, n_validation=20).x_valid)


def test_test_set_is_copied():
    x_test = X[:5].copy()
    result = from_arrays({"x_train": X, "y_train": Y, "x_test": x_test, "y_test": np.array([0, 1, 2, 0, 3])})
    assert result.n_classes == 4 and result.y_test.tolist() == [0, 1, 2, 0, 3]
    x_test[:] = 0
    assert torch.equal(result.x_test, torch.from_numpy(X[:5]).flatten(1))
    assert from_arrays({"x": X, "y": Y, "x_test": x_test}).y_test is None


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
        (X.tolist(), "x is a list, expected a numpy array or a torch tensor"),
        ((X, Y, X), r"tuple of 3, expected \(x, y\)"),
        ({"x": X, "z": X}, r"unknown arrays \['z'\]; allowed are x, x_train, y"),
        ({"y": Y}, r"no array x \(or x_train\)"),
        ({"x": X, "x_train": X}, "both x and x_train"),
        (np.zeros(5), r"x has shape \(5,\), expected \[N, ...\]"),
        (np.zeros((0, 5)), r"x has shape \(0, 5\)"),
        (np.zeros((5, 0)), r"x has shape \(5, 0\)"),
        (X.astype(np.int64), "x has dtype int64, expected uint8"),
        (X > 0.5, "x has dtype bool"),
        (X.astype(complex), "x has dtype complex128"),
        (X.astype(object), "x has dtype object"),
        (with_value(np.nan), r"x has 1 NaN or infinite values, the first at index \(3, 1, 2\)"),
        (with_value(np.inf), r"x has 1 NaN or infinite"),
        (with_value(200), r"from .* to 200, expected \[0, 1\]: divide by 255, or pass uint8"),
        (with_value(-0.5), r"from -0.5 to .*, expected \[0, 1\]: rescale"),
        (X.astype(np.float64) * 1e300, "infinite"),
        ((X, Y.astype(float)), "y has dtype float64, expected integer"),
        ((X, Y[:-1]), r"y has shape \(59,\), expected \(60,\)"),
        ((X, Y[:, None]), r"y has shape \(60, 1\)"),
        ((X, Y - 1), "y has labels from -1 to 2"),
        ((X, Y * 10_000), "y has labels from 0 to 30000, expected 0 to 9999"),
        ((X, Y.tolist()), "y is a list"),
        ({"x": X, "x_test": X[:, :1]}, r"x_test has .*\(1, 3\), expected .*\(2, 3\)"),
        ({"x": X, "x_test": X.astype(np.uint8)}, "x_test has torch.uint8 .* expected torch.float32"),
        ({"x": X, "x_test": X[:0]}, "x_test has shape"),
        ({"x": X, "y_test": Y, "x_test": X}, "y_test is given without y"),
        ({"x": X, "y": Y, "y_test": Y}, "y_test is given without x_test"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y[:2]}, "y_test has shape"),
        (X[:5], "n_validation=0 of 5 training examples"),
    ],
)
def test_unusable_arrays_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        from_arrays(given)


@pytest.mark.parametrize("n", [-1, 0, 60, 61])
def test_n_validation_out_of_range(n):
    with pytest.raises(DataError, match=f"n_validation={n} of 60 training examples, expected at least 1"):
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
    with pytest.raises(DataError, match="dataset='cifar': expected 'mnist', 'digits' or the path of a .npz file"):
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
        with pytest.raises(DataError, match=f"mine.npz: .*{message}"):
            load(str(path))

    fails("no such file")
    path.write_bytes(b"not a zip")
    fails("not a readable .npz file")
    np.savez(path, x=X, extra=Y)
    fails("unknown arrays")
    np.savez(path, x=X * 300)
    fails("divide by 255|rescale")
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

    path.write_bytes(content)
    monkeypatch.setattr(data, "MAX_NPZ_BYTES", 1000)
    fails("bytes when uncompressed, at most 1000 are accepted")


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
            table.append(data._IdxFile(f"{stem}-{kind}", shape, hashlib.sha256(content).hexdigest()))
            files[f"{stem}-{kind}-idx{len(shape)}-ubyte.gz"] = gzip.compress(content)
    monkeypatch.setattr(data, "_MNIST", tuple(table))
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
        ("train-images-idx3-ubyte.gz", lambda raw: gzip.compress(raw)[:-20], "truncated gzip file"),
        ("train-images-idx3-ubyte.gz", lambda raw: raw, r"corrupt or unreadable file \(Not a gzipped file"),
        ("train-images-idx3-ubyte.gz", lambda raw: gzip.compress(raw)[:-8] + bytes(8), "corrupt .*CRC check failed"),
        ("train-images-idx3-ubyte.gz", lambda raw: gzip.compress(raw)[:10] + b"\xff" * 99, "corrupt .*Error -3"),
        ("train-images-idx3-ubyte", lambda raw: b"\0\0\x08\x01" + raw[4:], "magic number 2049, expected 2051"),
        ("train-labels-idx1-ubyte", lambda raw: b"\0\0\x08\x03" + raw[4:], "magic number 2051, expected 2049"),
        ("train-images-idx3-ubyte", lambda raw: raw[:-1], "expected 376 bytes .* found only 375"),
        ("train-images-idx3-ubyte", lambda raw: b"", "expected 376 bytes .* found only 0"),
        ("train-images-idx3-ubyte.gz", lambda raw: gzip.compress(raw + b"x"), "expected 376 bytes .* found more"),
        ("train-images-idx3-ubyte", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "wrong checksum, expected SHA-256"),
    ],
)
def test_mnist_damaged_file(tiny, tmp_path, name, damage, message):
    raw = gzip.decompress(tiny.pop(name.removesuffix(".gz") + ".gz"))
    with pytest.raises(DataError, match=f"given/{name}: .*{message}"):
        load("mnist", str(put(tmp_path / "given", {**tiny, name: damage(raw)})))


def test_mnist_unreadable_file(tiny, tmp_path):
    folder = put(tmp_path / "given", tiny)
    (folder / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(DataError, match="corrupt or unreadable file .*Is a directory"):
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
        if url.startswith(data.MIRRORS[1]):
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
    for part in (f"{tmp_path}/MNIST/raw", "fastaae/mnist", *data.MIRRORS, "no network", *tiny, "FASTAAE_DATA=DIR"):
        assert part in str(error.value)


def test_mnist_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataUnavailable, match="could not be downloaded"):
        load("mnist")


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert data._cache() == Path("/somewhere/.cache/fastaae")

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert data._cache() == Path(tempfile.gettempdir()) / "fastaae"


@pytest.mark.skipif(not HAS_MNIST, reason="FASTAAE_DATA does not name a folder with MNIST")
def test_real_mnist():
    result = load("mnist")
    assert (result.shape, result.n_classes, result.x_train.dtype) == ((28, 28), 10, torch.uint8)
    assert [len(x) for x in (result.x_train, result.x_valid, result.x_test)] == [50_000, 10_000, 10_000]
    assert result.y_train[:5].tolist() == [5, 0, 4, 1, 9] and result.y_test[:3].tolist() == [7, 2, 1]
    assert torch.bincount(result.y_train[labeled_subset(result.y_train, 1000, 10, seed=0)]).tolist() == [100] * 10

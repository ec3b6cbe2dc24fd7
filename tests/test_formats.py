"""Data of every kind are the same arrays, to the bit; what cannot be read is refused in one line, in little memory."""

import gzip
import os
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import processes
from faults.arrays import hostile_idx, npy
from faults.hostile import MB
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fastaae.data import formats
from fastaae.data.arrays import array, shared, tensor
from fastaae.data.formats import examples_of, opened
from fastaae.data.labels import encoded
from fastaae.files import DataError

X = np.random.default_rng(0).integers(0, 256, (13, 5, 4), np.uint8)
Y = np.arange(13) % 3
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), np.uint8)
DTYPES = ["u1", "i1", "u2", "i4", "i8", "u8", "bool", "f2", "f4", "f8", ">i4", ">f8"]


def image(pixels):
    return pytest.importorskip("PIL.Image").fromarray(pixels)


class Pairs(Dataset):
    """Map-style, of x and y, or of x alone."""

    def __init__(self, x, y=None):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        return self.x[k] if self.y is None else (self.x[k], self.y[k])


class InAFile:
    """What has a shape, a dtype and slices, and nothing else."""

    def __init__(self, a):
        self.a, self.shape, self.dtype = a, a.shape, a.dtype

    def __getitem__(self, key):
        return self.a[key]


def h5(a, folder):
    file = pytest.importorskip("h5py").File(folder / "a.h5", "w")
    return file.create_dataset("x", data=a)


def zarr(a, folder):
    stored = pytest.importorskip("zarr").open(str(folder / "a.zarr"), mode="w", shape=a.shape, dtype=a.dtype)
    stored[:] = a
    return stored


def saved(a, folder):
    np.save(folder / "a.npy", a)
    return folder / "a.npy"


def frozen(a):
    a = a.copy()
    a.flags.writeable = False
    return a


KINDS = {  # of any dtype
    "plain": lambda a, folder: a,
    "fortran": lambda a, folder: np.asfortranarray(a),
    "backwards": lambda a, folder: a[::-1].copy()[::-1],
    "read-only": lambda a, folder: frozen(a),
    "list of arrays": lambda a, folder: list(a),
    "h5py": h5,
    "zarr": zarr,
    "slices": lambda a, folder: InAFile(a),
    "npy": saved,
    "npy by name": lambda a, folder: str(saved(a, folder)),
    "dataset": lambda a, folder: Pairs(a),
    "dataset of pairs": lambda a, folder: Pairs(a, Y),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_every_dtype_is_the_same_array(kind, dtype, tmp_path):
    a = X.astype(dtype)
    if kind == "zarr" and dtype.startswith(">"):
        pytest.skip("zarr keeps the order of bytes to itself")
    value = KINDS[kind](a, tmp_path)
    for found in (array("x", opened(value)["x"]), array("x", examples_of("x", value))):
        assert found.dtype == a.dtype.newbyteorder("=") and found.dtype.isnative and np.array_equal(found, a)


TENSORS = {
    "tensor": torch.from_numpy,
    "list of tensors": lambda a: list(torch.from_numpy(a)),
    "tensors": lambda a: TensorDataset(torch.from_numpy(a)),
    "tensors and labels": lambda a: TensorDataset(torch.from_numpy(a), torch.from_numpy(Y)),
    "loader": lambda a: DataLoader(Pairs(a, Y), batch_size=5),
    "loader of tensors": lambda a: DataLoader(TensorDataset(torch.from_numpy(a)), batch_size=4),
    "loader without batches": lambda a: DataLoader(Pairs(a), batch_size=None),
    "loader with a sampler": lambda a: DataLoader(Pairs(a), batch_sampler=[[0, 1, 2], [3], list(range(4, 13))]),
}


@pytest.mark.parametrize("dtype", ["u1", "i4", "f4", "f8"])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_and_loaders_are_the_same_array(kind, dtype):
    a = X.astype(dtype)
    found = array("x", opened(TENSORS[kind](a))["x"])
    assert found.dtype == a.dtype and np.array_equal(found, a)


LABELS = {
    "numbers": (Y, Y),
    "words": (np.array(["a", "b", "c"])[Y], np.array(["a", "b", "c"])[Y]),
    "python": (Y, Y.tolist()),
    "missing": (np.where(Y == 1, -1, Y), np.where(Y == 1, -1, Y)),
    "one-hot": (Y, np.eye(3, dtype=np.float32)[Y]),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("batch", [None, 5])
def test_labels_of_datasets_and_loaders(kind, batch):
    plain, labels = LABELS[kind]
    source = Pairs(X, labels)
    found = opened(source if batch is None else DataLoader(source, batch_size=batch))
    expected = encoded("y", plain, 13)
    assert np.array_equal(encoded("y", found["y"], 13)[0], expected[0])
    assert encoded("y", found["y"], 13)[1] == expected[1]


def test_a_loader_is_read_once_and_has_an_end():
    class Endless(IterableDataset):
        def __init__(self, n):
            self.n, self.read = n, 0

        def __len__(self):
            if self.n is None:
                raise TypeError("endless")
            return self.n

        def __iter__(self):
            while True:
                self.read += 1
                yield X[0]

    for source in (DataLoader(Endless(None), batch_size=2), Endless(None)):
        with pytest.raises(DataError, match=r"^data is a \w+ without len\(\), expected one that has an end"):
            opened(source)
    dataset = Endless(6)
    assert opened(DataLoader(dataset, batch_size=2))["x"].shape == (6, 5, 4) and dataset.read == 6


def test_reading_a_dataset_leaves_the_random_state():
    before = torch.get_rng_state()
    opened(Pairs(X))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["u1", "i4", "f4", "f8"])
def test_tables(dtype):
    pandas = pytest.importorskip("pandas")
    a = X.reshape(13, 20).astype(dtype)
    table = pandas.DataFrame(a, columns=[f"c{k}" for k in range(20)])
    for found in (
        array("x", opened(table)["x"]),
        array("x", opened((table, pandas.Series(Y)))["x"]),
        tensor("x", table),
    ):
        found = np.asarray(found)
        assert found.dtype == a.dtype and np.array_equal(found, a)
    mixed = table.astype({"c0": bool, "c1": np.float32})
    assert array("x", mixed).dtype == np.float64 and np.array_equal(array("x", mixed)[:, 1:], a[:, 1:])
    with pytest.raises(DataError, match=r"^x is .*columns \['name', 'day'\] are of no numbers: drop them"):
        array("x", table.assign(name="a", day=pandas.Timestamp("2020-01-01")))
    assert array("x", pandas.Series(a[:, 0])).tolist() == a[:, 0].tolist()


def test_lists_of_numbers():
    assert np.array_equal(opened(X.tolist())["x"], X) and np.array_equal(opened((X.tolist(), Y.tolist()))["x"], X)
    assert opened((X, ["a"] * 13))["y"] == ["a"] * 13


@pytest.mark.parametrize("pixels", [X, COLOUR], ids=["grey", "colour"])
def test_pictures(pixels, tmp_path):
    pictures = [image(p) for p in pixels]
    for value in (pictures, tuple(pictures), Pairs(pictures), {"x": pictures}):
        value = {"x": value} if isinstance(value, tuple) else value
        found = opened(value)["x"]
        assert found.dtype == np.uint8 and np.array_equal(found, pixels)
    deep = [image(p.astype(np.uint16) * 257) for p in X]
    assert opened(deep)["x"].dtype == np.uint16 and np.array_equal(opened(deep)["x"], X.astype(np.uint16) * 257)
    assert np.array_equal(array("x", pictures[0]), pixels[0])


def folder_of(root: Path, pixels, labels=None, end=".png"):
    for k, p in enumerate(pixels):
        path = root / ("" if labels is None else labels[k]) / f"{k:03}{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image(p).save(path)
    return root


@pytest.mark.parametrize("pixels", [X, COLOUR], ids=["grey", "colour"])
def test_folders_of_images(pixels, tmp_path):
    words = [["bee", "ant", "cat"][k % 3] for k in range(len(pixels))]
    order = sorted(range(len(pixels)), key=lambda k: (words[k], k))
    found = opened(folder_of(tmp_path / "a", pixels, words))
    assert np.array_equal(found["x"], pixels[order]) and found["y"] == [words[k] for k in order]
    (tmp_path / "a" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "a" / ".hidden").mkdir()
    assert np.array_equal(examples_of("x", str(tmp_path / "a")), found["x"])
    flat = opened(folder_of(tmp_path / "b", pixels))
    assert [*flat] == ["x"] and np.array_equal(flat["x"], pixels)
    for split, n in (("train", 4), ("test", 2), ("val", 3)):
        folder_of(tmp_path / "c" / split, pixels[:n], ["a", "b"] * 3)
    both = opened(tmp_path / "c")
    assert {name: len(v) for name, v in both.items()} == {"x": 4, "y": 4, "x_test": 2, "y_test": 2, "x_valid": 3,
                                                          "y_valid": 3}  # fmt: skip
    assert np.array_equal(both["x_test"], pixels[:2]) and both["y"] == ["a", "a", "b", "b"]
    (tmp_path / "c" / "more").mkdir()
    with pytest.warns(UserWarning, match=r"c: folders \['more'\] are left out"):
        opened(tmp_path / "c")


def idx(a, kind=8):
    return bytes([0, 0, kind, a.ndim]) + struct.pack(f">{a.ndim}I", *a.shape) + a.tobytes()


@pytest.mark.parametrize(
    "form", ["{}-images-idx3-ubyte", "my-{}-images.idx3-ubyte", "emnist-letters-{}-images-idx3-ubyte"]
)
@pytest.mark.parametrize("test", ["t10k", "test"])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_sets(form, test, end, tmp_path):
    pack = gzip.compress if end else bytes
    for split, a, y in (("train", X, Y + 1), (test, X[:4], Y[:4] + 1)):
        name = form.format(split)
        (tmp_path / (name + end)).write_bytes(pack(idx(a)))
        (tmp_path / (name.replace("images", "labels").replace("idx3", "idx1") + end)).write_bytes(
            pack(idx(y.astype(np.uint8)))
        )
    for value in (tmp_path, tmp_path / (form.format("train") + end)):
        found = opened(value)
        assert sorted(found) == ["x", "x_test", "y", "y_test"] and found["x"].dtype == np.uint8
        assert np.array_equal(found["x"], X) and found["y"].tolist() == (Y + 1).tolist()
        assert np.array_equal(found["x_test"], X[:4]) and found["y_test"].tolist() == (Y[:4] + 1).tolist()
    alone = opened(tmp_path / (form.format(test) + end))
    assert sorted(alone) == ["x", "y"] and np.array_equal(alone["x"], X[:4])


def test_idx_of_other_types_and_axes(tmp_path):
    for kind, dtype in formats.IDX.items():
        for a in (X, COLOUR):
            (tmp_path / "a").write_bytes(idx(a.astype(dtype), kind))
            found = array("x", opened(tmp_path / "a")["x"])
            assert found.dtype == np.dtype(dtype).newbyteorder("=") and np.array_equal(found, a.astype(dtype))
    (tmp_path / "a-train-images-idx3-ubyte").write_bytes(idx(X))
    (tmp_path / "a-train-images-idx3-ubyte.gz").write_bytes(b"not read: the other one is there")
    assert sorted(opened(tmp_path)) == ["x"]
    (tmp_path / "b-train-images-idx3-ubyte").write_bytes(idx(X))
    with pytest.raises(DataError, match="2 sets of images: name the file of one"):
        opened(tmp_path)


NAMES = {
    "x": {"x": X, "y": Y}, "x_train": {"x_train": X, "y_train": Y, "x_test": X[:3], "y_test": Y[:3]},
    "images": {"train_images": X, "train_labels": Y, "val_images": X[:2], "val_labels": Y[:2], "test_images": X[:3],
               "test_labels": Y[:3]},
    "data": {"data": X, "targets": Y}, "capitals": {"X": X, "Y": Y},
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("end", [".npz", ".mat", ""])
def test_usual_names(names, end, tmp_path, monkeypatch, request):
    given, path = NAMES[names], tmp_path / f"a{end}"
    if end == ".mat":
        request.getfixturevalue("fast_reader")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        pytest.importorskip("scipy.io").savemat(path, given)
    elif end:
        np.savez(path, **given)
    found = opened(path if end else given)
    assert np.array_equal(found["x"], X) and np.array_equal(encoded("y", found["y"], 13)[0], Y)
    lengths = {name: v for name, v in (("x_test", 3), ("y_test", 3), ("x_valid", 2), ("y_valid", 2)) if name in found}
    assert len(found) == len(given) == 2 + len(lengths)
    assert all(np.size(found[name]) == n * (20 if name[0] == "x" else 1) for name, n in lengths.items())


def test_arrays_without_a_name_and_others(tmp_path, monkeypatch, fast_reader):
    np.savez(tmp_path / "a.npz", X, Y)
    assert np.array_equal(opened(tmp_path / "a.npz")["x"], X) and opened(tmp_path / "a.npz")["y"].tolist() == Y.tolist()
    np.savez(tmp_path / "b.npz", Y, x=X, extra=Y, more=Y)
    with pytest.warns(UserWarning, match=r"b.npz: arrays \['extra', 'more', 'arr_0'\] are left out") as told:
        assert [*opened(str(tmp_path / "b.npz"))] == ["x"]
    assert len(told) == 1 and told[0].filename == __file__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(tmp_path / "a.mat", {"x": X.astype(float), "note": "words are not read"})
    assert np.array_equal(opened(tmp_path / "a.mat")["x"], X)
    savemat(tmp_path / "b.mat", {"pictures": X})
    with pytest.raises(DataError, match=r"b.mat: no variables \['x', 'X', 'x_train', .*it has \['pictures'\]"):
        opened(tmp_path / "b.mat")


def test_mappings_hold_anything(tmp_path):
    found = opened({"x": saved(X, tmp_path), "y": Y, "x_unlabeled": list(X), "x_valid": None})
    assert sorted(found) == ["x", "x_unlabeled", "y"] and np.array_equal(found["x_unlabeled"], X)
    np.save(tmp_path / "y.npy", np.array(["a", "b"]))
    assert opened({"x": X[:2], "y": str(tmp_path / "y.npy")})["y"].tolist() == ["a", "b"]
    with pytest.importorskip("h5py").File(tmp_path / "b.h5", "w") as file:
        file["x"], file["y"] = X, ["a"] * 13
        read = opened(file)
        assert np.array_equal(array("x", read["x"]), X) and encoded("y", read["y"], 13)[1] == ["a"]


# Refused


@pytest.mark.parametrize(
    "value, message",
    [
        ((X, Y, X), r"data is a tuple of 3, expected \(x, y\)"),
        ({"x": X, "z": X}, r"unknown arrays \['z'\]; allowed are x, x_train, y, y_train, x_test"),
        ({"y": Y}, r"there is no array x \(or x_train\) among \['y'\]"),
        (None, r"there is no array x"),
        ({"x": X, "x_train": X}, "both x and x_train are given"),
        ([X[0], X[1, :3]], r"x\[1\] is uint8 of shape \(3, 4\), expected uint8 of \(5, 4\) as the first"),
        ([X[0], X[1].astype(float)], r"x\[1\] is float64 of shape \(5, 4\), expected uint8"),
        ([np.ma.masked_array(X[0], mask=True)], r"x\[0\] is a masked array"),
        ([[1.0], [1.0, 2.0]], "x is no array of numbers"),
        (["a", "b"], "x has dtype <U1, expected real numbers"),
        (Pairs(X[:0]), "data holds no examples, expected at least one"),
        (Pairs([X[0], X[1, :3]]), r"data\[1\] is uint8 of shape \(3, 4\)"),
        (Pairs([(X[0], 1, 2)]), r"data\[0\] is a tuple of 3, expected x or \(x, y\)"),
        (Pairs([{"image": X[0]}]), r"data\[0\] is a dict"),
        (Pairs(["a"]), r"data\[0\] is a str"),
    ],
)  # fmt: skip
def test_what_cannot_be_data(value, message):
    with pytest.raises(DataError, match=f"^{message}") as error:
        opened(value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def fails(path, message, value=None):
    with pytest.raises(DataError, match=message) as error:
        opened(path if value is None else value)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value) and len(str(error.value)) < 600


BAD_NPY = {
    "words": b"x,y\n1,2\n",
    "nothing": b"",
    "zip": b"PK\3\4" + bytes(60),
    "pickle": b"\x80\x04\x95" + bytes(60),
    "truncated": npy()[:-1],
    "objects": npy(descr="'|O'"),
    "huge": npy("(10000000000, 10000000000)"),
    "huge in bytes": npy("(1000000000000, 4)"),
    "negative": npy("(-60, 4)"),
    "no header": npy()[:9],
}


@pytest.mark.parametrize("kind", BAD_NPY)
def test_bad_npy(kind, tmp_path):
    (tmp_path / "a.npy").write_bytes(BAD_NPY[kind])
    fails(tmp_path / "a.npy", r"a.npy: not readable \(.*\): give a .npy, .npz, .mat or IDX file")


def test_pickled_arrays_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    np.save(tmp_path / "a.npy", np.array([Evil()], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([Evil()], object))
    fails(tmp_path / "a.npy", "not readable")
    fails(tmp_path / "a.npz", "not a readable .npz file")
    assert not (tmp_path / "made").exists()


BAD_IDX = {
    "words": (b"x,y\n1,2\n", r"begins with b'x,y\\n'"),
    "nothing": (b"", "begins with b''"),
    "truncated": (idx(X)[:-1], r"275 bytes, by its header \(13, 5, 4\) expected 276"),
    "longer": (idx(X) + b"0", "277 bytes"),
    "no axes": (b"\0\0\x08\0" + bytes(9), "begins with"),
    "many axes": (b"\0\0\x08\xff" + bytes(2000), "begins with"),
    "other type": (idx(X, 7), "begins with"),
    "huge": (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(99), "11. bytes, by its header"),
    "half a header": (idx(X)[:11], "11 bytes"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", BAD_IDX)
def test_bad_idx(kind, packed, tmp_path):
    content, message = BAD_IDX[kind]
    (tmp_path / "a-images-idx3-ubyte").write_bytes(gzip.compress(content) if packed else content)
    fails(tmp_path / "a-images-idx3-ubyte", message)
    fails(tmp_path, message)


def test_a_bad_file_beside_is_named(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(X))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(Y.astype(np.uint8))[:-1])
    fails(tmp_path, r"train-labels-idx1-ubyte: not readable \(20 bytes, by its header")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(Y.astype(np.uint8)))[:-9])
    fails(tmp_path, r"train-labels-idx1-ubyte.gz: not readable \(")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    os.mkfifo(tmp_path / "train-labels-idx1-ubyte")
    fails(tmp_path, r"train-labels-idx1-ubyte: not readable \(not a regular file")


def test_bad_paths(tmp_path):
    for name in ("none", "none.npy", "none.npz", "none.mat"):
        fails(tmp_path / name, "no such file or folder, expected a .npy, .npz, .mat or IDX file")
    for name in ("pipe", "pipe.npy", "pipe.npz", "pipe.mat"):
        os.mkfifo(tmp_path / name)
        fails(tmp_path / name, "not a regular file")
    (tmp_path / "a.csv").write_text("1,2\n")
    fails(tmp_path / "a.csv", r"a table: read it with pandas.read_csv and pass that; expected a .npy, .npz, .mat")
    (tmp_path / "a.txt").write_text("1,2\n")
    fails(tmp_path / "a.txt", r"begins with b'1,2\\n', .*\): give a .npy, .npz, .mat or IDX file")


def test_bad_folders(tmp_path):
    pytest.importorskip("PIL.Image")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "holds no examples")
    other = folder_of(tmp_path / "sizes", X, ["a", "b", "c"] * 5)
    image(X[0, :3]).save(other / "b" / "100.png")
    fails(other, r"b/100.png is uint8 of shape \(3, 4\), expected uint8 of \(5, 4\) as the first: .*resize")
    image(COLOUR[0]).save(other / "b" / "100.png")
    fails(other, r"b/100.png is uint8 of shape \(5, 4, 3\), expected uint8 of \(5, 4\) as the first: .*convert")
    image(X[0]).save(other / "flat.png")
    fails(other, "flat.png lies beside folders of images")
    (other / "flat.png").unlink()
    content = (other / "a" / "000.png").read_bytes()
    for damaged in (b"", b"no image", content[:40], content[:60]):
        (other / "b" / "100.png").write_bytes(damaged)
        fails(other, "b/100.png")
    (other / "b" / "100.png").unlink()
    os.mkfifo(other / "b" / "100.png")
    assert len(opened(other)["x"]) == 13


def test_an_image_that_claims_to_be_huge(tmp_path):
    folder_of(tmp_path, X[:1])
    content = bytearray((tmp_path / "000.png").read_bytes())
    content[16:24] = struct.pack(">II", 9000, 9000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "000.png").write_bytes(content)
    fails(tmp_path, r"000.png is no array of numbers.*\(9000, 9000\) pixels, expected at most 16777216")


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    fails(tmp_path, "PIL.*pip install 'fastaae")


# Memory


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8", "bool", "i8"])
def test_a_map_becomes_a_tensor_on_its_memory(dtype, tmp_path):
    a = opened(saved(X.astype(dtype), tmp_path))["x"]
    t = shared(array("x", a))
    assert t.data_ptr() == a.ctypes.data and np.array_equal(t.numpy(), X.astype(dtype))
    for kind in ("plain", "fortran", "backwards", "read-only"):
        assert np.array_equal(shared(KINDS[kind](X.astype(dtype), tmp_path)).numpy(), X.astype(dtype))
    assert np.array_equal(shared(frozen(X)[:1][::-1]).numpy(), X[:1])


SPARSE = """
import resource, sys
import numpy as np
from fastaae.data.arrays import array, shared
from fastaae.data.formats import opened

resource.setrlimit(resource.RLIMIT_DATA, (1500 * 2**20,) * 2)
t = shared(array("x", opened(sys.argv[1])["x"]))
try:
    np.ones(2**31, np.uint8)
    print("no limit")
except MemoryError:
    print(t.numel(), int(t[-1].sum()), int(t[[0, 5, -1]].sum()))
"""


@pytest.mark.parametrize("kind", ["npy", "idx"])
def test_four_gigabytes_are_opened_in_little_memory(kind, tmp_path):
    """A sparse file: it takes no room on a disk."""
    path, n = tmp_path / f"a.{kind}", 2**32
    head = npy("(4194304, 1024)", values=b"") if kind == "npy" else b"\0\0\x08\2" + struct.pack(">II", 2**22, 1024)
    with path.open("wb") as file:
        file.write(head)
        file.seek(len(head) + n - 1)
        file.write(b"\7")
    (tmp_path / "script.py").write_text(SPARSE)
    done = processes.python(tmp_path / "script.py", str(path))
    assert done.stdout.split() == [str(n), "7", "7"], done.stdout + done.stderr


BOMBS = hostile_idx()


@pytest.mark.parametrize("kind", BOMBS)
def test_hostile_idx_takes_little_memory(kind, tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    BOMBS[kind](path) if callable(BOMBS[kind]) else path.write_bytes(BOMBS[kind])
    tracemalloc.start()
    try:
        opened(path)
    except DataError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 150 * MB

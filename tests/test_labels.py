"""Labels of every kind are the same codes; what cannot be one is refused in one line that names it."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastaae.data.labels import MAX_CLASSES, encoded
from fastaae.files import DataError

Y = np.array([2, 0, 1, 1, 2, 0, 1])
WORDS = np.array(["cat", "ant", "bee"])  # the classes sort to ant, bee, cat
N = len(Y)


class InAFile:
    """As a dataset of HDF5: a shape, a dtype and slices."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key):
        return self.array[key]


def series(values, **options):
    return pytest.importorskip("pandas").Series(values, **options)


def frame(values, **options):
    return pytest.importorskip("pandas").DataFrame(values, **options)


SAME = {  # kinds of Y, whose classes are 0, 1, 2
    **{t: lambda t=t: Y.astype(t) for t in ("u1", "i2", ">i4", "u8", "f2", "f4", ">f8", "longdouble")},
    "list": lambda: Y.tolist(),
    "list of floats": lambda: Y.astype(float).tolist(),
    "tuple": lambda: tuple(Y.tolist()),
    "list of numpy": lambda: list(Y.astype("i1")),
    "list of tensors": lambda: list(torch.from_numpy(Y)),
    "fractions": lambda: [Fraction(2 * y, 2) for y in Y.tolist()],
    "objects": lambda: Y.astype(object),
    "backwards": lambda: Y[::-1].copy()[::-1],
    "tensor": lambda: torch.from_numpy(Y),
    "bfloat16": lambda: torch.from_numpy(Y).bfloat16(),
    "column": lambda: Y[:, None],
    "row": lambda: Y[None],
    "one-hot": lambda: np.eye(3)[Y],
    "one-hot bools": lambda: np.eye(3, dtype=bool)[Y],
    "one-hot tensor": lambda: torch.nn.functional.one_hot(torch.from_numpy(Y)),
    "one-hot lists": lambda: np.eye(3, dtype=int)[Y].tolist(),
    "series": lambda: series(Y),
    "nullable series": lambda: series(Y, dtype="Int64"),
    "categories": lambda: series(Y, dtype="category"),
    "table": lambda: frame({"y": Y}),
    "one-hot table": lambda: frame(np.eye(3)[Y]),
    "in a file": lambda: InAFile(Y),
}


@pytest.mark.parametrize("kind", SAME)
def test_every_kind_gives_the_same_codes(kind):
    codes, classes = encoded("y", SAME[kind](), N)
    assert codes.dtype == np.int64 and codes.tolist() == Y.tolist()
    assert classes == [0, 1, 2] and {type(c) for c in classes} == {int}


CLASSES = {  # labels of Y's pattern: their classes
    "from 1": (Y + 1, [1, 2, 3]),
    "gaps": (Y * 5 + 2, [2, 7, 12]),
    "huge": (Y.astype("u8") + np.uint64(2**63), [2**63, 2**63 + 1, 2**63 + 2]),
    "words": (np.sort(WORDS)[Y], ["ant", "bee", "cat"]),
    "list of words": (np.sort(WORDS)[Y].tolist(), ["ant", "bee", "cat"]),
    "bytes": (np.sort(WORDS)[Y].astype(bytes), ["ant", "bee", "cat"]),
    "objects": (np.sort(WORDS)[Y].astype(object), ["ant", "bee", "cat"]),
    "digits in words": (Y.astype(str), ["0", "1", "2"]),
    "one-hot with an empty column": (np.eye(5)[Y + (Y > 0)], [0, 2, 3]),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_are_kept(kind):
    labels, expected = CLASSES[kind]
    codes, classes = encoded("y", labels, N)
    assert codes.tolist() == Y.tolist() and classes == json.loads(json.dumps(classes)) == expected
    again, same = encoded("y_test", labels[:2], 2, classes)
    assert again.tolist() == Y[:2].tolist() and same == classes


def test_pandas_words_and_columns():
    words = np.sort(WORDS)[Y]
    hot = pytest.importorskip("pandas").get_dummies(series(words))
    for value in (series(words), series(words, dtype="category"), hot):
        codes, classes = encoded("y", value, N)
        assert codes.tolist() == Y.tolist() and classes == ["ant", "bee", "cat"]


def test_bools():
    for value in ([True, False, None], np.array([1, 0, 1], bool)):
        codes, classes = encoded("y", value, 3)
        assert codes[:2].tolist() == [1, 0] and classes == [False, True] and type(classes[0]) is bool


MISSING = {  # of Y, whose labels 1 are none
    "-1": np.where(Y == 1, -1, Y),
    "float -1": np.where(Y == 1, -1.0, Y),
    "nan": np.where(Y == 1, np.nan, Y),
    "None": [None if y == 1 else y for y in Y.tolist()],
    "objects": np.array([float("nan") if y == 1 else y for y in Y.tolist()], object),
    "all": [[-1, None, float("nan")][k % 3] if y == 1 else y for k, y in enumerate(Y.tolist())],
    "tensor": torch.from_numpy(np.where(Y == 1, -1, Y)),
    "one-hot": np.eye(3)[Y] * (Y != 1)[:, None],
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_labels(kind):
    codes, classes = encoded("y", MISSING[kind], N)
    assert codes.tolist() == [-1 if y == 1 else y // 2 for y in Y] and classes == [0, 2]
    codes, classes = encoded("y", MISSING[kind], N, [0, 1, 2])
    assert codes.tolist() == [-1 if y == 1 else y for y in Y] and classes == [0, 1, 2]


def test_missing_words_of_pandas():
    pandas = pytest.importorskip("pandas")
    for value in (series(["b", None, "a"]), series([1, pandas.NA, 0], dtype="Int64"), ["b", pandas.NA, "a"]):
        assert encoded("y", value, 3)[0].tolist() == [1, -1, 0]


def test_a_test_set_may_lack_all_labels():
    assert encoded("y_test", [None, -1], 2, ["a"])[0].tolist() == [-1, -1]


REFUSED = {
    "masked": (np.ma.masked_array(Y, mask=Y == 1), "is a masked array, .*fill it with -1"),
    "probabilities": (np.full((N, 3), 1 / 3), r"has shape \(7, 3\) and is not one-hot: .*argmax"),
    "two of one": (np.ones((N, 3)), "is not one-hot"),
    "images": (np.zeros((N, 3, 3)), r"has shape \(7, 3, 3\), expected \(7,\)"),
    "too few": (Y[:-1], r"has shape \(6,\), expected \(7,\): one label for each example"),
    "numbers between": (Y + 0.5, "has label 0.5, expected strings, bools or integers.*: a number to predict"),
    "infinite": (np.where(Y == 1, np.inf, Y), "has label inf"),
    "negative": (Y - 2, "has label -2"),
    "complex": (Y + 1j, "has dtype complex128"),
    "dates": (Y.astype("M8[s]"), "has dtype datetime64"),
    "mixed": (["a", 1, "b", None, 2, 3, 4], "has labels that are int and str, expected one kind"),
    "ragged": ([[1], [1, 2], [3], [4], [5], [6], [7]], r"has label \[1\]"),
    "mappings": ([{}] * N, "has label {}"),
    "none at all": ([None, -1] * 3 + [float("nan")], "has 0 classes among 7 labels, expected 1 to 10000"),
    "a word": ("abcdefg", r"has shape \(\), expected \(7,\)"),
    "complex list": ([1j] * N, "has label 1j"),
    "sparse": (torch.eye(N).to_sparse(), "expected a dense tensor"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_label_is_refused(kind):
    value, message = REFUSED[kind]
    with pytest.raises(DataError, match=f"^y_own .*{message}") as error:
        encoded("y_own", value, N)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_too_many_classes():
    assert len(encoded("y", np.arange(MAX_CLASSES), MAX_CLASSES)[1]) == MAX_CLASSES
    with pytest.raises(DataError, match="y has 10001 classes among 10001 labels"):
        encoded("y", np.arange(MAX_CLASSES + 1), MAX_CLASSES + 1)


@pytest.mark.parametrize("label", ["dog", 3, True])
def test_other_classes_are_refused_by_name(label):
    with pytest.raises(DataError, match=rf"^y_test has label {label!r}, expected one of the classes \['ant', 'cat'\]"):
        encoded("y_test", [label, None], 2, ["ant", "cat"])

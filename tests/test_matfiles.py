from __future__ import annotations

import errno
import os
import re
import stat
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from faults.arrays import mat_of_shape, read_mat
from faults.hostile import NO_FILES
from faults.processes import environment
from scipy.io import savemat

from fastaae.data import matfiles
from fastaae.files import DataError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (4, 5, 3, 7), np.uint8)
VARIABLES = {"other": np.arange(3.0), "X": X, "y": np.arange(7, dtype=np.uint8)[:, None]}
LIMIT = 2**20


def saved(path: Path, variables: dict | None = None, **options) -> Path:
    savemat(path, VARIABLES if variables is None else variables, appendmat=False, **options)
    return path


def fails(path: Path, message: str, names=("X", "y"), limit: int = LIMIT) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_mat(path, names, limit)


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_back(tmp_path, compressed):
    path = saved(tmp_path / "a file.mat", do_compression=compressed)
    result = read_mat(path, ("y", "X"), LIMIT)
    assert list(result) == ["y", "X"]
    for name, array in result.items():
        assert array.dtype == np.uint8 and np.array_equal(array, VARIABLES[name])


def test_version_4_and_relative_paths(tmp_path, monkeypatch, fast_reader):
    monkeypatch.chdir(saved(tmp_path / "old.mat", {"X": X[0, 0].astype(float)}, format="4").parent)
    assert np.array_equal(read_mat(Path("old.mat"), ["X"], LIMIT)["X"], X[0, 0])


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int16, ">i2", np.int32, np.int64, np.uint16, np.uint32, np.uint64, np.float32, float, bool]
)
def test_dtypes(tmp_path, fast_reader, dtype):
    array = X[0, 0].astype(dtype)
    assert np.array_equal(read_mat(saved(tmp_path / "a.mat", {"X": array}), ["X"], LIMIT)["X"], array)


# Refused before any process is started


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"not a MATLAB file of version 4 to 7.2 \(7.3 is HDF5\), begins with b''"),
        (b"<html>not found</html>" * 9, "not a MATLAB file .* begins with b'<html>not found"),
        (bytes(600), "not a MATLAB file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), r"not a MATLAB file .*HDF.* save\(..., '-v7'\)"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n", "7.3 is HDF5"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x03IM", "not a MATLAB file"),
    ],
)
def test_other_files(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(subprocess, "run", None)
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    fails(path, message)


@pytest.mark.parametrize("kind", NO_FILES)
def test_no_file(tmp_path, kind):
    fails(tmp_path / "absent.mat", "No such file or directory, expected a file")
    NO_FILES[kind](tmp_path / "a.mat")
    fails(tmp_path / "a.mat", "not a regular file")


# Refused by the reading process


@pytest.mark.parametrize(
    "value, message",
    [
        (np.array([[1, "a"]], object), "'X' is cell of shape"),
        ({"a": 1}, "'X' is struct of shape"),
        ("text", "'X' is char of shape"),
        (X[0, 0] + 1j, "'X' cannot be read as real numbers"),
    ],
)
def test_not_numeric(tmp_path, fast_reader, value, message):
    fails(saved(tmp_path / "a.mat", {"X": value}), message, ["X"])


def test_sparse(tmp_path, fast_reader):
    from scipy.sparse import csc_array

    fails(saved(tmp_path / "a.mat", {"X": csc_array(np.eye(3))}), "'X' is sparse of shape", ["X"])


def test_missing_variable_and_limit(tmp_path, fast_reader):
    path = saved(tmp_path / "a.mat")
    fails(path, r"no variables \['z'\], it has \['other', 'X', 'y'\]", ("X", "z"))
    read_mat(path, ("X", "y"), 427)
    fails(path, "X, y declare 427 bytes, at most 426 are accepted", limit=426)


def test_variables_that_may_be_missing(tmp_path, fast_reader):
    path = saved(tmp_path / "a.mat")
    found = read_mat(path, ("z?", "y?", "X?", "other"), LIMIT)
    assert list(found) == ["y", "X", "other"] and np.array_equal(found["X"], X)
    fails(path, r"no variables \['z'\], it has", ("X?", "z"))
    fails(path, r"no variables \['z', 'a'\], it has \['other', 'X', 'y'\]", ("z?", "a?"))
    fails(path, "X declare 420 bytes, at most 419 are accepted", ("X?", "z?"), limit=419)


@pytest.mark.parametrize(
    "rows, columns, message",
    [
        (2**31 - 1, 2**31 - 1, "X declare 4611686014132420609 bytes, at most 1048576"),
        (2**20, 1, "not readable"),
        (-1, 1, r"'X' is uint8 of shape \(-1, 1\)"),
    ],
)
def test_bomb_headers(tmp_path, fast_reader, rows, columns, message):
    path = tmp_path / "a.mat"
    path.write_bytes(mat_of_shape(1, 1))
    assert read_mat(path, ["X"], LIMIT)["X"].tolist() == [[7]]
    path.write_bytes(mat_of_shape(rows, columns))
    fails(path, message, ["X"])


def test_bomb_of_zeros(tmp_path, fast_reader):
    """Compressed, the declared shape small: what matters is the memory that the process may take."""
    path, content = tmp_path / "a.mat", bytearray(mat_of_shape(4, 4)[128:])
    content[4:8] = struct.pack("<I", 2**32 - 8)
    content[-16:-8] = struct.pack("<2I", 2, 2**31)
    packer = zlib.compressobj()
    packed = packer.compress(content[:-8]) + b"".join(packer.compress(bytes(2**20)) for _ in range(8))
    packed += packer.flush()
    path.write_bytes(mat_of_shape(4, 4)[:128] + struct.pack("<2I", 15, len(packed)) + packed)
    fails(path, "not readable .*MemoryError", ["X"], limit=2**10)


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated(tmp_path, fast_reader, compressed):
    path = saved(tmp_path / "a.mat", {"X": X}, do_compression=compressed)
    content = path.read_bytes()
    for size in (1, 19, 127, 128, 129, 135, 136, 140, 150, 180, 200, len(content) // 2, len(content) - 8):
        path.write_bytes(content[:size])
        fails(path, "", ["X"])


def mutate(tmp_path: Path, statuses: list[int], count: int) -> None:
    path = saved(tmp_path / "a.mat")
    content, rng = path.read_bytes(), np.random.default_rng(1)
    headers = np.flatnonzero([content.find(X.tobytes("F")) - 300 < k < 700 for k in range(len(content))])
    for _ in range(count):
        damaged = bytearray(content)
        for k in rng.choice(headers if rng.random() < 0.5 else len(content), rng.integers(1, 4)):
            damaged[k] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            result = read_mat(path, ("X", "y"), LIMIT)
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error)) < 2000
        else:
            assert list(result) == ["X", "y"] and all(array.dtype.kind in "biuf" for array in result.values())
    assert statuses.count(0) and statuses.count(1)


def test_mutations(tmp_path, fast_reader):
    mutate(tmp_path, fast_reader, 200)


@pytest.mark.slow
def test_many_mutations_crash_the_process_but_not_this_one(tmp_path, fast_reader):
    mutate(tmp_path, fast_reader, 10_000)
    assert min(fast_reader) < 0


# The process itself: here "SciPy" is a module that misbehaves


@pytest.mark.parametrize(
    "scipy, message",
    [
        ("raise ImportError('no SciPy')", r"needs SciPy \(no SciPy\): pip install 'fastaae\[demo\]'"),
        ("raise RuntimeError('bad build')", "RuntimeError: bad build"),
        ("import os; os.kill(os.getpid(), 11)", "the process reading it died of signal 11: a damaged file"),
        ("import os; os._exit(3)", r"no message \(status 3\)"),
        ("import os; os._exit(0)", "No such file or directory: .*0.npy"),
        ("import os; open('0.npy', 'wb').write(b'x'); os._exit(0)", "pickle|magic|header"),
        ("import time; time.sleep(60)", "not read after 1 s"),
    ],
)
def test_process_that_fails(tmp_path, monkeypatch, scipy, message):
    if "kill" in scipy and os.name != "posix":
        pytest.skip("needs signals")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "scipy.py").write_text(scipy)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    monkeypatch.setattr(matfiles, "TIME_LIMIT", 1 if "sleep" in scipy else 60)
    fails(saved(tmp_path / "a.mat"), message)


@pytest.mark.parametrize("does", ["time.sleep(60)", "\nwhile True: pass"], ids=["sleeps", "computes"])
def test_process_ends_with_the_one_that_started_it(tmp_path, does):
    (tmp_path / "scipy.py").write_text(f"import os, time; open('started', 'w').write(str(os.getpid())); {does}")
    saved(tmp_path / "a.mat")
    code = (
        f"import sys, tempfile; sys.path.insert(0, {str(tmp_path)!r}); tempfile.tempdir = {str(tmp_path)!r}; "
        "from pathlib import Path; from fastaae.data import matfiles; "
        f"matfiles._read(Path({str(tmp_path / 'a.mat')!r}), ['X'], 1000, 60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environment()) as parent:
        deadline = time.monotonic() + 30
        while not (started := [p for p in tmp_path.glob("*/started") if p.read_text()]):
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        parent.kill()
    reader, deadline = int(started[0].read_text()), time.monotonic() + 5
    while runs(reader):
        assert time.monotonic() < deadline, "the reader outlives the process that started it"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_process_that_cannot_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr(matfiles.sys, "executable", str(tmp_path / "absent"))
    fails(saved(tmp_path / "a.mat"), "No such file or directory: .*absent")


# The cache


def convert(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if arrays["y"].max() > 6:
        raise DataError("y is too large")
    return {"x": arrays["X"].T, "n": np.array(len(arrays["y"]))}


def test_cache(tmp_path, fast_reader):
    path, cache = saved(tmp_path / "a.mat"), tmp_path / "c"

    def load(reads: int) -> None:
        before = len(fast_reader)
        result = matfiles.converted(path, ("X", "y"), LIMIT, convert, cache)
        assert np.array_equal(result["x"], X.T) and result["n"] == 7 and len(fast_reader) - before == reads

    load(1)
    load(0)
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (b"", content[:middle], flipped, b"x" * 99):
        kept.write_bytes(damaged)
        load(1)
        load(0)
    assert list(cache.iterdir()) == [kept] and kept.read_bytes() == content
    saved(path, {**VARIABLES, "more": 1})
    load(1)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="modes and owners are those of POSIX")
@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("how", ["of another user", "group may write", "others may write", "a link"])
def test_cache_that_others_may_change_is_not_used(tmp_path, fast_reader, what, how):
    path, cache = saved(tmp_path / "a.mat"), tmp_path / "c"
    assert matfiles.converted(path, ("X", "y"), LIMIT, convert, cache)["n"] == 7
    (kept,) = cache.iterdir()
    assert (stat.S_IMODE(kept.stat().st_mode), stat.S_IMODE(cache.stat().st_mode)) == (0o600, 0o700)
    planted = {"x": X.T * 0, "n": np.array(7)}
    kept.unlink()
    np.savez(kept, **planted)
    target = kept if what == "file" else cache
    if how == "of another user":
        if os.geteuid():
            pytest.skip("only root can give files away")
        os.chown(target, 65534, 65534)
    elif how == "a link":
        target.rename(tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target.chmod(target.stat().st_mode | (0o020 if "group" in how else 0o002))
    assert np.array_equal(matfiles.converted(path, ("X", "y"), LIMIT, convert, cache)["x"], X.T)
    assert len(fast_reader) == 2
    (left,) = cache.iterdir()  # a file is replaced, a folder let alone
    with np.load(left) as arrays:
        assert np.array_equal(arrays["x"], X.T if what == "file" else X.T * 0)


def test_the_mask_of_new_files_does_not_matter_to_the_cache(tmp_path, fast_reader):
    path, before = saved(tmp_path / "a.mat"), os.umask(0o002)
    try:
        for _ in range(2):
            matfiles.converted(path, ("X", "y"), LIMIT, convert, tmp_path / "c" / "mat")
    finally:
        os.umask(before)
    assert len(fast_reader) == 1


def test_cache_that_cannot_be_written(tmp_path, fast_reader):
    (tmp_path / "c").touch()
    path = saved(tmp_path / "a.mat")
    for _ in range(2):
        assert matfiles.converted(path, ("X", "y"), LIMIT, convert, tmp_path / "c")["n"] == 7
    assert len(fast_reader) == 2


def test_a_full_disk_is_not_the_files_fault(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.mat")
    reader = tmp_path / "reader.py"
    no_room = "import numpy as np\ndef save(*_, **__): raise OSError('1 requested and 0 written')\nnp.save = save\n"
    reader.write_text(Path(matfiles.READER).read_text().replace("\n\nROOM", f"\n\n{no_room}\nROOM"))
    monkeypatch.setattr(matfiles, "READER", str(reader))
    with pytest.raises(OSError, match="no room for the arrays of .*a.mat: name a larger folder in TMPDIR") as error:
        matfiles.converted(path, ("X", "y"), LIMIT, convert, tmp_path / "c")
    assert error.value.errno == errno.ENOSPC and not isinstance(error.value, DataError)


def test_errors_are_not_cached_and_name_the_file(tmp_path, fast_reader):
    path = saved(tmp_path / "a.mat", {"X": X, "y": np.full((7, 1), 9)})
    with pytest.raises(DataError, match="a.mat: y is too large"):
        matfiles.converted(path, ("X", "y"), LIMIT, convert, tmp_path / "c")
    with pytest.raises(DataError, match="b.mat: No such file"):
        matfiles.converted(tmp_path / "b.mat", ("X", "y"), LIMIT, convert, tmp_path / "c")
    assert not (tmp_path / "c").exists()

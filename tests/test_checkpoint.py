"""Checkpoints: what is loaded is bit for bit what was saved, or it is an error; a failed save leaves the old file."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import fastaae
from fastaae import checkpoint
from fastaae import directory as run_directory
from fastaae.checkpoint import CheckpointError, digest
from fastaae.directory import LOCK, NEWEST, PREVIOUS, RunDirectory

GOLDEN = Path(__file__).parent / "golden"
INFO = {"config": {"seed": 3, "lr": 0.1, "none": None}, "name": "größe\n\"'\\", "shape": [2, 3]}


def bits(t):
    return t.dtype, tuple(t.shape), t.contiguous().reshape(-1).view(torch.uint8).tolist()


def small():
    return {"w": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.tensor([True, False])}


@pytest.fixture
def path(tmp_path):
    """A saved checkpoint."""
    checkpoint.save(tmp_path / "c.safetensors", small(), INFO)
    return tmp_path / "c.safetensors"


def holds_small(path):
    tensors, info = checkpoint.load(path)
    assert info == INFO and {k: bits(t) for k, t in tensors.items()} == {k: bits(t) for k, t in small().items()}
    return True


# Round trip

BASE = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
TENSORS = {
    "fp32": torch.tensor([0.1, -0.0, 1e-45, torch.finfo(torch.float32).max]),
    "fp64": torch.tensor([0.1, 5e-324, 1e308], dtype=torch.float64),
    "bf16": torch.tensor([0.1, -3e38], dtype=torch.bfloat16),
    "fp16": torch.tensor([0.1, 6e-8], dtype=torch.float16),
    "nan": torch.tensor([0x7FC00001, 0x7F800001, -0x400000], dtype=torch.int32).view(torch.float32),
    "infinite": torch.tensor([torch.inf, -torch.inf]),
    "int64": torch.tensor([2**63 - 1, -(2**63)]),
    "uint8": torch.arange(256).to(torch.uint8),
    "bool": torch.tensor([[True], [False]]),
    "0-d": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "transposed": BASE.transpose(0, 2),
    "strided": BASE[:, ::2, 1::2],
    "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
    "channels last": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    "gradient": torch.ones(2, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.ones(3)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_bit_for_bit(tmp_path, name):
    before = bits(TENSORS[name].detach())
    checkpoint.save(tmp_path / "c", {name: TENSORS[name]}, {})
    tensors, info = checkpoint.load(tmp_path / "c")
    assert list(tensors) == [name] and info == {} and bits(tensors[name]) == before
    assert tensors[name].is_contiguous() and not tensors[name].requires_grad
    tensors[name].zero_()  # the loaded tensor is no view of read-only memory


def test_tied_tensors_come_back_as_tensors_of_their_own(tmp_path):
    t = torch.arange(4.0)
    checkpoint.save(tmp_path / "c", {"whole": t, "tied": t, "part": t[1:3]}, INFO)
    tensors, info = checkpoint.load(tmp_path / "c")
    assert info == INFO
    assert {k: v.tolist() for k, v in tensors.items()} == {"whole": [0, 1, 2, 3], "tied": [0, 1, 2, 3], "part": [1, 2]}


@pytest.mark.parametrize("name", ["größe.0.重み", "a b\tc", 'quo"te\\', "💾", "", "0" * 64, '"sha256":"' + "0" * 64])
def test_any_name_comes_back(tmp_path, name):
    for repeat in range(4):  # the order of the header's metadata differs from file to file
        checkpoint.save(tmp_path / "c", {name: torch.ones(2)}, {name: name, "repeat": repeat})
        tensors, info = checkpoint.load(tmp_path / "c")
        assert list(tensors) == [name] and info == {name: name, "repeat": repeat}


def test_no_tensors_at_all_come_back(tmp_path):
    checkpoint.save(tmp_path / "c", {}, INFO)
    assert checkpoint.load(tmp_path / "c") == ({}, INFO)


def test_any_safetensors_reader_opens_the_file(path):
    with safetensors.safe_open(str(path), framework="pt") as file:
        assert {k: bits(file.get_tensor(k)) for k in file.keys()} == {k: bits(t) for k, t in small().items()}
        assert json.loads(file.metadata()["info"]) == INFO


def test_saving_does_not_touch_the_tensors(tmp_path):
    tensors = small()
    pointers = {k: t.data_ptr() for k, t in tensors.items()}
    checkpoint.save(tmp_path / "c", tensors, INFO)
    assert {k: t.data_ptr() for k, t in tensors.items()} == pointers
    assert {k: bits(t) for k, t in tensors.items()} == {k: bits(t) for k, t in small().items()}


# Writing


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002], ids=oct)
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwritten"])
def test_mode_honours_the_umask(tmp_path, umask, overwrite):
    path = tmp_path / "c"
    if overwrite:
        path.write_bytes(b"old")
        path.chmod(0o400)
    before = os.umask(umask)
    try:
        checkpoint.save(path, small(), INFO)
        assert os.umask(umask) == umask  # saving put it back
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_success_leaves_one_file(tmp_path):
    for _ in range(2):
        checkpoint.save(tmp_path / "c", small(), INFO)
    assert os.listdir(tmp_path) == ["c"]


class FullDisk:
    """A file that takes some bytes, then none."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[:10])
        raise self.error


FAULTS = ["fsync", "replace", "write", "open"]


def inject(monkeypatch, where, error):
    """Let one of the calls of write_atomic fail."""

    def fail(*_, **__):
        raise error

    if where == "write":
        monkeypatch.setattr(checkpoint, "open", lambda *a, **k: FullDisk(open(*a, **k), error), raising=False)
    elif where == "open":
        monkeypatch.setattr(checkpoint, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, where, fail)


@pytest.mark.parametrize("where", FAULTS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(path, monkeypatch, where, code):
    with monkeypatch.context() as patch:
        inject(patch, where, OSError(code, os.strerror(code)))
        with pytest.raises(OSError, match=os.strerror(code)) as raised:
            checkpoint.save(path, {"w": torch.zeros(9)}, {})
    assert raised.value.errno == code
    assert os.listdir(path.parent) == [path.name] and holds_small(path)


@pytest.mark.parametrize("links", [True, False], ids=["hard-links", "no-hard-links"])
def test_the_checkpoint_before_is_kept(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    newest, previous = (tmp_path / name for name in (NEWEST, PREVIOUS))
    for k in range(4):
        checkpoint.save(newest, small(), {"k": k}, previous)
        assert RunDirectory(tmp_path).load()[1] == {"k": k}
        assert not k or checkpoint.load(previous)[1] == {"k": k - 1}
    assert sorted(os.listdir(tmp_path)) == [PREVIOUS, NEWEST]


@pytest.mark.parametrize("failing", ["unlink", "link", "replace"])
def test_some_checkpoint_is_whole_whatever_fails_of_keeping_the_one_before(tmp_path, monkeypatch, failing):
    newest, previous = (tmp_path / name for name in (NEWEST, PREVIOUS))
    for k in range(2):
        checkpoint.save(newest, small(), {"k": k}, previous)

    def fail(*_, **__):
        raise OSError(errno.EIO, "disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with contextlib.suppress(OSError):
            checkpoint.save(newest, small(), {"k": 2}, previous)
    assert checkpoint.load(newest)[1]["k"] == (2 if failing == "link" else 1)


@pytest.mark.parametrize("where", FAULTS)
def test_a_failed_first_save_leaves_nothing(tmp_path, monkeypatch, where):
    inject(monkeypatch, where, OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        checkpoint.save(tmp_path / "c", small(), INFO)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    with monkeypatch.context() as patch:
        inject(patch, "fsync", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, {}, {})
    assert os.listdir(path.parent) == [path.name] and holds_small(path)


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX")
def test_content_is_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def record_fsync(fd):
        status = os.fstat(fd)
        calls.append("folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes")
        fsync(fd)

    def record_replace(*paths):
        calls.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    checkpoint.write_atomic(tmp_path / "c", b"12345")
    assert calls == ["5 bytes", "rename", "folder"]


def test_a_folder_that_cannot_be_synced_is_reported_with_a_whole_file_in_place(path, monkeypatch):
    fsync = os.fsync

    def fail(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "disk")
        fsync(fd)

    checkpoint.save(path, {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk"):
            checkpoint.save(path, small(), INFO)
    assert os.listdir(path.parent) == [path.name] and holds_small(path)


@pytest.mark.parametrize("name", ["missing/c", "folder"])
def test_a_place_that_cannot_be_written_is_an_oserror(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        checkpoint.save(tmp_path / name, small(), INFO)
    assert os.listdir(tmp_path) == ["folder"]


# Damage


def refuses(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    return str(path) in str(error.value)


def test_every_flipped_bit_is_refused(path):
    content, rng = path.read_bytes(), random.Random(0)
    chosen = {8 * byte + rng.randrange(8) for byte in range(len(content))}  # one in every byte
    chosen |= set(range(64)) | {rng.randrange(8 * len(content)) for _ in range(300)}  # all of the length, and some more
    accepted = []
    for bit in sorted(chosen):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            checkpoint.load(path)
            accepted.append(bit)
        except CheckpointError as error:
            assert str(path) in str(error)
    assert accepted == []
    path.write_bytes(content)
    assert holds_small(path)


def test_every_truncation_is_refused(path):
    content, rng = path.read_bytes(), random.Random(1)
    lengths = {0, 1, 7, 8, 9, len(content) - 1, *rng.sample(range(len(content)), 50)}
    assert all(refuses(path, content[:length]) for length in lengths)


@pytest.mark.parametrize("extra", [b"\0", b" ", b"}", bytes(1000)], ids=["NUL", "space", "brace", "zeros"])
def test_appended_bytes_are_refused(path, extra):
    assert refuses(path, path.read_bytes() + extra)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 1 << 20, (1 << 20) + 1, 0, 1], ids=str)
def test_a_wrong_header_length_is_refused(path, length):
    assert refuses(path, length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert refuses(path, length.to_bytes(8, "little"))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no checkpoint",
        bytes(4096),
        pickle.dumps({"w": [1.0] * 100}),
        pickle.dumps(Bomb(), protocol=0),
        safetensors.torch.save(small()),
        safetensors.torch.save(small(), {"format": "pt"}),
        safetensors.torch.save(small(), {"format": "1", "info": "{}", "sha256": ""}),
        safetensors.torch.save(small(), {"format": "1", "info": "{}", "sha256": "0" * 64}),
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (13).to_bytes(8, "little") + b'{"a":"\xff\xff\xff"}  ',
    ],
    ids=[
        *("empty text zeros pickle bomb safetensors transformers".split()),
        *("without-digest zero-digest deep-header not-utf8".split()),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    assert refuses(tmp_path / "c.safetensors", content)
    assert os.listdir(tmp_path) == ["c.safetensors"]


def forge(path, metadata, tensors=None):
    """A file with a genuine digest around the given metadata."""
    zeros = "0" * 64
    content = bytearray(safetensors.torch.save(tensors or {}, metadata | {"sha256": zeros}))
    start = content.index(zeros.encode())
    content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content)


def test_a_forged_file_is_genuine_enough(tmp_path):
    forge(tmp_path / "c", {"format": "1", "info": '{"b": 3}'}, {"a": torch.ones(1)})
    assert checkpoint.load(tmp_path / "c") == ({"a": torch.ones(1)}, {"b": 3})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "2", "info": "{}"}, "format '2', expected 1, which this version of fastaae reads"),
        ({"format": "1"}, "info"),
        ({"format": "1", "info": "{"}, "Expecting property name"),
        ({"format": "1", "info": "[" * 100_000}, "decoding a JSON array"),
        ({"format": "1", "info": "[3]"}, "its tensors or info cannot be used: got list, expected an object"),
        ({"format": "1", "info": '"%s"' % ("x" * (1 << 20))}, "not a checkpoint, or truncated"),
    ],
    ids=["other version", "no info", "broken info", "deep info", "list", "huge header"],
)
def test_a_genuine_file_that_cannot_be_understood_is_refused(tmp_path, metadata, message):
    forge(tmp_path / "c", metadata)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load(tmp_path / "c")
    assert str(error.value).startswith(f"{tmp_path / 'c'}: ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic link"),
    ],
    ids=["missing", "folder", "symlink to itself"],
)
def test_what_is_no_file_is_refused(tmp_path, make, message):
    path = tmp_path / "c"
    make(path)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load(str(path))
    assert str(path) in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path):
    def waited(*_):
        raise AssertionError("load waits")

    os.mkfifo(tmp_path / "c")
    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(10)
    try:
        with pytest.raises(CheckpointError, match="c: not a regular file"):
            checkpoint.load(tmp_path / "c")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_symlink_to_a_checkpoint_is_followed(path):
    path.with_name("link").symlink_to(path)
    assert holds_small(path.with_name("link"))


def test_a_disk_that_cannot_read_is_damage_and_a_forbidden_file_is_not(path, monkeypatch):
    for code, kind in ((errno.EIO, checkpoint.DamagedError), (errno.EACCES, CheckpointError)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", lambda fd, code=code: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
            with pytest.raises(CheckpointError, match=os.strerror(code)) as error:
                checkpoint.load(path)
        assert type(error.value) is kind


# Limits


@pytest.mark.parametrize(
    ("tensors", "info"),
    [
        ({str(k): torch.zeros(1) for k in range(4097)}, {}),
        ({"t": torch.zeros(1).reshape([1] * 9)}, {}),
        ({}, {"long": "x" * (1 << 20)}),
    ],
    ids=["tensors", "dimensions", "header"],
)
def test_what_load_would_refuse_is_not_written(tmp_path, tensors, info):
    with pytest.raises(
        ValueError, match="c: .* expected at most 4096 tensors of 8 dimensions, 1048576 bytes of header"
    ):
        checkpoint.save(tmp_path / "c", tensors, info)
    assert os.listdir(tmp_path) == []
    if not info:
        forge(tmp_path / "c", {"format": "1", "info": "{}"}, tensors)
        with pytest.raises(CheckpointError, match="expected at most 4096 tensors of 8 dimensions"):
            checkpoint.load(tmp_path / "c")


# Runs


def test_the_one_before_is_used_where_other_runs_lie_beside_it(path, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.of_rank(1).mkdir(parents=True)
    run.previous.write_bytes(path.read_bytes())
    (run.of_rank(1) / run.newest.name).write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match="going on with the one before"):
        run.load()
    run.previous.unlink()
    with pytest.raises(CheckpointError, match="a folder of runs, expected the directory of one, such as .*rank-1"):
        run.load()


@pytest.mark.filterwarnings("default")
def test_the_one_before_is_used_and_with_mend_becomes_the_newest(path, tmp_path):
    newest, previous = path.with_name(NEWEST), path.with_name(PREVIOUS)
    checkpoint.save(previous, small(), {"step": 3})
    newest.write_bytes(b"half")
    for mend in (False, True):
        with pytest.warns(
            UserWarning, match=f"{newest}: not a checkpoint, .*; going on with the one before, of step 3"
        ):
            assert RunDirectory(tmp_path).load(mend)[1] == {"step": 3}
        assert (newest.exists(), previous.exists()) == (True, not mend)
    assert RunDirectory(tmp_path).load()[1] == {"step": 3}
    newest.write_bytes(b"half")
    previous.write_bytes(b"half, too")
    with pytest.raises(CheckpointError, match=f"{newest}: not a checkpoint"):
        RunDirectory(tmp_path).load()


HOLDER = """
import sys, time
from fastaae import directory
from fastaae.directory import RunDirectory
if sys.argv[2] == "windows":
    directory.fcntl = None
with RunDirectory(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["posix", "windows"])
def system(request, monkeypatch):
    """Locks as a system has them; what Windows does runs here, too, on the locks that filelock finds."""
    if request.param == "windows":
        monkeypatch.setattr(run_directory, "fcntl", None)
    elif run_directory.fcntl is None:
        pytest.skip("no flock here")
    return request.param


def test_a_directory_is_held_by_one_process_until_it_dies(tmp_path, system):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDER, tmp_path, system]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"{tmp_path}: process {process.pid} on .* trains there"):
            with RunDirectory(tmp_path).held():
                pass
        process.kill()
    assert (tmp_path / LOCK).read_text().startswith(f"{process.pid} on ")  # it could not say goodbye
    RunDirectory(tmp_path).check_empty()
    with RunDirectory(tmp_path).held():
        assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()} on ")


def test_a_directory_is_held_again_once_it_is_let_go(tmp_path, system):
    run = RunDirectory(tmp_path)
    for ends in (None, KeyboardInterrupt):
        with contextlib.suppress(KeyboardInterrupt), run.held():
            with pytest.raises(ValueError, match=f"process {os.getpid()} on .* trains there"), run.held():
                pass
            run.write_json(run.config, {})
            if ends:
                raise ends
        assert (tmp_path / LOCK).read_text() == ""


@pytest.mark.skipif(run_directory.fcntl is None, reason="no locks here")
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_directory.fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match=r"not locked against other processes \(No locks available\)"):
        with RunDirectory(tmp_path).held():
            pass


def test_a_lock_that_is_a_link_out_of_the_directory_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="lrwxrwxrwx .*, expected a plain file"), RunDirectory(tmp_path / "run").held():
        pass
    assert (tmp_path / "precious").read_text() == "text"


# Files of earlier versions: tests/golden/format-N is a run whose checkpoint has format N, in float64. Never remove one


@pytest.mark.parametrize("run", sorted(GOLDEN.iterdir()), ids=lambda run: run.name)
def test_a_run_of_an_earlier_version_loads_and_goes_on(tmp_path, run):
    expected = json.loads((run / "expected.json").read_text())
    x = np.array(expected["bytes"]).reshape(-1, 3, 3) / 255
    y = np.array(expected["labels"])
    for r, outputs in enumerate(expected["replicas"]):
        model = fastaae.load(run, r)
        z = model.encode(x[:3])
        found = {"encode": z, "predict_proba": model.predict_proba(x[:3]), "decode": model.decode(z, y[:3])}
        for name, values in outputs.items():
            assert found[name].dtype == np.float64
            np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12)
    shutil.copytree(run, tmp_path / "run")
    cfg = dataclasses.replace(model.config, epochs=3, out_dir=None)
    assert fastaae.train(cfg, data=(x, y), resume=tmp_path / "run", progress=False).history["epoch"].tolist() == [
        1,
        2,
        3,
    ]


# Digest


def test_digest_is_the_same_for_equal_content():
    t = torch.arange(6.0).reshape(2, 3)
    same = {"b": t.T.contiguous().T, "a": torch.ones(1, requires_grad=True)}  # another order and layout
    assert digest({"a": torch.ones(1), "b": t}) == digest(same)


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.zeros(2, 3)},
        {"w": torch.zeros(2, 3, dtype=torch.int32)},
        {"w": torch.zeros(3, 2)},
        {"w": torch.zeros(6)},
        {"w": torch.zeros(2, 3).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(1e-45))},
        {"w": -torch.zeros(2, 3)},
        {"w": torch.zeros(2, 3), "empty": torch.zeros(0)},
        {},
    ],
    ids=["name", "dtype", "shape", "dimensions", "value", "sign of zero", "one more", "none"],
)
def test_digest_differs_for_another(other):
    assert digest(other) != digest({"w": torch.zeros(2, 3)})


def test_nothing_but_the_header_is_held_before_the_digest_is_right(tmp_path):
    """Sparse files of sizes that would not fit the memory."""
    checkpoint.save(tmp_path / "c", {"w": torch.zeros(4)}, {})
    content = (tmp_path / "c").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    size = 2**28
    header["w"] = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    text = json.dumps(header).encode()
    (tmp_path / "c").write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(tmp_path / "c", 8 + len(text) + size)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="SHA-256"):
            checkpoint.load(tmp_path / "c")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    os.truncate(tmp_path / "c", 2**36)
    with pytest.raises(CheckpointError, match="68719476736 bytes, expected at most 34359738368"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h | {str(k): h["w"] for k in range(4096)}, "4097 tensors .*expected at most 4096"),
        (
            lambda h: h | {"w": h["w"] | {"shape": [1] * 9}},
            "of up to 9 dimensions, .*expected at most 4096 tensors of 8",
        ),
        (lambda h: h | {"w": h["w"] | {"data_offsets": [0, 17]}}, "tensors that end at byte 17, expected 16"),
    ],
)
def test_headers_beyond_the_limits(tmp_path, change, message):
    checkpoint.save(tmp_path / "c", {"w": torch.zeros(4)}, {})
    content = (tmp_path / "c").read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    (tmp_path / "c").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "c")

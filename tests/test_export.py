"""Exported graphs compute what the model does, without fastaae; a model comes back from a folder and from the Hub."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import test_modules
import torch
from test_modules import CASES, TABLE, X, Y

import fastaae
from fastaae import checkpoint, cli
from fastaae import export as graphs
from fastaae.checkpoint import CheckpointError

ROOT = Path(__file__).resolve().parents[1]
PRETRAINED = Path(__file__).parent / "pretrained"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOT_WRITABLE = pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11, on reading
trained = test_modules.trained

GRAPHS = {(case, False): "fp32" for case in CASES}
GRAPHS |= {(case, True): "fp32" for case in ("supervised", "semi-supervised", "embedding", "universal, above")}
GRAPHS[("normalized encoder", False)] = "fp64"
NAMES = {  # of inputs and outputs
    ("unsupervised", False): "x -> z reconstruction",
    ("supervised", False): "x y -> z reconstruction",
    ("semi-supervised", False): "x -> z y reconstruction",
    ("clustering", False): "x -> z y reconstruction",
    ("embedding", False): "x -> z y reconstruction",
    ("gan", False): "z -> x",
    ("supervised", True): "z y -> x",
    ("embedding", True): "z -> x",
}


def one_hot(n, m):
    return np.eye(m.n_classes)[np.arange(n) % m.n_classes]


def wanted(m, case, decoder, n):
    """Inputs and outputs by name, of the Model's own methods."""
    dtype = str(m.decoder.weights[0].dtype)[6:]
    y = {"y": one_hot(n, m).astype(dtype)} if m.n_classes and m.heads is None else {}
    if decoder or m.encoder is None:
        z = 3 * np.random.default_rng(n).normal(size=(n, m.config.style_dim)).astype(dtype)
        return {"z": z, **y}, {"x": m.decode(z, y.get("y")).astype(dtype)}
    x = CASES[case][1][:n]
    own = (x / 255 if x.dtype == np.uint8 and m.pixels else x).astype(dtype)
    out = {"z": m.encode(x)} | ({"y": m.predict_proba(x)} if m.label_head else {})
    out["reconstruction"] = m.reconstruct(x, None if m.label_head else y.get("y")).astype(dtype)
    return {"x": own} | ({} if m.label_head else y), out


def assert_close(found, right, where):
    assert list(found) == list(right), where
    for name, array in right.items():
        largest = max(1.0, np.abs(array).max())
        assert found[name].shape == array.shape and found[name].dtype == array.dtype, (where, name)
        np.testing.assert_allclose(found[name] / largest, array / largest, rtol=0, atol=1e-5, err_msg=f"{where} {name}")


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run_onnx(session, inputs):
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True))


def python(code, *arguments, cwd):
    """What a process without fastaae's folder prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


# Graphs


@pytest.mark.parametrize(("case", "decoder"), GRAPHS)
def test_onnx_computes_what_the_model_does(case, decoder, trained, tmp_path):
    m = trained(case, GRAPHS[case, decoder])
    assert m.export(tmp_path / "m.onnx", decoder) == tmp_path / "m.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]  # weights inside
    session = session_of(tmp_path / "m.onnx")
    if (case, decoder) in NAMES:
        names = [" ".join(v.name for v in values) for values in (session.get_inputs(), session.get_outputs())]
        assert " -> ".join(names) == NAMES[case, decoder]
    assert {v.shape[0] for v in (*session.get_inputs(), *session.get_outputs())} == {"batch"}
    for n in (1, 17, 300):
        inputs, right = wanted(m, case, decoder, n)
        assert_close(run_onnx(session, inputs), right, f"{case} {n}")


RUN_ALL = """
import pathlib, sys, numpy, torch
for path in pathlib.Path(sys.argv[1]).glob("*.pt2"):
    module = torch.export.load(path).module()
    for given in path.parent.glob(f"{path.stem}.*.npz"):
        found = module(*(torch.from_numpy(a) for a in numpy.load(given).values()))
        assert not any(t.requires_grad for t in found.values())
        numpy.savez(given.with_suffix(".out"), **{name: t.numpy() for name, t in found.items()})
print("fastaae" in sys.modules)
"""


def test_pt2_computes_what_the_model_does_in_a_process_without_fastaae(trained, tmp_path):
    rights = {}
    for i, (case, decoder) in enumerate(GRAPHS):
        m = trained(case, GRAPHS[case, decoder])
        m.export(tmp_path / f"{i}.pt2", decoder)
        for n in (1, 17, 300):
            inputs, rights[f"{i}.{n}.out.npz"] = wanted(m, case, decoder, n)
            np.savez(tmp_path / f"{i}.{n}.npz", **inputs)
    assert python(RUN_ALL, tmp_path, cwd=tmp_path) == "False\n"
    for name, right in rights.items():
        with np.load(tmp_path / name) as found:
            assert_close(dict(found), right, f"{[*GRAPHS][int(name.split('.')[0])]} {name}")


def about(path):
    """What a file says of the model."""
    if path.suffix == ".onnx":
        return json.loads(session_of(path).get_modelmeta().custom_metadata_map["fastaae"])
    torch.export.load(path, extra_files=(files := {"fastaae": ""}))
    return json.loads(files["fastaae"])


@NOT_WRITABLE
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_file_names_classes_and_columns_and_no_folders(suffix, tmp_path):
    words = np.array(["short", "tall", "größer"])[Y[:300]]
    cfg = fastaae.Config(task="semi_supervised", hidden=(6,), epochs=1, scale="minmax", n_validation=0,
                         replicas=3, out_dir=str(tmp_path / "run"))  # fmt: skip
    table = pd.DataFrame(TABLE, columns=list("abcde"))
    m = fastaae.train(cfg, data=(table, words), progress=False).models[1]
    path = m.export(tmp_path / f"m.{suffix}")
    assert about(path) == {"classes": m.classes, "columns": list("abcde")} and set(m.classes) == {*words}
    content = path.read_bytes()
    for folder in (ROOT, Path(torch.__file__).parents[1], tmp_path):
        assert str(folder).encode() not in content


def test_a_file_of_one_of_several_replicas_holds_that_one(tmp_path):
    cfg = fastaae.Config(hidden=(200,), epochs=1, replicas=4, n_validation=0, out_dir=str(tmp_path / "run"))
    run = fastaae.train(cfg, data=(np.repeat(X, 20, 2), Y), progress=False)
    size = sum(t.nbytes for network in (run.model.encoder, run.model.decoder) for t in network.weights)
    for m in run.models[2], fastaae.load(run.directory, 2):
        path = m.export(tmp_path / "m.pt2")
        assert size < path.stat().st_size < 1.5 * size + 50_000


def test_onnx_is_checked_and_holds_plain_operators(trained, tmp_path):
    model = onnx.load(trained("normalized").export(tmp_path / "m.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions


@pytest.mark.parametrize(("output", "wrong"), [("z", np.inf), ("reconstruction", 1e-4), ("reconstruction", np.nan)])
def test_a_graph_that_computes_something_else_is_refused(output, wrong, trained, tmp_path, monkeypatch):
    m, path = trained("unsupervised"), tmp_path / "m.onnx"
    path.write_bytes(b"before")
    write = graphs._write_onnx

    def off(*arguments):
        run = write(*arguments)
        return lambda *x: {k: v + wrong if k == output and len(v) > 1 else v for k, v in run(*x).items()}

    monkeypatch.setattr(graphs, "_write_onnx", off)
    with pytest.raises(RuntimeError, match=rf"m.onnx: {output} is off by .*, expected at most 1e-5"):
        m.export(path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_outputs_that_are_zero_are_no_differences(trained, tmp_path):
    m = test_modules.copy_of(trained("unsupervised"))
    for t in m.encoder.state().values():
        t.zero_()
    assert m.export(tmp_path / "m.pt2").is_file()


@pytest.mark.parametrize("name", ["m.pt", "m", "m.onnx.gz", ".onnx"])
def test_other_suffixes_are_refused(name, trained, tmp_path):
    with pytest.raises(ValueError, match="expected a name that ends with .onnx or .pt2"):
        trained("unsupervised").export(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_said(trained, tmp_path):
    with pytest.raises(OSError, match="make it first"):
        trained("unsupervised").export(tmp_path / "none" / "m.pt2")


@contextlib.contextmanager
def chosen(get, put, value, after):
    put(value)
    try:
        yield
        assert get() == value
    finally:
        put(after)


AMBIENT = {
    "float64": lambda: chosen(torch.get_default_dtype, torch.set_default_dtype, torch.float64, torch.float32),
    "meta": lambda: chosen(lambda: str(torch.get_default_device()), torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@NOT_WRITABLE
@pytest.mark.parametrize(("ambient", "suffix"), [*((a, "pt2") for a in AMBIENT), ("meta", "onnx"), ("float64", "onnx")])
def test_settings_of_the_caller_change_nothing(ambient, suffix, trained, tmp_path):
    m, filters, state = trained("normalized encoder"), [*warnings.filters], torch.get_rng_state()
    before = [t.clone() for network in (m.encoder, m.decoder) for t in network.state().values()]
    logging.getLogger("torch.onnx").setLevel(logging.INFO)
    with AMBIENT[ambient]():
        path = m.export(tmp_path / f"m.{suffix}")
    assert logging.getLogger("torch.onnx").level == logging.INFO and warnings.filters == filters
    logging.getLogger("torch.onnx").setLevel(logging.NOTSET)
    assert torch.equal(torch.get_rng_state(), state)
    after = [t for network in (m.encoder, m.decoder) for t in network.state().values()]
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(before, after, strict=True))
    inputs, right = wanted(m, "normalized encoder", False, 17)
    if suffix == "onnx":
        found = run_onnx(session_of(path), inputs)
    else:
        found = torch.export.load(path).module()(torch.from_numpy(inputs["x"]))
        found = {name: t.numpy() for name, t in found.items()}
    assert_close(found, right, ambient)


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of two replicas."""
    out = tmp_path_factory.mktemp("run") / "run"
    cfg = fastaae.Config(task="semi_supervised", hidden=(8,), epochs=1, replicas=2, n_validation=0, out_dir=str(out))
    return fastaae.train(cfg, data=(X, Y), progress=False).directory


def test_the_command_prints_the_path_alone(run):
    done = subprocess.run([sys.executable, "-m", "fastaae", "export", run], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{run}/model.onnx\n", "")
    m = fastaae.load(run)
    assert_close({"z": session_of(run / "model.onnx").run(["z"], {"x": X.astype(np.float32)})[0]},
                 {"z": m.encode(X)}, "command")  # fmt: skip


def test_flags_of_the_command(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags, path in {
        ("--format", "pt2"): run / "model.pt2",
        ("--format", "pt2", "--decoder"): run / "decoder.pt2",
        ("--replica", "1", "--out", "mine.onnx"): "mine.onnx",
    }.items():
        assert cli.main(["export", str(run), *flags]) == 0
        assert capsys.readouterr().out == f"{path}\n" and Path(path).is_file()
    z = session_of("mine.onnx").run(["z"], {"x": X.astype(np.float32)})[0]
    assert_close({"z": z}, {"z": fastaae.load(run, 1).encode(X)}, "replica")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--format pt2 --out m.onnx", "--out m.onnx: expected a name that ends with .pt2, or another --format"),
        ("--out m.pt2", "--out m.pt2: expected a name that ends with .onnx, or another --format"),
        ("--format pt --out m.pt", "m.pt: expected a name that ends with .onnx or .pt2"),
        ("--format x", "/model.x: expected a name that ends with .onnx or .pt2"),
    ],
)
def test_a_format_and_a_name_that_differ_are_refused(flags, expected, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {*run.iterdir()}
    assert cli.main(["export", str(run), *flags.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastaae: ") and said.endswith(f"{expected}\n")
    assert not list(tmp_path.iterdir()) and {*run.iterdir()} == before


@pytest.mark.parametrize("name", ["onnxruntime", "onnxscript"])
def test_what_to_install_is_said(name, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["export", str(run), "--out", str(tmp_path / "m.onnx")]) == 2
    assert capsys.readouterr().err.endswith(": pip install 'fastaae[onnx]'\n")
    assert not list(tmp_path.iterdir())
    assert cli.main(["export", str(run), "--format", "pt2", "--out", str(tmp_path / "m.pt2")]) == 0


# Folders, and the Hub


def bits(m):
    networks = [part for part in (m.encoder, m.decoder, m.heads, m.scale) if part is not None]
    return [t.numpy().tobytes() for network in networks for t in network.state().values()]


@pytest.mark.parametrize("case", ["supervised", "embedding", "normalized encoder", "gan", "standard, bytes"])
def test_a_model_comes_back_from_a_folder_with_the_same_bits(case, trained, tmp_path):
    m, folder = trained(case), tmp_path / "a" / "b"
    for _ in range(2):  # what is there is replaced
        m.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "README.md"}
    again = fastaae.Model.from_pretrained(folder)
    assert bits(again) == bits(m) and again.known == m.known and repr(again) == repr(m)
    x = CASES[case][1][:17]
    made = [(n.sample(5, 0), n.encode(x) if n.encoder else 0) for n in (m, again)]
    assert all(np.array_equal(a, b) for a, b in zip(*made, strict=True))
    assert repr(m) in (folder / "README.md").read_text(encoding="utf-8")


def test_a_folder_names_no_folders_of_its_maker(trained, tmp_path):
    m = test_modules.copy_of(trained("unsupervised"))
    m.config = fastaae.Config(**{**m.config.to_dict(), "dataset": "/secret/of me/x.npz", "data_dir": "/secret/too"})
    before = m.config
    assert m.config.out_dir
    m.save_pretrained(tmp_path / "m")
    content = (tmp_path / "m" / "model.safetensors").read_bytes() + (tmp_path / "m" / "README.md").read_bytes()
    assert b"secret" not in content and str(m.config.out_dir).encode() not in content
    assert m.config is before and fastaae.Model.from_pretrained(tmp_path / "m").config.dataset == "x.npz"
    for path in ("/", "."):
        m.config = fastaae.Config(**{**before.to_dict(), "dataset": path})
        m.save_pretrained(tmp_path / "m")


def test_every_changed_byte_is_refused(trained, tmp_path):
    trained("unsupervised").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for at in [*range(0, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match="damaged|not a checkpoint|format"):
            fastaae.Model.from_pretrained(tmp_path)
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError):
        fastaae.Model.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file.*, expected a file"):
        fastaae.Model.from_pretrained(tmp_path)


def test_the_directory_of_a_run_stays_one(run, trained):
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ValueError, match="config.json: a run's, .*: name another folder"):
        trained("unsupervised").save_pretrained(run)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_what_else_lies_in_a_folder_is_not_read(trained, tmp_path):
    trained("unsupervised").save_pretrained(tmp_path)
    for name in ("config.json", "pytorch_model.bin"):
        os.mkfifo(tmp_path / name)
    assert fastaae.Model.from_pretrained(tmp_path).shape == (2, 3)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:7], COMMIT.upper(), COMMIT + "\n", COMMIT + "0", 7])
def test_a_repository_without_a_commit_is_refused(revision, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    with pytest.raises(
        ValueError, match="revision=.* of user/name, which is no folder here: expected the hash of a commit"
    ):
        fastaae.Model.from_pretrained("user/name", revision)


def test_a_folder_has_no_revision(trained, tmp_path):
    trained("unsupervised").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"revision='{COMMIT}' of .*: expected None, of a folder"):
        fastaae.Model.from_pretrained(tmp_path, revision=COMMIT)


def test_a_repository_is_read_at_its_commit(trained, tmp_path):
    """From the Hub's own cache, without the Hub."""
    m = trained("semi-supervised")
    m.save_pretrained(tmp_path / "models--user--name" / "snapshots" / COMMIT)
    trained("gan").save_pretrained(tmp_path / "models--user--name" / "snapshots" / COMMIT[::-1])
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert bits(fastaae.Model.from_pretrained("user/name", revision=COMMIT, **options)) == bits(m)
    with pytest.raises(FileNotFoundError):
        fastaae.Model.from_pretrained("user/name", revision="0" * 40, **options)


def test_a_model_is_uploaded_whole(trained, tmp_path, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, **options):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **options):
            sent[repo_id] = shutil.copytree(folder_path, tmp_path / "sent")

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    m = trained("unsupervised")
    m.save_pretrained(tmp_path / "m", push_to_hub=True, repo_id="user/name", token="secret")
    assert {path.name for path in sent["user/name"].iterdir()} == {"model.safetensors", "README.md"}
    assert bits(fastaae.Model.from_pretrained(sent["user/name"])) == bits(m)


# Folders of earlier versions: format-N holds a model in float64, and what it computed. Never remove one.


@pytest.mark.parametrize("folder", sorted(PRETRAINED.iterdir()), ids=lambda folder: folder.name)
def test_a_folder_of_an_earlier_version_loads(folder):
    expected = json.loads((folder / "expected.json").read_text())
    m, x = fastaae.Model.from_pretrained(folder), np.array(expected["x"])
    found = {"encode": m.encode(x), "predict_proba": m.predict_proba(x), "reconstruct": m.reconstruct(x)}
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-9, atol=1e-12)
    assert m.predict(x).tolist() == expected["predict"] and folder.name == f"format-{checkpoint.FORMAT}"

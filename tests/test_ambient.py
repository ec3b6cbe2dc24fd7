"""Whatever a program around fastaae has set for itself: the same bits, and its settings as they were."""

from __future__ import annotations

import ast
import contextlib
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import processes

import fastaae
from fastaae import checkpoint, evaluation
from fastaae.data import from_arrays
from fastaae.kernels.exact import exact_arithmetic
from fastaae.window import ParzenWindow

ROOT = Path(__file__).resolve().parents[1]
G = np.random.default_rng(0)
X, Y = G.random((120, 6, 6)).astype(np.float32), np.arange(120) % 3
BYTES = (255 * X).astype(np.uint8)
TINY = {"hidden": (16, 16), "style_dim": 2, "batch_size": 20, "epochs": 1, "init_std": 0.3, "log_every": 2}
ADAM = {"optimizer": "adam", "lr_reconstruction": 1e-3, "lr_adversarial": 1e-3, "lr_classification": 1e-3}
RUNS = {
    "semi-supervised": {"task": "semi_supervised", "n_labeled": 30, "input_noise": 0.1},
    "adam": {**ADAM, "dropout": 0.2, "batch_norm": "autoencoder", "input_dropout": 0.1},
    "embedding": {"task": "embedding"},
    "fixed heads": {"task": "embedding", "fixed_heads": 2.0, "style_dim": 3},
    "universal": {"task": "supervised", "posterior": "universal"},
    "mixture": {"prior": "mixture", "components": 3, "label_prior": True, "n_labeled": 30},
    "swiss roll": {"prior": "swiss_roll", "components": 4},
    "vae": {"regularizer": "kl", "posterior": "gaussian", "reconstruction": "cross_entropy"},
    "mmd": {"regularizer": "mmd", "prior": "uniform"},
    "gan": {"task": "gan"},
    "standardized": {"scale": "standard", "output": "linear"},
    "bf16": {"precision": "bf16", "task": "clustering", "n_clusters": 4},
    "fp64": {"precision": "fp64"},
    "large": {"hidden": (128, 128), "batch_size": 64},
    "large, bf16": {"hidden": (128, 128), "batch_size": 64, "precision": "bf16"},
}


def train(folder, **fields):
    """All bits of a run, of the model loaded from it and of what that makes."""
    x = BYTES if fields.get("scale") else X
    data = {"x": x, "y": Y, "x_test": x[:30], "y_test": Y[:30]}
    run = fastaae.train(fastaae.Config(**TINY, **fields) if not fields.keys() & TINY.keys() else
                        fastaae.Config(**{**TINY, **fields}), data=data, progress=False)  # fmt: skip
    model = fastaae.load(run.directory)
    made = [model.sample(10, 0), model.log_likelihood(X[:10], 500, 0.3).per_query]
    if model.config.prior != "swiss_roll":
        r = model.ais_log_likelihood(X[:3], 0.3, 2, 4, simulated=2)
        made += [r.per_query, r.simulated.x, r.simulated.upper]
    if model.encoder is not None:
        made += [
            model.encode(X),
            model.decode(np.ones((3, model.config.style_dim)), np.arange(3) if model.n_classes else None),
        ]
    if model.label_head:
        made.append(model.predict_proba(X))
    metrics = evaluation.evaluate([model], from_arrays(data), "test")
    state = checkpoint.digest(checkpoint.load(run.directory / "checkpoint.safetensors").tensors)
    return [state, repr(run.metrics), repr(metrics), *(a.tobytes() for a in made)]


def parzen(folder):
    """Likelihoods by every method, of floats and of bytes, of a bandwidth chosen."""
    pairs = [(q, s, m) for q, s in ((X[:50], X), (BYTES[:50], BYTES)) for m in ("auto", "dense", "pruned")]
    g = np.random.default_rng(1)
    wide = [g.normal(size=(n, 200)).astype(np.float32) for n in (300, 3000)]
    pairs += [(*wide, "auto")]
    results = [fastaae.parzen_log_likelihood(q, s, 0.3, method=m) for q, s, m in pairs]
    results.append(fastaae.parzen_log_likelihood(X[:50], X, validation=X[50:]))
    return [r.per_query.tobytes() for r in results]


def window(folder):
    rows = X.reshape(120, -1)
    return [ParzenWindow(0.3).fit(rows).score_samples(rows[:9]).tobytes()]


@contextlib.contextmanager
def setting(get, put, value, after=None):
    before = get()
    put(value)
    try:
        yield
        assert get() == value, "a setting of the caller was changed"
    finally:
        put(before if after is None else after[0])


def default_dtype(dtype):
    return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


AMBIENT = {
    "float64 default": lambda: default_dtype(torch.float64),
    "float16 default": lambda: default_dtype(torch.float16),
    "meta default": lambda: setting(lambda: str(torch.get_default_device()), torch.set_default_device, "meta", [None]),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "oneDNN off": lambda: setting(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, False),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "16-bit products": lambda: setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings raise": warnings.catch_warnings,
}


def global_generators():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002


QUIET = "ignore:.*(best bandwidth|told_apart|code_std|uniform)"


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("entry", [*RUNS, "parzen", "window"])
def test_ambient_states_change_no_bit(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = {"parzen": parzen, "window": window}.get(entry) or (lambda folder: train(folder, **RUNS[entry]))
    expected, states = function(tmp_path), global_generators()
    for name, state in AMBIENT.items():
        with state():
            if name == "warnings raise":
                warnings.simplefilter("error")
                warnings.filterwarnings(*QUIET.split(":"))
            filters = list(warnings.filters)
            assert function(tmp_path) == expected, name
            assert warnings.filters == filters, name
    assert global_generators() == states


FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint",
             "randn", "randperm", "scalar_tensor", "tensor", "zeros"}  # fmt: skip


def nameless_factories(path):
    """Calls of torch's factories that leave the dtype or the device to the process."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in FACTORIES}:
            if not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}:
                yield f"{path.name}:{node.lineno}"


def test_every_factory_says_dtype_and_device(tmp_path):
    files = [f for f in (*ROOT.glob("fastaae/**/*.py"), *ROOT.glob("kernels/**/*.py"))]
    assert [call for file in files for call in nameless_factories(file)] == []
    (tmp_path / "wrong.py").write_text("torch.zeros(3, dtype=torch.int64)\ntorch.arange(3, device=d)\ntorch.ones(2)\n")
    assert len(list(nameless_factories(tmp_path / "wrong.py"))) == 3


def test_threads_that_score_at_once_share_no_setting():
    """Each computes exactly, and when the last has ended the caller's choice is back."""
    backend = torch.backends.mkldnn.matmul
    g = np.random.default_rng(1)
    queries, samples = (g.normal(size=(n, 300)).astype(np.float32) for n in (200, 4000))
    expected = fastaae.parzen_log_likelihood(queries, samples, 5.0).per_query
    before, filters, found = backend.fp32_precision, list(warnings.filters), []

    def slowly(wait):
        for k in range(0, len(samples), 400):
            wait.wait(0.02)
            yield samples[k : k + 400]

    def score(wait):
        found.append(fastaae.parzen_log_likelihood(queries, slowly(wait), 5.0, progress=False).per_query)

    backend.fp32_precision = "bf16"
    try:
        threads = [threading.Thread(target=score, args=(threading.Event(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert backend.fp32_precision == "bf16" and warnings.filters == filters
    finally:
        backend.fp32_precision = before
    assert len(found) == 4 and all(np.array_equal(f, expected) for f in found)


def test_a_precision_that_is_chosen_meanwhile_is_not_computed_in_and_comes_back():
    every, own = torch.backends, torch.backends.mkldnn.matmul
    before = every.fp32_precision, own.fp32_precision
    try:
        with exact_arithmetic():
            own.fp32_precision = "bf16"
            with exact_arithmetic():
                assert own.fp32_precision == "ieee"
        assert own.fp32_precision == "bf16"
        own.fp32_precision, every.fp32_precision = "none", "tf32"
        with exact_arithmetic():
            assert own.fp32_precision == "ieee"
        every.fp32_precision = "ieee"
        assert own.fp32_precision == "ieee"  # still that of the wider setting
    finally:
        every.fp32_precision, own.fp32_precision = before


FORK = """
import os, sys, numpy as np, torch
torch.set_num_threads(2)
x = np.random.default_rng(0).random((300, 400)).astype(np.float32)
(torch.ones(2000, 2000) @ torch.ones(2000, 2000)).sum()

def work():
    import fastaae
    fastaae.train(fastaae.Config(hidden=(256, 256), batch_size=64, epochs=1), data=x, progress=False)
    fastaae.parzen_log_likelihood(x, x, 0.3)

if sys.argv[1] == "known":
    work()
if os.fork() == 0:
    work()
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("parent", ["known", "new"])
def test_a_fork_of_a_process_with_threads_trains(tmp_path, parent):
    """Whether fastaae was known before the fork, or torch alone."""
    done = processes.python("-c", FORK, parent, cwd=tmp_path, timeout=60, OMP_NUM_THREADS="2")
    assert done.returncode == 7, done.stderr

"""Fixed seeds, deterministic operators, and uninitialised memory filled with NaN, so that reading it fails a test."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import sys
from importlib.metadata import version

import pages
import pytest
import torch
from faults import processes
from faults.forks import forked_mat_reader

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: small networks gain nothing from threads
torch.set_num_threads(1)
if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def called(self, *args, **kwargs):
        """A function that a kernel calls. Triton's own goes through its whole language at every call, and takes longer
        for that than for most of what is called; here once for all functions of a module."""
        if id(self.fn.__globals__) not in patched:
            patched.add(id(self.fn.__globals__))
            patch(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    find, known = interpreter._get_np_dtype, {}

    def np_dtype(type):
        """Triton's own makes its table anew at every call."""
        if type.name not in known:
            known[type.name] = find(type)
        return known[type.name]

    interpreter.InterpretedFunction.__call__ = called
    interpreter._get_np_dtype = np_dtype
    # where nothing is debugged it computes each sum of integers twice, and looks at neither
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def pytest_collection_modifyitems(items):
    """A test that takes a minute, in a pytest of its own, is not left to the end, when the other cores have no work."""
    items.sort(key=lambda item: "interpreted" not in item.fixturenames)


@pytest.fixture(autouse=True)
def fixed():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # and torch.empty is then filled with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """An empty folder to be in, and presets that train for a moment."""
    monkeypatch.chdir(tmp_path)
    pages.shrunk(monkeypatch)
    return tmp_path


@pytest.fixture
def interpreted():
    """Runs a file of tests in a pytest of its own where Triton interprets."""

    def run(file):
        pytest.importorskip("triton", reason="no Triton to interpret with")
        if tuple(map(int, version("triton").split(".")[:2])) < (3, 7):
            pytest.skip("the interpreter of Triton 3.6 needs an older NumPy, and warns with that")
        options = ("-q", "-p", "no:cacheprovider")
        done = processes.python("-m", "pytest", *options, file, timeout=600, TRITON_INTERPRET="1")
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
        assert " passed" in done.stdout and "failed" not in done.stdout

    return run


@pytest.fixture(params=[90, *(pytest.param(arch, marks=pytest.mark.slow) for arch in (80, 100))])
def arch(request):
    """The architecture of a GPU that kernels are compiled for."""
    return request.param


@pytest.fixture(scope="session")
def bench():
    """Modules of bench/, by name."""
    return _bench


def _bench(name: str):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", processes.ROOT / "bench" / f"{name}.py")
    module = sys.modules[f"bench_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bench_step():
    """The module bench/step.py, whose idiomatic training step is the reference of ours."""
    return _bench("step")


@pytest.fixture
def fast_reader():
    """fastaae.data.matfiles reads by forking; a list of the exit statuses so far."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    with forked_mat_reader() as statuses:
        yield statuses


@pytest.fixture
def two_ranks(tmp_path):
    """Runs a script as two ranks under torchrun, in tmp_path; see faults.processes.two_ranks."""
    return functools.partial(processes.two_ranks, cwd=tmp_path)

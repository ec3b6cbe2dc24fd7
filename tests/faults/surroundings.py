"""Hostile configs, and poor surroundings of the command line: R26, R29."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastaae

from .case import Check, Outcome, Skip, require
from .hostile import MB, changed, mutated, unclear
from .processes import environment, python


def cli(*arguments: Any, cwd: Path, timeout: float = 120, **changes: str | None) -> subprocess.CompletedProcess:
    """The command line in a process of its own."""
    return python("-m", "fastaae.cli", *arguments, cwd=cwd, timeout=timeout, **changes)


# R26: configs


def hostile_configs() -> dict[str, tuple[bytes, str]]:
    """By name: a file, and what the refusal says of it."""

    def of(**fields: Any) -> bytes:
        return json.dumps(fields).encode()

    return {
        "unknown key": (of(epoch=3), "unknown field 'epoch'; did you mean 'epochs'"),
        "a key of 100 kB": (of(**{"e" * 100_000: 3}), "unknown field 'eeee"),
        "an odd key": (of(**{"\x1b[2J": 3}), r"unknown field '\x1b[2J'"),
        "wrong type": (of(epochs="3"), "epochs='3': expected an integer from 1"),
        "a boolean": (of(epochs=True), "epochs=True: expected an integer from 1"),
        "float for int": (of(batch_size=1e12), "batch_size=1000000000000.0: expected an integer"),
        "NaN": (b'{"lr_decay": NaN}', "lr_decay=nan: expected a finite number"),
        "infinite": (b'{"prior_std": Infinity}', "prior_std=inf: expected a finite number"),
        "beyond floats": (b'{"prior_std": 1e999}', "prior_std=inf: expected a finite number"),
        "negative": (of(epochs=-1), "epochs=-1: expected an integer from 1"),
        "zero": (of(batch_size=0), "batch_size=0: expected an integer from 1"),
        "too large": (of(style_dim=10**12), "style_dim=1000000000000: expected an integer from 1 to 2**31 - 1"),
        "huge integer": (b'{"seed": 1%s}' % (b"0" * 4000), "seed=1000"),
        "integer of 10^5 digits": (b'{"seed": 1%s}' % (b"0" * 100_000), "config.json: "),
        "nested 10^5 deep": (b"[" * 100_000, "config.json: "),
        "nested value": (of(hidden=[[1]]), "hidden=[1]: expected an integer"),
        "duplicate key": (b'{"epochs": 3, "epochs": 4}', "'epochs' is given twice"),
        "empty": (b"", "config.json: "),
        "a list": (b"[1]", "config.json: got list, expected an object"),
        "a number": (b"1", "config.json: got int, expected an object"),
        "byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
        "UTF-16": ("{}".encode("utf-16"), "utf-8"),
        "NUL": (b'{"dataset": "a\x00b"}', "config.json: "),
        "not closed": (b'{"epochs": 3', "config.json: "),
        "2 MB": (of(epochs=3) + b" " * 2 * MB, "expected at most 1048576"),
        "a name that climbs": (of(name="../../x"), "name='../../x': expected at most 200 letters"),
        "fields at odds": (
            of(task="gan", batch_norm="encoder"),
            "batch_norm='encoder': expected 'none': a gan has no encoder",
        ),
        "a choice that is none": (of(optimizer=["sgd"]), "optimizer="),
        "a path of numbers": (of(data_dir=3), "data_dir=3: expected a string or None"),
        "a pipe": (b"", "not a regular file"),
        "endless zeros": (b"", "not a regular file"),
    }


def hostile_config(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    listed, path = hostile_configs(), folder / "config.json"
    if case < len(listed):
        name = list(listed)[case]
        content, expected = listed[name]
        if name == "a pipe":
            os.mkfifo(path)
        elif name == "endless zeros":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(content)
        start = time.perf_counter()
        done = cli("train", "--config", path, cwd=folder, timeout=30)
        took, said = time.perf_counter() - start, done.stderr.strip()
        if done.returncode != 2 or "Traceback" in said or "\n" in said or len(said) > 8000 or took > 3:
            return f"{name}: exit {done.returncode} after {took:.1f} s, {said[-300:]!r}"
        return None if expected in said else f"{name}: {said[-300:]!r}, expected {expected!r}"
    given = fastaae.preset(str(rng.choice(fastaae.presets()))).to_dict()
    if rng.random() < 0.3:
        given = {"config": given, "data": {"sha256": "0" * 64}}
    for _ in range(rng.integers(1, 4)):
        given = changed(rng, given)
    text = json.dumps(given).encode()
    path.write_bytes(mutated(rng, text) if rng.random() < 0.5 else text)
    try:
        cfg = fastaae.Config.from_json(path)
    except ValueError as error:
        return unclear(str(error), f"{path}: ")
    return None if fastaae.Config.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg else "does not come back"


# R29: poor surroundings


@functools.cache
def trained() -> Path:
    folder = Path(tempfile.mkdtemp())
    done = cli("train", "digits", "--epochs", "1", "--out-dir", "run", cwd=folder)
    require(done.returncode == 0, done.stderr)
    return folder / "run"


WITHOUT_TRITON = (
    "import sys; sys.modules['triton'] = None; from fastaae import cli; "
    "sys.exit(cli.main(['train', 'digits', '--epochs', '1', '--out-dir', 'run']))"
)
SHELL = {
    "presets into head": "python -m fastaae.cli presets | head -1",
    "train into head": "python -m fastaae.cli train digits --epochs 1 --out-dir run | head -1",
    "train without input": "python -m fastaae.cli train digits --epochs 1 --out-dir run <&-",
    "train without output": "python -m fastaae.cli train digits --epochs 1 --out-dir run >&- 2>&-",
    "parzen without output": "python -m fastaae.cli parzen $TRAINED --samples 500 >&- 2>&-",
    "few open files": "ulimit -n 64; python -m fastaae.cli train digits --epochs 1 --out-dir run",
    "no network": "unshare -rn python -m fastaae.cli train digits --epochs 1 --out-dir run",
    "no network, no data": "XDG_CACHE_HOME=$PWD FASTAAE_DATA= unshare -rn python -m fastaae.cli train mnist-100",
}


def in_shell(script: str, folder: Path) -> subprocess.CompletedProcess:
    """A script of bash, with `python` this interpreter and $TRAINED the directory of a run."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        cwd=folder,
        env=environment(PATH=path, TRAINED=str(trained()) if "$TRAINED" in script else None),
        capture_output=True,
        text=True,
        timeout=120,
    )


def in_surroundings(folder: Path) -> dict[str, Callable[[], subprocess.CompletedProcess]]:
    """By name: what runs a command in some poor surroundings."""
    bare = folder / "bare"
    bare.mkdir()
    run = functools.partial(cli, "train", "digits", "--epochs", "1", "--out-dir", cwd=folder)
    quiet = {"TERM": "dumb", "LC_ALL": "C"}
    ways: dict[str, Callable[[], subprocess.CompletedProcess]] = {
        name: functools.partial(in_shell, script, folder) for name, script in SHELL.items()
    }
    return ways | {
        "no HOME": lambda: run("run", HOME=None, XDG_CACHE_HOME=None),
        "HOME that is not there": lambda: run("run", HOME="/nowhere", XDG_CACHE_HOME=None),
        "HOME that is a file": lambda: run("run", HOME="/dev/null", XDG_CACHE_HOME=None),
        "dumb terminal": lambda: run("run", TERM="dumb"),
        "no TERM, no locale": lambda: run("run", TERM=None, LC_ALL="C", PYTHONUTF8="0"),
        "no PATH": lambda: run("run", PATH=""),
        "path with spaces": lambda: run("a b/ü ñ/run"),
        "hidden GPU": lambda: run("run", CUDA_VISIBLE_DEVICES=""),
        "no Triton": lambda: python("-c", WITHOUT_TRITON, cwd=folder),
        "no TMPDIR": lambda: run("run", TMPDIR="/nowhere"),
        "odd thread count": lambda: run("run", OMP_NUM_THREADS="13"),
        "evaluate, no HOME": lambda: cli("evaluate", trained(), cwd=bare, HOME=None, **quiet),
        "parzen, dumb terminal": lambda: cli("parzen", trained(), "--samples", 500, cwd=bare, **quiet),
        "sample, no display": lambda: cli(
            "sample", trained(), "--out", folder / "s p.png", cwd=bare, HOME=None, DISPLAY=None, MPLCONFIGDIR=None
        ),
    }


def poor_surroundings(rng: np.random.Generator, case: int, folder: Path) -> str | Outcome | None:
    ways = in_surroundings(folder)
    name = list(ways)[case % len(ways)]
    if "network" in name and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        raise Skip("unshare -rn is not allowed here")
    done = ways[name]()
    said = (done.stderr or "").strip()
    if "Traceback" in said or done.returncode < 0:
        return f"{name}: exit {done.returncode}, {said[-400:]!r}"
    if name == "no network, no data":
        right = done.returncode == 2 and "it could not be downloaded" in said
    elif name.endswith("into head"):
        right = done.returncode in (0, 141)
    else:
        right = done.returncode == 0
    return None if right else f"{name}: exit {done.returncode}, {said[-400:]!r}"


CHECKS = {
    "R26": Check("hostile configs", 1000, hostile_config),
    "R29": Check("poor surroundings", 22, poor_surroundings),
}

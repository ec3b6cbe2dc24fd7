"""Where a number came from: versions, commit and hardware, for config.json and the benchmarks' tables."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoint import sync_folder
from ..directory import RunDirectory


def describe(device: str = "cpu") -> dict[str, Any]:
    """{"versions": of what decides a run's numbers, "git": {...}, "hardware": {...}} of this process, JSON-ready."""
    versions = {"fastaae": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "safetensors", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"versions": versions, "git": git(), "hardware": hardware(device)}


def now() -> str:
    """Date and time, as a part of a directory's name."""
    return time.strftime("%Y%m%d-%H%M%S")


def new_directory(name: str, within: Path = Path()) -> str:
    """Make a directory for a run, of a name that no other run has taken: some may start in the same second."""
    first, k = f"runs/{name}-{now()}", 1
    while os.path.lexists(within / (path := first + (f"-{k}" if k > 1 else ""))) or not _made(within / path):
        k += 1
    for folder in Path(path).parents:
        sync_folder(within / folder)
    return path


def _made(path: Path) -> bool:
    """Make a directory, unless another process was sooner."""
    try:
        RunDirectory(path).make(new=True)
    except FileExistsError:
        if not os.path.lexists(path):  # it is one of those that it is to be in
            raise
        return False
    return True


def git() -> dict[str, Any]:
    """Commit of the checkout that this package runs from, and whether its code is changed since; {} if it is none."""
    root = Path(__file__).resolve().parents[2]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of another repository

    def run(arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments.split()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=env).stdout.strip()

    try:
        if Path(run("rev-parse --show-toplevel")).resolve() != root:
            return {}
        return {"commit": run("rev-parse HEAD"), "dirty": bool(run("status --porcelain -- :!*.md :!*.png :!*.json"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Name of the processor or GPU, and the threads that torch uses."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {"device": device, "name": name, "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.platform()}  # fmt: skip


def _processor() -> str:
    """Its name with family and model, without which cloud machines are all called the same."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "model name" in found:
            return f"{found['model name']} (family {found.get('cpu family')}, model {found.get('model')})"
    return platform.processor() or platform.machine()

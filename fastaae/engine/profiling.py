"""NVTX ranges, which Nsight Systems and Nsight Compute show, and a window of steps under PyTorch's profiler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

try:
    import nvtx
except ImportError:  # macOS
    nvtx = None

_traces: list[Path] = []  # being written


@contextlib.contextmanager
def mark(name: str) -> Iterator[None]:
    """A range of the NVTX domain "fastaae", and of a trace that is being written; else next to nothing."""
    with nvtx.annotate(name, domain="fastaae") if nvtx else contextlib.nullcontext():
        if _traces:
            with torch.profiler.record_function(name):
                yield
        else:
            yield


@contextlib.contextmanager
def traced(device: torch.device, path: Path) -> Iterator[None]:
    """Write a Chrome trace of what runs inside to path; on a GPU Nsight's tools are told when it begins and ends."""
    cuda = device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
        _traces.append(path)
        if cuda:
            torch.cuda.synchronize(device)
            torch.cuda.profiler.start()
        try:
            yield
        finally:
            if cuda:
                torch.cuda.synchronize(device)
                torch.cuda.profiler.stop()
            _traces.remove(path)
    profile.export_chrome_trace(str(path))

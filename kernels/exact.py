"""Arithmetic in the precision of its operands, whatever the caller of the library has chosen for its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock, _inside = threading.Lock(), [0]
_chosen: dict[Any, str] = {}  # by backend: the caller's precision, "none" where that comes from a wider setting


@contextmanager
def exact_arithmetic(inference: bool = True) -> Iterator[None]:
    """Products in their operands' precision, without autocast, in inference mode or out of it. The precision is a
    setting of the whole process: the caller's is back when the last thread has left."""
    with _lock:
        _inside[0] += 1
        for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            if (before := backend.fp32_precision) != "ieee":
                backend.fp32_precision = "none"
                _chosen[backend] = "none" if backend.fp32_precision == before else before
                backend.fp32_precision = "ieee"
    try:
        with torch.inference_mode(inference), torch.autocast("cpu", enabled=False):
            with torch.autocast("cuda", enabled=False):
                yield
    finally:
        with _lock:
            _inside[0] -= 1
            while _chosen and not _inside[0]:
                backend, before = _chosen.popitem()
                backend.fp32_precision = before

"""Arithmetic in the precision of its operands, whatever the caller of the library has chosen for its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock, _inside, _restore = threading.Lock(), [0], ExitStack()


@contextmanager
def exact_arithmetic(inference: bool = True) -> Iterator[None]:
    """Products in their operands' precision, without autocast, in inference mode or out of it. The precision is a
    setting of the whole process: the caller's is back when the last thread has left."""
    with _lock:
        for backend in () if _inside[0] else (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            _restore.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
            backend.fp32_precision = "ieee"
        _inside[0] += 1
    try:
        with torch.inference_mode(inference), torch.autocast("cpu", enabled=False):
            with torch.autocast("cuda", enabled=False):
                yield
    finally:
        with _lock:
            _inside[0] -= 1
            if not _inside[0]:
                _restore.close()

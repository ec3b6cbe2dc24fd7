"""Arithmetic in the precision of its operands, whatever the caller of the library has chosen for its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Precision:
    """How products of float32 are computed is a setting of the whole process: "ieee" while any thread is within."""

    def __init__(self):
        self.lock, self.users = threading.Lock(), 0
        self.backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        self.before = [backend.fp32_precision for backend in self.backends]

    def __enter__(self) -> None:
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.before = [backend.fp32_precision for backend in self.backends]
                self._set(["ieee"] * 2)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self._set(self.before)

    def _set(self, precisions: list[str]) -> None:
        for backend, precision in zip(self.backends, precisions, strict=True):
            backend.fp32_precision = precision


_precision = _Precision()


@contextmanager
def exact_arithmetic(inference: bool = True) -> Iterator[None]:
    """Products in their operands' precision, without autocast, in inference mode or out of it."""
    with _precision, torch.inference_mode(inference), torch.autocast("cpu", enabled=False):
        with torch.autocast("cuda", enabled=False):
            yield

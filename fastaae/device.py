"""Where tensors live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ALONE = 80_000  # weights of the largest layer, times replicas, up to which threads wait longer than they work


@contextmanager
def enough_threads(weights: int, device: torch.device) -> Iterator[None]:
    """On a CPU one thread for layers so small: on a quiet machine two would take 0.8 times as long, on a busy one,
    where they wait for each other in every operation, 30 times. Later torch has as many as before."""
    before = torch.get_num_threads()
    one = device.type == "cpu" and before > 1 and weights < ALONE
    if one:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if one:
            torch.set_num_threads(before)


def find_device(name: str) -> torch.device:
    """The device of a config: "auto" is CUDA if there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device={name!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(f"device={name!r}: not available here; expected 'auto', 'cpu' or, with a GPU, 'cuda'")
    return device

"""Where tensors live."""

from __future__ import annotations

import torch


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

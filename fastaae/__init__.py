"""fastaae: adversarial autoencoders (Makhzani et al. 2016), trained and scored fast.

Public names are imported on first use, so `import fastaae` does not import torch.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "Config": "config",
    "preset": "experiments",
    "presets": "experiments",
    "train": "run.training",
    "Run": "run.training",
    "Interrupted": "run.training",
    "NonFiniteError": "run.training",
    "Model": "model",
    "load": "model",
    "parzen_log_likelihood": "parzen",
    "ParzenResult": "parzen",
    "ParzenWindow": "window",
    "DataError": "data",
    "CheckpointError": "checkpoint",
    "WriteError": "files",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'fastaae' has no attribute {name!r}, expected one of {', '.join(_HOME)}")
    value = getattr(importlib.import_module(f"fastaae.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

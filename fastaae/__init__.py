"""fastaae: adversarial autoencoders (Makhzani et al. 2016), trained and scored fast.

Public names are imported on first use, so `import fastaae` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # checkers cannot see through __getattr__
    from .checkpoint import CheckpointError
    from .config import Config
    from .data import DataError
    from .experiments import preset, presets
    from .files import WriteError
    from .model import Model, load
    from .parzen import ParzenResult, parzen_log_likelihood
    from .run import Run
    from .run.resume import NonFiniteError
    from .run.signals import Interrupted
    from .run.training import train
    from .window import ParzenWindow

__version__ = "0.1.0"

__all__ = [  # a literal, or checkers take the imports above for private ones
    "__version__",
    "Config",
    "preset",
    "presets",
    "train",
    "Run",
    "Interrupted",
    "NonFiniteError",
    "Model",
    "load",
    "parzen_log_likelihood",
    "ParzenResult",
    "ParzenWindow",
    "DataError",
    "CheckpointError",
    "WriteError",
]

_HOME = {  # where they are, as above
    "checkpoint": ["CheckpointError"],
    "config": ["Config"],
    "data": ["DataError"],
    "experiments": ["preset", "presets"],
    "files": ["WriteError"],
    "model": ["Model", "load"],
    "parzen": ["ParzenResult", "parzen_log_likelihood"],
    "run.resume": ["NonFiniteError"],
    "run.signals": ["Interrupted"],
    "run": ["Run"],
    "run.training": ["train"],
    "window": ["ParzenWindow"],
}

if not TYPE_CHECKING:  # to a checker, a module with __getattr__ has any name

    def __getattr__(name: str):
        home = next((module for module, names in _HOME.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module 'fastaae' has no attribute {name!r}, expected one of {', '.join(__all__)}")
        value = globals()[name] = getattr(importlib.import_module(f"fastaae.{home}"), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)

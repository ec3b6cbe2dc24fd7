"""fastaae: adversarial autoencoders (Makhzani et al. 2016), trained and scored fast.

Public names are imported on first use, so `import fastaae` does not import torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for checkers, to whom only a name imported "as" itself is public
    from .checkpoint import CheckpointError as CheckpointError
    from .config import Config as Config
    from .data import DataError as DataError
    from .experiments import preset as preset
    from .experiments import presets as presets
    from .files import WriteError as WriteError
    from .model import Model as Model
    from .model import load as load
    from .parzen import ParzenResult as ParzenResult
    from .parzen import parzen_log_likelihood as parzen_log_likelihood
    from .run import Run as Run
    from .run.hooks import tensorboard as tensorboard
    from .run.resume import NonFiniteError as NonFiniteError
    from .run.signals import Interrupted as Interrupted
    from .run.training import train as train
    from .sweeping import Sweep as Sweep
    from .sweeping import sweep as sweep
    from .window import ParzenWindow as ParzenWindow

__version__ = "0.2.0"

_HOME = {
    "Config": "config",
    "preset": "experiments",
    "presets": "experiments",
    "train": "run.training",
    "Run": "run",
    "sweep": "sweeping",
    "Sweep": "sweeping",
    "tensorboard": "run.hooks",
    "Interrupted": "run.signals",
    "NonFiniteError": "run.resume",
    "Model": "model",
    "load": "model",
    "parzen_log_likelihood": "parzen",
    "ParzenResult": "parzen",
    "ParzenWindow": "window",
    "DataError": "data",
    "CheckpointError": "checkpoint",
    "WriteError": "files",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]  # the imports above say what is public

if not TYPE_CHECKING:  # to a checker, a module with __getattr__ has any name

    def __getattr__(name: str):
        if name in ("data", "estimators", "figures"):
            return importlib.import_module(f"fastaae.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'fastaae' has no attribute {name!r}, expected one of {', '.join(_HOME)}")
        value = globals()[name] = getattr(importlib.import_module(f"fastaae.{_HOME[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _forked() -> None:
    """A fork has none of the threads that its parent's torch may have, and would wait for them for ever."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
if "torch" in sys.modules and os.path.exists("/proc/self/stat"):
    with open("/proc/self/stat", "rb") as _stat:
        if int(_stat.read().rsplit(b")", 1)[1].split()[6]) & 0x40:  # forked, with no other program since
            _forked()

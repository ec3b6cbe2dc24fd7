"""What may differ between the replicas of one run, beside their seeds: Config stays that of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .files import brief, suggestion

VARIED = (
    *("lr_reconstruction", "lr_adversarial", "lr_classification", "momentum", "momentum_adversarial", "input_noise"),
    *("prior_std", "regularizer_weight", "dropout", "seed"),
)
"""Fields that a step takes of each replica by itself."""
SHARED = ("dropout", "input_noise", "lr_reconstruction", "lr_adversarial", "lr_classification")
"""Those that all have or none: where they are 0, a step leaves something out."""


def check_precision(cfg: Config) -> None:
    """Raise ValueError where replicas that differ cannot have it."""
    if cfg.precision == "fp16":
        raise ValueError(f"precision={cfg.precision!r}: its loss scale is of all, expected 'bf16' with members")


class Members:
    """Configs of the replicas of a run.

    Args:
        cfg: of all of them; replica r has seed + r.
        given: for each replica the fields of VARIED that are its own, by name, the same names for all; or nothing.

    Attributes:
        cfg: as above. configs: one a replica. given: as above, a list of dicts.

    Raises:
        ValueError: another number of replicas, another field, a value out of range, or one that needs another step:
            a field of SHARED that is 0 for some replicas alone, or a precision whose loss scale all replicas share.
    """

    def __init__(self, cfg: Config, given: Sequence[Mapping[str, Any]] = ()):
        many = isinstance(given, list | tuple) and len(given) == cfg.replicas
        if not (many and all(isinstance(own, Mapping) for own in given)) and given != ():
            raise ValueError(f"members={brief(given)}: expected a list of {cfg.replicas} dicts, one for each replica")
        self.cfg, self.given = cfg, [dict(own) for own in given]
        names = set(self.given[0]) if given else set()
        for r, own in enumerate(self.given):
            if odd := sorted(set(own).symmetric_difference(names)) or sorted(set(own).difference(VARIED)):
                hint = "" if odd[0] in VARIED else suggestion(odd[0], VARIED)
                expected = f"expected the same of {', '.join(VARIED)} for each replica"
                raise ValueError(f"members[{r}]: field {odd[0]!r}: {expected}{hint}")
        own = self.given or [{}] * cfg.replicas
        self.configs = [replace(cfg, **{"seed": cfg.seed + r, **fields}) for r, fields in enumerate(own)]
        self.given = [{name: getattr(c, name) for name in sorted(names)} for c in self.configs] if given else []
        for name in SHARED:
            of = (*self.configs, *[cfg] * name.startswith("lr_"))  # whose phases a step has
            if len({getattr(c, name) > 0 for c in of}) > 1:
                raise ValueError(f"members: {name} is 0 for some replicas, expected it of all or of none")
        if given:
            check_precision(cfg)

    def of(self, name: str, like: Tensor) -> float | Tensor:
        """A field's value or, where replicas differ, their values [R, 1, 1] in like's dtype, on its device."""
        if not (self.given and name in self.given[0]):
            return getattr(self.configs[0], name)
        return torch.tensor([[[getattr(c, name)]] for c in self.configs], dtype=like.dtype, device=like.device)

"""What a check of the campaign is: a fault, how often it is injected, and a function that injects it once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


@dataclass
class Outcome:
    """More than pass or fail of one case.

    Attributes:
        error: one line that says what went wrong; None for a pass.
        lost: steps that had to be trained again.
        wrong: whether something wrong was accepted in silence, the worst that can happen.
        inputs: how many inputs the case tried, where it tries many.
    """

    error: str | None = None
    lost: int = 0
    wrong: bool = False
    inputs: int = 1


class Skip(Exception):
    """This machine cannot inject the fault; the message says what is missing."""


class Check(NamedTuple):
    """One line of the table.

    Args:
        fault: what is injected, in a few words.
        cases: how many cases the full campaign runs; the quick one a twentieth, at least one.
        run: run(rng, case, folder) injects one case, drawn from rng and its number alone, with a fresh folder to write
            to. It returns None for a pass, one line that says what went wrong, or an Outcome; an exception fails too.
    """

    fault: str
    cases: int
    run: Callable[[np.random.Generator, int, Path], str | Outcome | None]


def require(condition: Any, message: str) -> None:
    """An assertion that also holds under python -O, and that says one line."""
    if not condition:
        raise AssertionError(message)

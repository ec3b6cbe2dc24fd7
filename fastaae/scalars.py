"""Numbers as callers give them: at every door they become Python's own, lest they are used in their own precision."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from .files import brief


def scalar(value: Any) -> Any:
    """A number or a word of any kind (NumPy's, torch's, a fraction, an enumeration's, an array without axes) as bool,
    int, float or str. What is neither comes back as it is, for whoever checks it to refuse."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item") and not hasattr(value, "mask"):
        if getattr(value.dtype, "kind", "?") in "mM":  # a date
            return value
        with contextlib.suppress(RuntimeError, ValueError):  # of a meta tensor
            value = value.item()
    for kind, own in ((bool, bool), (str, str.__str__), (Integral, int), (Real | Decimal, float)):
        if isinstance(value, kind):
            with contextlib.suppress(OverflowError, ValueError):  # beyond every float
                return own(value)
    return value


def integer(name: str, value: Any, least: int, most: int = 2**63 - 1) -> int:
    """Raises ValueError where the argument called `name` is none from `least` to `most`."""
    n = scalar(value)
    if type(n) is not int or not least <= n <= most:
        upper = f" and at most {most}" if type(n) is int and n > most else ""
        raise ValueError(f"{name}={brief(value)}: expected an integer, at least {least}{upper}")
    return n


def within(low: float, value: Any, high: float) -> bool:
    """Whether a scalar() is a number between two others."""
    return type(value) in (int, float) and low < value < high

"""A run's metrics.jsonl: its lines, and as arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..files import brief, check_regular

MAX_BYTES = 2**30  # of a file


def read(directory: str | Path) -> dict[str, np.ndarray]:
    """A run's metrics.jsonl as arrays: "step" [L] and the losses [L, R] at those steps; "epoch" [E] and the validation
    metrics [E, R] after those epochs (1-based). Warnings are left out."""
    path = Path(directory) / "metrics.jsonl"
    rows = [parsed(line, path) for line in lines(path)]
    rows = [r for r in rows if "warning" not in r]
    after = ("step", "epoch", "valid_", "told_apart_", "code_")
    epochs, losses = [], []
    for row in rows:
        (epochs if all(name.startswith(after) for name in row) else losses).append(row)
    try:
        columns = {"step": [r["step"] for r in losses], "epoch": [r["epoch"] + 1 for r in epochs]}
        for part in (losses, epochs):
            for name in part[0] if part else ():
                if name not in ("step", "epoch"):
                    columns[name] = [r[name] for r in part]
        return {name: np.array(values) for name, values in columns.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged (rows that do not fit each other: {error})") from None


def text(path: Path) -> str:
    """What a file of a run says. Raises ValueError where it is no text, no regular file or above 1 GiB."""
    try:
        check_regular(path, MAX_BYTES)
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({brief(error)}); move it away to go on without it") from None


def parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({brief(error)}); move it away to go on without it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged (no JSON object); move it away to go on without it")
    return value


def lines(path: Path) -> list[str]:
    """The complete lines of a file: what a kill left half written is dropped."""
    if not path.exists():
        return []
    return [line for line in text(path).splitlines(keepends=True) if line.endswith("\n")]

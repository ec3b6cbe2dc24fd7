"""Pictures of a trained model. matplotlib draws them without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def _canvas(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)
    return figure


def grid(images: np.ndarray, path: str | Path, columns: int | None = None) -> None:
    """Write images [N, H, W], [N, H, W, 3] or flat [N, D], floats in [0, 1], as one picture in rows of `columns`
    (None: about square)."""
    images = np.asarray(images, np.float32)
    if images.ndim == 2:
        side = int(np.sqrt(images.shape[1]))
        height = side if side * side == images.shape[1] else 1
        images = images.reshape(len(images), height, -1)
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    height, width, *channels = images.shape[1:]
    padded = np.zeros((rows * columns, height, width, *channels), np.float32)
    padded[: len(images)] = images
    mosaic = padded.reshape(rows, columns, height, width, *channels).swapaxes(1, 2)
    mosaic = mosaic.reshape(rows * height, columns * width, *channels).clip(0, 1)
    figure = _canvas(columns * 0.5, rows * 0.5 * height / width)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(mosaic, cmap=None if channels else "gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    figure.savefig(path)


def reconstructions(images: np.ndarray, decoded: np.ndarray, path: str | Path) -> None:
    """Write rows of ten images [N, H, W], N a multiple of 10, each row above its reconstructions."""
    pairs = np.stack([np.asarray(images).reshape(-1, 10, *images.shape[1:]), decoded.reshape(-1, 10, *images.shape[1:])], 1)
    grid(pairs.reshape(-1, *images.shape[1:]), path, columns=10)


def codes(z: np.ndarray, labels: Sequence[int] | np.ndarray, path: str | Path, prior_std: float | None = None) -> None:
    """Write a scatter plot of codes z [N, 2] coloured by label [N]; the prior's 1, 2 and 3 sigma as circles."""
    from matplotlib.patches import Circle

    figure = _canvas(6, 5.4)
    axes = figure.add_subplot()
    labels = np.asarray(labels)
    points = axes.scatter(*np.asarray(z).T, c=labels, s=4, cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0)
    for k in (1, 2, 3) if prior_std else ():
        axes.add_patch(Circle((0, 0), k * prior_std, fill=False, color="0.6", linewidth=0.8, linestyle="--"))
    axes.set_aspect("equal")
    axes.set_xlabel("z[0]")
    axes.set_ylabel("z[1]")
    figure.colorbar(points, ticks=range(int(labels.max()) + 1), label="label")
    figure.savefig(path)

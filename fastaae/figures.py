"""Pictures of a trained model. matplotlib draws them without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

GAP = 2


def _canvas(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def grid(images: np.ndarray, path: str | Path, columns: int | None = None) -> None:
    """Write images [N, H, W], [N, H, W, C], [N, C, H, W] (C: 1 or 3) or flat [N, D], floats in [0, 1], as one picture
    in rows of `columns` (None: about square), with a grey line of GAP pixels after each. Values become squares of
    pixels, as large as keep an image within 75 x 75, at least one.

    Raises:
        ValueError: no images, or of another shape.
    """
    from matplotlib.image import imsave

    images = np.asarray(images, np.float32)
    shape = images.shape
    if images.ndim == 2:
        side = int(np.sqrt(images.shape[1]))
        height = side if side * side == images.shape[1] else 1
        images = images.reshape(len(images), height, -1)
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[3] not in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise ValueError(f"images of shape {shape}: expected [N, H, W], [N, H, W, 3], [N, 3, H, W] or [N, D]")
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    height, width, channels = images.shape[1:]
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[: len(images)] = np.rint(images.clip(0, 1) * 255)
    scale = max(1, 75 // max(height, width))
    tiles = padded.repeat(scale, 1).repeat(scale, 2).repeat(3 if channels == 1 else 1, 3)
    tiles = np.pad(tiles, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=128)
    height, width = tiles.shape[1:3]
    mosaic = tiles.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    imsave(path, mosaic.reshape(rows * height, columns * width, 3))


def reconstructions(images: np.ndarray, decoded: np.ndarray, path: str | Path) -> None:
    """Write rows of ten images [N, H, W], N a multiple of 10, each row above its reconstructions."""
    shape = images.shape[1:]
    pairs = np.stack([images.reshape(-1, 10, *shape), decoded.reshape(-1, 10, *shape)], 1)
    grid(pairs.reshape(-1, *shape), path, columns=10)


def codes(z: np.ndarray, labels: Sequence[int] | np.ndarray, path: str | Path, prior_std: float | None = None) -> None:
    """Write a scatter plot of codes z [N, 2] coloured by label [N]; the prior's 1, 2 and 3 sigma as circles."""
    from matplotlib.patches import Circle

    figure = _canvas(6, 5.4)
    axes = figure.add_subplot()
    labels = np.asarray(labels)
    size = min(16, max(4, 4000 / len(labels)))
    points = axes.scatter(*np.asarray(z).T, c=labels, s=size, cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0)
    for k in (1, 2, 3) if prior_std else ():
        axes.add_patch(Circle((0, 0), k * prior_std, fill=False, color="0.6", linewidth=0.8, linestyle="--"))
    axes.set_aspect("equal")
    if prior_std:
        axes.set_title("dashed: 1, 2, 3 standard deviations of the prior", fontsize="small")
    axes.set_xlabel("z[0]")
    axes.set_ylabel("z[1]")
    figure.colorbar(points, ticks=range(int(labels.max()) + 1), label="label")
    figure.savefig(path)

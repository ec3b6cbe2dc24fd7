"""Pictures of a trained model. matplotlib draws them without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from .model import Model

GAP = 2
BLOCK = 4096  # rows of a search for neighbours
EMPTY = 128 / 255  # of a place without an image: the grey of the lines


def _canvas(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def grid(images: np.ndarray, path: str | Path, columns: int | None = None, divider: int | None = None) -> None:
    """Write images [N, H, W], [N, H, W, C], [N, C, H, W] (C: 1 or 3) or flat [N, D], floats in [0, 1], as one picture
    in rows of `columns` (None: about square), with a grey line of GAP pixels after each. Values become squares of
    pixels, as large as keep an image within 75 x 75, at least one. A white bar follows column number `divider`.

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
    picture = mosaic.reshape(rows * height, columns * width, 3)
    if divider is not None:
        picture = np.insert(picture, [divider * width] * (4 * GAP), 255, 1)
    imsave(path, picture)


def reconstructions(images: np.ndarray, decoded: np.ndarray, path: str | Path) -> None:
    """Write rows of ten images [N, H, W], N a multiple of 10, each row above its reconstructions."""
    shape = images.shape[1:]
    pairs = np.stack([images.reshape(-1, 10, *shape), decoded.reshape(-1, 10, *shape)], 1)
    grid(pairs.reshape(-1, *shape), path, columns=10)


def codes(
    z: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    path: str | Path,
    prior_std: float | None = None,
    outlines: Sequence[np.ndarray] = (),
) -> None:
    """Write a scatter plot of codes z [N, 2] coloured by label [N].

    Args:
        prior_std: of a Gaussian prior, whose 1, 2 and 3 standard deviations are drawn as circles.
        outlines: curves [P, 2] to draw for another prior, see ellipses().
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle

    figure = _canvas(6, 5.4)
    axes = figure.add_subplot()
    labels = np.asarray(labels)
    names, index = np.unique(labels, return_inverse=True)
    places = names if 0 <= names.min() and names.max() < 20 else np.arange(len(names))  # a label keeps its colour
    if places.max() < 20:
        colours = colormaps["tab10" if places.max() < 10 else "tab20"](places)
    else:
        colours = colormaps["turbo"](np.linspace(0, 1, len(names)))
    size = min(16, max(4, 4000 / len(labels)))
    axes.scatter(*np.asarray(z).T, c=colours[index], s=size, linewidths=0)
    for k in (1, 2, 3) if prior_std else ():
        axes.add_patch(Circle((0, 0), k * prior_std, fill=False, color="0.6", linewidth=0.8, linestyle="--"))
    for curve in outlines:
        axes.plot(*np.asarray(curve).T, color="0.2", linewidth=0.8, linestyle="--")
    axes.set_aspect("equal")
    if prior_std:
        axes.set_title("dashed: 1, 2, 3 standard deviations of the prior", fontsize="small")
    elif len(outlines):
        axes.set_title("dashed: the prior", fontsize="small")
    axes.set_xlabel("z[0]")
    axes.set_ylabel("z[1]")
    dots = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=str(n))
        for colour, n in zip(colours, names, strict=True)
    ]
    figure.legend(handles=dots, title="label", loc="outside right center", ncols=-(-len(names) // 20), frameon=False)
    figure.draw_without_rendering()  # the layout of a first drawing does not know the final ticks
    figure.savefig(path)


def ellipses(mean: np.ndarray, axes: np.ndarray, stds: Sequence[float] = (2,)) -> list[np.ndarray]:
    """Curves [73, 2] around a 2-D Gaussian, so many standard deviations out. mean [2], axes [2, 2]: priors.petal()."""
    t = np.linspace(0, 2 * np.pi, 73)
    circle = np.stack([np.cos(t), np.sin(t)], 1)
    return [np.asarray(mean) + k * circle @ np.asarray(axes) for k in stds]


def percentiles(n: int, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The codes z [n * n, 2] that share a 2-D Gaussian's mass evenly: on each of its axes the quantiles at
    (k + 1/2) / n. In reading order: the first axis grows to the right, the second upwards.

    Args:
        mean: [2].
        axes: [2, 2], rows as long as the standard deviation along them, from priors.petal(); std * np.eye(2) for
            N(0, std²).
    """
    quantiles = np.array([NormalDist().inv_cdf((k + 0.5) / n) for k in range(n)])
    along = np.stack([np.tile(quantiles, n), np.repeat(quantiles[::-1], n)], 1)
    return np.asarray(mean) + along @ np.asarray(axes)


def manifold(
    model: Model, path: str | Path, n: int = 20, mean: Any = (0, 0), axes: Any = None, labels: Any = None
) -> None:
    """Write n x n images decoded from the percentiles of a 2-D Gaussian prior.

    Args:
        mean, axes: as in percentiles(); axes None: the N(0, prior_std²) of the model's config.
        labels: one class for all, where the decoder takes labels.

    Raises:
        ValueError: as Model.decode, so if the code is not 2-D.
    """
    axes = model.config.prior_std * np.eye(2) if axes is None else axes
    z = percentiles(n, mean, axes)
    grid(model.decode(z, None if labels is None else np.full(n * n, labels)), path, columns=n)


def style_content(model: Model, z: np.ndarray, path: str | Path) -> None:
    """Write a row for every style z [N, style_dim], decoded with each label in turn.

    Raises:
        ValueError: as Model.decode, so if the decoder takes no labels.
    """
    z, k = np.asarray(z), max(1, model.n_classes)
    labels = np.tile(np.arange(k), len(z))
    grid(model.decode(np.repeat(z, k, 0), labels), path, columns=k)


def cluster_heads(model: Model, x: Any, path: str | Path, n: int = 16, seed: int | None = 0) -> None:
    """Write a row for every cluster: its head, decoded from z = 0, a white bar, and n of the images assigned to it.

    Args:
        x: test images [N, ...], uint8 or float in [0, 1].
        seed: draws the images, as in the paper; None: those with the highest q(y|x), in order. Places stay grey where a
            cluster has fewer.

    Raises:
        ValueError: as Model.predict_proba.
    """
    q = np.asarray(model.predict_proba(x))
    k = q.shape[1]
    heads = model.decode(np.zeros((k, model.config.style_dim)), np.arange(k))
    rows = np.full((k, 1 + n, *model.shape), EMPTY, np.float32)
    rows[:, 0] = heads
    images, assigned = _unit(x).reshape(-1, *model.shape), q.argmax(1)
    rng = None if seed is None else np.random.default_rng(seed)
    for cluster in range(k):
        members = np.flatnonzero(assigned == cluster)
        order = np.argsort(-q[members, cluster], kind="stable") if rng is None else rng.permutation(len(members))
        shown = members[order[:n]]
        rows[cluster, 1 : 1 + len(shown)] = images[shown]
    grid(rows.reshape(-1, *model.shape), path, columns=1 + n, divider=1)


def neighbours(samples: np.ndarray, train: Any, path: str | Path, columns: int = 9) -> None:
    """Write samples [N, ...], N a multiple of `columns`, in rows; after a white bar, each row ends with the training
    image nearest to its last sample.

    Args:
        train: [M, ...], uint8 or float in [0, 1], of the samples' size.

    Raises:
        ValueError: another number of samples, or another size.
    """
    samples = np.asarray(samples)
    if len(samples) % columns or not len(samples):
        raise ValueError(f"{len(samples)} samples: expected a multiple of columns={columns}")
    rows = samples.reshape(-1, columns, *samples.shape[1:])
    index = nearest(rows[:, -1], train)
    found = _unit(train[index]).reshape(-1, 1, *samples.shape[1:])
    grid(np.concatenate([rows, found], 1).reshape(-1, *samples.shape[1:]), path, columns + 1, divider=columns)


def nearest(queries: Any, data: Any) -> np.ndarray:
    """Index int64 [N] of the row of data [M, ...] at the least Euclidean distance from each of queries [N, ...], the
    first of equals. Exact: float64 sums of squared differences, some thousand rows at a time.

    Args:
        queries, data: uint8 (scaled to [0, 1]) or float, NumPy or torch.

    Raises:
        ValueError: no data, or examples of another size.
    """
    q = torch.from_numpy(_unit(queries)).flatten(1).double()
    if not len(data) or data[0].reshape(-1).shape[0] != q.shape[1]:
        raise ValueError(f"data of shape {tuple(data.shape)}: expected examples of {q.shape[1]} values")
    best, index = torch.full((len(q),), torch.inf, dtype=torch.float64), torch.zeros(len(q), dtype=torch.int64)
    for start in range(0, len(data), BLOCK):
        block = torch.from_numpy(_unit(data[start : start + BLOCK])).flatten(1).double()
        distance, row = torch.cdist(q, block, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        closer = distance < best
        best, index = torch.where(closer, distance, best), torch.where(closer, start + row, index)
    return index.numpy()


def circle_map(heads: np.ndarray, radius: float = 10.0) -> np.ndarray:
    """The linear map M [D, 2] that sends cluster heads, the rows of W_C [K, D], to K points evenly spaced on a circle:
    heads @ M are those points, and z @ M draws a representation z [N, D] in the plane. Of all such maps the smallest.

    Raises:
        ValueError: the heads are linearly dependent, so not every such circle can be reached.
    """
    heads = np.asarray(heads, np.float64)
    k = len(heads)
    if np.linalg.matrix_rank(heads) < k:
        raise ValueError(f"heads of shape {heads.shape}: expected {k} linearly independent rows")
    angle = 2 * np.pi * np.arange(k) / k
    return np.linalg.pinv(heads) @ (radius * np.stack([np.cos(angle), np.sin(angle)], 1))


def _unit(x: Any) -> np.ndarray:
    """x as NumPy floats, bytes scaled to [0, 1]."""
    x = x.cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    return x / np.float32(255) if x.dtype == np.uint8 else x

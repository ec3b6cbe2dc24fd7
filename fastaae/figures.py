"""Pictures of a trained model. matplotlib draws them without a display."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from .checkpoint import write_atomic
from .config import Config
from .data import Data, from_arrays, span_warning
from .data.arrays import array, flat, tensor
from .engine import priors
from .files import brief, expanded, warn_caller
from .model import Model
from .scalars import integer

GAP = 2
BLOCK = 4096  # rows of a search for neighbours that are float64 at a time
EMPTY = 128 / 255  # of a place without an image: the grey of the lines
SHOWN = 100  # components of a prior, clusters or labels at most, the first: their number may be all that a file holds


def draw(model: Model, data: Any, folder: str | Path, seed: int = 0) -> dict[Path, str]:
    """Write the paper's pictures that fit a model into a folder, made if it is not there. Without the function of a
    prior "custom" there are no samples. Warns of pictures that its shapes do not allow, and writes the others.

    Args:
        data: what the model was trained on, as of train(). Shown are test images, or else validation or training ones.
        seed: of the samples, and of the images beside cluster heads.

    Returns:
        What each file shows, by its path.

    Raises:
        ValueError: a seed below 0. OSError: a file could not be written.
    """
    model.stream(1, seed)  # which checks the seed
    folder, contents, failed = expanded(folder), {}, []
    data = from_arrays(data, scale=model.config.scale)
    for name, what, write in _pictures(model, data, seed):
        if model.table and name not in ("codes", "representations"):
            continue  # there are no images to show
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write(folder / f"{name}.png")
            contents[folder / f"{name}.png"] = what
        except ValueError as error:
            failed.append(f"{name} ({error})")
    if failed:
        warn_caller(f"not drawn: {'; '.join(failed)}")
    return contents


def _pictures(model: Model, data: Data, seed: int) -> Iterator[tuple[str, str, Callable[[Path], None]]]:
    """Name, content and writer of each picture that fits the model."""
    cfg = model.config
    names = {"test": "test", "valid": "validation", "train": "training"}
    split, part = next((what, part) for part, what in names.items() if data.parts[part] is not None)
    tensor, y = getattr(data, f"x_{part}"), data.labels[part]
    x = flat(split, tensor.reshape(-1, *data.shape), model.shape).reshape(-1, *model.shape).numpy()

    def scatter(name: str, z: Callable[[], np.ndarray], curves: Sequence[np.ndarray], title: str):
        coloured = "" if y is None else ", coloured by label"
        what = f"{name} of {split} images{coloured}" + (f"; {title}" if title else "")
        return name, what, lambda path: codes(z(), y, path, curves, title)

    if cfg.prior != "custom" or model.prior is not None:
        what = "samples; last in a row, the training image nearest to the sample before it"
        yield "neighbours", what, lambda path: neighbours(model.sample(90, seed), data.x_train, path)
    if model.encoder is not None and cfg.task != "supervised":
        first = x[: min(40, len(x) // 10 * 10 or len(x))]
        what = f"{split} images, each above its reconstruction"
        yield "reconstructions", what, lambda path: reconstructions(first, model.reconstruct(first), path)
    if model.encoder is not None and cfg.style_dim == 2 and not model.label_head:
        yield scatter("codes", lambda: model.encode(x), *outlines(cfg))
    if cfg.style_dim == 2 and not model.n_classes and (found := spread(cfg)):
        yield "manifold", f"images decoded from {found[1]}", partial(manifold, model, found[0])
    if cfg.task in ("supervised", "semi_supervised"):
        what = f"styles of {split} images, one a row, decoded with every label, one a column"
        yield "style_content", what, lambda path: style_content(model, model.encode(x[:10]), path)
    if cfg.n_clusters:
        what = f"a cluster a row, first its head, then {split} images assigned to it"
        yield "cluster_heads", what, partial(cluster_heads, model, x, seed=seed)
    if model.heads is not None and cfg.style_dim == 2:
        yield scatter("representations", lambda: model.encode(x), (), "")
    elif (heads := model.heads) is not None and model.n_classes <= cfg.style_dim:
        mapped = "mapped so that heads lie on a circle"
        yield scatter("representations", lambda: model.encode(x) @ circle_map(heads.weight[0]), (), mapped)


def grid(images: ArrayLike, path: str | Path, columns: int | None = None, dividers: Sequence[int] = ()) -> None:
    """Write images [N, H, W], [N, H, W, C], [N, C, H, W] (C: 1 or 3) or flat [N, D], bytes, booleans or floats in
    [0, 1], as one picture in rows of `columns` (None: about square), with a grey line of GAP pixels after each. Values
    become squares of pixels, as large as keep an image within 75 x 75, at least one. A white bar stands behind as many
    columns as each of `dividers` says.

    Raises:
        ValueError: no images, or of another shape, or other values. OSError: the file could not be written.
    """
    from matplotlib.image import imsave

    images = _unit(images)
    shape = images.shape
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        images = images.reshape(len(images), side if side**2 == images.shape[1] else 1, -1, 1)
    elif images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[3] not in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise ValueError(f"images of shape {shape}: expected [N, H, W], [N, H, W, 3], [N, 3, H, W] or [N, D]")
    columns = int(np.ceil(np.sqrt(len(images)))) if columns is None else integer("columns", columns, 1)
    dividers = [integer("dividers", k, 0, columns) for k in dividers]
    rows = -(-len(images) // columns)
    height, width, channels = images.shape[1:]
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[: len(images)] = np.rint(images.clip(0, 1) * 255)
    scale = max(1, 75 // max(height, width))
    tiles = padded.repeat(scale, 1).repeat(scale, 2).repeat(3 if channels == 1 else 1, 3)
    tiles = np.pad(tiles, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=128)
    height, width = tiles.shape[1:3]
    picture = tiles.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    picture = np.insert(picture, [k * width for k in dividers for _ in range(4 * GAP)], 255, 1)
    _write(path, partial(imsave, arr=picture))


def _write(path: str | Path, save: Callable[..., None]) -> None:
    """Replace what is at path, be it a link, by the picture that save(file, format=...) makes, or leave it as it is."""
    path, picture = expanded(path), io.BytesIO()
    try:
        save(picture, format=path.suffix[1:] or "png")
    except (KeyError, ValueError) as error:
        why = f"no picture of this kind ({brief(error)})"
        raise ValueError(f"{path}: {why}; give it a name that ends in .png") from None
    write_atomic(path, picture.getvalue())


def reconstructions(images: ArrayLike, decoded: ArrayLike, path: str | Path) -> None:
    """Write rows of ten images [N, H, W], each row above its reconstructions. N: a multiple of 10, or less than 10."""
    images, decoded = _unit(images), _unit(decoded)
    if images.shape != decoded.shape:
        raise ValueError(f"decoded of shape {decoded.shape}, expected that of the images, {images.shape}")
    shape, columns = images.shape[1:], min(10, len(images))
    rows = np.stack([images.reshape(-1, columns, *shape), decoded.reshape(-1, columns, *shape)], 1)
    grid(rows.reshape(-1, *shape), path, columns)


def codes(
    z: ArrayLike, labels: ArrayLike | None, path: str | Path, curves: Sequence[np.ndarray] = (), title: str = ""
) -> None:
    """Write a scatter plot of codes z [N, 2], coloured by label [N], number or name, under dashed outlines() [P, 2]."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(6, 5.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    points = _floats(z)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"codes of shape {points.shape}: expected [N, 2]")
    given = np.zeros(len(points), int) if labels is None else labels
    given = array("labels", given) if isinstance(given, torch.Tensor | np.ma.MaskedArray) else np.asarray(given)
    if given.size != len(points):
        raise ValueError(f"labels of shape {given.shape}: expected one for each of {len(points)} codes")
    names, index = np.unique((given.astype(str) if given.dtype == object else given).ravel(), return_inverse=True)
    kept = names.dtype.kind in "iu" and names[0] >= 0 and names[-1] < 20  # a label keeps its colour
    places = names if kept else np.arange(len(names))
    if places.max() < 20:
        colours = colormaps["tab10" if places.max() < 10 else "tab20"](places)
    else:
        colours = colormaps["turbo"](np.linspace(0, 1, len(names)))
    axes.scatter(*points.T, c=colours[index], s=min(16, max(4, 4000 / len(points))), linewidths=0)
    for curve in curves:
        axes.plot(*_floats(curve).T, color="0.2", linewidth=0.8, linestyle="--")
    axes.set_aspect("equal")
    axes.set_title(title, fontsize="small")
    dot = partial(Line2D, [], [], marker="o", linestyle="")
    dots = [dot(color=c, label=str(n).replace("$", r"\$")) for c, n in zip(colours, names, strict=True)]
    if labels is not None and len(names) <= SHOWN:  # more have no room
        columns = -(-len(names) // 20)
        figure.legend(handles=dots, title="label", loc="outside right center", ncols=columns, frameon=False)
    figure.draw_without_rendering()  # the layout of a first drawing does not know the final ticks
    _write(path, figure.savefig)


def outlines(cfg: Config) -> tuple[list[np.ndarray], str]:
    """Curves [P, 2] that show a config's 2-D prior, and a title that says what they are. None of a custom prior."""
    std = cfg.prior_std
    if cfg.prior == "gaussian":
        return ellipses((0, 0), std * np.eye(2), (1, 2, 3)), "dashed: 1, 2 and 3 standard deviations of the prior"
    if cfg.prior == "uniform":
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
        return [math.sqrt(3) * std * corners], "dashed: the edge of the prior"
    if cfg.prior == "mixture":
        curves = [curve for mean, axes in _petals(cfg, SHOWN) for curve in ellipses(mean, axes)]
        which = "each Gaussian of the prior" if len(curves) == cfg.components else f"the first {SHOWN} Gaussians"
        return curves, f"dashed: 2 standard deviations of {which}"
    if cfg.prior == "swiss_roll":
        axis = priors.roll(torch.from_numpy(np.linspace(0, 1, 400)), scale=std)
        return [axis.numpy()], "dashed: the axis of the prior"
    return [], ""


def spread(cfg: Config) -> tuple[np.ndarray, str] | None:
    """Codes z [panels, rows, columns, 2] that share the mass of a config's 2-D prior evenly, as figures 2e, 4b and 4d
    show it, and what they are. None of other priors."""
    std = cfg.prior_std
    if cfg.prior == "gaussian":
        return percentiles(20, (0, 0), std * np.eye(2))[None], "percentiles of the prior, along both axes"
    if cfg.prior == "mixture":
        panels = np.stack([percentiles(10, mean, axes) for mean, axes in _petals(cfg, 3)])
        what = f"percentiles of the prior's first {len(panels)} Gaussians, along their own axes, outwards to the right"
        return panels, what
    if cfg.prior == "swiss_roll":
        n = 20 * min(cfg.components, SHOWN)
        z = priors.roll(torch.from_numpy(np.arange(n) + 0.5) / n, scale=std).numpy()
        return z.reshape(1, -1, 20, 2), "the prior's axis, in reading order from the inside out"
    return None


def _petals(cfg: Config, most: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [priors.petal(k, components=cfg.components, scale=cfg.prior_std) for k in range(min(cfg.components, most))]


def ellipses(mean: ArrayLike, axes: ArrayLike, stds: Sequence[float] = (2,)) -> list[np.ndarray]:
    """Curves [73, 2] around a 2-D Gaussian, so many standard deviations out. mean [2], axes [2, 2]: priors.petal()."""
    t = np.linspace(0, 2 * np.pi, 73)
    circle = np.stack([np.cos(t), np.sin(t)], 1)
    return [np.asarray(mean) + k * circle @ np.asarray(axes) for k in stds]


def percentiles(n: int, mean: ArrayLike, axes: ArrayLike) -> np.ndarray:
    """The codes z [n, n, 2] that share a 2-D Gaussian's mass evenly, on each of its axes the quantiles at
    (k + 1/2) / n, in the places of a picture: the first axis grows to the right, the second upwards. Mean [2] and axes
    [2, 2] are as of priors.petal(); axes std * np.eye(2) stand for N(0, std²)."""
    quantiles = np.array([NormalDist().inv_cdf((k + 0.5) / n) for k in range(n)])
    return np.asarray(mean) + np.stack(np.meshgrid(quantiles, quantiles[::-1]), -1) @ np.asarray(axes)


def manifold(model: Model, panels: ArrayLike, path: str | Path) -> None:
    """Write the images decoded from codes z [panels, rows, columns, 2], panels side by side with a white bar between.
    Raises as Model.decode, so if the code is not 2-D, or the decoder takes labels."""
    panels = _floats(panels)
    if panels.ndim != 4:
        raise ValueError(f"panels of shape {panels.shape}: expected [panels, rows, columns, 2]")
    count, rows, columns, _ = panels.shape
    images = model.decode(panels.swapaxes(0, 1).reshape(-1, 2))
    grid(images, path, count * columns, dividers=range(columns, count * columns, columns))


def style_content(model: Model, z: ArrayLike, path: str | Path) -> None:
    """Write a row for every style z [N, style_dim], decoded with each label in turn, of more than SHOWN the first.
    Raises as Model.decode, so if the decoder takes no labels."""
    z, k = _floats(z), min(max(1, model.n_classes), SHOWN)
    grid(model.decode(np.repeat(z, k, 0), np.tile(np.eye(k, model.n_classes), (len(z), 1))), path, columns=k)


def cluster_heads(model: Model, x: Any, path: str | Path, n: int = 16, seed: int | None = 0) -> None:
    """Write a row for every cluster, of more than SHOWN the first: its head, decoded from z = 0, a white bar, and n of
    the images assigned to it. Raises as Model.predict_proba.

    Args:
        x: test images [N, ...], uint8 or float in [0, 1].
        seed: draws the images, as in the paper; None: those with the highest q(y|x), in order. Other places stay grey.
    """
    x, n = array("x", x), integer("n", n, 0)
    assigned, images = model.predict_proba(x).argmax(1), _unit(x).reshape(-1, *model.shape)
    k, rng = min(model.n_classes, SHOWN), np.random.default_rng(seed)
    rows = np.full((k, 1 + n, *model.shape), EMPTY, np.float32)
    rows[:, 0] = model.decode(np.zeros((k, model.config.style_dim)), np.eye(k, model.n_classes))
    sure = -model.log_q(x) if seed is None else None
    for cluster in range(k):
        members = np.flatnonzero(assigned == cluster)
        order = rng.permutation(len(members)) if sure is None else np.argsort(sure[members, cluster], kind="stable")
        chosen = members[order[:n]]
        rows[cluster, 1 : 1 + len(chosen)] = images[chosen]
    grid(rows.reshape(-1, *model.shape), path, 1 + n, dividers=(1,))


def neighbours(samples: ArrayLike, train: Any, path: str | Path, columns: int = 9) -> None:
    """Write samples [N, ...], N a multiple of `columns`, in rows; after a white bar, each row ends with the nearest()
    of the training images [M, ...] to its last sample. Samples are shown, and compared, clipped to [0, 1].
    Raises ValueError for another number of samples, or another size."""
    samples, train = _unit(samples).clip(0, 1), array("train", train, lists=True)
    if len(samples) % integer("columns", columns, 1) or not len(samples):
        raise ValueError(f"{len(samples)} samples: expected a multiple of columns={columns}")
    rows = samples.reshape(-1, columns, *samples.shape[1:])
    found = _unit(train[nearest(rows[:, -1], train)]).reshape(-1, 1, *samples.shape[1:])
    grid(np.concatenate([rows, found], 1).reshape(-1, *samples.shape[1:]), path, columns + 1, dividers=(columns,))


def nearest(queries: Any, data: Any) -> np.ndarray:
    """Index int64 [N] of the row of data [M, ...] at the least Euclidean distance from each of queries [N, ...], the
    first of equals. Exact: float64 sums of squared differences, some thousand rows at a time.

    Args:
        queries, data: uint8 (scaled to [0, 1]) or float, NumPy or torch.

    Raises:
        ValueError: no data, or examples of another shape.
    """
    q, rows = torch.from_numpy(_unit(queries)), tensor("data", data)
    if not rows.numel():
        raise ValueError(f"data of shape {tuple(rows.shape)}: expected at least one example")
    rows, q = flat("data", rows, tuple(q.shape[1:])).cpu(), q.flatten(1).double()
    best, index = q.new_full((len(q),), torch.inf), torch.zeros(len(q), dtype=torch.int64, device="cpu")
    for start in range(0, len(rows), BLOCK):
        block = torch.from_numpy(_unit(rows[start : start + BLOCK])).double()
        distance, row = torch.cdist(q, block, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        closer = distance < best
        best, index = torch.where(closer, distance, best), torch.where(closer, start + row, index)
    return index.numpy()


def circle_map(heads: ArrayLike, radius: float = 10.0) -> np.ndarray:
    """The linear map M [D, 2] that sends cluster heads, the rows of W_C [K, D], to K points evenly spaced on a circle:
    heads @ M are those points, and z @ M draws a representation z [N, D] in the plane. Of all such maps the smallest.

    Raises:
        ValueError: the heads are linearly dependent, so not every such circle can be reached.
    """
    heads = _floats(heads).astype(np.float64)
    k = len(heads)
    if np.linalg.matrix_rank(heads) < k:
        raise ValueError(f"heads of shape {heads.shape}: expected {k} linearly independent rows")
    angle = 2 * np.pi * np.arange(k) / k
    return np.linalg.pinv(heads) @ (radius * np.stack([np.cos(angle), np.sin(angle)], 1))


def _floats(x: Any, kinds: str = "biuf") -> np.ndarray:
    """Numbers as finite floats in NumPy."""
    x = array("the array", x, lists=True)
    if not x.ndim or x.dtype.kind not in kinds or not np.isfinite(x).all():
        raise ValueError(f"got {x.dtype} of shape {x.shape}, expected bytes or finite floats [N, ...]")
    return np.array(x, np.float32 if np.can_cast(x.dtype, np.float32) else np.float64, order="C")


def _unit(x: Any) -> np.ndarray:
    """Images as floats in NumPy, bytes scaled to [0, 1]."""
    x = array("images", x, lists=True)
    if x.size and (odd := span_warning("images", x.min(), x.max(), x.dtype)):
        warn_caller(odd)
    return x / np.float32(255) if x.dtype == np.uint8 else _floats(x, "bf")

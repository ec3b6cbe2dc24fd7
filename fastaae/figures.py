"""Pictures of a trained model, and of its training. plots.py says how they look."""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from . import plots
from .checkpoint import write_atomic
from .config import Config
from .data import Data, from_arrays, span_warning
from .data.arrays import array, flat, tensor
from .directory import AFTER_EPOCHS
from .engine import priors
from .files import brief, expanded, suggestion, warn_caller
from .model import Model
from .plots import BARE, SHOWN, Panel, Words
from .scalars import integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 4096  # rows of a search for neighbours that are float64 at a time
EMPTY = 128 / 255  # of a place without an image: the grey of the lines
# SHOWN also is how many components of a prior, clusters or labels are drawn: a small file may name any number.
CURVES = {  # what lines of a history with such names have in common, and its unit
    "discriminator": "loss, nats", "generator": "loss, nats", "classification": "loss, nats",
    "error": "validation\nerror, %", "told_apart": "told apart, %", "dead_units": "share, %", "label_kept": "share, %",
    "code_": "codes, prior's std = 1",
}  # fmt: skip
FEATURES, ROWS = 6, 10_000  # of a table that is shown
Made = tuple[dict[str, Any], Callable[[], "Figure"]]  # the numbers behind a picture, and what draws it


def draw(
    model: Model, data: Any, folder: str | Path, seed: int = 0, formats: Sequence[str] = ("png",), arrays: bool = False,
    history: Mapping[str, np.ndarray] | None = None,
) -> dict[Path, str]:  # fmt: skip
    """Write the paper's pictures that fit a model into a folder, made if it is not there. Without the function of a
    prior "custom" there are no samples. Warns of pictures that its shapes do not allow, and writes the others.

    Args:
        data: what the model was trained on, as of train(). Shown are test images, or else validation or training ones.
        seed: of the samples, and of the images beside cluster heads.
        formats: of each picture, as matplotlib writes them: "png", "pdf", "svg" and others.
        arrays: whether the numbers behind each picture are written, too, as NAME.npz.
        history: of the run, for curves().

    Returns:
        What each file shows, by its path.

    Raises:
        ValueError: a seed below 0, another format. OSError: a file could not be written.
    """
    model.stream(1, seed)  # which checks the seed
    formats, folder, contents, failed = _formats(formats), expanded(folder), {}, []
    data = from_arrays(data, scale=model.config.scale)
    for name, what, make in _pictures(model, data, seed, history or {}):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            numbers, figure = make()
            for end in formats:
                plots.write(folder / f"{name}.{end}", figure)
                contents[folder / f"{name}.{end}"] = what
            if arrays:
                np.savez(file := io.BytesIO(), **numbers)
                write_atomic(folder / f"{name}.npz", file.getvalue())
                contents[folder / f"{name}.npz"] = f"the numbers behind it: {', '.join(numbers)}"
        except ValueError as error:
            failed.append(f"{name} ({error})")
    if failed:
        warn_caller(f"not drawn: {'; '.join(failed)}")
    return contents


def _formats(formats: Sequence[str]) -> list[str]:
    """Formats, checked, each once."""
    from matplotlib.backend_bases import FigureCanvasBase

    known, found = sorted(FigureCanvasBase.filetypes), [formats] if isinstance(formats, str) else list(formats)
    odd = next((f for f in found if f not in known), None)
    if odd is not None or not found:
        raise ValueError(
            f"formats={brief(formats)}: expected some of {', '.join(known)}{suggestion(str(odd or '').lower(), known)}"
        )
    return list(dict.fromkeys(found))


def _pictures(
    model: Model, data: Data, seed: int, history: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, str, Callable[[], Made]]]:
    """Name, content and maker of each picture that fits the model."""
    cfg = model.config
    names = {"test": "test", "valid": "validation", "train": "training"}
    split, part = next((what, part) for part, what in names.items() if data.parts[part] is not None)
    tensor, y = getattr(data, f"x_{part}"), data.labels[part]
    x = flat(split, tensor.reshape(-1, *data.shape), model.shape).reshape(-1, *model.shape).numpy()
    sampled, encodes = cfg.prior != "custom" or model.prior is not None, model.encoder is not None

    def scatter(name: str, mapped: str = "", map_of: Callable[[], np.ndarray] | None = None):
        curves, outline = ([], "") if model.heads or (cfg.style_dim > 2 and cfg.prior != "gaussian") else outlines(cfg)
        what = f"{name} of {split} {'rows' if model.table else 'images'}" + ("" if y is None else ", coloured by label")
        words = [what, *[mapped] * bool(mapped), *[f"dashed: {outline}"] * bool(outline)]

        def make() -> Made:
            z = model.encode(x)
            z, axis = (z @ map_of(), "mapped axis") if map_of else (z, "")
            return _codes(z, y, curves, outline, data.classes, axis)

        return name, "; ".join(words), make

    if sampled and model.table:
        n, columns = min(len(x), ROWS), model.known.get("columns")
        what = f"the first features of {split} rows, and of as many samples"
        yield "marginals", what, lambda: _marginals(x[:n], model.sample(n, seed), columns, split)
    elif sampled:
        what = "samples; last in a row, the training image nearest to the sample before it"
        yield "neighbours", what, lambda: _neighbours(model.sample(90, seed), data.x_train, 9)
    if encodes and cfg.task != "supervised" and not model.table:
        first = x[: min(40, len(x) // 10 * 10 or len(x))]
        what = f"{split} images, each above its reconstruction"
        yield "reconstructions", what, lambda: _reconstructions(first, model.reconstruct(first))
    axes = "along their first two principal axes" if cfg.style_dim > 2 else ""
    if encodes and cfg.style_dim >= 2 and not model.heads:
        yield scatter("codes", axes)
    if cfg.style_dim == 2 and not model.n_classes and not model.table and (found := spread(cfg)):
        yield "manifold", f"images decoded from {found[1]}", partial(_manifold, model, found[0], _words(cfg, data))
    if cfg.task in ("supervised", "semi_supervised") and not model.table:
        what = f"styles of {split} images, one a row, decoded with every label, one a column"
        yield "style_content", what, lambda: _style_content(model, model.encode(x[:10]))
    if cfg.n_clusters and not model.table:
        what = f"a cluster a row, first its head, then {split} images assigned to it"
        yield "cluster_heads", what, lambda: _cluster_heads(model, x, 16, seed)
    if (heads := model.heads) is not None and model.n_classes <= cfg.style_dim > 2:
        mapped = "mapped so that heads lie on a circle"
        yield scatter("representations", mapped, lambda: circle_map(heads.weight[0]))
    elif heads is not None and cfg.style_dim >= 2:
        yield scatter("representations", axes)
    if any(np.size(values) for values in history.values()):
        yield "curves", "losses, validation metrics and how the game went", lambda: _curves(history, cfg)


def _words(cfg: Config, data: Data) -> Words:
    """What stands around a manifold() of the codes of spread()."""
    kind = "label" if cfg.label_prior else "component"
    parts = data.classes if cfg.label_prior else range(min(cfg.components, SHOWN))
    if cfg.prior == "mixture":
        return Words(panels=[f"{kind} {name}" for name in parts])
    return Words(beside=[*map(str, parts)], left=kind) if cfg.prior == "swiss_roll" else Words(left="z₂", below="z₁")


def grid(images: ArrayLike, path: str | Path, columns: int | None = None, dividers: Sequence[int] = ()) -> None:
    """Write images [N, H, W], [N, H, W, C], [N, C, H, W] (C: 1 or 3) or flat [N, D], bytes, booleans or floats in
    [0, 1], as one picture in rows of `columns` (None: about square), with grey lines of GAP pixels around and between
    them. Values become squares of pixels, as large as keep an image within 75 x 75, at least one. A white bar between
    two such lines stands behind as many columns as each of `dividers` says.

    Raises:
        ValueError: no images, or of another shape, or other values. OSError: the file could not be written.
    """
    from matplotlib.image import imsave

    tiles = plots.tiles(_unit(images))
    columns = math.ceil(math.sqrt(len(tiles))) if columns is None else integer("columns", columns, 1)
    dividers = [integer("dividers", k, 0, columns) for k in dividers]
    picture = plots.mosaic(tiles, columns, dividers, max(1, 75 // max(tiles.shape[1:3])))
    plots.save(path, partial(imsave, arr=picture))


def reconstructions(images: ArrayLike, decoded: ArrayLike, path: str | Path) -> None:
    """Write rows of ten images [N, H, W], each row above its reconstructions. N: a multiple of 10, or less than 10."""
    plots.write(path, _reconstructions(images, decoded)[1])


def _reconstructions(images: ArrayLike, decoded: ArrayLike) -> Made:
    images, decoded = _unit(images), _unit(decoded)
    if images.shape != decoded.shape:
        raise ValueError(f"decoded of shape {decoded.shape}, expected that of the images, {images.shape}")
    shape, columns = images.shape[1:], min(10, len(images))
    rows = np.stack([images.reshape(-1, columns, *shape), decoded.reshape(-1, columns, *shape)], 1)
    words = Words(beside=["original", "reconstruction"] * len(rows))
    figure = partial(plots.image_grid, rows.reshape(-1, *shape), columns, words=words)
    return {"images": images, "reconstructions": decoded}, figure


def codes(
    z: ArrayLike, labels: ArrayLike | None, path: str | Path, curves: Sequence[np.ndarray] = (), outline: str = "",
    classes: Sequence[Any] | None = None, axis: str = "",
) -> None:  # fmt: skip
    """Write a scatter plot of codes z [N, D], of more than two numbers along their first two principal axes.

    Args:
        labels: [N], numbers or names, which colour the dots. None: one colour.
        curves: [P, 2], as of outlines(), drawn dashed, and what they are, for the legend.
        classes: what labels 0, 1, ... are called; -1 is of codes without a label.
        axis: what both axes are called before their number, where z is no code.

    Raises:
        ValueError: codes or labels of another shape. OSError: the file could not be written.
    """
    plots.write(path, _codes(z, labels, curves, outline, classes, axis)[1])


def _codes(
    z: ArrayLike, labels: ArrayLike | None, curves: Sequence[np.ndarray], outline: str,
    classes: Sequence[Any] | None = None, axis: str = "",
) -> Made:  # fmt: skip
    from matplotlib import colormaps

    z = _floats(z)
    if z.ndim != 2 or z.shape[1] < 2 or not len(z):
        raise ValueError(f"codes of shape {z.shape}: expected [N, 2], or more than two numbers in each")
    directions, shares = principal_axes(z) if z.shape[1] > 2 else (np.eye(2, dtype=z.dtype), None)
    names = [f"{axis} 1", f"{axis} 2"] if axis else ["z₁", "z₂"]
    if shares is not None:
        names = [f"principal axis {k} ({100 * share:.0f} % of variance)" for k, share in enumerate(shares, 1)]
    given = np.zeros(len(z), int) if labels is None else labels
    given = array("labels", given) if isinstance(given, torch.Tensor | np.ma.MaskedArray) else np.asarray(given)
    if given.size != len(z):
        raise ValueError(f"labels of shape {given.shape}: expected one for each of {len(z)} codes")
    given = given.astype(str) if given.dtype == object else given
    found, index = np.unique(given.ravel(), return_inverse=True)
    none = np.array([classes is not None and k == -1 for k in found])
    kept = found.dtype.kind in "iu" and found[0] >= -int(none[0]) and found[-1] < 20  # a label keeps its colour
    places = found if kept else np.arange(len(found))
    if places.max() < 20:
        colours = colormaps["tab10" if places.max() < 10 else "tab20"](places)
    else:
        colours = colormaps["turbo"](np.linspace(0, 1, len(found)))
    colours[none] = 0.8, 0.8, 0.8, 1
    kinds = []
    if labels is not None and len(found) <= SHOWN:  # more have no room
        kinds = [n if classes is None else "none" if k else classes[n] for n, k in zip(found, none, strict=True)]
    lines = {f"curve_{k}": _floats(curve) for k, curve in enumerate(curves)}
    numbers = {"codes": z, "axes": directions, **({} if labels is None else {"labels": given}), **lines}
    dots = plots.Dots(z @ directions, index, kinds, colours)
    return numbers, lambda: plots.scatter(dots, [*lines.values()], outline, names)


def principal_axes(z: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal axes of codes z [N, D], columns of float64 [D, 2], and their shares [2] of the variance.
    z @ axes is where they are drawn: of a prior N(0, std² I) these are draws from N(0, std² I), too."""
    z = _floats(z).astype(np.float64)
    variances, vectors = np.linalg.eigh(np.cov(z.T, ddof=0))
    axes = vectors[:, :-3:-1]
    signs = np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    return axes * signs, variances[:-3:-1].clip(0) / (variances.sum() or 1)


def curves(history: Mapping[str, np.ndarray], path: str | Path, config: Config | None = None) -> None:
    """Write a run's losses over steps, and its validation metrics and how the game went over epochs, as in
    Run.history: thick lines are means over replicas, thin lines replicas. Dashed is what an even game comes to: half of
    prior samples and codes are told apart, and codes have the prior's standard deviation.

    Args:
        config: of the run, which says what the unit of its reconstruction loss is.

    Raises:
        ValueError: an empty history. OSError: the file could not be written.
    """
    plots.write(path, _curves(history, config)[1])


def _curves(history: Mapping[str, np.ndarray], config: Config | None) -> Made:
    numbers = {name: np.asarray(values) for name, values in history.items()}
    panels: dict[tuple[str, str], dict[str, np.ndarray]] = {}  # lines by their names, by what they share and by x
    for name, values in numbers.items():
        if name in ("step", "epoch") or not len(values):
            continue
        x, line = "epoch" if name.startswith(AFTER_EPOCHS) else "step", name.replace("_", " ").replace("nmi", "NMI")
        line = line.replace("valid ", "validation\n")
        title = next((v for k, v in CURVES.items() if k in name), line)
        if line.endswith("reconstruction"):
            title = f"{line} loss" + ", nats" * (config is not None and config.reconstruction == "cross_entropy")
        panels.setdefault((title, x), {})[line] = values
    if not panels:
        raise ValueError(f"history of {', '.join(history) or 'nothing'}: expected rows after steps or epochs")
    drawn = []
    for (title, x), columns in panels.items():
        level = 50.0 if title.startswith("told apart") else 1.0 if title.startswith("codes") else None
        if len(columns) == 1 and "," in title:
            title = ", ".join([*columns, title.rpartition(", ")[2]]) if title in CURVES.values() else title
        named = {line.replace("validation\n", ""): values for line, values in columns.items()}
        drawn.append(Panel(numbers[x], named, x, title, level))
    return numbers, partial(plots.lines, drawn)


def _marginals(x: np.ndarray, samples: np.ndarray, columns: Sequence[str] | None, split: str) -> Made:
    """Of a table's rows [N, D] and as many samples, with the names of its columns."""
    n = min(x.shape[1], FEATURES)
    names = (columns or [f"feature {k}" for k in range(n)])[:n]
    data, samples = _floats(x[:, :n]), _floats(samples[:, :n])
    numbers = {"data": data, "samples": samples, "names": np.array(names)}
    return numbers, partial(plots.histograms, data, samples, names, split)


def outlines(cfg: Config) -> tuple[list[np.ndarray], str]:
    """Curves [P, 2] that show a config's 2-D prior, and what they are. None of a custom prior."""
    std = cfg.prior_std
    if cfg.prior == "gaussian":
        return ellipses((0, 0), std * np.eye(2), (1, 2, 3)), "1, 2 and 3 standard deviations of the prior"
    if cfg.prior == "uniform":
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
        return [math.sqrt(3) * std * corners], "the edge of the prior"
    if cfg.prior == "mixture":
        curves = [curve for mean, axes in _petals(cfg, SHOWN) for curve in ellipses(mean, axes)]
        which = "each Gaussian of the prior" if len(curves) == cfg.components else f"the first {SHOWN} Gaussians"
        return curves, f"2 standard deviations of {which}"
    if cfg.prior == "swiss_roll":
        axis = priors.roll(torch.from_numpy(np.linspace(0, 1, 400)), scale=std)
        return [axis.numpy()], "the axis of the prior"
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
    plots.write(path, _manifold(model, panels)[1])


def _manifold(model: Model, panels: ArrayLike, words: Words = BARE) -> Made:
    panels = _floats(panels)
    if panels.ndim != 4:
        raise ValueError(f"panels of shape {panels.shape}: expected [panels, rows, columns, 2]")
    count, rows, columns, _ = panels.shape
    images = model.decode(panels.swapaxes(0, 1).reshape(-1, 2))
    dividers = range(columns, count * columns, columns)
    figure = partial(plots.image_grid, _unit(images), count * columns, dividers, words)
    in_panels = images.reshape(rows, count, columns, *model.shape).swapaxes(0, 1)
    return {"codes": panels, "images": in_panels}, figure


def style_content(model: Model, z: ArrayLike, path: str | Path) -> None:
    """Write a row for every style z [N, style_dim], decoded with each label in turn, of more than SHOWN the first.
    Raises as Model.decode, so if the decoder takes no labels."""
    plots.write(path, _style_content(model, z)[1])


def _style_content(model: Model, z: ArrayLike) -> Made:
    z, k = _floats(z), min(max(1, model.n_classes), SHOWN)
    images = model.decode(np.repeat(z, k, 0), np.tile(np.eye(k, model.n_classes), (len(z), 1)))
    words = Words(over=[*map(str, model.classes[:k])], panels=["label"], left="style")
    numbers = {"styles": z, "labels": np.array(words.over), "images": images.reshape(len(z), k, *model.shape)}
    return numbers, partial(plots.image_grid, _unit(images), k, words=words)


def cluster_heads(model: Model, x: Any, path: str | Path, n: int = 16, seed: int | None = 0) -> None:
    """Write a row for every cluster, of more than SHOWN the first: its head, decoded from z = 0, a white bar, and n of
    the images assigned to it. Raises as Model.predict_proba.

    Args:
        x: test images [N, ...], uint8 or float in [0, 1].
        seed: draws the images, as in the paper; None: those with the highest q(y|x), in order. Other places stay grey.
    """
    plots.write(path, _cluster_heads(model, x, integer("n", n, 0), seed)[1])


def _cluster_heads(model: Model, x: Any, n: int, seed: int | None) -> Made:
    x = array("x", x)
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
    sizes = np.bincount(assigned, minlength=model.n_classes)[:k]
    words = Words(
        (), [f"{j} ({size:,})" for j, size in enumerate(sizes)], ("head", "assigned images"), "cluster (images)"
    )
    figure = partial(plots.image_grid, rows.reshape(-1, *model.shape), 1 + n, (1,), words)
    return {"heads": rows[:, 0], "sizes": sizes, "images": rows[:, 1:]}, figure


def neighbours(samples: ArrayLike, train: Any, path: str | Path, columns: int = 9) -> None:
    """Write samples [N, ...], N a multiple of `columns`, in rows; after a white bar, each row ends with the nearest()
    of the training images [M, ...] to its last sample. Samples are shown, and compared, clipped to [0, 1].
    Raises ValueError for another number of samples, or another size."""
    plots.write(path, _neighbours(samples, train, integer("columns", columns, 1))[1])


def _neighbours(samples: ArrayLike, train: Any, columns: int) -> Made:
    samples, train = _unit(samples).clip(0, 1), array("train", train, lists=True)
    if len(samples) % columns or not len(samples):
        raise ValueError(f"{len(samples)} samples: expected a multiple of columns={columns}")
    rows = samples.reshape(-1, columns, *samples.shape[1:])
    found = _unit(train[nearest(rows[:, -1], train)]).reshape(-1, 1, *samples.shape[1:])
    images = np.concatenate([rows, found], 1).reshape(-1, *samples.shape[1:])
    words = Words(panels=("samples", "nearest"))  # of which the last has the room of one image
    figure = partial(plots.image_grid, images, columns + 1, (columns,), words)
    return {"samples": samples, "nearest": found[:, 0]}, figure


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

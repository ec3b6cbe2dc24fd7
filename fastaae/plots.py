"""How pictures look at the size of a paper's column: images in rows with words beside them, dots, lines, histograms.
matplotlib draws them without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .checkpoint import write_atomic
from .files import brief, expanded, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 2  # pixels of a line between images
SHOWN = 100  # thin lines at most
COLUMN, PAGE, TEXT = 3.3, 6.9, 8  # inches of a paper's column and of its page, points of letters
LINE = TEXT + 2  # points from one line of text to the next
DPI, LARGEST = 300, 30  # pixels per inch, at least; points of an image, at most
LEGEND = {
    "frameon": False,
    "handletextpad": 0.2,
    "labelspacing": 0.25,
    "columnspacing": 0.8,
    "borderaxespad": 0.1,
    "handlelength": 1.2,
}
STYLE = {
    "font.size": TEXT, "axes.labelsize": TEXT, "xtick.labelsize": TEXT, "ytick.labelsize": TEXT, "axes.titlesize": TEXT,
    "legend.fontsize": TEXT, "legend.title_fontsize": TEXT, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "pdf.fonttype": 42, "svg.hashsalt": "fastaae",
}  # fmt: skip


def write(path: str | Path, figure: Callable[[], Figure]) -> None:
    """Draw a figure and write it as the end of the name says, whatever styles a user has set, or raise as save()."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        save(path, figure().savefig)


def save(path: str | Path, picture: Callable[..., None]) -> None:
    """Replace what is at path, be it a link, by the picture that picture(file, format=...) makes, or leave it as it is.
    Raises ValueError: matplotlib writes no such files. OSError: the file could not be written."""
    path, file = expanded(path), io.BytesIO()
    kind = path.suffix[1:] or "png"
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind.lower())  # the same bytes tomorrow
    try:
        picture(file, format=kind, metadata=undated)
    except (KeyError, ValueError) as error:
        why = f"no picture of this kind ({brief(error)})"
        raise ValueError(f"{path}: {why}; give it a name that ends in .png") from None
    write_atomic(path, file.getvalue())


def tiles(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W], [N, H, W, C], [N, C, H, W] (C: 1 or 3) or flat [N, D], floats in [0, 1], as bytes
    [N, H, W, 3]. Raises ValueError: they are none, or of another shape."""
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
    return np.rint(images.clip(0, 1) * 255).astype(np.uint8).repeat(3 if images.shape[3] == 1 else 1, 3)


def mosaic(images: np.ndarray, columns: int, dividers: Sequence[int], scale: int) -> np.ndarray:
    """tiles() as one picture [H, W, 3] in rows of `columns`, each value `scale` pixels wide and high, grey lines of GAP
    around and between them; a white bar of 4 GAP, with such lines on both sides, behind as many columns as each of
    `dividers` says."""
    rows, (height, width) = -(-len(images) // columns), images.shape[1:3]
    padded = np.zeros((rows * columns, height, width, 3), np.uint8)
    padded[: len(images)] = images
    padded = np.pad(padded.repeat(scale, 1).repeat(scale, 2), ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=128)
    height, width = padded.shape[1:3]
    picture = padded.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    picture = np.pad(picture, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=128)
    parts, bar = [], np.full((len(picture), 4 * GAP, 3), 255, np.uint8)
    for first, end in zip([0, *sorted(dividers)], [*sorted(dividers), columns], strict=True):
        parts += [picture[:, first * width : end * width + GAP], bar]
    return np.concatenate(parts[:-1], 1)


def short(name: Any) -> str:
    """A name as text that fits a picture, on one line, no formula."""
    text = printable(name)
    return (text if len(text) <= 24 else f"{text[:23]}…").replace("$", r"\$")


def extent(text: str) -> float:
    """Points that a line of text takes at most."""
    from matplotlib.textpath import TextPath

    return 1.03 * TextPath((0, 0), text, size=TEXT).get_extents().width + 1.3 if text.strip() else 0.0  # with hinting


class Words(NamedTuple):
    """What stands around a grid of images."""

    over: Sequence[str] = ()  # each column
    beside: Sequence[str] = ()  # each row
    panels: Sequence[str] = ()  # the names of what dividers part
    left: str = ""  # of all rows, upwards
    below: str = ""  # of all columns


BARE = Words()


def image_grid(images: np.ndarray, columns: int, dividers: Sequence[int] = (), words: Words = BARE) -> Figure:
    """A figure of images as of mosaic(), as wide as a paper's column or its page, or less, with words around it. Pixels
    of the mosaic are those of the figure. Words that would overlap are left out. Raises as tiles()."""
    from matplotlib.figure import Figure

    given = tiles(images)
    size, over, beside = given.shape[1:3], [*map(short, words.over)], [*map(short, words.beside)]
    left = 1 + (LINE + 1) * bool(words.left) + (max(map(extent, beside)) + 4 if beside else 0)
    page = 72 * (COLUMN if columns <= 20 else PAGE)
    room = page - left - 1
    scale = max(1, math.ceil(min(room / columns, LARGEST) * DPI / 72 / max(size)))
    picture = mosaic(given, columns, dividers, scale)
    point = max(DPI / 72, picture.shape[1] / room)  # in pixels
    height, width = (n / point for n in picture.shape[:2])
    gap, high, wide = GAP / point, (size[0] * scale + GAP) / point, (size[1] * scale + GAP) / point
    starts = [gap + k * wide + 5 * gap * sum(d <= k for d in dividers) for k in range(columns)]
    named, level, end = [], 0, -math.inf  # names of panels: where each ends, and on which line
    for name, first, last in zip(words.panels, [0, *dividers], [*dividers, columns], strict=False):
        length, before, end = extent(name), end, starts[last - 1] + wide
        end = (starts[first] - gap + end + length) / 2 if length < end - starts[first] else end
        level = level + 1 if end - length < before + 4 else 0
        named.append((end, level, name))
    widest = max(map(extent, over), default=0)
    turned = widest + 3 > wide
    right = 1 + max(0, (TEXT + 1 - wide) / 2 if turned else 0)
    left = max([left, right, *(1 + extent(name) - end for end, _, name in named)])
    rise = (widest if turned else TEXT) + 2 if over else 0
    sticks_out = (extent(words.left) - height) / 2
    top = max(1 + rise + LINE * (1 + max((k for _, k, _ in named), default=-1)), sticks_out + 1)
    bottom = max(1 + LINE * bool(words.below), sticks_out + 1)
    edges = [math.ceil(n * point) for n in (left, bottom, top)]
    pixels = picture.shape[1] + edges[0] + math.ceil(right * point), picture.shape[0] + edges[1] + edges[2]
    dpi = 72 * point
    whole = [n + 0.1 for n in pixels]  # which becomes so many, whatever is lost in rounding
    figure = Figure(figsize=(whole[0] / dpi, whole[1] / dpi), dpi=dpi)
    corner, shape = [edges[0] / whole[0], edges[1] / whole[1]], [picture.shape[1] - 1e-3, picture.shape[0] - 1e-3]
    axes = figure.add_axes((*corner, shape[0] / whole[0], shape[1] / whole[1]))
    axes.set_axis_off()
    axes.imshow(picture, interpolation="none", aspect="auto")

    def put(x: float, y: float, text: str, **how: Any) -> None:
        """Write text so many points to the right of, and above, the mosaic's upper left corner."""
        figure.text((edges[0] + x * point) / whole[0], (pixels[1] - edges[2] + y * point) / whole[1], text, **how)

    every = max(1, math.ceil((TEXT + 1 if turned else widest) / wide))
    for k in range(0, len(over), every):
        how = {"rotation": 90, "va": "bottom"} if turned else {"va": "baseline"}
        put(starts[k] + (wide - gap) / 2, 2, over[k], ha="center", **how)
    for k in range(0, len(beside), max(1, math.ceil((TEXT + 1) / high))):
        put(-3, -gap - k * high - (high - gap) / 2, beside[k], ha="right", va="center_baseline")
    for end, level, name in named:
        put(end, rise + 2 + LINE * level, name, ha="right", va="baseline")
    put(-left + 1, -height / 2, words.left, rotation=90, ha="left", va="center")
    put(width / 2, -height - 2, words.below, ha="center", va="top")
    return figure


class Dots(NamedTuple):
    """A scatter plot's points [N, 2], of kinds [N], which are 0, 1, ...; their names, if they have any, and colours."""

    points: np.ndarray
    kinds: np.ndarray
    names: Sequence[str]
    colours: np.ndarray


def scatter(dots: Dots, curves: Sequence[np.ndarray], outline: str, axes: Sequence[str]) -> Figure:
    """A figure of dots under dashed curves [P, 2], with legends of the dots' kinds and of what the curves are."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = [*map(short, dots.names)]
    columns = -(-len(names) // 16)
    wanted = columns * (max(map(extent, names), default=0) + 20)
    figure = Figure(figsize=(max(COLUMN, 2.6 + wanted / 72), 3), dpi=DPI, layout="constrained")
    panel = figure.add_subplot(xlabel=axes[0], ylabel=axes[1], aspect="equal", adjustable="datalim")
    size = min(12, max(1, 2000 / len(dots.points)))
    many = len(dots.points) > 2000  # for a printer to draw one by one
    panel.scatter(*dots.points.T, c=dots.colours[dots.kinds], s=size, linewidths=0, rasterized=many)
    for curve in curves:
        panel.plot(*curve.T, color="0.2", linewidth=0.6, linestyle="--")
    dot = partial(Line2D, [], [], marker="o", linestyle="", markersize=4)
    if names:
        handles = [dot(color=c, label=name) for c, name in zip(dots.colours, names, strict=True)]
        figure.legend(handles=handles, title="label", loc="outside right center", ncols=columns, **LEGEND)
    if outline and len(curves):
        dashed = Line2D([], [], color="0.2", linewidth=0.6, linestyle="--", label=outline)
        figure.legend(
            handles=[dashed], loc="outside lower center", **{**LEGEND, "handletextpad": 0.6, "handlelength": 2}
        )
    figure.draw_without_rendering()  # the layout of a first drawing does not know the final ticks
    return figure


class Panel(NamedTuple):
    """Lines over x [L] by their names, [L, R] of R replicas each; `level` is drawn for comparison."""

    x: np.ndarray
    lines: Mapping[str, np.ndarray]
    xlabel: str
    ylabel: str
    level: float | None = None


def lines(panels: Sequence[Panel]) -> Figure:
    """A figure of panels: a thick line is the mean of replicas, thin ones are replicas."""
    from matplotlib.ticker import MaxNLocator

    figure, places = _places(len(panels))
    for panel, axes in zip(panels, places, strict=True):
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        values = np.concatenate([v.ravel() for v in panel.lines.values()])
        values = values[np.isfinite(values)]
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        if len(panel.x) == 1:
            axes.set_xticks(panel.x)
        if panel.level is None and len(values) and 0 < values.min() < values.max() / 30:
            axes.set_yscale("log")
        if panel.level is not None:
            axes.axhline(panel.level, color="0.5", linewidth=0.6, linestyle="--")
        for k, (name, columns) in enumerate(panel.lines.items()):
            how: dict[str, Any] = {"color": f"C{k}", "marker": "." if len(panel.x) < 3 else ""}
            if columns.shape[1] > 1:
                axes.plot(panel.x, columns[:, :SHOWN], linewidth=0.4, alpha=0.5, **how)
            axes.plot(panel.x, columns.mean(1), linewidth=1.2, label=name, **how)
        if len(panel.lines) > 1:
            axes.legend(**{**LEGEND, "frameon": True, "framealpha": 0.8, "edgecolor": "none", "handletextpad": 0.4})
    figure.draw_without_rendering()
    return figure


def histograms(data: np.ndarray, samples: np.ndarray, names: Sequence[str], split: str) -> Figure:
    """A figure of a panel for each column of data [N, D] and samples [N, D], bars of both side by side."""
    figure, places = _places(len(names))
    for k, (name, axes) in enumerate(zip(names, places, strict=True)):
        both = np.stack([data[:, k], samples[:, k]], 1).astype(np.float64)
        bars: Any = axes.hist(both, bins=20, color=["0.6", "C0"])[2]
        axes.set(xlabel=short(name), ylabel="rows" if k % 3 == 0 else "")
        if not k:
            figure.legend([*bars], [split, "samples"], loc="outside upper center", ncols=2, **LEGEND)
    figure.draw_without_rendering()
    return figure


def _places(n: int) -> tuple[Figure, list[Axes]]:
    """A figure with n panels, three a row."""
    from matplotlib.figure import Figure

    columns, rows = min(3, n), -(-n // 3)
    figure = Figure(figsize=(max(COLUMN, 2.3 * columns), 1.9 * rows), dpi=DPI, layout="constrained")
    return figure, [figure.add_subplot(rows, columns, k + 1) for k in range(n)]

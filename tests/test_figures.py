"""Figures: the pixels of the files are those of the images, without a display."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest
import torch

import fastaae
from fastaae import checkpoint, cli, figures, plots
from fastaae import data as datasets
from fastaae.config import Config
from fastaae.engine import priors
from fastaae.engine.networks import MLP
from fastaae.model import Model

pytest.importorskip("matplotlib")
from matplotlib.image import imread  # noqa: E402

RNG = np.random.default_rng(0)


def images(n, *shape):
    return RNG.random((n, *shape)).astype(np.float32)


def framed(path):
    """The pixels of a mosaic: what lies within the longest grey lines of a picture, and these."""
    pixels = imread(path)[..., :3]
    grey = (np.abs(pixels - 128 / 255) < 1e-3).all(-1)
    down = np.flatnonzero(grey.sum(1) >= 0.95 * grey.sum(1).max())  # pixels of letters may be as grey
    across = np.flatnonzero(grey[down[0] : down[-1] + 1].all(0))
    return pixels[down[0] : down[-1] + 1, across[0] : across[-1] + 1]


def read(path, rows, columns, height, width, dividers=()):
    """The values of a picture's mosaic, one for each value of such tiles, checked to be uniform squares; without the
    lines between and around them and the white bars, checked to be there."""
    pixels, gap = framed(path), plots.GAP
    tile = (pixels.shape[1] - gap - 5 * gap * len(dividers)) // columns
    for k in dividers:
        bar = gap + tile * k + np.arange(5 * gap)  # those before it are gone already
        assert (pixels[:, bar[: 4 * gap]] == 1).all() and np.ptp(pixels[:, bar[4 * gap :]]) == 0
        pixels = np.delete(pixels, bar, 1)
    assert np.ptp(pixels[:gap]) == 0 and np.ptp(pixels[:, :gap]) == 0
    pixels = pixels[gap:, gap:]
    tiles = pixels.reshape(rows, pixels.shape[0] // rows, columns, pixels.shape[1] // columns, 3)
    assert np.ptp(tiles[:, -gap:]) == 0 and np.ptp(tiles[:, :, :, -gap:]) == 0
    tiles = tiles[:, :-gap, :, :-gap]
    scale = tiles.shape[1] // height
    assert scale >= 1 and tiles.shape == (rows, height * scale, columns, width * scale, 3)
    pixels = tiles.reshape(rows * height * scale, columns * width * scale, 3)
    values = pixels[::scale, ::scale]
    assert np.array_equal(values.repeat(scale, 0).repeat(scale, 1), pixels)
    return values, scale


@pytest.mark.parametrize(
    ("shape", "columns", "rows_and_columns", "size"),
    [
        ((1, 8, 8), None, (1, 1), (8, 8)),
        ((4, 8, 8), None, (2, 2), (8, 8)),
        ((5, 4, 4), None, (2, 3), (4, 4)),
        ((3, 4, 6), 3, (1, 3), (4, 6)),
        ((7, 6, 4), 2, (4, 2), (6, 4)),
        ((5, 3, 4, 3), None, (2, 3), (3, 4)),
        ((5, 3, 4, 1), None, (2, 3), (3, 4)),
        ((5, 16), None, (2, 3), (4, 4)),
        ((4, 7), None, (2, 2), (1, 7)),
        ((4, 1), None, (2, 2), (1, 1)),
        ((4, 400, 2), None, (2, 2), (400, 2)),
        ((4, 200), None, (2, 2), (1, 200)),
        ((2, 128, 90), 2, (1, 2), (128, 90)),
    ],
    ids=lambda v: "x".join(map(str, v)) if isinstance(v, tuple) else str(v),
)
def test_grid_shows_every_value_of_every_image_in_its_place(tmp_path, shape, columns, rows_and_columns, size):
    x = images(*shape)
    figures.grid(x, tmp_path / "grid.png", columns)
    (rows, columns), (height, width) = rows_and_columns, size
    values, scale = read(tmp_path / "grid.png", rows, columns, height, width)
    assert scale == max(1, 75 // max(size))
    assert np.array_equal(framed(tmp_path / "grid.png"), imread(tmp_path / "grid.png")[..., :3])  # nothing around it
    x = x.reshape(shape[0], height, width, -1)  # grey values are the same in all three channels
    for k in range(rows * columns):
        i, j = divmod(k, columns)
        shown = values[i * height : (i + 1) * height, j * width : (j + 1) * width]
        expected = x[k] if k < len(x) else 0
        assert np.abs(shown - expected).max() <= 0.501 / 255, f"image {k}"


def test_grid_of_few_values_is_exact_from_black_to_white(tmp_path):
    figures.grid(np.array([[[0.0, 1.0], [0.2, -3.0]], [[0.4, 0.8], [5.0, 0.6]]]), str(tmp_path / "a.png"))
    values, _ = read(tmp_path / "a.png", 1, 2, 2, 2)
    expected = np.array([[0, 1, 0.4, 0.8], [0.2, 0, 1, 0.6]])  # clipped to [0, 1], never stretched to it
    np.testing.assert_allclose(values, np.repeat(expected[..., None], 3, 2), atol=1e-6)
    figures.grid(np.full((1, 2, 2), 0.4), tmp_path / "flat.png")
    np.testing.assert_allclose(read(tmp_path / "flat.png", 1, 1, 2, 2)[0], 0.4, atol=1e-6)


def test_grid_leaves_its_images_alone(tmp_path):
    x = images(3, 4, 4) * 3 - 1
    before = x.copy()
    figures.grid(x, tmp_path / "a.png")
    assert np.array_equal(x, before)


@pytest.mark.parametrize("dividers", [(1,), (2,), (3,), (0,), (1, 2)], ids=str)
def test_white_bars_divide_the_columns(tmp_path, dividers):
    x = images(6, 4, 5, 3)
    figures.grid(x, tmp_path / "plain.png", 3)
    figures.grid(x, tmp_path / "divided.png", 3, dividers)
    assert np.array_equal(
        read(tmp_path / "divided.png", 2, 3, 4, 5, dividers)[0], read(tmp_path / "plain.png", 2, 3, 4, 5)[0]
    )


@pytest.mark.parametrize("shape", [(10, 4, 4), (20, 2, 3), (20, 2, 3, 3), (10, 9), (7, 2, 3), (1, 4)], ids=str)
def test_reconstructions_lie_below_their_images(tmp_path, shape):
    x, decoded = images(*shape), images(*shape)
    figures.reconstructions(x, decoded, tmp_path / "a.png")
    height, width = shape[1:3] if len(shape) > 2 else (math.isqrt(shape[1]),) * 2
    columns = min(10, shape[0])
    values, _ = read(tmp_path / "a.png", 2 * shape[0] // columns, columns, height, width)
    for k in range(shape[0]):
        i, j = divmod(k, columns)
        for below, source in enumerate((x, decoded)):
            top = (2 * i + below) * height
            shown = values[top : top + height, j * width : (j + 1) * width]
            assert np.abs(shown - source[k].reshape(height, width, -1)).max() <= 0.501 / 255, f"image {k}"


def rgb(pixels, colour):
    """Pixels of this colour."""
    return (np.abs(pixels[..., :3] - colour[:3]) < 2 / 255).all(-1)


def plot_and_legend(path):
    """The pixels on both sides of the right edge of the axes."""
    pixels = imread(path)
    edge = np.flatnonzero((pixels[..., :3] < 0.5).all(-1).sum(0) > 0.6 * len(pixels)).max()
    return pixels[:, :edge], pixels[:, edge + 3 :]


def test_codes_are_dots_in_the_colour_of_their_label(tmp_path):
    from matplotlib import colormaps

    z = np.repeat([[-9.0, -9.0], [9.0, 9.0]], 30, 0) + RNG.normal(0, 0.8, (60, 2))
    figures.codes(z, np.repeat([0, 3], 30), tmp_path / "z.png")
    assert imread(tmp_path / "z.png").shape == (900, 990, 4)  # a column of 3.3 inches
    plot, _ = plot_and_legend(tmp_path / "z.png")
    rows = [np.argwhere(rgb(plot, colormaps["tab10"](label)))[:, 0] for label in (0, 3)]
    assert len(rows[0]) > 30 and len(rows[1]) > 30
    assert rows[0].min() > rows[1].max()  # z = (-9, -9) is at the bottom


def test_codes_without_labels_have_one_colour_and_no_legend(tmp_path):
    from matplotlib import colormaps

    z = np.concatenate([RNG.uniform(-3, 3, size=(48, 2)), [[-3.5, -3], [3.5, 3]]])  # as wide as its place
    figures.codes(z, None, tmp_path / "z.png")
    pixels = imread(tmp_path / "z.png")[..., :3]
    blue = rgb(pixels, colormaps["tab10"](0))
    assert blue.sum() > 500
    coloured = pixels[(np.ptp(pixels, axis=-1) > 0.02) & ~blue]  # edges of dots
    assert (np.argsort(coloured, 1) == [0, 1, 2]).all()
    assert plot_and_legend(tmp_path / "z.png")[0].shape[1] > 960  # the plot takes the legend's place


@pytest.mark.parametrize("names", [[0], [7, 2], range(10), range(20), range(3, 33), [-1, 40]], ids=str)
def test_the_legend_has_every_label_in_the_colour_of_its_dots(tmp_path, names):
    from matplotlib import colormaps

    labels = np.repeat(sorted(names), 40)
    figures.codes(np.stack([labels, RNG.normal(size=len(labels))], 1), labels, tmp_path / "z.png")
    pixels = imread(tmp_path / "z.png")
    ink = (pixels[..., :3] < 0.98).any(-1)
    assert not ink[:, [0, 1, -2, -1]].any() and not ink[[0, 1, -2, -1]].any(), "something is cut off"
    plot, legend = plot_and_legend(tmp_path / "z.png")
    for k, name in enumerate(sorted(names)):
        if len(names) > 20:
            colour = colormaps["turbo"](k / (len(names) - 1))
        else:
            colour = colormaps["tab10" if max(names) < 10 or min(names) < 0 else "tab20"](k if min(names) < 0 else name)
        assert rgb(plot, colour).sum() > 50 and rgb(legend, colour).sum() > 50, f"label {name}"


@pytest.mark.parametrize("std", [0.001, 0.5, 5, 12, 1000])
def test_nothing_of_a_plot_is_cut_off(tmp_path, std):
    z = RNG.normal(0, std, (500, 2))
    figures.codes(z, RNG.integers(10, size=500), tmp_path / "z.png", *figures.outlines(Config(prior_std=std)))
    ink = (imread(tmp_path / "z.png")[..., :3] < 0.98).any(-1)
    assert not ink[:, [0, 1, -2, -1]].any() and not ink[[0, 1, -2, -1]].any()


def test_the_axes_have_equal_scales(tmp_path):
    from matplotlib import colormaps

    z = np.array([[-30.0, 0.0], [30.0, 0.0], [0.0, -10.0], [0.0, 10.0]])  # three times as wide as high
    figures.codes(z, range(4), tmp_path / "z.png")
    plot, _ = plot_and_legend(tmp_path / "z.png")
    left, right, below, above = (np.argwhere(rgb(plot, colormaps["tab10"](k))).mean(0) for k in range(4))
    assert right[1] - left[1] == pytest.approx(3 * (below[0] - above[0]), rel=0.01) and right[1] - left[1] > 400


def test_curves_are_drawn_over_the_codes(tmp_path):
    z = RNG.uniform(-1, 1, (3000, 2))
    square = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    dark = []
    for curves in ([], [0.5 * square, 0.7 * square]):
        figures.codes(z, np.zeros(3000, int), tmp_path / "z.png", curves)
        dark.append((imread(tmp_path / "z.png")[100:600, 250:750, :3].max(-1) < 0.5).sum())
    assert dark[0] == 0 and dark[1] > 500


def test_ellipses_are_so_many_standard_deviations_out():
    mean, axes = (np.asarray(t) for t in priors.petal(3))
    for k, curve in zip((1, 2.5), figures.ellipses(mean, axes, (1, 2.5)), strict=True):
        whitened = (curve - mean) @ np.linalg.inv(axes)
        np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), k, rtol=1e-12)
        np.testing.assert_allclose(curve[0], curve[-1], atol=1e-12)


def prior(name, **changes):
    return Config(style_dim=2, prior=name, prior_std=3.0, **changes)


def drawn(cfg, n=20_000):
    """Samples of a config's prior [n, 2], and the component behind each."""
    z, component = torch.empty(n, 2, dtype=torch.float64), torch.empty(n, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    priors.draw(cfg.prior, z, cfg.prior_std, component, generator, components=cfg.components)
    return z.numpy(), component.numpy()


def test_the_outlines_are_those_of_the_prior():
    curves, title = figures.outlines(prior("gaussian"))
    assert title == "1, 2 and 3 standard deviations of the prior"
    inside = [(np.linalg.norm(drawn(prior("gaussian"))[0], axis=1) < np.linalg.norm(c, axis=1).max()) for c in curves]
    np.testing.assert_allclose([i.mean() for i in inside], 1 - np.exp([-0.5, -2, -4.5]), atol=0.01)

    (square,), _ = figures.outlines(prior("uniform"))
    z, _ = drawn(prior("uniform"))
    np.testing.assert_allclose([square.min(0), square.max(0)], [z.min(0), z.max(0)], rtol=1e-3)
    assert len(square) == 5 and (np.abs(square) == square.max()).all() and (np.diff(square, axis=0) != 0).sum() == 4

    cfg = prior("mixture", components=7)
    curves, _ = figures.outlines(cfg)
    z, component = drawn(cfg)
    assert len(curves) == 7
    for k, curve in enumerate(curves):
        centre = curve[:-1].mean(0)
        whitened = (z - centre) @ np.linalg.inv(np.linalg.cholesky(np.cov((curve[:-1] - centre).T, ddof=0))).T
        inside = np.linalg.norm(whitened, axis=1) < math.sqrt(2)
        assert inside[component == k].mean() == pytest.approx(1 - math.exp(-2), abs=0.03)

    (curve,), _ = figures.outlines(prior("swiss_roll"))
    z, _ = drawn(prior("swiss_roll"), 2000)
    apart = np.linalg.norm(z[:, None] - curve, axis=2)
    assert apart.min(1).max() < 5 * 3 * priors.ROLL_STD and apart.min(0).max() < 5 * 3 * priors.ROLL_STD


def test_a_custom_prior_has_no_outline_and_is_not_spread():
    assert figures.outlines(prior("custom")) == ([], "") and figures.spread(prior("custom")) is None


def test_a_prior_is_spread_as_its_mass_is():
    assert figures.spread(prior("uniform")) is None
    (z,), _ = figures.spread(prior("gaussian"))
    np.testing.assert_allclose(z, figures.percentiles(20, [0, 0], 3 * np.eye(2)))
    cfg = prior("mixture", components=5)
    panels, what = figures.spread(cfg)
    assert panels.shape == (3, 10, 10, 2) and "first 3 Gaussians" in what
    for k, z in enumerate(panels):
        np.testing.assert_allclose(z, figures.percentiles(10, *priors.petal(k, components=5, scale=3.0)))
        assert np.linalg.norm(z[:, -1], axis=1).min() > np.linalg.norm(z[:, 0], axis=1).max()  # outwards to the right
    assert len(figures.spread(prior("mixture", components=2))[0]) == 2
    cfg = prior("swiss_roll", components=4)
    (z,), _ = figures.spread(cfg)
    assert z.shape == (4, 20, 2)
    samples, component = drawn(cfg)
    nearest = np.linalg.norm(samples[:, None] - z.reshape(-1, 2), axis=2).argmin(1)
    assert (nearest // 20 == component).mean() > 0.98  # a row for each component; noise crosses their borders
    assert np.bincount(nearest, minlength=80).std() < 0.1 * len(samples) / 80  # the mass is shared evenly


@pytest.mark.parametrize("labels", [[4], np.array([4])], ids=["list", "array"])
def test_one_code_can_be_shown(tmp_path, labels):
    figures.codes(np.zeros((1, 2)), labels, str(tmp_path / "z.png"))
    assert imread(tmp_path / "z.png").shape == (900, 990, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of a model: a linear one, so that every value is known
# ---------------------------------------------------------------------------------------------------------------------


def model(decoder, bias, classes=0, encoder=None, shape=(2, 2), prior_std=5.0):
    """Decodes [z, y] to decoder @ [z, y] + bias; encodes x to encoder @ x, of which the last `classes` are logits."""
    decoder = torch.tensor(decoder, dtype=torch.float32)[None]
    encoder = torch.zeros(decoder.shape[2], 4) if encoder is None else torch.tensor(encoder, dtype=torch.float32)
    style = decoder.shape[2] - classes
    task = "semi_supervised" if classes else "unsupervised"
    config = Config(task=task, style_dim=style, hidden=(), output="linear", prior_std=prior_std)
    networks = [MLP([encoder[None]], [torch.zeros(1, 1, len(encoder))]), MLP([decoder], [torch.tensor([[bias]])])]
    return Model(config, shape, classes, *networks)


def tiles(values, rows, columns, height=2, width=2):
    """[rows, columns, height * width] of what read() gives for grey images."""
    return values[..., 0].reshape(rows, height, columns, width).swapaxes(1, 2).reshape(rows, columns, -1)


def phi(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_percentiles_share_the_mass_evenly(n):
    z = figures.percentiles(n, np.array([3.0, -1.0]), 2.0 * np.eye(2))
    assert z.shape == (n, n, 2)
    for i in range(n):
        for j in range(n):
            assert phi((z[i, j, 0] - 3) / 2) == pytest.approx((j + 0.5) / n)  # to the right
            assert phi((z[i, j, 1] + 1) / 2) == pytest.approx((n - 1 - i + 0.5) / n)  # upwards
    mean, axes = (np.asarray(t) for t in priors.petal(4))
    along = (figures.percentiles(n, mean, axes) - mean) @ np.linalg.inv(axes)
    np.testing.assert_allclose(along, (z - [3, -1]) / 2, atol=1e-12)


def test_the_manifold_grows_to_the_right_and_upwards(tmp_path):
    m = model([[0.05, 0], [0, 0.05], [0, 0], [0, 0]], [0.5, 0.5, 0.0, 1.0])
    figures.manifold(m, figures.percentiles(4, [0, 0], 2 * np.eye(2))[None], tmp_path / "m.png")
    shown = tiles(read(tmp_path / "m.png", 4, 4, 2, 2)[0], 4, 4)
    quantiles = 2 * np.sqrt(2) * np.asarray(torch.erfinv(torch.tensor([-0.75, -0.25, 0.25, 0.75])))
    np.testing.assert_allclose(shown[..., 0], np.tile(0.5 + 0.05 * quantiles, (4, 1)), atol=0.501 / 255)
    np.testing.assert_allclose(shown[..., 1], np.tile(0.5 + 0.05 * quantiles, (4, 1)).T[::-1], atol=0.501 / 255)
    assert not shown[..., 2].any() and (shown[..., 3] == 1).all()


def test_panels_of_a_manifold_lie_side_by_side(tmp_path):
    m = model([[0.1, 0], [0, 0.1], [0, 0], [0, 0]], [0, 0, 0, 1.0])
    panels = RNG.uniform(0, 10, (3, 2, 4, 2))
    figures.manifold(m, panels, tmp_path / "m.png")
    shown = tiles(read(tmp_path / "m.png", 2, 12, 2, 2, dividers=(4, 8))[0], 2, 12)
    for k, z in enumerate(panels):
        np.testing.assert_allclose(shown[:, 4 * k : 4 * k + 4, :2], 0.1 * z, atol=0.501 / 255)
    with pytest.raises(ValueError, match="labels"):
        figures.manifold(model([[0.1, 0, 0.3]] * 4, [0.0] * 4, classes=1), panels, tmp_path / "m.png")


def test_style_is_constant_along_a_row_and_content_along_a_column(tmp_path):
    m = model([[0.1, 0, 0.0, 0.3, 0.6], [0, 0.1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], [0, 0.5, 0, 0], classes=3)
    z = np.array([[1.0, -3.0], [2.0, 4.0]])
    figures.style_content(m, z, tmp_path / "s.png")
    shown = tiles(read(tmp_path / "s.png", 2, 3, 2, 2)[0], 2, 3)
    np.testing.assert_allclose(shown[..., 0], [[0.1, 0.4, 0.7], [0.2, 0.5, 0.8]], atol=0.501 / 255)
    np.testing.assert_allclose(shown[..., 1], [[0.2] * 3, [0.9] * 3], atol=0.501 / 255)
    with pytest.raises(ValueError, match="the model's decoder takes no labels"):
        figures.style_content(model([[0.1]] * 4, [0.0] * 4), z[:, :1], tmp_path / "s.png")


# Style 1-D; cluster k has the greatest logit where pixel k is brightest, k < 3; the head of cluster k shows k / 10.
CLUSTERS = {
    "decoder": [[9.0, 0.0, 0.1, 0.2], [9.0, 0.0, 0.1, 0.2], [9.0, 0.0, 0.1, 0.2], [9.0, 0.0, 0.1, 0.2]],
    "bias": [0.05] * 4,
    "classes": 3,
    "encoder": [[0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0]],
}


def clustered(assigned):
    """uint8 images [N, 2, 2] of these clusters; the last pixel is the index, pixel k is brighter the later."""
    x = np.zeros((len(assigned), 4), np.uint8)
    x[np.arange(len(x)), assigned] = 100 + 2 * np.arange(len(x))
    x[:, 3] = np.arange(len(x))
    return x.reshape(-1, 2, 2)


@pytest.mark.parametrize("kind", [np.uint8, np.float32, torch.uint8], ids=["uint8", "float32", "torch"])
def test_cluster_heads_stand_before_images_of_their_cluster(tmp_path, kind):
    assigned = np.array([0, 2, 2, 0, 2, 2, 0, 2, 2, 2])
    x = clustered(assigned)
    x = torch.from_numpy(x) if kind is torch.uint8 else x if kind is np.uint8 else x / np.float32(255)
    figures.cluster_heads(model(**CLUSTERS), x, tmp_path / "c.png", n=4, seed=3)
    shown = tiles(read(tmp_path / "c.png", 3, 5, 2, 2, dividers=(1,))[0], 3, 5)
    np.testing.assert_allclose(shown[:, 0], np.repeat([[0.05], [0.15], [0.25]], 4, 1), atol=0.501 / 255)
    grey = np.round(shown[:, 1:] * 255)
    assert (grey[0, 3] == 128).all() and (grey[1] == 128).all()  # one place is left in row 0; cluster 1 is unused
    indices = [grey[0, :3, 3].astype(int).tolist(), grey[2, :, 3].astype(int).tolist()]
    assert sorted(indices[0]) == [0, 3, 6] and len(set(indices[1])) == 4 and set(assigned[indices[1]]) == {2}
    figures.cluster_heads(model(**CLUSTERS), x, tmp_path / "d.png", n=4, seed=4)
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "d.png").read_bytes()
    figures.cluster_heads(model(**CLUSTERS), x, tmp_path / "d.png", n=4, seed=3)
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "d.png").read_bytes()


def test_the_surest_images_come_first_without_a_seed(tmp_path):
    x = clustered(np.array([2, 0, 2, 2, 0, 1]))
    figures.cluster_heads(model(**CLUSTERS), x, tmp_path / "c.png", n=2, seed=None)
    shown = tiles(read(tmp_path / "c.png", 3, 3, 2, 2, dividers=(1,))[0], 3, 3)
    assert np.round(shown[:, 1:, 3] * 255).tolist() == [[4, 1], [5, 128], [3, 2]]


def brute_force(queries, data):
    return np.array([np.argmin([((q - x) ** 2).sum() for x in data]) for q in queries])


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_nearest_is_exact(monkeypatch, block):
    monkeypatch.setattr(figures, "BLOCK", block)
    data, queries = RNG.integers(0, 256, (50, 2, 3), np.uint8), images(11, 2, 3)
    data[40] = data[13]  # equals: the first is meant
    queries[4] = data[13] / np.float32(255)
    index = figures.nearest(queries, data)
    assert index.dtype == np.int64 and index[4] == 13
    assert np.array_equal(index, brute_force(queries.astype(float), (data / np.float32(255)).astype(float)))
    assert np.array_equal(figures.nearest(torch.from_numpy(queries).flatten(1), torch.from_numpy(data)), index)
    near = 1e6 + 1e-4 * np.array([[3.0, 0], [1, 1], [0, 1]])  # where |a|² - 2ab + |b|² would see no difference
    assert figures.nearest(np.array([[1e6, 1e6]]), near).tolist() == [2]


def test_nearest_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"data has 3 values per example, expected 4 of shape \(2, 2\)"):
        figures.nearest(images(2, 2, 2), images(5, 3))
    with pytest.raises(ValueError, match=r"data of shape \(0, 4\)"):
        figures.nearest(images(2, 2, 2), images(0, 4))


@pytest.mark.parametrize("shape", [(2, 3), (3, 2, 5)], ids=["grey", "colour"])
def test_rows_end_with_the_neighbour_of_their_last_sample(tmp_path, shape):
    samples, train = images(6, *shape), RNG.integers(0, 256, (40, int(np.prod(shape))), np.uint8)
    figures.neighbours(samples, torch.from_numpy(train), tmp_path / "n.png", columns=3)
    values = read(tmp_path / "n.png", 2, 4, 2, shape[-1], dividers=(3,))[0]
    for i, last in enumerate((2, 5)):
        found = train[brute_force(samples[last : last + 1].reshape(1, -1), train / 255)[0]].reshape(shape) / 255
        for j, expected in enumerate([*samples[last - 2 : last + 1], found]):
            expected = np.moveaxis(expected, 0, 2) if len(shape) == 3 else expected[..., None]
            shown = values[2 * i : 2 * i + 2, shape[-1] * j : shape[-1] * (j + 1)]
            assert np.abs(shown - expected).max() <= 0.501 / 255, f"row {i}, column {j}"
    with pytest.raises(ValueError, match="6 samples: expected a multiple of columns=4"):
        figures.neighbours(samples, train, tmp_path / "n.png", columns=4)


@pytest.mark.parametrize("k, d", [(10, 10), (10, 12), (3, 5), (1, 2), (2, 2)])
def test_the_circle_map_sends_heads_evenly_around_a_circle(k, d):
    heads = RNG.normal(size=(k, d))
    linear = figures.circle_map(heads, 3.0)
    points = heads @ linear
    assert linear.shape == (d, 2)
    expected = 3 * np.exp(2j * np.pi * np.arange(k) / k)
    np.testing.assert_allclose(points, np.stack([expected.real, expected.imag], 1), atol=1e-9)
    off = np.linalg.svd(heads)[2][k:]  # directions without heads are not shown
    np.testing.assert_allclose(off @ linear, 0, atol=1e-9)


def test_the_circle_map_of_the_papers_heads():
    """W_C = 10 I: a tenth of the circle's points, and a code's noise N(0, I) of equal size in every direction."""
    linear = figures.circle_map(10 * np.eye(10))
    np.testing.assert_allclose(np.linalg.norm(linear, axis=1), 1)
    np.testing.assert_allclose(linear.T @ linear, 5 * np.eye(2), atol=1e-12)
    with pytest.raises(ValueError, match=r"heads of shape \(20, 2\): expected 20 linearly independent rows"):
        figures.circle_map(RNG.normal(size=(20, 2)))


def test_figures_need_no_display_and_no_pyplot(tmp_path):
    code = """
import sys, numpy as np
from fastaae import figures
figures.grid(np.zeros((2, 4, 4)), "grid.png")
figures.codes(np.zeros((2, 2)), [0, 1], "codes.png")
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    env |= {"MPLBACKEND": "TkAgg"}  # would need one
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["codes.png", "grid.png"]


BINARY = RNG.integers(0, 2, (18, 2, 2)).astype(np.float64)
FLAT, TRAIN = np.eye(5)[:, :2], RNG.random((9, 2, 2))


def written(f):
    def run(x, path):
        f(x, path / "a.png")
        return (path / "a.png").read_bytes()

    return run


def labelled():
    return model([[0.1, 0, 0.3, 0.6]] * 4, [0.0] * 4, classes=2)


TAKE = {  # what takes arrays: a natural one, and the function of it and a folder
    "grid": (BINARY, written(figures.grid)),
    "reconstructions": (BINARY[:10], written(lambda x, path: figures.reconstructions(x, TRAIN[[0] * 10], path))),
    "decoded": (BINARY[:10], written(lambda x, path: figures.reconstructions(TRAIN[[0] * 10], x, path))),
    "neighbours": (BINARY, written(lambda x, path: figures.neighbours(x, TRAIN, path))),
    "neighbours, train": (BINARY, written(lambda x, path: figures.neighbours(TRAIN, x, path))),
    "nearest": (BINARY, lambda x, _: figures.nearest(x, TRAIN).tobytes()),
    "nearest, data": (BINARY, lambda x, _: figures.nearest(TRAIN, x).tobytes()),
    "codes": (FLAT, written(lambda x, path: figures.codes(x, None, path))),
    "manifold": (
        BINARY[None, :1],
        written(lambda x, path: figures.manifold(model([[0.1, 0.2]] * 4, [0.3] * 4), x, path)),
    ),
    "style_content": (FLAT, written(lambda x, path: figures.style_content(labelled(), x, path))),
    "circle_map": (np.eye(2, 5), lambda x, _: figures.circle_map(x).tobytes()),
}
SAME = {  # other ways to say the same
    "list": np.ndarray.tolist,
    "tensor with a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "float16": np.float16,
    "long double": np.longdouble,
    "big-endian": lambda x: x.astype(">f8"),
    "bool": lambda x: x.astype(bool),
    "bytes": lambda x: (255 * x).astype(np.uint8),  # of images only
    "reversed": lambda x: x[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "read-only": lambda x: np.broadcast_to(x, x.shape),
}
ODD = {
    "nan": lambda x: np.where(x == x.flat[0], np.nan, x),
    "infinite": lambda x: np.where(x == x.flat[0], np.inf, x),
    "strings": lambda x: x.astype(str),
    "objects": lambda x: np.full(x.shape, object()),
    "masked": lambda x: np.ma.masked_equal(x, 0),
    "complex": lambda x: x + 0j,
    "ragged": lambda x: [[1.0], [1.0, 2.0]],
    "number": lambda x: 1.0,
    "nothing": lambda x: None,
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("name", TAKE)
def test_whatever_holds_the_same_numbers_is_drawn_the_same(name, kind, tmp_path):
    x, f = TAKE[name]
    if kind == "bytes" and name in ("codes", "manifold", "style_content", "circle_map"):
        return
    if kind == "long double" and name in ("neighbours, train", "nearest, data"):
        return  # torch has none, and a copy of all data would take four times their memory
    assert f(SAME[kind](x), tmp_path) == f(x, tmp_path)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", TAKE)
def test_what_cannot_be_drawn_is_refused_by_one_line(name, kind, tmp_path):
    x, f = TAKE[name]
    with pytest.raises(ValueError) as error:
        f(ODD[kind](x), tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


SEVEN = np.arange(14.0).reshape(7, 2)
REFUSED = [
    (lambda path: figures.grid(BINARY[:0], path), r"images of shape \(0, 2, 2\)"),
    (lambda path: figures.grid(BINARY[:, :0], path), r"images of shape \(18, 0, 2\)"),
    (lambda path: figures.grid(BINARY.reshape(18, 4)[:, :0], path), "size 0"),
    (
        lambda path: figures.grid(BINARY.astype(int), path),
        r"got int64 of shape \(18, 2, 2\), expected bytes or finite floats",
    ),
    (lambda path: figures.reconstructions(BINARY[:12], BINARY[:12], path), "cannot reshape"),
    (lambda path: figures.reconstructions(BINARY[:5], BINARY[:4], path), "shape"),
    (lambda path: figures.reconstructions(BINARY[:0], BINARY[:0], path), "shape"),
    (lambda path: figures.codes(np.zeros((5, 1)), None, path), r"codes of shape \(5, 1\): expected \[N, 2\], or more"),
    (lambda path: figures.codes(np.zeros((5, 2, 2)), None, path), r"codes of shape \(5, 2, 2\): expected \[N, 2\]"),
    (lambda path: figures.codes(np.zeros((0, 2)), None, path), r"shape \(0, 2\): expected"),
    (lambda path: figures.codes(SEVEN, range(6), path), "expected one for each of 7 codes"),
    (lambda path: figures.codes(SEVEN, np.ma.masked_equal(range(7), 0), path), "labels is a masked array"),
    (lambda path: figures.manifold(labelled(), SEVEN, path), "expected .panels, rows, columns, 2"),
    (lambda path: figures.style_content(labelled(), SEVEN[:0], path), "shape"),
    (lambda path: figures.cluster_heads(labelled(), SEVEN * np.nan, path), "NaN"),
    (lambda path: figures.cluster_heads(labelled(), BINARY[:0], path), "shape"),
    (lambda path: figures.neighbours(BINARY, BINARY[:0], path), r"data of shape \(0, 2, 2\)"),
]


@pytest.mark.parametrize("f, message", REFUSED, ids=range(len(REFUSED)))
def test_odd_pictures_are_refused_by_name(f, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        f(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


LABELS = {
    "names": ["cat", "dog", "$x$", "_"],
    "floats": [0.5, 1.0, 17.0, math.nan],
    "negative": [-3, -1, 0, 5],
    "booleans": [True, False, True, False],
    "objects": np.array(["a", 1, None, 2.5], object),
    "bytes": np.array([0, 1, 2, 255], np.uint8),
    "column": [[0], [1], [2], [3]],
    "large": [300, 1, 2, 3],
    "tensor": torch.tensor([0.0, 1.0, 2.0, 3.0], requires_grad=True),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_type_colour_the_codes_they_are_of(kind, tmp_path):
    from matplotlib import colormaps

    z = np.array([[-9.0, -9.0], [-9.0, 9.0], [9.0, -9.0], [9.0, 9.0]])
    figures.codes(z, LABELS[kind], tmp_path / "z.png")
    count = 2 if kind == "booleans" else 4
    plot, legend = plot_and_legend(tmp_path / "z.png")
    for k in range(count):
        place = np.argwhere(rgb(plot, colormaps["tab10"](k)))
        assert len(place) and rgb(legend, colormaps["tab10"](k)).any(), f"colour {k}"
        assert count == 2 or np.ptp(place, 0).max() < 20  # one dot


def test_numbers_of_a_config_alone_do_not_make_pictures_large(tmp_path):
    most = 10_000
    with pytest.raises(ValueError, match="components=10001: expected an integer from 1 to 10000"):
        Config(prior="mixture", style_dim=2, components=most + 1)
    curves, title = figures.outlines(prior("mixture", components=most))
    assert len(curves) == 100 and title.endswith("of the first 100 Gaussians")
    assert figures.spread(prior("mixture", components=most))[0].shape == (3, 10, 10, 2)
    assert figures.spread(prior("swiss_roll", components=most))[0].shape == (1, 100, 20, 2)
    encoder = torch.zeros(1 + most, 4)
    encoder[1, 0] = 1.0  # all are of cluster 0
    m = model([[0.1] + [0.5] * most] * 4, [0.0] * 4, classes=most, encoder=encoder.tolist())
    figures.cluster_heads(m, BINARY, tmp_path / "c.png", n=2)
    heads = tiles(read(tmp_path / "c.png", 100, 3, 2, 2, (1,))[0], 100, 3)
    assert (np.round(255 * heads[1:, 1:]) == 128).all() and not (np.round(255 * heads[0, 1:]) == 128).all()
    figures.style_content(m, [[0.0], [1.0]], tmp_path / "s.png")
    assert read(tmp_path / "s.png", 2, 100, 2, 2)[0].shape == (4, 200, 3)


@pytest.mark.parametrize("prior", ["mixture", "swiss_roll"])
def test_a_small_file_of_many_components_is_refused_at_once(prior, tmp_path, capsys):
    trained(tmp_path, "digits", prior=prior)
    path = tmp_path / "run" / "checkpoint.safetensors"
    tensors, info = checkpoint.load(path)
    for name, value, message in (
        ("components", 2 * 10**9, "components=2000000000: expected an integer from 1 to 10000"),
        ("style_dim", 2 * 10**9, "style_dim=2000000000: expected 2 with the 2-D prior"),
    ):
        checkpoint.save(path, tensors, info | {"config": info["config"] | {name: value}})
        for command in (["figures"], ["sample"], ["evaluate"], ["resume"]):
            assert cli.main([*command, str(tmp_path / "run")]) == 2
            assert message in capsys.readouterr().err


@pytest.mark.parametrize("what", ["grid", "codes"])
def test_a_picture_takes_the_place_of_a_link_whole_or_not_at_all(what, tmp_path):
    def write(x):
        figures.grid(x, path) if what == "grid" else figures.codes(x, None, path)

    (tmp_path / "outside").write_text("precious")
    path = tmp_path / "run" / "a.png"
    path.parent.mkdir()
    path.symlink_to(tmp_path / "outside")
    good = np.eye(2)
    with pytest.raises(ValueError):
        write(good * np.nan)
    assert path.is_symlink()
    write(good)
    assert not path.is_symlink() and imread(path).size and os.listdir(path.parent) == ["a.png"]
    assert (tmp_path / "outside").read_text() == "precious"
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write(good * np.nan)
    assert path.read_bytes() == before
    write(good)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["a.png"]


# ---------------------------------------------------------------------------------------------------------------------
# draw(): the pictures of a trained model
# ---------------------------------------------------------------------------------------------------------------------


def trained(tmp_path, preset, data=None, **changes):
    """Model and data of a moment's training, with weights large enough for pictures to depend on the code."""
    small = {"dataset": "digits", "hidden": (16,), "epochs": 1, "batch_size": 50, "init_std": 0.3}
    cfg = fastaae.preset(preset, **small | changes, out_dir=str(tmp_path / "run"))
    loaded = datasets.load("digits") if data is None else datasets.from_arrays(data)
    return fastaae.train(cfg, data, progress=False).model, loaded


def seen(path, rows, columns, dividers=()):
    """[rows, columns, 64] of a picture of digits."""
    return tiles(read(path, rows, columns, 8, 8, dividers)[0], rows, columns, 8, 8)


def same(shown, expected):
    expected = np.asarray(expected).clip(0, 1).reshape(shown.shape)
    np.testing.assert_allclose(shown, expected, atol=0.501 / 255)


def check_neighbours(m, digits, path):
    shown, samples = seen(path, 10, 10, (9,)), m.sample(90, seed=1).reshape(10, 9, 64)
    same(shown[:, :9], samples)
    same(shown[:, 9], digits.x_train[brute_force(samples[:, 8].clip(0, 1), digits.x_train.numpy())])


def check_reconstructions(m, digits, path):
    shown, x = seen(path, 8, 10), digits.x_test[:40].numpy()
    same(shown[::2], x)
    same(shown[1::2], m.reconstruct(x))


def check_manifold(m, _, path):
    cfg = m.config
    if cfg.prior == "swiss_roll":
        shown = seen(path, 10, 20)
        ends = priors.roll(torch.tensor([1 / 400, 399 / 400]), scale=cfg.prior_std)
        same(np.stack([shown[0, 0], shown[-1, -1]]), m.decode(ends))
        return
    count, n = (3, 10) if cfg.prior == "mixture" else (1, 20)
    shown, q = seen(path, n, count * n, tuple(range(n, count * n, n))), NormalDist().inv_cdf(1 - 0.5 / n)
    for k in range(count):
        mean, axes = torch.zeros(2), cfg.prior_std * torch.eye(2)
        if count > 1:
            mean, axes = (t.float() for t in priors.petal(k, scale=cfg.prior_std))
        corners = mean + q * torch.tensor([[-1.0, 1], [1, 1], [-1, -1], [1, -1]]) @ axes
        panel = shown[:, k * n : (k + 1) * n]
        same(panel[[0, 0, -1, -1], [0, -1, 0, -1]], m.decode(corners))


def check_style_content(m, digits, path):
    z = m.encode(digits.x_test[:10])
    rows = [m.decode(z, torch.full((10,), label)) for label in range(10)]
    same(seen(path, 10, 10), torch.stack(rows, 1))


def check_cluster_heads(m, digits, path):
    k = m.config.n_clusters
    shown = seen(path, k, 17, (1,))
    same(shown[:, 0], m.decode(np.zeros((k, m.config.style_dim)), np.arange(k)))
    assigned, images = m.predict(digits.x_test).numpy(), digits.x_test.numpy()
    for cluster in range(k):
        members = images[assigned == cluster]
        same(shown[cluster, 1 + len(members) :], np.full((max(0, 16 - len(members)), 64), figures.EMPTY))
        for tile in shown[cluster, 1 : 1 + len(members)]:
            assert np.abs(members - tile).max(1).min() < 0.501 / 255


PICTURES = [
    ("digits", {}, "reconstructions codes manifold"),
    ("digits", {"prior": "uniform", "output": "linear"}, "reconstructions codes"),
    ("digits", {"prior": "uniform", "style_dim": 3}, "reconstructions codes"),
    ("digits", {"style_dim": 1}, "reconstructions"),
    ("mnist-vae-2d", {}, "reconstructions codes manifold"),
    ("mnist-2d-mixture", {}, "reconstructions codes manifold"),
    ("mnist-2d-labels", {"n_labeled": 100}, "reconstructions codes manifold"),
    ("mnist-2d-swiss-roll", {"n_labeled": 100}, "reconstructions codes manifold"),
    ("mnist-likelihood", {"prior_std": 1.0}, "reconstructions codes"),
    ("mnist-gan", {}, ""),
    ("mnist-gan", {"style_dim": 2, "prior": "gaussian"}, "manifold"),
    ("mnist-style", {}, "style_content codes"),
    ("mnist-style", {"style_dim": 2}, "style_content codes"),
    ("mnist-100", {}, "reconstructions style_content codes"),
    ("mnist-100", {"style_dim": 2}, "reconstructions style_content codes"),
    ("mnist-clusters-16", {}, "reconstructions cluster_heads codes"),
    ("mnist-embedding-2d-100", {}, "reconstructions representations"),
    ("mnist-embedding-2d-unsupervised", {}, "reconstructions representations cluster_heads"),
    ("mnist-embedding-10d-100", {}, "reconstructions representations"),
    ("mnist-embedding-10d-100", {"style_dim": 4, "fixed_heads": None}, "reconstructions representations"),
]
DIGITS = [*map(str, range(10))]
NAMES = {  # what is written around mosaics, but for the sizes of clusters
    "neighbours": ["nearest", "samples"],
    "reconstructions": [*["original", "reconstruction"] * 4],
    "style_content": [*DIGITS, "label", "style"],
    "cluster_heads": ["assigned images", "cluster (images)", "head"],
    "manifold gaussian": ["z₁", "z₂"],
    "manifold mixture": ["component 0", "component 1", "component 2"],
    "manifold swiss_roll": [*DIGITS, "label"],
}


@pytest.fixture
def figures_made(monkeypatch):
    """The figures behind pictures, by their names."""
    made, write = {}, plots.write

    def keep(path, figure):
        def drawn():
            made[os.path.basename(path).partition(".")[0]] = found = figure()
            return found

        write(path, drawn)

    monkeypatch.setattr(plots, "write", keep)
    return made


def words(figure):
    """Pieces of text beside mosaics and axes, and in legends, checked to lie in the figure, apart from each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [*figure.texts, *(text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label))]
    for legend in figure.legends:
        texts += [legend.get_title(), *legend.get_texts()]
    texts = [text for text in texts if text.get_text().strip()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for k, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0, texts[k]
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, texts[k]
        for j in range(k):
            overlap = [min(box.max[i], boxes[j].max[i]) - max(box.min[i], boxes[j].min[i]) for i in (0, 1)]
            assert min(overlap) < 2, (texts[j], texts[k])  # pixels
    return sorted(text.get_text() for text in texts)


def check_scatter(figure, m, digits, numbers):
    """Where dots are, and what is written around them. Returns: the curves' meaning and the axes' names."""
    cfg, z = m.config, m.encode(digits.x_test).numpy()
    if cfg.fixed_heads:
        z = z @ figures.circle_map(10 * np.eye(10))
    np.testing.assert_allclose(numbers["codes"], z, rtol=1e-6, atol=1e-6)
    assert np.array_equal(numbers["labels"], digits.y_test)
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.collections[0].get_offsets(), z @ numbers["axes"], atol=1e-4)
    if z.shape[1] == 2:
        np.testing.assert_array_equal(numbers["axes"], np.eye(2))
    labels, *others = figure.legends
    assert [text.get_text() for text in labels.get_texts()] == DIGITS and labels.get_title().get_text() == "label"
    curves = [line.get_xydata() for line in axes.lines]
    outline = [text.get_text() for legend in others for text in legend.get_texts()]
    assert len(outline) == bool(curves)
    return curves, "".join(outline), [axes.get_xlabel(), axes.get_ylabel()]


@pytest.mark.parametrize(("preset", "changes", "names"), PICTURES)
def test_the_pictures_that_fit_are_drawn(preset, changes, names, tmp_path, figures_made):
    m, digits = trained(tmp_path, preset, **changes)
    cfg, folder = m.config, tmp_path / "some" / "where"
    shown = figures.draw(m, digits, folder, seed=1, arrays=True)
    assert sorted({path.stem for path in shown}) == sorted(["neighbours", *names.split()])
    assert sorted(folder.iterdir()) == sorted(shown)
    for path, text in shown.items():
        if path.suffix == ".npz":
            with np.load(path) as numbers:
                assert text == f"the numbers behind it: {', '.join(numbers)}"
            continue
        assert ("test images" in text) == (path.stem not in ("neighbours", "manifold"))
        written, figure = words(figures_made[path.stem]), figures_made[path.stem]
        if path.stem not in ("codes", "representations"):
            globals()[f"check_{path.stem}"](m, digits, path)
            name = f"{path.stem} {cfg.prior}" if path.stem == "manifold" else path.stem
            expected = NAMES[name]
            if cfg.label_prior and cfg.prior == "mixture" and path.stem == "manifold":
                expected = [name.replace("component", "label") for name in expected]
            if path.stem == "cluster_heads":
                sizes = np.bincount(m.predict(digits.x_test), minlength=cfg.n_clusters)
                expected = [*expected, *(f"{k} ({n})" for k, n in enumerate(sizes))]
            assert written == sorted(expected)
            continue
        with np.load(path.with_suffix(".npz")) as numbers:
            curves, outline, axes = check_scatter(figure, m, digits, numbers)
        known = path.stem == "codes" and (cfg.style_dim == 2 or cfg.prior == "gaussian")
        np.testing.assert_equal((curves, outline), figures.outlines(cfg) if known else ([], ""))
        assert "coloured by label" in text and (not outline or text.endswith(f"; dashed: {outline}"))
        mapped = (
            "mapped axis 1" if cfg.fixed_heads else "z₁" if cfg.style_dim == 2 else r"principal axis 1 \(\d+ % .*\)"
        )
        assert re.fullmatch(mapped, axes[0])
        assert ("mapped so that heads lie on a circle" in text) == bool(cfg.fixed_heads)
        assert ("two principal axes" in text) == (axes[0][0] == "p")


def test_a_custom_prior_is_sampled_where_it_is_known(tmp_path):
    cfg = fastaae.preset("digits", hidden=(16,), epochs=1, prior="custom", out_dir=str(tmp_path / "run"))
    run = fastaae.train(cfg, prior=lambda out, g: out.exponential_(generator=g), progress=False)
    digits = datasets.load("digits")
    names = ["reconstructions", "codes"]
    shown = figures.draw(fastaae.load(run.directory), digits, tmp_path / "loaded")
    assert [path.stem for path in shown] == names
    assert shown[tmp_path / "loaded" / "codes.png"] == "codes of test images, coloured by label"
    assert [path.stem for path in figures.draw(run.model, digits, tmp_path / "new", seed=1)] == ["neighbours", *names]
    check_neighbours(run.model, digits, tmp_path / "new" / "neighbours.png")


def test_linear_outputs_are_clipped_before_neighbours_are_sought(tmp_path):
    m, digits = trained(tmp_path, "digits", output="linear", init_std=0.8, lr_reconstruction=1e-9)
    samples = m.sample(90, 1)
    assert samples.min() < 0 and samples.max() > 1
    clipped, plain = (figures.nearest(s[8::9], digits.x_train) for s in (samples.clip(0, 1), samples))
    assert (clipped != plain).any()
    figures.draw(m, digits, tmp_path, seed=1)
    check_neighbours(m, digits, tmp_path / "neighbours.png")


@pytest.mark.parametrize("n", [7, 25])
def test_validation_images_stand_in_for_a_test_set(tmp_path, n):
    m, own = trained(tmp_path, "digits", RNG.random((6 * n, 8, 8)).astype(np.float32), batch_size=5)
    shown = figures.draw(m, own, tmp_path)
    assert shown[tmp_path / "codes.png"].startswith("codes of validation images; dashed")
    columns, rows = min(10, n), max(1, n // 10)
    t = seen(tmp_path / "reconstructions.png", 2 * rows, columns)
    same(t[::2], own.x_valid[: rows * columns])
    same(t[1::2], m.reconstruct(own.x_valid[: rows * columns]))


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 4, 5)], ids=str)
def test_images_in_colour_are_drawn(tmp_path, shape):
    x, y = RNG.integers(0, 256, (90, *shape), np.uint8), np.arange(90) % 3
    for preset, changes in (("mnist-style", {}), ("mnist-clusters-16", {"n_clusters": 4}), ("digits", {})):
        m, own = trained(tmp_path / preset, preset, (x, y), batch_size=5, **changes)
        figures.draw(m, own, tmp_path / preset)
    values = read(tmp_path / "digits" / "reconstructions.png", 2, 10, 4, 5)[0]
    first = own.x_valid[0].reshape(shape).numpy() / 255
    first = np.moveaxis(first, 0, 2) if shape[0] == 3 else first
    np.testing.assert_allclose(values[:4, :5], first, atol=1e-6)
    assert np.ptp(read(tmp_path / "mnist-style" / "style_content.png", 10, 3, 4, 5)[0], 2).any()
    assert np.ptp(read(tmp_path / "mnist-clusters-16" / "cluster_heads.png", 4, 17, 4, 5, (1,))[0], 2).any()


FAILED = {"neighbours": 100, "reconstructions": 20, "manifold": 400}


def test_a_picture_that_the_shape_does_not_allow_costs_no_other(tmp_path):
    x = RNG.random((90, 4, 5, 2)).astype(np.float32)
    m, own = trained(tmp_path, "digits", x, batch_size=5)
    with pytest.warns(UserWarning) as caught:
        shown = figures.draw(m, own, tmp_path / "new")
    (text,) = [str(w.message) for w in caught]
    parts = [re.escape(f"{name} (images of shape ({n}, 4, 5, 2): expected ") for name, n in FAILED.items()]
    assert re.fullmatch("not drawn: " + "; ".join(part + r"[^;]*\)" for part in parts), text)
    assert caught[0].filename == __file__
    assert [path.stem for path in shown] == ["codes"] and os.listdir(tmp_path / "new") == ["codes.png"]


def test_nothing_is_written_for_a_wrong_seed(tmp_path):
    m, digits = trained(tmp_path, "digits")
    with pytest.raises(ValueError, match="seed=-1: expected an integer, at least 0"):
        figures.draw(m, digits, tmp_path / "new", seed=-1)
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------------------------------
# How they look: words, formats, curves, tables
# ---------------------------------------------------------------------------------------------------------------------


def test_white_bars_have_grey_lines_on_both_sides_and_borders_are_even(tmp_path):
    figures.grid(np.ones((2, 3, 3)), tmp_path / "a.png", 2, dividers=(1,))
    row = np.round(255 * imread(tmp_path / "a.png")[10, :, 0]).astype(int)
    gap, edges = plots.GAP, np.flatnonzero(np.diff(row))
    assert [len(part) for part in np.split(row, edges + 1)] == [gap, 75, gap, 4 * gap, gap, 75, gap]
    assert [part[0] for part in np.split(row, edges + 1)] == [128, 255, 128, 255, 128, 255, 128]
    column = np.round(255 * imread(tmp_path / "a.png")[:, 10, 0]).astype(int)
    assert column.tolist() == [128] * gap + [255] * 75 + [128] * gap


def made(images, columns, dividers=(), **around):
    """A figure of images with words around it."""
    from matplotlib import style

    with style.context(["default", plots.STYLE]):
        figure = plots.image_grid(images, columns, dividers, plots.Words(**around))
        words(figure)
        return figure


SHAPES = [(2, 2), (28, 28), (3, 100), (100, 3), (1, 7), (8, 8, 3), (120, 80)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "dividers"), [(1, 1, ()), (3, 2, (1,)), (4, 17, (1,)), (1, 100, (50,))])
def test_words_around_images_have_room_and_pixels_are_whole(shape, rows, columns, dividers, tmp_path):
    x, names = images(rows * columns, *shape), [f"a name of {k}" for k in range(100)]
    figure = made(
        x, columns, dividers, over=names[:columns], beside=[*"$x$ "][:rows], panels=["nearest of all", "the second"],
        left="what rows are", below="z₁",
    )  # fmt: skip
    assert figure.get_figwidth() < (plots.COLUMN if columns <= 20 else plots.PAGE) + 1.2  # where names are wider
    assert figure.dpi >= plots.DPI
    plots.write(tmp_path / "a.png", lambda: figure)
    values, _ = read(tmp_path / "a.png", rows, columns, *shape[:2], dividers)
    first = x[0].reshape(*shape[:2], -1)
    assert np.abs(values[: shape[0], : shape[1]] - first).max() <= 0.501 / 255
    shown = [text.get_text() for text in figure.texts]
    assert {"nearest of all", "what rows are", "z₁", r"\$"} <= {*shown} and names[0] in shown


@pytest.mark.parametrize(("columns", "expected"), [(10, 3.3), (17, 3.3), (20, 3.3), (30, 6.9)])
def test_pictures_are_as_wide_as_a_column_or_a_page(columns, expected):
    figure = made(images(2 * columns, 28, 28), columns, over=[*map(str, range(columns))], left="style")
    assert figure.get_figwidth() == pytest.approx(expected, abs=0.02)
    assert {text.get_fontsize() for text in figure.texts} == {8}


def test_names_are_short_plain_and_on_one_line():
    long, odd = "a" * 24, "a\n\x1b[2J" + "b" * 30
    assert plots.short(long) == long and plots.short(3) == "3" and plots.short("$x$") == r"\$x\$"
    assert len(plots.short(odd)) == 24 and plots.short(odd).startswith(r"a\n\x1b[2Jbb") and plots.short(odd)[-1] == "…"


@pytest.mark.parametrize("count", [3, 10, 33, 100])
def test_classes_of_any_number_and_length_have_room(count, tmp_path, figures_made):
    names = [f"{k} is a class with quite a name" for k in range(count)]
    z, y = RNG.normal(size=(4 * count, 2)), np.arange(4 * count) % count
    figures.codes(z, y, tmp_path / "a.png", *figures.outlines(prior("gaussian")), classes=names)
    written = words(figures_made["a"])
    assert sum("is a class" in text for text in written) == count and plots.short(names[2]) in written
    figures.style_content(model([[0.1, *[0.5] * count]] * 4, [0.0] * 4, classes=count), [[0.0]], tmp_path / "b.png")
    written = words(figures_made["b"])
    assert len(written) == {3: 5, 10: 12, 33: 35, 100: 52}[count]  # of a hundred every other


def test_codes_without_a_label_are_grey_and_called_so(tmp_path, figures_made):
    figures.codes(SEVEN, [0, -1, 2, 2, -1, 0, 0], tmp_path / "a.png", classes=["cat", "$", "dog"])
    (legend,) = figures_made["a"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["none", "cat", "dog"]
    colours = [handle.get_color() for handle in legend.legend_handles]
    np.testing.assert_allclose(colours[0], [0.8, 0.8, 0.8, 1])
    from matplotlib import colormaps

    np.testing.assert_allclose(colours[1:], colormaps["tab10"]([0, 2]))


@pytest.mark.parametrize("d", [3, 10, 200])
def test_principal_axes_are_those_of_the_covariance(d, tmp_path, figures_made):
    z = RNG.normal(size=(100, d)) * np.linspace(3, 1, d) + RNG.normal(size=d)
    axes, shares = figures.principal_axes(z)
    _, s, v = np.linalg.svd(z - z.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs((axes * v[:2].T).sum(0)), 1, rtol=1e-9)
    np.testing.assert_allclose(shares, (s**2 / (s**2).sum())[:2], rtol=1e-9)
    assert (axes[np.abs(axes).argmax(0), [0, 1]] > 0).all()
    figures.codes(z, None, tmp_path / "a.png")
    (panel,) = figures_made["a"].axes
    assert panel.get_xlabel() == f"principal axis 1 ({100 * shares[0]:.0f} % of variance)"
    np.testing.assert_allclose(panel.collections[0].get_offsets(), z @ axes, atol=1e-4)


def test_codes_that_are_all_the_same_have_axes():
    axes, shares = figures.principal_axes(np.ones((5, 3)))
    np.testing.assert_allclose(axes.T @ axes, np.eye(2), atol=1e-12)
    assert shares.tolist() == [0, 0]


HISTORY = {
    "step": np.array([10, 20, 30]),
    "reconstruction": np.array([[5.0, 3], [4, 2], [3, 1]]),
    "discriminator": np.array([[0.7, 0.7], [0.6, 0.4], [0.7, 0.7]]),
    "generator": np.array([[0.7, 0.7], [0.6, 0.4], [0.7, 0.7]]),
    "divergence": np.array([[1.0, 1.0], [0.1, 0.1], [0.001, 0.001]]),
    "epoch": np.array([1, 2]),
    "valid_reconstruction": np.array([[5.0, 3], [4, 2]]),
    "valid_error": np.array([[10.0, 30], [4, 2]]),
    "valid_nmi": np.array([[0.1, 0.3], [0.4, 0.6]]),
    "told_apart_z": np.array([[90.0, 80], [60, 40]]),
    "told_apart_y": np.array([[90.0, 80], [60, 40]]),
    "dead_units": np.array([[20.0, 10], [0, 0]]),
    "code_mean": np.array([[0.1, 0.3], [0, 0]]),
    "code_std": np.array([[0.1, 0.3], [1.0, 0.9]]),
}
EXPECTED = [  # of each panel: what its axes say, the lines in its legend
    ("step", "reconstruction loss", []),
    ("step", "loss, nats", ["discriminator", "generator"]),
    ("step", "divergence", []),
    ("epoch", "validation\nreconstruction loss", []),
    ("epoch", "validation\nerror, %", []),
    ("epoch", "validation\nNMI", []),
    ("epoch", "told apart, %", ["told apart z", "told apart y"]),
    ("epoch", "dead units, %", []),
    ("epoch", "codes, prior's std = 1", ["code mean", "code std"]),
]


def test_curves_show_the_history_with_its_units(tmp_path, figures_made):
    figures.curves(HISTORY, tmp_path / "c.png")
    figure = figures_made["c"]
    words(figure)
    legends = [axes.get_legend() for axes in figure.axes]
    lines = [[text.get_text() for text in legend.get_texts()] if legend else [] for legend in legends]
    found = [(a.get_xlabel(), a.get_ylabel(), names) for a, names in zip(figure.axes, lines, strict=True)]
    assert found == EXPECTED
    levels = [line for axes in figure.axes for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in levels] == [50, 1]
    thin, other, mean = figure.axes[0].lines
    np.testing.assert_array_equal(thin.get_xydata(), [[10, 5], [20, 4], [30, 3]])
    np.testing.assert_array_equal(other.get_xydata(), [[10, 3], [20, 2], [30, 1]])
    np.testing.assert_array_equal(mean.get_xydata(), [[10, 4], [20, 3], [30, 2]])
    assert thin.get_linewidth() == other.get_linewidth() < mean.get_linewidth()
    assert [axes.get_yscale() for axes in figure.axes] == ["linear"] * 2 + ["log"] + ["linear"] * 6
    one = {name: values[:1] for name, values in HISTORY.items()}
    figures.curves(one, tmp_path / "one.png")
    for axes in (*figure.axes, *figures_made["one"].axes):
        assert all(tick == round(tick) for tick in axes.get_xticks())


def test_curves_say_nats_where_the_loss_is_a_cross_entropy(tmp_path, figures_made):
    for loss, end in (("cross_entropy", " loss, nats"), ("squared_error", " loss")):
        figures.curves(HISTORY, tmp_path / "c.png", Config(reconstruction=loss, output="sigmoid"))
        assert figures_made["c"].axes[0].get_ylabel() == f"reconstruction{end}"
        assert figures_made["c"].axes[3].get_ylabel() == f"validation\nreconstruction{end}"


@pytest.mark.parametrize("history", [{}, {"step": np.array([]), "epoch": np.array([])}], ids=["none", "no rows"])
def test_an_empty_history_is_refused(history, tmp_path):
    with pytest.raises(ValueError, match="^history of .*: expected rows after steps or epochs$"):
        figures.curves(history, tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("epochs", [1, 2])
def test_curves_of_a_run_are_drawn_with_its_pictures(epochs, tmp_path, figures_made):
    cfg = fastaae.preset("digits", hidden=(16,), epochs=epochs, replicas=2, out_dir=str(tmp_path / "run"))
    run = fastaae.train(cfg, progress=False)
    shown = figures.draw(run.model, datasets.load("digits"), tmp_path / "out", arrays=True, history=run.history)
    assert shown[tmp_path / "out" / "curves.png"] == "losses, validation metrics and how the game went"
    with np.load(tmp_path / "out" / "curves.npz") as numbers:
        assert {*numbers} == {*run.history}
        assert all(np.array_equal(numbers[name], run.history[name]) for name in numbers)
    assert "told apart z, %" in words(figures_made["curves"])


def table(tmp_path, columns=None, d=8, n=80, **changes):
    """Model and data of a moment's training on a table, which has columns of such names."""
    import pandas as pd

    x = RNG.normal(size=(n, d)) * np.arange(1, d + 1)
    x = x if columns is None else pd.DataFrame(x, columns=columns)
    small = {"hidden": (8,), "epochs": 1, "batch_size": 10, "scale": "standard", "out_dir": str(tmp_path / "run")}
    return fastaae.train(Config(**small | changes), x, progress=False), x


@pytest.mark.parametrize("named", [True, False])
def test_a_table_has_marginals_codes_and_curves(named, tmp_path, figures_made):
    names = [f"column {k}" for k in range(8)] if named else None
    run, x = table(tmp_path, names, style_dim=3)
    shown = figures.draw(run.model, x, tmp_path / "out", seed=2, arrays=True, history=run.history)
    assert [path.name for path in shown if path.suffix == ".png"] == ["marginals.png", "codes.png", "curves.png"]
    rows = datasets.from_arrays(x, scale="standard").x_valid.numpy()
    assert shown[tmp_path / "out" / "marginals.png"] == "the first features of validation rows, and of as many samples"
    with np.load(tmp_path / "out" / "marginals.npz") as numbers:
        np.testing.assert_allclose(numbers["data"], rows[:, :6])
        np.testing.assert_allclose(numbers["samples"], run.model.sample(len(rows), 2)[:, :6], rtol=1e-6)
    figure, names = figures_made["marginals"], names or [f"feature {k}" for k in range(8)]
    words(figure)
    assert [axes.get_xlabel() for axes in figure.axes] == names[:6]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["validation", "samples"]
    for axes in figure.axes:
        heights = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
        assert heights == [len(rows), len(rows)]
        data, samples = ([bar.get_x() for bar in bars] for bars in axes.containers)
        assert all(a < b for a, b in zip(data, samples, strict=True))  # side by side


@pytest.mark.parametrize("d", [1, 2, 4])
def test_a_table_of_few_columns_is_drawn(d, tmp_path, figures_made):
    run, x = table(tmp_path, d=d, style_dim=2)
    assert [path.stem for path in figures.draw(run.model, x, tmp_path / "out")] == ["marginals", "codes"]
    assert len(figures_made["marginals"].axes) == d
    words(figures_made["marginals"])


def test_pictures_come_in_several_formats_and_are_the_same_each_time(tmp_path, monkeypatch):
    import matplotlib

    m, digits = trained(tmp_path, "digits")
    first = figures.draw(m, digits, tmp_path / "a", formats=("pdf", "png", "svg", "png"), arrays=True)
    names = ["neighbours", "reconstructions", "codes", "manifold"]
    assert [path.name for path in first] == [f"{n}.{end}" for n in names for end in ("pdf", "png", "svg", "npz")]
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "savefig.dpi": 10, "image.cmap": "jet"}):
        again = figures.draw(m, digits, tmp_path / "b", formats=["svg", "pdf"], arrays=True)
    png = figures.draw(m, digits, tmp_path / "b", formats="png")
    for path in (*again, *png):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name
    starts = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}
    assert all(path.read_bytes().startswith(starts.get(path.suffix[1:], b"PK")) for path in first)
    assert b"nearest" in (tmp_path / "a" / "neighbours.svg").read_bytes()  # in a comment on its letters
    assert b"/Subtype /Type3" not in (tmp_path / "a" / "codes.pdf").read_bytes()


def test_a_vector_picture_holds_the_pixels_of_the_other(tmp_path):
    import base64
    import io

    x = images(6, 8, 8)
    for end in ("svg", "png"):
        figures.reconstructions(x, x, tmp_path / f"a.{end}")
    (image,) = re.findall(r"data:image/png;base64,\s*([^\"]+)", (tmp_path / "a.svg").read_text())
    pixels = imread(io.BytesIO(base64.b64decode(image)))[..., :3]
    assert np.array_equal(pixels, framed(tmp_path / "a.png"))


@pytest.mark.parametrize("formats", ["jpgg", (), ["png", "x"], [3], "", [".png"]], ids=str)
def test_a_format_that_matplotlib_does_not_write_is_refused_before_anything_is_drawn(formats, tmp_path):
    m, digits = trained(tmp_path, "digits")
    with pytest.raises(ValueError, match=r"^formats=.*: expected some of .*, pdf, .*png.*svg"):
        figures.draw(m, digits, tmp_path / "new", formats=formats)
    assert not (tmp_path / "new").exists()


def test_the_numbers_behind_pictures_are_those_shown(tmp_path):
    m, digits = trained(tmp_path, "mnist-clusters-16", n_clusters=4)
    figures.draw(m, digits, tmp_path / "out", seed=3, arrays=True)
    with np.load(tmp_path / "out" / "neighbours.npz") as numbers:
        np.testing.assert_allclose(numbers["samples"], m.sample(90, 3).clip(0, 1))
        found = figures.nearest(numbers["samples"][8::9], digits.x_train)
        np.testing.assert_array_equal(numbers["nearest"].reshape(10, 64), digits.x_train[found])
    with np.load(tmp_path / "out" / "cluster_heads.npz") as numbers:
        shown = seen(tmp_path / "out" / "cluster_heads.png", 4, 17, (1,))
        same(shown[:, 0], numbers["heads"])
        same(shown[:, 1:], numbers["images"])
        assert numbers["sizes"].tolist() == np.bincount(m.predict(digits.x_test), minlength=4).tolist()
    with np.load(tmp_path / "out" / "reconstructions.npz") as numbers:
        np.testing.assert_array_equal(numbers["images"].reshape(40, 64), digits.x_test[:40])
        np.testing.assert_allclose(numbers["reconstructions"], m.reconstruct(digits.x_test[:40]), rtol=1e-6)
    m, digits = trained(tmp_path / "2", "digits", prior="mixture", components=2)
    figures.draw(m, digits, tmp_path / "out", arrays=True)
    with np.load(tmp_path / "out" / "manifold.npz") as numbers:
        np.testing.assert_allclose(numbers["codes"], figures.spread(m.config)[0], rtol=1e-6)
        images = numbers["images"]
        assert images.shape == (2, 10, 10, 8, 8)
        np.testing.assert_allclose(images[1, 3, 4:6], m.decode(numbers["codes"][1, 3, 4:6]), rtol=1e-5, atol=1e-6)
    m, digits = trained(tmp_path / "3", "mnist-style")
    figures.draw(m, digits, tmp_path / "out", arrays=True)
    with np.load(tmp_path / "out" / "style_content.npz") as numbers:
        np.testing.assert_allclose(numbers["styles"], m.encode(digits.x_test[:10]), rtol=1e-6)
        assert numbers["images"].shape == (10, 10, 8, 8) and numbers["labels"].tolist() == DIGITS
        same(seen(tmp_path / "out" / "style_content.png", 10, 10), numbers["images"])

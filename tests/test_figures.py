"""Figures: the pixels of the files are those of the images, without a display."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from fastaae import figures

pytest.importorskip("matplotlib")
from matplotlib.image import imread  # noqa: E402

RNG = np.random.default_rng(0)


def images(n, *shape):
    return RNG.random((n, *shape)).astype(np.float32)


def read(path, rows, columns, height, width):
    """The picture's values, one for each value of a mosaic of such tiles, checked to be uniform squares."""
    pixels = imread(path)[..., :3]
    gap = figures.GAP
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


@pytest.mark.parametrize("shape", [(10, 4, 4), (20, 2, 3), (20, 2, 3, 3), (10, 9)], ids=str)
def test_reconstructions_lie_below_their_images(tmp_path, shape):
    x, decoded = images(*shape), images(*shape)
    figures.reconstructions(x, decoded, tmp_path / "a.png")
    size = {2: (3, 3)}.get(len(shape), shape[1:3])
    height, width = size
    values, _ = read(tmp_path / "a.png", 2 * shape[0] // 10, 10, height, width)
    for k in range(shape[0]):
        i, j = divmod(k, 10)
        for below, source in enumerate((x, decoded)):
            top = (2 * i + below) * height
            shown = values[top : top + height, j * width : (j + 1) * width]
            assert np.abs(shown - source[k].reshape(height, width, -1)).max() <= 0.501 / 255, f"image {k}"


def rgb(pixels, colour):
    """Pixels of this colour."""
    return (np.abs(pixels[..., :3] - colour[:3]) < 2 / 255).all(-1)


@pytest.mark.parametrize("prior_std", [None, 5.0])
def test_codes_are_dots_in_the_colour_of_their_label(tmp_path, prior_std):
    from matplotlib import colormaps

    z = np.repeat([[-9.0, -9.0], [9.0, 9.0]], 30, 0) + RNG.normal(0, 0.8, (60, 2))
    figures.codes(z, np.repeat([0, 3], 30), tmp_path / "z.png", prior_std)
    pixels = imread(tmp_path / "z.png")
    assert pixels.shape == (810, 900, 4)
    plot = pixels[:, :650]  # without the colour bar
    rows = [np.argwhere(rgb(plot, colormaps["tab10"](label)))[:, 0] for label in (0, 3)]
    assert len(rows[0]) > 30 and len(rows[1]) > 30
    assert rows[0].min() > rows[1].max()  # z = (-9, -9) is at the bottom
    grey = rgb(plot, (0.6, 0.6, 0.6)).sum()
    assert grey > 200 if prior_std else grey < 50


@pytest.mark.parametrize("labels", [[4], np.array([4])], ids=["list", "array"])
def test_one_code_can_be_shown(tmp_path, labels):
    figures.codes(np.zeros((1, 2)), labels, str(tmp_path / "z.png"))
    assert imread(tmp_path / "z.png").shape == (810, 900, 4)


def test_figures_need_no_display_and_no_pyplot(tmp_path):
    code = """
import sys, numpy as np
from fastaae import figures
figures.grid(np.zeros((2, 4, 4)), "grid.png")
figures.codes(np.zeros((2, 2)), [0, 1], "codes.png", 1.0)
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    env |= {"MPLBACKEND": "TkAgg"}  # would need one
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["codes.png", "grid.png"]

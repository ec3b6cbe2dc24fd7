"""Priors against their analytic moments."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from test_phases import Recorder

from fastaae.engine import priors


def fill(prior, out, component, generator, labels=None, *, components=10, scale=1.0):
    """priors.draw(), its arguments by name."""
    priors.draw(prior, out, scale, component, generator, labels, components)


def plain(prior, out, std, generator):
    """A prior without components."""
    priors.draw(prior, out, std, torch.empty(0), generator)


mixture, swiss_roll = partial(fill, "mixture"), partial(fill, "swiss_roll")
gaussian, uniform = partial(plain, "gaussian"), partial(plain, "uniform")


@pytest.mark.parametrize("std", [0.5, 5.0])
def test_gaussian_moments(std):
    n = 40_000
    z = torch.empty(n, 3)
    gaussian(z, std, torch.Generator().manual_seed(0))
    assert (z.mean(0).abs() < 5 * std / n**0.5).all()
    assert ((z.std(0) / std - 1).abs() < 5 / (2 * n) ** 0.5).all()
    assert ((z / std).pow(4).mean(0) - 3).abs().max() < 5 * (96 / n) ** 0.5
    assert torch.corrcoef(z.T).triu(1).abs().max() < 5 / n**0.5


@pytest.mark.parametrize("k", [1, 2, 10])
def test_categorical_is_one_hot_and_uniform(k):
    n = 40_000
    y = torch.full((n, k), 7.0)
    priors.categorical(y, torch.Generator().manual_seed(0))
    assert torch.equal(y.sum(1), torch.ones(n)) and ((y == 0) | (y == 1)).all()
    assert ((y.mean(0) - 1 / k).abs() <= 5 * (1 / k * (1 - 1 / k) / n) ** 0.5).all()


def test_same_generator_state_same_samples():
    a, b = torch.empty(9, 4), torch.empty(9, 4)
    for out in (a, b):
        gaussian(out, 1.0, torch.Generator().manual_seed(3))
    assert torch.equal(a, b)


def moments(z, mean, covariance, errors=5):
    """Fails if mean or covariance of z [N, D] are more than so many standard errors off; of the covariance, as the
    sample has them."""
    z, n = z.double(), len(z)
    assert ((z.mean(0) - mean).abs() <= errors * (covariance.diagonal() / n).sqrt()).all(), "mean"
    products = (z - mean)[:, :, None] * (z - mean)[:, None]
    assert ((products.mean(0) - covariance).abs() <= errors * products.std(0) / n**0.5).all(), "covariance"


@pytest.mark.parametrize("half_width", [1.0, 5.0])
def test_uniform_moments(half_width):
    z = torch.empty(40_000, 3)
    uniform(z, half_width / 3**0.5, torch.Generator().manual_seed(0))
    moments(z, torch.zeros(3), half_width**2 / 3 * torch.eye(3, dtype=torch.float64))
    assert z.abs().max() <= half_width and (z.abs().max(0).values > 0.999 * half_width).all()
    moments(z.square(), half_width**2 / 3 * torch.ones(3), half_width**4 * 4 / 45 * torch.eye(3, dtype=torch.float64))


def petal_moments(k, components, scale):
    """Radius 1.4, standard deviations 0.5 along it and 0.1 across."""
    angle = torch.tensor(2 * math.pi * k / components, dtype=torch.float64)
    out, across = torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])
    return 1.4 * scale * out, scale**2 * (0.25 * torch.outer(out, out) + 0.01 * torch.outer(across, across))


def spiral_moments(k, components, scale):
    """By quadrature over the angle; radius 3, two turns, noise 0.1."""
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) * (4 * math.pi / 100_000)
    length = (1 + t * t).sqrt()
    end = length.cumsum(0)
    weight = length * ((end - length / 2) * components / end[-1]).floor().eq(k)
    points = 3 * scale * (t / (4 * math.pi))[:, None] * torch.stack([t.cos(), t.sin()], 1)
    mean = (weight[:, None] * points).sum(0) / weight.sum()
    spread = (points - mean) * (weight / weight.sum()).sqrt()[:, None]
    return mean, spread.T @ spread + (0.1 * scale) ** 2 * torch.eye(2, dtype=torch.float64)


SHAPED = [(mixture, petal_moments), (swiss_roll, spiral_moments)]
BY_NAME = pytest.mark.parametrize("prior, expected", SHAPED, ids=["mixture", "swiss_roll"])


def draw(prior, n, labels=None, seed=0, dtype=torch.float32, **options):
    out = torch.full((n, 2), float("nan"), dtype=dtype)
    component = torch.full((n,), -7)
    prior(out, component, torch.Generator().manual_seed(seed), labels, **options)
    return out, component


def check(prior, expected, components=10, scale=1.0, n=60_000, **options):
    """Every component's moments, those of all samples around the means of their components, and uniform components."""
    z, component = draw(prior, n, components=components, scale=scale, **options)
    share = torch.bincount(component, minlength=components) / n
    assert ((share - 1 / components).abs() <= 5 * (1 / components * (1 - 1 / components) / n) ** 0.5).all()
    means, covariances = map(
        torch.stack, zip(*(expected(k, components, scale) for k in range(components)), strict=True)
    )
    for k in range(components):
        moments(z[component == k], means[k], covariances[k])
    moments(z - means[component], torch.zeros(2), covariances.mean(0))
    assert z.isfinite().all()


@BY_NAME
@pytest.mark.parametrize("components, scale", [(10, 1.0), (3, 5.0), (1, 0.5), (100, 1.0)])
def test_shaped_priors_have_their_moments(prior, expected, components, scale):
    check(prior, expected, components, scale)
    check(prior, expected, components, scale, dtype=torch.float64, seed=1)


def test_the_whole_mixture_has_mean_zero_and_a_standard_deviation_of_1_054():
    z, _ = draw(mixture, 60_000)
    moments(z, torch.zeros(2), (1.4**2 + 0.5**2 + 0.1**2) / 2 * torch.eye(2, dtype=torch.float64))
    assert math.sqrt((1.4**2 + 0.5**2 + 0.1**2) / 2) == pytest.approx(1.054, abs=5e-4)


FAULTS = [
    (mixture, petal_moments, "RADIUS", 1.04),
    (mixture, petal_moments, "RADIAL_STD", 1.06),
    (mixture, petal_moments, "TANGENTIAL_STD", 1.06),
    (swiss_roll, spiral_moments, "ROLL_RADIUS", 1.01),
    (swiss_roll, spiral_moments, "ROLL_TURNS", 1.005),
    (swiss_roll, spiral_moments, "ROLL_STD", 1.1),
]


@pytest.mark.parametrize("prior, expected, name, factor", FAULTS, ids=[f[2] for f in FAULTS])
def test_a_wrong_parameter_is_seen(monkeypatch, prior, expected, name, factor):
    monkeypatch.setattr(priors, name, getattr(priors, name) * factor)
    with pytest.raises(AssertionError, match="mean|covariance"):
        check(prior, expected, components=100 if name == "ROLL_STD" else 10)  # where pieces are short, noise is seen


@BY_NAME
def test_a_wrong_angle_is_seen(prior, expected):
    def rotated(out, *args, **options):
        prior(out, *args, **options)
        angle = torch.tensor(math.radians(1.0))
        turn = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
        out.copy_(out @ turn)

    with pytest.raises(AssertionError, match="mean|covariance"):
        check(rotated, expected)


def test_wrong_moments_of_the_plain_priors_are_seen():
    z, eye = torch.empty(40_000, 3), torch.eye(3, dtype=torch.float64)
    gaussian(z, 1.02, torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match="covariance"):
        moments(z, torch.zeros(3), eye)
    uniform(z, 1.02 / 3**0.5, torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match="covariance"):
        moments(z, torch.zeros(3), eye / 3)


@BY_NAME
def test_samples_come_from_the_component_of_their_label(prior, expected):
    n = 60_000
    labels = torch.arange(n) % 12 - 2  # a sixth is unlabelled
    z, component = draw(prior, n, labels)
    labelled = labels >= 0
    assert torch.equal(component[labelled], labels[labelled])
    share = torch.bincount(component[~labelled], minlength=10) / (~labelled).sum()
    assert ((share - 0.1).abs() <= 5 * (0.09 / (n / 6)) ** 0.5).all()
    for k in range(10):
        moments(z[component == k], *expected(k, 10, 1.0))
    one, _ = draw(prior, 5_000, torch.full((5_000,), 7))
    moments(one, *expected(7, 10, 1.0))


@BY_NAME
def test_labels_change_nothing_about_what_is_drawn(prior, expected):
    """The generator moves on by as much, and the samples of unlabelled rows are the same."""
    z, component = draw(prior, 1000)
    labels = torch.where(torch.arange(1000) < 500, -1, 3)
    given, chosen = draw(prior, 1000, labels)
    assert torch.equal(given[:500], z[:500]) and torch.equal(chosen[:500], component[:500])
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    for g, y in zip(generators, (None, labels), strict=True):
        prior(torch.empty(1000, 2), torch.empty(1000, dtype=torch.int64), g, y)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@BY_NAME
def test_shaped_priors_fill_a_view_and_nothing_else(prior, expected):
    wide = torch.full((50, 5), 9.0)
    prior(wide[:, 1:3], torch.empty(50, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert (wide[:, [0, 3, 4]] == 9).all() and (wide[:, 1:3] != 9).all() and wide.isfinite().all()


def test_petals_describe_the_mixture():
    for k, components, scale in ((0, 10, 1.0), (3, 10, 1.0), (2, 3, 5.0)):
        mean, axes = priors.petal(k, components=components, scale=scale)
        expected = petal_moments(k, components, scale)
        torch.testing.assert_close(mean, expected[0])
        torch.testing.assert_close(axes.T @ axes, expected[1])
        assert axes.norm(dim=1).tolist() == pytest.approx([0.5 * scale, 0.1 * scale])


def test_the_roll_is_a_spiral_of_even_pace():
    position = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    points = priors.roll(position, scale=2.0)
    steps = points.diff(dim=0).norm(dim=1)
    assert (steps / steps.mean() - 1).abs().max() < 1e-5  # a chord is a little shorter than its arc
    radius, angle = points.norm(dim=1), torch.atan2(points[:, 1], points[:, 0])
    assert radius[0] == 0 and radius[-1] == pytest.approx(6, rel=1e-12)
    turned = (4 * math.pi * radius / 6 - angle)[1:] / (2 * math.pi)  # whole turns between the two
    assert (turned - turned.round()).abs().max() < 1e-9
    torch.testing.assert_close(priors.roll(position.float(), scale=2.0).double(), points, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prior", ["gaussian", "uniform", "categorical", "mixture", "swiss_roll"])
def test_priors_are_capture_safe(prior):
    out, component = torch.empty(64, 2), torch.empty(64, dtype=torch.int64)
    labels, g = torch.arange(64) % 11 - 1, torch.Generator().manual_seed(0)
    draw = partial(priors.draw, prior, out, 1.0, component, g, labels)
    draw = partial(priors.categorical, out, g) if prior == "categorical" else draw
    addresses, recorded = (out.data_ptr(), component.data_ptr()), []
    for _ in range(3):
        before = out.clone()
        with Recorder() as recorder:
            draw()
        recorded.append(recorder.calls)
        assert not torch.equal(out, before)
    assert recorded[0] == recorded[1] == recorded[2] and (out.data_ptr(), component.data_ptr()) == addresses


@pytest.mark.parametrize(
    ("prior", "components", "share"), [("mixture", 10, 0.98), ("mixture", 3, 0.995), ("swiss_roll", 10, 0.95)]
)
def test_codes_are_found_in_their_component(prior, components, share):
    """All but what reaches into a neighbour: of a petal 2.6 per mille lie beyond the centre, and a piece of the roll,
    1.9 long, loses about 0.08 at its ends."""
    z, component = torch.empty(20_000, 2, dtype=torch.float64), torch.empty(20_000, dtype=torch.int64)
    priors.draw(prior, z, 3.0, component, torch.Generator().manual_seed(0), components=components)
    found = priors.component_of(prior, z, components=components, scale=3.0)
    assert (found == component).double().mean() > share
    if prior == "mixture":  # the likeliest, by density
        petals = [priors.petal(k, components=components, scale=3.0) for k in range(components)]
        logs = [torch.distributions.MultivariateNormal(m, axes.T @ axes).log_prob(z) for m, axes in petals]
        assert torch.equal(found, torch.stack(logs, 1).argmax(1))


@pytest.mark.parametrize("prior", ["mixture", "swiss_roll"])
def test_of_many_components_few_codes_are_compared_at_once(prior, monkeypatch):
    sizes, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b: sizes.append(len(a) * len(b)) or cdist(a, b))
    k = torch.arange(0, 5000, 499)
    z = priors.roll((k.double() + 0.5) / 5000)
    if prior == "mixture":
        z = torch.stack([priors.petal(int(i), components=5000)[0] for i in k])
    assert priors.component_of(prior, z.repeat(3, 1), components=5000).tolist() == k.tolist() * 3
    assert max(sizes, default=0) <= 2**22 and (sizes == []) == (prior == "mixture")

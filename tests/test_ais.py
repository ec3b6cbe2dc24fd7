"""Annealed importance sampling against likelihoods that are known: of linear decoders in closed form, of others by
quadrature or a million samples."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import erf, logsumexp
from scipy.stats import multivariate_normal

import fastaae
from fastaae import Model, ais
from fastaae import model as models
from fastaae.engine.networks import MLP, Heads
from fastaae.engine.priors import petal
from fastaae.engine.scale import Scale
from fastaae.kernels.exact import exact_arithmetic

FLOATS = {"dtype": "float32"}


class Linear:
    """A model whose decoder is one product, and its density: a mixture of Gaussians, one for each class and petal."""

    def __init__(self, seed, d, n, std=1.0, k=0, heads=False, dtype=torch.float32, **fields):
        g = np.random.default_rng(seed)
        w, b = g.normal(size=(n, d + (0 if heads else k))) / math.sqrt(d) / std, g.normal(size=n)
        shift, span, v = g.normal(size=n), g.uniform(0.5, 2, n), g.normal(size=(k, d)) * 2 * std
        known, weights = dict(FLOATS), np.ones(max(k, 1))
        if k:
            fields |= {"task": "embedding"} if heads else {"task": "clustering"}
            fields["n_clusters"], weights = k, g.uniform(0.1, 1, k)
            known["label_weights"] = weights.tolist()
        cfg = fastaae.Config(hidden=(), style_dim=d, prior_std=std, scale="standard", **fields)
        own = [torch.from_numpy(t).to(dtype) for t in (w[None], b[None, None], shift[None, None], span[None, None])]
        of = Heads(torch.from_numpy(v[None]).to(dtype)) if heads else None
        self.model = Model(cfg, (n,), k, None, MLP(own[:1], own[1:2]), of, Scale(*own[2:]), None, known)
        parts = [(np.zeros(d), std * np.eye(d))]
        if cfg.prior == "mixture":
            parts = [[t.numpy() for t in petal(c, components=cfg.components, scale=std)] for c in range(cfg.components)]
        codes = [(np.r_[m, y], axes) for m, axes in parts for y in np.eye(k).reshape(max(k, 1), -1)]
        if heads:
            codes = [(m + row, axes) for m, axes in parts for row in v]
        self.log_share = np.log(np.tile(weights / weights.sum(), len(parts)) / len(parts))
        self.means = [(w @ m + b) * span + shift for m, _ in codes]
        self.factors = [span[:, None] * (w[:, :d] @ axes.T) for _, axes in codes]

    def exact(self, x, sigma):
        """log p of x [M, n]."""
        noise = sigma**2 * np.eye(x.shape[1])
        parts = zip(self.means, self.factors, strict=True)
        each = [np.atleast_1d(multivariate_normal.logpdf(x, m, f @ f.T + noise)) for m, f in parts]
        return logsumexp(np.stack(each) + self.log_share[:, None], axis=0)

    def draw(self, n, sigma, seed):
        g = np.random.default_rng(seed)
        branch = g.choice(len(self.means), n, p=np.exp(self.log_share) / np.exp(self.log_share).sum())
        x = [self.means[k] + self.factors[k] @ g.normal(size=self.factors[k].shape[1]) for k in branch]
        return np.stack(x) + sigma * g.normal(size=(n, len(x[0])))


def holds(lower, exact, upper):
    """Whether bounds of simulated examples are such, on average, but for three standard errors."""
    below, above = lower - exact, upper - exact
    errors = [3 * d.std(ddof=1) / math.sqrt(len(d)) for d in (below, above)]
    return below.mean() <= errors[0] and above.mean() >= -errors[1]


def check(linear, sigma, n=10, **options):
    """The result on n drawn queries, how far their bounds are off, and whether those of simulated ones hold."""
    x = linear.draw(n, sigma, 1)
    r = linear.model.ais_log_likelihood(x, sigma, **options)
    s = r.simulated
    assert r.gap == (s.upper - s.lower).mean() and r.mean == r.per_query.mean()
    return r, r.per_query - linear.exact(x, sigma), holds(s.lower, linear.exact(s.x, sigma), s.upper)


CASES = {
    "one dimension": dict(d=1, n=3),
    "several": dict(d=5, n=30, std=5.0),
    "float64": dict(d=3, n=12, std=2.0, dtype=torch.float64),
    "labels": dict(d=2, n=8, k=3),
    "embedding": dict(d=3, n=8, k=4, heads=True),
    "mixture": dict(d=2, n=5, prior="mixture", components=4),
    "mixture and labels": dict(d=2, n=5, k=2, prior="mixture", components=3),
}


@pytest.mark.parametrize("case", CASES)
def test_the_likelihood_of_a_linear_decoder_is_found(case):
    linear = Linear(len(case), **CASES[case])
    r, off, ok = check(linear, 0.3, steps=600 if case == "several" else 300)
    assert ok and np.abs(off).max() < 0.5 and abs(off.mean()) < 0.2 and -0.1 < r.gap < 0.3
    assert np.all(np.abs(off) < 5 * r.spread + 0.05) and 0.5 < r.acceptance.min() <= r.acceptance.max() < 0.9
    assert np.all((1 <= r.effective_chains) & (r.effective_chains <= 16 * len(linear.means)))


def test_one_chain_is_right_in_expectation():
    """Its weight, over p(x), is 1 on average: with step sizes by its own acceptance it is 1.09."""
    linear = Linear(7, 2, 8)
    x = linear.draw(4000, 0.3, 1)
    r = linear.model.ais_log_likelihood(x, 0.3, 1, 100, simulated=0)
    ratio = np.exp(r.per_query - linear.exact(x, 0.3))
    assert abs(ratio.mean() - 1) < 3 * ratio.std() / math.sqrt(len(x)) < 0.05


def test_bounds_that_are_wrong_are_seen():
    exact = np.random.default_rng(0).normal(size=20)
    noise = 0.1 * np.random.default_rng(1).normal(size=20)
    assert holds(exact - 0.1 + noise, exact, exact + 0.1 + noise)
    assert not holds(exact + 0.1 + noise, exact, exact + 0.1) and not holds(exact, exact, exact - 0.1 + noise)


@pytest.mark.parametrize("wrong", ["prior", "transition"])
def test_a_sampler_that_is_wrong_is_seen(wrong, monkeypatch):
    """Of a prior three times as wide, or with transitions to samples of the prior, whatever beta."""

    def decoder(model, sigma):
        found = right(model, sigma)
        found.axes = 3 * found.axes
        return found

    def transition(self, u, x, at, beta, size):
        u = torch.empty_like(u).normal_(generator=self.generator)
        return [u, *self.branches(u, x), torch.full_like(size, 0.65)]

    right = ais.Branches
    if wrong == "prior":
        monkeypatch.setattr(ais, "Branches", decoder)
    else:
        monkeypatch.setattr(ais.Chains, "transition", transition)
    _, off, ok = check(Linear(3, 3, 12), 0.3, steps=100)
    assert not ok or abs(off.mean()) > 0.5


def test_a_uniform_prior_agrees_with_quadrature():
    g = np.random.default_rng(0)
    w, b, half, sigma = g.normal(size=3), g.normal(size=3), 2.0 * math.sqrt(3), 0.4
    cfg = fastaae.Config(task="gan", hidden=(), style_dim=1, prior="uniform", prior_std=2.0, output="linear")
    m = Model(cfg, (3,), 0, None, MLP([torch.tensor(w)[None, :, None]], [torch.tensor(b)[None, None]]))
    x = g.uniform(-half, half, (8, 1)) * w + b + sigma * g.normal(size=(8, 3))

    def exact(x):
        """The integral over z of a Gaussian whose mean goes along w, from its middle and what is beside the line."""
        width, middle = sigma / np.linalg.norm(w), (x - b) @ w / (w @ w)
        beside = ((x - b) ** 2).sum(1) - middle**2 * (w @ w)
        inside = 0.5 * (erf((half - middle) / width / math.sqrt(2)) + erf((half + middle) / width / math.sqrt(2)))
        norm = (
            math.log(width * math.sqrt(2 * math.pi)) - math.log(2 * half) - 3 * math.log(sigma * math.sqrt(2 * math.pi))
        )
        return norm - beside / (2 * sigma**2) + np.log(inside)

    with warnings.catch_warnings(action="ignore"):
        r = m.ais_log_likelihood(x, sigma, steps=300)
    assert np.abs(r.per_query - exact(x)).max() < 0.3 and holds(
        r.simulated.lower, exact(r.simulated.x), r.simulated.upper
    )


def network(seed, *sizes, norms=False, factor=1.0):
    g = torch.Generator().manual_seed(seed)
    net = MLP.initialize(sizes, 1.0, [g], torch.device("cpu"), torch.float32, batch_norm=norms)
    for n in net.norms:
        n.mean.normal_(generator=g), n.variance.uniform_(0.5, 3, generator=g), n.scale.uniform_(0.5, 2, generator=g)
    for bias in net.biases:
        bias.normal_(generator=g)
    net.weights[-1].mul_(factor)
    return net


def scale(pixels):
    g = torch.Generator().manual_seed(0)
    return Scale(torch.rand(1, 1, 6, generator=g), torch.rand(1, 1, 6, generator=g) + 0.5, pixels)


NETWORKS = {
    "sigmoid": (dict(), dict(), None),
    "clipped pixels": (dict(scale="standard"), dict(factor=0.2), True),
    "batch normalisation": (dict(scale="standard", batch_norm="autoencoder"), dict(norms=True, factor=0.3), False),
    "stretched sigmoid": (dict(scale="minmax", reconstruction="cross_entropy"), dict(), False),
    "petals": (dict(prior="mixture", components=3), dict(), None),
    "uniform": (dict(prior="uniform"), dict(), None),
}


def nonlinear(name):
    fields, net, pixels = NETWORKS[name]
    cfg = fastaae.Config(hidden=(16,), style_dim=2, prior_std=1.0, **fields)
    s, known = (None, {}) if pixels is None else (scale(pixels), {"dtype": "uint8" if pixels else "float32"})
    return Model(cfg, (2, 3), 0, None, network(1, 2, 16, 6, **net), scale=s, known=known)


@pytest.mark.filterwarnings("ignore:queries has values")
@pytest.mark.parametrize("name", NETWORKS)
def test_chains_and_a_million_samples_agree(name):
    """In two dimensions at a large sigma Parzen's estimate of 1M samples is good to a hundredth of a nat or so."""
    m, sigma = nonlinear(name), 0.5
    x = m.sample(6, 3) + sigma * np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    r = m.ais_log_likelihood(x, sigma, steps=500, simulated=10)
    every = np.concatenate([x, r.simulated.x])
    parzen, simulated = np.split(m.log_likelihood(every, 1_000_000, sigma, progress=False).per_query, [6])
    assert np.abs(r.per_query - parzen).max() < 4 * r.spread.max() + 0.05 < 1
    assert abs((r.per_query - parzen).mean()) < 0.1 and r.simulated.x.shape == (10, 2, 3)
    assert holds(r.simulated.lower, simulated, r.simulated.upper)


@pytest.mark.parametrize("name", NETWORKS)
def test_likelihood_and_slope_are_those_of_autograd(name):
    m, sigma = nonlinear(name), 0.3
    module = m.decoder_module().double()
    g = torch.Generator().manual_seed(1)
    with exact_arithmetic():
        b = ais.Branches(m, sigma)
        u = torch.randn(len(b.mean), 4, 3, 2, generator=g, dtype=torch.float64)
        x = torch.rand(4, 6, generator=g)
        value, slope = b(u, x)
    u, value, slope = u.clone().requires_grad_(), value.clone(), slope.clone()
    v = math.sqrt(3) * torch.erf(u / math.sqrt(2)) if name == "uniform" else u
    z = b.mean.clone()[:, None, None] + torch.einsum("kqsd,kde->kqse", v, b.axes.clone())
    original = x.double() * b.span.clone() + b.shift.clone()
    decoded = module(z.reshape(-1, 2)).view(*u.shape[:3], 6)
    exact = torch.distributions.Normal(decoded, sigma).log_prob(original[:, None]).sum(-1)
    exact.sum().backward()
    torch.testing.assert_close(value, exact.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(slope, u.grad, rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def small():
    return Linear(5, 3, 10)


def all_of(r):
    return [getattr(r, name).tobytes() for name in ("per_query", "spread", "effective_chains", "acceptance")] + [
        a.tobytes() for a in r.simulated
    ]


def test_a_seed_gives_the_same_bits(small):
    x = small.draw(5, 0.3, 0)
    first, again, other = (small.model.ais_log_likelihood(x, 0.3, 4, 20, seed=s) for s in (1, 1, 2))
    assert all_of(first) == all_of(again) and repr(first) == repr(again)
    assert all(a != b for a, b in zip(all_of(first), all_of(other), strict=True))


def test_many_queries_are_taken_in_parts(small, monkeypatch):
    monkeypatch.setattr(models, "BATCH", 40)
    rows, right = [], MLP.tape
    monkeypatch.setattr(MLP, "tape", lambda self, n: rows.append(n) or right(self, n))
    _, off, ok = check(small, 1.0, n=9, chains=10, steps=300, simulated=6)
    assert max(rows) <= 40 and np.abs(off).max() < 0.5 and len(off) == 9 and ok


def test_one_chain_has_no_spread_and_no_examples_no_gap(small):
    r = small.model.ais_log_likelihood(small.draw(2, 0.3, 0), 0.3, 1, 2, simulated=0)
    assert np.isnan(r.spread).all() and np.isnan(r.gap) and r.simulated.x.shape == (0, 10)
    assert np.isfinite(r.per_query).all() and (r.effective_chains == 1).all()
    assert r.mean == r.per_query.mean() and r.sem == r.per_query.std() / 2**0.5


def custom(out, generator):
    out.normal_(generator=generator)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(sigma=0.0), r"^sigma=0.0: expected a positive number"),
        (dict(sigma=-1), r"^sigma=-1: expected"),
        (dict(sigma=math.nan), r"^sigma=nan: expected"),
        (dict(sigma=None), r"^sigma=None: expected"),
        (dict(sigma=1e-60), r"^sigma=1e-60: query 0 is beyond floats, expected a wider window"),
        (dict(sigma=1e99), r"^sigma=1e\+99: simulated examples are beyond floats, expected a narrower window"),
        (dict(chains=0), r"^chains=0: expected an integer, at least 1"),
        (dict(steps=1), r"^steps=1: expected an integer, at least 2"),
        (dict(simulated=-1), r"^simulated=-1: expected an integer, at least 0"),
        (dict(seed=-1), r"^seed=-1: expected an integer, at least 0"),
        (dict(queries=np.zeros((2, 9))), r"^queries has 9 values per example, expected 10 of shape \(10,\)"),
        (dict(queries=np.zeros((0, 10))), r"^queries has shape \(0, 10\), expected"),
        (dict(queries=np.full((2, 10), math.nan)), r"^queries has 20 NaN or infinite values"),
    ],
)
def test_what_makes_no_sense_is_refused(change, words, small):
    arguments = dict(queries=small.draw(2, 0.3, 0), sigma=0.3, chains=2, steps=3) | change
    with pytest.raises(ValueError, match=words):
        small.model.ais_log_likelihood(**arguments)


@pytest.mark.parametrize("prior", ["swiss_roll", "custom"])
def test_a_prior_without_a_density_is_refused(prior):
    cfg = fastaae.Config(hidden=(), prior=prior)
    m = Model(cfg, (3,), 0, None, network(0, 2, 3), prior=custom if prior == "custom" else None)
    with pytest.raises(ValueError, match=f"^prior='{prior}': expected one of gaussian, uniform, mixture, whose"):
        m.ais_log_likelihood(np.full((2, 3), 0.5, np.float32), 0.3)


@pytest.mark.slow
def test_bounds_of_200_linear_models():
    """Up to 8 latent and 64 observed dimensions, windows from a tenth of the data's deviation to all of it. Where
    one of ten queries is off by half a nat at 2,000 steps, none is at 10,000."""
    rows, again = [], []
    for seed in range(200):
        g = np.random.default_rng(seed)
        d, sigma, std = g.integers(1, 9), g.choice([0.1, 0.25, 0.5, 1.0]), g.choice([0.5, 1.0, 5.0])
        linear = Linear(seed, int(d), int(g.integers(d, 65)), float(std))
        r, off, ok = check(linear, float(sigma), steps=2000, seed=seed)
        exact = linear.exact(r.simulated.x, sigma)
        below, above = (r.simulated.lower - exact).mean(), (r.simulated.upper - exact).mean()
        if np.abs(off).max() > 0.5:
            again.append(np.abs(check(linear, float(sigma), steps=10_000, seed=seed, simulated=2)[1]).max())
        rows.append([r.gap, np.abs(off).max(), ok, below, above, off.mean()])
    rows = np.array(rows, float)
    gap, worst, ok, below, above, off = rows.T
    error = [v.std() / math.sqrt(len(rows)) for v in (below, above)]
    print(f"\n{ok.sum():.0f} of {len(rows)} bracket; gap: median {np.median(gap):.4f}, largest {gap.max():.3f}")
    print(f"queries: off by {worst.max():.3f} at most, by {off.mean():.4f} on average; median {np.median(worst):.3f}")
    print(f"lower - exact {below.mean():.4f} +- {error[0]:.4f}, upper - exact {above.mean():.4f} +- {error[1]:.4f}")
    print(
        f"models with a query off by more than 0.5: {len(again)}; at 10,000 steps {max(again, default=0):.3f} at most"
    )
    assert ok.sum() >= 195 and max(again, default=0) < 0.5 and len(again) < 3 and np.median(gap) < 0.1

"""Priors against their analytic moments."""

from __future__ import annotations

import pytest
import torch

from fastaae import priors


@pytest.mark.parametrize("std", [0.5, 5.0])
def test_gaussian_moments(std):
    n = 40_000
    z = torch.empty(n, 3)
    priors.gaussian(z, std, torch.Generator().manual_seed(0))
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
        priors.gaussian(out, 1.0, torch.Generator().manual_seed(3))
    assert torch.equal(a, b)

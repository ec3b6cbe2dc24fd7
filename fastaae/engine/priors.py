"""Prior distributions: each fills a given buffer, in place, from a generator on the buffer's device.

Capture-safe: no host synchronisation, no shape that depends on data, the same draws from the generator in every call.

A mixture and a swiss roll have components, which stand for classes: component [B] int64 receives the one behind each
sample. With labels [B] int64, a sample comes from the component of its label; where the label is negative (unlabelled),
and without labels, the component is drawn uniformly. Labels are not checked, since that would synchronise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Custom = Callable[[Tensor, torch.Generator], Tensor | None]
"""A user's prior: fills out [B, style_dim], a strided view, in place with independent draws that take all their
randomness from the generator, on out's device; on a GPU without a synchronisation. May return out."""


def draw(
    prior: str | Custom, out: Tensor, std: float, component: Tensor, generator: torch.Generator,
    labels: Tensor | None = None, components: int = 10,
) -> None:  # fmt: skip
    """Samples of the prior of that name in Config, or of a user's, into out [B, D].

    Args:
        std: the scale, Config.prior_std.
        component, labels: [B] int64, see above.

    Raises:
        ValueError: a user's function returned something else than out. RuntimeError: it raised an OSError.
    """
    if not isinstance(prior, str):
        try:
            returned = prior(out, generator)
        except OSError as error:  # not one of the files that training writes
            raise RuntimeError(f"prior={prior!r}: {type(error).__name__}: {error}") from error
        if returned is not None and returned is not out:
            raise ValueError(f"prior={prior!r} returned a {type(returned).__name__}: it must fill its first argument")
    elif prior == "gaussian":
        out.normal_(0, std, generator=generator)
    elif prior == "uniform":
        half_width = std * math.sqrt(3)
        out.uniform_(-half_width, half_width, generator=generator)
    else:
        component.random_(components, generator=generator)
        if labels is not None:
            component.copy_(torch.where(labels < 0, component, labels))
        fill = mixture if prior == "mixture" else swiss_roll
        fill(out, component, generator, components, std)


def chosen(name: str, custom: Custom | None, like: Tensor) -> str | Custom:
    """What draw() takes, of Config.prior and the function that a caller passed, tried on a buffer [B, D] like the one
    given.

    Raises:
        ValueError: one calls for the other, or the function does not fill the buffer with finite numbers.
    """
    if custom is None and name != "custom":
        return name
    if name != "custom":
        raise ValueError(f"prior={custom!r}: expected None where the config has prior={name!r}, not 'custom'")
    if not callable(custom):
        raise ValueError(f"prior={custom!r}: the config's is 'custom', expected a function of (out, generator)")
    out = torch.full_like(like, math.nan)
    draw(custom, out, 1.0, out, torch.Generator(like.device).manual_seed(0))
    if left := out.numel() - out.isfinite().sum().item():
        wrong = f"left {left} of {out.numel()} numbers unset or not finite"
        raise ValueError(f"prior={custom!r} {wrong}: fill all of {list(out.shape)}")
    return custom


def spread(prior: str | Custom, like: Tensor, std: float, components: int) -> float:
    """Standard deviation of 4,096 samples of a prior, over all dimensions; 1 where they are one point. like: [B, D]."""
    z, g = like.new_empty(4096, like.shape[1]), torch.Generator(like.device).manual_seed(0)
    draw(prior, z, std, torch.empty(4096, dtype=torch.int64, device=like.device), g, components=components)
    return z.double().var(0).mean().sqrt().item() or 1.0


def categorical(out: Tensor, generator: torch.Generator, weights: Tensor | None = None) -> None:
    """One-hot vectors of drawn classes, uniformly, or by weights [K]. out: [B, K]. Capture-safe."""
    b, k = out.shape
    if weights is None:
        drawn = torch.randint(k, (b, 1), generator=generator, dtype=torch.int64, device=out.device)
    else:
        ends = (weights / weights.sum()).cumsum(0)
        u = torch.rand(b, 1, generator=generator, dtype=ends.dtype, device=out.device)
        drawn = torch.searchsorted(ends, u, right=True).clamp_max_(k - 1)
    out.zero_().scatter_(1, drawn, 1)


def mixture(out: Tensor, component: Tensor, generator: torch.Generator, components: int, scale: float) -> None:
    """Samples [B, 2] of 2-D Gaussians arranged as the petals of a flower (figure 2b): see petal(). Three or more have
    standard deviation 1.054 * scale together, in both dimensions."""
    out.normal_(generator=generator)
    angle = component.to(out.dtype) * (2 * math.pi / components)
    cos, sin = angle.cos(), angle.sin()
    radial = scale * (RADIUS + RADIAL_STD * out[:, 0])
    tangential = scale * TANGENTIAL_STD * out[:, 1]
    torch.stack([radial * cos - tangential * sin, radial * sin + tangential * cos], 1, out=out)


def swiss_roll(out: Tensor, component: Tensor, generator: torch.Generator, components: int, scale: float) -> None:
    """Samples [B, 2] around a mean that is uniform along a spiral, see roll(): figure 4c. Component k is the k-th of so
    many pieces of equal length, from the inside out."""
    position = torch.rand(len(out), generator=generator, device=out.device, dtype=out.dtype)
    out.normal_(0, scale * ROLL_STD, generator=generator)
    out.add_(roll((component + position) / components, scale=scale))


def component_of(prior: str, z: Tensor, *, components: int = 10, scale: float = 1.0) -> Tensor:
    """The component, int64 [N], of a "mixture" under which each z [N, 2] is likeliest; or of a "swiss_roll" the one
    whose piece of the axis is nearest."""
    if len(z) > (most := max(1, 2**22 // (100 * components))):  # what is compared at once
        parts = [component_of(prior, part, components=components, scale=scale) for part in z.split(most)]
        return torch.cat(parts)
    if prior == "swiss_roll":
        position = torch.linspace(0, 1, 200 * components + 1, dtype=z.dtype, device=z.device)[1::2]  # 100 of each
        return torch.cdist(z, roll(position, scale=scale)).argmin(1) // 100
    angle = torch.arange(components, dtype=z.dtype, device=z.device) * (2 * math.pi / components)
    x, y = z[:, :1] / scale, z[:, 1:] / scale
    radial, tangential = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    return (((radial - RADIUS) / RADIAL_STD).square() + (tangential / TANGENTIAL_STD).square()).argmin(1)


# Figure 2b in public code: petals at radius 1.4, 0.5 long and 0.05 or 0.1 wide; the paper gives no numbers. With 0.1,
# 98.4 % of the samples of ten petals are likeliest under their own.
RADIUS, RADIAL_STD, TANGENTIAL_STD = 1.4, 0.5, 0.1


def petal(component: int, *, components: int = 10, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean [2] and axes [2, 2] of one Gaussian of the mixture, float64. The axes are rows, radial (long) first, as long
    as the standard deviation along them: mean + axes.T @ N(0, I) is a sample, axes.T @ axes its covariance."""
    angle = 2 * math.pi * component / components
    cos, sin = math.cos(angle), math.sin(angle)
    frame = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64, device="cpu")
    stds = torch.tensor([[RADIAL_STD], [TANGENTIAL_STD]], dtype=torch.float64, device="cpu")
    return scale * RADIUS * frame[0], scale * stds * frame


# Public code draws two turns out to radius 3, only nearly uniform along the roll and without noise. The paper's roll
# has noise, its size is not known: here a fifteenth of the distance between the turns.
ROLL_RADIUS, ROLL_TURNS, ROLL_STD = 3.0, 2.0, 0.1


def roll(position: Tensor, *, scale: float = 1.0) -> Tensor:
    """Points [N, 2] on the axis of the swiss roll, the Archimedean spiral, from its length up to them: 0 at the centre,
    1 at the outer end. position: [N], float."""
    # The length up to the angle t is proportional to f(t) = t √(1 + t²) + asinh t, which is convex and at least t²:
    # Newton's method from √length comes down to the angle, to rounding in four iterations.
    end = 2 * math.pi * ROLL_TURNS
    length = position * (end * math.hypot(1, end) + math.asinh(end))
    angle = length.sqrt()
    for _ in range(4):
        slope = (1 + angle * angle).sqrt()
        angle = angle - (angle * slope + angle.asinh() - length) / (2 * slope)
    radius = angle * (scale * ROLL_RADIUS / end)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

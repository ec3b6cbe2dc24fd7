"""The scale of the data: what networks see of them, and the way back to their units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..data import Rows


class Scale:
    """What networks see of the data, (x - shift) / span by feature, and the way back.

    Args:
        shift, span: [R, 1, D], the same for every replica; float64 where x has more digits than networks.
        pixels: whether the data are in [0, 1], and so is what comes back.
    """

    def __init__(self, shift: Tensor, span: Tensor, pixels: bool = False):
        self.shift, self.span, self.pixels = shift, span, pixels

    @classmethod
    def fit(cls, kind: str, rows: Rows, replicas: int, dtype: torch.dtype) -> Scale:
        """Of the examples in rows [N, D], bytes scaled to [0, 1]; sums in float64. kind: "standard", their mean and
        standard deviation; "minmax", their least and their range. The span of a feature that never changes is 1, its
        shift its value."""
        unit = 255 if rows.x.dtype == torch.uint8 else 1
        ends = torch.stack([torch.stack([b.amin(0), b.amax(0)]).double() for b in rows.split(4096)])
        low, high = ends[:, 0].amin(0) / unit, ends[:, 1].amax(0) / unit
        shift, span = low, high - low
        if kind == "standard":
            shift, square, base = torch.zeros_like(low), torch.zeros_like(low), 0 if unit == 255 else low
            for b in rows.split(4096):
                shift += (b.double() - base).sum(0)
            shift = shift / (unit * len(rows)) + base
            for b in rows.split(4096):
                square += (b.double() / unit - shift).square().sum(0)
            span = (square / len(rows)).sqrt()
        shift, span = torch.where(low == high, low, shift), torch.where(low == high, 1.0, span)
        shift, span = (t.to(dtype).repeat(replicas, 1, 1) for t in (shift, span))
        return cls(shift, span, unit == 255)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(x - shift) / span of x [R, B, D]. Capture-safe; out may be x."""
        return torch.div(torch.sub(x, self.shift, out=out), self.span, out=out)

    def invert(self, x: Tensor) -> Tensor:
        """x * span + shift, of pixels clipped to [0, 1]."""
        out = torch.addcmul(self.shift, x.to(self.span.dtype), self.span)
        return out.clamp_(0, 1) if self.pixels else out

    def mapped(self, f: Callable[[Tensor], Tensor]) -> Scale:
        """The scale whose tensors are f of this one's."""
        return Scale(f(self.shift), f(self.span), self.pixels)

    def state(self) -> dict[str, Tensor]:
        """By the names of the first files that had one."""
        return {"mean": self.shift, "std": self.span}


def scaled(kind: str, rows: Rows, replicas: int, dtype: torch.dtype) -> tuple[Scale | None, Tensor]:
    """The scale of a config on the CPU, and the examples. Those with more digits than networks have are scaled here,
    once, in float64: others when they fill a batch."""
    if kind == "unit":
        return None, rows.x
    if rows.x.dtype in (torch.uint8, dtype):
        return Scale.fit(kind, rows, replicas, dtype), rows.x
    scale = Scale.fit(kind, rows, replicas, torch.float64)
    one = scale.mapped(lambda t: t[0])
    return scale, torch.cat([one(block).to(dtype) for block in rows.x.split(4096)])

"""Prior distributions: each fills a given buffer, in place, from a generator on the buffer's device."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian(out: Tensor, std: float, generator: torch.Generator) -> None:
    """N(0, std²) in every dimension. out: [B, D]."""
    out.normal_(0, std, generator=generator)


def categorical(out: Tensor, generator: torch.Generator) -> None:
    """One-hot vectors of uniformly drawn classes. out: [B, K]."""
    drawn = torch.randint(out.shape[1], (out.shape[0], 1), generator=generator, device=out.device)
    out.zero_().scatter_(1, drawn, 1)

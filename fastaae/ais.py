"""The log-likelihood that Parzen windows around ever more samples approach, by annealed importance sampling.

Of a decoder G and a window sigma: log p(x) = log E_z N(x; G(z), sigma² I), z from the prior, in nats. Chains go from
the prior to the posterior of z, by Hamiltonian Monte Carlo for prior(z) N(x; G(z), sigma² I)^beta (Neal 2001; Wu et
al. 2017, arXiv 1611.04273). The mean of their weights is p(x) in expectation, so its logarithm is a stochastic lower
bound: b nats too high with a probability of at most exp(-b). The code behind an x simulated from the model is a sample
of its posterior. With a chain run backwards from there in the place of one of the others, the inverse of the mean is
1 / p(x) in expectation: an upper bound (Grosse et al. 2015, arXiv 1511.02543; Andrieu et al. 2010). Step sizes follow
what a few other chains accepted before: by their own, as in Wu et al., p(x) comes out 0.7 % too high with 16 chains.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .engine import priors
from .engine.networks import MLP
from .engine.scale import Scale
from .files import brief
from .kernels.exact import exact_arithmetic
from .kernels.reference import BATCH_NORM_EPS
from .scalars import integer, scalar, within

# At one price, on digits simulated from mnist-likelihood-adam: -4 to 4, ten gradients and no jitter leave a gap of 17
# nats; with jitter 12; from -6 to 2, too, 3.3; with five gradients at twice as many steps 0.6. There more changes
# nothing, but linear decoders have a spread of 0.14 instead of 0.25 nats by starting at -9, more jitter and smaller
# steps (bench/LOG.md).
FIRST, LAST = -9.0, -2.0  # beta goes as a logistic function between these
LEAPFROGS, JITTER = 5, 0.95  # gradients in a transition; of their step size, or some directions come back in them
ACCEPTANCE, RATE = 0.7, 0.2  # what step sizes are steered to, and by how much of what is missing their logarithm


class Simulated(NamedTuple):
    """Examples from the model, x [n, *shape] in the units of the data, and bounds of each, [n]; all float64."""

    x: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


@dataclass(frozen=True)
class AISResult:
    """What Model.ais_log_likelihood returns. Likelihoods are in nats, arrays float64 [M].

    Attributes:
        mean, sem: of per_query, and its standard error, population standard deviation / sqrt(M).
        gap: mean of upper minus lower bounds of simulated examples; NaN without any.
        per_query: a stochastic lower bound of each.
        spread: its standard error, by the spread of weights over chains; NaN for one chain.
        effective_chains, acceptance: of each; (sum of weights)² / sum of squared weights, and mean of transitions.
        simulated: the examples behind the gap, and their bounds.
    """

    mean: float
    sem: float
    gap: float
    per_query: np.ndarray = field(repr=False)
    spread: np.ndarray = field(repr=False)
    effective_chains: np.ndarray = field(repr=False)
    acceptance: np.ndarray = field(repr=False)
    simulated: Simulated = field(repr=False)


class Branches:
    """A model's decoder as a function of u ~ N(0, I), once for every class and component of the prior: the code is
    mean + v axes, v being u or, for a uniform prior, what is as uniform as u is normal.

    Attributes:
        mean, axes: [K, W] and [K, d, W]; log_share: of each branch in the prior, [K]; all float64.
        ends: of pixels, as networks see them; precision: 1 / sigma, so, too; [1, D].
    """

    def __init__(self, model: Any, sigma: float):
        cfg, like, k = model.config, model.decoder.weights[0], model.n_classes
        self.uniform, self.sigmoid = cfg.prior == "uniform", cfg.output_layer == "sigmoid"
        axes = cfg.prior_std * torch.eye(cfg.style_dim, dtype=torch.float64, device="cpu")[None]
        mean, n = axes[:, 0] * 0, cfg.components if cfg.prior == "mixture" else 1
        if cfg.prior == "mixture":
            petals = [priors.petal(c, components=n, scale=cfg.prior_std) for c in range(n)]
            mean, axes = (torch.stack(part) for part in zip(*petals, strict=True))
        mean, axes = (t.repeat_interleave(max(k, 1), 0) for t in (mean, axes))
        if model.heads is not None:
            mean += model.heads.weight[0].double().cpu().repeat(n, 1)
        elif k:
            mean = torch.cat([mean, torch.eye(k, dtype=torch.float64, device="cpu").repeat(n, 1)], 1)
            axes = torch.nn.functional.pad(axes, (0, k))
        self.mean, self.axes = mean.to(like.device), axes.to(like.device)
        share = torch.tensor(model.known.get("label_weights") or [1.0] * max(k, 1), dtype=torch.float64, device="cpu")
        self.log_share = (share / share.sum() / n).log().repeat(n).to(like.device)
        flat = self.mean.new_ones(1, 1, model.decoder.outputs[-1])
        scale = model.scale or Scale(0 * flat, flat)
        self.shift, self.span = scale.shift[0].double(), scale.span[0].double()
        self.ends = [((end - self.shift) / self.span).to(like.dtype) for end in (0, 1)] if scale.pixels else None
        self.precision = (self.span / sigma).to(like.dtype)
        self.log_norm = self.span.numel() * math.log(sigma * math.sqrt(2 * math.pi))
        weights, biases = [w[:1] for w in model.decoder.weights], [b[:1] for b in model.decoder.biases]
        for i, norm in enumerate(model.decoder.norms):
            factor = norm.scale[:1] * torch.rsqrt(norm.variance[:1] + BATCH_NORM_EPS)
            weights[i], biases[i] = weights[i] * factor.mT, biases[i] - norm.mean[:1] * factor
        self.network = MLP(weights, biases, library=model.decoder.library)
        self.tape = self.network.tape(0)

    def decode(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder makes of u [K, N, d], [K * N, D] on the tape, and what the model shows of that."""
        v = math.sqrt(3) * torch.erf(u / math.sqrt(2)) if self.uniform else u
        code = torch.baddbmm(self.mean[:, None], v, self.axes).flatten(0, 1)
        if self.tape.x[0].shape[1] != len(code):
            self.tape = self.network.tape(len(code))
        self.tape.x[0][0].copy_(code)
        self.network.forward(self.tape)
        out = self.tape.x[-1][0].sigmoid_() if self.sigmoid else self.tape.x[-1][0]
        return out, out.clamp(*self.ends) if self.ends else out

    def __call__(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihoods [K, Q, S], summed in float64, of x [Q, D], as networks see it, and their gradients by u
        [K, Q, S, d]. Capture-safe from the second call on."""
        out, shown = self.decode(u.flatten(1, 2))
        r = shown.view(*u.shape[:3], -1).sub(x[:, None]).mul_(self.precision)
        value = -0.5 * r.square().sum(-1, dtype=torch.float64) - self.log_norm
        g = torch.mul(r.flatten(0, 2), -self.precision, out=self.tape.g[-1][0])
        if self.ends:
            g.mul_(out == shown)
        if self.sigmoid:
            torch.ops.aten.sigmoid_backward.grad_input(g, out, grad_input=g)
        self.network.backward(self.tape, None, input_gradient=True)
        slope = (self.tape.g[0][0].double().view(len(u), -1, self.axes.shape[2]) @ self.axes.mT).view_as(u)
        return value, slope * (math.sqrt(6 / math.pi) * torch.exp(-0.5 * u * u)) if self.uniform else slope


class Chains:
    """Chains of several examples under every branch at once: u is [K, Q, S, d], x [Q, D] as networks see it."""

    def __init__(self, branches: Branches, steps: int, seed: int, bar: Any):
        ends = 1 / (1 + np.exp(-np.linspace(FIRST, LAST, steps + 1)))
        self.betas = ((ends - ends[0]) / (ends[-1] - ends[0])).tolist()
        self.branches, self.bar = branches, bar
        self.generator = torch.Generator(branches.mean.device).manual_seed(seed)

    def start(self, n: int, chains: int) -> Tensor:
        """So many chains for each of n examples."""
        k, d = self.branches.axes.shape[:2]
        return self.branches.mean.new_empty(k, n, chains, d).normal_(generator=self.generator)

    def simulated(self, n: int, chains: int) -> list[Tensor]:
        """Examples [n, D] from the model, and their lower and upper bounds."""
        branches, k = self.branches, len(self.branches.axes)
        u, drawn = self.start(n, 1)[:1].expand(k, -1, -1, -1), branches.mean.new_empty(n, k)
        priors.categorical(drawn, self.generator, branches.log_share.exp())
        branch, every = drawn.argmax(1), torch.arange(n, dtype=torch.int64, device=u.device)
        x = branches.decode(u.flatten(1, 2))[1].view(k, n, -1)[branch, every]
        x = x + torch.empty_like(x).normal_(generator=self.generator) / branches.precision
        weight, sizes, _ = self.forth(x, chains)
        mixed, back = weight.clone(), self.anneal(u, x, sizes, back=True)[0]
        mixed[branch, every, -1] = -back[branch, every, 0]
        return [x, *(w.logsumexp((0, 2)) - math.log(chains) for w in (weight, mixed))]

    def forth(self, x: Tensor, chains: int) -> list[Any]:
        """As anneal, with step sizes that a fourth as many chains were steered to, whose weights are not used."""
        pilot = self.anneal(self.start(len(x), -(-chains // 4)), x, [])
        return self.anneal(self.start(len(x), chains), x, pilot[1])

    def anneal(self, u: Tensor, x: Tensor, sizes: Sequence[Tensor], back: bool = False) -> list[Any]:
        """Log weights [K, Q, S] of chains from u, samples of the prior, to the posterior, times the branch's share, or
        back; step sizes [K, Q] of each transition, those given or steered; mean acceptance [Q]."""
        betas, sign = (self.betas[::-1], -1) if back else (self.betas, 1)
        value, slope = self.branches(u, x)
        size, used = value.new_full(value.shape[:2], 0.5), []
        weight, accepted = 0 * value + sign * self.branches.log_share[:, None, None], torch.zeros_like(size)
        for k in range(1, len(betas)):
            weight += (betas[k] - betas[k - 1]) * value
            self.bar.update()
            if k < len(betas) - 1:
                used.append(sizes[-k if back else k - 1] if sizes else size)
                u, value, slope, chance = self.transition(u, x, (value, slope), betas[k], used[-1])
                accepted += chance
                size = size * torch.exp(RATE * (chance - ACCEPTANCE))
        return [weight, used, accepted.mean(0) / len(used)]

    def transition(self, u: Tensor, x: Tensor, at: tuple[Tensor, Tensor], beta: float, size: Tensor) -> list[Tensor]:
        """One of Hamiltonian Monte Carlo, whose target is N(u; 0, I) likelihood^beta: u, what branches say of it as
        they did at the old one, and the probability of acceptance [K, Q], mean over chains. Capture-safe."""
        jitter, draw = u.new_empty(2, *u.shape[:3]).uniform_(generator=self.generator)
        step = (size[..., None] * (1 + JITTER * (2 * jitter - 1)))[..., None]
        p, v, (value, slope) = torch.empty_like(u).normal_(generator=self.generator), u, at
        before = beta * value - 0.5 * (u * u + p * p).sum(-1)
        for _ in range(LEAPFROGS):
            p = p + 0.5 * step * (beta * slope - v)
            v = v + step * p
            value, slope = self.branches(v, x)
            p = p + 0.5 * step * (beta * slope - v)
        chance = (beta * value - 0.5 * (v * v + p * p).sum(-1) - before).clamp_max(0).exp().nan_to_num(0)
        taken = (draw < chance)[..., None]
        u, slope = (torch.where(taken, a, b) for a, b in ((v, u), (slope, at[1])))
        return [u, torch.where(taken[..., 0], value, at[0]), slope, chance.mean(-1)]


def ais_log_likelihood(
    model: Any, x: Tensor, sigma: float, chains: int, steps: int, simulated: int, seed: int
) -> AISResult:
    """What Model.ais_log_likelihood returns, of examples x [M, D] as networks see them."""
    sigma, prior = scalar(sigma), model.config.prior
    if prior not in ("gaussian", "uniform", "mixture"):
        raise ValueError(f"{prior=}: expected one of gaussian, uniform, mixture, whose densities are known")
    if not within(1e-100, sigma, 1e100):
        raise ValueError(f"sigma={brief(sigma)}: expected a positive number, the standard deviation of the window")
    chains, steps = integer("chains", chains, 1), integer("steps", steps, 2)
    simulated, seed = integer("simulated", simulated, 0), integer("seed", seed, 0)
    with exact_arithmetic(), tqdm(unit=" steps", disable=True if sys.stderr is None else None) as bar:
        run = Chains(Branches(model, sigma), steps, seed, bar)
        many = max(1, model.batch // (chains * len(run.branches.mean)))  # so that memory is bounded
        parts, some = x.split(many), [min(many, simulated - k) for k in range(0, simulated, many)]
        bar.total = steps * (2 * len(parts) + 3 * len(some))
        weights, _, accepted = zip(*(run.forth(part, chains) for part in parts), strict=True)
        made = [run.simulated(n, chains) for n in some] or [(x[:0], *2 * [accepted[0][:0]])]
        weight = torch.cat(weights, 1).movedim(1, 0)  # [M, K, S]
        lower, own = weight.logsumexp((1, 2)) - math.log(chains), weight.flatten(1).softmax(1).view_as(weight)
        if len(wrong := lower.isfinite().logical_not().nonzero()):
            raise ValueError(f"sigma={sigma:g}: query {wrong[0].item()} is beyond floats, expected a wider window")
        effective, unbiased = 1 / own.square().sum((1, 2)), chains / (chains - 1) if chains > 1 else math.nan
        spread = (unbiased * (own - own.mean(2, keepdim=True)).square().sum((1, 2))).sqrt()
        drawn, *bounds = (torch.cat(part) for part in zip(*made, strict=True))
        if not bounds[1].isfinite().all():
            raise ValueError(f"sigma={sigma:g}: simulated examples are beyond floats, expected a narrower window")
        drawn = (drawn.double() * run.branches.span + run.branches.shift).view(-1, *model.shape)
        arrays = [t.cpu().numpy() for t in (lower, spread, effective, torch.cat(accepted), drawn, *bounds)]
    per_query, pairs = arrays[0], Simulated(*arrays[4:])
    gap = float((pairs.upper - pairs.lower).mean()) if simulated else math.nan
    mean, sem = float(per_query.mean()), float(per_query.std() / math.sqrt(len(per_query)))
    return AISResult(mean, sem, gap, *arrays[:4], simulated=pairs)

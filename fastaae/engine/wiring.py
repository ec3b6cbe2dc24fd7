"""Which networks a config has, how wide they are, and which phase trains which of them at which cost: no tensors.

Step builds itself from this, load() checks a file against it, tests read it.
"""

from __future__ import annotations

from typing import NamedTuple

from ..config import WITH_Y, Config

PHASES: dict[str, tuple[str, ...]] = {
    "unsupervised": ("reconstruction", "discriminator", "generator"),
    "supervised": ("reconstruction", "discriminator", "generator"),
    "semi_supervised": ("reconstruction", "discriminator", "generator", "classification"),
    "clustering": ("reconstruction", "discriminator", "generator"),
    "embedding": ("reconstruction", "separation", "discriminator", "generator", "classification"),
    "gan": ("discriminator", "generator"),
}
"""The phases of each task, in their order; without those that a config has no use for."""


class Phase(NamedTuple):
    """One part of a step: a function of engine/phases.py, whose name is also the key of its loss in the metrics."""

    name: str
    cost: str  # whose learning rate and momentum it takes: reconstruction, adversarial or classification
    trains: tuple[str, ...]  # networks that it updates, each with an optimiser of its own


class Wiring(NamedTuple):
    """Sizes of everything that flows between the networks of a config, and what trains them."""

    code: dict[str, int]  # what the encoder makes, in this order: z, y with a label head, log_variance if Gaussian
    n_classes: int  # size of the y that the decoder takes, 0 without one
    condition: int  # columns of labels that, beside z, only the discriminator of z sees
    sizes: dict[str, tuple[int, ...]]  # widths of each network: encoder, decoder, discriminator.z and so on
    heads: tuple[int, int] | None  # shape of W_C, whose rows are cluster heads
    norms: dict[str, int]  # networks with batch normalisation, of so many of their layers, from the first
    noise: tuple[int, int]  # layer and number of the further inputs of a universal posterior's encoder
    phases: tuple[Phase, ...]

    @property
    def prior(self) -> dict[str, int]:
        """What has a prior: z, and y with a label head."""
        return {name: size for name, size in self.code.items() if name != "log_variance"}

    def further(self, network: str) -> tuple[int, int]:
        """As noise, of any network: nothing but the encoder's."""
        return self.noise if network == "encoder" else (0, 0)


def wiring(cfg: Config, d: int, classes: int) -> Wiring:
    """Of examples with d values and so many classes."""
    y = cfg.n_clusters or (0 if cfg.task in ("unsupervised", "gan") else classes)
    condition = classes + 1 if cfg.label_prior else 0
    code = {"z": cfg.style_dim} | ({"y": y} if cfg.task in WITH_Y else {})
    judged = {"x": d} if cfg.task == "gan" else {**code, "z": condition + cfg.style_dim}
    if cfg.posterior == "gaussian":
        code["log_variance"] = cfg.style_dim
    sizes = {} if cfg.task == "gan" else {"encoder": (d, *cfg.hidden, sum(code.values()))}
    sizes["decoder"] = (cfg.style_dim + (0 if cfg.task == "embedding" else y), *cfg.hidden, d)
    if cfg.regularizer == "adversarial" and cfg.lr_adversarial:
        sizes |= {f"discriminator.{name}": (width, *cfg.hidden, 1) for name, width in judged.items()}
    heads = (y, cfg.style_dim) if cfg.task == "embedding" else None
    normed = {"none": (), "encoder": ("encoder",), "autoencoder": ("encoder", "decoder")}[cfg.batch_norm]
    norms = {n: len(cfg.hidden) + (cfg.task != "gan") for n in normed if n in sizes}
    noise = (cfg.noise_layer, cfg.noise_dim if cfg.posterior == "universal" else 0)
    return Wiring(code, y, condition, sizes, heads, norms, noise, _phases(cfg, tuple(sizes)))


def _phases(cfg: Config, networks: tuple[str, ...]) -> tuple[Phase, ...]:
    learned = ("heads",) if cfg.task == "embedding" and cfg.fixed_heads is None else ()
    discriminators = tuple(name for name in networks if name.startswith("discriminator"))
    every = {
        "divergence": ("reconstruction", ()),  # a term of the reconstruction's cost, which trains for both
        "reconstruction": ("reconstruction", ("encoder", "decoder", *learned)),
        "separation": ("reconstruction", learned),
        "discriminator": ("adversarial", discriminators),
        "generator": ("adversarial", ("decoder" if cfg.task == "gan" else "encoder",)),
        "classification": ("classification", ("encoder",)),
    }
    names = PHASES[cfg.task] if cfg.regularizer == "adversarial" else ("divergence", "reconstruction")
    useless = {"separation": not learned, "classification": not cfg.classifies}
    found = [Phase(name, *every[name]) for name in names if not useless.get(name)]
    return tuple(phase for phase in found if getattr(cfg, f"lr_{phase.cost}"))

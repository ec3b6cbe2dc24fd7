"""Launches of every prototype in the shapes of mnist-likelihood, for a compiler: nothing is launched."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch

import fastaae
from fastaae import kernels
from fastaae.data import from_arrays
from fastaae.engine.step import Step
from fastaae.kernels.step import layers

from . import masters, persistent, riders, rows, tiles
from .launches import Launch, recorded


def prototypes(arch: int) -> dict[str, tuple]:
    """Kernel, grid, arguments and options, by what they do; of launches that differ in nothing, one."""
    images = from_arrays((np.zeros((600, 784), np.uint8), np.arange(600) % 10))
    cfg = fastaae.preset("mnist-likelihood", precision="bf16")
    with (
        patch.object(kernels, "triton_takes", lambda t: True),
        patch.object(layers, "capability", lambda t: arch // 10),
    ):
        step = Step(cfg, images, torch.device("cpu"))
        step.start_epoch(0)
        plain = recorded(step, 2)
    seconds = [step.networks[name].shadows[1] for name in ("encoder", "discriminator.z")]
    of_25 = tiles.in_tiles_of_25(rows.owned(plain))
    found: dict[str, tuple] = {}

    def add(kind: str, launches: list[Launch]) -> None:
        for launch in launches:
            what = f"{kind}, {_described(launch)}"
            if kind != "riders" and launch.name == "riding" and not launch.arguments["DEPENDENT"]:
                continue
            found.setdefault(what, launch[:4])

    changed = {launch.name for launch in of_25} - {launch.name for launch in plain}
    add("alone", [launch for launch in of_25 if launch.name in changed])
    for some in (plain, of_25):
        seconded = riders.second_shadows(some, seconds)
        add("riders", [launch for launch in riders.ride(seconded) if launch.name == "riding"])
    if arch >= 90:  # which has such launches
        alone, riding = riders.dependent(plain), riders.dependent(riders.ride(seconded))
        add("dependent", [launch for launch in alone if launch.args[4] != "draw"])  # whose cosine keeps a stack
        add("dependent riders", [launch for launch in riding if launch.arguments["RIDERS"]])
    for pitch, is_split in ((1000, False), (1024, False), (1000, True)):
        w, v = (torch.empty(1, 1000, pitch)[..., :1000] for _ in range(2))
        x, shadow = torch.empty(1, 100, 1024).bfloat16()[..., :1000], torch.empty(1, 1000, 1024).bfloat16()[..., :1000]
        state = (torch.empty(w.shape, dtype=torch.int16) if is_split else w, v, shadow)
        launch = masters.update(x, x, state, torch.empty(1), **masters.TILE)
        found[f"a master {'split' if is_split else f'in rows of {pitch}'}"] = launch[:4]
        if pitch == 1000 and not is_split and arch >= 90:
            found["a master by TMA"] = masters.streamed(x, x, state, torch.empty(1), 132)[:4]
    for tile in persistent.TILES:
        whole = persistent.Skeleton(100, 1024, 15, torch.empty(0).bfloat16(), tile)
        found[f"a kernel that stays, {tile['ROWS']} rows"] = whole.launch(whole.chain(132), 132)[:4]
    return found


def _described(launch: Launch) -> str:
    """What is compiled, in words: which kernel, of how many columns and of what depth, and what follows it."""
    a = launch.arguments
    if launch.name != "riding":
        return f"{launch.name} {a.get('N_O') or a['N']} x {a.get('N_I') or a['K']}{_ends(a)}"
    kernel, jobs = a["KERNEL"], "".join(f" + {shape[0]} x {shape[1]}" for shape in a["RIDERS"])
    head = a["HOW"][0] + a["HOW"][1]
    if kernel.startswith(("forward", "backward")):
        some = dict(zip(("then", "sums") if not kernel.endswith("rows") else ("then",), a["given"][4:], strict=False))
        at = 3 if kernel.startswith("forward") else 4
        return f"{kernel} {head[at]} x {head[at + 1]}{_ends(some | {'LOSS': a['APART']})}{jobs}"
    of = f" of {len(a['given'][0])} layers, {a['given'][6]} rows" if kernel == "update" else ""
    return f"{kernel}{of}{jobs}"


def _ends(a: dict) -> str:
    loss = ", loss" if a.get("LOSS") is not None else ", leaves" if a.get("then") is not None else ""
    return loss + (", sums" if a.get("sums") is not None else "")
